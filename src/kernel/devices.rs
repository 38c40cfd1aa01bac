//! What the kernel answers to `DM_LIST_DEVICES`.

use std::fmt;

use crate::dm::Device;

/// A device of device-mapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its number.
    pub device: Device,
    /// Its name, without `/dev/mapper/`.
    pub name: Vec<u8>,
}

/// `vg-lv (253:5)`
impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", String::from_utf8_lossy(&self.name), self.device)
    }
}

/// Bytes of `struct dm_name_list` before the name.
const NAME_AT: usize = 12;

/// Reads a chain of `struct dm_name_list`:
///
/// ```text
/// u64 dev; u32 next; char name[]; (padding, event number, flags, uuid)
/// ```
///
/// `next` leads from the beginning of one to that of the next, and is 0 in the last. Without any
/// device there is one that has the number 0. `None` where that is not what `bytes` say.
pub(super) fn parse_names(mut bytes: &[u8]) -> Option<Vec<Named>> {
    let mut found = Vec::new();
    loop {
        let dev = u64::from_ne_bytes(*bytes.first_chunk()?);
        if dev == 0 && found.is_empty() {
            return Some(found);
        }
        let next = u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?) as usize;
        let name = bytes.get(NAME_AT..)?;
        let name = name[..name.iter().position(|byte| *byte == 0)?].to_vec();
        found.push(Named { device: decode(u32::try_from(dev).ok()?), name });
        match next {
            0 => return Some(found),
            1..=NAME_AT => return None, // within itself: it would be read forever
            _ => bytes = bytes.get(next..)?,
        }
    }
}

/// `huge_decode_dev()`
fn decode(dev: u32) -> Device {
    Device { major: dev >> 8 & 0xfff, minor: dev & 0xff | dev >> 12 & 0xf_ff00 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(dev: u64, next: u32, name: &[u8]) -> Vec<u8> {
        [&dev.to_ne_bytes()[..], &next.to_ne_bytes(), name].concat()
    }

    fn named(major: u32, minor: u32, name: &str) -> Named {
        Named { device: Device { major, minor }, name: name.into() }
    }

    #[test]
    fn a_chain_is_read_to_its_end() {
        let first = item(0xfd05, 40, b"vg-lv\0pad and event number..");
        assert_eq!(first.len(), 40);
        let last = item(0x1230_fd45, 0, b"x\0anything");
        let expected = vec![named(253, 5, "vg-lv"), named(253, 0x1_2345, "x")];
        assert_eq!(parse_names(&[first, last].concat()), Some(expected));
    }

    #[test]
    fn no_device_is_an_empty_list() {
        assert_eq!(parse_names(&item(0, 0, b"")), Some(Vec::new()));
        assert_eq!(parse_names(&[0; 8]), Some(Vec::new()));
    }

    #[test]
    fn what_no_kernel_says_is_not_read() {
        let refused = [
            Vec::new(),
            vec![1; 7],
            item(0xfd00, 0, b"no end"),
            item(0xfd00, 12, b"x\0"),
            item(0xfd00, 1, b"x\0"),
            item(0xfd00, 14, b"x\0"),
            item(0xfd00, u32::MAX, b"x\0"),
            item(1 << 32, 0, b"x\0"),
        ];
        for bytes in refused {
            assert_eq!(parse_names(&bytes), None, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in prop::collection::vec(0..40_u8, 0..200)) {
            let _ = parse_names(&bytes);
        }
    }
}
