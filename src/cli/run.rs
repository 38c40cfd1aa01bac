//! `dmfilemapd run`: follow files in the foreground.

use std::io;
use std::time::Duration;

use clap::Args;
use log::LevelFilter;

use super::dry_run::DryRun;
use super::files::Files;
use super::values;
use super::{Exit, Failure};
use crate::dm::Dm;
use crate::engine::{Pace, Settings};
use crate::entry::{random, settle};
use crate::kernel::control::Control;
use crate::kernel::process::end_at_broken_pipe;
use crate::run::run;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    files: Files,

    #[command(flatten)]
    pace: PaceOptions,

    /// Say more: once for every event; -q says less
    #[arg(short, long)]
    verbose: bool,

    /// Say only what is wrong
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
}

#[derive(Debug, Args)]
pub struct PaceOptions {
    /// Time between two looks at a file, as 250ms or 2s; a bare number is milliseconds
    #[arg(long, value_name = "TIME", default_value = "500ms", env = "DMFILEMAPD_INTERVAL")]
    #[arg(value_parser = values::interval)]
    pub interval: Duration,

    /// Time after which a file's extents are read though nothing seems to have changed:
    /// defragmenting and deduplication leave no trace
    #[arg(long, value_name = "TIME", default_value = "60s", env = "DMFILEMAPD_FULL_LOOK")]
    #[arg(value_parser = values::interval)]
    pub full_look: Duration,
}

impl PaceOptions {
    pub fn settings(&self) -> Settings {
        Settings { full_look: self.full_look, settle: settle(), ..Settings::default() }
    }
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let level = match (arguments.verbose, arguments.quiet) {
        (true, _) => LevelFilter::Debug,
        (_, true) => LevelFilter::Warn,
        _ => LevelFilter::Info,
    };
    env_logger::Builder::new().filter_level(level).format(super::log_line).init();
    if arguments.files.dry_run {
        end_at_broken_pipe();
        let dry = DryRun::default();
        return follow(dry.clone(), move || Ok(dry.clone()), arguments);
    }
    follow(Control::open()?, || Control::open().map_err(io::Error::other), arguments)
}

fn follow<D: Dm + Send + 'static>(
    mut dm: D,
    open: impl Fn() -> io::Result<D> + 'static,
    arguments: &Arguments,
) -> Result<Exit, Failure> {
    let claim = random();
    let interval = arguments.pace.interval;
    let entries = arguments.files.entries(&mut dm, claim, Pace::fixed(interval))?;
    let count = entries.len();
    let settings = arguments.pace.settings();
    let ready = || log::info!("following {count} file(s), every {interval:?}");
    run(open, claim, entries, settings, ready).map_err(Failure::new)?;
    Ok(Exit::Ok)
}
