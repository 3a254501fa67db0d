//! A token embedding that stays in host memory: only the rows of a micro-batch travel to the device.

use super::upload::{packed, quantised};
use super::weights::{WeightError, WeightSource};
use crate::graph::layout::{pack, unpack};
use crate::graph::{Shape, TensorType};
use crate::models::{EMBEDDING, Network};
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
        let bytes = match network.weights {
            // the values that a device would read from blocks
            WeightMode::Frozen(storage) if storage.outer.is_quantised() => {
                let blocks_type = TensorType::new(ty.shape, storage.outer);
                let blocks = match source.stored_blocks(EMBEDDING)?.filter(|stored| stored.ty == blocks_type)
                {
                    Some(stored) => stored.blocks,
                    None => quantised(source, EMBEDDING, blocks_type)?,
                };
                let rows = (0..ty.rows()).map(|row| row * ty.cols()..(row + 1) * ty.cols());
                let one = TensorType::new(Shape::matrix(1, ty.cols()), ty.dtype);
                rows.flat_map(|row| pack(one, &blocks.dequantise_range(blocks_type, row))).collect()
            }
            _ => packed(source, EMBEDDING, ty)?,
        };
        let bytes = match network.config.embedding_scale(ty.dtype) {
            1.0 => bytes,
            scale => {
                let values = unpack(ty, &bytes).into_iter().map(|value| value * scale as f32);
                pack(ty, &values.collect::<Vec<_>>())
            }
        };
        Ok(Some(HostEmbedding { row_bytes: bytes.len() / ty.rows(), bytes }))
    }

    /// The rows of these tokens, one after the other.
    pub fn rows(&self, tokens: &[u32]) -> Vec<u8> {
        let row = |&token: &u32| &self.bytes[token as usize * self.row_bytes..][..self.row_bytes];
        tokens.iter().flat_map(row).copied().collect()
    }
}

fn table_type(network: &Network) -> TensorType {
    let shape = Shape::matrix(network.config.vocab_size, network.config.hidden_size);
    TensorType::new(shape, network.activations)
}
