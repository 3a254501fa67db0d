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
    let wrong = |line: u64, reason: String| DataError::Table { file: path.to_owned(), line, reason };
    let failed = |error: csv::Error| match error.kind() {
        csv::ErrorKind::Io(_) => None,
        _ => Some(wrong(error.position().map_or(0, csv::Position::line), error.to_string())),
    };
    let line_of = |record: &csv::StringRecord| record.position().map_or(0, csv::Position::line);
    let unclosed = |record: &csv::StringRecord| {
        let open = record.iter().next_back().is_some_and(|cell| cell.ends_with(END));
        open.then(|| wrong(line_of(record), "a quote opens in this row and is never closed: close it".into()))
    };

    let with_end = text.chain(END.as_bytes());
    let mut table = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .from_reader(with_end);
    let mut record = csv::StringRecord::new();
    table.read_record(&mut record).map_err(failed)?;
    if is_end(&record) {
        return Ok(());
    }
    if let Some(error) = unclosed(&record) {
        return Err(Some(error));
    }
    let names: Vec<String> = record.iter().map(|name| name.trim().to_owned()).collect();
    while table.read_record(&mut record).map_err(failed)? && !is_end(&record) {
        if let Some(error) = unclosed(&record) {
            return Err(Some(error));
        }
        let (line, expected, found) = (line_of(&record), names.len(), record.len());
        if found != expected {
            let reason = format!(
                "the first line names {expected} columns, this row has {found}: quote values that hold the separator \
                 or a quote"
            );
            return Err(Some(wrong(line, reason)));
        }
        let cells = names.iter().cloned().zip(record.iter().map(|cell| Value::String(cell.to_owned())));
        if take(Place::Line(line as usize), Value::Object(Map::from_iter(cells))).is_break() {
            break;
        }
    }
    Ok(())
}

/// A row put behind the file, of a code point that no text holds. The parser takes an open quote to the end of the file without
/// a word; then this row is in it.
const END: &str = "\n\u{fdd0}";

fn is_end(record: &csv::StringRecord) -> bool {
    record.len() == 1 && record.get(0) == Some(END.trim_start())
}
