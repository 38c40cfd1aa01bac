//! Files that no rule wants and somebody has asked for, so that a restarted service knows them.
//!
//! They are in a file beside the control socket, in `/run`, which forgets at a reboot as the
//! regions do. It is written whole and renamed into place whenever such a file comes or goes.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use serde::{Deserialize, Serialize};

use super::Run;
use super::away::Away;
use super::control::fresh;
use super::kept::Kept;
use super::lost::Lost;
use super::scan::{By, Fresh};
use super::service::{Claimed, Service};
use crate::config::Terms;
use crate::dm::{Device, Dm, Label};
use crate::engine::Time;
use crate::entry::mark;
use crate::home::{self, Home};
use crate::message::RegionId;
use crate::mode::Mode;
use crate::request::FilePath;
use crate::{place, sample, update};

/// How long a file may have gone until that is written down.
const DELAY: Duration = Duration::from_millis(250);

/// Its name.
const NAME: &str = "added.json";

/// A file that somebody has asked for, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Added {
    pub(super) path: FilePath,
    pub(super) mode: Mode,
    /// The template of its group's name.
    pub(super) alias: String,
    /// Its group, if it came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) group: Option<u32>,
    /// The device that it was found on, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) home: Option<Called>,
}

/// What a device was called, as far as that is text. Its number may be another one by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Called {
    name: String,
    uuid: String,
}

impl From<&Label> for Called {
    fn from(label: &Label) -> Called {
        let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        Called { name: text(&label.name), uuid: text(&label.uuid) }
    }
}

impl Called {
    /// Whether the device is called this.
    pub(super) fn is(&self, device: Device) -> bool {
        home::label(device).is_some_and(|now| self.label().is_still(&Called::from(&now).label()))
    }

    fn label(&self) -> Label {
        Label { name: self.name.clone().into(), uuid: self.uuid.clone().into() }
    }
}

/// Where they are written down.
#[derive(Debug)]
pub(super) struct Roster {
    kept: Kept,
    /// When they are to be written, if something has changed since.
    due: Option<Time>,
}

impl Roster {
    pub(super) fn beside(socket: &Path) -> Roster {
        Roster { kept: Kept::at(socket.with_file_name(NAME)), due: None }
    }

    /// What is written down; nothing if there is no file. A damaged one is set aside.
    pub(super) fn read(&self) -> Vec<Added> {
        let parse = |bytes: &[u8]| serde_json::from_slice(bytes);
        self.kept.read(parse, "the files in it have to be added again").unwrap_or_default()
    }

    /// Writes these down, in place of all others.
    pub(super) fn write(&mut self, added: &[Added]) {
        self.due = None;
        let bytes = serde_json::to_vec(added).expect("strings and numbers are JSON");
        if let Err(error) = self.kept.write(&bytes) {
            let path = self.kept.path().display();
            warn!("{path}: {error}; a restarted service will not know what was added");
        }
    }
}

/// Finds a file again, and its group if it came with one.
pub(super) fn recall<D: Dm>(
    added: Added,
    base: &Terms,
    open: impl Fn() -> io::Result<D>,
    claim: u32,
) -> Result<Fresh, Lost> {
    let Added { path: FilePath(path), mode, alias, group, .. } = added;
    let wrong = |error| Lost::ForGood(format!("the alias {alias:?}: {error}"));
    let alias = alias.parse().map_err(wrong)?;
    let file = sample::open_regular(&path)?;
    let place = place::require(&file)?;
    let terms = Arc::new(Terms { mode, alias, ..base.clone() });
    let Some(id) = group.map(RegionId) else {
        return Ok(fresh(By::Request, &path, None, &place, None, terms));
    };
    let mark = mark(&path, mode, &place);
    let mut dm = open().map_err(|error| Lost::ForNow(error.to_string()))?;
    let found = update::mark_of(&mut dm, place.device, id)?;
    if found.is_none_or(|found| found.key != mark.key) {
        return Err(Lost::ForGood(format!("group {id} is another file's by now")));
    }
    let group = update::adopt(&mut dm, place.device, id, mark, claim)?;
    Ok(fresh(By::HandOver(group.id), &path, Some(file), &place, Some(group), terms))
}

impl Claimed {
    /// How to ask for it again, if somebody asked for it.
    pub(super) fn as_added(&self, path: &Path, home: Option<&Home>) -> Option<Added> {
        let group = match self.by {
            By::Rule | By::Foreground => return None,
            By::Request => None,
            By::HandOver(group) => Some(group.0),
        };
        let (path, home) = (FilePath(path.to_owned()), home.map(|home| Called::from(&home.label)));
        let (mode, alias) = (self.terms.mode, self.terms.alias.to_string());
        Some(Added { path, mode, alias, group, home })
    }
}

impl Run {
    /// Has the files looked for that an earlier service was asked for.
    pub(super) fn recall(&mut self, socket: &Path) {
        let Some(service) = &mut self.service else { return };
        let roster = Roster::beside(socket);
        service.away.extend(roster.read().into_iter().map(Away::of_earlier));
        service.roster = Some(roster);
    }

    /// Writes down what no rule wants, and soon is soon enough: one of the files has gone, and many
    /// may go at a time. Who reads it before that finds that this one has.
    pub(super) fn write_down_soon(&mut self) {
        let now = self.now();
        let roster = self.service.as_mut().and_then(|service| service.roster.as_mut());
        if let Some(roster) = roster {
            roster.due.get_or_insert(now + DELAY);
        }
    }

    /// Does so if it is due.
    pub(super) fn write_down_if_due(&mut self, now: Time) {
        let due = self.service.as_ref().and_then(Service::roster_due);
        if due.is_some_and(|due| due <= now) {
            self.write_down();
        }
    }

    /// Does so if it was to be done soon: there is no later.
    pub(super) fn write_down_at_end(&mut self) {
        if self.service.as_ref().and_then(Service::roster_due).is_some() {
            self.write_down();
        }
    }

    /// Writes down what no rule wants. On this thread, since it goes to memory.
    pub(super) fn write_down(&mut self) {
        let Some(service) = &self.service else { return };
        let followed = self.followed().filter_map(|file| {
            let followed = &self.files[file.index()];
            followed.claimed.as_ref()?.as_added(&followed.path, followed.home.as_deref())
        });
        let away = service.away.values().filter_map(|away| away.added.clone());
        let added: Vec<Added> = followed.chain(away).collect();
        let roster = self.service.as_mut().and_then(|service| service.roster.as_mut());
        if let Some(roster) = roster {
            roster.write(&added);
        }
    }
}

impl Service {
    /// When the roster is to be written.
    pub(super) fn roster_due(&self) -> Option<Time> {
        self.roster.as_ref()?.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_was_written_is_read_and_what_is_damaged_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let mut roster = Roster::beside(&folder.path().join("control.sock"));
        assert_eq!(roster.read(), []);
        let home = || Called { name: "x".to_owned(), uuid: "LVM-x".to_owned() };
        let added = |path: &str, group| Added {
            path: FilePath(path.into()),
            mode: Mode::Path,
            alias: "{name}".to_owned(),
            group,
            home: group.map(|_| home()),
        };
        let all = [added("/a", None), added("/b", Some(7))];
        roster.write(&all);
        assert_eq!(roster.read(), all);
        let path = folder.path().join(NAME);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_eq!(roster.read(), []);
        let aside = fs::read_to_string(folder.path().join("added.json.damaged")).unwrap();
        assert_eq!(aside, text[..text.len() / 2]);
    }
}
