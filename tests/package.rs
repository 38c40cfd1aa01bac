//! The Debian package, as far as it can be seen without building it.

#![allow(clippy::unwrap_used)] // all of this is a test

#[path = "support/tools.rs"]
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dmfilemapd");

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What `[package.metadata.deb]` says, up to the next table.
fn metadata() -> String {
    let manifest = read("Cargo.toml");
    let (_, metadata) = manifest.split_once("\n[package.metadata.deb]\n").unwrap();
    metadata.split_once("\n[").unwrap().0.to_owned()
}

/// The assets: where each comes from and where it goes.
fn assets() -> Vec<(String, String)> {
    let metadata = metadata();
    let (_, assets) = metadata.split_once("assets = [\n").unwrap();
    let lines = assets.lines().take_while(|line| *line != "]");
    let assets: Vec<(String, String)> = lines
        .map(|line| {
            let words: Vec<&str> = line.split('"').collect();
            (words[1].to_owned(), words[3].to_owned())
        })
        .collect();
    assert!(assets.len() > 3, "{metadata}");
    assets
}

#[test]
fn all_that_goes_into_it_is_there() {
    for (from, to) in assets() {
        assert!(from == "target/release/dmfilemapd" || root(&from).is_file(), "{from}");
        assert!(to.starts_with("usr/") || to.starts_with("etc/"), "{to}");
    }
    let metadata = metadata();
    for named in ["contrib/debian/copyright", "contrib/debian/changelog", "contrib/systemd"] {
        assert!(metadata.contains(&format!("\"{named}\"")) && root(named).exists(), "{named}");
    }
}

#[test]
fn it_puts_things_where_the_others_look_for_them() {
    let target = |from: &str| assets().into_iter().find(|asset| asset.0 == from).unwrap().1;
    let unit = read("contrib/systemd/dmfilemapd.service");
    let program = format!("/{}dmfilemapd", target("target/release/dmfilemapd"));
    assert!(unit.contains(&format!("ExecStart={program} run\n")), "{unit}");
    for loader in ["dmfilemapd.bash", "dmfilemapd.fish", "_dmfilemapd"] {
        let loader = read(&format!("contrib/completions/{loader}"));
        assert!(loader.contains(&format!("{program} completions ")), "{loader}");
    }
    assert_eq!(format!("/{}", target("contrib/config.toml")), "/etc/dmfilemapd/");
}

#[test]
fn its_changelog_begins_with_this_version() {
    let begin = format!("dmfilemapd ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(read("contrib/debian/changelog").starts_with(&begin), "{begin}");
}

/// What a shell makes of a loader, with the program where it is.
fn loaded(shell: &str, before: &str, loader: &str, then: &str) -> String {
    let text = read(&format!("contrib/completions/{loader}"));
    let text = text.replace("/usr/sbin/dmfilemapd", PROGRAM);
    let script = format!("{before}\n{text}\n{then}");
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(shell);
    let output = command.env("HOME", home.path()).arg("-c").arg(script).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn its_completions_come_from_the_program() {
    let name = "its_completions_come_from_the_program";
    let bash = loaded("bash", "", "dmfilemapd.bash", "complete -p dmfilemapd");
    assert!(bash.contains("_dmfilemapd"), "{bash}");
    if !tools::lack(name, &[("fish", "fish")]) {
        let fish = loaded("fish", "", "dmfilemapd.fish", "complete -C 'dmfilemapd re'");
        let offered: Vec<&str> = fish.lines().filter_map(|line| line.split('\t').next()).collect();
        assert_eq!(offered, ["reload", "remove"]);
    }
    if !tools::lack(name, &[("zsh", "zsh")]) {
        // It is called as what it loads: at the first time, too.
        let before = "compdef() { :; }; _arguments() { echo \"$@\"; }";
        let zsh = loaded("zsh", before, "_dmfilemapd", "");
        assert!(zsh.contains(":: :_dmfilemapd_commands"), "{zsh}");
    }
}
