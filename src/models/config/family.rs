//! The families of networks, and what their configurations say each in its own way.

use super::ConfigError;
use super::keys::Keys;
use serde::Serialize;
use serde_json::{Value, json};

/// Families of networks that engraft builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2, 3, 3.1, 3.2, and what has its form: TinyLlama, SmolLM 1 and 2, Yi, distillations.
    Llama,
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    Qwen3,
}

/// Which linear layers of attention have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionBias {
    #[default]
    None,
    /// Those of queries, keys and values.
    Inputs,
    /// These and that of the output.
    All,
}

const FAMILIES: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

impl Family {
    /// As `architectures` has it.
    pub(super) fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    pub(super) fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    pub(super) fn read(keys: &Keys<'_>) -> Result<Self, ConfigError> {
        let found: Vec<&str> = match keys.required("architectures")? {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            value => return Err(keys.wrong("architectures", value, "a list of names".into())),
        };
        let known =
            found.iter().find_map(|name| FAMILIES.iter().find(|family| family.architecture() == *name));
        known.copied().ok_or_else(|| ConfigError::Architecture {
            file: keys.file.to_path_buf(),
            found: if found.is_empty() { "(none named)".to_owned() } else { found.join(", ") },
            supported: FAMILIES.map(Family::architecture).join(", "),
        })
    }

    /// What transformers takes for the context where `config.json` says nothing.
    pub(super) fn default_positions(self) -> usize {
        match self {
            Family::Llama => 2048,
            Family::Mistral => 131_072,
            Family::Qwen2 | Family::Qwen3 => 32_768,
        }
    }

    /// The size of a head where `config.json` says nothing; `None`: the hidden size in as many parts as there are heads.
    pub(super) fn default_head_dim(self) -> Option<usize> {
        (self == Family::Qwen3).then_some(128)
    }

    /// Queries and keys are normalised by heads.
    pub(in crate::models) fn head_norms(self) -> bool {
        self == Family::Qwen3
    }

    pub(super) fn read_bias(self, keys: &Keys<'_>) -> Result<AttentionBias, ConfigError> {
        let said = keys.optional("attention_bias", Keys::flag)?.unwrap_or(false);
        match self {
            Family::Qwen2 => Ok(AttentionBias::Inputs),
            Family::Llama | Family::Qwen3 if said => Ok(AttentionBias::All),
            Family::Mistral if said => {
                Err(keys.refused("attention_bias", &json!(true), "this family's linear layers have no bias"))
            }
            _ => Ok(AttentionBias::None),
        }
    }

    /// The number of heads of keys and values. A file that is silent means as many as of queries in Llama alone; the others' defaults
    /// belong to one size of theirs.
    pub(super) fn read_kv_heads(self, keys: &Keys<'_>, heads: usize) -> Result<usize, ConfigError> {
        const KEY: &str = "num_key_value_heads";
        match keys.optional(KEY, Keys::size)? {
            Some(count) => Ok(count),
            None if self == Family::Llama || keys.object.contains_key(KEY) => Ok(heads),
            None => keys.size(KEY),
        }
    }

    /// The number of last tokens that each sees, itself among them; `None` for all.
    pub(super) fn read_window(self, keys: &Keys<'_>, layers: usize) -> Result<Option<usize>, ConfigError> {
        const KEY: &str = "sliding_window";
        // null is none; a file that is silent has transformers' default
        let window = || match keys.object.contains_key(KEY) {
            true => keys.optional(KEY, Keys::size),
            false => Ok(Some(4096)),
        };
        match self {
            Family::Llama => Ok(None),
            Family::Mistral => window(),
            Family::Qwen2 | Family::Qwen3 => {
                if keys.optional("use_sliding_window", Keys::flag)? != Some(true) {
                    return Ok(None);
                }
                let Some(window) = window()? else { return Ok(None) };
                let slides = layers_with_window(keys, layers)?;
                match (slides.contains(&true), slides.contains(&false)) {
                    (false, _) => Ok(None),
                    (true, false) => Ok(Some(window)),
                    (true, true) => {
                        let reason =
                            "some layers would see all tokens and some a window; all have to be alike";
                        Err(keys.refused("use_sliding_window", &json!(true), reason))
                    }
                }
            }
        }
    }
}

/// Whether each layer of a Qwen sees a window.
fn layers_with_window(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, ConfigError> {
    const TYPES: &str = "layer_types";
    let Some(value) = keys.get(TYPES) else {
        const FROM: &str = "max_window_layers";
        let from = match keys.get(FROM) {
            None => 28,
            Some(value) => match value.as_u64() {
                Some(from) => from as usize,
                None => return Err(keys.wrong(FROM, value, "a whole number".into())),
            },
        };
        return Ok((0..layers).map(|layer| layer >= from).collect());
    };
    let slides = |kind: &Value| match kind.as_str()? {
        "full_attention" => Some(false),
        "sliding_attention" => Some(true),
        _ => None,
    };
    let all: Option<Vec<bool>> = value.as_array().and_then(|types| types.iter().map(slides).collect());
    all.filter(|all| all.len() == layers).ok_or_else(|| {
        let expected = format!("full_attention or sliding_attention for each of {layers} layers");
        keys.wrong(TYPES, value, expected)
    })
}
