//! Totals against an oracle that sees every I/O: over remaps, kills, reboots and whatever others
//! do to the regions, they never go back, never count what is another's, and lose no more than is
//! said.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/dialects.rs"]
mod dialects;

use std::collections::BTreeSet;
use std::io;

use dialects::{Reader, groups, rows};
use dmfilemapd::counters::{Counters, Reading};
use dmfilemapd::dm::{Device, Dm, Reply};
use dmfilemapd::extent::{Extent, Extents, SECTOR_BYTES};
use dmfilemapd::group::Mark;
use dmfilemapd::kernel::Memory;
use dmfilemapd::ledger::{Holder, Ledger, Saved};
use dmfilemapd::message::RegionId;
use dmfilemapd::update::{self, Count, Group, Tally, Template};
use nix::errno::Errno;
use proptest::prelude::*;

const DEVICE: Device = Device { major: 253, minor: 7 };
const KEY: u64 = 0x5eed;
const CLAIM: u32 = 1;

/// Where things are to be, in slots of eight sectors.
type Runs = Vec<(u64, u64)>;

#[derive(Clone, Debug)]
enum Op {
    /// I/O by whoever, on these slots.
    Io(u64, u64, bool),
    /// The file lies elsewhere, and the service follows.
    Update(Runs),
    /// The same, with I/O before each of the messages: on these slots.
    BusyUpdate(Runs, Vec<(u64, u64)>),
    /// Another process updates the group.
    ForeignUpdate(Runs),
    /// The service is killed during an update, when so many messages are answered.
    CutUpdate(Runs, usize),
    Read,
    Save,
    Kill,
    /// Somebody sets a region to zero.
    Clear(usize),
    /// A neighbour creates a region on these slots, or deletes his lowest.
    Neighbour(u64, u64),
    NeighbourLeaves,
    /// Somebody deletes the group.
    Vandal,
    Reboot,
}

fn runs() -> impl Strategy<Value = Runs> {
    prop::collection::vec((0..40_u64, 1..14_u64), 0..4)
}

fn quiet_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..50_u64, 1..9_u64, any::<bool>())
            .prop_map(|(at, len, write)| Op::Io(at, len, write)),
        4 => runs().prop_map(Op::Update),
        1 => runs().prop_map(Op::ForeignUpdate),
        3 => Just(Op::Read),
        2 => Just(Op::Save),
        1 => Just(Op::Kill),
        1 => (0..50_u64, 1..9_u64).prop_map(|(at, len)| Op::Neighbour(at, len)),
        1 => Just(Op::NeighbourLeaves),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => quiet_op(),
        1 => (0..6_usize).prop_map(Op::Clear),
        1 => (runs(), prop::collection::vec((0..50_u64, 1..9_u64), 1..12))
            .prop_map(|(want, io)| Op::BusyUpdate(want, io)),
        1 => (runs(), 0..20_usize).prop_map(|(want, fuel)| Op::CutUpdate(want, fuel)),
        1 => Just(Op::Vandal),
        1 => Just(Op::Reboot),
    ]
}

fn extent((at, len): (u64, u64)) -> Extent {
    Extent::new(at * 8, len * 8).unwrap()
}

fn map(runs: &Runs) -> Extents {
    runs.iter().map(|run| extent(*run)).collect()
}

/// Sectors that the extent and the map have in common.
fn common(map: &Extents, with: Extent) -> u64 {
    let overlap =
        |it: &Extent| it.end().min(with.end()).saturating_sub(it.start().max(with.start()));
    map.as_slice().iter().map(overlap).sum()
}

/// A table that does I/O before each message, until its power fails.
struct Busy<'a> {
    memory: &'a mut Memory,
    io: Vec<(u64, u64)>,
    fuel: usize,
}

impl Dm for Busy<'_> {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        self.fuel = self.fuel.checked_sub(1).ok_or(Errno::EIO)?;
        if let Some(run) = self.io.pop() {
            self.memory.io(device, extent(run), true);
        }
        self.memory.message(device, text)
    }
}

struct World {
    memory: Memory,
    nonce: u32,
    group: Option<Group>,
    ledger: Ledger,
    saved: String,
    neighbours: BTreeSet<u32>,
    /// Sectors read and written where the group was.
    truth: u64,
    /// Sectors of I/O during updates: some of it may be counted.
    perhaps: u64,
    /// What may be missing.
    slack: u64,
    /// Counted since the last reading, and since the one that was saved last.
    unread: u64,
    unsaved: u64,
    /// Regions were deleted since then.
    deleted: bool,
    /// Where the file lies.
    want: Extents,
    /// An update was cut: until the next one there may be two groups, or regions in none.
    cut: bool,
    /// The last total that was seen.
    seen: u64,
    now: u64,
}

impl World {
    fn new() -> World {
        let mut world = World {
            memory: Memory::new(),
            nonce: 0,
            group: None,
            ledger: Ledger::default(),
            saved: serde_json::to_string(&Ledger::default().saved()).unwrap(),
            neighbours: BTreeSet::new(),
            truth: 0,
            perhaps: 0,
            slack: 0,
            unread: 0,
            unsaved: 0,
            deleted: false,
            want: Extents::default(),
            cut: false,
            seen: 0,
            now: 1000,
        };
        world.memory.add_device(DEVICE, 1 << 20, "vm", "LVM-vm");
        world
    }

    fn send(&mut self, text: &str) -> String {
        String::from_utf8(self.memory.message(DEVICE, text.as_bytes()).unwrap().text).unwrap()
    }

    /// What the group counts, as LVM2 reads it.
    fn covered(&mut self) -> Extents {
        let listing = self.send("@stats_list");
        let groups = groups(Reader::New, listing.as_bytes()).unwrap();
        let extents = groups.into_values().flat_map(|group| group.extents);
        extents.map(|(start, end)| Extent::between(start, end).unwrap()).collect()
    }

    fn holder() -> Holder {
        Holder { device: "LVM-vm".into(), key: KEY, nonce: None }
    }

    fn total(&self) -> u64 {
        let account = self.ledger.account(&Self::holder());
        let bytes = account.map(|it| it.counters.read_bytes + it.counters.written_bytes);
        bytes.unwrap_or(0) / SECTOR_BYTES
    }

    fn io(&mut self, at: u64, len: u64, write: bool) {
        let counted = common(&self.covered(), extent((at, len)));
        self.memory.io(DEVICE, extent((at, len)), write);
        self.truth += counted;
        if self.cut {
            self.slack += counted;
            self.perhaps += len * 8; // a region in no group may be taken into it unread
        }
        self.unread += counted;
        self.unsaved += counted;
    }

    /// The service brings the group up to date, or makes it.
    fn update(&mut self, want: &Extents, io: Vec<(u64, u64)>, fuel: usize) {
        let (mark, now) = (Mark { key: KEY, nonce: self.nonce }, self.now);
        let alias = b"vm".to_vec();
        let program_id = b"dmstats".to_vec();
        let template = Template { program_id, alias, precise: false, bounds: Vec::new() };
        let mut busy = Busy { memory: &mut self.memory, io, fuel };
        let (passage, updated) = match self.group {
            Some(group) => {
                let (passage, updated) = update::update_counted(&mut busy, DEVICE, group, want);
                (passage, updated.map(Some))
            }
            None => update::establish_counted(&mut busy, DEVICE, &template, mark, CLAIM, want),
        };
        if let Some(passage) = passage {
            self.deleted |= !passage.regions.is_empty();
            self.ledger.pass(&Self::holder(), &passage, now);
        }
        self.want.clone_from(want);
        match updated {
            Ok(made) => {
                self.cut = false;
                self.group = made.map(|updated| updated.group);
            }
            Err(update::Error::Gone) => self.group = None,
            Err(error) => assert!(fuel < usize::MAX, "{error}"),
        }
    }

    fn busy_update(&mut self, want: &Extents, io: Vec<(u64, u64)>) {
        let both: Extents =
            self.covered().as_slice().iter().chain(want.as_slice()).copied().collect();
        let counted: u64 = io.iter().map(|run| common(&both, extent(*run))).sum();
        self.perhaps += counted;
        self.unread += counted;
        self.unsaved += counted;
        self.update(want, io, usize::MAX);
    }

    fn read(&mut self) {
        if let Some(group) = self.group {
            let (tallies, _) = update::read(&mut self.memory, DEVICE, &[group]).unwrap();
            self.ledger.absorb(&Self::holder(), group.mark, &tallies[0], self.now);
            self.unread = 0;
        }
    }

    fn save(&mut self) {
        self.saved = serde_json::to_string(&self.ledger.saved()).unwrap();
        self.unsaved = self.unread;
        self.deleted = false;
    }

    /// The next service knows what was saved. What others can delete meanwhile may be lost.
    fn restart(&mut self, lost: u64) {
        let saved: Saved = serde_json::from_str(&self.saved).unwrap();
        self.ledger = saved.try_into().unwrap();
        assert!(self.total() <= self.seen, "it was saved");
        self.slack += lost;
        self.unread = self.unsaved;
        self.seen = self.total();
        self.group = None; // the next update finds it
    }

    /// Sectors that a region has counted since it was last set to zero.
    fn counted(&mut self, id: u32) -> u64 {
        let row = self.send(&format!("@stats_print {id}"));
        let number = |at: usize| row.split(' ').nth(at).unwrap().parse::<u64>().unwrap();
        number(3) + number(7)
    }

    fn carry_out(&mut self, op: &Op) {
        self.now += 1;
        match op {
            Op::Io(at, len, write) => self.io(*at, *len, *write),
            Op::Update(want) => self.update(&map(want), Vec::new(), usize::MAX),
            Op::BusyUpdate(want, io) => self.busy_update(&map(want), io.clone()),
            Op::ForeignUpdate(want) => {
                self.slack += self.unread;
                self.deleted = true;
                if let Some(group) = self.group {
                    update::update(&mut self.memory, DEVICE, group, &map(want)).ok();
                }
            }
            Op::CutUpdate(want, fuel) => {
                self.cut = true;
                self.update(&map(want), Vec::new(), *fuel);
                self.restart(self.unsaved);
            }
            Op::Read => self.read(),
            Op::Save => self.save(),
            Op::Kill => self.restart(if self.deleted { self.unsaved } else { 0 }),
            Op::Clear(at) => {
                let listing = self.send("@stats_list");
                let ids: Vec<u32> =
                    rows(listing.as_bytes()).unwrap().iter().map(|row| row.id).collect();
                if let Some(id) = ids.get(*at) {
                    self.slack += self.counted(*id);
                    self.send(&format!("@stats_print_clear {id}"));
                }
            }
            Op::Neighbour(at, len) => {
                let extent = extent((*at, *len));
                let id = self.send(&format!("@stats_create {extent} /1 0 dmstats theirs"));
                self.neighbours.insert(id.parse().unwrap());
            }
            Op::NeighbourLeaves => {
                if let Some(id) = self.neighbours.pop_first() {
                    self.send(&format!("@stats_delete {id}"));
                }
            }
            Op::Vandal => self.vandal(),
            Op::Reboot => {
                self.memory.add_device(DEVICE, 1 << 20, "vm", "LVM-vm");
                self.neighbours.clear();
                self.restart(self.unsaved);
                self.nonce += 1;
            }
        }
    }

    fn vandal(&mut self) {
        let listing = self.send("@stats_list");
        for row in rows(listing.as_bytes()).unwrap() {
            if !self.neighbours.contains(&row.id) {
                self.send(&format!("@stats_delete {}", row.id));
            }
        }
        self.slack += self.unread;
        self.deleted = true;
        self.nonce += 1;
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let total = self.total();
        prop_assert!(total >= self.seen, "it went back from {} to {total}", self.seen);
        let most = self.truth + self.perhaps;
        prop_assert!(total <= most, "{total} of {} and perhaps {}", self.truth, self.perhaps);
        self.seen = total;
        Ok(())
    }

    /// After a last reading nothing is missing that is not said to be.
    fn judge(&mut self) -> Result<(), TestCaseError> {
        self.update(&self.want.clone(), Vec::new(), usize::MAX);
        self.read();
        self.check()?;
        let (total, least) = (self.total(), self.truth.saturating_sub(self.slack));
        prop_assert!(total >= least, "{total} of {}, slack {}", self.truth, self.slack);
        Ok(())
    }
}

const MARK: Mark = Mark { key: KEY, nonce: 1 };

/// A region of two slots that has written so many sectors.
fn count(id: u32, at: u64, sectors: u64) -> Count {
    let written_bytes = sectors * SECTOR_BYTES;
    let counters = Counters { written_bytes, ..Counters::default() };
    let reading = Reading { counters, ..Reading::default() };
    Count { id: RegionId(id), extent: extent((at, 2)), reading, bounds_ns: Vec::new() }
}

fn tally(members: &[Count], others: &[&Count]) -> Tally {
    let others = others.iter().map(|count| (count.id, count.extent)).collect();
    Tally { members: members.to_vec(), others }
}

fn written(ledger: &Ledger) -> u64 {
    ledger.account(&World::holder()).unwrap().counters.written_bytes / SECTOR_BYTES
}

#[test]
fn what_a_region_counts_while_it_is_no_member_is_not_added() {
    let (mut ledger, holder) = (Ledger::default(), World::holder());
    let mut absorb = |tally: &Tally| {
        ledger.absorb(&holder, MARK, tally, 0);
        written(&ledger)
    };
    assert_eq!(absorb(&tally(&[count(0, 0, 5), count(1, 8, 7)], &[])), 12);
    assert_eq!(absorb(&tally(&[count(0, 0, 5)], &[&count(1, 8, 0)])), 12);
    assert_eq!(absorb(&tally(&[count(0, 0, 6), count(1, 8, 90)], &[])), 13, "once more a member");
    assert_eq!(absorb(&tally(&[count(0, 0, 6), count(1, 8, 91)], &[])), 14);
    assert_eq!(absorb(&tally(&[count(0, 0, 6)], &[])), 14, "it is gone");
    assert_eq!(absorb(&tally(&[count(0, 0, 6), count(1, 8, 3)], &[])), 17, "and is made anew");
}

#[test]
fn what_a_cut_update_has_created_counts_from_when_it_is_named() {
    let mut world = World::new();
    world.update(&map(&vec![(0, 4), (20, 4)]), Vec::new(), usize::MAX);
    world.io(0, 4, true);
    world.read();
    // Listing, and a create: then it is killed.
    world.update(&map(&vec![(0, 2), (20, 4)]), Vec::new(), 2);
    let listing = world.send("@stats_list");
    assert_eq!(listing.lines().count(), 3, "{listing}");
    world.io(0, 2, true); // counted by the member and by the orphan
    world.update(&map(&vec![(0, 2), (20, 4)]), Vec::new(), usize::MAX);
    world.read();
    assert_eq!((world.total(), world.truth), (48, 48));
    world.io(0, 1, true);
    world.read();
    assert_eq!((world.total(), world.truth), (56, 56));
}

#[test]
fn what_an_orphan_has_counted_by_the_time_it_is_named_may_be_anybodys() {
    let mut world = World::new();
    world.update(&map(&vec![(0, 4)]), Vec::new(), usize::MAX);
    world.update(&map(&vec![(0, 4), (20, 4)]), Vec::new(), 2);
    assert_eq!(world.send("@stats_list").lines().count(), 2, "it was created");
    world.io(20, 4, true);
    world.update(&map(&vec![(0, 4), (20, 4)]), Vec::new(), usize::MAX);
    world.io(20, 1, true);
    world.read();
    assert_eq!((world.total(), world.truth), (8, 8));
}

#[test]
fn a_region_whose_deletion_failed_is_not_counted_again() {
    let both = map(&vec![(0, 4), (20, 4)]);
    for by_another in [false, true] {
        let mut world = World::new();
        world.update(&both, Vec::new(), usize::MAX);
        world.io(20, 4, true);
        // Listing, mark of the doomed is there, commit, print: the delete is refused.
        world.update(&map(&vec![(0, 4)]), Vec::new(), 3);
        assert_eq!(world.send("@stats_list").lines().count(), 2);
        assert_eq!((world.total(), world.truth), (32, 32));
        world.memory.io(DEVICE, extent((20, 4)), true); // whoever has these sectors now
        if by_another {
            let group = world.group.unwrap();
            update::update(&mut world.memory, DEVICE, group, &both).unwrap();
        } else {
            world.read();
            world.update(&both, Vec::new(), usize::MAX);
        }
        world.read();
        assert_eq!(world.total(), 32);
        world.io(20, 1, true);
        world.read();
        assert_eq!(world.total(), 40);
    }
}

#[test]
fn a_group_made_anew_with_other_bounds_has_a_histogram_of_its_own() {
    let (mut ledger, holder) = (Ledger::default(), World::holder());
    let with = |bounds_ns: &[u64], bins: &[u64]| {
        let mut count = count(0, 0, 1);
        count.bounds_ns = bounds_ns.to_vec();
        count.reading.bins = bins.to_vec();
        tally(&[count], &[])
    };
    let mut histogram = |mark, tally: &Tally| {
        ledger.absorb(&holder, mark, tally, 0);
        let account = ledger.account(&holder).unwrap();
        (account.histogram.bounds_ns.clone(), account.histogram.counts.clone())
    };
    assert_eq!(histogram(MARK, &with(&[10], &[1, 2])), (vec![10], vec![1, 2]));
    let next = Mark { nonce: 2, ..MARK };
    assert_eq!(histogram(next, &with(&[10], &[1, 0])), (vec![10], vec![2, 2]));
    let next = Mark { nonce: 3, ..MARK };
    assert_eq!(histogram(next, &with(&[20, 30], &[0, 1, 0])), (vec![20, 30], vec![0, 1, 0]));
    assert_eq!(written(&ledger), 3, "all else goes on");
}

#[test]
fn accounts_of_files_that_left_are_closed_when_they_are_old_or_too_many() {
    let holder = |key| Holder { key, ..World::holder() };
    let filled = || {
        let mut ledger = Ledger::default();
        for key in 0..10 {
            let mark = Mark { key, ..MARK };
            ledger.absorb(&holder(key), mark, &tally(&[count(0, 0, 1)], &[]), 0);
            if key > 0 {
                ledger.let_go(&holder(key), 100 * key, key != 9);
            }
        }
        ledger
    };
    let left = |ledger: &Ledger| -> Vec<u64> {
        (0..10).filter(|key| ledger.account(&holder(*key)).is_some()).collect()
    };
    let mut ledger = filled();
    assert_eq!(left(&ledger), [0, 1, 2, 3, 4, 5, 6, 7, 8], "9 is no more");
    ledger.purge(300, 100);
    assert_eq!(left(&ledger), [0, 3, 4, 5, 6, 7, 8]);
    ledger.follow(&holder(4));
    ledger.purge(0, 2);
    assert_eq!(left(&ledger), [0, 4, 7, 8]);
}

#[test]
fn what_is_no_ledger_is_refused() {
    let read = |text: &str| -> Result<Ledger, String> {
        serde_json::from_str::<Saved>(text).map_err(|error| error.to_string())?.try_into()
    };
    let (mut ledger, holder) = (Ledger::default(), World::holder());
    ledger.absorb(&holder, MARK, &tally(&[count(0, 0, 1)], &[&count(4, 4, 0)]), 7);
    let text = serde_json::to_string(&ledger.saved()).unwrap();
    assert_eq!(read(&text), Ok(ledger));
    let refused = [
        (text.replace("\"version\":1", "\"version\":2"), "version 2"),
        (text.replace("fm=", "xx="), "is no mark"),
        (text.replace("\"len\":16", "\"len\":0"), "is no extent"),
        (text[..text.len() / 2].to_owned(), "EOF"),
    ];
    for (text, why) in refused {
        let error = read(&text).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Without anybody who sets counters to zero or deletes what is ours: every sector is there.
    #[test]
    fn nothing_is_lost_over_remaps_and_restarts(
        ops in prop::collection::vec(quiet_op(), 0..40),
    ) {
        let mut world = World::new();
        for op in &ops {
            // Of what another process deletes the last reading is known, and of what this one has
            // deleted what was saved since.
            if matches!(op, Op::ForeignUpdate(_)) {
                world.read();
            }
            world.carry_out(op);
            if matches!(op, Op::Update(_) | Op::ForeignUpdate(_)) {
                world.save();
            }
            world.check()?;
        }
        world.judge()?;
        prop_assert_eq!(world.total(), world.truth);
    }

    #[test]
    fn whatever_others_do_totals_rise_and_are_never_too_much(
        ops in prop::collection::vec(any_op(), 0..50),
    ) {
        let mut world = World::new();
        for op in &ops {
            world.carry_out(op);
            world.check()?;
        }
        world.judge()?;
    }
}
