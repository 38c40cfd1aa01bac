//! The planner: from the regions there are and the extents there should be to the least work.

use crate::extent::{Extent, Extents};
use crate::message::RegionId;

/// A region that may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Have {
    /// Its number.
    pub id: RegionId,
    /// What it counts.
    pub extent: Extent,
    /// Whether readers see it in the group now. What is not is an orphan of a cut update.
    pub member: bool,
}

/// What to keep, what to create and what to delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Regions that stay, by rising sector; no two overlap.
    pub keep: Vec<(RegionId, Extent)>,
    /// Regions to create, by rising sector.
    pub create: Vec<Extent>,
    /// Regions to delete, by rising id.
    pub delete: Vec<RegionId>,
}

/// Plans the change from the regions `have` to regions that cover exactly `want`.
///
/// A member that lies wholly inside a wanted extent stays, whatever its length: it has counted,
/// and deleting it would lose that. Its extent may have grown; then the rest gets a region of its
/// own. A member that lies partly outside goes, since it would count sectors of others.
///
/// Where members overlap each other, which no update of ours leaves behind, as many stay as can
/// without overlapping, and of these choices the one that needs the fewest creates. Orphans are
/// kept only where they save a create: nobody has read their counts, while a create stops the
/// device's I/O. Among equal choices the lowest id stays.
///
/// `have` may come in any order. Time grows as `n log n`.
#[must_use]
pub fn plan(have: &[Have], want: &Extents) -> Delta {
    let mut have = have.to_vec();
    // Most begin at sectors of their own, and one number is compared in half the time of three.
    have.sort_unstable_by_key(|region| region.extent.start());
    for alike in have.chunk_by_mut(|one, next| one.extent.start() == next.extent.start()) {
        alike.sort_unstable_by_key(|region| (region.extent, region.id));
    }

    let mut delta = Delta::default();
    let mut candidates = have.as_slice();
    for &span in want.as_slice() {
        let is_here = |region: &&Have| region.extent.start() < span.end();
        let (here, later) = candidates.split_at(candidates.iter().take_while(is_here).count());
        candidates = later;
        if !plan_plain_span(here, span, &mut delta) {
            plan_span(here, span, &mut delta);
        }
    }
    delta.delete.extend(candidates.iter().map(|region| region.id));
    delta.delete.sort_unstable();
    delta
}

/// Plans one wanted extent if there is nothing to choose: what lies inside are members that do not
/// overlap. That is always so, unless an update was cut or somebody else made the regions.
fn plan_plain_span(here: &[Have], span: Extent, delta: &mut Delta) -> bool {
    let inside = |region: &&Have| span.contains(region.extent);
    let mut end = span.start();
    let plain = here.iter().filter(inside).all(|region| {
        let free = end <= region.extent.start();
        end = region.extent.end();
        free && region.member
    });
    if !plain {
        return false;
    }
    let mut end = span.start();
    for region in here {
        if inside(&region) {
            delta.create.extend(Extent::between(end, region.extent.start()));
            delta.keep.push((region.id, region.extent));
            end = region.extent.end();
        } else {
            delta.delete.push(region.id);
        }
    }
    delta.create.extend(Extent::between(end, span.end()));
    true
}

/// Plans one wanted extent; all that begins before its end and was not planned before is `here`.
fn plan_span(here: &[Have], span: Extent, delta: &mut Delta) {
    let inside = |region: &&Have| span.contains(region.extent);
    let members: Vec<Have> =
        here.iter().filter(inside).filter(|region| region.member).copied().collect();
    let mut kept = tile(members, span, Prefer::Regions);
    if here.iter().any(|region| !region.member) {
        for gap in gaps(&kept, span) {
            let fits = |region: &&Have| !region.member && gap.contains(region.extent);
            let spares = here.iter().filter(fits).copied().collect();
            kept.extend(tile(spares, gap, Prefer::FewCreates));
        }
        kept.sort_unstable_by_key(|region| region.extent);
    }
    delta.create.extend(gaps(&kept, span));
    let stays = |region: &Have| {
        kept.binary_search_by_key(&region.extent, |kept| kept.extent)
            .is_ok_and(|at| kept[at].id == region.id)
    };
    delta.delete.extend(here.iter().filter(|region| !stays(region)).map(|region| region.id));
    delta.keep.extend(kept.iter().map(|region| (region.id, region.extent)));
}

/// What of `span` the regions, by rising sector and without overlap, leave uncovered.
fn gaps(kept: &[Have], span: Extent) -> Vec<Extent> {
    let starts = kept.iter().map(|region| region.extent.start()).chain([span.end()]);
    let ends = [span.start()].into_iter().chain(kept.iter().map(|region| region.extent.end()));
    ends.zip(starts).filter_map(|(end, start)| Extent::between(end, start)).collect()
}

/// What counts first when regions overlap and not all of them can stay.
#[derive(Clone, Copy)]
enum Prefer {
    Regions,
    FewCreates,
}

/// The price of a tiling up to some sector.
#[derive(Clone, Copy, Default)]
struct Price {
    kept: usize,
    gaps: usize,
}

impl Price {
    fn is_below(self, other: Price, prefer: Prefer) -> bool {
        let (kept, gaps) = (other.kept.cmp(&self.kept), self.gaps.cmp(&other.gaps));
        match prefer {
            Prefer::Regions => kept.then(gaps).is_lt(),
            Prefer::FewCreates => gaps.then(kept).is_lt(),
        }
    }
}

/// Chooses regions of `span` that do not overlap; gives them by rising sector.
fn tile(mut regions: Vec<Have>, span: Extent, prefer: Prefer) -> Vec<Have> {
    let disjoint = regions.windows(2).all(|pair| pair[0].extent.end() <= pair[1].extent.start());
    if disjoint && (matches!(prefer, Prefer::Regions) || regions.is_empty()) {
        return regions;
    }
    regions.sort_by_key(|region| (region.extent.end(), region.id));
    let chain = cheapest_chain(&regions, span, prefer);
    chain.into_iter().map(|at| regions[at]).collect()
}

/// The cheapest way to tile up to the end of one region, with that region last.
struct Step {
    price: Price,
    before: Option<usize>,
}

/// Dynamic programming over the regions by rising end: the best chain that ends in a region is the
/// best chain that ends at or before its start, and the region. `best[i]` is the cheapest of the
/// first `i + 1` chains, so that a region finds its predecessor by binary search.
fn cheapest_chain(regions: &[Have], span: Extent, prefer: Prefer) -> Vec<usize> {
    let mut steps: Vec<Step> = Vec::with_capacity(regions.len());
    let mut best: Vec<usize> = Vec::with_capacity(regions.len());
    for (at, region) in regions.iter().enumerate() {
        let start = region.extent.start();
        let step = cheapest_step(&regions[..at], &steps, &best, span, start, prefer);
        let price = Price { kept: step.price.kept + 1, ..step.price };
        steps.push(Step { price, ..step });
        let rival =
            best.last().copied().filter(|&rival| !price.is_below(steps[rival].price, prefer));
        best.push(rival.unwrap_or(at));
    }
    let mut next = cheapest_step(regions, &steps, &best, span, span.end(), prefer).before;
    let mut chain = Vec::new();
    while let Some(at) = next {
        chain.push(at);
        next = steps[at].before;
    }
    chain.reverse();
    chain
}

/// The cheapest way to get from the start of `span` to sector `start`, a gap at the end included.
fn cheapest_step(
    regions: &[Have],
    steps: &[Step],
    best: &[usize],
    span: Extent,
    start: u64,
    prefer: Prefer,
) -> Step {
    let gap = usize::from(start > span.start());
    let mut step = Step { price: Price { kept: 0, gaps: gap }, before: None };
    let mut offer = |before: usize, gaps: usize| {
        let price = Price { gaps: steps[before].price.gaps + gaps, ..steps[before].price };
        if price.is_below(step.price, prefer) {
            step = Step { price, before: Some(before) };
        }
    };
    let nearer = regions.partition_point(|region| region.extent.end() < start);
    let touching = regions.partition_point(|region| region.extent.end() <= start);
    (nearer..touching).for_each(|before| offer(before, 0));
    if let Some(before) = nearer.checked_sub(1) {
        offer(best[before], 1);
    }
    step
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use super::*;
    use proptest::prelude::*;

    const DISK: u64 = 14;

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(start, len).unwrap()
    }

    fn have(id: u32, start: u64, len: u64, member: bool) -> Have {
        Have { id: RegionId(id), extent: extent(start, len), member }
    }

    fn check(regions: &[Have], want: &[Extent], keep: &[u32], create: &[Extent], delete: &[u32]) {
        let delta = plan(regions, &want.iter().copied().collect());
        let ids: Vec<u32> = delta.keep.iter().map(|(id, _)| id.0).collect();
        assert_eq!(ids, keep, "kept");
        assert_eq!(delta.create, create);
        assert_eq!(delta.delete.iter().map(|id| id.0).collect::<Vec<_>>(), delete, "deleted");
    }

    #[test]
    fn growth_keeps_the_region_and_adds_one_for_the_new_part() {
        check(&[have(0, 8, 8, true)], &[extent(8, 24)], &[0], &[extent(16, 16)], &[]);
        check(&[have(0, 8, 8, true)], &[extent(0, 16)], &[0], &[extent(0, 8)], &[]);
    }

    #[test]
    fn a_region_that_the_file_has_partly_left_is_replaced() {
        check(&[have(0, 8, 8, true)], &[extent(8, 4)], &[], &[extent(8, 4)], &[0]);
        check(&[have(0, 8, 8, true)], &[extent(12, 8)], &[], &[extent(12, 8)], &[0]);
        check(&[have(0, 8, 8, true)], &[], &[], &[], &[0]);
    }

    #[test]
    fn a_member_in_the_middle_stays_and_a_orphan_there_does_not() {
        let around = [extent(0, 4), extent(8, 4)];
        check(&[have(3, 4, 4, true)], &[extent(0, 12)], &[3], &around, &[]);
        check(&[have(3, 4, 4, false)], &[extent(0, 12)], &[], &[extent(0, 12)], &[3]);
        check(&[have(3, 4, 8, false)], &[extent(0, 12)], &[3], &[extent(0, 4)], &[]);
    }

    #[test]
    fn of_equal_regions_the_member_stays_and_of_equal_members_the_lowest() {
        check(&[have(1, 0, 4, false), have(2, 0, 4, true)], &[extent(0, 4)], &[2], &[], &[1]);
        check(&[have(2, 0, 4, true), have(1, 0, 4, true)], &[extent(0, 4)], &[1], &[], &[2]);
        check(&[have(2, 0, 4, false), have(1, 0, 4, false)], &[extent(0, 4)], &[1], &[], &[2]);
    }

    fn regions() -> impl Strategy<Value = Vec<Have>> {
        let region = (0..DISK, 1..6u64, any::<bool>());
        prop::collection::vec(region, 0..7).prop_map(|regions| {
            let cut = |(id, (start, len, member)): (usize, (u64, u64, bool))| {
                have(u32::try_from(id).unwrap(), start, len.min(DISK - start), member)
            };
            regions.into_iter().enumerate().map(cut).collect()
        })
    }

    fn wanted() -> impl Strategy<Value = Extents> {
        let extent = (0..DISK, 1..7u64);
        prop::collection::vec(extent, 0..4).prop_map(|extents| {
            extents.into_iter().map(|(start, len)| extent_within(start, len)).collect()
        })
    }

    fn extent_within(start: u64, len: u64) -> Extent {
        extent(start, len.min(DISK - start))
    }

    /// The oracle: every choice of regions inside `want` that do not overlap.
    fn choices(have: &[Have], want: &Extents, member: bool) -> Vec<Vec<Have>> {
        let fits = |region: &&Have| region.member == member && want.around(region.extent).is_some();
        let inside: Vec<Have> = have.iter().filter(fits).copied().collect();
        let chosen = |choice: u32| -> Vec<Have> {
            let bits = 0..inside.len();
            bits.filter(|bit| choice & (1 << bit) != 0).map(|bit| inside[bit]).collect()
        };
        let clash = |a: &Have, b: &Have| a.id != b.id && a.extent.overlaps(b.extent);
        let sound = |kept: &Vec<Have>| !kept.iter().any(|a| kept.iter().any(|b| clash(a, b)));
        (0..1 << inside.len()).map(chosen).filter(sound).collect()
    }

    fn kept(delta: &Delta, have: &[Have], member: bool) -> Vec<Have> {
        let stays = |region: &&Have| delta.keep.iter().any(|(id, _)| *id == region.id);
        have.iter().filter(stays).filter(|region| region.member == member).copied().collect()
    }

    fn covered(kept: &[Have]) -> Extents {
        kept.iter().map(|region| region.extent).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_delta_leads_to_exactly_the_wanted_sectors(have in regions(), want in wanted()) {
            let delta = plan(&have, &want);
            let regions = delta.keep.iter().map(|(_, extent)| *extent).chain(delta.create.clone());
            let mut regions: Vec<Extent> = regions.collect();
            regions.sort_unstable();
            prop_assert!(regions.windows(2).all(|pair| !pair[0].overlaps(pair[1])), "{:?}", delta);
            prop_assert_eq!(regions.into_iter().collect::<Extents>(), want);

            let mut ids: Vec<RegionId> = delta.keep.iter().map(|(id, _)| *id).collect();
            ids.extend(&delta.delete);
            ids.sort_unstable();
            let all: Vec<RegionId> = (0..).take(have.len()).map(RegionId).collect();
            prop_assert_eq!(ids, all, "every region is kept or deleted, once");
        }

        #[test]
        fn the_most_members_stay_and_leave_the_fewest_gaps(have in regions(), want in wanted()) {
            let creates = |kept: &Vec<Have>| want.without(&covered(kept)).len();
            let price = |kept: &Vec<Have>| (Reverse(kept.len()), creates(kept));
            let least = choices(&have, &want, true).iter().map(price).min();
            let members = kept(&plan(&have, &want), &have, true);
            prop_assert_eq!(Some(price(&members)), least, "{:?}", members);
        }

        #[test]
        fn orphans_stay_where_they_save_most(have in regions(), want in wanted()) {
            let delta = plan(&have, &want);
            let rest = want.without(&covered(&kept(&delta, &have, true)));
            let creates = |kept: &Vec<Have>| rest.without(&covered(kept)).len();
            let price = |kept: &Vec<Have>| (creates(kept), Reverse(kept.len()));
            let least = choices(&have, &rest, false).iter().map(price).min();
            let orphans = kept(&delta, &have, false);
            prop_assert_eq!(Some(price(&orphans)), least, "{:?}", delta);
            prop_assert_eq!(delta.create.len(), price(&orphans).0);
        }

        #[test]
        fn a_plan_carried_out_leaves_nothing_to_do(have in regions(), want in wanted()) {
            let delta = plan(&have, &want);
            let created = (100..).map(RegionId).zip(delta.create);
            let regions: Vec<Have> = delta.keep.into_iter().chain(created)
                .map(|(id, extent)| Have { id, extent, member: true }).collect();
            let again = plan(&regions, &want);
            prop_assert!(again.create.is_empty() && again.delete.is_empty(), "{:?}", again);
        }
    }
}
