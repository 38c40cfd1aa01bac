//! What a monitor, and the regions it makes, do to the I/O of others on the device.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::change::{self, MIB, Way};
use crate::daemon;
use crate::files::Files;
use crate::guest::Disk;
use crate::judge::{Judge, quantile};
use crate::keeper::Keeper;
use crate::support::table::{Cell, Table};
use crate::{Bench, INTERVAL, begin, in_turn, meter};

/// What others read and write, beside the followed files.
const FIO_FILE: &str = "fio.dat";
const FIO_SIZE: u64 = 64 * MIB;

/// Between two changes of each file.
const CHANGE: Duration = INTERVAL;

/// An odd number, so that a median is what was measured.
const ROUNDS: usize = 5;

/// How often each is measured, and for how many seconds.
struct Sizes {
    rounds: usize,
    seconds: u32,
}

fn sizes(bench: &Bench) -> Sizes {
    Sizes { rounds: bench.sized(1, ROUNDS), seconds: bench.sized(1, 2) }
}

/// What was measured of some I/O.
#[derive(Clone, Copy, Debug)]
struct Speed {
    /// Requests a second.
    rate: f64,
    /// The time in ms that 99 in 100 of them do not exceed.
    p99: f64,
    /// CPU time of the whole kernel for each, in us. The load of the host matters little to it.
    cpu: f64,
}

/// Random direct I/O of 4 KiB, 16 requests at a time; `kind` is `randread` or `randwrite`.
fn fio(file: &Path, kind: &str, seconds: u32) -> Speed {
    let mut fio = Command::new("fio");
    fio.args(["--name=x", "--direct=1", "--bs=4k", "--ioengine=libaio", "--iodepth=16"]);
    fio.args(["--time_based", "--output-format=json", "--norandommap", "--random_generator=lfsr"]);
    fio.args([&format!("--rw={kind}"), &format!("--runtime={seconds}")]);
    fio.arg(format!("--size={FIO_SIZE}")).arg(format!("--filename={}", file.display()));
    let mut said = String::new();
    let cpu = meter::cpu_of(|| said = daemon::succeed(&mut fio));
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}: {said}"));
    let job = &report["jobs"][0][kind.trim_start_matches("rand")];
    let number = |value: &Value| value.as_f64().unwrap();
    Speed {
        rate: number(&job["iops"]),
        p99: number(&job["clat_ns"]["percentile"]["99.000000"]) / 1e6,
        cpu: cpu.as_secs_f64() * 1e6 / number(&job["total_ios"]),
    }
}

fn fio_file(disk: &Disk) -> PathBuf {
    let path = disk.path(FIO_FILE);
    for at in 0..FIO_SIZE / MIB {
        change::write(&path, Way::Direct, at * MIB, MIB);
    }
    path
}

// A monitor.

pub fn run(bench: &mut Bench) {
    let headings = ["device", "files that change", "fio", "kept by"];
    let headings = [&headings[..], &COMPARED].concat();
    let title = "Random direct I/O of 4 KiB while followed files on the device change every 500 ms";
    let mut table = Table::new("harm", title, &headings);
    let mut keepers = vec![Keeper::Nobody, Keeper::Service];
    if !bench.arguments.quick {
        keepers.push(Keeper::Dmstats);
    }
    keepers.extend(bench.given());
    let fast = bench.disk("ext4");
    with_monitors(bench, &mut table, "ramdisk", &fast, &keepers);
    if !bench.arguments.quick {
        let slow = Disk::slow(bench.ramdisk(), 10);
        with_monitors(bench, &mut table, "10 ms a request", &slow, &keepers);
    }
    table.note(NOTE);
    bench.publish(&table);
}

fn with_monitors(bench: &Bench, table: &mut Table, device: &str, disk: &Disk, keepers: &[Keeper]) {
    let fio = fio_file(disk);
    let kinds = bench.sized(&["randread"][..], &["randread", "randwrite"]);
    for &count in bench.sized(&[1][..], &[1, 20]) {
        let mut files = Files::make(disk, count);
        let mut speeds = vec![vec![Vec::new(); keepers.len()]; kinds.len()];
        for round in 0..sizes(bench).rounds {
            for at in in_turn(round, keepers.len()) {
                let keeper = &keepers[at];
                let kept = format!("{count} files kept by {}", keeper.name());
                begin("harm", round, &format!("{device}, {kept}"));
                let keeping = keeper.start(disk, &files, INTERVAL);
                let measured = measure(&fio, kinds, sizes(bench).seconds, &mut files);
                drop(keeping);
                Judge::of(disk).table().clear();
                for (speed, kind) in measured.into_iter().zip(&mut speeds) {
                    kind[at].push(speed);
                }
            }
        }
        for (kind, speeds) in kinds.iter().zip(speeds) {
            for (keeper, kept) in keepers.iter().zip(&speeds) {
                let head = [device.into(), count.into(), (*kind).into(), keeper.name().into()];
                table.row(head.into_iter().chain(compared(kept, &speeds[0])));
            }
        }
    }
}

/// Each kind of I/O in turn, while the files change.
fn measure(fio_file: &Path, kinds: &[&str], seconds: u32, files: &mut Files) -> Vec<Speed> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                files.change_all_within(CHANGE);
            }
        });
        let speeds = kinds.iter().map(|kind| fio(fio_file, kind, seconds)).collect();
        stop.store(true, Ordering::Relaxed);
        speeds
    })
}

/// The median of all rounds.
fn middle(speeds: &[Speed], of: fn(&Speed) -> f64) -> f64 {
    quantile(speeds.iter().map(of).collect(), 0.5).unwrap()
}

/// How many times as much as without, in the same round each: the median.
fn ratio(speeds: &[Speed], without: &[Speed], of: fn(&Speed) -> f64) -> Cell {
    let pairs = speeds.iter().zip(without);
    Cell::Ratio(
        quantile(pairs.map(|(with, without)| of(with) / of(without)).collect(), 0.5).unwrap(),
    )
}

/// Headings for what [`compared`] gives.
const COMPARED: [&str; 6] =
    ["requests/s", "of those", "p99 ms", "of that", "CPU us a request", "of that time"];

fn compared(speeds: &[Speed], without: &[Speed]) -> [Cell; 6] {
    let fields: [fn(&Speed) -> f64; 3] = [|it| it.rate, |it| it.p99, |it| it.cpu];
    let both = |of| [Cell::Number(middle(speeds, of)), ratio(speeds, without, of)];
    let [[rate, of_rate], [p99, of_p99], [cpu, of_cpu]] = fields.map(both);
    [rate, of_rate, p99, of_p99, cpu, of_cpu]
}

/// What the tables have to say in the end.
const NOTE: &str = "Medians of interleaved rounds; ratios are to the first of such rows in the \
                    same round. CPU time is that of the whole kernel, as its host sees it.";

// Regions.

pub fn regions(bench: &mut Bench) {
    let headings = [&["regions"][..], &COMPARED, &["ns more for each region"]].concat();
    let title =
        "Random direct reads of 4 KiB from a ramdisk, by the number of regions on its device";
    let mut table = Table::new("regions", title, &headings);
    let disk = bench.disk("ext4");
    let fio_file = fio_file(&disk);
    let mut judge = Judge::of(&disk);
    let numbers: &[u64] = bench.sized(&[0, 100][..], &[0, 10, 100, 1_000, 10_000]);
    let mut speeds = vec![Vec::new(); numbers.len()];
    for round in 0..sizes(bench).rounds {
        for at in in_turn(round, numbers.len()) {
            begin("regions", round, &format!("{} regions", numbers[at]));
            for region in 0..numbers[at] {
                // All over the device, and mostly elsewhere than what is read.
                judge.table().create(&format!("{}+8", region * 64), "bench", "-");
            }
            speeds[at].push(fio(&fio_file, "randread", sizes(bench).seconds));
            judge.table().clear();
        }
    }
    let cpu = |speeds: &Vec<Speed>| middle(speeds, |it| it.cpu);
    for (&number, kept) in numbers.iter().zip(&speeds) {
        let more = (cpu(kept) - cpu(&speeds[0])) * 1e3 / number as f64;
        let more = if number > 0 { Cell::Number(more) } else { Cell::Nothing };
        let cells = [number.into()].into_iter().chain(compared(kept, &speeds[0]));
        table.row(cells.chain([more]));
    }
    table.note(NOTE);
    bench.publish(&table);
}
