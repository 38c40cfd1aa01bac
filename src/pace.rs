//! Pacing creates, so that a device's I/O gets through between them.
//!
//! While a region is created its device's I/O waits: some milliseconds, and longer where much is in
//! flight. An update may have a thousand to create. So after each the device is left alone for a
//! multiple of the time that it took, whichever update asks for the next one: a device on which
//! creates take long is left alone for longer.
//!
//! The pause is made where messages are sent, since who decides about them knows no clock. It holds
//! up the thread that sends them, which is one for each device, and the turn that the update has:
//! another process can update its own groups meanwhile, and `gc` waits. Whoever ends the process
//! does not: nobody waits for such a thread, and what it has created is found again by its mark. If
//! groups are to be deleted before the end, creates [stop](Pacer::stop) and fail, so that updates
//! that are under way make room.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::dm::{Device, Dm, Reply};

/// The longest pause after one create: one that took longer than a fraction of this waited for a
/// device that hung.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Which share of a device's time creates take by default, in percent.
pub const SHARE: u8 = 50;

/// What the creates on one device have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Toll {
    /// Regions created.
    pub creates: u64,
    /// How long that took: at most as long the device's I/O waited.
    pub stalled: Duration,
    /// How often a create was held back to let the device's I/O through.
    pub pauses: u64,
    /// When the next may be made, since the pacer was made.
    next: Duration,
}

impl Toll {
    /// A create began at `began` and has just ended.
    fn pay(&mut self, began: Duration, ended: Duration, share: u8) {
        let took = ended.saturating_sub(began);
        let share = u32::from(share.clamp(1, 100));
        let pause = took.saturating_mul(100 - share) / share;
        self.stalled += took;
        self.next = self.next.max(ended) + pause.min(PAUSE_MAX);
    }
}

/// Says when a region may be created; for all threads of a process that do so. Clones are the same.
#[derive(Clone, Debug)]
pub struct Pacer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    epoch: Instant,
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Debug)]
struct State {
    share: u8,
    stop: bool,
    tolls: HashMap<Device, Toll>,
}

impl Pacer {
    /// One that lets creates take so many percent of each device's time.
    #[must_use]
    pub fn new(share: u8) -> Pacer {
        let state = State { share, stop: false, tolls: HashMap::new() };
        let (epoch, stopped) = (Instant::now(), Condvar::new());
        Pacer(Arc::new(Shared { epoch, state: Mutex::new(state), stopped }))
    }

    /// Lets them take another share from the next one on.
    pub fn set_share(&self, share: u8) {
        self.0.state.lock().share = share;
    }

    /// From here on no region is created: whoever waits to create one, or tries to, gets an error.
    pub fn stop(&self) {
        self.0.state.lock().stop = true;
        self.0.stopped.notify_all();
    }

    /// What the creates on a device have cost so far.
    #[must_use]
    pub fn toll(&self, device: Device) -> Toll {
        self.0.state.lock().tolls.get(&device).copied().unwrap_or_default()
    }

    /// Waits until a region may be created, unless that is in a hurry. Gives the time then.
    fn wait(&self, device: Device, hurry: bool) -> io::Result<Duration> {
        let Shared { epoch, state, stopped } = &*self.0;
        let (mut state, mut paused) = (state.lock(), false);
        loop {
            if state.stop {
                let why = "groups are being deleted before the end, and none is changed any more";
                return Err(io::Error::new(io::ErrorKind::Interrupted, why));
            }
            let next = state.tolls.get(&device).map_or(Duration::ZERO, |toll| toll.next);
            let now = epoch.elapsed();
            if next <= now || hurry {
                return Ok(now);
            }
            if !mem::replace(&mut paused, true) {
                state.tolls.entry(device).or_default().pauses += 1;
            }
            stopped.wait_until(&mut state, *epoch + next);
        }
    }

    fn created(&self, device: Device, began: Duration, created: bool) {
        let now = self.0.epoch.elapsed();
        let mut state = self.0.state.lock();
        let share = state.share;
        let toll = state.tolls.entry(device).or_default();
        toll.pay(began, now, share);
        toll.creates += u64::from(created);
    }
}

/// A device-mapper whose regions are created at a pace.
#[derive(Debug)]
pub struct Paced<D> {
    dm: D,
    pacer: Pacer,
    hurry: bool,
}

impl<D> Paced<D> {
    /// The same device-mapper, and whoever shares the pacer waits for the others.
    pub fn new(dm: D, pacer: Pacer) -> Paced<D> {
        Paced { dm, pacer, hurry: false }
    }
}

impl<D: Dm> Paced<D> {
    fn carry(
        &mut self,
        device: Device,
        text: &[u8],
        carry: impl FnOnce(&mut D) -> io::Result<Reply>,
    ) -> io::Result<Reply> {
        let creates = text.starts_with(b"@stats_create ");
        let hurry = mem::take(&mut self.hurry);
        let began = creates.then(|| self.pacer.wait(device, hurry)).transpose()?;
        let reply = carry(&mut self.dm);
        if let Some(began) = began {
            self.pacer.created(device, began, reply.is_ok());
        }
        reply
    }
}

impl<D: Dm> Dm for Paced<D> {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        self.carry(device, text, |dm| dm.message(device, text))
    }

    fn message_to(&mut self, device: Device, uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        self.carry(device, text, |dm| dm.message_to(device, uuid, text))
    }

    fn hurry(&mut self) {
        self.hurry = true;
        self.dm.hurry();
    }

    fn beneath(&mut self) -> Option<&mut dyn Dm> {
        Some(&mut self.dm)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::dm::Turn;
    use crate::kernel::Memory;

    const DEVICE: Device = Device { major: 253, minor: 0 };

    fn milliseconds(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn paced(pacer: &Pacer) -> Paced<Memory> {
        let mut memory = Memory::new();
        memory.add_device(DEVICE, 1 << 20, "a", "");
        Paced::new(memory, pacer.clone())
    }

    #[test]
    fn a_pause_follows_in_which_the_device_has_its_share_of_the_time() {
        let next = |took: u64, share: u8| {
            let mut toll = Toll::default();
            toll.pay(milliseconds(10), milliseconds(10 + took), share);
            assert_eq!(toll.stalled, milliseconds(took));
            toll.next.checked_sub(milliseconds(10 + took)).unwrap()
        };
        assert_eq!(next(5, 25), milliseconds(15));
        assert_eq!(next(5, 50), milliseconds(5));
        assert_eq!(next(5, 100), Duration::ZERO);
        assert_eq!(next(100_000, 1), PAUSE_MAX, "a device that hung is not made to hang longer");
    }

    #[test]
    fn creates_of_any_length_take_their_share_of_the_time_and_no_more() {
        let (mut now, mut busy, mut toll) = (Duration::ZERO, Duration::ZERO, Toll::default());
        for us in [40, 5000, 1, 20_000, 300, 49_999, 7] {
            let began = now.max(toll.next);
            now = began + Duration::from_micros(us);
            busy += Duration::from_micros(us);
            toll.pay(began, now, 25);
        }
        assert_eq!(toll.next, busy * 4);
        assert_eq!(toll.stalled, busy);
    }

    #[test]
    fn creates_are_counted_and_what_fails_is_none() {
        let pacer = Pacer::new(100);
        let mut dm = paced(&pacer);
        for _ in 0..3 {
            dm.message(DEVICE, b"@stats_create 0+8 /1 p -").unwrap();
        }
        dm.message(DEVICE, b"@stats_create 0+0 /1 p -").unwrap_err();
        dm.message(DEVICE, b"@stats_list").unwrap();
        assert_eq!(pacer.toll(DEVICE).creates, 3);
        assert!(pacer.toll(DEVICE).next > Duration::ZERO);
    }

    /// Notes what reaches it.
    #[derive(Default)]
    struct Recorder(Vec<&'static str>);

    impl Dm for Recorder {
        fn message(&mut self, _: Device, _: &[u8]) -> io::Result<Reply> {
            unreachable!("none is sent")
        }

        fn begin_turn(&mut self, _: Device, _: Turn) -> io::Result<()> {
            self.0.push("begin_turn");
            Ok(())
        }

        fn end_turn(&mut self, _: Device) {
            self.0.push("end_turn");
        }

        fn hold_grid(&mut self, _: Device, _: Turn) -> io::Result<()> {
            self.0.push("hold_grid");
            Ok(())
        }

        fn let_grid_go(&mut self, _: Device) {
            self.0.push("let_grid_go");
        }
    }

    #[test]
    fn locks_are_those_of_the_device_mapper_behind_it() {
        let mut dm = Paced::new(Recorder::default(), Pacer::new(SHARE));
        dm.begin_turn(DEVICE, Turn::Shared).unwrap();
        dm.end_turn(DEVICE);
        dm.hold_grid(DEVICE, Turn::Alone).unwrap();
        dm.let_grid_go(DEVICE);
        assert_eq!(dm.dm.0, ["begin_turn", "end_turn", "hold_grid", "let_grid_go"]);
    }

    #[test]
    fn a_create_in_a_hurry_does_not_wait_and_those_after_it_wait_for_its_pause_too() {
        let pacer = Pacer::new(25);
        let far = Toll { next: milliseconds(3_600_000), ..Toll::default() };
        pacer.0.state.lock().tolls.insert(DEVICE, far);
        let mut dm = paced(&pacer);
        dm.hurry();
        dm.message(DEVICE, b"@stats_create 0+8 /1 p -").unwrap();
        let toll = pacer.toll(DEVICE);
        assert_eq!((toll.creates, toll.pauses), (1, 0));
        assert_eq!(toll.next, far.next + (toll.stalled * 3).min(PAUSE_MAX));
        assert!(!dm.hurry, "the next one waits");
    }

    #[test]
    fn who_waits_to_create_is_told_when_that_is_over() {
        let pacer = Pacer::new(1);
        let far = Toll { next: milliseconds(3_600_000), ..Toll::default() };
        pacer.0.state.lock().tolls.insert(DEVICE, far);
        let (tell, told) = mpsc::channel();
        let waits = thread::spawn({
            let mut dm = paced(&pacer);
            move || {
                dm.message(DEVICE, b"@stats_list").expect("what creates nothing does not wait");
                tell.send(()).unwrap();
                dm.message(DEVICE, b"@stats_create 0+8 /1 p -").map(drop)
            }
        });
        told.recv().unwrap();
        pacer.stop();
        let error = waits.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert_eq!(pacer.toll(DEVICE).creates, 0);
    }
}
