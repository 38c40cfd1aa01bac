//! When the threads were last heard of that work for a device.
//!
//! One job may take long: a file of many extents, a group of many regions. As long as one answer
//! comes after the other it gets on; the device is stuck when none comes. Other jobs say nothing
//! about that: a suspended device answers messages, and gives away what is in memory.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::dm::{Device, Dm, Reply};

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

/// Carries the messages of a job, which gets on with each answer.
#[derive(Debug)]
pub(super) struct Heard<D> {
    pub(super) dm: D,
    pub(super) job: Job,
}

impl<D: Dm> Dm for Heard<D> {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        let reply = self.dm.message(device, text);
        self.job.gets_on();
        reply
    }

    fn message_to(&mut self, device: Device, uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        let reply = self.dm.message_to(device, uuid, text);
        self.job.gets_on();
        reply
    }

    fn beneath(&mut self) -> Option<&mut dyn Dm> {
        Some(&mut self.dm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::memory::Memory;

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

    #[test]
    fn a_job_gets_on_with_each_answer() {
        let pulse = Pulse::default();
        let mut memory = Memory::new();
        memory.add_device(DEVICE, 8, "name", "UUID");
        let mut dm = Heard { dm: memory, job: pulse.begin(DEVICE) };
        for uuid in [None, Some(b"UUID")] {
            let until = Instant::now() + STUCK;
            assert!(pulse.stuck(DEVICE, until).is_some());
            let answer = match uuid {
                None => dm.message(DEVICE, b"@stats_list"),
                Some(uuid) => dm.message_to(DEVICE, uuid, b"@stats_list"),
            };
            assert!(answer.is_ok() && pulse.stuck(DEVICE, until).is_none(), "{answer:?}");
        }
    }
}
