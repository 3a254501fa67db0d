//! The weights of a model: tensors by name, in one safetensors file or in shards with an index.

use super::elements::{TensorView, decode};
use super::mapped::{MappedFile, TensorHeader, read_exact_at};
use super::shards::TensorSpec;
use super::{CheckpointError, embedded, neox_head};
use crate::graph::DType;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

/// A model's weights in one file.
pub const MODEL_WEIGHTS: &str = "model.safetensors";
const HEAD: &str = "lm_head.weight";
/// What the names of other tensors of a GPT-NeoX begin with.
const NEOX: &str = "gpt_neox.";
const INDEX_FILE: &str = "model.safetensors.index.json";

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
    /// What the tensors of a language model within another model, and the head of a GPT-NeoX, are called in the files.
    stored_names: BTreeMap<String, String>,
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
        let (single, index) = (model_dir.join(MODEL_WEIGHTS), model_dir.join(INDEX_FILE));
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
        Ok(Checkpoint::of(path.to_path_buf(), vec![file], tensors))
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
            tensor: self.stored_name(name),
            nearest: nearest_names(&self.stored_name(name), self.names().map(|name| self.stored_name(name))),
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
        Ok(Checkpoint::of(index.to_path_buf(), files, tensors))
    }

    /// The tensors of a language model that is a part of another are called as if it stood alone, and GPT-NeoX's head as its module.
    fn of(path: PathBuf, files: Vec<MappedFile>, all: BTreeMap<String, Entry>) -> Self {
        let (mut tensors, mut stored_names) = (BTreeMap::new(), BTreeMap::new());
        let taken: BTreeSet<String> = all.keys().cloned().collect();
        for (stored, entry) in all {
            let name = neox_head::newer(&stored).or_else(|| embedded::alone(&stored));
            let name = name.filter(|name| !taken.contains(name));
            let name = match name {
                Some(name) => {
                    stored_names.insert(name.clone(), stored);
                    name
                }
                None => stored,
            };
            tensors.insert(name, entry);
        }
        Checkpoint { path, files, tensors, stored_names }
    }

    /// Refuses a language model within another where the configuration is of one that stands alone.
    ///
    /// # Errors
    /// Names that say so: transformers would find none of them.
    pub fn check_embedded(&self, embedded: bool) -> Result<(), CheckpointError> {
        match self.stored_names.values().find(|name| !embedded && embedded::is_part(name)) {
            Some(tensor) => {
                Err(CheckpointError::Embedded { path: self.path.clone(), tensor: tensor.clone() })
            }
            None => Ok(()),
        }
    }

    /// Refuses a head of its own beside a configuration that says the head is the token embedding. Some exporters store a copy of that,
    /// which is none. `tied`: names of the head and of the embedding that is said to be it.
    ///
    /// # Errors
    /// A head that differs from the embedding: transformers 4 would take the embedding, transformers 5 the head.
    pub fn check_tied(&self, tied: Option<[&str; 2]>) -> Result<(), CheckpointError> {
        let there = tied.filter(|names| names.iter().all(|name| self.contains(name)));
        let Some([head, embedding]) = there else { return Ok(()) };
        if self.raw(head)? == self.raw(embedding)? {
            return Ok(());
        }
        Err(CheckpointError::HeadOfItsOwn {
            path: self.path.clone(),
            head: self.stored_name(head),
            embedding: self.stored_name(embedding),
        })
    }

    /// What a tensor is called in the files, or would be if it were there.
    pub fn stored_name(&self, name: &str) -> String {
        let head = name == HEAD && !self.contains(name);
        match self.stored_names.get(name) {
            Some(stored) => stored.clone(),
            None if head && self.names().any(|name| name.starts_with(NEOX)) => neox_head::in_neox_files(name),
            None if head && !self.stored_names.is_empty() => embedded::in_files(name),
            None => name.to_owned(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    file: usize,
    header: TensorHeader,
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

/// Up to three names that a typing or naming mistake could have meant.
fn nearest_names(wanted: &str, names: impl Iterator<Item = String>) -> Vec<String> {
    let mut ranked: Vec<(usize, String)> =
        names.map(|name| (strsim::levenshtein(wanted, &name), name)).collect();
    ranked.sort_unstable();
    ranked.into_iter().take(3).map(|(_, name)| name).collect()
}
