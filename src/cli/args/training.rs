//! How a run trains, evaluates, saves and ends.

use super::{
    DataArgs, DeviceArgs, FreezeArgs, LoggingArgs, MemoryArgs, PrecisionArgs, SplitArgs, TuneArgs, boolean,
    count,
};
use crate::train::duration::{DurationError, parse_duration};
use crate::train::options::{Example, FinetuneOptions, OptimizerKind, RecomputeKind};
use crate::train::resume::is_saved_step;
use crate::train::schedule::ScheduleKind;
use clap::{ArgAction, Args};
use std::path::{Path, PathBuf};

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
    /// Optimiser steps between saves to step-NNNNNN [default: by time, see --autosave]
    #[arg(long, aliases = ["save-interval", "train.save_interval"], value_name = "N", value_parser = count)]
    pub save_interval: Option<usize>,
    /// Without save_interval, time between saves for --resume, of which the newest stays until the end; 0 for none
    #[arg(long, value_name = "TIME", default_value = "20m", value_parser = time_or_never)]
    pub autosave: f64,
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
    #[command(flatten)]
    pub freeze: FreezeArgs,
    /// Optimiser steps between printed lines; the metrics have every step [default: about fifty lines]
    #[arg(long, aliases = ["log-interval", "train.log_interval"], value_name = "N", value_parser = count)]
    pub log_interval: Option<usize>,
    /// Folder for the result, the metrics and the hyperparameters
    #[arg(long, alias = "out-dir", value_name = "DIR", default_value = "out")]
    pub out_dir: PathBuf,
}

impl TrainingArgs {
    /// Options of a run without an adapter's.
    pub(super) fn options(
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
        // `--resume MODEL_DIR`: what follows an option that may stand alone is taken for its value
        let (model_dir, resume) = match self.resume {
            Some(folder) if model_dir.as_os_str().is_empty() && is_model(&folder) => {
                (folder, Some("auto".into()))
            }
            resume => (model_dir, resume),
        };
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
            freeze: self.freeze.patterns(),
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
            autosave: (self.autosave != 0.0).then_some(self.autosave),
            keep_last: self.keep_last,
            keep_best: self.keep_best,
            early_stopping_patience: self.early_stopping_patience,
            early_stopping_min_delta: self.early_stopping_min_delta,
            max_time: self.max_time,
            resume,
            log_interval: self.log_interval,
            logger_name: self.logging.logger_name,
            seed: self.seed,
            recompute: self.recompute,
            offload: self.memory.offload,
            offload_activations: self.memory.offload_activations,
            mlp_chunks: self.memory.mlp.mlp_chunks,
            memory_limit: self.memory.memory_limit,
            gpu: device.gpu,
            no_coop: device.no_coop,
            tune: tune.tune,
            ..FinetuneOptions::default()
        }
    }
}

/// Whether a folder is a model's, and no saved step.
fn is_model(folder: &Path) -> bool {
    folder.join("config.json").is_file() && !is_saved_step(folder)
}

/// A span of time, or 0 for never.
fn time_or_never(text: &str) -> Result<f64, DurationError> {
    match text.trim().parse::<f64>() {
        Ok(0.0) => Ok(0.0),
        _ => parse_duration(text),
    }
}

fn betas(words: &str) -> Result<(f64, f64), String> {
    let numbers: Option<Vec<f64>> = words.split(',').map(|word| word.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[first, second]) => Ok((first, second)),
        _ => Err("must be two numbers, such as 0.9,0.95".into()),
    }
}
