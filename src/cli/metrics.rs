//! `dmfilemapd metrics`: what was counted, as Prometheus reads it.

use std::io::{self, Write as _};

use clap::Args;

use super::service::Socket;
use super::{Exit, Failure, totals};
use crate::kernel::process::end_at_broken_pipe;
use crate::metrics::{Dialect, render};

#[derive(Debug, Args)]
pub struct Arguments {
    /// In the format of `OpenMetrics` 1.0.0 instead of Prometheus's own
    #[arg(long)]
    openmetrics: bool,

    #[command(flatten)]
    socket: Socket,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let counted = totals::gather(&arguments.socket)?;
    let dialect = if arguments.openmetrics { Dialect::OpenMetrics } else { Dialect::Classic };
    end_at_broken_pipe();
    let text = render(&counted, dialect);
    io::stdout().write_all(text.as_bytes()).map_err(Failure::new)?;
    Ok(Exit::Ok)
}
