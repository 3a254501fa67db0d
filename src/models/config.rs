//! `config.json` of a Hugging Face model to a checked description.
//!
//! transformers 4 and 5 spell the same settings differently (`rope_theta` and `rope_scaling` against
//! `rope_parameters`, `torch_dtype` against `dtype`); both give equal values here. A setting that
//! changes the mathematics is either understood or refused: none is passed over.

use crate::graph::DType;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::f64::consts::TAU;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

const CONFIG: &str = "config.json";
const ARCHITECTURES: [(&str, Family); 1] = [("LlamaForCausalLM", Family::Llama)];
/// Sizes beyond this are a broken file; products of two of them still fit in 64 bits.
const MAX_SIZE: u64 = 1 << 31;
/// No model comes near; it keeps a broken file from filling the memory with names.
const MAX_LAYERS: usize = 1 << 14;

/// A configuration that cannot be read or is not supported.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("{path}: {}; give the folder of a Hugging Face model", if path.exists() { "is a file, not a folder" } else { "no such folder" })]
    FolderMissing { path: PathBuf },
    #[error("{folder}: config.json not found; give the folder of a Hugging Face model")]
    FileMissing { folder: PathBuf },
    #[error("{file}: cannot be read: {source}")]
    Read { file: PathBuf, source: io::Error },
    #[error("{file}: line {line} column {column}: {reason}")]
    Json { file: PathBuf, line: usize, column: usize, reason: String },
    #[error("{file}: the key {key:?} is missing")]
    KeyMissing { file: PathBuf, key: String },
    #[error("{file}: {key} is {value}, expected {expected}")]
    Value { file: PathBuf, key: String, value: String, expected: String },
    #[error("{file}: the architecture {found} is not supported; supported: {supported}")]
    Architecture { file: PathBuf, found: String, supported: String },
    #[error("{file}: {key} = {value} is not supported: {reason}")]
    Unsupported { file: PathBuf, key: String, value: String, reason: &'static str },
    #[error("{file}: {reason}")]
    Inconsistent { file: PathBuf, reason: String },
}

/// Families of networks that engraft builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Llama,
}

/// Sizes and constants of a decoder-only transformer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    /// A multiple of 8.
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope: Rope,
    pub max_position_embeddings: usize,
    /// The head uses the embedding matrix.
    pub tied_head: bool,
}

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How the frequencies are stretched for contexts longer than those of the first training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum RopeScaling {
    None,
    /// All frequencies divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
}

impl Rope {
    /// Radians per position for each pair of elements, `[head_dim / 2]`.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let unscaled = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        unscaled.map(|frequency| self.scaling.apply(frequency) as f32).collect()
    }

    /// What Llama 3.1's scaling divides each frequency by, `[head_dim / 2]`; `None` for other scalings.
    pub fn llama3_factors(&self, head_dim: usize) -> Option<Vec<f32>> {
        if !matches!(self.scaling, RopeScaling::Llama3 { .. }) {
            return None;
        }
        let unscaled = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        Some(unscaled.map(|frequency| (frequency / self.scaling.apply(frequency)) as f32).collect())
    }
}

impl RopeScaling {
    fn apply(self, frequency: f64) -> f64 {
        match self {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let turns = original_max_position_embeddings as f64 * frequency / TAU;
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let smooth = smooth.clamp(0.0, 1.0);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

impl ModelConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// A missing folder or file, JSON that is not understood, a value out of range, or a model that
    /// is not supported; the message names file and key.
    pub fn read(model_dir: &Path) -> Result<Self, ConfigError> {
        if !model_dir.is_dir() {
            return Err(ConfigError::FolderMissing { path: model_dir.to_path_buf() });
        }
        let file = model_dir.join(CONFIG);
        if !file.is_file() {
            return Err(ConfigError::FileMissing { folder: model_dir.to_path_buf() });
        }
        match std::fs::read_to_string(&file) {
            Ok(text) => ModelConfig::parse(&text, &file),
            Err(source) => Err(ConfigError::Read { file, source }),
        }
    }

    /// Reads the text of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(json: &str, path: &Path) -> Result<Self, ConfigError> {
        let object: Map<String, Value> = serde_json::from_str(json).map_err(|error| ConfigError::Json {
            file: path.to_path_buf(),
            line: error.line(),
            column: error.column(),
            // Without the position, which the message has already.
            reason: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        })?;
        let keys = Keys { file: path, object: &object, prefix: "" };
        let family = family(&keys)?;
        refuse_unsupported(&keys)?;

        let (hidden_size, heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
        if hidden_size % heads != 0 {
            let sizes = format!("hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}");
            return Err(keys.inconsistent(sizes));
        }
        let max_position_embeddings = keys.optional("max_position_embeddings", Keys::size)?.unwrap_or(2048);
        let config = ModelConfig {
            family,
            vocab_size: keys.size("vocab_size")?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            layers: keys.size("num_hidden_layers")?,
            heads,
            kv_heads: keys.optional("num_key_value_heads", Keys::size)?.unwrap_or(heads),
            head_dim: keys.optional("head_dim", Keys::size)?.unwrap_or(hidden_size / heads),
            rms_norm_eps: keys.optional("rms_norm_eps", Keys::positive)?.unwrap_or(1e-6),
            rope: read_rope(&keys, max_position_embeddings)?,
            max_position_embeddings,
            tied_head: keys.optional("tie_word_embeddings", Keys::flag)?.unwrap_or(false),
        };
        config.check(&keys)?;
        Ok(config)
    }

    /// Parameters of the whole model; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        let product = |shape: &[usize]| shape.iter().fold(1u64, |n, &dim| n.saturating_mul(dim as u64));
        let total = |shapes: &[(&str, Vec<usize>)]| {
            shapes.iter().fold(0u64, |sum, (_, shape)| sum.saturating_add(product(shape)))
        };
        let layers = total(&self.layer_shapes()).saturating_mul(self.layers as u64);
        layers.saturating_add(total(&self.outer_shapes()))
    }

    /// Every weight of the model as it is named in the checkpoint, with its shape.
    pub fn expected_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let layer = self.layer_shapes();
        let layers = (0..self.layers).flat_map(|i| {
            layer.iter().map(move |(name, shape)| (format!("model.layers.{i}.{name}"), shape.clone()))
        });
        let outer = self.outer_shapes().into_iter().map(|(name, shape)| (name.to_owned(), shape));
        layers.chain(outer).collect()
    }

    /// A `config.json` for weights of the given type that transformers 4 and 5 both read.
    pub fn to_json(&self, dtype: DType) -> Value {
        let dtype = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        let (architecture, model_type) = match self.family {
            Family::Llama => ("LlamaForCausalLM", "llama"),
        };
        let scaling = match self.rope.scaling {
            RopeScaling::None => None,
            RopeScaling::Linear { factor } => Some(json!({ "rope_type": "linear", "factor": factor })),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => Some(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            })),
        };
        let mut rope_parameters = scaling.clone().unwrap_or_else(|| json!({ "rope_type": "default" }));
        rope_parameters["rope_theta"] = json!(self.rope.theta);
        json!({
            "architectures": [architecture],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "dtype": dtype,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": false,
            "model_type": model_type,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": rope_parameters,
            "rope_scaling": scaling,
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tied_head,
            "torch_dtype": dtype,
            "vocab_size": self.vocab_size,
        })
    }

    fn layer_shapes(&self) -> [(&'static str, Vec<usize>); 9] {
        let (hidden, ffn) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [
            ("input_layernorm.weight", vec![hidden]),
            ("self_attn.q_proj.weight", vec![queries, hidden]),
            ("self_attn.k_proj.weight", vec![keys, hidden]),
            ("self_attn.v_proj.weight", vec![keys, hidden]),
            ("self_attn.o_proj.weight", vec![hidden, queries]),
            ("post_attention_layernorm.weight", vec![hidden]),
            ("mlp.gate_proj.weight", vec![ffn, hidden]),
            ("mlp.up_proj.weight", vec![ffn, hidden]),
            ("mlp.down_proj.weight", vec![hidden, ffn]),
        ]
    }

    fn outer_shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        let mut shapes = vec![
            ("model.embed_tokens.weight", vec![self.vocab_size, self.hidden_size]),
            ("model.norm.weight", vec![self.hidden_size]),
        ];
        if !self.tied_head {
            shapes.push(("lm_head.weight", vec![self.vocab_size, self.hidden_size]));
        }
        shapes
    }

    fn check(&self, keys: &Keys<'_>) -> Result<(), ConfigError> {
        let ModelConfig { hidden_size, heads, kv_heads, head_dim, layers, .. } = *self;
        let reason = if heads % kv_heads != 0 {
            format!("num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        } else if !head_dim.is_multiple_of(8) {
            format!("head_dim {head_dim} is not a multiple of 8, which the attention kernels need")
        } else if !hidden_size.is_multiple_of(4) {
            format!("hidden_size {hidden_size} is not a multiple of 4, which the kernels need")
        } else if (heads as u64).saturating_mul(head_dim as u64) > MAX_SIZE {
            format!("num_attention_heads {heads} times head_dim {head_dim} is more than {MAX_SIZE}")
        } else if layers > MAX_LAYERS {
            format!("num_hidden_layers {layers} is more than {MAX_LAYERS}")
        } else {
            return Ok(());
        };
        Err(keys.inconsistent(reason))
    }
}

/// The object of a file (or one within it) with errors that name file and key.
struct Keys<'a> {
    file: &'a Path,
    object: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Keys<'a> {
    /// `null` is the same as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn optional<T>(
        &self,
        key: &str,
        read: fn(&Self, &str) -> Result<T, ConfigError>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(key).map(|_| read(self, key)).transpose()
    }

    fn size(&self, key: &str) -> Result<usize, ConfigError> {
        let value = self.required(key)?;
        match value.as_u64() {
            Some(size @ 1..=MAX_SIZE) => Ok(size as usize),
            _ => Err(self.wrong(key, value, format!("a whole number from 1 to {MAX_SIZE}"))),
        }
    }

    fn positive(&self, key: &str) -> Result<f64, ConfigError> {
        let value = self.required(key)?;
        match value.as_f64() {
            Some(number) if number > 0.0 && number <= MAX_SIZE as f64 => Ok(number),
            _ => Err(self.wrong(key, value, format!("a number above 0, at most {MAX_SIZE}"))),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        let value = self.required(key)?;
        value.as_bool().ok_or_else(|| self.wrong(key, value, "true or false".into()))
    }

    fn text(&self, key: &str) -> Result<&'a str, ConfigError> {
        let value = self.required(key)?;
        value.as_str().ok_or_else(|| self.wrong(key, value, "a text".into()))
    }

    /// An object within; one without entries is the same as absent.
    fn inner(&self, key: &str, prefix: &'static str) -> Result<Option<Keys<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) if object.is_empty() => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Keys { file: self.file, object, prefix })),
            Some(value) => Err(self.wrong(key, value, "an object".into())),
        }
    }

    fn required(&self, key: &str) -> Result<&'a Value, ConfigError> {
        let missing = || ConfigError::KeyMissing { file: self.file.to_path_buf(), key: self.full(key) };
        self.get(key).ok_or_else(missing)
    }

    fn wrong(&self, key: &str, value: &Value, expected: String) -> ConfigError {
        ConfigError::Value {
            file: self.file.to_path_buf(),
            key: self.full(key),
            value: short(value),
            expected,
        }
    }

    fn refused(&self, key: &str, value: &Value, reason: &'static str) -> ConfigError {
        ConfigError::Unsupported {
            file: self.file.to_path_buf(),
            key: self.full(key),
            value: short(value),
            reason,
        }
    }

    fn inconsistent(&self, reason: String) -> ConfigError {
        ConfigError::Inconsistent { file: self.file.to_path_buf(), reason }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

fn family(keys: &Keys<'_>) -> Result<Family, ConfigError> {
    let found: Vec<&str> = match keys.required("architectures")? {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        value => return Err(keys.wrong("architectures", value, "a list of names".into())),
    };
    let known = found.iter().find_map(|name| ARCHITECTURES.iter().find(|(known, _)| known == name));
    known.map(|(_, family)| *family).ok_or_else(|| ConfigError::Architecture {
        file: keys.file.to_path_buf(),
        found: if found.is_empty() { "(none named)".to_owned() } else { found.join(", ") },
        supported: ARCHITECTURES.map(|(name, _)| name).join(", "),
    })
}

fn refuse_unsupported(keys: &Keys<'_>) -> Result<(), ConfigError> {
    for key in ["attention_bias", "mlp_bias"] {
        if keys.optional(key, Keys::flag)? == Some(true) {
            return Err(keys.refused(key, &Value::Bool(true), "linear layers have no bias"));
        }
    }
    let expected = [
        ("hidden_act", json!("silu"), "the gated MLP uses silu"),
        ("partial_rotary_factor", json!(1.0), "the rotary embedding turns whole heads"),
        (
            "attention_dropout",
            json!(0.0),
            "attention weights are not dropped; set it to 0.0 to go on without",
        ),
    ];
    for (key, expected, reason) in expected {
        if let Some(value) = keys.get(key)
            && !same(value, &expected)
        {
            return Err(keys.refused(key, value, reason));
        }
    }
    match keys.get("quantization_config") {
        Some(value) if value["quant_method"] != "bitsandbytes" || value["load_in_4bit"] != true => {
            let reason = "of quantised models engraft reads those that bitsandbytes saved in nf4; give the folder of the \
                          unquantised model";
            Err(keys.refused("quantization_config", value, reason))
        }
        _ => Ok(()),
    }
}

/// `rope_scaling` is preferred where both spellings are there, as transformers does.
fn read_rope(keys: &Keys<'_>, max_position_embeddings: usize) -> Result<Rope, ConfigError> {
    let mut theta = keys.optional("rope_theta", Keys::positive)?;
    let mut scaling = RopeScaling::None;
    let older = keys.inner("rope_scaling", "rope_scaling.")?;
    if let Some(rope) = older.or(keys.inner("rope_parameters", "rope_parameters.")?) {
        theta = rope.optional("rope_theta", Keys::positive)?.or(theta);
        scaling = read_scaling(keys, &rope, max_position_embeddings)?;
    }
    Ok(Rope { theta: theta.unwrap_or(10_000.0), scaling })
}

fn read_scaling(
    keys: &Keys<'_>,
    rope: &Keys<'_>,
    max_position_embeddings: usize,
) -> Result<RopeScaling, ConfigError> {
    if let Some(value) = rope.get("partial_rotary_factor")
        && !same(value, &json!(1.0))
    {
        return Err(rope.refused("partial_rotary_factor", value, "the rotary embedding turns whole heads"));
    }
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    match rope.optional(key, Keys::text)?.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: rope.positive("factor")? }),
        "llama3" => {
            // Stored beside the object by some exporters, which then counts; else as in the first training.
            let original = match keys.optional("original_max_position_embeddings", Keys::size)? {
                Some(original) => Some(original),
                None => rope.optional("original_max_position_embeddings", Keys::size)?,
            };
            let (low_freq_factor, high_freq_factor) =
                (rope.positive("low_freq_factor")?, rope.positive("high_freq_factor")?);
            if low_freq_factor >= high_freq_factor {
                let (low, high) = (rope.full("low_freq_factor"), rope.full("high_freq_factor"));
                let reason = format!("{low} {low_freq_factor} is not below {high} {high_freq_factor}");
                return Err(keys.inconsistent(reason));
            }
            Ok(RopeScaling::Llama3 {
                factor: rope.positive("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original.unwrap_or(max_position_embeddings),
            })
        }
        other => Err(rope.refused(key, &json!(other), "known are default, linear and llama3")),
    }
}

/// Equal, with whole numbers and floats compared by value.
fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

/// A value for a message: its beginning, should it be long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: [&str; 3] = ["llama", "llama_untied", "llama_sharded"];

    fn fixture(model: &str, file: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model).join(file)
    }

    fn read_fixture(model: &str, file: &str) -> ModelConfig {
        let path = fixture(model, file);
        ModelConfig::parse(&std::fs::read_to_string(&path).unwrap(), &path).unwrap()
    }

    fn minimal() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 100,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        })
    }

    fn parse_with(changes: &[(&str, Value)]) -> Result<ModelConfig, ConfigError> {
        let mut json = minimal();
        for (key, value) in changes {
            json[*key] = value.clone();
        }
        ModelConfig::parse(&json.to_string(), Path::new("config.json"))
    }

    fn message(changes: &[(&str, Value)]) -> String {
        parse_with(changes).unwrap_err().to_string()
    }

    #[test]
    fn both_spellings_of_transformers_are_equal() {
        for model in LLAMA {
            let config = read_fixture(model, "config.json");
            assert_eq!(config, read_fixture(model, "config.v4.json"), "{model}");
            assert_eq!(config, ModelConfig::read(&fixture(model, "")).unwrap());
            let scaling = RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 32,
            };
            let expected = ModelConfig {
                family: Family::Llama,
                vocab_size: 512,
                hidden_size: 64,
                intermediate_size: 160,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 16,
                rms_norm_eps: 1e-5,
                rope: Rope { theta: 10_000.0, scaling },
                max_position_embeddings: 128,
                tied_head: model == "llama",
            };
            assert_eq!(config, expected, "{model}");
        }
    }

    #[test]
    fn absent_keys_have_the_defaults_of_transformers() {
        let config = parse_with(&[]).unwrap();
        assert_eq!((config.kv_heads, config.head_dim, config.tied_head), (4, 16, false));
        assert_eq!((config.rms_norm_eps, config.max_position_embeddings), (1e-6, 2048));
        assert_eq!(config.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None });
        let nulls = ["head_dim", "num_key_value_heads", "rope_scaling", "quantization_config"];
        assert_eq!(parse_with(&nulls.map(|key| (key, Value::Null))).unwrap(), config);
    }

    #[test]
    fn rope_is_read_in_every_spelling() {
        let rope = |changes: &[(&str, Value)]| parse_with(changes).unwrap().rope;
        let linear = Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 2.0 } };
        let old = json!({ "type": "linear", "factor": 2 });
        assert_eq!(rope(&[("rope_theta", json!(5e5)), ("rope_scaling", old.clone())]), linear);
        let new = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 });
        assert_eq!(rope(&[("rope_parameters", new.clone())]), linear);
        assert_eq!(
            rope(&[("rope_parameters", new), ("rope_theta", json!(5e5)), ("rope_scaling", old)]),
            linear
        );

        let plain = Rope { theta: 7.0, scaling: RopeScaling::None };
        assert_eq!(rope(&[("rope_parameters", json!({ "rope_type": "default", "rope_theta": 7 }))]), plain);
        assert_eq!(rope(&[("rope_parameters", json!({})), ("rope_theta", json!(7))]), plain);

        let llama3 = json!({ "type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4 });
        let RopeScaling::Llama3 { original_max_position_embeddings, .. } =
            rope(&[("rope_scaling", llama3), ("max_position_embeddings", json!(99))]).scaling
        else {
            panic!("llama3 expected");
        };
        assert_eq!(original_max_position_embeddings, 99);
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        // Printed by transformers 5.23 (`ROPE_INIT_FUNCTIONS["llama3"]`, f32) for Llama 3.1 8B: both ends and
        // every element of the interpolated middle.
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let ours = Rope { theta: 5e5, scaling }.inverse_frequencies(128);
        assert_eq!(ours.len(), 64);
        let expected = [
            (0, 1.0),
            (1, 8.146_172e-1),
            (20, 1.656_044e-2),
            (28, 3.211_446e-3),
            (29, 2.166_570_6e-3),
            (30, 1.371_893_7e-3),
            (31, 8.567_515e-4),
            (32, 5.248_46e-4),
            (33, 3.126_936_5e-4),
            (34, 1.785_078e-4),
            (35, 9.556_212e-5),
            (36, 7.784_655e-5),
            (40, 3.428_102_4e-5),
            (63, 3.068_926e-7),
        ];
        for (i, theirs) in expected {
            assert!((ours[i] / theirs - 1.0f32).abs() < 2e-6, "{i}: {} {theirs}", ours[i]);
        }
        // The fixture, whose middle band is element 3.
        let ours = read_fixture("llama", "config.json").rope.inverse_frequencies(16);
        let theirs =
            [1.0, 9.583_998e-2, 1.25e-2, 3.952_847_3e-3, 1.25e-3, 3.952_847_3e-4, 1.25e-4, 3.952_847_3e-5];
        assert!(ours.iter().zip(theirs).all(|(a, b): (&f32, f32)| (a / b - 1.0).abs() < 2e-6), "{ours:?}");

        let plain = Rope { theta: 1e4, scaling: RopeScaling::None }.inverse_frequencies(8);
        let linear = Rope { theta: 1e4, scaling: RopeScaling::Linear { factor: 4.0 } }.inverse_frequencies(8);
        assert_eq!(plain, [1.0, 0.1, 0.01, 0.001]);
        assert_eq!(linear, [0.25, 0.025, 0.0025, 0.00025]);
    }

    #[test]
    fn what_is_written_is_read_back_equal() {
        let scalings = [
            json!(null),
            json!({ "rope_type": "linear", "factor": 2.5 }),
            json!({
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }),
        ];
        for scaling in scalings {
            let config = parse_with(&[("rope_scaling", scaling), ("rope_theta", json!(123.5))]).unwrap();
            let mut json = config.to_json(DType::F16);
            assert_eq!((&json["torch_dtype"], &json["dtype"]), (&json!("float16"), &json!("float16")));
            let read =
                |json: &Value| ModelConfig::parse(&json.to_string(), Path::new("config.json")).unwrap();
            assert_eq!(read(&json), config);
            // Each spelling alone says everything.
            let older = ["rope_theta", "rope_scaling", "torch_dtype"].map(|key| (key, json[key].take()));
            assert_eq!(read(&json), config);
            older.into_iter().for_each(|(key, value)| json[key] = value);
            ["rope_parameters", "dtype"].iter().for_each(|key| json[*key] = Value::Null);
            assert_eq!(read(&json), config);
        }
    }

    #[test]
    fn shapes_add_up_to_the_parameter_count() {
        for (model, parameters) in [("llama", 119_104), ("llama_untied", 151_872)] {
            let config = read_fixture(model, "config.json");
            let shapes = config.expected_shapes();
            let sum: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert_eq!((config.parameter_count(), sum), (parameters, parameters as usize), "{model}");
            assert_eq!(shapes.iter().any(|(name, _)| name == "lm_head.weight"), !config.tied_head);
        }
    }

    #[test]
    fn other_architectures_are_refused_by_name() {
        let text = message(&[("architectures", json!(["GemmaForCausalLM"]))]);
        assert_eq!(
            text,
            "config.json: the architecture GemmaForCausalLM is not supported; supported: LlamaForCausalLM"
        );
        assert!(message(&[("architectures", json!([]))]).contains("(none named)"));
        assert!(message(&[("architectures", json!("Llama"))]).contains("architectures is \"Llama\""));
        assert!(message(&[("architectures", Value::Null)]).contains("\"architectures\" is missing"));
    }

    #[test]
    fn unsupported_settings_are_refused_by_key_and_value() {
        for (key, value) in [
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("hidden_act", json!("gelu")),
            ("partial_rotary_factor", json!(0.5)),
            ("attention_dropout", json!(0.1)),
            ("quantization_config", json!({ "quant_method": "gptq" })),
        ] {
            let text = message(&[(key, value.clone())]);
            assert!(text.starts_with(&format!("config.json: {key} = {value} is not supported")), "{text}");
        }
        let yarn = json!({ "rope_type": "yarn", "factor": 4 });
        let text = message(&[("rope_scaling", yarn.clone())]);
        assert!(text.contains("rope_scaling.rope_type = \"yarn\" is not supported"), "{text}");
        let text = message(&[("rope_parameters", yarn)]);
        assert!(text.contains("rope_parameters.rope_type = \"yarn\" is not supported"), "{text}");
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        for key in
            ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
        {
            assert_eq!(message(&[(key, Value::Null)]), format!("config.json: the key \"{key}\" is missing"));
            for value in [json!(0), json!(-1), json!(64.5), json!("64"), json!(1u64 << 32), json!([4])] {
                let text = message(&[(key, value.clone())]);
                assert!(
                    text.starts_with(&format!("config.json: {key} is {value}, expected a whole")),
                    "{text}"
                );
            }
        }
        for value in [json!(0.0), json!(-1e-5), json!("1e-5"), json!(1e300)] {
            assert!(message(&[("rms_norm_eps", value.clone())]).contains("rms_norm_eps is"), "{value}");
            assert!(message(&[("rope_theta", value.clone())]).contains("rope_theta is"), "{value}");
        }
        assert!(message(&[("tie_word_embeddings", json!("yes"))]).contains("tie_word_embeddings is \"yes\""));
        assert!(message(&[("rope_scaling", json!([1]))]).contains("rope_scaling is [1]"));
        let no_factor = json!({ "rope_type": "linear" });
        assert!(message(&[("rope_scaling", no_factor)]).contains("\"rope_scaling.factor\" is missing"));
        let crossed =
            json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4 });
        assert!(message(&[("rope_scaling", crossed)]).contains("is not below"));
    }

    #[test]
    fn sizes_that_do_not_fit_together_are_refused() {
        for (changes, reason) in [
            (
                vec![("num_attention_heads", json!(3))],
                "hidden_size 64 is not a multiple of num_attention_heads 3",
            ),
            (
                vec![("num_key_value_heads", json!(3))],
                "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
            ),
            (vec![("head_dim", json!(12))], "head_dim 12 is not a multiple of 8"),
            (
                vec![("hidden_size", json!(6)), ("num_attention_heads", json!(1)), ("head_dim", json!(8))],
                "hidden_size 6",
            ),
            (vec![("head_dim", json!(1u64 << 31))], "times head_dim"),
            (vec![("num_hidden_layers", json!(1 << 20))], "num_hidden_layers 1048576"),
        ] {
            let text = message(&changes);
            assert!(text.contains(reason), "{text}");
        }
        // The largest sizes that pass must not overflow.
        let large = json!(1u64 << 31);
        let sizes = ["vocab_size", "hidden_size", "intermediate_size"].map(|key| (key, large.clone()));
        let config = parse_with(&[&sizes[..], &[("head_dim", json!(8))]].concat()).unwrap();
        assert!(config.parameter_count() > 1 << 62);
    }

    #[test]
    fn files_that_are_no_json_name_the_place() {
        let parse = |text| ModelConfig::parse(text, Path::new("config.json")).unwrap_err().to_string();
        assert_eq!(parse("{\n \"rms_norm_eps\": NaN}"), "config.json: line 2 column 18: expected value");
        assert!(parse("").contains("EOF"));
        assert!(parse("[1]").contains("expected a map"));
        assert!(parse("{\"rope_theta\": 1e999}").contains("out of range"));
        let folder = tempfile::tempdir().unwrap();
        let text = ModelConfig::read(folder.path()).unwrap_err().to_string();
        assert!(text.contains("config.json not found"), "{text}");
        let text = ModelConfig::read(&folder.path().join("x")).unwrap_err().to_string();
        assert!(text.contains("no such folder"), "{text}");
    }
}
