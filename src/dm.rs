//! The one seam of the program: a device-mapper that takes messages.
//!
//! The kernel's statistics are a small database with a one-line text protocol. [`Dm`] is that
//! database; `kernel::Control` is the real one, `kernel::Memory` speaks the same text from memory.

use std::{fmt, io};

/// A block device by number, as `stat` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    /// The driver's number; that of device-mapper is in `/proc/devices`.
    pub major: u32,
    /// The device's number, which a new device may take over as soon as it is free.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What the kernel answers to a message: its text, and the device that answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Name of the device-mapper device, without `/dev/mapper/`.
    pub name: Vec<u8>,
    /// Its uuid; empty where whoever made the device gave none (LVM and cryptsetup always do).
    pub uuid: Vec<u8>,
    /// The reply; empty for messages that answer nothing.
    pub text: Vec<u8>,
}

/// Who else may change the groups of a device during a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Others whose turn is shared: each changes a group of its own.
    Shared,
    /// Nobody.
    Alone,
}

/// Something that carries statistics messages to device-mapper devices.
pub trait Dm {
    /// Sends one message and waits for the answer.
    ///
    /// `@stats_create` waits, uninterruptibly, for all I/O in flight on the device and holds new
    /// I/O back meanwhile (`dm_internal_suspend_fast()`); every other message answers at once.
    ///
    /// # Errors
    ///
    /// The kernel's errno: `ENXIO` no such device, `ENOENT` no such region, `EINVAL` a message it
    /// does not understand (each costs a line in the kernel log), `ENOMEM` and `EOVERFLOW` no room
    /// for a region, `EACCES` no `CAP_SYS_ADMIN` in the initial user namespace.
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply>;

    /// Begins a turn at the device, which lasts until [`Dm::end_turn`] or the end of the process.
    /// One at a time. It keeps out nobody but those who ask for turns.
    ///
    /// A table that nobody else uses needs no turns: there each is granted, which is the default.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`]: somebody else has a turn, and one of the two is to be alone.
    fn begin_turn(&mut self, _device: Device, _turn: Turn) -> io::Result<()> {
        Ok(())
    }

    /// Ends the turn at the device.
    fn end_turn(&mut self, _device: Device) {}

    /// Takes hold of the device's grid, until [`Dm::let_grid_go`] or the end of the process:
    /// [`Turn::Shared`] who reads it, [`Turn::Alone`] who takes away what nobody reads any more.
    ///
    /// A table that nobody else uses needs none of this.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`]: somebody else has hold of it, and one of the two is to be
    /// alone.
    fn hold_grid(&mut self, _device: Device, _turn: Turn) -> io::Result<()> {
        Ok(())
    }

    /// Lets go of the device's grid.
    fn let_grid_go(&mut self, _device: Device) {}
}

impl<D: Dm + ?Sized> Dm for &mut D {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        (**self).message(device, text)
    }

    fn begin_turn(&mut self, device: Device, turn: Turn) -> io::Result<()> {
        (**self).begin_turn(device, turn)
    }

    fn end_turn(&mut self, device: Device) {
        (**self).end_turn(device);
    }

    fn hold_grid(&mut self, device: Device, turn: Turn) -> io::Result<()> {
        (**self).hold_grid(device, turn)
    }

    fn let_grid_go(&mut self, device: Device) {
        (**self).let_grid_go(device);
    }
}
