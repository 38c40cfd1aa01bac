//! The messages of one update, and what they bring back.

use std::io;

use super::Error;
use super::ours::Model;
use crate::dm::{Device, Dm, Label, Reply, Turn};
use crate::extent::Extent;
use crate::message::{Message, RegionId, parse_created};

/// The messages of one update. All of them must reach the device that answered the first: a number
/// is given to a new device as soon as it is free. So all but the first, which is a listing, are
/// for the one that has the uuid of the first that answered; where it has none, the name that each
/// answer bears tells, though only once the message has had its effect.
///
/// Who changes anything has a turn at the device, as long as the conversation lasts. Otherwise what
/// the update has created and not yet named could be taken for an orphan, and deleted, between its
/// last listing and its commit.
pub(super) struct Conversation<D: Dm> {
    dm: D,
    device: Device,
    has_turn: bool,
    answered: Option<Label>,
    gone: bool,
    /// Regions created and deleted so far.
    pub(super) created: usize,
    pub(super) deleted: usize,
}

impl<D: Dm> Conversation<D> {
    /// One that changes nothing.
    pub(super) fn new(dm: D, device: Device) -> Conversation<D> {
        let (answered, gone, has_turn) = (None, false, false);
        Conversation { dm, device, has_turn, answered, gone, created: 0, deleted: 0 }
    }

    /// One that changes what `turn` allows it to.
    pub(super) fn in_turn(mut dm: D, device: Device, turn: Turn) -> Result<Self, Error> {
        dm.begin_turn(device, turn).map_err(Error::NoTurn)?;
        let mut conversation = Conversation::new(dm, device);
        conversation.has_turn = true;
        Ok(conversation)
    }

    fn send(&mut self, message: &Message<'_>) -> Result<Vec<u8>, Error> {
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

    pub(super) fn create(&mut self, extent: Extent, model: &Model<'_>) -> Result<RegionId, Error> {
        let aux = model.mark().to_string();
        let (program_id, clockwork, aux) = (model.program_id, model.clockwork, aux.as_bytes());
        let reply = self.send(&Message::Create { extent, clockwork, program_id, aux })?;
        self.created += 1;
        Ok(parse_created(&reply)?)
    }

    pub(super) fn set_aux(&mut self, id: RegionId, aux: &[u8]) -> Result<(), Error> {
        self.send(&Message::SetAux { id, aux }).map(drop)
    }

    /// A region that is gone already is deleted as far as we care.
    pub(super) fn delete(&mut self, id: RegionId) -> Result<(), Error> {
        match self.send(&Message::Delete { id }) {
            Err(Error::Message { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            Err(error) => Err(error),
            Ok(_) => {
                self.deleted += 1;
                Ok(())
            }
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
