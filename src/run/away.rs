//! Files that went with their filesystem or their device, and may come back with it.
//!
//! What a rule wants is found again by the rule; it is listed here so that the status can tell what
//! became of it. What somebody asked for is looked for at each scan.
//!
//! Filesystems may be mounted within others, one after the other. A file has not gone while that
//! one is missing that it was on, and not because it cannot be found out at the moment.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use log::warn;

use super::Run;
use super::added::{Added, Called, recall};
use super::lost::Lost;
use super::scan::{By, Fresh, Task};
use super::service::Claimed;
use super::trail::Trail;
use crate::config::{Touch, device_towards};
use crate::dm::{Device, Dm};
use crate::engine::{End, FileId};
use crate::mode::Mode;

/// Files that only a rule wants of which this is told; of more there is nothing new to tell.
const TOLD_MAX: usize = 1000;

/// A file that is not there at the moment.
#[derive(Debug)]
pub(super) struct Away {
    /// How it was asked for, unless a rule wants it.
    pub(super) added: Option<Added>,
    pub(super) mode: Mode,
    /// Why it was let go; `None` if it was followed by an earlier service.
    pub(super) why: Option<String>,
    /// The device that it was found on, if that is known.
    home: Option<Called>,
    /// On what device its path has ended since.
    end: Option<Device>,
}

/// Which of the files that were at one path: that of a rule, or one that was asked for, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Whose {
    path: PathBuf,
    asked: Option<(Mode, Option<u32>)>,
}

impl Whose {
    fn new(path: PathBuf, added: Option<&Added>) -> Whose {
        Whose { path, asked: added.map(|added| (added.mode, added.group)) }
    }

    /// That of a rule.
    pub(super) fn is_of_rule(&self) -> bool {
        self.asked.is_none()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// A file to be looked for.
#[derive(Debug)]
pub(super) struct Missing {
    whose: Whose,
    added: Option<Added>,
    home: Option<Called>,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    whose: Whose,
    /// On what device its path ends.
    end: Device,
    /// Whether that is the one that it was on, if that is known.
    at_home: Option<bool>,
    /// The file, if somebody asked for it, or why it cannot be followed.
    file: Option<Result<Fresh, Lost>>,
}

/// All of them.
pub(super) type Aways = HashMap<Whose, Away>;

impl Away {
    /// Of a file that an earlier service was asked for.
    pub(super) fn of_earlier(added: Added) -> (Whose, Away) {
        let (mode, home) = (added.mode, added.home.clone());
        let whose = Whose::new(added.path.0.clone(), Some(&added));
        (whose, Away { added: Some(added), mode, why: None, home, end: None })
    }

    /// Whether it will not come back: it is not on its filesystem, which is there by now. Or it was
    /// not there when the service started.
    fn is_gone(&mut self, end: Device, at_home: Option<bool>) -> bool {
        let before = self.end.replace(end);
        let has_come = self.why.is_none() || before.is_some_and(|before| before != end);
        has_come && at_home.unwrap_or(true)
    }
}

/// What is to be looked for.
pub(super) fn missing(aways: &Aways) -> Vec<Missing> {
    let missing = |(whose, away): (&Whose, &Away)| {
        let (added, home) = (away.added.clone(), away.home.clone());
        Missing { whose: whose.clone(), added, home }
    };
    aways.iter().map(missing).collect()
}

/// Looks for the files that are missing; says nothing of those it may not look for.
pub(super) fn look_for<D: Dm>(
    task: &Task,
    open: impl Fn() -> io::Result<D>,
    claim: u32,
) -> Vec<Found> {
    let look = |missing: &Missing| {
        let whose = missing.whose.clone();
        let end = end_of(&whose.path, &task.trail)?;
        let added = missing.added.clone();
        let file = added.map(|added| recall(added, &task.wanted.base, &open, claim));
        let at_home = missing.home.as_ref().map(|home| home.is(end));
        Some(Found { whose, end, at_home, file })
    };
    let found = task.missing.iter().filter_map(look).collect();
    task.trail.step(Touch::Memory);
    found
}

fn end_of(path: &Path, trail: &Trail) -> Option<Device> {
    let end = device_towards(path, &mut |touch| trail.step(touch))?;
    trail.step(Touch::Device(end)).then_some(end)
}

impl Run {
    /// A file was let go, and this is the reason.
    pub(super) fn has_left(&mut self, file: FileId, claimed: &Claimed, end: &End) {
        let (path, home) = (&self.files[file.index()].path, &self.files[file.index()].home);
        let Some(service) = &mut self.service else { return };
        let added = claimed.as_added(path, home.as_deref());
        let may_return = match end {
            End::Unmounted | End::NoDevice => true,
            End::Elsewhere(_) => added.is_some(), // a rule finds what is there now
            _ => false,
        };
        if may_return && (added.is_some() || service.away.len() < TOLD_MAX) {
            let whose = Whose::new(path.to_path_buf(), added.as_ref());
            let home = home.as_deref().map(|home| Called::from(&home.label));
            let (mode, why) = (claimed.terms.mode, Some(end.to_string()));
            service.away.insert(whose, Away { added, mode, why, home, end: None });
        }
    }

    /// Follows again what is there again, and forgets what will not be.
    pub(super) fn returned(&mut self, found: Vec<Found>) {
        let (mut fresh, mut keys, mut changed) = (Vec::new(), HashSet::new(), false);
        for Found { whose, end, at_home, file } in found {
            let away = self.service.as_mut().and_then(|service| service.away.get_mut(&whose));
            let gone = away.is_some_and(|away| match &file {
                Some(Ok(_)) => true, // from here
                Some(Err(Lost::ForNow(_))) => false,
                Some(Err(Lost::ForGood(_))) | None => away.is_gone(end, at_home),
            });
            if gone {
                self.forget_away(&whose);
                changed = true;
            }
            match file {
                Some(Ok(file)) if !gone || self.file_of(file.key).is_some() => self.turn_away(file),
                Some(Ok(file)) if !keys.insert(file.key) => self.turn_away(file),
                Some(Ok(file)) => fresh.push(file),
                Some(Err(why)) if gone => {
                    let path = whose.path.display();
                    warn!("{path}: it was added, and is not followed any more: {why}");
                }
                Some(Err(_)) | None => {}
            }
        }
        self.welcome(fresh);
        if changed {
            self.write_down_soon();
        }
    }

    /// Has closed what was found too late.
    pub(super) fn turn_all_away(&mut self, found: Vec<Found>) {
        for found in found {
            if let Some(Ok(file)) = found.file {
                self.turn_away(file);
            }
        }
    }

    fn forget_away(&mut self, whose: &Whose) {
        if let Some(service) = &mut self.service {
            service.away.remove(whose);
        }
    }

    /// The file is followed, and not away.
    pub(super) fn has_come(&mut self, file: FileId) {
        let is_away = self.service.as_ref().is_some_and(|service| !service.away.is_empty());
        let followed = &self.files[file.index()];
        if let Some(claimed) = followed.claimed.as_ref().filter(|_| is_away) {
            let added = claimed.as_added(&followed.path, None);
            self.forget_away(&Whose::new(followed.path.to_path_buf(), added.as_ref()));
        }
    }
}

impl By {
    /// Whether it is remembered by whom the file was asked for.
    pub(super) fn is_asked(self) -> bool {
        matches!(self, By::Request | By::HandOver(_))
    }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{DEVICE, PATH, follow, handed_over, let_go, service, wanted};
    use super::*;

    const ROOT: Device = Device { minor: 1, ..DEVICE };
    const OUTER: Device = Device { minor: 2, ..DEVICE };

    /// A service whose file has gone with its filesystem; what it is known by.
    fn without_its_file(folder: &Path) -> (Run, Whose) {
        let mut run = service(folder);
        let (_, file) = follow(&mut run, handed_over(3, 1));
        let_go(&mut run, file, End::Unmounted);
        let whose = aways(&run).keys().next().unwrap().clone();
        (run, whose)
    }

    fn aways(run: &Run) -> &Aways {
        &run.service.as_ref().unwrap().away
    }

    fn not_found(whose: &Whose, end: Device, lost: Lost) -> Vec<Found> {
        let at_home = Some(end == DEVICE);
        vec![Found { whose: whose.clone(), end, at_home, file: Some(Err(lost)) }]
    }

    fn for_good() -> Lost {
        Lost::ForGood("no such file".to_owned())
    }

    #[test]
    fn files_that_went_from_one_path_come_back_each_as_it_was_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = service(folder.path());
        let (key, by_rule) = follow(&mut run, wanted(By::Rule, PATH));
        let (_, handed) = follow(&mut run, handed_over(3, 1));
        let (_, other) = follow(&mut run, handed_over(4, 2));
        for file in [handed, other, by_rule] {
            let_go(&mut run, file, End::NoDevice);
        }
        assert_eq!(aways(&run).len(), 3);
        let mut groups: Vec<_> =
            missing(aways(&run)).into_iter().filter_map(|it| it.added).collect();
        groups.sort_by_key(|added| added.group);
        assert_eq!(groups.iter().map(|added| added.group).collect::<Vec<_>>(), [Some(3), Some(4)]);

        follow(&mut run, wanted(By::Rule, PATH));
        assert!(run.file_of(key).is_some() && aways(&run).len() == 2, "it was the rule's alone");
        let whose = Whose::new(PATH.into(), groups.first());
        let file = Some(Ok(handed_over(3, 1)));
        run.returned(vec![Found { whose, end: DEVICE, at_home: None, file }]);
        assert_eq!((run.engine.len(), aways(&run).len()), (2, 1));
    }

    #[test]
    fn a_file_has_not_gone_while_its_filesystem_is_not_there_or_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut run, whose) = without_its_file(folder.path());
        for end in [ROOT, OUTER, ROOT] {
            run.returned(not_found(&whose, end, for_good()));
            assert_eq!(aways(&run).len(), 1, "another filesystem was mounted");
        }
        run.returned(not_found(&whose, DEVICE, Lost::ForNow("too many open files".to_owned())));
        assert_eq!(aways(&run).len(), 1, "nobody knows");
        run.returned(not_found(&whose, DEVICE, for_good()));
        assert_eq!(aways(&run).len(), 0, "its filesystem is there, and it is not");
    }

    #[test]
    fn a_file_of_an_earlier_service_is_looked_for_until_its_filesystem_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (run, _) = without_its_file(folder.path());
        let added = missing(aways(&run)).remove(0).added.unwrap();
        let home = Away::of_earlier(added);
        let mut run = service(folder.path());
        let whose = home.0.clone();
        run.service.as_mut().unwrap().away.extend([home]);
        run.returned(not_found(&whose, ROOT, for_good()));
        run.returned(not_found(&whose, DEVICE, Lost::ForNow("I/O error".to_owned())));
        assert_eq!(aways(&run).len(), 1);
        run.returned(not_found(&whose, DEVICE, for_good()));
        assert_eq!(aways(&run).len(), 0);
    }

    #[test]
    fn what_was_asked_for_is_looked_for_when_its_path_leads_to_another_device() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = service(folder.path());
        let (_, asked) = follow(&mut run, wanted(By::Request, "/srv/asked"));
        let (_, by_rule) = follow(&mut run, wanted(By::Rule, PATH));
        let_go(&mut run, asked, End::Elsewhere(ROOT));
        let_go(&mut run, by_rule, End::Elsewhere(ROOT));
        let paths: Vec<&Path> = aways(&run).keys().map(Whose::path).collect();
        assert_eq!(paths, [Path::new("/srv/asked")], "a rule finds what is there now");
    }

    #[test]
    fn what_is_found_and_not_wanted_any_more_is_closed_by_another_thread() {
        let folder = tempfile::tempdir().unwrap();
        let (mut run, whose) = without_its_file(folder.path());
        let open = run.open; // until main hears that it is closed
        let found = |whose: &Whose| {
            let file = Some(Ok(handed_over(3, 1)));
            vec![Found { whose: whose.clone(), end: DEVICE, at_home: None, file }]
        };
        let late = found(&whose);
        run.turn_all_away(late);
        assert_eq!(run.open, open + 1);
        let nobodys = found(&Whose::new("/srv/other".into(), None));
        run.returned(nobodys);
        assert_eq!((run.open, run.engine.len()), (open + 2, 0));
        follow(&mut run, handed_over(9, 1));
        let followed = found(&whose);
        run.returned(followed);
        assert_eq!((run.open, run.engine.len()), (open + 4, 1));
    }
}
