//! What happened last, for whoever reads about a failure.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

const LINES_MAX: usize = 300;

/// The last lines, shared by all who write them.
#[derive(Clone, Debug, Default)]
pub struct Log(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    now: u64,
    lines: VecDeque<String>,
}

impl Log {
    pub fn set_time(&self, now: u64) {
        self.0.borrow_mut().now = now;
    }

    pub fn say(&self, line: impl FnOnce() -> String) {
        let line = line();
        if line.is_empty() {
            return;
        }
        let mut inner = self.0.borrow_mut();
        if inner.lines.len() == LINES_MAX {
            inner.lines.pop_front();
        }
        let (seconds, rest) = (inner.now / 1_000_000, inner.now % 1_000_000);
        inner.lines.push_back(format!("{seconds:5}.{rest:06} {line}"));
    }

    pub fn tell(&self) {
        for line in &self.0.borrow().lines {
            eprintln!("{line}");
        }
    }
}
