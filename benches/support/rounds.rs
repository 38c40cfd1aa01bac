//! CPU time of things that take turns, so that whatever else the machine does meets all of them.

use rustix::time::{ClockId, clock_gettime};

/// One of the things that are compared.
pub struct Side<'a> {
    before: Box<dyn FnMut() + 'a>,
    run: Box<dyn FnMut() + 'a>,
}

impl<'a> Side<'a> {
    /// What `run` takes is measured.
    pub fn new(run: impl FnMut() + 'a) -> Side<'a> {
        Side { before: Box::new(|| {}), run: Box::new(run) }
    }

    /// Before each time `before` is done, which is not measured.
    pub fn after(self, before: impl FnMut() + 'a) -> Side<'a> {
        Side { before: Box::new(before), ..self }
    }
}

/// What each side took in each round, in nanoseconds.
#[derive(Debug)]
pub struct Rounds(Vec<Vec<f64>>);

impl Rounds {
    /// Measures all sides in each round, each time beginning with another one. A first round is
    /// not counted.
    pub fn take(rounds: usize, mut sides: Vec<Side<'_>>) -> Rounds {
        let mut took = vec![Vec::with_capacity(rounds); sides.len()];
        for round in 0..=rounds {
            for turn in 0..sides.len() {
                let at = (round + turn) % sides.len();
                let side = &mut sides[at];
                (side.before)();
                let began = thread_time();
                (side.run)();
                let ended = thread_time();
                if round > 0 {
                    took[at].push(ended - began);
                }
            }
        }
        Rounds(took)
    }

    /// Nanoseconds that a side took: the median.
    pub fn nanoseconds(&self, side: usize) -> f64 {
        median(self.0[side].clone())
    }

    /// How many times as long as `baseline` a side took: the median of all rounds.
    pub fn ratio(&self, side: usize, baseline: usize) -> f64 {
        let pairs = self.0[side].iter().zip(&self.0[baseline]);
        median(pairs.map(|(side, baseline)| side / baseline.max(1.0)).collect())
    }
}

/// CPU time that this thread has taken, in the kernel too; nanoseconds.
pub fn thread_time() -> f64 {
    nanoseconds(ClockId::ThreadCPUTime)
}

/// Likewise for all threads of this process.
pub fn process_time() -> f64 {
    nanoseconds(ClockId::ProcessCPUTime)
}

#[allow(clippy::cast_precision_loss)] // 2^53 ns are a hundred days
fn nanoseconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

#[allow(clippy::cast_precision_loss)] // exact below 2^53
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The one in the middle, of which there must be one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
