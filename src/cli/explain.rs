//! `dmfilemapd explain`: where a file lies, what would be done and what is in the way.
//!
//! Needs no root and no device-mapper: it only reads.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Exit, Failure};
use crate::extent::SECTOR_BYTES;
use crate::home::{label, sectors};
use crate::kernel::control::Control;
use crate::kernel::fiemap::Pages;
use crate::kernel::process::end_at_broken_pipe;
use crate::place::{self, Mount, Place, mount_of};
use crate::sample::{open_regular, read_map};
use crate::sight::Map;

#[derive(Debug, Args)]
pub struct Arguments {
    /// The file
    file: PathBuf,

    /// List every extent too, in sectors
    #[arg(short, long)]
    extents: bool,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    end_at_broken_pipe();
    let path = std::path::absolute(&arguments.file);
    let path = path.map_err(|error| Failure::at(&arguments.file, error))?;
    let file = open_regular(&path).map_err(|error| Failure::at(&path, error))?;
    let place = place::locate(&file).map_err(|obstacle| Failure::at(&path, obstacle))?;

    println!("file      {} (inode {})", path.display(), place.inode);
    println!("on        {}", surroundings(&path, &place));
    let map = match place::obstacle_of_addresses(&file, &place) {
        None => Some(read(&path, &file)?),
        Some(obstacle) => {
            println!("extents   cannot be used: {obstacle}");
            None
        }
    };
    if let Some(map) = &map {
        println!("extents   {}", extents(map));
        println!("would be  {}", cost(map));
        for extent in map.extents.as_slice().iter().filter(|_| arguments.extents) {
            println!("          {extent}");
        }
    }
    Ok(verdict(&file, map.is_some()))
}

fn read(path: &Path, file: &File) -> Result<Map, Failure> {
    read_map(file, &mut Pages::default()).map_err(|error| Failure::at(path, error))
}

fn surroundings(path: &Path, place: &Place) -> String {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let label = label(place.device).unwrap_or_default();
    let name = String::from_utf8_lossy(&label.name);
    let size = match sectors(place.device) {
        0 => String::new(),
        sectors => format!(", {}", bytes(sectors * SECTOR_BYTES)),
    };
    let device = match name.is_empty() {
        true => format!("{}{size}", place.device),
        false => format!("{} ({name}){size}", place.device),
    };
    // The path may lead through symlinks; the mount is that of where it ends.
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match mount_of(&mountinfo, &real) {
        Some(Mount { point, kind, source }) => {
            format!("{kind} at {}, which is {source}, device {device}", point.display())
        }
        None => format!("device {device}"),
    }
}

fn extents(map: &Map) -> String {
    let mapped = bytes(map.extents.sectors() * SECTOR_BYTES);
    let pending = if map.pending { "; part of it has no place on the device yet" } else { "" };
    let shared =
        if map.shared { "; some are shared, and count the I/O of all their files" } else { "" };
    format!("{}, {mapped}{pending}{shared}", map.extents.len())
}

/// Kernel memory of a region of one area: 128 bytes, a pointer for each CPU that the kernel could
/// have, which the allocator rounds up, and 104 bytes for each it has.
fn cost(map: &Map) -> String {
    const REGION_BYTES: u64 = 128 * 1024;
    let regions = map.extents.len().max(1) as u64;
    format!(
        "{regions} region(s), up to {} of kernel memory; the device pauses that many times, a few \
         milliseconds each, when they are made",
        bytes(regions * REGION_BYTES)
    )
}

fn verdict(file: &File, usable: bool) -> Exit {
    let obstacle = place::require(file).err();
    match &obstacle {
        None => println!("verdict   its I/O can be counted"),
        Some(obstacle) => println!("verdict   cannot be counted: {obstacle}"),
    }
    let control = Control::open();
    match &control {
        Ok(control) => {
            let [major, minor, patch] = control.version();
            println!("kernel    device-mapper {major}.{minor}.{patch} is there");
        }
        Err(error) => println!("kernel    {}", super::with_cause(error)),
    }
    match (obstacle, control) {
        (_, Err(error)) if usable => Failure::from(error).0,
        (None, Ok(_)) => Exit::Ok,
        _ => Exit::Failed,
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
