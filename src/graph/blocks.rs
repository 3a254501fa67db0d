//! Block-quantised storage of frozen weights: NF4, NF4 with double quantisation, and int8.
//!
//! NF4 (Dettmers et al. 2023, arXiv:2305.14314, appendix E) holds four bits per value: the nearest of 16 quantiles of the normal
//! distribution, scaled by the largest magnitude of its block of 64 values (rows end to end). Double quantisation holds these
//! scales, less their mean, in eight bits of bitsandbytes' dynamic map, scaled by the largest magnitude of 256 of them. Int8
//! scales a row to ±127 (Dettmers et al. 2022, arXiv:2208.07339, without outliers). Ties go to the lower code in NF4, to the
//! even one in int8: bit for bit what bitsandbytes gives.
//!
//! On the device, in words of 32 bits:
//! - header: where scales, second scales and map begin; groups of four in a row
//! - codes: NF4 eight to a word, a byte's first value in its high half; int8 four to a word
//! - scales: f32 per block (NF4) or row (int8), as `value = code * scale`; with double quantisation eight-bit codes of the scales,
//!   then their scales, the mean and the 256 values of the map

use super::{DType, TensorType};
use std::ops::Range;
use std::sync::OnceLock;

/// Values in a block of NF4.
pub const BLOCK: usize = 64;
/// Scales in a block of double quantisation.
pub const SCALE_BLOCK: usize = 256;
const HEADER: usize = 4;
const MAP: usize = 256;

/// The code book of NF4.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The signed eight-bit dynamic map of bitsandbytes (Dettmers 2015, arXiv:1511.04561): seven decades of values whose
/// exponents and fractions share the bits, in ascending order.
pub fn dynamic_map() -> &'static [f32; MAP] {
    static VALUES: OnceLock<[f32; MAP]> = OnceLock::new();
    VALUES.get_or_init(|| {
        let mut values = vec![0.0f32, 1.0];
        for (decade, factor) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
            let steps = 1usize << decade;
            // the edges of an even partition of [0.1, 1], counted from the nearer end as torch.linspace does
            let step = f64::from((1.0f32 - 0.1) / steps as f32);
            // rounded once, as by a fused multiply-add, which not every C library does: in f64 nothing of it is lost
            let edge = |i: usize| match i < steps.div_ceil(2) {
                true => (f64::from(0.1f32) + step * i as f64) as f32,
                false => (1.0 - step * (steps - i) as f64) as f32,
            };
            for i in 0..steps {
                let mean = (edge(i) + edge(i + 1)) / 2.0;
                values.extend([factor * mean, -(factor * mean)]);
            }
        }
        values.sort_by(f32::total_cmp);
        std::array::from_fn(|i| values[i])
    })
}

/// Where the parts of a quantised tensor lie, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    scales: usize,
    second: usize,
    map: usize,
    end: usize,
}

impl Places {
    fn of(ty: TensorType) -> Self {
        let elements = ty.shape.padded_elements();
        let blocks = elements.div_ceil(BLOCK);
        match ty.dtype {
            DType::Int8 => {
                let scales = HEADER + elements / 4;
                let end = scales + ty.rows();
                Places { scales, second: end, map: end, end }
            }
            DType::Nf4Double => {
                let scales = HEADER + elements.div_ceil(8);
                let second = scales + blocks.div_ceil(4);
                let map = second + blocks.div_ceil(SCALE_BLOCK);
                Places { scales, second, map, end: map + 1 + MAP }
            }
            _ => {
                let scales = HEADER + elements.div_ceil(8);
                let end = scales + blocks;
                Places { scales, second: end, map: end, end }
            }
        }
    }
}

/// Bytes of a quantised tensor.
pub(super) fn bytes(ty: TensorType) -> u64 {
    (Places::of(ty).end * 4).next_multiple_of(16) as u64
}

/// A quantised tensor as others store it: codes, and what gives the scales.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// NF4: two values to a byte, the first in the high half; int8: signed bytes.
    pub codes: Vec<u8>,
    pub scales: Scales,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    Plain(Vec<f32>),
    Double { codes: Vec<u8>, scales: Vec<f32>, offset: f32, map: Vec<f32> },
}

/// Quantises a tensor that comes in pieces, so that no one holds all of its values.
#[derive(Clone, Debug)]
pub struct Quantiser {
    ty: TensorType,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Quantiser {
    /// Values of a piece are a multiple of this many rows, but for the last.
    pub const ROWS: usize = BLOCK;

    /// # Panics
    /// Where rows are not whole groups of four: see [`fits`].
    pub fn new(ty: TensorType) -> Self {
        assert!(fits(ty), "a tensor {ty}");
        Quantiser { ty, codes: Vec::new(), scales: Vec::new() }
    }

    /// Takes the next rows' values.
    pub fn add(&mut self, values: &[f32]) {
        let start = self.codes.len();
        self.scales.extend(match self.ty.dtype {
            DType::Int8 => {
                self.codes.resize(start + values.len(), 0);
                let cols = self.ty.cols();
                in_parallel(values, &mut self.codes[start..], cols, cols, int8_row)
            }
            _ => {
                self.codes.resize(start + values.len().div_ceil(2), 0);
                in_parallel(values, &mut self.codes[start..], BLOCK, BLOCK / 2, nf4_block)
            }
        });
    }

    pub fn finish(self) -> Blocks {
        let Quantiser { ty, codes, scales } = self;
        let scales = match ty.dtype {
            DType::Nf4Double => double(&scales),
            _ => Scales::Plain(scales),
        };
        Blocks { codes, scales }
    }
}

/// Quantises NF4's scales.
fn double(scales: &[f32]) -> Scales {
    let mean = scales.iter().map(|&s| f64::from(s)).sum::<f64>() / scales.len().max(1) as f64;
    let offset = mean as f32;
    let map = dynamic_map();
    let mut second = Vec::new();
    let mut codes = Vec::with_capacity(scales.len());
    for block in scales.chunks(SCALE_BLOCK) {
        let largest = block.iter().fold(0f32, |m, s| m.max((s - offset).abs()));
        let inverse = 1.0 / if largest > 0.0 { largest } else { 1.0 };
        second.push(largest);
        codes.extend(block.iter().map(|s| {
            let x = (s - offset) * inverse;
            map.windows(2).take_while(|pair| (pair[0] + pair[1]) / 2.0 < x).count() as u8
        }));
    }
    Scales::Double { codes, scales: second, offset, map: map.to_vec() }
}

impl Scales {
    /// The scale of a block (NF4) or row (int8).
    fn at(&self, i: usize) -> f32 {
        match self {
            Scales::Plain(scales) => scales[i],
            Scales::Double { codes, scales, offset, map } => {
                map[codes[i] as usize] * scales[i / SCALE_BLOCK] + offset
            }
        }
    }
}

impl Blocks {
    /// Quantises row-major values.
    ///
    /// # Panics
    /// Where rows are not whole groups of four, or the values are not the shape's: see [`fits`].
    pub fn quantise(ty: TensorType, values: &[f32]) -> Self {
        assert!(values.len() == ty.shape.elements(), "values for a tensor {ty}");
        let mut quantiser = Quantiser::new(ty);
        quantiser.add(values);
        quantiser.finish()
    }

    /// The tensor's bytes on the device.
    pub fn pack(&self, ty: TensorType) -> Vec<u8> {
        let places = Places::of(ty);
        let mut bytes = Vec::with_capacity(self::bytes(ty) as usize);
        for word in [places.scales, places.second, places.map, ty.cols4()] {
            bytes.extend((word as u32).to_le_bytes());
        }
        bytes.extend(&self.codes);
        bytes.resize(4 * places.scales, 0);
        let floats = |values: &[f32], bytes: &mut Vec<u8>| {
            values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        };
        match &self.scales {
            Scales::Plain(scales) if ty.dtype == DType::Int8 => {
                floats(&scales.iter().map(|s| s / 127.0).collect::<Vec<_>>(), &mut bytes);
            }
            Scales::Plain(scales) => floats(scales, &mut bytes),
            Scales::Double { codes, scales, offset, map } => {
                bytes.extend(codes);
                bytes.resize(4 * places.second, 0);
                floats(scales, &mut bytes);
                floats(&[*offset], &mut bytes);
                floats(map, &mut bytes);
            }
        }
        bytes.resize(self::bytes(ty) as usize, 0);
        bytes
    }

    /// The values that the codes stand for.
    pub fn dequantise(&self, ty: TensorType) -> Vec<f32> {
        self.dequantise_range(ty, 0..ty.shape.elements())
    }

    /// Some of the values that the codes stand for.
    pub fn dequantise_range(&self, ty: TensorType, elements: Range<usize>) -> Vec<f32> {
        let value = |i: usize| match ty.dtype {
            DType::Int8 => f32::from(self.codes[i] as i8) * (self.scales.at(i / ty.cols()) / 127.0),
            _ => nf4_of(&self.codes, i) * self.scales.at(i / BLOCK),
        };
        elements.map(value).collect()
    }
}

/// Whether a tensor can be held in blocks: rows are whole groups of four.
pub fn fits(ty: TensorType) -> bool {
    ty.cols().is_multiple_of(4)
}

/// The values of a quantised tensor's bytes on the device.
pub(super) fn unpack(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    let places = Places::of(ty);
    let float = |word: usize| bytes[4 * word..].first_chunk().map_or(0.0, |b| f32::from_le_bytes(*b));
    let code = |i: usize| match ty.dtype {
        DType::Int8 => f32::from(bytes[4 * HEADER + i] as i8),
        _ => nf4_of(&bytes[4 * HEADER..], i),
    };
    let scale = |i: usize| match ty.dtype {
        DType::Int8 => float(places.scales + i / ty.cols()),
        DType::Nf4Double => {
            let block = i / BLOCK;
            let mapped = float(places.map + 1 + bytes[4 * places.scales + block] as usize);
            mapped * float(places.second + block / SCALE_BLOCK) + float(places.map)
        }
        _ => float(places.scales + i / BLOCK),
    };
    (0..ty.shape.elements()).map(|i| code(i) * scale(i)).collect()
}

/// Bytes of a tensor with any codes and even scales, for measurements.
pub fn sample(ty: TensorType) -> Vec<u8> {
    let places = Places::of(ty);
    let code = |i: usize| (i.wrapping_mul(0x9e37_79b1) >> 11) as u8;
    let codes = (0..4 * (places.scales - HEADER)).map(code).collect();
    let blocks = ty.shape.padded_elements().div_ceil(BLOCK);
    let scales = match ty.dtype {
        DType::Int8 => Scales::Plain(vec![0.5; ty.rows()]),
        DType::Nf4Double => Scales::Double {
            codes: (0..blocks).map(code).collect(),
            scales: vec![0.1; blocks.div_ceil(SCALE_BLOCK)],
            offset: 0.4,
            map: dynamic_map().to_vec(),
        },
        _ => Scales::Plain(vec![0.5; blocks]),
    };
    Blocks { codes, scales }.pack(ty)
}

/// Runs `quantise` on every block of values with its codes, on all processors, and gives the blocks' scales.
fn in_parallel(
    values: &[f32],
    codes: &mut [u8],
    block: usize,
    code_bytes: usize,
    quantise: fn(&[f32], &mut [u8]) -> f32,
) -> Vec<f32> {
    let mut scales = vec![0.0; values.len().div_ceil(block)];
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let share = scales.len().div_ceil(workers).max(1024);
    std::thread::scope(|scope| {
        for ((values, codes), scales) in values
            .chunks(share * block)
            .zip(codes.chunks_mut(share * code_bytes))
            .zip(scales.chunks_mut(share))
        {
            scope.spawn(move || {
                let blocks = values.chunks(block).zip(codes.chunks_mut(code_bytes));
                blocks.zip(scales).for_each(|((values, codes), scale)| *scale = quantise(values, codes));
            });
        }
    });
    scales
}

/// The i-th value of packed codes.
fn nf4_of(codes: &[u8], i: usize) -> f32 {
    let shift = if i.is_multiple_of(2) { 4 } else { 0 };
    NF4[usize::from(codes[i / 2] >> shift & 15)]
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |m, v| m.max(v.abs()))
}

fn nf4_block(values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = largest(values);
    let inverse = 1.0 / if scale > 0.0 { scale } else { 1.0 };
    // as many codes are lower as there are midpoints below; a sum that compilers turn into vector instructions
    let code =
        |x: f32| NF4.windows(2).map(|pair| u8::from((pair[0] + pair[1]) / 2.0 < x * inverse)).sum::<u8>();
    // the code of zero fills up an odd end
    for (pair, byte) in values.chunks(2).zip(codes) {
        *byte = code(pair[0]) << 4 | pair.get(1).map_or(7, |&x| code(x));
    }
    scale
}

fn int8_row(values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = largest(values);
    let factor = if scale > 0.0 { 127.0 / scale } else { 0.0 };
    for (x, code) in values.iter().zip(codes) {
        *code = (x * factor).round_ties_even() as i8 as u8;
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Shape;
    use crate::graph::layout::{pack, unpack};

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    #[test]
    fn the_device_sees_what_the_codes_stand_for() {
        for dtype in [DType::Nf4, DType::Nf4Double, DType::Int8] {
            let ty = TensorType::new(Shape::matrix(37, 44), dtype);
            let values = values(37 * 44);
            let blocks = Blocks::quantise(ty, &values);
            let bytes = pack(ty, &values);
            assert_eq!(bytes.len() as u64, ty.bytes());
            let seen = unpack(ty, &bytes);
            assert_eq!(seen, blocks.dequantise(ty), "{dtype}");
            let worst = seen.iter().zip(&values).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst < if dtype == DType::Int8 { 0.005 } else { 0.2 }, "{dtype}: {worst}");
        }
    }

    #[test]
    fn values_of_one_block_take_these_bytes() {
        let bytes =
            |dtype| TensorType::new(Shape::matrix(1024, 1024), dtype).bytes() as f64 / f64::from(1 << 20);
        // per value: half a byte and a sixteenth, half a byte and a 64th, one byte
        assert!((bytes(DType::Nf4) - 0.5625).abs() < 0.001);
        assert!((bytes(DType::Nf4Double) - 0.5157).abs() < 0.002);
        assert!((bytes(DType::Int8) - 1.004).abs() < 0.001);
    }

    #[test]
    fn zeros_stay_zeros() {
        for dtype in [DType::Nf4, DType::Int8] {
            let ty = TensorType::new(Shape::matrix(2, 64), dtype);
            assert_eq!(unpack(ty, &pack(ty, &[0.0; 128])), [0.0; 128]);
        }
    }
}
