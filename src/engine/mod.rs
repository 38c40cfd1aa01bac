//! When to look, when to update and when to stop: a pure function of time and events.
//!
//! The engine owns the state of every followed file and does nothing itself. [`Engine::handle`]
//! takes what happened and says what is to be done; whoever runs it carries that out and brings
//! the outcome back as the next event. A file is in at most one job at a time, so no two answers
//! about it can cross.
//!
//! # Pace
//!
//! Each file has a deadline of its own. The first look is due at once, the second at a moment of
//! the interval that differs between some hundreds of files and the next, so that ten thousand
//! files do not wake together; then one follows an interval after the other, or after the end of a
//! look that took longer. A file that was quiet for some dozens of looks is looked at ever more
//! seldom, down to its longest interval, and as often as at first again as soon as something
//! happens.
//!
//! # Lanes
//!
//! Each device has a lane: what is under way for it is bounded, and a device that holds its work
//! up holds up nothing else. Stamps are taken in batches of many files, since a `stat` waits for
//! nobody; maps in small ones, since a writer may lock a file for seconds.
//!
//! # The gauge
//!
//! A change of a map has to be written to the device sooner or later. So files that are looked at
//! as seldom as can be are not looked at while their device's write counter stands still, though
//! never for longer than [`Settings::gauge_max`]: a filesystem may keep a change of metadata in
//! memory for its commit interval (5 s on ext4, some 30 s on xfs) before it writes.

mod budget;
mod dispatch;
mod event;
mod followed;
mod lane;
mod looks;
mod orders;
mod reads;
mod report;
mod status;
mod time;
mod treatment;
mod wheel;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::dm::Device;
use crate::mode::Mode;
use crate::shape::Limits;
use crate::update::Group;

pub use event::{Action, Batch, Event, Look, Reading, Sweep};
use followed::{Followed, Job};
use lane::{Lane, Order};
pub use lane::{MAPPING_MAX, MAPS_MAX, STAMPS_MAX};
pub use report::{End, Report};
pub use status::{DeviceStatus, FileStatus, State};
pub use time::Time;
use treatment::Treatments;
use wheel::Wheel;

/// What holds for all files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long after a change of the stamp the map is read at every look: as long as written data
    /// may stay in memory, since extents get their address, and on xfs a new one, when it leaves.
    pub settle: Duration,
    /// How long the map goes unread at the most. Defragmenting and deduplication move extents and
    /// leave the stamp as it was.
    pub full_look: Duration,
    /// Between two listings of a device to see what others did to our groups; longer where a
    /// listing takes more than a fiftieth of that, up to a minute.
    pub sweep: Duration,
    /// Between two readings of what a device's groups have counted, if anybody wants to know;
    /// longer where a reading takes more than a fiftieth of that in processor time.
    pub read: Option<Duration>,
    /// Whether devices are read on which no file has a group, and as soon as a file is followed
    /// there: something else counts there, too.
    pub read_all: bool,
    /// How long there may be no file at a path before it is let go.
    pub absence: Duration,
    /// Between two readings of a device's write counter.
    pub gauge: Duration,
    /// How long a file goes without a look though its device is not written to.
    pub gauge_max: Duration,
    /// Regions that the groups of one device may have together, as far as each may have one.
    pub max_device_regions: u32,
    /// Whether to go on when no file is left.
    pub patient: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            settle: Duration::from_secs(45),
            full_look: Duration::from_secs(60),
            sweep: Duration::from_secs(5),
            read: None,
            read_all: false,
            absence: Duration::from_secs(1),
            gauge: Duration::from_secs(1),
            gauge_max: Duration::from_secs(60),
            max_device_regions: u32::MAX,
            patient: false,
        }
    }
}

/// How often a file is looked at. Counted in milliseconds, of which there is at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between two looks while things happen to it.
    pub interval: Duration,
    /// Between two looks when nothing has happened for long; the same, if it is shorter.
    pub max_interval: Duration,
}

impl Pace {
    /// The same interval whatever happens.
    #[must_use]
    pub fn fixed(interval: Duration) -> Pace {
        Pace { interval, max_interval: interval }
    }
}

/// What lvm2's daemon takes, and the default here: between two looks at a file.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// Looks at a file while it may be coming back: several within [`Settings::absence`].
const ABSENCE_LOOK: Duration = Duration::from_millis(100);

/// Waits after failures: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Torn maps in a row before one is taken for what it is. The file is rewritten all the time then,
/// and a map of several moments is nearer to the truth than one of long ago.
const TORN_MAX: u8 = 8;

/// Share of the time that listing a device may take, as one part in so many.
const SWEEP_SHARE: u32 = 50;

/// The longest time between two sweeps for the sake of that. What took very long was not the
/// listing: the process was stopped, or the device was. It need not be so the next time.
const SWEEP_MAX: Duration = Duration::from_secs(60);

/// A followed file: an index, given out again when nothing is under way for the file it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

impl FileId {
    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A file to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What it is followed by.
    pub mode: Mode,
    /// The device-mapper device it lies on.
    pub device: Device,
    /// Its group, if there is one already.
    pub group: Option<Group>,
    /// Its filesystem moves extents silently and often: read the map at every look.
    pub restless: bool,
    /// How often to look.
    pub pace: Pace,
    /// How many regions its group may have.
    pub limits: Limits,
}

/// The state of all followed files.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    files: Vec<Option<Followed>>,
    /// Indices of `files` that may be given out.
    free: Vec<FileId>,
    followed: usize,
    treatments: Treatments,
    wheel: Wheel,
    due: Vec<FileId>,
    lanes: Vec<Lane>,
    lane_of: BTreeMap<Device, u32>,
    /// Batches that came back, for their room.
    spare: Vec<Batch>,
    stopped: bool,
}

impl Engine {
    /// An engine that follows nothing yet.
    pub fn new(settings: Settings) -> Engine {
        Engine {
            settings,
            files: Vec::new(),
            free: Vec::new(),
            followed: 0,
            treatments: Treatments::default(),
            wheel: Wheel::new(),
            due: Vec::new(),
            lanes: Vec::new(),
            lane_of: BTreeMap::new(),
            spare: Vec::new(),
            stopped: false,
        }
    }

    /// Follows one more file; the first look at it is due at once.
    pub fn follow(&mut self, now: Time, spec: Spec) -> FileId {
        let lane = self.lane(now, spec.device);
        self.lanes[lane as usize].files += 1;
        let treatment = self.treatments.of(spec.pace, spec.limits);
        let followed = Some(Followed::new(now, &spec, treatment, lane, &self.settings));
        let file = self.free.pop().unwrap_or_else(|| {
            if self.files.len() == self.files.capacity() {
                // An eighth more, not twice as much: what is left over is not used for long.
                self.files.reserve_exact(self.files.len() / 8 + 16);
            }
            self.files.push(None);
            FileId(u32::try_from(self.files.len() - 1).expect("memory for 2^32 files"))
        });
        self.files[file.index()] = followed;
        self.followed += 1;
        self.wheel.put(now, file);
        file
    }

    fn lane(&mut self, now: Time, device: Device) -> u32 {
        let (lanes, settings) = (&mut self.lanes, &self.settings);
        *self.lane_of.entry(device).or_insert_with(|| {
            // What counts whole devices begins to do so at once.
            let wait = |read| if settings.read_all { Duration::ZERO } else { read };
            let (sweep, read) = (now + settings.sweep, settings.read.map(|read| now + wait(read)));
            lanes.push(Lane::new(device, sweep, read, settings.max_device_regions));
            u32::try_from(lanes.len() - 1).expect("memory for 2^32 devices")
        })
    }

    /// When the next [`Event::Tick`] is wanted; `None` if only an answer can make anything happen.
    pub fn next_due(&self) -> Option<Time> {
        let lane = |lane: &Lane| {
            let free = lane.files > 0 && lane.ordering.is_none();
            let sweep =
                [Some(lane.sweep), lane.reads.next_due()].into_iter().flatten().filter(|_| free);
            sweep.chain(lane.gauge.due.filter(|_| !lane.gauge.out)).min()
        };
        self.lanes.iter().filter_map(lane).chain(self.wheel.next_due()).min()
    }

    /// The device that a file lies on.
    pub fn device(&self, file: FileId) -> Option<Device> {
        let lane = self.files.get(file.index())?.as_ref()?.lane;
        self.lanes.get(lane as usize).map(|lane| lane.device)
    }

    /// Files that are followed on a device.
    pub fn files_on(&self, device: Device) -> usize {
        self.lane_on(device).map_or(0, |lane| lane.files)
    }

    /// Whether the file is followed still.
    pub fn follows(&self, file: FileId) -> bool {
        self.files.get(file.index()).is_some_and(Option::is_some)
    }

    /// Sets [`Settings::patient`].
    pub fn set_patient(&mut self, patient: bool) {
        self.settings.patient = patient;
    }

    /// Sets [`Settings::full_look`], for every look from the next one on.
    pub fn set_full_look(&mut self, full_look: Duration) {
        self.settings.full_look = full_look;
    }

    /// Has the file looked at in another pace from its last look on.
    pub fn set_pace(&mut self, file: FileId, pace: Pace) {
        let Some(followed) = self.files.get_mut(file.index()).and_then(Option::as_mut) else {
            return;
        };
        followed.treat(self.treatments.of(pace, followed.limits()));
        followed.be_quick();
        let due = followed.looked + pace.interval;
        if followed.job == Job::None && due < followed.due {
            self.plan(file, due);
        }
    }

    /// Takes what happened at time `now`, and adds to `actions` what is to be done.
    pub fn handle(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Looked(batch) => self.looked(now, batch, actions),
            Event::Updated(device, file, outcome) => {
                self.order_is_back(device);
                self.updated(now, file, outcome, actions);
            }
            Event::Removed(device, file, outcome) => {
                self.order_is_back(device);
                self.removed(now, file, outcome, actions);
            }
            Event::Swept(device, outcome) => self.swept(now, device, outcome, actions),
            Event::Read(device, reading) => self.read(now, device, reading),
            Event::Settled(device, reading) => self.settled(now, device, reading),
            Event::Gauged(device, writes) => self.gauged(now, device, writes),
            Event::Forget(file, remove) => self.forget(now, file, remove, actions),
            Event::Stop => self.stopped = true,
        }
        if self.stopped || self.followed == 0 && !self.settings.patient {
            self.stopped = true;
            actions.push(Action::Finish);
            return;
        }
        self.route(now);
        self.dispatch(now, actions);
    }

    fn followed(&mut self, file: FileId) -> Option<&mut Followed> {
        self.files.get_mut(file.index())?.as_mut()
    }

    /// The file, whose job has come back; the index of one that was let go meanwhile is free now.
    fn answered(&mut self, file: FileId) -> Option<&mut Followed> {
        if !self.follows(file) {
            self.free.push(file);
            return None;
        }
        let followed = self.followed(file)?;
        followed.job = Job::None;
        Some(followed)
    }

    fn lane_on(&self, device: Device) -> Option<&Lane> {
        let lane = *self.lane_of.get(&device)?;
        self.lanes.get(lane as usize)
    }

    fn lane_of(&mut self, device: Device) -> Option<&mut Lane> {
        let lane = *self.lane_of.get(&device)?;
        self.lanes.get_mut(lane as usize)
    }

    fn lane_of_file(&mut self, file: FileId) -> Option<&mut Lane> {
        let lane = self.followed(file)?.lane;
        self.lanes.get_mut(lane as usize)
    }

    /// Plans the next look for `due`, which is no moment of the file's own.
    fn plan(&mut self, file: FileId, due: Time) {
        if let Some(followed) = self.files.get_mut(file.index()).and_then(Option::as_mut) {
            followed.due = due;
            followed.spread = false;
            followed.parked = false;
            self.wheel.put(due, file);
        }
    }

    /// Plans the next look for a moment soon after `due`, which is the file's own from then on.
    fn spread(&mut self, file: FileId, due: Time) {
        if let Some(followed) = self.files.get_mut(file.index()).and_then(Option::as_mut) {
            followed.due = followed.moment(due);
            followed.spread = true;
            followed.parked = false;
            self.wheel.put(followed.due, file);
        }
    }

    /// Nothing is wrong with the file: looks at it again when it is its turn.
    fn worked(&mut self, now: Time, file: FileId, quiet: bool, actions: &mut Vec<Action>) {
        let Some(followed) = self.followed(file) else { return };
        if let Some(trouble) = followed.recover() {
            if trouble.failing.is_some() {
                actions.push(Action::Report(file, Report::Recovered));
            }
        }
        let rarer = if quiet {
            followed.rest(now)
        } else {
            followed.be_quick();
            false
        };
        let interval = followed.interval();
        let next = followed.due + interval;
        if rarer || !followed.spread {
            // At least half an interval from now, and not all files at the same moment.
            self.spread(file, now + interval.saturating_sub(share(file, interval / 2)));
        } else if next <= now + interval / 2 {
            self.spread(file, now + interval);
        } else {
            followed.due = next;
            followed.parked = false;
            self.wheel.put(next, file);
        }
    }

    fn failed(&mut self, now: Time, file: FileId, why: String, actions: &mut Vec<Action>) {
        let Some(followed) = self.followed(file) else { return };
        followed.be_quick();
        let interval = followed.interval();
        let trouble = followed.trouble();
        let wait = RETRY.0.saturating_mul(1 << trouble.failures.min(10)).min(RETRY.1);
        trouble.failures += 1;
        if trouble.failing.as_ref() != Some(&why) {
            actions.push(Action::Report(file, Report::Failing(why.clone())));
            trouble.failing = Some(why);
        }
        self.plan(file, now + wait.max(interval));
    }

    /// Nobody wants the file any more; `remove` says whether its group is to go with it.
    fn forget(&mut self, now: Time, file: FileId, remove: bool, actions: &mut Vec<Action>) {
        let Some(followed) = self.followed(file) else { return };
        if !remove {
            self.let_go(now, file, End::Unwanted, actions);
        } else if followed.job == Job::None {
            self.end(now, file, End::Unwanted, actions);
        } else {
            followed.trouble().end.get_or_insert(End::Unwanted); // when its job is back
        }
    }

    /// The file is no more: its regions count nothing but other files' I/O from now on.
    fn end(&mut self, now: Time, file: FileId, end: End, actions: &mut Vec<Action>) {
        let Some(followed) = self.followed(file) else { return };
        let Some(group) = followed.group else { return self.let_go(now, file, end, actions) };
        followed.trouble().end = Some(end);
        followed.job = Job::Remove;
        followed.due = now;
        followed.parked = false;
        if let Some(lane) = self.lane_of_file(file) {
            lane.orders.push_back(Order::Remove(file, group));
        }
    }

    fn let_go(&mut self, now: Time, file: FileId, end: End, actions: &mut Vec<Action>) {
        let Some(followed) = self.files.get_mut(file.index()).and_then(Option::take) else {
            return;
        };
        self.followed -= 1;
        let lane = &mut self.lanes[followed.lane as usize];
        lane.files -= 1;
        lane.own_regions -= u64::from(followed.regions);
        self.unweigh(now, &followed);
        if followed.job == Job::None {
            self.free.push(file);
        }
        actions.push(Action::Close(file));
        actions.push(Action::Report(file, Report::LetGo(end)));
    }
}

/// Files that were followed one after the other and are looked at one after the other: what is
/// known of them, here and in the kernel, lies side by side, and they make a batch.
const NEIGHBOURS: u32 = 256;

/// A share of the whole, from none to nearly all, that differs between neighbourhoods of files:
/// they take steps of the golden ratio, of whose fraction this here is 2^64 times.
fn share(file: FileId, whole: Duration) -> Duration {
    let step = u64::from(file.0 / NEIGHBOURS).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let whole = u128::from(Time::from(whole).nanoseconds());
    Duration::from_nanos(u64::try_from((whole * u128::from(step)) >> u64::BITS).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_have_the_same_share_and_neighbourhoods_lie_far_apart() {
        let share = |file| share(FileId(file), Duration::from_secs(1)).as_millis();
        assert_eq!([0, 255, 256, 511, 512].map(share), [0, 0, 618, 618, 236]);
        let mut shares: Vec<u128> = (0..100).map(|of| share(256 * of)).collect();
        shares.sort_unstable();
        let gaps = shares.windows(2).map(|two| two[1] - two[0]);
        assert!(gaps.max() <= Some(20) && shares.last() < Some(&1000), "{shares:?}");
        assert!(super::share(FileId(256), Duration::MAX) < Duration::MAX);
    }
}
