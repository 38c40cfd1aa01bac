//! The kernel's statistics in memory: the same text in, the same text and errno out.
//!
//! For `--dry-run`, the tests and the benches. `tests/differential.rs` holds it to a real kernel
//! (6.1, 64 bits), message by message, the odd ones included: everything above [`Dm`] is exercised
//! here, so what is kinder than the kernel here is a fault that only users would find.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};

use nix::errno::Errno;

use crate::dm::{Device, Dm, Label, Reply};
use crate::extent::Extent;
use crate::kernel::control::CREATE_MAX;
use crate::message::{self, RegionId, is_space};

/// Bytes in the longest word that the kernel can copy: `kstrdup()` adds a NUL, and `kmalloc()`
/// ends at 4 MiB.
const WORD_MAX: usize = (4 << 20) - 1;

/// Bytes of the kernel's `struct dm_stat`, `dm_stat_shared` and `dm_stat_percpu`: a region, an
/// area, and an area once more for each CPU; here there is one CPU.
const REGION_BYTES: u64 = 128 + 8;
const AREA_BYTES: u64 = 120;
const AREA_PER_CPU_BYTES: u64 = 104;

/// Statistics tables of any number of devices.
///
/// Unlike the kernel it knows neither time nor I/O: time counters stay zero, and the others count
/// what [`Memory::io`] is told.
#[derive(Clone, Debug)]
pub struct Memory {
    tables: BTreeMap<Device, Table>,
    regions_max: usize,
    bytes_max: u64,
    bytes: u64,
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl Memory {
    /// No devices yet, and room for regions as on a machine with 4 GiB of memory.
    pub fn new() -> Memory {
        Memory { tables: BTreeMap::new(), regions_max: usize::MAX, bytes_max: 1 << 30, bytes: 0 }
    }

    /// Adds a device of `sectors` sectors without regions, in place of one with that number.
    pub fn add_device(
        &mut self,
        device: Device,
        sectors: u64,
        name: impl Into<Vec<u8>>,
        uuid: impl Into<Vec<u8>>,
    ) {
        self.remove_device(device);
        self.tables.insert(device, Table::new(sectors, name.into(), uuid.into()));
    }

    /// Removes a device and its regions; messages to it then fail with `ENXIO`.
    pub fn remove_device(&mut self, device: Device) {
        let regions = self.tables.remove(&device).map(|table| table.regions).unwrap_or_default();
        self.bytes -= regions.values().map(Region::bytes).sum::<u64>();
    }

    /// Puts a row of a listing into the table under the id it has there, in place of what had it.
    ///
    /// # Errors
    ///
    /// As for a `@stats_create` of such a region.
    pub fn insert(&mut self, device: Device, row: &message::Region<'_>) -> io::Result<()> {
        let region = Region {
            start: row.extent.start(),
            end: row.extent.end(),
            step: row.step,
            precise: row.clockwork.precise,
            bounds: match row.clockwork.bounds {
                [] => Vec::new(),
                bounds => parse_bounds(bounds)?,
            },
            program_id: row.program_id.to_vec(),
            aux: row.aux.to_vec(),
            counters: BTreeMap::new(),
        };
        if row.id > RegionId::MAX || region.step == 0 {
            return Err(Errno::EINVAL.into());
        }
        self.check_room(&region)?;
        let table = self.tables.get_mut(&device).ok_or(Errno::ENXIO)?;
        self.bytes += region.bytes();
        table.free.take(row.id.0);
        let old = table.regions.insert(row.id.0, region);
        self.bytes -= old.map_or(0, |old| old.bytes());
        Ok(())
    }

    /// Lets `@stats_create` fail with `ENOMEM` on a device that has so many regions or more.
    pub fn set_regions_max(&mut self, regions_max: usize) {
        self.regions_max = regions_max;
    }

    /// Lets `@stats_create` fail with `ENOMEM` where the regions of all devices together would
    /// take more bytes of kernel memory. The kernel's limit is a quarter of the machine's memory:
    /// `__check_shared_memory()`.
    pub fn set_bytes_max(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
    }

    /// Kernel memory that the regions of all devices account for, in bytes, on a kernel built for
    /// one CPU: the module parameter `stats_current_allocated_bytes`.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts one I/O that took no time, as `dm_stats_account_io()` does: one read or write and
    /// the sectors in common, for each area it touches. Does nothing on an unknown device.
    pub fn io(&mut self, device: Device, extent: Extent, write: bool) {
        let Some(table) = self.tables.get_mut(&device) else { return };
        for region in table.regions.values_mut() {
            region.io(extent, write);
        }
    }

    /// The first half of `dm_stats_create()`: looks for room.
    fn check_room(&self, region: &Region) -> Result<(), Errno> {
        let needed = region.bytes_needed().ok_or(Errno::EOVERFLOW)?;
        let room = self.bytes_max.saturating_sub(self.bytes);
        if needed <= room { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// `message_for_md()` and `dm_stats_message()`: finds the message by its first word.
    fn run(&mut self, device: Device, text: &[u8]) -> Result<Vec<u8>, Errno> {
        let words = split_args(text);
        let (keyword, args) = words.split_first().ok_or(Errno::EINVAL)?;
        let table = self.tables.get_mut(&device).ok_or(Errno::ENXIO)?;
        match keyword.to_ascii_lowercase().as_slice() {
            b"@stats_create" if text.len() > CREATE_MAX => Err(Errno::ENOMEM), // as `Control`
            b"@stats_create" => self.create(device, args),
            b"@stats_delete" => self.delete(device, args),
            b"@stats_clear" => table.clear(args),
            b"@stats_list" => table.list(args),
            b"@stats_print" => table.print(args, false),
            b"@stats_print_clear" => table.print(args, true),
            b"@stats_set_aux" => table.set_aux(args),
            b"@cancel_deferred_remove" if args.is_empty() => Ok(Vec::new()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `message_stats_create()`
    fn create(&mut self, device: Device, args: &[Vec<u8>]) -> Result<Vec<u8>, Errno> {
        let table = self.tables.get(&device).ok_or(Errno::ENXIO)?;
        let region = Region::parse(args, table.sectors)?;
        self.check_room(&region)?;
        let table = self.tables.get_mut(&device).ok_or(Errno::ENXIO)?;
        if table.regions.len() >= self.regions_max {
            return Err(Errno::ENOMEM);
        }
        let id = table.free.lowest().ok_or(Errno::ENFILE)?;
        table.free.take(id);
        self.bytes += region.bytes();
        table.regions.insert(id, region);
        Ok(id.to_string().into_bytes())
    }

    /// `message_stats_delete()`
    fn delete(&mut self, device: Device, args: &[Vec<u8>]) -> Result<Vec<u8>, Errno> {
        let [id] = args else { return Err(Errno::EINVAL) };
        let id = region_id(id)?;
        let table = self.tables.get_mut(&device).ok_or(Errno::ENXIO)?;
        let region = table.regions.remove(&id).ok_or(Errno::ENOENT)?;
        table.free.put(id);
        self.bytes -= region.bytes();
        Ok(Vec::new())
    }
}

impl Dm for Memory {
    fn message(&mut self, device: Device, text: &[u8]) -> io::Result<Reply> {
        // In the order of `target_message()`: the device first.
        let table = self.tables.get(&device).ok_or(Errno::ENXIO)?;
        let (name, uuid) = (table.name.clone(), table.uuid.clone());
        if text.contains(&0) {
            return Err(Errno::EINVAL.into()); // as `Control`
        }
        Ok(Reply { label: Label { name, uuid }, text: self.run(device, text)? })
    }

    fn message_to(&mut self, device: Device, uuid: &[u8], text: &[u8]) -> io::Result<Reply> {
        match self.tables.get(&device) {
            Some(table) if table.uuid == uuid => self.message(device, text),
            _ => Err(Errno::ENXIO.into()),
        }
    }
}

/// The regions of one device: `struct dm_stats`.
#[derive(Clone, Debug)]
struct Table {
    name: Vec<u8>,
    uuid: Vec<u8>,
    sectors: u64,
    regions: BTreeMap<u32, Region>,
    free: FreeIds,
}

impl Table {
    fn new(sectors: u64, name: Vec<u8>, uuid: Vec<u8>) -> Table {
        Table { name, uuid, sectors, regions: BTreeMap::new(), free: FreeIds::all() }
    }

    fn region(&mut self, id: &[u8]) -> Result<&mut Region, Errno> {
        let id = region_id(id)?;
        self.regions.get_mut(&id).ok_or(Errno::ENOENT)
    }

    /// `message_stats_clear()`
    fn clear(&mut self, args: &[Vec<u8>]) -> Result<Vec<u8>, Errno> {
        let [id] = args else { return Err(Errno::EINVAL) };
        self.region(id)?.counters.clear();
        Ok(Vec::new())
    }

    /// `message_stats_list()`
    fn list(&self, args: &[Vec<u8>]) -> Result<Vec<u8>, Errno> {
        let program_id = match args {
            [] => None,
            [program_id] if program_id.len() > WORD_MAX => return Err(Errno::ENOMEM),
            [program_id] => Some(program_id),
            _ => return Err(Errno::EINVAL),
        };
        let mut rows = Vec::new();
        for (id, region) in &self.regions {
            if program_id.is_none_or(|program_id| *program_id == region.program_id) {
                region.push_row(&mut rows, *id);
            }
        }
        Ok(rows)
    }

    /// `message_stats_print()`
    fn print(&mut self, args: &[Vec<u8>], clear: bool) -> Result<Vec<u8>, Errno> {
        let (id, first, count) = match args {
            [id] => (id, 0, u64::MAX),
            [id, first, count] => {
                region_id(id)?;
                (id, number_or(first, 0)?, number_or(count, u64::MAX)?)
            }
            _ => return Err(Errno::EINVAL),
        };
        Ok(self.region(id)?.print(first, count, clear))
    }

    /// `message_stats_set_aux()`
    fn set_aux(&mut self, args: &[Vec<u8>]) -> Result<Vec<u8>, Errno> {
        let [id, aux] = args else { return Err(Errno::EINVAL) };
        let region = self.region(id)?;
        if aux.len() > WORD_MAX {
            return Err(Errno::ENOMEM);
        }
        region.aux.clone_from(aux);
        Ok(Vec::new())
    }
}

/// One region: `struct dm_stat`.
#[derive(Clone, Debug)]
struct Region {
    start: u64,
    end: u64,
    step: u64,
    precise: bool,
    bounds: Vec<u64>,
    program_id: Vec<u8>,
    aux: Vec<u8>,
    /// By area; an area that counted nothing has none, so a region may have any number of them.
    counters: BTreeMap<u64, Counters>,
}

/// Of one area: I/Os and sectors, each for reads and writes.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    ios: [u64; 2],
    sectors: [u64; 2],
}

impl Region {
    /// The arguments of `@stats_create`, as `message_stats_create()` takes them:
    /// `RANGE STEP [COUNT OPTION...] [PROGRAM_ID [AUX_DATA]]`.
    fn parse(args: &[Vec<u8>], device_sectors: u64) -> Result<Region, Errno> {
        let [range, step, rest @ ..] = args else { return Err(Errno::EINVAL) };
        let (start, end) = parse_range(range, device_sectors).ok_or(Errno::EINVAL)?;
        let step = parse_step(step, end - start).ok_or(Errno::EINVAL)?;
        let mut region = Region {
            start,
            end,
            step,
            precise: false,
            bounds: Vec::new(),
            program_id: b"-".to_vec(),
            aux: b"-".to_vec(),
            counters: BTreeMap::new(),
        };
        let rest = region.take_options(rest)?;
        match rest {
            [] => {}
            [program_id] => region.program_id.clone_from(program_id),
            [program_id, aux] => {
                region.program_id.clone_from(program_id);
                region.aux.clone_from(aux);
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(region)
    }

    /// Takes the options, if the first word is a number and thereby their count.
    fn take_options<'a>(&mut self, words: &'a [Vec<u8>]) -> Result<&'a [Vec<u8>], Errno> {
        let Some((count, mut rest)) = words.split_first() else { return Ok(words) };
        let Some(count) = Scan(count).last_number() else { return Ok(words) };
        for _ in 0..low_half(count) {
            let (option, more) = rest.split_first().ok_or(Errno::EINVAL)?;
            self.take_option(option)?;
            rest = more;
        }
        Ok(rest)
    }

    fn take_option(&mut self, option: &[u8]) -> Result<(), Errno> {
        const HISTOGRAM: &[u8] = b"histogram:";
        if option.eq_ignore_ascii_case(b"precise_timestamps") {
            self.precise = true;
            return Ok(());
        }
        match option.split_at_checked(HISTOGRAM.len()) {
            Some((word, bounds)) if word.eq_ignore_ascii_case(HISTOGRAM) => {
                if !self.bounds.is_empty() {
                    return Err(Errno::EINVAL);
                }
                self.bounds = parse_bounds(bounds)?;
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn areas(&self) -> u64 {
        (self.end - self.start).div_ceil(self.step)
    }

    /// What `dm_stats_create()` looks for room for, in bytes; `None` if it cannot count so far.
    ///
    /// It looks for the two bins of an area that a region without histogram does not have.
    fn bytes_needed(&self) -> Option<u64> {
        let (areas, bins) = (self.areas(), self.bounds.len() as u64 + 1);
        let shared = areas.checked_mul(AREA_BYTES)?.checked_add(REGION_BYTES)?;
        let histogram = areas.checked_mul(8)?.checked_mul(bins)?;
        // A sum beyond 64 bits is no overflow there, but more than any machine has.
        let per_cpu = areas.saturating_mul(AREA_PER_CPU_BYTES).saturating_add(histogram);
        Some(shared.saturating_add(histogram).saturating_add(per_cpu))
    }

    /// What the region takes, in bytes.
    fn bytes(&self) -> u64 {
        let bins = if self.bounds.is_empty() { 0 } else { self.bounds.len() as u64 + 1 };
        REGION_BYTES + self.areas() * (AREA_BYTES + AREA_PER_CPU_BYTES + 2 * 8 * bins)
    }

    /// `__dm_stat_bio()`
    fn io(&mut self, io: Extent, write: bool) {
        let (start, end) = (io.start().max(self.start), io.end().min(self.end));
        let mut from = start;
        while from < end {
            let area = (from - self.start) / self.step;
            let offset = (from - self.start) % self.step;
            let sectors = (end - from).min(self.step - offset);
            let counters = self.counters.entry(area).or_default();
            counters.ios[usize::from(write)] += 1;
            counters.sectors[usize::from(write)] += sectors;
            from += sectors;
        }
    }

    /// One row of `dm_stats_list()`. Nothing is escaped.
    fn push_row(&self, rows: &mut Vec<u8>, id: u32) {
        let (start, len, step) = (self.start, self.end - self.start, self.step);
        push(rows, format_args!("{id}: {start}+{len} {step} "));
        rows.extend_from_slice(&self.program_id);
        rows.push(b' ');
        rows.extend_from_slice(&self.aux);
        if self.precise {
            rows.extend_from_slice(b" precise_timestamps");
        }
        for (i, bound) in self.bounds.iter().enumerate() {
            let before = if i == 0 { " histogram:" } else { "," };
            push(rows, format_args!("{before}{bound}"));
        }
        rows.push(b'\n');
    }

    /// `dm_stats_print()`: `count` areas from area `first`, or as many as there are.
    fn print(&mut self, first: u64, count: u64, clear: bool) -> Vec<u8> {
        let areas = self.areas();
        let end = first.saturating_add(count).min(areas);
        let mut rows = Vec::new();
        for area in first..end {
            self.push_area(&mut rows, area);
        }
        if clear {
            self.counters.retain(|area, _| !(first..end).contains(area));
        }
        rows
    }

    /// One row of `dm_stats_print()`. The length it gives is the step, also where the last area is
    /// shorter. An I/O that took no time falls into the first bin of the histogram.
    fn push_area(&self, rows: &mut Vec<u8>, area: u64) {
        let start = self.start + area * self.step;
        let Counters { ios, sectors } = self.counters.get(&area).copied().unwrap_or_default();
        let (reads, sectors_read) = (ios[0], sectors[0]);
        let (writes, sectors_written) = (ios[1], sectors[1]);
        push(rows, format_args!("{start}+{}", self.step));
        push(rows, format_args!(" {reads} 0 {sectors_read} 0 {writes} 0 {sectors_written} 0"));
        rows.extend_from_slice(b" 0 0 0 0 0");
        if !self.bounds.is_empty() {
            push(rows, format_args!(" {}", reads + writes));
            self.bounds.iter().for_each(|_| rows.extend_from_slice(b":0"));
        }
        rows.push(b'\n');
    }
}

fn push(text: &mut Vec<u8>, words: fmt::Arguments<'_>) {
    text.write_fmt(words).expect("a vector takes all that is written to it");
}

/// The ids that no region has, as runs: first id to last id. No two runs touch.
#[derive(Clone, Debug)]
struct FreeIds(BTreeMap<u32, u32>);

impl FreeIds {
    fn all() -> FreeIds {
        FreeIds(BTreeMap::from([(0, RegionId::MAX.0)]))
    }

    fn lowest(&self) -> Option<u32> {
        self.0.first_key_value().map(|(first, _)| *first)
    }

    /// Takes `id` out of the run that holds it.
    fn take(&mut self, id: u32) {
        let run = self.0.range(..=id).next_back().map(|(first, last)| (*first, *last));
        let Some((first, last)) = run.filter(|(_, last)| id <= *last) else { return };
        self.0.remove(&first);
        if first < id {
            self.0.insert(first, id - 1);
        }
        if id < last {
            self.0.insert(id + 1, last);
        }
    }

    /// Puts `id` back, and joins it to the runs beside it.
    fn put(&mut self, id: u32) {
        let last = self.0.remove(&(id + 1)).unwrap_or(id);
        match self.0.range_mut(..id).next_back() {
            Some((_, before)) if *before + 1 == id => *before = last,
            _ => drop(self.0.insert(id, last)),
        }
    }
}

/// `dm_split_args()`: words between blanks; a backslash takes the byte behind it as it is.
fn split_args(text: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    loop {
        while bytes.next_if(|byte| is_space(*byte)).is_some() {}
        if bytes.peek().is_none() {
            return words;
        }
        let mut word = Vec::new();
        while let Some(byte) = bytes.next_if(|byte| !is_space(*byte)) {
            let escaped = if byte == b'\\' { bytes.next() } else { None };
            word.push(escaped.unwrap_or(byte));
        }
        words.push(word);
    }
}

/// What is left of a word while the kernel's `vsscanf()` reads it.
struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    /// `%llu`: skips blanks, wants a digit, and wraps at 2^64.
    fn number(&mut self) -> Option<u64> {
        self.skip_blanks();
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(digits);
        self.0 = rest;
        let append =
            |number: u64, digit: &u8| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        (!digits.is_empty()).then(|| digits.iter().fold(0, append))
    }

    /// `%llu%c` that must yield one: a number and nothing behind it.
    fn last_number(mut self) -> Option<u64> {
        self.number().filter(|_| self.0.is_empty())
    }

    /// `%lld%c` likewise; a negative number comes as its two's complement.
    fn last_signed(mut self) -> Option<u64> {
        self.skip_blanks();
        let minus = self.take(b'-').is_some();
        if minus && self.0.first().is_some_and(|byte| is_space(*byte)) {
            return None;
        }
        self.last_number().map(|number| if minus { number.wrapping_neg() } else { number })
    }

    /// A byte of the format that must match.
    fn take(&mut self, byte: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    fn skip_blanks(&mut self) {
        let blanks = self.0.iter().take_while(|byte| is_space(**byte)).count();
        self.0 = &self.0[blanks..];
    }
}

/// What is left of a number in 32 bits: the kernel's `%u` and `%d` cut without a word.
fn low_half(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).expect("the upper half is masked out")
}

/// A region's id, read as `int`: 2^32 is region 0, 2^31 is negative and therefore invalid.
fn region_id(word: &[u8]) -> Result<u32, Errno> {
    let id = low_half(Scan(word).last_signed().ok_or(Errno::EINVAL)?);
    if id <= RegionId::MAX.0 { Ok(id) } else { Err(Errno::EINVAL) }
}

/// An area or a number of areas; `-` for the default.
fn number_or(word: &[u8], default: u64) -> Result<u64, Errno> {
    match word {
        b"-" => Ok(default),
        _ => Scan(word).last_number().ok_or(Errno::EINVAL),
    }
}

/// First sector, and the sector after the last: `-` is the whole device, or one sector where the
/// device has no table.
fn parse_range(word: &[u8], device_sectors: u64) -> Option<(u64, u64)> {
    if word == b"-" {
        return Some((0, device_sectors.max(1)));
    }
    let mut word = Scan(word);
    let start = word.number()?;
    word.take(b'+')?;
    let end = start.wrapping_add(word.last_number()?);
    (start < end).then_some((start, end))
}

/// Sectors in an area: `N` are sectors, `/N` are areas.
fn parse_step(word: &[u8], sectors: u64) -> Option<u64> {
    let mut divisor = Scan(word);
    let step = match divisor.take(b'/') {
        Some(()) => match low_half(divisor.last_number()?) {
            0 => 0,
            areas => sectors.div_ceil(u64::from(areas)),
        },
        None => Scan(word).last_number()?,
    };
    (step > 0).then_some(step)
}

/// `parse_histogram()`: rising bounds from 1, and no comma at the end.
fn parse_bounds(word: &[u8]) -> Result<Vec<u64>, Errno> {
    let mut bounds = Vec::new();
    let mut last = 0;
    for word in word.split(|byte| *byte == b',') {
        let bound = Scan(word).last_number().filter(|bound| *bound > last);
        last = bound.ok_or(Errno::EINVAL)?;
        bounds.push(last);
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Clockwork, Message, parse_created, parse_list};

    const DEVICE: Device = Device { major: 253, minor: 0 };

    fn memory() -> Memory {
        let mut memory = Memory::new();
        memory.add_device(DEVICE, 1000, "test", "UUID");
        memory
    }

    /// Sends each text and compares what comes back: the reply, or the name of the errno.
    fn check(memory: &mut Memory, talk: &[(&str, &str)]) {
        for (text, expected) in talk {
            let answer = match memory.message(DEVICE, text.as_bytes()) {
                Ok(reply) => String::from_utf8(reply.text).unwrap(),
                Err(error) => format!("{:?}", Errno::from_raw(error.raw_os_error().unwrap())),
            };
            assert_eq!(answer, *expected, "{text}");
        }
    }

    fn extent(start: u64, len: u64) -> Extent {
        Extent::new(start, len).unwrap()
    }

    #[test]
    fn the_lowest_free_id_is_given_and_given_again() {
        let create = "@stats_create 0+1 /1";
        check(
            &mut memory(),
            &[
                (create, "0"),
                (create, "1"),
                (create, "2"),
                (create, "3"),
                ("@stats_delete 2", ""),
                ("@stats_delete 0", ""),
                ("@stats_delete 0", "ENOENT"),
                (create, "0"),
                (create, "2"),
                (create, "4"),
            ],
        );
    }

    #[test]
    fn the_lowest_free_id_costs_no_walk_along_the_table() {
        let mut free = FreeIds::all(); // 200,000 walks would take minutes
        for id in 0..100_000 {
            assert_eq!(free.lowest(), Some(id));
            free.take(id);
        }
        for _ in 0..100_000 {
            free.put(0);
            assert_eq!(free.lowest(), Some(0));
            free.take(0);
        }
        assert_eq!(free.lowest(), Some(100_000));
    }

    #[test]
    fn free_ids_equal_a_set_of_them() {
        let (mut free, mut taken) = (FreeIds::all(), std::collections::BTreeSet::new());
        for step in 0..5000_u32 {
            let id = step.wrapping_mul(2_654_435_761) % 60;
            if taken.contains(&id) {
                taken.remove(&id);
                free.put(id);
            } else {
                taken.insert(id);
                free.take(id);
            }
            assert_eq!(free.lowest(), (0..60).find(|id| !taken.contains(id)).or(Some(60)));
            let runs: Vec<_> = free.0.iter().collect();
            assert!(runs.windows(2).all(|pair| pair[0].1 + 1 < *pair[1].0), "{runs:?}");
        }
    }

    #[test]
    fn the_listing_escapes_nothing() {
        check(
            &mut memory(),
            &[
                ("@stats_create 10+20 5 a\\ b\\\\ x\\\ty", "0"),
                ("@stats_create - /3 1 precise_timestamps", "1"),
                ("@stats_create 7+2 9 2 histogram:10,20 PRECISE_timestamps p", "2"),
                (
                    "@stats_list",
                    "0: 10+20 5 a b\\ x\ty\n\
                     1: 0+1000 334 - - precise_timestamps\n\
                     2: 7+2 9 p - precise_timestamps histogram:10,20\n",
                ),
                ("@stats_list -", "1: 0+1000 334 - - precise_timestamps\n"),
                ("@stats_list q", ""),
                ("@stats_list - -", "EINVAL"),
            ],
        );
    }

    #[test]
    fn numbers_wrap_as_in_the_kernel() {
        check(
            &mut memory(),
            &[
                ("@stats_create 0+1 /1 0 1234", "0"),
                ("@stats_create 0+1 /1 1234", "EINVAL"),
                ("@stats_create 18446744073709551617+1 /4294967297", "1"),
                ("@stats_list", "0: 0+1 1 1234 -\n1: 1+1 1 - -\n"),
                ("@stats_delete 4294967297", ""),
                ("@stats_delete -4294967296", ""),
                ("@stats_delete 2147483648", "EINVAL"),
                ("@stats_delete +0", "EINVAL"),
                ("@stats_create 1+18446744073709551615 1", "EINVAL"),
                ("@stats_create 0+18446744073709551615 1", "EOVERFLOW"),
                ("@stats_create 0+18446744073709551615 9223372036854775808", "0"),
            ],
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let refused = [
            "",
            " ",
            "stats_list",
            "@stats",
            "@stats_create",
            "@stats_create 0+1",
            "@stats_create 0+0 /1",
            "@stats_create 0+1 /0",
            "@stats_create 0+1 0",
            "@stats_create 0+1x 1",
            "@stats_create 0+1 1 a b c",
            "@stats_create 0+1 1 1 a",
            "@stats_create 0+1 1 2 precise_timestamps",
            "@stats_create 0+1 1 2 histogram:1 histogram:2",
            "@stats_create 0+1 1 1 histogram:2,1",
            "@stats_create 0+1 1 1 histogram:1,",
            "@stats_create 0+1 1 1 histogram:0",
            "@stats_delete",
            "@stats_delete 0 0",
            "@stats_print 0 0",
            "@stats_print 0 x 1",
            "@stats_set_aux 0",
            "@stats_set_aux 0 a b",
            "@stats_list\0",
        ];
        check(&mut memory(), &refused.map(|text| (text, "EINVAL")));
    }

    #[test]
    fn areas_are_printed_by_their_step() {
        let zeros = "0 0 0 0 0 0 0 0 0 0 0 0 0";
        let mut memory = memory();
        check(
            &mut memory,
            &[
                ("@stats_create 90+100 30 1 histogram:5", "0"),
                ("@stats_print 0 3 -", &format!("180+30 {zeros} 0:0\n")),
                ("@stats_print 0 - 1", &format!("90+30 {zeros} 0:0\n")),
                ("@stats_print 0 4 1", ""),
                ("@stats_print 0 3 18446744073709551615", &format!("180+30 {zeros} 0:0\n")),
            ],
        );
    }

    #[test]
    fn an_io_is_counted_once_for_each_area_it_touches() {
        let mut memory = memory();
        check(&mut memory, &[("@stats_create 10+20 8 1 histogram:5", "0")]);
        memory.io(DEVICE, extent(0, 20), false);
        memory.io(DEVICE, extent(25, 100), true);
        memory.io(DEVICE, extent(30, 5), true);
        let first = "10+8 1 0 8 0 0 0 0 0 0 0 0 0 0 1:0\n";
        let second = "18+8 1 0 2 0 1 0 1 0 0 0 0 0 0 2:0\n";
        let third = "26+8 0 0 0 0 1 0 4 0 0 0 0 0 0 1:0\n";
        let zero = "18+8 0 0 0 0 0 0 0 0 0 0 0 0 0 0:0\n";
        check(
            &mut memory,
            &[
                ("@stats_print 0", &[first, second, third].concat()),
                ("@stats_set_aux 0 x", ""),
                ("@stats_print_clear 0 1 1", second),
                ("@stats_print 0", &[first, zero, third].concat()),
                ("@stats_clear 0", ""),
                ("@stats_print 0 1 1", zero),
            ],
        );
    }

    #[test]
    fn a_region_of_many_areas_takes_no_memory_of_ours() {
        let mut memory = memory();
        memory.set_bytes_max(u64::MAX);
        check(
            &mut memory,
            &[
                ("@stats_create 0+1152921504606846976 1024", "0"),
                (
                    "@stats_print 0 1125899906842623 9",
                    "1152921504606845952+1024 0 0 0 0 0 0 0 0 0 0 0 0 0\n",
                ),
            ],
        );
    }

    #[test]
    fn room_is_limited_and_comes_back() {
        let mut memory = memory();
        check(&mut memory, &[("@stats_create 0+1099511627776 1", "ENOMEM")]);
        memory.set_regions_max(1);
        check(&mut memory, &[("@stats_create - /1", "0"), ("@stats_create - /1", "ENOMEM")]);
        memory.set_regions_max(2);
        memory.set_bytes_max(360 + 376 - 1);
        check(&mut memory, &[("@stats_create - /1", "ENOMEM"), ("@stats_delete 0", "")]);
        assert_eq!(memory.bytes(), 0);
        check(&mut memory, &[("@stats_create - /1", "0")]);
        assert_eq!(memory.bytes(), 360);
        memory.set_bytes_max(360 + 376);
        check(&mut memory, &[("@stats_create - /1", "1")]);
        memory.remove_device(DEVICE);
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn only_devices_that_were_added_answer_and_with_their_name() {
        let mut memory = memory();
        let reply = memory.message(DEVICE, b"@stats_list").unwrap();
        assert_eq!(reply.label, Label { name: b"test".into(), uuid: b"UUID".into() });
        let stranger = Device { minor: 1, ..DEVICE };
        let error = memory.message(stranger, b"nonsense").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ENXIO as i32));
    }

    #[test]
    fn what_is_encoded_is_listed_and_a_listing_can_be_put_into_another_table() {
        let mut memory = memory();
        let clockwork = Clockwork { precise: true, bounds: b"10,20" };
        let words: [&[u8]; 3] = [b"DMS_GROUP=\"a b\":0#-", b"\\\xa0\t", b""];
        for (i, aux) in words.into_iter().enumerate() {
            let message =
                Message::Create { extent: extent(i as u64, 5), clockwork, program_id: b"1", aux };
            let reply = memory.message(DEVICE, &message.encode()).unwrap();
            assert_eq!(parse_created(&reply.text), Ok(RegionId(u32::try_from(i).unwrap())));
        }
        memory.message(DEVICE, b"@stats_delete 1").unwrap();
        let listing = memory.message(DEVICE, b"@stats_list").unwrap().text;
        let rows = parse_list(&listing).unwrap();
        assert_eq!((rows[0].aux, rows[1].aux), (words[0], &b"-"[..]));

        let mut copy = Memory::new();
        copy.add_device(DEVICE, 1000, "copy", "");
        for row in rows {
            copy.insert(DEVICE, &row).unwrap();
            copy.insert(DEVICE, &row).unwrap();
        }
        assert_eq!(copy.message(DEVICE, b"@stats_list").unwrap().text, listing);
        assert_eq!(copy.message(DEVICE, b"@stats_create - /1").unwrap().text, b"1");
        assert_eq!(copy.bytes(), memory.bytes() + 360);
    }
}
