//! What groups are called: a template, and what keeps two files from getting the same name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::str::FromStr;

use xxhash_rust::xxh3::xxh3_64;

use crate::group::{is_safe_alias, safe_alias};

/// How the alias of a file's group is made.
///
/// `{name}` stands for the file's name, `{parent}` for that of the folder it is in, `{ino}` for
/// its inode number, and `{{` and `}}` for braces. What an alias may not have becomes `_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasTemplate {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Name,
    Parent,
    Inode,
}

impl Default for AliasTemplate {
    /// `{name}`.
    fn default() -> AliasTemplate {
        AliasTemplate { text: "{name}".to_owned(), parts: vec![Part::Name] }
    }
}

impl fmt::Display for AliasTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// Why a text is no template; says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTemplate(String);

impl fmt::Display for BadTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadTemplate {}

impl FromStr for AliasTemplate {
    type Err = BadTemplate;

    fn from_str(text: &str) -> Result<AliasTemplate, BadTemplate> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let (part, after) = match first {
                '{' | '}' => special(text, rest)?,
                _ => {
                    let end = rest.find(['{', '}']).unwrap_or(rest.len());
                    (Part::Text(rest[..end].to_owned()), &rest[end..])
                }
            };
            parts.push(part);
            rest = after;
        }
        let safe = |part: &Part| match part {
            Part::Text(text) => is_safe_alias(text.as_bytes()),
            _ => true,
        };
        if parts.is_empty() || !parts.iter().all(safe) {
            return Err(BadTemplate(format!(
                "the alias {text:?} is not one that every dmstats can read; give one without \
                 blanks, colons, quotes, number signs, backslashes and control characters"
            )));
        }
        Ok(AliasTemplate { text: text.to_owned(), parts })
    }
}

/// What begins with a brace, and the text after it.
fn special<'a>(text: &str, rest: &'a str) -> Result<(Part, &'a str), BadTemplate> {
    for brace in ["{", "}"] {
        if let Some(after) = rest.strip_prefix(brace).and_then(|rest| rest.strip_prefix(brace)) {
            return Ok((Part::Text(brace.to_owned()), after));
        }
    }
    let word = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
    let Some((word, after)) = word else {
        let text =
            format!("the alias {text:?} has a lone brace; write {{{{ or }}}} for a plain one");
        return Err(BadTemplate(text));
    };
    let part = match word {
        "name" => Part::Name,
        "parent" => Part::Parent,
        "ino" => Part::Inode,
        _ => {
            return Err(BadTemplate(format!(
                "the alias {text:?} has the unknown {{{word}}}; there are {{name}}, {{parent}} and \
                 {{ino}}, and {{{{ for a plain brace"
            )));
        }
    };
    Ok((part, after))
}

/// A file that is to be named.
#[derive(Clone, Copy, Debug)]
pub struct Nameless<'a> {
    /// Its absolute path.
    pub path: &'a Path,
    /// Its inode number.
    pub inode: u64,
    /// How its alias is made.
    pub template: &'a AliasTemplate,
}

/// An alias for each file, all of them different from each other and from those that are `taken`.
///
/// Where the templates give the same twice, each of these files is told from the others by more of
/// its path: by `{name}` becoming `folder/name` and so on, or by what is put behind an alias that
/// has no `{name}`. What is still the same with the whole path, since it differs only in bytes that
/// an alias may not have, gets a hash of the path behind it.
///
/// The order of the files does not matter. Who names only the newcomers, and says that the aliases
/// of the others are taken, lets these keep theirs, whoever comes or goes.
#[must_use]
pub fn unique_aliases(files: &[Nameless<'_>], taken: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut growth = vec![0; files.len()];
    let mut aliases: Vec<Vec<u8>> = files.iter().map(|file| file.alias(0)).collect();
    loop {
        let mut bearers: HashMap<&[u8], usize> = HashMap::with_capacity(files.len());
        for alias in &aliases {
            *bearers.entry(alias).or_default() += 1;
        }
        let clashes = |at: &usize| bearers[&*aliases[*at]] > 1 || taken(&aliases[*at]);
        let can_grow = |at: &usize| !files[*at].is_hashed(growth[*at]);
        let growing: Vec<usize> = (0..files.len()).filter(clashes).filter(can_grow).collect();
        if growing.is_empty() {
            return aliases;
        }
        for at in growing {
            growth[at] += 1;
            aliases[at] = files[at].alias(growth[at]);
        }
    }
}

impl Nameless<'_> {
    /// The alias after so many steps: each shows a word more of the path, and the last a hash.
    fn alias(&self, growth: usize) -> Vec<u8> {
        let words = last_words(self.path, self.words(growth));
        let mut alias = Vec::new();
        for part in &self.template.parts {
            match part {
                Part::Text(text) => alias.extend_from_slice(text.as_bytes()),
                Part::Name => alias.extend_from_slice(words),
                Part::Parent => alias.extend_from_slice(parent(self.path).as_bytes()),
                Part::Inode => alias.extend_from_slice(self.inode.to_string().as_bytes()),
            }
        }
        if !self.has_name() && growth > 0 {
            alias.extend_from_slice(if words.starts_with(b"/") { b"" } else { b"/" });
            alias.extend_from_slice(words);
        }
        if self.is_hashed(growth) {
            let hash = xxh3_64(self.path.as_os_str().as_bytes());
            alias.extend_from_slice(format!("-{hash:016x}").as_bytes());
        }
        safe_alias(&alias)
    }

    fn has_name(&self) -> bool {
        self.template.parts.contains(&Part::Name)
    }

    fn words(&self, growth: usize) -> usize {
        if self.has_name() { growth + 1 } else { growth }
    }

    /// Whether the whole path is shown already, and did not do.
    fn is_hashed(&self, growth: usize) -> bool {
        self.words(growth) > levels(self.path)
    }
}

/// How many parts of a path can be shown: its words, and the slash in front of them.
fn levels(path: &Path) -> usize {
    path.as_os_str().as_bytes().split(|byte| *byte == b'/').count()
}

/// The last `count` words of the path, or all of it.
fn last_words(path: &Path, count: usize) -> &[u8] {
    let path = path.as_os_str().as_bytes();
    let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
    let starts = slashes.map(|(at, _)| at + 1);
    let start = std::iter::once(path.len()).chain(starts).nth(count);
    &path[start.unwrap_or(0)..]
}

/// The name of the folder that the file is in; `/` for the topmost.
fn parent(path: &Path) -> &OsStr {
    path.parent().and_then(Path::file_name).unwrap_or(OsStr::new("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn aliases(template: &str, paths: &[&str], taken: &[&str]) -> Vec<String> {
        let template: AliasTemplate = template.parse().unwrap();
        let file = |path| Nameless { path: Path::new(path), inode: 7, template: &template };
        let files: Vec<Nameless<'_>> = paths.iter().copied().map(file).collect();
        let named = unique_aliases(&files, |alias| taken.iter().any(|t| t.as_bytes() == alias));
        named.into_iter().map(|alias| String::from_utf8(alias).unwrap()).collect()
    }

    #[test]
    fn a_template_is_filled_in() {
        let check = |template, alias| {
            assert_eq!(aliases(template, &["/srv/vm 1/a:b.img"], &[]), [alias], "{template}");
        };
        check("{name}", "a_b.img");
        check("{parent}.{ino}", "vm_1.7");
        check("x-{{{name}}}-{parent}", "x-{a_b.img}-vm_1");
        assert_eq!(aliases("{parent}", &["/a"], &[]), ["/"]);
    }

    #[test]
    fn a_bad_template_says_what_to_write() {
        let check = |template: &str, said: &str| {
            let error = template.parse::<AliasTemplate>().unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(&format!("{template:?}")), "{error}");
        };
        check("{nam}", "the unknown {nam}; there are {name}, {parent} and {ino}");
        check("{name", "a lone brace; write {{ or }}");
        check("a}b", "a lone brace");
        check("", "without blanks, colons");
        check("a b", "without blanks, colons");
        check("{name}:{ino}", "without blanks, colons");
    }

    #[test]
    fn a_template_is_shown_as_it_is_read() {
        assert_eq!("{{{name}".parse::<AliasTemplate>().unwrap().to_string(), "{{{name}");
        assert_eq!(Ok(AliasTemplate::default()), AliasTemplate::default().to_string().parse());
    }

    #[test]
    fn namesakes_show_as_much_of_their_paths_as_it_takes() {
        let paths = ["/p/a/x", "/q/a/x", "/q/b/x", "/q/b/y"];
        assert_eq!(aliases("{name}", &paths, &[]), ["p/a/x", "q/a/x", "b/x", "y"]);
        assert_eq!(aliases("<{name}>", &paths[2..], &[]), ["<x>", "<y>"]);
        let paths = ["/a/x", "/a/y", "/b/a/y"];
        assert_eq!(aliases("db", &paths, &[]), ["db/x", "db/a/y", "db/b/a/y"]);
    }

    #[test]
    fn what_an_alias_cannot_tell_apart_a_hash_does() {
        let named = aliases("{name}", &["/a b", "/a_b", "/c"], &[]);
        assert!(named[0].starts_with("/a_b-") && named[1].starts_with("/a_b-"), "{named:?}");
        assert!(named[0] != named[1] && named[2] == "c");
    }

    #[test]
    fn what_is_taken_stays_with_its_owner() {
        assert_eq!(aliases("{name}", &["/a/x"], &["x"]), ["a/x"]);
        assert_eq!(aliases("{name}", &["/a/x", "/b/x"], &["a/x"]), ["/a/x", "b/x"]);
    }

    proptest! {
        #[test]
        fn aliases_differ_and_are_safe_in_any_order(
            paths in prop::collection::btree_set("(/[ab :]{1,2}){1,4}", 1..20),
            template in "(\\{name\\}|\\{parent\\}|a){1,2}",
        ) {
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let named = aliases(&template, &paths, &[]);
            let distinct: std::collections::BTreeSet<&String> = named.iter().collect();
            prop_assert_eq!(distinct.len(), paths.len(), "{:?}", &named);
            prop_assert!(named.iter().all(|alias| is_safe_alias(alias.as_bytes())));
            let backwards: Vec<&str> = paths.iter().rev().copied().collect();
            let mut renamed = aliases(&template, &backwards, &[]);
            renamed.reverse();
            prop_assert_eq!(named, renamed);
        }
    }
}
