//! The regions of one group among the rows of a listing.

use std::collections::{BTreeMap, BTreeSet};

use super::conversation::Conversation;
use super::{ANCHOR, Aim, Error, Group, Standing, Template};
use crate::dm::Dm;
use crate::extent::{Extent, Extents};
use crate::group::{Descriptor, Dialect, Mark, Members, room_for_members};
use crate::message::{Clockwork, Region, RegionId};
use crate::plan::{Delta, Have};
use crate::shape::Shape;

/// What new regions and the descriptor copy.
pub(super) struct Model<'a> {
    pub(super) program_id: &'a [u8],
    pub(super) clockwork: Clockwork<'a>,
    descriptor: Descriptor,
}

impl<'a> Model<'a> {
    fn of_template(template: &'a Template, mark: Mark, claim: u32) -> Model<'a> {
        let clockwork = Clockwork { precise: template.precise, bounds: &template.bounds };
        let descriptor = Descriptor {
            dialect: Dialect::Quoted,
            alias: template.alias.clone(),
            members: Members::default(),
            user: Vec::new(),
            mark: Some(mark),
            claim: Some(claim),
        };
        let program_id = match &template.program_id[..] {
            b"" => b"-", // that is how it is listed
            program_id => program_id,
        };
        Model { program_id, clockwork, descriptor }
    }

    /// The aux_data of a leader of these members.
    pub(super) fn naming(&self, members: &BTreeSet<RegionId>) -> Vec<u8> {
        let members = members.iter().copied().collect();
        Descriptor { members, ..self.descriptor.clone() }.encode()
    }

    /// Bytes for the list of members, so that the leader's row stays one that LVM2 can read.
    pub(super) fn room(&self) -> usize {
        let without = Descriptor { members: Members::default(), ..self.descriptor.clone() };
        room_for_members(self.program_id, self.clockwork, without.encode().len())
    }

    pub(super) fn mark(&self) -> Mark {
        self.descriptor.mark.expect("every descriptor we write bears a mark")
    }

    pub(super) fn group(&self, id: RegionId) -> Group {
        let claim = self.descriptor.claim.expect("every descriptor we write bears a claim");
        Group { id, mark: self.mark(), claim }
    }
}

/// The regions of one mark among the rows of a listing.
pub(super) struct Ours<'a, 'r> {
    /// The one whose descriptor counts. There may be none when a first attempt was cut.
    pub(super) leader: Option<&'r Region<'a>>,
    /// All that hold a descriptor with our mark, by rising id.
    holders: Vec<RegionId>,
    /// All that bear our mark or stand in one of these descriptors, by rising id.
    pub(super) regions: Vec<&'r Region<'a>>,
    /// The members of the leader's descriptor.
    members: Members,
    mark_text: Vec<u8>,
}

impl<'a, 'r> Ours<'a, 'r> {
    pub(super) fn among(
        rows: &'r [Region<'a>],
        mark: Mark,
        hint: Option<RegionId>,
    ) -> Ours<'a, 'r> {
        let holds = |region: &'r Region<'a>| {
            let descriptor = Descriptor::of(region)?;
            (descriptor.mark == Some(mark)).then_some((region, descriptor))
        };
        let descriptors: Vec<_> = rows.iter().filter_map(holds).collect();
        let hinted = descriptors.iter().find(|(region, _)| Some(region.id) == hint);
        let leading = hinted.or(descriptors.first());
        let leader = leading.map(|(region, _)| *region);
        let members = leading.map(|(_, found)| found.members.clone()).unwrap_or_default();

        let is_ours = |region: &&Region<'_>| match Mark::of(region) {
            Some(found) => found == mark,
            None => leader.is_some_and(|leader| {
                let named = descriptors.iter().any(|(_, found)| found.members.contains(region.id));
                // Its own descriptor or owner would make it somebody else's, whatever ours says.
                named && region.program_id == leader.program_id && Descriptor::of(region).is_none()
            }),
        };
        let regions = rows.iter().filter(is_ours).collect();
        let holders = descriptors.iter().map(|(region, _)| region.id).collect();
        Ours { leader, holders, regions, members, mark_text: mark.to_string().into_bytes() }
    }

    /// What new regions copy: the leader, or the template where there is no group yet.
    pub(super) fn model<'b>(&self, aim: &Aim<'b>) -> Result<Model<'b>, Error>
    where
        'a: 'b,
    {
        let Some(leader) = self.leader else {
            let template = aim.template.ok_or(Error::Gone)?;
            return Ok(Model::of_template(template, aim.mark, aim.claim));
        };
        let mut descriptor = Descriptor::of(leader).ok_or(Error::Gone)?;
        if *descriptor.claim.get_or_insert(aim.claim) != aim.claim {
            return Err(Error::TakenOver);
        }
        Ok(Model { program_id: leader.program_id, clockwork: leader.clockwork, descriptor })
    }

    /// Whether the region bears our mark, and readers do not see it in the group.
    pub(super) fn is_orphan(&self, id: RegionId) -> bool {
        let at = self.regions.binary_search_by_key(&id, |region| region.id);
        at.is_ok_and(|at| Mark::of_member(self.regions[at].aux).is_some())
            && !self.members.contains(id)
    }

    /// The regions that the leader's descriptor names, by rising id.
    pub(super) fn members(&self) -> impl Iterator<Item = &'r Region<'a>> {
        self.regions.iter().copied().filter(|region| self.members.contains(region.id))
    }

    /// The others.
    pub(super) fn others(&self) -> impl Iterator<Item = &'r Region<'a>> {
        self.regions.iter().copied().filter(|region| !self.members.contains(region.id))
    }

    /// Whether the delta leaves the group as it is.
    pub(super) fn is_as(&self, delta: &Delta) -> bool {
        delta.create.is_empty()
            && delta.delete.is_empty()
            && delta.keep.len() as u64 == self.members.count()
            && delta.keep.iter().all(|(id, _)| self.members.contains(*id))
    }

    /// Regions to delete that nobody sees: they can take the place of others as they are.
    pub(super) fn spare(&self, delta: &Delta) -> BTreeMap<Extent, RegionId> {
        let spare = self.regions.iter().filter(|region| {
            self.is_orphan(region.id) && delta.delete.binary_search(&region.id).is_ok()
        });
        spare.map(|region| (region.extent, region.id)).collect()
    }

    pub(super) fn stand(&self, claim: u32) -> Standing {
        let Some(leader) = self.leader else { return Standing::Gone };
        let claimed = Descriptor::of(leader).and_then(|descriptor| descriptor.claim);
        if claimed.is_some_and(|claimed| claimed != claim) {
            return Standing::TakenOver;
        }
        let id = leader.id;
        let counted = self.members().map(|region| region.extent);
        let map: Extents = counted.filter(|extent| extent.start() != ANCHOR).collect();
        let tidy = self.holders == [id] && self.members().count() == self.regions.len();
        Standing::Stands { id, fingerprint: map.fingerprint(), tidy }
    }

    /// What may stay. Members count whatever they count; an orphan is taken in only if it counts
    /// what new regions would.
    pub(super) fn have(&self, model: &Model<'_>) -> Vec<Have> {
        let usable = self.regions.iter().filter(|region| self.is_usable(region, model));
        let have = |region: &&Region<'_>| {
            let (id, extent) = (region.id, region.extent);
            Have { id, extent, member: self.members.contains(id) }
        };
        usable.map(have).collect()
    }

    fn is_usable(&self, region: &Region<'_>, model: &Model<'_>) -> bool {
        self.members.contains(region.id)
            || (region.program_id == model.program_id && region.clockwork == model.clockwork)
    }

    /// The delta to a group of this shape.
    pub(super) fn plan(&self, model: &Model<'_>, shape: &Shape) -> Delta {
        let mut delta = shape.plan(&self.have(model));
        let useless = self.regions.iter().filter(|region| !self.is_usable(region, model));
        delta.delete.extend(useless.map(|region| region.id));
        delta.delete.sort_unstable();
        delta
    }

    /// Marks what is to go and bears no mark: once no descriptor names it, nothing else would tell
    /// that it is ours.
    pub(super) fn mark_doomed<D: Dm>(
        &self,
        kernel: &mut Conversation<D>,
        delta: &Delta,
    ) -> Result<(), Error> {
        let unmarked = |region: &&&Region<'_>| Mark::of(region).is_none();
        for region in self.regions.iter().filter(unmarked) {
            if delta.delete.binary_search(&region.id).is_ok() {
                kernel.set_aux(region.id, &self.mark_text)?;
            }
        }
        Ok(())
    }

    /// Has read what the members that are to go have counted, and what those have that take their
    /// place: from here on it is these that count. An orphan that has become a member was created
    /// by another update: nobody knows what it has counted since.
    pub(super) fn pass_on<D: Dm>(
        &self,
        kernel: &mut Conversation<D>,
        delta: &Delta,
        created: &BTreeSet<RegionId>,
    ) {
        let goes = |region: &&Region<'_>| delta.delete.binary_search(&region.id).is_ok();
        let going: Vec<&Region<'_>> = self.members().filter(goes).collect();
        for region in &going {
            kernel.ends(region.id, region.extent, region.clockwork);
        }
        let gone: Extents = going.iter().map(|region| region.extent).collect();
        let clockwork = self.leader.map(|leader| leader.clockwork).unwrap_or_default();
        for (id, extent) in delta.keep.iter().filter(|(id, _)| !self.members.contains(*id)) {
            if gone.overlaps(*extent) || !created.contains(id) {
                kernel.begins(*id, *extent, clockwork);
            }
        }
    }

    /// Takes away every descriptor of ours but the new one, then every region to delete.
    pub(super) fn retire_and_clean<D: Dm>(
        &self,
        kernel: &mut Conversation<D>,
        members: &BTreeSet<RegionId>,
        delta: &Delta,
    ) -> Result<(), Error> {
        let retired = |id: &&RegionId| members.contains(id) && members.first() != Some(id);
        for id in self.holders.iter().filter(retired) {
            kernel.set_aux(*id, &self.mark_text)?;
        }
        // Holders first and by rising id, since a descriptor names none below its holder.
        let (holders, others): (Vec<RegionId>, Vec<RegionId>) =
            delta.delete.iter().partition(|id| self.holders.contains(id));
        holders.iter().chain(others.iter().rev()).try_for_each(|id| kernel.delete(*id))
    }
}

/// The region `id`, if it is listed.
pub(super) fn row<'a, 'r>(rows: &'r [Region<'a>], id: RegionId) -> Option<&'r Region<'a>> {
    rows.binary_search_by_key(&id, |region| region.id).ok().map(|at| &rows[at])
}
