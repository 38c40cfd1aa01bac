//! Where the areas are, and how large.
//!
//! The best is the whole device, in areas that are small against the files: then nothing has to be
//! known of a file before its I/O, and nothing moves. Where the memory does not go so far, there
//! are several regions around the followed files, with room where those grow.

use crate::extent::{Extent, Extents};

/// Kernel memory of an area, and of it once more for each CPU: `struct dm_stat_shared` and
/// `struct dm_stat_percpu`.
const AREA_BYTES: u64 = 120;
const AREA_PER_CPU_BYTES: u64 = 104;

/// Kernel memory of a region without its areas: `struct dm_stat` and a pointer for each CPU that
/// the kernel was built for. That number cannot be asked for; distributions build for 8,192.
const REGION_BYTES: u64 = 128 + 8 * 8192;

/// A file is exact enough if an area is no larger than this part of it.
const PARTS: u64 = 10;

/// Sectors of an area that is fine enough for any file, if all of the device is counted for that: a
/// file that grows is counted wherever it goes. 1 MiB.
const FINE: u64 = 2048;

/// Room beside an extent: this part of its length, and no less than so many areas.
const ROOM_PART: u64 = 4;
const ROOM_AREAS: u64 = 16;

/// So much finer must the areas become for that alone to be worth moving them.
const FINER: u64 = 4;

/// What a grid may cost, and how fine it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Kernel memory, in bytes.
    pub bytes: u64,
    /// CPUs that the machine may have; each has counters of its own.
    pub cpus: u64,
    /// Areas: each is read each time.
    pub areas: u64,
    /// Regions: each costs every I/O of the device a little.
    pub regions: usize,
    /// Sectors of the smallest area there is to be.
    pub finest: u64,
}

/// A region of many areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// What it counts.
    pub extent: Extent,
    /// Sectors of an area; the last may be shorter.
    pub step: u64,
}

/// How a grid is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The patches that go, by their place among those there are.
    pub delete: Vec<usize>,
    /// Those that come.
    pub create: Vec<Patch>,
}

impl Patch {
    /// How many areas it has.
    #[must_use]
    pub fn areas(&self) -> u64 {
        self.extent.len().div_ceil(self.step)
    }
}

impl Limits {
    /// Kernel memory that the patches take, in bytes.
    #[must_use]
    pub fn bytes_of(&self, patches: &[Patch]) -> u64 {
        let area = AREA_PER_CPU_BYTES.saturating_mul(self.cpus).saturating_add(AREA_BYTES);
        let bytes = |patch: &Patch| patch.areas().saturating_mul(area).saturating_add(REGION_BYTES);
        patches.iter().fold(0, |sum: u64, patch| sum.saturating_add(bytes(patch)))
    }

    /// Whether there is room for them.
    #[must_use]
    pub fn allow(&self, patches: &[Patch]) -> bool {
        let areas = patches.iter().fold(0, |sum: u64, patch| sum.saturating_add(patch.areas()));
        patches.len() <= self.regions && areas <= self.areas && self.bytes_of(patches) <= self.bytes
    }

    fn finest(&self) -> u64 {
        self.finest.clamp(1, 1 << 62).next_power_of_two()
    }

    /// The size of area that makes every file exact, but those that are too small for that.
    fn wanted(&self, files: &[&Extents]) -> u64 {
        let finest = self.finest();
        let sizes = files.iter().map(|map| map.sectors() / PARTS).filter(|part| *part >= finest);
        sizes.min().map_or(finest, |part| 1 << part.ilog2())
    }

    /// Whether areas of so many sectors all over the device are better than finer ones around
    /// the files.
    fn suffice(&self, step: u64, files: &[&Extents]) -> bool {
        step <= FINE.max(self.wanted(files))
    }
}

/// The grid for files on a device of so many sectors; empty where the limits allow none.
#[must_use]
pub fn layout(sectors: u64, files: &[&Extents], limits: &Limits) -> Vec<Patch> {
    let Some(device) = Extent::new(0, sectors) else { return Vec::new() };
    let allowed = |patches: &[Patch]| limits.allow(patches);
    let whole =
        finest(limits.finest(), device, |step| vec![Patch { extent: device, step }], allowed);
    let coarse = whole.first().map_or(u64::MAX, |patch| patch.step);
    let all: Extents = files.iter().flat_map(|map| map.as_slice()).copied().collect();
    if all.is_empty() || limits.suffice(coarse, files) {
        return whole;
    }
    let around = around(&all, &Extents::default(), device, limits, allowed);
    let finer = around.first().is_some_and(|patch| patch.step < coarse);
    if finer { around } else { whole }
}

/// How the grid is to be changed now that the files lie there and the device has so many sectors;
/// `None` if it may stay. The grid that there is need not be one that was planned here.
///
/// A change stops the device's I/O for a moment and makes the moment of its own counts uncertain.
/// So there is one only where a file has outgrown the grid, or where another would be much finer;
/// and where it will do, patches are added and none is moved.
#[must_use]
pub fn revise(have: &[Patch], sectors: u64, files: &[&Extents], limits: &Limits) -> Option<Change> {
    let anew = layout(sectors, files, limits);
    if anew.is_empty() && have.is_empty() {
        return None;
    }
    let taken: Extents = have.iter().map(|patch| patch.extent).collect();
    let replaced = |create| Some(Change { delete: (0..have.len()).collect(), create });
    if taken.sectors() < have.iter().map(|patch| patch.extent.len()).sum() {
        return replaced(anew); // overlapping patches would count twice
    }
    let coarsest = |patches: &[Patch]| patches.iter().map(|patch| patch.step).max();
    let (step, finer) = (coarsest(have).unwrap_or(u64::MAX), coarsest(&anew).unwrap_or(u64::MAX));
    if !limits.suffice(step, files) && finer <= step / FINER {
        return replaced(anew);
    }
    let outside = outside(&taken, sectors, files);
    if outside.is_empty() || covers_as_little(&taken, &anew, files) {
        return None;
    }
    let added = add(have, &taken, &outside, sectors, limits);
    match added.is_empty() {
        true => replaced(anew),
        false => Some(Change { delete: Vec::new(), create: added }),
    }
}

/// What of the files the grid has to take in: nothing, unless it misses too much of one of them.
fn outside(taken: &Extents, sectors: u64, files: &[&Extents]) -> Extents {
    let device: Extents = Extent::new(0, sectors).into_iter().collect();
    let missed = |map: &&&Extents| map.without(taken).sectors() > map.sectors() / PARTS;
    if !files.iter().any(|map| missed(&map)) {
        return Extents::default();
    }
    let beyond: Extents = files.iter().flat_map(|map| map.as_slice()).copied().collect();
    // A map may tell of a device that has grown since its size was asked for.
    let off = beyond.without(&device);
    beyond.without(taken).without(&off)
}

/// Whether a new grid would take in no more of the files than the old one: they do not fit.
fn covers_as_little(taken: &Extents, anew: &[Patch], files: &[&Extents]) -> bool {
    let new: Extents = anew.iter().map(|patch| patch.extent).collect();
    let missed = |grid: &Extents| files.iter().map(|map| map.without(grid).sectors()).sum::<u64>();
    missed(taken) <= missed(&new)
}

/// Patches for what is outside, beside those there are; none if there is no room for ones that are
/// about as fine.
fn add(
    have: &[Patch],
    taken: &Extents,
    outside: &Extents,
    sectors: u64,
    limits: &Limits,
) -> Vec<Patch> {
    let Some(device) = Extent::new(0, sectors) else { return Vec::new() };
    let Some(step) = have.iter().map(|patch| patch.step).max() else { return Vec::new() };
    let allowed = |patches: &[Patch]| limits.allow(&[have, patches].concat());
    let added = around(outside, taken, device, limits, allowed);
    let as_fine = added.iter().all(|patch| patch.step < step.saturating_mul(FINER));
    if as_fine { added } else { Vec::new() }
}

/// Patches around the extents and outside of what is taken: as fine as can be, and of those as few
/// as can be.
fn around(
    map: &Extents,
    taken: &Extents,
    device: Extent,
    limits: &Limits,
    allowed: impl Fn(&[Patch]) -> bool + Copy,
) -> Vec<Patch> {
    let mut best: Vec<Patch> = Vec::new();
    for regions in 1..=limits.regions.min(map.len()) {
        let spans = joined(map, regions);
        let make = |step| roomy(&spans, taken, device, step);
        let patches = finest(limits.finest(), device, make, allowed);
        let finer = |best: &Patch| patches.first().is_some_and(|patch| patch.step < best.step);
        if best.first().is_none_or(finer) {
            best = patches;
        }
    }
    best
}

/// What `make` makes of the smallest step that is allowed; nothing if none is.
fn finest(
    finest: u64,
    device: Extent,
    make: impl Fn(u64) -> Vec<Patch>,
    allowed: impl Fn(&[Patch]) -> bool,
) -> Vec<Patch> {
    let mut step = finest;
    loop {
        let patches = make(step);
        if allowed(&patches) {
            return patches;
        }
        if step >= device.len() {
            return Vec::new(); // one area each is too many
        }
        step = step.saturating_mul(2);
    }
}

/// The extents, joined across the smallest gaps until there are no more than so many.
fn joined(map: &Extents, most: usize) -> Vec<Extent> {
    let extents = map.as_slice();
    let mut gaps: Vec<(u64, usize)> = extents
        .windows(2)
        .enumerate()
        .map(|(at, pair)| (pair[1].start() - pair[0].end(), at))
        .collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    let mut cuts: Vec<usize> = gaps.iter().take(most.saturating_sub(1)).map(|gap| gap.1).collect();
    cuts.sort_unstable();
    let (mut spans, mut from) = (Vec::new(), 0);
    for cut in cuts.into_iter().chain(extents.len().checked_sub(1)) {
        spans.extend(Extent::between(extents[from].start(), extents[cut].end()));
        from = cut + 1;
    }
    spans
}

/// Patches around the spans, with room on either side, whose areas begin at multiples of the step
/// unless something else is there.
fn roomy(spans: &[Extent], taken: &Extents, device: Extent, step: u64) -> Vec<Patch> {
    let widened = |span: &Extent| {
        let room = (span.len() / ROOM_PART).max(step.saturating_mul(ROOM_AREAS));
        let start = span.start().saturating_sub(room) / step * step;
        let end = span.end().saturating_add(room).div_ceil(step).saturating_mul(step);
        Extent::between(start, end.min(device.end()))
    };
    let wide: Extents = spans.iter().filter_map(widened).collect();
    let free = wide.without(taken);
    free.as_slice().iter().map(|extent| Patch { extent: *extent, step }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 2048;
    const GIB: u64 = 1024 * MIB;

    fn limits(kib: u64) -> Limits {
        Limits { bytes: kib << 10, cpus: 1, areas: 1 << 16, regions: 8, finest: 128 }
    }

    fn map(extents: &[(u64, u64)]) -> Extents {
        extents.iter().filter_map(|(start, len)| Extent::new(*start, *len)).collect()
    }

    #[test]
    fn a_device_that_fits_is_one_region() {
        let file = map(&[(GIB / 4, 64 * MIB)]);
        let one = |step| vec![Patch { extent: Extent::new(0, GIB / 2).unwrap(), step }];
        assert_eq!(layout(GIB / 2, &[&file], &limits(2048)), one(128), "8,192 areas of 64 KiB");
        assert_eq!(layout(GIB / 2, &[&file], &limits(513)), one(512), "2,048");
        assert_eq!(layout(GIB / 2, &[], &limits(80)), one(16_384), "there is no file");
        assert_eq!(layout(GIB / 2, &[&file], &limits(64)), [], "not even a region");
        assert_eq!(layout(0, &[&file], &limits(2048)), []);
    }

    #[test]
    fn a_device_that_does_not_fit_is_counted_around_the_files() {
        let (one, two) = (map(&[(100 * GIB, 64 * MIB)]), map(&[(900 * GIB, 64 * MIB)]));
        let patches = layout(1024 * GIB, &[&one, &two], &limits(4096));
        assert_eq!(patches.len(), 2, "{patches:?}");
        for (patch, file) in patches.iter().zip([&one, &two]) {
            assert!(patch.extent.contains(file.as_slice()[0]) && patch.step <= 64 * MIB / 10);
            assert!(patch.extent.end() >= file.as_slice()[0].end() + 16 * MIB, "room to grow");
        }
        let coarse = layout(1024 * GIB, &[&map(&[(0, 800 * GIB)])], &limits(4096));
        assert_eq!(coarse.len(), 1, "a large file needs no small areas");
        assert_eq!(coarse[0].extent.len(), 1024 * GIB);
    }

    #[test]
    fn a_grid_stays_until_a_file_outgrows_it_and_then_grows_itself() {
        let file = map(&[(100 * GIB, 64 * MIB)]);
        let have = layout(1024 * GIB, &[&file], &limits(4096));
        let grown = map(&[(100 * GIB, 64 * MIB + 12 * MIB)]);
        assert_eq!(revise(&have, 1024 * GIB, &[&grown], &limits(4096)), None);
        let elsewhere = map(&[(100 * GIB, 64 * MIB), (500 * GIB, 6 * MIB)]);
        assert_eq!(revise(&have, 1024 * GIB, &[&elsewhere], &limits(4096)), None, "a tenth");
        let outgrown = map(&[(100 * GIB, 64 * MIB), (500 * GIB, 64 * MIB)]);
        let wide = Limits { bytes: 16 << 20, ..limits(0) };
        let change = revise(&have, 1024 * GIB, &[&outgrown], &wide).unwrap();
        assert_eq!((change.delete.len(), change.create.len()), (0, 1));
        let full = Limits { bytes: wide.bytes_of(&have), ..wide };
        let change = revise(&have, 1024 * GIB, &[&outgrown], &full).unwrap();
        assert_eq!((change.delete, change.create.len()), (vec![0], 2));
    }

    #[test]
    fn a_device_that_grew_has_the_new_part_added_when_a_file_is_there() {
        let have = layout(GIB, &[], &limits(8192));
        assert_eq!(revise(&have, 2 * GIB, &[], &limits(8192)), None);
        let file = map(&[(GIB - MIB, 100 * MIB)]);
        let change = revise(&have, 2 * GIB, &[&file], &limits(8192)).unwrap();
        assert!(change.delete.is_empty());
        assert_eq!(change.create[0].extent.start(), GIB);
    }

    fn any_map() -> impl Strategy<Value = Extents> {
        let extent = (0..90_u64 * MIB, 1..12_u64 * MIB);
        let some = prop::collection::vec(extent, 0..5);
        some.prop_map(|all| map(&all))
    }

    fn any_limits() -> impl Strategy<Value = Limits> {
        let costs = (0..2_u64 << 20, 1..9_u64, 0..9000_u64);
        (costs, 0..5_usize, 0..9_u32).prop_map(|((bytes, cpus, areas), regions, finest)| Limits {
            bytes,
            cpus,
            areas,
            regions,
            finest: 1 << finest,
        })
    }

    fn is_sound(patches: &[Patch]) -> bool {
        let apart = |pair: &[Patch]| pair[0].extent.end() <= pair[1].extent.start();
        let mut sorted = patches.to_vec();
        sorted.sort_by_key(|patch| patch.extent);
        sorted.windows(2).all(apart) && sorted.iter().all(|p| p.extent.end() <= 100 * MIB)
    }

    proptest! {
        #[test]
        fn a_grid_keeps_the_limits_and_takes_in_every_file(
            files in prop::collection::vec(any_map(), 0..4),
            limits in any_limits(),
        ) {
            let files: Vec<&Extents> = files.iter().collect();
            let patches = layout(100 * MIB, &files, &limits);
            prop_assert!(patches.is_empty() || limits.allow(&patches), "{patches:?}");
            prop_assert!(is_sound(&patches), "{patches:?}");
            prop_assert!(patches.iter().all(|patch| patch.step >= limits.finest));
            let taken: Extents = patches.iter().map(|patch| patch.extent).collect();
            let device = map(&[(0, 100 * MIB)]);
            let off = |map: &Extents| map.without(&device);
            let inside = |map: &&Extents| map.without(&off(map)).without(&taken).is_empty();
            prop_assert!(patches.is_empty() || files.iter().all(inside));
        }

        #[test]
        fn a_change_keeps_the_limits_and_is_followed_by_none(
            before in prop::collection::vec(any_map(), 0..4),
            after in prop::collection::vec(any_map(), 0..4),
            limits in any_limits(),
        ) {
            let before: Vec<&Extents> = before.iter().collect();
            let mut patches = layout(100 * MIB, &before, &limits);
            prop_assert_eq!(revise(&patches, 100 * MIB, &before, &limits), None);
            let after: Vec<&Extents> = after.iter().collect();
            let Some(change) = revise(&patches, 100 * MIB, &after, &limits) else { return Ok(()) };
            for at in change.delete.iter().rev() {
                patches.remove(*at);
            }
            patches.extend(change.create);
            prop_assert!(limits.allow(&patches) && is_sound(&patches), "{patches:?}");
            prop_assert_eq!(revise(&patches, 100 * MIB, &after, &limits), None);
        }
    }
}
