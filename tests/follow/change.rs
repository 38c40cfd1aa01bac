//! What can be done to a file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FallocateFlags as Flags, fallocate};
use nix::libc;

use crate::guest::output_of;

pub const KIB: u64 = 1024;
pub const MIB: u64 = 1024 * KIB;

/// How data gets to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the page cache. It has its place on the device once it is written back.
    Buffered,
    /// Past the page cache (`O_DIRECT`).
    Direct,
    /// Into the page cache and from there to the device, one write at a time (`O_DSYNC`).
    Dsync,
}

pub fn open(file: &Path, way: Way) -> File {
    let flags = match way {
        Way::Buffered => 0,
        Way::Direct => libc::O_DIRECT,
        Way::Dsync => libc::O_DSYNC,
    };
    let mut options = OpenOptions::new();
    let opened = options.create(true).truncate(false).write(true).custom_flags(flags).open(file);
    opened.unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Writes the same bytes at the same offset of every file.
pub fn write(file: &Path, way: Way, offset: u64, len: u64) {
    write_to(&open(file, way), offset, len);
}

pub fn write_to(file: &File, offset: u64, len: u64) {
    const BLOCK: usize = 4096; // what O_DIRECT wants everything aligned to
    let len = usize::try_from(len).unwrap();
    let mut buffer = vec![0; len + BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    let data = &mut buffer[start..start + len];
    for (block, bytes) in data.chunks_mut(BLOCK).enumerate() {
        bytes.fill(u8::try_from(block % 251).unwrap());
    }
    file.write_all_at(data, offset).unwrap();
}

/// Writes behind the end of the file.
pub fn append(file: &Path, way: Way, len: u64) {
    write(file, way, size(file), len);
}

pub fn sync(file: &Path) {
    File::open(file).unwrap().sync_all().unwrap();
}

pub fn size(file: &Path) -> u64 {
    file.metadata().unwrap().size()
}

/// What `st_blocks` says.
pub fn blocks(file: &Path) -> u64 {
    file.metadata().unwrap().blocks()
}

pub fn truncate(file: &Path, len: u64) {
    open(file, Way::Buffered).set_len(len).unwrap();
}

fn allocate(file: &Path, flags: Flags, offset: u64, len: u64) {
    let (offset, len) = (i64::try_from(offset).unwrap(), i64::try_from(len).unwrap());
    fallocate(open(file, Way::Buffered), flags, offset, len)
        .unwrap_or_else(|errno| panic!("{}: {flags:?} {offset} {len}: {errno}", file.display()));
}

pub fn reserve(file: &Path, offset: u64, len: u64) {
    allocate(file, Flags::empty(), offset, len);
}

pub fn reserve_keeping_size(file: &Path, offset: u64, len: u64) {
    allocate(file, Flags::FALLOC_FL_KEEP_SIZE, offset, len);
}

pub fn punch(file: &Path, offset: u64, len: u64) {
    let flags = Flags::FALLOC_FL_PUNCH_HOLE | Flags::FALLOC_FL_KEEP_SIZE;
    allocate(file, flags, offset, len);
}

pub fn zero(file: &Path, offset: u64, len: u64) {
    allocate(file, Flags::FALLOC_FL_ZERO_RANGE, offset, len);
}

pub fn collapse(file: &Path, offset: u64, len: u64) {
    allocate(file, Flags::FALLOC_FL_COLLAPSE_RANGE, offset, len);
}

pub fn insert(file: &Path, offset: u64, len: u64) {
    allocate(file, Flags::FALLOC_FL_INSERT_RANGE, offset, len);
}

/// Stores to the file through a shared mapping.
pub fn store(file: &Path, offset: u64, len: u64) {
    xfs_io(file, &[&format!("mmap {offset} {len}"), &format!("mwrite {offset} {len}")]);
}

/// Runs commands of `xfs_io`, which knows every filesystem.
pub fn xfs_io(file: &Path, commands: &[&str]) {
    let options = commands.iter().flat_map(|command| ["-c", command]);
    let said = output_of(Command::new("xfs_io").args(options).arg(file));
    assert!(!said.contains("rror"), "{commands:?}: {said}");
}

/// Makes `copy` a file with the same extents.
pub fn clone(file: &Path, copy: &Path) {
    output_of(Command::new("cp").arg("--reflink=always").args([file, copy]));
}

// Files to begin with.

/// A MiB, in one piece where there is room for it.
pub fn solid(file: &Path) {
    write(file, Way::Direct, 0, MIB);
}

/// A MiB with free space behind it.
pub fn roomy(file: &Path) {
    reserve(file, 0, 8 * MIB);
    write(file, Way::Direct, 0, MIB);
    truncate(file, MIB);
}

/// A MiB that lacks its second quarter.
pub fn holed(file: &Path) {
    solid(file);
    punch(file, 256 * KIB, 256 * KIB);
}

/// A MiB that has been allocated and not written.
pub fn unwritten(file: &Path) {
    reserve(file, 0, MIB);
}

/// Most of a MiB, in four pieces: they fit the inode, so that no block more is needed to list them.
pub fn scattered(file: &Path) {
    solid(file);
    for piece in 1..4 {
        collapse(file, piece * 192 * KIB, 64 * KIB);
    }
}
