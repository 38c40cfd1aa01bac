//! The control socket of the service: the end of whoever wants something.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::kernel::scm;
use crate::request::{Follow, Reply, Request};
use crate::socket::timed::Timed;

/// Bytes in a reply; a status takes about 500 for each file.
const REPLY_BYTES_MAX: u64 = 1 << 30;

/// Asks the service at `path`, and waits for its answer, both within `timeout`.
///
/// A [`Reply::Error`] is an answer, too.
///
/// # Errors
///
/// See [`Error`].
pub fn call(path: &Path, request: &Request, timeout: Duration) -> Result<Reply, Error> {
    let answer = || {
        let until = Instant::now() + timeout;
        let stream = open(path, timeout)?;
        let mut timed = Timed { stream: &stream, until };
        match timed.write_all(&request.to_line()) {
            // It hung up before it heard us, and may have said why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
        read(&mut BufReader::new(timed))
    };
    answer().map_err(|source| Error::new(path, source))
}

/// Hands an open file over to the service at `path`, within `timeout`.
///
/// Without [`Follow::foreground`] that is all, and the result may be dropped.
///
/// # Errors
///
/// See [`Error`]; [`ErrorKind::Refused`] if the service does not take the file.
pub fn attach(
    path: &Path,
    follow: &Follow,
    fd: BorrowedFd<'_>,
    timeout: Duration,
) -> Result<Attached, Error> {
    let answer = || {
        let until = Instant::now() + timeout;
        let stream = open(path, timeout)?;
        let line = Request::Follow(follow.clone()).to_line();
        let sent = scm::send(&stream, &line, fd)?;
        let mut timed = Timed { stream: &stream, until };
        timed.write_all(&line[sent..])?;
        // Two replies may come at once, so the second must not be lost in a buffer of the first.
        let reply = read(&mut BufReader::with_capacity(1, timed))?;
        Ok((reply, stream))
    };
    match answer().map_err(|source| Error::new(path, source))? {
        (Reply::Ok(text), stream) => Ok(Attached { text, stream, path: path.to_owned() }),
        (Reply::Error(text), _) => Err(Error::refused(path, text)),
        (Reply::Status(_) | Reply::Totals(_), _) => {
            Err(Error::new(path, io::ErrorKind::InvalidData.into()))
        }
    }
}

/// A file that the service has taken.
#[derive(Debug)]
pub struct Attached {
    /// What the service said to it.
    pub text: String,
    stream: UnixStream,
    path: PathBuf,
}

impl Attached {
    /// Waits, without limit, until the service lets the file go; gives what it says to that.
    ///
    /// Only of use with [`Follow::foreground`]. Dropped without, the service lets the file go.
    ///
    /// # Errors
    ///
    /// See [`Error`]; [`ErrorKind::Broken`] if the service ends without a word.
    pub fn wait(self) -> Result<String, Error> {
        let answer = || {
            self.stream.set_read_timeout(None)?;
            read(&mut BufReader::new(&self.stream))
        };
        match answer().map_err(|source| Error::new(&self.path, source))? {
            Reply::Ok(text) => Ok(text),
            Reply::Error(text) => Err(Error::refused(&self.path, text)),
            Reply::Status(_) | Reply::Totals(_) => {
                Err(Error::new(&self.path, io::ErrorKind::InvalidData.into()))
            }
        }
    }
}

/// Connects; the time holds for a service that does not accept.
fn open(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX).max(1);
    setsockopt(&fd, SendTimeout, &TimeVal::milliseconds(millis))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

fn read(input: &mut impl io::BufRead) -> io::Result<Reply> {
    let mut line = Vec::new();
    input.take(REPLY_BYTES_MAX).read_until(b'\n', &mut line)?;
    match line.last() {
        Some(b'\n') => Reply::read(&line),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    path: PathBuf,
    source: io::Error,
}

/// What kind of reason, by what can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Nobody listens at the path, or there is no such path.
    NoService,
    /// Somebody may, but does not listen to this user.
    NoPermission,
    /// The service did not answer in time.
    TimedOut,
    /// The service answered that it does not do it.
    Refused,
    /// What came is no answer, or none came.
    Broken,
}

impl Error {
    fn new(path: &Path, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ErrorKind::NoService,
            io::ErrorKind::PermissionDenied => ErrorKind::NoPermission,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ErrorKind::TimedOut,
            _ => ErrorKind::Broken,
        };
        Error { kind, path: path.to_owned(), source }
    }

    fn refused(path: &Path, text: String) -> Error {
        let source = io::Error::other(text);
        Error { kind: ErrorKind::Refused, path: path.to_owned(), source }
    }

    /// What kind it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error { kind, path, source } = self;
        let path = path.display();
        match kind {
            ErrorKind::NoService => write!(f, "no service listens at {path}; start one"),
            ErrorKind::NoPermission => {
                write!(f, "the service at {path} is not for this user; become root")
            }
            ErrorKind::TimedOut => {
                write!(f, "the service at {path} does not answer in time; look into its log")
            }
            ErrorKind::Refused => write!(f, "{source}"),
            ErrorKind::Broken => {
                write!(f, "the service at {path} gave no answer that can be read: {source}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
