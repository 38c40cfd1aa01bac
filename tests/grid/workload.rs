//! Writers that know what they write.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;

use crate::account::{Account, Number};
use crate::change::{self, KIB, MIB, Way};
use crate::guest::Disk;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Three files that grow in turns, each in its way, and beside them one that nobody follows.
    Append,
    /// Two files that begin again at their start when they have their size, and a growing one;
    /// beside them one that nobody follows is overwritten.
    Ring,
    /// Blocks at any offset of two files that have mostly holes; beside them likewise.
    Sparse,
    /// Tables that are overwritten at any offset, and a log that grows; beside them likewise.
    Database,
    /// Two growing files among as much that nobody follows: in the same places others grow, are
    /// overwritten, and come and go.
    Crowd,
}

pub const ALL: [Workload; 5] =
    [Workload::Append, Workload::Ring, Workload::Sparse, Workload::Database, Workload::Crowd];

/// Between two rounds of the account.
const ROUND: u64 = 2 * MIB;

/// A file that counts what it is given to write.
struct Writer {
    number: Number,
    file: File,
    path: PathBuf,
    buffered: bool,
    written: u64,
}

/// All writers of a workload, and the account that follows some of them.
struct Scene<'a> {
    disk: &'a Disk,
    account: &'a mut Account,
    writers: Vec<Writer>,
    random: u64,
    since_round: u64,
}

/// Runs it until each followed file has about this size; returns what each has written.
pub fn run(
    workload: Workload,
    disk: &Disk,
    size: u64,
    account: &mut Account,
) -> BTreeMap<Number, u64> {
    let (writers, random, since_round) = (Vec::new(), 0x2545_f491_4f6c_dd1d, 0);
    let mut scene = Scene { disk, account, writers, random, since_round };
    match workload {
        Workload::Append => scene.append(size),
        Workload::Ring => scene.ring(size),
        Workload::Sparse => scene.sparse(size),
        Workload::Database => scene.database(size),
        Workload::Crowd => scene.crowd(size),
    }
    scene.flush();
    let followed = scene.writers.iter().filter(|writer| writer.number != NOBODY);
    followed.map(|writer| (writer.number, writer.written)).collect()
}

/// The number of a file that is not followed.
const NOBODY: Number = Number::MAX;

impl Scene<'_> {
    /// A new file, which is followed from its birth; returns its place among the writers.
    fn create(&mut self, name: &str, way: Way) -> usize {
        let number = Number::try_from(self.writers.len()).unwrap();
        let at = self.create_unfollowed(name, way);
        self.writers[at].number = number;
        self.account.follow(number, &self.writers[at].path);
        at
    }

    fn create_unfollowed(&mut self, name: &str, way: Way) -> usize {
        let path = self.disk.path(name);
        let file = change::open(&path, way);
        let (number, buffered, written) = (NOBODY, way == Way::Buffered, 0);
        self.writers.push(Writer { number, file, path, buffered, written });
        self.writers.len() - 1
    }

    fn write(&mut self, at: usize, offset: u64, len: u64) {
        let writer = &mut self.writers[at];
        change::write_to(&writer.file, offset, len);
        writer.written += len;
        self.since_round += len;
        if self.since_round >= ROUND {
            self.flush();
            self.account.tick();
        }
    }

    fn append(&mut self, size: u64) {
        let direct = self.create("direct", Way::Direct);
        let synced = self.create("synced", Way::Dsync);
        let buffered = self.create("buffered", Way::Buffered);
        let stranger = self.create_unfollowed("stranger", Way::Dsync);
        for mib in 0..size / MIB {
            self.write(direct, mib * MIB, MIB);
            for block in 0..MIB / (4 * KIB) {
                let offset = mib * MIB + block * 4 * KIB;
                self.write(synced, offset, 4 * KIB);
                self.write(buffered, offset, 4 * KIB);
                if block % 16 == 0 {
                    self.write(stranger, offset, 16 * KIB);
                }
            }
        }
    }

    fn ring(&mut self, size: u64) {
        let stranger = self.stranger();
        let logs = [self.create("ring1", Way::Dsync), self.create("ring2", Way::Direct)];
        for log in logs {
            self.write(log, 0, size);
        }
        let growing = self.create("growing", Way::Dsync);
        for chunk in 0..3 * size / (64 * KIB) {
            for log in logs {
                self.write(log, chunk * 64 * KIB % size, 64 * KIB);
            }
            if chunk % 3 == 0 {
                self.write(growing, chunk / 3 * 64 * KIB, 64 * KIB);
                self.write(stranger, chunk / 3 * 64 * KIB % MIB, 64 * KIB);
            }
        }
    }

    fn sparse(&mut self, size: u64) {
        let stranger = self.stranger();
        let files = [self.create("sparse1", Way::Direct), self.create("sparse2", Way::Dsync)];
        for _ in 0..size / (16 * KIB) {
            for file in files {
                let offset = self.below(8 * size / (16 * KIB)) * 16 * KIB;
                self.write(file, offset, 16 * KIB);
            }
            let offset = self.below(MIB / (4 * KIB)) * 4 * KIB;
            self.write(stranger, offset, 4 * KIB);
        }
    }

    fn database(&mut self, size: u64) {
        let stranger = self.stranger();
        let tables = [self.create("table1", Way::Direct), self.create("table2", Way::Dsync)];
        for mib in 0..size / MIB {
            for table in tables {
                self.write(table, mib * MIB, MIB);
            }
        }
        let log = self.create("log", Way::Dsync);
        for transaction in 0..2 * size / (8 * KIB) {
            self.write(log, transaction * 4 * KIB, 4 * KIB);
            for table in tables {
                let offset = self.below(size / (8 * KIB)) * 8 * KIB;
                self.write(table, offset, 8 * KIB);
            }
            let offset = self.below(MIB / (4 * KIB)) * 4 * KIB;
            self.write(stranger, offset, 4 * KIB);
        }
    }

    fn crowd(&mut self, size: u64) {
        let files = [self.create("one", Way::Direct), self.create("two", Way::Dsync)];
        let strangers = ["growing", "overwritten"].map(|n| self.create_unfollowed(n, Way::Dsync));
        for chunk in 0..size / (16 * KIB) {
            for file in files {
                self.write(file, chunk * 16 * KIB, 16 * KIB);
            }
            let offset = self.below(size / (16 * KIB)) * 16 * KIB;
            self.write(strangers[0], chunk * 16 * KIB, 16 * KIB);
            self.write(strangers[1], offset, 16 * KIB);
            if chunk % 16 == 0 {
                let passing = self.create_unfollowed("passing", Way::Direct);
                self.write(passing, 0, 64 * KIB);
                let Writer { path, .. } = self.writers.remove(passing);
                fs::remove_file(path).unwrap();
            }
        }
    }

    /// A file that nobody follows, of a MiB.
    fn stranger(&mut self) -> usize {
        let stranger = self.create_unfollowed("stranger", Way::Dsync);
        self.write(stranger, 0, MIB);
        stranger
    }

    /// What is in memory goes to its place: once, since nobody writes the same block twice before.
    fn flush(&mut self) {
        self.since_round = 0;
        for writer in self.writers.iter().filter(|writer| writer.buffered) {
            writer.file.sync_all().unwrap();
        }
    }

    /// xorshift, by George Marsaglia.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }
}
