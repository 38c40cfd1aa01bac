//! What the regions of groups have counted: all of them now and then, and those that come and go
//! when they do.
//!
//! A region's id is given to another region as soon as it is free, and a print names no owner. So
//! the device is listed before the prints and again after them: what is the same row in both was
//! the same region all the while.

use super::Error;
use super::conversation::Conversation;
use super::ours::{Ours, row};
use super::{ByMark, Group};
use crate::counters::{Reading, bounds_ns, parse_print};
use crate::dm::{Device, Dm};
use crate::extent::Extent;
use crate::group::{Descriptor, Mark};
use crate::message::{Region, RegionId, parse_list};

/// What one region has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Its number.
    pub id: RegionId,
    /// What it counts.
    pub extent: Extent,
    /// What it has counted.
    pub reading: Reading,
    /// Bounds of its histogram; empty without one.
    pub bounds_ns: Vec<u64>,
}

/// A region of a group that comes or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passing {
    /// It is about to be deleted: all that it has counted.
    Ended(Count),
    /// It is a member from here on. What it has counted so far was another's to count, or nobody's.
    Began(Count),
    /// What had this number is no more.
    Gone(RegionId),
}

/// What an update of a group has read of the regions that came and went, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The group's.
    pub mark: Mark,
    /// The regions; one may come and go.
    pub regions: Vec<Passing>,
}

/// The regions of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Its members, by rising id, and what they have counted.
    pub members: Vec<Count>,
    /// Regions that bear its mark and are no members, by rising id.
    pub others: Vec<(RegionId, Extent)>,
}

/// A group of anybody's, and what its members have counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Its leader, which is its id.
    pub id: RegionId,
    /// What its leader says of it.
    pub descriptor: Descriptor,
    /// Its members, by rising id.
    pub counts: Vec<Count>,
}

/// What all groups of a device have counted, whoever made them and in whichever dialect; and how
/// many regions there are in all.
///
/// # Errors
///
/// Those of the messages.
pub fn read_all(dm: impl Dm, device: Device) -> Result<(Vec<Counted>, usize), Error> {
    let mut kernel = Conversation::new(dm, device);
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    let mut found = Vec::new();
    for leader in &rows {
        let Some(descriptor) = Descriptor::of(leader) else { continue };
        let named = |row: &&Region<'_>| {
            descriptor.members.contains(row.id) && row.program_id == leader.program_id
        };
        let counts = print(&mut kernel, rows.iter().filter(named))?;
        found.push(Counted { id: leader.id, descriptor, counts });
    }
    let after = kernel.list()?;
    let after = parse_list(&after)?;
    for counted in &mut found {
        keep_same(&mut counted.counts, &rows, &after);
    }
    Ok((found, rows.len()))
}

/// What the members of these groups have counted, in the same order; and how many regions there are
/// in all. Nothing of a group that is not there.
///
/// # Errors
///
/// Those of the messages.
pub fn read(dm: impl Dm, device: Device, groups: &[Group]) -> Result<(Vec<Tally>, usize), Error> {
    let mut kernel = Conversation::new(dm, device);
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    let by_mark = ByMark::new(&rows);
    let mut found = Vec::with_capacity(groups.len());
    for group in groups {
        let near = by_mark.around(group.mark);
        let ours = Ours::among(&near, group.mark, Some(group.id));
        let members = print(&mut kernel, ours.members())?;
        let others = ours.others().map(|region| (region.id, region.extent)).collect();
        found.push(Tally { members, others });
    }
    let after = kernel.list()?;
    let after = parse_list(&after)?;
    for tally in &mut found {
        keep_same(&mut tally.members, &rows, &after);
    }
    Ok((found, rows.len()))
}

/// What these regions have counted; one that is gone is left out.
fn print<'a, 'r: 'a, D: Dm>(
    kernel: &mut Conversation<D>,
    rows: impl Iterator<Item = &'a Region<'r>>,
) -> Result<Vec<Count>, Error> {
    let mut counts = Vec::new();
    for row in rows {
        let text = match kernel.print(row.id) {
            Err(error) if error.is_no_region() => continue,
            text => text?,
        };
        // Another region may have the id by now, and count in another way.
        if let Ok(reading) = parse_print(&text, row.clockwork) {
            let bounds_ns = bounds_ns(row.clockwork);
            counts.push(Count { id: row.id, extent: row.extent, reading, bounds_ns });
        }
    }
    Ok(counts)
}

/// Drops what is not the same region in both listings, whatever else has become of its word.
fn keep_same(counts: &mut Vec<Count>, before: &[Region<'_>], after: &[Region<'_>]) {
    let is_same = |id| match (row(before, id), row(after, id)) {
        (Some(before), Some(after)) => {
            let aux = before.aux; // what tells is whose it is, which the mark says
            Region { aux, ..*after } == *before && Mark::of(before) == Mark::of(after)
        }
        _ => false,
    };
    counts.retain(|count| is_same(count.id));
}
