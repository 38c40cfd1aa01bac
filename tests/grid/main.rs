//! What files write, counted by a grid in a real kernel, against what they are known to write.
//!
//! `TEST_AREAS=16,64,512,4096 cargo test --test grid table -- --nocapture` prints how the accuracy
//! goes with the size of the areas, in KiB, and the kernel memory they take.

#![allow(clippy::unwrap_used)] // all of this is a test
#![allow(clippy::cast_precision_loss)] // percentages

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

use std::time::Instant;

use dmfilemapd::extent::Extent;
use dmfilemapd::grid::plan::{Change, Patch};
use dmfilemapd::grid::table::Grid;
use dmfilemapd::kernel::Control;

use account::Account;
use change::{KIB, MIB};
use guest::Disk;
use workload::{ALL, Workload};

/// Bytes that each followed file has in the end, or a few more.
const SIZE: u64 = 8 * MIB;

/// What came of one workload, in percent of what all followed files together have written.
struct Outcome {
    /// What was given to the file that wrote it.
    right: f64,
    /// What was given to a file that did not write it.
    wrong: f64,
    /// What may be wrong, as the attribution itself says.
    doubt: f64,
    /// Kernel memory that the grid takes.
    kernel_bytes: u64,
}

/// Runs a workload on a fresh filesystem, counted by areas of so many bytes.
fn run(kind: &str, workload: Workload, area: u64) -> Outcome {
    let options = if kind == "xfs" { "-q -f" } else { "-q -F" };
    let disk = Disk::format(0, kind, options);
    let before = kernel_bytes();
    let mut account = Account::open(&disk, kind, area);
    let kernel_bytes = kernel_bytes() - before;
    let truth = workload::run(workload, &disk, SIZE, &mut account);
    account.tick();
    let (mut written, mut right, mut wrong, mut doubt) = (0, 0, 0, 0);
    for (file, bytes) in &truth {
        let share = account.found().files.get(file).copied().unwrap_or_default();
        let (given, over) = (share.counters.written_bytes, share.doubt.over.written_bytes);
        let under = share.doubt.under.written_bytes;
        println!(
            "  {kind} {workload:?}, {area}: {file} wrote {bytes}, got {given} -{over} +{under}"
        );
        written += bytes;
        right += given.min(*bytes);
        wrong += given.saturating_sub(*bytes);
        doubt += over.max(under);
        // Others have had the same sectors for a moment only where files come and go.
        let stays = workload != Workload::Crowd;
        assert!(
            !stays || given <= bytes + over && *bytes <= given + under,
            "the doubt is too small"
        );
    }
    account.assert_adds_up();
    account.assert_one_create();
    drop(account); // has files open
    vm::sh(&format!("umount {} && dmsetup remove {}", disk.mount.display(), disk.name));
    let percent = |bytes: u64| (bytes * 10_000 / written) as f64 / 100.0;
    let (right, wrong, doubt) = (percent(right), percent(wrong), percent(doubt));
    Outcome { right, wrong, doubt, kernel_bytes }
}

/// What all regions of the machine take.
fn kernel_bytes() -> u64 {
    let path = "/sys/module/dm_mod/parameters/stats_current_allocated_bytes";
    vm::sh(&format!("cat {path}")).trim().parse().unwrap()
}

/// At least 99 % are given to the file that wrote them where an area is no larger than a tenth of
/// the file; and little more, which metadata has written between them.
fn accept(kind: &str) {
    let alone = |workload: &Workload| *workload != Workload::Crowd;
    for workload in ALL.into_iter().filter(alone) {
        for area in [64 * KIB, 512 * KIB] {
            let Outcome { right, wrong, .. } = run(kind, workload, area);
            let what = format!("{kind} {workload:?} {area}: {right} % right, {wrong} % too much");
            assert!(right >= 99.0 && wrong <= 2.0, "{what}");
        }
    }
}

#[test]
fn ext4_files_get_what_they_write() {
    if vm::inside("ext4_files_get_what_they_write") {
        accept("ext4");
    }
}

#[test]
fn xfs_files_get_what_they_write() {
    if vm::inside("xfs_files_get_what_they_write") {
        accept("xfs");
    }
}

#[test]
fn table_of_accuracy_by_size_of_area_and_memory() {
    if !vm::inside("table_of_accuracy_by_size_of_area_and_memory") {
        return;
    }
    let areas = std::env::var("TEST_AREAS").unwrap_or_else(|_| "16".to_owned());
    println!("| filesystem | workload | area KiB | kernel KiB | right % | too much % | doubt % |");
    for kind in ["ext4", "xfs"] {
        for workload in ALL {
            for area in areas.split(',').map(|kib| kib.parse::<u64>().unwrap()) {
                let Outcome { right, wrong, doubt, kernel_bytes } = run(kind, workload, area * KIB);
                let (memory, of) = (kernel_bytes / KIB, format!("{kind} | {workload:?}"));
                println!("| {of} | {area} | {memory} | {right:.2} | {wrong:.2} | {doubt:.2} |");
                assert!(area > 16 || right >= 99.0, "areas of the size of a write");
            }
        }
    }
}

/// Says what it costs, too: `-- --nocapture`.
#[test]
fn a_grid_is_read_in_few_messages_and_a_resting_one_says_nothing() {
    if !vm::inside("a_grid_is_read_in_few_messages_and_a_resting_one_says_nothing") {
        return;
    }
    let device = vm::device(&vm::linear("rest", 0));
    let mut control = Control::open().unwrap();
    for (step, messages) in [(128, 1 + 4), (16, 1 + 32)] {
        let mut grid = Grid::find(&mut control, device, 1, false, &[]).unwrap();
        let extent = Extent::new(0, 1 << 20).unwrap();
        let create = vec![Patch { extent, step }];
        grid.change(&mut control, &Change { delete: Vec::new(), create }, 1).unwrap();
        grid.read(&mut control).unwrap();
        let (before, start) = (control.traffic(), Instant::now());
        for _ in 0..10 {
            assert_eq!(grid.read(&mut control).unwrap(), []);
        }
        println!("{} areas: {:?} each time", (1 << 20) / step, start.elapsed() / 10);
        assert_eq!(control.traffic().messages - before.messages, 10 * messages);
        grid.remove(&mut control).unwrap();
    }
}

#[test]
fn a_grid_is_a_leftover_when_nobody_has_hold_of_it() {
    if !vm::inside("a_grid_is_a_leftover_when_nobody_has_hold_of_it") {
        return;
    }
    let device = vm::device(&vm::linear("left", 0));
    let mut control = Control::open().unwrap();
    let extent = Extent::new(0, 4096).unwrap();
    let change = Change { delete: Vec::new(), create: vec![Patch { extent, step: 8 }] };
    let mut grid = Grid::find(&mut control, device, 1, false, &[]).unwrap();
    grid.change(&mut control, &change, 1).unwrap();
    let gc =
        |options: &str| vm::sh(&format!("{} gc {options} left", env!("CARGO_BIN_EXE_dmfilemapd")));
    assert_eq!(gc(""), "nothing to delete: no orphans on 1 device(s)\n");
    grid.read(&mut control).unwrap();
    drop(control); // as the end of the process does
    let said = gc("--dry-run");
    assert!(said.contains("region 0, 0+4096, of a grid that nobody reads"), "{said}");
    assert!(
        said.contains("@stats_delete 0") && said.contains("1 region of a grid would go"),
        "{said}"
    );
    assert!(gc("").contains("1 region of a grid deleted"));
    assert_eq!(vm::sh("dmsetup message left 0 @stats_list"), "");
}
