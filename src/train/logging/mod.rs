//! The logs of a run: `metrics.jsonl` always, and beside it what `--logger_name` asks for.
//!
//! All of them get the same records in the same order. `metrics.jsonl` is the one to trust: when a run is taken up again, it is
//! cut after the step to go on from, and the others are made again from what is left, so that no log has a step twice.

mod appended;
mod csv;
mod jsonl;
mod kind;
mod record;
mod tensorboard;

pub use jsonl::{METRICS_FILE, read};
pub(crate) use kind::one_or_more;
pub use kind::{LoggerError, LoggerKind};
pub use record::Record;

use self::csv::{CSV_FILE, Csv};
use super::report::Report;
use jsonl::Jsonl;
use serde::Serialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tensorboard::TensorBoard;
use thiserror::Error;

/// A log could not be written.
#[derive(Debug, Error)]
pub enum MetricsError {
    #[error("cannot create {}: {source}; choose another --out_dir or free the path", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}; is the disk full?", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl MetricsError {
    pub(super) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| MetricsError::Write { path, source }
    }
}

/// A file that gets every record of a run. A record is on its way to the file before the call returns, or waits for the next one
/// where that fails.
pub(super) trait Sink {
    /// # Errors
    /// The record cannot be written.
    fn write(&mut self, record: &Record) -> Result<(), MetricsError>;
}

/// The logs of one run, open for writing.
pub struct RunLog {
    sinks: Vec<Box<dyn Sink>>,
}

impl RunLog {
    /// Starts empty logs in `out_dir`, which is made where it is missing. Logs of an earlier run that are not asked for again are
    /// removed.
    ///
    /// # Errors
    /// The folder or a file cannot be created.
    pub fn create(out_dir: &Path, kinds: &[LoggerKind]) -> Result<Self, MetricsError> {
        let failed = |source| MetricsError::Create { path: out_dir.join(METRICS_FILE), source };
        fs::create_dir_all(out_dir).map_err(failed)?;
        for stale in [vec![out_dir.join(CSV_FILE)], tensorboard::files(out_dir)].concat() {
            // what cannot be removed fails when it is written, or tells of the earlier run
            let _ = fs::remove_file(stale);
        }
        RunLog::open(out_dir, kinds, &[])
    }

    /// Goes on with the logs of a run that is taken up: of its records those stay that `keep` says. Loggers whose files are there
    /// go on too, asked for or not. The records are those of the logs in `earlier`, the run's folder until now, where there are
    /// any. Gives the losses of the steps that stay.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn resume(
        out_dir: &Path,
        earlier: Option<&Path>,
        kinds: &[LoggerKind],
        keep: impl Fn(&Record) -> bool,
    ) -> Result<(Self, Vec<f64>), MetricsError> {
        let from = earlier.filter(|folder| folder.join(METRICS_FILE).is_file()).unwrap_or(out_dir);
        let mut records = read(from).map_err(MetricsError::write(&from.join(METRICS_FILE)))?;
        records.retain(keep);
        let losses = losses_of(&records);
        let mut kinds = kinds.to_vec();
        if from.join(CSV_FILE).exists() {
            kinds.push(LoggerKind::Csv);
        }
        if !tensorboard::files(from).is_empty() {
            kinds.push(LoggerKind::TensorBoard);
        }
        Ok((RunLog::open(out_dir, &kinds, &records)?, losses))
    }

    fn open(out_dir: &Path, kinds: &[LoggerKind], records: &[Record]) -> Result<Self, MetricsError> {
        let mut sinks: Vec<Box<dyn Sink>> = vec![Box::new(Jsonl::create(out_dir, records)?)];
        if kinds.contains(&LoggerKind::Csv) {
            sinks.push(Box::new(Csv::create(out_dir, records)?));
        }
        if kinds.contains(&LoggerKind::TensorBoard) {
            sinks.push(Box::new(TensorBoard::create(out_dir, records)?));
        }
        // last, so that it reads what the others have written
        sinks.push(Box::new(Report::new(out_dir)));
        Ok(RunLog { sinks })
    }

    /// Writes a record to every log. It must have a `step`, by which a resumed run tells what to keep.
    ///
    /// # Errors
    /// A log cannot be written; the others have it, and that one gets it with the next record if it can be written again.
    pub fn write(&mut self, record: &impl Serialize) -> Result<(), MetricsError> {
        let record = Record::new(record)
            .map_err(|error| MetricsError::write(Path::new(METRICS_FILE))(error.into()))?;
        let written = self.sinks.iter_mut().map(|sink| sink.write(&record));
        written.fold(Ok(()), Result::and)
    }
}

/// The losses of the steps in a folder's log, in order.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn losses(out_dir: &Path) -> Result<Vec<f64>, MetricsError> {
    Ok(losses_of(&read(out_dir).map_err(MetricsError::write(&out_dir.join(METRICS_FILE)))?))
}

fn losses_of(records: &[Record]) -> Vec<f64> {
    records.iter().filter_map(|record| record.get("loss")?.as_f64()).collect()
}

/// The logs in a folder, `metrics.jsonl` first.
pub(super) fn files(out_dir: &Path) -> Vec<PathBuf> {
    [vec![out_dir.join(METRICS_FILE), out_dir.join(CSV_FILE)], tensorboard::files(out_dir)].concat()
}

#[cfg(test)]
mod tests;
