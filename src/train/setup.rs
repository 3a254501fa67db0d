//! From folders on disk to a network that can be loaded onto a device.

use super::adapter::spec_of_adapter;
use super::options::Precision;
use super::weights::WeightSource;
use crate::autograd::Recompute;
use crate::checkpoint::{Adapter, Checkpoint};
use crate::error::Error;
use crate::fuse::Fusions;
use crate::gpu::{Gpu, GpuError};
use crate::graph::layout::pack;
use crate::models::{ModelConfig, Network};
use crate::nn::WeightMode;
use crate::plan::{Bindings, ParameterSpace};
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
) -> Result<(Network, WeightSource), Error> {
    let config = ModelConfig::read(model_dir)?;
    let source = WeightSource::Checkpoint(Checkpoint::open(model_dir)?);
    source.check(&config)?;
    let network = Network {
        weights: WeightMode::Frozen(precision.weights()),
        activations: precision.activations(),
        adapter: adapter.map(|adapter| spec_of_adapter(&config, adapter)).transpose()?,
        recompute: Recompute::None,
        positions: config.max_position_embeddings,
        fusions: Fusions::default(),
        config,
    };
    Ok((network, source))
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
             tokenizer.json and config.json belong to different models",
            config.vocab_size
        ))),
        _ => Ok(()),
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
    let mut values: HashMap<String, &[f32]> = HashMap::new();
    for tensor in &adapter.tensors {
        values.insert(format!("{}.lora_A.weight", tensor.module), &tensor.a);
        values.insert(format!("{}.lora_B.weight", tensor.module), &tensor.b);
    }
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
