//! Orphans go, and nothing else, whatever updates are under way.
//!
//! Tables are small, so all cases come: every cut of an update, every cut of the deletion after it,
//! and every order in which the messages and the turns of the two can be.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/cut.rs"]
mod cut;
#[path = "support/dialects.rs"]
mod dialects;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;

use cut::{Cut, DEVICE, listing_of, send, table};
use dialects::{Group as Seen, Reader, groups, rows};
use dmfilemapd::dm::{Device, Dm, Reply, Turn};
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::group::Mark;
use dmfilemapd::kernel::Memory;
use dmfilemapd::message::RegionId;
use dmfilemapd::update::{
    Error, Group, Orphan, Template, Updated, delete_orphans, establish, orphans, update,
};

const MARK: Mark = Mark { key: 0x5eed, nonce: 1 };
const CLAIM: u32 = 0xa;
const GROUP: Group = Group { id: RegionId(0), mark: MARK, claim: CLAIM };

/// What is ours and no orphan, and what is not ours but looks like it. With a free id before it.
const OTHERS: &str = "\
20: 0+8 8 dmstats fm=0000000000005eed.00000001.x
21: 0+8 8 dmstats fm=0000000000005eed.00000001
22: 0+8 8 dmstats fm=0000000000005EED.00000001.
23: 0+8 8 dmstats note.fm=0000000000005eed.00000001.
24: 0+8 8 dmstats DMS_GROUP=\"other\":24-25#-
25: 0+8 8 dmstats fm=0000000000005eed.00000001.
26: 0+8 8 dmstats DMS_GROUP=\"\":26#fm=0000000000005eed.00000001.0000000a.
27: 0+8 8 other -
28: 0+8 8 dmstats DMS_GROUP=wrong:0#fm=0000000000005eed.00000001.
29: 0+8 8 dmstats fm=0000000000005eed.00000001. precise_timestamps
";

/// The last of them is an orphan, whatever it counts.
const THEIRS: usize = 9;

fn map(ranges: &[(u64, u64)]) -> Extents {
    ranges.iter().map(|(start, len)| Extent::new(*start, *len).unwrap()).collect()
}

fn read(listing: &[u8]) -> Result<BTreeMap<u32, Seen>, String> {
    groups(Reader::Old, listing)?;
    groups(Reader::New, listing)
}

/// What is marked as an update does it and stands in no group, as dmstats sees them.
fn leftovers(listing: &[u8]) -> Vec<u32> {
    let named: Vec<u32> = read(listing).unwrap().into_values().flat_map(|g| g.members).collect();
    let marked = rows(listing).unwrap().into_iter().filter(|row| {
        let aux = row.aux();
        let mark = aux.len() == 29 && aux.starts_with(b"fm=") && aux.ends_with(b".00000001.");
        mark && !aux.iter().any(u8::is_ascii_uppercase)
    });
    marked.map(|row| row.id).filter(|id| !named.contains(id)).collect()
}

// ---- What is an orphan --------------------------------------------------------------------

#[test]
fn only_what_bears_our_mark_alone_and_stands_in_no_descriptor_goes() {
    let memory = table(OTHERS.as_bytes());
    let mut cut = Cut::new(&memory, &BTreeMap::new());
    let found = orphans(&mut cut, DEVICE).unwrap();
    let extent = Extent::new(0, 8).unwrap();
    let expected = Orphan { id: RegionId(29), extent, program_id: b"dmstats".into(), mark: MARK };
    assert_eq!(found, [expected]);
    assert_eq!(delete_orphans(&mut cut, DEVICE, &found).unwrap(), 1);
    let theirs: Vec<&str> = OTHERS.lines().take(THEIRS).collect();
    assert_eq!(
        String::from_utf8(listing_of(&mut cut.memory)).unwrap().trim_end(),
        theirs.join("\n")
    );
}

#[test]
fn what_is_not_as_it_was_stays() {
    let orphan = "0: 0+8 8 dmstats fm=0000000000005eed.00000001.\n";
    let mut before = table(orphan.as_bytes());
    let seen = orphans(&mut before, DEVICE).unwrap();
    for now in [
        "",
        "0: 0+9 9 dmstats fm=0000000000005eed.00000001.\n",
        "0: 8+8 8 dmstats fm=0000000000005eed.00000001.\n",
        "0: 0+8 8 other fm=0000000000005eed.00000001.\n",
        "0: 0+8 8 dmstats fm=0000000000005eed.00000002.\n",
        "0: 0+8 8 dmstats -\n",
        "1: 0+8 8 dmstats fm=0000000000005eed.00000001.\n",
        "0: 0+8 8 dmstats DMS_GROUP=\"\":0#fm=0000000000005eed.00000001.0000000a.\n",
    ] {
        let mut cut = Cut::new(&table(now.as_bytes()), &BTreeMap::new());
        assert_eq!(delete_orphans(&mut cut, DEVICE, &seen).unwrap(), 0, "{now}");
        assert_eq!(listing_of(&mut cut.memory), now.as_bytes());
    }
    assert_eq!(delete_orphans(&mut before, DEVICE, &seen).unwrap(), 1);
}

#[test]
fn what_was_not_there_before_stays() {
    let mut memory = table(b"0: 0+8 8 dmstats fm=0000000000005eed.00000001.\n");
    assert_eq!(delete_orphans(&mut memory, DEVICE, &[]).unwrap(), 0);
    assert_eq!(leftovers(&listing_of(&mut memory)), [0]);
}

// ---- Cut updates --------------------------------------------------------------------------

/// An update of a file whose map has changed.
struct Case {
    /// The rows of its group, and what earlier cuts have left of it.
    rows: &'static str,
    /// What it shows; `None` before there is a group.
    old: Option<Extents>,
    new: Extents,
}

/// In each, the update has something to create, to take in and to delete; in the third, the
/// leader goes and its id is taken back; in the last, a group is made.
fn cases() -> Vec<Case> {
    let grown = "\
0: 0+8 8 dmstats DMS_GROUP=\"f\":0,2#fm=0000000000005eed.00000001.0000000a.
1: 32+8 8 dmstats fm=0000000000005eed.00000001.
2: 16+8 8 dmstats fm=0000000000005eed.00000001.
3: 90+8 8 dmstats fm=0000000000000bad.00000001.
";
    let reused = "\
0: 0+8 8 dmstats DMS_GROUP=\"f\":0#fm=0000000000005eed.00000001.0000000a.
2: 32+8 8 dmstats fm=0000000000005eed.00000001.
3: 90+8 8 dmstats fm=0000000000005eed.00000001.
";
    let moved = "\
0: 0+8 8 dmstats DMS_GROUP=\"f\":0#fm=0000000000005eed.00000001.0000000a.
1: 90+8 8 dmstats fm=0000000000005eed.00000001.
";
    let made = "\
0: 32+8 8 dmstats fm=0000000000005eed.00000001.
1: 90+8 8 dmstats fm=0000000000005eed.00000001.
";
    vec![
        Case {
            rows: grown,
            old: Some(map(&[(0, 8), (16, 8)])),
            new: map(&[(0, 8), (32, 8), (48, 8)]),
        },
        Case { rows: reused, old: Some(map(&[(0, 8)])), new: map(&[(0, 8), (32, 8)]) },
        Case { rows: moved, old: Some(map(&[(0, 8)])), new: map(&[(64, 8)]) },
        Case { rows: made, old: None, new: map(&[(32, 8), (48, 8)]) },
    ]
}

/// The same for another file, and nothing that dmstats complains about. The last is an orphan.
fn neighbours() -> String {
    let rows = OTHERS.replace("5eed", "0bad").replace("5EED", "0BAD");
    rows.split_inclusive('\n').filter(|row| !row.contains("wrong")).collect()
}

impl Case {
    fn table(&self) -> Memory {
        table(&[self.rows, &neighbours()].concat().into_bytes())
    }

    fn update(&self, dm: impl Dm) -> Result<Updated, Error> {
        let (precise, bounds) = (false, Vec::new());
        let (program_id, alias) = (b"dmstats".to_vec(), b"f".to_vec());
        let template = Template { program_id, alias, precise, bounds };
        match self.old {
            Some(_) => update(dm, DEVICE, GROUP, &self.new),
            None => establish(dm, DEVICE, &template, MARK, CLAIM, &self.new).map(Option::unwrap),
        }
    }

    /// Readers find the old map or the new, and others what they had.
    fn check(&self, memory: &mut Memory) -> Result<(), String> {
        let listing = listing_of(memory);
        let text = String::from_utf8_lossy(&listing);
        let wrong = |what: &str| format!("{what}\n{text}");
        let groups = read(&listing).map_err(|why| wrong(&why))?;
        let shown = |seen: &Seen| -> Extents {
            seen.extents.iter().map(|(start, end)| Extent::between(*start, *end).unwrap()).collect()
        };
        let ours: Vec<Extents> =
            groups.values().filter(|seen| seen.alias == b"f").map(shown).collect();
        let whole = |map: &Extents| *map == self.new || self.old.as_ref() == Some(map);
        if !ours.iter().all(whole) || ours.is_empty() && self.old.is_some() {
            return Err(wrong("the group is not whole"));
        }
        match neighbours().lines().take(THEIRS - 1).all(|row| text.contains(row)) {
            true => Ok(()),
            false => Err(wrong("something of others is missing")),
        }
    }
}

/// Cuts at the message with this number, which may have been carried out.
fn cut_at(memory: &Memory, fuel: usize, applied: bool) -> Cut {
    Cut { fuel: Some(fuel), applied, ..Cut::new(memory, &BTreeMap::new()) }
}

/// Whether the power failed before everything was said.
fn was_cut(cut: &Cut) -> bool {
    cut.fuel.is_some_and(|fuel| cut.log.len() > fuel)
}

#[test]
fn what_any_cut_of_an_update_leaves_goes_even_if_that_is_cut() {
    let mut runs = 0;
    for (case, applied) in cases().iter().flat_map(|case| [(case, false), (case, true)]) {
        for fuel in 0.. {
            let mut updating = cut_at(&case.table(), fuel, applied);
            let outcome = case.update(&mut updating);
            if !was_cut(&updating) {
                outcome.unwrap();
                break;
            }
            runs += sweep_up(case, &updating.memory, applied);
        }
    }
    println!("{runs} runs");
    assert!(runs > 150, "{runs} runs");
}

/// Deletes orphans, cut at each message in turn, and then to the end; readers see no difference.
fn sweep_up(case: &Case, left: &Memory, applied: bool) -> usize {
    let groups = read(&listing_of(&mut left.clone())).unwrap();
    let seen = orphans(&mut left.clone(), DEVICE).unwrap();
    for fuel in 0.. {
        let mut deleting = cut_at(left, fuel, applied);
        let outcome = delete_orphans(&mut deleting, DEVICE, &seen);
        let mut memory = deleting.memory.clone();
        case.check(&mut memory).unwrap();
        assert_eq!(read(&listing_of(&mut memory)).unwrap(), groups);
        let rest = orphans(&mut memory, DEVICE).unwrap();
        assert_eq!(delete_orphans(&mut memory, DEVICE, &rest).unwrap(), rest.len());
        assert_eq!(leftovers(&listing_of(&mut memory)), [0; 0]);
        assert_eq!(read(&listing_of(&mut memory)).unwrap(), groups);
        case.check(&mut memory).unwrap();
        if !was_cut(&deleting) {
            assert_eq!(outcome.unwrap(), seen.len());
            return fuel;
        }
    }
    unreachable!("there is no end to numbers")
}

// ---- Both at once -------------------------------------------------------------------------

/// One order in which two processes send their messages and begin and end their turns.
struct Order<'a> {
    case: &'a Case,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    memory: Memory,
    /// Who is to do the next step: one of two.
    next: usize,
    done: [bool; 2],
    /// Who did what so far, and whether it could have been the other.
    trace: Vec<(usize, bool)>,
    /// Whom to choose, as long as this goes; then the first.
    script: Vec<usize>,
    /// Of whoever has one.
    turns: [Option<Turn>; 2],
    fault: Option<String>,
}

impl State {
    fn choose(&mut self) {
        let free = self.done == [false, false];
        let at = self.trace.len();
        let forced = usize::from(self.done[0]);
        self.next = if free { self.script.get(at).copied().unwrap_or(0) } else { forced };
        self.trace.push((self.next, free));
    }
}

impl Order<'_> {
    /// Does a step when it is due.
    fn step<T>(&self, who: usize, work: impl FnOnce(&mut State) -> T) -> T {
        let guard: MutexGuard<'_, State> = self.state.lock().unwrap();
        let mut state = self.changed.wait_while(guard, |state| state.next != who).unwrap();
        let result = work(&mut state);
        if let Err(why) = self.case.check(&mut state.memory) {
            state.fault.get_or_insert(why);
        }
        state.choose();
        self.changed.notify_all();
        result
    }

    fn end(&self, who: usize) {
        self.step(who, |state| state.done[who] = true);
    }
}

/// One of two processes.
struct Process<'a> {
    order: &'a Order<'a>,
    who: usize,
    /// Whether it shares the control node with the other.
    sees_turns: bool,
}

impl Dm for Process<'_> {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        self.order.step(self.who, |state| state.memory.message(device, text))
    }

    fn begin_turn(&mut self, _: Device, turn: Turn) -> io::Result<()> {
        let (who, sees) = (self.who, self.sees_turns);
        self.order.step(who, |state| {
            let other = state.turns[1 - who].filter(|_| sees);
            if other.is_some_and(|other| [turn, other].contains(&Turn::Alone)) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            state.turns[who] = Some(turn);
            Ok(())
        })
    }

    fn end_turn(&mut self, _: Device) {
        self.order.step(self.who, |state| state.turns[self.who] = None);
    }
}

/// What came of one order.
struct Outcome {
    memory: Memory,
    trace: Vec<(usize, bool)>,
    fault: Option<String>,
    updated: Result<Updated, Error>,
    deleted: Result<usize, Error>,
}

fn run(case: &Case, script: Vec<usize>, sees_turns: bool) -> Outcome {
    let memory = case.table();
    let (done, trace, turns) = ([false; 2], Vec::new(), [None; 2]);
    let mut state = State { memory, next: 0, done, trace, script, turns, fault: None };
    state.choose();
    let order = Order { case, state: Mutex::new(state), changed: Condvar::new() };
    let process = |who| Process { order: &order, who, sees_turns };
    let (updated, deleted) = thread::scope(|scope| {
        let updating = scope.spawn(|| {
            let updated = case.update(process(0));
            order.end(0);
            updated
        });
        let mut deleting = process(1);
        let seen = orphans(&mut deleting, DEVICE).unwrap();
        let deleted = delete_orphans(&mut deleting, DEVICE, &seen);
        order.end(1);
        (updating.join().unwrap(), deleted)
    });
    let State { memory, mut trace, fault, .. } = order.state.into_inner().unwrap();
    trace.pop(); // what would come after the end
    Outcome { memory, trace, fault, updated, deleted }
}

/// Every order there is, one after the other, as long as it is to go on. Says how many those were.
fn orders(case: &Case, sees_turns: bool, mut go_on: impl FnMut(Outcome) -> bool) -> usize {
    let mut script = Some(Vec::new());
    let mut count = 0;
    while let Some(wanted) = script {
        let outcome = run(case, wanted, sees_turns);
        let trace = outcome.trace.clone();
        count += 1;
        if !go_on(outcome) {
            break;
        }
        // The last choice that can still go the other way.
        let last = trace.iter().rposition(|(who, free)| *who == 0 && *free);
        script = last.map(|at| trace[..at].iter().map(|(who, _)| *who).chain([1]).collect());
    }
    count
}

#[test]
fn in_any_order_with_an_update_the_group_is_whole_and_only_orphans_go() {
    for case in cases() {
        let (mut both, mut busy) = (0, 0);
        let count = orders(&case, true, |mut outcome| {
            assert_eq!(outcome.fault, None);
            match (outcome.updated, outcome.deleted) {
                (Ok(_), Ok(_)) => both += 1,
                (Ok(_), Err(error)) | (Err(error), Ok(_)) => {
                    assert!(error.is_busy(), "{error}");
                    busy += 1;
                }
                (Err(updated), Err(deleted)) => panic!("both failed: {updated}, {deleted}"),
            }
            // Whoever was kept out does it later.
            case.update(&mut outcome.memory).unwrap();
            let rest = orphans(&mut outcome.memory, DEVICE).unwrap();
            delete_orphans(&mut outcome.memory, DEVICE, &rest).unwrap();
            case.check(&mut outcome.memory).unwrap();
            assert_eq!(leftovers(&listing_of(&mut outcome.memory)), [0; 0]);
            true
        });
        println!("{count} orders: in {both} both went through, in {busy} one was kept out");
        assert!(both > 0 && busy > 0);
    }
}

/// What turns are for: the order of messages alone does not do it. This is also what shows that
/// the test above would find a fault.
#[test]
fn without_turns_there_are_orders_that_break_the_group() {
    for case in cases() {
        let mut fault = None;
        let count = orders(&case, false, |outcome| {
            fault = outcome.fault;
            fault.is_none()
        });
        println!("order {count}: {}", fault.expect("the group is broken in one of them"));
    }
}

// ---- Turns --------------------------------------------------------------------------------

/// A table that counts turns, and says whether messages come in one.
struct Counted {
    memory: Memory,
    turn: Option<Turn>,
    begun: Vec<Turn>,
    refuse: bool,
}

impl Dm for Counted {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        assert!(self.turn.is_some() || text.starts_with(b"@stats_list"), "out of turn");
        self.memory.message(device, text)
    }

    fn begin_turn(&mut self, _: Device, turn: Turn) -> io::Result<()> {
        if self.refuse {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        assert_eq!(self.turn.replace(turn), None, "one at a time");
        self.begun.push(turn);
        Ok(())
    }

    fn end_turn(&mut self, _: Device) {
        self.turn.take().unwrap();
    }
}

#[test]
fn nobody_changes_anything_out_of_turn_and_every_turn_ends() {
    for case in cases() {
        let (memory, begun) = (case.table(), Vec::new());
        let mut counted = Counted { memory, turn: None, begun, refuse: false };
        case.update(&mut counted).unwrap();
        let seen = orphans(&mut counted, DEVICE).unwrap();
        delete_orphans(&mut counted, DEVICE, &seen).unwrap();
        dmfilemapd::update::adopt(&mut counted, DEVICE, RegionId(24), MARK, CLAIM).unwrap();
        assert_eq!(counted.begun, [Turn::Shared, Turn::Alone, Turn::Shared]);
        dmfilemapd::update::remove(&mut counted, DEVICE, GROUP).unwrap();
        assert_eq!((counted.begun.last(), counted.turn), (Some(&Turn::Shared), None));
    }
}

#[test]
fn who_gets_no_turn_sends_nothing() {
    for case in cases() {
        let (memory, begun) = (case.table(), Vec::new());
        let before = listing_of(&mut memory.clone());
        let mut counted = Counted { memory, turn: None, begun, refuse: true };
        assert!(case.update(&mut counted).unwrap_err().is_busy());
        let seen = orphans(&mut counted, DEVICE).unwrap();
        assert!(delete_orphans(&mut counted, DEVICE, &seen).unwrap_err().is_busy());
        assert_eq!(send(&mut counted.memory, b"@stats_list"), before);
    }
}
