//! Tests that need device-mapper, run in a kernel of their own by `contrib/vm/run`: User-Mode
//! Linux, or the one whose folder `TEST_KERNEL` names, with two CPUs.
//!
//! Such a test begins with
//!
//! ```text
//! if !vm::inside("name_of_the_test") {
//!     return;
//! }
//! ```
//!
//! Outside it boots a kernel, runs that one test of the same program in there, and returns; inside
//! the test goes on, as root.

#![allow(dead_code)] // each file of tests uses its share

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use dmfilemapd::dm::Device;

const INSIDE: &str = "TEST_IN_VM";
const KERNEL: &str = "TEST_KERNEL";

/// How long the kernel of a test may run, in seconds, and its memory. An emulated one gets more; as
/// it is built for 8,192 CPUs, each region takes 128 KiB of it.
const LIMITS: [&str; 4] = ["-t", "1800", "-m", "1G"];
const LIMITS_EMULATED: [&str; 4] = ["-t", "3600", "-m", "2G"];

/// Whether this is the kernel in which the test `name` is to run; if not, the test has run when
/// this returns.
///
/// # Panics
///
/// The test failed, or did not run; or the host lacks what it takes, and `CI` is set or a kernel
/// was asked for by name.
pub fn inside(name: &str) -> bool {
    inside_of(env::var_os(KERNEL), name)
}

/// Likewise, but User-Mode Linux it is, whatever kernel the environment names: for what depends on
/// its version or the number of its CPUs.
///
/// # Panics
///
/// As [`inside`].
pub fn inside_uml(name: &str) -> bool {
    inside_of(None, name)
}

fn inside_of(kernel: Option<OsString>, name: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let must = env::var_os("CI").is_some() || kernel.is_some();
    let output = boot(kernel, name);
    let (stdout, stderr) = text_of(&output);
    if output.status.code() == Some(125) && stderr.contains(" is missing: ") {
        assert!(!must, "{name} cannot run here: {stderr}");
        // Not with a macro: what those print is shown only if the test fails.
        let _ = writeln!(io::stderr(), "SKIPPED {name}: {}", stderr.trim_end());
        return false;
    }
    print!("{stdout}");
    eprint!("{stderr}");
    assert!(output.status.success(), "{name}: {} in the kernel of vm/run", output.status);
    assert!(stdout.contains("test result: ok. 1 passed;"), "{name} is not the name of one test");
    false
}

/// Runs the test in the kernel of that folder, or in User-Mode Linux.
fn boot(kernel: Option<OsString>, name: &str) -> Output {
    let runner = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/vm/run");
    let limits = if kernel.is_some() { LIMITS_EMULATED } else { LIMITS };
    let emulated = kernel.into_iter().flat_map(|folder| ["-q".into(), folder]);
    Command::new(&runner)
        .args(emulated)
        .args(limits)
        .arg("--")
        // As the command itself it is seen in there, wherever it lies.
        .arg(env::current_exe().expect("the test knows its program"))
        .env(INSIDE, "1")
        .args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", runner.display()))
}

/// Runs a script with `sh -e` and returns what it printed.
///
/// # Panics
///
/// It failed.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).output();
    let output = output.expect("there is a shell");
    let (stdout, stderr) = text_of(&output);
    assert!(output.status.success(), "{script}\n{}\n{stdout}{stderr}", output.status);
    stdout
}

/// Lets the test write to folders of the host, of which the host sees nothing.
pub fn make_writable(folders: &[&str]) {
    for folder in folders {
        sh(&format!(
            "mkdir -p /run/new{folder} /run/work{folder}
             mount -t overlay overlay {folder} \
                 -o lowerdir={folder},upperdir=/run/new{folder},workdir=/run/work{folder}"
        ));
    }
}

/// Makes a device-mapper device over the whole of `/dev/ram{ramdisk}`; returns its node.
pub fn linear(name: &str, ramdisk: u32) -> PathBuf {
    let sectors = sh(&format!("blockdev --getsz /dev/ram{ramdisk}"));
    table(name, &format!("0 {} linear /dev/ram{ramdisk} 0", sectors.trim_end()))
}

/// Makes a device-mapper device with a table of one line; returns its node.
pub fn table(name: &str, table: &str) -> PathBuf {
    sh(&format!("DM_DISABLE_UDEV=1 dmsetup create {name} --table '{table}'"));
    Path::new("/dev/mapper").join(name)
}

/// The device behind a node.
pub fn device(node: &Path) -> Device {
    let number = node.metadata().unwrap_or_else(|error| panic!("{}: {error}", node.display()));
    let (major, minor) = (nix::libc::major(number.rdev()), nix::libc::minor(number.rdev()));
    Device { major, minor }
}

fn text_of(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}
