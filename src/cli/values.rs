//! Option values that are more than a word or a number.

use std::time::Duration;

/// An interval: `250ms`, `2s`, `1m 30s`; a bare number is milliseconds.
///
/// # Errors
///
/// It is zero or no time at all.
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
}
