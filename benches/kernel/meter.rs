//! How much CPU time this kernel takes, as the host sees it.
//!
//! Asked of the host because the kernel of User-Mode Linux itself counts in steps of 10 ms: of a
//! process that wakes, works for less than that and sleeps again it may see nothing. And because it
//! is all there: what is done for a process in threads of the kernel, in forks and at exits too.
//!
//! The question is a line on stdout, which [`outside`](super::outside) does not pass on: it answers
//! in a file.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// The folder for answers; set inside the kernel only.
pub const FOLDER: &str = "BENCH_METER";

/// What a question begins with; the number of the question follows.
pub const QUESTION: &str = "@cpu ";

/// Whether this runs inside the kernel that is measured.
pub fn is_inside() -> bool {
    env::var_os(FOLDER).is_some()
}

/// CPU time that this kernel has taken so far.
fn cpu() -> Duration {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let answer = PathBuf::from(env::var_os(FOLDER).unwrap()).join(number.to_string());
    println!("{QUESTION}{number}");
    loop {
        if let Ok(text) = fs::read_to_string(&answer) {
            return Duration::from_nanos(text.parse().unwrap());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// CPU time that this kernel takes while `activity` lasts.
pub fn cpu_of(activity: impl FnOnce()) -> Duration {
    let before = cpu();
    activity();
    cpu().saturating_sub(before)
}
