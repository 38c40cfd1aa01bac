//! What each file has counted in all: totals that never go back.
//!
//! The kernel's counters end with their region, and anybody may set them to zero. So the ledger has
//! an account for each file: its totals, and what each of its regions said when it was last read.
//! What a region says next is compared with that, and what came in between is added.
//!
//! # Whose counts they are
//!
//! The kernel gives a region's id to the next region at once, so a number says nothing. An entry
//! is for a region of one group in one incarnation (the [`Mark`]), with one id and one extent;
//! whatever is read of another is another's. A region that is deleted and made again alike begins
//! at zero, which is the same as if somebody had set its counters to zero.
//!
//! # What is counted once
//!
//! While a group is updated, the regions of the new map count beside those of the old. Of the
//! regions that go the update says what they had counted in the end, and of those that took their
//! place what they had counted by then, which is not added.
//!
//! A region that is no member any more, and is there still, was left by a cut update. What it
//! counts meanwhile may be counted by others too, or be no longer the file's. It is not added,
//! should the region become a member again.
//!
//! # The grid
//!
//! Where a [grid](crate::grid) counts the device, counters come from that: an account that is *on
//! the grid* takes shares of it, and what its regions count is kept up and not added. So it can go
//! either way at any time, and what was counted between the last reading of the one and the next of
//! the other is missing or counted twice, at most. Histograms come from regions always.

mod saved;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::mem;
use std::sync::Arc;

use crate::counters::{Advance, Counters, Histogram, Reading};
use crate::extent::Extent;
use crate::grid::shares::Share;
use crate::group::Mark;
use crate::message::RegionId;
use crate::update::{Count, Passage, Passing, Tally};

pub use saved::Saved;

/// Whose account it is: a file, by what is the same after a restart of the machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// The device's uuid, or its name if it has none; never its number.
    pub device: Arc<str>,
    /// Of the file's mark.
    pub key: u64,
    /// Also of the mark, if the account is not the file's but that of one group of it: one that
    /// somebody else made, beside which the file may have another.
    pub nonce: Option<u32>,
}

/// The totals of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// What only rises.
    pub counters: Counters,
    /// I/O by latency; without bounds and counts where that is not counted.
    pub histogram: Histogram,
    /// I/O under way when it was last read.
    pub io_now: u64,
    /// Times that somebody set the counters of a region to zero.
    pub resets: u64,
    /// When the account was opened, in seconds since 1970.
    pub since: u64,
    /// When the file was last let go, likewise; `None` while it is followed.
    pub left: Option<u64>,
    /// Whether the counters come from the grid of its device.
    pub on_grid: bool,
    /// Bytes read and written that the grid may have given to the file and that are others', and
    /// that it may have given to others and that are the file's.
    pub over: u64,
    /// See [`Account::over`].
    pub under: u64,
    /// The group's, when it was last read.
    mark: Option<Mark>,
    /// Regions that had counted something, by rising id.
    entries: Vec<Entry>,
}

/// A region, and what it said last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    id: RegionId,
    extent: Extent,
    /// It is no member at the moment.
    away: bool,
    last: Reading,
}

/// All accounts. A file that has counted nothing has none, unless it is on the grid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    accounts: HashMap<Holder, Account>,
}

impl Ledger {
    /// An account, if there is one.
    #[must_use]
    pub fn account(&self, holder: &Holder) -> Option<&Account> {
        self.accounts.get(holder)
    }

    /// Number of accounts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether there is no account.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Takes a reading of a group at `now`, in seconds since 1970. Gives how many of its regions
    /// had been set to zero since the one before.
    pub fn absorb(&mut self, holder: &Holder, mark: Mark, tally: &Tally, now: u64) -> u64 {
        let Some(account) = self.open(holder, mark, now, tally.members.iter()) else { return 0 };
        let mut entries = mem::take(&mut account.entries);
        let (mut resets, mut io_now) = (0, 0_u64);
        let away = |(id, extent): &(RegionId, Extent)| {
            let at = entries.binary_search_by_key(id, |entry| entry.id).ok();
            let entry = at.map(|at| &entries[at]).filter(|entry| entry.extent == *extent);
            let last = entry.map(|entry| entry.last.clone()).unwrap_or_default();
            Entry { id: *id, extent: *extent, away: true, last }
        };
        account.entries = tally.others.iter().map(away).collect();
        let mut entries = entries.drain(..).peekable();
        for count in &tally.members {
            while entries.next_if(|entry| entry.id < count.id).is_some() {}
            let entry = entries.next_if(|entry| entry.is_of(count));
            let advance = Entry::advance(entry.as_ref(), count);
            account.add(&advance, &count.bounds_ns);
            resets += u64::from(advance.reset);
            io_now = io_now.saturating_add(count.reading.io_now);
            account.entries.extend(Entry::of(count));
        }
        account.entries.sort_unstable_by_key(|entry| entry.id);
        account.io_now = io_now;
        account.resets += resets;
        resets
    }

    /// Takes what an update has read of regions that came and went.
    pub fn pass(&mut self, holder: &Holder, passage: &Passage, now: u64) {
        let Passage { mark, regions } = passage;
        let counts = regions.iter().filter_map(|passing| match passing {
            Passing::Ended(count) | Passing::Began(count) => Some(count),
            Passing::Gone(_) => None,
        });
        let Some(account) = self.open(holder, *mark, now, counts) else { return };
        for passing in regions {
            match passing {
                Passing::Ended(count) => {
                    let entry = account.take(count.id).filter(|entry| entry.is_of(count));
                    let advance = Entry::advance(entry.as_ref(), count);
                    account.add(&advance, &count.bounds_ns);
                    account.resets += u64::from(advance.reset);
                    // It is there until it is gone.
                    account.put(Entry { away: true, ..Entry::new(count) });
                }
                Passing::Began(count) => {
                    account.take(count.id);
                    if let Some(entry) = Entry::of(count) {
                        account.put(entry);
                    }
                }
                Passing::Gone(id) => drop(account.take(*id)),
            }
        }
    }

    /// The account, if there is one, or anything to be written into one. Nothing is left in it of
    /// another incarnation of the group; and a group that is new may have other bounds than the one
    /// before: then there is nothing that its histogram could be added to.
    fn open<'a>(
        &mut self,
        holder: &Holder,
        mark: Mark,
        now: u64,
        mut counts: impl Iterator<Item = &'a Count> + Clone,
    ) -> Option<&mut Account> {
        let account = match self.accounts.entry(holder.clone()) {
            Slot::Occupied(slot) => slot.into_mut(),
            Slot::Vacant(slot) => {
                counts.clone().find(|count| !count.reading.is_zero())?;
                slot.insert(Account { since: now, ..Account::default() })
            }
        };
        if account.mark.replace(mark) != Some(mark) {
            account.entries.clear();
            let bounds = counts.find(|count| !count.bounds_ns.is_empty());
            if bounds.is_some_and(|count| count.bounds_ns != account.histogram.bounds_ns) {
                account.histogram = Histogram::default();
            }
        }
        Some(account)
    }

    /// Takes a share of what a grid has counted, for an account that is on the grid.
    pub fn share(&mut self, holder: &Holder, share: &Share) {
        let account = self.accounts.get_mut(holder).filter(|account| account.on_grid);
        let Some(account) = account else { return };
        account.counters += &share.counters;
        let bytes =
            |counters: &Counters| counters.read_bytes.saturating_add(counters.written_bytes);
        account.over = account.over.saturating_add(bytes(&share.doubt.over));
        account.under = account.under.saturating_add(bytes(&share.doubt.under));
    }

    /// There are no grids.
    pub fn leave_grids(&mut self) {
        self.accounts.values_mut().for_each(|account| account.on_grid = false);
    }

    /// Says whether the account's counters come from the grid, from `now` on, or from regions.
    pub fn set_on_grid(&mut self, holder: &Holder, on_grid: bool, now: u64) {
        match self.accounts.entry(holder.clone()) {
            Slot::Occupied(slot) => slot.into_mut().on_grid = on_grid,
            Slot::Vacant(slot) if on_grid => {
                slot.insert(Account { since: now, on_grid, ..Account::default() });
            }
            Slot::Vacant(_) => {}
        }
    }

    /// The file is followed.
    pub fn follow(&mut self, holder: &Holder) {
        if let Some(account) = self.accounts.get_mut(holder) {
            account.left = None;
        }
    }

    /// The file is not followed any more, from `now` on. Its account stays, if it may come back.
    pub fn let_go(&mut self, holder: &Holder, now: u64, may_come_back: bool) {
        if !may_come_back {
            self.accounts.remove(holder);
        } else if let Some(account) = self.accounts.get_mut(holder) {
            account.left = Some(now);
            account.io_now = 0;
        }
    }

    /// Closes the accounts of files that were let go before `before`, and of more than `max` of
    /// them those that have been so for longest.
    pub fn purge(&mut self, before: u64, max: usize) {
        let mut left: Vec<u64> =
            self.accounts.values().filter_map(|account| account.left).collect();
        left.sort_unstable();
        let surplus = left.len().checked_sub(max + 1).map(|last| left[last] + 1);
        let before = before.max(surplus.unwrap_or(0));
        self.accounts.retain(|_, account| account.left.is_none_or(|left| left >= before));
    }
}

impl Account {
    fn add(&mut self, advance: &Advance, bounds_ns: &[u64]) {
        if !self.on_grid {
            self.counters += &advance.counters;
        }
        if !bounds_ns.is_empty() {
            self.histogram.add(bounds_ns, &advance.bins);
        }
    }

    /// Takes the entry with this number out.
    fn take(&mut self, id: RegionId) -> Option<Entry> {
        let at = self.entries.binary_search_by_key(&id, |entry| entry.id).ok()?;
        Some(self.entries.remove(at))
    }

    /// Puts an entry in; there is none with its number.
    fn put(&mut self, entry: Entry) {
        let at = self.entries.partition_point(|before| before.id < entry.id);
        self.entries.insert(at, entry);
    }
}

impl Entry {
    fn new(count: &Count) -> Entry {
        let Count { id, extent, reading, .. } = count;
        Entry { id: *id, extent: *extent, away: false, last: reading.clone() }
    }

    /// The entry of a member; none if it has counted nothing, which comes to the same.
    fn of(count: &Count) -> Option<Entry> {
        (!count.reading.is_zero()).then(|| Entry::new(count))
    }

    /// Whether that is the region which was counted.
    fn is_of(&self, count: &Count) -> bool {
        (self.id, self.extent) == (count.id, count.extent)
    }

    /// What a member has counted since its entry was written.
    fn advance(entry: Option<&Entry>, count: &Count) -> Advance {
        match entry {
            Some(Entry { away: true, .. }) => Advance::default(),
            Some(entry) => count.reading.since(&entry.last),
            None => count.reading.since(&Reading::default()),
        }
    }
}
