//! What it takes to follow files, while nothing happens to them and while all of them change.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

use crate::files::{EXTENTS, Files};
use crate::guest::Disk;
use crate::judge::{Judge, quantile};
use crate::keeper::{FULL_LOOK, Keeper, Keeping, Runs};
use crate::support::table::{Cell, Table};
use crate::trace::{self, Calls, Sleeps};
use crate::{Bench, INTERVAL, begin, in_turn, meter};

/// After so long no file's extents are read any more because data may wait in memory: a little more
/// than `guest::write_back_soon` says.
const SETTLED: Duration = Duration::from_secs(8);

/// After so long the service looks at files that do not change as seldom as it may.
const AT_REST: Duration = Duration::from_secs(27);

/// Between two searches of a service for files that match, two listings of a device, and two
/// readings of what its regions have counted. Windows are multiples of these.
const RESCAN: Duration = Duration::from_secs(10);
const SWEEP: Duration = Duration::from_secs(5);
const READ: Duration = Duration::from_secs(10);

/// Processes that are traced at a time. There may be hundreds, all of which do the same.
const TRACED_MAX: usize = 8;

/// Lags that a p99 takes at the least: it would be their maximum otherwise.
const P99_OF: usize = 100;

/// What was measured, by heading: a number for each round; lags of all rounds.
type Figures = BTreeMap<&'static str, Vec<f64>>;

const CPU: &str = "CPU s/min";
const SLEEPS: &str = "wake-ups/s";
const CALLS: &str = "system calls/s";
const IOCTLS: &str = "ioctls/s";
const READINGS: &str = "of them readings of counts";
const MAPS: &str = "and of maps";
const RUNS: &str = "commands/s";
const PSS: &str = "PSS MiB";
const PRIVATE: &str = "private MiB";
const FIRST: &str = "first change, median";
const MEDIAN: &str = "lag, median";
const P99: &str = "lag, p99";
const SEEN: &str = "lags";
const LOST: &str = "groups lost";

/// How much is measured.
struct Sizes {
    files: Vec<usize>,
    rounds: usize,
    /// For each figure of CPU time, and under strace, which slows down what it traces. A multiple
    /// of ten seconds, so that each has as much of what comes round every ten.
    window: Duration,
    /// For lags.
    watch: Duration,
}

pub fn run(bench: &mut Bench) {
    let sizes = Sizes {
        files: bench.numbers(&[10], &[1, 10, 100, 300]),
        rounds: bench.sized(1, 3),
        window: Duration::from_secs(bench.sized(2, 20)),
        watch: Duration::from_secs(bench.sized(2, 10)),
    };
    let mut keepers = vec![Keeper::Nobody, Keeper::Service];
    if !bench.arguments.quick {
        keepers.extend([Keeper::Each, Keeper::Dmstats]);
    }
    keepers.extend(bench.given());
    let headings = ["files", "kept by", CPU, "of our service", SLEEPS, CALLS, IOCTLS];
    let memory = [READINGS, MAPS, PSS, PRIVATE];
    let title = "Files that do not change: what it takes to follow them";
    let mut idle = Table::new("idle", title, &[&headings[..], &memory[..]].concat());
    let lags = [FIRST, MEDIAN, P99, SEEN, LOST];
    let title = "Files that change every 1.1 s: what it takes to follow them, and how long a group \
                 is wrong, in intervals of 500 ms";
    let mut changing = Table::new("changing", title, &[&headings[..], &lags[..]].concat());

    let disk = bench.disk("ext4");
    for &count in &sizes.files {
        measure(bench, &disk, count, &sizes, &keepers, [&mut idle, &mut changing]);
    }
    for table in [&mut idle, &mut changing] {
        table.note(
            "CPU time is that of the whole kernel as its host sees it, less that of the same time \
             without a monitor: medians of interleaved rounds. System calls are counted by strace, \
             in one round. Lags are those of all rounds; there is no p99 of fewer than 100. Maps \
             are read for their own sake every 20 s, three times as often as by default, so that \
             each window has its share of that.",
        );
        bench.publish(table);
    }
}

/// Adds the rows for so many files.
fn measure(
    bench: &mut Bench,
    disk: &Disk,
    count: usize,
    sizes: &Sizes,
    keepers: &[Keeper],
    tables: [&mut Table; 2],
) {
    let mut files = Files::make(disk, count);
    let mut figures = vec![[Figures::new(), Figures::new()]; keepers.len()];
    for number in 0..sizes.rounds {
        for at in in_turn(number, keepers.len()) {
            let (keeper, figures) = (&keepers[at], &mut figures[at]);
            begin("cost", number, &format!("{count} files kept by {}", keeper.name()));
            let first = number == 0;
            let mut round = Round { bench, disk, files: &mut files, keeper, sizes, first };
            round.measure(figures);
        }
    }
    for (which, table) in tables.into_iter().enumerate() {
        let median = |at: usize, heading| summary(&figures[at][which], heading);
        let cpu = |at| Some(median(at, CPU)? - median(0, CPU)?);
        let ours = keepers.iter().position(|keeper| *keeper == Keeper::Service);
        for (at, keeper) in keepers.iter().enumerate().skip(1) {
            let ratio = ours.and_then(|ours| Some(cpu(at)? / cpu(ours)?));
            let figures = |heading: &&'static str| number(median(at, heading));
            let after = [SLEEPS, CALLS, IOCTLS].into_iter();
            let rest: &[&str] = match which {
                0 => &[READINGS, MAPS, PSS, PRIVATE],
                _ => &[FIRST, MEDIAN, P99, SEEN, LOST],
            };
            let head = [count.into(), keeper.name().into(), number(cpu(at))];
            let head = head.into_iter().chain([ratio.map_or(Cell::Nothing, Cell::Ratio)]);
            let after = after.map(|heading| figures(&heading));
            table.row(head.chain(after).chain(rest.iter().map(figures)));
        }
    }
}

fn summary(figures: &Figures, heading: &'static str) -> Option<f64> {
    let lags = || figures.get(MEDIAN).filter(|_| [P99, SEEN].contains(&heading));
    match heading {
        P99 => quantile(lags().filter(|lags| lags.len() >= P99_OF)?.clone(), 0.99),
        SEEN => Some(lags()?.len() as f64),
        LOST => Some(figures.get(LOST)?.iter().sum()),
        _ => quantile(figures.get(heading)?.clone(), 0.5),
    }
}

fn number(figure: Option<f64>) -> Cell {
    figure.map_or(Cell::Nothing, Cell::Number)
}

/// One keeper, one time.
struct Round<'a> {
    bench: &'a mut Bench,
    disk: &'a Disk,
    files: &'a mut Files,
    keeper: &'a Keeper,
    sizes: &'a Sizes,
    /// Whether it is the first round, in which calls are counted.
    first: bool,
}

impl Round<'_> {
    fn measure(&mut self, [idle, changing]: &mut [Figures; 2]) {
        let mut judge = Judge::of(self.disk);
        let mut keeping = self.keeper.start(self.disk, self.files, INTERVAL);
        let quick = self.bench.arguments.quick;
        thread::sleep(match self.keeper {
            Keeper::Nobody => Duration::ZERO,
            Keeper::Service if !quick => AT_REST,
            _ => SETTLED,
        });
        self.window(idle, &mut keeping, false);
        if *self.keeper != Keeper::Nobody {
            self.calls(idle, &mut keeping, false);
            let (pss, private) = trace::memory(&keeping.pids());
            if !self.keeper.is_commands() {
                add(idle, PSS, pss);
                add(idle, PRIVATE, private);
            }
            let lags = self.files.watch_one_change(&mut judge);
            changing.entry(FIRST).or_default().extend(lags.in_units(INTERVAL));
            add(changing, LOST, lags.count_open() as f64);
        }
        self.window(changing, &mut keeping, true);
        if *self.keeper != Keeper::Nobody {
            self.calls(changing, &mut keeping, true);
            let lags = self.files.watch_changing(self.sizes.watch, &mut judge);
            changing.entry(MEDIAN).or_default().extend(lags.in_units(INTERVAL));
            add(changing, LOST, lags.count_open() as f64);
        }
        let ended = keeping.ended();
        assert!(*self.keeper != Keeper::Service || ended == 0, "our service has ended");
        drop(keeping);
        judge.table().clear();
    }

    /// CPU time and wake-ups for a while, in which the files change or not.
    fn window(&mut self, figures: &mut Figures, keeping: &mut Keeping, changing: bool) {
        let pids = keeping.pids();
        let sleeps = || (Sleeps::of(&pids), children_sleeps());
        let (before, began) = (sleeps(), Instant::now());
        let done = || keeping.runs.as_ref().map(Runs::done);
        let done_before = done();
        let cpu = meter::cpu_of(|| self.pass(self.sizes.window, changing)).as_secs_f64();
        let seconds = began.elapsed().as_secs_f64();
        add(figures, CPU, cpu * 60.0 / seconds);
        let after = sleeps();
        let sleeps = after.0.since(&before.0) + (after.1 - before.1);
        add(figures, SLEEPS, sleeps as f64 / seconds);
        if let Some((done, before)) = done().zip(done_before) {
            add(figures, RUNS, (done - before) as f64 / seconds);
        }
    }

    /// System calls and ioctls a second.
    fn calls(&mut self, figures: &mut Figures, keeping: &mut Keeping, changing: bool) {
        match self.keeper.is_commands() {
            true => self.calls_of_commands(figures, keeping, changing),
            false if self.first => self.calls_of_daemons(figures, keeping, changing),
            false => {}
        }
    }

    /// So many a second as there were, of which so many see a change as there were changes; what
    /// one calls that sees one, and one that sees none, is counted while nothing else is run.
    fn calls_of_commands(&mut self, figures: &mut Figures, keeping: &mut Keeping, changing: bool) {
        let Some(rate) = figures.get(RUNS).and_then(|rates| rates.last().copied()) else { return };
        keeping.runs = None;
        let [_, calm, busy] = [false, false, true].map(|change| {
            if change {
                self.files.0[0].change();
            }
            // The first may find any map, the second finds none that is new.
            let command = self.keeper.sample(self.disk, self.files);
            command.map(|command| Calls::of_command(&command))
        });
        keeping.runs = Some(self.keeper.runs(self.disk, self.files, INTERVAL));
        let (Some(calm), Some(busy)) = (calm, busy) else { return }; // its group was lost
        let changes = self.files.0.len() as f64 / crate::files::PERIOD.as_secs_f64();
        let busy_rate = if changing { changes.min(rate) } else { 0.0 };
        for (heading, count) in KINDS {
            let (calm, busy) = (count(&calm) as f64, count(&busy) as f64);
            add(figures, heading, busy * busy_rate + calm * (rate - busy_rate));
        }
    }

    fn pass(&mut self, time: Duration, changing: bool) {
        if changing {
            self.files.keep_changing(time);
        } else {
            thread::sleep(time);
        }
    }

    fn calls_of_daemons(&mut self, figures: &mut Figures, keeping: &Keeping, changing: bool) {
        let pids = keeping.pids();
        let traced = &pids[..pids.len().min(TRACED_MAX)];
        let mut took = Duration::ZERO;
        let whole = Instant::now();
        let calls = Calls::of_processes(traced, || {
            let began = Instant::now();
            self.pass(self.sizes.window, changing);
            took = began.elapsed();
        });
        let scale = pids.len() as f64 / traced.len() as f64 / took.as_secs_f64();
        for (heading, count) in KINDS {
            add(figures, heading, count(&calls) as f64 * scale);
        }
        if !changing && *self.keeper == Keeper::Service {
            self.check(&calls, whole.elapsed());
        }
    }

    /// What files that do not change may cost the service at the most, in so much time.
    fn check(&mut self, calls: &Calls, took: Duration) {
        let files = self.files.0.len() as u64;
        let times = |every| times(took, every);
        let counts = &mut self.bench.counts;
        for change in ["@stats_create", "@stats_delete", "@stats_set_aux"] {
            counts.is(&format!("files that do not change: {change}"), calls.of(change), 0);
        }
        // One at each look; and the service searches for files that match.
        let looks = files * (times(INTERVAL) + 2) + (files + 10) * (times(RESCAN) + 1);
        let stats = ["statx", "fstat", "newfstatat"].iter().map(|name| calls.of(name)).sum();
        counts.at_most("files that do not change: stat", stats, looks);
        // Each file in its turn, so that extents which moved silently are found.
        let maps = files * (times(FULL_LOOK * 4 / 5) + 1);
        counts.at_most("files that do not change: FIEMAP", calls.of("@fiemap"), maps);
        let lists = lists_at_rest(took);
        counts.at_most("files that do not change: @stats_list", calls.of("@stats_list"), lists);
        // For each region; a file has one more if it was changed before.
        let prints = files * (EXTENTS + 1) * (times(READ) + 1);
        counts.at_most("files that do not change: @stats_print", calls.of("@stats_print"), prints);
        // Each thread for ioctls opens the node for itself, and ends when nothing was to do for it
        // for ten seconds; one may have begun just before.
        let threads = calls.of("clone") + calls.of("clone3") + 1;
        counts.at_most("files that do not change: DM_VERSION", calls.of("@version"), threads);
        let known = ["@fiemap", "@stats_list", "@stats_print", "@version"];
        let known = known.map(|kind| calls.of(kind));
        let other = ioctls(calls) - known.iter().sum::<u64>();
        counts.is("files that do not change: other ioctls", other, 0);
    }
}

/// How often this can have come round.
fn times(took: Duration, every: Duration) -> u64 {
    u64::try_from(took.as_millis() / every.as_millis()).unwrap()
}

/// Listings of a device in so much time, whatever happens to its files: each sweep lists twice, for
/// the groups and for what cut updates have left, and each reading of the counts before and after.
pub fn lists_at_rest(took: Duration) -> u64 {
    2 * (times(took, SWEEP) + 1) + 2 * (times(took, READ) + 1)
}

type Count = fn(&Calls) -> u64;

/// What is counted of calls.
const KINDS: [(&str, Count); 4] = [
    (CALLS, Calls::all),
    (IOCTLS, ioctls),
    (READINGS, |calls| calls.of("@stats_print")),
    (MAPS, |calls| calls.of("@fiemap")),
];

fn ioctls(calls: &Calls) -> u64 {
    calls.of("ioctl")
}

fn add(figures: &mut Figures, heading: &'static str, figure: f64) {
    figures.entry(heading).or_default().push(figure);
}

/// Times that commands which have ended went to sleep.
fn children_sleeps() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    u64::try_from(usage.voluntary_context_switches()).unwrap_or_default()
}
