//! What may happen to a file, a device and a service.

use dmfilemapd::engine::{Event, Pace};
use dmfilemapd::extent::Extent;

use super::disk::BLOCK;
use super::table::Weather;
use super::world::{Place, SECOND, World, device_limit, limits};

impl World {
    /// Something happens, somewhere.
    pub fn deed(&mut self) {
        let name = self.dice.index(self.names.len());
        let disk = self.dice.index(self.disks.len());
        match self.dice.below(200) {
            0..=3 => self.change_weather(),
            4..=5 => self.kill(),
            6..=15 => self.reload(),
            16..=21 => self.forget(),
            22..=23 => self.set_pace(),
            24 => self.remove_device(disk),
            25..=28 => self.bring_device(disk),
            29 => self.disks[disk].mounted = false,
            30..=45 => self.table.neighbour(self.disks[disk].device),
            46..=47 if self.table.weather.vandals > 0 => {
                self.table.vandal(self.disks[disk].device);
            }
            48 => self.rival(),
            49..=60 => self.rename(name),
            61..=68 => self.replace(name),
            69..=74 => self.unlink(name),
            75..=77 => self.link_elsewhere(name),
            78..=90 if self.names[name].at.is_none() => self.create(name),
            91..=96 => self.share(name),
            97..=100 => self.let_go_of_unlinked(disk),
            101..=103 => self.set_limits(),
            104..=110 => self.read_or_write(name),
            _ => {
                if let Some(place) = self.names[name].at {
                    self.change(place);
                }
            }
        }
    }

    fn change_weather(&mut self) {
        let dice = &mut self.dice;
        let weather = Weather {
            refusals: dice.pick(&[0, 0, 0, 5, 20]),
            neighbours: dice.pick(&[0, 3, 20]),
            vandals: dice.pick(&[0, 0, 30]),
        };
        let (stalls, failures) = (dice.pick(&[0, 0, 5, 50]), dice.pick(&[0, 0, 10]));
        // A lull is long enough for files to be left alone.
        let gap = dice.pick(&[SECOND / 10, SECOND, SECOND, 10 * SECOND, 60 * SECOND]);
        self.set_weather(weather, stalls, failures, gap);
        self.log.say(|| format!("{weather:?}, stalls {stalls}, failures {failures}, gap {gap}"));
    }

    /// The file's content or place changes.
    pub fn change(&mut self, (disk, inode): Place) {
        let (now, dice) = (self.now, &mut self.dice);
        let disk = &mut self.disks[disk];
        if !disk.mounted || !disk.inodes[inode].lives() {
            return;
        }
        let kind = dice.below(9);
        self.log.say(|| format!("change {kind} of inode {inode} on {}", disk.device));
        match kind {
            0 | 1 => disk.grow(now, dice, inode),
            2 => {
                let len = dice.index(disk.inodes[inode].blocks.len());
                disk.truncate(now, inode, len);
            }
            3 => disk.punch(now, dice, inode),
            4 if dice.one_in(2) => disk.truncate(now, inode, 0),
            5 => disk.overwrite(now, inode),
            6 => disk.write_back(now, dice, inode),
            7 => {
                disk.relocate(now, dice, inode);
                disk.touch(now, inode);
            }
            _ => disk.relocate(now, dice, inode),
        }
    }

    pub fn create(&mut self, name: usize) {
        let home = self.names[name].home;
        if !self.disks[home].mounted || self.names[name].at.is_some() {
            return;
        }
        let inode = self.disks[home].create(self.now);
        self.disks[home].grow(self.now, &mut self.dice, inode);
        self.put(name, Some((home, inode)));
    }

    /// Puts another file in the place of what is there.
    fn put(&mut self, name: usize, place: Option<Place>) {
        self.log.say(|| format!("at path {name}: {place:?}"));
        if let Some((disk, inode)) = place {
            self.disks[disk].inodes[inode].links += 1;
        }
        if let Some((disk, inode)) = std::mem::replace(&mut self.names[name].at, place) {
            self.disks[disk].inodes[inode].links -= 1;
            self.disks[disk].release(inode);
        }
    }

    /// Renamed over another, on the same disk.
    fn rename(&mut self, name: usize) {
        let to = self.dice.index(self.names.len());
        let Some((disk, _)) = self.names[name].at.filter(|(disk, _)| self.disks[*disk].mounted)
        else {
            return;
        };
        if to != name && self.names[to].home == disk {
            let place = self.names[name].at;
            self.put(to, place);
            self.put(name, None);
        }
    }

    /// A new file is renamed over the old one, which somebody may still have open.
    fn replace(&mut self, name: usize) {
        let home = self.names[name].home;
        if self.disks[home].mounted {
            self.hold(name);
            self.put(name, None);
            self.create(name);
        }
    }

    fn hold(&mut self, name: usize) {
        if let Some((disk, inode)) = self.names[name].at {
            self.disks[disk].inodes[inode].held |= self.dice.one_in(2);
        }
    }

    fn unlink(&mut self, name: usize) {
        if self.disks[self.names[name].home].mounted {
            self.hold(name);
            self.put(name, None);
        }
    }

    /// A symbolic link leads to a file on any disk.
    fn link_elsewhere(&mut self, name: usize) {
        let other = self.dice.index(self.names.len());
        if let Some(place) = self.names[other].at.filter(|_| other != name) {
            let inode = self.disks[place.0].create(self.now);
            self.disks[place.0].grow(self.now, &mut self.dice, inode);
            self.put(name, Some((place.0, inode)));
        }
    }

    /// A copy by reference takes the place of another file.
    fn share(&mut self, name: usize) {
        let to = self.dice.index(self.names.len());
        if let Some((disk, inode)) = self.names[name].at.filter(|(disk, _)| {
            to != name && self.names[to].home == *disk && self.disks[*disk].mounted
        }) {
            let copy = self.disks[disk].share(self.now, inode);
            self.put(to, Some((disk, copy)));
        }
    }

    fn let_go_of_unlinked(&mut self, disk: usize) {
        for inode in 0..self.disks[disk].inodes.len() {
            self.disks[disk].inodes[inode].held = false;
            self.disks[disk].release(inode);
        }
    }

    fn some_followed(&mut self) -> Option<dmfilemapd::engine::FileId> {
        let files = &self.service.as_ref()?.files;
        files.keys().nth(self.dice.index(files.len())).copied()
    }

    /// The configuration no longer names the file, for now.
    fn forget(&mut self) {
        if let Some(file) = self.some_followed() {
            let remove = self.dice.one_in(2);
            self.log.say(|| format!("forget {file:?}, {remove}"));
            self.happens(Event::Forget(file, remove));
            if self.dice.one_in(2) {
                self.reload();
            }
        }
    }

    fn set_pace(&mut self) {
        if let Some(file) = self.some_followed() {
            let interval = std::time::Duration::from_millis(self.dice.pick(&[50, 400, 3000]));
            let max_interval = interval * self.dice.pick(&[1, 7]);
            if let Some(service) = &mut self.service {
                service.engine.set_pace(file, Pace { interval, max_interval });
            }
        }
    }

    /// The configuration sets other limits.
    fn set_limits(&mut self) {
        let now = self.time();
        if self.dice.one_in(3) {
            self.max_device_regions = device_limit(&mut self.dice);
            self.log.say(|| format!("{} regions a device", self.max_device_regions));
            if let Some(service) = &mut self.service {
                service.engine.set_max_device_regions(now, self.max_device_regions);
            }
        }
        if let Some(file) = self.some_followed() {
            let limits = limits(&mut self.dice);
            self.log.say(|| format!("{file:?}: {limits:?}"));
            if let Some(service) = &mut self.service {
                self.names[service.files[&file].name].limits = limits;
                service.engine.set_limits(now, file, limits);
            }
        }
    }

    /// I/O on part of a file, for the regions there to count.
    fn read_or_write(&mut self, name: usize) {
        let Some((disk, inode)) = self.names[name].at else { return };
        let (disk, write) = (&self.disks[disk], self.dice.one_in(2));
        if let Some(block) = disk.inodes[inode].blocks.first().filter(|_| disk.exists) {
            let extent = Extent::new(*block as u64 * BLOCK, BLOCK).unwrap();
            self.table.memory.io(disk.device, extent, write);
        }
    }

    fn remove_device(&mut self, disk: usize) {
        self.log.say(|| format!("disk {disk} is removed"));
        let disk = &mut self.disks[disk];
        (disk.mounted, disk.exists, disk.removed) = (false, false, self.now);
        self.table.remove_device(disk.device);
    }

    /// The device is made and mounted again, under the same number.
    pub fn bring_device(&mut self, disk: usize) {
        let at = disk;
        let disk = &mut self.disks[disk];
        if !disk.exists {
            self.log.say(|| format!("disk {at} is made again"));
            let uuid = format!("LVM-{}-{}", disk.device, self.now);
            self.table.memory.add_device(disk.device, 1 << 30, "vm", uuid);
        }
        (disk.mounted, disk.exists) = (true, true);
    }
}
