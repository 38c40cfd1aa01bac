//! Which files a pattern matches, and which rule follows them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use glob::MatchOptions;

use super::Rule;
use crate::dm::Device;
use crate::sample;

/// As in a shell: no star matches a slash, or the dot of a hidden file.
const OPTIONS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// Names that one expansion reads at the most: a pattern as `/**/x` would read the whole machine.
const NAMES_MAX: usize = 4_000_000;

/// Folders and files that an expansion reports as unreadable at the most.
const PROBLEMS_MAX: usize = 100;

/// An absolute path, or a pattern of such paths.
///
/// `*` and `?` match within a name, `[a-z]` and `[!a-z]` a character, `**` any number of folders.
/// As in a shell, none of them matches the dot that a hidden name begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    steps: Vec<Step>,
    exclude: Vec<Exclusion>,
}

/// What a word of the pattern matches.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Wild(glob::Pattern),
    Folders,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exclusion {
    /// Without a slash: of the file's name.
    Name(glob::Pattern),
    /// Of its path.
    Path(glob::Pattern),
}

impl Pattern {
    /// Reads a pattern, and patterns of files that it is not to match: of paths if they have a
    /// slash, else of names.
    ///
    /// # Errors
    ///
    /// It is not absolute, or not well-formed. Every fault is told.
    pub fn new(text: &str, exclude: &[String]) -> Result<Pattern, Vec<String>> {
        let mut faults = Vec::new();
        if !text.starts_with('/') {
            faults.push(format!("{text:?} is not an absolute path; begin it with a slash"));
        }
        let words = text.split('/').filter(|word| !word.is_empty());
        let mut steps: Vec<Step> = Vec::new();
        for word in words {
            match step(word) {
                Ok(step) => steps.push(step),
                Err(fault) => faults.push(fault),
            }
        }
        let exclusion = |text: &String| match text.contains('/') {
            true => well_formed(text).map(Exclusion::Path),
            false => well_formed(text).map(Exclusion::Name),
        };
        let (exclude, wrong): (Vec<_>, Vec<_>) =
            exclude.iter().map(exclusion).partition(Result::is_ok);
        faults.extend(wrong.into_iter().filter_map(Result::err));
        if !faults.is_empty() {
            return Err(faults);
        }
        let exclude = exclude.into_iter().flatten().collect();
        Ok(Pattern { text: text.to_owned(), steps, exclude })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn excludes(&self, path: &Path) -> bool {
        self.exclude.iter().any(|exclusion| match exclusion {
            Exclusion::Name(pattern) => {
                path.file_name().is_some_and(|name| pattern.matches(&name.to_string_lossy()))
            }
            Exclusion::Path(pattern) => pattern.matches_with(
                &path.to_string_lossy(),
                // What is hidden in an excluded folder is excluded too.
                MatchOptions { require_literal_leading_dot: false, ..OPTIONS },
            ),
        })
    }
}

fn step(word: &str) -> Result<Step, String> {
    match word {
        "**" => Ok(Step::Folders),
        _ if word.contains(['*', '?', '[']) => well_formed(word).map(Step::Wild),
        _ => Ok(Step::Name(word.to_owned())),
    }
}

fn well_formed(text: &str) -> Result<glob::Pattern, String> {
    let hint = "write [[], [*] and [?] for plain ones, and ** only as a whole folder";
    glob::Pattern::new(text).map_err(|e| format!("{text:?} is not a pattern: {}; {hint}", e.msg))
}

/// A regular file that is there now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The path by which it was found.
    pub path: PathBuf,
    /// What `stat` names as its device.
    pub device: Device,
    /// Its inode number.
    pub inode: u64,
}

/// What is about to be touched.
#[derive(Clone, Copy, Debug)]
pub enum Touch<'a> {
    /// A filesystem on this device, which may take as long as that does.
    Device(Device),
    /// Where this link leads to, and all that is on the way.
    Link(&'a Path),
    /// Nothing but memory, until it is asked again. The answer does not matter.
    Memory,
}

/// Is asked each time before something is touched, and says whether it may be.
pub type Ask<'a> = dyn FnMut(Touch<'_>) -> bool + 'a;

/// What a pattern matches now.
#[derive(Debug, Default)]
pub struct Expansion {
    /// The files, in order of their paths.
    pub files: Vec<Found>,
    /// Whether there may be more: there are more files than asked for, or too many other names.
    pub cut: bool,
    /// What could not be read, a hundred of them at the most.
    pub problems: Vec<(PathBuf, io::Error)>,
    /// What was not to be touched: there may be more files at and below these paths.
    pub skipped: Vec<PathBuf>,
}

/// Finds the regular files that a pattern matches now, `max` of them at the most, and touches only
/// what `ask` lets it.
///
/// Symbolic links are followed, but `**` does not enter folders through them. A pattern that is the
/// path of a file matches that file too. Names that are not UTF-8 are matched as they are shown,
/// with U+FFFD for what is none.
#[must_use]
pub fn expand(pattern: &Pattern, max: usize, ask: &mut Ask<'_>) -> Expansion {
    let (found, out) = (BTreeMap::new(), Expansion::default());
    let mut walk = Walk { pattern, max, names_left: NAMES_MAX, found, out, ask };
    let names = pattern.text.split('/').filter(|name| !name.is_empty());
    let plain: Vec<Step> = names.map(|name| Step::Name(name.to_owned())).collect();
    if plain != pattern.steps {
        walk.start(&plain);
        walk.out.problems.clear(); // those that matter come again
    }
    walk.start(&pattern.steps);
    walk.out.files = walk.found.into_values().collect();
    walk.out
}

/// The device on which the path ends, or on which it would if it went on.
///
/// `None` if something on the way there is not to be touched.
pub fn device_towards(path: &Path, ask: &mut Ask<'_>) -> Option<Device> {
    let mut device = sample::device(&fs::metadata("/").ok()?);
    let mut here = PathBuf::from("/");
    for part in path.components().skip(1) {
        here.push(part);
        match see(&here, device, ask)? {
            Ok(metadata) => device = sample::device(&metadata),
            Err(_) => break,
        }
    }
    Some(device)
}

/// What is at the path, whose folder is on that device; `None` if it is not to be touched.
fn see(path: &Path, device: Device, ask: &mut Ask<'_>) -> Option<io::Result<Metadata>> {
    if !ask(Touch::Device(device)) {
        return None;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => ask(Touch::Link(path)).then(|| fs::metadata(path)),
        seen => Some(seen),
    }
}

struct Walk<'a, 'b> {
    pattern: &'a Pattern,
    max: usize,
    names_left: usize,
    found: BTreeMap<PathBuf, Found>,
    out: Expansion,
    ask: &'a mut Ask<'b>,
}

impl Walk<'_, '_> {
    fn start(&mut self, steps: &[Step]) {
        let root = Path::new("/");
        match fs::metadata(root) {
            Ok(metadata) => self.go_on(root, &metadata, steps), // it is always in memory
            Err(error) => self.report(root, error),
        }
    }

    /// Goes to what is at the path, whose folder is on that device.
    fn enter(&mut self, path: &Path, device: Device, steps: &[Step]) {
        let passed = || self.found.contains_key(path) || self.pattern.excludes(path);
        if self.out.cut || steps.is_empty() && passed() {
            return;
        }
        let seen = see(path, device, self.ask);
        (self.ask)(Touch::Memory);
        match seen {
            Some(Ok(metadata)) => self.go_on(path, &metadata, steps),
            Some(Err(error)) => self.report(path, error),
            None => self.out.skipped.push(path.to_owned()),
        }
    }

    fn go_on(&mut self, path: &Path, metadata: &Metadata, steps: &[Step]) {
        let Some((step, rest)) = steps.split_first() else {
            return self.take(path, metadata);
        };
        if !metadata.is_dir() {
            return;
        }
        let device = sample::device(metadata);
        match step {
            Step::Name(name) => self.enter(&path.join(name), device, rest),
            Step::Wild(pattern) => {
                for (name, _) in self.names(path, device) {
                    if pattern.matches_with(&name.to_string_lossy(), OPTIONS) {
                        self.enter(&path.join(name), device, rest);
                    }
                }
            }
            Step::Folders => {
                self.go_on(path, metadata, rest);
                for (name, is_folder) in self.names(path, device) {
                    if is_folder && !name.as_encoded_bytes().starts_with(b".") {
                        self.enter(&path.join(name), device, steps);
                    }
                }
            }
        }
    }

    /// The sorted names in a folder, and whether each is one of a folder.
    fn names(&mut self, folder: &Path, device: Device) -> BTreeMap<OsString, bool> {
        let mut names = BTreeMap::new();
        if !(self.ask)(Touch::Device(device)) {
            self.out.skipped.push(folder.to_owned());
            return names;
        }
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                self.report(folder, error);
                return names;
            }
        };
        for entry in entries {
            (self.ask)(Touch::Device(device)); // a step each: the folder may be large
            if self.names_left == 0 {
                self.out.cut = true;
                break;
            }
            self.names_left -= 1;
            match entry.and_then(|entry| Ok((entry.file_name(), entry.file_type()?.is_dir()))) {
                Ok((name, is_folder)) => drop(names.insert(name, is_folder)),
                Err(error) => self.report(folder, error),
            }
        }
        (self.ask)(Touch::Memory);
        names
    }

    fn take(&mut self, path: &Path, metadata: &Metadata) {
        if !metadata.is_file() {
            return;
        }
        if self.found.len() >= self.max {
            self.out.cut = true;
            return;
        }
        let (device, inode) = (sample::device(metadata), metadata.ino());
        let found = Found { path: path.to_owned(), device, inode };
        self.found.insert(path.to_owned(), found);
    }

    /// What is not there, or gone again, is no problem: it does not match.
    fn report(&mut self, path: &Path, error: io::Error) {
        let absent = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        if !absent && self.out.problems.len() < PROBLEMS_MAX {
            self.out.problems.push((path.to_owned(), error));
        }
    }
}

/// What all rules together match now.
#[derive(Debug, Default)]
pub struct Owners {
    /// The files, each with the index of the rule that it is followed by.
    pub files: Vec<(Found, usize)>,
    /// How many files each rule matches, those that an earlier one follows included.
    pub matched: Vec<usize>,
    /// Whether there may be more.
    pub cut: bool,
    /// What could not be read.
    pub problems: Vec<(PathBuf, io::Error)>,
    /// What was not to be touched, and the rule that leads there.
    pub skipped: Vec<(PathBuf, usize)>,
}

/// Finds the files that the rules match now, `max` of them at the most.
///
/// A file belongs to the first rule that matches it, and is there once: of the paths that lead to
/// the same inode it is there by the first.
#[must_use]
pub fn owners(rules: &[Rule], max: usize, ask: &mut Ask<'_>) -> Owners {
    let mut owners = Owners::default();
    let mut seen = BTreeSet::new();
    for (at, rule) in rules.iter().enumerate() {
        let Expansion { files, cut, problems, skipped } = expand(&rule.pattern, max, ask);
        owners.matched.push(files.len());
        owners.cut |= cut;
        owners.problems.extend(problems);
        owners.skipped.extend(skipped.into_iter().map(|path| (path, at)));
        for found in files {
            if seen.contains(&(found.device, found.inode)) {
                continue;
            }
            if owners.files.len() == max {
                owners.cut = true;
                break;
            }
            seen.insert((found.device, found.inode));
            owners.files.push((found, at));
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    fn all(pattern: &Pattern, max: usize) -> Expansion {
        expand(pattern, max, &mut |_| true)
    }

    /// The files below a new folder that the pattern matches, by the rest of their paths.
    fn matches(root: &Path, pattern: &str, exclude: &[&str], max: usize) -> (Vec<String>, bool) {
        let pattern = format!("{}/{pattern}", root.display());
        let exclude: Vec<String> = exclude.iter().map(|text| (*text).to_owned()).collect();
        let expansion = all(&Pattern::new(&pattern, &exclude).unwrap(), max);
        assert!(expansion.problems.is_empty(), "{:?}", expansion.problems);
        let rest = |found: &Found| found.path.strip_prefix(root).unwrap().display().to_string();
        (expansion.files.iter().map(rest).collect(), expansion.cut)
    }

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    #[test]
    fn patterns_match_as_those_of_a_shell() {
        let files = ["a.img", "b.img", ".c.img", "d/a.img", "d/e/a.img", "d/.h/a.img", "a[1].img"];
        let root = tree(&files);
        let check = |pattern: &str, expected: &[&str]| {
            let (files, cut) = matches(root.path(), pattern, &[], 100);
            assert_eq!(files, expected, "{pattern}");
            assert!(!cut);
        };
        check("a.img", &["a.img"]);
        check("*.img", &["a.img", "a[1].img", "b.img"]);
        check(".*.img", &[".c.img"]);
        check("[!a].img", &["b.img"]);
        check("*/a.img", &["d/a.img"]);
        check("**/a.img", &["a.img", "d/a.img", "d/e/a.img"]);
        check("**/**/e/**/?.img", &["d/e/a.img"]);
        check("a[1].img", &["a[1].img"]);
        check("a[[]1].img", &["a[1].img"]);
        check("a.img/*", &[]);
        check("none/*", &[]);
        check("d", &[]);
    }

    #[test]
    fn what_is_excluded_does_not_match() {
        let root = tree(&["a.img", "b.img", "d/a.img", "d/b.img"]);
        let of = |exclude: &str| matches(root.path(), "**/*.img", &[exclude], 100).0;
        assert_eq!(of("a.*"), ["b.img", "d/b.img"]);
        assert_eq!(of(&format!("{}/d/**", root.path().display())), ["a.img", "b.img"]);
    }

    #[test]
    fn a_folder_is_excluded_with_what_is_hidden_in_it() {
        let root = tree(&["d/.a.img"]);
        let below = format!("{}/d/**", root.path().display());
        assert_eq!(matches(root.path(), "d/.*", &[], 9).0, ["d/.a.img"]);
        assert!(matches(root.path(), "d/.*", &[&below], 9).0.is_empty());
    }

    #[test]
    fn no_more_files_are_found_than_asked_for() {
        let root = tree(&["a", "b", "c"]);
        let of = |max| matches(root.path(), "*", &[], max);
        assert_eq!(of(2), (vec!["a".to_owned(), "b".to_owned()], true));
        assert!(!of(3).1);
    }

    #[test]
    fn no_more_names_are_read_than_allowed() {
        let root = tree(&["a", "b", "c"]);
        let pattern = Pattern::new(&format!("{}/*", root.path().display()), &[]).unwrap();
        let (found, out) = (BTreeMap::new(), Expansion::default());
        let mut walk =
            Walk { pattern: &pattern, max: 9, names_left: 2, found, out, ask: &mut |_| true };
        walk.start(&pattern.steps);
        assert!(walk.out.cut && walk.names_left == 0);
    }

    #[test]
    fn links_are_followed_but_not_by_two_stars() {
        let root = tree(&["a", "d/b"]);
        std::os::unix::fs::symlink("a", root.path().join("l")).unwrap();
        std::os::unix::fs::symlink("..", root.path().join("d/up")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("x")).unwrap();
        assert_eq!(matches(root.path(), "*", &[], 9).0, ["a", "l"]);
        assert_eq!(matches(root.path(), "**/a", &[], 9).0, ["a"]);
        assert_eq!(matches(root.path(), "d/up/a", &[], 9).0, ["d/up/a"]);
    }

    /// What a walk asks for, in order, and what it finds if these paths are not to be touched.
    fn asked(text: &str, refused: impl Fn(Touch<'_>) -> bool) -> (Vec<String>, Expansion) {
        let mut asked = Vec::new();
        let mut ask = |touch: Touch<'_>| {
            asked.push(match touch {
                Touch::Device(device) => device.to_string(),
                Touch::Link(path) => path.display().to_string(),
                Touch::Memory => "memory".to_owned(),
            });
            !refused(touch)
        };
        let expansion = expand(&Pattern::new(text, &[]).unwrap(), 9, &mut ask);
        (asked, expansion)
    }

    #[test]
    fn nothing_is_touched_without_leave() {
        let root = tree(&["a/x", "b/x"]);
        std::os::unix::fs::symlink("b", root.path().join("c")).unwrap();
        let text = format!("{}/*/x", root.path().display());
        let device = sample::device(&root.path().metadata().unwrap());
        let (asked, found) = asked(&text, |_| false);
        assert_eq!((found.files.len(), found.skipped.len()), (3, 0));
        let link = root.path().join("c").display().to_string();
        assert!(asked.contains(&link) && asked.contains(&device.to_string()), "{asked:?}");

        let (_, found) = self::asked(&text, |touch| matches!(touch, Touch::Link(_)));
        assert_eq!((found.files.len(), found.skipped), (2, vec![root.path().join("c")]));
        let (asked, found) = self::asked(&text, |touch| matches!(touch, Touch::Device(_)));
        assert_eq!((found.files.len(), asked.len()), (0, 4), "no way in, for either reading");
        let first = root.path().components().nth(1).unwrap();
        assert_eq!(found.skipped, [Path::new("/").join(first), Path::new("/").join(first)]);
    }

    #[test]
    fn each_name_of_a_folder_is_a_step_and_no_device_is_waited_for_in_between() {
        let names: Vec<String> = (0..50).map(|name| format!("{name}.img")).collect();
        let root = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let device = sample::device(&root.path().metadata().unwrap()).to_string();
        let text = format!("{}/*.iso", root.path().display());
        let (asked, _) = asked(&text, |_| false);
        let steps = asked.iter().rev().skip(1).take_while(|touch| **touch == device).count();
        assert_eq!((steps, asked.last().unwrap().as_str()), (names.len() + 1, "memory"));
        let (asked, _) = self::asked(&format!("{}/0.img", root.path().display()), |_| false);
        assert_eq!(asked.last().unwrap(), "memory");
    }

    #[test]
    fn the_device_of_a_path_is_known_without_going_there() {
        let root = tree(&["a"]);
        let device = sample::device(&root.path().metadata().unwrap());
        let of = |name: &str, may: bool| device_towards(&root.path().join(name), &mut |_| may);
        assert_eq!([of("a", true), of("b/c", true)], [Some(device); 2]);
        assert_eq!(of("a", false), None);
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let root = tree(&[]);
        std::os::unix::fs::symlink("loop", root.path().join("loop")).unwrap();
        let text = format!("{}/loop/*", root.path().display());
        let expansion = all(&Pattern::new(&text, &[]).unwrap(), 9);
        assert!(expansion.files.is_empty());
        assert_eq!(expansion.problems[0].0, root.path().join("loop"));
    }

    #[test]
    fn problems_are_not_told_without_end() {
        let root = tree(&[]);
        for at in 0..=PROBLEMS_MAX {
            let link = format!("loop{at}");
            std::os::unix::fs::symlink(&link, root.path().join(&link)).unwrap();
        }
        let text = format!("{}/*/x", root.path().display());
        assert_eq!(all(&Pattern::new(&text, &[]).unwrap(), 9).problems.len(), PROBLEMS_MAX);
    }

    #[test]
    fn a_name_that_is_not_utf8_matches() {
        let root = tree(&[]);
        let path = root.path().join(OsStr::from_bytes(b"\xff.img"));
        fs::write(&path, "").unwrap();
        let text = format!("{}/?.img", root.path().display());
        let files = all(&Pattern::new(&text, &[]).unwrap(), 9).files;
        assert_eq!(files.iter().map(|found| &found.path).collect::<Vec<_>>(), [&path]);
    }

    #[test]
    fn a_bad_pattern_tells_every_fault() {
        let faults = Pattern::new("a/[b/c**", &["[x".to_owned()]).unwrap_err();
        assert_eq!(faults.len(), 4, "{faults:?}");
        assert!(faults[0].contains("not an absolute path"), "{faults:?}");
        assert!(faults[1].contains("\"[b\" is not a pattern"), "{faults:?}");
        assert!(faults[2].contains("\"c**\""), "{faults:?}");
        assert!(faults[3].contains("\"[x\""), "{faults:?}");
    }
}
