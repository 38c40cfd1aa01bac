//! The environment: `DMFILEMAPD_INTERVAL` and the like, one for each key.

use std::ffi::OsString;

use super::keys::nearest;
use super::{Assignment, Error, KEYS, Layer, Source};

const PREFIX: &str = "DMFILEMAPD_";

/// Names that are no keys and are read elsewhere.
const OTHERS: [&str; 2] = ["CONFIG_DIR", "STANDALONE"];

/// What the variables with our prefix say, and what is wrong with them.
pub fn read(
    variables: impl Iterator<Item = (OsString, OsString)>,
    errors: &mut Vec<Error>,
) -> Layer {
    let shown = |text: OsString| text.to_string_lossy().into_owned();
    let mut ours: Vec<(String, String)> = variables
        .filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
        .map(|(name, value)| (shown(name), shown(value)))
        .collect();
    ours.sort(); // the order is that of a hash table otherwise
    let mut layer = Layer::new();
    for (name, value) in ours {
        match assignment(&name, &value) {
            Ok(found) => layer.extend(found),
            Err(fault) => errors.push(Error { at: Source::Environment(name), fault }),
        }
    }
    layer
}

fn assignment(name: &str, value: &str) -> Result<Option<Assignment>, String> {
    let word = &name[PREFIX.len()..];
    if OTHERS.contains(&word) {
        return Ok(None);
    }
    let Some(key) = KEYS.iter().find(|key| key.name.to_ascii_uppercase() == word) else {
        return Err(unknown(word));
    };
    let setting = (key.read)(value)?;
    let source = Source::Environment(name.to_owned());
    Ok(Some(Assignment { key: key.name, setting, source }))
}

fn unknown(word: &str) -> String {
    let names = KEYS.map(|key| key.name.to_ascii_uppercase());
    let words = names.iter().map(String::as_str).chain(OTHERS);
    match nearest(&word.to_ascii_uppercase(), words) {
        Some(meant) => format!("there is no such variable; did you mean {PREFIX}{meant}?"),
        None => "there is no such variable; unset it".to_owned(),
    }
}
