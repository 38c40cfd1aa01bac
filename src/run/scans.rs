//! One scan after the other, and past those that are stuck.
//!
//! A scan whose step is not over for a while stands before a device that does not answer. It is
//! left where it is, and the next one goes everywhere else, until the device answers and it comes
//! back.

use std::sync::Arc;
use std::time::Duration;

use log::{info, warn};

use super::trail::{Spot, Trail};
use crate::dm::Device;
use crate::engine::Time;

/// From when on a step that is not over counts as stuck.
const STILL: Duration = Duration::from_secs(2);

/// Scans that may be out at a time, each but the last stuck before another device.
const OUT_MAX: usize = 8;

/// Share of the time that scans may take, as one part in so many.
const SHARE: u32 = 20;

#[derive(Debug)]
struct Scan {
    number: u32,
    began: Time,
    trail: Arc<Trail>,
    /// Steps it had taken at that time.
    steps: u64,
    watched: Time,
    stuck: Option<Spot>,
}

/// All scans that have not come back.
#[derive(Debug, Default)]
pub(super) struct Scans {
    out: Vec<Scan>,
    due: Time,
    wish: Option<Time>,
    count: u32,
}

impl Scans {
    /// When to look at them, or to begin another one.
    pub(super) fn next_due(&self) -> Option<Time> {
        match self.out.iter().find(|scan| scan.stuck.is_none()) {
            Some(scan) => Some(scan.watched + STILL),
            None => (self.out.len() < OUT_MAX).then(|| self.wish.unwrap_or(self.due).min(self.due)),
        }
    }

    /// Has one begun at this time at the latest, but not before the one that is under way is back.
    pub(super) fn wish(&mut self, due: Time) {
        self.wish = Some(self.wish.map_or(due, |wish| wish.min(due)));
    }

    /// Begins a scan if one is due: its number, and what it is to step on. It goes past these
    /// devices, too.
    pub(super) fn begin(
        &mut self,
        now: Time,
        stuck: impl Iterator<Item = Device>,
    ) -> Option<(u32, Arc<Trail>)> {
        self.watch(now);
        let may = self.next_due().is_some_and(|due| due <= now);
        if !may || self.out.iter().any(|scan| scan.stuck.is_none()) {
            return None;
        }
        let shunned = self.out.iter().filter_map(|scan| scan.stuck.clone());
        let shunned = shunned.chain(stuck.map(Spot::Device));
        let trail = Arc::new(Trail::new(shunned.collect()));
        self.wish = None;
        self.count = self.count.wrapping_add(1);
        let (number, steps) = (self.count, 0);
        let scan =
            Scan { number, began: now, trail: trail.clone(), steps, watched: now, stuck: None };
        self.out.push(scan);
        Some((number, trail))
    }

    /// Sees whether the one that is under way goes on.
    fn watch(&mut self, now: Time) {
        let Some(scan) = self.out.iter_mut().find(|scan| scan.stuck.is_none()) else { return };
        if now < scan.watched + STILL {
            return;
        }
        let (steps, spot) = scan.trail.here();
        if let Some(spot) = spot.filter(|_| steps == scan.steps) {
            warn!("{spot} does not answer: what is new there, or gone, is not seen until it does");
            scan.stuck = Some(spot);
            self.due = now;
        } else {
            (scan.steps, scan.watched) = (steps, now);
        }
    }

    /// A scan has come back, and the next one is planned. Gives how long it took, if what it saw is
    /// to be believed.
    pub(super) fn end(&mut self, now: Time, number: u32, interval: Duration) -> Option<Duration> {
        let at = self.out.iter().position(|scan| scan.number == number)?;
        let scan = self.out.swap_remove(at);
        match scan.stuck {
            Some(spot) => {
                info!("{spot} answers again");
                self.due = now; // what it saw is old
                None
            }
            None => {
                let took = now.since(scan.began);
                self.due = now + interval.max(took * SHARE);
                Some(took)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Touch;

    const OTHER: Device = Device { major: 253, minor: 99 };
    const MINUTE: Duration = Duration::from_secs(60);

    fn on(minor: u32) -> Touch<'static> {
        Touch::Device(Device { major: 253, minor })
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn begin(scans: &mut Scans, now: Time) -> Option<(u32, Arc<Trail>)> {
        scans.begin(now, std::iter::empty())
    }

    fn begin_when_due(scans: &mut Scans) -> Option<(u32, Arc<Trail>)> {
        let due = scans.next_due().unwrap();
        begin(scans, due)
    }

    #[test]
    fn a_scan_that_goes_on_is_the_only_one() {
        let mut scans = Scans::default();
        let (number, trail) = begin(&mut scans, at(0)).unwrap();
        for second in 1..100 {
            trail.step(on(0));
            assert!(begin(&mut scans, at(second)).is_none());
            assert!(scans.next_due().unwrap() > at(second));
        }
        assert_eq!(scans.end(at(100), number, MINUTE), Some(Duration::from_secs(100)));
        assert_eq!(scans.next_due(), Some(at(100 + 100 * 20)), "a scan takes a share of the time");
        scans.wish(at(101));
        assert!(begin(&mut scans, at(100)).is_none());
        let (number, _) = begin(&mut scans, at(101)).unwrap();
        scans.wish(at(103));
        scans.end(at(102), number, MINUTE);
        assert_eq!(scans.next_due(), Some(at(103)), "it was wished for meanwhile");
    }

    #[test]
    fn a_scan_that_is_at_work_on_what_it_has_seen_is_not_stuck() {
        let mut scans = Scans::default();
        let (number, trail) = begin(&mut scans, at(0)).unwrap();
        trail.step(on(0));
        trail.step(Touch::Memory);
        for second in 1..100 {
            assert!(begin(&mut scans, at(second)).is_none());
        }
        assert!(scans.end(at(100), number, MINUTE).is_some());
    }

    #[test]
    fn the_next_one_goes_past_a_scan_that_is_stuck() {
        let mut scans = Scans::default();
        let (stuck, trail) = begin(&mut scans, at(0)).unwrap();
        assert!(trail.step(on(1)) && trail.step(on(2)));
        assert!(begin_when_due(&mut scans).is_none(), "it has taken steps since");
        let (next, trail) = begin_when_due(&mut scans).expect("no more of them");
        assert!(trail.step(on(1)) && !trail.step(on(2)));
        assert!(scans.end(at(5), next, MINUTE).is_some());
        assert_eq!(scans.next_due(), Some(at(65)));

        assert!(scans.end(at(30), stuck, MINUTE).is_none(), "it saw how things were long ago");
        let (_, trail) = begin(&mut scans, at(30)).expect("there may be something to see there");
        assert!(trail.step(on(2)));
    }

    #[test]
    fn no_more_scans_are_stuck_than_may_be() {
        let mut scans = Scans::default();
        let mut count = 0;
        while scans.next_due().is_some() {
            if let Some((_, trail)) = begin_when_due(&mut scans) {
                count += 1;
                assert!(trail.step(on(count)));
            }
        }
        assert_eq!(scans.out.len(), OUT_MAX);
        let first = scans.out[0].number;
        scans.end(at(1000), first, MINUTE);
        let (_, trail) = scans.begin(at(1000), [OTHER].into_iter()).unwrap();
        assert!(!trail.step(Touch::Device(OTHER)), "it is stuck, as others know");
    }
}
