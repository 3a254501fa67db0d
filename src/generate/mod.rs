//! Text from a model: sampling, and generation with a KV cache.

mod generator;
pub mod sampling;

pub use generator::{CacheSize, End, GenerateError, GenerateOptions, Generated, Generator};
