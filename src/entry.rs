//! From an open file to an entry that can be followed.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::Path;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::engine::{Pace, Spec};
use crate::group::Mark;
use crate::mode::Mode;
use crate::place::Place;
use crate::run::Entry;
use crate::sample::{Identity, Mount, Reach};
use crate::shape::Limits;
use crate::update::{Group, Template};

/// An entry for a file, which is opened when it is looked at unless it is open now; `path` is
/// absolute. Its home is not known, and its group may have any number of regions.
pub fn entry(
    open: Option<File>,
    path: &Path,
    mode: Mode,
    place: &Place,
    group: Option<Group>,
    template: Template,
    pace: Pace,
) -> Entry {
    let mark = mark(path, mode, place);
    let identity = Identity { inode: place.inode, generation: place.generation };
    let realtime = place.filesystem.has_realtime();
    let reach = Reach { mode, identity, open, mount: Mount::Unasked, realtime };
    let restless = place.filesystem.is_restless();
    let limits = Limits::NONE;
    let spec = Spec { mode, device: place.device, group, restless, pace, limits };
    Entry { path: path.into(), reach, spec, template, mark, home: None }
}

/// A mark for the file: the same key in every run that follows it in the same mode, and a nonce of
/// its own each time.
pub fn mark(path: &Path, mode: Mode, place: &Place) -> Mark {
    let mut what = mode.as_str().as_bytes().to_vec();
    match mode {
        Mode::Inode => {
            what.extend_from_slice(&place.inode.to_le_bytes());
            what.extend_from_slice(&place.generation.to_le_bytes());
        }
        Mode::Path => what.extend_from_slice(path.as_os_str().as_encoded_bytes()),
    }
    Mark { key: xxh3_64(&what), nonce: random() }
}

/// A number that no other process is likely to draw.
pub fn random() -> u32 {
    let drawn = RandomState::new().build_hasher().finish().to_le_bytes();
    u32::from_le_bytes([drawn[0], drawn[1], drawn[2], drawn[3]])
}

/// How long written data may stay in memory before it gets its place: the kernel's own settings,
/// and some time for the writing. 45 s where they are the usual ones or cannot be read.
pub fn settle() -> Duration {
    let centiseconds = |name: &str, usual: u64| {
        let value = fs::read_to_string(format!("/proc/sys/vm/dirty_{name}_centisecs"));
        value.ok().and_then(|value| value.trim().parse().ok()).unwrap_or(usual).min(60_000)
    };
    let age = centiseconds("expire", 3000) + 2 * centiseconds("writeback", 500);
    Duration::from_millis(age * 10) + Duration::from_secs(5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::locate;

    #[test]
    fn the_key_follows_what_the_mode_follows() {
        let folder = tempfile::tempdir().unwrap();
        let create = |name: &str| {
            let path = folder.path().join(name);
            let place = locate(&File::create(&path).and_then(|_| File::open(&path)).unwrap());
            (path, place.unwrap())
        };
        let ((a, at_a), (b, at_b)) = (create("a"), create("b"));
        let key = |path, mode, place| mark(path, mode, place).key;
        assert_eq!(key(&a, Mode::Inode, &at_a), key(&b, Mode::Inode, &at_a), "renamed");
        assert_ne!(key(&a, Mode::Inode, &at_a), key(&a, Mode::Inode, &at_b), "replaced");
        assert_eq!(key(&a, Mode::Path, &at_a), key(&a, Mode::Path, &at_b), "replaced");
        assert_ne!(key(&a, Mode::Path, &at_a), key(&b, Mode::Path, &at_a), "renamed");
        assert_ne!(key(&a, Mode::Path, &at_a), key(&a, Mode::Inode, &at_a));
    }

    #[test]
    fn two_marks_of_a_file_differ() {
        let drawn: std::collections::BTreeSet<u32> = (0..20).map(|_| random()).collect();
        assert!(drawn.len() > 18, "{drawn:?}");
    }

    #[test]
    fn settling_takes_longer_than_writeback() {
        assert!(settle() >= Duration::from_secs(5));
    }
}
