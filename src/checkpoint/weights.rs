//! Tensors in safetensors files: read by memory map, one file or shards with an index; written in one pass.
//!
//! Format: eight bytes with the header's length (little-endian), the header as JSON
//! (`name -> dtype, shape, data_offsets`), then the data, which the tensors cover without gap or
//! overlap. A tensor's bytes may begin at an odd address, so elements are always assembled from bytes.

use super::CheckpointError;
use super::atomic;
use super::shards::TensorSpec;
use crate::graph::DType;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype as FileDtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// The format's own limit; without it a broken length would make us parse gigabytes as JSON.
const MAX_HEADER: u64 = 100_000_000;
/// Elements converted at once: 16 KiB of f32 stay in the first-level cache.
const BLOCK: usize = 4096;

/// The weights of a model, memory-mapped: opening costs the headers only. Whole models are read with
/// [`Checkpoint::read_elements`].
///
/// The files must not be shortened while they are open; the system ends a process that reads a
/// mapped page which is gone.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or else the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// A missing folder, file or shard; a truncated file or a header that contradicts itself.
    pub fn open(model_dir: &Path) -> Result<Self, CheckpointError> {
        if !model_dir.is_dir() {
            return Err(CheckpointError::FolderMissing { path: model_dir.to_path_buf() });
        }
        let (single, index) = (model_dir.join(SINGLE_FILE), model_dir.join(INDEX_FILE));
        if single.is_file() {
            Checkpoint::open_file(&single)
        } else if index.is_file() {
            Checkpoint::open_index(model_dir, &index)
        } else {
            Err(CheckpointError::FileMissing {
                folder: model_dir.to_path_buf(),
                wanted: "model.safetensors (or model.safetensors.index.json with its shards)",
                hint: missing_weights_hint(model_dir),
            })
        }
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// A missing or truncated file, or a header that contradicts itself.
    pub fn open_file(path: &Path) -> Result<Self, CheckpointError> {
        let (file, entries) = MappedFile::open(path)?;
        let tensors = entries.into_iter().map(|(name, header)| (name, Entry { file: 0, header })).collect();
        Ok(Checkpoint { path: path.to_path_buf(), files: vec![file], tensors })
    }

    /// Names of the tensors in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| entry.header.range.len() as u64).sum()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// A name that does not exist (with the nearest that do), or an element type that engraft does not
    /// read; other tensors of the file are not affected by it.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        let (name, entry) = self.tensors.get_key_value(name).ok_or_else(|| self.missing(name))?;
        let (file, header) = (&self.files[entry.file], &entry.header);
        let dtype = match header.dtype.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            "U32" => DType::U32,
            other => {
                return Err(CheckpointError::UnsupportedDType {
                    file: file.path.clone(),
                    tensor: name.clone(),
                    found: other.to_owned(),
                });
            }
        };
        let bytes = &file.map[file.data_start + header.range.start..file.data_start + header.range.end];
        Ok(TensorView { name, dtype, shape: header.shape.clone(), bytes })
    }

    /// A tensor's element type as the file names it, and its bytes.
    ///
    /// # Errors
    /// A name that does not exist.
    pub(super) fn raw(&self, name: &str) -> Result<(&str, &[u8]), CheckpointError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let (file, header) = (&self.files[entry.file], &entry.header);
        Ok((
            &header.dtype,
            &file.map[file.data_start + header.range.start..file.data_start + header.range.end],
        ))
    }

    /// Element type and shape of a tensor as the file has them, also of types that engraft does not compute with.
    ///
    /// # Errors
    /// A name that does not exist, a type that safetensors does not know.
    pub fn spec(&self, name: &str) -> Result<TensorSpec, CheckpointError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let TensorHeader { dtype, shape, .. } = &entry.header;
        match serde_json::from_value(Value::String(dtype.clone())) {
            Ok(known) => Ok(TensorSpec { name: name.to_owned(), dtype: known, shape: shape.clone() }),
            Err(_) => Err(CheckpointError::UnsupportedDType {
                file: self.files[entry.file].path.clone(),
                tensor: name.to_owned(),
                found: dtype.clone(),
            }),
        }
    }

    /// Reads these bytes of a tensor's elements, as they are stored, in place of what `out` holds. They are read from the
    /// file, not through its map.
    ///
    /// # Errors
    /// A name that does not exist, a file that cannot be read or was shortened.
    ///
    /// # Panics
    /// If the tensor has no such bytes: a mistake in the program, not in its input.
    pub fn read_bytes(
        &self,
        name: &str,
        bytes: Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<(), CheckpointError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        assert!(bytes.end <= entry.header.range.len(), "bytes {bytes:?} of {name:?}");
        let MappedFile { path, file, data_start, .. } = &self.files[entry.file];
        out.resize(bytes.len(), 0);
        let at = (data_start + entry.header.range.start + bytes.start) as u64;
        read_exact_at(file, out, at).map_err(CheckpointError::read(path))
    }

    /// Some elements as f32, read as [`Checkpoint::read_bytes`] does. `raw` is scratch space.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`] and [`Checkpoint::read_bytes`].
    ///
    /// # Panics
    /// As [`Checkpoint::read_bytes`].
    pub fn read_f32(
        &self,
        name: &str,
        elements: Range<usize>,
        raw: &mut Vec<u8>,
    ) -> Result<Vec<f32>, CheckpointError> {
        let dtype = self.tensor(name)?.dtype;
        let mut values = vec![0.0; elements.len()];
        self.read_bytes(name, elements.start * dtype.size()..elements.end * dtype.size(), raw)?;
        decode(raw, dtype, &mut values);
        Ok(values)
    }

    fn missing(&self, name: &str) -> CheckpointError {
        CheckpointError::TensorMissing {
            path: self.path.clone(),
            tensor: name.to_owned(),
            nearest: nearest_names(name, self.names()),
        }
    }

    /// What is wrong with a tensor.
    pub(super) fn odd(&self, tensor: &str, reason: String) -> CheckpointError {
        let file = self.tensors.get(tensor).map_or(&self.path, |entry| &self.files[entry.file].path);
        CheckpointError::Tensor { file: file.clone(), tensor: tensor.to_owned(), reason }
    }

    /// Appends the elements of this range of a tensor, row-major, in another type, rounded as [`TensorView::write_as`]
    /// does. They are read from the file, not through its map, so that no more than them is in memory. `raw` is scratch
    /// space.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`], and a file that cannot be read or was shortened.
    ///
    /// # Panics
    /// If the tensor has no such elements: a mistake in the program, not in its input.
    pub fn read_elements(
        &self,
        name: &str,
        elements: Range<usize>,
        dtype: DType,
        raw: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(), CheckpointError> {
        let view = self.tensor(name)?;
        let size = view.dtype.size();
        assert!(
            elements.end * size <= view.bytes.len(),
            "elements {elements:?} of {name:?} {:?}",
            view.shape
        );
        let (entry, length) = (&self.tensors[name], elements.len() * size);
        let MappedFile { path, file, data_start, .. } = &self.files[entry.file];
        let at = (data_start + entry.header.range.start + elements.start * size) as u64;
        let read = |into: &mut [u8]| read_exact_at(file, into, at).map_err(CheckpointError::read(path));
        if dtype == view.dtype {
            let start = out.len();
            out.resize(start + length, 0);
            return read(&mut out[start..]);
        }
        raw.resize(length, 0);
        read(raw)?;
        TensorView { bytes: raw, shape: vec![elements.len()], ..view }.write_as(dtype, out);
        Ok(())
    }

    /// Checks that every expected tensor is there with its shape and a type that can be read.
    ///
    /// Further tensors are no error: some exporters store buffers or a copy of a tied head.
    ///
    /// # Errors
    /// The first tensor that is missing, of another shape or of another type.
    pub fn check<'n>(
        &self,
        expected: impl IntoIterator<Item = (&'n str, &'n [usize])>,
    ) -> Result<(), CheckpointError> {
        for (name, shape) in expected {
            let found = match self.quantised_type(name)? {
                Some(ty) => ty.shape.dims().to_vec(),
                None => self.tensor(name)?.shape,
            };
            if found != shape {
                let file = self.tensors.get(name).map_or(&self.path, |entry| &self.files[entry.file].path);
                return Err(CheckpointError::Shape {
                    file: file.clone(),
                    tensor: name.to_owned(),
                    expected: shape.to_vec(),
                    found,
                });
            }
        }
        Ok(())
    }

    fn open_index(model_dir: &Path, index: &Path) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = std::fs::read(index).map_err(CheckpointError::read(index))?;
        let Index { weight_map } = serde_json::from_slice(&text).map_err(CheckpointError::json(index))?;

        let mut files = Vec::new();
        let mut opened: BTreeMap<String, (usize, BTreeMap<String, TensorHeader>)> = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        for (tensor, shard) in weight_map {
            if !opened.contains_key(&shard) {
                let path = shard_path(model_dir, index, &shard, &tensor)?;
                let (file, headers) = MappedFile::open(&path)?;
                opened.insert(shard.clone(), (files.len(), headers));
                files.push(file);
            }
            let found =
                opened.get_mut(&shard).and_then(|(file, headers)| Some((*file, headers.remove(&tensor)?)));
            let Some((file, header)) = found else {
                let reason = format!("the index says it is in {shard:?}, but it is not there");
                return Err(CheckpointError::Layout { file: index.to_path_buf(), tensor, reason });
            };
            tensors.insert(tensor, Entry { file, header });
        }
        Ok(Checkpoint { path: index.to_path_buf(), files, tensors })
    }
}

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

#[derive(Debug)]
struct Entry {
    file: usize,
    header: TensorHeader,
}

/// What the header says about one tensor, checked; `range` counts from the start of the data.
#[derive(Debug)]
struct TensorHeader {
    dtype: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
    data_start: usize,
}

impl MappedFile {
    fn open(path: &Path) -> Result<(Self, BTreeMap<String, TensorHeader>), CheckpointError> {
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
fn read_exact_at(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, into, at)
}

/// Fills `into` from this offset of the file, whose own position does not matter to others.
#[cfg(windows)]
fn read_exact_at(file: &File, mut into: &mut [u8], mut at: u64) -> io::Result<()> {
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

/// The path of a shard whose name comes from an untrusted index.
fn shard_path(model_dir: &Path, index: &Path, shard: &str, tensor: &str) -> Result<PathBuf, CheckpointError> {
    let mut components = Path::new(shard).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    // Separators and drives of the other systems are no part of a plain name either, whatever runs here.
    if !plain || shard.contains(['/', '\\', ':', '\0']) {
        let (index, shard, tensor) = (index.to_path_buf(), shard.to_owned(), tensor.to_owned());
        return Err(CheckpointError::ShardName { index, shard, tensor });
    }
    let path = model_dir.join(shard);
    if !path.is_file() {
        let (index, shard, tensor) = (index.to_path_buf(), shard.to_owned(), tensor.to_owned());
        return Err(CheckpointError::ShardMissing { index, shard, tensor });
    }
    Ok(path)
}

fn missing_weights_hint(model_dir: &Path) -> String {
    const OTHERS: [(&str, &str); 4] = [
        ("pytorch_model.bin", "PyTorch"),
        ("pytorch_model.bin.index.json", "PyTorch"),
        ("consolidated.00.pth", "PyTorch"),
        (super::ADAPTER_WEIGHTS, "adapter"),
    ];
    match OTHERS.iter().find(|(name, _)| model_dir.join(name).is_file()) {
        Some((name, "adapter")) => {
            format!("; {name} is there: this is an adapter, give the folder of its base model")
        }
        Some((name, format)) => {
            format!("; {name} is there: convert the {format} weights to safetensors first")
        }
        None => "; give the folder of a Hugging Face model with its weights".into(),
    }
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

/// Little-endian elements to f32; `out` has one place per element.
fn decode(bytes: &[u8], dtype: DType, out: &mut [f32]) {
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

/// Up to three names that a typing or naming mistake could have meant.
fn nearest_names<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> Vec<String> {
    let mut ranked: Vec<(usize, &str)> = names.map(|name| (edit_distance(wanted, name), name)).collect();
    ranked.sort_unstable();
    ranked.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
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

    #[test]
    fn edit_distance_counts_changes() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("same", "same"), 0);
    }

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
