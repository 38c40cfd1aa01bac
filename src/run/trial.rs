//! A service for tests of what main does: none of its files is looked at, and there is no device.

use std::fs::File;
use std::iter;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::bounded;

use super::Run;
use super::control::{Question, fresh};
use super::scan::{By, Fresh, Key};
use super::service::Service;
use crate::config::{self, Layer, Terms};
use crate::dm::Device;
use crate::engine::{End, Event, FileId, Report, Settings};
use crate::group::Mark;
use crate::kernel::memory::Memory;
use crate::message::RegionId;
use crate::mode::Mode;
use crate::pace::Pacer;
use crate::place::{Filesystem, Place};
use crate::request::Reply;
use crate::update::Group;

pub(super) const DEVICE: Device = Device { major: 4000, minor: 0 };
pub(super) const PATH: &str = "/srv/vm.img";
const CLAIM: u32 = 7;

/// A service that follows nothing, and has its roster in the folder.
pub(super) fn service(folder: &Path) -> Run {
    let open = || Ok(Memory::new());
    let mut run = Run::start(open, CLAIM, Settings::default(), Pacer::new(100), None).unwrap();
    run.service = Some(Service::new(config::read(folder, iter::empty(), Layer::new()).unwrap()));
    run.recall(&folder.join("control.sock"));
    run
}

fn found(by: By, path: &str, group: Option<Group>) -> Fresh {
    let terms = Arc::new(Terms { mode: Mode::Inode, ..config::Settings::default().terms() });
    let place = Place { device: DEVICE, filesystem: Filesystem::Ext, inode: 12, generation: 0 };
    let open = group.map(|_| File::open("/proc/self/stat").unwrap());
    fresh(by, Path::new(path), open, &place, group, terms)
}

/// A file that a rule wants, or somebody else, by its inode.
pub(super) fn wanted(by: By, path: &str) -> Fresh {
    found(by, path, None)
}

/// An open file that comes with its group: the id and the nonce of that.
pub(super) fn handed_over(id: u32, nonce: u32) -> Fresh {
    let (id, mark) = (RegionId(id), Mark { key: 1, nonce });
    found(By::HandOver(id), PATH, Some(Group { id, mark, claim: CLAIM }))
}

/// What the service answers.
pub(super) fn ask(run: &mut Run, question: Question, events: &mut Vec<Event>) -> Reply {
    let (reply, replied) = bounded(1);
    run.asked(question, &reply, events);
    replied.recv().unwrap()
}

/// Follows it; the key that it is known by.
pub(super) fn follow(run: &mut Run, fresh: Fresh) -> (Key, FileId) {
    (fresh.key, run.welcome(vec![fresh])[0])
}

/// Has the engine let the file go, for another reason than it has.
pub(super) fn let_go(run: &mut Run, file: FileId, end: End) {
    let mut actions = Vec::new();
    run.engine.handle(run.now(), Event::Forget(file, false), &mut actions);
    assert!(!actions.is_empty() && !run.engine.follows(file));
    run.report(file, &Report::LetGo(end));
}
