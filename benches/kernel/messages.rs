//! What a change costs in messages.
use crate::Bench;
pub fn run(_bench: &mut Bench) {}
