//! The same again in a process of its own: to have its system calls counted by strace, and to see
//! what threads and queues add.

use std::env;
use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dmfilemapd::engine::{Pace, Settings, Spec};
use dmfilemapd::group::Mark;
use dmfilemapd::kernel::Memory;
use dmfilemapd::kernel::process::raise_descriptor_limit;
use dmfilemapd::mode::Mode;
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

/// Between two looks at a file by the whole program.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// What a child does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Sweeps, as the engine and the samplers make them.
    Sweep(Mode, Looks),
    /// The same, of files each of which has just changed for the first time.
    Changed(Mode),
    /// The whole program, for so many seconds.
    Run(u64),
}

impl Errand {
    fn to_word(self) -> String {
        match self {
            Errand::Sweep(mode, Looks::Stamps) => format!("stamps-{mode}"),
            Errand::Sweep(mode, Looks::Maps) => format!("maps-{mode}"),
            Errand::Changed(mode) => format!("changed-{mode}"),
            Errand::Run(seconds) => format!("run-{seconds}"),
        }
    }

    fn of_word(word: &str) -> Option<Errand> {
        let (kind, rest) = word.split_once('-')?;
        match kind {
            "stamps" => Some(Errand::Sweep(rest.parse().ok()?, Looks::Stamps)),
            "maps" => Some(Errand::Sweep(rest.parse().ok()?, Looks::Maps)),
            "changed" => Some(Errand::Changed(rest.parse().ok()?)),
            "run" => Some(Errand::Run(rest.parse().ok()?)),
            _ => None,
        }
    }

    /// A command that does it; by strace, which writes to `trace`, if that is given.
    pub fn command(self, files: &Files, trace: Option<&Path>) -> std::io::Result<Command> {
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
        Some(Errand::Run(seconds)) => run_for(Duration::from_secs(seconds), &files),
        None => Err("an unknown errand".into()),
    })
}

fn mark() {
    fs::symlink_metadata(MARK).expect_err("nothing is there");
}

/// The names of the system calls between two marks.
pub fn calls_between_marks(trace: &Path) -> std::io::Result<Vec<String>> {
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
fn run_for(time: Duration, files: &Files) -> Result<(), Box<dyn Error>> {
    let floor = poll(&files.open()?, time);
    let entries: Vec<Entry> = files.paths.iter().map(entry).collect::<Result<_, _>>()?;
    let settings =
        Settings { settle: Duration::ZERO, full_look: HOURS, sweep: HOURS, ..Settings::default() };
    // A map of each is read in the beginning, and strace takes its time for that.
    let begun = 10 * INTERVAL + Duration::from_millis(1) * u32::try_from(entries.len())?;
    let watch = move || {
        thread::sleep(begun);
        let began = process_time();
        mark();
        let region = Region::new(&INSTRUMENTED_SYSTEM);
        thread::sleep(time);
        let allocated = region.change();
        mark();
        let took = process_time() - began;
        let allocations = allocated.allocations + allocated.reallocations;
        println!("{}", json!({ "program": took, "floor": floor, "allocations": allocations }));
        raise(Signal::SIGTERM).ok();
    };
    let ready = || drop(thread::spawn(watch));
    let mut memory = Memory::new();
    if let Some(path) = files.paths.first() {
        memory.add_device(sample::device(&fs::metadata(path)?), 1 << 40, "disk", "");
    }
    run::run(move || Ok(memory.clone()), 1, entries, settings, Manners::default(), ready)?;
    Ok(())
}

/// CPU time that it takes to look at open files, at the interval and for so long, if nothing is
/// done but that.
fn poll(open: &[File], time: Duration) -> f64 {
    let began = process_time();
    for _ in 0..time.as_millis() / INTERVAL.as_millis() {
        thread::sleep(INTERVAL);
        open.iter().for_each(floor::stat_file);
    }
    process_time() - began
}

/// An entry for a file that has no extents, so that no group is made.
fn entry(path: &Arc<Path>) -> std::io::Result<Entry> {
    let open = sample::open_regular(path)?;
    let metadata = open.metadata()?;
    let device = sample::device(&metadata);
    let identity = Identity { inode: metadata.ino(), generation: 0 };
    let (mode, pace, limits) = (Mode::Inode, Pace::fixed(INTERVAL), Limits::NONE);
    Ok(Entry {
        path: (&**path).into(),
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
