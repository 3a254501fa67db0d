//! A model folder looked through before a run: configuration, weights by their headers, tokenizer, chat template, and the
//! memory that training takes. No weight is read and no device opened, and every problem is listed, not the first alone.

mod tokenizer;
mod weights;

use crate::autograd::Recompute;
use crate::checkpoint::{ADAPTER_CONFIG, Adapter};
use crate::fuse::Fusions;
use crate::graph::DeviceProfile;
use crate::memory_size::memory_text;
use crate::models::{ModelConfig, Network};
use crate::nn::{PlainLayers, WeightMode};
use crate::train::adapter::{spec_of_adapter, spec_of_targets};
use crate::train::adapter_place::{other_base, saved};
use crate::train::memory::Planner;
use crate::train::options::{FinetuneOptions, LoraOptions};
use crate::train::plan::Demand;
use crate::train::quantize::{Quantize, QuantizeOptions};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tokenizer::check_tokenizer;
use weights::check_weights;

/// Tokens of a sample in the estimate of memory, or fewer where the model's limit is lower.
const TOKENS: usize = 2048;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Passed,
    /// A run works, but perhaps not as meant.
    Warning,
    /// A run would fail or learn nonsense.
    Failed,
    /// There is nothing to check, or what it needs is broken.
    Skipped,
}

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub found: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// What training takes on a device, by the byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    pub quantize: String,
    pub recompute: String,
    pub micro_batch_size: usize,
    pub tokens: usize,
    pub weight_bytes: u64,
    pub total_bytes: u64,
}

/// Everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Validation {
    pub model_dir: PathBuf,
    pub checks: Vec<Check>,
    /// For an adapter with the default options.
    pub memory: Vec<MemoryEstimate>,
}

impl Validation {
    pub fn count(&self, status: Status) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }

    fn add(&mut self, name: &'static str, status: Status, found: impl Into<String>, advice: Option<&str>) {
        let (found, advice) = (found.into(), advice.map(str::to_owned));
        self.checks.push(Check { name, status, found, advice });
    }
}

/// Looks through a model folder and, where one is given, an adapter for it.
pub fn validate(model_dir: &Path, adapter: Option<&Path>) -> Validation {
    let mut all = Validation { model_dir: model_dir.to_path_buf(), checks: Vec::new(), memory: Vec::new() };
    let config = match ModelConfig::read(model_dir) {
        Ok(config) => {
            all.add("configuration", Status::Passed, describe(&config), None);
            Some(config)
        }
        Err(error) => {
            all.add("configuration", Status::Failed, error.to_string(), None);
            None
        }
    };
    if !model_dir.is_dir() {
        // everything else would say the same
        return all;
    }
    let (quantised, plain_layers) = check_weights(&mut all, model_dir, config.as_ref());
    check_tokenizer(&mut all, model_dir, config.as_ref());
    if let (Some(dir), Some(config)) = (adapter, &config) {
        check_adapter(&mut all, dir, config);
    }
    match &config {
        Some(config) => estimate_memory(&mut all, config, quantised, &plain_layers),
        None => all.add("memory", Status::Skipped, "needs a configuration that can be read", None),
    }
    all
}

fn describe(config: &ModelConfig) -> String {
    let count = config.parameter_count() as f64;
    let count = if count < 1e9 { format!("{:.1} M", count / 1e6) } else { format!("{:.2} B", count / 1e9) };
    format!(
        "{}, {count} parameters: {} layers of {}, {} heads of {} ({} for keys and values), vocabulary {}{}, {} positions",
        config.family.name(),
        config.layers,
        config.hidden_size,
        config.heads,
        config.head_dim,
        config.kv_heads,
        config.vocab_size,
        if config.tied_head { " (tied head)" } else { "" },
        config.max_position_embeddings
    )
}

fn check_adapter(all: &mut Validation, dir: &Path, config: &ModelConfig) {
    let name = "adapter";
    let (dir, note) = saved(dir, ADAPTER_CONFIG);
    let adapter = match Adapter::read(&dir) {
        Ok(adapter) => adapter,
        Err(error) => return all.add(name, Status::Failed, error.to_string(), None),
    };
    match spec_of_adapter(config, &adapter) {
        Ok(spec) => {
            let (modules, rank, scale) = (spec.modules.len(), spec.rank, spec.scale);
            let mut text = format!("{modules} layers, rank {rank}, scale {scale}");
            if !spec.saved.is_empty() {
                text += &format!("; trained in full: {}", spec.saved.join(", "));
            }
            all.add(name, Status::Passed, text, None);
        }
        Err(error) => all.add(name, Status::Failed, error.to_string(), None),
    }
    let notes = note.into_iter().chain(other_base(&dir, &adapter.config, &all.model_dir));
    for note in notes.collect::<Vec<_>>() {
        all.add(name, Status::Warning, note, None);
    }
    if let Some(module) = adapter.not_finite() {
        let found = format!("{module} has values that are not finite");
        all.add(name, Status::Failed, found, Some("the training diverged: take an earlier step-NNNNNN"));
    }
}

/// Plans of a run with the default adapter, one sample at a time.
fn estimate_memory(
    all: &mut Validation,
    config: &ModelConfig,
    quantised: Quantize,
    plain_layers: &PlainLayers,
) {
    let lora = LoraOptions::default();
    let tokens = config.max_position_embeddings.min(TOKENS);
    let kinds = match quantised {
        Quantize::None => vec![Quantize::None, Quantize::Nf4],
        kind => vec![kind],
    };
    let (device, precision) = (DeviceProfile::typical_gpu(), FinetuneOptions::default().precision);
    for kind in kinds {
        let storage = QuantizeOptions { kind, head: false }.storage(precision);
        let adapter = spec_of_targets(config, &lora.targets, lora.rank, lora.alpha, lora.dropout);
        let network = Network {
            config: config.clone(),
            weights: WeightMode::Frozen(storage),
            activations: precision.activations(),
            adapter: adapter.ok(),
            recompute: Recompute::None,
            plain_layers: PlainLayers::clone(plain_layers),
            positions: tokens,
            fusions: Fusions::default(),
            host_activations: false,
            mlp_chunks: 1,
            frozen: Vec::new(),
        };
        let demand = |samples| Demand::uniform(samples, tokens);
        let planner = Planner { network, device: &device, batch_size: 1, resumed: false, demand: &demand };
        for recompute in [Recompute::None, Recompute::Layer] {
            match planner.combination(1, recompute) {
                Ok(found) => all.memory.push(MemoryEstimate {
                    quantize: kind.to_string(),
                    recompute: recompute.to_string(),
                    micro_batch_size: 1,
                    tokens,
                    weight_bytes: found.bytes.weights,
                    total_bytes: found.peak_bytes,
                }),
                Err(error) => {
                    return all.add("memory", Status::Failed, error.to_string(), None);
                }
            }
        }
    }
    let totals = || all.memory.iter().map(|row| row.total_bytes);
    let (least, most) = (totals().min().unwrap_or(0), totals().max().unwrap_or(0));
    let found = format!(
        "an adapter of rank {} on {tokens} tokens at a time in {precision} takes {} to {}",
        lora.rank,
        memory_text(least),
        memory_text(most)
    );
    all.add("memory", Status::Passed, found, None);
}
