//! A file of ours that is always whole: written beside its place, and renamed into it.
//!
//! It is not forced to the disk, since that would have the filesystem write out what others wrote.
//! After a power cut it may be damaged; then it is set aside, for whoever wants to look at it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use log::warn;

#[derive(Debug)]
pub(super) struct Kept(PathBuf);

impl Kept {
    pub(super) fn at(path: PathBuf) -> Kept {
        Kept(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// What is in it; `None` if there is no such file, or it is damaged, which the log tells, and
    /// what follows from that.
    pub(super) fn read<T, E: ToString>(
        &self,
        parse: impl FnOnce(&[u8]) -> Result<T, E>,
        hence: &str,
    ) -> Option<T> {
        let read = match fs::read(&self.0) {
            Ok(bytes) => parse(&bytes).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(content) => Some(content),
            Err(error) => {
                warn!("{}: {error}; {hence}", self.0.display());
                self.set_aside();
                None
            }
        }
    }

    fn set_aside(&self) {
        let aside = self.beside(".damaged");
        let (path, shown) = (self.0.display(), aside.display());
        match fs::rename(&self.0, &aside) {
            Ok(()) => warn!("{path} is now {shown}"),
            Err(error) => warn!("{path} cannot be renamed to {shown}: {error}"),
        }
    }

    /// Puts another content in its place.
    pub(super) fn write(&self, content: &[u8]) -> io::Result<()> {
        let new = self.beside(".new");
        fs::write(&new, content).and_then(|()| fs::rename(&new, &self.0))
    }

    /// A file beside it, whose name goes on so.
    pub(super) fn beside(&self, more: &str) -> PathBuf {
        let mut path = self.0.clone().into_os_string();
        path.push(more);
        PathBuf::from(path)
    }
}
