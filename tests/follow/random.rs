//! Files that are changed at random while one process follows them: a few all the time, so that
//! updates meet changes, and many now and then, so that changes meet files at rest.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::change::{self, KIB, Way};
use crate::guest::{Daemon, Disk, assert_all_follow, write_back_soon};
use crate::vm;

/// How much is done, and by which seed, unless the environment says otherwise:
/// `TEST_CHANGES=5000 TEST_SEED=7 cargo test --test follow random`
const CHANGES: u64 = 300;
const SEED: u64 = 1;

/// Changes between two moments at which all must be right.
const STRETCH: u64 = 50;

/// Files that are changed all the time, and that get every third change, in turn.
const BUSY: usize = 5;
const QUIET: usize = 60;

/// Files stay below this size.
const BLOCKS: u64 = 512;
const BLOCK: u64 = 4 * KIB;

/// Splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn below_usize(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(u64::try_from(bound).unwrap())).unwrap()
    }

    /// A range of whole blocks within `bytes`, if there is one.
    fn range(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let blocks = bytes / BLOCK;
        let start = self.below(blocks.max(1));
        let len = 1 + self.below((blocks.max(1) - start).min(64));
        (blocks > 0).then_some((start * BLOCK, len * BLOCK))
    }

    fn way(&mut self) -> Way {
        [Way::Buffered, Way::Direct, Way::Dsync][usize::try_from(self.below(3)).unwrap()]
    }
}

/// Does one thing to the file, and says what.
fn change(random: &mut Random, file: &Path, other: &Path, reflink: bool) -> String {
    let size = change::size(file);
    let inside = random.range(size);
    let (start, len) = random.range(BLOCKS * BLOCK).unwrap();
    let way = random.way();
    match (random.below(16), inside) {
        (0 | 1, _) if size + len < BLOCKS * BLOCK => {
            change::append(file, way, len);
            format!("append {len} {way:?}")
        }
        (2, _) => {
            change::write(file, way, start, len);
            format!("write {start} {len} {way:?}")
        }
        (3 | 4, Some((start, len))) => {
            change::punch(file, start, len);
            format!("punch {start} {len}")
        }
        (5 | 6, Some((start, len))) => {
            change::punch(file, start, len);
            change::write(file, way, start, len);
            format!("punch and refill {start} {len} {way:?}")
        }
        (7, _) => {
            let size = random.below(3) * size / 2;
            change::truncate(file, size.min(BLOCKS * BLOCK));
            format!("truncate {size}")
        }
        (8, _) => {
            change::reserve(file, start, len);
            format!("fallocate {start} {len}")
        }
        (9, _) => {
            change::reserve_keeping_size(file, start, len);
            format!("fallocate keeping the size {start} {len}")
        }
        (10, Some((start, len))) if start + len < size => {
            change::collapse(file, start, len);
            format!("collapse {start} {len}")
        }
        (11, Some((start, len))) if size + len < BLOCKS * BLOCK => {
            change::insert(file, start, len);
            format!("insert {start} {len}")
        }
        (12, Some((start, len))) => {
            change::zero(file, start, len);
            format!("zero {start} {len}")
        }
        (13, Some((start, len))) => {
            change::store(file, start, len);
            format!("store {start} {len}")
        }
        (14, _) => replace(file, other, reflink && way == Way::Buffered, len),
        _ => {
            change::sync(file);
            "sync".to_owned()
        }
    }
}

/// Renames another file over this one: a new one, or a clone of the `other`.
fn replace(file: &Path, other: &Path, reflink: bool, len: u64) -> String {
    let next = file.with_extension("next");
    if reflink {
        change::clone(other, &next);
    } else {
        change::write(&next, Way::Buffered, 0, len);
    }
    fs::rename(&next, file).unwrap();
    format!("replace, reflink {reflink}, {len}")
}

fn number(name: &str, default: u64) -> u64 {
    let value = env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Everything that a run goes through.
struct Run {
    disk: Disk,
    random: Random,
    /// The busy ones, then the quiet ones.
    files: Vec<PathBuf>,
    reflink: bool,
    story: String,
    _daemon: Daemon,
}

impl Run {
    fn new(disk: Disk, seed: u64, reflink: bool) -> Run {
        let names = (0..BUSY + QUIET).map(|number| format!("file{number}"));
        let files: Vec<PathBuf> = names.map(|name| disk.path(&name)).collect();
        for file in &files {
            change::write(file, Way::Direct, 0, 256 * KIB);
        }
        let mut args: Vec<&OsStr> = ["--mode", "path", "--interval", "50ms"].map(OsStr::new).into();
        args.extend(files.iter().map(|file| file.as_os_str()));
        let daemon = Daemon::run(&args);
        let random = Random(seed);
        Run { disk, random, files, reflink, story: String::new(), _daemon: daemon }
    }

    fn change(&mut self, number: usize) {
        let at = match number % 3 {
            0 => BUSY + number / 3 % QUIET,
            _ => self.random.below_usize(BUSY),
        };
        let other = &self.files[self.random.below_usize(BUSY + QUIET)];
        let file = &self.files[at];
        let done = change(&mut self.random, file, other, self.reflink);
        writeln!(self.story, "{number}: {}: {done}", file.display()).unwrap();
    }

    fn alias(file: &Path) -> &str {
        file.file_name().unwrap().to_str().unwrap()
    }

    /// Whatever is under way: each group is sound, and all of them are there.
    fn assert_sound(&self) {
        let groups = self.disk.groups();
        let there = |file: &PathBuf| {
            groups.values().any(|group| group.alias == Run::alias(file).as_bytes())
        };
        assert!(self.files.iter().all(there), "{groups:?}\n{}", self.story);
    }

    /// Once it is quiet, each group is right, and nothing is left over.
    fn assert_right(&self) {
        vm::sh(&format!("sync -f {}", self.disk.mount.display()));
        let pairs: Vec<(&Path, &str)> =
            self.files.iter().map(|file| (&**file, Run::alias(file))).collect();
        assert_all_follow(&self.disk, &self.story, &pairs);
        assert_eq!(self.disk.strays(), [0; 0], "regions are left over\n{}", self.story);
    }
}

fn follow_at_random(kind: &str, options: &str, reflink: bool) {
    let (changes, seed) = (number("TEST_CHANGES", CHANGES), number("TEST_SEED", SEED));
    println!("{changes} changes by seed {seed}");
    write_back_soon();
    let mut run = Run::new(Disk::format(0, kind, options), seed, reflink);
    run.assert_right();
    for number in 1..=changes {
        run.change(usize::try_from(number).unwrap());
        if run.random.below(4) == 0 {
            run.assert_sound();
        }
        if number % STRETCH == 0 {
            run.assert_right();
        }
    }
}

#[test]
fn ext4() {
    if vm::inside("random::ext4") {
        follow_at_random("ext4", "-q", false);
    }
}

#[test]
fn xfs() {
    if vm::inside("random::xfs") {
        follow_at_random("xfs", "-q -m reflink=1", true);
    }
}
