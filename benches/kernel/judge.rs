//! Whether groups show what their files are, and since when.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::kernel::fiemap::Pages;
use dmfilemapd::sample;

use crate::daemon::Table;
use crate::dialects::{self, Reader, Row};
use crate::files::File;
use crate::guest::{self, Disk};

/// A group as a reader sees it.
#[derive(Debug)]
pub struct Group {
    pub id: u32,
    pub members: Vec<u32>,
    extents: Extents,
}

/// Groups by alias, those that LVM2 can read.
pub type Groups = BTreeMap<String, Group>;

/// Reads the groups of one disk.
#[derive(Debug)]
pub struct Judge(Table);

impl Judge {
    pub fn of(disk: &Disk) -> Judge {
        Judge(Table::of(disk))
    }

    pub fn groups(&mut self) -> Groups {
        let listing = self.0.listing();
        let rows = dialects::rows(listing.as_bytes()).unwrap();
        let places: BTreeMap<u32, (u64, u64)> =
            rows.iter().map(|row| (row.id, (row.start, row.end))).collect();
        let group = |row: &Row<'_>| {
            // This reader leaves the quotes of the newer dialect where they are.
            let found = dialects::descriptor(Reader::Old, row.id, row.tail).ok().flatten()?;
            let alias = String::from_utf8(found.alias.clone()).ok()?;
            let places = found.members.iter().map(|id| places.get(id).copied());
            let extents = places.collect::<Option<Vec<_>>>()?;
            let sectors = guest::counted(&dialects::Group { extents, ..found.clone() });
            let extents = sectors.iter().filter_map(|(start, end)| Extent::between(*start, *end));
            let group = Group { id: row.id, members: found.members, extents: extents.collect() };
            Some((alias.trim_matches('"').to_owned(), group))
        };
        rows.iter().filter_map(group).collect()
    }

    /// Sectors written, of all regions of the group with this alias.
    pub fn sectors_written(&mut self, alias: &str) -> u64 {
        let Some(group) = self.groups().remove(alias) else { return 0 };
        group.members.iter().map(|id| self.sectors_written_of(*id)).sum()
    }

    fn sectors_written_of(&mut self, id: u32) -> u64 {
        // START+LEN, then reads: number, merged, sectors, time; then writes likewise.
        let row = self.0.send(&format!("@stats_print {id}"));
        row.split_whitespace().nth(7).unwrap().parse().unwrap()
    }

    pub fn table(&mut self) -> &mut Table {
        &mut self.0
    }
}

/// Whether the file's group shows exactly where the file lies.
pub fn is_right(file: &File, groups: &Groups) -> bool {
    let Some(group) = groups.get(file.alias()) else { return false };
    let open = fs::File::open(&file.path).unwrap();
    let map = sample::read_map(&open, &mut Pages::default()).unwrap();
    map.extents == group.extents
}

/// For how long groups were wrong.
#[derive(Debug)]
pub struct Lags {
    /// Since when, by file.
    wrong: Vec<Option<Instant>>,
    closed: Vec<Duration>,
}

impl Lags {
    pub fn new(files: usize) -> Lags {
        Lags { wrong: vec![None; files], closed: Vec::new() }
    }

    /// A file has just changed. Whether it had changed before and its group was still wrong then
    /// makes no difference: what counts is how long a reader is misled.
    pub fn changed(&mut self, file: usize) {
        self.wrong[file].get_or_insert_with(Instant::now);
    }

    /// Takes note of which groups are right again.
    pub fn judge(&mut self, files: &[File], groups: &Groups) {
        let now = Instant::now();
        for (file, wrong) in files.iter().zip(&mut self.wrong) {
            if let Some(since) = wrong.take_if(|_| is_right(file, groups)) {
                self.closed.push(now.saturating_duration_since(since));
            }
        }
    }

    /// Files whose groups are wrong.
    pub fn open<'a>(&self, files: &'a [File]) -> impl Iterator<Item = &'a File> {
        files.iter().zip(&self.wrong).filter_map(|(file, wrong)| wrong.and(Some(file)))
    }

    /// How many groups are wrong.
    pub fn count_open(&self) -> usize {
        self.wrong.iter().flatten().count()
    }

    /// The lags that ended, in units of `unit`.
    pub fn in_units(&self, unit: Duration) -> impl Iterator<Item = f64> {
        self.closed.iter().map(move |lag| lag.as_secs_f64() / unit.as_secs_f64())
    }
}

/// The number that this share of them does not exceed.
pub fn quantile(mut numbers: Vec<f64>, share: f64) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let at = (share * numbers.len() as f64).ceil() - 1.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // an index of the vector
    numbers.get(at.max(0.0) as usize).copied()
}
