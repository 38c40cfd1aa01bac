//! The grid of a device in the kernel: made, found again, read, moved.
//!
//! Its regions have a program_id of their own, so that what is done to all regions of `dmstats`
//! leaves them alone; among it each plain `dmstats report`, which sets counters to zero. They are
//! in no group.
//!
//! A grid outlives the process that made it; the next one finds it by program_id and tag and goes
//! on. Whenever a process ends, there is never more left than regions with that tag.

use std::{fmt, io};

use super::meter::{Counted, Meter};
use super::plan::{Change, Patch};
use crate::counters::Counters;
use crate::dm::{Device, Dm, Turn};
use crate::extent::{Extent, Extents};
use crate::message::{Clockwork, Message, Region, RegionId, parse_created, parse_list};
use crate::update::{Conversation, Error};

/// The owner of a grid's regions.
pub const PROGRAM: &[u8] = b"dmfilemap";

/// Areas that one message reads: their rows take some 100 KiB, which the kernel formats and copies
/// while it holds the lock of the device's statistics.
const LINES: u64 = 2048;

/// Tries to move counts from one region to another while nothing is counted.
const TRIES: usize = 4;

/// What a region of a grid has in its aux_data: `grid=NONCE.CLAIM.`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Drawn for each region: by it one is known that was read before a restart.
    pub nonce: u32,
    /// Which process reads it: the one that wrote this last.
    pub claim: u32,
}

impl Tag {
    /// The tag of a region, if it is one of a grid.
    #[must_use]
    pub fn of(region: &Region<'_>) -> Option<Tag> {
        let text = std::str::from_utf8(region.aux).ok()?;
        let (nonce, claim) = text.strip_prefix("grid=")?.strip_suffix('.')?.split_once('.')?;
        let hex = |digits: &str| u32::from_str_radix(digits, 16).ok();
        let tag = Tag { nonce: hex(nonce)?, claim: hex(claim)? };
        (region.program_id == PROGRAM && tag.to_string() == text).then_some(tag)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grid={:08x}.{:08x}.", self.nonce, self.claim)
    }
}

/// The grid of a device.
#[derive(Clone, Debug)]
pub struct Grid {
    device: Device,
    claim: u32,
    precise: bool,
    /// By rising sector; no two overlap.
    regions: Vec<Placed>,
    /// What was read by a reading that failed further on.
    unread: Vec<Counted>,
}

/// A region of the grid.
#[derive(Clone, Debug)]
struct Placed {
    id: RegionId,
    nonce: u32,
    meter: Meter,
}

/// Where the areas of a region stood when it was read last, to be kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stand {
    /// Which region.
    pub nonce: u32,
    /// What each of its areas said.
    pub areas: Vec<Counters>,
}

/// What a change of a grid did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// What was counted until then, by regions that are gone now too.
    pub counted: Vec<Counted>,
    /// What was counted in the moment between two readings when counts were taken over: at most so
    /// much is missing from `counted` and from what comes later. Mostly nothing.
    pub missed: Counters,
    /// Regions created, each of which stopped the device's I/O for a moment.
    pub created: usize,
}

impl Grid {
    /// The grid that is there, if there is one; it bears our claim from here on. `stands` says how
    /// far it has been read; where a region is not among them, it counts from now on. As long as
    /// the process lives, [`delete_leftovers`] does not touch the grid.
    ///
    /// # Errors
    ///
    /// Those of the messages; [`Error::NoTurn`].
    pub fn find(
        mut dm: impl Dm,
        device: Device,
        claim: u32,
        precise: bool,
        stands: &[Stand],
    ) -> Result<Grid, Error> {
        dm.hold_grid(device, Turn::Shared).map_err(Error::NoTurn)?;
        let mut kernel = Conversation::in_turn(dm, device, Turn::Shared)?;
        let listing = list(&mut kernel)?;
        let mut grid = Grid { device, claim, precise, regions: Vec::new(), unread: Vec::new() };
        for row in &parse_list(&listing)? {
            let Some(tag) = Tag::of(row) else { continue };
            // A process that was killed while it moved the grid leaves the old and the new.
            let other = grid.regions.iter().any(|have| have.meter.extent().overlaps(row.extent));
            if other || !row.clockwork.bounds.is_empty() || row.step == 0 {
                kernel.delete(row.id)?;
                continue;
            }
            let mut meter = Meter::adopted(row.extent, row.step, row.clockwork.precise);
            if let Some(stand) = stands.iter().find(|stand| stand.nonce == tag.nonce) {
                meter.restore(stand.areas.clone());
            }
            let aux = Tag { claim, ..tag }.to_string();
            kernel.send(&Message::SetAux { id: row.id, aux: aux.as_bytes() })?;
            grid.insert(Placed { id: row.id, nonce: tag.nonce, meter });
        }
        Ok(grid)
    }

    fn insert(&mut self, placed: Placed) {
        let start = placed.meter.extent().start();
        let at = self.regions.partition_point(|have| have.meter.extent().start() < start);
        self.regions.insert(at, placed);
    }

    /// Its regions, by rising sector.
    pub fn patches(&self) -> Vec<Patch> {
        let patch = |placed: &Placed| {
            let meter = &placed.meter;
            Patch { extent: meter.extent(), step: meter.step() }
        };
        self.regions.iter().map(patch).collect()
    }

    /// Where its areas stand.
    pub fn stands(&self) -> Vec<Stand> {
        let stand =
            |placed: &Placed| Stand { nonce: placed.nonce, areas: placed.meter.stand().to_vec() };
        self.regions.iter().map(stand).collect()
    }

    /// What has been counted since it was read last, by rising sector; areas that counted nothing
    /// are left out.
    ///
    /// # Errors
    ///
    /// [`Error::GridGone`] and [`Error::GridTakenOver`], which end it; those of the messages, after
    /// which it may be read again.
    pub fn read(&mut self, dm: impl Dm) -> Result<Vec<Counted>, Error> {
        let mut kernel = Conversation::new(dm, self.device);
        self.check(&mut kernel)?;
        // What is known of some regions is not lost if others cannot be read.
        let mut counted = std::mem::take(&mut self.unread);
        for placed in &mut self.regions {
            if let Err(error) = placed.read(&mut kernel, &mut counted) {
                self.unread = counted;
                return Err(error);
            }
        }
        Ok(joined(counted))
    }

    /// Whether all regions are what they were. Their ids may be those of others by now.
    fn check<D: Dm>(&self, kernel: &mut Conversation<D>) -> Result<(), Error> {
        let listing = list(kernel)?;
        let rows = parse_list(&listing)?;
        for placed in &self.regions {
            let (extent, step) = (placed.meter.extent(), placed.meter.step());
            let same =
                |row: &&Region<'_>| (row.id, row.extent, row.step) == (placed.id, extent, step);
            let tag = rows.iter().find(same).and_then(Tag::of);
            match tag.filter(|tag| tag.nonce == placed.nonce) {
                None => return Err(Error::GridGone),
                Some(tag) if tag.claim != self.claim => return Err(Error::GridTakenOver),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Changes the grid. Nothing that was counted before is lost: it is in what comes back, but for
    /// what came back too late (see [`Changed::missed`]), and is counted once.
    ///
    /// `nonce` is drawn anew each time.
    ///
    /// # Errors
    ///
    /// As of [`Grid::read`], and `ENOMEM` where there is no room. Then the grid is as it was,
    /// unless the device could not be talked to any more.
    pub fn change(&mut self, dm: impl Dm, change: &Change, nonce: u32) -> Result<Changed, Error> {
        let mut kernel = Conversation::in_turn(dm, self.device, Turn::Shared)?;
        self.check(&mut kernel)?;
        let mut new = Vec::new();
        for (patch, at) in change.create.iter().zip(0..) {
            match self.create(&mut kernel, patch, nonce.wrapping_add(at)) {
                Ok(placed) => new.push(placed),
                Err(error) => {
                    for placed in new {
                        kernel.delete(placed.id)?;
                    }
                    return Err(error);
                }
            }
        }
        let mut changed = Changed { created: new.len(), ..Changed::default() };
        let mut old = Vec::new();
        for at in (0..self.regions.len()).rev().filter(|at| change.delete.contains(at)) {
            old.push(self.regions.remove(at));
        }
        let as_read = old.clone();
        let outcome = hand_over(&mut kernel, &mut old, &mut new, &mut changed);
        if let Err(error) = outcome {
            for placed in as_read {
                self.insert(placed);
            }
            for placed in new {
                kernel.delete(placed.id)?;
            }
            return Err(error);
        }
        for placed in new {
            self.insert(placed);
        }
        for placed in old {
            kernel.delete(placed.id)?;
        }
        Ok(changed)
    }

    fn create<D: Dm>(
        &self,
        kernel: &mut Conversation<D>,
        patch: &Patch,
        nonce: u32,
    ) -> Result<Placed, Error> {
        let Patch { extent, step } = *patch;
        let aux = Tag { nonce, claim: self.claim }.to_string();
        let (program_id, aux) = (PROGRAM, aux.as_bytes());
        let clockwork = Clockwork { precise: self.precise, bounds: b"" };
        let create = Message::CreateAreas { extent, step, clockwork, program_id, aux };
        let id = parse_created(&kernel.send(&create)?)?;
        Ok(Placed { id, nonce, meter: Meter::new(extent, step, self.precise) })
    }

    /// Takes the grid off the device. What it has counted since it was read is lost.
    ///
    /// # Errors
    ///
    /// As of [`Grid::read`].
    pub fn remove(self, mut dm: impl Dm) -> Result<(), Error> {
        let mut kernel = Conversation::in_turn(&mut dm, self.device, Turn::Shared)?;
        self.check(&mut kernel)?;
        self.regions.iter().try_for_each(|placed| kernel.delete(placed.id))?;
        drop(kernel);
        dm.let_grid_go(self.device);
        Ok(())
    }
}

impl Placed {
    fn read<D: Dm>(
        &mut self,
        kernel: &mut Conversation<D>,
        counted: &mut Vec<Counted>,
    ) -> Result<(), Error> {
        let areas = self.meter.areas();
        let mut first = 0;
        while first < areas {
            let lines = Some((first, LINES.min(areas - first)));
            let answer = kernel.send(&Message::Print { id: self.id, lines })?;
            let at = usize::try_from(first).map_err(|_| Error::GridGone)?;
            match self.meter.take(at, &answer, counted)? {
                0 => return Err(Error::GridGone),
                taken => first += taken as u64,
            }
        }
        Ok(())
    }
}

/// Makes the new regions count from where the old ones end.
///
/// Both count for a moment. The new ones are read, the old ones, and the new ones again: if those
/// have counted nothing in between, the old ones end exactly where the new ones begin.
fn hand_over<D: Dm>(
    kernel: &mut Conversation<D>,
    old: &mut [Placed],
    new: &mut [Placed],
    changed: &mut Changed,
) -> Result<(), Error> {
    if old.is_empty() {
        return Ok(()); // those that stay and those that come have nothing in common
    }
    let twice: Extents = old.iter().map(|placed| placed.meter.extent()).collect();
    let mut counted = Vec::new();
    let mut read_new = |kernel: &mut Conversation<D>, counted: &mut Vec<Counted>| {
        let mut again = Vec::new();
        new.iter_mut().try_for_each(|placed| placed.read(kernel, &mut again))?;
        Ok::<_, Error>(sort_out(again, &twice, counted))
    };
    let (_, mut partly) = read_new(kernel, &mut counted)?;
    let mut between = Counters::default();
    for _ in 0..TRIES {
        old.iter_mut().try_for_each(|placed| placed.read(kernel, &mut counted))?;
        let (twice, once) = read_new(kernel, &mut counted)?;
        partly += &once;
        between = twice;
        if between.is_zero() {
            break;
        }
    }
    changed.missed = between;
    changed.missed += &partly;
    changed.counted = joined(counted);
    Ok(())
}

/// Parts what new regions have counted: what no old one counts is added to `counted`. Given back
/// are the sums of what old ones count as well, and of what they count in part.
fn sort_out(
    areas: Vec<Counted>,
    old: &Extents,
    counted: &mut Vec<Counted>,
) -> (Counters, Counters) {
    let (mut twice, mut partly) = (Counters::default(), Counters::default());
    for area in areas {
        let extent: Extents = [area.extent].into_iter().collect();
        match (extent.intersects(old), extent.without(old).is_empty()) {
            (false, _) => counted.push(area),
            (true, true) => twice += &area.counters,
            (true, false) => partly += &area.counters,
        }
    }
    (twice, partly)
}

/// By rising sector, each area once.
fn joined(mut counted: Vec<Counted>) -> Vec<Counted> {
    counted.sort_by_key(|area| area.extent);
    counted.dedup_by(|next, area| {
        let same = next.extent == area.extent;
        if same {
            area.counters += &next.counters;
        }
        same
    });
    counted
}

/// The regions of a grid that no process reads: none while one does.
///
/// # Errors
///
/// Those of the listing; [`Error::NoTurn`] if the control node cannot be locked.
pub fn leftovers(dm: impl Dm, device: Device) -> Result<Vec<(RegionId, Extent)>, Error> {
    alone(dm, device, false)
}

/// Deletes the regions of a grid that no process reads. Gives how many those were.
///
/// # Errors
///
/// As of [`leftovers`], and those of the deletions; what is left may be deleted later.
pub fn delete_leftovers(dm: impl Dm, device: Device) -> Result<usize, Error> {
    Ok(alone(dm, device, true)?.len())
}

/// Lists a grid that nobody reads, and deletes it if that is wanted.
fn alone(mut dm: impl Dm, device: Device, delete: bool) -> Result<Vec<(RegionId, Extent)>, Error> {
    match dm.hold_grid(device, Turn::Alone) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Vec::new()),
        held => held.map_err(Error::NoTurn)?,
    }
    let mut kernel = Conversation::new(&mut dm, device);
    let found = list(&mut kernel).and_then(|listing| {
        let rows = parse_list(&listing)?;
        let ours = rows.iter().filter(|row| Tag::of(row).is_some());
        let found: Vec<_> = ours.map(|row| (row.id, row.extent)).collect();
        if delete {
            found.iter().try_for_each(|(id, _)| kernel.delete(*id))?;
        }
        Ok(found)
    });
    drop(kernel);
    dm.let_grid_go(device);
    found
}

/// The regions of program_id [`PROGRAM`].
fn list<D: Dm>(kernel: &mut Conversation<D>) -> Result<Vec<u8>, Error> {
    kernel.send(&Message::List { program_id: Some(PROGRAM) })
}
