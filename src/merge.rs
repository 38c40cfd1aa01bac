//! Merging extents, where a file has more of them than its group may have regions.
//!
//! A region across a gap saves one, and counts the sectors in between, which are others'. So the
//! smallest gaps are filled. From scratch that is all: no other choice of as few regions takes in
//! fewer foreign sectors.
//!
//! But a create stops the device's I/O, so what is there counts for more than what would be best.
//! Filled may be as many of the smallest gaps as a limit of an eighth fewer regions would need. Of
//! these a gap that is filled stays so, and others are filled only as far as the limit needs it:
//! those that take the fewest creates, and among them the smallest. A change of one extent is then
//! one or two creates, and not a matter of every gap that is nearly as large as the next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::extent::{Extent, Extents};
use crate::plan::{Have, plan};
use crate::shape::{Piece, Shape, pieces};

/// The shape of a group of `max` regions or fewer that shows a file with this map, when it has the
/// regions `have`. Extents that several regions cover are left as they are: see [`crate::fold`].
///
/// Time grows as `n log n`.
#[must_use]
pub fn merge(have: &[Have], want: &Extents, max: usize) -> Shape {
    merge_with(have, want, max, slack(max))
}

/// How many regions fewer than `max` might be had for the foreign sectors that may be taken in.
#[must_use]
pub fn slack(max: usize) -> usize {
    max / 8
}

fn merge_with(have: &[Have], want: &Extents, max: usize, slack: usize) -> Shape {
    let fillable = want.len().saturating_sub(max.saturating_sub(slack).max(1));
    if fillable == 0 {
        return Shape::from(want);
    }
    let fillable = smallest_gaps(want, fillable);
    let bridged = bridged(have, want, &fillable);
    let cover = want.and(&bridged);
    let excess = cover.len().saturating_sub(max.max(1));
    if excess == 0 {
        return Shape::from(&cover);
    }
    let whole = Seams::new(have, &cover, &fillable).close(excess);
    Shape { cover: cover.and(&whole), whole }
}

/// The smallest gaps between the extents; of equal ones the first.
fn smallest_gaps(want: &Extents, count: usize) -> Extents {
    let extents = want.as_slice();
    let gap = |pair: &[Extent]| Extent::between(pair[0].end(), pair[1].start());
    let mut gaps: Vec<Extent> = extents.windows(2).filter_map(gap).collect();
    gaps.sort_unstable_by_key(|gap| (gap.len(), gap.start()));
    gaps.truncate(count);
    gaps.into_iter().collect()
}

/// Those of the gaps across which a member reaches that can stay if they are filled.
fn bridged(have: &[Have], want: &Extents, gaps: &Extents) -> Extents {
    let most = want.and(gaps);
    let may_stay = |region: &&Have| region.member && most.around(region.extent).is_some();
    let mut members: Vec<Extent> = have.iter().filter(may_stay).map(|it| it.extent).collect();
    members.sort_unstable();
    let mut members = members.into_iter().peekable();
    let mut reach = 0;
    let mut is_bridged = |gap: &&Extent| {
        while let Some(member) = members.next_if(|member| member.start() < gap.start()) {
            reach = reach.max(member.end());
        }
        reach > gap.end()
    };
    gaps.as_slice().iter().filter(&mut is_bridged).copied().collect()
}

/// One extent of a cover: the regions at its ends, which one across a gap would replace.
struct Span {
    first: Extent,
    last: Extent,
    /// Whether there is something to be created there in any case.
    first_made: bool,
    last_made: bool,
    /// Both ends are one region.
    single: bool,
}

impl Span {
    fn new(pieces: &[Piece]) -> Span {
        let (first, last) = (&pieces[0], &pieces[pieces.len() - 1]);
        // What is created beside a region that goes is created together with what replaces it.
        let made =
            |pieces: &mut dyn Iterator<Item = &Piece>| pieces.take(2).any(|p| p.id.is_none());
        Span {
            first: first.extent,
            last: last.extent,
            first_made: made(&mut pieces.iter()),
            last_made: made(&mut pieces.iter().rev()),
            single: pieces.len() == 1,
        }
    }
}

/// The gaps between the extents of a cover, some of which are to be filled.
struct Seams {
    spans: Vec<Span>,
    /// Sectors in the gap after each span, if it may be filled and is not yet.
    open: Vec<Option<u64>>,
    /// What would cost least, with prices that may have fallen meanwhile.
    heap: BinaryHeap<Reverse<(i8, u64, usize)>>,
}

impl Seams {
    fn new(have: &[Have], cover: &Extents, fillable: &Extents) -> Seams {
        let delta = plan(have, cover);
        let spans = pieces(&delta, cover).iter().map(|pieces| Span::new(pieces)).collect();
        let open = cover.as_slice().windows(2).map(|pair| {
            let gap = Extent::between(pair[0].end(), pair[1].start())?;
            fillable.around(gap).map(Extent::len)
        });
        let open: Vec<Option<u64>> = open.collect();
        let mut seams = Seams { spans, open, heap: BinaryHeap::new() };
        (0..seams.open.len()).for_each(|at| seams.offer(at));
        seams
    }

    /// Creates more than there would be if the gap stayed open.
    fn price(&self, at: usize) -> i8 {
        1 - i8::from(self.spans[at].last_made) - i8::from(self.spans[at + 1].first_made)
    }

    fn offer(&mut self, at: usize) {
        if let Some(len) = self.open.get(at).copied().flatten() {
            self.heap.push(Reverse((self.price(at), len, at)));
        }
    }

    /// Fills so many gaps. Gives what is to be one region across them.
    fn close(mut self, count: usize) -> Extents {
        let mut whole = Vec::with_capacity(count);
        while whole.len() < count {
            let Some(Reverse((price, _, at))) = self.heap.pop() else { break };
            if self.open[at].is_none() || price != self.price(at) {
                continue; // filled, or there is an offer at its price
            }
            self.open[at] = None;
            whole.extend(Extent::between(
                self.spans[at].last.start(),
                self.spans[at + 1].first.end(),
            ));
            self.spans[at].last_made = true;
            self.spans[at + 1].first_made = true;
            if self.spans[at].single {
                self.spans[at].first_made = true;
                at.checked_sub(1).into_iter().for_each(|before| self.offer(before));
            }
            if self.spans[at + 1].single {
                self.spans[at + 1].last_made = true;
                self.offer(at + 1);
            }
        }
        whole.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::RegionId;
    use crate::plan::Delta;

    const DISK: u32 = 9;

    /// The map whose sectors are the bits that are set.
    fn map(bits: u32) -> Extents {
        let sectors = (0..DISK).filter(|sector| bits >> sector & 1 == 1);
        sectors.filter_map(|sector| Extent::new(u64::from(sector), 1)).collect()
    }

    fn runs(bits: u32) -> usize {
        (bits & !(bits << 1)).count_ones() as usize
    }

    /// The oracle: foreign sectors in the best of all covers of so many runs or fewer.
    fn fewest_foreign(want: u32, max: usize) -> u64 {
        let covers = (0..1u32 << DISK).filter(|cover| cover & want == want && runs(*cover) <= max);
        let foreign = covers.map(|cover| u64::from((cover & !want).count_ones()));
        foreign.min().expect("the whole disk is a cover of one run")
    }

    fn members(extents: &Extents) -> Vec<Have> {
        let ids = (0..).map(RegionId);
        let have = |(id, extent): (RegionId, &Extent)| Have { id, extent: *extent, member: true };
        ids.zip(extents.as_slice()).map(have).collect()
    }

    fn foreign(shape: &Shape, want: &Extents) -> u64 {
        assert!(want.without(&shape.cover).is_empty(), "{want:?} in {shape:?}");
        shape.cover.sectors() - want.sectors()
    }

    #[test]
    fn from_scratch_no_other_choice_takes_in_fewer_foreign_sectors() {
        for bits in 0..1 << DISK {
            for max in 1..=5 {
                let want = map(bits);
                let shape = merge_with(&[], &want, max, 0);
                assert!(shape.cover.len() <= max, "{want:?} {max}: {shape:?}");
                assert_eq!(foreign(&shape, &want), fewest_foreign(bits, max), "{want:?} {max}");
                assert_eq!(shape.plan(&[]).create, shape.cover.as_slice());
            }
        }
    }

    /// All that a group of so many regions can come from and change to, on a smaller disk.
    fn for_each_change(mut check: impl FnMut(&[Have], u32, usize, usize)) {
        const CELLS: u32 = 1 << (DISK - 2);
        for (max, slack) in [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2)] {
            for before in 0..CELLS {
                let have = members(&merge_with(&[], &map(before), max, 0).cover);
                (0..CELLS).for_each(|want| check(&have, want, max, slack));
            }
        }
    }

    #[test]
    fn no_more_is_taken_in_than_the_best_for_a_somewhat_lower_limit() {
        for_each_change(|have, bits, max, slack| {
            let want = map(bits);
            let shape = merge_with(have, &want, max, slack);
            let told = || format!("{have:?} to {want:?}, {max} and {slack}: {shape:?}");
            assert!(shape.cover.len() <= max, "{}", told());
            assert!(foreign(&shape, &want) <= fewest_foreign(bits, max - slack), "{}", told());
        });
    }

    #[test]
    fn what_is_merged_once_stays_as_it_is() {
        for_each_change(|have, bits, max, slack| {
            let want = map(bits);
            let shape = merge_with(have, &want, max, slack);
            let Delta { keep, create, .. } = shape.plan(have);
            let created = (100..).map(RegionId).zip(create);
            let have: Vec<Have> = keep
                .into_iter()
                .chain(created)
                .map(|(id, extent)| Have { id, extent, member: true })
                .collect();
            let again = merge_with(&have, &want, max, slack);
            let delta = again.plan(&have);
            assert_eq!(again.cover, shape.cover, "{want:?}, {max} and {slack}");
            assert!(delta.create.is_empty() && delta.delete.is_empty(), "{shape:?} {delta:?}");
        });
    }

    /// The oracle for one gap too many: each one that may be filled, in turn.
    fn best_of_one(have: &[Have], cover: &Extents, fillable: &Extents) -> Option<(usize, u64)> {
        let gaps = cover.as_slice().windows(2).map(|pair| (pair[0].end(), pair[1].start()));
        let gaps = gaps.filter_map(|(start, end)| Extent::between(start, end));
        let fill = |gap: Extent| {
            let across = Extent::between(gap.start() - 1, gap.end() + 1);
            let whole: Extents = across.into_iter().collect();
            let shape = Shape { cover: cover.and(&whole), whole };
            (shape.plan(have).create.len(), gap.len())
        };
        gaps.filter(|gap| fillable.around(*gap).is_some()).map(fill).min()
    }

    #[test]
    fn one_gap_more_is_the_smallest_of_those_that_take_the_fewest_creates() {
        let mut compared = 0;
        for_each_change(|have, bits, max, slack| {
            let want = map(bits);
            let fillable = smallest_gaps(&want, want.len().saturating_sub(max - slack));
            let cover = want.and(&bridged(have, &want, &fillable));
            if cover.len() != max + 1 {
                return;
            }
            let best = best_of_one(have, &cover, &fillable);
            let shape = merge_with(have, &want, max, slack);
            let found = (shape.plan(have).create.len(), shape.cover.sectors() - cover.sectors());
            assert_eq!(Some(found), best, "{have:?} to {want:?}, {max} and {slack}: {shape:?}");
            compared += 1;
        });
        assert!(compared > 1000, "{compared}");
    }

    #[test]
    fn of_ten_thousand_extents_one_more_takes_two_creates() {
        let extent = |at: u64| Extent::new(at * 1000 + at * at % 700, 8);
        let want: Extents = (0..10_000).filter_map(extent).collect();
        let have = members(&merge(&[], &want, 1000).cover);
        assert_eq!(have.len(), 1000);
        let longer: Extents = (0..=10_000).filter_map(extent).collect();
        let shape = merge(&have, &longer, 1000);
        let delta = shape.plan(&have);
        assert!(shape.cover.len() <= 1000 && delta.create.len() <= 2, "{:?}", delta.create);
        let shorter: Extents = (0..9_999).filter_map(extent).collect();
        assert!(merge(&have, &shorter, 1000).plan(&have).create.len() <= 2);
    }
}
