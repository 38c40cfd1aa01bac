//! Paths of many files, one behind the other in blocks of memory.
//!
//! A path by itself is one small piece of memory that stays for as long as its file is followed,
//! and a hundred thousand of them lie among what the search for the files took for a moment. The C
//! library gives back to the kernel only whole pages in which nothing is left.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::slice;
use std::sync::Arc;

/// Bytes in a block, as far as they divide into paths. It is freed with the last of them, and so it
/// must not hold too many; and be large enough for pages of its own.
const BLOCK: usize = 256 * 1024;

/// A path that shares its memory with others.
#[derive(Clone)]
pub struct SharedPath {
    block: Arc<Box<[u8]>>, // thin: 16 bytes in all, as an `Arc<Path>` has
    start: u32,
    len: u32,
}

impl SharedPath {
    /// The same paths, in the same order, in as few blocks as there can be.
    pub fn share<P: AsRef<Path>>(paths: &[P]) -> Vec<SharedPath> {
        let mut shared = Vec::with_capacity(paths.len());
        let mut rest = paths;
        while !rest.is_empty() {
            let (count, bytes) = first_block(rest);
            let (here, later) = rest.split_at(count);
            fill(here, bytes, &mut shared);
            rest = later;
        }
        shared
    }
}

/// How many of the paths go into the next block, at least one, and how many bytes they are.
fn first_block<P: AsRef<Path>>(paths: &[P]) -> (usize, usize) {
    let mut bytes = 0;
    for (count, path) in paths.iter().enumerate() {
        let with = bytes + path.as_ref().as_os_str().len();
        if count > 0 && with > BLOCK {
            return (count, bytes);
        }
        bytes = with;
    }
    (paths.len(), bytes)
}

fn fill<P: AsRef<Path>>(paths: &[P], bytes: usize, shared: &mut Vec<SharedPath>) {
    let mut block = Vec::with_capacity(bytes);
    for path in paths {
        block.extend_from_slice(path.as_ref().as_os_str().as_bytes());
    }
    let block = Arc::new(block.into_boxed_slice());
    let mut start = 0;
    for path in paths {
        let length = path.as_ref().as_os_str().len();
        let number = |at| u32::try_from(at).expect("the kernel knows no path of four gigabytes");
        shared.push(SharedPath { block: block.clone(), start: number(start), len: number(length) });
        start += length;
    }
}

/// Paths that are on loan for a while. What they lie in is counted once for all in a row that share
/// it: to count it for each and back takes a tenth of a `stat`.
#[derive(Debug, Default)]
pub struct PathList {
    blocks: Vec<Arc<Box<[u8]>>>,
    /// The number of a block, and where in that.
    paths: Vec<(u32, u32, u32)>,
}

impl PathList {
    /// Adds one at the end.
    pub fn push(&mut self, path: &SharedPath) {
        if self.blocks.last().is_none_or(|last| !Arc::ptr_eq(last, &path.block)) {
            self.blocks.push(path.block.clone());
        }
        let block = u32::try_from(self.blocks.len() - 1).expect("memory for 2^32 paths");
        self.paths.push((block, path.start, path.len));
    }

    /// The paths, as they came.
    pub fn iter(&self) -> Iter<'_> {
        self.into_iter()
    }

    /// Empties it, for its room.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.paths.clear();
    }
}

impl<'a> IntoIterator for &'a PathList {
    type Item = &'a Path;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        Iter { blocks: &self.blocks, paths: self.paths.iter() }
    }
}

/// The paths of a [`PathList`].
#[derive(Debug)]
pub struct Iter<'a> {
    blocks: &'a [Arc<Box<[u8]>>],
    paths: slice::Iter<'a, (u32, u32, u32)>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Path;

    fn next(&mut self) -> Option<&'a Path> {
        let (block, start, len) = *self.paths.next()?;
        Some(path(&self.blocks[block as usize], start, len))
    }
}

fn path(block: &[u8], start: u32, len: u32) -> &Path {
    let start = start as usize;
    Path::new(OsStr::from_bytes(&block[start..start + len as usize]))
}

impl From<&Path> for SharedPath {
    /// By itself.
    fn from(path: &Path) -> SharedPath {
        SharedPath::share(&[path]).remove(0)
    }
}

impl Deref for SharedPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        path(&self.block, self.start, self.len)
    }
}

impl AsRef<Path> for SharedPath {
    fn as_ref(&self) -> &Path {
        self
    }
}

impl PartialEq for SharedPath {
    fn eq(&self, other: &SharedPath) -> bool {
        **self == **other
    }
}

impl Eq for SharedPath {}

impl fmt::Debug for SharedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn they_are_what_they_were(
            raw in prop::collection::vec((any::<u8>(), 0..300usize), 0..3000),
        ) {
            let raw: Vec<Vec<u8>> =
                raw.into_iter().map(|(byte, count)| vec![byte; count]).collect();
            let paths: Vec<&Path> =
                raw.iter().map(|bytes| Path::new(OsStr::from_bytes(bytes))).collect();
            let shared = SharedPath::share(&paths);
            prop_assert_eq!(shared.len(), paths.len());
            for (path, shared) in paths.iter().zip(&shared) {
                prop_assert_eq!(&path.as_os_str(), &shared.as_os_str());
                prop_assert!(shared.block.len() <= BLOCK);
            }
            let blocks = shared.windows(2).filter(|two| !Arc::ptr_eq(&two[0].block, &two[1].block));
            let bytes: usize = raw.iter().map(Vec::len).sum();
            prop_assert!(blocks.count() <= bytes / (BLOCK - 300), "blocks are full");
        }
    }

    #[test]
    fn a_list_counts_a_block_once_for_all_in_a_row_that_share_it() {
        let mut shared = SharedPath::share(&["/a", "/b", "/c"].map(Path::new));
        shared.insert(2, Path::new("/x").into());
        let block = shared[0].block.clone();
        let mut list = PathList::default();
        for path in &shared {
            list.push(path);
        }
        assert_eq!(Arc::strong_count(&block), 1 + 3 + 2, "/x lies between");
        drop(shared);
        assert!(list.iter().eq(["/a", "/b", "/x", "/c"].map(Path::new)));
        list.clear();
        assert_eq!((list.iter().count(), Arc::strong_count(&block)), (0, 1));
    }

    #[test]
    fn a_block_lasts_as_long_as_any_of_its_paths() {
        let mut shared = SharedPath::share(&["/a", "/b"].map(Path::new));
        let (b, a) = (shared.pop().unwrap(), shared.pop().unwrap());
        let block = Arc::downgrade(&a.block);
        drop(a);
        assert_eq!(&*b, Path::new("/b"));
        drop(b);
        assert!(block.upgrade().is_none());
    }

    #[test]
    fn a_long_path_has_a_block_of_its_own() {
        let long = "/x".repeat(BLOCK);
        let shared = SharedPath::share(&["/a", &long, "/b"].map(Path::new));
        assert_eq!(shared[1].as_os_str().len(), 2 * BLOCK);
        assert_eq!(&*shared[2], Path::new("/b"));
        assert_eq!(size_of::<Option<SharedPath>>(), 16);
    }
}
