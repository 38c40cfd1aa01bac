//! Keeps groups of device-mapper statistics regions equal to the extents of files, by polling.

#![allow(clippy::must_use_candidate)]

pub mod dm;
pub mod extent;
pub mod fit;
pub mod group;
pub mod kernel;
pub mod message;
pub mod plan;
pub mod update;
