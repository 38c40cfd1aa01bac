//! When the engine has what was counted read.

use std::time::Duration;

use dmfilemapd::dm::Device;
use dmfilemapd::engine::{
    Action, Batch, Engine, Event, FileId, Look, Pace, Reading, Settings, Spec, Sweep, Time,
};
use dmfilemapd::group::Mark;
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::Mode;
use dmfilemapd::shape::Limits;
use dmfilemapd::sight::Sight;
use dmfilemapd::update::{Error, Group};

const SECOND: Duration = Duration::from_secs(1);
const ALMOST: Duration = Duration::from_millis(999);
const GROUP: Group = Group { id: RegionId(0), mark: Mark { key: 1, nonce: 2 }, claim: 3 };

fn device(minor: u32) -> Device {
    Device { major: 253, minor }
}

fn at(seconds: u32) -> Time {
    Time::ZERO + SECOND * seconds
}

/// A look at a file that nobody uses any more.
fn unused(device: Device, file: FileId) -> Batch {
    let (looks, sights) = (vec![Look { file, last: None }], vec![(file, Sight::Unused)]);
    Batch { device, maps: Some(0), looks, changed: Vec::new(), sights }
}

/// An engine whose files are never looked at again, on devices that answer sweeps at once.
struct Bench {
    engine: Engine,
    now: Time,
    /// Readings that were asked for.
    reads: Vec<(Device, Vec<FileId>)>,
    updates: usize,
}

impl Bench {
    fn new(read: Option<Duration>) -> Bench {
        Bench::with(Settings { read, patient: true, ..Settings::default() })
    }

    fn with(settings: Settings) -> Bench {
        let engine = Engine::new(settings);
        Bench { engine, now: Time::ZERO, reads: Vec::new(), updates: 0 }
    }

    fn follow(&mut self, minor: u32, group: Option<Group>) -> FileId {
        let pace = Pace::fixed(1000 * SECOND);
        let device = device(minor);
        let (mode, limits) = (Mode::Inode, Limits::NONE);
        self.engine.follow(self.now, Spec { mode, device, group, restless: false, pace, limits })
    }

    fn happens(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let mut actions = Vec::new();
            self.engine.handle(self.now, event, &mut actions);
            for action in actions {
                match action {
                    Action::Read(device, groups) => {
                        let files = groups.into_iter().map(|(file, _)| file).collect();
                        self.reads.push((device, files));
                    }
                    Action::Sweep(device, _) => {
                        events.push(Event::Swept(device, Ok(Sweep::default())));
                    }
                    Action::Remove(..) => self.updates += 1,
                    _ => {}
                }
            }
        }
    }

    /// Lets time pass until a reading is asked for, or until `end`.
    fn wait(&mut self, end: Time) -> Option<Device> {
        while self.reads.is_empty() && self.now < end {
            self.now = self.engine.next_due().filter(|due| *due < end).unwrap_or(end);
            self.happens(Event::Tick);
        }
        (!self.reads.is_empty()).then(|| self.reads.remove(0).0)
    }

    fn read(&mut self, minor: u32, reset: bool) {
        self.read_at(minor, Reading { reset, cost: Duration::ZERO, more: false });
    }

    fn read_at(&mut self, minor: u32, reading: Reading) {
        self.happens(Event::Read(device(minor), reading));
    }
}

#[test]
fn a_device_is_read_at_the_interval_and_nothing_is_read_unless_it_is_wanted() {
    let mut bench = Bench::new(Some(10 * SECOND));
    let (ours, _) = (bench.follow(0, Some(GROUP)), bench.follow(0, None));
    for round in 1..5 {
        while bench.reads.is_empty() {
            bench.now = bench.engine.next_due().expect("a reading will be due");
            bench.happens(Event::Tick);
        }
        assert_eq!((bench.now, &bench.reads[..]), (at(10 * round), &[(device(0), vec![ours])][..]));
        bench.reads.clear();
        bench.read(0, false);
    }
    let mut bench = Bench::new(None);
    bench.follow(0, Some(GROUP));
    assert_eq!(bench.wait(at(1000)), None);
    assert_eq!(bench.engine.read_now(bench.now, SECOND), []);
}

#[test]
fn a_reading_that_costs_much_is_made_more_seldom() {
    let mut bench = Bench::new(Some(10 * SECOND));
    bench.follow(0, Some(GROUP));
    for (cost, pause) in [(Duration::ZERO, 10), (SECOND / 10, 10), (SECOND / 2, 25)] {
        assert_eq!(bench.wait(bench.now + 100 * SECOND), Some(device(0)));
        bench.now += 3600 * SECOND; // the processor had other things to do
        let back = bench.now;
        bench.read_at(0, Reading { reset: false, cost, more: false });
        assert_eq!(bench.wait(back + ((pause - 1) * SECOND + ALMOST)), None);
        assert_eq!(bench.wait(back + pause * SECOND), Some(device(0)));
        bench.read(0, false);
    }
}

#[test]
fn while_somebody_sets_counters_to_zero_they_are_read_often() {
    let mut bench = Bench::new(Some(10 * SECOND));
    bench.follow(0, Some(GROUP));
    bench.follow(1, Some(GROUP));
    assert_eq!(bench.wait(at(100)), Some(device(0)));
    bench.read(0, true);
    let reset = bench.now;
    let mut count = 0;
    while bench.now < reset + 299 * SECOND {
        if let Some(read) = bench.wait(reset + 299 * SECOND) {
            count += usize::from(read == device(0));
            bench.read(read.minor, false);
        }
    }
    assert_eq!(count, 299 * 10, "the other device has its own pace");
    let end = bench.now + 100 * SECOND;
    let mut count = 0;
    while bench.now < end {
        if let Some(read) = bench.wait(end) {
            count += usize::from(read == device(0));
            bench.read(read.minor, false);
        }
    }
    assert!((10..20).contains(&count), "{count}");
}

#[test]
fn nothing_else_is_done_to_a_device_while_it_is_read() {
    let mut bench = Bench::new(Some(10 * SECOND));
    let file = bench.follow(0, Some(GROUP));
    let other = bench.follow(1, Some(GROUP));
    for minor in [0, 1] {
        assert_eq!(bench.wait(at(10)), Some(device(minor)));
    }
    // Both files have a look out, and go when it is back.
    for file in [file, other] {
        bench.happens(Event::Forget(file, true));
    }
    let looked = |bench: &mut Bench, minor, file| {
        bench.happens(Event::Looked(unused(device(minor), file)));
    };
    looked(&mut bench, 0, file);
    looked(&mut bench, 1, other);
    assert_eq!(bench.updates, 0);
    bench.read(1, false);
    assert_eq!(bench.updates, 1);
    bench.now += 1000 * SECOND;
    bench.happens(Event::Tick);
    assert_eq!((bench.updates, bench.reads.len()), (1, 0));
    bench.read(0, false);
    assert_eq!(bench.updates, 2);
    assert_eq!(bench.engine.group(file), Some(GROUP));
    let gone = Event::Removed(device(0), file, Err(Error::Gone));
    bench.happens(gone);
}

/// Somebody asks. Gives the devices that he waits for.
fn ask(bench: &mut Bench) -> Vec<Device> {
    let awaited = bench.engine.read_now(bench.now, SECOND);
    bench.happens(Event::Tick);
    awaited
}

#[test]
fn who_asks_gets_what_was_read_since_and_waits_for_no_device_that_is_stuck() {
    let mut bench = Bench::new(Some(10 * SECOND));
    bench.follow(0, Some(GROUP));
    bench.follow(1, Some(GROUP));
    bench.follow(2, None);
    bench.now = at(1);
    assert_eq!(ask(&mut bench), [device(0), device(1)]);
    assert_eq!(bench.reads.drain(..).count(), 2);
    bench.read(0, false);
    // What is under way for another was begun too early for who asks now.
    bench.now = at(1) + SECOND / 2;
    assert_eq!(ask(&mut bench), [device(0), device(1)]);
    assert_eq!(bench.reads.drain(..).map(|(device, _)| device.minor).collect::<Vec<_>>(), [0]);
    assert_eq!(bench.engine.read_began(device(1)), Some(at(1)));
    bench.read(1, false);
    assert_eq!(bench.reads.drain(..).map(|(device, _)| device.minor).collect::<Vec<_>>(), [1]);
    assert_eq!(bench.engine.read_began(device(1)), Some(bench.now));
    bench.read(1, false);
    assert_eq!(bench.reads, []);
    bench.now = at(3);
    assert_eq!(ask(&mut bench), [device(1)], "the other is stuck");
}

#[test]
fn who_asks_all_the_time_leaves_the_processor_its_rest() {
    let mut bench = Bench::new(Some(10 * SECOND));
    bench.follow(0, Some(GROUP));
    bench.now = at(1);
    assert_eq!(ask(&mut bench), [device(0)]);
    bench.reads.clear();
    bench.read_at(0, Reading { reset: false, cost: SECOND / 2, more: false });
    // It took half a second: it is read half a second in two, no more.
    bench.now = at(2);
    assert_eq!(ask(&mut bench), [device(0)]);
    assert_eq!(bench.wait(at(2) + ALMOST), None);
    assert_eq!(bench.wait(at(3)), Some(device(0)));
}

#[test]
fn what_is_to_come_of_a_reading_holds_up_the_next_and_nothing_else() {
    let mut bench = Bench::new(Some(10 * SECOND));
    let file = bench.follow(0, Some(GROUP));
    assert_eq!(bench.wait(at(10)), Some(device(0)));
    bench.read_at(0, Reading { reset: false, cost: Duration::ZERO, more: true });
    assert!(bench.engine.is_settling(device(0)));
    assert_eq!(bench.wait(at(100)), None);
    assert_eq!(ask(&mut bench), [], "it is stuck by now");
    // Its group can be deleted meanwhile.
    bench.happens(Event::Forget(file, true));
    bench.happens(Event::Looked(unused(device(0), file)));
    assert_eq!((bench.updates, bench.reads.len()), (1, 0));
    let whole = Reading { reset: false, cost: Duration::ZERO, more: false };
    bench.happens(Event::Settled(device(0), whole));
    assert!(!bench.engine.is_settling(device(0)));
}

#[test]
fn what_counts_whole_devices_is_read_at_once_and_without_any_group() {
    let settings = Settings { read: Some(10 * SECOND), read_all: true, ..Settings::default() };
    let mut bench = Bench::with(Settings { patient: true, ..settings });
    bench.follow(0, None);
    assert_eq!(bench.wait(at(1)), Some(device(0)));
    assert_eq!(bench.now, at(0));
    bench.read(0, false);
    assert_eq!(bench.wait(at(9)), None);
    assert_eq!(ask(&mut bench), [device(0)]);
}
