//! Which device-mapper device it is that a file lies on, as sysfs says it.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;

use crate::dm::{Device, Label};

/// The device on which a file was found, and what it was called then: its number is given to
/// another one as soon as it is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Its number.
    pub device: Device,
    /// What it was called.
    pub label: Label,
}

impl Home {
    /// The device that has this number, while a file on it is open: or else it may be another one
    /// a moment later. `None` where sysfs does not say what it is called.
    #[must_use]
    pub fn of(device: Device) -> Option<Arc<Home>> {
        label(device).map(|label| Arc::new(Home { device, label }))
    }

    /// Whether it is still the one that has the number.
    #[must_use]
    pub fn is_there(&self) -> bool {
        label(self.device).is_some_and(|now| self.label.is_still(&now))
    }
}

/// Remembers the last one for files that come device by device. What it says may be old, so that a
/// file is taken for one that has gone with its device; never the other way round.
#[derive(Debug, Default)]
pub struct Homes(Option<(Device, Option<Arc<Home>>)>);

impl Homes {
    /// As [`Home::of`].
    pub fn of(&mut self, device: Device) -> Option<Arc<Home>> {
        if self.0.as_ref().is_none_or(|(last, _)| *last != device) {
            self.0 = Some((device, Home::of(device)));
        }
        self.0.as_ref()?.1.clone()
    }
}

/// What a device of device-mapper is called; `None` if there is no such device, or no sysfs.
#[must_use]
pub fn label(device: Device) -> Option<Label> {
    let read = |name: &str| {
        let text = attribute(device, name)?;
        Some(text.strip_suffix(b"\n").unwrap_or(&text).to_vec())
    };
    Some(Label { name: read("dm/name")?, uuid: read("dm/uuid")? })
}

/// Whether somebody has suspended it: its I/O waits until it is resumed.
#[must_use]
pub fn is_suspended(device: Device) -> bool {
    sysfs(device, "dm/suspended").is_some_and(|suspended| suspended.trim() == "1")
}

/// Its size; 0 if there is no such device.
#[must_use]
pub fn sectors(device: Device) -> u64 {
    sysfs(device, "size").and_then(|size| size.trim().parse().ok()).unwrap_or(0)
}

/// What a file of sysfs says of the device; `None` where that cannot be had.
#[must_use]
pub fn sysfs(device: Device, name: &str) -> Option<String> {
    String::from_utf8(attribute(device, name)?).ok()
}

/// In three system calls: sysfs says all it has to say of an attribute at once, and no more than a
/// page. It is not kept open, since another device may have the number the next time.
fn at_once(path: &str) -> io::Result<Vec<u8>> {
    let mut page = [0; 4096];
    let len = File::open(path)?.read(&mut page)?;
    Ok(page[..len].to_vec())
}

/// Likewise, and names may be of any bytes.
///
/// Podman hides `/sys/dev/block` from containers. A device of device-mapper is found by the name
/// that the kernel gives it, too.
fn attribute(device: Device, name: &str) -> Option<Vec<u8>> {
    let by_number = format!("/sys/dev/block/{device}");
    let by_name = format!("/sys/block/dm-{}", device.minor);
    let read = |folder: &str, name: &str| at_once(&format!("{folder}/{name}")).ok();
    let number = device.to_string();
    let is_it = || read(&by_name, "dev").is_some_and(|dev| dev.trim_ascii() == number.as_bytes());
    read(&by_number, name).or_else(|| is_it().then(|| read(&by_name, name)).flatten())
}
