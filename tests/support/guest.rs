//! Filesystems, daemons and their judges, for tests that run inside the kernel of `vm.rs`.
//!
//! What is right is asked of others than the program: `filefrag` says where a file lies, without
//! having anything written back, `dmsetup` lists the regions, and `dialects.rs` reads the groups.
//! Whoever includes this file has `vm.rs` and `dialects.rs` beside it, as `vm` and `dialects`.
//!
//! ```text
//! let disk = Disk::format(0, "ext4", "-O inline_data"); // on /dev/ram0, mounted at /mnt/disk0
//! let file = disk.path("data");
//! fs::write(&file, "...")?;
//! let daemon = Daemon::run(&[file.as_ref()]);
//! assert_follows(&disk, "a new file", &file, "data"); // the group's alias is the file's name
//! ```

#![allow(dead_code)] // each file of tests uses its share

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::dialects::{self, Group, Reader};
use crate::vm;

/// Between two looks of a daemon that [`Daemon::run`] starts.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// How long anything may take in here before a test fails. What the program does after a minute at
/// the latest is to be seen on a slow host, too.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// How often it is asked for at least: a host may stand still for all of that time.
const TIMES: u32 = 20;

/// The start of the region that stands for a file without extents.
const ANCHOR: u64 = 1 << 54;

/// Where something lies: start and end, in sectors, sorted, nothing touching.
pub type Sectors = Vec<(u64, u64)>;

/// Sorts and joins what touches or overlaps.
pub fn merged(mut ranges: Sectors) -> Sectors {
    ranges.sort_unstable();
    let mut merged: Sectors = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

// Disks.

/// A mounted filesystem on a linear device-mapper device over the whole of a ramdisk.
#[derive(Debug)]
pub struct Disk {
    /// Of the device, as dmsetup takes it: `disk0`.
    pub name: String,
    /// `/dev/mapper/disk0`.
    pub node: PathBuf,
    /// `/mnt/disk0`.
    pub mount: PathBuf,
}

impl Disk {
    /// `mkfs.KIND OPTIONS` on `/dev/ram{ramdisk}`.
    pub fn format(ramdisk: u32, kind: &str, options: &str) -> Disk {
        Disk::format_and_mount(ramdisk, kind, options, "defaults")
    }

    /// Likewise, with options for the mount too.
    pub fn format_and_mount(ramdisk: u32, kind: &str, options: &str, mount_options: &str) -> Disk {
        let name = format!("disk{ramdisk}");
        let node = vm::linear(&name, ramdisk);
        Disk::format_device(name, node, kind, options, mount_options)
    }

    /// An ext4 on a device that takes so many milliseconds, to a tick of the kernel, for every I/O.
    pub fn slow(ramdisk: u32, delay_ms: u64) -> Disk {
        let name = format!("disk{ramdisk}");
        let sectors = vm::sh(&format!("blockdev --getsz /dev/ram{ramdisk}"));
        let table = format!("0 {} delay /dev/ram{ramdisk} 0 {delay_ms}", sectors.trim_end());
        let node = vm::table(&name, &table);
        Disk::format_device(name, node, "ext4", "-q", "defaults")
    }

    fn format_device(
        name: String,
        node: PathBuf,
        kind: &str,
        options: &str,
        mount_options: &str,
    ) -> Disk {
        let mount = Path::new("/mnt").join(&name);
        let (at, on) = (node.display(), mount.display());
        vm::sh(&format!(
            "mkfs.{kind} {options} {at} >/tmp/{name}.mkfs 2>&1 ||
                 {{ cat /tmp/{name}.mkfs; exit 1; }}
             mkdir -p {on}
             mount -t {kind} -o {mount_options} {at} {on}"
        ));
        Disk { name, node, mount }
    }

    /// Mounts it where it was mounted before.
    pub fn mount_again(&self) {
        vm::sh(&format!("mount {} {}", self.node.display(), self.mount.display()));
    }

    /// Of a file in its top folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }

    /// Sends a message to the device and returns the reply.
    pub fn message(&self, text: &str) -> String {
        output_of(Command::new("dmsetup").args(["message", &self.name, "0", text]))
    }

    /// All regions, of all programs.
    pub fn listing(&self) -> String {
        self.message("@stats_list")
    }

    /// The groups that both generations of LVM2 find, by id, as the newer one sees them.
    ///
    /// # Panics
    ///
    /// One of them would fail or crash.
    pub fn groups(&self) -> BTreeMap<u32, Group> {
        groups(&self.listing())
    }

    /// The group with this alias, and its id: the lowest, while an update moves it to another.
    pub fn group(&self, alias: &str) -> Option<(u32, Group)> {
        self.groups().into_iter().find(|(_, group)| group.alias == alias.as_bytes())
    }

    /// The regions that stand in no group, by id.
    pub fn strays(&self) -> Vec<u32> {
        let listing = self.listing();
        let members: Vec<u32> = groups(&listing).into_values().flat_map(|g| g.members).collect();
        let rows = dialects::rows(listing.as_bytes()).unwrap_or_else(|why| panic!("{why}"));
        rows.iter().map(|row| row.id).filter(|id| !members.contains(id)).collect()
    }

    /// Waits until there are none: `what` is over.
    pub fn wait_until_no_strays(&self, what: &str) {
        wait_until(what, || match self.strays()[..] {
            [] => Ok(()),
            ref strays => Err(format!("{strays:?}")),
        });
    }
}

fn groups(listing: &str) -> BTreeMap<u32, Group> {
    let read = |reader| {
        dialects::groups(reader, listing.as_bytes())
            .unwrap_or_else(|why| panic!("{reader:?} dmstats: {why}\n{listing}"))
    };
    let members = |groups: &BTreeMap<u32, Group>| -> Vec<Vec<u32>> {
        groups.values().map(|group| group.members.clone()).collect()
    };
    let (old, new) = (read(Reader::Old), read(Reader::New));
    assert_eq!(members(&old), members(&new), "{listing}");
    new
}

/// Has the kernel write back at once what is written, and the xfs that is mounted after this what
/// only its metadata tell, which else may take 30 s. Files that a daemon started after this follows
/// are at rest, that is their extents are not read any more, after less than six seconds.
pub fn write_back_soon() {
    vm::sh(
        "echo 20 >/proc/sys/vm/dirty_expire_centisecs
         echo 10 >/proc/sys/vm/dirty_writeback_centisecs
         xfs=/proc/sys/fs/xfs/xfssyncd_centisecs
         ! [ -e $xfs ] || echo 100 >$xfs",
    );
}

/// What a group counts; an anchor counts nothing.
pub fn counted(group: &Group) -> Sectors {
    merged(group.extents.iter().copied().filter(|(start, _)| *start != ANCHOR).collect())
}

/// Where the files lie, as `filefrag` says; `None` for one that is not there.
///
/// What has no address is left out: not yet written back, inline among metadata, reserved (at
/// address 0, on f2fs).
pub fn mapped(files: &[&Path]) -> Vec<Option<Sectors>> {
    // Without -s, which would write the file back; and -e, or indirect blocks were counted.
    let output = Command::new("filefrag").args(["-e", "-v", "-b512"]).args(files).output();
    let output = output.expect("there is filefrag, of e2fsprogs");
    let text = String::from_utf8_lossy(&output.stdout);
    let one = |file: &&Path| {
        let name = file.display();
        let (_, text) = text.split_once(&format!("File size of {name} is "))?;
        let (text, _) = text.split_once(&format!("\n{name}: "))?;
        Some(merged(text.lines().filter_map(placed_extent).collect()))
    };
    files.iter().map(one).collect()
}

/// ```text
///  ext:     logical_offset:        physical_offset: length:   expected: flags:
///    0:        0..      15:      35288..     35303:     16:             last,unwritten,eof
/// ```
fn placed_extent(line: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = line.split(':').map(str::trim).collect();
    let [number, _, physical, length, rest @ ..] = fields.as_slice() else { return None };
    number.parse::<u64>().ok()?;
    let (start, _) = physical.split_once("..")?;
    let (start, length): (u64, u64) = (start.parse().ok()?, length.parse().ok()?);
    let unplaced = ["unknown_loc", "delalloc", "inline", "not_aligned", "tail_packed"];
    let flags = rest.last().copied().unwrap_or_default();
    let placed = start != 0 && !flags.split(',').any(|flag| unplaced.contains(&flag));
    placed.then_some((start, start + length))
}

// Judges.

/// Asks until there is an answer, and returns it.
///
/// # Panics
///
/// There was none in time. Says what was waited for, and why not, as of the last time.
pub fn wait_until<T>(what: &str, condition: impl FnMut() -> Result<T, String>) -> T {
    wait_for(PATIENCE, what, condition)
}

/// As [`wait_until`], for what takes longer.
///
/// # Panics
///
/// Likewise.
pub fn wait_for<T>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, String>,
) -> T {
    let (start, mut times) = (Instant::now(), 0);
    loop {
        match condition() {
            Ok(answer) => return answer,
            Err(why) => {
                times += 1;
                let enough = start.elapsed() >= patience && times >= TIMES;
                assert!(!enough, "{what}: not after {patience:?}: {why}");
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the group with this alias counts exactly what the file has, and stays so. Returns
/// where that is.
///
/// # Panics
///
/// It does not come to that in time. Says `what` was done to the file.
pub fn assert_follows(disk: &Disk, what: &str, file: &Path, alias: &str) -> Sectors {
    assert_all_follow(disk, what, &[(file, alias)]).remove(0)
}

/// Likewise for several files, each with the alias of its group.
pub fn assert_all_follow(disk: &Disk, what: &str, files: &[(&Path, &str)]) -> Vec<Sectors> {
    let paths: Vec<&Path> = files.iter().map(|(file, _)| *file).collect();
    let mut before = mapped(&paths);
    let mut right_since = None;
    wait_until(what, || {
        let listing = disk.listing();
        let after = mapped(&paths);
        let settled = before == after;
        before = after;
        let faults = faults(&listing, files, &before);
        if !settled || !faults.is_empty() {
            right_since = None;
            let moving = if settled { "" } else { "\nthe files are changing" };
            return Err(format!("{faults}{moving}\n{listing}"));
        }
        // Two intervals, so that the daemon has looked again and left it as it is.
        let since = *right_since.get_or_insert_with(Instant::now);
        match since.elapsed() > 2 * INTERVAL {
            true => Ok(before.iter().flatten().cloned().collect()),
            false => Err("it was right just now".to_owned()),
        }
    })
}

/// What is wrong with the groups of these files, which lie there.
fn faults(listing: &str, files: &[(&Path, &str)], maps: &[Option<Sectors>]) -> String {
    let groups = groups(listing);
    let mut faults = String::new();
    for ((file, alias), map) in files.iter().zip(maps) {
        let named = groups.values().filter(|group| group.alias == alias.as_bytes());
        let shown: Vec<Sectors> = named.map(counted).collect();
        let right = match &shown[..] {
            [shown] => Some(shown) == map.as_ref(),
            // A file that never had an extent has no group yet.
            [] => map.as_ref().is_some_and(Vec::is_empty),
            _ => false,
        };
        if !right {
            let name = file.display();
            write!(faults, "\n{name} has {map:?}\ngroups {alias} show {shown:?}").unwrap();
        }
    }
    faults
}

// Daemons.

/// A child process whose output goes into a file. It is killed when this is dropped, and its output
/// shown if the test has failed.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    output: PathBuf,
}

impl Daemon {
    /// `dmfilemapd run ARGS`, which has its files open and looks every [`INTERVAL`] when this
    /// returns. Other settings are for the environment of [`Daemon::start`].
    ///
    /// # Panics
    ///
    /// It ended instead.
    pub fn run(args: &[&OsStr]) -> Daemon {
        let daemon = Daemon::start(Daemon::command().args(args));
        daemon.wait_for("following ");
        daemon
    }

    /// `dmfilemapd run`, to be given more arguments and environment.
    pub fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dmfilemapd"));
        command.env("DMFILEMAPD_INTERVAL", format!("{}", INTERVAL.as_millis())).arg("run");
        command
    }

    /// Starts any command.
    pub fn start(command: &mut Command) -> Daemon {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let output =
            PathBuf::from(format!("/tmp/daemon.{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&output).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Daemon { child, output }
    }

    /// Its number, if it is not a daemon that has forked.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap()).into_owned()
    }

    /// Waits until it has said this.
    pub fn wait_for(&self, text: &str) {
        wait_until(&format!("the daemon says {text:?}"), || {
            let said = self.said();
            if said.contains(text) { Ok(()) } else { Err(said) }
        });
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        wait_until("the daemon ends", || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        // One of its threads may wait for a device that answers only when the test is over.
        let start = Instant::now();
        while start.elapsed() < PATIENCE / 10 && self.child.try_wait().is_ok_and(|it| it.is_none())
        {
            thread::sleep(Duration::from_millis(1));
        }
        if thread::panicking() {
            eprintln!("the daemon said:\n{}", self.said());
        }
    }
}

/// Runs a command and returns what it printed on stdout.
///
/// # Panics
///
/// It failed.
pub fn output_of(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}
