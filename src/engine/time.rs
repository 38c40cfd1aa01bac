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

/// A moment to the tenth of a second, in half the size of a [`Time`]; enough for 13 years, and then
/// it is always that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tenths(u32);

/// Nanoseconds in a tenth of a second.
const TENTH: u64 = 100_000_000;

impl Tenths {
    pub(super) const ZERO: Tenths = Tenths(0);

    /// The last one until `time`.
    pub(super) fn until(time: Time) -> Tenths {
        Tenths(u32::try_from(time.0 / TENTH).unwrap_or(u32::MAX))
    }

    /// The first one from `time` on.
    pub(super) fn from(time: Time) -> Tenths {
        Tenths(u32::try_from(time.0.div_ceil(TENTH)).unwrap_or(u32::MAX))
    }

    pub(super) fn time(self) -> Time {
        Time(u64::from(self.0) * TENTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_lie_on_the_side_that_is_asked_for() {
        let time = |milliseconds| Time::from(Duration::from_millis(milliseconds));
        for (at, until, from) in [(0, 0, 0), (1, 0, 100), (100, 100, 100), (199, 100, 200)] {
            assert_eq!(Tenths::until(time(at)).time(), time(until));
            assert_eq!(Tenths::from(time(at)).time(), time(from));
        }
        let years = Time::from(Duration::from_secs(20 * 365 * 86_400));
        assert!(Tenths::from(years).time() > time(13 * 365 * 86_400_000));
        assert_eq!(Tenths::until(years), Tenths::from(years));
    }
}
