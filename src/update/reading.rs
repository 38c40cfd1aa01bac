//! What the regions of groups have counted.
//!
//! A region's id is given to another region as soon as it is free, and a print names no owner. So
//! the device is listed before the prints and again after them: what is the same row in both was
//! the same region all the while.

use super::Error;
use super::conversation::Conversation;
use super::ours::Ours;
use super::{ByMark, Group};
use crate::counters::{Reading, bounds_ns, parse_print};
use crate::dm::{Device, Dm};
use crate::extent::Extent;
use crate::group::Descriptor;
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
/// in all. Nothing for a group that is not there.
///
/// # Errors
///
/// Those of the messages.
pub fn read(
    dm: impl Dm,
    device: Device,
    groups: &[Group],
) -> Result<(Vec<Vec<Count>>, usize), Error> {
    let mut kernel = Conversation::new(dm, device);
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    let by_mark = ByMark::new(&rows);
    let mut found = Vec::with_capacity(groups.len());
    for group in groups {
        let near = by_mark.around(group.mark);
        let ours = Ours::among(&near, group.mark, Some(group.id));
        found.push(print(&mut kernel, ours.members())?);
    }
    let after = kernel.list()?;
    let after = parse_list(&after)?;
    for counts in &mut found {
        keep_same(counts, &rows, &after);
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

/// Drops what is not the same region in both listings.
fn keep_same(counts: &mut Vec<Count>, before: &[Region<'_>], after: &[Region<'_>]) {
    let is_same = |id| match (super::ours::row(before, id), super::ours::row(after, id)) {
        (Some(before), Some(after)) => {
            let word = |row: &Region<'_>| crate::group::Mark::of(row);
            (before.extent, before.step, before.program_id, before.clockwork, word(before))
                == (after.extent, after.step, after.program_id, after.clockwork, word(after))
        }
        _ => false,
    };
    counts.retain(|count| is_same(count.id));
}
