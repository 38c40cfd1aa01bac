//! Which shape a group is to get, with the regions it has and within its limits.

use std::collections::HashSet;

use super::Error;
use super::conversation::Conversation;
use super::ours::{Model, Ours, row};
use crate::counters::parse_print;
use crate::dm::Dm;
use crate::fold::Folding;
use crate::merge::merge;
use crate::message::{Region, RegionId};
use crate::shape::{Limits, Shape, Want};

/// Decides it. Has the regions read of which it matters whether they have counted anything.
pub(super) fn shape<D: Dm>(
    kernel: &mut Conversation<D>,
    ours: &Ours<'_, '_>,
    model: &Model<'_>,
    rows: &[Region<'_>],
    Want { extents, mut limits }: Want<'_>,
) -> Result<Shape, Error> {
    limits.fold_above = limits.fold_above.filter(|_| kernel.watches());
    if limits == Limits::NONE {
        return Ok(Shape::from(extents));
    }
    let have = ours.have(model);
    let mut shape = merge(&have, extents, limits.max());
    let leader = ours.leader.map(|leader| leader.id);
    let folding = Folding::new(&shape, &have, leader, limits);
    let idle = idle(kernel, rows, folding.doubtful())?;
    shape.whole = shape.whole.and(&folding.fold(&idle));
    Ok(shape)
}

/// Those of the regions that have counted nothing.
fn idle<D: Dm>(
    kernel: &mut Conversation<D>,
    rows: &[Region<'_>],
    ids: Vec<RegionId>,
) -> Result<HashSet<RegionId>, Error> {
    let mut idle = HashSet::new();
    for id in ids {
        let text = match kernel.print(id) {
            Err(error) if error.is_no_region() => continue,
            text => text?,
        };
        let clockwork = row(rows, id).map(|row| row.clockwork).unwrap_or_default();
        if parse_print(&text, clockwork)?.is_zero() {
            idle.insert(id);
        }
    }
    Ok(idle)
}
