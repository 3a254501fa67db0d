//! Options that were given and change nothing, since another one would have to be given too.

use super::{FinetuneOptions, OptimizerKind};
use crate::train::schedule::ScheduleKind;

impl FinetuneOptions {
    /// What such options are and why, for the user to read; files of LitGPT's settings name many at their defaults, which say nothing.
    pub(in crate::train) fn idle(&self) -> Option<String> {
        let usual = FinetuneOptions::default();
        let mut idle: Vec<(&str, &str)> = Vec::new();
        let mut add = |is: bool, option, why| {
            if is {
                idle.push((option, why));
            }
        };
        let sgd = self.optimizer == OptimizerKind::Sgd;
        for (option, given) in [
            ("--beta1", self.beta1 != usual.beta1),
            ("--beta2", self.beta2 != usual.beta2),
            ("--eps", self.eps != usual.eps),
        ] {
            add(sgd && given, option, "of AdamW alone");
        }
        let constant = self.lr_schedule == ScheduleKind::Constant;
        add(constant && self.min_lr > 0.0, "--min_lr", "the learning rate does not fall");
        let patient = self.early_stopping_patience.is_some();
        add(
            !patient && self.early_stopping_min_delta > 0.0,
            "--early_stopping_min_delta",
            "without --early_stopping_patience",
        );
        add(
            self.save_interval.is_some() && self.autosave != usual.autosave && self.autosave.is_some(),
            "--autosave",
            "--save_interval says when to save",
        );
        let looks_once = self.eval_interval.is_none() && !self.initial_validation && !self.keeps_best();
        add(
            looks_once && self.eval_max_iters.is_some(),
            "--eval_max_iters",
            match self.final_validation {
                true => {
                    "the evaluation at the end looks at all rows, and there is no other without --eval_interval"
                }
                false => "nothing is evaluated without --eval_interval",
            },
        );
        add(
            self.eval_prompts.is_some() && self.evaluate_example.is_some(),
            "--evaluate_example",
            "--eval_prompts names what is continued",
        );
        let listed: Vec<String> = idle.into_iter().map(|(option, why)| format!("{option} ({why})")).collect();
        (!listed.is_empty()).then(|| format!("changes nothing here: {}", listed.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_nothing_is_told_and_nothing_else() {
        let told = |change: fn(&mut FinetuneOptions)| {
            let mut options = FinetuneOptions::default();
            change(&mut options);
            options.idle().unwrap_or_default()
        };
        assert_eq!(told(|_| ()), "");
        for change in [
            (|o| o.beta1 = 0.8) as fn(&mut FinetuneOptions),
            |o| (o.min_lr, o.lr_schedule) = (1e-5, ScheduleKind::Cosine),
            |o| (o.early_stopping_min_delta, o.early_stopping_patience) = (0.1, Some(2)),
            |o| (o.keep_last, o.save_interval) = (Some(2), Some(10)),
            // what was saved when a run was stopped
            |o| o.keep_last = Some(2),
            |o| o.autosave = Some(60.0),
            |o| (o.autosave, o.save_interval) = (None, Some(10)),
            |o| (o.eval_max_iters, o.eval_interval) = (Some(10), Some(10)),
            |o| (o.eval_max_iters, o.keep_best) = (Some(10), true),
            |o| o.optimizer = OptimizerKind::Sgd,
        ] {
            assert_eq!(told(change), "");
        }
        for (option, change) in [
            ("--beta1", (|o| (o.optimizer, o.beta1) = (OptimizerKind::Sgd, 0.8)) as fn(&mut FinetuneOptions)),
            ("--eps", |o| (o.optimizer, o.eps) = (OptimizerKind::Sgd, 1e-6)),
            ("--min_lr", |o| (o.min_lr, o.lr_schedule) = (1e-5, ScheduleKind::Constant)),
            ("--early_stopping_min_delta", |o| o.early_stopping_min_delta = 0.1),
            ("--autosave", |o| (o.autosave, o.save_interval) = (Some(60.0), Some(10))),
            ("--eval_max_iters", |o| o.eval_max_iters = Some(10)),
            ("--eval_max_iters", |o| (o.eval_max_iters, o.final_validation) = (Some(10), false)),
        ] {
            let told = told(change);
            assert!(told.starts_with(&format!("changes nothing here: {option} (")), "{option}: {told}");
        }
    }
}
