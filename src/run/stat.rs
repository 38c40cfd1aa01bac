//! A device's own statistics, and whether they tell that nothing has moved.
//!
//! A device may be told to keep none (`queue/iostats`). Those of device-mapper say so before Linux
//! 6.5 whatever they are told, and keep them all the same. So what they say counts there too, once
//! they were seen to move nevertheless.

use crate::dm::Device;
use crate::home::sysfs;

/// What a device said of itself at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    /// Its numbers (Documentation/block/stat.rst).
    pub(super) text: String,
    /// Whether it says that it counts at all.
    kept: bool,
    /// Whether it has counted although it said that it does not.
    nevertheless: bool,
    /// Something else has come about since.
    old: bool,
}

impl Stat {
    /// What it says now; nothing where sysfs says nothing. `before` is what it said earlier.
    pub(super) fn of(device: Device, before: Option<&Stat>) -> Option<Stat> {
        let text = sysfs(device, "stat")?;
        let kept = sysfs(device, "queue/iostats").is_none_or(|iostats| iostats.trim() == "1");
        Some(Stat { text, kept, nevertheless: false, old: false }.after(before))
    }

    fn after(mut self, before: Option<&Stat>) -> Stat {
        let moved = |before: &Stat| !before.kept && !self.kept && before.text != self.text;
        self.nevertheless = before.is_some_and(|before| before.nevertheless || moved(before));
        self
    }

    /// Whether nothing has moved on the device since it said this.
    pub(super) fn is_still(&self, before: &Stat) -> bool {
        (self.kept && before.kept || self.nevertheless) && self.text == before.text && !before.old
    }

    /// That nothing has moved since will not mean that there is nothing new.
    pub(super) fn is_not_all(&mut self) {
        self.old = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(text: &str, kept: bool) -> Stat {
        Stat { text: text.to_owned(), kept, nevertheless: false, old: false }
    }

    #[test]
    fn what_is_kept_is_believed() {
        let before = stat("1 0", true);
        assert!(stat("1 0", true).after(Some(&before)).is_still(&before));
        assert!(!stat("2 0", true).after(Some(&before)).is_still(&before));
        let mut before = before;
        before.is_not_all();
        let after = stat("1 0", true).after(Some(&before));
        assert!(!after.is_still(&before) && stat("1 0", true).after(Some(&after)).is_still(&after));
    }

    #[test]
    fn what_is_not_kept_is_believed_once_it_has_moved() {
        let first = stat("1 0", false);
        let second = stat("1 0", false).after(Some(&first));
        assert!(!second.is_still(&first), "there may have been I/O that is not counted");
        let third = stat("2 0", false).after(Some(&second));
        assert!(!third.is_still(&second));
        let fourth = stat("2 0", false).after(Some(&third));
        assert!(fourth.is_still(&third));
        assert!(stat("2 0", false).after(Some(&fourth)).is_still(&fourth));
    }

    #[test]
    fn what_was_switched_off_meanwhile_is_not_believed() {
        let before = stat("1 0", true);
        assert!(!stat("1 0", false).after(Some(&before)).is_still(&before));
        // It moved before it was switched off.
        let off = stat("2 0", false).after(Some(&before));
        assert!(!stat("2 0", false).after(Some(&off)).is_still(&off));
        // Or while it was on.
        let on = stat("3 0", true).after(Some(&off));
        assert!(!on.is_still(&off) && !stat("3 0", false).after(Some(&on)).is_still(&on));
    }
}
