//! GGUF files for llama.cpp: whole models, and adapters.

mod adapter;
mod model;
mod names;
mod tokenizer;

pub use adapter::export_adapter;
pub use model::export_model;

use super::ExportError;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::gguf::{GgmlType, GgufTensor, GgufValue, MAGIC};
use crate::error::Error;
use crate::models::ModelConfig;
use names::knows_window;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where a GGUF file goes and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufOptions {
    pub path: PathBuf,
    /// Of matrices; vectors are f32 always. A matrix whose rows are no whole blocks is f16.
    pub ty: GgmlType,
    /// `general.name`; by default the folder's.
    pub name: Option<String>,
    /// llama.cpp's name for the splitting of text before BPE; by default what tokenizer.json says.
    pub tokenizer_pre: Option<String>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufReport {
    pub tensors: usize,
    pub bytes: u64,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl GgufOptions {
    /// Refuses to write over what is no GGUF file.
    fn check(&self) -> Result<(), ExportError> {
        let path = || self.path.clone();
        if self.path.is_dir() {
            return Err(ExportError::FileIsFolder { path: path() });
        }
        let Ok(mut file) = File::open(&self.path) else { return Ok(()) };
        let mut magic = [0; 4];
        match file.read_exact(&mut magic) {
            Ok(()) if magic == MAGIC => Ok(()),
            _ => Err(ExportError::ForeignFile { path: path() }),
        }
    }

    fn report(
        &self,
        tensors: &[GgufTensor],
        config: &ModelConfig,
        mut notes: Vec<String>,
    ) -> Result<GgufReport, Error> {
        let unknown = |window: &usize| !knows_window(config) && *window < config.max_position_embeddings;
        if let Some(window) = config.sliding_window.filter(unknown) {
            notes.push(format!(
                "the model sees the last {window} tokens and llama.cpp all: in longer texts it goes on in another way there"
            ));
        }
        let smaller = tensors.iter().filter(|t| t.shape.len() == 2 && t.ty != self.ty).count();
        if smaller > 0 {
            notes.push(format!("{smaller} matrices are f16: their rows are no whole blocks of {}", self.ty));
        }
        let metadata = std::fs::metadata(&self.path);
        let bytes = metadata.map_err(|source| Error::Write { path: self.path.clone(), source })?.len();
        Ok(GgufReport { tensors: tensors.len(), bytes, notes })
    }

    /// The type that a matrix with rows of so many values is written in, as llama.cpp's converter falls back.
    fn type_of(&self, columns: usize) -> GgmlType {
        if self.ty.fits(columns) { self.ty } else { GgmlType::F16 }
    }
}

/// The keys that every file begins with.
fn general(architecture: &str, kind: &str, name: &str, ty: GgmlType) -> Vec<(String, GgufValue)> {
    let text = |value: &str| GgufValue::Text(value.to_owned());
    let all = [
        ("architecture", text(architecture)),
        ("type", text(kind)),
        ("name", text(name)),
        ("file_type", GgufValue::U32(ty.file_type())),
        ("quantization_version", GgufValue::U32(2)),
    ];
    all.into_iter().map(|(key, value)| (format!("general.{key}"), value)).collect()
}

/// An error of writing, or what an export reported through it.
fn written(error: CheckpointError) -> Error {
    match error {
        CheckpointError::Write { path, source } => super::merge::written(path, source),
        error => Error::Checkpoint(error),
    }
}

/// The last part of a folder's path, also of `.` and the like.
fn folder_name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}
