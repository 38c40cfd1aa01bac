//! Limits on regions: extents merged, regions folded, by whole updates and with any message the
//! last one.
//!
//! What a group may show of a file under limits is worked out here by other means than the program
//! does. How few foreign sectors there can be, and how few creates, is tested beside the planner.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/cut.rs"]
mod cut;
#[path = "support/dialects.rs"]
mod dialects;

use std::collections::BTreeMap;
use std::io;

use cut::{Cut, DEVICE, listing_of, table};
use dialects::{Reader, groups, rows};
use dmfilemapd::dm::{Device, Dm, Reply};
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::group::Mark;
use dmfilemapd::kernel::Memory;
use dmfilemapd::ledger::{Holder, Ledger};
use dmfilemapd::shape::{Limits, Want};
use dmfilemapd::update::{
    ANCHOR, Error, Group, Passage, Template, Updated, adopt, establish_counted, look, read, update,
    update_counted,
};
use proptest::prelude::*;

const MARK: Mark = Mark { key: 0x5eed, nonce: 1 };
const CLAIM: u32 = 0xa;

/// Sectors in a cell. Maps are rows of cells.
const CELL: u64 = 8;

fn map(cells: u32) -> Extents {
    wide_map(cells.into())
}

fn wide_map(cells: u64) -> Extents {
    let set = (0..64).filter(|cell| cells >> cell & 1 == 1);
    set.filter_map(|cell: u64| Extent::new(cell * CELL, CELL)).collect()
}

fn limits(max_regions: u32, fold_above: Option<u32>) -> Limits {
    Limits { max_regions, fold_above }
}

fn template() -> Template {
    let (program_id, alias) = (b"dmstats".to_vec(), b"vm.img".to_vec());
    Template { program_id, alias, precise: false, bounds: Vec::new() }
}

fn make(dm: impl Dm, extents: &Extents, limits: Limits) -> Updated {
    let want = Want { extents, limits };
    let (_, made) = establish_counted(dm, DEVICE, &template(), MARK, CLAIM, want);
    made.unwrap().expect("there is an extent")
}

fn follow(
    dm: impl Dm,
    group: Group,
    extents: &Extents,
    limits: Limits,
) -> (Option<Passage>, Result<Updated, Error>) {
    update_counted(dm, DEVICE, group, Want { extents, limits })
}

/// A group as both generations of LVM2 see it.
struct Seen {
    regions: usize,
    map: Extents,
}

/// The groups of ours, each of whose regions overlaps no other.
fn seen(memory: &mut Memory) -> Vec<Seen> {
    let listing = listing_of(memory);
    let told = || String::from_utf8_lossy(&listing).into_owned();
    let [old, new] = Reader::BOTH
        .map(|reader| groups(reader, &listing).unwrap_or_else(|why| panic!("{why}\n{}", told())));
    assert!(old.values().map(|it| &it.members).eq(new.values().map(|it| &it.members)));
    let ours = new.into_values().filter(|group| group.user.starts_with(b"fm="));
    let seen = |group: dialects::Group| {
        let extents: Vec<Extent> = group
            .extents
            .iter()
            .filter(|(start, _)| *start != ANCHOR)
            .map(|(start, end)| Extent::between(*start, *end).unwrap())
            .collect();
        let sectors: u64 = extents.iter().map(|extent| extent.len()).sum();
        let map: Extents = extents.into_iter().collect();
        assert_eq!(map.sectors(), sectors, "counted twice\n{}", told());
        Seen { regions: group.members.len(), map }
    };
    ours.map(seen).collect()
}

/// The most sectors that may be taken in: the smallest gaps, for an eighth fewer regions.
fn most_foreign(want: &Extents, max: usize) -> u64 {
    let gaps = want.as_slice().windows(2).map(|pair| pair[1].start() - pair[0].end());
    let mut gaps: Vec<u64> = gaps.collect();
    gaps.sort_unstable();
    gaps[..want.len().saturating_sub((max - max / 8).max(1))].iter().sum()
}

/// Whether a group may show a file so.
fn is_allowed(seen: &Seen, want: &Extents, limits: Limits) -> bool {
    let max = usize::try_from(limits.max_regions).unwrap();
    let covers = want.without(&seen.map).is_empty();
    let foreign = seen.map.sectors().wrapping_sub(want.sectors());
    // No two regions in these tests differ by more powers of two.
    let most = limits.fold_above.map_or(max, |above| seen.map.len().max(1) + above as usize + 5);
    covers && seen.regions <= max.min(most) && foreign <= most_foreign(want, max)
}

/// A group that shows a map, with neighbours.
struct Stage {
    memory: Memory,
    theirs: BTreeMap<u32, Vec<u8>>,
    group: Group,
    /// What it shows.
    shown: Extents,
}

/// How a group came to be.
#[derive(Clone, Copy, Debug)]
enum Past {
    /// Within these limits, at once.
    Limited,
    /// Cell by cell, without limits; one region in so many has counted something.
    Grown(u32),
}

impl Stage {
    fn new(cells: u32, past: Past, limits: Limits) -> Stage {
        let neighbours = b"0: 4000+8 8 other theirs\n2: 4008+8 8 dmstats theirs\n";
        let mut memory = table(neighbours);
        let mut group = None;
        match past {
            Past::Limited => group = Some(make(&mut memory, &map(cells), limits).group),
            Past::Grown(counting) => {
                for cell in (0..32).filter(|cell| cells >> cell & 1 == 1) {
                    let so_far = map(cells & ((2 << cell) - 1));
                    let updated = match group {
                        None => make(&mut memory, &so_far, Limits::NONE),
                        Some(group) => update(&mut memory, DEVICE, group, &so_far).unwrap(),
                    };
                    group = Some(updated.group);
                    if cell % counting == 0 {
                        memory.io(DEVICE, map(1 << cell).as_slice()[0], true);
                    }
                }
            }
        }
        let theirs = rows(neighbours).unwrap().into_iter();
        let theirs = theirs.map(|row| (row.id, row.line.to_vec())).collect();
        let shown = seen(&mut memory).remove(0).map;
        Stage { memory, theirs, group: group.expect("a map is not empty"), shown }
    }

    fn cut(&self) -> Cut {
        Cut::new(&self.memory, &self.theirs)
    }

    fn check(&self, cut: &mut Cut, want: &Extents, limits: Limits) {
        let groups = seen(&mut cut.memory);
        let told = |cut: &mut Cut| {
            let listing = String::from_utf8(listing_of(&mut cut.memory)).unwrap();
            format!("{want:?} {limits:?}, after\n{}there is\n{listing}", cut.story())
        };
        assert!(!groups.is_empty(), "no group: {}", told(cut));
        for group in groups {
            let allowed = group.map == self.shown || is_allowed(&group, want, limits);
            assert!(allowed, "{:?}: {}", group.map, told(cut));
        }
        let listing = listing_of(&mut cut.memory);
        let rows = rows(&listing).unwrap();
        for (id, row) in &self.theirs {
            assert!(rows.iter().any(|kept| kept.id == *id && kept.line == row.as_slice()));
        }
    }

    /// After an update that was not cut there is one group, which shows the map, and nothing more.
    fn check_end(&self, cut: &mut Cut, updated: &Updated, want: &Extents, limits: Limits) {
        self.check(cut, want, limits);
        let story = cut.story();
        let [group] = &seen(&mut cut.memory)[..] else { panic!("several groups after\n{story}") };
        assert!(is_allowed(group, want, limits), "{want:?} {limits:?} {:?}\n{story}", group.map);
        let listing = listing_of(&mut cut.memory);
        let ours = rows(&listing).unwrap().len() - self.theirs.len();
        assert_eq!((updated.members, group.regions), (ours, ours), "after\n{story}");
        assert_eq!(updated.foreign, group.map.sectors() - want.sectors());
        assert_eq!(updated.fingerprint, group.map.fingerprint());
        let (stands, _) = look(&mut cut.memory, DEVICE, &[updated.group]).unwrap();
        let stands = format!("{stands:?}");
        assert!(stands.contains(&format!("{:?}", updated.fingerprint)), "{stands}");
        let before = listing_of(&mut cut.memory);
        let again = follow(&mut *cut, updated.group, want, limits).1.unwrap();
        assert_eq!((again.created, again.deleted), (0, 0), "it does not come to rest: {story}");
        assert_eq!(listing_of(&mut cut.memory), before);
    }
}

/// Every change of small maps, within these limits.
fn for_each_change(cells: u32, within: &[Limits], mut check: impl FnMut(&Stage, &Extents, Limits)) {
    for old in 1..1 << cells {
        for past in [Past::Limited, Past::Grown(2)] {
            for &limits in within {
                let stage = Stage::new(old, past, limits);
                (0..1 << cells).for_each(|new| check(&stage, &map(new), limits));
            }
        }
    }
}

#[test]
fn a_group_keeps_to_its_limits_shows_what_they_allow_and_comes_to_rest() {
    let within = [limits(1, None), limits(2, None), limits(2, Some(0)), limits(9, Some(0))];
    for_each_change(5, &within, |stage, want, limits| {
        let mut cut = stage.cut();
        let updated = follow(&mut cut, stage.group, want, limits).1.unwrap();
        stage.check_end(&mut cut, &updated, want, limits);
    });
}

/// Whoever comes after a cut: the same process, or the next one.
fn repair(cut: &mut Cut, stage: &Stage, want: &Extents, limits: Limits, next: bool) -> Updated {
    let group = match next {
        false => stage.group,
        true => {
            let listing = listing_of(&mut cut.memory);
            let groups = groups(Reader::New, &listing).unwrap();
            let ours = groups.iter().find(|(_, group)| group.user.starts_with(b"fm="));
            let id = dmfilemapd::message::RegionId(*ours.expect("checked before").0);
            adopt(&mut *cut, DEVICE, id, Mark { nonce: 2, ..MARK }, 0xb).unwrap()
        }
    };
    follow(&mut *cut, group, want, limits).1.unwrap()
}

#[test]
fn any_message_of_a_merge_or_a_fold_may_be_the_last() {
    let mut runs = 0;
    for_each_change(4, &[limits(2, Some(0)), limits(1, None)], |stage, want, limits| {
        let mut whole = stage.cut();
        follow(&mut whole, stage.group, want, limits).1.unwrap();
        for fuel in 0..whole.log.len() {
            for (applied, next) in [(true, true), (true, false), (false, false)] {
                let mut cut = Cut { fuel: Some(fuel), applied, ..stage.cut() };
                let _ = follow(&mut cut, stage.group, want, limits); // the process is dead
                stage.check(&mut cut, want, limits);
                let mut healed = cut.afresh();
                let updated = repair(&mut healed, stage, want, limits, next);
                stage.check_end(&mut healed, &updated, want, limits);
                runs += 1;
            }
        }
    });
    assert!(runs > 10_000, "{runs}");
}

#[test]
fn without_anybody_who_keeps_the_counts_nothing_is_folded() {
    let stage = Stage::new(0b1111, Past::Grown(1), Limits::NONE);
    let mut memory = stage.memory.clone();
    let want = Want { extents: &map(0b1_1111), limits: limits(9, Some(0)) };
    let updated = update(&mut memory, DEVICE, stage.group, want).unwrap();
    assert_eq!((updated.members, updated.deleted), (5, 0));
    let want = Want { extents: &map(0b1_1111), limits: limits(3, Some(0)) };
    let updated = update(&mut memory, DEVICE, stage.group, want).unwrap();
    assert_eq!(updated.members, 3, "but a limit is a limit");
}

#[test]
fn a_region_that_counted_nothing_is_replaced_when_the_file_grows_and_another_added_to() {
    let limits = limits(9, Some(5));
    let stage = Stage::new(0b1, Past::Limited, limits);
    let mut cut = stage.cut();
    let two = follow(&mut cut, stage.group, &map(0b11), limits).1.unwrap();
    assert_eq!(two.members, 2, "to replace the leader takes a create more: it stays");
    let grown = follow(&mut cut, two.group, &map(0b111), limits).1.unwrap();
    assert_eq!((grown.members, grown.created, grown.deleted), (2, 1, 1));
    cut.memory.io(DEVICE, map(0b100).as_slice()[0], false);
    let grown = follow(&mut cut, two.group, &map(0b1111), limits).1.unwrap();
    assert_eq!((grown.members, grown.created, grown.deleted), (3, 1, 0));
}

/// A table with I/O on some sectors whenever a region was created.
struct Busy<'a>(&'a mut Memory, Extent);

impl Dm for Busy<'_> {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        let reply = self.0.message(device, text);
        if text.starts_with(b"@stats_create") {
            self.0.io(device, self.1, true);
        }
        reply
    }
}

#[test]
fn what_is_counted_while_regions_are_created_is_no_reason_to_decide_otherwise() {
    // Two extents of two regions each, of which the second has counted; one of them is too many.
    let mut stage = Stage::new(0b110_1101, Past::Grown(5), Limits::NONE);
    let [idle, _] = [0b1100, 0b110_0000].map(|cells| map(cells).as_slice()[0]);
    let mut busy = Busy(&mut stage.memory, idle);
    let want = map(0b110_1101);
    let updated = follow(&mut busy, stage.group, &want, limits(9, Some(1))).1.unwrap();
    assert_eq!((updated.members, updated.created, updated.deleted), (4, 1, 2));
    let listing = String::from_utf8(listing_of(&mut stage.memory)).unwrap();
    assert!(listing.contains(&format!(" {idle} ")), "{listing}");
}

/// A table that notes what it is told.
struct Notes<'a>(&'a mut Memory, Vec<String>);

impl Dm for Notes<'_> {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        let words = String::from_utf8_lossy(text);
        self.1.push(words.split(' ').take(2).collect::<Vec<_>>().join(" "));
        self.0.message(device, text)
    }

    fn hurry(&mut self) {
        self.1.push("in a hurry".to_owned());
    }
}

#[test]
fn only_what_takes_the_place_of_a_leader_that_was_deleted_is_created_in_a_hurry() {
    let mut stage = Stage::new(0b1, Past::Limited, Limits::NONE);
    let mut notes = Notes(&mut stage.memory, Vec::new());
    let updated = follow(&mut notes, stage.group, &map(0b1010), Limits::NONE).1.unwrap();
    assert_eq!(updated.group.id, stage.group.id, "it has taken its id back");
    let Notes(_, said) = notes;
    let at = said.iter().position(|said| said == "in a hurry").unwrap();
    assert_eq!(said[at - 1], format!("@stats_delete {}", stage.group.id));
    assert!(said[at + 1].starts_with("@stats_create "), "{said:?}");
    assert_eq!(said.iter().filter(|said| *said == "in a hurry").count(), 1, "{said:?}");
}

fn holder() -> Holder {
    Holder { device: "LVM-vm".into(), key: MARK.key, nonce: None }
}

fn total(ledger: &Ledger) -> u64 {
    ledger.account(&holder()).map_or(0, |account| account.counters.written_bytes / 512)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A file changes by an extent at a time, and is written to.
    #[test]
    fn what_is_folded_or_merged_loses_no_count_and_one_change_takes_few_creates(
        (max, above) in (1..14u32, prop::option::of(0..5u32)),
        changes in prop::collection::vec((0..60u32, 0..60u64), 10..80),
    ) {
        let limits = limits(max, above);
        let mut memory = table(b"");
        let mut cells = 0xffu64;
        let mut group = make(&mut memory, &wide_map(cells), limits).group;
        let (mut ledger, mut written) = (Ledger::default(), 0);
        for (cell, io) in changes {
            cells ^= 1 << cell;
            let want = wide_map(cells);
            let (passage, updated) = follow(&mut memory, group, &want, limits);
            let updated = updated.unwrap();
            ledger.pass(&holder(), &passage.unwrap(), 0);
            group = updated.group;
            prop_assert!(updated.members <= usize::try_from(max).unwrap());
            // A piece for each side of the change, one for the leader, two for gaps that change.
            prop_assert!(updated.created <= 6, "{} of {:?}", updated.created, limits);
            let [group] = &seen(&mut memory)[..] else { panic!("one group") };
            let (map, shown) = (want, &group.map);
            prop_assert!(is_allowed(group, &map, limits), "{:?} as {:?}", map, shown);
            let extent = Extent::new(io * CELL, CELL).unwrap();
            memory.io(DEVICE, extent, true);
            if shown.around(extent).is_some() {
                written += CELL;
            }
        }
        let (tallies, _) = read(&mut memory, DEVICE, &[group]).unwrap();
        ledger.absorb(&holder(), group.mark, &tallies[0], 0);
        prop_assert_eq!(total(&ledger), written);
    }
}

#[test]
fn a_file_that_grows_a_thousand_times_has_few_regions_and_one_create_each_time() {
    let limits = limits(1000, Some(8));
    let mut memory = table(b"");
    let extents = |len: u64| -> Extents { Extent::new(4096, len * CELL).into_iter().collect() };
    let mut group = make(&mut memory, &extents(1), limits).group;
    let mut ledger = Ledger::default();
    let (mut regions, mut created) = (0, 0);
    for len in 2..=1000 {
        let (passage, updated) = follow(&mut memory, group, &extents(len), limits);
        let updated = updated.unwrap();
        ledger.pass(&holder(), &passage.unwrap(), 0);
        group = updated.group;
        (regions, created) = (updated.members.max(regions), created + updated.created);
        memory.io(DEVICE, Extent::new(4096, len * CELL).unwrap(), true);
    }
    assert!(regions <= 9 + 10, "{regions}");
    assert!(created <= 999 + 10, "{created}: the leader is replaced when the file has doubled");
    let (tallies, _) = read(&mut memory, DEVICE, &[group]).unwrap();
    ledger.absorb(&holder(), group.mark, &tallies[0], 0);
    assert_eq!(total(&ledger), (2..=1000).sum::<u64>() * CELL);
}
