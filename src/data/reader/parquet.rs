//! Parquet files, row by row.

use std::fs::File;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::{Place, Take};
use crate::data::DataError;

/// Rows of a Parquet file. Lists and groups become arrays and objects, so that `messages` reads as in JSON.
pub(super) fn read_parquet(path: &Path, file: File, take: Take<'_>) -> Result<(), DataError> {
    let damaged = |error: ParquetError| DataError::Damaged {
        file: path.to_owned(),
        kind: "Parquet",
        reason: error.to_string(),
    };
    let reader = SerializedFileReader::new(file).map_err(damaged)?;
    for (index, row) in reader.get_row_iter(None).map_err(damaged)?.enumerate() {
        let row = row.map_err(damaged)?;
        if take(Place::Index(index), row.to_json_value()).is_break() {
            break;
        }
    }
    Ok(())
}
