//! `dmfilemapd totals`: what was counted, of each file.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::explain::bytes;
use super::service::{Socket, absolute, ask, asked, failure};
use super::{Exit, Failure, json};
use crate::client::ErrorKind;
use crate::kernel::control::Control;
use crate::kernel::process::end_at_broken_pipe;
use crate::request::{FilePath, FileTotals, Reply, Request, Totals};
use crate::survey::survey;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Only this file, which a service has to follow
    file: Option<PathBuf>,

    /// In JSON, as contrib/json.md describes it
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    socket: Socket,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let path = arguments.file.as_deref().map(absolute).transpose()?;
    let totals = match path {
        Some(path) => of_file(&arguments.socket, path)?,
        None => gather(&arguments.socket)?,
    };
    end_at_broken_pipe();
    if arguments.json {
        json::print(&totals)?;
        return Ok(Exit::Ok);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    table(&mut out, &totals).and_then(|()| out.flush()).map_err(Failure::new)?;
    Ok(Exit::Ok)
}

/// What the service has counted; without one, what the kernel says of all groups there are.
pub fn gather(socket: &Socket) -> Result<Totals, Failure> {
    match ask(socket, &Request::Totals { path: None }) {
        Ok(reply) => totals_in(reply),
        Err(error) if error.kind() == ErrorKind::NoService => {
            let mut control = Control::open()?;
            let devices = control.devices().map_err(Failure::new)?;
            Ok(survey(&mut control, &devices))
        }
        Err(error) => Err(failure(&error)),
    }
}

fn of_file(socket: &Socket, path: FilePath) -> Result<Totals, Failure> {
    totals_in(asked(socket, &Request::Totals { path: Some(path) })?)
}

fn totals_in(reply: Reply) -> Result<Totals, Failure> {
    match reply {
        Reply::Totals(totals) => Ok(*totals),
        Reply::Error(text) => Err(Failure::new(text)),
        _ => Err(Failure::new("the service answered something else")),
    }
}

/// A row for each file. The name comes last.
fn table(out: &mut impl Write, totals: &Totals) -> io::Result<()> {
    if totals.service.is_none() {
        writeln!(
            out,
            "no service runs: this is what the kernel has counted since its counters were"
        )?;
        writeln!(out, "last set to zero")?;
    }
    for device in &totals.devices {
        if let Some(error) = &device.read_error {
            writeln!(out, "device {} ({}): {error}", device.device, device.name)?;
        }
    }
    writeln!(
        out,
        "{:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  {:<12} FILE",
        "READS", "READ", "AWAIT", "WRITES", "WRITTEN", "AWAIT", "DEVICE"
    )?;
    totals.files.iter().try_for_each(|file| row(out, file))
}

fn row(out: &mut impl Write, file: &FileTotals) -> io::Result<()> {
    let counters = &file.counters;
    let (reads, writes) = (counters.reads_completed, counters.writes_completed);
    let device = if file.device_name.is_empty() { &file.device } else { &file.device_name };
    let name = match &file.path {
        Some(path) => path.0.display().to_string(),
        None => file.alias.clone(),
    };
    writeln!(
        out,
        "{reads:>9} {:>9} {:>9} {writes:>9} {:>9} {:>9}  {device:<12} {name}",
        bytes(counters.read_bytes),
        each(counters.read_time_ns, reads),
        bytes(counters.written_bytes),
        each(counters.write_time_ns, writes),
    )
}

/// The time that each of so many took.
fn each(time_ns: u64, count: u64) -> String {
    time_ns.checked_div(count).map_or_else(|| "-".to_owned(), time)
}

/// A time, to three digits.
pub fn time(ns: u64) -> String {
    let time = Duration::from_nanos(ns);
    match ns {
        0..1_000_000 => format!("{} us", time.as_micros()),
        1_000_000..100_000_000 => {
            format!("{}.{} ms", time.as_millis(), time.as_micros() / 100 % 10)
        }
        _ => format!("{} ms", time.as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_for_people() {
        assert_eq!(each(5, 0), "-");
        assert_eq!(each(10_000, 4), "2 us");
        assert_eq!(each(3_140_000, 1), "3.1 ms");
        assert_eq!(each(7_500_000_000, 10), "750 ms");
    }
}
