//! Tables of results: printed for people, and written as JSON for programs.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use serde_json::{Map, Value, json};

use super::arguments::Arguments;

/// Where tables are written instead of [`folder`]: a bench inside a kernel of its own may not write
/// there.
pub const FOLDER: &str = "BENCH_RESULTS";

/// What stands in one place of a table.
#[derive(Clone, Debug)]
pub enum Cell {
    Text(String),
    /// Something that was counted, and is the same at every run.
    Count(u64),
    /// Something that was measured; its unit stands in the heading.
    Number(f64),
    /// How many times as much as the baseline that the heading names.
    Ratio(f64),
    /// Not measured; a note says why.
    Nothing,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }
}

impl From<u64> for Cell {
    fn from(count: u64) -> Cell {
        Cell::Count(count)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Cell {
        Cell::Count(count as u64)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Cell::Text(text) => text.clone(),
            Cell::Count(count) => grouped(*count),
            Cell::Number(number) => rounded(*number),
            Cell::Ratio(ratio) => format!("{ratio:.2} x"),
            Cell::Nothing => "-".to_owned(),
        };
        f.pad(&text)
    }
}

impl Cell {
    fn to_json(&self) -> Value {
        match self {
            Cell::Text(text) => json!(text),
            Cell::Count(count) => json!(count),
            Cell::Number(number) | Cell::Ratio(number) => json!(number),
            Cell::Nothing => Value::Null,
        }
    }
}

/// The digits in groups of three.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three digits, or all before the point.
fn rounded(number: f64) -> String {
    match number.abs() {
        size if size >= 99.95 => format!("{number:.0}"),
        size if size >= 9.995 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// Rows of results under headings.
#[derive(Clone, Debug)]
pub struct Table {
    name: &'static str,
    title: String,
    headings: Vec<String>,
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
}

impl Table {
    /// A table without rows. Its name is that of its file; headings name units and baselines.
    pub fn new(name: &'static str, title: &str, headings: &[&str]) -> Table {
        let headings = headings.iter().map(|heading| (*heading).to_owned()).collect();
        Table { name, title: title.to_owned(), headings, rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row: one cell for each heading.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let cells: Vec<Cell> = cells.into_iter().collect();
        assert_eq!(cells.len(), self.headings.len(), "a cell for each heading of {}", self.name);
        self.rows.push(cells);
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds what a reader of the figures has to know: what was left out, and why.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Prints the table, and writes it to `NAME.json` in [`folder`], in the quick form to
    /// `NAME.quick.json`.
    pub fn publish(&self, arguments: &Arguments) -> io::Result<()> {
        println!("{self}");
        self.write(&folder(), arguments.quick)
    }

    /// Writes it to a file in this folder.
    pub fn write(&self, folder: &Path, quick: bool) -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let text = serde_json::to_string_pretty(&self.to_json(quick))?;
        let ending = if quick { "quick.json" } else { "json" };
        fs::write(folder.join(format!("{}.{ending}", self.name)), text + "\n")
    }

    fn to_json(&self, quick: bool) -> Value {
        let row = |row: &Vec<Cell>| -> Map<String, Value> {
            let cells = row.iter().map(Cell::to_json);
            self.headings.iter().cloned().zip(cells).collect()
        };
        json!({
            "name": self.name,
            "title": self.title,
            "quick": quick,
            "optimized": !cfg!(debug_assertions),
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "notes": self.notes,
        })
    }
}

/// Where the tables are written: `bench` in the folder that cargo builds into.
pub fn folder() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    let usual = || built.expect("cargo's folder is in another").join("bench");
    env::var_os(FOLDER).map_or_else(usual, PathBuf::from)
}

/// In Markdown, with its columns aligned: words to the left, numbers to the right.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}\n", self.title)?;
        let mut lines = vec![self.headings.clone()];
        lines.extend(self.rows.iter().map(|row| row.iter().map(Cell::to_string).collect()));
        let is_words = |at: usize| self.rows.iter().all(|row| matches!(row[at], Cell::Text(_)));
        let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max();
        let columns: Vec<(bool, usize)> = (0..self.headings.len())
            .map(|at| (is_words(at), width(at).unwrap_or_default()))
            .collect();
        for (number, line) in lines.iter().enumerate() {
            let mut text = String::from("|");
            for (cell, &(words, width)) in line.iter().zip(&columns) {
                match words {
                    true => write!(text, " {cell:<width$} |")?,
                    false => write!(text, " {cell:>width$} |")?,
                }
            }
            writeln!(f, "{text}")?;
            if number == 0 {
                let rule = |&(words, width): &(bool, usize)| match words {
                    true => format!("{}|", "-".repeat(width + 2)),
                    false => format!("{}:|", "-".repeat(width + 1)),
                };
                writeln!(f, "|{}", columns.iter().map(rule).collect::<String>())?;
            }
        }
        for note in &self.notes {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}
