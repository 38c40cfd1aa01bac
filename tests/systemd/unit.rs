//! The unit in the hands of a real systemd.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::daemon::{
    Outcome, PROGRAM, command, dmstats, let_look, newer, only_daemon, outcome, signal, succeed,
    text, write, write_pieces,
};
use crate::guest::{self, Daemon, Disk, assert_all_follow, assert_follows, wait_until};
use crate::service::{SOCKET, entry, status, told, wait_for_aliases};
use crate::{UNIT, of_unit, tools, vm};

const SYSTEMD: &str = "/lib/systemd/systemd";

/// The first process of a namespace of its own, with our unit and next to no other.
struct Systemd {
    _process: Daemon,
    pid: String,
}

impl Systemd {
    /// Everything is in its place, as the package puts it.
    fn boot() -> Systemd {
        vm::make_writable(&["/etc", "/usr/sbin", "/var/lib"]);
        vm::sh(&format!(
            "ln -sf {PROGRAM} /usr/sbin/dmfilemapd
             mkdir -p /etc/dmfilemapd /run/units/dmfilemapd.service.d
             mount -t cgroup2 none /sys/fs/cgroup
             mount --make-rshared /
             cd /run/units
             cp {UNIT} .
             for unit in modprobe@.service systemd-journald.service systemd-journald.socket \
                 systemd-journald-dev-log.socket; do
                 ln -s /lib/systemd/system/$unit .
             done
             for unit in sysinit basic sockets shutdown multi-user; do
                 echo '[Unit]' >$unit.target
             done
             echo Wants=systemd-journald.service >>multi-user.target"
        ));
        let words = "--pid --fork --kill-child --mount --propagation unchanged --mount-proc \
                     --cgroup env -i container=test SYSTEMD_UNIT_PATH=/run/units";
        let mut command = Command::new("unshare");
        command.args(words.split_whitespace()).arg(SYSTEMD);
        command.args(["--system", "--log-target=kmsg", "--unit=multi-user.target"]);
        let process = Daemon::start(&mut command);
        let pid = wait_until("systemd is there", || {
            let Outcome { status, stdout, .. } =
                outcome(Command::new("pgrep").args(["-o", "-x", "systemd"]));
            if status == Some(0) { Ok(stdout.trim_end().to_owned()) } else { Err(stdout) }
        });
        let systemd = Systemd { _process: process, pid };
        wait_until("systemd is ready", || {
            let state = systemd.ctl("is-system-running").stdout;
            if state == "running\n" { Ok(()) } else { Err(state) }
        });
        systemd
    }

    /// `systemctl WORDS`
    fn ctl(&self, words: &str) -> Outcome {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid, "--pid", "--mount", "--cgroup", "systemctl"]);
        outcome(command.args(words.split_whitespace()))
    }

    /// `systemctl VERB dmfilemapd`, which succeeds.
    fn done(&self, verb: &str) {
        let Outcome { status, stderr, .. } = self.ctl(&format!("{verb} dmfilemapd"));
        assert_eq!(status, Some(0), "{verb}: {stderr}\n{}\n{}", said(), self.shown());
    }

    /// What it knows of the unit.
    fn shown(&self) -> String {
        self.ctl("show dmfilemapd").stdout
    }

    fn wait_for(&self, properties: &[&str]) {
        wait_until(&format!("the unit has {properties:?}"), || {
            let shown = self.shown();
            let has = |property: &&str| shown.lines().any(|line| line == *property);
            if properties.iter().all(has) { Ok(()) } else { Err(format!("{}\n{shown}", said())) }
        });
    }

    /// More lines for its `[Service]`.
    fn change(&self, lines: &str) {
        fs::write("/run/units/dmfilemapd.service.d/test.conf", format!("[Service]\n{lines}\n"))
            .unwrap();
        assert_eq!(self.ctl("daemon-reload").status, Some(0));
    }
}

/// What the journal has of the service, up to this priority.
fn journal(priority: &str) -> String {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "-o", "cat", "-u", "dmfilemapd", "-p", priority]);
    outcome(&mut command).stdout
}

fn said() -> String {
    journal("debug")
}

fn configure(text: &str) {
    let text = format!("interval = \"100ms\"\nrescan_interval = \"200ms\"\n{text}");
    fs::write("/etc/dmfilemapd/config.toml", text).unwrap();
}

/// The unit where the program is, and the page where `man` finds it.
#[test]
fn systemd_finds_nothing_wrong_with_it() {
    const NAME: &str = "unit::systemd_finds_nothing_wrong_with_it";
    if tools::lack(NAME, &[("systemd-analyze", "systemd"), ("man", "man-db")]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (unit, man) = (folder.path().join("dmfilemapd.service"), folder.path().join("man8"));
    let text = fs::read_to_string(UNIT).unwrap().replace("/usr/sbin/dmfilemapd", PROGRAM);
    fs::write(&unit, text).unwrap();
    fs::create_dir(&man).unwrap();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/man/dmfilemapd.8");
    fs::copy(page, man.join("dmfilemapd.8")).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify").arg(&unit).env("MANPATH", folder.path());
    let Outcome { status, stdout, stderr } = outcome(&mut verify);
    assert_eq!((status, &*stdout, &*stderr), (Some(0), "", ""));
}

#[test]
fn a_real_systemd_starts_reloads_and_stops_it_and_its_files_are_followed() {
    const NAME: &str =
        "unit::a_real_systemd_starts_reloads_and_stops_it_and_its_files_are_followed";
    if tools::lack(NAME, &[(SYSTEMD, "systemd")]) || !vm::inside(NAME) {
        return;
    }
    guest::write_back_soon();
    let disk = Disk::format(0, "ext4", "");
    let [private, added, handed] = three_files(&disk);
    let systemd = Systemd::boot();
    fs::create_dir_all(Path::new(TEXTFILE).parent().unwrap()).unwrap();
    let metrics = format!("metrics_listen = \"{ADDRESS}\"\nmetrics_textfile = \"{TEXTFILE}\"\n");
    let later = "[[file]]\npath = \"/mnt/disk1/*\"\nmode = \"path\"\n";
    configure(&(metrics + &entry(&disk, "home/*") + later));

    systemd.done("start");
    status(); // at once
    assert_follows(&disk, "started", &private, "private");
    assert_eq!(held(only_daemon()), of_unit("CapabilityBoundingSet"));
    told(&format!("add {}", text(&added)));
    succeed(dmstats("create --filemap").arg(&handed));
    let all = [(&*private, "private"), (&*added, "added"), (&*handed, newer("<handed>"))];
    let assert_changes_are_followed = |what: &str, at_kib| {
        for (file, _) in &all {
            write(file, at_kib, 64);
        }
        assert_all_follow(&disk, what, &all);
    };
    assert_changes_are_followed("changed", 512);
    only_daemon();
    metrics_are_given_out();
    mounts_come_and_go();
    an_unlinked_file_is_followed_while_it_is_open(&disk);

    let before = members(&disk);
    systemd.done("restart");
    assert_changes_are_followed("restarted", 1024);
    systemd.done("stop");
    systemd.wait_for(&["ActiveState=inactive", "Result=success"]);
    systemd.done("start");
    assert_changes_are_followed("stopped and started", 2048);
    for ((alias, members), (was, had)) in members(&disk).iter().zip(&before) {
        assert_eq!((alias, &members[..had.len()]), (was, &had[..]), "none was made anew");
    }

    it_reloads(&systemd, &disk);
    assert!(Path::new("/var/lib/dmfilemapd").is_dir());
}

/// One that only its owner may even see, one to be added, and one to be handed over.
fn three_files(disk: &Disk) -> [PathBuf; 3] {
    fs::create_dir(disk.path("home")).unwrap();
    let files = ["home/private", "added", "<handed>"].map(|name| disk.path(name));
    for file in &files {
        write_pieces(file, 3);
    }
    let home = disk.path("home").display().to_string();
    vm::sh(&format!("chown -R 1234:1234 {home}; chmod 700 {home}; chmod 600 {home}/private"));
    files
}

/// What is wrong with a new configuration is told, and the service goes on; a good one holds.
fn it_reloads(systemd: &Systemd, disk: &Disk) {
    configure("nonsense");
    assert_eq!(systemd.ctl("reload dmfilemapd").status, Some(1));
    wait_until("the journal has the errors", || {
        let errors = journal("err");
        if errors.contains("  /etc/dmfilemapd/config.toml:3: ") { Ok(()) } else { Err(said()) }
    });
    systemd.wait_for(&["ActiveState=active", "SubState=running"]);
    configure("");
    systemd.done("reload");
    wait_for_aliases(disk, &["added", "handed"]);
}

/// The groups without what says which process has them.
fn members(disk: &Disk) -> Vec<(Vec<u8>, Vec<u32>)> {
    disk.groups().into_values().map(|group| (group.alias, group.members)).collect()
}

/// The capabilities that a process has and may have, by name.
fn held(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim();
    assert_eq!((of("NoNewPrivs:"), of("CapEff:")), ("1", of("CapBnd:")));
    // Where the kernel knows system call filters.
    assert!(!status.contains("Seccomp:") || of("Seccomp:") == "2", "{status}");
    let bits = u64::from_str_radix(of("CapEff:"), 16).unwrap();
    let names = [(21, "CAP_SYS_ADMIN"), (2, "CAP_DAC_READ_SEARCH"), (28, "CAP_LEASE")];
    let held: Vec<&str> =
        names.iter().filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| *name).collect();
    assert_eq!(bits.count_ones() as usize, held.len(), "{bits:x}");
    held.join(" ")
}

const ADDRESS: &str = "127.0.0.1:9756";
const TEXTFILE: &str = "/var/lib/prometheus/node-exporter/dmfilemapd.prom";

/// Over HTTP, and in a file that everybody may read.
fn metrics_are_given_out() {
    const SAMPLE: &str = "dmfilemap_file_regions{file=\"private\"";
    vm::sh("busybox ip link set lo up");
    let mut stream = TcpStream::connect(ADDRESS).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let answer = io::read_to_string(stream).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(SAMPLE), "{answer}");
    wait_until("the file is written", || {
        let text = fs::read_to_string(TEXTFILE).map_err(|error| format!("{error}\n{}", said()))?;
        if text.contains(SAMPLE) { Ok(()) } else { Err(text) }
    });
    assert_eq!(fs::metadata(TEXTFILE).unwrap().permissions().mode() & 0o777, 0o644);
}

/// What is mounted while the service runs is seen, and what it follows there can be unmounted.
fn mounts_come_and_go() {
    let disk = Disk::format(1, "xfs", "");
    let file = disk.path("data");
    write_pieces(&file, 2);
    assert_follows(&disk, "mounted later", &file, "data");
    wait_until("it can be unmounted", || {
        let Outcome { status, stderr, .. } = outcome(Command::new("umount").arg(&disk.mount));
        if status == Some(0) { Ok(()) } else { Err(stderr) }
    });
    let is_away =
        |status: &dmfilemapd::request::FileStatus| status.path.0 == file && status.state == "away";
    wait_until("it is let go", || match status().files.iter().any(is_away) {
        true => Ok(()),
        false => Err(said()),
    });
}

/// Whoever has it open is out of the service's sight.
fn an_unlinked_file_is_followed_while_it_is_open(disk: &Disk) {
    let file = disk.path("unlinked");
    write_pieces(&file, 2);
    vm::sh(&format!("chown 1234 {}", text(&file)));
    told(&format!("add {}", text(&file)));
    assert_follows(disk, "added", &file, "unlinked");
    let used = File::open(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let_look(only_daemon(), 10);
    assert!(disk.group("unlinked").is_some(), "{}", said());
    drop(used);
    wait_for_aliases(disk, &["added", "handed", "private"]);
}

/// Whatever ends the service without being asked, or keeps its engine from turning, ends in another
/// start; what no start mends does not.
#[test]
fn a_real_systemd_mends_what_a_restart_mends() {
    const NAME: &str = "unit::a_real_systemd_mends_what_a_restart_mends";
    if tools::lack(NAME, &[(SYSTEMD, "systemd")]) || !vm::inside(NAME) {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let [file, other] = ["data", "other"].map(|name| disk.path(name));
    write_pieces(&file, 2);
    write_pieces(&other, 2);
    let systemd = Systemd::boot();
    systemd.change("RestartSec=100ms\nWatchdogSec=8s");
    configure(&entry(&disk, "data"));
    systemd.done("start");
    assert_follows(&disk, "started", &file, "data");

    signal(only_daemon(), Signal::SIGKILL);
    systemd.wait_for(&["NRestarts=1", "SubState=running"]);
    write(&file, 512, 64);
    assert_follows(&disk, "killed", &file, "data");

    // The engine waits for a reader of what it writes down.
    let pipe = Path::new(SOCKET).with_file_name("added.json.new");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let adding = Daemon::start(command(PROGRAM).args(["add", text(&other)]));
    systemd.wait_for(&["NRestarts=2"]);
    fs::remove_file(&pipe).unwrap();
    systemd.wait_for(&["SubState=running"]);
    assert!(systemd.ctl("status dmfilemapd").stdout.contains("active (running)"));
    write(&file, 1024, 64);
    assert_follows(&disk, "stuck", &file, "data");
    drop(adding);

    configure("nonsense");
    systemd.ctl("restart dmfilemapd");
    systemd.wait_for(&["ActiveState=failed", "ExecMainStatus=78", "NRestarts=0"]);
    assert!(said().contains("/etc/dmfilemapd/config.toml:3: "), "{}", said());
}
