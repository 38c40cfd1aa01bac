//! The grids of the devices, as main sees them: who counts, and which accounts are on the grid.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use log::{info, warn};

use super::books::{PATIENCE, SAVE, unix_time};
use super::clerk::{By, Clerk, Enlisted, Manner, Round};
use super::crew::Crew;
use super::{Answer, File, Outcome, Run};
use crate::dm::{Device, Dm};
use crate::engine::{Event, FileId, State, Time};
use crate::grid::plan::Limits;
use crate::grid::saved::SavedGrid;
use crate::ledger::Holder;
use crate::request::GridTotals;
use crate::sample::Reach;
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

/// For a thread of the grids.
pub(super) enum Job {
    /// For these files. Whether the grid may be changed for them, says the flag.
    Round(Box<Clerk>, Vec<Enlisted>, bool),
    /// No file is followed on its device any more.
    Retire(Box<Clerk>, Sender<()>),
}

/// What came of a round.
pub(super) struct Counted {
    clerk: Box<Clerk>,
    outcome: Result<Round, Error>,
}

/// All grids.
pub(super) struct Grids {
    crew: Crew<Job>,
    open: Open,
    manner: Manner,
    slots: HashMap<Device, Slot>,
    /// Of grids that are being taken off their devices.
    goodbyes: Vec<Receiver<()>>,
    /// Where the grids stood when an earlier service ended.
    saved: Vec<SavedGrid>,
}

type Open = Box<dyn Fn() -> io::Result<Box<dyn Dm + Send>>>;

/// The grid of a device.
#[derive(Default)]
struct Slot {
    /// Away in a round.
    clerk: Option<Box<Clerk>>,
    /// When the round was begun that is under way.
    out: Option<Time>,
    /// Where it stood before is known, so that accounts may go on.
    resumes: bool,
    /// Somebody else has it now.
    given_up: bool,
    totals: GridTotals,
}

/// Whether a file's counters come from the grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OnGrid {
    #[default]
    No,
    /// From the end of the round on that is under way: what it gives is counted by regions.
    Soon,
    Yes,
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
                Job::Round(mut clerk, files, may_change) => {
                    let outcome = clerk.round(files, may_change);
                    inbox.send(Answer::Counted(Counted { clerk, outcome })).ok(); // the end is near
                }
                Job::Retire(clerk, done) => {
                    clerk.retire();
                    done.send(()).ok(); // nobody need wait for it
                }
            })
        })?;
        let open: Open = Box::new(move || Ok(Box::new(open()?)));
        Ok(Grids { crew, open, manner, slots: HashMap::new(), goodbyes: Vec::new(), saved })
    }

    /// When the round was begun that is under way on this device.
    pub(super) fn out(&self, device: Device) -> Option<Time> {
        self.slots.get(&device)?.out
    }

    pub(super) fn totals(&self, device: Device) -> Option<&GridTotals> {
        self.slots.get(&device).map(|slot| &slot.totals)
    }

    /// Where they stand; nothing of those that are in a round.
    pub(super) fn stands(&self, name: impl Fn(Device) -> Arc<str>) -> Vec<SavedGrid> {
        let clerks = self.slots.values().filter_map(|slot| slot.clerk.as_deref());
        let saved = |clerk: &Clerk| {
            let stands = clerk.grid()?.stands();
            Some(SavedGrid::new(&name(clerk.device()), &stands))
        };
        clerks.filter_map(saved).collect()
    }

    pub(super) fn is_any_out(&self) -> bool {
        self.slots.values().any(|slot| slot.out.is_some())
    }
}

impl Run {
    /// Begins a round on a device that is being read.
    pub(super) fn begin_round(&mut self, device: Device) {
        if self.grids.as_ref().is_none_or(|grids| grids.out(device).is_some()) {
            return;
        }
        let enlisted = self.enlist(device);
        let (now, ends) = (self.now(), self.outcome == Outcome::Stopped);
        let Some(grids) = &mut self.grids else { return };
        let slot = grids.slots.entry(device).or_default();
        if ends && slot.clerk.is_none() {
            return; // it would make a grid, for nothing
        }
        if slot.given_up || enlisted.is_empty() || enlisted.len() > FILES_MAX {
            grids.goodbyes.extend(slot.retire(&grids.crew));
            return self.leave_grid(device);
        }
        let clerk = match slot.clerk.take() {
            Some(clerk) => clerk,
            None => match (grids.open)() {
                Ok(dm) => {
                    let name = self.books.as_ref().map(|books| books.name_of(device));
                    let saved =
                        grids.saved.iter().find(|saved| Some(&*saved.device) == name.as_deref());
                    let stands = saved.map(SavedGrid::stands).unwrap_or_default();
                    slot.resumes = !stands.is_empty();
                    let path = &enlisted[0].path;
                    Box::new(Clerk::new(device, dm, grids.manner, stands, path))
                }
                Err(error) => {
                    slot.totals.error = Some(error.to_string());
                    return;
                }
            },
        };
        slot.out = Some(now);
        let resumes = slot.resumes;
        let holders = enlisted.iter().map(|one| (one.file, one.holder.clone())).collect();
        super::give(&grids.crew, Job::Round(clerk, enlisted, !ends));
        self.join(holders, resumes);
    }

    fn enlist(&self, device: Device) -> Vec<Enlisted> {
        let on_device = |file: &FileId| self.engine.device(*file) == Some(device);
        let by = |reach: &Reach| By {
            mode: reach.mode,
            identity: reach.identity,
            descriptor: reach.open.as_ref().map(AsRawFd::as_raw_fd),
        };
        let enlisted = |file: FileId| {
            let File { holder, path, reach, .. } = &self.files[file.index()];
            let (holder, path) = (holder.clone()?, path.clone());
            Some(Enlisted { file, holder, path, by: reach.as_ref().map(by) })
        };
        self.followed().filter(on_device).filter_map(enlisted).collect()
    }

    /// Has accounts come to the grid. One of which nothing was counted, by regions or before, comes
    /// at once: what its file has written so far is no region's.
    fn join(&mut self, holders: Vec<(FileId, Holder)>, resumes: bool) {
        let (now, unix) = (self.now(), unix_time().as_secs());
        for (file, holder) in holders {
            if self.files[file.index()].on_grid != OnGrid::No {
                continue;
            }
            let Some(books) = &mut self.books else { return };
            let account = books.ledger.account(&holder);
            let goes_on = resumes && account.is_some_and(|account| account.on_grid);
            let status = self.engine.file_status(now, file);
            if !goes_on && status.is_none_or(|status| status.state == State::New) {
                continue; // it may have a group that has counted
            }
            let is_new = self.files[file.index()].made
                || status.is_some_and(|status| status.group.is_none());
            let has_nothing = account.is_none_or(|account| account.counters.is_zero());
            let at_once = goes_on || is_new && has_nothing;
            self.files[file.index()].on_grid = if at_once { OnGrid::Yes } else { OnGrid::Soon };
            books.ledger.set_on_grid(&holder, at_once, unix);
        }
    }

    /// A round is over.
    pub(super) fn counted(&mut self, counted: Counted, events: &mut Vec<Event>) {
        let Counted { clerk, outcome } = counted;
        let device = clerk.device();
        let failed = outcome.is_err();
        let Some(grids) = &mut self.grids else { return };
        let Some(slot) = grids.slots.get_mut(&device) else { return };
        let began = slot.out.take().unwrap_or(Time::ZERO);
        slot.take_note(&clerk, outcome.as_ref());
        if !slot.given_up {
            slot.clerk = Some(clerk);
        }
        match outcome {
            Ok(round) => self.share(device, &round),
            Err(_) => self.leave_grid(device),
        }
        if failed {
            if let Some(books) = &mut self.books {
                books.errors.readings += 1;
            }
        }
        if self.engine.is_settling(device) {
            self.answer_waiting(Some((device, began)));
            self.last_read(device, began, events);
        }
        events.push(Event::Settled(device));
        self.retire_grids();
    }

    fn share(&mut self, device: Device, round: &Round) {
        let (due, now) = (self.now() + SAVE, unix_time().as_secs());
        let Some(books) = &mut self.books else { return };
        for (file, holder, share) in &round.shares {
            // The number may be another file's by now; then it is what the one before had left.
            let same = self.files[file.index()].holder.as_ref() == Some(holder);
            let on_grid = match same {
                true => self.files[file.index()].on_grid == OnGrid::Yes,
                false => books.ledger.account(holder).is_some_and(|account| account.on_grid),
            };
            if on_grid {
                books.ledger.share(holder, share, now);
            }
        }
        let uncovered: HashSet<FileId> = round.uncovered.iter().copied().collect();
        for file in (0..).map(FileId).take(self.files.len()) {
            let followed = &mut self.files[file.index()];
            if followed.on_grid == OnGrid::No || self.engine.device(file) != Some(device) {
                continue;
            }
            let covered = !uncovered.contains(&file);
            followed.on_grid = if covered { OnGrid::Yes } else { OnGrid::No };
            if let Some(holder) = &followed.holder {
                books.ledger.set_on_grid(holder, covered, now);
            }
        }
        books.save_by(due);
    }

    /// Nothing of this device is counted by a grid from here on.
    fn leave_grid(&mut self, device: Device) {
        let now = unix_time().as_secs();
        for file in (0..).map(FileId).take(self.files.len()) {
            if self.engine.device(file) != Some(device) {
                continue;
            }
            let followed = &mut self.files[file.index()];
            if std::mem::take(&mut followed.on_grid) == OnGrid::No {
                continue;
            }
            if let (Some(books), Some(holder)) = (&mut self.books, &followed.holder) {
                books.ledger.set_on_grid(holder, false, now);
            }
        }
    }

    /// Nothing is done any more. Grids that have to go are gone soon.
    pub(super) fn end_grids(&mut self) {
        let until = Instant::now() + PATIENCE;
        let goes = |run: &Run| {
            let grids = run.grids.as_ref()?;
            grids.slots.iter().find(|(device, _)| run.engine.files_on(**device) == 0).map(|_| ())
        };
        while goes(self).is_some() {
            match self.inbox.recv_deadline(until) {
                Ok(Answer::Counted(counted)) => self.counted(counted, &mut Vec::new()),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        if let Some(grids) = &mut self.grids {
            for goodbye in grids.goodbyes.drain(..) {
                goodbye.recv_deadline(until).ok();
            }
        }
    }

    /// The grids of devices on which no file is followed any more go.
    pub(super) fn retire_grids(&mut self) {
        let Some(grids) = &mut self.grids else { return };
        let (crew, goodbyes) = (&grids.crew, &mut grids.goodbyes);
        grids.slots.retain(|device, slot| {
            let ends = slot.out.is_none() && self.engine.files_on(*device) == 0;
            if ends {
                goodbyes.extend(slot.retire(crew));
            }
            !ends
        });
    }
}

impl Slot {
    /// Has the grid taken off the device. Gives where that will be heard of.
    fn retire(&mut self, crew: &Crew<Job>) -> Option<Receiver<()>> {
        let (done, goodbye) = bounded(1);
        super::give(crew, Job::Retire(self.clerk.take()?, done));
        self.totals = GridTotals::default();
        Some(goodbye)
    }

    fn take_note(&mut self, clerk: &Clerk, outcome: Result<&Round, &Error>) {
        clerk.describe(&mut self.totals);
        let device = clerk.device();
        match outcome {
            Ok(round) => {
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
                let text = error.to_string();
                if self.totals.error.as_ref() != Some(&text) {
                    warn!("{device}: the grid cannot be read: {text}; regions count meanwhile");
                }
                self.totals.error = Some(text);
            }
        }
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
