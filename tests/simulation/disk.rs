//! A filesystem on one device, as far as a follower sees it.
//!
//! It does what real ones do to a follower: timestamps advance in ticks, data gets its address (or,
//! copied on write, a new one) some time after the write and without a trace in the stamp,
//! defragmenting leaves no trace at all, inode numbers and blocks are given out again at once.

use dmfilemapd::dm::Device;
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::sight::{Imprint, Map, Stamp};

use super::dice::Dice;

/// Sectors in a block.
pub const BLOCK: u64 = 8;

/// Blocks on a disk.
pub const BLOCKS: usize = 512;

/// Blocks in a file at most.
const FILE_MAX: usize = 24;

/// The kernel's tick in microseconds: stamps are no finer.
const TICK: u64 = 10_000;

/// Microseconds for which written data may stay in memory, at most.
pub const DIRTY_MAX: u64 = 30_000_000;

/// Microseconds for which a change of metadata may stay in memory.
const COMMIT: u64 = 5_000_000;

#[derive(Clone, Debug)]
pub struct Inode {
    pub number: u64,
    /// Addresses of the blocks, in the order of the file.
    pub blocks: Vec<usize>,
    /// Blocks at the end that have no address yet.
    delayed: usize,
    /// Blocks that will get a new address once they are written back.
    copied: usize,
    /// When the oldest of that was written.
    dirty: Option<u64>,
    stamped: u64,
    pub links: u32,
    /// Whether another process has it open.
    pub held: bool,
}

impl Inode {
    pub fn lives(&self) -> bool {
        self.links > 0 || self.held
    }

    pub fn map(&self) -> Extents {
        let extent = |block: &usize| Extent::new(*block as u64 * BLOCK, BLOCK);
        self.blocks.iter().filter_map(extent).collect()
    }
}

#[derive(Clone, Debug)]
pub struct Disk {
    pub device: Device,
    /// Whether it is mounted, and whether there is such a device.
    pub mounted: bool,
    pub exists: bool,
    /// When it was last removed.
    pub removed: u64,
    pub inodes: Vec<Inode>,
    /// How many files use each block.
    users: [u8; BLOCKS],
    writes: u64,
    unwritten: Option<u64>,
}

impl Disk {
    pub fn new(device: Device) -> Disk {
        Disk {
            device,
            mounted: true,
            exists: true,
            removed: 0,
            inodes: Vec::new(),
            users: [0; BLOCKS],
            writes: 0,
            unwritten: None,
        }
    }

    /// The device's write counter at `now`.
    pub fn writes(&mut self, now: u64) -> u64 {
        if self.unwritten.take_if(|due| *due <= now).is_some() {
            self.writes += 1;
        }
        self.writes
    }

    /// A new file without a name, which takes the lowest number.
    pub fn create(&mut self, now: u64) -> usize {
        let taken =
            |number| self.inodes.iter().any(|inode| inode.lives() && inode.number == number);
        let number = (11..u64::MAX).find(|number| !taken(*number)).unwrap();
        self.inodes.push(Inode {
            number,
            blocks: Vec::new(),
            delayed: 0,
            copied: 0,
            dirty: None,
            stamped: now / TICK,
            links: 0,
            held: false,
        });
        self.inodes.len() - 1
    }

    pub fn stamp(&self, at: usize) -> Imprint {
        let inode = &self.inodes[at];
        let blocks = (inode.blocks.len() + inode.delayed) as u64 * BLOCK;
        let changed = i64::try_from(inode.stamped * TICK * 1000).unwrap();
        let (size, modified) = (blocks * 512, changed);
        let (device, number) = (self.device, inode.number);
        Stamp { device, inode: number, size, blocks, modified, changed }.imprint()
    }

    pub fn map(&self, at: usize) -> Map {
        let inode = &self.inodes[at];
        let extents = inode.map();
        let fingerprint = extents.fingerprint();
        let shared = inode.blocks.iter().any(|block| self.users[*block] > 1);
        let (blank, pending) = (Extents::default(), inode.delayed > 0);
        Map { extents, blank, fingerprint, pending, shared, shared_sectors: 0, torn: false }
    }

    /// The file is of another moment now, as far as a tick tells.
    pub fn touch(&mut self, now: u64, at: usize) {
        self.inodes[at].stamped = now / TICK;
        self.will_be_written(now);
    }

    fn will_be_written(&mut self, now: u64) {
        self.unwritten.get_or_insert(now + COMMIT);
    }

    /// Blocks with an address from here on, one after the other where that goes.
    fn allocate(&mut self, dice: &mut Dice, count: usize) -> Vec<usize> {
        let start = dice.index(BLOCKS);
        let free = (start..BLOCKS).chain(0..start).filter(|block| self.users[*block] == 0);
        let blocks: Vec<usize> = free.take(count).collect();
        for block in &blocks {
            self.users[*block] += 1;
        }
        blocks
    }

    fn free(&mut self, blocks: impl IntoIterator<Item = usize>) {
        blocks.into_iter().for_each(|block| self.users[block] -= 1);
    }

    /// Gives the blocks back if nobody has the file any more.
    pub fn release(&mut self, at: usize) {
        if !self.inodes[at].lives() {
            let blocks = std::mem::take(&mut self.inodes[at].blocks);
            self.free(blocks);
            self.inodes[at].delayed = 0;
            self.inodes[at].copied = 0;
        }
    }

    pub fn grow(&mut self, now: u64, dice: &mut Dice, at: usize) {
        let room =
            FILE_MAX - (self.inodes[at].blocks.len() + self.inodes[at].delayed).min(FILE_MAX);
        let count = (1 + dice.index(6)).min(room);
        if dice.one_in(2) {
            self.inodes[at].delayed += count;
            self.inodes[at].dirty.get_or_insert(now);
        } else {
            let blocks = self.allocate(dice, count);
            self.inodes[at].blocks.extend(blocks);
        }
        self.touch(now, at);
    }

    /// Keeps the first `len` blocks.
    pub fn truncate(&mut self, now: u64, at: usize, len: usize) {
        let inode = &mut self.inodes[at];
        inode.delayed = 0;
        let gone: Vec<usize> = inode.blocks.drain(len.min(inode.blocks.len())..).collect();
        self.free(gone);
        self.touch(now, at);
    }

    pub fn punch(&mut self, now: u64, dice: &mut Dice, at: usize) {
        let blocks = &mut self.inodes[at].blocks;
        let start = dice.index(blocks.len());
        let end = (start + 1 + dice.index(4)).min(blocks.len());
        let gone: Vec<usize> = blocks.drain(start.min(end)..end).collect();
        self.free(gone);
        self.touch(now, at);
    }

    /// Defragmenting: other blocks, and the stamp as it was.
    pub fn relocate(&mut self, now: u64, dice: &mut Dice, at: usize) {
        let blocks = self.allocate(dice, self.inodes[at].blocks.len());
        if blocks.len() == self.inodes[at].blocks.len() {
            let old = std::mem::replace(&mut self.inodes[at].blocks, blocks);
            self.free(old);
        } else {
            self.free(blocks); // the disk is full
        }
        self.will_be_written(now);
    }

    /// Written over: where it is shared, the copy gets its place later.
    pub fn overwrite(&mut self, now: u64, at: usize) {
        let shared = |block: &&usize| self.users[**block] > 1;
        let copied = self.inodes[at].blocks.iter().filter(shared).count();
        if copied > 0 {
            self.inodes[at].copied = copied;
            self.inodes[at].dirty.get_or_insert(now);
        }
        self.touch(now, at);
    }

    /// Writeback: what is in memory gets its place, and the stamp stays.
    pub fn write_back(&mut self, now: u64, dice: &mut Dice, at: usize) {
        let count = std::mem::take(&mut self.inodes[at].delayed);
        let blocks = self.allocate(dice, count);
        self.inodes[at].blocks.extend(blocks);
        let copied = std::mem::take(&mut self.inodes[at].copied);
        for place in 0..copied.min(self.inodes[at].blocks.len()) {
            if let [block] = self.allocate(dice, 1)[..] {
                let old = std::mem::replace(&mut self.inodes[at].blocks[place], block);
                self.free([old]);
            }
        }
        self.inodes[at].dirty = None;
        self.will_be_written(now);
    }

    /// Writes back what has been in memory for as long as may be.
    pub fn write_back_old(&mut self, now: u64, dice: &mut Dice) {
        for at in 0..self.inodes.len() {
            if self.inodes[at].dirty.is_some_and(|since| since + DIRTY_MAX <= now) {
                self.write_back(now, dice, at);
            }
        }
    }

    /// A new file that shares all blocks with this one.
    pub fn share(&mut self, now: u64, at: usize) -> usize {
        let blocks = self.inodes[at].blocks.clone();
        for block in &blocks {
            self.users[*block] += 1;
        }
        let copy = self.create(now);
        self.inodes[copy].blocks = blocks;
        self.will_be_written(now);
        copy
    }
}
