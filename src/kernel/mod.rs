//! The kernel's doors, and the only `unsafe` of the program.

#![allow(unsafe_code)]

mod apart;
pub mod control;
pub mod devices;
pub mod fiemap;
pub mod fsmap;
pub mod inode;
pub mod memory;
pub mod process;
pub mod scm;

pub use control::Control;
pub use memory::Memory;
