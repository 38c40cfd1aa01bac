//! What may fail a bench: counts, which are the same on every machine, and never times.

use std::process::ExitCode;

/// Counts that are not as promised.
#[derive(Debug, Default)]
pub struct Counts {
    checked: usize,
    broken: Vec<String>,
}

impl Counts {
    /// Holds `what` to be `expected`.
    pub fn is(&mut self, what: &str, counted: u64, expected: u64) {
        self.hold(counted == expected, || format!("{what}: {counted}, and not {expected}"));
    }

    /// Holds `what` to be at most `limit`.
    pub fn at_most(&mut self, what: &str, counted: u64, limit: u64) {
        self.hold(counted <= limit, || format!("{what}: {counted}, more than {limit}"));
    }

    fn hold(&mut self, holds: bool, broken: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.broken.push(broken());
        }
    }

    /// Says what is not as promised; how the bench ends.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        for broken in &self.broken {
            eprintln!("error: {broken}");
        }
        if self.broken.is_empty() {
            println!("{} counts are as promised", self.checked);
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
