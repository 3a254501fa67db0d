//! The settings of a PEFT adapter: `adapter_config.json`.
//!
//! PEFT has many variants that change the formula of an adapter or the base weights; they are refused by key and value, because an
//! adapter that is read without its variant gives plausible and wrong answers.

use super::CheckpointError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The release of PEFT whose keys are written.
const PEFT_VERSION: &str = "0.21.2";
/// No useful rank comes near; a larger one is a broken file.
const MAX_RANK: usize = 1 << 16;

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
    fn modules_to_save_are_names() {
        let saved = parse_with("modules_to_save", json!(["lm_head"])).unwrap();
        assert_eq!(saved.modules_to_save, Some(vec!["lm_head".to_owned()]));
        assert_eq!(saved.to_json()["modules_to_save"], json!(["lm_head"]));
        assert!(
            parse_with("modules_to_save", json!([7])).unwrap_err().to_string().contains("modules_to_save: ")
        );
        assert_eq!(parse_with("modules_to_save", Value::Null).unwrap().modules_to_save, None);
    }
}
