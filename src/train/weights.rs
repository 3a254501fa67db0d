//! Base weights on their way to the device: from a checkpoint, or random.

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::gpu::{Gpu, GpuError};
use crate::graph::layout::pack;
use crate::graph::{Graph, LeafKind};
use crate::models::{ModelConfig, ROPE_TABLE};
use crate::ops::rope::rope_table;
use crate::plan::{Bindings, ParameterSpace};
use std::collections::HashMap;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum WeightError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// Where base weights come from.
pub enum WeightSource {
    Checkpoint(Checkpoint),
    /// Normal numbers of transformers' standard deviation 0.02 (norms are one), from this seed.
    Random {
        seed: u64,
    },
}

/// Bytes that wait in upload memory before they are sent.
const UPLOAD_BYTES: u64 = 64 << 20;

impl WeightSource {
    /// Checks that a checkpoint has every weight in its shape.
    ///
    /// # Errors
    /// The first weight that is missing or of another shape.
    pub fn check(&self, config: &ModelConfig) -> Result<(), WeightError> {
        if let WeightSource::Checkpoint(checkpoint) = self {
            let expected = config.expected_shapes();
            checkpoint.check(expected.iter().map(|(name, dims)| (name.as_str(), dims.as_slice())))?;
        }
        Ok(())
    }

    /// Values of one weight, row-major.
    ///
    /// # Errors
    /// A weight that the checkpoint lacks.
    pub fn values(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>, WeightError> {
        match self {
            WeightSource::Checkpoint(checkpoint) => Ok(match checkpoint.blocks(name)? {
                Some(stored) => stored.blocks.dequantise(stored.ty),
                None => checkpoint.tensor(name)?.to_f32(),
            }),
            WeightSource::Random { .. } if dims.len() == 1 => Ok(vec![1.0; dims[0]]),
            WeightSource::Random { seed } => {
                let mut random = Random::named(*seed, name);
                Ok((0..dims.iter().product()).map(|_| 0.02 * random.normal() as f32).collect())
            }
        }
    }

    /// Uploads every frozen leaf of the graph, and the rotary table; gives the bytes allocated.
    ///
    /// # Errors
    /// A weight that is missing, a failed allocation.
    pub fn upload(
        &self,
        gpu: &Gpu,
        graph: &Graph,
        config: &ModelConfig,
        bindings: &mut Bindings,
    ) -> Result<u64, WeightError> {
        let (mut total, mut waiting) = (0, 0);
        for leaf in graph.leaves().iter().filter(|l| l.kind == LeafKind::Frozen) {
            let ty = graph.type_of(leaf.value);
            let buffer = gpu.allocate(&leaf.name, ty.bytes())?;
            let bytes = match self {
                _ if leaf.name == ROPE_TABLE => {
                    pack(ty, &rope_table(&config.rope.inverse_frequencies(config.head_dim), ty.rows()))
                }
                WeightSource::Checkpoint(checkpoint) if ty.dtype.is_quantised() => {
                    match checkpoint.blocks(&leaf.name)? {
                        Some(stored) => stored.blocks.pack(ty),
                        None => pack(ty, &checkpoint.tensor(&leaf.name)?.to_f32()),
                    }
                }
                // the fast path: rows without padding need no detour through f32
                WeightSource::Checkpoint(checkpoint) if ty.cols().is_multiple_of(4) => {
                    let mut bytes = Vec::with_capacity(ty.bytes() as usize);
                    checkpoint.tensor(&leaf.name)?.write_as(ty.dtype, &mut bytes);
                    bytes
                }
                _ => pack(ty, &self.values(&leaf.name, ty.shape.dims())?),
            };
            buffer.whole().write(&bytes);
            total += buffer.size();
            waiting += buffer.size();
            if waiting > UPLOAD_BYTES {
                gpu.submit(&[], &[])?;
                gpu.wait()?;
                waiting = 0;
            }
            bindings.bind(leaf.name.clone(), buffer.whole());
        }
        gpu.submit(&[], &[])?;
        Ok(total)
    }
}

/// First values of the trainable parameters: adapters as PEFT starts them (A uniform in ±1/√in, B zero), base weights
/// from `source`.
///
/// # Errors
/// A weight that the checkpoint lacks.
pub fn initial_values(
    space: &ParameterSpace,
    source: &WeightSource,
    seed: u64,
) -> Result<HashMap<String, Vec<f32>>, WeightError> {
    let mut all = HashMap::new();
    for (name, ty, _) in space.entries() {
        let count = ty.shape.elements();
        let values = if name.ends_with(".lora_B.weight") {
            vec![0.0; count]
        } else if name.ends_with(".lora_A.weight") {
            // kaiming_uniform with a = √5 has the bound 1 / √fan_in
            let bound = 1.0 / (ty.cols() as f64).sqrt();
            let mut random = Random::named(seed, name);
            (0..count).map(|_| ((2.0 * random.uniform() - 1.0) * bound) as f32).collect()
        } else {
            source.values(name, ty.shape.dims())?
        };
        all.insert(name.clone(), values);
    }
    Ok(all)
}

/// Counter-based generator (SplitMix64: Steele, Lea & Flood 2014), one stream per seed and name.
struct Random(u64);

impl Random {
    fn named(seed: u64, name: &str) -> Self {
        // FNV-1a tells the streams apart
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Random(hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_numbers_have_the_stated_spread() {
        let mut random = Random::named(1, "x");
        let values: Vec<f64> = (0..20_000).map(|_| random.normal()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "mean {mean}, variance {variance}");
    }
}
