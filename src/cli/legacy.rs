//! `dmfilemapd FD GROUP_ID PATH MODE [FOREGROUND [LOG_LEVEL]]`: lvm2's daemon.

use std::env;
use std::error::Error as _;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use log::LevelFilter;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_shutdown;

use super::Exit;
use crate::client;
use crate::compat::{Legacy, usage};
use crate::engine::{INTERVAL, Pace, Settings};
use crate::entry::{entry, mark, random, settle};
use crate::kernel::control::Control;
use crate::kernel::process::{Forked, Ready, Stdio, adopt_fd, close_inherited, daemonize};
use crate::place;
use crate::request::{FilePath, Follow};
use crate::run::{Entry, Manners, run};
use crate::socket;
use crate::update::{self, Template};
use crate::values;

/// Checks everything that can be checked, becomes a daemon unless asked not to, and follows the
/// file. Whatever goes wrong before that is told on stderr, and in the exit status: 1.
pub fn main(args: &[OsString]) -> Exit {
    let legacy = match Legacy::parse(args) {
        Ok(legacy) => legacy,
        Err(error) => {
            eprintln!("dmfilemapd: {error}\n{}", usage().trim_end());
            return Exit::Failed;
        }
    };
    match start(legacy) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("dmfilemapd: {error}");
            Exit::Failed
        }
    }
}

/// A value other than 0 says that no service is to take the file.
const STANDALONE: &str = "DMFILEMAPD_STANDALONE";

/// How long the service may take to take a file over, before this process follows it itself.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

/// Everything that the daemon will need, checked.
struct Prepared {
    claim: u32,
    entry: Entry,
    settings: Settings,
}

fn start(legacy: Legacy) -> Result<Exit, String> {
    let (foreground, log_level) = (legacy.foreground, legacy.log_level);
    let (legacy, file) = take(legacy)?;
    if hand_over(&legacy, &file) {
        return Ok(Exit::Ok);
    }
    let prepared = prepare(&legacy, file)?;
    if foreground {
        init_log(log_level);
        return follow(prepared, || {}).map(|()| Exit::Ok);
    }
    let stdio = if log_level == 0 { Stdio::Silence } else { Stdio::Keep };
    match daemonize(stdio).map_err(|error| format!("cannot become a daemon: {error}"))? {
        Forked::Starter(outcome) => outcome.map_err(|e| e.to_string()).map(|()| Exit::Ok),
        Forked::Daemon(ready) => {
            init_log(log_level);
            Ok(serve(prepared, ready))
        }
    }
}

/// In the daemon: what goes wrong before it is ready, the starter tells.
fn serve(prepared: Prepared, ready: Ready) -> Exit {
    let mut ready = Some(ready);
    let mut report = |outcome: Result<(), &str>| {
        if let Some(ready) = ready.take() {
            ready.report(outcome);
        }
    };
    match follow(prepared, || report(Ok(()))) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            report(Err(&error));
            Exit::Failed
        }
    }
}

/// Takes over what the caller has left: the descriptor, and what the path is relative to.
fn take(legacy: Legacy) -> Result<(Legacy, File), String> {
    let file = adopt_fd(legacy.fd).map_err(|error| match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })?;
    if !legacy.foreground {
        close_inherited().map_err(|e| format!("cannot close inherited descriptors: {e}"))?;
    }
    let legacy = legacy.resolve().map_err(|e| format!("the current directory is gone: {e}"))?;
    Ok((legacy, file))
}

/// Whether the service, if there is one, has taken the file: a process more is not needed then.
/// In the foreground this one stays until the service lets the file go.
fn hand_over(legacy: &Legacy, file: &File) -> bool {
    if env::var_os(STANDALONE).is_some_and(|value| !value.is_empty() && value != "0") {
        return false;
    }
    let socket = match env::var_os("DMFILEMAPD_SOCKET") {
        Some(path) if path.is_empty() => return false,
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(socket::PATH),
    };
    let follow = Follow {
        group_id: legacy.group.0,
        path: FilePath(legacy.path.clone()),
        mode: legacy.mode,
        foreground: legacy.foreground,
    };
    match client::attach(&socket, &follow, file.as_fd(), HAND_OVER_MAX) {
        Ok(_) if !legacy.foreground => true,
        Ok(attached) => {
            // As alone: a signal ends it well. The service lets the file go when we do.
            for signal in [SIGTERM, SIGINT] {
                register_conditional_shutdown(signal, 0, Arc::new(AtomicBool::new(true))).ok();
            }
            attached.wait().is_ok() // else the service has ended, and the file is ours again
        }
        Err(_) => false, // no service, or none that would take it
    }
}

fn prepare(legacy: &Legacy, file: File) -> Result<Prepared, String> {
    let (settings, pace) = settings()?;
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", legacy.path.display());
    let place = place::require(&file).map_err(|obstacle| named(&obstacle))?;
    let mut control = Control::open().map_err(|error| super::with_cause(&error))?;

    let (claim, mark) = (random(), mark(&legacy.path, legacy.mode, &place));
    let group = update::adopt(&mut control, place.device, legacy.group, mark, claim);
    let group = group.map_err(|error| named(&format_args!("on {}: {error}", place.device)))?;
    let template = Template {
        program_id: b"dmstats".to_vec(),
        alias: Vec::new(),
        precise: false,
        bounds: Vec::new(),
    };
    let entry = entry(Some(file), &legacy.path, legacy.mode, &place, Some(group), template, pace);
    Ok(Prepared { claim, entry, settings })
}

fn follow(prepared: Prepared, ready: impl FnOnce()) -> Result<(), String> {
    let Prepared { claim, entry, settings } = prepared;
    let open = || Control::open().map_err(io::Error::other);
    let outcome = run(open, claim, vec![entry], settings, Manners::default(), ready);
    outcome.map(drop).map_err(|error| format!("cannot start: {error}"))
}

/// libdm's command line has no room for them, so they come from the environment.
fn settings() -> Result<(Settings, Pace), String> {
    let default = Settings::default();
    let interval = from_environment("DMFILEMAPD_INTERVAL", INTERVAL)?;
    let full_look = from_environment("DMFILEMAPD_FULL_LOOK", default.full_look)?;
    Ok((Settings { full_look, settle: settle(), ..default }, Pace::fixed(interval)))
}

fn from_environment(name: &str, default: Duration) -> Result<Duration, String> {
    let Some(value) = env::var_os(name) else { return Ok(default) };
    values::interval(&value.to_string_lossy()).map_err(|error| format!("{name}: {error}"))
}

fn init_log(log_level: u8) {
    let level = match log_level {
        0 => LevelFilter::Off,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    super::start_log(level);
}
