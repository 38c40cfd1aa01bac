//! `dmfilemapd update`: one pass over files.

use clap::Args;

use super::dry_run::DryRun;
use super::files::Files;
use super::overrides::GroupOverrides;
use super::{Exit, Failure};
use crate::config::Terms;
use crate::dm::{Dm, Known};
use crate::entry::random;
use crate::kernel::control::Control;
use crate::kernel::fiemap::Pages;
use crate::kernel::process::end_at_broken_pipe;
use crate::run::Entry;
use crate::sample::{self, Reach};
use crate::sight::{Map, Sight};
use crate::update;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    files: Files,

    #[command(flatten)]
    overrides: GroupOverrides,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    end_at_broken_pipe();
    if arguments.files.paths.is_empty() {
        return Err(Failure(Exit::Usage, "nothing to update; name a FILE".to_owned()));
    }
    let terms = arguments.overrides.read()?.settings.terms();
    if arguments.files.dry_run {
        return pass(DryRun::default(), &arguments.files, &terms);
    }
    pass(Control::open()?, &arguments.files, &terms)
}

/// Checks all files first. Then one that fails does not keep the others from being updated, and
/// shows in the exit status.
fn pass(mut dm: impl Dm, files: &Files, terms: &Terms) -> Result<Exit, Failure> {
    let claim = random();
    let mut exit = Exit::Ok;
    for (mut entry, keys) in files.keyed_entries(&mut dm, claim, terms)? {
        match update_one(&mut dm, claim, &keys, &mut entry) {
            Ok(done) => println!("{}: {done}", entry.reach.path.display()),
            Err(error) => {
                eprintln!("dmfilemapd: {}: {error}", entry.reach.path.display());
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}

/// `keys` are those of the file in either mode.
fn update_one(
    dm: &mut impl Dm,
    claim: u32,
    keys: &[u64],
    entry: &mut Entry,
) -> Result<String, String> {
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
    let done = match updated.map_err(|error| error.to_string())? {
        Some(updated) => crate::engine::Report::Updated(updated).to_string(),
        None => "no group yet: the file has no extent".to_owned(),
    };
    let rest = if map.pending { "; part of it has no place on the device yet" } else { "" };
    Ok(format!("{done}{rest}"))
}

fn read(reach: &mut Reach) -> Result<Map, String> {
    match sample::look(reach, false, &mut Pages::default()) {
        Sight::Mapped(_, map) => Ok(map),
        Sight::Absent { found: why, .. } | Sight::Failed(why) => Err(why),
        Sight::Unused => Err("it was unlinked meanwhile".to_owned()),
        Sight::Same | Sight::Changed | Sight::Unmounted => unreachable!("a look reads the map"),
    }
}
