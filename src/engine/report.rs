//! What the engine tells the user.

use std::fmt;

use crate::dm::Device;
use crate::message::RegionId;
use crate::update::Updated;

/// What a user may want to know of a file. Given when a state begins, not while it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The group was made or found, or its regions changed.
    Updated(Updated),
    /// The group's id is another one.
    Moved(RegionId, RegionId),
    /// The descriptor has grown so long (bytes) that LVM2 can read but not rewrite it.
    Long(usize),
    /// Something does not work; it is tried again.
    Failing(String),
    /// It works again.
    Recovered,
    /// The kernel does not understand what we send: the group is left alone from here on.
    GivenUp(String),
    /// The file is not followed any more: why.
    LetGo(End),
}

/// Why a file is not followed any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is unlinked and nobody has it open.
    Unused,
    /// There is nothing to follow at its path: what was found.
    Absent(String),
    /// The file at its path lies on another device, this one.
    Elsewhere(Device),
    /// Its filesystem is not mounted any more where the file was found. The group stays: it is the
    /// file's that comes back with the filesystem.
    Unmounted,
    /// Its device is gone, and the group with it; another one may have its number.
    NoDevice,
    /// Its group is gone or another process follows it: which.
    NotOurs(String),
    /// Nobody wants it followed any more.
    Unwanted,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Report::Updated(updated) => {
                let Updated { group, members, created, deleted, foreign, .. } = updated;
                let id = group.id;
                write!(f, "group {id} has {members} region(s), {created} created")?;
                write!(f, " and {deleted} deleted")?;
                match foreign {
                    0 => Ok(()),
                    _ => write!(f, "; they count {foreign} sector(s) between its extents, too"),
                }
            }
            Report::Moved(from, to) => {
                write!(f, "the group's id is now {to}; it was {from}, whose region is gone")
            }
            Report::Long(len) => write!(
                f,
                "the group's ids are so scattered that its descriptor takes {len} bytes: dmstats \
                 can list and report the group, but not change it"
            ),
            Report::Failing(why) => write!(f, "{why}; trying again"),
            Report::Recovered => f.write_str("works again"),
            Report::GivenUp(why) => {
                write!(f, "{why}; the kernel does not understand this, the group is left as it is")
            }
            Report::LetGo(end) => end.fmt(f),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Unused => f.write_str("let go: it is unlinked and nobody has it open"),
            End::Absent(found) => write!(f, "let go: {found}"),
            End::Elsewhere(device) => {
                write!(f, "let go: the file at the path lies on another device, {device}")
            }
            End::Unmounted => f.write_str(
                "let go: its filesystem is not mounted any more; the group stays on its device",
            ),
            End::NoDevice => f.write_str("let go: its device is gone"),
            End::NotOurs(why) => write!(f, "let go: {why}"),
            End::Unwanted => f.write_str("let go: it is no longer to be followed"),
        }
    }
}
