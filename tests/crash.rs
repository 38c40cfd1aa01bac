//! Any message may be the last.
//!
//! Every test builds a table, cuts the power at each message of an operation in turn, and looks at
//! what both generations of LVM2 read then. Then somebody repairs it: the same process, a new one
//! that is told the group's id, or a new one that knows the file alone; and is cut as well. Small
//! cases come exhaustively: a map is a row of cells, and neighbouring cells that are alike in the
//! old map and in the new add nothing, so strings of cells of which no two neighbours are alike
//! stand for all pairs of maps of a larger disk.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/cut.rs"]
mod cut;
#[path = "support/dialects.rs"]
mod dialects;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use cut::{Cut, DEVICE, Deed, Refusal, listing_of, send, table};
use dialects::{Reader, Row, groups, rows};
use dmfilemapd::dm::{Device, Dm, Reply};
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::group::{Descriptor, Mark};
use dmfilemapd::kernel::Memory;
use dmfilemapd::message::RegionId;
use dmfilemapd::update::{
    ANCHOR, Error, Group, Standing, Template, Updated, adopt, establish, look, remove, update,
};
use nix::errno::Errno;

const KEY: u64 = 0x5eed;
const MARK: Mark = Mark { key: KEY, nonce: 1 };
const CLAIM: u32 = 0xa;
/// How a descriptor says that a process with [`CLAIM`] follows a group with [`MARK`].
const SIGNED: &str = "fm=0000000000005eed.00000001.0000000a.";
const MARKED: &str = "fm=0000000000005eed.00000001.";
/// Of the process that comes after a restart.
const NEXT_MARK: Mark = Mark { key: KEY, nonce: 2 };
const NEXT_CLAIM: u32 = 0xb;

static RUNS: AtomicUsize = AtomicUsize::new(0);

/// Says how many operations ran so far in this process; `--nocapture` shows it.
fn count_runs(test: &str) {
    println!("{test}: {} runs so far, in all tests", RUNS.load(Ordering::Relaxed));
}

// ---- Maps ---------------------------------------------------------------------------------

/// A map in normal form, independent of the program's.
type Map = Vec<(u64, u64)>;

/// Sectors in a cell.
const CELL: u64 = 8;

fn cell(at: usize) -> (u64, u64) {
    let at = at as u64;
    (at * CELL, (at + 1) * CELL)
}

fn map_of(cells: &[bool]) -> Map {
    let set = cells.iter().enumerate().filter(|(_, set)| **set).map(|(at, _)| cell(at));
    merged(set.collect())
}

/// Joins what touches. Panics where extents overlap: that would be counted twice.
fn merged(mut extents: Map) -> Map {
    extents.sort_unstable();
    let mut map = Map::new();
    for (start, end) in extents {
        match map.last_mut() {
            Some(last) if start < last.1 => panic!("{start}..{end} is counted twice"),
            Some(last) if start == last.1 => last.1 = end,
            _ => map.push((start, end)),
        }
    }
    map
}

fn extents(map: &Map) -> Extents {
    map.iter().map(|(start, end)| Extent::between(*start, *end).unwrap()).collect()
}

/// What a reader sees of a group: an anchor alone is the map of a file without extents.
fn seen(group: &dialects::Group) -> Map {
    if group.extents == [(ANCHOR, ANCHOR + 1)] {
        return Map::new();
    }
    merged(group.extents.clone())
}

fn lies_in(inner: (u64, u64), map: &Map) -> bool {
    map.iter().any(|outer| outer.0 <= inner.0 && inner.1 <= outer.1)
}

/// All pairs of maps that strings of up to `cells` cells can say, each of up to three extents.
fn pairs(cells: usize) -> Vec<(Vec<bool>, Vec<bool>)> {
    let mut found = vec![(Vec::new(), Vec::new())];
    let mut open: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(string) = open.pop() {
        for next in (0..4).filter(|next| string.last() != Some(next)) {
            let mut longer = string.clone();
            longer.push(next);
            if longer[0] == 0 {
                continue; // a disk that begins further behind
            }
            let maps = [1, 2].map(|bit| longer.iter().map(|cell| cell & bit != 0).collect());
            if maps.iter().all(|map: &Vec<bool>| map_of(map).len() <= 3) {
                if next != 0 {
                    let [old, new] = maps;
                    found.push((old, new));
                }
                if longer.len() < cells {
                    open.push(longer);
                }
            }
        }
    }
    found.sort_by_key(|(old, _)| old.len());
    found
}

// ---- Tables -------------------------------------------------------------------------------

/// How a group was made.
#[derive(Debug)]
struct Style {
    program_id: &'static str,
    alias: &'static str,
    quote: &'static str,
    user: &'static str,
    options: &'static str,
    /// Whether we made the regions; LVM2's bear no mark.
    marked: bool,
    /// Whether every cell has a region of its own, as after growth in steps.
    seams: bool,
}

const OURS: Style = Style {
    program_id: "dmstats",
    alias: "vm.img",
    quote: "\"",
    user: "",
    options: "",
    marked: true,
    seams: false,
};

const STYLES: [Style; 5] = [
    OURS,
    Style { marked: false, user: "note=1", ..OURS },
    Style { seams: true, options: "precise_timestamps", ..OURS },
    Style { quote: "", marked: false, options: "precise_timestamps histogram:10000,20000", ..OURS },
    Style {
        program_id: "1234",
        alias: "",
        quote: "",
        options: "histogram:5,10",
        marked: false,
        ..OURS
    },
];

/// Which ids are whose: `m` ours, in turn; `o` of another program; `s` of the same program; `g`
/// the leader of another group of the same program and alias, `h` its member; `k` a group of one
/// region of the same file, which another process follows; `.` free.
#[derive(Debug)]
struct Layout {
    ids: &'static str,
    /// Whether our ids fall with rising sectors.
    falling: bool,
}

const DENSE: Layout = Layout { ids: "", falling: false };

const LAYOUTS: [Layout; 5] = [
    DENSE,
    Layout { ids: "osmgmhm", falling: false },
    Layout { ids: "..mom.m", falling: true },
    Layout { ids: "gh.msmm.o", falling: true },
    Layout { ids: "o.o.mm.m", falling: false },
];

/// A table with a group of ours, and what is to be known about it.
struct Stage {
    memory: Memory,
    theirs: BTreeMap<u32, Vec<u8>>,
    old: Map,
    style: &'static Style,
    /// Id of the group and range of each member, before anything happened.
    members: BTreeMap<u32, (u64, u64)>,
    group: Group,
}

/// Who wrote the descriptor last.
#[derive(Clone, Copy, PartialEq)]
enum Writer {
    Us,
    Lvm2,
}

impl Stage {
    fn new(layout: &Layout, style: &'static Style, cells: &[bool], writer: Writer) -> Stage {
        let (theirs, members) = assign(layout, style, ours(style, cells, layout.falling));
        let ids: Vec<u32> = members.keys().copied().collect();
        let leader = ids[0];
        let mut rows = theirs.clone();
        for (id, (start, end)) in &members {
            let aux = match (*id == leader, style.marked) {
                (true, _) => descriptor(style, &ids, writer),
                (false, true) => MARKED.to_owned(),
                (false, false) => "-".to_owned(),
            };
            rows.insert(*id, row(style, *id, (*start, *end), &aux));
        }
        let group = Group { id: RegionId(leader), mark: MARK, claim: CLAIM };
        let mut memory = table(&listing(&rows));
        count_io(&mut memory, &members);
        Stage { memory, theirs, old: map_of(cells), style, members, group }
    }

    /// A table without a group of ours.
    fn empty(layout: &Layout, style: &'static Style) -> Stage {
        let (theirs, _) = assign(layout, style, Vec::new());
        let memory = table(&listing(&theirs));
        let group = Group { id: RegionId(0), mark: MARK, claim: CLAIM };
        Stage { memory, theirs, old: Map::new(), style, members: BTreeMap::new(), group }
    }

    fn cut(&self) -> Cut {
        Cut::new(&self.memory, &self.theirs)
    }

    fn listing(&self) -> Vec<u8> {
        listing_of(&mut self.memory.clone())
    }

    fn template(&self) -> Template {
        let Style { program_id, alias, options, .. } = *self.style;
        let bounds = options.split("histogram:").nth(1).unwrap_or_default();
        Template {
            program_id: program_id.into(),
            alias: alias.into(),
            precise: options.contains("precise_timestamps"),
            bounds: bounds.into(),
        }
    }
}

/// The ranges of our regions.
fn ours(style: &Style, cells: &[bool], falling: bool) -> Vec<(u64, u64)> {
    let mut ranges = map_of(cells);
    if style.seams {
        let set = cells.iter().enumerate().filter(|(_, set)| **set);
        ranges = set.map(|(at, _)| cell(at)).collect();
    }
    if ranges.is_empty() {
        ranges.push((ANCHOR, ANCHOR + 1));
    }
    if falling {
        ranges.reverse();
    }
    ranges
}

type Rows = BTreeMap<u32, Vec<u8>>;

/// Gives out the ids: the rows of others, and our ranges.
fn assign(
    layout: &Layout,
    style: &Style,
    ranges: Vec<(u64, u64)>,
) -> (Rows, BTreeMap<u32, (u64, u64)>) {
    let (mut theirs, mut members) = (Rows::new(), BTreeMap::new());
    let mut ranges = ranges.into_iter();
    let letters = layout.ids.chars().chain(std::iter::repeat('m'));
    for (id, letter) in (0..).zip(letters) {
        let aux = match letter {
            'm' => {
                members.extend(ranges.next().map(|range| (id, range)));
                if ranges.len() == 0 && id as usize >= layout.ids.len() {
                    break;
                }
                continue;
            }
            'g' => {
                let h = layout.ids.find('h').expect("a group has two members");
                format!("DMS_GROUP=\"{}\":{id},{h}#-", style.alias)
            }
            'k' => {
                let signed = "fm=0000000000005eed.00000009.00000009.";
                format!("DMS_GROUP=\"{}\":{id}#{signed}", style.alias)
            }
            'o' | 's' | 'h' => "-".to_owned(),
            _ => continue,
        };
        let program_id = if letter == 'o' { "other" } else { style.program_id };
        theirs.insert(id, format!("{id}: 0+{} {} {program_id} {aux}", CELL * 2, CELL * 2).into());
    }
    (theirs, members)
}

fn row(style: &Style, id: u32, (start, end): (u64, u64), aux: &str) -> Vec<u8> {
    let len = end - start;
    let row = format!("{id}: {start}+{len} {len} {} {aux} {}", style.program_id, style.options);
    row.trim_end().into()
}

fn listing(rows: &Rows) -> Vec<u8> {
    rows.values().flat_map(|row| [row.as_slice(), b"\n"].concat()).collect()
}

fn descriptor(style: &Style, ids: &[u32], writer: Writer) -> String {
    let Style { alias, user, .. } = style;
    let quote = quote(style, writer);
    let user = match (writer, *user) {
        (Writer::Lvm2, "") => "-".to_owned(),
        (Writer::Lvm2, user) => user.to_owned(),
        (Writer::Us, "") => SIGNED.to_owned(),
        (Writer::Us, user) => format!("{user}.{SIGNED}"),
    };
    format!("DMS_GROUP={quote}{alias}{quote}:{}#{user}", runs(ids))
}

/// What stands around the alias. LVM2 writes none where there is no alias, and then reads the
/// members as one.
fn quote(style: &Style, writer: Writer) -> &'static str {
    if style.alias.is_empty() && writer == Writer::Us { "\"" } else { style.quote }
}

/// `0-2,5`
fn runs(ids: &[u32]) -> String {
    let mut text = String::new();
    for (at, id) in ids.iter().enumerate() {
        let follows = at > 0 && ids[at - 1] + 1 == *id;
        let goes_on = ids.get(at + 1) == Some(&(id + 1));
        match (follows, goes_on) {
            (true, true) => {}
            (true, false) => text = format!("{text}-{id}"),
            (false, _) if at > 0 => text = format!("{text},{id}"),
            (false, _) => text = id.to_string(),
        }
    }
    text
}

/// Lets every member count something that no other counts.
fn count_io(memory: &mut Memory, members: &BTreeMap<u32, (u64, u64)>) {
    for (ios, (start, end)) in (1..).zip(members.values()) {
        for _ in 0..ios {
            memory.io(DEVICE, Extent::between(*start, *end).unwrap(), true);
        }
    }
}

fn counters(memory: &mut Memory, id: u32) -> Vec<u8> {
    send(memory, format!("@stats_print {id}").as_bytes())
}

// ---- What is checked ------------------------------------------------------------------------

/// What must hold after every message.
struct Watch<'a> {
    stage: &'a Stage,
    /// The maps that a group of ours may show. `None` if there may be no group.
    allowed: Vec<Option<Map>>,
    /// Members that lie inside the new map, and what they have counted.
    survivors: Vec<(u32, (u64, u64), Vec<u8>)>,
}

impl<'a> Watch<'a> {
    fn new(stage: &'a Stage, allowed: Vec<Option<Map>>, want: &Map) -> Watch<'a> {
        let mut memory = stage.memory.clone();
        let survive = stage.members.iter().filter(|(_, range)| lies_in(**range, want));
        let survivors =
            survive.map(|(id, range)| (*id, *range, counters(&mut memory, *id))).collect();
        Watch { stage, allowed, survivors }
    }

    /// Both readers read everything, and see an allowed map and no other; what is not ours is
    /// untouched; what could stay, stayed. Gives the groups that are ours.
    fn check(&self, cut: &mut Cut) -> BTreeMap<u32, dialects::Group> {
        let ours = read(cut);
        let listing = listing_of(&mut cut.memory);
        self.check_maps(&ours, cut, &listing);
        let rows = rows(&listing).expect("read above");
        let by_id: BTreeMap<u32, &Row<'_>> = rows.iter().map(|row| (row.id, row)).collect();
        for (id, row) in &cut.theirs {
            let kept = by_id.get(id).is_some_and(|kept| kept.line == row.as_slice());
            assert!(kept, "region {id} of others was touched\n{}", told(cut, &listing));
        }
        for (id, range, counted) in &self.survivors {
            let kept = by_id.get(id).is_some_and(|row| (row.start, row.end) == *range);
            assert!(kept, "member {id} could have stayed\n{}", told(cut, &listing));
            assert!(counters(&mut cut.memory, *id) == *counted, "member {id} lost its counts");
        }
        ours
    }

    fn check_maps(&self, ours: &BTreeMap<u32, dialects::Group>, cut: &Cut, listing: &[u8]) {
        let allowed = |map: Option<Map>| self.allowed.contains(&map);
        assert!(!ours.is_empty() || allowed(None), "no group\n{}", told(cut, listing));
        for group in ours.values() {
            let map = seen(group);
            assert!(allowed(Some(map)), "a wrong map: {group:?}\n{}", told(cut, listing));
        }
    }

    /// After an operation that was not cut, its aim is reached, unless somebody else took over.
    fn check_end(&self, cut: &mut Cut, result: &Result<Option<Updated>, Error>, aim: Aim<'_>) {
        match (result, aim) {
            (Ok(Some(updated)), Aim::Follow(want)) => self.check_done(cut, updated, want),
            (Ok(None), Aim::Remove) => {
                self.check(cut);
                let listing = listing_of(&mut cut.memory);
                let rest = rows(&listing).expect("a listing").len();
                assert_eq!(rest, cut.theirs.len(), "left over\n{}", told(cut, &listing));
            }
            (Err(Error::TakenOver), _) => {
                self.check(cut);
                assert_eq!(cut.log.len(), 1, "it keeps its hands off");
                let next = format!(".{NEXT_CLAIM:08x}.");
                let listing = listing_of(&mut cut.memory);
                assert!(find(&listing, next.as_bytes()).is_some(), "{}", told(cut, &listing));
            }
            (result, _) => panic!("{result:?} after\n{}", cut.story()),
        }
    }

    /// After an operation that was not cut, there is one group and nothing besides.
    fn check_done(&self, cut: &mut Cut, updated: &Updated, want: &Map) {
        let ours = self.check(cut);
        let listing = listing_of(&mut cut.memory);
        let style = self.stage.style;
        let group = ours.get(&updated.group.id.0);
        let group = group.unwrap_or_else(|| panic!("no such group\n{}", told(cut, &listing)));
        assert_eq!((ours.len(), &seen(group)), (1, want), "{}", told(cut, &listing));
        assert_eq!(updated.members, group.members.len());
        let rows = rows(&listing).expect("read above");
        let rows: Vec<&Row<'_>> =
            rows.iter().filter(|row| !cut.theirs.contains_key(&row.id)).collect();
        let ids: Vec<u32> = rows.iter().map(|row| row.id).collect();
        assert_eq!(ids, group.members, "something is left over\n{}", told(cut, &listing));
        for row in rows {
            assert_eq!(row.program_id, style.program_id.as_bytes());
            assert_eq!(row.options(), style.options.as_bytes(), "{}", told(cut, &listing));
            assert_eq!(row.step, row.end - row.start);
        }
        self.check_name(&listing, group, updated);
    }

    /// The alias, its dialect and the user's data are as they were.
    fn check_name(&self, listing: &[u8], group: &dialects::Group, updated: &Updated) {
        let Style { alias, user, .. } = *self.stage.style;
        let quote = quote(self.stage.style, Writer::Us);
        let rows = rows(listing).expect("read above");
        let leader = rows.iter().find(|row| row.id == updated.group.id.0).expect("checked above");
        let tag = format!("DMS_GROUP={quote}{alias}{quote}:");
        assert!(leader.tail.starts_with(tag.as_bytes()), "{}", leader.line.escape_ascii());
        let dot = if user.is_empty() { "" } else { "." };
        let Group { mark, claim, .. } = updated.group;
        let user = format!("{user}{dot}fm={:016x}.{:08x}.{claim:08x}.", { mark.key }, mark.nonce);
        assert_eq!(group.user.escape_ascii().to_string(), user);
        let descriptor_len = leader.aux().len() + updated.group.id.to_string().len();
        assert_eq!(updated.descriptor_len, descriptor_len);
    }
}

/// What both generations of LVM2 read alike: the groups that are not of others.
fn read(cut: &mut Cut) -> BTreeMap<u32, dialects::Group> {
    let listing = listing_of(&mut cut.memory);
    let [old, new] = Reader::BOTH.map(|reader| {
        let found = groups(reader, &listing);
        found.unwrap_or_else(|why| panic!("{reader:?}: {why}\n{}", told(cut, &listing)))
    });
    let alike = |(a, b): (&dialects::Group, &dialects::Group)| a.members == b.members;
    assert!(old.keys().eq(new.keys()) && old.values().zip(new.values()).all(alike));
    new.into_iter().filter(|(id, _)| !cut.theirs.contains_key(id)).collect()
}

fn told(cut: &Cut, listing: &[u8]) -> String {
    let listing = listing.escape_ascii().to_string().replace("\\n", "\n");
    format!("after\n{}there is\n{}", ends(&cut.story()), ends(&listing))
}

/// The first and the last lines, if there are many.
fn ends(text: &str) -> String {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    match lines.len() {
        0..60 => text.to_owned(),
        len => [&lines[..30], &["...\n"], &lines[len - 30..]].concat().concat(),
    }
}

// ---- Who does something -----------------------------------------------------------------------

/// What is to be reached.
#[derive(Clone, Copy)]
enum Aim<'a> {
    Follow(&'a Map),
    Remove,
}

/// Who tries.
#[derive(Clone, Debug)]
enum Actor {
    /// A process that followed the group before.
    Same(Group),
    /// A new process that is told the group's id.
    Told(RegionId),
    /// A new process that knows the file alone.
    Knowing(Template),
}

impl Actor {
    fn run(&self, dm: &mut Cut, aim: Aim<'_>) -> Result<Option<Updated>, Error> {
        RUNS.fetch_add(1, Ordering::Relaxed);
        let group = match self {
            Actor::Same(group) => *group,
            Actor::Told(id) => adopt(&mut *dm, DEVICE, *id, NEXT_MARK, NEXT_CLAIM)?,
            Actor::Knowing(template) => {
                let Aim::Follow(want) = aim else { panic!("who knows no group removes none") };
                let want = extents(want);
                return establish(dm, DEVICE, template, NEXT_MARK, NEXT_CLAIM, &want);
            }
        };
        match aim {
            Aim::Follow(want) => update(dm, DEVICE, group, &extents(want)).map(Some),
            Aim::Remove => remove(dm, DEVICE, group).map(|_| None),
        }
    }
}

/// Everybody who may come to repair what a cut has left.
fn repairers(stage: &Stage, ours: &BTreeMap<u32, dialects::Group>, aim: Aim<'_>) -> Vec<Actor> {
    let mut actors = Vec::new();
    for (id, group) in ours {
        let told = Actor::Told(RegionId(*id));
        actors.push(told);
        if let Some(group) = signed(*id, &group.user) {
            actors.push(Actor::Same(group));
            if group.id != stage.group.id {
                actors.push(Actor::Same(Group { id: stage.group.id, ..group }));
            }
        }
    }
    let marked = ours.values().any(|group| find(&group.user, b"fm=").is_some());
    match aim {
        Aim::Remove => actors.push(Actor::Same(stage.group)),
        Aim::Follow(_) if marked || stage.members.is_empty() => {
            actors.push(Actor::Knowing(stage.template()));
        }
        Aim::Follow(_) => {}
    }
    actors
}

/// The group that a process knows which wrote this into the descriptor of `id`.
fn signed(id: u32, user: &[u8]) -> Option<Group> {
    let word = &user[find(user, b"fm=")? + 3..];
    let hex = |from: usize, len: usize| {
        u64::from_str_radix(std::str::from_utf8(&word[from..from + len]).unwrap(), 16).unwrap()
    };
    let (nonce, claim) = (u32::try_from(hex(17, 8)).unwrap(), u32::try_from(hex(26, 8)).unwrap());
    Some(Group { id: RegionId(id), mark: Mark { key: hex(0, 16), nonce }, claim })
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

/// Cuts an operation at every message, and those who repair it at every one of theirs, and so on.
struct Cutter<'a> {
    watch: &'a Watch<'a>,
    aim: Aim<'a>,
    /// Listings that were looked at before. The same rows mean the same state: whatever deletes a
    /// region and creates it again is found out by the state in between.
    seen: HashSet<Vec<u8>>,
}

impl Cutter<'_> {
    /// Has `actor` cut at each message, then every repairer, and so on, `depth` times in all; the
    /// last repair is not cut.
    fn cut_everywhere(&mut self, actor: &Actor, depth: usize) {
        let mut states = vec![(self.watch.stage.cut(), vec![actor.clone()])];
        for _ in 0..depth {
            let mut left = Vec::new();
            for (state, actors) in &states {
                left.extend(actors.iter().flat_map(|actor| self.cut_each_message(state, actor)));
            }
            states = left;
        }
        for (state, actors) in &states {
            for actor in actors {
                self.run_whole(state, actor);
            }
        }
    }

    /// Cuts the power at each message, lost and carried out. Gives the states that were not seen
    /// before, and who may repair them.
    fn cut_each_message(&mut self, state: &Cut, actor: &Actor) -> Vec<(Cut, Vec<Actor>)> {
        let mut left = Vec::new();
        for fuel in 0..self.run_whole(state, actor) {
            // Deeper down, a lost message is the one before it carried out, so that will do.
            for applied in if state.log.is_empty() { vec![false, true] } else { vec![true] } {
                let mut cut = Cut { fuel: Some(fuel), applied, ..state.afresh() };
                // Success or not: the process is dead.
                let _ = actor.run(&mut cut, self.aim);
                if self.seen.insert(listing_of(&mut cut.memory)) {
                    let ours = self.watch.check(&mut cut);
                    let actors = repairers(self.watch.stage, &ours, self.aim);
                    left.push((cut, actors));
                }
            }
        }
        left
    }

    /// Runs without a cut. Gives the number of messages.
    fn run_whole(&mut self, state: &Cut, actor: &Actor) -> usize {
        let mut whole = state.afresh();
        let result = actor.run(&mut whole, self.aim);
        self.watch.check_end(&mut whole, &result, self.aim);
        whole.log.len()
    }
}

fn cut_everywhere(watch: &Watch<'_>, actor: &Actor, aim: Aim<'_>, depth: usize) {
    Cutter { watch, aim, seen: HashSet::new() }.cut_everywhere(actor, depth);
}

/// What readers may see while the group of `stage` becomes one of `want`.
fn old_or_new<'a>(stage: &'a Stage, want: &Map) -> Watch<'a> {
    Watch::new(stage, vec![Some(stage.old.clone()), Some(want.clone())], want)
}

/// The n-th way to make a group on a table with others.
fn nth_way(n: usize) -> (&'static Layout, &'static Style) {
    (&LAYOUTS[n % LAYOUTS.len()], &STYLES[n / LAYOUTS.len() % STYLES.len()])
}

const WAYS: usize = LAYOUTS.len() * STYLES.len();

// ---- The readers ------------------------------------------------------------------------------

fn read_by(reader: Reader, aux: &str, options: &str) -> Option<(String, usize)> {
    let row = format!("0: 0+8 8 p {aux}{options}\n1: 8+8 8 p -\n2: 8+8 8 other -\n");
    let group = groups(reader, row.as_bytes()).ok()?.remove(&0)?;
    Some((String::from_utf8(group.alias).unwrap(), group.members.len()))
}

/// What each generation was seen to make of what the other one writes, and of what breaks them.
#[test]
fn the_readers_are_as_strict_as_lvm2() {
    let seen = [
        ("DMS_GROUP=\"alias\":0-1#-", Some("\"alias\""), Some("alias")),
        ("DMS_GROUP=alias:0-1#-", Some("alias"), Some("lia")),
        ("DMS_GROUP=\"\":0-1#-", Some("\"\""), Some("")),
        ("DMS_GROUP=\"a b\":0-1#-", None, Some("a b")),
        ("DMS_GROUP=\"a# b\":0-1#-", None, None),
        ("DMS_GROUP=\"a:b\":0-1#-", None, None),
        ("xDMS_GROUP=\"a\":,1,0-1,00,#-", Some("\"a\""), Some("a")),
        ("DMS_GROUP=\"a\":1#-", None, None),
        ("DMS_GROUP=\"a\":1-0#-", None, None),
        ("DMS_GROUP=\"a\":0-2#-", None, None), // 2 belongs to another program
        ("DMS_GROUP=\"a\":0,3#-", None, None), // 3 does not exist
        ("DMS_GROUP=\"a\":#-", None, None),
        ("-DMS_GROUP=\"a\":0-1#-", None, None),
    ];
    for (aux, old, new) in seen {
        for (reader, alias) in [(Reader::Old, old), (Reader::New, new)] {
            let expected = alias.map(|alias| (alias.to_owned(), 2));
            assert_eq!(read_by(reader, aux, ""), expected, "{reader:?}: {aux}");
        }
    }
    let chopped = |reader| read_by(reader, "DMS_GROUP=\"a\":0-1", " precise_timestamps");
    assert_eq!(chopped(Reader::Old), None, "it takes the last byte for a line end");
    assert_eq!(chopped(Reader::New), Some(("a".to_owned(), 2)));
    for (len, reads) in [(4094, true), (4095, false)] {
        let row = format!("0: 0+8 8 p {}\n", "x".repeat(len - "0: 0+8 8 p ".len()));
        assert_eq!(groups(Reader::Old, row.as_bytes()).is_ok(), reads);
    }
    assert!(groups(Reader::New, b"0: 0+8 8 p two\nlines\n").is_err());
}

/// Aliases and users' data are free text, and may look like the rest of a descriptor.
#[test]
fn a_descriptor_is_read_as_lvm2_reads_it() {
    let mut differ = Vec::new();
    for text in words(b"a\":#0-", 4) {
        for (alias, user) in [("", &text), ("alias", &text), ("\"alias\"", &text), (&*text, &text)]
        {
            let aux = format!("DMS_GROUP={alias}:0-1#{user}");
            let ours = Descriptor::parse(RegionId(0), aux.as_bytes());
            let ours = ours.map(|found| found.members.to_string());
            for reader in Reader::BOTH {
                let found = dialects::descriptor(reader, 0, aux.as_bytes());
                let Ok(Some(group)) = found else { continue };
                if ours.as_ref() != Some(&runs(&group.members)) {
                    differ.push(aux.clone());
                }
            }
        }
    }
    differ.dedup();
    assert!(
        differ.is_empty(),
        "{} of them, as {:?}",
        differ.len(),
        &differ[..differ.len().min(20)]
    );
}

/// All words of up to `len` letters.
fn words(letters: &[u8], len: usize) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut from = 0;
    for _ in 0..len {
        let longer = words[from..].iter().flat_map(|word| {
            letters.iter().map(move |letter| format!("{word}{}", char::from(*letter)))
        });
        let longer: Vec<String> = longer.collect();
        from = words.len();
        words.extend(longer);
    }
    words
}

// ---- Without a cut ----------------------------------------------------------------------------

/// What an update says it will do, worked out from the table before it.
#[derive(Debug, PartialEq, Eq)]
struct Promise {
    messages: usize,
    creates: usize,
    deletes: usize,
    id: u32,
}

impl Promise {
    fn new(stage: &Stage, want: &Map) -> Promise {
        let anchor = vec![(ANCHOR, ANCHOR + 1)];
        let want = if want.is_empty() { &anchor } else { want };
        let (leader, members) = (stage.group.id.0, &stage.members);
        let (kept, doomed): (Vec<u32>, Vec<u32>) =
            members.keys().partition(|id| lies_in(members[id], want));
        let missing: usize = want.iter().map(|extent| holes(*extent, &kept, members)).sum();
        if missing + doomed.len() == 0 {
            return Promise { messages: 1, creates: 0, deletes: 0, id: leader };
        }
        let free = (0..).filter(|id| !members.contains_key(id) && !stage.theirs.contains_key(id));
        let created: Vec<u32> = free.take(missing).collect();
        let survivor = *kept.iter().chain(&created).min().expect("a map has members");
        let reclaimed = missing > 0 && doomed.contains(&leader) && leader < survivor;
        let unmarked =
            if stage.style.marked { 0 } else { doomed.iter().filter(|id| **id != leader).count() };
        let retired = usize::from(kept.contains(&leader) && survivor < leader);
        let twin = usize::from(reclaimed);
        let survivor_is_twin = created.last() == Some(&survivor);
        let reclaim = twin * if survivor_is_twin { 4 } else { 5 };
        let listings = 1 + usize::from(missing > 0);
        Promise {
            messages: 1 + listings + missing + doomed.len() + unmarked + retired + reclaim,
            creates: missing + twin,
            deletes: doomed.len() + twin,
            id: if reclaimed { leader } else { survivor },
        }
    }
}

/// How many runs of an extent no kept member counts.
fn holes(extent: (u64, u64), kept: &[u32], members: &BTreeMap<u32, (u64, u64)>) -> usize {
    let covered = |at: u64| kept.iter().any(|id| members[id].0 <= at && at < members[id].1);
    let bare = |at: u64| extent.0 <= at && !covered(at);
    let step = if extent.0 >= ANCHOR { 1 } else { CELL };
    let starts = (extent.0..extent.1).step_by(usize::try_from(step).unwrap());
    starts.filter(|at| bare(*at) && !at.checked_sub(step).is_some_and(bare)).count()
}

fn uncut(stage: &Stage, new: &[bool]) {
    let want = map_of(new);
    let aim = Aim::Follow(&want);
    let watch = old_or_new(stage, &want);
    let mut cut = stage.cut();
    let result = Actor::Same(stage.group).run(&mut cut, aim);
    watch.check_end(&mut cut, &result, aim);
    let updated = result.expect("checked above").expect("a group remains");
    let kept_promise = Promise {
        messages: cut.log.len(),
        creates: cut.count("@stats_create"),
        deletes: cut.count("@stats_delete"),
        id: updated.group.id.0,
    };
    assert_eq!(kept_promise, Promise::new(stage, &want), "{}", told(&cut, &stage.listing()));
    assert_eq!((updated.created, updated.deleted), (kept_promise.creates, kept_promise.deletes));

    let mut again = cut.afresh();
    let result = Actor::Same(updated.group).run(&mut again, aim);
    watch.check_end(&mut again, &result, aim);
    assert_eq!(again.log, [b"@stats_list"], "nothing was left to do");
    let fingerprint = extents(&want).fingerprint();
    let stands = Standing::Stands { id: updated.group.id, fingerprint, tidy: true };
    assert_eq!(look(&mut again, DEVICE, &[updated.group]).unwrap().0, [stands]);
}

#[test]
fn an_update_sends_no_more_than_it_promises_and_keeps_the_id_where_it_says() {
    for (at, (old, new)) in pairs(8).iter().enumerate() {
        let ways = if at < 31 { 0..WAYS } else { at..at + 1 };
        for (layout, style) in ways.map(nth_way) {
            uncut(&Stage::new(layout, style, old, Writer::Us), new);
        }
    }
    count_runs("uncut");
}

/// Two daemons may follow one file in two groups. The marks of these have the key in common.
#[test]
fn two_groups_of_one_file_leave_each_other_alone() {
    for (at, (old, new)) in pairs(4).iter().enumerate() {
        for ids in ["kmkm", "mkmk", ".kmmk"] {
            let layout = Layout { ids, falling: at % 2 == 0 };
            uncut(&Stage::new(&layout, nth_way(at).1, old, Writer::Us), new);
        }
    }
}

#[test]
fn adopting_a_group_changes_the_word_of_its_leader_and_nothing_else() {
    for (layout, style) in (0..WAYS).map(nth_way) {
        let cells = [true, false, true];
        let stage = Stage::new(layout, style, &cells, Writer::Lvm2);
        let mut cut = stage.cut();
        let group = adopt(&mut cut, DEVICE, stage.group.id, MARK, CLAIM).unwrap();
        assert_eq!(group, stage.group);
        assert_eq!(cut.log.len(), 2);
        let ours = Stage::new(layout, style, &cells, Writer::Us);
        let [adopted, expected] = [listing_of(&mut cut.memory), ours.listing()]
            .map(|listing| listing.escape_ascii().to_string());
        assert_eq!(adopted, expected);
    }
}

/// Styles of groups that are made by [`establish`].
fn establishable() -> impl Iterator<Item = &'static Style> {
    let quoted = |style: &&Style| quote(style, Writer::Us) == "\"" && style.user.is_empty();
    STYLES.iter().filter(quoted)
}

#[test]
fn a_new_group_costs_a_create_for_each_extent_and_one_commit() {
    for (_, new) in pairs(7).iter().filter(|(old, _)| !old.contains(&true)) {
        for (layout, style) in LAYOUTS.iter().flat_map(|way| establishable().map(move |s| (way, s)))
        {
            let stage = Stage::empty(layout, style);
            let mut cut = stage.cut();
            let want = map_of(new);
            let result = Actor::Knowing(stage.template()).run(&mut cut, Aim::Follow(&want));
            let Some(updated) = result.unwrap() else {
                assert_eq!((want.len(), cut.log.len()), (0, 1), "made from nothing");
                continue;
            };
            let watch = Watch::new(&stage, vec![Some(want.clone())], &want);
            watch.check_done(&mut cut, &updated, &want);
            assert_eq!(cut.log.len(), 3 + want.len());
            assert_eq!((updated.created, updated.deleted), (want.len(), 0));
        }
    }
}

// ---- Cut --------------------------------------------------------------------------------------

fn follow(stage: &Stage, new: &[bool], depth: usize) {
    let want = map_of(new);
    let watch = old_or_new(stage, &want);
    cut_everywhere(&watch, &Actor::Same(stage.group), Aim::Follow(&want), depth);
}

#[test]
fn any_message_of_an_update_and_of_its_repair_may_be_the_last() {
    for (old, new) in pairs(2) {
        for (layout, style) in (0..WAYS).step_by(2).map(nth_way) {
            follow(&Stage::new(layout, style, &old, Writer::Us), &new, 3);
        }
    }
    count_runs("any message");
}

#[test]
fn the_same_with_larger_maps() {
    for (at, (old, new)) in pairs(6).iter().enumerate() {
        let (layout, style) = nth_way(at);
        let depth = match at {
            0..91 => 2, // up to four cells
            _ if at % 8 == 0 => 1,
            _ => continue,
        };
        follow(&Stage::new(layout, style, old, Writer::Us), new, depth);
    }
    count_runs("larger maps");
}

#[test]
fn a_group_of_lvm2_may_be_adopted_and_cut_at_any_message() {
    for (at, (old, new)) in pairs(3).iter().enumerate() {
        for (layout, style) in (at..at + WAYS).step_by(3).map(nth_way).filter(|w| !w.1.marked) {
            let stage = Stage::new(layout, style, old, Writer::Lvm2);
            let want = map_of(new);
            let watch = old_or_new(&stage, &want);
            let actor = Actor::Told(stage.group.id);
            cut_everywhere(&watch, &actor, Aim::Follow(&want), 2);
        }
    }
    count_runs("adopt");
}

#[test]
fn a_group_of_lvm2_is_found_by_name_and_place_and_may_be_cut_at_any_message() {
    for (old, new) in pairs(3) {
        let (old_map, want) = (map_of(&old), map_of(&new));
        let seen = old_map.iter().any(|range| lies_in(*range, &want));
        for style in STYLES.iter().filter(|style| seen && !style.marked) {
            let stage = Stage::new(&LAYOUTS[4], style, &old, Writer::Lvm2);
            let actor = Actor::Knowing(stage.template());
            cut_everywhere(&old_or_new(&stage, &want), &actor, Aim::Follow(&want), 2);
        }
    }
    count_runs("found");
}

#[test]
fn making_a_group_may_be_cut_at_any_message() {
    for (_, new) in pairs(5).iter().filter(|(old, new)| !old.contains(&true) && !new.is_empty()) {
        for (layout, style) in LAYOUTS.iter().flat_map(|way| establishable().map(move |s| (way, s)))
        {
            let stage = Stage::empty(layout, style);
            let want = map_of(new);
            let watch = Watch::new(&stage, vec![None, Some(want.clone())], &want);
            let actor = Actor::Knowing(stage.template());
            cut_everywhere(&watch, &actor, Aim::Follow(&want), 3);
        }
    }
    count_runs("establish");
}

#[test]
fn a_known_group_is_taken_over_after_a_restart_and_may_be_cut_at_any_message() {
    for (at, (old, new)) in pairs(3).iter().enumerate() {
        let (layout, style) = nth_way(at);
        let stage = Stage::new(layout, style, old, Writer::Us);
        let want = map_of(new);
        let watch = old_or_new(&stage, &want);
        for actor in [Actor::Told(stage.group.id), Actor::Knowing(stage.template())] {
            cut_everywhere(&watch, &actor, Aim::Follow(&want), 2);
        }
    }
    count_runs("restart");
}

#[test]
fn a_removal_may_be_cut_at_any_message() {
    for (at, (_, old)) in pairs(5).iter().enumerate().filter(|(_, pair)| !pair.0.contains(&true)) {
        for (layout, style) in (at..at + WAYS).map(nth_way) {
            let stage = Stage::new(layout, style, old, Writer::Us);
            let watch = Watch::new(&stage, vec![None, Some(stage.old.clone())], &Map::new());
            cut_everywhere(&watch, &Actor::Same(stage.group), Aim::Remove, 3);
        }
    }
    count_runs("remove");
}

/// Each create stops the I/O of the device for a moment, so none is wasted.
#[test]
fn a_repair_does_not_create_again_what_a_cut_update_has_created() {
    for (stage, want) in stages(5) {
        let creates = Promise::new(&stage, &want).creates;
        for (done, fuel) in (1..).zip(places(&stage, &want, "@stats_create")) {
            let mut cut = Cut { fuel: Some(fuel), applied: true, ..stage.cut() };
            let _ = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
            let deletes = |text: &Vec<u8>| text.starts_with(b"@stats_delete");
            let twin_alone = cut.log[..fuel].iter().any(deletes);
            let mut repair = cut.afresh();
            let result = Actor::Same(stage.group).run(&mut repair, Aim::Follow(&want));
            old_or_new(&stage, &want).check_end(&mut repair, &result, Aim::Follow(&want));
            let again = if twin_alone { 0 } else { creates - done };
            assert!(repair.count("@stats_create") <= again, "{}", repair.story());
        }
    }
}

/// After a cut the file is found to have changed once more.
#[test]
fn a_repair_may_lead_to_a_third_map() {
    for (at, (old, new)) in pairs(3).iter().enumerate() {
        for shape in 0..8 {
            let third = [1, 2, 4].map(|bit| shape & bit != 0);
            let (layout, style) = nth_way(at + shape);
            let stage = Stage::new(layout, style, old, Writer::Us);
            let (want, third) = (map_of(new), map_of(&third));
            let maps = vec![Some(stage.old.clone()), Some(want.clone()), Some(third.clone())];
            let mut watch = Watch::new(&stage, maps, &want);
            watch.survivors.retain(|(_, range, _)| lies_in(*range, &third));
            let cutter = |aim| Cutter { watch: &watch, aim, seen: HashSet::new() };
            let actor = Actor::Same(stage.group);
            let left = cutter(Aim::Follow(&want)).cut_each_message(&stage.cut(), &actor);
            for (state, actors) in left {
                let mut cutter = cutter(Aim::Follow(&third));
                let two_groups = actors.iter().filter(|a| matches!(a, Actor::Told(_))).count() > 1;
                for actor in &actors {
                    if two_groups {
                        cutter.cut_each_message(&state, actor);
                    } else {
                        cutter.run_whole(&state, actor);
                    }
                }
            }
        }
    }
    count_runs("third map");
}

// ---- Neighbours -------------------------------------------------------------------------------

/// What neighbours may do during an operation of so many messages: every pair of gaps, nearly.
fn feuds(messages: usize, program_id: &'static str) -> Vec<Vec<(usize, Deed)>> {
    let mut feuds = Vec::new();
    for at in 1..messages {
        feuds.push(vec![(at, Deed::Create(program_id))]);
        feuds.push(vec![(at, Deed::DeleteLowest)]);
        feuds.push(vec![(at, Deed::DeleteLowest), (at, Deed::Create(program_id))]);
        let leave = (at + 1..messages).map(|then| (then, Deed::DeleteLast));
        feuds.extend(leave.map(|leave| vec![(at, Deed::Create(program_id)), leave]));
    }
    feuds
}

/// Runs `actor` among neighbours, uncut, and cut at every message and repaired.
fn among_neighbours(watch: &Watch<'_>, actor: &Actor, want: &Map, program_id: &'static str) {
    let aim = Aim::Follow(want);
    let mut calm = watch.stage.cut();
    let calm_id = actor.run(&mut calm, aim).unwrap().unwrap().group.id;
    let mut cutter = Cutter { watch, aim, seen: HashSet::new() };
    // One message more than without neighbours, who make it necessary.
    for deeds in feuds(calm.log.len() + 1, program_id) {
        let mut whole = Cut { deeds: deeds.clone(), ..watch.stage.cut() };
        let result = actor.run(&mut whole, aim);
        watch.check_end(&mut whole, &result, aim);
        let id = result.unwrap().unwrap().group.id;
        let raced = whole.touched.iter().any(|touched| *touched <= id.max(calm_id).0);
        assert!(id == calm_id || raced, "{id} and not {calm_id}: {deeds:?}\n{}", whole.story());
        for fuel in 1..whole.log.len() {
            let deeds = deeds.clone();
            let mut cut = Cut { fuel: Some(fuel), applied: true, deeds, ..watch.stage.cut() };
            let _ = actor.run(&mut cut, aim);
            if cutter.seen.insert(listing_of(&mut cut.memory)) {
                let ours = watch.check(&mut cut);
                for actor in repairers(watch.stage, &ours, aim) {
                    cutter.run_whole(&cut, &actor);
                }
            }
        }
    }
}

#[test]
fn neighbours_between_any_two_messages_do_no_harm_and_take_none() {
    for (at, (old, new)) in pairs(4).iter().enumerate().filter(|(at, _)| *at < 31 || at % 4 == 0) {
        let (layout, style) = nth_way(at);
        let stage = Stage::new(layout, style, old, Writer::Us);
        let want = map_of(new);
        let watch = old_or_new(&stage, &want);
        let program_id = if at % 2 == 0 { "other" } else { style.program_id };
        among_neighbours(&watch, &Actor::Same(stage.group), &want, program_id);
    }
    count_runs("neighbours");
}

#[test]
fn neighbours_do_no_harm_while_a_group_is_made() {
    for (_, new) in pairs(3).iter().filter(|(old, new)| !old.contains(&true) && !new.is_empty()) {
        for layout in &LAYOUTS {
            let stage = Stage::empty(layout, &OURS);
            let want = map_of(new);
            let watch = Watch::new(&stage, vec![None, Some(want.clone())], &want);
            among_neighbours(&watch, &Actor::Knowing(stage.template()), &want, "dmstats");
        }
    }
    count_runs("neighbours of a new group");
}

// ---- Refusals ---------------------------------------------------------------------------------

/// Where in an uncut update the messages of this kind are.
fn places(stage: &Stage, want: &Map, keyword: &str) -> Vec<usize> {
    let mut cut = stage.cut();
    Actor::Same(stage.group).run(&mut cut, Aim::Follow(want)).unwrap();
    let is_one = |at: &usize| cut.log[*at].starts_with(keyword.as_bytes());
    (0..cut.log.len()).filter(is_one).collect()
}

/// A table for each pair of maps, and the map that is wanted.
fn stages(cells: usize) -> impl Iterator<Item = (Stage, Map)> {
    pairs(cells).into_iter().enumerate().map(|(at, (old, new))| {
        let (layout, style) = nth_way(at);
        (Stage::new(layout, style, &old, Writer::Us), map_of(&new))
    })
}

/// An update among refusals; then one without, which must succeed.
fn refused(stage: &Stage, want: &Map, mut cut: Cut) -> (Cut, Result<Option<Updated>, Error>) {
    let (watch, aim) = (old_or_new(stage, want), Aim::Follow(want));
    let result = Actor::Same(stage.group).run(&mut cut, aim);
    watch.check(&mut cut);
    let mut again = cut.afresh();
    let healed = Actor::Same(stage.group).run(&mut again, aim);
    watch.check_end(&mut again, &healed, aim);
    (cut, result)
}

fn is_errno(result: &Result<Option<Updated>, Error>, errno: Errno) -> bool {
    matches!(result, Err(Error::Message { source, .. })
        if source.raw_os_error() == Some(errno as i32))
}

#[test]
fn a_create_that_fails_leaves_the_table_as_it_was() {
    for (stage, want) in stages(5) {
        let places = places(&stage, &want, "@stats_create");
        let needed = Promise::new(&stage, &want).creates;
        assert_eq!(places.len(), needed);
        for (nth, at) in places.into_iter().enumerate() {
            for (errno, forever) in [(Errno::ENOMEM, true), (Errno::EOVERFLOW, false)] {
                let refusal = Some(Refusal { at, forever, errno });
                let (mut cut, result) = refused(&stage, &want, Cut { refusal, ..stage.cut() });
                let moved_on = cut.log[..at].iter().any(|text| text.starts_with(b"@stats_delete"));
                if moved_on {
                    assert_eq!(nth + 1, needed, "only the old id is taken back after a delete");
                    let updated = result.expect("the group is whole without it").unwrap();
                    assert_ne!(updated.group.id, stage.group.id);
                    old_or_new(&stage, &want).check_done(&mut cut, &updated, &want);
                } else {
                    assert!(is_errno(&result, errno), "{result:?}");
                    assert_eq!(listing_of(&mut cut.memory), stage.listing(), "{}", cut.story());
                }
            }
        }
    }
}

#[test]
fn memory_that_stays_short_leaves_the_group_until_there_is_more() {
    for (stage, want) in stages(4) {
        let regions = stage.theirs.len() + stage.members.len();
        let creates = Promise::new(&stage, &want).creates;
        for room in 0..creates {
            let mut cut = stage.cut();
            cut.memory.set_regions_max(regions + room);
            let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
            let watch = old_or_new(&stage, &want);
            match result {
                Ok(updated) => watch.check_done(&mut cut, &updated.unwrap(), &want),
                Err(_) => assert_eq!(listing_of(&mut cut.memory), stage.listing()),
            }
            cut.memory.set_regions_max(usize::MAX);
            let mut again = cut.afresh();
            let healed = Actor::Same(stage.group).run(&mut again, Aim::Follow(&want));
            watch.check_end(&mut again, &healed, Aim::Follow(&want));
        }
    }
}

#[test]
fn a_message_that_is_refused_ends_the_update_and_the_next_one_finishes_it() {
    for (stage, want) in stages(4) {
        let deletes = places(&stage, &want, "@stats_delete");
        for at in 0..Promise::new(&stage, &want).messages {
            for errno in [Errno::EINVAL, Errno::ENOMEM, Errno::EIO, Errno::ENOENT] {
                if errno == Errno::ENOENT && deletes.contains(&at) {
                    continue; // no refusal: the region is gone, as it is to be
                }
                let refusal = Some(Refusal { at, forever: false, errno });
                let (cut, result) = refused(&stage, &want, Cut { refusal, ..stage.cut() });
                let create = cut.log[at].starts_with(b"@stats_create");
                let takes_back = create && cut.count("@stats_delete") > 0;
                assert!(is_errno(&result, errno) || takes_back, "{result:?}\n{}", cut.story());
            }
        }
    }
}

#[test]
fn a_region_that_somebody_else_deleted_is_deleted() {
    for (stage, want) in stages(5) {
        for at in places(&stage, &want, "@stats_delete") {
            let mut calm = stage.cut();
            Actor::Same(stage.group).run(&mut calm, Aim::Follow(&want)).unwrap();
            let id = std::str::from_utf8(&calm.log[at][b"@stats_delete ".len()..]).unwrap();
            let deeds = vec![(at, Deed::DeleteOurs(id.parse().unwrap()))];
            let mut cut = Cut { deeds, ..stage.cut() };
            let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
            old_or_new(&stage, &want).check_end(&mut cut, &result, Aim::Follow(&want));
            assert_eq!(cut.log, calm.log);
        }
    }
}

/// Somebody deletes a region that is to go before we do, and a new region of ours gets its id.
#[test]
fn an_id_that_comes_back_in_the_middle_is_not_deleted_under_its_new_region() {
    for (stage, want) in stages(4) {
        let first_delete = places(&stage, &want, "@stats_delete").first().copied().unwrap_or(0);
        let goes = |(id, range): (&u32, &(u64, u64))| {
            (*id != stage.group.id.0 && !lies_in(*range, &want)).then_some(*id)
        };
        for doomed in stage.members.iter().filter_map(goes) {
            for at in 1..first_delete {
                let deeds = vec![(at, Deed::DeleteOurs(doomed))];
                let mut cut = Cut { deeds, ..stage.cut() };
                let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
                let watch = old_or_new(&stage, &want);
                if let Ok(updated) = result {
                    watch.check_done(&mut cut, &updated.unwrap(), &want);
                }
                let mut again = cut.afresh();
                let healed = Actor::Same(stage.group).run(&mut again, Aim::Follow(&want));
                watch.check_end(&mut again, &healed, Aim::Follow(&want));
            }
        }
    }
}

#[test]
fn a_device_that_goes_away_in_the_middle_is_an_error() {
    for (stage, want) in stages(4) {
        for at in 0..Promise::new(&stage, &want).messages {
            let mut cut = Cut { deeds: vec![(at, Deed::RemoveDevice)], ..stage.cut() };
            let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
            let error = result.expect_err("the group is gone with its device");
            assert!(error.is_no_device(), "{error}");
        }
    }
}

#[test]
fn another_device_under_the_same_number_is_told_nothing() {
    let replacements = [("vm", "LVM-other"), ("other", ""), ("other", "LVM-other")];
    for (stage, want) in stages(4) {
        for at in 1..Promise::new(&stage, &want).messages {
            for (name, uuid) in replacements {
                let deeds = vec![(at, Deed::ReplaceDevice(name, uuid))];
                let mut cut = Cut { deeds, ..stage.cut() };
                let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
                let error = result.expect_err("the group is gone with its device");
                assert!(error.is_no_device(), "{error} after\n{}", cut.story());
                assert_eq!(cut.log.len(), at + 1, "it went on\n{}", cut.story());
                let rows = cut.theirs.values().map(|row| [row, &b"\n"[..]].concat());
                let theirs: Vec<u8> = rows.flatten().collect();
                assert_eq!(listing_of(&mut cut.memory), theirs, "it was told something");
            }
        }
    }
}

/// Who makes a device may give it no uuid; then its name must do.
#[test]
fn a_device_without_uuid_is_known_by_its_name() {
    let stage = Stage::new(&DENSE, &OURS, &[true], Writer::Us);
    let want = map_of(&[true, false, true]);
    for (name, stays) in [("vm", true), ("other", false)] {
        let mut cut = Cut::new(&stage.memory, &Rows::new());
        cut.memory.add_device(DEVICE, 1 << 30, "vm", "");
        for row in dmfilemapd::message::parse_list(&stage.listing()).unwrap() {
            cut.memory.insert(DEVICE, &row).unwrap();
        }
        cut.deeds = vec![(2, Deed::ReplaceDevice(name, ""))];
        let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
        assert_eq!(!matches!(result, Err(Error::Replaced)), stays, "{result:?}");
    }
}

#[test]
fn a_device_that_is_renamed_stays_the_same() {
    for (stage, want) in stages(3) {
        for at in 1..Promise::new(&stage, &want).messages {
            let mut cut = Cut { deeds: vec![(at, Deed::Rename)], ..stage.cut() };
            let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
            old_or_new(&stage, &want).check_end(&mut cut, &result, Aim::Follow(&want));
        }
    }
}

// ---- Whose group it is ------------------------------------------------------------------------

#[test]
fn whoever_took_a_group_over_last_has_it() {
    for (stage, want) in stages(4) {
        let mut cut = stage.cut();
        let next = adopt(&mut cut, DEVICE, stage.group.id, NEXT_MARK, NEXT_CLAIM).unwrap();
        assert_eq!(next, Group { claim: NEXT_CLAIM, ..stage.group }, "the mark stays");
        let before = listing_of(&mut cut.memory);
        let mut first = cut.afresh();
        let result = Actor::Same(stage.group).run(&mut first, Aim::Follow(&want));
        assert!(matches!(result, Err(Error::TakenOver)), "{result:?}");
        assert_eq!(first.log, [b"@stats_list"]);
        assert_eq!(listing_of(&mut first.memory), before);
        let (standing, _) = look(&mut first, DEVICE, &[stage.group, next]).unwrap();
        assert_eq!(standing[0], Standing::TakenOver);
        assert!(matches!(standing[1], Standing::Stands { .. }));
        let mut second = cut.afresh();
        let result = Actor::Same(next).run(&mut second, Aim::Follow(&want));
        old_or_new(&stage, &want).check_end(&mut second, &result, Aim::Follow(&want));
    }
}

#[test]
fn the_id_by_which_a_group_is_known_is_a_hint() {
    for (stage, want) in stages(4) {
        for id in [0, 1, 2, 3, 4, 99, RegionId::MAX.0] {
            let mut cut = stage.cut();
            let group = Group { id: RegionId(id), ..stage.group };
            let result = Actor::Same(group).run(&mut cut, Aim::Follow(&want));
            old_or_new(&stage, &want).check_end(&mut cut, &result, Aim::Follow(&want));
            assert_eq!(cut.log.len(), Promise::new(&stage, &want).messages);
        }
    }
}

/// The group was deleted, and LVM2 made another of the same name that got its id.
#[test]
fn a_group_that_is_gone_stays_gone_and_the_one_in_its_place_is_not_touched() {
    for (at, (old, new)) in pairs(4).iter().enumerate() {
        let (layout, style) = nth_way(at);
        let stage = Stage::new(layout, style, old, Writer::Us);
        let strangers = Stage::new(layout, style, old, Writer::Lvm2);
        let rows = String::from_utf8(strangers.listing()).unwrap().replace(MARKED, "-");
        let mut cut = Cut::new(&table(rows.as_bytes()), &stage.theirs);
        let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&map_of(new)));
        assert!(matches!(result, Err(Error::Gone)), "{result:?}");
        assert_eq!(cut.log, [b"@stats_list"]);
        assert_eq!(look(&mut cut, DEVICE, &[stage.group]).unwrap().0, [Standing::Gone]);
        assert_eq!(remove(&mut cut, DEVICE, stage.group).unwrap(), 0);
        assert_eq!(listing_of(&mut cut.memory), rows.as_bytes());
    }
}

#[test]
fn what_leads_no_group_cannot_be_adopted() {
    let rows: &[u8] = b"0: 0+8 8 dmstats DMS_GROUP=\"a\":0-1#-\n\
        1: 8+8 8 dmstats -\n\
        3: 0+8 8 dmstats DMS_GROUP=\"a\":0,3#-\n";
    for id in [1, 2, 3] {
        let mut cut = Cut::new(&table(rows), &Rows::new());
        let result = adopt(&mut cut, DEVICE, RegionId(id), MARK, CLAIM);
        assert!(matches!(result, Err(Error::NoSuchGroup(no)) if no == RegionId(id)), "{result:?}");
        assert_eq!(listing_of(&mut cut.memory), rows);
    }
}

/// Carries messages, and lets another process take the group over before one of them.
struct Rivals {
    cut: Cut,
    at: usize,
    rival: Option<(RegionId, Map)>,
    /// Whether the other process also updates the group at once.
    updates: bool,
    watch: fn(&mut Cut),
}

impl Rivals {
    fn take_over(&mut self, id: RegionId, want: &Map) {
        let mut other = self.cut.afresh();
        let aim = Aim::Follow(want);
        let result = match self.updates {
            true => Actor::Told(id).run(&mut other, aim).map(drop),
            false => adopt(&mut other, DEVICE, id, NEXT_MARK, NEXT_CLAIM).map(drop),
        };
        // Where the leader is between two ids, the other process does not find it.
        assert!(matches!(result, Ok(()) | Err(Error::NoSuchGroup(_))), "{result:?}");
        self.cut.memory = other.memory;
    }
}

impl Dm for Rivals {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        if self.cut.log.len() == self.at {
            if let Some((id, want)) = self.rival.take() {
                self.take_over(id, &want);
            }
        }
        let reply = self.cut.message(device, text);
        (self.watch)(&mut self.cut);
        reply
    }
}

/// A new process takes a group over while the old one updates it. Both see the same file.
#[test]
fn two_processes_that_update_a_group_at_once_leave_one_that_has_it() {
    for (stage, want) in stages(4) {
        for (at, updates) in (1..12).flat_map(|at| [(at, false), (at, true)]) {
            let rival = Some((stage.group.id, want.clone()));
            let watch = |cut: &mut Cut| drop(read(cut));
            let mut both = Rivals { cut: stage.cut(), at, rival, updates, watch };
            // It may fail, where a region to go is gone already.
            let _ = update(&mut both, DEVICE, stage.group, &extents(&want));
            let watch = old_or_new(&stage, &want);
            let mut cut = both.cut.afresh();
            watch.check_maps(&read(&mut cut), &cut, &[]);
            let processes = [stage.group, Group { claim: NEXT_CLAIM, ..stage.group }];
            let has_it = processes.map(|group| {
                let result = Actor::Same(group).run(&mut cut, Aim::Follow(&want));
                result.map(|updated| watch.check_done(&mut cut, &updated.unwrap(), &want)).is_ok()
            });
            assert_ne!(has_it[0], has_it[1], "one has it\n{}", both.cut.story());
        }
    }
}

/// The old process looks again after it has created: until then the new one may do what it likes,
/// also for a file that has changed meanwhile.
#[test]
fn a_process_that_is_overtaken_while_it_creates_does_no_harm() {
    for (stage, want) in stages(3) {
        let listings = places(&stage, &want, "@stats_list");
        let Some(second) = listings.get(1) else { continue };
        for (_, cells) in pairs(3) {
            for at in 1..=*second {
                let other = map_of(&cells);
                let rival = Some((stage.group.id, other.clone()));
                let watch = |cut: &mut Cut| drop(read(cut));
                let mut both = Rivals { cut: stage.cut(), at, rival, updates: true, watch };
                let result = update(&mut both, DEVICE, stage.group, &extents(&want));
                assert!(matches!(result, Err(Error::TakenOver)), "{result:?}");
                let mut cut = both.cut.afresh();
                let next = Actor::Same(Group { claim: NEXT_CLAIM, ..stage.group });
                let result = next.run(&mut cut, Aim::Follow(&other));
                let watch = Watch::new(&stage, vec![Some(other.clone())], &Map::new());
                watch.check_end(&mut cut, &result, Aim::Follow(&other));
            }
        }
    }
}

/// A region that is to go is deleted by somebody, and a neighbour gets its id, while the device
/// takes its time with a create.
#[test]
fn an_id_that_was_ours_when_the_creates_began_is_not_marked_for_another() {
    for style in STYLES.iter().filter(|style| !style.marked) {
        let stage = Stage::new(&DENSE, style, &[true, false, true, false, true], Writer::Us);
        let want = map_of(&[true, false, false, true, false, true]);
        for (at, doomed) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let deeds = vec![(at, Deed::DeleteOurs(doomed)), (at, Deed::Create("other"))];
            let mut cut = Cut { deeds, ..stage.cut() };
            let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
            let watch = old_or_new(&stage, &want);
            watch.check_end(&mut cut, &result, Aim::Follow(&want));
        }
    }
}

/// A first attempt was cut; then a user made a group of the file with LVM2.
#[test]
fn what_a_cut_attempt_left_is_used_by_a_group_that_was_made_meanwhile() {
    let stage = Stage::empty(&DENSE, &OURS);
    let left = "1: 16+8 8 dmstats fm=0000000000005eed.00000007.\n";
    let group = "0: 0+8 8 dmstats DMS_GROUP=\"vm.img\":0#-\n";
    let want = map_of(&[true, false, true]);
    for rows in [left.to_owned(), format!("{group}{left}")] {
        let mut cut = Cut::new(&table(rows.as_bytes()), &Rows::new());
        let result = Actor::Knowing(stage.template()).run(&mut cut, Aim::Follow(&want));
        let watch = Watch::new(&stage, vec![Some(want.clone())], &want);
        watch.check_end(&mut cut, &result, Aim::Follow(&want));
    }
}

/// Somebody deleted a member, and its id is another's now. Whoever did that broke the group; it is
/// mended, and the other's region is not touched.
#[test]
fn a_member_that_is_somebody_elses_by_now_is_no_member() {
    for theirs in ["other -", "dmstats DMS_GROUP=\"x\":1#-"] {
        let theirs = format!("1: 16+8 8 {theirs}");
        let rows = format!("0: 0+8 8 dmstats DMS_GROUP=\"vm.img\":0-1#{SIGNED}\n{theirs}\n");
        for want in [map_of(&[true, false, true]), map_of(&[true]), map_of(&[false, true])] {
            let stage = Stage::empty(&DENSE, &OURS);
            let theirs = Rows::from([(1, theirs.clone().into_bytes())]);
            let mut cut = Cut::new(&table(rows.as_bytes()), &theirs);
            let group = Group { id: RegionId(0), mark: MARK, claim: CLAIM };
            let result = Actor::Same(group).run(&mut cut, Aim::Follow(&want));
            let watch = Watch::new(&stage, vec![Some(want.clone())], &want);
            watch.check_end(&mut cut, &result, Aim::Follow(&want));
        }
    }
}

/// A user made groups with LVM2 that look like the file's but for one thing.
#[test]
fn a_group_of_another_name_program_or_place_is_not_the_files() {
    let stage = Stage::empty(&DENSE, &OURS);
    for theirs in [
        "0+8 8 dmstats DMS_GROUP=\"other\":0#-",
        "0+8 8 other DMS_GROUP=\"vm.img\":0#-",
        "64+8 8 dmstats DMS_GROUP=\"vm.img\":0#-",
        "0+8 8 dmstats DMS_GROUP=\"vm.img\":0#fm=00000000000000aa.00000001.00000001.",
    ] {
        let row = format!("0: {theirs}");
        let table = table(format!("{row}\n").as_bytes());
        let mut cut = Cut::new(&table, &Rows::from([(0, row.into_bytes())]));
        let want = map_of(&[true]);
        let result = Actor::Knowing(stage.template()).run(&mut cut, Aim::Follow(&want));
        let watch = Watch::new(&stage, vec![Some(want.clone())], &want);
        watch.check_end(&mut cut, &result, Aim::Follow(&want));
    }
}

/// The first attempt was cut, and the second has other options.
#[test]
fn leftovers_that_count_something_else_are_not_used() {
    let stage = Stage::empty(&DENSE, &OURS);
    for left in ["dmstats fm=K precise_timestamps", "dmstats fm=K histogram:10", "other fm=K"] {
        let row = format!("0: 0+8 8 {left}\n").replace("fm=K", MARKED);
        let mut cut = Cut::new(&table(row.as_bytes()), &Rows::new());
        let want = map_of(&[true]);
        let result = Actor::Knowing(stage.template()).run(&mut cut, Aim::Follow(&want));
        let watch = Watch::new(&stage, vec![Some(want.clone())], &want);
        watch.check_end(&mut cut, &result, Aim::Follow(&want));
    }
}

#[test]
fn a_group_is_tidy_unless_a_cut_has_left_something_over() {
    for (stage, want) in stages(4) {
        for fuel in 0..Promise::new(&stage, &want).messages {
            let mut cut = Cut { fuel: Some(fuel), applied: true, ..stage.cut() };
            let _ = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
            let groups = read(&mut cut);
            let listing = listing_of(&mut cut.memory);
            let ours = rows(&listing).unwrap().len() - cut.theirs.len();
            let (_, group) = groups.first_key_value().unwrap();
            let expected = groups.len() == 1 && group.members.len() == ours;
            let (standing, _) = look(&mut cut.memory, DEVICE, &[stage.group]).unwrap();
            let [Standing::Stands { tidy, .. }] = standing.as_slice() else {
                panic!("{standing:?}")
            };
            assert_eq!(*tidy, expected, "{}", told(&cut, &listing));
        }
    }
}

#[test]
fn what_was_created_is_not_taken_back_from_another_device() {
    let stage = Stage::new(&DENSE, &OURS, &[true], Writer::Us);
    let want = map_of(&[true, false, true, false, true]);
    let deeds = vec![(2, Deed::ReplaceDevice("new", "LVM-new"))];
    let mut cut = Cut { deeds, ..stage.cut() };
    let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
    assert!(result.as_ref().is_err_and(Error::is_no_device), "{result:?}");
    let listing = listing_of(&mut cut.memory);
    let rows: Vec<&[u8]> = listing.split(|&byte| byte == b'\n').collect();
    assert!(cut.theirs.values().all(|row| rows.contains(&row.as_slice())), "{}", cut.story());
}

// ---- Many extents -----------------------------------------------------------------------------

/// Every `step`-th of so many extents, from number `first` on.
fn comb(extents: u64, first: u64, step: u64) -> Map {
    (0..extents).filter(|at| at % step == first).map(|at| (at * 16, at * 16 + 8)).collect()
}

/// Cuts at a few places around which something changes, and once not at all.
fn cut_here_and_there(cut: &Cut, group: Group, allowed: &[Map], want: &Map) -> (Cut, Updated) {
    let stage = Stage::empty(&DENSE, &OURS);
    let allowed = allowed.iter().cloned().map(Some).collect();
    let watch = Watch::new(&stage, allowed, want);
    let (actor, aim) = (Actor::Same(group), Aim::Follow(want));
    let mut whole = cut.afresh();
    let updated = actor.run(&mut whole, aim).unwrap().unwrap();
    watch.check_done(&mut whole, &updated, want);
    let mut again = whole.afresh();
    update(&mut again, DEVICE, updated.group, &extents(want)).unwrap();
    assert_eq!(again.story(), "@stats_list\n", "nothing was left to do");
    let is = |word: &'static [u8]| move |text: &Vec<u8>| text.starts_with(word);
    let commit = whole.log.iter().position(is(b"@stats_set_aux")).unwrap();
    let last = whole.log.len() - 1;
    for fuel in BTreeSet::from([commit / 2, commit, usize::midpoint(commit, last), last - 1]) {
        let mut cut = Cut { fuel: Some(fuel), applied: true, ..cut.afresh() };
        let _ = actor.run(&mut cut, aim);
        watch.check(&mut cut);
        let mut repair = cut.afresh();
        let result = actor.run(&mut repair, aim);
        watch.check_end(&mut repair, &result, aim);
    }
    (whole, updated)
}

#[test]
fn a_group_of_thousands_stays_readable_while_it_is_punched_and_regrown() {
    let stage = Stage::empty(&LAYOUTS[4], &OURS);
    let mut maps = vec![comb(2000, 0, 1), comb(2000, 1, 2), comb(2000, 1, 4), comb(2000, 3, 400)];
    maps.push(comb(600, 0, 1));
    let mut cut = stage.cut();
    let made = Actor::Knowing(stage.template()).run(&mut cut, Aim::Follow(&maps[0]));
    let mut group = made.unwrap().unwrap().group;
    for pair in maps.windows(2) {
        let (next, updated) = cut_here_and_there(&cut, group, pair, &pair[1]);
        (cut, group) = (next, updated.group);
    }
    count_runs("thousands");
}

/// What had to move to make the descriptor shorter has moved; it does not go on moving.
#[test]
fn a_group_that_was_made_to_fit_is_left_alone() {
    for alias in 3600..3605 {
        let mut template = Stage::empty(&DENSE, &OURS).template();
        template.alias = vec![b'a'; alias];
        let mut cut = Cut::new(&table(b""), &Rows::new());
        Actor::Knowing(template.clone()).run(&mut cut, Aim::Follow(&comb(200, 0, 1))).unwrap();
        let punched = comb(200, 1, 2);
        let fitted = Actor::Knowing(template).run(&mut cut, Aim::Follow(&punched));
        let fitted = fitted.unwrap().unwrap();
        assert!(fitted.created > 0, "it had to be made to fit");
        assert!(read(&mut cut).values().map(seen).eq([punched.clone()]));
        let mut again = cut.afresh();
        update(&mut again, DEVICE, fitted.group, &extents(&punched)).unwrap();
        assert_eq!(again.log.len(), 1, "a create for nothing, with an alias of {alias} bytes");
    }
}

/// Two processes that create regions at the same time get every second id each.
#[test]
fn ids_that_others_take_in_between_do_not_make_the_group_unreadable() {
    let stage = Stage::new(&DENSE, &OURS, &[true], Writer::Us);
    let want: Map = comb(1200, 0, 1);
    let watch = old_or_new(&stage, &want);
    let deeds = (0..want.len()).map(|at| (at + 1, Deed::Create("dmstats"))).collect();
    let mut cut = Cut { deeds, ..stage.cut() };
    let result = Actor::Same(stage.group).run(&mut cut, Aim::Follow(&want));
    watch.check(&mut cut);
    assert!(matches!(result, Ok(_) | Err(Error::Scattered(..))), "{result:?}");
}
