//! What a run reports: records of steps and evaluations, and the events of the progress callback.
//!
//! The field names of the records are the keys of `metrics.jsonl`, which other programs read: renaming a field
//! changes the format.

use super::tuning::TuneProgress;
use crate::plan::MemoryReport;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::path::PathBuf;

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Optimiser steps done, this one included: the first step is 1.
    pub step: usize,
    /// Passes over the training data so far, with fraction.
    pub epoch: f64,
    /// Mean over the label tokens of the global batch, in nats.
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Tokens of this step, prompts included.
    pub tokens: usize,
    /// Tokens of this step that have a label.
    pub label_tokens: usize,
    pub tokens_per_s: f64,
    /// Seconds since the run started.
    pub elapsed_s: f64,
}

/// One evaluation on the validation rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimiser steps done before it.
    pub step: usize,
    /// Mean over all label tokens, in nats.
    #[serde(deserialize_with = "number_or_nan")]
    pub val_loss: f64,
    /// `exp(val_loss)`.
    #[serde(deserialize_with = "number_or_nan")]
    pub val_ppl: f64,
}

/// JSON has no number that is not finite: it is written as null.
fn number_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl EvalRecord {
    pub fn new(step: usize, val_loss: f64) -> Self {
        EvalRecord { step, val_loss, val_ppl: val_loss.exp() }
    }
}

/// What the network wrote at an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleRecord {
    /// Optimiser steps done before it.
    pub step: usize,
    pub prompt: String,
    /// Its continuation, with the most probable token each time.
    pub text: String,
}

impl fmt::Display for SampleRecord {
    /// One line: the end of a long prompt, which is what is answered, and the text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 60;
        let prompt = self.prompt.replace('\n', " ");
        let cut = prompt.chars().count().saturating_sub(MOST);
        let end: String = prompt.chars().skip(cut).collect();
        let dots = if cut > 0 { "…" } else { "" };
        write!(f, "step {}: {dots}{end} → {}", self.step, self.text.trim())
    }
}

/// How far a validation has come.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ValidationProgress {
    /// Optimiser steps done before it.
    pub step: usize,
    /// Validation samples whose loss is known, and those of the whole validation.
    pub done: usize,
    pub all: usize,
    /// Seconds since the validation began.
    pub elapsed_s: f64,
}

/// What is known when the first step is about to start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunSummary {
    /// Optimiser steps that the run will make.
    pub steps: usize,
    /// Those of all epochs, where `max_steps` ends the run earlier.
    pub all_steps: usize,
    pub epochs: usize,
    pub train_samples: usize,
    pub val_samples: usize,
    /// Elements that are trained, and elements of the whole model without the adapter.
    pub trainable_parameters: usize,
    pub base_parameters: usize,
    /// Name of the device as its driver gives it.
    pub device: String,
    /// The device is a CPU that imitates a GPU.
    pub software_device: bool,
    /// Bytes that the plan allocates on the device.
    pub device_bytes: u64,
    /// The same by kind.
    pub memory: MemoryReport,
}

/// What the progress callback receives, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A class of kernels was measured, before the run starts.
    Tuned(TuneProgress),
    Started(RunSummary),
    Step(StepRecord),
    /// A micro-batch of a validation is done.
    Validating(ValidationProgress),
    Evaluation(EvalRecord),
    /// A prompt was continued.
    Sample(SampleRecord),
    /// An adapter (or a full model) lies complete at `path`.
    Saved {
        step: usize,
        path: PathBuf,
    },
    /// The gradients of `step` overflowed and were thrown away; `scale` is the loss scale from now on.
    Overflow {
        step: usize,
        scale: f32,
    },
    /// Something that the user should read.
    Note(String),
    Finished {
        steps: usize,
        tokens: usize,
        elapsed_s: f64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_that_are_not_finite_are_read_again() {
        for loss in [f64::NAN, f64::INFINITY, 1e4] {
            let text = serde_json::to_string(&EvalRecord::new(3, loss)).unwrap();
            let read: EvalRecord = serde_json::from_str(&text).unwrap();
            assert!(!read.val_ppl.is_finite() && read.step == 3, "{text}");
        }
    }
}
