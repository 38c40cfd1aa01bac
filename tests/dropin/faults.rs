//! What lvm2's daemon does not notice, or does wrong.

use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use crate::daemon::{
    PROGRAM, Table, by_hand, command, create_group, descriptors, dmstats, let_look, looks, newer,
    only_daemon, outcome, punch, succeed, text, truncate, write, write_pieces,
};
use crate::dialects::{self, Reader};
use crate::guest::{Daemon, Disk, assert_follows, mapped, wait_until};
use crate::vm;
use crate::{follow, write_back_at_once};

#[test]
fn as_many_blocks_elsewhere_are_noticed() {
    if !vm::inside("faults::as_many_blocks_elsewhere_are_noticed") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 4);
    let _daemon = follow(&file, "data", "inode");
    let before = (fs::metadata(&file).unwrap().blocks(), mapped(&[&file]));
    punch(&file, 0, 16);
    write(&file, 512, 16);
    let after = (fs::metadata(&file).unwrap().blocks(), mapped(&[&file]));
    assert!(before.0 == after.0 && before.1 != after.1, "{before:?} {after:?}");
    assert_follows(&disk, "a piece that moved", &file, newer("data"));
}

/// Nobody calls `write` or `fsync`: pages get their place when the kernel writes them back.
#[test]
fn what_is_written_through_a_mapping_is_noticed() {
    if !vm::inside("faults::what_is_written_through_a_mapping_is_noticed") {
        return;
    }
    write_back_at_once();
    for (ramdisk, kind) in [(0, "ext4"), (1, "xfs")] {
        let disk = Disk::format(ramdisk, kind, "");
        let file = disk.path("data");
        write(&file, 0, 16);
        truncate(&file, 1024);
        let _daemon = follow(&file, "data", "inode");
        assert_follows(&disk, "nothing", &file, newer("data"));
        for at in ["256k", "512k"] {
            let store = format!("xfs_io -c 'mmap -rw 0 1m' -c 'mwrite {at} 16k' {}", text(&file));
            let sectors = sectors_of(&file);
            vm::sh(&store);
            wait_until("the kernel writes back", || {
                if sectors_of(&file) > sectors { Ok(()) } else { Err(sectors.to_string()) }
            });
            assert_follows(&disk, "a store into a hole", &file, newer("data"));
        }
    }
}

fn sectors_of(file: &Path) -> u64 {
    let map = mapped(&[file]).remove(0).unwrap();
    map.iter().map(|(start, end)| end - start).sum()
}

/// Logs are rotated like this. lvm2's ends at it, and its regions count the I/O of others.
#[test]
fn a_group_outlives_its_files_last_extent() {
    if !vm::inside("faults::a_group_outlives_its_files_last_extent") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 3);
    let mut daemon = follow(&file, "data", "inode");
    for round in 0..3 {
        assert_follows(&disk, &format!("pieces, round {round}"), &file, newer("data"));
        truncate(&file, 0);
        assert_follows(&disk, &format!("truncated, round {round}"), &file, newer("data"));
        assert_eq!(dmstats_shows(), [("data".to_owned(), 0, "0".to_owned())], "{}", disk.listing());
        assert_eq!(disk.strays(), [0; 0]);
        write_pieces(&file, round + 1);
    }
    assert_follows(&disk, "the last round", &file, newer("data"));
    assert_eq!(dmstats_shows()[0].1, 0, "the group has another id: {}", disk.listing());
    assert!(daemon.is_running());
}

/// The groups that Debian's dmstats shows: alias, id and members. It also has to report them.
fn dmstats_shows() -> Vec<(String, u32, String)> {
    succeed(&mut dmstats("report"));
    succeed(&mut dmstats("report --group"));
    let groups = succeed(&mut dmstats("list --group --noheadings"));
    let group = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [alias, id, members, "group", ..] = fields[..] else { panic!("{line}") };
        (alias.to_owned(), id.parse().unwrap(), members.to_owned())
    };
    groups.lines().filter(|line| *line != "No regions found").map(group).collect()
}

/// What readers of both generations see while something happens.
struct Watch<'a> {
    table: Table,
    done: &'a AtomicBool,
}

impl Watch<'_> {
    /// Lists until it is done. Every listing has to be readable and to have the group; gives how
    /// many there were.
    fn look(mut self, alias: &str) -> u32 {
        let mut listings = 0;
        while !self.done.load(Ordering::Relaxed) {
            let listing = self.table.listing();
            for reader in Reader::BOTH {
                let groups = dialects::groups(reader, listing.as_bytes());
                let groups = groups.unwrap_or_else(|why| panic!("{reader:?}: {why}\n{listing}"));
                let alias = if reader == Reader::Old { alias } else { newer(alias) };
                let found = groups.values().any(|group| group.alias == alias.as_bytes());
                assert!(found, "{reader:?} sees no group {alias}\n{listing}");
            }
            listings += 1;
            thread::yield_now();
        }
        listings
    }
}

/// Runs `work` with somebody watching; see [`Watch::look`].
fn watched(disk: &Disk, alias: &str, work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = Watch { table: Table::of(disk), done: &done };
        let watcher = scope.spawn(move || watch.look(alias));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let listings = watcher.join();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(listings.unwrap() > 10);
    });
}

#[test]
fn an_extent_before_the_leaders_leaves_the_group_its_id() {
    if !vm::inside("faults::an_extent_before_the_leaders_leaves_the_group_its_id") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 128, 16);
    let _daemon = follow(&file, "data", "inode");
    watched(&disk, "data", || {
        write(&file, 0, 16);
        assert_follows(&disk, "a write before the leader's extent", &file, newer("data"));
        write(&file, 64, 16);
        punch(&file, 128, 16);
        assert_follows(&disk, "the leader's extent replaced", &file, newer("data"));
    });
    let shown = dmstats_shows();
    assert_eq!((shown.len(), shown[0].0.as_str(), shown[0].1), (1, "data", 0), "{shown:?}");
}

/// lvm2's writes a descriptor that nobody can read, itself included.
#[test]
fn a_new_region_below_the_group_takes_the_lead() {
    if !vm::inside("faults::a_new_region_below_the_group_takes_the_lead") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 2);
    let mut table = Table::of(&disk);
    let free = [0, 1].map(|_| table.create("0+8", "dmstats", "-"));
    let _daemon = follow(&file, "data", "inode");
    assert_follows(&disk, "nothing", &file, newer("data"));
    for id in free {
        table.send(&format!("@stats_delete {id}"));
    }
    watched(&disk, "data", || {
        write(&file, 512, 16);
        assert_follows(&disk, "a region that gets the id 0", &file, newer("data"));
        write(&file, 1024, 16);
        assert_follows(&disk, "one more", &file, newer("data"));
    });
    assert_eq!(dmstats_shows(), [("data".to_owned(), 0, "0-3".to_owned())], "{}", table.listing());
}

/// lvm2's deletes all that is left, or itself.
#[test]
fn the_leaders_extent_may_vanish_from_any_number() {
    if !vm::inside("faults::the_leaders_extent_may_vanish_from_any_number") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    for count in [2, 3, 5, 40] {
        let name = format!("<{count}>");
        let file = disk.path(&name);
        write_pieces(&file, count);
        let daemon = follow(&file, &name, "inode");
        watched(&disk, &name, || {
            punch(&file, 0, 16);
            assert_follows(&disk, "the first piece punched", &file, newer(&name));
            if count > 3 {
                write(&file, 0, 16);
                punch(&file, 32, 48);
                assert_follows(&disk, "two punched and one written", &file, newer(&name));
            }
        });
        let shown = dmstats_shows();
        assert!(shown.iter().any(|(alias, ..)| *alias == name), "{shown:?}");
        assert_eq!(disk.strays(), [0; 0], "{}", disk.listing());
        drop(daemon);
    }
}

/// lvm2's takes one more instance of inotify at each look, and dies of it after a minute.
#[test]
fn following_a_path_takes_no_more_descriptors_as_time_passes() {
    if !vm::inside("faults::following_a_path_takes_no_more_descriptors_as_time_passes") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let (file, next) = (disk.path("data"), disk.path("next"));
    write(&file, 0, 16);
    let group = create_group(&file, "");
    let mut start = by_hand(&file, group, "path 1 1");
    let mut daemon = Daemon::start(start.env("DMFILEMAPD_INTERVAL", "5ms"));
    assert_follows(&disk, "nothing", &file, newer("data"));
    let first = descriptors(daemon.pid());
    for round in 0..8 {
        let_look(daemon.pid(), 50);
        write(&next, round * 32, 16);
        fs::rename(&next, &file).unwrap();
        assert_follows(&disk, "a rename over it", &file, newer("data"));
        let open = descriptors(daemon.pid());
        assert!(open.len() <= first.len(), "{first:?}\n{open:?}");
        assert!(open.values().all(|to| !to.contains("notify")), "{open:?}");
    }
    assert!(daemon.is_running());
}

#[test]
fn a_program_id_is_kept_even_if_it_is_a_number() {
    if !vm::inside("faults::a_program_id_is_kept_even_if_it_is_a_number") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 2);
    let mut table = Table::of(&disk);
    for (program_id, options) in [("1234", ""), ("0", "--bounds 5ms"), ("of-mine", "--precise")] {
        let run = format!("run --program-id {program_id} {options}");
        let words: Vec<&OsStr> = run.split_whitespace().map(OsStr::new).collect();
        let daemon =
            Daemon::start(command(PROGRAM).args(words).args(["--alias", program_id]).arg(&file));
        assert_follows(&disk, "a start", &file, program_id);
        drop(daemon);
        // And in lvm2's form, which cannot name it.
        let (group, _) = disk.group(program_id).unwrap();
        let _daemon = Daemon::start(&mut by_hand(&file, group, "inode 1"));
        write(&file, 512, 16);
        assert_follows(&disk, "an append", &file, program_id);
        let listing = table.listing();
        let rows = dialects::rows(listing.as_bytes()).unwrap();
        assert!(rows.len() > 2 && rows.iter().all(|row| row.program_id == program_id.as_bytes()));
        let listed = succeed(&mut dmstats(&format!("list --group --programid {program_id}")));
        assert!(listed.contains(program_id), "{listed}");
        table.clear();
        punch(&file, 512, 16);
    }
}

#[test]
fn a_file_inside_its_inode_has_no_region_until_it_grows_out() {
    if !vm::inside("faults::a_file_inside_its_inode_has_no_region_until_it_grows_out") {
        return;
    }
    let disk = Disk::format(0, "ext4", "-O inline_data -I 256");
    let file = disk.path("data");
    fs::write(&file, "tiny").unwrap();
    vm::sh("sync");
    assert_eq!(outcome(dmstats("create --filemap").arg(&file)).status, Some(1), "lvm2's");
    let _daemon = Daemon::run(&[file.as_os_str()]);
    let_look(only_daemon(), 5);
    assert_eq!(disk.listing(), "");
    write(&file, 0, 64);
    assert_follows(&disk, "more than an inode holds", &file, "data");
}

/// lvm2's makes a region of the whole device if all it finds has no place yet.
#[test]
fn what_has_no_place_yet_is_no_region() {
    if !vm::inside("faults::what_has_no_place_yet_is_no_region") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let group = create_group(&file, "");
    let mut start = by_hand(&file, group, "inode 1 1");
    let daemon = Daemon::start(start.env("DMFILEMAPD_INTERVAL", "1ms"));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let rewriter = scope.spawn(|| rewrite(&file, &done));
        let mut table = Table::of(&disk);
        wait_until("the daemon has looked and looked", || {
            let listing = table.listing();
            for row in dialects::rows(listing.as_bytes()).unwrap() {
                assert!(row.end - row.start <= 128, "{listing}");
            }
            let looked = looks(daemon.pid());
            if looked > 300 { Ok(()) } else { Err(format!("{looked} times")) }
        });
        done.store(true, Ordering::Relaxed);
        assert!(rewriter.join().unwrap() > 100);
    });
    assert_follows(&disk, "the end of it", &file, newer("data"));
}

/// Empties the file and fills it, again and again; only now and then what is in it gets a place.
fn rewrite(file: &Path, done: &AtomicBool) -> u32 {
    use std::os::unix::fs::FileExt as _;
    let open = File::options().write(true).open(file).unwrap();
    let bytes = vec![1; 1 << 16];
    let mut rounds = 0;
    while !done.load(Ordering::Relaxed) {
        open.set_len(0).unwrap();
        open.write_all_at(&bytes, 0).unwrap();
        if rounds % 16 == 0 {
            open.sync_data().unwrap();
        }
        rounds += 1;
        thread::yield_now();
    }
    rounds
}
