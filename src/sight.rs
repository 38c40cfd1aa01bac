//! What a look at a file can give.

use crate::dm::Device;
use crate::extent::{Extents, Fingerprint};

/// What `stat` says of a file, as far as a change of its extents may show in it.
///
/// Compared as a whole and for equality only: clocks step back, and a file can be replaced by an
/// older one. Two stamps may be equal though something changed between them: filesystems stamp
/// with the time of the last clock tick, and defragmenting leaves no trace at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The device that the filesystem lies on.
    pub device: Device,
    /// The inode number.
    pub inode: u64,
    /// Bytes in the file.
    pub size: u64,
    /// Blocks of 512 bytes that the file takes, as far as the filesystem counts them.
    pub blocks: u64,
    /// Nanoseconds since 1970 of the last change of its data, which anybody may set; modulo 2^64.
    pub modified: i64,
    /// Nanoseconds since 1970 of the last change of its inode, which nobody may set; likewise.
    pub changed: i64,
}

/// A file's extents, and how far they can be relied upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// What has an address on the device.
    pub extents: Extents,
    /// What of that is reserved and was never written: it has its place before its data.
    pub blank: Extents,
    /// Of the extents.
    pub fingerprint: Fingerprint,
    /// Something of the file has no address yet and may get one without a change of the stamp.
    pub pending: bool,
    /// Something of the file is shared, so that the next write may move it without a change of
    /// the stamp.
    pub shared: bool,
    /// Sectors of extents that are shared.
    pub shared_sectors: u64,
    /// The file kept changing while it was read: parts of the map may be of different moments.
    pub torn: bool,
}

/// What one look at a file gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The stamp is the one of the last map, and no map was due.
    Same,
    /// The stamp, this one, is not that of the last map; the map was not to be read.
    Changed(Stamp),
    /// The map was read. The stamp was taken before it, so that a change after the stamp shows in
    /// the next one.
    Mapped(Stamp, Map),
    /// There is no file at the path (any more), or nothing that can be followed there.
    Absent {
        /// What there is.
        found: String,
        /// The devices of the folders that the path leads through, one for each link on the way and
        /// one at its end. The file's is none of them if its filesystem is not mounted there.
        beside: Vec<Device>,
    },
    /// The file is unlinked and nobody else has it open.
    Unused,
    /// It is open, and the mount through which it was opened is no more.
    Unmounted,
    /// The file could not be looked at: why.
    Failed(String),
}
