//! From two readings of the totals to the rows of the table.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::counters::{Counters, Histogram};
use crate::request::{DeviceTotals, FileTotals, Totals};

/// What a file, or the rest of a device, did in an interval.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The file's path, or the name of its group where nobody knows the path; `(other)` for what no
    /// file of the device has.
    pub name: String,
    /// Name of the device.
    pub device: String,
    /// Whether it is what no file has.
    pub other: bool,
    /// Between the two readings of its device: what the rates are by.
    pub seconds: f64,
    /// Reads completed in a second.
    pub reads_per_second: f64,
    /// Writes completed in a second.
    pub writes_per_second: f64,
    /// Bytes read in a second.
    pub read_bytes_per_second: f64,
    /// Bytes written in a second.
    pub written_bytes_per_second: f64,
    /// What a read took on average. None if there was none.
    pub read_wait_ns: Option<u64>,
    /// What a write took on average.
    pub write_wait_ns: Option<u64>,
    /// I/Os under way, on average: the time that all took, by the time of the interval (Little's
    /// law). The kernel's own count of that, the weighted time, is 0 in some kernels.
    pub queue: f64,
    /// Part of the bytes that went to or from the device, from 0 to 1. None if there were none.
    pub share: Option<f64>,
    /// What half of the I/Os took at the most, by the histogram. None without one.
    pub median_ns: Option<u64>,
    /// What 99 of 100 took at the most.
    pub p99_ns: Option<u64>,
}

impl Row {
    /// Bytes that went to or from the disk in a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.read_bytes_per_second + self.written_bytes_per_second
    }

    /// By what its history is found.
    pub fn key(&self) -> (String, String) {
        (self.device.clone(), self.name.clone())
    }
}

/// What the rows are sorted by; the largest come first, names from a to z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Bytes a second, read and written.
    Bytes,
    /// Bytes read a second.
    Read,
    /// Bytes written a second.
    Written,
    /// Reads and writes a second.
    Iops,
    /// The longer of the two average waits.
    Wait,
    /// I/Os under way.
    Queue,
    /// The name.
    Name,
}

/// The word for it, as on the command line.
impl fmt::Display for Sort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// What was done from one reading to the next: a row for each file, and one for the rest of each
/// device. What fell, since somebody has set it to zero, counts from zero.
///
/// Regions of several files may overlap, and an I/O that crosses from one into the next counts in
/// both: then files have more together than their device. The rest is nothing then, not less.
pub fn rows(before: &Totals, after: &Totals, elapsed: Duration) -> Vec<Row> {
    let old_files: HashMap<_, _> = before.files.iter().map(|file| (identity(file), file)).collect();
    let old_devices: HashMap<_, _> =
        before.devices.iter().map(|device| (&*device.device, device)).collect();
    let mut rows = Vec::with_capacity(after.files.len() + after.devices.len());
    for device in &after.devices {
        let old = old_devices.get(&*device.device).copied();
        let seconds = seconds_between(old, device, elapsed);
        let whole = device
            .counters
            .map(|counters| since(old.and_then(|old| old.counters).as_ref(), &counters));
        let mut rest = whole;
        let files = after.files.iter().filter(|file| file.device == device.device);
        for file in files {
            let old = old_files.get(&identity(file)).copied();
            // A file that was not there has no rate yet.
            let done = old.map(|old| since(Some(&old.counters), &file.counters));
            let done = done.unwrap_or_default();
            rest = rest.map(|rest| rest.beyond(&done));
            let mut row = row(&name(file), device, &done, seconds, whole.as_ref());
            let histogram = file.histogram.as_ref().zip(old);
            let latency = histogram.map(|(now, old)| latencies(old.histogram.as_ref(), now));
            (row.median_ns, row.p99_ns) = latency.unwrap_or_default();
            rows.push(row);
        }
        if let (Some(rest), true) = (rest, old.is_some()) {
            let rest = row("(other)", device, &rest, seconds, whole.as_ref());
            rows.push(Row { other: true, ..rest });
        }
    }
    rows
}

/// What stays the same of a file while it is followed.
fn identity(file: &FileTotals) -> (&str, String) {
    let path = file.path.as_ref().map(ToString::to_string);
    let name = path.unwrap_or_else(|| format!("{} {:?}", file.alias, file.group));
    (&file.device, name)
}

fn name(file: &FileTotals) -> String {
    match &file.path {
        Some(path) => path.to_string(),
        None => file.alias.clone(),
    }
}

/// Between the two readings of the device, if both say when they were made.
fn seconds_between(old: Option<&DeviceTotals>, new: &DeviceTotals, elapsed: Duration) -> f64 {
    let read = |device: &DeviceTotals| device.read_unix_seconds;
    let between = old.and_then(read).zip(read(new)).map(|(old, new)| new - old);
    between.filter(|seconds| *seconds > 0.0).unwrap_or(elapsed.as_secs_f64()).max(1e-3)
}

fn since(old: Option<&Counters>, new: &Counters) -> Counters {
    match old {
        Some(old) if !new.is_below(old) => new.beyond(old),
        Some(_) => *new,
        None => Counters::default(),
    }
}

fn row(
    name: &str,
    device: &DeviceTotals,
    done: &Counters,
    seconds: f64,
    whole: Option<&Counters>,
) -> Row {
    let share = whole.map(bytes).filter(|whole| *whole > 0.0);
    Row {
        name: name.to_owned(),
        device: if device.name.is_empty() { device.device.clone() } else { device.name.clone() },
        other: false,
        seconds,
        reads_per_second: float(done.reads_completed) / seconds,
        writes_per_second: float(done.writes_completed) / seconds,
        read_bytes_per_second: float(done.read_bytes) / seconds,
        written_bytes_per_second: float(done.written_bytes) / seconds,
        read_wait_ns: done.read_time_ns.checked_div(done.reads_completed),
        write_wait_ns: done.write_time_ns.checked_div(done.writes_completed),
        queue: float(done.read_time_ns.saturating_add(done.write_time_ns)) / 1e9 / seconds,
        share: share.map(|whole| (bytes(done) / whole).min(1.0)),
        median_ns: None,
        p99_ns: None,
    }
}

fn bytes(counters: &Counters) -> f64 {
    float(counters.read_bytes.saturating_add(counters.written_bytes))
}

#[allow(clippy::cast_precision_loss)] // a rate is shown to three digits
fn float(count: u64) -> f64 {
    count as f64
}

/// The bounds below which half, and 99 of 100, of the I/Os stayed that came in between. What is in
/// the last bin is beyond every bound, and none is given for it.
fn latencies(old: Option<&Histogram>, new: &Histogram) -> (Option<u64>, Option<u64>) {
    let old = old.filter(|old| old.bounds_ns == new.bounds_ns);
    let before = |at: usize| old.and_then(|old| old.counts.get(at).copied()).unwrap_or(0);
    let fell = new.counts.iter().enumerate().any(|(at, count)| *count < before(at));
    let bins: Vec<u64> = new
        .counts
        .iter()
        .enumerate()
        .map(|(at, count)| if fell { *count } else { count - before(at) })
        .collect();
    let all: u64 = bins.iter().sum();
    let below = |of_hundred: u64| {
        let wanted = (all.saturating_mul(of_hundred)).div_ceil(100).max(1);
        let mut sum = 0;
        let at = bins.iter().position(|bin| {
            sum += bin;
            sum >= wanted
        })?;
        new.bounds_ns.get(at).copied()
    };
    if all == 0 { (None, None) } else { (below(50), below(99)) }
}

/// Sorts the rows, and leaves those whose name or device has the text in it.
pub fn arrange(rows: &mut Vec<Row>, sort: Sort, filter: &str) {
    rows.retain(|row| row.name.contains(filter) || row.device.contains(filter));
    let wait = |row: &Row| row.read_wait_ns.max(row.write_wait_ns).unwrap_or(0);
    let value = |row: &Row| match sort {
        Sort::Bytes => row.bytes_per_second(),
        Sort::Read => row.read_bytes_per_second,
        Sort::Written => row.written_bytes_per_second,
        Sort::Iops => row.reads_per_second + row.writes_per_second,
        Sort::Wait => float(wait(row)),
        Sort::Queue => row.queue,
        Sort::Name => 0.0,
    };
    let by_name = |a: &Row, b: &Row| (&a.name, &a.device).cmp(&(&b.name, &b.device));
    rows.sort_by(|a, b| match value(b).total_cmp(&value(a)) {
        Ordering::Equal => by_name(a, b),
        other => other,
    });
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::request::{DeviceState, FilePath, Source};

    pub fn file(path: &str, counters: Counters) -> FileTotals {
        FileTotals {
            path: Some(FilePath(path.into())),
            alias: "alias".to_owned(),
            mode: None,
            inode: None,
            device: "253:0".into(),
            device_name: "vg-lv".into(),
            group: Some(0),
            state: String::new(),
            regions: 1,
            extents: None,
            mapped_bytes: 0,
            foreign_bytes: None,
            unmapped_bytes: None,
            shared_bytes: None,
            last_change_unix_seconds: None,
            last_error: None,
            source: Source::Regions,
            uncertain_bytes: None,
            since_unix_seconds: None,
            resets: 0,
            io_now: 0,
            counters,
            histogram: None,
        }
    }

    pub fn reads(reads: u64, bytes: u64) -> Counters {
        Counters {
            reads_completed: reads,
            read_bytes: bytes,
            read_time_ns: reads * 2_000_000,
            ..Counters::default()
        }
    }

    pub fn totals(at: f64, whole: Counters, files: Vec<FileTotals>) -> Totals {
        let device = DeviceTotals {
            device: "253:0".into(),
            name: "vg-lv".into(),
            uuid: String::new(),
            files: files.len() as u64,
            regions: 1,
            own_regions: 1,
            own_io_cost_estimated_ns: 17,
            creates: 0,
            creates_time_ns: 0,
            state: DeviceState::Ok,
            stuck_seconds: 0.0,
            read_unix_seconds: Some(at),
            read_error: None,
            grid: None,
            io_now: 0,
            counters: Some(whole),
        };
        Totals { devices: vec![device], files, ..Totals::default() }
    }

    const TICK: Duration = Duration::from_secs(1);

    #[test]
    fn rates_are_of_the_time_between_the_readings_and_the_rest_is_other() {
        let before = totals(10.0, reads(100, 1000), vec![file("/a", reads(10, 100))]);
        let after = totals(12.0, reads(300, 5000), vec![file("/a", reads(110, 3100))]);
        let rows = rows(&before, &after, TICK);
        let [a, other] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((a.name.as_str(), a.device.as_str(), a.other), ("/a", "vg-lv", false));
        assert_eq!((a.seconds, a.reads_per_second, a.read_bytes_per_second), (2.0, 50.0, 1500.0));
        assert_eq!((a.read_wait_ns, a.write_wait_ns), (Some(2_000_000), None));
        assert_eq!((a.queue, a.share), (0.1, Some(0.75)));
        assert_eq!((other.name.as_str(), other.other), ("(other)", true));
        assert_eq!((other.reads_per_second, other.share), (50.0, Some(0.25)));
    }

    #[test]
    fn nothing_is_ever_less_than_nothing() {
        let before = totals(0.0, reads(1000, 1000), vec![file("/a", reads(50, 500))]);
        // Somebody has cleared the file's regions, and they overlap others.
        let after = totals(1.0, reads(1010, 1010), vec![file("/a", reads(20, 200))]);
        let rows = rows(&before, &after, TICK);
        let [a, other] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((a.reads_per_second, a.share), (20.0, Some(1.0)));
        assert_eq!((other.reads_per_second, other.bytes_per_second()), (0.0, 0.0));
    }

    #[test]
    fn a_file_that_is_new_has_no_rate_yet() {
        let before = totals(0.0, reads(0, 0), Vec::new());
        let after = totals(1.0, reads(9, 9), vec![file("/a", reads(1_000_000, 1))]);
        assert!(rows(&before, &after, TICK)[0].reads_per_second <= 0.0);
    }

    #[test]
    fn latencies_are_of_what_came_in_between() {
        let histogram = |counts: [u64; 3]| Histogram {
            bounds_ns: vec![1_000_000, 20_000_000],
            counts: counts.to_vec(),
        };
        let of = |old, new| latencies(Some(&histogram(old)), &histogram(new));
        assert_eq!(of([5, 5, 5], [5, 5, 5]), (None, None));
        assert_eq!(of([100, 0, 0], [101, 99, 0]), (Some(20_000_000), Some(20_000_000)));
        assert_eq!(of([0, 0, 0], [99, 1, 0]), (Some(1_000_000), Some(1_000_000)));
        assert_eq!(of([0, 0, 0], [60, 0, 40]), (Some(1_000_000), None), "beyond every bound");
        assert_eq!(of([9, 9, 9], [1, 0, 0]), (Some(1_000_000), Some(1_000_000)), "cleared");
    }

    #[test]
    fn rows_are_sorted_and_filtered() {
        let files = |a, b| vec![file("/a", reads(a, a)), file("/b", reads(1, b))];
        let rows = rows(
            &totals(0.0, reads(0, 0), files(0, 0)),
            &totals(1.0, reads(9, 100), files(5, 50)),
            TICK,
        );
        let names = |sort, filter| {
            let mut rows = rows.clone();
            arrange(&mut rows, sort, filter);
            rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(Sort::Bytes, ""), ["/b", "(other)", "/a"]);
        assert_eq!(names(Sort::Iops, ""), ["/a", "(other)", "/b"]);
        assert_eq!(names(Sort::Name, ""), ["(other)", "/a", "/b"]);
        assert_eq!(names(Sort::Bytes, "/a"), ["/a"]);
        assert_eq!(names(Sort::Bytes, "vg").len(), 3);
        assert!(names(Sort::Bytes, "x").is_empty());
    }
}
