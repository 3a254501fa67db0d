//! What others load: an adapter merged into its base.
//!
//! Everything goes from the checkpoint to files that appear only when complete, some rows at a time; no device is used.

mod adapter_folder;
mod error;
mod merge;
mod weights;

pub use adapter_folder::AdapterFolder;
pub use error::ExportError;
pub use merge::{MergeOptions, MergeReport, merge};
pub use weights::{MergeBase, ModelWeights, WeightOptions};
