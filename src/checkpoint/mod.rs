//! Weights and adapters on disk: safetensors in and out, PEFT adapters, files that are never half written.
//!
//! Files come from strangers. Every length and every offset is checked before it is used, and what is
//! wrong is reported as a [`CheckpointError`] with the file and the tensor or key.

mod adapter;
mod adapter_config;
pub mod atomic;
mod bitsandbytes;
mod companions;
mod elements;
mod embedded;
mod error;
pub mod gguf;
mod mapped;
mod neox_head;
mod shards;
mod single;
mod weights;

pub use adapter::{ADAPTER_WEIGHTS, Adapter, AdapterTensor, SavedModule};
pub use adapter_config::{ADAPTER_CONFIG, AdapterConfig, TargetModules};
pub use bitsandbytes::StoredBlocks;
pub use companions::{COMPANIONS, copy_companions};
pub use elements::{TensorView, encode};
pub use error::CheckpointError;
pub use neox_head::in_neox_files;
pub use shards::{TensorSpec, write_shards};
pub use single::write_safetensors;
pub use weights::{Checkpoint, MODEL_WEIGHTS};
