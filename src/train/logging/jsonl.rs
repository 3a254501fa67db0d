//! `metrics.jsonl`: one JSON object per line.

use super::appended::Appended;
use super::{MetricsError, Record, Sink};
use std::fs;
use std::io;
use std::path::Path;

/// Name of the metrics file in the output folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

pub(super) struct Jsonl(Appended);

impl Jsonl {
    /// Starts the file with these records.
    pub fn create(out_dir: &Path, records: &[Record]) -> Result<Self, MetricsError> {
        let path = out_dir.join(METRICS_FILE);
        let text: String = records.iter().map(Record::to_line).collect();
        Ok(Jsonl(Appended::create(path, text.as_bytes())?))
    }
}

impl Sink for Jsonl {
    fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        self.0.append(record.to_line().as_bytes())
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
