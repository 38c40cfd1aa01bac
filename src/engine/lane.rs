//! One device's share of the work.
//!
//! Whatever a device does to those who touch it, it does to its own lane: the work under way for
//! one device is bounded, and no more is begun before some of it has come back.

use std::collections::VecDeque;
use std::time::Duration;

use super::FileId;
use super::budget::Budget;
use super::time::Time;
use crate::dm::Device;
use crate::extent::Extents;
use crate::sight::Imprint;
use crate::update::Group;

/// Files in one batch of stamps. Handing it to another thread and back costs as much as a hundred
/// `stat`s, and is to cost little against those in it.
pub const STAMPS_MAX: usize = 1024;

/// Files that wait for a write, at first, until it is seen to that none is noted more than twice.
const PARKED_MAX: usize = 64;

/// Files in one batch of maps: the others wait while one of them is locked by a writer.
pub const MAPS_MAX: usize = 8;

/// Batches of maps under way at a time. With one of stamps and one order, four threads at most are
/// at work for one device.
pub const MAPPING_MAX: usize = 2;

/// Orders that may wait, extents and all, before no more maps are read.
const ORDERS_MAX: usize = 16;

/// Files from which on reading a device's write counter is cheaper than looking at them.
const GAUGE_MIN: usize = 16;

/// What changes a group.
#[derive(Debug)]
pub(super) enum Order {
    Update(FileId, Option<Group>, Extents),
    Remove(FileId, Group),
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) device: Device,
    pub(super) files: usize,
    /// Files whose stamp is to be taken, and when that was begun if it is under way.
    pub(super) stamps: VecDeque<FileId>,
    pub(super) stamping: Option<Time>,
    /// The same for maps.
    pub(super) maps: VecDeque<FileId>,
    /// Stamps of some of these, in the same order, that were taken already.
    pub(super) taken: VecDeque<(FileId, Imprint)>,
    pub(super) mapping: [Option<Time>; MAPPING_MAX],
    /// The same for orders and sweeps.
    pub(super) orders: VecDeque<Order>,
    pub(super) ordering: Option<Time>,
    /// When to list the device, to see what others did to our groups.
    pub(super) sweep: Time,
    pub(super) reads: Reads,
    pub(super) gauge: Gauge,
    /// Regions that the groups may have.
    pub(super) budget: Budget,
    /// Regions of the groups, and of anybody when the device was last listed.
    pub(super) own_regions: u64,
    pub(super) regions: Option<u64>,
}

/// When what the groups have counted is read.
#[derive(Debug)]
pub(super) struct Reads {
    /// When it is to be read next, if ever.
    pub(super) due: Option<Time>,
    /// When the last reading was begun that has come back.
    pub(super) last: Option<Time>,
    /// When a reading was begun of which something is still to come.
    pub(super) unsettled: Option<Time>,
    /// Since when somebody waits for a reading that is begun no earlier.
    pub(super) asked: Option<Time>,
    /// Processor time that it took.
    pub(super) cost: Duration,
    /// When one last told that somebody sets counters to zero.
    pub(super) reset: Option<Time>,
}

/// How much was written to a device, and who waits for more.
#[derive(Debug)]
pub(super) struct Gauge {
    writes: Option<u64>,
    /// When the counter was first seen to stand where it stands.
    moved: Time,
    /// When it is to be read, and whether that is under way.
    pub(super) due: Option<Time>,
    pub(super) out: bool,
    pub(super) parked: Vec<FileId>,
    /// Entries at which those that are there twice are dropped.
    parked_max: usize,
}

impl Lane {
    pub(super) fn new(device: Device, sweep: Time, read: Option<Time>, max_regions: u32) -> Lane {
        Lane {
            device,
            files: 0,
            stamps: VecDeque::new(),
            stamping: None,
            maps: VecDeque::new(),
            taken: VecDeque::new(),
            mapping: [None; MAPPING_MAX],
            orders: VecDeque::new(),
            ordering: None,
            sweep,
            reads: Reads::new(read),
            gauge: Gauge::new(),
            budget: Budget::new(max_regions),
            own_regions: 0,
            regions: None,
        }
    }

    pub(super) fn may_map(&self) -> bool {
        !self.maps.is_empty()
            && self.orders.len() < ORDERS_MAX
            && self.mapping.iter().any(Option::is_none)
    }

    pub(super) fn is_to_be_swept(&self, now: Time) -> bool {
        self.files > 0 && self.ordering.is_none() && self.sweep <= now
    }

    pub(super) fn is_to_be_read(&self, now: Time) -> bool {
        let due = self.reads.next_due().is_some_and(|due| due <= now);
        self.files > 0 && self.ordering.is_none() && due
    }

    /// Whether waiting for the write counter is worth the while.
    pub(super) fn has_gauge(&self) -> bool {
        self.files >= GAUGE_MIN
    }
}

impl Reads {
    fn new(due: Option<Time>) -> Reads {
        let (last, asked, unsettled, reset) = (None, None, None, None);
        Reads { due, last, asked, unsettled, cost: Duration::ZERO, reset }
    }

    /// When the next reading is due. None is begun before the last one is complete.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.due.filter(|_| self.unsettled.is_none())
    }
}

impl Gauge {
    fn new() -> Gauge {
        let (parked, parked_max) = (Vec::new(), PARKED_MAX);
        Gauge { writes: None, moved: Time::ZERO, due: None, out: false, parked, parked_max }
    }

    /// The file waits for a write from now on. It may have done so before, been looked at all the
    /// same, and do so again and again if there is none.
    pub(super) fn park(&mut self, file: FileId) {
        if self.parked.len() >= self.parked_max {
            self.parked.sort_unstable();
            self.parked.dedup();
            self.parked_max = 2 * self.parked.len() + PARKED_MAX;
        }
        self.parked.push(file);
    }

    /// Takes what the counter says; whether anything was written since the last time.
    pub(super) fn read(&mut self, now: Time, writes: Option<u64>) -> bool {
        let moved = writes.is_none() || writes != self.writes;
        if moved {
            self.writes = writes;
            self.moved = now;
        }
        moved
    }

    /// Whether nothing can have reached the device since a look that was begun at `looked`, as far
    /// as is known: what the counter says is at most one reading old.
    pub(super) fn is_still_since(&self, looked: Time) -> bool {
        self.writes.is_some() && self.moved < looked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_wait_again_and_again_take_no_more_room() {
        let mut gauge = Gauge::new();
        for _ in 0..100 {
            (0..1000).for_each(|file| gauge.park(FileId(file)));
        }
        assert!(gauge.parked.len() <= 2 * 1000 + PARKED_MAX, "{}", gauge.parked.len());
        gauge.parked.sort_unstable();
        gauge.parked.dedup();
        assert_eq!(gauge.parked, (0..1000).map(FileId).collect::<Vec<_>>());
    }
}
