//! How many regions each group on a device may have, so that all have no more than is allowed.
//!
//! While there is room for all that are needed, each group has them. Where there is not, there is a
//! level: who needs no more than that has what it needs, and who needs more has the level, which is
//! the highest for which the sum is allowed. A level that has changed has groups updated whose file
//! nothing happened to. So it is set an eighth below that, and raised only when it could be an
//! eighth higher than it is.

use std::collections::BTreeMap;

use super::followed::{Followed, Job};
use super::time::Time;
use super::{Engine, FileId};
use crate::shape::Limits;

/// What the groups of one device need, and the level.
#[derive(Debug)]
pub(super) struct Budget {
    /// Regions, at the most.
    max: u32,
    /// How many groups need so many regions.
    needs: BTreeMap<u32, u32>,
    sum: u64,
    level: u32,
}

impl Budget {
    pub(super) fn new(max: u32) -> Budget {
        Budget { max, needs: BTreeMap::new(), sum: 0, level: u32::MAX }
    }

    /// Regions that any group may have.
    pub(super) fn level(&self) -> u32 {
        self.level
    }

    /// Another number of regions is allowed. Gives the level before, if it is another one now.
    pub(super) fn set_max(&mut self, max: u32) -> Option<u32> {
        self.max = max;
        self.settle()
    }

    /// A group needs another number of regions; 0 for one that is not there. Gives the level
    /// before, if it is another one now.
    pub(super) fn change(&mut self, from: u32, to: u32) -> Option<u32> {
        if from > 0 {
            if let Some(groups) = self.needs.get_mut(&from) {
                *groups -= 1;
                if *groups == 0 {
                    self.needs.remove(&from);
                }
            }
        }
        if to > 0 {
            *self.needs.entry(to).or_default() += 1;
        }
        self.sum = self.sum + u64::from(to) - u64::from(from);
        self.settle()
    }

    fn settle(&mut self) -> Option<u32> {
        let before = self.level;
        let fair = self.fair();
        let careful = |number: u32| number - number / 8;
        if fair == u32::MAX {
            if self.sum <= u64::from(careful(self.max)) {
                self.level = u32::MAX;
            }
        } else if fair < self.level || careful(fair) > self.level.saturating_add(self.level / 8) {
            self.level = careful(fair);
        }
        (self.level != before).then_some(before)
    }

    /// The highest level for which the sum is allowed; 1 where there is none.
    fn fair(&self) -> u32 {
        if self.sum <= u64::from(self.max) {
            return u32::MAX;
        }
        let mut left = u64::from(self.max);
        let mut groups: u64 = self.needs.values().copied().map(u64::from).sum();
        for (need, count) in &self.needs {
            let share = left / groups.max(1);
            if u64::from(*need) > share {
                return u32::try_from(share).unwrap_or(u32::MAX).max(1);
            }
            left -= u64::from(*need) * u64::from(*count);
            groups -= u64::from(*count);
        }
        u32::MAX
    }
}

impl Engine {
    /// Regions that the group of a file may have now.
    pub(super) fn max_regions(&self, followed: &Followed) -> u32 {
        followed.limits().max_regions.min(self.lanes[followed.lane as usize].budget.level())
    }

    /// Has the file's group keep to other limits, from now on.
    pub fn set_limits(&mut self, now: Time, file: FileId, limits: Limits) {
        let Some(followed) = self.files.get_mut(file.index()).and_then(Option::as_mut) else {
            return;
        };
        let treatment = self.treatments.of(followed.pace(), limits);
        if followed.treat(treatment).limits != limits {
            self.do_over(now, file);
            self.weigh(now, file);
        }
    }

    /// Sets [`super::Settings::max_device_regions`].
    pub fn set_max_device_regions(&mut self, now: Time, max: u32) {
        self.settings.max_device_regions = max;
        for lane in 0..self.lanes.len() {
            if let Some(before) = self.lanes[lane].budget.set_max(max) {
                self.level(now, lane, before);
            }
        }
    }

    /// The file's group needs another number of regions, maybe.
    pub(super) fn weigh(&mut self, now: Time, file: FileId) {
        let Some(followed) = self.followed(file) else { return };
        let need = followed.extents.max(followed.regions).min(followed.limits().max_regions);
        let before = std::mem::replace(&mut followed.need, need);
        if before == need {
            return;
        }
        let lane = followed.lane as usize;
        if let Some(level) = self.lanes[lane].budget.change(before, need) {
            self.level(now, lane, level);
        }
    }

    /// The file is not followed any more.
    pub(super) fn unweigh(&mut self, now: Time, followed: &Followed) {
        let lane = followed.lane as usize;
        if let Some(level) = self.lanes[lane].budget.change(followed.need, 0) {
            self.level(now, lane, level);
        }
    }

    /// There is another level for the groups of a device: those that it makes a difference to are
    /// updated.
    fn level(&mut self, now: Time, lane: usize, before: u32) {
        let level = self.lanes[lane].budget.level().min(before);
        for file in (0..).map(FileId).take(self.files.len()) {
            let here =
                |followed: &mut Followed| followed.lane as usize == lane && followed.need > level;
            if self.followed(file).is_some_and(here) {
                self.do_over(now, file);
            }
        }
    }

    /// Has the file mapped and its group updated, though nothing seems to have happened to it.
    pub(super) fn do_over(&mut self, now: Time, file: FileId) {
        let Some(followed) = self.followed(file) else { return };
        followed.shown = false;
        followed.stamp = None;
        followed.be_quick();
        if followed.job == Job::None && followed.failures() == 0 {
            self.plan(file, now);
        }
    }

    /// An update is back that kept to another limit than there is now: does it over, if it matters.
    pub(super) fn keep_to_limits(&mut self, now: Time, file: FileId) {
        let Some(followed) = self.files.get(file.index()).and_then(Option::as_ref) else { return };
        let (max, ordered) = (self.max_regions(followed), followed.ordered);
        if max != ordered && followed.need > max.min(ordered) {
            self.do_over(now, file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The oracle: what all groups have together at a level.
    fn sum_at(needs: &[u32], level: u32) -> u64 {
        needs.iter().map(|need| u64::from(*need.min(&level))).sum()
    }

    fn budget(max: u32, needs: &[u32]) -> Budget {
        let mut budget = Budget::new(max);
        for need in needs {
            budget.change(0, *need);
        }
        budget
    }

    #[test]
    fn while_there_is_room_for_all_nobody_is_limited() {
        assert_eq!(budget(100, &[40, 40, 20]).level(), u32::MAX);
        assert_eq!(budget(99, &[40, 40, 20]).level(), 35, "an eighth below 39");
        assert_eq!(budget(2, &[1, 1, 1, 5]).level(), 1, "each has one in any case");
    }

    #[test]
    fn a_level_stays_until_it_could_be_an_eighth_higher() {
        let mut budget = budget(100, &[40, 40, 30]);
        assert_eq!(budget.level(), 31);
        assert_eq!(budget.change(30, 20), None, "40 would do now");
        assert_eq!(budget.change(20, 10), None, "and now there is room for all, but barely");
        assert_eq!(budget.change(10, 7), Some(31));
        assert_eq!(budget.level(), u32::MAX);
    }

    proptest! {
        #[test]
        fn the_level_is_the_highest_for_which_the_sum_is_allowed(
            needs in prop::collection::vec(1..200u32, 1..30), max in 1..400u32,
        ) {
            let fair = budget(max, &needs).fair();
            let allowed = |level| sum_at(&needs, level) <= u64::from(max);
            if fair == u32::MAX {
                prop_assert!(allowed(u32::MAX));
            } else {
                prop_assert!(allowed(fair) || fair == 1, "{}", fair);
                prop_assert!(!allowed(fair + 1), "{}", fair);
            }
        }

        #[test]
        fn whatever_changes_the_sum_stays_allowed(
            changes in prop::collection::vec((0..8usize, 0..100u32), 1..60), max in 8..200u32,
        ) {
            let (mut budget, mut needs) = (Budget::new(max), [0; 8]);
            for (group, need) in changes {
                let before = budget.level();
                let told = budget.change(needs[group], need);
                needs[group] = need;
                prop_assert_eq!(told, (before != budget.level()).then_some(before));
                prop_assert!(sum_at(&needs, budget.level()) <= u64::from(max));
                let (level, all) = (budget.level(), sum_at(&needs, u32::MAX));
                let higher = (level.min(1000) + level.min(1000) / 8 + 2) * 8 / 7 + 1;
                let wasted = match all > u64::from(max) {
                    true => sum_at(&needs, higher) <= u64::from(max),
                    false => level < u32::MAX && all <= u64::from(max - max / 8),
                };
                prop_assert!(!wasted, "{} for {:?} in {}", level, needs, max);
            }
            for need in needs {
                budget.change(need, 0);
            }
            prop_assert_eq!((budget.level(), budget.sum, budget.needs.len()), (u32::MAX, 0, 0));
        }
    }
}
