//! `dmfilemapd top`: which file the I/O goes to, now.

mod model;
mod screen;
mod view;

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::model::{Row, Sort, arrange, rows};
use self::view::{Key, View};
use super::service::Socket;
use super::totals::gather;
use super::{Exit, Failure, json};
use crate::kernel::process::end_at_broken_pipe;
use crate::request::Totals;
use crate::values;

/// Between two looks at whether a signal came: a call for keys goes on after a signal.
const GLANCE: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Time between two readings
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = values::interval)]
    interval: Duration,

    /// What the rows are sorted by
    #[arg(long, value_enum, default_value = "bytes")]
    sort: Sort,

    /// Only rows with this in the name of the file or the device
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    filter: String,

    /// Print the table once, after one interval
    #[arg(long)]
    once: bool,

    /// Print one JSON object for each interval, as contrib/json.md describes it
    #[arg(long)]
    json: bool,

    /// No colours; so it is where the environment has `NO_COLOR`
    #[arg(long)]
    no_color: bool,

    #[command(flatten)]
    socket: Socket,
}

/// One interval, for programs.
#[derive(Debug, Serialize)]
struct Interval<'a> {
    /// Of the interval.
    seconds: f64,
    /// Whether a service has counted, and not the kernel alone.
    service: bool,
    rows: &'a [Row],
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let first = Reading::take(&arguments.socket)?;
    if arguments.json || arguments.once {
        end_at_broken_pipe();
        return print(arguments, first);
    }
    if !io::stdout().is_terminal() {
        return Err(Failure::new("this is no terminal; use --once or --json"));
    }
    let asked_to_end = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, asked_to_end.clone()).map_err(Failure::new)?;
    }
    let mut terminal = ratatui::try_init().map_err(Failure::new)?;
    let outcome = watch(arguments, first, &mut terminal, &asked_to_end);
    ratatui::try_restore().map_err(Failure::new)?;
    outcome.map(|()| Exit::Ok)
}

/// What was counted, and when it was asked for.
struct Reading {
    totals: Totals,
    at: Instant,
}

impl Reading {
    fn take(socket: &Socket) -> Result<Reading, Failure> {
        Ok(Reading { totals: gather(socket)?, at: Instant::now() })
    }

    /// What was done since an earlier one.
    fn since(&self, earlier: &Reading) -> Vec<Row> {
        rows(&earlier.totals, &self.totals, self.at - earlier.at)
    }
}

/// Without a screen: a table once, or an object for each interval.
fn print(arguments: &Arguments, mut before: Reading) -> Result<Exit, Failure> {
    loop {
        thread::sleep(arguments.interval);
        let now = Reading::take(&arguments.socket)?;
        let mut rows = now.since(&before);
        arrange(&mut rows, arguments.sort, &arguments.filter);
        if arguments.json {
            let seconds = (now.at - before.at).as_secs_f64();
            let service = now.totals.service.is_some();
            json::print(&json::Document::of(&Interval { seconds, service, rows: &rows }))?;
        } else {
            let (head, lines) = screen::lines(&rows, usize::MAX, None);
            let mut out = io::stdout().lock();
            writeln!(out, "{head}").map_err(Failure::new)?;
            for line in lines {
                writeln!(out, "{line}").map_err(Failure::new)?;
            }
        }
        if arguments.once {
            return Ok(Exit::Ok);
        }
        before = now;
    }
}

fn watch(
    arguments: &Arguments,
    mut before: Reading,
    terminal: &mut ratatui::DefaultTerminal,
    asked_to_end: &AtomicBool,
) -> Result<(), Failure> {
    let colour = !arguments.no_color && env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let mut view = View::new(arguments.sort, arguments.filter.clone());
    view.source = source(&before.totals);
    let input = Input::open()?;
    let mut due = Instant::now() + arguments.interval;
    while !asked_to_end.load(Ordering::Relaxed) {
        view.fit(screen::room(terminal.size().map_err(Failure::new)?.height));
        terminal
            .draw(|frame| screen::draw(frame, &view, arguments.interval, colour))
            .map_err(Failure::new)?;
        if !input.wait(due.saturating_duration_since(Instant::now()).min(GLANCE))? {
            return Ok(()); // the terminal is gone
        }
        // All there is: what the library has read, the terminal has no more.
        while event::poll(Duration::ZERO).map_err(Failure::new)? {
            let key = key(&event::read().map_err(Failure::new)?);
            if !key.is_none_or(|key| view.press(key)) {
                return Ok(());
            }
        }
        if due <= Instant::now() {
            match Reading::take(&arguments.socket) {
                Ok(now) => {
                    view.take(now.since(&before));
                    view.source = source(&now.totals);
                    view.trouble = None;
                    before = now;
                }
                Err(Failure(_, why)) => view.trouble = Some(why),
            }
            due = Instant::now() + arguments.interval;
        }
    }
    Ok(())
}

/// Where the keys come from.
struct Input(File);

impl Input {
    /// What the library reads: stdin if that is a terminal, or else the terminal of the session.
    fn open() -> Result<Input, Failure> {
        let stdin = io::stdin();
        let file = match stdin.is_terminal() {
            true => stdin.as_fd().try_clone_to_owned().map(File::from),
            false => File::open("/dev/tty"),
        };
        file.map(Input).map_err(Failure::new)
    }

    /// Waits for keys, a signal, or so long. `false` if the terminal is gone: whoever asked the
    /// library then would wait forever, since it goes on reading what has ended.
    fn wait(&self, most: Duration) -> Result<bool, Failure> {
        let most = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        let mut asked = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut asked, most) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::new(errno)),
        }
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        Ok(!asked[0].revents().unwrap_or(PollFlags::empty()).intersects(gone))
    }
}

fn source(totals: &Totals) -> &'static str {
    match totals.service {
        Some(_) => "files of the service",
        None => "groups of this machine, no service",
    }
}

/// What a key means; in raw mode Ctrl-C is one, too.
fn key(event: &Event) -> Option<Key> {
    let Event::Key(key) = event else { return None };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGINT).ok(); // its flag ends this
            None
        }
        KeyCode::Char(char) => Some(Key::Char(char)),
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Esc => Some(Key::Escape),
        KeyCode::Backspace => Some(Key::Backspace),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::PageUp => Some(Key::PageUp),
        KeyCode::PageDown => Some(Key::PageDown),
        KeyCode::Home => Some(Key::Home),
        KeyCode::End => Some(Key::End),
        _ => None,
    }
}
