//! `engraft plan`: what a fine-tuning run would take, from a configuration alone or with its data.

use super::finetune::{adapter_of, is_finished, resume_from};
use super::memory::{Advice, Combination, FitError, MemoryLimit, Planner};
use super::options::{FinetuneOptions, Method, WeightInit};
use super::out_dir;
use super::plan::Demand;
use super::quantize::Quantize;
use super::sampler::Prompts;
use super::setup::{
    check_method, check_validation, check_vocabulary, demand_by_size, longest, network_of, open_data,
    run_demand,
};
use super::weights::WeightSource;
use crate::autograd::Recompute;
use crate::checkpoint::Checkpoint;
use crate::data::{Dataset, Tokenizer};
use crate::error::Error;
use crate::gpu::{Gpu, GpuOptions};
use crate::graph::{DeviceProfile, LeafKind};
use crate::models::{ModelConfig, Network};
use crate::nn::PlainLayers;
use crate::plan::MemoryReport;
use crate::stop::StopFlag;
use serde::Serialize;

/// What a run would take on a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanReport {
    pub precision: String,
    /// Tokens of the longest sample.
    pub longest: usize,
    pub batch_size: usize,
    pub micro_batch_size: usize,
    /// Tokens and labels of the largest micro-batch, rounded up as they are planned.
    pub tokens: usize,
    pub labels: usize,
    /// The policy that was asked for, or that `auto` chose.
    pub recompute: Recompute,
    pub base_parameters: u64,
    pub trainable_parameters: u64,
    /// Most bytes on the device at a time, and what they are.
    pub peak_bytes: u64,
    pub bytes: MemoryReport,
    /// Bytes of host memory that stand in for the device's.
    pub host_bytes: u64,
    /// Planned for a device whose memory is the host's.
    pub unified_memory: bool,
    /// What counts against the limit: `peak_bytes`, and with `unified_memory` also `host_bytes`.
    pub needed_bytes: u64,
    /// Options that change nothing for the better on such a device.
    pub notes: Vec<String>,
    /// FLOPs of an optimiser step of the largest micro-batches, forward and reverse.
    pub step_flops: f64,
    /// FLOPs beyond those of a step that keeps all activations, as a share of these.
    pub extra_flops: f64,
    pub memory_limit: Option<u64>,
    /// Whether it fits the limit, where there is one.
    pub fits: Option<bool>,
    /// What to change where it does not.
    pub advice: Option<String>,
    /// Every policy at micro-batches of 1, 2, 4 … samples.
    pub combinations: Vec<CombinationReport>,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CombinationReport {
    #[serde(flatten)]
    pub combination: Combination,
    pub extra_flops: f64,
    pub fits: Option<bool>,
}

/// Plans the run of `options` on a network of this configuration. Without a data file every sample is taken to have
/// `max_seq_length` tokens, all but the first with a label.
///
/// # Errors
/// Data that cannot be read, neither data nor `max_seq_length`, targets that match no layer.
pub fn plan_run(
    options: FinetuneOptions,
    config: &ModelConfig,
    device: &DeviceProfile,
    limit: Option<MemoryLimit>,
) -> Result<PlanReport, Error> {
    planned(options, config, device, |planner, options| report(planner, options, limit))
}

/// Refuses what a run would refuse before it opens its model's weights, which need not be in the folder yet: options, folders, rows,
/// prompts, a device that is not there, and what does not fit its memory. To be asked before much is downloaded.
///
/// # Errors
/// Those of a run.
pub fn check_without_weights(options: &FinetuneOptions) -> Result<(), Error> {
    let mut options = options.clone();
    options.validate()?;
    if is_finished(&options) {
        // nothing is left to run
        return Ok(());
    }
    options.resume = resume_from(&options);
    out_dir::check(&options, options.resume.as_deref())?;
    let config = ModelConfig::read(&options.model_dir)?;
    check_method(options.method, &config, &options.model_dir)?;
    if options.method == (Method::Full { init: WeightInit::Checkpoint }) {
        Quantize::of_settings(&options.model_dir).check_full(&options.model_dir)?;
    }
    let (device, no_coop, memory_limit) = (options.gpu.clone(), options.no_coop, options.memory_limit);
    let gpu = Gpu::open(&GpuOptions { device, no_coop, memory_limit, ..GpuOptions::default() })?;
    let limit = MemoryLimit::of(memory_limit, gpu.free_memory());
    planned(options, &config, &gpu.profile(), |planner, options| {
        let choice = planner.choose(options.micro_batch(), options.recompute, limit)?;
        Ok(choice.plan.check(planner.device)?)
    })
}

/// What `then` makes of a planner for the run of `options`.
fn planned<T>(
    mut options: FinetuneOptions,
    config: &ModelConfig,
    device: &DeviceProfile,
    then: impl FnOnce(&Planner<'_>, &FinetuneOptions) -> Result<T, Error>,
) -> Result<T, Error> {
    check_method(options.method, config, &options.model_dir)?;
    let cut = config.max_position_embeddings;
    let mut sampled = 0;
    let without = options.data.sources.is_empty() && options.data.json_path.as_os_str().is_empty();
    let data = match without {
        true => None,
        false => {
            options.max_seq_length = Some(options.max_seq_length.unwrap_or(cut).min(cut));
            let tokenizer = Tokenizer::open(&options.model_dir)?;
            let data = open_data(&options, &tokenizer, &StopFlag::default())?;
            check_vocabulary(&[data.largest_token()], config)?;
            check_validation(&options, &data)?;
            let prompts = Prompts::of(&options, &tokenizer, &data, &options.data.prompt_form()?, cut)?;
            sampled = prompts.map_or(0, |prompts| prompts.longest());
            Some(data)
        }
    };
    let length = match (&data, options.max_seq_length) {
        (Some(data), _) => longest(data),
        (None, Some(length)) => length.min(cut),
        (None, None) => {
            return Err(Error::input("a plan without --data.json_path needs --max_seq_length"));
        }
    };
    let network = planned_network(&mut options, config, length.max(sampled))?;
    let demand = demand_by_size(|micro_batch| match &data {
        Some(data) => Demand { sampled, ..run_demand(data, &options, micro_batch, steps(data, &options)) },
        None => Demand { optimizer: options.optimizer, ..Demand::uniform(micro_batch, length) },
    });
    let (batch_size, resumed) = (options.batch_size, options.resume.is_some());
    let planner = Planner { network, device, batch_size, resumed, demand: &demand };
    then(&planner, &options)
}

/// The network that a run of `options` trains, as far as it is known without weights; `positions` is the longest sample.
///
/// # Errors
/// Targets that match no layer, an adapter to go on from that cannot be read, weights that are quantised in another way.
pub fn planned_network(
    options: &mut FinetuneOptions,
    config: &ModelConfig,
    positions: usize,
) -> Result<Network, Error> {
    let mut plain_layers = PlainLayers::default();
    if options.method == Method::Lora {
        // weights that cannot be read are for the run to complain of
        let quantize = match Checkpoint::open(&options.model_dir).map(WeightSource::Checkpoint) {
            Ok(source) => {
                plain_layers = source.plain_layers(config)?;
                options.quantize().for_source(&source, config)?
            }
            Err(_) => options.quantize().for_settings(&options.model_dir)?,
        };
        options.quantize = quantize.kind;
    }
    let adapter = match options.method {
        Method::Lora => Some(adapter_of(options, config)?.0),
        Method::Full { .. } => None,
    };
    Ok(network_of(config, options, adapter, plain_layers, positions)?)
}

fn report(
    planner: &Planner<'_>,
    options: &FinetuneOptions,
    limit: Option<MemoryLimit>,
) -> Result<PlanReport, Error> {
    let micro_batch = options.micro_batch();
    let fits = |bytes: u64| limit.map(|limit| bytes <= limit.bytes);
    let mut combinations = Vec::new();
    let sizes = std::iter::successors(Some(1), |n| Some(2 * n)).take_while(|&n| n <= options.batch_size);
    let mut sizes: Vec<usize> = sizes.chain([micro_batch]).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for &size in &sizes {
        let all = planner.kept_flops(size).map_err(FitError::from)?;
        for policy in planner.policies() {
            let combination = planner.combination(size, policy).map_err(FitError::from)?;
            combinations.push(CombinationReport {
                extra_flops: combination.flops / all - 1.0,
                fits: fits(combination.needed_bytes),
                combination,
            });
        }
    }
    let (recompute, advice) = match planner.choose(micro_batch, options.recompute, limit) {
        Ok(choice) => (choice.plan.recompute(), None),
        Err(FitError::Memory(error)) => (error.recompute, Some(*error.advice)),
        Err(other) => return Err(other.into()),
    };
    let plan = planner.plan(micro_batch, recompute).map_err(FitError::from)?;
    plan.check(planner.device)?;
    let kept = planner.kept_flops(micro_batch).map_err(FitError::from)?;
    let leaves = plan.graph.leaves().iter().filter(|leaf| leaf.kind == LeafKind::Trainable);
    let trainable = leaves.map(|leaf| plan.graph.shape_of(leaf.value).elements() as u64).sum();
    Ok(PlanReport {
        precision: options.precision.to_string(),
        longest: (planner.demand)(micro_batch).longest,
        batch_size: options.batch_size,
        micro_batch_size: micro_batch,
        tokens: plan.capacity.tokens,
        labels: plan.capacity.labels,
        recompute,
        base_parameters: planner.network.config.parameter_count(),
        trainable_parameters: trainable,
        peak_bytes: plan.memory.total(),
        bytes: plan.memory,
        host_bytes: plan.host_bytes,
        unified_memory: plan.unified_memory,
        needed_bytes: plan.needed_bytes(),
        notes: plan.moved_in_vain().into_iter().collect(),
        step_flops: plan.flops * (options.batch_size / micro_batch) as f64,
        extra_flops: plan.flops / kept - 1.0,
        memory_limit: limit.map(|limit| limit.bytes),
        fits: fits(plan.needed_bytes()),
        advice: advice.as_ref().map(Advice::to_string),
        combinations,
    })
}

/// Optimiser steps of the run.
pub(super) fn steps(data: &Dataset, options: &FinetuneOptions) -> usize {
    let all = data.train.len().div_ceil(options.batch_size) * options.epochs;
    options.max_steps.map_or(all, |max| all.min(max))
}
