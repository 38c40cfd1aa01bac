//! Who keeps the groups equal to the files.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dmfilemapd::kernel::process::hand_down;

use crate::daemon::{self, Looks, PROGRAM};
use crate::files::{File, Files};
use crate::guest::{Daemon, Disk, wait_until};
use crate::judge::{self, Groups, Judge};

const CONFIG: &str = "/tmp/etc";

const GRID: [&str; 2] = ["--grid-memory", "4MiB"];

/// Between two readings of a map for their own sake. A third of what it is by default: so any 20
/// seconds have as many of them as any others, and more than without this, never fewer.
pub const FULL_LOOK: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeper {
    Nobody,
    /// Ours, one process for all files.
    Service,
    /// The same, and its totals come from a grid.
    Gridded,
    /// A grid, and no groups.
    GridAlone,
    /// Ours, one process for each file, as `dmstats` starts it where there is no service.
    Each,
    /// Another daemon with lvm2's command line, one process for each file.
    Given(PathBuf),
    /// `dmstats update_filemap --nomonitor` for each file, every interval.
    Dmstats,
    /// Ours, `dmfilemapd update` for all files, every interval.
    Update,
}

impl Keeper {
    pub fn name(&self) -> &'static str {
        match self {
            Keeper::Nobody => "nobody",
            Keeper::Service => "our service",
            Keeper::Gridded => "our service with a grid",
            Keeper::GridAlone => "our service, a grid and no groups",
            Keeper::Each => "ours, one process a file",
            Keeper::Given(_) => "given daemon, one process a file",
            Keeper::Dmstats => "dmstats update_filemap",
            Keeper::Update => "dmfilemapd update",
        }
    }

    /// Whether it is commands, run again and again, and no daemons.
    pub fn is_commands(&self) -> bool {
        matches!(self, Keeper::Dmstats | Keeper::Update)
    }

    fn is_service(&self) -> bool {
        matches!(self, Keeper::Service | Keeper::Gridded | Keeper::GridAlone)
    }

    /// Starts to keep the groups of these files, which are all that match [`Files::pattern`], and
    /// waits until they are right. There are no groups before that.
    pub fn start(&self, disk: &Disk, files: &Files, interval: Duration) -> Keeping {
        if !self.is_service() && *self != Keeper::Nobody {
            self.make_groups(files);
        }
        let mut keeping = Keeping { daemons: Vec::new(), runs: None };
        let mut judge = Judge::of(disk);
        let groups = judge.groups();
        let daemon = |program: &Path| {
            let start = |file| legacy(program, file, groups[file.alias()].id, interval);
            files.0.iter().map(start).collect()
        };
        match self {
            Keeper::Nobody => return keeping,
            Keeper::Service => keeping.daemons.push(service(disk, interval, &[])),
            Keeper::Gridded => keeping.daemons.push(service(disk, interval, &GRID)),
            Keeper::GridAlone => {
                let options = [&GRID[..], &["--regions", "off"]].concat();
                keeping.daemons.push(service(disk, interval, &options));
            }
            Keeper::Each => keeping.daemons = daemon(program()),
            Keeper::Given(program) => keeping.daemons = daemon(program),
            Keeper::Dmstats | Keeper::Update => {
                keeping.runs = Some(self.runs(disk, files, interval));
            }
        }
        wait_until("the groups are right", || {
            if *self == Keeper::GridAlone {
                let listing = judge.table().listing();
                return listing.contains(" dmfilemap ").then_some(()).ok_or(listing);
            }
            let groups = judge.groups();
            let wrong = files.0.iter().filter(|file| !judge::is_right(file, &groups)).count();
            (wrong == 0).then_some(()).ok_or_else(|| format!("{wrong} are wrong"))
        });
        if self.is_service() || *self == Keeper::Each {
            // What it takes over and looks at in the beginning is not what is measured.
            let_all_look(&keeping.pids());
        }
        keeping
    }

    /// Runs its commands from now on, if it is [commands](Keeper::is_commands).
    pub fn runs(&self, disk: &Disk, files: &Files, interval: Duration) -> Runs {
        let (keeper, files, mut judge) = (self.clone(), files.clone(), Judge::of(disk));
        // Its own updates move a group to another id, under which it has to be told of it.
        Runs::start(move || keeper.commands(&files, &judge.groups()), interval)
    }

    /// What it would run now for the first file; nothing if that has no group any more.
    pub fn sample(&self, disk: &Disk, files: &Files) -> Option<Command> {
        let first = Files(files.0[..1].to_vec());
        self.commands(&first, &Judge::of(disk).groups()).into_iter().next()
    }

    /// Makes the groups that it keeps.
    pub fn make_groups(&self, files: &Files) {
        for mut command in self.making(files) {
            daemon::succeed(&mut command);
        }
    }

    /// What makes the groups that it keeps: for ours our `update`, and `dmstats create` for others.
    pub fn making(&self, files: &Files) -> Vec<Command> {
        if matches!(self, Keeper::Each | Keeper::Update) {
            return self.commands(files, &Groups::new());
        }
        let create = |path| {
            let mut command = dmstats("create --filemap --nomonitor");
            command.arg(path);
            command
        };
        files.paths().map(create).collect()
    }

    /// What it runs every interval.
    fn commands(&self, files: &Files, groups: &Groups) -> Vec<Command> {
        if *self != Keeper::Dmstats {
            let mut command = Command::new(program());
            command.arg("update").args(files.paths());
            return vec![command];
        }
        let update = |file: &File| {
            let group = groups.get(file.alias())?.id;
            let mut command = dmstats(&format!("update_filemap --nomonitor --groupid {group}"));
            command.arg(&file.path);
            Some(command)
        };
        files.0.iter().filter_map(update).collect()
    }
}

/// Waits until each of these daemons of ours has looked twice more.
fn let_all_look(pids: &[u32]) {
    let mut looks: Vec<Looks> = pids.iter().map(|pid| Looks::of(*pid)).collect();
    wait_until("all daemons look", || {
        let done = looks.iter_mut().map(Looks::so_far).filter(|times| *times >= 2).count();
        (done == pids.len()).then_some(()).ok_or_else(|| format!("{done} of {}", pids.len()))
    });
}

/// The program under test, in the memory of this kernel.
fn program() -> &'static Path {
    copied(Path::new(PROGRAM), "/tmp/dmfilemapd")
}

/// Debian's `dmstats`, likewise.
pub fn dmstats(words: &str) -> Command {
    let mut command = Command::new(copied(Path::new("/sbin/dmsetup"), "/tmp/dmstats"));
    command.args(words.split_whitespace());
    command
}

fn copied(program: &Path, to: &'static str) -> &'static Path {
    let to = Path::new(to);
    if !to.exists() {
        fs::copy(program, to).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    }
    to
}

fn service(disk: &Disk, interval: Duration, options: &[&str]) -> Daemon {
    fs::create_dir_all(CONFIG).unwrap();
    let pattern = Files::pattern(disk);
    let entry = format!("[[file]]\npath = \"{}\"\n", pattern.display());
    fs::write(Path::new(CONFIG).join("config.toml"), entry).unwrap();
    let mut command = Command::new(program());
    command.args(["run", "--config-dir", CONFIG, "--interval"]).arg(text(interval));
    command.arg("--full-look").arg(text(FULL_LOOK));
    command.args(options);
    let daemon = Daemon::start(&mut command);
    daemon.wait_for("following the files of ");
    daemon
}

/// `dmfilemapd FD GROUP PATH inode 1 0`: in the foreground, as it is our child then, and silent.
fn legacy(program: &Path, file: &File, group: u32, interval: Duration) -> Daemon {
    let open = fs::File::open(&file.path).unwrap();
    let mut command = Command::new(program);
    command.env("DMFILEMAPD_STANDALONE", "1").env("DMFILEMAPD_INTERVAL", text(interval));
    command.env("DMFILEMAPD_FULL_LOOK", text(FULL_LOOK));
    let fd = hand_down(&mut command, open.as_fd()).unwrap().to_string();
    command.args([&fd, &group.to_string()]).arg(&file.path).args(["inode", "1", "0"]);
    Daemon::start(&mut command)
}

fn text(interval: Duration) -> String {
    format!("{}ms", interval.as_millis())
}

/// Ends, and leaves the groups, when it is dropped.
#[derive(Debug)]
pub struct Keeping {
    daemons: Vec<Daemon>,
    pub runs: Option<Runs>,
}

impl Keeping {
    pub fn pids(&self) -> Vec<u32> {
        self.daemons.iter().map(Daemon::pid).collect()
    }

    /// Daemons that ended by themselves.
    pub fn ended(&mut self) -> usize {
        self.daemons.iter_mut().map(|daemon| usize::from(!daemon.is_running())).sum()
    }
}

/// Commands that are run one after the other, all of them every interval or as often as they can.
/// Which ones is asked anew each time.
#[derive(Debug)]
pub struct Runs {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Runs {
    fn start(
        mut commands: impl FnMut() -> Vec<Command> + Send + 'static,
        interval: Duration,
    ) -> Runs {
        let (stop, done, failed): (Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>) =
            Default::default();
        let (may_go_on, count, failures) = (stop.clone(), done.clone(), failed.clone());
        let run = move || {
            loop {
                let began = Instant::now();
                for command in &mut commands() {
                    if may_go_on.load(Ordering::Relaxed) {
                        return;
                    }
                    silence(command);
                    let status = command.status().unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                    failures.fetch_add(u64::from(!status.success()), Ordering::Relaxed);
                }
                thread::sleep(interval.saturating_sub(began.elapsed()));
            }
        };
        Runs { stop, done, failed, thread: Some(thread::spawn(run)) }
    }

    /// Commands that have ended so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Those among them that failed.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().map(JoinHandle::join);
        assert!(thread.is_none_or(|ended| ended.is_ok()), "a command could not be run");
    }
}

fn silence(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
}
