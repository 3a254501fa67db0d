//! How probable a model finds the tokens of a text.

use super::generator::{GenerateError, Generator, write};
use super::sampling::{SamplingError, argmax};
use crate::graph::layout::unpack;
use crate::graph::{DType, Shape, TensorType};
use crate::plan::{Layout, Program, Slots};

/// What a model expected in one place of a text, and what stands there. Probabilities are those of the logits as they are, whatever
/// temperature and selection a token was drawn with.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// What stands there.
    pub token: u32,
    /// The natural logarithm of its probability after all tokens before it; `None` for the first of a text.
    pub log_probability: Option<f32>,
    /// The most probable tokens in this place, falling, with the same of theirs.
    pub top: Vec<(u32, f32)>,
}

impl TokenScore {
    /// Of a token under logits `[vocab]` that are a distribution.
    pub(super) fn of(token: u32, logits: &[f32], top: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        let log_sum = f64::from(largest) + sum.ln();
        let log_probability = |token: usize| (f64::from(logits[token]) - log_sum) as f32;
        let top = most(logits, top).into_iter().map(|token| (token as u32, log_probability(token))).collect();
        TokenScore { token, log_probability: Some(log_probability(token as usize)), top }
    }

    /// With so many of the most probable tokens at most.
    fn with_top(&self, top: usize) -> Self {
        let top = &self.top[..top.min(self.top.len())];
        TokenScore { top: top.to_vec(), ..*self }
    }
}

/// The indices of the largest values, falling, the lower index first among equals.
fn most(values: &[f32], count: usize) -> Vec<usize> {
    let mut most: Vec<usize> = Vec::with_capacity(count + 1);
    if count == 0 {
        return most;
    }
    for (i, &value) in values.iter().enumerate() {
        if most.len() == count && value <= values[most[count - 1]] {
            continue;
        }
        most.insert(most.partition_point(|&other| values[other] >= value), i);
        most.truncate(count);
    }
    most
}

/// A generation that gives the logits of all its rows.
pub(super) struct Scorer {
    rows: usize,
    program: Program,
    /// Those of the last text, whose beginning the next one may share.
    scores: Vec<TokenScore>,
    top: usize,
}

impl Scorer {
    fn new(generator: &Generator) -> Result<Self, GenerateError> {
        let (gpu, rows) = (&generator.gpu, generator.middle());
        let graph = generator.network.generation(rows, generator.cache.tokens, rows)?;
        let layout = Layout::new(&graph, &gpu.profile());
        layout.check(&graph, &gpu.profile())?;
        let slots = Slots::allocate(gpu, &layout)?;
        // the generator's, but for the rows whose logits are wanted: all, in every run
        let mut bindings = generator.bindings.clone();
        let all: Vec<u32> = (0..rows as u32).collect();
        for name in ["rows", "rows_inverse"] {
            let bytes = TensorType::new(Shape::vector(rows), DType::U32).bytes();
            bindings.bind(name, gpu.allocate(name, bytes)?.whole());
            write(&bindings, name, &all)?;
        }
        let program = Program::new(gpu, &graph, &layout, &slots, &bindings)?;
        Ok(Scorer { rows, program, scores: Vec::new(), top: 0 })
    }

    pub(super) fn parameter_bytes(&self) -> u64 {
        self.program.recording().parameter_bytes()
    }

    pub(super) fn slot_bytes(&self) -> u64 {
        self.program.slot_bytes()
    }

    /// What is known of `tokens` already.
    fn known(&self, tokens: &[u32], top: usize) -> Vec<TokenScore> {
        if top > self.top {
            return Vec::new();
        }
        let shared = self.scores.iter().zip(tokens).take_while(|(score, token)| score.token == **token);
        shared.map(|(score, _)| score.with_top(top)).collect()
    }
}

impl Generator {
    /// Scores every token of a text, with the `top` most probable ones in its place. What it shares with the text that was scored
    /// before does not run again where the cache holds it; gives the number of these tokens as well.
    ///
    /// # Errors
    /// As [`Generator::logits`]; logits that are no distribution.
    pub fn score(&mut self, tokens: &[u32], top: usize) -> Result<(Vec<TokenScore>, usize), GenerateError> {
        let mut scorer = match self.scorer.take() {
            Some(scorer) => scorer,
            None => Scorer::new(self)?,
        };
        let scores = self.score_with(&mut scorer, tokens, top);
        self.scorer = Some(scorer);
        scores
    }

    fn score_with(
        &mut self,
        scorer: &mut Scorer,
        tokens: &[u32],
        top: usize,
    ) -> Result<(Vec<TokenScore>, usize), GenerateError> {
        let mut scores = scorer.known(tokens, top);
        if scores.len() == tokens.len() && !tokens.is_empty() {
            return Ok((scores, tokens.len()));
        }
        // what is expected in a place comes from the token before it
        let first = scores.len().saturating_sub(1);
        self.check(0, tokens, 0)?;
        self.cut(self.shared(tokens).min(first));
        let reused = self.cached.len();
        if scores.is_empty() {
            scores.push(TokenScore { token: tokens[0], log_probability: None, top: Vec::new() });
        }
        while self.cached.len() < tokens.len() {
            let from = self.cached.len();
            let piece = &tokens[from..tokens.len().min(from + scorer.rows)];
            let logits = self.logits_of_all(scorer, piece)?;
            let vocabulary = self.network.config.vocab_size;
            let rows =
                logits.chunks_exact(vocabulary).zip(&tokens[from + 1..]).skip(first.saturating_sub(from));
            let rows: Vec<(&[f32], u32)> = rows.map(|(row, &token)| (row, token)).collect();
            // as in `generate_further`, nothing is to begin with what went wrong
            scores.extend(score_rows(&rows, top).inspect_err(|_| self.reset())?);
            if self.cached.len() == tokens.len() {
                let last = logits.chunks_exact(vocabulary).next_back();
                self.known = last.map(|row| (tokens.len(), row.to_vec()));
            }
        }
        (scorer.scores, scorer.top) = (scores.clone(), top);
        Ok((scores, reused))
    }

    /// Appends tokens that fit one run; the logits after each of them.
    fn logits_of_all(&mut self, scorer: &Scorer, tokens: &[u32]) -> Result<Vec<f32>, GenerateError> {
        self.place(tokens, scorer.rows)?;
        self.gpu.submit(&[], &[scorer.program.recording()])?;
        self.cached.extend_from_slice(tokens);
        let ty = TensorType::new(Shape::matrix(tokens.len(), self.network.config.vocab_size), DType::F32);
        let bytes = self.gpu.read(&[scorer.program.output("logits")?.part(0, ty.bytes())])?;
        Ok(unpack(ty, &bytes[0]))
    }
}

/// Scores of tokens, each under its logits, on all cores: a vocabulary has up to 250,000 logits to sum.
fn score_rows(rows: &[(&[f32], u32)], top: usize) -> Result<Vec<TokenScore>, GenerateError> {
    let score = |(logits, token): &(&[f32], u32)| argmax(logits).map(|_| TokenScore::of(*token, logits, top));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(workers).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = rows
            .chunks(share)
            .map(|part| {
                scope.spawn(move || part.iter().map(score).collect::<Result<Vec<_>, SamplingError>>())
            })
            .collect();
        let mut scores = Vec::with_capacity(rows.len());
        for part in parts {
            scores.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(scores)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_log_softmax_with_the_most_probable_tokens_in_order() {
        // probabilities 1/2, 1/8, 1/4, 1/8
        let logits = [3.0, 1.0, 2.0, 1.0].map(|power: f32| power * 2f32.ln());
        let score = TokenScore::of(3, &logits, 3);
        let close = |value: f32, probability: f32| (value - probability.ln()).abs() < 1e-6;
        assert!(close(score.log_probability.unwrap(), 0.125), "{score:?}");
        let tokens: Vec<u32> = score.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, [0, 2, 1]);
        assert!(close(score.top[0].1, 0.5) && close(score.top[1].1, 0.25) && close(score.top[2].1, 0.125));
        // far beyond what exp can take, and a token that is masked
        let far = TokenScore::of(0, &[1e4, 1e4, f32::NEG_INFINITY], 9);
        assert!(close(far.log_probability.unwrap(), 0.5), "{far:?}");
        assert_eq!(far.top[2], (2, f32::NEG_INFINITY));
        assert_eq!(TokenScore::of(1, &[0.0, 0.0], 0).top, []);
    }

    #[test]
    fn rows_are_scored_in_their_order_and_one_that_is_no_distribution_is_an_error() {
        let row = [0.0, 1.0, 2.0];
        let rows: Vec<(&[f32], u32)> = (0..37).map(|i| (&row[..], i % 3)).collect();
        let scores = score_rows(&rows, 1).unwrap();
        assert!(scores.iter().zip(&rows).all(|(score, (_, token))| score.token == *token));
        assert_eq!(scores.len(), 37);
        let broken = [0.0, f32::NAN, 2.0];
        assert!(score_rows(&[(&row[..], 0), (&broken[..], 0)], 1).is_err());
        assert_eq!(score_rows(&[], 1).unwrap(), []);
    }
}
