//! The ledger as it is written down for the next service.

use serde::{Deserialize, Serialize};

use super::{Account, Entry, Holder, Ledger};
use crate::counters::{Counters, Histogram, Reading};
use crate::extent::Extent;
use crate::group::Mark;
use crate::message::RegionId;

/// The version of what is written.
const VERSION: u32 = 1;

/// All of a ledger.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    version: u32,
    accounts: Vec<SavedAccount>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedAccount {
    device: Box<str>,
    /// As it stands in aux_data; of its group, when that was last read.
    mark: String,
    /// Whether it is that group's only, and not the file's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    of_group: bool,
    since_unix_seconds: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left_unix_seconds: Option<u64>,
    resets: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    on_grid: bool,
    /// What may be others', and what others may have.
    #[serde(default, skip_serializing_if = "is_none")]
    uncertain_bytes: (u64, u64),
    counters: Counters,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    histogram: Option<Histogram>,
    regions: Vec<SavedEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedEntry {
    id: u32,
    start: u64,
    len: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    away: bool,
    /// In the order of [`Counters::values`]: there may be many.
    counters: [u64; 12],
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bins: Vec<u64>,
}

fn is_none(uncertain: &(u64, u64)) -> bool {
    *uncertain == (0, 0)
}

impl Ledger {
    /// As it is written down.
    #[must_use]
    pub fn saved(&self) -> Saved {
        let mut accounts: Vec<_> = self.accounts.iter().collect();
        accounts.sort_unstable_by_key(|(holder, _)| *holder);
        let saved = |(holder, account)| SavedAccount::new(holder, account);
        Saved { version: VERSION, accounts: accounts.into_iter().map(saved).collect() }
    }
}

impl TryFrom<Saved> for Ledger {
    type Error = String;

    /// What was written down.
    fn try_from(Saved { version, accounts }: Saved) -> Result<Ledger, String> {
        if version != VERSION {
            return Err(format!("it is of version {version}, and version {VERSION} is known here"));
        }
        let accounts = accounts.into_iter().map(SavedAccount::account);
        Ok(Ledger { accounts: accounts.collect::<Result<_, _>>()? })
    }
}

impl SavedAccount {
    fn new(holder: &Holder, account: &Account) -> SavedAccount {
        let region = |entry: &Entry| SavedEntry {
            id: entry.id.0,
            start: entry.extent.start(),
            len: entry.extent.len(),
            away: entry.away,
            counters: entry.last.counters.values(),
            bins: entry.last.bins.clone(),
        };
        let histogram = &account.histogram;
        // Who has no group has a key all the same.
        let mark = Mark { key: holder.key, nonce: holder.nonce.unwrap_or(0) };
        SavedAccount {
            device: (&*holder.device).into(),
            mark: account.mark.unwrap_or(mark).to_string(),
            of_group: holder.nonce.is_some(),
            since_unix_seconds: account.since,
            left_unix_seconds: account.left,
            resets: account.resets,
            on_grid: account.on_grid,
            uncertain_bytes: (account.over, account.under),
            counters: account.counters,
            histogram: (!histogram.counts.is_empty()).then(|| histogram.clone()),
            regions: account.entries.iter().map(region).collect(),
        }
    }

    fn account(self) -> Result<(Holder, Account), String> {
        let mark = Mark::of_member(self.mark.as_bytes());
        let mark = mark.ok_or_else(|| format!("{:?} is no mark", self.mark))?;
        let nonce = self.of_group.then_some(mark.nonce);
        let holder = Holder { device: self.device.into(), key: mark.key, nonce };
        let entries = self.regions.into_iter().map(SavedEntry::entry);
        let mut entries: Vec<Entry> = entries.collect::<Result<_, _>>()?;
        entries.sort_by_key(|entry| entry.id);
        entries.dedup_by_key(|entry| entry.id);
        let account = Account {
            counters: self.counters,
            histogram: self.histogram.unwrap_or_default(),
            io_now: 0,
            resets: self.resets,
            since: self.since_unix_seconds,
            left: self.left_unix_seconds,
            on_grid: self.on_grid,
            over: self.uncertain_bytes.0,
            under: self.uncertain_bytes.1,
            mark: Some(mark),
            entries,
        };
        Ok((holder, account))
    }
}

impl SavedEntry {
    fn entry(self) -> Result<Entry, String> {
        let SavedEntry { id, start, len, away, counters, bins } = self;
        let extent = Extent::new(start, len);
        let extent = extent.ok_or_else(|| format!("region {id}: {start}+{len} is no extent"))?;
        let counters = Counters::from_values(counters);
        Ok(Entry { id: RegionId(id), extent, away, last: Reading { counters, io_now: 0, bins } })
    }
}
