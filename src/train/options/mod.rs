//! What a training or evaluation run takes: the options, their defaults, spellings and checks.
//!
//! A field's name is the option's name on the command line (`--learning_rate`, `--data.json_path`,
//! `--lora_rank`), and messages use that spelling. The types here are also what `hyperparameters.json`
//! holds, so their serialised form is a file format.

mod checks;
mod idle;
mod kinds;
mod settings;
#[cfg(test)]
mod tests;

pub use super::data_options::DataOptions;
pub(crate) use checks::Checks;
pub use checks::{OptionProblem, OptionsError};
pub use kinds::{
    Example, LayerRange, Method, OptimizerKind, Precision, RecomputeKind, TuneMode, UnknownName, WeightInit,
};

use crate::train::logging::{LoggerKind, one_or_more};
use crate::train::quantize::{Quantize, QuantizeOptions};
use crate::train::schedule::ScheduleKind;
use checks::{check_gpu, check_max_seq_length};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
/// Everything that decides a fine-tuning run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FinetuneOptions {
    /// Hugging Face folder of the model.
    pub model_dir: PathBuf,
    pub data: DataOptions,
    /// Where the adapter, the metrics and the hyperparameters are written.
    pub out_dir: PathBuf,
    pub precision: Precision,
    /// What is trained.
    pub method: Method,
    /// Used by [`Method::Lora`] alone.
    pub lora: LoraOptions,
    /// Patterns of what is not trained, by full names: modules without an adapter, or, in full training, parameters.
    pub freeze: Vec<String>,
    /// The folder of a step to go on from, or `auto`: the newest whole one that the run in `out_dir` saved, and from the start
    /// where there is none. A run that has made all its steps stays as it is.
    #[serde(skip)]
    pub resume: Option<PathBuf>,
    /// PEFT adapter to go on from; rank, alpha and targets are then its own.
    pub init_adapter: Option<PathBuf>,
    /// Peak of the schedule.
    pub learning_rate: f64,
    /// Samples per optimiser step.
    pub batch_size: usize,
    /// Samples on the device at a time; see [`FinetuneOptions::micro_batch`].
    pub micro_batch_size: usize,
    /// Micro-batches per optimiser step, where that was said: it must agree with both sizes.
    #[serde(skip)]
    pub accumulate_grad_batches: Option<usize>,
    /// Longer samples are cut at the end; `None` cuts at the model's own limit alone.
    pub max_seq_length: Option<usize>,
    pub epochs: usize,
    /// Ends the run earlier than the epochs would.
    pub max_steps: Option<usize>,
    /// `None`: a tenth of the run, at most 100 steps; see [`FinetuneOptions::warmup_steps`].
    pub lr_warmup_steps: Option<usize>,
    /// The warm-up as a share of the run's steps, in place of a number.
    pub lr_warmup_fraction: Option<f64>,
    pub lr_schedule: ScheduleKind,
    /// What cosine and linear schedules fall to.
    pub min_lr: f64,
    pub optimizer: OptimizerKind,
    /// Of SGD.
    pub momentum: f64,
    /// The learning rate of the adapters' B matrices over that of all else (LoRA+).
    pub loraplus_lr_ratio: f64,
    /// Decoupled weight decay of AdamW; part of the gradient in SGD.
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Largest global gradient norm; `None` does not clip.
    pub grad_clip: Option<f64>,
    /// Optimiser steps between evaluations; `None` evaluates at the end alone.
    pub eval_interval: Option<usize>,
    /// Micro-batches of the validation rows that evaluations before the last one look at; `None` looks at all.
    pub eval_max_iters: Option<usize>,
    /// Evaluates before the first step, and after the last one.
    pub initial_validation: bool,
    pub final_validation: bool,
    /// File of prompts, one per line, that the network continues at evaluations.
    pub eval_prompts: Option<PathBuf>,
    /// Without such a file, the validation row whose prompt is continued.
    pub evaluate_example: Option<Example>,
    /// Tokens of a continuation at most; `None`: 100, where there is something to continue.
    pub eval_max_new_tokens: Option<usize>,
    /// Optimiser steps between saves; `None` saves by time ([`FinetuneOptions::autosave`]).
    pub save_interval: Option<usize>,
    /// Seconds between saves where `save_interval` says nothing; the newest stays until the run has its result. `None`: never.
    pub autosave: Option<f64>,
    /// Saved steps to keep, the newest; `None` keeps all.
    pub keep_last: Option<usize>,
    /// Keeps what has the lowest validation loss, and makes it the result.
    pub keep_best: bool,
    /// Evaluations in a row without a lower validation loss after which the run ends; such a run keeps the best.
    pub early_stopping_patience: Option<usize>,
    /// How much lower, in nats.
    pub early_stopping_min_delta: f64,
    /// Seconds of training after which the run ends.
    pub max_time: Option<f64>,
    /// Optimiser steps between lines of progress; `None` leaves it to who prints them.
    pub log_interval: Option<usize>,
    /// Logs beside `metrics.jsonl`.
    #[serde(deserialize_with = "one_or_more")]
    pub logger_name: Vec<LoggerKind>,
    /// Of the split, the order, the adapter's initial values and dropout.
    pub seed: u64,
    /// What the frozen linear layers are held in, and whether embedding and head are too.
    pub quantize: Quantize,
    pub quantize_head: bool,
    /// Blocks whose frozen weights stay in host memory, and come to the device as their turn comes.
    pub offload: usize,
    /// What blocks that are made again begin from waits in host memory for the reverse pass.
    pub offload_activations: bool,
    /// Chunks of tokens that an MLP takes one after the other; 1: all at once.
    pub mlp_chunks: usize,
    pub recompute: RecomputeKind,
    /// Bytes of device memory that the run may take; `None`: what is free, where the platform tells.
    pub memory_limit: Option<u64>,
    /// Name or index of the device; `None` takes the best.
    pub gpu: Option<String>,
    /// Products without the device's matrix units.
    pub no_coop: bool,
    /// Whether kernels are measured first, where the device has not met such shapes yet.
    pub tune: TuneMode,
}

/// Shape of the adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraOptions {
    pub rank: usize,
    /// The adapter's output is scaled by alpha / rank.
    pub alpha: f64,
    /// Probability of dropping an element of the adapter's input.
    pub dropout: f64,
    /// Module names as PEFT takes them; empty for all linear layers of the blocks.
    pub targets: Vec<String>,
    /// Layers with an adapter; `None` for all.
    pub layers: Option<LayerRange>,
    /// Modules that are trained in full instead, as PEFT names them.
    pub modules_to_save: Vec<String>,
}

/// What decides an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaluateOptions {
    pub model_dir: PathBuf,
    /// PEFT adapter on top of the model.
    pub adapter: Option<PathBuf>,
    /// A fraction of 0 evaluates the whole file; above 0, the rows that a training run with the same
    /// fraction and seed holds out.
    pub data: DataOptions,
    pub seed: u64,
    pub max_seq_length: Option<usize>,
    pub micro_batch_size: usize,
    pub precision: Precision,
    /// How frozen weights are held beside the precision.
    pub quantize: QuantizeOptions,
    pub gpu: Option<String>,
    /// Products without the device's matrix units.
    pub no_coop: bool,
    pub tune: TuneMode,
}

impl Default for FinetuneOptions {
    fn default() -> Self {
        FinetuneOptions {
            model_dir: PathBuf::new(),
            data: DataOptions::default(),
            out_dir: PathBuf::from("out"),
            precision: Precision::default(),
            method: Method::default(),
            lora: LoraOptions::default(),
            freeze: Vec::new(),
            resume: None,
            init_adapter: None,
            learning_rate: 3e-4,
            batch_size: 8,
            micro_batch_size: 2,
            accumulate_grad_batches: None,
            max_seq_length: None,
            epochs: 3,
            max_steps: None,
            lr_warmup_steps: None,
            lr_warmup_fraction: None,
            lr_schedule: ScheduleKind::default(),
            min_lr: 0.0,
            optimizer: OptimizerKind::AdamW,
            momentum: 0.0,
            loraplus_lr_ratio: 1.0,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            grad_clip: Some(1.0),
            eval_interval: None,
            eval_max_iters: None,
            eval_prompts: None,
            evaluate_example: None,
            eval_max_new_tokens: None,
            initial_validation: false,
            final_validation: true,
            save_interval: None,
            autosave: Some(20.0 * 60.0),
            keep_last: None,
            keep_best: false,
            early_stopping_patience: None,
            early_stopping_min_delta: 0.0,
            max_time: None,
            log_interval: None,
            logger_name: Vec::new(),
            seed: 1337,
            quantize: Quantize::None,
            quantize_head: false,
            offload: 0,
            offload_activations: false,
            mlp_chunks: 1,
            recompute: RecomputeKind::default(),
            memory_limit: None,
            gpu: None,
            no_coop: false,
            tune: TuneMode::default(),
        }
    }
}

impl Default for LoraOptions {
    fn default() -> Self {
        LoraOptions {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: Vec::new(),
            layers: None,
            modules_to_save: Vec::new(),
        }
    }
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        EvaluateOptions {
            model_dir: PathBuf::new(),
            adapter: None,
            data: DataOptions { val_split_fraction: 0.0, ..DataOptions::default() },
            seed: FinetuneOptions::default().seed,
            max_seq_length: None,
            micro_batch_size: FinetuneOptions::default().micro_batch_size,
            precision: Precision::default(),
            quantize: QuantizeOptions::default(),
            gpu: None,
            no_coop: false,
            tune: TuneMode::default(),
        }
    }
}

impl FinetuneOptions {
    /// Checks everything that can be checked without looking at a file or a device.
    ///
    /// # Errors
    /// All problems at once, each with the option's name and what is allowed.
    pub fn validate(&self) -> Result<(), OptionsError> {
        self.checked().finish()
    }

    /// [`FinetuneOptions::validate`] for a plan, which needs neither a model's folder nor data.
    ///
    /// # Errors
    /// As [`FinetuneOptions::validate`].
    pub fn validate_for_plan(&self) -> Result<(), OptionsError> {
        let mut checks = self.checked();
        checks.problems.retain(|problem| !["MODEL_DIR", "--data.json_path"].contains(&problem.option));
        checks.finish()
    }

    /// How frozen weights are held beside the precision.
    pub fn quantize(&self) -> QuantizeOptions {
        QuantizeOptions { kind: self.quantize, head: self.quantize_head }
    }

    fn checked(&self) -> Checks {
        let mut checks = Checks::default();
        checks.path("MODEL_DIR", &self.model_dir);
        self.data.check(&mut checks);
        checks.path("--out_dir", &self.out_dir);
        checks.utf8("MODEL_DIR", &self.model_dir);
        checks.utf8("--out_dir", &self.out_dir);
        [("--init_adapter", &self.init_adapter), ("--eval_prompts", &self.eval_prompts)]
            .into_iter()
            .filter_map(|(option, path)| Some((option, path.as_deref()?)))
            .for_each(|(option, path)| checks.utf8(option, path));
        match self.method {
            Method::Lora => self.lora.check(&mut checks),
            Method::Full { .. } => {
                checks.require(
                    self.init_adapter.is_none(),
                    "--init_adapter",
                    self.init_adapter.as_deref().unwrap_or(Path::new("")).display(),
                    "full training has no adapter to go on from; leave it out",
                );
                checks.require(
                    self.quantize == Quantize::None,
                    "--quantize",
                    self.quantize,
                    "full training changes every weight, and only frozen ones can be held in blocks; leave it out",
                );
                checks.require(
                    !self.quantize_head,
                    "--quantize_head",
                    self.quantize_head,
                    "full training changes every weight, and only frozen ones can be held in blocks; leave it out",
                );
                checks.require(
                    self.offload == 0,
                    "--offload",
                    self.offload,
                    "full training changes every weight, and only frozen ones can stay in host memory; leave it out",
                );
            }
        }
        checks.offload_activations(self.offload_activations, self.recompute);
        checks.mlp_chunks(self.mlp_chunks);
        checks.positive("--learning_rate", self.learning_rate);
        if self.min_lr > self.learning_rate && self.learning_rate > 0.0 {
            let allowed = format!("must be at most --learning_rate ({})", self.learning_rate);
            checks.require(false, "--min_lr", self.min_lr, allowed);
        } else {
            checks.not_negative("--min_lr", self.min_lr);
        }
        checks.at_least("--batch_size", self.batch_size, 1);
        checks.at_least("--micro_batch_size", self.micro_batch_size, 1);
        if self.batch_size > 0 && self.micro_batch_size > 0 {
            checks.require(
                self.batch_size.is_multiple_of(self.micro_batch()),
                "--batch_size",
                self.batch_size,
                format!("must be a multiple of --micro_batch_size ({})", self.micro_batch_size),
            );
        }
        if let Some(count) = self.accumulate_grad_batches {
            checks.require(
                count > 0 && self.batch_size == count * self.micro_batch_size,
                "--accumulate_grad_batches",
                count,
                format!(
                    "must be --batch_size ({}) over --micro_batch_size ({}); leave one of the three out",
                    self.batch_size, self.micro_batch_size
                ),
            );
        }
        if let Some(fraction) = self.lr_warmup_fraction {
            checks.require(
                (0.0..=1.0).contains(&fraction),
                "--lr_warmup_fraction",
                fraction,
                "must be at least 0 and at most 1",
            );
            checks.require(
                self.lr_warmup_steps.is_none(),
                "--lr_warmup_fraction",
                fraction,
                "says what --lr_warmup_steps says in another way; give one of the two",
            );
        }
        check_max_seq_length(&mut checks, self.max_seq_length);
        checks.at_least("--epochs", self.epochs, 1);
        checks.optional_count("--max_steps", self.max_steps, "to run all epochs");
        checks.below_one("--momentum", self.momentum);
        checks.require(
            self.momentum == 0.0 || self.optimizer == OptimizerKind::Sgd,
            "--momentum",
            self.momentum,
            "belongs to --optimizer SGD; AdamW has --beta1",
        );
        checks.positive("--loraplus_lr_ratio", self.loraplus_lr_ratio);
        checks.require(
            self.loraplus_lr_ratio == 1.0 || self.method == Method::Lora,
            "--loraplus_lr_ratio",
            self.loraplus_lr_ratio,
            "needs an adapter, and full training has none; leave it out",
        );
        checks.not_negative("--weight_decay", self.weight_decay);
        checks.below_one("--beta1", self.beta1);
        checks.below_one("--beta2", self.beta2);
        checks.positive("--eps", self.eps);
        if let Some(norm) = self.grad_clip {
            checks.require(
                norm.is_finite() && norm > 0.0,
                "--grad_clip",
                norm,
                "must be a finite number above 0, or 0 to leave gradients as they are",
            );
        }
        checks.optional_count("--eval_interval", self.eval_interval, "to evaluate at the end alone");
        checks.optional_count("--eval_max_iters", self.eval_max_iters, "to look at all validation rows");
        checks.optional_count("--log_interval", self.log_interval, "for about fifty lines");
        checks.optional_count("--save_interval", self.save_interval, "to save by time (--autosave)");
        if let Some(seconds) = self.autosave {
            checks.positive("--autosave", seconds);
        }
        checks.optional_count("--keep_last", self.keep_last, "to keep all saved steps");
        if let Some(patience) = self.early_stopping_patience {
            checks.at_least("--early_stopping_patience", patience, 1);
            checks.require(
                self.eval_interval.is_some(),
                "--early_stopping_patience",
                patience,
                "counts evaluations; give --eval_interval as well",
            );
        }
        checks.require(
            !self.keeps_best() || self.final_validation || self.eval_interval.is_some(),
            "--final_validation",
            self.final_validation,
            "leaves --keep_best without any evaluation; give --eval_interval",
        );
        checks.not_negative("--early_stopping_min_delta", self.early_stopping_min_delta);
        if let Some(seconds) = self.max_time {
            checks.positive("--max_time", seconds);
        }
        check_gpu(&mut checks, self.gpu.as_deref());
        checks
    }

    /// Whether the result is what had the lowest validation loss.
    pub fn keeps_best(&self) -> bool {
        self.keep_best || self.early_stopping_patience.is_some()
    }

    /// Seed of the split and the order of the rows.
    pub fn data_seed(&self) -> u64 {
        self.data.seed.unwrap_or(self.seed)
    }

    /// Samples on the device at a time: `micro_batch_size`, but no more than a batch has.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch_size.min(self.batch_size)
    }

    /// Steps of warm-up in a run of `steps` optimiser steps: never more than the run has.
    pub fn warmup_steps(&self, steps: usize) -> usize {
        let share = self.lr_warmup_fraction.map(|fraction| (fraction * steps as f64).round() as usize);
        self.lr_warmup_steps.or(share).unwrap_or((steps / 10).min(100)).min(steps)
    }
}

impl EvaluateOptions {
    /// Checks everything that can be checked without looking at a file or a device.
    ///
    /// # Errors
    /// All problems at once, each with the option's name and what is allowed.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let mut checks = Checks::default();
        checks.path("MODEL_DIR", &self.model_dir);
        self.data.check(&mut checks);
        check_max_seq_length(&mut checks, self.max_seq_length);
        checks.at_least("--micro_batch_size", self.micro_batch_size, 1);
        check_gpu(&mut checks, self.gpu.as_deref());
        checks.finish()
    }
}

impl LoraOptions {
    fn check(&self, checks: &mut Checks) {
        checks.at_least("--lora_rank", self.rank, 1);
        checks.positive("--lora_alpha", self.alpha);
        checks.below_one("--lora_dropout", self.dropout);
        for (i, target) in self.targets.iter().enumerate() {
            checks.require(
                !target.trim().is_empty() && !self.targets[..i].contains(target),
                "--lora_targets",
                self.targets.join(","),
                "must be module names such as q_proj,v_proj, none empty and none twice",
            );
        }
    }
}
