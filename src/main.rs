//! The program; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    dmfilemapd::cli::main(&std::env::args_os().collect::<Vec<_>>())
}
