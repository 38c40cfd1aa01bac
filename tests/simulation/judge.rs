//! What the table has to show, read by rules that are not ours.

use std::collections::{BTreeMap, BTreeSet};

use dmfilemapd::dm::{Device, Dm as _};
use dmfilemapd::engine::State;
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::shape::{Limits, Want};
use dmfilemapd::update::{ANCHOR, Updated};

use super::dialects::{Group as Seen, Reader, groups, rows};
use super::table::key_in;
use super::world::World;

/// What a group counts, the anchor left out.
fn counted(group: &Seen) -> Extents {
    let extents = group.extents.iter().filter(|(start, _)| *start != ANCHOR);
    extents.map(|(start, end)| Extent::new(*start, end - start).unwrap()).collect()
}

/// A group may count more than its file has, where that has more extents than regions are allowed:
/// the smallest gaps, and no more of them than for an eighth fewer regions.
fn check_map(group: &Seen, map: &Extents, limits: Limits) {
    let (shown, regions, max) = (counted(group), group.members.len(), limits.max());
    let told = || format!("{map:?} as {:?}, {limits:?}", group.extents);
    assert!(regions <= max, "{}", told());
    assert!(map.without(&shown).is_empty(), "{}", told());
    let gaps = map.as_slice().windows(2).map(|pair| pair[1].start() - pair[0].end());
    let mut gaps: Vec<u64> = gaps.collect();
    gaps.sort_unstable();
    let filled = map.len().saturating_sub((max - max / 8).max(1));
    let foreign = shown.sectors() - map.sectors();
    assert!(foreign <= gaps[..filled].iter().sum(), "{}", told());
    if let Some(above) = limits.fold_above {
        // The files here are so small that no two regions of one differ by more powers of two.
        let most = shown.len().max(1) + above as usize + 5;
        assert!(regions <= most, "{}", told());
    }
}

impl World {
    /// The group whose mark begins so; it is the only one, and whole: nothing of it is left over.
    fn group(&mut self, device: Device, key: u64, nonce: Option<u32>) -> Option<(u32, Seen)> {
        let listing = self.table.listing(device)?;
        let text = String::from_utf8_lossy(&listing);
        let found = groups(Reader::New, &listing).unwrap_or_else(|why| panic!("{why}\n{text}"));
        groups(Reader::Old, &listing).unwrap_or_else(|why| panic!("{why}\n{text}"));
        let ours = |group: &&Seen| key_in(&group.user) == Some(key);
        assert!(found.values().filter(ours).count() <= 1, "two groups of {key:x}\n{text}");
        let (id, group) = found.iter().find(|(_, group)| ours(group))?;
        let sum: u64 = group.extents.iter().map(|(start, end)| end - start).sum();
        let anchored = group.extents.iter().filter(|(start, _)| *start == ANCHOR).count() as u64;
        assert_eq!(sum - anchored, counted(group).sectors(), "counted twice\n{text}");
        let mark = String::from_utf8_lossy(&group.user).into_owned();
        let mark =
            nonce.map_or(mark[..29].to_owned(), |nonce| format!("fm={key:016x}.{nonce:08x}."));
        for row in rows(&listing).unwrap() {
            let member = group.members.contains(&row.id);
            let marked = String::from_utf8_lossy(row.tail).contains(&mark);
            assert!(member || !marked, "region {} of {key:x} is left over\n{text}", row.id);
        }
        Some((*id, group.clone()))
    }

    /// After an update: the group is there and shows the map, within its limits.
    pub fn check_shown(&mut self, device: Device, updated: &Updated, want: Want<'_>) {
        let group = updated.group;
        if self.table.vandalised {
            return;
        }
        self.table.broken.retain(|broken| *broken != (device, group.mark.key));
        let Some(listing) = self.table.listing(device) else { return };
        if groups(Reader::Old, &listing).is_err() || groups(Reader::New, &listing).is_err() {
            return; // somebody spoiled another group, which is not yet found out
        }
        let (id, seen) = self.group(device, group.mark.key, Some(group.mark.nonce)).expect("made");
        check_map(&seen, want.extents, want.limits);
        let shown = counted(&seen);
        assert_eq!((id, shown.fingerprint()), (group.id.0, updated.fingerprint));
        assert_eq!(updated.foreign, shown.sectors() - want.extents.sectors());
    }

    /// Every file that is followed has its group, which shows its map, and is not in trouble.
    pub fn judge(&mut self) -> usize {
        let service = self.service.as_ref().expect("it runs in the calm");
        let claim = service.claim;
        let followed: Vec<_> =
            service.files.iter().map(|(file, entry)| (*file, entry.clone())).collect();
        let mut own: BTreeMap<Device, u64> = BTreeMap::new();
        for (file, entry) in &followed {
            let status = self.service.as_ref().and_then(|service| {
                let status = service.engine.file_status(self.time(), *file)?;
                let state = (status.state, status.failing.map(str::to_owned));
                Some((state, status.max_regions, u64::from(status.regions)))
            });
            let (state, max_regions, regions) = status.expect("it is followed");
            assert_eq!(state, (State::Following, None), "{file:?} {entry:?}");
            *own.entry(entry.device).or_default() += regions;
            let limits = Limits { max_regions, ..self.names[entry.name].limits };
            let (disk, inode) = match self.find(entry.target) {
                Ok(place) => place,
                Err(sight) => panic!("{file:?} {entry:?} is followed still, and {sight:?}"),
            };
            assert_eq!(self.disks[disk].device, entry.device, "{file:?} {entry:?}");
            let map = self.disks[disk].inodes[inode].map();
            let Some((_, group)) = self.group(entry.device, entry.mark.key, None) else {
                assert!(map.is_empty(), "{file:?} {entry:?} has no group, and {map:?}");
                continue;
            };
            check_map(&group, &map, limits);
            assert_eq!(group.members.len() as u64, regions, "{file:?} {entry:?}");
            let claim = format!(".{claim:08x}.");
            assert!(group.user.ends_with(claim.as_bytes()), "{:?}", group.user.escape_ascii());
        }
        self.judge_devices(&own);
        followed.len()
    }

    /// All groups of a device have no more regions than allowed, as far as each may have one.
    fn judge_devices(&self, own: &BTreeMap<Device, u64>) {
        let service = self.service.as_ref().expect("it runs in the calm");
        for status in service.engine.device_statuses() {
            let regions = own.get(&status.device).copied().unwrap_or(0);
            let max = u64::from(self.max_device_regions).max(status.files as u64);
            assert!(regions <= max, "{regions} regions on {}, {max} allowed", status.device);
            assert_eq!(status.own_regions, regions);
        }
    }

    /// No region bears a mark of ours and stands in no group.
    pub fn judge_orphans(&mut self) {
        for at in 0..self.disks.len() {
            let Some(listing) = self.table.listing(self.disks[at].device) else { continue };
            let groups = groups(Reader::New, &listing).unwrap();
            let named: BTreeSet<u32> = groups.into_values().flat_map(|g| g.members).collect();
            for row in rows(&listing).unwrap() {
                let orphan = row.aux().starts_with(b"fm=") && !named.contains(&row.id);
                assert!(!orphan, "{}", row.line.escape_ascii());
            }
        }
    }

    /// An administrator takes down the groups that nobody follows: nobody mends them either.
    pub fn sweep_up(&mut self) {
        for at in 0..self.disks.len() {
            let device = self.disks[at].device;
            let listing = self.table.listing(device).unwrap_or_default();
            for row in rows(&listing).unwrap() {
                let followed = |key| self.service.as_ref().unwrap().follows_key(device, key);
                if row.aux().starts_with(b"DMS_GROUP") && !key_in(row.tail).is_some_and(followed) {
                    let text = format!("@stats_set_aux {} -", row.id);
                    self.table.memory.message(device, text.as_bytes()).unwrap();
                }
            }
        }
    }

    /// Every path that is wanted and leads to a file is followed.
    pub fn judge_completeness(&self) {
        for (name, path) in self.names.iter().enumerate() {
            let Some(place) = path.at.filter(|(disk, _)| self.disks[*disk].mounted) else {
                continue;
            };
            let (device, key) = (self.disks[place.0].device, self.key(name, place));
            let service = self.service.as_ref().expect("it runs in the calm");
            assert!(
                !path.wanted || service.follows_key(device, key),
                "path {name} is not followed"
            );
        }
    }
}
