//! What a command prints for programs: one object in one line, described in `contrib/json.md`.

use std::io::{self, BufWriter, Write as _};

use serde::Serialize;

use super::Failure;
use crate::request::SCHEMA;

/// Something with the number of the schema in front.
#[derive(Debug, Serialize)]
pub struct Document<'a, T> {
    schema: u32,
    #[serde(flatten)]
    content: &'a T,
}

impl<T> Document<'_, T> {
    pub fn of(content: &T) -> Document<'_, T> {
        Document { schema: SCHEMA, content }
    }
}

pub fn print(document: &impl Serialize) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    serde_json::to_writer(&mut out, document).map_err(Failure::new)?;
    out.write_all(b"\n").and_then(|()| out.flush()).map_err(Failure::new)
}
