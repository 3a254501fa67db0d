//! GGUF files, as llama.cpp reads them.
//!
//! Format (version 3, little-endian): magic, version, counts; metadata as key, type, value; for each tensor its name,
//! dimensions (innermost first), element type and offset; then the data, each tensor at a multiple of 32 bytes.
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use super::shards::{Counted, unwrapped};
use super::{CheckpointError, atomic, encode};
use crate::graph::DType;
use half::f16;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;
use thiserror::Error;

/// The first bytes of every file.
pub const MAGIC: [u8; 4] = *b"GGUF";
const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;
/// Values in a block of Q8_0, and its bytes: an f16 scale and as many signed bytes.
const Q8_BLOCK: usize = 32;
const Q8_BYTES: usize = 34;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Texts(Vec<String>),
}

/// Element types that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    /// Blocks of 32 values with one scale.
    Q8_0,
}

/// A word that names no element type.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is none of f32, f16, bf16, q8_0")]
pub struct UnknownGgmlType(String);

/// A tensor that is to be written, row-major `[rows, columns]` or a vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    pub name: String,
    pub ty: GgmlType,
    pub shape: Vec<usize>,
}

impl GgmlType {
    pub const ALL: [GgmlType; 4] = [GgmlType::F32, GgmlType::F16, GgmlType::Bf16, GgmlType::Q8_0];

    pub fn name(self) -> &'static str {
        match self {
            GgmlType::F32 => "f32",
            GgmlType::F16 => "f16",
            GgmlType::Bf16 => "bf16",
            GgmlType::Q8_0 => "q8_0",
        }
    }

    /// `enum ggml_type`.
    fn id(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q8_0 => 8,
            GgmlType::Bf16 => 30,
        }
    }

    /// `enum llama_ftype`: what most tensors of a file are.
    pub fn file_type(self) -> u32 {
        match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q8_0 => 7,
            GgmlType::Bf16 => 32,
        }
    }

    /// Whether rows of so many values can be held.
    pub fn fits(self, columns: usize) -> bool {
        self != GgmlType::Q8_0 || columns.is_multiple_of(Q8_BLOCK)
    }

    /// Appends values, little-endian; for [`GgmlType::Q8_0`] whole blocks.
    ///
    /// Q8_0 is `ggml_quantize_q8_0`: the scale is the largest magnitude over 127, codes round half away from zero.
    pub fn encode(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            GgmlType::F32 => encode(values, DType::F32, out),
            GgmlType::F16 => encode(values, DType::F16, out),
            GgmlType::Bf16 => encode(values, DType::BF16, out),
            GgmlType::Q8_0 => {
                for block in values.chunks(Q8_BLOCK) {
                    let scale = block.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    out.extend(f16::from_f32(scale).to_le_bytes());
                    out.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
                }
            }
        }
    }

    fn bytes(self, elements: usize) -> usize {
        match self {
            GgmlType::F32 => 4 * elements,
            GgmlType::F16 | GgmlType::Bf16 => 2 * elements,
            GgmlType::Q8_0 => elements / Q8_BLOCK * Q8_BYTES,
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for GgmlType {
    type Err = UnknownGgmlType;

    fn from_str(word: &str) -> Result<Self, UnknownGgmlType> {
        let found = GgmlType::ALL.into_iter().find(|ty| ty.name().eq_ignore_ascii_case(word));
        found.ok_or_else(|| UnknownGgmlType(word.to_owned()))
    }
}

impl GgufTensor {
    fn bytes(&self) -> usize {
        self.ty.bytes(self.shape.iter().product())
    }
}

/// Writes a file that appears only when complete. `fill` is called once per tensor, in order, and writes its elements in the
/// tensor's type; it can pass on a [`CheckpointError`] within [`io::Error::other`].
///
/// # Errors
/// What `fill` reports, elements that do not fill their shape, a failed write.
pub fn write_gguf(
    path: &Path,
    metadata: &[(String, GgufValue)],
    tensors: &[GgufTensor],
    fill: &mut dyn FnMut(&GgufTensor, &mut dyn Write) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let header = header(metadata, tensors);
    let write = |out: &mut dyn Write| {
        out.write_all(&header)?;
        for tensor in tensors {
            let mut counted = Counted { out: &mut *out, bytes: 0 };
            fill(tensor, &mut counted)?;
            counted.check(&tensor.name, tensor.bytes() as u64)?;
            let padding = tensor.bytes().next_multiple_of(ALIGNMENT) - tensor.bytes();
            out.write_all(&[0; ALIGNMENT][..padding])?;
        }
        Ok(())
    };
    atomic::write_file(path, write).map_err(|error| unwrapped(path, error))
}

/// Everything before the data, padded.
fn header(metadata: &[(String, GgufValue)], tensors: &[GgufTensor]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(key, &mut out);
        value.write(&mut out);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&tensor.name, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        out.extend(tensor.ty.id().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

impl GgufValue {
    /// The type's number, for a list that of its elements.
    fn type_id(&self) -> u32 {
        match self {
            GgufValue::U32(_) => 4,
            GgufValue::I32s(_) => 5,
            GgufValue::F32(_) | GgufValue::F32s(_) => 6,
            GgufValue::Bool(_) => 7,
            GgufValue::Text(_) | GgufValue::Texts(_) => 8,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        const ARRAY: u32 = 9;
        let list = match self {
            GgufValue::I32s(list) => Some(list.len()),
            GgufValue::F32s(list) => Some(list.len()),
            GgufValue::Texts(list) => Some(list.len()),
            _ => None,
        };
        if let Some(count) = list {
            out.extend(ARRAY.to_le_bytes());
            out.extend(self.type_id().to_le_bytes());
            out.extend((count as u64).to_le_bytes());
        } else {
            out.extend(self.type_id().to_le_bytes());
        }
        match self {
            GgufValue::U32(value) => out.extend(value.to_le_bytes()),
            GgufValue::F32(value) => out.extend(value.to_le_bytes()),
            GgufValue::Bool(value) => out.push(u8::from(*value)),
            GgufValue::Text(value) => text(value, out),
            GgufValue::I32s(values) => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
            GgufValue::F32s(values) => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
            GgufValue::Texts(values) => values.iter().for_each(|v| text(v, out)),
        }
    }
}

fn text(value: &str, out: &mut Vec<u8>) {
    out.extend((value.len() as u64).to_le_bytes());
    out.extend(value.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_laid_out_as_the_format_says() {
        let metadata = [("a".to_owned(), GgufValue::U32(7)), ("b".to_owned(), GgufValue::I32s(vec![-1]))];
        let tensors = [
            GgufTensor { name: "t".into(), ty: GgmlType::F16, shape: vec![3, 2] },
            GgufTensor { name: "u".into(), ty: GgmlType::F32, shape: vec![1] },
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        write_gguf(&path, &metadata, &tensors, &mut |tensor, out| out.write_all(&vec![1; tensor.bytes()]))
            .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let mut expected = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0".to_vec();
        expected.extend(b"\x01\0\0\0\0\0\0\0a\x04\0\0\0\x07\0\0\0");
        expected.extend(b"\x01\0\0\0\0\0\0\0b\x09\0\0\0\x05\0\0\0\x01\0\0\0\0\0\0\0\xff\xff\xff\xff");
        expected.extend(b"\x01\0\0\0\0\0\0\0t\x02\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0");
        expected.extend([0; 8]);
        expected.extend(b"\x01\0\0\0\0\0\0\0u\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\0");
        expected.resize(expected.len().next_multiple_of(32), 0);
        let data = expected.len();
        expected.extend([1; 12]);
        expected.resize(data + 32, 0);
        expected.extend([1; 4]);
        expected.resize(data + 64, 0);
        assert_eq!(bytes, expected);

        let short = write_gguf(&path, &metadata, &tensors, &mut |_, out| out.write_all(&[0]));
        assert!(short.unwrap_err().to_string().contains("\"t\": 1 bytes written, 12 expected"));
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "the old file stays");
    }

    #[test]
    fn q8_blocks_round_half_away_from_zero() {
        let mut values = [0f32; 64];
        (values[0], values[1], values[2], values[3]) = (127.0, 0.5, -1.5, -127.0);
        let mut bytes = Vec::new();
        GgmlType::Q8_0.encode(&values, &mut bytes);
        assert_eq!(bytes.len(), 68);
        assert_eq!(bytes[..6], [0x00, 0x3c, 127, 1, 0xfe, 0x81], "scale 1, then 127, 1, -2, -127");
        assert!(bytes[34..].iter().all(|&b| b == 0), "a block of zeros");
        assert!(GgmlType::Q8_0.fits(64) && !GgmlType::Q8_0.fits(48) && GgmlType::F16.fits(3));
    }

    #[test]
    fn types_are_named_as_llama_cpp_names_them() {
        for ty in GgmlType::ALL {
            assert_eq!(ty.to_string().parse(), Ok(ty));
        }
        assert_eq!("Q8_0".parse(), Ok(GgmlType::Q8_0));
        assert!("q4_k".parse::<GgmlType>().unwrap_err().to_string().contains("q8_0"));
    }
}
