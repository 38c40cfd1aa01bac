//! Limits on regions, as the engine sees to them: for a file, and for all files of a device.

#![allow(clippy::unwrap_used)] // all of this is a test

use std::collections::BTreeMap;
use std::time::Duration;

use dmfilemapd::dm::Device;
use dmfilemapd::engine::{Action, Engine, Event, FileId, Look, Pace, Settings, Spec, Sweep, Time};
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::group::Mark;
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::Mode;
use dmfilemapd::shape::Limits;
use dmfilemapd::sight::{Imprint, Map, Sight, Stamp};
use dmfilemapd::update::{Group, Standing, Updated};

const DEVICE: Device = Device { major: 253, minor: 0 };
const SECOND: Duration = Duration::from_secs(1);

/// So many extents, and how they look with no more than `max` regions.
fn map(extents: u64) -> Extents {
    (0..extents).filter_map(|at| Extent::new(at * 16, 8)).collect()
}

fn shown(extents: u64, max: u32) -> Extents {
    let across = extents.saturating_sub(u64::from(max)) * 16 + 8;
    map(extents).and(&Extent::new(0, across).into_iter().collect())
}

/// An engine whose orders are carried out at once.
struct Bench {
    engine: Engine,
    now: Time,
    /// How many extents each file has.
    extents: BTreeMap<FileId, u64>,
    /// What the group of each shows, and within which limits.
    groups: BTreeMap<FileId, (Extents, Limits)>,
    updates: usize,
    /// Whether an update takes until [`Bench::late`], and the one that does.
    slow: bool,
    late: Option<Event>,
}

impl Bench {
    fn new(max_device_regions: u32, extents: &[u64]) -> Bench {
        let settings = Settings { patient: true, max_device_regions, ..Settings::default() };
        let mut bench = Bench {
            engine: Engine::new(settings),
            now: Time::ZERO,
            extents: BTreeMap::new(),
            groups: BTreeMap::new(),
            updates: 0,
            slow: false,
            late: None,
        };
        for extents in extents {
            bench.follow(*extents);
        }
        bench.pass(5);
        bench
    }

    fn follow(&mut self, extents: u64) -> FileId {
        let spec = Spec {
            mode: Mode::Inode,
            device: DEVICE,
            group: None,
            restless: false,
            pace: Pace::fixed(SECOND),
            limits: Limits { max_regions: 1000, fold_above: Some(3) },
        };
        let file = self.engine.follow(self.now, spec);
        self.extents.insert(file, extents);
        file
    }

    /// Lets so many seconds pass.
    fn pass(&mut self, seconds: u32) {
        let end = self.now + SECOND * seconds;
        self.happens(Event::Tick);
        while let Some(due) = self.engine.next_due().filter(|due| *due <= end) {
            self.now = due.max(self.now + Duration::from_millis(1));
            self.happens(Event::Tick);
        }
        self.now = end;
    }

    fn happens(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.engine.handle(self.now, event, &mut actions);
        for action in actions {
            if let Some(event) = self.answer(action) {
                self.happens(event);
            }
        }
    }

    fn answer(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Look(mut batch) => {
                let look = |look: &Look| Some((look.file, self.look(look.file, look.last)?));
                batch.sights.extend(batch.looks.iter().filter_map(look));
                Some(Event::Looked(batch))
            }
            Action::Update(file, device, _, want, limits) => {
                let updated = self.update(file, &want, limits);
                let updated = Event::Updated(device, file, Ok(Some(updated)));
                if self.slow {
                    self.late = Some(updated);
                    return None;
                }
                Some(updated)
            }
            Action::Sweep(device, groups) => {
                let stands = |(file, group): &(FileId, Group)| {
                    let fingerprint = self.groups[file].0.fingerprint();
                    (*file, Standing::Stands { id: group.id, fingerprint, tidy: true })
                };
                let standings = groups.iter().map(stands).collect();
                Some(Event::Swept(device, Ok(Sweep { standings, regions: 77 })))
            }
            Action::Remove(file, device, _) => Some(Event::Removed(device, file, Ok(1))),
            _ => None,
        }
    }

    fn look(&self, file: FileId, last: Option<Imprint>) -> Option<Sight> {
        let blocks = self.extents[&file];
        let stamp = Stamp { device: DEVICE, inode: 1, size: 0, blocks, modified: 0, changed: 0 };
        let stamp = stamp.imprint();
        if last == Some(stamp) {
            return None;
        }
        let extents = map(blocks);
        let fingerprint = extents.fingerprint();
        let (blank, pending, shared, torn) = (Extents::default(), false, false, false);
        let map = Map { extents, blank, fingerprint, pending, shared, shared_sectors: 0, torn };
        Some(Sight::Mapped(stamp, map))
    }

    fn update(&mut self, file: FileId, want: &Extents, limits: Limits) -> Updated {
        self.updates += 1;
        let cover = shown(want.len() as u64, limits.max_regions);
        let members = cover.len();
        let (foreign, fingerprint) = (cover.sectors() - want.sectors(), cover.fingerprint());
        self.groups.insert(file, (cover, limits));
        Updated {
            group: Group { id: RegionId(file.0), mark: Mark { key: 1, nonce: 1 }, claim: 1 },
            members,
            created: 1,
            deleted: 0,
            foreign,
            fingerprint,
            made: false,
            descriptor_len: 80,
        }
    }

    /// How many regions each file has.
    fn regions(&self) -> Vec<usize> {
        self.extents.keys().map(|file| self.groups[file].0.len()).collect()
    }

    fn rests(&mut self) {
        let updates = self.updates;
        self.pass(120);
        assert_eq!(self.updates, updates, "it does not come to rest");
    }
}

#[test]
fn a_group_that_shows_more_than_the_map_is_right_all_the_same_and_the_status_says_so() {
    let mut bench = Bench::new(u32::MAX, &[8]);
    let limits = Limits { max_regions: 5, fold_above: None };
    bench.engine.set_limits(bench.now, FileId(0), limits);
    bench.pass(2);
    assert_eq!(bench.groups[&FileId(0)], (shown(8, 5), limits));
    bench.rests();
    let status = bench.engine.file_status(bench.now, FileId(0)).unwrap();
    assert_eq!((status.regions, status.extents, status.max_regions), (5, 8, 5));
    assert_eq!(status.foreign_sectors, 3 * 8);
    let device = bench.engine.device_statuses().next().unwrap();
    assert_eq!((device.own_regions, device.regions), (5, Some(77)));
}

#[test]
fn files_share_the_regions_of_their_device_and_who_needs_few_has_them() {
    let mut bench = Bench::new(20, &[2, 9, 5]);
    assert_eq!(bench.regions(), [2, 9, 5], "there is room");
    bench.follow(12);
    bench.pass(5);
    assert_eq!(bench.regions(), [2, 6, 5, 6]);
    bench.rests();

    bench.engine.set_max_device_regions(bench.now, 9);
    bench.pass(5);
    assert_eq!(bench.regions(), [2, 2, 2, 2]);
    bench.engine.set_max_device_regions(bench.now, 1000);
    bench.pass(5);
    assert_eq!(bench.regions(), [2, 9, 5, 12]);
    bench.rests();
}

#[test]
fn a_limit_that_is_set_while_a_group_is_updated_holds_for_that_group_too() {
    let mut bench = Bench::new(u32::MAX, &[]);
    bench.slow = true;
    bench.follow(8);
    bench.pass(5);
    bench.engine.set_max_device_regions(bench.now, 4);
    bench.slow = false;
    let late = bench.late.take().expect("an update is under way");
    bench.happens(late);
    bench.pass(5);
    assert_eq!(bench.regions(), [4]);
    bench.rests();
}

#[test]
fn a_file_that_goes_leaves_its_regions_to_the_others() {
    let mut bench = Bench::new(20, &[2, 14, 12]);
    assert!(bench.regions().iter().sum::<usize>() <= 20);
    bench.extents.remove(&FileId(1));
    bench.happens(Event::Forget(FileId(1), true));
    bench.pass(5);
    assert_eq!(bench.regions(), [2, 12]);
    bench.rests();
}

#[test]
fn files_of_one_region_are_followed_however_many_there_are() {
    let mut bench = Bench::new(4, &[1, 1, 1, 1, 1, 3]);
    assert_eq!(bench.regions(), [1; 6]);
    bench.rests();
}
