//! One look at one file.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{FileType, Stat, fstat};

use crate::dm::Device;
use crate::extent::{Extent, Extents, List};
use crate::kernel::fiemap::{self, Mapped, Pages};
use crate::kernel::inode;
use crate::mode::Mode;
use crate::mounts::{Lists, Mounts};
use crate::place::is_realtime;
use crate::sight::{Imprint, Map, Sight, Stamp};

/// How a file is reached, besides the path where it was found.
///
/// By its inode: through the descriptor, while there is one; and by the path as long as that leads
/// to the same inode, for want of a descriptor. By its path: what is there, whatever it is.
#[derive(Debug)]
pub struct Reach {
    /// What it is followed by.
    pub mode: Mode,
    /// Which inode was found at the path.
    pub identity: Identity,
    /// It, as it was opened. In path mode it is used while it is still the file at the path: it
    /// spares an open and a close per look, and on xfs before 6.12 each close, even of a reader,
    /// takes from a concurrent writer the room it has reserved.
    pub open: Option<File>,
    /// Through which mount it was opened.
    pub mount: Mount,
    /// Whether its filesystem may keep data on another device, so that what takes its place is
    /// asked for that: [`Filesystem::has_realtime`](crate::place::Filesystem::has_realtime).
    pub realtime: bool,
}

/// The mount through which a file was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mount {
    /// It was not asked for yet.
    Unasked,
    /// One of another mount namespace, or the kernel does not tell.
    Unseen,
    /// The one with this id.
    Seen(u32),
}

/// What tells an inode from all others that its filesystem had or will have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its number, which is given to another one as soon as it is free.
    pub inode: u64,
    /// What differs then; 0 where the filesystem has none.
    pub generation: u32,
}

/// Extents of one file, at most. A file may grow faster than it is read; this is where a walk
/// gives up.
const EXTENTS_MAX: usize = 1 << 24;

/// Links that the kernel follows on the way to a file (`path_resolution(7)`).
const LINKS_MAX: usize = 40;

/// Tries to read a map of several pages without the file changing meanwhile.
const TRIES: usize = 3;

/// Who asks the kernel for a page of a map: as [`Pages::read`].
pub trait Fiemap {
    /// The extents from byte `start` of the file on, or the first of them.
    ///
    /// # Errors
    ///
    /// Those of [`Pages::read`].
    fn read(&mut self, file: &File, start: u64) -> io::Result<&[Mapped]>;
}

impl Fiemap for Pages {
    fn read(&mut self, file: &File, start: u64) -> io::Result<&[Mapped]> {
        Pages::read(self, file, start)
    }
}

/// Takes the file's stamp; `None` if it is that of its last map. Opens nothing, and waits for
/// nobody.
///
/// # Errors
///
/// What there is to see instead, if there is no stamp to be had.
#[allow(clippy::result_large_err)] // it is what a look gives, moved once
pub fn compare(
    path: &Path,
    reach: &Reach,
    last: Option<Imprint>,
) -> Result<Option<Imprint>, Sight> {
    Ok(Some(stat(path, reach)?).filter(|stamp| last != Some(*stamp)))
}

/// Looks at a file: the stamp first, then the map. A file that is opened for it stays open if
/// `keep` says so. `last` is of the stamp of its last map, at which what is open now was looked at.
/// If the stamp was `taken` already, it is not taken again: the older it is, the more shows in the
/// next one.
pub fn look(
    path: &Path,
    reach: &mut Reach,
    last: Option<Imprint>,
    taken: Option<&Imprint>,
    keep: bool,
    pages: &mut dyn Fiemap,
) -> Sight {
    if let Some(file) = reach.held_inode() {
        return match stat_unless(taken, path, reach) {
            Ok(stamp) => look_at_open(file, stamp, pages),
            Err(sight) => sight,
        };
    }
    let sight = look_at_path(path, reach, last, taken, pages);
    if !keep || !matches!(sight, Sight::Mapped(..)) {
        reach.open = None;
    }
    sight
}

impl Reach {
    /// Takes note of the mount through which the file is held open, by its inode. To be called soon
    /// after it was opened: one that is not listed then belongs to another namespace, and whether
    /// it is there still cannot be told.
    pub fn note_mount(&mut self, lists: &Lists) {
        let held = self.held_inode().filter(|_| self.mount == Mount::Unasked);
        if let Some(file) = held {
            let listed = inode::mount_id(file).filter(|id| lists.has(*id));
            self.mount = listed.map_or(Mount::Unseen, Mount::Seen);
        }
    }

    /// Whether the file is held open, by its inode, and the mount through which it was opened is no
    /// more: `mounts` are what there is since the last look, or longer.
    pub fn is_detached(&mut self, mounts: &Mounts) -> bool {
        if self.held_inode().is_none() {
            self.mount = Mount::Unasked; // it may be opened through another one
        }
        match self.mount {
            Mount::Seen(id) => !mounts.has(id),
            Mount::Unasked | Mount::Unseen => false,
        }
    }

    /// The descriptor that stands for the file, whatever is at its path.
    fn held_inode(&self) -> Option<&File> {
        self.open.as_ref().filter(|_| self.mode == Mode::Inode)
    }
}

fn look_at_path(
    path: &Path,
    reach: &mut Reach,
    last: Option<Imprint>,
    mut taken: Option<&Imprint>,
    pages: &mut dyn Fiemap,
) -> Sight {
    for _ in 0..TRIES {
        let stamp = match stat_unless(taken.take(), path, reach) {
            Ok(stamp) => stamp,
            Err(sight) => return sight,
        };
        match held(path, reach, stamp, last) {
            Ok(Some(file)) => return look_at_open(file, stamp, pages),
            Ok(None) => {} // it was replaced in between: look again
            Err(sight) => return sight,
        }
    }
    Sight::Failed("the file is replaced faster than it can be opened".to_owned())
}

#[allow(clippy::result_large_err)] // as below
fn stat_unless(taken: Option<&Imprint>, path: &Path, reach: &Reach) -> Result<Imprint, Sight> {
    match taken {
        Some(stamp) => Ok(*stamp),
        None => stat(path, reach),
    }
}

/// What the file is like now, if it is there and can be followed.
#[allow(clippy::result_large_err)] // it is what a look gives, moved once
fn stat(path: &Path, reach: &Reach) -> Result<Imprint, Sight> {
    // By reference, and read here: the answers are long, and copied if they are handed on.
    if let Some(file) = reach.held_inode() {
        return match &fstat(file) {
            Ok(found) if found.st_nlink > 0 || used_elsewhere(file, number(found)) => {
                Ok(imprint(found))
            }
            Ok(_) => Err(Sight::Unused),
            Err(errno) => Err(Sight::Failed(format!("stat: {errno}"))),
        };
    }
    match &rustix::fs::stat(path) {
        Ok(found) if !is_regular(found) => {
            let kind = std::fs::metadata(path).map_or("something else", |it| kind(&it));
            Err(absent(&format!("there is {kind} at the path"), path))
        }
        Ok(found) if reach.mode == Mode::Inode && reach.identity.inode != found.st_ino => {
            Err(absent("there is another file at the path", path))
        }
        Ok(found) => Ok(imprint(found)),
        Err(errno) => Err(absent_or_failed(path, &(*errno).into())),
    }
}

fn absent(found: &str, path: &Path) -> Sight {
    Sight::Absent { found: found.to_owned(), beside: folders(path.to_owned()) }
}

/// The device of the nearest folder above the path that exists; where the path is a link, that of
/// the path it leads to as well, and so on.
fn folders(mut path: PathBuf) -> Vec<Device> {
    let mut devices = Vec::new();
    for _ in 0..=LINKS_MAX {
        let above = path.ancestors().skip(1).find_map(|above| std::fs::metadata(above).ok());
        devices.extend(above.as_ref().map(device));
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(&path).join(target);
    }
    devices
}

fn absent_or_failed(path: &Path, error: &io::Error) -> Sight {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            absent("there is no file at the path", path)
        }
        _ => Sight::Failed(format!("open: {error}")),
    }
}

/// The open file that has the stamp; `None` if another one is at the path by now.
#[allow(clippy::result_large_err)] // likewise
fn held<'a>(
    path: &Path,
    reach: &'a mut Reach,
    found: Imprint,
    last: Option<Imprint>,
) -> Result<Option<&'a File>, Sight> {
    let found = (found.device, found.inode);
    // What was open at the last map need not be asked again: an open file's number stays its own.
    let known = last.is_some_and(|last| (last.device, last.inode) == found);
    let is_open = |file: &File| known || matches!(&fstat(file), Ok(held) if number(held) == found);
    if !reach.open.as_ref().is_some_and(is_open) {
        let opened = open_numbered(path);
        reach.open = None; // only now, so that the inode's number cannot be given anew
        let (opened, its) = opened.map_err(|error| absent_or_failed(path, &error))?;
        let later = || inode::generation(&opened).unwrap_or(0) != reach.identity.generation;
        if its != found || reach.mode == Mode::Inode && later() {
            return Ok(None);
        }
        // What took the place need not be what was checked at the start.
        if reach.realtime && is_realtime(&opened) {
            return Err(absent("there is a realtime file of xfs at the path", path));
        }
        reach.open = Some(opened);
    }
    Ok(reach.open.as_ref())
}

/// Opens a regular file for looking at it, without waiting for anything and without side effects.
///
/// # Errors
///
/// Of the kernel, or `InvalidInput` if there is something else at the path.
pub fn open_regular(path: &Path) -> io::Result<File> {
    Ok(open_numbered(path)?.0)
}

/// As [`open_regular`]; gives its [`number`] as well.
fn open_numbered(path: &Path) -> io::Result<(File, (Device, u64))> {
    // A path may become a FIFO (whose open waits), a terminal or a device between two looks.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match &fstat(&file) {
        Ok(found) if is_regular(found) => return Ok((file, number(found))),
        Ok(_) => {}
        Err(errno) => return Err((*errno).into()),
    }
    let kind = kind(&file.metadata()?);
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}, not a regular file")))
}

/// What tells an inode from all others that are there at the same time.
fn number(found: &Stat) -> (Device, u64) {
    (device_of(found.st_dev), found.st_ino)
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_file()
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

/// What is remembered of the stamp that `stat` gives.
fn imprint(found: &Stat) -> Imprint {
    let nanoseconds = |seconds: i64, rest| {
        seconds.wrapping_mul(1_000_000_000).wrapping_add(i64::try_from(rest).unwrap_or_default())
    };
    let stamp = Stamp {
        device: device_of(found.st_dev),
        inode: found.st_ino,
        size: u64::try_from(found.st_size).unwrap_or_default(),
        blocks: u64::try_from(found.st_blocks).unwrap_or_default(),
        modified: nanoseconds(found.st_mtime, found.st_mtime_nsec),
        changed: nanoseconds(found.st_ctime, found.st_ctime_nsec),
    };
    stamp.imprint()
}

/// The device of the file's filesystem.
pub fn device(metadata: &Metadata) -> Device {
    device_of(metadata.dev())
}

fn device_of(number: u64) -> Device {
    Device { major: libc::major(number), minor: libc::minor(number) }
}

fn look_at_open(file: &File, stamp: Imprint, pages: &mut dyn Fiemap) -> Sight {
    let mut walk = Walk::default();
    match walk.since(stamp, file, pages) {
        Ok(torn) => Sight::Mapped(stamp, walk.into_map(torn)),
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
/// Of [`Fiemap::read`], and `FileTooLarge` for a file of more than 2^24 extents.
pub fn read_map(file: &File, pages: &mut dyn Fiemap) -> io::Result<Map> {
    let mut walk = Walk::default();
    let torn = walk.since(imprint(&fstat(file)?), file, pages)?;
    Ok(walk.into_map(torn))
}

/// Reads every extent as the filesystem tells it, in the order of the file. A file that changes
/// meanwhile may show parts of different moments.
///
/// # Errors
///
/// As [`read_map`].
pub fn read_pieces(file: &File, pages: &mut dyn Fiemap) -> io::Result<Vec<Mapped>> {
    let mut pieces = Vec::new();
    each_page(file, pages, |page| {
        pieces.extend_from_slice(page);
        pieces.len()
    })?;
    Ok(pieces)
}

/// Hands out the extents, page by page, to one that says how many it has.
fn each_page(
    file: &File,
    pages: &mut dyn Fiemap,
    mut take: impl FnMut(&[Mapped]) -> usize,
) -> io::Result<()> {
    let mut start = 0;
    loop {
        let page = pages.read(file, start)?;
        if take(page) > EXTENTS_MAX {
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

/// Where a piece of a file lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spot {
    /// There.
    At(Extent),
    /// Nowhere that can be counted, and that may change without a change of the stamp.
    NotYet,
    /// Nowhere that can be counted.
    Nowhere,
}

/// Where this piece lies.
pub fn spot(mapped: &Mapped) -> Spot {
    const NO_ADDRESS: u32 = fiemap::UNKNOWN | fiemap::DELALLOC;
    const NOT_BLOCKS: u32 = fiemap::NOT_ALIGNED | fiemap::DATA_INLINE | fiemap::DATA_TAIL;
    let is = |flags: u32| mapped.flags & flags != 0;
    // f2fs reports what it has only reserved at address 0, where no filesystem keeps data.
    if is(NO_ADDRESS | NOT_BLOCKS) || mapped.physical == 0 {
        return Spot::NotYet;
    }
    // Compressed: the length is that of the data, not of what lies on the device.
    if is(fiemap::ENCODED) && !is(fiemap::DATA_ENCRYPTED) {
        return Spot::Nowhere;
    }
    Extent::of_bytes(mapped.physical, mapped.length).map_or(Spot::Nowhere, Spot::At)
}

#[derive(Default)]
struct Walk {
    extents: List,
    blank: List,
    pages: usize,
    pending: bool,
    shared: bool,
    shared_sectors: u64,
}

impl Walk {
    /// Walks until the stamp is the same before and after, or there was one page only, and at most
    /// [`TRIES`] times. Gives whether the map is torn.
    fn since(
        &mut self,
        mut before: Imprint,
        file: &File,
        pages: &mut dyn Fiemap,
    ) -> io::Result<bool> {
        let mut tries = 1;
        loop {
            self.all(file, pages)?;
            if self.pages == 1 {
                return Ok(false);
            }
            let after = imprint(&fstat(file)?);
            if after == before || tries == TRIES {
                return Ok(after != before);
            }
            *self = Walk::default();
            before = after;
            tries += 1;
        }
    }

    fn all(&mut self, file: &File, pages: &mut dyn Fiemap) -> io::Result<()> {
        each_page(file, pages, |page| {
            self.pages += 1;
            self.extents.reserve(page.len()); // once, and not at all for a single one
            for mapped in page {
                self.take(mapped);
            }
            self.extents.len()
        })
    }

    fn take(&mut self, mapped: &Mapped) {
        let is = |flags: u32| mapped.flags & flags != 0;
        self.shared |= is(fiemap::SHARED);
        match spot(mapped) {
            Spot::At(extent) => {
                self.shared_sectors += if is(fiemap::SHARED) { extent.len() } else { 0 };
                self.extents.push(extent);
                if is(fiemap::UNWRITTEN) {
                    self.blank.push(extent);
                }
            }
            Spot::NotYet => self.pending = true,
            Spot::Nowhere => {}
        }
    }

    fn into_map(self, torn: bool) -> Map {
        let Walk { extents, blank, pending, shared, shared_sectors, .. } = self;
        let (extents, blank) = (Extents::of_list(extents), Extents::of_list(blank));
        let fingerprint = extents.fingerprint();
        Map { extents, blank, fingerprint, pending, shared, shared_sectors, torn }
    }
}

/// Whether a file that is unlinked is open or mapped still, but for us.
fn used_elsewhere(file: &File, number: (Device, u64)) -> bool {
    match inode::is_last_opener(file) {
        Ok(last) => !last,
        // No leases on this filesystem, or not for us: look who has it open. This does not see who
        // has it mapped only.
        Err(_) => open_in_some_process(number),
    }
}

fn open_in_some_process(number: (Device, u64)) -> bool {
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
        .any(|found| (device(&found), found.ino()) == number)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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

    fn by_path() -> Reach {
        let identity = Identity { inode: 0, generation: 0 };
        Reach { mode: Mode::Path, identity, open: None, mount: Mount::Unasked, realtime: false }
    }

    fn identity(file: &File) -> Identity {
        let generation = inode::generation(file).unwrap_or(0);
        Identity { inode: file.metadata().unwrap().ino(), generation }
    }

    #[test]
    fn a_path_that_is_no_file_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let here = device(&std::fs::metadata(folder.path()).unwrap());
        let check = |path: &Path, why: &str| {
            let expected = Sight::Absent { found: why.to_owned(), beside: vec![here] };
            let mut reach = by_path();
            assert_eq!(compare(path, &reach, None).as_ref(), Err(&expected));
            assert_eq!(look(path, &mut reach, None, None, true, &mut Pages::default()), expected);
        };
        check(&path, "there is no file at the path");
        check(&path.join("y/z"), "there is no file at the path");
        check(folder.path(), "there is a directory at the path");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        check(&path, "there is a FIFO at the path");
    }

    /// Whether the link itself or what it leads to is on the device: neither is elsewhere then.
    #[test]
    fn the_folders_of_a_link_are_its_own_and_those_it_leads_through() {
        let folder = tempfile::tempdir().unwrap();
        let of = |path: &Path| device(&std::fs::metadata(path).unwrap());
        let [first, second, circle] =
            ["first", "second", "circle"].map(|at| folder.path().join(at));
        std::os::unix::fs::symlink("second", &first).unwrap();
        std::os::unix::fs::symlink("/proc/nothing/at/all", &second).unwrap();
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        let here = of(folder.path());
        assert_eq!(folders(first), [here, here, of(Path::new("/proc"))]);
        assert!(folders(circle).iter().all(|device| *device == here), "and it comes to an end");
    }

    #[test]
    fn a_file_that_is_replaced_by_a_rename_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, next) = (folder.path().join("x"), folder.path().join("next"));
        std::fs::write(&path, "old").unwrap();
        std::fs::write(&next, "new").unwrap();
        let mut reach = by_path();
        let found = || imprint(&rustix::fs::stat(&path).unwrap());
        let first = std::ptr::from_ref(held(&path, &mut reach, found(), None).unwrap().unwrap());
        let again = std::ptr::from_ref(held(&path, &mut reach, found(), None).unwrap().unwrap());
        assert_eq!(first, again, "kept open");
        let before = found();
        std::fs::rename(&next, &path).unwrap();
        let after = held(&path, &mut reach, found(), Some(before)).unwrap().unwrap();
        assert_eq!(imprint(&fstat(after).unwrap()), found(), "not the one of the last map");
        reach.open = None;
        assert!(
            held(&path, &mut reach, before, None).unwrap().is_none(),
            "no longer the one of the stat"
        );
        assert!(held(&path, &mut reach, found(), None).unwrap().is_some());
    }

    #[test]
    fn without_a_descriptor_another_inode_at_the_path_is_not_taken_for_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, next) = (folder.path().join("x"), folder.path().join("next"));
        std::fs::write(&path, "old").unwrap();
        std::fs::write(&next, "new").unwrap();
        let right = identity(&File::open(&path).unwrap());
        let mut reach = Reach { mode: Mode::Inode, identity: right, ..by_path() };
        let found = imprint(&rustix::fs::stat(&path).unwrap());
        assert!(held(&path, &mut reach, found, None).unwrap().is_some());
        reach.open = None;
        reach.identity.generation ^= 1;
        assert!(
            held(&path, &mut reach, found, None).unwrap().is_none(),
            "a later inode of the number"
        );
        reach.identity = right;
        std::fs::rename(&next, &path).unwrap();
        let found = compare(&path, &reach, None);
        assert!(
            matches!(found, Err(Sight::Absent { found, .. }) if found.contains("another file"))
        );
    }

    #[test]
    fn a_file_stays_open_if_it_is_to_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "data").unwrap();
        for keep in [true, false] {
            let mut reach = by_path();
            let sight = look(&path, &mut reach, None, None, keep, &mut Pages::default());
            let mapped = matches!(sight, Sight::Mapped(..)); // not on every filesystem
            assert_eq!(reach.open.is_some(), keep && mapped);
        }
    }

    #[test]
    fn the_mount_of_a_file_that_is_held_open_is_noted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "data").unwrap();
        let lists = Lists::open();
        let mut reach = Reach { mode: Mode::Inode, ..by_path() };
        reach.note_mount(&lists);
        assert_eq!(reach.mount, Mount::Unasked, "it is not open");
        reach.open = Some(File::open(&path).unwrap());
        reach.note_mount(&lists);
        let id = inode::mount_id(reach.open.as_ref().unwrap());
        assert_eq!(reach.mount, id.map_or(Mount::Unseen, Mount::Seen));
        assert!(!reach.is_detached(&lists.mounts()));
        reach.mount = Mount::Seen(u32::MAX);
        assert!(reach.is_detached(&lists.mounts()), "there is no such mount");
        reach.open = None;
        assert!(!reach.is_detached(&lists.mounts()) && reach.mount == Mount::Unasked);
    }

    #[test]
    fn a_stamp_that_was_taken_is_not_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "data").unwrap();
        let file = File::open(&path).unwrap();
        let mut before = imprint(&fstat(&file).unwrap());
        before.size = 1;
        for mode in [Mode::Inode, Mode::Path] {
            let file = file.try_clone().unwrap();
            let mut reach = Reach {
                mode,
                open: Some(file),
                identity: identity(&File::open(&path).unwrap()),
                ..by_path()
            };
            match look(&path, &mut reach, None, Some(&before), true, &mut Pages::default()) {
                Sight::Mapped(stamp, _) => assert_eq!(stamp, before, "{mode}"),
                sight => assert!(matches!(sight, Sight::Failed(_)), "no FIEMAP here: {sight:?}"),
            }
        }
        // What is there by now is another file: its stamp has to be taken, whatever was seen.
        std::fs::write(folder.path().join("next"), "new").unwrap();
        std::fs::rename(folder.path().join("next"), &path).unwrap();
        let mut reach = by_path();
        match look(&path, &mut reach, None, Some(&before), true, &mut Pages::default()) {
            Sight::Mapped(stamp, _) => assert_ne!(stamp.inode, before.inode),
            sight => assert!(matches!(sight, Sight::Failed(_)), "no FIEMAP here: {sight:?}"),
        }
    }

    #[test]
    fn an_unlinked_file_is_used_as_long_as_somebody_else_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "data").unwrap();
        let file = File::open(&path).unwrap();
        let (mode, identity) = (Mode::Inode, identity(&file));
        let mut reach = Reach { mode, identity, open: Some(file), ..by_path() };
        let other = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(compare(&path, &reach, None), Ok(Some(_))));
        drop(other);
        // A child that another test has just forked has it open until it is another program.
        let begun = Instant::now();
        while compare(&path, &reach, None) != Err(Sight::Unused) {
            assert!(begun.elapsed().as_secs() < 10, "nobody has it open");
        }
        assert_eq!(look(&path, &mut reach, None, None, true, &mut Pages::default()), Sight::Unused);
    }
}
