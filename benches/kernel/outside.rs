//! Outside the kernel: boots it, passes on what it prints, and tells it how much CPU time it takes.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{ChildStderr, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use crate::meter;
use crate::support::arguments::Arguments;
use crate::support::table::{self, FOLDER};

/// Names the folder of another kernel than User-Mode Linux, as for the tests.
const KERNEL: &str = "TEST_KERNEL";

/// How long the kernel may run, in seconds, and its memory. An emulated one is slower, and each
/// region takes 128 KiB of it.
const LIMITS: [&str; 4] = ["-t", "14400", "-m", "2G"];
const LIMITS_EMULATED: [&str; 4] = ["-t", "28800", "-m", "8G"];

/// Each table that measures has its own, so that no table finds what another has left.
pub const RAMDISKS: u32 = 9;

/// Runs this program in a kernel of its own; ends as it ends there.
pub fn boot(arguments: &Arguments) -> ExitCode {
    let kernel = env::var_os(KERNEL);
    let must = env::var_os("CI").is_some() || kernel.is_some() || !arguments.quick;
    let folder = table::folder();
    let answers = folder.join("meter");
    fs::remove_dir_all(&answers).ok(); // there may be none
    fs::create_dir_all(&answers).unwrap_or_else(|why| panic!("{}: {why}", answers.display()));
    let limits = if kernel.is_some() { LIMITS_EMULATED } else { LIMITS };
    let mut child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/vm/run"))
        .args(kernel.into_iter().flat_map(|folder| ["-q".into(), folder]))
        .args(limits)
        .args(["-n", &RAMDISKS.to_string()])
        .arg("-w")
        .arg(&folder)
        .arg("--")
        .arg(env::current_exe().expect("the bench knows its program"))
        .args(env::args_os().skip(1))
        .env(meter::FOLDER, &answers)
        .env(FOLDER, &folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("contrib/vm/run is there");
    let stderr = child.stderr.take().expect("it is piped");
    let complaints = thread::spawn(move || pass_on(stderr));
    let stdout = child.stdout.take().expect("it is piped");
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        match line.strip_prefix(meter::QUESTION) {
            Some(number) => answer(&answers, number, cpu_below(child.id())),
            None => println!("{line}"),
        }
    }
    let status = child.wait().expect("it is our child");
    let complaints = complaints.join().expect("it does not panic");
    fs::remove_dir_all(&answers).ok();
    if status.code() == Some(125) && complaints.contains(" is missing: ") && !must {
        eprintln!("SKIPPED: there is no kernel to measure in, see above");
        return ExitCode::SUCCESS;
    }
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Passes on what is said on stderr, and returns it.
fn pass_on(stderr: ChildStderr) -> String {
    let mut all = String::new();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        eprintln!("{line}");
        all += &line;
        all.push('\n');
    }
    all
}

/// The file comes to be with all that is in it.
fn answer(folder: &Path, number: &str, cpu: Duration) {
    let unfinished = folder.join("unfinished");
    let written = fs::write(&unfinished, cpu.as_nanos().to_string());
    written
        .and_then(|()| fs::rename(&unfinished, folder.join(number)))
        .expect("the folder is ours");
}

/// CPU time of all processes below `root`, and of those that ended there and were waited for.
fn cpu_below(root: u32) -> Duration {
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("there is /proc").flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        processes.extend(pid.and_then(|pid| Some((pid, fields(pid)?))));
    }
    let is_below = |mut pid: u32| {
        while pid > 1 && pid != root {
            pid = processes.get(&pid).map_or(0, |fields| u32::try_from(fields[1]).unwrap_or(0));
        }
        pid == root
    };
    processes.iter().filter(|(pid, _)| is_below(**pid)).map(|(pid, fields)| cpu(*pid, fields)).sum()
}

/// The numbers of /proc/PID/stat from the state on, which is 0 here: the parent is the second, CPU
/// time is the twelfth to the fifteenth.
fn fields(pid: u32) -> Option<Vec<u64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect())
}

/// The kernel gives times of processes in hundredths of a second, and of living threads exactly.
fn cpu(pid: u32, fields: &[u64]) -> Duration {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|hz| u64::try_from(hz).ok());
    let tick = Duration::from_secs(1).div_f64(ticks.unwrap_or(100) as f64);
    let times = |numbers: &[u64]| tick.mul_f64(numbers.iter().sum::<u64>() as f64);
    let own = times(&fields[11..13]).max(cpu_of_threads(pid));
    own + times(&fields[13..15])
}

fn cpu_of_threads(pid: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let nanoseconds = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}
