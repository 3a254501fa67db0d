//! A token embedding that stays in host memory: only the rows of a micro-batch travel to the device.

use super::upload::{packed, quantised};
use super::weights::{WeightError, WeightSource};
use crate::gpu::GpuError;
use crate::graph::layout::{pack, unpack};
use crate::graph::{DType, Shape, TensorType};
use crate::models::Network;
use crate::nn::WeightMode;

/// The table `[vocab, hidden size]` in the storage type of activations, scaled where the network does that, rows padded as the
/// device has them.
pub(super) struct HostEmbedding {
    bytes: Vec<u8>,
    row_bytes: usize,
}

impl HostEmbedding {
    /// Bytes that the table of a network takes on the host; 0 where it lies on the device.
    pub fn planned_bytes(network: &Network) -> u64 {
        match network.embeds_on_host() {
            true => table_type(network).bytes(),
            false => 0,
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Reads the table of a network that looks tokens up on the host; `None` for others.
    ///
    /// # Errors
    /// A weight that is missing, a file that cannot be read.
    pub fn read(source: &WeightSource, network: &Network) -> Result<Option<Self>, WeightError> {
        if !network.embeds_on_host() {
            return Ok(None);
        }
        let ty = table_type(network);
        let name = network.config.names().embedding_weight;
        let bytes = match network.weights {
            // the values that a device would read from blocks
            WeightMode::Frozen(storage) if storage.outer.is_quantised() => {
                let blocks_type = TensorType::new(ty.shape, storage.outer);
                let blocks = match source.stored_blocks(name)?.filter(|stored| stored.ty == blocks_type) {
                    Some(stored) => stored.blocks,
                    None => quantised(source, name, blocks_type)?,
                };
                let rows = (0..ty.rows()).map(|row| row * ty.cols()..(row + 1) * ty.cols());
                let one = TensorType::new(Shape::matrix(1, ty.cols()), ty.dtype);
                let scale = network.config.embedding_scale(storage.outer) as f32;
                let row = |row| {
                    let mut values = blocks.dequantise_range(blocks_type, row);
                    values.iter_mut().for_each(|value| *value *= scale);
                    pack(one, &values)
                };
                rows.flat_map(row).collect()
            }
            WeightMode::Frozen(storage) => match network.config.embedding_scale(storage.outer) {
                1.0 => packed(source, name, ty)?,
                scale => scaled(source, (name, ty), storage.outer, scale)?,
            },
            WeightMode::Trainable => packed(source, name, ty)?,
        };
        Ok(Some(HostEmbedding { row_bytes: bytes.len() / ty.rows(), bytes }))
    }

    /// The rows of these tokens, one after the other.
    pub fn rows(&self, tokens: &[u32]) -> Vec<u8> {
        let row = |&token: &u32| &self.bytes[token as usize * self.row_bytes..][..self.row_bytes];
        tokens.iter().flat_map(row).copied().collect()
    }
}

/// The table times `scale`, rounded once from what a device would have stored.
fn scaled(
    source: &WeightSource,
    (name, ty): (&str, TensorType),
    stored: DType,
    scale: f64,
) -> Result<Vec<u8>, WeightError> {
    const ROWS: usize = 1024;
    let mut table = Vec::new();
    let bytes = ty.bytes();
    table
        .try_reserve_exact(bytes as usize)
        .map_err(|_| GpuError::OutOfHostMemory { what: name.to_owned(), bytes })?;
    let (mut raw, mut some) = (Vec::new(), Vec::new());
    for first in (0..ty.rows()).step_by(ROWS) {
        let rows = first..(first + ROWS).min(ty.rows());
        let of = |dtype| TensorType::new(Shape::matrix(rows.len(), ty.cols()), dtype);
        some.clear();
        let elements = rows.start * ty.cols()..rows.end * ty.cols();
        source.write_elements(name, ty.shape.dims(), elements, stored, &mut raw, &mut some)?;
        let values: Vec<f32> = unpack(of(stored), &some).into_iter().map(|v| v * scale as f32).collect();
        table.extend(pack(of(ty.dtype), &values));
    }
    Ok(table)
}

fn table_type(network: &Network) -> TensorType {
    let shape = Shape::matrix(network.config.vocab_size, network.config.hidden_size);
    TensorType::new(shape, network.activations)
}
