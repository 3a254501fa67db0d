//! The learning rate as a function of the optimiser step.
//!
//! Steps count from 0 here: step `k` of a run of `N` steps has the rate `rate(k)`, and the warm-up gives
//! step 0 a rate above zero, so that the first step already learns.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Any learning-rate schedule: from the step (0-based) to the rate.
pub type Schedule = Box<dyn Fn(usize) -> f64 + Send>;

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine from the peak to the minimum.
    #[default]
    Cosine,
    /// A straight line from the peak to the minimum.
    Linear,
    /// The peak until the end.
    Constant,
}

/// Linear warm-up, then one of the [`ScheduleKind`]s.
#[derive(Clone, Debug, PartialEq)]
pub struct WarmupSchedule {
    /// Rate at the end of the warm-up.
    pub peak: f64,
    /// Rate that cosine and linear fall to.
    pub min: f64,
    /// Steps of warm-up; at most `steps`.
    pub warmup: usize,
    /// Optimiser steps of the whole run.
    pub steps: usize,
    pub kind: ScheduleKind,
}

impl WarmupSchedule {
    /// A schedule over `steps` steps; a warm-up longer than the run is cut to the run.
    pub fn new(kind: ScheduleKind, peak: f64, min: f64, warmup: usize, steps: usize) -> Self {
        WarmupSchedule { peak, min, warmup: warmup.min(steps), steps, kind }
    }

    /// The rate of `step` (0-based): `peak * (step + 1) / warmup` during the warm-up, then with
    /// `p = (step - warmup) / (steps - warmup)`
    /// - cosine: `min + (peak - min) * (1 + cos(pi * p)) / 2`,
    /// - linear: `min + (peak - min) * (1 - p)`,
    /// - constant: `peak`.
    ///
    /// Steps beyond the run have the rate of `p = 1`.
    pub fn rate(&self, step: usize) -> f64 {
        let warmup = self.warmup.min(self.steps);
        if step < warmup {
            return self.peak * (step + 1) as f64 / warmup as f64;
        }
        let progress = match self.steps - warmup {
            0 => 1.0,
            falling => ((step - warmup) as f64 / falling as f64).min(1.0),
        };
        let share = match self.kind {
            ScheduleKind::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Constant => return self.peak,
        };
        self.min + (self.peak - self.min) * share
    }
}

impl From<WarmupSchedule> for Schedule {
    fn from(schedule: WarmupSchedule) -> Self {
        Box::new(move |step| schedule.rate(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn warm_up_starts_above_zero_and_ends_at_the_peak() {
        let schedule = WarmupSchedule::new(ScheduleKind::Cosine, 1.0, 0.0, 4, 20);
        for (step, rate) in [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0)] {
            close(schedule.rate(step), rate);
        }
    }

    #[test]
    fn each_kind_follows_its_formula() {
        let at = |kind, step| WarmupSchedule::new(kind, 1e-3, 1e-4, 5, 25).rate(step);
        close(at(ScheduleKind::Cosine, 15), 1e-4 + 9e-4 * 0.5);
        close(at(ScheduleKind::Cosine, 10), 1e-4 + 9e-4 * 0.5 * (1.0 + (PI / 4.0).cos()));
        close(at(ScheduleKind::Linear, 10), 1e-4 + 9e-4 * 0.75);
        close(at(ScheduleKind::Linear, 24), 1e-4 + 9e-4 * 0.05);
        close(at(ScheduleKind::Constant, 24), 1e-3);
        close(at(ScheduleKind::Cosine, 25), 1e-4);
        close(at(ScheduleKind::Linear, 9999), 1e-4);
    }

    #[test]
    fn warm_up_is_never_longer_than_the_run() {
        let schedule = WarmupSchedule::new(ScheduleKind::Cosine, 1.0, 0.0, 100, 4);
        assert_eq!(schedule.warmup, 4);
        close(schedule.rate(0), 0.25);
        close(schedule.rate(3), 1.0);
        let by_hand = WarmupSchedule { warmup: 100, ..schedule };
        close(by_hand.rate(3), 1.0);
    }

    #[test]
    fn runs_of_no_or_one_step_have_finite_rates() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant] {
            for (warmup, steps) in [(0, 0), (0, 1), (1, 1), (9, 0)] {
                let rate = WarmupSchedule::new(kind, 1.0, 0.5, warmup, steps).rate(0);
                assert!((0.5..=1.0).contains(&rate), "{kind:?} {warmup} {steps}: {rate}");
            }
        }
        close(WarmupSchedule::new(ScheduleKind::Cosine, 1.0, 0.0, 0, 1).rate(0), 1.0);
    }

    #[test]
    fn a_function_is_a_schedule_too() {
        let own: Schedule = Box::new(|step| 1.0 / (step + 1) as f64);
        close(own(3), 0.25);
        let ready: Schedule = WarmupSchedule::new(ScheduleKind::Constant, 2.0, 0.0, 2, 10).into();
        close(ready(0), 1.0);
    }
}
