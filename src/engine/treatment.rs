//! How files are treated: the same for all files of a rule, of which there are few.

use std::sync::Arc;
use std::time::Duration;

use super::Pace;
use crate::shape::Limits;

/// How often a file is looked at, and how many regions its group may have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Treatment {
    /// In milliseconds: at least one, and not longer than the next.
    pub(super) interval: u32,
    pub(super) max_interval: u32,
    pub(super) limits: Limits,
}

/// All treatments that files have.
#[derive(Debug, Default)]
pub(super) struct Treatments(Vec<Arc<Treatment>>);

impl Treatments {
    /// This one, shared with all files that have it.
    pub(super) fn of(&mut self, pace: Pace, limits: Limits) -> Arc<Treatment> {
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let interval = milliseconds(pace.interval).max(1);
        let max_interval = milliseconds(pace.max_interval).max(interval);
        let treatment = Treatment { interval, max_interval, limits };
        if let Some(same) = self.0.iter().rev().find(|known| ***known == treatment) {
            return same.clone();
        }
        self.0.retain(|known| Arc::strong_count(known) > 1);
        let treatment = Arc::new(treatment);
        self.0.push(treatment.clone());
        treatment
    }
}

impl Treatment {
    pub(super) fn pace(&self) -> Pace {
        let time = |milliseconds: u32| Duration::from_millis(milliseconds.into());
        Pace { interval: time(self.interval), max_interval: time(self.max_interval) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_kept_while_a_file_has_it() {
        let mut treatments = Treatments::default();
        let pace = |seconds| Pace::fixed(Duration::from_secs(seconds));
        let first = treatments.of(pace(1), Limits::NONE);
        assert!(Arc::ptr_eq(&first, &treatments.of(first.pace(), first.limits)));
        let second = treatments.of(pace(2), Limits::NONE);
        let third = treatments.of(pace(1), Limits { max_regions: 1, ..Limits::NONE });
        assert_eq!(treatments.0.len(), 3);
        drop((second, third));
        treatments.of(pace(3), Limits::NONE);
        assert_eq!(treatments.0.len(), 2);
    }
}
