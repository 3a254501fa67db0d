//! What a run reports: records of steps and evaluations, the events of the progress callback, and the
//! `metrics.jsonl` file.
//!
//! The field names of the records are the keys of the file, which other programs read: renaming a field
//! changes the format.

use super::tuning::TuneProgress;
use crate::checkpoint::atomic;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Name of the metrics file in the output folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Optimiser steps done, this one included: the first step is 1.
    pub step: usize,
    /// Passes over the training data so far, with fraction.
    pub epoch: f64,
    /// Mean over the label tokens of the global batch, in nats.
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Tokens of this step, prompts included.
    pub tokens: usize,
    /// Tokens of this step that have a label.
    pub label_tokens: usize,
    pub tokens_per_s: f64,
    /// Seconds since the run started.
    pub elapsed_s: f64,
}

/// One evaluation on the validation rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimiser steps done before it.
    pub step: usize,
    /// Mean over all label tokens, in nats.
    pub val_loss: f64,
    /// `exp(val_loss)`.
    pub val_ppl: f64,
}

impl EvalRecord {
    pub fn new(step: usize, val_loss: f64) -> Self {
        EvalRecord { step, val_loss, val_ppl: val_loss.exp() }
    }
}

/// What is known when the first step is about to start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunSummary {
    /// Optimiser steps that the run will make.
    pub steps: usize,
    /// Those of all epochs, where `max_steps` ends the run earlier.
    pub all_steps: usize,
    pub epochs: usize,
    pub train_samples: usize,
    pub val_samples: usize,
    /// Elements that are trained, and elements of the whole model without the adapter.
    pub trainable_parameters: usize,
    pub base_parameters: usize,
    /// Name of the device as its driver gives it.
    pub device: String,
    /// The device is a CPU that imitates a GPU.
    pub software_device: bool,
    /// Bytes that the plan allocates on the device.
    pub device_bytes: u64,
}

/// What the progress callback receives, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A class of kernels was measured, before the run starts.
    Tuned(TuneProgress),
    Started(RunSummary),
    Step(StepRecord),
    Evaluation(EvalRecord),
    /// An adapter (or a full model) lies complete at `path`.
    Saved {
        step: usize,
        path: PathBuf,
    },
    /// The gradients of `step` overflowed and were thrown away; `scale` is the loss scale from now on.
    Overflow {
        step: usize,
        scale: f32,
    },
    /// Something that the user should read.
    Note(String),
    Finished {
        steps: usize,
        tokens: usize,
        elapsed_s: f64,
    },
}

/// The metrics file could not be written.
#[derive(Debug, Error)]
pub enum MetricsError {
    #[error("cannot create {}: {source}; choose another --out_dir or free the path", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}; is the disk full?", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Writes `metrics.jsonl`: one JSON object per line, each on its way to the file before the call returns.
/// Numbers that are not finite become `null`.
#[derive(Debug)]
pub struct MetricsWriter {
    file: File,
    path: PathBuf,
}

impl MetricsWriter {
    /// Starts an empty `metrics.jsonl` in `out_dir`, which is made where it is missing.
    ///
    /// # Errors
    /// The folder or the file cannot be created.
    pub fn create(out_dir: &Path) -> Result<Self, MetricsError> {
        let path = out_dir.join(METRICS_FILE);
        let create = || {
            fs::create_dir_all(out_dir)?;
            File::create(&path)
        };
        match create() {
            Ok(file) => Ok(MetricsWriter { file, path }),
            Err(source) => Err(MetricsError::Create { path, source }),
        }
    }

    /// Goes on with the file of a run that is taken up after `step`: the lines up to it stay. The file is that in `earlier`,
    /// the run's folder until now, where there is one. Gives the losses of these steps.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn resume(
        out_dir: &Path,
        earlier: Option<&Path>,
        step: usize,
    ) -> Result<(Self, Vec<f64>), MetricsError> {
        let path = out_dir.join(METRICS_FILE);
        let failed = |source| MetricsError::Write { path: path.clone(), source };
        let before = earlier.map(|folder| folder.join(METRICS_FILE)).filter(|file| file.is_file());
        let text = match fs::read_to_string(before.as_ref().unwrap_or(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(failed)?,
        };
        let (mut kept, mut losses) = (String::new(), Vec::new());
        for line in text.lines() {
            // a line that was cut belongs to a step that is made again
            let Ok(record) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            if record["step"].as_u64().is_some_and(|s| s <= step as u64) {
                kept.push_str(line);
                kept.push('\n');
                losses.extend(record["loss"].as_f64());
            }
        }
        atomic::write_file(&path, |out| out.write_all(kept.as_bytes())).map_err(failed)?;
        let file = File::options().append(true).open(&path).map_err(failed)?;
        Ok((MetricsWriter { file, path }, losses))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// # Errors
    /// The line cannot be written.
    pub fn step(&mut self, record: &StepRecord) -> Result<(), MetricsError> {
        self.line(record)
    }

    /// # Errors
    /// The line cannot be written.
    pub fn evaluation(&mut self, record: &EvalRecord) -> Result<(), MetricsError> {
        self.line(record)
    }

    /// One unbuffered write per line, so that an interrupted run leaves whole lines.
    fn line(&mut self, record: &impl Serialize) -> Result<(), MetricsError> {
        let write = |file: &mut File| {
            let mut line = serde_json::to_vec(record)?;
            line.push(b'\n');
            file.write_all(&line)
        };
        write(&mut self.file).map_err(|source| MetricsError::Write { path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn record(step: usize, loss: f64) -> StepRecord {
        StepRecord {
            step,
            epoch: 0.5,
            loss,
            grad_norm: 1.25,
            learning_rate: 3e-4,
            tokens: 512,
            label_tokens: 100,
            tokens_per_s: 900.0,
            elapsed_s: 1.5,
        }
    }

    #[test]
    fn lines_are_whole_as_soon_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let out_dir = folder.path().join("a/b");
        let mut writer = MetricsWriter::create(&out_dir).unwrap();
        writer.step(&record(1, 2.5)).unwrap();
        writer.evaluation(&EvalRecord::new(1, 0.0)).unwrap();
        let text = fs::read_to_string(out_dir.join("metrics.jsonl")).unwrap();
        assert!(text.ends_with('\n'));
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let keys: Vec<&String> = lines[0].as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "step",
                "epoch",
                "loss",
                "grad_norm",
                "learning_rate",
                "tokens",
                "label_tokens",
                "tokens_per_s",
                "elapsed_s"
            ]
        );
        assert_eq!(lines[0]["learning_rate"], 3e-4);
        assert_eq!(lines[1], serde_json::json!({ "step": 1, "val_loss": 0.0, "val_ppl": 1.0 }));
    }

    #[test]
    fn numbers_that_are_not_finite_become_null() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::create(folder.path()).unwrap();
        writer.step(&record(1, f64::NAN)).unwrap();
        writer.evaluation(&EvalRecord::new(1, 1e6)).unwrap();
        let text = fs::read_to_string(writer.path()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines[0]["loss"].is_null());
        assert!(lines[1]["val_ppl"].is_null(), "exp(1e6) is infinite");
    }

    #[test]
    fn a_new_run_starts_an_empty_file() {
        let folder = tempfile::tempdir().unwrap();
        MetricsWriter::create(folder.path()).unwrap().step(&record(1, 1.0)).unwrap();
        let writer = MetricsWriter::create(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(writer.path()).unwrap(), "");
    }

    #[test]
    fn an_error_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let error = MetricsWriter::create(&blocked).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl") && error.contains("--out_dir"), "{error}");
    }
}
