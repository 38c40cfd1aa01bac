//! Where each piece of a file lies, and the regions of its group.

use std::fs::File;
use std::io;

use serde::Serialize;

use crate::dm::{Device, Dm};
use crate::extent::{Extent, Extents, SECTOR_BYTES};
use crate::group::Descriptor;
use crate::kernel::fiemap::{self, Mapped, Pages};
use crate::message::{Message, Region, parse_list};
use crate::sample::{Spot, read_pieces, spot};
use crate::update::ANCHOR;

/// A file and its group, side by side.
#[derive(Debug, Default, Serialize)]
pub struct Layout {
    /// How long the file is.
    pub file_bytes: u64,
    /// Runs of the file that lie on the device as they do in the file, holes included.
    pub fragments: u64,
    /// In the order of the file.
    pub pieces: Vec<Piece>,
    /// The group that shows it, if there is one and it can be seen.
    pub group: Option<Group>,
    /// Other groups that count some of the file.
    pub other_groups: u64,
    /// Why the regions cannot be seen.
    pub regions_error: Option<String>,
    /// Where the file lies.
    #[serde(skip)]
    pub extents: Extents,
    /// How large the device is; 0 if that is not known.
    #[serde(skip)]
    pub device_sectors: u64,
}

/// A piece of the file, as the filesystem tells it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Piece {
    pub file_offset_bytes: u64,
    pub bytes: u64,
    /// None if it has no sectors of its own on the device.
    pub start_sector: Option<u64>,
    /// What is special about it.
    pub notes: Vec<&'static str>,
    /// The members of the group that count some of it, by rising id.
    pub regions: Vec<u32>,
}

/// A group of regions.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    pub id: u32,
    pub alias: String,
    /// Its members, by rising id.
    pub regions: Vec<Member>,
}

/// A region of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    pub id: u32,
    pub start_sector: u64,
    pub sectors: u64,
}

impl Member {
    /// What it counts; None for an anchor, which counts nothing.
    pub fn extent(&self) -> Option<Extent> {
        Extent::new(self.start_sector, self.sectors).filter(|extent| extent.start() != ANCHOR)
    }
}

impl Group {
    /// What the member with this id counts.
    pub fn extent(&self, id: u32) -> Option<Extent> {
        let at = self.regions.binary_search_by_key(&id, |member| member.id).ok()?;
        self.regions[at].extent()
    }

    /// The sectors that it counts.
    pub fn counted(&self) -> Extents {
        self.regions.iter().filter_map(Member::extent).collect()
    }
}

impl Piece {
    fn new(mapped: &Mapped) -> Piece {
        let is = |flags: u32| mapped.flags & flags != 0;
        let spot = spot(mapped);
        let extent = match spot {
            Spot::At(extent) => Some(extent),
            Spot::NotYet | Spot::Nowhere => None,
        };
        let among_others = is(fiemap::DATA_INLINE | fiemap::DATA_TAIL | fiemap::NOT_ALIGNED);
        let notes = [
            (spot == Spot::NotYet && among_others, "inline"),
            (spot == Spot::NotYet && !among_others, "no place yet"),
            (spot == Spot::Nowhere && is(fiemap::ENCODED), "compressed"),
            (is(fiemap::UNWRITTEN), "unwritten"),
            (is(fiemap::SHARED), "shared"),
        ];
        Piece {
            file_offset_bytes: mapped.logical,
            bytes: mapped.length,
            start_sector: extent.map(Extent::start),
            notes: notes.iter().filter(|(is, _)| *is).map(|(_, note)| *note).collect(),
            regions: Vec::new(),
        }
    }

    /// Where it lies.
    pub fn extent(&self) -> Option<Extent> {
        Extent::new(self.start_sector?, self.bytes / SECTOR_BYTES)
    }
}

impl Layout {
    /// Of an open file; without regions.
    pub fn of_file(file: &File, device_sectors: u64) -> io::Result<Layout> {
        let pieces = read_pieces(file, &mut Pages::default())?;
        let pieces = pieces.iter().map(Piece::new).collect();
        Ok(Layout { device_sectors, ..Layout::of_pieces(file.metadata()?.len(), pieces) })
    }

    /// Of these pieces; without regions.
    pub fn of_pieces(file_bytes: u64, pieces: Vec<Piece>) -> Layout {
        let extents = pieces.iter().filter_map(Piece::extent).collect();
        Layout { file_bytes, fragments: fragments(&pieces), pieces, extents, ..Layout::default() }
    }

    /// Adds the regions of its device; `keys` are those of the file's marks.
    pub fn see_regions(&mut self, dm: &mut impl Dm, device: Device, keys: &[u64]) {
        let seen = dm.message(device, &Message::List { program_id: None }.encode());
        let seen = seen.map_err(|error| error.to_string()).and_then(|reply| {
            let rows = parse_list(&reply.text).map_err(|error| error.to_string())?;
            Ok(groups(&rows, keys, &self.extents))
        });
        match seen {
            Ok((group, others)) => self.show(group, others),
            Err(error) => self.regions_error = Some(format!("listing the regions: {error}")),
        }
    }

    /// Adds the group, and names its members at the pieces that they count.
    pub fn show(&mut self, group: Option<Group>, other_groups: u64) {
        let regions = group.as_ref().map_or(&[][..], |group| &group.regions);
        let index = Index::new(regions);
        for piece in &mut self.pieces {
            piece.regions = piece.extent().map(|extent| index.around(extent)).unwrap_or_default();
        }
        (self.group, self.other_groups) = (group, other_groups);
    }
}

/// How often a reader of the whole file has to go elsewhere, and once more.
fn fragments(pieces: &[Piece]) -> u64 {
    let shift = |piece: &Piece| {
        let at = i128::from(piece.start_sector?) * i128::from(SECTOR_BYTES);
        Some(at - i128::from(piece.file_offset_bytes))
    };
    let mut shifts: Vec<i128> = pieces.iter().filter_map(shift).collect();
    shifts.dedup();
    shifts.len() as u64
}

/// Members by where they lie.
struct Index {
    /// By rising start; with each the highest end up to there.
    members: Vec<(Extent, u32, u64)>,
}

impl Index {
    fn new(regions: &[Member]) -> Index {
        let mut members: Vec<_> =
            regions.iter().filter_map(|member| Some((member.extent()?, member.id, 0))).collect();
        members.sort_unstable();
        let mut highest = 0;
        for (extent, _, end) in &mut members {
            highest = extent.end().max(highest);
            *end = highest;
        }
        Index { members }
    }

    /// The ids of those that have a sector of the extent.
    fn around(&self, extent: Extent) -> Vec<u32> {
        let before = self.members.partition_point(|(member, ..)| member.start() < extent.end());
        let near = self.members[..before].iter().rev();
        let near = near.take_while(|(.., highest)| *highest > extent.start());
        let over = near.filter(|(member, ..)| member.overlaps(extent));
        let mut ids: Vec<u32> = over.map(|(_, id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }
}

/// The group that shows a file which lies there: the one with its mark, or else one that counts
/// more of the file than of anything else; and how many others count some of it.
fn groups(rows: &[Region<'_>], keys: &[u64], extents: &Extents) -> (Option<Group>, u64) {
    let mut best: Option<((bool, u64), Group)> = None;
    let mut touching = 0;
    for (at, leader) in rows.iter().enumerate() {
        let Some(descriptor) = Descriptor::of(leader) else { continue };
        // Its lowest member is the leader.
        let near = rows[at..].iter().take_while(|row| Some(row.id) <= descriptor.members.last());
        let named = |row: &&Region<'_>| {
            descriptor.members.contains(row.id) && row.program_id == leader.program_id
        };
        let group = Group {
            id: leader.id.0,
            alias: String::from_utf8_lossy(&descriptor.alias).into_owned(),
            regions: near.filter(named).map(member).collect(),
        };
        let counted = group.counted();
        let foreign = counted.without(extents).sectors();
        let common = counted.sectors() - foreign;
        touching += u64::from(common > 0);
        let marked = descriptor.mark.is_some_and(|mark| keys.contains(&{ mark.key }));
        let rank = (marked, common);
        if (marked || common > foreign) && best.as_ref().is_none_or(|(before, _)| rank > *before) {
            best = Some((rank, group));
        }
    }
    let others = touching - u64::from(best.as_ref().is_some_and(|((_, common), _)| *common > 0));
    (best.map(|(_, group)| group), others)
}

fn member(row: &Region<'_>) -> Member {
    Member { id: row.id.0, start_sector: row.extent.start(), sectors: row.extent.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, start: u64, sectors: u64) -> Piece {
        let mapped = Mapped {
            logical: offset * SECTOR_BYTES,
            physical: start * SECTOR_BYTES,
            length: sectors * SECTOR_BYTES,
            ..Mapped::default()
        };
        Piece::new(&mapped)
    }

    fn flagged(flags: u32) -> (Option<u64>, Vec<&'static str>) {
        let mapped = Mapped { physical: 4096, length: 4096, flags, ..Mapped::default() };
        let Piece { start_sector, notes, .. } = Piece::new(&mapped);
        (start_sector, notes)
    }

    #[test]
    fn what_is_special_about_a_piece_is_noted() {
        assert_eq!(flagged(fiemap::LAST), (Some(8), vec![]));
        assert_eq!(
            flagged(fiemap::UNWRITTEN | fiemap::SHARED),
            (Some(8), vec!["unwritten", "shared"])
        );
        assert_eq!(flagged(fiemap::DELALLOC | fiemap::UNKNOWN), (None, vec!["no place yet"]));
        assert_eq!(flagged(fiemap::DATA_INLINE | fiemap::NOT_ALIGNED), (None, vec!["inline"]));
        assert_eq!(flagged(fiemap::ENCODED), (None, vec!["compressed"]));
        assert_eq!(flagged(fiemap::ENCODED | fiemap::DATA_ENCRYPTED), (Some(8), vec![]));
    }

    #[test]
    fn a_hole_that_is_free_on_the_device_too_does_not_make_a_fragment() {
        let of = |pieces| Layout::of_pieces(0, pieces).fragments;
        assert_eq!(of(vec![]), 0);
        assert_eq!(of(vec![piece(0, 100, 8), piece(8, 108, 8)]), 1);
        assert_eq!(of(vec![piece(0, 100, 8), piece(16, 116, 8)]), 1, "punched");
        assert_eq!(of(vec![piece(0, 100, 8), piece(16, 108, 8)]), 2, "sparse");
        assert_eq!(of(vec![piece(0, 100, 8), piece(8, 50, 8), piece(16, 116, 8)]), 3);
    }

    /// The id of the file's group, its alias and its regions, and the number of other groups.
    fn seen(listing: &str, pieces: Vec<Piece>) -> (Option<(u32, String, usize)>, u64) {
        let rows = parse_list(listing.as_bytes()).unwrap();
        let (group, others) = groups(&rows, &[0xab], &Layout::of_pieces(0, pieces).extents);
        (group.map(|group| (group.id, group.alias, group.regions.len())), others)
    }

    #[test]
    fn a_group_is_known_by_its_mark_or_by_what_it_counts() {
        let file = || vec![piece(0, 100, 100)];
        let is = |id, alias: &str, len| Some((id, alias.to_owned(), len));
        let old = "0: 100+80 80 dmstats DMS_GROUP=old:0-1#-\n1: 900+8 8 dmstats -\n";
        assert_eq!(seen(old, file()), (is(0, "old", 2), 0));
        assert_eq!(seen(old, vec![piece(0, 170, 100)]), (None, 1), "mostly another's");
        assert_eq!(seen(old, vec![piece(0, 500, 100)]), (None, 0));
        let mark = "fm=00000000000000ab.00000001.0000000c.";
        let ours = format!("{old}2: 900+8 8 dmstats DMS_GROUP=\"a\":2-3#{mark}\n");
        let ours = format!("{ours}3: 150+8 8 others -\n");
        assert_eq!(seen(&ours, file()), (is(2, "a", 1), 1), "stale, and it is the file's");
    }

    #[test]
    fn a_piece_names_all_regions_that_count_some_of_it() {
        let member = |id, start_sector, sectors| Member { id, start_sector, sectors };
        let regions = vec![
            member(0, 100, 50),
            member(1, 10, 500),
            member(2, 160, 10),
            member(3, ANCHOR, 1),
            member(4, 150, 10),
        ];
        let mut layout = Layout::of_pieces(0, vec![piece(0, 140, 20), piece(20, 600, 8)]);
        layout.show(Some(Group { id: 0, alias: String::new(), regions }), 0);
        assert_eq!(layout.pieces[0].regions, [0, 1, 4]);
        assert_eq!(layout.pieces[1].regions, [0; 0]);
    }
}
