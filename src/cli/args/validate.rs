//! What `engraft validate` takes.

use super::{EXIT_CODES, ModelArgs};
use clap::Args;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct ValidateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// PEFT adapter to check against the model, or the output folder of finetune [default: none]
    #[arg(long, alias = "lora", value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
