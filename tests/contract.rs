//! The command line of lvm2's dmfilemapd: what is good, what is not, and what is said then.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use dmfilemapd::compat::{Legacy, UsageError, is_legacy, usage};
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::{Mode, UnknownMode};
use proptest::prelude::*;

/// Words that are parted at blanks; `''` stands for an empty one.
fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(|word| if word == "''" { "" } else { word }.into()).collect()
}

fn parse(line: &str) -> Result<Legacy, UsageError> {
    Legacy::parse(&words(line))
}

fn legacy(fd: i32, group: u32, path: &str, mode: Mode) -> Legacy {
    let path = PathBuf::from(path);
    Legacy { fd, group: RegionId(group), path, mode, foreground: false, log_level: 0 }
}

#[test]
fn four_to_six_arguments_are_good() {
    let plain = legacy(3, 0, "/f", Mode::Inode);
    let foreground = Legacy { foreground: true, ..plain.clone() };
    let cases = [
        ("3 0 /f inode", plain.clone()),
        ("3 0 /f inode 0", plain.clone()),
        ("3 0 /f inode 0 0", plain.clone()),
        ("3 0 /f path", legacy(3, 0, "/f", Mode::Path)),
        ("3 0 /f inode 1", foreground.clone()),
        ("3 0 /f inode 1 3", Legacy { log_level: 3, ..foreground }),
        ("3 0 /f inode 0 1", Legacy { log_level: 1, ..plain.clone() }),
        ("3 0 /f inode 0 2", Legacy { log_level: 2, ..plain }),
        ("0 7 f inode", legacy(0, 7, "f", Mode::Inode)),
        ("003 0010 /f inode", legacy(3, 10, "/f", Mode::Inode)),
        ("2147483647 2147483647 /f inode", legacy(i32::MAX, RegionId::MAX.0, "/f", Mode::Inode)),
        ("3 0 -f inode", legacy(3, 0, "-f", Mode::Inode)),
    ];
    for (line, expected) in cases {
        assert_eq!(parse(line), Ok(expected), "{line}");
    }
}

#[test]
fn any_other_number_of_arguments_is_not() {
    for count in [0, 1, 2, 3, 7, 8] {
        let args = words(&"3 ".repeat(count));
        let error = Legacy::parse(&args).unwrap_err();
        assert_eq!(error, UsageError::Count(count));
        let text = error.to_string();
        assert_eq!(
            text,
            format!("dmfilemapd takes 4 to 6 arguments and got {count}; see the usage")
        );
    }
}

#[test]
fn the_first_bad_argument_is_named_with_what_it_should_be() {
    let number = "a decimal number from 0 to 2147483647";
    let cases = [
        ("x 0 /f inode", "file descriptor", "x", number),
        ("'' 0 /f inode", "file descriptor", "", number),
        ("-1 0 /f inode", "file descriptor", "-1", number),
        ("+3 0 /f inode", "file descriptor", "+3", number),
        ("3x 0 /f inode", "file descriptor", "3x", number),
        ("0x3 0 /f inode", "file descriptor", "0x3", number),
        ("2147483648 0 /f inode", "file descriptor", "2147483648", number),
        ("4294967299 0 /f inode", "file descriptor", "4294967299", number),
        ("18446744073709551619 0 /f inode", "file descriptor", "18446744073709551619", number),
        ("3 x /f inode", "group id", "x", number),
        ("3 -1 /f inode", "group id", "-1", number),
        ("3 +1 /f inode", "group id", "+1", number),
        ("3 2147483648 /f inode", "group id", "2147483648", number),
        ("3 4294967296 /f inode", "group id", "4294967296", number),
        ("3 1,2 /f inode", "group id", "1,2", number),
        ("3 0 '' inode", "path", "", "the path of a file"),
        ("3 0 /f inode 2", "foreground flag", "2", "0 or 1"),
        ("3 0 /f inode 01", "foreground flag", "01", "0 or 1"),
        ("3 0 /f inode yes", "foreground flag", "yes", "0 or 1"),
        ("3 0 /f inode ''", "foreground flag", "", "0 or 1"),
        ("3 0 /f inode 0 4", "log level", "4", "0, 1, 2 or 3"),
        ("3 0 /f inode 0 9", "log level", "9", "0, 1, 2 or 3"),
        ("3 0 /f inode 0 -1", "log level", "-1", "0, 1, 2 or 3"),
        ("3 0 /f inode 0 00", "log level", "00", "0, 1, 2 or 3"),
        ("3 0 /f inode 0 debug", "log level", "debug", "0, 1, 2 or 3"),
        ("x x '' x x x", "file descriptor", "x", number),
    ];
    for (line, what, given, wanted) in cases {
        let error = parse(line).unwrap_err();
        let expected = UsageError::Argument { what, given: given.into(), wanted };
        assert_eq!(error, expected, "{line}");
        let text = format!("the {what} {given:?} is not valid; give {wanted}");
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn a_mode_is_one_of_two_words() {
    for word in ["Inode", "PATH", "both", "1"] {
        let error = parse(&format!("3 0 /f {word}")).unwrap_err();
        assert_eq!(error, UsageError::Mode(UnknownMode(word.into())));
        let text = format!("{word:?} is not a mode; the modes are \"inode\" and \"path\"");
        assert_eq!(error.to_string(), text + "; give one of them");
    }
}

#[test]
fn a_path_is_bytes_and_the_others_are_not() {
    let odd = OsStr::from_bytes(b"/tmp/\xff \n\xa0");
    let args = |at: usize| {
        let mut args = words("3 0 /f inode 0 0");
        args[at] = odd.to_owned();
        args
    };
    assert_eq!(Legacy::parse(&args(2)).unwrap().path.as_os_str(), odd);
    for at in [0, 1, 3, 4, 5] {
        let text = Legacy::parse(&args(at)).unwrap_err().to_string();
        assert!(text.contains("\"/tmp/\u{fffd} \\n\u{fffd}\""), "{text}");
    }
}

#[test]
fn digits_alone_make_a_command_line_lvm2s() {
    for first in ["0", "3", "007", "99999999999999999999"] {
        assert!(is_legacy(&words(first)), "{first}");
    }
    for first in ["''", "run", "3x", "-1", "+3", "3.", "--help", "\u{663}"] {
        assert!(!is_legacy(&words(first)), "{first}");
    }
    assert!(!is_legacy(&[]));
    for line in ["-1 0 /f inode", "3x 0 /f path 1", "'' 0 /f inode 0 3"] {
        assert!(is_legacy(&words(line)), "{line}");
    }
    for line in ["run a b inode", "--alias 0 b path", "3x 0 /f file"] {
        assert!(!is_legacy(&words(line)), "{line}");
    }
    assert!(!is_legacy(&[OsStr::from_bytes(b"3\xff").to_owned()]));
}

#[test]
fn a_relative_path_is_taken_from_the_current_directory() {
    let here = std::env::current_dir().unwrap();
    let resolved = legacy(3, 0, "a/../b", Mode::Inode).resolve().unwrap();
    assert_eq!(resolved, Legacy { path: here.join("a/../b"), ..legacy(3, 0, "", Mode::Inode) });
    for absolute in ["/", "//a/./b/../c/", "/nowhere"] {
        let path = legacy(3, 0, absolute, Mode::Inode).resolve().unwrap().path;
        assert_eq!(path.as_os_str(), absolute);
    }
}

#[test]
fn the_usage_names_every_argument() {
    for line in ["FD ", "GROUP_ID ", "PATH ", "MODE ", "FOREGROUND ", "LOG_LEVEL "] {
        assert!(usage().lines().any(|text| text.trim_start().starts_with(line)), "{line}");
    }
    assert!(usage().ends_with('\n'));
    assert!(usage().is_ascii() && usage().lines().all(|line| line.len() <= 80));
}

proptest! {
    /// Whatever the number looks like: it is taken for what it is, or refused.
    #[test]
    fn no_number_wraps_around(word in "[0-9]{1,24}|[-+ x0-9]{0,4}") {
        let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        let good = |number: &u128| digits && *number <= u128::from(u32::MAX / 2);
        let expected = word.parse::<u128>().ok().filter(good);
        let args = |fd: &str, group: &str| [fd.into(), group.into(), "/f".into(), "inode".into()];

        let fd = Legacy::parse(&args(&word, "0")).ok().map(|legacy| legacy.fd);
        prop_assert_eq!(fd.and_then(|fd| u128::try_from(fd).ok()), expected);
        let group = Legacy::parse(&args("3", &word)).ok().map(|legacy| legacy.group.0);
        prop_assert_eq!(group.map(u128::from), expected);
    }
}
