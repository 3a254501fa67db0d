//! Adapters as PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The adapted layer is `y = W x + scale * B (A x)` with A `[r, in]` and B `[out, r]`. PEFT has many
//! variants that change this formula or the base weights; they are refused by key and value, because
//! an adapter that is read without its variant gives plausible and wrong answers.
//!
//! Modules that were trained in full (`modules_to_save`) lie beside the matrices as `<module>.weight` and replace the base's.

use super::weights::{Checkpoint, encode, write_safetensors};
use super::{CheckpointError, atomic};
use crate::graph::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

pub const ADAPTER_CONFIG: &str = "adapter_config.json";
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// The release of PEFT whose keys are written.
const PEFT_VERSION: &str = "0.21.2";
const KEY_PREFIX: &str = "base_model.model.";
/// No useful rank comes near; a larger one is a broken file.
const MAX_RANK: usize = 1 << 16;

/// A trained adapter: what it is and its matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub config: AdapterConfig,
    pub tensors: Vec<AdapterTensor>,
    /// Weights that replace those of the base model.
    pub saved: Vec<SavedModule>,
}

/// The weight of a module that was trained in full, row-major f32.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedModule {
    /// Path of the module in the base model, as `lm_head`.
    pub module: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// The two matrices of one adapted linear layer, row-major f32.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    /// Path of the layer in the base model, as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// `[r, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, r]`
    pub b: Vec<f32>,
    pub r: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// The settings of an adapter that engraft knows; every other key of PEFT has its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    pub r: usize,
    pub lora_alpha: f64,
    #[serde(default)]
    pub lora_dropout: f64,
    pub target_modules: TargetModules,
    #[serde(default)]
    pub exclude_modules: Option<TargetModules>,
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    #[serde(default)]
    pub revision: Option<String>,
    #[serde(default)]
    pub use_rslora: bool,
    /// Modules that are trained in full, by full paths or their ends.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
}

/// The layers that an adapter sits on, as PEFT says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Full paths or their last components.
    Names(Vec<String>),
    /// Every linear layer but the head.
    AllLinear,
    /// A regular expression over the full path. It is kept, not evaluated: an adapter's tensors say
    /// which layers it has.
    Pattern(String),
}

impl Adapter {
    /// Reads an adapter folder.
    ///
    /// # Errors
    /// Missing or damaged files; a setting that is not supported; tensors that do not pair up or
    /// contradict the rank.
    pub fn read(dir: &Path) -> Result<Self, CheckpointError> {
        let config = AdapterConfig::read(dir)?;
        let path = dir.join(ADAPTER_WEIGHTS);
        if !path.is_file() {
            let hint = if dir.join("adapter_model.bin").is_file() {
                "; adapter_model.bin is there: convert the PyTorch weights to safetensors first"
            } else {
                "; is the adapter complete?"
            };
            return Err(CheckpointError::FileMissing {
                folder: dir.to_path_buf(),
                wanted: ADAPTER_WEIGHTS,
                hint: hint.to_owned(),
            });
        }
        let (tensors, saved) = read_tensors(&Checkpoint::open_file(&path)?, &path, &config)?;
        Ok(Adapter { config, tensors, saved })
    }

    /// A module with a value that is not finite.
    pub fn not_finite(&self) -> Option<&str> {
        let bad = |values: &[f32]| values.iter().any(|value| !value.is_finite());
        let low_rank = self.tensors.iter().find(|t| bad(&t.a) || bad(&t.b)).map(|t| t.module.as_str());
        low_rank.or_else(|| self.saved.iter().find(|s| bad(&s.values)).map(|s| s.module.as_str()))
    }

    /// The values of every trained parameter, by its name in a network.
    pub fn parameters(&self) -> impl Iterator<Item = (String, &[f32])> {
        let low_rank = self.tensors.iter().flat_map(|tensor| {
            let AdapterTensor { module, a, b, .. } = tensor;
            [(format!("{module}.lora_A.weight"), a.as_slice()), (format!("{module}.lora_B.weight"), b)]
        });
        let saved = self.saved.iter().map(|s| (format!("{}.weight", s.module), s.values.as_slice()));
        low_rank.chain(saved)
    }

    /// Writes the two files as PEFT does.
    ///
    /// A new folder appears complete or not at all. In an existing one the two files are replaced one
    /// after the other, each complete.
    ///
    /// # Errors
    /// Matrices that contradict their sizes or the rank, no matrices at all, or a failed write.
    pub fn write(&self, dir: &Path) -> Result<(), CheckpointError> {
        self.check(dir)?;
        if dir.exists() {
            return self.write_files(dir);
        }
        let folder = atomic::NewFolder::begin(dir).map_err(CheckpointError::write(dir))?;
        self.write_files(folder.path())?;
        folder.commit().map_err(CheckpointError::write(dir))
    }

    fn write_files(&self, dir: &Path) -> Result<(), CheckpointError> {
        let tensors = self.tensors.iter().flat_map(|tensor| {
            [
                (key(&tensor.module, 'A'), DType::F32, vec![tensor.r, tensor.inputs], bytes(&tensor.a)),
                (key(&tensor.module, 'B'), DType::F32, vec![tensor.outputs, tensor.r], bytes(&tensor.b)),
            ]
        });
        let saved = self.saved.iter().map(|saved| {
            let name = format!("{KEY_PREFIX}{}.weight", saved.module);
            (name, DType::F32, saved.shape.clone(), bytes(&saved.values))
        });
        write_safetensors(&dir.join(ADAPTER_WEIGHTS), tensors.chain(saved), &[("format", "pt")])?;
        let path = dir.join(ADAPTER_CONFIG);
        let json = self.config.to_json();
        atomic::write_file(&path, |out| write!(out, "{json:#}")).map_err(CheckpointError::write(&path))
    }

    fn check(&self, dir: &Path) -> Result<(), CheckpointError> {
        let file = dir.join(ADAPTER_WEIGHTS);
        if self.tensors.is_empty() {
            let reason = "an adapter needs at least one layer".to_owned();
            return Err(CheckpointError::AdapterTensor { file, tensor: String::new(), reason });
        }
        for tensor in &self.tensors {
            let AdapterTensor { module, a, b, r, inputs, outputs } = tensor;
            let fits = *r == self.config.r && a.len() == r * inputs && b.len() == outputs * r;
            if !fits {
                let reason = format!(
                    "rank {r}, A with {} and B with {} elements; \
                     expected rank {}, A [{r}, {inputs}], B [{outputs}, {r}]",
                    a.len(),
                    b.len(),
                    self.config.r
                );
                return Err(CheckpointError::AdapterTensor { file, tensor: module.clone(), reason });
            }
        }
        Ok(())
    }
}

impl AdapterConfig {
    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// A missing folder or file, JSON that is not understood, or a setting that is not supported.
    pub fn read(dir: &Path) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            return Err(CheckpointError::FolderMissing { path: dir.to_path_buf() });
        }
        let path = dir.join(ADAPTER_CONFIG);
        if !path.is_file() {
            return Err(CheckpointError::FileMissing {
                folder: dir.to_path_buf(),
                wanted: ADAPTER_CONFIG,
                hint: "; give a folder that PEFT or engraft wrote".to_owned(),
            });
        }
        let text = std::fs::read_to_string(&path).map_err(CheckpointError::read(&path))?;
        AdapterConfig::parse(&text, &path)
    }

    /// Reads the text of `adapter_config.json`; `file` is for messages.
    ///
    /// # Errors
    /// As [`AdapterConfig::read`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, CheckpointError> {
        let keys: Map<String, Value> = serde_json::from_str(text).map_err(CheckpointError::json(file))?;
        refuse_unsupported(&keys, file)?;
        let wrong = |key: &str, reason: String| CheckpointError::Key {
            file: file.to_path_buf(),
            key: key.into(),
            reason,
        };
        for required in ["r", "lora_alpha", "target_modules"] {
            if keys.get(required).is_none_or(Value::is_null) {
                return Err(wrong(required, "the key is missing".into()));
            }
        }
        let keys: Map<String, Value> = keys.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let config: AdapterConfig = keys_to_config(&keys).map_err(|(key, reason)| wrong(key, reason))?;
        if !(1..=MAX_RANK).contains(&config.r) {
            return Err(wrong("r", format!("the rank is {}, expected 1 to {MAX_RANK}", config.r)));
        }
        if !(config.lora_alpha.is_finite() && config.lora_alpha > 0.0) {
            return Err(wrong("lora_alpha", format!("is {}, expected a positive number", config.lora_alpha)));
        }
        if !(0.0..1.0).contains(&config.lora_dropout) {
            return Err(wrong(
                "lora_dropout",
                format!("is {}, expected 0 up to below 1", config.lora_dropout),
            ));
        }
        Ok(config)
    }

    /// Factor of the adapter's output: alpha / r, or alpha / sqrt(r) for rank-stabilised adapters.
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// The keys that PEFT writes, in its order.
    pub fn to_json(&self) -> Value {
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": {},
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": false,
            "eva_config": null,
            "exclude_modules": self.exclude_modules,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": number(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": self.modules_to_save,
            "monteclora_config": null,
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "qalora_group_size": 16,
            "r": self.r,
            "rank_pattern": {},
            "revision": self.revision,
            "target_modules": self.target_modules,
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": null,
            "use_bdlora": null,
            "use_dora": false,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
            "velora_config": null,
        })
    }
}

impl TargetModules {
    /// Whether a linear layer of the blocks is meant; `None` for a regular expression.
    pub fn selects(&self, module: &str) -> Option<bool> {
        match self {
            TargetModules::AllLinear => Some(true),
            TargetModules::Pattern(_) => None,
            TargetModules::Names(names) => Some(names.iter().any(|name| {
                module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })),
        }
    }
}

impl Serialize for TargetModules {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TargetModules::Names(names) => {
                let sorted: BTreeSet<&String> = names.iter().collect();
                serializer.collect_seq(sorted)
            }
            TargetModules::AllLinear => serializer.serialize_str("all-linear"),
            TargetModules::Pattern(pattern) => serializer.serialize_str(pattern),
        }
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a list of module names, \"all-linear\" or a regular expression"
        )]
        enum Raw {
            Names(Vec<String>),
            Text(String),
        }
        Ok(match Raw::deserialize(deserializer)? {
            Raw::Names(names) => TargetModules::Names(names),
            // PEFT compares without regard to case.
            Raw::Text(text) if text.eq_ignore_ascii_case("all-linear") => TargetModules::AllLinear,
            Raw::Text(text) => TargetModules::Pattern(text),
        })
    }
}

/// Each key by itself, so that a wrong type is reported with its key.
fn keys_to_config(keys: &Map<String, Value>) -> Result<AdapterConfig, (&'static str, String)> {
    fn get<T: for<'de> Deserialize<'de>>(
        keys: &Map<String, Value>,
        key: &'static str,
    ) -> Result<Option<T>, (&'static str, String)> {
        let parse = |value: &Value| {
            T::deserialize(value)
                .map_err(|error| (key, format!("{} is not understood: {error}", short(value))))
        };
        keys.get(key).map(parse).transpose()
    }
    let missing = |key| move || (key, "the key is missing".to_owned());
    Ok(AdapterConfig {
        r: get(keys, "r")?.ok_or_else(missing("r"))?,
        lora_alpha: get(keys, "lora_alpha")?.ok_or_else(missing("lora_alpha"))?,
        lora_dropout: get(keys, "lora_dropout")?.unwrap_or(0.0),
        target_modules: get(keys, "target_modules")?.ok_or_else(missing("target_modules"))?,
        exclude_modules: get(keys, "exclude_modules")?,
        base_model_name_or_path: get(keys, "base_model_name_or_path")?,
        revision: get(keys, "revision")?,
        use_rslora: get(keys, "use_rslora")?.unwrap_or(false),
        modules_to_save: get(keys, "modules_to_save")?,
    })
}

/// Refuses every setting that changes what the adapter computes.
fn refuse_unsupported(keys: &Map<String, Value>, file: &Path) -> Result<(), CheckpointError> {
    let refuse = |key: &str, reason: &'static str| {
        let (file, value) = (file.to_path_buf(), keys.get(key).map(short).unwrap_or_default());
        Err(CheckpointError::Unsupported { file, key: key.to_owned(), value, reason })
    };
    for (key, value) in keys {
        let text = value.as_str();
        match key.as_str() {
            _ if is_off(value) => {}
            "peft_type" if text != Some("LORA") => return refuse(key, "only LORA adapters can be read"),
            "task_type" if text != Some("CAUSAL_LM") => {
                return refuse(key, "only CAUSAL_LM adapters can be read");
            }
            "bias" if text != Some("none") => return refuse(key, "biases stay as the base model has them"),
            "init_lora_weights" if !keeps_base_weights(value) => {
                return refuse(key, "it changes the base weights; save the adapter converted to plain LoRA");
            }
            "lora_bias" => return refuse(key, "adapters have no bias"),
            "rank_pattern" | "alpha_pattern" => {
                return refuse(key, "all layers have the same rank and alpha");
            }
            "fan_in_fan_out" => return refuse(key, "weights are stored as [out, in]"),
            "layers_to_transform" | "layers_pattern" | "layer_replication" => {
                return refuse(key, "name the layers in target_modules instead");
            }
            "trainable_token_indices"
            | "target_parameters"
            | "alora_invocation_tokens"
            | "ensure_weight_tying" => {
                return refuse(key, "only linear layers are adapted");
            }
            "use_rslora" | "loftq_config" | "eva_config" | "corda_config" | "lora_ga_config" => {}
            // Variants have names of this form, those of later releases too.
            _ if key.starts_with("use_") || key.ends_with("_config") => {
                return refuse(key, "only plain LoRA is; train the adapter without it");
            }
            _ => {}
        }
    }
    match keys.get("peft_type") {
        None | Some(Value::Null) => {
            let (file, key) = (file.to_path_buf(), "peft_type".to_owned());
            Err(CheckpointError::Key {
                file,
                key,
                reason: "the key is missing; is this a PEFT adapter?".into(),
            })
        }
        Some(_) => Ok(()),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

fn keeps_base_weights(init: &Value) -> bool {
    matches!(init, Value::Bool(_)) || matches!(init.as_str(), Some("gaussian" | "orthogonal" | "eva"))
}

/// The tensors of an adapter file: pairs by layer, and modules that were trained in full, both in alphabetical order.
fn read_tensors(
    weights: &Checkpoint,
    file: &Path,
    config: &AdapterConfig,
) -> Result<(Vec<AdapterTensor>, Vec<SavedModule>), CheckpointError> {
    let r = config.r;
    let wrong = |tensor: &str, reason: String| {
        let (file, tensor) = (file.to_path_buf(), tensor.to_owned());
        CheckpointError::AdapterTensor { file, tensor, reason }
    };
    let (mut modules, mut saved) = (BTreeSet::new(), BTreeSet::new());
    let full = config.modules_to_save.as_deref().unwrap_or_default();
    // PEFT writes the base weight beside an adapter on the head; where its vocabulary was changed, B does not fit the model
    for name in weights.names().filter(|name| !name.ends_with(".base_layer.weight")) {
        let Some(module) = name.strip_prefix(KEY_PREFIX).and_then(|rest| {
            rest.strip_suffix(".lora_A.weight").or_else(|| rest.strip_suffix(".lora_B.weight"))
        }) else {
            // PEFT compares ends of names
            let whole = name.strip_prefix(KEY_PREFIX).and_then(|rest| rest.strip_suffix(".weight"));
            if let Some(module) = whole.filter(|module| full.iter().any(|end| module.ends_with(end.as_str())))
            {
                saved.insert(module);
                continue;
            }
            let form = format!("expected {KEY_PREFIX}<layer>.lora_A.weight or .lora_B.weight");
            return Err(wrong(name, format!("{form}; other kinds of trained tensors are not supported")));
        };
        modules.insert(module);
    }
    if modules.is_empty() {
        return Err(wrong("", "the file has no adapter matrices".into()));
    }
    for end in full {
        if !saved.iter().any(|module| module.ends_with(end.as_str())) {
            let reason =
                format!("no weight of it is there, but modules_to_save in {ADAPTER_CONFIG} names it");
            return Err(wrong(end, reason));
        }
    }
    let matrix = |name: &str| -> Result<(usize, usize, Vec<f32>), CheckpointError> {
        let view = weights.tensor(name)?;
        match (view.shape.as_slice(), view.dtype.is_float()) {
            (&[rows, cols], true) => Ok((rows, cols, view.to_f32())),
            _ => Err(wrong(name, format!("is {} {:?}, expected a matrix of floats", view.dtype, view.shape))),
        }
    };
    let mut tensors = Vec::with_capacity(modules.len());
    for module in modules {
        let (name_a, name_b) = (key(module, 'A'), key(module, 'B'));
        let (rank_a, inputs, a) = matrix(&name_a)?;
        let (outputs, rank_b, b) = matrix(&name_b)?;
        if rank_a != r {
            return Err(wrong(
                &name_a,
                format!("shape [{rank_a}, {inputs}], but the rank in {ADAPTER_CONFIG} is {r}"),
            ));
        }
        if rank_b != r {
            return Err(wrong(
                &name_b,
                format!("shape [{outputs}, {rank_b}], but the rank in {ADAPTER_CONFIG} is {r}"),
            ));
        }
        tensors.push(AdapterTensor { module: module.to_owned(), a, b, r, inputs, outputs });
    }
    let whole = |module: &str| {
        let name = format!("{KEY_PREFIX}{module}.weight");
        let view = weights.tensor(&name)?;
        if !view.dtype.is_float() {
            return Err(wrong(&name, format!("is {}, expected floats", view.dtype)));
        }
        Ok(SavedModule { module: module.to_owned(), shape: view.shape.clone(), values: view.to_f32() })
    };
    Ok((tensors, saved.into_iter().map(whole).collect::<Result<_, _>>()?))
}

fn key(module: &str, matrix: char) -> String {
    format!("{KEY_PREFIX}{module}.lora_{matrix}.weight")
}

fn bytes(values: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(values, DType::F32, &mut out);
    out
}

/// A whole number without a fraction, as PEFT's own type for alpha is an integer.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// A value for a message: its beginning, should it be long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Value {
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
        })
    }

    fn parse_with(key: &str, value: Value) -> Result<AdapterConfig, CheckpointError> {
        let mut json = base();
        json[key] = value;
        AdapterConfig::parse(&json.to_string(), Path::new("adapter_config.json"))
    }

    #[test]
    fn what_is_not_supported_is_refused_by_key_and_value() {
        let cases = [
            ("use_dora", json!(true)),
            ("bias", json!("lora_only")),
            ("rank_pattern", json!({"q_proj": 8})),
            ("alpha_pattern", json!({"q_proj": 2})),
            ("fan_in_fan_out", json!(true)),
            ("layers_to_transform", json!([1])),
            ("peft_type", json!("IA3")),
            ("task_type", json!("SEQ_CLS")),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("lora_bias", json!(true)),
            ("layer_replication", json!([[0, 2]])),
            ("megatron_config", json!({"hidden": 1})),
            ("trainable_token_indices", json!([7])),
            ("target_parameters", json!(["experts"])),
            ("use_qalora", json!(true)),
            ("use_bdlora", json!({"nblocks": 2})),
            ("some_later_config", json!({"on": 1})),
        ];
        for (key, value) in cases {
            let error = parse_with(key, value.clone()).unwrap_err().to_string();
            assert!(error.contains(&format!("{key} = {value}")), "{error}");
            assert!(error.starts_with("adapter_config.json: "), "{error}");
        }
    }

    #[test]
    fn wrong_values_name_their_key() {
        let cases = [
            ("r", json!(0)),
            ("r", json!(-4)),
            ("r", json!("four")),
            ("r", Value::Null),
            ("lora_alpha", json!(0)),
            ("lora_alpha", json!([8])),
            ("lora_dropout", json!(1.0)),
            ("lora_dropout", json!(-0.1)),
            ("target_modules", Value::Null),
            ("target_modules", json!([1, 2])),
            ("use_rslora", json!("yes")),
            ("peft_type", Value::Null),
        ];
        for (key, value) in cases {
            let error = parse_with(key, value.clone()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("adapter_config.json: {key}: ")), "{key} = {value}: {error}");
        }
        let error = AdapterConfig::parse("{\n \"r\": NaN}", Path::new("c.json")).unwrap_err().to_string();
        assert!(error.starts_with("c.json: line 2 column "), "{error}");
        assert!(AdapterConfig::parse("[]", Path::new("c.json")).is_err());
    }

    #[test]
    fn targets_are_read_in_all_spellings() {
        let read = |value| parse_with("target_modules", value).unwrap().target_modules;
        assert_eq!(read(json!(["q_proj"])), TargetModules::Names(vec!["q_proj".into()]));
        assert_eq!(read(json!("all-linear")), TargetModules::AllLinear);
        assert_eq!(read(json!(".*q_proj")), TargetModules::Pattern(".*q_proj".into()));

        let names = TargetModules::Names(vec!["v_proj".into(), "layers.1.mlp.up_proj".into()]);
        assert_eq!(names.selects("model.layers.0.self_attn.v_proj"), Some(true));
        assert_eq!(names.selects("v_proj"), Some(true));
        assert_eq!(names.selects("model.layers.1.mlp.up_proj"), Some(true));
        assert_eq!(names.selects("model.layers.11.mlp.up_proj"), Some(false));
        assert_eq!(names.selects("model.layers.0.self_attn.kv_proj"), Some(false));
        assert_eq!(TargetModules::AllLinear.selects("anything"), Some(true));
        assert_eq!(TargetModules::Pattern(".*".into()).selects("anything"), None);
    }

    #[test]
    fn scale_divides_alpha_by_the_rank_or_its_root() {
        assert_eq!(parse_with("lora_alpha", json!(5)).unwrap().scale(), 1.25);
        assert_eq!(parse_with("use_rslora", json!(true)).unwrap().scale(), 4.0);
    }

    #[test]
    fn a_config_survives_writing() {
        let mut config = parse_with("target_modules", json!(["v_proj", "q_proj"])).unwrap();
        config.lora_alpha = 2.5;
        config.lora_dropout = 0.05;
        config.use_rslora = true;
        config.base_model_name_or_path = Some("base".into());
        let json = config.to_json();
        assert_eq!(json["target_modules"], json!(["q_proj", "v_proj"]));
        config.target_modules = TargetModules::Names(vec!["q_proj".into(), "v_proj".into()]);
        assert_eq!(AdapterConfig::parse(&json.to_string(), Path::new("c.json")).unwrap(), config);
    }

    #[test]
    fn contradicting_matrices_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("adapter");
        let config = AdapterConfig::parse(&base().to_string(), Path::new("c.json")).unwrap();
        let tensor = AdapterTensor {
            module: "q".into(),
            a: vec![0.0; 8],
            b: vec![0.0; 11],
            r: 4,
            inputs: 2,
            outputs: 3,
        };
        assert!(
            Adapter { config: config.clone(), tensors: vec![tensor], saved: vec![] }.write(&dir).is_err()
        );
        assert!(Adapter { config, tensors: vec![], saved: vec![] }.write(&dir).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
