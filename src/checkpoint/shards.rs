//! Weights written tensor by tensor, split over files as transformers splits them.
//!
//! Only one tensor's bytes pass through memory at a time, and they need not be there as a whole: whoever fills a
//! tensor writes to a stream.

use super::mapped::byte_count;
use super::single::{file_dtype, header_bytes};
use super::{CheckpointError, MODEL_WEIGHTS, atomic};
use crate::graph::DType;
use safetensors::Dtype as FileDtype;
use safetensors::tensor::TensorInfo;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: FileDtype,
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of a type that engraft computes with.
    pub fn new(name: &str, dtype: DType, shape: &[usize]) -> Self {
        TensorSpec { name: name.to_owned(), dtype: file_dtype(dtype), shape: shape.to_vec() }
    }

    /// Bytes of its elements; zero for a size that no memory holds.
    pub fn bytes(&self) -> usize {
        byte_count(&self.shape, self.dtype.bitsize()).unwrap_or(0)
    }

    fn checked_bytes(&self, path: &Path) -> Result<usize, CheckpointError> {
        let size = || format!("tensor {:?}: {:?} {:?} is not a size", self.name, self.dtype, self.shape);
        byte_count(&self.shape, self.dtype.bitsize()).ok_or_else(|| CheckpointError::Write {
            path: path.to_path_buf(),
            source: io::Error::new(io::ErrorKind::InvalidInput, size()),
        })
    }
}

/// Writes tensors to `model.safetensors`, or to shards of at most `max_shard` bytes (a larger tensor has one of its own)
/// with `model.safetensors.index.json`. `fill` is called once per tensor, in order, and writes its little-endian elements;
/// it can pass on a [`CheckpointError`] within [`io::Error::other`]. Gives the number of weight files.
///
/// # Errors
/// What `fill` reports, elements that do not fill their shape, a failed write.
pub fn write_shards(
    folder: &Path,
    tensors: &[TensorSpec],
    max_shard: u64,
    fill: &mut dyn FnMut(&TensorSpec, &mut dyn Write) -> io::Result<()>,
) -> Result<usize, CheckpointError> {
    let index = folder.join("model.safetensors.index.json");
    let sizes = tensors.iter().map(|t| t.checked_bytes(&index)).collect::<Result<Vec<_>, _>>()?;
    let shards = split(&sizes, max_shard);
    if let [all] = shards.as_slice() {
        write_file(&folder.join(MODEL_WEIGHTS), &tensors[all.clone()], fill)?;
        return Ok(1);
    }
    let mut weight_map = BTreeMap::new();
    for (i, range) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_file(&folder.join(&name), &tensors[range.clone()], fill)?;
        weight_map.extend(tensors[range.clone()].iter().map(|t| (t.name.clone(), name.clone())));
    }
    let elements: usize = tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum();
    let total: usize = sizes.iter().sum();
    let json = json!({
        "metadata": { "total_parameters": elements, "total_size": total },
        "weight_map": weight_map,
    });
    let write = |out: &mut dyn Write| writeln!(out, "{json:#}");
    atomic::write_file(&index, write).map_err(CheckpointError::write(&index))?;
    Ok(shards.len())
}

/// Ranges of consecutive tensors: a shard is closed when the next tensor would make it too large.
fn split(sizes: &[usize], max_shard: u64) -> Vec<std::ops::Range<usize>> {
    let (mut shards, mut start, mut filled) = (Vec::new(), 0, 0u64);
    for (i, &size) in sizes.iter().enumerate() {
        if i > start && filled + size as u64 > max_shard {
            shards.push(start..i);
            (start, filled) = (i, 0);
        }
        filled += size as u64;
    }
    shards.push(start..sizes.len());
    shards
}

fn write_file(
    path: &Path,
    tensors: &[TensorSpec],
    fill: &mut dyn FnMut(&TensorSpec, &mut dyn Write) -> io::Result<()>,
) -> Result<(), CheckpointError> {
    let mut offset = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    // the order on disk: wider types first, as everywhere in the format
    let mut order: Vec<&TensorSpec> = tensors.iter().collect();
    order.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype));
    for tensor in &order {
        let end = offset + tensor.checked_bytes(path)?;
        let info =
            TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (offset, end) };
        infos.push((tensor.name.clone(), info));
        offset = end;
    }
    let header = header_bytes(path, infos, &[("format", "pt")])?;
    let write = |out: &mut dyn Write| {
        out.write_all(&header)?;
        for tensor in &order {
            let expected = tensor.bytes() as u64;
            let mut counted = Counted { out: &mut *out, bytes: 0 };
            fill(tensor, &mut counted)?;
            counted.check(&tensor.name, expected)?;
        }
        Ok(())
    };
    atomic::write_file(path, write).map_err(|error| unwrapped(path, error))
}

/// A [`CheckpointError`] that came through a stream, or the failed write itself.
pub(super) fn unwrapped(path: &Path, error: io::Error) -> CheckpointError {
    match error.downcast::<CheckpointError>() {
        Ok(inner) => inner,
        Err(source) => CheckpointError::Write { path: path.to_path_buf(), source },
    }
}

/// Counts what goes through it.
pub(super) struct Counted<'o> {
    pub(super) out: &'o mut dyn Write,
    pub(super) bytes: u64,
}

impl Counted<'_> {
    /// # Errors
    /// Another count than expected, which would shift every tensor behind.
    pub(super) fn check(&self, tensor: &str, expected: u64) -> io::Result<()> {
        let reason = || format!("tensor {tensor:?}: {} bytes written, {expected} expected", self.bytes);
        (self.bytes == expected)
            .then_some(())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, reason()))
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Checkpoint;
    use super::*;

    #[test]
    fn shards_close_before_they_are_too_large() {
        let ends = |sizes: &[usize], max| split(sizes, max).iter().map(|r| r.end).collect::<Vec<_>>();
        assert_eq!(ends(&[], 10), [0]);
        assert_eq!(ends(&[4, 4, 4], 12), [3]);
        assert_eq!(ends(&[4, 4, 4], 11), [2, 3]);
        assert_eq!(ends(&[40, 4, 40], 10), [1, 2, 3], "a large tensor stands alone");
    }

    #[test]
    fn what_is_written_is_read_back_whole_or_in_shards() {
        let specs = [
            TensorSpec::new("b", DType::BF16, &[2, 3]),
            TensorSpec::new("a", DType::F32, &[2]),
            TensorSpec { name: "positions".into(), dtype: FileDtype::I64, shape: vec![1] },
        ];
        let mut fill = |spec: &TensorSpec, out: &mut dyn Write| {
            let count = byte_count(&spec.shape, spec.dtype.bitsize()).unwrap();
            (0..count).try_for_each(|i| out.write_all(&[spec.name.len() as u8 + i as u8]))
        };
        for (max_shard, files) in [(1000, 1), (12, 3)] {
            let folder = tempfile::tempdir().unwrap();
            assert_eq!(write_shards(folder.path(), &specs, max_shard, &mut fill).unwrap(), files);
            let read = Checkpoint::open(folder.path()).unwrap();
            assert_eq!(read.total_bytes(), 12 + 8 + 8);
            for spec in &specs {
                assert_eq!(&read.spec(&spec.name).unwrap(), spec);
            }
            let mut bytes = Vec::new();
            read.read_bytes("positions", 1..8, &mut bytes).unwrap();
            assert_eq!(bytes, [10, 11, 12, 13, 14, 15, 16]);
        }
    }

    #[test]
    fn a_tensor_that_is_filled_short_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let specs = [TensorSpec::new("a", DType::F32, &[2])];
        let error = write_shards(folder.path(), &specs, 1000, &mut |_, out| out.write_all(&[0; 7]));
        assert!(error.unwrap_err().to_string().contains("7 bytes written, 8 expected"));
        let inner = CheckpointError::FolderMissing { path: "there".into() };
        let mut inner = Some(inner);
        let error = write_shards(folder.path(), &specs, 1000, &mut |_, _| {
            Err(io::Error::other(inner.take().expect("called once")))
        });
        assert!(matches!(error.unwrap_err(), CheckpointError::FolderMissing { .. }));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
