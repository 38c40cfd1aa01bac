//! A descriptor that travels over a Unix socket.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::{mem, ptr};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Sends bytes and a descriptor with the first of them; gives how many bytes went, at least one.
///
/// # Errors
///
/// Those of `sendmsg`; `EPIPE` raises no signal. `InvalidInput`: there are no bytes to go with it.
pub fn send(stream: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    if bytes.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let iov = [IoSlice::new(bytes)];
    Ok(sendmsg::<()>(stream.as_raw_fd(), &iov, &rights, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// What one message may carry (`SCM_MAX_FD`): with room for it the kernel never cuts the list.
const FDS_MAX: usize = 253;

/// Room for a header and [`FDS_MAX`] descriptors, aligned as a header.
type Room = [u64; (mem::size_of::<libc::cmsghdr>() + FDS_MAX * mem::size_of::<RawFd>()) / 8 + 1];

/// Receives bytes, and the descriptor that came with them: the first; others are closed. 0 bytes
/// are the end of the stream. The descriptor has close-on-exec set.
///
/// # Errors
///
/// Those of `recvmsg`. `EMFILE`: there was no room for a descriptor; none is left open.
pub fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut room: Room = [0; mem::size_of::<Room>() / 8];
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a header of zeros is one without address, bytes or room.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = room.as_mut_ptr().cast();
    header.msg_controllen = mem::size_of::<Room>() as _;
    // SAFETY: the header points to a buffer and to room that outlive the call, with their sizes.
    let received = Errno::result(unsafe {
        libc::recvmsg(stream.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC)
    })?;
    // nix gives no descriptors where the list is cut, and would leave those that came open.
    let fds = take(&header);
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Errno::EMFILE.into());
    }
    Ok((received.unsigned_abs(), fds.into_iter().next()))
}

/// The descriptors in what the kernel has filled; call it once.
fn take(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has set the length of the room to what it has filled.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: it points to a whole header within the room, which is aligned for it.
        let found = unsafe { *control };
        if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the length of an empty message, which touches no memory.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: the descriptors follow their header.
            let first: *const RawFd = unsafe { libc::CMSG_DATA(control) }.cast();
            let count = (found.cmsg_len as usize).saturating_sub(empty) / mem::size_of::<RawFd>();
            // SAFETY: there are so many; the kernel has just made them, for us alone.
            fds.extend(
                (0..count)
                    .map(|at| unsafe { OwnedFd::from_raw_fd(ptr::read_unaligned(first.add(at))) }),
            );
        }
        // SAFETY: both belong to the same message.
        control = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    fds
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    #[test]
    fn a_descriptor_travels_and_is_not_inherited() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"text").unwrap();
        file.rewind().unwrap();
        assert_eq!(send(&here, b"line\n", file.as_fd()).unwrap(), 5);
        let mut buffer = [0; 16];
        let (len, fd) = receive(&there, &mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"line\n");
        let fd = fd.unwrap();
        let flags = fcntl(&fd, FcntlArg::F_GETFD).unwrap();
        assert_eq!(FdFlag::from_bits_retain(flags), FdFlag::FD_CLOEXEC);
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
    }

    #[test]
    fn of_many_descriptors_the_first_is_kept_and_the_rest_closed() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut fds = vec![file.as_raw_fd()];
        fds.resize(FDS_MAX, writer.as_raw_fd());
        let rights = [ControlMessage::ScmRights(&fds)];
        let (iov, flags) = ([IoSlice::new(b"x")], MsgFlags::empty());
        sendmsg::<()>(here.as_raw_fd(), &iov, &rights, flags, None).unwrap();
        drop(writer);
        let (_, kept) = receive(&there, &mut [0; 1]).unwrap();
        let same = |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).unwrap().st_ino;
        assert_eq!(same(kept.unwrap().as_fd()), same(file.as_fd()));
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0, "no writing end is left open");
    }

    #[test]
    fn bytes_may_come_without_a_descriptor_and_the_end_is_no_bytes() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"x").unwrap();
        drop(here);
        assert!(matches!(receive(&there, &mut [0; 8]), Ok((1, None))));
        assert!(matches!(receive(&there, &mut [0; 8]), Ok((0, None))));
    }

    #[test]
    fn a_descriptor_goes_with_a_byte() {
        let (here, _there) = UnixStream::pair().unwrap();
        let error = send(&here, b"", here.as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
