//! Followed files, and what happens to them.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use dmfilemapd::extent::Fingerprint;
use dmfilemapd::kernel::fiemap::Pages;
use dmfilemapd::sample;

use crate::change::{self, KIB, Way};
use crate::guest::Disk;
use crate::judge::{Judge, Lags};

/// How long the judge sleeps between two listings: how exactly it knows when a group was right.
pub const GLANCE: Duration = Duration::from_millis(10);

/// How long after the last change a group may take to be right before it is taken for lost; and how
/// long if there is no such group any more, or none that can be read.
const PATIENCE: Duration = Duration::from_secs(90);
const PATIENCE_WITHOUT: Duration = Duration::from_secs(5);

/// Between two changes of a file. No multiple of the interval, so they meet every moment of it.
pub const PERIOD: Duration = Duration::from_millis(1100);

/// Pieces of a file that was not changed yet.
pub const EXTENTS: u64 = 4;

/// What a piece takes, and from the start of one to that of the next.
const PIECE: u64 = 16 * KIB;
const STRIDE: u64 = 2 * PIECE;

/// Pieces that there is room for in a file. Its pieces move along there, and around.
const PLACES: u64 = 64;

/// Changes among which no map comes twice: more than there are while anybody waits for a group.
const CHANGES: usize = 100;

/// Steps after which a file must have a map that it has not had for so long.
const STEPS_MAX: usize = 64;

/// A followed file of four pieces. In turns it is given one more and is robbed of its second: so
/// each change is an extent more or one less, the others stay, and no map comes again within
/// [`CHANGES`]. A group that is never updated is never right again.
#[derive(Clone, Debug)]
pub struct File {
    pub path: PathBuf,
    /// Pieces behind the first that were ever added, and taken away.
    added: u64,
    taken: u64,
    /// The maps of the last changes.
    seen: VecDeque<Fingerprint>,
}

impl File {
    fn make(path: PathBuf) -> File {
        fs::remove_file(&path).ok(); // one that was changed before has other pieces
        change::write(&path, Way::Direct, 0, STRIDE * EXTENTS);
        (0..EXTENTS).for_each(|piece| change::punch(&path, STRIDE * piece + PIECE, PIECE));
        change::truncate(&path, STRIDE * (PLACES + 1));
        change::sync(&path);
        let mut file = File { path, added: EXTENTS - 1, taken: 0, seen: VecDeque::new() };
        file.seen.push_back(file.fingerprint());
        file
    }

    /// Leads to a map that the file has not had for long. It has its place on the device when this
    /// returns.
    pub fn change(&mut self) {
        for _ in 0..STEPS_MAX {
            self.step();
            let map = self.fingerprint();
            if !self.seen.contains(&map) {
                self.seen.truncate(CHANGES - 1);
                return self.seen.push_front(map);
            }
        }
        panic!("{} only has maps that it had before", self.path.display());
    }

    /// The first piece always stays: with it goes the group's id, which is another kind of change.
    fn step(&mut self) {
        let place = |piece: u64| (1 + piece % PLACES) * STRIDE;
        // Where a disk is full of others, the same blocks are had again and again.
        let len = |piece: u64| 4 * KIB * (1 + piece % 7);
        if self.added - self.taken < EXTENTS {
            change::write(&self.path, Way::Direct, place(self.added), len(self.added));
            self.added += 1;
        } else {
            change::punch(&self.path, place(self.taken), len(self.taken).max(PIECE));
            self.taken += 1;
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        let open = fs::File::open(&self.path).unwrap();
        sample::read_map(&open, &mut Pages::default()).unwrap().fingerprint
    }

    /// The alias of its group: its name.
    pub fn alias(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap()
    }
}

/// The files of a disk that are followed: `000.img` and so on.
#[derive(Clone, Debug)]
pub struct Files(pub Vec<File>);

impl Files {
    /// What [`Files::make`] makes, as a pattern.
    pub fn pattern(disk: &Disk) -> PathBuf {
        disk.path("*.img")
    }

    /// So many files, and no more of their kind.
    pub fn make(disk: &Disk, count: usize) -> Files {
        for at in count.. {
            let left = disk.path(&format!("{at:03}.img"));
            if fs::remove_file(left).is_err() {
                break;
            }
        }
        Files((0..count).map(|at| File::make(disk.path(&format!("{at:03}.img")))).collect())
    }

    /// Files that there are, and whose names are of the same kind.
    pub fn of(paths: impl Iterator<Item = PathBuf>) -> Files {
        Files(paths.map(|path| File { path, added: 0, taken: 0, seen: VecDeque::new() }).collect())
    }

    pub fn remove(self) {
        self.paths().for_each(|path| fs::remove_file(path).unwrap());
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|file| file.path.as_path())
    }

    /// Changes each file every [`PERIOD`] for so long.
    pub fn keep_changing(&mut self, time: Duration) {
        self.change_while(time, &mut |_, _| PERIOD);
    }

    /// Changes each file once, and takes so long for it.
    pub fn change_all_within(&mut self, time: Duration) {
        let began = Instant::now();
        let count = u32::try_from(self.0.len()).unwrap();
        for (at, file) in (1..).zip(&mut self.0) {
            file.change();
            thread::sleep((time * at / count).saturating_sub(began.elapsed()));
        }
    }

    /// Changes each file every [`PERIOD`] for so long, and sees how long their groups are wrong.
    pub fn watch_changing(&mut self, time: Duration, judge: &mut Judge) -> Lags {
        let mut lags = Lags::new(self.0.len());
        self.change_while(time, &mut |files, changed| {
            for at in changed {
                lags.changed(*at);
            }
            lags.judge(files, &judge.groups());
            GLANCE
        });
        self.watch(judge, lags)
    }

    /// Changes each file once, and sees how long their groups are wrong.
    pub fn watch_one_change(&mut self, judge: &mut Judge) -> Lags {
        let mut lags = Lags::new(self.0.len());
        for at in 0..self.0.len() {
            self.0[at].change();
            lags.changed(at);
        }
        self.watch(judge, lags)
    }

    /// Waits until the groups are right, those that are not lost.
    pub fn wait_until_right(&self, judge: &mut Judge) {
        let mut lags = Lags::new(self.0.len());
        (0..self.0.len()).for_each(|at| lags.changed(at));
        self.watch(judge, lags);
    }

    /// Waits until the groups are right again, and no longer for those that seem to be lost.
    fn watch(&self, judge: &mut Judge, mut lags: Lags) -> Lags {
        let began = Instant::now();
        let mut there = began; // when a group that is wrong was there
        while there.elapsed() < PATIENCE_WITHOUT
            && began.elapsed() < PATIENCE
            && lags.count_open() > 0
        {
            let groups = judge.groups();
            lags.judge(&self.0, &groups);
            if lags.open(&self.0).any(|file| groups.contains_key(file.alias())) {
                there = Instant::now();
            }
            thread::sleep(GLANCE);
        }
        lags
    }

    /// After each round of changes `look` is told which files have changed; it says when to call it
    /// again at the latest.
    fn change_while(
        &mut self,
        time: Duration,
        look: &mut dyn FnMut(&[File], &[usize]) -> Duration,
    ) {
        let began = Instant::now();
        let count = u32::try_from(self.0.len()).unwrap();
        let mut dues: Vec<Duration> = (0..count).map(|at| PERIOD * at / count).collect();
        while began.elapsed() < time {
            let now = began.elapsed();
            let due = (0..dues.len()).filter(|at| dues[*at] <= now).collect::<Vec<_>>();
            for &at in &due {
                self.0[at].change();
                dues[at] += PERIOD;
            }
            let next = look(&self.0, &due);
            let until = dues.iter().min().copied().unwrap_or_default();
            thread::sleep(until.saturating_sub(began.elapsed()).min(next));
        }
    }
}
