//! What parts of a network are multiplied by.

use super::keys::Keys;
use super::{ConfigError, Family, ModelConfig};
use crate::graph::DType;
use crate::ops::attention::Scoring;
use half::{bf16, f16};
use serde::Serialize;

/// What parts of a Granite are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Multipliers {
    /// Token embeddings.
    pub embedding: f64,
    /// What attention and MLP add to the stream.
    pub residual: f64,
    /// Attention's scores, in place of the inverse root of a head's size.
    pub attention: f64,
    /// Logits are divided by it.
    pub logits: f64,
}

impl Multipliers {
    pub(super) fn read(keys: &Keys<'_>, family: Family) -> Result<Option<Self>, ConfigError> {
        if family != Family::Granite {
            return Ok(None);
        }
        let read = |key: &str| Ok(keys.optional(key, Keys::positive)?.unwrap_or(1.0));
        Ok(Some(Multipliers {
            embedding: read("embedding_multiplier")?,
            residual: read("residual_multiplier")?,
            attention: read("attention_multiplier")?,
            logits: read("logits_scaling")?,
        }))
    }
}

impl ModelConfig {
    /// How attention's scores are made.
    pub fn scoring(&self) -> Scoring {
        let usual = Scoring::of(self.head_dim);
        let scale = match (self.multipliers, self.query_pre_attn_scalar) {
            (Some(multipliers), _) => multipliers.attention,
            (None, Some(scalar)) => 1.0 / scalar.sqrt(),
            (None, None) => usual.scale,
        };
        Scoring { scale, soft_cap: self.attention_soft_cap, ..usual }
    }

    /// What token embeddings are multiplied by, in the type that the table is stored in where transformers has it so.
    pub fn embedding_scale(&self, dtype: DType) -> f64 {
        if let Some(multipliers) = self.multipliers {
            // see `norm`
            return multipliers.embedding / multipliers.residual;
        }
        let root = (self.hidden_size as f64).sqrt();
        match dtype {
            _ if !self.scaled_embedding => 1.0,
            DType::BF16 => f64::from(bf16::from_f64(root)),
            DType::F16 => f64::from(f16::from_f64(root)),
            _ => root,
        }
    }

    /// What the logits are multiplied by.
    pub fn logit_scale(&self) -> f64 {
        self.multipliers.map_or(1.0, |multipliers| 1.0 / multipliers.logits)
    }

    /// What attention and MLP add to the stream is multiplied by.
    pub(super) fn residual_multiplier(&self) -> f64 {
        self.multipliers.map_or(1.0, |multipliers| multipliers.residual)
    }
}
