//! lvm2's side of the contract: a `dmstats` that finds our program in `PATH`, command lines as one
//! types them, and daemons that are nobody's child, looked at through /proc.
//!
//! Whoever includes this file has `vm.rs`, `dialects.rs` and `guest.rs` beside it.

#![allow(dead_code)] // each file of tests uses its share

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use dmfilemapd::dm::{Device, Dm};
use dmfilemapd::kernel::control::Control;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::dialects;
use crate::guest::{Disk, INTERVAL, wait_until};
use crate::vm;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_dmfilemapd");

// Commands.

/// A command that finds our program in `PATH` before any other, to look every [`INTERVAL`].
pub fn command(program: &str) -> Command {
    let folder = Path::new(PROGRAM).parent().unwrap();
    let rest = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([folder.to_owned()].into_iter().chain(env::split_paths(&rest)));
    let mut command = Command::new(program);
    command.env("PATH", path.unwrap());
    command.env("DMFILEMAPD_INTERVAL", INTERVAL.as_millis().to_string());
    command
}

/// `dmstats WORDS`, the words parted at blanks.
pub fn dmstats(words: &str) -> Command {
    let mut command = command("dmstats");
    command.args(words.split_whitespace());
    command
}

/// `dmfilemapd 3 GROUP FILE REST 3<FILE`, as one types it.
pub fn by_hand(file: &Path, group: u32, rest: &str) -> Command {
    let group = group.to_string();
    let mut words = vec![OsStr::new("3"), OsStr::new(&group), file.as_os_str()];
    words.extend(rest.split_whitespace().map(OsStr::new));
    typed("3<\"$file\"", file, &words)
}

/// `dmfilemapd WORDS REDIRECTION`; the redirection may name `"$file"`.
pub fn typed(redirection: &str, file: &Path, words: &[&OsStr]) -> Command {
    let mut shell = command("sh");
    shell.arg("-c").arg(format!("file=$0; exec dmfilemapd \"$@\" {redirection}"));
    shell.arg(file).args(words);
    shell
}

/// The same command, run by another one, as `strace`.
pub fn under(tool: &[&str], command: &Command) -> Command {
    let mut under = Command::new(tool[0]);
    under.args(&tool[1..]).arg(command.get_program()).args(command.get_args());
    under.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    under
}

/// What came of a command that has to end by itself, and whose output has to end as well.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit status; `None` if a signal killed it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to the end of its output, which it gets as pipes.
pub fn outcome(command: &mut Command) -> Outcome {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    Outcome { status: output.status.code(), stdout, stderr }
}

/// Runs a command that must succeed and say nothing on stderr; returns what it printed.
pub fn succeed(command: &mut Command) -> String {
    let Outcome { status, stdout, stderr } = outcome(command);
    assert_eq!((status, stderr.as_str()), (Some(0), ""), "{command:?}\n{stdout}");
    stdout
}

/// `dmstats create --filemap --nomonitor OPTIONS FILE`: a group that nobody follows; its id.
pub fn create_group(file: &Path, options: &str) -> u32 {
    let line = succeed(dmstats(&format!("create --filemap --nomonitor {options}")).arg(file));
    let id = line.trim_end().strip_suffix('.').and_then(|line| line.rsplit(' ').next());
    id.and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no group id in {line:?}"))
}

/// An alias that Debian's dmstats wrote, as the newer one sees it: without its first and last byte.
pub fn newer(alias: &str) -> &str {
    &alias[1..alias.len() - 1]
}

// Processes.

/// The processes that run our program, by their number.
pub fn daemons() -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let pid = entry.unwrap().file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(pid.filter(|pid| is_daemon(*pid)));
    }
    found.sort_unstable();
    found
}

/// Whether the process runs our program. One that has ended and was not waited for does not, nor
/// does one within execve: the kernel names the new program before it has the words.
fn is_daemon(pid: u32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    program.is_ok_and(|exe| exe == Path::new(PROGRAM)) && cmdline(pid) != [""]
}

/// The one process that runs our program.
pub fn only_daemon() -> u32 {
    let found = daemons();
    assert_eq!(found.len(), 1, "{:?}", found.iter().map(|pid| cmdline(*pid)).collect::<Vec<_>>());
    found[0]
}

/// The daemon whose command line has this path.
pub fn daemon_of(file: &Path) -> u32 {
    let mut found = daemons();
    found.retain(|pid| cmdline(*pid).iter().any(|word| Path::new(word) == file));
    assert_eq!(found.len(), 1, "daemons for {}: {found:?}", file.display());
    found[0]
}

/// The words of its command line.
pub fn cmdline(pid: u32) -> Vec<String> {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = words.strip_suffix(b"\0").unwrap_or(&words);
    words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// What each of its open descriptors leads to.
pub fn descriptors(pid: u32) -> BTreeMap<u32, String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(Result::unwrap);
    let open = entries.filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        // One that was closed since leads nowhere.
        Some((number, fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
    });
    open.collect()
}

/// The fields of /proc/PID/stat from the state on: state, parent, group, session, terminal...
pub fn stat_fields(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split_whitespace().map(str::to_owned).collect()
}

/// How often the samplers of a daemon are given something to do: each of them blocks when it is
/// done.
#[derive(Debug)]
pub struct Looks {
    pid: u32,
    /// By thread: one that has had nothing to do for a while is gone, with its count.
    last: BTreeMap<OsString, u64>,
    so_far: u64,
}

impl Looks {
    /// From now on.
    pub fn of(pid: u32) -> Looks {
        Looks { pid, last: switches(pid), so_far: 0 }
    }

    /// Until now.
    pub fn so_far(&mut self) -> u64 {
        let now = switches(self.pid);
        let before = |task: &OsString| self.last.get(task).copied().unwrap_or_default();
        self.so_far +=
            now.iter().map(|(task, count)| count.saturating_sub(before(task))).sum::<u64>();
        self.last = now;
        self.so_far
    }
}

/// How often those of its samplers that are there have been given something to do.
pub fn looks(pid: u32) -> u64 {
    switches(pid).into_values().sum()
}

/// How often each of its samplers has blocked.
fn switches(pid: u32) -> BTreeMap<OsString, u64> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return BTreeMap::new() };
    let switches = |task: &Path| {
        let comm = fs::read_to_string(task.join("comm")).ok()?;
        let status = fs::read_to_string(task.join("status")).ok()?;
        let count =
            status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        comm.starts_with("sampler").then(|| count.trim().parse().unwrap())
    };
    tasks.flatten().filter_map(|task| Some((task.file_name(), switches(&task.path())?))).collect()
}

/// Waits until it has looked at its files so many times more.
pub fn let_look(pid: u32, times: u64) {
    let mut looks = Looks::of(pid);
    wait_until("the daemon looks", || {
        let since = looks.so_far();
        if since >= times { Ok(()) } else { Err(format!("{since} times, {:?}", cmdline(pid))) }
    });
}

/// Waits until a process that is nobody's child has ended.
pub fn wait_for_end(pid: u32) {
    wait_until("the daemon ends", || match is_daemon(pid) {
        false => Ok(()),
        true => Err(format!("{:?}", cmdline(pid))),
    });
}

/// Makes several changes that are one to the daemon.
pub fn at_once(pid: u32, changes: impl FnOnce()) {
    stop(pid);
    changes();
    signal(pid, Signal::SIGCONT);
}

/// Stops the process until it is told to go on.
pub fn stop(pid: u32) {
    signal(pid, Signal::SIGSTOP);
    let all_stand = || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let states = threads.filter_map(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
            stat.rsplit_once(") ")?.1.chars().next()
        });
        let states: String = states.collect();
        let stands = |state: char| "Tt".contains(state);
        if states.chars().all(stands) { Ok(()) } else { Err(states) }
    };
    wait_until("it is stopped", all_stand);
}

/// Sends a signal.
pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

// Regions.

/// Messages to one device, without a process for each.
#[derive(Debug)]
pub struct Table {
    control: Control,
    device: Device,
}

impl Table {
    pub fn of(disk: &Disk) -> Table {
        let control = Control::open().expect("the kernel has device-mapper");
        Table { control, device: vm::device(&disk.node) }
    }

    /// Sends a message that must succeed.
    pub fn send(&mut self, text: &str) -> String {
        let reply = self.control.message(self.device, text.as_bytes());
        let reply = reply.unwrap_or_else(|error| panic!("{text}: {error}"));
        String::from_utf8(reply.text).unwrap()
    }

    /// All regions, of all programs.
    pub fn listing(&mut self) -> String {
        self.send("@stats_list")
    }

    /// Creates a region that counts milliseconds and has no histogram; returns its id.
    pub fn create(&mut self, range: &str, program_id: &str, aux: &str) -> u32 {
        self.create_with(range, "", program_id, aux)
    }

    /// Likewise, with options as a listing has them.
    pub fn create_with(&mut self, range: &str, options: &str, program_id: &str, aux: &str) -> u32 {
        let count = options.split_whitespace().count();
        let message = format!("@stats_create {range} /1 {count} {options} {program_id} {aux}");
        self.send(&message).parse().unwrap()
    }

    /// Makes it what this listing says, to the ids.
    pub fn restore(&mut self, listing: &str) {
        self.clear();
        let mut fillers = Vec::new();
        for row in dialects::rows(listing.as_bytes()).unwrap() {
            let text = |bytes| std::str::from_utf8(bytes).unwrap();
            let range = format!("{}+{}", row.start, row.end - row.start);
            let (program_id, aux) = (text(row.program_id), text(row.aux()));
            loop {
                let id = self.create_with(&range, text(row.options()), program_id, aux);
                if id == row.id {
                    break;
                }
                assert!(id < row.id, "{listing}");
                fillers.push(id);
            }
        }
        for id in fillers {
            self.send(&format!("@stats_delete {id}"));
        }
        assert_eq!(self.listing(), listing);
    }

    /// Deletes all regions.
    pub fn clear(&mut self) {
        for line in self.listing().lines() {
            let (id, _) = line.split_once(": ").unwrap();
            self.send(&format!("@stats_delete {id}"));
        }
    }
}

// Files.

const KIB: u64 = 1024;

/// Writes `kib` KiB from there on and has them written back, so that they have their place.
pub fn write(file: &Path, at_kib: u64, kib: u64) {
    let open = File::options().write(true).create(true).truncate(false).open(file).unwrap();
    let bytes = vec![b'w'; usize::try_from(kib * KIB).unwrap()];
    open.write_all_at(&bytes, at_kib * KIB).unwrap();
    open.sync_all().unwrap();
}

/// A file of pieces that do not touch, neither in the file nor on the device: so many, each of
/// 16 KiB with a hole of 16 KiB behind it.
pub fn write_pieces(file: &Path, count: u64) {
    write(file, 0, 32 * count);
    for at in 0..count {
        punch(file, 32 * at + 16, 16);
    }
}

/// Frees `kib` KiB from there on.
pub fn punch(file: &Path, at_kib: u64, kib: u64) {
    let open = File::options().write(true).open(file).unwrap();
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (at, len) = (i64::try_from(at_kib * KIB).unwrap(), i64::try_from(kib * KIB).unwrap());
    fallocate(&open, mode, at, len).unwrap();
}

/// Makes the file so long.
pub fn truncate(file: &Path, kib: u64) {
    File::options().write(true).open(file).unwrap().set_len(kib * KIB).unwrap();
}

/// The path as a word.
pub fn text(path: &Path) -> &str {
    std::str::from_utf8(path.as_os_str().as_bytes()).unwrap()
}

/// Somewhere that is not on a device-mapper device.
pub fn outside(name: &str) -> PathBuf {
    Path::new("/tmp").join(name)
}
