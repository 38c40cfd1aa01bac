//! The native command line: one file per subcommand.

mod check;
mod completions;
mod dry_run;
mod explain;
mod files;
mod gc;
mod json;
mod legacy;
mod metrics;
mod overrides;
mod run;
mod service;
mod terminal;
mod top;
mod totals;
mod update;

use std::env;
use std::error::Error as _;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use log::{Level, LevelFilter};

use crate::kernel::control::{OpenError, OpenErrorKind};
use crate::mode::Mode;
use crate::{compat, config};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All was done.
    Ok = 0,
    /// Something was not.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// There is no device-mapper, or no service.
    Unavailable = 69,
    /// There is, but not for this user.
    NoPermission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not succeed: what to print, and how to end.
#[derive(Debug)]
struct Failure(Exit, String);

impl Failure {
    fn new(error: impl Display) -> Failure {
        Failure(Exit::Failed, error.to_string())
    }

    fn at(path: &std::path::Path, error: impl Display) -> Failure {
        Failure(Exit::Failed, format!("{}: {error}", path.display()))
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        let exit = match error.kind() {
            OpenErrorKind::NoNode | OpenErrorKind::NoDriver | OpenErrorKind::WrongVersion => {
                Exit::Unavailable
            }
            OpenErrorKind::NoPermission => Exit::NoPermission,
            OpenErrorKind::Other => Exit::Failed,
        };
        Failure(exit, with_cause(&error))
    }
}

impl From<config::Errors> for Failure {
    fn from(errors: config::Errors) -> Failure {
        Failure(Exit::Config, errors.to_string())
    }
}

/// An error, and what the kernel said where the error itself does not tell.
fn with_cause(error: &OpenError) -> String {
    match error.source().filter(|_| error.kind() == OpenErrorKind::Other) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Keeps device-mapper statistics groups equal to the extents of files.
///
/// Called as `dmfilemapd FD GROUP_ID PATH MODE [FOREGROUND [LOG_LEVEL]]` it is lvm2's daemon of
/// the same name: that is how `dmstats create --filemap` starts it.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow the files of the configuration, or those named here, until a signal says stop; the
    /// groups stay
    Run(run::Arguments),
    /// Bring the groups of files up to date once, and make those that do not exist
    Update(update::Arguments),
    /// Say where a file lies, what would be done for it and what is in the way; needs no root
    Explain(explain::Arguments),
    /// Check the configuration, and show what it says and which files it matches now
    Check(check::Arguments),
    /// Delete the regions that cut updates have left, and nothing else
    Gc(gc::Arguments),
    /// Say how the service and its files are doing
    Status(service::StatusArguments),
    /// Say what was counted, as Prometheus reads it; of the service's files if one runs, else of
    /// every group on the machine
    Metrics(metrics::Arguments),
    /// Show which file the I/O goes to, now
    Top(top::Arguments),
    /// Say what was counted of each file: by the service, or else by the kernel
    Totals(totals::Arguments),
    /// Let the service follow a file
    Add(service::AddArguments),
    /// Let the service follow a file no longer
    Remove(service::RemoveArguments),
    /// Let the service read its configuration again
    Reload(service::Socket),
    /// End the service; the groups stay
    Stop(service::Socket),
    /// Print what has a shell complete these words: `source <(dmfilemapd completions bash)`
    Completions(completions::Arguments),
}

/// Reads a mode, and has shells complete it.
fn mode_parser() -> impl TypedValueParser<Value = Mode> {
    let words = [Mode::Inode, Mode::Path].map(Mode::as_str);
    PossibleValuesParser::new(words).try_map(|word| word.parse::<Mode>())
}

/// Starts the log on stderr, with lines of this level and worse.
fn start_log(level: LevelFilter) {
    let line = if is_stderr_the_journal() { journal_line } else { log_line };
    env_logger::Builder::new().filter_level(level).format(line).init();
}

/// Whether systemd reads stderr for the journal, as it says in `JOURNAL_STREAM` (systemd.exec(5)).
fn is_stderr_the_journal() -> bool {
    let Some(stream) = env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = io::stderr().as_fd().try_clone_to_owned() else { return false };
    let metadata = File::from(stderr).metadata();
    metadata.is_ok_and(|at| *stream == *format!("{}:{}", at.dev(), at.ino()))
}

/// One line for the journal, which knows who speaks: how bad it is (sd-daemon(3)), and what.
fn journal_line(out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let text = record.args().to_string();
    text.lines().try_for_each(|line| writeln!(out, "<{priority}>{line}"))
}

/// Says why the program ends. The journal takes a line that does not say how bad it is for news.
fn complain(message: &str) {
    if is_stderr_the_journal() {
        return message.lines().for_each(|line| eprintln!("<3>{line}"));
    }
    eprintln!("dmfilemapd: {message}");
}

/// One line of the log: who speaks, and how bad it is where it is.
fn log_line(out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>) -> io::Result<()> {
    match record.level() {
        Level::Error => writeln!(out, "dmfilemapd: error: {}", record.args()),
        Level::Warn => writeln!(out, "dmfilemapd: warning: {}", record.args()),
        _ => writeln!(out, "dmfilemapd: {}", record.args()),
    }
}

/// Runs the program with these arguments, the first of which is its name.
pub fn main(args: &[OsString]) -> ExitCode {
    let rest = args.get(1..).unwrap_or_default();
    if compat::is_legacy(rest) {
        return legacy::main(rest).into();
    }
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too. With nobody to read them there is no one to tell.
            error.print().ok();
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            return exit.into();
        }
    };
    let outcome = match arguments.command {
        Command::Run(arguments) => run::main(arguments),
        Command::Update(arguments) => update::main(&arguments),
        Command::Explain(arguments) => explain::main(&arguments),
        Command::Check(arguments) => check::main(&arguments),
        Command::Gc(arguments) => gc::main(&arguments),
        Command::Status(arguments) => service::status(&arguments),
        Command::Metrics(arguments) => metrics::main(&arguments),
        Command::Top(arguments) => top::main(&arguments),
        Command::Totals(arguments) => totals::main(&arguments),
        Command::Add(arguments) => service::add(&arguments),
        Command::Remove(arguments) => service::remove(&arguments),
        Command::Reload(socket) => service::reload(&socket),
        Command::Stop(socket) => service::stop(&socket),
        Command::Completions(arguments) => completions::main(&arguments),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(Failure(exit, message)) => {
            complain(&message);
            exit.into()
        }
    }
}
