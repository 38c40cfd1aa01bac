//! Files that no rule wants and somebody has asked for, so that a restarted service knows them.
//!
//! They are in a file beside the control socket, in `/run`, which forgets at a reboot as the
//! regions do. It is written whole and renamed into place whenever such a file comes or goes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::warn;
use serde::{Deserialize, Serialize};

use super::Run;
use super::control::fresh;
use super::kept::Kept;
use super::scan::{By, Errand, Fresh};
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
    Ok(fresh(By::HandOver, &path, Some(file), &place, Some(group), terms))
}

impl Run {
    /// Has the files found again that an earlier service was asked for, before any others.
    pub(super) fn recall(&mut self, socket: &Path) {
        let now = self.now();
        let Some(service) = &mut self.service else { return };
        let roster = Roster::beside(socket);
        let added = roster.read();
        service.roster = Some(roster);
        if !added.is_empty() {
            service.scanning = Some(now);
            service.recalling = true;
            let errand = Errand::Recall(added, service.wanted.base.clone());
            self.scout(errand);
        }
    }

    pub(super) fn recalled(&mut self, mut found: Vec<Fresh>, lost: Vec<(PathBuf, String)>) {
        for (path, why) in lost {
            warn!("{}: it was added, and is not followed any more: {why}", path.display());
        }
        found.retain(|fresh| self.file_of(fresh.key).is_none());
        self.welcome(found);
        if let Some(service) = &mut self.service {
            service.scanning = None;
            service.recalling = false;
        }
        self.write_down();
    }

    /// Writes down what no rule wants. On this thread, since it goes to memory.
    pub(super) fn write_down(&self) {
        let Some(service) = self.service.as_ref().filter(|service| !service.recalling) else {
            return;
        };
        let Some(roster) = &service.roster else { return };
        let added = self.followed().filter_map(|file| {
            let followed = &self.files[file.index()];
            let claimed = followed.claimed.as_ref()?;
            let status = self.engine.file_status(self.now(), file)?;
            let group = match claimed.by {
                By::Rule | By::Foreground => return None,
                By::Request => None,
                By::HandOver => status.group.map(|group| group.0),
            };
            let Terms { mode, alias, .. } = &*claimed.terms;
            let path = FilePath(followed.path.to_path_buf());
            Some(Added { path, mode: *mode, alias: alias.to_string(), group })
        });
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
