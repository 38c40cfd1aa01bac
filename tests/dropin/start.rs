//! Started, by `dmstats` and by hand.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::path::PathBuf;

use dmfilemapd::launch;
use dmfilemapd::launch::Launch;
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::Mode;
use nix::sys::signal::Signal;

use crate::daemon::{
    PROGRAM, by_hand, cmdline, create_group, daemon_of, daemons, dmstats, newer, only_daemon,
    punch, succeed, text, typed, write, write_pieces,
};
use crate::dialects;
use crate::guest::{Daemon, Disk, assert_all_follow, assert_follows, wait_until};
use crate::vm;
use crate::{ends_well_and_leaves_the_group, refused};

#[test]
fn dmstats_starts_it_and_is_not_kept_waiting() {
    if !vm::inside("start::dmstats_starts_it_and_is_not_kept_waiting") {
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
    if !vm::inside("start::new_regions_have_the_options_of_the_old") {
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
    if !vm::inside("start::several_files_are_several_daemons") {
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
    if !vm::inside("start::dmstats_in_the_foreground_becomes_the_daemon") {
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

/// lvm2's starts the daemon and updates nothing: what had changed before stays unnoticed.
#[test]
fn what_changed_before_the_start_is_made_up_for() {
    if !vm::inside("start::what_changed_before_the_start_is_made_up_for") {
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

#[test]
fn four_five_and_six_arguments_are_enough() {
    if !vm::inside("start::four_five_and_six_arguments_are_enough") {
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
    if !vm::inside("start::a_relative_path_is_followed_from_where_it_was_typed") {
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
    if !vm::inside("start::the_descriptor_says_which_inode_and_the_path_which_path") {
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

#[test]
fn the_interval_of_the_environment_counts_and_nonsense_is_refused() {
    if !vm::inside("start::the_interval_of_the_environment_counts_and_nonsense_is_refused") {
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
    if !vm::inside("start::our_library_starts_it_and_hears_why_it_does_not_start") {
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
