//! The service in a real kernel: what it takes up, what is asked of it, and what it leaves.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/dialects.rs"]
mod dialects;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/service.rs"]
mod service;
#[path = "support/vm.rs"]
mod vm;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use daemon::{
    Outcome, by_hand, create_group, daemons, dmstats, newer, only_daemon, outcome, signal, succeed,
    text, wait_for_end, write, write_pieces,
};
use guest::{Daemon, Disk, assert_all_follow, assert_follows, wait_until};
use service::{
    SOCKET, aliases, configure, entry, refused, serve, status, status_of, told, wait_for_aliases,
    wait_for_state,
};

/// Counts something in each region of the file, and returns what `dmstats` would show of it.
fn count(disk: &Disk, file: &Path, members: &[u32]) -> Vec<String> {
    vm::sh(&format!("echo 1 >/proc/sys/vm/drop_caches; cat {} >/dev/null", file.display()));
    counters(disk, members)
}

fn counters(disk: &Disk, members: &[u32]) -> Vec<String> {
    members.iter().map(|id| disk.message(&format!("@stats_print {id}"))).collect()
}

// What the configuration wants.

#[test]
fn it_follows_what_the_configuration_wants() {
    if !vm::inside("it_follows_what_the_configuration_wants") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    for folder in ["a", "b"] {
        fs::create_dir(disk.path(folder)).unwrap();
    }
    let [one, two] = ["a/vm.img", "b/vm.img"].map(|name| disk.path(name));
    write_pieces(&one, 3);
    write_pieces(&two, 2);
    fs::write("/tmp/memory.img", "x").unwrap();
    let memory = "[[file]]\npath = \"/tmp/*.img\"\n";
    configure(&format!("max_files = 4\n{}{memory}", entry(&disk, "*/*.img")));
    let service = serve("");
    assert_all_follow(&disk, "at the start", &[(&one, "a/vm.img"), (&two, "b/vm.img")]);

    let unfit = wait_for_state(Path::new("/tmp/memory.img"), "unfit");
    assert!(unfit.last_error.unwrap().contains("FIEMAP"), "the reason");

    let new = disk.path("a/new.img");
    write_pieces(&new, 2);
    write(&two, 512, 64);
    assert_all_follow(&disk, "a new one", &[(&new, "new.img"), (&two, "b/vm.img")]);
    let said = service.said();
    assert_eq!(said.matches("/tmp/memory.img: not followed").count(), 1, "{said}");

    let more = disk.path("a/zz.img");
    write_pieces(&more, 1);
    service.wait_for("there are more files than 4");
    wait_for_aliases(&disk, &["a/vm.img", "b/vm.img", "new.img", "zz.img"]);
    write_pieces(&disk.path("a/zzz.img"), 1);
    daemon::let_look(service.pid(), 20); // several scans
    assert_eq!(status().service.files, 4);
    for gone in [&more, &one] {
        fs::remove_file(gone).unwrap();
    }
    wait_for_aliases(&disk, &["b/vm.img", "new.img", "zzz.img"]);
    disk.wait_until_no_strays("the other members are gone, too");
}

#[test]
fn a_reload_keeps_what_is_wanted_still() {
    if !vm::inside("a_reload_keeps_what_is_wanted_still") {
        return;
    }
    let disk = Disk::format(0, "xfs", "");
    let [kept, dropped, new] = ["kept", "dropped", "new"].map(|name| disk.path(name));
    for file in [&kept, &dropped, &new] {
        write_pieces(file, 3);
    }
    configure(&(entry(&disk, "kept") + &entry(&disk, "dropped")));
    let mut service = serve("");
    assert_all_follow(&disk, "at the start", &[(&kept, "kept"), (&dropped, "dropped")]);
    let before = disk.group("kept").unwrap();
    let counted = count(&disk, &kept, &before.1.members);

    configure(&("interval = \"50ms\"\n".to_owned() + &entry(&disk, "kept") + &entry(&disk, "new")));
    signal(service.pid(), Signal::SIGHUP);
    wait_for_aliases(&disk, &["kept", "new"]);
    assert_eq!(disk.group("kept").unwrap(), before);
    assert_eq!(counters(&disk, &before.1.members), counted);

    configure("[[file]]\npath = 7\n");
    refused("reload", 1, "config.toml:2: ");
    let error = status().service.config_error.expect("it is told");
    assert!(error.contains("config.toml:2: "), "{error}");
    assert!(told("status").contains("the configuration is not in effect: "));
    signal(service.pid(), Signal::SIGHUP);
    wait_until("the log says it, too", || {
        let said = service.said();
        let count = said.matches("the configuration from before stays in force").count();
        if count == 2 { Ok(()) } else { Err(said) }
    });
    write(&kept, 512, 64);
    assert_follows(&disk, "under the old one", &kept, "kept");

    configure(&(entry(&disk, "kept") + &entry(&disk, "new") + &entry(&disk, "dropped")));
    assert!(told("reload").contains("in force, with 3 entries"));
    wait_for_aliases(&disk, &["dropped", "kept", "new"]);
    assert_eq!(status().service.config_error, None);

    // Other groups are wanted of the same file: the old one makes room for one on the new terms.
    configure(&(entry(&disk, "kept") + "precise = true\nalias = \"x-{name}\"\n"));
    told("reload");
    wait_for_aliases(&disk, &["x-kept"]);
    assert!(disk.listing().contains(" precise_timestamps"), "{}", disk.listing());
    assert_eq!(told("stop"), "ending\n");
    assert_eq!(service.wait_for_end().code(), Some(0));
}

#[test]
fn it_ends_at_once_and_leaves_the_groups_unless_told_otherwise() {
    if !vm::inside("it_ends_at_once_and_leaves_the_groups_unless_told_otherwise") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let [old, new] = ["old", "new"].map(|name| disk.path(name));
    write_pieces(&old, 2);
    configure(&entry(&disk, "*"));
    for by in [Signal::SIGTERM, Signal::SIGINT] {
        let mut service = serve("--interval 1h");
        wait_for_aliases(&disk, &["old"]);
        wait_for_state(&old, "following");
        let before = disk.listing();
        signal(service.pid(), by);
        assert_eq!(service.wait_for_end().code(), Some(0), "{by}");
        assert_eq!(disk.listing(), before, "{by}");
        assert!(!Path::new(SOCKET).exists(), "{by}");
    }
    write_pieces(&new, 2);
    for end in ["signal", "stop"] {
        let mut service = serve("--interval 1h --remove-on-exit");
        wait_for_aliases(&disk, &["new", "old"]);
        wait_for_state(&new, "following");
        match end {
            "stop" => drop(told("stop")),
            _ => signal(service.pid(), Signal::SIGTERM),
        }
        assert_eq!(service.wait_for_end().code(), Some(0), "{end}");
        assert_eq!(aliases(&disk), ["old"], "it was there before");
    }
    assert_eq!(disk.strays(), [0; 0]);
}

// What is asked.

#[test]
fn it_says_how_things_are_and_does_what_it_is_told() {
    if !vm::inside("it_says_how_things_are_and_does_what_it_is_told") {
        return;
    }
    for verb in ["status", "reload", "stop", "add /x", "remove /x"] {
        refused(verb, 69, "no service listens at /run/dmfilemapd/control.sock; start one");
    }
    let disk = Disk::format(0, "ext4", "");
    let [sparse, other] = ["sparse", "other"].map(|name| disk.path(name));
    write_pieces(&sparse, 4);
    write_pieces(&other, 1);
    configure(&entry(&disk, "sparse"));
    let mut service = serve("");
    assert_follows(&disk, "at the start", &sparse, "sparse");
    let (group, members) = disk.group("sparse").map(|(id, group)| (id, group.members)).unwrap();
    let found = status_of(&sparse).unwrap();
    assert_eq!((found.group, found.regions, found.extents), (Some(group), 4, 4), "{found:?}");
    assert_eq!(members.len(), 4);
    assert_eq!((found.mapped_bytes, found.unmapped_bytes), (64 << 10, 64 << 10), "{found:?}");
    assert_eq!((found.state.as_str(), found.device_name.as_str()), ("following", "disk0"));
    assert!((found.interval_seconds - 0.1).abs() < 1e-9 && found.lag_seconds < 60.0, "{found:?}");
    let now: u64 = vm::sh("date +%s").trim_end().parse().unwrap();
    assert!(found.last_change_unix_seconds.unwrap().abs_diff(now) < 60, "{found:?}");
    let all = status();
    assert_eq!((all.service.pid, all.service.files), (service.pid(), 1));
    assert_eq!((all.devices[0].files, all.devices[0].creates), (1, 4), "{:?}", all.devices);
    let table = told("status");
    assert!(table.contains("following inode disk0") && table.contains("64 KiB"), "{table}");
    assert!(table.trim_end().ends_with(text(&sparse)), "{table}");

    refused("status /nowhere", 1, "/nowhere");
    let one = told(&format!("status {}", text(&sparse)));
    assert!(one.contains(text(&sparse)), "{one}");
    refused("add /nowhere", 1, "No such file");
    refused("add /proc/version", 1, "FIEMAP");
    refused(&format!("add {}", text(&sparse)), 1, "is followed already");
    told(&format!("add --mode path --alias mine {}", text(&other)));
    assert_follows(&disk, "added", &other, "mine");
    assert_eq!(wait_for_state(&other, "following").mode.as_str(), "path");

    refused("remove /nowhere", 1, "/nowhere is not followed");
    told(&format!("remove {}", text(&sparse)));
    wait_for_aliases(&disk, &["mine"]);
    let next = disk.path("next");
    write(&next, 0, 16);
    configure(&(entry(&disk, "sparse") + &entry(&disk, "next")));
    told("reload");
    wait_for_aliases(&disk, &["mine", "next", "sparse"]);
    told(&format!("remove {}", text(&next)));
    wait_for_aliases(&disk, &["mine", "sparse"]);
    write(&disk.path("nothing"), 0, 16);
    daemon::let_look(service.pid(), 10); // several scans
    assert_eq!(aliases(&disk), ["mine", "sparse"]);

    let silent: Vec<UnixStream> = (0..20).map(|_| UnixStream::connect(SOCKET).unwrap()).collect();
    assert_eq!(status().service.files, 2, "though {} clients are silent", silent.len());
    assert_eq!(told("stop"), "ending\n");
    assert_eq!(service.wait_for_end().code(), Some(0));
}

// Files that lvm2's command line hands over.

/// Files that are handed over one after the other.
const FILES: usize = 50;

#[test]
fn it_takes_over_what_dmstats_starts() {
    if !vm::inside("it_takes_over_what_dmstats_starts") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    configure("");
    let names: Vec<String> = (0..FILES).map(|at| format!("<{at}>")).collect();
    let files: Vec<PathBuf> = names.iter().map(|name| disk.path(name)).collect();
    for file in &files {
        write(file, 0, 16);
    }
    let mut service = serve("");
    for file in &files {
        succeed(dmstats("create --filemap").arg(file));
    }
    assert_eq!(only_daemon(), service.pid());
    assert_eq!(status().service.files, FILES as u64);
    for file in &files {
        write(file, 512, 16);
    }
    let aliases: Vec<(&Path, &str)> =
        files.iter().zip(&names).map(|(file, name)| (file.as_path(), newer(name))).collect();
    assert_all_follow(&disk, "an append", &aliases);
    assert_eq!(only_daemon(), service.pid());
    let before = disk.listing();
    let id = disk.group(newer("<7>")).unwrap().0;
    succeed(&mut by_hand(&files[7], id, "inode"));
    assert_eq!(status().service.files, FILES as u64, "it was followed already");
    assert_eq!(disk.listing(), before);
    assert_eq!(told("stop"), "ending\n");
    assert_eq!(service.wait_for_end().code(), Some(0));
}

/// A group of the file with this alias, and who waits in the foreground while it is followed.
fn in_the_foreground(file: &Path, alias: &str) -> Daemon {
    let group = create_group(file, &format!("--alias {alias}"));
    let waiting = Daemon::start(&mut by_hand(file, group, "inode 1 1"));
    wait_for_state(file, "following");
    waiting
}

#[test]
fn who_stays_in_the_foreground_ends_with_its_file_and_its_file_with_it() {
    if !vm::inside("who_stays_in_the_foreground_ends_with_its_file_and_its_file_with_it") {
        return;
    }
    let disk = Disk::format(0, "xfs", "");
    configure("");
    let files = ["gone", "killed", "left", "alone"].map(|name| disk.path(name));
    for file in &files {
        write(file, 0, 16);
    }
    let [gone, killed, left, alone] = files.each_ref();
    let mut service = serve("");
    let mut waiting = in_the_foreground(gone, "<gone>");
    fs::remove_file(gone).unwrap();
    assert_eq!(waiting.wait_for_end().code(), Some(0));
    assert_eq!(disk.listing(), "", "with its group");

    let waiting = in_the_foreground(killed, "<killed>");
    let before = disk.listing();
    signal(waiting.pid(), Signal::SIGKILL);
    wait_until("the service lets the file go", || match status().service.files {
        0 => Ok(()),
        files => Err(format!("{files} files")),
    });
    assert_eq!(disk.listing(), before, "the group stays");

    let group = create_group(alone, "--alias <alone>");
    succeed(by_hand(alone, group, "inode").env("DMFILEMAPD_STANDALONE", "1"));
    write(alone, 512, 16);
    assert_follows(&disk, "alone", alone, newer("<alone>"));
    assert_eq!((daemons().len(), status().service.files), (2, 0));

    let mut waiting = in_the_foreground(left, "<left>");
    told("stop");
    assert_eq!(service.wait_for_end().code(), Some(0));
    write(left, 512, 16);
    assert_follows(&disk, "by the one that waited", left, newer("<left>"));
    signal(waiting.pid(), Signal::SIGTERM);
    assert_eq!(waiting.wait_for_end().code(), Some(0));
    let rest = only_daemon();
    signal(rest, Signal::SIGTERM);
    wait_for_end(rest);
}

// Filesystems that go and come.

#[test]
fn what_is_unmounted_keeps_its_group() {
    if !vm::inside("what_is_unmounted_keeps_its_group") {
        return;
    }
    guest::write_back_soon();
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 3);
    configure(&("mode = \"path\"\n".to_owned() + &entry(&disk, "*")));
    let service = serve("--full-look 1s");
    assert_follows(&disk, "at the start", &file, "data");
    let before = disk.listing();
    for _ in 0..3 {
        wait_until("it can be unmounted", || {
            let Outcome { status, stderr, .. } = outcome(Command::new("umount").arg(&disk.mount));
            if status == Some(0) { Ok(()) } else { Err(stderr) }
        });
        wait_until("it is let go", || match status().service.files {
            0 => Ok(()),
            files => Err(format!("{files} files: {}", service.said())),
        });
        let group = |listing: &str| listing.matches("fm=").count();
        assert_eq!(group(&disk.listing()), group(&before), "{}", disk.listing());
        disk.mount_again();
        wait_for_state(&file, "following");
    }
    let (id, group) = disk.group("data").unwrap();
    assert_eq!((id, group.members.len()), (0, 3));
    write(&file, 512, 16);
    assert_follows(&disk, "mounted again", &file, "data");
}

// What a killed service leaves.

/// What is left of a file that nobody follows any more.
const ORPHAN: &str = "fm=0000000000005eed.00000001.";

#[test]
fn killed_at_any_moment_it_goes_on_where_it_was() {
    if !vm::inside("killed_at_any_moment_it_goes_on_where_it_was") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let [busy, quiet] = ["busy", "quiet"].map(|name| disk.path(name));
    for file in [&busy, &quiet] {
        write_pieces(file, 3);
    }
    configure(&entry(&disk, "*"));
    drop(serve("")); // killed
    let service = serve("");
    assert_all_follow(&disk, "at the start", &[(&busy, "busy"), (&quiet, "quiet")]);
    let before = disk.group("quiet").unwrap();
    let id = disk.group("busy").unwrap().0;
    let counted = count(&disk, &quiet, &before.1.members);
    drop(service);
    for round in 0..12 {
        let service = serve("--interval 1ms");
        for at in 0..=round % 4 {
            write(&busy, 64 * (7 * round + at) + 256, 16);
            daemon::punch(&busy, 64 * (7 * round + at) + 128, 16);
        }
        signal(service.pid(), Signal::SIGKILL);
        disk.groups(); // both generations of dmstats can read them
    }
    disk.message(&format!("@stats_create 0+8 /1 0 dmstats {ORPHAN}"));
    disk.message("@stats_create 0+8 /1 0 dmstats theirs");

    let service = serve("");
    assert_all_follow(&disk, "killed often", &[(&busy, "busy"), (&quiet, "quiet")]);
    let (id_of_quiet, after) = disk.group("quiet").unwrap();
    assert_eq!((id_of_quiet, after.members), (before.0, before.1.members.clone()), "as it was");
    assert_eq!(counters(&disk, &before.1.members), counted);
    assert_eq!(disk.group("busy").unwrap().0, id);
    service.wait_for("region(s) deleted that cut updates had left");
    let strays = disk.strays();
    assert_eq!(strays.len(), 1, "{}", disk.listing());
    assert!(disk.listing().contains("theirs"), "{}", disk.listing());
}

#[test]
fn it_remembers_what_was_added() {
    if !vm::inside("it_remembers_what_was_added") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    configure("");
    let names = ["added", "<handed>", "gone", "<again>"];
    let files = names.map(|name| disk.path(name));
    for file in &files {
        write_pieces(file, 2);
    }
    let [added, handed, gone, again] = files.each_ref();
    let service = serve("");
    told(&format!("add --mode path --alias x-{{name}} {}", text(added)));
    told(&format!("add {}", text(gone)));
    succeed(dmstats("create --filemap").arg(handed));
    succeed(dmstats("create --filemap").arg(again));
    wait_for_aliases(&disk, &["again", "gone", "handed", "x-added"]);
    for file in &files {
        wait_for_state(file, "following");
    }
    let before = ["x-added", "handed"].map(|alias| disk.group(alias).unwrap());
    drop(service); // killed
    fs::remove_file(gone).unwrap();
    fs::rename(added, disk.path("other")).unwrap();
    fs::rename(disk.path("other"), added).unwrap();
    let id = disk.group("again").unwrap().0;
    succeed(&mut dmstats(&format!("delete --groupid {id} disk0")));

    let mut service = serve("");
    service.wait_for("gone: it was added, and is not followed any more: No such file");
    service.wait_for("<again>: it was added, and is not followed any more: ");
    write(handed, 512, 16);
    write(added, 512, 16);
    assert_all_follow(&disk, "after that", &[(added, "x-added"), (handed, "handed")]);
    for (alias, (id, group)) in ["x-added", "handed"].iter().zip(before) {
        let (now, found) = disk.group(alias).unwrap();
        assert_eq!((now, &found.members[..2]), (id, &group.members[..2]), "{alias}");
    }
    assert_eq!(wait_for_state(added, "following").mode.as_str(), "path");
    assert_eq!(status().service.files, 2);
    told(&format!("remove {}", text(added)));
    wait_until("it is let go", || match status().service.files {
        1 => Ok(()),
        files => Err(format!("{files} files")),
    });
    told("stop");
    assert_eq!(service.wait_for_end().code(), Some(0));
    let state = "/run/dmfilemapd/added.json";
    let text = fs::read_to_string(state).unwrap();
    assert!(text.contains("handed") && !text.contains("x-"), "{text}");

    fs::write(state, "[{").unwrap();
    let service = serve("");
    service.wait_for("added.json.damaged");
    assert_eq!(status().service.files, 0);
}
