//! `dmfilemapd completions`: a script that has a shell complete our words.

use std::io::{self, Write as _};

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell as Generator;
use clap_complete::generate;

use super::{Exit, Failure};
use crate::kernel::process::end_at_broken_pipe;

#[derive(Debug, Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Fish,
    Zsh,
}

pub fn main(arguments: &Arguments) -> Result<Exit, Failure> {
    let generator = match arguments.shell {
        Shell::Bash => Generator::Bash,
        Shell::Fish => Generator::Fish,
        Shell::Zsh => Generator::Zsh,
    };
    let mut script = Vec::new();
    generate(generator, &mut super::Arguments::command(), "dmfilemapd", &mut script);
    end_at_broken_pipe();
    io::stdout().write_all(&script).map_err(Failure::new)?;
    Ok(Exit::Ok)
}
