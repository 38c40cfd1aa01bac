//! Which files the configuration wants, against those that are followed.
//!
//! All of it touches filesystems, so it is done by a thread of its own: one that does not answer
//! keeps new files from being found, and nothing else waits.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::added::Added;
use super::state::StateFile;
use crate::config::{Config, Errors, Found, Owners, Terms, owners};
use crate::dm::Device;
use crate::entry::entry;
use crate::grid::saved::SavedGrid;
use crate::ledger::Ledger;
use crate::message::RegionId;
use crate::mode::Mode;
use crate::place::{Obstacle, Place};
use crate::run::Entry;
use crate::sample;

/// What a file is the same file by, as far as can be told without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key(u64);

impl Key {
    pub(super) fn new(mode: Mode, path: &Path, device: Device, inode: u64) -> Key {
        let mut what = mode.as_str().as_bytes().to_vec();
        match mode {
            Mode::Inode => {
                what.extend_from_slice(&device.major.to_le_bytes());
                what.extend_from_slice(&device.minor.to_le_bytes());
                what.extend_from_slice(&inode.to_le_bytes());
            }
            Mode::Path => what.extend_from_slice(path.as_os_str().as_encoded_bytes()),
        }
        Key(xxh3_64(&what))
    }

    /// Of a file that came with its group, which may have another group by a rule.
    pub(super) fn of_group(device: Device, group: RegionId) -> Key {
        Key(xxh3_64(format!("group {group} of {device}").as_bytes()))
    }
}

/// A configuration, and what it says for the files of each rule.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) config: Config,
    /// By rule.
    pub(super) terms: Vec<Arc<Terms>>,
    /// Of files that no rule is for.
    pub(super) base: Arc<Terms>,
}

impl From<Config> for Wanted {
    fn from(config: Config) -> Wanted {
        let terms = config.rules.iter().map(|rule| Arc::new(rule.terms.clone())).collect();
        Wanted { terms, base: Arc::new(config.settings.terms()), config }
    }
}

/// Who wants a file to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The configuration.
    Rule,
    /// Somebody who asked for it.
    Request,
    /// lvm2's command line, which made its group.
    HandOver,
    /// Likewise, and a process waits for its end, or ends it.
    Foreground,
}

/// A file that can be followed; it is opened when it is looked at. Its group has no alias yet.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) key: Key,
    pub(super) terms: Arc<Terms>,
    pub(super) by: By,
    pub(super) entry: Entry,
}

/// A file that is followed.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) path: Arc<Path>,
    pub(super) device: Device,
    /// Whether it is followed because a rule wants it.
    pub(super) by_rule: bool,
}

impl Known {
    /// Whether its filesystem is not there: what is, or would be, at its path is on another device.
    /// It has not gone then, and the group is to be there when it comes back.
    fn is_away(&self) -> bool {
        let nearest = self.path.ancestors().find_map(|above| fs::metadata(above).ok());
        nearest.is_none_or(|metadata| sample::device(&metadata) != self.device)
    }
}

/// What a scan brings to light.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Files that are wanted and not followed yet.
    pub(super) fresh: Vec<Fresh>,
    /// Files that are followed, and wanted by this rule.
    pub(super) wanted: Vec<(Key, u32)>,
    /// Files that are followed because a rule wanted them, and none does now.
    pub(super) gone: Vec<Key>,
    /// Files that are wanted and cannot be followed, and why.
    pub(super) unfit: Vec<(PathBuf, String)>,
    /// What could not be read. Then nothing counts as gone.
    pub(super) problems: Vec<String>,
    /// There are more files than may be followed.
    pub(super) cut: bool,
}

/// Whether the I/O of an open file can be counted, and where.
pub(super) type Require = fn(&File) -> Result<Place, Obstacle>;

/// Compares what is wanted with the files that are followed.
pub(super) fn scan(wanted: &Wanted, followed: &HashMap<Key, Known>, require: Require) -> Seen {
    let Owners { files, cut, problems, .. } =
        owners(&wanted.config.rules, wanted.config.settings.max_files);
    let problem =
        |(path, error): &(PathBuf, std::io::Error)| format!("{}: {error}", path.display());
    let problems = problems.iter().map(problem).collect();
    let mut seen = Seen { problems, cut, ..Seen::default() };
    let mut found_keys = HashSet::new();
    for (found, rule) in files {
        let terms = &wanted.terms[rule];
        let rule = u32::try_from(rule).expect("a rule takes more than a byte of memory");
        let key = Key::new(terms.mode, &found.path, found.device, found.inode);
        if !found_keys.insert(key) {
            continue;
        }
        if followed.contains_key(&key) {
            seen.wanted.push((key, rule));
            continue;
        }
        match prepare(&found, terms, require) {
            Ok(entry) => {
                seen.fresh.push(Fresh { key, terms: terms.clone(), by: By::Rule, entry });
            }
            Err(why) => seen.unfit.push((found.path, why)),
        }
    }
    if seen.problems.is_empty() && !cut {
        let unwanted = followed
            .iter()
            .filter(|(key, file)| file.by_rule && !found_keys.contains(*key) && !file.is_away());
        seen.gone = unwanted.map(|(key, _)| *key).collect();
    }
    seen
}

fn prepare(found: &Found, terms: &Terms, require: Require) -> Result<Entry, String> {
    let file = sample::open_regular(&found.path).map_err(|error| error.to_string())?;
    let place = require(&file).map_err(|obstacle| obstacle.to_string())?;
    if (place.device, place.inode) != (found.device, found.inode) {
        return Err("it was replaced while it was looked at".to_owned());
    }
    let template = terms.template(Vec::new());
    Ok(entry(None, &found.path, terms.mode, &place, None, template, terms.pace()))
}

/// For the scout.
pub(super) enum Errand {
    /// Compare what is wanted with the files that are followed.
    Scan(Arc<Wanted>, HashMap<Key, Known>),
    /// Read the configuration again.
    Reload,
    /// Find the files again that an earlier service was asked for.
    Recall(Vec<Added>, Arc<Terms>),
    /// Write the ledger down.
    Save(Arc<StateFile>, Box<Ledger>, Vec<SavedGrid>),
}

/// What the scout brings back.
pub(super) enum Finding {
    /// Of a scan for this configuration.
    Seen(Arc<Wanted>, Seen),
    /// The configuration as it is now.
    Reloaded(Result<Box<Config>, Errors>),
    /// What was found again; and what was not, and why.
    Recalled(Vec<Fresh>, Vec<(PathBuf, String)>),
    /// Whether the ledger was written.
    Saved(Result<(), String>),
}
