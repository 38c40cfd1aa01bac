//! The device-mapper of `--dry-run`: a table in memory that says what it is told.

use std::io::{self, Write as _};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::dm::{Device, Dm, Label, Reply};
use crate::home::{label, sectors};
use crate::kernel::memory::Memory;
use crate::message::{Message, parse_list};

/// Prints every message that would change something, with the device it is for. Clones share
/// the table.
#[derive(Clone, Debug, Default)]
pub struct DryRun {
    memory: Arc<Mutex<Memory>>,
}

impl DryRun {
    /// Gives the table the regions that a device has.
    pub fn copy(&mut self, dm: &mut impl Dm, device: Device) -> Result<(), String> {
        let list = Message::List { program_id: None };
        let reply = dm.message(device, &list.encode()).map_err(|error| error.to_string())?;
        let mut memory = self.memory.lock();
        memory.set_bytes_max(u64::MAX); // the kernel has had room for them
        memory.add_device(device, 0, reply.label.name, reply.label.uuid);
        for row in parse_list(&reply.text).map_err(|error| error.to_string())? {
            memory.insert(device, &row).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

impl Dm for DryRun {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        if !text.starts_with(b"@stats_list") {
            writeln!(io::stdout(), "{device} {}", String::from_utf8_lossy(text))?;
        }
        let mut memory = self.memory.lock();
        match memory.message(device, text) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => {
                let Label { name, uuid } = label(device).unwrap_or_default();
                memory.add_device(device, sectors(device), name, uuid);
                memory.message(device, text)
            }
            answer => answer,
        }
    }
}
