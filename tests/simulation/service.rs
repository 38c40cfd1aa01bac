//! A service as the engine needs it: carries out what it says, sooner or later.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::time::Duration;

use dmfilemapd::dm::Device;
use dmfilemapd::engine::{
    Action, Batch, End, Engine, Event, FileId, MAPPING_MAX, Reading, Report, Settings, Spec, Sweep,
    Time,
};
use dmfilemapd::extent::Extents;
use dmfilemapd::group::Mark;
use dmfilemapd::shape::{Limits, Want};
use dmfilemapd::sight::Sight;
use dmfilemapd::update::{self, Group, Template};

use super::table::{Last, key_in};
use super::world::{Name, Place, SECOND, World};

/// What is followed.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    Inode(Place),
    Path(usize),
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub name: usize,
    pub target: Target,
    pub device: Device,
    pub mark: Mark,
    since: u64,
    /// Whether it has had a group.
    made: bool,
}

impl Entry {
    pub fn new(
        name: usize,
        target: Target,
        device: Device,
        key: u64,
        nonce: u32,
        since: u64,
    ) -> Entry {
        Entry { name, target, device, mark: Mark { key, nonce }, since, made: false }
    }
}

/// Work that was given out: carried out at one time, answered at another.
#[derive(Debug)]
pub struct Job {
    perform: u64,
    answer: u64,
    what: What,
    outcome: Option<Event>,
}

#[derive(Debug)]
enum What {
    Look(Batch, Vec<Target>),
    Gauge(Device),
    Establish(FileId, Device, Template, Mark, Extents, Limits),
    Update(FileId, Device, Group, Extents, Limits),
    Remove(FileId, Device, Group),
    Sweep(Device, Vec<(FileId, Group)>),
    Read(Device, Vec<(FileId, Group)>),
}

pub struct Service {
    pub engine: Engine,
    pub claim: u32,
    pub files: BTreeMap<FileId, Entry>,
    pub jobs: Vec<Job>,
    /// Files that are in a job.
    busy: BTreeSet<FileId>,
}

/// Later than anything.
pub const NEVER: u64 = u64::MAX;

impl Service {
    pub fn new(settings: Settings, claim: u32) -> Service {
        let engine = Engine::new(settings);
        let (files, jobs, busy) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        Service { engine, claim, files, jobs, busy }
    }

    pub fn follows_key(&self, device: Device, key: u64) -> bool {
        self.files.values().any(|entry| entry.device == device && entry.mark.key == key)
    }

    pub fn follow(&mut self, now: Time, name: &Name, entry: Entry) {
        let (device, Name { mode, pace, restless, limits, .. }) = (entry.device, *name);
        let spec = Spec { mode, device, group: None, restless, pace, limits };
        let file = self.engine.follow(now, spec);
        assert!(!self.busy.contains(&file), "{file:?} is in a job still");
        assert!(self.files.insert(file, entry).is_none(), "{file:?} is followed already");
    }

    /// When there is something to do next.
    pub fn next(&self) -> u64 {
        let job = |job: &Job| if job.outcome.is_some() { job.answer } else { job.perform };
        let due = self.engine.next_due().map(micros);
        self.jobs.iter().map(job).chain(due).min().unwrap_or(NEVER)
    }

    /// Everything that is stuck goes on.
    pub fn unstick(&mut self, now: u64) {
        for job in &mut self.jobs {
            job.perform = job.perform.min(now);
            job.answer = job.answer.min(now);
        }
    }
}

fn micros(time: Time) -> u64 {
    u64::try_from(time.since_start().as_nanos().div_ceil(1000)).unwrap()
}

/// What happened, as far as anything did.
fn line(event: &Event) -> String {
    match event {
        Event::Looked(batch) => {
            let changed = batch.changed.iter().filter(|_| batch.maps.is_none());
            let changed = changed.map(|(file, stamp)| format!(" {file:?} {stamp:?}"));
            let sights = batch.sights.iter().map(|(file, sight)| match sight {
                Sight::Mapped(stamp, map) => {
                    format!(" {file:?} [{stamp:?} {:?} {}]", map.extents, map.torn)
                }
                sight => format!(" {file:?} {sight:?}"),
            });
            changed.chain(sights).fold(String::new(), |line, news| line + &news)
        }
        Event::Swept(_, Ok(_)) | Event::Read(..) | Event::Gauged(..) | Event::Tick => String::new(),
        event => format!("{event:?}"),
    }
}

impl What {
    fn device(&self) -> Device {
        match self {
            What::Look(batch, _) => batch.device,
            What::Gauge(device)
            | What::Establish(_, device, ..)
            | What::Update(_, device, ..)
            | What::Remove(_, device, _)
            | What::Sweep(device, _)
            | What::Read(device, _) => *device,
        }
    }

    fn is_order(&self) -> bool {
        !matches!(self, What::Look(..) | What::Gauge(_))
    }

    fn files(&self) -> Vec<FileId> {
        match self {
            What::Look(batch, _) => batch.looks.iter().map(|look| look.file).collect(),
            What::Establish(file, ..) | What::Update(file, ..) | What::Remove(file, ..) => {
                vec![*file]
            }
            What::Gauge(_) | What::Sweep(..) | What::Read(..) => Vec::new(),
        }
    }
}

impl World {
    /// Does what is due: carries a job out, answers one, or lets the engine know the time.
    pub fn serve(&mut self) {
        let now = self.now;
        let Some(service) = &mut self.service else { return };
        let answered = |job: &Job| job.outcome.is_some() && job.answer <= now;
        if let Some(at) = service.jobs.iter().position(answered) {
            let job = service.jobs.remove(at);
            for file in job.what.files() {
                service.busy.remove(&file);
            }
            return self.happens(job.outcome.expect("it was asked for"));
        }
        let due = |job: &Job| job.outcome.is_none() && job.perform <= now;
        if let Some(at) = service.jobs.iter().position(due) {
            let mut job = service.jobs.remove(at);
            job.outcome = Some(self.perform(&job.what));
            if let Some(service) = &mut self.service {
                service.jobs.push(job);
            }
            return;
        }
        self.happens(Event::Tick);
    }

    /// Tells the engine, and does what it says.
    pub fn happens(&mut self, event: Event) {
        let time = self.time();
        let mut actions = Vec::new();
        let Some(service) = &mut self.service else { return };
        if !matches!(event, Event::Tick) {
            self.log.say(|| line(&event));
        }
        service.engine.handle(time, event, &mut actions);
        for action in actions {
            self.act(action);
        }
        let Some(service) = &self.service else { return };
        let due = service.engine.next_due();
        assert!(due.is_none_or(|due| due > time), "it spins: due at {due:?}, and it is {time:?}");
        assert!(due.is_some() || !service.jobs.is_empty() || service.engine.is_empty(), "it hangs");
        self.check_lanes();
    }

    /// No device has more work under way than is allowed, and no file two jobs.
    fn check_lanes(&self) {
        let Some(service) = &self.service else { return };
        for disk in &self.disks {
            let on = |job: &&Job| job.what.device() == disk.device;
            let jobs: Vec<&Job> = service.jobs.iter().filter(on).collect();
            let slots = |job: &&&Job| match &job.what {
                What::Look(batch, _) => Some(batch.maps),
                _ => None,
            };
            let slots: Vec<Option<usize>> = jobs.iter().filter_map(|job| slots(&job)).collect();
            let mut distinct = slots.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(slots.len(), distinct.len(), "batches under way: {slots:?}");
            assert!(slots.iter().flatten().all(|slot| *slot < MAPPING_MAX), "{slots:?}");
            assert!(jobs.iter().filter(|job| job.what.is_order()).count() <= 1, "orders");
        }
    }

    fn act(&mut self, action: Action) {
        let often = matches!(
            action,
            Action::Look(_) | Action::Sweep(..) | Action::Read(..) | Action::Gauge(_)
        );
        if !often {
            self.log.say(|| format!("-> {action:?}"));
        }
        let Some(service) = &mut self.service else { return };
        let making = |file: FileId| {
            let entry = &service.files[&file];
            assert!(!entry.made, "{file:?} had a group");
            let alias = format!("file{}", entry.name).into_bytes();
            let program_id = b"dmstats".to_vec();
            (Template { program_id, alias, precise: false, bounds: Vec::new() }, entry.mark)
        };
        let what = match action {
            Action::Look(batch) => {
                let targets =
                    batch.looks.iter().map(|look| service.files[&look.file].target).collect();
                What::Look(batch, targets)
            }
            Action::Gauge(device) => What::Gauge(device),
            Action::Update(file, device, None, want, limits) => {
                let (template, mark) = making(file);
                What::Establish(file, device, template, mark, want, limits)
            }
            Action::Update(file, device, Some(group), want, limits) => {
                What::Update(file, device, group, want, limits)
            }
            Action::Remove(file, device, group) => What::Remove(file, device, group),
            Action::Sweep(device, groups) => What::Sweep(device, groups),
            Action::Read(device, groups) => What::Read(device, groups),
            Action::Report(file, report) => return self.report(file, &report),
            Action::Close(_) => return,
            Action::Finish => panic!("it is patient"),
        };
        self.give(what);
    }

    fn give(&mut self, what: What) {
        let mut perform = self.now + 1 + self.dice.below(20_000);
        let mut answer = perform + 1 + self.dice.below(20_000);
        if self.dice.one_in(self.stalls) {
            let stall = self.dice.pick(&[SECOND, 20 * SECOND, 300 * SECOND, NEVER / 2]);
            if self.dice.one_in(2) {
                perform += stall;
            }
            answer += stall;
        }
        let Some(service) = &mut self.service else { return };
        for file in what.files() {
            assert!(service.busy.insert(file), "{file:?} is in two jobs");
        }
        service.jobs.push(Job { perform, answer, what, outcome: None });
    }

    fn report(&mut self, file: FileId, report: &Report) {
        let Some(service) = &mut self.service else { return };
        match report {
            Report::Updated(_) => {
                self.updates += 1;
                service.files.get_mut(&file).expect("it is followed").made = true;
            }
            Report::GivenUp(why) => panic!("given up: {why}"),
            Report::LetGo(end) => {
                let entry = service.files.remove(&file).expect("it is followed");
                self.check_end(&entry, end);
            }
            _ => {}
        }
    }

    /// A file is let go for a reason.
    fn check_end(&self, entry: &Entry, end: &End) {
        let (device, key) = (entry.device, entry.mark.key);
        let removed = self
            .disks
            .iter()
            .any(|disk| disk.device == device && disk.removed > 0 && disk.removed >= entry.since);
        match end {
            End::NotOurs(_) => {
                let wronged = self.table.wronged.contains(&(device, key));
                assert!(wronged || removed, "nobody touched the group: {end}, {entry:?}");
            }
            End::NoDevice => assert!(removed, "it was never removed: {entry:?}"),
            End::Unused | End::Absent(_) | End::Elsewhere(_) | End::Unmounted | End::Unwanted => {}
        }
    }

    fn look(&mut self, mut batch: Batch, targets: &[Target]) -> Batch {
        let mut targets = targets.iter();
        let mut next = || *targets.next().expect("one for each look");
        match batch.maps {
            None => batch.compare(|look| self.compare(next(), look.last)),
            Some(_) => batch.map(|_, taken| self.map(next(), taken.copied())),
        }
        batch
    }

    fn perform(&mut self, what: &What) -> Event {
        self.table.vandalised = false;
        let claim = self.claim;
        match what {
            What::Look(batch, targets) => Event::Looked(self.look(batch.clone(), targets)),
            What::Gauge(device) => {
                let now = self.now;
                let disk = self.disks.iter_mut().find(|disk| disk.device == *device);
                let writes = disk.filter(|disk| disk.exists).map(|disk| disk.writes(now));
                Event::Gauged(*device, writes)
            }
            What::Establish(file, device, template, mark, extents, limits) => {
                let (table, want) = (&mut self.table, Want { extents, limits: *limits });
                let (_, made) =
                    update::establish_counted(table, *device, template, *mark, claim, want);
                if let Ok(Some(updated)) = &made {
                    self.check_shown(*device, updated, want);
                }
                Event::Updated(*device, *file, made)
            }
            What::Update(file, device, group, extents, limits) => {
                let (table, want) = (&mut self.table, Want { extents, limits: *limits });
                let (_, made) = update::update_counted(table, *device, *group, want);
                if let Ok(updated) = &made {
                    self.check_shown(*device, updated, want);
                }
                Event::Updated(*device, *file, made.map(Some))
            }
            What::Remove(file, device, group) => {
                let removed = update::remove(&mut self.table, *device, *group);
                if removed.is_ok() {
                    self.check_removed(*device, *group);
                }
                Event::Removed(*device, *file, removed)
            }
            What::Sweep(device, groups) => {
                let (files, groups): (Vec<FileId>, Vec<Group>) = groups.iter().copied().unzip();
                let seen = update::look(&mut self.table, *device, &groups);
                let sweep = seen.map(|(standings, regions)| Sweep {
                    standings: iter::zip(files, standings).collect(),
                    regions,
                });
                Event::Swept(*device, sweep)
            }
            What::Read(device, groups) => {
                let groups: Vec<Group> = groups.iter().map(|(_, group)| *group).collect();
                update::read(&mut self.table, *device, &groups).ok(); // the device may be gone
                let (reset, cost) = (self.dice.one_in(200), Duration::ZERO);
                Event::Read(*device, Reading { reset, cost, more: false })
            }
        }
    }

    fn check_removed(&mut self, device: Device, group: Group) {
        let mark = group.mark.to_string();
        let listing = self.table.listing(device).unwrap_or_default();
        let listing = String::from_utf8_lossy(&listing);
        assert!(!listing.contains(&mark) || self.table.vandalised, "{mark} in\n{listing}");
    }

    /// Kills the service in the middle of whatever it does.
    pub fn kill(&mut self) {
        let Some(service) = self.service.take() else { return };
        self.log.say(|| "kill -9".to_owned());
        let orders = service.jobs.into_iter().filter(|job| job.what.is_order());
        for job in orders.filter(|job| job.outcome.is_none()) {
            let last = self.dice.pick(&[Last::Lost, Last::CarriedOut, Last::Late]);
            let last = if self.table.late.is_some() { Last::Lost } else { last };
            let fuel = self.dice.index(8);
            self.table.fuel = Some((fuel, last));
            let weather = std::mem::take(&mut self.table.weather);
            self.claim = service.claim;
            self.perform(&job.what);
            self.table.weather = weather;
            self.table.fuel = None;
        }
        self.arrival = self.now + self.dice.below(20 * SECOND);
        self.restart = self.now + self.dice.below(20 * SECOND);
        self.gc = None;
    }

    /// Another process follows the file from now on.
    pub fn rival(&mut self) {
        let Some(service) = &self.service else { return };
        let Some(entry) = service.files.values().nth(self.dice.index(service.files.len())) else {
            return;
        };
        let (device, key) = (entry.device, entry.mark.key);
        let Ok((disk, inode)) = self.find(entry.target) else { return };
        if self.disks[disk].device != device {
            return;
        }
        let listing = self.table.listing(device).unwrap_or_default();
        let marked = |row: &super::dialects::Row<'_>| key_in(row.tail) == Some(key);
        if !super::dialects::rows(&listing).unwrap().iter().any(marked) {
            return;
        }
        self.log.say(|| format!("a rival takes {key:x}"));
        self.table.wronged.push((device, key));
        let want = self.disks[disk].inodes[inode].map();
        if let Ok(Some(group)) = update::find(&mut self.table, device, &[key]) {
            update::adopt(&mut self.table, device, group.id, group.mark, 0xbad).ok();
            let group = Group { claim: 0xbad, ..group };
            update::update(&mut self.table, device, group, &want).ok();
        }
    }
}
