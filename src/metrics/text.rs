//! The text that Prometheus reads, in its two dialects.
//!
//! ```text
//! # HELP dmfilemap_file_read_bytes_total Bytes read.
//! # TYPE dmfilemap_file_read_bytes_total counter
//! dmfilemap_file_read_bytes_total{file="vm.img",device="dm-3"} 4096
//! ```

use std::fmt::{self, Write as _};

/// A dialect of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The text format 0.0.4, which every scraper reads, and the textfile collector of
    /// `node_exporter`.
    Classic,
    /// `OpenMetrics` 1.0.0: a counter's family goes without `_total`, and the text has an end.
    OpenMetrics,
}

impl Dialect {
    /// The type of the text in HTTP.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Dialect::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Dialect::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// A gauge that is always 1 and whose labels say something.
    Info,
}

/// Text that grows by one family of metrics after the other.
#[derive(Debug)]
pub(super) struct Text {
    out: String,
    dialect: Dialect,
}

/// A sample's labels: name and value.
pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    pub(super) fn new(dialect: Dialect) -> Text {
        Text { out: String::new(), dialect }
    }

    /// Begins a family; `name` is that of its samples, without what a histogram appends.
    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let open = self.dialect == Dialect::OpenMetrics;
        let (suffix, word) = match kind {
            Kind::Counter => (if open { "_total" } else { "" }, "counter"),
            Kind::Histogram => ("", "histogram"),
            Kind::Info if open => ("_info", "info"),
            Kind::Gauge | Kind::Info => ("", "gauge"),
        };
        let name = name.strip_suffix(suffix).unwrap_or(name);
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {word}\n"));
    }

    /// One sample of the family that was begun last.
    pub(super) fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl fmt::Display) {
        self.out.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            self.push(format_args!("{before}{label}=\"{}\"", Escaped(value)));
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        self.push(format_args!(" {value}\n"));
    }

    pub(super) fn finish(mut self) -> String {
        if self.dialect == Dialect::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn push(&mut self, text: fmt::Arguments<'_>) {
        self.out.write_fmt(text).expect("a string takes all that is written to it");
    }
}

/// The value of a label: backslash, quote and end of line are escaped.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| match char {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            other => f.write_char(other),
        })
    }
}

/// Nanoseconds, shown as seconds to the last digit: a float would lose some after three months.
pub(super) struct Seconds(pub(super) u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NS: u64 = 1_000_000_000;
        let (whole, rest) = (self.0 / NS, self.0 % NS);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        f.write_str(format!("{whole}.{rest:09}").trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_lose_nothing() {
        let check = |ns: u64, text: &str| assert_eq!(Seconds(ns).to_string(), text);
        check(0, "0");
        check(1, "0.000000001");
        check(1_500_000_000, "1.5");
        check(100_000_000_000, "100");
        check(u64::MAX, "18446744073.709551615");
    }

    #[test]
    fn the_dialects_differ_in_the_names_of_families_and_in_the_end() {
        let text = |dialect| {
            let mut text = Text::new(dialect);
            text.family("x_total", Kind::Counter, "Number of x.");
            text.sample("x_total", &[("a", "b")], 3);
            text.family("y_info", Kind::Info, "What y is.");
            text.sample("y_info", &[("a", "b\"\\\n"), ("c", "")], 1);
            text.finish()
        };
        let samples = ["x_total{a=\"b\"} 3\n", "y_info{a=\"b\\\"\\\\\\n\",c=\"\"} 1\n"];
        assert_eq!(
            text(Dialect::Classic),
            format!(
                "# HELP x_total Number of x.\n# TYPE x_total counter\n{}\
                 # HELP y_info What y is.\n# TYPE y_info gauge\n{}",
                samples[0], samples[1]
            )
        );
        assert_eq!(
            text(Dialect::OpenMetrics),
            format!(
                "# HELP x Number of x.\n# TYPE x counter\n{}\
                 # HELP y What y is.\n# TYPE y info\n{}# EOF\n",
                samples[0], samples[1]
            )
        );
    }
}
