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

/// What a device-mapper device is called, besides by its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Its name, without `/dev/mapper/`.
    pub name: Vec<u8>,
    /// Its uuid; empty where whoever made the device gave none (LVM and cryptsetup always do).
    pub uuid: Vec<u8>,
}

impl Label {
    /// Whether a device that was called this is the same when it is called `now`.
    ///
    /// A device can be renamed, and keeps its uuid. Of one that has none it cannot be told whether
    /// it was renamed or another has its number: then it counts as another.
    #[must_use]
    pub fn is_still(&self, now: &Label) -> bool {
        self.uuid == now.uuid && (self.name == now.name || !self.uuid.is_empty())
    }
}

/// What the kernel answers to a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Of the device that answered.
    pub label: Label,
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

    /// Sends one message to the device that has both this number and this uuid, which is not empty.
    /// Another that has the number by now never sees it.
    ///
    /// Where no number is ever given to another device the number alone will do, which is the
    /// default.
    ///
    /// # Errors
    ///
    /// As [`Dm::message`], `ENXIO` if there is no such device (any more).
    fn message_to(&mut self, device: Device, _uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        self.message(device, text)
    }

    /// The next message is not to be held back to let the device's I/O through, if it would be: it
    /// creates a region that is to have an id which has just become free, and anybody may get that.
    fn hurry(&mut self) {
        if let Some(dm) = self.beneath() {
            dm.hurry();
        }
    }

    /// Begins a turn at the device, which lasts until [`Dm::end_turn`] or the end of the process.
    /// One at a time. It keeps out nobody but those who ask for turns.
    ///
    /// A table that nobody else uses needs no turns: there each is granted, which is the default.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`]: somebody else has a turn, and one of the two is to be alone.
    fn begin_turn(&mut self, device: Device, turn: Turn) -> io::Result<()> {
        self.beneath().map_or(Ok(()), |dm| dm.begin_turn(device, turn))
    }

    /// Ends the turn at the device.
    fn end_turn(&mut self, device: Device) {
        if let Some(dm) = self.beneath() {
            dm.end_turn(device);
        }
    }

    /// Takes hold of the device's grid, until [`Dm::let_grid_go`] or the end of the process:
    /// [`Turn::Shared`] who reads it, [`Turn::Alone`] who takes away what nobody reads any more.
    ///
    /// A table that nobody else uses needs none of this.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`]: somebody else has hold of it, and one of the two is to be
    /// alone.
    fn hold_grid(&mut self, device: Device, turn: Turn) -> io::Result<()> {
        self.beneath().map_or(Ok(()), |dm| dm.hold_grid(device, turn))
    }

    /// Lets go of the device's grid.
    fn let_grid_go(&mut self, device: Device) {
        if let Some(dm) = self.beneath() {
            dm.let_grid_go(device);
        }
    }

    /// What carries the messages of one that only watches them. It gets all that is asked for by
    /// the methods above, unless they are written anew; but messages the one that watches has to
    /// pass on itself.
    fn beneath(&mut self) -> Option<&mut dyn Dm> {
        None
    }
}

/// Carries messages to devices of this label alone: where another one has the number by now, the
/// device is gone.
///
/// That shows in the answer. So what is sent first has to be something that does no harm to the
/// other one, as a listing.
#[derive(Debug)]
pub struct Known<'a, D> {
    /// What carries them.
    pub dm: D,
    /// Of the device; `None` if it is not known.
    pub label: Option<&'a Label>,
}

impl<D: Dm> Dm for Known<'_, D> {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        const ENXIO: i32 = 6;
        let reply = self.dm.message(device, text)?;
        match self.label.is_none_or(|label| label.is_still(&reply.label)) {
            true => Ok(reply),
            false => Err(io::Error::from_raw_os_error(ENXIO)),
        }
    }

    fn message_to(&mut self, device: Device, uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        self.dm.message_to(device, uuid, text)
    }

    fn beneath(&mut self) -> Option<&mut dyn Dm> {
        Some(&mut self.dm)
    }
}

impl<D: Dm + ?Sized> Dm for &mut D {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        (**self).message(device, text)
    }

    fn message_to(&mut self, device: Device, uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        (**self).message_to(device, uuid, text)
    }

    fn hurry(&mut self) {
        (**self).hurry();
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
