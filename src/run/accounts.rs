//! Which accounts are on the grid, and what each gets of an interval: from the grid or from
//! regions, never from both.

use std::collections::HashSet;

use super::Run;
use super::books::{SAVE, SAVE_SOON, unix_time};
use super::clerk::Round;
use super::jobs::Pass;
use crate::dm::Device;
use crate::engine::{FileId, Reading, State};
use crate::ledger::Holder;

/// Whether a file's counters come from the grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum OnGrid {
    #[default]
    No,
    /// As soon as its group is made, if it is: one that is found may have counted before.
    New,
    /// From the next interval on: what is read of this one is counted by regions.
    Soon,
    Yes,
}

impl Run {
    /// Has accounts come to the grid. One of which nothing was counted, by regions or before, comes
    /// at once: what its file has written so far is no region's. So does one that was there before
    /// a restart.
    pub(super) fn join(&mut self, holders: Vec<(FileId, Holder)>, resumes: bool) {
        let (now, unix) = (self.now(), unix_time().as_secs());
        for (file, holder) in holders {
            if matches!(self.files[file.index()].on_grid, OnGrid::Soon | OnGrid::Yes) {
                continue;
            }
            let Some(books) = &mut self.books else { return };
            let account = books.ledger.account(&holder);
            let goes_on = resumes && account.is_some_and(|account| account.on_grid);
            let status = self.engine.file_status(now, file);
            if !goes_on && status.is_none_or(|status| status.state == State::New) {
                self.files[file.index()].on_grid = OnGrid::New;
                continue;
            }
            let is_new = self.files[file.index()].made
                || status.is_some_and(|status| status.group.is_none());
            let has_nothing = account.is_none_or(|account| account.counters.is_zero());
            let at_once = goes_on || is_new && has_nothing;
            self.files[file.index()].on_grid = if at_once { OnGrid::Yes } else { OnGrid::Soon };
            books.ledger.set_on_grid(&holder, at_once, unix);
        }
    }

    /// A file has its group.
    pub(super) fn group_is_there(&mut self, file: FileId, made: bool) {
        let followed = &mut self.files[file.index()];
        if followed.on_grid != OnGrid::New {
            return;
        }
        followed.on_grid = if made { OnGrid::Yes } else { OnGrid::No };
        let Some(books) = self.books.as_mut().filter(|_| made) else { return };
        if let Some(holder) = followed.holder(&books.known) {
            books.ledger.set_on_grid(&holder, true, unix_time().as_secs());
        }
    }

    /// Gives an interval to the accounts. A file has its share of the grid if it was on the grid,
    /// with all its sectors; else what its regions have counted, which are read up to the same
    /// moment. Gives what the reading was like.
    pub(super) fn settle(
        &mut self,
        device: Device,
        pass: Pass,
        round: Option<&Round>,
        resumes: bool,
    ) -> Reading {
        let unix = unix_time().as_secs();
        let known = round.is_some_and(|round| round.restored || !resumes);
        let uncovered: HashSet<FileId> =
            round.iter().flat_map(|round| &round.uncovered).copied().collect();
        let concerned: Vec<(FileId, Holder, bool)> = self.concerned(device).collect();
        let fits = |file: &FileId| round.is_some() && !uncovered.contains(file);
        let mut takers = HashSet::new();
        for (file, holder, was) in &concerned {
            let takes = *was && known && fits(file);
            if takes {
                takers.insert(*file);
            } else if let Some(books) = &mut self.books {
                books.ledger.set_on_grid(holder, false, unix);
            }
        }
        let mut cost = pass.cost;
        if let Some(round) = round {
            cost += round.cost;
            self.share(round, &takers);
        }
        let reset = self.absorb(pass) > 0;
        for (file, holder, _) in concerned {
            let fits = fits(&file);
            self.files[file.index()].on_grid = if fits { OnGrid::Yes } else { OnGrid::No };
            if let (Some(books), true) = (&mut self.books, fits && !takers.contains(&file)) {
                books.ledger.set_on_grid(&holder, true, unix);
            }
        }
        if let (Some(books), None) = (&mut self.books, round) {
            books.errors.readings += 1;
        }
        Reading { reset, cost, more: false }
    }

    /// The files of a device that are on the grid, or will be: and whether they are.
    fn concerned(&self, device: Device) -> impl Iterator<Item = (FileId, Holder, bool)> {
        self.followed_on(device).filter_map(|file| {
            let followed = &self.files[file.index()];
            let was = followed.on_grid;
            Some((file, self.holder(file)?, was == OnGrid::Yes))
                .filter(|_| matches!(was, OnGrid::Soon | OnGrid::Yes))
        })
    }

    /// Gives their shares to these files, and to those that are not followed any more what they had
    /// left.
    pub(super) fn share(&mut self, round: &Round, takers: &HashSet<FileId>) {
        let save = self.now() + if round.created > 0 { SAVE_SOON } else { SAVE };
        let Some(books) = &mut self.books else { return };
        for (file, holder, share) in &round.shares {
            let same = self.files[file.index()].holder(&books.known).as_ref() == Some(holder);
            let followed = same && self.engine.follows(*file);
            if !followed || takers.contains(file) {
                books.ledger.share(holder, share);
            }
        }
        books.save_by(save);
    }

    /// Nothing of this device is counted by a grid from here on.
    pub(super) fn leave_grid(&mut self, device: Device) {
        let unix = unix_time().as_secs();
        let files: Vec<FileId> = self.followed_on(device).collect();
        for file in files {
            let followed = &mut self.files[file.index()];
            followed.on_grid = OnGrid::No;
            let Some(books) = &mut self.books else { continue };
            if let Some(holder) = followed.holder(&books.known) {
                books.ledger.set_on_grid(&holder, false, unix);
            }
        }
    }
}
