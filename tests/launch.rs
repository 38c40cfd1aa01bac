//! Starting a dmfilemapd from another program, with scripts that stand for it.

#![allow(clippy::unwrap_used)] // all of this is a test

use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dmfilemapd::compat::Legacy;
use dmfilemapd::launch::{Error, Launch, STDERR_MAX};
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::Mode;
use tempfile::TempDir;

/// A folder with a program in it, and a file to pass to the program.
struct Stage {
    dir: TempDir,
    program: PathBuf,
    file: File,
}

impl Stage {
    /// The program records how it was started, in files beside it, and then runs `script`.
    fn new(script: &str) -> Stage {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        let record = "\
            #!/bin/sh\n\
            dir=${0%/*}\n\
            printf '%s\\0' \"$@\" >\"$dir/args\"\n\
            stat -Lc %d:%i /proc/self/fd/$1 >\"$dir/inode\"\n\
            readlink /proc/$$/fd/2 >\"$dir/stderr\"\n\
            printf %s \"$PATH\" >\"$dir/path\"\n";
        // Another process writes it: if this one did, a child that another test forks meanwhile
        // would have it open for writing, and then it cannot be executed.
        let mut writer = Command::new("sh");
        writer.args(["-c", "cat >\"$0\" && chmod +x \"$0\""]).arg(&program).stdin(Stdio::piped());
        let mut writer = writer.spawn().unwrap();
        let text = record.to_owned() + script + "\n";
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());

        fs::write(dir.path().join("data"), "data").unwrap();
        let file = File::open(dir.path().join("data")).unwrap();
        Stage { dir, program, file }
    }

    fn launch<'a>(&'a self, path: &'a Path) -> Launch<'a> {
        Launch { program: &self.program, ..Launch::new(self.file.as_fd(), RegionId(7), path) }
    }

    fn recorded(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap().trim_end().to_owned()
    }

    /// The arguments that the program got.
    fn args(&self) -> Vec<OsString> {
        let args = fs::read(self.dir.path().join("args")).unwrap();
        let args = args.strip_suffix(b"\0").unwrap().split(|byte| *byte == 0);
        args.map(|arg| OsString::from_vec(arg.to_vec())).collect()
    }

    /// The arguments, which are good ones, for a descriptor on which the program has the file.
    fn passed(&self) -> Legacy {
        let data = self.file.metadata().unwrap();
        assert_eq!(self.recorded("inode"), format!("{}:{}", data.dev(), data.ino()));
        assert_eq!(self.args().len(), 6);
        Legacy::parse(&self.args()).unwrap()
    }
}

fn stderr_of_this_process() -> String {
    fs::read_link("/proc/self/fd/2").unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_daemon_gets_lvm2s_arguments_and_the_file() {
    let stage = Stage::new("exit 0");
    let path = Path::new(OsStr::from_bytes(b"/a file \xff\n"));
    stage.launch(path).start().unwrap();

    let Legacy { fd, group, path: passed, mode, foreground, log_level } = stage.passed();
    assert!(fd > 2);
    assert_eq!((group, passed.as_path(), mode), (RegionId(7), path, Mode::Inode));
    assert_eq!((foreground, log_level), (false, 0));
    assert_eq!(stage.recorded("path"), std::env::var("PATH").unwrap());
    assert!(stage.recorded("stderr").starts_with("/memfd:"));
}

#[test]
fn what_is_set_is_passed_on() {
    let stage = Stage::new("exit 0");
    let launch = stage.launch(Path::new("/f"));
    for log_level in 1..=3 {
        Launch { mode: Mode::Path, log_level, ..launch }.start().unwrap();
        let passed = stage.passed();
        assert_eq!((passed.mode, passed.log_level), (Mode::Path, log_level));
        assert_eq!(stage.recorded("stderr"), stderr_of_this_process());
    }
    Launch { group: RegionId::MAX, ..launch }.start().unwrap();
    assert_eq!(stage.passed().group, RegionId::MAX);
}

#[test]
fn the_descriptor_is_above_stdio_wherever_the_file_is_open() {
    let stage = Stage::new("exit 0");
    for file in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        let file: BorrowedFd<'_> = file;
        Launch { file, ..stage.launch(Path::new("/f")) }.start().unwrap();
        assert!(Legacy::parse(&stage.args()).unwrap().fd > 2);
    }
}

#[test]
fn a_program_without_a_slash_is_found_in_path() {
    let stage = Stage::new("");
    let launch = stage.launch(Path::new("/f"));
    assert_eq!(
        Launch::new(launch.file, launch.group, launch.path).program,
        Path::new("dmfilemapd")
    );
    Launch { program: Path::new("true"), ..launch }.start().unwrap();
    let error = Launch { program: Path::new("false"), ..launch }.start().unwrap_err();
    assert_eq!(error.to_string(), "false failed to start (exit status: 1)");
}

#[test]
fn a_missing_program_is_an_error_of_its_own() {
    let stage = Stage::new("");
    let launch = stage.launch(Path::new("/f"));
    let cases = [
        ("/nowhere/dmfilemapd", "no program /nowhere/dmfilemapd; install dmfilemapd there"),
        ("dmfilemapd-of-nobody", "no dmfilemapd-of-nobody in PATH; install it, or give its path"),
    ];
    for (program, text) in cases {
        let launch = Launch { program: Path::new(program), ..launch };
        for error in [launch.start().unwrap_err(), launch.start_foreground().unwrap_err()] {
            assert!(matches!(&error, Error::NotFound { program: p } if p == Path::new(program)));
            assert_eq!(error.to_string(), format!("there is {text}"));
        }
    }
}

#[test]
fn a_program_that_cannot_be_started_is_the_kernels_error() {
    let stage = Stage::new("");
    let data = stage.dir.path().join("data"); // not executable
    let launch = Launch { program: &data, ..stage.launch(Path::new("/f")) };
    let error = launch.start().unwrap_err();
    assert_eq!(error.to_string(), format!("cannot start {}", data.display()));
    let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.kind(), io::ErrorKind::PermissionDenied);

    let nul = Path::new("/a\0b");
    assert!(matches!(stage.launch(nul).start(), Err(Error::Io { doing: "start", .. })));
}

#[test]
fn a_daemon_that_fails_to_start_is_heard() {
    let stage = Stage::new("echo '<no device-mapper>  ' >&2; exit 3");
    let error = stage.launch(Path::new("/f")).start().unwrap_err();
    let text =
        format!("{} failed to start (exit status: 3): <no device-mapper>", stage.program.display());
    assert_eq!(error.to_string(), text);
    let Error::Failed { program, status, stderr } = error else { panic!("{error}") };
    assert_eq!((program, status.code()), (stage.program.clone(), Some(3)));
    assert_eq!(stderr, "<no device-mapper>");

    let talkative = Launch { log_level: 1, ..stage.launch(Path::new("/f")) };
    let Err(Error::Failed { stderr, .. }) = talkative.start() else { panic!("it started") };
    assert_eq!(stderr, "");
}

/// More than a pipe holds: it must neither stop the program nor fill the memory of the caller.
#[test]
fn a_long_complaint_is_cut() {
    let stage = Stage::new("yes complaint | head -c 1000000 >&2; exit 1");
    let Err(Error::Failed { stderr, .. }) = stage.launch(Path::new("/f")).start() else {
        panic!("it started")
    };
    assert!(stderr.starts_with("complaint\ncomplaint\n"));
    assert!((STDERR_MAX - 1..=STDERR_MAX).contains(&stderr.len()), "{}", stderr.len());
}

/// Ends what waits at the other end of a fifo.
fn release(fifo: &Path) {
    fs::write(fifo, "go\n").unwrap();
}

#[test]
fn a_daemon_that_keeps_stderr_open_keeps_nobody_waiting() {
    let stage = Stage::new("mkfifo \"$dir/fifo\"; read -r line <\"$dir/fifo\" &");
    stage.launch(Path::new("/f")).start().unwrap();
    release(&stage.dir.path().join("fifo"));
}

#[test]
fn in_the_foreground_the_child_is_the_callers() {
    let stage = Stage::new("read -r line <\"$dir/fifo\"; exit 5");
    let fifo = stage.dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut child = stage.launch(Path::new("/f")).start_foreground().unwrap();
    assert!(child.try_wait().unwrap().is_none());
    release(&fifo);
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(stage.passed().foreground);
    assert_eq!(stage.recorded("stderr"), stderr_of_this_process());
}

#[test]
fn a_dropped_child_goes_on() {
    let stage = Stage::new("read -r line <\"$dir/fifo\"; echo \"$line\" >\"$dir/fifo\"");
    let fifo = stage.dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    drop(stage.launch(Path::new("/f")).start_foreground().unwrap());
    release(&fifo);
    assert_eq!(fs::read_to_string(&fifo).unwrap(), "go\n");
}

#[test]
fn bad_arguments_are_refused_before_anything_is_started() {
    let stage = Stage::new("");
    let relative = stage.launch(Path::new("f")).start().unwrap_err();
    assert!(matches!(&relative, Error::RelativePath(path) if path == Path::new("f")));
    assert!(relative.to_string().contains("path f is relative"), "{relative}");

    let launch = stage.launch(Path::new("/f"));
    let level = Launch { log_level: 4, ..launch }.start().unwrap_err();
    assert!(matches!(level, Error::LogLevel(4)));
    assert_eq!(level.to_string(), "there is no log level 4; give 0 to 3");

    let group = Launch { group: RegionId(RegionId::MAX.0 + 1), ..launch }.start_foreground();
    let group = group.unwrap_err();
    assert!(matches!(group, Error::Group(RegionId(0x8000_0000))));
    assert_eq!(group.to_string(), "there is no group id 2147483648; give 0 to 2147483647");
    assert!(!stage.dir.path().join("args").exists());
}

/// Programs that other threads start meanwhile must not hold the file open.
#[test]
fn nobody_else_inherits_the_file() {
    let stage = Stage::new("exit 0");
    let name = stage.dir.path().join("data");
    std::thread::scope(|scope| {
        let launches = scope.spawn(|| {
            (0..20).for_each(|_| stage.launch(Path::new("/f")).start().unwrap());
        });
        while !launches.is_finished() {
            let listing = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
            let listing = String::from_utf8(listing.stdout).unwrap();
            assert!(!listing.contains(name.to_str().unwrap()), "{listing}");
        }
    });
}
