//! Following what the configuration wants, for as long as it wants it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use parking_lot::Mutex;

use super::added::Roster;
use super::away::{Aways, look_for, missing};
use super::books::{PATIENCE, add};
use super::scan::{By, Errand, Finding, Fresh, Key, Known, Require, Seen, Task, Wanted};
use super::scans::Scans;
use super::{Answer, Outcome, Run, supervisor};
use crate::config::{Config, Errors, Nameless, Settings, Terms, unique_aliases};
use crate::dm::Dm;
use crate::engine::{End, Event, FileId, Time};
use crate::group::safe_alias;
use crate::kernel::process::give_back_memory;
use crate::message::RegionId;
use crate::paths::SharedPath;
use crate::place;
use crate::values::Listen;

/// Files from which on it is worth while to give back what a scan has taken.
const MANY: usize = 1000;

/// How long the end may wait for groups to be deleted.
const REMOVAL_MAX: Duration = Duration::from_secs(10);

/// Reads the configuration: at the start, and again whenever that is asked for.
pub type Read = Box<dyn Fn() -> Result<Config, Errors> + Send + Sync>;

/// What the service knows beyond what the engine does.
pub(super) struct Service {
    pub(super) wanted: Arc<Wanted>,
    /// The same, for the threads of the socket.
    pub(super) shared: Arc<Mutex<Arc<Wanted>>>,
    /// By what each file is found again.
    pub(super) keys: HashMap<Key, FileId>,
    /// Files that are not to be followed though a rule wants them, until the next reload.
    dismissed: HashSet<Key>,
    /// Files that are wanted and cannot be followed, and why.
    pub(super) unfit: HashMap<PathBuf, String>,
    problems: Vec<String>,
    cut: bool,
    scans: Scans,
    /// Files that may come back.
    pub(super) away: Aways,
    /// Why the configuration in force is not the one in the files.
    pub(super) config_error: Option<String>,
    /// Where it is written down what no rule wants.
    pub(super) roster: Option<Roster>,
}

/// What the service knows of one file.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) key: Key,
    pub(super) terms: Arc<Terms>,
    pub(super) by: By,
}

impl Service {
    pub(super) fn new(config: Config) -> Service {
        let wanted = Arc::new(Wanted::from(config));
        Service {
            shared: Arc::new(Mutex::new(wanted.clone())),
            wanted,
            keys: HashMap::new(),
            dismissed: HashSet::new(),
            unfit: HashMap::new(),
            problems: Vec::new(),
            cut: false,
            scans: Scans::default(),
            away: Aways::new(),
            config_error: None,
            roster: None,
        }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.wanted.config.settings
    }

    /// Files that are wanted and cannot be followed.
    fn unfit(&self) -> usize {
        self.unfit.len()
    }

    /// When something is to be done without an event.
    pub(super) fn next_due(&self) -> Option<Time> {
        [self.scans.next_due(), self.roster_due()].into_iter().flatten().min()
    }
}

/// The scout: what it does with an errand.
pub(super) fn scout<D: Dm>(
    read: Arc<Read>,
    open: impl Fn() -> io::Result<D> + Send,
    claim: u32,
    inbox: crossbeam_channel::Sender<Answer>,
) -> impl FnMut(Errand) + Send {
    move |errand| {
        let finding = match errand {
            Errand::Scan(number, task) => {
                let require: Require = place::require;
                let returns = look_for(&task, &open, claim); // before the rules find the same
                let seen = Seen { returns, ..super::scan::scan(&task, require) };
                Finding::Seen(number, task.wanted, seen)
            }
            Errand::Reload => Finding::Reloaded(read().map(Box::new)),
            Errand::Save(state, ledger, grids) => {
                Finding::Saved(state.write(&ledger, grids).map_err(|error| error.to_string()))
            }
        };
        inbox.send(Answer::Found(finding)).ok(); // nobody there: the process is about to end
    }
}

impl Run {
    /// Does what is due without an event.
    pub(super) fn look_around(&mut self, now: Time) {
        let Some(service) = &mut self.service else { return };
        let (statuses, clock) = (self.engine.device_statuses(), Instant::now());
        let stuck = statuses.filter(|at| self.pulse.stuck(at.device, clock).is_some());
        let Some((number, trail)) = service.scans.begin(now, stuck.map(|at| at.device)) else {
            return;
        };
        let (wanted, missing) = (service.wanted.clone(), missing(&service.away));
        let task = Task { wanted, followed: self.known(now), missing, trail };
        self.scout(Errand::Scan(number, task));
    }

    fn known(&self, now: Time) -> HashMap<Key, Known> {
        let keys = self.service.iter().flat_map(|service| &service.keys);
        let known = keys.filter_map(|(key, file)| {
            let device = self.engine.file_status(now, *file)?.device;
            let file = &self.files[file.index()];
            let by_rule = file.claimed.as_ref()?.by == By::Rule;
            Some((*key, Known { path: file.path.clone(), device, by_rule }))
        });
        known.collect()
    }

    pub(super) fn reload(&mut self) {
        info!("reading the configuration again");
        supervisor::reloading();
        self.scout(Errand::Reload);
    }

    pub(super) fn scout(&self, errand: Errand) {
        if let Some(scouts) = &self.scouts {
            super::give(scouts, errand);
        }
    }

    pub(super) fn found(&mut self, finding: Finding, events: &mut Vec<Event>) {
        match finding {
            Finding::Seen(number, wanted, seen) => self.seen(number, &wanted, seen, events),
            Finding::Saved(outcome) => self.saved(outcome),
            Finding::Reloaded(Ok(config)) => self.reloaded(*config),
            Finding::Reloaded(Err(errors)) => {
                error!("{errors}\nthe configuration from before stays in force");
                supervisor::ready();
                if let Some(service) = &mut self.service {
                    service.config_error = Some(errors.to_string());
                }
            }
        }
    }

    fn reloaded(&mut self, config: Config) {
        let now = self.now();
        let Some(service) = &mut self.service else { return };
        let before = service.settings();
        if before.socket != config.settings.socket {
            warn!("another control socket is used from the next start on");
        }
        if exported(before) != exported(&config.settings) {
            warn!("other metrics_ settings hold from the next start on");
        }
        if before.grid_memory != config.settings.grid_memory {
            warn!("another grid_memory holds from the next start on");
        }
        if before.state_dir != config.settings.state_dir {
            warn!("totals are kept at another place from the next start on");
        }
        self.engine.set_full_look(config.settings.full_look);
        self.engine.set_read(config.settings.read_interval);
        self.engine.set_max_device_regions(now, config.settings.max_device_regions);
        self.pacer.set_share(config.settings.create_share);
        service.config_error = None;
        service.dismissed.clear();
        service.wanted = Arc::new(config.into());
        service.shared.lock().clone_from(&service.wanted);
        service.away.retain(|whose, _| !whose.is_of_rule());
        service.scans.wish(now);
        info!("the configuration is in force, with {} entries", service.wanted.terms.len());
        supervisor::ready();
    }

    /// Follows what is new, and lets go what is not wanted any more.
    fn seen(&mut self, number: u32, wanted: &Arc<Wanted>, mut seen: Seen, events: &mut Vec<Event>) {
        let now = self.now();
        let returns = mem::take(&mut seen.returns);
        let Some(service) = &mut self.service else { return self.turn_all_away(returns) };
        let interval = service.settings().rescan_interval;
        let Some(took) = service.scans.end(now, number, interval) else {
            return self.turn_all_away(returns);
        };
        if !Arc::ptr_eq(wanted, &service.wanted) {
            service.scans.wish(now); // the configuration is another one by now
            return self.turn_all_away(returns);
        }
        if let Some(books) = &mut self.books {
            add(&mut books.scans, took);
        }
        self.returned(returns);
        let followed = self.engine.len();
        let Some(service) = &mut self.service else { return };
        let is_new =
            |fresh: &Fresh| !service.is_dismissed(fresh) && !service.keys.contains_key(&fresh.key);
        seen.fresh.retain(is_new);
        // Files that no rule wants take room, too.
        let room = (service.settings().max_files + seen.gone.len()).saturating_sub(followed);
        seen.cut |= seen.fresh.len() > room;
        seen.fresh.truncate(room);
        service.say_once(&seen);
        service.unfit = seen.unfit.into_iter().collect();
        for (key, rule) in seen.wanted {
            events.extend(self.still_wanted(key, rule));
        }
        for key in seen.gone {
            // It may be another one's by now, who asked for it meanwhile.
            let file = self.file_of(key).filter(|file| self.is_by_rule(*file));
            events.extend(file.map(|file| Event::Forget(file, true)));
        }
        self.welcome(seen.fresh);
        if self.engine.len() >= MANY {
            give_back_memory(); // what the scan has taken
        }
        let (files, unfit) = (self.engine.len(), self.service.as_ref().map_or(0, Service::unfit));
        self.supervisor.say(format!("following {files} file(s); {unfit} cannot be followed"));
    }

    /// A file that is followed is wanted by this rule now, which may say something else than the
    /// one before.
    fn still_wanted(&mut self, key: Key, rule: u32) -> Option<Event> {
        let now = self.now();
        let file = self.file_of(key)?;
        let terms = self.service.as_ref()?.wanted.terms[rule as usize].clone();
        let claimed = self.files[file.index()].claimed.as_mut()?;
        if claimed.by != By::Rule {
            return None; // somebody asked for it, and said how
        }
        let before = std::mem::replace(&mut claimed.terms, terms.clone());
        if Arc::ptr_eq(&before, &terms) || before == terms {
            return None;
        }
        if !before.makes_groups_like(&terms) {
            return Some(Event::Forget(file, true)); // the next scan finds it, and makes another
        }
        self.engine.set_pace(file, terms.pace());
        self.engine.set_limits(now, file, terms.limits);
        None
    }

    fn is_by_rule(&self, file: FileId) -> bool {
        self.files[file.index()].claimed.as_ref().is_some_and(|claimed| claimed.by == By::Rule)
    }

    pub(super) fn file_of(&self, key: Key) -> Option<FileId> {
        self.service.as_ref()?.keys.get(&key).copied()
    }

    /// Follows files, each under a name of its own.
    pub(super) fn welcome(&mut self, fresh: Vec<Fresh>) -> Vec<FileId> {
        if fresh.is_empty() {
            return Vec::new();
        }
        let nameless: Vec<Nameless<'_>> = fresh
            .iter()
            .map(|fresh| Nameless {
                path: &fresh.entry.path,
                inode: fresh.entry.reach.identity.inode,
                template: &fresh.terms.alias,
            })
            .collect();
        let taken: HashSet<Vec<u8>> = self.aliases().collect();
        let aliases = unique_aliases(&nameless, |alias| taken.contains(alias));
        let paths: Vec<&SharedPath> = fresh.iter().map(|fresh| &fresh.entry.path).collect();
        let paths = SharedPath::share(&paths);
        let mut files = Vec::with_capacity(fresh.len());
        for ((fresh, path), alias) in fresh.into_iter().zip(paths).zip(aliases) {
            let Fresh { key, terms, by, mut entry } = fresh;
            entry.path = path;
            let unusual = alias != usual_alias(&entry.path);
            entry.template.alias = alias;
            let alias = unusual.then(|| Box::from(&*entry.template.alias));
            let claimed = Claimed { key, terms, by };
            let file = self.follow(entry, alias, Some(claimed));
            if let Some(service) = &mut self.service {
                service.keys.insert(key, file);
            }
            self.has_come(file);
            files.push(file);
        }
        files
    }

    fn aliases(&self) -> impl Iterator<Item = Vec<u8>> {
        self.followed().map(|file| self.files[file.index()].alias())
    }

    /// Whether as many files are followed as may be.
    pub(super) fn is_full(&self) -> bool {
        let max = self.service.as_ref().map(|service| service.settings().max_files);
        max.is_some_and(|max| self.engine.len() >= max)
    }

    /// The file is not followed any more.
    pub(super) fn let_go(&mut self, file: FileId, end: &End) {
        let Some(claimed) = self.files[file.index()].claimed.take() else { return };
        let now = self.now();
        let Some(service) = &mut self.service else { return };
        service.keys.remove(&claimed.key);
        if !matches!(end, End::NotOurs(_)) {
            // Something else may be there by now, or it is wanted in another way; it need not
            // wait for its turn.
            service.scans.wish(now + service.settings().interval);
        }
        if claimed.by != By::Foreground {
            self.has_left(file, &claimed, end);
        }
        if claimed.by.is_asked() {
            self.write_down_soon();
        }
    }

    /// Stops: at once, or when the groups that this process made are deleted.
    pub(super) fn stop(&mut self, events: &mut Vec<Event>) {
        self.outcome = Outcome::Stopped;
        self.farewell = None; // said, or it would end what goes on below
        if self.service.is_some() {
            supervisor::stopping();
        }
        let config = self.service.as_ref().map(Service::settings);
        let remove = config.map_or(self.remove_on_exit, |settings| settings.remove_on_exit);
        if self.ending.is_some() {
            return events.push(Event::Stop);
        }
        if !remove {
            match self.read_last(events) {
                true => self.ending = Some(self.now() + PATIENCE),
                false => events.push(Event::Stop),
            }
            return;
        }
        self.ending = Some(self.now() + REMOVAL_MAX);
        self.service = None; // nothing new is followed from here on
        self.pacer.stop(); // and no update that is under way takes long
        self.engine.set_patient(false);
        for file in self.followed() {
            events.push(Event::Forget(file, self.files[file.index()].made));
        }
        events.push(Event::Tick); // there may be none
    }

    /// Its group has another id.
    pub(super) fn moved(&mut self, file: FileId, to: RegionId) {
        if let Some(claimed) = &mut self.files[file.index()].claimed {
            if matches!(claimed.by, By::HandOver(_)) {
                claimed.by = By::HandOver(to);
            }
        }
    }

    /// Lets a file go for good, whatever the rules say.
    pub(super) fn dismiss(&mut self, file: FileId) {
        let claimed = self.files[file.index()].claimed.as_ref();
        if let (Some(service), Some(claimed)) = (&mut self.service, claimed) {
            service.dismissed.insert(claimed.key);
        }
    }
}

fn exported(settings: &Settings) -> (&Option<Listen>, &Option<PathBuf>, Duration) {
    (&settings.metrics_listen, &settings.metrics_textfile, settings.metrics_interval)
}

impl Service {
    /// Whether the file was let go for good, by what it is or by its path.
    pub(super) fn is_dismissed(&self, fresh: &Fresh) -> bool {
        let is = |key| self.dismissed.contains(&key);
        !self.dismissed.is_empty() && (is(fresh.key) || is(Key::of_path(&fresh.entry.path)))
    }

    /// Looks no more for what was at the path; whether anything was.
    pub(super) fn give_up(&mut self, path: &Path) -> bool {
        let mut was_there = false;
        self.away.retain(|whose, _| {
            let is_there = whose.path() == path;
            was_there |= is_there;
            if is_there && whose.is_of_rule() {
                self.dismissed.insert(Key::of_path(path)); // or the rule would find it again
            }
            !is_there
        });
        was_there
    }

    /// Says what is wrong when it begins to be so.
    fn say_once(&mut self, seen: &Seen) {
        for (path, why) in &seen.unfit {
            if self.unfit.get(path) != Some(why) {
                warn!("{}: not followed: {why}", path.display());
            }
        }
        for problem in seen.problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("looking for files: {problem}");
        }
        self.problems.clone_from(&seen.problems);
        if seen.cut && !self.cut {
            warn!(
                "there are more files than {}, the limit: the rest is not followed; raise \
                 max_files or narrow the patterns",
                self.settings().max_files
            );
        }
        self.cut = seen.cut;
    }
}

/// What a group is called whose file is not told from others by that.
pub(super) fn usual_alias(path: &Path) -> Vec<u8> {
    safe_alias(path.file_name().unwrap_or(path.as_os_str()).as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::trial::{PATH, follow, let_go, service, wanted};
    use super::*;

    /// A scan has found this out.
    fn saw(run: &mut Run, seen: Seen) -> Vec<Event> {
        let service = run.service.as_mut().unwrap();
        let (number, _) = service.scans.begin(Time::ZERO, std::iter::empty()).unwrap();
        let (wanted, mut events) = (service.wanted.clone(), Vec::new());
        run.found(Finding::Seen(number, wanted, seen), &mut events);
        events
    }

    #[test]
    fn what_no_rule_wants_any_more_is_let_go_unless_somebody_has_asked_for_it_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        for (by, let_go) in [(By::Rule, 1), (By::Request, 0)] {
            let mut run = service(folder.path());
            let (key, _) = follow(&mut run, wanted(by, PATH));
            let events = saw(&mut run, Seen { gone: vec![key], ..Seen::default() });
            assert_eq!(events.len(), let_go, "{by:?}: {events:?}");
        }
    }

    #[test]
    fn many_files_that_go_at_a_time_are_written_down_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = service(folder.path());
        let files: Vec<FileId> = (0..20)
            .map(|n| {
                let mut file = wanted(By::Request, &format!("/srv/{n}"));
                file.key = Key::of_path(&file.entry.path);
                follow(&mut run, file).1
            })
            .collect();
        run.write_down();
        let written = || std::fs::read_to_string(folder.path().join("added.json")).unwrap();
        let before = written();
        assert_eq!(before.matches("/srv/").count(), files.len());
        for file in files {
            let_go(&mut run, file, End::Unused);
            run.write_down_if_due(Time::ZERO);
        }
        assert_eq!(written(), before, "not for each of them");
        let due = run.service.as_ref().unwrap().next_due().unwrap();
        assert!(due <= run.now() + Duration::from_secs(1), "but soon");
        run.write_down_if_due(run.now() + Duration::from_secs(1));
        assert_eq!(written(), "[]");
        assert!(run.service.as_ref().unwrap().roster_due().is_none());
    }
}
