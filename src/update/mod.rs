//! One group, from what it is to what it should be.
//!
//! No message is known to be followed by another: power fails, processes are killed. So the
//! messages come in an order in which a reader finds, after each of them, a group with exactly the
//! old map or exactly the new one:
//!
//! 1. **prepare**: create the new regions. They bear our mark and stand in no descriptor. Regions
//!    that are to go and bear no mark (LVM2 made them) get it. A create can take as long as the
//!    device does, and others use the same table meanwhile. So the listing is read again, and if
//!    something is missing now, this step is done again.
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
//! All messages of an update are sent in a [turn](Turn) at the device, beside other updates. Who
//! deletes what seems to be an orphan ([`delete_orphans`]) has to be alone: between the last
//! listing and the commit an update relies on regions that nothing but their mark protects.
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

mod conversation;
mod error;
mod orphans;
mod ours;
mod reading;
mod shaping;

use std::collections::{BTreeSet, HashMap};

use crate::dm::{Device, Dm, Turn};
use crate::extent::{Extent, Extents, Fingerprint};
use crate::fit::fit;
use crate::group::{Descriptor, Mark, is_safe_alias};
use crate::message::{Region, RegionId, is_space, parse_list};
use crate::plan::Delta;
use crate::shape::{Shape, Want};

pub(crate) use conversation::Conversation;
pub use error::Error;
pub use orphans::{Orphan, delete_orphans, orphans};
use ours::{Model, Ours, row};
pub use reading::{Count, Counted, Passage, Passing, Tally, read, read_all};

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
    /// Sectors that the group counts and the file does not have: gaps between its extents, which
    /// the [limits](crate::shape::Limits) have taken in.
    pub foreign: u64,
    /// Of the sectors that the group counts, the anchor left out.
    pub fingerprint: Fingerprint,
    /// There was no group before.
    pub made: bool,
    /// Bytes of the descriptor and digits of the leader's id; see [`crate::group::REWRITE_MAX`].
    pub descriptor_len: usize,
}

/// Takes over the group that region `id` leads, whoever made it: from here on it bears our claim.
/// A group that bears a mark (a process before us followed it) keeps it, and another gets `mark`.
///
/// # Errors
///
/// [`Error::NoSuchGroup`] if the region does not exist or leads no group; [`Error::NoTurn`].
pub fn adopt(
    dm: impl Dm,
    device: Device,
    id: RegionId,
    mark: Mark,
    claim: u32,
) -> Result<Group, Error> {
    let mut kernel = Conversation::in_turn(dm, device, Turn::Shared)?;
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    let leader = row(&rows, id).ok_or(Error::NoSuchGroup(id))?;
    let descriptor = Descriptor::of(leader).ok_or(Error::NoSuchGroup(id))?;
    take_over(&mut kernel, id, descriptor, mark, claim)
}

/// The mark of the group that region `id` leads, if it has one.
///
/// # Errors
///
/// [`Error::NoSuchGroup`] if the region does not exist or leads no group; those of the listing.
pub fn mark_of(dm: impl Dm, device: Device, id: RegionId) -> Result<Option<Mark>, Error> {
    let listing = Conversation::new(dm, device).list()?;
    let rows = parse_list(&listing)?;
    let descriptor = row(&rows, id).and_then(Descriptor::of).ok_or(Error::NoSuchGroup(id))?;
    Ok(descriptor.mark)
}

fn take_over<D: Dm>(
    kernel: &mut Conversation<D>,
    id: RegionId,
    mut descriptor: Descriptor,
    mark: Mark,
    claim: u32,
) -> Result<Group, Error> {
    if let (Some(mark), true) = (descriptor.mark, descriptor.claim == Some(claim)) {
        return Ok(Group { id, mark, claim }); // ours: to write it might undo a commit of ours
    }
    let mark = *descriptor.mark.get_or_insert(mark);
    descriptor.claim = Some(claim);
    kernel.set_aux(id, &descriptor.encode())?;
    Ok(Group { id, mark, claim })
}

/// The group whose mark has one of the keys, with the claim it has: who updates it once does not
/// take it over from who follows it.
///
/// # Errors
///
/// Those of the listing.
pub fn find(dm: impl Dm, device: Device, keys: &[u64]) -> Result<Option<Group>, Error> {
    let listing = Conversation::new(dm, device).list()?;
    let group = |region: &Region<'_>| {
        let descriptor = Descriptor::of(region)?;
        let mark = descriptor.mark.filter(|mark| keys.contains(&{ mark.key }))?;
        Some(Group { id: region.id, mark, claim: descriptor.claim.unwrap_or_default() })
    };
    Ok(parse_list(&listing)?.iter().find_map(group))
}

/// Finds or makes the group of a file: one that bears a mark with the same key; else one of the
/// same program_id and alias, without a mark, of which a member lies in `want` (LVM2 made it from
/// this file); else a new one, for which orphans of a cut attempt are used. Then updates it.
///
/// `None` if there is no such group and `want` is empty: a group is made from extents.
///
/// # Errors
///
/// As [`update`], and never [`Error::Gone`].
pub fn establish<'w>(
    dm: impl Dm,
    device: Device,
    template: &Template,
    mark: Mark,
    claim: u32,
    want: impl Into<Want<'w>>,
) -> Result<Option<Updated>, Error> {
    check_words(template)?;
    let mut kernel = Conversation::in_turn(dm, device, Turn::Shared)?;
    find_or_make(&mut kernel, template, mark, claim, want.into())
}

/// As [`establish`], and what regions that came and went had counted, if it came so far.
pub fn establish_counted<'w>(
    dm: impl Dm,
    device: Device,
    template: &Template,
    mark: Mark,
    claim: u32,
    want: impl Into<Want<'w>>,
) -> (Option<Passage>, Result<Option<Updated>, Error>) {
    let want = want.into();
    if let Err(error) = check_words(template) {
        return (None, Err(error));
    }
    watched(dm, device, |kernel| find_or_make(kernel, template, mark, claim, want))
}

fn find_or_make<D: Dm>(
    kernel: &mut Conversation<D>,
    template: &Template,
    mark: Mark,
    claim: u32,
    want: Want<'_>,
) -> Result<Option<Updated>, Error> {
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    let mut left = rows.iter().filter_map(|region| Mark::of_member(region.aux));
    let mark = left.rfind(|left| left.key == mark.key).unwrap_or(mark);
    if let Some((id, descriptor)) = found(&rows, template, mark.key, want.extents) {
        let group = take_over(kernel, id, descriptor, mark, claim)?;
        return carry_out(kernel, &Aim::at(group), None, want).map(Some);
    }
    if want.extents.is_empty() {
        return Ok(None);
    }
    let aim = Aim { mark, claim, hint: None, template: Some(template) };
    let updated = carry_out(kernel, &aim, Some(listing), want)?;
    Ok(Some(Updated { made: true, ..updated }))
}

/// The listing shows words bare. A blank in a program_id would spill into aux_data: half of the
/// group would belong to another program, on which `dmstats` crashes.
fn check_words(template: &Template) -> Result<(), Error> {
    let Template { program_id, alias, .. } = template;
    if program_id.iter().any(|&byte| is_space(byte)) {
        return Err(Error::Unlistable(program_id.clone()));
    }
    if !alias.is_empty() && !is_safe_alias(alias) {
        return Err(Error::Unlistable(alias.clone()));
    }
    Ok(())
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

/// Makes the regions of `group` cover exactly the extents that are wanted, and such gaps between
/// them as [limits](crate::shape::Limits) have it take in, if there are any.
///
/// Without anything to change it sends one message, the listing. Otherwise: one per create, and a
/// second listing after them; one per delete; one commit; one more for each region to delete that
/// bears no mark yet; one where an old leader survives the new; and where the leader's extent went
/// away and its id is taken back, five (four if the twin alone survived), one of them a create.
/// With limits also one for each region of which it matters whether it has counted anything.
///
/// # Errors
///
/// [`Error::Gone`] if no descriptor bears the mark any more, [`Error::TakenOver`] if it bears the
/// claim of another process; no region but those just created is touched in either case.
/// [`Error::NoTurn`] while somebody deletes orphans; nothing is sent then. If a create fails, what
/// this update had created is deleted again and the group is as it was.
pub fn update<'w>(
    dm: impl Dm,
    device: Device,
    group: Group,
    want: impl Into<Want<'w>>,
) -> Result<Updated, Error> {
    let mut kernel = Conversation::in_turn(dm, device, Turn::Shared)?;
    carry_out(&mut kernel, &Aim::at(group), None, want.into())
}

/// As [`update`], and what regions that came and went had counted, if it came so far.
///
/// It takes a message more for each member that is deleted, and one for each region that is created
/// where one was. Only here, where what they have counted is not lost, are regions folded before
/// that many are not allowed.
pub fn update_counted<'w>(
    dm: impl Dm,
    device: Device,
    group: Group,
    want: impl Into<Want<'w>>,
) -> (Option<Passage>, Result<Updated, Error>) {
    let want = want.into();
    watched(dm, device, |kernel| carry_out(kernel, &Aim::at(group), None, want))
}

/// Does something to a group, and gives what was counted by regions that came and went: whatever
/// became of it.
fn watched<D: Dm, T>(
    dm: D,
    device: Device,
    work: impl FnOnce(&mut Conversation<D>) -> Result<T, Error>,
) -> (Option<Passage>, Result<T, Error>) {
    let mut kernel = match Conversation::in_turn(dm, device, Turn::Shared) {
        Ok(kernel) => kernel,
        Err(error) => return (None, Err(error)),
    };
    kernel.watch();
    let outcome = work(&mut kernel);
    (kernel.passage(), outcome)
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

/// Looks at groups of one device with a single message. Gives how each stands, and how many regions
/// there are on the device, whoever made them.
///
/// # Errors
///
/// Those of the listing.
pub fn look(
    dm: impl Dm,
    device: Device,
    groups: &[Group],
) -> Result<(Vec<Standing>, usize), Error> {
    let listing = Conversation::new(dm, device).list()?;
    let all = parse_list(&listing)?;
    let rows = ByMark::new(&all);
    let stand = |group: &Group| {
        let near = rows.around(group.mark);
        Ours::among(&near, group.mark, Some(group.id)).stand(group.claim)
    };
    Ok((groups.iter().map(stand).collect(), all.len()))
}

/// A listing, so that not every group has to go through all of it.
struct ByMark<'a> {
    marked: HashMap<Mark, Vec<Region<'a>>>,
    others: Vec<Region<'a>>,
}

impl<'a> ByMark<'a> {
    fn new(rows: &[Region<'a>]) -> ByMark<'a> {
        let mut by_mark = ByMark { marked: HashMap::new(), others: Vec::new() };
        for row in rows {
            match Mark::of(row) {
                Some(mark) => by_mark.marked.entry(mark).or_default().push(*row),
                None => by_mark.others.push(*row),
            }
        }
        by_mark
    }

    /// The rows that bear the mark or are named by one that does, by rising id.
    fn around(&self, mark: Mark) -> Vec<Region<'a>> {
        let mut near = self.marked.get(&mark).cloned().unwrap_or_default();
        let named: Vec<_> = near.iter().filter_map(Descriptor::of).map(|it| it.members).collect();
        let is_named = |row: &&Region<'_>| named.iter().any(|members| members.contains(row.id));
        let found = near.iter().filter(is_named).count() as u64;
        if named.iter().any(|members| members.count() > found) {
            near.extend(self.others.iter().filter(is_named));
            near.sort_unstable_by_key(|row| row.id);
        }
        near
    }
}

/// Deletes the group and every region that bears its mark. Gives how many regions those were.
///
/// # Errors
///
/// [`Error::TakenOver`] if another process follows it now, and nothing is touched; those of the
/// messages, and what is left bears the mark, so that another try finds it.
pub fn remove(dm: impl Dm, device: Device, group: Group) -> Result<usize, Error> {
    take_down(&mut Conversation::in_turn(dm, device, Turn::Shared)?, group)
}

/// As [`remove`], and what the regions had counted, if it came so far.
pub fn remove_counted(
    dm: impl Dm,
    device: Device,
    group: Group,
) -> (Option<Passage>, Result<usize, Error>) {
    watched(dm, device, |kernel| take_down(kernel, group))
}

fn take_down<D: Dm>(kernel: &mut Conversation<D>, group: Group) -> Result<usize, Error> {
    kernel.turn_to(group.mark);
    let listing = kernel.list()?;
    let rows = parse_list(&listing)?;
    let ours = Ours::among(&rows, group.mark, Some(group.id));
    if ours.stand(group.claim) == Standing::TakenOver {
        return Err(Error::TakenOver);
    }
    let delta = Delta { delete: ours.regions.iter().map(|r| r.id).collect(), ..Delta::default() };
    ours.mark_doomed(kernel, &delta)?;
    ours.pass_on(kernel, &delta, &BTreeSet::new());
    ours.retire_and_clean(kernel, &BTreeSet::new(), &delta)?;
    Ok(kernel.deleted)
}

/// Which group an update is for.
struct Aim<'a> {
    mark: Mark,
    claim: u32,
    /// The id it had last.
    hint: Option<RegionId>,
    /// What to make it from if there is none.
    template: Option<&'a Template>,
}

impl Aim<'_> {
    fn at(Group { id, mark, claim }: Group) -> Aim<'static> {
        Aim { mark, claim, hint: Some(id), template: None }
    }
}

/// Listings after which an update gives up. One is enough if nothing is to be created, two if
/// nobody else is at work.
const ROUNDS: usize = 4;

fn carry_out<D: Dm>(
    kernel: &mut Conversation<D>,
    aim: &Aim<'_>,
    mut first: Option<Vec<u8>>,
    want: Want<'_>,
) -> Result<Updated, Error> {
    let anchor: Extents = Extent::new(ANCHOR, 1).into_iter().collect();
    let want = if want.extents.is_empty() { Want::from(&anchor) } else { want };
    kernel.turn_to(aim.mark);
    let mut decided = None;
    let mut created = BTreeSet::new();
    for _ in 0..ROUNDS {
        let listing = first.take().map_or_else(|| kernel.list(), Ok)?;
        let rows = parse_list(&listing)?;
        let ours = Ours::among(&rows, aim.mark, aim.hint);
        created.retain(|id| ours.is_orphan(*id)); // else somebody deleted it
        let planned = ours.model(aim).and_then(|model| {
            let shape = match decided.take() {
                Some(shape) => shape,
                None => shaping::shape(kernel, &ours, &model, &rows, want)?,
            };
            let delta = delta(&ours, &model, &rows, &shape)?;
            Ok((model, shape, delta))
        });
        let (model, shape, delta) = match planned {
            Ok(planned) => planned,
            Err(error) => return Err(take_back(kernel, &created, error)),
        };
        if delta.create.is_empty() {
            ours.mark_doomed(kernel, &delta)?;
            let members = commit(kernel, &rows, &ours, &model, &delta, &created)?;
            return Ok(updated(kernel, &model, &members, &shape.cover, want));
        }
        decided = Some(shape);
        for &extent in &delta.create {
            match kernel.create(extent, &model) {
                Ok(id) => created.insert(id),
                Err(error) => return Err(take_back(kernel, &created, error)),
            };
        }
    }
    Err(take_back(kernel, &created, Error::Disturbed))
}

/// What to do, with a descriptor that can be read at the end.
fn delta(
    ours: &Ours<'_, '_>,
    model: &Model<'_>,
    rows: &[Region<'_>],
    shape: &Shape,
) -> Result<Delta, Error> {
    let mut delta = ours.plan(model, shape);
    if ours.is_as(&delta) {
        return Ok(delta); // the descriptor is there, and was measured when it was made
    }
    let taken: Vec<RegionId> = rows.iter().map(|region| region.id).collect();
    let spare = ours.spare(&delta);
    match fit(&mut delta, &taken, spare, model.room()) {
        Ok(()) => Ok(delta),
        Err((needed, room)) => Err(Error::Scattered(needed, room)),
    }
}

/// Deletes what was created, as far as that goes: what stays behind bears the mark, and the next
/// update finds it.
fn take_back<D: Dm>(
    kernel: &mut Conversation<D>,
    created: &BTreeSet<RegionId>,
    error: Error,
) -> Error {
    created.iter().try_for_each(|id| kernel.delete(*id)).ok();
    error
}

/// All members exist: name them, and delete what is not one. Gives the members that it has in the
/// end.
fn commit<D: Dm>(
    kernel: &mut Conversation<D>,
    rows: &[Region<'_>],
    ours: &Ours<'_, '_>,
    model: &Model<'_>,
    delta: &Delta,
    created: &BTreeSet<RegionId>,
) -> Result<BTreeSet<RegionId>, Error> {
    let mut members: BTreeSet<RegionId> = delta.keep.iter().map(|(id, _)| *id).collect();
    let leader = *members.first().expect("the wanted map is never empty, so there is a member");
    let aux = model.naming(&members);
    if row(rows, leader).is_none_or(|region| region.aux != aux) {
        match kernel.set_aux(leader, &aux) {
            // It is gone since the listing: nothing was named, nothing will be.
            Err(error) if error.is_no_region() => return Err(take_back(kernel, created, error)),
            outcome => outcome?,
        }
    }
    ours.pass_on(kernel, delta, created);
    ours.retire_and_clean(kernel, &members, delta)?;

    let lost = ours.leader.map(|old| old.id).filter(|old| *old < leader);
    let twin = delta.keep.iter().filter(|(id, _)| created.contains(id)).max();
    if let Some((old, twin)) = lost.zip(twin) {
        reclaim(kernel, old, *twin, &mut members, model)?;
    }
    Ok(members)
}

fn updated<D: Dm>(
    kernel: &Conversation<D>,
    model: &Model<'_>,
    members: &BTreeSet<RegionId>,
    cover: &Extents,
    want: Want<'_>,
) -> Updated {
    let id = *members.first().expect("a group has members");
    let mapped = cover.as_slice().iter().copied().filter(|extent| extent.start() != ANCHOR);
    Updated {
        group: model.group(id),
        members: members.len(),
        created: kernel.created,
        deleted: kernel.deleted,
        foreign: cover.sectors() - want.extents.sectors(),
        fingerprint: mapped.collect::<Extents>().fingerprint(),
        made: false,
        descriptor_len: model.naming(members).len() + id.to_string().len(),
    }
}

/// Moves the group back to id `old`, which has just become free, by creating the region `twin`
/// there once more. If there is no room for it, or somebody else gets the id, the group is whole
/// all the same, under the id it has.
fn reclaim<D: Dm>(
    kernel: &mut Conversation<D>,
    old: RegionId,
    twin: (RegionId, Extent),
    members: &mut BTreeSet<RegionId>,
    model: &Model<'_>,
) -> Result<(), Error> {
    let id = match kernel.create_at_once(twin.1, model) {
        Ok(id) => id,
        Err(error @ Error::Message { .. }) if !error.is_no_device() => return Ok(()),
        Err(error) => return Err(error),
    };
    let survivor = *members.first().expect("a group has members");
    let named = model.naming(members);
    let listing = kernel.list()?; // the create may have taken long
    let rows = parse_list(&listing)?;
    let in_place = |id: RegionId, aux: &[u8]| row(&rows, id).is_some_and(|row| row.aux == aux);
    if !in_place(id, model.mark().to_string().as_bytes()) {
        return Err(Error::Disturbed);
    }
    if id != old || !in_place(survivor, &named) {
        return kernel.delete(id);
    }
    members.remove(&twin.0);
    members.insert(id);
    kernel.set_aux(id, &model.naming(members))?;
    if survivor != twin.0 {
        kernel.set_aux(survivor, model.mark().to_string().as_bytes())?;
    }
    kernel.ends(twin.0, twin.1, model.clockwork);
    kernel.begins(id, twin.1, model.clockwork);
    kernel.delete(twin.0)
}
