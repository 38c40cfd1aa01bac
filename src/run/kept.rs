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

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<String, String> {
        let text = String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string())?;
        if text.ends_with('.') { Ok(text) } else { Err("it is cut".to_owned()) }
    }

    #[test]
    fn a_reader_finds_the_old_content_or_the_new_and_what_is_cut_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::at(folder.path().join("x.json"));
        assert_eq!(kept.read(parse, "so what"), None);
        kept.write(b"one.").unwrap();
        let open = fs::File::open(kept.path()).unwrap();
        kept.write(b"two.").unwrap();
        assert_eq!(io::read_to_string(open).unwrap(), "one.");
        assert_eq!(kept.read(parse, "so what").as_deref(), Some("two."));
        fs::write(kept.beside(".new"), "thr").unwrap(); // killed while it was written
        assert_eq!(kept.read(parse, "so what").as_deref(), Some("two."));
        kept.write(b"three.").unwrap();
        fs::write(kept.path(), "thr").unwrap();
        assert_eq!(kept.read(parse, "so what"), None);
        assert_eq!(fs::read(folder.path().join("x.json.damaged")).unwrap(), b"thr");
        assert!(!kept.path().exists());
    }
}
