//! Questions about an open file that `stat` does not answer.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::libc::{self, c_int};

/// The file's data is on the realtime device of its xfs filesystem, whose sectors are not those
/// of the device that `stat` names.
pub const XFLAG_REALTIME: u32 = 1;

mod abi {
    use nix::libc::c_long;

    /// `struct fsxattr`.
    #[repr(C)]
    #[derive(Default)]
    pub struct Fsxattr {
        pub xflags: u32,
        pub extsize: u32,
        pub nextents: u32,
        pub projid: u32,
        pub cowextsize: u32,
        pub pad: [u8; 8],
    }

    const _: () = assert!(size_of::<Fsxattr>() == 28);

    nix::ioctl_read!(fs_ioc_getversion, b'v', 1, c_long);
    nix::ioctl_read!(fs_ioc_fsgetxattr, b'X', 31, Fsxattr);
}

/// The generation of the file's inode, which tells it from another file that had or will have the
/// same inode number.
///
/// `None` where the filesystem does not say.
#[doc(alias = "FS_IOC_GETVERSION")]
#[must_use]
pub fn generation(file: &File) -> Option<u32> {
    let mut version = 0;
    // SAFETY: the kernel writes at most a long, which `version` is; any bits make one.
    unsafe { abi::fs_ioc_getversion(file.as_raw_fd(), &raw mut version) }.ok()?;
    // The request is declared for a long, but what filesystems write is an int.
    let [a, b, c, d, ..] = version.to_ne_bytes();
    Some(u32::from_ne_bytes([a, b, c, d]))
}

/// The file's extended flags, such as [`XFLAG_REALTIME`].
///
/// `None` where the filesystem has none.
#[doc(alias = "FS_IOC_FSGETXATTR")]
#[must_use]
pub fn xflags(file: &File) -> Option<u32> {
    let mut attributes = abi::Fsxattr::default();
    // SAFETY: the kernel writes one `struct fsxattr`, which `attributes` is; any bits make one.
    unsafe { abi::fs_ioc_fsgetxattr(file.as_raw_fd(), &raw mut attributes) }.ok()?;
    Some(attributes.xflags)
}

/// The mount through which the file was opened, by the number that `mountinfo` lists it under.
///
/// `None` before Linux 5.8.
#[doc(alias = "STATX_MNT_ID")]
#[must_use]
pub fn mount_id(file: &File) -> Option<u32> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC);
    // SAFETY: the path is an empty string with its NUL, and the kernel writes one `struct statx`,
    // which `found` has room for.
    let done =
        unsafe { libc::statx(fd, c"".as_ptr(), flags, libc::STATX_MNT_ID, found.as_mut_ptr()) };
    // SAFETY: it is a struct of integers, all of which were zero before the kernel wrote any.
    let found = unsafe { found.assume_init() };
    let is_told = done == 0 && found.stx_mask & libc::STATX_MNT_ID != 0;
    u32::try_from(found.stx_mnt_id).ok().filter(|_| is_told)
}

/// Whether nobody else has the file open or mapped: no other process, and nothing else here.
///
/// A write lease is granted to the last opener only; it is given back at once. Duplicates of the
/// descriptor, in this process or another, are the same opener; a descriptor that only names a
/// place (`O_PATH`) is none.
///
/// Ask about unlinked files only. While the lease is held, who opens a file by its path is made to
/// wait, or turned away if it does not want to.
///
/// # Errors
///
/// Of the kernel: no lease without owning the file or `CAP_LEASE` (`EACCES`), or on this
/// filesystem (`EINVAL`).
#[doc(alias = "F_SETLEASE")]
pub fn is_last_opener(file: &File) -> io::Result<bool> {
    // A lease that somebody's open() breaks is announced by SIGIO, which would end the process;
    // SIGURG is ignored unless somebody asks for it. The kernel forgets this with the lease.
    lease(file, F_SETSIG, libc::SIGURG)?;
    match lease(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => {}
        Err(Errno::EAGAIN) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    }
    lease(file, libc::F_SETLEASE, libc::F_UNLCK)?;
    Ok(true)
}

const F_SETSIG: c_int = 10; // asm-generic/fcntl.h; the libc crate has it for few targets

fn lease(file: &File, command: c_int, argument: c_int) -> Result<(), Errno> {
    // SAFETY: these commands take an int and touch no memory.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), command, argument) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Instant;

    /// A file below /proc, where there is next to nothing to ask for.
    fn featureless() -> File {
        File::open("/proc/self/stat").unwrap()
    }

    /// An unlinked file, as those are that one asks about, which `others` have opened before.
    fn unlinked(others: &fs::OpenOptions) -> (File, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "data").unwrap();
        (File::open(&path).unwrap(), others.open(&path).unwrap())
    }

    /// Whether the answer becomes "yes" in time: a child that another test has just forked may
    /// still hold what was open here.
    fn becomes_last_opener(file: &File) -> bool {
        let start = Instant::now();
        while start.elapsed().as_secs() < 10 {
            if is_last_opener(file).unwrap() {
                return true;
            }
        }
        false
    }

    #[test]
    fn generations_tell_files_of_one_inode_number_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut seen = Vec::new();
        for _ in 0..20 {
            let file = File::create(&path).unwrap();
            let of_another_descriptor = generation(&File::open(&path).unwrap());
            assert_eq!(generation(&file), of_another_descriptor);
            if let Some(number) = of_another_descriptor {
                seen.push((file.metadata().unwrap().ino(), number));
            }
            fs::remove_file(&path).unwrap();
        }
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count, "two files are alike");
    }

    #[test]
    fn what_a_filesystem_lacks_is_none() {
        assert_eq!(generation(&featureless()), None);
        assert_eq!(xflags(&featureless()), None);
    }

    #[test]
    fn no_ordinary_file_is_on_a_realtime_device() {
        let flags = xflags(&tempfile::tempfile().unwrap());
        assert_eq!(flags.unwrap_or_default() & XFLAG_REALTIME, 0);
    }

    #[test]
    fn another_opener_is_noticed_until_it_closes() {
        let mut writing = File::options();
        for others in [File::options().read(true), writing.write(true)] {
            let (file, other) = unlinked(others);
            assert!(!is_last_opener(&file).unwrap());
            drop(other);
            assert!(becomes_last_opener(&file));
        }
    }

    #[test]
    fn who_has_it_mapped_is_an_opener() {
        let (file, other) = unlinked(File::options().read(true));
        let (len, shared) = (4096, libc::MAP_SHARED);
        let fd = other.as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice; nothing reads or writes it.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, shared, fd, 0) };
        assert_ne!(map, libc::MAP_FAILED);
        drop(other);
        assert!(!is_last_opener(&file).unwrap());
        // SAFETY: the mapping made above, which nothing uses.
        assert_eq!(unsafe { libc::munmap(map, len) }, 0);
        assert!(becomes_last_opener(&file));
    }

    #[test]
    fn the_lease_is_given_back() {
        let (file, other) = unlinked(File::options().read(true));
        drop(other);
        assert!(becomes_last_opener(&file));
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = File::options();
        options.write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    }

    #[test]
    fn duplicates_and_places_are_no_openers() {
        let (file, place) = unlinked(File::options().read(true).custom_flags(libc::O_PATH));
        let duplicate = file.try_clone().unwrap();
        assert!(becomes_last_opener(&file));
        assert!(becomes_last_opener(&duplicate));
        assert_eq!(is_last_opener(&place).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    /// Each `open()` that meets the lease sends a signal, which must not end the process.
    #[test]
    fn an_open_in_between_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let (done, met) = (AtomicBool::new(false), AtomicBool::new(false));
        let impatient = || {
            let mut options = File::options();
            options.read(true).custom_flags(libc::O_NONBLOCK);
            while !done.load(Ordering::Relaxed) {
                let error = options.open(&path).err().and_then(|error| error.raw_os_error());
                met.fetch_or(error == Some(libc::EWOULDBLOCK), Ordering::Relaxed);
            }
        };
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(impatient);
            while !met.load(Ordering::Relaxed) && start.elapsed().as_secs() < 10 {
                is_last_opener(&file).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(met.into_inner(), "the lease was never in the way");
    }

    #[test]
    fn what_has_no_leases_says_so() {
        let error = is_last_opener(&File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        if !nix::unistd::geteuid().is_root() {
            let error = is_last_opener(&File::open("/etc/passwd").unwrap()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        }
    }
}
