//! The command line: what can be typed, and how it becomes the library's options.
//!
//! Parsing never looks at a file or a device; `resolve` turns what was said into checked options. Options
//! are spelled with underscores; each has a hidden alias with dashes, and a test holds that so.

use crate::gpu::GpuOptions;
use crate::train::duration::parse_duration;
use crate::train::memory_size::parse_memory_size;
use crate::train::options::TuneMode;
use crate::train::options::{
    Checks, EvaluateOptions, Example, FinetuneOptions, LayerRange, LoraOptions, Method, OptimizerKind,
    OptionsError, Precision, RecomputeKind, WeightInit,
};
use crate::train::quantize::{Quantize, QuantizeOptions};
use crate::train::schedule::ScheduleKind;
use crate::train::tuning::pipeline_folder;
use clap::{ArgAction, Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use std::process::ExitCode;

mod bench;
mod chat;
mod data;
mod download;
mod export;
pub mod litgpt;
mod logging;
mod merge;
mod named;
mod plan;
mod report;
mod serve;
mod validate;

use bench::named_config;
pub use bench::{BenchArgs, BenchCommand, BenchKernelArgs, BenchTrainArgs, StepArgs, TuneCommandArgs};
pub use chat::{ChatArgs, SamplingArgs, TalkArgs};
pub use data::{DataArgs, DataCommandArgs, DataKind, RowTextArgs};
pub use download::DownloadArgs;
pub use export::{ExportArgs, ExportSource};
pub use litgpt::LoraSwitches;
pub use logging::LoggingArgs;
pub use merge::MergeArgs;
pub use named::{NamedSet, PlaceArgs};
pub use plan::PlanArgs;
pub use report::ReportArgs;
pub use serve::ServeArgs;
pub use validate::ValidateArgs;

const EXIT_CODES: &str = "Exit codes: 0 success, 1 the run failed, 2 bad input or options, \
                          3 out of memory, 4 no usable device, 130 stopped by the user";

/// How a command ended, as its process reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Success = 0,
    RunFailed = 1,
    BadInput = 2,
    OutOfMemory = 3,
    NoDevice = 4,
    Stopped = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// LoRA fine-tuning of language models on any GPU
#[derive(Clone, Debug, Parser)]
#[command(name = "engraft", version, after_help = EXIT_CODES, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Print results and errors only: no progress, no notes
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

#[derive(Clone, Debug, Subcommand)]
#[command(rename_all = "snake_case")]
pub enum Command {
    /// Train a LoRA adapter on a Hugging Face model
    #[command(visible_alias = "finetune_lora", alias = "finetune-lora")]
    Finetune(FinetuneArgs),
    /// Train every weight of a Hugging Face model
    #[command(alias = "finetune-full")]
    FinetuneFull(FinetuneFullArgs),
    /// Continue a prompt, with or without an adapter
    Generate(GenerateArgs),
    /// Talk to a model, with or without an adapter
    Chat(ChatArgs),
    /// Answer OpenAI's chat completions over HTTP
    Serve(ServeArgs),
    /// Fetch a model from the Hugging Face Hub, or check what was fetched
    Download(DownloadArgs),
    /// Loss and perplexity of a model on a data file, with or without an adapter
    Evaluate(EvaluateArgs),
    /// Show data as a run would see them: samples as tokens, lengths, counts
    Data(DataCommandArgs),
    /// Add an adapter to its base model, and write the sum as a model folder
    #[command(visible_alias = "merge", alias = "merge-lora")]
    MergeLora(MergeArgs),
    /// Write a model or an adapter as a GGUF file for llama.cpp
    Export(ExportArgs),
    /// Check a model folder before a run: every problem, without a GPU
    Validate(ValidateArgs),
    /// List GPUs and software devices, and the one that a run would choose
    Devices(DevicesArgs),
    /// Measure speed without any files
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Bench(BenchArgs),
    /// Measure which kernels are fastest here, ahead of a run
    Tune(TuneCommandArgs),
    /// Write a run's report.html again from the files in its folder
    Report(ReportArgs),
    /// Write a configuration file with every option of finetune, explained
    Init(InitArgs),
    /// Print a script that completes commands and options in a shell
    Completions(CompletionsArgs),
    /// Say what memory a run would take, without a GPU: takes finetune's options
    Plan(PlanArgs),
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true)]
#[command(args_override_self = true)]
pub struct FinetuneArgs {
    #[command(flatten)]
    pub model: RunModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub training: TrainingArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub tune: TuneArgs,
}

impl FinetuneArgs {
    /// The run that was asked for.
    ///
    /// # Errors
    /// Every option that is out of its range.
    pub fn resolve(self) -> Result<FinetuneOptions, OptionsError> {
        self.lora.check()?;
        let init_adapter = self.lora.init_adapter.clone();
        let options = FinetuneOptions {
            lora: self.lora.options(),
            init_adapter,
            ..self.training.options(self.model.folder(), self.data, self.split, self.device, self.tune)
        };
        options.validate()?;
        Ok(options)
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true)]
#[command(args_override_self = true)]
pub struct FinetuneFullArgs {
    #[command(flatten)]
    pub model: RunModelArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    /// Where the weights start: checkpoint, or random (then the folder needs no weights)
    #[arg(long, value_name = "WHERE", default_value_t = WeightInit::default())]
    pub init: WeightInit,
    #[command(flatten)]
    pub training: TrainingArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub tune: TuneArgs,
}

impl FinetuneFullArgs {
    /// The run that was asked for.
    ///
    /// # Errors
    /// Every option that is out of its range.
    pub fn resolve(self) -> Result<FinetuneOptions, OptionsError> {
        let options = FinetuneOptions {
            method: Method::Full { init: self.init },
            ..self.training.options(self.model.folder(), self.data, self.split, self.device, self.tune)
        };
        options.validate()?;
        Ok(options)
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// PEFT adapter on top of the model [default: none]
    #[arg(long, value_name = "DIR")]
    pub lora: Option<PathBuf>,
    /// What to continue [default: standard input]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The input that belongs to the prompt, as in the rows of the training [default: none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub input: Option<String>,
    /// How the prompt is wrapped before the model sees it: alpaca, none, chat (the model's template), llama3, …
    #[arg(long, alias = "prompt-style", value_name = "STYLE", default_value_t = data::default_style())]
    pub prompt_style: String,
    /// Tokens to generate at most; an end-of-sequence token ends earlier
    #[arg(long, alias = "max-new-tokens", value_name = "N", default_value_t = 128, value_parser = count)]
    pub max_new_tokens: usize,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl GenerateArgs {
    /// # Errors
    /// Every option that is out of its range.
    pub fn check(&self) -> Result<(), OptionsError> {
        let mut checks = Checks::default();
        checks.at_least("--max_new_tokens", self.max_new_tokens, 1);
        checks.prompt_style("--prompt_style", &self.prompt_style);
        self.sampling.options().check(&mut checks);
        checks.finish()
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true)]
pub struct EvaluateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// PEFT adapter on top of the model [default: none]
    #[arg(long, value_name = "DIR")]
    pub lora: Option<PathBuf>,
    #[command(flatten)]
    pub data: DataArgs,
    /// Evaluate only the share that finetune holds out with this fraction and seed [default: the whole file]
    #[arg(
        long = "data.val_split_fraction",
        alias = "data.val-split-fraction",
        value_name = "F",
        help_heading = "Data"
    )]
    pub val_split_fraction: Option<f64>,
    /// Seed of the split
    #[arg(
        long,
        value_name = "SEED",
        default_value_t = FinetuneOptions::default().seed,
        help_heading = "Data"
    )]
    pub seed: u64,
    /// Cut longer samples at the end [default: the model's own limit]
    #[arg(long, alias = "max-seq-length", value_name = "N", value_parser = count)]
    pub max_seq_length: Option<usize>,
    /// Samples on the device at a time
    #[arg(
        long,
        alias = "micro-batch-size",
        value_name = "N",
        default_value_t = FinetuneOptions::default().micro_batch_size,
        value_parser = count
    )]
    pub micro_batch_size: usize,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub tune: TuneArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl EvaluateArgs {
    /// The evaluation that was asked for; `json` is not part of it.
    ///
    /// # Errors
    /// Every option that is out of its range.
    pub fn resolve(self) -> Result<EvaluateOptions, OptionsError> {
        let options = EvaluateOptions {
            model_dir: self.model.model_dir,
            adapter: self.lora,
            data: self.data.options(self.val_split_fraction.unwrap_or(0.0)),
            seed: self.seed,
            max_seq_length: self.max_seq_length,
            micro_batch_size: self.micro_batch_size,
            precision: self.precision.precision,
            quantize: self.precision.quantize(),
            gpu: self.device.gpu,
            no_coop: self.device.no_coop,
            tune: self.tune.tune,
        };
        options.validate()?;
        Ok(options)
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct DevicesArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct InitArgs {
    /// File to write, which must not exist; - for standard output
    #[arg(value_name = "FILE", default_value = "engraft.yaml")]
    pub file: PathBuf,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct CompletionsArgs {
    /// bash, zsh, fish, powershell or elvish
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Hugging Face folder of the model: config.json, tokenizer.json, *.safetensors
    #[arg(value_name = "MODEL_DIR")]
    pub model_dir: PathBuf,
}

/// The model of a run, which a configuration file may name.
#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct RunModelArgs {
    /// Hugging Face folder of the model: config.json, tokenizer.json, *.safetensors
    #[arg(value_name = "MODEL_DIR")]
    pub model_dir: Option<PathBuf>,
    /// Hugging Face folder of the model: config.json, tokenizer.json, *.safetensors
    #[arg(long, aliases = ["checkpoint-dir", "model_dir"], value_name = "DIR", hide_short_help = true)]
    pub checkpoint_dir: Option<PathBuf>,
    /// YAML file of options, as LitGPT has them or as a run leaves in hyperparameters.yaml; what is typed wins
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl RunModelArgs {
    /// The folder that was named; what is typed in its own place wins.
    pub fn folder(&self) -> PathBuf {
        self.model_dir.clone().or_else(|| self.checkpoint_dir.clone()).unwrap_or_default()
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct SplitArgs {
    /// Share of the rows held out for validation; 0 for none [default: 0.1, or LitGPT's of a named data set]
    #[arg(long = "data.val_split_fraction", alias = "data.val-split-fraction", value_name = "F")]
    pub val_split_fraction: Option<f64>,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Adapter")]
pub struct LoraArgs {
    /// Rank of the adapter
    #[arg(
        long,
        aliases = ["lora-rank", "lora_r", "lora-r"],
        value_name = "R",
        default_value_t = LoraOptions::default().rank,
        value_parser = count
    )]
    pub lora_rank: usize,
    /// The adapter's output is scaled by alpha / rank
    #[arg(long, alias = "lora-alpha", value_name = "ALPHA", default_value_t = LoraOptions::default().alpha)]
    pub lora_alpha: f64,
    /// Probability of dropping an element of the adapter's input
    #[arg(long, alias = "lora-dropout", value_name = "P", default_value_t = LoraOptions::default().dropout)]
    pub lora_dropout: f64,
    /// Modules with an adapter, such as q_proj,v_proj [default: all linear layers of the blocks]
    #[arg(long, alias = "lora-targets", value_name = "NAMES", value_parser = words)]
    pub lora_targets: Option<Words>,
    /// Layers with an adapter: last-16, first-4, or 8-15, counted from 0 [default: all]
    #[arg(long, alias = "lora-layers", value_name = "LAYERS")]
    pub lora_layers: Option<LayerRange>,
    /// Patterns of modules without an adapter, such as 'model.layers.[0-7].*' [default: none]
    #[arg(long, value_name = "PATTERNS", value_parser = words)]
    pub freeze: Option<Words>,
    #[command(flatten)]
    pub switches: LoraSwitches,
    /// PEFT adapter to go on from; rank, alpha and targets are then its own [default: a new adapter]
    #[arg(long, alias = "init-adapter", value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
}

impl LoraArgs {
    /// # Errors
    /// Switches that are all off.
    fn check(&self) -> Result<(), OptionsError> {
        let mut checks = Checks::default();
        let none = self.switches.targets().is_some_and(|targets| targets.is_empty());
        checks.require(!none, "--lora_query, --lora_value, …", "false", "leave no layer with an adapter");
        checks.finish()
    }

    fn options(self) -> LoraOptions {
        LoraOptions {
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            layers: self.lora_layers,
            freeze: self.freeze.map(|Words(patterns)| patterns).unwrap_or_default(),
            targets: match (self.switches.targets(), self.lora_targets) {
                (Some(switched), _) => switched,
                (None, Some(Words(names))) => targets(&names),
                (None, None) => Vec::new(),
            },
        }
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Training")]
pub struct TrainingArgs {
    /// Peak learning rate
    #[arg(
        long,
        aliases = ["learning-rate", "lr", "optimizer.lr", "train.learning_rate"],
        value_name = "LR",
        default_value = "3e-4"
    )]
    pub learning_rate: f64,
    /// Samples per optimiser step [default: 8]
    #[arg(
        long,
        aliases = ["batch-size", "global_batch_size", "train.global_batch_size"],
        value_name = "N",
        value_parser = count
    )]
    pub batch_size: Option<usize>,
    /// Micro-batches per optimiser step: another way to say batch_size
    #[arg(long, alias = "accumulate-grad-batches", value_name = "N", value_parser = count)]
    pub accumulate_grad_batches: Option<usize>,
    /// Samples on the device at a time; a divisor of batch_size [default: 2, or 1 for an odd batch]
    #[arg(long, aliases = ["micro-batch-size", "train.micro_batch_size"], value_name = "N", value_parser = count)]
    pub micro_batch_size: Option<usize>,
    /// Cut longer samples at the end [default: the model's own limit]
    #[arg(long, aliases = ["max-seq-length", "train.max_seq_length"], value_name = "N", value_parser = count)]
    pub max_seq_length: Option<usize>,
    /// Passes over the training rows
    #[arg(
        long,
        alias = "train.epochs",
        value_name = "N",
        default_value_t = FinetuneOptions::default().epochs,
        value_parser = count
    )]
    pub epochs: usize,
    /// End after this many optimiser steps [default: when the epochs end]
    #[arg(long, aliases = ["max-steps", "train.max_steps"], value_name = "N", value_parser = count)]
    pub max_steps: Option<usize>,
    /// Steps of rising learning rate, at most the whole run [default: a tenth of the run, at most 100]
    #[arg(long, aliases = ["lr-warmup-steps", "train.lr_warmup_steps"], value_name = "N", value_parser = count)]
    pub lr_warmup_steps: Option<usize>,
    /// The same as a share of the run's steps
    #[arg(long, aliases = ["lr-warmup-fraction", "train.lr_warmup_fraction"], value_name = "F")]
    pub lr_warmup_fraction: Option<f64>,
    /// Learning rate after the warm-up: cosine, linear, or constant
    #[arg(long, alias = "lr-schedule", value_name = "KIND", default_value_t = ScheduleKind::default())]
    pub lr_schedule: ScheduleKind,
    /// Learning rate that cosine and linear fall to
    #[arg(
        long,
        aliases = ["min-lr", "train.min_lr"],
        value_name = "LR",
        default_value_t = FinetuneOptions::default().min_lr
    )]
    pub min_lr: f64,
    /// What changes the parameters: AdamW or SGD
    #[arg(long, value_name = "NAME", default_value_t = OptimizerKind::default())]
    pub optimizer: OptimizerKind,
    /// Momentum of SGD
    #[arg(
        long,
        alias = "optimizer.momentum",
        value_name = "M",
        default_value_t = FinetuneOptions::default().momentum
    )]
    pub momentum: f64,
    /// Learning rate of the adapters' B matrices over that of all else (LoRA+)
    #[arg(
        long,
        alias = "loraplus-lr-ratio",
        value_name = "RATIO",
        default_value_t = FinetuneOptions::default().loraplus_lr_ratio
    )]
    pub loraplus_lr_ratio: f64,
    /// Weight decay, decoupled in AdamW
    #[arg(
        long,
        aliases = ["weight-decay", "optimizer.weight_decay", "train.weight_decay"],
        value_name = "W",
        default_value_t = FinetuneOptions::default().weight_decay
    )]
    pub weight_decay: f64,
    /// Decay of AdamW's first moment
    #[arg(
        long,
        aliases = ["optimizer.beta1", "train.beta1"],
        value_name = "B",
        default_value_t = FinetuneOptions::default().beta1
    )]
    pub beta1: f64,
    /// Decay of AdamW's second moment
    #[arg(
        long,
        aliases = ["optimizer.beta2", "train.beta2"],
        value_name = "B",
        default_value_t = FinetuneOptions::default().beta2
    )]
    pub beta2: f64,
    /// Both of them, as torch.optim has them
    #[arg(long = "optimizer.betas", value_name = "B1,B2", value_parser = betas)]
    pub betas: Option<(f64, f64)>,
    /// What AdamW adds to the root of the second moment
    #[arg(long, alias = "optimizer.eps", value_name = "EPS", default_value = "1e-8")]
    pub eps: f64,
    /// Largest norm of the gradient of all parameters; 0 does not clip
    #[arg(
        long,
        aliases = ["grad-clip", "max_norm", "train.max_norm"],
        value_name = "NORM",
        default_value_t = 1.0
    )]
    pub grad_clip: f64,
    /// Optimiser steps between evaluations [default: evaluate at the end alone]
    #[arg(long, aliases = ["eval-interval", "eval.interval"], value_name = "N", value_parser = count)]
    pub eval_interval: Option<usize>,
    /// Micro-batches that evaluations before the last one look at [default: all validation rows]
    #[arg(long, aliases = ["eval-max-iters", "eval.max_iters"], value_name = "N", value_parser = count)]
    pub eval_max_iters: Option<usize>,
    /// File of prompts, one per line, that the model continues at evaluations [default: none]
    #[arg(long, aliases = ["eval-prompts", "eval.prompts"], value_name = "FILE")]
    pub eval_prompts: Option<PathBuf>,
    /// Without such a file, the validation row to continue: first, random or its number [default: none]
    #[arg(long, aliases = ["evaluate-example", "eval.evaluate_example"], value_name = "WHICH")]
    pub evaluate_example: Option<Example>,
    /// Tokens of a continuation at most [default: 100, where there is something to continue]
    #[arg(long, aliases = ["eval-max-new-tokens", "eval.max_new_tokens"], value_name = "N", value_parser = count)]
    pub eval_max_new_tokens: Option<usize>,
    /// Evaluate before the first step too: true or false
    #[arg(
        long,
        aliases = ["initial-validation", "eval.initial_validation"],
        value_name = "BOOL",
        default_value_t = false,
        default_missing_value = "true",
        num_args = 0..=1,
        action = ArgAction::Set,
        value_parser = boolean
    )]
    pub initial_validation: bool,
    /// Evaluate after the last step: true or false
    #[arg(
        long,
        aliases = ["final-validation", "eval.final_validation"],
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        action = ArgAction::Set,
        value_parser = boolean
    )]
    pub final_validation: bool,
    /// Optimiser steps between saves to step-NNNNNN [default: save at the end alone]
    #[arg(long, aliases = ["save-interval", "train.save_interval"], value_name = "N", value_parser = count)]
    pub save_interval: Option<usize>,
    /// Keep so many saved steps, the newest [default: all]
    #[arg(long, alias = "keep-last", value_name = "N", value_parser = count)]
    pub keep_last: Option<usize>,
    /// Keep what has the lowest validation loss, and make it the result
    #[arg(long, alias = "keep-best")]
    pub keep_best: bool,
    /// End after so many evaluations in a row without a lower validation loss; the best becomes the result
    #[arg(long, alias = "early-stopping-patience", value_name = "N", value_parser = count)]
    pub early_stopping_patience: Option<usize>,
    /// How much lower it must be, in nats
    #[arg(
        long,
        alias = "early-stopping-min-delta",
        value_name = "D",
        default_value_t = FinetuneOptions::default().early_stopping_min_delta
    )]
    pub early_stopping_min_delta: f64,
    /// End after this time of training, such as 2h, 90m or a number of seconds [default: when the steps end]
    #[arg(long, aliases = ["max-time", "train.max_time"], value_name = "TIME", value_parser = parse_duration)]
    pub max_time: Option<f64>,
    /// Go on from a saved step: its folder, or auto for the newest one in --out_dir (from the start if none)
    #[arg(long, value_name = "DIR|auto", num_args = 0..=1, default_missing_value = "auto")]
    pub resume: Option<PathBuf>,
    #[command(flatten)]
    pub logging: LoggingArgs,
    /// Seed of the split, the order, the initial values and dropout
    #[arg(long, value_name = "SEED", default_value_t = FinetuneOptions::default().seed)]
    pub seed: u64,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Activations to make again: none, selective, every-N, layer; auto takes what fits the memory
    #[arg(long, value_name = "WHAT", default_value_t = RecomputeKind::default())]
    pub recompute: RecomputeKind,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Optimiser steps between printed lines; the metrics have every step [default: about fifty lines]
    #[arg(long, aliases = ["log-interval", "train.log_interval"], value_name = "N", value_parser = count)]
    pub log_interval: Option<usize>,
    /// Folder for the result, the metrics and the hyperparameters
    #[arg(long, alias = "out-dir", value_name = "DIR", default_value = "out")]
    pub out_dir: PathBuf,
}

impl TrainingArgs {
    /// Options of a run without an adapter's.
    fn options(
        self,
        model_dir: PathBuf,
        data: DataArgs,
        split: SplitArgs,
        device: DeviceArgs,
        tune: TuneArgs,
    ) -> FinetuneOptions {
        let micro_batches = self.accumulate_grad_batches;
        let said = self.batch_size.or_else(|| Some(micro_batches? * self.micro_batch_size.unwrap_or(2)));
        let batch_size = said.unwrap_or(FinetuneOptions::default().batch_size);
        let usual = if batch_size.is_multiple_of(2) { 2 } else { 1 };
        // both sizes of a batch decide that of a micro-batch
        let derived = self.batch_size.zip(micro_batches).and_then(|(size, n)| size.checked_div(n));
        let micro_batch_size = self.micro_batch_size.or(derived).unwrap_or(usual);
        let (beta1, beta2) = self.betas.unwrap_or((self.beta1, self.beta2));
        FinetuneOptions {
            model_dir,
            data: {
                let fraction = split.val_split_fraction.unwrap_or_else(|| data.usual_fraction());
                data.options(fraction)
            },
            out_dir: self.out_dir,
            precision: self.precision.precision,
            quantize: self.precision.quantize,
            quantize_head: self.precision.quantize_head,
            learning_rate: self.learning_rate,
            batch_size,
            micro_batch_size,
            accumulate_grad_batches: micro_batches,
            max_seq_length: self.max_seq_length,
            epochs: self.epochs,
            max_steps: self.max_steps,
            lr_warmup_steps: self.lr_warmup_steps,
            lr_warmup_fraction: self.lr_warmup_fraction,
            lr_schedule: self.lr_schedule,
            min_lr: self.min_lr,
            optimizer: self.optimizer,
            momentum: self.momentum,
            loraplus_lr_ratio: self.loraplus_lr_ratio,
            weight_decay: self.weight_decay,
            beta1,
            beta2,
            eps: self.eps,
            grad_clip: (self.grad_clip != 0.0).then_some(self.grad_clip),
            eval_interval: self.eval_interval,
            eval_max_iters: self.eval_max_iters,
            eval_prompts: self.eval_prompts,
            evaluate_example: self.evaluate_example,
            eval_max_new_tokens: self.eval_max_new_tokens,
            initial_validation: self.initial_validation,
            final_validation: self.final_validation,
            save_interval: self.save_interval,
            keep_last: self.keep_last,
            keep_best: self.keep_best,
            early_stopping_patience: self.early_stopping_patience,
            early_stopping_min_delta: self.early_stopping_min_delta,
            max_time: self.max_time,
            resume: self.resume,
            log_interval: self.log_interval,
            logger_name: self.logging.logger_name,
            seed: self.seed,
            recompute: self.recompute,
            offload: self.memory.offload,
            offload_activations: self.memory.offload_activations,
            memory_limit: self.memory.memory_limit,
            gpu: device.gpu,
            no_coop: device.no_coop,
            tune: tune.tune,
            ..FinetuneOptions::default()
        }
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct PrecisionArgs {
    /// Storage of weights and activations: 32-true, 16-true, bf16-true, 16-mixed, bf16-mixed
    #[arg(long, value_name = "KIND", default_value_t = Precision::default())]
    pub precision: Precision,
    /// Frozen linear layers in few bits: nf4, nf4-dq, int8 (LitGPT's bnb.nf4 and bnb.nf4-dq too)
    #[arg(long, value_name = "KIND", default_value_t = Quantize::None)]
    pub quantize: Quantize,
    /// Token embedding and head as well
    #[arg(long, alias = "quantize-head")]
    pub quantize_head: bool,
}

impl PrecisionArgs {
    /// How frozen weights are held beside the precision.
    pub fn quantize(&self) -> QuantizeOptions {
        QuantizeOptions { kind: self.quantize, head: self.quantize_head }
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct DeviceArgs {
    /// Device, see `engraft devices` [default: the best GPU, a software device where there is none]
    #[arg(long, value_name = "NAME|INDEX")]
    pub gpu: Option<String>,
    /// Leave the device's matrix units (cooperative matrices) alone
    #[arg(long, alias = "no-coop")]
    pub no_coop: bool,
}

impl DeviceArgs {
    /// What the device is opened with.
    pub fn options(&self) -> GpuOptions {
        GpuOptions {
            device: self.gpu.clone(),
            no_coop: self.no_coop,
            pipelines: pipeline_folder(),
            ..GpuOptions::default()
        }
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct MemoryArgs {
    /// Device memory to stay within, such as 8GiB or 7.5GB [default: what is free, where the platform tells]
    #[arg(
        long,
        alias = "memory-limit",
        env = "ENGRAFT_MEMORY_LIMIT",
        value_name = "AMOUNT",
        value_parser = parse_memory_size
    )]
    pub memory_limit: Option<u64>,
    /// Keep the frozen weights of so many blocks in host memory, and bring each to the device in time
    #[arg(long, value_name = "BLOCKS", default_value_t = 0)]
    pub offload: usize,
    /// Keep the inputs of blocks that are made again in host memory until the reverse pass
    #[arg(long, alias = "offload-activations")]
    pub offload_activations: bool,
}

#[derive(Clone, Debug, Args)]
pub struct TuneArgs {
    /// Measure which kernels are fastest here before the run: off, cached (what the cache lacks), full (all again)
    #[arg(long, env = "ENGRAFT_TUNE", value_name = "MODE", default_value_t = TuneMode::default())]
    pub tune: TuneMode,
}

/// A list that is one value, so that the last one given is the one that counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Words(pub Vec<String>);

fn words(text: &str) -> Result<Words, String> {
    Ok(Words(text.split(',').map(|word| word.trim().to_owned()).collect()))
}

/// PEFT's word for all linear layers is an empty list here.
fn targets(names: &[String]) -> Vec<String> {
    match names {
        [all] if all == "all-linear" => Vec::new(),
        names => names.iter().map(|name| name.trim().to_owned()).collect(),
    }
}

fn boolean(word: &str) -> Result<bool, String> {
    match word.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

fn betas(words: &str) -> Result<(f64, f64), String> {
    let numbers: Option<Vec<f64>> = words.split(',').map(|word| word.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[first, second]) => Ok((first, second)),
        _ => Err("must be two numbers, such as 0.9,0.95".into()),
    }
}

fn count(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| "must be a whole number, 0 or above".into())
}

#[cfg(test)]
mod tests;
