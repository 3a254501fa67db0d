//! Where a model normalises, and by what.

use super::ModelConfig;
use crate::ops::rms_norm::Norm;
use serde::Serialize;

/// Where a block has norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockNorms {
    /// What attention and MLP read is normalised.
    #[default]
    Before,
    /// That, and what they add to the stream.
    Around,
    /// What they add to the stream.
    After,
}

impl BlockNorms {
    /// The norm before attention.
    pub(in crate::models) fn before_attention(self) -> Option<&'static str> {
        (self != BlockNorms::After).then_some("input_layernorm")
    }

    /// The norm of what attention adds.
    pub(in crate::models) fn after_attention(self) -> Option<&'static str> {
        (self != BlockNorms::Before).then_some("post_attention_layernorm")
    }

    /// The norm before the MLP, which most name after what lies before it.
    pub(in crate::models) fn before_mlp(self) -> Option<&'static str> {
        match self {
            BlockNorms::Before => Some("post_attention_layernorm"),
            BlockNorms::Around => Some("pre_feedforward_layernorm"),
            BlockNorms::After => None,
        }
    }

    /// The norm of what the MLP adds.
    pub(in crate::models) fn after_mlp(self) -> Option<&'static str> {
        (self != BlockNorms::Before).then_some("post_feedforward_layernorm")
    }
}

/// How queries and keys are normalised before the rotary embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryKeyNorms {
    #[default]
    None,
    /// Head by head, by one weight for all.
    ByHead,
    /// All heads of a token together.
    Whole,
}

impl ModelConfig {
    /// The constants of its norms.
    ///
    /// Where what attention and MLP add is multiplied by m, the stream is kept divided by m instead: what they add is added as it is,
    /// token embeddings are divided by m, and a norm of x / m with eps / m² is that of x with eps.
    pub fn norm(&self) -> Norm {
        let residual = self.residual_multiplier();
        Norm { eps: self.norm_eps / (residual * residual), unit_offset: self.unit_offset }
    }

    /// The widths of the norms of queries and of keys.
    pub(in crate::models) fn query_key_norm_widths(&self) -> Option<[usize; 2]> {
        match self.query_key_norms {
            QueryKeyNorms::None => None,
            QueryKeyNorms::ByHead => Some([self.head_dim; 2]),
            QueryKeyNorms::Whole => Some([self.heads * self.head_dim, self.kv_heads * self.head_dim]),
        }
    }
}
