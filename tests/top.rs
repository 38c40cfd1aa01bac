//! `top` in a real terminal, and what it prints without one.

#![allow(clippy::unwrap_used)] // all of this is a test

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use dmfilemapd::counters::Counters;
use dmfilemapd::request::{Reply, Request, ServiceTotals, Totals};
use dmfilemapd::socket::{self, Answer, Server};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dmfilemapd");

/// A service whose files read more each time that somebody asks.
struct Service {
    folder: TempDir,
    _server: Server,
}

impl Service {
    fn start() -> Service {
        let folder = tempfile::tempdir().unwrap();
        let asked = AtomicU64::new(0);
        let answer = move |request, _fd, _peer: &_| {
            let reply = match request {
                Request::Totals { .. } => totals(asked.fetch_add(1, Ordering::SeqCst)),
                other => Reply::Error(format!("{other:?}")),
            };
            Answer::Now(reply)
        };
        let server = socket::serve(&folder.path().join("control.sock"), answer).unwrap();
        Service { folder, _server: server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> String {
        self.path("control.sock").to_str().unwrap().to_owned()
    }
}

/// What was counted by the time of the so-manieth question: a second lies between two.
fn totals(asked: u64) -> Reply {
    let reads = |count: u64| Counters {
        reads_completed: count * asked,
        read_bytes: count * asked * 4096,
        ..Counters::default()
    };
    let example = include_str!("data/totals.json");
    let mut totals: Totals = serde_json::from_str(example).unwrap();
    totals.service = Some(ServiceTotals::default());
    let device = &mut totals.devices[0];
    device.read_unix_seconds = Some(1e9 + f64::from(u32::try_from(asked).unwrap()));
    device.counters = Some(reads(100));
    totals.files[0].counters = reads(70);
    totals.files[1].counters = reads(10);
    Reply::Totals(Box::new(totals))
}

#[test]
fn without_a_terminal_it_prints_a_table_or_json() {
    let service = Service::start();
    let top = |options: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(["top", "--interval", "10ms", "--socket", &service.socket()]).args(options);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let table = String::from_utf8(top(&["--once"]).stdout).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|row| row.split_whitespace().collect()).collect();
    let names: Vec<&str> = rows.iter().map(|row| *row.last().unwrap()).collect();
    assert_eq!(names, ["FILE", "/srv/a.img", "(other)", "/srv/b.img"], "{table}");
    assert_eq!(rows[1][..3], ["280", "KiB", "-"], "{table}");

    let json = String::from_utf8(top(&["--once", "--json", "--filter", "a.img"]).stdout).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let row = &json["rows"][0];
    assert_eq!((&json["schema"], &json["service"]), (&1.into(), &true.into()), "{json}");
    assert_eq!((&row["name"], &row["reads_per_second"]), (&"/srv/a.img".into(), &70.0.into()));
    assert_eq!((json["rows"].as_array().unwrap().len(), &row["share"]), (1, &0.7.into()));

    let refused = top(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8(refused.stderr).unwrap().contains("--once"), "what to do instead");
}

/// A terminal of its own.
struct Terminal {
    name: String,
}

impl Terminal {
    /// One in which `top` runs; behind it the shell says how it ended, and what the terminal is
    /// like.
    fn with_top(service: &Service, name: &str) -> Terminal {
        let terminal = Terminal { name: format!("dmfilemapd-{name}-{}", std::process::id()) };
        let (pid, socket) = (service.path(name), service.socket());
        let top = format!("echo $$ >{}; exec {PROGRAM} top --interval 100ms", pid.display());
        let line = format!("sh -c '{top} --socket {socket}'; echo ended $?; stty -a; exec cat");
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "20", &line]);
        terminal
    }

    fn tmux(&self, words: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-L", &self.name]).args(words).env("TERM", "screen").env_remove("TMUX");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn wait_for(&self, what: &str, is_there: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let shown = self.tmux(&["capture-pane", "-p"]);
            if is_there(&shown) {
                return shown;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "waiting for {what}:\n{shown}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `top` has ended, and asserts that the terminal is as it was.
    fn assert_is_sane(&self, by: &str) {
        let shown = self.wait_for("the end", |shown| shown.contains("echoctl"));
        assert!(shown.contains("ended 0"), "{by}: {shown}");
        assert!(!shown.contains("-icanon") && !shown.contains("-echo "), "{by}: {shown}");
        let flags = self.tmux(&["display", "-p", "#{alternate_on} #{cursor_flag}"]);
        assert_eq!(flags.trim(), "0 1", "{by}: on the usual screen, with a cursor");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        Command::new("tmux").args(["-L", &self.name, "kill-server"]).output().ok();
    }
}

fn has_tmux(test: &str) -> bool {
    let found = Command::new("tmux").arg("-V").stdout(Stdio::null()).status().is_ok();
    if !found {
        assert!(env::var_os("CI").is_none(), "{test}: Debian's package tmux is missing");
        eprintln!("{test}: skipped, Debian's package tmux is missing");
    }
    found
}

#[test]
fn in_a_terminal_keys_and_sizes_work() {
    if !has_tmux("in_a_terminal_keys_and_sizes_work") {
        return;
    }
    let service = Service::start();
    let terminal = Terminal::with_top(&service, "keys");
    let shown = terminal.wait_for("rates", |shown| shown.contains("280 KiB"));
    assert!(shown.contains("files of the service") && shown.contains("QUEUE"), "{shown}");
    let at = |shown: &str, name: &str| shown.find(name).unwrap_or(usize::MAX);
    terminal.tmux(&["send-keys", "n"]);
    terminal.wait_for("the order of names", |shown| at(shown, "(other)") < at(shown, "a.img"));
    terminal.tmux(&["send-keys", "/", "b", ".", "Enter"]);
    terminal.wait_for("the filter", |shown| {
        shown.contains("filter: b.") && !shown.contains("a.img") && shown.contains("b.img")
    });
    terminal.tmux(&["send-keys", "Escape"]);
    terminal.wait_for("all again", |shown| shown.contains("a.img"));
    terminal.tmux(&["send-keys", "h"]);
    terminal.wait_for("the help", |shown| shown.contains("freeze, and go on"));
    terminal.tmux(&["send-keys", "h"]);
    terminal.tmux(&["resize-window", "-x", "40", "-y", "8"]);
    terminal.wait_for("a small table", |shown| {
        shown.contains("a.img") && !shown.contains("QUEUE") && shown.contains("WRITE/s")
    });
    terminal.tmux(&["resize-window", "-x", "120", "-y", "20"]);
    terminal.wait_for("a large one", |shown| shown.contains("QUEUE") && shown.contains("HISTORY"));
    terminal.tmux(&["send-keys", "q"]);
    terminal.assert_is_sane("q");
}

#[test]
fn any_signal_ends_it_and_leaves_the_terminal_as_it_was() {
    if !has_tmux("any_signal_ends_it_and_leaves_the_terminal_as_it_was") {
        return;
    }
    let service = Service::start();
    for by in ["TERM", "INT", "HUP"] {
        let terminal = Terminal::with_top(&service, by);
        terminal.wait_for("rates", |shown| shown.contains("280 KiB"));
        let pid = fs::read_to_string(service.path(by)).unwrap();
        signal(by, pid.trim());
        terminal.assert_is_sane(by);
    }
    let terminal = Terminal::with_top(&service, "key");
    terminal.wait_for("rates", |shown| shown.contains("280 KiB"));
    terminal.tmux(&["send-keys", "C-c"]);
    terminal.assert_is_sane("Ctrl-C");
}

#[test]
fn it_ends_with_its_terminal() {
    if !has_tmux("it_ends_with_its_terminal") {
        return;
    }
    let service = Service::start();
    let terminal = Terminal::with_top(&service, "gone");
    terminal.wait_for("rates", |shown| shown.contains("280 KiB"));
    let pid = fs::read_to_string(service.path("gone")).unwrap();
    drop(terminal);
    let begun = Instant::now();
    loop {
        // Whoever has to wait for it now may not do so.
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        let state = stat.rsplit_once(") ").map_or("Z", |(_, rest)| rest);
        if state.starts_with('Z') {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{stat}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn signal(name: &str, pid: &str) {
    assert!(Path::new("/proc").join(pid).exists());
    assert!(Command::new("kill").args(["-s", name, pid]).status().unwrap().success());
}
