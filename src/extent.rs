//! Ranges of sectors, and the normal form in which maps are compared.

use std::fmt;
use std::num::NonZeroU64;

use smallvec::SmallVec;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_128};

/// Bytes in a sector: the unit of device-mapper tables and statistics, whatever the block size
/// of the device.
pub const SECTOR_BYTES: u64 = 512;

/// A run of sectors of one device: never empty, and its end fits in 64 bits.
///
/// Both hold in the kernel too: `message_stats_create()` refuses a length of zero and a range
/// that wraps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    start: u64,
    end: u64,
}

impl Extent {
    /// The extent of `len` sectors from sector `start`, if there is such a thing.
    #[must_use]
    pub fn new(start: u64, len: u64) -> Option<Extent> {
        let end = start.checked_add(len)?;
        (len > 0).then_some(Extent { start, end })
    }

    /// The extent from sector `start` up to, and without, sector `end`.
    #[must_use]
    pub fn between(start: u64, end: u64) -> Option<Extent> {
        (start < end).then_some(Extent { start, end })
    }

    /// The extent that a run of bytes occupies; `None` unless both ends lie on sectors.
    #[must_use]
    pub fn of_bytes(start: u64, len: u64) -> Option<Extent> {
        let whole = start % SECTOR_BYTES == 0 && len % SECTOR_BYTES == 0;
        if whole { Extent::new(start / SECTOR_BYTES, len / SECTOR_BYTES) } else { None }
    }

    /// The first sector.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// The sector after the last.
    #[must_use]
    pub fn end(self) -> u64 {
        self.end
    }

    /// Sectors in the extent, at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether all of `other` lies in this extent.
    #[must_use]
    pub fn contains(self, other: Extent) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two have a sector in common.
    #[must_use]
    pub fn overlaps(self, other: Extent) -> bool {
        self.start < other.end && other.start < self.end
    }

    fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.end) << u64::BITS | u128::from(self.start)).to_le_bytes()
    }
}

/// As the kernel writes a range: `START+LEN`.
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len())
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A map: the sectors of one file on its device, in normal form.
///
/// Sorted, disjoint, and no two extents touch, so `==` means "the same sectors". A filesystem's
/// own list is not canonical (ext4 cuts one run into several on disk and merges them in memory),
/// which is why lists are never compared as they come. The order of the sectors *within* the file
/// is forgotten: a region does not know it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Extents(List);

/// Extents. A list that never had more than one has that in here, where the address and the length
/// of more would be.
pub(crate) type List = SmallVec<[Extent; 1]>;

impl Extents {
    /// As [`FromIterator`] collects them, in the same memory.
    #[must_use]
    #[inline] // a single extent, as most files have, is in normal form
    pub(crate) fn of_list(extents: List) -> Extents {
        Extents(if extents.len() < 2 { extents } else { merged(extents) })
    }

    /// The extents, by rising sector.
    #[must_use]
    pub fn as_slice(&self) -> &[Extent] {
        &self.0
    }

    /// Number of extents.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no extent at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sectors in all extents together.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.0.iter().map(|extent| extent.len()).sum()
    }

    /// The wanted extent that holds all of `extent`, if one does.
    #[must_use]
    pub fn around(&self, extent: Extent) -> Option<Extent> {
        let after = self.0.partition_point(|candidate| candidate.start <= extent.start);
        let candidate = *self.0.get(after.checked_sub(1)?)?;
        candidate.contains(extent).then_some(candidate)
    }

    /// Whether any sector of `extent` is in the map.
    #[must_use]
    pub fn overlaps(&self, extent: Extent) -> bool {
        let after = self.0.partition_point(|candidate| candidate.start < extent.end);
        after.checked_sub(1).is_some_and(|at| self.0[at].overlaps(extent))
    }

    /// Whether any sector is in both maps.
    #[must_use]
    pub fn intersects(&self, other: &Extents) -> bool {
        let (mut left, mut right) = (self.0.as_slice(), other.0.as_slice());
        while let ([a, more_left @ ..], [b, more_right @ ..]) = (left, right) {
            if a.overlaps(*b) {
                return true;
            }
            if a.end <= b.start { left = more_left } else { right = more_right }
        }
        false
    }

    /// The sectors of either map.
    #[must_use]
    pub fn and(&self, other: &Extents) -> Extents {
        self.0.iter().chain(&other.0).copied().collect()
    }

    /// The sectors of this map that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Extents) -> Extents {
        let mut rest = List::new();
        let mut holes = other.0.as_slice();
        for extent in self.as_slice() {
            let mut start = extent.start;
            while let [hole, more @ ..] = holes {
                if hole.start >= extent.end {
                    break;
                }
                rest.extend(Extent::between(start, hole.start));
                start = start.max(hole.end);
                if hole.end > extent.end {
                    break; // it reaches into the next extent
                }
                holes = more;
            }
            rest.extend(Extent::between(start, extent.end));
        }
        Extents(rest)
    }

    /// What the map is known by once its extents are forgotten: 127 bits of XXH3 over them.
    ///
    /// Two maps of one file that differ and share a fingerprint would need luck of 1 in 2^127;
    /// nobody gains by forging one, since the extents are the filesystem's to choose.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        // In batches: a call of `update` costs more than hashing the sixteen bytes of one extent.
        let digest = match self.as_slice() {
            [] => xxh3_128(&[]), // to clear the room for a batch takes longer than these two
            [extent] => xxh3_128(&extent.to_bytes()),
            few if few.len() <= BATCH => xxh3_128(as_bytes(few, &mut [0; 16 * BATCH])),
            many => {
                let (mut hash, mut bytes) = (Xxh3Default::new(), [0; 16 * BATCH]);
                many.chunks(BATCH).for_each(|batch| hash.update(as_bytes(batch, &mut bytes)));
                hash.digest128()
            }
        };
        #[allow(clippy::cast_possible_truncation)] // into its two halves
        Fingerprint((digest >> 64) as u64, NonZeroU64::MIN | digest as u64)
    }
}

fn merged(mut extents: List) -> List {
    extents.sort_unstable();
    extents.dedup_by(|next, merged| {
        let touches = next.start <= merged.end;
        if touches {
            merged.end = merged.end.max(next.end);
        }
        touches
    });
    extents
}

/// Extents that are hashed at a time.
const BATCH: usize = 64;

fn as_bytes<'a>(batch: &[Extent], bytes: &'a mut [u8; 16 * BATCH]) -> &'a [u8] {
    for (extent, bytes) in batch.iter().zip(bytes.chunks_exact_mut(16)) {
        bytes.copy_from_slice(&extent.to_bytes());
    }
    &bytes[..16 * batch.len()]
}

/// Collects extents in any order, overlapping or not, into the normal form.
impl FromIterator<Extent> for Extents {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Extents {
        Extents::of_list(extents.into_iter().collect())
    }
}

impl fmt::Debug for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0).finish()
    }
}

/// The hash of a map; see [`Extents::fingerprint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(u64, NonZeroU64); // so that an `Option` of it takes no more than it

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: u64 = 24;

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        let extent = (0..DISK - 1, 1..8u64)
            .prop_map(|(start, len)| Extent::new(start, len.min(DISK - start)).unwrap());
        prop::collection::vec(extent, 0..6)
    }

    fn to_index(sector: u64) -> usize {
        usize::try_from(sector).unwrap()
    }

    /// The oracle: the same sectors painted on a board.
    fn painted<'a>(extents: impl IntoIterator<Item = &'a Extent>) -> Vec<bool> {
        let mut board = vec![false; to_index(DISK)];
        for extent in extents {
            for sector in extent.start..extent.end {
                board[to_index(sector)] = true;
            }
        }
        board
    }

    proptest! {
        #[test]
        fn normal_form_holds_the_same_sectors_and_no_two_extents_touch(raw in extents()) {
            let map: Extents = raw.iter().copied().collect();
            prop_assert_eq!(painted(&raw), painted(map.as_slice()));
            prop_assert!(map.as_slice().windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(map.sectors(), painted(&raw).iter().filter(|p| **p).count() as u64);
        }

        #[test]
        fn equal_sectors_mean_equal_maps_and_fingerprints(a in extents(), b in extents()) {
            let same = painted(&a) == painted(&b);
            let (a, b): (Extents, Extents) = (a.into_iter().collect(), b.into_iter().collect());
            prop_assert_eq!(a == b, same);
            prop_assert_eq!(a.fingerprint() == b.fingerprint(), same);
        }

        #[test]
        fn set_operations_agree_with_the_board(a in extents(), b in extents()) {
            let (a, b): (Extents, Extents) = (a.into_iter().collect(), b.into_iter().collect());
            let (on_a, on_b) = (painted(a.as_slice()), painted(b.as_slice()));
            let difference: Vec<bool> = on_a.iter().zip(&on_b).map(|(a, b)| *a && !*b).collect();
            prop_assert_eq!(painted(a.without(&b).as_slice()), difference);
            let either: Vec<bool> = on_a.iter().zip(&on_b).map(|(a, b)| *a || *b).collect();
            prop_assert_eq!(painted(a.and(&b).as_slice()), either);
            prop_assert_eq!(a.intersects(&b), on_a.iter().zip(&on_b).any(|(a, b)| *a && *b));
            prop_assert_eq!(b.as_slice().iter().any(|e| a.overlaps(*e)), a.intersects(&b));
            for extent in b.as_slice() {
                let inside = (extent.start..extent.end).all(|sector| on_a[to_index(sector)]);
                prop_assert_eq!(a.around(*extent).is_some(), inside);
            }
        }
    }

    #[test]
    fn impossible_ranges_are_no_extents() {
        assert_eq!(Extent::new(7, 0), None);
        assert_eq!(Extent::new(u64::MAX, 1), None);
        assert_eq!(Extent::new(u64::MAX - 1, 1).map(Extent::end), Some(u64::MAX));
        assert_eq!(Extent::of_bytes(301_864, 6), None, "ext4 inline data");
        assert_eq!(Extent::of_bytes(1024, 512), Extent::new(2, 1));
    }

    #[test]
    fn a_long_map_is_hashed_whole() {
        let long =
            |last| (0..200).map(move |i| Extent::new(i * 4, if i == 199 { last } else { 1 }));
        let map = |last| long(last).map(Option::unwrap).collect::<Extents>();
        assert_ne!(map(1).fingerprint(), map(2).fingerprint());
    }
}
