//! `dmfilemapd gc`: away with the regions that cut updates have left, and with grids that nobody
//! reads.

use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::libc;
use serde::Serialize;

use super::dry_run::DryRun;
use super::json::{self, Document};
use super::{Exit, Failure};
use crate::dm::{Device, Dm};
use crate::extent::Extent;
use crate::grid::table::{PROGRAM, delete_leftovers, leftovers};
use crate::kernel::control::Control;
use crate::kernel::devices::Named;
use crate::kernel::process::end_at_broken_pipe;
use crate::message::RegionId;
use crate::update::{Error, Orphan, delete_orphans, orphans};
use crate::values;

/// Between two attempts to be alone on a device.
const RETRY: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Devices, as /dev/mapper/NAME, /dev/VG/LV, NAME or MAJOR:MINOR [default: all of
    /// device-mapper]
    #[arg(value_name = "DEVICE")]
    devices: Vec<String>,

    /// How long a region must stay an orphan to be deleted; and how long to try while groups of
    /// the device are being changed
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::interval)]
    wait: Duration,

    /// Say at once what would be deleted, do it on a copy of the kernel's table and print the
    /// messages; shows regions of updates that are under way, too
    #[arg(long)]
    dry_run: bool,

    /// Say what was deleted in JSON, as contrib/json.md describes it
    #[arg(long, conflicts_with = "dry_run")]
    json: bool,
}

/// What was found on the devices.
#[derive(Debug, Default, Serialize)]
struct Swept {
    devices: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    device: String,
    name: String,
    /// Those that were there for long enough.
    regions: Vec<Region>,
    deleted: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Region {
    id: u32,
    start_sector: u64,
    sectors: u64,
    program_id: String,
    mark: String,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    end_at_broken_pipe();
    let mut control = Control::open()?;
    let known = control.devices().map_err(Failure::new)?;
    let targets = targets(&arguments.devices, &known)?;
    let (named, swept) = (!arguments.devices.is_empty(), Swept::default());
    let mut job = Job { named, json: arguments.json, swept, exit: Exit::Ok };
    if arguments.dry_run {
        job.rehearse(&mut control, &targets);
    } else {
        job.perform(&mut control, &targets, arguments.wait);
    }
    if arguments.json {
        json::print(&Document::of(&job.swept))?;
    }
    Ok(job.exit)
}

/// The devices that are meant, each once.
fn targets<'a>(words: &[String], known: &'a [Named]) -> Result<Vec<&'a Named>, Failure> {
    if words.is_empty() {
        return Ok(known.iter().collect());
    }
    let one = |word: &String| target(word, known).map_err(|why| Failure::at(word.as_ref(), why));
    let mut targets = words.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    targets.sort_by_key(|target| target.device);
    targets.dedup_by_key(|target| target.device);
    Ok(targets)
}

/// The device that a word means: a name goes before a number, since names may look like anything
/// that has no slash.
fn target<'a>(word: &str, known: &'a [Named]) -> Result<&'a Named, String> {
    let by_number = |device| known.iter().find(|found| found.device == device);
    let found = known.iter().find(|found| found.name == word.as_bytes());
    let found = match (found, number(word)) {
        (Some(found), _) => Some(found),
        (None, Some(device)) => by_number(device),
        (None, None) if word.contains('/') => by_number(number_of_node(word)?),
        (None, None) => None,
    };
    found.ok_or_else(|| {
        "there is no such device in device-mapper; `dmsetup ls` lists those that are".to_owned()
    })
}

/// `253:5`
fn number(word: &str) -> Option<Device> {
    let (major, minor) = word.split_once(':')?;
    Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

fn number_of_node(path: &str) -> Result<Device, String> {
    let node = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !node.file_type().is_block_device() {
        return Err("it is not a block device; name a device, not a file on it".to_owned());
    }
    let number = node.rdev();
    Ok(Device { major: libc::major(number), minor: libc::minor(number) })
}

/// What is found on one device.
type Find<'a> = (&'a Named, Vec<Orphan>);

/// A grid that nobody reads.
type Leftovers<'a> = (&'a Named, Vec<(RegionId, Extent)>);

struct Job {
    /// Whether the user named the devices: then each has to be there.
    named: bool,
    /// Whether it is all said at the end.
    json: bool,
    swept: Swept,
    exit: Exit,
}

impl Job {
    fn perform(&mut self, control: &mut Control, targets: &[&Named], wait: Duration) {
        let found = self.find(control, targets);
        let grids = self.grids(control, targets);
        self.say_if_nothing(found.is_empty() && grids.is_empty(), targets);
        for (target, leftovers) in grids {
            let outcome = delete_leftovers(&mut *control, target.device);
            self.swept.devices.push(Row::of_grid(target, &leftovers, &outcome));
            match outcome {
                Ok(deleted) if !self.json => {
                    println!("{target}: {} of a grid deleted", regions(deleted));
                }
                Ok(_) => {}
                Err(error) => self.failed(target, &error),
            }
        }
        if !found.is_empty() {
            thread::sleep(wait);
        }
        for (target, orphans) in found {
            let outcome = delete(control, target.device, &orphans, wait);
            self.swept.devices.push(Row::new(target, &orphans, &outcome));
            match outcome {
                Ok(deleted) if !self.json => println!("{target}: {} deleted", count(deleted)),
                Ok(_) => {}
                Err(error) => self.failed(target, &error),
            }
        }
    }

    fn rehearse(&mut self, control: &mut Control, targets: &[&Named]) {
        let mut table = DryRun::default();
        let mut copied = Vec::new();
        for &target in targets {
            match table.copy(control, target.device) {
                Ok(()) => copied.push(target),
                Err(error) => self.failed(target, &error),
            }
        }
        let found = self.find(&mut table, &copied);
        let grids = self.grids(control, &copied); // who reads one has hold of it in the kernel
        self.say_if_nothing(found.is_empty() && grids.is_empty(), targets);
        for (target, leftovers) in grids {
            for (id, extent) in leftovers {
                println!("{target}: region {id}, {extent}, of a grid that nobody reads");
            }
            match delete_leftovers(&mut table, target.device) {
                Ok(deleted) => println!("{target}: {} of a grid would go", regions(deleted)),
                Err(error) => self.failed(target, &error),
            }
        }
        for (target, orphans) in found {
            for Orphan { id, extent, program_id, mark } in &orphans {
                let program_id = String::from_utf8_lossy(program_id);
                println!("{target}: region {id}, {extent}, of {program_id}, marked {mark}");
            }
            match delete_orphans(&mut table, target.device, &orphans) {
                Ok(deleted) => println!("{target}: {} would be deleted", count(deleted)),
                Err(error) => self.failed(target, &error),
            }
        }
    }

    /// What is found on each device that has any.
    fn find<'a>(&mut self, dm: &mut impl Dm, targets: &[&'a Named]) -> Vec<Find<'a>> {
        let mut found = Vec::new();
        for &target in targets {
            match orphans(&mut *dm, target.device) {
                Ok(orphans) if orphans.is_empty() => {}
                Ok(orphans) => found.push((target, orphans)),
                Err(error) if error.is_no_device() && !self.named => {} // removed since
                Err(error) => self.failed(target, &error),
            }
        }
        found
    }

    /// The grids that nobody reads.
    fn grids<'a>(&mut self, dm: &mut impl Dm, targets: &[&'a Named]) -> Vec<Leftovers<'a>> {
        let mut found = Vec::new();
        for &target in targets {
            match leftovers(&mut *dm, target.device) {
                Ok(regions) if regions.is_empty() => {}
                Ok(regions) => found.push((target, regions)),
                Err(error) if error.is_no_device() => {} // said before, where it matters
                Err(error) => self.failed(target, &error),
            }
        }
        found
    }

    fn say_if_nothing(&self, nothing: bool, targets: &[&Named]) {
        if nothing && self.exit == Exit::Ok && !self.json {
            println!("nothing to delete: no orphans on {} device(s)", targets.len());
        }
    }

    /// One that fails does not keep the others from being looked at.
    fn failed(&mut self, target: &Named, error: &dyn fmt::Display) {
        eprintln!("dmfilemapd: {target}: {error}");
        self.exit = Exit::Failed;
    }
}

impl Row {
    fn new(target: &Named, orphans: &[Orphan], outcome: &Result<usize, Error>) -> Row {
        let region = |orphan: &Orphan| Region {
            id: orphan.id.0,
            start_sector: orphan.extent.start(),
            sectors: orphan.extent.len(),
            program_id: String::from_utf8_lossy(&orphan.program_id).into_owned(),
            mark: orphan.mark.to_string(),
        };
        Row::with(target, orphans.iter().map(region).collect(), outcome)
    }

    fn of_grid(
        target: &Named,
        leftovers: &[(RegionId, Extent)],
        outcome: &Result<usize, Error>,
    ) -> Row {
        let region = |(id, extent): &(RegionId, Extent)| Region {
            id: id.0,
            start_sector: extent.start(),
            sectors: extent.len(),
            program_id: String::from_utf8_lossy(PROGRAM).into_owned(),
            mark: String::new(),
        };
        Row::with(target, leftovers.iter().map(region).collect(), outcome)
    }

    fn with(target: &Named, regions: Vec<Region>, outcome: &Result<usize, Error>) -> Row {
        Row {
            device: target.device.to_string(),
            name: String::from_utf8_lossy(&target.name).into_owned(),
            regions,
            deleted: outcome.as_ref().copied().unwrap_or(0),
            error: outcome.as_ref().err().map(ToString::to_string),
        }
    }
}

/// Tries for that long to be alone on the device.
fn delete(
    control: &mut Control,
    device: Device,
    orphans: &[Orphan],
    patience: Duration,
) -> Result<usize, Error> {
    let start = Instant::now();
    loop {
        match delete_orphans(&mut *control, device, orphans) {
            Err(error) if error.is_busy() && start.elapsed() < patience => thread::sleep(RETRY),
            outcome => return outcome,
        }
    }
}

fn regions(regions: usize) -> String {
    format!("{regions} region{}", if regions == 1 { "" } else { "s" })
}

fn count(orphans: usize) -> String {
    format!("{orphans} orphan{}", if orphans == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Named> {
        let named = |minor, name: &str| Named {
            device: Device { major: 253, minor },
            name: name.as_bytes().to_vec(),
        };
        vec![named(0, "vg-a"), named(1, "vg-b"), named(2, "253:0")]
    }

    fn minors(words: &[&str]) -> Result<Vec<u32>, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let known = known();
        let found = targets(&words, &known).map_err(|Failure(_, message)| message)?;
        Ok(found.iter().map(|target| target.device.minor).collect())
    }

    #[test]
    fn devices_go_by_name_and_number_and_each_is_meant_once() {
        assert_eq!(minors(&[]), Ok(vec![0, 1, 2]));
        assert_eq!(minors(&["vg-b", "253:1", "vg-a", "vg-b"]), Ok(vec![0, 1]));
        assert_eq!(minors(&["253:0"]), Ok(vec![2]), "a name goes before a number");
    }

    #[test]
    fn what_is_no_device_of_device_mapper_is_refused() {
        for (word, why) in [
            ("vg-c", "there is no such device"),
            ("253:7", "there is no such device"),
            ("8:0", "there is no such device"),
            ("/dev/mapper/surely-not-there", "No such file"),
            ("/dev/null", "not a block device"),
            ("/", "not a block device"),
            ("", "there is no such device"),
        ] {
            let error = minors(&["vg-a", word]).unwrap_err();
            assert!(error.starts_with(&format!("{word}: ")) && error.contains(why), "{error}");
        }
    }
}
