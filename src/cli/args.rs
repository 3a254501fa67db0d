//! The command line: what can be typed, and how it becomes the library's options.
//!
//! Parsing never looks at a file or a device; `resolve` turns what was said into checked options. Options
//! are spelled with underscores; each has a hidden alias with dashes, and a test holds that so.

use crate::data::PromptStyle;
use crate::gpu::GpuOptions;
use crate::memory_size::parse_memory_size;
use crate::train::options::TuneMode;
use crate::train::options::{
    Checks, EvaluateOptions, FinetuneOptions, Method, OptionsError, Precision, WeightInit,
};
use crate::train::quantize::{Quantize, QuantizeOptions};
use crate::train::tuning::pipeline_folder;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;
use std::process::ExitCode;

mod adapter;
mod bench;
mod chat;
mod data;
mod download;
mod elsewhere;
mod export;
pub mod litgpt;
mod logging;
mod merge;
mod named;
mod plan;
mod report;
mod serve;
mod training;
mod validate;

pub use adapter::{FreezeArgs, LoraArgs};
use bench::named_config;
pub use bench::{
    BenchArgs, BenchAttentionArgs, BenchCommand, BenchKernelArgs, BenchLoraArgs, BenchMatmulArgs,
    BenchTrainArgs, StepArgs, TuneCommandArgs,
};
pub use chat::{ChatArgs, SamplingArgs, TalkArgs};
pub use data::{DataArgs, DataCommandArgs, DataKind, RowTextArgs};
pub use download::DownloadArgs;
pub use elsewhere::here;
pub use export::{ExportArgs, ExportSource};
pub use litgpt::LoraSwitches;
pub use logging::LoggingArgs;
pub use merge::MergeArgs;
pub use named::{NamedSet, PlaceArgs};
pub use plan::PlanArgs;
pub use report::ReportArgs;
pub use serve::ServeArgs;
pub use training::TrainingArgs;
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
    #[command(alias = "finetune-full", mut_arg("loraplus_lr_ratio", |ratio| ratio.hide(true)))]
    FinetuneFull(FinetuneFullArgs),
    /// Continue a prompt, with or without an adapter
    Generate(GenerateArgs),
    /// Talk to a model, with or without an adapter
    Chat(ChatArgs),
    /// Answer OpenAI's completions over HTTP, of chats and of texts
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
    /// PEFT adapter on top of the model, or the output folder of finetune [default: none]
    #[arg(long, alias = "lora", value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// What to continue [default: standard input]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The input that belongs to the prompt, as in the rows of the training [default: none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub input: Option<String>,
    /// How the prompt is wrapped: auto (as in training; else the model's template, alpaca), none, chat, llama3, …
    #[arg(long, alias = "prompt-style", value_name = "STYLE", default_value_t = PromptStyle::Auto.to_string())]
    pub prompt_style: String,
    /// Jinja template that writes the prompt in place of a style [default: that of the training, if any]
    #[arg(long, alias = "prompt-template", value_name = "FILE")]
    pub prompt_template: Option<PathBuf>,
    /// Tokens to generate at most; an end-of-sequence token ends earlier
    #[arg(long, alias = "max-new-tokens", value_name = "N", default_value_t = 128, value_parser = count)]
    pub max_new_tokens: usize,
    /// Texts to generate from the one prompt, with --seed for the first, --seed + 1 for the second and so on
    #[arg(long, alias = "num-samples", value_name = "N", default_value_t = 1, value_parser = count)]
    pub num_samples: usize,
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
        checks.at_least("--num_samples", self.num_samples, 1);
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
    /// PEFT adapter on top of the model, or the output folder of finetune [default: none]
    #[arg(long, alias = "lora", value_name = "DIR")]
    pub adapter: Option<PathBuf>,
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
            adapter: self.adapter,
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
    #[command(flatten)]
    pub mlp: MlpArgs,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct MlpArgs {
    /// Run each MLP on so many chunks of the tokens, one after the other, and make each again in the reverse pass
    #[arg(long, alias = "mlp-chunks", value_name = "N", default_value_t = 1)]
    pub mlp_chunks: usize,
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

pub(super) fn boolean(word: &str) -> Result<bool, String> {
    match word.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

fn count(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| "must be a whole number, 0 or above".into())
}

#[cfg(test)]
mod tests;
