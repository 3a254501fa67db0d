//! What can be wrong with weights and adapters on disk, with the place and the way out.

use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Reading or writing weights or an adapter failed.
#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error("{path}: no such folder; give the folder that holds the files of the model or adapter")]
    FolderMissing { path: PathBuf },
    #[error("{folder}: {wanted} not found{hint}")]
    FileMissing { folder: PathBuf, wanted: &'static str, hint: String },
    #[error("{path}: cannot be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: cannot be written: {source}; check the free space and the permissions of the folder")]
    Write { path: PathBuf, source: io::Error },
    #[error("{file}: line {line} column {column}: {reason}")]
    Json { file: PathBuf, line: usize, column: usize, reason: String },

    #[error("{file}: a Git LFS pointer, not the weights; fetch them with `git lfs pull`")]
    LfsPointer { file: PathBuf },
    #[error("{file}: truncated: {expected} bytes expected, {found} found; copy or download it again")]
    Truncated { file: PathBuf, expected: u64, found: u64 },
    #[error("{file}: not a safetensors file: {reason}; copy or download it again")]
    Header { file: PathBuf, reason: String },
    #[error("{file}: tensor {tensor:?}: {reason}; the file is damaged, copy or download it again")]
    Layout { file: PathBuf, tensor: String, reason: String },
    #[error(
        "{index}: tensor {tensor:?} is said to be in {shard:?}, which is not a plain file name; \
         a shard lies in the folder of its index"
    )]
    ShardName { index: PathBuf, shard: String, tensor: String },
    #[error(
        "{index}: the shard {shard:?} with tensor {tensor:?} is missing from the folder; copy or download it"
    )]
    ShardMissing { index: PathBuf, shard: String, tensor: String },

    #[error("{file}: tensor {tensor:?} has element type {found}; supported are F32, F16, BF16 and U32")]
    UnsupportedDType { file: PathBuf, tensor: String, found: String },
    #[error(
        "{}: {tensor} is of a language model within another model, but config.json is of one that stands alone; fetch both from \
         the same place",
        path.display()
    )]
    Embedded { path: PathBuf, tensor: String },
    #[error(
        "{}: {head} is not {embedding}, but config.json makes the token embedding the head (tie_word_embeddings true, in text_config of a \
         model that sees images too, or nothing where that means it); set it to false there if the head is the model's, or remove {head}",
        path.display()
    )]
    HeadOfItsOwn { path: PathBuf, head: String, embedding: String },
    #[error("{path}: tensor {tensor:?} not found{}", did_you_mean(nearest))]
    TensorMissing { path: PathBuf, tensor: String, nearest: Vec<String> },
    #[error(
        "{file}: tensor {tensor:?} has shape {found:?}, expected {expected:?}; does config.json belong to it?"
    )]
    Shape { file: PathBuf, tensor: String, expected: Vec<usize>, found: Vec<usize> },

    #[error("{file}: tensor {tensor:?}: {reason}")]
    Tensor { file: PathBuf, tensor: String, reason: String },

    #[error("{file}: {key}: {reason}")]
    Key { file: PathBuf, key: String, reason: String },
    #[error("{file}: {key} = {value} is not supported: {reason}")]
    Unsupported { file: PathBuf, key: String, value: String, reason: &'static str },
    #[error("{file}: adapter tensor {tensor:?}: {reason}")]
    AdapterTensor { file: PathBuf, tensor: String, reason: String },
}

impl CheckpointError {
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| CheckpointError::Read { path: path.to_path_buf(), source }
    }

    pub(super) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| CheckpointError::Write { path: path.to_path_buf(), source }
    }

    pub(super) fn json(file: &Path) -> impl FnOnce(serde_json::Error) -> Self + '_ {
        |error| CheckpointError::Json {
            file: file.to_path_buf(),
            line: error.line(),
            column: error.column(),
            // Without the position, which the message has already.
            reason: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        }
    }
}

fn did_you_mean(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; the nearest names are {}", nearest.join(", ")) }
}
