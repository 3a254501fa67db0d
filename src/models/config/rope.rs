//! Rotary position embedding: its frequencies, and how configuration files spell it.

use super::ConfigError;
use super::keys::{Keys, same};
use serde::Serialize;
use serde_json::json;
use std::f64::consts::TAU;

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

/// `rope_scaling` is preferred where both spellings are there, as transformers does.
pub(super) fn read_rope(keys: &Keys<'_>, max_position_embeddings: usize) -> Result<Rope, ConfigError> {
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
