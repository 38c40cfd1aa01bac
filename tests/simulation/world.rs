//! The world: disks, names, the table of regions, and a service that is killed and started again.

use std::time::Duration;

use dmfilemapd::dm::Device;
use dmfilemapd::engine::{Pace, Settings, Time};
use dmfilemapd::mode::Mode;
use dmfilemapd::shape::Limits;
use dmfilemapd::sight::{Imprint, Sight};
use dmfilemapd::update::{self, Orphan};

use super::dice::Dice;
use super::disk::Disk;
use super::log::Log;
use super::service::{Entry, Service, Target};
use super::table::{Table, Weather};

/// Microseconds in a second.
pub const SECOND: u64 = 1_000_000;

/// What lies at a path: which file of which disk.
pub type Place = (usize, usize);

/// The orphans of each device.
type Found = Vec<(Device, Vec<Orphan>)>;

/// A path that may be followed.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// The disk of its folder.
    pub home: usize,
    pub at: Option<Place>,
    pub mode: Mode,
    pub pace: Pace,
    pub limits: Limits,
    pub restless: bool,
    pub wanted: bool,
}

pub struct World {
    pub dice: Dice,
    pub now: u64,
    pub log: Log,
    pub disks: Vec<Disk>,
    pub names: Vec<Name>,
    pub table: Table,
    pub service: Option<Service>,
    pub claim: u32,
    /// When a service that was killed is started again.
    pub restart: u64,
    /// When the orphans that were seen at its start are deleted.
    pub gc: Option<(u64, Found)>,
    /// When the last message of a killed process arrives.
    pub arrival: u64,
    /// Files that were followed and mapped so far: a simulation in which nothing happens is none.
    pub updates: usize,
    pub max_device_regions: u32,
    pub stalls: u64,
    pub failures: u64,
    /// Between two deeds, at most.
    pub gap: u64,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut dice = Dice::new(seed);
        let log = Log::default();
        let mut table = Table::new(Dice::new(dice.roll()), log.clone());
        let disks: Vec<Disk> = (0..=dice.index(3))
            .map(|minor| Disk::new(Device { major: 253, minor: u32::try_from(minor).unwrap() }))
            .collect();
        for disk in &disks {
            table.memory.add_device(disk.device, 1 << 30, "vm", format!("LVM-{}", disk.device));
        }
        // A write counter is read only where there are many files.
        let count = if dice.one_in(3) { 20 + dice.index(30) } else { 2 + dice.index(10) };
        let names = (0..count).map(|_| name(&mut dice, disks.len())).collect();
        let max_device_regions = device_limit(&mut dice);
        let mut world = World {
            dice,
            now: SECOND,
            log,
            disks,
            names,
            table,
            service: None,
            claim: 0xc0,
            restart: 0,
            gc: None,
            arrival: 0,
            updates: 0,
            max_device_regions,
            stalls: 0,
            failures: 0,
            gap: 0,
        };
        for name in 0..count {
            world.create(name);
        }
        world.start();
        world
    }

    pub fn time(&self) -> Time {
        Time::from(Duration::from_micros(self.now))
    }

    pub fn set_weather(&mut self, weather: Weather, stalls: u64, failures: u64, gap: u64) {
        (self.table.weather, self.stalls, self.failures, self.gap) =
            (weather, stalls, failures, gap);
    }

    /// Lets time pass until `end`, with deeds in between if there is to be torment.
    pub fn pass(&mut self, end: u64, torment: bool) {
        let mut deed = self.now + self.dice.below(self.gap);
        loop {
            let service = self.service.as_ref().map_or(self.restart, Service::next);
            let gc = self.gc.as_ref().map_or(u64::MAX, |(due, _)| *due);
            let arrival = if self.table.late.is_some() { self.arrival } else { u64::MAX };
            let deeds = if torment { deed } else { u64::MAX };
            let next = service.min(gc).min(arrival).min(deeds).max(self.now);
            if next >= end {
                break self.now = end;
            }
            self.now = next;
            self.log.set_time(next);
            for disk in &mut self.disks {
                disk.write_back_old(next, &mut self.dice);
            }
            match next {
                _ if next >= deeds => {
                    self.deed();
                    deed = next + 1 + self.dice.below(self.gap);
                }
                _ if next >= arrival => self.table.arrive(),
                _ if next >= gc => self.collect(),
                _ if self.service.is_none() => self.start(),
                _ => self.serve(),
            }
        }
    }

    /// Starts a service, which follows what there is.
    pub fn start(&mut self) {
        self.claim += 1;
        self.log.say(|| "the service starts".to_owned());
        let (read, max_device_regions) = (Some(Duration::from_secs(10)), self.max_device_regions);
        let settings = Settings { patient: true, read, max_device_regions, ..Settings::default() };
        self.service = Some(Service::new(settings, self.claim));
        let devices = self.disks.iter().map(|disk| disk.device);
        let seen = devices
            .filter_map(|device| Some((device, update::orphans(&mut self.table, device).ok()?)));
        self.gc = Some((self.now + 5 * SECOND, seen.collect()));
        self.reload();
    }

    fn collect(&mut self) {
        let Some((_, seen)) = self.gc.take() else { return };
        self.table.vandalised = false;
        for (device, orphans) in seen {
            // An update that is under way on the device keeps others out.
            if self.table.late.as_ref().is_none_or(|(late, _)| *late != device) {
                update::delete_orphans(&mut self.table, device, &orphans).ok();
            }
        }
    }

    /// Lists all orphans, and deletes what is still one a little later.
    pub fn collect_all(&mut self) {
        for at in 0..self.disks.len() {
            let device = self.disks[at].device;
            if let Ok(orphans) = update::orphans(&mut self.table, device) {
                update::delete_orphans(&mut self.table, device, &orphans).unwrap();
            }
        }
    }

    /// Follows what is wanted and there, and not followed yet.
    pub fn reload(&mut self) {
        let now = self.time();
        for name in 0..self.names.len() {
            let Some(place) = self.names[name].at.filter(|_| self.names[name].wanted) else {
                continue;
            };
            let key = self.key(name, place);
            let device = self.disks[place.0].device;
            let Some(service) = &mut self.service else { return };
            if !self.disks[place.0].mounted || service.follows_key(device, key) {
                continue;
            }
            let nonce = u32::try_from(self.dice.below(1 << 32)).unwrap();
            let target = match self.names[name].mode {
                Mode::Inode => Target::Inode(place),
                Mode::Path => Target::Path(name),
            };
            let entry = Entry::new(name, target, device, key, nonce, self.now);
            self.table.wronged.retain(|wronged| *wronged != (device, key));
            service.follow(now, &self.names[name], entry);
        }
    }

    /// What the file's mark begins with: its path, or which inode it is.
    pub fn key(&self, name: usize, (disk, inode): Place) -> u64 {
        match self.names[name].mode {
            Mode::Path => 0x1_0000_0000 + name as u64,
            Mode::Inode => 0x2_0000_0000 + ((disk as u64) << 24) + inode as u64,
        }
    }

    /// Where the file lies, or what is there instead.
    #[allow(clippy::result_large_err)] // as `sample` gives it
    pub fn find(&self, target: Target) -> Result<Place, Sight> {
        let place = match target {
            Target::Inode(place) => Some(place),
            Target::Path(name) => self.names[name].at.filter(|(disk, _)| self.disks[*disk].mounted),
        };
        if let Some((disk, inode)) = place {
            return match &self.disks[disk] {
                disk if !disk.exists => Err(Sight::Failed("stat: EIO".to_owned())),
                disk if !disk.inodes[inode].lives() => Err(Sight::Unused),
                _ => Ok((disk, inode)),
            };
        }
        let Target::Path(name) = target else { unreachable!("an inode has a place") };
        let home = &self.disks[self.names[name].home];
        let root = Device { major: 8, minor: 1 };
        let beside = vec![if home.mounted { home.device } else { root }];
        Err(Sight::Absent { found: "nothing".to_owned(), beside })
    }

    /// What a sampler sees that compares stamps.
    pub fn compare(
        &mut self,
        target: Target,
        last: Option<Imprint>,
    ) -> Result<Option<Imprint>, Sight> {
        let (_, _, now) = self.stat(target)?;
        Ok(Some(now).filter(|now| last != Some(*now)))
    }

    fn stat(&mut self, target: Target) -> Result<(usize, usize, Imprint), Sight> {
        if self.dice.one_in(self.failures) {
            return Err(Sight::Failed("stat: ENOMEM".to_owned()));
        }
        let (disk, inode) = self.find(target)?;
        Ok((disk, inode, self.disks[disk].stamp(inode)))
    }

    /// What one sees that reads the map.
    pub fn map(&mut self, target: Target, taken: Option<Imprint>) -> Sight {
        let (disk, inode, now) = match self.stat(target) {
            Ok(found) => found,
            Err(sight) => return sight,
        };
        let is_of_it = |it: &Imprint| (it.device, it.inode) == (now.device, now.inode);
        let stamp = taken.filter(is_of_it).unwrap_or(now);
        // A writer is at work between the two, and maybe between two pages of the map.
        let mut map = self.disks[disk].map(inode);
        if self.gap > 0 && self.dice.one_in(20) {
            self.change((disk, inode));
            let after = self.disks[disk].map(inode);
            if self.dice.one_in(2) {
                let both = map.extents.as_slice().iter().chain(after.extents.as_slice());
                map.extents = both.copied().collect();
                map.fingerprint = map.extents.fingerprint();
                map.torn = true;
            } else {
                map = after;
            }
        }
        Sight::Mapped(stamp, map)
    }
}

/// Many files have more extents than this, and some regions more than they need.
pub fn limits(dice: &mut Dice) -> Limits {
    let max_regions = dice.pick(&[1, 2, 3, 6, 9, 1000, 1000, 1000]);
    Limits { max_regions, fold_above: dice.pick(&[None, None, Some(0), Some(2)]) }
}

/// Regions that the groups of a device may have together.
pub fn device_limit(dice: &mut Dice) -> u32 {
    dice.pick(&[8, 30, 100, 4000, u32::MAX])
}

fn name(dice: &mut Dice, disks: usize) -> Name {
    let interval = Duration::from_millis(dice.pick(&[100, 500, 1000, 2000]));
    let max_interval = interval * dice.pick(&[1, 1, 4, 10]);
    Name {
        home: dice.index(disks),
        at: None,
        mode: dice.pick(&[Mode::Inode, Mode::Path]),
        pace: Pace { interval, max_interval },
        limits: limits(dice),
        restless: dice.one_in(10),
        wanted: true,
    }
}
