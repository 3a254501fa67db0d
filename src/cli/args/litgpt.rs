//! Options in the words of LitGPT's `finetune_lora`, which have another form here or none.
//!
//! Words that only rename an option are aliases of it. What is left: switches that together name the targets, and options
//! that decide nothing here as long as they have one value: with another one they are refused, with the reason.

use super::boolean;
use clap::{ArgAction, Args};

/// Which layers carry an adapter, one by one; naming one takes LitGPT's defaults for the others.
#[derive(Clone, Debug, Default, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Adapter")]
pub struct LoraSwitches {
    /// Adapters on q_proj: true or false [default: true, where another such switch is given]
    #[arg(
        long,
        alias = "lora-query",
        hide_short_help = true,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = boolean,
        conflicts_with = "lora_targets"
    )]
    pub lora_query: Option<bool>,
    /// Adapters on k_proj [default: false]
    #[arg(
        long,
        alias = "lora-key",
        hide_short_help = true,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = boolean,
        conflicts_with = "lora_targets"
    )]
    pub lora_key: Option<bool>,
    /// Adapters on v_proj [default: true]
    #[arg(
        long,
        alias = "lora-value",
        hide_short_help = true,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = boolean,
        conflicts_with = "lora_targets"
    )]
    pub lora_value: Option<bool>,
    /// Adapters on o_proj [default: false]
    #[arg(
        long,
        alias = "lora-projection",
        hide_short_help = true,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = boolean,
        conflicts_with = "lora_targets"
    )]
    pub lora_projection: Option<bool>,
    /// Adapters on gate_proj, up_proj and down_proj [default: false]
    #[arg(
        long,
        alias = "lora-mlp",
        hide_short_help = true,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = boolean,
        conflicts_with = "lora_targets"
    )]
    pub lora_mlp: Option<bool>,
    /// An adapter on lm_head [default: false]
    #[arg(
        long,
        alias = "lora-head",
        hide_short_help = true,
        value_name = "BOOL",
        action = ArgAction::Set,
        value_parser = boolean,
        conflicts_with = "lora_targets"
    )]
    pub lora_head: Option<bool>,
}

impl LoraSwitches {
    /// The modules that the switches name; `None` where none was given.
    pub fn targets(&self) -> Option<Vec<String>> {
        let all: [(Option<bool>, bool, &[&str]); 6] = [
            (self.lora_query, true, &["q_proj"]),
            (self.lora_key, false, &["k_proj"]),
            (self.lora_value, true, &["v_proj"]),
            (self.lora_projection, false, &["o_proj"]),
            (self.lora_mlp, false, &["gate_proj", "up_proj", "down_proj"]),
            (self.lora_head, false, &["lm_head"]),
        ];
        all.iter().any(|(given, _, _)| given.is_some()).then(|| {
            let on = all.iter().filter(|(given, usual, _)| given.unwrap_or(*usual));
            on.flat_map(|(_, _, names)| names.iter().map(|name| (*name).to_owned())).collect()
        })
    }
}

/// An option that decides nothing here: the values that it may have, and why it may have no other.
pub struct Foreign {
    pub name: &'static str,
    pub allowed: &'static [&'static str],
    pub reason: &'static str,
}

const NO_TRACKER: &str =
    "a run never talks to a network; its metrics are in files that every tracker can import (--logger_name)";
const UNUSED_BY_TORCH: &str = "it chooses an implementation of PyTorch, and there is none here; leave it out";

const FOREIGN: [Foreign; 22] = [
    Foreign { name: "devices", allowed: &["1"], reason: "a run trains on one device; --gpu chooses it" },
    Foreign { name: "num_nodes", allowed: &["1"], reason: "a run trains on one machine" },
    Foreign {
        name: "freeze_encoder",
        allowed: &["true"],
        reason: "finetune never changes the base model's weights; finetune_full trains them all",
    },
    Foreign {
        name: "data.ignore_index",
        allowed: &["-100"],
        reason: "labels that count nothing are always -100",
    },
    Foreign {
        name: "data.include_multiturn_conversations",
        allowed: &["true"],
        reason: "conversations are always trained on with all their turns",
    },
    Foreign {
        name: "train.max_tokens",
        allowed: &[],
        reason: "LitGPT's finetune_lora refuses it too; --max_steps or --max_time ends a run",
    },
    Foreign {
        name: "train.tie_embeddings",
        allowed: &[],
        reason: "LitGPT's finetune_lora refuses it too; config.json says whether they are tied",
    },
    Foreign { name: "log.project", allowed: &[], reason: NO_TRACKER },
    Foreign { name: "log.run", allowed: &[], reason: NO_TRACKER },
    Foreign { name: "log.group", allowed: &[], reason: NO_TRACKER },
    Foreign { name: "log.teamspace", allowed: &[], reason: NO_TRACKER },
    Foreign { name: "log.metadata", allowed: &[], reason: NO_TRACKER },
    Foreign { name: "log.log_model", allowed: &["false"], reason: NO_TRACKER },
    Foreign { name: "log.save_logs", allowed: &["true"], reason: "the metrics are always saved" },
    Foreign { name: "log.checkpoint_name", allowed: &[], reason: NO_TRACKER },
    Foreign {
        name: "optimizer.amsgrad",
        allowed: &["false"],
        reason: "AdamW without AMSGrad is what there is",
    },
    Foreign { name: "optimizer.maximize", allowed: &["false"], reason: "a run makes the loss smaller" },
    Foreign { name: "optimizer.foreach", allowed: &["false", "true"], reason: UNUSED_BY_TORCH },
    Foreign { name: "optimizer.fused", allowed: &["false", "true"], reason: UNUSED_BY_TORCH },
    Foreign { name: "optimizer.capturable", allowed: &["false"], reason: UNUSED_BY_TORCH },
    Foreign { name: "optimizer.differentiable", allowed: &["false"], reason: UNUSED_BY_TORCH },
    Foreign {
        name: "train.max_iters",
        allowed: &[],
        reason: "--max_steps counts optimiser steps, and --epochs passes over the rows",
    },
];

impl Foreign {
    /// The option of this name, if it is one of these.
    pub fn find(name: &str) -> Option<&'static Foreign> {
        FOREIGN.iter().find(|option| option.name == name)
    }

    /// Why this value cannot be.
    ///
    /// # Errors
    /// The reason, unless the value is one that changes nothing.
    pub fn check(&self, value: &str) -> Result<(), String> {
        if self.allowed.contains(&value.to_ascii_lowercase().as_str()) {
            return Ok(());
        }
        Err(format!("--{} {value}: {}", self.name, self.reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_name_targets_with_litgpts_defaults() {
        let none = LoraSwitches::default();
        assert_eq!(none.targets(), None);
        let key = LoraSwitches { lora_key: Some(true), ..LoraSwitches::default() };
        assert_eq!(key.targets().unwrap(), ["q_proj", "k_proj", "v_proj"]);
        let mlp =
            LoraSwitches { lora_query: Some(false), lora_value: Some(false), lora_mlp: Some(true), ..none };
        assert_eq!(mlp.targets().unwrap(), ["gate_proj", "up_proj", "down_proj"]);
    }

    #[test]
    fn one_value_passes_and_another_is_refused_with_the_reason() {
        let devices = Foreign::find("devices").unwrap();
        assert_eq!(devices.check("1"), Ok(()));
        let said = devices.check("2").unwrap_err();
        assert!(said.contains("--devices 2") && said.contains("--gpu"), "{said}");
        assert!(Foreign::find("log.project").unwrap().check("mine").unwrap_err().contains("--logger_name"));
        assert!(Foreign::find("epochs").is_none());
    }
}
