//! Followed files, and what happens to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

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

/// A followed file of four pieces, with a hole that is filled and punched in turns: each change is
/// one more extent or one less, and the others stay.
#[derive(Clone, Debug)]
pub struct File {
    pub path: PathBuf,
    is_filled: bool,
}

impl File {
    fn make(path: PathBuf) -> File {
        change::write(&path, Way::Direct, 0, 32 * EXTENTS * KIB);
        (0..EXTENTS).for_each(|piece| change::punch(&path, (32 * piece + 16) * KIB, 16 * KIB));
        change::sync(&path);
        File { path, is_filled: false }
    }

    /// Fills the hole behind its second piece, or punches it again. It has its place on the device
    /// when this returns.
    pub fn change(&mut self) {
        let (at, len) = (48 * KIB, 16 * KIB);
        if self.is_filled {
            change::punch(&self.path, at, len);
        } else {
            change::write(&self.path, Way::Direct, at, len);
        }
        self.is_filled = !self.is_filled;
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
        Files(paths.map(|path| File { path, is_filled: false }).collect())
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
