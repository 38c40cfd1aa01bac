//! Criterion's statistics over ratios: each sample runs a subject and its baseline, and what is
//! analysed is how many times as long the subject took. So neither the machine nor what else it
//! does is in the figure.

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput};

use super::arguments::Arguments;
use super::rounds::{as_f64, median, thread_time};

/// The measurement: a subject's time over its baseline's, times the number of runs.
#[derive(Debug)]
pub struct Paired;

impl Measurement for Paired {
    type Intermediate = ();
    type Value = f64;

    fn start(&self) {}

    fn end(&self, (): ()) -> f64 {
        unreachable!("nothing is measured here but pairs")
    }

    fn add(&self, left: &f64, right: &f64) -> f64 {
        left + right
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Times
    }
}

/// Writes ratios.
struct Times;

impl ValueFormatter for Times {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "x the baseline"
    }

    fn scale_throughputs(
        &self,
        _typical: f64,
        _throughput: &Throughput,
        _values: &mut [f64],
    ) -> &'static str {
        unreachable!("a ratio has no throughput")
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "x"
    }
}

/// Criterion that measures pairs, set up by the command line.
pub fn criterion(arguments: &Arguments) -> Criterion<Paired> {
    let (samples, warm_up, measuring) =
        if arguments.quick { (10, 20, 100) } else { (50, 200, 1500) };
    Criterion::default()
        .with_measurement(Paired)
        .sample_size(samples)
        .warm_up_time(Duration::from_millis(warm_up))
        .measurement_time(Duration::from_millis(measuring))
        .without_plots()
        .configure_from_args()
}

/// What a subject and its baseline took for one run, in nanoseconds, and the ratio of the two:
/// medians.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub subject: f64,
    pub baseline: f64,
    pub ratio: f64,
}

/// Has criterion measure a subject against its baseline; `None` if it was not asked to.
pub fn measure<S, B>(
    criterion: &mut Criterion<Paired>,
    name: &str,
    mut subject: impl FnMut() -> S,
    mut baseline: impl FnMut() -> B,
) -> Option<Pair> {
    let samples: Rc<RefCell<Vec<Pair>>> = Rc::default();
    let kept = samples.clone();
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|runs| {
            let began = thread_time();
            (0..runs).for_each(|_| drop(black_box(subject())));
            let between = thread_time();
            (0..runs).for_each(|_| drop(black_box(baseline())));
            let ended = thread_time();
            let runs = as_f64(runs);
            let (subject, baseline) = ((between - began) / runs, (ended - between) / runs);
            let ratio = subject / baseline.max(1e-3);
            kept.borrow_mut().push(Pair { subject, baseline, ratio });
            ratio * runs
        });
    });
    let samples = samples.borrow();
    let warm = &samples[samples.len() / 2..]; // criterion warms up first
    let of = |what: fn(&Pair) -> f64| median(warm.iter().map(what).collect());
    (!warm.is_empty()).then(|| Pair {
        subject: of(|pair| pair.subject),
        baseline: of(|pair| pair.baseline),
        ratio: of(|pair| pair.ratio),
    })
}
