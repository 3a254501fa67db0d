//! Weights on their way to the device, in pieces: the host holds a few of them at a time, whatever the checkpoint's size. Those that
//! stay in host memory go the same way into its buffers, through the queue: what could be written through a map may lie on the device.
//!
//! Pieces are read with positioned reads, not through the map of the file: what a map has read counts as memory of the
//! process until the system takes it back, on each system by rules of its own, and a file that is cut short meanwhile is an
//! error here instead of a signal. Reading, converting and generating run on several threads; the order of the pieces
//! changes nothing, since each has its own place. A weight in blocks is one piece, for the scales of its scales need all of it:
//! of such a weight the host holds the codes.

use super::weights::{WeightError, WeightSource};
use crate::gpu::{BufferSlice, Gpu, GpuError};
use crate::graph::blocks::{Blocks, Quantiser};
use crate::graph::layout::pack;
use crate::graph::{DType, LANE, TensorType};
use crate::stop::StopFlag;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A weight and its place.
pub(super) struct Target {
    pub name: String,
    pub ty: TensorType,
    pub slice: BufferSlice,
}

/// Bytes of a piece on the device; a row that is longer is a piece by itself.
const PIECE_BYTES: u64 = 4 << 20;
/// Bytes that may wait in upload memory before the device has taken them.
const IN_FLIGHT_BYTES: u64 = 32 << 20;
/// Beyond this many threads the disk or the device is what limits.
const MAX_THREADS: usize = 4;

/// Some rows of a target.
struct Piece<'t> {
    target: &'t Target,
    rows: Range<usize>,
}

/// Uploads every target from `source`, and waits until the device has it all.
///
/// # Errors
/// A weight that is missing, a file that cannot be read, a request to stop, and what the device reported.
pub(super) fn upload(
    gpu: &Gpu,
    source: &WeightSource,
    targets: &[Target],
    stop: &StopFlag,
) -> Result<(), WeightError> {
    let pieces: Vec<Piece<'_>> = targets.iter().flat_map(pieces).collect();
    let (next, in_flight) = (AtomicUsize::new(0), Mutex::new(0));
    let failed = Mutex::new(None);
    let work = || {
        let mut buffers = Buffers::default();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let sent = stop.check().map_err(WeightError::from);
            if let Err(error) = sent.and_then(|()| piece.send(gpu, source, &mut buffers, &in_flight)) {
                // the others find nothing left to do
                next.store(pieces.len(), Ordering::Relaxed);
                let mut failed = failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                failed.get_or_insert(error);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(MAX_THREADS);
    std::thread::scope(|scope| {
        for _ in 1..threads.min(pieces.len()) {
            // this one does what no other can
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    gpu.submit(&[], &[])?;
    Ok(gpu.wait()?)
}

/// All bytes of a weight as the device holds them.
///
/// # Errors
/// A weight that is missing, a file that cannot be read.
pub(super) fn packed(source: &WeightSource, name: &str, ty: TensorType) -> Result<Vec<u8>, WeightError> {
    if let Some(stored) = source.stored_blocks(name)?.filter(|stored| stored.ty == ty) {
        return Ok(stored.blocks.pack(ty));
    }
    // what does not fit is an error, not the end of the process
    let mut values = Vec::new();
    let bytes = ty.bytes();
    values
        .try_reserve_exact(bytes as usize)
        .map_err(|_| GpuError::OutOfHostMemory { what: name.to_owned(), bytes })?;
    if ty.dtype.is_quantised() {
        drop(values);
        return Ok(quantised(source, name, ty)?.pack(ty));
    }
    let (mut raw, all) = (Vec::new(), 0..ty.shape.elements());
    if !ty.cols().is_multiple_of(LANE) {
        source.write_elements(name, ty.shape.dims(), all, DType::F32, &mut raw, &mut values)?;
        drop(raw);
        let values: Vec<f32> = values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        return Ok(pack(ty, &values));
    }
    source.write_elements(name, ty.shape.dims(), all, ty.dtype, &mut raw, &mut values)?;
    Ok(values)
}

/// A weight in blocks, quantised as its values are read: the host never holds all of them.
///
/// # Errors
/// A weight that is missing, a file that cannot be read.
pub(super) fn quantised(source: &WeightSource, name: &str, ty: TensorType) -> Result<Blocks, WeightError> {
    let (all, cols) = (ty.rows(), ty.cols());
    let rows = (PIECE_BYTES as usize / (4 * cols)).max(1).next_multiple_of(Quantiser::ROWS);
    let mut quantiser = Quantiser::new(ty);
    let (mut raw, mut bytes) = (Vec::new(), Vec::new());
    for first in (0..all).step_by(rows) {
        let elements = first * cols..(first + rows).min(all) * cols;
        bytes.clear();
        source.write_elements(name, ty.shape.dims(), elements, DType::F32, &mut raw, &mut bytes)?;
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        quantiser.add(&values);
    }
    Ok(quantiser.finish())
}

fn pieces(target: &Target) -> impl Iterator<Item = Piece<'_>> {
    let all = target.ty.rows();
    // scales belong to the whole of a quantised weight
    let whole = if target.ty.dtype.is_quantised() { all } else { 1 };
    let rows = (PIECE_BYTES / (target.ty.bytes() / all as u64).max(1)).max(whole as u64) as usize;
    (0..all).step_by(rows).map(move |first| Piece { target, rows: first..(first + rows).min(all) })
}

/// Memory that a thread uses for one piece after another.
#[derive(Default)]
struct Buffers {
    /// As the file has it.
    raw: Vec<u8>,
    /// In the storage type.
    converted: Vec<u8>,
    /// With padded rows.
    padded: Vec<u8>,
}

impl Piece<'_> {
    fn send(
        &self,
        gpu: &Gpu,
        source: &WeightSource,
        buffers: &mut Buffers,
        in_flight: &Mutex<u64>,
    ) -> Result<(), WeightError> {
        let Target { name, ty, slice } = self.target;
        let Buffers { raw, converted, padded } = buffers;
        let (cols, size) = (ty.cols(), ty.dtype.size());
        converted.clear();
        let elements = self.rows.start * cols..self.rows.end * cols;
        match ty.dtype.is_quantised() {
            true => *converted = packed(source, name, *ty)?,
            false => source.write_elements(name, ty.shape.dims(), elements, ty.dtype, raw, converted)?,
        }
        let row = ty.cols4() * LANE * size;
        let bytes = if ty.dtype.is_quantised() || cols.is_multiple_of(LANE) {
            converted
        } else {
            padded.clear();
            for unpadded in converted.chunks(cols * size) {
                padded.extend_from_slice(unpadded);
                padded.resize(padded.len().next_multiple_of(row), 0);
            }
            padded
        };
        let mut waiting = in_flight.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        slice.part((self.rows.start * row) as u64, bytes.len() as u64).write(bytes);
        *waiting += bytes.len() as u64;
        if *waiting > IN_FLIGHT_BYTES {
            gpu.submit(&[], &[])?;
            gpu.wait()?;
            *waiting = 0;
        }
        Ok(())
    }
}
