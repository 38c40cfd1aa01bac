//! Holds the sources to what `src/lib.rs` says is not in them.

#![allow(clippy::unwrap_used)] // all of this is a test

use std::fs;
use std::path::{Path, PathBuf};

/// Sources below `folder`, with their text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "there are sources in {folder}");
    found
}

/// The code of a source: no comments, no unit tests.
fn code(text: &str) -> String {
    let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
    let bare = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    shipped.lines().map(bare).collect::<Vec<_>>().join("\n")
}

fn refuse(offences: &[String]) {
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

#[test]
fn values_and_decisions_know_no_file_clock_thread_log_or_system_call() {
    let floors = [
        "extent", "message", "counters", "group", "dm", "mode", "sight", "values", "plan", "fit",
        "shape", "merge", "fold",
    ];
    let words = [
        "std::fs",
        "fs::",
        "File",
        "std::os",
        "Instant",
        "SystemTime",
        "std::thread",
        "thread::",
        "log::",
        "nix::",
        "crate::kernel",
        "crate::sample",
        "crate::run",
        "println!",
        "unsafe",
    ];
    let low = |path: &Path| {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let folders = ["src/update", "src/ledger", "src/grid", "src/engine"];
        folders.iter().any(|floor| path.starts_with(floor))
            || path.parent() == Some(Path::new("src")) && floors.contains(&stem)
    };
    let mut offences = Vec::new();
    let sources: Vec<_> = sources("src").into_iter().filter(|(path, _)| low(path)).collect();
    assert!(sources.len() > floors.len(), "every floor was found");
    for (path, text) in sources {
        let code = code(&text)
            .replace("FileId", "")
            .replace("FileStatus", "")
            .replace("io::ErrorKind::FileTooLarge", "");
        for word in words.iter().filter(|word| code.contains(**word)) {
            offences.push(format!("{}: {word}", path.display()));
        }
    }
    refuse(&offences);
}

#[test]
fn unsafe_code_is_in_the_kernel_folder_alone() {
    let outside = sources("src").into_iter().filter(|(path, _)| !path.starts_with("src/kernel"));
    let offences = outside.filter(|(_, text)| code(text).contains("unsafe"));
    refuse(&offences.map(|(path, _)| path.display().to_string()).collect::<Vec<_>>());
}

#[test]
fn threads_start_in_run_and_socket_and_nothing_ends_the_process_but_main() {
    // The socket has threads of its own: a client may be slow, and nothing else may wait for it.
    let mut offences = Vec::new();
    for (path, text) in sources("src") {
        let code = code(&text);
        let starts = ["thread::spawn", "thread::Builder", "thread::scope"];
        let may = ["src/run", "src/socket"].iter().any(|place| path.starts_with(place));
        if starts.iter().any(|start| code.contains(start)) && !may {
            offences.push(format!("{}: a thread", path.display()));
        }
        if code.contains("process::exit") || code.contains("process::abort") {
            offences.push(format!("{}: ends the process", path.display()));
        }
    }
    refuse(&offences);
}

#[test]
fn nothing_watches_by_events_and_nothing_asks_for_a_writeback() {
    let mut offences = Vec::new();
    for (path, text) in sources("src") {
        let code = code(&text).to_lowercase();
        for word in ["inotify", "fanotify", "flag_sync", "sync_all", "sync_data", "fsync"] {
            if code.contains(word) {
                offences.push(format!("{}: {word}", path.display()));
            }
        }
    }
    refuse(&offences);
}

#[test]
fn lines_are_short_and_ascii_and_functions_fit_a_screen() {
    let mut offences = Vec::new();
    for (path, text) in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        for (number, line) in text.lines().enumerate() {
            let place = format!("{}:{}", path.display(), number + 1);
            if line.len() > 100 {
                offences.push(format!("{place}: {} columns", line.len()));
            }
            if !line.is_ascii() {
                offences.push(format!("{place}: not ASCII"));
            }
        }
        offences.extend(long_functions(&path, &text));
    }
    refuse(&offences);
}

/// Functions of more than 60 lines. rustfmt puts the brace that ends a function in the column of
/// the line that begins it.
fn long_functions(path: &Path, text: &str) -> Vec<String> {
    let mut offences = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let begins = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "pub unsafe fn "];
        if !begins.iter().any(|begin| trimmed.starts_with(begin)) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - trimmed.len()]);
        let len = lines[at..].iter().position(|line| *line == end).unwrap_or(0) + 1;
        if len > 60 {
            offences.push(format!("{}:{}: {len} lines: {trimmed}", path.display(), at + 1));
        }
    }
    offences
}

#[test]
fn no_marker_is_left_in_the_sources() {
    let markers = ["TODO", "FIXME", "XXX", "HACK"];
    let mut offences = Vec::new();
    for (path, text) in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        if path.ends_with("tidy.rs") {
            continue;
        }
        for marker in markers.iter().filter(|marker| text.contains(**marker)) {
            offences.push(format!("{}: {marker}", path.display()));
        }
    }
    refuse(&offences);
}
