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
use crate::paths::SharedPath;
use crate::place::is_realtime;
use crate::sight::{Imprint, Map, Sight, Stamp};

/// How a file is reached.
///
/// By its inode: through the descriptor, while there is one; and by the path as long as that leads
/// to the same inode, for want of a descriptor. By its path: what is there, whatever it is.
#[derive(Debug)]
pub struct Reach {
    /// What it is followed by.
    pub mode: Mode,
    /// Where it was found.
    pub path: SharedPath,
    /// Which inode was found there.
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

/// Compares the file's stamp with that of its last map. Opens nothing, and waits for nobody.
pub fn compare(reach: &Reach, last: Option<Imprint>) -> Sight {
    match stat(reach) {
        Ok(stamp) if last == Some(stamp.imprint()) => Sight::Same,
        Ok(stamp) => Sight::Changed(stamp),
        Err(sight) => sight,
    }
}

/// Looks at a file: the stamp first, then the map. A file that is opened for it stays open if
/// `keep` says so. `last` is of the stamp of its last map, at which what is open now was looked at.
/// If the stamp was `taken` already, it is not taken again: the older it is, the more shows in the
/// next one.
pub fn look(
    reach: &mut Reach,
    last: Option<Imprint>,
    taken: Option<Stamp>,
    keep: bool,
    pages: &mut Pages,
) -> Sight {
    if let Some(file) = reach.held_inode() {
        return match stat_unless(taken, reach) {
            Ok(stamp) => look_at_open(file, stamp, pages),
            Err(sight) => sight,
        };
    }
    let sight = look_at_path(reach, last, taken, pages);
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
    reach: &mut Reach,
    last: Option<Imprint>,
    mut taken: Option<Stamp>,
    pages: &mut Pages,
) -> Sight {
    for _ in 0..TRIES {
        let stamp = match stat_unless(taken.take(), reach) {
            Ok(stamp) => stamp,
            Err(sight) => return sight,
        };
        match held(reach, stamp, last) {
            Ok(Some(file)) => return look_at_open(file, stamp, pages),
            Ok(None) => {} // it was replaced in between: look again
            Err(sight) => return sight,
        }
    }
    Sight::Failed("the file is replaced faster than it can be opened".to_owned())
}

#[allow(clippy::result_large_err)] // as below
fn stat_unless(taken: Option<Stamp>, reach: &Reach) -> Result<Stamp, Sight> {
    match taken {
        Some(stamp) => Ok(stamp),
        None => stat(reach),
    }
}

/// What the file is like now, if it is there and can be followed.
#[allow(clippy::result_large_err)] // it is what a look gives, moved once
fn stat(reach: &Reach) -> Result<Stamp, Sight> {
    // By reference: the answers are long, and copied with a call if they are moved.
    if let Some(file) = reach.held_inode() {
        return match &fstat(file) {
            Ok(found) if is_unused(file, found) => Err(Sight::Unused),
            Ok(found) => Ok(stamp(found)),
            Err(errno) => Err(Sight::Failed(format!("stat: {errno}"))),
        };
    }
    match &rustix::fs::stat(&*reach.path) {
        Ok(found) if !is_regular(found) => {
            let kind = std::fs::metadata(&reach.path).map_or("something else", |it| kind(&it));
            Err(absent(&format!("there is {kind} at the path"), &reach.path))
        }
        Ok(found) if reach.mode == Mode::Inode && reach.identity.inode != found.st_ino => {
            Err(absent("there is another file at the path", &reach.path))
        }
        Ok(found) => Ok(stamp(found)),
        Err(errno) => Err(absent_or_failed(&reach.path, &(*errno).into())),
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
fn held(reach: &mut Reach, found: Stamp, last: Option<Imprint>) -> Result<Option<&File>, Sight> {
    let is_found = |device, inode| (device, inode) == (found.device, found.inode);
    let same = |stat: &Stat| is_found(device_of(stat.st_dev), stat.st_ino);
    // What was open at the last map need not be asked again: an open file's number stays its own.
    let known = last.is_some_and(|last| is_found(last.device, last.inode));
    let is_open = |file: &File| known || fstat(file).is_ok_and(|held| same(&held));
    if !reach.open.as_ref().is_some_and(is_open) {
        let opened = open_and_stat(&reach.path);
        reach.open = None; // only now, so that the inode's number cannot be given anew
        let (opened, stat) = opened.map_err(|error| absent_or_failed(&reach.path, &error))?;
        let later = || inode::generation(&opened).unwrap_or(0) != reach.identity.generation;
        if !same(&stat) || reach.mode == Mode::Inode && later() {
            return Ok(None);
        }
        // What took the place need not be what was checked at the start.
        if reach.realtime && is_realtime(&opened) {
            return Err(absent("there is a realtime file of xfs at the path", &reach.path));
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
    Ok(open_and_stat(path)?.0)
}

fn open_and_stat(path: &Path) -> io::Result<(File, Stat)> {
    // A path may become a FIFO (whose open waits), a terminal or a device between two looks.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let stat = fstat(&file)?;
    if is_regular(&stat) {
        return Ok((file, stat));
    }
    let kind = kind(&file.metadata()?);
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}, not a regular file")))
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

/// The stamp that `stat` gives.
fn stamp(found: &Stat) -> Stamp {
    let nanoseconds = |seconds: i64, rest| {
        seconds.wrapping_mul(1_000_000_000).wrapping_add(i64::try_from(rest).unwrap_or_default())
    };
    Stamp {
        device: device_of(found.st_dev),
        inode: found.st_ino,
        size: u64::try_from(found.st_size).unwrap_or_default(),
        blocks: u64::try_from(found.st_blocks).unwrap_or_default(),
        modified: nanoseconds(found.st_mtime, found.st_mtime_nsec),
        changed: nanoseconds(found.st_ctime, found.st_ctime_nsec),
    }
}

/// The device of the file's filesystem.
pub fn device(metadata: &Metadata) -> Device {
    device_of(metadata.dev())
}

fn device_of(number: u64) -> Device {
    Device { major: libc::major(number), minor: libc::minor(number) }
}

fn look_at_open(file: &File, stamp: Stamp, pages: &mut Pages) -> Sight {
    match read_map_since(file, stamp, pages) {
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
    read_map_since(file, stamp(&fstat(file)?), pages)
}

fn read_map_since(file: &File, mut before: Stamp, pages: &mut Pages) -> io::Result<Map> {
    let mut walk = Walk::default();
    for _ in 0..TRIES {
        walk = Walk::default();
        walk.all(file, pages)?;
        if walk.pages == 1 {
            return Ok(walk.into_map(false));
        }
        let after = stamp(&fstat(file)?);
        if after == before {
            return Ok(walk.into_map(false));
        }
        before = after;
    }
    Ok(walk.into_map(true))
}

/// Reads every extent as the filesystem tells it, in the order of the file. A file that changes
/// meanwhile may show parts of different moments.
///
/// # Errors
///
/// As [`read_map`].
pub fn read_pieces(file: &File, pages: &mut Pages) -> io::Result<Vec<Mapped>> {
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
    pages: &mut Pages,
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
    fn all(&mut self, file: &File, pages: &mut Pages) -> io::Result<()> {
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

/// Whether the file is unlinked and nobody else has it open or mapped.
fn is_unused(file: &File, found: &Stat) -> bool {
    found.st_nlink == 0 && !used_elsewhere(file, found)
}

fn used_elsewhere(file: &File, found: &Stat) -> bool {
    match inode::is_last_opener(file) {
        Ok(last) => !last,
        // No leases on this filesystem, or not for us: look who has it open. This does not see who
        // has it mapped only.
        Err(_) => open_in_some_process(found),
    }
}

fn open_in_some_process(wanted: &Stat) -> bool {
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
        .any(|found| (found.dev(), found.ino()) == (wanted.st_dev, wanted.st_ino))
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

    fn by_path(path: &Path) -> Reach {
        let identity = Identity { inode: 0, generation: 0 };
        Reach {
            mode: Mode::Path,
            path: path.into(),
            identity,
            open: None,
            mount: Mount::Unasked,
            realtime: false,
        }
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
            let mut reach = by_path(path);
            assert_eq!(compare(&reach, None), expected);
            assert_eq!(look(&mut reach, None, None, true, &mut Pages::default()), expected);
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
        let mut reach = by_path(&path);
        let found = || stamp(&rustix::fs::stat(&path).unwrap());
        let first = std::ptr::from_ref(held(&mut reach, found(), None).unwrap().unwrap());
        let again = std::ptr::from_ref(held(&mut reach, found(), None).unwrap().unwrap());
        assert_eq!(first, again, "kept open");
        let before = found();
        std::fs::rename(&next, &path).unwrap();
        let after = held(&mut reach, found(), Some(before.imprint())).unwrap().unwrap();
        assert_eq!(stamp(&fstat(after).unwrap()), found(), "not the one of the last map");
        reach.open = None;
        assert!(held(&mut reach, before, None).unwrap().is_none(), "no longer the one of the stat");
        assert!(held(&mut reach, found(), None).unwrap().is_some());
    }

    #[test]
    fn without_a_descriptor_another_inode_at_the_path_is_not_taken_for_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, next) = (folder.path().join("x"), folder.path().join("next"));
        std::fs::write(&path, "old").unwrap();
        std::fs::write(&next, "new").unwrap();
        let right = identity(&File::open(&path).unwrap());
        let mut reach = Reach { mode: Mode::Inode, identity: right, ..by_path(&path) };
        let found = stamp(&rustix::fs::stat(&path).unwrap());
        assert!(held(&mut reach, found, None).unwrap().is_some());
        reach.open = None;
        reach.identity.generation ^= 1;
        assert!(held(&mut reach, found, None).unwrap().is_none(), "a later inode of the number");
        reach.identity = right;
        std::fs::rename(&next, &path).unwrap();
        let found = compare(&reach, None);
        assert!(matches!(found, Sight::Absent { found, .. } if found.contains("another file")));
    }

    #[test]
    fn a_file_stays_open_if_it_is_to_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "data").unwrap();
        for keep in [true, false] {
            let mut reach = by_path(&path);
            let sight = look(&mut reach, None, None, keep, &mut Pages::default());
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
        let mut reach = Reach { mode: Mode::Inode, ..by_path(&path) };
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
        let before = Stamp { changed: 1, ..stamp(&fstat(&file).unwrap()) };
        for mode in [Mode::Inode, Mode::Path] {
            let file = file.try_clone().unwrap();
            let mut reach = Reach {
                mode,
                open: Some(file),
                identity: identity(&File::open(&path).unwrap()),
                ..by_path(&path)
            };
            match look(&mut reach, None, Some(before), true, &mut Pages::default()) {
                Sight::Mapped(stamp, _) => assert_eq!(stamp, before, "{mode}"),
                sight => assert!(matches!(sight, Sight::Failed(_)), "no FIEMAP here: {sight:?}"),
            }
        }
        // What is there by now is another file: its stamp has to be taken, whatever was seen.
        std::fs::write(folder.path().join("next"), "new").unwrap();
        std::fs::rename(folder.path().join("next"), &path).unwrap();
        let mut reach = by_path(&path);
        match look(&mut reach, None, Some(before), true, &mut Pages::default()) {
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
        let mut reach = Reach { mode, identity, open: Some(file), ..by_path(&path) };
        let other = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(compare(&reach, None), Sight::Changed(_)));
        drop(other);
        assert_eq!(compare(&reach, None), Sight::Unused);
        assert_eq!(look(&mut reach, None, None, true, &mut Pages::default()), Sight::Unused);
    }
}
