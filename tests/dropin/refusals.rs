//! What is no good is refused with the reason, before it goes to the background.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::path::PathBuf;

use dmfilemapd::kernel::process::hand_down;
use nix::libc;

use crate::daemon::{
    Outcome, PROGRAM, Table, by_hand, command, create_group, outcome, text, typed, write,
};
use crate::guest::Disk;
use crate::vm;
use crate::{disk_with_realtime, refused};

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
    if !vm::inside("refusals::a_wrong_command_line_is_refused_with_the_reason") {
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
    // Nothing that begins like this is lvm2's, so it is not lvm2's exit status either.
    for first in ["x", "3x", "-1", "+3"] {
        let words = [first, "0", text(&file), "inode"].map(OsStr::new);
        let Outcome { status, stderr, .. } = outcome(&mut typed("3<\"$file\"", &file, &words));
        assert_eq!(status, Some(2), "{first}: {stderr}");
        assert!(stderr.contains(&format!("'{first}'")) || first == "-1", "{stderr}");
    }
    assert_eq!(disk.listing(), before);
}

fn word_or<'a>(word: &'a str, file: &'a Path) -> &'a OsStr {
    if word == "FILE" { file.as_os_str() } else { OsStr::new(word) }
}

#[test]
fn a_wrong_descriptor_or_group_is_refused_before_it_goes_to_the_background() {
    if !vm::inside(
        "refusals::a_wrong_descriptor_or_group_is_refused_before_it_goes_to_the_background",
    ) {
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
    if !vm::inside("refusals::an_absurd_group_id_is_refused") {
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

#[test]
fn a_realtime_file_of_xfs_is_refused() {
    if !vm::inside("refusals::a_realtime_file_of_xfs_is_refused") {
        return;
    }
    let (disk, [there, here]) = disk_with_realtime();
    let group = create_group(&here, "");
    let before = disk.listing();
    refused(&mut by_hand(&there, group, "inode"), "realtime file of xfs");
    refused(&mut by_hand(&there, group, "path 1"), "realtime file of xfs");
    assert_eq!(disk.listing(), before);
}
