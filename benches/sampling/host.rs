//! The engine and the samplers without threads and in a time of its own: what the program does for
//! each look, and nothing around it.

use std::collections::VecDeque;
use std::iter::zip;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use dmfilemapd::dm::Device;
use dmfilemapd::engine::{Action, Batch, Engine, Event, FileId, Pace, Settings, Spec, Time};
use dmfilemapd::extent::Extents;
use dmfilemapd::group::Mark;
use dmfilemapd::kernel::fiemap::Pages;
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::Mode;
use dmfilemapd::paths::{PathList, SharedPath};
use dmfilemapd::place;
use dmfilemapd::sample::{self, Identity, Mount, Reach};
use dmfilemapd::shape::Limits;
use dmfilemapd::update::{Group, Updated};

/// Between two looks at a file, in the time of the [`Host`].
const INTERVAL: Duration = Duration::from_secs(1);

/// For what is not to come round while something is measured.
pub const HOURS: Duration = Duration::from_secs(1 << 20);

/// What is done at each look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    /// The stamp is compared, and the map is read if it differs.
    Stamps,
    /// The map is read in any case, as it is while a file settles.
    Maps,
}

/// What `run` is to the engine, in one thread.
#[derive(Debug)]
pub struct Host {
    engine: Engine,
    paths: Vec<SharedPath>,
    reaches: Vec<Reach>,
    /// Batches that came back, for their room.
    spare: Vec<(PathList, Vec<Reach>)>,
    events: VecDeque<Event>,
    actions: Vec<Action>,
    pages: Pages,
    now: Time,
}

impl Host {
    /// Follows the files, and brings them to rest.
    pub fn new(paths: &[Arc<Path>], mode: Mode, open: bool, looks: Looks) -> io::Result<Host> {
        let settle = if looks == Looks::Maps { HOURS } else { Duration::ZERO };
        let settings = Settings { settle, full_look: HOURS, sweep: HOURS, ..Settings::default() };
        let mut host = Host {
            engine: Engine::new(settings),
            paths: SharedPath::share(paths),
            reaches: Vec::with_capacity(paths.len()),
            spare: Vec::new(),
            events: VecDeque::new(),
            actions: Vec::new(),
            pages: Pages::default(),
            now: Time::ZERO,
        };
        for path in paths {
            host.follow(path, mode, open)?;
        }
        for _ in 0..4 {
            host.sweep();
        }
        Ok(host)
    }

    fn follow(&mut self, path: &Arc<Path>, mode: Mode, open: bool) -> io::Result<()> {
        let metadata = fs::metadata(path)?;
        let device = sample::device(&metadata);
        let (pace, limits) = (Pace::fixed(INTERVAL), Limits::NONE);
        let spec = Spec { mode, device, group: None, restless: false, pace, limits };
        let opened = sample::open_regular(path)?;
        let realtime = place::locate(&opened).is_ok_and(|place| place.filesystem.has_realtime());
        let open = open.then_some(opened);
        let identity = Identity { inode: metadata.ino(), generation: 0 };
        let file = self.engine.follow(self.now, spec);
        assert_eq!(file.index(), self.reaches.len(), "files are numbered as they come");
        self.reaches.push(Reach { mode, identity, open, mount: Mount::Unasked, realtime });
        Ok(())
    }

    /// Looks at each file once, when it is its turn.
    pub fn sweep(&mut self) {
        let end = self.now + INTERVAL;
        while let Some(due) = self.engine.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.events.push_back(Event::Tick);
            while let Some(event) = self.events.pop_front() {
                let mut actions = std::mem::take(&mut self.actions);
                self.engine.handle(self.now, event, &mut actions);
                actions.drain(..).for_each(|action| self.act(action));
                self.actions = actions;
            }
        }
        self.now = end;
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Look(batch) => self.look(batch),
            Action::Close(file) => {
                self.reaches[file.index()].open = None; // which is not lent: it has no job
            }
            Action::Update(file, device, _, want, _) => self.update(file, device, &want),
            _ => {}
        }
    }

    /// As main hands a batch out, and a sampler carries it out.
    fn look(&mut self, mut batch: Batch) {
        let (mut paths, mut reaches) = self.spare.pop().unwrap_or_default();
        reaches.extend(batch.looks.iter().map(|look| {
            paths.push(&self.paths[look.file.index()]);
            lend(&mut self.reaches[look.file.index()])
        }));
        let (mut lent, pages) = (zip(&paths, &mut reaches), &mut self.pages);
        let mut next = || lent.next().expect("there is one for each look");
        match batch.maps {
            None => batch.compare(|look| {
                let (path, reach) = next();
                sample::compare(path, reach, look.last)
            }),
            Some(_) => batch.map(|look, taken| {
                let (path, reach) = next();
                sample::look(path, reach, look.last, taken, true, pages)
            }),
        }
        for (look, lent) in batch.looks.iter().zip(&mut reaches) {
            let reach = &mut self.reaches[look.file.index()];
            (reach.open, reach.mount) = (lent.open.take(), lent.mount);
        }
        paths.clear();
        reaches.clear();
        self.spare.push((paths, reaches));
        self.events.push_back(Event::Looked(batch));
    }

    /// The group shows the map at once.
    fn update(&mut self, file: FileId, device: Device, want: &Extents) {
        let updated = Updated {
            group: Group { id: RegionId(file.0), mark: Mark { key: 1, nonce: 1 }, claim: 1 },
            members: want.len(),
            created: want.len(),
            deleted: 0,
            foreign: 0,
            fingerprint: want.fingerprint(),
            made: true,
            descriptor_len: 50,
        };
        self.events.push_back(Event::Updated(device, file, Ok(Some(updated))));
    }
}

fn lend(reach: &mut Reach) -> Reach {
    let Reach { mode, identity, mount, realtime, .. } = *reach;
    Reach { mode, identity, open: reach.open.take(), mount, realtime }
}
