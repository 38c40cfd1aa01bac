//! What an area has counted, given to those who have sectors in it.
//!
//! An area does not say which of its sectors an I/O went to. What is known: which sectors were
//! whose when the area was read last, and which are whose now. So:
//!
//! * *Writes* go first to the files that have sectors of the area written for the first time, as
//!   many as those are: they must have been written. Filesystems choose the place of written data
//!   when they write it, so no map that was read before the write could know it.
//! * *Other writes, and reads,* go to all who have or had sectors there, in proportion to them.
//!   Those that nobody followed has count for the "others"; those known to be free count for none,
//!   nor do those that may be a tenant's reserve.
//! * *Times and numbers of I/Os* follow the bytes.
//!
//! Whatever an area has counted is given to somebody, once: the parts and the rest add up to it.

use crate::counters::Counters;
use crate::extent::SECTOR_BYTES;
use crate::grid::split::split;

/// Who may have done the I/O of an area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenancy<F> {
    /// The followed files with sectors in the area.
    pub tenants: Vec<Tenant<F>>,
    /// Sectors that may be those of anybody else: neither of a tenant, nor known to be free.
    pub others: u64,
    /// Those of them that the filesystem may have laid by for the tenants to grow into.
    pub reserved: u64,
    /// Sectors known to be free. Somebody may have had them for a moment.
    pub free: u64,
}

/// A file with sectors in an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant<F> {
    /// The file.
    pub file: F,
    /// The sectors of the area that it has, or had when the area was read last.
    pub held: u64,
    /// Those of them that it has written since for the first time.
    pub gained: u64,
}

/// What one file gets of what an area has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<F> {
    /// The file.
    pub file: F,
    /// Its counters.
    pub counters: Counters,
    /// How far off they may be.
    pub doubt: Doubt,
}

/// How far a file's counters may be off, because areas are shared.
///
/// What a file really did lies between its counters less `over` and its counters and `under`, as
/// long as what a file shows as written for the first time was written (a reflink is not), and what
/// it holds now or did at the last reading was nobody else's in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    /// What was given to the file and may be others'.
    pub over: Counters,
    /// What was given to others and may be the file's.
    pub under: Counters,
}

/// Gives what an area has counted to its tenants; the second is what remains for the others.
///
/// `phase` takes turns from call to call: see [`split`].
#[must_use]
pub fn attribute<F: Copy>(
    counted: &Counters,
    tenancy: &Tenancy<F>,
    phase: u64,
) -> (Vec<Part<F>>, Counters) {
    let mut parts = share_out(counted, tenancy, phase);
    let rest = parts.pop().unwrap_or(*counted);
    let part = |(tenant, counters): (&Tenant<F>, Counters)| {
        let doubt = doubt(counted, tenancy, tenant, &counters);
        Part { file: tenant.file, counters, doubt }
    };
    (tenancy.tenants.iter().zip(parts).map(part).collect(), rest)
}

/// How far the part of a tenant may be off.
fn doubt<F>(
    counted: &Counters,
    tenancy: &Tenancy<F>,
    tenant: &Tenant<F>,
    given: &Counters,
) -> Doubt {
    if tenancy.tenants.len() == 1 && tenancy.others == 0 && tenancy.free == 0 {
        return Doubt::default();
    }
    let mut doubt = Doubt { over: *given, under: counted.beyond(given) };
    // What was written for the first time is known to the byte, if all of it has been counted.
    let grown = grown(tenancy).saturating_mul(SECTOR_BYTES);
    let own = tenant.gained.saturating_mul(SECTOR_BYTES);
    let gaining = tenancy.tenants.iter().filter(|tenant| tenant.gained > 0).count();
    let known = grown <= counted.written_bytes || gaining == 1;
    if known {
        let more = counted.written_bytes.saturating_sub(grown);
        let given = given.written_bytes.saturating_sub(own);
        doubt.over.written_bytes = given;
        doubt.under.written_bytes = more.saturating_sub(given);
    }
    doubt
}

/// Sectors that tenants have written for the first time.
fn grown<F>(tenancy: &Tenancy<F>) -> u64 {
    tenancy.tenants.iter().fold(0, |sum: u64, tenant| sum.saturating_add(tenant.gained))
}

/// The counters of each tenant, and behind them those of the others.
fn share_out<F>(counted: &Counters, tenancy: &Tenancy<F>, phase: u64) -> Vec<Counters> {
    let mut held: Vec<u64> = tenancy.tenants.iter().map(|tenant| tenant.held).collect();
    held.push(tenancy.others.saturating_sub(tenancy.reserved));
    if held.iter().all(|sectors| *sectors == 0) {
        // Nobody has a sector of it, so it was nobody who is known.
        held[tenancy.tenants.len()] = 1;
    }
    let read = split(counted.read_bytes, &held, phase);
    let written = split_written(counted.written_bytes, tenancy, &held, phase);
    let both: Vec<u64> = read.iter().zip(&written).map(|(r, w)| r.saturating_add(*w)).collect();

    // An I/O without data, or a counter that lags behind the others, goes by the sectors.
    let by = |weights: &[u64], total: u64| {
        let some = weights.iter().any(|weight| *weight > 0);
        split(total, if some { weights } else { &held }, phase)
    };
    let reads = |total: u64| by(&read, total);
    let writes = |total: u64| by(&written, total);
    let columns = [
        reads(counted.reads_completed),
        reads(counted.reads_merged),
        reads(counted.read_time_ns),
        reads(counted.read_busy_time_ns),
        writes(counted.writes_completed),
        writes(counted.writes_merged),
        writes(counted.write_time_ns),
        writes(counted.write_busy_time_ns),
        by(&both, counted.io_time_ns),
        by(&both, counted.weighted_io_time_ns),
    ];
    let [r, rm, rt, rb, w, wm, wt, wb, io, weighted] = &columns;
    let row = |at: usize| Counters {
        reads_completed: r[at],
        writes_completed: w[at],
        reads_merged: rm[at],
        writes_merged: wm[at],
        read_bytes: read[at],
        written_bytes: written[at],
        read_time_ns: rt[at],
        write_time_ns: wt[at],
        io_time_ns: io[at],
        weighted_io_time_ns: weighted[at],
        read_busy_time_ns: rb[at],
        write_busy_time_ns: wb[at],
    };
    (0..held.len()).map(row).collect()
}

/// Written bytes: what files have grown by is theirs, and what is more goes by sectors.
fn split_written<F>(bytes: u64, tenancy: &Tenancy<F>, held: &[u64], phase: u64) -> Vec<u64> {
    let mut gained: Vec<u64> = tenancy.tenants.iter().map(|tenant| tenant.gained).collect();
    gained.push(0);
    let grown = grown(tenancy);
    if grown == 0 {
        return split(bytes, held, phase);
    }
    let new = bytes.min(grown.saturating_mul(SECTOR_BYTES));
    let mut parts = split(new, &gained, phase);
    let more = split(bytes - new, held, phase);
    parts.iter_mut().zip(more).for_each(|(part, more)| *part += more);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(file: char, held: u64, gained: u64) -> Tenant<char> {
        Tenant { file, held, gained }
    }

    fn written(sectors: u64) -> Counters {
        let written_bytes = sectors * SECTOR_BYTES;
        Counters { writes_completed: sectors, written_bytes, ..Counters::default() }
    }

    /// Sectors written, by file, and those of the others.
    fn shares(counted: &Counters, tenants: &[Tenant<char>], others: u64) -> (Vec<u64>, u64) {
        let tenancy = Tenancy { tenants: tenants.to_vec(), others, reserved: 0, free: 0 };
        let (parts, rest) = attribute(counted, &tenancy, 0);
        let sectors = |counters: &Counters| counters.written_bytes / SECTOR_BYTES;
        (parts.iter().map(|part| sectors(&part.counters)).collect(), sectors(&rest))
    }

    #[test]
    fn growth_is_the_growing_files_before_anything_else() {
        let tenants = [tenant('a', 100, 8), tenant('b', 20, 0)];
        assert_eq!(shares(&written(8), &tenants, 0), (vec![8, 0], 0));
        assert_eq!(shares(&written(8), &tenants, 1000), (vec![8, 0], 0));
        assert_eq!(shares(&written(8 + 12), &tenants, 0), (vec![8 + 10, 2], 0));
        let both = [tenant('a', 8, 6), tenant('b', 8, 2)];
        assert_eq!(shares(&written(4), &both, 0), (vec![3, 1], 0), "reserved, and not written yet");
    }

    #[test]
    fn what_is_not_growth_goes_by_sectors_the_others_included() {
        let tenants = [tenant('a', 30, 0), tenant('b', 10, 0)];
        assert_eq!(shares(&written(40), &tenants, 40), (vec![15, 5], 20));
        assert_eq!(shares(&written(40), &tenants, 0), (vec![30, 10], 0));
        assert_eq!(shares(&written(40), &[], 128), (vec![], 40));
        assert_eq!(shares(&written(40), &[], 0), (vec![], 40), "all of it is free by now");
    }

    #[test]
    fn what_may_be_a_reserve_of_the_tenants_gets_nothing_but_leaves_the_doubt() {
        let tenants = vec![tenant('a', 30, 0)];
        let tenancy = Tenancy { tenants, others: 50, reserved: 40, free: 0 };
        let (parts, rest) = attribute(&written(40), &tenancy, 0);
        assert_eq!((parts[0].counters, rest), (written(30), written(10)));
        assert_eq!(parts[0].doubt, Doubt { over: written(30), under: written(10) });
    }

    /// By tenant, sectors that may be too many and too few, of forty that were written.
    fn doubts(tenants: &[Tenant<char>], others: u64, free: u64) -> Vec<(u64, u64)> {
        let tenancy = Tenancy { tenants: tenants.to_vec(), others, reserved: 0, free };
        let (parts, _) = attribute(&written(40), &tenancy, 0);
        let sectors = |counters: &Counters| counters.written_bytes / SECTOR_BYTES;
        parts.iter().map(|part| (sectors(&part.doubt.over), sectors(&part.doubt.under))).collect()
    }

    #[test]
    fn who_is_alone_is_not_in_doubt_and_who_is_not_may_be_wrong_by_all_of_it() {
        assert_eq!(doubts(&[tenant('a', 5, 0)], 0, 0), [(0, 0)]);
        assert_eq!(doubts(&[tenant('a', 5, 0)], 0, 1), [(40, 0)]);
        assert_eq!(doubts(&[tenant('a', 5, 0)], 5, 0), [(20, 20)]);
        let two = [tenant('a', 3, 0), tenant('b', 1, 0)];
        assert_eq!(doubts(&two, 0, 0), [(30, 10), (10, 30)]);
    }

    #[test]
    fn what_was_written_for_the_first_time_is_in_no_doubt() {
        assert_eq!(doubts(&[tenant('a', 50, 40), tenant('b', 10, 0)], 10, 10), [(0, 0), (0, 0)]);
        assert_eq!(doubts(&[tenant('a', 30, 30), tenant('b', 10, 6)], 0, 0), [(3, 1), (1, 3)]);
        assert_eq!(doubts(&[tenant('a', 50, 50), tenant('b', 10, 0)], 0, 0), [(0, 0), (0, 0)]);
        let both = [tenant('a', 60, 60), tenant('b', 20, 20)];
        assert_eq!(doubts(&both, 0, 0), [(30, 10), (10, 30)], "not all of it has been counted");
    }

    #[test]
    fn times_follow_the_bytes() {
        let counted = Counters {
            reads_completed: 8,
            read_bytes: 64 * SECTOR_BYTES,
            read_time_ns: 800,
            write_time_ns: 40, // of writes that are not finished
            io_time_ns: 80,
            ..Counters::default()
        };
        let tenants = vec![tenant('a', 30, 0), tenant('b', 10, 0)];
        let (parts, rest) =
            attribute(&counted, &Tenancy { tenants, others: 0, reserved: 0, free: 0 }, 0);
        let [a, b] = [parts[0].counters, parts[1].counters];
        assert_eq!((a.reads_completed, a.read_time_ns, a.write_time_ns), (6, 600, 30));
        assert_eq!((b.reads_completed, b.read_time_ns, b.io_time_ns), (2, 200, 20));
        assert!(rest.is_zero());
    }
}
