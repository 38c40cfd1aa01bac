//! Limits on regions in a real kernel: what a service makes of a file in many pieces, and of one
//! that grows; what dmstats reads then, and what the status says.

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

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use dmfilemapd::request::{DeviceState, Totals};
use nix::libc;
use nix::sys::signal::Signal;

use daemon::{PROGRAM, at_once, command, daemons, dmstats, newer, punch, signal, succeed, write};
use guest::{Daemon, Disk, Sectors, assert_follows, counted, mapped, wait_until};
use service::{configure, entry, serve, status, status_of, told};

/// A file with so many extents, of a block each, and one to five free blocks between them.
fn pieces(disk: &Disk, name: &str, count: u64) -> Sectors {
    let file = disk.path(name);
    let mut holes = Vec::new();
    let mut at = 0;
    for piece in 0..count {
        let hole = 1 + piece * piece % 5;
        holes.push((at + 1, hole));
        at += 1 + hole;
    }
    vm::sh(&format!("fallocate -l {}K {}", at * 4, file.display()));
    for (at, hole) in holes {
        punch(&file, at * 4, hole * 4);
    }
    vm::sh("sync");
    extents_of(&file)
}

fn extents_of(file: &Path) -> Sectors {
    mapped(&[file]).remove(0).expect("it is there")
}

/// The fewest sectors between its extents that so many regions can take in.
fn fewest_foreign(map: &Sectors, regions: usize) -> u64 {
    let mut gaps: Vec<u64> = map.windows(2).map(|pair| pair[1].0 - pair[0].1).collect();
    gaps.sort_unstable();
    gaps[..map.len().saturating_sub(regions)].iter().sum()
}

fn sectors(ranges: &Sectors) -> u64 {
    ranges.iter().map(|(start, end)| end - start).sum()
}

/// Waits until the file's group has no more regions than this and covers the file; what it counts
/// besides, in sectors.
fn wait_until_limited(disk: &Disk, name: &str, max: usize) -> u64 {
    let file = disk.path(name);
    wait_until(&format!("{name} has {max} regions at most"), || {
        let map = extents_of(&file);
        let Some((_, group)) = disk.group(name) else { return Err("no group".to_owned()) };
        let shown = counted(&group);
        let inside = |extent: &(u64, u64)| {
            shown.iter().any(|outer| outer.0 <= extent.0 && extent.1 <= outer.1)
        };
        let shows = map.iter().all(inside) && group.members.len() <= max;
        let told = status_of(&file).filter(|told| told.state == "following");
        let foreign = sectors(&shown) - sectors(&map).min(sectors(&shown));
        match told {
            Some(told) if shows && told.foreign_bytes == foreign * 512 => Ok(foreign),
            told => Err(format!("{shown:?} of {map:?}, {told:?}")),
        }
    })
}

fn assert_dmstats_reads(disk: &Disk, regions: usize) {
    for command in ["list", "report"] {
        let words = format!("{command} --region --noheadings -o region_id {}", disk.name);
        assert_eq!(succeed(&mut dmstats(&words)).lines().count(), regions, "dmstats {command}");
    }
}

/// That the metrics have the one group of this machine with so many regions, and what it costs.
fn assert_metrics_tell(regions: u64, foreign_sectors: u64) {
    let metrics = told("metrics");
    let value = |name: &str| {
        let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
        let value = lines.find_map(|rest| rest.rsplit_once(' ').map(|(_, value)| value.to_owned()));
        value.unwrap_or_else(|| panic!("no {name}\n{metrics}"))
    };
    let memory = vm::sh("cat /sys/module/dm_mod/parameters/stats_current_allocated_bytes");
    assert_eq!(value("dmfilemap_kernel_stats_bytes"), memory.trim_end());
    assert_eq!(status().service.kernel_stats_bytes.unwrap().to_string(), memory.trim_end());
    assert_eq!(value("dmfilemap_device_own_regions{"), regions.to_string());
    assert_eq!(value("dmfilemap_device_regions_created_total{"), regions.to_string());
    assert_eq!(value("dmfilemap_file_foreign_bytes{"), (foreign_sectors * 512).to_string());
    let seconds = |name: &str| value(name).parse::<f64>().unwrap();
    assert!(seconds("dmfilemap_device_regions_created_time_seconds_total{") > 0.0, "{metrics}");
    let cost = seconds("dmfilemap_device_own_io_cost_estimated_seconds{");
    assert_eq!(format!("{:.0}", cost * 1e9), (17 * regions).to_string());
}

fn a_file_in_many_pieces(kind: &str) {
    let disk = Disk::format(0, kind, "");
    let map = pieces(&disk, "many", 300);
    let file = disk.path("many");
    configure(&format!("max_regions = 20\n{}", entry(&disk, "*")));
    let service = serve("");
    let foreign = wait_until_limited(&disk, "many", 20);
    assert_eq!(foreign, fewest_foreign(&map, 20), "no choice of 20 regions takes in fewer");
    assert_dmstats_reads(&disk, 20);
    let told = wait_until("the device is listed again", || {
        let told = told("status");
        let listed = told.contains("20 of 20 region(s) are of these files");
        if listed { Ok(told) } else { Err(told) }
    });
    assert!(told.contains("between its 300 extents, too: 20 region(s) allowed"), "{told}");
    assert_metrics_tell(20, foreign);

    let mut explain = command(PROGRAM);
    explain.env("DMFILEMAPD_CONFIG_DIR", "/tmp/etc").args(["explain", "--json"]).arg(&file);
    let explained: serde_json::Value = serde_json::from_str(&succeed(&mut explain)).unwrap();
    assert_eq!(explained["map"]["regions"], 20);
    assert_eq!(explained["map"]["foreign_bytes"], foreign * 512);

    let before = status().devices[0].creates;
    // On xfs that is several transactions.
    at_once(service.pid(), || punch(&file, 4 * 400, 4 * 8));
    wait_until("the change is known", || {
        let extents = status_of(&file).map(|told| told.extents as usize);
        if extents == Some(extents_of(&file).len()) { Ok(()) } else { Err(format!("{extents:?}")) }
    });
    wait_until_limited(&disk, "many", 20);
    let creates = status().devices[0].creates - before;
    assert!(creates <= 6, "{creates} creates for one change\n{}", service.said());

    configure(&entry(&disk, "*"));
    signal(service.pid(), Signal::SIGHUP);
    let map = assert_follows(&disk, "a limit that allows all", &file, "many");
    wait_until("the update is done", || match status_of(&file).unwrap() {
        done if done.state == "following" && done.foreign_bytes == 0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_dmstats_reads(&disk, map.len());
    assert_eq!(disk.strays(), [0; 0]);
}

#[test]
fn a_file_in_many_pieces_on_ext4() {
    if vm::inside("a_file_in_many_pieces_on_ext4") {
        a_file_in_many_pieces("ext4");
    }
}

#[test]
fn a_file_in_many_pieces_on_xfs() {
    if vm::inside("a_file_in_many_pieces_on_xfs") {
        a_file_in_many_pieces("xfs");
    }
}

#[test]
fn the_files_of_a_device_share_what_it_may_have() {
    if !vm::inside("the_files_of_a_device_share_what_it_may_have") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let few = pieces(&disk, "few", 5).len();
    pieces(&disk, "many", 100);
    configure(&format!("max_device_regions = 40\n{}", entry(&disk, "*")));
    let _service = serve("");
    wait_until_limited(&disk, "many", 40 - few);
    assert_follows(&disk, "who needs few has them", &disk.path("few"), "few");
    pieces(&disk, "more", 100);
    for name in ["many", "more"] {
        wait_until_limited(&disk, name, (40 - few) / 2);
    }
    assert_follows(&disk, "still", &disk.path("few"), "few");
    disk.wait_until_no_strays("none is left over");
    assert!(disk.listing().lines().count() <= 40, "{}", disk.listing());
}

/// Overwrites so many pieces of 4 KiB from the beginning of the file; how many bytes that is.
fn overwrite(file: &Path, count: u64) -> u64 {
    vm::sh(&format!(
        "dd if=/dev/zero of={} bs=4k count={count} conv=notrunc,nocreat oflag=direct status=none",
        file.display()
    ));
    count * 4096
}

fn written(file: &Path) -> u64 {
    let totals: Totals =
        serde_json::from_str(&succeed(command(PROGRAM).args(["totals", "--json"]))).unwrap();
    let found = totals.files.iter().find(|totals| totals.path.as_ref().unwrap().0 == file);
    found.expect("it is followed").counters.written_bytes
}

const GROWTHS: u64 = 30;

/// Has the file grow at its end, and writes all of it each time; bytes written.
fn grow(disk: &Disk, file: &Path) -> u64 {
    let mut bytes = 0;
    for growth in 1..=GROWTHS {
        write(file, growth * 64, 64);
        assert_follows(disk, "it has grown", file, "log");
        bytes += overwrite(file, (growth + 1) * 16);
    }
    bytes
}

#[test]
fn a_file_that_grows_is_folded_and_its_totals_go_on() {
    if !vm::inside("a_file_that_grows_is_folded_and_its_totals_go_on") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("log");
    write(&file, 0, 64);
    configure(&format!("fold_above = 2\n{}", entry(&disk, "*")));
    let service = serve("--state-dir /tmp/state");
    assert_follows(&disk, "at the start", &file, "log");
    let before = written(&file);
    let bytes = grow(&disk, &file);
    assert_eq!(written(&file) - before, bytes, "nothing is lost, and nothing counted twice");
    let (_, group) = disk.group("log").unwrap();
    let extents = extents_of(&file).len();
    assert!(group.members.len() <= extents + 2 + 5, "{group:?}\n{}", service.said());
    assert_dmstats_reads(&disk, group.members.len());
    assert_eq!(disk.strays(), [0; 0]);
}

/// Overwrites pieces of 4 KiB, one after the other, up to a thousand a second.
fn overwrite_until(file: &Path, end: &AtomicBool) -> u64 {
    let open = File::options().write(true).custom_flags(libc::O_DIRECT).open(file).unwrap();
    let buffer = vec![0; 8192];
    let aligned = buffer.as_ptr().align_offset(4096);
    let (piece, mut bytes) = (&buffer[aligned..aligned + 4096], 0);
    while !end.load(Relaxed) {
        open.write_all_at(piece, bytes % (1 << 20)).unwrap();
        bytes += 4096;
        // What is written between two messages is lost, so it must not be much on a slow host.
        thread::sleep(Duration::from_millis(1));
    }
    bytes
}

/// What is counted of the old regions and the new one between two messages is lost.
#[test]
fn a_fold_of_regions_that_are_written_to_loses_some_writes_at_the_most() {
    if !vm::inside("a_fold_of_regions_that_are_written_to_loses_some_writes_at_the_most") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("log");
    write(&file, 0, 1024);
    configure(&format!("fold_above = 0\n{}", entry(&disk, "*")));
    let service = serve("--state-dir /tmp/state");
    assert_follows(&disk, "at the start", &file, "log");
    let before = written(&file);
    let end = AtomicBool::new(false);
    let bytes = thread::scope(|scope| {
        let writer = scope.spawn(|| overwrite_until(&file, &end));
        for growth in 1..=GROWTHS / 2 {
            write(&file, growth * 1024, 1024);
            assert_follows(&disk, "it has grown", &file, "log");
        }
        end.store(true, Relaxed);
        writer.join().unwrap()
    });
    let lost = bytes.checked_sub(written(&file) - before).expect("nothing is counted twice");
    let (_, group) = disk.group("log").unwrap();
    let extents = extents_of(&file).len();
    assert!(group.members.len() <= extents + 4, "{group:?}\n{}", service.said());
    // The regions in which it writes are folded as often as the file doubles.
    assert!(lost <= 4 * (1 << 16), "{lost} bytes of {bytes}");
}

/// dmstats reads what it has asked for, and it would see what is folded begin at zero.
#[test]
fn what_is_handed_over_is_neither_merged_nor_folded() {
    if !vm::inside("what_is_handed_over_is_neither_merged_nor_folded") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let (file, alias) = (disk.path("handed"), newer("handed"));
    let end = 4 * pieces(&disk, "handed", 10).len() as u64 * 8;
    configure("max_regions = 3\nfold_above = 0\n");
    let service = serve("");
    succeed(dmstats("create --filemap").arg(&file));
    assert_follows(&disk, "it is handed over", &file, alias);
    assert_eq!(daemons(), [service.pid()]);
    for growth in 0..5 {
        let (_, before) = disk.group(alias).unwrap();
        write(&file, end + growth * 64, 64);
        assert_follows(&disk, "it has grown", &file, alias);
        let (_, after) = disk.group(alias).unwrap();
        let stays = |region: &(u64, u64)| after.extents.contains(region);
        assert!(before.extents.iter().all(stays), "{before:?} {after:?}\n{}", service.said());
    }
    assert_eq!(status_of(&file).unwrap().foreign_bytes, 0);
}

#[test]
fn an_update_by_hand_keeps_to_a_limit_too() {
    if !vm::inside("an_update_by_hand_keeps_to_a_limit_too") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let map = pieces(&disk, "many", 30);
    let file = disk.path("many");
    for regions in [7, 30] {
        let mut update = command(PROGRAM);
        update.args(["update", "--json", "--max-regions", &regions.to_string()]).arg(&file);
        let updated: serde_json::Value = serde_json::from_str(&succeed(&mut update)).unwrap();
        assert_eq!(updated["files"][0]["regions"], regions);
        let foreign = fewest_foreign(&map, regions);
        assert_eq!(updated["files"][0]["foreign_bytes"], foreign * 512);
        let (_, group) = disk.group("many").unwrap();
        assert_eq!(group.members.len(), regions);
        assert_eq!(sectors(&counted(&group)), sectors(&map) + foreign);
    }
}

#[test]
fn without_a_service_nothing_is_folded() {
    if !vm::inside("without_a_service_nothing_is_folded") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("log");
    write(&file, 0, 64);
    let mut run = Daemon::command();
    let daemon = Daemon::start(run.env("DMFILEMAPD_FOLD_ABOVE", "0").arg(&file));
    daemon.wait_for("following ");
    assert_follows(&disk, "at the start", &file, "log");
    for growth in 1..=5 {
        write(&file, growth * 64, 64);
        assert_follows(&disk, "it has grown", &file, "log");
    }
    assert_eq!(disk.group("log").unwrap().1.members.len(), 6, "{}", daemon.said());
}

/// An update that takes long is no device that is stuck, and the end need not wait for it.
#[test]
fn an_update_of_many_creates_is_paced_and_makes_room_for_the_end() {
    if !vm::inside("an_update_of_many_creates_is_paced_and_makes_room_for_the_end") {
        return;
    }
    let disk = Disk::format(0, "ext4", "-b 1024");
    let file = disk.path("many");
    vm::sh(&format!("fallocate -l 16000K {0}; sync {0}", file.display()));
    configure(&format!(
        "max_regions = 100000\nmax_device_regions = 100000\ncreate_share = 1\n\
         remove_on_exit = true\n{}",
        entry(&disk, "*")
    ));
    let mut service = serve("");
    assert_follows(&disk, "at the start", &file, "many");
    let before = disk.group("many");
    at_once(service.pid(), || (0..8000).for_each(|piece| punch(&file, piece * 2 + 1, 1)));
    let updating = || status_of(&file).unwrap().state == "updating";
    wait_until("the pieces are known", || updating().then_some(()).ok_or_else(String::new));
    let began = status().service.uptime_seconds;
    wait_until("the update takes longer than any answer of a device may", || {
        let mut status = status();
        let device = status.devices.remove(0);
        let took = status.service.uptime_seconds - began;
        let ok = took > 7.0 && device.state == DeviceState::Ok;
        if ok { Ok(()) } else { Err(format!("{device:?}")) }
    });
    assert!(updating() && disk.group("many") == before, "nothing of it is shown yet");
    signal(service.pid(), Signal::SIGTERM);
    assert!(service.wait_for_end().success());
    assert_eq!(disk.listing().lines().count(), 0, "{}", service.said());
}
