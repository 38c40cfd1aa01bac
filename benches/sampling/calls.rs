//! How many system calls a sweep makes, as strace counts them.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::{Command, Stdio};

use dmfilemapd::mode::Mode;
use dmfilemapd::{place, sample};

use crate::child::{Errand, INTERVAL, SWEEPS, TOUCH, TRACED_INTERVAL, answer, calls_between_marks};
use crate::host::Looks;
use crate::support::arguments::skip;
use crate::support::counts::Counts;
use crate::support::folder::{Files, Folder};
use crate::support::rounds::as_f64;
use crate::support::table::{Cell, Table};

/// Calls with which threads wait for one another.
const WAITING: [&str; 2] = ["futex", "sched_yield"];

/// Counts the calls of children that look at `files`, and holds them to what a look takes.
pub fn count(folder: &Folder, files: &Files, counts: &mut Counts) -> Result<Table, Box<dyn Error>> {
    let title = "System calls of a sweep, counted by strace";
    let headings = ["look", "by", "files", "calls/sweep", "calls/file", "which"];
    let mut table = Table::new("calls", title, &headings);
    if !has_strace() {
        let why = "system calls: strace is not here, or may not trace; it is a package of Debian";
        skip(why)?;
        table.note(format!("Not counted: {why}."));
        return Ok(table);
    }
    for (mode, by) in [(Mode::Inode, "descriptor"), (Mode::Path, "path")] {
        // By path a first change takes the stamp, open, the stamp of what was opened, the map, and
        // close; and on xfs whether it is a realtime file.
        let file = sample::open_regular(&files.paths[0])?;
        let realtime = place::locate(&file)?.filesystem.has_realtime();
        let first = if mode == Mode::Path { 5 + usize::from(realtime) } else { 2 };
        for (errand, kind, expected) in [
            (Errand::Sweep(mode, Looks::Stamps), "idle", 1),
            (Errand::Sweep(mode, Looks::Maps), "changing", 2),
            (Errand::Changed(mode), "first change", first),
        ] {
            let mut calls = traced(folder, files, errand)?;
            // Memory for the C library, and what a build without optimization asks before close.
            for other in [TOUCH, "brk", "fcntl"] {
                calls.remove(other);
            }
            let sweep: BTreeMap<String, usize> =
                calls.into_iter().map(|(name, count)| (name, count.div_ceil(SWEEPS))).collect();
            let total: usize = sweep.values().sum();
            let what = format!("system calls of a sweep, {kind} by {by}");
            let (total, expected) = (total as u64, (expected * files.paths.len()) as u64);
            match errand {
                Errand::Changed(_) => counts.at_most(&what, total, expected), // some stay open
                _ => counts.is(&what, total, expected),
            }
            row(&mut table, kind, by, files, &sweep);
        }
    }
    Ok(table)
}

/// Runs the whole program, with its threads and queues, and sees what these add to a look.
pub fn whole_program(
    folder: &Folder,
    files: &Files,
    sweeps: u64,
    counts: &mut Counts,
    calls: &mut Table,
) -> Result<Table, Box<dyn Error>> {
    let title = "The whole program, with threads and queues, while its files are idle";
    let headings = ["files", "looks/s", "floor, ns/look", "ours, ns/look", "ours/floor"];
    let headings = [&headings[..], &["allocations/sweep"]].concat();
    let mut table = Table::new("program", title, &headings);
    table.note("The floor is a loop that looks at all files with fstat, and sleeps.");
    let errand = Errand::Run { sweeps, interval: INTERVAL };
    let output = errand.command(files, None)?.stderr(Stdio::inherit()).output()?;
    let number = |key| answer(&output.stdout, key).ok_or("the child did not answer");
    let (count, of_sweeps) = (as_f64(files.paths.len() as u64), as_f64(sweeps));
    let per_look = |key| number(key).map(|took| took / count / of_sweeps);
    let (floor, look) = (per_look("floor")?, per_look("program")?);
    let looks = 1000 * files.paths.len() / usize::try_from(INTERVAL)?;
    let (ratio, looks) = (Cell::Ratio(look / floor), looks.into());
    let allocations = number("allocations")?;
    let what = "the whole program allocates as often as for one file in 50";
    // Of batches and readings, and not of files: many times fewer.
    let in_a_sweep = as_f64(files.paths.len() as u64) / 50.0;
    counts.is(what, (allocations > in_a_sweep * of_sweeps).into(), 0);
    table.row([
        files.paths.len().into(),
        looks,
        Cell::Number(floor),
        Cell::Number(look),
        ratio,
        Cell::Number(allocations / of_sweeps),
    ]);

    if has_strace() {
        trace_program(folder, files, sweeps.div_ceil(10).max(2), counts, calls)?;
    }
    Ok(table)
}

fn trace_program(
    folder: &Folder,
    files: &Files,
    sweeps: u64,
    counts: &mut Counts,
    calls: &mut Table,
) -> Result<(), Box<dyn Error>> {
    let all = traced(folder, files, Errand::Run { sweeps, interval: TRACED_INTERVAL })?;
    // A sweep more or less: what is certain is how many calls there are for each look.
    let looks = all.get("fstat").copied().unwrap_or_default();
    // How often a thread has to wait for another is up to the machine.
    let is_counted = |name: &&String| !WAITING.contains(&name.as_str());
    let total: usize = all.keys().filter(is_counted).map(|name| all[name]).sum();
    let limit = looks + looks / 2;
    counts.at_most("system calls of the whole program", total as u64, limit as u64);
    let per_sweep =
        |(name, count): (String, usize)| (name, count * files.paths.len() / looks.max(1));
    let sweep = all.into_iter().map(per_sweep).collect();
    row(calls, "idle, whole program", "descriptor", files, &sweep);
    Ok(())
}

fn row(table: &mut Table, kind: &str, by: &str, files: &Files, sweep: &BTreeMap<String, usize>) {
    let total: usize = sweep.values().sum();
    let some = sweep.iter().filter(|(_, count)| **count > 0);
    let which: Vec<String> = some.map(|(name, count)| format!("{name} {count}")).collect();
    let per_file = Cell::Number(as_f64(total as u64) / as_f64(files.paths.len() as u64));
    table.row([
        kind.into(),
        by.into(),
        files.paths.len().into(),
        total.into(),
        per_file,
        which.join(", ").as_str().into(),
    ]);
}

fn has_strace() -> bool {
    let mut strace = Command::new("strace");
    let tried = strace.args(["-qq", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// The system calls of a child between its marks, by name.
fn traced(
    folder: &Folder,
    files: &Files,
    errand: Errand,
) -> Result<BTreeMap<String, usize>, Box<dyn Error>> {
    let trace = folder.path().join("trace");
    let output = errand.command(files, Some(&trace))?.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("the child for {errand:?}: {}", output.status).into());
    }
    let mut calls = BTreeMap::new();
    for name in calls_between_marks(&trace)? {
        *calls.entry(name).or_default() += 1;
    }
    Ok(calls)
}
