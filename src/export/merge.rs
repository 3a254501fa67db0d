//! An adapter merged into its base: a folder that transformers, LitGPT and others load like any model.

use super::{ExportError, ModelWeights, WeightOptions};
use crate::checkpoint::{CheckpointError, TensorSpec, atomic, copy_companions, write_shards};
use crate::data::PromptForm;
use crate::error::Error;
use crate::graph::DType;
use crate::train::save::stored_dtype;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A merge.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    pub weights: WeightOptions,
    /// A folder that is not there yet, or empty.
    pub out_dir: PathBuf,
    /// Bytes of a weight file at most.
    pub max_shard_size: u64,
    /// What floats are stored in; by default what they were.
    pub dtype: Option<DType>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeReport {
    /// Layers with an adapter.
    pub adapted: usize,
    pub tensors: usize,
    pub files: usize,
    /// Of the weights.
    pub bytes: u64,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Writes `W + s·B·A` for every adapted layer, computed in f32 and rounded once, and everything else as it is. The folder
/// appears complete or not at all.
///
/// # Errors
/// Input that is missing, broken or of different models; a folder that is in use or cannot be written.
pub fn merge(options: &MergeOptions) -> Result<MergeReport, Error> {
    check_out_dir(options)?;
    let model_dir = &options.weights.model_dir;
    let weights = ModelWeights::open(&options.weights)?;
    let specs = weights.specs(options.dtype)?;
    // what comes out of blocks has the type that the configuration names
    let dtype = options.dtype.or_else(|| weights.quantised.then(|| stored_dtype(model_dir)));
    let config = changed_config(model_dir, dtype, weights.untied)?;

    let failed = |source| Error::Write { path: options.out_dir.clone(), source };
    let folder = atomic::NewFolder::begin(&atomic::behind_link(&options.out_dir)).map_err(failed)?;
    let moved = |error| moved(error, folder.path(), &options.out_dir);
    let stored = |spec: &TensorSpec| TensorSpec { name: weights.stored_name(&spec.name), ..spec.clone() };
    let stored: Vec<TensorSpec> = specs.iter().map(stored).collect();
    let by_name: HashMap<&str, &TensorSpec> =
        stored.iter().map(|spec| spec.name.as_str()).zip(&specs).collect();
    let write = &mut |spec: &TensorSpec, out: &mut dyn Write| weights.write(by_name[spec.name.as_str()], out);
    let files = write_shards(folder.path(), &stored, options.max_shard_size, write).map_err(moved)?;
    let own: &[&str] = if config.is_some() { &["config.json"] } else { &[] };
    copy_companions(model_dir, folder.path(), own).map_err(moved)?;
    if let Some(config) = config {
        let path = folder.path().join("config.json");
        atomic::write_file(&path, |out| writeln!(out, "{config:#}")).map_err(failed)?;
    }
    // the sum is asked as the adapter was
    if let Some(adapter) = &options.weights.adapter
        && let Ok(Some(form)) = PromptForm::read(&adapter.path)
    {
        form.write(folder.path()).map_err(moved)?;
    }
    folder.commit().map_err(failed)?;
    Ok(MergeReport {
        adapted: weights.adapted,
        tensors: specs.len(),
        files,
        bytes: specs.iter().map(|spec| spec.bytes() as u64).sum(),
        notes: weights.notes,
    })
}

fn check_out_dir(options: &MergeOptions) -> Result<(), ExportError> {
    let path = options.out_dir.clone();
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if same(&path, &options.weights.model_dir) {
        return Err(ExportError::SameFolder { path });
    }
    if path.is_file() {
        return Err(ExportError::FolderIsFile { path });
    }
    // without a slash at the end, which asks for what the link leads to
    if !path.exists() && path.components().collect::<PathBuf>().is_symlink() {
        return Err(ExportError::LinkToNothing { path });
    }
    if atomic::is_mount_point(&path) {
        return Err(ExportError::MountPoint { path });
    }
    match std::fs::read_dir(&path).ok().and_then(|mut entries| entries.next()) {
        Some(_) => Err(ExportError::NotEmpty { path }),
        None => Ok(()),
    }
}

/// The configuration without quantisation, with another type and with an untied head, where any of these is called for.
fn changed_config(model_dir: &Path, dtype: Option<DType>, untied: bool) -> Result<Option<Value>, Error> {
    let path = model_dir.join("config.json");
    let read = |source| CheckpointError::Read { path: path.clone(), source };
    let text = std::fs::read_to_string(&path).map_err(read)?;
    let mut config: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| read(io::Error::other(error)))?;
    if dtype.is_none() && !untied && !config.contains_key("quantization_config") {
        return Ok(None);
    }
    config.shift_remove("quantization_config");
    if untied {
        config.insert("tie_word_embeddings".into(), false.into());
        // that of a language model within another
        if let Some(Value::Object(text)) = config.get_mut("text_config") {
            text.insert("tie_word_embeddings".into(), false.into());
        }
    }
    if let Some(dtype) = dtype {
        let name = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        // transformers 5 writes `dtype`, 4 `torch_dtype`
        let known: Vec<&str> =
            ["dtype", "torch_dtype"].into_iter().filter(|key| config.contains_key(*key)).collect();
        for key in if known.is_empty() { vec!["torch_dtype"] } else { known } {
            config.insert(key.to_owned(), name.into());
        }
    }
    Ok(Some(Value::Object(config)))
}

/// An error with the folder's final name instead of the temporary one; what an export reported is itself again.
fn moved(error: CheckpointError, temporary: &Path, folder: &Path) -> Error {
    match error {
        CheckpointError::Write { path, source } => {
            let path = path.strip_prefix(temporary).map_or(path.clone(), |name| folder.join(name));
            written(path, source)
        }
        error => Error::Checkpoint(error),
    }
}

/// A failed write, or the [`ExportError`] that came through it.
pub(super) fn written(path: PathBuf, source: io::Error) -> Error {
    match source.downcast::<ExportError>() {
        Ok(inner) => Error::Export(inner),
        Err(source) => Error::Write { path, source },
    }
}
