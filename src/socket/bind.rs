//! The socket's place in the file system.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::socket::{bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

/// The right to a socket's path: a lock beside it that ends with the process, so that a socket
/// whose lock is free is one of a dead process. Removes the socket when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    _lock: Flock<File>, // after the path, which is removed while the lock is held
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok(); // somebody may have been faster
    }
}

/// Listens at `path`, which only this user may connect to.
pub(crate) fn listen_at(path: &Path) -> io::Result<(UnixListener, Place)> {
    let place = claim(path).map_err(|error| told(path, "cannot have it", &error))?;
    let listener = bound(path).map_err(|error| told(path, "cannot listen there", &error))?;
    Ok((listener, place))
}

fn told(path: &Path, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {what}: {error}", path.display()))
}

fn claim(path: &Path) -> io::Result<Place> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(lock)?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| if errno == Errno::EWOULDBLOCK { alive() } else { errno.into() })?;
    clear(path)?;
    Ok(Place { path: path.to_owned(), _lock: lock })
}

fn alive() -> io::Error {
    let text = "a service is running there; end it with `dmfilemapd stop` or use another path";
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

/// Removes the socket of a dead process, and nothing else.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            let text = "something that is no socket is there; remove it or use another path";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Ok(_) => {}
    }
    // The lock is ours, but a program that knows of no lock may listen.
    match UnixStream::connect(path) {
        Ok(_) => Err(alive()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// The mode of a socket without a path is what its path gets (less the umask), so there is no
/// moment at which others may connect.
fn bound(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(UnixListener::from(fd))
}
