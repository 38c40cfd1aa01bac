//! A folder for the files of a bench, on a disk, and gone afterwards.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{env, io, process, thread};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Says where the folder is made. Otherwise that is below cargo's own, since `/tmp` may be a
/// filesystem in memory, which has no extents.
const ELSEWHERE: &str = "BENCH_FOLDER";

/// What one of the files takes on the disk.
pub const FILE_BYTES: u64 = 4096;

const FOLDERS_OF: usize = 1000;

/// The folder; dropped, or at a signal, it goes with all that is in it.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new folder. Those of benches that were killed are removed.
    pub fn new() -> io::Result<Folder> {
        let below = env::var_os(ELSEWHERE)
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        remove_left_over(&below);
        let path = below.join(format!("bench-{}", process::id()));
        fs::create_dir_all(&path)?;
        let doomed = path.clone();
        let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                fs::remove_dir_all(doomed).ok();
                emulate_default_handler(signal).ok();
            }
        });
        Ok(Folder(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// As many files of one extent as are wanted, or as half of the free space and inodes allow.
    pub fn files(&self, wanted: usize) -> io::Result<Files> {
        self.make("one", wanted, fill)
    }

    /// Likewise, of files without any.
    pub fn empty_files(&self, wanted: usize) -> io::Result<Files> {
        self.make("none", wanted, |_| Ok(()))
    }

    fn make(
        &self,
        kind: &str,
        wanted: usize,
        fill: impl Fn(&File) -> io::Result<()>,
    ) -> io::Result<Files> {
        let free = statvfs(&self.0)?;
        // Some filesystems make inodes as they need them, and say 0.
        let inodes = if free.f_files == 0 { u64::MAX } else { free.f_favail };
        let room = (free.f_bavail * free.f_frsize / FILE_BYTES).min(inodes) / 2;
        let count = wanted.min(usize::try_from(room).unwrap_or(usize::MAX));
        let mut paths = Vec::with_capacity(count);
        for number in 0..count {
            let folder = self.0.join(kind).join((number / FOLDERS_OF).to_string());
            if number % FOLDERS_OF == 0 {
                fs::create_dir_all(&folder)?;
            }
            let path = folder.join(format!("{number:06}.img"));
            if !path.exists() {
                fill(&File::create(&path)?)?;
            }
            paths.push(path.into());
        }
        Ok(Files { paths })
    }
}

/// Gives the file an extent, written or not.
fn fill(file: &File) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, FILE_BYTES) {
        Err(_) => io::Write::write_all(&mut &*file, &[0; 4096]),
        Ok(()) => Ok(()),
    }
}

fn remove_left_over(below: &Path) {
    for entry in fs::read_dir(below).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("bench-"));
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Files of one extent each.
#[derive(Debug)]
pub struct Files {
    pub paths: Vec<Arc<Path>>,
}

impl Files {
    /// The first of them, at most `count`.
    pub fn first(&self, count: usize) -> Files {
        Files { paths: self.paths.iter().take(count).cloned().collect() }
    }

    /// The paths as the kernel takes them.
    pub fn c_paths(&self) -> Vec<CString> {
        let path = |path: &Arc<Path>| CString::new(path.as_os_str().as_bytes());
        self.paths.iter().map(|it| path(it).expect("no path of ours holds a NUL")).collect()
    }

    /// All of them, open.
    pub fn open(&self) -> io::Result<Vec<File>> {
        self.paths.iter().map(File::open).collect()
    }
}
