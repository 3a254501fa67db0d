//! Element types a tensor can be stored in. Arithmetic is always f32 (u32 for indices).
//!
//! Frozen weights can be block-quantised as well: see [`super::blocks`].

use serde::{Deserialize, Serialize};
use std::fmt;

/// Storage type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    F16,
    BF16,
    U32,
    /// Four bits, blocks of 64.
    Nf4,
    /// Four bits, blocks of 64 with quantised scales.
    #[serde(rename = "nf4-dq")]
    Nf4Double,
    /// Eight bits, a scale per row.
    Int8,
}

impl DType {
    /// Bytes of one element; of block-quantised types, whose elements share bytes and scales, at least one.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Nf4 | DType::Nf4Double | DType::Int8 => 1,
        }
    }

    /// Whether elements are held in blocks that share a scale.
    pub fn is_quantised(self) -> bool {
        matches!(self, DType::Nf4 | DType::Nf4Double | DType::Int8)
    }

    pub fn is_float(self) -> bool {
        self != DType::U32
    }

    /// The name that shaders and reports use.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::U32 => "u32",
            DType::Nf4 => "nf4",
            DType::Nf4Double => "nf4-dq",
            DType::Int8 => "int8",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
