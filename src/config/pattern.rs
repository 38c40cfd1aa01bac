//! Which files a pattern matches, and which rule follows them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
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

/// What a pattern matches now.
#[derive(Debug, Default)]
pub struct Expansion {
    /// The files, in order of their paths.
    pub files: Vec<Found>,
    /// Whether there may be more: there are more files than asked for, or too many other names.
    pub cut: bool,
    /// What could not be read, a hundred of them at the most.
    pub problems: Vec<(PathBuf, io::Error)>,
}

/// Finds the regular files that a pattern matches now, `max` of them at the most.
///
/// Symbolic links are followed, but `**` does not enter folders through them. A pattern that is the
/// path of a file matches that file too. Names that are not UTF-8 are matched as they are shown,
/// with U+FFFD for what is none.
#[must_use]
pub fn expand(pattern: &Pattern, max: usize) -> Expansion {
    let mut walk =
        Walk { pattern, max, names_left: NAMES_MAX, found: BTreeMap::new(), out: <_>::default() };
    let plain: PathBuf = Path::new(&pattern.text).components().collect();
    if plain.is_file() {
        walk.take(&plain);
    }
    walk.enter(Path::new("/"), &pattern.steps);
    walk.out.files = walk.found.into_values().collect();
    walk.out
}

struct Walk<'a> {
    pattern: &'a Pattern,
    max: usize,
    names_left: usize,
    found: BTreeMap<PathBuf, Found>,
    out: Expansion,
}

impl Walk<'_> {
    fn enter(&mut self, path: &Path, steps: &[Step]) {
        if self.out.cut {
            return;
        }
        let Some((step, rest)) = steps.split_first() else {
            return self.take(path);
        };
        match step {
            Step::Name(name) => self.enter(&path.join(name), rest),
            Step::Wild(pattern) => {
                for (name, _) in self.names(path) {
                    if pattern.matches_with(&name.to_string_lossy(), OPTIONS) {
                        self.enter(&path.join(name), rest);
                    }
                }
            }
            Step::Folders => {
                self.enter(path, rest);
                for (name, is_folder) in self.names(path) {
                    if is_folder && !name.as_encoded_bytes().starts_with(b".") {
                        self.enter(&path.join(name), steps);
                    }
                }
            }
        }
    }

    /// The sorted names in a folder, and whether each is one of a folder. None if it is none.
    fn names(&mut self, folder: &Path) -> BTreeMap<OsString, bool> {
        let mut names = BTreeMap::new();
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                self.report(folder, error);
                return names;
            }
        };
        for entry in entries {
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
        names
    }

    fn take(&mut self, path: &Path) {
        if self.found.contains_key(path) || self.pattern.excludes(path) {
            return;
        }
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => {}
            Ok(_) if self.found.len() >= self.max => self.out.cut = true,
            Ok(metadata) => {
                let (device, inode) = (sample::device(&metadata), metadata.ino());
                let found = Found { path: path.to_owned(), device, inode };
                self.found.insert(path.to_owned(), found);
            }
            Err(error) => self.report(path, error),
        }
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
}

/// Finds the files that the rules match now, `max` of them at the most.
///
/// A file belongs to the first rule that matches it, and is there once: of the paths that lead to
/// the same inode it is there by the first.
#[must_use]
pub fn owners(rules: &[Rule], max: usize) -> Owners {
    let mut owners = Owners::default();
    let mut seen = BTreeSet::new();
    for (at, rule) in rules.iter().enumerate() {
        let Expansion { files, cut, problems } = expand(&rule.pattern, max);
        owners.matched.push(files.len());
        owners.cut |= cut;
        owners.problems.extend(problems);
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

    /// The files below a new folder that the pattern matches, by the rest of their paths.
    fn matches(root: &Path, pattern: &str, exclude: &[&str], max: usize) -> (Vec<String>, bool) {
        let pattern = format!("{}/{pattern}", root.display());
        let exclude: Vec<String> = exclude.iter().map(|text| (*text).to_owned()).collect();
        let expansion = expand(&Pattern::new(&pattern, &exclude).unwrap(), max);
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
        let mut walk = Walk {
            pattern: &pattern,
            max: 9,
            names_left: 2,
            found: BTreeMap::new(),
            out: Expansion::default(),
        };
        walk.enter(Path::new("/"), &pattern.steps);
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

    #[test]
    fn what_cannot_be_read_is_told() {
        let root = tree(&[]);
        std::os::unix::fs::symlink("loop", root.path().join("loop")).unwrap();
        let text = format!("{}/loop/*", root.path().display());
        let expansion = expand(&Pattern::new(&text, &[]).unwrap(), 9);
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
        assert_eq!(expand(&Pattern::new(&text, &[]).unwrap(), 9).problems.len(), PROBLEMS_MAX);
    }

    #[test]
    fn a_name_that_is_not_utf8_matches() {
        let root = tree(&[]);
        let path = root.path().join(OsStr::from_bytes(b"\xff.img"));
        fs::write(&path, "").unwrap();
        let text = format!("{}/?.img", root.path().display());
        let files = expand(&Pattern::new(&text, &[]).unwrap(), 9).files;
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
