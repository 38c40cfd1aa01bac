//! Files that no rule wants and somebody has asked for, so that a restarted service knows them.
//!
//! They are in a file beside the control socket, in `/run`, which forgets at a reboot as the
//! regions do. It is written whole and renamed into place whenever such a file comes or goes.

use std::io;
use std::path::Path;
use std::sync::Arc;

use log::warn;
use serde::{Deserialize, Serialize};

use super::Run;
use super::away::Away;
use super::control::fresh;
use super::kept::Kept;
use super::scan::{By, Fresh};
use super::service::Claimed;
use crate::config::Terms;
use crate::dm::Dm;
use crate::entry::mark;
use crate::message::RegionId;
use crate::mode::Mode;
use crate::request::FilePath;
use crate::{place, sample, update};

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
}

/// Where they are written down.
#[derive(Debug)]
pub(super) struct Roster(Kept);

impl Roster {
    pub(super) fn beside(socket: &Path) -> Roster {
        Roster(Kept::at(socket.with_file_name(NAME)))
    }

    /// What is written down; nothing if there is no file. A damaged one is set aside.
    pub(super) fn read(&self) -> Vec<Added> {
        let parse = |bytes: &[u8]| serde_json::from_slice(bytes);
        self.0.read(parse, "the files in it have to be added again").unwrap_or_default()
    }

    /// Writes these down, in place of all others.
    pub(super) fn write(&self, added: &[Added]) {
        let bytes = serde_json::to_vec(added).expect("strings and numbers are JSON");
        if let Err(error) = self.0.write(&bytes) {
            let path = self.0.path().display();
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
) -> Result<Fresh, String> {
    let Added { path: FilePath(path), mode, alias, group } = added;
    let alias = alias.parse().map_err(|error| format!("the alias {alias:?}: {error}"))?;
    let file = sample::open_regular(&path).map_err(|error| error.to_string())?;
    let place = place::require(&file).map_err(|obstacle| obstacle.to_string())?;
    let terms = Arc::new(Terms { mode, alias, ..base.clone() });
    let Some(id) = group.map(RegionId) else {
        return Ok(fresh(By::Request, &path, None, &place, None, terms));
    };
    let mark = mark(&path, mode, &place);
    let mut dm = open().map_err(|error| error.to_string())?;
    let found = update::mark_of(&mut dm, place.device, id).map_err(|error| error.to_string())?;
    if found.is_none_or(|found| found.key != mark.key) {
        return Err(format!("group {id} is another file's by now"));
    }
    let group = update::adopt(&mut dm, place.device, id, mark, claim);
    let group = group.map_err(|error| error.to_string())?;
    Ok(fresh(By::HandOver(group.id), &path, Some(file), &place, Some(group), terms))
}

impl Claimed {
    /// How to ask for it again, if somebody asked for it.
    pub(super) fn as_added(&self, path: &Path) -> Option<Added> {
        let group = match self.by {
            By::Rule | By::Foreground => return None,
            By::Request => None,
            By::HandOver(group) => Some(group.0),
        };
        let (mode, alias) = (self.terms.mode, self.terms.alias.to_string());
        Some(Added { path: FilePath(path.to_owned()), mode, alias, group })
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

    /// Writes down what no rule wants. On this thread, since it goes to memory.
    pub(super) fn write_down(&self) {
        let Some(service) = &self.service else { return };
        let Some(roster) = &service.roster else { return };
        let followed = self.followed().filter_map(|file| {
            let followed = &self.files[file.index()];
            followed.claimed.as_ref()?.as_added(&followed.path)
        });
        let away = service.away.values().filter_map(|away| away.added.clone());
        let added = followed.chain(away);
        roster.write(&added.collect::<Vec<_>>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_was_written_is_read_and_what_is_damaged_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let roster = Roster::beside(&folder.path().join("control.sock"));
        assert_eq!(roster.read(), []);
        let added = |path: &str, group| Added {
            path: FilePath(path.into()),
            mode: Mode::Path,
            alias: "{name}".to_owned(),
            group,
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
