//! Devices, filesystems and files that hold up whoever touches them, in a real kernel: they hold
//! up the work for their own files, and nothing else.

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

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use dmfilemapd::request::DeviceState;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::Signal;

use daemon::{Looks, PROGRAM, command, punch, signal, stat_fields, text, write, write_pieces};
use guest::{Daemon, Disk, assert_follows, wait_until};
use service::{SOCKET, configure, serve, status, status_of, told, wait_for_state};

// Devices.

/// A filesystem on a device over the second half of another one, so that I/O gets stuck in the
/// first when the other is suspended.
struct Stack {
    disk: Disk,
    lower: String,
}

impl Stack {
    /// On so many MiB of a ramdisk from there on.
    fn format(name: &str, ramdisk: u32, at: u64, mib: u64) -> Stack {
        let lower = format!("{name}-below");
        let node = slice(&lower, ramdisk, at, mib);
        let table = format!("0 {} linear {} 0", mib * 2048, node.display());
        vm::table(name, &table);
        Stack { disk: format(name, "ext4", ""), lower }
    }

    /// From now on no I/O of the device ends, and there is some.
    fn hang(&self) {
        vm::sh(&format!("dmsetup suspend {}", self.lower));
        reads(&self.disk);
        wait_until("I/O is in flight", || {
            let inflight = vm::sh(&format!("cat {}/inflight", sysfs(&self.disk)));
            match inflight.split_whitespace().all(|count| count == "0") {
                true => Err(inflight),
                false => Ok(()),
            }
        });
    }

    fn go_on(&self) {
        vm::sh(&format!("dmsetup resume {}", self.lower));
    }
}

impl Drop for Stack {
    /// Or the kernel could not be switched off.
    fn drop(&mut self) {
        self.go_on();
    }
}

/// Has somebody read from the device, past all caches.
fn reads(disk: &Disk) {
    let node = disk.node.display();
    vm::sh(&format!("dd if={node} of=/dev/null bs=4k count=1 iflag=direct >/dev/null 2>&1 &"));
}

fn sysfs(disk: &Disk) -> String {
    format!("/sys/dev/block/{}", vm::device(&disk.node))
}

/// A device over a part of a ramdisk; its node.
fn slice(name: &str, ramdisk: u32, at: u64, mib: u64) -> PathBuf {
    vm::table(name, &format!("0 {} linear /dev/ram{ramdisk} {}", mib * 2048, at * 2048))
}

/// A filesystem on a device that there is.
fn format(name: &str, kind: &str, options: &str) -> Disk {
    let (node, mount) = (Path::new("/dev/mapper").join(name), Path::new("/mnt").join(name));
    let (at, on) = (node.display(), mount.display());
    vm::sh(&format!(
        "mkfs.{kind} -q {options} {at} >/dev/null 2>&1; mkdir -p {on}; mount {at} {on}"
    ));
    Disk { name: name.to_owned(), node, mount }
}

/// How many threads and processes of this name wait and cannot be killed, or wait for such a one.
fn hanging(name: &str) -> usize {
    let tasks = vm::sh("cat /proc/[0-9]*/task/*/stat 2>/dev/null || true");
    tasks.lines().filter(|line| line.contains(&format!("({name}) D "))).count()
}

fn wait_for_hanging(name: &str, count: usize) {
    wait_until(&format!("{count} of {name} hang"), || match hanging(name) {
        found if found == count => Ok(()),
        found => Err(format!("{found}")),
    });
}

// A create.

/// Makes an update of the file's group necessary, in which regions are created.
fn spoil(disk: &Disk, alias: &str) {
    let (_, group) = disk.group(alias).unwrap();
    disk.message(&format!("@stats_delete {}", group.members[1]));
}

#[test]
fn a_create_that_hangs_keeps_neither_the_process_nor_the_next_one() {
    if !vm::inside("a_create_that_hangs_keeps_neither_the_process_nor_the_next_one") {
        return;
    }
    let stack = Stack::format("top", 0, 0, 64);
    let healthy = Disk::format(1, "ext4", "");
    let (stuck, fine) = (stack.disk.path("stuck"), healthy.path("fine"));
    write_pieces(&stuck, 3);
    write_pieces(&fine, 3);
    configure("[[file]]\npath = \"/mnt/*/*\"\n");
    for (round, end) in [Signal::SIGTERM, Signal::SIGKILL].into_iter().enumerate() {
        let mut service = serve("");
        assert_follows(&stack.disk, "at the start", &stuck, "stuck");
        assert_follows(&healthy, "at the start", &fine, "fine");
        let (id, _) = stack.disk.group("stuck").unwrap();
        stack.hang();
        spoil(&stack.disk, "stuck");
        wait_for_hanging("ioctl", 2); // the create, and the thread that waits for it
        signal(service.pid(), end);
        let status = service.wait_for_end();
        assert_eq!(status.code(), (end == Signal::SIGTERM).then_some(0), "{status:?}");
        assert_eq!(hanging("ioctl"), 1, "the create does still");
        assert_eq!(Path::new(SOCKET).exists(), end == Signal::SIGKILL);
        vm::sh("umount /mnt/disk1");
        healthy.mount_again();

        let mut next = serve("");
        write(&fine, 256 + 64 * round as u64, 16);
        assert_follows(&healthy, "beside it", &fine, "fine");
        told("stop");
        assert_eq!(next.wait_for_end().code(), Some(0));
        stack.go_on();
        wait_for_hanging("ioctl", 0);
        let _last = serve("");
        assert_follows(&stack.disk, "going on", &stuck, "stuck");
        assert_eq!(stack.disk.group("stuck").unwrap().0, id);
        stack.disk.wait_until_no_strays("nothing is left over");
    }
}

// All at once.

/// Extents of the file that has many.
const EXTENTS: u64 = 200_000;

/// Makes a file of so many extents, each of one block of 1 KiB, that takes no room in memory: its
/// space is reserved, and never written to.
fn fragment(file: &Path, extents: u64) {
    vm::sh(&format!("fallocate -l {}k {}", 2 * extents, file.display()));
    let open = File::options().write(true).open(file).unwrap();
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for at in 0..i64::try_from(extents).unwrap() {
        fallocate(&open, hole, (2 * at + 1) * 1024, 1024).unwrap();
    }
}

/// Reserves `kib` KiB from there on.
fn fill(file: &Path, at_kib: u64, kib: u64) {
    let open = File::options().write(true).open(file).unwrap();
    let [at, len] = [at_kib, kib].map(|kib| i64::try_from(kib * 1024).unwrap());
    fallocate(&open, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, len).unwrap();
}

/// Frees blocks of the file and reserves others, again and again, until this is dropped.
struct Rewriting(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Rewriting {
    fn start(file: &Path) -> Rewriting {
        let done = Arc::new(AtomicBool::new(false));
        let (seen, file) = (done.clone(), file.to_owned());
        let rewrite = move || {
            for at in (0..).step_by(64) {
                let at = at % (2 * EXTENTS);
                punch(&file, at, 2);
                fill(&file, at + 1, 1);
                thread::yield_now();
                if seen.load(Ordering::Relaxed) {
                    return;
                }
            }
        };
        Rewriting(done, Some(thread::spawn(rewrite)))
    }
}

impl Drop for Rewriting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        drop(self.1.take().map(JoinHandle::join));
    }
}

/// The devices of which each holds up whoever touches it, and those that do not.
struct Ward {
    suspended: [Disk; 3],
    below: Stack,
    frozen: Disk,
    many: Disk,
    fine: [Disk; 2],
}

impl Drop for Ward {
    /// Or the kernel could not be switched off.
    fn drop(&mut self) {
        self.let_go_on();
    }
}

/// Files of one disk that are followed by their inode, and by their path.
const OF_EACH: u64 = 6;

impl Ward {
    fn format() -> Ward {
        let small = |name: &str, at: u64| {
            slice(name, 0, at, 40);
            format(name, "ext4", "")
        };
        let suspended =
            [("flush", 0), ("noflush", 40), ("nolockfs", 80)].map(|(name, at)| small(name, at));
        let below = Stack::format("below", 0, 120, 40);
        let (frozen, fine) = (small("frozen", 160), small("fine0", 200));
        slice("many", 3, 0, 511);
        // Without a journal the file of many extents is made in a tenth of the time.
        let many = format("many", "ext4", "-b 1024 -O ^has_journal");
        Ward { suspended, below, frozen, many, fine: [fine, Disk::format(1, "xfs", "")] }
    }

    fn all(&self) -> Vec<&Disk> {
        self.stuck().into_iter().chain([&self.frozen]).chain(&self.fine).collect()
    }

    /// The last file of a disk that is followed by its path.
    fn last(disk: &Disk) -> PathBuf {
        disk.path(&format!("{}-{}.path", disk.name, OF_EACH - 1))
    }

    /// A file of the frozen filesystem that was added and is unlinked: when who has this closes it,
    /// the service closes it last.
    fn unlink_a_frozen_one(&self, service: &Daemon) -> File {
        let path = self.frozen.path("0.not");
        told(&format!("add {}", text(&path)));
        let file = File::open(&path).unwrap();
        wait_until("the service has it open", || {
            let open = daemon::descriptors(service.pid());
            match open.values().any(|open| Path::new(open) == path) {
                true => Ok(()),
                false => Err(format!("{open:?}")),
            }
        });
        fs::remove_file(&path).unwrap();
        file
    }

    /// Those whose device is stuck.
    fn stuck(&self) -> Vec<&Disk> {
        self.suspended.iter().chain([&self.below.disk]).collect()
    }

    fn write_files(&self) {
        for disk in self.all() {
            for at in 0..OF_EACH {
                write_pieces(&disk.path(&format!("{}-{at}.inode", disk.name)), 2);
                write(&disk.path(&format!("{}-{at}.path", disk.name)), 0, 16);
                fs::write(disk.path(&format!("{at}.not")), "").unwrap();
            }
        }
    }

    /// From now on each waits that reads from a stuck device what need not be in memory.
    fn hold_up(&self) {
        vm::sh("sync");
        for (disk, how) in self.suspended.iter().zip(["", "--noflush", "--nolockfs"]) {
            vm::sh(&format!("dmsetup suspend {how} {}", disk.name));
        }
        self.below.hang();
        vm::sh(&format!("fsfreeze --freeze {}", self.frozen.mount.display()));
        vm::sh("echo 3 >/proc/sys/vm/drop_caches");
    }

    fn let_go_on(&self) {
        for disk in &self.suspended {
            vm::sh(&format!("dmsetup resume {}", disk.name));
        }
        self.below.go_on();
        vm::sh(&format!("fsfreeze --unfreeze {} 2>&1 || true", self.frozen.mount.display()));
    }

    /// Changes files of the devices that are fine, and waits until that shows, some times from
    /// `first` on; gives how many looks the service has made meanwhile.
    fn change_what_is_fine(&self, service: &Daemon, first: u64) -> u64 {
        let mut looks = Looks::of(service.pid());
        for round in first..first + ROUNDS {
            for disk in &self.fine {
                let name = format!("{}-{}.inode", disk.name, round % OF_EACH);
                write(&disk.path(&name), 256 + 64 * round, 16);
                assert_follows(disk, "a healthy one", &disk.path(&name), &name);
            }
        }
        looks.so_far()
    }

    /// How the service sees a device.
    fn state(disk: &Disk) -> DeviceState {
        let devices = status().devices;
        let device = devices.iter().find(|device| device.name == disk.name);
        device.unwrap_or_else(|| panic!("{} in {devices:?}", disk.name)).state
    }
}

/// Until none of the files is open that are followed by their path.
fn wait_until_closed(service: &Daemon) {
    let by_path = |path: &&String| Path::new(path).extension().is_some_and(|end| end == "path");
    wait_until("files that are followed by their path are closed", || {
        let open = daemon::descriptors(service.pid());
        let open: Vec<&String> = open.values().filter(by_path).collect();
        if open.is_empty() { Ok(()) } else { Err(format!("{open:?}")) }
    });
}

/// Rounds of changes.
const ROUNDS: u64 = 3;

/// How many times as many looks a change may take to show beside what is stuck.
const LOOKS: u64 = 4;

/// Threads that may be at work for one device: for stamps, two for maps, for closing, for messages.
const OF_DEVICE: usize = 5;

/// The threads of a process, by name: how many of each.
fn threads(pid: u32) -> BTreeMap<String, usize> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        *threads.entry(name.trim().to_owned()).or_default() += 1;
    }
    threads
}

/// Asserts that threads do not become more though the devices are stuck for long.
fn assert_threads_are_bounded(ward: &Ward, service: &Daemon) {
    let pid = service.pid();
    let (stuck, all) = (ward.stuck().len(), ward.all().len() + 1); // and the one of many extents
    let most = stuck * (OF_DEVICE - 1) + 1; // and one closes a frozen file
    wait_until("each has one before it, and so has the frozen file", || match hanging("sampler") {
        some if some > stuck => Ok(()),
        some => Err(some.to_string()),
    });
    // One that does not hang waits for a disk or a lock now and then.
    wait_until("none comes back, and none joins them", || {
        let before = hanging("sampler");
        assert!(before <= most, "{before}");
        daemon::let_look(pid, 100);
        let after = hanging("sampler");
        if after == before { Ok(()) } else { Err(format!("{before}, then {after}")) }
    });
    let threads = threads(pid);
    let of = |name: &str| threads.get(name).copied().unwrap_or_default();
    assert!(of("sampler") <= all * (OF_DEVICE - 1), "{threads:?}");
    // One that has answered and is not back at the queue yet is not there for the next order.
    assert!(of("ioctl") <= 2 * all, "{threads:?}");
    assert!(of("scout") <= stuck + 1, "{threads:?}");
}

/// What is asked of the service for stuck devices keeps nobody else.
fn ask_for_what_is_stuck(ward: &Ward, service: &Daemon) {
    let at = &ward.suspended[0];
    let clients: Vec<Daemon> = (0..2 * OF_EACH)
        .map(|n| Daemon::start(command(PROGRAM).args(["add", text(&at.path(&format!("{n}.not")))])))
        .collect();
    let said = |text: &str| clients.iter().filter(|client| client.said().contains(text)).count();
    wait_until("the service turns clients away", || match said("other requests wait for it") {
        0 => Err(service.said()),
        turned_away => Ok(turned_away),
    });
    wait_until("some wait", || match hanging("client") {
        0 => Err(service.said()),
        waiting => Ok(waiting),
    });
    assert!(hanging("client") <= 4);
    told(&format!("add {}", text(&ward.fine[0].path("0.not"))));
    assert_eq!(wait_for_state(&ward.fine[0].path("0.not"), "following").state, "following");
}

/// New files are found and followed, and those that are gone let go, beside what is stuck. Gives
/// the new one.
fn files_come_and_go(ward: &Ward) -> PathBuf {
    let (new, old) = (ward.fine[1].path("new.path"), Ward::last(&ward.fine[0]));
    write(&new, 0, 16);
    wait_for_state(&new, "following");
    fs::remove_file(&old).unwrap();
    wait_until("what is gone is let go", || match status_of(&old) {
        None => Ok(()),
        Some(status) => Err(format!("{status:?}")),
    });
    new
}

/// It ends though threads of it hang, and another one takes over what is not stuck.
fn end_and_start_again(ward: &Ward, service: &Daemon, some: &Path) -> Daemon {
    signal(service.pid(), Signal::SIGTERM);
    wait_until("it has ended, but for threads that hang", || {
        let state = stat_fields(service.pid())[0].clone();
        if state == "Z" { Ok(()) } else { Err(state) }
    });
    assert!(!Path::new(SOCKET).exists());
    let next = serve(OPTIONS);
    wait_for_state(some, "following");
    ward.change_what_is_fine(&next, 2 * ROUNDS);
    next
}

/// Files are found and read again soon.
const OPTIONS: &str = "--full-look 1s --fixed --rescan-interval 2s";

#[test]
fn what_is_stuck_holds_up_nothing_else() {
    if !vm::inside("what_is_stuck_holds_up_nothing_else") {
        return;
    }
    guest::write_back_soon();
    let ward = Ward::format();
    ward.write_files();
    let many = ward.many.path("many.inode");
    fragment(&many, EXTENTS);
    let by_path = "[[file]]\npath = \"/mnt/*/*.path\"\nmode = \"path\"\n";
    configure(&format!("[[file]]\npath = \"/mnt/*/*.inode\"\n{by_path}"));
    let mut service = serve(OPTIONS);
    for disk in ward.all() {
        wait_for_state(&Ward::last(disk), "following");
    }
    let rewriting = Rewriting::start(&many); // all the time, since it takes processor time
    let before = ward.change_what_is_fine(&service, 0);
    wait_until_closed(&service);
    let gone = ward.unlink_a_frozen_one(&service);
    ward.hold_up();
    drop(gone);

    let after = ward.change_what_is_fine(&service, ROUNDS);
    assert!(after <= LOOKS * before, "{after} looks instead of {before}");
    for disk in ward.stuck() {
        wait_until(&format!("{} is stuck", disk.name), || match Ward::state(disk) {
            DeviceState::Stuck => Ok(()),
            other => Err(format!("{other:?}: {}", service.said())),
        });
    }
    assert_threads_are_bounded(&ward, &service);
    ask_for_what_is_stuck(&ward, &service);
    wait_until("the file of many extents is followed, too", || match status_of(&many) {
        Some(status) if u64::from(status.extents) >= EXTENTS / 2 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    for disk in ward.fine.iter().chain([&ward.many]) {
        wait_until(&format!("{} answers", disk.name), || match Ward::state(disk) {
            DeviceState::Ok => Ok(()),
            other => Err(format!("{other:?}: {}", service.said())),
        });
    }
    drop(rewriting);
    let new = files_come_and_go(&ward);
    let _next = end_and_start_again(&ward, &service, &new);
    ward.let_go_on();
    assert_eq!(service.wait_for_end().code(), Some(0));
    for disk in ward.stuck() {
        let name = format!("{}-0.inode", disk.name);
        write(&disk.path(&name), 256, 16);
        assert_follows(disk, "going on", &disk.path(&name), &name);
    }
}
