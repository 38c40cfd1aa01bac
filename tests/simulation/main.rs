//! Hours of the engine in seconds: torment, then calm.
//!
//! The engine is a pure function of time and events, the kernel's table can be had in memory, and a
//! filesystem is soon made up. So all of it runs from one seed, in a time of its own.
//!
//! In the **torment** files change in every way, messages fail, answers come late or never, others
//! use the table and spoil it, devices go, and the service is killed between any two messages. What
//! may never happen is checked after each of them: see `table.rs` and `service.rs`. Then everything
//! that is stuck goes on, some files change once more, and some groups are spoiled.
//! In the **calm** that follows the service has a bounded time to show every map, and then nothing
//! more to do: see `judge.rs`.
//!
//! A failure prints its seed and what happened last. `TEST_SEED=... TEST_ROUNDS=...` run so many
//! seeds from that one on.

#![allow(clippy::unwrap_used)] // all of this is a test

mod dice;
mod disk;
mod judge;
mod log;
mod service;
mod table;
mod torment;
mod world;

#[path = "../support/dialects.rs"]
mod dialects;

use std::env;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use log::Log;
use table::Weather;
use world::{SECOND, World};

/// How long the torment lasts.
const TORMENT: u64 = 900 * SECOND;

/// How long it may take until all is well: a file that failed for long waits for a minute, a silent
/// change shows when the map is due, after a minute too, and the rest is intervals.
const CALM: u64 = 240 * SECOND;

/// Says how to come back here, if the test fails.
struct Witness(u64, Log);

impl Drop for Witness {
    fn drop(&mut self) {
        if thread::panicking() {
            self.1.tell();
            eprintln!("to see this again: TEST_SEED={} TEST_ROUNDS=1", self.0);
        }
    }
}

/// Runs one world, and gives how often a group was changed in it.
fn simulate(seed: u64) -> usize {
    let mut world = World::new(seed);
    let _witness = Witness(seed, world.log.clone());
    world.set_weather(Weather::default(), 0, 0, SECOND);
    world.pass(TORMENT, true);
    heal(&mut world);
    world.pass(world.now + CALM, false);
    world.sweep_up();
    let followed = world.judge();
    // What was let go meanwhile is followed again, if it is still there.
    world.reload();
    world.pass(world.now + CALM, false);
    assert!(world.judge() >= followed);
    world.judge_completeness();
    world.collect_all();
    world.judge_orphans();
    let changes = world.table.changes;
    world.pass(world.now + CALM, false);
    assert_eq!(world.table.changes, changes, "it does not come to rest");
    world.judge();
    world.updates
}

/// Ends the torment with one more change of each file.
fn heal(world: &mut World) {
    world.log.say(|| "calm".to_owned());
    world.set_weather(Weather::default(), 0, 0, 0);
    world.table.arrive();
    for disk in 0..world.disks.len() {
        world.bring_device(disk);
    }
    if world.service.is_none() {
        world.start();
    }
    for at in 0..world.disks.len() {
        let device = world.disks[at].device;
        world.table.vandal(device);
    }
    let now = world.now;
    world.service.as_mut().unwrap().unstick(now);
    for name in 0..world.names.len() {
        // What others broke is to be found out where nothing else happens, too.
        if let Some(place) = world.names[name].at.filter(|_| world.dice.one_in(2)) {
            world.change(place);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    Some(env::var(variable).ok()?.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn after_any_torment_every_group_shows_its_file() {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let rounds = number("TEST_ROUNDS");
    let seeds: Vec<u64> = match number("TEST_SEED") {
        Some(seed) => (seed..seed + rounds.unwrap_or(1)).collect(),
        None => {
            let fresh = u64::from(fresh) * 1000;
            (0..5).chain(fresh..fresh + rounds.unwrap_or(2)).collect()
        }
    };
    println!("seeds: {seeds:?}");
    let updates: usize = seeds.iter().map(|seed| simulate(*seed)).sum();
    assert!(updates > 0 || seeds.is_empty(), "{updates} updates are no torment");
}

#[test]
fn a_removal_that_failed_halfway_is_tried_again() {
    simulate(115);
}
