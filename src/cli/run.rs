//! `dmfilemapd run`: follow files in the foreground.

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
use crate::run::run;

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

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let level = match (arguments.verbose, arguments.quiet) {
        (true, _) => LevelFilter::Debug,
        (_, true) => LevelFilter::Warn,
        _ => LevelFilter::Info,
    };
    env_logger::Builder::new().filter_level(level).format(super::log_line).init();
    let Config { settings, .. } = arguments.overrides.read()?;
    if arguments.files.dry_run {
        end_at_broken_pipe();
        let dry = DryRun::default();
        return follow(dry.clone(), move || Ok(dry.clone()), &arguments.files, &settings);
    }
    let open = || Control::open().map_err(io::Error::other);
    follow(Control::open()?, open, &arguments.files, &settings)
}

fn follow<D: Dm + Send + 'static>(
    mut dm: D,
    open: impl Fn() -> io::Result<D> + 'static,
    files: &Files,
    config: &config::Settings,
) -> Result<Exit, Failure> {
    let claim = random();
    let entries = files.entries(&mut dm, claim, &config.terms())?;
    let count = entries.len();
    let settings =
        Settings { full_look: config.full_look, settle: settle(), ..Settings::default() };
    let ready = || log::info!("following {count} file(s), every {:?}", config.interval);
    run(open, claim, entries, settings, ready).map_err(Failure::new)?;
    Ok(Exit::Ok)
}
