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
//! saved       where the areas stood, for the next service
//! shares      the sum by file, and what remains for others
//! ```
//!
//! What is given to files and others together is what was counted, to the byte. Not known is:
//!
//! * who, of several that have sectors of one area, did what is not growth: see
//!   [`attribute::Doubt`];
//! * what had sectors between two looks only: a file that comes and goes in between. Its writes go
//!   to who has the sectors then, or to the others;
//! * one I/O that meets several areas is one in each of them, in number and in time.

//! # How good it is
//!
//! From `tests/grid`, in Linux 6.1: two or three files of 8 MiB each (sparse ones are 64 MiB long)
//! on a device of 512 MiB, read every 2 MiB written, beside a file that nobody follows. *Right* is
//! what was given to the file that wrote it, *too much* what was given to one that did not, both of
//! all that was written; *doubt* is what the attribution itself says may be wrong. Percent:
//!
//! | areas of | 64 KiB | 512 KiB | 4 MiB |
//! |---|---|---|---|
//! | kernel memory, one CPU | 1.75 MiB | 224 KiB | 28 KiB |
//! | append, ext4 | 100, 0.1, 0.1 | 100, 0.3, 0.3 | 100, 4.2, 4.6 |
//! | append, xfs | 100, 0.3, 0.4 | 100, 0.5, 2.2 | 100, 4.7, 10 |
//! | ring logs, ext4 | 100, 0, 0 | 100, 0, 0 | 100, 11, 11 |
//! | ring logs, xfs | 99.9, 0.3, 0.5 | 99.8, 0.9, 4.4 | 94, 12, 35 |
//! | sparse, ext4 | 100, 0, 6.9 | 100, 0, 7.0 | 100, 0, 7.0 |
//! | sparse, xfs | 100, 0.2, 6.9 | 100, 1.3, 9.7 | 100, 10, 33 |
//! | database, ext4 | 100, 0, 0 | 100, 0, 0 | 100, 16, 70 |
//! | database, xfs | 100, 0.3, 1.9 | 100, 1.1, 19 | 100, 8.5, 104 |
//! | crowd, ext4 | 100, 0.8, 0.8 | 100, 3.5, 3.5 | 100, 31, 31 |
//! | crowd, xfs | 100, 31, 32 | 100, 37, 50 | 100, 45, 115 |
//!
//! The *crowd* is the worst case: files that nobody follows grow, are overwritten, and come and go
//! in the very same places, write by write. In areas of 16 KiB, the size of its writes, it is 100,
//! 0 and 0 on both. Reading 8,192 areas at rest takes 4 ms there: half a microsecond for each.

pub mod attribute;
pub mod meter;
pub mod owners;
pub mod plan;
pub mod saved;
pub mod shares;
pub mod split;
pub mod table;
