//! What one look takes, against the system calls that it cannot do without.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::iter::zip;
use std::time::SystemTime;

use dmfilemapd::kernel::fiemap::Pages;
use dmfilemapd::mode::Mode;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region};

use crate::floor;
use crate::host::{Host, Looks};
use crate::support::counts::Counts;
use crate::support::folder::Files;
use crate::support::rounds::{Rounds, Side, as_f64};
use crate::support::table::{Cell, Table};

/// Descriptors that are not for files.
const DESCRIPTORS_KEPT: usize = 100;

/// Sweeps over which allocations are counted.
const SWEEPS: usize = 8;

/// Where results go.
#[derive(Debug)]
pub struct Results {
    pub table: Table,
    pub counts: Counts,
}

impl Results {
    pub fn new() -> Results {
        let title = "Looking at files: CPU time, system and user, against system calls in a loop";
        let headings = [
            "look",
            "by",
            "files",
            "floor",
            "floor, ns/file",
            "ours, ns/file",
            "ours/floor",
            "allocations/sweep",
        ];
        Results { table: Table::new("sampling", title, &headings), counts: Counts::default() }
    }

    /// Takes turns between the floor and a sweep, and counts what the sweep allocates: nothing,
    /// even where it reads the maps of files that have one extent, as these do.
    fn compare(&mut self, look: &Look<'_>, floor: Side<'_>, host: &mut Host) {
        let files = look.files.paths.len();
        let rounds = (1_000_000 / files).clamp(15, 101);
        let sweep = Side::new(|| host.sweep()).after(|| (look.before)());
        let took = Rounds::take(rounds, vec![floor, sweep]);

        let mut allocations = 0;
        for _ in 0..SWEEPS {
            (look.before)();
            let region = Region::new(&INSTRUMENTED_SYSTEM);
            host.sweep();
            let allocated = region.change();
            allocations += allocated.allocations + allocated.reallocations;
        }
        allocations = allocations.div_ceil(SWEEPS);
        let what = format!("allocations of a sweep, {} by {}, {files} files", look.kind, look.by);
        self.counts.is(&what, allocations as u64, 0);

        let per_file = |side| Cell::Number(took.nanoseconds(side) / as_f64(files as u64));
        self.table.row([
            look.kind.into(),
            look.by.into(),
            files.into(),
            look.floor.into(),
            per_file(0),
            per_file(1),
            Cell::Ratio(took.ratio(1, 0)),
            allocations.into(),
        ]);
    }
}

/// A kind of look, and what is done before each sweep of it.
struct Look<'a> {
    kind: &'static str,
    by: &'static str,
    floor: &'static str,
    files: &'a Files,
    before: &'a dyn Fn(),
}

/// Looks at the files by descriptor, as far as there are descriptors, and by path. A file that was
/// first seen to change was looked at without its map being due.
pub fn measure(files: &Files, limit: usize, maps: bool, results: &mut Results) -> io::Result<()> {
    let most = (limit - DESCRIPTORS_KEPT) / 2; // each is open for the floor and for us
    let open = files.first(most);
    if open.paths.len() < files.paths.len() {
        results.table.note(format!(
            "Of {} files {} are looked at by descriptor: this process may have {limit} \
             descriptors, and two are taken for each.",
            files.paths.len(),
            open.paths.len()
        ));
    }
    idle_by_descriptor(&open, results)?;
    idle_by_path(files, results)?;
    if maps {
        changing_by_descriptor(&open, results)?;
        changing_by_path(&open, results)?;
        changed_by_descriptor(&open, results)?;
        changed_by_path(&open, results)?;
    }
    Ok(())
}

fn idle_by_descriptor(files: &Files, results: &mut Results) -> io::Result<()> {
    let open = files.open()?;
    let mut host = Host::new(&files.paths, Mode::Inode, true, Looks::Stamps)?;
    let floor = Side::new(|| open.iter().for_each(floor::stat_file));
    let look = Look { kind: "idle", by: "descriptor", floor: "fstat", files, before: &|| {} };
    results.compare(&look, floor, &mut host);
    Ok(())
}

fn idle_by_path(files: &Files, results: &mut Results) -> io::Result<()> {
    let paths = files.c_paths();
    let mut host = Host::new(&files.paths, Mode::Path, false, Looks::Stamps)?;
    let floor = Side::new(|| paths.iter().for_each(|path| floor::stat_path(path)));
    let look = Look { kind: "idle", by: "path", floor: "statx", files, before: &|| {} };
    results.compare(&look, floor, &mut host);
    Ok(())
}

/// Files that have changed within the time that written data may wait in memory.
fn changing_by_descriptor(files: &Files, results: &mut Results) -> io::Result<()> {
    let open = files.open()?;
    let mut pages = Pages::default();
    let mut host = Host::new(&files.paths, Mode::Inode, true, Looks::Maps)?;
    let floor = Side::new(|| stat_and_map(&open, &mut pages));
    let floor_calls = "fstat, FIEMAP";
    let look =
        Look { kind: "changing", by: "descriptor", floor: floor_calls, files, before: &|| {} };
    results.compare(&look, floor, &mut host);
    Ok(())
}

fn changing_by_path(files: &Files, results: &mut Results) -> io::Result<()> {
    let (open, paths) = (files.open()?, files.c_paths());
    let mut pages = Pages::default();
    let mut host = Host::new(&files.paths, Mode::Path, true, Looks::Maps)?;
    let floor = Side::new(|| {
        for (path, file) in zip(&paths, &open) {
            floor::stat_path(path);
            floor::map(file, &mut pages);
        }
    });
    let floor_calls = "statx, FIEMAP";
    let look = Look { kind: "changing", by: "path", floor: floor_calls, files, before: &|| {} };
    results.compare(&look, floor, &mut host);
    Ok(())
}

/// Files that were idle and have changed since: the first look tells so, the second reads the map.
fn changed_by_descriptor(files: &Files, results: &mut Results) -> io::Result<()> {
    let open = files.open()?;
    let mut pages = Pages::default();
    let mut host = Host::new(&files.paths, Mode::Inode, true, Looks::Stamps)?;
    let floor = Side::new(|| stat_and_map(&open, &mut pages));
    let look = Look {
        kind: "first change",
        by: "descriptor",
        floor: "fstat, FIEMAP",
        files,
        before: &|| touch(&open),
    };
    results.compare(&look, floor, &mut host);
    Ok(())
}

fn changed_by_path(files: &Files, results: &mut Results) -> io::Result<()> {
    let (open, paths): (Vec<File>, Vec<CString>) = (files.open()?, files.c_paths());
    let mut pages = Pages::default();
    let mut host = Host::new(&files.paths, Mode::Path, false, Looks::Stamps)?;
    let floor = Side::new(|| {
        for path in &paths {
            floor::stat_path(path);
            floor::open_and_map(path, &mut pages);
        }
    });
    let look = Look {
        kind: "first change",
        by: "path",
        floor: "statx, open, FIEMAP, close",
        files,
        before: &|| touch(&open),
    };
    results.compare(&look, floor, &mut host);
    Ok(())
}

fn stat_and_map(open: &[File], pages: &mut Pages) {
    for file in open {
        floor::stat_file(file);
        floor::map(file, pages);
    }
}

pub fn touch(files: &[File]) {
    let now = SystemTime::now();
    for file in files {
        file.set_modified(now).expect("the files are ours");
    }
}
