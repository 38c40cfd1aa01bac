//! Regions that cut updates have left.
//!
//! An update cleans up after the one before it of the same file. What is left of a file that nobody
//! follows any more, or of a group that somebody deleted, stays, and costs each I/O of the device a
//! little. It is found by its mark.
//!
//! # How it is told from an update under way
//!
//! What an update has created and not yet named looks just the same, and its commit is a
//! `@stats_set_aux` that names these regions whether they still exist or not. No message of ours
//! before the `@stats_delete` could change that: the kernel deletes a region, and sets its word,
//! whatever the word was. So no order of messages excludes that a region is deleted after the last
//! listing of an update and before its commit; `dmstats` would crash on the descriptor.
//!
//! Therefore updates and deletions take [turns](Turn). A process that is killed loses its turn when
//! it has ended, which it has not while a `@stats_create` holds it in the kernel; so whoever is
//! alone knows that no update is under way, and that no region is still to come of a killed one.
//!
//! Turns are locks on the control node, so a process in a container that has a node of its own (not
//! a mount of the host's `/dev`) does not see them. For its sake the orphans are listed first, some
//! time passes, and only what is still the same is deleted. That leaves this: such a process has
//! created a region before the first listing, and has not named it until after the last one. It
//! then names what is not there any more, until its next look at the group.

use std::collections::HashSet;

use super::Error;
use super::conversation::Conversation;
use crate::dm::{Device, Dm, Turn};
use crate::extent::Extent;
use crate::group::{Descriptor, Mark};
use crate::message::{Region, RegionId, parse_list};

/// A region whose aux_data is a mark of ours and nothing else, and that no descriptor names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Orphan {
    /// Its number, which another region may have by now.
    pub id: RegionId,
    /// What it counts.
    pub extent: Extent,
    /// Whose it is.
    pub program_id: Vec<u8>,
    /// Which file it was created for.
    pub mark: Mark,
}

/// The orphans of a device, by rising id; among them those of updates that are under way.
///
/// # Errors
///
/// Those of the listing.
pub fn orphans(dm: impl Dm, device: Device) -> Result<Vec<Orphan>, Error> {
    let listing = Conversation::new(dm, device).list()?;
    Ok(among(&parse_list(&listing)?))
}

/// Deletes what was an orphan when `seen` was listed and is so still. Gives how many those were.
///
/// The longer ago `seen` was listed, the better; see the head of this file.
///
/// # Errors
///
/// [`Error::is_busy`] while an update is under way on the device; nothing is sent then. Those of
/// the messages; what is left is still an orphan.
pub fn delete_orphans(dm: impl Dm, device: Device, seen: &[Orphan]) -> Result<usize, Error> {
    let mut kernel = Conversation::in_turn(dm, device, Turn::Alone)?;
    let listing = kernel.list()?;
    let seen: HashSet<&Orphan> = seen.iter().collect();
    let rows = parse_list(&listing)?;
    let orphans = among(&rows);
    orphans.iter().filter(|orphan| seen.contains(orphan)).try_for_each(|o| kernel.delete(o.id))?;
    Ok(kernel.deleted)
}

fn among(rows: &[Region<'_>]) -> Vec<Orphan> {
    let descriptors: Vec<Descriptor> = rows.iter().filter_map(Descriptor::of).collect();
    let orphan = |region: &Region<'_>| {
        let mark = Mark::of_member(region.aux)?;
        let bare = mark.to_string().as_bytes() == region.aux;
        let named = descriptors.iter().any(|found| found.members.contains(region.id));
        let (id, extent, program_id) = (region.id, region.extent, region.program_id.to_vec());
        (bare && !named).then_some(Orphan { id, extent, program_id, mark })
    };
    rows.iter().filter_map(orphan).collect()
}
