//! What the service has counted: of files, in the ledger, and of itself.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;
use log::{debug, info, warn};

use super::grids::Grids;
use super::jobs::{Did, News, Pass};
use super::scan::{By, Errand, Finding};
use super::service::Claimed;
use super::stat::Stat;
use super::state::StateFile;
use super::{Answer, Run};
use crate::counters::Reading;
use crate::dm::{Device, Label};
use crate::engine::{Batch, End, Event, FileId, Report, Time};
use crate::grid::saved::SavedGrid;
use crate::group::Mark;
use crate::home::label;
use crate::ledger::{Holder, Ledger};
use crate::request::{Errors, Remaps, Reply, Timing};
use crate::sight::Sight;
use crate::update::{Passage, Passing, Updated};

/// Between two writings of the ledger, and after a region that had counted was deleted: what it had
/// counted since the last writing is in that file only.
pub(super) const SAVE: Duration = Duration::from_secs(60);
pub(super) const SAVE_SOON: Duration = Duration::from_secs(5);

/// Share of the time that writing it may take, as one part in so many.
const SAVE_SHARE: u32 = 50;

/// How long totals of files that are not followed any more are kept, and of how many.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);
const KEEP_MAX: usize = 100_000;

/// How long somebody waits for what is read now; and the end, for the last reading and writing.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// What the service has counted.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) ledger: Ledger,
    /// By what the devices are known in the ledger.
    names: HashMap<Device, Arc<str>>,
    /// All of these there have been since the start.
    pub(super) known: Vec<Arc<str>>,
    pub(super) devices: HashMap<Device, Seen>,
    waiting: Vec<Waiting>,
    /// Devices whose last reading the end waits for.
    last: Option<Awaited>,
    state: Option<Arc<StateFile>>,
    /// When the ledger is to be written, unless there is nothing new.
    save_due: Option<Time>,
    saving: Option<Time>,
    /// Whether it could be written the last time.
    failing: bool,
    /// When it was, in seconds since 1970.
    pub(super) saved: Option<f64>,
    pub(super) scans: Timing,
    pub(super) readings: Timing,
    pub(super) updates: Timing,
    pub(super) remaps: Remaps,
    pub(super) errors: Errors,
    pub(super) resets: u64,
}

/// A [`Holder`] in half its size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    /// Of the mark.
    pub(super) key: u64,
    /// Its name's place among those that are known.
    device: u32,
    /// Whether the account is that of one group alone.
    of_group: bool,
}

impl Owner {
    /// As the ledger knows it. The nonce is that of the group's mark.
    pub(super) fn holder(self, nonce: u32, known: &[Arc<str>]) -> Holder {
        let device = known[self.device as usize].clone();
        Holder { device, key: self.key, nonce: self.of_group.then_some(nonce) }
    }
}

/// What the last reading of a device gave.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Its own statistics just before.
    stat: Option<Stat>,
    /// What it has counted as a whole, just after.
    pub(super) whole: Option<Reading>,
    /// When, in seconds since 1970.
    pub(super) at: Option<f64>,
    pub(super) regions: usize,
    pub(super) error: Option<String>,
    /// It was told that somebody sets counters to zero.
    told: bool,
}

/// Somebody who wants to know totals as they are now.
#[derive(Debug)]
struct Waiting {
    path: Option<PathBuf>,
    reply: Sender<Reply>,
    awaited: Awaited,
    until: Time,
}

/// Readings that somebody waits for.
#[derive(Debug)]
struct Awaited {
    /// They tell of everything that was counted by then.
    since: Time,
    devices: BTreeSet<Device>,
}

impl Awaited {
    /// One has come that was begun then. Gives whether it was the last.
    fn has_come(&mut self, device: Device, began: Time) -> bool {
        if began >= self.since {
            self.devices.remove(&device);
        }
        self.devices.is_empty()
    }
}

/// Now, by the clock on the wall.
pub(super) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Books {
    /// With what an earlier service has written down in this folder; and where its grids stood.
    pub(super) fn open(folder: Option<&PathBuf>) -> (Books, Vec<SavedGrid>) {
        let (mut books, mut grids) = (Books::default(), Vec::new());
        let Some(folder) = folder else { return (books, grids) };
        match StateFile::open(folder) {
            Ok(state) => {
                (books.ledger, grids) = state.read();
                books.state = Some(Arc::new(state));
            }
            Err(error) => {
                warn!("{}: {error}; totals begin anew at every start", folder.display());
            }
        }
        (books, grids)
    }

    /// Whose account that of a file is to be. A group that came with its file has an account of its
    /// own.
    fn owner(&mut self, device: Device, mark: Mark, by: By) -> Owner {
        let device = self.name_of(device);
        let known = self.known.iter().position(|known| *known == device);
        let at = known.unwrap_or_else(|| {
            self.known.push(device);
            self.known.len() - 1
        });
        let device = u32::try_from(at).expect("memory for 2^32 names");
        let of_group = matches!(by, By::HandOver(_) | By::Foreground);
        Owner { key: mark.key, device, of_group }
    }

    /// By what a device is known in the ledger.
    pub(super) fn name_of(&self, device: Device) -> Arc<str> {
        self.names.get(&device).cloned().unwrap_or_else(|| name(device))
    }

    /// A file on this device is followed, the only one so far: what the number stands for may be
    /// another device by now.
    pub(super) fn meet(&mut self, device: Device) {
        self.names.insert(device, name(device));
        self.devices.remove(&device);
    }

    /// When something is to be done without an event.
    pub(super) fn next_due(&self) -> Option<Time> {
        let save = self.save_due.filter(|_| self.saving.is_none() && self.state.is_some());
        self.waiting.iter().map(|waiting| waiting.until).chain(save).min()
    }

    pub(super) fn save_by(&mut self, due: Time) {
        self.save_due = Some(self.save_due.map_or(due, |before| before.min(due)));
    }

    /// Statistics of the device just before its last reading.
    pub(super) fn stat(&self, device: Device) -> Option<Stat> {
        self.devices.get(&device)?.stat.clone()
    }

    pub(super) fn remapped(&mut self, updated: &Updated) {
        let Updated { made, created, deleted, .. } = *updated;
        let remaps = &mut self.remaps;
        match (created, deleted) {
            _ if made => remaps.made += 1,
            (0, 0) => {}
            (_, 0) => remaps.grown += 1,
            (0, _) => remaps.shrunk += 1,
            _ => remaps.moved += 1,
        }
    }
}

fn name(device: Device) -> Arc<str> {
    let Label { name, uuid } = label(device).unwrap_or_default();
    let called = [uuid, name].into_iter().find(|word| !word.is_empty());
    called
        .map_or_else(|| device.to_string(), |word| String::from_utf8_lossy(&word).into_owned())
        .into()
}

pub(super) fn add(timing: &mut Timing, took: Duration) {
    let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    timing.completed += 1;
    timing.time_ns = timing.time_ns.saturating_add(took);
    timing.last_time_ns = took;
}

impl Run {
    /// Whose account that of a file is to be that is followed from now on.
    pub(super) fn open_account(
        &mut self,
        device: Device,
        mark: Mark,
        claimed: Option<&Claimed>,
    ) -> Option<Owner> {
        let books = self.books.as_mut()?;
        if self.engine.device_statuses().all(|known| known.device != device) {
            books.meet(device);
        }
        let owner = books.owner(device, mark, claimed?.by);
        books.ledger.follow(&owner.holder(mark.nonce, &books.known));
        Some(owner)
    }

    /// Whose account that of a followed file is.
    pub(super) fn holder(&self, file: FileId) -> Option<Holder> {
        let known = &self.books.as_ref()?.known;
        self.files[file.index()].holder(known)
    }

    /// An order was carried out: takes what was counted, and gives the engine the outcome.
    pub(super) fn did(&mut self, did: Did, events: &mut Vec<Event>) {
        let Did { event, took, news } = did;
        if let Some(books) = &mut self.books {
            match &event {
                Event::Updated(device, _, outcome) => {
                    add(&mut books.updates, took);
                    books.errors.updates += u64::from(outcome.is_err());
                    if let Some(seen) = books.devices.get_mut(device) {
                        // There is something to read that was not there before.
                        seen.stat.iter_mut().for_each(Stat::is_not_all);
                    }
                }
                Event::Removed(_, _, outcome) => {
                    books.errors.updates += u64::from(outcome.is_err());
                }
                Event::Read(..) => add(&mut books.readings, took),
                _ => {}
            }
        }
        match news {
            Some(News::Passed(file, passage)) => self.passed(file, &passage),
            Some(News::Read(pass)) => return self.passed_over(pass, events),
            None => {}
        }
        events.push(event);
    }

    fn passed(&mut self, file: FileId, passage: &Passage) {
        let now = self.now();
        let Some(holder) = self.holder(file) else { return };
        let Some(books) = &mut self.books else { return };
        books.ledger.pass(&holder, passage, unix_time().as_secs());
        let ended = |passing: &Passing| match passing {
            Passing::Ended(count) => !count.reading.is_zero(),
            Passing::Began(_) | Passing::Gone(_) => false,
        };
        if passage.regions.iter().any(ended) {
            books.save_by(now + SAVE_SOON);
        }
    }

    /// Takes a reading of a device. Gives how many regions had been set to zero.
    pub(super) fn absorb(&mut self, pass: Pass) -> u64 {
        let now = self.now();
        let clock = unix_time();
        let Some(books) = &mut self.books else { return 0 };
        let seen = books.devices.entry(pass.device).or_default();
        seen.error = pass.outcome.as_ref().err().map(ToString::to_string);
        let (tallies, regions) = match pass.outcome {
            Err(error) => {
                debug!("{}: reading what was counted: {error}", pass.device);
                books.errors.readings += 1;
                return 0;
            }
            Ok(read) => {
                (seen.stat, seen.whole) = (pass.stat, pass.whole);
                seen.at = Some(clock.as_secs_f64());
                match read {
                    None => return 0, // nothing has moved
                    Some(read) => read,
                }
            }
        };
        seen.regions = regions;
        let mut resets = 0;
        for (file, group, tally) in tallies {
            // The number may be another file's by now.
            let same = self.engine.group(file).is_some_and(|now| now.mark == group.mark);
            let holder = self.files[file.index()].holder(&books.known).filter(|_| same);
            if let Some(holder) = holder {
                resets += books.ledger.absorb(&holder, group.mark, &tally, clock.as_secs());
            }
        }
        books.resets += resets;
        if resets > 0 && !std::mem::replace(&mut seen.told, true) {
            info!(
                "{}: somebody sets counters to zero, as dmstats report does: of what he takes the \
                 totals miss what was not read before",
                pass.device
            );
        }
        books.save_by(now + SAVE);
        resets
    }

    /// Looks went wrong.
    pub(super) fn count_failed_looks(&mut self, batch: &Batch) {
        let failed = batch.sights.iter().filter(|(_, sight)| matches!(sight, Sight::Failed(_)));
        if let Some(books) = &mut self.books {
            books.errors.looks += failed.count() as u64;
        }
    }

    /// What is worth counting of what is told.
    pub(super) fn keep_count(&mut self, file: FileId, report: &Report) {
        let Some(books) = &mut self.books else { return };
        match report {
            Report::Updated(updated) => books.remapped(updated),
            Report::LetGo(end) => {
                let may_come_back = *end != End::Unused; // an inode that nobody can open again
                if let Some(holder) = self.files[file.index()].holder(&books.known) {
                    books.ledger.let_go(&holder, unix_time().as_secs(), may_come_back);
                }
            }
            _ => {}
        }
    }

    /// Answers with totals as they are now, as soon as they are known.
    pub(super) fn ask_totals(
        &mut self,
        path: Option<PathBuf>,
        reply: &Sender<Reply>,
        events: &mut Vec<Event>,
    ) {
        let now = self.now();
        let awaited = self.read_now(now);
        let reply = reply.clone();
        if let Some(books) = &mut self.books {
            books.waiting.push(Waiting { path, reply, awaited, until: now + PATIENCE });
        }
        self.answer_waiting(None);
        events.push(Event::Tick);
    }

    fn read_now(&mut self, now: Time) -> Awaited {
        let devices = self.engine.read_now(now, PATIENCE).into_iter().collect();
        Awaited { since: now, devices }
    }

    /// Answers those who have waited for this device's reading at last, which was begun then, and
    /// those who have waited enough.
    pub(super) fn answer_waiting(&mut self, read: Option<(Device, Time)>) {
        let now = self.now();
        let Some(books) = &mut self.books else { return };
        let mut waiting = std::mem::take(&mut books.waiting);
        waiting.retain_mut(|one| {
            if let Some((device, began)) = read {
                one.awaited.has_come(device, began);
            }
            if !one.awaited.devices.is_empty() && now < one.until {
                return true;
            }
            one.reply.send(self.totals_of(one.path.as_deref())).ok(); // it may have gone
            false
        });
        if let Some(books) = &mut self.books {
            books.waiting = waiting;
        }
    }

    /// Reads everything once more before the end. Gives whether that is to be waited for.
    pub(super) fn read_last(&mut self, events: &mut Vec<Event>) -> bool {
        let now = self.now();
        if self.books.is_none() {
            return false;
        }
        let awaited = self.read_now(now);
        let wait = !awaited.devices.is_empty();
        if let Some(books) = &mut self.books {
            books.last = Some(awaited).filter(|_| wait);
        }
        events.push(Event::Tick);
        wait
    }

    pub(super) fn last_read(&mut self, device: Device, began: Time, events: &mut Vec<Event>) {
        let Some(books) = &mut self.books else { return };
        if books.last.as_mut().is_some_and(|last| last.has_come(device, began)) {
            books.last = None;
            events.push(Event::Stop);
        }
    }

    /// Has the ledger written if it is time.
    pub(super) fn save_if_due(&mut self, now: Time) {
        let Some(books) = &mut self.books else { return };
        if books.saving.is_none() && books.save_due.is_some_and(|due| due <= now) {
            self.save();
        }
    }

    fn save(&mut self) {
        let now = self.now();
        let Some(books) = &mut self.books else { return };
        books.save_due = None;
        let Some(state) = books.state.clone() else { return };
        books.ledger.purge(unix_time().saturating_sub(KEEP).as_secs(), KEEP_MAX);
        let ledger = Box::new(books.ledger.clone());
        let grids = self.grids.as_ref().map(Grids::saved);
        books.saving = Some(now);
        self.scout(Errand::Save(state, ledger, grids.unwrap_or_default()));
    }

    /// It was written, or not.
    pub(super) fn saved(&mut self, outcome: Result<(), String>) {
        let now = self.now();
        let Some(books) = &mut self.books else { return };
        let took = books.saving.take().map_or(Duration::ZERO, |began| now.since(began));
        match outcome {
            Ok(()) => {
                books.saved = Some(unix_time().as_secs_f64());
                books.failing = false;
                let earliest = now + took.saturating_mul(SAVE_SHARE).min(KEEP);
                books.save_due = books.save_due.map(|due| due.max(earliest));
            }
            Err(error) => {
                books.errors.saves += 1;
                if !std::mem::replace(&mut books.failing, true) {
                    warn!("totals cannot be written down: {error}; trying again");
                }
                books.save_by(now + SAVE);
            }
        }
    }

    /// Writes the ledger a last time, and waits for that, though not for long.
    pub(super) fn save_at_end(&mut self) {
        let until = self.epoch + self.now().since_start() + PATIENCE;
        self.save();
        while self.books.as_ref().is_some_and(|books| books.saving.is_some()) {
            match self.inbox.recv_deadline(until) {
                Ok(Answer::Found(Finding::Saved(outcome))) => self.saved(outcome),
                Ok(_) => {}
                Err(_) => {
                    warn!("totals are not written down in time: those of the last minute are lost");
                    return;
                }
            }
        }
    }
}
