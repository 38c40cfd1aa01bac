//! Threads, queues and signals. The only place that starts a thread.
//!
//! Main owns the [`Engine`] and with it all state. Samplers look at files, one thread talks to the
//! device-mapper, one waits for signals; each takes jobs from a queue and puts what came of them
//! into main's inbox. Any of them may stall in the kernel for as long as a device or a writer
//! likes; main never does, and never waits for them: when it is done the process ends.

use std::thread;
use std::time::Instant;
use std::{io, iter};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{Level, debug, log};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::dm::{Device, Dm};
use crate::engine::{Action, End, Engine, Event, FileId, Report, Settings, Spec};
use crate::extent::Extents;
use crate::group::Mark;
use crate::kernel::fiemap::Pages;
use crate::sample::{self, Reach};
use crate::sight::{Sight, Stamp};
use crate::update::{self, Group, Template};

/// Threads that look at files. They buy isolation and not speed: one file that stalls is one
/// sampler that stalls.
const SAMPLERS: usize = 2;

/// A file to follow, and what to do for it.
#[derive(Debug)]
pub struct Entry {
    /// What it is called in messages.
    pub name: String,
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

enum Job {
    Look { file: FileId, reach: Reach, last: Option<Stamp>, map_due: bool },
}

enum Order {
    Establish { file: FileId, device: Device, template: Template, mark: Mark, want: Extents },
    Update { file: FileId, device: Device, group: Group, want: Extents },
    Remove { file: FileId, device: Device, group: Group },
    Sweep { device: Device, groups: Vec<(FileId, Group)> },
}

enum Answer {
    Looked(FileId, Reach, Sight),
    Other(Event),
}

/// Follows the files until none is left or a signal says stop, and leaves the groups as they are.
///
/// `claim` is what says that this process speaks for the groups. `ready` is called once everything
/// that may fail has been done.
///
/// # Errors
///
/// No thread or no signal handler could be had.
pub fn run(
    dm: impl Dm + Send + 'static,
    claim: u32,
    entries: Vec<Entry>,
    settings: Settings,
    ready: impl FnOnce(),
) -> io::Result<Outcome> {
    let mut run = Run::start(dm, claim, entries, settings)?;
    ready();
    Ok(run.serve())
}

struct Run {
    epoch: Instant,
    engine: Engine,
    files: Vec<File>,
    inbox: Receiver<Answer>,
    looks: Sender<Job>,
    orders: Sender<Order>,
    outcome: Outcome,
}

struct File {
    name: String,
    /// Away while a sampler has it, and gone when the file is not followed any more.
    reach: Option<Reach>,
    template: Template,
    mark: Mark,
}

impl Run {
    fn start(
        dm: impl Dm + Send + 'static,
        claim: u32,
        entries: Vec<Entry>,
        settings: Settings,
    ) -> io::Result<Run> {
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        // A file is in one job at most, and so is a device: no queue can overflow.
        let jobs_max = 2 * entries.len() + 1;
        let (inbox_sender, inbox) = bounded(2 * jobs_max + 2);
        let (looks, look_queue) = bounded(jobs_max);
        let (orders, order_queue) = bounded(jobs_max);
        for number in 0..SAMPLERS {
            let (queue, inbox) = (look_queue.clone(), inbox_sender.clone());
            spawn(format!("sampler-{number}"), move || look_at_files(&queue, &inbox))?;
        }
        let inbox_of_ioctls = inbox_sender.clone();
        spawn("ioctl".to_owned(), move || {
            carry_out_orders(dm, claim, &order_queue, &inbox_of_ioctls);
        })?;
        spawn("signals".to_owned(), move || {
            for _ in signals.forever() {
                if inbox_sender.send(Answer::Other(Event::Stop)).is_err() {
                    return;
                }
            }
        })?;
        let epoch = Instant::now();
        let mut engine = Engine::new(settings);
        let mut files = Vec::with_capacity(entries.len());
        for Entry { name, reach, spec, template, mark } in entries {
            engine.follow(epoch.elapsed(), spec);
            files.push(File { name, reach: Some(reach), template, mark });
        }
        let outcome = Outcome::NothingLeft;
        Ok(Run { epoch, engine, files, inbox, looks, orders, outcome })
    }

    /// Takes one event after the other, and never blocks on a queue.
    fn serve(&mut self) -> Outcome {
        let mut actions = Vec::new();
        let mut event = Event::Tick;
        loop {
            self.engine.handle(self.epoch.elapsed(), event, &mut actions);
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
            Some(due) => self.inbox.recv_deadline(self.epoch + due),
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match answer {
            Ok(Answer::Looked(file, reach, sight)) => {
                if self.engine.follows(file) {
                    self.files[file.0].reach = Some(reach);
                }
                Event::Looked(file, sight)
            }
            Ok(Answer::Other(event)) => {
                if matches!(event, Event::Stop) {
                    self.outcome = Outcome::Stopped;
                }
                event
            }
            Err(RecvTimeoutError::Timeout) => Event::Tick,
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("a thread that ends takes the process with it")
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Look { file, last, map_due } => {
                let reach = self.files[file.0].reach.take();
                let reach = reach.expect("a file has one job at most, so its reach is here");
                queue(&self.looks, Job::Look { file, reach, last, map_due });
            }
            Action::Close(file) => self.close(file),
            Action::Update(file, device, Some(group), want) => {
                queue(&self.orders, Order::Update { file, device, group, want });
            }
            Action::Update(file, device, None, want) => {
                let File { template, mark, .. } = &self.files[file.0];
                let (template, mark) = (template.clone(), *mark);
                queue(&self.orders, Order::Establish { file, device, template, mark, want });
            }
            Action::Remove(file, device, group) => {
                queue(&self.orders, Order::Remove { file, device, group });
            }
            Action::Sweep(device, groups) => queue(&self.orders, Order::Sweep { device, groups }),
            Action::Report(file, report) => {
                let name = &self.files[file.0].name;
                log!(level(&report), "{name}: {report}");
            }
            Action::Finish => unreachable!("serve() returns then"),
        }
    }

    fn close(&mut self, file: FileId) {
        let followed = self.engine.follows(file);
        let File { reach, .. } = &mut self.files[file.0];
        match reach {
            Some(Reach::Path(_, open)) if followed => *open = None,
            _ => *reach = None,
        }
    }
}

fn level(report: &Report) -> Level {
    match report {
        Report::Updated(_)
        | Report::Recovered
        | Report::Moved(..)
        | Report::LetGo(End::Unused | End::Absent(_)) => Level::Info,
        Report::Long(_) | Report::Failing(_) | Report::LetGo(_) => Level::Warn,
        Report::GivenUp(_) => Level::Error,
    }
}

fn queue<T>(queue: &Sender<T>, job: T) {
    // Full cannot be, by counting; gone cannot be, since a thread that ends ends the process.
    assert!(queue.try_send(job).is_ok(), "a queue with room for every file is full or gone");
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name).spawn(work).map(drop)
}

fn look_at_files(jobs: &Receiver<Job>, inbox: &Sender<Answer>) {
    let mut pages = Pages::default();
    for Job::Look { file, mut reach, last, map_due } in jobs {
        let sight = sample::look(&mut reach, last, map_due, &mut pages);
        if inbox.send(Answer::Looked(file, reach, sight)).is_err() {
            return;
        }
    }
}

/// The one place that talks to the device-mapper, so that no two updates mix.
fn carry_out_orders(mut dm: impl Dm, claim: u32, orders: &Receiver<Order>, inbox: &Sender<Answer>) {
    for order in orders {
        let event = match order {
            Order::Establish { file, device, template, mark, want } => {
                let updated = update::establish(&mut dm, device, &template, mark, claim, &want);
                Event::Updated(file, updated)
            }
            Order::Update { file, device, group, want } => {
                Event::Updated(file, update::update(&mut dm, device, group, &want).map(Some))
            }
            Order::Remove { file, device, group } => {
                Event::Removed(file, update::remove(&mut dm, device, group))
            }
            Order::Sweep { device, groups } => {
                let (files, groups): (Vec<FileId>, Vec<Group>) = groups.into_iter().unzip();
                let standings = update::look(&mut dm, device, &groups);
                Event::Swept(device, standings.map(|seen| iter::zip(files, seen).collect()))
            }
        };
        debug!("{event:?}");
        if inbox.send(Answer::Other(event)).is_err() {
            return;
        }
    }
}
