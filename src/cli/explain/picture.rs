//! A file on its device, drawn in lines of text that are as wide as they may be.
//!
//! ```text
//! file      /mnt/vm/a.img (inode 12), 4.0 MiB
//! on        253:0 (vg-vm), 512 MiB
//! mapped    96 KiB in 3 extent(s), 2 fragment(s)
//! regions   group 0 (a.img): 2 region(s) count 96 KiB; 16 KiB between its extents, too
//!
//! zoom      sectors 266240 to 268288, 1.0 MiB
//! [##..:   ]     of each cell, how much of it the file has
//! [==++!  x]     whether the regions count that
//!  |0  1 MiB|
//! ```

use ratatui::text::Span;

use super::Explanation;
use super::bar::{Bar, Match};
use super::layout::{Group, Layout, Member, Piece};
use crate::extent::{Extent, Extents, SECTOR_BYTES};
use crate::group::Members;
use crate::message::RegionId;

/// How it is to be drawn.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Columns that a line may have.
    pub width: usize,
    /// With characters that not every terminal has.
    pub blocks: bool,
    /// With every piece of the file in the list.
    pub all: bool,
}

/// Pieces that are listed unless all are.
const PIECES: usize = 10;

/// Where what a line says begins, if the lines are not very short.
const INDENT: usize = 10;

/// A device so many times larger than the part of it where file and regions lie leaves too little
/// of the line to them.
const ZOOM: u64 = 4;

const ASCII: [char; 4] = [' ', '.', ':', '#'];
const BLOCKS: [char; 9] = [
    ' ', '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}',
    '\u{2588}',
];

/// A blank at which no line ends.
const TOGETHER: &str = "\u{a0}";

/// The characters for what regions make of a cell, and what they mean.
const MATCHES: [(Match, char, &str); 4] = [
    (Match::Same, '=', "the file"),
    (Match::Between, '+', "between its extents"),
    (Match::Stale, 'x', "where it is no more"),
    (Match::Missing, '!', "missing"),
];

/// The lines of a picture, none wider than the style allows.
pub fn lines(file: &Explanation, layout: &Layout, style: &Style) -> Vec<String> {
    let style = &Style { width: style.width.max(1), ..*style };
    let regions = Regions::of(layout);
    let mut lines = head(file, layout, &regions, style);
    lines.extend(bars(layout.device_sectors, &layout.extents, &regions, style));
    if !layout.pieces.is_empty() {
        lines.push(String::new());
        lines.extend(list(layout, style));
    }
    lines
}

/// What the regions of the file's group count.
#[derive(Debug, Default)]
struct Regions {
    /// Those that count some of the file.
    near: Extents,
    /// Those that do not.
    stale: Extents,
    /// Sectors that several of them count, each time but once.
    twice: u64,
    /// Whether they are to be drawn: there is a group that can be seen.
    shown: bool,
}

impl Regions {
    fn of(layout: &Layout) -> Regions {
        let Some(group) = &layout.group else { return Regions::default() };
        let all = || group.regions.iter().filter_map(Member::extent);
        let (near, stale): (Vec<Extent>, Vec<Extent>) =
            all().partition(|extent| layout.extents.overlaps(*extent));
        let near: Extents = near.into_iter().collect();
        let stale = stale.into_iter().collect::<Extents>().without(&near);
        let counted = near.sectors() + stale.sectors();
        let sum = all().fold(0_u64, |sum, extent| sum.saturating_add(extent.len()));
        Regions { near, stale, twice: sum.saturating_sub(counted), shown: true }
    }
}

// What is said.

fn head(file: &Explanation, layout: &Layout, regions: &Regions, style: &Style) -> Vec<String> {
    let size = match file.device_bytes {
        0 => "of unknown size".to_owned(),
        size => size_of(size),
    };
    let path = file.path.0.display();
    let mut lines = field(
        "file",
        &format!("{path} (inode {}), {}", file.inode, size_of(layout.file_bytes)),
        style,
    );
    lines.extend(field("on", &format!("{}, {size}", file.device_named()), style));
    lines.extend(field("mapped", &mapped(layout), style));
    match &file.obstacle {
        Some(obstacle) => lines.extend(field("verdict", &cannot(obstacle), style)),
        None => lines.extend(field("regions", &said_of_regions(layout, regions), style)),
    }
    lines
}

fn cannot(obstacle: &str) -> String {
    format!("cannot be counted: {obstacle}")
}

fn mapped(layout: &Layout) -> String {
    let noted = |note: &str| {
        let noted = layout.pieces.iter().filter(|piece| piece.notes.contains(&note));
        noted.fold(0_u64, |sum, piece| sum.saturating_add(piece.bytes))
    };
    let text = format!(
        "{} in {} extent(s), {} fragment(s)",
        size_of_sectors(layout.extents.sectors()),
        layout.extents.len(),
        layout.fragments
    );
    let amounts = [
        (noted("unwritten"), "unwritten"),
        (noted("shared"), "shared with other files or snapshots"),
        (noted("no place yet"), "without a place on the device yet"),
        (noted("inline"), "inline, among metadata"),
        (noted("compressed"), "compressed, which cannot be placed"),
    ];
    with(text, amounts)
}

/// What is said first, and the amounts of bytes that there are.
fn with<const COUNT: usize>(first: String, amounts: [(u64, &str); COUNT]) -> String {
    let amounts = amounts.into_iter().filter(|(amount, _)| *amount > 0);
    amounts.fold(first, |text, (amount, what)| format!("{text}; {} {what}", size_of(amount)))
}

fn said_of_regions(layout: &Layout, regions: &Regions) -> String {
    let others = match layout.other_groups {
        0 => String::new(),
        others => format!("; {others} other group(s) count some of it"),
    };
    match (&layout.group, &layout.regions_error) {
        (_, Some(error)) => format!("cannot be seen: {error}"),
        (None, None) => format!("none: it has no group{others}"),
        (Some(group), None) => said_of_group(group, layout, regions) + &others,
    }
}

fn said_of_group(group: &Group, layout: &Layout, regions: &Regions) -> String {
    let count = group.regions.len();
    let name = format!("group {} ({}): ", group.id, group.alias);
    let counted = regions.near.and(&regions.stale).sectors();
    if counted == 0 && layout.extents.is_empty() {
        return format!("{name}{count} region(s) that hold its place and count nothing");
    }
    let amounts = [
        (layout.extents.without(&regions.near).sectors(), "of the file is not counted"),
        (regions.near.without(&layout.extents).sectors(), "between its extents is, too"),
        (regions.stale.sectors(), "is counted where it no longer lies"),
        (regions.twice, "is counted more than once"),
    ];
    let in_bytes = |(sectors, what): (u64, _)| (sectors.saturating_mul(SECTOR_BYTES), what);
    let text = format!("{name}{count} region(s) count {}", size_of_sectors(counted));
    with(text, amounts.map(in_bytes))
}

// What is drawn.

/// The bar of the device, and that of a part of it.
fn bars(sectors: u64, extents: &Extents, regions: &Regions, style: &Style) -> Vec<String> {
    let both = hull(&extents.and(&regions.near).and(&regions.stale));
    // A filesystem that says more than its device has is shown all the same.
    let sectors = sectors.max(hull(extents).map_or(0, Extent::end));
    let Some(device) = Extent::new(0, sectors) else { return Vec::new() };
    let mut lines = vec![String::new()];
    lines.extend(field("device", &size(device, style), style));
    lines.extend(bar(device, "", extents, regions, style));
    // With the regions that are elsewhere, unless they are far away.
    let is_small = |part: &Extent| part.len() <= device.len() / ZOOM && device.contains(*part);
    let part = both.filter(is_small).or(hull(extents).filter(is_small));
    if let Some(part) = part {
        let span = format!("sectors {} to {}, {}", part.start(), part.end(), size(part, style));
        lines.push(String::new());
        lines.extend(field("zoom", &span, style));
        lines.extend(bar(part, "+", extents, regions, style));
    }
    lines.push(String::new());
    lines.extend(legend(regions, style));
    lines
}

/// From the first sector of these to the last.
fn hull(extents: &Extents) -> Option<Extent> {
    let ends = extents.as_slice().first().zip(extents.as_slice().last());
    ends.and_then(|(first, last)| Extent::between(first.start(), last.end()))
}

/// How much a bar stands for, and each of its cells.
fn size(span: Extent, style: &Style) -> String {
    let all = size_of_sectors(span.len());
    let (_, columns) = frame(style);
    let cell = span.len() / Bar::new(span, columns).cells() as u64;
    format!("{all}, {} a cell", size_of_sectors(cell))
}

/// Whether there is room for what a bar stands in, and for how many cells.
fn frame(style: &Style) -> (bool, usize) {
    match style.width {
        0..4 => (false, style.width),
        width => (true, width - 2),
    }
}

fn bar(
    span: Extent,
    prefix: &str,
    extents: &Extents,
    regions: &Regions,
    style: &Style,
) -> Vec<String> {
    let (framed, columns) = frame(style);
    let bar = Bar::new(span, columns);
    let row = |cells: String| if framed { format!("[{cells}]") } else { cells };
    let mut lines = vec![row(bar.shares(extents, marks(style)))];
    if regions.shown {
        let cells = bar.matches(extents, &regions.near, &regions.stale);
        lines.push(row(cells.into_iter().map(char_of).collect()));
    }
    let scale = bar.scale(prefix);
    if !scale.is_empty() {
        lines.push(if framed { format!(" {scale}") } else { scale });
    }
    lines
}

fn marks(style: &Style) -> &'static [char] {
    if style.blocks { &BLOCKS } else { &ASCII }
}

fn char_of(found: Match) -> char {
    MATCHES.iter().find(|(of, ..)| *of == found).map_or(' ', |(_, char, _)| *char)
}

fn legend(regions: &Regions, style: &Style) -> Vec<String> {
    let text = |signs: &[(char, &str)]| {
        let signs = signs.iter().map(|(char, text)| format!("{char}{TOGETHER}{text}"));
        signs.collect::<Vec<_>>().join("; ")
    };
    let file = match style.blocks {
        true => text(&[
            (BLOCKS[1], "little of the cell"),
            (BLOCKS[7], "most of it"),
            (BLOCKS[8], "all of it"),
        ]),
        false => text(&[
            (ASCII[1], "less than half of the cell"),
            (ASCII[2], "more"),
            (ASCII[3], "all of it"),
        ]),
    };
    let mut lines = field("file", &file, style);
    if regions.shown {
        let signs = MATCHES.map(|(_, char, text)| (char, text));
        lines.extend(field("regions", &text(&signs), style));
    }
    lines
}

// What is listed.

/// The pieces in the order of the file, in columns that are as wide as need be.
fn list(layout: &Layout, style: &Style) -> Vec<String> {
    let shown = if style.all { layout.pieces.len() } else { PIECES };
    let head = ["OFFSET", "SECTOR", "LENGTH", "REGIONS", "NOTES"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head)
        .chain(layout.pieces.iter().take(shown).map(|piece| row(piece, layout)))
        .collect();
    let widths: [usize; 4] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].len()).max().unwrap_or_default()
    });
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  "));
        (cells.collect::<String>() + &row[4]).trim_end().to_owned()
    };
    let table: Vec<String> = rows.iter().map(line).collect();
    let mut lines = match table.iter().all(|line| line.len() <= style.width) {
        true => table,
        false => rows.iter().flat_map(|row| wrap(&row.join(" "), 2, style.width)).collect(),
    };
    let rest = layout.pieces.len().saturating_sub(shown);
    if rest > 0 {
        lines.extend(wrap(&format!("and {rest} more: --extents lists all"), 2, style.width));
    }
    lines
}

fn row(piece: &Piece, layout: &Layout) -> [String; 5] {
    let members: Members = piece.regions.iter().copied().map(RegionId).collect();
    let regions = match (&layout.regions_error, members.count()) {
        (Some(_), _) => "?".to_owned(),
        (None, 0) => "-".to_owned(),
        _ => members.to_string(),
    };
    let mut notes = piece.notes.clone();
    if let (Some(group), Some(extent)) = (&layout.group, piece.extent()) {
        let counted: Extents = piece.regions.iter().filter_map(|id| group.extent(*id)).collect();
        let alone: Extents = [extent].into_iter().collect();
        match alone.without(&counted).sectors() {
            0 => {}
            all if all == extent.len() => notes.push("not counted"),
            _ => notes.push("not all counted"),
        }
    }
    let sector = piece.start_sector.map_or_else(|| "-".to_owned(), |sector| sector.to_string());
    let offset = exact(piece.file_offset_bytes);
    [offset, sector, exact(piece.bytes), regions, notes.join(", ")]
}

/// A number of bytes in the largest unit of which it is a whole number.
fn exact(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut power = 0;
    while bytes > 0 && power + 1 < units.len() && bytes % (1 << (10 * (power + 1))) == 0 {
        power += 1;
    }
    match bytes {
        0 => "0".to_owned(),
        _ => format!("{} {}", bytes >> (10 * power), units[power]),
    }
}

/// A size that is not parted at the end of a line.
fn size_of(bytes: u64) -> String {
    super::bytes(bytes).replace(' ', TOGETHER)
}

fn size_of_sectors(sectors: u64) -> String {
    size_of(sectors.saturating_mul(SECTOR_BYTES))
}

// Lines.

/// A name, and behind it what is said of that, on as many lines as it takes.
fn field(name: &str, text: &str, style: &Style) -> Vec<String> {
    let indent = if style.width >= 4 * INDENT { INDENT } else { 2 };
    let pad = indent.saturating_sub(name.len() + 1);
    wrap(&format!("{name} {:pad$}{text}", ""), indent, style.width)
}

/// The text in lines that are no wider than this; those behind the first are indented, if there is
/// room for that. Characters that would move the cursor are not let through.
fn wrap(text: &str, indent: usize, width: usize) -> Vec<String> {
    let indent = if indent < width / 2 { indent } else { 0 };
    let mut lines = Vec::new();
    let (mut line, mut used) = (String::new(), 0);
    let mut begun = false;
    for word in text.split(' ') {
        let length: usize = word.chars().map(columns).sum();
        if begun && used + 1 + length > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            used = indent;
        } else if begun {
            line.push(' ');
            used += 1;
        }
        begun = true;
        for char in word.chars() {
            let wide = columns(char);
            if used + wide > width {
                lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
                used = indent;
            }
            let fits = !char.is_control() && used + wide <= width;
            let char = if TOGETHER.contains(char) { ' ' } else { char };
            line.push(if fits { char } else { '?' });
            used += if fits { wide } else { 1 };
        }
    }
    lines.push(line);
    lines.iter().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// Columns that a character takes.
fn columns(char: char) -> usize {
    if char.is_control() { 1 } else { Span::raw(char.encode_utf8(&mut [0; 4]) as &str).width() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::request::FilePath;

    fn piece(offset: u64, start: Option<u64>, sectors: u64, notes: &[&'static str]) -> Piece {
        Piece {
            file_offset_bytes: offset * SECTOR_BYTES,
            bytes: sectors * SECTOR_BYTES,
            start_sector: start,
            notes: notes.to_vec(),
            regions: Vec::new(),
        }
    }

    fn group(regions: &[(u64, u64)]) -> Group {
        let member = |(id, (start_sector, sectors)): (u32, &(u64, u64))| Member {
            id,
            start_sector: *start_sector,
            sectors: *sectors,
        };
        let regions = (3..).zip(regions).map(member).collect();
        Group { id: 3, alias: "a.img".to_owned(), regions }
    }

    fn explanation(device_sectors: u64) -> Explanation {
        Explanation {
            path: FilePath("/mnt/vm/a.img".into()),
            inode: 12,
            device: "253:0".to_owned(),
            device_name: "vg-vm".to_owned(),
            device_bytes: device_sectors.saturating_mul(SECTOR_BYTES),
            mount: None,
            map: None,
            unusable: None,
            obstacle: None,
            device_mapper: None,
            device_mapper_error: None,
            layout: None,
        }
    }

    fn drawn(layout: &Layout, style: &Style) -> String {
        lines(&explanation(layout.device_sectors), layout, style).join("\n")
    }

    fn layout_of(device_sectors: u64, file_bytes: u64, pieces: Vec<Piece>) -> Layout {
        Layout { device_sectors, ..Layout::of_pieces(file_bytes, pieces) }
    }

    fn style(width: usize, blocks: bool) -> Style {
        Style { width, blocks, all: false }
    }

    /// Four pieces in three extents, the last of which has no place yet.
    fn layout() -> Layout {
        let pieces = vec![
            piece(0, Some(262_144), 2048, &[]),
            piece(2048, Some(266_240), 1024, &["shared"]),
            piece(4096, Some(268_288), 512, &["unwritten"]),
            piece(8192, None, 16, &["no place yet"]),
        ];
        layout_of(1 << 20, 6 << 20, pieces)
    }

    #[test]
    fn a_file_without_a_group() {
        let expected = "\
file      /mnt/vm/a.img (inode 12), 6.0 MiB
on        253:0 (vg-vm), 512 MiB
mapped    1.7 MiB in 3 extent(s), 2 fragment(s); 256 KiB unwritten; 512 KiB
          shared with other files or snapshots; 8.0 KiB without a place on the
          device yet
regions   none: it has no group

device    512 MiB, 6.5 MiB a cell
[                   .                                                          ]
 |0                 |128 MiB            |256 MiB           |384 MiB    512 MiB|

zoom      sectors 262144 to 268800, 3.2 MiB, 42 KiB a cell
[########################                        ############            ######]
 |0                 |+832 KiB           |+1.6 MiB          |+2.4 MiB  +3.2 MiB|

file      . less than half of the cell; : more; # all of it

OFFSET  SECTOR  LENGTH   REGIONS  NOTES
0       262144  1 MiB    -
1 MiB   266240  512 KiB  -        shared
2 MiB   268288  256 KiB  -        unwritten
4 MiB   -       8 KiB    -        no place yet";
        assert_eq!(drawn(&layout(), &style(80, false)), expected);
    }

    /// One region across a gap, one that is too short, and one where the file has been.
    #[test]
    fn regions_that_are_not_the_files() {
        let mut layout = layout();
        layout.show(Some(group(&[(262_144, 5120), (268_288, 256), (700_000, 2048)])), 1);
        let expected = "\
file      /mnt/vm/a.img (inode 12),
          6.0 MiB
on        253:0 (vg-vm), 512 MiB
mapped    1.7 MiB in 3 extent(s), 2
          fragment(s); 256 KiB
          unwritten; 512 KiB shared with
          other files or snapshots;
          8.0 KiB without a place on the
          device yet
regions   group 3 (a.img): 3 region(s)
          count 3.6 MiB; 128 KiB of the
          file is not counted; 1.0 MiB
          between its extents is, too;
          1.0 MiB is counted where it no
          longer lies; 1 other group(s)
          count some of it

device    512 MiB, 13 MiB a cell
[         1                            ]
[         !               x            ]
 |0                 |256 MiB   512 MiB|

zoom      sectors 262144 to 268800,
          3.2 MiB, 87 KiB a cell
[888888888885           5888882     788]
[===========+++++++++++++======     =!!]
 |0                 |+1.6 MiB +3.2 MiB|

file      1 little of the cell; 7 most
          of it; 8 all of it
regions   = the file; + between its
          extents; x where it is no
          more; ! missing

OFFSET SECTOR LENGTH REGIONS NOTES
0 262144 1 MiB 3
1 MiB 266240 512 KiB 3 shared
2 MiB 268288 256 KiB 4 unwritten, not
  all counted
4 MiB - 8 KiB - no place yet";
        let eighths = |text: &str| {
            (1_u32..).zip(&BLOCKS[1..]).fold(text.to_owned(), |text, (eighths, block)| {
                text.replace(*block, &eighths.to_string())
            })
        };
        assert_eq!(eighths(&drawn(&layout, &style(40, true))), expected);
    }

    #[test]
    fn regions_beside_the_file_are_in_the_part_that_is_drawn_once_more() {
        let mut layout = layout();
        let zoom = |layout: &Layout| {
            let shown = drawn(layout, &style(80, false));
            let (_, zoom) = shown.split_once("zoom      sectors ").unwrap();
            zoom.split(',').next().unwrap().to_owned()
        };
        assert_eq!(zoom(&layout), "262144 to 268800");
        layout.show(Some(group(&[(262_144, 8192), (500_000, 2048)])), 0);
        assert_eq!(zoom(&layout), "262144 to 502048");
        layout.show(Some(group(&[(262_144, 8192), (700_000, 2048)])), 0);
        assert_eq!(zoom(&layout), "262144 to 268800", "too far away");
        layout.show(Some(group(&[(262_144, 8192), (2 << 20, 2048)])), 0);
        assert_eq!(zoom(&layout), "262144 to 268800", "beyond the device");
    }

    #[test]
    fn a_group_that_shows_the_file_and_a_bar_that_is_shorter_than_the_line() {
        let mut layout =
            layout_of(8, 1536, vec![piece(0, Some(2), 2, &[]), piece(2, Some(5), 1, &[])]);
        layout.show(Some(group(&[(2, 2), (5, 1)])), 0);
        let expected = "\
file /mnt/vm/a.img
  (inode 12),
  1.5 KiB
on 253:0 (vg-vm),
  4.0 KiB
mapped 1.5 KiB in 2
  extent(s), 2
  fragment(s)
regions group 3
  (a.img): 2
  region(s) count
  1.5 KiB

device 4.0 KiB,
  512 bytes a cell
[  ## #  ]
[  == =  ]

file . less than
  half of the cell;
  : more; # all of
  it
regions = the file;
  + between its
  extents; x where
  it is no more;
  ! missing

OFFSET SECTOR LENGTH
  REGIONS NOTES
0 2 1 KiB 3
1 KiB 5 512 bytes 4";
        assert_eq!(drawn(&layout, &style(20, false)), expected);
    }

    #[test]
    fn what_else_is_said_of_regions() {
        let said = |layout: &Layout| drawn(layout, &style(200, false));
        let mut empty = layout_of(1 << 20, 0, Vec::new());
        assert!(said(&empty).contains("mapped    0 bytes in 0 extent(s), 0 fragment(s)\n"));
        empty.show(Some(group(&[(crate::update::ANCHOR, 1)])), 0);
        let shown = said(&empty);
        assert!(shown.contains("1 region(s) that hold its place and count nothing"), "{shown}");
        assert!(!shown.contains("OFFSET"), "{shown}");
        let mut twice = layout();
        twice.show(Some(group(&[(262_144, 2048), (262_144, 8)])), 2);
        let shown = said(&twice);
        assert!(shown.contains("4.0 KiB is counted more than once; 2 other group(s)"), "{shown}");
        assert!(shown.contains(" 3-4\n") && shown.contains("not counted"), "{shown}");
        let mut unseen = layout();
        unseen.regions_error = Some("no permission".to_owned());
        let shown = said(&unseen);
        assert!(shown.contains("regions   cannot be seen: no permission"), "{shown}");
        assert!(shown.contains("1 MiB    ?"), "{shown}");
        let obstacle = Some("it lies on 8:1".to_owned());
        let plain = Explanation { obstacle, device_bytes: 0, ..explanation(0) };
        let shown = lines(&plain, &layout(), &style(200, false)).join("\n");
        assert!(shown.contains("verdict   cannot be counted: it lies on 8:1"), "{shown}");
        assert!(shown.contains(", of unknown size\n"), "{shown}");
    }

    #[test]
    fn a_long_list_is_cut_unless_all_is_asked_for() {
        let pieces = (0..30).map(|at| piece(at * 16, Some(at * 32), 8, &[])).collect();
        let layout = layout_of(4096, 1 << 20, pieces);
        let count = |all| {
            let shown = drawn(&layout, &Style { all, ..style(80, false) });
            let (_, list) = shown.split_once("OFFSET").unwrap();
            (list.lines().count() - 1, list.contains("and 20 more: --extents lists all"))
        };
        assert_eq!((count(false), count(true)), ((11, true), (30, false)));
    }

    #[test]
    fn lines_are_parted_at_blanks_and_nothing_moves_the_cursor() {
        assert_eq!(wrap("ab cd efghijk", 2, 6), ["ab cd", "  efgh", "  ijk"]);
        assert_eq!(wrap("a\u{1b}[2J\nb", 2, 80), ["a?[2J?b"]);
        assert_eq!(wrap("1\u{a0}KiB", 2, 80), ["1 KiB"]);
        assert_eq!(wrap("\u{65e5}\u{672c}x", 0, 3), ["\u{65e5}", "\u{672c}x"]);
        assert_eq!(wrap("\u{65e5}", 0, 1), ["?"]);
        assert_eq!(exact(0), "0");
        assert_eq!(
            [exact(512), exact(12 << 10), exact((1 << 20) + 4096), exact(3 << 40)],
            ["512 bytes", "12 KiB", "1028 KiB", "3 TiB"]
        );
    }

    /// Pieces anywhere on a device of any size, and regions that need not be on it.
    fn scene() -> impl Strategy<Value = (u64, Layout)> {
        let sectors =
            (0..63u32, any::<u64>()).prop_map(|(bits, any)| (1 << bits) | any >> (63 - bits));
        let parts = prop::collection::vec((any::<u64>(), 1..1u64 << 40, any::<bool>()), 0..20);
        let regions = prop::collection::vec((any::<u64>(), 1..1u64 << 40), 0..8);
        (sectors, parts, prop::option::of(regions), any::<u64>()).prop_map(
            |(sectors, parts, regions, file_bytes)| {
                let pieces = parts.into_iter().map(|(at, len, placed)| {
                    let at = at % sectors;
                    piece(at % (1 << 50), placed.then_some(at), len.min(sectors - at), &["shared"])
                });
                let mut layout = layout_of(sectors, file_bytes, pieces.collect());
                let regions = regions.map(|regions| {
                    let on = |(at, len): (u64, u64)| (at % sectors.saturating_mul(2), len);
                    group(&regions.into_iter().map(on).collect::<Vec<_>>())
                });
                layout.show(regions, 0);
                (sectors, layout)
            },
        )
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_it_may_be(
            (sectors, layout) in scene(), width in 1..400usize, blocks: bool, all: bool,
        ) {
            for line in lines(&explanation(sectors), &layout, &Style { width, blocks, all }) {
                prop_assert!(Span::raw(&line).width() <= width, "{:?}", line);
            }
        }

        #[test]
        fn the_cells_of_every_extent_are_marked(
            (sectors, layout) in scene(), width in 1..400usize,
        ) {
            let shown = lines(&explanation(sectors), &layout, &style(width, false));
            let cells = frame(&style(width, false)).1.min(usize::try_from(sectors).unwrap());
            let at = shown.iter().position(|line| line.starts_with("device")).unwrap_or_default();
            let bar = Bar::new(Extent::new(0, sectors).unwrap(), cells);
            let bar = bar.shares(&layout.extents, &ASCII);
            let row = if width < 4 { bar.clone() } else { format!("[{bar}]") };
            prop_assert!(width < 10 || shown[at..].contains(&row), "{} {:?}", row, shown);
            let bar: Vec<char> = bar.chars().collect();
            for extent in layout.extents.as_slice() {
                for sector in [extent.start(), extent.end() - 1] {
                    let cell = u128::from(sector) * cells as u128 / u128::from(sectors);
                    let cell = usize::try_from(cell).unwrap();
                    let near = [cell, (cell + 1).min(cells - 1)]; // as parts are rounded down
                    prop_assert!(near.iter().any(|cell| bar[*cell] != ' '), "{:?}", bar);
                }
            }
        }
    }
}
