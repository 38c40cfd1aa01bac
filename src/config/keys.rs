//! The keys of the configuration: what each is called, takes and sets.

use std::path::PathBuf;
use std::time::Duration;

use Place::{Anywhere, Top};
use Writing::{Flag, List, Number, Text};

use super::{AliasTemplate, Settings};
use crate::mode::Mode;
use crate::values::{self, Bounds, Listen};

/// A value for one of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// See [`Settings::interval`].
    Interval(Duration),
    /// See [`Settings::max_interval`].
    MaxInterval(Duration),
    /// See [`Settings::fixed`].
    Fixed(bool),
    /// See [`Settings::full_look`].
    FullLook(Duration),
    /// See [`Settings::rescan_interval`].
    RescanInterval(Duration),
    /// See [`Settings::read_interval`].
    ReadInterval(Duration),
    /// See [`Settings::mode`].
    Mode(Mode),
    /// See [`Settings::alias`].
    Alias(AliasTemplate),
    /// See [`Settings::program_id`].
    ProgramId(String),
    /// See [`Settings::precise`].
    Precise(bool),
    /// See [`Settings::histogram`].
    Histogram(Bounds),
    /// See [`Settings::max_files`].
    MaxFiles(usize),
    /// See [`Settings::max_regions`].
    MaxRegions(u32),
    /// See [`Settings::max_device_regions`].
    MaxDeviceRegions(u32),
    /// See [`Settings::fold_above`].
    FoldAbove(u32),
    /// See [`Settings::create_share`].
    CreateShare(u8),
    /// See [`Settings::regions`].
    Regions(bool),
    /// See [`Settings::grid_memory`].
    GridMemory(u64),
    /// See [`Settings::socket`].
    Socket(Option<PathBuf>),
    /// See [`Settings::state_dir`].
    StateDir(Option<PathBuf>),
    /// See [`Settings::remove_on_exit`].
    RemoveOnExit(bool),
    /// See [`Settings::metrics_listen`].
    MetricsListen(Option<Listen>),
    /// See [`Settings::metrics_textfile`].
    MetricsTextfile(Option<PathBuf>),
    /// See [`Settings::metrics_interval`].
    MetricsInterval(Duration),
}

impl Settings {
    /// Gives one of the settings another value.
    pub fn set(&mut self, setting: Setting) {
        match setting {
            Setting::Interval(interval) => self.interval = interval,
            Setting::MaxInterval(interval) => self.max_interval = interval,
            Setting::Fixed(fixed) => self.fixed = fixed,
            Setting::FullLook(interval) => self.full_look = interval,
            Setting::RescanInterval(interval) => self.rescan_interval = interval,
            Setting::ReadInterval(interval) => self.read_interval = interval,
            Setting::Mode(mode) => self.mode = mode,
            Setting::Alias(template) => self.alias = template,
            Setting::ProgramId(word) => self.program_id = word,
            Setting::Precise(precise) => self.precise = precise,
            Setting::Histogram(bounds) => self.histogram = bounds,
            Setting::MaxFiles(max) => self.max_files = max,
            Setting::MaxRegions(max) => self.max_regions = max,
            Setting::MaxDeviceRegions(max) => self.max_device_regions = max,
            Setting::FoldAbove(number) => self.fold_above = number,
            Setting::CreateShare(share) => self.create_share = share,
            Setting::Regions(on) => self.regions = on,
            Setting::GridMemory(bytes) => self.grid_memory = bytes,
            Setting::Socket(path) => self.socket = path,
            Setting::StateDir(path) => self.state_dir = path,
            Setting::RemoveOnExit(remove) => self.remove_on_exit = remove,
            Setting::MetricsListen(listen) => self.metrics_listen = listen,
            Setting::MetricsTextfile(path) => self.metrics_textfile = path,
            Setting::MetricsInterval(interval) => self.metrics_interval = interval,
        }
    }
}

/// How a value is written in TOML. Elsewhere all are text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// A string.
    Text,
    /// `true` or `false`.
    Flag,
    /// An integer.
    Number,
    /// An array of strings, or one string with commas.
    List,
}

/// Where a key may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the top only: it is for the whole service.
    Top,
    /// At the top, and in an entry for the files of that entry.
    Anywhere,
}

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Its name in files. That of the option has dashes, that of the environment is in capitals.
    pub name: &'static str,
    /// How its value is written in TOML.
    pub writing: Writing,
    /// Where it may stand.
    pub place: Place,
    /// Reads its value.
    pub read: fn(&str) -> Result<Setting, String>,
    /// Shows its value as it may be written.
    pub show: fn(&Settings) -> String,
}

const fn key(
    name: &'static str,
    (writing, place): (Writing, Place),
    read: fn(&str) -> Result<Setting, String>,
    show: fn(&Settings) -> String,
) -> Key {
    Key { name, writing, place, read, show }
}

/// All keys, in the order in which they are shown.
pub const KEYS: [Key; 24] = [
    key("interval", (Text, Anywhere), |t| interval(t, Setting::Interval), |s| time(s.interval)),
    key("max_interval", (Text, Anywhere), |t| interval(t, Setting::MaxInterval), max_interval),
    key("fixed", (Flag, Anywhere), |t| flag(t, Setting::Fixed), |s| s.fixed.to_string()),
    key("full_look", (Text, Top), |t| interval(t, Setting::FullLook), |s| time(s.full_look)),
    key(
        "rescan_interval",
        (Text, Top),
        |t| interval(t, Setting::RescanInterval),
        |s| time(s.rescan_interval),
    ),
    key(
        "read_interval",
        (Text, Top),
        |t| interval(t, Setting::ReadInterval),
        |s| time(s.read_interval),
    ),
    key("mode", (Text, Anywhere), mode, |s| s.mode.to_string()),
    key("alias", (Text, Anywhere), alias, |s| s.alias.to_string()),
    key(
        "program_id",
        (Text, Anywhere),
        |t| values::program_id(t).map(Setting::ProgramId),
        |s| s.program_id.clone(),
    ),
    key("precise", (Flag, Anywhere), |t| flag(t, Setting::Precise), |s| s.precise.to_string()),
    key(
        "histogram",
        (List, Anywhere),
        |t| values::histogram(t).map(Setting::Histogram),
        |s| s.histogram.to_string(),
    ),
    key(
        "max_files",
        (Number, Top),
        |t| values::max_files(t).map(Setting::MaxFiles),
        |s| s.max_files.to_string(),
    ),
    key(
        "max_regions",
        (Number, Anywhere),
        |t| values::max_regions(t).map(Setting::MaxRegions),
        |s| s.max_regions.to_string(),
    ),
    key(
        "max_device_regions",
        (Number, Top),
        |t| values::max_regions(t).map(Setting::MaxDeviceRegions),
        |s| s.max_device_regions.to_string(),
    ),
    key(
        "fold_above",
        (Number, Anywhere),
        |t| values::fold_above(t).map(Setting::FoldAbove),
        |s| s.fold_above.to_string(),
    ),
    key(
        "create_share",
        (Number, Top),
        |t| values::share(t).map(Setting::CreateShare),
        |s| s.create_share.to_string(),
    ),
    key(
        "regions",
        (Text, Anywhere),
        |t| values::switch(t).map(Setting::Regions),
        |s| values::show_switch(s.regions).to_owned(),
    ),
    key(
        "grid_memory",
        (Text, Top),
        |t| values::memory(t).map(Setting::GridMemory),
        |s| values::show_memory(s.grid_memory),
    ),
    key(
        "socket",
        (Text, Top),
        |t| values::absolute_path(t).map(Setting::Socket),
        |s| place(s.socket.as_ref()),
    ),
    key(
        "state_dir",
        (Text, Top),
        |t| values::absolute_path(t).map(Setting::StateDir),
        |s| place(s.state_dir.as_ref()),
    ),
    key(
        "remove_on_exit",
        (Flag, Top),
        |t| flag(t, Setting::RemoveOnExit),
        |s| s.remove_on_exit.to_string(),
    ),
    key(
        "metrics_listen",
        (Text, Top),
        |t| values::listen(t).map(Setting::MetricsListen),
        |s| s.metrics_listen.as_ref().map(ToString::to_string).unwrap_or_default(),
    ),
    key(
        "metrics_textfile",
        (Text, Top),
        |t| values::textfile(t).map(Setting::MetricsTextfile),
        |s| place(s.metrics_textfile.as_ref()),
    ),
    key(
        "metrics_interval",
        (Text, Top),
        |t| interval(t, Setting::MetricsInterval),
        |s| time(s.metrics_interval),
    ),
];

/// The key of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Of these words the one that was probably meant.
pub fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this two words have little in common.
    const LIKENESS_MIN: f64 = 0.7;
    let likeness = |other: &'a str| (strsim::jaro_winkler(word, other), other);
    let like = words.into_iter().map(likeness).filter(|(likeness, _)| *likeness > LIKENESS_MIN);
    like.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, other)| other)
}

fn interval(text: &str, setting: fn(Duration) -> Setting) -> Result<Setting, String> {
    values::interval(text).map(setting)
}

fn flag(text: &str, setting: fn(bool) -> Setting) -> Result<Setting, String> {
    values::flag(text).map(setting)
}

fn mode(text: &str) -> Result<Setting, String> {
    text.parse().map(Setting::Mode).map_err(|error: crate::mode::UnknownMode| error.to_string())
}

fn alias(text: &str) -> Result<Setting, String> {
    text.parse().map(Setting::Alias).map_err(|error: super::BadTemplate| error.to_string())
}

fn time(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// What holds, and that it is not what was asked for.
fn max_interval(settings: &Settings) -> String {
    if settings.max_interval < settings.interval {
        return format!("{}, as interval", time(settings.interval));
    }
    time(settings.max_interval)
}

fn place(path: Option<&PathBuf>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read_and_sets_the_same() {
        let defaults = Settings::default();
        for key in &KEYS {
            let mut settings = defaults.clone();
            settings.set((key.read)(&(key.show)(&defaults)).unwrap());
            assert_eq!(settings, defaults, "{}", key.name);
        }
    }

    #[test]
    fn a_misspelt_word_is_recognized() {
        let of = |word| nearest(word, KEYS.map(|key| key.name));
        assert_eq!(of("intervall"), Some("interval"));
        assert_eq!(of("maxinterval"), Some("max_interval"));
        assert_eq!(of("histogramm"), Some("histogram"));
        assert_eq!(of("zzz"), None);
    }

    #[test]
    fn an_interval_is_not_longer_than_the_longest() {
        let second = Duration::from_secs(30);
        let settings = Settings { interval: second, ..Settings::default() };
        assert_eq!(max_interval(&settings), "30s, as interval");
        assert_eq!(settings.terms().max_interval, second);
    }
}
