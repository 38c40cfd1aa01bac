//! Folding: one region in the place of several that lie side by side.
//!
//! A file that grows gets a region more each time, since a region cannot grow. Each taxes every I/O
//! of the device, so there is a number of them, beyond those that the extents need, from which on
//! some are replaced by one. That costs the counters that the kernel has of them, and a create
//! unless something had to be created there anyway. What is folded is a run of neighbours, and of
//! all runs
//!
//! 1. the one that takes the fewest creates,
//! 2. of these the one in which the fewest sectors belong to regions that have counted anything.
//!
//! # Pieces of a log
//!
//! To fold the newest piece of a file with the one before it, each time the file grows, would cost
//! the second largest region its counters ever again. So no region is folded into less than twice
//! its size, as levels of a log-structured merge tree are not: a region's sectors change hands no
//! more often than the file can double, and a file that grows piece by piece has a number of pieces
//! that grows as the logarithm of its size. Where runs of pieces are so uneven that none of them
//! qualifies, each further piece halves what is asked for.

use std::cmp::Reverse;
use std::collections::HashSet;

use crate::extent::{Extent, Extents};
use crate::message::RegionId;
use crate::plan::Have;
use crate::shape::{Limits, Shape, pieces};

/// Regions in a run at the most: what is longer is folded in several steps.
const RUN_MAX: usize = 64;

/// Regions too many from which on whole extents are folded first: there is no time for every run.
const CROWD: usize = 64;

/// The regions that a shape comes to, as far as neighbours among them might be folded.
#[derive(Clone, Debug)]
pub struct Folding {
    /// By extent of the cover, by rising sector.
    spans: Vec<Vec<Part>>,
    regions: usize,
    limits: Limits,
}

/// A region as it will be, or several that are to be one.
#[derive(Clone, Copy, Debug)]
struct Part {
    extent: Extent,
    /// It is there already.
    id: Option<RegionId>,
    /// Readers see it in the group now.
    member: bool,
    /// To delete it costs a create more: it leads the group.
    leads: bool,
    /// It may have counted something.
    counted: bool,
}

/// What a run costs; the less the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Price {
    /// Creates beyond those that there are anyway.
    creates: i64,
    /// Sectors of regions that have counted something.
    counted: u64,
    /// Regions fewer.
    saved: Reverse<usize>,
}

/// Neighbours in one extent of the cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    price: Price,
    span: usize,
    /// Indices of its first and its last part.
    ends: (usize, usize),
}

impl Folding {
    /// What may be folded of the regions that there will be when a group that has the regions
    /// `have`, and that `leader` leads, gets this shape.
    #[must_use]
    pub fn new(shape: &Shape, have: &[Have], leader: Option<RegionId>, limits: Limits) -> Folding {
        let members: HashSet<RegionId> =
            have.iter().filter(|region| region.member).map(|region| region.id).collect();
        let delta = shape.plan(have);
        let spans = pieces(&delta, &shape.cover).into_iter().map(|pieces| {
            let part = |piece: crate::shape::Piece| {
                let member = piece.id.is_some_and(|id| members.contains(&id));
                let leads = member && piece.id == leader;
                Part { extent: piece.extent, id: piece.id, member, leads, counted: member }
            };
            pieces.into_iter().map(part).collect()
        });
        let spans: Vec<Vec<Part>> = spans.collect();
        let regions = spans.iter().map(Vec::len).sum();
        Folding { spans, regions, limits }
    }

    /// Members of which it matters whether they have counted anything.
    #[must_use]
    pub fn doubtful(&self) -> Vec<RegionId> {
        let all = self.surplus() > 0;
        if !all && self.limits.fold_above.is_none() {
            return Vec::new();
        }
        let mut doubtful = Vec::new();
        for span in self.spans.iter().filter(|span| span.len() > 1) {
            let made = |at: Option<usize>| {
                at.and_then(|at| span.get(at)).is_some_and(|part| part.id.is_none())
            };
            for (at, part) in span.iter().enumerate().filter(|(_, part)| part.member) {
                if all || made(at.checked_sub(1)) || made(Some(at + 1)) {
                    doubtful.extend(part.id);
                }
            }
        }
        doubtful
    }

    /// Regions that are to go.
    fn surplus(&self) -> usize {
        let most = self.limits.fold_above.map_or(usize::MAX, |above| {
            self.spans.len().saturating_add(usize::try_from(above).unwrap_or(usize::MAX))
        });
        self.regions.saturating_sub(most.min(self.limits.max()))
    }

    /// Folds what is to be, when these of the regions have counted nothing. Gives what is to be one
    /// region each.
    #[must_use]
    pub fn fold(mut self, idle: &HashSet<RegionId>) -> Extents {
        let mut whole: Vec<Extent> = Vec::new();
        for part in self.spans.iter_mut().flatten() {
            part.counted &= part.id.is_some_and(|id| !idle.contains(&id));
        }
        if self.surplus() > CROWD {
            self.fold_crowds(&mut whole);
        }
        while let Some(run) = self.cheapest() {
            whole.push(self.join(run.span, run.ends));
        }
        whole.into_iter().collect()
    }

    /// Folds whole extents of the cover, those first that have most regions.
    fn fold_crowds(&mut self, whole: &mut Vec<Extent>) {
        let mut order: Vec<usize> = (0..self.spans.len()).collect();
        order.sort_by_key(|at| Reverse(self.spans[*at].len()));
        for at in order {
            let len = self.spans[at].len();
            if self.surplus() <= CROWD || len < 2 {
                return;
            }
            whole.push(self.join(at, (0, len - 1)));
        }
    }

    fn join(&mut self, span: usize, (first, last): (usize, usize)) -> Extent {
        let parts = &mut self.spans[span];
        let ends = (parts[first].extent.start(), parts[last].extent.end());
        let extent = Extent::between(ends.0, ends.1).expect("a run has sectors");
        let joined = Part { extent, id: None, member: false, leads: false, counted: false };
        parts.splice(first..=last, [joined]);
        self.regions -= last - first;
        extent
    }

    /// The run to be folded next, if there is one.
    fn cheapest(&self) -> Option<Run> {
        let surplus = self.surplus();
        let leniency = match self.regions > self.limits.max() {
            true => u32::MAX,
            false => u32::try_from(surplus.saturating_sub(1)).unwrap_or(u32::MAX),
        };
        let runs = self.spans.iter().enumerate().flat_map(|(at, span)| runs(at, span, leniency));
        let free = |run: &Run| run.price.creates <= 0 && run.price.counted == 0;
        if surplus == 0 && self.limits.fold_above.is_none() {
            return None;
        }
        runs.filter(|run| surplus > 0 || free(run)).min()
    }
}

/// The runs of one extent in which no region that has counted is larger than the rest together, or
/// larger than that by no more than so many powers of two.
fn runs(span: usize, parts: &[Part], leniency: u32) -> impl Iterator<Item = Run> {
    (0..parts.len().saturating_sub(1)).flat_map(move |first| {
        let mut sum = Sum::default();
        let until = parts.len().min(first + RUN_MAX);
        (first..until).filter_map(move |last| {
            sum.add(&parts[last]);
            let saved = last - first;
            let price = sum.price(saved);
            (saved > 0 && sum.is_even(leniency)).then_some(Run { price, span, ends: (first, last) })
        })
    })
}

/// The parts of a run together.
#[derive(Default)]
struct Sum {
    sectors: u64,
    counted: u64,
    largest: u64,
    made: i64,
    leads: bool,
}

impl Sum {
    fn add(&mut self, part: &Part) {
        let len = part.extent.len();
        self.sectors += len;
        if part.counted {
            self.counted += len;
            self.largest = self.largest.max(len);
        }
        self.made += i64::from(part.id.is_none());
        self.leads |= part.leads;
    }

    fn price(&self, saved: usize) -> Price {
        let creates = 1 - self.made + i64::from(self.leads);
        Price { creates, counted: self.counted, saved: Reverse(saved) }
    }

    fn is_even(&self, leniency: u32) -> bool {
        let rest = u128::from(self.sectors - self.largest);
        u128::from(self.largest) <= rest << leniency.min(64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Delta;
    use proptest::prelude::*;

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(start, len).unwrap()
    }

    /// Members of these lengths, side by side, from the first sector on.
    fn row(lens: &[u64]) -> Vec<Have> {
        let mut start = 0;
        let mut member = |(id, len): (u32, &u64)| {
            start += len;
            Have { id: RegionId(id), extent: extent(start - len, *len), member: true }
        };
        (0..).zip(lens).map(&mut member).collect()
    }

    fn limits(max_regions: u32, fold_above: Option<u32>) -> Limits {
        Limits { max_regions, fold_above }
    }

    fn fold(have: &[Have], cover: &[Extent], limits: Limits, idle: &[u32]) -> Vec<Extent> {
        let cover: Extents = cover.iter().copied().collect();
        let folding = Folding::new(&Shape::from(&cover), have, Some(RegionId(0)), limits);
        let idle = idle.iter().copied().map(RegionId).collect();
        folding.fold(&idle).as_slice().to_vec()
    }

    #[test]
    fn up_to_the_number_that_is_set_nothing_is_folded() {
        let have = row(&[8, 8, 8]);
        assert_eq!(fold(&have, &[extent(0, 32)], limits(100, Some(3)), &[]), []);
        assert_eq!(fold(&have, &[extent(0, 32)], limits(100, None), &[1, 2]), []);
        assert_eq!(fold(&have, &[extent(0, 32)], limits(100, Some(2)), &[]), [extent(16, 16)]);
    }

    #[test]
    fn a_region_that_counted_nothing_is_replaced_rather_than_added_to() {
        let have = row(&[8, 8]);
        let grown = [extent(0, 24)];
        let folding = Folding::new(
            &Shape::from(&grown.into_iter().collect()),
            &have,
            None,
            limits(9, Some(5)),
        );
        assert_eq!(folding.doubtful(), [RegionId(1)], "the others are not asked");
        assert_eq!(fold(&have, &grown, limits(9, Some(5)), &[1]), [extent(8, 16)]);
        assert_eq!(fold(&have, &grown, limits(9, Some(5)), &[]), []);
        let leader = row(&[8]);
        assert_eq!(fold(&leader, &[extent(0, 16)], limits(9, Some(5)), &[0]), [], "no free lunch");
    }

    #[test]
    fn what_counted_nothing_comes_first_and_then_the_fewest_sectors() {
        let have = row(&[100, 90, 3, 3, 90, 90, 50]);
        let cover = [extent(0, 426)];
        assert_eq!(fold(&have, &cover, limits(100, Some(5)), &[4, 5]), [extent(196, 180)]);
        assert_eq!(fold(&have, &cover, limits(100, Some(5)), &[]), [extent(190, 6)]);
    }

    #[test]
    fn a_limit_is_kept_whatever_it_costs() {
        let have = row(&[1 << 40, 1]);
        assert_eq!(fold(&have, &[extent(0, (1 << 40) + 1)], limits(1, None), &[]).len(), 1);
        let many = row(&vec![8; 3000]);
        let folded: Extents =
            fold(&many, &[extent(0, 24_000)], limits(100, None), &[]).into_iter().collect();
        let whole = |region: &&Have| folded.around(region.extent).is_none();
        assert!(many.iter().filter(whole).count() + folded.len() <= 100, "{folded:?}");
    }

    const CELLS: u32 = 5;

    /// A group on a small disk, and what its file has there.
    #[derive(Debug, Default)]
    struct Sketch {
        have: Vec<Have>,
        idle: HashSet<RegionId>,
        cover: Extents,
    }

    impl Sketch {
        /// From a digit for each cell. 0: nothing of the file, 1: a part without a region. Or the
        /// first cell of 2: a member, 3: one that has counted nothing, 4: an orphan; which goes on
        /// in a cell with 5. `None` where there is none to go on.
        fn new(digits: u32) -> Option<Sketch> {
            let (mut sketch, mut cells, mut region) = (Sketch::default(), Vec::new(), false);
            for cell in 0..CELLS {
                let digit = digits / 6u32.pow(cell) % 6;
                let here = extent(cell.into(), 1);
                let id = RegionId(u32::try_from(sketch.have.len()).unwrap());
                match (digit, sketch.have.last_mut()) {
                    (5, Some(last)) if region => {
                        last.extent = Extent::between(last.extent.start(), here.end()).unwrap();
                    }
                    (5, _) => return None,
                    (2.., _) => {
                        sketch.have.push(Have { id, extent: here, member: digit != 4 });
                        sketch.idle.extend((digit == 3).then_some(id));
                    }
                    _ => {}
                }
                region = digit > 1;
                cells.extend((digit > 0).then_some(here));
            }
            sketch.cover = cells.into_iter().collect();
            Some(sketch)
        }

        fn plan(&self, whole: &Extents) -> Delta {
            Shape { cover: self.cover.clone(), whole: whole.clone() }.plan(&self.have)
        }

        /// The oracle: what one run costs, as the planner sees it, unless it may not be folded.
        fn price(
            &self,
            whole: &Extents,
            run: Extent,
            leader: RegionId,
            leniency: usize,
        ) -> Option<(i64, u64, Reverse<usize>, Extent)> {
            let before = self.plan(whole);
            let after = self.plan(&whole.and(&[run].into_iter().collect()));
            // With what has no region yet on either side of it.
            let run = *after.create.iter().find(|made| made.contains(run))?;
            let gone: Vec<&(RegionId, Extent)> =
                before.keep.iter().filter(|kept| !after.keep.contains(kept)).collect();
            let members = self.have.iter().filter(|region| region.member);
            let members: HashSet<RegionId> = members.map(|region| region.id).collect();
            let counts = |id: &RegionId| members.contains(id) && !self.idle.contains(id);
            let counted = || gone.iter().filter(|(id, _)| counts(id)).map(|(_, part)| part.len());
            let largest = counted().max().unwrap_or(0);
            let leads = gone.iter().any(|(id, _)| *id == leader);
            let creates = |delta: &Delta| i64::try_from(delta.create.len()).unwrap();
            let regions = |delta: &Delta| delta.create.len() + delta.keep.len();
            let price = creates(&after) - creates(&before) + i64::from(leads);
            let saved = Reverse(regions(&before) - regions(&after));
            let may = u128::from(largest) <= u128::from(run.len() - largest) << leniency;
            may.then(|| (price, counted().sum(), saved, run))
        }

        /// The oracle: at each step every run there is, and the cheapest of them.
        fn fold(&self, leader: RegionId, limits: Limits) -> Extents {
            let mut whole = Extents::default();
            loop {
                let Delta { keep, create, .. } = self.plan(&whole);
                let mut pieces: Vec<Extent> =
                    keep.iter().map(|kept| kept.1).chain(create).collect();
                pieces.sort_unstable();
                let most =
                    limits.fold_above.map_or(usize::MAX, |it| self.cover.len() + it as usize);
                let surplus = pieces.len().saturating_sub(most.min(limits.max()));
                let over = pieces.len() > limits.max();
                let leniency = if over { 64 } else { surplus.saturating_sub(1) };
                let ends = |first: usize| pieces[first + 1..].iter().map(move |last| (first, last));
                let runs = (0..pieces.len()).flat_map(ends).filter_map(|(first, last)| {
                    let run = Extent::between(pieces[first].start(), last.end())?;
                    self.cover.around(run)?;
                    self.price(&whole, run, leader, leniency)
                });
                let free = |price: i64, counted: u64| {
                    limits.fold_above.is_some() && price <= 0 && counted == 0
                };
                let Some(best) = runs.filter(|it| surplus > 0 || free(it.0, it.1)).min() else {
                    return whole;
                };
                whole = whole.and(&[best.3].into_iter().collect());
            }
        }
    }

    #[test]
    fn each_run_that_is_folded_is_the_cheapest_of_all() {
        let mut folded = 0;
        let within = [(1, None), (2, None), (3, None), (9, Some(0)), (9, Some(1)), (3, Some(2))];
        for sketch in (0..6u32.pow(CELLS)).filter_map(Sketch::new) {
            let mut members = sketch.have.iter().filter(|region| region.member);
            let leaders = [members.next(), members.next_back()];
            for leader in leaders.into_iter().flatten().map(|region| region.id) {
                for (max, above) in within {
                    let limits = limits(max, above);
                    let shape = Shape::from(&sketch.cover);
                    let folding = Folding::new(&shape, &sketch.have, Some(leader), limits);
                    let (found, best) = (folding.fold(&sketch.idle), sketch.fold(leader, limits));
                    assert_eq!(found, best, "{sketch:?}, led by {leader}, within {limits:?}");
                    folded += usize::from(!best.is_empty());
                }
            }
        }
        assert!(folded > 10_000, "{folded}");
    }

    /// A file that grows piece by piece: the lengths of its regions, by rising sector, and the
    /// sectors that changed from one region to another.
    fn grow(steps: u64, above: u32) -> (Vec<u64>, u64) {
        let (mut have, mut moved): (Vec<Have>, u64) = (Vec::new(), 0);
        for step in 1..=steps {
            let cover: Extents = [extent(0, step * 8)].into_iter().collect();
            let mut shape = Shape::from(&cover);
            let folding = Folding::new(&shape, &have, Some(RegionId(0)), limits(1000, Some(above)));
            shape.whole = folding.fold(&HashSet::new());
            let delta = shape.plan(&have);
            let [created] = delta.create[..] else { panic!("{delta:?}") };
            moved += created.len() - 8;
            let id = RegionId(u32::try_from(step).unwrap() - 1);
            let kept = delta.keep.into_iter().chain([(id, created)]);
            have = kept.map(|(id, extent)| Have { id, extent, member: true }).collect();
            have.sort_unstable_by_key(|region| region.extent);
        }
        (have.iter().map(|region| region.extent.len()).collect(), moved)
    }

    #[test]
    fn a_log_has_as_many_pieces_as_the_logarithm_of_its_size_and_one_create_a_growth() {
        for (above, steps) in [(0, 1000), (4, 1000), (8, 4000)] {
            let (lens, moved) = grow(steps, above);
            assert_eq!(lens.iter().sum::<u64>(), steps * 8);
            let doublings = u64::from(steps.ilog2()) + 1;
            let regions = lens.len() as u64;
            assert!(regions <= u64::from(above) + 1 + doublings, "{lens:?}");
            assert!(moved <= steps * 8 * doublings, "{moved} sectors of {}", steps * 8);
        }
    }

    proptest! {
        #[test]
        fn there_are_never_more_regions_than_allowed_and_few_beyond_those_needed(
            lens in prop::collection::vec(prop::collection::vec(1..2000u64, 1..40), 1..6),
            idle in prop::collection::hash_set(0..200u32, 0..40),
            (max, above) in (1..60u32, prop::option::of(0..20u32)),
        ) {
            let (mut have, mut start) = (Vec::new(), 0);
            for len in lens.iter().flat_map(|span| span.iter().chain([&0])) {
                let id = RegionId(u32::try_from(have.len()).unwrap());
                let extent = Extent::new(start, *len);
                have.extend(extent.map(|extent| Have { id, extent, member: true }));
                start += len.max(&1);
            }
            let cover: Extents = have.iter().map(|region| region.extent).collect();
            let mut shape = Shape::from(&cover);
            let limits = limits(max.max(u32::try_from(cover.len()).unwrap()), above);
            let idle: HashSet<RegionId> = idle.into_iter().map(RegionId).collect();
            shape.whole = Folding::new(&shape, &have, Some(RegionId(0)), limits).fold(&idle);
            let delta = shape.plan(&have);
            let regions = delta.keep.len() + delta.create.len();
            prop_assert!(regions <= limits.max(), "{} of {:?}", regions, limits);
            if let Some(above) = above {
                let most = cover.len() + above as usize + 11; // regions differ by 2^11 at the most
                prop_assert!(regions <= most, "{} of {:?}", regions, limits);
            }
            let covered = delta.keep.iter().map(|(_, extent)| *extent).chain(delta.create);
            prop_assert_eq!(covered.collect::<Extents>(), cover);
        }
    }
}
