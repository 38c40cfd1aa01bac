//! What makes a file the same file: its inode or its path.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::change::{self, KIB, MIB, Way};
use crate::guest::{Daemon, Disk, Sectors, assert_follows, wait_until, write_back_soon};
use crate::vm;

/// A file that is followed alone on a disk.
struct Followed<'a> {
    disk: &'a Disk,
    file: PathBuf,
    alias: &'static str,
    daemon: Daemon,
}

impl<'a> Followed<'a> {
    fn new(disk: &'a Disk, mode: &str, alias: &'static str) -> Followed<'a> {
        let file = disk.path(alias);
        change::solid(&file);
        Followed::existing(disk, mode, alias)
    }

    fn existing(disk: &'a Disk, mode: &str, alias: &'static str) -> Followed<'a> {
        let file = disk.path(alias);
        change::sync(&file);
        let daemon = Daemon::run(&["--mode".as_ref(), mode.as_ref(), file.as_ref()]);
        assert_follows(disk, alias, &file, alias);
        Followed { disk, file, alias, daemon }
    }

    /// The group has what is to be found here by now.
    fn assert_follows(&self, what: &str, file: &Path) -> Sectors {
        assert_follows(self.disk, &format!("{}: {what}", self.alias), file, self.alias)
    }

    fn id(&self) -> u32 {
        self.disk.group(self.alias).unwrap().0
    }

    /// The daemon ends and leaves nothing, and says this.
    fn assert_ends(mut self, says: &str) {
        let status = self.daemon.wait_for_end();
        let said = self.daemon.said();
        assert!(status.success() && said.contains(says), "{}: {status}\n{said}", self.alias);
        assert_eq!(self.disk.listing(), "", "{}: regions are left", self.alias);
        fs::remove_file(&self.file).ok();
    }
}

/// Its path for those who look at it through a descriptor of this process.
fn through(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

/// A program that is killed in the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const UNUSED: &str = "let go: it is unlinked and nobody has it open";

mod inode {
    use super::*;

    pub fn goes_on_under_another_name(disk: &Disk) {
        let followed = Followed::new(disk, "inode", "log");
        let (moved, victim) = (disk.path("log.1"), disk.path("log.2"));
        fs::rename(&followed.file, &moved).unwrap();
        change::append(&moved, Way::Direct, 64 * KIB);
        followed.assert_follows("renamed", &moved);
        change::solid(&followed.file); // as a log is begun anew
        followed.assert_follows("another file under the old name", &moved);
        change::solid(&victim);
        fs::rename(&moved, &victim).unwrap();
        change::append(&victim, Way::Direct, 64 * KIB);
        followed.assert_follows("renamed over another", &victim);
        fs::remove_file(&victim).unwrap();
        followed.assert_ends(UNUSED);
    }

    pub fn goes_on_under_a_second_name(disk: &Disk) {
        let followed = Followed::new(disk, "inode", "first");
        let second = disk.path("second");
        fs::hard_link(&followed.file, &second).unwrap();
        fs::remove_file(&followed.file).unwrap();
        change::append(&second, Way::Direct, 64 * KIB);
        followed.assert_follows("the first of two names unlinked", &second);
        fs::remove_file(&second).unwrap();
        followed.assert_ends(UNUSED);
    }

    pub fn ends_when_the_file_is_unlinked(disk: &Disk) {
        let followed = Followed::new(disk, "inode", "unlinked");
        fs::remove_file(&followed.file).unwrap();
        followed.assert_ends(UNUSED);
    }

    pub fn ends_when_another_file_takes_the_name(disk: &Disk) {
        let followed = Followed::new(disk, "inode", "replaced");
        let next = disk.path("next");
        change::solid(&next);
        fs::rename(&next, &followed.file).unwrap();
        followed.assert_ends(UNUSED);
    }

    pub fn goes_on_while_somebody_has_it_open(disk: &Disk) {
        let followed = Followed::new(disk, "inode", "open");
        let holder = change::open(&followed.file, Way::Direct);
        fs::remove_file(&followed.file).unwrap();
        change::write_to(&holder, MIB, 64 * KIB);
        followed.assert_follows("unlinked, open and written to", &through(&holder));
        holder.set_len(0).unwrap();
        followed.assert_follows("unlinked, open and truncated", &through(&holder));
        change::write_to(&holder, 0, 64 * KIB);
        followed.assert_follows("unlinked, open and written anew", &through(&holder));
        drop(holder);
        followed.assert_ends(UNUSED);
    }

    /// Who runs a program has its file mapped, and no descriptor of it.
    pub fn goes_on_while_somebody_has_it_mapped(disk: &Disk) {
        let program = disk.path("busybox");
        vm::sh(&format!("cp $(command -v busybox) {}", program.display()));
        let followed = Followed::existing(disk, "inode", "busybox");
        let child = Command::new(&program).args(["sleep", "1000"]).spawn().unwrap();
        let image = PathBuf::from(format!("/proc/{}/exe", child.id()));
        let running = Running(child);
        fs::remove_file(&program).unwrap();
        followed.assert_follows("unlinked and mapped", &image);
        drop(running);
        followed.assert_ends(UNUSED);
    }
}

mod path {
    use super::*;

    /// Replaces the file by one that `prepare` makes, in one step.
    fn replace(followed: &Followed<'_>, prepare: impl FnOnce(&Path)) {
        let next = followed.disk.path("next");
        prepare(&next);
        change::sync(&next);
        fs::rename(&next, &followed.file).unwrap();
    }

    pub fn moves_to_the_file_that_takes_the_name(disk: &Disk) {
        let followed = Followed::new(disk, "path", "renamed-over");
        let id = followed.id();
        let first = followed.assert_follows("at first", &followed.file);
        replace(&followed, |next| change::write(next, Way::Direct, 0, 2 * MIB));
        let second = followed.assert_follows("replaced by a larger file", &followed.file);
        let blocks = change::blocks(&followed.file);
        replace(&followed, |next| change::write(next, Way::Direct, 0, 2 * MIB));
        assert_eq!(change::blocks(&followed.file), blocks);
        let third = followed.assert_follows("replaced by a file of equal size", &followed.file);
        assert!(first != second && second != third, "{first:?} {second:?} {third:?}");
        replace(&followed, |next| change::write(next, Way::Buffered, 0, 0));
        let empty = followed.assert_follows("replaced by an empty file", &followed.file);
        assert_eq!(empty, []);
        change::append(&followed.file, Way::Direct, 64 * KIB);
        followed.assert_follows("written to again", &followed.file);
        assert_eq!(followed.id(), id, "the group is still the same");

        let holder = File::open(&followed.file).unwrap();
        replace(&followed, change::solid);
        followed.assert_follows("replaced while somebody has it open", &followed.file);
        drop(holder);
        fs::remove_file(&followed.file).unwrap();
        followed.assert_ends("let go: there is no file at the path");
    }

    /// ext4 gives the number of the inode to the new file at once.
    pub fn moves_to_a_file_that_is_created_anew(disk: &Disk) {
        let followed = Followed::new(disk, "path", "anew");
        for round in 0..3 {
            fs::remove_file(&followed.file).unwrap();
            change::solid(&followed.file);
            followed.assert_follows(&format!("unlinked and created, {round}"), &followed.file);
        }
        let holder = File::open(&followed.file).unwrap();
        fs::remove_file(&followed.file).unwrap();
        followed.assert_ends("let go: there is no file at the path");
        drop(holder);
    }

    pub fn ends_when_the_file_is_renamed_away(disk: &Disk) {
        let followed = Followed::new(disk, "path", "renamed-away");
        let elsewhere = disk.path("elsewhere");
        fs::rename(&followed.file, &elsewhere).unwrap();
        followed.assert_ends("let go: there is no file at the path");
    }

    pub fn leads_through_a_symlink(disk: &Disk, other: &Disk) {
        let followed = Followed::new(disk, "path", "link");
        let point_to = |target: &Path| {
            let next = disk.path("next");
            symlink(target, &next).unwrap();
            fs::rename(&next, &followed.file).unwrap();
        };
        for name in ["one", "two"] {
            let target = disk.path(name);
            change::solid(&target);
            point_to(&target);
            followed.assert_follows("became a symlink", &target);
            change::append(&target, Way::Direct, 64 * KIB);
            followed.assert_follows("its target has grown", &target);
        }
        let abroad = other.path("abroad");
        change::solid(&abroad);
        point_to(&abroad);
        followed.assert_ends("let go: the file at the path lies on another device");
        assert_eq!(other.listing(), "", "nothing was made");
    }

    pub fn ends_at_what_is_no_file(disk: &Disk) {
        let followed = Followed::new(disk, "path", "fifo");
        vm::sh(&format!("mkfifo {}", disk.path("next").display()));
        fs::rename(disk.path("next"), &followed.file).unwrap();
        followed.assert_ends("let go: there is a FIFO at the path");

        let followed = Followed::new(disk, "path", "folder");
        fs::remove_file(&followed.file).unwrap();
        fs::create_dir(&followed.file).unwrap();
        followed.assert_ends("let go: there is a directory at the path");
    }

    /// A file at rest is not held open, which would keep its filesystem mounted.
    pub fn lets_the_filesystem_go(disk: &Disk) {
        let followed = Followed::new(disk, "path", "idle");
        wait_until("the filesystem can be unmounted", || {
            let umount = Command::new("umount").arg(&disk.mount).output().unwrap();
            match umount.status.success() {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&umount.stderr).into_owned()),
            }
        });
        let Followed { mut daemon, .. } = followed;
        assert!(daemon.wait_for_end().success());
        assert!(daemon.said().contains("let go: its filesystem is not mounted any more"));
        let (group, before) = disk.group("idle").expect("the group is there for when it is back");
        disk.mount_again();
        let file = disk.path("idle");
        let _daemon = Daemon::run(&["--mode".as_ref(), "path".as_ref(), file.as_ref()]);
        change::append(&file, Way::Direct, 64 * KIB);
        let after = assert_follows(disk, "mounted again", &file, "idle");
        let (again, now) = disk.group("idle").unwrap();
        assert_eq!(again, group, "the same one, with its counters");
        assert!(now.members.starts_with(&before.members), "{before:?}, then {now:?} for {after:?}");
    }
}

fn all(kind: &str, options: &str) {
    write_back_soon();
    let disk = Disk::format(0, kind, options);
    let other = Disk::format(1, kind, options);
    inode::goes_on_under_another_name(&disk);
    inode::goes_on_under_a_second_name(&disk);
    inode::ends_when_the_file_is_unlinked(&disk);
    inode::ends_when_another_file_takes_the_name(&disk);
    inode::goes_on_while_somebody_has_it_open(&disk);
    inode::goes_on_while_somebody_has_it_mapped(&disk);
    path::moves_to_the_file_that_takes_the_name(&disk);
    path::moves_to_a_file_that_is_created_anew(&disk);
    path::ends_when_the_file_is_renamed_away(&disk);
    path::leads_through_a_symlink(&disk, &other);
    path::ends_at_what_is_no_file(&disk);
    path::lets_the_filesystem_go(&disk);
}

#[test]
fn ext4() {
    if vm::inside("names::ext4") {
        all("ext4", "-q");
    }
}

#[test]
fn xfs() {
    if vm::inside("names::xfs") {
        all("xfs", "-q");
    }
}
