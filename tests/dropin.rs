//! What lvm2's daemon of this name promises, with the `dmstats` that Debian ships; and what that
//! daemon gets wrong.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/dialects.rs"]
mod dialects;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/vm.rs"]
mod vm;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use dmfilemapd::kernel::process::hand_down;
use dmfilemapd::launch::{self, Launch};
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::Mode;
use nix::libc;
use nix::sys::signal::Signal;

use daemon::{
    Looks, Outcome, PROGRAM, Table, at_once, by_hand, cmdline, command, create_group, daemon_of,
    daemons, descriptors, dmstats, let_look, newer, only_daemon, outcome, punch, signal,
    stat_fields, succeed, text, truncate, typed, under, wait_for_end, write, write_pieces,
};
use dialects::Reader;
use guest::{Daemon, Disk, assert_all_follow, assert_follows, mapped, wait_until};

// Started by dmstats.

#[test]
fn dmstats_starts_it_and_is_not_kept_waiting() {
    if !vm::inside("dmstats_starts_it_and_is_not_kept_waiting") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    // The output is read to its end, which does not come while a daemon has the pipe open.
    let printed = succeed(dmstats("create --filemap").arg(&file));
    let name = text(&file);
    assert_eq!(printed, format!("{name}: Created new group with 1 region(s) as group ID 0.\n"));
    let expected = ["dmfilemapd", "3", "0", name, "inode", "0", "0"];
    assert_eq!(cmdline(only_daemon()), expected);

    write(&file, 256, 64);
    assert_follows(&disk, "an append", &file, newer("data"));
    punch(&file, 0, 16);
    assert_follows(&disk, "a punch", &file, newer("data"));
    let piped = vm::sh(&format!("dmstats create --filemap --nomonitor {name} | cat"));
    assert!(piped.contains("Created new group"), "{piped}");
}

/// Options for `dmstats create --filemap`, the mode that the daemon is told, and the options of all
/// regions. (It forgets `--precise`, as this dmstats does with `--filemap`.)
const OPTIONS: [(&str, &str, &str); 7] = [
    ("--follow inode", "inode", ""),
    ("--follow path", "path", ""),
    ("--precise", "inode", ""),
    ("--bounds 10ms,20ms", "inode", "histogram:10,20"),
    ("--bounds 10,20,30", "inode", "precise_timestamps histogram:10,20,30"),
    ("--precise --bounds 1ms", "inode", "histogram:1"),
    ("--follow path --bounds 1s", "path", "histogram:1000"),
];

/// lvm2's gives new regions another bound than the old ones have, and other units.
#[test]
fn new_regions_have_the_options_of_the_old() {
    if !vm::inside("new_regions_have_the_options_of_the_old") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let names: Vec<String> = (0..OPTIONS.len()).map(|at| format!("<{at}>")).collect();
    let files: Vec<PathBuf> = names.iter().map(|name| disk.path(&format!("file{name}"))).collect();
    for (at, (options, mode, _)) in OPTIONS.iter().enumerate() {
        write_pieces(&files[at], 2);
        let options = format!("create --filemap {options} --alias {}", names[at]);
        succeed(dmstats(&options).arg(&files[at]));
        let words = cmdline(daemon_of(&files[at]));
        assert_eq!(words[3..], [text(&files[at]), mode, "0", "0"], "{options}");
    }
    for file in &files {
        write(file, 512, 64);
    }
    let aliases: Vec<(&Path, &str)> =
        files.iter().zip(&names).map(|(file, name)| (file.as_path(), newer(name))).collect();
    assert_all_follow(&disk, "an append", &aliases);

    let listing = disk.listing();
    let rows = dialects::rows(listing.as_bytes()).unwrap();
    for (name, (options, _, expected)) in names.iter().zip(OPTIONS) {
        let (_, group) = disk.group(newer(name)).unwrap();
        assert!(group.members.len() > 2, "{options}: {listing}");
        for row in rows.iter().filter(|row| group.members.contains(&row.id)) {
            assert_eq!(row.options(), expected.as_bytes(), "{options}: {listing}");
            assert_eq!(row.program_id, b"dmstats", "{options}: {listing}");
            let step = format!("+{0} {0} ", row.end - row.start);
            assert!(row.line.escape_ascii().to_string().contains(&step), "{options}: {listing}");
        }
    }
}

#[test]
fn several_files_are_several_daemons() {
    if !vm::inside("several_files_are_several_daemons") {
        return;
    }
    let disk = Disk::format(0, "xfs", "");
    let files = ["<a>", "<b>", "<c>"].map(|name| disk.path(name));
    for file in &files {
        write(file, 0, 64);
    }
    let printed = succeed(dmstats("create --filemap").args(&files));
    assert_eq!(printed.matches("Created new group with 1 region(s)").count(), 3, "{printed}");
    assert_eq!(daemons().len(), 3);
    for file in &files {
        write(file, 512, 64);
    }
    let [a, b, c] = files.each_ref().map(PathBuf::as_path);
    assert_all_follow(&disk, "appends", &[(a, "a"), (b, "b"), (c, "c")]);
    for file in &files {
        assert_eq!(cmdline(daemon_of(file))[3], text(file));
    }
}

#[test]
fn dmstats_in_the_foreground_becomes_the_daemon() {
    if !vm::inside("dmstats_in_the_foreground_becomes_the_daemon") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let mut daemon = Daemon::start(dmstats("create --filemap --foreground -v").arg(&file));
    wait_until("dmstats becomes the daemon", || match daemons() {
        found if found == [daemon.pid()] => Ok(()),
        found => Err(format!("{found:?}")),
    });
    assert_eq!(cmdline(daemon.pid())[3..], [text(&file), "inode", "1", "1"]);
    write(&file, 256, 64);
    assert_follows(&disk, "an append", &file, newer("data"));
    assert!(daemon.said().contains("dmfilemapd: "), "{}", daemon.said());
    ends_well_and_leaves_the_group(&disk, &mut daemon, Signal::SIGTERM);
}

fn ends_well_and_leaves_the_group(disk: &Disk, daemon: &mut Daemon, by: Signal) {
    let before = disk.listing();
    signal(daemon.pid(), by);
    assert_eq!(daemon.wait_for_end().code(), Some(0), "{by}");
    assert_eq!(disk.listing(), before, "{by}");
}

/// lvm2's starts the daemon and updates nothing: what had changed before stays unnoticed.
#[test]
fn what_changed_before_the_start_is_made_up_for() {
    if !vm::inside("what_changed_before_the_start_is_made_up_for") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 3);
    let group = create_group(&file, "");
    punch(&file, 32, 16);
    write(&file, 512, 64);
    succeed(dmstats(&format!("update_filemap --groupid {group}")).arg(&file));
    assert_follows(&disk, "a change that was pending", &file, newer("data"));
    assert_eq!(cmdline(only_daemon())[2], group.to_string());
}

// Started by hand.

#[test]
fn four_five_and_six_arguments_are_enough() {
    if !vm::inside("four_five_and_six_arguments_are_enough") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 2);
    let groups = ["<a>", "<b>", "<c>", "<d>", "<e>", "<f>"]
        .map(|alias| (alias, create_group(&file, &format!("--alias {alias}"))));
    let rests = ["inode", "path", "inode 0", "path 0 0"];
    for ((_, group), rest) in groups.iter().zip(rests) {
        assert_eq!(succeed(&mut by_hand(&file, *group, rest)), "");
    }
    let _five = Daemon::start(&mut by_hand(&file, groups[4].1, "inode 1"));
    let _six = Daemon::start(&mut by_hand(&file, groups[5].1, "path 1 0"));
    write(&file, 512, 64);
    punch(&file, 0, 16);
    let all = groups.map(|(alias, _)| (file.as_path(), newer(alias)));
    assert_all_follow(&disk, "a change", &all);
    assert_eq!(daemons().len(), 6);
}

/// A relative path is that of the caller, although a daemon works in `/`.
#[test]
fn a_relative_path_is_followed_from_where_it_was_typed() {
    if !vm::inside("a_relative_path_is_followed_from_where_it_was_typed") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let (file, next) = (disk.path("data"), disk.path("next"));
    write(&file, 0, 64);
    let group = create_group(&file, "");
    let mut typed = by_hand(Path::new("data"), group, "path");
    assert_eq!(succeed(typed.current_dir(&disk.mount)), "");
    write_pieces(&next, 3);
    fs::rename(&next, &file).unwrap();
    assert_follows(&disk, "a rename over it", &file, newer("data"));
}

/// It may have been renamed since the caller opened it.
#[test]
fn the_descriptor_says_which_inode_and_the_path_which_path() {
    if !vm::inside("the_descriptor_says_which_inode_and_the_path_which_path") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let [open, named] = ["open", "named"].map(|name| disk.path(name));
    for file in [&open, &named] {
        write_pieces(file, 3);
    }
    for (mode, file) in [("inode", &open), ("path", &named)] {
        let alias = format!("<{mode}>");
        let group = create_group(&open, &format!("--alias {alias}")).to_string();
        let words = ["3", &group, text(&named), mode, "0", "0"].map(OsStr::new);
        assert_eq!(succeed(&mut typed("3<\"$file\"", &open, &words)), "");
        write(file, 512, 64);
        assert_follows(&disk, mode, file, newer(&alias));
    }
}

/// What is typed behind `dmfilemapd`, and what is said then.
const MISTYPED: [(&str, &str); 16] = [
    (
        "3 0 FILE",
        "dmfilemapd takes 4 to 6 arguments and got 3; see the usage\nUsage: dmfilemapd FD",
    ),
    ("3", "dmfilemapd takes 4 to 6 arguments and got 1; see the usage\nUsage: "),
    ("3 0 FILE inode 0 0 0", "dmfilemapd takes 4 to 6 arguments and got 7; see the usage"),
    ("99999999999 0 FILE inode", "descriptor \"99999999999\" is not valid; give a decimal"),
    ("3 x FILE inode", "the group id \"x\" is not valid; give a decimal number from 0 to"),
    ("3 -1 FILE inode", "the group id \"-1\" is not valid"),
    ("3 0x0 FILE inode", "the group id \"0x0\" is not valid"),
    ("3 18446744073709551615 FILE inode", "the group id \"18446744073709551615\" is not valid"),
    ("3 4294967296 FILE inode", "the group id \"4294967296\" is not valid"),
    ("3 0 FILE both", "\"both\" is not a mode; the modes are \"inode\" and \"path\""),
    ("3 0 FILE inode 2", "the foreground flag \"2\" is not valid; give 0 or 1"),
    ("3 0 FILE inode yes", "the foreground flag \"yes\" is not valid; give 0 or 1"),
    ("3 0 FILE inode 0 4", "the log level \"4\" is not valid; give 0, 1, 2 or 3"),
    ("3 0 FILE inode 0 -1", "the log level \"-1\" is not valid"),
    ("5 0 FILE inode", "descriptor 5 is not open; "),
    ("5 0 FILE inode 1", "descriptor 5 is not open; "),
];

#[test]
fn a_wrong_command_line_is_refused_with_the_reason() {
    if !vm::inside("a_wrong_command_line_is_refused_with_the_reason") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    create_group(&file, "");
    let before = disk.listing();
    for (line, says) in MISTYPED {
        let words: Vec<&OsStr> = line.split(' ').map(|word| word_or(word, &file)).collect();
        refused(&mut typed("3<\"$file\"", &file, &words), says);
    }
    refused(
        &mut typed("3<\"$file\"", &file, &["3", "0", "", "inode"].map(OsStr::new)),
        "the path \"\"",
    );
    for first in ["x", "3x", "-1", "+3"] {
        let words = [first, "0", text(&file), "inode"].map(OsStr::new);
        let says = format!("descriptor \"{first}\" is not valid; give a decimal");
        refused(&mut typed("3<\"$file\"", &file, &words), &says);
    }
    assert_eq!(disk.listing(), before);
}

fn word_or<'a>(word: &'a str, file: &'a Path) -> &'a OsStr {
    if word == "FILE" { file.as_os_str() } else { OsStr::new(word) }
}

/// It fails with this on stderr and nothing on stdout, and nothing of it goes on.
fn refused(command: &mut Command, says: &str) {
    let Outcome { status, stdout, stderr } = outcome(command);
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{command:?}: {stderr}");
    assert!(stderr.starts_with("dmfilemapd: ") && stderr.contains(says), "{command:?}: {stderr}");
    assert_eq!(daemons(), [0; 0], "{command:?}");
}

#[test]
fn a_wrong_descriptor_or_group_is_refused_before_it_goes_to_the_background() {
    if !vm::inside("a_wrong_descriptor_or_group_is_refused_before_it_goes_to_the_background") {
        return;
    }
    let (disk, other) = (Disk::format(0, "ext4", ""), Disk::format(1, "ext4", ""));
    vm::sh(
        "mkfs.ext4 -q /dev/ram2; mkdir /mnt/plain; mount /dev/ram2 /mnt/plain; mkfifo /tmp/fifo",
    );
    let (file, elsewhere) = (disk.path("data"), other.path("data"));
    let (plain, memory) = (PathBuf::from("/mnt/plain/data"), PathBuf::from("/tmp/data"));
    for file in [&file, &elsewhere, &plain, &memory] {
        write(file, 0, 64);
    }
    write(&file, 256, 64);
    create_group(&file, "");
    let mut table = Table::of(&disk);
    let alone = table.create("0+8", "dmstats", "-");
    assert_eq!(alone, 2, "the group has the regions 0 and 1");
    let before = table.listing();
    let device = |name: &str| vm::device(Path::new(name)).to_string();
    let no_group = format!("on {}: there is no group 0", device("/dev/mapper/disk1"));
    let not_dm = format!("it lies on {}, which is not a device-mapper device", device("/dev/ram2"));
    let cases = [
        ("3<&-", &file, 0, "descriptor 3 is not open; "),
        ("3<\"${file%/*}\"", &file, 0, "it is a directory, not a regular file"),
        ("3<>/tmp/fifo", &file, 0, "it is a FIFO, not a regular file"),
        ("3</dev/null", &file, 0, "it is a character device, not a regular file"),
        ("3</dev/mapper/disk0", &file, 0, "it is a block device, not a regular file"),
        ("3>>\"$file\"", &file, 0, "descriptor 3 is not open for reading; "),
        ("3<\"$file\"", &memory, 0, "its filesystem cannot say where a file lies on the device"),
        ("3<\"$file\"", &plain, 0, &not_dm),
        ("3<\"$file\"", &elsewhere, 0, &no_group),
        ("3<\"$file\"", &file, 1, "there is no group 1: no region 1 that leads a group"),
        ("3<\"$file\"", &file, 2, "there is no group 2: no region 2 that leads a group"),
        ("3<\"$file\"", &file, 3, "there is no group 3: no region 3 that leads a group"),
    ];
    for (redirection, file, group, says) in cases {
        let group = group.to_string();
        let words = ["3", &group, text(file), "inode"].map(OsStr::new);
        refused(&mut typed(redirection, file, &words), says);
        refused(typed(redirection, file, &words).args(["1", "3"]), says);
    }
    let place = File::options().read(true).custom_flags(libc::O_PATH).open(&file).unwrap();
    let mut by_place = command(PROGRAM);
    let number = hand_down(&mut by_place, place.as_fd()).unwrap().to_string();
    refused(by_place.args([&number, "0", text(&file), "inode"]), "is not open for reading");
    assert_eq!(table.listing(), before);
}

/// lvm2's crashes on them.
#[test]
fn an_absurd_group_id_is_refused() {
    if !vm::inside("an_absurd_group_id_is_refused") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    for with_regions in [false, true] {
        if with_regions {
            create_group(&file, "");
        }
        for group in [1, 63, 64, 1000, 1 << 20, u32::MAX / 2] {
            refused(&mut by_hand(&file, group, "inode"), &format!("there is no group {group}"));
        }
    }
}

// In the background.

#[test]
fn a_daemon_is_on_its_own_and_keeps_nobody_waiting() {
    if !vm::inside("a_daemon_is_on_its_own_and_keeps_nobody_waiting") {
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
    rest.dedup(); // a second thread for messages may be on its way out
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
    if !vm::inside("a_higher_log_level_says_more_and_the_lowest_nothing") {
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
    if !vm::inside("in_the_foreground_it_stays_until_a_signal") {
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

// When following ends.

/// A daemon in the foreground, for a group of its own.
fn follow(file: &Path, alias: &str, mode: &str) -> Daemon {
    let group = create_group(file, &format!("--alias {alias}"));
    let daemon = Daemon::start(&mut by_hand(file, group, &format!("{mode} 1 2")));
    daemon.wait_for("Updated("); // has looked for the first time
    daemon
}

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
    if !vm::inside("an_inode_is_followed_as_long_as_anybody_uses_it") {
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
    if !vm::inside("a_path_is_followed_to_the_file_that_takes_the_place") {
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
        for _ in 0..3 {
            fs::remove_file(&file).unwrap();
            write(&file, 128, 64); // long before the second is over in which it may come back
            assert_follows(&disk, "a new file at once", &file, newer("data"));
        }
        assert!(daemon.is_running());
        fs::remove_file(&file).unwrap();
        ends_with_its_group(&disk, &mut daemon, "data");
        assert_eq!(disk.listing(), "");
    }
}

/// An open file keeps its filesystem mounted.
#[test]
fn a_path_is_not_kept_open_while_nothing_happens() {
    if !vm::inside("a_path_is_not_kept_open_while_nothing_happens") {
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
    let before = disk.listing();
    vm::sh(&format!("umount {}", text(&disk.mount)));
    assert_eq!(daemon.wait_for_end().code(), Some(0), "{}", daemon.said());
    assert_eq!(disk.listing(), before, "it is there when the filesystem comes back");
}

#[test]
fn a_path_that_stops_being_a_file_ends_it() {
    if !vm::inside("a_path_that_stops_being_a_file_ends_it") {
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
    let name = "a_group_that_is_deleted_ends_it_and_whoever_has_the_id_next_is_left_alone";
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
    if !vm::inside("a_group_that_is_deleted_amid_an_update_stays_deleted") {
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
    if !vm::inside("a_group_that_is_taken_over_amid_an_update_is_given_up") {
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
        disk.wait_until_no_strays("what the first had created is gone");
        assert!(second.is_running(), "{}", second.said());
        drop(second);
        Table::of(&disk).clear();
        fs::remove_file(&file).unwrap();
    }
}

/// Changes the file, and returns when the daemon has created one of several regions. It is held up
/// then, for two seconds or until the delay is dropped.
fn amid_an_update(disk: &Disk, daemon: &Daemon, change: impl FnOnce()) -> Daemon {
    // A create after the listing and another one; or both, if it has just listed for a sweep.
    let creates = "3..4";
    let pid = daemon.pid().to_string();
    let inject = format!("inject=ioctl:delay_enter=2000000:when={creates}");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-P", "/dev/mapper/control", "-e", &inject, "-p", &pid]);
    let strace = Daemon::start(&mut strace);
    strace.wait_for("attached");
    at_once(daemon.pid(), change);
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
    if !vm::inside("the_daemon_that_was_started_last_has_the_group") {
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

// What lvm2's does not notice.

#[test]
fn as_many_blocks_elsewhere_are_noticed() {
    if !vm::inside("as_many_blocks_elsewhere_are_noticed") {
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
    if !vm::inside("what_is_written_through_a_mapping_is_noticed") {
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

/// Lets the kernel write back what is older than 10 ms, every 10 ms. That also makes the time
/// short in which a daemon that starts now expects a change after each change.
fn write_back_at_once() {
    for name in ["expire", "writeback"] {
        fs::write(format!("/proc/sys/vm/dirty_{name}_centisecs"), "1").unwrap();
    }
}

fn sectors_of(file: &Path) -> u64 {
    let map = mapped(&[file]).remove(0).unwrap();
    map.iter().map(|(start, end)| end - start).sum()
}

/// Logs are rotated like this. lvm2's ends at it, and its regions count the I/O of others.
#[test]
fn a_group_outlives_its_files_last_extent() {
    if !vm::inside("a_group_outlives_its_files_last_extent") {
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
        let ends = Ends(&done);
        work();
        drop(ends);
        assert!(watcher.join().unwrap() > 10);
    });
}

/// Says that it is done when this is dropped, be it by a failure that would wait for it.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_extent_before_the_leaders_leaves_the_group_its_id() {
    if !vm::inside("an_extent_before_the_leaders_leaves_the_group_its_id") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 128, 16);
    let daemon = follow(&file, "data", "inode");
    watched(&disk, "data", || {
        write(&file, 0, 16);
        assert_follows(&disk, "a write before the leader's extent", &file, newer("data"));
        at_once(daemon.pid(), || {
            write(&file, 64, 16);
            punch(&file, 128, 16);
        });
        assert_follows(&disk, "the leader's extent replaced", &file, newer("data"));
    });
    let shown = dmstats_shows();
    assert_eq!((shown.len(), shown[0].0.as_str(), shown[0].1), (1, "data", 0), "{shown:?}");
}

/// lvm2's writes a descriptor that nobody can read, itself included.
#[test]
fn a_new_region_below_the_group_takes_the_lead() {
    if !vm::inside("a_new_region_below_the_group_takes_the_lead") {
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
    if !vm::inside("the_leaders_extent_may_vanish_from_any_number") {
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
    if !vm::inside("following_a_path_takes_no_more_descriptors_as_time_passes") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let (file, next) = (disk.path("data"), disk.path("next"));
    write(&file, 0, 16);
    let group = create_group(&file, "");
    let mut start = by_hand(&file, group, "path 1 1");
    let mut daemon = Daemon::start(start.env("DMFILEMAPD_INTERVAL", "5ms"));
    assert_follows(&disk, "nothing", &file, newer("data"));
    // A second thread for messages, with its own descriptor, comes and goes.
    let is_control = |to: &str| to == "/dev/mapper/control";
    let pid = daemon.pid();
    let open_files = || {
        let mut open = descriptors(pid);
        assert!(open.values().filter(|to| is_control(to)).count() <= 2, "{open:?}");
        open.retain(|_, to| !is_control(to));
        open
    };
    let first = open_files();
    for round in 0..8 {
        let_look(daemon.pid(), 50);
        write(&next, round * 32, 16);
        fs::rename(&next, &file).unwrap();
        assert_follows(&disk, "a rename over it", &file, newer("data"));
        let open = open_files();
        assert!(open.len() <= first.len(), "{first:?}\n{open:?}");
        assert!(open.values().all(|to| !to.contains("notify")), "{open:?}");
    }
    assert!(daemon.is_running());
}

#[test]
fn a_program_id_is_kept_even_if_it_is_a_number() {
    if !vm::inside("a_program_id_is_kept_even_if_it_is_a_number") {
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
fn a_realtime_file_of_xfs_is_refused() {
    if !vm::inside("a_realtime_file_of_xfs_is_refused") {
        return;
    }
    let (disk, [there, here]) = disk_with_realtime();
    let group = create_group(&here, "");
    let before = disk.listing();
    refused(&mut by_hand(&there, group, "inode"), "realtime file of xfs");
    refused(&mut by_hand(&there, group, "path 1"), "realtime file of xfs");
    assert_eq!(disk.listing(), before);
}

/// A file on each of the two devices of an xfs; the one there does not lie at its very start.
fn disk_with_realtime() -> (Disk, [PathBuf; 2]) {
    let realtime = vm::linear("realtime", 1);
    let on = realtime.display();
    let disk = Disk::format_and_mount(0, "xfs", &format!("-r rtdev={on}"), &format!("rtdev={on}"));
    let [first, there, here] = ["first", "there", "here"].map(|name| disk.path(name));
    for file in [&first, &there] {
        vm::sh(&format!("xfs_io -R -f -c 'pwrite 0 64k' -c fsync {}", text(file)));
    }
    write(&here, 0, 64);
    (disk, [there, here])
}

#[test]
fn a_realtime_file_that_takes_the_place_is_not_followed() {
    if !vm::inside("a_realtime_file_that_takes_the_place_is_not_followed") {
        return;
    }
    let (disk, [there, here]) = disk_with_realtime();
    let mut daemon = follow(&here, "here", "path");
    assert_follows(&disk, "nothing", &here, newer("here"));
    fs::rename(&there, &here).unwrap();
    ends_with_its_group(&disk, &mut daemon, "here");
    assert!(daemon.said().contains("realtime file of xfs"), "{}", daemon.said());
}

#[test]
fn a_file_inside_its_inode_has_no_region_until_it_grows_out() {
    if !vm::inside("a_file_inside_its_inode_has_no_region_until_it_grows_out") {
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
    if !vm::inside("what_has_no_place_yet_is_no_region") {
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
        let ends = Ends(&done);
        let (mut table, mut looks) = (Table::of(&disk), Looks::of(daemon.pid()));
        wait_until("the daemon has looked and looked", || {
            let listing = table.listing();
            for row in dialects::rows(listing.as_bytes()).unwrap() {
                assert!(row.end - row.start <= 128, "{listing}");
            }
            let looked = looks.so_far();
            if looked > 300 { Ok(()) } else { Err(format!("{looked} times")) }
        });
        drop(ends);
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

// Traces.

/// The same command, with its system calls in `log`.
fn traced(log: &Path, command: &Command) -> Command {
    under(&["strace", "-f", "-qq", "-ttt", "-o", text(log)], command)
}

/// A system call of a trace: when it was made, in seconds, and how it begins.
type Call = (f64, String);

/// `123  1700000000.123456 fstat(3, {...}) = 0`; the ends of calls that another one interrupted
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
    if !vm::inside("nothing_is_written_back_and_nothing_is_watched_by_events") {
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
    if !vm::inside("a_file_that_does_not_change_costs_one_stat_a_look") {
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
        let looks = count(idle, "fstat(");
        if last_map.is_some() && looks >= 60 { Ok(idle.to_vec()) } else { Err(looks.to_string()) }
    });
    let seconds = idle.last().unwrap().0 - idle[0].0;
    let (looks, ioctls) = (count(&idle, "fstat("), count(&idle, "ioctl("));
    println!("{} calls in {seconds} s: {looks} looks, {ioctls} listings", idle.len());
    assert!(at_most(looks, 2.0 * (seconds / 0.020 + 1.0)), "{looks} in {seconds} s");
    assert!(at_most(ioctls, seconds / 5.0 + 1.0), "{ioctls} listings in {seconds} s");
    let scheduling = ["futex(", "sched_yield(", "clock_", "restart_syscall(", "recvfrom("];
    let looking = ["fstat(", "ioctl("];
    // A thread that makes its first hash map asks for its seed, once.
    let seeds = count(&idle, "getrandom(");
    assert!(seeds <= 4, "{seeds} threads");
    // A second thread for messages, which the start may have taken, goes.
    let ending =
        ["close(", "munmap(", "madvise(", "exit(", "sigaltstack(", "rt_sigprocmask(", "rseq("];
    let all = scheduling.iter().chain(&looking).chain(&ending);
    let known: usize = all.map(|begins| count(&idle, begins)).sum();
    assert_eq!(known + seeds, idle.len(), "{idle:?}");
    let ended: usize = ending.iter().map(|begins| count(&idle, begins)).sum();
    assert!(ended <= 12, "{idle:?}");
}

#[allow(clippy::cast_precision_loss)] // these are small numbers
fn at_most(count: usize, limit: f64) -> bool {
    count as f64 <= limit
}

/// lvm2's sends more and more messages for each extent, of ever bigger buffers.
#[test]
fn a_file_that_moves_costs_three_messages_an_extent() {
    if !vm::inside("a_file_that_moves_costs_three_messages_an_extent") {
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

// Settings, and our own library.

#[test]
fn the_interval_of_the_environment_counts_and_nonsense_is_refused() {
    if !vm::inside("the_interval_of_the_environment_counts_and_nonsense_is_refused") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write(&file, 0, 64);
    let groups = ["<0>", "<1>"].map(|alias| create_group(&file, &format!("--alias {alias}")));
    let nonsense = ["", "0", "0s", "-5", "fast", "10us", "1e3", "99999999999999999999"];
    let mut nonsense: Vec<OsString> = nonsense.into_iter().map(OsString::from).collect();
    nonsense.push(OsString::from_vec(b"5\xff".to_vec()));
    for value in &nonsense {
        for name in ["DMFILEMAPD_INTERVAL", "DMFILEMAPD_FULL_LOOK"] {
            refused(by_hand(&file, groups[0], "inode").env(name, value), &format!("{name}: "));
        }
    }
    let mut slow = by_hand(&file, groups[0], "inode 1 2");
    let slow = Daemon::start(slow.env("DMFILEMAPD_INTERVAL", "1h"));
    slow.wait_for("Updated("); // has looked for the first time
    let before = disk.group("0");
    write(&file, 256, 64);
    let fast = by_hand(&file, groups[1], "inode").env("DMFILEMAPD_INTERVAL", "5").output();
    assert!(fast.unwrap().status.success());
    assert_follows(&disk, "an append", &file, "1");
    assert_eq!(disk.group("0"), before);
    assert_ne!(disk.group("1").unwrap().1.extents, before.unwrap().1.extents);
}

#[test]
fn our_library_starts_it_and_hears_why_it_does_not_start() {
    if !vm::inside("our_library_starts_it_and_hears_why_it_does_not_start") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 2);
    let group = RegionId(create_group(&file, ""));
    let open = File::open(&file).unwrap();
    let program = Path::new(PROGRAM);
    let launch = Launch { program, mode: Mode::Path, ..Launch::new(open.as_fd(), group, &file) };
    launch.start().unwrap();
    assert_eq!(cmdline(only_daemon())[2..], ["0", text(&file), "path", "0", "0"]);
    write(&file, 512, 64);
    assert_follows(&disk, "an append", &file, newer("data"));

    let error = Launch { group: RegionId(99), ..launch }.start().unwrap_err();
    let launch::Error::Failed { status, stderr, .. } = &error else { panic!("{error}") };
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains("there is no group 99"), "{error}");
    let folder = File::open(&disk.mount).unwrap();
    let error = Launch { file: folder.as_fd(), ..launch }.start().unwrap_err();
    assert!(error.to_string().contains("it is a directory, not a regular file"), "{error}");
    assert_eq!(daemons().len(), 1);
}
