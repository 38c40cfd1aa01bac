//! Why an update did not succeed.

use std::{fmt, io};

use crate::message::{RegionId, Unreadable};

/// Why an update did not succeed. The group is as it was, or already as it should be.
#[derive(Debug)]
pub enum Error {
    /// No descriptor on the device bears the mark: somebody deleted the group.
    Gone,
    /// Another process has taken the group over.
    TakenOver,
    /// A region of the grid is gone or is not what it was: somebody deleted it.
    GridGone,
    /// Another process has taken the grid over.
    GridTakenOver,
    /// The id names no group that LVM2 would accept.
    NoSuchGroup(RegionId),
    /// Another device answered than at first: it was replaced under the same number.
    Replaced,
    /// Somebody changed the group, or took one of its ids, while the update was under way.
    Disturbed,
    /// Even with all its regions side by side the group's descriptor would be longer than LVM2
    /// reads, so many ids in between belong to others. Bytes needed, bytes there are.
    Scattered(usize, usize),
    /// A program_id or an alias that no client could read from a listing; the word.
    Unlistable(Vec<u8>),
    /// Another process is at work on the device, and one of the two has to be alone: see
    /// [`Error::is_busy`]. Or turns cannot be had at all.
    NoTurn(io::Error),
    /// The kernel said what the protocol does not know.
    Unreadable(Unreadable),
    /// The kernel refused a message.
    Message {
        /// The message.
        text: Vec<u8>,
        /// Its errno.
        source: io::Error,
    },
}

impl Error {
    /// Whether the device does not exist (any more): `ENXIO`, or another one has its number.
    #[must_use]
    pub fn is_no_device(&self) -> bool {
        const ENXIO: i32 = 6;
        match self {
            Error::Replaced => true,
            Error::Message { source, .. } => source.raw_os_error() == Some(ENXIO),
            _ => false,
        }
    }

    /// Whether the region does not exist (any more): `ENOENT`.
    #[must_use]
    pub fn is_no_region(&self) -> bool {
        let Error::Message { source, .. } = self else { return false };
        source.kind() == io::ErrorKind::NotFound
    }

    /// Whether another process has a turn at the device: the same may succeed later.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Error::NoTurn(source) if source.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the kernel does not understand the message: `EINVAL`, of which it logs each, or
    /// `EOPNOTSUPP`, from devices that have no statistics (request-based ones before Linux 4.2).
    #[must_use]
    pub fn is_not_understood(&self) -> bool {
        let Error::Message { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Gone => f.write_str("the group is gone: somebody deleted it"),
            Error::TakenOver => f.write_str("another dmfilemapd has taken the group over"),
            Error::GridGone => f.write_str("the grid is gone: somebody deleted its regions"),
            Error::GridTakenOver => f.write_str("another dmfilemapd has taken the grid over"),
            Error::NoSuchGroup(id) => {
                write!(f, "there is no group {id}: no region {id} that leads a group")
            }
            Error::Replaced => f.write_str("another device has taken over the number"),
            Error::Disturbed => f.write_str("somebody else changed the group meanwhile"),
            Error::Scattered(needed, room) => write!(
                f,
                "the group's descriptor would be {needed} bytes long and dmstats reads {room}: \
                 too many regions of others lie between"
            ),
            Error::Unlistable(word) => {
                write!(f, "\"{}\" would make the group unreadable", word.escape_ascii())
            }
            Error::NoTurn(_) if self.is_busy() => {
                f.write_str("another dmfilemapd is changing groups of this device; try again")
            }
            Error::NoTurn(source) => {
                write!(f, "the control node of device-mapper cannot be locked: {source}")
            }
            Error::Unreadable(reply) => reply.fmt(f),
            Error::Message { text, source } => write!(f, "{}: {source}", text.escape_ascii()),
        }
    }
}

impl std::error::Error for Error {}

impl From<Unreadable> for Error {
    fn from(reply: Unreadable) -> Error {
        Error::Unreadable(reply)
    }
}
