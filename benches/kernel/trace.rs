//! System calls, counted by strace.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon;
use crate::guest::{Daemon, wait_until};

const OUTPUT: &str = "/tmp/trace";
const OPTIONS: [&str; 8] = ["-f", "-qq", "-s", "16", "-e", "abbrev=statx", "-o", OUTPUT];

/// How often each was called. Some kinds of ioctls are counted by themselves as well: messages to
/// the device-mapper under their first words, `@version`, which whoever opens its node asks for,
/// `@fiemap`, and `@sync` for those of these that ask for a writeback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls(BTreeMap<String, u64>);

impl Calls {
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// System calls of any kind. Reading the clock is one in User-Mode Linux alone.
    pub fn all(&self) -> u64 {
        let is_call = |name: &str| !name.starts_with('@') && name != "clock_gettime";
        self.0.iter().filter(|(name, _)| is_call(name)).map(|(_, count)| count).sum()
    }

    /// What these processes call while `activity` lasts.
    pub fn of_processes(pids: &[u32], activity: impl FnOnce()) -> Calls {
        let list = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut strace = Daemon::start(Command::new("strace").args(OPTIONS).args(["-p", &list]));
        wait_until("strace traces all of them", || {
            let untraced = pids.iter().filter(|pid| !is_traced(**pid)).count();
            (untraced == 0).then_some(()).ok_or_else(|| format!("{untraced} are not traced"))
        });
        activity();
        kill(Pid::from_raw(strace.pid().try_into().unwrap()), Signal::SIGINT).unwrap();
        strace.wait_for_end();
        Calls::read()
    }

    /// What the command calls, which must succeed.
    pub fn of_command(command: &Command) -> Calls {
        let words = ["strace"].into_iter().chain(OPTIONS).collect::<Vec<_>>();
        let outcome = daemon::outcome(&mut daemon::under(&words, command));
        assert_eq!(outcome.status, Some(0), "{command:?}");
        Calls::read()
    }

    fn read() -> Calls {
        let text = fs::read(OUTPUT).unwrap();
        Calls::parse(&String::from_utf8_lossy(&text))
    }

    /// ```text
    /// 123 ioctl(5, DM_TARGET_MSG, {..., {sector=0, message="@stats_list"}} <unfinished ...>
    /// 124 statx(7, "", AT_STATX_SYNC_AS_STAT|AT_EMPTY_PATH, STATX_ALL, {...}) = 0
    /// 123 <... ioctl resumed>, ...) = 0
    /// ```
    fn parse(text: &str) -> Calls {
        let mut calls = BTreeMap::new();
        for line in text.lines() {
            let line = line.trim_start_matches(|letter: char| letter.is_ascii_digit()).trim_start();
            let Some((name, rest)) = line.split_once('(') else { continue };
            if !name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_') {
                continue; // resumed, or a signal
            }
            *calls.entry(name.to_owned()).or_default() += 1;
            if let Some((_, message)) = rest.split_once("\"@stats_") {
                let end = message.find([' ', '"']).unwrap_or(message.len());
                *calls.entry(format!("@stats_{}", &message[..end])).or_default() += 1;
            }
            if rest.contains("DM_VERSION") {
                *calls.entry("@version".to_owned()).or_default() += 1;
            }
            if rest.contains("FS_IOC_FIEMAP") {
                *calls.entry("@fiemap".to_owned()).or_default() += 1;
                let sync = u64::from(rest.contains("FIEMAP_FLAG_SYNC"));
                *calls.entry("@sync".to_owned()).or_default() += sync;
            }
        }
        Calls(calls)
    }
}

/// Whether all its threads are traced that have not ended.
fn is_traced(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    let is_traced = |thread: &Path| {
        let text = fs::read_to_string(thread.join("status")).unwrap_or_default();
        text.contains("State:\tZ") || field(&text, "TracerPid:").is_none_or(|by| by > 0)
    };
    threads.flatten().all(|thread| is_traced(&thread.path()))
}

/// Times that each thread of these processes went to sleep so far.
#[derive(Debug)]
pub struct Sleeps(BTreeMap<PathBuf, u64>);

impl Sleeps {
    pub fn of(pids: &[u32]) -> Sleeps {
        let threads = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
        let of_thread = |thread: fs::DirEntry| {
            let status = fs::read_to_string(thread.path().join("status")).ok()?;
            Some((thread.path(), field(&status, "voluntary_ctxt_switches:")?))
        };
        Sleeps(threads.flatten().flatten().filter_map(of_thread).collect())
    }

    /// How often those that are there now went to sleep since then. What has ended took its number
    /// with it.
    pub fn since(&self, before: &Sleeps) -> u64 {
        let of = |(thread, now): (&PathBuf, &u64)| {
            now.saturating_sub(before.0.get(thread).copied().unwrap_or_default())
        };
        self.0.iter().map(of).sum()
    }
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// Memory of these processes in MiB: their share of what is in memory, and what is theirs alone.
pub fn memory(pids: &[u32]) -> (f64, f64) {
    let mut sums = (0, 0);
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        for line in text.lines() {
            let Some((name, rest)) = line.split_once(':') else { continue };
            let kib: u64 = rest.trim().trim_end_matches(" kB").parse().unwrap_or_default();
            match name {
                "Pss" => sums.0 += kib,
                "Private_Clean" | "Private_Dirty" => sums.1 += kib,
                _ => {}
            }
        }
    }
    (sums.0 as f64 / 1024.0, sums.1 as f64 / 1024.0)
}
