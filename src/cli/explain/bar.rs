//! A span of a device as a line of cells, each of which stands for an equal part of it.

use super::bytes;
use crate::extent::{Extent, Extents, SECTOR_BYTES};

/// Parts that a scale may have; the most that have room.
const PARTS: [usize; 4] = [8, 4, 2, 1];

/// The cells: no more than there are sectors, so that each has one at least.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    span: Extent,
    cells: usize,
}

/// What the regions make of a cell; of several things the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// There is neither file nor region.
    #[default]
    Empty,
    /// They count what the file has, and nothing else.
    Same,
    /// One that counts some of the file counts what is between its extents, too.
    Between,
    /// There is one that counts nothing of the file.
    Stale,
    /// Sectors of the file are in none.
    Missing,
}

impl Bar {
    /// As many cells as there may be.
    pub fn new(span: Extent, columns: usize) -> Bar {
        let most = usize::try_from(span.len()).unwrap_or(usize::MAX);
        Bar { span, cells: columns.clamp(1, most) }
    }

    /// How many there are.
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// The sectors of a cell.
    fn extent(&self, cell: usize) -> (u64, u64) {
        let start = |cell: usize| {
            let sectors = cell as u128 * u128::from(self.span.len()) / self.cells as u128;
            self.span.start() + u64::try_from(sectors).unwrap_or(self.span.len())
        };
        (start(cell), start(cell + 1))
    }

    /// The cell that has a sector of the span.
    fn cell_of(&self, sector: u64) -> usize {
        let sectors = u128::from(sector - self.span.start()) + 1;
        let cell = (sectors * self.cells as u128 - 1) / u128::from(self.span.len());
        usize::try_from(cell).map_or(self.cells - 1, |cell| cell.min(self.cells - 1))
    }

    /// Sectors of these extents in each cell. What is beyond the span is in none.
    fn sectors(&self, extents: &Extents) -> Vec<u64> {
        let mut sectors = vec![0; self.cells];
        for extent in extents.as_slice() {
            let start = extent.start().max(self.span.start());
            let end = extent.end().min(self.span.end());
            let Some(extent) = Extent::between(start, end) else { continue };
            let (first, last) = (self.cell_of(extent.start()), self.cell_of(extent.end() - 1));
            for (cell, sectors) in (first..).zip(&mut sectors[first..=last]) {
                let (start, end) = self.extent(cell);
                *sectors += end.min(extent.end()) - start.max(extent.start());
            }
        }
        sectors
    }

    /// A character for each cell, by how much of it the extents take: nothing, parts of it, all.
    pub fn shares(&self, extents: &Extents, marks: &[char]) -> String {
        let parts = marks.len().saturating_sub(2).max(1) as u128;
        let mark = |(cell, sectors): (usize, u64)| {
            let (start, end) = self.extent(cell);
            let at = match sectors {
                0 => 0,
                all if all >= end - start => marks.len() - 1,
                some => {
                    let part = u128::from(some) * parts / u128::from(end - start);
                    1 + usize::try_from(part).unwrap_or(0)
                }
            };
            marks.get(at).copied().unwrap_or(' ')
        };
        self.sectors(extents).into_iter().enumerate().map(mark).collect()
    }

    /// What regions make of each cell: `near` are the sectors of those that count some of the file,
    /// `stale` of those that count nothing of it.
    pub fn matches(&self, of_file: &Extents, near: &Extents, stale: &Extents) -> Vec<Match> {
        let mut cells = vec![Match::Empty; self.cells];
        let kinds = [
            (Match::Same, of_file.clone()),
            (Match::Between, near.without(of_file)),
            (Match::Stale, stale.clone()),
            (Match::Missing, of_file.without(near)),
        ];
        for (kind, extents) in kinds {
            for (cell, sectors) in cells.iter_mut().zip(self.sectors(&extents)) {
                if sectors > 0 {
                    *cell = kind;
                }
            }
        }
        cells
    }

    /// What stands beneath: sizes, counted from the start of the span; each with a `|` beneath the
    /// cell where that is.
    pub fn scale(&self, prefix: &str) -> String {
        let scales = PARTS.iter().find_map(|parts| self.scale_of(*parts, prefix));
        scales.unwrap_or_default()
    }

    fn scale_of(&self, parts: usize, prefix: &str) -> Option<String> {
        let mut scale = String::new();
        for part in 0..=parts {
            let sectors = u128::from(self.span.len()) * part as u128 / parts as u128;
            let sectors = u64::try_from(sectors).ok()?;
            let last = (self.span.start() + sectors).min(self.span.end() - 1);
            let cell = self.cell_of(last);
            let size = match sectors {
                0 => "0".to_owned(),
                _ => format!("{prefix}{}", bytes(sectors.saturating_mul(SECTOR_BYTES))),
            };
            let text = if part == parts { format!("{size}|") } else { format!("|{size}") };
            let at = if part == parts { (cell + 1).checked_sub(text.len())? } else { cell };
            let blank = at.checked_sub(scale.len()).filter(|blank| part == 0 || *blank > 0)?;
            scale.extend([" ".repeat(blank), text]);
        }
        Some(scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extents(list: &[(u64, u64)]) -> Extents {
        list.iter().map(|(start, len)| Extent::new(*start, *len).unwrap()).collect()
    }

    fn bar(start: u64, len: u64, columns: usize) -> Bar {
        Bar::new(Extent::new(start, len).unwrap(), columns)
    }

    const MARKS: [char; 4] = [' ', '.', ':', '#'];

    #[test]
    fn cells_show_how_much_of_them_is_taken() {
        let bar = bar(0, 100, 10);
        let file = extents(&[(0, 10), (10, 1), (24, 1), (30, 5), (49, 2), (60, 9), (99, 1)]);
        assert_eq!(bar.shares(&file, &MARKS), "#..:..:  .");
    }

    #[test]
    fn a_scale_has_as_many_parts_as_there_is_room_for() {
        let scale = |columns| bar(0, 1 << 20, columns).scale("");
        let wide = "|0                 |128 MiB            |256 MiB           |384 MiB    512 MiB|";
        assert_eq!(scale(78), wide);
        assert_eq!(scale(30), "|0                    512 MiB|");
        assert_eq!(scale(11), "|0 512 MiB|");
        assert_eq!(scale(10), "");
        assert_eq!(bar(1000, 4, 80).scale("+"), "");
        assert_eq!(bar(1000, 2048, 16).scale("+"), "|0     +1.0 MiB|");
    }

    #[test]
    fn of_several_things_in_a_cell_the_worst_is_shown() {
        use Match::{Between, Empty, Missing, Same, Stale};
        let file = extents(&[(0, 10), (20, 10), (40, 10), (60, 1)]);
        let (near, stale) = (extents(&[(0, 10), (20, 25)]), extents(&[(50, 20)]));
        let shown = bar(0, 100, 10).matches(&file, &near, &stale);
        let expected = [Same, Empty, Same, Between, Missing, Stale, Missing, Empty, Empty, Empty];
        assert_eq!(shown, expected);
    }

    proptest! {
        #[test]
        fn each_cell_has_a_part_of_the_span_and_all_cells_have_all_of_it(
            start in 0..u64::MAX / 2, len in 1..u64::MAX / 2, columns in 0..400usize,
        ) {
            let bar = bar(start, len, columns);
            let parts: Vec<_> = (0..bar.cells()).map(|cell| bar.extent(cell)).collect();
            prop_assert!(parts.iter().all(|(start, end)| start < end));
            prop_assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0));
            prop_assert_eq!((parts[0].0, parts[parts.len() - 1].1), (start, start + len));
            for (cell, (start, end)) in parts.iter().enumerate() {
                prop_assert_eq!((bar.cell_of(*start), bar.cell_of(*end - 1)), (cell, cell));
            }
        }

        #[test]
        fn sectors_are_counted_in_the_cell_that_has_them(
            list in prop::collection::vec((0..300u64, 1..40u64), 0..12),
            start in 0..50u64, len in 1..200u64, columns in 1..400usize,
        ) {
            let (bar, extents) = (bar(start, len, columns), extents(&list));
            let mut painted = vec![0; bar.cells()];
            for sector in extents.as_slice().iter().flat_map(|it| it.start()..it.end()) {
                if (start..start + len).contains(&sector) {
                    painted[bar.cell_of(sector)] += 1;
                }
            }
            prop_assert_eq!(bar.sectors(&extents), painted);
        }

        #[test]
        fn a_scale_is_never_wider_than_the_bar(
            start in 0..u64::MAX / 2, len in 1..u64::MAX / 2, columns in 0..400usize,
        ) {
            let bar = bar(start, len, columns);
            let scale = bar.scale("+");
            prop_assert!(scale.is_empty() || scale.len() == bar.cells(), "{:?}", scale);
        }
    }
}
