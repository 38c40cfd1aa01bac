//! Becoming a daemon and taking over descriptors, in real processes.
//!
//! Both take a process of one thread, which the usual harness does not offer. So this program is
//! its own harness, and starts itself as the *actor*: a process that does what `main` does with
//! the functions under test. A daemon among the actors connects to a socket of the test, says its
//! pid, and does one thing per line that the test writes:
//!
//! ```text
//! report      report success            drop   drop the duty to report
//! fail TEXT   report a failure          panic  panic
//! say TEXT    write TEXT to stdout      kill   kill itself with signal 9
//! ```
//!
//! It answers each line that it survives with "done", and ends when the test closes the socket.
//! No test sleeps: each waits for what it expects, for ten seconds at most.

#![allow(clippy::unwrap_used)] // all of this is a test

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::catch_unwind;
use std::process::{Child, Command, ExitCode, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dmfilemapd::compat::Legacy;
use dmfilemapd::kernel::process::{
    self, AdoptError, Forked, adopt_fd, close_inherited, daemonize, hand_down,
};
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::Mode;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["actor", "daemon", stdio, socket, file] => actor_daemon(stdio, socket, file),
        ["actor", "adopt", ref numbers @ ..] => actor_adopt(numbers),
        ["actor", "threads"] => actor_threads(),
        ["actor", "resolve", dir] => actor_resolve(dir),
        _ => run_tests(&words),
    }
}

/// Runs the tests whose names contain any of the words on the command line, or all.
fn run_tests(words: &[&str]) -> ExitCode {
    let tests: &[(&str, fn())] = &[
        ("a_daemon_is_on_its_own", a_daemon_is_on_its_own),
        ("a_daemon_keeps_what_it_had", a_daemon_keeps_what_it_had),
        ("the_starter_waits_for_the_report", the_starter_waits_for_the_report),
        ("the_callers_pipes_end_with_the_starter", the_callers_pipes_end_with_the_starter),
        ("a_silent_daemon_speaks_until_it_reports", a_silent_daemon_speaks_until_it_reports),
        ("a_talkative_daemon_keeps_its_stdout", a_talkative_daemon_keeps_its_stdout),
        ("a_failure_is_told", a_failure_is_told),
        ("a_death_is_noticed_at_once", a_death_is_noticed_at_once),
        ("a_duty_dropped_is_a_death", a_duty_dropped_is_a_death),
        ("a_daemon_survives_its_starter", a_daemon_survives_its_starter),
        ("a_caller_may_ignore_its_children", a_caller_may_ignore_its_children),
        ("a_second_thread_is_in_the_way", a_second_thread_is_in_the_way),
        ("a_readable_descriptor_is_taken_over", a_readable_descriptor_is_taken_over),
        ("a_descriptor_is_taken_over_once", a_descriptor_is_taken_over_once),
        ("stdio_is_duplicated", stdio_is_duplicated),
        ("other_descriptors_are_refused", other_descriptors_are_refused),
        ("no_path_is_resolved_from_nowhere", no_path_is_resolved_from_nowhere),
    ];
    let wanted = |name: &str| {
        let mut filters = words.iter().filter(|word| !word.starts_with('-')).peekable();
        filters.peek().is_none() || filters.any(|filter| name.contains(filter))
    };
    let mut failed = 0;
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        let passed = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

// The actors.

fn actor_daemon(stdio: &str, socket: &str, file: &str) -> ExitCode {
    let own = File::open("/dev/zero").unwrap();
    let file = adopt_fd(file.parse().unwrap()).unwrap();
    close_inherited().unwrap();
    let stdio = match stdio {
        "silence" => process::Stdio::Silence,
        _ => process::Stdio::Keep,
    };
    print!("{}:", getpid()); // stays in the buffer
    match daemonize(stdio).unwrap() {
        Forked::Starter(Ok(())) => ExitCode::SUCCESS,
        Forked::Starter(Err(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Forked::Daemon(ready) => {
            obey(ready, UnixStream::connect(socket).unwrap());
            drop((own, file));
            ExitCode::SUCCESS
        }
    }
}

/// Does what the test asks for, line by line.
fn obey(ready: process::Ready, mut test: UnixStream) {
    writeln!(test, "{}", getpid()).unwrap();
    let mut ready = Some(ready);
    let orders = BufReader::new(test.try_clone().unwrap());
    for order in orders.lines() {
        let order = order.unwrap();
        match order.split_once(' ').unwrap_or((&order, "")) {
            ("report", "") => ready.take().unwrap().report(Ok(())),
            ("fail", reason) => ready.take().unwrap().report(Err(reason)),
            ("drop", "") => drop(ready.take()),
            ("panic", "") => panic!("as ordered"),
            ("kill", "") => kill(getpid(), Signal::SIGKILL).unwrap(),
            ("say", words) => println!("{words}"),
            _ => panic!("{order}"),
        }
        writeln!(test, "done").unwrap();
    }
}

/// Takes over each number in turn, and prints what came of it.
fn actor_adopt(numbers: &[&str]) -> ExitCode {
    let own = File::open("/dev/zero").unwrap();
    let mut kept = Vec::new();
    for number in numbers {
        let number = if *number == "own" { own.as_raw_fd() } else { number.parse().unwrap() };
        match adopt_fd(number) {
            Ok(mut file) => {
                let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFD).unwrap();
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                println!("{} {} {text}", file.as_raw_fd(), flags == libc::FD_CLOEXEC);
                kept.push(file);
            }
            Err(error @ AdoptError::Kernel { .. }) => panic!("{error:?}"),
            Err(error) => println!("{error}"),
        }
    }
    ExitCode::SUCCESS
}

fn actor_threads() -> ExitCode {
    let (release, wait) = mpsc::channel::<()>();
    let second = thread::spawn(move || wait.recv().unwrap_err());
    let adopted = adopt_fd(0).unwrap_err();
    println!("{adopted}: {}", std::error::Error::source(&adopted).unwrap());
    println!("{}", close_inherited().unwrap_err());
    println!("{}", daemonize(process::Stdio::Keep).unwrap_err());
    drop(release);
    second.join().unwrap();
    ExitCode::SUCCESS
}

fn actor_resolve(dir: &str) -> ExitCode {
    std::env::set_current_dir(dir).unwrap();
    fs::remove_dir(dir).unwrap();
    let (group, mode) = (RegionId(0), Mode::Inode);
    let at = |path: &str| Legacy {
        fd: 3,
        group,
        path: path.into(),
        mode,
        foreground: false,
        log_level: 0,
    };
    println!("{:?}", at("f").resolve().map_err(|error| error.kind()));
    println!("{}", at("/f").resolve().unwrap().path.display());
    ExitCode::SUCCESS
}

// The test's end of it.

/// The result of `wait`, which may block, if it comes in time.
fn within<T: Send + 'static>(what: &str, wait: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || drop(sender.send(wait())));
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Waits until `holds`.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::yield_now();
    }
}

fn actor(kind: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["actor", kind]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What an actor that becomes no daemon prints.
fn printed(mut actor: Command) -> Vec<String> {
    let output = within("the actor", move || actor.output().unwrap());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// A starter that waits for its daemon, and the daemon that waits for orders.
struct Pair {
    starter: Child,
    daemon: i32,
    orders: UnixStream,
    answers: BufReader<UnixStream>,
    dir: TempDir,
}

impl Pair {
    fn new(stdio: &str) -> Pair {
        Pair::start(stdio, actor("daemon"))
    }

    fn start(stdio: &str, mut command: Command) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::write(dir.path().join("data"), "data").unwrap();
        let file = File::open(dir.path().join("data")).unwrap();
        let file = hand_down(&mut command, file.as_fd()).unwrap();
        command.arg(stdio).arg(&socket).arg(file.to_string());
        let starter = command.spawn().unwrap();

        let orders = within("the daemon", move || listener.accept().unwrap().0);
        orders.set_read_timeout(Some(PATIENCE)).unwrap();
        let answers = BufReader::new(orders.try_clone().unwrap());
        let mut pair = Pair { starter, daemon: 0, orders, answers, dir };
        pair.daemon = pair.answer().unwrap().parse().unwrap();
        pair
    }

    fn answer(&mut self) -> Option<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.pop().map(|_| line)
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        assert_eq!(self.answer().as_deref(), Some("done"), "{order}");
    }

    /// Gives an order that the daemon does not survive.
    fn last_order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
        assert_eq!(self.answer(), None, "{order}");
    }

    fn starter_waits(&mut self) -> bool {
        self.starter.try_wait().unwrap().is_none()
    }

    /// How the starter ends and all that its caller reads, while the daemon goes on.
    fn starters_end(&mut self) -> Output {
        let (mut stdout, mut stderr) =
            (self.starter.stdout.take().unwrap(), self.starter.stderr.take().unwrap());
        let status = self.starters_status();
        within("the end of the caller's pipes", move || {
            let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
            stdout.read_to_end(&mut output.stdout).unwrap();
            stderr.read_to_end(&mut output.stderr).unwrap();
            output
        })
    }

    fn starters_status(&mut self) -> ExitStatus {
        until("the starter ends", || !self.starter_waits());
        self.starter.wait().unwrap()
    }

    fn assert_failed_with(&mut self, text: &str) {
        let end = self.starters_end();
        assert_eq!(end.status.code(), Some(1));
        assert_eq!(String::from_utf8(end.stderr).unwrap(), text);
    }
}

impl Drop for Pair {
    /// Both end, whatever the test made of them: the daemon at the end of its orders.
    fn drop(&mut self) {
        drop(self.orders.shutdown(std::net::Shutdown::Both));
        drop(self.starter.kill());
        drop(self.starter.wait());
    }
}

/// Fields of `/proc/PID/stat` from the state on: `S 1 1234 1230 0 ...`.
fn stat(pid: impl std::fmt::Display) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split(' ').map(str::to_owned).collect())
}

const PARENT: usize = 1;
const SESSION: usize = 3;
const TERMINAL: usize = 4;

/// The children of a process, zombies included.
fn children(of: u32) -> usize {
    let pids = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
    let pids = pids.filter_map(|name| name.to_str()?.parse::<u32>().ok());
    pids.filter(|pid| stat(pid).is_some_and(|stat| stat[PARENT] == of.to_string())).count()
}

/// What a process has open, and how often.
fn open_files(pid: i32) -> BTreeMap<String, usize> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let link = fs::read_link(entry.unwrap().path()).unwrap().into_os_string();
        let name = link.into_string().unwrap();
        let name = if name.starts_with("socket:") { "socket".to_owned() } else { name };
        *files.entry(name).or_default() += 1;
    }
    files
}

/// Lines of `/proc/PID/status` that begin with one of the words.
fn status(pid: impl std::fmt::Display, words: &[&str]) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = status.lines().filter(|line| words.iter().any(|word| line.starts_with(word)));
    lines.map(str::to_owned).collect()
}

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

// Daemons.

fn a_daemon_is_on_its_own() {
    let mut pair = Pair::new("silence");
    let starter = pair.starter.id();
    until("the process between is reaped", || children(starter) == 0);
    assert!(pair.starter_waits());

    let (own, starters) = (stat(pair.daemon).unwrap(), stat(starter).unwrap());
    let parents = [starter.to_string(), getpid().to_string()];
    assert!(!parents.contains(&own[PARENT]));
    assert_ne!(own[SESSION], starters[SESSION]);
    assert_ne!(own[SESSION], pair.daemon.to_string(), "it leads its session");
    assert_eq!(own[TERMINAL], "0");
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", pair.daemon)).unwrap().to_str(), Some("/"));
}

fn a_daemon_keeps_what_it_had() {
    let mut command = actor("daemon");
    command.env("DMFILEMAPD_TEST", "kept");
    let unwanted = File::open("/dev/full").unwrap();
    hand_down(&mut command, unwanted.as_fd()).unwrap();
    let mut pair = Pair::start("silence", command);

    let starter = pair.starter.id();
    let words = ["Umask", "SigBlk", "SigIgn", "SigCgt"];
    assert_eq!(status(pair.daemon, &words), status(starter, &words));
    let environ = fs::read(format!("/proc/{}/environ", pair.daemon)).unwrap();
    assert!(environ.split(|byte| *byte == 0).any(|pair| pair == b"DMFILEMAPD_TEST=kept"));

    pair.order("report");
    let data = pair.dir.path().join("data").to_str().unwrap().to_owned();
    let expected = [("/dev/null", 3), ("/dev/zero", 1), (&data, 1), ("socket", 2)];
    let expected = expected.map(|(name, count)| (name.to_owned(), count));
    assert_eq!(open_files(pair.daemon), BTreeMap::from(expected)); // socket: orders and answers
}

fn the_starter_waits_for_the_report() {
    let mut pair = Pair::new("silence");
    until("the starter waits", || stat(pair.starter.id()).unwrap()[0] == "S");
    assert!(pair.starter_waits());
    pair.order("report");
    let end = pair.starters_end();
    assert!(end.status.success());
    assert_eq!(text(&end.stderr), "");
    assert!(stat(pair.daemon).is_some());
}

fn the_callers_pipes_end_with_the_starter() {
    let (mut reader, writer) = UnixStream::pair().unwrap();
    let mut command = actor("daemon");
    hand_down(&mut command, writer.as_fd()).unwrap();
    drop(writer);
    let mut pair = Pair::start("silence", command); // drops the command, and what it hands down
    pair.order("report");
    pair.starters_end(); // reads stdout and stderr to their ends
    let rest = within("the end of the third pipe", move || io::read_to_string(&mut reader));
    assert_eq!(rest.unwrap(), "");
    assert!(stat(pair.daemon).is_some());
}

/// What was in the starter's buffer comes out once.
fn a_silent_daemon_speaks_until_it_reports() {
    let mut pair = Pair::new("silence");
    pair.order("say before");
    pair.order("report");
    pair.order("say after");
    let end = pair.starters_end();
    assert_eq!(text(&end.stdout), format!("{}:before\n", pair.starter.id()));
}

fn a_talkative_daemon_keeps_its_stdout() {
    let mut pair = Pair::new("keep");
    pair.order("report");
    assert!(pair.starters_status().success());
    pair.order("say after");
    let mut stdout = BufReader::new(pair.starter.stdout.take().unwrap());
    let line = within("the daemon's line", move || {
        let mut line = String::new();
        stdout.read_line(&mut line).map(|_| line).unwrap()
    });
    assert_eq!(line, format!("{}:after\n", pair.starter.id()));
}

fn a_failure_is_told() {
    let mut pair = Pair::new("silence");
    pair.order("fail no device-mapper \u{e9}");
    pair.assert_failed_with("no device-mapper \u{e9}\n");
    let mut pair = Pair::new("keep");
    pair.order("fail no group 3");
    pair.order("say more");
    assert_eq!(pair.starters_status().code(), Some(1));
}

fn a_death_is_noticed_at_once() {
    let mut pair = Pair::new("silence");
    pair.last_order("kill");
    pair.assert_failed_with("the daemon died before it was ready\n");
}

fn a_duty_dropped_is_a_death() {
    let mut pair = Pair::new("silence");
    pair.order("drop");
    pair.assert_failed_with("the daemon died before it was ready\n");

    let mut pair = Pair::new("silence");
    pair.last_order("panic");
    let end = pair.starters_end();
    assert_eq!(end.status.code(), Some(1));
    let stderr = text(&end.stderr);
    assert!(stderr.contains("the daemon died before it was ready"), "{stderr}");
}

fn a_daemon_survives_its_starter() {
    let mut pair = Pair::new("silence");
    kill(Pid::from_raw(pair.starter.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    pair.starters_status();
    pair.order("report");
    assert!(stat(pair.daemon).is_some());
}

fn a_caller_may_ignore_its_children() {
    let actor = actor("daemon");
    let mut command = Command::new("env");
    command.arg("--ignore-signal=CHLD").arg(actor.get_program()).args(actor.get_args());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut pair = Pair::start("silence", command);
    let ignored = status(pair.starter.id(), &["SigIgn"]).pop().unwrap();
    let ignored = u64::from_str_radix(ignored.split_whitespace().last().unwrap(), 16).unwrap();
    assert_ne!(ignored & (1 << (Signal::SIGCHLD as i32 - 1)), 0);
    pair.order("report");
    assert!(pair.starters_end().status.success());
}

fn a_second_thread_is_in_the_way() {
    let reason = "the process has 2 threads, and this must be done before the second starts";
    let adopted = format!("cannot take over file descriptor 0: {reason}");
    assert_eq!(printed(actor("threads")), [&adopted, reason, reason]);
}

// Descriptors.

/// An actor that takes over descriptors on which `files` are open, in this order.
fn adopters(files: &[&File]) -> (Command, Vec<RawFd>) {
    let mut command = actor("adopt");
    let numbers: Vec<RawFd> =
        files.iter().map(|file| hand_down(&mut command, file.as_fd()).unwrap()).collect();
    command.args(numbers.iter().map(RawFd::to_string));
    (command, numbers)
}

fn a_readable_descriptor_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "data").unwrap();
    let (read, write) =
        (File::open(&path).unwrap(), File::options().read(true).write(true).open(&path).unwrap());
    let (command, numbers) = adopters(&[&read, &write]);
    let expected: Vec<_> = numbers.iter().map(|number| format!("{number} true data")).collect();
    assert_eq!(printed(command), expected);
}

fn a_descriptor_is_taken_over_once() {
    let null = File::open("/dev/null").unwrap();
    let (mut command, numbers) = adopters(&[&null]);
    let number = numbers[0];
    command.arg(number.to_string());
    let again = format!("file descriptor {number} is not open; open it with {number}<FILE");
    assert_eq!(printed(command), [format!("{number} true "), again]);
}

fn stdio_is_duplicated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, "data").unwrap();
    let mut command = actor("adopt");
    command.stdin(File::open(&path).unwrap()).stderr(File::open("/dev/null").unwrap());
    command.args(["0", "1", "2", "0"]);
    let printed = printed(command);
    let number = |line: &str| line.split(' ').next().unwrap().parse::<RawFd>().unwrap();
    assert!(printed[0].ends_with(" true data") && number(&printed[0]) > 2, "{printed:?}");
    assert_eq!(printed[1], "file descriptor 1 is not open for reading; open it O_RDONLY");
    assert!(printed[2].ends_with(" true ") && number(&printed[2]) > 2, "{printed:?}");
    assert!(number(&printed[3]) > 2, "{printed:?}"); // of the same file, and read to its end
}

fn other_descriptors_are_refused() {
    let place = File::options().read(true).custom_flags(libc::O_PATH).open("/dev/null").unwrap();
    let writer = File::options().write(true).open("/dev/null").unwrap();
    let (mut command, numbers) = adopters(&[&place, &writer]);
    command.args(["1000000", "own", "2147483647", "-1"]);
    let printed = printed(command);
    for (line, number) in printed.iter().zip(numbers) {
        let text = "is not open for reading; open it O_RDONLY";
        assert_eq!(*line, format!("file descriptor {number} {text}"));
    }
    assert_eq!(printed.len(), 6);
    assert!(printed[2..].iter().all(|line| line.contains(" is not open; open ")), "{printed:?}");
}

fn no_path_is_resolved_from_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    fs::create_dir(&gone).unwrap();
    let mut command = actor("resolve");
    command.arg(&gone);
    assert_eq!(printed(command), ["Err(NotFound)", "/f"]);
}
