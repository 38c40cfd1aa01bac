//! In the background, and in the foreground.

use std::fs;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;

use dmfilemapd::kernel::process::hand_down;
use nix::sys::signal::Signal;

use crate::daemon::{
    PROGRAM, by_hand, cmdline, command, create_group, daemons, descriptors, newer, only_daemon,
    signal, stat_fields, succeed, text, wait_for_end, write,
};
use crate::ends_well_and_leaves_the_group;
use crate::guest::{Daemon, Disk, assert_all_follow, assert_follows, wait_until};
use crate::vm;

#[test]
fn a_daemon_is_on_its_own_and_keeps_nobody_waiting() {
    if !vm::inside("background::a_daemon_is_on_its_own_and_keeps_nobody_waiting") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let group = create_group(&file, "");
    // Two pipes of the caller's besides stdout and stderr, one of them where the file is usually.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let open = File::open(&file).unwrap();
    let mut start = command(PROGRAM);
    let stray = hand_down(&mut start, writer.as_fd()).unwrap();
    let number = hand_down(&mut start, open.as_fd()).unwrap();
    drop(writer);
    start.args([number.to_string(), group.to_string(), text(&file).to_owned(), "inode".to_owned()]);
    assert_eq!(succeed(start.current_dir(&disk.mount)), "");
    drop(start);
    let end = thread::spawn(move || reader.read_to_end(&mut Vec::new()).unwrap());
    wait_until("the caller's pipe ends", || match end.is_finished() {
        true => Ok(()),
        false => Err(format!("descriptor {stray} is open in {:?}", descriptors(only_daemon()))),
    });
    assert_eq!(end.join().unwrap(), 0);

    let pid = only_daemon();
    let mut open = descriptors(pid);
    for number in 0..3 {
        assert_eq!(open.remove(&number).as_deref(), Some("/dev/null"), "{open:?}");
    }
    open.retain(|_, to| !to.starts_with("socket:")); // its own, for signals
    let mut rest: Vec<String> = open.into_values().collect();
    rest.sort();
    assert_eq!(rest, ["/dev/mapper/control", text(&file)]);
    let fields = stat_fields(pid);
    let [_, parent, process_group, session, terminal] = &fields[..5] else { panic!("{fields:?}") };
    assert_eq!((parent.as_str(), terminal.as_str()), ("1", "0"));
    assert_eq!(process_group, session);
    assert_ne!(*session, pid.to_string(), "it leads its session and could get a terminal");
    assert_ne!(*session, stat_fields(std::process::id())[3], "it is in our session");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));

    write(&file, 256, 64);
    assert_follows(&disk, "an append", &file, newer("data"));
    let before = disk.listing();
    signal(pid, Signal::SIGTERM);
    wait_for_end(pid);
    assert_eq!(disk.listing(), before);
}

#[test]
fn a_higher_log_level_says_more_and_the_lowest_nothing() {
    if !vm::inside("background::a_higher_log_level_says_more_and_the_lowest_nothing") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let aliases = ["<0>", "<1>", "<2>", "<3>"];
    for (level, alias) in aliases.iter().enumerate() {
        let group = create_group(&file, &format!("--alias {alias}"));
        let log = File::create(format!("/tmp/log{level}")).unwrap();
        let mut start = by_hand(&file, group, &format!("inode 0 {level}"));
        start.stdout(log.try_clone().unwrap()).stderr(log);
        assert!(start.status().unwrap().success());
    }
    let all = aliases.map(|alias| (file.as_path(), newer(alias)));
    for at in 1..4 {
        write(&file, 256 * at, 64);
        assert_all_follow(&disk, "an append", &all);
    }
    for pid in daemons() {
        let log = descriptors(pid).remove(&2).unwrap();
        assert_eq!(log == "/dev/null", cmdline(pid).ends_with(&["0".to_owned(), "0".to_owned()]));
        signal(pid, Signal::SIGTERM);
        wait_for_end(pid);
    }
    let logs: Vec<String> =
        (0..4).map(|level| fs::read_to_string(format!("/tmp/log{level}")).unwrap()).collect();
    let lines: Vec<usize> = logs.iter().map(|log| log.lines().count()).collect();
    assert_eq!(lines[0], 0, "{logs:?}");
    assert!(lines[1] >= 3 && lines[2] > lines[1] && lines[3] > lines[1], "{logs:?}");
    assert!(logs.concat().lines().all(|line| line.starts_with("dmfilemapd: ")), "{logs:?}");
}

#[test]
fn in_the_foreground_it_stays_until_a_signal() {
    if !vm::inside("background::in_the_foreground_it_stays_until_a_signal") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let group = create_group(&file, "");
    for (at, by) in [(1, Signal::SIGTERM), (2, Signal::SIGINT)] {
        let mut daemon = Daemon::start(&mut by_hand(&file, group, "inode 1 1"));
        write(&file, 256 * at, 64);
        assert_follows(&disk, "an append", &file, newer("data"));
        assert_eq!(daemons(), [daemon.pid()]);
        let open = descriptors(daemon.pid());
        assert!(open[&1].starts_with("/tmp/") && open[&2] == open[&1], "{open:?}");
        ends_well_and_leaves_the_group(&disk, &mut daemon, by);
    }
}
