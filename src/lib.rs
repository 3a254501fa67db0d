//! Fine-tuning of language models with low-rank adapters on any GPU that Vulkan, Metal or DX12 reaches.

pub mod autograd;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod disk;
pub mod error;
pub mod export;
pub mod fuse;
pub mod generate;
pub mod gpu;
pub mod graph;
pub mod hub;
pub mod memory_size;
pub mod models;
pub mod nn;
pub mod ops;
pub mod plan;
pub mod serve;
pub mod stop;
pub mod train;
pub mod validate;
mod word;

pub use error::Error;
