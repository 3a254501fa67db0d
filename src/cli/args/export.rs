//! What `engraft export` takes.

use super::EXIT_CODES;
use crate::checkpoint::gguf::GgmlType;
use crate::error::Error;
use crate::export::{AdapterFolder, ExportError, GgufOptions};
use crate::hub::downloaded_model;
use clap::Args;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct ExportArgs {
    /// Model folder, or PEFT adapter, or the output folder of finetune or a step in it
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The file to write, for llama.cpp
    #[arg(long, value_name = "FILE")]
    pub gguf: PathBuf,
    /// Type of the matrices: f32, f16, bf16, q8_0 [default: f16 for a model, f32 for an adapter]
    #[arg(long = "type", alias = "outtype", value_name = "TYPE")]
    pub ty: Option<GgmlType>,
    /// Base model of an adapter; its weights are not needed [default: the folder that adapter_config.json names]
    #[arg(long, alias = "model-dir", value_name = "DIR")]
    pub model_dir: Option<PathBuf>,
    /// The name in the file [default: the folder's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// llama.cpp's name for the splitting of text before BPE [default: what tokenizer.json says]
    #[arg(long, alias = "tokenizer-pre", value_name = "NAME")]
    pub tokenizer_pre: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What is exported: the model, or an adapter for it.
#[derive(Clone, Debug)]
pub struct ExportSource {
    pub model_dir: PathBuf,
    pub adapter: Option<AdapterFolder>,
}

impl ExportArgs {
    /// The export that was asked for; `json` is not part of it.
    ///
    /// # Errors
    /// A folder that is neither, an adapter that is broken or whose base model is nowhere, options of the other kind.
    pub fn resolve(self) -> Result<(ExportSource, GgufOptions), Error> {
        let misplaced = |option, goes_with, found| -> Error {
            ExportError::Misplaced { option, goes_with, path: self.dir.clone(), found }.into()
        };
        let (source, usual) = if AdapterFolder::is_one(&self.dir) {
            if self.tokenizer_pre.is_some() {
                return Err(misplaced("--tokenizer_pre", "models", "an adapter"));
            }
            let folder = AdapterFolder::open(&self.dir)?;
            let model_dir = folder.base(self.model_dir.as_deref(), &downloaded_model)?;
            (ExportSource { model_dir, adapter: Some(folder) }, GgmlType::F32)
        } else if !self.dir.is_dir() || self.dir.join("config.json").is_file() {
            if self.model_dir.is_some() {
                return Err(misplaced("--model_dir", "adapters", "a model"));
            }
            (ExportSource { model_dir: self.dir, adapter: None }, GgmlType::F16)
        } else {
            return Err(ExportError::NeitherKind { path: self.dir }.into());
        };
        let (name, tokenizer_pre) = (self.name, self.tokenizer_pre);
        Ok((source, GgufOptions { path: self.gguf, ty: self.ty.unwrap_or(usual), name, tokenizer_pre }))
    }
}
