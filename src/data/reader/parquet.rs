//! Parquet files, row by row.
//!
//! The parser ends in a panic on some damaged files. It is kept in: the file is refused like any other damaged one.

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;

use super::{Place, Take};
use crate::data::DataError;

thread_local! {
    static PARSING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a parser whose panics are caught: a panic hook has nothing to say then.
pub(crate) fn is_parsing() -> bool {
    PARSING.get()
}

/// Rows of a Parquet file. Lists and groups become arrays and objects, so that `messages` reads as in JSON.
pub(super) fn read_parquet(path: &Path, file: File, take: Take<'_>) -> Result<(), DataError> {
    let damaged = |reason: String| DataError::Damaged { file: path.to_owned(), kind: "Parquet", reason };
    let reader = guarded(|| SerializedFileReader::new(file)).map_err(damaged)?;
    let mut rows: RowIter<'_> = guarded(|| reader.get_row_iter(None)).map_err(damaged)?;
    for index in 0.. {
        let row = guarded(|| rows.next().transpose().map(|row| row.map(|row| row.to_json_value())));
        let Some(row) = row.map_err(damaged)? else { break };
        if take(Place::Index(index), row).is_break() {
            break;
        }
    }
    Ok(())
}

/// The parser's result, or what it says of the file.
fn guarded<T>(parse: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    PARSING.set(true);
    // after a panic the parser is not used again
    let parsed = catch_unwind(AssertUnwindSafe(parse));
    PARSING.set(false);
    match parsed {
        Ok(parsed) => parsed.map_err(|error| error.to_string()),
        Err(_) => Err("its pages contradict each other".to_owned()),
    }
}
