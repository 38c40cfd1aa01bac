//! What a change of a file costs: messages to the device-mapper, which are promised, and CPU time
//! against the bytes that the kernel lists.

#[path = "support/mod.rs"]
mod support;

use std::error::Error;
use std::hint::black_box;
use std::io;
use std::process::ExitCode;

use dmfilemapd::dm::{Device, Dm, Reply};
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::group::Mark;
use dmfilemapd::kernel::Memory;
use dmfilemapd::message::Message;
use dmfilemapd::update::{Group, Template, establish, look, update};

use support::arguments::{self, Arguments};
use support::counts::Counts;
use support::rounds::{as_f64, median, thread_time};
use support::table::{Cell, Table};

const DEVICE: Device = Device { major: 253, minor: 0 };
const MARK: Mark = Mark { key: 1, nonce: 2 };
const CLAIM: u32 = 3;

/// Times an update is measured.
const ROUNDS: usize = 15;

fn main() -> ExitCode {
    arguments::end(bench())
}

fn bench() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::read(&["messages", "updates"])?;
    let mut counts = Counts::default();
    if arguments.wants("messages") {
        messages(&mut counts)?.publish(&arguments)?;
    }
    if arguments.wants("updates") {
        let sizes: &[u64] =
            if arguments.quick { &[10, 1000] } else { &[10, 100, 1000, 10_000, 100_000] };
        updates(sizes)?.publish(&arguments)?;
    }
    Ok(counts.exit_code())
}

/// The table in memory, and what goes through it.
#[derive(Clone)]
struct Metered {
    memory: Memory,
    /// Listings, creates, changes of `aux_data`, deletes.
    kinds: [u64; 4],
    /// Bytes of the listings.
    listed: u64,
    /// CPU time that the table took, in nanoseconds: it is not ours.
    took: f64,
}

const KINDS: [&str; 4] = ["@stats_list", "@stats_create", "@stats_set_aux", "@stats_delete"];

impl Metered {
    fn new() -> Metered {
        let mut memory = Memory::new();
        memory.add_device(DEVICE, 1 << 40, "disk", "");
        memory.set_bytes_max(u64::MAX);
        Metered { memory, kinds: [0; 4], listed: 0, took: 0.0 }
    }

    fn forget(&mut self) {
        (self.kinds, self.listed, self.took) = ([0; 4], 0, 0.0);
    }
}

impl Dm for Metered {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        let began = thread_time();
        let reply = self.memory.message(device, text)?;
        self.took += thread_time() - began;
        let kind = KINDS.iter().position(|kind| text.starts_with(kind.as_bytes()));
        self.kinds[kind.expect("an update sends nothing else")] += 1;
        self.listed += if kind == Some(0) { reply.text.len() as u64 } else { 0 };
        Ok(reply)
    }
}

/// Extents of eight sectors, none of which touch.
fn extents(numbers: impl IntoIterator<Item = u64>) -> Extents {
    numbers.into_iter().filter_map(|number| Extent::new(1_000_000 + 16 * number, 8)).collect()
}

/// A device with the regions of others, and a group of ours.
fn group(others: u64, ours: u64) -> Result<(Metered, Group), Box<dyn Error>> {
    let mut dm = Metered::new();
    for extent in extents(0..others).as_slice() {
        let aux = &b"fm=8921583207f0ccd4.0ea41421."[..];
        let program_id = &b"dmstats"[..];
        let create = Message::Create {
            extent: *extent,
            clockwork: dmfilemapd::message::Clockwork::default(),
            program_id,
            aux,
        };
        dm.message(DEVICE, &create.encode())?;
    }
    let template = Template {
        program_id: b"dmstats".to_vec(),
        alias: b"disk.img".to_vec(),
        precise: false,
        bounds: Vec::new(),
    };
    let made = establish(&mut dm, DEVICE, &template, MARK, CLAIM, &extents(0..ours))?;
    let group = made.ok_or("no group was made")?.group;
    dm.forget();
    Ok((dm, group))
}

/// A change of a file of `n` extents, and what an update promises to send for it: listings,
/// creates, changes of `aux_data`, deletes.
struct Change {
    what: &'static str,
    want: fn(u64) -> Extents,
    sends: fn(u64) -> [u64; 4],
}

const CHANGES: [Change; 8] = [
    Change { what: "none", want: |n| extents(0..n), sends: |_| [1, 0, 0, 0] },
    Change { what: "an extent more", want: |n| extents(0..=n), sends: |_| [2, 1, 1, 0] },
    Change { what: "an extent longer", want: longer, sends: |_| [2, 1, 1, 0] },
    Change {
        what: "an extent less",
        want: |n| extents((0..n).filter(|at| *at != n / 2)),
        sends: |_| [1, 0, 1, 1],
    },
    Change {
        what: "an extent moved",
        want: |n| extents((0..=n).filter(|at| *at != n / 2)),
        sends: |_| [2, 1, 1, 1],
    },
    Change { what: "the first less", want: |n| extents(1..n), sends: |_| [1, 0, 1, 1] },
    // The group's id is taken back: one listing, create and delete more, and two words.
    Change { what: "the first moved", want: |n| extents(1..=n), sends: |_| [3, 2, 3, 2] },
    Change { what: "all moved", want: |n| extents(n..2 * n), sends: |n| [3, n + 1, 3, n + 1] },
];

fn longer(count: u64) -> Extents {
    let longer = Extent::new(1_000_000 + 16 * (count / 2), 12);
    extents(0..count).as_slice().iter().copied().chain(longer).collect()
}

/// Counts what is sent, and holds it to what is promised.
fn messages(counts: &mut Counts) -> Result<Table, Box<dyn Error>> {
    let title = "Messages of one update, as promised";
    let headings =
        ["change", "regions", "listings", "creates", "set_aux", "deletes", "messages", "promised"];
    let mut table = Table::new("messages", title, &headings);
    for regions in [10, 1000, 10_000] {
        let (dm, group) = group(0, regions)?;
        for Change { what, want, sends } in CHANGES {
            let mut dm = dm.clone();
            update(&mut dm, DEVICE, group, &want(regions))?;
            let (sent, promised) = (dm.kinds, sends(regions));
            for ((kind, sent), promised) in KINDS.iter().zip(sent).zip(promised) {
                counts.is(&format!("{kind}, {what} of {regions}"), sent, promised);
            }
            let [listings, creates, set_aux, deletes] = sent;
            table.row([
                what.into(),
                regions.into(),
                listings.into(),
                creates.into(),
                set_aux.into(),
                deletes.into(),
                sent.iter().sum::<u64>().into(),
                promised.iter().sum::<u64>().into(),
            ]);
        }
    }
    table.note(
        "A listing begins each update, and one follows the creates, which take as long as the \
         device does. Where the first extent goes and anything is created, the group's id is \
         taken back.",
    );
    Ok(table)
}

/// CPU time by the number of regions that others have on the device.
fn updates(sizes: &[u64]) -> Result<Table, Box<dyn Error>> {
    let title =
        "One update of a group of 10 regions, one of which moved: CPU time by what is listed";
    let headings = [
        "regions of others",
        "bytes listed",
        "ours, us",
        "ns/byte",
        "scan for line ends, us",
        "ours/scan",
        "a sweep of the device, us",
    ];
    let mut table = Table::new("updates", title, &headings);
    for &size in sizes {
        let (dm, group) = group(size, 10)?;
        let listing = dm.clone().memory.message(DEVICE, b"@stats_list")?.text;
        let want = extents((0..11).filter(|at| *at != 5));
        let (mut ours, mut scan, mut sweep, mut listed) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let mut moved = dm.clone();
            let (took, updated) = own(&mut moved, |dm| update(dm, DEVICE, group, &want));
            ours.push(took);
            updated?;
            listed = moved.listed;
            let (took, looked) = own(&mut moved, |dm| look(dm, DEVICE, &[group]));
            sweep.push(took);
            looked?;
            let began = thread_time();
            black_box(memchr::memchr_iter(b'\n', black_box(&listing)).count());
            black_box(memchr::memchr_iter(b'\n', black_box(&listing)).count());
            scan.push(thread_time() - began);
        }
        let ratios = ours.iter().zip(&scan).map(|(ours, scan)| ours / scan).collect();
        let (ours, scan, sweep) = (median(ours), median(scan), median(sweep));
        table.row([
            size.into(),
            listed.into(),
            Cell::Number(ours / 1000.0),
            Cell::Number(ours / as_f64(listed)),
            Cell::Number(scan / 1000.0),
            Cell::Ratio(median(ratios)),
            Cell::Number(sweep / 1000.0),
        ]);
    }
    table.note("Two listings are read. What the table in memory takes is not counted.");
    Ok(table)
}

/// CPU time without that of the table, and what came of it.
fn own<T>(dm: &mut Metered, what: impl FnOnce(&mut Metered) -> T) -> (f64, T) {
    let (began, theirs) = (thread_time(), dm.took);
    let outcome = black_box(what(dm));
    ((thread_time() - began) - (dm.took - theirs), outcome)
}
