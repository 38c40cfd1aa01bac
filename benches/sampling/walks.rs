//! What reading a map takes by the number of its extents, and by the room for the kernel's answers.

use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::path::Path;

use dmfilemapd::kernel::fiemap::{self, PAGE, Pages};
use dmfilemapd::sample;
use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::floor;
use crate::support::rounds::{Rounds, Side, as_f64, median, thread_time};
use crate::support::table::{Cell, Table};

const BLOCK: u64 = 4096;

/// Walks for a row: enough for a median, and not too many of the long ones.
const WALKS: usize = 15;

/// A file of about so many extents, no two of which touch: of twice as many blocks, every second
/// one is punched out. `None` if there is no room for it.
fn fragmented(folder: &Path, extents: usize) -> io::Result<Option<File>> {
    let (extents, disk) = (extents as u64, statvfs(folder)?);
    if disk.f_bavail * disk.f_frsize / 2 < 2 * extents * BLOCK {
        return Ok(None);
    }
    let path = folder.join(format!("fragmented-{extents}"));
    let file = File::create_new(&path)?;
    fallocate(&file, FallocateFlags::empty(), 0, 2 * extents * BLOCK)?;
    for extent in 0..extents {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, (2 * extent + 1) * BLOCK, BLOCK)?;
    }
    fs::remove_file(path)?; // it stays as long as it is open
    Ok(Some(file))
}

/// Walks along files of ever more extents.
pub fn by_extents(folder: &Path, sizes: &[usize]) -> io::Result<Table> {
    let mut table = Table::new(
        "walks",
        "Reading a map: CPU time, against fstat and the FIEMAP calls alone",
        &["extents", "calls", "floor, ns/extent", "ours, ns/extent", "ours/floor"],
    );
    for &size in sizes {
        let Some(file) = fragmented(folder, size)? else {
            table.note(format!("No room for a file of {size} extents."));
            continue;
        };
        let extents = sample::read_map(&file, &mut Pages::default())?.extents.len();
        let (mut bare, mut ours) = (Pages::default(), Pages::default());
        let repeats = (20_000 / size).max(1);
        let took = Rounds::take(
            WALKS,
            vec![
                Side::new(|| {
                    (0..repeats).for_each(|_| {
                        floor::stat_file(&file);
                        assert!(walk(&file, &mut bare) > 0);
                    });
                }),
                Side::new(|| {
                    for _ in 0..repeats {
                        black_box(sample::read_map(&file, &mut ours).expect("as before"));
                    }
                }),
            ],
        );
        let per_extent =
            |side| Cell::Number(took.nanoseconds(side) / as_f64((repeats * extents) as u64));
        let calls = walk(&file, &mut bare);
        let ratio = Cell::Ratio(took.ratio(1, 0));
        table.row([extents.into(), calls.into(), per_extent(0), per_extent(1), ratio]);
    }
    Ok(table)
}

/// Walks along one file with ever more room.
pub fn by_room(folder: &Path, extents: usize) -> io::Result<Table> {
    let title = format!(
        "Reading a map of {extents} extents by the room for the kernel's answers; we take {PAGE}"
    );
    let headings =
        ["room, extents", "calls", "ns/extent", "of ours", "longest call, us", "buffer, bytes"];
    let mut table = Table::new("rooms", &title, &headings);
    let Some(file) = fragmented(folder, extents)? else {
        table.note(format!("No room for a file of {extents} extents."));
        return Ok(table);
    };
    let mut rooms = [
        timed::<1>(&file),
        timed::<36>(&file),
        timed::<128>(&file),
        timed::<PAGE>(&file),
        timed::<1024>(&file),
        timed::<4096>(&file),
        timed::<32768>(&file),
    ];
    for _ in 0..WALKS {
        for room in &mut rooms {
            room.walks.push((room.walk)());
        }
    }
    let took =
        |room: &Room<'_>| median(room.walks.iter().map(|calls| calls.iter().sum()).collect());
    let ours = rooms.iter().find(|room| room.extents == PAGE).map_or(1.0, took);
    for room in &rooms {
        let longest = room.walks.iter().map(|calls| calls.iter().copied().fold(0.0, f64::max));
        table.row([
            room.extents.into(),
            room.walks[0].len().into(),
            Cell::Number(took(room) / as_f64(extents as u64)),
            Cell::Ratio(took(room) / ours),
            Cell::Number(median(longest.collect()) / 1000.0),
            (32 + 56 * room.extents).into(),
        ]);
    }
    table.note("36 is libdm's. The kernel holds the inode's lock for the whole of a call.");
    Ok(table)
}

/// Room for so many extents, a walk with it, and what each call of each walk took.
struct Room<'a> {
    extents: usize,
    walk: Box<dyn FnMut() -> Vec<f64> + 'a>,
    walks: Vec<Vec<f64>>,
}

fn timed<const ROOM: usize>(file: &File) -> Room<'_> {
    let mut pages = Pages::<ROOM>::with_room();
    let walk = move || {
        let mut took = Vec::new();
        let mut start = Some(0);
        while let Some(from) = start {
            let began = thread_time();
            start = next_page(file, from, &mut pages);
            took.push(thread_time() - began);
        }
        took
    };
    Room { extents: ROOM, walk: Box::new(walk), walks: Vec::new() }
}

/// Reads all extents, and gives how many calls that takes.
fn walk(file: &File, pages: &mut Pages) -> usize {
    let (mut start, mut calls) = (Some(0), 0);
    while let Some(from) = start {
        start = next_page(file, from, pages);
        calls += 1;
    }
    calls
}

/// Reads the extents from `start` on; where the next ones begin, if there are more.
fn next_page<const ROOM: usize>(file: &File, start: u64, pages: &mut Pages<ROOM>) -> Option<u64> {
    let page = pages.read(file, start).expect("the filesystem knew FIEMAP a moment ago");
    let last = black_box(page).last().filter(|last| last.flags & fiemap::LAST == 0)?;
    Some(last.logical + last.length)
}
