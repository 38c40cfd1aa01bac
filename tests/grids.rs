//! A service that counts with grids, in a real kernel: what files write while they grow.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/dialects.rs"]
mod dialects;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/vm.rs"]
mod vm;

use std::fs;
use std::path::Path;

use dmfilemapd::request::{DeviceTotals, FileTotals, Source, Totals};
use nix::sys::signal::Signal;

use daemon::{PROGRAM, command, signal, succeed, write};
use guest::{Daemon, Disk, assert_follows, wait_until};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A service that follows all files of the disk, and reads only when it is asked.
fn serve(disk: &Disk, options: &str) -> Daemon {
    let pattern = disk.path("*");
    fs::create_dir_all("/tmp/etc").unwrap();
    let entries = format!("[[file]]\npath = \"{}\"\n", pattern.display());
    fs::write("/tmp/etc/config.toml", entries).unwrap();
    let mut command = command(PROGRAM);
    command.args(["run", "--config-dir", "/tmp/etc", "--rescan-interval", "100ms"]);
    command.args(["--state-dir", "/tmp/state", "--read-interval", "1h"]);
    command.args(["--grid-memory", "4MiB"]);
    let service = Daemon::start(command.args(options.split_whitespace()));
    service.wait_for("following the files of ");
    service
}

/// Ends it as systemd does.
fn stop(mut service: Daemon) {
    signal(service.pid(), Signal::SIGTERM);
    service.wait_for_end();
}

fn totals() -> Totals {
    serde_json::from_str(&succeed(command(PROGRAM).args(["totals", "--json"]))).unwrap()
}

fn find<'a>(totals: &'a Totals, file: &Path) -> Option<&'a FileTotals> {
    totals.files.iter().find(|totals| totals.path.as_ref().unwrap().0 == file)
}

fn of(totals: &Totals, file: &Path) -> FileTotals {
    let found = find(totals, file);
    found.cloned().unwrap_or_else(|| panic!("{} is not followed", file.display()))
}

fn written(file: &Path) -> u64 {
    // Between a group that somebody deletes and the next scan it may not be.
    wait_until("it is followed", || {
        let all = totals();
        let written = find(&all, file).map(|found| found.counters.written_bytes);
        written.ok_or_else(|| format!("{:?}", all.files))
    })
}

fn device() -> DeviceTotals {
    let [device] = <[DeviceTotals; 1]>::try_from(totals().devices).unwrap();
    device
}

fn wait_until_on_grid(file: &Path) {
    wait_until("the grid counts it", || {
        let all = totals();
        match find(&all, file) {
            Some(FileTotals { source: Source::Grid, .. }) => Ok(()),
            other => Err(format!("{other:?} {:?}", all.devices)),
        }
    });
}

/// Whether so much was counted of what was written: one percent less at most, and two more.
fn is_right(counted: u64, wrote: u64) -> bool {
    counted >= wrote / 100 * 99 && counted <= wrote / 50 * 51
}

/// Appends so many pieces past the page cache; gives their bytes.
fn append(file: &Path, piece: u64, count: u64) -> u64 {
    vm::sh(&format!(
        "dd if=/dev/zero of={} bs={piece} count={count} oflag=direct,append conv=notrunc \
         status=none",
        file.display()
    ));
    piece * count
}

/// Writes its first 64 KiB again; gives their bytes.
fn overwrite(file: &Path) -> u64 {
    let name = file.display();
    vm::sh(&format!("dd if=/dev/zero of={name} bs=64k count=1 oflag=direct conv=notrunc"));
    64 * KIB
}

fn growing_files_keep_what_they_write(kind: &str) {
    let disk = Disk::format(0, kind, "");
    let files = ["large", "small", "buffered"].map(|name| disk.path(name));
    for file in &files {
        write(file, 0, 4);
    }
    let service = serve(&disk, "");
    for file in &files {
        wait_until_on_grid(file);
    }
    let [large, small, buffered] = &files;
    let before = files.each_ref().map(|file| written(file));
    let mut wrote = [0; 3];
    for round in 0..8 {
        wrote[0] += append(large, MIB, 1);
        wrote[1] += append(small, 4 * KIB, 64);
        let name = buffered.display();
        vm::sh(&format!("dd if=/dev/zero bs=64k count=8 status=none >> {name} && sync {name}"));
        wrote[2] += 8 * 64 * KIB;
        if round % 3 == 0 {
            totals();
        }
    }
    let all = totals();
    let mut sum = 0;
    for ((file, before), wrote) in files.iter().zip(before).zip(wrote) {
        let of_file = of(&all, file);
        let counted = of_file.counters.written_bytes - before;
        sum += of_file.counters.written_bytes;
        let what = format!("{kind}: {counted} of {wrote}: {of_file:?}\n{}", service.said());
        assert!(is_right(counted, wrote), "{what}");
        assert!(of_file.uncertain_bytes.is_some());
    }
    let device = &all.devices[0];
    let grid = device.grid.clone().unwrap();
    assert!(sum + grid.others.written_bytes <= device.counters.unwrap().written_bytes);
    assert_eq!((grid.regions, grid.creates, &grid.error), (1, 1, &None), "{}", service.said());
    assert!(grid.kernel_bytes <= 4 * MIB && grid.area_bytes <= 64 * KIB, "{grid:?}");
}

#[test]
fn growing_files_keep_what_they_write_on_ext4() {
    if vm::inside("growing_files_keep_what_they_write_on_ext4") {
        growing_files_keep_what_they_write("ext4");
    }
}

#[test]
fn growing_files_keep_what_they_write_on_xfs() {
    if vm::inside("growing_files_keep_what_they_write_on_xfs") {
        growing_files_keep_what_they_write("xfs");
    }
}

/// Without regions, nothing is created after the start, whatever the files do.
#[test]
fn without_regions_the_grid_counts_alone() {
    if !vm::inside("without_regions_the_grid_counts_alone") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    // One that has made groups is followed by one that makes none, and those go.
    let service = serve(&disk, "");
    assert_follows(&disk, "at first", &file, "data");
    stop(service);
    let _service = serve(&disk, "--regions off");
    wait_until_on_grid(&file);
    wait_until("the group is gone", || match disk.listing().lines().count() {
        1 => Ok(()),
        _ => Err(disk.listing()),
    });
    let before = written(&file);
    let late = disk.path("late");
    let mut wrote = [0; 2];
    for round in 0..4 {
        wrote[0] += append(&file, 256 * KIB, 4);
        wrote[1] += append(&late, 256 * KIB, 4);
        if round == 0 {
            // It was not there before. No reading comes in between, so all of it is known.
            wait_until("it is followed", || {
                let status = succeed(command(PROGRAM).arg("status"));
                if status.contains("late") { Ok(()) } else { Err(status) }
            });
            wait_until_on_grid(&late);
        }
    }
    let counted = [written(&file) - before, written(&late)];
    for (counted, wrote) in counted.iter().zip(wrote) {
        let what = format!("{counted} of {wrote}: {:?}", totals());
        assert!(is_right(*counted, wrote), "{what}");
    }
    let listing = disk.listing();
    assert!(listing.lines().count() == 1 && listing.contains("grid="), "{listing}");
    let device = device();
    assert_eq!((device.creates, device.grid.unwrap().creates), (0, 0), "the grid was there");
    assert_eq!(of(&totals(), &file).state, "following");
}

fn assert_counted(file: &Path, wrote: u64, what: &str) {
    let counted = written(file);
    assert!(is_right(counted, wrote), "{what}: {counted} of {wrote}: {:#?}", totals());
}

/// Totals of a file that is on the grid go on over a kill, and over a grid that somebody deletes.
#[test]
fn totals_of_a_grid_go_on_whatever_happens_to_it() {
    if !vm::inside("totals_of_a_grid_go_on_whatever_happens_to_it") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let service = serve(&disk, "");
    wait_until_on_grid(&file);
    let mut wrote = written(&file) + append(&file, MIB, 2);
    assert_counted(&file, wrote, "at first");
    // Stopped, it writes down where the grid stands; what comes meanwhile is read by the next one.
    stop(service);
    wrote += append(&file, MIB, 1);
    let mut service = serve(&disk, "");
    wait_until_on_grid(&file);
    assert_counted(&file, wrote, "stopped");
    wrote += append(&file, MIB, 1);
    assert_counted(&file, wrote, "and started again");
    assert_eq!(device().grid.unwrap().creates, 0, "{}", service.said());

    // Killed, it goes back to what was written down last, and so does the grid.
    signal(service.pid(), Signal::SIGKILL);
    service.wait_for_end();
    wrote += append(&file, MIB, 1);
    let _service = serve(&disk, "");
    wait_until_on_grid(&file);
    assert_counted(&file, wrote, "killed");
}

#[test]
fn totals_of_a_grid_go_on_when_the_state_or_the_grid_is_lost() {
    if !vm::inside("totals_of_a_grid_go_on_when_the_state_or_the_grid_is_lost") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let service = serve(&disk, "");
    wait_until_on_grid(&file);
    // Without what was written down, it goes on from what the regions have, at least.
    overwrite(&file);
    stop(service);
    fs::remove_dir_all("/tmp/state").unwrap();
    let (_, group) = disk.group("data").unwrap();
    let sectors = |id: &u32| {
        let said = vm::sh(&format!("dmsetup message {} 0 @stats_print {id}", disk.name));
        said.split_whitespace().nth(7).unwrap().parse::<u64>().unwrap()
    };
    let counted = 512 * group.members.iter().map(sectors).sum::<u64>();
    let service = serve(&disk, "");
    wait_until_on_grid(&file);
    assert!(written(&file) >= counted && counted > 0, "{counted}");
    let wrote = written(&file) + append(&file, MIB, 1);
    assert_counted(&file, wrote, "and begun anew");

    // Deleted by somebody, regions count until there is another one.
    vm::sh(&format!("dmstats delete --allprograms --allregions {}", disk.name));
    assert_eq!(disk.listing().matches("grid=").count(), 0);
    let last = written(&file);
    service.wait_for("the grid is gone");
    assert!(last >= wrote / 100 * 99);
    assert!(written(&file) >= last, "it never goes back");
}

#[test]
fn a_grid_goes_with_the_last_file_and_with_the_service_if_it_is_told_so() {
    if !vm::inside("a_grid_goes_with_the_last_file_and_with_the_service_if_it_is_told_so") {
        return;
    }
    let disk = Disk::format(0, "xfs", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let service = serve(&disk, "--remove-on-exit --mode path");
    wait_until_on_grid(&file);
    fs::remove_file(&file).unwrap();
    wait_until("the grid is gone", || match disk.listing().as_str() {
        "" => Ok(()),
        listing => Err(listing.to_owned()),
    });
    write(&file, 0, 64);
    wait_until_on_grid(&file);
    stop(service);
    assert_eq!(disk.listing(), "");
}

/// The half that goes had counted, and the half that comes counts anew.
#[test]
fn a_file_that_is_cut_and_written_again_keeps_both() {
    if !vm::inside("a_file_that_is_cut_and_written_again_keeps_both") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    let name = file.display();
    vm::sh(&format!("fallocate -l 8M {name} && truncate -s 1M {name}"));
    vm::sh(&format!("dd if=/dev/zero of={name} bs=1M count=1 oflag=direct conv=notrunc"));
    let _service = serve(&disk, "");
    // It is cut before anybody has asked for totals: what its group loses is the grid's already.
    assert_follows(&disk, "at first", &file, "data");
    let mut wrote = overwrite(&file) + overwrite(&file);
    vm::sh(&format!("truncate -s 512K {name}"));
    assert_follows(&disk, "cut", &file, "data");
    wrote += append(&file, 512 * KIB, 1);
    assert_counted(&file, wrote, "cut at first");
    for _ in 0..3 {
        vm::sh(&format!("truncate -s 512K {name}"));
        wrote += append(&file, 512 * KIB, 1);
        assert_counted(&file, wrote, "cut and written again");
    }

    // Between two readings it is somewhere else each time.
    for _ in 0..3 {
        vm::sh(&format!("truncate -s 512K {name}"));
        assert_follows(&disk, "cut again", &file, "data");
        wrote += append(&file, 512 * KIB, 1);
        assert_follows(&disk, "written again", &file, "data");
    }
    assert_counted(&file, wrote, "somewhere else each time");
}
