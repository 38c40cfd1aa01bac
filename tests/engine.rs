//! The engine on its own: no thread, no clock, no kernel.

use std::io;
use std::time::Duration;

use dmfilemapd::dm::Device;
use dmfilemapd::engine::{
    Action, Batch, End, Engine, Event, FileId, MAPPING_MAX, MAPS_MAX, Pace, Report, STAMPS_MAX,
    Settings, Spec, State, Sweep, Time,
};
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::group::Mark;
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::Mode;
use dmfilemapd::shape::Limits;
use dmfilemapd::sight::{Imprint, Map, Sight, Stamp};
use dmfilemapd::update::{self, Group, Standing, Updated};

const FILE: FileId = FileId(0);
const DEVICE: Device = Device { major: 253, minor: 0 };
const GROUP: Group = Group { id: RegionId(0), mark: Mark { key: 1, nonce: 2 }, claim: 3 };
const SECOND: Duration = Duration::from_secs(1);
const SPEC: Spec = Spec {
    mode: Mode::Inode,
    device: DEVICE,
    group: Some(GROUP),
    restless: false,
    pace: Pace { interval: SECOND, max_interval: SECOND },
    limits: Limits::NONE,
};

fn at(seconds: u32) -> Time {
    Time::ZERO + SECOND * seconds
}

/// An engine with one file, and a clock that the test turns.
struct Bench {
    engine: Engine,
    now: Time,
    actions: Vec<Action>,
    /// The look that is out.
    out: Option<Batch>,
}

impl Bench {
    fn new(mode: Mode) -> Bench {
        Bench::with(Spec { mode, ..SPEC })
    }

    fn with(spec: Spec) -> Bench {
        let mut engine = Engine::new(Settings::default());
        engine.follow(Time::ZERO, spec);
        let mut bench = Bench { engine, now: Time::ZERO, actions: Vec::new(), out: None };
        bench.happens(Event::Tick);
        bench
    }

    /// One whose file was mapped, whose group shows the map, and which has settled.
    fn settled(mode: Mode) -> Bench {
        Bench::settled_with(Spec { mode, ..SPEC })
    }

    fn settled_with(spec: Spec) -> Bench {
        let mut bench = Bench::with(spec);
        assert!(bench.wait_for_look(), "the first look reads the map");
        bench.looked(mapped(1, 8));
        bench.expect_update(8);
        bench.updates(0);
        bench.actions.clear();
        while bench.now < at(50) {
            bench.wait_for_look();
            bench.looked(None);
        }
        bench.actions.clear();
        bench
    }

    fn happens(&mut self, event: Event) {
        self.engine.handle(self.now, event, &mut self.actions);
    }

    /// The look that is out came back with this.
    fn looked(&mut self, sight: impl Into<Option<Sight>>) {
        let mut batch = self.out.take().expect("a look is out");
        batch.sights.extend(sight.into().map(|sight| (FILE, sight)));
        self.happens(Event::Looked(batch));
    }

    fn updates(&mut self, id: u32) {
        self.happens(Event::Updated(DEVICE, FILE, Ok(Some(updated(id)))));
    }

    fn fails(&mut self, error: update::Error) {
        self.happens(Event::Updated(DEVICE, FILE, Err(error)));
    }

    /// Lets time pass until the next look, answering sweeps; whether it reads the map.
    fn wait_for_look(&mut self) -> bool {
        loop {
            let at = self.actions.iter().position(|action| matches!(action, Action::Look(_)));
            if let Some(at) = at {
                let Action::Look(batch) = self.actions.remove(at) else {
                    unreachable!("position() found a look")
                };
                let maps = batch.maps.is_some();
                self.out = Some(batch);
                return maps;
            }
            self.now = self.engine.next_due().expect("a look will be due");
            self.happens(Event::Tick);
            self.answer_sweeps();
        }
    }

    fn answer_sweeps(&mut self) {
        let at = self.actions.iter().position(|action| matches!(action, Action::Sweep(..)));
        if let Some(at) = at {
            self.actions.remove(at);
            self.stands(Standing::Stands {
                id: RegionId(0),
                fingerprint: extents(8).fingerprint(),
                tidy: true,
            });
        }
    }

    fn stands(&mut self, standing: Standing) {
        let sweep = Sweep { standings: vec![(FILE, standing)], regions: 1 };
        self.happens(Event::Swept(DEVICE, Ok(sweep)));
    }

    fn expect_update(&mut self, len: u64) {
        let update = Action::Update(FILE, DEVICE, Some(GROUP), extents(len), Limits::NONE);
        assert_eq!(self.actions, [update]);
        self.actions.clear();
    }

    fn reports(&mut self) -> Vec<Report> {
        let report = |action| match action {
            Action::Report(_, report) => Some(report),
            _ => None,
        };
        self.actions.drain(..).filter_map(report).collect()
    }

    fn state(&self) -> State {
        self.engine.file_status(self.now, FILE).expect("it is followed").state
    }
}

fn extents(len: u64) -> Extents {
    Extent::new(64, len).into_iter().collect()
}

fn stamp(changed: i64) -> Imprint {
    stamp_on(DEVICE, changed)
}

fn stamp_on(device: Device, changed: i64) -> Imprint {
    Stamp { device, inode: 12, size: 4096, blocks: 8, modified: 0, changed }.imprint()
}

fn map(len: u64) -> Map {
    let extents = extents(len);
    let fingerprint = extents.fingerprint();
    let (blank, pending, shared, torn) = (Extents::default(), false, false, false);
    Map { extents, blank, fingerprint, pending, shared, shared_sectors: 0, torn }
}

fn mapped(changed: i64, len: u64) -> Sight {
    Sight::Mapped(stamp(changed), map(len))
}

fn updated(id: u32) -> Updated {
    let group = Group { id: RegionId(id), ..GROUP };
    Updated {
        group,
        members: 1,
        created: 1,
        deleted: 0,
        foreign: 0,
        fingerprint: extents(8).fingerprint(),
        made: false,
        descriptor_len: 80,
    }
}

fn refusal(errno: i32) -> update::Error {
    update::Error::Message { text: b"@x".to_vec(), source: io::Error::from_raw_os_error(errno) }
}

#[test]
fn a_file_that_does_not_change_is_looked_at_once_an_interval_and_seldom_mapped() {
    let mut bench = Bench::settled(Mode::Inode);
    let start = bench.now;
    let maps = (0..600).filter(|_| {
        let mapped = bench.wait_for_look();
        bench.looked(mapped.then(|| self::mapped(1, 8)));
        mapped
    });
    assert_eq!(maps.count(), 10, "one map a minute");
    assert_eq!(bench.now, start + 600 * SECOND);
    assert!(bench.reports().is_empty(), "and nothing is said");
}

#[test]
fn after_a_change_the_map_is_read_until_the_filesystem_must_have_settled() {
    let mut bench = Bench::settled(Mode::Inode);
    bench.wait_for_look();
    bench.looked(mapped(2, 8));
    let changed = bench.now;
    while bench.now < changed + 44 * SECOND {
        assert!(bench.wait_for_look(), "changed at {changed:?}, now {:?}", bench.now);
        bench.looked(mapped(2, 8));
    }
    bench.wait_for_look();
    bench.looked(None);
    assert!(!bench.wait_for_look(), "changed at {changed:?}, now {:?}", bench.now);
}

#[test]
fn what_is_pending_or_shared_is_read_at_every_look() {
    for (pending, shared) in [(true, false), (false, true)] {
        let mut bench = Bench::settled(Mode::Inode);
        bench.wait_for_look();
        bench.looked(Sight::Mapped(stamp(2), Map { pending, shared, ..map(8) }));
        for _ in 0..100 {
            assert!(bench.wait_for_look());
            bench.looked(Sight::Mapped(stamp(2), Map { pending, ..map(8) }));
        }
    }
}

#[test]
fn a_change_is_looked_up_again_only_when_its_update_is_done() {
    let mut bench = Bench::settled(Mode::Inode);
    bench.wait_for_look();
    bench.looked(mapped(2, 16));
    bench.expect_update(16);
    assert_eq!(bench.state(), State::Updating);
    bench.now += 100 * SECOND;
    bench.happens(Event::Tick);
    assert!(!bench.actions.iter().any(|action| matches!(action, Action::Look(_))));
    bench.updates(0);
    bench.actions.clear();
    let done = bench.now;
    bench.wait_for_look();
    assert_eq!(bench.now.since(done), SECOND, "counted from the end of what took longer");
    assert_eq!(bench.state(), State::Following);
}

#[test]
fn a_torn_map_is_not_shown_until_it_is_clear_that_no_other_will_come() {
    let mut bench = Bench::settled(Mode::Inode);
    for changed in 0..7 {
        bench.wait_for_look();
        bench.looked(Sight::Mapped(stamp(changed), Map { torn: true, ..map(16) }));
        assert_eq!(bench.actions, [], "not at the first {changed}");
    }
    bench.wait_for_look();
    bench.looked(Sight::Mapped(stamp(9), Map { torn: true, ..map(16) }));
    bench.expect_update(16);
}

#[test]
fn a_file_may_be_absent_for_a_second() {
    let absent = || Sight::Absent { found: "nothing there".to_owned(), beside: vec![DEVICE] };
    let mut bench = Bench::settled(Mode::Path);
    let looks = (0..20).take_while(|_| {
        bench.wait_for_look();
        bench.looked(absent());
        !bench.actions.iter().any(|action| matches!(action, Action::Remove(..)))
    });
    assert_eq!(looks.count(), 10, "every 100 ms");
    assert_eq!(bench.actions, [Action::Remove(FILE, DEVICE, GROUP)]);
    bench.actions.clear();
    bench.happens(Event::Removed(DEVICE, FILE, Ok(1)));
    let end = Report::LetGo(End::Absent("nothing there".to_owned()));
    let expected = [Action::Close(FILE), Action::Report(FILE, end), Action::Finish];
    assert_eq!(bench.actions, expected);

    let mut bench = Bench::settled(Mode::Path);
    bench.wait_for_look();
    bench.looked(absent());
    assert!(bench.wait_for_look(), "what comes back is mapped");
    bench.looked(mapped(7, 24));
    bench.expect_update(24);
}

#[test]
fn an_idle_file_is_closed_once_and_in_path_mode_only() {
    for (mode, closed) in [(Mode::Path, 1), (Mode::Inode, 0)] {
        let mut bench = Bench::with(Spec { mode, ..SPEC });
        bench.wait_for_look();
        bench.looked(mapped(1, 8));
        bench.updates(0);
        while bench.now < at(58) {
            let maps = bench.wait_for_look();
            bench.looked(maps.then(|| mapped(1, 8)));
            assert!(bench.now >= at(45) || !bench.actions.contains(&Action::Close(FILE)), "hot");
        }
        let closes = bench.actions.iter().filter(|action| **action == Action::Close(FILE));
        assert_eq!(closes.count(), closed);
    }
}

#[test]
fn a_failure_is_said_once_and_tried_again_ever_more_slowly() {
    let mut bench = Bench::settled(Mode::Inode);
    let mut waits = Vec::new();
    let mut said = 0;
    for _ in 0..9 {
        let failed = bench.now;
        bench.wait_for_look();
        waits.push(bench.now.since(failed).as_secs());
        bench.looked(mapped(2, 16));
        bench.fails(refusal(12)); // ENOMEM
        said += bench.reports().len();
    }
    assert_eq!(waits, [1, 1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(said, 1);
    assert!(bench.wait_for_look(), "the extents were forgotten");
    bench.looked(mapped(2, 16));
    bench.updates(0);
    assert!(bench.reports().contains(&Report::Recovered));
}

#[test]
fn what_the_kernel_does_not_understand_is_sent_once() {
    let mut bench = Bench::settled(Mode::Inode);
    bench.wait_for_look();
    bench.looked(mapped(2, 16));
    bench.expect_update(16);
    bench.fails(refusal(22)); // EINVAL
    assert!(matches!(bench.reports()[..], [Report::GivenUp(_)]));
    for changed in 3..20 {
        bench.wait_for_look();
        bench.looked(mapped(changed, 16));
        assert_eq!(bench.actions, []);
    }
}

#[test]
fn a_group_that_is_no_longer_ours_is_let_go() {
    let endings = [
        (update::Error::Gone, "gone"),
        (update::Error::TakenOver, "taken"),
        (refusal(6), "device"), // ENXIO
    ];
    for (error, word) in endings {
        let mut bench = Bench::settled(Mode::Inode);
        bench.wait_for_look();
        bench.looked(mapped(2, 16));
        bench.actions.clear();
        bench.fails(error);
        assert_eq!(bench.actions.last(), Some(&Action::Finish));
        let [report] = &bench.reports()[..] else { panic!("one report for {word}") };
        assert!(report.to_string().contains(word), "{report}");
    }
}

#[test]
fn a_sweep_finds_what_others_did() {
    let sound = extents(8).fingerprint();
    let stands = |fingerprint, tidy| Standing::Stands { id: RegionId(0), fingerprint, tidy };
    let mut bench = Bench::settled(Mode::Inode);
    bench.stands(stands(sound, true));
    assert!(!bench.wait_for_look(), "all is well");
    bench.looked(None);

    for standing in [stands(extents(16).fingerprint(), true), stands(sound, false)] {
        bench.stands(standing);
        assert!(bench.wait_for_look(), "it is done over");
        bench.looked(mapped(1, 8));
        bench.expect_update(8);
        bench.updates(0);
        bench.actions.clear();
    }
    bench.stands(Standing::Gone);
    assert_eq!(bench.actions.last(), Some(&Action::Finish));
}

#[test]
fn a_sweep_that_is_older_than_an_update_is_not_believed() {
    let mut bench = Bench::settled(Mode::Inode);
    bench.wait_for_look();
    bench.looked(mapped(2, 16));
    bench.expect_update(16);
    bench.stands(Standing::Gone);
    assert!(bench.engine.follows(FILE));
}

#[test]
fn a_sweep_is_one_message_for_all_groups_of_a_device() {
    let mut engine = Engine::new(Settings::default());
    let spec = Spec { mode: Mode::Path, ..SPEC };
    for _ in 0..100 {
        engine.follow(Time::ZERO, spec);
    }
    let mut actions = Vec::new();
    engine.handle(at(5), Event::Tick, &mut actions);
    let sweeps = |action: &Action| match action {
        Action::Sweep(device, groups) => Some((*device, groups.len())),
        _ => None,
    };
    assert_eq!(actions.iter().filter_map(sweeps).collect::<Vec<_>>(), [(DEVICE, 100)]);
    actions.clear();
    engine.handle(at(60), Event::Tick, &mut actions);
    assert_eq!(actions, [], "one at a time");
}

#[test]
fn a_sweep_that_took_long_delays_the_next_one_by_a_minute_at_most() {
    let sound = extents(8).fingerprint();
    let standing = Standing::Stands { id: RegionId(0), fingerprint: sound, tidy: true };
    for (took, wait) in [(SECOND / 100, 5), (SECOND / 5, 10), (3600 * SECOND, 60)] {
        let mut bench = Bench::new(Mode::Inode);
        bench.now = at(5);
        bench.happens(Event::Tick); // the look and the sweep are out
        bench.now += took;
        bench.stands(standing);
        assert_eq!(bench.engine.next_due(), Some(bench.now + wait * SECOND), "{took:?}");
    }
}

#[test]
fn a_removal_that_failed_halfway_is_tried_again_though_the_group_is_gone() {
    let mut bench = Bench::settled(Mode::Inode);
    bench.happens(Event::Forget(FILE, true));
    bench.happens(Event::Removed(DEVICE, FILE, Err(refusal(5)))); // EIO
    bench.stands(Standing::Gone);
    assert!(bench.engine.follows(FILE));
    bench.actions.clear();
    bench.now += 60 * SECOND;
    bench.happens(Event::Tick);
    assert!(bench.actions.contains(&Action::Remove(FILE, DEVICE, GROUP)), "{:?}", bench.actions);
}

#[test]
fn a_file_that_moved_to_another_device_is_let_go() {
    let mut bench = Bench::settled(Mode::Path);
    bench.wait_for_look();
    let elsewhere = stamp_on(Device { minor: 1, ..DEVICE }, 2);
    bench.looked(Sight::Mapped(elsewhere, map(8)));
    assert_eq!(bench.actions, [Action::Remove(FILE, DEVICE, GROUP)], "never updated with it");
}

#[test]
fn a_signal_ends_it_whatever_is_under_way() {
    let mut bench = Bench::new(Mode::Inode);
    bench.actions.clear();
    bench.happens(Event::Stop);
    assert_eq!(bench.actions, [Action::Finish]);
}

#[test]
fn a_new_id_of_the_group_is_said_once() {
    let mut bench = Bench::settled(Mode::Inode);
    bench.wait_for_look();
    bench.looked(mapped(2, 16));
    bench.updates(4);
    assert!(bench.reports().contains(&Report::Moved(RegionId(0), RegionId(4))));
    bench.wait_for_look();
    bench.looked(mapped(3, 24));
    bench.updates(4);
    assert!(!bench.reports().iter().any(|report| matches!(report, Report::Moved(..))));
}

#[test]
fn an_idle_file_is_looked_at_ever_more_seldom_until_something_happens() {
    let pace = Pace { interval: SECOND, max_interval: 10 * SECOND };
    let mut bench = Bench::settled_with(Spec { pace, ..SPEC });
    let mut last = bench.now;
    let mut longest = Duration::ZERO;
    while bench.now < at(300) {
        let maps = bench.wait_for_look();
        longest = longest.max(bench.now.since(last));
        last = bench.now;
        bench.looked(maps.then(|| mapped(1, 8)));
    }
    assert!(longest > 9 * SECOND && longest <= 10 * SECOND + SECOND / 5, "{longest:?}");
    bench.wait_for_look();
    bench.out.as_mut().expect("a look is out").changed.push((FILE, stamp(2)));
    bench.looked(None);
    assert!(bench.wait_for_look(), "at once");
    let taken = bench.out.as_ref().and_then(|batch| batch.changed.first());
    assert_eq!(taken, Some(&(FILE, stamp(2))), "it need not be taken again");
    bench.looked(mapped(2, 16));
    bench.updates(0);
    let changed = bench.now;
    bench.wait_for_look();
    assert_eq!(bench.now.since(changed), SECOND, "back to the first interval");
}

#[test]
fn a_fixed_pace_stays() {
    let mut bench = Bench::settled(Mode::Inode);
    for _ in 0..300 {
        let before = bench.now;
        let maps = bench.wait_for_look();
        assert_eq!(bench.now.since(before), SECOND);
        bench.looked(maps.then(|| mapped(1, 8)));
    }
}

#[test]
fn a_file_whose_filesystem_is_not_mounted_is_let_go_and_its_group_stays() {
    let mut bench = Bench::settled(Mode::Path);
    let elsewhere = || vec![Device { major: 8, minor: 1 }];
    while bench.engine.follows(FILE) {
        bench.wait_for_look();
        bench.looked(Sight::Absent { found: "nothing there".to_owned(), beside: elsewhere() });
        assert!(!bench.actions.iter().any(|action| matches!(action, Action::Remove(..))));
    }
    assert_eq!(bench.reports(), [Report::LetGo(End::Unmounted)]);
}

#[test]
fn what_nobody_wants_any_more_is_let_go_when_its_job_is_back() {
    let gone = |bench: &mut Bench| {
        assert_eq!(bench.actions, [Action::Remove(FILE, DEVICE, GROUP)]);
        assert_eq!(bench.state(), State::Ending);
        bench.actions.clear();
        bench.happens(Event::Removed(DEVICE, FILE, Ok(1)));
        assert_eq!(bench.reports(), [Report::LetGo(End::Unwanted)]);
    };
    let mut bench = Bench::settled(Mode::Inode);
    bench.happens(Event::Forget(FILE, true));
    gone(&mut bench);

    let mut bench = Bench::settled(Mode::Inode);
    bench.wait_for_look();
    bench.happens(Event::Forget(FILE, true));
    assert_eq!(bench.actions, []);
    bench.looked(None);
    gone(&mut bench);

    let mut bench = Bench::settled(Mode::Inode);
    bench.wait_for_look();
    bench.looked(mapped(2, 16));
    bench.actions.clear();
    bench.happens(Event::Forget(FILE, true));
    bench.happens(Event::Updated(DEVICE, FILE, Ok(Some(Updated { created: 0, ..updated(0) }))));
    gone(&mut bench);

    let mut bench = Bench::settled(Mode::Inode);
    bench.happens(Event::Forget(FILE, false));
    assert_eq!(bench.reports(), [Report::LetGo(End::Unwanted)], "and its group stays");
}

/// An engine with many files on several devices, each look of which is answered as the test says.
struct Crowd {
    engine: Engine,
    now: Time,
    actions: Vec<Action>,
}

impl Crowd {
    fn new(files: u32, devices: u32, pace: Pace) -> Crowd {
        let mut engine = Engine::new(Settings { patient: true, ..Settings::default() });
        for file in 0..files {
            let device = Device { minor: file % devices, ..DEVICE };
            engine.follow(Time::ZERO, Spec { device, pace, ..SPEC });
        }
        let mut crowd = Crowd { engine, now: Time::ZERO, actions: Vec::new() };
        crowd.happens(Event::Tick);
        crowd
    }

    fn happens(&mut self, event: Event) {
        self.engine.handle(self.now, event, &mut self.actions);
    }

    /// The next looks, as soon as there are any; what else is to be done is done meanwhile.
    fn next_batch(&mut self, writes: u64) -> Batch {
        loop {
            let at = self.actions.iter().position(|action| matches!(action, Action::Look(_)));
            if let Some(Action::Look(batch)) = at.map(|at| self.actions.remove(at)) {
                return batch;
            }
            self.answer(writes, |_| true);
            if self.actions.is_empty() {
                self.now = self.now.max(self.engine.next_due().expect("files are followed"));
                self.happens(Event::Tick);
            }
        }
    }

    /// Answers everything that is out for devices that `answers` says yes to, at once.
    fn answer(&mut self, writes: u64, answers: impl Fn(Device) -> bool) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut stuck = Vec::new();
        while let Some(action) = self.actions.pop() {
            match action {
                Action::Look(batch) if answers(batch.device) => {
                    let mut seen = batch.clone();
                    let stamp = stamp_on(batch.device, 1);
                    if batch.maps.is_some() {
                        seen.map(|_, _| Sight::Mapped(stamp, map(8)));
                    }
                    batches.push(batch);
                    self.happens(Event::Looked(seen));
                }
                Action::Update(file, device, ..) if answers(device) => {
                    self.happens(Event::Updated(device, file, Ok(Some(updated(0)))));
                }
                Action::Sweep(device, groups) if answers(device) => {
                    let standing = Standing::Stands {
                        id: RegionId(0),
                        fingerprint: extents(8).fingerprint(),
                        tidy: true,
                    };
                    let standings = groups.iter().map(|(file, _)| (*file, standing)).collect();
                    let sweep = Sweep { standings, regions: groups.len() };
                    self.happens(Event::Swept(device, Ok(sweep)));
                }
                Action::Gauge(device) if answers(device) => {
                    self.happens(Event::Gauged(device, Some(writes)));
                }
                Action::Report(..) | Action::Close(_) => {}
                action => stuck.push(action),
            }
        }
        self.actions = stuck;
        batches
    }

    /// Lets time pass until `end`; the looks made meanwhile.
    fn pass(&mut self, end: Time, writes: u64, answers: impl Fn(Device) -> bool) -> Vec<Batch> {
        let mut batches = self.answer(writes, &answers);
        while let Some(due) = self.engine.next_due().filter(|due| *due <= end) {
            self.now = due.max(self.now + Duration::from_millis(1));
            self.happens(Event::Tick);
            batches.extend(self.answer(writes, &answers));
        }
        self.now = end;
        batches
    }
}

#[test]
fn ten_thousand_files_do_not_wake_together() {
    let pace = Pace { interval: SECOND, max_interval: 10 * SECOND };
    let mut crowd = Crowd::new(10_000, 1, pace);
    crowd.pass(at(400), 0, |_| true);
    // Idle now. The counter moves all the time, so that none waits for it.
    let mut looks = Vec::new();
    for second in 400..420 {
        let batches = crowd.pass(at(second + 1), u64::from(second), |_| true);
        looks.push(batches.iter().map(|batch| batch.looks.len()).sum::<usize>());
        assert!(batches.iter().all(|batch| batch.looks.len() <= STAMPS_MAX));
    }
    let (least, most) = (looks.iter().min().unwrap(), looks.iter().max().unwrap());
    assert!(*least > 200 && *most < 2000, "looks in each second: {looks:?}");
}

#[test]
fn a_device_has_a_bounded_share_of_the_work_and_holds_up_no_other() {
    let mut crowd = Crowd::new(1000, 2, Pace::fixed(SECOND));
    let stuck = |device: Device| device.minor == 1;
    let batches = crowd.pass(at(20), 0, |device| !stuck(device));
    assert!(batches.iter().map(|batch| batch.looks.len()).sum::<usize>() >= 500 * 19);
    let out: Vec<&Batch> = crowd
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Look(batch) => Some(batch),
            _ => None,
        })
        .collect();
    assert_eq!(out.len(), MAPPING_MAX, "{out:?}");
    assert!(out.iter().all(|batch| stuck(batch.device) && batch.looks.len() <= MAPS_MAX));
    let lags = [0, 1].map(|file| crowd.engine.file_status(crowd.now, FileId(file)).unwrap().lag);
    assert!(lags[0] <= SECOND / 50 && lags[1] == 20 * SECOND, "{lags:?}");
}

#[test]
fn while_nothing_is_written_to_a_device_its_idle_files_are_left_alone() {
    let pace = Pace { interval: SECOND, max_interval: 10 * SECOND };
    let mut crowd = Crowd::new(1000, 1, pace);
    crowd.pass(at(600), 7, |_| true);
    let looks = |batches: Vec<Batch>| batches.iter().map(|batch| batch.looks.len()).sum::<usize>();
    let still = looks(crowd.pass(at(1200), 7, |_| true));
    assert!(still <= 13 * 1000, "each file once a minute and no more: {still}");
    assert!(still >= 9 * 1000, "and no less: {still}");
    // A write makes every file due within its interval.
    let written = looks(crowd.pass(at(1212), 8, |_| true));
    assert!((1000..=1200).contains(&written), "{written}");
}

/// They have waited, and are spread over the interval; but not for good.
#[test]
fn files_that_were_woken_by_a_write_are_looked_at_in_large_batches_again() {
    let pace = Pace { interval: SECOND, max_interval: 10 * SECOND };
    let mut crowd = Crowd::new(30_000, 1, pace);
    crowd.pass(at(400), 7, |_| true);
    crowd.pass(at(415), 8, |_| true); // a write
    let batches = crowd.pass(at(425), 9, |_| true);
    assert_eq!(batches.iter().map(|batch| batch.looks.len()).sum::<usize>(), 30_000);
    let full = 30_000 / STAMPS_MAX;
    assert!(batches.len() <= 64 + full, "{} batches for 64 moments", batches.len());
}

/// Their maps are read by few at a time, and those that failed are due at as many moments.
#[test]
fn files_that_have_failed_are_looked_at_in_large_batches_again() {
    let mut crowd = Crowd::new(4000, 1, Pace::fixed(SECOND));
    crowd.pass(at(100), 0, |_| true);
    let mut failed = 0;
    while failed < 4000 {
        let mut batch = crowd.next_batch(0);
        failed += batch.maps.map_or(0, |_| batch.looks.len());
        match batch.maps {
            None => batch.compare(|_| Ok(Some(stamp(2)))),
            Some(_) => batch.map(|_, _| Sight::Failed("no memory".to_owned())),
        }
        crowd.now += Duration::from_millis(1);
        crowd.happens(Event::Looked(batch));
    }
    let end = crowd.now + 5 * SECOND;
    crowd.pass(end, 0, |_| true);
    let batches = crowd.pass(end + SECOND, 0, |_| true);
    assert_eq!(batches.iter().map(|batch| batch.looks.len()).sum::<usize>(), 4000);
    assert!(batches.len() <= 64 + 4000 / STAMPS_MAX, "{} batches for 64 moments", batches.len());
}

/// They wait as long as they may, twice, and have their maps read then, few at a time; and when
/// they are about to wait again something is written all the time.
#[test]
fn files_that_have_waited_are_looked_at_in_large_batches_again() {
    let pace = Pace { interval: SECOND, max_interval: 10 * SECOND };
    let mut crowd = Crowd::new(4000, 1, pace);
    crowd.pass(at(400), 7, |_| true);
    let mut mapped = 0;
    while mapped < 2 * 4000 {
        let mut batch = crowd.next_batch(7);
        if batch.maps.is_some() {
            mapped += batch.looks.len();
            let same = stamp_on(batch.device, 1);
            batch.map(|_, _| Sight::Mapped(same, map(8)));
        }
        crowd.now += Duration::from_millis(1);
        crowd.happens(Event::Looked(batch));
    }
    let mut batches = 0;
    for second in 1..=40 {
        let end = crowd.now + SECOND;
        let made = crowd.pass(end, 7 + second, |_| true);
        batches += if second > 30 { made.len() } else { 0 };
    }
    assert!(batches <= 2 * 16, "{batches} batches of 16 neighbourhoods");
}

#[test]
fn files_that_get_a_longer_interval_are_spread_over_it() {
    let mut crowd = Crowd::new(10_000, 1, Pace::fixed(SECOND));
    crowd.pass(at(100), 0, |_| true);
    for file in 0..10_000 {
        crowd.engine.set_pace(FileId(file), Pace::fixed(60 * SECOND));
    }
    crowd.pass(at(200), 0, |_| true);
    let each_second = (200..260).map(|second| {
        let batches = crowd.pass(at(second + 1), 0, |_| true);
        batches.iter().map(|batch| batch.looks.len()).sum::<usize>()
    });
    let looks: Vec<usize> = each_second.collect();
    assert_eq!(looks.iter().sum::<usize>(), 10_000);
    assert!(*looks.iter().max().unwrap() <= 2000, "looks in each second: {looks:?}");
}

/// Some files change, one is as it was; one is let go while a look at it is out, and one while its
/// map waits to be read.
#[test]
fn each_file_gets_what_was_seen_of_it() {
    let mut crowd = Crowd::new(22, 1, Pace::fixed(SECOND));
    crowd.pass(at(100), 0, |_| true);
    let mut batch = crowd.next_batch(0);
    assert_eq!((batch.maps, batch.looks.len()), (None, 22));
    let files = |batch: &Batch| batch.looks.iter().map(|look| look.file).collect::<Vec<_>>();
    let mut changed = files(&batch);
    let same = changed.remove(3);
    crowd.happens(Event::Forget(changed.remove(0), false));
    let stamp = |file: FileId| stamp(100 + i64::from(file.0));
    batch.compare(|look| Ok((look.file != same).then(|| stamp(look.file))));
    crowd.happens(Event::Looked(batch));

    let check = |batch: &Batch, expected: &[FileId]| {
        assert_eq!(files(batch), expected);
        let taken = expected.iter().map(|file| (*file, stamp(*file)));
        assert!(batch.changed.iter().copied().eq(taken) && batch.sights.is_empty(), "{batch:?}");
    };
    let mut first = crowd.next_batch(0);
    check(&first, &changed[..8]);
    check(&crowd.next_batch(0), &changed[8..16]);
    crowd.happens(Event::Forget(changed[16], false));
    first.map(|look, taken| {
        assert_eq!(taken, Some(&stamp(look.file)));
        Sight::Mapped(stamp(look.file), map(8))
    });
    crowd.happens(Event::Looked(first));
    check(&crowd.next_batch(0), &changed[17..]);
}

#[test]
fn an_index_is_given_out_again_only_when_nothing_is_under_way_for_it() {
    let mut crowd = Crowd::new(2, 1, Pace::fixed(SECOND));
    crowd.happens(Event::Forget(FileId(1), false)); // its look is out
    let third = crowd.engine.follow(crowd.now, SPEC);
    assert_eq!(third, FileId(2));
    crowd.answer(0, |_| true);
    let fourth = crowd.engine.follow(crowd.now, SPEC);
    assert_eq!(fourth, FileId(1));
}

#[test]
fn an_engine_that_is_patient_goes_on_without_any_file() {
    let mut crowd = Crowd::new(1, 1, Pace::fixed(SECOND));
    crowd.happens(Event::Forget(FILE, false));
    assert!(!crowd.actions.contains(&Action::Finish));
    crowd.happens(Event::Stop);
    assert!(crowd.actions.contains(&Action::Finish));
}

#[test]
fn a_shorter_pace_holds_from_the_last_look_on() {
    let hour = Duration::from_secs(3600);
    let mut bench = Bench::with(Spec { pace: Pace::fixed(hour), ..SPEC });
    bench.wait_for_look();
    bench.looked(mapped(1, 8));
    bench.updates(0);
    bench.actions.clear();
    bench.engine.set_pace(FILE, Pace::fixed(SECOND));
    bench.wait_for_look();
    assert!(bench.now <= at(2), "{:?}", bench.now);
}
