//! `dmfilemapd run`: follow files in the foreground, as a service if none is named.

use std::io;

use clap::Args;
use log::LevelFilter;

use super::dry_run::DryRun;
use super::files::Files;
use super::overrides::Overrides;
use super::{Exit, Failure};
use crate::config::{self, Config};
use crate::dm::Dm;
use crate::engine::Settings;
use crate::entry::{random, settle};
use crate::kernel::control::Control;
use crate::kernel::process::end_at_broken_pipe;
use crate::run::{self, Manners};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    files: Files,

    #[command(flatten)]
    overrides: Overrides,

    /// Say more: once for every event; -q says less
    #[arg(short, long)]
    verbose: bool,

    /// Say only what is wrong
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
}

pub fn main(arguments: Arguments) -> Result<Exit, Failure> {
    let level = match (arguments.verbose, arguments.quiet) {
        (true, _) => LevelFilter::Debug,
        (_, true) => LevelFilter::Warn,
        _ => LevelFilter::Info,
    };
    super::start_log(level);
    let config = arguments.overrides.read()?;
    if arguments.files.dry_run {
        end_at_broken_pipe();
        let dry = DryRun::default();
        return follow(dry.clone(), move || Ok(dry.clone()), &arguments.files, &config.settings);
    }
    let open = || Control::open().map_err(io::Error::other);
    let control = Control::open()?; // says best what is in the way
    if arguments.files.paths.is_empty() {
        drop(control);
        return serve(open, config, arguments.overrides);
    }
    follow(control, open, &arguments.files, &config.settings)
}

/// With FILE: follows these, all of which must be fit for it, and ends with the last.
fn follow<D: Dm + Send + 'static>(
    mut dm: D,
    open: impl Fn() -> io::Result<D> + Send + Sync + 'static,
    files: &Files,
    config: &config::Settings,
) -> Result<Exit, Failure> {
    let claim = random();
    let entries = files.entries(&mut dm, claim, &config.terms())?;
    let count = entries.len();
    let ready = || log::info!("following {count} file(s), every {:?}", config.interval);
    let settings = engine_settings(config);
    let (create_share, remove_on_exit) = (config.create_share, config.remove_on_exit);
    let manners = Manners { create_share, remove_on_exit };
    run::run(open, claim, entries, settings, manners, ready).map_err(Failure::new)?;
    Ok(Exit::Ok)
}

/// Without: follows what the configuration wants, whatever becomes of it.
fn serve<D: Dm + Send + 'static>(
    open: impl Fn() -> io::Result<D> + Clone + Send + Sync + 'static,
    config: Config,
    overrides: Overrides,
) -> Result<Exit, Failure> {
    let settings = engine_settings(&config.settings);
    let entries = config.rules.len();
    let ready = || log::info!("following the files of {entries} entries of the configuration");
    let read = Box::new(move || overrides.read());
    run::serve(open, random(), config, read, settings, ready).map_err(Failure::new)?;
    Ok(Exit::Ok)
}

fn engine_settings(config: &config::Settings) -> Settings {
    Settings {
        full_look: config.full_look,
        settle: settle(),
        max_device_regions: config.max_device_regions,
        ..Settings::default()
    }
}
