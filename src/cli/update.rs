//! `dmfilemapd update`: one pass over files.

use std::path::Path;

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
use crate::extent::SECTOR_BYTES;
use crate::kernel::control::Control;
use crate::kernel::fiemap::Pages;
use crate::kernel::process::end_at_broken_pipe;
use crate::pace::{Paced, Pacer};
use crate::request::FilePath;
use crate::run::Entry;
use crate::sample::{self, Reach};
use crate::shape::Want;
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
    /// Bytes between its extents that the group counts, too.
    foreign_bytes: u64,
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
    let settings = arguments.overrides.read()?.settings;
    let terms = settings.terms();
    if arguments.files.dry_run {
        return pass(DryRun::default(), &arguments.files, &terms, false);
    }
    let pacer = Pacer::new(settings.create_share);
    pass(Paced::new(Control::open()?, pacer), &arguments.files, &terms, arguments.json)
}

/// Checks all files first. Then one that fails does not keep the others from being updated, and
/// shows in the exit status.
fn pass(mut dm: impl Dm, files: &Files, terms: &Terms, json: bool) -> Result<Exit, Failure> {
    let claim = random();
    let (mut exit, mut done) = (Exit::Ok, Pass::default());
    for (mut entry, keys) in files.keyed_entries(&mut dm, claim, terms)? {
        let outcome = update_one(&mut dm, claim, &keys, &mut entry);
        let path = entry.path.display();
        match &outcome {
            Ok(done) if !json => println!("{path}: {}", said(done)),
            Ok(_) => {}
            Err(error) => {
                eprintln!("dmfilemapd: {path}: {error}");
                exit = Exit::Failed;
            }
        }
        done.files.push(Row::new(FilePath(entry.path.to_path_buf()), outcome));
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
    let map = read(&entry.path, &mut entry.reach)?;
    let device = entry.spec.device;
    let want = Want { extents: &map.extents, limits: entry.spec.limits };
    let found = match entry.spec.group {
        Some(group) => Some(group),
        None => update::find(&mut *dm, device, keys).map_err(|error| error.to_string())?,
    };
    let updated = match found {
        Some(group) => update::update(dm, device, group, want).map(Some),
        None => {
            let Entry { template, mark, home, .. } = entry;
            let dm = Known { dm, label: home.as_ref().map(|home| &home.label) };
            update::establish(dm, device, template, *mark, claim, want)
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
            foreign_bytes: updated.map_or(0, |updated| updated.foreign * SECTOR_BYTES),
            made: updated.is_some_and(|updated| updated.made),
            pending,
            error,
        }
    }
}

fn read(path: &Path, reach: &mut Reach) -> Result<Map, String> {
    match sample::look(path, reach, None, None, false, &mut Pages::default()) {
        Sight::Mapped(_, map) => Ok(map),
        Sight::Absent { found: why, .. } | Sight::Failed(why) => Err(why),
        Sight::Unused => Err("it was unlinked meanwhile".to_owned()),
        Sight::Unmounted => unreachable!("who has lists of the mounts sees that"),
    }
}
