//! The ledger on disk, for the next service.
//!
//! The file before the last is kept beside it: a power cut may leave the last one empty, on
//! filesystems that rename before they have written.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use log::warn;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::kept::Kept;
use crate::grid::saved::SavedGrid;
use crate::ledger::{Ledger, Saved};

/// Its name.
const NAME: &str = "totals.json";

/// Where the ledger is written down.
#[derive(Debug)]
pub(super) struct StateFile {
    last: Kept,
    before: Kept,
    /// Held as long as the service runs.
    _lock: Flock<File>,
}

/// What is in it: of one moment.
#[derive(Serialize, Deserialize)]
struct State {
    #[serde(flatten)]
    ledger: Saved,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    grids: Vec<SavedGrid>,
}

impl StateFile {
    /// The one in this folder, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// It cannot be made or written to, or another service keeps its totals there.
    pub(super) fn open(folder: &Path) -> io::Result<StateFile> {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        let lock = File::create(folder.join("lock"))?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    nix::errno::Errno::EWOULDBLOCK => {
                        io::Error::other("another service keeps its totals there")
                    }
                    errno => errno.into(),
                },
            )?;
        let last = Kept::at(folder.join(NAME));
        let before = Kept::at(last.beside(".before"));
        Ok(StateFile { last, before, _lock: lock })
    }

    /// What is written down; of two files the last that is whole. Damaged ones are set aside.
    pub(super) fn read(&self) -> (Ledger, Vec<SavedGrid>) {
        let last = self.last.read(parse, "the totals from before are taken");
        let before = || self.before.read(parse, "totals begin anew");
        last.or_else(before).unwrap_or_default()
    }

    /// Writes it down, in place of what was. Gives when, in seconds since 1970.
    pub(super) fn write(&self, ledger: &Ledger, grids: Vec<SavedGrid>) -> io::Result<()> {
        let content = serde_json::to_vec(&State { ledger: ledger.saved(), grids })?;
        match fs::remove_file(self.before.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        match fs::hard_link(self.last.path(), self.before.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!("{}: {error}; only one is kept", self.before.path().display());
            }
            _ => {}
        }
        self.last.write(&content)
    }
}

fn parse(bytes: &[u8]) -> Result<(Ledger, Vec<SavedGrid>), String> {
    let state: State = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    Ok((state.ledger.try_into()?, state.grids))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::counters::{Counters, Reading};
    use crate::extent::Extent;
    use crate::group::Mark;
    use crate::ledger::Holder;
    use crate::message::RegionId;
    use crate::update::{Count, Tally};

    fn holder() -> Holder {
        Holder { device: "LVM-x".into(), key: 1, nonce: None }
    }

    /// A ledger in which a file has so many reads.
    fn ledger(reads: u64) -> Ledger {
        let counters = Counters { reads_completed: reads, ..Counters::default() };
        let reading = Reading { counters, ..Reading::default() };
        let extent = Extent::new(0, 8).unwrap();
        let count = Count { id: RegionId(0), extent, reading, bounds_ns: Vec::new() };
        let tally = Tally { members: vec![count], others: Vec::new() };
        let mut ledger = Ledger::default();
        ledger.absorb(&holder(), Mark { key: 1, nonce: 2 }, &tally, 0);
        ledger
    }

    fn reads(ledger: &Ledger) -> u64 {
        ledger.account(&holder()).map_or(0, |account| account.counters.reads_completed)
    }

    /// What a service that is killed at any moment of a writing leaves is the old ledger or the
    /// new, and what a power cut leaves of the new is the old at least.
    #[test]
    fn whatever_is_left_there_is_a_whole_ledger() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let put = |name: &str, content: Option<&[u8]>| match content {
            Some(content) => fs::write(path(name), content).unwrap(),
            None => drop(fs::remove_file(path(name))),
        };
        let content = |reads| serde_json::to_vec(&ledger(reads).saved()).unwrap();
        let (one, two, three) = (content(1), content(2), content(3));
        let state = StateFile::open(folder.path()).unwrap();
        assert_eq!(reads(&state.read().0), 0);
        for (before, last, new, expected) in [
            // In the order of StateFile::write().
            (Some(&one[..]), Some(&two[..]), None, 2),
            (None, Some(&two), None, 2),
            (Some(&two), Some(&two), None, 2),
            (Some(&two), Some(&two), Some(&three[..9]), 2),
            (Some(&two), Some(&two), Some(&three), 2),
            (Some(&two), Some(&three), None, 3),
            // After a power cut.
            (Some(&two), Some(b""), None, 2),
            (Some(&two), Some(&three[..three.len() - 1]), None, 2),
            (Some(&two), Some(&[0; 900]), None, 2),
            (Some(b""), Some(b""), Some(b""), 0),
            (Some(b"{}"), Some(b"[]"), None, 0),
        ] {
            put("totals.json.before", before);
            put("totals.json", last);
            put("totals.json.new", new);
            assert_eq!(reads(&state.read().0), expected, "{:?}", last.map(<[u8]>::escape_ascii));
            state.write(&ledger(4), Vec::new()).unwrap();
            assert_eq!(reads(&state.read().0), 4, "and it goes on");
        }
    }

    #[test]
    fn a_folder_has_one_service() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        let state = StateFile::open(&inner).unwrap();
        let error = StateFile::open(&inner).unwrap_err().to_string();
        assert!(error.contains("another service"), "{error}");
        drop(state);
        // A child that another test has just forked has the lock until it is another program.
        let begun = Instant::now();
        while StateFile::open(&inner).is_err() {
            assert!(begun.elapsed().as_secs() < 10, "it is free");
        }
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(StateFile::open(&folder.path().join("file")).is_err());
    }
}
