//! `metrics.jsonl`: one JSON object per line.

use super::{MetricsError, Record, Sink, rewrite};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Name of the metrics file in the output folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

pub(super) struct Jsonl {
    file: File,
    path: PathBuf,
}

impl Jsonl {
    /// Starts the file with these records.
    pub fn create(out_dir: &Path, records: &[Record]) -> Result<Self, MetricsError> {
        let path = out_dir.join(METRICS_FILE);
        let text: String = records.iter().map(Record::to_line).collect();
        Ok(Jsonl { file: rewrite(&path, text.as_bytes())?, path })
    }
}

impl Sink for Jsonl {
    /// One unbuffered write per line, so that an interrupted run leaves whole lines.
    fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        self.file.write_all(record.to_line().as_bytes()).map_err(MetricsError::write(&self.path))
    }
}

/// The records of a run, without lines that were cut; none where there is no file.
///
/// # Errors
/// A file that cannot be read.
pub fn read(out_dir: &Path) -> io::Result<Vec<Record>> {
    match fs::read_to_string(out_dir.join(METRICS_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        text => Ok(text?.lines().filter_map(Record::parse).collect()),
    }
}
