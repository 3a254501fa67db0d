//! One safetensors file, memory-mapped, its header checked.
//!
//! Format: eight bytes with the header's length (little-endian), the header as JSON
//! (`name -> dtype, shape, data_offsets`), then the data, which the tensors cover without gap or overlap.

use super::CheckpointError;
use memmap2::Mmap;
use safetensors::Dtype as FileDtype;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The format's own limit; without it a broken length would make us parse gigabytes as JSON.
const MAX_HEADER: u64 = 100_000_000;

/// What the header says about one tensor, checked; `range` counts from the start of the data.
#[derive(Debug)]
pub(super) struct TensorHeader {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

#[derive(Debug)]
pub(super) struct MappedFile {
    pub path: PathBuf,
    pub file: File,
    pub map: Mmap,
    pub data_start: usize,
}

impl MappedFile {
    pub fn open(path: &Path) -> Result<(Self, BTreeMap<String, TensorHeader>), CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::read(path))?;
        let found = file.metadata().map_err(CheckpointError::read(path))?.len();
        // A map of an empty file is an error on some systems; say what is wrong instead.
        if found < 8 {
            return Err(CheckpointError::Truncated { file: path.to_path_buf(), expected: 8, found });
        }
        // SAFETY: the map is read-only; that nobody shortens the file meanwhile is the documented condition.
        let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::read(path))?;
        let (data_start, tensors) = parse_header(path, &map)?;
        Ok((MappedFile { path: path.to_path_buf(), file, map, data_start }, tensors))
    }
}

/// Fills `into` from this offset of the file, whose own position does not matter to others.
#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

/// Fills `into` from this offset of the file, whose own position does not matter to others.
#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
    while !into.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, into, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => (into, at) = (&mut into[read..], at + read as u64),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads and checks the header: where the data start, and what lies where in it.
fn parse_header(
    path: &Path,
    bytes: &[u8],
) -> Result<(usize, BTreeMap<String, TensorHeader>), CheckpointError> {
    let file = || path.to_path_buf();
    let found = bytes.len() as u64;
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(CheckpointError::LfsPointer { file: file() });
    }
    let Some((prefix, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(CheckpointError::Truncated { file: file(), expected: 8, found });
    };
    let length = u64::from_le_bytes(*prefix);
    if length > MAX_HEADER {
        let reason = format!("its header would have {length} bytes, more than the limit of {MAX_HEADER}");
        return Err(CheckpointError::Header { file: file(), reason });
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(CheckpointError::Truncated { file: file(), expected: 8 + length, found });
    };
    let header: BTreeMap<String, Value> = serde_json::from_slice(header).map_err(|error| {
        CheckpointError::Header { file: file(), reason: format!("its header is not JSON: {error}") }
    })?;

    let mut tensors = BTreeMap::new();
    for (name, value) in header {
        if name != "__metadata__" {
            let header = parse_tensor(value).map_err(|reason| CheckpointError::Layout {
                file: file(),
                tensor: name.clone(),
                reason,
            })?;
            tensors.insert(name, header);
        }
    }
    let end = check_cover(path, &tensors)?;
    if end > data.len() {
        let expected = (8 + length).saturating_add(end as u64);
        return Err(CheckpointError::Truncated { file: file(), expected, found });
    }
    if end < data.len() {
        let reason = format!("{} bytes behind the last tensor belong to none", data.len() - end);
        return Err(CheckpointError::Header { file: file(), reason });
    }
    Ok((bytes.len() - data.len(), tensors))
}

fn parse_tensor(value: Value) -> Result<TensorHeader, String> {
    #[derive(Deserialize)]
    struct Raw {
        dtype: String,
        shape: Vec<usize>,
        data_offsets: (usize, usize),
    }
    let Raw { dtype, shape, data_offsets: (start, end) } =
        serde_json::from_value(value).map_err(|error| format!("its header is not understood: {error}"))?;
    if end < start {
        return Err(format!("its data end at {end}, before they start at {start}"));
    }
    // A type from the future has no known size here; reading such a tensor is refused by name later.
    if let Ok(known) = serde_json::from_value::<FileDtype>(Value::String(dtype.clone())) {
        match byte_count(&shape, known.bitsize()) {
            Some(expected) if expected == end - start => {}
            Some(expected) => {
                return Err(format!(
                    "{dtype} {shape:?} takes {expected} bytes, but its data have {}",
                    end - start
                ));
            }
            None => return Err(format!("{dtype} {shape:?} is not a possible size")),
        }
    }
    Ok(TensorHeader { dtype, shape, range: start..end })
}

/// The tensors must cover the data from its start without gap or overlap; returns where they end.
fn check_cover(path: &Path, tensors: &BTreeMap<String, TensorHeader>) -> Result<usize, CheckpointError> {
    let mut in_order: Vec<(&String, &TensorHeader)> = tensors.iter().collect();
    in_order.sort_by_key(|(_, header)| (header.range.start, header.range.end));
    let mut covered = 0;
    for (name, header) in in_order {
        if header.range.start != covered {
            let what = if header.range.start < covered { "overlap another tensor" } else { "leave a gap" };
            let reason = format!("its data start at {} and {what}: {covered} expected", header.range.start);
            return Err(CheckpointError::Layout { file: path.to_path_buf(), tensor: name.clone(), reason });
        }
        covered = header.range.end;
    }
    Ok(covered)
}

pub(super) fn byte_count(shape: &[usize], bits: usize) -> Option<usize> {
    let bits = shape.iter().try_fold(bits, |product, &dim| product.checked_mul(dim))?;
    bits.is_multiple_of(8).then_some(bits / 8)
}
