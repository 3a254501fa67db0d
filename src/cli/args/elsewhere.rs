//! What options of other trainers (transformers and TRL, PEFT, Unsloth, Axolotl) are called here, for who types them.

/// Their names, and what to type here.
const ELSEWHERE: [(&str, &str); 44] = [
    ("r", "--lora_rank"),
    ("rank", "--lora_rank"),
    ("target_modules", "--lora_targets"),
    ("lora_target_modules", "--lora_targets"),
    ("lora_target_linear", "--lora_targets, without which every linear layer has an adapter"),
    ("layers_to_transform", "--lora_layers"),
    ("lora_modules_to_save", "--modules_to_save"),
    ("load_in_4bit", "--quantize nf4"),
    ("bnb_4bit_quant_type", "--quantize nf4"),
    ("bnb_4bit_use_double_quant", "--quantize nf4-dq"),
    ("load_in_8bit", "--quantize int8"),
    ("model_name_or_path", "the first word behind the command"),
    ("model_name", "the first word behind the command"),
    ("base_model", "the first word behind the command"),
    ("model", "the first word behind the command"),
    ("dataset", "--data"),
    ("dataset_name", "--data"),
    ("datasets", "--data"),
    ("train_file", "--data"),
    ("output_dir", "--out_dir"),
    ("per_device_train_batch_size", "--micro_batch_size"),
    ("gradient_accumulation_steps", "--accumulate_grad_batches"),
    ("num_train_epochs", "--epochs"),
    ("num_epochs", "--epochs"),
    ("max_length", "--max_seq_length"),
    ("sequence_len", "--max_seq_length"),
    ("cutoff_len", "--max_seq_length"),
    ("warmup_steps", "--lr_warmup_steps"),
    ("warmup_ratio", "--lr_warmup_fraction"),
    ("lr_scheduler_type", "--lr_schedule"),
    ("lr_scheduler", "--lr_schedule"),
    ("max_grad_norm", "--grad_clip"),
    ("optim", "--optimizer"),
    ("adam_beta1", "--beta1"),
    ("adam_beta2", "--beta2"),
    ("adam_epsilon", "--eps"),
    ("eval_steps", "--eval_interval"),
    ("save_steps", "--save_interval"),
    ("save_total_limit", "--keep_last"),
    ("logging_steps", "--log_interval"),
    ("load_best_model_at_end", "--keep_best"),
    ("resume_from_checkpoint", "--resume"),
    ("gradient_checkpointing", "--recompute"),
    ("bf16", "--precision bf16-true"),
];

/// What to type for an option of another trainer.
pub fn here(name: &str) -> Option<&'static str> {
    let name = name.trim_start_matches('-').replace('-', "_");
    ELSEWHERE.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use clap::CommandFactory;

    #[test]
    fn what_is_said_can_be_typed_and_their_names_cannot() {
        let root = Cli::command();
        let finetune = root.find_subcommand("finetune").unwrap();
        let known = |name: &str| {
            finetune.get_arguments().any(|arg| {
                arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|all| all.contains(&name))
            })
        };
        for (theirs, ours) in ELSEWHERE {
            assert!(!known(theirs), "--{theirs} is an option of its own");
            if let Some(option) = ours.strip_prefix("--") {
                assert!(known(option.split([' ', ',']).next().unwrap()), "{ours}");
            }
        }
        assert_eq!(here("--load-in-4bit"), Some("--quantize nf4"));
        assert_eq!(here("-r"), Some("--lora_rank"));
        assert_eq!(here("--epochs"), None);
    }
}
