//! Threads that work off one queue: as many as there are jobs at a time.
//!
//! Any job may stall in the kernel for as long as a device or a writer likes. So a job that finds
//! every member at work gets one more member, and members that have had nothing to do for a while
//! leave. Whoever gives the jobs bounds their number; nobody ever waits for a member to come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{io, thread};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// How long a member waits for a job before it leaves. One always stays.
const PATIENCE: Duration = Duration::from_secs(10);

/// Members, at most; jobs beyond that wait.
const MEMBERS_MAX: usize = 512;

pub(super) struct Crew<J> {
    name: &'static str,
    jobs: Sender<J>,
    queue: Receiver<J>,
    counts: Arc<Counts>,
    equip: Equip<J>,
}

/// Gives a new member what it works with, on its own thread.
type Equip<J> = Arc<dyn Fn() -> io::Result<Box<dyn FnMut(J)>> + Send + Sync>;

#[derive(Default)]
struct Counts {
    /// Jobs that were given and are not done.
    jobs: AtomicUsize,
    members: AtomicUsize,
}

impl<J: Send + 'static> Crew<J> {
    /// A crew of one.
    pub(super) fn new<W>(
        name: &'static str,
        equip: impl Fn() -> io::Result<W> + Send + Sync + 'static,
    ) -> io::Result<Crew<J>>
    where
        W: FnMut(J) + 'static,
    {
        let (jobs, queue) = unbounded();
        let equip = move || Ok(Box::new(equip()?) as Box<dyn FnMut(J)>);
        let crew = Crew { name, jobs, queue, counts: Arc::default(), equip: Arc::new(equip) };
        crew.hire()?;
        Ok(crew)
    }

    /// Has the job done.
    ///
    /// # Errors
    ///
    /// No further member could be had: the job is done when one of the others has time.
    pub(super) fn give(&self, job: J) -> io::Result<()> {
        // Counted before it is there to be done.
        let jobs = self.counts.jobs.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(self.jobs.send(job).is_ok(), "the crew holds the other end itself");
        let members = self.counts.members.load(Ordering::SeqCst);
        if jobs <= members || members >= MEMBERS_MAX {
            return Ok(());
        }
        self.hire()
    }

    fn hire(&self) -> io::Result<()> {
        let (queue, counts, equip) = (self.queue.clone(), self.counts.clone(), self.equip.clone());
        let (tell, told) = bounded(1);
        thread::Builder::new().name(self.name.to_owned()).spawn(move || {
            let mut work = match equip() {
                Ok(work) => work,
                Err(error) => return drop(tell.send(Err(error))),
            };
            counts.members.fetch_add(1, Ordering::SeqCst);
            tell.send(Ok(())).ok(); // whoever hires waits for it
            while let Some(job) = next_job(&queue, &counts) {
                work(job);
                counts.jobs.fetch_sub(1, Ordering::SeqCst);
            }
        })?;
        told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread died at once")))
    }
}

/// The next job; `None` if the member may leave.
fn next_job<J>(queue: &Receiver<J>, counts: &Counts) -> Option<J> {
    loop {
        if let Ok(job) = queue.recv_timeout(PATIENCE) {
            return Some(job);
        }
        let leave = |members: usize| (members > 1).then(|| members - 1);
        let left = counts.members.fetch_update(Ordering::SeqCst, Ordering::SeqCst, leave);
        // A job that was given before this member was gone counted on it.
        if left.is_ok() && queue.is_empty() {
            return None;
        }
        if left.is_ok() {
            counts.members.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    #[test]
    fn a_job_that_stalls_keeps_no_other_job_waiting() {
        let crew: Crew<Box<dyn FnOnce() + Send>> =
            Crew::new("test", || Ok(|job: Box<dyn FnOnce() + Send>| job())).unwrap();
        let (release, stalled) = bounded::<()>(0);
        let (done, finished) = unbounded();
        for _ in 0..20 {
            let (stalled, done) = (stalled.clone(), done.clone());
            let stall = move || {
                stalled.recv().ok();
                done.send("stalled").ok();
            };
            crew.give(Box::new(stall)).unwrap();
            let (reply, replied) = bounded(1);
            crew.give(Box::new(move || reply.send(()).unwrap())).unwrap();
            replied.recv().expect("the other job is done meanwhile");
        }
        drop(release);
        assert_eq!(finished.iter().take(20).count(), 20);
    }

    #[test]
    fn jobs_one_at_a_time_need_one_member() {
        let (done, finished) = unbounded();
        let crew: Crew<u32> = Crew::new("test", move || {
            let done = done.clone();
            Ok(move |job| done.send((job, thread::current().id())).unwrap())
        })
        .unwrap();
        let mut members = std::collections::HashSet::new();
        for job in 0..100 {
            crew.give(job).unwrap();
            let (done, member) = finished.recv().unwrap();
            assert_eq!(done, job);
            members.insert(member);
            while crew.counts.jobs.load(Ordering::SeqCst) > 0 {
                thread::yield_now();
            }
        }
        assert_eq!(members.len(), 1);
    }
}
