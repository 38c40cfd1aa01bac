//! The kernel's doors, and the only `unsafe` of the program.

#![allow(unsafe_code)]
