//! What a block consists of, beside its norms: which linear layers have a bias or are one, how the MLP is made, and whether it stands beside
//! attention.

use super::keys::Keys;
use super::{ConfigError, Family};
use crate::ops::activation::Activation;
use serde::Serialize;
use serde_json::json;

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

/// Which linear layers of a block are one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinedLayers {
    #[default]
    None,
    /// Those of queries, keys and values, one after the other, and those of gate and up.
    Whole,
    /// Those of queries, keys and values, head by head.
    ByHead,
}

impl Family {
    pub(in crate::models) fn joined_layers(self) -> JoinedLayers {
        match self {
            Family::Phi3 => JoinedLayers::Whole,
            Family::GptNeoX => JoinedLayers::ByHead,
            _ => JoinedLayers::None,
        }
    }

    pub(in crate::models) fn gated_mlp(self) -> bool {
        !matches!(self, Family::GptNeoX | Family::Starcoder2)
    }

    /// Where `config.json` says nothing.
    pub(in crate::models) fn activation(self) -> Activation {
        match self {
            Family::GptNeoX => Activation::Gelu,
            Family::Starcoder2 => Activation::GeluTanh,
            _ if self.is_gemma() => Activation::GeluTanh,
            _ => Activation::Silu,
        }
    }

    /// Gemma's first files say gelu and mean its approximation, as transformers takes it.
    pub(super) fn read_activation(self, keys: &Keys<'_>) -> Result<Activation, ConfigError> {
        // Gemma's files have the first, of which the second is an older name
        let names = if self.is_gemma() { &["hidden_activation", "hidden_act"][..] } else { &["hidden_act"] };
        let key = names.iter().copied().find(|key| keys.get(key).is_some());
        let Some((key, value)) = key.and_then(|key| Some((key, keys.get(key)?))) else {
            return Ok(self.activation());
        };
        let found = match value.as_str() {
            Some("silu" | "swish") => Some(Activation::Silu),
            Some("gelu") if self == Family::Gemma => Some(Activation::GeluTanh),
            Some("gelu") => Some(Activation::Gelu),
            // one approximation, of which each name is one way to write it
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Some(Activation::GeluTanh),
            _ => None,
        };
        match found {
            Some(found) if !self.gated_mlp() || found == self.activation() => Ok(found),
            _ if !self.gated_mlp() => {
                let reason = "known here are gelu, gelu_new, gelu_fast, gelu_pytorch_tanh and silu";
                Err(keys.refused(key, value, reason))
            }
            _ if self.is_gemma() => Err(keys.refused(key, value, "the gated MLP uses gelu_pytorch_tanh")),
            _ => Err(keys.refused(key, value, "the gated MLP uses silu")),
        }
    }

    pub(super) fn read_bias(self, keys: &Keys<'_>) -> Result<AttentionBias, ConfigError> {
        let flag = |key, usual| Ok::<bool, ConfigError>(keys.optional(key, Keys::flag)?.unwrap_or(usual));
        let all = |said| if said { AttentionBias::All } else { AttentionBias::None };
        let said = flag("attention_bias", self == Family::GptNeoX)?;
        match self {
            Family::StableLm if flag("use_qkv_bias", false)? => Ok(AttentionBias::Inputs),
            Family::StableLm => Ok(AttentionBias::None),
            Family::Starcoder2 => Ok(all(flag("use_bias", true)?)),
            Family::Qwen2 => Ok(AttentionBias::Inputs),
            Family::Mistral | Family::Ministral3 | Family::Phi3 if said => {
                Err(keys.refused("attention_bias", &json!(true), "this family's linear layers have no bias"))
            }
            _ => Ok(all(said)),
        }
    }

    pub(super) fn read_mlp_bias(self, keys: &Keys<'_>) -> Result<bool, ConfigError> {
        match self {
            Family::GptNeoX => Ok(true),
            Family::Starcoder2 => Ok(keys.optional("use_bias", Keys::flag)?.unwrap_or(true)),
            _ if keys.optional("mlp_bias", Keys::flag)? == Some(true) => {
                Err(keys.refused("mlp_bias", &json!(true), "the linear layers of MLPs have no bias"))
            }
            _ => Ok(false),
        }
    }

    pub(super) fn read_parallel_residual(self, keys: &Keys<'_>) -> Result<bool, ConfigError> {
        const KEY: &str = "use_parallel_residual";
        let said = keys.optional(KEY, Keys::flag)?;
        match self {
            Family::GptNeoX => Ok(said.unwrap_or(true)),
            Family::StableLm if said == Some(true) => {
                Err(keys.refused(KEY, &json!(true), "attention and MLP that share a norm are not built"))
            }
            _ => Ok(false),
        }
    }
}
