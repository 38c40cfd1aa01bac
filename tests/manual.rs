//! The manual page and the completions: they have all that the program knows, and nothing else.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/tools.rs"]
mod tools;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::{Command, Output};

use dmfilemapd::cli::Exit;
use dmfilemapd::compat::is_legacy;
use dmfilemapd::config::{KEYS, Settings};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dmfilemapd");
const PAGE: &str = include_str!("../contrib/man/dmfilemapd.8");
const PAGE_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/man/dmfilemapd.8");

fn text(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the program says with these words.
fn says(words: &[&str]) -> String {
    text(Command::new(PROGRAM).args(words).output().unwrap())
}

/// The subcommands that the program names.
fn subcommands() -> Vec<String> {
    let help = says(&["-h"]);
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let lines = commands.lines().take_while(|line| !line.is_empty());
    let commands: Vec<String> =
        lines.map(|line| line.split_whitespace().next().unwrap().to_owned()).collect();
    assert!(commands.len() > 10, "{help}");
    commands
}

/// The options in a help text: words that begin so.
fn options(help: &str) -> BTreeSet<String> {
    let ends = |c: char| !c.is_ascii_lowercase() && c != '-';
    let mut found = BTreeSet::new();
    for word in help.split_whitespace().map(|word| word.trim_matches(['(', '['])) {
        let option = word.split(ends).next().unwrap();
        if option.strip_prefix("--").is_some_and(|name| !name.is_empty())
            || option.len() == 2 && option.starts_with('-') && option != "--"
        {
            found.insert(option.to_owned());
        }
    }
    found.remove("--help");
    found.remove("-h");
    found
}

/// The options in a part of the page: `Fl -group` and `Fl qv`.
fn flags(part: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in part.lines().filter(|line| line.starts_with('.')) {
        let words: Vec<&str> = line.trim_start_matches('.').split_whitespace().collect();
        for pair in words.windows(2).filter(|pair| pair[0] == "Fl") {
            match pair[1].strip_prefix('-') {
                Some(name) => drop(found.insert(format!("--{name}"))),
                None => found.extend(pair[1].chars().map(|letter| format!("-{letter}"))),
            }
        }
    }
    found
}

/// The part of the page from a line on, up to one of those that begin the next.
fn part<'a>(page: &'a str, begin: &str, ends: &[&str]) -> &'a str {
    let at = page.find(begin).unwrap_or_else(|| panic!("the page has no {begin:?}"));
    let rest = &page[at + begin.len()..];
    let end = ends.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
    &rest[..end]
}

fn section(name: &str) -> &'static str {
    part(PAGE, &format!(".Sh {name}\n"), &["\n.Sh "])
}

/// What the page has of a subcommand.
fn of_command(name: &str) -> &'static str {
    let begin = format!(".It Xo\n.Nm\n.Cm {name}\n");
    part(section("COMMANDS"), &begin, &[".It Xo\n"])
}

#[test]
fn the_page_has_every_command_and_option_and_no_other() {
    let settings = flags(section("SETTINGS"));
    assert!(settings.is_subset(&options(&says(&["run", "--help"]))), "{settings:?}");
    let commands = subcommands();
    let synopsis = section("SYNOPSIS");
    for command in &commands {
        let part = of_command(command);
        if command == "help" {
            continue;
        }
        assert!(synopsis.contains(&format!(".Cm {command}\n")), "{command} is in the SYNOPSIS");
        let takes = options(&says(&[command, "--help"]));
        let (mut has, has_settings) = (flags(part), part.contains("settings"));
        has.remove("--config-dir"); // of which the text of one speaks
        has.remove("--remove-on-exit");
        let missing: Vec<&String> = takes
            .iter()
            .filter(|option| !has.contains(*option))
            .filter(|option| !(has_settings && settings.contains(*option)))
            .collect();
        assert!(missing.is_empty(), "{command}: {missing:?} are not in the page");
        let stale: Vec<&String> = has.difference(&takes).collect();
        assert!(stale.is_empty(), "{command}: {stale:?} are no options");
    }
    let described = section("COMMANDS").matches(".It Xo\n").count();
    assert_eq!(described, commands.len(), "the page has a command that is none");
}

#[test]
fn the_page_has_every_setting_with_its_default() {
    let (settings, default) = (section("SETTINGS"), Settings::default());
    for key in &KEYS {
        let item = format!("\n.It Fl -{} ", key.name.replace('_', "-"));
        let item = part(settings, &item, &["\n.It ", "\n.El"]);
        let value = match (key.show)(&default) {
            empty if empty.is_empty() => "none".to_owned(),
            value => value,
        };
        let said = item.replace("\n.Pa ", " ").replace('\n', " ");
        assert!(said.contains(&format!("{value} by default")), "{}: {item}", key.name);
    }
}

#[test]
fn the_page_has_every_variable_and_exit_status() {
    let variables = section("ENVIRONMENT");
    for command in subcommands().iter().filter(|command| *command != "help") {
        let help = says(&[command, "--help"]);
        for (_, rest) in
            help.match_indices("[env: ").map(|(at, begin)| help.split_at(at + begin.len()))
        {
            let name = rest.split('=').next().unwrap();
            assert!(variables.contains(&format!(".It Ev {name}\n")), "{name}");
        }
    }
    for name in ["DMFILEMAPD_STANDALONE", "NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"] {
        assert!(variables.contains(name), "{name}");
    }
    let all =
        [Exit::Ok, Exit::Failed, Exit::Usage, Exit::Unavailable, Exit::NoPermission, Exit::Config];
    let said: Vec<i32> = section("EXIT STATUS")
        .lines()
        .filter_map(|line| line.strip_prefix(".It ")?.parse().ok())
        .collect();
    assert_eq!(said, all.map(|exit| exit as i32));
}

#[test]
fn the_page_is_well_formed() {
    const NAME: &str = "the_page_is_well_formed";
    if tools::lack(NAME, &[("mandoc", "mandoc"), ("man", "man-db")]) {
        return;
    }
    let mandoc = Command::new("mandoc").args(["-T", "lint", "-W", "style", PAGE_PATH]).output();
    let said = String::from_utf8(mandoc.unwrap().stdout).unwrap();
    assert_eq!(said, "");
    let mut man = Command::new("man");
    man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", PAGE_PATH]).env("MANWIDTH", "80");
    let output = man.env("LC_ALL", "C.UTF-8").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(text(output).contains("There are two front doors."));
}

#[test]
fn no_command_is_taken_for_lvm2s_command_line() {
    for command in subcommands() {
        let words = [&*command, "0", "/f", "inode"].map(OsString::from);
        assert!(!is_legacy(&words), "{command}");
    }
}

// Completions.

/// What bash offers behind these words, the last of which is begun.
fn offered(line: &[&str]) -> Vec<String> {
    let script = "source <(\"$0\" completions bash) || exit
        COMP_WORDS=(dmfilemapd \"$@\") COMP_CWORD=$#
        _dmfilemapd dmfilemapd \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"
        printf '%s\\n' \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    let output = bash.args(["--norc", "-c", script, PROGRAM]).args(line).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line:?}");
    text(output).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_words_and_files() {
    assert_eq!(offered(&["re"]), ["remove", "reload"]);
    assert_eq!(
        offered(&["run", "--ma"]),
        ["--max-regions", "--max-interval", "--max-files", "--max-device-regions"]
    );
    assert_eq!(offered(&["run", "--mode", ""]), ["inode", "path"]);
    assert_eq!(offered(&["add", "--mode", "p"]), ["path"]);
    assert_eq!(offered(&["completions", "f"]), ["fish"]);
    assert_eq!(offered(&["status", "--j"]), ["--json"]);
    assert_eq!(offered(&["run", "/"]), [""; 0], "bash itself knows files");
    let all: BTreeSet<String> = offered(&[""]).into_iter().collect();
    assert!(subcommands().iter().all(|command| all.contains(command)), "{all:?}");
    for command in subcommands().iter().filter(|command| *command != "help") {
        let offered: BTreeSet<String> = offered(&[command, "-"]).into_iter().collect();
        let missing: Vec<String> =
            options(&says(&[command, "--help"])).difference(&offered).cloned().collect();
        assert!(missing.is_empty(), "{command}: {missing:?}");
    }
}

#[test]
fn bash_completes_files_by_itself_where_the_script_offers_none() {
    let script = "source <(\"$0\" completions bash); complete -p dmfilemapd";
    let said = text(Command::new("bash").args(["--norc", "-c", script, PROGRAM]).output().unwrap());
    assert!(said.contains(" -o default ") && said.contains("-F _dmfilemapd"), "{said}");
}

#[test]
fn the_scripts_are_valid_in_their_shells() {
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let script = says(&["completions", shell]);
        assert!(script.contains("remove-on-exit"), "{shell}");
        let name = format!("the_scripts_are_valid_in_their_shells ({shell})");
        if tools::lack(&name, &[(shell, shell)]) {
            continue;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        let output = Command::new(shell).arg(check).arg(file.path()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}");
    }
}
