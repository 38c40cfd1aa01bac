//! Who reads the grid of a device, and finds out whose the counts are.
//!
//! A clerk owns all that belongs to one device: the grid, the maps of the followed files, and a way
//! to the device-mapper of its own, by which it keeps hold of the grid. Each round takes it from
//! main to a thread and back. That may stall for as long as a file is locked by a writer, which is
//! why it is none of the threads that update groups.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use log::{debug, warn};
use nix::sys::statfs::statfs;

use super::jobs::processor_time;
use crate::counters::Counters;
use crate::dm::{Device, Dm};
use crate::engine::FileId;
use crate::entry::random;
use crate::extent::{Extent, Extents, SECTOR_BYTES};
use crate::grid::meter::Counted;
use crate::grid::owners::Owners;
use crate::grid::plan::{Change, Limits, Patch, revise};
use crate::grid::shares::{Share, Shares, in_question};
use crate::grid::table::{Grid, Stand};
use crate::home::sectors;
use crate::kernel::fiemap::Pages;
use crate::kernel::fsmap;
use crate::ledger::Holder;
use crate::mode::Mode;
use crate::paths::SharedPath;
use crate::place::Filesystem;
use crate::request::GridTotals;
use crate::sample::{self, Identity, Mount, Reach};
use crate::sight::{Imprint, Sight};
use crate::update::Error;

/// Areas that a filesystem is asked about in one round: what of them is free.
const QUESTIONS_MAX: usize = 4096;

/// The shortest time between two changes of a grid, each of which stops the device's I/O for a
/// moment.
const REST: Duration = Duration::from_secs(60);

/// How long somebody may have been looking at a file that is looked at here, too. One who takes
/// longer waits for who writes to it, as we would.
const LONG: Duration = Duration::from_secs(1);

/// By how much a file may seem older than it is (`current_time()` in the kernel: the time of the
/// last tick, of which there are a hundred a second at least, if nothing halts the machine).
const TICK: Duration = Duration::from_millis(10);

/// A file whose counts are wanted.
pub(super) struct Enlisted {
    pub(super) file: FileId,
    pub(super) holder: Holder,
    pub(super) path: SharedPath,
    pub(super) by: By,
    /// For how long somebody has been looking at it, who has its descriptor meanwhile.
    pub(super) away: Option<Duration>,
}

/// Where a file was for a while.
pub(super) struct Seen {
    pub(super) file: FileId,
    pub(super) holder: Holder,
    pub(super) map: Extents,
    /// What of that was never written.
    pub(super) blank: Extents,
}

/// What a file is followed by.
#[derive(Clone, Copy)]
pub(super) struct By {
    pub(super) mode: Mode,
    pub(super) identity: Identity,
    pub(super) realtime: bool,
    /// A descriptor of this process by which it is reached, should its path lead to it no more.
    pub(super) descriptor: Option<RawFd>,
}

/// What came of a round.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// What each file got.
    pub(super) shares: Vec<(FileId, Holder, Share)>,
    /// Files of which the grid has not all sectors: regions have to count them.
    pub(super) uncovered: Vec<FileId>,
    /// What was nobody's whom we follow.
    pub(super) others: Counters,
    /// Regions created.
    pub(super) created: usize,
    /// The grid was found where an earlier service had written down that it stood.
    pub(super) restored: bool,
    /// Processor time that it took.
    pub(super) cost: Duration,
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) claim: u32,
    pub(super) precise: bool,
    pub(super) limits: Limits,
    /// See [`Settings::settle`](crate::engine::Settings::settle).
    pub(super) settle: Duration,
    /// See [`Settings::full_look`](crate::engine::Settings::full_look).
    pub(super) full_look: Duration,
}

pub(super) struct Clerk {
    device: Device,
    dm: Box<dyn Dm + Send>,
    manner: Manner,
    /// How far an earlier service has read it.
    stands: Vec<Stand>,
    grid: Option<Grid>,
    /// What is to be changed before it is read the next time.
    change: Option<Change>,
    changed: Option<Instant>,
    owners: Owners<u32>,
    members: BTreeMap<FileId, Member>,
    /// Files that could not be made members yet: who looks at them has what it takes, or waits for
    /// them himself.
    unknown: Vec<FileId>,
    /// What parts of the grid had counted that are gone, until the next reading succeeds.
    handed_over: Vec<Vec<Counted>>,
    /// Those that are not followed any more, until the next reading is given away.
    leaving: BTreeMap<u32, (FileId, Holder)>,
    numbers: u32,
    /// Whether a map or the grid has changed since the grid was last planned.
    moved: bool,
    /// Files of which the grid had not all sectors when it was last planned.
    uncovered: Vec<FileId>,
    /// When the last reading was begun.
    read: Option<SystemTime>,
    rounds: u64,
    pages: Pages,
}

/// A file as the clerk knows it.
struct Member {
    number: u32,
    holder: Holder,
    path: SharedPath,
    reach: Reach,
    descriptor: Option<RawFd>,
    /// Somebody else has that.
    away: bool,
    stamp: Option<Imprint>,
    /// When the stamp was another one, and when the map was read.
    changed: Instant,
    mapped: Instant,
}

impl Clerk {
    /// A clerk for a device, whose grid stood there when an earlier service ended.
    pub(super) fn new(
        device: Device,
        dm: Box<dyn Dm + Send>,
        manner: Manner,
        stands: Vec<Stand>,
    ) -> Clerk {
        Clerk {
            device,
            dm,
            manner,
            stands,
            grid: None,
            change: None,
            changed: None,
            owners: Owners::default(),
            members: BTreeMap::new(),
            unknown: Vec::new(),
            leaving: BTreeMap::new(),
            handed_over: Vec::new(),
            numbers: 0,
            moved: true,
            uncovered: Vec::new(),
            read: None,
            rounds: 0,
            pages: Pages::default(),
        }
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    pub(super) fn grid(&self) -> Option<&Grid> {
        self.grid.as_ref()
    }

    /// Reads the grid, and gives away what it has counted since the last round. The first round
    /// finds the grid, or makes one.
    pub(super) fn round(
        &mut self,
        files: Vec<Enlisted>,
        may_change: bool,
        seen: Vec<Seen>,
    ) -> Result<Round, Error> {
        let start = processor_time();
        if self.members.is_empty() && self.rounds == 0 {
            self.owners = Owners::new(files.first().is_some_and(|file| lays_by(&file.path)));
        }
        let known = self.numbers;
        let newborn = self.enlist(files);
        self.take_in(seen, known, &newborn);
        let mut round = Round::default();
        if self.grid.is_none() {
            round.restored = self.find()?;
        }
        let began = SystemTime::now();
        if may_change {
            round.created = self.change();
        }
        let Some(grid) = &mut self.grid else { return Ok(round) };
        match grid.read(&mut *self.dm) {
            Ok(areas) => self.handed_over.push(areas),
            Err(error) => {
                self.grid = self.grid.take().filter(|_| !matches!(error, Error::GridGone));
                return Err(error);
            }
        }
        self.read = Some(began);
        self.look(&newborn);
        let mut shares = Shares::default();
        for areas in std::mem::take(&mut self.handed_over) {
            self.give(&areas, &mut shares);
        }
        self.owners.settle();
        round.others = shares.others;
        round.shares = self.name(shares);
        self.leaving.clear();
        self.plan();
        round.uncovered = [&*self.uncovered, &*self.unknown].concat();
        self.rounds += 1;
        round.cost = processor_time().saturating_sub(start);
        Ok(round)
    }

    /// Finds the grid. Gives whether it goes on from where it stood before.
    fn find(&mut self) -> Result<bool, Error> {
        let Manner { claim, precise, .. } = self.manner;
        let grid = Grid::find(&mut *self.dm, self.device, claim, precise, &self.stands)?;
        self.stands.clear();
        let restored = grid.stands().iter().any(|stand| !stand.areas.is_empty());
        self.grid = Some(grid);
        self.moved = true;
        self.plan();
        Ok(restored)
    }

    /// What the grid is like now.
    pub(super) fn describe(&self, totals: &mut GridTotals) {
        let patches = self.grid.as_ref().map(Grid::patches).unwrap_or_default();
        let bytes = |sectors: u64| sectors.saturating_mul(SECTOR_BYTES);
        totals.regions = patches.len() as u64;
        totals.areas = patches.iter().map(Patch::areas).sum();
        totals.area_bytes = bytes(patches.iter().map(|patch| patch.step).max().unwrap_or(0));
        totals.covered_bytes = bytes(patches.iter().map(|patch| patch.extent.len()).sum());
        totals.kernel_bytes = match patches.is_empty() {
            true => 0,
            false => self.manner.limits.bytes_of(&patches),
        };
    }

    /// Takes the grid off the device. Gives what it had counted.
    pub(super) fn retire(mut self) -> Round {
        let last = match self.grid.is_some() {
            true => self.round(Vec::new(), false, Vec::new()).unwrap_or_default(),
            false => Round::default(),
        };
        if let Some(grid) = self.grid.take() {
            if let Err(error) = grid.remove(&mut *self.dm) {
                debug!("{}: taking the grid away: {error}", self.device);
            }
        }
        last
    }

    /// Takes note of who came and went. Gives those whose files are younger than the last reading:
    /// all they have was written since.
    fn enlist(&mut self, files: Vec<Enlisted>) -> HashSet<FileId> {
        let mut before = std::mem::take(&mut self.members);
        let mut newborn = HashSet::new();
        self.unknown.clear();
        for Enlisted { file, holder, path, by, away } in files {
            let same = |member: &Member| member.holder == holder && member.path == path;
            let mut known = before.remove(&file);
            if let Some(mut member) = known.take_if(|member| same(member)) {
                member.away = away.is_some();
                member.descriptor = if member.away { member.descriptor } else { by.descriptor };
                self.members.insert(file, member);
                continue;
            }
            if let Some(other) = known {
                self.part_with(file, other);
            }
            if away.is_some_and(|long| long >= LONG) {
                self.unknown.push(file);
                continue;
            }
            let mut member = self.member(holder, path, by, away.is_some());
            if self.is_newborn(&member) {
                newborn.insert(file);
            } else {
                let map = member.look(None, &mut self.pages);
                if member.away && member.stamp.is_none() {
                    self.unknown.push(file);
                    continue;
                }
                if let Some((extents, blank)) = map {
                    self.owners.add(member.number, extents, blank);
                }
            }
            self.members.insert(file, member);
            self.moved = true;
        }
        for (file, member) in before {
            self.part_with(file, member);
        }
        newborn
    }

    /// Takes in where files were since the last round: those that were members then, by numbers up
    /// to `known`, or are younger.
    fn take_in(&mut self, seen: Vec<Seen>, known: u32, newborn: &HashSet<FileId>) {
        for Seen { file, holder, map, blank } in seen {
            let member = self.members.get(&file).filter(|member| member.holder == holder);
            let member = member.filter(|member| member.number <= known || newborn.contains(&file));
            if let Some(member) = member {
                self.moved |= self.owners.set(member.number, map, blank);
            }
        }
    }

    fn member(&mut self, holder: Holder, path: SharedPath, by: By, away: bool) -> Member {
        let By { mode, identity, descriptor, realtime } = by;
        let reach = Reach { mode, identity, open: None, mount: Mount::Unasked, realtime };
        self.numbers = self.numbers.wrapping_add(1);
        let (number, stamp, now) = (self.numbers, None, Instant::now());
        let (changed, mapped) = (now, now);
        Member { number, holder, path, reach, descriptor, away, stamp, changed, mapped }
    }

    fn part_with(&mut self, file: FileId, member: Member) {
        self.owners.remove(member.number);
        self.leaving.insert(member.number, (file, member.holder));
        self.moved = true;
    }

    fn is_newborn(&self, member: &Member) -> bool {
        let (Some(read), Ok(found)) = (self.read, std::fs::metadata(&member.path)) else {
            return false;
        };
        let Reach { mode, identity, .. } = member.reach;
        let itself = mode == Mode::Path || found.ino() == identity.inode;
        let older = |born| read.duration_since(born).unwrap_or_default(); // not if it is younger
        itself && found.created().is_ok_and(|born| older(born) <= TICK)
    }

    /// Changes the grid, if that is due. Gives how many regions it has created.
    fn change(&mut self) -> usize {
        let rested = self.changed.is_none_or(|changed| changed.elapsed() >= REST);
        let (Some(grid), true) = (&mut self.grid, rested) else { return 0 };
        let Some(change) = self.change.take() else { return 0 };
        self.changed = Some(Instant::now());
        self.moved = true;
        match grid.change(&mut *self.dm, &change, random()) {
            Ok(changed) => {
                self.handed_over.push(changed.counted);
                changed.created
            }
            Err(error) => {
                warn!("{}: the grid stays as it is: {error}", self.device);
                0
            }
        }
    }

    /// Says what the grid has not, and how it is to be changed next.
    fn plan(&mut self) {
        if !std::mem::take(&mut self.moved) {
            return;
        }
        self.uncovered = self.uncovered();
        let Some(grid) = &self.grid else { return };
        let maps: Vec<&Extents> = self.owners.maps().map(|(_, map)| map).collect();
        self.change = revise(&grid.patches(), sectors(self.device), &maps, &self.manner.limits);
    }

    /// Looks where the files are now.
    fn look(&mut self, newborn: &HashSet<FileId>) {
        let Manner { settle, full_look, .. } = self.manner;
        for (file, member) in &mut self.members {
            let due = newborn.contains(file)
                || member.changed.elapsed() < settle
                || member.mapped.elapsed() >= full_look;
            let taken = match due {
                true => None,
                false => match sample::compare(&member.path, &member.reach, member.stamp) {
                    Ok(None) => continue,
                    Ok(taken) => taken,
                    Err(_) => None,
                },
            };
            if let Some((extents, blank)) = member.look(taken.as_ref(), &mut self.pages) {
                self.moved |= self.owners.set(member.number, extents, blank);
            }
        }
    }

    /// Gives to everybody what is his of what areas have counted.
    fn give(&mut self, areas: &[Counted], shares: &mut Shares<u32>) {
        if areas.is_empty() {
            return;
        }
        let extents: Vec<Extent> = areas.iter().map(|area| area.extent).collect();
        let tenancies = self.owners.tenancies(&extents, &Extents::default());
        let free = self.free(&in_question(areas, &tenancies));
        let tenancies = self.owners.tenancies(&extents, &free);
        shares.give(areas, &tenancies, self.rounds);
    }

    /// What of these areas nobody has, as far as the filesystem says.
    fn free(&self, areas: &[Extent]) -> Extents {
        let mut free = Vec::new();
        if areas.is_empty() {
            return Extents::default();
        }
        let Some(file) = self.members.values().find_map(|member| self.open(member)) else {
            return Extents::default();
        };
        for area in areas.iter().take(QUESTIONS_MAX) {
            if let Err(error) = fsmap::free(&file, self.device, *area, &mut free) {
                debug!("{}: what is free: {error}", self.device);
                break;
            }
        }
        free.into_iter().collect()
    }

    /// A file of the filesystem, open.
    fn open(&self, member: &Member) -> Option<File> {
        let file = sample::open_regular(&member.path).ok()?;
        let device = sample::device(&file.metadata().ok()?);
        (device == self.device).then_some(file)
    }

    /// The shares by file.
    fn name(&mut self, shares: Shares<u32>) -> Vec<(FileId, Holder, Share)> {
        let mut names: BTreeMap<u32, (FileId, Holder)> = std::mem::take(&mut self.leaving);
        for (file, member) in &self.members {
            if shares.files.contains_key(&member.number) {
                names.insert(member.number, (*file, member.holder.clone()));
            }
        }
        let named = |(number, share)| names.remove(&number).map(|(file, of)| (file, of, share));
        shares.files.into_iter().filter_map(named).collect()
    }

    /// Members of which the grid has not all sectors. All maps are compared with it.
    fn uncovered(&self) -> Vec<FileId> {
        let patches = self.grid.as_ref().map(Grid::patches).unwrap_or_default();
        let taken: Extents = patches.iter().map(|patch| patch.extent).collect();
        let maps: BTreeMap<u32, &Extents> = self.owners.maps().collect();
        let covered = |member: &Member| {
            let map = maps.get(&member.number);
            !taken.is_empty() && map.is_some_and(|map| map.without(&taken).is_empty())
        };
        self.members.iter().filter(|(_, of)| !covered(of)).map(|(file, _)| *file).collect()
    }
}

/// Whether the filesystem lays by sectors for files that grow: see [`Owners::new`].
fn lays_by(path: &Path) -> bool {
    #[allow(clippy::useless_conversion)] // the type is not the same everywhere
    let magic = statfs(path).map_or(0, |stat| i64::from(stat.filesystem_type().0));
    Filesystem::from_magic(magic) == Filesystem::Ext
}

impl Member {
    /// The file's extents and what of them is blank; nothing if they cannot be had. A stamp that
    /// was taken just now is not taken again.
    fn look(&mut self, taken: Option<&Imprint>, pages: &mut Pages) -> Option<(Extents, Extents)> {
        self.mapped = Instant::now();
        let mut sight = sample::look(&self.path, &mut self.reach, self.stamp, taken, false, pages);
        if matches!(sight, Sight::Absent { .. }) && self.reach.mode == Mode::Inode {
            sight = match self.look_by_descriptor(pages) {
                Some(sight) => sight,
                None if self.away => return None, // it is somewhere
                None => sight,
            };
        }
        match sight {
            Sight::Mapped(stamp, map) => {
                if self.stamp.replace(stamp) != Some(stamp) {
                    self.changed = self.mapped;
                }
                Some((map.extents, map.blank))
            }
            Sight::Absent { .. } | Sight::Unused => {
                self.stamp = None;
                Some(<(Extents, Extents)>::default())
            }
            Sight::Unmounted | Sight::Failed(_) => None,
        }
    }

    /// The inode is at its path no more, and main has it open. By the time the descriptor may be
    /// another file's, which the reach would tell.
    fn look_by_descriptor(&self, pages: &mut Pages) -> Option<Sight> {
        let path = format!("/proc/self/fd/{}", self.descriptor?);
        let Reach { mode, identity, mount, realtime, .. } = self.reach;
        let mut reach = Reach { mode, identity, open: None, mount, realtime };
        Some(sample::look(Path::new(&path), &mut reach, None, None, false, pages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::plan;
    use crate::kernel::memory::Memory;

    const DEVICE: Device = Device { major: 253, minor: 0 };

    /// A clerk that has made a round.
    fn clerk() -> Clerk {
        let mut memory = Memory::new();
        memory.add_device(DEVICE, 1 << 20, "name", "UUID");
        let limits = plan::Limits { bytes: 1 << 20, cpus: 1, areas: 64, regions: 1, finest: 8 };
        let (settle, full_look) = (Duration::ZERO, Duration::MAX);
        let manner = Manner { claim: 1, precise: false, limits, settle, full_look };
        let mut clerk = Clerk::new(DEVICE, Box::new(memory), manner, Vec::new());
        clerk.round(Vec::new(), false, Vec::new()).unwrap();
        clerk
    }

    const AWAY: Option<Duration> = Some(Duration::ZERO);

    fn enlisted(path: &Path, mode: Mode, away: Option<Duration>) -> Vec<Enlisted> {
        let holder = Holder { device: "UUID".into(), key: 1, nonce: None };
        let inode = std::fs::metadata(path).map_or(0, |found| found.ino());
        let identity = Identity { inode, generation: 0 };
        let by = By { mode, identity, realtime: false, descriptor: None };
        vec![Enlisted { file: FileId(0), holder, path: path.into(), by, away }]
    }

    /// Makes a round with them; whether the file is a member then, and whether regions are to
    /// count it.
    fn round(clerk: &mut Clerk, files: Vec<Enlisted>) -> (bool, bool) {
        let round = clerk.round(files, false, Vec::new()).unwrap();
        (clerk.members.contains_key(&FileId(0)), round.uncovered == [FileId(0)])
    }

    #[test]
    fn a_file_that_is_born_while_somebody_looks_at_it_is_taken_in_at_once() {
        let (mut clerk, folder) = (clerk(), tempfile::tempdir().unwrap());
        let path = folder.path().join("x");
        std::fs::write(&path, "").unwrap();
        let files = enlisted(&path, Mode::Path, AWAY);
        assert!(round(&mut clerk, files).0, "else what it wrote in this interval is lost");
        let member = &clerk.members[&FileId(0)];
        assert!(clerk.is_newborn(member), "though it may be a tick older than the first round");
        clerk.read = Some(SystemTime::now() + Duration::from_secs(1));
        assert!(!clerk.is_newborn(&clerk.members[&FileId(0)]));
    }

    #[test]
    fn a_file_that_somebody_has_looked_at_for_long_waits() {
        let (mut clerk, folder) = (clerk(), tempfile::tempdir().unwrap());
        let path = folder.path().join("x");
        std::fs::write(&path, "").unwrap();
        let files = enlisted(&path, Mode::Path, Some(LONG));
        assert_eq!(round(&mut clerk, files), (false, true), "regions count it meanwhile");
        assert!(round(&mut clerk, enlisted(&path, Mode::Path, None)).0);
    }

    #[test]
    fn a_file_that_is_not_at_its_path_waits_for_its_descriptor() {
        let (mut clerk, folder) = (clerk(), tempfile::tempdir().unwrap());
        let path = folder.path().join("x");
        for mode in [Mode::Path, Mode::Inode] {
            assert_eq!(round(&mut clerk, enlisted(&path, mode, AWAY)), (false, true), "{mode:?}");
        }
        assert!(round(&mut clerk, enlisted(&path, Mode::Inode, None)).0);
    }

    /// What is at the path is younger, and does not count.
    #[test]
    fn a_file_whose_place_another_one_took_is_not_where_that_is() {
        let (mut clerk, folder) = (clerk(), tempfile::tempdir().unwrap());
        let [path, next] = ["x", "next"].map(|name| folder.path().join(name));
        std::fs::write(&path, "").unwrap();
        let files = || enlisted(&path, Mode::Inode, AWAY);
        let before = files();
        std::fs::write(&next, "").unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert_eq!(round(&mut clerk, before), (false, true));
        let (again, later) = (files(), files());
        clerk.read = Some(SystemTime::UNIX_EPOCH); // newborn, since not all filesystems give maps
        assert!(round(&mut clerk, again).0, "the other one is, though");
        // It goes, too: until its descriptor is back it is where it was.
        std::fs::remove_file(&path).unwrap();
        round(&mut clerk, later);
        let member = clerk.members.get_mut(&FileId(0)).unwrap();
        assert!(member.look(None, &mut Pages::default()).is_none());
        member.away = false;
        assert_eq!(member.look(None, &mut Pages::default()), Some(<_>::default()));
    }
}
