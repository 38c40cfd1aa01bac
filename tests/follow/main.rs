//! Groups that follow their files, in a real kernel: right to the sector, and in time.

#![allow(clippy::unwrap_used)] // all of this is a test

mod change;
mod counters;
mod many;
mod names;
mod random;
mod refusals;
mod rest;
mod trace;

#[path = "../support/dialects.rs"]
mod dialects;
#[path = "../support/guest.rs"]
mod guest;
#[path = "../support/vm.rs"]
mod vm;
