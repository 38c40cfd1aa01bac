//! LVM2's faults: one test for each that concerns how a group is updated or described.
//!
//! Each says what LVM2 does, and would fail here if we did the same. The names L3, L5 and so on are
//! those of the list of its faults, all of which were seen to happen.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/cut.rs"]
mod cut;
#[path = "support/dialects.rs"]
mod dialects;

use std::collections::BTreeMap;

use cut::{Cut, DEVICE, listing_of, send, table};
use dialects::{Reader, groups};
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::group::{Mark, safe_alias};
use dmfilemapd::kernel::Memory;
use dmfilemapd::message::{Message, RegionId};
use dmfilemapd::plan::{Have, plan};
use dmfilemapd::update::{Error, Group, Template, Updated, adopt, establish, remove, update};

const MARK: Mark = Mark { key: 7, nonce: 7 };

fn map(extents: &[(u64, u64)]) -> Extents {
    extents.iter().map(|(start, len)| Extent::new(*start, *len).unwrap()).collect()
}

/// So many extents of eight sectors, eight sectors apart, and what is between them left out.
fn comb(extents: impl IntoIterator<Item = u64>) -> Extents {
    extents.into_iter().map(|at| Extent::new(at * 16, 8).unwrap()).collect()
}

/// A group that LVM2 made from these regions, with ids from `first` on, and that we adopted.
fn adopted(first: u32, regions: &[(u64, u64)], options: &str) -> (Memory, Group) {
    let last = first as usize + regions.len() - 1;
    let mut rows = String::new();
    for (id, (start, len)) in (first..).zip(regions) {
        let aux = match id == first {
            true => format!("DMS_GROUP=\"f\":{first}-{last}#-"),
            false => "-".to_owned(),
        };
        rows += format!("{id}: {start}+{len} {len} dmstats {aux} {options}").trim_end();
        rows += "\n";
    }
    let rows = rows.replace(&format!(":{first}-{first}#"), &format!(":{first}#"));
    let mut memory = table(rows.as_bytes());
    let group = adopt(&mut memory, DEVICE, RegionId(first), MARK, 1).unwrap();
    (memory, group)
}

fn follow(memory: &mut Memory, group: Group, want: &Extents) -> Updated {
    update(memory, DEVICE, group, want).unwrap()
}

/// The only group there is, as both generations of LVM2 read it.
fn only_group(memory: &mut Memory) -> (u32, dialects::Group) {
    let listing = listing_of(memory);
    let [old, new] = Reader::BOTH.map(|reader| groups(reader, &listing).unwrap());
    assert_eq!((new.len(), old.len()), (1, 1), "{}", listing.escape_ascii());
    assert!(old.values().map(|group| &group.members).eq(new.values().map(|group| &group.members)));
    new.into_iter().next().expect("one, as counted")
}

/// What the group covers. Panics if it counts a sector twice.
fn covered(memory: &mut Memory) -> Extents {
    let group = only_group(memory).1;
    let sectors: u64 = group.extents.iter().map(|(start, end)| end - start).sum();
    let extents = group.extents.iter().map(|(start, end)| Extent::between(*start, *end).unwrap());
    let map: Extents = extents.collect();
    assert_eq!(map.sectors(), sectors, "a sector is counted twice");
    map
}

/// Writes counted by all members together.
fn writes(memory: &mut Memory) -> u64 {
    let members = only_group(memory).1.members;
    let mut writes = 0;
    for id in members {
        let text = send(memory, format!("@stats_print {id}").as_bytes());
        let text = String::from_utf8(text).unwrap();
        writes += text.split(' ').nth(5).unwrap().parse::<u64>().unwrap();
    }
    writes
}

fn rows_of(memory: &mut Memory) -> usize {
    dialects::rows(&listing_of(memory)).unwrap().len()
}

fn template(program_id: &str, alias: &[u8]) -> Template {
    let (program_id, alias) = (program_id.into(), alias.to_vec());
    Template { program_id, alias, precise: false, bounds: Vec::new() }
}

/// L3: LVM2 deletes the region of an extent whose length changed and creates another, which starts
/// at zero: a log file that grows at its end shows next to no writes. A region that was deleted
/// here would take its three writes with it.
#[test]
fn l3_an_extent_that_grows_keeps_its_counts() {
    let (mut memory, group) = adopted(0, &[(64, 8), (128, 8)], "");
    for _ in 0..3 {
        memory.io(DEVICE, Extent::new(64, 8).unwrap(), true);
    }
    follow(&mut memory, group, &map(&[(56, 32), (128, 8)])); // in front and behind
    assert_eq!(writes(&mut memory), 3);
    memory.io(DEVICE, Extent::new(80, 8).unwrap(), true);
    assert_eq!(writes(&mut memory), 4, "the new part counts too");
}

/// L5: LVM2 takes the region of the first extent in the file for the leader. An extent before it
/// gets a higher id, so the group seems to have moved to a region that leads nothing; the daemon
/// finds no group there and ends. The second update here would say that the group is gone.
#[test]
fn l5_the_leader_is_the_lowest_region_wherever_it_lies() {
    let (mut memory, group) = adopted(0, &[(64, 8), (128, 8)], "");
    let updated = follow(&mut memory, group, &map(&[(0, 8), (64, 8), (128, 8)]));
    assert_eq!(updated.group, group);
    let replaced = map(&[(0, 8), (32, 8), (128, 8)]); // the leader's own extent moved
    assert_eq!(follow(&mut memory, group, &replaced).group, group);
    assert_eq!(follow(&mut memory, group, &map(&[(0, 8)])).created, 0);
    assert_eq!(covered(&mut memory), map(&[(0, 8)]));
}

/// L6: where a lower id is free, the kernel gives it to a new region. LVM2 goes on to write the
/// descriptor into the old leader, where no client accepts it any more, and reports success. The
/// readers here would find a descriptor whose lowest member is another region.
#[test]
fn l6_a_new_region_below_the_leader_becomes_the_leader() {
    let (mut memory, group) = adopted(3, &[(64, 8), (128, 8)], "");
    let updated = follow(&mut memory, group, &map(&[(64, 8), (128, 8), (256, 8)]));
    assert_eq!(updated.group.id, RegionId(0));
    assert_eq!(only_group(&mut memory).1.members, [0, 3, 4]);
    assert_eq!(follow(&mut memory, updated.group, &map(&[(64, 8)])).members, 1);
}

/// L7: the leader's extent goes away and no new one comes. LVM2 rebuilds the group in a set sized
/// by the number of regions but filled with their ids, fails, and deletes all of them; with one
/// member left it happens to work. Here the group would be gone.
#[test]
fn l7_a_group_outlives_the_extent_of_its_leader() {
    for regions in [2, 3, 5, 40] {
        let extents: Vec<(u64, u64)> = (0..regions).map(|at| (at * 16, 8)).collect();
        let (mut memory, group) = adopted(0, &extents, "");
        memory.io(DEVICE, Extent::new(16, 8).unwrap(), true);
        let updated = follow(&mut memory, group, &comb(1..regions));
        assert_eq!((updated.created, updated.deleted), (0, 1));
        assert_eq!(covered(&mut memory), comb(1..regions));
        assert_eq!(writes(&mut memory), 1);
        assert_eq!(rows_of(&mut memory), updated.members);
    }
}

/// L8: LVM2 computes the bounds of new regions back from what it parsed, the bin above the last
/// bound included. They get one bound more, and nanoseconds where their siblings have milliseconds.
/// The rows here would end in other words.
#[test]
fn l8_new_regions_have_the_bounds_and_the_unit_of_the_old_ones() {
    for options in ["", "histogram:10,20,30", "precise_timestamps histogram:10000,20000"] {
        let (mut memory, group) = adopted(0, &[(64, 8)], options);
        follow(&mut memory, group, &map(&[(64, 8), (128, 8)]));
        follow(&mut memory, group, &map(&[(128, 8), (256, 8)]));
        let listing = String::from_utf8(listing_of(&mut memory)).unwrap();
        let rows = dialects::rows(listing.as_bytes()).unwrap();
        assert_eq!(rows.len(), 2);
        assert!(rows.iter().all(|row| row.options() == options.as_bytes()), "{listing}");
    }
}

/// L10: LVM2 rewrites the descriptor after each single deletion, in a message of 1,024 bytes. Of a
/// thousand extents every second one is punched: the ids that are left no longer fit, the update
/// stops half-way, and so does each later one. Here an update would fail, or leave regions behind.
#[test]
fn l10_a_thousand_extents_of_which_every_second_is_punched_are_followed() {
    let extents: Vec<(u64, u64)> = (0..1000).map(|at| (at * 16, 8)).collect();
    let (mut memory, group) = adopted(0, &extents, "");
    let punched = comb((0..1000).filter(|at| at % 2 == 1));
    let mut cut = Cut::new(&memory, &BTreeMap::new());
    let updated = update(&mut cut, DEVICE, group, &punched).unwrap();
    assert!(updated.descriptor_len > 1006, "too long for LVM2 to write, but not to read");
    let rewritten = cut.log.iter().filter(|text| text.starts_with(b"@stats_set_aux 1 ")).count();
    assert_eq!(rewritten, 1, "one commit, not one for each deletion");
    memory = cut.memory;
    assert_eq!(covered(&mut memory), punched);
    assert_eq!(rows_of(&mut memory), 500);
    let updated = follow(&mut memory, updated.group, &comb([1, 999]));
    assert_eq!(rows_of(&mut memory), updated.members);
    assert_eq!(covered(&mut memory), comb([1, 999]));
}

/// L11: when memory for new regions runs out, LVM2 has already deleted old ones, and its way back
/// deletes those that were to stay, the leader included. Here the table would not be as before.
#[test]
fn l11_an_update_for_which_there_is_no_memory_changes_nothing() {
    let (mut memory, group) = adopted(0, &[(0, 8), (64, 8), (128, 8)], "");
    let before = listing_of(&mut memory);
    let want = map(&[(64, 8), (256, 8), (512, 8), (1024, 8)]);
    for room in 0..3 {
        memory.set_regions_max(3 + room);
        let error = update(&mut memory, DEVICE, group, &want).unwrap_err();
        assert!(matches!(error, Error::Message { .. }), "{error}");
        assert_eq!(listing_of(&mut memory), before, "room for {room}");
    }
    memory.set_regions_max(1000);
    follow(&mut memory, group, &want);
    assert_eq!(covered(&mut memory), want);
}

/// L12: LVM2 escapes blanks, tabs and backslashes in a file's name and nothing else, but the kernel
/// splits messages at more: a name with a line end or with the byte A0 (in many letters of UTF-8)
/// cannot be mapped, and one with a colon makes a group that nobody can read. Here making the group
/// would fail, or the readers would.
#[test]
fn l12_a_file_may_have_any_name() {
    let names: [&[u8]; 8] = [
        b"voil\xC3\xA0.img", // its last letter ends in A0
        b"\xA0",
        b"line\nend",
        b"tab\tcr\rvt\x0bff\x0c",
        b"a b",
        b"a:b#c\"d\\e",
        b"# DMS_GROUP=",
        b"-",
    ];
    for name in names {
        let mut memory = table(b"");
        let template = template("dmstats", &safe_alias(name));
        let made = establish(&mut memory, DEVICE, &template, MARK, 1, &map(&[(0, 8), (64, 8)]));
        let group = made.unwrap().unwrap().group;
        follow(&mut memory, group, &map(&[(64, 8), (128, 8)]));
        assert_eq!(only_group(&mut memory).1.alias, safe_alias(name));
        assert_eq!(covered(&mut memory), map(&[(64, 8), (128, 8)]));
    }
}

/// L12, below the names: whatever a word holds, it reaches the kernel as one word.
#[test]
fn l12_no_byte_splits_a_message() {
    for byte in 1..=u8::MAX {
        let mut memory = table(b"0: 0+8 8 dmstats -\n");
        let aux = [b'x', byte, b'y', byte];
        send(&mut memory, &Message::SetAux { id: RegionId(0), aux: &aux }.encode());
        let row = [b"0: 0+8 8 dmstats ".as_slice(), &aux, b"\n"].concat();
        assert_eq!(listing_of(&mut memory), row, "{byte:#x}");
    }
}

/// L14: LVM2 knows a group by its id alone. If it is deleted and another gets the id before the
/// next poll, the daemon takes the stranger's regions for its own and replaces them. Here the
/// stranger's rows would change.
#[test]
fn l14_a_group_in_the_place_of_ours_is_not_ours() {
    let (_, group) = adopted(0, &[(0, 8), (64, 8)], "");
    let strangers = b"0: 0+8 8 dmstats DMS_GROUP=\"f\":0-1#-\n1: 64+8 8 dmstats -\n";
    let mut memory = table(strangers);
    let gone = update(&mut memory, DEVICE, group, &map(&[(256, 8)]));
    assert!(matches!(gone, Err(Error::Gone)), "{gone:?}");
    assert_eq!(remove(&mut memory, DEVICE, group).unwrap(), 0);
    assert_eq!(listing_of(&mut memory), strangers);
}

/// L18: LVM2 forgets the program_id it was given; one that is a number makes a message that the
/// kernel refuses, since it takes it for the number of options. Here making the group would fail,
/// or regions would belong to another program.
#[test]
fn l18_every_program_id_is_kept() {
    for program_id in ["dmstats", "1234", "0", "", "-x", "vm"] {
        let mut memory = table(b"");
        let template = template(program_id, b"f");
        let made = establish(&mut memory, DEVICE, &template, MARK, 1, &map(&[(0, 8)]));
        let group = made.unwrap().unwrap().group;
        follow(&mut memory, group, &map(&[(0, 8), (64, 8)]));
        follow(&mut memory, group, &map(&[(64, 8), (128, 8)]));
        let listing = listing_of(&mut memory);
        let written = if program_id.is_empty() { "-" } else { program_id };
        let rows = dialects::rows(&listing).unwrap();
        assert!(rows.iter().all(|row| row.program_id == written.as_bytes()), "{program_id}");
        assert_eq!(covered(&mut memory), map(&[(64, 8), (128, 8)]));
    }
}

/// L18, the worse half: a blank in a program_id spills into aux_data, since the kernel does not
/// escape what it lists. Half of the group would belong to a program called `my`, and `dmstats`
/// crashes on a group of two programs; with a line end no client could list anything any more.
/// There is no way to write such a word, so the group must not come to be.
#[test]
fn l18_a_program_id_that_cannot_be_listed_is_refused() {
    for program_id in ["my vm", "a\nb", "tab\t", " "] {
        let mut memory = table(b"0: 0+8 8 dmstats -\n");
        let template = template(program_id, b"f");
        let made = establish(&mut memory, DEVICE, &template, MARK, 1, &map(&[(0, 8), (64, 8)]));
        assert!(made.is_err(), "{program_id:?} made a group");
        assert_eq!(rows_of(&mut memory), 1, "{program_id:?} left regions behind");
    }
}

/// L22: a file stored inside its inode has an extent shorter than a sector, and LVM2 sends a region
/// of no sectors, which the kernel refuses. There is no such extent here.
#[test]
fn l22_an_extent_is_never_shorter_than_a_sector() {
    assert_eq!(Extent::new(1000, 0), None);
    assert_eq!(Extent::of_bytes(301_864, 6), None);
    assert_eq!(Extent::of_bytes(512, 0), None);
    assert_eq!(Extent::between(8, 8), None);
}

/// L23: where all of a file is still unwritten, LVM2 is left with an extent from 0 of no length,
/// which it writes as `-`: the whole device. Here a region would appear that counts a sector of
/// the disk, or one written without its range.
#[test]
fn l23_a_file_without_extents_never_counts_the_device() {
    assert!(plan(&[], &Extents::default()).create.is_empty());
    let have = Have { id: RegionId(0), extent: Extent::new(0, 8).unwrap(), member: true };
    assert!(plan(&[have], &Extents::default()).create.is_empty());

    let (memory, group) = adopted(0, &[(0, 8)], "");
    let mut cut = Cut::new(&memory, &BTreeMap::new());
    update(&mut cut, DEVICE, group, &Extents::default()).unwrap();
    for text in cut.log.iter().filter(|text| text.starts_with(b"@stats_create")) {
        assert!(text.starts_with(b"@stats_create 18014398509481984+1 "), "{}", text.escape_ascii());
    }
    let mut memory = cut.memory;
    memory.io(DEVICE, Extent::new(0, 1 << 30).unwrap(), true);
    assert_eq!(writes(&mut memory), 0);
    let template = template("dmstats", b"empty");
    let made = establish(table(b""), DEVICE, &template, MARK, 1, &Extents::default());
    assert_eq!(made.unwrap(), None);
}

/// L27: while LVM2 replaces a leader there is no group for the time of four messages; if it is
/// killed then, the regions stay for ever, without a name. Here a reader would find no group, and
/// the repair none to repair.
#[test]
fn l27_a_leader_that_is_replaced_may_be_cut_at_every_message() {
    let (memory, group) = adopted(0, &[(0, 8), (64, 8)], "");
    let (old, new) = (map(&[(0, 8), (64, 8)]), map(&[(32, 8), (64, 8)]));
    for fuel in 0.. {
        let mut cut =
            Cut { fuel: Some(fuel), applied: true, ..Cut::new(&memory, &BTreeMap::new()) };
        let result = update(&mut cut, DEVICE, group, &new);
        let listing = listing_of(&mut cut.memory);
        for reader in Reader::BOTH {
            let groups = groups(reader, &listing).unwrap();
            let shown = groups.values().map(|group| {
                let extents = group.extents.iter();
                extents.map(|(start, end)| Extent::between(*start, *end).unwrap()).collect()
            });
            let maps: Vec<Extents> = shown.collect();
            assert!(maps.contains(&old) || maps.contains(&new), "{}", cut.story());
        }
        follow(&mut cut.memory, group, &new);
        assert_eq!(covered(&mut cut.memory), new);
        assert_eq!(rows_of(&mut cut.memory), 2, "{}", cut.story());
        if result.is_ok() && fuel >= cut.log.len() {
            return;
        }
    }
}

/// L28: whenever LVM2's daemon ends, also when the file was deleted, the regions stay and cost
/// every I/O on the device. Here regions would be left, of the group or of a cut update.
#[test]
fn l28_nothing_of_a_removed_group_stays_behind() {
    let (memory, group) = adopted(0, &[(0, 8), (64, 8), (128, 8)], "");
    let want = map(&[(64, 8), (256, 8)]);
    for fuel in 0..12 {
        let mut cut =
            Cut { fuel: Some(fuel), applied: true, ..Cut::new(&memory, &BTreeMap::new()) };
        let _ = update(&mut cut, DEVICE, group, &want);
        let rows = rows_of(&mut cut.memory);
        assert_eq!(remove(&mut cut.memory, DEVICE, group).unwrap(), rows);
        assert_eq!(rows_of(&mut cut.memory), 0, "{}", cut.story());
    }
}

/// L29: extents of one file that share blocks get a region each in LVM2, so their I/O is counted
/// twice; of equal ones a later update keeps a single region under two names. Here a sector would
/// be counted twice.
#[test]
fn l29_blocks_that_a_file_shares_with_itself_are_counted_once() {
    let mut memory = table(b"");
    let shared = map(&[(0, 16), (8, 16), (8, 16), (64, 8), (64, 8)]);
    let template = template("dmstats", b"f");
    let made = establish(&mut memory, DEVICE, &template, MARK, 1, &shared).unwrap().unwrap();
    assert_eq!((made.members, covered(&mut memory)), (2, map(&[(0, 24), (64, 8)])));

    let overlapping = [(0, 16), (8, 16), (64, 8), (64, 8)]; // as LVM2 would have made it
    let (mut memory, group) = adopted(0, &overlapping, "");
    follow(&mut memory, group, &shared);
    assert_eq!(covered(&mut memory), map(&[(0, 24), (64, 8)]));
}
