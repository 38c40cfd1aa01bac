//! What the service says, to a test that stands for systemd.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::daemon::{PROGRAM, command, signal, text, under, write_pieces};
use crate::guest::{Daemon, Disk, PATIENCE, assert_follows, wait_until};
use crate::service::{SOCKET, configure, entry, refused, service_command, status};
use crate::vm;

/// systemd's end of `NOTIFY_SOCKET`, which is read all the time: the service would wait.
struct Notified(Receiver<String>);

/// What the watchdog takes, in a test.
const WATCHDOG: Duration = Duration::from_millis(400);

impl Notified {
    /// A service with a watchdog, and all that it says.
    fn serve() -> (Daemon, Notified) {
        let socket = UnixDatagram::bind("/tmp/notify").unwrap();
        let (sender, told) = mpsc::channel();
        thread::spawn(move || {
            let mut text = [0; 4096];
            loop {
                let len = socket.recv(&mut text).unwrap();
                sender.send(String::from_utf8(text[..len].to_vec()).unwrap()).unwrap();
            }
        });
        let shell = ["sh", "-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""];
        let mut command = under(&shell, &service_command(""));
        command.env("NOTIFY_SOCKET", "/tmp/notify");
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        (Daemon::start(&mut command), Notified(told))
    }

    fn next(&self) -> String {
        self.0.recv_timeout(PATIENCE).expect("it has something to say")
    }

    /// The first of what it says from now on that begins so.
    fn wait_for(&self, begin: &str) -> String {
        loop {
            let said = self.next();
            if said.starts_with(begin) {
                return said;
            }
            assert!(!said.starts_with("STOPPING"), "before {begin}");
        }
    }

    /// Waits until it says nothing for longer than the watchdog takes.
    fn wait_for_silence(&self) {
        wait_until("the watchdog starves", || match self.0.recv_timeout(2 * WATCHDOG) {
            Ok(_) => Err("it was fed just now".to_owned()),
            Err(_) => Ok(()),
        });
    }
}

/// Since the kernel started, which is what the monotonic clock shows, to a tick.
fn uptime() -> Duration {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let (seconds, _) = uptime.split_once(' ').unwrap();
    Duration::from_secs_f64(seconds.parse().unwrap())
}

#[test]
fn it_says_when_it_serves_reloads_and_ends_and_feeds_the_watchdog() {
    if !vm::inside("notify::it_says_when_it_serves_reloads_and_ends_and_feeds_the_watchdog") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    write_pieces(&disk.path("data"), 2);
    fs::write("/tmp/memory.img", "x").unwrap();
    configure(&(entry(&disk, "data") + "[[file]]\npath = \"/tmp/*.img\"\n"));
    let (mut service, notified) = Notified::serve();
    assert_eq!(notified.next().trim_end(), "READY=1", "before anything else");
    status(); // at once
    notified.wait_for("STATUS=following 1 file(s); 1 cannot be followed\n");
    for _ in 0..3 {
        notified.wait_for("WATCHDOG=1");
    }
    for config in [entry(&disk, "data"), "nonsense".to_owned()] {
        configure(&config);
        let before = uptime();
        signal(service.pid(), Signal::SIGHUP);
        let said = notified.wait_for("RELOADING=1");
        let since = said.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        let since = since.expect("systemd waits for it").parse().unwrap();
        let (since, tick) = (Duration::from_micros(since), Duration::from_millis(20));
        assert!(before <= since + tick && since <= uptime() + tick, "{said}");
        notified.wait_for("READY=1");
    }
    notified.wait_for("WATCHDOG=1");
    signal(service.pid(), Signal::SIGTERM);
    notified.wait_for("STOPPING=1");
    assert_eq!(service.wait_for_end().code(), Some(0));
}

/// The engine is stuck where it writes down what was added; all other threads are well.
#[test]
fn nobody_feeds_the_watchdog_of_a_stuck_engine() {
    if !vm::inside("notify::nobody_feeds_the_watchdog_of_a_stuck_engine") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 2);
    configure("");
    let (mut service, notified) = Notified::serve();
    notified.wait_for("READY=1");
    notified.wait_for("STATUS="); // the first scan is done
    let pipe = Path::new(SOCKET).with_file_name("added.json.new");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let mut adding = Daemon::start(command(PROGRAM).args(["add", text(&file)]));

    notified.wait_for_silence();
    refused("add /nowhere", 1, "No such file"); // by another thread
    assert!(adding.is_running());
    notified.wait_for_silence();

    fs::read(&pipe).unwrap(); // somebody reads, so the write goes on
    notified.wait_for("WATCHDOG=1");
    assert!(adding.wait_for_end().success());
    assert_follows(&disk, "when it is free again", &file, "data");
    assert!(service.is_running());
}

#[test]
fn the_journal_is_told_how_bad_each_line_is() {
    if !vm::inside("notify::the_journal_is_told_how_bad_each_line_is") {
        return;
    }
    let journal = "exec 2>/tmp/journal
        JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$0\" \"$@\"";
    let told = || fs::read_to_string("/tmp/journal").unwrap_or_default();
    let wait_for = |line: &str| {
        wait_until(&format!("the journal has {line}"), || {
            let found = told().lines().any(|told| told.starts_with(line));
            if found { Ok(()) } else { Err(told()) }
        });
    };
    fs::write("/tmp/memory.img", "x").unwrap();
    configure("[[file]]\npath = \"/tmp/*.img\"\n");
    let mut service = Daemon::start(&mut under(&["sh", "-c", journal], &service_command("")));
    wait_for("<6>following the files of 1 entries");
    wait_for("<4>/tmp/memory.img: not followed: ");
    configure("a = 1\nb = 2\n");
    signal(service.pid(), Signal::SIGHUP);
    let wrong = ["<3>  /tmp/etc/config.toml:1: ", "<3>  /tmp/etc/config.toml:2: "];
    for line in wrong.iter().chain(&["<3>the configuration from before"]) {
        wait_for(line);
    }
    signal(service.pid(), Signal::SIGTERM);
    assert_eq!(service.wait_for_end().code(), Some(0));
    let marked = |line: &str| ["<3>", "<4>", "<6>"].iter().any(|mark| line.starts_with(mark));
    assert!(told().lines().all(marked), "{}", told());

    let mut fails = Daemon::start(&mut under(&["sh", "-c", journal], &service_command("")));
    assert_eq!(fails.wait_for_end().code(), Some(78));
    assert!(wrong.iter().all(|line| told().contains(line)), "{}", told());
    assert!(told().lines().all(|line| line.starts_with("<3>")), "{}", told());
    let elsewhere = "JOURNAL_STREAM=1:1 exec \"$0\" \"$@\"";
    let fails = Daemon::start(&mut under(&["sh", "-c", elsewhere], &service_command("")));
    fails.wait_for("dmfilemapd: the configuration is not valid:\n  /tmp/etc/config.toml:1: ");
}
