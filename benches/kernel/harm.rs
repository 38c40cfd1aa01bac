//! x
use crate::Bench;
pub fn run(_bench: &mut Bench) {}
pub fn regions(_bench: &mut Bench) {}
