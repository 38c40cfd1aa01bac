//! Threads, queues and signals.
//!
//! Main owns the [`Engine`] and with it all state. Samplers look at files, others talk to the
//! device-mapper, one waits for signals; each takes jobs from a queue and puts what came of them
//! into main's inbox. Any of them may stall in the kernel for as long as a device or a writer
//! likes; main never does, and never waits for them: when it is done the process ends.

mod crew;
mod jobs;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use std::{io, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use log::{Level, log, warn};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::dm::Dm;
use crate::engine::{Action, Batch, End, Engine, Event, FileId, Report, Settings, Spec, Time};
use crate::group::Mark;
use crate::kernel::process::raise_descriptor_limit;
use crate::sample::{ByPath, Identity, Reach};
use crate::update::Template;
use crew::Crew;
use jobs::{Order, Sample};

/// A file to follow, and what to do for it.
#[derive(Debug)]
pub struct Entry {
    /// Where it was found; what it is called in messages.
    pub path: Arc<Path>,
    /// Which inode it is.
    pub identity: Identity,
    /// How it is reached.
    pub reach: Reach,
    /// What the engine has to know.
    pub spec: Spec,
    /// What its group is made from, should there be none.
    pub template: Template,
    /// What its group is marked with, should it have no mark.
    pub mark: Mark,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A signal asked for it.
    Stopped,
    /// No file is left to follow.
    NothingLeft,
}

enum Answer {
    Looked(Batch, Vec<Reach>),
    Event(Event),
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
    open: impl Fn() -> io::Result<D> + 'static,
    claim: u32,
    entries: Vec<Entry>,
    settings: Settings,
    ready: impl FnOnce(),
) -> io::Result<Outcome> {
    let mut run = Run::start(open, claim, settings)?;
    for entry in entries {
        run.follow(entry);
    }
    ready();
    Ok(run.serve())
}

struct Run {
    epoch: Instant,
    engine: Engine,
    files: Vec<File>,
    inbox: Receiver<Answer>,
    samplers: Crew<Sample>,
    ioctls: Crew<Order>,
    /// Batches that came back, for their room.
    spare: Vec<Vec<Reach>>,
    /// Files that are open, and how many may be.
    open: usize,
    open_max: usize,
    outcome: Outcome,
}

struct File {
    path: Arc<Path>,
    /// Away while a sampler has it, and gone when the file is not followed any more.
    reach: Option<Reach>,
    /// What its group is made from, until there is one.
    making: Option<Box<(Template, Mark)>>,
}

/// Descriptors that are not for followed files: ours, and those of threads that open something.
const DESCRIPTORS_KEPT: usize = 128;

impl Run {
    fn start<D: Dm + Send + 'static>(
        open: impl Fn() -> io::Result<D> + 'static,
        claim: u32,
        settings: Settings,
    ) -> io::Result<Run> {
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        // Unbounded, but a file is in one job at most.
        let (sender, inbox) = unbounded();
        let inbox_of_samplers = sender.clone();
        let samplers = Crew::new("sampler", move || Ok(jobs::sampler(inbox_of_samplers.clone())))?;
        let inbox_of_ioctls = sender.clone();
        let ioctls =
            Crew::new("ioctl", move || Ok(jobs::ioctls(open()?, claim, inbox_of_ioctls.clone())))?;
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for _ in signals.forever() {
                if sender.send(Answer::Event(Event::Stop)).is_err() {
                    return;
                }
            }
        })?;
        let limit = raise_descriptor_limit();
        Ok(Run {
            epoch: Instant::now(),
            engine: Engine::new(settings),
            files: Vec::new(),
            inbox,
            samplers,
            ioctls,
            spare: Vec::new(),
            open: 0,
            open_max: limit.saturating_sub(DESCRIPTORS_KEPT).max(limit / 2),
            outcome: Outcome::NothingLeft,
        })
    }

    fn now(&self) -> Time {
        Time::from(self.epoch.elapsed())
    }

    fn follow(&mut self, entry: Entry) {
        let Entry { path, identity, mut reach, spec, template, mark } = entry;
        if self.open >= self.open_max {
            reach = without_descriptor(reach, &path, identity);
        }
        self.open += usize::from(is_open(&reach));
        let file = self.engine.follow(self.now(), spec);
        let making = Some(Box::new((template, mark)));
        let followed = File { path, reach: Some(reach), making };
        if file.index() == self.files.len() {
            if self.files.len() == self.files.capacity() {
                self.files.reserve_exact(self.files.len() / 8 + 16); // as the engine does
            }
            self.files.push(followed);
        } else {
            self.files[file.index()] = followed;
        }
    }

    /// Takes one event after the other, and never blocks on a queue.
    fn serve(&mut self) -> Outcome {
        let mut actions = Vec::new();
        let mut event = Event::Tick;
        loop {
            self.engine.handle(self.now(), event, &mut actions);
            for action in actions.drain(..) {
                if action == Action::Finish {
                    return self.outcome;
                }
                self.act(action);
            }
            event = self.next_event();
        }
    }

    fn next_event(&mut self) -> Event {
        let answer = match self.engine.next_due() {
            Some(due) => self.inbox.recv_deadline(self.epoch + due.since_start()),
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match answer {
            Ok(Answer::Looked(batch, reaches)) => {
                self.take_back(&batch, reaches);
                Event::Looked(batch)
            }
            Ok(Answer::Event(event)) => {
                if matches!(event, Event::Stop) {
                    self.outcome = Outcome::Stopped;
                }
                event
            }
            Err(RecvTimeoutError::Timeout) => Event::Tick,
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("the thread that waits for signals holds the other end")
            }
        }
    }

    fn take_back(&mut self, batch: &Batch, mut reaches: Vec<Reach>) {
        for (look, reach) in batch.looks.iter().zip(reaches.drain(..)) {
            if self.engine.follows(look.file) {
                self.open += usize::from(is_open(&reach));
                self.files[look.file.index()].reach = Some(reach);
            }
        }
        self.spare.push(reaches);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Look(batch) => {
                let mut reaches = self.spare.pop().unwrap_or_default();
                for look in &batch.looks {
                    let reach = self.files[look.file.index()].reach.take();
                    let reach = reach.expect("a file has one job at most, so its reach is here");
                    self.open -= usize::from(is_open(&reach));
                    reaches.push(reach);
                }
                let keep = self.open + reaches.len() < self.open_max;
                give(&self.samplers, Sample::Look { batch, reaches, keep });
            }
            Action::Gauge(device) => give(&self.samplers, Sample::Gauge(device)),
            Action::Close(file) => self.close(file),
            Action::Update(file, device, Some(group), want) => {
                give(&self.ioctls, Order::Update { file, device, group, want });
            }
            Action::Update(file, device, None, want) => {
                let (template, mark) = self.files[file.index()].making.as_deref().cloned().expect(
                    "what a group is made from is kept until there is one, and it is never undone",
                );
                give(&self.ioctls, Order::Establish { file, device, template, mark, want });
            }
            Action::Remove(file, device, group) => {
                give(&self.ioctls, Order::Remove { file, device, group });
            }
            Action::Sweep(device, groups) => give(&self.ioctls, Order::Sweep { device, groups }),
            Action::Report(file, report) => self.report(file, &report),
            Action::Finish => unreachable!("serve() returns then"),
        }
    }

    fn report(&mut self, file: FileId, report: &Report) {
        let File { path, making, .. } = &mut self.files[file.index()];
        log!(level(report), "{}: {report}", path.display());
        if matches!(report, Report::Updated(_)) {
            *making = None;
        }
    }

    fn close(&mut self, file: FileId) {
        let followed = self.engine.follows(file);
        let reach = &mut self.files[file.index()].reach;
        let before = reach.as_ref().is_some_and(is_open);
        match reach {
            Some(Reach::Path(by)) if followed => by.open = None,
            _ if followed => {}
            _ => *reach = None,
        }
        let after = reach.as_ref().is_some_and(is_open);
        self.open -= usize::from(before && !after);
    }
}

fn is_open(reach: &Reach) -> bool {
    match reach {
        Reach::Inode(_) => true,
        Reach::Path(by) => by.open.is_some(),
    }
}

/// No descriptor is left to hold the file: it is looked up by its path.
fn without_descriptor(reach: Reach, path: &Arc<Path>, identity: Identity) -> Reach {
    match reach {
        Reach::Inode(_) => {
            let only = Some(Box::new(identity));
            Reach::Path(ByPath { path: path.clone(), open: None, only })
        }
        Reach::Path(by) => Reach::Path(ByPath { open: None, ..by }),
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
        | Report::LetGo(End::Unused | End::Absent(_) | End::Unmounted | End::Unwanted) => {
            Level::Info
        }
        Report::Long(_) | Report::Failing(_) | Report::LetGo(_) => Level::Warn,
        Report::GivenUp(_) => Level::Error,
    }
}
