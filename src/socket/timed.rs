//! A stream with an end in time.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::kernel::scm;

/// A stream on which everything together may take until `until`, however it is cut into pieces.
///
/// Reading and writing fail with `TimedOut` from then on.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    pub stream: &'a UnixStream,
    pub until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }

    /// Reads bytes, and a descriptor that came with them.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
        self.stream.set_read_timeout(self.left()?)?;
        loop {
            match scm::receive(self.stream, buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => return received.map_err(timed_out),
            }
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        (&mut self.stream).read(buffer).map_err(timed_out)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        (&mut self.stream).write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The kernel says `EAGAIN` for a time that has run out.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}
