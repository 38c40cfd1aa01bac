//! What main knows of one file, beyond what the engine does.
//!
//! There may be a hundred thousand of these: what is rare is kept apart, in a box.

use std::fs;
use std::sync::Arc;

use super::accounts::OnGrid;
use super::books::Owner;
use super::service::{Claimed, usual_alias};
use crate::group::Mark;
use crate::home::Home;
use crate::ledger::Holder;
use crate::mode::Mode;
use crate::paths::{PathList, SharedPath};
use crate::sample::{Identity, Mount, Reach};
use crate::update::Template;

#[allow(clippy::struct_excessive_bools)] // each is a fact of its own
pub(super) struct File {
    pub(super) mode: Mode,
    pub(super) path: SharedPath,
    pub(super) identity: Identity,
    pub(super) open: Option<fs::File>,
    pub(super) mount: Mount,
    pub(super) realtime: bool,
    /// A sampler has it: what is open and through which mount, that one knows.
    pub(super) away: bool,
    /// Of its group's mark, or of that which the group is to be made with.
    pub(super) nonce: u32,
    /// There is no group yet.
    making: bool,
    /// What is not as usual.
    unusual: Option<Box<Unusual>>,
    /// The device it was found on.
    pub(super) home: Option<Arc<Home>>,
    /// Whether its group was made by this process.
    pub(super) made: bool,
    /// What the service knows of it.
    pub(super) claimed: Option<Claimed>,
    /// Whose account it is in the ledger, if there is one.
    pub(super) owner: Option<Owner>,
    /// Where that has its counters from.
    pub(super) on_grid: OnGrid,
}

/// What a sampler has of the files of a batch, in the order of its looks.
#[derive(Debug, Default)]
pub(super) struct Lent {
    pub(super) paths: PathList,
    pub(super) reaches: Vec<Reach>,
}

impl Lent {
    /// Empties it, for its room.
    pub(super) fn clear(&mut self) {
        self.paths.clear();
        self.reaches.clear();
    }
}

/// What is kept of few files: there may be a hundred thousand others, that take no more memory
/// than they have to.
#[derive(Default)]
struct Unusual {
    /// Its group's name, if that is not the file's.
    alias: Option<Box<[u8]>>,
    /// What its group is made from, until there is one, if that does not follow from its terms and
    /// its account.
    making: Option<(Template, Mark)>,
}

impl File {
    pub(super) fn new(
        path: SharedPath,
        reach: Reach,
        home: Option<Arc<Home>>,
        alias: Option<Box<[u8]>>,
        claimed: Option<Claimed>,
    ) -> File {
        let Reach { mode, identity, open, mount, realtime } = reach;
        let unusual = alias.map(|alias| Box::new(Unusual { alias: Some(alias), making: None }));
        File {
            mode,
            path,
            identity,
            open,
            mount,
            realtime,
            away: false,
            nonce: 0,
            making: false,
            unusual,
            home,
            made: false,
            claimed,
            owner: None,
            on_grid: OnGrid::No,
        }
    }

    /// Lends it to a sampler until that gives it back: adds its path to the list, and gives how
    /// else it is reached.
    pub(super) fn lend(&mut self, paths: &mut PathList) -> Reach {
        let File { mode, identity, mount, realtime, .. } = *self;
        paths.push(&self.path);
        self.away = true;
        Reach { mode, identity, open: self.open.take(), mount, realtime }
    }

    /// What is open is taken out of `reach`.
    pub(super) fn take_back(&mut self, reach: &mut Reach) {
        self.away = false;
        self.open = reach.open.take();
        self.mount = reach.mount;
    }

    /// Whose account it is, as the ledger knows it.
    pub(super) fn holder(&self, known: &[Arc<str>]) -> Option<Holder> {
        self.owner.map(|owner| owner.holder(self.nonce, known))
    }

    /// What its group is made from, if it may have to be.
    pub(super) fn making(&self) -> Option<(Template, Mark)> {
        let unusual = self.unusual.as_ref().and_then(|unusual| unusual.making.clone());
        let usual = || {
            let terms = &self.claimed.as_ref()?.terms;
            let mark = Mark { key: self.owner?.key, nonce: self.nonce };
            Some((terms.template(self.alias()), mark))
        };
        unusual.or_else(usual).filter(|_| self.making)
    }

    /// Has it made from these.
    pub(super) fn make_from(&mut self, template: Template, mark: Mark) {
        self.making = true;
        let told = Some((template, mark));
        if self.making() != told {
            self.unusual.get_or_insert_default().making = told;
        }
    }

    /// It is made.
    pub(super) fn is_made(&mut self, by_us: bool) {
        self.making = false;
        self.made |= by_us;
        if let Some(unusual) = &mut self.unusual {
            unusual.making = None;
        }
    }

    /// What its group is called, unless it was called something else before.
    pub(super) fn alias(&self) -> Vec<u8> {
        let alias = self.unusual.as_ref().and_then(|unusual| unusual.alias.as_ref());
        match alias {
            _ if self.claimed.is_none() => Vec::new(),
            Some(alias) => alias.to_vec(),
            None => usual_alias(&self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_files_fit_in_some_11_mb() {
        assert!(size_of::<File>() <= 112, "{}", size_of::<File>());
    }
}
