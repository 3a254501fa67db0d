//! What kernels read while they are measured.

use super::Candidate;
use crate::gpu::{BufferSlice, Gpu, GpuError};
use crate::graph::blocks::sample;
use crate::graph::layout::pack;
use crate::graph::{Binding, DType, Place, Shape, TensorType};
use std::collections::HashMap;

/// Bytes that wait in staging memory at a time.
const STAGED: u64 = 32 << 20;

/// Random numbers, or what the class names, in all that the default reads.
pub(super) fn fill_operands(
    gpu: &Gpu,
    candidate: &Candidate,
    buffers: &HashMap<Place, BufferSlice>,
) -> Result<(), GpuError> {
    let bound = candidate.variants[0].dispatches.iter().flat_map(|d| &d.bindings);
    let mut read: Vec<&Binding> = bound.filter(|b| !b.write && b.dtype.is_float()).collect();
    // pieces of one tensor follow one another
    read.dedup_by_key(|b| b.place);
    for (seed, binding) in read.into_iter().enumerate() {
        let Some(buffer) = buffers.get(&binding.place) else { continue };
        match candidate.buffers[&binding.place].1.filter(|ty| ty.dtype.is_quantised()) {
            Some(ty) => write_over(gpu, buffer, &sample(ty))?,
            None => {
                let spread = candidate.spreads.iter().find(|(place, _)| *place == binding.place);
                let spread = spread.map_or(1.0, |(_, spread)| *spread);
                write_over(gpu, buffer, &random(buffer.size, binding.dtype, seed as u32 + 1, spread))?;
            }
        }
    }
    Ok(())
}

/// Random numbers in [-spread / 2, spread / 2) for so many bytes, or a stretch of them; its length divides no usual row.
fn random(bytes: u64, dtype: DType, seed: u32, spread: f32) -> Vec<u8> {
    let count = (bytes as usize / dtype.size()).min(250_004);
    let mut state = seed;
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            spread * ((state >> 8) as f32 / (1 << 24) as f32 - 0.5)
        })
        .collect();
    pack(TensorType::new(Shape::vector(count), dtype), &values)
}

/// Fills a slice with a stretch of bytes over and over.
fn write_over(gpu: &Gpu, slice: &BufferSlice, stretch: &[u8]) -> Result<(), GpuError> {
    let length = stretch.len() as u64;
    let (mut offset, mut staged) = (0, 0);
    while length > 0 && offset < slice.size {
        let from = offset % length;
        let bytes = (slice.size - offset).min(length - from).min(STAGED - staged);
        slice.part(offset, bytes).write(&stretch[from as usize..(from + bytes) as usize]);
        (offset, staged) = (offset + bytes, staged + bytes);
        if staged == STAGED {
            // what is written waits on the host until it is submitted, however large the tensor is
            gpu.submit(&[], &[])?;
            gpu.wait()?;
            staged = 0;
        }
    }
    Ok(())
}
