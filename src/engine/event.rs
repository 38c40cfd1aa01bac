//! What happens, and what is to be done about it.

use std::time::Duration;

use super::{FileId, Report};
use crate::dm::Device;
use crate::extent::Extents;
use crate::shape::Limits;
use crate::sight::{Imprint, Sight};
use crate::update::{self, Group, Standing, Updated};

/// A look at one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The file.
    pub file: FileId,
    /// Of the stamp of its last map.
    pub last: Option<Imprint>,
}

/// Looks at files of one device, to be made one after the other, and what came of them.
///
/// Of most there is nothing to tell. What there is has lists of its own: it takes several times the
/// room of a look, and a batch of a thousand would not stay in a processor's first caches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The device they lie on.
    pub device: Device,
    /// Whether the maps are to be read, and by which of the [`super::MAPPING_MAX`] batches. Else
    /// it is the stamp alone that is compared with the last one.
    pub maps: Option<usize>,
    /// The looks; never none, and one for a file.
    pub looks: Vec<Look>,
    /// Imprints of stamps that are others than those of the last maps: of some of the files, in the
    /// order of the looks. This is what was seen, or it was seen before and is why the maps are to
    /// be read.
    pub changed: Vec<(FileId, Imprint)>,
    /// What else was seen: likewise.
    pub sights: Vec<(FileId, Sight)>,
}

impl Batch {
    /// Makes the looks of one that compares stamps: `compare` makes one, and gives the imprint of
    /// the stamp if that is not the last map's.
    pub fn compare(&mut self, mut compare: impl FnMut(&Look) -> Result<Option<Imprint>, Sight>) {
        for look in &self.looks {
            match compare(look) {
                Ok(None) => {}
                Ok(Some(stamp)) => self.changed.push((look.file, stamp)),
                Err(sight) => self.sights.push((look.file, sight)),
            }
        }
    }

    /// Makes the looks of one that reads maps: `map` makes one, with the imprint of the stamp if
    /// one was taken already.
    pub fn map(&mut self, mut map: impl FnMut(&Look, Option<&Imprint>) -> Sight) {
        let mut changed = self.changed.iter().peekable();
        self.sights.extend(self.looks.iter().map(|look| {
            let taken = changed.next_if(|(file, _)| *file == look.file).map(|(_, stamp)| stamp);
            (look.file, map(look, taken))
        }));
    }

    /// Empties it, for its room.
    pub(super) fn clear(&mut self) {
        self.looks.clear();
        self.changed.clear();
        self.sights.clear();
    }
}

/// A listing of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// How the groups stand.
    pub standings: Vec<(FileId, Standing)>,
    /// Regions on the device, whoever made them.
    pub regions: usize,
}

/// What a reading was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Somebody had set counters to zero.
    pub reset: bool,
    /// Processor time that it took.
    pub cost: Duration,
    /// Something of it is still to come: [`Event::Settled`].
    pub more: bool,
}

/// What can happen.
#[derive(Debug)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A batch of looks came back.
    Looked(Batch),
    /// An update came back; without a group where there was none and nothing to make one from.
    Updated(Device, FileId, Result<Option<Updated>, update::Error>),
    /// The group of a file that is no more was deleted, or not.
    Removed(Device, FileId, Result<usize, update::Error>),
    /// A look at groups of one device came back.
    Swept(Device, Result<Sweep, update::Error>),
    /// A reading of what a device's groups have counted came back.
    Read(Device, Reading),
    /// What was still to come of a reading is here, and this is what all of it was like.
    Settled(Device, Reading),
    /// What a device's write counter says, if there is one: requests and flushes.
    Gauged(Device, Option<u64>),
    /// Nobody wants the file to be followed any more. Its group is deleted if the flag says so.
    Forget(FileId, bool),
    /// A signal asks to stop.
    Stop,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Look at files of one device.
    Look(Batch),
    /// Close the file's descriptor, which a look by path may have left open.
    Close(FileId),
    /// Make the file's regions cover these extents, within limits; make or find the group if there
    /// is none.
    Update(FileId, Device, Option<Group>, Extents, Limits),
    /// Delete the group: its file is no more, or nobody wants it.
    Remove(FileId, Device, Group),
    /// Look at these groups of the device.
    Sweep(Device, Vec<(FileId, Group)>),
    /// Read what these groups of the device have counted.
    Read(Device, Vec<(FileId, Group)>),
    /// Read the device's write counter.
    Gauge(Device),
    /// Tell the user.
    Report(FileId, Report),
    /// Nothing is left to do.
    Finish,
}
