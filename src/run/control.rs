//! What is asked on the control socket, and what the service answers.
//!
//! Whatever touches a file or a device is done by the thread of the connection; main is only asked
//! for what it knows, and told what to do. So that those who wait for a device leave threads for
//! others, they are counted, see [`super::trail`].

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

use super::books::unix_time;
use super::scan::{By, Finding, Fresh, Key, Wanted};
use super::service::Read;
use super::trail::{Client, Counter};
use super::{Answer, Run};
use crate::config::{Terms, Touch, device_towards};
use crate::dm::{Device, Dm, Label};
use crate::engine::{self, End, Event, FileId, Report, State};
use crate::entry::{entry, mark};
use crate::extent::SECTOR_BYTES;
use crate::home::{self, Home};
use crate::message::RegionId;
use crate::mode::Mode;
use crate::place::{self, Place};
use crate::request::{
    DeviceState, DeviceStatus, FilePath, FileStatus, Follow, REGION_COST_NS, Reply, Request,
    ServiceStatus, Status, Totals,
};
use crate::sample;
use crate::socket::{self, Peer, Release};
use crate::survey::kernel_stats_bytes;
use crate::update;

/// How long a client waits for main before it is told that the service is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a client that asks for the end may take to hear that it comes.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is asked of main.
pub(super) enum Question {
    Status(Option<PathBuf>),
    Totals(Option<PathBuf>),
    Add(Box<Fresh>),
    /// A file with its group; who waits for its end, if somebody does.
    Follow(Box<Fresh>, Option<Release>),
    Remove(PathBuf),
    Stop(Release),
    /// The client that waited for this file's end has gone.
    Abandoned(Key),
}

/// What the threads of the socket know.
pub(super) struct Desk<O> {
    pub(super) main: Sender<Answer>,
    pub(super) wanted: Arc<Mutex<Arc<Wanted>>>,
    pub(super) read: Arc<Read>,
    pub(super) open: O,
    pub(super) claim: u32,
    pub(super) counter: Counter,
}

impl<O, D> Desk<O>
where
    O: Fn() -> io::Result<D> + Send + Sync + 'static,
    D: Dm,
{
    /// Answers a request, on the thread of its connection.
    pub(super) fn answer(
        &self,
        request: Request,
        fd: Option<OwnedFd>,
        peer: &Peer,
    ) -> socket::Answer {
        let answer = match (request, fd) {
            (Request::Status { path }, _) => {
                Ok(self.ask(Question::Status(path.map(|path| path.0))))
            }
            (Request::Totals { path }, _) => {
                Ok(self.ask(Question::Totals(path.map(|path| path.0))))
            }
            (Request::Add { path, mode, alias }, _) => self.add(&path.0, mode, alias.as_deref()),
            (Request::Remove { path }, _) => Ok(self.ask(Question::Remove(path.0))),
            (Request::Reload, _) => self.reload(),
            (Request::Stop, _) => return self.stop(peer),
            (Request::Follow(follow), Some(fd)) => {
                return self.follow(&follow, fd.into(), peer).unwrap_or_else(refusal);
            }
            (Request::Follow(_), None) => Err("no descriptor came with it".to_owned()),
        };
        answer.map_or_else(refusal, socket::Answer::Now)
    }

    /// What was counted, or why nobody knows.
    pub(super) fn totals(&self) -> Result<Totals, String> {
        match self.ask(Question::Totals(None)) {
            Reply::Totals(totals) => Ok(*totals),
            Reply::Error(why) => Err(why),
            other => Err(format!("main has answered something else: {other:?}")),
        }
    }

    fn ask(&self, question: Question) -> Reply {
        let (reply, replied) = bounded(1);
        if self.main.send(Answer::Asked(question, reply)).is_err() {
            return Reply::Error("the service is ending".to_owned());
        }
        replied.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            Reply::Error(format!("the service has not answered for {PATIENCE:?}; try again"))
        })
    }

    fn add(&self, path: &Path, mode: Mode, alias: Option<&str>) -> Result<Reply, String> {
        let wanted = self.wanted.lock().clone();
        let mut terms = Terms { mode, ..Terms::clone(&wanted.base) };
        if let Some(alias) = alias {
            terms.alias = alias.parse().map_err(|error| format!("the alias {alias:?}: {error}"))?;
        }
        let mut client = self.counter.client();
        go_to(path, &mut client)?;
        let file = sample::open_regular(path).map_err(|error| error.to_string())?;
        let place = place::require(&file).map_err(|obstacle| obstacle.to_string())?;
        let fresh = fresh(By::Request, path, None, &place, None, Arc::new(terms));
        close(file, client);
        Ok(self.ask(Question::Add(Box::new(fresh))))
    }

    fn reload(&self) -> Result<Reply, String> {
        let read = (self.read)();
        let outcome = match &read {
            Ok(config) => Ok(format!("in force, with {} entries", config.rules.len())),
            Err(errors) => Err(errors.to_string()),
        };
        let finding = Finding::Reloaded(read.map(Box::new));
        self.main.send(Answer::Found(finding)).ok(); // ending: nothing to reload
        outcome.map(Reply::Ok)
    }

    fn stop(&self, peer: &Peer) -> socket::Answer {
        let main = self.main.clone();
        // It has heard the answer when it hangs up.
        let (later, release) = peer.later(move || {
            main.send(Answer::Event(Event::Stop)).ok(); // ending already
        });
        match self.ask(Question::Stop(release)) {
            ok @ Reply::Ok(_) => socket::Answer::Later(ok, later),
            other => socket::Answer::Now(other),
        }
    }

    /// Takes a file over from lvm2's command line.
    fn follow(&self, follow: &Follow, file: File, peer: &Peer) -> Result<socket::Answer, String> {
        let mut client = self.counter.client();
        let file = file; // whatever is refused: it is closed before the client leaves
        let device = file.metadata().map(|metadata| sample::device(&metadata));
        client.step(Touch::Device(device.map_err(|error| error.to_string())?));
        client.refusal()?;
        let place = place::require(&file).map_err(|obstacle| obstacle.to_string())?;
        let path = &follow.path.0;
        if follow.mode == Mode::Path {
            go_to(path, &mut client)?;
        }
        let same = || sample::open_regular(path).ok().and_then(|file| place::locate(&file).ok());
        if follow.mode == Mode::Path && same().as_ref() != Some(&place) {
            return Err(format!("{}: it is another file from here", path.display()));
        }
        let mark = mark(path, follow.mode, &place);
        let id = RegionId(follow.group_id);
        let mut dm = (self.open)().map_err(|error| error.to_string())?;
        let group = update::adopt(&mut dm, place.device, id, mark, self.claim)
            .map_err(|error| format!("on {}: {error}", place.device))?;
        let wanted = self.wanted.lock().clone();
        let terms = Arc::new(Terms { mode: follow.mode, ..Terms::clone(&wanted.base) });
        drop(client);
        let by = if follow.foreground { By::Foreground } else { By::HandOver(group.id) };
        let fresh = Box::new(fresh(by, path, Some(file), &place, Some(group), terms));
        if !follow.foreground {
            return Ok(socket::Answer::Now(self.ask(Question::Follow(fresh, None))));
        }
        let (main, key) = (self.main.clone(), fresh.key);
        let (later, release) = peer.later(move || {
            let (reply, _) = bounded(1);
            main.send(Answer::Asked(Question::Abandoned(key), reply)).ok(); // ending
        });
        Ok(match self.ask(Question::Follow(fresh, Some(release))) {
            ok @ Reply::Ok(_) => socket::Answer::Later(ok, later),
            other => socket::Answer::Now(other),
        })
    }
}

/// Makes sure that the client is counted where the path ends.
fn go_to(path: &Path, client: &mut Client<'_>) -> Result<(), String> {
    let device = device_towards(path, &mut |touch| client.step(touch));
    device.map(|device| client.step(Touch::Device(device)));
    client.refusal()
}

/// Closing may take as long as opening did.
fn close(file: File, client: Client<'_>) {
    drop(file);
    drop(client);
}

fn refusal(why: String) -> socket::Answer {
    socket::Answer::Now(Reply::Error(why))
}

/// A file to follow; it has to be open while this is called.
pub(super) fn fresh(
    by: By,
    path: &Path,
    open: Option<File>,
    place: &Place,
    group: Option<update::Group>,
    terms: Arc<Terms>,
) -> Fresh {
    let key = match group {
        Some(group) => Key::of_group(place.device, group.mark),
        None => Key::new(terms.mode, path, place.device, place.inode),
    };
    let template = terms.template(Vec::new());
    let mut entry = entry(open, path, terms.mode, place, group, template, terms.pace());
    entry.home = Home::of(place.device);
    if group.is_none() {
        entry.spec.limits = terms.limits; // lvm2's command line knows none
    }
    Fresh { key, terms, by, entry }
}

impl Run {
    /// Answers what only main knows. A reply that nobody waits for any more is lost.
    pub(super) fn asked(
        &mut self,
        question: Question,
        reply: &Sender<Reply>,
        events: &mut Vec<Event>,
    ) {
        let answer = match question {
            Question::Status(path) => match (self.status(path.as_deref()), path) {
                (Status { files, .. }, Some(path)) if files.is_empty() => not_followed(&path),
                (status, _) => Reply::Status(Box::new(status)),
            },
            Question::Totals(path) => return self.ask_totals(path, reply, events),
            Question::Add(fresh) => self.add(*fresh),
            Question::Follow(fresh, release) => self.take_over(*fresh, release),
            Question::Remove(path) => self.remove(&path, events),
            Question::Stop(release) => {
                self.farewell = Some((self.now() + FAREWELL, release));
                Reply::Ok("ending".to_owned())
            }
            Question::Abandoned(key) => {
                events.extend(self.file_of(key).map(|file| Event::Forget(file, false)));
                return;
            }
        };
        reply.send(answer).ok();
    }

    fn add(&mut self, fresh: Fresh) -> Reply {
        let name = fresh.entry.path.display().to_string();
        if self.file_of(fresh.key).is_some() {
            return Reply::Error(format!("{name} is followed already"));
        }
        if self.is_full() {
            return Reply::Error(format!("{name}: max_files are followed already"));
        }
        self.welcome(vec![fresh]);
        self.write_down();
        Reply::Ok(format!("following {name}"))
    }

    fn take_over(&mut self, fresh: Fresh, release: Option<Release>) -> Reply {
        if self.is_full() {
            self.turn_away(fresh);
            return Reply::Error("max_files are followed already".to_owned());
        }
        let file = match self.follower(&fresh.entry.spec) {
            Some(file) => {
                self.turn_away(fresh); // this very group is followed here
                file
            }
            None => self.welcome(vec![fresh])[0],
        };
        self.write_down();
        if let Some(release) = release {
            self.releases.entry(file).or_default().push(release);
        }
        Reply::Ok("following".to_owned())
    }

    /// Has closed what came with it.
    pub(super) fn turn_away(&mut self, mut fresh: Fresh) {
        let open = fresh.entry.reach.open.take();
        self.open += usize::from(open.is_some());
        self.put_away(open);
    }

    /// The file that is followed with this group, which may have had another id.
    fn follower(&self, spec: &engine::Spec) -> Option<FileId> {
        let mark = spec.group?.mark;
        let has_it = |file: &FileId| self.engine.group(*file).is_some_and(|its| its.mark == mark);
        let on_it = |file: &FileId| self.engine.device(*file) == Some(spec.device);
        self.followed().find(|file| has_it(file) && on_it(file))
    }

    fn remove(&mut self, path: &Path, events: &mut Vec<Event>) -> Reply {
        let files: Vec<FileId> = self.followed().filter(|file| self.is_at(*file, path)).collect();
        let was_away = self.service.as_mut().is_some_and(|service| service.give_up(path));
        if files.is_empty() && !was_away {
            return not_followed(path);
        }
        for file in files {
            self.dismiss(file);
            events.push(Event::Forget(file, true));
        }
        self.write_down();
        Reply::Ok(format!("{} is not followed any more", path.display()))
    }

    pub(super) fn is_at(&self, file: FileId, path: &Path) -> bool {
        *self.files[file.index()].path == *path
    }

    /// Lets go who waited for the file's end.
    pub(super) fn release(&mut self, file: FileId, end: &End) {
        for release in self.releases.remove(&file).unwrap_or_default() {
            release.reply(Reply::Ok(Report::LetGo(end.clone()).to_string()));
        }
    }

    fn status(&self, path: Option<&Path>) -> Status {
        let now = self.now();
        let clock = unix_time();
        let devices: Vec<DeviceStatus> =
            self.engine.device_statuses().map(|status| self.device_status(&status)).collect();
        let wanted = |file: &FileId| path.is_none_or(|path| self.is_at(*file, path));
        let files = self.followed().filter(wanted).filter_map(|file| {
            let status = self.engine.file_status(now, file)?;
            let file = &self.files[file.index()];
            let alias = String::from_utf8_lossy(&file.alias()).into_owned();
            let name = devices.iter().find(|device| device.device == status.device.to_string());
            let device_name = name.map(|device| device.name.clone()).unwrap_or_default();
            let changed = status.changed.map(|at| clock.saturating_sub(now.since(at)).as_secs());
            Some(file_status(&file.path, &status, alias, device_name, changed))
        });
        let mut files: Vec<FileStatus> = files.collect();
        files
            .extend(self.not_followed().filter(|file| path.is_none_or(|path| file.path.0 == path)));
        Status { service: self.service_status(), devices, files }
    }

    pub(super) fn service_status(&self) -> ServiceStatus {
        let now = self.now();
        let lag = self.followed().filter_map(|file| self.engine.file_status(now, file));
        ServiceStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: now.since_start().as_secs_f64(),
            files: self.engine.len() as u64,
            lag_seconds: lag.map(|file| file.lag).max().unwrap_or_default().as_secs_f64(),
            kernel_stats_bytes: kernel_stats_bytes(),
            config_error: self.service.as_ref().and_then(|service| service.config_error.clone()),
        }
    }
}

impl Run {
    pub(super) fn device_status(&self, status: &engine::DeviceStatus) -> DeviceStatus {
        let label = home::label(status.device);
        let toll = self.pacer.toll(status.device);
        let stuck = self.pulse.stuck(status.device, Instant::now());
        let state = match (&label, stuck) {
            (None, _) if Path::new("/sys/block").exists() => DeviceState::Gone,
            (_, Some(_)) => DeviceState::Stuck,
            (_, None) if home::is_suspended(status.device) => DeviceState::Suspended,
            _ => DeviceState::Ok, // as far as can be told
        };
        let Label { name, uuid } = label.unwrap_or_default();
        let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        DeviceStatus {
            device: status.device.to_string(),
            name: text(&name),
            uuid: text(&uuid),
            files: status.files as u64,
            state,
            regions: status.regions,
            own_regions: status.own_regions,
            own_io_cost_estimated_ns: status.own_regions * REGION_COST_NS,
            creates: toll.creates,
            creates_time_ns: nanoseconds(toll.stalled),
            stuck_seconds: stuck.unwrap_or_default().as_secs_f64(),
        }
    }

    /// Files that are wanted: those that cannot be followed, and those that may come back.
    fn not_followed(&self) -> impl Iterator<Item = FileStatus> {
        let unfit = self.service.iter().flat_map(|service| &service.unfit);
        let unfit = unfit.map(|(path, why)| bare_status(path, Mode::default(), "unfit", why));
        let away = self.service.iter().flat_map(|service| &service.away);
        let away = away.filter_map(|(whose, away)| {
            Some(bare_status(whose.path(), away.mode, "away", away.why.as_deref()?))
        });
        unfit.chain(away)
    }
}

pub(super) fn not_followed(path: &Path) -> Reply {
    Reply::Error(format!("{} is not followed; status shows what is", path.display()))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn file_status(
    path: &Path,
    status: &engine::FileStatus<'_>,
    alias: String,
    device_name: String,
    last_change_unix_seconds: Option<u64>,
) -> FileStatus {
    let mapped_bytes = status.sectors * SECTOR_BYTES;
    FileStatus {
        path: FilePath(path.to_owned()),
        mode: status.mode,
        device: status.device.to_string(),
        device_name,
        group: status.group.map(|group| group.0),
        regions: status.regions,
        max_regions: status.max_regions,
        extents: status.extents,
        mapped_bytes,
        foreign_bytes: status.foreign_sectors * SECTOR_BYTES,
        unmapped_bytes: status.size.unwrap_or(0).saturating_sub(mapped_bytes),
        state: status.state.as_str().to_owned(),
        last_change_unix_seconds,
        last_error: status.failing.map(str::to_owned),
        lag_seconds: status.lag.as_secs_f64(),
        interval_seconds: status.interval.as_secs_f64(),
        alias,
    }
}

/// A file that is not followed.
fn bare_status(path: &Path, mode: Mode, state: &str, why: &str) -> FileStatus {
    let none = engine::FileStatus {
        file: FileId(0),
        mode,
        device: Device { major: 0, minor: 0 },
        group: None,
        regions: 0,
        extents: 0,
        sectors: 0,
        shared_sectors: 0,
        inode: None,
        foreign_sectors: 0,
        max_regions: 0,
        size: None,
        state: State::New,
        changed: None,
        failing: Some(why),
        lag: Duration::ZERO,
        interval: Duration::ZERO,
    };
    let status = file_status(path, &none, String::new(), String::new(), None);
    FileStatus { state: state.to_owned(), ..status }
}

#[cfg(test)]
mod tests {
    use super::super::trial::{PATH, ask, follow, handed_over, let_go, service, wanted};
    use super::*;

    fn hand_over(run: &mut Run, id: u32, nonce: u32) -> Key {
        let fresh = Box::new(handed_over(id, nonce));
        let key = fresh.key;
        let reply = ask(run, Question::Follow(fresh, None), &mut Vec::new());
        assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
        key
    }

    #[test]
    fn a_group_that_has_the_freed_id_of_another_one_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = service(folder.path());
        let first = hand_over(&mut run, 3, 1);
        let file = run.file_of(first).unwrap();
        // Its group has another id by now, whether the service knows that or not.
        let second = hand_over(&mut run, 3, 2);
        assert_eq!(run.engine.len(), 2);
        assert_eq!(run.file_of(first), Some(file));
        assert_ne!(run.file_of(second), Some(file));
        hand_over(&mut run, 8, 1);
        assert_eq!(run.engine.len(), 2, "that is the first, which has moved");

        let second_file = run.file_of(second).unwrap();
        let_go(&mut run, second_file, End::Unwanted);
        assert_eq!((run.file_of(first), run.file_of(second)), (Some(file), None));
    }

    #[test]
    fn what_is_removed_while_it_is_away_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = service(folder.path());
        let (_, file) = follow(&mut run, wanted(By::Rule, PATH));
        let_go(&mut run, file, End::Unmounted);
        let reply = ask(&mut run, Question::Remove(PATH.into()), &mut Vec::new());
        assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
        let (back, beside) = (wanted(By::Rule, PATH), wanted(By::Rule, "/srv/other"));
        assert!(run.service.as_ref().unwrap().is_dismissed(&back));
        assert!(!run.service.as_ref().unwrap().is_dismissed(&beside));
    }
}
