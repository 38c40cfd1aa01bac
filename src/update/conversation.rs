//! The messages of one update, or of a grid, and what they bring back.

use std::io;

use super::Error;
use super::ours::Model;
use super::reading::{Count, Passage, Passing};
use crate::counters::{bounds_ns, parse_print};
use crate::dm::{Device, Dm, Label, Reply, Turn};
use crate::extent::Extent;
use crate::group::Mark;
use crate::message::{Clockwork, Message, RegionId, parse_created};

/// The messages of one update. All of them must reach the device that answered the first: a number
/// is given to a new device as soon as it is free. So all but the first, which is a listing, are
/// for the one that has the uuid of the first that answered; where it has none, the name that each
/// answer bears tells, though only once the message has had its effect.
///
/// Who changes anything has a turn at the device, as long as the conversation lasts. Otherwise what
/// the update has created and not yet named could be taken for an orphan, and deleted, between its
/// last listing and its commit.
pub(crate) struct Conversation<D: Dm> {
    dm: D,
    device: Device,
    has_turn: bool,
    answered: Option<Label>,
    gone: bool,
    /// Regions created and deleted so far.
    pub(super) created: usize,
    pub(super) deleted: usize,
    /// The group that it is about, once that is known.
    mark: Option<Mark>,
    /// What was read of its regions that came and went, if that is wanted.
    passing: Option<Vec<Passing>>,
}

impl<D: Dm> Conversation<D> {
    /// One that changes nothing.
    pub(crate) fn new(dm: D, device: Device) -> Conversation<D> {
        Conversation {
            dm,
            device,
            has_turn: false,
            answered: None,
            gone: false,
            created: 0,
            deleted: 0,
            mark: None,
            passing: None,
        }
    }

    /// One that changes what `turn` allows it to.
    pub(crate) fn in_turn(mut dm: D, device: Device, turn: Turn) -> Result<Self, Error> {
        dm.begin_turn(device, turn).map_err(Error::NoTurn)?;
        let mut conversation = Conversation::new(dm, device);
        conversation.has_turn = true;
        Ok(conversation)
    }

    /// Reads what regions of the group have counted when they come and go, from here on.
    pub(super) fn watch(&mut self) {
        self.passing.get_or_insert_default();
    }

    /// Whether nothing is lost of what regions have counted that go.
    pub(super) fn watches(&self) -> bool {
        self.passing.is_some()
    }

    /// From here on it is about this group.
    pub(super) fn turn_to(&mut self, mark: Mark) {
        self.mark = Some(mark);
    }

    /// What was read of its regions that came and went, if it came to a group.
    pub(super) fn passage(mut self) -> Option<Passage> {
        Some(Passage { mark: self.mark?, regions: self.passing.take()? })
    }

    /// A region is about to end. One that cannot be read is let go all the same.
    pub(super) fn ends(&mut self, id: RegionId, extent: Extent, clockwork: Clockwork<'_>) {
        self.passes(id, extent, clockwork, Passing::Ended);
    }

    /// A region counts from here on, and not what it has counted so far.
    pub(super) fn begins(&mut self, id: RegionId, extent: Extent, clockwork: Clockwork<'_>) {
        self.passes(id, extent, clockwork, Passing::Began);
    }

    fn passes(
        &mut self,
        id: RegionId,
        extent: Extent,
        clockwork: Clockwork<'_>,
        as_what: fn(Count) -> Passing,
    ) {
        if self.passing.is_none() {
            return;
        }
        let Ok(text) = self.print(id) else { return };
        let Ok(reading) = parse_print(&text, clockwork) else { return };
        let bounds_ns = bounds_ns(clockwork);
        if let Some(passing) = &mut self.passing {
            passing.push(as_what(Count { id, extent, reading, bounds_ns }));
        }
    }

    pub(crate) fn send(&mut self, message: &Message<'_>) -> Result<Vec<u8>, Error> {
        if self.gone {
            return Err(Error::Replaced); // whoever has its number has no business with us
        }
        let text = message.encode();
        let reply = match &self.answered {
            Some(Label { uuid, .. }) if !uuid.is_empty() => {
                self.dm.message_to(self.device, uuid, &text)
            }
            _ => self.dm.message(self.device, &text),
        };
        let same = |label| self.answered.as_ref().is_none_or(|first| first.is_still(label));
        let answer = match reply {
            Ok(reply) if same(&reply.label) => Ok(reply),
            Ok(_) => Err(Error::Replaced),
            Err(source) => Err(Error::Message { text, source }),
        };
        self.gone = answer.as_ref().is_err_and(Error::is_no_device);
        let Reply { label, text } = answer?;
        self.answered.get_or_insert(label);
        Ok(text)
    }

    /// All rows, of every program: ids are shared among them.
    pub(super) fn list(&mut self) -> Result<Vec<u8>, Error> {
        self.send(&Message::List { program_id: None })
    }

    /// What a region has counted, by area.
    pub(super) fn print(&mut self, id: RegionId) -> Result<Vec<u8>, Error> {
        self.send(&Message::Print { id, lines: None })
    }

    /// As [`Conversation::create`], in place of a region that has just been deleted.
    pub(super) fn create_at_once(
        &mut self,
        extent: Extent,
        model: &Model<'_>,
    ) -> Result<RegionId, Error> {
        self.dm.hurry();
        self.create(extent, model)
    }

    pub(super) fn create(&mut self, extent: Extent, model: &Model<'_>) -> Result<RegionId, Error> {
        let aux = model.mark().to_string();
        let (program_id, clockwork, aux) = (model.program_id, model.clockwork, aux.as_bytes());
        let reply = self.send(&Message::Create { extent, clockwork, program_id, aux })?;
        self.created += 1;
        let id = parse_created(&reply)?;
        self.gone(id); // what had it before
        Ok(id)
    }

    pub(super) fn set_aux(&mut self, id: RegionId, aux: &[u8]) -> Result<(), Error> {
        self.send(&Message::SetAux { id, aux }).map(drop)
    }

    /// A region that is gone already is deleted as far as we care.
    pub(crate) fn delete(&mut self, id: RegionId) -> Result<(), Error> {
        match self.send(&Message::Delete { id }) {
            Err(Error::Message { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => self.deleted += 1,
        }
        self.gone(id);
        Ok(())
    }

    fn gone(&mut self, id: RegionId) {
        if let Some(passing) = &mut self.passing {
            passing.push(Passing::Gone(id));
        }
    }
}

impl<D: Dm> Drop for Conversation<D> {
    fn drop(&mut self) {
        if self.has_turn {
            self.dm.end_turn(self.device);
        }
    }
}
