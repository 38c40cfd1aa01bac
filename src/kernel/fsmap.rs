//! `FS_IOC_GETFSMAP`: what of a filesystem's device is free.
//!
//! ext4 and xfs answer. Their answer is of the moment, from memory, and asks for no writeback.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

use super::control::encode;
use crate::dm::Device;
use crate::extent::{Extent, SECTOR_BYTES};

/// Records asked for in one call.
const ROOM: usize = 256;

/// `struct fsmap`; bytes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Record {
    device: u32,
    flags: u32,
    physical: u64,
    owner: u64,
    offset: u64,
    length: u64,
    reserved: [u64; 3],
}

/// The owner is not an inode: `FMR_OF_SPECIAL_OWNER`.
const SPECIAL_OWNER: u32 = 0x10;
/// The last record of the filesystem: `FMR_OF_LAST`.
const LAST: u32 = 0x20;
/// Free space: `FMR_OWN_FREE`.
const FREE: u64 = 1;

/// `struct fsmap_head` with room for records behind it, where the kernel expects them.
#[repr(C)]
struct Request {
    flags_in: u32,
    flags_out: u32,
    count: u32,
    entries: u32,
    reserved: [u64; 6],
    keys: [Record; 2],
    records: [Record; ROOM],
}

const HEADER: usize = 192;
const _: () = assert!(size_of::<Record>() == 64);
const _: () = assert!(std::mem::offset_of!(Request, records) == HEADER);

// `_IOWR('X', 59, struct fsmap_head)`
const FS_IOC_GETFSMAP: nix::sys::ioctl::ioctl_num_type =
    nix::request_code_readwrite!(b'X', 59, HEADER);

/// Adds what is free on the filesystem of an open file, between the ends of `within`, which lie on
/// the filesystem's `device`.
///
/// # Errors
///
/// `EOPNOTSUPP` or `ENOTTY` where the filesystem cannot say, and those of reading its metadata.
pub fn free(
    file: &File,
    device: Device,
    within: Extent,
    found: &mut Vec<Extent>,
) -> io::Result<()> {
    let number = encode(device).and_then(|number| u32::try_from(number).ok());
    let device = number.ok_or(Errno::ENXIO)?;
    let byte = |sector: u64| sector.saturating_mul(SECTOR_BYTES);
    let low = Record { device, physical: byte(within.start()), ..Record::default() };
    let high = Record {
        device,
        flags: u32::MAX,
        physical: byte(within.end()) - 1,
        owner: u64::MAX,
        offset: u64::MAX,
        ..Record::default()
    };
    let mut request = Box::new(Request {
        flags_in: 0,
        flags_out: 0,
        count: u32::try_from(ROOM).unwrap_or(1),
        entries: 0,
        reserved: [0; 6],
        keys: [low, high],
        records: [Record::default(); ROOM],
    });
    loop {
        call(file, &mut request)?;
        let records = &request.records[..(request.entries as usize).min(ROOM)];
        found.extend(records.iter().filter_map(|record| free_extent(record, within)));
        match records.last() {
            // The next page begins behind this record, as the kernel reckons.
            Some(last) if last.flags & LAST == 0 && records.len() == ROOM => {
                request.keys[0] = *last;
            }
            _ => return Ok(()),
        }
    }
}

fn call(file: &File, request: &mut Request) -> io::Result<()> {
    loop {
        // SAFETY: the kernel reads the head, and writes it and at most `count` records behind it,
        // which is the length of `records`; any bytes make a valid `Record`. Nobody else can see
        // the request while it is borrowed here.
        let done = unsafe {
            nix::libc::ioctl(file.as_raw_fd(), FS_IOC_GETFSMAP, std::ptr::from_mut(request))
        };
        match Errno::result(done) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The free sectors of a record, as far as they lie within.
fn free_extent(record: &Record, within: Extent) -> Option<Extent> {
    let free = record.flags & SPECIAL_OWNER != 0 && record.owner == FREE;
    let extent = Extent::of_bytes(record.physical, record.length).filter(|_| free)?;
    Extent::between(extent.start().max(within.start()), extent.end().min(within.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_is_what_is_said_to_be_free_and_lies_within() {
        let within = Extent::new(16, 8).unwrap();
        let free = |flags, owner| {
            let (physical, length) = (20 * SECTOR_BYTES, 100 * SECTOR_BYTES);
            let record = Record { flags, physical, owner, length, ..Record::default() };
            free_extent(&record, within)
        };
        assert_eq!(free(SPECIAL_OWNER, FREE), Extent::new(20, 4));
        assert_eq!(free(SPECIAL_OWNER | LAST, FREE), Extent::new(20, 4));
        assert_eq!(free(SPECIAL_OWNER, 2), None, "its owner is not known");
        assert_eq!(free(0, FREE), None, "inode 1");
    }
}
