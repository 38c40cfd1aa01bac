//! The control socket, from both ends, and from clients that behave badly.

#![allow(clippy::unwrap_used)] // all of this is a test

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use dmfilemapd::client::{self, ErrorKind};
use dmfilemapd::mode::Mode;
use dmfilemapd::request::{FilePath, Follow, Reply, Request};
use dmfilemapd::socket::{
    Answer, CONNECTIONS_MAX, Limits, Peer, REQUEST_BYTES_MAX, Release, Server, serve_within,
};
use parking_lot::Mutex;
use tempfile::TempDir;

/// Longer than anything here takes; only a failing test waits so long.
const LONG: Duration = Duration::from_secs(60);

/// Held by tests that start programs, and by those that count on a listener being closed: a program
/// has copies of all descriptors between its fork and its exec.
static FORK: Mutex<()> = Mutex::new(());

enum Seen {
    Request(Request, Option<OwnedFd>),
    Waits(Release),
    Gone,
}

struct Service {
    folder: TempDir,
    server: Option<Server>,
    seen: Receiver<Seen>,
}

/// Says `ok` to all, an empty status, and keeps those who wait.
fn handle(seen: &Sender<Seen>, request: &Request, fd: Option<OwnedFd>, peer: &Peer) -> Answer {
    assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
    seen.send(Seen::Request(request.clone(), fd)).ok();
    match request {
        Request::Status { .. } => Answer::Now(Reply::Status(Box::default())),
        Request::Reload => Answer::Now(Reply::Error("no configuration".to_owned())),
        Request::Follow(Follow { foreground: true, .. }) => {
            let gone = seen.clone();
            let (later, release) = peer.later(move || drop(gone.send(Seen::Gone)));
            seen.send(Seen::Waits(release)).ok();
            Answer::Later(Reply::Ok("taken".to_owned()), later)
        }
        _ => Answer::Now(Reply::Ok("done".to_owned())),
    }
}

impl Service {
    fn start(limits: Limits) -> Service {
        let folder = tempfile::tempdir().unwrap();
        let (sender, seen) = unbounded();
        let handler = move |request: Request, fd, peer: &Peer| handle(&sender, &request, fd, peer);
        let server = serve_within(&folder.path().join("run/sock"), limits, handler).unwrap();
        Service { folder, server: Some(server), seen }
    }

    fn patient() -> Service {
        Service::start(Limits { request: LONG, reply: LONG })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("run/sock")
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    fn stop(&self) -> Result<Reply, client::Error> {
        client::call(&self.path(), &Request::Stop, LONG)
    }

    fn next(&self) -> Seen {
        self.seen.recv_timeout(LONG).unwrap()
    }

    fn follow(&self, foreground: bool) -> client::Attached {
        let path = FilePath("/x".into());
        let follow = Follow { group_id: 3, path, mode: Mode::Inode, foreground };
        let file = File::open("/proc/self/exe").unwrap();
        client::attach(&self.path(), &follow, file.as_fd(), LONG).unwrap()
    }

    /// Follows in the foreground, until the service has the other half.
    fn wait(&self) -> (client::Attached, Release) {
        let attached = self.follow(true);
        loop {
            if let Seen::Waits(release) = self.next() {
                return (attached, release);
            }
        }
    }
}

fn done() -> Reply {
    Reply::Ok("done".to_owned())
}

fn lines(stream: UnixStream) -> Vec<Reply> {
    let lines = BufReader::new(stream).split(b'\n');
    lines.map_while(Result::ok).map(|line| Reply::read(&line).unwrap()).collect()
}

fn is_error(reply: &Reply, expected: &str) -> bool {
    matches!(reply, Reply::Error(text) if text.contains(expected))
}

#[test]
fn each_line_gets_an_answer_in_order_however_it_is_cut() {
    let service = Service::patient();
    let mut stream = service.connect();
    let reload = Request::Reload.to_line();
    stream.write_all(&reload[..5]).unwrap();
    stream.write_all(&reload[5..]).unwrap();
    stream.write_all(&[Request::Stop.to_line(), b"rubbish\n".to_vec()].concat()).unwrap();
    stream.write_all(&Request::Stop.to_line()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let replies = lines(stream);
    assert_eq!(replies.len(), 4, "{replies:?}");
    assert!(is_error(&replies[0], "no configuration"));
    assert!(is_error(&replies[2], "no request in JSON"), "{replies:?}");
    assert_eq!((&replies[1], &replies[3]), (&done(), &done()));
}

#[test]
fn a_request_that_is_too_long_is_refused() {
    let service = Service::patient();
    let mut stream = service.connect();
    stream.write_all(&vec![b' '; REQUEST_BYTES_MAX]).unwrap();
    let replies = lines(stream);
    assert!(is_error(&replies[0], "longer than 65536 bytes"), "{replies:?}");
    assert_eq!(replies.len(), 1);
}

#[test]
fn a_silent_client_and_one_that_trickles_are_cut_off() {
    let limits = Limits { request: Duration::from_millis(50), reply: LONG };
    let service = Service::start(limits);
    assert!(is_error(&lines(service.connect())[0], "timed out"));
    let mut stream = service.connect();
    let begin = Instant::now();
    while stream.write_all(b" ").is_ok() {
        assert!(begin.elapsed() < LONG);
    }
}

#[test]
fn a_client_that_takes_no_reply_is_cut_off() {
    let limits = Limits { request: LONG, reply: Duration::from_millis(50) };
    let service = Service::start(limits);
    let mut stream = service.connect();
    let begin = Instant::now();
    while stream.write_all(&Request::Stop.to_line()).is_ok() {
        assert!(begin.elapsed() < LONG);
    }
}

#[test]
fn more_clients_than_are_served_wait_for_their_turn() {
    let service = Service::patient();
    let silent: Vec<_> = (0..CONNECTIONS_MAX).map(|_| service.connect()).collect();
    for mut stream in &silent {
        stream.write_all(&Request::Stop.to_line()).unwrap();
        assert!(matches!(service.next(), Seen::Request(Request::Stop, _)));
    }
    let mut late = service.connect();
    late.write_all(&Request::Reload.to_line()).unwrap();
    assert!(service.seen.try_recv().is_err());
    drop(silent);
    assert!(matches!(service.next(), Seen::Request(Request::Reload, _)));
}

#[test]
fn a_descriptor_comes_with_follow_and_with_nothing_else() {
    let service = Service::patient();
    assert_eq!(service.follow(false).text, "done");
    let Seen::Request(Request::Follow(_), Some(fd)) = service.next() else { panic!() };
    let mut magic = [0; 4];
    File::from(fd).read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"\x7fELF");

    let (mut reader, writer) = io::pipe().unwrap();
    let stream = service.connect();
    dmfilemapd::kernel::scm::send(&stream, &Request::Stop.to_line(), writer.as_fd()).unwrap();
    drop(writer);
    assert!(matches!(service.next(), Seen::Request(Request::Stop, None)));
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "what was not asked for is closed");
    drop(stream);

    let path = FilePath("/x".into());
    let follow = Follow { group_id: 3, path, mode: Mode::Inode, foreground: true };
    let reply = client::call(&service.path(), &Request::Follow(follow), LONG).unwrap();
    assert!(is_error(&reply, "without a descriptor"));
}

#[test]
fn many_wait_without_a_thread_each_and_each_gets_its_last_reply() {
    let service = Service::patient();
    let waiting: Vec<_> = (0..300).map(|_| service.wait()).collect();
    let threads = fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads < 200, "{threads} threads");
    let (attached, releases): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
    for (at, release) in releases.into_iter().enumerate() {
        release.reply(Reply::Ok(at.to_string()));
    }
    for (at, attached) in attached.into_iter().enumerate() {
        assert_eq!(attached.text, "taken");
        assert_eq!(attached.wait().unwrap(), at.to_string());
    }
}

#[test]
fn a_release_that_is_dropped_is_an_error() {
    let service = Service::patient();
    let (attached, release) = service.wait();
    drop(release);
    assert_eq!(attached.wait().unwrap_err().kind(), ErrorKind::Refused);
}

#[test]
fn a_client_that_goes_meanwhile_is_told_once() {
    let service = Service::patient();
    let (attached, release) = service.wait();
    drop(attached);
    assert!(matches!(service.next(), Seen::Gone));
    release.reply(done());
    service.stop().unwrap();
    assert!(matches!(service.next(), Seen::Request(Request::Stop, _)));
}

#[test]
fn who_waits_is_gone_when_the_server_is_dropped() {
    let mut service = Service::patient();
    let (attached, _release) = service.wait();
    drop(service.server.take());
    assert!(matches!(service.next(), Seen::Gone));
    assert_eq!(attached.wait().unwrap_err().kind(), ErrorKind::Broken);
    assert!(!service.path().exists());
}

#[test]
fn the_socket_is_for_its_user_alone_and_its_folder_for_all() {
    let service = Service::patient();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&service.path()), 0o600);
    assert_eq!(mode(service.path().parent().unwrap()), 0o755);
}

#[test]
fn a_stale_socket_is_replaced_and_nothing_else() {
    let _closed_is_closed = FORK.lock();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    let serve = || serve_within(&path, Limits::default(), |_, _, _: &Peer| Answer::Now(done()));
    let listener = UnixListener::bind(&path).unwrap();
    assert_eq!(serve().unwrap_err().kind(), io::ErrorKind::AddrInUse, "without our lock");
    drop(listener);
    let server = serve().unwrap();
    let error = serve().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(client::call(&path, &Request::Stop, LONG).unwrap(), done());
    drop(server);
    fs::write(&path, "precious").unwrap();
    assert_eq!(serve().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn no_service_is_told_apart_from_a_broken_answer_and_a_silent_one() {
    let _closed_is_closed = FORK.lock();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sock");
    let kind = |timeout| client::call(&path, &Request::Stop, timeout).unwrap_err().kind();
    assert_eq!(kind(LONG), ErrorKind::NoService);
    let listener = UnixListener::bind(&path).unwrap();
    assert_eq!(kind(Duration::from_millis(50)), ErrorKind::TimedOut);
    let answer = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            BufReader::new(&stream).read_line(&mut String::new()).unwrap();
            stream.write_all(b"{\"protocol\":9}\n").ok(); // the first client has gone
        }
    });
    assert_eq!(kind(LONG), ErrorKind::Broken);
    answer.join().unwrap();
    assert_eq!(kind(LONG), ErrorKind::NoService, "refused");
}

fn dmfilemapd(socket: &Path, words: &[&str]) -> Output {
    let _forks = FORK.lock();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dmfilemapd"));
    command.args(words).arg("--socket").arg(socket).current_dir("/tmp").output().unwrap()
}

#[test]
fn the_command_line_asks_and_tells() {
    let service = Service::patient();
    let check = |words: &[&str], code: i32, expected: &str| {
        let output = dmfilemapd(&service.path(), words);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        assert!(text.contains(expected), "{words:?}: {text}");
        let Seen::Request(request, None) = service.next() else { panic!() };
        request
    };
    assert_eq!(check(&["stop"], 0, "done"), Request::Stop);
    assert_eq!(check(&["reload"], 1, "dmfilemapd: no configuration"), Request::Reload);
    let path = FilePath("/tmp/x y".into());
    assert_eq!(check(&["remove", "x y"], 0, "done"), Request::Remove { path: path.clone() });
    let (mode, alias) = (Mode::Path, Some("z".to_owned()));
    let add = check(&["add", "x y", "--mode", "path", "--alias", "z"], 0, "done");
    assert_eq!(add, Request::Add { path: path.clone(), mode, alias });
    assert_eq!(check(&["status"], 0, "STATE"), Request::Status { path: None });
    let json = check(&["status", "x y", "--json"], 0, "\"lag_seconds\":0.0");
    assert_eq!(json, Request::Status { path: Some(path) });
}

#[test]
fn without_a_service_the_exit_status_is_69() {
    let folder = tempfile::tempdir().unwrap();
    let output = dmfilemapd(&folder.path().join("sock"), &["stop"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no service listens"));
}

#[test]
fn a_stranger_is_kept_out_by_the_mode_and_told_by_the_service() {
    let stranger = 65534;
    if !nix::unistd::geteuid().is_root() {
        return; // only root can become a stranger
    }
    let service = Service::patient();
    fs::set_permissions(service.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // A copy, for strangers may not go where the program was built.
    let program = service.folder.path().join("program");
    fs::copy(env!("CARGO_BIN_EXE_dmfilemapd"), &program).unwrap();
    let ask = || {
        let _forks = FORK.lock();
        let mut command = Command::new(&program);
        command.uid(stranger).arg("stop").arg("--socket").arg(service.path());
        let output = command.current_dir("/").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = ask();
    assert_eq!(code, Some(77), "{text}");
    fs::set_permissions(service.path(), fs::Permissions::from_mode(0o666)).unwrap();
    let (code, text) = ask();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("user 65534 may not"), "{text}");
    assert!(service.seen.try_recv().is_err(), "the handler did not hear of it");
}
