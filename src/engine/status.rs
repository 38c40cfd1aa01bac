//! What the engine can tell of itself at any time.

use std::fmt;
use std::time::Duration;

use super::followed::{Followed, Job};
use super::lane::Lane;
use super::time::{Tenths, Time};
use super::{Engine, FileId};
use crate::dm::Device;
use crate::message::RegionId;
use crate::mode::Mode;

/// How a file is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its map was not read yet, or could not be shown yet.
    New,
    /// Its group shows its last map.
    Following,
    /// A new map is on its way to the group.
    Updating,
    /// There is nothing at its path at the moment.
    Absent,
    /// Something does not work; it is tried again.
    Failing,
    /// The kernel does not understand what is sent for it; its group is left as it is.
    GivenUp,
    /// Its group is being deleted.
    Ending,
}

impl State {
    /// The word for it, as the control socket and the tables give it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::New => "new",
            State::Following => "following",
            State::Updating => "updating",
            State::Absent => "absent",
            State::Failing => "failing",
            State::GivenUp => "given-up",
            State::Ending => "ending",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What there is to know of a followed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStatus<'a> {
    /// The file.
    pub file: FileId,
    /// What it is followed by.
    pub mode: Mode,
    /// The device it lies on.
    pub device: Device,
    /// Its group.
    pub group: Option<RegionId>,
    /// Members of the group.
    pub regions: u32,
    /// Extents of its last map.
    pub extents: u32,
    /// Sectors in them.
    pub sectors: u64,
    /// Sectors in those of them that are shared.
    pub shared_sectors: u64,
    /// Its inode number, once it was looked at.
    pub inode: Option<u64>,
    /// Sectors that the group counts besides, since the extents are more than it may have regions.
    pub foreign_sectors: u64,
    /// Regions that the group may have, as things are.
    pub max_regions: u32,
    /// Bytes in the file, of which some may have no sector: holes, and what is not written yet.
    pub size: Option<u64>,
    /// How it is doing.
    pub state: State,
    /// When its group was last made to show another map.
    pub changed: Option<Time>,
    /// What does not work.
    pub failing: Option<&'a str>,
    /// How long its look is overdue.
    pub lag: Duration,
    /// The time between two looks, as things are.
    pub interval: Duration,
}

/// What there is to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// The device.
    pub device: Device,
    /// Followed files on it.
    pub files: usize,
    /// Regions on it, whoever made them, when it was last listed.
    pub regions: Option<u64>,
    /// Members of the files' groups.
    pub own_regions: u64,
}

impl Engine {
    /// Files that are followed.
    pub fn len(&self) -> usize {
        self.followed
    }

    /// Whether nothing is followed.
    pub fn is_empty(&self) -> bool {
        self.followed == 0
    }

    /// How a file is doing at `now`; `None` if it is not followed.
    pub fn file_status(&self, now: Time, file: FileId) -> Option<FileStatus<'_>> {
        let followed = self.files.get(file.index())?.as_ref()?;
        let trouble = followed.has_trouble();
        Some(FileStatus {
            file,
            mode: followed.mode,
            device: self.lanes[followed.lane as usize].device,
            group: followed.group.map(|group| group.id),
            regions: followed.regions,
            extents: followed.extents,
            sectors: followed.sectors,
            shared_sectors: followed.shared_sectors(),
            inode: followed.stamp.map(|stamp| stamp.inode),
            foreign_sectors: followed.foreign().map_or(0, |foreign| foreign.sectors),
            max_regions: self.max_regions(followed),
            size: followed.stamp.map(|stamp| stamp.size),
            state: state(followed),
            changed: (followed.changed > Tenths::ZERO).then(|| followed.changed.time()),
            failing: trouble.and_then(|trouble| trouble.failing.as_deref()),
            lag: if followed.parked { Duration::ZERO } else { now.since(followed.due) },
            interval: followed.interval(),
        })
    }

    /// When the last look at a file was begun; `None` if it is not followed.
    pub fn last_look(&self, file: FileId) -> Option<Time> {
        Some(self.files.get(file.index())?.as_ref()?.looked)
    }

    /// The devices that files lie on.
    pub fn device_statuses(&self) -> impl Iterator<Item = DeviceStatus> {
        let status = |lane: &Lane| DeviceStatus {
            device: lane.device,
            files: lane.files,
            regions: lane.regions,
            own_regions: lane.own_regions,
        };
        self.lanes.iter().filter(|lane| lane.files > 0).map(status)
    }
}

fn state(followed: &Followed) -> State {
    let trouble = followed.has_trouble();
    match followed {
        _ if trouble.is_some_and(|trouble| trouble.end.is_some()) => State::Ending,
        _ if trouble.is_some_and(|trouble| trouble.failing.is_some()) => State::Failing,
        _ if trouble.is_some_and(|trouble| trouble.absent_since.is_some()) => State::Absent,
        Followed { given_up: true, .. } => State::GivenUp,
        Followed { fingerprint: None, .. } => State::New,
        Followed { job: Job::Update, .. } | Followed { shown: false, .. } => State::Updating,
        _ => State::Following,
    }
}
