//! What threads of the service touch that look for files, so that none waits where another one
//! waits already.
//!
//! A path may lead anywhere, and any step may take as long as a device does. Before each one it is
//! said here what it touches: the filesystem of a device, or a link, of which nobody knows where it
//! leads to; and when it is over, that what follows touches neither.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::config::Touch;
use crate::dm::Device;
use crate::socket::CONNECTIONS_MAX;

/// Where a thread may be stuck.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Spot {
    /// On the filesystem of this device.
    Device(Device),
    /// Behind this link.
    Link(PathBuf),
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spot::Device(device) => write!(f, "device {device}"),
            Spot::Link(path) => write!(f, "what {} leads to", path.display()),
        }
    }
}

impl Spot {
    /// Where whoever touches this may be stuck, if anywhere.
    fn of(touch: Touch<'_>) -> Option<Spot> {
        match touch {
            Touch::Device(device) => Some(Spot::Device(device)),
            Touch::Link(path) => Some(Spot::Link(path.to_owned())),
            Touch::Memory => None,
        }
    }
}

/// Where one scan is, for main to see.
#[derive(Debug)]
pub(super) struct Trail {
    /// Where earlier ones are stuck.
    shunned: HashSet<Spot>,
    here: Mutex<(u64, Option<Spot>)>,
}

impl Trail {
    pub(super) fn new(shunned: HashSet<Spot>) -> Trail {
        Trail { shunned, here: Mutex::default() }
    }

    /// The next step is this; whether it may be taken.
    pub(super) fn step(&self, touch: Touch<'_>) -> bool {
        let spot = Spot::of(touch);
        if spot.as_ref().is_some_and(|spot| self.shunned.contains(spot)) {
            return false;
        }
        let mut here = self.here.lock();
        *here = (here.0 + 1, spot);
        true
    }

    /// How many steps were taken, and what the last one touches if it is not over.
    pub(super) fn here(&self) -> (u64, Option<Spot>) {
        self.here.lock().clone()
    }
}

/// Requests of clients that touch the same spot at a time: one more is turned away.
const SPOT_MAX: usize = 4;

/// Such requests in all: so many that of the clients that are served at a time some are left who
/// ask for nothing of that kind.
const ALL_MAX: usize = 48;

const _: () = assert!(ALL_MAX < CONNECTIONS_MAX);

/// What is touched for clients.
#[derive(Debug, Default)]
pub(super) struct Counter(Mutex<HashMap<Spot, usize>>);

/// A client for whom something may be touched, one spot at a time.
#[derive(Debug)]
pub(super) struct Client<'a> {
    counter: &'a Counter,
    spot: Option<Spot>,
    /// Why it was turned away.
    refused: Option<String>,
}

impl Counter {
    pub(super) fn client(&self) -> Client<'_> {
        Client { counter: self, spot: None, refused: None }
    }
}

impl Client<'_> {
    /// The next step is this; whether it may be taken.
    pub(super) fn step(&mut self, touch: Touch<'_>) -> bool {
        let spot = Spot::of(touch);
        if self.spot == spot {
            return true;
        }
        self.leave();
        let Some(spot) = spot else { return true };
        let mut counts = self.counter.0.lock();
        let all = counts.values().sum::<usize>();
        let here = counts.get(&spot).copied().unwrap_or_default();
        if all >= ALL_MAX || here >= SPOT_MAX {
            let it = if here >= SPOT_MAX { spot.to_string() } else { "what they touch".to_owned() };
            let wait = "does not answer, and other requests wait for it already; try again later";
            self.refused = Some(format!("{it} {wait}"));
            return false;
        }
        counts.insert(spot.clone(), here + 1);
        self.spot = Some(spot);
        true
    }

    /// What it is told if it was turned away.
    pub(super) fn refusal(&mut self) -> Result<(), String> {
        self.refused.take().map_or(Ok(()), Err)
    }

    fn leave(&mut self) {
        let Some(spot) = self.spot.take() else { return };
        let mut counts = self.counter.0.lock();
        match counts.get_mut(&spot) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&spot)),
        }
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn on(minor: u32) -> Touch<'static> {
        Touch::Device(Device { major: 253, minor })
    }

    #[test]
    fn a_trail_leads_past_what_is_shunned() {
        let link = Path::new("/srv/link");
        let trail =
            Trail::new([on(0), Touch::Link(link)].into_iter().filter_map(Spot::of).collect());
        assert!(trail.step(on(1)) && trail.step(on(1)));
        assert!(!trail.step(on(0)) && !trail.step(Touch::Link(link)));
        assert_eq!(trail.here(), (2, Spot::of(on(1))));
        assert!(trail.step(Touch::Memory));
        assert_eq!(trail.here(), (3, None), "it waits for no device");
    }

    #[test]
    fn clients_wait_for_a_device_by_the_handful() {
        let counter = Counter::default();
        let mut clients: Vec<_> = (0..=SPOT_MAX).map(|_| counter.client()).collect();
        let (last, first) = clients.split_last_mut().unwrap();
        assert!(first.iter_mut().all(|client| client.step(on(0)) && client.step(on(0))));
        assert!(!last.step(on(0)));
        let refusal = last.refusal().unwrap_err();
        assert!(refusal.starts_with("device 253:0 does not answer"), "{refusal}");
        assert!(last.step(on(1)), "another device");
        assert!(clients[0].step(Touch::Memory));
        assert!(clients.last_mut().unwrap().step(on(0)), "one has left");
        assert!(!clients[0].step(on(0)));
        clients.pop();
        assert!(clients[0].step(on(0)), "one is gone");
    }

    #[test]
    fn clients_that_wait_leave_room_for_others() {
        let counter = Counter::default();
        let mut clients = Vec::new();
        for minor in 0..100 {
            let mut client = counter.client();
            client.step(on(minor));
            clients.push(client);
        }
        let served = clients.iter_mut().filter_map(|client| client.refusal().ok());
        assert_eq!(served.count(), ALL_MAX);
        drop(clients);
        assert!(counter.0.lock().is_empty());
    }
}
