//! Programs that a test needs and a machine may lack.

#![allow(dead_code)] // each file of tests uses its share

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::Path;

/// Whether one of these programs, each with its Debian package, is not there: then the test `name`
/// is skipped, which is said.
///
/// # Panics
///
/// One is not there, and `CI` is set.
pub fn lack(name: &str, programs: &[(&str, &str)]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let missing = programs.iter().find(|(program, _)| !is_there(&path, program));
    let Some((program, package)) = missing else { return false };
    let text = format!("{program} is missing: apt-get install {package}");
    assert!(env::var_os("CI").is_none(), "{name} cannot run here: {text}");
    // Not with a macro: what those print is shown only if the test fails.
    let _ = writeln!(io::stderr(), "SKIPPED {name}: {text}");
    true
}

fn is_there(path: &OsStr, program: &str) -> bool {
    env::split_paths(path).any(|folder| folder.join(program).is_file()) // or it is absolute
        || Path::new("/usr/sbin").join(program).is_file()
}
