//! Training: options, schedule, optimiser, the loop, metrics.

pub mod adapter;
pub mod bench;
pub mod data_options;
pub mod evaluator;
pub mod finetune;
mod host_embedding;
mod inputs;
mod ledger;
pub mod logging;
pub mod loss_scale;
pub mod memory;
pub mod memory_size;
pub mod metrics;
pub mod optimiser;
pub mod options;
pub mod plan;
pub mod quantize;
mod resume;
pub mod run_folder;
pub mod run_plan;
pub mod save;
pub mod schedule;
pub mod setup;
pub mod trainer;
pub mod tuning;
mod upload;
pub mod weights;
