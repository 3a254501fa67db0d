//! Weights that bitsandbytes saved in four bits.
//!
//! A weight `w` is the codes as U8 `[elements / 2, 1]`, with `w.absmax`, `w.quant_map` and
//! `w.quant_state.bitsandbytes__nf4`, which is JSON as bytes (shape, block sizes, the scales' mean); under double
//! quantisation `w.absmax` is U8 and `w.nested_absmax` and `w.nested_quant_map` give it a meaning.

use super::{Checkpoint, CheckpointError};
use crate::graph::blocks::{BLOCK, Blocks, NF4, SCALE_BLOCK, Scales};
use crate::graph::{DType, Shape, TensorType};
use serde::Deserialize;

const STATE: &str = ".quant_state.bitsandbytes__";

/// A weight in blocks, as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredBlocks {
    pub ty: TensorType,
    pub blocks: Blocks,
}

#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

impl Checkpoint {
    /// How bitsandbytes quantised the linear layers, where it did: NF4, or NF4 with double quantisation.
    ///
    /// # Errors
    /// Another way of quantising, a state that cannot be read.
    pub fn quantised(&self) -> Result<Option<DType>, CheckpointError> {
        let mut names = self.names().filter_map(|n| n.split_once(STATE).map(|(weight, _)| weight));
        let Some(name) = names.next() else { return Ok(None) };
        Ok(self.state(name)?.map(|(_, ty)| ty.dtype))
    }

    /// Type and shape of a weight that is stored in blocks; `None` for all others.
    ///
    /// # Errors
    /// Another way of quantising than NF4 in the usual blocks, a state that cannot be read.
    pub fn quantised_type(&self, name: &str) -> Result<Option<TensorType>, CheckpointError> {
        Ok(self.state(name)?.map(|(_, ty)| ty))
    }

    /// A weight as it is stored in blocks; `None` for all others.
    ///
    /// # Errors
    /// As [`Checkpoint::quantised_type`], and parts that are missing or not of the shape's size.
    pub fn blocks(&self, name: &str) -> Result<Option<StoredBlocks>, CheckpointError> {
        let Some((state, ty)) = self.state(name)? else { return Ok(None) };
        let elements = ty.shape.elements();
        let blocks = elements.div_ceil(BLOCK);
        let part = |suffix: &str| format!("{name}{suffix}");
        let bytes = |name: String, count: usize| -> Result<Vec<u8>, CheckpointError> {
            let (dtype, bytes) = self.raw(&name)?;
            let fits = dtype == "U8" && bytes.len() == count;
            let reason =
                || format!("{dtype}, {} bytes; a weight {} has {count} bytes there", bytes.len(), ty.shape);
            if fits { Ok(bytes.to_vec()) } else { Err(self.odd(&name, reason())) }
        };
        let floats = |name: String, count: usize| -> Result<Vec<f32>, CheckpointError> {
            let values = self.tensor(&name)?.to_f32();
            let reason = || format!("{} values; a weight {} has {count} there", values.len(), ty.shape);
            if values.len() == count { Ok(values) } else { Err(self.odd(&name, reason())) }
        };
        let book = floats(part(".quant_map"), NF4.len())?;
        if book != NF4 {
            return Err(self.odd(&part(".quant_map"), "its values are not NF4's".into()));
        }
        let scales = match ty.dtype {
            DType::Nf4Double => Scales::Double {
                codes: bytes(part(".absmax"), blocks)?,
                scales: floats(part(".nested_absmax"), blocks.div_ceil(SCALE_BLOCK))?,
                offset: state.nested_offset.unwrap_or(0.0),
                map: floats(part(".nested_quant_map"), 256)?,
            },
            _ => Scales::Plain(floats(part(".absmax"), blocks)?),
        };
        let codes = bytes(name.to_string(), elements.div_ceil(2))?;
        Ok(Some(StoredBlocks { ty, blocks: Blocks { codes, scales } }))
    }

    /// Names of the tensors that only describe a weight in blocks: scales, code books, states.
    pub fn block_parts(&self) -> impl Iterator<Item = &str> {
        const SUFFIXES: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
        let of_blocks = |weight: &str| {
            let prefix = format!("{weight}{STATE}");
            self.names().any(|name| name.starts_with(&prefix))
        };
        self.names().filter(move |name| {
            name.contains(STATE)
                || SUFFIXES.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(of_blocks))
        })
    }

    fn state(&self, name: &str) -> Result<Option<(State, TensorType)>, CheckpointError> {
        let prefix = format!("{name}{STATE}");
        let Some(key) = self.names().find(|n| n.starts_with(&prefix)) else { return Ok(None) };
        let (_, bytes) = self.raw(key)?;
        let state: State = serde_json::from_slice(bytes)
            .map_err(|e| self.odd(key, format!("is not the state of a weight: {e}")))?;
        let nested = state.nested_blocksize;
        let usual = state.quant_type == "nf4"
            && state.blocksize == BLOCK
            && nested.is_none_or(|size| size == SCALE_BLOCK)
            && state.shape.len() == 2;
        if !usual {
            let State { quant_type, blocksize, shape, .. } = &state;
            let found = format!(
                "{quant_type} in blocks of {blocksize} ({nested:?} under double quantisation), shape {shape:?}; engraft reads \
                 nf4 in blocks of {BLOCK} ({SCALE_BLOCK}): quantise the model again, or give the folder of the original and \
                 --quantize"
            );
            return Err(self.odd(key, found));
        }
        let dtype = if nested.is_some() { DType::Nf4Double } else { DType::Nf4 };
        let ty = TensorType::new(Shape::new(&state.shape), dtype);
        Ok(Some((state, ty)))
    }
}
