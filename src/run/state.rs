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

use super::kept::Kept;
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
    pub(super) fn read(&self) -> Ledger {
        let last = self.last.read(parse, "the totals from before are taken");
        let before = || self.before.read(parse, "totals begin anew");
        last.or_else(before).unwrap_or_default()
    }

    /// Writes it down, in place of what was. Gives when, in seconds since 1970.
    pub(super) fn write(&self, ledger: &Ledger) -> io::Result<()> {
        let content = serde_json::to_vec(&ledger.saved())?;
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

fn parse(bytes: &[u8]) -> Result<Ledger, String> {
    let saved: Saved = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    saved.try_into()
}
