//! What follows from updates, removals and sweeps.

use std::time::Duration;

use super::event::{Action, Sweep};
use super::followed::{Foreign, Job};
use super::time::{Tenths, Time};
use super::{End, Engine, FileId, Report, SWEEP_MAX, SWEEP_SHARE};
use crate::dm::Device;
use crate::group::REWRITE_MAX;
use crate::update::{self, Standing, Updated};

impl Engine {
    pub(super) fn order_is_back(&mut self, device: Device) {
        if let Some(lane) = self.lane_of(device) {
            lane.ordering = None;
        }
    }

    pub(super) fn updated(
        &mut self,
        now: Time,
        file: FileId,
        outcome: Result<Option<Updated>, update::Error>,
        actions: &mut Vec<Action>,
    ) {
        let Some(followed) = self.answered(file) else { return };
        match outcome {
            Ok(made) => {
                followed.shown = true; // without a group: no extent, and the next map has one
                if let Some(updated) = made {
                    self.shown(now, file, updated, actions);
                }
                match self.followed(file).and_then(|followed| followed.end().cloned()) {
                    Some(end) => self.end(now, file, end, actions), // decided meanwhile
                    None => {
                        self.worked(now, file, false, actions);
                        self.keep_to_limits(now, file);
                    }
                }
            }
            Err(error) => self.refused(now, file, &error, actions),
        }
    }

    /// The group shows the file's last map.
    fn shown(&mut self, now: Time, file: FileId, updated: Updated, actions: &mut Vec<Action>) {
        let Some(followed) = self.followed(file) else { return };
        let before = followed.group.replace(updated.group);
        let (id, foreign) = (updated.group.id, updated.foreign);
        let regions_before = u64::from(followed.regions);
        followed.regions = u32::try_from(updated.members).unwrap_or(u32::MAX);
        let regions = u64::from(followed.regions);
        let fingerprint = updated.fingerprint;
        let foreign = (foreign > 0).then_some(Foreign { sectors: foreign, fingerprint });
        followed.set_foreign(foreign);
        if before.is_none() || updated.created + updated.deleted > 0 {
            followed.changed = Tenths::from(now);
            actions.push(Action::Report(file, Report::Updated(updated)));
        }
        if let Some(before) = before.filter(|before| before.id != id) {
            actions.push(Action::Report(file, Report::Moved(before.id, id)));
        }
        let long = updated.descriptor_len > REWRITE_MAX;
        if long && !followed.warned_long {
            actions.push(Action::Report(file, Report::Long(updated.descriptor_len)));
        }
        followed.warned_long = long;
        if let Some(lane) = self.lane_of_file(file) {
            lane.own_regions = lane.own_regions + regions - regions_before;
        }
        self.weigh(now, file);
    }

    /// Sorts the errors of an update by what follows from them.
    fn refused(
        &mut self,
        now: Time,
        file: FileId,
        error: &update::Error,
        actions: &mut Vec<Action>,
    ) {
        let Some(followed) = self.followed(file) else { return };
        followed.stamp = None; // the extents are forgotten: read them again
        match error {
            update::Error::Gone | update::Error::TakenOver => {
                self.let_go(now, file, End::NotOurs(error.to_string()), actions);
            }
            _ if error.is_no_device() => self.let_go(now, file, End::NoDevice, actions),
            _ if error.is_not_understood() => {
                followed.given_up = true;
                let interval = followed.interval();
                actions.push(Action::Report(file, Report::GivenUp(error.to_string())));
                self.plan(file, now + interval);
            }
            _ => self.failed(now, file, error.to_string(), actions),
        }
    }

    pub(super) fn removed(
        &mut self,
        now: Time,
        file: FileId,
        outcome: Result<usize, update::Error>,
        actions: &mut Vec<Action>,
    ) {
        let Some(followed) = self.answered(file) else { return };
        let end = followed.end().cloned().unwrap_or(End::NoDevice);
        match outcome {
            Err(error @ update::Error::TakenOver) => {
                self.let_go(now, file, End::NotOurs(error.to_string()), actions);
            }
            Err(error) if !error.is_no_device() && !error.is_not_understood() => {
                self.failed(now, file, error.to_string(), actions);
            }
            _ => self.let_go(now, file, end, actions),
        }
    }

    pub(super) fn swept(
        &mut self,
        now: Time,
        device: Device,
        outcome: Result<Sweep, update::Error>,
        actions: &mut Vec<Action>,
    ) {
        let interval = self.settings.sweep;
        if let Some(lane) = self.lane_of(device) {
            let took = lane.ordering.take().map_or(Duration::ZERO, |began| now.since(began));
            lane.sweep = now + interval.max(took.saturating_mul(SWEEP_SHARE).min(SWEEP_MAX));
        }
        match outcome {
            Ok(Sweep { standings, regions }) => {
                if let Some(lane) = self.lane_of(device) {
                    lane.regions = Some(regions as u64);
                }
                for (file, standing) in standings {
                    self.stood(now, file, standing, actions);
                }
            }
            Err(error) if error.is_no_device() => {
                let lane = self.lane_of.get(&device).copied();
                for file in (0..).map(FileId).take(self.files.len()) {
                    if self.followed(file).map(|followed| followed.lane) == lane {
                        self.let_go(now, file, End::NoDevice, actions);
                    }
                }
            }
            Err(_) => {} // an update will say so, if there is one
        }
    }

    fn stood(&mut self, now: Time, file: FileId, standing: Standing, actions: &mut Vec<Action>) {
        let Some(followed) = self.followed(file) else { return };
        if matches!(followed.job, Job::Update | Job::Remove) {
            return; // what was seen is older than what is under way
        }
        if followed.end().is_some() {
            return; // half of it is deleted, and the rest will be tried again
        }
        match standing {
            Standing::Gone => {
                self.let_go(now, file, End::NotOurs(update::Error::Gone.to_string()), actions);
            }
            Standing::TakenOver => {
                self.let_go(now, file, End::NotOurs(update::Error::TakenOver.to_string()), actions);
            }
            Standing::Stands { fingerprint, tidy, .. } => {
                let differs = followed.shown && followed.cover() != Some(fingerprint);
                if differs || !tidy {
                    self.do_over(now, file); // somebody changed it, or a cut update left something
                }
            }
        }
    }
}
