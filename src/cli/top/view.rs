//! What is shown, and what the keys change of it.

use std::collections::{HashMap, VecDeque};

use super::model::{Row, Sort, arrange};

/// Rates remembered for each row.
pub const HISTORY: usize = 12;

/// What is shown, and how.
#[derive(Debug)]
pub struct View {
    rows: Vec<Row>,
    history: HashMap<(String, String), VecDeque<f64>>,
    pub sort: Sort,
    pub filter: String,
    /// What is typed goes to the filter.
    pub typing: bool,
    pub frozen: bool,
    pub help: bool,
    /// The first row that is shown.
    pub top: usize,
    /// Rows that there is room for.
    room: usize,
    /// Where the numbers come from, and what is wrong with them.
    pub source: &'static str,
    pub trouble: Option<String>,
}

/// What a key means, once the terminal's library has said which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
}

impl View {
    pub fn new(sort: Sort, filter: String) -> View {
        View {
            rows: Vec::new(),
            history: HashMap::new(),
            sort,
            filter,
            typing: false,
            frozen: false,
            help: false,
            top: 0,
            room: 1,
            source: "",
            trouble: None,
        }
    }

    /// Takes what has just been done. While frozen it goes to the history alone.
    pub fn take(&mut self, rows: Vec<Row>) {
        let mut history = HashMap::with_capacity(rows.len());
        for row in &rows {
            let mut rates = self.history.remove(&row.key()).unwrap_or_default();
            rates.push_back(row.bytes_per_second());
            if rates.len() > HISTORY {
                rates.pop_front();
            }
            history.insert(row.key(), rates);
        }
        self.history = history;
        if !self.frozen {
            self.rows = rows;
            self.scroll_to(self.top);
        }
    }

    /// There is room for so many rows now.
    pub fn fit(&mut self, room: usize) {
        self.room = room.max(1);
        self.scroll_to(self.top);
    }

    /// Shows the rows from this one on, or the last that there are.
    fn scroll_to(&mut self, top: usize) {
        self.top = top.min(self.arranged().len().saturating_sub(self.room));
    }

    /// The rows as they are to be shown, all of them.
    pub fn arranged(&self) -> Vec<Row> {
        let mut rows = self.rows.clone();
        arrange(&mut rows, self.sort, &self.filter);
        rows
    }

    /// A row's rates as a line of blocks, the oldest on the left; the highest of them fills one.
    pub fn sparkline(&self, row: &Row) -> String {
        const BLOCKS: [char; 8] = [
            '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}',
            '\u{2588}',
        ];
        let Some(rates) = self.history.get(&row.key()) else { return String::new() };
        let highest = rates.iter().copied().fold(0.0, f64::max);
        let block = |rate: &f64| {
            if highest <= 0.0 || *rate <= 0.0 {
                return ' ';
            }
            let eighths = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875];
            BLOCKS[eighths.iter().filter(|part| rate / highest > **part).count()]
        };
        rates.iter().map(block).collect()
    }

    /// Does what a key means; `false` is for the end.
    pub fn press(&mut self, key: Key) -> bool {
        if self.typing {
            self.type_in(key);
            return true;
        }
        match key {
            Key::Char('q') | Key::Escape if self.help => self.help = false,
            Key::Char('q') => return false,
            Key::Escape => self.filter.clear(),
            Key::Char('h' | '?') => self.help = !self.help,
            Key::Char('f' | ' ') => self.frozen = !self.frozen,
            Key::Char('/') => self.typing = true,
            Key::Up => self.scroll_to(self.top.saturating_sub(1)),
            Key::Down => self.scroll_to(self.top + 1),
            Key::PageUp => self.scroll_to(self.top.saturating_sub(self.room)),
            Key::PageDown => self.scroll_to(self.top + self.room),
            Key::Home => self.top = 0,
            Key::End => self.scroll_to(usize::MAX),
            Key::Char(key) => {
                if let Some((_, sort)) = SORTS.iter().find(|(of, _)| *of == key) {
                    self.sort = *sort;
                }
            }
            Key::Enter | Key::Backspace => {}
        }
        true
    }

    fn type_in(&mut self, key: Key) {
        match key {
            Key::Char(key) => self.filter.push(key),
            Key::Backspace => drop(self.filter.pop()),
            Key::Escape => {
                self.filter.clear();
                self.typing = false;
            }
            Key::Enter => self.typing = false,
            _ => {}
        }
        self.top = 0;
    }
}

/// The keys that sort.
pub const SORTS: [(char, Sort); 7] = [
    ('b', Sort::Bytes),
    ('r', Sort::Read),
    ('w', Sort::Written),
    ('i', Sort::Iops),
    ('a', Sort::Wait),
    ('u', Sort::Queue),
    ('n', Sort::Name),
];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn row(name: &str, bytes: f64) -> Row {
        Row {
            name: name.to_owned(),
            device: "vg-lv".to_owned(),
            other: false,
            seconds: 1.0,
            reads_per_second: 10.0,
            writes_per_second: 0.0,
            read_bytes_per_second: bytes,
            written_bytes_per_second: 0.0,
            read_wait_ns: Some(1_500_000),
            write_wait_ns: None,
            queue: 0.25,
            share: Some(0.5),
            median_ns: None,
            p99_ns: None,
        }
    }

    fn names(view: &View) -> Vec<String> {
        view.arranged().into_iter().map(|row| row.name).collect()
    }

    #[test]
    fn keys_sort_filter_freeze_and_end() {
        let mut view = View::new(Sort::Bytes, String::new());
        view.take(vec![row("/a", 1.0), row("/b", 2.0)]);
        assert_eq!(names(&view), ["/b", "/a"]);
        assert!(view.press(Key::Char('n')));
        assert_eq!(names(&view), ["/a", "/b"]);
        for key in [Key::Char('/'), Key::Char('q'), Key::Backspace, Key::Char('b'), Key::Enter] {
            assert!(view.press(key), "q is typed");
        }
        assert_eq!((names(&view), view.typing), (vec!["/b".to_owned()], false));
        assert!(view.press(Key::Escape));
        assert_eq!(names(&view).len(), 2);
        view.press(Key::Char(' '));
        view.take(vec![row("/c", 1.0)]);
        assert_eq!(names(&view), ["/a", "/b"], "frozen");
        view.press(Key::Char('f'));
        view.take(vec![row("/c", 1.0)]);
        assert_eq!(names(&view), ["/c"]);
        view.press(Key::Char('?'));
        assert!(view.help);
        assert!(view.press(Key::Char('q')), "out of the help first");
        assert!(!view.help);
        assert!(!view.press(Key::Char('q')));
    }

    #[test]
    fn nobody_scrolls_beyond_the_last_row() {
        let mut view = View::new(Sort::Name, String::new());
        view.take((10..30).map(|at| row(&format!("/{at}"), 1.0)).collect());
        view.fit(8);
        let tops = |view: &mut View, keys: &[Key]| -> Vec<usize> {
            let press = |key: &Key| {
                view.press(*key);
                view.top
            };
            keys.iter().map(press).collect()
        };
        assert_eq!(tops(&mut view, &[Key::Up, Key::Down, Key::PageDown]), [0, 1, 9]);
        assert_eq!(tops(&mut view, &[Key::PageDown, Key::PageDown, Key::Up]), [12, 12, 11]);
        assert_eq!(tops(&mut view, &[Key::Home, Key::End, Key::PageUp]), [0, 12, 4]);
        view.press(Key::End);
        view.fit(15);
        assert_eq!(view.top, 5, "a larger screen");
        view.take(vec![row("/a", 1.0)]);
        assert_eq!(view.top, 0, "fewer rows");
    }

    #[test]
    fn a_history_is_as_long_as_it_may_be_and_ends_with_its_row() {
        let mut view = View::new(Sort::Bytes, String::new());
        for rate in 0..30 {
            view.take(vec![row("/a", f64::from(rate))]);
        }
        let line: Vec<char> = view.sparkline(&row("/a", 0.0)).chars().collect();
        assert_eq!(line.len(), HISTORY);
        assert_eq!(line.last(), Some(&'\u{2588}'));
        assert!(line.is_sorted(), "{line:?}");
        view.take(vec![row("/b", 0.0)]);
        assert_eq!(view.sparkline(&row("/a", 0.0)), "");
        assert_eq!(view.sparkline(&row("/b", 0.0)), " ");
    }
}
