//! What a file is followed by: its inode or its path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What makes a file the same file the next time we look.
///
/// Written `inode` and `path`, in lower case; nothing else is a mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The inode, whatever it is called: the file's descriptor stays open all the time.
    ///
    /// For a file that keeps its place under changing names, such as a log that is moved away
    /// while its writer goes on. Following ends when the file is unlinked and nobody else has it
    /// open any more; as long as somebody has, its extents are in use and are counted.
    #[default]
    Inode,
    /// The path, whatever is there: the path is looked up and opened anew.
    ///
    /// For a file that is replaced as a whole, such as one that is written beside the old one and
    /// renamed over it: the group moves to the extents of the new file. Following ends when there
    /// is no file at the path. About a second may pass between the end of one file and the
    /// creation of the next.
    Path,
}

impl Mode {
    /// The word for it: `inode` or `path`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Inode => "inode",
            Mode::Path => "path",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(word: &str) -> Result<Mode, UnknownMode> {
        match word {
            "inode" => Ok(Mode::Inode),
            "path" => Ok(Mode::Path),
            _ => Err(UnknownMode(word.to_owned())),
        }
    }
}

/// A word that is no mode; holds the word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownMode(pub String);

impl fmt::Display for UnknownMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a mode; the modes are \"inode\" and \"path\"", self.0)
    }
}

impl std::error::Error for UnknownMode {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_read_as_it_is_written() {
        for mode in [Mode::Inode, Mode::Path] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!(Mode::default(), Mode::Inode);
        assert_eq!(format!("{:<6}|", Mode::Path), "path  |");
    }

    #[test]
    fn no_other_word_is_a_mode() {
        for word in ["", "Inode", "PATH", " path", "path ", "inodes", "in", "0"] {
            let error = word.parse::<Mode>().unwrap_err();
            assert_eq!(error, UnknownMode(word.to_owned()));
            let text = error.to_string();
            assert!(text.contains(&format!("{word:?}")), "{text}");
            assert!(text.contains("\"inode\"") && text.contains("\"path\""), "{text}");
        }
    }
}
