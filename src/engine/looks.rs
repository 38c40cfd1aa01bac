//! What follows from looks.

use std::mem;

use super::event::{Action, Batch, Look};
use super::followed::{Followed, Job};
use super::lane::Order;
use super::time::{Tenths, Time};
use super::{ABSENCE_LOOK, End, Engine, FileId, TORN_MAX, share};
use crate::extent::Extents;
use crate::mode::Mode;
use crate::sight::{Imprint, Map, Sight};

/// Batches kept for their room: those of some lanes.
const SPARE_MAX: usize = 16;

impl Engine {
    pub(super) fn looked(&mut self, now: Time, mut batch: Batch, actions: &mut Vec<Action>) {
        if let Some(lane) = self.lane_of(batch.device) {
            match batch.maps {
                Some(slot) => lane.mapping[slot] = None,
                None => lane.stamping = None,
            }
        }
        let mut changed = batch.changed.iter().peekable();
        let mut sights = batch.sights.iter_mut().peekable();
        for &Look { file, .. } in &batch.looks {
            let taken = changed.next_if(|(of, _)| *of == file);
            let sight = sights.next_if(|(of, _)| *of == file);
            if self.answered(file).is_none() {
                continue;
            }
            match (sight, taken) {
                (Some((_, sight)), _) => self.seen(now, file, sight, actions),
                (None, Some(taken)) => self.changed(now, taken, actions),
                (None, None) => self.same(now, file, actions),
            }
        }
        if self.spare.len() < SPARE_MAX {
            batch.clear();
            self.spare.push(batch);
        }
    }

    /// The stamp is that of the last map, and no map was due.
    fn same(&mut self, now: Time, file: FileId, actions: &mut Vec<Action>) {
        let Some(followed) = self.still_wanted(now, file, actions) else { return };
        followed.is_there();
        if followed.open && !followed.is_hot(now) {
            self.close(file, actions);
        }
        self.worked(now, file, true, actions);
    }

    /// The stamp is not that of the last map: the map is to be read.
    fn changed(&mut self, now: Time, taken: &(FileId, Imprint), actions: &mut Vec<Action>) {
        let Some(followed) = self.still_wanted(now, taken.0, actions) else { return };
        followed.is_there();
        followed.job = Job::Look;
        let lane = followed.lane as usize;
        self.lanes[lane].maps.push_back(taken.0);
        self.lanes[lane].taken.push_back(*taken);
    }

    /// The file, unless its end was decided while it was looked at: then that follows now.
    fn still_wanted(
        &mut self,
        now: Time,
        file: FileId,
        actions: &mut Vec<Action>,
    ) -> Option<&mut Followed> {
        if let Some(end) = self.followed(file)?.end().cloned() {
            self.end(now, file, end, actions);
            return None;
        }
        self.files[file.index()].as_mut()
    }

    /// What was seen is taken out of `sight`: it is long, and moved no more than it has to be.
    fn seen(&mut self, now: Time, file: FileId, sight: &mut Sight, actions: &mut Vec<Action>) {
        let absence = self.settings.absence;
        let Some(followed) = self.still_wanted(now, file, actions) else { return };
        if !matches!(sight, Sight::Absent { .. }) {
            followed.is_there();
        }
        match sight {
            Sight::Mapped(stamp, map) => self.mapped(now, file, *stamp, map, actions),
            Sight::Failed(why) => self.failed(now, file, mem::take(why), actions),
            Sight::Unused => self.end(now, file, End::Unused, actions),
            Sight::Unmounted => self.let_go(now, file, End::Unmounted, actions),
            Sight::Absent { found, beside } => {
                let since = *followed.trouble().absent_since.get_or_insert(now);
                followed.stamp = None;
                followed.be_quick();
                let interval = followed.interval();
                if now < since + absence {
                    return self.plan(file, now + interval.min(ABSENCE_LOOK));
                }
                let device = self.lane_of_file(file).map(|lane| lane.device);
                if device.is_some_and(|device| beside.contains(&device)) {
                    self.end(now, file, End::Absent(mem::take(found)), actions);
                } else {
                    self.let_go(now, file, End::Unmounted, actions);
                }
            }
        }
    }

    fn mapped(
        &mut self,
        now: Time,
        file: FileId,
        stamp: Imprint,
        map: &mut Map,
        actions: &mut Vec<Action>,
    ) {
        let settings = self.settings;
        let Some(followed) = self.files[file.index()].as_mut() else { return };
        if stamp.device != self.lanes[followed.lane as usize].device {
            return self.end(now, file, End::Elsewhere(stamp.device), actions);
        }
        let same_stamp = followed.stamp == Some(stamp);
        if !same_stamp {
            followed.settled = Tenths::until(now + settings.settle);
        }
        followed.open = followed.mode == Mode::Path;
        followed.stamp = Some(stamp);
        followed.pending = map.pending;
        followed.shared |= map.shared;
        followed.set_shared_sectors(map.shared_sectors);
        // Files that were read at the same moment are not all read again at the same moment.
        let spread = share(file, settings.full_look / 5);
        let due = now + settings.full_look.saturating_sub(spread);
        followed.full_look = Tenths::until(due);
        followed.torn = if map.torn { followed.torn.saturating_add(1) } else { 0 };
        if (1..TORN_MAX).contains(&followed.torn) {
            followed.stamp = None;
            let interval = followed.interval();
            return self.plan(file, now + interval);
        }
        followed.extents = u32::try_from(map.extents.as_slice().len()).unwrap_or(u32::MAX);
        followed.sectors = map.extents.sectors();
        let before = followed.fingerprint.replace(map.fingerprint);
        followed.shown &= before == Some(map.fingerprint);
        self.weigh(now, file);
        self.show(now, file, &mut map.extents, same_stamp, actions);
    }

    /// Has the group show the file's map, unless it does.
    fn show(
        &mut self,
        now: Time,
        file: FileId,
        map: &mut Extents,
        same_stamp: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(followed) = self.files[file.index()].as_mut() else { return };
        if followed.shown || followed.given_up {
            if followed.open && now >= followed.settled.time() {
                self.close(file, actions); // idle, though its map is read at every look
            }
            return self.worked(now, file, same_stamp, actions);
        }
        followed.job = Job::Update;
        followed.be_quick();
        let order = Order::Update(file, followed.group, mem::take(map));
        self.lanes[followed.lane as usize].orders.push_back(order);
    }

    fn close(&mut self, file: FileId, actions: &mut Vec<Action>) {
        if let Some(followed) = self.followed(file) {
            if followed.mode == Mode::Path {
                actions.push(Action::Close(file));
            }
            followed.open = false;
        }
    }
}
