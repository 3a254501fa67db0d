//! The book of a run: steps that are under way, and what is written down when they are done.

use super::logging::RunLog;
use super::loss_scale::{LossScale, ScaleUpdate};
use super::metrics::{Event, StepRecord};
use super::trainer::PendingStep;
use crate::error::Error;
use std::time::Instant;

/// An optimiser step on its way, with what its record needs.
pub(super) struct Submitted {
    pub pending: PendingStep,
    pub step: usize,
    pub epoch: f64,
    pub learning_rate: f64,
    pub tokens: usize,
    pub labels: usize,
}

/// What a run has done so far.
pub(super) struct Ledger {
    pub metrics: RunLog,
    pub scale: LossScale,
    pub losses: Vec<f64>,
    /// Updates of the parameters, those under way included.
    pub applied: u64,
    pub start: Instant,
    /// When the last step was done, or what came after it.
    pub since: Instant,
}

impl Ledger {
    /// Waits for a step and writes it down.
    pub fn settle(&mut self, submitted: Submitted, on_event: &mut dyn FnMut(&Event)) -> Result<(), Error> {
        let Submitted { pending, step, epoch, learning_rate, tokens, labels } = submitted;
        let (outcome, done) = pending.timed_outcome()?;
        if let ScaleUpdate::Skip { scale } = self.scale.update(outcome.grad_norm.is_finite())? {
            self.applied -= 1;
            on_event(&Event::Overflow { step, scale });
        }
        let record = StepRecord {
            step,
            epoch,
            loss: outcome.loss_sum / labels as f64,
            grad_norm: outcome.grad_norm,
            learning_rate,
            tokens,
            label_tokens: labels,
            tokens_per_s: tokens as f64 / (done - self.since).as_secs_f64(),
            elapsed_s: (done - self.start).as_secs_f64(),
        };
        self.since = done;
        self.metrics.write(&record)?;
        self.losses.push(record.loss);
        on_event(&Event::Step(record));
        Ok(())
    }
}
