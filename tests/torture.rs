//! The program killed at any moment, in a real kernel, among readers and neighbours.
//!
//! After each kill somebody is left with what it left: that has to be a group with a whole map, to
//! both generations of dmstats, and the next start has to make the rest of it good.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/dialects.rs"]
mod dialects;
#[path = "support/guest.rs"]
mod guest;
#[path = "support/vm.rs"]
mod vm;

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use dmfilemapd::dm::{Dm as _, Turn};
use dmfilemapd::kernel::Control;
use dmfilemapd::kernel::process::hand_down;

use daemon::{
    PROGRAM, Table, by_hand, command, create_group, dmstats, looks, newer, outcome, punch, succeed,
    text, truncate, under, write, write_pieces,
};
use dialects::{Group, Reader};
use guest::{Daemon, Disk, Sectors, counted, mapped, wait_until};

/// The group's name, and what all its regions have.
const ALIAS: &str = "victim";
const OPTIONS: &str = "histogram:10,20";

/// What others write into aux_data.
const THEIRS: &str = "theirs";

/// The program under test, where it starts fastest: in the memory of this kernel.
fn program() -> &'static str {
    static COPY: LazyLock<&str> = LazyLock::new(|| {
        fs::copy(PROGRAM, "/tmp/dmfilemapd").unwrap();
        "/tmp/dmfilemapd"
    });
    &COPY
}

// What a table may look like.

/// The groups of this alias, by id, as both generations of LVM2 find them. The alias is as the
/// newer one sees it.
fn groups_of(listing: &str, alias: &str) -> BTreeMap<u32, Group> {
    let read = |reader| {
        let groups = dialects::groups(reader, listing.as_bytes());
        groups.unwrap_or_else(|why| panic!("{reader:?} dmstats: {why}\n{listing}"))
    };
    let members = |groups: &BTreeMap<u32, Group>| -> Vec<Vec<u32>> {
        groups.values().map(|group| group.members.clone()).collect()
    };
    let (old, mut new) = (read(Reader::Old), read(Reader::New));
    assert_eq!(members(&old), members(&new), "{listing}");
    new.retain(|_, group| group.alias == alias.as_bytes());
    new
}

/// The rows of others, by id.
fn theirs(listing: &str) -> BTreeMap<u32, String> {
    let rows = dialects::rows(listing.as_bytes()).unwrap();
    let rows = rows.iter().filter(|row| row.aux() == THEIRS.as_bytes());
    rows.map(|row| (row.id, row.line.escape_ascii().to_string())).collect()
}

/// Whether there is one group, with exactly this map, and nothing else that is ours.
fn healed(listing: &str, alias: &str, map: &Sectors) -> Result<Group, String> {
    let mut groups = groups_of(listing, alias);
    let Some((_, group)) = groups.pop_first().filter(|_| groups.is_empty()) else {
        return Err(format!("there is not one group\n{listing}"));
    };
    if counted(&group) != *map {
        return Err(format!("the file has {map:?}, the group {:?}\n{listing}", counted(&group)));
    }
    for row in dialects::rows(listing.as_bytes()).unwrap() {
        let (member, of_others) = (group.members.contains(&row.id), row.aux() == THEIRS.as_bytes());
        let options = std::str::from_utf8(row.options()).unwrap();
        if member == of_others || member && (row.program_id, options) != (b"dmstats", OPTIONS) {
            return Err(format!("region {} is out of place\n{listing}", row.id));
        }
    }
    Ok(group)
}

// Killed at each ioctl.

/// What an update that is killed finds.
struct Scene {
    name: &'static str,
    /// Who made the group.
    maker: Maker,
    /// Makes the file as the group shows it.
    before: fn(&Path),
    /// Makes it as the update is to show it.
    change: fn(&Path),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    Nobody,
    Us,
    /// And then somebody deleted the regions below it, so that new ones get lower ids.
    UsAboveHoles,
    Dmstats,
}

const fn scene(name: &'static str, maker: Maker, before: fn(&Path), change: fn(&Path)) -> Scene {
    Scene { name, maker, before, change }
}

fn three_pieces(file: &Path) {
    write_pieces(file, 3);
}

fn one_piece(file: &Path) {
    write(file, 0, 16);
}

fn empty(file: &Path) {
    File::create(file).unwrap();
}

fn one_more(file: &Path) {
    write(file, 512, 16);
}

fn first_gone(file: &Path) {
    punch(file, 0, 16);
}

fn first_moved(file: &Path) {
    one_more(file);
    first_gone(file);
}

fn all_moved(file: &Path) {
    write(file, 512, 16);
    write(file, 640, 16);
    punch(file, 0, 96);
}

#[test]
fn killed_at_any_ioctl_it_leaves_a_whole_map() {
    if !vm::inside("killed_at_any_ioctl_it_leaves_a_whole_map") {
        return;
    }
    cut_everywhere(&[
        scene("made", Maker::Nobody, empty, three_pieces),
        scene("grown", Maker::Us, three_pieces, one_more),
        scene("the leader's gone", Maker::Us, three_pieces, first_gone),
        scene("the leader's moved", Maker::Us, three_pieces, first_moved),
        scene("all moved", Maker::Us, three_pieces, all_moved),
    ]);
}

#[test]
fn killed_at_any_ioctl_of_a_hand_over_it_leaves_a_whole_map() {
    if !vm::inside("killed_at_any_ioctl_of_a_hand_over_it_leaves_a_whole_map") {
        return;
    }
    cut_everywhere(&[
        scene("the only one moved", Maker::Us, one_piece, first_moved),
        scene("emptied", Maker::Us, three_pieces, empty),
        scene("filled", Maker::Us, empty_again, three_pieces),
        scene("grown below", Maker::UsAboveHoles, three_pieces, one_more),
        scene("moved below", Maker::UsAboveHoles, three_pieces, all_moved),
        scene("adopted", Maker::Dmstats, three_pieces, first_moved),
    ]);
}

/// One that had a group before it became empty.
fn empty_again(file: &Path) {
    one_piece(file);
    succeed(&mut update(file, None));
    truncate(file, 0);
}

fn update(file: &Path, group: Option<u32>) -> Command {
    let mut command = command(program());
    command.args(["update", "--alias", ALIAS, "--bounds", "10ms,20ms"]);
    command.args(group.map(|id| format!("--group={id}"))).arg(file);
    command
}

fn cut_everywhere(scenes: &[Scene]) {
    let disk = Disk::format(0, "ext4", "");
    let mut random = Random::from_environment();
    let mut kills = 0;
    for (at, scene) in scenes.iter().enumerate() {
        let file = disk.path(&format!("data{at}"));
        let mut cuts = Cuts::of(&disk, &file, scene);
        let before = kills;
        let mut nth = 1;
        while cuts.cut(nth, &mut kills) {
            if !cuts.is_at_start() {
                cuts.cut(1 + random.below(nth), &mut kills); // and the repair is cut, too
                cuts.heal();
            }
            nth += 1;
        }
        println!("{}: {} ioctls, {} kills", scene.name, nth - 1, kills - before);
        assert!(nth > 5, "{}: there was next to nothing to kill", scene.name);
    }
    println!("{kills} kills");
}

/// One update to be cut, again and again.
struct Cuts<'a> {
    file: &'a Path,
    table: Table,
    maker: Maker,
    /// As the newer dmstats sees it.
    alias: &'static str,
    /// The listing that each first cut finds.
    start: String,
    old: Option<Sectors>,
    new: Sectors,
}

impl<'a> Cuts<'a> {
    fn of(disk: &Disk, file: &'a Path, scene: &Scene) -> Cuts<'a> {
        let mut table = Table::of(disk);
        table.clear();
        // The dmstats of lvm2 cannot make a group while there are regions of others.
        let low = if scene.maker == Maker::Dmstats { &[][..] } else { &["other", "dmstats"][..] };
        let low: Vec<u32> =
            low.iter().map(|program| table.create("0+8", program, THEIRS)).collect();
        (scene.before)(file);
        match scene.maker {
            Maker::Nobody => {}
            Maker::Us | Maker::UsAboveHoles => drop(succeed(&mut update(file, None))),
            Maker::Dmstats => {
                create_group(file, &format!("--alias {ALIAS} --bounds 10ms,20ms"));
            }
        }
        table.create("8+8", "other", THEIRS);
        if scene.maker == Maker::UsAboveHoles {
            for id in low {
                table.send(&format!("@stats_delete {id}"));
            }
        }
        let start = table.listing().replace("#fm=", "#note.fm=").replace("#-", "#note");
        let alias = if scene.maker == Maker::Dmstats { newer(ALIAS) } else { ALIAS };
        let old = groups_of(&start, alias).pop_first().map(|(_, group)| counted(&group));
        assert_eq!(old.is_none(), scene.maker == Maker::Nobody, "{start}");
        (scene.change)(file);
        let new = mapped(&[file]).remove(0).unwrap();
        assert_ne!(old.as_ref(), Some(&new), "{}: nothing changes", scene.name);
        table.restore(&start);
        Cuts { file, table, maker: scene.maker, alias, start, old, new }
    }

    /// Runs the update and kills it at its `nth` ioctl; whether it came to that.
    fn cut(&mut self, nth: u32, kills: &mut u32) -> bool {
        let update = self.update();
        let inject = format!("inject=ioctl:signal=SIGKILL:when={nth}");
        let tool = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=ioctl", "-e", &inject];
        let output = under(&tool, &update).output().unwrap();
        let killed = output.status.signal() == Some(9);
        assert!(killed || output.status.success(), "{output:?}");
        *kills += u32::from(killed);
        self.check(killed);
        killed
    }

    /// As it is typed when the group is LVM2's: with the id that the listing gives.
    fn update(&mut self) -> Command {
        let groups = groups_of(&self.table.listing(), self.alias);
        let group = groups.keys().next().filter(|_| self.maker == Maker::Dmstats);
        update(self.file, group.copied())
    }

    /// A reader finds the old map or the new, and what is not ours as it was.
    fn check(&mut self, killed: bool) {
        let listing = self.table.listing();
        let groups = groups_of(&listing, self.alias);
        let whole = |group: &Group| Some(counted(group)) == self.old || counted(group) == self.new;
        let first = self.maker == Maker::Nobody && killed && groups.is_empty();
        assert!(groups.values().any(whole) || first, "{:?} {:?}\n{listing}", self.old, self.new);
        assert_eq!(theirs(&listing), theirs(&self.start), "{listing}");
        if killed {
            if listing != self.start {
                succeed(&mut dmstats("report"));
            }
            return;
        }
        let group = healed(&listing, self.alias, &self.new).unwrap_or_else(|why| panic!("{why}"));
        let user = String::from_utf8(group.user).unwrap();
        let marked = if self.maker == Maker::Nobody { "fm=" } else { "note.fm=" };
        assert!(user.starts_with(marked), "{listing}");
    }

    fn is_at_start(&mut self) -> bool {
        self.table.listing() == self.start
    }

    /// Lets an update run to its end, and goes back to the start.
    fn heal(&mut self) {
        succeed(&mut self.update());
        self.check(false);
        self.table.restore(&self.start.clone());
    }
}

/// A daemon in lvm2's form, cut at each message of an update; and the next one in its place.
#[test]
fn a_daemon_killed_at_any_message_leaves_a_whole_map() {
    if !vm::inside("a_daemon_killed_at_any_message_leaves_a_whole_map") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let (file, next) = (disk.path("data"), disk.path("next"));
    let mut table = Table::of(&disk);
    write_pieces(&file, 3);
    create_group(&file, &format!("--alias {ALIAS} --bounds 10ms,20ms"));
    table.create("0+8", "other", THEIRS);
    let mut nth = 0;
    loop {
        nth += 1;
        let old = mapped(&[&file]).remove(0).unwrap();
        let mut daemon = restarted_by_hand(&mut table, &file);
        wait_until("the daemon follows", || healed(&table.listing(), newer(ALIAS), &old));
        let _strace = attached(daemon.pid(), nth);
        write_pieces(&next, 3);
        let new = mapped(&[&next]).remove(0).unwrap();
        fs::rename(&next, &file).unwrap(); // all moves at once
        let killed = wait_until("the daemon is killed or done", || {
            let listing = table.listing();
            match (daemon.is_running(), healed(&listing, newer(ALIAS), &new)) {
                (false, _) => Ok(true),
                (true, healed) => healed.map(|_| false),
            }
        });
        let listing = table.listing();
        let whole = |group: &Group| [&old, &new].contains(&&counted(group));
        assert!(
            groups_of(&listing, newer(ALIAS)).values().any(whole),
            "{old:?} {new:?}\n{listing}"
        );
        assert_eq!(theirs(&listing).len(), 1, "{listing}");
        if !killed {
            break;
        }
        assert_eq!(daemon.wait_for_end().signal(), Some(9), "{}", daemon.said());
    }
    println!("{} kills", nth - 1);
    assert!(nth > 6, "there was next to nothing to kill");
}

/// `dmfilemapd 3 ID FILE path 1`, with the id that the listing gives.
fn restarted_by_hand(table: &mut Table, file: &Path) -> Daemon {
    let listing = table.listing();
    let groups = groups_of(&listing, newer(ALIAS));
    let group = *groups.keys().next().unwrap_or_else(|| panic!("no group is left\n{listing}"));
    Daemon::start(&mut by_hand(file, group, "path 1"))
}

/// Somebody who kills the process when it is about to send its `nth` message from now on.
fn attached(pid: u32, nth: u32) -> Daemon {
    let (pid, inject) = (pid.to_string(), format!("inject=ioctl:signal=SIGKILL:when={nth}"));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-o", "/dev/null", "-P", "/dev/mapper/control", "-e", &inject, "-p", &pid]);
    let strace = Daemon::start(&mut strace);
    strace.wait_for("attached");
    strace
}

// Killed at random moments.

/// How often, unless the environment says otherwise: `TEST_KILLS=5000 cargo test --test
/// torture random -- --nocapture`. `TEST_SEED` is the other setting.
const KILLS: u32 = 160;

#[test]
fn killed_at_random_moments_it_leaves_a_whole_group() {
    if !vm::inside("killed_at_random_moments_it_leaves_a_whole_group") {
        return;
    }
    kill_in_a_crowd(&Disk::format(0, "ext4", ""), Form::Native);
}

#[test]
fn in_the_form_of_lvm2_killed_at_random_moments_it_leaves_a_whole_group() {
    if !vm::inside("in_the_form_of_lvm2_killed_at_random_moments_it_leaves_a_whole_group") {
        return;
    }
    kill_in_a_crowd(&Disk::format(0, "xfs", ""), Form::ByHand);
}

/// How the program is started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `dmfilemapd run FILE`.
    Native,
    /// `dmfilemapd 3 ID FILE inode 1`, with an id that the listing gives.
    ByHand,
}

fn kill_in_a_crowd(disk: &Disk, form: Form) {
    let file = disk.path("data");
    three_pieces(&file);
    succeed(&mut update(&file, None));
    let mut table = Table::of(disk);
    let noted = table.listing().replace("#fm=", "#note.fm=");
    table.restore(&noted);
    let mut random = Random::from_environment();
    let crowd = Crowd::default();
    thread::scope(|scope| {
        let (file, crowd) = (file.as_path(), &crowd);
        let [hand, neighbour] = [random.fork(), random.fork()];
        scope.spawn(move || crowd.change_the_file(file, hand));
        scope.spawn(move || crowd.make_and_delete_regions(Table::of(disk), neighbour));
        scope.spawn(|| crowd.read("list"));
        scope.spawn(|| crowd.read("report"));
        crowd.stop_after(|| crowd.kill_again_and_again(&mut table, file, form, random));
    });
}

/// Everybody else in the machine.
#[derive(Default)]
struct Crowd {
    done: AtomicBool,
    /// Whoever has this lock is the only one who changes the file.
    file: Mutex<()>,
    /// The rows of the neighbour.
    theirs: Mutex<BTreeMap<u32, String>>,
    changes: AtomicU32,
    reads: AtomicU32,
}

impl Crowd {
    fn goes_on(&self) -> bool {
        !self.done.load(Ordering::Relaxed)
    }

    /// Ends the others, even by a panic, or the test would never end.
    fn stop_after(&self, work: impl FnOnce()) {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&self.done);
        work();
    }

    fn change_the_file(&self, file: &Path, mut random: Random) {
        while self.goes_on() {
            let at = u64::from(random.below(48)) * 16;
            let guard = self.file.lock().unwrap();
            match random.below(20) {
                0 => truncate(file, 0),
                1..3 => truncate(file, at),
                3..6 => punch(file, 0, at + 16),
                6..10 => punch(file, at, 16),
                10..15 => write(file, at, 16),
                15..17 => move_pieces(file, [0, 768]),
                _ => move_pieces(file, [768, 0]),
            }
            drop(guard);
            self.changes.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_micros(u64::from(random.below(8000))));
        }
    }

    /// Somebody of another program, and somebody of the same. Their regions have a histogram like
    /// ours, since `dmstats report` relies on what it listed: it fails on one that it does not
    /// expect, and an id may be another's by then.
    fn make_and_delete_regions(&self, mut table: Table, mut random: Random) {
        while self.goes_on() {
            let mut theirs = self.theirs.lock().unwrap();
            let program = ["other", "dmstats"][random.below(2) as usize];
            if random.below(8) >= u32::try_from(theirs.len()).unwrap() {
                let id = table.create_with("800+8", OPTIONS, program, THEIRS);
                theirs.insert(id, format!("{id}: 800+8 8 {program} {THEIRS} {OPTIONS}"));
            } else {
                let nth = random.below(u32::try_from(theirs.len()).unwrap()) as usize;
                let id = *theirs.keys().nth(nth).unwrap();
                table.send(&format!("@stats_delete {id}"));
                theirs.remove(&id);
            }
            drop(theirs);
            thread::sleep(Duration::from_micros(u64::from(random.below(8000))));
        }
    }

    /// `dmstats list` or `dmstats report`, as fast as it can when there is nothing better to do.
    fn read(&self, what: &str) {
        // Between its listing and its reading a region there may be deleted, by whomever.
        let gone = "failed: No such file or directory";
        self.stop_after(|| {
            while self.goes_on() {
                let outcome = outcome(&mut under(&["nice", "-n", "5"], &dmstats(what)));
                let complaints = outcome.stderr.lines().filter(|line| !line.ends_with(gone));
                assert!(outcome.status == Some(0) && complaints.count() == 0, "{outcome:?}");
                self.reads.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    fn kill_again_and_again(&self, table: &mut Table, file: &Path, form: Form, mut random: Random) {
        let kills = env::var("TEST_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
        let mut amid = 0;
        for kill in 1..=kills {
            let calm = kill % 10 == 0;
            // Those in the calm are of the other form, so that each finds what the other left.
            let mut victim = match (form == Form::Native) != calm {
                true => Victim::natively(file),
                false => Victim::by_hand(file, &table.listing(), &mut random),
            };
            match calm {
                true => self.calm(table, file),
                false => self.let_it_work(&victim, random.below(60_000)),
            }
            victim.kill();
            amid += u32::from(self.check(table));
            assert!(self.goes_on(), "somebody else has failed");
        }
        let (changes, reads) = (&self.changes, &self.reads);
        println!("{kills} kills, {amid} amid an update; {changes:?} changes, {reads:?} reads");
    }

    /// For a random time, most often from its first look on, since it takes long to come to that.
    fn let_it_work(&self, victim: &Victim, microseconds: u32) {
        while microseconds % 4 > 0 && self.goes_on() && looks(victim.0.pid()) < 4 {
            thread::sleep(Duration::from_millis(2));
        }
        thread::sleep(Duration::from_micros(u64::from(microseconds)));
    }

    /// Lets the daemon that runs catch up with the file.
    fn calm(&self, table: &mut Table, file: &Path) {
        let _guard = self.file.lock().unwrap();
        let group = wait_until("a calm", || {
            let map = mapped(&[file]).remove(0).unwrap();
            healed(&table.listing(), ALIAS, &map)
        });
        let user = String::from_utf8(group.user).unwrap();
        assert!(user.starts_with("note.fm="), "{user}");
    }

    /// There is a group that every dmstats can read, and nobody has touched what is not ours.
    /// Whether a cut update shows.
    fn check(&self, table: &mut Table) -> bool {
        let expected: MutexGuard<'_, BTreeMap<u32, String>> = self.theirs.lock().unwrap();
        let listing = table.listing();
        assert_eq!(theirs(&listing), *expected, "{listing}");
        drop(expected);
        let groups = groups_of(&listing, ALIAS);
        assert!(matches!(groups.len(), 1 | 2), "{} groups\n{listing}", groups.len());
        let members: usize = groups.values().map(|group| group.members.len()).sum();
        let rows = dialects::rows(listing.as_bytes()).unwrap().len();
        members != rows - theirs(&listing).len()
    }
}

/// Makes a dozen pieces from there on, and none there.
fn move_pieces(file: &Path, [to_kib, from_kib]: [u64; 2]) {
    write(file, to_kib, 32 * 12);
    for at in 0..12 {
        punch(file, to_kib + 32 * at + 16, 16);
    }
    punch(file, from_kib, 768);
}

/// A daemon that is going to be killed.
struct Victim(Daemon);

impl Victim {
    fn natively(file: &Path) -> Victim {
        let mut run = command(program());
        run.args(["run", "--alias", ALIAS, "--bounds", "10ms,20ms"]).arg(file);
        Victim(Daemon::start(run.env("DMFILEMAPD_INTERVAL", "1ms")))
    }

    fn by_hand(file: &Path, listing: &str, random: &mut Random) -> Victim {
        let groups = groups_of(listing, ALIAS);
        let at = random.below(u32::try_from(groups.len()).unwrap()) as usize;
        let group = groups.keys().nth(at).unwrap().to_string();
        let mut start = command(program());
        let open = File::open(file).unwrap();
        let number = hand_down(&mut start, open.as_fd()).unwrap().to_string();
        start.args([&number, &group, text(file), "inode", "1"]);
        Victim(Daemon::start(start.env("DMFILEMAPD_INTERVAL", "1ms")))
    }

    /// It must not have ended by itself.
    fn kill(&mut self) {
        daemon::signal(self.0.pid(), nix::sys::signal::Signal::SIGKILL);
        assert_eq!(self.0.wait_for_end().signal(), Some(9), "{}", self.0.said());
    }
}

// Nobody follows it any more.

/// Killed amid a first update, so that there are regions and no group; `gc` deletes them, and finds
/// nothing after that. A group that is being followed stays as it is.
#[test]
fn what_is_killed_and_never_comes_back_goes_by_gc() {
    if !vm::inside("what_is_killed_and_never_comes_back_goes_by_gc") {
        return;
    }
    let disk = Disk::format(0, "ext4", "");
    let (lost, kept) = (disk.path("lost"), disk.path("kept"));
    let mut table = Table::of(&disk);
    table.create("0+8", "other", THEIRS);
    write_pieces(&lost, 3);
    write_pieces(&kept, 3);
    let _daemon = Daemon::run(&[kept.as_ref()]);
    let follows = |listing: &str| groups_of(listing, "kept").len() == 1;
    let calm = wait_until("there is a group", || {
        let listing = table.listing();
        if follows(&listing) { Ok(listing) } else { Err(listing) }
    });

    let inject = "inject=ioctl:signal=SIGKILL:when=5"; // version, two listings, two creates
    let tool = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=ioctl", "-P"];
    let tool = [&tool[..], &["/dev/mapper/control", "-e", inject]].concat();
    let output = under(&tool, &update(&lost, None)).output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{output:?}");
    let cut = table.listing();
    assert_ne!(cut, calm, "something is left");

    let gc = |words: &[&str]| succeed(command(program()).arg("gc").args(words));
    let orphans = cut.lines().count() - calm.lines().count();
    let said = gc(&["--dry-run"]);
    assert_eq!(said.matches(", of dmstats, marked fm=").count(), orphans, "{said}");
    assert_eq!(said.matches(" @stats_delete ").count(), orphans, "{said}");
    assert_eq!(table.listing(), cut, "a dry run changes nothing");

    let mut other = Control::open().unwrap();
    other.begin_turn(vm::device(&disk.node), Turn::Shared).unwrap();
    let busy = outcome(command(program()).args(["gc", "--wait", "10ms"]));
    assert!(busy.status == Some(1) && busy.stderr.contains("another dmfilemapd"), "{busy:?}");
    assert_eq!(table.listing(), cut, "an update is under way");
    drop(other);

    let said = gc(&["--wait", "10ms", "disk0"]);
    assert!(said.contains(&format!(": {orphans} orphan")), "{said}");
    assert_eq!(table.listing(), calm);
    succeed(&mut dmstats("list --allprograms"));
    assert!(gc(&["--wait", "10ms", text(&disk.node)]).contains("nothing to delete"));
}

/// Who updates a group has a turn at the device, which ends with the process and not before.
#[test]
fn turns_are_kept_by_the_kernel() {
    if !vm::inside("turns_are_kept_by_the_kernel") {
        return;
    }
    let [first, second] = [0, 1].map(|ramdisk| vm::linear(&format!("d{ramdisk}"), ramdisk));
    let (first, second) = (vm::device(&first), vm::device(&second));
    let [mut a, mut b] = [(), ()].map(|()| Control::open().unwrap());
    let named = a.devices().unwrap();
    let expected = [(first, &b"d0"[..]), (second, b"d1")];
    assert_eq!(named.iter().map(|n| (n.device, &n.name[..])).collect::<Vec<_>>(), expected);

    a.begin_turn(first, Turn::Shared).unwrap();
    b.begin_turn(first, Turn::Shared).unwrap();
    b.end_turn(first);
    let busy = |control: &mut Control, device, turn| {
        let outcome = control.begin_turn(device, turn);
        outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert!(busy(&mut b, first, Turn::Alone));
    b.begin_turn(second, Turn::Alone).unwrap();
    assert!(busy(&mut a, second, Turn::Shared) && busy(&mut a, second, Turn::Alone));
    drop(a);
    b.begin_turn(first, Turn::Alone).unwrap();
    b.end_turn(first);
    Control::open().unwrap().begin_turn(first, Turn::Alone).unwrap();
}

/// Numbers that look random: xorshift, by George Marsaglia.
struct Random(u64);

impl Random {
    fn from_environment() -> Random {
        let seed = env::var("TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
        println!("seed {seed}");
        Random(seed + 1)
    }

    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(end)).unwrap()
    }

    fn fork(&mut self) -> Random {
        Random(u64::from(self.below(u32::MAX)) + 1)
    }
}
