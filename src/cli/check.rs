//! `dmfilemapd check`: what the configuration says, who says it, and which files it matches now.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::json::{self, Document};
use super::overrides::Overrides;
use super::{Exit, Failure};
use crate::config::{Assignment, Config, KEYS, Key, Rule, Settings, owners};
use crate::kernel::process::end_at_broken_pipe;

#[derive(Debug, Args)]
pub struct Arguments {
    /// In JSON, as contrib/json.md describes it
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    overrides: Overrides,
}

/// What there is to say of a configuration.
#[derive(Debug, Serialize)]
struct Checked {
    settings: Vec<Said>,
    entries: Vec<Entry>,
    /// All of them together.
    files: usize,
    cut: bool,
    problems: Vec<String>,
}

/// A value, and who says so.
#[derive(Debug, Serialize)]
struct Said {
    name: &'static str,
    value: String,
    from: String,
}

#[derive(Debug, Serialize)]
struct Entry {
    pattern: String,
    from: String,
    /// Files that are its own, and those that match and are another's.
    files: usize,
    others: usize,
    settings: Vec<Said>,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    end_at_broken_pipe();
    let config = arguments.overrides.read()?;
    let checked = check(&config);
    if arguments.json {
        json::print(&Document::of(&checked))?;
        return Ok(Exit::Ok);
    }
    print!("{}", table(&settings(&checked)));
    if checked.entries.is_empty() {
        println!("\nno entry: no file is followed unless it is named; add a [[file]]");
        return Ok(Exit::Ok);
    }
    print!("\n{}", table(&entries(&checked)));
    println!("\n{} file(s) in all", checked.files);
    if checked.cut {
        let max = config.settings.max_files;
        println!("there may be more: max_files is {max}, and no pattern reads 4000000 names");
    }
    for problem in &checked.problems {
        eprintln!("dmfilemapd: warning: {problem}");
    }
    Ok(Exit::Ok)
}

fn check(config: &Config) -> Checked {
    let owners = owners(&config.rules, config.settings.max_files, &mut |_| true);
    let mut own = vec![0; config.rules.len()];
    for (_, rule) in &owners.files {
        own[*rule] += 1;
    }
    let said = |key: &Key| Said {
        name: key.name,
        value: (key.show)(&config.settings),
        from: config.source(key.name).to_string(),
    };
    let entry = |((rule, files), matched): ((&Rule, usize), &usize)| Entry {
        pattern: rule.pattern.as_str().to_owned(),
        from: rule.source.to_string(),
        files,
        others: matched - files,
        settings: own_settings(&config.settings, rule),
    };
    let problem = |(path, error): &(PathBuf, io::Error)| format!("{}: {error}", path.display());
    Checked {
        settings: KEYS.iter().map(said).collect(),
        entries: config.rules.iter().zip(own).zip(&owners.matched).map(entry).collect(),
        files: owners.files.len(),
        cut: owners.cut,
        problems: owners.problems.iter().map(problem).collect(),
    }
}

/// What an entry says of its own.
fn own_settings(settings: &Settings, rule: &Rule) -> Vec<Said> {
    let settings = settings.with(&rule.own);
    let said = |own: &Assignment| {
        let key = KEYS.iter().find(|key| key.name == own.key)?;
        let (value, from) = ((key.show)(&settings), own.source.to_string());
        Some(Said { name: key.name, value, from })
    };
    rule.own.iter().filter_map(said).collect()
}

type Row = [String; 3];

fn settings(checked: &Checked) -> Vec<Row> {
    let mut rows = vec![["SETTING", "VALUE", "FROM"].map(str::to_owned)];
    rows.extend(checked.settings.iter().map(|Said { name, value, from }| {
        [(*name).to_owned(), quoted_if_empty(value.clone()), from.clone()]
    }));
    rows
}

/// A line for each entry, and below it one for each key that it has of its own.
fn entries(checked: &Checked) -> Vec<Row> {
    let mut rows = vec![["FILES", "ENTRY", "FROM"].map(str::to_owned)];
    for Entry { pattern, from, files, others, settings } in &checked.entries {
        let files = match others {
            0 => files.to_string(),
            others => format!("{files} (+{others} of other entries)"),
        };
        rows.push([files, pattern.clone(), from.clone()]);
        rows.extend(settings.iter().map(|Said { name, value, from }| {
            let value = quoted_if_empty(value.clone());
            [String::new(), format!("  {name} = {value}"), from.clone()]
        }));
    }
    rows
}

fn quoted_if_empty(value: String) -> String {
    if value.is_empty() { "\"\"".to_owned() } else { value }
}

/// The columns side by side, each as wide as it has to be.
fn table(rows: &[Row]) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    let mut text = String::new();
    for [a, b, c] in rows {
        // Writing to a string does not fail.
        writeln!(text, "{a:<first$}  {b:<second$}  {c}").ok();
    }
    text
}
