//! Values that people write, on the command line and in the configuration.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::group::is_safe_alias;

/// An interval from 1 ms to 365 days: `250ms`, `2s`, `1m 30s`; a bare number is milliseconds.
///
/// # Errors
///
/// It is zero, out of range or no time at all.
pub fn interval(text: &str) -> Result<Duration, String> {
    let duration = match text.parse::<u64>() {
        Ok(milliseconds) => Duration::from_millis(milliseconds),
        Err(_) => duration(text)?,
    };
    match duration {
        Duration::ZERO => Err("an interval cannot be zero; give 1ms or more".to_owned()),
        duration if duration < Duration::from_millis(1) => {
            Err(format!("{text} is too short an interval; give 1ms or more"))
        }
        duration if duration > DURATION_MAX => {
            Err(format!("{text} is too long an interval; give 365days or less"))
        }
        duration => Ok(duration),
    }
}

/// Longer than any machine goes without a look; short enough to be added to any time.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is no time; give it as 250ms or 2s"))
}

/// Upper bounds of a latency histogram, as the kernel takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// `10,20,30`, in nanoseconds if `precise`, else in milliseconds.
    pub text: String,
    /// Whether they need nanoseconds.
    pub precise: bool,
}

/// Reads rising bounds as `dmstats --bounds` does: `10ms,20ms`; a bare number is nanoseconds.
///
/// Whole milliseconds stay milliseconds unless the times are to be precise anyway; anything finer
/// makes them precise.
///
/// # Errors
///
/// One of them is no time, or not longer than the one before.
pub fn bounds(text: &str) -> Result<Bounds, String> {
    let mut nanoseconds: Vec<u128> = Vec::new();
    let mut precise = false;
    for word in text.split(',').map(str::trim) {
        let bare = word.parse::<u64>().ok();
        let bound = match bare {
            Some(bound) => u128::from(bound),
            None => duration(word)?.as_nanos(),
        };
        if bound <= nanoseconds.last().copied().unwrap_or(0) {
            return Err(format!("the bound {word} is not longer than the one before"));
        }
        if bound > u128::from(u64::MAX) {
            return Err(format!("the bound {word} is too long"));
        }
        precise |= bare.is_some() || bound % 1_000_000 != 0;
        nanoseconds.push(bound);
    }
    Ok(Bounds { text: join(&nanoseconds, if precise { 1 } else { 1_000_000 }), precise })
}

fn join(nanoseconds: &[u128], unit: u128) -> String {
    let words: Vec<String> = nanoseconds.iter().map(|bound| (bound / unit).to_string()).collect();
    words.join(",")
}

/// As [`bounds`] reads them: `10ms,20ms`, or `500000ns` if they need nanoseconds.
impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.precise { "ns" } else { "ms" };
        for (at, bound) in self.text.split_terminator(',').enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{bound}{unit}")?;
        }
        Ok(())
    }
}

impl Bounds {
    /// The same bounds in nanoseconds.
    #[must_use]
    pub fn into_precise(self) -> Bounds {
        if self.precise || self.text.is_empty() {
            return Bounds { precise: true, ..self };
        }
        let scaled: Vec<String> =
            self.text.split(',').map(|bound| format!("{bound}000000")).collect();
        Bounds { text: scaled.join(","), precise: true }
    }
}

/// An owner's word for regions, which `dmstats` can be asked for.
///
/// # Errors
///
/// It has a byte that a listing does not carry, or looks like an option.
pub fn program_id(text: &str) -> Result<String, String> {
    if is_safe_alias(text.as_bytes()) && !text.starts_with('-') {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not one that dmstats can ask for; give a word without blanks"))
}

/// A flag: `true` or `false`.
///
/// # Errors
///
/// It is another word.
pub fn flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

/// Bounds as [`bounds`] takes them; an empty text is for no histogram.
///
/// # Errors
///
/// Those of [`bounds`].
pub fn histogram(text: &str) -> Result<Bounds, String> {
    if text.is_empty() { Ok(Bounds::default()) } else { bounds(text) }
}

/// A switch: `on` or `off`.
///
/// # Errors
///
/// It is another word.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text:?} is neither on nor off")),
    }
}

/// What [`switch`] takes.
#[must_use]
pub fn show_switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Units of memory, the largest first.
const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

/// An amount of memory in bytes, as `4MiB`, `512 KiB` or `0`; up to 64 GiB.
///
/// # Errors
///
/// It is more than that, or no amount at all.
pub fn memory(text: &str) -> Result<u64, String> {
    const MAX: u64 = 64 << 30;
    let amount = |(unit, factor): &(&str, u64)| {
        let number = text.strip_suffix(unit)?.trim_end().parse::<u64>().ok()?;
        number.checked_mul(*factor).filter(|bytes| *bytes <= MAX)
    };
    let bytes = UNITS.iter().find_map(amount);
    bytes.ok_or_else(|| {
        format!("{text:?} is no amount of memory; give one as 4MiB or 512KiB, up to 64GiB")
    })
}

/// As [`memory`] takes it, in the largest unit in which it is whole.
#[must_use]
pub fn show_memory(bytes: u64) -> String {
    let whole = |(_, factor): &&(&str, u64)| bytes >= *factor && bytes % factor == 0;
    let (unit, factor) = UNITS.iter().find(whole).unwrap_or(&("", 1));
    format!("{}{unit}", bytes / factor)
}

/// A limit on the number of files, from 1 to 10,000,000.
///
/// # Errors
///
/// It is out of range or no number at all.
pub fn max_files(text: &str) -> Result<usize, String> {
    let max = text.parse().ok().filter(|max| (1..=10_000_000).contains(max));
    max.ok_or_else(|| format!("{text:?} is no limit of files; give a number from 1 to 10000000"))
}

/// A number of regions, from `min` to 1,000,000,000.
///
/// # Errors
///
/// It is out of range or no number at all.
fn regions(text: &str, min: u32) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (min..=1_000_000_000).contains(number));
    number.ok_or_else(|| {
        format!("{text:?} is no number of regions; give one from {min} to 1000000000")
    })
}

/// A limit on the number of regions, of which a group has one at least.
///
/// # Errors
///
/// It is out of range or no number at all.
pub fn max_regions(text: &str) -> Result<u32, String> {
    regions(text, 1)
}

/// A number of regions that may be zero.
///
/// # Errors
///
/// It is out of range or no number at all.
pub fn fold_above(text: &str) -> Result<u32, String> {
    regions(text, 0)
}

/// A share of the time in percent, from 1 to 100.
///
/// # Errors
///
/// It is out of range or no number at all.
pub fn share(text: &str) -> Result<u8, String> {
    let share = text.parse().ok().filter(|share| (1..=100).contains(share));
    share.ok_or_else(|| format!("{text:?} is no percentage; give a number from 1 to 100"))
}

/// An absolute path; an empty text is for none.
///
/// # Errors
///
/// The path is relative.
pub fn absolute_path(text: &str) -> Result<Option<PathBuf>, String> {
    match text.chars().next() {
        None => Ok(None),
        Some('/') => Ok(Some(PathBuf::from(text))),
        Some(_) => Err(format!("{text:?} is not an absolute path; begin it with a slash")),
    }
}

/// The absolute path of a file that the textfile collector of `node_exporter` takes, which is one
/// that ends in `.prom`; an empty text is for none.
///
/// # Errors
///
/// The path is relative, or ends otherwise.
pub fn textfile(text: &str) -> Result<Option<PathBuf>, String> {
    let extension = Path::new(text).extension();
    if !text.is_empty() && extension.is_none_or(|extension| extension != "prom") {
        return Err(format!("{text:?} does not end in .prom, and would not be collected"));
    }
    absolute_path(text)
}

/// Where metrics are given out over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A port of this machine, for those on it.
    Port(SocketAddr),
    /// A socket of this path, for this user.
    Socket(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Port(address) => address.fmt(f),
            Listen::Socket(path) => path.display().fmt(f),
        }
    }
}

/// A loopback address with a port, as `127.0.0.1:9756` or `[::1]:9756`, or the absolute path of a
/// socket; an empty text is for none.
///
/// # Errors
///
/// It is none of these. What is not loopback is refused, since anybody could read there which files
/// this machine has.
pub fn listen(text: &str) -> Result<Option<Listen>, String> {
    if text.is_empty() || text.starts_with('/') {
        return Ok(absolute_path(text)?.map(Listen::Socket));
    }
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("{text:?} is no address; give one as 127.0.0.1:9756, or the path of a socket")
    })?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "{address} can be reached from elsewhere; give 127.0.0.1 or [::1], with a proxy before \
             it that asks who is there"
        ));
    }
    Ok(Some(Listen::Port(address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("300"), Ok(Duration::from_millis(300)));
        assert_eq!(interval("1m 30s"), Ok(Duration::from_secs(90)));
        for text in [
            "0",
            "0s",
            "",
            "-1",
            "fast",
            "10us",
            "2 parsecs",
            "1e3",
            "9999999999999999999",
            "900years",
        ] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_are_as_those_of_dmstats() {
        let check = |text: &str, expected: &str, precise: bool| {
            assert_eq!(bounds(text), Ok(Bounds { text: expected.to_owned(), precise }), "{text}");
        };
        check("10ms,20ms", "10,20", false);
        check("10,20,30", "10,20,30", true);
        check("500us, 1ms", "500000,1000000", true);
        check("1s", "1000", false);
        for text in ["", "0", "2ms,1ms", "1ms,1ms", "1ms,", "x", "999999999999999years"] {
            assert!(bounds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn precise_bounds_are_nanoseconds() {
        assert_eq!(bounds("10ms,1s").unwrap().into_precise().text, "10000000,1000000000");
        assert_eq!(bounds("10,20").unwrap().into_precise().text, "10,20");
        assert_eq!(Bounds::default().into_precise().text, "");
    }

    #[test]
    fn bounds_are_shown_as_they_are_read() {
        for text in ["10ms,20ms", "1000ms", "500000ns,1000000ns"] {
            assert_eq!(bounds(text).unwrap().to_string(), text);
        }
        assert_eq!(Bounds::default().to_string(), "");
    }

    #[test]
    fn a_program_id_is_a_word() {
        assert_eq!(program_id("of-mine"), Ok("of-mine".to_owned()));
        for text in ["", "a b", "-a", "a:b", "a\"b"] {
            assert!(program_id(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_flag_is_one_of_two_words() {
        assert_eq!((flag("true"), flag("false")), (Ok(true), Ok(false)));
        for text in ["", "yes", "1", "TRUE"] {
            assert!(flag(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_empty_text_is_for_no_histogram_and_no_socket() {
        assert_eq!(histogram(""), Ok(Bounds::default()));
        assert_eq!(histogram("1ms"), bounds("1ms"));
        assert_eq!(absolute_path(""), Ok(None));
        assert_eq!(absolute_path("/run/x"), Ok(Some("/run/x".into())));
        assert!(absolute_path("run/x").is_err());
    }

    #[test]
    fn numbers_of_regions_and_percentages_are_in_range() {
        assert_eq!((max_regions("1"), fold_above("0")), (Ok(1), Ok(0)));
        assert_eq!((max_regions("1000000000"), share("100")), (Ok(1_000_000_000), Ok(100)));
        for text in ["0", "1000000001", "-1", "", "many"] {
            assert!(max_regions(text).is_err(), "{text}");
            assert!(share(text).is_err(), "{text}");
        }
        assert!(fold_above("-1").is_err() && share("25%").is_err() && share("101").is_err());
    }

    #[test]
    fn a_limit_of_files_is_in_range() {
        assert_eq!((max_files("1"), max_files("10000000")), (Ok(1), Ok(10_000_000)));
        for text in ["0", "10000001", "-1", "", "many"] {
            assert!(max_files(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_textfile_is_one_that_is_collected() {
        assert_eq!(textfile("/x/y.prom"), Ok(Some("/x/y.prom".into())));
        assert_eq!(textfile(""), Ok(None));
        assert!(textfile("/x/y").unwrap_err().contains(".prom"));
        assert!(textfile("y.prom").unwrap_err().contains("absolute"));
    }

    #[test]
    fn metrics_are_for_this_machine() {
        let port = |text: &str| Ok(Some(Listen::Port(text.parse().unwrap())));
        assert_eq!(listen("127.0.0.1:9756"), port("127.0.0.1:9756"));
        assert_eq!(listen("[::1]:80"), port("[::1]:80"));
        assert_eq!(listen("/run/x"), Ok(Some(Listen::Socket("/run/x".into()))));
        assert_eq!(listen(""), Ok(None));
        for elsewhere in ["0.0.0.0:9756", "[::]:9756", "192.168.0.1:1"] {
            assert!(listen(elsewhere).unwrap_err().contains("from elsewhere"), "{elsewhere}");
        }
        for none in ["9756", "localhost:9756", "127.0.0.1", "run/x"] {
            assert!(listen(none).unwrap_err().contains("is no address"), "{none}");
        }
    }
}
