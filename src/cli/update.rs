//! `dmfilemapd update`: one pass over files.

use clap::Args;
use serde::Serialize;

use super::dry_run::DryRun;
use super::files::Files;
use super::json::{self, Document};
use super::overrides::GroupOverrides;
use super::{Exit, Failure};
use crate::config::Terms;
use crate::dm::{Dm, Known};
use crate::entry::random;
use crate::kernel::control::Control;
use crate::kernel::fiemap::Pages;
use crate::kernel::process::end_at_broken_pipe;
use crate::request::FilePath;
use crate::run::Entry;
use crate::sample::{self, Reach};
use crate::sight::{Map, Sight};
use crate::update::{self, Updated};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    files: Files,

    #[command(flatten)]
    overrides: GroupOverrides,

    /// Say what was done in JSON, as contrib/json.md describes it
    #[arg(long, conflicts_with = "dry_run")]
    json: bool,
}

/// What was done for the files.
#[derive(Debug, Default, Serialize)]
struct Pass {
    files: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    path: FilePath,
    /// None if it has no group yet, because it has no extent.
    group: Option<u32>,
    regions: usize,
    created: usize,
    deleted: usize,
    /// There was no group before.
    made: bool,
    /// Part of the file has no place on the device yet.
    pending: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    end_at_broken_pipe();
    if arguments.files.paths.is_empty() {
        return Err(Failure(Exit::Usage, "nothing to update; name a FILE".to_owned()));
    }
    let terms = arguments.overrides.read()?.settings.terms();
    if arguments.files.dry_run {
        return pass(DryRun::default(), &arguments.files, &terms, false);
    }
    pass(Control::open()?, &arguments.files, &terms, arguments.json)
}

/// Checks all files first. Then one that fails does not keep the others from being updated, and
/// shows in the exit status.
fn pass(mut dm: impl Dm, files: &Files, terms: &Terms, json: bool) -> Result<Exit, Failure> {
    let claim = random();
    let (mut exit, mut done) = (Exit::Ok, Pass::default());
    for (mut entry, keys) in files.keyed_entries(&mut dm, claim, terms)? {
        let outcome = update_one(&mut dm, claim, &keys, &mut entry);
        let path = entry.reach.path.display();
        match &outcome {
            Ok(done) if !json => println!("{path}: {}", said(done)),
            Ok(_) => {}
            Err(error) => {
                eprintln!("dmfilemapd: {path}: {error}");
                exit = Exit::Failed;
            }
        }
        done.files.push(Row::new(FilePath(entry.reach.path.to_path_buf()), outcome));
    }
    if json {
        json::print(&Document::of(&done))?;
    }
    Ok(exit)
}

/// The group as it is now, and whether part of the file has no place yet.
type Done = (Option<Updated>, bool);

/// `keys` are those of the file in either mode.
fn update_one(
    dm: &mut impl Dm,
    claim: u32,
    keys: &[u64],
    entry: &mut Entry,
) -> Result<Done, String> {
    let map = read(&mut entry.reach)?;
    let device = entry.spec.device;
    let found = match entry.spec.group {
        Some(group) => Some(group),
        None => update::find(&mut *dm, device, keys).map_err(|error| error.to_string())?,
    };
    let updated = match found {
        Some(group) => update::update(dm, device, group, &map.extents).map(Some),
        None => {
            let Entry { template, mark, home, .. } = entry;
            let dm = Known { dm, label: home.as_ref().map(|home| &home.label) };
            update::establish(dm, device, template, *mark, claim, &map.extents)
        }
    };
    Ok((updated.map_err(|error| error.to_string())?, map.pending))
}

fn said((updated, pending): &Done) -> String {
    let done = match updated {
        Some(updated) => crate::engine::Report::Updated(*updated).to_string(),
        None => "no group yet: the file has no extent".to_owned(),
    };
    let rest = if *pending { "; part of it has no place on the device yet" } else { "" };
    format!("{done}{rest}")
}

impl Row {
    fn new(path: FilePath, outcome: Result<Done, String>) -> Row {
        let (updated, pending, error) = match outcome {
            Ok((updated, pending)) => (updated, pending, None),
            Err(error) => (None, false, Some(error)),
        };
        let count = |of: fn(&Updated) -> usize| updated.as_ref().map_or(0, of);
        Row {
            path,
            group: updated.map(|updated| updated.group.id.0),
            regions: count(|updated| updated.members),
            created: count(|updated| updated.created),
            deleted: count(|updated| updated.deleted),
            made: updated.is_some_and(|updated| updated.made),
            pending,
            error,
        }
    }
}

fn read(reach: &mut Reach) -> Result<Map, String> {
    match sample::look(reach, None, false, &mut Pages::default()) {
        Sight::Mapped(_, map) => Ok(map),
        Sight::Absent { found: why, .. } | Sight::Failed(why) => Err(why),
        Sight::Unused => Err("it was unlinked meanwhile".to_owned()),
        Sight::Same | Sight::Changed | Sight::Unmounted => unreachable!("a look reads the map"),
    }
}
