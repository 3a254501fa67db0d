//! Between PEFT adapters on disk and the adapter of a network.

use super::optimiser::{Optimiser, OptimiserError};
use super::options::LayerRange;
use crate::checkpoint::{Adapter, AdapterConfig, AdapterTensor, TargetModules};
use crate::models::{ModelConfig, Network};
use crate::nn::AdapterSpec;
use globset::Glob;
use std::collections::{HashMap, HashSet};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum AdapterError {
    #[error("no module matches {wanted:?}; modules that can carry an adapter are {known}")]
    NoTarget { wanted: String, known: String },
    #[error("--freeze {pattern}: {reason}")]
    Freeze { pattern: String, reason: String },
    #[error("--lora_layers {layers}: the model has {count} layers, counted from 0")]
    NoLayer { layers: LayerRange, count: usize },
    #[error("--lora_layers and --freeze leave no layer with an adapter; name fewer")]
    NothingLeft,
    #[error("--freeze leaves no parameter to train; name fewer")]
    NothingTrained,
    #[error(
        "the adapter has the module {module}, which this model has not or which cannot carry an adapter; \
             is it an adapter of another model?"
    )]
    UnknownModule { module: String },
    #[error(
        "the adapter of {module} is for [{found_out}, {found_in}], the layer is [{outputs}, {inputs}]; \
             is it an adapter of another model?"
    )]
    Shape { module: String, found_out: usize, found_in: usize, outputs: usize, inputs: usize },
    #[error("the adapter has rank {found} in {module}, its configuration says {expected}")]
    Rank { module: String, expected: usize, found: usize },
}

/// An adapter on the modules that `targets` names (last part or full name, as PEFT matches; empty: all linear layers).
///
/// # Errors
/// A target that matches no layer.
pub fn spec_of_targets(
    config: &ModelConfig,
    targets: &[String],
    rank: usize,
    alpha: f64,
    dropout: f64,
) -> Result<AdapterSpec, AdapterError> {
    let names = |modules: Vec<(String, usize, usize)>| modules.into_iter().map(|(name, _, _)| name);
    // as in PEFT, all linear layers are those but the head
    let all: Vec<String> = match targets.is_empty() {
        true => names(Network::linear_modules(config)).collect(),
        false => names(Network::adaptable_modules(config)).collect(),
    };
    let matches = |module: &str, target: &str| module == target || module.ends_with(&format!(".{target}"));
    for target in targets {
        if !all.iter().any(|m| matches(m, target)) {
            let mut known: Vec<&str> = all.iter().filter_map(|m| m.rsplit('.').next()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(AdapterError::NoTarget { wanted: target.clone(), known: known.join(", ") });
        }
    }
    let modules =
        all.into_iter().filter(|m| targets.is_empty() || targets.iter().any(|t| matches(m, t))).collect();
    Ok(AdapterSpec { rank, scale: alpha / rank as f64, dropout, modules })
}

/// The same adapter on fewer modules: those in `layers` that none of the patterns (`*`, `?`, `[0-7]`) matches by full name.
///
/// # Errors
/// Layers that the model has not, a pattern that cannot be read or matches no module, nothing left.
pub fn restricted(
    config: &ModelConfig,
    spec: AdapterSpec,
    layers: Option<LayerRange>,
    freeze: &[String],
) -> Result<AdapterSpec, AdapterError> {
    let mut modules = spec.modules;
    if let Some(layers) = layers {
        let kept = layers.of(config.layers).ok_or(AdapterError::NoLayer { layers, count: config.layers })?;
        modules.retain(|module| layer_of(module).is_none_or(|layer| kept.contains(&layer)));
    }
    let all = Network::adaptable_modules(config);
    for pattern in freeze {
        let hits = hits(pattern, "module", all.iter().map(|(module, _, _)| module.as_str()))?;
        modules.retain(|module| !hits.contains(&module.as_str()));
    }
    if modules.is_empty() {
        return Err(AdapterError::NothingLeft);
    }
    Ok(AdapterSpec { modules, ..spec })
}

/// The parameters that one of the patterns matches by full name or by that of their module.
///
/// # Errors
/// A pattern that cannot be read or matches no parameter, nothing left to train.
pub fn frozen_parameters(config: &ModelConfig, freeze: &[String]) -> Result<Vec<String>, AdapterError> {
    let shapes = config.expected_shapes();
    let modules = || shapes.iter().map(|(name, _)| name.strip_suffix(".weight").unwrap_or(name));
    let mut frozen = HashSet::new();
    for pattern in freeze {
        frozen.extend(hits(pattern, "parameter", modules())?);
    }
    if modules().all(|module| frozen.contains(module)) {
        return Err(AdapterError::NothingTrained);
    }
    let names = shapes.iter().zip(modules()).filter(|(_, module)| frozen.contains(module));
    Ok(names.map(|((name, _), _)| name.clone()).collect())
}

/// The modules that a pattern of `--freeze` matches, by their names or those of their weights.
fn hits<'m>(
    pattern: &str,
    what: &str,
    modules: impl Iterator<Item = &'m str> + Clone,
) -> Result<Vec<&'m str>, AdapterError> {
    let said = |reason: String| AdapterError::Freeze { pattern: pattern.to_owned(), reason };
    let glob = Glob::new(pattern).map_err(|e| said(e.kind().to_string()))?.compile_matcher();
    let hit = |module: &&str| glob.is_match(module) || glob.is_match(format!("{module}.weight"));
    let found: Vec<&str> = modules.clone().filter(hit).collect();
    if found.is_empty() {
        let example = modules.clone().find(|name| name.contains(".layers.")).unwrap_or_default();
        return Err(said(format!("matches no {what}; they have names such as {example}")));
    }
    Ok(found)
}

/// The layer that a module belongs to; `None` for those outside of the blocks.
fn layer_of(module: &str) -> Option<usize> {
    module.strip_prefix("model.layers.")?.split_once('.')?.0.parse().ok()
}

/// The adapter that a PEFT folder holds, checked against the model.
///
/// # Errors
/// Modules or shapes that are not the model's.
pub fn spec_of_adapter(config: &ModelConfig, adapter: &Adapter) -> Result<AdapterSpec, AdapterError> {
    let known: HashMap<String, (usize, usize)> =
        Network::adaptable_modules(config).into_iter().map(|(name, o, i)| (name, (o, i))).collect();
    for tensor in &adapter.tensors {
        let module = tensor.module.clone();
        let &(outputs, inputs) =
            known.get(&module).ok_or_else(|| AdapterError::UnknownModule { module: module.clone() })?;
        if (tensor.outputs, tensor.inputs) != (outputs, inputs) {
            let (found_out, found_in) = (tensor.outputs, tensor.inputs);
            return Err(AdapterError::Shape { module, found_out, found_in, outputs, inputs });
        }
        if tensor.r != adapter.config.r {
            return Err(AdapterError::Rank { module, expected: adapter.config.r, found: tensor.r });
        }
    }
    Ok(AdapterSpec {
        rank: adapter.config.r,
        scale: adapter.config.scale(),
        dropout: adapter.config.lora_dropout,
        modules: adapter.tensors.iter().map(|t| t.module.clone()).collect(),
    })
}

/// Sets the trainable parameters to an adapter's values.
///
/// # Errors
/// A module that is not trained.
pub fn load(optimiser: &Optimiser, adapter: &Adapter) -> Result<(), OptimiserError> {
    for tensor in &adapter.tensors {
        optimiser.set(&format!("{}.lora_A.weight", tensor.module), &tensor.a)?;
        optimiser.set(&format!("{}.lora_B.weight", tensor.module), &tensor.b)?;
    }
    Ok(())
}

/// The trainable parameters as a PEFT adapter.
///
/// # Errors
/// What the device reported.
pub fn extract(
    optimiser: &Optimiser,
    config: &ModelConfig,
    settings: AdapterConfig,
) -> Result<Adapter, OptimiserError> {
    let mut values: HashMap<String, Vec<f32>> = optimiser.parameters()?.into_iter().collect();
    let mut tensors = Vec::new();
    for (module, outputs, inputs) in Network::adaptable_modules(config) {
        let a = values.remove(&format!("{module}.lora_A.weight"));
        let b = values.remove(&format!("{module}.lora_B.weight"));
        if let (Some(a), Some(b)) = (a, b) {
            tensors.push(AdapterTensor { module, a, b, r: settings.r, inputs, outputs });
        }
    }
    Ok(Adapter { config: settings, tensors })
}

/// PEFT's configuration of an adapter on these modules: last parts of their names where they say the same as the full
/// names would, full names else.
pub fn settings_of(
    config: &ModelConfig,
    spec: &AdapterSpec,
    alpha: f64,
    base: Option<String>,
) -> AdapterConfig {
    let last = |m: &String| m.rsplit('.').next().unwrap_or(m).to_string();
    let mut short: Vec<String> = spec.modules.iter().map(last).collect();
    short.sort_unstable();
    short.dedup();
    let covered =
        Network::adaptable_modules(config).iter().filter(|(name, _, _)| short.contains(&last(name))).count();
    let names = if covered == spec.modules.len() { short } else { spec.modules.clone() };
    AdapterConfig {
        r: spec.rank,
        lora_alpha: alpha,
        lora_dropout: spec.dropout,
        target_modules: TargetModules::Names(names),
        exclude_modules: None,
        base_model_name_or_path: base,
        revision: None,
        use_rslora: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::bench::small_config;

    fn modules(layers: Option<&str>, freeze: &[&str]) -> Result<Vec<String>, String> {
        let config = ModelConfig { layers: 12, ..small_config() };
        let spec = spec_of_targets(&config, &["q_proj".into(), "o_proj".into()], 8, 16.0, 0.0).unwrap();
        let layers = layers.map(|text| text.parse().unwrap());
        let freeze: Vec<String> = freeze.iter().map(|text| (*text).to_owned()).collect();
        restricted(&config, spec, layers, &freeze).map(|spec| spec.modules).map_err(|e| e.to_string())
    }

    #[test]
    fn adapters_sit_only_where_wanted() {
        assert_eq!(modules(None, &[]).unwrap().len(), 24);
        let last = modules(Some("last-2"), &[]).unwrap();
        assert!(last.len() == 4 && last.iter().all(|m| m.contains(".10.") || m.contains(".11.")), "{last:?}");
        assert_eq!(modules(Some("first-3"), &["*.o_proj"]).unwrap().len(), 3);
        assert_eq!(modules(Some("4-5"), &[]).unwrap().len(), 4);
        let upper = modules(None, &["model.layers.[0-7].*"]).unwrap();
        assert!(upper.len() == 8 && upper.iter().all(|m| layer_of(m).unwrap() > 7), "{upper:?}");
        assert_eq!(modules(None, &["model.layers.?.self_attn.q_proj.weight"]).unwrap().len(), 14);
    }

    #[test]
    fn what_leaves_nothing_is_refused() {
        for (layers, freeze, said) in [
            (Some("last-13"), &[][..], "the model has 12 layers"),
            (Some("11-12"), &[], "the model has 12 layers"),
            (None, &["*"], "leave no layer"),
            (Some("first-1"), &["model.layers.0.*"], "leave no layer"),
            (None, &["model.blocks.*"], "such as model.layers.0.self_attn.q_proj"),
            (None, &["model.layers.[0-"], "--freeze model.layers.[0-"),
        ] {
            let error = modules(layers, freeze).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        for text in ["", "last", "last-0", "5-3", "-3", "1-2-3", "some"] {
            assert!(text.parse::<LayerRange>().is_err(), "{text}");
        }
    }
}
