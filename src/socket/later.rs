//! A last reply that comes when the daemon has it.

use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::request::Reply;

/// The end of a pipe that makes the accepting thread look up. It does not block.
#[derive(Clone, Debug)]
pub(super) struct Bell(pub Arc<UnixStream>);

impl Bell {
    pub fn ring(&self) {
        (&*self.0).write_all(&[0]).ok(); // full: it has been rung; closed: nobody is to look up
    }
}

/// What keeps a connection open until [`Release`] gives its last reply.
pub struct Later {
    reply: Arc<Mutex<Option<Reply>>>,
    gone: Option<Box<dyn FnOnce() + Send>>,
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Later").field("reply", &self.reply).finish_non_exhaustive()
    }
}

/// The daemon's half of [`Later`]. Dropped without a reply it gives an error.
#[derive(Debug)]
pub struct Release {
    reply: Arc<Mutex<Option<Reply>>>,
    bell: Bell,
}

impl Release {
    /// Gives the last reply and lets the client go. If it has gone already nothing happens.
    pub fn reply(self, reply: Reply) {
        *self.reply.lock() = Some(reply);
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let lost = || Reply::Error("the service does not follow the file any more".to_owned());
        self.reply.lock().get_or_insert_with(lost);
        self.bell.ring();
    }
}

pub(super) fn pair(bell: Bell, gone: impl FnOnce() + Send + 'static) -> (Later, Release) {
    let reply = Arc::new(Mutex::new(None));
    (Later { reply: Arc::clone(&reply), gone: Some(Box::new(gone)) }, Release { reply, bell })
}

/// A connection that has nothing to do but wait.
#[derive(Debug)]
pub(super) struct Parked {
    pub stream: UnixStream,
    later: Later,
}

impl Parked {
    pub fn new(stream: UnixStream, later: Later) -> io::Result<Parked> {
        stream.set_nonblocking(true)?;
        Ok(Parked { stream, later })
    }

    /// Whether it still waits; if not, it has been told the last reply.
    pub fn waits(&mut self) -> bool {
        let Some(reply) = self.later.reply.lock().take() else { return true };
        self.later.gone = None;
        let mut line = Vec::new();
        // The line is short and nothing is before it in the stream, so that it is written at once
        // or never: no client can make this thread wait.
        reply.write(&mut line).and_then(|()| (&self.stream).write_all(&line)).ok();
        false
    }
}

impl Drop for Later {
    /// The client went before its reply came.
    fn drop(&mut self) {
        if let Some(gone) = self.gone.take().filter(|_| self.reply.lock().is_none()) {
            gone();
        }
    }
}
