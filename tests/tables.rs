//! The tables of the benches: what people read, and what programs do.

#![allow(clippy::unwrap_used)] // all of this is a test

use std::fs;

#[path = "../benches/support/mod.rs"]
mod support;

use serde_json::{Value, json};
use support::table::{Cell, Table};

fn table() -> Table {
    let mut table = Table::new("x", "Files and what they cost", &["kind", "files", "us", "ours"]);
    table.row(["idle".into(), 100_000_usize.into(), Cell::Number(12.345), Cell::Ratio(1.204)]);
    table.row(["changed".into(), 7_usize.into(), Cell::Nothing, Cell::Ratio(0.5)]);
    table.note("No file was harmed.");
    table
}

#[test]
fn people_read_aligned_columns() {
    let expected = "\nFiles and what they cost\n\n\
                    | kind    |   files |   us |   ours |\n\
                    |---------|--------:|-----:|-------:|\n\
                    | idle    | 100,000 | 12.3 | 1.20 x |\n\
                    | changed |       7 |    - | 0.50 x |\n\nNo file was harmed.\n";
    assert_eq!(table().to_string(), expected);
}

#[test]
fn programs_read_every_figure_as_it_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    table().write(folder.path(), false).unwrap();
    let text = fs::read_to_string(folder.path().join("x.json")).unwrap();
    let expected = json!({
        "name": "x",
        "title": "Files and what they cost",
        "quick": false,
        "optimized": !cfg!(debug_assertions),
        "rows": [
            {"kind": "idle", "files": 100_000, "us": 12.345, "ours": 1.204},
            {"kind": "changed", "files": 7, "us": null, "ours": 0.5},
        ],
        "notes": ["No file was harmed."],
    });
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);

    table().write(folder.path(), true).unwrap();
    let quick = fs::read_to_string(folder.path().join("x.quick.json")).unwrap();
    let quick: Value = serde_json::from_str(&quick).unwrap();
    assert_eq!(quick["quick"], true, "beside the other");
}
