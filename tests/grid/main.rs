//! What files write, counted by a grid in a real kernel, against what they are known to write.
//!
//! `cargo test --test grid table -- --nocapture` prints how the accuracy goes with the size of the
//! areas and the kernel memory they take.

#![allow(clippy::unwrap_used)] // all of this is a test

mod account;
mod workload;

#[path = "../follow/change.rs"]
#[allow(dead_code)] // a part of it is used here
mod change;
#[path = "../support/dialects.rs"]
mod dialects;
#[path = "../support/guest.rs"]
mod guest;
#[path = "../support/vm.rs"]
mod vm;

use account::Account;
use change::{KIB, MIB};
use guest::Disk;
use workload::{ALL, Workload};

/// Bytes that each followed file has in the end, or a few more.
const SIZE: u64 = 8 * MIB;

/// What came of one workload: written bytes, and how far what was attributed is off, in parts of a
/// thousand of all that was written.
struct Outcome {
    written: u64,
    off_permille: f64,
    doubt_permille: f64,
    kernel_bytes: u64,
}

/// Runs a workload on a fresh filesystem, counted by areas of so many bytes.
fn run(kind: &str, options: &str, workload: Workload, area: u64) -> Outcome {
    let disk = Disk::format(0, kind, options);
    let before = kernel_bytes();
    let mut account = Account::open(&disk, area);
    let kernel_bytes = kernel_bytes() - before;
    let truth = workload::run(workload, &disk, SIZE, &mut account);
    account.tick();
    let found = account.found().clone();
    let (mut written, mut off, mut doubt) = (0, 0, 0);
    for (file, bytes) in &truth {
        let share = found.files.get(file).copied().unwrap_or_default();
        let attributed = share.counters.written_bytes;
        written += bytes;
        off += attributed.abs_diff(*bytes);
        doubt += share.doubt.over.written_bytes.max(share.doubt.under.written_bytes);
        let violated = attributed < bytes.saturating_sub(share.doubt.under.written_bytes)
            || attributed > bytes + share.doubt.over.written_bytes;
        println!(
            "    {violated} {kind} {workload:?} {} KiB: file {file} wrote {bytes}, got {attributed}, \
             -{} +{}",
            area / KIB,
            share.doubt.over.written_bytes,
            share.doubt.under.written_bytes
        );
    }
    account.assert_adds_up();
    account.assert_one_create();
    drop(account); // has files open
    vm::sh(&format!("umount {} && dmsetup remove {}", disk.mount.display(), disk.name));
    let permille = |bytes: u64| 1000.0 * bytes as f64 / written as f64;
    Outcome { written, off_permille: permille(off), doubt_permille: permille(doubt), kernel_bytes }
}

/// What all regions of the machine take.
fn kernel_bytes() -> u64 {
    let path = "/sys/module/dm_mod/parameters/stats_current_allocated_bytes";
    vm::sh(&format!("cat {path}")).trim().parse().unwrap()
}

/// At least 99 % are attributed to the right file where an area is no larger than a tenth of it.
fn accept(kind: &str, options: &str) {
    for workload in ALL.into_iter().filter(|workload| *workload != Workload::Crowd) {
        for area in [64 * KIB, 512 * KIB] {
            let outcome = run(kind, options, workload, area);
            assert!(outcome.written >= SIZE);
            assert!(
                outcome.off_permille <= 10.0,
                "{kind} {workload:?}, areas of {} KiB: {} of 1000 are wrong",
                area / KIB,
                outcome.off_permille
            );
        }
    }
}

#[test]
fn ext4_files_get_what_they_write() {
    if vm::inside("ext4_files_get_what_they_write") {
        accept("ext4", "-q -F");
    }
}

#[test]
fn xfs_files_get_what_they_write() {
    if vm::inside("xfs_files_get_what_they_write") {
        accept("xfs", "-q -f");
    }
}

#[test]
fn table_of_accuracy_by_size_of_area_and_memory() {
    if !vm::inside("table_of_accuracy_by_size_of_area_and_memory") {
        return;
    }
    println!("filesystem | workload | area KiB | kernel KiB | right % | in doubt %");
    for (kind, options) in [("ext4", "-q -F"), ("xfs", "-q -f")] {
        for workload in ALL {
            let mut last = 0.0;
            for area in [16, 64, 512, 1024, 4096].map(|kib| kib * KIB) {
                let Outcome { off_permille, doubt_permille, kernel_bytes, .. } =
                    run(kind, options, workload, area);
                println!(
                    "{kind} | {workload:?} | {} | {} | {:.2} | {:.1}",
                    area / KIB,
                    kernel_bytes / KIB,
                    100.0 - off_permille / 10.0,
                    doubt_permille / 10.0
                );
                last = off_permille;
            }
            assert!(last < 1000.0, "{kind} {workload:?}: nothing is right in areas of 4 MiB");
        }
    }
}
