//! The command line of lvm2's dmfilemapd, which libdm writes and people type.
//!
//! ```text
//! dmfilemapd FD GROUP_ID PATH MODE [FOREGROUND [LOG_LEVEL]]
//! dmfilemapd 3 0 /var/lib/images/vm.img inode 0 0
//! ```

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::{fmt, io};

use crate::message::RegionId;
use crate::mode::{Mode, UnknownMode};

/// The highest log level of lvm2's daemon.
pub const LOG_LEVEL_MAX: u8 = 3;

/// What to print below a [`UsageError`]; ends with a line end.
#[must_use]
pub fn usage() -> &'static str {
    "\
Usage: dmfilemapd FD GROUP_ID PATH MODE [FOREGROUND [LOG_LEVEL]]
  FD          number of an inherited file descriptor, open on the file
  GROUP_ID    id of the group that holds the file's regions
  PATH        the file's path
  MODE        what to follow: inode or path
  FOREGROUND  1 to stay in the foreground, 0 (as without it) to become a daemon
  LOG_LEVEL   0 (as without it) to 3, the most talkative
Usually started by `dmstats create --filemap FILE`, which makes the group.
"
}

/// Whether the arguments, without the program's name, are meant as lvm2's.
///
/// That is so when the first is all ASCII digits, even if it is no good as a number, or the fourth
/// is a mode: no subcommand looks like that, so the complaint should be about a descriptor.
#[must_use]
pub fn is_legacy(args: &[OsString]) -> bool {
    let Some(first) = args.first() else { return false };
    let verbs = [
        "run",
        "update",
        "explain",
        "metrics",
        "totals",
        "top",
        "check",
        "gc",
        "status",
        "add",
        "remove",
        "reload",
        "stop",
        "completions",
        "help",
    ];
    let native =
        verbs.iter().any(|word| first == word) || first.as_encoded_bytes().starts_with(b"--");
    let has_mode = args.get(3).is_some_and(|mode| mode == "inode" || mode == "path");
    is_digits(first) || !native && has_mode && args.len() <= 6
}

fn is_digits(word: &OsStr) -> bool {
    let bytes = word.as_encoded_bytes();
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit)
}

/// A command line in lvm2's form, as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Legacy {
    /// Number of the descriptor on which the file is open, from 0 on. Nothing is known yet of
    /// whether there is such a descriptor.
    pub fd: RawFd,
    /// Id of the group, at most [`RegionId::MAX`].
    pub group: RegionId,
    /// The file's path, any bytes but none at all; may be relative, see [`Legacy::resolve`].
    pub path: PathBuf,
    /// What to follow.
    pub mode: Mode,
    /// Whether to stay in the foreground; not so if the argument is missing.
    pub foreground: bool,
    /// How much to say, from 0 to [`LOG_LEVEL_MAX`]; 0 if the argument is missing.
    pub log_level: u8,
}

impl Legacy {
    /// Reads the arguments that follow the program's name.
    ///
    /// Numbers are decimal digits alone: no sign, no blank, nothing that wraps around. Leading
    /// zeros of the descriptor and the group do no harm; the last two arguments are one digit.
    ///
    /// # Errors
    ///
    /// The first argument that is not what it should be, or their number if that is not 4 to 6.
    pub fn parse(args: &[OsString]) -> Result<Legacy, UsageError> {
        let (fd, group, path, mode, rest) = match args {
            [fd, group, path, mode, rest @ ..] if rest.len() <= 2 => (fd, group, path, mode, rest),
            _ => return Err(UsageError::Count(args.len())),
        };
        let fd = number(fd)
            .and_then(|number| RawFd::try_from(number).ok())
            .ok_or_else(|| bad("file descriptor", fd, "a decimal number from 0 to 2147483647"))?;
        let group = number(group)
            .map(RegionId)
            .filter(|id| *id <= RegionId::MAX)
            .ok_or_else(|| bad("group id", group, "a decimal number from 0 to 2147483647"))?;
        if path.is_empty() {
            return Err(bad("path", path, "the path of a file"));
        }
        let mode = mode.to_string_lossy().parse().map_err(UsageError::Mode)?;
        let foreground = digit("foreground flag", rest.first(), 1, "0 or 1")? == 1;
        let log_level = digit("log level", rest.get(1), LOG_LEVEL_MAX, "0, 1, 2 or 3")?;
        Ok(Legacy { fd, group, path: PathBuf::from(path), mode, foreground, log_level })
    }

    /// Makes the path absolute, below the current directory if it was relative.
    ///
    /// Call it before becoming a daemon, which changes the current directory. An absolute path
    /// stays as it is, byte for byte, and no symlink is followed in either.
    ///
    /// # Errors
    ///
    /// Those of `getcwd`: the current directory is gone.
    pub fn resolve(self) -> io::Result<Legacy> {
        if self.path.is_absolute() {
            return Ok(self);
        }
        Ok(Legacy { path: std::path::absolute(&self.path)?, ..self })
    }
}

fn number(word: &OsStr) -> Option<u32> {
    // Digits first, because parse() would take a plus sign.
    word.to_str().filter(|_| is_digits(word))?.parse().ok()
}

/// Reads one digit up to `max`; a missing argument is 0.
fn digit(
    what: &'static str,
    word: Option<&OsString>,
    max: u8,
    wanted: &'static str,
) -> Result<u8, UsageError> {
    let Some(word) = word else { return Ok(0) };
    match word.as_encoded_bytes() {
        [digit @ b'0'..=b'9'] if digit - b'0' <= max => Ok(digit - b'0'),
        _ => Err(bad(what, word, wanted)),
    }
}

fn bad(what: &'static str, given: &OsStr, wanted: &'static str) -> UsageError {
    UsageError::Argument { what, given: given.to_owned(), wanted }
}

/// What is wrong with a command line in lvm2's form; [`usage`] is what to print below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsageError {
    /// So many arguments were given, and not 4 to 6.
    Count(usize),
    /// One argument is not what it should be.
    Argument {
        /// Which argument.
        what: &'static str,
        /// As it was given.
        given: OsString,
        /// What it should be.
        wanted: &'static str,
    },
    /// The fourth argument is no mode.
    Mode(UnknownMode),
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsageError::Count(count) => {
                write!(f, "dmfilemapd takes 4 to 6 arguments and got {count}; see the usage")
            }
            UsageError::Argument { what, given, wanted } => {
                let given = given.to_string_lossy();
                write!(f, "the {what} {given:?} is not valid; give {wanted}")
            }
            UsageError::Mode(unknown) => write!(f, "{unknown}; give one of them"),
        }
    }
}

impl std::error::Error for UsageError {}
