//! The families of networks, and what their configurations say each in its own way.

use super::keys::Keys;
use super::{BlockNorms, ConfigError, KV_HEADS, QueryKeyNorms, TEXT};
use serde::Serialize;
use serde_json::{Value, json};

/// Families of networks that engraft builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama 2, 3, 3.1, 3.2, and what has its form: TinyLlama, SmolLM 1 and 2, Yi, distillations.
    Llama,
    /// 7B, Nemo and Small, which sees images too from 3.1 on.
    Mistral,
    /// The language models of Ministral 3.
    Ministral3,
    /// Qwen 2 and 2.5.
    Qwen2,
    Qwen3,
    /// Phi 3, 3.5 and 4, Phi 4 mini too.
    Phi3,
    Gemma,
    Gemma2,
    /// 270M and 1B, which read text alone, and the language models of the larger ones.
    Gemma3,
    Olmo2,
    Olmo3,
    #[serde(rename = "smollm3")]
    SmolLm3,
    /// Granite 3 and what has its form, but for mixtures of experts.
    Granite,
    /// Pythia, and what else has the form of GPT-NeoX-20B: Dolly 2, RedPajama-INCITE.
    #[serde(rename = "gpt_neox")]
    GptNeoX,
    /// StableLM 2, but for 12B; StableCode.
    #[serde(rename = "stablelm")]
    StableLm,
    Starcoder2,
}

const FAMILIES: [Family; 16] = [
    Family::Llama,
    Family::Mistral,
    Family::Ministral3,
    Family::Qwen2,
    Family::Qwen3,
    Family::Phi3,
    Family::Gemma,
    Family::Gemma2,
    Family::Gemma3,
    Family::Olmo2,
    Family::Olmo3,
    Family::SmolLm3,
    Family::Granite,
    Family::GptNeoX,
    Family::StableLm,
    Family::Starcoder2,
];

/// Models that see images too: Gemma 3 from 4B on, Mistral Small 3.1 and Ministral 3.
const GEMMA3_WITH_IMAGES: &str = "Gemma3ForConditionalGeneration";
const MISTRAL3_WITH_IMAGES: &str = "Mistral3ForConditionalGeneration";

/// The layers that a window is for.
pub(super) struct Window {
    /// The number of last tokens that each sees, itself among them; `None` for all.
    pub tokens: Option<usize>,
    /// Layers that see all nevertheless.
    pub full_layers: Vec<usize>,
}

impl Family {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "Llama",
            Family::Mistral => "Mistral",
            Family::Ministral3 => "Ministral 3",
            Family::Qwen2 => "Qwen2",
            Family::Qwen3 => "Qwen3",
            Family::Phi3 => "Phi 3",
            Family::Gemma => "Gemma",
            Family::Gemma2 => "Gemma 2",
            Family::Gemma3 => "Gemma 3",
            Family::Olmo2 => "OLMo 2",
            Family::Olmo3 => "OLMo 3",
            Family::SmolLm3 => "SmolLM 3",
            Family::Granite => "Granite",
            Family::GptNeoX => "GPT-NeoX",
            Family::StableLm => "StableLM",
            Family::Starcoder2 => "StarCoder2",
        }
    }

    /// As `architectures` has it.
    pub(super) fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "LlamaForCausalLM",
            Family::Mistral => "MistralForCausalLM",
            Family::Ministral3 => "Ministral3ForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Qwen3 => "Qwen3ForCausalLM",
            Family::Phi3 => "Phi3ForCausalLM",
            Family::Gemma => "GemmaForCausalLM",
            Family::Gemma2 => "Gemma2ForCausalLM",
            Family::Gemma3 => "Gemma3ForCausalLM",
            Family::Olmo2 => "Olmo2ForCausalLM",
            Family::Olmo3 => "Olmo3ForCausalLM",
            Family::SmolLm3 => "SmolLM3ForCausalLM",
            Family::Granite => "GraniteForCausalLM",
            Family::GptNeoX => "GPTNeoXForCausalLM",
            Family::StableLm => "StableLmForCausalLM",
            Family::Starcoder2 => "Starcoder2ForCausalLM",
        }
    }

    pub(super) fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Ministral3 => "ministral3",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Phi3 => "phi3",
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3_text",
            Family::Olmo2 => "olmo2",
            Family::Olmo3 => "olmo3",
            Family::SmolLm3 => "smollm3",
            Family::Granite => "granite",
            Family::GptNeoX => "gpt_neox",
            Family::StableLm => "stablelm",
            Family::Starcoder2 => "starcoder2",
        }
    }

    /// The family, and whether it is the language model within a model that sees images too.
    pub(super) fn read(keys: &Keys<'_>) -> Result<(Self, bool), ConfigError> {
        let found: Vec<&str> = match keys.required("architectures")? {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            value => return Err(keys.wrong("architectures", value, "a list of names".into())),
        };
        if found.contains(&GEMMA3_WITH_IMAGES) {
            return Ok((Family::Gemma3, true));
        }
        if found.contains(&MISTRAL3_WITH_IMAGES) {
            let text = keys.inner(TEXT, "text_config.")?;
            let Some(text) = text else { return Ok((Family::Mistral, true)) };
            return match text.optional("model_type", Keys::text)? {
                None | Some("mistral") => Ok((Family::Mistral, true)),
                Some("ministral3") => Ok((Family::Ministral3, true)),
                Some(other) => Err(text.refused(
                    "model_type",
                    &json!(other),
                    "known within it are mistral and ministral3",
                )),
            };
        }
        let known =
            found.iter().find_map(|name| FAMILIES.iter().find(|family| family.architecture() == *name));
        known.map(|family| (*family, false)).ok_or_else(|| ConfigError::Architecture {
            file: keys.file.to_path_buf(),
            found: if found.is_empty() { "(none named)".to_owned() } else { found.join(", ") },
            supported: FAMILIES
                .map(Family::architecture)
                .into_iter()
                .chain([GEMMA3_WITH_IMAGES, MISTRAL3_WITH_IMAGES])
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// What transformers takes for the context where `config.json` says nothing.
    pub(super) fn default_positions(self) -> usize {
        match self {
            Family::Llama | Family::Olmo2 | Family::Olmo3 | Family::Granite | Family::GptNeoX => 2048,
            Family::Mistral | Family::Gemma3 => 131_072,
            Family::Ministral3 => 262_144,
            Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => 32_768,
            Family::Gemma | Family::Gemma2 => 8192,
            Family::Phi3 | Family::StableLm | Family::Starcoder2 => 4096,
        }
    }

    /// Whether transformers reads `head_dim`; the others have the hidden size in as many parts as there are heads.
    pub(super) fn states_head_dim(self) -> bool {
        !matches!(self, Family::GptNeoX | Family::StableLm)
    }

    /// The size of a head where `config.json` says nothing; `None`: the hidden size in as many parts as there are heads.
    pub(super) fn default_head_dim(self) -> Option<usize> {
        match self {
            Family::Qwen3 | Family::Ministral3 => Some(128),
            Family::Gemma | Family::Gemma2 | Family::Gemma3 => Some(256),
            _ => None,
        }
    }

    pub(in crate::models) fn query_key_norms(self) -> QueryKeyNorms {
        match self {
            Family::Qwen3 | Family::Gemma3 => QueryKeyNorms::ByHead,
            Family::Olmo2 | Family::Olmo3 => QueryKeyNorms::Whole,
            _ => QueryKeyNorms::None,
        }
    }

    /// Gated by GELU, norms that multiply by 1 + weight, embeddings that are scaled; the head is the embedding.
    pub(in crate::models) fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma | Family::Gemma2 | Family::Gemma3)
    }

    pub(in crate::models) fn block_norms(self) -> BlockNorms {
        match self {
            Family::Gemma2 | Family::Gemma3 => BlockNorms::Around,
            Family::Olmo2 | Family::Olmo3 => BlockNorms::After,
            _ => BlockNorms::Before,
        }
    }

    /// The norms' epsilon where `config.json` says nothing.
    pub(super) fn default_eps(self) -> f64 {
        match self {
            Family::Phi3 | Family::Olmo2 | Family::Olmo3 | Family::Ministral3 => 1e-5,
            _ if self.has_layer_norms() => 1e-5,
            _ => 1e-6,
        }
    }

    pub(super) fn eps_key(self) -> &'static str {
        match self {
            Family::GptNeoX | Family::StableLm => "layer_norm_eps",
            Family::Starcoder2 => "norm_epsilon",
            _ => "rms_norm_eps",
        }
    }

    pub(in crate::models) fn has_layer_norms(self) -> bool {
        matches!(self, Family::GptNeoX | Family::StableLm | Family::Starcoder2)
    }

    /// Where `config.json` says nothing.
    pub(super) fn default_theta(self) -> f64 {
        match self {
            Family::Gemma3 => 1e6,
            Family::Olmo3 => 5e5,
            Family::SmolLm3 => 2e6,
            _ => 1e4,
        }
    }

    /// Whether the head is the embedding where `config.json` says nothing.
    pub(super) fn default_tied(self) -> bool {
        self.is_gemma() || matches!(self, Family::SmolLm3 | Family::Starcoder2)
    }

    /// Whether the rotary embedding may turn a part of each head alone.
    pub(super) fn turns_parts(self) -> bool {
        matches!(self, Family::Phi3 | Family::GptNeoX | Family::StableLm)
    }

    /// Layers whose queries and keys are not turned, of SmolLM 3: every fourth, where the file says nothing.
    pub(super) fn read_unturned(self, keys: &Keys<'_>, layers: usize) -> Result<Vec<usize>, ConfigError> {
        if self != Family::SmolLm3 {
            return Ok(Vec::new());
        }
        const LIST: &str = "no_rope_layers";
        let Some(value) = keys.get(LIST) else {
            let period = keys.optional("no_rope_layer_interval", Keys::size)?.unwrap_or(4);
            return Ok((0..layers).filter(|layer| (layer + 1).is_multiple_of(period)).collect());
        };
        let turns = |flag: &Value| flag.as_u64().filter(|flag| *flag < 2);
        let all: Option<Vec<u64>> = value.as_array().and_then(|flags| flags.iter().map(turns).collect());
        let all = all.filter(|all| all.len() >= layers).ok_or_else(|| {
            keys.wrong(
                LIST,
                value,
                format!("1 or 0 for each of {layers} layers: 0 where it has no rotary embedding"),
            )
        })?;
        Ok((0..layers).filter(|layer| all[*layer] == 0).collect())
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

    /// The number of heads of keys and values. A file that is silent means as many as of queries in some; the others' defaults
    /// belong to one size of theirs.
    pub(super) fn read_kv_heads(self, keys: &Keys<'_>, heads: usize) -> Result<usize, ConfigError> {
        if self == Family::GptNeoX {
            return Ok(heads);
        }
        match keys.optional(KV_HEADS, Keys::size)? {
            Some(count) => Ok(count),
            None if keys.object.contains_key(KV_HEADS) => Ok(heads),
            None => match self {
                Family::Llama | Family::Phi3 | Family::Olmo2 | Family::Olmo3 | Family::Granite => Ok(heads),
                _ => keys.size(KV_HEADS),
            },
        }
    }

    /// `unturned`: the layers that [`Family::read_unturned`] found.
    pub(super) fn read_window(
        self,
        keys: &Keys<'_>,
        layers: usize,
        unturned: &[usize],
    ) -> Result<Window, ConfigError> {
        const KEY: &str = "sliding_window";
        let none = || Window { tokens: None, full_layers: Vec::new() };
        // null is none; a file that is silent has transformers' default
        let tokens = || match keys.object.contains_key(KEY) {
            true => keys.optional(KEY, Keys::size),
            false => Ok(Some(4096)),
        };
        let slides = match self {
            Family::Llama
            | Family::Gemma
            | Family::Olmo2
            | Family::Granite
            | Family::GptNeoX
            | Family::StableLm => return Ok(none()),
            Family::Mistral => return Ok(Window { tokens: tokens()?, full_layers: Vec::new() }),
            Family::Phi3 | Family::Ministral3 | Family::Starcoder2 => {
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
            Family::SmolLm3 => {
                if keys.optional("use_sliding_window", Keys::flag)? != Some(true) || keys.get(KEY).is_none() {
                    return Ok(none());
                }
                layers_with_window(keys, layers, |layer| unturned.contains(&layer))?
            }
            Family::Olmo3 => layers_with_window(keys, layers, |layer| !(layer + 1).is_multiple_of(4))?,
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
