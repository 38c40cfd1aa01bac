//! Files that are to be closed, elsewhere than on main.
//!
//! Whoever closes a file last may wait as long as the device does: then the blocks of an unlinked
//! file are freed, and xfs takes back the room that it has reserved behind the end of any. So files
//! are closed by a sampler, and those of a device by one at a time, lest all of them wait.
//!
//! Meanwhile files that are followed stay open that need not be: they are opened for a look now and
//! then, and what waits to be closed would be more with each.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;

use super::Run;
use super::jobs::Sample;
use crate::dm::Device;
use crate::engine::FileId;
use crate::sample;

/// What is being closed: by device, what came meanwhile and has to wait.
#[derive(Debug, Default)]
pub(super) struct Closing {
    devices: HashMap<Device, Waiting>,
    /// Files that were to be closed while a sampler had them.
    late: HashSet<FileId>,
}

#[derive(Debug, Default)]
struct Waiting {
    files: Vec<File>,
    /// Those that are followed and stay open until then.
    kept: HashSet<FileId>,
}

/// Files of one device, to be closed.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) device: Device,
    pub(super) files: Vec<File>,
}

impl Closing {
    /// Takes a file; gives what is to be closed now, if anything.
    pub(super) fn put(&mut self, file: File) -> Option<Files> {
        let device = device_of(&file);
        match self.devices.entry(device) {
            Entry::Occupied(mut waiting) => {
                waiting.get_mut().files.push(file);
                None
            }
            Entry::Vacant(none) => {
                none.insert(Waiting::default());
                Some(Files { device, files: vec![file] })
            }
        }
    }

    /// Whether a file that is followed had to wait for others, and stays open until they are
    /// closed.
    fn keep(&mut self, id: FileId, file: &File) -> bool {
        let waiting = self.devices.get_mut(&device_of(file));
        waiting.map(|waiting| waiting.kept.insert(id)).is_some()
    }

    /// Files of that device have been closed; gives those that are to be closed next, and those
    /// that were kept until now.
    fn closed(&mut self, device: Device) -> (Option<Files>, HashSet<FileId>) {
        let Some(Waiting { files, kept }) = self.devices.remove(&device) else {
            return <_>::default();
        };
        if files.is_empty() {
            return (None, kept);
        }
        self.devices.insert(device, Waiting { files: Vec::new(), kept });
        (Some(Files { device, files }), HashSet::new())
    }

    /// The file is followed no more: its number may become another one's.
    fn forget(&mut self, id: FileId) {
        self.late.remove(&id);
        for waiting in self.devices.values_mut() {
            waiting.kept.remove(&id);
        }
    }
}

/// Of an open file `stat` waits for nobody. One that it fails for waits with its like.
fn device_of(file: &File) -> Device {
    let nowhere = Device { major: 0, minor: 0 };
    file.metadata().map_or(nowhere, |metadata| sample::device(&metadata))
}

impl Run {
    /// Has a file closed, if it is open. While it is followed that may have to wait.
    pub(super) fn close(&mut self, file: FileId) {
        let follows = self.engine.follows(file);
        if !follows {
            self.closing.forget(file);
        }
        let open = &mut self.files[file.index()].open;
        let followed = open.as_ref().filter(|_| follows);
        if !followed.is_some_and(|open| self.closing.keep(file, open)) {
            let open = open.take();
            self.put_away(open);
        }
    }

    /// So many files of the device have been closed, and others need not wait any more.
    pub(super) fn have_closed(&mut self, device: Device, count: usize) {
        self.open -= count;
        let (next, kept) = self.closing.closed(device);
        self.give_away(next);
        for file in kept {
            let followed = &mut self.files[file.index()];
            if followed.away {
                self.closing.late.insert(file);
                continue;
            }
            let open = followed.open.take();
            self.put_away(open); // one waits for the other, and not for each its turn
        }
    }

    /// A sampler has given the file back.
    pub(super) fn close_if_late(&mut self, file: FileId) {
        if self.closing.late.remove(&file) {
            self.close(file);
        }
    }

    /// Has the file closed, if it is open. It counts as open until it is.
    pub(super) fn put_away(&mut self, open: Option<File>) {
        let now = open.and_then(|file| self.closing.put(file));
        self.give_away(now);
    }

    fn give_away(&mut self, files: Option<Files>) {
        if let Some(files) = files {
            super::give(&self.samplers, Sample::Close(files));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::By;
    use super::super::trial::{follow, let_go, service, wanted};
    use super::*;
    use crate::engine::End;
    use crate::paths::PathList;

    #[test]
    fn files_of_a_device_are_closed_by_one_at_a_time() {
        let mut closing = Closing::default();
        let file = || tempfile::tempfile().unwrap();
        let count = |(next, _): (Option<Files>, _)| next.map(|next| next.files.len());
        let first = closing.put(file()).expect("nothing of its device is being closed");
        assert_eq!(first.files.len(), 1);
        for _ in 0..3 {
            assert!(closing.put(file()).is_none(), "it waits for the first");
        }
        assert!(closing.put(File::open("/proc/self/stat").unwrap()).is_some(), "of another device");
        assert_eq!(count(closing.closed(first.device)), Some(3));
        assert!(closing.put(file()).is_none(), "it waits for those");
        assert_eq!(count(closing.closed(first.device)), Some(1));
        assert_eq!(count(closing.closed(first.device)), None);
        assert!(closing.put(file()).is_some(), "nothing is left to wait for");
    }

    /// Has the file looked at, for which it is opened, and closed again.
    fn look(run: &mut Run, file: FileId) {
        let open = &mut run.files[file.index()].open;
        if open.is_none() {
            *open = Some(tempfile::tempfile().unwrap());
            run.open += 1;
        }
        run.close(file);
    }

    #[test]
    fn while_a_close_hangs_files_stay_open_and_do_not_become_more() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = service(folder.path());
        let path = |n| format!("/srv/{n}");
        let files = [0, 1, 2].map(|n| follow(&mut run, wanted(By::Rule, &path(n))).1);
        let hangs = run.closing.put(tempfile::tempfile().unwrap()).unwrap();
        run.open += 1;
        for _ in 0..5 {
            for file in files {
                look(&mut run, file);
            }
            assert_eq!(run.open, 1 + files.len());
        }
        // A sampler has one, another one is let go.
        let mut reach = run.files[files[0].index()].lend(&mut PathList::default());
        let_go(&mut run, files[1], End::Unwanted);
        run.close(files[1]);

        let open = |run: &Run, file: FileId| run.files[file.index()].open.is_some();
        run.have_closed(hangs.device, 1);
        assert!(open(&run, files[2]), "the one that was let go comes before it");
        run.have_closed(hangs.device, 1);
        assert!(!open(&run, files[2]), "it need not wait any more");
        run.files[files[0].index()].take_back(&mut reach);
        run.close_if_late(files[0]);
        assert!(open(&run, files[0]), "it has to wait, again");
        run.have_closed(hangs.device, 1);
        assert!(!open(&run, files[0]));
        run.have_closed(hangs.device, 1);
        assert!(run.open == 0 && run.closing.devices.is_empty() && run.closing.late.is_empty());
    }
}
