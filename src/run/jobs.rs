//! What the threads do: look at files, talk to the device-mapper, and say what came of it.

use std::iter::{self, Zip};
use std::path::Path;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::debug;
use nix::time::{ClockId, clock_gettime};

use super::closing::Files;
use super::file::Lent;
use super::pulse::{self, HeardPages, Pulse};
use super::stat::Stat;
use super::tidy::Tidy;
use super::{Answer, Reserved};
use crate::counters::Reading;
use crate::dm::{Device, Dm, Known};
use crate::engine::{self, Batch, Event, FileId, Sweep};
use crate::extent::Extents;
use crate::group::Mark;
use crate::home::{Home, sysfs};
use crate::kernel::fiemap::Pages;
use crate::mounts::{Lists, Mounts};
use crate::paths;
use crate::sample::{self, Reach};
use crate::shape::{Limits, Want};
use crate::sight::Sight;
use crate::update::{self, Group, Passage, Tally, Template};

/// After so many stamps it is said that the device answers; most take a microsecond.
const STAMPS_A_BEAT: usize = 32;

/// For a sampler.
pub(super) enum Sample {
    /// Look at the files.
    Look { batch: Batch, lent: Lent, keep: bool, reserved: Reserved },
    /// Read the device's write counter.
    Gauge(Device),
    /// Close the files.
    Close(Files),
}

/// For a thread that talks to the device-mapper.
pub(super) enum Order {
    Establish {
        file: FileId,
        device: Device,
        home: Option<Arc<Home>>,
        template: Template,
        mark: Mark,
        want: Wanted,
    },
    /// Delete the group with a mark of this key, if there is one.
    Clear {
        file: FileId,
        device: Device,
        home: Option<Arc<Home>>,
        key: u64,
    },
    Update {
        file: FileId,
        device: Device,
        home: Option<Arc<Home>>,
        group: Group,
        want: Wanted,
    },
    Remove {
        file: FileId,
        device: Device,
        home: Option<Arc<Home>>,
        group: Group,
    },
    Sweep {
        device: Device,
        groups: Vec<(FileId, Group)>,
    },
    /// Not if nothing has moved on the device since `before`.
    Read {
        device: Device,
        groups: Vec<(FileId, Group)>,
        before: Option<Stat>,
    },
}

impl Order {
    /// The device that may be written to.
    fn home(&self) -> Option<Arc<Home>> {
        match self {
            Order::Establish { home, .. }
            | Order::Clear { home, .. }
            | Order::Update { home, .. }
            | Order::Remove { home, .. } => home.clone(),
            Order::Sweep { .. } | Order::Read { .. } => None,
        }
    }
}

/// An order that was carried out.
pub(super) struct Did {
    pub(super) event: Event,
    pub(super) took: Duration,
    pub(super) news: Option<News>,
}

/// What was counted.
pub(super) enum News {
    /// By regions of this file's group that came and went.
    Passed(FileId, Passage),
    /// By all groups of a device.
    Read(Pass),
}

/// One reading of a device.
pub(super) struct Pass {
    pub(super) device: Device,
    /// The device's statistics just before.
    pub(super) stat: Option<Stat>,
    /// What the device has counted as a whole, just after.
    pub(super) whole: Option<Reading>,
    /// The groups, and how many regions there are in all; nothing if nothing has moved.
    pub(super) outcome: Result<Option<(Vec<Counts>, usize)>, update::Error>,
    /// Processor time that it took.
    pub(super) cost: Duration,
}

/// What a group has counted.
pub(super) type Counts = (FileId, Group, Tally);

/// What a group is to show, and within which limits.
pub(super) struct Wanted(pub(super) Extents, pub(super) Limits);

impl Wanted {
    fn get(&self) -> Want<'_> {
        Want { extents: &self.0, limits: self.1 }
    }
}

/// A sampler: what it does with a job. With lists of the mounts it notices when a filesystem is
/// unmounted lazily.
pub(super) fn sampler(
    inbox: Sender<Answer>,
    lists: Option<Arc<Lists>>,
    pulse: Pulse,
) -> impl FnMut(Sample) {
    let mut pages = Pages::default();
    move |job| {
        let answer = match job {
            Sample::Look { mut batch, mut lent, keep, reserved } => {
                let mounts = lists.as_ref().map(|lists| (&**lists, lists.mounts()));
                let turns = Turns::new(&pulse, &batch, &mut lent);
                make_looks(&mut batch, turns, mounts.as_ref(), keep, &mut pages);
                Answer::Looked(batch, lent, reserved)
            }
            Sample::Gauge(device) => {
                // Files are to be looked at, too, when their filesystem may have been unmounted.
                let changes = lists.as_ref().map_or(0, |lists| lists.mounts().changes);
                let writes = writes(device).map(|writes| writes.wrapping_add(changes));
                Answer::Event(Event::Gauged(device, writes))
            }
            Sample::Close(Files { device, files }) => {
                let count = files.len();
                drop(files);
                Answer::Closed(device, count)
            }
        };
        inbox.send(answer).ok(); // nobody there: the process is about to end
    }
}

/// Makes the looks of a batch, at files that take their turns. One that had to be opened for its
/// map stays open if `keep` says so. Of the mounts there is what there was at the start.
fn make_looks(
    batch: &mut Batch,
    mut turns: Turns<'_>,
    mounts: Option<&(&Lists, Mounts)>,
    keep: bool,
    pages: &mut Pages,
) {
    let is_detached =
        |reach: &mut Reach| mounts.is_some_and(|(_, mounts)| reach.is_detached(mounts));
    if batch.maps.is_none() {
        return batch.compare(|look| {
            let (path, reach) = turns.next();
            if is_detached(reach) {
                return Err(Sight::Unmounted);
            }
            sample::compare(path, reach, look.last)
        });
    }
    batch.map(|look, taken| {
        let (path, reach) = turns.next();
        if is_detached(reach) {
            return Sight::Unmounted;
        }
        let mut pages = HeardPages::new(pages, &turns.job);
        let sight = sample::look(path, reach, look.last, taken, keep, &mut pages);
        if let Some((lists, _)) = mounts {
            reach.note_mount(lists); // it may have been opened just now
        }
        sight
    });
}

/// The files of a batch, one for each look. Their device has a job to do until this is dropped.
struct Turns<'a> {
    job: pulse::Job,
    every: usize,
    count: usize,
    files: Zip<paths::Iter<'a>, slice::IterMut<'a, Reach>>,
}

impl<'a> Turns<'a> {
    fn new(pulse: &Pulse, batch: &Batch, lent: &'a mut Lent) -> Turns<'a> {
        let every = if batch.maps.is_some() { 1 } else { STAMPS_A_BEAT };
        let files = iter::zip(&lent.paths, &mut lent.reaches);
        Turns { job: pulse.begin(batch.device), every, count: 0, files }
    }

    /// The next one. Now and then it is said that the device has answered for those before it.
    fn next(&mut self) -> (&'a Path, &'a mut Reach) {
        if self.count > 0 && self.count % self.every == 0 {
            self.job.gets_on();
        }
        self.count += 1;
        self.files.next().expect("each look was handed out with its file")
    }
}

/// Write requests and flushes that the device has finished; `None` if it does not say.
fn writes(device: Device) -> Option<u64> {
    let stat = sysfs(device, "stat")?;
    let number = |at: usize| stat.split_ascii_whitespace().nth(at)?.parse::<u64>().ok();
    // The fifth and the sixteenth number (Documentation/block/stat.rst); flushes since Linux 5.5.
    Some(number(4)? + number(15).unwrap_or(0))
}

/// A thread that talks to the device-mapper: what it does with an order. Main gives one order for
/// a device at a time, so that no two updates of one device mix. Whether somebody wants to know
/// what regions had counted that came and went, is up to `counting`.
pub(super) fn ioctls(
    mut dm: impl Dm,
    claim: u32,
    inbox: Sender<Answer>,
    tidy: Option<Tidy>,
    counting: bool,
) -> impl FnMut(Order) {
    move |order| {
        if let (Some(tidy), Order::Sweep { device, .. }) = (&tidy, &order) {
            tidy.swept(&mut dm, *device);
        }
        let began = Instant::now();
        let (event, news) = carry_out(&mut dm, claim, order, counting);
        debug!("{event:?}");
        let did = Did { event, took: began.elapsed(), news };
        inbox.send(Answer::Did(did)).ok(); // as above
    }
}

fn carry_out(dm: &mut impl Dm, claim: u32, order: Order, counting: bool) -> (Event, Option<News>) {
    let passed = |file, passage: Option<Passage>| Some(News::Passed(file, passage?));
    let home = order.home();
    let mut dm = Known { dm, label: home.as_ref().map(|home| &home.label) };
    match order {
        Order::Establish { file, device, template, mark, want, .. } if counting => {
            let (passage, updated) =
                update::establish_counted(dm, device, &template, mark, claim, want.get());
            (Event::Updated(device, file, updated), passed(file, passage))
        }
        Order::Establish { file, device, template, mark, want, .. } => {
            let updated = update::establish(dm, device, &template, mark, claim, want.get());
            (Event::Updated(device, file, updated), None)
        }
        Order::Clear { file, device, key, .. } => {
            (Event::Updated(device, file, clear(&mut dm, device, key)), None)
        }
        Order::Update { file, device, group, want, .. } if counting => {
            let (passage, updated) = update::update_counted(dm, device, group, want.get());
            (Event::Updated(device, file, updated.map(Some)), passed(file, passage))
        }
        Order::Update { file, device, group, want, .. } => {
            let updated = update::update(dm, device, group, want.get());
            (Event::Updated(device, file, updated.map(Some)), None)
        }
        Order::Remove { file, device, group, .. } if counting => {
            let (passage, removed) = update::remove_counted(dm, device, group);
            (Event::Removed(device, file, removed), passed(file, passage))
        }
        Order::Remove { file, device, group, .. } => {
            (Event::Removed(device, file, update::remove(dm, device, group)), None)
        }
        Order::Sweep { device, groups } => {
            let (files, groups): (Vec<FileId>, Vec<Group>) = groups.into_iter().unzip();
            let sweep = update::look(dm, device, &groups).map(|(standings, regions)| {
                let standings = iter::zip(files, standings).collect();
                Sweep { standings, regions }
            });
            (Event::Swept(device, sweep), None)
        }
        Order::Read { device, groups, before } => {
            let pass = read(&mut dm, device, groups, before.as_ref());
            let reading = engine::Reading { reset: false, cost: pass.cost, more: false };
            (Event::Read(device, reading), Some(News::Read(pass)))
        }
    }
}

fn clear(
    dm: &mut impl Dm,
    device: Device,
    key: u64,
) -> Result<Option<update::Updated>, update::Error> {
    if let Some(group) = update::find(&mut *dm, device, &[key])? {
        update::remove(dm, device, group)?;
    }
    Ok(None)
}

fn read(
    dm: &mut impl Dm,
    device: Device,
    groups: Vec<(FileId, Group)>,
    before: Option<&Stat>,
) -> Pass {
    let began = processor_time();
    let stat = Stat::of(device, before);
    let still = stat.as_ref().zip(before).is_some_and(|(stat, before)| stat.is_still(before));
    let outcome = if still {
        Ok(None)
    } else {
        let wanted: Vec<Group> = groups.iter().map(|(_, group)| *group).collect();
        update::read(dm, device, &wanted).map(|(tallies, regions)| {
            let counts =
                iter::zip(groups, tallies).map(|((file, group), tally)| (file, group, tally));
            Some((counts.collect(), regions))
        })
    };
    let whole = sysfs(device, "stat").and_then(|stat| Reading::of_device(&stat));
    let cost = processor_time().saturating_sub(began);
    Pass { device, stat, whole, outcome, cost }
}

/// What this thread has used so far; nothing if nobody knows.
pub(super) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::dm::Label;
    use crate::engine::Look;
    use crate::extent::Extent;
    use crate::kernel::memory::Memory;
    use crate::mode::Mode;
    use crate::sample::{Identity, Mount};

    const DEVICE: Device = Device { major: 253, minor: 0 };
    const MARK: Mark = Mark { key: 7, nonce: 1 };
    const CLAIM: u32 = 1;

    fn home(uuid: &str) -> Arc<Home> {
        let label = Label { name: b"name".into(), uuid: uuid.into() };
        Arc::new(Home { device: DEVICE, label })
    }

    fn listing(memory: &mut Memory) -> Vec<u8> {
        memory.message(DEVICE, b"@stats_list").unwrap().text
    }

    /// All orders that change something, for a file that lies elsewhere by now.
    fn orders(group: Group, template: &Template, uuid: &str) -> Vec<Order> {
        let (file, device) = (FileId(0), DEVICE);
        let want = || Wanted([Extent::new(64, 8).unwrap()].into_iter().collect(), Limits::NONE);
        let (template, mark) = (template.clone(), Mark { key: 8, nonce: 2 });
        let home = || Some(home(uuid));
        vec![
            Order::Establish { file, device, home: home(), template, mark, want: want() },
            Order::Update { file, device, home: home(), group, want: want() },
            Order::Clear { file, device, home: home(), key: MARK.key },
            Order::Remove { file, device, home: home(), group },
        ]
    }

    fn batch(maps: Option<usize>, files: u32) -> Batch {
        let looks = (0..files).map(|at| Look { file: FileId(at), last: None }).collect();
        Batch { device: DEVICE, maps, looks, changed: Vec::new(), sights: Vec::new() }
    }

    fn lent(mode: Mode, open: impl Fn() -> Option<File>, mount: Mount, files: u32) -> Lent {
        let mut lent = Lent::default();
        for _ in 0..files {
            let identity = Identity { inode: 2, generation: 0 };
            lent.paths.push(&Path::new("/").into());
            lent.reaches.push(Reach { mode, identity, open: open(), mount, realtime: false });
        }
        lent
    }

    #[test]
    fn a_device_that_gives_stamp_after_stamp_or_map_after_map_is_not_stuck() {
        for (maps, first) in [(None, 32), (Some(0), 1)] {
            let mut lent = lent(Mode::Path, || None, Mount::Unasked, 100);
            let (pulse, mut last) = (Pulse::default(), None);
            let mut turns = Turns::new(&pulse, &batch(maps, 100), &mut lent);
            for at in 0..100 {
                turns.next();
                // As if the first stamps, or the first map, had taken that long.
                let until = *last.get_or_insert_with(|| Instant::now() + Duration::from_secs(5));
                assert_eq!(pulse.stuck(DEVICE, until).is_some(), at < first, "{maps:?}: {at}");
            }
        }
    }

    #[test]
    fn a_file_whose_mount_is_no_more_is_unmounted_whether_its_map_is_due_or_not() {
        let lists = Lists::open();
        for maps in [None, Some(0)] {
            let (mut batch, nowhere) = (batch(maps, 1), Mount::Seen(u32::MAX));
            let mut lent = lent(Mode::Inode, || tempfile::tempfile().ok(), nowhere, 1);
            let turns = Turns::new(&Pulse::default(), &batch, &mut lent);
            let mounts = (&lists, lists.mounts());
            make_looks(&mut batch, turns, Some(&mounts), true, &mut Pages::default());
            assert_eq!(batch.sights, [(FileId(0), Sight::Unmounted)]);
        }
    }

    #[test]
    fn no_order_changes_another_device_than_the_one_that_was_known() {
        let mut memory = Memory::new();
        memory.add_device(DEVICE, 1 << 20, "name", "LVM-this");
        let (program_id, alias, bounds) = (b"dmstats".into(), b"x".into(), Vec::new());
        let template = Template { program_id, alias, precise: false, bounds };
        let want = Wanted([Extent::new(0, 8).unwrap()].into_iter().collect(), Limits::NONE);
        let made = update::establish(&mut memory, DEVICE, &template, MARK, CLAIM, want.get());
        let group = made.unwrap().unwrap().group;
        let before = listing(&mut memory);
        for order in orders(group, &template, "LVM-other") {
            let (event, _) = carry_out(&mut memory, CLAIM, order, false);
            let error = match event {
                Event::Updated(_, _, Err(error)) | Event::Removed(_, _, Err(error)) => error,
                other => panic!("{other:?}"),
            };
            assert!(error.is_no_device(), "{error}");
            assert_eq!(listing(&mut memory), before);
        }
        for order in orders(group, &template, "LVM-this").into_iter().take(3) {
            let before = listing(&mut memory);
            carry_out(&mut memory, CLAIM, order, false);
            assert_ne!(listing(&mut memory), before, "that is the one");
        }
    }
}
