//! What a grid costs where files change, against regions for each file.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::files::Files;
use crate::guest::Disk;
use crate::judge::{Judge, quantile};
use crate::keeper::Keeper;
use crate::support::table::{Cell, Table};
use crate::{Bench, INTERVAL, begin, in_turn, meter, trace};

/// What device-mapper has allocated for all its regions.
const ALLOCATED: &str = "/sys/module/dm_mod/parameters/stats_current_allocated_bytes";

const KEEPERS: [Keeper; 3] = [Keeper::Nobody, Keeper::Service, Keeper::GridAlone];

/// Until a service has taken up its files.
const BEGUN: Duration = Duration::from_secs(8);

/// What was measured with a keeper, a number for each round.
#[derive(Clone, Debug, Default)]
struct Figures {
    cpu: Vec<f64>,
    pss: Vec<f64>,
    kernel: Vec<f64>,
}

pub fn run(bench: &mut Bench) {
    let headings = ["files", "kept by", "CPU s/min", "PSS MiB", "kernel memory KiB"];
    let title = "Files that change every 1.1 s on one device: regions for each, or a grid of 4 MiB";
    let mut table = Table::new("grid", title, &headings);
    let disk = bench.disk("ext4");
    for count in bench.numbers(&[2], &[1, 10, 100]) {
        let figures = measure(bench, &disk, count);
        let middle = |numbers: &[f64]| quantile(numbers.to_vec(), 0.5).unwrap();
        let without = middle(&figures[0].cpu);
        for (keeper, figures) in KEEPERS.iter().zip(&figures).skip(1) {
            table.row([
                count.into(),
                keeper.name().into(),
                Cell::Number(middle(&figures.cpu) - without),
                Cell::Number(middle(&figures.pss)),
                Cell::Number(middle(&figures.kernel)),
            ]);
        }
    }
    table.note(
        "CPU time is that of the whole kernel as its host sees it, less that of the same time \
         without a service: medians of interleaved rounds. The kernel's memory is what it counts \
         for the regions of all devices, at the end.",
    );
    bench.publish(&table);
}

fn measure(bench: &mut Bench, disk: &Disk, count: usize) -> [Figures; KEEPERS.len()] {
    let mut files = Files::make(disk, count);
    let mut judge = Judge::of(disk);
    let mut figures: [Figures; KEEPERS.len()] = Default::default();
    let window = Duration::from_secs(bench.sized(2, 20)); // a multiple of what comes round
    for round in 0..bench.sized(1, 3) {
        for at in in_turn(round, KEEPERS.len()) {
            let keeper = &KEEPERS[at];
            begin("grid", round, &format!("{count} files kept by {}", keeper.name()));
            let keeping = keeper.start(disk, &files, INTERVAL);
            if *keeper != Keeper::Nobody && !bench.arguments.quick {
                thread::sleep(BEGUN);
            }
            let cpu = meter::cpu_of(|| files.keep_changing(window)).as_secs_f64();
            let figures = &mut figures[at];
            figures.cpu.push(cpu * 60.0 / window.as_secs_f64());
            figures.pss.push(trace::memory(&keeping.pids()).0);
            let text = fs::read_to_string(ALLOCATED).unwrap();
            figures.kernel.push(text.trim().parse::<f64>().unwrap() / 1024.0);
            if *keeper == Keeper::GridAlone {
                let regions = judge.table().listing().lines().count() as u64;
                bench.counts.is(&format!("regions of a grid for {count} files"), regions, 1);
            }
            drop(keeping);
            judge.table().clear();
        }
    }
    figures
}
