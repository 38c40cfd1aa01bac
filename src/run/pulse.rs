//! When the threads were last heard of that work for a device.
//!
//! One job may take long: a file of many extents, a group of many regions. As long as one answer
//! comes after the other it gets on; the device is stuck when none comes. What we think between
//! two messages, which may be a plan for a file of many extents, is not the device's time. Other
//! jobs say nothing about that: a suspended device answers messages, and gives away what is in
//! memory.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::dm::{Device, Dm, Reply};
use crate::kernel::fiemap::{Mapped, Pages};
use crate::sample::Fiemap;

/// From when on a device counts as stuck that does not answer.
const STUCK: Duration = Duration::from_secs(5);

/// The jobs that are being done; shared by the threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse(Arc<Mutex<Jobs>>);

#[derive(Debug, Default)]
struct Jobs {
    count: u64,
    /// For which device, and when it got on.
    last: HashMap<u64, (Device, Instant)>,
}

/// A job that is being done until this is dropped.
#[derive(Debug)]
pub(super) struct Job {
    pulse: Pulse,
    number: u64,
}

impl Pulse {
    /// Something is begun that may take as long as the device does.
    pub(super) fn begin(&self, device: Device) -> Job {
        let mut jobs = self.0.lock();
        jobs.count += 1;
        let number = jobs.count;
        jobs.last.insert(number, (device, Instant::now()));
        Job { pulse: self.clone(), number }
    }

    /// For how long a device has not answered, if it is stuck.
    pub(super) fn stuck(&self, device: Device, now: Instant) -> Option<Duration> {
        let jobs = self.0.lock();
        let its = jobs.last.values().filter(|(of, _)| *of == device);
        let silent = its.map(|(_, last)| now.saturating_duration_since(*last)).max()?;
        (silent >= STUCK).then_some(silent)
    }
}

impl Job {
    /// The device has answered.
    pub(super) fn gets_on(&self) {
        if let Some((_, last)) = self.pulse.0.lock().last.get_mut(&self.number) {
            *last = Instant::now();
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.pulse.0.lock().last.remove(&self.number);
    }
}

/// Carries messages, each of which is a job.
#[derive(Debug)]
pub(super) struct Heard<D> {
    pub(super) dm: D,
    pub(super) pulse: Pulse,
}

impl<D: Dm> Dm for Heard<D> {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        let _job = self.pulse.begin(device);
        self.dm.message(device, text)
    }

    fn message_to(&mut self, device: Device, uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        let _job = self.pulse.begin(device);
        self.dm.message_to(device, uuid, text)
    }

    fn beneath(&mut self) -> Option<&mut dyn Dm> {
        Some(&mut self.dm)
    }
}

/// Asks for the pages of a map, part of a job that gets on with each of them.
pub(super) struct HeardPages<'a> {
    pages: &'a mut Pages,
    job: &'a Job,
    /// One was given.
    begun: bool,
}

impl<'a> HeardPages<'a> {
    pub(super) fn new(pages: &'a mut Pages, job: &'a Job) -> HeardPages<'a> {
        HeardPages { pages, job, begun: false }
    }
}

impl Fiemap for HeardPages<'_> {
    fn read(&mut self, file: &File, start: u64) -> io::Result<&[Mapped]> {
        if mem::replace(&mut self.begun, true) {
            self.job.gets_on(); // it was given the page before this one
        }
        self.pages.read(file, start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Device = Device { major: 253, minor: 0 };

    #[test]
    fn a_device_is_stuck_when_one_of_its_jobs_does_not_get_on() {
        let pulse = Pulse::default();
        let later = || Instant::now() + STUCK;
        assert_eq!(pulse.stuck(DEVICE, later()), None, "nothing is asked of it");
        let (one, two) = (pulse.begin(DEVICE), pulse.begin(DEVICE));
        let until = later();
        assert!(pulse.stuck(DEVICE, until).is_some());
        one.gets_on();
        assert!(pulse.stuck(DEVICE, until).is_some(), "the other one does not");
        two.gets_on();
        assert_eq!(pulse.stuck(DEVICE, until), None);
        assert!(pulse.stuck(DEVICE, later()).is_some_and(|silent| silent >= STUCK));
        assert_eq!(pulse.stuck(Device { minor: 1, ..DEVICE }, later()), None, "another device");
        drop((one, two));
        assert_eq!(pulse.stuck(DEVICE, later()), None, "they are done");
    }

    /// A device-mapper that says for each message whether the device would be stuck if it took
    /// that long.
    struct Slow(Pulse);

    impl Dm for Slow {
        fn message(&mut self, device: Device, _: &[u8]) -> io::Result<Reply> {
            assert!(self.0.stuck(device, Instant::now() + STUCK).is_some());
            Err(io::ErrorKind::TimedOut.into())
        }
    }

    #[test]
    fn a_device_may_take_its_time_for_a_message_and_we_between_two_of_them() {
        let pulse = Pulse::default();
        let mut dm = Heard { dm: Slow(pulse.clone()), pulse: pulse.clone() };
        for uuid in [None, Some(b"UUID")] {
            let answer = match uuid {
                None => dm.message(DEVICE, b"@stats_list"),
                Some(uuid) => dm.message_to(DEVICE, uuid, b"@stats_list"),
            };
            assert_eq!(answer.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(pulse.stuck(DEVICE, Instant::now() + STUCK), None);
        }
    }

    #[test]
    fn a_device_that_gives_page_after_page_of_a_map_is_not_stuck() {
        let pulse = Pulse::default();
        let job = pulse.begin(DEVICE);
        let mut place = Pages::default();
        let mut pages = HeardPages::new(&mut place, &job);
        let file = tempfile::tempfile().unwrap();
        for (start, stuck) in [(0, true), (4096, false), (0, false)] {
            let until = Instant::now() + STUCK;
            pages.read(&file, start).ok(); // whatever the filesystem here says to that
            assert_eq!(pulse.stuck(DEVICE, until).is_some(), stuck, "{start}");
        }
    }
}
