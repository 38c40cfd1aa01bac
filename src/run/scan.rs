//! Which files the configuration wants, against those that are followed.
//!
//! All of it touches filesystems, so it is done by a thread of its own. One that does not answer
//! keeps it; then another one looks everywhere else, see [`super::scans`].

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::away::{Found as Return, Missing};
use super::state::StateFile;
use super::trail::Trail;
use crate::config::{Config, Errors, Found, Owners, Terms, Touch, device_towards, owners};
use crate::dm::Device;
use crate::entry::entry;
use crate::grid::saved::SavedGrid;
use crate::group::Mark;
use crate::home::Homes;
use crate::ledger::Ledger;
use crate::message::RegionId;
use crate::mode::Mode;
use crate::paths::SharedPath;
use crate::place::{Obstacle, Place};
use crate::run::Entry;
use crate::sample;

/// What a file is the same file by, as far as can be told without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(Rust, packed(4))] // or the table that leads from keys to files would be a third larger
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

    /// Of what is at a path, whatever it is.
    pub(super) fn of_path(path: &Path) -> Key {
        Key::new(Mode::Path, path, Device { major: 0, minor: 0 }, 0)
    }

    /// Of a file that came with its group, which may have another group by a rule. The group is
    /// known by its mark: its id may become another one's.
    pub(super) fn of_group(device: Device, mark: Mark) -> Key {
        Key(xxh3_64(format!("group {mark} on {device}").as_bytes()))
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
    /// lvm2's command line, which made this group.
    HandOver(RegionId),
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
    pub(super) path: SharedPath,
    pub(super) device: Device,
    /// Whether it is followed because a rule wants it.
    pub(super) by_rule: bool,
}

/// What a scan brings to light.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What there is to say of files that were away.
    pub(super) returns: Vec<Return>,
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

/// What a scan starts from.
pub(super) struct Task {
    pub(super) wanted: Arc<Wanted>,
    pub(super) followed: HashMap<Key, Known>,
    pub(super) missing: Vec<Missing>,
    pub(super) trail: Arc<Trail>,
}

/// Compares what is wanted with the files that are followed.
pub(super) fn scan(task: &Task, require: Require) -> Seen {
    let Task { wanted, followed, trail, .. } = task;
    let mut ask = |touch: Touch<'_>| trail.step(touch);
    let Owners { files, cut, problems, skipped, .. } =
        owners(&wanted.config.rules, wanted.config.settings.max_files, &mut ask);
    let problem =
        |(path, error): &(PathBuf, std::io::Error)| format!("{}: {error}", path.display());
    let problems = problems.iter().map(problem).collect();
    let mut seen = Seen { problems, cut, ..Seen::default() };
    // A file that a rule after this one matches may be one of this rule, somewhere it did not look.
    let last_sure = skipped.iter().map(|(_, rule)| *rule).min().unwrap_or(usize::MAX);
    let (mut found_keys, mut homes) = (HashSet::new(), Homes::default());
    for (found, rule) in files {
        let terms = &wanted.terms[rule];
        let number = u32::try_from(rule).expect("a rule takes more than a byte of memory");
        let key = Key::new(terms.mode, &found.path, found.device, found.inode);
        if !found_keys.insert(key) {
            continue;
        }
        if followed.contains_key(&key) {
            seen.wanted.extend((rule <= last_sure).then_some((key, number)));
            continue;
        }
        if !ask(Touch::Device(found.device)) {
            continue;
        }
        let prepared = prepare(&found, terms, require, &mut homes);
        ask(Touch::Memory);
        match prepared {
            Ok(entry) => {
                seen.fresh.push(Fresh { key, terms: terms.clone(), by: By::Rule, entry });
            }
            Err(why) => seen.unfit.push((found.path, why)),
        }
    }
    if seen.problems.is_empty() && !cut {
        let is_hidden = |path: &Path| skipped.iter().any(|(folder, _)| path.starts_with(folder));
        let mut leads_home = |file: &Known| {
            let end = device_towards(&file.path, &mut ask);
            ask(Touch::Memory);
            end == Some(file.device)
        };
        let unwanted = followed.iter().filter(|(key, file)| {
            file.by_rule
                && !found_keys.contains(*key)
                && !is_hidden(&file.path)
                // Or its filesystem is not there: it has not gone then, and the group is to be
                // there when it comes back.
                && leads_home(file)
        });
        seen.gone = unwanted.map(|(key, _)| *key).collect();
    }
    seen
}

fn prepare(
    found: &Found,
    terms: &Terms,
    require: Require,
    homes: &mut Homes,
) -> Result<Entry, String> {
    let file = sample::open_regular(&found.path).map_err(|error| error.to_string())?;
    let place = require(&file).map_err(|obstacle| obstacle.to_string())?;
    if (place.device, place.inode) != (found.device, found.inode) {
        return Err("it was replaced while it was looked at".to_owned());
    }
    let template = terms.template(Vec::new());
    let mut entry = entry(None, &found.path, terms.mode, &place, None, template, terms.pace());
    entry.spec.limits = terms.limits;
    entry.home = homes.of(place.device); // while the file is open
    Ok(entry)
}

/// For the scout.
pub(super) enum Errand {
    /// Compare what is wanted with the files that are followed. The number is that of the scan.
    Scan(u32, Task),
    /// Read the configuration again.
    Reload,
    /// Write the ledger down.
    Save(Arc<StateFile>, Box<Ledger>, Vec<SavedGrid>),
}

/// What the scout brings back.
pub(super) enum Finding {
    /// Of a scan for this configuration.
    Seen(u32, Arc<Wanted>, Seen),
    /// The configuration as it is now.
    Reloaded(Result<Box<Config>, Errors>),
    /// Whether the ledger was written.
    Saved(Result<(), String>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Layer};

    #[test]
    fn a_scan_waits_for_no_device_when_it_has_seen_all() {
        let folder = tempfile::tempdir().unwrap();
        let entry = format!("[[file]]\npath = \"{}/*.img\"\n", folder.path().display());
        std::fs::write(folder.path().join("config.toml"), entry).unwrap();
        std::fs::write(folder.path().join("new.img"), "").unwrap();
        let config = config::read(folder.path(), std::iter::empty(), Layer::new()).unwrap();
        let device = sample::device(&folder.path().metadata().unwrap());
        let gone = folder.path().join("gone.img");
        let known = Known { path: (&*gone).into(), device, by_rule: true };
        let key = Key::of_path(&gone);
        let task = Task {
            wanted: Arc::new(config.into()),
            followed: [(key, known)].into(),
            missing: Vec::new(),
            trail: Arc::new(Trail::new(HashSet::new())),
        };
        let seen = scan(&task, |_| Err(Obstacle::NoFiemap));
        assert_eq!((seen.gone.as_slice(), seen.unfit.len()), (&[key][..], 1), "{seen:?}");
        let (steps, spot) = task.trail.here();
        assert!(steps > 0 && spot.is_none(), "{spot:?}");
    }
}
