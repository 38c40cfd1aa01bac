//! The control socket of the service: the daemon's end.
//!
//! One thread accepts, and waits with those who wait for a last reply. Each other client has a
//! thread while it is served; there are at most [`CONNECTIONS_MAX`] of them, the next client waits
//! in the kernel's queue. A client that is silent or slow is cut off after a time, see [`Limits`].

mod bind;
mod connection;
mod later;
pub(crate) mod timed;

use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;

pub use connection::REQUEST_BYTES_MAX;
pub use later::{Later, Release};

pub(crate) use self::bind::{Place, listen_at};
use self::later::{Bell, Parked};
use crate::request::{Reply, Request};

/// Where the service listens if nothing else is said.
pub const PATH: &str = "/run/dmfilemapd/control.sock";

/// Clients that are served at once. Those that wait for a last reply do not count.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the connection, or the last reply, to the end of a request.
    pub request: Duration,
    /// To take a reply.
    pub reply: Duration,
}

impl Default for Limits {
    /// 5 s for a request, which is short; 30 s for a reply, which may be many megabytes.
    fn default() -> Limits {
        Limits { request: Duration::from_secs(5), reply: Duration::from_secs(30) }
    }
}

/// Who has connected.
#[derive(Debug)]
pub struct Peer {
    /// Its process.
    pub pid: i32,
    /// Its user: 0, or that of this process.
    pub uid: u32,
    bell: Bell,
}

impl Peer {
    /// The two halves of a last reply to this client. `gone` runs if the client goes before its
    /// reply is there, at most once, on a thread of the socket: it must not block.
    pub fn later(&self, gone: impl FnOnce() + Send + 'static) -> (Later, Release) {
        later::pair(self.bell.clone(), gone)
    }
}

/// What a handler answers.
#[derive(Debug)]
pub enum Answer {
    /// This is all.
    Now(Reply),
    /// This, and another reply when the [`Release`] gives it; then the connection is closed. The
    /// client has nothing more to say: if it does, or closes its end, it counts as gone.
    Later(Reply, Later),
}

/// A socket that is served until this is dropped; then it is removed from its folder.
///
/// Who waits for a last reply is disconnected then, and counts as gone.
#[derive(Debug)]
pub struct Server {
    /// `None` once dropped: the end of the stream ends the thread.
    bell: Option<Bell>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(Bell(bell)) = self.bell.take() {
            bell.shutdown(std::net::Shutdown::Both).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Serves the socket at `path` with the usual [`Limits`].
///
/// Its folder is made (0755) if need be; the socket is for this user alone (0600). That of a dead
/// process is replaced. `handler` runs on the thread of the connection and may block. A descriptor
/// comes with [`Request::Follow`], always, and with no other request.
///
/// # Errors
///
/// With the path in the text. `AddrInUse`: a service is running there. `AlreadyExists`: something
/// that is no socket is there. Else those of the folder, `bind` and threads.
pub fn serve<H>(path: &Path, handler: H) -> io::Result<Server>
where
    H: Fn(Request, Option<OwnedFd>, &Peer) -> Answer + Send + Sync + 'static,
{
    serve_within(path, Limits::default(), handler)
}

/// The same with other limits.
///
/// # Errors
///
/// Those of [`serve`].
pub fn serve_within<H>(path: &Path, limits: Limits, handler: H) -> io::Result<Server>
where
    H: Fn(Request, Option<OwnedFd>, &Peer) -> Answer + Send + Sync + 'static,
{
    let (listener, place) = listen_at(path)?;
    let (bell, ear) = UnixStream::pair()?;
    bell.set_nonblocking(true)?;
    ear.set_nonblocking(true)?;
    let bell = Bell(Arc::new(bell));
    let (park, to_park) = unbounded();
    let door = Door {
        shared: Arc::new(Shared { handler, limits, park, served: AtomicUsize::new(0) }),
        bell: bell.clone(),
        listener,
        _place: place,
    };
    let run = move || door.run(&ear, &to_park);
    let thread = thread::Builder::new().name("socket".to_owned()).spawn(run)?;
    Ok(Server { bell: Some(bell), thread: Some(thread) })
}

struct Shared<H> {
    handler: H,
    limits: Limits,
    park: Sender<Parked>,
    served: AtomicUsize,
}

/// A client that is being served, for as long as this lives.
struct Served<H> {
    shared: Arc<Shared<H>>,
    peer: Peer,
}

impl<H> Drop for Served<H> {
    fn drop(&mut self) {
        self.shared.served.fetch_sub(1, Ordering::Relaxed);
        self.peer.bell.ring();
    }
}

/// What the accepting thread has.
struct Door<H> {
    shared: Arc<Shared<H>>,
    bell: Bell,
    listener: UnixListener, // closed before the socket is removed and the path is free
    _place: Place,
}

impl<H> Door<H>
where
    H: Fn(Request, Option<OwnedFd>, &Peer) -> Answer + Send + Sync + 'static,
{
    fn run(&self, ear: &UnixStream, to_park: &Receiver<Parked>) {
        let mut parked: Vec<Parked> = Vec::new();
        let mut tired = false;
        loop {
            let open = !tired && self.shared.served.load(Ordering::Relaxed) < CONNECTIONS_MAX;
            let Ok(ready) = wait(ear, &parked, open.then_some(&self.listener)) else { return };
            if ready.rung && !hear(ear) {
                return;
            }
            let mut gone = ready.parked.into_iter();
            parked.retain_mut(|parked| {
                let gone = gone.next() == Some(true);
                parked.waits() && !gone
            });
            parked.extend(to_park.try_iter().filter_map(|mut new| new.waits().then_some(new)));
            tired = open && ready.knocked && !self.accept();
        }
    }

    /// Lets one client in; `false` if there is no descriptor or thread for one at the moment.
    fn accept(&self) -> bool {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::debug!("control socket: accept: {error}");
                return error.kind() == io::ErrorKind::WouldBlock;
            }
        };
        let Ok(credentials) = getsockopt(&stream, PeerCredentials) else { return true };
        let (pid, uid) = (credentials.pid(), credentials.uid());
        if uid != 0 && uid != geteuid().as_raw() {
            refuse(&stream, uid);
            return true;
        }
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        let peer = Peer { pid, uid, bell: self.bell.clone() };
        let served = Served { shared: Arc::clone(&self.shared), peer };
        let run = move || {
            let Served { shared, peer } = &served;
            match connection::serve(stream, peer, shared.limits, &shared.handler) {
                Ok(Some(parked)) => drop(shared.park.send(parked)),
                Ok(None) => {}
                Err(error) => log::debug!("control socket: process {}: {error}", peer.pid),
            }
        };
        thread::Builder::new().name("client".to_owned()).spawn(run).is_ok()
    }
}

/// Tells a stranger why, if it listens: nobody waits for it.
fn refuse(stream: &UnixStream, uid: u32) {
    let text = format!("user {uid} may not; only root and the user of the service may");
    let told = stream.set_nonblocking(true).and_then(|()| Reply::Error(text).write(stream));
    log::debug!("control socket: user {uid} was refused: {told:?}");
}

/// Takes all rings of the bell; `false` at the end of the stream.
fn hear(mut ear: &UnixStream) -> bool {
    loop {
        match ear.read(&mut [0; 256]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
}

/// What there is to do.
struct Ready {
    rung: bool,
    knocked: bool,
    /// In the order of those who wait: whether it has gone.
    parked: Vec<bool>,
}

/// Waits for the bell, a client that goes or, if given, the listener; else a moment, after which
/// there may be a descriptor again.
fn wait(ear: &UnixStream, parked: &[Parked], door: Option<&UnixListener>) -> nix::Result<Ready> {
    let on = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut fds = vec![on(ear.as_fd())];
    fds.extend(parked.iter().map(|parked| on(parked.stream.as_fd())));
    fds.extend(door.map(|door| on(door.as_fd())));
    let timeout = if door.is_some() { PollTimeout::NONE } else { PollTimeout::from(100u8) };
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno),
    }
    let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
    let rung = ready.next() == Some(true);
    let gone = ready.by_ref().take(parked.len()).collect();
    Ok(Ready { rung, parked: gone, knocked: ready.next() == Some(true) })
}
