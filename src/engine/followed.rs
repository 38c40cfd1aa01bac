//! What is known of one followed file.
//!
//! There may be a hundred thousand of these: what is rare is kept apart, in a box.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::time::{Tenths, Time};
use super::treatment::Treatment;
use super::{End, Pace, Settings, Spec};
use crate::extent::Fingerprint;
use crate::mode::Mode;
use crate::shape::Limits;
use crate::sight::Imprint;
use crate::update::Group;

/// Looks at the interval, without anything to see, before the looks become rarer.
const QUIET_MAX: u8 = 32;

/// Moments of an interval at which files are due. More would make smaller batches.
const MOMENTS: u32 = 64;

/// What is being done for a file, or is about to be: one thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    None,
    Look,
    Update,
    Remove,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a fact of its own
pub(super) struct Followed {
    pub(super) mode: Mode,
    /// Which lane its device is.
    pub(super) lane: u32,
    pub(super) group: Option<Group>,
    pub(super) job: Job,
    pub(super) due: Time,
    /// When the last look was begun.
    pub(super) looked: Time,
    /// Waits for its device to be written to, and not for its next look.
    pub(super) parked: bool,
    restless: bool,
    /// Is due at a moment of its own, of those that its interval has.
    pub(super) spread: bool,
    /// Of the last map, until something makes it worthless.
    pub(super) stamp: Option<Imprint>,
    /// Of the last map.
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) extents: u32,
    pub(super) sectors: u64,
    /// Whether the group shows that map.
    pub(super) shown: bool,
    /// Members of the group.
    pub(super) regions: u32,
    /// Regions that the group needs, as far as its own limit allows it.
    pub(super) need: u32,
    /// Regions that the last update was to keep to.
    pub(super) ordered: u32,
    /// When the group was last made to show another map.
    pub(super) changed: Tenths,
    pub(super) settled: Tenths,
    pub(super) full_look: Tenths,
    pub(super) pending: bool,
    pub(super) shared: bool,
    pub(super) torn: u8,
    /// In path mode: a look may have left it open.
    pub(super) open: bool,
    pub(super) given_up: bool,
    pub(super) warned_long: bool,
    treatment: Arc<Treatment>,
    quiet: u8,
    /// How often the interval has been doubled.
    doubled: u8,
    /// Of few files; once there, it stays.
    rare: Option<Box<Rare>>,
}

/// What few files have.
#[derive(Debug, Default)]
struct Rare {
    /// Sectors of the last map that are shared.
    shared_sectors: u64,
    /// What the group shows besides the map, if it does.
    foreign: Option<Foreign>,
    trouble: Option<Trouble>,
}

/// What a group counts that its file does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) sectors: u64,
    /// Of all that the group counts.
    pub(super) fingerprint: Fingerprint,
}

/// What is wrong with a file, while something is.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub(super) absent_since: Option<Time>,
    pub(super) failing: Option<String>,
    pub(super) failures: u32,
    /// It is to be let go as soon as its group is deleted.
    pub(super) end: Option<End>,
}

impl Followed {
    pub(super) fn new(
        now: Time,
        spec: &Spec,
        treatment: Arc<Treatment>,
        lane: u32,
        settings: &Settings,
    ) -> Followed {
        Followed {
            mode: spec.mode,
            lane,
            group: spec.group,
            job: Job::None,
            due: now,
            looked: now,
            parked: false,
            restless: spec.restless,
            spread: false,
            stamp: None,
            fingerprint: None,
            extents: 0,
            sectors: 0,
            shown: false,
            regions: 0,
            need: 0,
            ordered: spec.limits.max_regions,
            changed: Tenths::ZERO,
            settled: Tenths::until(now + settings.settle),
            full_look: Tenths::until(now),
            pending: false,
            shared: false,
            torn: 0,
            open: true,
            given_up: false,
            warned_long: false,
            treatment,
            quiet: 0,
            doubled: 0,
            rare: None,
        }
    }

    /// Has it treated in another way. Gives how it was before.
    pub(super) fn treat(&mut self, treatment: Arc<Treatment>) -> Arc<Treatment> {
        self.spread &= self.treatment.pace() == treatment.pace();
        mem::replace(&mut self.treatment, treatment)
    }

    pub(super) fn limits(&self) -> Limits {
        self.treatment.limits
    }

    pub(super) fn pace(&self) -> Pace {
        self.treatment.pace()
    }

    pub(super) fn map_due(&self, now: Time) -> bool {
        self.stamp.is_none()
            || self.pending
            || self.shared
            || self.restless
            || now < self.settled.time()
            || now >= self.full_look.time()
    }

    /// Whether the map is likely to be read at the next look.
    pub(super) fn is_hot(&self, now: Time) -> bool {
        self.stamp.is_none() || self.pending || now < self.settled.time()
    }

    /// The time between two looks, as things are.
    pub(super) fn interval(&self) -> Duration {
        let milliseconds = self.longer();
        Duration::from_millis(milliseconds.min(self.treatment.max_interval.into()))
    }

    /// The first moment from `time` on of those that its interval has: files that are due at nearly
    /// the same time are looked at in one batch.
    pub(super) fn moment(&self, time: Time) -> Time {
        time.rounded_up(self.interval() / MOMENTS)
    }

    /// The interval, as often doubled as it was, in milliseconds.
    fn longer(&self) -> u64 {
        u64::from(self.treatment.interval) << self.doubled
    }

    /// Whether it is looked at as seldom as is allowed, and that is more seldom than at first.
    pub(super) fn is_idle(&self) -> bool {
        self.doubled > 0 && self.longer() >= self.treatment.max_interval.into()
    }

    /// There was nothing to see, once more. Gives whether the interval has become longer by it.
    pub(super) fn rest(&mut self, now: Time) -> bool {
        let Treatment { interval, max_interval, .. } = *self.treatment;
        if self.is_hot(now) || self.restless || max_interval == interval {
            return false;
        }
        self.quiet = self.quiet.saturating_add(1);
        if self.quiet < QUIET_MAX || self.is_idle() {
            return false;
        }
        self.doubled += 1;
        true
    }

    /// Something has happened, and more may follow.
    pub(super) fn be_quick(&mut self) {
        self.quiet = 0;
        self.doubled = 0;
    }

    /// What is wrong with it, something or nothing.
    pub(super) fn trouble(&mut self) -> &mut Trouble {
        self.rare.get_or_insert_default().trouble.get_or_insert_default()
    }

    /// What is wrong with it, if something is.
    pub(super) fn has_trouble(&self) -> Option<&Trouble> {
        self.rare.as_ref()?.trouble.as_ref()
    }

    /// It is there.
    pub(super) fn is_there(&mut self) {
        if let Some(trouble) = self.rare.as_mut().and_then(|rare| rare.trouble.as_mut()) {
            trouble.absent_since = None;
        }
    }

    /// Nothing is wrong with it any more, unless it is to be let go. Gives what was.
    pub(super) fn recover(&mut self) -> Option<Trouble> {
        self.rare.as_mut()?.trouble.take_if(|trouble| trouble.end.is_none())
    }

    pub(super) fn shared_sectors(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.shared_sectors)
    }

    pub(super) fn set_shared_sectors(&mut self, sectors: u64) {
        if self.shared_sectors() != sectors {
            self.rare.get_or_insert_default().shared_sectors = sectors;
        }
    }

    pub(super) fn foreign(&self) -> Option<Foreign> {
        self.rare.as_ref()?.foreign
    }

    pub(super) fn set_foreign(&mut self, foreign: Option<Foreign>) {
        if self.foreign() != foreign {
            self.rare.get_or_insert_default().foreign = foreign;
        }
    }

    /// Of what the group counts, if it shows the last map.
    pub(super) fn cover(&self) -> Option<Fingerprint> {
        self.foreign().map_or(self.fingerprint, |foreign| Some(foreign.fingerprint))
    }

    pub(super) fn end(&self) -> Option<&End> {
        self.has_trouble()?.end.as_ref()
    }

    pub(super) fn failures(&self) -> u32 {
        self.has_trouble().map_or(0, |trouble| trouble.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_files_fit_in_some_16_mb() {
        assert!(size_of::<Followed>() <= 160, "{}", size_of::<Followed>());
    }
}
