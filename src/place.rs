//! Where a file lies, and whether its extents are addresses of a device-mapper device.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use nix::errno::Errno;

use crate::dm::Device;
use crate::kernel::control::device_mapper_major;
use crate::kernel::fiemap::Pages;
use crate::kernel::inode;
use crate::sample;

/// A filesystem, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filesystem {
    /// ext2, ext3 or ext4.
    Ext,
    /// xfs.
    Xfs,
    /// f2fs, which moves extents silently and often.
    F2fs,
    /// btrfs, whose addresses are of its own space.
    Btrfs,
    /// bcachefs, which may have many devices.
    Bcachefs,
    /// overlayfs, which shows files of others.
    Overlay,
    /// Another one, by the number that `statfs` gives it.
    Other(i64),
}

impl Filesystem {
    /// By the number that `statfs` gives (`include/uapi/linux/magic.h`).
    #[must_use]
    pub fn from_magic(magic: i64) -> Filesystem {
        match magic {
            0xEF53 => Filesystem::Ext,
            0x5846_5342 => Filesystem::Xfs,
            0xF2F5_2010 => Filesystem::F2fs,
            0x9123_683E => Filesystem::Btrfs,
            0xCA45_1A4E => Filesystem::Bcachefs,
            0x794C_7630 => Filesystem::Overlay,
            other => Filesystem::Other(other),
        }
    }

    /// Whether extents move so often, and without a trace in the stamp, that the map has to be
    /// read at every look.
    #[must_use]
    pub fn is_restless(self) -> bool {
        self == Filesystem::F2fs
    }

    /// Whether it may keep a file's data on another device than `stat` names: xfs does so with
    /// realtime files.
    #[must_use]
    pub fn has_realtime(self) -> bool {
        self == Filesystem::Xfs
    }
}

/// The file's surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What `stat` names as its device.
    pub device: Device,
    /// What kind of filesystem it lies on.
    pub filesystem: Filesystem,
    /// Its inode number.
    pub inode: u64,
    /// Its inode's generation, 0 where the filesystem has none: numbers are used again.
    pub generation: u32,
}

/// Why the extents of a file cannot be counted.
#[derive(Debug)]
pub enum Obstacle {
    /// There is something else than a regular file.
    NotRegular(&'static str),
    /// Its addresses are not those of its device; why, and what would work.
    Elsewhere(&'static str),
    /// The filesystem cannot say where the file lies.
    NoFiemap,
    /// The device is driven by something else.
    NotDeviceMapper(Device),
    /// It could not be found out.
    Failed(&'static str, io::Error),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NotRegular(kind) => write!(f, "it is {kind}, not a regular file"),
            Obstacle::Elsewhere(why) => f.write_str(why),
            Obstacle::NoFiemap => f.write_str(
                "its filesystem cannot say where a file lies on the device (it has no FIEMAP); \
                 ext4, xfs and f2fs can",
            ),
            Obstacle::NotDeviceMapper(device) => write!(
                f,
                "it lies on {device}, which is not a device-mapper device; only LVM, LUKS and \
                 other device-mapper devices have statistics of regions"
            ),
            Obstacle::Failed(doing, error) => write!(f, "{doing}: {error}"),
        }
    }
}

impl std::error::Error for Obstacle {}

/// Finds out where an open file lies.
///
/// # Errors
///
/// It is no regular file, or the kernel does not say.
pub fn locate(file: &File) -> Result<Place, Obstacle> {
    let metadata = file.metadata().map_err(|error| Obstacle::Failed("stat", error))?;
    if !metadata.is_file() {
        return Err(Obstacle::NotRegular(sample::kind(&metadata)));
    }
    let statfs = nix::sys::statfs::fstatfs(file);
    let statfs = statfs.map_err(|errno| Obstacle::Failed("statfs", errno.into()))?;
    Ok(Place {
        device: sample::device(&metadata),
        #[allow(clippy::unnecessary_cast, clippy::cast_lossless)] // its width differs by target
        filesystem: Filesystem::from_magic(statfs.filesystem_type().0 as i64),
        inode: metadata.ino(),
        generation: inode::generation(file).unwrap_or(0),
    })
}

/// What makes the addresses of the file's extents useless, whatever its device is.
#[must_use]
pub fn obstacle_of_addresses(file: &File, place: &Place) -> Option<Obstacle> {
    let elsewhere = match place.filesystem {
        Filesystem::Btrfs => Some(
            "btrfs gives addresses of its own space, which it spreads over its devices; they are \
             not sectors of a device",
        ),
        Filesystem::Bcachefs => {
            Some("bcachefs gives addresses without saying on which of its devices they are")
        }
        Filesystem::Overlay => Some(
            "an overlayfs shows it, and does not say on which device it lies; name the file by its \
             path in the layer below (upperdir or lowerdir in /proc/self/mountinfo)",
        ),
        filesystem if filesystem.has_realtime() && is_realtime(file) => Some(
            "it is a realtime file of xfs: its addresses are of the realtime device, while stat \
             names the data device",
        ),
        _ => None,
    };
    if let Some(why) = elsewhere {
        return Some(Obstacle::Elsewhere(why));
    }
    match Pages::default().read(file, 0) {
        Ok(_) => None,
        Err(error) => Some(match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL => Obstacle::NoFiemap,
            _ => Obstacle::Failed("reading the extents (FIEMAP)", error),
        }),
    }
}

/// Whether the file's data is on the realtime device of its xfs filesystem.
pub fn is_realtime(file: &File) -> bool {
    inode::xflags(file).is_some_and(|flags| flags & inode::XFLAG_REALTIME != 0)
}

/// Finds out where the file lies and makes sure that its I/O can be counted there.
///
/// # Errors
///
/// The first thing that is in the way.
pub fn require(file: &File) -> Result<Place, Obstacle> {
    let place = locate(file)?;
    if let Some(obstacle) = obstacle_of_addresses(file, &place) {
        return Err(obstacle);
    }
    let major = device_mapper_major().map_err(|e| Obstacle::Failed("reading /proc/devices", e))?;
    if major == Some(place.device.major) {
        return Ok(place);
    }
    Err(Obstacle::NotDeviceMapper(place.device))
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// The name of its filesystem.
    pub kind: String,
    /// What is mounted, as `/dev/mapper/vg-home`.
    pub source: String,
}

/// The mount through which a path is reached: the one with the longest mount point above it, and
/// of these the last, which hides the others.
///
/// ```text
/// 36 35 253:0 / /srv rw,noatime shared:1 - ext4 /dev/mapper/vg-srv rw
/// ```
#[must_use]
pub fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let point = PathBuf::from(unescape(front.split(' ').nth(4)?));
        let mut back = back.split(' ');
        Some(Mount { point, kind: back.next()?.to_owned(), source: unescape(back.next()?) })
    });
    let above = mounts.filter(|mount| path.starts_with(&mount.point));
    above.max_by_key(|mount| mount.point.components().count())
}

/// The kernel writes blanks, line ends and backslashes as three octal digits.
fn unescape(word: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(word.to_owned(), |word, (code, text)| word.replace(code, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_a_path_is_the_nearest_and_the_last() {
        let mountinfo = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 253:0 / /srv rw shared:1 - ext4 /dev/mapper/a rw
31 30 253:1 / /srv rw - xfs /dev/mapper/b\\040c rw
32 22 0:5 / /srv2\\040x rw - tmpfs none rw
nonsense";
        let of = |path: &str| mount_of(mountinfo, Path::new(path)).unwrap();
        let (kind, source) = ("xfs".to_owned(), "/dev/mapper/b c".to_owned());
        assert_eq!(of("/srv/db/x"), Mount { point: "/srv".into(), kind, source });
        assert_eq!(of("/srv2/x").source, "/dev/vda");
        assert_eq!(of("/srv2 x/y").kind, "tmpfs");
        assert_eq!(mount_of("", Path::new("/x")), None);
    }

    #[test]
    fn what_is_no_file_has_no_place() {
        let folder = tempfile::tempdir().unwrap();
        let error = locate(&File::open(folder.path()).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "it is a directory, not a regular file");
    }

    #[test]
    fn a_filesystem_without_fiemap_is_told_from_a_wrong_device() {
        let file = File::open("/proc/self/status").unwrap();
        let place = locate(&file).unwrap();
        assert!(matches!(obstacle_of_addresses(&file, &place), Some(Obstacle::NoFiemap)));
    }
}
