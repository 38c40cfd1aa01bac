//! With how little the service works.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::{let_look, text, under, write, write_pieces};
use crate::guest::{Daemon, Disk, assert_follows};
use crate::service::{aliases, configure, entry, service_command, status, told, wait_for_aliases};
use crate::vm;

/// The service as root with these capabilities, and no way to more.
fn serve_with(capabilities: &[&str]) -> Daemon {
    let lower = |name: &&str| name.strip_prefix("CAP_").unwrap().to_lowercase();
    let named: Vec<String> = capabilities.iter().map(lower).collect();
    let bounding = format!("--bounding-set=-all,+{}", named.join(",+"));
    let setpriv = ["setpriv", "--no-new-privs", "--inh-caps=-all", &bounding];
    // Fewer descriptors than there may be, which it takes no capability to change.
    let prlimit = ["prlimit", "--nofile=256:4096", "--"];
    Daemon::start(&mut under(&prlimit, &under(&setpriv, &service_command(""))))
}

/// A disk with a file that only its owner may even see, and who is not root.
fn private(ramdisk: u32, kind: &str) -> (Disk, PathBuf) {
    let disk = Disk::format(ramdisk, kind, "");
    let [home, file] = ["home", "home/data"].map(|name| disk.path(name));
    fs::create_dir(&home).unwrap();
    write_pieces(&file, 2);
    let (home, data) = (home.display(), file.display());
    vm::sh(&format!("chown -R 1234:1234 {home}; chmod 700 {home}; chmod 600 {data}"));
    (disk, file)
}

fn limits(pid: u32) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let open = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    open.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(":")
}

#[test]
fn those_of_the_unit_are_enough_and_none_is_too_much() {
    if !vm::inside("capabilities::those_of_the_unit_are_enough_and_none_is_too_much") {
        return;
    }
    let all = crate::of_unit("CapabilityBoundingSet");
    let all: Vec<&str> = all.split(' ').collect();
    assert_eq!(all, ["CAP_SYS_ADMIN", "CAP_DAC_READ_SEARCH", "CAP_LEASE"]);
    let without = |one: &str| all.iter().copied().filter(|other| *other != one).collect::<Vec<_>>();

    for (ramdisk, kind) in [(1, "ext4"), (2, "xfs"), (3, "f2fs")] {
        enough(&all, ramdisk, kind);
    }
    let (disk, file) = private(0, "ext4");
    configure(&entry(&disk, "home/*"));

    let mut service = serve_with(&without("CAP_SYS_ADMIN"));
    assert_eq!(service.wait_for_end().code(), Some(77), "{}", service.said());
    service.wait_for("device-mapper wants CAP_SYS_ADMIN");

    let service = serve_with(&without("CAP_DAC_READ_SEARCH"));
    service.wait_for("/home: Permission denied");
    assert_eq!(status().service.files, 0);
    drop(service);

    configure("");
    let service = serve_with(&without("CAP_LEASE"));
    service.wait_for("following the files of ");
    told(&format!("add {}", text(&file)));
    assert_follows(&disk, "at the start", &file, "data");
    let mut used = open_elsewhere(&file);
    fs::remove_file(&file).unwrap();
    service.wait_for("it is unlinked and nobody has it open");
    assert!(used.is_running(), "which is not so");
}

/// A file is followed that a rule wants, and one that was added as long as it is open somewhere.
fn enough(capabilities: &[&str], ramdisk: u32, kind: &str) {
    let (disk, file) = private(ramdisk, kind);
    configure(&entry(&disk, "home/*"));
    let service = serve_with(capabilities);
    service.wait_for("following the files of ");
    assert_eq!(limits(service.pid()), "4096:4096");
    wait_for_aliases(&disk, &["data"]);
    write(&file, 512, 64);
    assert_follows(&disk, kind, &file, "data");

    configure("");
    told("reload");
    wait_for_aliases(&disk, &[]);
    told(&format!("add {}", text(&file)));
    assert_follows(&disk, kind, &file, "data");
    let used = open_elsewhere(&file);
    fs::remove_file(&file).unwrap();
    let_look(service.pid(), 10);
    assert_eq!(aliases(&disk), ["data"], "somebody has it open on {kind}");
    drop(used);
    wait_for_aliases(&disk, &[]);
}

/// Opened by a process whose descriptors the service may not see.
fn open_elsewhere(file: &Path) -> Daemon {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("exec 3<\"$0\"; echo open; exec tail -f /dev/null").arg(file);
    let process = Daemon::start(&mut shell);
    process.wait_for("open");
    process
}
