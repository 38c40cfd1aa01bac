//! Away with what cut updates of an earlier run have left, of files that nobody follows any more.
//!
//! The first sweep of a device lists its orphans, the next one deletes those that are so still: by
//! then 5 s have passed, see [`crate::update::delete_orphans`]. Once for each device is enough,
//! since this run makes its own cuts good.

use std::collections::HashMap;
use std::sync::Arc;

use log::{info, warn};
use parking_lot::Mutex;

use crate::dm::{Device, Dm};
use crate::update::{Orphan, delete_orphans, orphans};

/// How far that has come, by device; shared by the threads, of which one at a time has a device.
#[derive(Clone, Debug, Default)]
pub(super) struct Tidy(Arc<Mutex<HashMap<Device, Vec<Orphan>>>>);

impl Tidy {
    /// The device is being swept. While updates of others are under way the next sweep tries again.
    pub(super) fn swept(&self, mut dm: impl Dm, device: Device) {
        let seen = self.0.lock().get(&device).cloned();
        let left = match seen {
            None => orphans(&mut dm, device),
            Some(seen) if seen.is_empty() => return,
            Some(seen) => delete_orphans(&mut dm, device, &seen).map(|deleted| {
                info!("{device}: {deleted} region(s) deleted that cut updates had left");
                Vec::new()
            }),
        };
        match left {
            Ok(left) => drop(self.0.lock().insert(device, left)),
            Err(error) if error.is_busy() || error.is_no_device() => {}
            Err(error) => {
                warn!("{device}: what cut updates have left stays: {error}; try dmfilemapd gc");
                self.0.lock().insert(device, Vec::new());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Memory;

    const DEVICE: Device = Device { major: 253, minor: 0 };

    fn send(memory: &mut Memory, text: &str) -> String {
        String::from_utf8(memory.message(DEVICE, text.as_bytes()).unwrap().text).unwrap()
    }

    fn create(memory: &mut Memory, aux: &str) {
        send(memory, &format!("@stats_create 0+8 /1 0 dmstats {aux}"));
    }

    #[test]
    fn an_orphan_goes_at_the_second_sweep_and_what_comes_later_or_is_not_ours_stays() {
        const MARK: &str = "fm=0000000000005eed.00000001.";
        let (mut memory, tidy) = (Memory::new(), Tidy::default());
        memory.add_device(DEVICE, 1 << 20, "a", "");
        create(&mut memory, MARK);
        create(&mut memory, "theirs");
        tidy.swept(&mut memory, DEVICE);
        assert_eq!(send(&mut memory, "@stats_list").lines().count(), 2, "not yet");
        create(&mut memory, MARK);
        for _ in 0..3 {
            tidy.swept(&mut memory, DEVICE);
            let left = send(&mut memory, "@stats_list");
            assert!(left.lines().count() == 2 && left.starts_with("1: "), "{left}");
        }
    }
}
