//! Totals as metrics for Prometheus, under the names and in the units of `node_exporter`: who
//! has a dashboard of `node_disk_*` replaces the prefix by `dmfilemap_file_` and has it by file.
//!
//! Each sample of a file bears `file` and `device`, and nothing that changes while the file is
//! followed: its path, inode and group are labels of `dmfilemap_file_info` alone.

mod text;

use std::collections::HashSet;

pub use text::Dialect;
use text::{Kind, Labels, Seconds, Text};

use crate::counters::{Counters, Histogram};
use crate::request::{DeviceState, DeviceTotals, FileTotals, ServiceTotals, Timing, Totals};

/// The metrics of these totals.
#[must_use]
pub fn render(totals: &Totals, dialect: Dialect) -> String {
    let mut text = Text::new(dialect);
    files(&mut text, &totals.files);
    devices(&mut text, &totals.devices);
    if let Some(bytes) = totals.kernel_stats_bytes {
        let name = "dmfilemap_kernel_stats_bytes";
        let help = "Kernel memory that the statistics regions of the machine take, all of them.";
        text.family(name, Kind::Gauge, help);
        text.sample(name, &[], bytes);
    }
    if let Some(service) = &totals.service {
        self::service(&mut text, service);
    }
    text.finish()
}

/// A counter or gauge of a file or a device: name, kind, help, value.
type Column<T> = (&'static str, Kind, &'static str, fn(&T) -> Option<String>);

/// What a table of [`Counters`] shows, by what follows the prefix.
type Amount = (&'static str, &'static str, fn(&Counters) -> String);

const AMOUNTS: [Amount; 10] = [
    ("reads_completed_total", "Reads completed.", |c| c.reads_completed.to_string()),
    ("reads_merged_total", "Reads merged into others.", |c| c.reads_merged.to_string()),
    ("read_bytes_total", "Bytes read.", |c| c.read_bytes.to_string()),
    ("read_time_seconds_total", "Time that reads took.", |c| seconds(c.read_time_ns)),
    ("writes_completed_total", "Writes completed.", |c| c.writes_completed.to_string()),
    ("writes_merged_total", "Writes merged into others.", |c| c.writes_merged.to_string()),
    ("written_bytes_total", "Bytes written.", |c| c.written_bytes.to_string()),
    ("write_time_seconds_total", "Time that writes took.", |c| seconds(c.write_time_ns)),
    ("io_time_seconds_total", "Time with I/O under way; that of a file's regions added up.", |c| {
        seconds(c.io_time_ns)
    }),
    ("io_time_weighted_seconds_total", "Time with I/O under way, once for each I/O.", |c| {
        seconds(c.weighted_io_time_ns)
    }),
];

const FILE_COLUMNS: [Column<FileTotals>; 11] = [
    ("io_now", Kind::Gauge, "I/O under way.", |f| Some(f.io_now.to_string())),
    ("regions", Kind::Gauge, "Regions of the file's group.", |f| Some(f.regions.to_string())),
    ("extents", Kind::Gauge, "Extents of the file.", |f| Some(f.extents?.to_string())),
    ("mapped_bytes", Kind::Gauge, "Bytes that are counted.", |f| Some(f.mapped_bytes.to_string())),
    ("foreign_bytes", Kind::Gauge, "Bytes between its extents that are counted, too.", |f| {
        Some(f.foreign_bytes?.to_string())
    }),
    ("unmapped_bytes", Kind::Gauge, "Bytes of the file that have no place yet.", |f| {
        Some(f.unmapped_bytes?.to_string())
    }),
    ("shared_bytes", Kind::Gauge, "Bytes that other files have, too.", |f| {
        Some(f.shared_bytes?.to_string())
    }),
    ("uncertain_bytes", Kind::Gauge, "Bytes counted that may be others', or missing.", |f| {
        Some(f.uncertain_bytes?.to_string())
    }),
    ("resets_total", Kind::Counter, "Times that others cleared a region.", |f| {
        Some(f.resets.to_string())
    }),
    ("last_change_timestamp_seconds", Kind::Gauge, "When its map last changed.", |f| {
        Some(f.last_change_unix_seconds?.to_string())
    }),
    ("failing", Kind::Gauge, "Whether something does not work for the file.", |f| {
        Some(u8::from(f.last_error.is_some()).to_string())
    }),
];

const DEVICE_COLUMNS: [Column<DeviceTotals>; 11] = [
    ("io_now", Kind::Gauge, "I/O under way.", |d| Some(d.io_now.to_string())),
    ("files", Kind::Gauge, "Files whose I/O is counted.", |d| Some(d.files.to_string())),
    ("regions", Kind::Gauge, "Regions, whoever made them.", |d| Some(d.regions.to_string())),
    ("own_regions", Kind::Gauge, "Regions of the files' groups.", |d| {
        Some(d.own_regions.to_string())
    }),
    (
        "own_io_cost_estimated_seconds",
        Kind::Gauge,
        "What the regions of the files' groups add to the time of each I/O, as an estimate.",
        |d| Some(seconds(d.own_io_cost_estimated_ns)),
    ),
    (
        "regions_created_total",
        Kind::Counter,
        "Regions created; each stopped the device's I/O for a moment.",
        |d| Some(d.creates.to_string()),
    ),
    (
        "regions_created_time_seconds_total",
        Kind::Counter,
        "How long creating them took; no I/O waited for longer.",
        |d| Some(seconds(d.creates_time_ns)),
    ),
    ("up", Kind::Gauge, "Whether the device answers.", |d| {
        Some(u8::from(d.state == DeviceState::Ok).to_string())
    }),
    ("grid_areas", Kind::Gauge, "Areas of the device's grid.", |d| {
        Some(d.grid.as_ref()?.areas.to_string())
    }),
    ("grid_memory_bytes", Kind::Gauge, "Kernel memory of the device's grid.", |d| {
        Some(d.grid.as_ref()?.kernel_bytes.to_string())
    }),
    ("read_timestamp_seconds", Kind::Gauge, "When its files' counters were read.", |d| {
        Some(d.read_unix_seconds?.to_string())
    }),
];

fn seconds(ns: u64) -> String {
    Seconds(ns).to_string()
}

fn files(text: &mut Text, files: &[FileTotals]) {
    let names = names(files);
    let devices: Vec<String> = files.iter().map(|file| kernel_name(&file.device)).collect();
    let rows: Vec<Row<'_, FileTotals>> = names
        .iter()
        .zip(&devices)
        .zip(files)
        .map(|((name, device), file)| (vec![("file", name.as_str()), ("device", device)], file))
        .collect();
    amounts(text, "dmfilemap_file_", &rows, |file| Some(&file.counters));
    columns(text, "dmfilemap_file_", &FILE_COLUMNS, &rows);
    histograms(text, &rows);
    infos(text, &rows);
}

/// What a sample is about, and its labels.
type Row<'a, T> = (Vec<(&'a str, &'a str)>, &'a T);

/// The aliases; one that is there twice on a device, as `dmstats` makes them, with its group's id.
fn names(files: &[FileTotals]) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut names = Vec::with_capacity(files.len());
    for file in files {
        let mut name = file.alias.clone();
        while !taken.insert((file.device.as_str(), name.clone())) {
            name = match file.group {
                Some(group) => format!("{name} (group {group})"),
                None => format!("{name}'"),
            };
        }
        names.push(name);
    }
    names
}

/// What the kernel, and with it `node_exporter`, calls device-mapper device `MAJOR:MINOR`.
fn kernel_name(device: &str) -> String {
    format!("dm-{}", device.split_once(':').map_or(device, |(_, minor)| minor))
}

fn amounts<T>(text: &mut Text, prefix: &str, rows: &[Row<'_, T>], of: fn(&T) -> Option<&Counters>) {
    for (name, help, value) in AMOUNTS {
        let name = format!("{prefix}{name}");
        let values = rows.iter().filter_map(|(labels, row)| Some((labels, value(of(row)?))));
        family(text, &name, Kind::Counter, help, values);
    }
}

fn columns<T>(text: &mut Text, prefix: &str, columns: &[Column<T>], rows: &[Row<'_, T>]) {
    for (name, kind, help, value) in columns {
        let values = rows.iter().filter_map(|(labels, row)| Some((labels, value(row)?)));
        family(text, &format!("{prefix}{name}"), *kind, help, values);
    }
}

/// A family, if it has a sample.
fn family<'a>(
    text: &mut Text,
    name: &str,
    kind: Kind,
    help: &str,
    values: impl Iterator<Item = (&'a Vec<(&'a str, &'a str)>, String)>,
) {
    for (at, (labels, value)) in values.enumerate() {
        if at == 0 {
            text.family(name, kind, help);
        }
        text.sample(name, labels, value);
    }
}

fn histograms(text: &mut Text, rows: &[Row<'_, FileTotals>]) {
    const NAME: &str = "dmfilemap_file_io_latency_seconds";
    let with =
        rows.iter().filter_map(|(labels, file)| Some((labels, file.histogram.as_ref()?, file)));
    for (at, (labels, histogram, FileTotals { counters, .. })) in with.enumerate() {
        if at == 0 {
            text.family(NAME, Kind::Histogram, "Time that reads and writes took, each.");
        }
        buckets(text, NAME, labels, histogram);
        let time = counters.read_time_ns.saturating_add(counters.write_time_ns);
        text.sample(&format!("{NAME}_sum"), labels, Seconds(time));
        let count: u64 = histogram.counts.iter().fold(0, |sum, bin| sum.saturating_add(*bin));
        text.sample(&format!("{NAME}_count"), labels, count);
    }
}

/// The kernel's bins go up to just below their bounds, those of Prometheus up to and with them: of
/// times that are counted in nanoseconds or milliseconds that is the same for all but an instant.
fn buckets(text: &mut Text, name: &str, labels: Labels<'_>, histogram: &Histogram) {
    let name = format!("{name}_bucket");
    let bounds = histogram.bounds_ns.iter().map(|bound| seconds(*bound));
    let mut sum: u64 = 0;
    for (bound, bin) in bounds.chain(["+Inf".to_owned()]).zip(&histogram.counts) {
        sum = sum.saturating_add(*bin);
        let mut labels = labels.to_vec();
        labels.push(("le", &bound));
        text.sample(&name, &labels, sum);
    }
}

fn infos(text: &mut Text, rows: &[Row<'_, FileTotals>]) {
    const NAME: &str = "dmfilemap_file_info";
    for (at, (labels, file)) in rows.iter().enumerate() {
        if at == 0 {
            text.family(NAME, Kind::Info, "What the file is, and what its counters come from.");
        }
        let text_of = |number: Option<u64>| number.map(|n| n.to_string()).unwrap_or_default();
        let path = file.path.as_ref().map(ToString::to_string).unwrap_or_default();
        let (inode, group) = (text_of(file.inode), text_of(file.group.map(u64::from)));
        let mut labels = labels.clone();
        labels.extend([
            ("path", path.as_str()),
            ("inode", &inode),
            ("mode", file.mode.map_or("", |mode| mode.as_str())),
            ("group", &group),
            ("source", file.source.as_str()),
        ]);
        text.sample(NAME, &labels, 1);
    }
}

fn devices(text: &mut Text, devices: &[DeviceTotals]) {
    let names: Vec<String> = devices.iter().map(|device| kernel_name(&device.device)).collect();
    let rows: Vec<Row<'_, DeviceTotals>> = names
        .iter()
        .zip(devices)
        .map(|(name, device)| (vec![("device", name.as_str())], device))
        .collect();
    amounts(text, "dmfilemap_device_", &rows, |device| device.counters.as_ref());
    columns(text, "dmfilemap_device_", &DEVICE_COLUMNS, &rows);
    for (at, (labels, device)) in rows.iter().enumerate() {
        if at == 0 {
            text.family("dmfilemap_device_info", Kind::Info, "What the device is.");
        }
        let mut labels = labels.clone();
        labels.extend([("name", device.name.as_str()), ("uuid", &device.uuid)]);
        text.sample("dmfilemap_device_info", &labels, 1);
    }
}

fn service(text: &mut Text, service: &ServiceTotals) {
    let gauge = |text: &mut Text, name: &str, help: &str, value: String| {
        text.family(name, Kind::Gauge, help);
        text.sample(name, &[], value);
    };
    text.family("dmfilemap_build_info", Kind::Info, "The program.");
    text.sample("dmfilemap_build_info", &[("version", &service.version)], 1);
    let uptime = service.uptime_seconds.to_string();
    gauge(text, "dmfilemap_uptime_seconds", "Time since the service started.", uptime);
    let lag = service.lag_seconds.to_string();
    gauge(text, "dmfilemap_lag_seconds", "How long the most overdue look is overdue.", lag);
    gauge(text, "dmfilemap_files", "Followed files.", service.files.to_string());
    let unfit = service.unfit_files.to_string();
    gauge(text, "dmfilemap_unfit_files", "Files that cannot be followed.", unfit);
    if let Some(saved) = service.state_saved_unix_seconds {
        let name = "dmfilemap_state_saved_timestamp_seconds";
        gauge(text, name, "When the totals were last saved.", saved.to_string());
    }
    work(text, service);
    let kinds = service.remaps;
    let kinds = [
        ("made", kinds.made),
        ("grown", kinds.grown),
        ("shrunk", kinds.shrunk),
        ("moved", kinds.moved),
    ];
    by_label(text, "dmfilemap_remaps_total", "Updates that changed regions.", "kind", &kinds);
    let errors = service.errors;
    let errors = [
        ("look", errors.looks),
        ("update", errors.updates),
        ("reading", errors.readings),
        ("save", errors.saves),
    ];
    by_label(text, "dmfilemap_errors_total", "What did not work.", "operation", &errors);
    let name = "dmfilemap_resets_total";
    text.family(name, Kind::Counter, "Times that others cleared a region.");
    text.sample(name, &[], service.resets);
}

/// How often each kind of work was done, and how long it took.
fn work(text: &mut Text, service: &ServiceTotals) {
    let work: [(&str, Timing); 3] =
        [("scan", service.scans), ("reading", service.readings), ("update", service.updates)];
    let (times, took) = ("dmfilemap_operations_total", "dmfilemap_operation_time_seconds_total");
    by_label(
        text,
        times,
        "Searches for files, readings of counters, updates of groups.",
        "operation",
        &work.map(|(operation, timing)| (operation, timing.completed)),
    );
    text.family(took, Kind::Counter, "Time that these took.");
    for (operation, timing) in work {
        text.sample(took, &[("operation", operation)], Seconds(timing.time_ns));
    }
}

fn by_label(text: &mut Text, name: &str, help: &str, label: &str, values: &[(&str, u64)]) {
    text.family(name, Kind::Counter, help);
    for (word, value) in values {
        text.sample(name, &[(label, word)], value);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::mode::Mode;
    use crate::request::{FilePath, Source};

    fn file(alias: &str, group: u32) -> FileTotals {
        FileTotals {
            path: Some(FilePath("/srv/a \"b\"\n%.img".into())),
            alias: alias.to_owned(),
            mode: Some(Mode::Inode),
            inode: Some(12),
            device: "253:3".into(),
            device_name: "vg-srv".into(),
            group: Some(group),
            state: "following".into(),
            regions: 2,
            extents: Some(2),
            mapped_bytes: 8192,
            foreign_bytes: Some(1024),
            unmapped_bytes: Some(512),
            shared_bytes: None,
            last_change_unix_seconds: Some(1_700_000_000),
            last_error: None,
            source: Source::Regions,
            uncertain_bytes: None,
            since_unix_seconds: None,
            resets: 1,
            io_now: 3,
            counters: Counters {
                reads_completed: 10,
                read_bytes: 40960,
                read_time_ns: 1_500_000_000,
                write_time_ns: 500_000_000,
                ..Counters::default()
            },
            histogram: Some(Histogram {
                bounds_ns: vec![1_000_000, 20_000_000],
                counts: vec![5, 4, 1],
            }),
        }
    }

    fn device() -> DeviceTotals {
        DeviceTotals {
            device: "253:3".into(),
            name: "vg-srv".into(),
            uuid: "LVM-x".into(),
            files: 1,
            regions: 5,
            own_regions: 3,
            own_io_cost_estimated_ns: 51,
            creates: 4,
            creates_time_ns: 20_000_000,
            state: DeviceState::Stuck,
            stuck_seconds: 7.5,
            read_unix_seconds: Some(1_700_000_000.25),
            read_error: None,
            grid: None,
            io_now: 1,
            counters: Some(Counters { written_bytes: 512, ..Counters::default() }),
        }
    }

    fn totals() -> Totals {
        Totals {
            service: Some(ServiceTotals { version: "1.2".into(), ..ServiceTotals::default() }),
            kernel_stats_bytes: Some(65992),
            devices: vec![device()],
            files: vec![file("a.img", 0), file("a.img", 7), file("b", 9)],
            ..Totals::default()
        }
    }

    #[test]
    fn units_and_suffixes_are_those_of_node_exporter() {
        let text = render(&totals(), Dialect::Classic);
        for line in [
            "# TYPE dmfilemap_file_reads_completed_total counter",
            "dmfilemap_file_reads_completed_total{file=\"a.img\",device=\"dm-3\"} 10",
            "dmfilemap_file_read_bytes_total{file=\"b\",device=\"dm-3\"} 40960",
            "dmfilemap_file_read_time_seconds_total{file=\"a.img\",device=\"dm-3\"} 1.5",
            "dmfilemap_file_io_now{file=\"a.img\",device=\"dm-3\"} 3",
            "dmfilemap_device_written_bytes_total{device=\"dm-3\"} 512",
            "dmfilemap_device_up{device=\"dm-3\"} 0",
            "dmfilemap_device_info{device=\"dm-3\",name=\"vg-srv\",uuid=\"LVM-x\"} 1",
            "dmfilemap_kernel_stats_bytes 65992",
            "dmfilemap_file_foreign_bytes{file=\"b\",device=\"dm-3\"} 1024",
            "dmfilemap_device_own_regions{device=\"dm-3\"} 3",
            "dmfilemap_device_own_io_cost_estimated_seconds{device=\"dm-3\"} 0.000000051",
            "dmfilemap_device_regions_created_time_seconds_total{device=\"dm-3\"} 0.02",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("shared_bytes"), "what is not known is not said: {text}");
    }

    #[test]
    fn what_changes_is_a_label_of_the_info_alone() {
        let text = render(&totals(), Dialect::Classic);
        let info = "dmfilemap_file_info{file=\"a.img\",device=\"dm-3\",\
                    path=\"/srv/a \\\"b\\\"\\n%25.img\",inode=\"12\",mode=\"inode\",group=\"0\",\
                    source=\"regions\"} 1";
        assert!(text.contains(info), "{text}");
        assert_eq!(text.matches("inode=").count(), 3, "{text}");
    }

    #[test]
    fn a_histogram_counts_up_to_all() {
        let text = render(&totals(), Dialect::Classic);
        let name = "dmfilemap_file_io_latency_seconds";
        let labels = "file=\"b\",device=\"dm-3\"";
        for line in [
            format!("{name}_bucket{{{labels},le=\"0.001\"}} 5"),
            format!("{name}_bucket{{{labels},le=\"0.02\"}} 9"),
            format!("{name}_bucket{{{labels},le=\"+Inf\"}} 10"),
            format!("{name}_sum{{{labels}}} 2"),
            format!("{name}_count{{{labels}}} 10"),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
    }

    /// `dmstats` calls all files of one name the same.
    #[test]
    fn no_sample_is_there_twice() {
        let text = render(&totals(), Dialect::Classic);
        let names: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.rsplit_once(' ').unwrap().0)
            .collect();
        let distinct: HashSet<&&str> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{text}");
        assert!(text.contains("file=\"a.img (group 7)\""), "{text}");
    }

    #[test]
    fn promtool_finds_no_fault() {
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "metrics"]).stdin(Stdio::piped());
        let Ok(mut child) = promtool.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
            assert!(std::env::var_os("CI").is_none(), "Debian's package prometheus is missing");
            eprintln!("skipped: Debian's package prometheus is missing");
            return;
        };
        let text = render(&totals(), Dialect::Classic);
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let said = child.wait_with_output().unwrap();
        let said = [said.stdout, said.stderr].concat();
        assert_eq!(String::from_utf8_lossy(&said), "", "{text}");
    }

    /// What the dashboard asks for is there, or it would show nothing.
    #[test]
    fn the_dashboard_asks_for_metrics_that_there_are() {
        let text = render(&totals(), Dialect::Classic);
        let dashboard = include_str!("../../contrib/grafana/dmfilemapd.json");
        serde_json::from_str::<serde_json::Value>(dashboard).unwrap();
        let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
        let words = dashboard.split(|char| !is_word(char));
        let names: Vec<&str> = words.filter(|word| word.starts_with("dmfilemap_")).collect();
        assert!(names.len() > 20, "{names:?}");
        for name in names {
            let at_line = |line: &str| line.split(['{', ' ']).next() == Some(name);
            assert!(text.lines().any(at_line), "{name}");
        }
    }
}
