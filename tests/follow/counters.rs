//! Counts that outlive a change of the file.

use crate::change::{self, KIB, MIB, Way};
use crate::dialects::Group;
use crate::guest::{Daemon, Disk, assert_follows};
use crate::vm;

/// How many writes, and of how many sectors, the region has seen. Clears nothing.
fn writes(disk: &Disk, region: u32) -> (u64, u64) {
    let row = disk.message(&format!("@stats_print {region}"));
    // START+LEN, then reads: number, merged, sectors, time; then writes likewise.
    let numbers: Vec<u64> =
        row.split_whitespace().skip(1).map(|word| word.parse().unwrap()).collect();
    (numbers[4], numbers[6])
}

/// A region of the group by what it counts.
fn region(group: &Group, start: u64, end: u64) -> Option<u32> {
    let at = group.extents.iter().position(|extent| *extent == (start, end))?;
    Some(group.members[at])
}

fn growth_keeps_counts(kind: &str, options: &str) {
    let disk = Disk::format(0, kind, options);
    let file = disk.path("log");
    change::roomy(&file);
    change::sync(&file);
    let _daemon = Daemon::run(&[file.as_ref()]);
    let map = assert_follows(&disk, "a new file", &file, "log");
    let [(start, end)] = map[..] else { panic!("one extent: {map:?}") };
    let (id, group) = disk.group("log").unwrap();
    assert_eq!(region(&group, start, end), Some(id));

    let overwrite = |times: u64| {
        for at in 0..times {
            change::write(&file, Way::Direct, at * 4 * KIB, 4 * KIB);
        }
    };
    overwrite(16);
    assert_eq!(writes(&disk, id), (16, 16 * 8));
    for round in 1..=4 {
        change::append(&file, Way::Direct, 64 * KIB);
        let map = assert_follows(&disk, "an append", &file, "log");
        assert_eq!(map, [(start, end + round * 128)], "the extent has grown");

        let (same_id, group) = disk.group("log").unwrap();
        assert_eq!((same_id, region(&group, start, end)), (id, Some(id)), "{group:?}");
        assert_eq!(writes(&disk, id), (15 + round, (15 + round) * 8), "all counts are kept");
        overwrite(1);
    }
    assert_eq!(change::size(&file), MIB + 256 * KIB);

    // Each piece counts its own, and nothing is counted twice.
    let (_, group) = disk.group("log").unwrap();
    let before: Vec<_> = group.members.iter().map(|id| writes(&disk, *id)).collect();
    change::write(&file, Way::Direct, MIB, 4 * KIB);
    let after = group.members.iter().map(|id| writes(&disk, *id));
    let more: Vec<(u64, u64)> =
        after.zip(before).map(|(after, before)| (after.0 - before.0, after.1 - before.1)).collect();
    assert_eq!(more.iter().filter(|more| **more == (1, 8)).count(), 1, "{more:?}");
    assert_eq!(more.iter().filter(|more| **more == (0, 0)).count(), more.len() - 1, "{more:?}");
}

#[test]
fn ext4() {
    if vm::inside("counters::ext4") {
        growth_keeps_counts("ext4", "-q");
    }
}

#[test]
fn xfs() {
    if vm::inside("counters::xfs") {
        growth_keeps_counts("xfs", "-q");
    }
}
