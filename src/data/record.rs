//! Instruction records, read from a JSON array or from JSONL.
//!
//! The content decides which of the two a file is, not its name. A record is checked where it is read, so
//! that an error can name its line or index; later rooms may rely on a non-empty `output`.

use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::Value;

use super::error::{DataError, Place};

/// One instruction with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub instruction: String,
    /// Never `Some("")`.
    pub input: Option<String>,
    /// Never empty when it comes from [`read_records`].
    pub output: String,
}

/// Reads every record of `path`, in the order of the file.
///
/// The file is a JSON array of objects if its first character is `[`, and JSONL (one object per line, blank
/// lines skipped) if it is `{`. A byte order mark and CRLF line ends are tolerated. Each object needs the
/// strings `instruction` and `output`; `input` may be a string, null or absent; other keys are ignored.
///
/// # Errors
/// A file that is missing, a directory, unreadable, not UTF-8 or without records; broken JSON (with line and
/// column); an element that is no object, a missing key, a value of the wrong type, an empty `output` (with
/// line or index).
pub fn read_records(path: &Path) -> Result<Vec<Record>, DataError> {
    let file = || path.to_owned();
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let offset = error.valid_up_to();
        DataError::NotUtf8 {
            file: file(),
            line: 1 + bytes[..offset].iter().filter(|&&b| b == b'\n').count(),
            offset,
        }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let records = match text.trim_start().chars().next() {
        None => Vec::new(),
        Some('[') => read_array(path, text)?,
        Some('{') => read_lines(path, text)?,
        Some(found) => {
            return Err(DataError::NotRecords { file: file(), found });
        }
    };
    if records.is_empty() {
        return Err(DataError::NoRecords { file: file() });
    }
    Ok(records)
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let file = || path.to_owned();
    // Reading a directory fails with a different error on every system, so it is asked for first.
    if path.is_dir() {
        return Err(DataError::Directory { file: file() });
    }
    std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => DataError::Missing { file: file() },
        _ => DataError::Read { file: file(), error },
    })
}

fn read_lines(path: &Path, text: &str) -> Result<Vec<Record>, DataError> {
    let mut records = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let number = index + 1;
        let value = serde_json::from_str(line).map_err(|error| {
            let hint = if error.is_eof() {
                ": in JSONL each line holds one whole record, and a JSON array starts with `[`"
            } else {
                ""
            };
            syntax(path, number, &error, hint)
        })?;
        records.push(Record::from_value(path, Place::Line(number), value)?);
    }
    Ok(records)
}

fn read_array(path: &Path, text: &str) -> Result<Vec<Record>, DataError> {
    let mut array = ArrayVisitor { path, records: Vec::new(), refused: None };
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json
        .deserialize_seq(&mut array)
        .and_then(|()| json.end())
        .map_err(|error| syntax(path, error.line(), &error, ""));
    match array.refused {
        Some(refused) => Err(refused),
        None => read.map(|()| array.records),
    }
}

/// Turns each element into a record as soon as it is parsed, so that only one JSON tree is alive at a time.
struct ArrayVisitor<'a> {
    path: &'a Path,
    records: Vec<Record>,
    /// The first element that is no record; serde's own error type cannot carry it.
    refused: Option<DataError>,
}

impl<'de> Visitor<'de> for &mut ArrayVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(value) = elements.next_element::<Value>()? {
            let place = Place::Index(self.records.len());
            match Record::from_value(self.path, place, value) {
                Ok(record) => self.records.push(record),
                Err(error) => {
                    self.refused = Some(error);
                    return Err(A::Error::custom("refused"));
                }
            }
        }
        Ok(())
    }
}

impl Record {
    fn from_value(path: &Path, place: Place, value: Value) -> Result<Self, DataError> {
        let file = || path.to_owned();
        let Value::Object(mut object) = value else {
            return Err(DataError::NotAnObject { file: file(), place, found: type_name(&value) });
        };
        let wrong_type =
            |key, value: &Value| DataError::WrongType { file: file(), place, key, found: type_name(value) };
        for key in ["instruction", "output"] {
            if !object.contains_key(key) {
                let keys: Vec<&str> = object.keys().map(String::as_str).collect();
                return Err(DataError::MissingKey {
                    file: file(),
                    place,
                    key,
                    found: if keys.is_empty() { "none".to_owned() } else { keys.join(", ") },
                });
            }
        }
        let mut text = |key| match object.get_mut(key).map(Value::take) {
            None | Some(Value::Null) if key == "input" => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            other => Err(wrong_type(key, &other.unwrap_or_default())),
        };
        let (instruction, input, output) = (text("instruction")?, text("input")?, text("output")?);
        Ok(Self { instruction, input: (!input.is_empty()).then_some(input), output })
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

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
