//! From folders on disk to a network that can be loaded onto a device.

use super::adapter::{AdapterError, frozen_parameters, spec_of_adapter};
use super::options::{FinetuneOptions, Method, Precision};
use super::plan::{Demand, Sizes};
use super::quantize::QuantizeOptions;
use super::trainer::Capacity;
use super::weights::WeightSource;
use crate::autograd::Recompute;
use crate::checkpoint::{Adapter, Checkpoint};
use crate::data::{Dataset, Samples, Tokenizer, epoch_order};
use crate::error::Error;
use crate::fuse::Fusions;
use crate::gpu::{Gpu, GpuError};
use crate::graph::layout::pack;
use crate::graph::rounded;
use crate::models::{ModelConfig, Network};
use crate::nn::{AdapterSpec, PlainLayers, Storage, WeightMode};
use crate::plan::{Bindings, ParameterSpace};
use crate::stop::StopFlag;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

/// The frozen network of a Hugging Face folder with an adapter on it, and its weights, checked against each other.
///
/// The table of rotary angles is sized for the model's longest text; lower [`Network::positions`] where less will come.
///
/// # Errors
/// Files that are missing, broken or of different models.
pub fn open_network(
    model_dir: &Path,
    adapter: Option<&Adapter>,
    precision: Precision,
    quantize: QuantizeOptions,
) -> Result<(Network, WeightSource), Error> {
    let config = ModelConfig::read(model_dir)?;
    let source = WeightSource::Checkpoint(Checkpoint::open(model_dir)?);
    source.check(&config)?;
    let quantize = quantize.for_source(&source, &config)?;
    let network = Network {
        weights: WeightMode::Frozen(quantize.storage(precision)),
        plain_layers: source.plain_layers(&config)?,
        activations: precision.activations(),
        adapter: adapter.map(|adapter| spec_of_adapter(&config, adapter)).transpose()?,
        recompute: Recompute::None,
        positions: config.max_position_embeddings,
        fusions: Fusions::default(),
        host_activations: false,
        mlp_chunks: 1,
        frozen: Vec::new(),
        config,
    };
    Ok((network, source))
}

/// The network that a run trains, with an adapter or, in full training, without. `positions` is the longest sample; the
/// policy of recomputation is left to a plan. `plain_layers` are those of the weights' source.
///
/// # Errors
/// Patterns of [`FinetuneOptions::freeze`] that full training cannot follow.
pub fn network_of(
    config: &ModelConfig,
    options: &FinetuneOptions,
    adapter: Option<AdapterSpec>,
    plain_layers: PlainLayers,
    positions: usize,
) -> Result<Network, AdapterError> {
    Ok(Network {
        weights: match options.method {
            Method::Lora => {
                let offload = options.offload.min(config.layers);
                WeightMode::Frozen(Storage { offload, ..options.quantize().storage(options.precision) })
            }
            Method::Full { .. } => WeightMode::Trainable,
        },
        plain_layers,
        activations: options.precision.activations(),
        adapter,
        recompute: Recompute::None,
        positions,
        fusions: Fusions::default(),
        host_activations: options.offload_activations,
        mlp_chunks: options.mlp_chunks,
        frozen: match options.method {
            Method::Lora => Vec::new(),
            Method::Full { .. } => frozen_parameters(config, &options.freeze)?,
        },
        config: config.clone(),
    })
}

/// The samples of a run, cut at `max_seq_length`.
///
/// # Errors
/// A file that is missing or broken, rows that leave nothing to train on, and a request to stop meanwhile.
pub fn open_data(
    options: &FinetuneOptions,
    tokenizer: &Tokenizer,
    stop: &StopFlag,
) -> Result<Dataset, Error> {
    let (seed, length) = (options.seed, options.max_seq_length);
    Ok(options.data.open_until(tokenizer, seed, length, Some(&options.out_dir), stop)?)
}

/// Tokens of the longest sample.
pub fn longest(data: &Dataset) -> usize {
    data.summary.train.longest.max(data.summary.validation.longest).max(1)
}

/// What the micro-batches of a run of `steps` optimiser steps are like, `micro_batch` samples at a time.
pub fn run_demand(data: &Dataset, options: &FinetuneOptions, micro_batch: usize, steps: usize) -> Demand {
    let (mut training, mut evaluation) = (HashMap::new(), HashMap::new());
    let mut capacity = Capacity { tokens: 1, labels: 1 };
    let mut add = |sizes: &mut HashMap<(usize, usize), usize>, samples: &Samples, micro: &[usize]| {
        let sum = |count: fn(&Samples, usize) -> usize| micro.iter().map(|&i| count(samples, i)).sum();
        let (tokens, labels): (usize, usize) = (sum(Samples::tokens_len), sum(Samples::label_count));
        capacity.tokens = capacity.tokens.max(tokens);
        capacity.labels = capacity.labels.max(labels);
        let padded = Capacity { tokens, labels }.padded();
        *sizes.entry((padded.tokens, padded.labels)).or_default() += 1;
    };
    let per_epoch = data.train.len().div_ceil(options.batch_size);
    for epoch in 0..steps.div_ceil(per_epoch) {
        let order = epoch_order(data.train.len(), options.data_seed(), epoch as u64, options.data.shuffle);
        for window in order.chunks(options.batch_size).take(steps - epoch * per_epoch) {
            for micro in window.chunks(micro_batch) {
                add(&mut training, &data.train, micro);
            }
        }
    }
    let all: Vec<usize> = (0..data.validation.len()).collect();
    all.chunks(micro_batch).for_each(|micro| add(&mut evaluation, &data.validation, micro));
    let largest = capacity.padded();
    let largest = (largest.tokens, largest.labels);
    let sizes = |all: &HashMap<(usize, usize), usize>| Sizes {
        largest: all.contains_key(&largest),
        smaller: all.keys().filter(|size| **size != largest).count(),
    };
    Demand {
        capacity,
        longest: longest(data),
        training_sizes: sizes(&training),
        evaluation_sizes: sizes(&evaluation),
        common: common_sizes(&training, measured_size(capacity).tokens),
        optimizer: options.optimizer,
        sampled: 0,
    }
}

/// Kernels are measured on micro-batches of no more tokens: larger ones only take longer.
const MEASURED_TOKENS: usize = 2048;

/// The size that stands for the largest micro-batch where kernels are measured: that one, or a smaller one with as many labels among
/// its tokens.
pub fn measured_size(capacity: Capacity) -> Capacity {
    let Capacity { tokens, labels } = capacity.padded();
    let measured = tokens.min(MEASURED_TOKENS);
    Capacity { tokens: measured, labels: labels * measured / tokens }.padded()
}

/// A class of sizes with less than this part of a training's tokens is rare.
const RARE: usize = 50;

/// The sizes with most tokens in a training, each of at most half the tokens of the one before it, the first of half of `largest`; of the
/// class with most tokens among those whose kernels are measured as one.
/// What lies between is served by the kernels of its neighbours, and what has few of the tokens, as the last of an epoch, is not worth
/// the measuring.
fn common_sizes(counts: &HashMap<(usize, usize), usize>, largest: usize) -> [Option<Capacity>; 2] {
    let mut most = largest / 2;
    let (mut classes, mut all) = (HashMap::new(), 0);
    for (&(tokens, _), count) in counts {
        *classes.entry(rounded(tokens)).or_insert(0) += tokens * count;
        all += tokens * count;
    }
    let of_class = |tokens: usize| classes.get(&rounded(tokens)).copied().unwrap_or(0);
    [(); 2].map(|()| {
        let smaller =
            counts.iter().filter(|((tokens, _), _)| *tokens <= most && of_class(*tokens) * RARE > all);
        // of equal ones always the same, whatever the order of the map
        let heaviest = smaller.max_by_key(|(size, count)| (of_class(size.0), size.0 * **count, **size))?;
        let &(tokens, labels) = heaviest.0;
        most = tokens / 2;
        Some(Capacity { tokens, labels })
    })
}

/// What micro-batches of a size are like, looked at once for each size.
pub fn demand_by_size(look: impl Fn(usize) -> Demand) -> impl Fn(usize) -> Demand {
    let known = RefCell::new(HashMap::new());
    move |micro_batch| *known.borrow_mut().entry(micro_batch).or_insert_with(|| look(micro_batch))
}

/// Refuses tokens that the model has no row for: they would read beyond its embedding.
///
/// # Errors
/// The largest token, where it is over the vocabulary.
pub fn check_vocabulary<'t>(
    tokens: impl IntoIterator<Item = &'t u32>,
    config: &ModelConfig,
) -> Result<(), Error> {
    match tokens.into_iter().max() {
        Some(&token) if token as usize >= config.vocab_size => Err(Error::input(format!(
            "the tokenizer gives the token {token}, but the model has {} (vocab_size in config.json); \
             tokenizer.json and config.json belong to different models, or a text has a token that was added for another one, as the \
             place of an image",
            config.vocab_size
        ))),
        _ => Ok(()),
    }
}

/// Refuses full training of a language model that is a part of another, whose other part would be lost.
pub(super) fn check_method(method: Method, config: &ModelConfig, model_dir: &Path) -> Result<(), Error> {
    match config.embedded && method != Method::Lora {
        true => Err(Error::input(format!(
            "{}: full training is of models that read text alone, and this one sees images too; train an adapter (engraft finetune)",
            model_dir.display()
        ))),
        false => Ok(()),
    }
}

/// Refuses to keep the best of a run that is never evaluated.
///
/// # Errors
/// No validation row, and options that need some.
pub fn check_validation(options: &FinetuneOptions, data: &Dataset) -> Result<(), Error> {
    match data.validation.is_empty() && options.keeps_best() {
        true => Err(Error::input(
            "--keep_best and --early_stopping_patience need validation rows: give --data.val_split_fraction above 0, or a \
             folder with a val file",
        )),
        false => Ok(()),
    }
}

/// Uploads an adapter for use alone, without room for gradients and moments, and binds it; gives the bytes allocated.
/// A parameter that the adapter has no values for stays unbound.
///
/// # Errors
/// A failed allocation.
pub fn bind_adapter(
    gpu: &Gpu,
    space: &ParameterSpace,
    adapter: Option<&Adapter>,
    bindings: &mut Bindings,
) -> Result<u64, GpuError> {
    let Some(adapter) = adapter.filter(|_| !space.entries().is_empty()) else { return Ok(0) };
    let values: HashMap<String, &[f32]> = adapter.parameters().collect();
    let buffer = gpu.allocate("the adapter", space.bytes())?;
    for (name, ty, offset) in space.entries() {
        if let Some(values) = values.get(name).filter(|values| values.len() == ty.shape.elements()) {
            let range = buffer.slice(*offset, ty.bytes());
            range.write(&pack(*ty, values));
            bindings.bind(name.clone(), range);
        }
    }
    Ok(buffer.size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_measured_on_a_part_of_a_large_micro_batch() {
        let size = |tokens, labels| Capacity { tokens, labels };
        assert_eq!(measured_size(size(500, 20)), size(512, 32));
        assert_eq!(measured_size(size(2048, 2047)), size(2048, 2048));
        assert_eq!(measured_size(size(8192, 4096)), size(2048, 1024));
        assert_eq!(measured_size(size(100_000, 32)), size(2048, 32));
    }

    #[test]
    fn common_sizes_have_most_of_the_tokens() {
        let counts = [
            ((2048, 2048), 1),
            ((1024, 512), 10),
            ((768, 512), 100),
            ((512, 32), 20),
            ((384, 384), 30),
            ((32, 32), 200),
        ];
        let common = |largest| {
            let sizes = common_sizes(&HashMap::from(counts), largest);
            sizes.map(|size| size.map(|size| (size.tokens, size.labels)))
        };
        assert_eq!(common(2048), [Some((768, 512)), Some((384, 384))]);
        assert_eq!(common(1024), [Some((384, 384)), Some((32, 32))]);
        assert_eq!(common(64), [Some((32, 32)), None]);
        assert_eq!(common(32), [None, None]);
        let epoch = HashMap::from([((512, 256), 100), ((64, 32), 1)]);
        assert_eq!(common_sizes(&epoch, 512), [None; 2], "what is left over at its end");
        // many sizes, each of few tokens, which one measurement serves
        let spread: HashMap<_, _> = (1..=64).map(|n| ((512 - n % 8 * 16, 32 * n), 1)).collect();
        let [Some(first), None] = common_sizes(&spread, 1024) else { panic!("none of {spread:?}") };
        assert!((400..=512).contains(&first.tokens), "{first:?}");
    }
}
