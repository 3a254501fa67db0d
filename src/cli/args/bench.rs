//! What `engraft bench` and `engraft tune` take.

use super::PrecisionArgs;
use super::{DeviceArgs, EXIT_CODES, FreezeArgs, LoraArgs, MemoryArgs, MlpArgs, TuneArgs, count, targets};
use crate::cli::bench::named_shape;
use crate::error::Error;
use crate::fuse::Fusions;
use crate::graph::DType;
use crate::models::{AttentionBias, ModelConfig};
use crate::train::bench::kernels::LayerStorage;
use crate::train::bench::small_config;
use crate::train::options::TuneMode;
use crate::train::options::{Checks, FinetuneOptions, LoraOptions, OptionsError, RecomputeKind};
use crate::train::quantize::Quantize;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub command: BenchCommand,
}

#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Time matrix products: one size in three layouts, or those of a model's layers
    Matmul(BenchMatmulArgs),
    /// Time attention and its gradient
    Attention(BenchAttentionArgs),
    /// Time linear layers without an adapter, with one, with its gradients, and with the input's too
    Lora(BenchLoraArgs),
    /// Time every kernel of a training step
    Step(StepArgs),
    /// Time LoRA training steps of a network with random weights
    Train(BenchTrainArgs),
}

/// Where every benchmark runs and what it prints.
#[derive(Clone, Debug, Args)]
pub struct BenchRunArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub tune: TuneArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Compare with what --json wrote earlier
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
}

/// What the benchmarks of single operations share.
#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct BenchKernelArgs {
    /// Take the sizes of this model, such as llama-3.2-1b; an unknown name lists those there are
    #[arg(long, value_name = "NAME")]
    pub shape: Option<String>,
    /// Take this kernel wherever it fits instead of the measured one; an unknown name lists those there are
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    #[command(flatten)]
    pub run: BenchRunArgs,
}

impl BenchKernelArgs {
    /// The named shape, if one is.
    ///
    /// # Errors
    /// A name that is unknown.
    pub fn shape(&self) -> Result<Option<ModelConfig>, Error> {
        self.shape.as_deref().map(named_shape).transpose()
    }
}

/// How the operands of linear layers are stored.
#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct LayerStorageArgs {
    /// What operands and results are stored in: f32, f16, bf16; nf4, nf4-dq, int8: weights alone, the rest bf16
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = layer_storage)]
    pub storage: LayerStorage,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct BenchMatmulArgs {
    /// Rows, columns and inner dimension of a product, where no shape is named
    #[arg(
        long,
        value_name = "MxNxK",
        default_value = "512x1024x1024",
        value_parser = sizes::<3>,
        conflicts_with = "shape"
    )]
    pub size: [usize; 3],
    /// Tokens of a micro-batch: the rows of a named shape's products [default: 512]
    #[arg(long, value_name = "N", value_parser = extent)]
    pub tokens: Option<usize>,
    #[command(flatten)]
    pub storage: LayerStorageArgs,
    #[command(flatten)]
    pub kernel: BenchKernelArgs,
}

impl BenchMatmulArgs {
    /// # Errors
    /// Tokens where `--size` has them already.
    pub fn check(&self) -> Result<(), OptionsError> {
        let mut checks = Checks::default();
        if let (Some(tokens), None) = (self.tokens, &self.kernel.shape) {
            let allowed = "goes with --shape; without one the rows are the first number of --size";
            checks.require(false, "--tokens", tokens, allowed);
        }
        checks.finish()
    }

    /// Rows of the products of a named shape.
    pub fn tokens(&self) -> usize {
        self.tokens.unwrap_or(TOKENS)
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct BenchAttentionArgs {
    /// Tokens of a micro-batch
    #[arg(long, value_name = "N", default_value_t = TOKENS, value_parser = extent)]
    pub tokens: usize,
    /// What operands and results are stored in: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = float)]
    pub storage: DType,
    #[command(flatten)]
    pub kernel: BenchKernelArgs,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct BenchLoraArgs {
    /// Outputs and inputs of a layer, where no shape is named
    #[arg(
        long,
        value_name = "OUTxIN",
        default_value = "1024x1024",
        value_parser = sizes::<2>,
        conflicts_with = "shape"
    )]
    pub size: [usize; 2],
    /// Tokens of a micro-batch
    #[arg(long, value_name = "N", default_value_t = TOKENS, value_parser = extent)]
    pub tokens: usize,
    /// Rank of the adapter
    #[arg(long, value_name = "R", default_value_t = LoraOptions::default().rank, value_parser = extent)]
    pub rank: usize,
    #[command(flatten)]
    pub storage: LayerStorageArgs,
    #[command(flatten)]
    pub kernel: BenchKernelArgs,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct StepArgs {
    #[command(flatten)]
    pub train: BenchTrainArgs,
    /// Write a timeline of the dispatches, for https://ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true)]
#[command(mut_arg("lora_rank", |arg| arg.alias("rank")))]
pub struct TuneCommandArgs {
    /// Hugging Face folder whose config.json gives the sizes
    #[arg(value_name = "MODEL_DIR")]
    pub model_dir: Option<PathBuf>,
    /// Take the sizes of this model instead, such as llama-3.2-1b
    #[arg(long, value_name = "NAME", conflicts_with = "model_dir")]
    pub shape: Option<String>,
    /// Tokens of a micro-batch
    #[arg(long, value_name = "N", default_value_t = TOKENS, value_parser = extent)]
    pub tokens: usize,
    /// How many of them carry a label [default: all]
    #[arg(long, value_name = "N", value_parser = extent)]
    pub labels: Option<usize>,
    #[command(flatten)]
    pub mlp: MlpArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// 32-true, 16-true and bf16-true, and micro-batches of 256, 512, 1024 and 2048 tokens, all labelled
    #[arg(long, conflicts_with_all = ["tokens", "precision", "labels"])]
    pub all: bool,
    /// What to measure: cached (what the cache lacks), or full (all again)
    #[arg(long, value_name = "MODE", default_value_t = TuneMode::Cached, value_parser = measuring)]
    pub tune: TuneMode,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub freeze: FreezeArgs,
}

impl TuneCommandArgs {
    /// The sizes to measure for.
    ///
    /// # Errors
    /// A name that is unknown, a `config.json` that cannot be used.
    pub fn config(&self) -> Result<ModelConfig, Error> {
        named_config(self.shape.as_deref(), self.model_dir.as_deref())
    }

    /// The run to measure for, in as far as it decides kernels.
    ///
    /// # Errors
    /// Every option that is out of its range.
    pub fn resolve(self) -> Result<FinetuneOptions, OptionsError> {
        let mut checks = Checks::default();
        if let Some(labels) = self.labels {
            let allowed = format!("must be at most --tokens ({})", self.tokens);
            checks.require(labels <= self.tokens, "--labels", labels, allowed);
        }
        checks.finish()?;
        self.lora.check()?;
        let options = FinetuneOptions {
            model_dir: self.model_dir.unwrap_or_default(),
            init_adapter: self.lora.init_adapter.clone(),
            lora: self.lora.options(),
            freeze: self.freeze.patterns(),
            mlp_chunks: self.mlp.mlp_chunks,
            precision: self.precision.precision,
            quantize: self.precision.quantize,
            quantize_head: self.precision.quantize_head,
            ..FinetuneOptions::default()
        };
        options.validate_for_plan()?;
        Ok(options)
    }
}

/// The sizes of a named shape, or else of a model's folder.
///
/// # Errors
/// Neither of them, a name that is unknown, a `config.json` that cannot be used.
pub(super) fn named_config(shape: Option<&str>, model_dir: Option<&Path>) -> Result<ModelConfig, Error> {
    match (shape, model_dir) {
        (Some(name), _) => named_shape(name),
        (None, Some(folder)) => Ok(ModelConfig::read(folder)?),
        (None, None) => Err(Error::input("give MODEL_DIR, or --shape NAME such as llama-3.2-1b")),
    }
}

fn measuring(text: &str) -> Result<TuneMode, String> {
    text.parse().ok().filter(|mode| *mode != TuneMode::Off).ok_or_else(|| "there are cached and full".into())
}

fn fusion(text: &str) -> Result<String, String> {
    match Fusions::NAMES.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!("there are {}", Fusions::NAMES.join(", "))),
    }
}

/// Tokens of a micro-batch where nothing else is said.
const TOKENS: usize = 512;

/// The largest extent: a matrix of two has bytes that can still be counted.
const LARGEST: usize = 1 << 30;

fn extent(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=LARGEST).contains(n));
    number.ok_or_else(|| format!("a number from 1 to {LARGEST} is needed"))
}

fn sizes<const N: usize>(text: &str) -> Result<[usize; N], String> {
    let numbers: Result<Vec<usize>, String> = text.split('x').map(extent).collect();
    let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
    numbers.ok_or_else(|| {
        let example = ["512", "1024", "1024"][3 - N..].join("x");
        format!("{N} numbers from 1 to {LARGEST} are needed, such as {example}")
    })
}

fn float(text: &str) -> Result<DType, String> {
    let found = [DType::F32, DType::F16, DType::BF16].into_iter().find(|t| t.name() == text);
    found.ok_or_else(|| "there are f32, f16 and bf16".into())
}

/// A float type, or what `--quantize` holds weights in, by its words.
fn layer_storage(text: &str) -> Result<LayerStorage, String> {
    let quantised = || text.parse::<Quantize>().ok().and_then(Quantize::dtype);
    let found = float(text).ok().or_else(quantised).map(LayerStorage::from);
    found.ok_or_else(|| "there are f32, f16, bf16, nf4, nf4-dq and int8".into())
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true)]
pub struct BenchTrainArgs {
    /// Take the sizes of this model, such as llama-3.2-1b; an unknown name lists those there are
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with_all = ["hidden", "layers", "heads", "kv_heads", "ffn", "vocab", "qkv_bias"]
    )]
    pub shape: Option<String>,
    /// Hidden size
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count)]
    pub hidden: usize,
    /// Layers
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count)]
    pub layers: usize,
    /// Query heads
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count)]
    pub heads: usize,
    /// Key and value heads [default: as many as query heads]
    #[arg(long, alias = "kv-heads", value_name = "N", value_parser = count)]
    pub kv_heads: Option<usize>,
    /// Hidden size of the MLP
    #[arg(long, value_name = "N", default_value_t = 768, value_parser = count)]
    pub ffn: usize,
    /// Tokens in the vocabulary
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = count)]
    pub vocab: usize,
    /// Biases on q, k and v, as Qwen2 has them
    #[arg(long, alias = "qkv-bias")]
    pub qkv_bias: bool,
    /// Tokens per sample
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = count)]
    pub seq: usize,
    /// Samples per step, all in one micro-batch
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count)]
    pub batch: usize,
    /// Rank of the adapter
    #[arg(long, value_name = "R", default_value_t = LoraOptions::default().rank, value_parser = count)]
    pub rank: usize,
    /// Probability of dropping an element of the adapter's input
    #[arg(long, alias = "lora-dropout", value_name = "P", default_value_t = LoraOptions::default().dropout)]
    pub lora_dropout: f64,
    /// Modules with an adapter, such as q_proj,v_proj [default: all linear layers of the blocks]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub targets: Vec<String>,
    /// Steps to time, after one that is not
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = count)]
    pub steps: usize,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    /// Activations to make again: none, selective, every-N, layer; auto takes what fits the memory
    #[arg(long, value_name = "WHAT", default_value_t = RecomputeKind::NONE)]
    pub recompute: RecomputeKind,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Fusions to leave out, for what they gain: adapter, bias, residual, dropout, siblings, rotary, glu, head, clip
    #[arg(long, alias = "no-fuse", value_name = "NAMES", value_delimiter = ',', value_parser = fusion)]
    pub no_fuse: Vec<String>,
    #[command(flatten)]
    pub run: BenchRunArgs,
}

impl BenchTrainArgs {
    /// Key and value heads: as given, or as many as query heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }

    /// All fusions but those named.
    pub fn fusions(&self) -> Fusions {
        // parsing has refused other names
        Fusions::without(&self.no_fuse).unwrap_or_default()
    }

    /// Modules with an adapter; empty for all linear layers of the blocks.
    pub fn targets(&self) -> Vec<String> {
        targets(&self.targets)
    }

    /// The network to train.
    ///
    /// # Errors
    /// A shape that is unknown.
    pub fn config(&self) -> Result<ModelConfig, Error> {
        if let Some(name) = &self.shape {
            return named_shape(name);
        }
        let attention_bias = if self.qkv_bias { AttentionBias::Inputs } else { AttentionBias::None };
        Ok(ModelConfig {
            attention_bias,
            vocab_size: self.vocab,
            hidden_size: self.hidden,
            intermediate_size: self.ffn,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads(),
            head_dim: self.hidden / self.heads,
            ..small_config()
        })
    }

    /// # Errors
    /// Every option that is out of its range.
    pub fn check(&self) -> Result<(), OptionsError> {
        let mut checks = Checks::default();
        for (option, given, least) in [
            ("--hidden", self.hidden, 1),
            ("--layers", self.layers, 1),
            ("--heads", self.heads, 1),
            ("--kv_heads", self.kv_heads(), 1),
            ("--ffn", self.ffn, 1),
            ("--vocab", self.vocab, 2),
            ("--seq", self.seq, 2),
            ("--batch", self.batch, 1),
            ("--rank", self.rank, 1),
            ("--steps", self.steps, 1),
        ] {
            checks.at_least(option, given, least);
        }
        checks.below_one("--lora_dropout", self.lora_dropout);
        checks.offload_activations(self.memory.offload_activations, self.recompute);
        checks.mlp_chunks(self.memory.mlp.mlp_chunks);
        if self.heads > 0 && self.kv_heads() > 0 {
            checks.require(
                self.hidden.is_multiple_of(2 * self.heads),
                "--hidden",
                self.hidden,
                format!("must be a multiple of twice --heads ({})", self.heads),
            );
            checks.require(
                self.heads.is_multiple_of(self.kv_heads()),
                "--kv_heads",
                self.kv_heads(),
                format!("must divide --heads ({})", self.heads),
            );
        }
        checks.finish()
    }
}
