//! What the values cost: the normal form of a map and its fingerprint, the plan, the protocol.
//!
//! Criterion does the statistics, over ratios to baselines that run in turn with what is measured.

#[path = "support/mod.rs"]
mod support;

use std::alloc::System;
use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;

use criterion::Criterion;
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::message::{RegionId, parse_list};
use dmfilemapd::plan::{Delta, Have, plan};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use xxhash_rust::xxh3::xxh3_128;

use support::arguments::{self, Arguments};
use support::counts::Counts;
use support::paired::{self, Pair, Paired};
use support::rounds::{as_f64, thread_time};
use support::table::{Cell, Table};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Extents of a map.
const SIZES: [u64; 3] = [10, 1000, 100_000];

/// Extents beyond which a nested search takes seconds, and is not made in haste.
const NESTED_MAX: u64 = 1000;

fn main() -> ExitCode {
    arguments::end(bench())
}

fn bench() -> Result<ExitCode, Box<dyn Error>> {
    arguments::warn_if_slow();
    // Criterion has options of its own, and says so if it does not know one.
    let quick = !std::env::args().any(|word| word == "--bench")
        || std::env::args().any(|word| word == "--quick");
    let arguments = Arguments { quick, word: None };
    let mut criterion = paired::criterion(&arguments);
    let tables =
        [maps(&mut criterion), listings(&mut criterion), plans(&mut criterion, &arguments)];
    if tables.iter().all(Table::is_empty) {
        let names = "fingerprint/SIZE, normal form/SIZE, listing/SIZE, plan, CHANGE/SIZE";
        return Err(format!("nothing that was asked for is here; there is {names}").into());
    }
    for table in tables.iter().filter(|table| !table.is_empty()) {
        table.publish(&arguments)?;
    }
    criterion.final_summary();
    let mut counts = Counts::default();
    allocations(&mut counts).publish(&arguments)?;
    Ok(counts.exit_code())
}

/// Holds what is allocated to a few times whatever the size: rooms that grow, nothing for each row.
fn allocations(counts: &mut Counts) -> Table {
    let headings = ["size", "fingerprint", "normal form", "listing", "plan"];
    let mut table = Table::new("allocations", "Allocations, by extents or rows", &headings);
    for size in SIZES {
        let raw = fragments(size);
        let map: Extents = raw.iter().copied().collect();
        let text = listing(size);
        let (have, want) = Change::One.make(size);
        let doublings = u64::from(size.ilog2()) + 1;
        let mut count = |what: &str, limit: u64, run: &dyn Fn()| {
            let region = Region::new(&INSTRUMENTED_SYSTEM);
            run();
            let change = region.change();
            let count = (change.allocations + change.reallocations) as u64;
            counts.at_most(&format!("allocations, {what} of {size}"), count, limit);
            Cell::Count(count)
        };
        table.row([
            Cell::Count(size),
            count("fingerprint", 0, &|| {
                black_box(map.fingerprint());
            }),
            count("normal form", doublings, &|| {
                drop(black_box(raw.iter().copied().collect::<Extents>()));
            }),
            count("listing", doublings, &|| drop(black_box(parse_list(&text)))),
            count("plan", 1 + 2 * doublings, &|| drop(black_box(plan(&have, &want)))),
        ]);
    }
    table
}

/// Extents of eight sectors, eight apart, in the order of an old and much used file: shuffled in
/// runs of some dozens.
fn fragments(count: u64) -> Vec<Extent> {
    let place = |number: u64| {
        let (run, at) = (number / 32, number % 32);
        let runs = count.div_ceil(32);
        (run * 7919 % runs.max(1)) * 32 + at // 7919 is a prime, so no run comes twice
    };
    (0..count).filter_map(|number| Extent::new(16 * place(number), 8)).collect()
}

/// From what the filesystem says to a fingerprint.
fn maps(criterion: &mut Criterion<Paired>) -> Table {
    let title =
        "Maps: CPU time of normal form and fingerprint, against plain work on the same data";
    let headings = ["what", "extents", "baseline", "ns/extent", "ours/baseline", "extents/us"];
    let mut table = Table::new("maps", title, &headings);
    let mut row = |what: &str, extents: u64, baseline: &str, pair: Option<Pair>| {
        let Some(Pair { subject, ratio, .. }) = pair else { return };
        let rate = Cell::Number(as_f64(extents) * 1000.0 / subject);
        let per_extent = Cell::Number(subject / as_f64(extents));
        table.row([
            what.into(),
            extents.into(),
            baseline.into(),
            per_extent,
            Cell::Ratio(ratio),
            rate,
        ]);
    };
    for size in [1, 10, 1000, 100_000] {
        let raw = fragments(size);
        let map: Extents = raw.iter().copied().collect();
        let ends = map.as_slice().iter().flat_map(|extent| [extent.start(), extent.end()]);
        let bytes: Vec<u8> = ends.flat_map(u64::to_le_bytes).collect();
        let pair = paired::measure(
            criterion,
            &format!("fingerprint/{size}"),
            || black_box(&map).fingerprint(),
            || xxh3_128(black_box(&bytes)),
        );
        row("fingerprint", size, "XXH3 of the bytes", pair);
        let pair = paired::measure(
            criterion,
            &format!("normal form/{size}"),
            || black_box(&raw).iter().copied().collect::<Extents>(),
            || sorted(black_box(&raw)),
        );
        row("normal form", size, "copy and sort", pair);
    }
    table
}

fn sorted(extents: &[Extent]) -> Vec<Extent> {
    let mut extents = extents.to_vec();
    extents.sort_unstable();
    extents
}

/// Reading what the kernel lists.
fn listings(criterion: &mut Criterion<Paired>) -> Table {
    let title = "Listings: CPU time of parsing, against a scan for line ends";
    let headings = ["rows", "bytes", "MB/s", "scan, MB/s", "ours/scan", "ns/row"];
    let mut table = Table::new("listings", title, &headings);
    for rows in SIZES {
        let text = listing(rows);
        let pair = paired::measure(
            criterion,
            &format!("listing/{rows}"),
            || parse_list(black_box(&text)).expect("these are rows"),
            || line_ends(black_box(&text)),
        );
        let Some(Pair { subject, baseline, ratio }) = pair else { continue };
        let bytes = text.len() as u64;
        let rate = |took| Cell::Number(as_f64(bytes) * 1000.0 / took);
        let per_row = Cell::Number(subject / as_f64(rows));
        table.row([
            rows.into(),
            bytes.into(),
            rate(subject),
            rate(baseline),
            Cell::Ratio(ratio),
            per_row,
        ]);
    }
    table
}

/// As of a device whose regions are all ours.
fn listing(rows: u64) -> Vec<u8> {
    let row = |id: u64| {
        let start = 1_000_000_000 + 16 * id;
        format!("{id}: {start}+8 8 dmstats fm=8921583207f0ccd4.0ea41421.\n")
    };
    (0..rows).map(row).collect::<String>().into_bytes()
}

fn line_ends(text: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', text).count()
}

/// What happened to the file since its regions were made.
#[derive(Clone, Copy)]
enum Change {
    None,
    One,
    All,
}

impl Change {
    fn as_str(self) -> &'static str {
        match self {
            Change::None => "nothing",
            Change::One => "one extent grew",
            Change::All => "everything moved",
        }
    }

    /// The regions and the new map.
    fn make(self, size: u64) -> (Vec<Have>, Extents) {
        let regions = fragments(size).into_iter().zip(0..);
        let have: Vec<Have> =
            regions.map(|(extent, id)| Have { id: RegionId(id), extent, member: true }).collect();
        let moved = |(at, region): (usize, &Have)| {
            let (start, len) = (region.extent.start(), region.extent.len());
            match self {
                Change::One if at == have.len() / 2 => Extent::new(start, len + 4),
                Change::All => Extent::new(start + 5, len),
                _ => Some(region.extent),
            }
        };
        let want = have.iter().enumerate().filter_map(moved).collect();
        (have, want)
    }
}

/// From regions and a map to a delta.
fn plans(criterion: &mut Criterion<Paired>, arguments: &Arguments) -> Table {
    let title = "Plans: CPU time, against a sorted copy of the same data and a nested search";
    let headings = [
        "change",
        "extents",
        "us",
        "ns/extent",
        "linear copy, us",
        "sorted copy, us",
        "ours/sorted copy",
        "nested search, us",
    ];
    let mut table = Table::new("plans", title, &headings);
    for change in [Change::None, Change::One, Change::All] {
        for size in SIZES {
            let (have, want) = change.make(size);
            let name = format!("plan, {}/{size}", change.as_str());
            let pair = paired::measure(
                criterion,
                &name,
                || plan(black_box(&have), black_box(&want)),
                || sorted_copy(black_box(&have), black_box(&want)),
            );
            let Some(Pair { subject, baseline, ratio }) = pair else { continue };
            let nested = match arguments.quick && size > NESTED_MAX {
                true => Cell::Nothing,
                false => Cell::Number(once(|| nested(&have, &want)) / 1000.0),
            };
            table.row([
                change.as_str().into(),
                size.into(),
                Cell::Number(subject / 1000.0),
                Cell::Number(subject / as_f64(size)),
                Cell::Number(once(|| (have.clone(), want.clone())) / 1000.0),
                Cell::Number(baseline / 1000.0),
                Cell::Ratio(ratio),
                nested,
            ]);
        }
    }
    table.note(
        "The nested search looks for each extent among all regions, and for each region among all \
         extents, as libdm does; it finds equal ones only. Where it takes seconds it was run once.",
    );
    table
}

/// The least that an order of regions takes.
fn sorted_copy(have: &[Have], want: &Extents) -> (Vec<Have>, Extents) {
    let mut have = have.to_vec();
    have.sort_unstable_by_key(|region| (region.extent, region.id));
    (have, want.clone())
}

/// What `what` takes: the least of some runs, or of one that is long.
fn once<T>(what: impl Fn() -> T) -> f64 {
    let mut least = f64::MAX;
    for _ in 0..20 {
        let began = thread_time();
        black_box(what());
        least = least.min(thread_time() - began);
        if least > 1e8 {
            break;
        }
    }
    least
}

fn nested(have: &[Have], want: &Extents) -> Delta {
    let want = want.as_slice();
    let is_wanted = |region: &&Have| want.contains(&region.extent);
    let is_there = |extent: &&Extent| have.iter().any(|region| region.extent == **extent);
    Delta {
        keep: have.iter().filter(is_wanted).map(|region| (region.id, region.extent)).collect(),
        create: want.iter().filter(|extent| !is_there(extent)).copied().collect(),
        delete: have.iter().filter(|it| !is_wanted(it)).map(|region| region.id).collect(),
    }
}
