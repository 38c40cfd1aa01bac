//! What the two generations of LVM2 make of a listing, by their rules and not by ours.
//!
//! Nothing here is shared with the program: a fault in how it reads listings or descriptors must
//! not hide itself. Where LVM2 prints an error and goes on, and where its clients crash, these
//! readers fail: nothing of the kind may ever be seen.

#![allow(dead_code)] // each file of tests uses its share

use std::collections::BTreeMap;

/// LVM2 reads rows into 4,096 bytes, of which the line end and the final NUL take two.
const ROW_MAX: usize = 4094;

const TAG: &[u8] = b"DMS_GROUP=";

/// Which generation reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Up to 1.02.196: an alias stands bare, and blanks end aux_data.
    Old,
    /// From 1.02.197 on: an alias stands in quotes.
    New,
}

impl Reader {
    pub const BOTH: [Reader; 2] = [Reader::Old, Reader::New];
}

/// A group as `dmstats` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub alias: Vec<u8>,
    /// What its members count, start and end, by rising id.
    pub extents: Vec<(u64, u64)>,
    pub members: Vec<u32>,
    pub user: Vec<u8>,
}

/// A row of a listing, cut at its blanks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    pub id: u32,
    pub start: u64,
    pub end: u64,
    pub step: u64,
    pub program_id: &'a [u8],
    /// What follows the program_id: aux_data and options.
    pub tail: &'a [u8],
    pub line: &'a [u8],
}

impl<'a> Row<'a> {
    /// The aux_data, if it has no blank.
    pub fn aux(&self) -> &'a [u8] {
        split(self.tail, b" ").map_or(self.tail, |(aux, _)| aux)
    }

    /// The words behind the aux_data.
    pub fn options(&self) -> &'a [u8] {
        split(self.tail, b" ").map_or(b"", |(_, options)| options)
    }
}

/// The rows of a listing, by rising id.
pub fn rows(listing: &[u8]) -> Result<Vec<Row<'_>>, String> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for line in listing.split_inclusive(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\n").ok_or("the last row has no end")?;
        if line.len() > ROW_MAX {
            return Err(format!("a row of {} bytes fails every command", line.len()));
        }
        let row = row(line).ok_or_else(|| format!("no row: {}", line.escape_ascii()))?;
        if rows.last().is_some_and(|last| row.id <= last.id) {
            return Err(format!("row {} is out of order", row.id));
        }
        rows.push(row);
    }
    Ok(rows)
}

fn row(line: &[u8]) -> Option<Row<'_>> {
    let (id, rest) = split(line, b": ")?;
    let (start, rest) = split(rest, b"+")?;
    let (len, rest) = split(rest, b" ")?;
    let (step, rest) = split(rest, b" ")?;
    let (program_id, tail) = split(rest, b" ")?;
    let (start, step) = (number(start)?, number(step)?);
    let (id, end) = (u32::try_from(number(id)?).ok()?, start.checked_add(number(len)?)?);
    Some(Row { id, start, end, step, program_id, tail, line })
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What stands before the first `mark` in `text`, and what behind it.
fn split<'a>(text: &'a [u8], mark: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = text.windows(mark.len()).position(|window| window == mark)?;
    Some((&text[..at], &text[at + mark.len()..]))
}

/// The groups that `reader` finds, or why it does not get that far.
pub fn groups(reader: Reader, listing: &[u8]) -> Result<BTreeMap<u32, Group>, String> {
    let rows = rows(listing)?;
    let by_id: BTreeMap<u32, &Row<'_>> = rows.iter().map(|row| (row.id, row)).collect();
    let mut groups = BTreeMap::new();
    for leader in &rows {
        let found = group(reader, leader, &by_id);
        let found = found.map_err(|why| format!("{why}: {}", leader.line.escape_ascii()))?;
        groups.extend(found.map(|group| (leader.id, group)));
    }
    Ok(groups)
}

fn group(
    reader: Reader,
    leader: &Row<'_>,
    rows: &BTreeMap<u32, &Row<'_>>,
) -> Result<Option<Group>, String> {
    let Some(mut group) = descriptor(reader, leader.id, leader.tail)? else { return Ok(None) };
    for id in &group.members {
        let row = rows.get(id).ok_or(format!("crash: member {id} does not exist"))?;
        if row.program_id != leader.program_id {
            return Err(format!("crash: member {id} belongs to another program"));
        }
        group.extents.push((row.start, row.end));
    }
    Ok(Some(group))
}

/// The descriptor in what follows the program_id in the row of region `holder`, if there is one;
/// where its members lie is not known from that.
pub fn descriptor(reader: Reader, holder: u32, tail: &[u8]) -> Result<Option<Group>, String> {
    let Some((_, tag)) = split(seen_aux(reader, tail), TAG) else { return Ok(None) };
    let (alias, list) = split(tag, b":").ok_or("a tag without members")?;
    let (list, user) = split(list, b"#").unwrap_or((list, b""));
    let members = members(list).ok_or("no list of members")?;
    if members.first() != Some(&holder) {
        return Err("the lowest member is another region".to_owned());
    }
    let alias = seen_alias(reader, alias).to_vec();
    let user = if user == b"-" { Vec::new() } else { user.to_vec() };
    Ok(Some(Group { alias, extents: Vec::new(), members, user }))
}

/// The aux_data as each generation cuts it out of a row.
///
/// The old one ends it at the first blank and takes the byte before that for a line end. The new
/// one lets the blanks of an alias pass, and looks for the end behind the first `#`.
fn seen_aux(reader: Reader, tail: &[u8]) -> &[u8] {
    if tail.starts_with(b"-") {
        return b"";
    }
    let blank =
        |from: usize| tail[from..].iter().position(|&byte| byte == b' ').map(|at| from + at);
    match reader {
        Reader::Old => blank(0).map_or(tail, |end| &tail[..end.saturating_sub(1)]),
        Reader::New => {
            let hash = split(tail, TAG).and(tail.iter().position(|&byte| byte == b'#'));
            blank(hash.unwrap_or(0)).map_or(tail, |end| &tail[..end])
        }
    }
}

/// The new generation takes the first and the last byte for quotes without a look.
fn seen_alias(reader: Reader, alias: &[u8]) -> &[u8] {
    match reader {
        Reader::Old => alias,
        Reader::New => alias.get(1..alias.len().saturating_sub(1)).unwrap_or_default(),
    }
}

/// The ids of `0-2,5`, sorted. Items may be empty, repeated or overlap, and blanks may stand
/// around them. Ids so high that clients crash on them are found out later: no such region exists.
fn members(list: &[u8]) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    for item in list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
        if item.is_empty() {
            continue;
        }
        let (low, high) = split(item, b"-").unwrap_or((item, item));
        let (low, high) = (digits(low)?, digits(high)?);
        if high < low || high - low > 1 << 20 {
            return None;
        }
        ids.extend(low..=high);
    }
    ids.sort_unstable();
    ids.dedup();
    (!ids.is_empty()).then_some(ids)
}

fn digits(text: &[u8]) -> Option<u32> {
    let all = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| all)?.parse().ok()
}
