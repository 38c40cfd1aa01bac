//! The service as it is started in a test, and what it is asked on its socket.
//!
//! Whoever includes this file has `vm.rs`, `dialects.rs`, `guest.rs` and `daemon.rs` beside it.

#![allow(dead_code)] // each file of tests uses its share

use std::fs;
use std::path::Path;
use std::process::Command;

use dmfilemapd::request::{FileStatus, Status};

use crate::daemon::{Outcome, PROGRAM, command, outcome};
use crate::guest::{Daemon, Disk, wait_until};

pub const CONFIG: &str = "/tmp/etc/config.toml";
pub const SOCKET: &str = "/run/dmfilemapd/control.sock";

/// Makes the file a configuration.
pub fn configure(text: &str) {
    fs::create_dir_all(Path::new(CONFIG).parent().unwrap()).unwrap();
    fs::write(CONFIG, text).unwrap();
}

/// The entry for a pattern in the top folder of a disk.
pub fn entry(disk: &Disk, pattern: &str) -> String {
    format!("[[file]]\npath = \"{}\"\n", disk.path(pattern).display())
}

pub fn service_command(options: &str) -> Command {
    let mut command = command(PROGRAM);
    command.args(["run", "--config-dir", "/tmp/etc"]);
    command.env("DMFILEMAPD_RESCAN_INTERVAL", "200ms"); // options override it
    command.args(options.split_whitespace());
    command
}

/// A service that answers.
pub fn serve(options: &str) -> Daemon {
    let service = Daemon::start(&mut service_command(options));
    service.wait_for("following the files of ");
    service
}

/// What a command like `status --json` comes to.
pub fn ask(words: &str) -> Outcome {
    outcome(command(PROGRAM).args(words.split_whitespace()))
}

pub fn told(words: &str) -> String {
    let Outcome { status, stdout, stderr } = ask(words);
    assert_eq!((status, stderr.as_str()), (Some(0), ""), "{words}: {stdout}");
    stdout
}

/// Asserts that a command fails with this exit status and says this.
pub fn refused(words: &str, exit: i32, says: &str) {
    let Outcome { status, stdout, stderr } = ask(words);
    assert_eq!((status, stdout.as_str()), (Some(exit), ""), "{words}: {stderr}");
    assert!(stderr.starts_with("dmfilemapd: ") && stderr.contains(says), "{words}: {stderr}");
}

pub fn status() -> Status {
    serde_json::from_str(&told("status --json")).unwrap()
}

pub fn status_of(file: &Path) -> Option<FileStatus> {
    status().files.into_iter().find(|status| status.path.0 == file)
}

/// Waits until the service shows the file in this state.
pub fn wait_for_state(file: &Path, state: &str) -> FileStatus {
    wait_until(&format!("{} is {state}", file.display()), || match status_of(file) {
        Some(status) if status.state == state => Ok(status),
        other => Err(format!("{other:?}")),
    })
}

/// The aliases of all groups, sorted.
pub fn aliases(disk: &Disk) -> Vec<String> {
    let groups = disk.groups().into_values();
    let mut aliases: Vec<String> =
        groups.map(|group| String::from_utf8(group.alias).unwrap()).collect();
    aliases.sort();
    aliases
}

pub fn wait_for_aliases(disk: &Disk, expected: &[&str]) {
    wait_until(&format!("the groups are {expected:?}"), || {
        let found = aliases(disk);
        if found == expected { Ok(()) } else { Err(format!("{found:?}\n{}", disk.listing())) }
    });
}
