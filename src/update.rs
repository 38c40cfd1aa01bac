//! One group, from what it is to what it should be.
//!
//! No message is known to be followed by another: power fails, processes are killed. So the
//! messages come in an order in which a reader finds, after each of them, a group with exactly the
//! old map or exactly the new one:
//!
//! 1. **prepare**: create the new regions. They bear our mark and stand in no descriptor. Regions
//!    that are to go and bear no mark (LVM2 made them) get it.
//! 2. **commit**: one `@stats_set_aux` gives the lowest of the new members the descriptor that
//!    names them all. The kernel swaps the word under its lock, so readers see either.
//! 3. **retire**: an old leader that is no longer the lowest gives up its descriptor.
//! 4. **clean**: delete what is no longer a member.
//! 5. **reclaim**: see below.
//!
//! A cut leaves marked regions behind that no descriptor names, or a second descriptor. The next
//! update finds both by the mark, and finishes the work: it *is* the recovery.
//!
//! A descriptor may never name a region that does not exist or that belongs to another program:
//! `dmstats` crashes on one. Hence members are created before they are named, and stop being named
//! before they are deleted. A descriptor names no id below its holder's, so of several that are to
//! go the lowest goes first.
//!
//! # The leader
//!
//! LVM2 accepts a descriptor only in the lowest member, whose id is the group's. When the leader's
//! extent goes away, the commit puts a second descriptor on the lowest survivor; deleting the old
//! leader takes the first one away with it. If the update created anything, the old id is taken
//! back: one new region is created once more, gets the freed id (the kernel gives the lowest), is
//! named in place of its twin, and the twin is deleted. That is one create more than there would be
//! if the region were created there only; but then, until it is, no group would show a whole map.
//! If another process is faster and gets the id, or nothing had to be created, the group's id is
//! the survivor's from then on.
//!
//! A file without any extent keeps its group on an [`ANCHOR`].

use std::collections::BTreeSet;
use std::{fmt, io};

use crate::dm::{Device, Dm};
use crate::extent::{Extent, Extents, Fingerprint};
use crate::fit::fit;
use crate::group::{Descriptor, Dialect, Mark, Members, room_for_members};
use crate::message::{Clockwork, Message, Region, RegionId, Unreadable, parse_created, parse_list};
use crate::plan::{Delta, Have, plan};

/// Where the one region of a group lies whose file has no extent: one sector at 2^54, beyond the
/// end of any device, so that it counts nothing. Higher starts are not printed right by `dmstats`.
pub const ANCHOR: u64 = 1 << 54;

/// A group of ours, as the last update left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// Its id: that of its leader. A hint, since ids are re-used.
    pub id: RegionId,
    /// What it is known by.
    pub mark: Mark,
    /// What says that we speak for it.
    pub claim: u32,
}

/// What a new group is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// The owner's word for all its regions; LVM2's is `dmstats`.
    pub program_id: Vec<u8>,
    /// Its name.
    pub alias: Vec<u8>,
    /// Times in nanoseconds instead of milliseconds.
    pub precise: bool,
    /// Upper bounds of the latency histogram, as `10,20,30`, in the unit above; empty for none.
    pub bounds: Vec<u8>,
}

/// What an update left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Updated {
    /// The group, whose id may be new.
    pub group: Group,
    /// Its members. Never none: a file without extents has an anchor.
    pub members: usize,
    /// Regions created, each of which stopped the device's I/O for a moment.
    pub created: usize,
    /// Regions deleted.
    pub deleted: usize,
    /// Bytes of the descriptor and digits of the leader's id; see [`crate::group::REWRITE_MAX`].
    pub descriptor_len: usize,
}

/// Why an update did not succeed. The group is as it was, or already as it should be.
#[derive(Debug)]
pub enum Error {
    /// No descriptor on the device bears the mark: somebody deleted the group.
    Gone,
    /// Another process has taken the group over.
    TakenOver,
    /// The id names no group that LVM2 would accept.
    NoSuchGroup(RegionId),
    /// Another device answered than at first: it was replaced under the same number.
    Replaced,
    /// Even with all its regions side by side the group's descriptor would be longer than LVM2
    /// reads, so many ids in between belong to others. Bytes needed, bytes there are.
    Scattered(usize, usize),
    /// The kernel said what the protocol does not know.
    Unreadable(Unreadable),
    /// The kernel refused a message.
    Message {
        /// The message.
        text: Vec<u8>,
        /// Its errno.
        source: io::Error,
    },
}

impl Error {
    /// Whether the device does not exist (any more): `ENXIO`.
    #[must_use]
    pub fn is_no_device(&self) -> bool {
        const ENXIO: i32 = 6;
        matches!(self, Error::Message { source, .. } if source.raw_os_error() == Some(ENXIO))
    }

    /// Whether the kernel does not understand the message: `EINVAL`. It logs each one it is sent.
    #[must_use]
    pub fn is_not_understood(&self) -> bool {
        let Error::Message { source, .. } = self else { return false };
        source.kind() == io::ErrorKind::InvalidInput
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Gone => f.write_str("the group is gone: somebody deleted it"),
            Error::TakenOver => f.write_str("another dmfilemapd has taken the group over"),
            Error::NoSuchGroup(id) => {
                write!(f, "there is no group {id}: no region {id} that leads a group")
            }
            Error::Replaced => f.write_str("another device has taken over the number"),
            Error::Scattered(needed, room) => write!(
                f,
                "the group's descriptor would be {needed} bytes long and dmstats reads {room}: \
                 too many regions of others lie between"
            ),
            Error::Unreadable(reply) => reply.fmt(f),
            Error::Message { text, source } => write!(f, "{}: {source}", text.escape_ascii()),
        }
    }
}

impl std::error::Error for Error {}

impl From<Unreadable> for Error {
    fn from(reply: Unreadable) -> Error {
        Error::Unreadable(reply)
    }
}

/// Takes over the group that region `id` leads, whoever made it: from here on it bears our claim.
/// A group that bears a mark (a process before us followed it) keeps it, and another gets `mark`.
///
/// # Errors
///
/// [`Error::NoSuchGroup`] if the region does not exist or leads no group.
pub fn adopt(
    dm: impl Dm,
    device: Device,
    id: RegionId,
    mark: Mark,
    claim: u32,
) -> Result<Group, Error> {
    let mut kernel = Conversation::new(dm, device);
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    let leader = row(&rows, id).ok_or(Error::NoSuchGroup(id))?;
    let descriptor = Descriptor::of(leader).ok_or(Error::NoSuchGroup(id))?;
    take_over(&mut kernel, id, descriptor, mark, claim)
}

fn take_over<D: Dm>(
    kernel: &mut Conversation<D>,
    id: RegionId,
    mut descriptor: Descriptor,
    mark: Mark,
    claim: u32,
) -> Result<Group, Error> {
    let mark = *descriptor.mark.get_or_insert(mark);
    descriptor.claim = Some(claim);
    kernel.set_aux(id, &descriptor.encode())?;
    Ok(Group { id, mark, claim })
}

/// Finds or makes the group of a file: one that bears a mark with the same key; else one of the
/// same program_id and alias, without a mark, of which a member lies in `want` (LVM2 made it from
/// this file); else a new one, for which leftovers of a cut attempt are used. Then updates it.
///
/// `None` if there is no such group and `want` is empty: a group is made from extents.
///
/// # Errors
///
/// As [`update`], and never [`Error::Gone`].
pub fn establish(
    mut dm: impl Dm,
    device: Device,
    template: &Template,
    mark: Mark,
    claim: u32,
    want: &Extents,
) -> Result<Option<Updated>, Error> {
    let mut kernel = Conversation::new(&mut dm, device);
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    if let Some((id, descriptor)) = found(&rows, template, mark.key, want) {
        let group = take_over(&mut kernel, id, descriptor, mark, claim)?;
        return update(dm, device, group, want).map(Some);
    }
    if want.is_empty() {
        return Ok(None);
    }
    let mut left = rows.iter().filter_map(|region| Mark::of_member(region.aux));
    let mark = left.rfind(|left| left.key == mark.key).unwrap_or(mark);
    let clockwork = Clockwork { precise: template.precise, bounds: &template.bounds };
    let descriptor = Descriptor {
        dialect: Dialect::Quoted,
        alias: template.alias.clone(),
        members: Members::default(),
        user: Vec::new(),
        mark: Some(mark),
        claim: Some(claim),
    };
    let model = Model { program_id: &template.program_id, clockwork, descriptor };
    carry_out(&mut kernel, &rows, &Ours::among(&rows, mark, None), &model, want).map(Some)
}

fn found(
    rows: &[Region<'_>],
    template: &Template,
    key: u64,
    want: &Extents,
) -> Option<(RegionId, Descriptor)> {
    let groups: Vec<(&Region<'_>, Descriptor)> =
        rows.iter().filter_map(|region| Some((region, Descriptor::of(region)?))).collect();
    let marked = |found: &Descriptor| found.mark.is_some_and(|mark| mark.key == key);
    let from_file = |(leader, found): &&(&Region<'_>, Descriptor)| {
        let lies_in = |region: &Region<'_>| {
            found.members.contains(region.id) && want.around(region.extent).is_some()
        };
        let named = found.alias == template.alias && leader.program_id == template.program_id;
        found.mark.is_none() && named && rows.iter().any(lies_in)
    };
    let group = groups.iter().find(|(_, found)| marked(found));
    let group = group.or_else(|| groups.iter().find(from_file));
    group.map(|(leader, found)| (leader.id, found.clone()))
}

/// Makes the regions of `group` cover exactly `want`.
///
/// Without anything to change it sends one message, the listing. Otherwise: one per create, one
/// per delete, one commit; one more for each region to delete that bears no mark yet; one where an
/// old leader survives the new; and where the leader's extent went away and its id is taken back,
/// four (three if the twin alone survived), one of them a create.
///
/// # Errors
///
/// [`Error::Gone`] if no descriptor bears the mark any more, [`Error::TakenOver`] if it bears the
/// claim of another process; nothing is touched in either case. If a create
/// fails, what this update had created is deleted again and the group is as it was.
pub fn update(dm: impl Dm, device: Device, group: Group, want: &Extents) -> Result<Updated, Error> {
    let mut kernel = Conversation::new(dm, device);
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    let ours = Ours::among(&rows, group.mark, Some(group.id));
    let model = ours.model(group.claim)?;
    carry_out(&mut kernel, &rows, &ours, &model, want)
}

/// How a group stands between two updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Somebody deleted it.
    Gone,
    /// Another process follows it now.
    TakenOver,
    /// It is there.
    Stands {
        /// The id it has now.
        id: RegionId,
        /// Of the sectors its members count, the anchor left out.
        fingerprint: Fingerprint,
        /// Whether nothing with its mark is left over: no region outside it, no second descriptor.
        tidy: bool,
    },
}

/// Looks at groups of one device with a single message.
///
/// # Errors
///
/// Those of the listing.
pub fn look(dm: impl Dm, device: Device, groups: &[Group]) -> Result<Vec<Standing>, Error> {
    let listing = Conversation::new(dm, device).list()?;
    let rows = parse_list(&listing)?;
    let stand = |group: &Group| Ours::among(&rows, group.mark, Some(group.id)).stand(group.claim);
    Ok(groups.iter().map(stand).collect())
}

/// Deletes the group and every region that bears its mark. Gives how many regions those were.
///
/// # Errors
///
/// Those of the messages; what is left bears the mark, so that another try finds it.
pub fn remove(dm: impl Dm, device: Device, group: Group) -> Result<usize, Error> {
    let mut kernel = Conversation::new(dm, device);
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    let ours = Ours::among(&rows, group.mark, Some(group.id));
    let delta = Delta { delete: ours.regions.iter().map(|r| r.id).collect(), ..Delta::default() };
    ours.mark_doomed(&mut kernel, &delta)?;
    ours.retire_and_clean(&mut kernel, &BTreeSet::new(), &delta)?;
    Ok(kernel.deleted)
}

/// What new regions and the descriptor copy.
struct Model<'a> {
    program_id: &'a [u8],
    clockwork: Clockwork<'a>,
    descriptor: Descriptor,
}

fn carry_out<D: Dm>(
    kernel: &mut Conversation<D>,
    rows: &[Region<'_>],
    ours: &Ours<'_, '_>,
    model: &Model<'_>,
    want: &Extents,
) -> Result<Updated, Error> {
    let anchor: Extents = Extent::new(ANCHOR, 1).into_iter().collect();
    let mut delta = ours.plan(model, if want.is_empty() { &anchor } else { want });
    let taken: Vec<RegionId> = rows.iter().map(|region| region.id).collect();
    fit(&mut delta, &taken, model.room()).map_err(|(need, room)| Error::Scattered(need, room))?;

    let created = prepare(kernel, ours, &delta, model)?;
    let mut members: BTreeSet<RegionId> = delta.keep.iter().map(|(id, _)| *id).collect();
    members.extend(created.iter().map(|(id, _)| *id));
    let leader = *members.first().expect("the wanted map is never empty, so there is a member");
    let aux = model.naming(&members);
    if row(rows, leader).is_none_or(|region| region.aux != aux) {
        kernel.set_aux(leader, &aux)?; // commit
    }
    ours.retire_and_clean(kernel, &members, &delta)?;

    let lost = ours.leader.map(|old| old.id).filter(|old| *old < leader);
    if let Some((old, twin)) = lost.zip(created.last().copied()) {
        reclaim(kernel, old, twin, &mut members, model)?;
    }
    let id = *members.first().expect("as above");
    Ok(Updated {
        group: model.group(id),
        members: members.len(),
        created: kernel.created,
        deleted: kernel.deleted,
        descriptor_len: model.naming(&members).len() + id.to_string().len(),
    })
}

/// Creates the new regions, and marks those that are to go.
fn prepare<D: Dm>(
    kernel: &mut Conversation<D>,
    ours: &Ours<'_, '_>,
    delta: &Delta,
    model: &Model<'_>,
) -> Result<Vec<(RegionId, Extent)>, Error> {
    let mut created = Vec::with_capacity(delta.create.len());
    for &extent in &delta.create {
        match kernel.create(extent, model) {
            Ok(id) => created.push((id, extent)),
            Err(error) => {
                // Best effort: what stays behind bears the mark, and the next update finds it.
                created.iter().try_for_each(|(id, _)| kernel.delete(*id)).ok();
                return Err(error);
            }
        }
    }
    ours.mark_doomed(kernel, delta)?;
    Ok(created)
}

/// Moves the group back to id `old`, which has just become free, by creating the region `twin`
/// there once more. If that fails the group is whole all the same, under the id it has.
fn reclaim<D: Dm>(
    kernel: &mut Conversation<D>,
    old: RegionId,
    twin: (RegionId, Extent),
    members: &mut BTreeSet<RegionId>,
    model: &Model<'_>,
) -> Result<(), Error> {
    let Ok(id) = kernel.create(twin.1, model) else {
        return Ok(());
    };
    if id != old {
        return kernel.delete(id); // somebody was faster
    }
    let survivor = members.first().copied().filter(|survivor| *survivor != twin.0);
    members.remove(&twin.0);
    members.insert(id);
    kernel.set_aux(id, &model.naming(members))?;
    if let Some(survivor) = survivor {
        kernel.set_aux(survivor, model.mark().to_string().as_bytes())?;
    }
    kernel.delete(twin.0)
}

impl Model<'_> {
    /// The aux_data of a leader of these members.
    fn naming(&self, members: &BTreeSet<RegionId>) -> Vec<u8> {
        let members = members.iter().copied().collect();
        Descriptor { members, ..self.descriptor.clone() }.encode()
    }

    /// Bytes for the list of members, so that the leader's row stays one that LVM2 can read.
    fn room(&self) -> usize {
        let without = Descriptor { members: Members::default(), ..self.descriptor.clone() };
        room_for_members(self.program_id, self.clockwork, without.encode().len())
    }

    fn mark(&self) -> Mark {
        self.descriptor.mark.expect("every descriptor we write bears a mark")
    }

    fn group(&self, id: RegionId) -> Group {
        let claim = self.descriptor.claim.expect("every descriptor we write bears a claim");
        Group { id, mark: self.mark(), claim }
    }
}

/// The regions of one mark among the rows of a listing.
struct Ours<'a, 'r> {
    /// The one whose descriptor counts. There may be none when a first attempt was cut.
    leader: Option<&'r Region<'a>>,
    /// All that hold a descriptor with our mark, by rising id.
    holders: Vec<RegionId>,
    /// All that bear our mark or stand in one of these descriptors, by rising id.
    regions: Vec<&'r Region<'a>>,
    /// The members of the leader's descriptor.
    members: Members,
    mark_text: Vec<u8>,
}

impl<'a, 'r> Ours<'a, 'r> {
    fn among(rows: &'r [Region<'a>], mark: Mark, hint: Option<RegionId>) -> Ours<'a, 'r> {
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

    fn model(&self, claim: u32) -> Result<Model<'a>, Error> {
        let leader = self.leader.ok_or(Error::Gone)?;
        let mut descriptor = Descriptor::of(leader).ok_or(Error::Gone)?;
        if *descriptor.claim.get_or_insert(claim) != claim {
            return Err(Error::TakenOver);
        }
        Ok(Model { program_id: leader.program_id, clockwork: leader.clockwork, descriptor })
    }

    fn stand(&self, claim: u32) -> Standing {
        let id = match (self.model(claim), self.leader) {
            (Ok(_), Some(leader)) => leader.id,
            (Err(Error::TakenOver), _) => return Standing::TakenOver,
            _ => return Standing::Gone,
        };
        let members = self.regions.iter().filter(|region| self.members.contains(region.id));
        let counted = members.clone().map(|region| region.extent);
        let map: Extents = counted.filter(|extent| extent.start() != ANCHOR).collect();
        let tidy = self.holders == [id] && members.count() == self.regions.len();
        Standing::Stands { id, fingerprint: map.fingerprint(), tidy }
    }

    /// The delta to `want`. Members count whatever they count and may stay; a leftover is taken in
    /// only if it counts what new regions would.
    fn plan(&self, model: &Model<'_>, want: &Extents) -> Delta {
        let usable = |region: &&&Region<'_>| {
            self.members.contains(region.id)
                || (region.program_id == model.program_id && region.clockwork == model.clockwork)
        };
        let have = |region: &&Region<'_>| {
            let (id, extent) = (region.id, region.extent);
            Have { id, extent, member: self.members.contains(id) }
        };
        let regions: Vec<Have> = self.regions.iter().filter(usable).map(have).collect();
        let mut delta = plan(&regions, want);
        let useless = self.regions.iter().filter(|region| !usable(region));
        delta.delete.extend(useless.map(|region| region.id));
        delta.delete.sort_unstable();
        delta
    }

    /// Marks what is to go and bears no mark: once no descriptor names it, nothing else would tell
    /// that it is ours.
    fn mark_doomed<D: Dm>(&self, kernel: &mut Conversation<D>, delta: &Delta) -> Result<(), Error> {
        let unmarked = |region: &&&Region<'_>| Mark::of(region).is_none();
        for region in self.regions.iter().filter(unmarked) {
            if delta.delete.binary_search(&region.id).is_ok() {
                kernel.set_aux(region.id, &self.mark_text)?;
            }
        }
        Ok(())
    }

    /// Takes away every descriptor of ours but the new one, then every region to delete.
    fn retire_and_clean<D: Dm>(
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

fn row<'a, 'r>(rows: &'r [Region<'a>], id: RegionId) -> Option<&'r Region<'a>> {
    rows.binary_search_by_key(&id, |region| region.id).ok().map(|at| &rows[at])
}

/// The messages of one update. All of them must reach the device that answered the first: a number
/// is given to a new device as soon as it is free.
struct Conversation<D> {
    dm: D,
    device: Device,
    answered: Option<(Vec<u8>, Vec<u8>)>,
    replaced: bool,
    created: usize,
    deleted: usize,
}

impl<D: Dm> Conversation<D> {
    fn new(dm: D, device: Device) -> Conversation<D> {
        Conversation { dm, device, answered: None, replaced: false, created: 0, deleted: 0 }
    }

    fn send(&mut self, message: &Message<'_>) -> Result<Vec<u8>, Error> {
        if self.replaced {
            return Err(Error::Replaced); // it has no business with us
        }
        let text = message.encode();
        let reply = match self.dm.message(self.device, &text) {
            Ok(reply) => reply,
            Err(source) => return Err(Error::Message { text, source }),
        };
        let same = |(name, uuid): &(Vec<u8>, Vec<u8>)| {
            *uuid == reply.uuid && (*name == reply.name || !uuid.is_empty())
        };
        self.replaced = !self.answered.as_ref().is_none_or(same);
        if self.replaced {
            return Err(Error::Replaced);
        }
        self.answered.get_or_insert((reply.name, reply.uuid));
        Ok(reply.text)
    }

    /// All rows, of every program: ids are shared among them.
    fn list(&mut self) -> Result<Vec<u8>, Error> {
        self.send(&Message::List { program_id: None })
    }

    fn create(&mut self, extent: Extent, model: &Model<'_>) -> Result<RegionId, Error> {
        let aux = model.mark().to_string();
        let (program_id, clockwork, aux) = (model.program_id, model.clockwork, aux.as_bytes());
        let reply = self.send(&Message::Create { extent, clockwork, program_id, aux })?;
        self.created += 1;
        Ok(parse_created(&reply)?)
    }

    fn set_aux(&mut self, id: RegionId, aux: &[u8]) -> Result<(), Error> {
        self.send(&Message::SetAux { id, aux }).map(drop)
    }

    /// A region that is gone already is deleted as far as we care.
    fn delete(&mut self, id: RegionId) -> Result<(), Error> {
        match self.send(&Message::Delete { id }) {
            Err(Error::Message { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            Err(error) => Err(error),
            Ok(_) => {
                self.deleted += 1;
                Ok(())
            }
        }
    }
}
