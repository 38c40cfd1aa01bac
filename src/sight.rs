//! What a look at a file can give.

use std::num::NonZeroU64;

use xxhash_rust::xxh3::xxh3_64;

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

/// What is remembered of a stamp, in two thirds of its size: enough to tell another one from it.
/// Blocks and times are hashed. Two that differ in these alone are taken for the same with a
/// chance of 1 in 2^63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imprint {
    /// As in the stamp.
    pub device: Device,
    /// As in the stamp.
    pub inode: u64,
    /// As in the stamp.
    pub size: u64,
    rest: NonZeroU64, // which makes an `Option` of this as small
}

impl Stamp {
    /// What there is to remember of it.
    #[must_use]
    pub fn imprint(&self) -> Imprint {
        let mut rest = [0; 24];
        rest[..8].copy_from_slice(&self.blocks.to_le_bytes());
        rest[8..16].copy_from_slice(&self.modified.to_le_bytes());
        rest[16..].copy_from_slice(&self.changed.to_le_bytes());
        let rest = NonZeroU64::MIN | xxh3_64(&rest);
        Imprint { device: self.device, inode: self.inode, size: self.size, rest }
    }
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

/// What one look at a file gave, where that is more than another stamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The map was read. The stamp, of which this is, was taken before it, so that a change after
    /// the stamp shows in the next one.
    Mapped(Imprint, Map),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_differs_in_a_stamp_differs_in_its_imprint() {
        let device = Device { major: 253, minor: 0 };
        let stamp = Stamp { device, inode: 1, size: 2, blocks: 3, modified: 4, changed: 5 };
        assert_eq!(stamp.imprint(), stamp.imprint());
        for other in [
            Stamp { device: Device { minor: 1, ..device }, ..stamp },
            Stamp { inode: 2, ..stamp },
            Stamp { size: 3, ..stamp },
            Stamp { blocks: 4, ..stamp },
            Stamp { modified: 3, ..stamp },
            Stamp { changed: 4, ..stamp },
            Stamp { modified: 5, changed: 4, ..stamp },
        ] {
            assert_ne!(other.imprint(), stamp.imprint(), "{other:?}");
        }
    }

    #[test]
    fn none_takes_no_room_of_its_own() {
        assert_eq!(size_of::<Option<Imprint>>(), 32);
    }
}
