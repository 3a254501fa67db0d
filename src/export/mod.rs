//! What others load: an adapter merged into its base, and models and adapters as GGUF files for llama.cpp.
//!
//! Everything goes from the checkpoint to files that appear only when complete, some rows at a time; no device is used.

mod adapter_folder;
mod error;
mod gguf;
mod merge;
mod weights;

pub use adapter_folder::AdapterFolder;
pub use error::ExportError;
pub use gguf::{GgufOptions, GgufReport, export_adapter, export_model};
pub use merge::{MergeOptions, MergeReport, merge};
pub use weights::{MergeBase, ModelWeights, WeightOptions};
