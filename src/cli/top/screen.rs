//! The table on a screen of any size: columns that do not fit are left out, the least telling
//! first.

use std::borrow::Cow;
use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph};

use super::model::{Row, Sort};
use super::view::{HISTORY, SORTS, View};
use crate::cli::explain::bytes;
use crate::cli::totals::time;

/// A column: its head, its width, what it shows, and how soon it gives way.
struct Column {
    head: &'static str,
    width: usize,
    rank: u8,
    show: fn(&Row) -> String,
}

const fn column(head: &'static str, width: usize, rank: u8, show: fn(&Row) -> String) -> Column {
    Column { head, width, rank, show }
}

const COLUMNS: [Column; 10] = [
    column("READ/s", 9, 0, |row| rate_of_bytes(row.read_bytes_per_second)),
    column("WRITE/s", 9, 0, |row| rate_of_bytes(row.written_bytes_per_second)),
    column("r/s", 7, 1, |row| rate(row.reads_per_second)),
    column("w/s", 7, 1, |row| rate(row.writes_per_second)),
    column("r_await", 8, 2, |row| wait(row.read_wait_ns)),
    column("w_await", 8, 2, |row| wait(row.write_wait_ns)),
    column("QUEUE", 6, 3, |row| format!("{:.2}", row.queue)),
    column("SHARE", 5, 4, |row| percent(row.share)),
    column("p50<", 7, 6, |row| wait(row.median_ns)),
    column("p99<", 7, 6, |row| wait(row.p99_ns)),
];

/// How soon the history gives way, and the device.
const HISTORY_RANK: u8 = 5;
const DEVICE_RANK: u8 = 5;
const DEVICE_WIDTH: usize = 12;

/// Of a name, at least so much is shown before a column gives way.
const NAME_MIN: usize = 16;

pub fn rate_of_bytes(rate: f64) -> String {
    if rate < 1024.0 {
        return rate_with(rate, " B");
    }
    bytes(whole(rate))
}

fn rate(rate: f64) -> String {
    rate_with(rate, "")
}

fn rate_with(rate: f64, unit: &str) -> String {
    if rate == 0.0 {
        "-".to_owned()
    } else if rate < 10.0 {
        format!("{rate:.1}{unit}")
    } else {
        format!("{rate:.0}{unit}")
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // as casts of floats saturate
fn whole(rate: f64) -> u64 {
    rate as u64
}

fn wait(ns: Option<u64>) -> String {
    ns.map_or_else(|| "-".to_owned(), time)
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0))
}

/// The rank of the last columns that have room.
fn ranks_that_fit(width: usize, latencies: bool) -> u8 {
    let needed = |rank: u8| {
        let columns = COLUMNS.iter().filter(|column| is_shown(column, rank, latencies));
        let columns: usize = columns.map(|column| column.width + 1).sum();
        let history = if rank >= HISTORY_RANK { HISTORY + 1 } else { 0 };
        let device = if rank >= DEVICE_RANK { DEVICE_WIDTH + 1 } else { 0 };
        columns + history + device + NAME_MIN
    };
    (0..=6).rev().find(|rank| needed(*rank) <= width).unwrap_or(0)
}

fn is_shown(column: &Column, rank: u8, latencies: bool) -> bool {
    column.rank <= rank && (latencies || column.rank < 6)
}

/// The table as lines: the head, then a line for each row; with the history, if the view is given
/// that has it.
pub fn lines(rows: &[Row], width: usize, view: Option<&View>) -> (String, Vec<String>) {
    let latencies = rows.iter().any(|row| row.median_ns.is_some() || row.p99_ns.is_some());
    let rank = ranks_that_fit(width, latencies);
    let shown = || COLUMNS.iter().filter(move |column| is_shown(column, rank, latencies));
    let mut head = String::new();
    for Column { head: word, width, .. } in shown() {
        head.extend([format!("{word:>width$} ")]);
    }
    if rank >= HISTORY_RANK {
        head.extend(view.map(|_| format!("{:<HISTORY$} ", "HISTORY")));
        head.extend([format!("{:<DEVICE_WIDTH$} ", "DEVICE")]);
    }
    let room = width.saturating_sub(head.chars().count());
    head += "FILE";
    let line = |row: &Row| {
        let mut line = String::new();
        for Column { width, show, .. } in shown() {
            line.extend([format!("{:>width$} ", show(row))]);
        }
        if rank >= HISTORY_RANK {
            let past = view.map(|view| format!("{:>HISTORY$} ", view.sparkline(row)));
            let device = start_of(&row.device, DEVICE_WIDTH);
            line.extend(past);
            line.extend([format!("{device:<DEVICE_WIDTH$} ")]);
        }
        // Each device has one, and its name may be out of sight.
        match row.other && rank < HISTORY_RANK {
            true => line + &end_of(&format!("{} {}", row.name, row.device), room),
            false => line + &end_of(&row.name, room),
        }
    };
    (head, rows.iter().map(line).collect())
}

fn start_of(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

/// The end of a path tells more than its start.
fn end_of(name: &str, width: usize) -> Cow<'_, str> {
    let len = name.chars().count();
    if len <= width {
        return name.into();
    }
    let end: String = name.chars().skip(len + 1 - width.max(1)).collect();
    format!("<{end}").into()
}

/// Rows of the table that have room on a screen of this height.
pub fn room(height: u16) -> usize {
    usize::from(height).saturating_sub(3)
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, view: &View, interval: Duration, colour: bool) {
    let [title, head, table, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let style = |colours: Color, modifier: Modifier| {
        let style = Style::new().add_modifier(modifier);
        if colour { style.fg(colours) } else { style }
    };
    frame.render_widget(Line::from(self::title(view, interval)), title);
    let rows = view.arranged();
    let (words, lines) = lines(&rows, table.width.into(), Some(view));
    frame.render_widget(Line::styled(words, style(Color::Reset, Modifier::REVERSED)), head);
    let body: Vec<Line<'_>> = rows
        .iter()
        .zip(lines)
        .skip(view.top)
        .map(|(row, line)| match row.other {
            true => Line::styled(line, style(Color::DarkGray, Modifier::empty())),
            false if row.bytes_per_second() > 0.0 => {
                Line::styled(line, style(Color::Reset, Modifier::BOLD))
            }
            false => Line::from(line),
        })
        .collect();
    frame.render_widget(Paragraph::new(body), table);
    let trouble = view.trouble.as_deref();
    let style = trouble.map_or(Style::new(), |_| style(Color::Red, Modifier::BOLD));
    let text = trouble.map_or_else(|| self::foot(view), str::to_owned);
    frame.render_widget(Line::styled(text, style), foot);
    if view.help {
        help(frame);
    }
}

/// What changes comes first, since a small screen cuts the rest.
fn title(view: &View, interval: Duration) -> String {
    let frozen = if view.frozen { ", frozen" } else { "" };
    let sort = view.sort.to_string();
    format!("dmfilemapd top{frozen}: by {sort}, every {interval:?}, {}", view.source)
}

fn foot(view: &View) -> String {
    let cursor = if view.typing { "_" } else { "" };
    if view.typing || !view.filter.is_empty() {
        return format!("filter: {}{cursor}", view.filter);
    }
    "h help  q quit  / filter  f freeze  sort: b r w i a u n".to_owned()
}

fn help(frame: &mut Frame<'_>) {
    let sorts = |sorts: &[(char, Sort)]| {
        let keys: Vec<String> = sorts.iter().map(|(key, _)| key.to_string()).collect();
        let by: Vec<String> = sorts.iter().map(|(_, sort)| sort.to_string()).collect();
        Line::from(format!("{:<8} by {}", keys.join(" "), by.join(", ")))
    };
    let (some, others) = SORTS.split_at(SORTS.len() / 2 + 1);
    let mut text: Vec<Line<'_>> = [
        "q        end",
        "h ?      this help",
        "f space  freeze, and go on",
        "/        filter; Esc ends it",
        "arrows   scroll, as do the page keys",
    ]
    .map(Line::from)
    .to_vec();
    text.extend([some, others].map(sorts));
    text.push(Line::from("(other)  what no followed file has"));
    let area = centred(frame.area(), 40, u16::try_from(text.len() + 2).unwrap_or(u16::MAX));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title("help")), area);
}

fn centred(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::view::Key;
    use super::super::view::tests::row;
    use super::*;

    fn shown(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view, Duration::from_secs(2), true)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y: u16| {
            let cells = (0..width).map(|x| buffer[(x, y)].symbol());
            cells.collect::<String>().trim_end().to_owned() + "\n"
        };
        (0..height).map(line).collect()
    }

    fn view() -> View {
        let mut view = View::new(Sort::Bytes, String::new());
        view.source = "the service";
        view.take(vec![row("/srv/vm/a.img", 2048.0), row("/srv/vm/b.img", 0.0)]);
        view
    }

    #[test]
    fn a_wide_screen_has_all_columns() {
        let shown = shown(&view(), 140, 6);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "dmfilemapd top: by bytes, every 2s, the service");
        for word in ["READ/s", "w_await", "QUEUE", "SHARE", "HISTORY", "DEVICE", "FILE"] {
            assert!(lines[1].contains(word), "{word}: {shown}");
        }
        assert!(!lines[1].contains("p99"), "nobody has a histogram: {shown}");
        for word in ["2.0 KiB", "10", "1.5 ms", "0.25", "50%", "\u{2588}", "vg-lv", "/srv/vm/a.img"]
        {
            assert!(lines[2].contains(word), "{word}: {shown}");
        }
        assert!(lines[3].ends_with("b.img") && lines[5].starts_with("h help"), "{shown}");
    }

    #[test]
    fn latencies_are_there_where_there_is_a_histogram() {
        let mut view = view();
        view.take(vec![Row { p99_ns: Some(20_000_000), ..row("/a", 1.0) }]);
        let shown = shown(&view, 140, 6);
        assert!(shown.contains("p99<") && shown.contains("20.0 ms"), "{shown}");
    }

    #[test]
    fn on_a_small_screen_what_tells_most_stays() {
        for (width, height) in [(40, 8), (20, 4), (1, 1), (80, 24)] {
            let shown = shown(&view(), width, height);
            assert_eq!(shown.lines().count(), usize::from(height));
        }
        let small = shown(&view(), 40, 8);
        let lines: Vec<&str> = small.lines().collect();
        assert!(lines[1].contains("READ/s") && lines[1].contains("WRITE/s"), "{small}");
        assert!(lines[2].ends_with("/srv/vm/a.img") && lines[2].contains("2.0 KiB"), "{small}");
        assert!(!lines[1].contains("QUEUE"), "{small}");
        assert_eq!(end_of("/srv/vm/a.img", 6), "<a.img");
    }

    #[test]
    fn the_rest_of_a_device_is_known_from_that_of_another() {
        let mut view = view();
        view.take(vec![Row { other: true, ..row("(other)", 1.0) }]);
        assert!(shown(&view, 60, 8).contains(" (other) vg-lv\n"));
        assert!(shown(&view, 200, 8).contains(" vg-lv        (other)\n"));
    }

    #[test]
    fn a_small_screen_has_all_of_the_help_and_what_is_on() {
        let mut view = view();
        for key in ['h', 'f', 'n'] {
            view.press(Key::Char(key));
        }
        let help = shown(&view, 40, 10);
        for word in ["q ", "freeze, ", "page keys", "written, iops", "queue, name", "file has"] {
            assert!(help.contains(word), "{word}: {help}");
        }
        view.press(Key::Char('h'));
        assert!(shown(&view, 40, 10).starts_with("dmfilemapd top, frozen: by name, every"));
    }

    #[test]
    fn help_filter_and_trouble_are_shown() {
        let mut view = view();
        view.press(Key::Char('h'));
        assert!(shown(&view, 80, 24).contains("freeze, and go on"));
        assert!(shown(&view, 30, 5).contains("help"));
        view.press(Key::Char('h'));
        for key in ['/', 'a', '.'] {
            view.press(Key::Char(key));
        }
        let filtered = shown(&view, 80, 8);
        assert!(filtered.contains("filter: a._") && !filtered.contains("b.img"), "{filtered}");
        view.trouble = Some("no answer".to_owned());
        view.press(Key::Char('x'));
        assert!(shown(&view, 80, 8).contains("no answer"));
    }
}
