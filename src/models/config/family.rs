//! The families of networks, and what their configurations say each in its own way.

use super::keys::Keys;
use super::{ConfigError, KV_HEADS};
use crate::ops::glu::Activation;
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
    /// Phi 3, 3.5 and 4, but for those that turn a part of their heads.
    Phi3,
    Gemma,
    Gemma2,
    /// 270M and 1B, which read text alone, and the language models of the larger ones.
    Gemma3,
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

const FAMILIES: [Family; 8] = [
    Family::Llama,
    Family::Mistral,
    Family::Qwen2,
    Family::Qwen3,
    Family::Phi3,
    Family::Gemma,
    Family::Gemma2,
    Family::Gemma3,
];

/// Gemma 3 from 4B on.
const EMBEDDED_GEMMA3: &str = "Gemma3ForConditionalGeneration";

/// The layers that a window is for.
pub(super) struct Window {
    /// The number of last tokens that each sees, itself among them; `None` for all.
    pub tokens: Option<usize>,
    /// Layers that see all nevertheless.
    pub full_layers: Vec<usize>,
}

impl Family {
    /// As `architectures` has it.
    pub(super) fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
            Family::Phi3 => "Phi3ForCausalLM",
            Family::Gemma => "GemmaForCausalLM",
            Family::Gemma2 => "Gemma2ForCausalLM",
            Family::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    pub(super) fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Phi3 => "phi3",
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3_text",
        }
    }

    /// The family, and whether it is the language model within a model that sees images too.
    pub(super) fn read(keys: &Keys<'_>) -> Result<(Self, bool), ConfigError> {
        let found: Vec<&str> = match keys.required("architectures")? {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            value => return Err(keys.wrong("architectures", value, "a list of names".into())),
        };
        if found.contains(&EMBEDDED_GEMMA3) {
            return Ok((Family::Gemma3, true));
        }
        let known =
            found.iter().find_map(|name| FAMILIES.iter().find(|family| family.architecture() == *name));
        known.map(|family| (*family, false)).ok_or_else(|| ConfigError::Architecture {
            file: keys.file.to_path_buf(),
            found: if found.is_empty() { "(none named)".to_owned() } else { found.join(", ") },
            supported: FAMILIES.map(Family::architecture).join(", ") + ", " + EMBEDDED_GEMMA3,
        })
    }

    /// What transformers takes for the context where `config.json` says nothing.
    pub(super) fn default_positions(self) -> usize {
        match self {
            Family::Llama => 2048,
            Family::Mistral | Family::Gemma3 => 131_072,
            Family::Qwen2 | Family::Qwen3 => 32_768,
            Family::Gemma | Family::Gemma2 => 8192,
            Family::Phi3 => 4096,
        }
    }

    /// The size of a head where `config.json` says nothing; `None`: the hidden size in as many parts as there are heads.
    pub(super) fn default_head_dim(self) -> Option<usize> {
        match self {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Phi3 => None,
            Family::Qwen3 => Some(128),
            Family::Gemma | Family::Gemma2 | Family::Gemma3 => Some(256),
        }
    }

    /// Queries and keys are normalised by heads.
    pub(in crate::models) fn head_norms(self) -> bool {
        matches!(self, Family::Qwen3 | Family::Gemma3)
    }

    /// Gated by GELU, norms that multiply by 1 + weight, embeddings that are scaled; the head is the embedding.
    pub(in crate::models) fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma | Family::Gemma2 | Family::Gemma3)
    }

    /// What attention and MLP add to the stream is normalised first.
    pub(in crate::models) fn post_norms(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }

    pub(in crate::models) fn activation(self) -> Activation {
        if self.is_gemma() { Activation::GeluTanh } else { Activation::Silu }
    }

    /// The names of the activation in `config.json`. Gemma's first files say gelu and mean its approximation, as transformers
    /// takes it.
    pub(super) fn activation_names(self) -> &'static [&'static str] {
        match self {
            Family::Gemma => &["gelu_pytorch_tanh", "gelu"],
            Family::Gemma2 | Family::Gemma3 => &["gelu_pytorch_tanh"],
            _ => &["silu"],
        }
    }

    /// The norms' epsilon where `config.json` says nothing.
    pub(super) fn default_eps(self) -> f64 {
        if self == Family::Phi3 { 1e-5 } else { 1e-6 }
    }

    /// Where `config.json` says nothing.
    pub(super) fn default_theta(self) -> f64 {
        if self == Family::Gemma3 { 1e6 } else { 1e4 }
    }

    /// The number whose inverse root scales attention's scores; `None`: the size of a head.
    pub(super) fn read_score_scale(self, keys: &Keys<'_>) -> Result<Option<f64>, ConfigError> {
        match self {
            Family::Gemma2 | Family::Gemma3 => {
                Ok(Some(keys.optional("query_pre_attn_scalar", Keys::positive)?.unwrap_or(256.0)))
            }
            _ => Ok(None),
        }
    }

    /// The soft caps of attention's scores and of logits.
    pub(super) fn read_soft_caps(self, keys: &Keys<'_>) -> Result<[Option<f64>; 2], ConfigError> {
        const SCORES: &str = "attn_logit_softcapping";
        const LOGITS: &str = "final_logit_softcapping";
        // null is none; a file that is silent has transformers' default
        let read = |key: &str, usual| match keys.object.contains_key(key) {
            true => keys.optional(key, Keys::positive),
            false => Ok(usual),
        };
        match self {
            Family::Gemma2 => Ok([read(SCORES, Some(50.0))?, read(LOGITS, Some(30.0))?]),
            Family::Gemma3 => match keys.get(SCORES) {
                Some(value) => Err(keys.refused(SCORES, value, "this family's attention has no cap")),
                None => Ok([None, read(LOGITS, None)?]),
            },
            _ => Ok([None; 2]),
        }
    }

    pub(super) fn read_bias(self, keys: &Keys<'_>) -> Result<AttentionBias, ConfigError> {
        let said = keys.optional("attention_bias", Keys::flag)?.unwrap_or(false);
        match self {
            Family::Qwen2 => Ok(AttentionBias::Inputs),
            Family::Mistral | Family::Phi3 if said => {
                Err(keys.refused("attention_bias", &json!(true), "this family's linear layers have no bias"))
            }
            _ if said => Ok(AttentionBias::All),
            _ => Ok(AttentionBias::None),
        }
    }

    /// The number of heads of keys and values. A file that is silent means as many as of queries in Llama alone; the others' defaults
    /// belong to one size of theirs.
    pub(super) fn read_kv_heads(self, keys: &Keys<'_>, heads: usize) -> Result<usize, ConfigError> {
        match keys.optional(KV_HEADS, Keys::size)? {
            Some(count) => Ok(count),
            None if matches!(self, Family::Llama | Family::Phi3) || keys.object.contains_key(KV_HEADS) => {
                Ok(heads)
            }
            None => keys.size(KV_HEADS),
        }
    }

    pub(super) fn read_window(self, keys: &Keys<'_>, layers: usize) -> Result<Window, ConfigError> {
        const KEY: &str = "sliding_window";
        let none = || Window { tokens: None, full_layers: Vec::new() };
        // null is none; a file that is silent has transformers' default
        let tokens = || match keys.object.contains_key(KEY) {
            true => keys.optional(KEY, Keys::size),
            false => Ok(Some(4096)),
        };
        let slides = match self {
            Family::Llama | Family::Gemma => return Ok(none()),
            Family::Mistral => return Ok(Window { tokens: tokens()?, full_layers: Vec::new() }),
            Family::Phi3 => {
                let tokens = keys.optional(KEY, Keys::size)?;
                return Ok(Window { tokens, full_layers: Vec::new() });
            }
            Family::Qwen2 | Family::Qwen3 => {
                if keys.optional("use_sliding_window", Keys::flag)? != Some(true) {
                    return Ok(none());
                }
                let from = keys.optional("max_window_layers", Keys::count)?.unwrap_or(28);
                layers_with_window(keys, layers, |layer| layer >= from)?
            }
            Family::Gemma2 => layers_with_window(keys, layers, |layer| layer.is_multiple_of(2))?,
            Family::Gemma3 => {
                let named = ["sliding_window_pattern", "_sliding_window_pattern"];
                let key = named.into_iter().find(|key| keys.get(key).is_some());
                let period = key.map_or(Ok(6), |key| keys.size(key))?;
                layers_with_window(keys, layers, |layer| !(layer + 1).is_multiple_of(period))?
            }
        };
        let Some(tokens) = tokens()?.filter(|_| slides.contains(&true)) else { return Ok(none()) };
        let full_layers = (0..layers).filter(|&layer| !slides[layer]).collect();
        Ok(Window { tokens: Some(tokens), full_layers })
    }
}

/// Whether each layer sees a window: as the file lists it, or by `usual`.
fn layers_with_window(
    keys: &Keys<'_>,
    layers: usize,
    usual: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ConfigError> {
    const TYPES: &str = "layer_types";
    let Some(value) = keys.get(TYPES) else { return Ok((0..layers).map(usual).collect()) };
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
