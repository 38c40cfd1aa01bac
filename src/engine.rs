//! When to look, when to update and when to stop: a pure function of time and events.
//!
//! The engine owns the state of every followed file and does nothing itself. [`Engine::handle`]
//! takes what happened and says what is to be done; whoever runs it carries that out and brings
//! the outcome back as the next event. A file is in at most one job at a time, so no two answers
//! about it can cross.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::time::Duration;

use crate::dm::Device;
use crate::extent::{Extents, Fingerprint};
use crate::group::REWRITE_MAX;
use crate::message::RegionId;
use crate::mode::Mode;
use crate::sight::{Map, Sight, Stamp};
use crate::update::{self, Group, Standing, Updated};

/// Time since the program started; it never steps back.
pub type Time = Duration;

/// How often things are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Between the end of one look at a file and the start of the next.
    pub interval: Duration,
    /// How long after a change of the stamp the map is read at every look: as long as written data
    /// may stay in memory, since extents get their address, and on xfs a new one, when it leaves.
    pub settle: Duration,
    /// How long the map goes unread at the most. Defragmenting and deduplication move extents and
    /// leave the stamp as it was.
    pub full_look: Duration,
    /// Between two listings of a device to see what others did to our groups.
    pub sweep: Duration,
    /// How long there may be no file at a path before it is let go.
    pub absence: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            interval: Duration::from_millis(500),
            settle: Duration::from_secs(45),
            full_look: Duration::from_secs(60),
            sweep: Duration::from_secs(5),
            absence: Duration::from_secs(1),
        }
    }
}

/// Looks at a file while it may be coming back: several within [`Settings::absence`].
const ABSENCE_LOOK: Duration = Duration::from_millis(100);

/// Waits after failures: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Torn maps in a row before one is taken for what it is. The file is rewritten all the time then,
/// and a map of several moments is nearer to the truth than one of long ago.
const TORN_MAX: u32 = 8;

/// A followed file: an index, given out in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub usize);

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
}

/// What can happen.
#[derive(Debug)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A look came back.
    Looked(FileId, Sight),
    /// An update came back; without a group where there was none and nothing to make one from.
    Updated(FileId, Result<Option<Updated>, update::Error>),
    /// The group of a file that is no more was deleted, or not.
    Removed(FileId, Result<usize, update::Error>),
    /// A look at groups of one device came back.
    Swept(Device, Result<Vec<(FileId, Standing)>, update::Error>),
    /// A signal asks to stop.
    Stop,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at the file.
    Look {
        /// The file.
        file: FileId,
        /// The stamp of its last map; the map is read if the stamp differs.
        last: Option<Stamp>,
        /// Read the map in any case.
        map_due: bool,
    },
    /// Close the file's descriptor, which a look by path may have left open.
    Close(FileId),
    /// Make the file's regions cover these extents; make or find the group if there is none.
    Update(FileId, Device, Option<Group>, Extents),
    /// Delete the group: its file is no more.
    Remove(FileId, Device, Group),
    /// Look at these groups of the device.
    Sweep(Device, Vec<(FileId, Group)>),
    /// Tell the user.
    Report(FileId, Report),
    /// Nothing is left to do.
    Finish,
}

/// What a user may want to know of a file. Given when a state begins, not while it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The group was made or found, or its regions changed.
    Updated(Updated),
    /// The group's id is another one.
    Moved(RegionId, RegionId),
    /// The descriptor has grown so long (bytes) that LVM2 can read but not rewrite it.
    Long(usize),
    /// Something does not work; it is tried again.
    Failing(String),
    /// It works again.
    Recovered,
    /// The kernel does not understand what we send: the group is left alone from here on.
    GivenUp(String),
    /// The file is not followed any more: why.
    LetGo(End),
}

/// Why a file is not followed any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is unlinked and nobody has it open.
    Unused,
    /// There is nothing to follow at its path: what was found.
    Absent(String),
    /// Its device is gone.
    NoDevice,
    /// Its group is gone or another process follows it: which.
    NotOurs(String),
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Updated(updated) => write!(
                f,
                "group {} has {} region(s), {} created and {} deleted",
                updated.group.id, updated.members, updated.created, updated.deleted
            ),
            Report::Moved(from, to) => {
                write!(f, "the group's id is now {to}; it was {from}, whose region is gone")
            }
            Report::Long(len) => write!(
                f,
                "the group's ids are so scattered that its descriptor takes {len} bytes: dmstats \
                 can list and report the group, but not change it"
            ),
            Report::Failing(why) => write!(f, "{why}; trying again"),
            Report::Recovered => f.write_str("works again"),
            Report::GivenUp(why) => {
                write!(f, "{why}; the kernel does not understand this, the group is left as it is")
            }
            Report::LetGo(end) => end.fmt(f),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Unused => f.write_str("let go: it is unlinked and nobody has it open"),
            End::Absent(found) => write!(f, "let go: {found}"),
            End::NoDevice => f.write_str("let go: its device is gone"),
            End::NotOurs(why) => write!(f, "let go: {why}"),
        }
    }
}

/// What a file is being done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    None,
    Look,
    Update(Fingerprint),
    Remove,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a fact of its own
struct Followed {
    mode: Mode,
    device: Device,
    group: Option<Group>,
    restless: bool,
    job: Job,
    due: Time,
    /// Of the last map, until something makes it worthless.
    stamp: Option<Stamp>,
    /// Of the map that the group shows.
    shown: Option<Fingerprint>,
    settled: Time,
    full_look: Time,
    pending: bool,
    shared: bool,
    torn: u32,
    absent_since: Option<Time>,
    failing: Option<String>,
    failures: u32,
    given_up: bool,
    warned_long: bool,
    end: Option<End>,
}

impl Followed {
    fn map_due(&self, now: Time) -> bool {
        self.stamp.is_none()
            || self.pending
            || self.shared
            || self.restless
            || now < self.settled
            || now >= self.full_look
    }

    /// Whether the map is likely to be read at the next look.
    fn is_hot(&self, now: Time) -> bool {
        self.stamp.is_none() || self.pending || now < self.settled
    }
}

/// The state of all followed files.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    files: Vec<Option<Followed>>,
    followed: usize,
    due: BinaryHeap<Reverse<(Time, FileId)>>,
    /// When to look at the groups of each device; `None` while a look is out.
    sweeps: BTreeMap<Device, Option<Time>>,
    stopped: bool,
}

impl Engine {
    /// An engine that follows nothing yet.
    pub fn new(settings: Settings) -> Engine {
        let (files, due, sweeps) = (Vec::new(), BinaryHeap::new(), BTreeMap::new());
        Engine { settings, files, followed: 0, due, sweeps, stopped: false }
    }

    /// Follows one more file; the first look at it is due at once.
    pub fn follow(&mut self, now: Time, spec: Spec) -> FileId {
        let file = FileId(self.files.len());
        self.files.push(Some(Followed {
            mode: spec.mode,
            device: spec.device,
            group: spec.group,
            restless: spec.restless,
            job: Job::None,
            due: now,
            stamp: None,
            shown: None,
            settled: now + self.settings.settle,
            full_look: now,
            pending: false,
            shared: false,
            torn: 0,
            absent_since: None,
            failing: None,
            failures: 0,
            given_up: false,
            warned_long: false,
            end: None,
        }));
        self.followed += 1;
        self.due.push(Reverse((now, file)));
        self.sweeps.entry(spec.device).or_insert(Some(now + self.settings.sweep));
        file
    }

    /// When the next [`Event::Tick`] is wanted; `None` if only an answer can make anything happen.
    pub fn next_due(&self) -> Option<Time> {
        let look = self.due.peek().map(|Reverse((due, _))| *due);
        let sweep = self.sweeps.values().flatten().min().copied();
        look.into_iter().chain(sweep).min()
    }

    /// Whether the file is followed still.
    pub fn follows(&self, file: FileId) -> bool {
        self.files.get(file.0).is_some_and(Option::is_some)
    }

    /// Takes what happened at time `now`, and adds to `actions` what is to be done.
    pub fn handle(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Looked(file, sight) => self.looked(now, file, sight, actions),
            Event::Updated(file, outcome) => self.updated(now, file, outcome, actions),
            Event::Removed(file, outcome) => self.removed(now, file, outcome, actions),
            Event::Swept(device, outcome) => self.swept(now, device, outcome, actions),
            Event::Stop => self.stopped = true,
        }
        if self.stopped || self.followed == 0 {
            self.stopped = true;
            actions.push(Action::Finish);
            return;
        }
        self.start_looks(now, actions);
        self.start_sweeps(now, actions);
    }

    fn start_looks(&mut self, now: Time, actions: &mut Vec<Action>) {
        while let Some(&Reverse((due, file))) = self.due.peek() {
            if due > now {
                break;
            }
            self.due.pop();
            let Some(followed) = self.files[file.0].as_mut() else { continue };
            if followed.job != Job::None || followed.due != due {
                continue; // a look was planned anew since
            }
            if let (Some(_), Some(group)) = (&followed.end, followed.group) {
                followed.job = Job::Remove;
                actions.push(Action::Remove(file, followed.device, group));
                continue;
            }
            followed.job = Job::Look;
            let map_due = followed.map_due(now);
            actions.push(Action::Look { file, last: followed.stamp, map_due });
        }
    }

    fn start_sweeps(&mut self, now: Time, actions: &mut Vec<Action>) {
        for (device, due) in &mut self.sweeps {
            if due.is_none_or(|due| due > now) {
                continue;
            }
            let group = |(at, followed): (usize, &Option<Followed>)| {
                let followed = followed.as_ref().filter(|followed| followed.device == *device)?;
                Some((FileId(at), followed.group?))
            };
            let groups: Vec<_> = self.files.iter().enumerate().filter_map(group).collect();
            if groups.is_empty() {
                *due = Some(now + self.settings.sweep);
            } else {
                *due = None;
                actions.push(Action::Sweep(*device, groups));
            }
        }
    }

    fn look_again(&mut self, file: FileId, due: Time) {
        if let Some(followed) = self.files[file.0].as_mut() {
            followed.job = Job::None;
            followed.due = due;
            self.due.push(Reverse((due, file)));
        }
    }

    fn looked(&mut self, now: Time, file: FileId, sight: Sight, actions: &mut Vec<Action>) {
        let settings = self.settings;
        let Some(followed) = self.followed(file) else { return };
        if !matches!(sight, Sight::Absent(_)) {
            followed.absent_since = None;
        }
        match sight {
            Sight::Same => {
                if followed.mode == Mode::Path && !followed.is_hot(now) {
                    actions.push(Action::Close(file));
                }
                self.worked(now, file, actions);
            }
            Sight::Mapped(stamp, map) => self.mapped(now, file, stamp, map, actions),
            Sight::Failed(why) => self.failed(now, file, why, actions),
            Sight::Unused => self.end(now, file, End::Unused, actions),
            Sight::Absent(found) => {
                let since = *followed.absent_since.get_or_insert(now);
                followed.stamp = None;
                if now >= since + settings.absence {
                    self.end(now, file, End::Absent(found), actions);
                } else {
                    self.look_again(file, now + settings.interval.min(ABSENCE_LOOK));
                }
            }
        }
    }

    fn mapped(
        &mut self,
        now: Time,
        file: FileId,
        stamp: Stamp,
        map: Map,
        actions: &mut Vec<Action>,
    ) {
        let settings = self.settings;
        let Some(followed) = self.followed(file) else { return };
        if stamp.device != followed.device {
            let found = format!("the file at the path lies on another device, {}", stamp.device);
            return self.end(now, file, End::Absent(found), actions);
        }
        if followed.stamp != Some(stamp) {
            followed.settled = now + settings.settle;
        }
        followed.stamp = Some(stamp);
        followed.pending = map.pending;
        followed.shared |= map.shared;
        // Files that were read at the same moment are not all read again at the same moment.
        let spread = settings.full_look.mul_f64(0.2 * phase(file));
        followed.full_look = now + settings.full_look.saturating_sub(spread);
        followed.torn = if map.torn { followed.torn + 1 } else { 0 };
        if (1..TORN_MAX).contains(&followed.torn) {
            followed.stamp = None;
            return self.look_again(file, now + settings.interval);
        }
        if followed.shown == Some(map.fingerprint) || followed.given_up {
            if followed.mode == Mode::Path && now >= followed.settled {
                actions.push(Action::Close(file)); // idle, though its map is read at every look
            }
            return self.worked(now, file, actions);
        }
        followed.job = Job::Update(map.fingerprint);
        let (device, group) = (followed.device, followed.group);
        actions.push(Action::Update(file, device, group, map.extents));
    }

    fn updated(
        &mut self,
        now: Time,
        file: FileId,
        outcome: Result<Option<Updated>, update::Error>,
        actions: &mut Vec<Action>,
    ) {
        let Some(followed) = self.followed(file) else { return };
        let Job::Update(fingerprint) = followed.job else { return };
        match outcome {
            Ok(None) => {
                followed.shown = Some(fingerprint); // no extent; the next map has one
                self.worked(now, file, actions);
            }
            Ok(Some(updated)) => {
                let before = followed.group.replace(updated.group);
                followed.shown = Some(fingerprint);
                if before.is_none() || updated.created + updated.deleted > 0 {
                    actions.push(Action::Report(file, Report::Updated(updated)));
                }
                let id = updated.group.id;
                if let Some(before) = before.filter(|before| before.id != id) {
                    actions.push(Action::Report(file, Report::Moved(before.id, id)));
                }
                let long = updated.descriptor_len > REWRITE_MAX;
                if long && !followed.warned_long {
                    actions.push(Action::Report(file, Report::Long(updated.descriptor_len)));
                }
                followed.warned_long = long;
                self.worked(now, file, actions);
            }
            Err(error) => self.refused(now, file, &error, actions),
        }
    }

    /// Sorts the errors of an update by what follows from them.
    fn refused(
        &mut self,
        now: Time,
        file: FileId,
        error: &update::Error,
        actions: &mut Vec<Action>,
    ) {
        let Some(followed) = self.followed(file) else { return };
        followed.stamp = None; // the extents are forgotten: read them again
        match error {
            update::Error::Gone | update::Error::TakenOver => {
                self.let_go(file, End::NotOurs(error.to_string()), actions);
            }
            _ if error.is_no_device() => self.let_go(file, End::NoDevice, actions),
            _ if error.is_not_understood() => {
                followed.given_up = true;
                actions.push(Action::Report(file, Report::GivenUp(error.to_string())));
                self.look_again(file, now + self.settings.interval);
            }
            _ => self.failed(now, file, error.to_string(), actions),
        }
    }

    fn removed(
        &mut self,
        now: Time,
        file: FileId,
        outcome: Result<usize, update::Error>,
        actions: &mut Vec<Action>,
    ) {
        let Some(followed) = self.followed(file) else { return };
        let end = followed.end.clone().unwrap_or(End::NoDevice);
        match outcome {
            Err(error @ update::Error::TakenOver) => {
                self.let_go(file, End::NotOurs(error.to_string()), actions);
            }
            Err(error) if !error.is_no_device() && !error.is_not_understood() => {
                self.failed(now, file, error.to_string(), actions);
            }
            _ => self.let_go(file, end, actions),
        }
    }

    fn swept(
        &mut self,
        now: Time,
        device: Device,
        outcome: Result<Vec<(FileId, Standing)>, update::Error>,
        actions: &mut Vec<Action>,
    ) {
        if let Some(due) = self.sweeps.get_mut(&device) {
            *due = Some(now + self.settings.sweep);
        }
        match outcome {
            Ok(standings) => {
                for (file, standing) in standings {
                    self.stood(now, file, standing, actions);
                }
            }
            Err(error) if error.is_no_device() => {
                let lies_there = |at: &usize| {
                    self.files[*at].as_ref().is_some_and(|followed| followed.device == device)
                };
                let files: Vec<usize> = (0..self.files.len()).filter(lies_there).collect();
                for at in files {
                    self.let_go(FileId(at), End::NoDevice, actions);
                }
            }
            Err(_) => {} // an update will say so, if there is one
        }
    }

    fn stood(&mut self, now: Time, file: FileId, standing: Standing, actions: &mut Vec<Action>) {
        let Some(followed) = self.followed(file) else { return };
        if matches!(followed.job, Job::Update(_) | Job::Remove) {
            return; // what was seen is older than what is under way
        }
        match standing {
            Standing::Gone => {
                self.let_go(file, End::NotOurs(update::Error::Gone.to_string()), actions);
            }
            Standing::TakenOver => {
                self.let_go(file, End::NotOurs(update::Error::TakenOver.to_string()), actions);
            }
            Standing::Stands { fingerprint, tidy, .. } => {
                if followed.shown.is_some_and(|shown| shown != fingerprint) || !tidy {
                    // Somebody changed it, or a cut update left something: do it over.
                    followed.shown = None;
                    followed.stamp = None;
                    if followed.job == Job::None && followed.failures == 0 {
                        self.look_again(file, now);
                    }
                }
            }
        }
    }

    fn worked(&mut self, now: Time, file: FileId, actions: &mut Vec<Action>) {
        let Some(followed) = self.followed(file) else { return };
        followed.failures = 0;
        if followed.failing.take().is_some() {
            actions.push(Action::Report(file, Report::Recovered));
        }
        self.look_again(file, now + self.settings.interval);
    }

    fn failed(&mut self, now: Time, file: FileId, why: String, actions: &mut Vec<Action>) {
        let interval = self.settings.interval;
        let Some(followed) = self.followed(file) else { return };
        let wait = RETRY.0.saturating_mul(1 << followed.failures.min(10)).min(RETRY.1);
        followed.failures += 1;
        if followed.failing.as_ref() != Some(&why) {
            actions.push(Action::Report(file, Report::Failing(why.clone())));
            followed.failing = Some(why);
        }
        self.look_again(file, now + wait.max(interval));
    }

    /// The file is no more: its regions count nothing but other files' I/O from now on.
    fn end(&mut self, now: Time, file: FileId, end: End, actions: &mut Vec<Action>) {
        let Some(followed) = self.followed(file) else { return };
        if followed.group.is_none() {
            return self.let_go(file, end, actions);
        }
        followed.end = Some(end);
        self.look_again(file, now);
    }

    fn let_go(&mut self, file: FileId, end: End, actions: &mut Vec<Action>) {
        if self.files[file.0].take().is_some() {
            self.followed -= 1;
            actions.push(Action::Close(file));
            actions.push(Action::Report(file, Report::LetGo(end)));
        }
    }

    fn followed(&mut self, file: FileId) -> Option<&mut Followed> {
        self.files.get_mut(file.0)?.as_mut()
    }
}

/// A number from 0 to 1 that differs from file to file: steps of the golden ratio.
fn phase(file: FileId) -> f64 {
    #[allow(clippy::cast_precision_loss)] // any number will do
    let turns = file.0 as f64 * 0.618_033_988_749_895;
    turns.fract()
}
