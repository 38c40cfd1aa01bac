//! Starts a dmfilemapd for an open file: what `dm_stats_start_filemapd()` of libdm is, in Rust.
//!
//! Any dmfilemapd will do, this one or that of lvm2. Unlike libdm's, a start that fails is an
//! error here: a missing program is found out, and a daemon that says why it cannot start is heard.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::{fmt, io};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::compat::LOG_LEVEL_MAX;
use crate::kernel::process::hand_down;
use crate::message::RegionId;
use crate::mode::Mode;

/// Most bytes of a failed program's stderr that [`Error::Failed`] holds; what is beyond is cut.
pub const STDERR_MAX: usize = 16 * 1024;

/// A dmfilemapd to start, for one file and the group that holds its regions.
///
/// ```no_run
/// # use std::path::Path;
/// # use std::os::fd::AsFd;
/// # use dmfilemapd::launch::Launch;
/// # use dmfilemapd::message::RegionId;
/// # use dmfilemapd::mode::Mode;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let path = Path::new("/var/lib/images/vm.img");
/// let file = std::fs::File::open(path)?;
/// Launch { mode: Mode::Path, ..Launch::new(file.as_fd(), RegionId(0), path) }.start()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The file, open for reading. The program inherits it and keeps it open; the caller may close
    /// its own. Close-on-exec may be set, and no other program inherits it because of this.
    pub file: BorrowedFd<'a>,
    /// Id of the group, at most [`RegionId::MAX`].
    pub group: RegionId,
    /// Absolute path of the file.
    pub path: &'a Path,
    /// What to follow; [`Mode::Inode`] unless set.
    pub mode: Mode,
    /// How much the program says, from 0 to [`LOG_LEVEL_MAX`]; 0 unless set.
    pub log_level: u8,
    /// The program; a name without a slash is looked up in `PATH`. `dmfilemapd` unless set.
    pub program: &'a Path,
}

impl<'a> Launch<'a> {
    /// A silent `dmfilemapd`, found in `PATH`, that follows the inode.
    #[must_use]
    pub fn new(file: BorrowedFd<'a>, group: RegionId, path: &'a Path) -> Launch<'a> {
        let program = Path::new("dmfilemapd");
        Launch { file, group, path, mode: Mode::default(), log_level: 0, program }
    }

    /// Starts it as a daemon, and waits until the process that was started has ended, which is
    /// when the daemon is ready.
    ///
    /// The program inherits the caller's environment, stdin and stdout. Its stderr is caught for
    /// the error at log level 0; above that it is the caller's, as it is where the daemon writes
    /// its log.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn start(&self) -> Result<(), Error> {
        let mut command = self.command(false)?;
        let caught = if self.log_level == 0 {
            let caught = catch_stderr(&mut command);
            Some(caught.map_err(|source| self.failed_to("catch the stderr of", source))?)
        } else {
            None
        };
        let status = self.spawn(&mut command)?.wait();
        let status = status.map_err(|source| self.failed_to("wait for", source))?;
        if status.success() {
            return Ok(());
        }
        let stderr = caught.as_ref().map(text).unwrap_or_default();
        Err(Error::Failed { program: self.program.to_owned(), status, stderr })
    }

    /// Starts it in the foreground: it becomes no daemon, and the caller's environment, stdin,
    /// stdout and stderr are its own. It goes on when the child is dropped.
    ///
    /// # Errors
    ///
    /// See [`Error`]; never [`Error::Failed`].
    pub fn start_foreground(&self) -> Result<Child, Error> {
        self.spawn(&mut self.command(true)?)
    }

    fn command(&self, foreground: bool) -> Result<Command, Error> {
        if !self.path.is_absolute() {
            return Err(Error::RelativePath(self.path.to_owned()));
        }
        if self.log_level > LOG_LEVEL_MAX {
            return Err(Error::LogLevel(self.log_level));
        }
        if self.group > RegionId::MAX {
            return Err(Error::Group(self.group));
        }
        let mut command = Command::new(self.program);
        let fd = hand_down(&mut command, self.file)
            .map_err(|source| self.failed_to("pass the file to", source))?;
        command.arg(fd.to_string()).arg(self.group.to_string()).arg(self.path);
        command.arg(self.mode.as_str()).arg(if foreground { "1" } else { "0" });
        command.arg(self.log_level.to_string());
        Ok(command)
    }

    fn spawn(&self, command: &mut Command) -> Result<Child, Error> {
        command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound { program: self.program.to_owned() },
            _ => self.failed_to("start", source),
        })
    }

    fn failed_to(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io { doing, program: self.program.to_owned(), source }
    }
}

/// Not by a pipe: who reads one has to choose between a program that waits because the pipe is full
/// and a daemon that never closes it.
fn catch_stderr(command: &mut Command) -> io::Result<File> {
    let file = File::from(memfd_create("stderr", MFdFlags::MFD_CLOEXEC)?);
    command.stderr(file.try_clone()?);
    Ok(file)
}

/// What the program wrote, as far as it can be read.
fn text(stderr: &File) -> String {
    let mut bytes = vec![0; STDERR_MAX];
    let len = stderr.read_at(&mut bytes, 0).unwrap_or(0); // the status says enough
    String::from_utf8_lossy(&bytes[..len]).trim_end().to_owned()
}

/// Why no dmfilemapd was started.
#[derive(Debug)]
pub enum Error {
    /// The path of the file is not absolute.
    RelativePath(PathBuf),
    /// The log level is above [`LOG_LEVEL_MAX`].
    LogLevel(u8),
    /// The group id is above [`RegionId::MAX`].
    Group(RegionId),
    /// There is no such program.
    NotFound {
        /// As it was asked for.
        program: PathBuf,
    },
    /// The kernel refused.
    Io {
        /// What was tried, before the program's name.
        doing: &'static str,
        /// As it was asked for.
        program: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The program was started and said that it failed.
    Failed {
        /// As it was asked for.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to stderr, without blanks at the end and at most [`STDERR_MAX`] bytes of
        /// it; nothing above log level 0, when stderr is the caller's.
        stderr: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::RelativePath(path) => {
                write!(f, "the path {} is relative, which says nothing ", path.display())?;
                f.write_str("to a daemon; give an absolute path")
            }
            Error::LogLevel(level) => {
                write!(f, "there is no log level {level}; give 0 to {LOG_LEVEL_MAX}")
            }
            Error::Group(id) => {
                write!(f, "there is no group id {id}; give 0 to {}", RegionId::MAX)
            }
            Error::NotFound { program } if has_slash(program) => {
                write!(f, "there is no program {}; install dmfilemapd there", program.display())
            }
            Error::NotFound { program } => {
                let program = program.display();
                write!(f, "there is no {program} in PATH; install it, or give its path")
            }
            Error::Io { doing, program, .. } => write!(f, "cannot {doing} {}", program.display()),
            Error::Failed { program, status, stderr } => {
                write!(f, "{} failed to start ({status})", program.display())?;
                if stderr.is_empty() { Ok(()) } else { write!(f, ": {stderr}") }
            }
        }
    }
}

fn has_slash(program: &Path) -> bool {
    program.as_os_str().as_bytes().contains(&b'/')
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
