//! The files that `run` and `update` are given, and how their groups are to be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use super::values::{self, Bounds};
use super::{Exit, Failure};
use crate::dm::{Device, Dm};
use crate::engine::Pace;
use crate::entry::{entry, mark};
use crate::group::{is_safe_alias, safe_alias};
use crate::message::RegionId;
use crate::mode::Mode;
use crate::place::{self, Obstacle, Place};
use crate::run::Entry;
use crate::sample;
use crate::update::{self, Template};

#[derive(Debug, Args)]
pub struct Files {
    /// Files on device-mapper devices
    #[arg(required = true, value_name = "FILE")]
    pub paths: Vec<PathBuf>,

    /// What makes a file the same file: its inode, or its path
    #[arg(long, value_name = "inode|path", default_value = "inode", visible_alias = "follow")]
    pub mode: Mode,

    /// Name of the group [default: the file's name]
    #[arg(long)]
    pub alias: Option<String>,

    /// Take over this group, whoever made it
    #[arg(long, value_name = "ID", conflicts_with = "dry_run")]
    pub group: Option<u32>,

    /// Owner's word of new regions; dmstats reports those of its own by default
    #[arg(long, value_name = "WORD", default_value = "dmstats")]
    pub program_id: String,

    /// Count times in nanoseconds instead of milliseconds
    #[arg(long)]
    pub precise: bool,

    /// Latency histogram with these upper bounds, as 10ms,20ms; a bare number is nanoseconds
    #[arg(long, value_parser = values::bounds)]
    pub bounds: Option<Bounds>,

    /// Do the whole job on a table in memory, on any filesystem, and print the messages that the
    /// kernel would get
    #[arg(long)]
    pub dry_run: bool,
}

impl Files {
    /// Opens and checks every file, and takes over what is to be taken over.
    pub fn entries(&self, dm: &mut impl Dm, claim: u32, pace: Pace) -> Result<Vec<Entry>, Failure> {
        Ok(self.keyed_entries(dm, claim, pace)?.into_iter().map(|(entry, _)| entry).collect())
    }

    /// The same, each with the keys that its group may have: whoever follows it may do so in
    /// another mode.
    pub fn keyed_entries(
        &self,
        dm: &mut impl Dm,
        claim: u32,
        pace: Pace,
    ) -> Result<Vec<(Entry, [u64; 2])>, Failure> {
        self.check()?;
        let mut entries = Vec::new();
        let mut seen: BTreeMap<(Device, u64), PathBuf> = BTreeMap::new();
        for path in &self.paths {
            let path = std::path::absolute(path).map_err(|error| Failure::at(path, error))?;
            let file = sample::open_regular(&path).map_err(|error| Failure::at(&path, error))?;
            let place = self.place(&file).map_err(|obstacle| Failure::at(&path, obstacle))?;
            if let Some(twin) = seen.insert((place.device, place.inode), path.clone()) {
                let twin = format!("it is the same file as {}; name it once", twin.display());
                return Err(Failure::at(&path, twin));
            }
            let marked = mark(&path, self.mode, &place);
            let adopt = |id| update::adopt(&mut *dm, place.device, RegionId(id), marked, claim);
            let group = self.group.map(adopt).transpose();
            let group = group.map_err(|error| Failure::at(&path, error))?;
            let keys = [Mode::Inode, Mode::Path].map(|mode| mark(&path, mode, &place).key);
            let template = self.template(&path);
            entries.push((entry(file, &path, self.mode, &place, group, template, pace), keys));
        }
        Ok(entries)
    }

    fn check(&self) -> Result<(), Failure> {
        let wrong = |message: String| Err(Failure(Exit::Usage, message));
        if self.paths.len() > 1 && (self.alias.is_some() || self.group.is_some()) {
            return wrong("--alias and --group go with a single FILE; name one".to_owned());
        }
        if let Some(alias) = self.alias.as_ref().filter(|alias| !is_safe_alias(alias.as_bytes())) {
            return wrong(format!(
                "--alias {alias:?} is not one that every dmstats can read; leave out blanks, \
                 colons, quotes, number signs, backslashes and control characters"
            ));
        }
        let program_id = self.program_id.as_bytes();
        if !is_safe_alias(program_id) || program_id.starts_with(b"-") {
            return wrong(format!(
                "--program-id {:?} is not one that dmstats can ask for; give a word without blanks",
                self.program_id
            ));
        }
        Ok(())
    }

    fn place(&self, file: &std::fs::File) -> Result<Place, Obstacle> {
        if !self.dry_run {
            return place::require(file);
        }
        let place = place::locate(file)?;
        place::obstacle_of_addresses(file, &place).map_or(Ok(place), Err)
    }

    fn template(&self, path: &Path) -> Template {
        let bounds = self.bounds.clone().unwrap_or_default();
        let bounds = if self.precise { bounds.into_precise() } else { bounds };
        let alias = match &self.alias {
            Some(alias) => alias.clone().into_bytes(),
            None => safe_alias(self.name(path).as_os_str().as_encoded_bytes()),
        };
        let program_id = self.program_id.clone().into_bytes();
        Template { program_id, alias, precise: bounds.precise, bounds: bounds.text.into_bytes() }
    }

    /// The file's name, or its whole path where another file has the same name.
    fn name<'a>(&self, path: &'a Path) -> &'a Path {
        let name = path.file_name();
        let namesakes = self.paths.iter().filter(|other| other.file_name() == name).count();
        name.filter(|_| namesakes == 1).map_or(path, Path::new)
    }
}
