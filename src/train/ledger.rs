//! The book of a run: steps that are under way, and what is written down when they are done.

use super::logging::RunLog;
use super::loss_scale::{LossScale, ScaleUpdate};
use super::metrics::{Event, StepRecord};
use super::trainer::PendingStep;
use crate::error::Error;
use serde::Serialize;
use std::time::Instant;

/// An optimiser step on its way, with what its record needs.
pub(super) struct Submitted {
    pub pending: PendingStep,
    pub step: usize,
    pub epoch: f64,
    pub learning_rate: f64,
    pub tokens: usize,
    pub labels: usize,
    /// What the run had seen before it.
    pub before: Seen,
}

/// How much of the data a run has seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub tokens: usize,
    pub micro_batches: u32,
}

/// What a run has done so far.
pub(super) struct Ledger {
    pub metrics: RunLog,
    pub scale: LossScale,
    pub losses: Vec<f64>,
    /// Updates of the parameters, those under way included.
    pub applied: u64,
    /// The last step whose gradients were finite, of those that this part of the run made.
    pub good: Option<usize>,
    /// The user knows of a validation loss that is no number.
    pub told_of_loss: bool,
    pub start: Instant,
    /// When the last step was done, or what came after it.
    pub since: Instant,
    /// Some log lacks what could not be written, and the user knows.
    pub lagging: bool,
}

impl Ledger {
    /// Waits for a step and writes it down.
    ///
    /// # Errors
    /// Gradients that are not finite, which have changed no parameter; what the device reported.
    pub fn settle(&mut self, submitted: Submitted, on_event: &mut dyn FnMut(&Event)) -> Result<(), Error> {
        let Submitted { pending, step, epoch, learning_rate, tokens, labels, before: _ } = submitted;
        let (outcome, done) = pending.timed_outcome()?;
        let finite = outcome.grad_norm.is_finite();
        match finite {
            true => self.good = Some(step),
            false => self.applied -= 1,
        }
        if let ScaleUpdate::Skip { scale } = self.scale.update(finite)? {
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
        self.log(&record, on_event);
        self.losses.push(record.loss);
        on_event(&Event::Step(record));
        Ok(())
    }

    /// Writes a record to the logs. A full disk is no end of a run whose result may still find its room: what is missing follows when
    /// it can be written, and the user is told once.
    pub fn log(&mut self, record: &impl Serialize, on_event: &mut dyn FnMut(&Event)) {
        let written = self.metrics.write(record);
        if let Err(error) = &written
            && !self.lagging
        {
            on_event(&Event::Note(format!(
                "{error} The run goes on; the log gets what it lacks when there is room again"
            )));
        }
        self.lagging = written.is_err();
    }
}
