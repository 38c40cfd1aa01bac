//! A file in pieces: more of them than fit a descriptor if their ids are scattered.

use std::process::Command;

use crate::change::{self, KIB, Way};
use crate::dialects;
use crate::guest::{Daemon, Disk, assert_follows, output_of, wait_until};
use crate::vm;

/// Blocks of the file in the beginning; every second one is an extent of its own.
const BLOCKS: u64 = 4000;
const BLOCK: u64 = 4 * KIB;

fn assert_dmstats_shows(disk: &Disk, regions: usize) {
    // Both ends of the group's descriptor are read; a row too long would fail every command.
    // What is no longer a member is deleted after the group shows the map.
    wait_until("what has gone is deleted", || {
        let left = disk.listing().lines().count();
        (left == regions).then_some(()).ok_or_else(|| format!("{left} regions"))
    });
    for command in ["list", "report"] {
        let mut dmstats = Command::new("dmstats");
        dmstats.args([command, "--region", "--noheadings", "-o", "region_id", &disk.name]);
        let shown = output_of(&mut dmstats).lines().count();
        assert_eq!(shown, regions, "dmstats {command}");
    }
    let mut dmstats = Command::new("dmstats");
    dmstats.args(["list", "--group", "--noheadings", "-o", "group_id,region_id", &disk.name]);
    assert_eq!(output_of(&mut dmstats).lines().count(), 1, "one group");
}

fn longest_row(disk: &Disk) -> usize {
    let listing = disk.listing();
    let rows = dialects::rows(listing.as_bytes()).unwrap();
    rows.iter().map(|row| row.line.len()).max().unwrap()
}

fn thousands_of_extents(kind: &str, options: &str) {
    let disk = Disk::format(0, kind, options);
    let file = disk.path("vm.img");
    change::reserve(&file, 0, BLOCKS * BLOCK);
    (0..BLOCKS).step_by(2).for_each(|block| change::punch(&file, block * BLOCK, BLOCK));
    change::sync(&file);
    let daemon = Daemon::run(&[file.as_ref()]);
    let map = assert_follows(&disk, "2,000 extents", &file, "vm.img");
    assert_eq!(map.len(), 2000);
    assert_dmstats_shows(&disk, 2000);

    (1..BLOCKS).step_by(4).for_each(|block| change::punch(&file, block * BLOCK, BLOCK));
    let scattered = assert_follows(&disk, "every second extent punched", &file, "vm.img");
    assert_eq!(scattered.len(), 1000);
    assert_dmstats_shows(&disk, 1000);
    let row = longest_row(&disk);
    assert!((3000..4095).contains(&row), "{row} bytes: as scattered as may be\n{}", daemon.said());

    for block in (1..BLOCKS).step_by(64) {
        change::write(&file, Way::Direct, block * BLOCK, BLOCK);
    }
    let map = assert_follows(&disk, "some of the holes filled", &file, "vm.img");
    assert_ne!(map, scattered); // some may have come to lie next to others
    assert!(longest_row(&disk) < 4095);

    change::punch(&file, 0, BLOCKS * BLOCK);
    let map = assert_follows(&disk, "all of it punched", &file, "vm.img");
    assert_eq!(map, []);
    assert_dmstats_shows(&disk, 1);
    assert_eq!(disk.strays(), [0; 0]);
}

/// Thousands of extents take several calls to read, and meanwhile the file's second half moves to
/// and fro in the file, though not on the device. A walk that meets that misses some extents.
fn moving_while_it_is_read(kind: &str, options: &str) {
    let disk = Disk::format(0, kind, options);
    let file = disk.path("vm.img");
    change::reserve(&file, 0, BLOCKS * BLOCK);
    (0..BLOCKS).step_by(2).for_each(|block| change::punch(&file, block * BLOCK, BLOCK));
    change::sync(&file);
    let _daemon = Daemon::run(&["--interval".as_ref(), "1ms".as_ref(), file.as_ref()]);
    let before = assert_follows(&disk, "2,000 extents", &file, "vm.img");
    for _ in 0..200 {
        change::insert(&file, BLOCKS / 2 * BLOCK, 512 * BLOCK);
        change::collapse(&file, BLOCKS / 2 * BLOCK, 512 * BLOCK);
    }
    let after = assert_follows(&disk, "moving to and fro", &file, "vm.img");
    assert_eq!(after, before);
    assert_eq!(disk.strays(), [0; 0]);
}

#[test]
fn ext4_moving() {
    if vm::inside("many::ext4_moving") {
        moving_while_it_is_read("ext4", "-q");
    }
}

#[test]
fn xfs_moving() {
    if vm::inside("many::xfs_moving") {
        moving_while_it_is_read("xfs", "-q");
    }
}

#[test]
fn ext4() {
    if vm::inside("many::ext4") {
        thousands_of_extents("ext4", "-q");
    }
}

#[test]
fn xfs() {
    if vm::inside("many::xfs") {
        thousands_of_extents("xfs", "-q");
    }
}
