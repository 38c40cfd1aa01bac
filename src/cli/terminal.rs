//! What is known of the terminal that a command prints to.

use std::env;
use std::ffi::OsString;
use std::io;

/// Columns where nothing says how many there are.
const USUAL: usize = 80;

/// Columns that are used at most.
const MOST: usize = 1000;

/// How many columns there are: as `COLUMNS` says, or else the terminal, if stdout is one.
pub fn width() -> usize {
    let terminal = rustix::termios::tcgetwinsize(io::stdout()).ok();
    width_of(env::var_os("COLUMNS"), terminal.map(|size| size.ws_col))
}

fn width_of(variable: Option<OsString>, terminal: Option<u16>) -> usize {
    let said = variable.and_then(|columns| columns.to_str()?.parse().ok());
    let mut given = [said, terminal.map(usize::from)].into_iter().flatten();
    given.find(|columns| *columns > 0).unwrap_or(USUAL).min(MOST)
}

/// Whether the locale has all of Unicode.
pub fn is_utf8() -> bool {
    is_utf8_in(|name| env::var_os(name))
}

fn is_utf8_in(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let mut set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(variable);
    let first = set.find(|value| !value.is_empty()).unwrap_or_default();
    let first = first.to_string_lossy().to_lowercase();
    first.contains("utf-8") || first.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_counts_more_than_the_terminal_and_nonsense_does_not_count() {
        let width = |variable: &str, terminal| width_of(Some(variable.into()), terminal);
        assert_eq!(width("100", Some(50)), 100);
        assert_eq!(width("1000000000000", Some(50)), MOST);
        for nonsense in ["", "x", "-1", "1e9", "99999999999999999999999"] {
            assert_eq!(width(nonsense, Some(50)), 50, "{nonsense}");
        }
        assert_eq!(width("0", Some(50)), 50);
        assert_eq!(width_of(None, Some(0)), USUAL);
        assert_eq!(width_of(None, None), USUAL);
    }

    #[test]
    fn the_first_variable_of_the_locale_that_is_set_says_what_it_has() {
        let is = |set: &[(&str, &str)]| {
            is_utf8_in(|name| set.iter().find(|(is, _)| *is == name).map(|(_, text)| text.into()))
        };
        assert!(is(&[("LANG", "de_DE.UTF-8")]) && is(&[("LC_CTYPE", "C.utf8"), ("LANG", "C")]));
        assert!(is(&[("LC_ALL", ""), ("LANG", "C.UTF-8")]));
        assert!(!is(&[("LC_ALL", "C"), ("LANG", "C.UTF-8")]) && !is(&[]));
    }
}
