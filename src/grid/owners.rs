//! Which files have, or had, which sectors.

use std::collections::BTreeMap;

use crate::extent::{Extent, Extents};
use crate::grid::attribute::{Tenancy, Tenant};

/// The sectors of the followed files of a device, now and when its areas were read last.
///
/// ```text
/// add, add, ...                 the files that are there when it begins
/// loop:
///     read the areas            what they have counted since the last time
///     set, set, ...             every map that may have changed before the reading
///     tenancies                 whose the areas are that have counted something
///     settle                    from here on, "before" is now
/// ```
#[derive(Clone, Debug)]
pub struct Owners<F> {
    files: BTreeMap<F, Holding>,
    /// Whether the filesystem lays by sectors for files without showing them in their maps.
    reserves: bool,
}

#[derive(Clone, Debug, Default)]
struct Holding {
    /// What the file has, and all it had since it was settled.
    held: Extents,
    /// What of it was never written, as far as it was seen before it was settled.
    blank: Extents,
    /// What of it has been written since for the first time.
    gained: Extents,
    /// What the file has, and what of that was never written; `None` if that is as it was.
    now: Option<(Extents, Extents)>,
    /// So many times more it may be settled and still be called growing.
    growing: u32,
    /// Not followed any more.
    leaving: bool,
}

/// How often a file is settled after it has grown until it is not called growing any more.
const GROWING: u32 = 60;

impl<F: Copy + Ord> Default for Owners<F> {
    fn default() -> Owners<F> {
        Owners::new(false)
    }
}

impl<F: Copy + Ord> Owners<F> {
    /// Nobody has anything. `reserves` says that the filesystem lays by sectors for files that
    /// grow, which are neither free nor in any map: ext4 does (megabytes, while a file is open);
    /// xfs shows them in the map.
    #[must_use]
    pub fn new(reserves: bool) -> Owners<F> {
        Owners { files: BTreeMap::new(), reserves }
    }

    /// A file that had these sectors before the areas were read last, and what of them was never
    /// written.
    pub fn add(&mut self, file: F, map: Extents, blank: Extents) {
        self.files.insert(file, Holding { held: map, blank, ..Holding::default() });
    }

    /// Where a file is now, and what of that was never written. A file that was not there before
    /// has written the rest of it. Gives whether it is anywhere else than it was.
    pub fn set(&mut self, file: F, map: Extents, blank: Extents) -> bool {
        let holding = self.files.entry(file).or_default();
        holding.leaving = false;
        let same = holding.now.is_none() && map == holding.held && blank == holding.blank;
        if same {
            return false;
        }
        let written = holding.held.without(&holding.blank);
        let gained = map.without(&blank).without(&written);
        if !gained.is_empty() {
            holding.gained = union(&holding.gained, &gained);
            holding.growing = GROWING;
        }
        let more = map.without(&holding.held);
        if !more.is_empty() {
            holding.held = union(&holding.held, &more);
            holding.blank = union(&holding.blank, &more);
        }
        holding.now = Some((map, blank));
        true
    }

    /// A file is not followed any more; what it had counts until it is settled.
    pub fn remove(&mut self, file: F) {
        if let Some(holding) = self.files.get_mut(&file) {
            holding.now = Some(<(Extents, Extents)>::default());
            holding.leaving = true;
        }
    }

    /// All that was counted until now has been given away: only what the files have now counts.
    pub fn settle(&mut self) {
        self.files.retain(|_, holding| !holding.leaving);
        for holding in self.files.values_mut() {
            holding.gained = Extents::default();
            holding.growing = holding.growing.saturating_sub(1);
            if let Some((map, blank)) = holding.now.take() {
                (holding.held, holding.blank) = (map, blank);
            }
        }
    }

    /// Where the files are now.
    pub fn maps(&self) -> impl Iterator<Item = (F, &Extents)> {
        let now = |holding: &'_ Holding| !holding.leaving;
        let followed = self.files.iter().filter(move |(_, holding)| now(holding));
        followed.map(|(file, holding)| {
            (*file, holding.now.as_ref().map_or(&holding.held, |now| &now.0))
        })
    }

    /// Bytes that the maps take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let maps = |holding: &Holding| {
            let now = holding.now.as_ref().map_or(0, |(map, blank)| map.len() + blank.len());
            holding.held.len() + holding.blank.len() + holding.gained.len() + now
        };
        self.files.values().map(|h| maps(h) * size_of::<Extent>() + size_of::<Holding>()).sum()
    }

    fn is_growing(&self, file: F) -> bool {
        self.files.get(&file).is_some_and(|holding| holding.growing > 0)
    }

    /// Who may have done the I/O of each of these areas, which come by rising sector and do not
    /// overlap. Sectors of `free` are nobody's, unless a file has or had them.
    #[must_use]
    pub fn tenancies(&self, areas: &[Extent], free: &Extents) -> Vec<Tenancy<F>> {
        let nobody = Tenancy { tenants: Vec::new(), others: 0, reserved: 0, free: 0 };
        let mut tenancies: Vec<Tenancy<F>> = areas.iter().map(|_| nobody.clone()).collect();
        let mut known: Vec<Vec<Extent>> = vec![Vec::new(); areas.len()];
        for (&file, holding) in &self.files {
            each_common(holding.held.as_slice(), areas, |at, piece| {
                known[at].push(piece);
                let tenants = &mut tenancies[at].tenants;
                match tenants.last_mut().filter(|last| last.file == file) {
                    Some(tenant) => tenant.held += piece.len(),
                    None => tenants.push(Tenant { file, held: piece.len(), gained: 0 }),
                }
            });
            each_common(holding.gained.as_slice(), areas, |at, piece| {
                let tenant = tenancies[at].tenants.last_mut().filter(|last| last.file == file);
                tenant.expect("what is gained is held").gained += piece.len();
            });
        }
        let mut held = Vec::with_capacity(areas.len());
        for known in &mut known {
            let once: Extents = known.drain(..).collect();
            held.push(once.sectors());
            known.extend_from_slice(once.as_slice());
        }
        each_common(free.as_slice(), areas, |at, piece| known[at].push(piece));
        for (((tenancy, known), held), area) in tenancies.iter_mut().zip(known).zip(held).zip(areas)
        {
            let growing = self.reserves && tenancy.tenants.iter().any(|t| self.is_growing(t.file));
            let known = known.into_iter().collect::<Extents>().sectors();
            tenancy.free = known - held;
            tenancy.others = area.len() - known;
            tenancy.reserved = if growing { tenancy.others } else { 0 };
        }
        tenancies
    }
}

fn union(a: &Extents, b: &Extents) -> Extents {
    a.as_slice().iter().chain(b.as_slice()).copied().collect()
}

/// What each extent has in common with each area, with the area's place; both come by rising sector
/// and without overlaps. Skips what has nothing in common, so that a few areas of a large map cost
/// little, and a few extents among many areas.
pub fn each_common(extents: &[Extent], areas: &[Extent], mut found: impl FnMut(usize, Extent)) {
    let (mut extent_at, mut area_at) = (0, 0);
    while let (Some(extent), Some(area)) = (extents.get(extent_at), areas.get(area_at)) {
        let (start, end) = (extent.start().max(area.start()), extent.end().min(area.end()));
        match Extent::between(start, end) {
            Some(piece) => {
                found(area_at, piece);
                if extent.end() < area.end() { extent_at += 1 } else { area_at += 1 }
            }
            None if extent.end() <= area.start() => {
                extent_at += extents[extent_at..].partition_point(|e| e.end() <= area.start());
            }
            None => area_at += areas[area_at..].partition_point(|a| a.end() <= extent.start()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(extents: &[(u64, u64)]) -> Extents {
        extents.iter().filter_map(|(start, end)| Extent::between(*start, *end)).collect()
    }

    /// File, held, gained.
    type Seen = Vec<(char, u64, u64)>;

    fn tenancies(owners: &Owners<char>, free: &[(u64, u64)]) -> Vec<(Seen, u64)> {
        let areas = map(&[(0, 10)])
            .as_slice()
            .iter()
            .chain(map(&[(20, 30)]).as_slice())
            .copied()
            .collect::<Vec<_>>();
        let one = |tenancy: Tenancy<char>| {
            let tenants = tenancy.tenants.iter().map(|t| (t.file, t.held, t.gained)).collect();
            (tenants, tenancy.others)
        };
        owners.tenancies(&areas, &map(free)).into_iter().map(one).collect()
    }

    #[test]
    fn who_had_sectors_before_has_them_until_it_is_settled() {
        let mut owners = Owners::new(true);
        let none = Extents::default();
        owners.add('a', map(&[(0, 4), (22, 24)]), none.clone());
        owners.set('a', map(&[(2, 6)]), none.clone());
        owners.set('b', map(&[(5, 6), (29, 40)]), none);
        assert_eq!(
            tenancies(&owners, &[(9, 22)]),
            [(vec![('a', 6, 2), ('b', 1, 1)], 3), (vec![('a', 2, 0), ('b', 1, 1)], 5)]
        );
        owners.settle();
        assert_eq!(
            tenancies(&owners, &[]),
            [(vec![('a', 4, 0), ('b', 1, 0)], 6), (vec![('b', 1, 0)], 9)]
        );
        owners.remove('b');
        assert_eq!(tenancies(&owners, &[])[1], (vec![('b', 1, 0)], 9));
        assert_eq!(owners.maps().map(|(file, _)| file).collect::<Vec<_>>(), ['a']);
        owners.settle();
        assert_eq!(tenancies(&owners, &[])[1], (vec![], 10));
    }

    #[test]
    fn a_sector_had_for_a_moment_counts_too_and_one_got_back_is_not_gained() {
        let (mut owners, none) = (Owners::new(true), Extents::default());
        owners.add('a', map(&[(0, 4)]), none.clone());
        owners.set('a', map(&[(6, 8)]), none.clone());
        owners.set('a', map(&[(0, 3)]), none);
        assert_eq!(tenancies(&owners, &[])[0], (vec![('a', 6, 2)], 4));
        owners.settle();
        assert_eq!(tenancies(&owners, &[])[0], (vec![('a', 3, 0)], 7));
        assert!(owners.bytes() >= 16);
    }

    #[test]
    fn what_is_not_free_may_be_the_reserve_of_a_file_that_grew_lately() {
        for reserves in [false, true] {
            let mut owners = Owners::new(reserves);
            let reserved = |owners: &Owners<char>| {
                let areas = [Extent::new(0, 10).unwrap()];
                owners.tenancies(&areas, &map(&[(8, 10)]))[0].reserved
            };
            owners.add('a', map(&[(0, 4)]), Extents::default());
            assert_eq!(reserved(&owners), 0);
            owners.set('a', map(&[(0, 5)]), Extents::default());
            for _ in 0..GROWING {
                assert_eq!(reserved(&owners), if reserves { 3 } else { 0 });
                owners.settle();
            }
            assert_eq!(reserved(&owners), 0);
        }
    }

    #[test]
    fn what_is_reserved_is_gained_when_it_is_written() {
        let mut owners = Owners::new(true);
        owners.add('a', map(&[(0, 2)]), Extents::default());
        owners.set('a', map(&[(0, 8)]), map(&[(4, 8)]));
        assert_eq!(tenancies(&owners, &[])[0], (vec![('a', 8, 2)], 2));
        owners.settle();
        assert_eq!(tenancies(&owners, &[])[0], (vec![('a', 8, 0)], 2));
        owners.set('a', map(&[(0, 8)]), map(&[(5, 8)]));
        owners.set('a', map(&[(0, 8)]), map(&[(6, 8)]));
        assert_eq!(tenancies(&owners, &[])[0], (vec![('a', 8, 2)], 2));
    }

    /// What is drawn falls within so many sectors, so that it meets.
    const BOARD: u64 = 40;

    fn any_map() -> impl Strategy<Value = Extents> {
        let pair = (0..BOARD, 1..8_u64);
        let some = prop::collection::vec(pair, 0..6);
        some.prop_map(|pairs| pairs.iter().map(|(s, l)| Extent::new(*s, *l).unwrap()).collect())
    }

    fn on(map: &Extents, sector: u64) -> bool {
        map.around(Extent::new(sector, 1).unwrap()).is_some()
    }

    proptest! {
        #[test]
        fn tenancies_are_those_of_a_count_sector_by_sector(
            before in prop::collection::vec(any_map(), 3),
            after in prop::collection::vec(any_map(), 3),
            areas in any_map(),
            blank in prop::collection::vec(any_map(), 6),
            free in any_map(),
        ) {
            let outside = |map: &Extents, blank: &Extents| blank.without(&blank.without(map));
            let blank_before: Vec<Extents> =
                before.iter().zip(&blank).map(|(map, blank)| outside(map, blank)).collect();
            let blank_after: Vec<Extents> =
                after.iter().zip(&blank[3..]).map(|(map, blank)| outside(map, blank)).collect();
            let mut owners = Owners::new(true);
            for file in 0..3 {
                owners.add(file, before[file].clone(), blank_before[file].clone());
            }
            for file in 0..3 {
                owners.set(file, after[file].clone(), blank_after[file].clone());
            }
            let found = owners.tenancies(areas.as_slice(), &free);
            for (area, tenancy) in areas.as_slice().iter().zip(&found) {
                let count = |is: &dyn Fn(u64) -> bool| {
                    (area.start()..area.end()).filter(|sector| is(*sector)).count() as u64
                };
                let held = |file: usize, s| on(&before[file], s) || on(&after[file], s);
                let is = |map: &Extents, blank: &Extents, s| on(map, s) && !on(blank, s);
                let gained = |file: usize, s| {
                    !is(&before[file], &blank_before[file], s)
                        && is(&after[file], &blank_after[file], s)
                };
                let tenant = |file| Tenant {
                    file,
                    held: count(&|s| held(file, s)),
                    gained: count(&|s| gained(file, s)),
                };
                let expected: Vec<_> = (0..3).map(tenant).filter(|t| t.held > 0).collect();
                prop_assert_eq!(&tenancy.tenants, &expected);
                let nobodys = |s| !on(&free, s) && !(0..3).any(|file| held(file, s));
                prop_assert_eq!(tenancy.others, count(&nobodys));
                let is_free = |s| on(&free, s) && !(0..3).any(|file| held(file, s));
                prop_assert_eq!(tenancy.free, count(&is_free));
            }
            owners.settle();
            let now: Vec<Extents> = owners.maps().map(|(_, map)| map.clone()).collect();
            prop_assert_eq!(now, after);
        }
    }
}
