//! Tensors written as one safetensors file.

use super::mapped::byte_count;
use super::{CheckpointError, atomic};
use crate::graph::DType;
use safetensors::Dtype as FileDtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// Writes tensors as one safetensors file that appears only when complete.
///
/// A tensor is (name, type, shape, little-endian elements); the order on disk is the format's usual
/// one, wider types first, then by name. With one metadata entry at most the same input gives the same bytes.
///
/// # Errors
/// Elements that do not fill the shape, a name given twice, or a failed write.
pub fn write_safetensors<B: AsRef<[u8]>>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, DType, Vec<usize>, B)>,
    metadata: &[(&str, &str)],
) -> Result<(), CheckpointError> {
    let layout = |tensor: &str, reason: String| CheckpointError::Write {
        path: path.to_path_buf(),
        source: io::Error::new(io::ErrorKind::InvalidInput, format!("tensor {tensor:?}: {reason}")),
    };
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by(|a, b| file_dtype(b.1).cmp(&file_dtype(a.1)).then_with(|| a.0.cmp(&b.0)));
    let mut infos: Vec<(String, TensorInfo)> = Vec::with_capacity(tensors.len());
    let mut names = std::collections::HashSet::new();
    let mut offset = 0;
    for (name, dtype, shape, bytes) in &tensors {
        let found = bytes.as_ref().len();
        if Some(found) != byte_count(shape, dtype.size() * 8) {
            return Err(layout(name, format!("{found} bytes do not fill {dtype} {shape:?}")));
        }
        if name == "__metadata__" || !names.insert(name.as_str()) {
            return Err(layout(name, "the name is taken".into()));
        }
        let data_offsets = (offset, offset + found);
        infos.push((
            name.clone(),
            TensorInfo { dtype: file_dtype(*dtype), shape: shape.clone(), data_offsets },
        ));
        offset += found;
    }
    let header = header_bytes(path, infos, metadata)?;
    let write = |out: &mut dyn io::Write| {
        out.write_all(&header)?;
        tensors.iter().try_for_each(|(_, _, _, bytes)| out.write_all(bytes.as_ref()))
    };
    atomic::write_file(path, write).map_err(CheckpointError::write(path))
}

/// Everything of a file before the data: the header's length, and the header with blanks up to a multiple of eight.
///
/// # Errors
/// Tensors that the format cannot hold.
pub(super) fn header_bytes(
    path: &Path,
    tensors: Vec<(String, TensorInfo)>,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>, CheckpointError> {
    let failed = |reason: String| CheckpointError::Write {
        path: path.to_path_buf(),
        source: io::Error::new(io::ErrorKind::InvalidInput, reason),
    };
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let header = Metadata::new(Some(metadata).filter(|map| !map.is_empty()), tensors)
        .map_err(|error| failed(error.to_string()))?;
    let header = serde_json::to_vec(&header).map_err(|error| failed(error.to_string()))?;
    let padded = header.len().next_multiple_of(8);
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend(&header);
    bytes.resize(8 + padded, b' ');
    Ok(bytes)
}

pub(super) fn file_dtype(dtype: DType) -> FileDtype {
    match dtype {
        DType::F32 => FileDtype::F32,
        DType::F16 => FileDtype::F16,
        DType::BF16 => FileDtype::BF16,
        DType::U32 => FileDtype::U32,
        DType::Nf4 | DType::Nf4Double | DType::Int8 => FileDtype::U8,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Checkpoint;
    use super::*;

    #[test]
    fn wrong_sizes_and_double_names_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensor = |name: &str, bytes: usize| (name.to_owned(), DType::F32, vec![2], vec![0u8; bytes]);
        let error = write_safetensors(&path, [tensor("a", 7)], &[]).unwrap_err().to_string();
        assert!(error.contains("\"a\"") && error.contains("7 bytes"), "{error}");
        assert!(write_safetensors(&path, [tensor("a", 8), tensor("a", 8)], &[]).is_err());
        assert!(!path.exists());
        write_safetensors(&path, [tensor("a", 8)], &[]).unwrap();
        assert_eq!(Checkpoint::open_file(&path).unwrap().total_bytes(), 8);
    }
}
