//! A tensor's elements as bytes in each type, little-endian. They may begin at an odd address, so they are always assembled
//! from bytes.

use crate::graph::DType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;

/// Elements converted at once: 16 KiB of f32 stay in the first-level cache.
const BLOCK: usize = 4096;

/// A tensor in a mapped file, row-major without padding.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Little-endian elements, not necessarily aligned.
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// All elements as f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.bytes.len() / self.dtype.size()];
        decode(self.bytes, self.dtype, &mut values);
        values
    }

    /// Some of the rows (the first dimension), without copying.
    ///
    /// # Panics
    /// If the tensor has no such rows: a mistake in the program, not in its input.
    pub fn rows(&self, range: Range<usize>) -> TensorView<'a> {
        let rows = self.shape.first().copied().unwrap_or(1);
        assert!(
            range.start <= range.end && range.end <= rows,
            "rows {range:?} of {:?} {:?}",
            self.name,
            self.shape
        );
        let stride = self.bytes.len() / rows.max(1);
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = range.len();
        }
        let bytes = &self.bytes[range.start * stride..range.end * stride];
        TensorView { name: self.name, dtype: self.dtype, shape, bytes }
    }

    /// Appends the elements in another type, little-endian, rounded to nearest, ties to even.
    ///
    /// What is too large for f16 becomes infinite.
    pub fn write_as(&self, dtype: DType, out: &mut Vec<u8>) {
        if dtype == self.dtype {
            out.extend_from_slice(self.bytes);
            return;
        }
        out.reserve(self.bytes.len() / self.dtype.size() * dtype.size());
        let mut block = [0.0; BLOCK];
        for bytes in self.bytes.chunks(BLOCK * self.dtype.size()) {
            let values = &mut block[..bytes.len() / self.dtype.size()];
            decode(bytes, self.dtype, values);
            encode(values, dtype, out);
        }
    }
}

/// Appends values in a type, little-endian, rounded to nearest, ties to even.
///
/// What is too large for f16 becomes infinite.
pub fn encode(values: &[f32], dtype: DType, out: &mut Vec<u8>) {
    out.reserve(values.len() * dtype.size());
    match dtype {
        DType::F32 => values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        DType::U32 => values.iter().for_each(|v| out.extend_from_slice(&(*v as u32).to_le_bytes())),
        DType::Nf4 | DType::Nf4Double | DType::Int8 => {
            unreachable!("values become blocks in graph::blocks, and files hold them in parts")
        }
        DType::BF16 => values.iter().for_each(|v| out.extend_from_slice(&bf16::from_f32(*v).to_le_bytes())),
        DType::F16 => {
            let mut block = [f16::ZERO; BLOCK];
            for values in values.chunks(BLOCK) {
                let halves = &mut block[..values.len()];
                halves.convert_from_f32_slice(values);
                halves.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
            }
        }
    }
}

/// Little-endian elements to f32; `out` has one place per element.
pub(super) fn decode(bytes: &[u8], dtype: DType, out: &mut [f32]) {
    let pairs = bytes.as_chunks::<2>().0;
    let fours = bytes.as_chunks::<4>().0;
    match dtype {
        DType::F32 => out.iter_mut().zip(fours).for_each(|(v, four)| *v = f32::from_le_bytes(*four)),
        DType::U32 => out.iter_mut().zip(fours).for_each(|(v, four)| *v = u32::from_le_bytes(*four) as f32),
        DType::Nf4 | DType::Nf4Double | DType::Int8 => {
            unreachable!("values become blocks in graph::blocks, and files hold them in parts")
        }
        DType::BF16 => {
            out.iter_mut().zip(pairs).for_each(|(v, pair)| *v = bf16::from_le_bytes(*pair).to_f32())
        }
        DType::F16 => {
            // By blocks, because only the conversion of slices uses the processor's own instruction.
            let mut block = [f16::ZERO; BLOCK];
            for (out, pairs) in out.chunks_mut(BLOCK).zip(pairs.chunks(BLOCK)) {
                let halves = &mut block[..out.len()];
                halves.iter_mut().zip(pairs).for_each(|(half, pair)| *half = f16::from_le_bytes(*pair));
                halves.convert_to_f32_slice(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<'a>(dtype: DType, shape: &[usize], bytes: &'a [u8]) -> TensorView<'a> {
        TensorView { name: "t", dtype, shape: shape.to_vec(), bytes }
    }

    fn encoded(values: &[f32], dtype: DType) -> Vec<u8> {
        let mut out = Vec::new();
        encode(values, dtype, &mut out);
        out
    }

    #[test]
    fn halves_round_to_nearest_even() {
        // Between 1 and the next f16 (1 + 2^-10) and bf16 (1 + 2^-7): ties go to the even neighbour.
        let tie16 = [1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11)];
        let bits = |bytes: Vec<u8>| {
            bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect::<Vec<_>>()
        };
        assert_eq!(bits(encoded(&tie16, DType::F16)), [0x3c00, 0x3c02]);
        let tie_bf = [1.0 + 2f32.powi(-8), 1.0 + 3.0 * 2f32.powi(-8), 1.0 + 2f32.powi(-8) + 2f32.powi(-20)];
        assert_eq!(bits(encoded(&tie_bf, DType::BF16)), [0x3f80, 0x3f82, 0x3f81]);
        // Smallest subnormal of f16, a tie to zero below it, and overflow.
        let edges = [2f32.powi(-24), 2f32.powi(-25), -65520.0, 65519.0];
        assert_eq!(bits(encoded(&edges, DType::F16)), [0x0001, 0x0000, 0xfc00, 0x7bff]);
        assert!(f16::from_bits(bits(encoded(&[f32::NAN], DType::F16))[0]).is_nan());
        assert!(bf16::from_bits(bits(encoded(&[f32::NAN], DType::BF16))[0]).is_nan());
    }

    #[test]
    fn every_half_survives_the_way_through_f32() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [DType::F16, DType::BF16] {
            let values = view(dtype, &[1 << 16], &all).to_f32();
            let back = encoded(&values, dtype);
            for (i, (value, pair)) in values.iter().zip(back.as_chunks::<2>().0).enumerate() {
                assert!(value.is_nan() || u16::from_le_bytes(*pair) as usize == i, "{dtype} {i:#06x}");
            }
        }
    }

    #[test]
    fn conversion_works_at_odd_addresses_and_over_blocks() {
        let values: Vec<f32> = (0..BLOCK + 3).map(|i| i as f32 * 0.25 - 7.0).collect();
        for from in [DType::F32, DType::F16, DType::BF16] {
            let mut shifted = vec![0xff];
            encode(&values, from, &mut shifted);
            let tensor = view(from, &[values.len()], &shifted[1..]);
            for to in [DType::F32, DType::F16, DType::BF16] {
                let mut out = vec![7];
                tensor.write_as(to, &mut out);
                assert_eq!(out[1..], encoded(&tensor.to_f32(), to), "{from} to {to}");
            }
        }
    }

    #[test]
    fn rows_are_a_window() {
        let bytes = encoded(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], DType::BF16);
        let tensor = view(DType::BF16, &[3, 2], &bytes);
        let middle = tensor.rows(1..3);
        assert_eq!((middle.shape.as_slice(), middle.to_f32()), ([2, 2].as_slice(), vec![2.0, 3.0, 4.0, 5.0]));
        assert_eq!(tensor.rows(3..3).to_f32(), Vec::<f32>::new());
    }
}
