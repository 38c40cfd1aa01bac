//! `dmfilemapd explain`: where a file lies, what would be done and what is in the way.
//!
//! Needs no root and no device-mapper: it only reads.

mod bar;
mod layout;
mod picture;

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use self::layout::Layout;
use self::picture::Style;
use super::json::{self, Document};
use super::{Exit, Failure, terminal};
use crate::config::{self, Layer};
use crate::entry::mark;
use crate::extent::SECTOR_BYTES;
use crate::home::{label, sectors};
use crate::kernel::control::Control;
use crate::kernel::fiemap::Pages;
use crate::kernel::process::end_at_broken_pipe;
use crate::merge::merge;
use crate::mode::Mode;
use crate::place::{self, Mount, Place, mount_of};
use crate::request::FilePath;
use crate::sample::{open_regular, read_map};
use crate::sight::Map;

#[derive(Debug, Args)]
pub struct Arguments {
    /// The file
    file: PathBuf,

    /// List every extent too, in sectors
    #[arg(short, long)]
    extents: bool,

    /// Draw where it lies on the device, and the regions of its group beneath, as wide as the
    /// terminal
    #[arg(short, long)]
    picture: bool,

    /// In JSON, as contrib/json.md describes it
    #[arg(long)]
    json: bool,
}

/// What there is to say of a file.
#[derive(Debug, Serialize)]
struct Explanation {
    path: FilePath,
    inode: u64,
    device: String,
    device_name: String,
    device_bytes: u64,
    mount: Option<Mounted>,
    map: Option<Mapped>,
    /// Why its extents cannot be used.
    unusable: Option<String>,
    /// Why its I/O cannot be counted.
    obstacle: Option<String>,
    device_mapper: Option<String>,
    device_mapper_error: Option<String>,
    /// What a picture is made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    layout: Option<Layout>,
}

#[derive(Debug, Serialize)]
struct Mounted {
    filesystem: String,
    point: FilePath,
    source: String,
}

#[derive(Debug, Serialize)]
#[allow(clippy::struct_field_names)] // as everywhere in JSON
struct Mapped {
    extents: u64,
    mapped_bytes: u64,
    shared_bytes: u64,
    pending: bool,
    regions: u64,
    foreign_bytes: u64,
    kernel_memory_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extent_list: Vec<Placed>,
}

#[derive(Debug, Serialize)]
struct Placed {
    start_sector: u64,
    sectors: u64,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    end_at_broken_pipe();
    let path = std::path::absolute(&arguments.file);
    let path = path.map_err(|error| Failure::at(&arguments.file, error))?;
    let file = open_regular(&path).map_err(|error| Failure::at(&path, error))?;
    let place = place::locate(&file).map_err(|obstacle| Failure::at(&path, obstacle))?;
    let unusable = place::obstacle_of_addresses(&file, &place).map(|why| why.to_string());
    let map = match unusable {
        None => Some(mapped(&read(&path, &file)?, max_regions(), arguments.extents)),
        Some(_) => None,
    };
    let obstacle = place::require(&file).err().map(|why| why.to_string());
    let device_sectors = sectors(place.device);
    let mut layout = match arguments.picture && unusable.is_none() {
        true => Some(Layout::of_file(&file, device_sectors).map_err(|e| Failure::at(&path, e))?),
        false => None,
    };
    let (exit, device_mapper, device_mapper_error) = match Control::open() {
        Ok(mut control) => {
            if let (Some(layout), None) = (&mut layout, &obstacle) {
                layout.see_regions(&mut control, place.device, &keys(&path, &place));
            }
            let version = control.version().map(|number| number.to_string()).join(".");
            let unseen = layout.as_ref().is_some_and(|layout| layout.regions_error.is_some());
            let exit = if obstacle.is_none() && !unseen { Exit::Ok } else { Exit::Failed };
            (exit, Some(version), None)
        }
        Err(error) => {
            let Failure(exit, error) = error.into();
            if let (Some(layout), None) = (&mut layout, &obstacle) {
                layout.regions_error = Some(error.clone());
            }
            (if map.is_some() { exit } else { Exit::Failed }, None, Some(error))
        }
    };
    let device_name = label(place.device).unwrap_or_default().name;
    let explanation = Explanation {
        mount: mount(&path),
        path: FilePath(path),
        inode: place.inode,
        device: place.device.to_string(),
        device_name: String::from_utf8_lossy(&device_name).into_owned(),
        device_bytes: device_sectors.saturating_mul(SECTOR_BYTES),
        map,
        unusable,
        obstacle,
        device_mapper,
        device_mapper_error,
        layout,
    };
    tell(arguments, &explanation)?;
    Ok(exit)
}

fn tell(arguments: &Arguments, explanation: &Explanation) -> Result<(), Failure> {
    if arguments.json {
        return json::print(&Document::of(explanation));
    }
    let Some(layout) = &explanation.layout else {
        print!("{explanation}");
        return Ok(());
    };
    let style =
        Style { width: terminal::width(), blocks: terminal::is_utf8(), all: arguments.extents };
    let mut out = io::stdout().lock();
    let mut lines = picture::lines(explanation, layout, &style).into_iter();
    lines.try_for_each(|line| writeln!(out, "{line}")).map_err(Failure::new)
}

/// Those of the file's mark, in either mode.
fn keys(path: &Path, place: &Place) -> [u64; 2] {
    [Mode::Inode, Mode::Path].map(|mode| mark(path, mode, place).key)
}

fn read(path: &Path, file: &File) -> Result<Map, Failure> {
    read_map(file, &mut Pages::default()).map_err(|error| Failure::at(path, error))
}

/// What the configuration allows a group. One that is not valid is another command's matter.
fn max_regions() -> usize {
    let folder = env::var_os("DMFILEMAPD_CONFIG_DIR").unwrap_or_else(|| config::FOLDER.into());
    let read = config::read(folder.as_ref(), env::vars_os(), Layer::new());
    read.map(|config| config.settings).unwrap_or_default().terms().limits.max()
}

fn mapped(map: &Map, max_regions: usize, listed: bool) -> Mapped {
    /// Kernel memory of a region of one area: 128 bytes, a pointer for each CPU that the kernel
    /// could have, which the allocator rounds up, and 104 bytes for each it has.
    const REGION_BYTES: u64 = 128 * 1024;
    let cover = merge(&[], &map.extents, max_regions).cover;
    let regions = cover.len().max(1) as u64;
    let extents = map.extents.as_slice().iter().filter(|_| listed);
    Mapped {
        extents: map.extents.len() as u64,
        mapped_bytes: map.extents.sectors() * SECTOR_BYTES,
        shared_bytes: map.shared_sectors * SECTOR_BYTES,
        pending: map.pending,
        regions,
        foreign_bytes: (cover.sectors() - map.extents.sectors()) * SECTOR_BYTES,
        kernel_memory_bytes: regions * REGION_BYTES,
        extent_list: extents
            .map(|extent| Placed { start_sector: extent.start(), sectors: extent.len() })
            .collect(),
    }
}

/// What its filesystem is, and where.
fn mount(path: &Path) -> Option<Mounted> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The path may lead through symlinks; the mount is that of where it ends.
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let Mount { point, kind, source } = mount_of(&mountinfo, &real)?;
    Some(Mounted { filesystem: kind, point: FilePath(point), source })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "file      {} (inode {})", self.path.0.display(), self.inode)?;
        writeln!(f, "on        {}", self.surroundings())?;
        match (&self.map, &self.unusable) {
            (Some(map), _) => map.fmt(f)?,
            (None, why) => {
                writeln!(f, "extents   cannot be used: {}", why.as_deref().unwrap_or_default())?;
            }
        }
        match &self.obstacle {
            None => writeln!(f, "verdict   its I/O can be counted")?,
            Some(obstacle) => writeln!(f, "verdict   cannot be counted: {obstacle}")?,
        }
        match (&self.device_mapper, &self.device_mapper_error) {
            (Some(version), _) => writeln!(f, "kernel    device-mapper {version} is there"),
            (None, error) => writeln!(f, "kernel    {}", error.as_deref().unwrap_or_default()),
        }
    }
}

impl Explanation {
    fn device_named(&self) -> String {
        match self.device_name.is_empty() {
            true => self.device.clone(),
            false => format!("{} ({})", self.device, self.device_name),
        }
    }

    fn surroundings(&self) -> String {
        let size = match self.device_bytes {
            0 => String::new(),
            size => format!(", {}", bytes(size)),
        };
        let device = format!("{}{size}", self.device_named());
        match &self.mount {
            Some(Mounted { filesystem, point, source }) => {
                let point = point.0.display();
                format!("{filesystem} at {point}, which is {source}, device {device}")
            }
            None => format!("device {device}"),
        }
    }
}

impl fmt::Display for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mapped { extents, pending, regions, .. } = self;
        let pending = if *pending { "; part of it has no place on the device yet" } else { "" };
        let shared = match self.shared_bytes {
            0 => "",
            _ => "; some are shared, and count the I/O of all their files",
        };
        let mapped = bytes(self.mapped_bytes);
        writeln!(f, "extents   {extents}, {mapped}{pending}{shared}")?;
        let memory = bytes(self.kernel_memory_bytes);
        writeln!(
            f,
            "would be  {regions} region(s), up to {memory} of kernel memory; the device pauses \
             that many times, a few milliseconds each, when they are made"
        )?;
        if self.foreign_bytes > 0 {
            let foreign = bytes(self.foreign_bytes);
            writeln!(
                f,
                "          which count {foreign} between its extents too: see max_regions"
            )?;
        }
        let mut list = self.extent_list.iter();
        list.try_for_each(|Placed { start_sector, sectors }| {
            writeln!(f, "          {start_sector}+{sectors}")
        })
    }
}

/// A number of bytes for people: three digits and a binary unit.
pub fn bytes(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    if power == 0 {
        return format!("{bytes} bytes");
    }
    let whole = 1u64 << (10 * power);
    let (units_, tenth) = (bytes / whole, bytes % whole * 10 / whole);
    match units_ {
        0..10 => format!("{units_}.{tenth} {}", units[power]),
        _ => format!("{units_} {}", units[power]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(512), "512 bytes");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(20 << 30), "20 GiB");
        assert_eq!(bytes(u64::MAX), "15 EiB");
    }
}
