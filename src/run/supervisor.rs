//! Telling systemd, if it is what started the service (`sd_notify(3)`, `Type=notify`).
//!
//! The watchdog is fed by main, between two events: if the engine stands still, so does the food,
//! and systemd starts the service anew. Threads that are stuck in the kernel do not matter to it.

use std::time::Duration;

use log::warn;
use sd_notify::NotifyState;

use crate::engine::Time;

pub(super) struct Supervisor {
    /// Half of what the watchdog takes.
    interval: Option<Duration>,
    due: Time,
    said: String,
}

impl Supervisor {
    pub(super) fn new() -> Supervisor {
        let interval = sd_notify::watchdog_enabled().map(|time| time / 2);
        Supervisor { interval, due: Time::ZERO, said: String::new() }
    }

    /// When the watchdog is to be fed.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.interval.map(|_| self.due)
    }

    /// The engine has just done something: feeds the watchdog if it is time.
    pub(super) fn engine_lives(&mut self, now: Time) {
        if let Some(interval) = self.interval.filter(|_| self.due <= now) {
            self.due = now + interval;
            notify(&[NotifyState::Watchdog]);
        }
    }

    /// One line for `systemctl status`, if it is another one than before.
    pub(super) fn say(&mut self, text: String) {
        if text != self.said {
            notify(&[NotifyState::Status(&text)]);
            self.said = text;
        }
    }
}

/// The service serves, on what may be another configuration than before.
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// It is about to read its configuration again, and will be [`ready`] again.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!("no time for systemd: {error}"),
    }
}

/// It is about to end.
pub(super) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(state: &[NotifyState<'_>]) {
    // Without systemd there is nobody to tell, which is no error.
    if let Err(error) = sd_notify::notify(state) {
        warn!("systemd cannot be told: {error}");
    }
}
