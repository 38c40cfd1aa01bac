//! A call that lasts as long as a device likes, so that the process can end meanwhile.
//!
//! Who waits in the kernel for I/O in flight cannot be killed, and a process has not ended while
//! one of its threads waits like that: its parent goes on waiting for it, as systemd does. So such
//! a call is made in a process of its own, which shares memory and descriptors with the thread that
//! wants it and ends with the call. The thread waits for it, as `posix_spawn()` waits for `exec`;
//! and that wait a signal can end.
//!
//! What is left when the process ends is that one call. It ends by itself when the I/O does, or
//! never; nothing can be done about that.

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_void};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// An ioctl that takes a pointer.
type Ioctl<T> = unsafe fn(RawFd, *mut T) -> nix::Result<c_int>;

/// Bytes for the stack of a process that makes one system call.
const STACK: usize = 64 << 10;

/// An element of a stack, aligned as every architecture wants its end to be.
type Aligned = u128;

struct Call<T> {
    ioctl: Ioctl<T>,
    fd: RawFd,
    argument: *mut T,
    answer: nix::Result<c_int>,
}

/// Makes the ioctl in a process of its own; in this thread where there can be none.
///
/// # Safety
///
/// That of `ioctl` with these arguments. What `argument` leads to has to last as long as the call
/// does, even if this process ends before: it must not be on the stack.
pub(super) unsafe fn ioctl<T>(ioctl: Ioctl<T>, fd: RawFd, argument: *mut T) -> nix::Result<c_int> {
    // EIO: whoever kills that process alone kills its answer. The call may have done its work.
    let mut call = Box::new(Call { ioctl, fd, argument, answer: Err(Errno::EIO) });
    let mut stack: Vec<Aligned> = vec![0; STACK / size_of::<Aligned>()];
    // A handler that ran there would act on our memory, on that small stack.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES;
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    // SAFETY: the new process runs `make` on a stack of its own, with `call` as its argument. Both
    // are on the heap, which lasts until the last process that shares it has ended; and until the
    // new one has ended this thread, whose errno it uses, does not go on (`CLONE_VFORK`). It blocks
    // all signals.
    let child = unsafe { libc::clone(make::<T>, top, flags, (&raw mut *call).cast()) };
    let child = Errno::result(child);
    mask.thread_set_mask()?;
    match child {
        Ok(child) => reap(Pid::from_raw(child)),
        // SAFETY: as the caller promises.
        Err(_) => call.answer = unsafe { ioctl(fd, argument) },
    }
    call.answer
}

/// What the new process does: one system call. No lock and no memory can be had there.
extern "C" fn make<T>(call: *mut c_void) -> c_int {
    // SAFETY: `call` is what `ioctl` gave to `clone()`, and nobody else uses it meanwhile.
    let call = unsafe { &mut *call.cast::<Call<T>>() };
    // SAFETY: as the caller of `ioctl` promises.
    call.answer = unsafe { (call.ioctl)(call.fd, call.argument) };
    0
}

/// Takes note of the end of a process that sends no signal when it ends.
fn reap(child: Pid) {
    while waitpid(child, Some(WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe fn note_process(fd: RawFd, process: *mut u32) -> nix::Result<c_int> {
        // SAFETY: the test gives a pointer to its own number.
        unsafe { *process = std::process::id() };
        Errno::result(fd + 1)
    }

    unsafe fn fail(_: RawFd, _: *mut u32) -> nix::Result<c_int> {
        // SAFETY: closes no descriptor that there is.
        Errno::result(unsafe { libc::close(-1) })
    }

    #[test]
    fn the_call_is_made_in_another_process_with_the_same_memory() {
        let mut process = Box::new(0);
        for _ in 0..20 {
            *process = 0;
            // SAFETY: `note_process` writes the number, which lives longer than the call.
            let answer = unsafe { ioctl(note_process, 6, &raw mut *process) };
            assert_eq!(answer, Ok(7));
            assert!(*process != 0 && *process != std::process::id(), "{process}");
        }
    }

    #[test]
    fn its_error_is_that_of_the_call_and_no_signal_stays_blocked() {
        let before = SigSet::thread_get_mask().unwrap();
        // SAFETY: `fail` touches no memory.
        let answer = unsafe { ioctl(fail, 0, std::ptr::null_mut()) };
        assert_eq!(answer, Err(Errno::EBADF));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
