//! Moments of the program's own clock.

use std::ops::{Add, AddAssign};
use std::time::Duration;

/// A moment: nanoseconds since the program started, enough for 584 years. It never steps back.
///
/// Half the size of a [`Duration`], of which every followed file would hold several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// When the program started.
    pub const ZERO: Time = Time(0);

    /// Time since `earlier`; none if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(super) fn nanoseconds(self) -> u64 {
        self.0
    }

    /// The first moment from this one on that is a multiple of `step` after the start.
    #[must_use]
    pub fn rounded_up(self, step: Duration) -> Time {
        let step = Time::from(step).0.max(1);
        Time(self.0.div_ceil(step).saturating_mul(step))
    }

    /// Time since the program started.
    #[must_use]
    pub fn since_start(self) -> Duration {
        self.since(Time::ZERO)
    }
}

impl From<Duration> for Time {
    fn from(since_start: Duration) -> Time {
        Time(u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, later: Duration) -> Time {
        Time(self.0.saturating_add(Time::from(later).0))
    }
}

impl AddAssign<Duration> for Time {
    fn add_assign(&mut self, later: Duration) {
        *self = *self + later;
    }
}
