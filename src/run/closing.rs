//! Files that are to be closed, elsewhere than on main.
//!
//! Whoever closes a file last may wait as long as the device does: then the blocks of an unlinked
//! file are freed, and xfs takes back the room that it has reserved behind the end of any. So files
//! are closed by a sampler, and those of a device by one at a time, lest all of them wait.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;

use crate::dm::Device;
use crate::sample;

/// What is being closed: by device, those that came meanwhile and have to wait.
#[derive(Debug, Default)]
pub(super) struct Closing(HashMap<Device, Vec<File>>);

/// Files of one device, to be closed.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) device: Device,
    pub(super) files: Vec<File>,
}

impl Closing {
    /// Takes a file; gives what is to be closed now, if anything.
    pub(super) fn put(&mut self, file: File) -> Option<Files> {
        // Of an open file `stat` waits for nobody. One that it fails for waits with its like.
        let nowhere = Device { major: 0, minor: 0 };
        let device = file.metadata().map_or(nowhere, |metadata| sample::device(&metadata));
        match self.0.entry(device) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(file);
                None
            }
            Entry::Vacant(none) => {
                none.insert(Vec::new());
                Some(Files { device, files: vec![file] })
            }
        }
    }

    /// Files of that device have been closed; gives those that are to be closed next.
    pub(super) fn closed(&mut self, device: Device) -> Option<Files> {
        let files = self.0.remove(&device).filter(|waiting| !waiting.is_empty())?;
        self.0.insert(device, Vec::new());
        Some(Files { device, files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_device_are_closed_by_one_at_a_time() {
        let mut closing = Closing::default();
        let file = || tempfile::tempfile().unwrap();
        let first = closing.put(file()).expect("nothing of its device is being closed");
        assert_eq!(first.files.len(), 1);
        for _ in 0..3 {
            assert!(closing.put(file()).is_none(), "it waits for the first");
        }
        assert!(closing.put(File::open("/proc/self/stat").unwrap()).is_some(), "of another device");
        assert_eq!(closing.closed(first.device).map(|next| next.files.len()), Some(3));
        assert!(closing.put(file()).is_none(), "it waits for those");
        assert_eq!(closing.closed(first.device).map(|next| next.files.len()), Some(1));
        assert!(closing.closed(first.device).is_none());
        assert!(closing.put(file()).is_some(), "nothing is left to wait for");
    }
}
