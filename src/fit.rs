//! Keeping a group's descriptor short enough to be read.
//!
//! A descriptor lists ids, and ids scatter: of 2,000 regions every second one goes, and what is
//! left is `1,3,5,...`, 4,444 bytes where LVM2 reads 4,094. Then some regions have to be made anew,
//! next to each other. That costs their counts and a create each, so it is done to as few as will
//! do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::extent::Extent;
use crate::group::Members;
use crate::message::RegionId;
use crate::plan::Delta;

/// Turns regions that `delta` keeps into ones to delete and create anew, until the list of members
/// takes at most `room` bytes. `taken` are all ids on the device, in rising order: the kernel will
/// give the lowest that are not among them. `spare` are regions among those to delete that can take
/// the place of another with the same extent, as an earlier attempt may have left them.
///
/// # Errors
///
/// The bytes needed, and the room, if it does not fit even so.
pub fn fit(
    delta: &mut Delta,
    taken: &[RegionId],
    mut spare: BTreeMap<Extent, RegionId>,
    room: usize,
) -> Result<(), (usize, usize)> {
    let mut keep = None;
    loop {
        let needed = expected_members(delta, taken).to_string().len();
        if needed <= room {
            break;
        }
        let keep = keep.get_or_insert_with(|| lonely_last(delta));
        // A region that leaves its place saves its digits and a comma at the most.
        let digits = taken.last().map_or(1, |id| id.to_string().len() + 1);
        let moved = keep.split_off(keep.len().saturating_sub((needed - room).div_ceil(digits)));
        if moved.is_empty() {
            return Err((needed, room));
        }
        let leaves: BTreeSet<RegionId> = moved.iter().map(|(id, _)| *id).collect();
        delta.keep.retain(|(id, _)| !leaves.contains(id));
        delta.delete.extend(moved.iter().map(|(id, _)| *id));
        let mut saved = BTreeSet::new();
        for (_, extent) in moved {
            match spare.remove(&extent) {
                Some(id) => {
                    saved.insert(id);
                    delta.keep.push((id, extent));
                }
                None => delta.create.push(extent),
            }
        }
        delta.delete.retain(|doomed| !saved.contains(doomed));
    }
    delta.keep.sort_unstable_by_key(|(_, extent)| *extent);
    delta.create.sort_unstable();
    delta.delete.sort_unstable();
    Ok(())
}

/// The members once the delta is carried out, if nobody else creates a region meanwhile.
fn expected_members(delta: &Delta, taken: &[RegionId]) -> Members {
    let mut taken = taken.iter().copied().peekable();
    let free = (0..).map(RegionId).filter(|id| taken.next_if_eq(id).is_none());
    let created = free.take(delta.create.len());
    let mut ids: Vec<RegionId> = delta.keep.iter().map(|(id, _)| *id).chain(created).collect();
    ids.sort_unstable();
    ids.into_iter().collect()
}

/// What is kept, those last that save most when they move: single ids before short runs, long
/// numbers before short ones.
fn lonely_last(delta: &Delta) -> Vec<(RegionId, Extent)> {
    let mut keep = delta.keep.clone();
    keep.sort_unstable_by_key(|(id, _)| *id);
    let mut run_lens: BTreeMap<RegionId, usize> = BTreeMap::new();
    let mut run = Vec::new();
    for (at, (id, _)) in keep.iter().enumerate() {
        run.push(*id);
        if keep.get(at + 1).is_none_or(|(next, _)| next.0 != id.0 + 1) {
            let len = run.len();
            run_lens.extend(run.drain(..).map(|id| (id, len)));
        }
    }
    keep.sort_by_key(|(id, _)| (Reverse(run_lens[id]), *id));
    keep
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(id: u32) -> (RegionId, Extent) {
        (RegionId(id), Extent::new(u64::from(id) * 10, 8).unwrap())
    }

    fn every_second_of(regions: u32) -> (Delta, Vec<RegionId>) {
        let keep = (0..regions).filter(|id| id % 2 == 1).map(region).collect();
        let delete = (0..regions).filter(|id| id % 2 == 0).map(RegionId).collect();
        (Delta { keep, create: Vec::new(), delete }, (0..regions).map(RegionId).collect())
    }

    #[test]
    fn what_fits_is_left_alone() {
        let (mut delta, taken) = every_second_of(100);
        let before = delta.clone();
        assert_eq!(fit(&mut delta, &taken, BTreeMap::new(), 200), Ok(()));
        assert_eq!(delta, before);
    }

    #[test]
    fn scattered_regions_move_together_and_no_more_of_them_than_needed() {
        let (mut delta, taken) = every_second_of(2000);
        assert_eq!(fit(&mut delta, &taken, BTreeMap::new(), 3900), Ok(()));
        assert!(expected_members(&delta, &taken).to_string().len() <= 3900);
        // 4,444 bytes before; 5 saved by each that moves, and 10 taken by "2000-2110".
        assert!((109..=113).contains(&delta.create.len()), "{}", delta.create.len());
        assert_eq!(delta.keep.len() + delta.create.len(), 1000);
        assert_eq!(delta.delete.len(), 1000 + delta.create.len());
        assert!(delta.keep.iter().all(|(id, _)| id.0 < 1800), "the longest numbers move");
    }

    #[test]
    fn a_long_run_stays() {
        let (mut delta, mut taken) = every_second_of(2000);
        delta.keep.extend((2000..3000).map(region));
        taken.extend((2000..3000).map(RegionId));
        assert_eq!(fit(&mut delta, &taken, BTreeMap::new(), 3900), Ok(()));
        assert!((2000..3000).all(|id| delta.keep.contains(&region(id))));
    }

    #[test]
    fn holes_between_the_regions_of_others_are_no_place() {
        let taken: Vec<RegionId> = (0..4000).filter(|id| id % 2 == 0).map(RegionId).collect();
        let create = (0..1500).map(|id| region(id).1).collect();
        let mut delta = Delta { create, ..Delta::default() };
        assert!(fit(&mut delta, &taken, BTreeMap::new(), 3900).is_err());
    }
}
