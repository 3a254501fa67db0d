//! Conversion between plain row-major values and a tensor's bytes on the device (padded rows, storage type).

use super::blocks::{self, Blocks};
use super::{DType, LANE, TensorType};
use half::{bf16, f16};

/// Bytes of a float tensor from row-major values without padding; 16-bit types round to nearest even,
/// block-quantised ones to the nearest code.
///
/// # Panics
/// Where the number of values is not the shape's: a mistake in the program.
pub fn pack(ty: TensorType, values: &[f32]) -> Vec<u8> {
    assert_eq!(values.len(), ty.shape.elements(), "values for a tensor {ty}");
    if ty.dtype.is_quantised() {
        return Blocks::quantise(ty, values).pack(ty);
    }
    let mut bytes = Vec::with_capacity(ty.bytes() as usize);
    let (cols, padding) = (ty.cols(), ty.cols4() * LANE - ty.cols());
    for row in values.chunks(cols) {
        match ty.dtype {
            DType::F16 => row.iter().for_each(|&v| bytes.extend(f16::from_f32(v).to_le_bytes())),
            DType::BF16 => row.iter().for_each(|&v| bytes.extend(bf16::from_f32(v).to_le_bytes())),
            DType::F32 => row.iter().for_each(|&v| bytes.extend(v.to_le_bytes())),
            _ => row.iter().for_each(|&v| bytes.extend((v as u32).to_le_bytes())),
        }
        bytes.extend(std::iter::repeat_n(0, padding * ty.dtype.size()));
    }
    bytes
}

/// Bytes of a u32 vector.
pub fn pack_u32(values: &[u32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    bytes.resize(bytes.len().next_multiple_of(4 * LANE), 0);
    bytes
}

/// Row-major values without padding from a tensor's bytes.
///
/// # Panics
/// Where the bytes are fewer than the type's.
pub fn unpack(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    if ty.dtype.is_quantised() {
        return blocks::unpack(ty, bytes);
    }
    let size = ty.dtype.size();
    bytes[..ty.bytes() as usize]
        .chunks(ty.cols4() * LANE * size)
        .flat_map(|row| row[..ty.cols() * size].chunks(size))
        .map(|e| match ty.dtype {
            DType::F16 => f16::from_le_bytes([e[0], e[1]]).to_f32(),
            DType::BF16 => bf16::from_le_bytes([e[0], e[1]]).to_f32(),
            DType::F32 => f32::from_le_bytes([e[0], e[1], e[2], e[3]]),
            _ => u32::from_le_bytes([e[0], e[1], e[2], e[3]]) as f32,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Shape;

    #[test]
    fn padding_comes_and_goes() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let ty = TensorType::new(Shape::matrix(2, 3), dtype);
            let values = [1.0, -2.0, 0.5, 4.0, 0.0, -0.25];
            let bytes = pack(ty, &values);
            assert_eq!(bytes.len() as u64, ty.bytes());
            assert!(bytes[3 * dtype.size()..4 * dtype.size()].iter().all(|&b| b == 0));
            assert_eq!(unpack(ty, &bytes), values);
        }
    }
}
