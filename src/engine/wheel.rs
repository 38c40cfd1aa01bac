//! When each file is due: a wheel of short slots of time.
//!
//! A heap costs a few cache misses for each of a hundred thousand idle files, which is as much as
//! the `stat` it plans. Here a file is put into a list and taken out of one.

use std::mem;
use std::time::Duration;

use super::FileId;
use super::time::Time;

/// The width of a slot in nanoseconds: nothing is due more precisely than that.
const TICK: u64 = 4_000_000;

/// Slots: what is due later than this many ticks from now goes around more than once.
const SLOTS: usize = 1024;
/// Files that there is room for in a list which is empty, at the most. All may be due at the same
/// moment when they are new, and never again.
pub(super) const ROOM_MAX: usize = 4096;

const WORD: usize = u64::BITS as usize;

/// Which files are due when. It remembers in which slot a file is and not when the file is due:
/// whoever takes a file out asks it.
#[derive(Debug)]
pub(super) struct Wheel {
    slots: Vec<Vec<FileId>>,
    /// Which slots hold something, by bit.
    occupied: [u64; SLOTS / WORD],
    /// Lists of slots that were emptied, for their room: twice what they held. In time every slot
    /// holds many files, but few do at the same time.
    spare: Vec<Vec<FileId>>,
    /// The tick whose slot is to be emptied next.
    next: u64,
}

impl Wheel {
    pub(super) fn new() -> Wheel {
        let slots = vec![Vec::new(); SLOTS];
        Wheel { slots, occupied: [0; SLOTS / WORD], spare: Vec::new(), next: 0 }
    }

    /// Puts a file where it will be found at `due`, or before that if it is far away.
    pub(super) fn put(&mut self, due: Time, file: FileId) {
        let slot = slot(tick_after(due).max(self.next));
        if !self.is_occupied(slot) {
            self.slots[slot] = self.spare.pop().unwrap_or_default();
        }
        self.slots[slot].push(file);
        self.occupied[slot / WORD] |= 1 << (slot % WORD);
    }

    /// When the next slot that holds anything is to be emptied.
    pub(super) fn next_due(&self) -> Option<Time> {
        let start = slot(self.next);
        let from_start = u64::MAX << (start % WORD);
        for step in 0..=self.occupied.len() {
            let word = (start / WORD + step) % self.occupied.len();
            let wanted = match step {
                0 => from_start,
                step if step == self.occupied.len() => !from_start, // once around
                _ => u64::MAX,
            };
            let found = self.occupied[word] & wanted;
            if found != 0 {
                let slot = word * WORD + found.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - start) % SLOTS;
                return Some(time(self.next + ahead as u64));
            }
        }
        None
    }

    /// Empties the slots up to `now` into `due`.
    pub(super) fn take(&mut self, now: Time, due: &mut Vec<FileId>) {
        let end = ticks(now) + 1;
        for tick in self.next..end.min(self.next + SLOTS as u64) {
            let slot = slot(tick);
            if self.is_occupied(slot) {
                let mut files = mem::take(&mut self.slots[slot]);
                let count = files.len();
                due.append(&mut files);
                files.shrink_to((2 * count).min(ROOM_MAX));
                self.spare.push(files);
                self.occupied[slot / WORD] &= !(1 << (slot % WORD));
            }
        }
        self.next = self.next.max(end);
    }

    fn is_occupied(&self, slot: usize) -> bool {
        self.occupied[slot / WORD] & 1 << (slot % WORD) != 0
    }
}

/// Whole ticks until the moment.
fn ticks(moment: Time) -> u64 {
    moment.nanoseconds() / TICK
}

fn tick_after(moment: Time) -> u64 {
    moment.nanoseconds().div_ceil(TICK)
}

fn time(tick: u64) -> Time {
    Time::from(Duration::from_nanos(tick.saturating_mul(TICK)))
}

fn slot(tick: u64) -> usize {
    usize::try_from(tick % SLOTS as u64).expect("the number of slots is a usize")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Time {
        Time::from(Duration::from_millis(milliseconds))
    }

    /// Turns the wheel from one moment that it names to the next until it is empty.
    fn turn(wheel: &mut Wheel) -> Vec<(Time, Vec<FileId>)> {
        let mut found = Vec::new();
        while let Some(due) = wheel.next_due() {
            let mut files = Vec::new();
            wheel.take(due, &mut files);
            found.push((due, files));
        }
        found
    }

    #[test]
    fn a_file_comes_out_at_the_end_of_the_tick_in_which_it_is_due() {
        let mut wheel = Wheel::new();
        for (file, due) in [(0, 0), (1, 1), (2, 4), (3, 5), (4, 4000)] {
            wheel.put(at(due), FileId(file));
        }
        let found = turn(&mut wheel);
        let expected = [(0, vec![0]), (4, vec![1, 2]), (8, vec![3]), (4000, vec![4])];
        let expected =
            expected.map(|(due, files)| (at(due), files.into_iter().map(FileId).collect()));
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_past_comes_out_next() {
        let mut wheel = Wheel::new();
        wheel.take(at(1000), &mut Vec::new());
        wheel.put(at(500), FileId(7));
        assert_eq!(turn(&mut wheel), [(at(1004), vec![FileId(7)])]);
    }

    #[test]
    fn what_is_further_than_the_rim_comes_out_earlier_and_never_later() {
        let mut wheel = Wheel::new();
        wheel.take(at(900), &mut Vec::new());
        wheel.put(at(10_000), FileId(1));
        let (due, files) = turn(&mut wheel).remove(0);
        assert!(due <= at(10_000) && files == [FileId(1)], "{due:?}");
    }

    /// Else each of the slots would keep the room that it has once needed.
    #[test]
    fn room_is_handed_on_from_slot_to_slot() {
        let mut wheel = Wheel::new();
        for step in 0..10_000 {
            (0..100).for_each(|file| wheel.put(at(step * 20), FileId(file)));
            wheel.take(at(step * 20), &mut Vec::new());
        }
        let room = wheel.slots.iter().chain(&wheel.spare).map(Vec::capacity).sum::<usize>();
        assert!(room <= 128, "{room}");
    }

    #[test]
    fn room_for_all_files_at_once_is_not_kept() {
        let mut wheel = Wheel::new();
        (0..100_000).for_each(|file| wheel.put(at(0), FileId(file)));
        wheel.take(at(0), &mut Vec::new());
        assert!(wheel.spare[0].capacity() <= ROOM_MAX);
    }

    #[test]
    fn a_sleep_of_hours_loses_nothing() {
        let mut wheel = Wheel::new();
        (0..100).for_each(|file| wheel.put(at(u64::from(file) * 37), FileId(file)));
        let mut due = Vec::new();
        wheel.take(at(10_000_000), &mut due);
        assert_eq!(due.len(), 100);
        assert_eq!(wheel.next_due(), None);
    }
}
