//! Base weights on their way to the device: from a checkpoint, or random.

use super::optimiser::Optimiser;
use super::upload::{Target, upload};
use crate::checkpoint::{Checkpoint, CheckpointError, StoredBlocks, encode};
use crate::gpu::{Gpu, GpuError, allocation};
use crate::graph::layout::pack;
use crate::graph::{DType, Graph, LeafKind};
use crate::models::{
    EMBEDDING_WEIGHTS, HEAD_WEIGHT, LOCAL_ROPE_TABLE, ModelConfig, Network, QUERY_ROPE_TABLE, ROPE_TABLE,
};
use crate::nn::PlainLayers;
use crate::ops::rope::rope_table;
use crate::plan::{Bindings, StreamLayout, Streamed};
use crate::stop::{StopFlag, Stopped};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum WeightError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error("the weights were not loaded to their end: {0}")]
    Stopped(#[from] Stopped),
}

/// Where the weights of blocks in host memory come to.
pub(super) fn stream_layout(graph: &Graph, network: &Network) -> StreamLayout {
    StreamLayout::new(graph, |weight| network.offloaded(weight))
}

/// Bytes that the frozen leaves of a graph take on a device.
pub(super) fn weight_bytes(graph: &Graph, network: &Network) -> u64 {
    let streams = stream_layout(graph, network);
    let leaves =
        graph.leaves().iter().filter(|l| l.kind == LeafKind::Frozen && streams.place(&l.name).is_none());
    let resident: u64 = leaves.map(|leaf| allocation(graph.type_of(leaf.value).bytes())).sum();
    resident + streams.device_bytes()
}

/// Bytes of the weights that stay in host memory, but for a token embedding.
pub(super) fn streamed_bytes(graph: &Graph, network: &Network) -> u64 {
    stream_layout(graph, network).host_bytes()
}

/// Where base weights come from.
pub enum WeightSource {
    Checkpoint(Checkpoint),
    /// Normal numbers of transformers' standard deviation 0.02, from this seed; biases are zero, norms `norms`.
    Random {
        seed: u64,
        norms: f32,
    },
}

impl WeightSource {
    /// Random weights, with which the norms of such a model leave as it is what they normalise.
    pub fn random(config: &ModelConfig, seed: u64) -> Self {
        WeightSource::Random { seed, norms: if config.unit_offset { 0.0 } else { 1.0 } }
    }

    /// Checks that a checkpoint has every weight in its shape.
    ///
    /// # Errors
    /// The first weight that is missing or of another shape.
    pub fn check(&self, config: &ModelConfig) -> Result<(), WeightError> {
        if let WeightSource::Checkpoint(checkpoint) = self {
            checkpoint.check_embedded(config.embedded)?;
            checkpoint.check_tied(config.tied_names())?;
            let expected = config.expected_shapes();
            checkpoint.check(expected.iter().map(|(name, dims)| (name.as_str(), dims.as_slice())))?;
        }
        Ok(())
    }

    /// The linear layers that a checkpoint of blocks stores plain (`llm_int8_skip_modules` of its config.json names them, its
    /// headers decide); none for all other sources.
    ///
    /// # Errors
    /// Blocks that cannot be read.
    pub fn plain_layers(&self, config: &ModelConfig) -> Result<PlainLayers, WeightError> {
        let mut plain = BTreeSet::new();
        if let WeightSource::Checkpoint(checkpoint) = self
            && checkpoint.quantised()?.is_some()
        {
            for (module, _, _) in Network::linear_modules(config) {
                if checkpoint.quantised_type(&format!("{module}.weight"))?.is_none() {
                    plain.insert(module);
                }
            }
        }
        Ok(Arc::new(plain))
    }

    /// A weight as a checkpoint of blocks stores it; `None` for all others.
    ///
    /// # Errors
    /// Blocks that cannot be read.
    pub(super) fn stored_blocks(&self, name: &str) -> Result<Option<StoredBlocks>, WeightError> {
        match self {
            WeightSource::Checkpoint(checkpoint) => Ok(checkpoint.blocks(name)?),
            WeightSource::Random { .. } => Ok(None),
        }
    }

    /// Appends the elements of this range of a weight, row-major without padding, in a storage type. `raw` is scratch space.
    ///
    /// # Errors
    /// A weight that the checkpoint lacks, a file that cannot be read.
    pub(super) fn write_elements(
        &self,
        name: &str,
        dims: &[usize],
        elements: Range<usize>,
        dtype: DType,
        raw: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), WeightError> {
        let (seed, norms) = match self {
            WeightSource::Checkpoint(checkpoint) => {
                // a head that is trained by itself begins as the embedding that it is tied to
                let absent = name == HEAD_WEIGHT && !checkpoint.contains(name);
                let embedding =
                    EMBEDDING_WEIGHTS.into_iter().find(|name| absent && checkpoint.contains(name));
                let name = embedding.unwrap_or(name);
                if let Some(stored) = checkpoint.blocks(name)? {
                    encode(&stored.blocks.dequantise_range(stored.ty, elements), dtype, out);
                    return Ok(());
                }
                return Ok(checkpoint.read_elements(name, elements, dtype, raw, out)?);
            }
            WeightSource::Random { seed, norms } => (*seed, *norms),
        };
        let mut random = Random::named(seed, name);
        // a normal number takes two
        random.skip(2 * elements.start as u64);
        let bias = name.ends_with(".bias");
        let mut values = || match dims.len() {
            1 if bias => 0.0,
            1 => norms,
            _ => 0.02 * random.normal() as f32,
        };
        let mut block = [0.0; 4096];
        let mut left = elements.len();
        while left > 0 {
            let some = &mut block[..left.min(4096)];
            some.fill_with(&mut values);
            encode(some, dtype, out);
            left -= some.len();
        }
        Ok(())
    }

    /// Uploads every frozen leaf of the graph, and the rotary table; gives the bytes allocated on the device. Weights of blocks
    /// that stay in host memory go into the buffers there, and are bound to the slots that they will come to.
    ///
    /// # Errors
    /// A weight that is missing, a failed allocation.
    pub fn upload(
        &self,
        gpu: &Gpu,
        graph: &Graph,
        network: &Network,
        bindings: &mut Bindings,
    ) -> Result<u64, WeightError> {
        self.upload_until(gpu, graph, network, bindings, &StopFlag::default())
    }

    /// [`WeightSource::upload`], unless it is asked to stop on the way.
    ///
    /// # Errors
    /// As [`WeightSource::upload`]; [`WeightError::Stopped`].
    pub fn upload_until(
        &self,
        gpu: &Gpu,
        graph: &Graph,
        network: &Network,
        bindings: &mut Bindings,
        stop: &StopFlag,
    ) -> Result<u64, WeightError> {
        let streams = stream_layout(graph, network);
        let blocks = streams.allocate(gpu)?;
        let mut total = streams.device_bytes();
        let mut targets = Vec::new();
        for leaf in graph.leaves().iter().filter(|l| l.kind == LeafKind::Frozen) {
            let ty = graph.type_of(leaf.value);
            if let Some((block, offset)) = streams.place(&leaf.name) {
                let upload = blocks[&block].clone();
                let [slice, slot] = [&upload.from, &upload.to].map(|block| block.part(offset, ty.bytes()));
                targets.push(Target { name: leaf.name.clone(), ty, slice });
                bindings.stream(leaf.name.clone(), slot, Streamed { block, upload });
                continue;
            }
            let buffer = gpu.allocate(&leaf.name, ty.bytes())?;
            total += buffer.size();
            bindings.bind(leaf.name.clone(), buffer.whole());
            let config = &network.config;
            let rope = match leaf.name.as_str() {
                ROPE_TABLE | QUERY_ROPE_TABLE => Some(&config.rope),
                LOCAL_ROPE_TABLE => config.local_rope.as_ref(),
                _ => None,
            };
            if let Some(rope) = rope {
                let mut table = rope_table(&rope.inverse_frequencies(config.rotary_dim()), ty.rows());
                let factor = rope.attention_factor() as f32;
                table.iter_mut().for_each(|value| *value *= factor);
                if let Some(scaling) = config.query_scaling.filter(|_| leaf.name == QUERY_ROPE_TABLE) {
                    for (position, row) in table.chunks_mut(config.rotary_dim()).enumerate() {
                        let scale = scaling.at(position) as f32;
                        row.iter_mut().for_each(|value| *value *= scale);
                    }
                }
                buffer.whole().write(&pack(ty, &table));
            } else {
                targets.push(Target { name: leaf.name.clone(), ty, slice: buffer.whole() });
            }
        }
        upload(gpu, self, &targets, stop)?;
        Ok(total)
    }
}

/// Gives the trainable parameters their first values: adapters as PEFT starts them (A uniform in ±1/√in, B zero), base
/// weights from `source`.
///
/// # Errors
/// A weight that the checkpoint lacks, and what the device reported.
pub fn write_initial_values(
    gpu: &Gpu,
    optimiser: &Optimiser,
    source: &WeightSource,
    seed: u64,
    stop: &StopFlag,
) -> Result<(), WeightError> {
    let mut targets = Vec::new();
    for (name, ty, slice) in optimiser.slices() {
        if name.ends_with(".lora_B.weight") {
            // as it was allocated: zero
        } else if name.ends_with(".lora_A.weight") {
            // kaiming_uniform with a = √5 has the bound 1 / √fan_in
            let bound = 1.0 / (ty.cols() as f64).sqrt();
            let mut random = Random::named(seed, name);
            let values = (0..ty.shape.elements()).map(|_| ((2.0 * random.uniform() - 1.0) * bound) as f32);
            slice.write(&pack(ty, &values.collect::<Vec<_>>()));
        } else {
            targets.push(Target { name: name.to_owned(), ty, slice });
        }
    }
    upload(gpu, source, &targets, stop)
}

/// Counter-based generator (SplitMix64: Steele, Lea & Flood 2014), one stream per seed and name.
struct Random(u64);

/// The golden ratio in 64 bits, which the counter advances by.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    fn named(seed: u64, name: &str) -> Self {
        // FNV-1a tells the streams apart
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Random(hash ^ seed.wrapping_mul(STEP))
    }

    /// Passes over so many numbers.
    fn skip(&mut self, count: u64) {
        self.0 = self.0.wrapping_add(count.wrapping_mul(STEP));
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
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
    fn pieces_are_those_of_the_whole() {
        let source = WeightSource::Random { seed: 9, norms: 1.0 };
        let elements = |range| {
            let mut out = Vec::new();
            source.write_elements("w", &[100, 100], range, DType::BF16, &mut Vec::new(), &mut out).unwrap();
            out
        };
        let whole = elements(0..10_000);
        assert!(whole == [elements(0..1), elements(1..5_000), elements(5_000..10_000)].concat());
        assert!(elements(0..64) != elements(64..128));
    }

    #[test]
    fn normal_numbers_have_the_stated_spread() {
        let mut random = Random::named(1, "x");
        let values: Vec<f64> = (0..20_000).map(|_| random.normal()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "mean {mean}, variance {variance}");
    }
}
