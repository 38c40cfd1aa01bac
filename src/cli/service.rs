//! `dmfilemapd status|add|remove|reload|stop`: what is asked of a service that runs.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::explain::bytes;
use super::{Exit, Failure, json};
use crate::client::{self, ErrorKind};
use crate::kernel::process::end_at_broken_pipe;
use crate::mode::Mode;
use crate::request::{DeviceState, DeviceStatus, FilePath, FileStatus, Reply, Request, Status};
use crate::socket;

/// Enough for a status of 100,000 files from a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub struct Socket {
    /// Where the service listens
    #[arg(long, value_name = "PATH", env = "DMFILEMAPD_SOCKET", default_value = socket::PATH)]
    socket: PathBuf,
}

#[derive(Debug, Args)]
pub struct StatusArguments {
    /// Only this file
    file: Option<PathBuf>,

    /// In JSON, as contrib/json.md describes it
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
pub struct AddArguments {
    /// The file
    file: PathBuf,

    /// What makes a file the same file: its inode, or its path
    #[arg(long, value_name = "inode|path", default_value = "inode")]
    #[arg(value_parser = super::mode_parser(), hide_possible_values = true)]
    mode: Mode,

    /// Name of the group [default: the file's name]
    #[arg(long)]
    alias: Option<String>,

    #[command(flatten)]
    socket: Socket,
}

#[derive(Debug, Args)]
pub struct RemoveArguments {
    /// The file
    file: PathBuf,

    #[command(flatten)]
    socket: Socket,
}

pub fn status(arguments: &StatusArguments) -> Result<Exit, Failure> {
    let path = arguments.file.as_deref().map(absolute).transpose()?;
    let Reply::Status(status) = asked(&arguments.socket, &Request::Status { path })? else {
        return Err(Failure::new("the service answered something else"));
    };
    end_at_broken_pipe();
    if arguments.json {
        json::print(&json::Document::of(&*status))?;
        return Ok(Exit::Ok);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    table(&mut out, &status).and_then(|()| out.flush()).map_err(Failure::new)?;
    Ok(Exit::Ok)
}

pub fn add(arguments: &AddArguments) -> Result<Exit, Failure> {
    let (path, mode) = (absolute(&arguments.file)?, arguments.mode);
    tell(&arguments.socket, &Request::Add { path, mode, alias: arguments.alias.clone() })
}

pub fn remove(arguments: &RemoveArguments) -> Result<Exit, Failure> {
    tell(&arguments.socket, &Request::Remove { path: absolute(&arguments.file)? })
}

pub fn reload(socket: &Socket) -> Result<Exit, Failure> {
    tell(socket, &Request::Reload)
}

pub fn stop(socket: &Socket) -> Result<Exit, Failure> {
    tell(socket, &Request::Stop)
}

pub fn absolute(path: &Path) -> Result<FilePath, Failure> {
    std::path::absolute(path).map(FilePath).map_err(|error| Failure::at(path, error))
}

fn tell(socket: &Socket, request: &Request) -> Result<Exit, Failure> {
    if let Reply::Ok(text) = asked(socket, request)? {
        end_at_broken_pipe();
        println!("{text}");
    }
    Ok(Exit::Ok)
}

/// The service's answer, whatever it is.
pub fn ask(Socket { socket }: &Socket, request: &Request) -> Result<Reply, client::Error> {
    client::call(socket, request, TIMEOUT)
}

/// The service's answer, unless it is that something does not work.
pub fn asked(socket: &Socket, request: &Request) -> Result<Reply, Failure> {
    match ask(socket, request) {
        Ok(Reply::Error(text)) => Err(Failure::new(text)),
        Ok(reply) => Ok(reply),
        Err(error) => Err(failure(&error)),
    }
}

/// How to end if the service cannot be asked.
pub fn failure(error: &client::Error) -> Failure {
    let exit = match error.kind() {
        ErrorKind::NoService => Exit::Unavailable,
        ErrorKind::NoPermission => Exit::NoPermission,
        ErrorKind::TimedOut | ErrorKind::Refused | ErrorKind::Broken => Exit::Failed,
    };
    Failure(exit, error.to_string())
}

/// The service in one line, what each device has of it, then the files. The path comes last,
/// so that the columns before it take 65 of a screen's 80.
fn table(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let service = &status.service;
    let uptime = Duration::try_from_secs_f64(service.uptime_seconds.floor()).unwrap_or_default();
    writeln!(
        out,
        "dmfilemapd {}, process {}, up {}: {} file(s), {:.1} s behind",
        service.version,
        service.pid,
        humantime::format_duration(uptime),
        service.files,
        service.lag_seconds
    )?;
    if let Some(error) = &service.config_error {
        writeln!(out, "the configuration is not in effect: {error}")?;
    }
    if let Some(memory) = service.kernel_stats_bytes {
        writeln!(out, "kernel memory of all regions on all devices: {}", bytes(memory))?;
    }
    status.devices.iter().try_for_each(|device| device_lines(out, device))?;
    writeln!(
        out,
        "{:<9} {:<5} {:<12} {:>6} {:>7} {:>9} {:>8}  FILE",
        "STATE", "MODE", "DEVICE", "GROUP", "REGIONS", "MAPPED", "BEHIND"
    )?;
    status.files.iter().try_for_each(|file| row(out, file))
}

fn device_lines(out: &mut impl Write, device: &DeviceStatus) -> io::Result<()> {
    let head = format!("device {} ({})", device.device, device.name);
    if device.state != DeviceState::Ok {
        let (state, seconds) = (device.state.as_str(), device.stuck_seconds);
        return writeln!(out, "{head}: {state}, {seconds:.0} s");
    }
    let (own, creates) = (device.own_regions, device.creates);
    let all = device.regions.map(|all| format!(" of {}", all.max(own))).unwrap_or_default();
    #[allow(clippy::cast_precision_loss)] // for people
    let (cost, took) =
        (device.own_io_cost_estimated_ns as f64 / 1e3, device.creates_time_ns as f64 / 1e9);
    writeln!(
        out,
        "{head}: {own}{all} region(s) are of these files, and add about {cost:.1} us to each I/O; \
         {creates} created, in {took:.1} s"
    )
}

fn row(out: &mut impl Write, file: &FileStatus) -> io::Result<()> {
    let device = if file.device_name.is_empty() { &file.device } else { &file.device_name };
    let group = file.group.map_or("-".to_owned(), |group| group.to_string());
    writeln!(
        out,
        "{:<9} {:<5} {device:<12} {group:>6} {:>7} {:>9} {:>6.1} s  {}",
        file.state,
        file.mode,
        file.regions,
        bytes(file.mapped_bytes),
        file.lag_seconds,
        file.path.0.display()
    )?;
    if file.foreign_bytes > 0 {
        let (foreign, extents, max) = (bytes(file.foreign_bytes), file.extents, file.max_regions);
        writeln!(
            out,
            "          counts {foreign} between its {extents} extents, too: {max} region(s) allowed"
        )?;
    }
    match &file.last_error {
        Some(error) => writeln!(out, "          {error}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_header_and_a_row_for_each_file() {
        let file = FileStatus {
            path: FilePath("/var/lib/vm.img".into()),
            mode: Mode::Inode,
            device: "253:0".into(),
            device_name: "vg-images".into(),
            group: Some(3),
            regions: 12,
            max_regions: 12,
            extents: 14,
            mapped_bytes: 20 << 30,
            foreign_bytes: 3 << 20,
            unmapped_bytes: 0,
            state: "following".into(),
            last_change_unix_seconds: None,
            last_error: Some("it is gone".into()),
            lag_seconds: 0.25,
            interval_seconds: 0.5,
            alias: "vm.img".into(),
        };
        let mut text = Vec::new();
        let device = DeviceStatus {
            device: "253:0".into(),
            name: "vg-images".into(),
            uuid: String::new(),
            files: 1,
            state: DeviceState::Ok,
            regions: Some(200),
            own_regions: 120,
            own_io_cost_estimated_ns: 2040,
            creates: 130,
            creates_time_ns: 650_000_000,
            stuck_seconds: 0.0,
        };
        let (devices, files) = (vec![device], vec![file]);
        table(&mut text, &Status { devices, files, ..Status::default() }).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let [_, device, header, row, foreign, error] = lines[..] else { panic!("{text}") };
        assert!(device.contains("120 of 200 region(s)") && device.contains("2.0 us"), "{text}");
        assert!(foreign.contains("3.0 MiB between its 14 extents"), "{text}");
        assert_eq!(header.find("FILE"), row.find("/var"), "{text}");
        assert!(row.len() < 80 && row.contains("20 GiB"), "{text}");
        assert!(error.contains("it is gone"), "{text}");
    }
}
