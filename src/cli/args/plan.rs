//! What `engraft plan` takes: the options of `finetune`, of which model and data may be left out.

use super::{
    DataArgs, DeviceArgs, EXIT_CODES, LoraArgs, RunModelArgs, SplitArgs, TrainingArgs, TuneArgs, boolean,
    named_config,
};
use crate::error::Error;
use crate::models::ModelConfig;
use crate::train::options::{FinetuneOptions, Method, OptionsError, TuneMode, WeightInit};
use clap::{ArgAction, Args};
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true, args_override_self = true)]
#[command(mut_arg("gpu", |arg| arg.help("Plan for this device [default: a typical GPU; none is opened]")))]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: RunModelArgs,
    /// Take the sizes of this model instead of MODEL_DIR's, such as llama-3.2-1b
    #[arg(long, value_name = "NAME", conflicts_with = "model_dir")]
    pub shape: Option<String>,
    /// Plan the training of every weight, as finetune_full does
    #[arg(long)]
    pub full: bool,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    #[command(flatten)]
    pub lora: LoraArgs,
    #[command(flatten)]
    pub training: TrainingArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Plan for a device whose memory is the host's: true or false [default: what --gpu is, or false]
    #[arg(
        long,
        alias = "unified-memory",
        value_name = "BOOL",
        default_missing_value = "true",
        num_args = 0..=1,
        action = ArgAction::Set,
        value_parser = boolean
    )]
    pub unified_memory: Option<bool>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl PlanArgs {
    /// The sizes to plan for.
    ///
    /// # Errors
    /// A name that is unknown, a `config.json` that cannot be used.
    pub fn config(&self) -> Result<ModelConfig, Error> {
        let folder = self.model.folder();
        named_config(self.shape.as_deref(), Some(folder.as_path()).filter(|f| !f.as_os_str().is_empty()))
    }

    /// The run to plan; data and folder may be empty.
    ///
    /// # Errors
    /// Every option that is out of its range.
    pub fn resolve(self) -> Result<FinetuneOptions, OptionsError> {
        // a file may name a folder beside the shape
        let model = if self.shape.is_some() { PathBuf::new() } else { self.model.folder() };
        self.lora.check()?;
        let tune = TuneArgs { tune: TuneMode::Cached };
        let init_adapter = self.lora.init_adapter.clone().filter(|_| !self.full);
        let options = FinetuneOptions {
            method: if self.full { Method::Full { init: WeightInit::Checkpoint } } else { Method::Lora },
            lora: self.lora.options(),
            init_adapter,
            ..self.training.options(model, self.data, self.split, self.device, tune)
        };
        options.validate_for_plan()?;
        Ok(options)
    }
}
