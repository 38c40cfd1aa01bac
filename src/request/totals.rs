//! What was counted: for each file, for each device, and of the service itself.
//!
//! This is the shape in which every front door gets the numbers: the control socket, `top`, the
//! metrics, and JSON for people. `contrib/json.md` says what each field means to them.
//!
//! Numbers are numbers and their names end in their unit. Names that end in `_ns` or `_bytes` and
//! the counts beside them only rise, as long as the same service keeps them; `_seconds` do not.

use serde::{Deserialize, Serialize};

use super::{DeviceState, FilePath};
use crate::counters::{Counters, Histogram};
use crate::mode::Mode;

/// The version of everything that is given out as JSON; raised when a field goes or changes its
/// meaning. New fields do not raise it.
pub const SCHEMA: u32 = 1;

/// What was counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The service that counted. None without one: then the numbers are those of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceTotals>,
    /// Kernel memory of all regions on the machine, whoever made them, if the kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_stats_bytes: Option<u64>,
    /// The devices on which the files lie.
    pub devices: Vec<DeviceTotals>,
    /// The files, or the one that was asked for.
    pub files: Vec<FileTotals>,
}

impl Default for Totals {
    fn default() -> Totals {
        let (service, kernel_stats_bytes) = (None, None);
        let (devices, files) = (Vec::new(), Vec::new());
        Totals { schema: SCHEMA, service, kernel_stats_bytes, devices, files }
    }
}

/// What a service did, since it was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceTotals {
    /// Of the program.
    pub version: String,
    /// Of the process.
    pub pid: u32,
    /// Since it started.
    pub uptime_seconds: f64,
    /// How long the look that is longest overdue is so.
    pub lag_seconds: f64,
    /// Followed files.
    pub files: u64,
    /// Files that are wanted and cannot be followed.
    pub unfit_files: u64,
    /// Searches for files that are wanted.
    pub scans: Timing,
    /// Readings of one device's counters.
    pub readings: Timing,
    /// Updates of groups, whether they changed anything or not.
    pub updates: Timing,
    /// Updates that changed regions, by what they did.
    pub remaps: Remaps,
    /// What did not work, each time.
    pub errors: Errors,
    /// Times that somebody set the counters of a region to zero.
    pub resets: u64,
    /// When the totals were last written to the state directory, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_saved_unix_seconds: Option<f64>,
}

/// How often something was done, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Times that it was done.
    pub completed: u64,
    /// How long that took, all together.
    pub time_ns: u64,
    /// How long the last time took.
    pub last_time_ns: u64,
}

/// Updates that changed regions, by what they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaps {
    /// The group was made.
    pub made: u64,
    /// Regions were added, and none taken away.
    pub grown: u64,
    /// Regions were taken away, and none added.
    pub shrunk: u64,
    /// Both.
    pub moved: u64,
}

/// What did not work, each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// Looks at files.
    pub looks: u64,
    /// Updates and removals of groups.
    pub updates: u64,
    /// Readings of counters.
    pub readings: u64,
    /// Writings of the state file.
    pub saves: u64,
}

/// What was counted on a device, and how it is doing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceTotals {
    /// `MAJOR:MINOR`.
    pub device: String,
    /// Its name in `/dev/mapper`.
    pub name: String,
    /// Its uuid, empty if it has none.
    pub uuid: String,
    /// Files of these totals on it.
    pub files: u64,
    /// Regions on it, whoever made them, when they were last listed.
    pub regions: u64,
    /// Members of the groups of these files.
    #[serde(default)]
    pub own_regions: u64,
    /// What these add to the time of each I/O on the device, at [`super::REGION_COST_NS`] a region.
    #[serde(default)]
    pub own_io_cost_estimated_ns: u64,
    /// Regions created on it by the service so far, each of which stopped its I/O for a moment.
    pub creates: u64,
    /// How long all of these took; no I/O waited for longer.
    #[serde(default)]
    pub creates_time_ns: u64,
    /// Whether it answers.
    pub state: DeviceState,
    /// How long it has not answered.
    pub stuck_seconds: f64,
    /// When the counters of its files were read; a device that does not answer shows old ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_unix_seconds: Option<f64>,
    /// Why they could not be read the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_error: Option<String>,
    /// What its grid is like, if it is to have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<GridTotals>,
    /// I/O under way on the whole device.
    pub io_now: u64,
    /// What the whole device has counted since it came into being, at the same moment; what is more
    /// than its files have is others' I/O. None if the kernel does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
}

/// The grid of a device: regions of many areas, which count it whoever has its sectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridTotals {
    /// Regions that it consists of; none if there is no grid.
    pub regions: u64,
    /// Areas in them.
    pub areas: u64,
    /// Bytes of the device that the largest area has.
    pub area_bytes: u64,
    /// Bytes of the device that they cover.
    pub covered_bytes: u64,
    /// Kernel memory that they take, as reckoned here.
    pub kernel_bytes: u64,
    /// Regions created for it so far, each of which stopped the device's I/O for a moment.
    pub creates: u64,
    /// What was counted and was nobody's who is followed.
    pub others: Counters,
    /// Why it could not be read the last time; then regions count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a file's counters come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The regions of its group: what lies in them when the I/O happens.
    #[default]
    Regions,
    /// Areas that cover the device, whoever's they are: what was attributed to the file afterwards.
    Grid,
}

impl Source {
    /// The word for it, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Regions => "regions",
            Source::Grid => "grid",
        }
    }
}

/// What was counted of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileTotals {
    /// Its path; not known of groups that no service follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<FilePath>,
    /// Name of its group.
    pub alias: String,
    /// What it is followed by, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Its inode number, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// The device it lies on, as `MAJOR:MINOR`.
    pub device: String,
    /// Name of that device.
    pub device_name: String,
    /// Id of its group, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// One word, such as `following`; empty without a service.
    pub state: String,
    /// Members of the group.
    pub regions: u64,
    /// Extents of its last map, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<u64>,
    /// Bytes that its regions cover, or its extents where that is known.
    pub mapped_bytes: u64,
    /// Bytes between its extents that its group counts, too, since there are more extents than it
    /// may have regions. Not known without a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_bytes: Option<u64>,
    /// Bytes of the file that are in no extent: holes, and what is not written yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmapped_bytes: Option<u64>,
    /// Bytes of its extents that other files or snapshots have too: their I/O counts here, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<u64>,
    /// When its group was last made to show another map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_change_unix_seconds: Option<u64>,
    /// What does not work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What the counters come from.
    pub source: Source,
    /// Bytes among those read and written that may be other files', or may be missing here, because
    /// an area was several files'. None where no area can be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncertain_bytes: Option<u64>,
    /// From when on it was counted. None if nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_seconds: Option<u64>,
    /// Times that somebody set the counters of one of its regions to zero; what was counted between
    /// the reading before that and it is not in these totals.
    pub resets: u64,
    /// I/O under way.
    pub io_now: u64,
    /// The totals.
    pub counters: Counters,
    /// I/O by latency, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
}
