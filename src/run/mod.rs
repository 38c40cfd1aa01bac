//! Threads, queues and signals.
//!
//! Main owns the [`Engine`] and with it all state. Samplers look at files, others talk to the
//! device-mapper, one waits for signals; each takes jobs from a queue and puts what came of them
//! into main's inbox. Any of them may stall in the kernel for as long as a device or a writer
//! likes; main never does, and never waits for them: when it is done the process ends.

mod accounts;
mod added;
mod away;
mod books;
mod clerk;
mod closing;
mod control;
mod crew;
mod exporter;
mod file;
mod grids;
mod http;
mod jobs;
mod kept;
mod lost;
mod pulse;
mod scan;
mod scans;
mod service;
mod stat;
mod state;
mod supervisor;
mod tidy;
mod totals;
mod trail;
#[cfg(test)]
mod trial;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use std::{io, mem, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use log::{Level, log, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{self, Config};
use crate::dm::{Device, Dm};
use crate::engine::{Action, Batch, End, Engine, Event, FileId, Report, Settings, Spec, Time};
use crate::group::Mark;
use crate::home::Home;
use crate::kernel::process::{part_with_descriptors, raise_descriptor_limit, share_one_heap};
use crate::mounts::Lists;
use crate::pace::{self, Paced, Pacer};
use crate::paths::SharedPath;
use crate::request::Reply;
use crate::sample::Reach;
use crate::socket::{self, Release};
use crate::update::Template;
use books::Books;
use clerk::Manner;
use closing::Closing;
use control::{Desk, Question};
use crew::Crew;
use file::{File, Lent};
use grids::Grids;
use jobs::{Did, Order, Sample, Wanted};
use pulse::{Heard, Pulse};
use scan::{Errand, Finding};
pub use service::Read;
use service::{Claimed, Service};
use supervisor::Supervisor;
use tidy::Tidy;

/// A file to follow, and what to do for it.
#[derive(Debug)]
pub struct Entry {
    /// Where it was found.
    pub path: SharedPath,
    /// How it is reached.
    pub reach: Reach,
    /// What the engine has to know.
    pub spec: Spec,
    /// What its group is made from, should there be none.
    pub template: Template,
    /// What its group is marked with, should it have no mark.
    pub mark: Mark,
    /// The device it was found on, if that is known: no group is made on another one.
    pub home: Option<Arc<Home>>,
}

/// How a run treats the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manners {
    /// Percent of a device's time that creates may take.
    pub create_share: u8,
    /// Whether the groups that it has made are deleted when a signal says stop.
    pub remove_on_exit: bool,
}

impl Default for Manners {
    fn default() -> Manners {
        Manners { create_share: pace::SHARE, remove_on_exit: false }
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A signal asked for it.
    Stopped,
    /// No file is left to follow.
    NothingLeft,
}

/// Descriptors that the files of a batch have, and may get, while it is away.
type Reserved = usize;

/// What threads put into main's inbox.
enum Answer {
    Looked(Batch, Lent, Reserved),
    /// So many files of the device have been closed.
    Closed(Device, usize),
    Event(Event),
    Did(Did),
    Counted(grids::Counted),
    Found(Finding),
    Asked(Question, Sender<Reply>),
    Reload,
}

/// Follows the files until none is left or a signal says stop, and leaves the groups as they are.
///
/// `open` gives each thread that talks to the device-mapper one of its own, of which all lead to
/// the same regions. `claim` is what says that this process speaks for the groups. `ready` is
/// called once everything that may fail has been done.
///
/// # Errors
///
/// No thread, no device-mapper or no signal handler could be had.
pub fn run<D: Dm + Send + 'static>(
    open: impl Fn() -> io::Result<D> + Send + Sync + 'static,
    claim: u32,
    entries: Vec<Entry>,
    settings: Settings,
    manners: Manners,
    ready: impl FnOnce(),
) -> io::Result<Outcome> {
    let mut run = Run::start(open, claim, settings, Pacer::new(manners.create_share), None)?;
    run.remove_on_exit = manners.remove_on_exit;
    run.wait_for_signals(&[SIGTERM, SIGINT])?;
    for entry in entries {
        run.follow(entry, None, None);
    }
    ready();
    let outcome = run.serve();
    mem::forget(run); // as in serve()
    Ok(outcome)
}

/// Follows what the configuration wants until a signal says stop; SIGHUP has it read again.
/// Otherwise as [`run`].
///
/// # Errors
///
/// No thread, no device-mapper, no signal handler could be had.
pub fn serve<D: Dm + Send + 'static>(
    open: impl Fn() -> io::Result<D> + Clone + Send + Sync + 'static,
    claim: u32,
    config: Config,
    read: Read,
    settings: Settings,
    ready: impl FnOnce(),
) -> io::Result<Outcome> {
    let pacer = Pacer::new(config.settings.create_share);
    let settings = Settings {
        patient: true,
        full_look: config.settings.full_look,
        read: Some(config.settings.read_interval),
        read_all: config.settings.grid_memory > 0,
        ..settings
    };
    let mut run = Run::start(open.clone(), claim, settings, pacer, Some(Tidy::default()))?;
    run.wait_for_signals(&[SIGTERM, SIGINT, SIGHUP])?;
    let read = Arc::new(read);
    run.employ_scout(read.clone(), open.clone(), claim)?;
    let path = config.settings.socket.clone();
    let exported = config.settings.clone();
    let service = Service::new(config);
    let open_grids = paced(open.clone(), run.pacer.clone());
    let (main, wanted, counter) = (run.sender.clone(), service.shared.clone(), <_>::default());
    let desk = Desk { main, wanted, read, open, claim, counter };
    run.service = Some(service);
    let desk = Arc::new(desk);
    let ask: http::Ask = Arc::new({
        let desk = desk.clone();
        move || desk.totals()
    });
    let answer = move |request, fd, peer: &_| desk.answer(request, fd, peer);
    let exporter = exporter::start(&exported, &ask)?;
    let server = path.as_ref().map(|path| socket::serve(path, answer)).transpose()?;
    // Only now: another service may have been there.
    run.open_books(open_grids, claim, &exported, settings)?;
    if let Some(path) = path {
        run.recall(&path);
    }
    supervisor::ready();
    ready();
    let outcome = run.serve();
    run.end_grids();
    run.save_at_end();
    run.write_down_at_end();
    drop((server, exporter)); // nobody is left who would answer
    // Files that are open are closed when the process ends: here a device could keep it from that.
    mem::forget(run);
    Ok(outcome)
}

struct Run {
    epoch: Instant,
    engine: Engine,
    files: Vec<File>,
    inbox: Receiver<Answer>,
    sender: Sender<Answer>,
    samplers: Crew<Sample>,
    ioctls: Crew<Order>,
    /// Says when the ioctl threads may create a region.
    pacer: Pacer,
    scouts: Option<Crew<Errand>>,
    service: Option<Service>,
    /// What is counted, if anybody may ask for it.
    books: Option<Books>,
    /// What counts whole devices, if that is wanted.
    grids: Option<Grids>,
    /// Who waits for a file to be let go.
    releases: HashMap<FileId, Vec<Release>>,
    /// Until when who asked for the end may take to hear so.
    farewell: Option<(Time, Release)>,
    supervisor: Supervisor,
    /// Whether the groups that this process made are deleted at the end.
    remove_on_exit: bool,
    /// When the groups that are deleted at the end must have gone.
    ending: Option<Time>,
    /// What was lent with batches that came back, for its room.
    spare: Vec<Lent>,
    closing: Closing,
    pulse: Pulse,
    /// Files that are open or may be by now, and how many may be.
    open: usize,
    open_max: usize,
    outcome: Outcome,
}

/// Descriptors that are not for followed files: ours, and those of threads that open something.
const DESCRIPTORS_KEPT: usize = 128;

/// What `open` gives, whose regions are created at a pace.
fn paced<D: Dm>(
    open: impl Fn() -> io::Result<D>,
    pacer: Pacer,
) -> impl Fn() -> io::Result<Paced<D>> {
    move || Ok(Paced::new(open()?, pacer.clone()))
}

impl Run {
    fn start<D: Dm + Send + 'static>(
        open: impl Fn() -> io::Result<D> + Send + Sync + 'static,
        claim: u32,
        settings: Settings,
        pacer: Pacer,
        tidy: Option<Tidy>,
    ) -> io::Result<Run> {
        share_one_heap(); // before there are threads
        // Unbounded, but a file is in one job at most.
        let (sender, inbox) = unbounded();
        let inbox_of_samplers = sender.clone();
        let (serves, pulse) = (tidy.is_some(), Pulse::default());
        // One that follows a file or a few is ended when their filesystem is to be unmounted.
        let lists = serves.then(|| Arc::new(Lists::open()));
        let of_samplers = pulse.clone();
        let samplers = Crew::new("sampler", move || {
            Ok(jobs::sampler(inbox_of_samplers.clone(), lists.clone(), of_samplers.clone()))
        })?;
        let (inbox_of_ioctls, of_ioctls) = (sender.clone(), pulse.clone());
        let heard = move || Ok(Heard { dm: open()?, pulse: of_ioctls.clone() });
        let (open, counting) = (paced(heard, pacer.clone()), settings.read.is_some());
        // Not others: a daemon puts its stdio away only when it is ready, and threads have begun.
        let ioctls = Crew::new("ioctl", move || {
            if serves {
                part_with_descriptors().ok(); // an older kernel cannot, and nothing depends on it
            }
            Ok(jobs::ioctls(open()?, claim, inbox_of_ioctls.clone(), tidy.clone(), counting))
        })?;
        let limit = raise_descriptor_limit();
        Ok(Run {
            epoch: Instant::now(),
            engine: Engine::new(settings),
            files: Vec::new(),
            inbox,
            sender,
            samplers,
            ioctls,
            pacer,
            scouts: None,
            service: None,
            books: None,
            grids: None,
            releases: HashMap::new(),
            farewell: None,
            supervisor: Supervisor::new(),
            remove_on_exit: false,
            ending: None,
            spare: Vec::new(),
            closing: Closing::default(),
            pulse,
            open: 0,
            open_max: limit.saturating_sub(DESCRIPTORS_KEPT).max(limit / 2),
            outcome: Outcome::NothingLeft,
        })
    }

    /// Has everything counted that may be asked for.
    fn open_books<D: Dm + Send + 'static>(
        &mut self,
        open: impl Fn() -> io::Result<D> + 'static,
        claim: u32,
        config: &config::Settings,
        settings: Settings,
    ) -> io::Result<()> {
        let (mut books, saved) = Books::open(config.state_dir.as_ref());
        if config.grid_memory > 0 {
            let manner = Manner {
                claim,
                precise: config.precise,
                limits: grids::limits(config.grid_memory),
                settle: settings.settle,
                full_look: settings.full_look,
            };
            self.grids = Some(Grids::new(open, manner, saved, self.sender.clone())?);
        } else {
            books.ledger.leave_grids();
        }
        self.books = Some(books);
        Ok(())
    }

    fn wait_for_signals(&self, wanted: &[i32]) -> io::Result<()> {
        let mut signals = Signals::new(wanted)?;
        let sender = self.sender.clone();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                let answer =
                    if signal == SIGHUP { Answer::Reload } else { Answer::Event(Event::Stop) };
                if sender.send(answer).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }

    fn employ_scout<D: Dm + 'static>(
        &mut self,
        read: Arc<Read>,
        open: impl Fn() -> io::Result<D> + Clone + Send + Sync + 'static,
        claim: u32,
    ) -> io::Result<()> {
        let sender = self.sender.clone();
        let equip = move || Ok(service::scout(read.clone(), open.clone(), claim, sender.clone()));
        self.scouts = Some(Crew::new("scout", equip)?);
        Ok(())
    }

    fn now(&self) -> Time {
        Time::from(self.epoch.elapsed())
    }

    fn follow(
        &mut self,
        entry: Entry,
        alias: Option<Box<[u8]>>,
        claimed: Option<Claimed>,
    ) -> FileId {
        let Entry { path, mut reach, spec, template, mark, home } = entry;
        self.open += usize::from(reach.open.is_some());
        if self.open > self.open_max {
            self.put_away(reach.open.take());
        }
        let there = spec.group.map(|group| group.mark);
        let Mark { nonce, .. } = there.unwrap_or(mark);
        let owner = self.open_account(spec.device, there.unwrap_or(mark), claimed.as_ref());
        let file = self.engine.follow(self.now(), spec);
        let mut followed = File::new(path, reach, home, alias, claimed);
        (followed.nonce, followed.owner) = (nonce, owner);
        if there.is_none() {
            followed.make_from(template, mark);
        }
        if file.index() == self.files.len() {
            if self.files.len() == self.files.capacity() {
                self.files.reserve_exact(self.files.len() / 8 + 16); // as the engine does
            }
            self.files.push(followed);
        } else {
            self.files[file.index()] = followed;
        }
        file
    }

    /// Takes one event after the other, and never blocks on a queue.
    fn serve(&mut self) -> Outcome {
        let mut actions = Vec::new();
        let mut events = vec![Event::Tick];
        loop {
            for event in events.drain(..) {
                self.engine.handle(self.now(), event, &mut actions);
                for action in actions.drain(..) {
                    if action == Action::Finish {
                        return self.outcome;
                    }
                    self.act(action);
                }
            }
            self.supervisor.engine_lives(self.now());
            self.look_around(self.now());
            self.save_if_due(self.now());
            self.write_down_if_due(self.now());
            self.abandon_rounds(self.now(), &mut events);
            self.next_events(&mut events);
        }
    }

    fn next_events(&mut self, events: &mut Vec<Event>) {
        let answer = match self.next_due() {
            Some(due) => self.inbox.recv_deadline(self.epoch + due.since_start()),
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match answer {
            Ok(Answer::Looked(batch, lent, reserved)) => {
                self.open -= reserved;
                self.take_back(&batch, lent);
                self.count_failed_looks(&batch);
                self.see(&batch);
                events.push(Event::Looked(batch));
            }
            Ok(Answer::Closed(device, count)) => self.have_closed(device, count),
            Ok(Answer::Event(Event::Stop)) => self.stop(events),
            Ok(Answer::Event(event)) => events.push(event),
            Ok(Answer::Did(did)) => self.did(did, events),
            Ok(Answer::Counted(counted)) => self.counted(counted, events),
            Ok(Answer::Found(finding)) => self.found(finding, events),
            Ok(Answer::Asked(question, reply)) => self.asked(question, &reply, events),
            Ok(Answer::Reload) => self.reload(),
            Err(RecvTimeoutError::Timeout) => self.timed_out(events),
            Err(RecvTimeoutError::Disconnected) => unreachable!("this is the other end"),
        }
    }

    fn next_due(&self) -> Option<Time> {
        let service = self.service.as_ref().and_then(Service::next_due);
        let books = self.books.as_ref().and_then(Books::next_due);
        let grids = self.grids.as_ref().and_then(Grids::next_due);
        let farewell = self.farewell.as_ref().map(|(until, _)| *until);
        let dues = [self.engine.next_due(), service, books, self.supervisor.next_due(), farewell];
        dues.into_iter().chain([self.ending, grids]).flatten().min()
    }

    fn timed_out(&mut self, events: &mut Vec<Event>) {
        let now = self.now();
        if self.farewell.take_if(|(until, _)| *until <= now).is_some() {
            return self.stop(events);
        }
        self.answer_waiting(None);
        let over = self.ending.is_some_and(|ending| ending <= now);
        events.push(if over { Event::Stop } else { Event::Tick });
    }

    /// The files that are followed.
    fn followed(&self) -> impl Iterator<Item = FileId> {
        (0..).map(FileId).take(self.files.len()).filter(|file| self.engine.follows(*file))
    }

    fn take_back(&mut self, batch: &Batch, mut lent: Lent) {
        for (look, reach) in batch.looks.iter().zip(&mut lent.reaches) {
            self.open += usize::from(reach.open.is_some());
            let follows = self.engine.follows(look.file);
            if !follows {
                self.put_away(reach.open.take());
            }
            self.files[look.file.index()].take_back(reach);
            if follows {
                self.close_if_late(look.file);
            }
        }
        lent.clear();
        self.spare.push(lent);
    }

    fn hand_out(&mut self, batch: Batch) {
        let mut lent = self.spare.pop().unwrap_or_default();
        // Each is built in its place: one that is pushed is built elsewhere, and read at once in
        // other pieces than it was written, which a processor has to wait for.
        let (paths, files) = (&mut lent.paths, &mut self.files);
        lent.reaches.extend(batch.looks.iter().map(|look| files[look.file.index()].lend(paths)));
        let open = lent.reaches.iter().filter(|reach| reach.open.is_some()).count();
        let more = if batch.maps.is_some() { batch.looks.len() - open } else { 0 };
        let keep = self.open + more <= self.open_max;
        let reserved = if keep { open + more } else { open };
        self.open += reserved - open;
        give(&self.samplers, Sample::Look { batch, lent, keep, reserved });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Look(batch) => self.hand_out(batch),
            Action::Gauge(device) => give(&self.samplers, Sample::Gauge(device)),
            Action::Close(file) => self.close(file),
            Action::Update(file, device, Some(group), want, limits) => {
                let (home, want) = (self.lasting_home(file), Wanted(want, limits));
                give(&self.ioctls, Order::Update { file, device, home, group, want });
            }
            Action::Update(file, device, None, ..) if !self.wants_regions(file) => {
                // An earlier service may have made one.
                let making = self.files[file.index()].making();
                let key = making.map_or(0, |(_, mark)| mark.key);
                let home = self.files[file.index()].home.clone();
                give(&self.ioctls, Order::Clear { file, device, home, key });
            }
            Action::Update(file, device, None, want, limits) => {
                let want = Wanted(want, limits);
                let (template, mark) = self.files[file.index()].making().expect(
                    "what a group is made from is kept until there is one, and it is never undone",
                );
                let home = self.files[file.index()].home.clone();
                give(&self.ioctls, Order::Establish { file, device, home, template, mark, want });
            }
            Action::Remove(file, device, group) => {
                let home = self.lasting_home(file);
                give(&self.ioctls, Order::Remove { file, device, home, group });
            }
            Action::Sweep(device, groups) => give(&self.ioctls, Order::Sweep { device, groups }),
            Action::Read(device, groups) => {
                let before = self.books.as_ref().and_then(|books| books.stat(device));
                give(&self.ioctls, Order::Read { device, groups, before });
                self.begin_round(device);
            }
            Action::Report(file, report) => self.report(file, &self.explained(file, report)),
            Action::Finish => unreachable!("serve() returns then"),
        }
    }

    /// The device that the file was found on, if it is known by more than a name: with that alone
    /// it cannot be told from another one when it was renamed. Then the marks have to tell.
    fn lasting_home(&self, file: FileId) -> Option<Arc<Home>> {
        let home = self.files[file.index()].home.as_ref();
        home.filter(|home| !home.label.uuid.is_empty()).cloned()
    }

    /// With a device go its groups. Who asks another one that has its number sees just that.
    fn explained(&self, file: FileId, report: Report) -> Report {
        let home = self.files[file.index()].home.as_ref();
        match report {
            Report::LetGo(End::NotOurs(_)) if home.is_some_and(|home| !home.is_there()) => {
                Report::LetGo(End::NoDevice)
            }
            report => report,
        }
    }

    fn report(&mut self, file: FileId, report: &Report) {
        let path = &self.files[file.index()].path;
        log!(level(report), "{}: {report}", path.display());
        self.keep_count(file, report);
        match report {
            Report::Updated(updated) => {
                self.files[file.index()].is_made(updated.made);
                self.group_is_there(file, updated.made);
            }
            Report::Moved(_, to) => {
                self.moved(file, *to);
                self.write_down();
            }
            Report::LetGo(end) => {
                self.let_go(file, end);
                self.release(file, end);
                self.retire_grids();
            }
            _ => {}
        }
    }

    /// Whether the file is to have a group.
    fn wants_regions(&self, file: FileId) -> bool {
        let claimed = self.files[file.index()].claimed.as_ref();
        claimed.is_none_or(|claimed| claimed.terms.regions)
    }
}

fn give<J: Send + 'static>(crew: &Crew<J>, job: J) {
    if let Err(error) = crew.give(job) {
        warn!("no further thread could be had ({error}): some work may have to wait");
    }
}

fn level(report: &Report) -> Level {
    match report {
        Report::Updated(_)
        | Report::Recovered
        | Report::Moved(..)
        | Report::LetGo(
            End::Unused | End::Absent(_) | End::Elsewhere(_) | End::Unmounted | End::Unwanted,
        ) => Level::Info,
        Report::Long(_) | Report::Failing(_) | Report::LetGo(_) => Level::Warn,
        Report::GivenUp(_) => Level::Error,
    }
}
