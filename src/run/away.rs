//! Files that went with their filesystem or their device, and may come back with it.
//!
//! What a rule wants is found again by the rule; it is listed here so that the status can tell what
//! became of it. What somebody asked for is looked for at each scan.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use log::warn;

use super::Run;
use super::added::{Added, recall};
use super::scan::{By, Fresh, Task};
use super::trail::Trail;
use crate::config::{Touch, device_towards};
use crate::dm::{Device, Dm};
use crate::engine::End;
use crate::mode::Mode;

/// Files that only a rule wants of which this is told; of more there is nothing new to tell.
const TOLD_MAX: usize = 1000;

/// A file that is not there at the moment.
#[derive(Debug)]
pub(super) struct Away {
    /// How it was asked for, unless a rule wants it.
    pub(super) added: Option<Added>,
    pub(super) mode: Mode,
    /// Why it was let go; `None` if it was followed by an earlier service.
    pub(super) why: Option<String>,
    /// On what device its path has ended since.
    end: Option<Device>,
}

/// A file to be looked for.
#[derive(Debug)]
pub(super) struct Missing {
    path: PathBuf,
    added: Option<Added>,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    path: PathBuf,
    /// On what device its path ends.
    end: Device,
    /// The file, if somebody asked for it, or why it cannot be followed.
    file: Option<Result<Fresh, String>>,
}

/// All of them, by path.
pub(super) type Aways = HashMap<PathBuf, Away>;

impl Away {
    /// Of a file that an earlier service was asked for.
    pub(super) fn of_earlier(added: Added) -> (PathBuf, Away) {
        let (path, mode) = (added.path.0.clone(), added.mode);
        (path, Away { added: Some(added), mode, why: None, end: None })
    }

    /// Whether it will not come back: it is not on the filesystem that is there by now. Or it was
    /// not there when the service started.
    fn is_gone(&mut self, end: Device) -> bool {
        let before = self.end.replace(end);
        self.why.is_none() || before.is_some_and(|before| before != end)
    }
}

/// What is to be looked for.
pub(super) fn missing(aways: &Aways) -> Vec<Missing> {
    let missing =
        |(path, away): (&PathBuf, &Away)| Missing { path: path.clone(), added: away.added.clone() };
    aways.iter().map(missing).collect()
}

/// Looks for the files that are missing; says nothing of those it may not look for.
pub(super) fn look_for<D: Dm>(
    task: &Task,
    open: impl Fn() -> io::Result<D>,
    claim: u32,
) -> Vec<Found> {
    let look = |missing: &Missing| {
        let path = missing.path.clone();
        let end = end_of(&path, &task.trail)?;
        let added = missing.added.clone();
        let file = added.map(|added| recall(added, &task.wanted.base, &open, claim));
        Some(Found { path, end, file })
    };
    task.missing.iter().filter_map(look).collect()
}

fn end_of(path: &Path, trail: &Trail) -> Option<Device> {
    let end = device_towards(path, &mut |touch| trail.step(touch))?;
    trail.step(Touch::Device(end)).then_some(end)
}

impl Run {
    /// A file was let go, and this is the reason.
    pub(super) fn has_left(&mut self, path: PathBuf, mode: Mode, added: Option<Added>, end: &End) {
        let Some(service) = &mut self.service else { return };
        if !matches!(end, End::Unmounted | End::NoDevice) {
            return;
        }
        if added.is_some() || service.away.len() < TOLD_MAX {
            let why = Some(end.to_string());
            service.away.insert(path, Away { added, mode, why, end: None });
        }
    }

    /// Follows again what is there again, and forgets what will not be.
    pub(super) fn returned(&mut self, found: Vec<Found>) {
        let mut fresh = Vec::new();
        for Found { path, end, file } in found {
            let Some(service) = &mut self.service else { return };
            let Some(away) = service.away.get_mut(&path) else { continue };
            match file {
                Some(Ok(file)) => {
                    service.away.remove(&path);
                    fresh.push(file);
                }
                other if away.is_gone(end) => {
                    service.away.remove(&path);
                    if let Some(Err(why)) = other {
                        let path = path.display();
                        warn!("{path}: it was added, and is not followed any more: {why}");
                    }
                }
                _ => {}
            }
        }
        fresh.retain(|fresh| self.file_of(fresh.key).is_none());
        self.welcome(fresh);
        self.write_down();
    }
}

impl By {
    /// Whether it is remembered by whom the file was asked for.
    pub(super) fn is_asked(self) -> bool {
        matches!(self, By::Request | By::HandOver(_))
    }
}
