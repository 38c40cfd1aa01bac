//! The command line of a bench: `cargo bench --bench NAME -- [--quick] [WORD]`.

use std::env;
use std::error::Error;
use std::process::ExitCode;

/// Says so if the times are not those of the program as it is shipped.
pub fn warn_if_slow() {
    if cfg!(debug_assertions) {
        println!("This is a build without optimization: its counts are right, its times are not.");
    }
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Small sizes and few rounds: the counts are the same, the times are rough.
    pub quick: bool,
    /// Only what has this word in its name.
    pub word: Option<String>,
}

impl Arguments {
    /// Those of this process. Without `--bench`, which cargo gives to all benches that are to
    /// measure, the quick form it is: `cargo test --benches` only wants to see whether they run.
    ///
    /// # Errors
    ///
    /// What is wrong with them, in a sentence; among that a WORD that is in none of `names`.
    pub fn read(names: &[&str]) -> Result<Arguments, String> {
        warn_if_slow();
        let arguments = Arguments::parse(env::args().skip(1))?;
        match &arguments.word {
            Some(word) if !names.iter().any(|name| arguments.wants(name)) => {
                Err(format!("nothing here is called {word}; there is {}", names.join(", ")))
            }
            _ => Ok(arguments),
        }
    }

    fn parse(words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut arguments = Arguments { quick: true, word: None };
        let mut quick = false;
        for word in words {
            match word.as_str() {
                "--bench" => arguments.quick = false,
                "--quick" => quick = true,
                option if option.starts_with('-') => {
                    return Err(format!("{option} is not known here; there is --quick, and WORD"));
                }
                _ => arguments.word = Some(word),
            }
        }
        arguments.quick |= quick;
        Ok(arguments)
    }

    /// Whether what has this name is wanted.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.word.as_ref().is_none_or(|word| name.contains(word))
    }
}

/// Says that something cannot be measured here, and why; an error with `CI` set.
pub fn skip(what: &str) -> Result<(), String> {
    if env::var_os("CI").is_some() {
        return Err(format!("{what}; with CI set nothing may be skipped"));
    }
    eprintln!("SKIPPED: {what}");
    Ok(())
}

/// How a bench ends.
pub fn end(outcome: Result<ExitCode, Box<dyn Error>>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}
