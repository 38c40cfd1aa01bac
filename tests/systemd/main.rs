//! The service and systemd: what it says, with how little it works, and how its unit fares in the
//! hands of a real systemd.

#![allow(clippy::unwrap_used)] // all of this is a test

mod capabilities;
mod notify;
mod unit;

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/dialects.rs"]
mod dialects;
#[path = "../support/guest.rs"]
mod guest;
#[path = "../support/service.rs"]
mod service;
#[path = "../support/tools.rs"]
mod tools;
#[path = "../support/vm.rs"]
mod vm;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/systemd/dmfilemapd.service");

/// What the unit says for a key that it has once.
fn of_unit(key: &str) -> String {
    let unit = std::fs::read_to_string(UNIT).unwrap();
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("the unit has no {key}"));
    assert_eq!(values.next(), None, "{key}");
    value.to_owned()
}
