//! When a run ends, and which evaluation was the best.

use super::duration::duration_text;
use super::options::FinetuneOptions;
use super::resume::Progress;
use serde::{Deserialize, Serialize};

/// Why there are no further steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All are done.
    Steps,
    /// So many evaluations in a row were no better.
    Early,
    /// The time is over.
    Time,
}

/// The evaluations so far; part of a run's saved state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Watch {
    /// Step and validation loss of the lowest.
    pub best: Option<(usize, f64)>,
    /// What the next one must be lower than by `min_delta`, its step, and how many in a row were not.
    reference: Option<f64>,
    #[serde(default)]
    reference_step: Option<usize>,
    pub stale: usize,
}

impl Watch {
    /// Takes note of an evaluation; gives whether it has the lowest loss so far.
    pub fn observe(&mut self, step: usize, loss: f64, min_delta: f64) -> bool {
        // a loss that is not a number is lower than none
        let below = |bound: f64| loss < bound;
        match self.reference.is_none_or(|reference| below(reference - min_delta)) && loss.is_finite() {
            true => (self.reference, self.reference_step, self.stale) = (Some(loss), Some(step), 0),
            false => self.stale += 1,
        }
        let best = loss.is_finite() && self.best.is_none_or(|(_, lowest)| below(lowest));
        if best {
            self.best = Some((step, loss));
        }
        best
    }

    /// What the last evaluations have in common, where patience with them ended.
    fn lack(&self, min_delta: f64) -> String {
        let count = match self.stale {
            1 => "1 evaluation was".to_owned(),
            n => format!("{n} evaluations in a row were"),
        };
        let Some(reference) = self.reference else { return format!("the loss of {count} not finite") };
        // a state of an earlier version does not know the step
        let of = self.reference_step.map_or(String::new(), |step| format!(" of step {step}"));
        match min_delta > 0.0 {
            true => format!("{count} not lower by {min_delta} than that{of}, {reference:.4}"),
            false => format!("{count} no lower than that{of}, {reference:.4}"),
        }
    }
}

impl Progress {
    /// Why the run has no further steps, if it has none.
    pub fn ended(&self, options: &FinetuneOptions, steps: usize) -> Option<End> {
        if self.step >= steps {
            return Some(End::Steps);
        }
        if options.early_stopping_patience.is_some_and(|patience| self.watch.stale >= patience) {
            return Some(End::Early);
        }
        options.max_time.is_some_and(|seconds| self.elapsed_s >= seconds).then_some(End::Time)
    }
}

impl End {
    /// What the user should read of it.
    pub fn note(self, progress: &Progress, options: &FinetuneOptions, steps: usize) -> Option<String> {
        let step = progress.step;
        match self {
            End::Steps => None,
            End::Early => {
                let lack = progress.watch.lack(options.early_stopping_min_delta);
                Some(format!("stopped early after step {step} of {steps}: {lack}"))
            }
            End::Time => Some(format!(
                "--max_time is over after step {step} of {steps} ({}); the same command with --resume and a longer one goes on",
                duration_text(progress.elapsed_s)
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_the_best_and_small_gains_are_none() {
        let mut watch = Watch::default();
        let seen: Vec<(bool, usize)> = [3.0, 2.0, 1.95, 1.98, f64::NAN, 1.5]
            .iter()
            .enumerate()
            .map(|(i, &loss)| (watch.observe(i + 1, loss, 0.1), watch.stale))
            .collect();
        assert_eq!(seen, [(true, 0), (true, 0), (true, 1), (false, 2), (false, 3), (true, 0)]);
        assert_eq!(watch.best, Some((6, 1.5)));
    }

    #[test]
    fn what_is_said_names_the_evaluation_that_the_others_were_held_against() {
        let mut watch = Watch::default();
        watch.observe(10, 1.5, 0.1);
        watch.observe(20, 1.45, 0.1);
        assert_eq!(watch.best, Some((20, 1.45)), "the lowest, though not by enough");
        assert_eq!(watch.lack(0.1), "1 evaluation was not lower by 0.1 than that of step 10, 1.5000");
        watch.observe(30, 1.6, 0.1);
        assert_eq!(
            watch.lack(0.1),
            "2 evaluations in a row were not lower by 0.1 than that of step 10, 1.5000"
        );
        assert_eq!(watch.lack(0.0), "2 evaluations in a row were no lower than that of step 10, 1.5000");
        let mut never = Watch::default();
        never.observe(5, f64::NAN, 0.0);
        assert_eq!(never.lack(0.0), "the loss of 1 evaluation was not finite");
    }

    #[test]
    fn a_first_loss_that_is_no_number_is_not_the_best() {
        let mut watch = Watch::default();
        assert!(!watch.observe(1, f64::NAN, 0.0));
        assert_eq!((watch.best, watch.stale), (None, 1));
        assert!(watch.observe(2, 9.0, 0.0));
    }
}
