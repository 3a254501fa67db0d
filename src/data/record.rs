//! Rows as what they mean, checked where they are read, so that an error can name its line or index.

use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Map, Value};

use super::conversation::Conversation;
use super::error::{DataError, Place};
use super::format::Format;
use super::reader::read_rows;
use super::source::{DataSource, files_of};

/// One instruction with its answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    pub instruction: String,
    /// Never `Some("")`.
    pub input: Option<String>,
    pub output: String,
    /// Takes the place of the prompt style's own system text. Never `Some("")`.
    pub system: Option<String>,
}

/// A row of any format.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    Instruction(Record),
    Completion {
        prompt: String,
        completion: String,
    },
    Text(String),
    Conversation(Conversation),
    /// All keys as they are, for a prompt template of the user's own.
    Fields(Map<String, Value>),
}

/// Reads every instruction of `path`, in the order of the file.
///
/// The file is anything that holds rows of the format [`Format::Alpaca`]. Each row needs the strings `instruction` and
/// `output`; `input` may be a string, null or absent; other keys are ignored, but for `system`.
///
/// # Errors
/// A file that is missing, a directory, unreadable, not UTF-8 or without records; broken JSON (with line and
/// column); an element that is no object, a missing key, a value of the wrong type (with line or index).
pub fn read_records(path: &Path) -> Result<Vec<Record>, DataError> {
    let (mut records, mut refused) = (Vec::new(), None);
    read_rows(path, &mut |place, value| match Row::new(path, place, value, Format::Alpaca) {
        Ok(Row::Instruction(record)) => {
            records.push(record);
            ControlFlow::Continue(())
        }
        Ok(_) => ControlFlow::Continue(()),
        Err(error) => {
            refused = Some(error);
            ControlFlow::Break(())
        }
    })?;
    match refused {
        Some(error) => Err(error),
        None => Ok(records),
    }
}

/// The format of the first row of `path`.
///
/// # Errors
/// Those of reading up to the first row; keys that speak for no format.
pub fn detect_format(path: &Path) -> Result<Format, DataError> {
    first_row(path).and_then(|(place, row)| format_of(path, place, &row))
}

/// The first row of `path`.
fn first_row(path: &Path) -> Result<(Place, Map<String, Value>), DataError> {
    let mut found = None;
    read_rows(path, &mut |place, value| {
        found = Some(object(path, place, value).map(|row| (place, row)));
        ControlFlow::Break(())
    })?;
    found.unwrap_or(Err(DataError::NoRecords { file: path.to_owned() }))
}

/// The formats that the first rows of the files for training speak for, each once.
///
/// # Errors
/// A folder that cannot be read.
pub fn formats_of(sources: &[DataSource]) -> Result<Vec<Format>, DataError> {
    let mut formats = Vec::new();
    for format in files_of(sources)?.train.iter().filter_map(|source| detect_format(&source.path).ok()) {
        if !formats.contains(&format) {
            formats.push(format);
        }
    }
    Ok(formats)
}

/// Whether the first rows of all files can be read in this format, whatever else their keys speak for.
///
/// # Errors
/// A folder that cannot be read.
pub fn all_read_as(sources: &[DataSource], format: Format) -> Result<bool, DataError> {
    let files = files_of(sources)?;
    let mut paths = files.train.iter().map(|source| &source.path).chain(&files.validation);
    Ok(paths.all(|path| first_row(path).is_ok_and(|(_, row)| format.reads(&row))))
}

/// The format that the first row of a file speaks for.
pub(super) fn format_of(path: &Path, place: Place, row: &Map<String, Value>) -> Result<Format, DataError> {
    Format::detect(row).ok_or_else(|| DataError::UnknownKeys {
        file: path.to_owned(),
        place,
        found: keys(row),
    })
}

pub(super) fn object(path: &Path, place: Place, value: Value) -> Result<Map<String, Value>, DataError> {
    match value {
        Value::Object(row) => Ok(row),
        other => Err(DataError::NotAnObject { file: path.to_owned(), place, found: type_name(&other) }),
    }
}

impl Row {
    /// Checks one row.
    pub(super) fn new(path: &Path, place: Place, value: Value, format: Format) -> Result<Self, DataError> {
        let row = object(path, place, value)?;
        let mut keys = Keys { cell: Cell { path, place }, row, format };
        Ok(match format {
            Format::Alpaca => Self::Instruction(Record {
                instruction: keys.text("instruction")?,
                output: keys.text("output")?,
                input: keys.optional("input")?,
                system: match keys.row.contains_key("system") {
                    true => keys.optional("system")?,
                    // LitGPT's name for it
                    false => keys.optional("sys_prompt")?,
                },
            }),
            Format::PromptCompletion => {
                Self::Completion { prompt: keys.text("prompt")?, completion: keys.text("completion")? }
            }
            Format::Text => Self::Text(keys.text("text")?),
            Format::Chat | Format::ShareGpt => {
                let [usual, other] = match format {
                    Format::ShareGpt => ["conversations", "messages"],
                    _ => ["messages", "conversations"],
                };
                let key = [usual, other].into_iter().find(|key| keys.row.contains_key(*key));
                let key = key.ok_or_else(|| keys.missing(usual))?;
                Self::Conversation(Conversation::from_row(path, place, keys.row, key)?)
            }
        })
    }
}

/// A row that is being read.
struct Keys<'a> {
    cell: Cell<'a>,
    row: Map<String, Value>,
    format: Format,
}

impl Keys<'_> {
    fn text(&mut self, key: &'static str) -> Result<String, DataError> {
        match self.row.get_mut(key).map(Value::take) {
            None => Err(self.missing(key)),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.cell.wrong_type(key, "a string", &other)),
        }
    }

    fn optional(&mut self, key: &'static str) -> Result<Option<String>, DataError> {
        match self.row.get_mut(key).map(Value::take) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text).filter(|text| !text.is_empty())),
            Some(other) => Err(self.cell.wrong_type(key, "a string", &other)),
        }
    }

    fn missing(&self, key: &str) -> DataError {
        self.cell.missing(key, &self.row, &format!("every record needs {}", self.format.needs()))
    }
}

/// Where a value stands, for what is wrong with it.
#[derive(Clone, Copy)]
pub(super) struct Cell<'a> {
    pub(super) path: &'a Path,
    pub(super) place: Place,
}

impl Cell<'_> {
    pub(super) fn wrong_type(&self, key: &str, expected: &'static str, value: &Value) -> DataError {
        DataError::WrongType {
            file: self.path.to_owned(),
            place: self.place,
            key: key.to_owned(),
            expected,
            found: type_name(value),
        }
    }

    pub(super) fn missing(&self, key: &str, row: &Map<String, Value>, needs: &str) -> DataError {
        DataError::MissingKey {
            file: self.path.to_owned(),
            place: self.place,
            key: key.to_owned(),
            found: keys(row),
            needs: match row.contains_key("chosen") && row.contains_key("rejected") {
                true => format!(
                    "{needs}. These rows are preferences, which trainers of DPO take: to train on the answers that were chosen, \
                     rename `chosen` to `completion`, or to `messages` where it is a conversation"
                ),
                false => needs.to_owned(),
            },
        }
    }

    pub(super) fn value(&self, key: &str, reason: String) -> DataError {
        DataError::WrongValue { file: self.path.to_owned(), place: self.place, key: key.to_owned(), reason }
    }
}

fn keys(row: &Map<String, Value>) -> String {
    let keys: Vec<&str> = row.keys().map(String::as_str).collect();
    if keys.is_empty() { "none".to_owned() } else { keys.join(", ") }
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
