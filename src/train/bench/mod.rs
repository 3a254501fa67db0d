//! The speed of whole LoRA training steps: a Llama with random weights on random tokens, no files.
//!
//! Every step is one micro-batch of `batch` samples in which every token but the first of a sample carries a label. The
//! first step plans and compiles, so it is timed by itself; rates come from the median of the others.

use crate::autograd::Recompute;
use crate::data::{MicroBatch, Sample};
use crate::error::Error;
use crate::fuse::Fusions;
use crate::gpu::{DispatchTime, Gpu};
use crate::graph::Cost;
use crate::models::{
    AttentionBias, BlockNorms, Family, JoinedLayers, ModelConfig, Network, QueryKeyNorms, Rope, RopeScaling,
};
use crate::nn::{PlainLayers, Storage, WeightMode};
use crate::ops::activation::Activation;
use crate::ops::adamw::Hyper;
use crate::train::adapter::spec_of_targets;
use crate::train::memory::{MemoryLimit, Planner};
use crate::train::options::TuneMode;
use crate::train::options::{Precision, RecomputeKind};
use crate::train::plan::Demand;
use crate::train::quantize::QuantizeOptions;
use crate::train::trainer::{PendingStep, StepOutcome, Trainer, TrainerError};
use crate::train::tuning::{TuneProgress, TuneReport, Tuner};
use crate::train::weights::WeightSource;
use serde::Serialize;
use std::time::Instant;
use transfers::TransferReport;

pub mod kernels;
pub mod trace;
pub mod transfers;

/// What is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchTrainOptions {
    /// The network; its weights are random.
    pub config: ModelConfig,
    /// Tokens per sample.
    pub seq: usize,
    /// Samples per step.
    pub batch: usize,
    pub rank: usize,
    /// Probability of dropping an element of the adapter's input.
    pub dropout: f64,
    /// Modules with an adapter; empty for all linear layers of the blocks.
    pub targets: Vec<String>,
    /// Timed steps, after one that is not.
    pub steps: usize,
    pub precision: Precision,
    /// How frozen weights are held beside the precision.
    pub quantize: QuantizeOptions,
    pub recompute: RecomputeKind,
    /// Bytes of device memory that the network may take; `None`: what is free, where the platform tells.
    pub memory_limit: Option<u64>,
    /// Blocks whose frozen weights stay in host memory.
    pub offload: usize,
    /// What blocks that are made again begin from waits in host memory.
    pub offload_activations: bool,
    /// Chunks of tokens that an MLP takes one after the other.
    pub mlp_chunks: usize,
    pub tune: TuneMode,
    pub fusions: Fusions,
}

impl Default for BenchTrainOptions {
    fn default() -> Self {
        BenchTrainOptions {
            config: small_config(),
            seq: 128,
            batch: 4,
            rank: 8,
            dropout: 0.0,
            targets: ["q_proj", "k_proj", "v_proj", "o_proj"].map(String::from).to_vec(),
            steps: 20,
            precision: Precision::default(),
            quantize: QuantizeOptions::default(),
            recompute: RecomputeKind::NONE,
            memory_limit: None,
            offload: 0,
            offload_activations: false,
            mlp_chunks: 1,
            tune: TuneMode::default(),
            fusions: Fusions::default(),
        }
    }
}

/// The network that the figures in `docs/benchmarks.md` are of, where nothing else is said.
pub fn small_config() -> ModelConfig {
    ModelConfig {
        embedded: false,
        family: Family::Llama,
        vocab_size: 2048,
        hidden_size: 256,
        intermediate_size: 768,
        layers: 4,
        heads: 4,
        kv_heads: 4,
        head_dim: 64,
        norm_eps: 1e-5,
        layer_norms: false,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        partial_rotary_dim: None,
        unturned_layers: Vec::new(),
        max_position_embeddings: 131_072,
        tied_head: false,
        attention_bias: AttentionBias::None,
        mlp_bias: false,
        joined_layers: JoinedLayers::None,
        query_key_norms: QueryKeyNorms::None,
        sliding_window: None,
        full_layers: Vec::new(),
        local_rope: None,
        activation: Activation::Silu,
        gated_mlp: true,
        parallel_residual: false,
        unit_offset: false,
        block_norms: BlockNorms::Before,
        scaled_embedding: false,
        query_pre_attn_scalar: None,
        attention_soft_cap: None,
        logit_soft_cap: None,
        multipliers: None,
        query_scaling: None,
        dropouts: Vec::new(),
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchTrainReport {
    /// Tokens of a step over the median time of a step.
    pub tokens_per_s: f64,
    /// 2 FLOPs per weight of the base's products and token forward and 2 in reverse, as frozen weights have no gradient of their
    /// own; attention, adapters and what is computed twice not counted.
    pub tflop_per_s: f64,
    /// All FLOPs of the forward and the reverse pass: attention, adapters and what is computed twice too.
    pub step_tflop_per_s: f64,
    pub step_ms_median: f64,
    /// Time of the first step, with planning and the compilation of its kernels.
    pub first_step_s: f64,
    /// Bytes of all buffers on the device.
    pub peak_device_bytes: u64,
    /// Most memory of the process in MiB, a software device's buffers included; known on Linux alone.
    pub peak_rss_mb: Option<f64>,
    pub device: String,
    pub driver: String,
    /// Mean loss of a label in nats, at the first and at the last step.
    pub loss_first: f64,
    pub loss_last: f64,
}

/// One kind of kernel in one step.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    pub kernel: &'static str,
    pub detail: String,
    pub dispatches: usize,
    pub seconds: f64,
    pub cost: Cost,
}

/// A measurement that is set up: the trainer and its micro-batch.
pub struct BenchTrain {
    trainer: Trainer,
    batch: MicroBatch,
    /// Tokens per sample.
    seq: usize,
    steps: usize,
    taken: u64,
    /// FLOPs per token, as [`BenchTrainReport::tflop_per_s`] counts them.
    token_flops: f64,
    /// FLOPs per step, as [`BenchTrainReport::step_tflop_per_s`] counts them.
    step_flops: f64,
    tuned: TuneReport,
    chosen: String,
}

impl BenchTrain {
    /// Makes the network with random weights and its micro-batch of random tokens.
    ///
    /// # Errors
    /// Targets that name no layer, shapes that do not fit together, a failed allocation.
    pub fn new(
        gpu: &Gpu,
        options: &BenchTrainOptions,
        progress: &mut dyn FnMut(&TuneProgress),
    ) -> Result<Self, Error> {
        let config = options.config.clone();
        let adapter = spec_of_targets(
            &config,
            &options.targets,
            options.rank,
            2.0 * options.rank as f64,
            options.dropout,
        )?;
        let layers = config.layers;
        let products = Network::adaptable_modules(&config).into_iter();
        let token_flops = 4.0 * products.map(|(_, outputs, inputs)| (outputs * inputs) as f64).sum::<f64>();
        let network = Network {
            config,
            weights: WeightMode::Frozen(Storage {
                offload: options.offload.min(layers),
                ..options.quantize.storage(options.precision)
            }),
            activations: options.precision.activations(),
            adapter: Some(adapter),
            recompute: Recompute::None,
            plain_layers: PlainLayers::default(),
            positions: options.seq,
            fusions: options.fusions,
            host_activations: options.offload_activations,
            mlp_chunks: options.mlp_chunks,
            frozen: Vec::new(),
        };
        let batch = random_batch(options);
        let limit = MemoryLimit::of(options.memory_limit.or(gpu.memory_limit()), gpu.free_memory());
        let demand = |samples| Demand::uniform(samples, options.seq);
        let choose = |gpu: &Gpu| {
            let (network, batch_size) = (network.clone(), options.batch);
            let planner =
                Planner { network, device: &gpu.profile(), batch_size, resumed: false, demand: &demand };
            planner.choose(options.batch, options.recompute, limit)
        };
        let mut choice = choose(gpu)?;
        let tuned = Tuner::new(options.tune).prepare(gpu, &choice.plan.graph, progress)?;
        if options.tune != TuneMode::Off {
            // other kernels may need other scratch space
            choice = choose(gpu)?;
        }
        let lines = [Some(choice.describe(options.recompute)), choice.plan.moved_in_vain()];
        let chosen = lines.into_iter().flatten().collect::<Vec<_>>().join("\n");
        let step_flops = choice.plan.flops;
        let source = WeightSource::random(&choice.plan.network.config, 0);
        let trainer = Trainer::from_plan(gpu, choice.plan, &source, 0)?;
        let (seq, steps) = (options.seq, options.steps);
        Ok(BenchTrain { trainer, batch, seq, steps, taken: 0, token_flops, step_flops, tuned, chosen })
    }

    /// Takes the first step and then the timed ones.
    ///
    /// # Errors
    /// What the device reported.
    pub fn run(&mut self) -> Result<BenchTrainReport, Error> {
        let labels = self.batch.label_count() as f64;
        let start = Instant::now();
        let mut losses = vec![self.step()?.loss_sum / labels];
        let first = start.elapsed().as_secs_f64();
        let mut peak = self.trainer.gpu().allocated_bytes();
        // as a run does: the outcome of a step is read while the device works on the next one
        let mut times = Vec::with_capacity(self.steps);
        let mut waiting = None;
        let mut since = Instant::now();
        for step in 0..=self.steps.max(1) {
            let submitted = if step < self.steps.max(1) { Some(self.submit()?) } else { None };
            if let Some(earlier) = std::mem::replace(&mut waiting, submitted) {
                let (outcome, done) = PendingStep::timed_outcome(earlier)?;
                losses.push(outcome.loss_sum / labels);
                times.push((done - since).as_secs_f64());
                since = done;
            }
            peak = peak.max(self.trainer.gpu().allocated_bytes());
        }
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let info = self.trainer.gpu().info();
        let tokens_per_s = self.batch.tokens_len() as f64 / median;
        Ok(BenchTrainReport {
            tokens_per_s,
            tflop_per_s: tokens_per_s * self.token_flops / 1e12,
            step_tflop_per_s: self.step_flops / median / 1e12,
            step_ms_median: median * 1e3,
            first_step_s: first,
            peak_device_bytes: peak,
            peak_rss_mb: peak_rss_mib(),
            device: info.name.clone(),
            driver: info.driver.clone(),
            loss_first: losses[0],
            loss_last: losses[losses.len() - 1],
        })
    }

    /// One optimiser step, waited for.
    ///
    /// # Errors
    /// What the device reported.
    pub fn step(&mut self) -> Result<StepOutcome, TrainerError> {
        self.submit()?.outcome()
    }

    fn submit(&mut self) -> Result<PendingStep, TrainerError> {
        self.taken += 1;
        self.trainer.begin()?;
        self.trainer.accumulate(&self.batch, 1.0 / self.batch.label_count() as f32)?;
        self.trainer.step_later(&Hyper {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            clip: None,
            inverse_scale: 1.0,
            step: self.taken,
            ..Hyper::default()
        })
    }

    /// Every dispatch of a step (forward, reverse, update), in the fastest of three.
    ///
    /// # Errors
    /// What the device reported.
    pub fn dispatches(&mut self) -> Result<Vec<DispatchTime>, Error> {
        let mut passes = Vec::new();
        for _ in 0..3 {
            passes.push(self.trainer.time(&self.batch)?);
        }
        let total = |pass: &Vec<DispatchTime>| pass.iter().map(|t| t.seconds).sum::<f64>();
        passes.sort_by(|a, b| total(a).total_cmp(&total(b)));
        let mut fastest = passes.swap_remove(0);
        // a plan counts one segment: it does not know the samples
        let visible = visible_share(self.batch.tokens_len(), self.seq);
        for dispatch in fastest.iter_mut().filter(|d| d.kernel.starts_with("attention")) {
            dispatch.cost.flops *= visible;
        }
        Ok(fastest)
    }

    /// What a step moves between host and device memory, `dispatches` being its own; `None` where nothing.
    ///
    /// # Errors
    /// What the device reported.
    pub fn transfers(&mut self, dispatches: &[DispatchTime]) -> Result<Option<TransferReport>, Error> {
        let weights = self.trainer.transfers(&self.batch)?;
        Ok(TransferReport::new(weights.as_ref(), dispatches))
    }

    /// The measuring of kernels that went before.
    pub fn tuned(&self) -> &TuneReport {
        &self.tuned
    }

    /// The policy of recomputation, its memory and its work, to read.
    pub fn chosen(&self) -> &str {
        &self.chosen
    }

    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }
}

/// Of the pairs of `tokens` that causal attention looks at in one segment, the share that it looks at in segments of
/// `segment`.
pub fn visible_share(tokens: usize, segment: usize) -> f64 {
    (segment.min(tokens) + 1) as f64 / (tokens + 1) as f64
}

/// Dispatches added up by kernel and detail, longest first: products of different extents are different kinds.
pub fn by_kind(dispatches: &[DispatchTime]) -> Vec<KernelTime> {
    let mut kinds: Vec<KernelTime> = Vec::new();
    for d in dispatches {
        match kinds.iter_mut().find(|k| k.kernel == d.kernel && k.detail == d.detail) {
            Some(kind) => {
                kind.dispatches += 1;
                kind.seconds += d.seconds;
                kind.cost += d.cost;
            }
            None => kinds.push(KernelTime {
                kernel: d.kernel,
                detail: d.detail.clone(),
                dispatches: 1,
                seconds: d.seconds,
                cost: d.cost,
            }),
        }
    }
    kinds.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    kinds
}

fn random_batch(options: &BenchTrainOptions) -> MicroBatch {
    // Knuth's linear congruential generator: its high bits are even enough for tokens
    let mut state = 1u64;
    let mut token = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % options.config.vocab_size as u64) as u32
    };
    let samples: Vec<Sample> =
        (0..options.batch).map(|_| Sample::new((0..options.seq).map(|_| token()).collect(), 0)).collect();
    MicroBatch::from_samples(&samples)
}

/// The most memory that the process has had in RAM, in MiB.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_of_a_sample_is_a_label() {
        let options = BenchTrainOptions {
            config: ModelConfig { vocab_size: 7, ..small_config() },
            seq: 5,
            batch: 3,
            ..Default::default()
        };
        let batch = random_batch(&options);
        assert_eq!((batch.tokens_len(), batch.label_count()), (15, 12));
        assert!(batch.tokens.iter().all(|&t| t < 7));
        assert!(batch.tokens.iter().any(|&t| t != batch.tokens[0]));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells_the_peak_memory() {
        assert!(peak_rss_mib().is_some_and(|mib| mib > 1.0));
    }
}
