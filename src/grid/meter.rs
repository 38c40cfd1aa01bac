//! What a region of many areas has counted between two readings.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_128;

use crate::counters::{Counters, areas};
use crate::extent::Extent;
use crate::message::{Clockwork, Unreadable};

/// What one area has counted since it was read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The area.
    pub extent: Extent,
    /// What it has counted; never nothing.
    pub counters: Counters,
}

/// A region of many areas, and what each of them said last.
#[derive(Clone, Debug)]
pub struct Meter {
    extent: Extent,
    step: u64,
    precise: bool,
    /// By area; shorter than there are areas before the first reading is complete.
    last: Vec<Counters>,
    /// The answers that were taken last, by the first of their areas: how many areas each tells of,
    /// and 128 bits of XXH3 over its text. Most areas rest most of the time.
    answers: BTreeMap<usize, (usize, u128)>,
    /// Whether what is read first counts, or only what comes after it.
    from_zero: bool,
}

impl Meter {
    /// A region that was created just now: it has counted from zero.
    ///
    /// `step` must not be 0.
    #[must_use]
    pub fn new(extent: Extent, step: u64, precise: bool) -> Meter {
        let (last, answers) = (Vec::new(), BTreeMap::new());
        Meter { extent, step, precise, last, answers, from_zero: true }
    }

    /// A region that has counted for longer than we know: its first reading says where it stands.
    #[must_use]
    pub fn adopted(extent: Extent, step: u64, precise: bool) -> Meter {
        Meter { from_zero: false, ..Meter::new(extent, step, precise) }
    }

    /// The sectors that it counts.
    #[must_use]
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Sectors of an area.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// How many areas there are.
    #[must_use]
    pub fn areas(&self) -> u64 {
        self.extent.len().div_ceil(self.step)
    }

    /// An area by its number; the last may be shorter than the others.
    fn area(&self, at: usize) -> Option<Extent> {
        let start = self.extent.start().checked_add(self.step.checked_mul(at as u64)?)?;
        Extent::between(start, start.saturating_add(self.step).min(self.extent.end()))
    }

    /// Takes the answer to a `@stats_print` of the areas from `first` on, and adds what has been
    /// counted in each since it was taken last. Gives how many areas the answer tells of. The first
    /// reading takes the areas in their order.
    ///
    /// # Errors
    ///
    /// It is no such answer, or not one of this region; what came before that was taken.
    pub fn take(
        &mut self,
        first: usize,
        answer: &[u8],
        counted: &mut Vec<Counted>,
    ) -> Result<usize, Unreadable> {
        let hash = xxh3_128(answer);
        match self.answers.get(&first) {
            Some((taken, same)) if *same == hash => return Ok(*taken),
            _ => drop(self.answers.remove(&first)),
        }
        let clockwork = Clockwork { precise: self.precise, bounds: b"" };
        let mut taken = 0;
        for row in areas(answer, clockwork) {
            let row = row?;
            let at = first + taken;
            let extent = self.area(at).filter(|area| area.start() == row.start);
            let extent = extent.filter(|_| row.step == self.step && at <= self.last.len());
            let extent = extent.ok_or_else(|| Unreadable(answer[..answer.len().min(80)].into()))?;
            if let Some(counters) = self.advance(at, row.reading.counters) {
                counted.push(Counted { extent, counters });
            }
            taken += 1;
        }
        self.answers.insert(first, (taken, hash));
        Ok(taken)
    }

    /// What area `at` has counted since it was read before, if anything.
    fn advance(&mut self, at: usize, counters: Counters) -> Option<Counters> {
        let last = match self.last.get_mut(at) {
            Some(last) => std::mem::replace(last, counters),
            None => {
                self.last.push(counters);
                if self.from_zero { Counters::default() } else { counters }
            }
        };
        if counters == last {
            return None;
        }
        // A counter that fell was set to zero, and the others with it: all of it is new.
        let new = if counters.is_below(&last) { counters } else { counters.beyond(&last) };
        (!new.is_zero()).then_some(new)
    }

    /// Where each area stands, to go on from there after a restart: see [`Meter::restore`].
    #[must_use]
    pub fn stand(&self) -> &[Counters] {
        &self.last
    }

    /// Goes on from where the areas stood, if there are as many.
    pub fn restore(&mut self, stand: Vec<Counters>) {
        if stand.len() as u64 == self.areas() {
            self.last = stand;
            self.answers.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(numbers: &[(u64, u64)]) -> Vec<u8> {
        let row = |(start, written): &(u64, u64)| {
            format!("{start}+8 0 0 0 0 {written} 0 {written} 0 0 0 0 0 0\n")
        };
        numbers.iter().map(row).collect::<String>().into_bytes()
    }

    fn taken(meter: &mut Meter, first: usize, numbers: &[(u64, u64)]) -> Vec<(u64, u64, u64)> {
        let mut counted = Vec::new();
        assert_eq!(meter.take(first, &rows(numbers), &mut counted), Ok(numbers.len()));
        let one = |area: &Counted| {
            (area.extent.start(), area.extent.len(), area.counters.writes_completed)
        };
        counted.iter().map(one).collect()
    }

    fn extent() -> Extent {
        Extent::new(100, 20).unwrap()
    }

    #[test]
    fn areas_give_what_they_counted_since() {
        let mut meter = Meter::new(extent(), 8, false);
        assert_eq!(meter.areas(), 3);
        assert_eq!(
            taken(&mut meter, 0, &[(100, 0), (108, 5), (116, 2)]),
            [(108, 8, 5), (116, 4, 2)]
        );
        assert_eq!(taken(&mut meter, 1, &[(108, 6), (116, 2)]), [(108, 8, 1)]);
        assert_eq!(taken(&mut meter, 0, &[(100, 1)]), [(100, 8, 1)]);
        assert_eq!(taken(&mut meter, 0, &[(100, 1)]), [], "the same answer again");
        assert_eq!(taken(&mut meter, 0, &[(100, 2), (108, 6)]), [(100, 8, 1)]);
    }

    #[test]
    fn what_fell_was_set_to_zero_and_counts_whole() {
        let mut meter = Meter::new(extent(), 8, false);
        taken(&mut meter, 0, &[(100, 7)]);
        assert_eq!(taken(&mut meter, 0, &[(100, 3)]), [(100, 8, 3)]);
        assert_eq!(taken(&mut meter, 0, &[(100, 0)]), []);
        assert_eq!(taken(&mut meter, 0, &[(100, 2)]), [(100, 8, 2)]);
    }

    #[test]
    fn an_adopted_region_counts_from_where_it_stands_or_stood() {
        let all = [(100, 7), (108, 1), (116, 0)];
        let mut meter = Meter::adopted(extent(), 8, false);
        assert_eq!(taken(&mut meter, 0, &all), []);
        assert_eq!(taken(&mut meter, 0, &[(100, 9)]), [(100, 8, 2)]);

        let mut later = Meter::adopted(extent(), 8, false);
        later.restore(meter.stand().to_vec());
        assert_eq!(
            taken(&mut later, 0, &[(100, 10), (108, 1), (116, 4)]),
            [(100, 8, 1), (116, 4, 4)]
        );
        let mut other = Meter::adopted(extent(), 4, false);
        other.restore(meter.stand().to_vec());
        assert!(other.stand().is_empty(), "the stand of other areas");
    }

    #[test]
    fn what_is_not_an_answer_about_this_region_is_refused() {
        let mut meter = Meter::new(extent(), 8, false);
        for (first, text) in [
            (0, "101+8 0 0 0 0 0 0 0 0 0 0 0 0 0\n"),
            (0, "100+9 0 0 0 0 0 0 0 0 0 0 0 0 0\n"),
            (1, "100+8 0 0 0 0 0 0 0 0 0 0 0 0 0\n"),
            (1, "108+8 0 0 0 0 0 0 0 0 0 0 0 0 0\n"),
            (3, "124+8 0 0 0 0 0 0 0 0 0 0 0 0 0\n"),
            (usize::MAX, "100+8 0 0 0 0 0 0 0 0 0 0 0 0 0\n"),
            (0, "100+8 0 0 0 0 0 0 0 0 0 0 0 0\n"),
            (0, "x\n"),
        ] {
            let answer = meter.take(first, text.as_bytes(), &mut Vec::new());
            assert!(answer.is_err(), "{text}");
        }
        assert_eq!(meter.take(0, b"", &mut Vec::new()), Ok(0));
    }
}
