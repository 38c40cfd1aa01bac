//! Every change there is, each to a file at rest: one whose extents are not read at every look.
//!
//! Such a change has to show in the stamp, or else it takes until the next full look. It is found
//! at the next look, whose time is counted in looks at a file that never changes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::{fs, slice};

use crate::change::{self, KIB, MIB, Way};
use crate::dialects::Group;
use crate::guest::{
    Daemon, Disk, Sectors, assert_all_follow, assert_follows, counted, mapped, wait_until,
    write_back_soon,
};
use crate::trace::Trace;
use crate::vm;

/// One file, and what is done to it.
struct Case {
    what: &'static str,
    prepare: fn(&Path),
    act: fn(&Path),
    effect: Effect,
}

/// What becomes of the map, lest a test test nothing.
#[derive(Clone, Copy, Debug)]
enum Effect {
    /// It is another one.
    Changes,
    /// The last extent is longer, and nothing else is changed.
    Lengthens,
    /// It has one extent more, or several.
    Splits,
    /// It has fewer extents.
    Joins,
    /// Nothing is left.
    Empties,
    /// It stays the same.
    Stays,
}

impl Effect {
    fn is(self, before: &Sectors, after: &Sectors) -> bool {
        match self {
            Effect::Changes => after != before,
            Effect::Lengthens => {
                let (old, new) = (before.split_last(), after.split_last());
                old.zip(new).is_some_and(|((old, old_rest), (new, new_rest))| {
                    old_rest == new_rest && old.0 == new.0 && old.1 < new.1
                })
            }
            Effect::Splits => after.len() > before.len(),
            Effect::Joins => after.len() < before.len() && !after.is_empty(),
            Effect::Empties => after.is_empty() && !before.is_empty(),
            Effect::Stays => after == before,
        }
    }
}

/// Intervals within which a change is shown that the stamp tells: the look that was under way, the
/// next one, and one to spare.
const AT_ONCE: usize = 3;

/// A daemon that follows a file per case, and one on another disk that never changes.
struct Bench {
    disk: Disk,
    trace: Trace,
    clock: PathBuf,
    _daemon: Daemon,
}

impl Bench {
    /// A disk with a file for each of these cases.
    fn new(disk: Disk, cases: &[&[Case]], args: &[&str]) -> Bench {
        // The last comes first, so that the first finds free space where its file left it.
        let cases = cases.iter().copied().flatten().rev();
        let prepare = |case: &Case| {
            let file = disk.path(&name(case.what));
            (case.prepare)(&file);
            file
        };
        let files: Vec<PathBuf> = cases.map(prepare).collect();
        Bench::following(disk, &files, args)
    }

    /// Follows these files with `dmfilemapd run ARGS`.
    fn following(disk: Disk, files: &[PathBuf], args: &[&str]) -> Bench {
        write_back_soon();
        let clock = Disk::format(3, "ext4", "-q").path("clock");
        change::solid(&clock);
        vm::sh("sync");
        let paths: Vec<&Path> = files.iter().chain([&clock]).map(PathBuf::as_path).collect();
        let (daemon, trace) = Trace::run(args, &paths);
        let bench = Bench { disk, trace, clock, _daemon: daemon };
        bench.assert_all_follow("at first", files);
        bench
    }

    fn assert_all_follow(&self, what: &str, files: &[PathBuf]) -> Vec<Sectors> {
        let pairs: Vec<(&Path, &str)> = files.iter().map(|file| (&**file, alias(file))).collect();
        assert_all_follow(&self.disk, what, &pairs)
    }

    /// Waits until the file's extents are not read any more.
    fn wait_for_rest(&self, file: &Path) {
        wait_until(&format!("{} comes to rest", file.display()), || {
            match self.trace.looks_since_map(&self.clock, file) {
                looks @ 0..4 => Err(format!("{looks} looks since the last map")),
                _ => Ok(()),
            }
        });
    }

    fn wait_for_looks(&self, number: usize) {
        let now = self.trace.now();
        wait_until("the daemon looks", || match self.trace.looks(&self.clock, now) {
            looks if looks < number => Err(format!("{looks} looks")),
            _ => Ok(()),
        });
    }

    /// Checks each case on a file at rest.
    fn check_from_rest(&self, cases: &[Case]) {
        self.wait_for_rest(&self.clock);
        for case in cases {
            self.wait_for_rest(&self.disk.path(&name(case.what)));
        }
        self.check(cases, AT_ONCE);
    }

    /// Checks each case; an update may take so many intervals.
    fn check(&self, cases: &[Case], intervals: usize) {
        self.wait_for_rest(&self.clock);
        let right = |case: &&Case| {
            catch_unwind(AssertUnwindSafe(|| self.check_case(case, intervals))).is_ok()
        };
        let wrong = cases.iter().filter(|case| !right(case)).map(|case| case.what);
        assert_eq!(wrong.collect::<Vec<_>>(), [""; 0], "these went wrong, see above");
    }

    fn check_case(&self, case: &Case, intervals: usize) {
        let file = self.disk.path(&name(case.what));
        self.check_change(case.what, &file, case.act, case.effect, intervals);
    }

    fn check_change(
        &self,
        what: &str,
        file: &Path,
        act: impl FnOnce(&Path),
        effect: Effect,
        intervals: usize,
    ) {
        let (before, old) = (map(file), self.disk.group(alias(file)));
        let begin = self.trace.now();
        act(file);
        let done = self.trace.now();
        let after = assert_follows(&self.disk, what, file, alias(file));

        assert!(effect.is(&before, &after), "{what}: {effect:?}: {before:?} -> {after:?}");
        let messages = self.trace.changes(begin);
        self.wait_for_looks(2);
        assert_eq!(self.trace.changes(begin), messages, "{what}: it was right, and goes on");
        match effect {
            Effect::Stays => assert_eq!(messages, [""; 0], "{what} needs no message"),
            _ => {
                let looks = self.trace.looks_until_change(&self.clock, done).unwrap_or(0);
                assert!(looks <= intervals, "{what} took {looks} intervals: {messages:?}");
            }
        }
        if let (Some((old_id, old)), Some((id, new))) = (old, self.disk.group(alias(file))) {
            let kept = regions(&old).filter(|(_, extent)| lies_within(*extent, &after));
            let lost: Vec<_> = kept.filter(|kept| !regions(&new).any(|new| new == *kept)).collect();
            assert_eq!(lost, [], "{what}: these regions lie within the file still: {messages:?}");
            let created = messages.iter().any(|message| message.starts_with("@stats_create"));
            // A group moves up only if nothing was created that could have taken its place.
            assert!(id <= old_id || !created, "{what}: {old_id} is now {id}: {messages:?}");
        }
    }
}

fn regions(group: &Group) -> impl Iterator<Item = (u32, (u64, u64))> {
    group.members.iter().copied().zip(group.extents.iter().copied())
}

fn lies_within(extent: (u64, u64), map: &Sectors) -> bool {
    map.iter().any(|(start, end)| *start <= extent.0 && extent.1 <= *end)
}

fn name(what: &str) -> String {
    what.replace(' ', "_")
}

fn alias(file: &Path) -> &str {
    file.file_name().unwrap().to_str().unwrap()
}

fn map(file: &Path) -> Sectors {
    mapped(&[file]).remove(0).unwrap_or_else(|| panic!("{} has a map", file.display()))
}

const BOTH: &[Case] = &[
    Case {
        what: "growth of the last extent",
        prepare: change::roomy,
        act: |file| change::append(file, Way::Direct, 64 * KIB),
        effect: Effect::Lengthens,
    },
    Case {
        what: "a buffered append",
        prepare: change::solid,
        act: |file| {
            change::append(file, Way::Buffered, 64 * KIB);
            change::sync(file);
        },
        effect: Effect::Changes,
    },
    Case {
        what: "a direct append",
        prepare: change::solid,
        act: |file| change::append(file, Way::Direct, 64 * KIB),
        effect: Effect::Changes,
    },
    Case {
        what: "an O_DSYNC append",
        prepare: change::solid,
        act: |file| change::append(file, Way::Dsync, 64 * KIB),
        effect: Effect::Changes,
    },
    Case {
        what: "a new extent",
        prepare: change::solid,
        act: |file| change::write(file, Way::Direct, 8 * MIB, 64 * KIB),
        effect: Effect::Splits,
    },
    Case {
        what: "the very first extent",
        prepare: |file| change::truncate(file, MIB),
        act: |file| change::write(file, Way::Direct, 0, 64 * KIB),
        effect: Effect::Splits,
    },
    Case {
        what: "an overwrite in place",
        prepare: change::solid,
        act: |file| change::write(file, Way::Direct, 256 * KIB, 64 * KIB),
        effect: Effect::Stays,
    },
    Case {
        what: "a write to unwritten space",
        prepare: change::unwritten,
        act: |file| change::write(file, Way::Direct, 256 * KIB, 64 * KIB),
        effect: Effect::Stays,
    },
    Case {
        what: "a write into a hole",
        prepare: change::holed,
        act: |file| change::write(file, Way::Direct, 320 * KIB, 64 * KIB),
        effect: Effect::Changes,
    },
    Case {
        what: "a store into a hole through mmap",
        prepare: change::holed,
        act: |file| {
            change::store(file, 320 * KIB, 64 * KIB);
            change::sync(file);
        },
        effect: Effect::Changes,
    },
    Case {
        what: "fallocate behind the end",
        prepare: change::solid,
        act: |file| change::reserve(file, MIB, MIB),
        effect: Effect::Changes,
    },
    Case {
        what: "fallocate that keeps the size",
        prepare: change::solid,
        act: |file| change::reserve_keeping_size(file, MIB, MIB),
        effect: Effect::Changes,
    },
    Case {
        what: "a hole in the middle",
        prepare: change::solid,
        act: |file| change::punch(file, 256 * KIB, 256 * KIB),
        effect: Effect::Splits,
    },
    Case {
        what: "a hole at the start",
        prepare: change::holed,
        act: |file| change::punch(file, 0, 256 * KIB),
        effect: Effect::Changes,
    },
    Case {
        what: "a hole filled directly and as many blocks as before",
        prepare: change::solid,
        act: |file| move_away(file, |file| refill(file, Way::Direct)),
        effect: Effect::Changes,
    },
    Case {
        what: "a hole filled from memory and as many blocks as before",
        prepare: change::solid,
        act: |file| move_away(file, |file| refill(file, Way::Buffered)),
        effect: Effect::Changes,
    },
    Case {
        what: "truncation in the middle of an extent",
        prepare: change::solid,
        act: |file| change::truncate(file, 256 * KIB),
        effect: Effect::Changes,
    },
    Case {
        what: "truncation to a greater length",
        prepare: change::solid,
        act: |file| change::truncate(file, 2 * MIB),
        effect: Effect::Stays,
    },
    Case {
        what: "truncation to nothing",
        prepare: change::solid,
        act: |file| change::truncate(file, 0),
        effect: Effect::Empties,
    },
    Case {
        what: "truncation to nothing and a new beginning",
        prepare: change::solid,
        act: |file| {
            move_away(file, |file| {
                change::truncate(file, 0);
                change::write(file, Way::Buffered, 0, MIB);
                change::sync(file);
            });
        },
        effect: Effect::Changes,
    },
    Case {
        what: "a range collapsed",
        prepare: change::solid,
        act: |file| change::collapse(file, 256 * KIB, 256 * KIB),
        effect: Effect::Splits,
    },
    Case {
        what: "a range inserted",
        prepare: change::solid,
        act: |file| change::insert(file, 256 * KIB, 256 * KIB),
        effect: Effect::Stays,
    },
    Case {
        what: "another mode",
        prepare: change::solid,
        act: |file| drop(vm::sh(&format!("chmod 600 {}", file.display()))),
        effect: Effect::Stays,
    },
];

/// Punches a hole and fills it.
fn refill(file: &Path, way: Way) {
    let before = change::blocks(file);
    change::punch(file, 256 * KIB, 256 * KIB);
    change::write(file, way, 256 * KIB, 256 * KIB);
    change::sync(file);
    assert_eq!(change::blocks(file), before, "lvm2's daemon would see no change");
}

/// Frees blocks of the file and has others allocated. What was freed is given out again only once
/// that is in the journal: should that happen in between, the file may get the same blocks.
fn move_away(file: &Path, act: impl Fn(&Path)) {
    let before = map(file);
    for _ in 0..10 {
        act(file);
        if map(file) != before {
            return;
        }
    }
}

/// A file with a clone beside it, which is not followed.
///
/// xfs makes copies of shared blocks where it has reserved 128 KiB for them and their neighbours,
/// aligned in the file. The neighbours of what is at 256 KiB are at 320 KiB, where there is a hole.
fn cloned(file: &Path) {
    change::solid(file);
    change::punch(file, 320 * KIB, 64 * KIB);
    change::clone(file, &twin(file));
}

/// A file with another of the same contents beside it.
fn doubled(file: &Path) {
    change::solid(file);
    change::solid(&twin(file));
}

fn twin(file: &Path) -> PathBuf {
    file.with_extension("twin")
}

const EXT4: &[Case] = &[Case {
    what: "a range zeroed",
    prepare: change::solid,
    act: |file| change::zero(file, 256 * KIB, 256 * KIB),
    effect: Effect::Stays,
}];

const XFS: &[Case] = &[
    Case {
        what: "a range zeroed",
        prepare: change::solid,
        act: |file| move_away(file, |file| change::zero(file, 256 * KIB, 256 * KIB)),
        effect: Effect::Changes,
    },
    Case {
        what: "a clone of another file in its place",
        prepare: doubled,
        act: |file| change::clone(&twin(file), file),
        effect: Effect::Changes,
    },
    Case {
        what: "being cloned",
        prepare: change::solid,
        act: |file| change::clone(file, &twin(file)),
        effect: Effect::Stays,
    },
];

/// Files that have shared extents, whose map is read at every look.
const XFS_SHARED: &[Case] = &[
    Case {
        what: "a direct write to a shared extent",
        prepare: cloned,
        act: |file| change::write(file, Way::Direct, 0, 64 * KIB),
        effect: Effect::Changes,
    },
    Case {
        what: "a buffered write to a shared extent",
        prepare: cloned,
        act: |file| {
            change::write(file, Way::Buffered, 0, 64 * KIB);
            change::sync(file);
        },
        effect: Effect::Changes,
    },
    Case {
        what: "a write into a hole beside a copy",
        prepare: cloned,
        act: |file| {
            change::write(file, Way::Buffered, 256 * KIB, 4 * KIB);
            change::sync(file);
            change::write(file, Way::Buffered, 320 * KIB, 4 * KIB);
            change::sync(file);
        },
        effect: Effect::Changes,
    },
    Case {
        what: "a write into a hole beside a copy without a clone left",
        prepare: cloned,
        act: |file| {
            change::write(file, Way::Buffered, 256 * KIB, 4 * KIB);
            change::sync(file);
            fs::remove_file(twin(file)).unwrap();
            change::sync(file);
            change::write(file, Way::Buffered, 320 * KIB, 4 * KIB);
            change::sync(file);
        },
        effect: Effect::Changes,
    },
    Case {
        what: "an end of sharing",
        prepare: cloned,
        act: |file| change::xfs_io(file, &["funshare 0 1m"]),
        effect: Effect::Changes,
    },
];

const EXT4_INLINE: &[Case] = &[
    Case {
        what: "data that leaves the inode",
        prepare: |file| change::write(file, Way::Buffered, 0, 60),
        act: |file| {
            change::append(file, Way::Buffered, 64 * KIB);
            change::sync(file);
        },
        effect: Effect::Splits,
    },
    Case {
        what: "data that stays in the inode",
        prepare: |file| change::write(file, Way::Buffered, 0, 60),
        act: |file| {
            change::append(file, Way::Buffered, 20);
            change::sync(file);
        },
        effect: Effect::Stays,
    },
];

/// Files without extents in the inode, but with lists of blocks.
const EXT3: &[Case] = &[
    Case {
        what: "a buffered append",
        prepare: |file| change::write(file, Way::Direct, 0, 32 * KIB),
        act: |file| {
            change::append(file, Way::Buffered, 64 * KIB);
            change::sync(file);
        },
        effect: Effect::Changes,
    },
    Case {
        what: "a direct append",
        prepare: |file| change::write(file, Way::Direct, 0, 32 * KIB),
        act: |file| change::append(file, Way::Direct, 64 * KIB),
        effect: Effect::Changes,
    },
    Case {
        what: "a hole in the middle",
        prepare: change::solid,
        act: |file| change::punch(file, 256 * KIB, 256 * KIB),
        effect: Effect::Splits,
    },
    Case {
        what: "truncation to nothing",
        prepare: change::solid,
        act: |file| change::truncate(file, 0),
        effect: Effect::Empties,
    },
];

/// In log-structured mode every write goes to a new place.
const F2FS: &[Case] = &[
    Case {
        what: "a buffered append",
        prepare: change::solid,
        act: |file| {
            change::append(file, Way::Buffered, 64 * KIB);
            change::sync(file);
        },
        effect: Effect::Changes,
    },
    Case {
        what: "a buffered overwrite",
        prepare: change::solid,
        act: |file| {
            change::write(file, Way::Buffered, 256 * KIB, 64 * KIB);
            change::sync(file);
        },
        effect: Effect::Changes,
    },
    Case {
        what: "a direct overwrite",
        prepare: change::solid,
        act: |file| change::write(file, Way::Direct, 256 * KIB, 64 * KIB),
        effect: Effect::Changes,
    },
    Case {
        // f2fs gives it addresses from 0 on, which are not the file's.
        what: "space that is only promised",
        prepare: |file| change::write(file, Way::Direct, 0, 64 * KIB),
        act: |file| change::reserve(file, 64 * KIB, MIB),
        effect: Effect::Stays,
    },
    Case {
        what: "a write to space that was only promised",
        prepare: |file| change::reserve(file, 0, MIB),
        act: |file| {
            change::write(file, Way::Buffered, 256 * KIB, 64 * KIB);
            change::sync(file);
        },
        effect: Effect::Changes,
    },
    Case {
        what: "truncation to nothing",
        prepare: change::solid,
        act: |file| change::truncate(file, 0),
        effect: Effect::Empties,
    },
];

/// What leaves no trace in the stamp.
const EXT4_SILENT: &[Case] = &[Case {
    what: "defragmenting",
    prepare: change::scattered,
    act: |file| drop(vm::sh(&format!("e4defrag {}", file.display()))),
    effect: Effect::Joins,
}];

const XFS_SILENT: &[Case] = &[
    Case {
        what: "defragmenting",
        prepare: change::scattered,
        act: |file| drop(vm::sh(&format!("xfs_fsr {}", file.display()))),
        effect: Effect::Joins,
    },
    Case {
        what: "deduplication",
        prepare: doubled,
        act: |file| {
            let twin = twin(file);
            change::xfs_io(file, &[&format!("dedupe {} 0 0 1m", twin.display())]);
        },
        effect: Effect::Changes,
    },
];

const NEVER: &[&str] = &["--full-look", "10m"];
const SOON: &[&str] = &["--full-look", "2s"];

/// Intervals within which a silent change is shown: those of a full look, twice.
const SOON_ENOUGH: usize = 16;

#[test]
fn ext4() {
    if vm::inside("rest::ext4") {
        let bench = Bench::new(Disk::format(0, "ext4", "-q"), &[BOTH, EXT4], NEVER);
        bench.check_from_rest(BOTH);
        bench.check_from_rest(EXT4);
    }
}

#[test]
fn ext4_in_silence() {
    if vm::inside("rest::ext4_in_silence") {
        let bench = Bench::new(Disk::format(0, "ext4", "-q"), &[EXT4_SILENT], SOON);
        bench.wait_for_rest(&bench.disk.path("defragmenting"));
        bench.check(EXT4_SILENT, SOON_ENOUGH);
    }
}

#[test]
fn ext4_with_inline_data() {
    if vm::inside("rest::ext4_with_inline_data") {
        let disk = Disk::format(0, "ext4", "-q -O inline_data -I 256");
        Bench::new(disk, &[EXT4_INLINE], NEVER).check(EXT4_INLINE, AT_ONCE);
    }
}

#[test]
fn ext3() {
    if vm::inside("rest::ext3") {
        let bench = Bench::new(Disk::format(0, "ext3", "-q"), &[EXT3], NEVER);
        bench.check_from_rest(EXT3);
    }
}

#[test]
fn xfs() {
    if vm::inside("rest::xfs") {
        write_back_soon();
        let bench = Bench::new(Disk::format(0, "xfs", "-q -m reflink=1"), &[BOTH, XFS], NEVER);
        bench.check_from_rest(BOTH);
        bench.check_from_rest(XFS);
    }
}

#[test]
fn xfs_shared() {
    if vm::inside("rest::xfs_shared") {
        let disk = Disk::format(0, "xfs", "-q -m reflink=1");
        Bench::new(disk, &[XFS_SHARED], NEVER).check(XFS_SHARED, AT_ONCE);
    }
}

#[test]
fn xfs_in_silence() {
    if vm::inside("rest::xfs_in_silence") {
        let disk = Disk::format(0, "xfs", "-q -m reflink=1");
        Bench::new(disk, &[XFS_SILENT], SOON).check(XFS_SILENT, SOON_ENOUGH);
    }
}

#[test]
fn f2fs() {
    if vm::inside("rest::f2fs") {
        let disk = Disk::format_and_mount(0, "f2fs", "-q", "mode=lfs");
        Bench::new(disk, &[F2FS], NEVER).check(F2FS, AT_ONCE);
    }
}

/// Data is written back long after the daemon has stopped to expect it.
fn written_back_late(bench: &Bench, files: &[(&Path, u64)]) {
    bench.wait_for_rest(&bench.clock);
    vm::sh(
        "echo 360000 >/proc/sys/vm/dirty_expire_centisecs
         echo 360000 >/proc/sys/vm/dirty_writeback_centisecs",
    );
    for (file, offset) in files {
        change::write(file, Way::Buffered, *offset, 64 * KIB);
    }
    // The clock file came to rest in fewer looks than these.
    bench.wait_for_looks(SETTLE_LOOKS);
    for (file, _) in files {
        let late = |file: &Path| change::sync(file);
        bench.check_change("a late writeback", file, late, Effect::Changes, AT_ONCE);
    }
}

/// Looks in seven seconds, and settling takes less than six here.
const SETTLE_LOOKS: usize = 28;

#[test]
fn ext4_late() {
    if vm::inside("rest::ext4_late") {
        let disk = Disk::format_and_mount(0, "ext4", "-q", "commit=3600");
        let (file, inline) = (disk.path("file"), disk.path("holed"));
        change::solid(&file);
        change::holed(&inline);
        let bench = Bench::following(disk, &[file.clone(), inline.clone()], NEVER);
        written_back_late(&bench, &[(&file, MIB), (&inline, 256 * KIB)]);
    }
}

#[test]
fn xfs_late() {
    if vm::inside("rest::xfs_late") {
        let disk = Disk::format(0, "xfs", "-q -m reflink=1");
        let files = ["file", "shared", "beside"].map(|name| disk.path(name));
        let [file, shared, beside] = &files;
        change::solid(file);
        cloned(shared);
        cloned(beside);
        let bench = Bench::following(disk, &files, NEVER);
        // The room for neighbours stays when nothing is shared any more.
        change::write(beside, Way::Buffered, 256 * KIB, 4 * KIB);
        change::sync(beside);
        fs::remove_file(twin(beside)).unwrap();
        written_back_late(&bench, &[(file, MIB), (shared, 0), (beside, 320 * KIB)]);
    }
}

/// Filesystems stamp with the time of the last tick, 10 ms long here. What is done right after a
/// look and within its tick may not show in the stamp.
fn several_within_a_tick(kind: &str) {
    let disk = Disk::format(0, kind, "-q");
    let file = disk.path("file");
    change::solid(&file);
    change::sync(&file);
    let _daemon = Daemon::run(&["--interval".as_ref(), "1ms".as_ref(), file.as_ref()]);
    for round in 0..20 {
        for _ in 0..10 {
            change::punch(&file, 256 * KIB, 256 * KIB);
            change::write(&file, Way::Direct, 256 * KIB, 256 * KIB);
        }
        assert_follows(&disk, &format!("ten refills, {round}"), &file, "file");
    }
}

#[test]
fn ext4_within_a_tick() {
    if vm::inside("rest::ext4_within_a_tick") {
        several_within_a_tick("ext4");
    }
}

#[test]
fn xfs_within_a_tick() {
    if vm::inside("rest::xfs_within_a_tick") {
        several_within_a_tick("xfs");
    }
}

/// xfs reserves room behind the end of a file that is written to, and takes it back when the writer
/// closes the file: which changes the number of blocks, and no time.
#[test]
fn xfs_room_for_a_writer() {
    if !vm::inside("rest::xfs_room_for_a_writer") {
        return;
    }
    let disk = Disk::format(0, "xfs", "-q");
    let file = disk.path("log");
    change::solid(&file);
    let bench = Bench::following(disk, slice::from_ref(&file), NEVER);
    bench.wait_for_rest(&file);
    let writer = change::open(&file, Way::Buffered);
    (0..64).for_each(|piece| change::write_to(&writer, piece * 64 * KIB, 64 * KIB));
    writer.sync_all().unwrap();
    // Not to be asked of filefrag: when that closes the file, it takes away the room as well.
    let bytes = |map: Sectors| map.iter().map(|(start, end)| (end - start) * 512).sum::<u64>();
    wait_until("the group has the room, too", || {
        let (_, group) = bench.disk.group("log").unwrap();
        match bytes(counted(&group)) > change::size(&file) {
            true => Ok(()),
            false => Err(format!("{group:?}")),
        }
    });
    bench.wait_for_rest(&file);
    let done = bench.trace.now();
    drop(writer);
    let map = assert_follows(&bench.disk, "the writer's end", &file, "log");
    assert_eq!(bytes(map), change::size(&file), "the room is gone");
    let looks = bench.trace.looks_until_change(&bench.clock, done);
    assert!(looks.is_some_and(|looks| looks <= AT_ONCE), "{looks:?} intervals");
}

/// f2fs moves files together to have large free spaces, and stamps nothing.
#[test]
fn f2fs_in_silence() {
    if !vm::inside("rest::f2fs_in_silence") {
        return;
    }
    let disk = Disk::format(0, "f2fs", "-q");
    let files = (0..60).map(|number| disk.path(&format!("file{number}")));
    let (gone, files): (Vec<PathBuf>, Vec<PathBuf>) =
        files.partition(|file| alias(file).ends_with(['1', '3', '5']));
    for file in gone.iter().chain(&files) {
        change::write(file, Way::Dsync, 0, 256 * KIB);
    }
    for file in gone {
        fs::remove_file(file).unwrap();
    }
    vm::sh("sync");
    let bench = Bench::following(disk, &files, NEVER);
    bench.wait_for_looks(SETTLE_LOOKS);
    let maps = || files.iter().map(|file| map(file)).collect::<Vec<_>>();
    let before = maps();
    let collect = |urgency: u32| {
        vm::sh(&format!("for dir in /sys/fs/f2fs/dm-*; do echo {urgency} >$dir/gc_urgent; done"));
    };
    collect(1);
    wait_until("f2fs moves a file", || match maps() != before {
        true => Ok(()),
        false => Err(format!("{before:?}")),
    });
    collect(0);
    bench.assert_all_follow("f2fs has moved some", &files);
}
