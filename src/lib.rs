//! Keeps groups of device-mapper statistics regions equal to the extents of files, by polling.

#![allow(clippy::must_use_candidate)]

pub mod cli;
pub mod compat;
pub mod dm;
pub mod engine;
pub mod entry;
pub mod extent;
pub mod fit;
pub mod group;
pub mod kernel;
pub mod launch;
pub mod message;
pub mod mode;
pub mod place;
pub mod plan;
pub mod run;
pub mod sample;
pub mod sight;
pub mod update;
