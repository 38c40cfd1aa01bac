//! The grids of the devices, as main sees them: who counts, and what is still to come.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::{info, warn};

use super::books::PATIENCE;
use super::clerk::{By, Clerk, Enlisted, Manner, Round, Seen};
use super::crew::Crew;
use super::jobs::Pass;
use super::{Answer, File, Outcome, Run};
use crate::dm::{Device, Dm};
use crate::engine::{Batch, Event, FileId, Reading, Time};
use crate::extent::Fingerprint;
use crate::grid::plan::Limits;
use crate::grid::saved::SavedGrid;
use crate::request::GridTotals;
use crate::sight::{Map, Sight};
use crate::update::Error;

/// Files of a device, from which on none of them is counted by a grid: a look at each is part of
/// every reading.
const FILES_MAX: usize = 20_000;

/// Areas of a device: at rest each takes half a microsecond of a reading.
const AREAS_MAX: u64 = 16_384;

/// Regions of a grid: each costs every I/O of the device a little.
const REGIONS_MAX: usize = 8;

/// Sectors of the smallest area: 16 KiB. What is written at once is seldom smaller.
const FINEST: u64 = 32;

/// Extents of maps that are kept for a round, at most: a file that is rewritten all the time may
/// have many.
const SEEN_MAX: usize = 1 << 18;

/// How long the regions' part of a reading waits for the grid's. A file may be locked by a writer
/// for longer than that; then regions count.
const ROUND_MAX: Duration = Duration::from_secs(5);

/// For a thread of the grids.
pub(super) enum Job {
    /// For these files. Whether the grid may be changed for them, says the flag.
    /// The maps are what was seen of them since the last round.
    Round(Box<Clerk>, Vec<Enlisted>, bool, Vec<Seen>),
    /// No file is followed on its device any more.
    Retire(Box<Clerk>),
}

/// What came of a job.
pub(super) enum Counted {
    Round(Box<Clerk>, Result<Round, Error>),
    /// What was counted when the grid was taken off its device.
    Last(Device, Round),
}

/// All grids.
pub(super) struct Grids {
    crew: Crew<Job>,
    open: Open,
    manner: Manner,
    slots: HashMap<Device, Slot>,
    /// Devices whose grid is being taken off.
    leaving: HashSet<Device>,
    /// Where the grids stood when an earlier service ended, until they are found.
    saved: Vec<SavedGrid>,
}

type Open = Box<dyn Fn() -> io::Result<Box<dyn Dm + Send>>>;

/// The grid of a device.
#[derive(Default)]
struct Slot {
    /// Nobody, before the first round and while it is away.
    clerk: Option<Box<Clerk>>,
    away: bool,
    interval: Option<Interval>,
    /// Where files were since the last round, and the last fingerprint of each.
    seen: Vec<Seen>,
    last_seen: HashMap<FileId, Fingerprint>,
    /// Somebody else has it now.
    given_up: bool,
    /// Where it stood after the last round: at the same moment as the accounts.
    saved: Option<SavedGrid>,
    totals: GridTotals,
}

/// What was counted since the last reading: by regions, and by the grid. Which of it is an
/// account's can be told when both are known.
struct Interval {
    began: Time,
    /// That the grid stood somewhere was taken as known.
    resumes: bool,
    pass: Option<Pass>,
    round: Back,
}

enum Back {
    NotYet,
    Failed,
    Done(Round),
}

impl Grids {
    pub(super) fn new<D: Dm + Send + 'static>(
        open: impl Fn() -> io::Result<D> + 'static,
        manner: Manner,
        saved: Vec<SavedGrid>,
        inbox: Sender<Answer>,
    ) -> io::Result<Grids> {
        let crew = Crew::new("grid", move || {
            let inbox = inbox.clone();
            Ok(move |job| match job {
                Job::Round(mut clerk, files, may_change, seen) => {
                    let outcome = clerk.round(files, may_change, seen);
                    // Nobody there: the process is about to end.
                    inbox.send(Answer::Counted(Counted::Round(clerk, outcome))).ok();
                }
                Job::Retire(clerk) => {
                    let (device, last) = (clerk.device(), clerk.retire());
                    inbox.send(Answer::Counted(Counted::Last(device, last))).ok(); // likewise
                }
            })
        })?;
        let open: Open = Box::new(move || Ok(Box::new(open()?)));
        let (slots, leaving) = (HashMap::new(), HashSet::new());
        Ok(Grids { crew, open, manner, slots, leaving, saved })
    }

    /// When something is to be done without an event.
    pub(super) fn next_due(&self) -> Option<Time> {
        let waits = |slot: &Slot| {
            let interval = slot.interval.as_ref().filter(|interval| interval.pass.is_some())?;
            Some(interval.began + ROUND_MAX)
        };
        self.slots.values().filter_map(waits).min()
    }

    pub(super) fn totals(&self, device: Device) -> Option<&GridTotals> {
        self.slots.get(&device).map(|slot| &slot.totals)
    }

    /// Where they stood after their last rounds.
    pub(super) fn saved(&self) -> Vec<SavedGrid> {
        self.slots.values().filter_map(|slot| slot.saved.clone()).collect()
    }

    /// A clerk for a device, and whether it is known where its grid stood.
    fn employ(&mut self, device: Device, name: &str) -> io::Result<(Box<Clerk>, bool)> {
        let dm = (self.open)()?;
        let at = self.saved.iter().position(|saved| &*saved.device == name);
        let stands = at.map(|at| self.saved.swap_remove(at).stands()).unwrap_or_default();
        let resumes = !stands.is_empty();
        Ok((Box::new(Clerk::new(device, dm, self.manner, stands)), resumes))
    }
}

impl Run {
    /// Begins a round on a device that is being read.
    pub(super) fn begin_round(&mut self, device: Device) {
        let (now, ends) = (self.now(), self.outcome == Outcome::Stopped);
        let Some(grids) = &mut self.grids else { return };
        let leaving = grids.leaving.contains(&device);
        let slot = grids.slots.entry(device).or_default();
        if slot.away || leaving || ends && slot.clerk.is_none() {
            return; // at the end it would make a grid, for nothing
        }
        let enlisted = self.enlist(device);
        let (Some(grids), Some(books)) = (&mut self.grids, &self.books) else { return };
        let slot = grids.slots.entry(device).or_default();
        if slot.given_up || enlisted.is_empty() || enlisted.len() > FILES_MAX {
            grids.leaving.extend(slot.retire(&grids.crew));
            return self.leave_grid(device);
        }
        let employed = match slot.clerk.take() {
            Some(clerk) => Ok((clerk, false)),
            None => grids.employ(device, &books.name_of(device)),
        };
        let Some(slot) = grids.slots.get_mut(&device) else { return };
        let (clerk, resumes) = match employed {
            Ok(employed) => employed,
            Err(error) => {
                slot.fails(device, &error.to_string());
                return self.leave_grid(device);
            }
        };
        slot.away = true;
        slot.interval = Some(Interval { began: now, resumes, pass: None, round: Back::NotYet });
        let seen = std::mem::take(&mut slot.seen);
        slot.last_seen.clear();
        let holders = enlisted.iter().map(|one| (one.file, one.holder.clone())).collect();
        super::give(&grids.crew, Job::Round(clerk, enlisted, !ends, seen));
        self.join(holders, resumes);
    }

    /// Files were looked at: where they are is remembered for the next round, or what one has for a
    /// while between two readings would be nobody's.
    pub(super) fn see(&mut self, batch: &Batch) {
        let (books, files) = (self.books.as_ref(), &self.files);
        let holder = |file: FileId| files[file.index()].holder(&books?.known);
        let slot = slot(&mut self.grids, batch.device);
        let Some(slot) = slot.filter(|slot| slot.away || slot.clerk.is_some()) else { return };
        let mut room = SEEN_MAX.saturating_sub(slot.seen.iter().map(|seen| seen.map.len()).sum());
        for (file, sight) in &batch.sights {
            let Sight::Mapped(_, Map { extents, blank, fingerprint, .. }) = sight else { continue };
            if extents.len() > room || slot.last_seen.get(file) == Some(fingerprint) {
                continue;
            }
            let Some(holder) = holder(*file) else { continue };
            room -= extents.len();
            slot.last_seen.insert(*file, *fingerprint);
            let (map, blank) = (extents.clone(), blank.clone());
            slot.seen.push(Seen { file: *file, holder, map, blank });
        }
    }

    /// The regions' part of a reading is here.
    pub(super) fn passed_over(&mut self, pass: Pass, events: &mut Vec<Event>) {
        let (device, cost) = (pass.device, pass.cost);
        let slot = slot(&mut self.grids, device);
        let Some(interval) = slot.and_then(|slot| slot.interval.as_mut()) else {
            let began = self.engine.read_began(device).unwrap_or(self.now());
            let reset = self.absorb(pass) > 0;
            self.read_is_complete(device, began, events);
            return events.push(Event::Read(device, Reading { reset, cost, more: false }));
        };
        interval.pass = Some(pass);
        let reading = match self.close_interval(device, events) {
            Some(reading) => reading,
            None => Reading { reset: false, cost, more: true },
        };
        events.push(Event::Read(device, reading));
    }

    /// A round is over.
    pub(super) fn counted(&mut self, counted: Counted, events: &mut Vec<Event>) {
        let (clerk, outcome) = match counted {
            Counted::Round(clerk, outcome) => (clerk, outcome),
            Counted::Last(device, round) => return self.parted(device, &round),
        };
        let device = clerk.device();
        let name = self.books.as_ref().map(|books| books.name_of(device)).unwrap_or_default();
        let Some(slot) = slot(&mut self.grids, device) else { return };
        slot.away = false;
        slot.take_note(clerk, outcome.as_ref(), &name);
        if let Some(interval) = &mut slot.interval {
            interval.round = outcome.map_or(Back::Failed, Back::Done);
        }
        if let Some(reading) = self.close_interval(device, events) {
            events.push(Event::Settled(device, reading));
        }
        self.retire_grids();
    }

    fn parted(&mut self, device: Device, last: &Round) {
        if let Some(grids) = &mut self.grids {
            grids.leaving.remove(&device);
        }
        self.share(last, &HashSet::new());
    }

    /// Has regions count where a round takes long. What it gives then is nobody's.
    pub(super) fn abandon_rounds(&mut self, now: Time, events: &mut Vec<Event>) {
        let Some(grids) = &mut self.grids else { return };
        let mut late = Vec::new();
        for (device, slot) in &mut grids.slots {
            let Some(interval) = &mut slot.interval else { continue };
            if interval.pass.is_some() && interval.began + ROUND_MAX <= now {
                interval.round = Back::Failed;
                late.push(*device);
            }
        }
        for device in late {
            if let Some(slot) = slot(&mut self.grids, device) {
                slot.fails(device, "a file cannot be looked at for long");
            }
            let reading = self.close_interval(device, events);
            events.extend(reading.map(|reading| Event::Settled(device, reading)));
        }
    }

    /// Gives to the accounts what was counted, when both parts of it are here. Gives what the
    /// reading was like.
    fn close_interval(&mut self, device: Device, events: &mut Vec<Event>) -> Option<Reading> {
        let slot = slot(&mut self.grids, device)?;
        let complete = |interval: &mut Interval| {
            interval.pass.is_some() && !matches!(interval.round, Back::NotYet)
        };
        let Interval { began, resumes, pass, round } = slot.interval.take_if(complete)?;
        let round = match round {
            Back::Done(round) => Some(round),
            Back::Failed | Back::NotYet => None,
        };
        let reading = self.settle(device, pass?, round.as_ref(), resumes);
        self.read_is_complete(device, began, events);
        Some(reading)
    }

    fn read_is_complete(&mut self, device: Device, began: Time, events: &mut Vec<Event>) {
        self.answer_waiting(Some((device, began)));
        self.last_read(device, began, events);
    }

    fn enlist(&self, device: Device) -> Vec<Enlisted> {
        let now = self.now();
        let enlisted = |file: FileId| {
            let holder = self.holder(file)?;
            let File { mode, identity, realtime, open, path, away, .. } = &self.files[file.index()];
            let descriptor = open.as_ref().map(AsRawFd::as_raw_fd);
            let (mode, identity, realtime) = (*mode, *identity, *realtime);
            let by = By { mode, identity, realtime, descriptor };
            let looked = self.engine.last_look(file).filter(|_| *away);
            let away = looked.map(|looked| now.since(looked));
            Some(Enlisted { file, holder, path: path.clone(), by, away })
        };
        self.followed_on(device).filter_map(enlisted).collect()
    }

    /// The files that are followed on a device.
    pub(super) fn followed_on(&self, device: Device) -> impl Iterator<Item = FileId> {
        self.followed().filter(move |file| self.engine.device(*file) == Some(device))
    }

    /// Nothing is done any more. Grids that have to go are gone soon.
    pub(super) fn end_grids(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let Some(grids) = &self.grids else { return };
            let empty = |device: &Device| self.engine.files_on(*device) == 0;
            let waits = grids.slots.iter().any(|(device, slot)| slot.away && empty(device));
            if !waits && grids.leaving.is_empty() {
                return;
            }
            match self.inbox.recv_deadline(until) {
                Ok(Answer::Counted(counted)) => self.counted(counted, &mut Vec::new()),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// The grids of devices on which no file is followed any more go.
    pub(super) fn retire_grids(&mut self) {
        let Some(grids) = &mut self.grids else { return };
        let (crew, leaving) = (&grids.crew, &mut grids.leaving);
        grids.slots.retain(|device, slot| {
            let ends = !slot.away && self.engine.files_on(*device) == 0;
            if ends {
                leaving.extend(slot.retire(crew));
            }
            !ends
        });
    }
}

fn slot(grids: &mut Option<Grids>, device: Device) -> Option<&mut Slot> {
    grids.as_mut()?.slots.get_mut(&device)
}

impl Slot {
    /// Has the grid taken off the device. Gives that, if there is one.
    fn retire(&mut self, crew: &Crew<Job>) -> Option<Device> {
        self.saved = None;
        self.totals = GridTotals::default();
        let clerk = self.clerk.take()?;
        let device = clerk.device();
        super::give(crew, Job::Retire(clerk));
        Some(device)
    }

    fn take_note(&mut self, clerk: Box<Clerk>, outcome: Result<&Round, &Error>, name: &str) {
        clerk.describe(&mut self.totals);
        let device = clerk.device();
        match outcome {
            Ok(round) => {
                self.saved = clerk.grid().map(|grid| SavedGrid::new(name, &grid.stands()));
                self.totals.creates += round.created as u64;
                self.totals.others += &round.others;
                if round.created > 0 {
                    let GridTotals { areas, area_bytes, .. } = self.totals;
                    info!("{device}: the grid has {areas} areas of {area_bytes} bytes");
                }
                if self.totals.error.take().is_some() {
                    info!("{device}: the grid can be read again");
                }
            }
            Err(error) => {
                self.given_up = matches!(error, Error::GridTakenOver);
                self.fails(device, &error.to_string());
            }
        }
        if !self.given_up {
            self.clerk = Some(clerk);
        }
    }

    /// Says why the grid cannot be read, once.
    fn fails(&mut self, device: Device, why: &str) {
        if self.totals.error.as_deref() != Some(why) {
            warn!("{device}: the grid cannot be read: {why}; regions count meanwhile");
        }
        self.totals.error = Some(why.to_owned());
    }
}

/// The limits of a grid that may take so many bytes of kernel memory.
pub(super) fn limits(bytes: u64) -> Limits {
    Limits { bytes, cpus: possible_cpus(), areas: AREAS_MAX, regions: REGIONS_MAX, finest: FINEST }
}

/// CPUs that the kernel has room for; each has counters of its own.
fn possible_cpus() -> u64 {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<u64>().ok());
    let there = || std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    last.map_or_else(there, |last| last + 1)
}
