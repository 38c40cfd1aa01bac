//! The engine on its own: no thread, no clock, no kernel.

use std::io;
use std::time::Duration;

use dmfilemapd::dm::Device;
use dmfilemapd::engine::{Action, End, Engine, Event, FileId, Report, Settings, Spec, Time};
use dmfilemapd::extent::{Extent, Extents};
use dmfilemapd::group::Mark;
use dmfilemapd::message::RegionId;
use dmfilemapd::mode::Mode;
use dmfilemapd::sight::{Map, Sight, Stamp};
use dmfilemapd::update::{self, Group, Standing, Updated};

const FILE: FileId = FileId(0);
const DEVICE: Device = Device { major: 253, minor: 0 };
const GROUP: Group = Group { id: RegionId(0), mark: Mark { key: 1, nonce: 2 }, claim: 3 };
const SECOND: Duration = Duration::from_secs(1);

/// An engine with one file, and a clock that the test turns.
struct Bench {
    engine: Engine,
    now: Time,
    actions: Vec<Action>,
}

impl Bench {
    fn new(mode: Mode) -> Bench {
        let settings = Settings { interval: SECOND, ..Settings::default() };
        let mut engine = Engine::new(settings);
        let spec = Spec { mode, device: DEVICE, group: Some(GROUP), restless: false };
        engine.follow(Time::ZERO, spec);
        let mut bench = Bench { engine, now: Time::ZERO, actions: Vec::new() };
        bench.happens(Event::Tick);
        bench
    }

    /// One whose file was mapped, whose group shows the map, and which has settled.
    fn settled(mode: Mode) -> Bench {
        let mut bench = Bench::new(mode);
        bench.expect_look(None, true);
        bench.looked(mapped(1, 8));
        bench.expect_update(8);
        bench.updates(0);
        bench.actions.clear();
        while bench.now < 50 * SECOND {
            bench.wait_for_look();
            bench.looked(Sight::Same);
        }
        bench.actions.clear();
        bench
    }

    fn happens(&mut self, event: Event) {
        self.engine.handle(self.now, event, &mut self.actions);
    }

    fn looked(&mut self, sight: Sight) {
        self.happens(Event::Looked(FILE, sight));
    }

    fn updates(&mut self, id: u32) {
        self.happens(Event::Updated(FILE, Ok(Some(updated(id)))));
    }

    fn fails(&mut self, error: update::Error) {
        self.happens(Event::Updated(FILE, Err(error)));
    }

    /// Lets time pass until the next look, answering sweeps; whether it reads the map.
    fn wait_for_look(&mut self) -> bool {
        loop {
            let at = self.actions.iter().position(|action| matches!(action, Action::Look { .. }));
            if let Some(at) = at {
                let Action::Look { last, map_due, .. } = self.actions.remove(at) else {
                    unreachable!("position() found a look")
                };
                return map_due || last.is_none();
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
        self.happens(Event::Swept(DEVICE, Ok(vec![(FILE, standing)])));
    }

    fn expect_look(&mut self, last: Option<Stamp>, map_due: bool) {
        assert_eq!(self.actions, [Action::Look { file: FILE, last, map_due }]);
        self.actions.clear();
    }

    fn expect_update(&mut self, len: u64) {
        let update = Action::Update(FILE, DEVICE, Some(GROUP), extents(len));
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
}

fn extents(len: u64) -> Extents {
    Extent::new(64, len).into_iter().collect()
}

fn stamp(changed: i128) -> Stamp {
    Stamp { device: DEVICE, inode: 12, size: 4096, blocks: 8, modified: 0, changed }
}

fn map(len: u64) -> Map {
    let extents = extents(len);
    let fingerprint = extents.fingerprint();
    Map { extents, fingerprint, pending: false, shared: false, torn: false }
}

fn mapped(changed: i128, len: u64) -> Sight {
    Sight::Mapped(stamp(changed), map(len))
}

fn updated(id: u32) -> Updated {
    let group = Group { id: RegionId(id), ..GROUP };
    Updated { group, members: 1, created: 1, deleted: 0, descriptor_len: 80 }
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
        bench.looked(if mapped { self::mapped(1, 8) } else { Sight::Same });
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
    bench.looked(Sight::Same);
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
    bench.now += 100 * SECOND;
    bench.happens(Event::Tick);
    assert!(!bench.actions.iter().any(|action| matches!(action, Action::Look { .. })));
    bench.updates(0);
    assert_eq!(bench.engine.next_due(), Some(bench.now + SECOND), "counted from the end");
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
    let absent = || Sight::Absent("nothing there".to_owned());
    let mut bench = Bench::settled(Mode::Path);
    let looks = (0..20).take_while(|_| {
        bench.wait_for_look();
        bench.looked(absent());
        !bench.actions.iter().any(|action| matches!(action, Action::Remove(..)))
    });
    assert_eq!(looks.count(), 10, "every 100 ms");
    assert_eq!(bench.actions, [Action::Remove(FILE, DEVICE, GROUP)]);
    bench.actions.clear();
    bench.happens(Event::Removed(FILE, Ok(1)));
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
fn an_idle_file_is_closed_in_path_mode_only() {
    for (mode, closed) in [(Mode::Path, true), (Mode::Inode, false)] {
        let mut bench = Bench::settled(mode);
        bench.wait_for_look();
        bench.looked(Sight::Same);
        assert_eq!(bench.actions.contains(&Action::Close(FILE)), closed);
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
        waits.push(bench.now.saturating_sub(failed).as_secs());
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
    bench.looked(Sight::Same);

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
    let spec = Spec { mode: Mode::Path, device: DEVICE, group: Some(GROUP), restless: false };
    for _ in 0..100 {
        engine.follow(Time::ZERO, spec);
    }
    let mut actions = Vec::new();
    engine.handle(5 * SECOND, Event::Tick, &mut actions);
    let sweeps = |action: &Action| match action {
        Action::Sweep(device, groups) => Some((*device, groups.len())),
        _ => None,
    };
    assert_eq!(actions.iter().filter_map(sweeps).collect::<Vec<_>>(), [(DEVICE, 100)]);
    actions.clear();
    engine.handle(60 * SECOND, Event::Tick, &mut actions);
    assert_eq!(actions, [], "one at a time");
}

#[test]
fn a_file_that_moved_to_another_device_is_let_go() {
    let mut bench = Bench::settled(Mode::Path);
    bench.wait_for_look();
    let elsewhere = Stamp { device: Device { minor: 1, ..DEVICE }, ..stamp(2) };
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
