//! Which mounts there are, so that whoever holds a file open notices when its filesystem is
//! unmounted lazily.
//!
//! `umount -l` takes a filesystem out of sight at once, and gives its device back when the last
//! file on it is closed. Nothing tells those who hold one open; but the mount through which they
//! opened it is in no list of mounts any more.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

/// Where the kernel lists mounts: those of this process; and those of the first, since a file may
/// have been handed over by a process that sees more than a sandboxed service does.
const LISTS: [&str; 2] = ["/proc/self/mountinfo", "/proc/1/mountinfo"];

/// Between two readings, however often something is mounted.
const INTERVAL: Duration = Duration::from_secs(1);

/// The lists, for all threads.
#[derive(Debug)]
pub struct Lists(Mutex<State>);

#[derive(Debug)]
struct State {
    lists: Vec<File>,
    /// Something was mounted or unmounted since they were read.
    stale: bool,
    read: Option<Instant>,
    changes: u64,
    ids: Arc<[u32]>,
}

/// What was mounted when the lists were read last.
#[derive(Clone, Debug)]
pub struct Mounts {
    ids: Arc<[u32]>,
    /// How often that has changed.
    pub changes: u64,
}

impl Lists {
    /// Opens the lists, as far as there are any.
    #[must_use]
    pub fn open() -> Lists {
        let lists = LISTS.iter().filter_map(|path| File::open(path).ok()).collect();
        Lists(Mutex::new(State { lists, stale: true, read: None, changes: 0, ids: [].into() }))
    }

    /// What is mounted, or was a second ago.
    pub fn mounts(&self) -> Mounts {
        let mut state = self.0.lock();
        state.take_note();
        if state.stale && state.read.is_none_or(|read| read.elapsed() >= INTERVAL) {
            state.read();
        }
        Mounts { ids: state.ids.clone(), changes: state.changes }
    }

    /// Whether there is a mount with this id now. One that has just been made is found, too.
    pub fn has(&self, id: u32) -> bool {
        let mut state = self.0.lock();
        state.take_note();
        if state.stale && state.ids.binary_search(&id).is_err() {
            state.read();
        }
        state.ids.binary_search(&id).is_ok()
    }
}

impl State {
    fn take_note(&mut self) {
        for list in &self.lists {
            self.stale |= has_changed(list); // each says so once
        }
    }

    fn read(&mut self) {
        self.read = Some(Instant::now());
        self.changes += 1;
        if let Ok(ids) = self.lists.iter_mut().map(read).collect::<io::Result<Vec<_>>>() {
            self.ids = sorted(ids.concat());
            self.stale = false;
        }
    }
}

impl Mounts {
    /// Whether there is a mount with this id.
    #[must_use]
    pub fn has(&self, id: u32) -> bool {
        self.ids.binary_search(&id).is_ok()
    }
}

/// Whether something was mounted or unmounted since it was last asked.
fn has_changed(list: &File) -> bool {
    let mut fds = [PollFd::new(list.as_fd(), PollFlags::POLLPRI)];
    let ready = poll(&mut fds, PollTimeout::ZERO);
    ready.is_ok_and(|ready| ready > 0)
}

fn read(list: &mut File) -> io::Result<Vec<u32>> {
    let mut text = Vec::new();
    list.rewind()?;
    list.read_to_end(&mut text)?;
    Ok(ids(&text))
}

/// ```text
/// 36 35 253:0 / /srv rw,noatime shared:1 - ext4 /dev/mapper/vg-srv rw
/// ```
fn ids(mountinfo: &[u8]) -> Vec<u32> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    let id = |line: &[u8]| {
        let word = line.split(|byte| *byte == b' ').next()?;
        std::str::from_utf8(word).ok()?.parse().ok()
    };
    lines.filter_map(id).collect()
}

fn sorted(mut ids: Vec<u32>) -> Arc<[u32]> {
    ids.sort_unstable();
    ids.dedup();
    ids.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::inode::mount_id;

    #[test]
    fn the_first_number_of_a_line_is_the_mount() {
        let text = b"22 1 254:0 / / rw - ext4 /dev/vda rw\n30 22 253:0 / /srv\xff rw\nnonsense\n";
        assert_eq!(ids(text), [22, 30]);
    }

    #[test]
    fn the_mount_of_an_open_file_is_listed() {
        let lists = Lists::open();
        let id = mount_id(&File::open("/proc/self/status").unwrap());
        assert!(id.is_none_or(|id| lists.has(id)), "{id:?}");
        let mounts = lists.mounts();
        let again = (0..10).any(|_| lists.mounts().changes == lists.mounts().changes);
        assert!(mounts.changes >= 1 && again, "read once, unless somebody mounts: {mounts:?}");
        assert!(id.is_none_or(|id| mounts.has(id)), "{id:?}: {mounts:?}");
        assert!(!mounts.has(u32::MAX) && !lists.has(u32::MAX));
    }
}
