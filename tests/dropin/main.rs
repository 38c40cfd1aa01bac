//! What lvm2's daemon of this name promises, with the `dmstats` that Debian ships; and what that
//! daemon gets wrong.

#![allow(clippy::unwrap_used)] // all of this is a test

mod background;
mod ends;
mod faults;
mod refusals;
mod start;
mod traces;

#[path = "../support/daemon.rs"]
mod daemon;
#[path = "../support/dialects.rs"]
mod dialects;
#[path = "../support/guest.rs"]
mod guest;
#[path = "../support/vm.rs"]
mod vm;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use daemon::{Outcome, by_hand, create_group, daemons, outcome, signal, text, write};
use guest::{Daemon, Disk};
use vm;

fn ends_well_and_leaves_the_group(disk: &Disk, daemon: &mut Daemon, by: Signal) {
    let before = disk.listing();
    signal(daemon.pid(), by);
    assert_eq!(daemon.wait_for_end().code(), Some(0), "{by}");
    assert_eq!(disk.listing(), before, "{by}");
}

/// It fails with this on stderr and nothing on stdout, and nothing of it goes on.
fn refused(command: &mut Command, says: &str) {
    let Outcome { status, stdout, stderr } = outcome(command);
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{command:?}: {stderr}");
    assert!(stderr.starts_with("dmfilemapd: ") && stderr.contains(says), "{command:?}: {stderr}");
    assert_eq!(daemons(), [0; 0], "{command:?}");
}

/// A daemon in the foreground, for a group of its own.
fn follow(file: &Path, alias: &str, mode: &str) -> Daemon {
    let group = create_group(file, &format!("--alias {alias}"));
    let daemon = Daemon::start(&mut by_hand(file, group, &format!("{mode} 1 2")));
    daemon.wait_for("Updated("); // has looked for the first time
    daemon
}

/// Lets the kernel write back what is older than 10 ms, every 10 ms. That also makes the time
/// short in which a daemon that starts now expects a change after each change.
fn write_back_at_once() {
    for name in ["expire", "writeback"] {
        fs::write(format!("/proc/sys/vm/dirty_{name}_centisecs"), "1").unwrap();
    }
}

/// A file on each of the two devices of an xfs; the one there does not lie at its very start.
fn disk_with_realtime() -> (Disk, [PathBuf; 2]) {
    let realtime = vm::linear("realtime", 1);
    let on = realtime.display();
    let disk = Disk::format_and_mount(0, "xfs", &format!("-r rtdev={on}"), &format!("rtdev={on}"));
    let [first, there, here] = ["first", "there", "here"].map(|name| disk.path(name));
    for file in [&first, &there] {
        vm::sh(&format!("xfs_io -R -f -c 'pwrite 0 64k' -c fsync {}", text(file)));
    }
    write(&here, 0, 64);
    (disk, [there, here])
}
