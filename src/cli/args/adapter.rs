//! What the adapter of a run is like.

use super::{LoraSwitches, Words, count, targets, words};
use crate::train::options::{Checks, LayerRange, LoraOptions, OptionsError};
use clap::Args;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Adapter")]
pub struct LoraArgs {
    /// Rank of the adapter
    #[arg(
        long,
        aliases = ["lora-rank", "lora_r", "lora-r"],
        value_name = "R",
        default_value_t = LoraOptions::default().rank,
        value_parser = count
    )]
    pub lora_rank: usize,
    /// The adapter's output is scaled by alpha / rank
    #[arg(long, alias = "lora-alpha", value_name = "ALPHA", default_value_t = LoraOptions::default().alpha)]
    pub lora_alpha: f64,
    /// Probability of dropping an element of the adapter's input
    #[arg(long, alias = "lora-dropout", value_name = "P", default_value_t = LoraOptions::default().dropout)]
    pub lora_dropout: f64,
    /// Modules with an adapter, such as q_proj,v_proj [default: all linear layers of the blocks]
    #[arg(long, alias = "lora-targets", value_name = "NAMES", value_parser = words)]
    pub lora_targets: Option<Words>,
    /// Layers with an adapter: last-16, first-4, or 8-15, counted from 0 [default: all]
    #[arg(long, alias = "lora-layers", value_name = "LAYERS")]
    pub lora_layers: Option<LayerRange>,
    /// Modules that are trained in full instead, such as lm_head,embed_tokens [default: none]
    #[arg(long, alias = "modules-to-save", value_name = "NAMES", value_parser = words)]
    pub modules_to_save: Option<Words>,
    #[command(flatten)]
    pub switches: LoraSwitches,
    /// PEFT adapter to go on from; rank, alpha and targets are then its own [default: a new adapter]
    #[arg(long, alias = "init-adapter", value_name = "DIR")]
    pub init_adapter: Option<PathBuf>,
}

/// What a run leaves as it is.
#[derive(Clone, Debug, Args)]
pub struct FreezeArgs {
    /// Patterns of modules to leave as they are, such as 'model.layers.[0-7].*' [default: none]
    #[arg(long, value_name = "PATTERNS", value_parser = words)]
    pub freeze: Option<Words>,
}

impl FreezeArgs {
    pub(super) fn patterns(self) -> Vec<String> {
        self.freeze.map(|Words(patterns)| patterns).unwrap_or_default()
    }
}

impl LoraArgs {
    /// # Errors
    /// Switches that are all off.
    pub(super) fn check(&self) -> Result<(), OptionsError> {
        let mut checks = Checks::default();
        let none = self.switches.targets().is_some_and(|targets| targets.is_empty());
        checks.require(!none, "--lora_query, --lora_value, …", "false", "leave no layer with an adapter");
        checks.finish()
    }

    pub(super) fn options(self) -> LoraOptions {
        LoraOptions {
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            layers: self.lora_layers,
            modules_to_save: self.modules_to_save.map(|Words(names)| names).unwrap_or_default(),
            targets: match (self.switches.targets(), self.lora_targets) {
                (Some(switched), _) => switched,
                (None, Some(Words(names))) => targets(&names),
                (None, None) => Vec::new(),
            },
        }
    }
}
