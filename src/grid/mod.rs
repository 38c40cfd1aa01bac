//! Counts of every part of a device, and whose they are.

pub mod attribute;
pub mod meter;
pub mod owners;
pub mod plan;
pub mod shares;
pub mod split;
pub mod table;
