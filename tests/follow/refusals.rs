//! Files whose I/O cannot be counted, and what is said of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::change;
use crate::guest::{Daemon, Disk, assert_follows};
use crate::vm;

/// Asks all who may be asked: each has to refuse, and to say why.
fn assert_refused(file: &Path, why: &str) {
    for verb in ["run", "update", "explain"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dmfilemapd"));
        let mut asked = Daemon::start(command.arg(verb).arg(file));
        let (status, said) = (asked.wait_for_end(), asked.said());
        let case = format!("{verb} {}: {status}\n{said}", file.display());
        assert!(status.code().is_some_and(|code| code != 0), "{case}");
        assert!(said.contains(why), "{case}it does not say: {why}");
    }
}

#[test]
fn filesystems_whose_addresses_are_no_use() {
    if !vm::inside("refusals::filesystems_whose_addresses_are_no_use") {
        return;
    }
    let ext4 = Disk::format(0, "ext4", "-q");
    for (ramdisk, kind, options, why) in [
        (1, "btrfs", "-q", "btrfs gives addresses of its own space"),
        (2, "vfat", "", "cannot say where a file lies on the device (it has no FIEMAP)"),
    ] {
        let disk = Disk::format(ramdisk, kind, options);
        let file = disk.path("data");
        change::write(&file, change::Way::Dsync, 0, change::MIB);
        assert_refused(&file, why);
        assert_eq!(disk.listing(), "", "nothing was made");
    }

    vm::sh("mkdir /mnt/tmpfs && mount -t tmpfs none /mnt/tmpfs && echo data >/mnt/tmpfs/data");
    assert_refused(Path::new("/mnt/tmpfs/data"), "it has no FIEMAP");

    let top = ext4.mount.display();
    vm::sh(&format!(
        "cd {top} && mkdir lower upper work merged && echo data >lower/below
         mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none merged
         echo data >merged/above && sync"
    ));
    for name in ["merged/below", "merged/above"] {
        assert_refused(&ext4.path(name), "an overlayfs shows it");
    }
    assert_eq!(ext4.listing(), "", "nothing was made");
}

#[test]
fn realtime_files() {
    if !vm::inside("refusals::realtime_files") {
        return;
    }
    let realtime = vm::linear("realtime", 1);
    let device = realtime.display();
    let disk = Disk::format_and_mount(
        0,
        "xfs",
        &format!("-q -m reflink=0 -r rtdev={device}"),
        &format!("rtdev={device}"),
    );
    let file = disk.path("data");
    vm::sh(&format!("touch {0} && xfs_io -c 'chattr +r' {0}", file.display()));
    change::write(&file, change::Way::Dsync, 0, change::MIB);
    assert_refused(&file, "it is a realtime file of xfs");
    assert_eq!(disk.listing(), "", "nothing was made");

    let ordinary = disk.path("ordinary");
    change::solid(&ordinary);
    let mut daemon = Daemon::run(&["--mode".as_ref(), "path".as_ref(), ordinary.as_ref()]);
    assert_follows(&disk, "an ordinary file", &ordinary, "ordinary");
    fs::rename(&file, &ordinary).unwrap();
    assert!(daemon.wait_for_end().success());
    daemon.wait_for("let go: there is a realtime file of xfs at the path");
    assert_eq!(disk.listing(), "", "nothing is left");
}

#[test]
fn files_on_other_devices_and_things_that_are_no_files() {
    if !vm::inside("refusals::files_on_other_devices_and_things_that_are_no_files") {
        return;
    }
    vm::sh("mkfs.ext4 -q /dev/ram1 && mkdir /mnt/plain && mount /dev/ram1 /mnt/plain");
    let plain = Path::new("/mnt/plain/data");
    change::solid(plain);
    assert_refused(plain, "which is not a device-mapper device");

    let disk = Disk::format(0, "ext4", "-q");
    let (folder, fifo, socket) = (disk.path("folder"), disk.path("fifo"), disk.path("nothing"));
    vm::sh(&format!("mkdir {} && mkfifo {}", folder.display(), fifo.display()));
    assert_refused(&folder, "it is a directory, not a regular file");
    assert_refused(&fifo, "it is a FIFO, not a regular file");
    assert_refused(&disk.node, "it is a block device, not a regular file");
    assert_refused(&socket, "No such file or directory");
    assert_eq!(disk.listing(), "", "nothing was made");
}
