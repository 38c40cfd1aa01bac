//! What the threads do: look at files, talk to the device-mapper, and say what came of it.

use std::fs;
use std::iter;
use std::sync::Arc;

use crossbeam_channel::Sender;
use log::debug;

use super::Answer;
use super::closing::Files;
use super::pulse::Pulse;
use super::tidy::Tidy;
use crate::dm::{Device, Dm, Known};
use crate::engine::{Batch, Event, FileId};
use crate::extent::Extents;
use crate::group::Mark;
use crate::home::Home;
use crate::kernel::fiemap::Pages;
use crate::mounts::Lists;
use crate::sample::{self, Reach};
use crate::sight::Sight;
use crate::update::{self, Group, Template};

/// For a sampler.
pub(super) enum Sample {
    /// Look at the files, which are reached by these, in the same order.
    Look { batch: Batch, reaches: Vec<Reach>, keep: bool },
    /// Read the device's write counter.
    Gauge(Device),
    /// Close the files.
    Close(Files),
}

/// For a thread that talks to the device-mapper.
pub(super) enum Order {
    Establish {
        file: FileId,
        device: Device,
        home: Option<Arc<Home>>,
        template: Template,
        mark: Mark,
        want: Extents,
    },
    Update {
        file: FileId,
        device: Device,
        group: Group,
        want: Extents,
    },
    Remove {
        file: FileId,
        device: Device,
        group: Group,
    },
    Sweep {
        device: Device,
        groups: Vec<(FileId, Group)>,
    },
}

/// A sampler: what it does with a job.
pub(super) fn sampler(
    inbox: Sender<Answer>,
    lists: Arc<Lists>,
    pulse: Pulse,
) -> impl FnMut(Sample) {
    let mut pages = Pages::default();
    move |job| {
        let answer = match job {
            Sample::Look { mut batch, mut reaches, keep } => {
                let mounts = lists.mounts();
                for (look, reach) in iter::zip(&mut batch.looks, &mut reaches) {
                    look.sight = match batch.maps {
                        _ if reach.is_detached(&mounts) => Sight::Unmounted,
                        Some(_) => sample::look(reach, keep, &mut pages),
                        None => sample::compare(reach, look.last),
                    };
                    if batch.maps.is_some() {
                        pulse.beat(batch.device);
                    }
                }
                Answer::Looked(batch, reaches)
            }
            Sample::Gauge(device) => {
                // Files are to be looked at, too, when their filesystem may have been unmounted.
                let changes = lists.mounts().changes;
                let writes = writes(device).map(|writes| writes.wrapping_add(changes));
                Answer::Event(Event::Gauged(device, writes))
            }
            Sample::Close(Files { device, files }) => {
                let count = files.len();
                drop(files);
                Answer::Closed(device, count)
            }
        };
        inbox.send(answer).ok(); // nobody there: the process is about to end
    }
}

/// Write requests and flushes that the device has finished; `None` if it does not say.
fn writes(device: Device) -> Option<u64> {
    let stat = fs::read_to_string(format!("/sys/dev/block/{device}/stat")).ok()?;
    let number = |at: usize| stat.split_ascii_whitespace().nth(at)?.parse::<u64>().ok();
    // The fifth and the sixteenth number (Documentation/block/stat.rst); flushes since Linux 5.5.
    Some(number(4)? + number(15).unwrap_or(0))
}

/// A thread that talks to the device-mapper: what it does with an order. Main gives one order for
/// a device at a time, so that no two updates of one device mix.
pub(super) fn ioctls(
    mut dm: impl Dm,
    claim: u32,
    inbox: Sender<Answer>,
    tidy: Option<Tidy>,
) -> impl FnMut(Order) {
    move |order| {
        if let (Some(tidy), Order::Sweep { device, .. }) = (&tidy, &order) {
            tidy.swept(&mut dm, *device);
        }
        let event = carry_out(&mut dm, claim, order);
        debug!("{event:?}");
        inbox.send(Answer::Event(event)).ok(); // as above
    }
}

fn carry_out(dm: &mut impl Dm, claim: u32, order: Order) -> Event {
    match order {
        Order::Establish { file, device, home, template, mark, want } => {
            let dm = Known { dm, label: home.as_ref().map(|home| &home.label) };
            let updated = update::establish(dm, device, &template, mark, claim, &want);
            Event::Updated(device, file, updated)
        }
        Order::Update { file, device, group, want } => {
            Event::Updated(device, file, update::update(dm, device, group, &want).map(Some))
        }
        Order::Remove { file, device, group } => {
            Event::Removed(device, file, update::remove(dm, device, group))
        }
        Order::Sweep { device, groups } => {
            let (files, groups): (Vec<FileId>, Vec<Group>) = groups.into_iter().unzip();
            let standings = update::look(dm, device, &groups);
            Event::Swept(device, standings.map(|seen| iter::zip(files, seen).collect()))
        }
    }
}
