//! When a device was last heard of by the threads that work for it.
//!
//! One job may take long: a file of many extents, a group of many regions. As long as one answer
//! comes after the other the device is at work; it is stuck when none comes.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::dm::{Device, Dm, Reply, Turn};

/// From when on a device that does not answer counts as stuck.
const STUCK: Duration = Duration::from_secs(5);

/// The last answer of each device; shared by the threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulse(Arc<Mutex<HashMap<Device, Instant>>>);

impl Pulse {
    /// The device has answered.
    pub(super) fn beat(&self, device: Device) {
        self.0.lock().insert(device, Instant::now());
    }

    /// For how long a device is stuck, of which something has been asked for so long.
    pub(super) fn stuck(&self, device: Device, busy: Duration) -> Option<Duration> {
        let silent = self.0.lock().get(&device).map_or(busy, |last| last.elapsed().min(busy));
        (silent >= STUCK).then_some(silent)
    }
}

/// Carries messages, and notes the answers.
#[derive(Debug)]
pub(super) struct Heard<D> {
    pub(super) dm: D,
    pub(super) pulse: Pulse,
}

impl<D: Dm> Dm for Heard<D> {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        let reply = self.dm.message(device, text);
        self.pulse.beat(device);
        reply
    }

    fn message_to(&mut self, device: Device, uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        let reply = self.dm.message_to(device, uuid, text);
        self.pulse.beat(device);
        reply
    }

    fn begin_turn(&mut self, device: Device, turn: Turn) -> io::Result<()> {
        self.dm.begin_turn(device, turn)
    }

    fn end_turn(&mut self, device: Device) {
        self.dm.end_turn(device);
    }

    fn hold_grid(&mut self, device: Device, turn: Turn) -> io::Result<()> {
        self.dm.hold_grid(device, turn)
    }

    fn let_grid_go(&mut self, device: Device) {
        self.dm.let_grid_go(device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_answers_is_not_stuck_however_long_it_takes() {
        let (pulse, device) = (Pulse::default(), Device { major: 253, minor: 0 });
        assert_eq!(pulse.stuck(device, STUCK), Some(STUCK));
        assert_eq!(pulse.stuck(device, STUCK / 2), None);
        pulse.beat(device);
        assert_eq!(pulse.stuck(device, STUCK), None);
        assert_eq!(pulse.stuck(Device { minor: 1, ..device }, STUCK), Some(STUCK));
    }
}
