//! Weights against the configuration.

use super::{Status, Validation};
use crate::checkpoint::Checkpoint;
use crate::memory_size::memory_text;
use crate::models::{HEAD_WEIGHT, ModelConfig};
use crate::nn::PlainLayers;
use crate::train::quantize::{Quantize, QuantizeOptions};
use crate::train::weights::WeightSource;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Problems of one kind that are listed; more are counted.
const LISTED: usize = 8;

/// The headers of the files; gives how the linear layers are quantised, and which are not though others are.
pub(super) fn check_weights(
    all: &mut Validation,
    model_dir: &Path,
    config: Option<&ModelConfig>,
) -> (Quantize, PlainLayers) {
    let name = "weights";
    let unknown = (Quantize::None, PlainLayers::default());
    let checkpoint = match Checkpoint::open(model_dir) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            all.add(name, Status::Failed, error.to_string(), None);
            return unknown;
        }
    };
    let Some(config) = config else {
        let found = format!("{} tensors, whose shapes are not known", checkpoint.names().count());
        all.add(name, Status::Skipped, found, None);
        return unknown;
    };
    let shapes = config.expected_shapes();
    let check = |(name, dims): &(String, Vec<usize>)| {
        checkpoint.check([(name.as_str(), dims.as_slice())]).err().map(|error| error.to_string())
    };
    let whole = [checkpoint.check_embedded(config.embedded), checkpoint.check_tied(config.tied_names())];
    let whole = whole.into_iter().filter_map(|checked| checked.err().map(|error| error.to_string()));
    let problems: Vec<String> = whole.chain(shapes.iter().filter_map(check)).collect();
    for problem in problems.iter().take(LISTED) {
        all.add(name, Status::Failed, problem.clone(), None);
    }
    if problems.len() > LISTED {
        let found = format!("{} more of {} tensors", problems.len() - LISTED, shapes.len());
        all.add(name, Status::Failed, found, Some("compare config.json with the files of the weights"));
    }
    let quantised = match checkpoint.quantised() {
        Ok(dtype) => Quantize::ALL.into_iter().find(|kind| kind.dtype() == dtype).unwrap_or_default(),
        Err(error) => {
            all.add(name, Status::Failed, error.to_string(), None);
            return unknown;
        }
    };
    let mut plain_layers = PlainLayers::default();
    if problems.is_empty() {
        let mut types: BTreeMap<String, usize> = BTreeMap::new();
        for (tensor, _) in &shapes {
            let dtype = match checkpoint.quantised_type(tensor) {
                Ok(Some(ty)) => ty.dtype.name().to_owned(),
                _ => checkpoint.tensor(tensor).map_or_else(|_| "?".into(), |view| view.dtype.to_string()),
            };
            *types.entry(dtype).or_default() += 1;
        }
        let types: Vec<String> = types.iter().map(|(dtype, count)| format!("{count} in {dtype}")).collect();
        let bytes = memory_text(checkpoint.total_bytes());
        let found = format!("all {} tensors have their shapes ({}), {bytes}", shapes.len(), types.join(", "));
        all.add(name, Status::Passed, found, None);
        let source = WeightSource::Checkpoint(checkpoint);
        let stored = QuantizeOptions::default().for_source(&source, config);
        match stored.and_then(|_| Ok(source.plain_layers(config)?)) {
            Ok(plain) => plain_layers = plain,
            Err(error) => all.add(name, Status::Failed, error.to_string(), None),
        }
        let WeightSource::Checkpoint(checkpoint) = &source else { return unknown };
        let known: HashSet<&str> =
            shapes.iter().map(|(name, _)| name.as_str()).chain(checkpoint.block_parts()).collect();
        // buffers that some exporters store, the copy of a tied head, and what sees images, say nothing about the model
        let sees = |name: &str| {
            config.embedded
                && ["vision_tower.", "multi_modal_projector."].iter().any(|part| name.contains(part))
        };
        let usual = |name: &str| config.is_buffer(name) || name == HEAD_WEIGHT || sees(name);
        let extra: Vec<&str> = checkpoint.names().filter(|n| !known.contains(n) && !usual(n)).collect();
        if let Some(first) = extra.first() {
            let found = format!("{} tensors have no place in this model, such as {first}", extra.len());
            all.add(
                name,
                Status::Warning,
                found,
                Some("they are not read; is config.json that of the weights?"),
            );
        }
    }
    (quantised, plain_layers)
}
