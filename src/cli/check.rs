//! `dmfilemapd check`: what the configuration says, who says it, and which files it matches now.

use std::fmt::Write as _;

use clap::Args;

use super::overrides::Overrides;
use super::{Exit, Failure};
use crate::config::{Assignment, Config, KEYS, Owners, Rule, Settings, owners};
use crate::kernel::process::end_at_broken_pipe;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    overrides: Overrides,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    end_at_broken_pipe();
    let config = arguments.overrides.read()?;
    print!("{}", table(&settings(&config)));
    if config.rules.is_empty() {
        println!("\nno entry: no file is followed unless it is named; add a [[file]]");
        return Ok(Exit::Ok);
    }
    let owners = owners(&config.rules, config.settings.max_files, &mut |_| true);
    print!("\n{}", table(&entries(&config, &owners)));
    println!("\n{} file(s) in all", owners.files.len());
    if owners.cut {
        let max = config.settings.max_files;
        println!("there may be more: max_files is {max}, and no pattern reads 4000000 names");
    }
    for (path, error) in &owners.problems {
        eprintln!("dmfilemapd: warning: {}: {error}", path.display());
    }
    Ok(Exit::Ok)
}

type Row = [String; 3];

fn settings(config: &Config) -> Vec<Row> {
    let mut rows = vec![["SETTING", "VALUE", "FROM"].map(str::to_owned)];
    for key in &KEYS {
        let value = quoted_if_empty((key.show)(&config.settings));
        rows.push([key.name.to_owned(), value, config.source(key.name).to_string()]);
    }
    rows
}

/// A line for each entry, and below it one for each key that it has of its own.
fn entries(config: &Config, owners: &Owners) -> Vec<Row> {
    let mut rows = vec![["FILES", "ENTRY", "FROM"].map(str::to_owned)];
    let mut own = vec![0; config.rules.len()];
    for (_, rule) in &owners.files {
        own[*rule] += 1;
    }
    for ((rule, own), matched) in config.rules.iter().zip(own).zip(&owners.matched) {
        let files = match matched - own {
            0 => own.to_string(),
            others => format!("{own} (+{others} of other entries)"),
        };
        rows.push([files, rule.pattern.as_str().to_owned(), rule.source.to_string()]);
        rows.extend(terms(&config.settings, rule));
    }
    rows
}

fn terms(settings: &Settings, rule: &Rule) -> Vec<Row> {
    let settings = settings.with(&rule.own);
    let row = |own: &Assignment| {
        let key = KEYS.iter().find(|key| key.name == own.key)?;
        let value = quoted_if_empty((key.show)(&settings));
        Some([String::new(), format!("  {} = {value}", key.name), own.source.to_string()])
    };
    rule.own.iter().filter_map(row).collect()
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
