//! The shape of a group: what its regions are to cover, and what is to be one region.
//!
//! Without limits that is the file's map, and every region stays that can. Limits have extents
//! [merged](crate::merge) across the gaps between them and regions [folded](crate::fold).
//!
//! A shape is decided once for an update, though the regions are listed and [planned](plan) several
//! times in it: what was created meanwhile must not be a reason to decide otherwise.

use crate::extent::{Extent, Extents};
use crate::message::RegionId;
use crate::plan::{Delta, Have, plan};

/// How many regions a group may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Regions, at the most. It has one in any case.
    pub max_regions: u32,
    /// Regions beyond those that its extents need, from which on some are folded. `None`: as many
    /// as `max_regions` allows.
    pub fold_above: Option<u32>,
}

impl Limits {
    /// As many as there are.
    pub const NONE: Limits = Limits { max_regions: u32::MAX, fold_above: None };

    /// Regions at the most, as a count.
    #[must_use]
    pub fn max(self) -> usize {
        usize::try_from(self.max_regions).unwrap_or(usize::MAX).max(1)
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::NONE
    }
}

/// What a group is to show, and with how many regions.
#[derive(Clone, Copy, Debug)]
pub struct Want<'a> {
    /// The file's map.
    pub extents: &'a Extents,
    /// How many regions the group may have.
    pub limits: Limits,
}

/// Exactly these, whatever that takes.
impl<'a> From<&'a Extents> for Want<'a> {
    fn from(extents: &'a Extents) -> Want<'a> {
        Want { extents, limits: Limits::NONE }
    }
}

/// What the regions of a group are to cover, and what of that is to be one region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// All of it: the file's map, and the gaps that are taken in.
    pub cover: Extents,
    /// What no two regions may share, each within an extent of the cover.
    pub whole: Extents,
}

/// Exactly these, whatever the regions.
impl From<&Extents> for Shape {
    fn from(extents: &Extents) -> Shape {
        Shape { cover: extents.clone(), whole: Extents::default() }
    }
}

impl Shape {
    /// The change from the regions `have` to a group of this shape.
    ///
    /// As [`plan`], but what overlaps a whole extent stays only if it holds all of it.
    #[must_use]
    pub fn plan(&self, have: &[Have]) -> Delta {
        let (fit, unfit): (Vec<Have>, Vec<Have>) =
            have.iter().partition(|region| self.allows(region.extent));
        let mut delta = plan(&fit, &self.cover);
        delta.delete.extend(unfit.iter().map(|region| region.id));
        delta.delete.sort_unstable();
        delta
    }

    fn allows(&self, region: Extent) -> bool {
        let whole = self.whole.as_slice();
        let from = whole.partition_point(|extent| extent.end() <= region.start());
        let overlapped = whole[from..].iter().take_while(|extent| extent.start() < region.end());
        overlapped.copied().all(|extent| region.contains(extent))
    }
}

/// A region as it will be when a delta is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) extent: Extent,
    /// The region that it is; `None` if it is to be created.
    pub(crate) id: Option<RegionId>,
}

/// The regions that a delta leaves, by the extent of `cover` that they lie in, by rising sector.
pub(crate) fn pieces(delta: &Delta, cover: &Extents) -> Vec<Vec<Piece>> {
    let kept = delta.keep.iter().map(|(id, extent)| Piece { extent: *extent, id: Some(*id) });
    let made = delta.create.iter().map(|extent| Piece { extent: *extent, id: None });
    let mut pieces: Vec<Piece> = kept.chain(made).collect();
    pieces.sort_unstable_by_key(|piece| piece.extent);
    let mut pieces = pieces.into_iter().peekable();
    let mut within = |span: &Extent| {
        let mut here = Vec::new();
        while let Some(piece) = pieces.next_if(|piece| piece.extent.start() < span.end()) {
            here.push(piece);
        }
        here
    };
    cover.as_slice().iter().map(&mut within).collect()
}
