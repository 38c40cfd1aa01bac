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
use std::sync::Arc;

/// Bytes in a block, as far as they divide into paths. It is freed when the last of its files is
/// let go, and so it must not hold too many; and be large enough for pages of its own.
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
    pub fn share<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Vec<SharedPath> {
        let mut shared = Vec::new();
        let mut block = Vec::new();
        let mut ends = Vec::new();
        for path in paths {
            let bytes = path.as_os_str().as_bytes();
            if block.len() + bytes.len() > BLOCK && !block.is_empty() {
                cut(&mut block, &mut ends, &mut shared);
            }
            if block.is_empty() {
                block.reserve_exact(BLOCK.max(bytes.len()));
            }
            block.extend_from_slice(bytes);
            ends.push(block.len());
        }
        cut(&mut block, &mut ends, &mut shared);
        shared
    }
}

/// Makes paths of what has been put into a block.
fn cut(block: &mut Vec<u8>, ends: &mut Vec<usize>, shared: &mut Vec<SharedPath>) {
    let whole = Arc::new(std::mem::take(block).into_boxed_slice());
    let mut start = 0;
    for end in ends.drain(..) {
        let number = |at| u32::try_from(at).expect("the kernel knows no path of four gigabytes");
        let (block, len) = (whole.clone(), number(end - start));
        shared.push(SharedPath { block, start: number(start), len });
        start = end;
    }
}

impl From<&Path> for SharedPath {
    /// By itself.
    fn from(path: &Path) -> SharedPath {
        SharedPath::share([path]).remove(0)
    }
}

impl Deref for SharedPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        let start = self.start as usize;
        Path::new(OsStr::from_bytes(&self.block[start..start + self.len as usize]))
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
            let shared = SharedPath::share(paths.iter().copied());
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
    fn a_block_lasts_as_long_as_any_of_its_paths() {
        let mut shared = SharedPath::share(["/a", "/b"].map(Path::new));
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
        let shared = SharedPath::share(["/a", &long, "/b"].map(Path::new));
        assert_eq!(shared[1].as_os_str().len(), 2 * BLOCK);
        assert_eq!(&*shared[2], Path::new("/b"));
        assert_eq!(size_of::<Option<SharedPath>>(), 16);
    }
}
