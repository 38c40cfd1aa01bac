//! From what is due to what is done: by lane, and no more than a lane may have under way.

use std::mem;

use super::event::{Action, Batch, Look};
use super::followed::{Followed, Job};
use super::lane::{Lane, MAPS_MAX, Order, STAMPS_MAX};
use super::time::Time;
use super::wheel::ROOM_MAX;
use super::{Engine, FileId, share};
use crate::dm::Device;
use crate::shape::Limits;
use crate::update::Group;

impl Engine {
    /// Puts every file that is due into the queue it belongs to.
    pub(super) fn route(&mut self, now: Time) {
        let mut due = mem::take(&mut self.due);
        self.wheel.take(now, &mut due);
        for file in due.drain(..) {
            let Some(followed) = self.files[file.index()].as_mut() else { continue };
            if followed.due > now {
                self.wheel.put(followed.due, file); // planned anew, or far away
                continue;
            }
            if followed.job != Job::None {
                continue; // planned twice
            }
            let lane = &mut self.lanes[followed.lane as usize];
            if let (Some(_), Some(group)) = (followed.end(), followed.group) {
                followed.job = Job::Remove;
                lane.orders.push_back(Order::Remove(file, group));
            } else if may_park(now, followed, lane, &self.settings) {
                let until = followed.moment(followed.looked + self.settings.gauge_max);
                followed.parked = true;
                followed.due = until;
                lane.gauge.park(file);
                self.wheel.put(until, file);
            } else {
                followed.job = Job::Look;
                followed.parked = false;
                let maps = followed.map_due(now);
                let queue = if maps { &mut lane.maps } else { &mut lane.stamps };
                queue.push_back(file);
            }
        }
        due.shrink_to(ROOM_MAX);
        self.due = due;
    }

    /// The write counter was read: what is parked may have to be looked at.
    pub(super) fn gauged(&mut self, now: Time, device: Device, writes: Option<u64>) {
        let gauge = self.settings.gauge;
        let Some(lane) = self.lane_of(device) else { return };
        lane.gauge.out = false;
        lane.gauge.due = None;
        if lane.gauge.read(now, writes) {
            let mut parked = mem::take(&mut lane.gauge.parked);
            for file in parked.drain(..) {
                let Some(followed) = self.followed(file).filter(|followed| followed.parked) else {
                    continue;
                };
                let wait = share(file, followed.interval());
                self.spread(file, now + wait);
            }
            if let Some(lane) = self.lane_of(device) {
                lane.gauge.parked = parked; // for its room
            }
        } else if let Some(lane) = self.lane_of(device).filter(|lane| lane.has_gauge()) {
            lane.gauge.due = Some(now + gauge); // while files wait for it
        }
    }

    /// Hands out what the lanes have room for.
    pub(super) fn dispatch(&mut self, now: Time, actions: &mut Vec<Action>) {
        // Before any order: there may be a next order for as long as files change.
        if self.lanes.iter().any(|lane| lane.is_to_be_read(now)) {
            self.start_reads(now, actions);
        }
        let mut sweeps = false;
        for at in 0..self.lanes.len() {
            self.take_stamps(now, at, actions);
            while self.lanes[at].may_map() {
                self.read_maps(now, at, actions);
            }
            self.give_order(now, at, actions);
            let lane = &mut self.lanes[at];
            if !lane.gauge.out && lane.gauge.due.is_some_and(|due| due <= now) {
                lane.gauge.out = true;
                actions.push(Action::Gauge(lane.device));
            }
            sweeps |= lane.is_to_be_swept(now);
        }
        if sweeps {
            self.start_sweeps(now, actions);
        }
    }

    fn take_stamps(&mut self, now: Time, at: usize, actions: &mut Vec<Action>) {
        let lane = &mut self.lanes[at];
        if lane.stamping.is_some() || lane.stamps.is_empty() {
            return;
        }
        let mut batch = batch(lane.device, None, &mut self.spare);
        let count = lane.stamps.len().min(STAMPS_MAX);
        for file in lane.stamps.drain(..count) {
            batch.looks.extend(look(now, file, &mut self.files, &mut self.free));
        }
        if lane.stamps.is_empty() {
            lane.stamps.shrink_to(ROOM_MAX);
        }
        if !batch.looks.is_empty() {
            lane.stamping = Some(now);
            actions.push(Action::Look(batch));
        }
    }

    fn read_maps(&mut self, now: Time, at: usize, actions: &mut Vec<Action>) {
        let lane = &mut self.lanes[at];
        let Some(slot) = lane.mapping.iter().position(Option::is_none) else { return };
        let mut batch = batch(lane.device, Some(slot), &mut self.spare);
        let count = lane.maps.len().min(MAPS_MAX);
        for file in lane.maps.drain(..count) {
            let is_taken = lane.taken.front().is_some_and(|(front, _)| *front == file);
            let taken = if is_taken { lane.taken.pop_front() } else { None };
            if let Some(look) = look(now, file, &mut self.files, &mut self.free) {
                batch.looks.push(look);
                batch.changed.extend(taken);
            }
        }
        if lane.maps.is_empty() {
            lane.maps.shrink_to(ROOM_MAX);
            lane.taken.shrink_to(STAMPS_MAX); // after many files have changed at the same moment
        }
        if !batch.looks.is_empty() {
            lane.mapping[slot] = Some(now);
            actions.push(Action::Look(batch));
        }
    }

    fn give_order(&mut self, now: Time, at: usize, actions: &mut Vec<Action>) {
        let lane = &mut self.lanes[at];
        while lane.ordering.is_none() {
            let Some(order) = lane.orders.pop_front() else { return };
            let (Order::Update(file, ..) | Order::Remove(file, _)) = &order;
            if self.files[file.index()].is_none() {
                self.free.push(*file); // let go while it waited
                continue;
            }
            lane.ordering = Some(now);
            let (device, level) = (lane.device, lane.budget.level());
            actions.push(match order {
                Order::Update(file, group, want) => {
                    let limits = self.limit(file, level);
                    Action::Update(file, device, group, want, limits)
                }
                Order::Remove(file, group) => Action::Remove(file, device, group),
            });
            return;
        }
    }

    /// What an update of the file is to keep to, where no group may have more regions than `level`.
    fn limit(&mut self, file: FileId, level: u32) -> Limits {
        let Some(followed) = self.followed(file) else { return Limits::NONE };
        followed.ordered = followed.limits().max_regions.min(level);
        Limits { max_regions: followed.ordered, ..followed.limits() }
    }

    /// Sweeps the lanes that are due, in one pass over the files.
    fn start_sweeps(&mut self, now: Time, actions: &mut Vec<Action>) {
        let groups = self.groups(|lane| lane.is_to_be_swept(now));
        for (lane, groups) in self.lanes.iter_mut().zip(groups) {
            if lane.is_to_be_swept(now) {
                lane.sweep = now + self.settings.sweep;
                if !groups.is_empty() {
                    lane.ordering = Some(now);
                    actions.push(Action::Sweep(lane.device, groups));
                }
            }
        }
    }

    /// Reads the lanes that are due, likewise.
    fn start_reads(&mut self, now: Time, actions: &mut Vec<Action>) {
        let groups = self.groups(|lane| lane.is_to_be_read(now));
        for (lane, groups) in self.lanes.iter_mut().zip(groups) {
            if !lane.is_to_be_read(now) {
                continue;
            }
            lane.reads.due = self.settings.read.map(|read| now + read); // planned when it is back
            if !groups.is_empty() || self.settings.read_all {
                lane.ordering = Some(now);
                actions.push(Action::Read(lane.device, groups));
            }
        }
    }

    /// The groups on some of the lanes, by lane.
    pub(super) fn groups(&self, wanted: impl Fn(&Lane) -> bool) -> Vec<Vec<(FileId, Group)>> {
        let mut groups: Vec<Vec<_>> = vec![Vec::new(); self.lanes.len()];
        for (file, followed) in (0..).map(FileId).zip(&self.files) {
            let Some(followed) = followed else { continue };
            let lane = &self.lanes[followed.lane as usize];
            if let Some(group) = followed.group.filter(|_| wanted(lane)) {
                groups[followed.lane as usize].push((file, group));
            }
        }
        groups
    }
}

/// Whether the file may wait for its device to be written to; asks for the counter if that is
/// what is missing.
fn may_park(now: Time, followed: &Followed, lane: &mut Lane, settings: &super::Settings) -> bool {
    if !followed.is_idle() || !lane.has_gauge() || followed.map_due(now) {
        return false;
    }
    lane.gauge.due.get_or_insert(now);
    lane.gauge.is_still_since(followed.looked) && now < followed.looked + settings.gauge_max
}

/// An empty batch, with the room of one that came back.
fn batch(device: Device, maps: Option<usize>, spare: &mut Vec<Batch>) -> Batch {
    match spare.pop() {
        Some(room) => Batch { device, maps, ..room },
        None => Batch { device, maps, looks: Vec::new(), changed: Vec::new(), sights: Vec::new() },
    }
}

/// A look at the file, if it is followed still.
fn look(
    now: Time,
    file: FileId,
    files: &mut [Option<Followed>],
    free: &mut Vec<FileId>,
) -> Option<Look> {
    let Some(followed) = files[file.index()].as_mut() else {
        free.push(file); // let go while it waited
        return None;
    };
    followed.looked = now;
    Some(Look { file, last: followed.stamp })
}
