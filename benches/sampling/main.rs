//! What looking at files costs, against system calls with nothing around them.

mod calls;
mod child;
mod floor;
mod host;
mod looks;
mod walks;

#[path = "../support/mod.rs"]
mod support;

use std::alloc::System;
use std::error::Error;
use std::fs::File;
use std::process::ExitCode;

use dmfilemapd::kernel::fiemap::Pages;
use dmfilemapd::kernel::process::raise_descriptor_limit;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

use looks::Results;
use support::arguments::{self, Arguments};
use support::folder::{Files, Folder};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> ExitCode {
    let done = child::done().map(|outcome| outcome.map(|()| ExitCode::SUCCESS));
    arguments::end(done.unwrap_or_else(bench))
}

fn bench() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::read(&["sampling", "calls", "walks"])?;
    let folder = Folder::new()?;
    let limit = raise_descriptor_limit();
    let mut results = Results::new();
    let few = folder.files(1000)?;
    let maps = has_maps(&few);
    if !maps {
        let why = "maps: there is no FIEMAP here; name a folder on ext4, xfs or btrfs with \
                   BENCH_FOLDER";
        arguments::skip(why)?;
        results.table.note(format!("Not read: {why}."));
    }

    let sizes: &[usize] = if arguments.quick { &[1000] } else { &[1000, 10_000, 100_000] };
    if arguments.wants("sampling") {
        for &size in sizes {
            let files = folder.files(size)?;
            if files.paths.len() < size {
                results.table.note(format!("There is no room for {size} files on the disk."));
            }
            looks::measure(&files, limit, maps, &mut results)?;
        }
        results.table.publish(&arguments)?;
    }
    if arguments.wants("calls") && maps {
        let mut table = calls::count(&folder, &few, &mut results.counts)?;
        let (size, sweeps) = if arguments.quick { (1000, 10) } else { (10_000, 100) };
        let empty = folder.empty_files(size)?;
        calls::whole_program(&folder, &empty, sweeps, &mut results.counts, &mut table)?
            .publish(&arguments)?;
        table.publish(&arguments)?;
    }
    if arguments.wants("walks") && maps {
        let sizes: &[usize] = &[1, 10, 100, 1000, 10_000, 100_000];
        let (sizes, size) = if arguments.quick { (&sizes[..4], 10_000) } else { (sizes, 100_000) };
        walks::by_extents(folder.path(), sizes)?.publish(&arguments)?;
        walks::by_room(folder.path(), size)?.publish(&arguments)?;
    }
    Ok(results.counts.exit_code())
}

fn has_maps(files: &Files) -> bool {
    let file = files.paths.first().and_then(|path| File::open(path).ok());
    file.is_some_and(|file| Pages::default().read(&file, 0).is_ok())
}
