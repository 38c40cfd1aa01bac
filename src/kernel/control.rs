//! `/dev/mapper/control`: statistics messages to the kernel.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};
use std::{fmt, fs, io};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::utsname::uname;

use crate::dm::{Device, Dm, Label, Reply, Turn};
use crate::kernel::apart;
use crate::kernel::devices::{Named, parse_names};

const NODE: &str = "/dev/mapper/control";

/// Bytes offered to messages with short replies, unless the message itself needs more. The kernel
/// allocates, and copies in, all that it is offered, however little it answers.
const SMALL: usize = 1 << 10;

/// Bytes offered to the first listing of a device: some 400 regions.
const FIRST_LIST: usize = 16 << 10;

/// Most bytes that are offered: `copy_params()` of newer kernels takes no more.
const OFFER_MAX: u32 = 1 << 30;

/// Most bytes of the text of a `@stats_create`. If the kernel has no memory to copy a word to,
/// `dm_stat_free()` crashes on what `dm_stats_create()` did not come to allocate. Up to this size
/// (`PAGE_ALLOC_COSTLY_ORDER`) the kernel kills processes rather than let `kmalloc()` fail.
pub(super) const CREATE_MAX: usize = 32 << 10;

/// Most bytes of the buffer that are kept from one message to the next.
const KEEP_MAX: usize = 1 << 20;

/// Where on the control node the bytes begin that are locked for grids: behind those of all
/// devices, whose numbers have 32 bits.
const GRIDS: u64 = 1 << 32;

/// `struct dm_ioctl`, in front of all that goes through the control node.
#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// Bytes in a header.
const HEADER: u32 = 312;

/// Bytes in an element of the buffer, which is one of `u64` to be aligned for a header.
const WORD: usize = size_of::<u64>();

/// Where `struct dm_target_msg` begins, in words: first the number of a sector, then the text.
/// Replies begin at the same place. The sector must be 0, since the kernel leaves it there if it
/// has nothing to say, and it is then read as an empty reply.
const SECTOR_AT: usize = HEADER as usize / WORD;
const TEXT_AT: usize = SECTOR_AT + 1;

const _: () =
    assert!(size_of::<Header>() == HEADER as usize && SECTOR_AT * WORD == HEADER as usize);
const _: () = assert!(offset_of!(Header, data_size) == 12 && offset_of!(Header, data_start) == 16);
const _: () = assert!(offset_of!(Header, open_count) == 24 && offset_of!(Header, flags) == 28);
const _: () = assert!(offset_of!(Header, dev) == 40 && offset_of!(Header, name) == 48);
const _: () = assert!(offset_of!(Header, uuid) == 176 && offset_of!(Header, data) == 305);
const _: () = assert!(align_of::<Header>() <= align_of::<u64>());

/// `DM_SUSPEND_FLAG`, `DM_BUFFER_FULL_FLAG` and `DM_DATA_OUT_FLAG` of the header that comes back.
const SUSPENDED: u32 = 1 << 1;
const BUFFER_FULL: u32 = 1 << 8;
const DATA_OUT: u32 = 1 << 16;

mod ioctl {
    use super::Header;

    nix::ioctl_readwrite!(dm_version, 0xfd, 0, Header);
    nix::ioctl_readwrite!(dm_list_devices, 0xfd, 2, Header);
    nix::ioctl_readwrite!(dm_dev_status, 0xfd, 7, Header);
    nix::ioctl_readwrite!(dm_target_msg, 0xfd, 14, Header);
}

/// One of the four above.
type Command = unsafe fn(RawFd, *mut Header) -> nix::Result<libc::c_int>;

/// By what the kernel finds a device.
#[derive(Clone, Copy)]
enum Address<'a> {
    /// Its encoded number.
    Number(u64),
    /// Its uuid.
    Uuid(&'a [u8]),
}

/// Which process makes a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// This one.
    Us,
    /// One of its own, in which the call may last forever; the buffer has to be on the heap.
    Another,
}

impl Header {
    /// A request of `data_size` bytes in all, to device number `dev`.
    ///
    /// Version 4.0.0 is the lowest that knows what is asked of it; `check_version()` refuses a
    /// higher one than the kernel's own.
    fn new(dev: u64, data_size: u32) -> Header {
        Header {
            version: [4, 0, 0],
            data_size,
            data_start: HEADER,
            target_count: 0,
            open_count: 0,
            flags: 0,
            event_nr: 0,
            padding: 0,
            dev,
            name: [0; 128],
            uuid: [0; 129],
            data: [0; 7],
        }
    }

    /// Likewise, to the device with this uuid, whatever its number is: the kernel takes one of the
    /// two. `None` for one that is no uuid.
    fn to_uuid(uuid: &[u8], data_size: u32) -> Option<Header> {
        let mut header = Header::new(0, data_size);
        let fits = uuid.len() < header.uuid.len(); // a NUL ends it
        header.uuid.get_mut(..uuid.len()).filter(|_| fits)?.copy_from_slice(uuid);
        Some(header)
    }
}

/// Sends `header` and what stands behind it in `buffer`; the answer stands there afterwards, and
/// its header is returned.
fn call(
    file: &File,
    command: Command,
    header: &Header,
    buffer: &mut [u64],
    by: By,
) -> Result<Header, Errno> {
    let needed = header.data_size.max(HEADER) as usize;
    assert!(size_of_val(buffer) >= needed, "a buffer shorter than it says");
    let pointer = buffer.as_mut_ptr().cast::<Header>();
    loop {
        // SAFETY: `buffer` is aligned for a `Header`, as asserted at compile time, and at least as
        // long as one and as `data_size`, as asserted above. The kernel reads and writes within
        // `data_size` bytes from `pointer`, and keeps no pointer beyond the call. Every bit
        // pattern is a valid `Header` and a valid `u64`, and a `Header` has no padding that could
        // leave a part of one unset. Nobody else sees `buffer`: it is borrowed mutably. Where
        // another process makes the call, it is on the heap.
        let answer = unsafe {
            pointer.write(*header);
            let answer = match by {
                By::Us => command(file.as_raw_fd(), pointer),
                By::Another => apart::ioctl(command, file.as_raw_fd(), pointer),
            };
            answer.map(|_| pointer.read())
        };
        match answer {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}

/// A message as far as the size of its reply and its cost go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    List,
    Print,
    Create,
    Other,
}

impl Kind {
    /// By the keyword. A keyword in disguise (escaped, or behind a blank) is `Other`: that costs
    /// repeats if its reply is long; our own are never disguised.
    fn of(text: &[u8]) -> Kind {
        let begins_with = |keyword: &[u8]| {
            text.get(..keyword.len()).is_some_and(|word| word.eq_ignore_ascii_case(keyword))
        };
        if begins_with(b"@stats_list") {
            Kind::List
        } else if begins_with(b"@stats_print") {
            Kind::Print
        } else if begins_with(b"@stats_create") {
            Kind::Create
        } else {
            Kind::Other
        }
    }
}

/// What is remembered about a device. All of it may be wrong, at the cost of some time.
#[derive(Clone, Copy, Debug)]
struct Memo {
    /// Bytes to offer to the next listing.
    list: usize,
    /// Bytes to offer to the next `@stats_print`.
    print: usize,
}

impl Default for Memo {
    fn default() -> Memo {
        Memo { list: FIRST_LIST, print: SMALL }
    }
}

impl Memo {
    /// Bytes to offer to a reply.
    fn offer(&self, kind: Kind) -> usize {
        match kind {
            Kind::List => self.list,
            Kind::Print => self.print,
            Kind::Create | Kind::Other => SMALL,
        }
    }

    /// Remembers a reply of `len` bytes that fit, with slack for a table that grows. Falls by half
    /// at most, since long listings and filtered ones take turns.
    fn fitted(&mut self, kind: Kind, len: usize) {
        let needed = HEADER as usize + len + 2; // the NUL, and one byte that stays free
        let next = |offer: usize, first: usize| (needed + len / 4).max(offer / 2).max(first);
        match kind {
            Kind::List => self.list = next(self.list, FIRST_LIST),
            Kind::Print => self.print = next(self.print, SMALL),
            Kind::Create | Kind::Other => {}
        }
    }
}

/// What went through the control node since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages given to the kernel, those included that were repeated with more room for the
    /// reply.
    pub messages: u64,
    /// Bytes offered with them, which the kernel allocates and copies each time.
    pub bytes: u64,
}

/// The open control node of device-mapper.
pub struct Control {
    file: File,
    version: [u32; 3],
    /// Header, sector and text; then the header and the reply. What is behind the text is left
    /// from the message before.
    buffer: Vec<u64>,
    memos: BTreeMap<Device, Memo>,
    traffic: Traffic,
}

impl Control {
    /// Opens `/dev/mapper/control` and asks the driver for its version.
    ///
    /// # Errors
    ///
    /// Tells which of the conditions is not met, and what to do about it.
    pub fn open() -> Result<Control, OpenError> {
        let file = OpenOptions::new().read(true).write(true).open(NODE);
        let file = file.map_err(OpenError::of_node)?;
        let mut buffer = vec![0; SECTOR_AT];
        let request = Header::new(0, HEADER);
        let answer = call(&file, ioctl::dm_version, &request, &mut buffer, By::Us);
        let version = answer.map_err(OpenError::of_driver)?.version;
        Ok(Control { file, version, buffer, memos: BTreeMap::new(), traffic: Traffic::default() })
    }

    /// Version of the driver's interface: 4.47.0 in Linux 6.1. From 4.33 on listings say what a
    /// region counts.
    pub fn version(&self) -> [u32; 3] {
        self.version
    }

    /// What went through since the node was opened.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Whether the device is suspended: its I/O waits until somebody resumes it.
    ///
    /// # Errors
    ///
    /// `ENXIO`: there is no such device.
    pub fn is_suspended(&self, device: Device) -> io::Result<bool> {
        let dev = encode(device).ok_or(Errno::ENXIO)?;
        let mut buffer = [0; SECTOR_AT];
        let request = Header::new(dev, HEADER);
        let header = call(&self.file, ioctl::dm_dev_status, &request, &mut buffer, By::Us)?;
        Ok(header.flags & SUSPENDED != 0)
    }

    /// All devices of device-mapper, by number.
    ///
    /// # Errors
    ///
    /// The kernel's errno; [`io::ErrorKind::InvalidData`] if its answer makes no sense.
    pub fn devices(&self) -> io::Result<Vec<Named>> {
        let mut offer = FIRST_LIST;
        loop {
            let size = u32::try_from(offer).ok().filter(|size| *size <= OFFER_MAX);
            let request = Header::new(0, size.ok_or(Errno::EFBIG)?);
            let mut buffer = vec![0; offer / WORD];
            let header = call(&self.file, ioctl::dm_list_devices, &request, &mut buffer, By::Us)?;
            if header.flags & BUFFER_FULL == 0 {
                let answer = bytes_of(&buffer);
                let (start, end) = (header.data_start as usize, header.data_size as usize);
                let mut devices = answer.get(start..end).and_then(parse_names);
                if let Some(devices) = &mut devices {
                    devices.sort_by_key(|found| found.device);
                }
                return devices.ok_or_else(|| {
                    let text = "device-mapper's list of its devices makes no sense";
                    io::Error::new(io::ErrorKind::InvalidData, text)
                });
            }
            offer *= 2;
        }
    }

    /// Locks the byte of the control node whose offset is the device's number, or unlocks it; for
    /// its grid, the byte so much behind. The lock belongs to this open node: it goes with the
    /// process, and a child inherits it.
    fn lock(&self, device: Device, behind: u64, kind: libc::c_int) -> io::Result<()> {
        let at = encode(device).and_then(|dev| libc::off_t::try_from(dev + behind).ok());
        let lock = libc::flock {
            l_type: short(kind),
            l_whence: short(libc::SEEK_SET),
            l_start: at.ok_or(Errno::ENXIO)?,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&lock))?;
        Ok(())
    }

    /// Sends `text`, again with twice the room if the reply did not fit. That is safe: a message
    /// whose reply does not fit has changed nothing (`message_stats_create()` looks before it
    /// creates, `dm_stats_print()` before it clears).
    fn exchange(
        &mut self,
        to: Address<'_>,
        text: &[u8],
        offer: usize,
        by: By,
    ) -> io::Result<Header> {
        let mut offer = offer.max(TEXT_AT * WORD + text.len() + 1);
        loop {
            let header = self.send(to, text, offer, by)?;
            if header.flags & BUFFER_FULL == 0 {
                return Ok(header);
            }
            offer *= 2;
        }
    }

    /// Sends `text` with `offer` bytes for it and its reply.
    fn send(&mut self, to: Address<'_>, text: &[u8], offer: usize, by: By) -> io::Result<Header> {
        let words = offer.div_ceil(WORD);
        let size = u32::try_from(words * WORD).ok().filter(|size| *size <= OFFER_MAX);
        let size = size.ok_or_else(|| too_long(text))?;
        if self.buffer.len() < words {
            self.buffer.resize(words, 0);
        }
        let header = match to {
            Address::Number(dev) => Header::new(dev, size),
            Address::Uuid(uuid) => Header::to_uuid(uuid, size).ok_or(Errno::ENXIO)?,
        };
        let buffer = &mut self.buffer[..words];
        buffer[SECTOR_AT] = 0;
        write_text(&mut buffer[TEXT_AT..], text);
        self.traffic.messages += 1;
        self.traffic.bytes += u64::from(size);
        Ok(call(&self.file, ioctl::dm_target_msg, &header, buffer, by)?)
    }

    /// The reply that the buffer holds, if `header` tells the truth about it.
    fn reply(&self, header: &Header) -> Option<Vec<u8>> {
        if header.flags & DATA_OUT == 0 {
            return Some(Vec::new());
        }
        let (start, end) = (header.data_start as usize, header.data_size as usize);
        let words = self.buffer.get(start / WORD..end.div_ceil(WORD))?;
        let mut text = bytes_of(words);
        text.truncate(end.checked_sub(start)?);
        let terminated = start % WORD == 0 && text.pop() == Some(0);
        terminated.then_some(text)
    }
}

impl Dm for Control {
    /// # Errors
    ///
    /// Besides the kernel's errno: `EINVAL` if `text` holds a NUL, at which the kernel would stop
    /// reading; `ENOMEM` if it is a `@stats_create` of more than 32 KiB, which may crash the
    /// kernel; and errors without an errno for a reply longer than 1 GiB, and for one that makes
    /// no sense or comes from another device.
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        let dev = encode(device).ok_or(Errno::ENXIO)?;
        self.carry(device, Address::Number(dev), text)
    }

    /// # Errors
    ///
    /// As [`Control::message`]; if the uuid is that of a device with another number by now, the
    /// message has reached that one.
    fn message_to(&mut self, device: Device, uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        self.carry(device, Address::Uuid(uuid), text)
    }

    /// A lock that nobody else takes: neither the kernel nor LVM2 locks the control node.
    fn begin_turn(&mut self, device: Device, turn: Turn) -> io::Result<()> {
        self.lock(device, 0, kind_of(turn))
    }

    fn end_turn(&mut self, device: Device) {
        // An unlock that could fail, for lack of memory, would split a lock; this one does not.
        self.lock(device, 0, libc::F_UNLCK).ok();
    }

    fn hold_grid(&mut self, device: Device, turn: Turn) -> io::Result<()> {
        self.lock(device, GRIDS, kind_of(turn))
    }

    fn let_grid_go(&mut self, device: Device) {
        self.lock(device, GRIDS, libc::F_UNLCK).ok(); // as above
    }
}

impl Control {
    fn carry(&mut self, device: Device, to: Address<'_>, text: &[u8]) -> io::Result<Reply> {
        let dev = encode(device).ok_or(Errno::ENXIO)?;
        if text.contains(&0) {
            return Err(Errno::EINVAL.into());
        }
        let kind = Kind::of(text);
        let mut memo = self.memos.get(&device).copied().unwrap_or_default();
        if kind == Kind::Create && text.len() > CREATE_MAX {
            return Err(Errno::ENOMEM.into());
        }
        let by = if kind == Kind::Create && is_busy(device) { By::Another } else { By::Us };
        let header = self.exchange(to, text, memo.offer(kind), by).inspect_err(|error| {
            if error.raw_os_error() == Some(libc::ENXIO) {
                self.memos.remove(&device); // the number may come back as another device
            }
        })?;
        if matches!(to, Address::Uuid(_)) && header.dev != dev {
            return Err(Errno::ENXIO.into()); // it was made anew, and what it counted is gone
        }
        let reply = self.reply(&header).filter(|_| header.dev == dev);
        let text = reply.ok_or_else(|| senseless(device, &header))?;
        memo.fitted(kind, text.len());
        self.memos.insert(device, memo);
        self.buffer.truncate(KEEP_MAX / WORD);
        self.buffer.shrink_to(KEEP_MAX / WORD);
        let label = Label { name: c_string(&header.name), uuid: c_string(&header.uuid) };
        Ok(Reply { label, text })
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Whether I/O of the device is in flight, which is what a `@stats_create` waits for. Then it is
/// worth a process of its own: some 50 us, where the create takes milliseconds.
///
/// If that cannot be known it counts as busy.
fn is_busy(device: Device) -> bool {
    let read = |name| fs::read_to_string(format!("/sys/dev/block/{device}/{name}")).ok();
    let release = || uname().map(|system| system.release().to_string_lossy().into_owned());
    // What is in flight says enough by itself, if anything is.
    !is_idle(read("inflight").as_deref())
        || !accounts(&release().unwrap_or_default(), read("queue/iostats").as_deref())
}

/// Whether a kernel of this release accounts for the I/O of a device of device-mapper that says so
/// much in `queue/iostats`. Before 6.5 all of them say no, and it does (`dm_io_acct()`).
fn accounts(release: &str, iostats: Option<&str>) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (u32::MAX, 0),
    };
    version < (6, 5) || iostats.is_some_and(|iostats| iostats.trim() == "1")
}

/// What `inflight` of the device says, reads and writes.
///
/// ```text
///        0        1
/// ```
fn is_idle(inflight: Option<&str>) -> bool {
    inflight.is_some_and(|counts| counts.split_ascii_whitespace().all(|count| count == "0"))
}

fn kind_of(turn: Turn) -> libc::c_int {
    match turn {
        Turn::Shared => libc::F_RDLCK,
        Turn::Alone => libc::F_WRLCK,
    }
}

fn bytes_of(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The constants of locks are of another type than the fields they are for.
fn short(constant: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(constant).expect("these constants are small")
}

/// Writes `text` and a NUL over the first words; there must be room for both.
fn write_text(words: &mut [u64], text: &[u8]) {
    words[text.len() / WORD] = 0; // ends in a NUL, or is overwritten by a part that does
    for (word, part) in words.iter_mut().zip(text.chunks(WORD)) {
        let mut bytes = [0; WORD];
        bytes[..part.len()].copy_from_slice(part);
        *word = u64::from_ne_bytes(bytes);
    }
}

/// The text of a field that is filled up with NULs.
fn c_string(field: &[u8]) -> Vec<u8> {
    field.iter().copied().take_while(|byte| *byte != 0).collect()
}

/// `huge_encode_dev()`, whose result has 32 bits; `None` for numbers that no device has.
pub(super) fn encode(device: Device) -> Option<u64> {
    let Device { major, minor } = device;
    let numbers = major < 1 << 12 && minor < 1 << 20;
    numbers.then(|| u64::from(minor & 0xff | major << 8 | (minor & !0xff) << 12))
}

fn too_long(text: &[u8]) -> io::Error {
    let keyword = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let keyword = keyword.get(..keyword.len().min(20)).unwrap_or_default().escape_ascii();
    let text = format!("{keyword} or its reply is longer than 1 GiB, which device-mapper refuses");
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

fn senseless(device: Device, header: &Header) -> io::Error {
    let Header { dev, data_start, data_size, flags, .. } = header;
    let text = format!(
        "the answer to a message to device {device} makes no sense: \
         from device {dev:#x}, text at {data_start} to {data_size}, flags {flags:#x}"
    );
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Why the statistics are out of reach.
#[derive(Debug)]
pub struct OpenError {
    kind: OpenErrorKind,
    cause: io::Error,
}

/// What must change before the statistics are in reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenErrorKind {
    /// There is no `/dev/mapper/control`.
    NoNode,
    /// There is, but no device-mapper behind it.
    NoDriver,
    /// There is, but not for this process.
    NoPermission,
    /// What is behind it does not speak version 4 of the interface.
    WrongVersion,
    /// Anything else.
    Other,
}

impl OpenError {
    /// From opening the node.
    fn of_node(cause: io::Error) -> OpenError {
        let kind = match cause.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => OpenErrorKind::NoNode,
            Some(libc::ENXIO | libc::ENODEV) => OpenErrorKind::NoDriver,
            Some(libc::EACCES | libc::EPERM) => OpenErrorKind::NoPermission,
            _ => OpenErrorKind::Other,
        };
        OpenError { kind, cause }
    }

    /// From `DM_VERSION`: `ctl_ioctl()` asks for `CAP_SYS_ADMIN` whatever the node's mode is, and
    /// then for the version. Another driver knows nothing of it.
    fn of_driver(errno: Errno) -> OpenError {
        match errno {
            Errno::EINVAL | Errno::ENOTTY => {
                OpenError { kind: OpenErrorKind::WrongVersion, cause: errno.into() }
            }
            _ => OpenError::of_node(errno.into()),
        }
    }

    /// What must change.
    pub fn kind(&self) -> OpenErrorKind {
        self.kind
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.kind {
            OpenErrorKind::NoNode => {
                "does not exist: device-mapper is not loaded, or this /dev does not show it; \
                 run `modprobe dm-mod`, or pass the node into the container"
            }
            OpenErrorKind::NoDriver => {
                "leads nowhere: this kernel has no device-mapper; \
                 run `modprobe dm-mod`, and install the kernel's modules if that fails"
            }
            OpenErrorKind::NoPermission => {
                "refuses this process: device-mapper wants CAP_SYS_ADMIN in the initial user \
                 namespace; run this as root of the host"
            }
            OpenErrorKind::WrongVersion => {
                "does not speak version 4 of device-mapper's interface: the driver is another one \
                 or from another age; look at the node with `ls -l` and at `dmsetup version`"
            }
            OpenErrorKind::Other => {
                "cannot be used: the reason is not one that is known here; look at the kernel log"
            }
        };
        write!(f, "{NODE} {reason}")
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// The major number of device-mapper's devices; `None` where its driver is not loaded.
///
/// # Errors
///
/// `/proc/devices` cannot be read.
pub fn device_mapper_major() -> io::Result<Option<u32>> {
    Ok(parse_major(&fs::read_to_string("/proc/devices")?))
}

/// ```text
/// Block devices:
///   8 sd
/// 253 device-mapper
/// ```
fn parse_major(devices: &str) -> Option<u32> {
    let (_, block) = devices.split_once("Block devices:")?;
    let drivers = block.lines().filter_map(|line| line.trim_start().split_once(' '));
    drivers.filter(|(_, name)| *name == "device-mapper").find_map(|(major, _)| major.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_packed_as_the_kernel_does_it() {
        let encode = |major, minor| encode(Device { major, minor });
        assert_eq!(encode(253, 5), Some(0xfd05));
        assert_eq!(encode(253, 0x1_2345), Some(0x1230_fd45));
        assert_eq!(encode(0xfff, 0xf_ffff), Some(0xffff_ffff));
        assert_eq!(encode(0x1000, 0), None);
        assert_eq!(encode(0, 0x10_0000), None);
    }

    #[test]
    fn a_text_ends_in_a_nul_whatever_was_there_before() {
        for len in 0..20 {
            let text = vec![b'x'; len];
            let mut words = [u64::MAX; 4];
            write_text(&mut words, &text);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            assert_eq!(bytes[..len], text);
            assert_eq!(bytes[len], 0);
        }
    }

    #[test]
    fn a_device_is_idle_only_if_it_says_that_nothing_is_in_flight() {
        assert!(is_idle(Some("       0        0\n")));
        assert!(!is_idle(Some("       0        1\n")) && !is_idle(Some("       1        0\n")));
        assert!(!is_idle(None), "nobody knows");
    }

    #[test]
    fn what_a_device_says_of_its_accounts_counts_since_6_5() {
        for release in ["6.5.0", "6.12.9+deb13-amd64", "7.0-rc1", "", "unheard of"] {
            assert!(accounts(release, Some("1\n")));
            assert!(!accounts(release, Some("0\n")), "{release}");
            assert!(!accounts(release, Some("2\n")), "a way to do so that is not known");
            assert!(!accounts(release, None), "nobody knows");
        }
        for release in ["6.1.0-56-amd64", "6.4.16", "5.10.0", "4.19"] {
            assert!(accounts(release, Some("0\n")), "{release}");
        }
    }

    #[test]
    fn long_listings_are_remembered_and_everything_else_stays_small() {
        let mut memo = Memo::default();
        memo.fitted(Kind::List, 1_000_000);
        assert!(memo.offer(Kind::List) > 1_250_000);
        assert!(memo.offer(Kind::List) < 1_300_000);
        assert_eq!(memo.offer(Kind::Print), SMALL);
        assert_eq!(memo.offer(Kind::Create), SMALL);
        memo.fitted(Kind::Other, 1_000_000);
        assert_eq!(memo.offer(Kind::Other), SMALL);
        memo.fitted(Kind::List, 0);
        assert!(memo.offer(Kind::List) > 600_000, "one filtered listing between two long ones");
        for _ in 0..10 {
            memo.fitted(Kind::List, 0);
        }
        assert_eq!(memo.offer(Kind::List), FIRST_LIST);
    }

    #[test]
    fn the_keyword_decides_on_the_buffer() {
        assert!(Kind::of(b"@stats_list dmstats") == Kind::List);
        assert!(Kind::of(b"@Stats_Print_Clear 0") == Kind::Print);
        assert!(Kind::of(b"@stats_create 0+1 /1") == Kind::Create);
        assert!(Kind::of(b"@stats_delete 0") == Kind::Other);
        assert!(Kind::of(b"@stats") == Kind::Other);
    }

    #[test]
    fn causes_are_told_apart() {
        let of_node = |errno: Errno| OpenError::of_node(errno.into()).kind();
        let of_driver = |errno| OpenError::of_driver(errno).kind();
        assert_eq!(of_node(Errno::ENOENT), OpenErrorKind::NoNode);
        assert_eq!(of_node(Errno::ENODEV), OpenErrorKind::NoDriver);
        assert_eq!(of_node(Errno::ENXIO), OpenErrorKind::NoDriver);
        assert_eq!(of_node(Errno::EACCES), OpenErrorKind::NoPermission);
        assert_eq!(of_driver(Errno::EACCES), OpenErrorKind::NoPermission);
        assert_eq!(of_driver(Errno::EINVAL), OpenErrorKind::WrongVersion);
        assert_eq!(of_driver(Errno::ENOTTY), OpenErrorKind::WrongVersion);
        assert_eq!(of_node(Errno::EMFILE), OpenErrorKind::Other);
    }

    #[test]
    fn the_major_number_is_that_of_the_block_device() {
        let devices = "Character devices:\n  1 mem\n 10 device-mapper\n\n\
                       Block devices:\n  8 sd\n 65 sd\n253 device-mapper\n254 device-mapper2\n";
        assert_eq!(parse_major(devices), Some(253));
        assert_eq!(parse_major("Character devices:\n253 device-mapper\n"), None);
        assert_eq!(parse_major("Block devices:\n  8 sd\n"), None);
    }
}
