//! When what the groups have counted is read.
//!
//! Whoever reads counters with `dmstats report` sets them to zero, and takes what was counted since
//! our last reading. That shows in the next one: from then on they are read as often as is
//! sensible, until nothing of the kind has been seen for some minutes.

use std::time::Duration;

use super::lane::{Lane, Reads};
use super::time::Time;
use super::{Engine, FileId, Reading};
use crate::dm::Device;
use crate::update::Group;

/// Between two readings while somebody sets counters to zero, unless they are read as often anyway.
pub const HURRY: Duration = Duration::from_millis(100);

/// How long somebody is expected to do it again.
const HURRY_FOR: Duration = Duration::from_secs(300);

/// Share of a processor's time that reading a device may take, as one part in so many.
const SHARE: u32 = 50;

/// The same for readings that somebody asks for.
const SHARE_ASKED: u32 = 4;

impl Engine {
    pub(super) fn read(&mut self, now: Time, device: Device, reading: Reading) {
        let Some(lane) = self.lane_of(device) else { return };
        let began = lane.ordering.take().unwrap_or(now);
        match reading.more {
            true => lane.reads.unsettled = Some(began),
            false => self.plan_read(now, device, began, reading),
        }
    }

    pub(super) fn settled(&mut self, now: Time, device: Device, reading: Reading) {
        let Some(lane) = self.lane_of(device) else { return };
        if let Some(began) = lane.reads.unsettled.take() {
            self.plan_read(now, device, began, reading);
        }
    }

    fn plan_read(&mut self, now: Time, device: Device, began: Time, reading: Reading) {
        let Some(interval) = self.settings.read else { return };
        let Some(lane) = self.lane_of(device) else { return };
        lane.reads.last = Some(began);
        if reading.reset {
            lane.reads.reset = Some(now);
        }
        let hurry = lane.reads.reset.is_some_and(|reset| now < reset + HURRY_FOR);
        let interval = if hurry { interval.min(HURRY) } else { interval };
        lane.reads.cost = reading.cost;
        let due = now + interval.max(reading.cost.saturating_mul(SHARE));
        // Who has asked while it was being read wants to know what came after.
        lane.reads.asked = lane.reads.asked.filter(|asked| began < *asked);
        lane.reads.due = Some(match lane.reads.asked {
            Some(_) => due.min(lane.reads.rested(now)),
            None => due,
        });
    }

    /// Whether something is still to come of a reading of this device.
    pub fn is_settling(&self, device: Device) -> bool {
        self.lane_on(device).is_some_and(|lane| lane.reads.unsettled.is_some())
    }

    /// Sets [`Settings::read`](super::Settings::read), for every reading after the next.
    pub fn set_read(&mut self, read: Duration) {
        self.settings.read = Some(read);
    }

    /// Has every device read that has groups: now, or as soon as it has had a rest from the last
    /// reading, and that one's begin is what [`Self::read_began`] says then. Gives those that are
    /// worth waiting for: a device that has held up its work for longer than `patience` may go on
    /// doing so.
    pub fn read_now(&mut self, now: Time, patience: Duration) -> Vec<Device> {
        let mut awaited = Vec::new();
        let groups = self.groups(|lane| lane.reads.due.is_some());
        let all = self.settings.read_all;
        for (lane, groups) in self.lanes.iter_mut().zip(groups) {
            let some = !groups.is_empty() || all && lane.files > 0;
            let Some(due) = lane.reads.due.filter(|_| some) else { continue };
            lane.reads.due = Some(due.min(lane.reads.rested(now)));
            lane.reads.asked = Some(now);
            if !is_stuck(lane, now, patience) {
                awaited.push(lane.device);
            }
        }
        awaited
    }

    /// When the reading was begun that is under way on this device.
    pub fn read_began(&self, device: Device) -> Option<Time> {
        self.lane_on(device)?.ordering
    }

    /// The file's group, if it has one.
    pub fn group(&self, file: FileId) -> Option<Group> {
        self.files.get(file.index())?.as_ref()?.group
    }
}

impl Reads {
    /// The earliest time from now on at which another reading is worth its cost.
    fn rested(&self, now: Time) -> Time {
        let rest = self.cost.saturating_mul(SHARE_ASKED);
        self.last.map_or(now, |last| now.max(last + rest))
    }
}

fn is_stuck(lane: &Lane, now: Time, patience: Duration) -> bool {
    let begun = lane.ordering.or(lane.reads.unsettled);
    begun.is_some_and(|began| now.since(began) >= patience)
}
