//! Text from a model: sampling, and generation with a KV cache.

pub mod sampling;
