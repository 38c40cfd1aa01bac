//! What the kernel counts: parsed, brought to one unit, added up, compared with what was before.
//!
//! Times are nanoseconds here and amounts are bytes, whatever the region counts in.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::extent::SECTOR_BYTES;
use crate::message::{Clockwork, Unreadable, take_number};

/// Counters of the kernel that only rise: twelve of the thirteen. The thirteenth says how much I/O
/// is under way; see [`Reading::io_now`].
///
/// Times of several areas or regions add up, so they can be more than the time that has passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Reads that were finished.
    pub reads_completed: u64,
    /// Writes that were finished.
    pub writes_completed: u64,
    /// Reads that were merged into others.
    pub reads_merged: u64,
    /// Writes that were merged into others.
    pub writes_merged: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Time that reads took, of all that were finished.
    pub read_time_ns: u64,
    /// Time that writes took, of all that were finished.
    pub write_time_ns: u64,
    /// Time during which any I/O was under way.
    pub io_time_ns: u64,
    /// The same, once for each I/O that was under way.
    pub weighted_io_time_ns: u64,
    /// Time during which a read was under way. Not known of whole devices, and not said then.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub read_busy_time_ns: u64,
    /// Time during which a write was under way; likewise.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub write_busy_time_ns: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How many there are.
pub(crate) const LEN: usize = 12;

impl Counters {
    /// Whether nothing was counted.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Counters::default()
    }

    fn values_mut(&mut self) -> [&mut u64; LEN] {
        [
            &mut self.reads_completed,
            &mut self.writes_completed,
            &mut self.reads_merged,
            &mut self.writes_merged,
            &mut self.read_bytes,
            &mut self.written_bytes,
            &mut self.read_time_ns,
            &mut self.write_time_ns,
            &mut self.io_time_ns,
            &mut self.weighted_io_time_ns,
            &mut self.read_busy_time_ns,
            &mut self.write_busy_time_ns,
        ]
    }

    /// In the order in which they stand above.
    pub(crate) fn values(mut self) -> [u64; LEN] {
        self.values_mut().map(|value| *value)
    }

    pub(crate) fn from_values(values: [u64; LEN]) -> Counters {
        let mut counters = Counters::default();
        counters.values_mut().into_iter().zip(values).for_each(|(to, value)| *to = value);
        counters
    }

    fn with(mut self, other: Counters, what: impl Fn(u64, u64) -> u64) -> Counters {
        for (value, other) in self.values_mut().into_iter().zip(other.values()) {
            *value = what(*value, other);
        }
        self
    }

    /// What is more than in `other`; where it is less, nothing.
    #[must_use]
    pub fn beyond(&self, other: &Counters) -> Counters {
        self.with(*other, u64::saturating_sub)
    }

    /// Whether one of them is less than in `other`.
    #[must_use]
    pub fn is_below(&self, other: &Counters) -> bool {
        self.values().iter().zip(other.values()).any(|(value, other)| *value < other)
    }
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        *self = self.with(*other, u64::saturating_add);
    }
}

/// What was read of an area, or of several together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What only rises.
    pub counters: Counters,
    /// I/O that is under way.
    pub io_now: u64,
    /// I/O by latency, one more than there are bounds; none without a histogram.
    pub bins: Vec<u64>,
}

/// What was counted between two readings of one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// What only rises.
    pub counters: Counters,
    /// I/O by latency.
    pub bins: Vec<u64>,
    /// Somebody has set the counters to zero in between.
    pub reset: bool,
}

impl Reading {
    /// Whether nothing was counted, and nothing is under way.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.counters.is_zero() && self.io_now == 0 && self.bins.iter().all(|bin| *bin == 0)
    }

    /// What has been counted since `last`, an earlier reading of the same region.
    ///
    /// Whoever clears a region (`@stats_clear`, `@stats_print_clear`) sets all that only rises to
    /// zero at once. So if one value fell, all of them began at zero, and all of what they say now
    /// was counted since; what was counted between `last` and the clearing is not known.
    ///
    /// A clearing after which every value has again come at least to where it was does not show.
    /// Then what is given is too little, by `last`; it is never too much.
    #[must_use]
    pub fn since(&self, last: &Reading) -> Advance {
        let fell = self.bins.iter().zip(&last.bins).any(|(bin, last)| bin < last);
        if fell || self.counters.is_below(&last.counters) {
            return Advance { counters: self.counters, bins: self.bins.clone(), reset: true };
        }
        let before = |at: usize| last.bins.get(at).copied().unwrap_or(0);
        let bins = self.bins.iter().enumerate().map(|(at, bin)| bin - before(at));
        let counters = self.counters.beyond(&last.counters);
        Advance { counters, bins: bins.collect(), reset: false }
    }

    /// What a whole device has counted, as `/sys/dev/block/MAJOR:MINOR/stat` says it
    /// (Documentation/block/stat.rst); `None` if that is not what `text` says.
    #[must_use]
    pub fn of_device(text: &str) -> Option<Reading> {
        let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
        let mut next = || numbers.next()?.ok();
        Some(Reading::of_block([
            next()?,
            next()?,
            next()?,
            next()?,
            next()?,
            next()?,
            next()?,
            next()?,
            next()?,
            next()?,
            next()?,
        ]))
    }

    /// What the eleven numbers say that devices and areas have in common, with times in
    /// milliseconds.
    fn of_block(numbers: [u64; 11]) -> Reading {
        Reading::of_numbers(numbers, [0; 2], NS_PER_MS)
    }

    fn of_numbers(numbers: [u64; 11], busy: [u64; 2], unit_ns: u64) -> Reading {
        let [reads, reads_merged, read, read_time, writes, writes_merged, written, ..] = numbers;
        let [.., write_time, io_now, io_time, weighted_io_time] = numbers;
        let ns = |time: u64| time.saturating_mul(unit_ns);
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
        let counters = Counters {
            reads_completed: reads,
            writes_completed: writes,
            reads_merged,
            writes_merged,
            read_bytes: bytes(read),
            written_bytes: bytes(written),
            read_time_ns: ns(read_time),
            write_time_ns: ns(write_time),
            io_time_ns: ns(io_time),
            weighted_io_time_ns: ns(weighted_io_time),
            read_busy_time_ns: ns(busy[0]),
            write_busy_time_ns: ns(busy[1]),
        };
        Reading { counters, io_now, bins: Vec::new() }
    }
}

impl AddAssign<&Reading> for Reading {
    fn add_assign(&mut self, other: &Reading) {
        self.counters += &other.counters;
        self.io_now = self.io_now.saturating_add(other.io_now);
        add_bins(&mut self.bins, &other.bins);
    }
}

/// Adds bin to bin.
pub fn add_bins(bins: &mut Vec<u64>, others: &[u64]) {
    bins.resize(bins.len().max(others.len()), 0);
    bins.iter_mut().zip(others).for_each(|(bin, other)| *bin = bin.saturating_add(*other));
}

const NS_PER_MS: u64 = 1_000_000;

/// One area of a region, as a row of the answer to `@stats_print` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its first sector.
    pub start: u64,
    /// Sectors from one area to the next. The last area of a region may be shorter, and the kernel
    /// does not say so.
    pub step: u64,
    /// What it has counted.
    pub reading: Reading,
}

/// The rows of an answer to `@stats_print` about a region that counts in this way, one by one: each
/// area of a region, by rising start.
///
/// ```text
/// 589+8 4 0 32 12 1 0 8 3 0 15 15 12 3 1:3:1
/// ```
///
/// Start and step; reads, merged ones, sectors and time; the same for writes; I/O under way, time
/// with any, time of all; time with a read and with a write; with a histogram, its bins.
pub fn areas<'a>(
    text: &'a [u8],
    clockwork: Clockwork<'a>,
) -> impl Iterator<Item = Result<Area, Unreadable>> + use<'a> {
    let rows = text.split_inclusive(|byte| *byte == b'\n');
    rows.map(move |row| parse_area(row, clockwork).ok_or_else(|| Unreadable(row.to_vec())))
}

/// The areas of a region together.
///
/// # Errors
///
/// There is a row that is none, or none at all.
pub fn parse_print(text: &[u8], clockwork: Clockwork<'_>) -> Result<Reading, Unreadable> {
    let mut areas = areas(text, clockwork);
    let mut sum = areas.next().ok_or_else(|| Unreadable(text.to_vec()))??.reading;
    for area in areas {
        sum += &area?.reading;
    }
    Ok(sum)
}

fn parse_area(row: &[u8], clockwork: Clockwork<'_>) -> Option<Area> {
    let row = row.strip_suffix(b"\n").unwrap_or(row);
    let (start, row) = take_number(row)?;
    let (step, mut row) = take_number(row.strip_prefix(b"+")?)?;
    let mut numbers = [0; 13];
    for number in &mut numbers {
        (*number, row) = take_number(row.strip_prefix(b" ")?)?;
    }
    let bins = match clockwork.bounds {
        [] if row.is_empty() => Vec::new(),
        [] => return None,
        bounds => parse_bins(row.strip_prefix(b" ")?, bounds)?,
    };
    let unit_ns = if clockwork.precise { 1 } else { NS_PER_MS };
    let [block @ .., reading, writing] = numbers;
    let reading = Reading { bins, ..Reading::of_numbers(block, [reading, writing], unit_ns) };
    Some(Area { start, step, reading })
}

/// `1:3:1`: as many as there are bounds, and one more.
fn parse_bins(mut text: &[u8], bounds: &[u8]) -> Option<Vec<u64>> {
    let mut bins = Vec::new();
    for at in 0..=bounds.split(|byte| *byte == b',').count() {
        let digits = if at > 0 { text.strip_prefix(b":")? } else { text };
        let (bin, rest) = take_number(digits)?;
        bins.push(bin);
        text = rest;
    }
    text.is_empty().then_some(bins)
}

/// I/O by latency.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper bounds of all bins but the last, rising; an I/O that took as long is in the next bin.
    pub bounds_ns: Vec<u64>,
    /// I/Os in each bin: one number more than there are bounds.
    pub counts: Vec<u64>,
}

/// The bounds that a region has, in nanoseconds; empty without a histogram.
#[must_use]
pub fn bounds_ns(clockwork: Clockwork<'_>) -> Vec<u64> {
    let unit_ns = if clockwork.precise { 1 } else { NS_PER_MS };
    let bound = |word: &[u8]| take_number(word).map(|(bound, _)| bound.saturating_mul(unit_ns));
    clockwork.bounds.split(|byte| *byte == b',').filter_map(bound).collect()
}

impl Histogram {
    /// Adds the bins of a region with these bounds. If they are not the same, only the bounds stay
    /// that both have: so no I/O is put where it may not belong.
    pub fn add(&mut self, bounds_ns: &[u64], bins: &[u64]) {
        if self.counts.is_empty() {
            self.bounds_ns = bounds_ns.to_vec();
        }
        if self.bounds_ns == bounds_ns {
            return add_bins(&mut self.counts, bins);
        }
        let mut common = self.bounds_ns.clone();
        common.retain(|bound| bounds_ns.contains(bound));
        let mut counts = coarser(&common, &self.bounds_ns, &self.counts);
        add_bins(&mut counts, &coarser(&common, bounds_ns, bins));
        *self = Histogram { bounds_ns: common, counts };
    }
}

/// The bins between some of the bounds.
fn coarser(some: &[u64], bounds: &[u64], bins: &[u64]) -> Vec<u64> {
    let mut counts = vec![0_u64; some.len() + 1];
    for (at, bin) in bins.iter().enumerate() {
        // What lies below a bound lies below every higher one; the last bin has none above.
        let upper = bounds.get(at).copied().unwrap_or(u64::MAX);
        let into = some.partition_point(|bound| *bound < upper).min(some.len());
        counts[into] = counts[into].saturating_add(*bin);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Clockwork<'_> = Clockwork { precise: false, bounds: b"" };
    const ROW: &[u8] = b"589+8 1 2 3 4 5 6 7 8 9 10 11 12 13\n";

    #[test]
    fn a_row_is_read_in_the_order_of_the_kernel_and_in_one_unit() {
        let reading = parse_print(ROW, PLAIN).unwrap();
        let ms = 1_000_000;
        let counters = Counters {
            reads_completed: 1,
            reads_merged: 2,
            read_bytes: 3 * 512,
            read_time_ns: 4 * ms,
            writes_completed: 5,
            writes_merged: 6,
            written_bytes: 7 * 512,
            write_time_ns: 8 * ms,
            io_time_ns: 10 * ms,
            weighted_io_time_ns: 11 * ms,
            read_busy_time_ns: 12 * ms,
            write_busy_time_ns: 13 * ms,
        };
        assert_eq!(reading, Reading { counters, io_now: 9, bins: vec![] });
        let precise = Clockwork { precise: true, bounds: b"" };
        assert_eq!(parse_print(ROW, precise).unwrap().counters.write_busy_time_ns, 13);
    }

    #[test]
    fn the_areas_of_a_region_come_one_by_one_and_add_up() {
        let text = [ROW, b"597+8 1 0 8 0 0 0 0 0 1 0 0 0 0\n"].concat();
        let starts = areas(&text, PLAIN).map(|area| area.unwrap().start);
        assert_eq!(starts.collect::<Vec<_>>(), [589, 597]);
        let sum = parse_print(&text, PLAIN).unwrap();
        assert_eq!((sum.counters.reads_completed, sum.io_now), (2, 10));
        assert_eq!(sum.counters.read_bytes, 11 * 512);
    }

    #[test]
    fn bins_are_as_many_as_the_bounds_make() {
        let with = |bounds: &'static str, bins: &str| {
            let row = format!("0+8 0 0 0 0 0 0 0 0 0 0 0 0 0{bins}");
            let clockwork = Clockwork { precise: false, bounds: bounds.as_bytes() };
            parse_print(row.as_bytes(), clockwork).map(|reading| reading.bins).ok()
        };
        assert_eq!(with("10,20", " 1:3:1"), Some(vec![1, 3, 1]));
        assert_eq!(with("10", " 1:3"), Some(vec![1, 3]));
        for (bounds, bins) in [("10,20", ""), ("10,20", " 1:3"), ("10", " 1:3:1"), ("", " 1")] {
            assert_eq!(with(bounds, bins), None, "{bounds} {bins}");
        }
    }

    #[test]
    fn what_no_kernel_prints_is_refused() {
        let refused = ["", "\n", "0 1", "0+8 1 2", "0+8 1 2 3 4 5 6 7 8 9 10 11 12 x"];
        for text in refused {
            assert!(parse_print(text.as_bytes(), PLAIN).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_device_says_the_same_in_another_order() {
        let stat = "     1  2  3  4  5  6  7  8  9 10 11  0 0 0 0 7 7\n";
        let device = Reading::of_device(stat).unwrap();
        let mut region = parse_print(ROW, PLAIN).unwrap();
        (region.counters.read_busy_time_ns, region.counters.write_busy_time_ns) = (0, 0);
        assert_eq!(device, region);
        assert_eq!(Reading::of_device("1 2 3"), None);
        assert_eq!(Reading::of_device(""), None);
    }

    #[test]
    fn one_value_that_fell_tells_that_all_began_anew() {
        let counted = |reads: u64, writes: u64| Reading {
            counters: Counters {
                reads_completed: reads,
                writes_completed: writes,
                ..Counters::default()
            },
            io_now: 3,
            bins: vec![reads],
        };
        let since = counted(7, 9).since(&counted(5, 5));
        assert_eq!((since.counters.reads_completed, since.counters.writes_completed), (2, 4));
        assert_eq!((since.bins, since.reset), (vec![2], false));
        let since = counted(7, 4).since(&counted(5, 5));
        assert_eq!((since.counters.reads_completed, since.counters.writes_completed), (7, 4));
        assert_eq!((since.bins, since.reset), (vec![7], true));
    }

    #[test]
    fn bounds_are_in_nanoseconds_whatever_the_region_counts_in() {
        let bounds = |precise, bounds| bounds_ns(Clockwork { precise, bounds });
        assert_eq!(bounds(false, b"10,20"), [10_000_000, 20_000_000]);
        assert_eq!(bounds(true, b"10,20"), [10, 20]);
        assert_eq!(bounds(true, b""), [] as [u64; 0]);
    }

    #[test]
    fn of_two_histograms_the_common_bounds_stay() {
        let mut histogram = Histogram::default();
        histogram.add(&[10, 20, 30], &[1, 2, 3, 4]);
        histogram.add(&[10, 20, 30], &[1, 0, 0, 0]);
        assert_eq!(histogram.counts, [2, 2, 3, 4]);
        histogram.add(&[20, 25], &[5, 6, 7]);
        assert_eq!(histogram, Histogram { bounds_ns: vec![20], counts: vec![9, 20] });
        histogram.add(&[1], &[1, 1]);
        assert_eq!(histogram, Histogram { bounds_ns: vec![], counts: vec![31] });
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in "[0-9 +:\n]{0,80}", bounds in "[0-9,]{0,8}") {
            let clockwork = Clockwork { precise: true, bounds: bounds.as_bytes() };
            let _ = parse_print(text.as_bytes(), clockwork);
            let _ = bounds_ns(clockwork);
            let _ = Reading::of_device(&text);
        }

        /// Whatever the bounds, no I/O gets lost, and none gets below a bound that it was above.
        #[test]
        fn a_coarser_histogram_says_the_same_of_each_bound_that_it_has(
            a in prop::collection::btree_map(1..9_u64, 0..9_u64, 0..6),
            b in prop::collection::btree_map(1..9_u64, 0..9_u64, 0..6),
            above in 0..9_u64,
        ) {
            let part = |of: &std::collections::BTreeMap<u64, u64>| -> (Vec<u64>, Vec<u64>) {
                (of.keys().copied().collect(), of.values().copied().chain([above]).collect())
            };
            let ((bounds_a, bins_a), (bounds_b, bins_b)) = (part(&a), part(&b));
            let mut sum = Histogram::default();
            sum.add(&bounds_a, &bins_a);
            sum.add(&bounds_b, &bins_b);
            let below = |bounds: &[u64], bins: &[u64], bound: u64| -> u64 {
                bins.iter().take(bounds.partition_point(|it| *it <= bound)).sum()
            };
            for bound in &sum.bounds_ns {
                let expected =
                    below(&bounds_a, &bins_a, *bound) + below(&bounds_b, &bins_b, *bound);
                prop_assert_eq!(below(&sum.bounds_ns, &sum.counts, *bound), expected);
            }
            let all: u64 = bins_a.iter().chain(&bins_b).sum();
            prop_assert_eq!(sum.counts.iter().sum::<u64>(), all);
        }
    }
}
