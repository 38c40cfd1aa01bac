//! A hundred thousand files in one process: what it takes of memory, of descriptors and of the
//! kernel's time. Counted in a real kernel, of the program as it is shipped.

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

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use daemon::{PROGRAM, descriptors, signal};
use guest::{Daemon, Disk, output_of, wait_until};
use service::{CONFIG, configure, entry};

/// What the program may take for a file, in bytes.
const BYTES_MAX: usize = 400;

/// Descriptors that it finds itself allowed, and that it may allow itself.
const SOFT: usize = 1024;
const HARD: usize = 20_000;

/// A service that has told systemd how many files it follows.
struct Service {
    daemon: Daemon,
    told: UnixDatagram,
}

impl Service {
    /// Starts it with this environment, with [`SOFT`] and [`HARD`] for limits.
    fn start(environment: &[(&str, &str)]) -> Service {
        let told = UnixDatagram::bind("/tmp/notify").unwrap();
        told.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={SOFT}:{HARD}"));
        command.args([PROGRAM, "run", "--config-dir"]).arg(CONFIG.rsplit_once('/').unwrap().0);
        command.env("NOTIFY_SOCKET", "/tmp/notify").envs(environment.iter().copied());
        let service = Service { daemon: Daemon::start(&mut command), told };
        service.daemon.wait_for("following the files of ");
        service
    }

    /// Waits until it says so.
    fn wait_for(&self, status: &str) {
        let mut message = [0; 4096];
        loop {
            let length = self.told.recv(&mut message).expect(status);
            if String::from_utf8_lossy(&message[..length]).contains(status) {
                return;
            }
        }
    }

    /// Bytes of memory that are its own, now and at the most.
    fn memory(&self) -> (usize, usize) {
        let pid = self.daemon.pid();
        let kib = |file: &str, key: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
        };
        (kib("smaps_rollup", "Pss:"), kib("status", "VmHWM:"))
    }
}

/// Empty files in folders of a thousand each.
fn make_files(disk: &Disk, folders: std::ops::Range<usize>) {
    for folder in folders {
        let folder = disk.path(&folder.to_string());
        fs::create_dir(&folder).unwrap();
        for number in 0..1000 {
            File::create(folder.join(format!("vm-{number:04}.img"))).unwrap();
        }
    }
}

#[test]
fn a_hundred_thousand_files_take_little_memory_and_what_descriptors_there_are() {
    if !vm::inside("a_hundred_thousand_files_take_little_memory_and_what_descriptors_there_are") {
        return;
    }
    guest::write_back_soon();
    let disk = Disk::format(0, "ext4", "-q -N 120000");
    let began = Instant::now();
    make_files(&disk, 0..1);
    configure(&entry(&disk, "*/*.img"));
    let service = Service::start(&[
        ("DMFILEMAPD_INTERVAL", "10s"),
        ("DMFILEMAPD_MAX_INTERVAL", "60s"),
        ("DMFILEMAPD_RESCAN_INTERVAL", "60s"),
    ]);
    service.wait_for("following 1000 file(s)");
    println!("{:?} {:?}", began.elapsed(), service.memory());
    make_files(&disk, 1..100);
    println!("{:?} made", began.elapsed());
    let before = service.memory();
    signal(service.daemon.pid(), Signal::SIGHUP);
    service.wait_for("following 100000 file(s)");
    for _ in 0..20 {
        let memory = service.memory();
        println!(
            "{:?} {memory:?} {} {} {} {}",
            began.elapsed(),
            memory.0.saturating_sub(before.0) / 99_000,
            memory.1.saturating_sub(before.1) / 99_000,
            descriptors(service.daemon.pid()).len(),
            daemon::looks(service.daemon.pid()),
        );
        thread::sleep(Duration::from_secs(3));
    }
    println!("{}", service.daemon.said().lines().take(20).collect::<Vec<_>>().join("\n"));
}
