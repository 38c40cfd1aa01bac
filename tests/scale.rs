//! Many files in one process: what a hundred thousand take of memory and of descriptors, and what
//! is done for a thousand while nothing is written, in a real kernel.

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
use std::time::Duration;

use dmfilemapd::request::Status;
use nix::sys::signal::Signal;

use daemon::{Outcome, PROGRAM, descriptors, signal};
use guest::{Daemon, Disk, wait_for};
use service::{CONFIG, ask, configure, entry, told};

/// What the program may take for a file, in bytes, what the C library keeps of the search for them
/// included.
const BYTES_MAX: usize = 400;

/// How often they are searched for, at most, until it takes no more than that.
const SEARCHES: usize = 10;

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
        told.set_read_timeout(Some(LONG)).unwrap();
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

    /// Bytes of memory that no file stands for, now; and of any, at the most.
    fn memory(&self) -> (usize, usize) {
        let pid = self.daemon.pid();
        let kib = |file: &str, key: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
        };
        (kib("smaps_rollup", "Anonymous:"), kib("status", "VmHWM:"))
    }
}

/// Empty files in folders of a thousand each.
fn make_files(disk: &Disk, folders: std::ops::Range<usize>) {
    for number in folders {
        let folder = disk.path(&number.to_string());
        fs::create_dir(&folder).unwrap();
        for file in 1000 * number..1000 * (number + 1) {
            File::create(folder.join(format!("vm-{file:05}.img"))).unwrap();
        }
    }
}

/// How long what takes a hundred thousand files some time may take.
const LONG: Duration = Duration::from_secs(1200);

/// Waits for that.
fn wait_long<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    wait_for(LONG, what, || {
        condition().inspect_err(|_| thread::sleep(Duration::from_secs(3))) // asking takes time, too
    })
}

#[test]
fn a_hundred_thousand_files_take_little_memory_and_what_descriptors_there_are() {
    if !vm::inside("a_hundred_thousand_files_take_little_memory_and_what_descriptors_there_are") {
        return;
    }
    let disk = Disk::format(0, "ext4", "-q -N 120000");
    make_files(&disk, 0..1);
    configure(&entry(&disk, "*/*.img"));
    let service = Service::start(&[
        ("DMFILEMAPD_INTERVAL", "10s"),
        ("DMFILEMAPD_MAX_INTERVAL", "60s"),
        ("DMFILEMAPD_RESCAN_INTERVAL", "1h"),
    ]);
    service.wait_for("following 1000 file(s)");
    let few = service.memory();
    make_files(&disk, 1..100);
    signal(service.daemon.pid(), Signal::SIGHUP);
    service.wait_for("following 100000 file(s)");

    // It takes as many descriptors as it may, short of some to work with.
    let open = wait_long("descriptors for a fifth of the files", || {
        let open = descriptors(service.daemon.pid()).len();
        if open > HARD - 128 { Ok(open) } else { Err(format!("{open} are open")) }
    });

    // The others are opened for a moment when their maps are to be read, and go on by path.
    wait_long("every map is read", || {
        let Outcome { status: Some(0), stdout, stderr } = ask("status --json") else {
            return Err("the answer takes too long".to_owned());
        };
        let status: Status =
            serde_json::from_str(&stdout).map_err(|why| format!("{why} {stderr}"))?;
        let files = status.files;
        let unread = files.iter().filter(|file| file.state != "following").count();
        if unread == 0 { Ok(()) } else { Err(format!("{unread}: {:?}", files.last())) }
    });

    // What that took for a moment is given back at the next search. Files are looked at all the
    // time, so it may have to be asked more than once.
    let searches = (1..=SEARCHES).map(|search| {
        fs::remove_file(disk.path(&format!("99/vm-{}.img", 100_000 - search))).unwrap();
        signal(service.daemon.pid(), Signal::SIGHUP);
        service.wait_for(&format!("following {} file(s)", 100_000 - search));
        let many = service.memory();
        let bytes = |many: usize, few: usize| many.saturating_sub(few) / (99_000 - search);
        let (kept, most) = (bytes(many.0, few.0), bytes(many.1, few.1));
        println!("{open} are open; {kept} bytes a file, {most} while files were looked for");
        kept
    });
    let kept: Vec<usize> = searches.take_while(|kept| *kept > BYTES_MAX).collect();
    assert!(kept.len() < SEARCHES, "{kept:?} bytes a file");
    let said = service.daemon.said();
    assert!(!said.contains("Too many open files"), "{said}");
    assert!(descriptors(service.daemon.pid()).len() <= HARD);
}

/// Where strace writes what the service calls.
const TRACE: &str = "/tmp/trace";

/// Files that nobody touches.
const IDLE: usize = 1000;

/// Readings of the device's write counter that are looked at, one after the other.
const READINGS: usize = 20;

/// System calls from one reading to the next, at most: what threads take to wait for each other and
/// to read some attributes, and now and then a listing of the device; a quarter of what one look at
/// each file would be.
const CALLS_MAX: usize = 250;

/// How many system calls there were from one reading of the device's write counter to the next.
fn calls_by_reading(disk: &Disk) -> Vec<usize> {
    let counter = format!("\"/sys/dev/block/{}/stat\"", vm::device(&disk.node));
    let trace = fs::read(TRACE).unwrap();
    let mut calls = vec![0];
    for line in String::from_utf8_lossy(&trace).lines() {
        let call = line.trim_start_matches(|letter: char| letter.is_ascii_digit()).trim_start();
        if call.contains(&counter) {
            calls.push(0);
        }
        // Reading the clock is a system call in User-Mode Linux alone.
        let is_call = call.starts_with(|letter: char| letter.is_ascii_lowercase());
        if is_call && !call.starts_with("clock_gettime(") {
            *calls.last_mut().unwrap() += 1;
        }
    }
    calls.pop(); // the last is not over
    calls
}

#[test]
fn a_thousand_files_cost_a_handful_of_calls_while_nothing_is_written_to_their_device() {
    if !vm::inside(
        "a_thousand_files_cost_a_handful_of_calls_while_nothing_is_written_to_their_device",
    ) {
        return;
    }
    guest::write_back_soon();
    let disk = Disk::format(0, "ext4", "-q");
    for file in 0..IDLE {
        fs::write(disk.path(&format!("{file}.img")), [1; 4096]).unwrap();
    }
    vm::sh("sync");
    configure(&entry(&disk, "*.img"));
    let service = Service::start(&[
        ("DMFILEMAPD_INTERVAL", "100ms"),
        ("DMFILEMAPD_MAX_INTERVAL", "200ms"),
        ("DMFILEMAPD_RESCAN_INTERVAL", "1h"),
        ("DMFILEMAPD_FULL_LOOK", "1h"),
    ]);
    wait_long("each has its group", || match disk.groups().len() {
        IDLE => Ok(()),
        some => Err(format!("{some} groups")),
    });
    // Linux 6.1 says that it keeps no statistics of the device: it has to be seen that it does.
    told("metrics");
    fs::write(disk.path("0.img"), [2; 4096]).unwrap();
    vm::sh("sync");
    told("metrics");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", TRACE, "-p", &service.daemon.pid().to_string()]);
    let strace = Daemon::start(&mut strace);
    strace.wait_for("attached");
    let calls = wait_long("the files are left alone", || {
        let calls = calls_by_reading(&disk);
        match calls.len().checked_sub(READINGS).map(|first| &calls[first..]) {
            Some(last) if last.iter().all(|count| *count <= CALLS_MAX) => Ok(last.to_vec()),
            _ => Err(format!("{calls:?}")),
        }
    });
    println!("calls between {READINGS} readings of the write counter: {calls:?}");
    assert!(calls.iter().all(|count| *count > 0), "they are counted");
}
