//! The process itself: descriptors that came from the caller, becoming a daemon, starting another.
//!
//! Everything here that changes the whole process refuses to while there is a second thread.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

/// Raises the number of files that may be open, from what suits programs of old (1024) to what the
/// administrator allows. Gives the number that holds from now on.
pub fn raise_descriptor_limit() -> usize {
    const USUAL: u64 = 1024;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((USUAL, USUAL));
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Has all threads allocate from one heap. Otherwise the C library has one for each of them, and
/// what is free at the end of such a heap is never given back by [`give_back_memory`]. What is
/// large gets pages of its own, as it does at first: the C library would stop that once it has seen
/// such a piece freed, and a table that grows would leave a hole in the heap each time.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets numbers that the C library reads when it allocates, under a lock of its own.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
    }
}

/// Gives memory that was freed back to the kernel, which the C library keeps for later: what many
/// files take for a moment lies between what they take for long.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, by any thread, and touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes over descriptor `number`, on which the caller of the program left a file open.
///
/// The file has close-on-exec set, so that programs we start do not inherit it in turn, and a
/// number above 2. A descriptor that came as 0, 1 or 2 is duplicated: those three are replaced
/// when the process becomes a daemon.
///
/// Who else could own the descriptor? Not this process: a descriptor that came through `exec` has
/// close-on-exec clear, and whatever Rust opens has it set. So a number with the flag set is one
/// of ours and counts as not open, and adopting the same number twice fails the second time. Only
/// C code that opens without the flag could spoil this; call it first thing in `main`.
///
/// # Errors
///
/// See [`AdoptError`]. A descriptor that cannot be read is closed if it is above 2.
pub fn adopt_fd(number: RawFd) -> Result<File, AdoptError> {
    let fd = take(number).map_err(|source| AdoptError::Kernel { number, source })?;
    let fd = fd.ok_or(AdoptError::NotOpen { number })?;
    let flags = fcntl(&fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let flags = flags.map_err(|errno| AdoptError::Kernel { number, source: errno.into() })?;
    let access = flags & OFlag::O_ACCMODE;
    if flags.contains(OFlag::O_PATH) || (access != OFlag::O_RDONLY && access != OFlag::O_RDWR) {
        return Err(AdoptError::NotReadable { number });
    }
    Ok(File::from(fd))
}

fn take(number: RawFd) -> io::Result<Option<OwnedFd>> {
    require_single_thread()?;
    match number {
        0 => above_stdio(io::stdin().as_fd()).map(Some),
        1 => above_stdio(io::stdout().as_fd()).map(Some),
        2 => above_stdio(io::stderr().as_fd()).map(Some),
        _ => inherited(number),
    }
}

/// Descriptor `number` with close-on-exec set, unless it is closed or opened by this process.
fn inherited(number: RawFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: F_GETFD takes no argument and touches no memory; a bad number answers EBADF.
    match Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) }) {
        Err(Errno::EBADF) => return Ok(None),
        Ok(flags) if flags & libc::FD_CLOEXEC != 0 => return Ok(None),
        result => result?,
    };
    // SAFETY: F_SETFD takes an int and touches no memory; the descriptor is open.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open, and nothing in this process owns it: it had close-on-exec
    // clear, which is how it came through exec. It has it set now, so this happens once.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// A duplicate above 2, with close-on-exec set.
fn above_stdio(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: the kernel has just made this descriptor, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Why a descriptor number from the command line is no use.
#[derive(Debug)]
pub enum AdoptError {
    /// The caller left nothing open there.
    NotOpen {
        /// The descriptor.
        number: RawFd,
    },
    /// It is open for writing only, or only as a place (`O_PATH`).
    NotReadable {
        /// The descriptor.
        number: RawFd,
    },
    /// The kernel refused, or there is a second thread.
    Kernel {
        /// The descriptor.
        number: RawFd,
        /// Its reason.
        source: io::Error,
    },
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdoptError::NotOpen { number } => {
                write!(f, "file descriptor {number} is not open; open it with {number}<FILE")
            }
            AdoptError::NotReadable { number } => {
                write!(f, "file descriptor {number} is not open for reading; open it O_RDONLY")
            }
            AdoptError::Kernel { number, .. } => {
                write!(f, "cannot take over file descriptor {number}")
            }
        }
    }
}

impl std::error::Error for AdoptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AdoptError::Kernel { source, .. } => Some(source),
            AdoptError::NotOpen { .. } | AdoptError::NotReadable { .. } => None,
        }
    }
}

/// Closes what the caller left open above 2, except what [`adopt_fd`] has taken over.
///
/// A daemon must not keep a pipe, a lock or a device of its caller open for as long as it runs.
/// What the process itself has opened stays open: it has close-on-exec set, which an inherited
/// descriptor has not. Call it first thing in `main`, after [`adopt_fd`].
///
/// # Errors
///
/// `/proc` is not there, or there is a second thread.
pub fn close_inherited() -> io::Result<()> {
    require_single_thread()?;
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }
    for number in numbers.into_iter().filter(|number| *number > 2) {
        drop(inherited(number)?);
    }
    Ok(())
}

/// Gives this thread a table of descriptors of its own, in which 0, 1 and 2 are open and no other.
///
/// What the process has open is held by every table of its threads. So whoever may be stuck in the
/// kernel when the process ends, and needs none of it, should not hold it: neither the files, whose
/// filesystems could not be unmounted, nor the control socket and its lock, without which no other
/// service could start.
///
/// For a thread that has just started and owns no descriptor; what it owned would be closed.
///
/// # Errors
///
/// `ENOSYS` before Linux 5.9: the thread shares the table as any other does.
#[doc(alias = "close_range")]
pub fn part_with_descriptors() -> io::Result<()> {
    let (first, last, flags) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
    // SAFETY: with this flag the descriptors are closed in a copy of the table, which from then on
    // is that of this thread alone; and it owns none of them. No memory is touched.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    Errno::result(done)?;
    Ok(())
}

fn require_single_thread() -> io::Result<()> {
    match fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(io::Error::other(format!(
            "the process has {threads} threads, and this must be done before the second starts"
        ))),
    }
}

/// Lets a write to a pipe that nobody reads any more end the process, as it does any filter's: Rust
/// programs start with the signal ignored, and would panic when they print.
#[doc(alias = "SIGPIPE")]
pub fn end_at_broken_pipe() {
    // SAFETY: the default action is no handler of ours, so none runs.
    let set = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    set.expect("SIGPIPE may be set to its default action");
}

/// What becomes of stdin, stdout and stderr in a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// They stay what the caller gave: for a daemon that is to talk.
    Keep,
    /// They become `/dev/null` when the daemon reports.
    Silence,
}

/// Which of the two processes this is, after [`daemonize`].
#[derive(Debug)]
pub enum Forked {
    /// The process that was started, with what became of the daemon. All that is left to do is to
    /// exit, 0 if the daemon is ready and 1 if not.
    Starter(Result<(), NotReady>),
    /// The daemon, which owes its starter a report.
    Daemon(Ready),
}

/// Why there is no daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// It could not start, for the reason it gave.
    Reported(String),
    /// It ended before it reported.
    Died,
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotReady::Reported(reason) => f.write_str(reason),
            NotReady::Died => f.write_str("the daemon died before it was ready"),
        }
    }
}

impl std::error::Error for NotReady {}

/// Moves the rest of the program into a daemon: forks twice, and returns in both ends.
///
/// The *starter*, the process that was started, waits until the daemon has reported, so that
/// whoever waits for the starter learns whether the start succeeded. If the daemon dies instead,
/// the wait ends at once. There is no limit to it: the daemon reports when it has done what may
/// fail, or has decided that it takes too long.
///
/// The *daemon* is in a session of its own without being its leader, so no terminal can become its
/// controlling one; is a child of init; has `/` as its current directory; and keeps the umask, the
/// environment, the signals and all descriptors. Call [`close_inherited`] before, or a caller that
/// waits for the end of a pipe waits for the daemon.
///
/// With [`Stdio::Silence`] stdin, stdout and stderr stay until the report, so that what happens on
/// the way to it can be told, and are `/dev/null` before the starter exits.
///
/// # Errors
///
/// In the starter, with no daemon left behind: there is a second thread, no `/dev/null` or no
/// `/proc`, or the kernel refused the first fork. What fails later arrives as [`NotReady`].
pub fn daemonize(stdio: Stdio) -> io::Result<Forked> {
    require_single_thread()?;
    let null = match stdio {
        Stdio::Keep => None,
        Stdio::Silence => Some(OpenOptions::new().read(true).write(true).open("/dev/null")?),
    };
    let (starter, daemon) = UnixStream::pair()?;
    io::stdout().flush()?; // or both processes would print what is in the buffer

    // SAFETY: there is one thread, so the child has all of the process and may do anything.
    if let ForkResult::Parent { child } = unsafe { nix::unistd::fork() }? {
        drop(daemon); // the daemon's end is now open in the daemon alone, and closes when it dies
        reap(child)?;
        return Ok(Forked::Starter(read_report(starter)?));
    }
    drop(starter);
    let ready = Ready { starter: daemon, null };
    match detach() {
        Ok(ForkResult::Child) => return Ok(Forked::Daemon(ready)),
        Ok(ForkResult::Parent { .. }) => {}
        Err(error) => ready.report(Err(&format!("cannot become a daemon: {error}"))),
    }
    // SAFETY: ends this process, the one between the two, and nothing else: it runs neither
    // destructors nor the starter's exit handlers.
    unsafe { libc::_exit(0) }
}

/// In the process between starter and daemon: a new session, and a child that does not lead it.
fn detach() -> io::Result<ForkResult> {
    setsid()?;
    chdir("/")?;
    // SAFETY: there is one thread, as fork() copies no other.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Waits for the process between, which ends at once.
fn reap(child: nix::unistd::Pid) -> io::Result<()> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            // ECHILD: whoever started us ignores SIGCHLD, so the kernel reaps.
            Ok(_) | Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

const READY: u8 = b'+';
const FAILED: u8 = b'-';

fn read_report(mut starter: UnixStream) -> io::Result<Result<(), NotReady>> {
    let mut report = Vec::new();
    starter.read_to_end(&mut report)?;
    Ok(match report.split_first() {
        Some((&READY, _)) => Ok(()),
        Some((_, reason)) => Err(NotReady::Reported(String::from_utf8_lossy(reason).into_owned())),
        None => Err(NotReady::Died),
    })
}

/// The daemon's duty to report to its starter, which waits for it.
///
/// Dropped without a report it stands for a daemon that died.
#[derive(Debug)]
#[must_use = "the starter waits for the report"]
pub struct Ready {
    starter: UnixStream,
    /// What takes the place of stdin, stdout and stderr, until it has.
    null: Option<File>,
}

impl Ready {
    /// Lets the starter go: with success, or with the reason why there will be no daemon, after
    /// which all that is left to do is to exit.
    ///
    /// Nobody may be left to hear it: then the report is lost, and that is no error. Other threads
    /// may run by now.
    pub fn report(mut self, outcome: Result<(), &str>) {
        let report = match outcome {
            Ok(()) => vec![READY],
            Err(reason) => [&[FAILED], reason.as_bytes()].concat(),
        };
        drop(self.starter.write_all(&report)); // it is an error if the starter is gone
    }
}

impl Drop for Ready {
    /// Silences the process and then, by closing the socket, lets the starter go: in this order,
    /// because the caller of the starter may wait for the end of its pipes after that.
    fn drop(&mut self) {
        if let Some(null) = self.null.take() {
            let replaced = dup2_stdin(&null).and(dup2_stdout(&null)).and(dup2_stderr(&null));
            replaced.expect("dup2() between two open descriptors");
        }
    }
}

/// Lets the program that `command` starts inherit `fd`; returns the number it has there.
///
/// The number is above 2. The descriptor is duplicated at once, and no other program inherits it,
/// whatever other threads start meanwhile: close-on-exec is cleared in the new process alone.
///
/// # Errors
///
/// `EMFILE`: the process has no descriptor left.
pub fn hand_down(command: &mut Command, fd: BorrowedFd<'_>) -> io::Result<RawFd> {
    let fd = above_stdio(fd)?;
    let number = fd.as_raw_fd();
    let keep_open = move || {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes one system call; it takes no lock, and
    // an errno becomes an io::Error without taking memory.
    unsafe { command.pre_exec(keep_open) };
    Ok(number)
}
