//! What it asks of the kernel, as strace sees it.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::daemon::{
    PROGRAM, by_hand, command, create_group, newer, only_daemon, punch, signal, text, under, write,
    write_pieces,
};
use crate::guest::{Daemon, Disk, assert_follows, wait_until};
use crate::vm;
use crate::write_back_at_once;

/// The same command, with its system calls in `log`.
fn traced(log: &Path, command: &Command) -> Command {
    under(&["strace", "-f", "-qq", "-ttt", "-o", text(log)], command)
}

/// A system call of a trace: when it was made, in seconds, and how it begins.
type Call = (f64, String);

/// `123  1700000000.123456 statx(3, "", ...) = 0`; the ends of calls that another one interrupted
/// are left out, and so are signals and exits.
fn calls(log: &Path) -> Vec<Call> {
    let log = fs::read_to_string(log).unwrap_or_default();
    let call = |line: &str| {
        let (_, line) = line.split_once(' ')?;
        let (time, call) = line.trim_start().split_once(' ')?;
        let starts = call.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
        starts.then(|| Some((time.parse().ok()?, call.to_owned())))?
    };
    log.lines().filter_map(call).collect()
}

fn count(calls: &[Call], begins: &str) -> usize {
    calls.iter().filter(|(_, call)| call.starts_with(begins)).count()
}

#[test]
fn nothing_is_written_back_and_nothing_is_watched_by_events() {
    if !vm::inside("traces::nothing_is_written_back_and_nothing_is_watched_by_events") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let (file, next, log) = (disk.path("data"), disk.path("next"), Path::new("/tmp/trace"));
    write_pieces(&file, 3);
    let group = create_group(&file, "");
    let mut daemon = Daemon::start(&mut traced(log, &by_hand(&file, group, "path 1 1")));
    write(&file, 512, 64);
    assert_follows(&disk, "an append", &file, newer("data"));
    punch(&file, 0, 16);
    fs::write(&file, "from the start, and not written back").unwrap();
    assert_follows(&disk, "a truncation", &file, newer("data"));
    write(&next, 0, 64);
    fs::rename(&next, &file).unwrap();
    assert_follows(&disk, "a rename over it", &file, newer("data"));
    signal(only_daemon(), Signal::SIGTERM);
    assert_eq!(daemon.wait_for_end().code(), Some(0), "{}", daemon.said());

    let calls = calls(log);
    let maps = calls.iter().filter(|(_, call)| call.contains("FS_IOC_FIEMAP"));
    let (plain, other): (Vec<&Call>, Vec<&Call>) =
        maps.partition(|(_, call)| call.contains("fm_flags=0,"));
    assert!(plain.len() > 5 && other.is_empty(), "{} {other:?}", plain.len());
    assert!(calls.iter().any(|(_, call)| call.contains("DM_TARGET_MSG")));
    let unwanted = ["inotify", "fanotify", "fsync", "fdatasync", "sync(", "syncfs", "sync_file"];
    for begins in unwanted.into_iter().chain(["msync", "syslog", "dmsetup", "write(3"]) {
        assert_eq!(count(&calls, begins), 0, "{begins}");
    }
    assert_eq!(calls.iter().filter(|(_, call)| call.contains("notify")).count(), 0);
}

/// lvm2's lists and parses all regions twice a second, whatever happens.
#[test]
fn a_file_that_does_not_change_costs_one_stat_a_look() {
    if !vm::inside("traces::a_file_that_does_not_change_costs_one_stat_a_look") {
        return;
    }
    write_back_at_once();
    let disk = Disk::format(0, "ext4", "");
    let (files, log) = (["a", "b"].map(|name| disk.path(name)), Path::new("/tmp/trace"));
    for file in &files {
        write_pieces(file, 2);
    }
    let mut start = Daemon::command();
    start.env("DMFILEMAPD_INTERVAL", "20ms").args(&files);
    let _daemon = Daemon::start(&mut traced(log, &start));
    let idle = wait_until("it reads no map any more", || {
        let calls = calls(log);
        let last_map = calls.iter().rposition(|(_, call)| call.contains("FS_IOC_FIEMAP"));
        let idle = &calls[last_map.map_or(0, |at| at + 1)..];
        let looks = count(idle, "statx(") + count(idle, "newfstatat(");
        if last_map.is_some() && looks >= 60 { Ok(idle.to_vec()) } else { Err(looks.to_string()) }
    });
    let seconds = idle.last().unwrap().0 - idle[0].0;
    let (looks, ioctls) = (count(&idle, "statx("), count(&idle, "ioctl("));
    println!("{} calls in {seconds} s: {looks} looks, {ioctls} listings", idle.len());
    assert!(at_most(looks, 2.0 * (seconds / 0.020 + 1.0)), "{looks} in {seconds} s");
    assert!(at_most(ioctls, seconds / 5.0 + 1.0), "{ioctls} listings in {seconds} s");
    let scheduling = ["futex(", "sched_yield(", "clock_", "restart_syscall(", "recvfrom("];
    let looking = ["statx(", "ioctl("];
    let known: usize = scheduling.iter().chain(&looking).map(|begins| count(&idle, begins)).sum();
    assert_eq!(known, idle.len(), "{idle:?}");
}

#[allow(clippy::cast_precision_loss)] // these are small numbers
fn at_most(count: usize, limit: f64) -> bool {
    count as f64 <= limit
}

/// lvm2's sends more and more messages for each extent, of ever bigger buffers.
#[test]
fn a_file_that_moves_costs_three_messages_an_extent() {
    if !vm::inside("traces::a_file_that_moves_costs_three_messages_an_extent") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    for pieces in [20, 80] {
        let name = format!("<{pieces}>");
        let (file, next) = (disk.path(&name), disk.path("next"));
        write_pieces(&file, pieces);
        let group = create_group(&file, "");
        write_pieces(&next, pieces);
        fs::rename(&next, &file).unwrap();
        let (log, mut update) = (PathBuf::from(format!("/tmp/trace{pieces}")), command(PROGRAM));
        update.args(["update", "--mode", "path", "--group", &group.to_string()]).arg(&file);
        let update = traced(&log, &update).output().unwrap();
        assert!(update.status.success(), "{update:?}");
        assert_follows(&disk, "an update", &file, newer(&name));
        let calls = calls(&log);
        let messages = calls.iter().filter(|(_, call)| call.contains("DM_TARGET_MSG")).count();
        println!("{pieces} pieces: {messages} messages");
        // To mark the old region, since nothing of dmstats does; to create one; to delete one.
        let extents = usize::try_from(pieces).unwrap();
        assert!((2 * extents..=3 * extents + 12).contains(&messages), "{messages}");
    }
}
