//! JSON arrays and JSON lines, one row alive at a time.

use std::fmt;
use std::io::{BufRead, Read};
use std::ops::ControlFlow;
use std::path::Path;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::Value;

use super::text::TextReader;
use super::{Place, Take};
use crate::data::DataError;

/// Why reading ended early.
pub(super) enum Stop {
    /// The JSON is broken.
    Syntax(DataError),
    /// The text under it failed: its own record says why.
    Text,
}

/// Rows of a JSON array that begins after `skipped` lines.
pub(super) fn read_array<R: Read>(
    path: &Path,
    text: &mut TextReader<R>,
    skipped: usize,
    take: Take<'_>,
) -> Result<(), Stop> {
    let mut array = ArrayVisitor { take, rows: 0, stopped: false };
    let mut json = serde_json::Deserializer::from_reader(text);
    let read = json.deserialize_seq(&mut array).and_then(|()| json.end());
    match read {
        _ if array.stopped => Ok(()),
        Ok(()) => Ok(()),
        Err(error) if error.is_io() => Err(Stop::Text),
        Err(error) => Err(Stop::Syntax(syntax(path, skipped + error.line(), &error, ""))),
    }
}

/// Gives each element away as soon as it is parsed.
struct ArrayVisitor<'t> {
    take: Take<'t>,
    rows: usize,
    /// The taker has had enough; serde's own error type cannot say so.
    stopped: bool,
}

impl<'de> Visitor<'de> for &mut ArrayVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(value) = elements.next_element::<Value>()? {
            let place = Place::Index(self.rows);
            self.rows += 1;
            if let ControlFlow::Break(()) = (self.take)(place, value) {
                self.stopped = true;
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Rows of JSON lines; blank lines hold none.
pub(super) fn read_lines<R: Read>(
    path: &Path,
    text: &mut TextReader<R>,
    skipped: usize,
    take: Take<'_>,
) -> Result<(), Stop> {
    let (mut line, mut number) = (Vec::new(), skipped);
    loop {
        line.clear();
        if text.read_until(b'\n', &mut line).map_err(|_| Stop::Text)? == 0 {
            return Ok(());
        }
        number += 1;
        let row = line.trim_ascii_end();
        if row.is_empty() {
            continue;
        }
        let value = serde_json::from_slice(row).map_err(|error| {
            let hint = if error.is_eof() {
                ": in JSONL each line holds one whole record, and a JSON array starts with `[`"
            } else {
                ""
            };
            Stop::Syntax(syntax(path, number, &error, hint))
        })?;
        if take(Place::Line(number), value).is_break() {
            return Ok(());
        }
    }
}

fn syntax(path: &Path, line: usize, error: &serde_json::Error, hint: &'static str) -> DataError {
    // serde_json counts lines within what it was given, which for JSONL is one line: the place is said by us.
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    DataError::Syntax {
        file: path.to_owned(),
        line,
        column: error.column(),
        reason: text.strip_suffix(&place).unwrap_or(&text).to_owned(),
        hint,
    }
}
