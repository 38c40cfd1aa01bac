//! What a daemon does, as strace sees it: so time can be counted in looks, and not by the clock.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guest::Daemon;

/// The file of a traced daemon's system calls.
#[derive(Debug)]
pub struct Trace(PathBuf);

/// A moment in a trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Trace {
    /// Starts `dmfilemapd run` with these arguments under strace, which takes its time: so it looks
    /// less often than it would alone.
    pub fn run(args: &[&str], files: &[&Path]) -> (Daemon, Trace) {
        let path = PathBuf::from("/tmp/trace");
        let program = Daemon::command();
        let mut command = Command::new("strace");
        // -D: the daemon is our child, and strace its.
        command.args(["-D", "-f", "--seccomp-bpf", "-y", "-o"]).arg(&path);
        command.args(["-e", "trace=fstat,ioctl", "-e", "abbrev=fstat", "-s", "16"]);
        for (name, value) in program.get_envs() {
            command.env(name, value.unwrap());
        }
        command.arg(program.get_program()).args(program.get_args()).args(args).args(files);
        command.env("DMFILEMAPD_INTERVAL", "250ms");
        let daemon = Daemon::start(&mut command);
        daemon.wait_for("following ");
        (daemon, Trace(path))
    }

    /// The end of what has been written so far.
    pub fn now(&self) -> Moment {
        Moment(fs::metadata(&self.0).unwrap().len())
    }

    fn since(&self, moment: Moment) -> String {
        let mut file = File::open(&self.0).unwrap();
        file.seek(SeekFrom::Start(moment.0)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How often the file has been looked at since `moment`.
    pub fn looks(&self, file: &Path, moment: Moment) -> usize {
        looks(&self.since(moment), file)
    }

    /// How often the file has been looked at from `moment` until its group was last changed, or
    /// nothing if no group was. A look at a file that is at rest is one call of stat.
    pub fn looks_until_change(&self, clock: &Path, moment: Moment) -> Option<usize> {
        let text = self.since(moment);
        let change = changes(&text).last()?;
        Some(looks(&text[..change], clock))
    }

    /// How often the file `clock` has been looked at since `file` was last asked for its extents.
    pub fn looks_since_map(&self, clock: &Path, file: &Path) -> usize {
        let text = self.since(Moment::default());
        let read = text.rfind(&format!("<{}>, FS_IOC_FIEMAP", file.display())).unwrap_or(0);
        looks(&text[read..], clock)
    }

    /// The messages that changed a group since `moment`, for people.
    pub fn changes(&self, moment: Moment) -> Vec<String> {
        let text = self.since(moment);
        let line = |at: usize| text[at..].split('"').next().unwrap_or_default().to_owned();
        changes(&text).map(line).collect()
    }
}

/// Where in the text are messages that change regions.
fn changes(text: &str) -> impl Iterator<Item = usize> {
    let change = |rest: &str| {
        ["@stats_create", "@stats_delete", "@stats_set_a"].iter().any(|word| rest.starts_with(word))
    };
    text.match_indices("@stats_").map(|(at, _)| at).filter(move |at| change(&text[*at..]))
}

fn looks(text: &str, file: &Path) -> usize {
    let file = format!("<{}>", file.display());
    text.lines().filter(|line| line.contains("fstat(") && line.contains(&file)).count()
}
