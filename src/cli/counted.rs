//! What was counted: from the service if one runs, else from the kernel.

use std::path::PathBuf;

use super::service::Socket;
use super::{Exit, Failure};
use crate::kernel::control::Control;
use crate::request::{FilePath, Reply, Request, Totals};
use crate::survey::survey;

/// The totals of all files, or of one that a service follows.
///
/// Without a service they are those of every group on the machine, whoever made it. The kernel does
/// not know what is where, so a file cannot be asked for then.
pub fn totals(socket: &Socket, file: Option<PathBuf>) -> Result<Totals, Failure> {
    let named = file.is_some();
    match super::service::ask(socket, &Request::Totals { path: file.map(FilePath) }) {
        Ok(Reply::Totals(totals)) => Ok(*totals),
        Ok(_) => Err(Failure::new("the service answered something else")),
        Err(Failure(Exit::Unavailable, _)) if !named => surveyed(),
        Err(failure) => Err(failure),
    }
}

fn surveyed() -> Result<Totals, Failure> {
    let mut control = Control::open()?;
    let devices = control.devices().map_err(Failure::new)?;
    Ok(survey(&mut control, &devices))
}
