//! The table of regions, in weather: what is refused, what neighbours do, and who is killed.

use std::collections::BTreeMap;
use std::io;

use dmfilemapd::dm::{Device, Dm, Reply};
use dmfilemapd::kernel::Memory;
use nix::errno::Errno;

use super::dialects::{Reader, Row, descriptor, groups, rows};
use super::dice::Dice;
use super::log::Log;

/// Once in how many messages something happens; 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub refusals: u64,
    pub neighbours: u64,
    /// Somebody deletes what is ours while an update is under way.
    pub vandals: u64,
}

#[derive(Debug)]
pub struct Table {
    pub memory: Memory,
    pub dice: Dice,
    pub weather: Weather,
    pub log: Log,
    /// Messages until the process is killed, and whether the last one is carried out: before it
    /// ends, or when the next process is at work.
    pub fuel: Option<(usize, Last)>,
    pub late: Option<(Device, Vec<u8>)>,
    /// Somebody has deleted what is ours since the order was begun.
    pub vandalised: bool,
    /// Messages that change anything.
    pub changes: usize,
    /// Rows of neighbours.
    theirs: BTreeMap<(Device, u32), Vec<u8>>,
    /// Keys of files whose groups others have touched since they are followed.
    pub wronged: Vec<(Device, u64)>,
    /// Keys of files whose groups others have touched since the last update.
    pub broken: Vec<(Device, u64)>,
}

/// What becomes of the message that is sent as a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    Lost,
    CarriedOut,
    /// Carried out later: a `@stats_create` waits for I/O.
    Late,
}

impl Table {
    pub fn new(dice: Dice, log: Log) -> Table {
        Table {
            memory: Memory::new(),
            dice,
            weather: Weather::default(),
            log,
            fuel: None,
            late: None,
            vandalised: false,
            changes: 0,
            theirs: BTreeMap::new(),
            wronged: Vec::new(),
            broken: Vec::new(),
        }
    }

    pub fn listing(&mut self, device: Device) -> Option<Vec<u8>> {
        self.memory.message(device, b"@stats_list").ok().map(|reply| reply.text)
    }

    pub fn remove_device(&mut self, device: Device) {
        self.memory.remove_device(device);
        self.theirs.retain(|(on, _), _| *on != device);
    }

    fn devices_listing(&mut self, device: Device) -> Vec<u8> {
        self.listing(device).unwrap_or_default()
    }

    /// Why dmstats cannot read the groups of a device, unless others have broken that group.
    fn unreadable(&mut self, device: Device) -> Option<String> {
        let listing = self.devices_listing(device);
        let read = |reader| groups(reader, &listing).err().map(|why| format!("{reader:?}: {why}"));
        let by_us = |why: &String| {
            key_in(why.as_bytes()).is_none_or(|key| !self.broken.contains(&(device, key)))
        };
        Reader::BOTH.into_iter().filter_map(read).find(by_us)
    }

    /// Another program creates a region, or deletes one of its own.
    pub fn neighbour(&mut self, device: Device) {
        let own: Vec<u32> =
            self.theirs.keys().filter(|(on, _)| *on == device).map(|(_, id)| *id).collect();
        if own.len() > 12 || !own.is_empty() && self.dice.one_in(2) {
            let id = self.dice.pick(&own);
            self.theirs.remove(&(device, id));
            self.send(device, &format!("@stats_delete {id}"));
        } else {
            let program = self.dice.pick(&["dmstats", "other"]);
            let made = self.send(device, &format!("@stats_create 4000+8 /1 0 {program} theirs"));
            if let Some(id) = made.and_then(|text| String::from_utf8(text).ok()?.parse().ok()) {
                // A member that somebody deleted is named still: who takes its id becomes one.
                let row = format!("{id}: 4000+8 8 {program} theirs");
                if program == "other" || !self.is_named(device, id) {
                    self.theirs.insert((device, id), row.into_bytes());
                }
            }
        }
    }

    fn is_named(&mut self, device: Device, id: u32) -> bool {
        let listing = self.devices_listing(device);
        let rows = rows(&listing).unwrap();
        let group = |row: &Row<'_>| descriptor(Reader::New, row.id, row.tail).ok().flatten();
        rows.iter().filter_map(group).any(|group| group.members.contains(&id))
    }

    /// Somebody deletes a region of ours, or a whole group of ours, or makes it no group any more.
    pub fn vandal(&mut self, device: Device) {
        let listing = self.devices_listing(device);
        let rows = rows(&listing).unwrap();
        let ours: Vec<_> =
            rows.iter().filter_map(|row| Some((row.id, key_in(row.tail)?, row.aux()))).collect();
        if ours.is_empty() {
            return;
        }
        let (id, key, aux) = ours[self.dice.index(ours.len())];
        self.wronged.push((device, key));
        self.broken.push((device, key));
        self.vandalised = true;
        match self.dice.below(3) {
            0 => {
                for (id, _, _) in ours.iter().filter(|(_, other, _)| *other == key) {
                    self.send(device, &format!("@stats_delete {id}"));
                }
            }
            1 if aux.starts_with(b"DMS_GROUP") => {
                self.send(device, &format!("@stats_set_aux {id} -"));
            }
            _ => {
                self.send(device, &format!("@stats_delete {id}"));
            }
        }
    }

    fn send(&mut self, device: Device, text: &str) -> Option<Vec<u8>> {
        self.log.say(|| format!("somebody on {device}: {text}"));
        self.memory.message(device, text.as_bytes()).ok().map(|reply| reply.text)
    }

    /// What was sent by a process that is dead reaches the device.
    pub fn arrive(&mut self) {
        if let Some((device, text)) = self.late.take() {
            self.carry_out(device, &text).ok();
        }
    }

    fn check(&mut self, device: Device) {
        if self.vandalised {
            // What was deleted under an update's hands is a neighbour's by now, perhaps.
            let listing = self.devices_listing(device);
            let rows = rows(&listing).unwrap();
            let stands = |row: &Vec<u8>| rows.iter().any(|found| found.line == row);
            self.theirs.retain(|(on, _), row| *on != device || stands(row));
            return;
        }
        let listing = self.devices_listing(device);
        let rows = rows(&listing).unwrap();
        for ((on, id), row) in &self.theirs {
            let found = rows.iter().find(|found| *on != device || found.id == *id);
            assert!(*on != device || found.is_some_and(|found| found.line == row), "theirs: {id}");
        }
        let why = self.unreadable(device);
        assert_eq!(why, None, "\n{}", String::from_utf8_lossy(&listing));
    }

    fn weather(&mut self, device: Device, text: &[u8]) -> io::Result<()> {
        if self.dice.one_in(self.weather.neighbours) {
            self.neighbour(device);
        }
        if self.dice.one_in(self.weather.vandals) {
            self.vandal(device);
        }
        if self.dice.one_in(self.weather.refusals) {
            let errno = self.dice.pick(&[Errno::ENOMEM, Errno::EIO]);
            self.log.say(|| format!("  {errno} {}", text.escape_ascii()));
            return Err(errno.into());
        }
        Ok(())
    }

    /// Whether the process is there still; its last message may be carried out all the same.
    fn burn(&mut self, device: Device, text: &[u8]) -> io::Result<()> {
        match &mut self.fuel {
            None => return Ok(()),
            Some((left, _)) if *left > 0 => {
                *left -= 1;
                return Ok(());
            }
            Some((_, last)) => match std::mem::replace(last, Last::Lost) {
                Last::Lost => {}
                Last::Late if text.starts_with(b"@stats_create") => {
                    self.late = Some((device, text.to_vec()));
                }
                Last::CarriedOut | Last::Late => {
                    self.log.say(|| format!("  killed after {}", text.escape_ascii()));
                    self.carry_out(device, text).ok();
                }
            },
        }
        Err(Errno::EIO.into())
    }

    /// Carries a message of ours out, after which dmstats has to be able to read what it was.
    fn carry_out(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        let reads: [&[u8]; 2] = [b"@stats_list", b"@stats_print "];
        let changes = !reads.iter().any(|read| text.starts_with(read));
        let reply = self.memory.message(device, text);
        if changes {
            let said = reply.as_ref().map(|reply| reply.text.escape_ascii().to_string());
            self.log.say(|| format!("  {}: {said:?}", text.escape_ascii()));
            self.changes += 1;
            self.check(device);
        }
        reply
    }
}

/// The key of the last mark in what follows a program_id.
pub fn key_in(tail: &[u8]) -> Option<u64> {
    let tail = std::str::from_utf8(tail).ok()?;
    let (_, word) = tail.rsplit_once("fm=")?;
    u64::from_str_radix(word.get(..16)?, 16).ok()
}

impl Dm for Table {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        self.burn(device, text)?;
        self.weather(device, text)?;
        self.carry_out(device, text)
    }
}
