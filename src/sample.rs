//! One look at one file.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc;

use crate::dm::Device;
use crate::extent::{Extent, Extents};
use crate::kernel::fiemap::{self, Mapped, Pages};
use crate::kernel::inode;
use crate::place::is_realtime;
use crate::sight::{Map, Sight, Stamp};

/// How a file is reached.
#[derive(Clone, Debug)]
pub enum Reach {
    /// Always through this descriptor.
    Inode(Arc<File>),
    /// By its path. An open descriptor is used while it is still the file at the path, and spares
    /// an open and a close per look: on xfs before 6.12 each close, even of a reader, takes from a
    /// concurrent writer the room it has reserved.
    Path(PathBuf, Option<Arc<File>>),
}

/// Extents of one file, at most. A file may grow faster than it is read; this is where a walk
/// gives up.
const EXTENTS_MAX: usize = 1 << 24;

/// Tries to read a map of several pages without the file changing meanwhile.
const TRIES: usize = 3;

/// Looks at a file: the stamp first, then, if it differs from `last` or a map is due anyway, the
/// map. A path that was opened stays open in `reach`.
pub fn look(reach: &mut Reach, last: Option<Stamp>, map_due: bool, pages: &mut Pages) -> Sight {
    match reach {
        Reach::Inode(file) => look_at_inode(file, last, map_due, pages),
        Reach::Path(path, open) => look_at_path(path, open, last, map_due, pages),
    }
}

fn look_at_inode(file: &File, last: Option<Stamp>, map_due: bool, pages: &mut Pages) -> Sight {
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(error) => return Sight::Failed(format!("stat: {error}")),
    };
    if metadata.nlink() == 0 && !used_elsewhere(file, &metadata) {
        return Sight::Unused;
    }
    look_at_open(file, stamp(&metadata), last, map_due, pages)
}

fn look_at_path(
    path: &Path,
    open: &mut Option<Arc<File>>,
    last: Option<Stamp>,
    map_due: bool,
    pages: &mut Pages,
) -> Sight {
    for _ in 0..TRIES {
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) => {
                *open = None;
                return absent_or_failed(&error);
            }
        };
        if !metadata.is_file() {
            *open = None;
            return Sight::Absent(format!("there is {} at the path", kind(&metadata)));
        }
        let stamp = stamp(&metadata);
        if last == Some(stamp) && !map_due {
            return Sight::Same;
        }
        match held(open, path, &metadata) {
            // What took the place need not be what was checked at the start.
            Ok(Some(file)) if is_realtime(&file) => {
                *open = None;
                return Sight::Absent("there is a realtime file of xfs at the path".to_owned());
            }
            Ok(Some(file)) => return look_at_open(&file, stamp, last, map_due, pages),
            Ok(None) => {} // it was replaced in between: look again
            Err(error) => return absent_or_failed(&error),
        }
    }
    Sight::Failed("the file is replaced faster than it can be opened".to_owned())
}

fn absent_or_failed(error: &io::Error) -> Sight {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Sight::Absent("there is no file at the path".to_owned())
        }
        _ => Sight::Failed(format!("open: {error}")),
    }
}

/// The open file that `metadata` describes; `None` if another one is at the path by now.
fn held(
    open: &mut Option<Arc<File>>,
    path: &Path,
    metadata: &Metadata,
) -> io::Result<Option<Arc<File>>> {
    let same = |file: &File| {
        file.metadata()
            .is_ok_and(|held| (held.dev(), held.ino()) == (metadata.dev(), metadata.ino()))
    };
    if open.as_deref().is_none_or(|file| !same(file)) {
        let opened = open_regular(path);
        *open = None; // only now, so that the number of the inode it holds cannot be given anew
        let opened = Arc::new(opened?);
        if !same(&opened) {
            return Ok(None);
        }
        *open = Some(opened);
    }
    Ok(open.clone())
}

/// Opens a regular file for looking at it, without waiting for anything and without side effects.
///
/// # Errors
///
/// Of the kernel, or `InvalidInput` if there is something else at the path.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // A path may become a FIFO (whose open waits), a terminal or a device between two looks.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(file);
    }
    let kind = kind(&metadata);
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}, not a regular file")))
}

/// What a path leads to, with its article.
pub fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => "a regular file",
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () if kind.is_block_device() => "a block device",
        () if kind.is_char_device() => "a character device",
        () => "something unknown",
    }
}

/// The stamp that `stat` gives.
pub fn stamp(metadata: &Metadata) -> Stamp {
    let nanoseconds =
        |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Stamp {
        device: device(metadata),
        inode: metadata.ino(),
        size: metadata.size(),
        blocks: metadata.blocks(),
        modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
        changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
    }
}

/// The device of the file's filesystem.
pub fn device(metadata: &Metadata) -> Device {
    let number = metadata.dev();
    Device { major: libc::major(number), minor: libc::minor(number) }
}

fn look_at_open(
    file: &File,
    stamp: Stamp,
    last: Option<Stamp>,
    map_due: bool,
    pages: &mut Pages,
) -> Sight {
    if last == Some(stamp) && !map_due {
        return Sight::Same;
    }
    match read_map(file, pages) {
        Ok(map) => Sight::Mapped(stamp, map),
        Err(error) => Sight::Failed(format!("reading the extents (FIEMAP): {error}")),
    }
}

/// Reads a file's map.
///
/// A map of one page comes from one call, under the inode's lock where the kernel takes it. One of
/// several pages counts only if the stamp is the same before and after; after a few tries it is
/// given all the same, as torn.
///
/// # Errors
///
/// Of [`Pages::read`], and `FileTooLarge` for a file of more than 2^24 extents.
pub fn read_map(file: &File, pages: &mut Pages) -> io::Result<Map> {
    let mut walk = Walk::default();
    for _ in 0..TRIES {
        let before = file.metadata()?;
        walk = Walk::default();
        walk.all(file, pages)?;
        if walk.pages == 1 || stamp(&before) == stamp(&file.metadata()?) {
            return Ok(walk.into_map(false));
        }
    }
    Ok(walk.into_map(true))
}

#[derive(Default)]
struct Walk {
    extents: Vec<Extent>,
    pages: usize,
    pending: bool,
    shared: bool,
}

impl Walk {
    fn all(&mut self, file: &File, pages: &mut Pages) -> io::Result<()> {
        let mut start = 0;
        loop {
            let page = pages.read(file, start)?;
            self.pages += 1;
            for mapped in page {
                self.take(mapped);
            }
            if self.extents.len() > EXTENTS_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            // A file that shrinks meanwhile shows no last extent; one that grows may never.
            let Some(last) = page.last().filter(|last| last.flags & fiemap::LAST == 0) else {
                return Ok(());
            };
            match last.logical.checked_add(last.length) {
                Some(end) if end > start => start = end,
                _ => return Ok(()), // no progress
            }
        }
    }

    fn take(&mut self, mapped: &Mapped) {
        const NO_ADDRESS: u32 = fiemap::UNKNOWN | fiemap::DELALLOC;
        const NOT_BLOCKS: u32 = fiemap::NOT_ALIGNED | fiemap::DATA_INLINE | fiemap::DATA_TAIL;
        let is = |flags: u32| mapped.flags & flags != 0;
        self.shared |= is(fiemap::SHARED);
        // f2fs reports what it has only reserved at address 0, where no filesystem keeps data.
        if is(NO_ADDRESS | NOT_BLOCKS) || mapped.physical == 0 {
            self.pending = true;
        } else if is(fiemap::ENCODED) && !is(fiemap::DATA_ENCRYPTED) {
            // Compressed: the length is that of the data, not of what lies on the device.
        } else if let Some(extent) = Extent::of_bytes(mapped.physical, mapped.length) {
            self.extents.push(extent);
        }
    }

    fn into_map(self, torn: bool) -> Map {
        let extents: Extents = self.extents.into_iter().collect();
        let fingerprint = extents.fingerprint();
        Map { extents, fingerprint, pending: self.pending, shared: self.shared, torn }
    }
}

/// Whether anyone else has the unlinked file open or mapped.
fn used_elsewhere(file: &File, metadata: &Metadata) -> bool {
    match inode::is_last_opener(file) {
        Ok(last) => !last,
        // No leases on this filesystem, or not for us: look who has it open. This does not see who
        // has it mapped only.
        Err(_) => open_in_some_process(metadata),
    }
}

fn open_in_some_process(wanted: &Metadata) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let me = std::process::id().to_string();
    let is_other = |name: &std::ffi::OsStr| {
        name != me.as_str() && name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
    };
    let others = processes.flatten().filter(|entry| is_other(&entry.file_name()));
    let files =
        others.filter_map(|entry| std::fs::read_dir(entry.path().join("fd")).ok()).flatten();
    files
        .flatten()
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .any(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(physical: u64, length: u64, flags: u32) -> Mapped {
        Mapped { physical, length, flags, ..Mapped::default() }
    }

    fn check(mapped: Mapped, extents: &[Extent], pending: bool, shared: bool) {
        let mut walk = Walk::default();
        walk.take(&mapped);
        let map = walk.into_map(false);
        assert_eq!((map.extents.as_slice(), map.pending, map.shared), (extents, pending, shared));
    }

    #[test]
    fn only_what_has_an_address_is_mapped() {
        let extent = Extent::new(8, 16).unwrap();
        check(mapped(4096, 8192, fiemap::LAST), &[extent], false, false);
        check(mapped(4096, 8192, 0x800), &[extent], false, false); // unwritten
        check(mapped(4096, 8192, fiemap::SHARED), &[extent], false, true);
        check(
            mapped(4096, 8192, fiemap::ENCODED | fiemap::DATA_ENCRYPTED),
            &[extent],
            false,
            false,
        );
        check(mapped(4096, 8192, fiemap::ENCODED), &[], false, false);
        check(mapped(0, 8192, fiemap::DELALLOC | fiemap::UNKNOWN), &[], true, false);
        check(mapped(0, 8192, 0x800), &[], true, false); // f2fs: reserved
        check(mapped(301_864, 6, fiemap::DATA_INLINE | fiemap::NOT_ALIGNED), &[], true, false);
    }

    #[test]
    fn a_path_that_is_no_file_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let look = |path: &Path| {
            let mut reach = Reach::Path(path.to_owned(), None);
            super::look(&mut reach, None, true, &mut Pages::default())
        };
        let absent = |why: &str| Sight::Absent(why.to_owned());
        assert_eq!(look(&path), absent("there is no file at the path"));
        assert_eq!(look(&path.join("y")), absent("there is no file at the path"));
        assert_eq!(look(folder.path()), absent("there is a directory at the path"));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(look(&path), absent("there is a FIFO at the path"));
    }

    #[test]
    fn a_file_that_is_replaced_by_a_rename_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, next) = (folder.path().join("x"), folder.path().join("next"));
        std::fs::write(&path, "old").unwrap();
        std::fs::write(&next, "new").unwrap();
        let mut open = None;
        let metadata = || std::fs::metadata(&path).unwrap();
        let first = held(&mut open, &path, &metadata()).unwrap().unwrap();
        let again = held(&mut open, &path, &metadata()).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &again), "kept open");
        let before = metadata();
        std::fs::rename(&next, &path).unwrap();
        open = None;
        assert!(
            held(&mut open, &path, &before).unwrap().is_none(),
            "no longer the one of the stat"
        );
        assert!(held(&mut open, &path, &metadata()).unwrap().is_some());
    }

    #[test]
    fn an_unlinked_file_is_used_as_long_as_somebody_else_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "data").unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let other = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let look = || {
            let mut reach = Reach::Inode(file.clone());
            super::look(&mut reach, None, false, &mut Pages::default())
        };
        assert_ne!(look(), Sight::Unused);
        drop(other);
        assert_eq!(look(), Sight::Unused);
    }
}
