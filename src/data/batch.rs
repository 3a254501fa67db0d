//! A micro-batch as one flat token stream, as the graph takes it.
//!
//! Samples lie end to end without padding. A row t of a segment `[start, end)` attends to `start..=t` and
//! predicts `tokens[t + 1]`, so the last row of a segment never has a label: it must not predict the next
//! sample's first token.

use std::borrow::Borrow;

use super::Sample;

/// `T` tokens of one or more samples. The first four fields have one entry per token, the last two one per
/// label.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MicroBatch {
    /// `[T]` token ids.
    pub tokens: Vec<u32>,
    /// `[T]` position within the own sample, from 0.
    pub positions: Vec<u32>,
    /// `[T]` first row of the own sample.
    pub segment_start: Vec<u32>,
    /// `[T]` one past the last row of the own sample.
    pub segment_end: Vec<u32>,
    /// Rows whose next token carries a label, ascending.
    pub label_rows: Vec<u32>,
    /// `targets[i]` is the label of `label_rows[i]`, that is `tokens[label_rows[i] + 1]`.
    pub targets: Vec<u32>,
}

impl MicroBatch {
    /// Lays the samples end to end, in the order given.
    pub fn from_samples(samples: impl IntoIterator<Item = impl Borrow<Sample>>) -> Self {
        let mut batch = Self::default();
        for sample in samples {
            let sample = sample.borrow();
            let start = batch.tokens.len() as u32;
            let length = sample.tokens.len() as u32;
            batch.tokens.extend_from_slice(&sample.tokens);
            batch.positions.extend(0..length);
            let rows = batch.tokens.len();
            batch.segment_start.resize(rows, start);
            batch.segment_end.resize(rows, start + length);
            for span in sample.spans() {
                batch.label_rows.extend((span.start..span.end).map(|i| start + i - 1));
                batch.targets.extend(&sample.tokens[span.start as usize..span.end as usize]);
            }
        }
        batch
    }

    /// `T`, the number of rows of the stream.
    pub fn tokens_len(&self) -> usize {
        self.tokens.len()
    }

    /// How many rows carry a label: the weight of this micro-batch in an accumulated step.
    pub fn label_count(&self) -> usize {
        self.label_rows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tokens: &[u32], masked: usize) -> Sample {
        Sample::new(tokens.to_vec(), masked)
    }

    #[test]
    fn samples_lie_end_to_end_and_labels_stay_within_their_sample() {
        let samples = [
            sample(&[10, 11, 12, 13], 2),
            sample(&[20, 21], 0),
            sample(&[30, 31, 32], 3),
            Sample::with_spans(vec![40, 41, 42, 43], [1..2, 3..4]),
        ];
        let batch = MicroBatch::from_samples(&samples);
        assert_eq!(batch.tokens, [10, 11, 12, 13, 20, 21, 30, 31, 32, 40, 41, 42, 43]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1, 2, 3]);
        assert_eq!(batch.segment_start, [0, 0, 0, 0, 4, 4, 6, 6, 6, 9, 9, 9, 9]);
        assert_eq!(batch.segment_end, [4, 4, 4, 4, 6, 6, 9, 9, 9, 13, 13, 13, 13]);
        assert_eq!(batch.label_rows, [1, 2, 4, 9, 11]);
        assert_eq!(batch.targets, [12, 13, 21, 41, 43]);
        assert_eq!(batch.tokens_len(), 13);
        assert_eq!(batch.label_count(), samples.iter().map(Sample::label_tokens).sum::<usize>());
    }

    #[test]
    fn degenerate_samples_add_no_labels() {
        let batch = MicroBatch::from_samples(&[sample(&[], 0), sample(&[5], 0), sample(&[6, 7], 9)]);
        assert_eq!(batch.tokens, [5, 6, 7]);
        assert_eq!(batch.segment_start, [0, 1, 1]);
        assert_eq!(batch.label_count(), 0);
        assert_eq!(MicroBatch::from_samples([] as [Sample; 0]), MicroBatch::default());
    }
}
