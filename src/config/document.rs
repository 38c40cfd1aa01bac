//! One file of the configuration.
//!
//! ```toml
//! interval = "250ms"
//!
//! [[file]]
//! path = "/srv/vm/*.img"
//! mode = "path"
//! ```

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::keys::{self, nearest};
use super::{Assignment, Error, KEYS, Key, Layer, Pattern, Place, Source, Writing};

/// What a file says.
#[derive(Debug, Default)]
pub struct Document {
    /// Its keys at the top.
    pub layer: Layer,
    /// Its entries, in their order.
    pub entries: Vec<Entry>,
}

/// A `[[file]]`.
#[derive(Debug)]
pub struct Entry {
    /// Which files.
    pub pattern: Pattern,
    /// Its own keys.
    pub own: Layer,
    /// Where it is.
    pub source: Source,
}

/// Reads as much of the text as is right, and adds what is not to `errors`, in order of the lines.
pub fn parse(path: &Arc<Path>, bytes: &[u8], errors: &mut Vec<Error>) -> Document {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = before.split(|byte| *byte == b'\n').count();
            let at = Source::Line(path.clone(), line);
            errors.push(Error { at, fault: "this is not UTF-8; save the file as that".to_owned() });
            return Document::default();
        }
    };
    let (table, wrong) = DeTable::parse_recoverable(text);
    let ends = text.match_indices('\n').map(|(at, _)| at).collect();
    let mut reader = Reader { path, ends, faults: Vec::new() };
    for error in wrong {
        let at = error.span().map_or(0, |span| span.start);
        reader.fault(at, format!("this is not TOML: {}", error.message()));
    }
    let syntax = reader.faults.len();
    let document = reader.top(table.get_ref());
    reader.finish(syntax, errors);
    document
}

struct Reader<'a> {
    path: &'a Arc<Path>,
    /// Where each line ends.
    ends: Vec<usize>,
    /// Each with its line.
    faults: Vec<(usize, String)>,
}

impl Reader<'_> {
    /// The line of the byte at this offset; the first is 1.
    fn line(&self, at: usize) -> usize {
        self.ends.partition_point(|end| *end < at) + 1
    }

    fn source(&self, at: usize) -> Source {
        Source::Line(self.path.clone(), self.line(at))
    }

    fn fault(&mut self, at: usize, fault: String) {
        self.faults.push((self.line(at), fault));
    }

    /// The first `syntax` faults are those of the syntax. What else seems wrong with their lines
    /// comes from them.
    fn finish(mut self, syntax: usize, errors: &mut Vec<Error>) {
        let broken: BTreeSet<usize> = self.faults[..syntax].iter().map(|(line, _)| *line).collect();
        let rest = self.faults.split_off(syntax);
        self.faults.extend(rest.into_iter().filter(|(line, _)| !broken.contains(line)));
        self.faults.sort_by_key(|(line, _)| *line);
        self.faults.dedup(); // brackets left open are told one by one
        let error = |(line, fault)| Error { at: Source::Line(self.path.clone(), line), fault };
        errors.extend(self.faults.into_iter().map(error));
    }

    fn top(&mut self, table: &DeTable<'_>) -> Document {
        let mut document = Document::default();
        for (name, value) in table {
            if name.get_ref() == "file" {
                document.entries = self.entries(name.span().start, value);
                continue;
            }
            match keys::find(name.get_ref()) {
                Some(key) => document.layer.extend(self.assignment(key, name, value)),
                None => {
                    let known = KEYS.iter().map(|key| key.name).chain(["file"]);
                    self.fault(name.span().start, unknown(name.get_ref(), known));
                }
            }
        }
        document
    }

    fn entries(&mut self, at: usize, value: &Spanned<DeValue<'_>>) -> Vec<Entry> {
        let hint = "begin each entry with a line [[file]]";
        let DeValue::Array(items) = value.get_ref() else {
            self.fault(at, format!("file is {}; {hint}", kind(value.get_ref())));
            return Vec::new();
        };
        let mut entries = Vec::new();
        for item in items {
            match item.get_ref() {
                DeValue::Table(table) => entries.extend(self.entry(item.span().start, table)),
                other => self.fault(item.span().start, format!("this is {}; {hint}", kind(other))),
            }
        }
        entries
    }

    fn entry(&mut self, at: usize, table: &DeTable<'_>) -> Option<Entry> {
        let (own, exclude) = (self.own(table), self.exclude(table));
        let (path_at, path) = self.path(at, table)?;
        match Pattern::new(path, &exclude) {
            Ok(pattern) => Some(Entry { pattern, own, source: self.source(path_at) }),
            Err(faults) => {
                for fault in faults {
                    self.fault(path_at, fault);
                }
                None
            }
        }
    }

    fn own(&mut self, table: &DeTable<'_>) -> Layer {
        let mut own = Layer::new();
        for (name, value) in table {
            match (name.get_ref().as_ref(), keys::find(name.get_ref())) {
                ("path" | "exclude", _) => {}
                (_, Some(key)) if key.place == Place::Anywhere => {
                    own.extend(self.assignment(key, name, value));
                }
                (word, Some(_)) => {
                    let hint = "is for the whole service; put it above the first [[file]]";
                    self.fault(name.span().start, format!("{word} {hint}"));
                }
                (word, None) => {
                    let known = KEYS.iter().filter(|key| key.place == Place::Anywhere);
                    let known = known.map(|key| key.name).chain(["path", "exclude"]);
                    self.fault(name.span().start, unknown(word, known));
                }
            }
        }
        own
    }

    /// With its offset. The entry is at `at`.
    fn path<'t>(&mut self, at: usize, table: &'t DeTable<'_>) -> Option<(usize, &'t str)> {
        let Some(value) = table.get("path") else {
            self.fault(at, "this entry has no path; add path = \"/folder/*.img\"".to_owned());
            return None;
        };
        let at = value.span().start;
        if let DeValue::String(text) = value.get_ref() {
            return Some((at, text));
        }
        self.fault(at, format!("path takes a string, not {}", kind(value.get_ref())));
        None
    }

    fn exclude(&mut self, table: &DeTable<'_>) -> Vec<String> {
        let Some(value) = table.get("exclude") else { return Vec::new() };
        let patterns = match value.get_ref() {
            DeValue::Array(items) => strings(items).map_err(|kind| format!("and has {kind} in it")),
            other => Err(format!("not {}", kind(other))),
        };
        patterns.unwrap_or_else(|wrong| {
            self.fault(value.span().start, format!("exclude takes an array of strings, {wrong}"));
            Vec::new()
        })
    }

    fn assignment(
        &mut self,
        key: &'static Key,
        name: &Spanned<impl Sized>,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<Assignment> {
        let read = as_text(key.writing, value.get_ref()).and_then(|text| (key.read)(&text));
        match read {
            Ok(setting) => {
                let source = self.source(name.span().start);
                Some(Assignment { key: key.name, setting, source })
            }
            Err(fault) => {
                self.fault(name.span().start, format!("{}: {fault}", key.name));
                None
            }
        }
    }
}

/// The value as it would be written outside of TOML.
fn as_text(writing: Writing, value: &DeValue<'_>) -> Result<String, String> {
    match (writing, value) {
        (Writing::Text | Writing::List, DeValue::String(text)) => Ok(text.to_string()),
        (Writing::Flag, DeValue::Boolean(flag)) => Ok(flag.to_string()),
        (Writing::Number, DeValue::Integer(number)) => Ok(number.to_string()),
        (Writing::List, DeValue::Array(items)) => match strings(items) {
            Ok(strings) => Ok(strings.join(",")),
            Err(kind) => Err(format!("it takes an array of strings, and has {kind} in it")),
        },
        (_, other) => {
            let wanted = match writing {
                Writing::Text => "a string in quotes",
                Writing::Flag => "true or false, without quotes",
                Writing::Number => "an integer, without quotes",
                Writing::List => "an array of strings",
            };
            Err(format!("it takes {wanted}, not {}", kind(other)))
        }
    }
}

fn strings(items: &DeArray<'_>) -> Result<Vec<String>, &'static str> {
    let string = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        other => Err(kind(other)),
    };
    items.iter().map(string).collect()
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

fn unknown<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(word, known.clone()) {
        Some(meant) => format!("unknown key {word:?}; did you mean {meant:?}?"),
        None => {
            let known = known.collect::<Vec<_>>().join(", ");
            format!("unknown key {word:?}; there are {known}")
        }
    }
}
