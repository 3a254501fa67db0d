//! A run's state beside what it saves, from which it goes on with the same bits as if it had never stopped.
//!
//! `step-NNNNNN/` holds the adapter (or model) for others, and for the run itself `training_state.safetensors` (parameters and
//! both moments of AdamW, f32) and `training_state.json` (counters, loss scale, options). The folder appears whole or not at all.
//! The order of the data, the schedule and dropout follow from seed and step, so they need no state of their own. `finished.json`
//! holds the counters of a run that has made all its steps, and of whose folders none may be left.

use super::chosen::Chosen;
use super::logging::Record;
use super::loss_scale::LossScale;
use super::metrics::EvalRecord;
use super::options::FinetuneOptions;
use super::run_folder::{HYPERPARAMETERS_FILE, read_json};
use super::stopping::Watch;
use super::trainer::Trainer;
use crate::checkpoint::{
    ADAPTER_WEIGHTS, Checkpoint, CheckpointError, MODEL_WEIGHTS, atomic, write_safetensors,
};
use crate::data::Dataset;
use crate::error::Error;
use crate::graph::DType;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

const TENSORS: &str = "training_state.safetensors";
const PROGRESS: &str = "training_state.json";
/// The counters of a run that is done, beside its result.
pub(super) const FINISHED_FILE: &str = "finished.json";
/// Version of the format.
const FORMAT: u32 = 2;

/// What is still to do after a step, before the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unfinished {
    /// The whole evaluation: a loss over some of the rows says nothing.
    Evaluation,
    /// The texts that are written at evaluations; its loss is known.
    Samples,
}

impl Unfinished {
    /// Whether a line of the log is one that will be made again.
    fn makes(self, line: &Record) -> bool {
        let is_evaluation = self == Unfinished::Evaluation && line.get("val_loss").is_some();
        is_evaluation || line.get("prompt").is_some()
    }
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    format: u32,
    /// Name of the run, which its folders share.
    pub run: String,
    /// Optimiser steps that are done, and those of them that changed the parameters.
    pub step: usize,
    pub applied: u64,
    /// Micro-batches that dropout has seen.
    pub micro_batches: u32,
    pub tokens: usize,
    /// Seconds of training, all parts of the run together.
    pub elapsed_s: f64,
    pub scale: LossScale,
    /// The last evaluation, and what is known of all of them.
    pub evaluated: Option<EvalRecord>,
    pub watch: Watch,
    /// What a request to stop cut short after the last step.
    #[serde(default)]
    pub unfinished: Option<Unfinished>,
    /// The program saved this step on its own account, and removes it when it is not needed any more.
    #[serde(default)]
    pub autosaved: bool,
    /// The kernels that it was trained with.
    #[serde(default)]
    pub kernels: Option<Chosen>,
    options: Value,
    /// A hash of the samples, and one of the model's configuration and the sizes of its files.
    data: String,
    model: String,
}

/// Options that may differ when a run goes on: they say where it runs, how long, and what it writes. On another device, or with
/// kernels measured anew (`--tune full`), sums round differently.
const FREE: [&str; 25] = [
    "out_dir",
    "logger_name",
    "resume",
    "model_dir",
    "save_interval",
    "autosave",
    "eval_interval",
    "keep_last",
    "keep_best",
    "early_stopping_patience",
    "early_stopping_min_delta",
    "max_time",
    "log_interval",
    "eval_max_iters",
    "eval_prompts",
    "evaluate_example",
    "eval_max_new_tokens",
    "initial_validation",
    "final_validation",
    "memory_limit",
    "gpu",
    "tune",
    "recompute",
    "offload",
    "offload_activations",
];

impl Progress {
    pub fn new(options: &FinetuneOptions, data: &Dataset, scale: LossScale, run: String) -> Self {
        Progress {
            format: FORMAT,
            run,
            step: 0,
            applied: 0,
            micro_batches: 0,
            tokens: 0,
            elapsed_s: 0.0,
            scale,
            evaluated: None,
            watch: Watch::default(),
            unfinished: None,
            autosaved: false,
            kernels: None,
            options: deciding(options),
            data: data_hash(data),
            model: model_hash(&options.model_dir),
        }
    }

    /// Writes the state into a folder in the making.
    ///
    /// # Errors
    /// A file that cannot be written, and what the device reported.
    pub fn write(&self, trainer: &Trainer, folder: &Path) -> Result<(), Error> {
        let tensors = trainer.optimiser().state()?.into_iter().map(|(name, values)| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            (name, DType::F32, vec![values.len()], bytes)
        });
        write_safetensors(&folder.join(TENSORS), tensors, &[])?;
        self.write_counters(folder)
    }

    /// Writes all but parameters and moments.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_counters(&self, folder: &Path) -> Result<(), Error> {
        self.write_to(folder.join(PROGRESS))
    }

    /// Writes the same beside the result: the run is done.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_finished(&self, out_dir: &Path) -> Result<(), Error> {
        self.write_to(out_dir.join(FINISHED_FILE))
    }

    fn write_to(&self, path: PathBuf) -> Result<(), Error> {
        let failed = |source| Error::Write { path: path.clone(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|e| failed(e.into()))?;
        atomic::write_file(&path, |out| out.write_all(&text)).map_err(failed)
    }

    /// Whether a line of the run's log is of what this state has done.
    pub fn has_written(&self, line: &Record) -> bool {
        let Some(step) = line.step() else { return false };
        let unfinished = self.unfinished.filter(|_| step == self.step as u64);
        step <= self.step as u64 && !unfinished.is_some_and(|unfinished| unfinished.makes(line))
    }

    /// Reads the state in a folder, for a run with these options and data.
    ///
    /// # Errors
    /// Files that cannot be read, a run of other options or data: the first that differs, with both values.
    pub fn read(folder: &Path, options: &FinetuneOptions, data: &Dataset) -> Result<Self, Error> {
        let found = Progress::read_counters(&folder.join(PROGRESS), options, data)?;
        open_tensors(folder)?;
        Ok(found)
    }

    /// Reads the counters of a run that is done: [`is_finished`].
    ///
    /// # Errors
    /// As [`Progress::read`].
    pub fn read_finished(out_dir: &Path, options: &FinetuneOptions, data: &Dataset) -> Result<Self, Error> {
        Progress::read_counters(&out_dir.join(FINISHED_FILE), options, data)
    }

    fn read_counters(path: &Path, options: &FinetuneOptions, data: &Dataset) -> Result<Self, Error> {
        let said = |reason: String| Error::input(format!("{}: {reason}", path.display()));
        let text = std::fs::read(path).map_err(|e| {
            let steps: Vec<String> = steps_here(options, path).collect();
            let there = if steps.is_empty() { String::new() } else { format!(": {}", steps.join(", ")) };
            said(format!(
                "cannot be read: {e}; --resume takes the folder of a saved step, step-NNNNNN{there}"
            ))
        })?;
        let found: Progress = serde_json::from_slice(&text).map_err(|e| {
            said(format!(
                "not the state of a run: {e}; give another step-NNNNNN, or begin anew without --resume"
            ))
        })?;
        if found.format != FORMAT {
            return Err(said(format!("of format {}, this version reads {FORMAT}", found.format)));
        }
        let begun_with = completed(found.options.clone(), &deciding(&FinetuneOptions::default()));
        if let Some((name, was, is)) = difference("", &begun_with, &deciding(options)) {
            return Err(said(format!(
                "the run was begun with --{name} {was}, now it is {is}; give what it was begun with, or begin anew without \
                 --resume"
            )));
        }
        for (what, same) in [
            ("data are", found.data == data_hash(data)),
            ("weights of MODEL_DIR are", found.model == model_hash(&options.model_dir)),
        ] {
            if !same {
                let reason =
                    format!("the {what} not those that the run was begun with; begin anew without --resume");
                return Err(said(reason));
            }
        }
        Ok(found)
    }

    /// Loads parameters and moments.
    ///
    /// # Errors
    /// A state of other parameters, a damaged file.
    pub fn load(folder: &Path, trainer: &mut Trainer, micro_batches: u32) -> Result<(), Error> {
        let file = open_tensors(folder)?;
        for name in trainer.optimiser().state_names() {
            let values = file.tensor(&name)?.to_f32();
            trainer.optimiser().set_state(&name, &values)?;
        }
        trainer.go_on_after(micro_batches);
        Ok(())
    }
}

/// The parameters and moments that a step has saved.
///
/// # Errors
/// A missing or damaged file: which step to take in its place.
fn open_tensors(folder: &Path) -> Result<Checkpoint, Error> {
    let path = folder.join(TENSORS);
    Checkpoint::open_file(&path).map_err(|error| {
        let reason = match error {
            // nobody can download it again
            CheckpointError::Truncated { expected, found, .. } => {
                format!("truncated: {expected} bytes expected, {found} found")
            }
            CheckpointError::Header { reason, .. } => format!("not a safetensors file: {reason}"),
            CheckpointError::Layout { tensor, reason, .. } => format!("tensor {tensor:?}: {reason}"),
            CheckpointError::Read { source, .. } => format!("cannot be read: {source}"),
            other => other.to_string(),
        };
        let way = match earlier(folder) {
            Some(earlier) => format!("go on from an earlier step: --resume {}", earlier.display()),
            None => {
                format!(
                    "no earlier step is saved: remove {} and begin anew without --resume",
                    folder.display()
                )
            }
        };
        Error::input(format!("{}: the saved step is damaged: {reason}; {way}", path.display()))
    })
}

/// The newest whole step before this one that the same run saved beside it.
fn earlier(folder: &Path) -> Option<PathBuf> {
    let (out_dir, run) = (folder.parent()?, run_of(folder)?);
    let before = steps_of(out_dir, &run).into_iter().map(|(_, path)| path);
    // by name, as the path may be spelled otherwise
    let mut before: Vec<PathBuf> = before.take_while(|path| path.file_name() != folder.file_name()).collect();
    before.retain(|path| Checkpoint::open_file(&path.join(TENSORS)).is_ok());
    before.pop()
}

/// The folder to go on from: the newest whole one of the run in `out_dir`, if there is one and the run is not finished. An earlier run
/// may have left folders there too; they are not meant.
pub(super) fn newest(out_dir: &Path) -> Option<PathBuf> {
    if is_finished(out_dir) {
        return None;
    }
    steps_of(out_dir, &run_in(out_dir)?).pop().map(|(_, path)| path)
}

/// Whether the run in `out_dir` has made all its steps, and its result is there.
pub(super) fn is_finished(out_dir: &Path) -> bool {
    let finished = read_json(&out_dir.join(FINISHED_FILE)).and_then(|f| f["run"].as_str().map(str::to_owned));
    finished.is_some_and(|run| run_in(out_dir) == Some(run)) && holds_result(out_dir)
}

/// The name of the run in a folder.
pub(super) fn run_in(out_dir: &Path) -> Option<String> {
    read_json(&out_dir.join(HYPERPARAMETERS_FILE))?["run"].as_str().map(str::to_owned)
}

/// Whether a folder holds an adapter or a model that was trained.
pub(super) fn holds_result(out_dir: &Path) -> bool {
    [ADAPTER_WEIGHTS, MODEL_WEIGHTS].iter().any(|name| out_dir.join(name).exists())
}

/// Whether a run can go on from a folder.
pub fn is_saved_step(folder: &Path) -> bool {
    folder.join(PROGRESS).is_file()
}

/// The run that saved a step's folder.
pub(super) fn run_of(folder: &Path) -> Option<String> {
    let state: Value = serde_json::from_slice(&std::fs::read(folder.join(PROGRESS)).ok()?).ok()?;
    state["run"].as_str().map(str::to_owned)
}

/// Whether a saved step waits for the end of its evaluation.
pub(super) fn is_unfinished(folder: &Path) -> bool {
    read_json(&folder.join(PROGRESS)).is_some_and(|state| !state["unfinished"].is_null())
}

/// Whether a step was saved on the program's own account.
pub(super) fn is_autosave(folder: &Path) -> bool {
    read_json(&folder.join(PROGRESS)).is_some_and(|state| state["autosaved"] == true)
}

/// The step of the best evaluation that a saved step knows of.
pub(super) fn best_of(folder: &Path) -> Option<usize> {
    let state: Value = serde_json::from_slice(&std::fs::read(folder.join(PROGRESS)).ok()?).ok()?;
    state["watch"]["best"][0].as_u64().map(|step| step as usize)
}

/// The steps that a run has saved, in order.
pub(super) fn steps_of(out_dir: &Path, run: &str) -> Vec<(usize, PathBuf)> {
    let mut steps = numbered(out_dir, "step-");
    steps.retain(|(_, path)| run_of(path).is_some_and(|other| other == run));
    steps
}

/// Folders that are called so, with a number, in its order.
pub(crate) fn numbered(out_dir: &Path, prefix: &str) -> Vec<(usize, PathBuf)> {
    let entries = std::fs::read_dir(out_dir).into_iter().flatten().flatten().map(|e| e.path());
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(prefix)?.parse::<usize>().ok();
    let mut found: Vec<_> = entries.filter_map(|path| Some((number(&path)?, path))).collect();
    found.sort();
    found
}

/// The newest saved steps, of the run in `out_dir` or beside the one that was asked for.
fn steps_here(options: &FinetuneOptions, asked: &Path) -> impl Iterator<Item = String> {
    let beside = asked.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let steps = [options.out_dir.as_path(), beside].map(|folder| numbered(folder, "step-"));
    let steps = steps.into_iter().find(|steps| !steps.is_empty()).unwrap_or_default();
    steps.into_iter().rev().take(4).map(|(_, path)| path.display().to_string())
}

/// Removes what a killed process left half-written.
pub(super) fn clean(out_dir: &Path) {
    for entry in std::fs::read_dir(out_dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".tmp") {
            let path = entry.path();
            // other folders are not a run's
            let ours = [".step-", ".best-", ".previous."];
            if path.is_dir() && !ours.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            // what cannot be removed does no harm
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
    }
}

/// The options that decide the result.
fn deciding(options: &FinetuneOptions) -> Value {
    let mut all = serde_json::to_value(options).unwrap_or_default();
    if let Some(map) = all.as_object_mut() {
        FREE.iter().for_each(|name| {
            map.remove(*name);
        });
    }
    if let Some(data) = all["data"].as_object_mut() {
        // the samples themselves are compared
        ["json_path", "sources", "cache", "num_workers"].iter().for_each(|name| {
            data.remove(*name);
        });
    }
    all
}

/// Options of an earlier version: those that it did not know were what they are by default.
fn completed(mut options: Value, defaults: &Value) -> Value {
    if let (Some(options), Some(defaults)) = (options.as_object_mut(), defaults.as_object()) {
        for (name, default) in defaults {
            let own = options.remove(name);
            options.insert(name.clone(), own.map_or_else(|| default.clone(), |own| completed(own, default)));
        }
    }
    options
}

/// The first option that differs, by name, with both values.
fn difference(name: &str, was: &Value, is: &Value) -> Option<(String, String, String)> {
    match (was.as_object(), is.as_object()) {
        (Some(a), Some(b)) => {
            let keys = a.keys().chain(b.keys());
            keys.into_iter().find_map(|key| {
                let full = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                let null = Value::Null;
                difference(&full, a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null))
            })
        }
        _ if was == is => None,
        _ => Some((name.into(), was.to_string(), is.to_string())),
    }
}

/// FNV-1a, 64 bits.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Hash(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x100_0000_01b3);
    }

    fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// All samples with their labels.
fn data_hash(data: &Dataset) -> String {
    let mut hash = Hash::new();
    for samples in [&data.train, &data.validation] {
        hash.add(samples.len() as u64);
        for sample in samples.iter() {
            hash.add(sample.tokens.len() as u64);
            sample.tokens.iter().for_each(|&token| hash.add(u64::from(token)));
            hash.add(sample.label_tokens() as u64);
        }
    }
    hash.text()
}

/// The configuration, and names and sizes of the files with weights: a copy of the folder is the same model.
pub(super) fn model_hash(model_dir: &Path) -> String {
    let mut hash = Hash::new();
    let mut bytes = |bytes: &[u8]| bytes.iter().for_each(|&b| hash.add(u64::from(b)));
    bytes(&std::fs::read(model_dir.join("config.json")).unwrap_or_default());
    let entries = std::fs::read_dir(model_dir).into_iter().flatten().flatten();
    let mut files: Vec<(String, u64)> = entries
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().map_or(0, |m| m.len())))
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .collect();
    files.sort();
    for (name, size) in files {
        bytes(name.as_bytes());
        bytes(&size.to_le_bytes());
    }
    hash.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_was_not_known_had_its_default() {
        let now = FinetuneOptions::default();
        let mut earlier = deciding(&now);
        let map = earlier.as_object_mut().unwrap();
        assert!(map.remove("mlp_chunks").is_some());
        assert!(map["lora"].as_object_mut().unwrap().remove("modules_to_save").is_some());
        let begun_with = completed(earlier, &deciding(&FinetuneOptions::default()));
        assert_eq!(difference("", &begun_with, &deciding(&now)), None);
        let changed = deciding(&FinetuneOptions { mlp_chunks: 4, ..now });
        let (name, was, is) = difference("", &begun_with, &changed).unwrap();
        assert_eq!((name.as_str(), was.as_str(), is.as_str()), ("mlp_chunks", "1", "4"));
    }
}
