//! One client: lines in, lines out.

use std::io::{self, BufWriter, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::later::{Later, Parked};
use super::timed::Timed;
use super::{Answer, Limits, Peer};
use crate::request::{Reply, Request};

/// Bytes in a request, with its line end.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Serves a client until it goes, breaks a rule, or is to be parked.
pub(super) fn serve(
    stream: UnixStream,
    peer: &Peer,
    limits: Limits,
    handler: &impl Fn(Request, Option<OwnedFd>, &Peer) -> Answer,
) -> io::Result<Option<Parked>> {
    let mut input = Input::default();
    loop {
        let until = Instant::now() + limits.request;
        let (line, fd) = match input.line(&mut Timed { stream: &stream, until }) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(None),
            Err(error) => {
                let text = format!("the request was not read: {error}");
                write(&stream, limits.reply, &Reply::Error(text))?;
                return Err(error);
            }
        };
        let (reply, later) = answer(&line, fd, peer, handler);
        write(&stream, limits.reply, &reply)?;
        if let Some(later) = later {
            return Parked::new(stream, later).map(Some);
        }
    }
}

fn answer(
    line: &[u8],
    fd: Option<OwnedFd>,
    peer: &Peer,
    handler: &impl Fn(Request, Option<OwnedFd>, &Peer) -> Answer,
) -> (Reply, Option<Later>) {
    let request = match Request::read(line) {
        Ok(request) => request,
        Err(error) => return (Reply::Error(error), None),
    };
    let fd = match request {
        Request::Follow(_) if fd.is_none() => {
            let text = "the request follow came without a descriptor; send one with SCM_RIGHTS";
            return (Reply::Error(text.to_owned()), None);
        }
        Request::Follow(_) => fd,
        _ => None,
    };
    match handler(request, fd, peer) {
        Answer::Now(reply) => (reply, None),
        Answer::Later(reply, later) => (reply, Some(later)),
    }
}

fn write(stream: &UnixStream, limit: Duration, reply: &Reply) -> io::Result<()> {
    let until = Instant::now() + limit;
    let mut out = BufWriter::with_capacity(64 * 1024, Timed { stream, until });
    let written = reply.write(&mut out).and_then(|()| out.flush());
    drop(out.into_parts()); // or what a slow client has not taken would be written once more
    written
}

/// What has come and is not used yet.
#[derive(Default)]
struct Input {
    bytes: Vec<u8>,
    fd: Option<OwnedFd>,
}

impl Input {
    /// The next line, without its end, and the first descriptor that came with it; `None` at the
    /// end of the stream.
    fn line(&mut self, stream: &mut Timed<'_>) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.bytes[searched..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.bytes.drain(..=searched + at).collect();
                line.pop();
                return Ok(Some((line, self.fd.take())));
            }
            searched = self.bytes.len();
            if searched >= REQUEST_BYTES_MAX {
                let text = format!("it is longer than {REQUEST_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            let mut buffer = [0; 4096];
            let room = buffer.len().min(REQUEST_BYTES_MAX - searched);
            let (len, fd) = stream.receive(&mut buffer[..room])?;
            if len == 0 {
                return Ok(None);
            }
            self.bytes.extend_from_slice(&buffer[..len]);
            self.fd = self.fd.take().or(fd);
        }
    }
}
