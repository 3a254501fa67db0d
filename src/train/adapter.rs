//! Between PEFT adapters on disk and the adapter of a network.

use super::optimiser::{Optimiser, OptimiserError};
use super::options::LayerRange;
use crate::checkpoint::{Adapter, AdapterConfig, AdapterTensor, SavedModule, TargetModules};
use crate::models::{ModelConfig, Network};
use crate::nn::AdapterSpec;
use globset::Glob;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum AdapterError {
    #[error(
        "no module matches {wanted:?}; modules that can carry an adapter are {known}{} (--modules_to_save trains {whole} whole)",
        hint.as_deref().unwrap_or_default()
    )]
    NoTarget { wanted: String, known: String, hint: Option<String>, whole: &'static str },
    #[error("--freeze {pattern}: {reason}")]
    Freeze { pattern: String, reason: String },
    #[error("--lora_layers {layers}: the model has {count} layers, counted from 0")]
    NoLayer { layers: LayerRange, count: usize },
    #[error("--lora_layers and --freeze leave no layer with an adapter; name fewer")]
    NothingLeft,
    #[error("--modules_to_save {wanted}: {reason}")]
    NothingToSave { wanted: String, reason: String },
    #[error("--freeze leaves no parameter to train; name fewer")]
    NothingTrained,
    #[error(
        "the adapter has the module {module}, which this model has not or which cannot carry an adapter; \
             is it an adapter of another model?"
    )]
    UnknownModule { module: String },
    #[error(
        "the adapter has the module {module}, of the part that sees images, and engraft adapts the language model alone; train it with \
             exclude_modules=\".*vision_tower.*\" in PEFT's LoraConfig, or with engraft"
    )]
    Sees { module: String },
    #[error(
        "the adapter of {module} is for [{found_out}, {found_in}], the layer is [{outputs}, {inputs}]; \
             is it an adapter of another model?"
    )]
    Shape { module: String, found_out: usize, found_in: usize, outputs: usize, inputs: usize },
    #[error(
        "the adapter has a whole weight of {module}, {found:?}, the model has {expected:?}; is it an adapter of another model, \
             or was the vocabulary resized?"
    )]
    SavedShape { module: String, found: Vec<usize>, expected: Vec<usize> },
    #[error(
        "the adapter has a whole weight of {module}, which this model has not or which is the head as well; is it an adapter of \
             another model?"
    )]
    UnknownSaved { module: String },
    #[error("the adapter has rank {found} in {module}, its configuration says {expected}")]
    Rank { module: String, expected: usize, found: usize },
    #[error(
        "{0}: is an adapter, and its base_model_name_or_path {1}; give the folder of the base model first, and the adapter as \
             --adapter {0}",
        folder.display(),
        named.as_ref().map_or("is not set".into(), |named| format!("is {named:?}, which is no folder here"))
    )]
    NoBase { folder: PathBuf, named: Option<String> },
    #[error(
        "{}: is an adapter, and --adapter {} is another; give the folder of the base model in its place",
        folder.display(),
        other.display()
    )]
    TwoAdapters { folder: PathBuf, other: PathBuf },
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
    let targets = &config.own_names(targets);
    for target in targets {
        if !all.iter().any(|m| is_called(m, target)) {
            let mut known: Vec<&str> = all.iter().filter_map(|m| m.rsplit('.').next()).collect();
            known.sort_unstable();
            known.dedup();
            return Err(AdapterError::NoTarget {
                wanted: target.clone(),
                known: known.join(", "),
                hint: config.joined_as(target).map(|(one, parts)| {
                    format!(
                        "; {} are the layer {one} in this model: name that, or all of them",
                        parts.join(", ")
                    )
                }),
                whole: match config.layer_norms {
                    true => "an embedding or a head",
                    false => "an embedding, a head or norms",
                },
            });
        }
    }
    let modules =
        all.into_iter().filter(|m| targets.is_empty() || targets.iter().any(|t| is_called(m, t))).collect();
    Ok(AdapterSpec { rank, scale: alpha / rank as f64, dropout, modules, saved: Vec::new() })
}

/// The same adapter beside modules that are trained in full (last parts or full names). They carry no adapter.
///
/// # Errors
/// A name that is no module's, the embedding of a model whose head it is, nothing left for the adapter.
pub fn with_saved(
    config: &ModelConfig,
    mut spec: AdapterSpec,
    names: &[String],
) -> Result<AdapterSpec, AdapterError> {
    let all = Network::savable_modules(config);
    for name in names {
        let found =
            all.iter().filter(|(module, _)| is_called(module, name)).map(|(module, _)| module.clone());
        let before = spec.saved.len();
        spec.saved.extend(found);
        if spec.saved.len() > before {
            continue;
        }
        let weight = config.names().embedding_weight;
        let embedding = weight.strip_suffix(".weight").unwrap_or(weight);
        let reason = if config.tied_head && is_called(embedding, name) {
            "in this model it is the head as well, and both would come apart; lm_head can be trained alone"
                .into()
        } else if config.biased_modules().iter().any(|module| is_called(module, name)) {
            let linear = Network::linear_modules(config);
            let adaptable = linear.iter().any(|(module, _, _)| is_called(module, name));
            let way = if adaptable { "an adapter can sit on it" } else { "finetune_full trains it" };
            format!("in this model it has a bias, which is not trained beside an adapter; {way}")
        } else {
            let mut known: Vec<&str> = all.iter().filter_map(|(m, _)| m.rsplit('.').next()).collect();
            known.sort_unstable();
            known.dedup();
            format!("no module is called so; they are called {}", known.join(", "))
        };
        return Err(AdapterError::NothingToSave { wanted: name.clone(), reason });
    }
    // in the network's order, once each
    let wanted = std::mem::take(&mut spec.saved);
    spec.saved = all.into_iter().map(|(module, _)| module).filter(|module| wanted.contains(module)).collect();
    spec.modules.retain(|module| !spec.saved.contains(module));
    if spec.modules.is_empty() {
        let reason =
            "no layer is left that carries an adapter; engraft finetune_full trains everything".into();
        return Err(AdapterError::NothingToSave { wanted: names.join(","), reason });
    }
    Ok(spec)
}

/// Whether a name means a module: its full name or the end of it, in whole parts.
fn is_called(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
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
        modules.retain(|module| config.block_of(module).is_none_or(|layer| kept.contains(&layer)));
    }
    let all = Network::adaptable_modules(config);
    for pattern in freeze {
        let names = all.iter().map(|(module, _, _)| (module.as_str(), format!("{module}.weight")));
        let hits = hits(pattern, "module", names)?;
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
    let names = || {
        let module = |name: &'_ str| name.rsplit_once('.').map_or(name, |(module, _)| module).to_owned();
        shapes.iter().map(move |(name, _)| (name.as_str(), module(name)))
    };
    let mut frozen = HashSet::new();
    for pattern in freeze {
        frozen.extend(hits(pattern, "parameter", names())?);
    }
    if shapes.iter().all(|(name, _)| frozen.contains(name.as_str())) {
        return Err(AdapterError::NothingTrained);
    }
    let frozen = shapes.iter().filter(|(name, _)| frozen.contains(name.as_str()));
    Ok(frozen.map(|(name, _)| name.clone()).collect())
}

/// What a pattern of `--freeze` matches, of things that have a name and another one each.
fn hits<'m>(
    pattern: &str,
    what: &str,
    names: impl Iterator<Item = (&'m str, String)> + Clone,
) -> Result<Vec<&'m str>, AdapterError> {
    let said = |reason: String| AdapterError::Freeze { pattern: pattern.to_owned(), reason };
    let glob = Glob::new(pattern).map_err(|e| said(e.kind().to_string()))?.compile_matcher();
    let hit = |(name, other): &(&str, String)| glob.is_match(name) || glob.is_match(other);
    let found: Vec<&str> = names.clone().filter(hit).map(|(name, _)| name).collect();
    if found.is_empty() {
        let example = names.map(|(name, _)| name).find(|name| name.contains(".layers.")).unwrap_or_default();
        return Err(said(format!("matches no {what}; they have names such as {example}")));
    }
    Ok(found)
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
            known.get(&module).ok_or_else(|| match config.embedded && module.contains("vision_tower") {
                true => AdapterError::Sees { module: module.clone() },
                false => AdapterError::UnknownModule { module: module.clone() },
            })?;
        if (tensor.outputs, tensor.inputs) != (outputs, inputs) {
            let (found_out, found_in) = (tensor.outputs, tensor.inputs);
            return Err(AdapterError::Shape { module, found_out, found_in, outputs, inputs });
        }
        if tensor.r != adapter.config.r {
            return Err(AdapterError::Rank { module, expected: adapter.config.r, found: tensor.r });
        }
    }
    let savable: HashMap<String, Vec<usize>> = Network::savable_modules(config).into_iter().collect();
    for saved in &adapter.saved {
        let module = saved.module.clone();
        match savable.get(&module) {
            None => return Err(AdapterError::UnknownSaved { module }),
            Some(expected) if *expected != saved.shape => {
                let (found, expected) = (saved.shape.clone(), expected.clone());
                return Err(AdapterError::SavedShape { module, found, expected });
            }
            Some(_) => {}
        }
    }
    Ok(AdapterSpec {
        rank: adapter.config.r,
        scale: adapter.config.scale(),
        dropout: adapter.config.lora_dropout,
        modules: adapter.tensors.iter().map(|t| t.module.clone()).collect(),
        saved: adapter.saved.iter().map(|s| s.module.clone()).collect(),
    })
}

/// Sets the trainable parameters to an adapter's values.
///
/// # Errors
/// A module that is not trained.
pub fn load(optimiser: &Optimiser, adapter: &Adapter) -> Result<(), OptimiserError> {
    adapter.parameters().try_for_each(|(name, values)| optimiser.set(&name, values))
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
    let mut saved = Vec::new();
    for (module, shape) in Network::savable_modules(config) {
        if let Some(values) = values.remove(&format!("{module}.weight")) {
            saved.push(SavedModule { module, shape, values });
        }
    }
    Ok(Adapter { config: settings, tensors, saved, embedded: config.embedded })
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
    // modules that are trained in full may be named too, as PEFT does
    let saved = spec.saved.iter().filter(|m| short.contains(&last(m))).count();
    let names = if covered == spec.modules.len() + saved { short } else { spec.modules.clone() };
    AdapterConfig {
        r: spec.rank,
        lora_alpha: alpha,
        lora_dropout: spec.dropout,
        target_modules: TargetModules::Names(names),
        exclude_modules: None,
        base_model_name_or_path: base,
        revision: None,
        use_rslora: false,
        modules_to_save: (!spec.saved.is_empty()).then(|| saved_names(config, &spec.saved)),
    }
}

/// Names of modules that are trained in full, as PEFT reads them: it compares ends of names, so that `norm` would mean all
/// norms.
fn saved_names(config: &ModelConfig, saved: &[String]) -> Vec<String> {
    let all = Network::savable_modules(config);
    let mut names: Vec<String> = Vec::new();
    for module in saved {
        let last = module.rsplit('.').next().unwrap_or(module);
        let whole = all.iter().filter(|(m, _)| m.ends_with(last)).all(|(m, _)| saved.contains(m));
        let name = if whole { last } else { module };
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::AttentionBias;
    use crate::train::bench::small_config;

    fn modules(layers: Option<&str>, freeze: &[&str]) -> Result<Vec<String>, String> {
        let config = ModelConfig { layers: 12, ..small_config() };
        let spec = spec_of_targets(&config, &["q_proj".into(), "o_proj".into()], 8, 16.0, 0.0).unwrap();
        let layers = layers.map(|text| text.parse().unwrap());
        let freeze: Vec<String> = freeze.iter().map(|text| (*text).to_owned()).collect();
        restricted(&config, spec, layers, &freeze).map(|spec| spec.modules).map_err(|e| e.to_string())
    }

    #[test]
    fn parameters_stay_by_their_names_or_those_of_their_modules() {
        let biased = ModelConfig { layers: 1, attention_bias: AttentionBias::Inputs, ..small_config() };
        let frozen = |pattern: &str| frozen_parameters(&biased, &[pattern.to_owned()]).unwrap();
        let q = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.bias"];
        assert_eq!(frozen("*.q_proj"), q);
        assert_eq!(frozen("*.q_proj.bias"), q[1..]);
        // biases alone are trained
        let weights = frozen("*.weight");
        assert!(weights.iter().all(|name| name.ends_with(".weight")), "{weights:?}");
        assert_eq!(weights.len() + 3, biased.expected_shapes().len());
        assert!(frozen_parameters(&biased, &["*".into()]).is_err());
    }

    #[test]
    fn layers_with_a_bias_are_not_trained_in_full_beside_an_adapter() {
        let biased = ModelConfig { attention_bias: AttentionBias::Inputs, ..small_config() };
        let save = |config: &ModelConfig, name: &str| {
            let spec = spec_of_targets(config, &["o_proj".into()], 8, 16.0, 0.0).unwrap();
            with_saved(config, spec, &[name.to_owned()])
                .map(|spec| spec.saved.len())
                .map_err(|e| e.to_string())
        };
        assert_eq!(save(&small_config(), "q_proj"), Ok(4));
        let refused = save(&biased, "q_proj").unwrap_err();
        assert!(refused.contains("q_proj") && refused.contains("it has a bias"), "{refused}");
        assert_eq!(save(&biased, "down_proj"), Ok(4));
    }

    #[test]
    fn adapters_sit_only_where_wanted() {
        assert_eq!(modules(None, &[]).unwrap().len(), 24);
        let last = modules(Some("last-2"), &[]).unwrap();
        assert!(last.len() == 4 && last.iter().all(|m| m.contains(".10.") || m.contains(".11.")), "{last:?}");
        assert_eq!(modules(Some("first-3"), &["*.o_proj"]).unwrap().len(), 3);
        assert_eq!(modules(Some("4-5"), &[]).unwrap().len(), 4);
        let upper = modules(None, &["model.layers.[0-7].*"]).unwrap();
        assert!(
            upper.len() == 8 && upper.iter().all(|m| small_config().block_of(m).unwrap() > 7),
            "{upper:?}"
        );
        assert_eq!(modules(None, &["model.layers.?.self_attn.q_proj.weight"]).unwrap().len(), 14);
    }

    #[test]
    fn whole_modules_are_named_so_that_peft_finds_the_same() {
        let config = ModelConfig { layers: 2, ..small_config() };
        let names = |wanted: &str| {
            let wanted: Vec<String> = wanted.split(',').map(str::to_owned).collect();
            let spec = spec_of_targets(&config, &[], 8, 16.0, 0.0).unwrap();
            let spec = with_saved(&config, spec, &wanted).map_err(|e| e.to_string())?;
            assert!(spec.saved.iter().all(|module| !spec.modules.contains(module)));
            Ok::<_, String>((spec.saved.len(), saved_names(&config, &spec.saved).join(",")))
        };
        // PEFT takes ends of names, and `norm` would be the end of all of them
        assert_eq!(names("norm").unwrap(), (1, "model.norm".into()));
        assert_eq!(names("input_layernorm,lm_head,lm_head").unwrap(), (3, "input_layernorm,lm_head".into()));
        assert_eq!(names("layers.1.mlp.up_proj").unwrap(), (1, "model.layers.1.mlp.up_proj".into()));
        assert_eq!(names("up_proj").unwrap(), (2, "up_proj".into()));
        for (wanted, said) in [("proj", "no module is called so"), ("mlp", "no module is called so")] {
            assert!(names(wanted).unwrap_err().contains(said));
        }
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
