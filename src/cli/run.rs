//! `dmfilemapd run`: follow files in the foreground.

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
        return follow(DryRun::default(), &arguments.files, &settings);
    }
    follow(Control::open()?, &arguments.files, &settings)
}

fn follow(
    mut dm: impl Dm + Send + 'static,
    files: &Files,
    config: &config::Settings,
) -> Result<Exit, Failure> {
    let claim = random();
    let entries = files.entries(&mut dm, claim, &config.terms())?;
    let count = entries.len();
    let (interval, full_look) = (config.interval, config.full_look);
    let settings = Settings { interval, full_look, settle: settle(), ..Settings::default() };
    let ready = || log::info!("following {count} file(s), every {:?}", settings.interval);
    run(dm, claim, entries, settings, ready).map_err(Failure::new)?;
    Ok(Exit::Ok)
}
