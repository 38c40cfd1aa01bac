//! The floor: system calls with nothing around them but a loop.
//!
//! Each stands in a function that is not inlined, as every program has it in its C library. Of
//! `FIEMAP` that is [`Pages::read`], which fills in the six fields of a request and makes the call:
//! so what a ratio does not show is no more than that.

use std::ffi::CStr;
use std::fs::File;
use std::hint::black_box;

use dmfilemapd::kernel::fiemap::Pages;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, fstat, open, statx};

#[inline(never)]
pub fn stat_file(file: &File) {
    black_box(fstat(file).expect("an open file has a stat"));
}

#[inline(never)]
pub fn stat_path(path: &CStr) {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS);
    black_box(found.expect("the file is there"));
}

/// The first page of extents.
#[inline(never)]
pub fn map(file: &File, pages: &mut Pages) {
    let page = pages.read(file, 0).expect("the filesystem knew FIEMAP a moment ago");
    black_box(page.len());
}

#[inline(never)]
pub fn open_and_map(path: &CStr, pages: &mut Pages) {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    map(&File::from(file.expect("the file is there")), pages);
}
