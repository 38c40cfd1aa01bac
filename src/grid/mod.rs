//! Counts of every part of a device, and whose they are.
//!
//! A region that is made after a block was allocated never counts the write that allocated it; and
//! filesystems allocate when they write. So whoever makes regions where a file is, counts next to
//! nothing of what a file that grows writes. But a region need not know the file when the I/O
//! comes: one of many [areas](meter) counts every part of the device from the start, and the maps
//! say afterwards whose part it was.
//!
//! ```text
//! plan        where the areas are, under a budget of kernel memory
//! table       the regions in the kernel: found again, made, read, moved
//! meter       what each area has counted since it was read last
//! owners      whose its sectors are, and were
//! attribute   what each tenant gets of that, and how far it may be off
//! shares      the sum by file, and what remains for others
//! ```
//!
//! What is given to files and others together is what was counted, to the byte. Not known is:
//!
//! * who, of several that have sectors of one area, did what is not growth: see
//!   [`attribute::Doubt`];
//! * what had sectors between two readings only: a file that comes and goes in between. Its writes
//!   go to who has the sectors then, or to the others;
//! * one I/O that meets several areas is one in each of them, in number and in time.

pub mod attribute;
pub mod meter;
pub mod owners;
pub mod plan;
pub mod shares;
pub mod split;
pub mod table;
