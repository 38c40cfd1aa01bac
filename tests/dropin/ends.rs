//! When following ends, and when it does not.

use std::fs;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::daemon::{
    Table, by_hand, create_group, descriptors, dmstats, let_look, newer, punch, signal, succeed,
    text, write, write_pieces,
};
use crate::guest::{Daemon, Disk, assert_all_follow, assert_follows, wait_until};
use crate::vm;
use crate::{disk_with_realtime, follow, write_back_at_once};

fn ends_with_its_group(disk: &Disk, daemon: &mut Daemon, alias: &str) {
    assert_eq!(daemon.wait_for_end().code(), Some(0), "{}", daemon.said());
    assert_eq!(disk.group(newer(alias)), None, "{}", disk.listing());
}

/// Where an open file lies, whatever it is called.
fn place(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

/// lvm2's lets go of a file that others still use, and leaves the regions of one nobody uses.
#[test]
fn an_inode_is_followed_as_long_as_anybody_uses_it() {
    if !vm::inside("ends::an_inode_is_followed_as_long_as_anybody_uses_it") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let names = ["<alone>", "<open>", "<mapped>", "<linked>", "<renamed>"];
    let [alone, open, program, linked, renamed] = names.map(|name| disk.path(name));
    for file in [&alone, &open, &linked, &renamed] {
        write(file, 0, 64);
    }
    fs::copy("/bin/sleep", &program).unwrap();
    vm::sh("sync");
    let mut daemons = names.map(|name| follow(&disk.path(name), name, "inode"));

    // A process that runs has its program mapped, but not open.
    let mut user = Command::new(&program).arg("1000").spawn().unwrap();
    let held = File::options().read(true).write(true).open(&open).unwrap();
    let (link, new_name) = (disk.path("link"), disk.path("new name"));
    fs::hard_link(&linked, &link).unwrap();
    fs::rename(&renamed, &new_name).unwrap();
    for file in [&open, &program, &linked] {
        fs::remove_file(file).unwrap();
    }
    fs::remove_file(&alone).unwrap();
    ends_with_its_group(&disk, &mut daemons[0], names[0]);

    let held_at = place(&held);
    for file in [&held_at, &link, &new_name] {
        write(file, 256, 64);
    }
    let rest = [(held_at.as_path(), "open"), (&link, "linked"), (&new_name, "renamed")];
    assert_all_follow(&disk, "an append", &rest);
    daemons[1..].iter().for_each(|daemon| let_look(daemon.pid(), 3));
    assert!(disk.group("mapped").is_some());

    drop(held);
    user.kill().and_then(|()| user.wait()).unwrap();
    for file in [&link, &new_name] {
        fs::remove_file(file).unwrap();
    }
    for at in 1..5 {
        ends_with_its_group(&disk, &mut daemons[at], names[at]);
    }
    assert_eq!(disk.listing(), "");
}

/// lvm2's takes a file of as many blocks for the same.
#[test]
fn a_path_is_followed_to_the_file_that_takes_the_place() {
    if !vm::inside("ends::a_path_is_followed_to_the_file_that_takes_the_place") {
        return;
    }
    for (ramdisk, kind) in [(0, "ext4"), (1, "xfs")] {
        let disk = Disk::format(ramdisk, kind, "");
        let (file, next) = (disk.path("data"), disk.path("next"));
        write(&file, 0, 64);
        let mut daemon = follow(&file, "data", "path");
        assert_follows(&disk, "nothing", &file, newer("data"));
        for round in 0..3 {
            write(&next, 0, 64);
            let (old, new) = (fs::metadata(&file).unwrap(), fs::metadata(&next).unwrap());
            assert_eq!((old.size(), old.blocks()), (new.size(), new.blocks()));
            fs::rename(&next, &file).unwrap();
            assert_follows(&disk, &format!("rename {round}"), &file, newer("data"));
        }
        assert!(daemon.is_running());
        fs::remove_file(&file).unwrap();
        ends_with_its_group(&disk, &mut daemon, "data");
        assert_eq!(disk.listing(), "");
    }
}

#[test]
fn a_realtime_file_that_takes_the_place_is_not_followed() {
    if !vm::inside("ends::a_realtime_file_that_takes_the_place_is_not_followed") {
        return;
    }
    let (disk, [there, here]) = disk_with_realtime();
    let mut daemon = follow(&here, "here", "path");
    assert_follows(&disk, "nothing", &here, newer("here"));
    fs::rename(&there, &here).unwrap();
    ends_with_its_group(&disk, &mut daemon, "here");
    assert!(daemon.said().contains("realtime file of xfs"), "{}", daemon.said());
}

/// About a second may pass between the end of one file and the beginning of the next.
#[test]
fn a_path_may_be_without_a_file_for_a_moment() {
    if !vm::inside("ends::a_path_may_be_without_a_file_for_a_moment") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let group = create_group(&file, "");
    let mut start = by_hand(&file, group, "path 1 1");
    let mut daemon = Daemon::start(start.env("DMFILEMAPD_INTERVAL", "10ms"));
    for round in 0..5 {
        assert_follows(&disk, "a file that is new", &file, newer("data"));
        let removed = Instant::now();
        fs::remove_file(&file).unwrap();
        let_look(daemon.pid(), 2);
        signal(daemon.pid(), Signal::SIGSTOP); // what follows may take its time
        if removed.elapsed() > Duration::from_millis(900) {
            println!("round {round}: the machine is too slow for this");
            return;
        }
        write(&file, 128 * (round + 1), 64);
        signal(daemon.pid(), Signal::SIGCONT);
    }
    assert_follows(&disk, "the last file", &file, newer("data"));
    assert!(daemon.is_running());
}

/// An open file keeps its filesystem mounted.
#[test]
fn a_path_is_not_kept_open_while_nothing_happens() {
    if !vm::inside("ends::a_path_is_not_kept_open_while_nothing_happens") {
        return;
    }
    write_back_at_once();
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let mut daemon = follow(&file, "data", "path");
    for at in [256, 512] {
        write(&file, at, 64);
        assert_follows(&disk, "an append", &file, newer("data"));
        wait_until("the file is closed", || {
            let open = descriptors(daemon.pid());
            if open.values().any(|to| to == text(&file)) {
                Err(format!("{open:?}"))
            } else {
                Ok(())
            }
        });
    }
    vm::sh(&format!("umount {}", text(&disk.mount)));
    ends_with_its_group(&disk, &mut daemon, "data");
}

#[test]
fn a_path_that_stops_being_a_file_ends_it() {
    if !vm::inside("ends::a_path_that_stops_being_a_file_ends_it") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    for make in ["mkdir", "mkfifo", "ln -s /nowhere", "ln -s /dev/null"] {
        write(&file, 0, 64);
        let mut daemon = follow(&file, "data", "path");
        assert_follows(&disk, "nothing", &file, newer("data"));
        let name = text(&file);
        vm::sh(&format!("rm {name}; {make} {name}"));
        ends_with_its_group(&disk, &mut daemon, "data");
        assert!(daemon.said().contains("let go: there is "), "{}", daemon.said());
        vm::sh(&format!("rm -r {name}"));
    }
}

/// lvm2's knows a group by nothing but its id, and replaces the regions of whoever has it next.
#[test]
fn a_group_that_is_deleted_ends_it_and_whoever_has_the_id_next_is_left_alone() {
    let name = "ends::a_group_that_is_deleted_ends_it_and_whoever_has_the_id_next_is_left_alone";
    if !vm::inside(name) {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 2);
    let mut table = Table::of(&disk);

    // Deleted, while the file does not change.
    let mut daemon = follow(&file, "data", "inode");
    assert_follows(&disk, "nothing", &file, newer("data"));
    succeed(&mut dmstats("delete --groupid 0 /dev/mapper/disk0"));
    assert_eq!(daemon.wait_for_end().code(), Some(0), "{}", daemon.said());
    assert_eq!(table.listing(), "");

    // The id, the alias and the place are those of another group, before the daemon looks again.
    for mode in ["inode", "path"] {
        let mut daemon = follow(&file, "data", mode);
        assert_follows(&disk, "nothing", &file, newer("data"));
        let old = table.listing();
        table.clear();
        let range = old.split(' ').nth(1).unwrap();
        let theirs = [
            table.create(range, "dmstats", "DMS_GROUP=data:0-1#-"),
            table.create("800+8", "dmstats", "-"),
        ];
        assert_eq!(theirs, [0, 1]);
        let before = table.listing();
        write(&file, 512, 64);
        assert_eq!(daemon.wait_for_end().code(), Some(0), "{}", daemon.said());
        assert!(daemon.said().contains("the group is gone"), "{}", daemon.said());
        assert_eq!(table.listing(), before);
        table.clear();
        punch(&file, 512, 64);
    }
}

/// Creating regions takes long on a busy device, so that is when it is likely.
#[test]
fn a_group_that_is_deleted_amid_an_update_stays_deleted() {
    if !vm::inside("ends::a_group_that_is_deleted_amid_an_update_stays_deleted") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    for change in LARGE_CHANGES {
        write_pieces(&file, 3);
        let mut daemon = follow(&file, "data", "inode");
        let _delay = amid_an_update(&disk, &daemon, || change(&file));
        succeed(&mut dmstats("delete --groupid 0 /dev/mapper/disk0"));
        assert_eq!(disk.group(newer("data")), None);
        assert_eq!(daemon.wait_for_end().code(), Some(0), "{}", daemon.said());
        assert_eq!(disk.listing(), "", "{}", daemon.said());
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_group_that_is_taken_over_amid_an_update_is_given_up() {
    if !vm::inside("ends::a_group_that_is_taken_over_amid_an_update_is_given_up") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    for change in LARGE_CHANGES {
        write_pieces(&file, 3);
        let mut first = follow(&file, "data", "inode");
        let _delay = amid_an_update(&disk, &first, || change(&file));
        let mut second = Daemon::start(&mut by_hand(&file, 0, "inode 1 2"));
        assert_eq!(first.wait_for_end().code(), Some(0), "{}", first.said());
        assert_follows(&disk, "a change", &file, newer("data"));
        wait_until("what the first had created is gone", || match disk.strays()[..] {
            [] => Ok(()),
            ref other => Err(format!("{other:?}")),
        });
        assert!(second.is_running(), "{}", second.said());
        drop(second);
        Table::of(&disk).clear();
        fs::remove_file(&file).unwrap();
    }
}

/// Changes the file, and returns when the daemon has created one of several regions. It is held up
/// then, for two seconds or until the delay is dropped.
fn amid_an_update(disk: &Disk, daemon: &Daemon, change: impl FnOnce()) -> Daemon {
    let second_create = 3; // after the listing and the first create
    let pid = daemon.pid().to_string();
    let inject = format!("inject=ioctl:delay_enter=2000000:when={second_create}");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-P", "/dev/mapper/control", "-e", &inject, "-p", &pid]);
    let strace = Daemon::start(&mut strace);
    strace.wait_for("attached");
    signal(daemon.pid(), Signal::SIGSTOP); // so that the change is one to the daemon
    change();
    signal(daemon.pid(), Signal::SIGCONT);
    wait_until("an update is under way", || match disk.strays()[..] {
        [_] => Ok(()),
        ref other => Err(format!("{other:?}")),
    });
    strace
}

/// What takes several new regions, the old ones being kept or not.
const LARGE_CHANGES: [fn(&Path); 2] = [four_more_pieces, four_other_pieces];

fn four_more_pieces(file: &Path) {
    write(file, 512, 128);
    for at in 0..4 {
        punch(file, 512 + 32 * at + 16, 16);
    }
}

fn four_other_pieces(file: &Path) {
    four_more_pieces(file);
    punch(file, 0, 96);
}

#[test]
fn the_daemon_that_was_started_last_has_the_group() {
    if !vm::inside("ends::the_daemon_that_was_started_last_has_the_group") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let mut first = follow(&file, "data", "inode");
    assert_follows(&disk, "nothing", &file, newer("data"));
    let mut second = Daemon::start(&mut by_hand(&file, 0, "inode 1 1"));
    write(&file, 256, 64);
    assert_eq!(first.wait_for_end().code(), Some(0), "{}", first.said());
    assert!(first.said().contains("another dmfilemapd has taken the group over"));
    assert_follows(&disk, "an append", &file, newer("data"));

    // Nothing has changed this time.
    let _third = Daemon::start(&mut by_hand(&file, 0, "inode 1 1"));
    assert_eq!(second.wait_for_end().code(), Some(0), "{}", second.said());
    assert_follows(&disk, "nothing", &file, newer("data"));
}
