//! An event file that TensorBoard reads: scalars of steps and evaluations, and texts.
//!
//! Messages are in `proto.rs`, their framing in `framing.rs`. A file is always written from its start: that of a resumed run holds
//! the steps before it too, and takes the place of the earlier file.

mod framing;
mod proto;

use super::appended::Appended;
use super::{MetricsError, Record, Sink};
use crate::checkpoint::atomic;
use crate::train::run_folder::{self, HYPERPARAMETERS_FILE, RUN_FILE};
use chrono::Utc;
use framing::frame;
use prost::Message;
use proto::{
    Content, Event, PluginData, SessionLog, Summary, SummaryMetadata, Tensor, TensorShape, Value, What,
};
use std::fs;
use std::path::{Path, PathBuf};

/// What TensorBoard knows an event file by, and what tells engraft's own from those of others.
const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".engraft";

/// Scalars, by their keys in `metrics.jsonl`.
const SCALARS: [&str; 8] =
    ["loss", "val_loss", "val_ppl", "learning_rate", "grad_norm", "tokens_per_s", "tokens", "epoch"];

pub(super) struct TensorBoard {
    file: Appended,
    clock: Clock,
}

/// Times of events: those of steps follow from their `elapsed_s`, so that they are the same when a file is written again.
struct Clock {
    /// Seconds since 1970 when the run would have begun, had it never paused.
    origin: f64,
    elapsed: f64,
}

impl Clock {
    /// The time of a record: its own, or that of the one before.
    fn time(&mut self, record: &Record) -> f64 {
        self.elapsed = record.number("elapsed_s").unwrap_or(self.elapsed);
        self.origin + self.elapsed
    }
}

impl TensorBoard {
    /// Starts an event file with what is known of the run and these records, and removes earlier ones.
    pub fn create(out_dir: &Path, records: &[Record]) -> Result<Self, MetricsError> {
        let now = Utc::now();
        let (pid, seconds) = (std::process::id(), now.timestamp());
        let path = out_dir.join(format!("{PREFIX}{seconds:010}.{pid}{SUFFIX}"));
        let earlier = files(out_dir);
        let elapsed = records.iter().rev().find_map(|record| record.number("elapsed_s")).unwrap_or(0.0);
        let mut clock = Clock { origin: now.timestamp_micros() as f64 / 1e6 - elapsed, elapsed: 0.0 };
        let mut bytes = Vec::new();
        head(out_dir, clock.origin, &mut bytes);
        records.iter().for_each(|record| event(record, clock.time(record), &mut bytes));
        let file = Appended::create(path.clone(), &bytes)?;
        for old in earlier.iter().filter(|&old| *old != path) {
            atomic::remove_file(old).map_err(MetricsError::write(old))?;
        }
        Ok(TensorBoard { file, clock })
    }
}

impl Sink for TensorBoard {
    fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        let mut bytes = Vec::new();
        event(record, self.clock.time(record), &mut bytes);
        self.file.append(&bytes)
    }
}

/// The event files in a folder that engraft wrote.
pub(super) fn files(out_dir: &Path) -> Vec<PathBuf> {
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
    };
    fs::read_dir(out_dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(ours).collect()
}

/// The version, the word that steps begin anew, the options as a table, memory by kind.
fn head(out_dir: &Path, wall_time: f64, out: &mut Vec<u8>) {
    write(wall_time, 0, What::FileVersion("brain.Event:2".into()), out);
    // a TensorBoard that is open already forgets what it read of the earlier file
    write(wall_time, 0, What::SessionLog(SessionLog { status: 1 }), out);
    let mut values = Vec::new();
    if let Some(all) = run_folder::read_json(&out_dir.join(HYPERPARAMETERS_FILE)) {
        let rows = run_folder::settings(&all)
            .into_iter()
            .map(|(name, value)| format!("| {name} | {} |\n", value.replace('|', "\\|").replace('\n', " ")));
        let table: String = ["| option | value |\n|---|---|\n".to_owned()].into_iter().chain(rows).collect();
        values.push(text("hyperparameters", &table));
    }
    let run = run_folder::read_json(&out_dir.join(RUN_FILE)).unwrap_or_default();
    for (kind, bytes) in run["memory"].as_object().into_iter().flatten() {
        values.extend(bytes.as_f64().map(|bytes| scalar(&format!("memory_bytes/{kind}"), bytes)));
    }
    if !values.is_empty() {
        write(wall_time, 0, What::Summary(Summary { value: values }), out);
    }
}

/// The event of a record: its scalars, and the text of a sample.
fn event(record: &Record, wall_time: f64, out: &mut Vec<u8>) {
    let mut value: Vec<Value> =
        SCALARS.iter().filter_map(|key| Some(scalar(key, record.number(key)?))).collect();
    if let (Some(prompt), Some(answer)) = (record.text("prompt"), record.text("text")) {
        // the start of the prompt tells one sample from another
        let start: String = prompt.chars().take(60).collect();
        value.push(text(&format!("samples/{start}"), &format!("{prompt}\n\n---\n\n{answer}")));
    }
    if !value.is_empty() {
        let step = record.step().unwrap_or(0) as i64;
        write(wall_time, step, What::Summary(Summary { value }), out);
    }
}

fn write(wall_time: f64, step: i64, what: What, out: &mut Vec<u8>) {
    frame(&Event { wall_time, step, what: Some(what) }.encode_to_vec(), out);
}

fn scalar(tag: &str, value: f64) -> Value {
    Value { tag: tag.into(), metadata: None, content: Some(Content::SimpleValue(value as f32)) }
}

/// Markdown for the text plugin: a tensor of one string.
fn text(tag: &str, markdown: &str) -> Value {
    let plugin_data = Some(PluginData { plugin_name: "text".into() });
    let tensor = Tensor {
        dtype: 7,
        tensor_shape: Some(TensorShape {}),
        string_val: vec![markdown.as_bytes().to_vec()],
    };
    let metadata = Some(SummaryMetadata { plugin_data });
    Value { tag: tag.into(), metadata, content: Some(Content::Tensor(tensor)) }
}
