//! What `engraft merge_lora` takes.

use super::EXIT_CODES;
use crate::error::Error;
use crate::export::{AdapterFolder, MergeBase, MergeOptions, WeightOptions};
use crate::graph::DType;
use crate::hub::downloaded_model;
use crate::memory_size::parse_memory_size;
use crate::train::quantize::{Quantize, QuantizeOptions};
use clap::Args;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct MergeArgs {
    /// PEFT adapter, or the output folder of finetune or a step in it
    #[arg(value_name = "ADAPTER_DIR")]
    pub adapter_dir: PathBuf,
    /// New folder for the merged model
    #[arg(long, alias = "out-dir", value_name = "DIR")]
    pub out_dir: PathBuf,
    /// Base model [default: the folder that adapter_config.json names]
    #[arg(
        long,
        aliases = ["model-dir", "pretrained_checkpoint_dir", "pretrained-checkpoint-dir"],
        value_name = "DIR"
    )]
    pub model_dir: Option<PathBuf>,
    /// What the adapter is added to: original, dequantized [default: the base model as it is stored]
    #[arg(long, alias = "merge-base", value_name = "BASE")]
    pub merge_base: Option<MergeBase>,
    /// How training held the base for dequantized: nf4, nf4-dq, int8 [default: what hyperparameters.json says]
    #[arg(long, value_name = "KIND", default_value_t = Quantize::None, hide_default_value = true)]
    pub quantize: Quantize,
    /// Token embedding and head were held so as well
    #[arg(long, alias = "quantize-head", requires = "quantize")]
    pub quantize_head: bool,
    /// Storage of the weights: f32, f16, bf16 [default: as the base has them]
    #[arg(long, value_name = "TYPE", value_parser = float_type)]
    pub dtype: Option<DType>,
    /// Bytes of a weight file at most
    #[arg(
        long,
        alias = "max-shard-size",
        value_name = "SIZE",
        default_value = "5GB",
        value_parser = parse_memory_size
    )]
    pub max_shard_size: u64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl MergeArgs {
    /// The merge that was asked for, its adapter read; `json` is not part of it.
    ///
    /// # Errors
    /// An adapter that is missing or broken, a base model that is nowhere.
    pub fn resolve(self) -> Result<MergeOptions, Error> {
        let adapter = AdapterFolder::open(&self.adapter_dir)?;
        Ok(MergeOptions {
            weights: WeightOptions {
                model_dir: adapter.base(self.model_dir.as_deref(), &downloaded_model)?,
                adapter: Some(adapter),
                base: self.merge_base,
                quantize: QuantizeOptions { kind: self.quantize, head: self.quantize_head },
            },
            out_dir: self.out_dir,
            max_shard_size: self.max_shard_size,
            dtype: self.dtype,
        })
    }
}

fn float_type(word: &str) -> Result<DType, String> {
    match word {
        "f32" | "float32" => Ok(DType::F32),
        "f16" | "float16" => Ok(DType::F16),
        "bf16" | "bfloat16" => Ok(DType::BF16),
        _ => Err("must be f32, f16 or bf16".into()),
    }
}
