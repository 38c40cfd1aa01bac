//! Counts kept: sectors that were written to files, and sectors that their groups count in the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use dmfilemapd::request::Totals;

use crate::Bench;
use crate::change::{self, KIB, MIB, Way};
use crate::daemon;
use crate::files::Files;
use crate::guest::Disk;
use crate::judge::Judge;
use crate::keeper::Keeper;
use crate::support::table::{Cell, Table};

/// Between two looks or updates: so long that dmstats has time for all files in between.
const INTERVAL: Duration = Duration::from_secs(1);

/// Between two steps of a workload; no multiple of the interval.
const STEP: Duration = Duration::from_millis(700);

/// One write of a workload that writes here and there.
const BLOCK: u64 = 4 * KIB;
const SECTORS: u64 = BLOCK / 512;

/// What a file has of its own in the beginning, and what is written over again and again.
const BASE: u64 = MIB;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// Writes over what is there.
    Overwrite,
    /// Writes over what is there, and a little behind the end.
    Grow,
    /// Writes behind the end, whole blocks.
    Append,
    /// Writes behind the end, a quarter of a block at a time: so most of them write a block again.
    Lines,
    /// Writes over what is there; from time to time the second half is cut off and written anew.
    Truncate,
}

impl Work {
    const ALL: [(Work, Way); 9] = [
        (Work::Overwrite, Way::Direct),
        (Work::Overwrite, Way::Buffered),
        (Work::Grow, Way::Direct),
        (Work::Grow, Way::Buffered),
        (Work::Append, Way::Direct),
        (Work::Append, Way::Buffered),
        (Work::Lines, Way::Buffered),
        (Work::Truncate, Way::Direct),
        (Work::Truncate, Way::Buffered),
    ];

    fn name(self) -> &'static str {
        match self {
            Work::Overwrite => "overwrites",
            Work::Grow => "overwrites and grows",
            Work::Append => "appends blocks",
            Work::Lines => "appends lines",
            Work::Truncate => "overwrites, is truncated, is rewritten",
        }
    }
}

const TOTALS: &str = "our totals";

/// Sectors written to a file, as its group counts them in the end, and the totals of our service.
#[derive(Clone, Copy, Debug)]
struct Counted {
    group: u64,
    totals: u64,
}

/// A file that is worked on, and how much was written to it so far.
struct Worker {
    work: Work,
    way: Way,
    path: PathBuf,
    /// Sectors; those of blocks that there were, and those of blocks that came into being.
    over: u64,
    first: u64,
    dice: u64,
}

impl Worker {
    fn new(disk: &Disk, number: usize, work: Work, way: Way) -> Worker {
        let path = disk.path(&format!("{number:03}.img"));
        change::roomy(&path);
        assert_eq!(change::size(&path), BASE);
        Worker { work, way, path, over: 0, first: 0, dice: 1 }
    }

    /// Whole blocks reach the device, once, and have done so when this returns.
    fn write(&mut self, at: u64, len: u64) {
        let ends = |at: u64| at.div_ceil(BLOCK);
        let (blocks, there) = (at / BLOCK..ends(at + len), ends(change::size(&self.path)));
        let file: File = change::open(&self.path, self.way);
        change::write_to(&file, at, len);
        if self.way == Way::Buffered {
            file.sync_all().unwrap();
        }
        let over = blocks.end.min(there).saturating_sub(blocks.start);
        self.over += over * SECTORS;
        self.first += (blocks.end - blocks.start - over) * SECTORS;
    }

    fn overwrite(&mut self, times: u32) {
        for _ in 0..times {
            self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let block = (self.dice >> 33) % (BASE / 2 / BLOCK); // in the half that always stays
            self.write(block * BLOCK, BLOCK);
        }
    }

    fn step(&mut self, number: u32) {
        match self.work {
            Work::Overwrite => self.overwrite(16),
            Work::Grow => {
                self.overwrite(15);
                self.append(BLOCK);
            }
            Work::Append => self.append(16 * BLOCK),
            Work::Lines => (0..16).for_each(|_| self.append(BLOCK / 4)),
            Work::Truncate => {
                self.overwrite(16);
                if number % 4 == 3 {
                    change::truncate(&self.path, BASE / 2);
                    self.append(BASE / 2);
                }
            }
        }
    }

    fn append(&mut self, len: u64) {
        self.write(change::size(&self.path), len);
    }
}

pub fn run(bench: &mut Bench) {
    let filesystems = bench.sized(&["ext4"][..], &["ext4", "xfs"]);
    let steps = bench.sized(4, 30);
    let mut keepers = vec![Keeper::Gridded];
    if !bench.arguments.quick {
        keepers.push(Keeper::Dmstats);
    }
    keepers.extend(bench.given());
    let headings = ["on", "file that", "by", "sectors written", "to new blocks"];
    let names = keepers.iter().map(Keeper::name);
    let counted: Vec<String> = names.map(|name| format!("counted, {name}")).collect();
    let headings: Vec<&str> =
        headings.into_iter().chain(counted.iter().map(String::as_str)).chain([TOTALS]).collect();
    let title = "Sectors written to files, and what their groups count in the end";
    let mut table = Table::new("kept", title, &headings);
    for kind in filesystems {
        let disk = bench.disk(kind);
        let mut rows: Vec<Vec<Cell>> = Vec::new();
        let mut totals = Vec::new();
        for keeper in &keepers {
            eprintln!("kept: {kind}, kept by {}", keeper.name());
            for (at, (worker, counted)) in work(&disk, keeper, steps).into_iter().enumerate() {
                if rows.len() == at {
                    totals.push(counted.totals.into());
                    let way = if worker.way == Way::Direct { "O_DIRECT" } else { "write, fsync" };
                    let written = [(worker.over + worker.first).into(), worker.first.into()];
                    let words = [*kind, worker.work.name(), way].map(Cell::from);
                    rows.push(words.into_iter().chain(written).collect());
                }
                rows[at].push(counted.group.into());
                if *keeper == Keeper::Gridded {
                    check(bench, kind, &worker, counted);
                }
            }
        }
        for (row, totals) in rows.into_iter().zip(totals) {
            table.row(row.into_iter().chain([totals]));
        }
    }
    bench.publish(&table);
}

/// What our service has counted in all, in sectors, by alias.
fn totals() -> BTreeMap<String, u64> {
    let said = daemon::succeed(daemon::command(daemon::PROGRAM).args(["totals", "--json"]));
    let totals: Totals = serde_json::from_str(&said).unwrap();
    totals.files.into_iter().map(|file| (file.alias, file.counters.written_bytes / 512)).collect()
}

/// Works on one file of each kind at a time; gives what their groups count in the end.
fn work(disk: &Disk, keeper: &Keeper, steps: u32) -> Vec<(Worker, Counted)> {
    let all = Work::ALL.into_iter().enumerate();
    let mut workers: Vec<Worker> =
        all.map(|(at, (work, way))| Worker::new(disk, at, work, way)).collect();
    let files = Files::of(workers.iter().map(|worker| worker.path.clone()));
    let mut judge = Judge::of(disk);
    let keeping = keeper.start(disk, &files, INTERVAL);
    for number in 0..steps {
        let began = Instant::now();
        for worker in &mut workers {
            worker.step(number);
        }
        thread::sleep(STEP.saturating_sub(began.elapsed()));
    }
    files.wait_until_right(&mut judge);
    let totals = if *keeper == Keeper::Gridded { totals() } else { BTreeMap::new() };
    drop(keeping);
    let counted = |file: &crate::files::File| Counted {
        group: judge.sectors_written(file.alias()),
        totals: totals.get(file.alias()).copied().unwrap_or_default(),
    };
    let counted: Vec<Counted> = files.0.iter().map(counted).collect();
    judge.table().clear();
    files.remove();
    workers.into_iter().zip(counted).collect()
}

/// What went to regions that were kept is counted to the sector, and nothing is counted twice.
fn check(bench: &mut Bench, kind: &str, worker: &Worker, counted: Counted) {
    let what = format!("{kind}, {} {:?}: sectors", worker.work.name(), worker.way);
    let counts = &mut bench.counts;
    for (by, counted) in [("of the group", counted.group), ("of the totals", counted.totals)] {
        counts.at_most(&format!("{what} {by}"), counted, worker.over + worker.first);
    }
    let mut none_lost = |by, counted| {
        counts.at_most(&format!("{what} lost {by}"), worker.over.saturating_sub(counted), 0);
    };
    match worker.work {
        Work::Overwrite | Work::Grow => none_lost("by the group", counted.group),
        // What had been written to blocks that went is in the totals alone.
        Work::Truncate => none_lost("by the totals", counted.totals),
        Work::Append | Work::Lines => {}
    }
}
