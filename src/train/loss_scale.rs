//! The factor on the loss that keeps f16 gradients of activations in range.
//!
//! The reverse pass starts from `scale` in place of 1, and the gradients of the parameters (f32) are
//! divided by it before clipping. The scale is a power of two, so that neither rounds. f32 and bf16 have
//! range enough: for them it stays 1 and a gradient that is not finite is an error.

use crate::graph::DType;
use serde::{Deserialize, Serialize};
use thiserror::Error;

const FIRST: f32 = 65536.0;
const LARGEST: f32 = 16777216.0;
/// Good steps before the scale doubles; the figure that torch.amp and Apex use.
const GROWTH_INTERVAL: u32 = 2000;

/// Why training cannot go on.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum LossScaleError {
    #[error(
        "gradients overflow in f16 even at loss scale 1; use --precision bf16-true or 32-true, \
         or a lower --learning_rate"
    )]
    Exhausted,
    #[error(
        "gradients are not finite (NaN or infinite); use a lower --learning_rate, a longer \
         --lr_warmup_steps or --grad_clip, and check the checkpoint for values that are not finite"
    )]
    NotFinite,
}

/// What to do with the gradients of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScaleUpdate {
    /// Apply them.
    Apply,
    /// Apply them; from the next step on the scale is `scale`.
    ApplyAndGrow { scale: f32 },
    /// Throw them away: they overflowed. From the next step on the scale is `scale`.
    Skip { scale: f32 },
}

/// Loss scale and its history; part of a run's saved state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    scale: f32,
    good_steps: u32,
    dynamic: bool,
}

impl LossScale {
    /// The scale that activations of this type need: dynamic for f16, 1 for the others.
    pub fn new(activations: DType) -> Self {
        let dynamic = activations == DType::F16;
        LossScale { scale: if dynamic { FIRST } else { 1.0 }, good_steps: 0, dynamic }
    }

    /// Factor on the loss of the next step.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Takes note of a step: `finite` says whether all its gradients were finite.
    ///
    /// # Errors
    /// Gradients that are not finite where no smaller scale is left to try.
    pub fn update(&mut self, finite: bool) -> Result<ScaleUpdate, LossScaleError> {
        match (self.dynamic, finite) {
            (false, true) => Ok(ScaleUpdate::Apply),
            (false, false) => Err(LossScaleError::NotFinite),
            (true, true) => Ok(self.grow()),
            (true, false) => self.shrink(),
        }
    }

    fn grow(&mut self) -> ScaleUpdate {
        self.good_steps += 1;
        if self.good_steps < GROWTH_INTERVAL || self.scale >= LARGEST {
            self.good_steps = self.good_steps.min(GROWTH_INTERVAL);
            return ScaleUpdate::Apply;
        }
        self.good_steps = 0;
        self.scale *= 2.0;
        ScaleUpdate::ApplyAndGrow { scale: self.scale }
    }

    fn shrink(&mut self) -> Result<ScaleUpdate, LossScaleError> {
        if self.scale <= 1.0 {
            return Err(LossScaleError::Exhausted);
        }
        self.good_steps = 0;
        self.scale = (self.scale / 2.0).max(1.0);
        Ok(ScaleUpdate::Skip { scale: self.scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_skips_and_halves_down_to_one_then_fails() {
        let mut scale = LossScale::new(DType::F16);
        assert_eq!(scale.scale(), 65536.0);
        for power in (0..16).rev() {
            let expected = 2f32.powi(power);
            assert_eq!(scale.update(false), Ok(ScaleUpdate::Skip { scale: expected }));
        }
        assert_eq!(scale.scale(), 1.0);
        assert_eq!(scale.update(true), Ok(ScaleUpdate::Apply));
        assert_eq!(scale.update(false), Err(LossScaleError::Exhausted));
    }

    #[test]
    fn doubles_after_two_thousand_good_steps_in_a_row() {
        let mut scale = LossScale::new(DType::F16);
        for _ in 0..1999 {
            assert_eq!(scale.update(true), Ok(ScaleUpdate::Apply));
        }
        assert_eq!(scale.update(true), Ok(ScaleUpdate::ApplyAndGrow { scale: 131072.0 }));
        for _ in 0..1999 {
            scale.update(true).unwrap();
        }
        scale.update(false).unwrap();
        assert_eq!(scale.update(true), Ok(ScaleUpdate::Apply), "an overflow starts the count again");
        assert_eq!(scale.scale(), 65536.0);
    }

    #[test]
    fn never_grows_beyond_the_cap() {
        let mut scale = LossScale::new(DType::F16);
        for _ in 0..GROWTH_INTERVAL * 20 {
            scale.update(true).unwrap();
        }
        assert_eq!(scale.scale(), LARGEST);
    }

    #[test]
    fn other_types_are_not_scaled_and_report_bad_gradients() {
        for dtype in [DType::F32, DType::BF16] {
            let mut scale = LossScale::new(dtype);
            for _ in 0..3000 {
                assert_eq!(scale.update(true), Ok(ScaleUpdate::Apply));
            }
            assert_eq!(scale.scale(), 1.0);
            assert_eq!(scale.update(false), Err(LossScaleError::NotFinite));
        }
    }

    #[test]
    fn state_survives_saving() {
        let mut scale = LossScale::new(DType::F16);
        scale.update(false).unwrap();
        scale.update(true).unwrap();
        let text = serde_json::to_string(&scale).unwrap();
        assert_eq!(serde_json::from_str::<LossScale>(&text).unwrap(), scale);
    }
}
