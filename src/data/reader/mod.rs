//! Rows of a data file, whatever its form and compression.
//!
//! The content decides what a file is: compression and Parquet by their first bytes, a JSON array by `[`, JSON lines
//! by `{`. Only tables are told by their name (`.csv`, `.tsv`), because anything can be the start of one. Rows are
//! given away one at a time: no reader holds a file.

mod csv;
mod json;
mod parquet;
mod text;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::Value;

use super::error::{DataError, Place};
use text::TextReader;

pub(crate) use parquet::is_parsing;

/// Takes a row; `Break` ends the reading.
pub(super) type Take<'t> = &'t mut dyn FnMut(Place, Value) -> ControlFlow<()>;

/// Gives every row of `path` to `take`, in the order of the file.
///
/// # Errors
/// A file that is missing, a directory, unreadable, damaged, not UTF-8, of unknown form or without rows; broken JSON
/// or CSV, with its line.
pub(super) fn read_rows(path: &Path, take: Take<'_>) -> Result<(), DataError> {
    let mut any = false;
    let mut take = |place, value| {
        any = true;
        take(place, value)
    };
    let mut file = open(path)?;
    let mut magic = [0; 4];
    let length = read_full(&mut file, &mut magic).map_err(|error| cannot_read(path, error))?;
    file.rewind().map_err(|error| cannot_read(path, error))?;
    match &magic[..length] {
        b"PAR1" => parquet::read_parquet(path, file, &mut take)?,
        [0x1f, 0x8b, ..] => {
            let unpacked = flate2::bufread::MultiGzDecoder::new(BufReader::new(file));
            read_text(path, TextReader::new(unpacked), Some("gzip"), &mut take)?;
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let unpacked = zstd::Decoder::new(file).map_err(|error| cannot_read(path, error))?;
            read_text(path, TextReader::new(unpacked), Some("Zstandard"), &mut take)?;
        }
        _ => read_text(path, TextReader::new(file), None, &mut take)?,
    }
    if any { Ok(()) } else { Err(DataError::NoRecords { file: path.to_owned() }) }
}

/// Opens a data file.
pub(super) fn open(path: &Path) -> Result<File, DataError> {
    // Reading a directory fails with a different error on every system, so it is asked for first.
    if path.is_dir() {
        return Err(DataError::Directory { file: path.to_owned() });
    }
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DataError::Missing { file: path.to_owned() },
        _ => cannot_read(path, error),
    })
}

fn cannot_read(path: &Path, error: io::Error) -> DataError {
    DataError::Read { file: path.to_owned(), error }
}

fn read_full(file: &mut File, out: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < out.len() {
        match file.read(&mut out[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn read_text<R: Read>(
    path: &Path,
    mut text: TextReader<R>,
    packing: Option<&'static str>,
    take: Take<'_>,
) -> Result<(), DataError> {
    let failed = |text: &mut TextReader<R>| {
        let failure = text.failure();
        let failure = failure.unwrap_or_else(|| text::TextFailure::Read(io::Error::other("unknown cause")));
        failure.in_file(path, packing)
    };
    if let Some(delimiter) = delimiter(path) {
        let read = csv::read_table(path, &mut text, delimiter, take);
        return read.map_err(|error| error.unwrap_or_else(|| failed(&mut text)));
    }
    let (first, skipped) = match first_character(&mut text) {
        Ok(found) => found,
        Err(_) => return Err(failed(&mut text)),
    };
    let read = match first {
        None => return Ok(()),
        Some('[') => json::read_array(path, &mut text, skipped, take),
        Some('{') => json::read_lines(path, &mut text, skipped, take),
        Some(found) => return Err(DataError::NotRecords { file: path.to_owned(), found }),
    };
    read.map_err(|stop| match stop {
        // damaged packing shows as broken JSON long before its checksum
        json::Stop::Syntax(error) if packing.is_none() || !is_damaged(&mut text) => error,
        _ => failed(&mut text),
    })
}

/// Whether what follows cannot be unpacked.
fn is_damaged<R: Read>(text: &mut TextReader<R>) -> bool {
    const MOST: u64 = 256 << 20;
    io::copy(&mut text.take(MOST), &mut io::sink()).is_err()
}

/// What separates the columns, where the name says that the file is a table.
pub(super) fn delimiter(path: &Path) -> Option<u8> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
    match name.rsplit_once('.')?.1 {
        "csv" => Some(b','),
        "tsv" => Some(b'\t'),
        _ => None,
    }
}

/// The first character that is not blank, still to be read, and the lines passed over whole buffers of blanks.
fn first_character<R: Read>(text: &mut TextReader<R>) -> io::Result<(Option<char>, usize)> {
    let mut skipped = 0;
    loop {
        let ready = text.fill_buf()?;
        if ready.is_empty() {
            return Ok((None, skipped));
        }
        let blanks = ready.len() - ready.trim_ascii_start().len();
        if blanks < ready.len() {
            let text = std::str::from_utf8(&ready[blanks..]).unwrap_or("\u{fffd}");
            return Ok((text.chars().next(), skipped));
        }
        skipped += ready.iter().filter(|&&byte| byte == b'\n').count();
        text.consume(blanks);
    }
}
