//! What the kernel is asked for each change, and for making groups.

use std::thread;
use std::time::{Duration, Instant};

use crate::cost::lists_at_rest;
use crate::files::{Files, GLANCE};
use crate::guest::Disk;
use crate::judge::{self, Judge};
use crate::keeper::{Keeper, Keeping};
use crate::support::table::{Cell, Table};
use crate::trace::Calls;
use crate::{Bench, INTERVAL, meter};

/// How long a change may take to show.
const PATIENCE: Duration = Duration::from_secs(60);

/// Words of messages, and what else is told apart.
const KINDS: [&str; 6] =
    ["@stats_create", "@stats_delete", "@stats_set_aux", "@stats_list", "@fiemap", "@sync"];

pub fn run(bench: &mut Bench) {
    let disk = bench.disk("ext4");
    changes(bench, &disk);
    making(bench, &disk);
}

fn changes(bench: &mut Bench, disk: &Disk) {
    let headings =
        ["one file of 4 extents", "kept by", "is shown", "creates", "deletes", "set_aux", "lists"];
    let headings = [&headings[..], &["FIEMAPs", "of them with a writeback"]].concat();
    let title = "What the kernel is asked until a group shows a change";
    let mut table = Table::new("kernel-messages", title, &headings);
    let mut keepers = vec![Keeper::Service, Keeper::Each];
    if !bench.arguments.quick {
        keepers.push(Keeper::Dmstats);
    }
    keepers.extend(bench.given());
    for keeper in keepers {
        let mut files = Files::make(disk, 1);
        let mut judge = Judge::of(disk);
        let mut keeping = keeper.start(disk, &files, INTERVAL);
        keeping.runs = None; // each command that is counted is run by itself
        let subject = Subject { keeper: &keeper, disk, keeping: &keeping };
        for what in ["one extent more", "one extent less"] {
            let began = Instant::now();
            let (calls, shown) = of_change(&mut files, &subject, &mut judge);
            let counts = KINDS.map(|kind| Cell::Count(calls.of(kind)));
            let outcome = if shown { "yes" } else { "no" };
            let head = [what, keeper.name(), outcome].map(Cell::from);
            table.row(head.into_iter().chain(counts));
            if matches!(keeper, Keeper::Service | Keeper::Each) {
                let what = format!("{}, {what}", keeper.name());
                bench.counts.is(&format!("{what}: groups that show it"), shown.into(), 1);
                check(bench, &keeper, &what, &calls, began.elapsed());
            }
        }
        drop(keeping);
        judge.table().clear();
    }
    bench.publish(&table);
}

/// Who is asked to show a change.
struct Subject<'a> {
    keeper: &'a Keeper,
    disk: &'a Disk,
    keeping: &'a Keeping,
}

/// Changes the file, and counts what is called until its group is right; whether it is, in time.
fn of_change(files: &mut Files, subject: &Subject<'_>, judge: &mut Judge) -> (Calls, bool) {
    let is_right = |files: &Files, judge: &mut Judge| judge::is_right(&files.0[0], &judge.groups());
    if subject.keeper.is_commands() {
        files.0[0].change();
        let command = subject.keeper.sample(subject.disk, files).expect("the file has a group");
        let calls = Calls::of_command(&command);
        return (calls, is_right(files, judge));
    }
    let calls = Calls::of_processes(&subject.keeping.pids(), || {
        files.0[0].change();
        let began = Instant::now();
        while began.elapsed() < PATIENCE && !is_right(files, judge) {
            thread::sleep(GLANCE);
        }
        thread::sleep(2 * INTERVAL); // what follows once the group is right is part of the price
    });
    (calls, is_right(files, judge))
}

/// A process of lvm2's command line sends the fewest messages that there can be. The service folds:
/// it may make one region of neighbours that have counted nothing while it creates one there
/// anyway, and two of that again when its middle goes.
fn check(bench: &mut Bench, keeper: &Keeper, what: &str, calls: &Calls, took: Duration) {
    let more = u64::from(what.ends_with("more"));
    let folds = *keeper == Keeper::Service;
    for (kind, fewest, folded) in
        [("@stats_create", more, 2 - more), ("@stats_delete", 1 - more, 1 + more)]
    {
        let (what, count) = (format!("{what}: {kind}"), calls.of(kind));
        match folds {
            true => bench.counts.at_most(&what, count, folded),
            false => bench.counts.is(&what, count, fewest),
        }
    }
    bench.counts.is(&format!("{what}: @stats_set_aux"), calls.of("@stats_set_aux"), 1);
    bench.counts.is(&format!("{what}: writebacks"), calls.of("@sync"), 0);
    let lists = 1 + more + lists_at_rest(took); // before the plan, and after a create
    bench.counts.at_most(&format!("{what}: @stats_list"), calls.of("@stats_list"), lists);
}

fn making(bench: &mut Bench, disk: &Disk) {
    let headings = ["files", "made by", "processes", "ioctls a file", "system calls a file"];
    let headings = [&headings[..], &["CPU ms a file", "of ours"]].concat();
    let title = "Making the groups of files of 4 extents";
    let mut table = Table::new("kernel-making", title, &headings);
    for &count in bench.sized(&[2][..], &[1, 10, 100]) {
        let files = Files::make(disk, count);
        let mut judge = Judge::of(disk);
        let mut ours = None;
        for (keeper, name) in
            [(Keeper::Update, "dmfilemapd update"), (Keeper::Dmstats, "dmstats create --filemap")]
        {
            let commands = keeper.making(&files);
            let mut calls = (0, 0);
            for command in &commands {
                let counted = Calls::of_command(command);
                calls = (calls.0 + counted.of("ioctl"), calls.1 + counted.all());
            }
            judge.table().clear();
            let cpu = meter::cpu_of(|| keeper.make_groups(&files));
            let each = cpu.as_secs_f64() * 1000.0 / count as f64;
            judge.table().clear();
            let ours = *ours.get_or_insert(each);
            let per_file = |calls: u64| Cell::Number(calls as f64 / count as f64);
            let head = [count.into(), name.into(), commands.len().into()];
            let counts = [per_file(calls.0), per_file(calls.1)];
            let cpu = [Cell::Number(each), Cell::Ratio(each / ours)];
            table.row(head.into_iter().chain(counts).chain(cpu));
        }
    }
    bench.publish(&table);
}
