//! The files that `run` and `update` are given.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure};
use crate::config::{Nameless, Terms, unique_aliases};
use crate::dm::{Device, Dm};
use crate::entry::{entry, mark};
use crate::home::Home;
use crate::message::RegionId;
use crate::mode::Mode;
use crate::place::{self, Obstacle, Place};
use crate::run::Entry;
use crate::sample;
use crate::shape::Limits;
use crate::update;

#[derive(Debug, Args)]
pub struct Files {
    /// Files on device-mapper devices
    #[arg(value_name = "FILE")]
    pub paths: Vec<PathBuf>,

    /// Take over this group, whoever made it
    #[arg(long, value_name = "ID", conflicts_with = "dry_run", requires = "paths")]
    pub group: Option<u32>,

    /// Do the whole job on a table in memory, on any filesystem, and print the messages that the
    /// kernel would get
    #[arg(long, requires = "paths")]
    pub dry_run: bool,
}

struct Opened {
    path: PathBuf,
    file: File,
    place: Place,
}

impl Files {
    /// Opens and checks every file, and takes over what is to be taken over.
    pub fn entries(
        &self,
        dm: &mut impl Dm,
        claim: u32,
        terms: &Terms,
    ) -> Result<Vec<Entry>, Failure> {
        Ok(self.keyed_entries(dm, claim, terms)?.into_iter().map(|(entry, _)| entry).collect())
    }

    /// The same, each with the keys that its group may have: whoever follows it may do so in
    /// another mode.
    pub fn keyed_entries(
        &self,
        dm: &mut impl Dm,
        claim: u32,
        terms: &Terms,
    ) -> Result<Vec<(Entry, [u64; 2])>, Failure> {
        let opened = self.open()?;
        let nameless: Vec<Nameless<'_>> = opened
            .iter()
            .map(|Opened { path, place, .. }| Nameless {
                path,
                inode: place.inode,
                template: &terms.alias,
            })
            .collect();
        let aliases = unique_aliases(&nameless, |_| false);
        let mut entries = Vec::new();
        for (Opened { path, file, place }, alias) in opened.into_iter().zip(aliases) {
            let marked = mark(&path, terms.mode, &place);
            let adopt = |id| update::adopt(&mut *dm, place.device, RegionId(id), marked, claim);
            let group = self.group.map(adopt).transpose();
            let group = group.map_err(|error| Failure::at(&path, error))?;
            let keys = [Mode::Inode, Mode::Path].map(|mode| mark(&path, mode, &place).key);
            let template = terms.template(alias);
            let mut entry =
                entry(Some(file), &path, terms.mode, &place, group, template, terms.pace());
            // Nobody keeps what regions have counted that are folded.
            entry.spec.limits = Limits { fold_above: None, ..terms.limits };
            entry.home = Home::of(place.device);
            entries.push((entry, keys));
        }
        Ok(entries)
    }

    fn open(&self) -> Result<Vec<Opened>, Failure> {
        if self.paths.len() > 1 && self.group.is_some() {
            let message = "--group goes with a single FILE; name one".to_owned();
            return Err(Failure(Exit::Usage, message));
        }
        let mut opened = Vec::new();
        let mut seen: BTreeMap<(Device, u64), PathBuf> = BTreeMap::new();
        for path in &self.paths {
            let path = std::path::absolute(path).map_err(|error| Failure::at(path, error))?;
            let file = sample::open_regular(&path).map_err(|error| Failure::at(&path, error))?;
            let place = self.place(&file).map_err(|obstacle| Failure::at(&path, obstacle))?;
            if let Some(twin) = seen.insert((place.device, place.inode), path.clone()) {
                let twin = format!("it is the same file as {}; name it once", twin.display());
                return Err(Failure::at(&path, twin));
            }
            opened.push(Opened { path, file, place });
        }
        Ok(opened)
    }

    fn place(&self, file: &File) -> Result<Place, Obstacle> {
        if !self.dry_run {
            return place::require(file);
        }
        let place = place::locate(file)?;
        place::obstacle_of_addresses(file, &place).map_or(Ok(place), Err)
    }
}
