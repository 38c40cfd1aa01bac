//! What following files costs in a real kernel: `cargo bench --bench kernel [-- [--quick] [WORD]]`.
//!
//! Boots a kernel of its own (`contrib/vm`) and runs itself in there: User-Mode Linux, or with
//! `TEST_KERNEL` the one in that folder. `BENCH_DAEMON` names one more daemon to be measured, any
//! program with lvm2's command line; `BENCH_FILES` one number of files for those tables that have
//! rows for several. Prints tables, and writes them to `target/bench`.
//!
//! Only counts fail it, and only those that are the same on every machine; `--quick` checks all of
//! them with a few files in a minute.

#![allow(clippy::unwrap_used)] // what fails here ends the bench, as a test
#![allow(missing_docs, missing_debug_implementations)] // nobody else uses any of this
#![allow(clippy::cast_precision_loss)] // figures for people

#[allow(dead_code)]
#[path = "../../tests/follow/change.rs"]
mod change;
mod cost;
#[path = "../../tests/support/daemon.rs"]
mod daemon;
#[path = "../../tests/support/dialects.rs"]
mod dialects;
mod files;
mod grid;
#[path = "../../tests/support/guest.rs"]
mod guest;
mod harm;
mod judge;
mod keeper;
mod kept;
mod messages;
mod meter;
mod outside;
#[path = "../support/mod.rs"]
mod support;
mod trace;
#[path = "../../tests/support/vm.rs"]
mod vm;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use guest::Disk;
use keeper::Keeper;
use support::arguments::Arguments;
use support::counts::Counts;
use support::table::Table;

/// Between two looks, or two updates, of everybody who is measured; what lvm2's daemon takes.
pub const INTERVAL: Duration = dmfilemapd::engine::INTERVAL;

/// What every table is made with.
pub struct Bench {
    pub arguments: Arguments,
    pub counts: Counts,
    /// The daemon to be measured besides ours.
    pub given: Option<PathBuf>,
    /// The one number of files to measure with, where several would be.
    pub files: Option<usize>,
    /// Ramdisks that are taken.
    pub ramdisks: u32,
}

impl Bench {
    /// The first in the quick form, or else the second.
    pub fn sized<T>(&self, quick: T, full: T) -> T {
        if self.arguments.quick { quick } else { full }
    }

    /// The numbers of files to measure with, one after the other: these, or the one that was named.
    #[must_use]
    pub fn numbers(&self, quick: &[usize], full: &[usize]) -> Vec<usize> {
        self.files.map_or_else(|| self.sized(quick, full).to_vec(), |one| vec![one])
    }

    /// The next ramdisk, of which nothing is used yet.
    pub fn ramdisk(&mut self) -> u32 {
        assert!(self.ramdisks < outside::RAMDISKS, "the kernel was given too few ramdisks");
        self.ramdisks += 1;
        self.ramdisks - 1
    }

    /// A new filesystem on a device of its own.
    pub fn disk(&mut self, kind: &str) -> Disk {
        Disk::format(self.ramdisk(), kind, "-q")
    }

    /// The daemon to be measured besides ours, if there is one.
    pub fn given(&self) -> Option<Keeper> {
        self.given.clone().map(Keeper::Given)
    }

    pub fn publish(&self, table: &Table) {
        table
            .publish(&self.arguments)
            .unwrap_or_else(|error| panic!("the tables cannot be written: {error}"));
    }
}

/// The indices of so many, from the first to the last and the next time from the last to the first:
/// whatever rises or falls meanwhile on this machine, none of them has more of it than the others.
fn in_turn(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |at| if round % 2 == 0 { at } else { count - 1 - at })
}

/// Says what is measured next: a table takes minutes.
fn begin(table: &str, round: usize, what: &str) {
    eprintln!("{table}, round {}: {what}", round + 1);
}

type Measure = fn(&mut Bench);

/// What can be asked for, by name.
const ALL: [(&str, Measure); 6] = [
    ("messages", messages::run),
    ("cost", cost::run),
    ("grid", grid::run),
    ("kept", kept::run),
    ("harm", harm::run),
    ("regions", harm::regions),
];

fn main() -> ExitCode {
    let arguments = match Arguments::read(&ALL.map(|(name, _)| name)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if !meter::is_inside() {
        return outside::boot(&arguments);
    }
    let given = env::var_os("BENCH_DAEMON").map(PathBuf::from);
    let files = match env::var("BENCH_FILES").map(|count| count.parse::<usize>()) {
        Ok(Ok(count)) if (1..1000).contains(&count) => Some(count),
        Ok(_) => {
            eprintln!("error: BENCH_FILES is the number of files to measure with, at most 999");
            return ExitCode::from(2);
        }
        Err(_) => None,
    };
    let counts = Counts::default();
    let mut bench = Bench { arguments, counts, given, files, ramdisks: 0 };
    guest::write_back_soon();
    for (name, run) in ALL {
        if bench.arguments.wants(name) {
            run(&mut bench);
        }
    }
    bench.counts.exit_code()
}
