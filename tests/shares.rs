//! What a grid gives to each file, against a count sector by sector; and the grid's life in the
//! kernel's table.

#![allow(clippy::unwrap_used)] // all of this is a test

use dmfilemapd::counters::Counters;
use dmfilemapd::dm::{Device, Dm, Reply};
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::grid::attribute::{Tenancy, Tenant, attribute};
use dmfilemapd::grid::meter::Counted;
use dmfilemapd::grid::owners::Owners;
use dmfilemapd::grid::plan::{Change, Patch};
use dmfilemapd::grid::shares::{Shares, in_question};
use dmfilemapd::grid::table::{Grid, PROGRAM, Stand};
use dmfilemapd::kernel::Memory;
use dmfilemapd::message::parse_list;
use proptest::prelude::*;

const DEVICE: Device = Device { major: 253, minor: 0 };

/// Sectors of the device.
const SECTORS: u64 = 96;

/// Followed files are 0, 1 and 2; this is one that nobody follows.
const STRANGER: usize = 3;

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(start, len).unwrap()
}

fn memory() -> Memory {
    let mut memory = Memory::new();
    memory.add_device(DEVICE, SECTORS, "disk", "");
    memory
}

/// A grid over the whole device.
fn whole(memory: &mut Memory, step: u64) -> Grid {
    let mut grid = Grid::find(&mut *memory, DEVICE, 1, false, &[]).unwrap();
    let changed = grid.change(memory, &create(&[(0, SECTORS, step)]), 1).unwrap();
    assert_eq!((changed.created, changed.counted.len()), (1, 0));
    grid
}

fn create(patches: &[(u64, u64, u64)]) -> Change {
    let patch = |(start, end, step): &(u64, u64, u64)| Patch {
        extent: Extent::between(*start, *end).unwrap(),
        step: *step,
    };
    Change { delete: Vec::new(), create: patches.iter().map(patch).collect() }
}

// Against a count sector by sector.

/// Who has a sector, and whether it was written since it was given out.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sector {
    owner: Option<usize>,
    written: bool,
    /// It was given out or back since the grid was read, and so will stay until then: what nobody
    /// has at a reading leaves no trace.
    fresh: bool,
}

const FREE: Sector = Sector { owner: None, written: false, fresh: false };

/// What may happen, to whom, where and how far.
#[derive(Clone, Debug)]
enum Step {
    Reserve(usize, u64, u64),
    Write(usize, u64, u64),
    Read(usize, u64, u64),
    Free(u64, u64),
    Look,
}

fn any_step() -> impl Strategy<Value = Step> {
    let (who, at, len) = (0..4_usize, 0..SECTORS, 1..9_u64);
    (0..12, who, at, len).prop_map(|(kind, who, at, len)| match kind {
        0 => Step::Reserve(who, at, len),
        1..=5 => Step::Write(who, at, len),
        6..=8 => Step::Read(who, at, len),
        9 => Step::Free(at, len),
        _ => Step::Look,
    })
}

/// A device whose owners are known.
struct World {
    memory: Memory,
    grid: Grid,
    step: u64,
    sectors: Vec<Sector>,
    owners: Owners<usize>,
    shares: Shares<usize>,
    truth: [Counters; 4],
    phase: u64,
}

impl World {
    fn new(step: u64) -> World {
        let mut memory = memory();
        let grid = whole(&mut memory, step);
        let mut owners = Owners::new(false);
        (0..3).for_each(|file| owners.add(file, Extents::default(), Extents::default()));
        let sectors = vec![FREE; usize::try_from(SECTORS).unwrap()];
        let (shares, truth) = (Shares::default(), [Counters::default(); 4]);
        World { memory, grid, step, sectors, owners, shares, truth, phase: 0 }
    }

    fn go(&mut self, step: &Step) {
        match *step {
            Step::Reserve(who, at, len) => drop(self.take(who, at, len)),
            Step::Write(who, at, len) => {
                for sector in self.take(who, at, len) {
                    self.sectors[usize::try_from(sector).unwrap()].written = true;
                    self.io(who, sector, true);
                }
            }
            Step::Read(who, at, len) => {
                let own = |sector: &u64| self.sector(*sector).owner == Some(who);
                let all: Vec<u64> = (at..SECTORS.min(at + len)).filter(own).collect();
                for sector in all {
                    self.io(who, sector, false);
                }
            }
            Step::Free(at, len) => {
                for sector in at..SECTORS.min(at + len) {
                    let sector = &mut self.sectors[usize::try_from(sector).unwrap()];
                    if sector.owner.is_some() && !sector.fresh {
                        *sector = Sector { fresh: true, ..FREE };
                    }
                }
            }
            Step::Look => self.look(),
        }
    }

    fn sector(&self, at: u64) -> Sector {
        self.sectors[usize::try_from(at).unwrap()]
    }

    /// Gives out what is free there; returns what is the owner's then.
    fn take(&mut self, who: usize, at: u64, len: u64) -> Vec<u64> {
        let mut own = Vec::new();
        for at in at..SECTORS.min(at + len) {
            let sector = &mut self.sectors[usize::try_from(at).unwrap()];
            if sector.owner.is_none() && !sector.fresh {
                (sector.owner, sector.fresh) = (Some(who), true);
            }
            if sector.owner == Some(who) {
                own.push(at);
            }
        }
        own
    }

    fn io(&mut self, who: usize, sector: u64, write: bool) {
        self.memory.io(DEVICE, extent(sector, 1), write);
        let truth = &mut self.truth[who];
        if write {
            truth.writes_completed += 1;
            truth.written_bytes += 512;
        } else {
            truth.reads_completed += 1;
            truth.read_bytes += 512;
        }
    }

    fn sectors_of(&self, is: impl Fn(Sector) -> bool) -> Extents {
        let them = (0..SECTORS).filter(|sector| is(self.sector(*sector)));
        them.map(|sector| extent(sector, 1)).collect()
    }

    fn look(&mut self) {
        let areas = self.grid.read(&mut self.memory).unwrap();
        for file in 0..3 {
            let map = self.sectors_of(|sector| sector.owner == Some(file));
            let blank = self.sectors_of(|sector| sector.owner == Some(file) && !sector.written);
            self.owners.set(file, map, blank);
        }
        let extents: Vec<Extent> = areas.iter().map(|area| area.extent).collect();
        let asked = in_question(&areas, &self.owners.tenancies(&extents, &Extents::default()));
        let asked: Extents = asked.into_iter().collect();
        let free = self.sectors_of(|sector| sector.owner.is_none());
        let free = free.without(&free.without(&asked));
        let tenancies = self.owners.tenancies(&extents, &free);
        self.shares.give(&areas, &tenancies, self.phase);
        self.phase += 1;
        self.owners.settle();
        self.sectors.iter_mut().for_each(|sector| sector.fresh = false);
    }

    fn check(&self) {
        let mut sum = self.shares.others;
        self.shares.files.values().for_each(|share| sum += &share.counters);
        let mut truth = Counters::default();
        self.truth.iter().for_each(|counters| truth += counters);
        assert_eq!(sum, truth, "nothing is lost and nothing made up");
        for (file, truth) in self.truth[..STRANGER].iter().enumerate() {
            let share = self.shares.files.get(&file).copied().unwrap_or_default();
            let mut most = share.counters;
            most += &share.doubt.under;
            let least = share.counters.beyond(&share.doubt.over);
            assert!(!most.is_below(truth), "{file}: {truth:?} of at most {most:?}");
            assert!(!truth.is_below(&least), "{file}: {truth:?} of at least {least:?}");
            if self.step == 1 {
                assert_eq!(share.counters, *truth, "areas of one sector: {file}");
            }
        }
    }
}

proptest! {
    #[test]
    fn shares_add_up_and_the_truth_is_within_the_doubt(
        steps in prop::collection::vec(any_step(), 1..120),
        area in prop::sample::select(vec![1, 3, 8, 32, SECTORS]),
    ) {
        let mut world = World::new(area);
        for step in &steps {
            world.go(step);
        }
        world.look();
        world.check();
    }
}

/// Every way in which two sectors can be had, handed over and written to, by two files and a
/// stranger who keeps what it has.
#[test]
fn in_small_areas_the_truth_is_always_within_the_doubt() {
    const NOBODY: usize = 2;
    const STRANGER: usize = 3;
    /// Before, after, writes by the one and the other.
    type Course = (usize, usize, u64, u64);
    let mut courses: Vec<Course> = Vec::new();
    for (before, after) in (0..16).map(|number| (number / 4, number % 4)) {
        let passes = before != after && (before == STRANGER || after == STRANGER);
        for (by_first, by_second) in (0..9).map(|number| (number / 3, number % 3)) {
            let first = before != NOBODY || by_first == 0;
            // Who gets a sector has written it: what is only reserved is another test's.
            let second = match before == after {
                true => by_second == 0,
                false => (after == NOBODY) == (by_second == 0),
            };
            if !passes && first && second {
                courses.push((before, after, by_first, by_second));
            }
        }
    }
    let mut cases = 0;
    for one in &courses {
        for two in &courses {
            check_courses(&[*one, *two]);
            cases += 1;
        }
    }
    assert!(cases > 1000, "{cases} cases");
}

fn check_courses(sectors: &[(usize, usize, u64, u64)]) {
    let (mut truth, mut tenancy) =
        ([0; 4], Tenancy { tenants: Vec::new(), others: 0, reserved: 0, free: 0 });
    for &(before, after, by_first, by_second) in sectors {
        truth[before] += by_first;
        truth[after] += by_second;
        match (before.min(after), after) {
            (3, _) => tenancy.others += 1,
            (2, 2) => tenancy.free += 1,
            _ => {}
        }
    }
    for file in 0..2 {
        let held = sectors.iter().filter(|sector| sector.0 == file || sector.1 == file).count();
        let gained = sectors.iter().filter(|sector| sector.0 != file && sector.1 == file).count();
        if held > 0 {
            tenancy.tenants.push(Tenant { file, held: held as u64, gained: gained as u64 });
        }
    }
    let all: u64 = truth.iter().sum();
    let counted =
        Counters { written_bytes: all * 512, writes_completed: all, ..Counters::default() };
    for phase in 0..3 {
        let (parts, rest) = attribute(&counted, &tenancy, phase);
        let mut sum = rest;
        for part in &parts {
            sum += &part.counters;
            let (over, under) = (part.doubt.over, part.doubt.under);
            let (given, wrote) = (part.counters, truth[part.file]);
            let within = |given: u64, over: u64, under: u64, wrote: u64| {
                given - over <= wrote && wrote <= given + under
            };
            let bytes = (given.written_bytes, over.written_bytes, under.written_bytes);
            let ios = (given.writes_completed, over.writes_completed, under.writes_completed);
            assert!(within(bytes.0, bytes.1, bytes.2, wrote * 512), "{sectors:?} {part:?}");
            assert!(within(ios.0, ios.1, ios.2, wrote), "{sectors:?} {part:?}");
        }
        assert_eq!(sum, counted, "{sectors:?}");
    }
}

// The grid's life.

fn rows(memory: &mut Memory) -> Vec<(u32, String)> {
    let listing = memory.message(DEVICE, b"@stats_list").unwrap().text;
    let row = |row: &dmfilemapd::message::Region<'_>| {
        assert_eq!(row.program_id, PROGRAM);
        (row.id.0, row.extent.to_string())
    };
    parse_list(&listing).unwrap().iter().map(row).collect()
}

fn sectors(counted: &[Counted]) -> u64 {
    counted.iter().map(|area| area.counters.written_bytes / 512).sum()
}

fn stand_of(grid: &Grid) -> Vec<Stand> {
    grid.stands()
}

#[test]
fn a_grid_is_found_again_and_goes_on_where_it_stood() {
    let mut memory = memory();
    let mut grid = whole(&mut memory, 8);
    memory.io(DEVICE, extent(3, 10), true);
    assert_eq!(sectors(&grid.read(&mut memory).unwrap()), 10);
    memory.io(DEVICE, extent(90, 5), true);
    let mut next = Grid::find(&mut memory, DEVICE, 2, false, &stand_of(&grid)).unwrap();
    assert_eq!(next.patches(), grid.patches());
    assert_eq!(sectors(&next.read(&mut memory).unwrap()), 5, "while nobody was there");
    assert!(grid.read(&mut memory).unwrap_err().to_string().contains("taken the grid over"));
    let mut third = Grid::find(&mut memory, DEVICE, 3, false, &[]).unwrap();
    assert_eq!(sectors(&third.read(&mut memory).unwrap()), 0, "nobody knows where it stood");
    memory.io(DEVICE, extent(0, 1), true);
    assert_eq!(sectors(&third.read(&mut memory).unwrap()), 1);
    third.remove(&mut memory).unwrap();
    assert_eq!(rows(&mut memory), []);
}

#[test]
fn a_grid_that_somebody_deleted_or_replaced_is_gone() {
    for then in [&[][..], &["@stats_create 0+96 8 dmfilemap -"], &["@stats_create 0+96 8 x"]] {
        let mut memory = memory();
        let mut grid = whole(&mut memory, 8);
        for text in [&["@stats_delete 0"], then].concat() {
            memory.message(DEVICE, text.as_bytes()).unwrap();
        }
        let error = grid.read(&mut memory).unwrap_err().to_string();
        assert!(error.contains("the grid is gone"), "{error}");
    }
}

#[test]
fn a_clear_by_others_loses_only_what_was_not_read() {
    let mut memory = memory();
    let mut grid = whole(&mut memory, 8);
    memory.io(DEVICE, extent(0, 6), true);
    assert_eq!(sectors(&grid.read(&mut memory).unwrap()), 6);
    memory.message(DEVICE, b"@stats_clear 0").unwrap();
    memory.io(DEVICE, extent(0, 4), true);
    assert_eq!(sectors(&grid.read(&mut memory).unwrap()), 4);
}

/// The same table, in which sectors are written between some of the messages.
struct Busy {
    memory: Memory,
    /// How many messages there were, and before how many of them at most something is written.
    messages: usize,
    until: usize,
    written: u64,
}

impl Dm for Busy {
    fn message(&mut self, device: Device, text: &[u8]) -> std::io::Result<Reply> {
        if self.messages < self.until {
            self.written += 2;
            self.memory.io(device, extent(30, 1), true);
            self.memory.io(device, extent(70, 1), true);
        }
        self.messages += 1;
        self.memory.message(device, text)
    }
}

#[test]
fn a_grid_that_is_moved_counts_everything_once_or_says_what_it_missed() {
    let moved = Change { delete: vec![0], ..create(&[(16, 40, 4), (60, 80, 4)]) };
    for busy in 0..40 {
        let mut memory = memory();
        let mut grid = whole(&mut memory, 8);
        memory.io(DEVICE, extent(0, 96), true);
        let mut dm = Busy { memory, messages: 0, until: busy, written: 96 };
        let changed = grid.change(&mut dm, &moved, 5).unwrap();
        assert_eq!((changed.created, grid.patches().len()), (2, 2));
        dm.until = 0;
        let later = grid.read(&mut dm).unwrap();
        let found = sectors(&changed.counted) + sectors(&later);
        let missed = changed.missed.written_bytes / 512;
        assert!(found <= dm.written, "{busy}: {found} of {}", dm.written);
        // What is written when neither is read any more before the old one is deleted.
        let after_last = if busy > dm.messages - 2 { 2 } else { 0 };
        assert!(found + missed + after_last >= dm.written, "{busy}: {found} and {missed} missed");
        if busy < 8 {
            assert_eq!((found, missed), (dm.written, 0), "it came to rest: {busy}");
        }
        let areas: Vec<Extent> = changed.counted.iter().map(|area| area.extent).collect();
        assert!(areas.windows(2).all(|pair| pair[0].end() <= pair[1].start()), "{areas:?}");
    }
}

#[test]
fn a_change_without_room_leaves_the_grid_and_its_counts() {
    let mut memory = memory();
    let mut grid = whole(&mut memory, 8);
    memory.io(DEVICE, extent(0, 96), true);
    memory.set_regions_max(2);
    let change = Change { delete: vec![0], ..create(&[(0, 48, 4), (48, 96, 4)]) };
    grid.change(&mut memory, &change, 5).unwrap_err();
    assert_eq!(rows(&mut memory), [(0, "0+96".to_owned())]);
    assert_eq!(sectors(&grid.read(&mut memory).unwrap()), 96);
}

#[test]
fn what_a_killed_move_has_left_is_one_grid_again() {
    let mut memory = memory();
    whole(&mut memory, 8);
    memory.message(DEVICE, b"@stats_create 0+48 4 dmfilemap grid=00000005.00000001.").unwrap();
    memory.message(DEVICE, b"@stats_create 0+48 4 dmfilemap -").unwrap();
    let grid = Grid::find(&mut memory, DEVICE, 2, false, &[]).unwrap();
    assert_eq!(grid.patches().len(), 1);
    assert_eq!(rows(&mut memory), [(0, "0+96".to_owned()), (2, "0+48".to_owned())], "not ours");
}

#[test]
fn a_large_grid_is_read_in_parts() {
    let mut memory = Memory::new();
    memory.add_device(DEVICE, 10_000, "disk", "");
    let mut grid = Grid::find(&mut memory, DEVICE, 1, false, &[]).unwrap();
    grid.change(&mut memory, &create(&[(0, 10_000, 1)]), 1).unwrap();
    memory.io(DEVICE, extent(2040, 5000), true);
    let counted = grid.read(&mut memory).unwrap();
    assert_eq!((counted.len(), sectors(&counted)), (5000, 5000));
    assert_eq!(grid.read(&mut memory).unwrap(), []);
}
