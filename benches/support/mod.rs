//! What the benches share.

#![allow(dead_code)] // each of them uses its share

pub mod arguments;
pub mod counts;
pub mod folder;
pub mod paired;
pub mod rounds;
pub mod table;
