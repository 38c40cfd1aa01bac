//! Why a file is not found again that somebody has asked for, and whether it may be later.

use std::fmt;
use std::io;

use crate::place::Obstacle;
use crate::update;

/// Why a file is not found again.
#[derive(Debug)]
pub(super) enum Lost {
    /// It could not be found out, or not yet.
    ForNow(String),
    /// It is no more, or is not what it was; if its filesystem is there.
    ForGood(String),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Lost::ForNow(why) | Lost::ForGood(why)) = self;
        f.write_str(why)
    }
}

fn lost(for_good: bool, why: &impl ToString) -> Lost {
    if for_good { Lost::ForGood(why.to_string()) } else { Lost::ForNow(why.to_string()) }
}

/// From opening the file.
impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Lost {
        use io::ErrorKind::{InvalidInput, NotADirectory, NotFound};
        lost(matches!(error.kind(), NotFound | NotADirectory | InvalidInput), &error)
    }
}

impl From<Obstacle> for Lost {
    fn from(obstacle: Obstacle) -> Lost {
        lost(!matches!(obstacle, Obstacle::Failed(..)), &obstacle)
    }
}

/// From looking for its group.
impl From<update::Error> for Lost {
    fn from(error: update::Error) -> Lost {
        lost(matches!(error, update::Error::NoSuchGroup(_)), &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::RegionId;

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        let of_errno = |errno| Lost::from(io::Error::from_raw_os_error(errno));
        let (enoent, eio, emfile) = (2, 5, 24);
        assert!(matches!(of_errno(enoent), Lost::ForGood(_)));
        assert!(matches!(of_errno(eio), Lost::ForNow(_)));
        assert!(matches!(of_errno(emfile), Lost::ForNow(_)));
        let failed = || io::Error::from_raw_os_error(eio);
        assert!(matches!(Obstacle::Failed("stat", failed()).into(), Lost::ForNow(_)));
        assert!(matches!(Obstacle::NoFiemap.into(), Lost::ForGood(_)));
        assert!(matches!(update::Error::NoSuchGroup(RegionId(7)).into(), Lost::ForGood(_)));
        assert!(matches!(update::Error::NoTurn(failed()).into(), Lost::ForNow(_)));
    }
}
