//! Totals in a real kernel: over changes of the file, restarts, and others who read.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/dialects.rs"]
mod dialects;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/vm.rs"]
mod vm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dmfilemapd::counters::Counters;
use dmfilemapd::request::{FileTotals, Totals};
use nix::sys::signal::Signal;

use daemon::{
    Outcome, PROGRAM, Table, command, create_group, dmstats, outcome, punch, signal, succeed, text,
    truncate, write, write_pieces,
};
use guest::{Daemon, Disk, assert_follows, wait_until};

const KIB: u64 = 1024;
const STATE: &str = "/tmp/state/totals.json";

/// A service that follows all files of the disk, and answers.
fn serve(disk: &Disk, options: &str) -> Daemon {
    let pattern = disk.path("*");
    serve_entries(&format!("[[file]]\npath = \"{}\"\n", pattern.display()), options)
}

fn serve_entries(entries: &str, options: &str) -> Daemon {
    fs::create_dir_all("/tmp/etc").unwrap();
    fs::write("/tmp/etc/config.toml", entries).unwrap();
    let mut command = command(PROGRAM);
    command.args(["run", "--config-dir", "/tmp/etc", "--rescan-interval", "200ms"]);
    command.args(["--state-dir", "/tmp/state"]).args(options.split_whitespace());
    let service = Daemon::start(&mut command);
    service.wait_for("following the files of ");
    service
}

fn totals() -> Totals {
    serde_json::from_str(&succeed(command(PROGRAM).args(["totals", "--json"]))).unwrap()
}

fn totals_of(file: &Path) -> FileTotals {
    let found = totals().files.into_iter().find(|totals| totals.path.as_ref().unwrap().0 == file);
    found.unwrap_or_else(|| panic!("{} is not followed", file.display()))
}

fn wait_until_followed(file: &Path) {
    wait_until("it is followed", || {
        let state = |totals: &FileTotals| totals.path.as_ref().unwrap().0 == file;
        match totals().files.iter().find(|totals| state(totals)) {
            Some(totals) if totals.state == "following" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// Overwrites so many pieces of 4 KiB from there on, each by itself and past the page cache.
fn overwrite(file: &Path, at_kib: u64, count: u64) -> u64 {
    let (name, at) = (file.display(), at_kib / 4);
    vm::sh(&format!(
        "dd if=/dev/zero of={name} bs=4k count={count} seek={at} conv=notrunc,nocreat \
         oflag=direct status=none"
    ));
    count * 4 * KIB
}

fn read(file: &Path, at_kib: u64, count: u64) -> u64 {
    let (name, at) = (file.display(), at_kib / 4);
    vm::sh(&format!(
        "dd if={name} of=/dev/null bs=4k count={count} skip={at} iflag=direct status=none"
    ));
    count * 4 * KIB
}

// What is counted.

fn totals_are_what_was_read_and_written(kind: &str) {
    let disk = Disk::format(0, kind, "");
    let [file, other] = ["data", "other"].map(|name| disk.path(name));
    for file in [&file, &other] {
        write(file, 0, 512);
    }
    let _service = serve(&disk, "--read-interval 1h");
    assert_follows(&disk, "at the start", &file, "data");
    let before = totals_of(&file).counters;
    let (written, was_read) = (overwrite(&file, 0, 16), read(&file, 64, 8));
    overwrite(&other, 0, 4);
    let after = totals_of(&file);
    let counters = after.counters;
    assert_eq!(counters.written_bytes - before.written_bytes, written);
    assert_eq!(counters.read_bytes - before.read_bytes, was_read);
    assert_eq!(counters.writes_completed - before.writes_completed, 16);
    assert_eq!(counters.reads_completed - before.reads_completed, 8);
    assert_eq!((after.io_now, after.resets, after.regions), (0, 0, 1));
    assert_eq!(after.mapped_bytes, 512 * KIB);
    assert_eq!(after.inode, Some(fs_inode(&file)));

    let all = totals();
    let [device] = &all.devices[..] else { panic!("{:?}", all.devices) };
    let whole = device.counters.unwrap();
    let sum: u64 = all.files.iter().map(|file| file.counters.written_bytes).sum();
    assert!(whole.written_bytes >= sum && sum > written, "{device:?} {sum}");
    assert_eq!((device.files, device.regions, device.creates), (2, 2, 2));
    let service = all.service.unwrap();
    assert_eq!((service.files, service.remaps.made, service.resets), (2, 2, 0));
    assert!(service.readings.completed >= 3 && service.updates.completed >= 2, "{service:?}");
    assert!(all.kernel_stats_bytes.unwrap() > 0);
}

fn fs_inode(file: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(file).unwrap().ino()
}

#[test]
fn totals_are_what_was_read_and_written_on_ext4() {
    if vm::inside("totals_are_what_was_read_and_written_on_ext4") {
        totals_are_what_was_read_and_written("ext4");
    }
}

#[test]
fn totals_are_what_was_read_and_written_on_xfs() {
    if vm::inside("totals_are_what_was_read_and_written_on_xfs") {
        totals_are_what_was_read_and_written("xfs");
    }
}

/// A tick of User-Mode Linux, by which dm-delay may be too early.
const TICK_NS: f64 = 10e6;

/// What fio says of its only job: bytes, number and mean nanoseconds, for reads and for writes. It
/// goes by the kernel's clock: its own counts cycles, and is off by a percent where it was
/// calibrated in haste.
fn fio(file: &Path, ios: u64) -> [(u64, u64, f64); 2] {
    let said = vm::sh(&format!(
        "fio --name=x --filename={} --rw=randrw --bs=4k --direct=1 --ioengine=psync --size=512k \
             --io_size={}k --norandommap --randseed=7 --output-format=json --allow_file_create=0 \
             --clocksource=clock_gettime",
        file.display(),
        4 * ios
    ));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    ["read", "write"].map(|way| {
        let way = &said["jobs"][0][way];
        let number = |field: &str| way[field].as_u64().unwrap();
        (number("io_bytes"), number("total_ios"), way["lat_ns"]["mean"].as_f64().unwrap())
    })
}

/// What `top --json` has shown of a file so far: reads, bytes read and what each took, in all; and
/// the same of writes.
fn shown_by_top(top: &Daemon, file: &Path) -> [(u64, u64, f64); 2] {
    let said = top.said();
    let (whole, _) = said.rsplit_once('\n').unwrap_or_default(); // it may be writing the last line
    let mut sums = [(0.0, 0.0, 0.0); 2];
    for line in whole.lines() {
        let interval: serde_json::Value = serde_json::from_str(line).unwrap();
        let rows = interval["rows"].as_array().unwrap();
        for row in rows.iter().filter(|row| row["name"] == text(file)) {
            let count =
                |field: &str| row[field].as_f64().unwrap() * row["seconds"].as_f64().unwrap();
            for (sum, (one, bytes, wait)) in sums.iter_mut().zip([
                ("reads_per_second", "read_bytes_per_second", "read_wait_ns"),
                ("writes_per_second", "written_bytes_per_second", "write_wait_ns"),
            ]) {
                let each = row[wait].as_f64().unwrap_or_default();
                sum.0 += count(one);
                sum.1 += count(bytes);
                sum.2 += count(one) * each;
            }
        }
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small, and not negative
    sums.map(|(ios, bytes, time)| (ios.round() as u64, bytes.round() as u64, time))
}

/// A row of `top --once`, while fio is at work on the file: what it says of reads and of writes.
fn row_of_top(file: &Path) -> [Shown; 2] {
    let table = succeed(command(PROGRAM).args(["top", "--once", "--interval", "2s"]));
    let row = table.lines().find(|line| line.ends_with(text(file))).unwrap();
    let head = table.lines().next().unwrap();
    // Every column ends where its head ends.
    let cell = |name: &str| {
        let end = head.find(name).unwrap() + name.len();
        let begin = head[..end - name.len()].trim_end().len();
        row[begin..end].trim()
    };
    let shown = |columns: [&str; 3]| {
        let [bytes, ios, wait] = columns.map(cell);
        Shown { bytes: Shown::range(bytes), ios: Shown::range(ios), wait: Shown::range(wait) }
    };
    [shown(["READ/s", "r/s", "r_await"]), shown(["WRITE/s", "w/s", "w_await"])]
}

/// What may be meant by numbers that are shown with few digits, from and to.
#[derive(Debug)]
struct Shown {
    bytes: (f64, f64),
    ios: (f64, f64),
    wait: (f64, f64),
}

impl Shown {
    /// `1.2 MiB`, `17`, `30.4 ms`: a digit more or less in the last place.
    fn range(cell: &str) -> (f64, f64) {
        let (number, unit) = cell.split_once(' ').unwrap_or((cell, ""));
        let number: f64 = number.parse().unwrap_or_else(|why| panic!("{cell}: {why}"));
        let digit = if cell.contains('.') { 0.1 } else { 1.0 };
        let unit = match unit {
            "" | "B" | "bytes" => 1.0,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "us" => 1e3,
            "ms" => 1e6,
            other => panic!("{other}"),
        };
        ((number - digit) * unit, (number + digit) * unit)
    }
}

/// `top --once` in the midst of I/O of 4 KiB each, against fio's report of the whole of it.
fn assert_top_says_what_fio_says(file: &Path, delay_ms: u32) {
    let mut job = Command::new("fio");
    job.args(["--name=x", "--rw=randrw", "--bs=4k", "--direct=1", "--ioengine=psync"]);
    job.args(["--size=512k", "--io_size=1g", "--norandommap", "--allow_file_create=0"]);
    job.args(["--clocksource=clock_gettime", "--output-format=json", "--output=/tmp/fio.json"]);
    let before = totals_of(file).counters;
    let mut job = Daemon::start(job.arg(format!("--filename={}", text(file))));
    wait_until("fio reads and writes", || {
        let now = totals_of(file).counters;
        let goes_on = now.reads_completed > before.reads_completed + 1
            && now.writes_completed > before.writes_completed + 1;
        if goes_on { Ok(()) } else { Err(format!("{now:?}\n{}", job.said())) }
    });
    let shown = row_of_top(file);
    signal(job.pid(), Signal::SIGINT);
    job.wait_for_end();
    let said = fs::read_to_string("/tmp/fio.json").unwrap();
    let json = &said[said.find('{').unwrap()..];
    let said: serde_json::Value = serde_json::from_str(json).unwrap();
    for (way, Shown { bytes, ios, wait }) in ["read", "write"].iter().zip(shown) {
        assert!(bytes.0 <= 4096.0 * ios.1 && 4096.0 * ios.0 <= bytes.1, "{bytes:?} {ios:?}");
        let longest = said["jobs"][0][way]["lat_ns"]["max"].as_f64().unwrap();
        assert!(wait.0 <= longest, "{way}: {wait:?}, of {longest} at most");
        assert!(wait.1 >= f64::from(delay_ms) * 1e6 - TICK_NS, "{way}: {wait:?}, of {delay_ms} ms");
    }
}

/// fio's own report of three files on devices of known latency, the totals, top, and dmstats.
#[test]
fn fio_and_dmstats_say_the_same() {
    if !vm::inside("fio_and_dmstats_say_the_same") {
        return;
    }
    let delays = [(0, 0), (1, 30), (2, 60)];
    let disks = delays.map(|(ramdisk, delay)| Disk::slow(ramdisk, delay.into()));
    let files = disks.each_ref().map(|disk| disk.path(&format!("on-{}", disk.name)));
    let entries = files.each_ref().map(|file| format!("[[file]]\npath = \"{}\"\n", text(file)));
    for file in &files {
        write(file, 0, 512);
    }
    let _service = serve_entries(&entries.concat(), "--precise");
    for (disk, file) in disks.iter().zip(&files) {
        assert_follows(disk, "at the start", file, &format!("on-{}", disk.name));
    }
    for ((file, disk), (_, delay)) in files.iter().zip(&disks).zip(delays) {
        let mut top = command(PROGRAM);
        let top = Daemon::start(top.args(["top", "--json", "--interval", "200ms"]));
        top.wait_for("\n");
        let before = totals_of(file).counters;
        let reports = fio(file, 64);
        let after = totals_of(file).counters;
        let done = after.beyond(&before);
        assert_eq!((done.read_bytes, done.reads_completed), (reports[0].0, reports[0].1));
        assert_eq!((done.written_bytes, done.writes_completed), (reports[1].0, reports[1].1));
        let times = [done.read_time_ns, done.write_time_ns];
        for (time_ns, (_, count, mean)) in times.into_iter().zip(reports) {
            #[allow(clippy::cast_precision_loss)] // as fio does
            let each = time_ns as f64 / count as f64;
            assert!(each <= mean, "{each} in the kernel, and {mean} for fio");
            assert!(each >= f64::from(delay) * 1e6 - TICK_NS, "{each}, delayed by {delay}");
        }
        assert_top_shows(&top, file, &done);
        let report = "report --noheadings --separator : --nosuffix --units s --group -o \
                      read_sector_count,write_sector_count";
        let said = succeed(dmstats(report).arg(&disk.name));
        let of_dmstats: Vec<u64> =
            said.trim().split(':').map(|word| 512 * word.parse::<u64>().unwrap()).collect();
        assert_eq!(of_dmstats, [after.read_bytes, after.written_bytes], "{said}");
        assert_top_says_what_fio_says(file, delay);
    }
}

/// Waits until `top --json` has shown all of this, and asserts that it shows no more.
fn assert_top_shows(top: &Daemon, file: &Path, done: &Counters) {
    let expected = [
        (done.reads_completed, done.read_bytes, done.read_time_ns),
        (done.writes_completed, done.written_bytes, done.write_time_ns),
    ];
    let shown = wait_until("top has shown it", || {
        let shown = shown_by_top(top, file);
        let all = shown.iter().zip(expected).all(|(shown, all)| shown.0 >= all.0);
        if all { Ok(shown) } else { Err(format!("{shown:?} of {expected:?}")) }
    });
    for ((ios, bytes, time_ns), expected) in shown.into_iter().zip(expected) {
        assert_eq!((ios, bytes), (expected.0, expected.1));
        #[allow(clippy::cast_precision_loss)] // a few seconds
        let (count, expected) = (expected.0 as f64, expected.2 as f64);
        // What each took is told to the nanosecond below.
        assert!((expected - time_ns).abs() <= count + 1.0, "{time_ns} of {expected}");
    }
}

// What they survive.

/// The account of a file, whose true amount is known but for what its allocating writes count.
struct Account {
    disk: Disk,
    file: PathBuf,
    least: u64,
    most: u64,
    last: u64,
}

impl Account {
    fn new(disk: Disk) -> Account {
        let file = disk.path("data");
        write(&file, 0, 512);
        Account { disk, file, least: 0, most: 0, last: 0 }
    }

    fn follows(&self, what: &str) {
        assert_follows(&self.disk, what, &self.file, "data");
        wait_until_followed(&self.file);
    }

    fn overwrite(&mut self, at_kib: u64, count: u64) {
        let bytes = overwrite(&self.file, at_kib, count);
        self.least += bytes;
        self.most += bytes;
    }

    /// An answer that a slow host keeps for too long is that from before.
    fn check(&mut self, what: &str) {
        let Account { least, most, .. } = *self;
        self.last = wait_until(what, || {
            let total = totals_of(&self.file).counters.written_bytes;
            assert!(total >= self.last, "{what}: it went back from {} to {total}", self.last);
            assert!(total <= most, "{what}: {total}, of {most} at the most");
            self.last = total;
            if total >= least { Ok(total) } else { Err(format!("{total} of {least}")) }
        });
    }
}

/// Waits until the state file says that this much was written.
fn wait_for_save(service: &Daemon, bytes: u64) {
    wait_until("the totals are written down", || {
        let text = fs::read_to_string(STATE).unwrap_or_default();
        if text.contains(&format!("\"written_bytes\":{bytes}")) {
            Ok(())
        } else {
            Err(format!("{bytes}: {text} {}", service.said()))
        }
    });
}

/// One that reads only when it is asked.
fn quiet(disk: &Disk) -> Daemon {
    serve(disk, "--read-interval 1h")
}

fn stop(mut service: Daemon) {
    succeed(command(PROGRAM).arg("stop"));
    assert_eq!(service.wait_for_end().code(), Some(0));
}

#[test]
fn totals_go_on_whatever_becomes_of_the_file() {
    if !vm::inside("totals_go_on_whatever_becomes_of_the_file") {
        return;
    }
    guest::write_back_soon();
    let mut account = Account::new(Disk::format(0, "ext4", ""));
    let file = account.file.clone();
    let mut service = quiet(&account.disk);
    account.follows("at the start");
    account.overwrite(0, 32);
    account.check("at the start");

    account.overwrite(128, 8); // which nobody has read when it goes
    punch(&file, 128, 32);
    account.follows("a hole");
    account.check("a hole");
    write(&file, 512, 256);
    account.most += 256 * KIB;
    account.follows("an append");
    account.overwrite(512, 16);
    account.check("an append");
    account.overwrite(0, 16);
    truncate(&file, 64);
    account.follows("a cut");
    account.check("a cut");
    account.overwrite(0, 4);
    truncate(&file, 0);
    account.follows("nothing left");
    account.check("nothing left");
    wait_for_save(&service, account.last);
    write(&file, 0, 256);
    account.most += 256 * KIB;
    account.follows("written anew");
    account.overwrite(0, 16);
    account.check("written anew");

    // Killed, it has the state file, and the regions have the rest.
    account.overwrite(0, 8);
    signal(service.pid(), Signal::SIGKILL);
    service.wait_for_end();
    account.overwrite(32, 8);
    let _service = quiet(&account.disk);
    account.follows("killed");
    account.check("killed");
}

#[test]
fn totals_go_on_whatever_others_do_to_the_regions() {
    if !vm::inside("totals_go_on_whatever_others_do_to_the_regions") {
        return;
    }
    guest::write_back_soon();
    let mut account = Account::new(Disk::format(0, "xfs", ""));
    let service = quiet(&account.disk);
    account.follows("at the start");
    account.overwrite(0, 32);

    // They read, and set the counters to zero. As many writes as before would hide that.
    account.check("before a report");
    for count in [4, 2, 1] {
        let report = succeed(&mut dmstats("report --allregions --noheadings -o write_count"));
        assert!(!report.is_empty());
        account.overwrite(0, count);
        account.check("after a report");
    }
    assert_eq!(totals_of(&account.file).resets, 3);

    // Stopped, it has read all there was; then the regions go, as they do at a reboot.
    account.overwrite(0, 8);
    stop(service);
    Table::of(&account.disk).clear();
    let service = quiet(&account.disk);
    account.follows("a reboot");
    account.check("a reboot");
    account.overwrite(0, 8);
    account.check("after that");
    stop(service);

    // Deleted by others, and then by the service itself.
    let service = serve(&account.disk, "--read-interval 1h --remove-on-exit");
    account.follows("again");
    Table::of(&account.disk).clear();
    account.follows("deleted by others");
    account.overwrite(0, 8);
    stop(service);
    assert_eq!(account.disk.listing(), "");
    let _service = serve(&account.disk, "");
    account.follows("removed");
    account.check("removed");
}

#[test]
fn a_damaged_state_file_is_set_aside_and_the_one_before_it_is_taken() {
    if !vm::inside("a_damaged_state_file_is_set_aside_and_the_one_before_it_is_taken") {
        return;
    }
    let mut account = Account::new(Disk::format(0, "ext4", ""));
    for _ in 0..2 {
        let service = serve(&account.disk, "");
        account.follows("at the start");
        account.overwrite(0, 8);
        account.check("at the start");
        stop(service);
    }
    let whole = fs::read(STATE).unwrap();
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(STATE, &whole[..cut]).unwrap();
        let service = serve(&account.disk, "");
        service.wait_for("totals.json is now /tmp/state/totals.json.damaged");
        account.follows("damaged");
        // The regions are there still, so nothing is missing.
        account.check("damaged");
        assert_eq!(fs::read(format!("{STATE}.damaged")).unwrap(), whole[..cut]);
        stop(service);
    }
    for file in [STATE, &format!("{STATE}.before")] {
        fs::write(file, "{\"version\":7}").unwrap();
    }
    Table::of(&account.disk).clear();
    let service = serve(&account.disk, "");
    service.wait_for("totals begin anew");
    account.follows("both damaged");
    assert_eq!(totals_of(&account.file).counters.written_bytes, 0);
    // A second one counts all the same, and writes nothing down.
    let mut second = command(PROGRAM);
    second.args(["run", "--config-dir", "/tmp/etc", "--state-dir", "/tmp/state", "--socket="]);
    let second = Daemon::start(&mut second);
    second.wait_for("another service keeps its totals there");
    drop(service);
}

/// What a running `dmstats report` takes is missing from the totals at most; they never go back.
#[test]
fn another_who_keeps_clearing_takes_no_more_than_he_says() {
    if !vm::inside("another_who_keeps_clearing_takes_no_more_than_he_says") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let file = disk.path("data");
    write_pieces(&file, 8);
    let _service = serve(&disk, "");
    assert_follows(&disk, "at the start", &file, "data");
    let thief = Daemon::start(dmstats("report --allregions --interval 1 --count 0").args([
        "--noheadings",
        "-o",
        "write_sector_count",
    ]));
    let (mut written, mut last, mut round) = (0, 0, 0_u64);
    while totals_of(&file).resets < 12 {
        written += overwrite(&file, 32 * (round % 8), 4);
        if round % 5 == 0 {
            punch(&file, 32 * (round % 8), 4);
            write(&file, 32 * (round % 8), 16);
        }
        round += 1;
        let total = totals_of(&file).counters.written_bytes;
        assert!(total >= last, "from {last} to {total}");
        last = total;
    }
    let said = thief.said();
    // It also complains when it comes too late.
    let taken: Vec<u64> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert!(taken.len() >= 12, "{said}");
    let (taken, missing) = (taken.iter().sum::<u64>(), written.saturating_sub(last));
    assert!(taken > 0 && last > 0, "{last} of {written}\n{said}");
    assert!(missing <= 512 * taken, "{missing} of {written} missing, {taken} sectors taken");
}

// Without a service.

#[test]
fn without_a_service_it_says_what_the_kernel_counts() {
    if !vm::inside("without_a_service_it_says_what_the_kernel_counts") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let [ours, theirs] = ["ours", "theirs"].map(|name| disk.path(name));
    for file in [&ours, &theirs] {
        write_pieces(file, 3);
    }
    succeed(command(PROGRAM).arg("update").args(["--alias", "mine", "--precise"]).arg(&ours));
    create_group(&theirs, "--alias <old>");
    overwrite(&ours, 0, 4);
    overwrite(&theirs, 32, 2);
    let all = totals();
    assert_eq!(all.service, None);
    let of = |alias: &str| all.files.iter().find(|file| file.alias == alias).unwrap();
    let (mine, old) = (of("mine"), of("<old>"));
    assert_eq!((mine.counters.written_bytes, mine.regions), (16 * KIB, 3));
    assert_eq!((old.counters.written_bytes, old.regions), (8 * KIB, 3));
    assert_eq!((mine.path.as_ref(), mine.mapped_bytes), (None, 48 * KIB));
    let times = [mine, old].map(|file| file.counters.write_time_ns);
    assert!(times.iter().all(|time| *time < 60_000_000_000), "{times:?}");
    assert_eq!(all.devices.len(), 1);
    assert!(all.devices[0].counters.unwrap().written_bytes > 24 * KIB);
    let table = succeed(command(PROGRAM).arg("totals"));
    assert!(table.contains("mine") && table.contains("16 KiB"), "{table}");
    let Outcome { status, stderr, .. } = outcome(command(PROGRAM).arg("totals").arg(text(&ours)));
    assert_eq!(status, Some(69), "{stderr}");
}

// Figures for the README: cargo test --test totals figures -- --ignored --nocapture

/// How much is missing while somebody else reads with `dmstats report`, and nobody asks the
/// service for totals meanwhile.
#[test]
#[ignore = "takes minutes, and shows figures"]
fn figures_of_what_a_report_takes() {
    if !vm::inside("figures_of_what_a_report_takes") {
        return;
    }
    for interval in [1, 5, 30] {
        let ramdisk = if interval == 1 { 0 } else { interval / 5 % 4 };
        let disk = Disk::format(ramdisk, "ext4", "");
        let file = disk.path("data");
        write(&file, 0, 512);
        let service = serve(&disk, "");
        assert_follows(&disk, "at the start", &file, "data");
        let report = format!("report --allregions --interval {interval} --count 0");
        let thief = Daemon::start(&mut dmstats(&report));
        let before = totals_of(&file).counters.written_bytes;
        vm::sh(&format!(
            "fio --name=x --filename={} --rw=randwrite --bs=4k --direct=1 --size=512k \
                 --rate_iops=200 --time_based --runtime=120 --output=/tmp/fio.json \
                 --output-format=json",
            file.display()
        ));
        let said: serde_json::Value =
            serde_json::from_str(&fs::read_to_string("/tmp/fio.json").unwrap()).unwrap();
        let written = said["jobs"][0]["write"]["io_bytes"].as_u64().unwrap();
        let after = totals_of(&file);
        let counted = after.counters.written_bytes - before;
        let (resets, readings) = (after.resets, totals().service.unwrap().readings.completed);
        println!(
            "report every {interval} s: {} of {written} bytes missing, {}%; {resets} resets, \
             {readings} readings",
            written - counted,
            100 * (written - counted) / written
        );
        drop((service, thief));
        vm::sh(&format!("umount {}; dmsetup remove {}", disk.mount.display(), disk.name));
    }
}
