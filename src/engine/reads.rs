//! When what the groups have counted is read.
//!
//! Whoever reads counters with `dmstats report` sets them to zero, and takes what was counted since
//! our last reading. That shows in the next one: from then on they are read as often as is
//! sensible, until nothing of the kind has been seen for some minutes.

use std::time::Duration;

use super::lane::{Lane, Reads};
use super::time::Time;
use super::{Engine, FileId};
use crate::dm::Device;
use crate::update::Group;

/// Between two readings while somebody sets counters to zero, unless they are read as often anyway.
pub const HURRY: Duration = Duration::from_millis(250);

/// How long somebody is expected to do it again.
const HURRY_FOR: Duration = Duration::from_secs(300);

/// Share of the time that reading a device may take, as one part in so many.
const SHARE: u32 = 50;

/// The same for readings that somebody asks for.
const SHARE_ASKED: u32 = 4;

/// The longest time between two readings for the sake of that: whoever waits for one must not wait
/// for hours because the process was stopped, or the device was.
const WAIT_MAX: Duration = Duration::from_secs(60);

impl Engine {
    pub(super) fn read(&mut self, now: Time, device: Device, reset: bool) {
        let Some(interval) = self.settings.read else { return self.order_is_back(device) };
        let Some(lane) = self.lane_of(device) else { return };
        let began = lane.ordering.take().unwrap_or(now);
        lane.reads.last = Some(began);
        if reset {
            lane.reads.reset = Some(now);
        }
        let hurry = lane.reads.reset.is_some_and(|reset| now < reset + HURRY_FOR);
        let interval = if hurry { interval.min(HURRY) } else { interval };
        let took = now.since(began);
        lane.reads.took = took;
        lane.reads.due = Some(now + interval.max(took.saturating_mul(SHARE).min(WAIT_MAX)));
    }

    /// Sets [`Settings::read`](super::Settings::read), for every reading after the next.
    pub fn set_read(&mut self, read: Duration) {
        self.settings.read = Some(read);
    }

    /// Has every device read at the next tick whose last reading was begun longer than `fresh` ago.
    /// Gives those that are worth waiting for: a device that has held up its work for longer than
    /// `patience` may go on doing so.
    pub fn read_now(&mut self, now: Time, fresh: Duration, patience: Duration) -> Vec<Device> {
        let mut awaited = Vec::new();
        let groups = self.groups(|lane| lane.reads.is_old(now, fresh));
        for (lane, groups) in self.lanes.iter_mut().zip(groups) {
            if groups.is_empty() || lane.reads.due.is_none() {
                continue;
            }
            lane.reads.due = Some(now);
            if !is_stuck(lane, now, patience) {
                awaited.push(lane.device);
            }
        }
        awaited
    }

    /// The file's group, if it has one.
    pub fn group(&self, file: FileId) -> Option<Group> {
        self.files.get(file.index())?.as_ref()?.group
    }
}

impl Reads {
    /// Whether another reading is worth its time.
    fn is_old(&self, now: Time, fresh: Duration) -> bool {
        let rest = fresh.max(self.took.saturating_mul(SHARE_ASKED));
        self.last.is_none_or(|last| last + rest <= now)
    }
}

fn is_stuck(lane: &Lane, now: Time, patience: Duration) -> bool {
    lane.ordering.is_some_and(|began| now.since(began) >= patience)
}
