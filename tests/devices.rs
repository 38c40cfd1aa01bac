//! Devices that are renamed, resized, given another table, removed and made anew, and filesystems
//! that are unmounted, in a real kernel: files are bound again or let go, and no other device is
//! written to.

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

use std::path::{Path, PathBuf};
use std::process::Command;

use dmfilemapd::dm::Device;
use nix::sys::signal::Signal;

use daemon::{Outcome, Table, outcome, signal, text, write, write_pieces};
use guest::{Daemon, Disk, assert_follows, wait_until};
use service::{configure, serve, status, status_of, told, wait_for_state};

/// A device on so many MiB of a ramdisk.
struct Volume<'a> {
    name: &'a str,
    uuid: &'a str,
    ramdisk: u32,
    mib: u64,
}

impl Volume<'_> {
    fn table(&self) -> String {
        format!("0 {} linear /dev/ram{} 0", self.mib * 2048, self.ramdisk)
    }

    /// Makes it, under this number if there is one.
    fn create(&self, number: Option<Device>) -> Disk {
        let number_of = |Device { major, minor }| format!("--major {major} --minor {minor}");
        let at = number.map(number_of).unwrap_or_default();
        let uuid = (!self.uuid.is_empty()).then(|| format!("--uuid {}", self.uuid));
        let (name, uuid, table) = (self.name, uuid.unwrap_or_default(), self.table());
        vm::sh(&format!("DM_DISABLE_UDEV=1 dmsetup create {name} {at} {uuid} --table '{table}'"));
        let (node, mount) = (Path::new("/dev/mapper").join(name), Path::new("/mnt").join(name));
        let disk = Disk { name: name.to_owned(), node, mount };
        assert!(number.is_none_or(|number| number == vm::device(&disk.node)));
        disk
    }

    /// Makes it, and a filesystem on it.
    fn format(&self, number: Option<Device>) -> Disk {
        let disk = self.create(number);
        let (node, mount) = (disk.node.display(), disk.mount.display());
        vm::sh(&format!("mkfs.ext4 -q {node} >/dev/null 2>&1; mkdir -p {mount}"));
        disk.mount_again();
        disk
    }

    /// Gives the device another table, and does this before its I/O goes on.
    fn load(&self, disk: &Disk, meanwhile: &str) {
        let (name, table) = (&disk.name, self.table());
        vm::sh(&format!(
            "dmsetup load {name} --table '{table}'
             dmsetup suspend {name}; {meanwhile}
             DM_DISABLE_UDEV=1 dmsetup resume {name}"
        ));
    }
}

fn unmount(disk: &Disk) {
    wait_until("it can be unmounted", || {
        let Outcome { status, stderr, .. } = outcome(Command::new("umount").arg(&disk.mount));
        if status == Some(0) { Ok(()) } else { Err(stderr) }
    });
}

fn remove(disk: &Disk) {
    vm::sh(&format!("DM_DISABLE_UDEV=1 dmsetup remove {}", disk.name));
}

/// What each region of the file has counted.
fn counters(disk: &Disk, alias: &str) -> Vec<String> {
    let members = disk.group(alias).unwrap().1.members;
    members.iter().map(|id| disk.message(&format!("@stats_print {id}"))).collect()
}

// Devices that change.

/// Makes the device larger, moves it to the next ramdisk and renames it; gives what it is by then.
fn change(volume: &Volume<'_>, disk: Disk, busy: &Path, alias: &str) -> Disk {
    let volume = Volume { mib: 2 * volume.mib, ..*volume };
    volume.load(&disk, "");
    vm::sh(&format!("resize2fs {} >/dev/null 2>&1", disk.node.display()));
    let (big, size) = (disk.path(&format!("{alias}-big")), volume.mib / 2 + 1);
    vm::sh(&format!("fallocate -l {size}M {}", big.display()));
    assert_follows(&disk, "resized", &big, &format!("{alias}-big"));
    write(busy, 256, 16);
    assert_follows(&disk, "resized", busy, alias);

    let Volume { ramdisk, mib, .. } = volume;
    let to = ramdisk + 1;
    let copy = format!("dd if=/dev/ram{ramdisk} of=/dev/ram{to} bs=1M count={mib} 2>/dev/null");
    Volume { ramdisk: to, ..volume }.load(&disk, &copy);
    write(busy, 512, 16);
    assert_follows(&disk, "moved", busy, alias);

    let name = format!("{}-new", disk.name);
    vm::sh(&format!("DM_DISABLE_UDEV=1 dmsetup rename {} {name}", disk.name));
    let disk = Disk { node: Path::new("/dev/mapper").join(&name), name, mount: disk.mount };
    write(busy, 1024, 16);
    assert_follows(&disk, "renamed", busy, alias);
    wait_until("the status has its new name", || {
        let names: Vec<String> = status().devices.into_iter().map(|it| it.name).collect();
        if names.contains(&disk.name) { Ok(()) } else { Err(format!("{names:?}")) }
    });
    disk
}

#[test]
fn a_device_that_is_renamed_resized_or_moved_keeps_its_files() {
    if !vm::inside("a_device_that_is_renamed_resized_or_moved_keeps_its_files") {
        return;
    }
    guest::write_back_soon();
    configure("[[file]]\npath = \"/mnt/*/*\"\n");
    let service = serve("");
    // Only one of them is known by more than its name.
    let volumes = [("lv", "LVM-lv", 0), ("plain", "", 2)];
    for (name, uuid, ramdisk) in volumes {
        let volume = Volume { name, uuid, ramdisk, mib: 48 };
        let disk = volume.format(None);
        let [busy, quiet] = ["busy", "quiet"].map(|file| format!("{name}-{file}"));
        for file in [&busy, &quiet] {
            write_pieces(&disk.path(file), 3);
            assert_follows(&disk, "at the start", &disk.path(file), file);
        }
        let quiet_file = disk.path(&quiet);
        vm::sh(&format!(
            "sync; echo 1 >/proc/sys/vm/drop_caches; cat {} >/dev/null",
            quiet_file.display()
        ));
        let (ids, counted) = (disk.group(&quiet).unwrap(), counters(&disk, &quiet));
        let id = disk.group(&busy).unwrap().0;
        let disk = change(&volume, disk, &quiet_file.with_file_name(&busy), &busy);
        assert_follows(&disk, "at the end", &quiet_file, &quiet);
        let found = disk.group(&quiet).unwrap();
        assert_eq!((found.0, found.1.members), (ids.0, ids.1.members), "{name}");
        assert_eq!((counters(&disk, &quiet), disk.group(&busy).unwrap().0), (counted, id));
        assert_eq!(disk.strays(), [0; 0]);
    }
    assert!(!service.said().contains("let go"), "{}", service.said());
}

// Devices that go.

/// A service that follows what is mounted there, by path, and a file that it follows.
fn follow_by_path(disk: &Disk) -> (Daemon, PathBuf) {
    let file = disk.path("data");
    write_pieces(&file, 3);
    configure(&format!("mode = \"path\"\n[[file]]\npath = \"{}/*\"\n", disk.mount.display()));
    let service = serve("--full-look 1s");
    assert_follows(disk, "at the start", &file, "data");
    (service, file)
}

/// Does something of which the service sees only what it comes to.
fn unseen<T>(service: &Daemon, deed: impl FnOnce() -> T) -> T {
    wait_until("it is stopped while it has no file open", || {
        daemon::stop(service.pid());
        let open = daemon::descriptors(service.pid());
        let Some(path) = open.values().find(|path| path.starts_with("/mnt")) else { return Ok(()) };
        signal(service.pid(), Signal::SIGCONT);
        Err(path.clone())
    });
    let done = deed();
    signal(service.pid(), Signal::SIGCONT);
    done
}

const ONE: Volume<'_> = Volume { name: "one", uuid: "LVM-one", ramdisk: 0, mib: 48 };
const TWO: Volume<'_> = Volume { name: "two", uuid: "LVM-two", ramdisk: 1, mib: 48 };

#[test]
fn another_device_under_the_same_number_is_left_alone() {
    if !vm::inside("another_device_under_the_same_number_is_left_alone") {
        return;
    }
    guest::write_back_soon();
    let one = ONE.format(None);
    let number = vm::device(&one.node);
    let (service, file) = follow_by_path(&one);

    // It has the same regions, as if they had been ours.
    let before = one.listing();
    let two = unseen(&service, || {
        unmount(&one);
        remove(&one);
        let two = TWO.format(Some(number));
        Table::of(&two).restore(&before);
        two
    });
    let state = wait_for_state(&file, "away");
    assert!(state.last_error.is_some(), "{state:?}");
    write_pieces(&two.path("data"), 5);
    // The folder is on no such device now; when this is seen, everything has been looked at.
    write(&one.path("other"), 0, 1);
    wait_for_state(&one.path("other"), "unfit");
    assert_eq!(two.listing(), before);

    unseen(&service, || {
        unmount(&two);
        remove(&two);
        ONE.create(Some(number)).mount_again();
    });
    wait_for_state(&file, "following");
    write(&file, 256, 16);
    assert_follows(&one, "it is there again", &file, "data");
}

#[test]
fn a_file_on_another_device_under_the_same_number_is_another_file() {
    if !vm::inside("a_file_on_another_device_under_the_same_number_is_another_file") {
        return;
    }
    guest::write_back_soon();
    let one = ONE.format(None);
    let number = vm::device(&one.node);
    let (service, file) = follow_by_path(&one);
    let theirs = unseen(&service, || {
        unmount(&one);
        remove(&one);
        let two = TWO.create(Some(number));
        vm::sh(&format!("mkfs.ext4 -q {} >/dev/null 2>&1", two.node.display()));
        vm::sh(&format!("mount {} {}", two.node.display(), one.mount.display()));
        write_pieces(&file, 5);
        two.message("@stats_create 0+8 /1 0 dmstats theirs");
        two
    });
    let two = Disk { mount: one.mount, ..theirs };
    service.wait_for("let go: its device is gone");
    assert_follows(&two, "another one of that name", &file, "data");
    let (id, group) = two.group("data").unwrap();
    assert_eq!((id, group.members.len()), (1, 5), "{}", two.listing());
    assert_eq!(two.strays(), [0], "{}", two.listing());
    let devices = status().devices;
    assert_eq!(devices.len(), 1, "{devices:?}");
    assert_eq!((devices[0].name.as_str(), devices[0].uuid.as_str()), ("two", "LVM-two"));
}

// Filesystems that go.

#[test]
fn a_filesystem_whose_files_are_held_open_can_be_let_go() {
    if !vm::inside("a_filesystem_whose_files_are_held_open_can_be_let_go") {
        return;
    }
    guest::write_back_soon();
    let disk = ONE.format(None);
    let file = disk.path("data");
    write_pieces(&file, 3);
    configure("[[file]]\npath = \"/mnt/*/*\"\nmode = \"inode\"\n");
    let service = serve("--full-look 1s");
    assert_follows(&disk, "at the start", &file, "data");
    let (id, group) = disk.group("data").unwrap();
    for _ in 0..2 {
        let Outcome { status, stderr, .. } = outcome(Command::new("umount").arg(&disk.mount));
        assert_eq!(status, Some(32), "it is held open: {stderr}");
        vm::sh(&format!("umount --lazy {}", disk.mount.display()));
        let state = wait_for_state(&file, "away");
        let why = state.last_error.unwrap();
        assert!(why.contains("not mounted"), "{why}");
        wait_until("nobody has the device open", || {
            let count = vm::sh(&format!("dmsetup info -c --noheadings -o open {}", disk.name));
            if count.trim() == "0" { Ok(()) } else { Err(count) }
        });
        disk.mount_again();
        wait_for_state(&file, "following");
        let (now, members) = disk.group("data").map(|(id, it)| (id, it.members)).unwrap();
        assert_eq!((now, &members), (id, &group.members), "it has kept its group");
    }
    write(&file, 256, 16);
    assert_follows(&disk, "mounted again", &file, "data");

    told(&format!("remove {}", text(&file)));
    unmount(&disk);
    assert_eq!(status_of(&file).map(|it| it.state), None, "{}", service.said());
    remove(&disk);
}
