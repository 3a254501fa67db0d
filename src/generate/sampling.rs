//! The next token from a row of logits: temperature, then top-k, then top-p, then one draw.
//!
//! Random numbers are a function of (seed, number of the draw), so the same seed and logits give the same
//! tokens wherever `exp`, which is the C library's, is the same to the bit. Probabilities are summed in f64 in a fixed
//! order for the same reason.

use crate::train::options::{Checks, OptionsError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How to draw a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// Divides the logits; 0 takes the most probable token always.
    pub temperature: f32,
    /// Keep the k most probable tokens; `None` keeps all.
    pub top_k: Option<usize>,
    /// Keep the fewest most probable tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    pub seed: u64,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        SamplingOptions { temperature: 0.8, top_k: Some(50), top_p: 1.0, seed: 1337 }
    }
}

impl SamplingOptions {
    pub(crate) fn check(&self, checks: &mut Checks) {
        let (temperature, top_p) = (self.temperature, self.top_p);
        checks.require(
            temperature.is_finite() && temperature >= 0.0,
            "--temperature",
            temperature,
            "must be 0 (greedy) or a number above 0",
        );
        checks.optional_count("--top_k", self.top_k, "to sample among all tokens");
        checks.require(top_p > 0.0 && top_p <= 1.0, "--top_p", top_p, "must be above 0 and at most 1");
    }
}

/// Logits that are no distribution.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum SamplingError {
    #[error("there are no logits to sample from")]
    Empty,
    #[error("the logit of token {token} is {value}; the model's weights or the device's results are broken")]
    BadLogit { token: usize, value: f32 },
    #[error("all logits are minus infinity; no token is left to sample")]
    AllMasked,
}

/// Draws tokens, one per call.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    draws: u64,
}

impl Sampler {
    /// # Errors
    /// Every option that is out of its range.
    pub fn new(options: SamplingOptions) -> Result<Self, OptionsError> {
        let mut checks = Checks::default();
        options.check(&mut checks);
        checks.finish()?;
        Ok(Sampler { options, draws: 0 })
    }

    /// The next token for `logits` `[vocab]`. At temperature 0 the largest logit, the lowest index among
    /// equal ones. Minus infinity masks a token.
    ///
    /// # Errors
    /// No logits, all masked, or one that is NaN or plus infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        let best = argmax(logits)?;
        if self.options.temperature == 0.0 {
            return Ok(best as u32);
        }
        let candidates = self.candidates(logits, logits[best]);
        let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
        let mut left = self.uniform() * total;
        for candidate in &candidates {
            left -= candidate.weight;
            if left < 0.0 {
                return Ok(candidate.token);
            }
        }
        // Rounding can leave a rest behind the last candidate.
        Ok(candidates.iter().rev().find(|candidate| candidate.weight > 0.0).map_or(best as u32, |c| c.token))
    }

    /// The tokens that top-k and top-p leave, with their unnormalised probabilities.
    fn candidates(&self, logits: &[f32], largest: f32) -> Vec<Candidate> {
        let temperature = f64::from(self.options.temperature);
        let mut all: Vec<Candidate> = logits
            .iter()
            .enumerate()
            .map(|(token, &logit)| Candidate {
                token: token as u32,
                weight: ((f64::from(logit) - f64::from(largest)) / temperature).exp(),
            })
            .collect();
        if let Some(k) = self.options.top_k.filter(|&k| k < all.len()) {
            all.select_nth_unstable_by(k - 1, Candidate::more_probable);
            all.truncate(k);
        }
        if self.options.top_p < 1.0 {
            all.sort_unstable_by(Candidate::more_probable);
            let wanted = f64::from(self.options.top_p) * all.iter().map(|c| c.weight).sum::<f64>();
            let mut mass = 0.0;
            let reached = all.iter().position(|candidate| {
                mass += candidate.weight;
                mass >= wanted
            });
            all.truncate(reached.map_or(all.len(), |last| last + 1));
        }
        // Selection leaves no particular order, and the draw depends on it.
        all.sort_unstable_by_key(|candidate| candidate.token);
        all
    }

    /// Uniform in [0, 1).
    fn uniform(&mut self) -> f64 {
        let bits = mix(mix(self.options.seed).wrapping_add(self.draws.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        self.draws += 1;
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    weight: f64,
}

impl Candidate {
    /// Falling probability; the lower index first among equals.
    fn more_probable(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
        b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token))
    }
}

/// Index of the largest logit, the first among equals.
pub(super) fn argmax(logits: &[f32]) -> Result<usize, SamplingError> {
    let (mut best, mut largest) = (None, f32::NEG_INFINITY);
    for (token, &value) in logits.iter().enumerate() {
        if value.is_nan() || value == f32::INFINITY {
            return Err(SamplingError::BadLogit { token, value });
        }
        if value > largest {
            (best, largest) = (Some(token), value);
        }
    }
    best.ok_or(if logits.is_empty() { SamplingError::Empty } else { SamplingError::AllMasked })
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: Option<usize>, top_p: f32, seed: u64) -> Sampler {
        Sampler::new(SamplingOptions { temperature, top_k, top_p, seed }).unwrap()
    }

    fn counts(mut sampler: Sampler, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn temperature_zero_is_argmax_and_the_lowest_index_wins_a_tie() {
        let mut greedy = sampler(0.0, Some(1), 0.1, 7);
        assert_eq!(greedy.sample(&[0.0, 3.0, 3.0, -1.0]), Ok(1));
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -5.0]), Ok(1));
    }

    #[test]
    fn frequencies_follow_the_softmax_at_the_temperature() {
        let logits = [1f32.ln(), 2f32.ln(), 5f32.ln()];
        let draws = 40_000;
        // Temperature 1 gives 1:2:5, temperature 0.5 gives the squares 1:4:25.
        for (temperature, weights) in [(1.0, [1.0, 2.0, 5.0]), (0.5, [1.0, 4.0, 25.0])] {
            let total: f64 = weights.iter().sum();
            for (count, weight) in
                counts(sampler(temperature, None, 1.0, 3), &logits, draws).iter().zip(weights)
            {
                let share = *count as f64 / draws as f64;
                // Four standard deviations of a binomial share.
                let expected: f64 = weight / total;
                let bound = 4.0 * (expected * (1.0 - expected) / draws as f64).sqrt();
                assert!((share - expected).abs() < bound, "{share} is far from {expected}");
            }
        }
    }

    #[test]
    fn top_k_keeps_k_tokens_and_the_lowest_indices_among_equals() {
        assert_eq!(counts(sampler(1.0, Some(1), 1.0, 1), &[0.0, 2.0, 1.0], 100), [0, 100, 0]);
        let kept = counts(sampler(1.0, Some(2), 1.0, 1), &[1.0, 1.0, 1.0, 0.0], 500);
        assert!(kept[0] > 0 && kept[1] > 0 && kept[2] == 0 && kept[3] == 0, "{kept:?}");
        let all = counts(sampler(1.0, Some(99), 1.0, 1), &[0.0, 0.0, 0.0], 500);
        assert!(all.iter().all(|&count| count > 0), "{all:?}");
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_the_mass() {
        // Probabilities 0.5, 0.25, 0.125, 0.125: exact in binary, so the bounds below are exact too.
        let logits = [0.0, 1.0, 2.0, 0.0].map(|power: f32| power * 2f32.ln());
        let alive = |top_p| {
            let counts = counts(sampler(1.0, None, top_p, 5), &logits, 2000);
            counts.iter().map(|&count| count > 0).collect::<Vec<_>>()
        };
        assert_eq!(alive(0.01), [false, false, true, false]);
        assert_eq!(alive(0.49), [false, false, true, false]);
        assert_eq!(alive(0.6), [false, true, true, false]);
        assert_eq!(alive(0.76), [true, true, true, false]);
        assert_eq!(alive(0.9), [true, true, true, true]);
        assert_eq!(alive(1.0), [true, true, true, true]);
    }

    #[test]
    fn top_p_counts_the_mass_that_top_k_left() {
        // Of the two kept tokens each has one half, so one of them reaches 0.5.
        let kept = counts(sampler(1.0, Some(2), 0.5, 5), &[0.0, 0.0, 0.0, 0.0], 500);
        assert_eq!(kept, [500, 0, 0, 0]);
    }

    #[test]
    fn the_seed_decides() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        let draw = |seed| {
            let mut sampler = sampler(1.0, Some(50), 0.95, seed);
            (0..50).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(11), draw(11));
        assert_ne!(draw(11), draw(12));
    }

    #[test]
    fn masked_tokens_are_never_drawn() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0];
        let counts = counts(sampler(2.0, None, 1.0, 1), &logits, 1000);
        assert!(counts[0] == 0 && counts[2] == 0 && counts[1] > 300 && counts[3] > 300, "{counts:?}");
    }

    #[test]
    fn broken_logits_are_errors() {
        let mut sampler = sampler(0.0, None, 1.0, 1);
        assert_eq!(sampler.sample(&[]), Err(SamplingError::Empty));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3]), Err(SamplingError::AllMasked));
        assert!(matches!(sampler.sample(&[0.0, f32::NAN]), Err(SamplingError::BadLogit { token: 1, .. })));
        assert!(matches!(sampler.sample(&[f32::INFINITY]), Err(SamplingError::BadLogit { token: 0, .. })));
    }

    #[test]
    fn options_out_of_range_are_errors() {
        let rejected = |temperature, top_k, top_p| {
            let error = Sampler::new(SamplingOptions { temperature, top_k, top_p, seed: 0 }).unwrap_err();
            error.problems.iter().map(|problem| problem.option).collect::<Vec<_>>()
        };
        for temperature in [-1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(rejected(temperature, None, 1.0), ["--temperature"]);
        }
        assert_eq!(rejected(1.0, Some(0), 1.0), ["--top_k"]);
        for top_p in [0.0, 1.5, f32::NAN] {
            assert_eq!(rejected(1.0, None, top_p), ["--top_p"]);
        }
        assert_eq!(rejected(-1.0, Some(0), 0.0), ["--temperature", "--top_k", "--top_p"]);
    }
}
