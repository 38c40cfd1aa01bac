//! The picture of a file in a real kernel: what is drawn and listed is where `filefrag` says the
//! file lies, and where `dmsetup` says that its regions are.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/dialects.rs"]
mod dialects;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/service.rs"]
mod service;
#[path = "support/vm.rs"]
mod vm;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use daemon::{
    Outcome, PROGRAM, command, create_group, outcome, outside, punch, signal, succeed, text, write,
    write_pieces,
};
use guest::{Disk, Sectors, counted, mapped, merged, wait_until};
use nix::sys::signal::Signal;
use service::{configure, entry, serve};

/// Columns of the terminals.
const WIDTHS: [usize; 3] = [20, 80, 300];

fn explain(file: &Path, width: usize, options: &[&str]) -> Command {
    let mut explain = command(PROGRAM);
    explain.env("COLUMNS", width.to_string()).env("LC_ALL", "C");
    explain.args(["explain", "--picture"]).args(options).arg(file);
    explain
}

fn picture(file: &Path, width: usize) -> String {
    succeed(&mut explain(file, width, &[]))
}

/// The text as one line, wherever its lines were parted.
fn joined(picture: &str) -> String {
    picture.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn layout(file: &Path) -> Value {
    let said = succeed(&mut explain(file, 80, &["--json"]));
    serde_json::from_str::<Value>(&said).unwrap()["layout"].take()
}

// What others say.

/// Where each piece of the file begins in it, where on the device, and how long it is, in sectors;
/// by `filefrag`.
fn pieces(file: &Path) -> Vec<(u64, u64, u64)> {
    let output = Command::new("filefrag").args(["-e", "-v", "-b512"]).arg(file).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let piece = |line: &str| {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        let [_, logical, physical, len, ..] = fields[..] else { return None };
        let start = |range: &str| range.split_once("..")?.0.trim().parse::<u64>().ok();
        Some((start(logical)?, start(physical)?, len.parse().ok()?))
    };
    output.lines().filter_map(piece).collect()
}

fn of(file: &Path) -> Sectors {
    mapped(&[file]).remove(0).unwrap()
}

/// The regions of the file's group as `dmsetup` shows them: its id, and where each is.
fn regions(disk: &Disk, alias: &str) -> Vec<(u32, (u64, u64))> {
    let group = disk.group(alias).unwrap().1;
    group.members.iter().copied().zip(group.extents.iter().copied()).collect()
}

/// Sectors that both have between these two.
fn common(ranges: &Sectors, (start, end): (u64, u64)) -> u64 {
    ranges.iter().map(|range| range.1.min(end).saturating_sub(range.0.max(start))).sum()
}

fn sectors_of(disk: &Disk) -> u64 {
    vm::sh(&format!("blockdev --getsz {}", disk.node.display())).trim().parse().unwrap()
}

/// The rows of a bar for this part of the device, sector by sector where a region has one.
fn rows(span: (u64, u64), width: usize, file: &Sectors, group: Option<&Sectors>) -> Vec<String> {
    let cells = (width as u64 - 2).min(span.1 - span.0);
    let near: Sectors = group.into_iter().flatten().copied().collect();
    let near: Sectors = near.into_iter().filter(|region| common(file, *region) > 0).collect();
    let (mut shares, mut matches) = (String::from("["), String::from("["));
    for cell in 0..cells {
        let bound = |cell: u64| span.0 + (span.1 - span.0) * cell / cells;
        let (start, end) = (bound(cell), bound(cell + 1));
        let here = common(file, (start, end));
        shares.push(match here {
            0 => ' ',
            all if all == end - start => '#',
            some if 2 * some < end - start => '.',
            _ => ':',
        });
        let inside: Sectors = file
            .iter()
            .map(|range| (range.0.max(start), range.1.min(end)))
            .filter(|range| range.0 < range.1)
            .collect();
        let both: u64 = inside.iter().map(|range| common(&near, *range)).sum();
        let by_near = common(&near, (start, end));
        let by_all = group.map_or(0, |all| common(all, (start, end)));
        matches.push(match () {
            () if both < here => '!',
            () if by_all > by_near => 'x',
            () if by_near > both => '+',
            () if here > 0 => '=',
            () => ' ',
        });
    }
    let rows = [shares, matches].map(|row| row + "]");
    rows.into_iter().take(if group.is_some() { 2 } else { 1 }).collect()
}

/// Asserts that the picture and the list are what others say; returns the picture at 80 columns.
fn assert_drawn(disk: &Disk, file: &Path, alias: Option<&str>) -> String {
    let map = of(file);
    let found = alias.map(|alias| regions(disk, alias));
    let separate: Option<Sectors> =
        found.as_ref().map(|found| found.iter().map(|(_, region)| *region).collect());
    let device = (0, sectors_of(disk));
    let hull = |parts: Sectors| {
        let parts = merged(parts);
        let hull = (parts[0].0, parts.last().unwrap().1);
        (hull.1 - hull.0 <= device.1 / 4).then_some(hull)
    };
    let all: Sectors = map.iter().chain(separate.iter().flatten()).copied().collect();
    let hull = hull(all).or(hull(map.clone()));
    for width in WIDTHS {
        let said = picture(file, width);
        let shown: Vec<&str> = said.lines().filter(|line| line.starts_with('[')).collect();
        let mut expected = rows(device, width, &map, separate.as_ref());
        if let Some(hull) = hull {
            expected.extend(rows(hull, width, &map, separate.as_ref()));
        }
        assert_eq!(shown, expected, "{map:?} {found:?}\n{said}");
        assert!(said.lines().all(|line| line.len() <= width), "{said}");
    }

    let layout = layout(file);
    let listed: Vec<(u64, u64, u64)> = layout["pieces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|piece| {
            let number = |name: &str| piece[name].as_u64().unwrap();
            (number("file_offset_bytes") / 512, number("start_sector"), number("bytes") / 512)
        })
        .collect();
    let pieces = pieces(file);
    assert_eq!(listed, pieces);
    for (piece, (_, start, len)) in layout["pieces"].as_array().unwrap().iter().zip(&pieces) {
        let over = |region: &&(u32, (u64, u64))| common(&vec![region.1], (*start, start + len)) > 0;
        let over = found.iter().flatten().filter(over);
        let ids: Vec<u32> = over.map(|(id, _)| *id).collect();
        assert_eq!(piece["regions"], serde_json::to_value(ids).unwrap(), "{piece}");
    }
    picture(file, 80)
}

// Files.

fn a_file_before_and_after_its_group_is_there(kind: &str) {
    let disk = Disk::format(0, kind, "");
    let file = disk.path("many");
    // From its end to its beginning, with holes and with others' blocks between its own.
    for at in (0..24).rev() {
        write(&file, 64 * at, 32);
        write(&disk.path(&format!("other{at}")), 0, 16);
    }
    let extents = of(&file).len();
    assert!(extents > 3 && pieces(&file).len() >= 24, "{extents}");
    let shown = assert_drawn(&disk, &file, None);
    assert!(shown.contains("\nregions   none: it has no group\n"), "{shown}");
    assert!(shown.contains(&format!(" in {extents} extent(s), ")), "{shown}");
    assert!(shown.contains("more: --extents lists all"), "{shown}");
    assert_eq!(disk.listing(), "", "nothing was made");

    configure(&format!("max_regions = 3\n{}", entry(&disk, "many")));
    let service = serve("");
    wait_until("it has three regions", || {
        let group = disk.group("many").map(|(_, group)| group);
        let covers = |shown: Sectors| of(&file).iter().all(|it| common(&shown, *it) == it.1 - it.0);
        match group {
            Some(group) if group.members.len() <= 3 && covers(counted(&group)) => Ok(()),
            group => Err(format!("{group:?}")),
        }
    });
    signal(service.pid(), Signal::SIGSTOP); // what follows is not to be made good
    let shown = assert_drawn(&disk, &file, Some("many"));
    assert!(joined(&shown).contains("between its extents is, too"), "{shown}");
    assert!(shown.lines().any(|line| line.starts_with("[=") && line.contains('+')), "{shown}");

    write(&file, 4096, 64);
    let shown = assert_drawn(&disk, &file, Some("many"));
    assert!(joined(&shown).contains("64 KiB of the file is not counted"), "{shown}");
    assert!(shown.lines().any(|line| line.starts_with('[') && line.contains('!')), "{shown}");
    punch(&file, 0, 64 * 24);
    let shown = assert_drawn(&disk, &file, Some("many"));
    assert!(joined(&shown).contains("is counted where it no longer lies"), "{shown}");
    assert!(shown.lines().any(|line| line.starts_with('[') && line.contains('x')), "{shown}");
}

#[test]
fn a_file_before_and_after_its_group_is_there_on_ext4() {
    if vm::inside("a_file_before_and_after_its_group_is_there_on_ext4") {
        a_file_before_and_after_its_group_is_there("ext4");
    }
}

#[test]
fn a_file_before_and_after_its_group_is_there_on_xfs() {
    if vm::inside("a_file_before_and_after_its_group_is_there_on_xfs") {
        a_file_before_and_after_its_group_is_there("xfs");
    }
}

#[test]
fn a_group_of_dmstats_is_known_by_where_it_is() {
    if !vm::inside("a_group_of_dmstats_is_known_by_where_it_is") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let [file, other] = ["data", "other"].map(|name| disk.path(name));
    write_pieces(&file, 3);
    write(&other, 0, 64);
    create_group(&other, "--alias other");
    create_group(&file, "--alias <data>");
    assert_drawn(&disk, &file, Some("data"));
    disk.message("@stats_delete 0");
    let shown = joined(&picture(&file, 80));
    assert!(shown.contains("regions group 1 (<data>): 3 region(s) count 48 KiB"), "{shown}");
    assert!(picture(&other, 80).contains("none: it has no group"));
}

#[test]
fn pieces_that_are_special() {
    if !vm::inside("pieces_that_are_special") {
        return;
    }
    vm::sh("echo 0 >/proc/sys/vm/dirty_writeback_centisecs"); // nothing gets a place by itself
    let disk = Disk::format(0, "xfs", "-m reflink=1");
    let file = disk.path("data");
    write(&file, 0, 64);
    vm::sh(&format!("fallocate -o 64K -l 64K {0}; cp --reflink {0} {0}.twin; sync", text(&file)));
    let shown = assert_drawn(&disk, &file, None);
    let words = joined(&shown);
    assert!(words.contains("64 KiB unwritten; 64 KiB shared with other files"), "{shown}");
    let late = disk.path("late");
    File::create(&late).unwrap().write_all(&[1; 8192]).unwrap();
    let shown = joined(&picture(&late, 80));
    assert!(shown.contains("mapped 0 bytes in 0 extent(s)"), "{shown}");
    assert!(shown.contains("without a place on the device yet"), "{shown}");

    let disk = Disk::format(1, "ext4", "-O inline_data");
    let small = disk.path("small");
    fs::write(&small, "small").unwrap();
    let shown = picture(&small, 80);
    assert!(shown.contains("inline, among metadata"), "{shown}");
    assert!(shown.contains(&format!("\n[{:78}]\n", "")), "{shown}");
    let hole = disk.path("hole");
    File::create(&hole).unwrap().set_len(1 << 20).unwrap();
    let shown = joined(&picture(&hole, 80));
    assert!(shown.contains("mapped 0 bytes in 0 extent(s), 0 fragment(s) regions none"), "{shown}");
}

#[test]
fn what_is_in_the_way_is_said() {
    if !vm::inside("what_is_in_the_way_is_said") {
        return;
    }
    vm::sh("mkfs.ext4 -q /dev/ram1 && mkdir /mnt/plain && mount /dev/ram1 /mnt/plain");
    let plain = Path::new("/mnt/plain/data");
    write(plain, 0, 64);
    let Outcome { status, stdout, .. } = outcome(&mut explain(plain, 80, &[]));
    assert_eq!(status, Some(1), "{stdout}");
    assert!(joined(&stdout).contains("which is not a device-mapper device"), "{stdout}");
    let [row] = &rows((0, 1 << 20), 80, &of(plain), None)[..] else { panic!("{stdout}") };
    assert!(stdout.contains(row), "{row}\n{stdout}");

    let nowhere = outside("data");
    fs::write(&nowhere, "data").unwrap();
    let Outcome { status, stdout, .. } = outcome(&mut explain(&nowhere, 80, &[]));
    assert_eq!(status, Some(1), "{stdout}");
    assert!(stdout.contains("extents   cannot be used: its filesystem cannot say"), "{stdout}");
}
