//! The `@stats_*` text protocol of device-mapper: messages out, replies in.
//!
//! Text is bytes here, not UTF-8: an alias or a program_id may hold anything but NUL.

use std::fmt;
use std::io::Write as _;

use crate::extent::Extent;

/// A region's number on its device.
///
/// The kernel gives the lowest that is free and re-uses a freed one at once, whoever asks. It says
/// nothing about age or owner, and it is not a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u32);

impl RegionId {
    /// The highest id the kernel gives: `INT_MAX`.
    pub const MAX: RegionId = RegionId(u32::MAX / 2);
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a region counts besides the thirteen counters, as the listing shows it.
///
/// New regions copy this from a row of the listing, never from numbers that were parsed and
/// converted: that is how units stay the same within a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clockwork<'a> {
    /// Times in nanoseconds instead of milliseconds.
    pub precise: bool,
    /// Upper bounds of the latency histogram, as `10,20,30`, in the unit above; empty for none.
    pub bounds: &'a [u8],
}

/// A message to the statistics of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// `@stats_list`: every region of the device, or those of one program_id.
    List {
        /// Only the rows of this owner; `None` for all.
        program_id: Option<&'a [u8]>,
    },
    /// `@stats_create`: a region of one area. The reply is its id.
    Create {
        /// What it counts. Need not lie within the device.
        extent: Extent,
        /// What else it counts.
        clockwork: Clockwork<'a>,
        /// The owner's word.
        program_id: &'a [u8],
        /// One free word.
        aux: &'a [u8],
    },
    /// `@stats_create`: a region of many areas. The reply is its id.
    CreateAreas {
        /// What it counts.
        extent: Extent,
        /// Sectors of an area; the last may be shorter.
        step: u64,
        /// What else it counts.
        clockwork: Clockwork<'a>,
        /// The owner's word.
        program_id: &'a [u8],
        /// One free word.
        aux: &'a [u8],
    },
    /// `@stats_delete`: its counters are lost.
    Delete {
        /// The region.
        id: RegionId,
    },
    /// `@stats_set_aux`: replaces the free word, atomically for every reader.
    SetAux {
        /// The region.
        id: RegionId,
        /// The new word.
        aux: &'a [u8],
    },
    /// `@stats_print`: what it has counted, a row for each area, for [`crate::counters::areas`].
    ///
    /// There is no message here that sets counters to zero: others read them, too.
    Print {
        /// The region.
        id: RegionId,
        /// The first area and their number; `None` for all.
        lines: Option<(u64, u64)>,
    },
}

impl Message<'_> {
    /// The text that the kernel takes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(64);
        match *self {
            Message::List { program_id } => {
                text.extend_from_slice(b"@stats_list");
                if let Some(program_id) = program_id {
                    push_word(&mut text, program_id);
                }
            }
            Message::Create { extent, clockwork, program_id, aux } => {
                push(&mut text, format_args!("@stats_create {extent} /1"));
                push_owner(&mut text, clockwork, program_id, aux);
            }
            Message::CreateAreas { extent, step, clockwork, program_id, aux } => {
                push(&mut text, format_args!("@stats_create {extent} {step}"));
                push_owner(&mut text, clockwork, program_id, aux);
            }
            Message::Delete { id } => push(&mut text, format_args!("@stats_delete {id}")),
            Message::SetAux { id, aux } => {
                push(&mut text, format_args!("@stats_set_aux {id}"));
                push_word(&mut text, aux);
            }
            Message::Print { id, lines: None } => {
                push(&mut text, format_args!("@stats_print {id}"));
            }
            Message::Print { id, lines: Some((first, count)) } => {
                push(&mut text, format_args!("@stats_print {id} {first} {count}"));
            }
        }
        text
    }
}

fn push(text: &mut Vec<u8>, words: fmt::Arguments<'_>) {
    text.write_fmt(words).expect("a vector takes all that is written to it");
}

/// What stands behind the range of a new region and its areas.
fn push_owner(text: &mut Vec<u8>, clockwork: Clockwork<'_>, program_id: &[u8], aux: &[u8]) {
    push_options(text, clockwork, program_id);
    push_word(text, program_id);
    push_word(text, aux);
}

/// The optional arguments, with their count in front.
///
/// The count is left out where it can be, since kernels before 4.2 know no options and would take
/// it for the program_id. It cannot where the program_id is a number: `message_stats_create()`
/// would take *that* for the count.
fn push_options(text: &mut Vec<u8>, clockwork: Clockwork<'_>, program_id: &[u8]) {
    let histogram = !clockwork.bounds.is_empty();
    let count = u8::from(clockwork.precise) + u8::from(histogram);
    if count > 0 || program_id.iter().all(u8::is_ascii_digit) {
        push(text, format_args!(" {count}"));
    }
    if clockwork.precise {
        text.extend_from_slice(b" precise_timestamps");
    }
    if histogram {
        text.extend_from_slice(b" histogram:");
        text.extend_from_slice(clockwork.bounds);
    }
}

/// One argument. `dm_split_args()` splits at the kernel's `isspace()`, which knows the no-break
/// space of Latin-1 too, a byte that occurs inside UTF-8 letters; a backslash takes any byte as it
/// is. An empty argument cannot be written: `-` is the kernel's own word for "none".
fn push_word(text: &mut Vec<u8>, word: &[u8]) {
    text.push(b' ');
    if word.is_empty() {
        text.push(b'-');
    }
    for &byte in word {
        if is_space(byte) || byte == b'\\' {
            text.push(b'\\');
        }
        text.push(byte);
    }
}

/// The kernel's `isspace()`.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xA0)
}

/// One row of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region<'a> {
    /// Its number on the device.
    pub id: RegionId,
    /// The sectors it counts.
    pub extent: Extent,
    /// Sectors in an area; our regions have one area, as long as the region.
    pub step: u64,
    /// The owner's word.
    pub program_id: &'a [u8],
    /// The free word.
    pub aux: &'a [u8],
    /// What it counts besides the counters.
    pub clockwork: Clockwork<'a>,
}

/// A reply that the protocol does not allow; holds its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(pub Vec<u8>);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel answered {:?}", self.0.escape_ascii().to_string())
    }
}

impl std::error::Error for Unreadable {}

/// The rows of a listing, by rising id.
///
/// ```text
/// 0: 589+2 2 dmstats DMS_GROUP="vm.img":0-1#- precise_timestamps histogram:1000,2000
/// 1: 4096+64 64 dmstats -
/// ```
///
/// The kernel prints program_id and aux_data bare, blanks and line ends included. So a row is read
/// from both ends: the numbers, then the program_id up to the first blank, and at the other end
/// the words that say what is counted. A line that does not begin a row of a higher id continues
/// the aux_data of the row before.
///
/// # Errors
///
/// The text does not begin with a row.
pub fn parse_list(text: &[u8]) -> Result<Vec<Region<'_>>, Unreadable> {
    let mut regions: Vec<Region<'_>> = Vec::with_capacity(text.len() / 32);
    let (mut row_at, mut line_at) = (0, 0);
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let line_end = line_at + line.len();
        let above = regions.last().map(|region| region.id);
        match parse_row(line).filter(|region| above.is_none_or(|above| region.id > above)) {
            Some(region) => {
                regions.push(region);
                row_at = line_at;
            }
            None => match regions.last_mut().zip(parse_row(&text[row_at..line_end])) {
                Some((last, region)) => *last = region,
                None => return Err(Unreadable(line.to_vec())),
            },
        }
        line_at = line_end;
    }
    Ok(regions)
}

fn parse_row(row: &[u8]) -> Option<Region<'_>> {
    let row = row.strip_suffix(b"\n").unwrap_or(row);
    let (id, row) = take_number(row)?;
    let (start, row) = take_number(row.strip_prefix(b": ")?)?;
    let (len, row) = take_number(row.strip_prefix(b"+")?)?;
    let (step, row) = take_number(row.strip_prefix(b" ")?)?;
    let row = row.strip_prefix(b" ")?;
    let blank = row.iter().position(|&byte| byte == b' ')?;
    let (program_id, row) = (&row[..blank], &row[blank + 1..]);
    let (aux, clockwork) = take_clockwork(row);
    Some(Region {
        id: RegionId(u32::try_from(id).ok()?),
        extent: Extent::new(start, len)?,
        step,
        program_id,
        aux,
        clockwork,
    })
}

/// The number that the text begins with, and the rest.
pub(crate) fn take_number(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut number: u64 = 0;
    let mut digits = 0;
    for byte in text.iter().take_while(|byte| byte.is_ascii_digit()) {
        number = number.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?;
        digits += 1;
    }
    (digits > 0).then_some((number, &text[digits..]))
}

/// Parts the aux_data from the words behind it.
fn take_clockwork(mut row: &[u8]) -> (&[u8], Clockwork<'_>) {
    let mut clockwork = Clockwork::default();
    if let Some((front, word)) = last_word(row) {
        if let Some(bounds) = word.strip_prefix(b"histogram:").filter(|bounds| is_bounds(bounds)) {
            clockwork.bounds = bounds;
            row = front;
        }
    }
    if let Some((front, b"precise_timestamps")) = last_word(row) {
        clockwork.precise = true;
        row = front;
    }
    (row, clockwork)
}

fn last_word(row: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = row.iter().rposition(|&byte| byte == b' ')?;
    Some((&row[..blank], &row[blank + 1..]))
}

fn is_bounds(bounds: &[u8]) -> bool {
    !bounds.is_empty() && bounds.iter().all(|byte| byte.is_ascii_digit() || *byte == b',')
}

/// The id of a region just created: a number and nothing else.
///
/// # Errors
///
/// The reply is something else.
pub fn parse_created(text: &[u8]) -> Result<RegionId, Unreadable> {
    match take_number(text) {
        Some((id, [])) if id <= u64::from(RegionId::MAX.0) => {
            u32::try_from(id).map(RegionId).map_err(|_| Unreadable(text.to_vec()))
        }
        _ => Err(Unreadable(text.to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn create<'a>(program_id: &'a [u8], clockwork: Clockwork<'a>) -> String {
        let extent = Extent::new(8, 16).unwrap();
        let text = Message::Create { extent, clockwork, program_id, aux: b"fm=x" }.encode();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_create_counts_its_options_where_the_kernel_needs_the_count() {
        let plain = Clockwork::default();
        let both = Clockwork { precise: true, bounds: b"10,20" };
        assert_eq!(create(b"dmstats", plain), "@stats_create 8+16 /1 dmstats fm=x");
        assert_eq!(create(b"1234", plain), "@stats_create 8+16 /1 0 1234 fm=x");
        assert_eq!(
            create(b"dmstats", both),
            "@stats_create 8+16 /1 2 precise_timestamps histogram:10,20 dmstats fm=x"
        );
        assert_eq!(create(b"", plain), "@stats_create 8+16 /1 0 - fm=x");
    }

    #[test]
    fn a_create_of_many_areas_says_how_long_each_is() {
        let create = |program_id| {
            let (extent, clockwork) = (Extent::new(8, 16).unwrap(), Clockwork::default());
            Message::CreateAreas { extent, step: 5, clockwork, program_id, aux: b"x" }.encode()
        };
        assert_eq!(create(b"dmfilemap"), b"@stats_create 8+16 5 dmfilemap x");
        assert_eq!(create(b"7"), b"@stats_create 8+16 5 0 7 x");
    }

    #[test]
    fn every_byte_that_splits_is_escaped() {
        let aux = "a b\t\n\r\x0b\x0c\\\u{e0}"; // the last letter ends in the byte A0
        let text = Message::SetAux { id: RegionId(3), aux: aux.as_bytes() }.encode();
        let expected = b"@stats_set_aux 3 a\\ b\\\t\\\n\\\r\\\x0b\\\x0c\\\\\xC3\\\xA0";
        assert_eq!(text.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    #[test]
    fn rows_are_read_from_both_ends() {
        let text = b"0: 589+2 2 dmstats DMS_GROUP=\"a b\":0,7#- precise_timestamps histogram:1,2\n\
                     7: 18014398509481984+1 1 - -\n";
        let rows = parse_list(text).unwrap();
        assert_eq!(rows[0].aux, b"DMS_GROUP=\"a b\":0,7#-");
        assert_eq!(rows[0].clockwork, Clockwork { precise: true, bounds: b"1,2" });
        assert_eq!(rows[1].extent.start(), 1 << 54);
        assert_eq!((rows[1].program_id, rows[1].aux), (&b"-"[..], &b"-"[..]));
    }

    #[test]
    fn a_line_end_in_aux_data_continues_its_row() {
        let text = b"1: 0+8 8 dmstats two\nlines precise_timestamps\n1: 0+8 8 x y\n2: 8+8 8 p -\n";
        let rows = parse_list(text).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].aux, b"two\nlines precise_timestamps\n1: 0+8 8 x y");
        assert_eq!(rows[1].id, RegionId(2));
    }

    #[test]
    fn what_no_kernel_says_is_an_error_with_its_text() {
        assert_eq!(parse_list(b""), Ok(Vec::new()));
        for text in ["x", "-1: 0+1 1 a b", "0: 0+0 1 a b", "0: 99999999999999999999+1 1 a b"] {
            assert_eq!(parse_list(text.as_bytes()), Err(Unreadable(text.into())), "{text}");
        }
        assert_eq!(parse_created(b"12"), Ok(RegionId(12)));
        for text in ["", "x", "1x", "2147483648", "-1"] {
            assert!(parse_created(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_reply_panics(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_list(&text);
            let _ = parse_created(&text);
        }

        #[test]
        fn near_rows_do_not_panic(text in "[0-9:+ \\-\na-c#\"]{0,80}") {
            let _ = parse_list(text.as_bytes());
        }
    }
}
