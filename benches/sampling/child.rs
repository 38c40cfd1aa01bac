//! The same again in a process of its own: to have its system calls counted by strace, and to see
//! what threads and queues add.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dmfilemapd::dm::{Device, Dm, Reply};
use dmfilemapd::engine::{Pace, Settings, Spec};
use dmfilemapd::group::Mark;
use dmfilemapd::kernel::Memory;
use dmfilemapd::kernel::process::raise_descriptor_limit;
use dmfilemapd::mode::Mode;
use dmfilemapd::paths::SharedPath;
use dmfilemapd::run::{self, Entry, Manners};
use dmfilemapd::sample::{self, Identity, Mount, Reach};
use dmfilemapd::shape::Limits;
use dmfilemapd::update::Template;
use nix::sys::signal::{Signal, raise};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region};

use crate::floor;
use crate::host::{HOURS, Host, Looks};
use crate::looks::touch;
use crate::support::folder::Files;
use crate::support::rounds::process_time;

/// Says what a child is to do. Its arguments are the files.
const ERRAND: &str = "BENCH_ERRAND";

/// A path where nothing is. Who looks there says to strace that what is counted begins or ends.
const MARK: &str = "/nothing/but/a/mark/for/strace";

/// The system call with which a file is made to look changed.
pub const TOUCH: &str = "utimensat";

/// Sweeps of a child.
pub const SWEEPS: usize = 4;

/// Milliseconds between two looks at a file by the whole program.
pub const INTERVAL: u64 = 100;

/// The same where each of its system calls goes by way of strace, which takes its time.
pub const TRACED_INTERVAL: u64 = 10 * INTERVAL;

/// Intervals until the whole program is at rest, at most, however slow the machine is.
const PATIENCE: usize = 1000;

/// What a child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Sweeps, as the engine and the samplers make them.
    Sweep(Mode, Looks),
    /// The same, of files each of which has just changed for the first time.
    Changed(Mode),
    /// The whole program, for so many sweeps; milliseconds between them.
    Run { sweeps: u64, interval: u64 },
}

impl Errand {
    fn to_word(self) -> String {
        match self {
            Errand::Sweep(mode, Looks::Stamps) => format!("stamps-{mode}"),
            Errand::Sweep(mode, Looks::Maps) => format!("maps-{mode}"),
            Errand::Changed(mode) => format!("changed-{mode}"),
            Errand::Run { sweeps, interval } => format!("run-{sweeps}x{interval}"),
        }
    }

    fn of_word(word: &str) -> Option<Errand> {
        let (kind, rest) = word.split_once('-')?;
        match kind {
            "stamps" => Some(Errand::Sweep(rest.parse().ok()?, Looks::Stamps)),
            "maps" => Some(Errand::Sweep(rest.parse().ok()?, Looks::Maps)),
            "changed" => Some(Errand::Changed(rest.parse().ok()?)),
            "run" => {
                let (sweeps, interval) = rest.split_once('x')?;
                let (sweeps, interval) = (sweeps.parse().ok()?, interval.parse().ok()?);
                Some(Errand::Run { sweeps, interval })
            }
            _ => None,
        }
    }

    /// A command that does it; by strace, which writes to `trace`, if that is given.
    pub fn command(self, files: &Files, trace: Option<&Path>) -> io::Result<Command> {
        let this = env::current_exe()?;
        let mut command = match trace {
            Some(trace) => {
                let mut strace = Command::new("strace");
                strace.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(trace).arg(this);
                strace
            }
            None => Command::new(this),
        };
        command.env(ERRAND, self.to_word()).args(files.paths.iter().map(|path| path.as_os_str()));
        Ok(command)
    }
}

/// If this is a child: what came of its errand.
pub fn done() -> Option<Result<(), Box<dyn Error>>> {
    let errand = Errand::of_word(env::var(ERRAND).ok()?.as_str());
    let paths = env::args_os().skip(1).map(|path| Arc::from(PathBuf::from(path))).collect();
    let files = Files { paths };
    raise_descriptor_limit();
    Some(match errand {
        Some(Errand::Sweep(mode, looks)) => sweep(mode, looks, &files),
        Some(Errand::Changed(mode)) => changed(mode, &files),
        Some(Errand::Run { sweeps, interval }) => {
            run_for(sweeps, Duration::from_millis(interval), &files)
        }
        None => Err("an unknown errand".into()),
    })
}

fn mark() {
    fs::symlink_metadata(MARK).expect_err("nothing is there");
}

/// The names of the system calls between two marks.
pub fn calls_between_marks(trace: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(trace)?;
    let between = text.lines().skip_while(|line| !line.contains(MARK)).skip(1);
    let between = between.take_while(|line| !line.contains(MARK));
    // `PID NAME(...`; a call that was interrupted comes once more, as `PID <... NAME resumed>`.
    let name =
        |line: &str| Some(line.split_once(' ')?.1.trim_start().split_once('(')?.0.to_owned());
    Ok(between.filter_map(name).filter(|name| !name.starts_with('<')).collect())
}

fn sweep(mode: Mode, looks: Looks, files: &Files) -> Result<(), Box<dyn Error>> {
    let open = mode == Mode::Inode || looks == Looks::Maps;
    let mut host = Host::new(&files.paths, mode, open, looks)?;
    mark();
    (0..SWEEPS).for_each(|_| host.sweep());
    mark();
    Ok(())
}

/// Touching a file is one call more, [`TOUCH`].
fn changed(mode: Mode, files: &Files) -> Result<(), Box<dyn Error>> {
    let (open, is_open) = (files.open()?, mode == Mode::Inode);
    let mut host = Host::new(&files.paths, mode, is_open, Looks::Stamps)?;
    mark();
    for _ in 0..SWEEPS {
        touch(&open);
        host.sweep();
    }
    mark();
    Ok(())
}

/// Runs the program until it is at rest, and then for a while. Prints its CPU time in nanoseconds
/// over that while, and that of a loop which does nothing but fstat and sleep; and how often any of
/// its threads allocated meanwhile.
fn run_for(sweeps: u64, interval: Duration, files: &Files) -> Result<(), Box<dyn Error>> {
    let floor = poll(&files.open()?, sweeps, interval);
    let paths = SharedPath::share(&files.paths).into_iter();
    let entries: Vec<Entry> = paths.map(|path| entry(path, interval)).collect::<io::Result<_>>()?;
    let settings =
        Settings { settle: Duration::ZERO, full_look: HOURS, sweep: HOURS, ..Settings::default() };
    let (count, asked) = (entries.len(), Arc::new(AtomicUsize::new(0)));
    let seen = asked.clone();
    let watch = move || {
        // When its map was read, the group of each is looked for.
        for _ in 0..PATIENCE {
            thread::sleep(interval);
            if seen.load(Ordering::Relaxed) >= count {
                return measure(sweeps, interval, floor);
            }
        }
        raise(Signal::SIGTERM).ok(); // and nothing is printed
    };
    let ready = || drop(thread::spawn(watch));
    let mut memory = Memory::new();
    if let Some(path) = files.paths.first() {
        memory.add_device(sample::device(&fs::metadata(path)?), 1 << 40, "disk", "");
    }
    let table = move || Ok(Table { memory: memory.clone(), asked: asked.clone() });
    run::run(table, 1, entries, settings, Manners::default(), ready)?;
    Ok(())
}

/// Says what the program at rest takes, and ends it.
fn measure(sweeps: u64, interval: Duration, floor: f64) {
    thread::sleep(Duration::from_millis(10 * INTERVAL)); // then whatever grows has grown
    let began = process_time();
    mark();
    let region = Region::new(&INSTRUMENTED_SYSTEM);
    thread::sleep(interval * u32::try_from(sweeps).unwrap_or(u32::MAX));
    let allocated = region.change();
    mark();
    let took = process_time() - began;
    let allocations = allocated.allocations + allocated.reallocations;
    println!("{}", json!({ "program": took, "floor": floor, "allocations": allocations }));
    raise(Signal::SIGTERM).ok();
}

/// A table that counts what it is asked.
struct Table {
    memory: Memory,
    asked: Arc<AtomicUsize>,
}

impl Dm for Table {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.memory.message(device, text)
    }
}

/// CPU time that it takes to look at open files, at the interval and for so long, if nothing is
/// done but that.
fn poll(open: &[File], sweeps: u64, interval: Duration) -> f64 {
    let began = process_time();
    for _ in 0..sweeps {
        thread::sleep(interval);
        open.iter().for_each(floor::stat_file);
    }
    process_time() - began
}

/// An entry for a file that has no extents, so that no group is made.
fn entry(path: SharedPath, interval: Duration) -> io::Result<Entry> {
    let open = sample::open_regular(&path)?;
    let metadata = open.metadata()?;
    let device = sample::device(&metadata);
    let identity = Identity { inode: metadata.ino(), generation: 0 };
    let (mode, pace, limits) = (Mode::Inode, Pace::fixed(interval), Limits::NONE);
    Ok(Entry {
        path,
        reach: Reach {
            mode,
            identity,
            open: Some(open),
            mount: Mount::Unasked,
            realtime: false, // it stays open
        },
        spec: Spec { mode, device, group: None, restless: false, pace, limits },
        template: Template {
            program_id: b"dmstats".to_vec(),
            alias: Vec::new(),
            precise: false,
            bounds: Vec::new(),
        },
        mark: Mark { key: metadata.ino(), nonce: 1 },
        home: None,
    })
}

/// What a child printed.
pub fn answer(output: &[u8], key: &str) -> Option<f64> {
    serde_json::from_slice::<Value>(output).ok()?.get(key)?.as_f64()
}
