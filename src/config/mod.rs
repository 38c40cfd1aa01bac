//! What the service is to follow, and how: files, environment and options, one over the other.
//!
//! Of several values for a key the last one counts: the default, then `config.toml`, then
//! `conf.d/*.toml` in order of their names, then the environment, then the options. An entry's own
//! keys count more than any of these, since they are more specific. Entries add up, and the first
//! that matches a file has it.
//!
//! A [`Layer`] is what one source says, as a list of [assignments](Assignment); carrying out one
//! list after the other is all there is to precedence.

mod alias;
mod document;
mod environment;
mod keys;
mod pattern;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use alias::{AliasTemplate, BadTemplate, Nameless, unique_aliases};
use document::Entry;
pub use keys::{KEYS, Key, Place, Setting, Writing};
pub use pattern::{Ask, Expansion, Found, Owners, Pattern, Touch, device_towards, expand, owners};

use crate::engine::Pace;
use crate::mode::Mode;
use crate::pace;
use crate::shape::Limits;
use crate::update;
use crate::values::{Bounds, Listen};

/// Where the configuration is, unless the command line or the environment says otherwise.
pub const FOLDER: &str = "/etc/dmfilemapd";

/// All settings, for the whole service and for files of which no entry says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a setting of its own
pub struct Settings {
    /// Between two looks at a file that changes. 500 ms.
    pub interval: Duration,
    /// Between two looks at a file that has not changed for long. 10 s; where it is shorter than
    /// the interval, the interval holds.
    pub max_interval: Duration,
    /// Whether the interval stays as it is, whether or not the file changes.
    pub fixed: bool,
    /// How long the extents of a file go unread at the most, though nothing seems to change. 60 s.
    pub full_look: Duration,
    /// Between two expansions of the patterns. 10 s.
    pub rescan_interval: Duration,
    /// Between two readings of what was counted. 10 s.
    pub read_interval: Duration,
    /// What makes a file the same file. Its inode.
    pub mode: Mode,
    /// What groups are called. By the file's name.
    pub alias: AliasTemplate,
    /// Owner's word of new regions. `dmstats`.
    pub program_id: String,
    /// Whether times are counted in nanoseconds.
    pub precise: bool,
    /// Upper bounds of the latency histogram. None.
    pub histogram: Bounds,
    /// Files that are followed at the most. 100,000.
    pub max_files: usize,
    /// Regions of one group at the most: extents beyond that are merged across the smallest gaps.
    /// 4,000.
    pub max_regions: u32,
    /// Regions of all groups on one device at the most, as far as each may have one. 4,000.
    pub max_device_regions: u32,
    /// Regions of a group beyond those that its extents need, from which on some are folded. 8.
    pub fold_above: u32,
    /// Percent of a device's time that creates may take. 50.
    pub create_share: u8,
    /// Whether files get groups of regions.
    pub regions: bool,
    /// Kernel memory that the grid of a device may take, in bytes; none, for no grids. 0.
    pub grid_memory: u64,
    /// Where the control socket is, if there is to be one. `/run/dmfilemapd/control.sock`.
    pub socket: Option<PathBuf>,
    /// Where totals are kept for the next service, if they are to be. `/var/lib/dmfilemapd`.
    pub state_dir: Option<PathBuf>,
    /// Whether the groups are deleted when the service ends.
    pub remove_on_exit: bool,
    /// Where metrics are given out over HTTP, if they are.
    pub metrics_listen: Option<Listen>,
    /// The file that metrics are written to, if they are.
    pub metrics_textfile: Option<PathBuf>,
    /// Between two writings of that file. 15 s.
    pub metrics_interval: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            interval: Duration::from_millis(500),
            max_interval: Duration::from_secs(10),
            fixed: false,
            full_look: Duration::from_secs(60),
            rescan_interval: Duration::from_secs(10),
            read_interval: Duration::from_secs(10),
            mode: Mode::Inode,
            alias: AliasTemplate::default(),
            program_id: "dmstats".to_owned(),
            precise: false,
            histogram: Bounds::default(),
            max_files: 100_000,
            max_regions: 4000,
            max_device_regions: 4000,
            fold_above: 8,
            create_share: pace::SHARE,
            regions: true,
            grid_memory: 0,
            socket: Some(PathBuf::from("/run/dmfilemapd/control.sock")),
            state_dir: Some(PathBuf::from("/var/lib/dmfilemapd")),
            remove_on_exit: false,
            metrics_listen: None,
            metrics_textfile: None,
            metrics_interval: Duration::from_secs(15),
        }
    }
}

/// How a file is followed, and what its group is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What makes it the same file.
    pub mode: Mode,
    /// Between two looks while it changes.
    pub interval: Duration,
    /// Between two looks while it does not: the interval or longer.
    pub max_interval: Duration,
    /// Owner's word of its regions.
    pub program_id: String,
    /// Whether it gets a group at all.
    pub regions: bool,
    /// Whether times are counted in nanoseconds. So they are where a bound needs it.
    pub precise: bool,
    /// Upper bounds of its latency histogram, in nanoseconds if `precise`, else in milliseconds.
    pub bounds: String,
    /// What its group is called.
    pub alias: AliasTemplate,
    /// How many regions its group may have.
    pub limits: Limits,
}

impl Settings {
    /// These settings with what an entry says on top.
    #[must_use]
    pub fn with(&self, own: &Layer) -> Settings {
        let mut settings = self.clone();
        for Assignment { setting, .. } in own {
            settings.set(setting.clone());
        }
        settings
    }

    /// What these settings are for a file.
    #[must_use]
    pub fn terms(&self) -> Terms {
        let longest = if self.fixed { self.interval } else { self.max_interval };
        let bounds = self.histogram.clone();
        let bounds = if self.precise { bounds.into_precise() } else { bounds };
        Terms {
            mode: self.mode,
            interval: self.interval,
            max_interval: longest.max(self.interval),
            program_id: self.program_id.clone(),
            regions: self.regions,
            precise: bounds.precise,
            bounds: bounds.text,
            alias: self.alias.clone(),
            limits: Limits { max_regions: self.max_regions, fold_above: Some(self.fold_above) },
        }
    }
}

impl Terms {
    /// Whether a group that was made on these terms is as one made on the others.
    #[must_use]
    pub fn makes_groups_like(&self, other: &Terms) -> bool {
        let Terms { interval: _, max_interval: _, limits: _, mode, program_id, regions, .. } = self;
        let Terms { precise, bounds, alias, .. } = self;
        (*mode, *regions) == (other.mode, other.regions)
            && *program_id == other.program_id
            && (*precise, bounds) == (other.precise, &other.bounds)
            && *alias == other.alias
    }

    /// How often a file is looked at.
    #[must_use]
    pub fn pace(&self) -> Pace {
        Pace { interval: self.interval, max_interval: self.max_interval }
    }

    /// What the group of a file is made from; for the alias see [`unique_aliases`].
    #[must_use]
    pub fn template(&self, alias: Vec<u8>) -> update::Template {
        update::Template {
            program_id: self.program_id.clone().into_bytes(),
            alias,
            precise: self.precise,
            bounds: self.bounds.clone().into_bytes(),
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: nobody said anything else.
    Default,
    /// A file or folder as a whole.
    File(Arc<Path>),
    /// A line of a file; the first is 1.
    Line(Arc<Path>, usize),
    /// A variable of the environment.
    Environment(String),
    /// An option of the command line, by the name of its key.
    Option(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Line(path, line) => write!(f, "{}:{line}", path.display()),
            Source::Environment(name) => write!(f, "environment {name}"),
            Source::Option(key) => write!(f, "option --{}", key.replace('_', "-")),
        }
    }
}

/// One value of one key, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The key's name.
    pub key: &'static str,
    /// What it sets.
    pub setting: Setting,
    /// Who says so.
    pub source: Source,
}

/// What one source says, the last of which counts.
pub type Layer = Vec<Assignment>;

/// An entry: which files are followed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which files.
    pub pattern: Pattern,
    /// How.
    pub terms: Terms,
    /// Where the entry is.
    pub source: Source,
    /// What it says itself of its terms.
    pub own: Layer,
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What holds where no entry says otherwise.
    pub settings: Settings,
    /// The entries, in their order.
    pub rules: Vec<Rule>,
    sources: BTreeMap<&'static str, Source>,
}

impl Config {
    /// Where the value of a key comes from.
    #[must_use]
    pub fn source(&self, key: &str) -> &Source {
        self.sources.get(key).unwrap_or(&Source::Default)
    }
}

/// Something that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Where.
    pub at: Source,
    /// What, and what would be right.
    pub fault: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.fault)
    }
}

impl std::error::Error for Error {}

/// All that is wrong with the configuration: one thing or more, a line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not valid:")?;
        self.0.iter().try_for_each(|error| write!(f, "\n  {error}"))
    }
}

impl std::error::Error for Errors {}

/// Reads the configuration: the files in `folder`, the `variables` of an environment, and what the
/// options say.
///
/// A folder or a `config.toml` that does not exist is an empty one.
///
/// # Errors
///
/// All that is wrong, from whatever source.
pub fn read(
    folder: &Path,
    variables: impl Iterator<Item = (OsString, OsString)>,
    options: Layer,
) -> Result<Config, Errors> {
    let (mut layer, mut entries, mut errors) = (Layer::new(), Vec::new(), Vec::new());
    for path in files(folder, &mut errors) {
        match fs::read(&path) {
            Ok(bytes) => {
                let document = document::parse(&path, &bytes, &mut errors);
                layer.extend(document.layer);
                entries.extend(document.entries);
            }
            Err(error) => errors.push(unreadable(path, &error)),
        }
    }
    layer.extend(environment::read(variables, &mut errors));
    layer.extend(options);
    if errors.is_empty() { Ok(resolve(layer, entries)) } else { Err(Errors(errors)) }
}

fn resolve(layer: Layer, entries: Vec<Entry>) -> Config {
    let (mut settings, mut sources) = (Settings::default(), BTreeMap::new());
    for Assignment { key, setting, source } in layer {
        settings.set(setting);
        sources.insert(key, source);
    }
    let rule = |Entry { pattern, own, source }| {
        let terms = settings.with(&own).terms();
        Rule { pattern, terms, source, own }
    };
    let rules = entries.into_iter().map(rule).collect();
    Config { settings, rules, sources }
}

/// The files to read, in their order. As in a shell, `*.toml` is none that begins with a dot.
fn files(folder: &Path, errors: &mut Vec<Error>) -> Vec<Arc<Path>> {
    let mut files: Vec<Arc<Path>> = Vec::new();
    let top = folder.join("config.toml");
    // A link that leads nowhere is there: to read it fails, and says so.
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    if !fs::symlink_metadata(&top).is_err_and(|error| absent(&error)) {
        files.push(top.into());
    }
    let more: Arc<Path> = folder.join("conf.d").into();
    let names = fs::read_dir(&more).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>()
    });
    match names {
        Ok(mut paths) => {
            paths.retain(|path| {
                let name = path.file_name().unwrap_or_default().as_encoded_bytes();
                name.ends_with(b".toml") && !name.starts_with(b".")
            });
            paths.sort();
            files.extend(paths.into_iter().map(Arc::from));
        }
        Err(error) if absent(&error) => {}
        Err(error) => errors.push(unreadable(more, &error)),
    }
    files
}

fn unreadable(path: Arc<Path>, error: &io::Error) -> Error {
    let fault = format!("cannot be read: {error}; make it readable or remove it");
    Error { at: Source::File(path), fault }
}
