//! Options that stand over the configuration.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::{self, AliasTemplate, Assignment, Config, Errors, Layer, Setting, Source};
use crate::mode::Mode;
use crate::values::{self, Bounds, Listen};

/// Those that say how groups are to be, and where the configuration is.
#[derive(Debug, Args)]
pub struct GroupOverrides {
    /// Folder of the configuration: config.toml, and conf.d/*.toml on top of it
    #[arg(long, value_name = "DIR", env = "DMFILEMAPD_CONFIG_DIR")]
    #[arg(default_value = config::FOLDER)]
    config_dir: PathBuf,

    /// What makes a file the same file: its inode, or its path [default: inode]
    #[arg(long, value_name = "inode|path", visible_alias = "follow")]
    #[arg(value_parser = super::mode_parser(), hide_possible_values = true)]
    mode: Option<Mode>,

    /// Name of the group, in which {name}, {parent} and {ino} are filled in [default: {name}]
    #[arg(long, value_name = "TEMPLATE")]
    alias: Option<AliasTemplate>,

    /// Owner's word of new regions; dmstats reports those of its own by default [default: dmstats]
    #[arg(long, value_name = "WORD", value_parser = values::program_id)]
    program_id: Option<String>,

    /// Count times in nanoseconds instead of milliseconds
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_name = "true|false")]
    precise: Option<bool>,

    /// Regions of one group at the most: a file with more extents has the nearest counted as one,
    /// with what lies between them [default: 4000]
    #[arg(long, value_name = "COUNT", value_parser = values::max_regions)]
    max_regions: Option<u32>,

    /// Percent of a device's time that making regions may take, while its I/O waits [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = values::share)]
    create_share: Option<u8>,

    /// Latency histogram with these upper bounds, as 10ms,20ms; a bare number is nanoseconds
    #[arg(long, value_name = "BOUNDS", value_parser = values::histogram, visible_alias = "bounds")]
    histogram: Option<Bounds>,
}

/// The value of an option that may be empty. As an `Option` in an `Option` clap would not take it.
type Place = Option<PathBuf>;
type MetricsListen = Option<Listen>;

/// All of them.
#[derive(Debug, Args)]
pub struct Overrides {
    #[command(flatten)]
    group: GroupOverrides,

    /// Time between two looks at a file, as 250ms or 2s; a bare number is milliseconds
    /// [default: 500ms]
    #[arg(long, value_name = "TIME", value_parser = values::interval)]
    interval: Option<Duration>,

    /// The same for a file that has not changed for long [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = values::interval)]
    max_interval: Option<Duration>,

    /// Look at all files every --interval, whether they change or not
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_name = "true|false")]
    fixed: Option<bool>,

    /// Time after which a file's extents are read though nothing seems to have changed:
    /// defragmenting and deduplication leave no trace [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = values::interval)]
    full_look: Option<Duration>,

    /// Time between two searches for files that match the patterns [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = values::interval)]
    rescan_interval: Option<Duration>,

    /// Time between two readings of what was counted [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = values::interval)]
    read_interval: Option<Duration>,

    /// Files to follow at the most [default: 100000]
    #[arg(long, value_name = "COUNT", value_parser = values::max_files)]
    max_files: Option<usize>,

    /// Regions of all groups on one device at the most [default: 4000]
    #[arg(long, value_name = "COUNT", value_parser = values::max_regions)]
    max_device_regions: Option<u32>,

    /// Regions of a group beyond those its extents need, above which some are replaced by one; for
    /// a service, which keeps their counts [default: 8]
    #[arg(long, value_name = "COUNT", value_parser = values::fold_above)]
    fold_above: Option<u32>,

    /// Whether files get groups of regions; without, totals come from grids alone [default: on]
    #[arg(long, value_name = "on|off", value_parser = values::switch)]
    regions: Option<bool>,

    /// Kernel memory that the grid of a device may take, as 4MiB; 0 is for no grids [default: 4MiB]
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    grid_memory: Option<u64>,

    /// Control socket; an empty one is none [default: /run/dmfilemapd/control.sock]
    #[arg(long, value_name = "PATH", value_parser = values::absolute_path)]
    socket: Option<Place>,

    /// Where totals are kept for the next start; an empty one is nowhere [default:
    /// /var/lib/dmfilemapd]
    #[arg(long, value_name = "DIR", value_parser = values::absolute_path)]
    state_dir: Option<Place>,

    /// Give metrics out over HTTP, at a loopback address as 127.0.0.1:9756 or the path of a socket
    #[arg(long, value_name = "ADDRESS|PATH", value_parser = values::listen)]
    metrics_listen: Option<MetricsListen>,

    /// Write metrics to this file, for the textfile collector of Prometheus's node exporter
    #[arg(long, value_name = "PATH", value_parser = values::textfile)]
    metrics_textfile: Option<Place>,

    /// Time between two writings of that file [default: 15s]
    #[arg(long, value_name = "TIME", value_parser = values::interval)]
    metrics_interval: Option<Duration>,

    /// Delete the groups at the end
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_name = "true|false")]
    remove_on_exit: Option<bool>,
}

impl GroupOverrides {
    /// The configuration with these options on top.
    pub fn read(&self) -> Result<Config, Errors> {
        self.read_with(Layer::new())
    }

    fn read_with(&self, mut options: Layer) -> Result<Config, Errors> {
        options.extend(
            [
                option("mode", self.mode, Setting::Mode),
                option("alias", self.alias.clone(), Setting::Alias),
                option("program_id", self.program_id.clone(), Setting::ProgramId),
                option("precise", self.precise, Setting::Precise),
                option("histogram", self.histogram.clone(), Setting::Histogram),
                option("max_regions", self.max_regions, Setting::MaxRegions),
                option("create_share", self.create_share, Setting::CreateShare),
            ]
            .into_iter()
            .flatten(),
        );
        config::read(&self.config_dir, env::vars_os(), options)
    }
}

impl Overrides {
    /// The configuration with these options on top.
    pub fn read(&self) -> Result<Config, Errors> {
        let options = [
            option("interval", self.interval, Setting::Interval),
            option("max_interval", self.max_interval, Setting::MaxInterval),
            option("fixed", self.fixed, Setting::Fixed),
            option("full_look", self.full_look, Setting::FullLook),
            option("rescan_interval", self.rescan_interval, Setting::RescanInterval),
            option("read_interval", self.read_interval, Setting::ReadInterval),
            option("max_files", self.max_files, Setting::MaxFiles),
            option("max_device_regions", self.max_device_regions, Setting::MaxDeviceRegions),
            option("fold_above", self.fold_above, Setting::FoldAbove),
            option("regions", self.regions, Setting::Regions),
            option("grid_memory", self.grid_memory, Setting::GridMemory),
            option("socket", self.socket.clone(), Setting::Socket),
            option("metrics_listen", self.metrics_listen.clone(), Setting::MetricsListen),
            option("metrics_textfile", self.metrics_textfile.clone(), Setting::MetricsTextfile),
            option("metrics_interval", self.metrics_interval, Setting::MetricsInterval),
            option("state_dir", self.state_dir.clone(), Setting::StateDir),
            option("remove_on_exit", self.remove_on_exit, Setting::RemoveOnExit),
        ];
        self.group.read_with(options.into_iter().flatten().collect())
    }
}

fn option<T>(key: &'static str, value: Option<T>, setting: fn(T) -> Setting) -> Option<Assignment> {
    value.map(|value| Assignment { key, setting: setting(value), source: Source::Option(key) })
}
