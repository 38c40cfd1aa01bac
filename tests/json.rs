//! What is said in JSON is what `contrib/json.md` says, field by field.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/dialects.rs"]
mod dialects;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/vm.rs"]
mod vm;

use std::collections::BTreeSet;
use std::fs;

use dmfilemapd::request::{DeviceTotals, FileTotals, SCHEMA, ServiceTotals, Status, Totals};
use serde_json::Value;

use daemon::{PROGRAM, command, outcome, succeed, write_pieces};
use guest::Disk;

/// The part of the page about a command.
fn section(command: &str) -> &'static str {
    let page = include_str!("../contrib/json.md");
    let part = page.split("\n## ").find(|part| part.starts_with(&format!("`{command}")));
    part.unwrap_or_else(|| panic!("{command} is not described"))
}

fn example(command: &str) -> &'static str {
    let (_, rest) = section(command).split_once("```json\n").unwrap();
    rest.split_once("```").unwrap().0
}

/// The fields that the page describes.
fn described(command: &str) -> BTreeSet<String> {
    let rows = section(command).lines().filter_map(|line| line.strip_prefix("| `"));
    let fields = rows.map(|row| row.split_once('`').unwrap().0.to_owned());
    fields.filter(|field| !field.ends_with(".*")).chain(["schema".to_owned()]).collect()
}

/// The fields that a value has, as the page writes them. Counters of devices are described with
/// those of files.
fn fields(value: &Value) -> BTreeSet<String> {
    fn walk(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let dot = if path.is_empty() { "" } else { "." };
                    let path = format!("{path}{dot}{name}");
                    walk(value, &path, found);
                    let of_devices = ["devices[].counters.", "devices[].grid.others."];
                    if !of_devices.iter().any(|counters| path.starts_with(counters)) {
                        found.insert(path);
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    walk(item, &format!("{path}[]"), found);
                }
            }
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    walk(value, "", &mut found);
    found
}

fn parse(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|why| panic!("{why}: {text}"));
    assert_eq!(value["schema"], SCHEMA, "{text}");
    value
}

/// Asserts that the page describes what this command says, and that it is one line.
fn assert_described(command: &str, said: &str) {
    assert_eq!(said.lines().count(), 1, "{said}");
    let undescribed: Vec<String> =
        fields(&parse(said)).difference(&described(command)).cloned().collect();
    assert!(undescribed.is_empty(), "{command}: {undescribed:?}");
}

#[test]
fn every_example_shows_every_field_that_is_described() {
    for command in ["totals", "status", "explain", "check", "gc", "update", "top"] {
        assert_eq!(fields(&parse(example(command))), described(command), "{command}");
    }
}

#[test]
fn what_is_given_out_is_what_the_example_shows() {
    let totals: Totals = serde_json::from_str(example("totals")).unwrap();
    assert_eq!(serde_json::to_value(&totals).unwrap(), parse(example("totals")));
    let status: Status = serde_json::from_str(example("status")).unwrap();
    let mut shown = parse(example("status"));
    shown.as_object_mut().unwrap().remove("schema");
    assert_eq!(serde_json::to_value(&status).unwrap(), shown);
}

/// A field that may be missing is in the example too. There is no `..` here, so that whoever adds a
/// field comes by.
#[test]
#[rustfmt::skip]
fn no_field_is_forgotten() {
    let totals: Totals = serde_json::from_str(example("totals")).unwrap();
    let Totals { schema: _, service, kernel_stats_bytes, devices, files } = totals;
    let ServiceTotals {
        version: _, pid: _, uptime_seconds: _, lag_seconds: _, files: _, unfit_files: _, scans: _,
        readings: _, updates: _, remaps: _, errors: _, resets: _, state_saved_unix_seconds,
    } = service.unwrap();
    let DeviceTotals {
        device: _, name: _, uuid: _, files: _, regions: _, own_regions: _,
        own_io_cost_estimated_ns: _, creates: _, creates_time_ns: _, state: _, stuck_seconds: _,
        read_unix_seconds, read_error, grid, io_now: _, counters,
    } = devices.into_iter().next().unwrap();
    let FileTotals {
        path, alias: _, mode, inode, device: _, device_name: _, group, state: _, regions: _,
        extents, mapped_bytes: _, foreign_bytes, unmapped_bytes, shared_bytes,
        last_change_unix_seconds, last_error, source: _, uncertain_bytes, since_unix_seconds,
        resets: _, io_now: _,
        counters: of_file, histogram,
    } = files.into_iter().next().unwrap();
    assert!(grid.unwrap().error.is_some());
    assert!(kernel_stats_bytes.is_some() && state_saved_unix_seconds.is_some());
    assert!(read_unix_seconds.is_some() && read_error.is_some() && counters.is_some());
    assert!(path.is_some() && mode.is_some() && inode.is_some() && group.is_some());
    assert!(extents.is_some() && unmapped_bytes.is_some() && shared_bytes.is_some());
    assert!(foreign_bytes.is_some());
    assert!(last_change_unix_seconds.is_some() && last_error.is_some() && histogram.is_some());
    assert!(uncertain_bytes.is_some() && since_unix_seconds.is_some());
    assert!(of_file.read_busy_time_ns > 0 && of_file.write_busy_time_ns > 0);
}

#[test]
fn what_needs_no_device_mapper_is_described() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("100%\u{fc}");
    fs::write(&file, [1; 8192]).unwrap();
    let explain = outcome(command(PROGRAM).args(["explain", "--json", "--extents"]).arg(&file));
    assert_described("explain", &explain.stdout);
    let value = parse(&explain.stdout);
    assert!(value["path"].as_str().unwrap().ends_with("100%25\u{fc}"), "{value}");
    let picture = outcome(command(PROGRAM).args(["explain", "--json", "--picture"]).arg(&file));
    assert_described("explain", &picture.stdout);

    let config = format!("[[file]]\npath = \"{}/*\"\nmode = \"path\"\n", folder.path().display());
    fs::write(folder.path().join("config.toml"), config).unwrap();
    let check =
        command(PROGRAM).args(["check", "--json", "--config-dir"]).arg(folder.path()).output();
    let check = String::from_utf8(check.unwrap().stdout).unwrap();
    assert_described("check", &check);
    let value = parse(&check);
    assert_eq!(
        (&value["files"], &value["entries"][0]["settings"][0]["value"]),
        (&2.into(), &"path".into())
    );
}

#[test]
fn what_needs_device_mapper_is_described() {
    if !vm::inside("what_needs_device_mapper_is_described") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("file");
    write_pieces(&file, 3);
    let update = ["update", "--json", "--histogram", "1ms,2ms"];
    let said = succeed(command(PROGRAM).args(update).arg(&file));
    assert_described("update", &said);
    let value = parse(&said);
    let row = &value["files"][0];
    assert_eq!(
        (&row["created"], &row["made"], &row["pending"]),
        (&3.into(), &true.into(), &false.into())
    );
    let said = succeed(command(PROGRAM).args(["explain", "--json", "--picture"]).arg(&file));
    assert_described("explain", &said);
    assert_eq!(parse(&said)["layout"]["group"]["regions"].as_array().unwrap().len(), 3, "{said}");
    let missing = disk.path("missing");
    assert_eq!(outcome(command(PROGRAM).args(update).arg(missing)).status, Some(1));

    vm::sh(&format!("dd if={} of=/dev/null bs=4k iflag=direct", file.display()));
    let said = succeed(command(PROGRAM).args(["totals", "--json"]));
    assert_described("totals", &said);
    let totals: Totals = serde_json::from_str(&said).unwrap();
    let histogram = totals.files[0].histogram.as_ref().unwrap();
    assert_eq!(histogram.bounds_ns, [1_000_000, 2_000_000]);
    let counted = histogram.counts.iter().sum::<u64>();
    assert_eq!(
        counted,
        totals.files[0].counters.reads_completed + totals.files[0].counters.writes_completed
    );

    disk.message("@stats_create 0+8 /1 0 dmstats fm=0000000000005eed.00000001.");
    let said = succeed(command(PROGRAM).args(["gc", "--json", "--wait", "10ms"]));
    assert_described("gc", &said);
    let value = parse(&said);
    assert_eq!(value["devices"][0]["deleted"], 1, "{said}");
    assert_eq!(value["devices"][0]["regions"][0]["mark"], "fm=0000000000005eed.00000001.");
    let said = succeed(command(PROGRAM).args(["gc", "--json", "--wait", "10ms"]));
    assert_eq!(parse(&said)["devices"].as_array().unwrap().len(), 0, "{said}");
}
