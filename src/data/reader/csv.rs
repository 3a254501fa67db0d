//! Comma- and tab-separated files: the first line names the columns, every value is a string.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::text::TextReader;
use super::{Place, Take};
use crate::data::DataError;

/// Rows of a table. `None` in the error's place: the text under it failed.
pub(super) fn read_table<R: Read>(
    path: &Path,
    text: &mut TextReader<R>,
    delimiter: u8,
    take: Take<'_>,
) -> Result<(), Option<DataError>> {
    let mut table = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text);
    let wrong = |error: csv::Error| match error.kind() {
        csv::ErrorKind::Io(_) => None,
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => Some(DataError::Table {
            file: path.to_owned(),
            line: pos.as_ref().map_or(0, csv::Position::line),
            reason: format!(
                "the first line names {expected_len} columns, this row has {len}: quote values that hold the separator \
                 or a quote"
            ),
        }),
        _ => Some(DataError::Table {
            file: path.to_owned(),
            line: error.position().map_or(0, csv::Position::line),
            reason: error.to_string(),
        }),
    };
    let names: Vec<String> =
        table.headers().map_err(wrong)?.iter().map(|name| name.trim().to_owned()).collect();
    let mut record = csv::StringRecord::new();
    while table.read_record(&mut record).map_err(wrong)? {
        let line = record.position().map_or(0, csv::Position::line) as usize;
        let cells = names.iter().cloned().zip(record.iter().map(|cell| Value::String(cell.to_owned())));
        if take(Place::Line(line), Value::Object(Map::from_iter(cells))).is_break() {
            break;
        }
    }
    Ok(())
}
