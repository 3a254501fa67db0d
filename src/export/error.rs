//! What can be wrong with a merge or an export before anything is written.

use crate::graph::DType;
use std::path::PathBuf;
use thiserror::Error;

/// A merge or an export that cannot be done as asked.
#[derive(Debug, Error)]
pub enum ExportError {
    #[error("{}: is the folder of the base model; give --out_dir another, new folder", path.display())]
    SameFolder { path: PathBuf },
    #[error("{}: is a link to a folder that is not there; make that folder, or give --out_dir another one", path.display())]
    LinkToNothing { path: PathBuf },
    #[error("{}: another disk begins there, so no folder can get that name at once; give --out_dir a folder in it", path.display())]
    MountPoint { path: PathBuf },
    #[error("{}: has files already, and a merge never writes over them; give --out_dir a new folder", path.display())]
    NotEmpty { path: PathBuf },
    #[error("{}: is a file; give --out_dir a new folder", path.display())]
    FolderIsFile { path: PathBuf },
    #[error(
        "{}: base_model_name_or_path {}; give --model_dir the folder of the base model",
        file.display(),
        named.as_ref().map_or("is not set".into(), |named| format!("is {named:?}, which is no folder here"))
    )]
    NoBase { file: PathBuf, named: Option<String> },
    #[error(
        "{}: the weights are quantised ({dtype}), there is no original in this folder; give --model_dir the unquantised \
         model, or --merge_base dequantized",
        model_dir.display()
    )]
    OriginalMissing { model_dir: PathBuf, dtype: DType },
    #[error(
        "--quantize {kind}: the weights in {} are {dtype} already; leave the option out",
        model_dir.display()
    )]
    Requantised { model_dir: PathBuf, dtype: DType, kind: String },
    #[error(
        "--merge_base dequantized: the weights in {} are not quantised, and no hyperparameters.json beside the adapter says \
         how the run quantised them; give --quantize, or --merge_base original",
        model_dir.display()
    )]
    NoQuantisation { model_dir: PathBuf },
    #[error("--quantize {kind} goes with --merge_base dequantized; the original weights are not quantised")]
    QuantizeUnused { kind: String },
    #[error(
        "{}: {module} has values that are not finite: the training diverged; take an earlier step-NNNNNN",
        adapter_dir.display()
    )]
    NotFinite { adapter_dir: PathBuf, module: String },
    #[error(
        "{tensor}: the value {value} is beyond f16, whose largest is 65504; give --dtype bf16 or f32 (--type for GGUF)"
    )]
    Overflow { tensor: String, value: f32 },
    #[error("{}: is a folder; give --gguf the path of the file to write", path.display())]
    FileIsFolder { path: PathBuf },
    #[error("{}: is there and is no GGUF file; give --gguf another path", path.display())]
    ForeignFile { path: PathBuf },
    #[error("{}: {reason}", file.display())]
    Tokenizer { file: PathBuf, reason: String },
    #[error("{tensor}: has no place in a GGUF file of this architecture")]
    NoGgufName { tensor: String },
    #[error("{what}: llama.cpp does not have it in this architecture")]
    LlamaCppLacks { what: String },
    #[error(
        "the adapter changes the head, which is the token embedding in {}: llama.cpp cannot add it; merge the adapter with \
         engraft merge_lora, and export the model",
        model_dir.display()
    )]
    TiedHead { model_dir: PathBuf },
    #[error(
        "the adapter has modules that were trained in full ({modules}): a GGUF adapter holds none; merge it with engraft \
         merge_lora, and export the model"
    )]
    SavedModules { modules: String },
    #[error(
        "{}: neither config.json of a model nor adapter_config.json is there; give the folder of a model or of an adapter",
        path.display()
    )]
    NeitherKind { path: PathBuf },
    #[error("{option} is for {goes_with}, and {} is {found}; leave it out", path.display())]
    Misplaced { option: &'static str, goes_with: &'static str, path: PathBuf, found: &'static str },
}
