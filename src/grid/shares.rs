//! What a reading of a grid gives to each file.

use std::collections::BTreeMap;

use super::attribute::{Doubt, Tenancy, attribute};
use super::meter::Counted;
use crate::counters::Counters;
use crate::extent::Extent;

/// What one file got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// What it has read and written.
    pub counters: Counters,
    /// How far off that may be.
    pub doubt: Doubt,
}

/// What each file got, and what remains. Together they are what the areas have counted, exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares<F> {
    /// By file; none for those that got nothing and may have done nothing.
    pub files: BTreeMap<F, Share>,
    /// What nobody got whom we follow.
    pub others: Counters,
}

impl<F: Copy + Ord> Default for Shares<F> {
    fn default() -> Shares<F> {
        Shares { files: BTreeMap::new(), others: Counters::default() }
    }
}

impl<F: Copy + Ord> Shares<F> {
    /// Gives away what areas have counted, each to its tenants. `phase` is a number that takes
    /// turns from reading to reading.
    pub fn give(&mut self, areas: &[Counted], tenancies: &[Tenancy<F>], phase: u64) {
        for ((area, tenancy), at) in areas.iter().zip(tenancies).zip(0..) {
            let (parts, rest) = attribute(&area.counters, tenancy, phase.wrapping_add(at));
            for part in parts {
                let share = self.files.entry(part.file).or_default();
                share.counters += &part.counters;
                share.doubt.over += &part.doubt.over;
                share.doubt.under += &part.doubt.under;
            }
            self.others += &rest;
        }
    }
}

/// The areas for which it matters what of them is free: those that followed files share with
/// sectors of which nothing is known.
#[must_use]
pub fn in_question<F>(areas: &[Counted], tenancies: &[Tenancy<F>]) -> Vec<Extent> {
    let shared = |tenancy: &Tenancy<F>| tenancy.others > 0 && !tenancy.tenants.is_empty();
    let pairs = areas.iter().zip(tenancies);
    pairs.filter(|(_, tenancy)| shared(tenancy)).map(|(area, _)| area.extent).collect()
}
