//! What a training or evaluation run takes: the options, their defaults, spellings and checks.
//!
//! A field's name is the option's name on the command line (`--learning_rate`, `--data.json_path`,
//! `--lora_rank`), and messages use that spelling. The types here are also what `hyperparameters.json`
//! holds, so their serialised form is a file format.

pub use super::data_options::DataOptions;
use crate::autograd::Recompute;
use crate::data::PromptStyle;
use crate::graph::DType;
use crate::train::quantize::{Quantize, QuantizeOptions};
use crate::train::schedule::ScheduleKind;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

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
    /// PEFT adapter to go on from; rank, alpha and targets are then its own.
    pub init_adapter: Option<PathBuf>,
    /// Peak of the schedule.
    pub learning_rate: f64,
    /// Samples per optimiser step.
    pub batch_size: usize,
    /// Samples on the device at a time; see [`FinetuneOptions::micro_batch`].
    pub micro_batch_size: usize,
    /// Longer samples are cut at the end; `None` cuts at the model's own limit alone.
    pub max_seq_length: Option<usize>,
    pub epochs: usize,
    /// Ends the run earlier than the epochs would.
    pub max_steps: Option<usize>,
    /// `None`: a tenth of the run, at most 100 steps; see [`FinetuneOptions::warmup_steps`].
    pub lr_warmup_steps: Option<usize>,
    pub lr_schedule: ScheduleKind,
    /// What cosine and linear schedules fall to.
    pub min_lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Largest global gradient norm; `None` does not clip.
    pub grad_clip: Option<f64>,
    /// Optimiser steps between evaluations; `None` evaluates at the end alone.
    pub eval_interval: Option<usize>,
    /// Optimiser steps between saves; `None` saves at the end alone.
    pub save_interval: Option<usize>,
    /// Of the split, the order, the adapter's initial values and dropout.
    pub seed: u64,
    /// What the frozen linear layers are held in, and whether embedding and head are too.
    pub quantize: Quantize,
    pub quantize_head: bool,
    /// Blocks whose frozen weights stay in host memory, and come to the device as their turn comes.
    pub offload: usize,
    /// What blocks that are made again begin from waits in host memory for the reverse pass.
    pub offload_activations: bool,
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
}

/// What a run trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// An adapter on frozen weights.
    #[default]
    Lora,
    /// Every weight.
    Full { init: WeightInit },
}

/// Where the weights of full training start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightInit {
    /// The folder's weights.
    #[default]
    Checkpoint,
    /// Random values; the folder needs no weights.
    Random,
}

/// What weights and activations are stored in. Arithmetic, adapters, gradients and optimiser state are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    #[serde(rename = "32-true")]
    F32True,
    #[serde(rename = "16-true")]
    F16True,
    #[default]
    #[serde(rename = "bf16-true")]
    BF16True,
    #[serde(rename = "16-mixed")]
    F16Mixed,
    #[serde(rename = "bf16-mixed")]
    BF16Mixed,
}

/// Which activations are thrown away in the forward pass and made again in the reverse pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RecomputeKind {
    /// The policy with the fewest FLOPs that fits the device's memory.
    #[default]
    Auto,
    Policy(Recompute),
}

impl RecomputeKind {
    /// Nothing is made again.
    pub const NONE: RecomputeKind = RecomputeKind::Policy(Recompute::None);
}

impl fmt::Display for RecomputeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecomputeKind::Auto => f.pad("auto"),
            RecomputeKind::Policy(policy) => policy.fmt(f),
        }
    }
}

impl FromStr for RecomputeKind {
    type Err = UnknownName;

    fn from_str(word: &str) -> Result<Self, UnknownName> {
        let allowed = "auto, none, selective, layer, every-N (blocks in groups of N)";
        match word {
            "auto" => Ok(RecomputeKind::Auto),
            _ => word
                .parse()
                .map(RecomputeKind::Policy)
                .map_err(|_| UnknownName { given: word.into(), allowed: allowed.into() }),
        }
    }
}

impl TryFrom<String> for RecomputeKind {
    type Error = UnknownName;

    fn try_from(word: String) -> Result<Self, UnknownName> {
        word.parse()
    }
}

impl From<RecomputeKind> for String {
    fn from(kind: RecomputeKind) -> Self {
        kind.to_string()
    }
}

/// Whether kernels are measured before a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TuneMode {
    /// Built-in choices.
    Off,
    /// What the cache file holds; the rest is measured and kept there.
    #[default]
    Cached,
    /// All is measured again.
    Full,
}

impl TuneMode {
    pub const NAMES: [&'static str; 3] = ["off", "cached", "full"];
}

impl fmt::Display for TuneMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TuneMode::NAMES[*self as usize])
    }
}

impl FromStr for TuneMode {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(TuneMode::Off),
            "cached" => Ok(TuneMode::Cached),
            "full" => Ok(TuneMode::Full),
            _ => Err(UnknownName { given: text.into(), allowed: TuneMode::NAMES.join(", ") }),
        }
    }
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

/// Options that cannot be run, all of them.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{}", list(problems))]
pub struct OptionsError {
    pub problems: Vec<OptionProblem>,
}

/// One option that cannot be run.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{option} {given}: {allowed}")]
pub struct OptionProblem {
    /// As it is typed: `--batch_size`.
    pub option: &'static str,
    pub given: String,
    /// What is allowed.
    pub allowed: String,
}

/// A word that is none of the words an option knows.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{given:?} is none of {allowed}")]
pub struct UnknownName {
    pub given: String,
    pub allowed: String,
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
            init_adapter: None,
            learning_rate: 3e-4,
            batch_size: 8,
            micro_batch_size: 2,
            max_seq_length: None,
            epochs: 3,
            max_steps: None,
            lr_warmup_steps: None,
            lr_schedule: ScheduleKind::default(),
            min_lr: 0.0,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            grad_clip: Some(1.0),
            eval_interval: None,
            save_interval: None,
            seed: 1337,
            quantize: Quantize::None,
            quantize_head: false,
            offload: 0,
            offload_activations: false,
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
        LoraOptions { rank: 8, alpha: 16.0, dropout: 0.0, targets: Vec::new() }
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
                    self.offload == 0,
                    "--offload",
                    self.offload,
                    "full training changes every weight, and only frozen ones can stay in host memory; leave it out",
                );
            }
        }
        self.quantize().check(&mut checks);
        let without = [Recompute::None, Recompute::Selective].map(RecomputeKind::Policy);
        checks.require(
            !self.offload_activations || !without.contains(&self.recompute),
            "--offload_activations",
            self.offload_activations,
            "keeps what blocks are made again from; give --recompute layer, every-N or auto",
        );
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
        check_max_seq_length(&mut checks, self.max_seq_length);
        checks.at_least("--epochs", self.epochs, 1);
        checks.optional_count("--max_steps", self.max_steps, "to run all epochs");
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
        checks.optional_count("--save_interval", self.save_interval, "to save at the end alone");
        check_gpu(&mut checks, self.gpu.as_deref());
        checks
    }

    /// Samples on the device at a time: `micro_batch_size`, but no more than a batch has.
    pub fn micro_batch(&self) -> usize {
        self.micro_batch_size.min(self.batch_size)
    }

    /// Steps of warm-up in a run of `steps` optimiser steps: never more than the run has.
    pub fn warmup_steps(&self, steps: usize) -> usize {
        self.lr_warmup_steps.unwrap_or((steps / 10).min(100)).min(steps)
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
        self.quantize.check(&mut checks);
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

impl Precision {
    /// What the frozen weights are stored in.
    pub fn weights(self) -> DType {
        match self {
            Precision::F16True => DType::F16,
            Precision::BF16True => DType::BF16,
            Precision::F32True | Precision::F16Mixed | Precision::BF16Mixed => DType::F32,
        }
    }

    /// What the activations and their gradients are stored in.
    pub fn activations(self) -> DType {
        match self {
            Precision::F32True => DType::F32,
            Precision::F16True | Precision::F16Mixed => DType::F16,
            Precision::BF16True | Precision::BF16Mixed => DType::BF16,
        }
    }
}

/// Gives an enum its words on the command line and in messages.
macro_rules! spelled {
    ($type:ty { $($word:literal => $value:path),+ $(,)? }) => {
        impl $type {
            /// Every value, in the order in which help texts list them.
            pub const ALL: &[$type] = &[$($value),+];

            /// The word on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $($value => $word,)+
                }
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(word: &str) -> Result<Self, UnknownName> {
                match word {
                    $($word => Ok($value),)+
                    _ => Err(UnknownName { given: word.into(), allowed: [$($word),+].join(", ") }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

spelled!(Precision {
    "32-true" => Precision::F32True,
    "16-true" => Precision::F16True,
    "bf16-true" => Precision::BF16True,
    "16-mixed" => Precision::F16Mixed,
    "bf16-mixed" => Precision::BF16Mixed,
});
spelled!(ScheduleKind {
    "cosine" => ScheduleKind::Cosine,
    "linear" => ScheduleKind::Linear,
    "constant" => ScheduleKind::Constant,
});
spelled!(WeightInit { "checkpoint" => WeightInit::Checkpoint, "random" => WeightInit::Random });

/// Collects problems, so that a user sees all of them at once.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    problems: Vec<OptionProblem>,
}

impl Checks {
    pub(crate) fn require(
        &mut self,
        holds: bool,
        option: &'static str,
        given: impl fmt::Display,
        allowed: impl Into<String>,
    ) {
        if !holds {
            self.problems.push(OptionProblem { option, given: given.to_string(), allowed: allowed.into() });
        }
    }

    pub(crate) fn at_least(&mut self, option: &'static str, given: usize, least: usize) {
        self.require(given >= least, option, given, format!("must be at least {least}"));
    }

    /// A count that may be left out; `without` says what that means.
    pub(crate) fn optional_count(&mut self, option: &'static str, given: Option<usize>, without: &str) {
        if given == Some(0) {
            self.require(false, option, 0, format!("must be at least 1; leave it out {without}"));
        }
    }

    pub(crate) fn positive(&mut self, option: &'static str, given: f64) {
        self.require(given.is_finite() && given > 0.0, option, given, "must be a finite number above 0");
    }

    pub(crate) fn not_negative(&mut self, option: &'static str, given: f64) {
        self.require(given.is_finite() && given >= 0.0, option, given, "must be a finite number, 0 or above");
    }

    pub(crate) fn below_one(&mut self, option: &'static str, given: f64) {
        self.require((0.0..1.0).contains(&given), option, given, "must be at least 0 and below 1");
    }

    pub(crate) fn prompt_style(&mut self, option: &'static str, given: &str) {
        if let Err(unknown) = given.parse::<PromptStyle>() {
            self.require(false, option, given, unknown.to_string());
        }
    }

    pub(crate) fn path(&mut self, option: &'static str, given: &Path) {
        self.require(!given.as_os_str().is_empty(), option, "\"\"", "must be given");
    }

    pub(crate) fn finish(self) -> Result<(), OptionsError> {
        if self.problems.is_empty() { Ok(()) } else { Err(OptionsError { problems: self.problems }) }
    }
}

fn check_max_seq_length(checks: &mut Checks, length: Option<usize>) {
    if let Some(length) = length {
        checks.require(
            length >= 2,
            "--max_seq_length",
            length,
            "must be at least 2: a token and the one that follows",
        );
    }
}

fn check_gpu(checks: &mut Checks, gpu: Option<&str>) {
    checks.require(
        gpu.is_none_or(|name| !name.trim().is_empty()),
        "--gpu",
        "\"\"",
        "must be a name or an index; `engraft devices` lists them",
    );
}

fn list(problems: &[OptionProblem]) -> String {
    match problems {
        [one] => one.to_string(),
        many => {
            let lines: String = many.iter().map(|problem| format!("\n  {problem}")).collect();
            format!("{} options cannot be used:{lines}", many.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> FinetuneOptions {
        FinetuneOptions {
            model_dir: "model".into(),
            data: DataOptions { json_path: "data.json".into(), ..DataOptions::default() },
            ..FinetuneOptions::default()
        }
    }

    fn problems(change: impl FnOnce(&mut FinetuneOptions)) -> Vec<OptionProblem> {
        let mut options = valid();
        change(&mut options);
        options.validate().err().map_or_else(Vec::new, |error| error.problems)
    }

    #[test]
    fn defaults_with_the_two_paths_are_valid() {
        assert_eq!(valid().validate(), Ok(()));
        let missing = FinetuneOptions::default().validate().unwrap_err().to_string();
        assert!(missing.contains("MODEL_DIR") && missing.contains("--data.json_path"), "{missing}");
    }

    #[test]
    fn each_bad_value_is_named() {
        type Change = fn(&mut FinetuneOptions);
        let cases: &[(&str, Change)] = &[
            ("--out_dir", |o| o.out_dir = PathBuf::new()),
            ("--data.val_split_fraction", |o| o.data.val_split_fraction = f64::NAN),
            ("--data.val_split_fraction", |o| o.data.val_split_fraction = 1.0),
            ("--data.val_split_fraction", |o| o.data.val_split_fraction = -0.1),
            ("--data.prompt_style", |o| o.data.prompt_style = "alpacca".into()),
            ("--lora_rank", |o| o.lora.rank = 0),
            ("--lora_alpha", |o| o.lora.alpha = 0.0),
            ("--lora_alpha", |o| o.lora.alpha = f64::INFINITY),
            ("--lora_dropout", |o| o.lora.dropout = 1.0),
            ("--lora_dropout", |o| o.lora.dropout = f64::NAN),
            ("--lora_targets", |o| o.lora.targets = vec!["q_proj".into(), "q_proj".into()]),
            ("--lora_targets", |o| o.lora.targets = vec![String::new()]),
            ("--learning_rate", |o| o.learning_rate = 0.0),
            ("--learning_rate", |o| o.learning_rate = f64::NAN),
            ("--min_lr", |o| o.min_lr = 1.0),
            ("--min_lr", |o| o.min_lr = -1e-9),
            ("--batch_size", |o| (o.batch_size, o.micro_batch_size) = (9, 2)),
            ("--batch_size", |o| o.batch_size = 0),
            ("--micro_batch_size", |o| o.micro_batch_size = 0),
            ("--max_seq_length", |o| o.max_seq_length = Some(1)),
            ("--epochs", |o| o.epochs = 0),
            ("--max_steps", |o| o.max_steps = Some(0)),
            ("--weight_decay", |o| o.weight_decay = -0.01),
            ("--beta1", |o| o.beta1 = 1.0),
            ("--beta2", |o| o.beta2 = f64::NAN),
            ("--eps", |o| o.eps = 0.0),
            ("--grad_clip", |o| o.grad_clip = Some(-1.0)),
            ("--eval_interval", |o| o.eval_interval = Some(0)),
            ("--save_interval", |o| o.save_interval = Some(0)),
            ("--gpu", |o| o.gpu = Some(" ".into())),
            ("--init_adapter", |o| {
                o.method = Method::Full { init: WeightInit::Random };
                o.init_adapter = Some("adapter".into());
            }),
        ];
        for (option, change) in cases {
            let found = problems(change);
            assert_eq!(found.len(), 1, "{option}: {found:?}");
            assert_eq!(found[0].option, *option);
        }
    }

    #[test]
    fn all_problems_come_at_once() {
        let error = FinetuneOptions { epochs: 0, beta1: 2.0, eps: -1.0, ..valid() }.validate().unwrap_err();
        let options: Vec<&str> = error.problems.iter().map(|problem| problem.option).collect();
        assert_eq!(options, ["--epochs", "--beta1", "--eps"]);
        let text = error.to_string();
        assert!(text.starts_with("3 options cannot be used:"), "{text}");
        assert!(text.contains("\n  --beta1 2: must be at least 0 and below 1"), "{text}");
    }

    #[test]
    fn full_training_does_not_look_at_the_adapter_options() {
        let found = problems(|o| {
            o.method = Method::Full { init: WeightInit::Random };
            o.lora.rank = 0;
        });
        assert_eq!(found, []);
    }

    #[test]
    fn a_micro_batch_is_no_larger_than_the_batch() {
        let options = FinetuneOptions { batch_size: 1, ..valid() };
        assert_eq!(options.micro_batch(), 1);
        assert_eq!(options.validate(), Ok(()));
        assert_eq!(valid().micro_batch(), 2);
    }

    #[test]
    fn warm_up_is_a_tenth_at_most_a_hundred_unless_given_and_fits_the_run() {
        for (given, steps, expected) in [
            (None, 30, 3),
            (None, 5, 0),
            (None, 5000, 100),
            (Some(100), 200, 100),
            (Some(100), 20, 20),
            (Some(0), 20, 0),
        ] {
            let options = FinetuneOptions { lr_warmup_steps: given, ..valid() };
            assert_eq!(options.warmup_steps(steps), expected, "{given:?} of {steps}");
        }
    }

    #[test]
    fn words_go_both_ways_and_equal_the_serialised_form() {
        fn check<T>(all: &[T])
        where
            T: FromStr<Err = UnknownName> + fmt::Display + fmt::Debug + PartialEq + Serialize,
        {
            for value in all {
                assert_eq!(&value.to_string().parse::<T>().unwrap(), value);
                assert_eq!(serde_json::to_value(value).unwrap(), value.to_string());
            }
        }
        check(Precision::ALL);
        check(ScheduleKind::ALL);
        let every = Recompute::every(4).unwrap();
        check(&[RecomputeKind::Auto, RecomputeKind::NONE, RecomputeKind::Policy(every)]);
        check(WeightInit::ALL);
        let error = "fp16".parse::<Precision>().unwrap_err().to_string();
        assert_eq!(error, "\"fp16\" is none of 32-true, 16-true, bf16-true, 16-mixed, bf16-mixed");
    }

    #[test]
    fn true_stores_both_and_mixed_keeps_the_weights_in_f32() {
        for (precision, weights, activations) in [
            (Precision::F32True, DType::F32, DType::F32),
            (Precision::F16True, DType::F16, DType::F16),
            (Precision::BF16True, DType::BF16, DType::BF16),
            (Precision::F16Mixed, DType::F32, DType::F16),
            (Precision::BF16Mixed, DType::F32, DType::BF16),
        ] {
            assert_eq!((precision.weights(), precision.activations()), (weights, activations), "{precision}");
        }
    }

    #[test]
    fn modes_read_back() {
        for mode in [TuneMode::Off, TuneMode::Cached, TuneMode::Full] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("fast".parse::<TuneMode>().is_err());
    }

    #[test]
    fn options_survive_saving_and_missing_keys_are_defaults() {
        let options = FinetuneOptions {
            method: Method::Full { init: WeightInit::Random },
            grad_clip: None,
            seed: u64::MAX,
            ..valid()
        };
        let text = serde_json::to_string(&options).unwrap();
        assert_eq!(serde_json::from_str::<FinetuneOptions>(&text).unwrap(), options);
        let few = serde_json::from_str::<FinetuneOptions>(r#"{"epochs": 7}"#).unwrap();
        assert_eq!(few, FinetuneOptions { epochs: 7, ..FinetuneOptions::default() });
    }
}
