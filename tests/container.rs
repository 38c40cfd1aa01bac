//! The service in a container: with nothing but what `contrib/container/compose.yaml` gives it.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/dialects.rs"]
mod dialects;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/service.rs"]
mod service;
#[path = "support/tools.rs"]
mod tools;
#[path = "support/vm.rs"]
mod vm;

use std::fs::{self, File};
use std::process::Command;

use dmfilemapd::request::DeviceState;

use nix::sys::signal::Signal;

use daemon::{
    PROGRAM, dmstats, let_look, newer, only_daemon, signal, succeed, wait_for_end, write,
    write_pieces,
};
use guest::{Daemon, Disk, assert_follows, wait_until};
use service::{status, wait_for_aliases};

const COMPOSE: &str = include_str!("../contrib/container/compose.yaml");

/// The values of a list in the file, which has each key once.
fn list(key: &str) -> Vec<&'static str> {
    let mut lines = COMPOSE.lines().skip_while(|line| line.trim() != format!("{key}:"));
    lines.next().unwrap_or_else(|| panic!("there is no {key}"));
    let values = lines.map(str::trim).filter(|line| !line.starts_with('#'));
    values.map_while(|line| line.strip_prefix("- ")).collect()
}

#[test]
fn it_has_the_capabilities_of_the_unit() {
    let unit = include_str!("../contrib/systemd/dmfilemapd.service");
    let given = list("cap_add").iter().map(|name| format!("CAP_{name}")).collect::<Vec<_>>();
    assert!(unit.contains(&format!("CapabilityBoundingSet={}\n", given.join(" "))), "{given:?}");
    assert_eq!(list("cap_drop"), ["ALL"]);
}

/// A container as the file describes it, by bubblewrap: a root that is empty but for the program
/// and, since a test's program is not static, its libraries; namespaces of its own; as podman has
/// it, a part of sysfs hidden. What is to be followed lies below /mnt in here.
fn contained() -> Daemon {
    let mut bwrap = Command::new("bwrap");
    bwrap.args(["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--as-pid-1"]);
    bwrap.args(["--cap-drop", "ALL"]);
    for capability in list("cap_add") {
        bwrap.args(["--cap-add", &format!("CAP_{capability}")]);
    }
    for folder in ["/usr", "/lib", "/lib64"] {
        bwrap.args(["--ro-bind", folder, folder]);
    }
    bwrap.args(["--ro-bind", PROGRAM, PROGRAM, "--proc", "/proc", "--dev", "/dev"]);
    bwrap.args(["--ro-bind", "/sys", "/sys", "--tmpfs", "/sys/dev/block"]);
    for device in list("devices") {
        bwrap.args(["--dev-bind", device, device]);
    }
    for volume in list("volumes").iter().map(|volume| volume.replace("/srv", "/mnt")) {
        let (from, rest) = volume.split_once(':').unwrap();
        let (to, how) = rest.split_once(':').unwrap_or((rest, "rw"));
        let bind = if how.split(',').any(|word| word == "ro") { "--ro-bind" } else { "--bind" };
        bwrap.args([bind, from, to]);
    }
    bwrap.args(["--", PROGRAM, "run"]);
    Daemon::start(&mut bwrap)
}

#[test]
fn it_follows_files_of_the_host() {
    if tools::lack("it_follows_files_of_the_host", &[("bwrap", "bubblewrap")])
        || !vm::inside("it_follows_files_of_the_host")
    {
        return;
    }
    guest::write_back_soon();
    vm::make_writable(&["/etc", "/var/lib"]);
    vm::sh("mkdir -p /etc/dmfilemapd /var/lib/dmfilemapd /run/dmfilemapd; mount --make-rshared /");
    let config =
        "interval = \"100ms\"\nrescan_interval = \"200ms\"\n[[file]]\npath = \"/mnt/*/*\"\n";
    fs::write("/etc/dmfilemapd/config.toml", config).unwrap();
    let disk = Disk::format(0, "ext4", "");
    let [ruled, handed] = ["ruled", "sub/<handed>"].map(|name| disk.path(name));
    vm::sh("mkdir -m 700 /mnt/disk0/sub");
    for file in [&ruled, &handed] {
        write_pieces(file, 2);
    }
    vm::sh("chown -R 1234:1234 /mnt/disk0; chmod 600 /mnt/disk0/ruled");
    let container = contained();
    container.wait_for("following the files of ");
    assert_follows(&disk, "a file of somebody else", &ruled, "ruled");

    succeed(dmstats("create --filemap").arg(&handed));
    write(&handed, 512, 64);
    assert_follows(&disk, "one that was handed over", &handed, newer("<handed>"));
    let pid = only_daemon();
    let used = File::open(&handed).unwrap();
    fs::remove_file(&handed).unwrap();
    let_look(pid, 10);
    assert!(disk.group(newer("<handed>")).is_some(), "{}", container.said());
    drop(used); // until now it was in use, out of sight
    wait_for_aliases(&disk, &["ruled"]);

    let later = Disk::format(1, "xfs", "");
    write_pieces(&later.path("new"), 2);
    assert_follows(&later, "on a disk that was mounted later", &later.path("new"), "new");
    let expected = ["disk0", "disk1"].map(|name| (name.to_owned(), DeviceState::Ok));
    wait_until("both devices answer", || {
        let seen: Vec<_> = status().devices.into_iter().map(|at| (at.name, at.state)).collect();
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    });

    signal(pid, Signal::SIGTERM);
    wait_for_end(pid);
    assert_eq!(disk.groups().len() + later.groups().len(), 2, "they stay");
}
