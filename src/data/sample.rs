//! A sample: token ids, and which of them are labels.

use std::ops::Range;

/// The label of a position without one, as PyTorch's cross-entropy has it.
pub const IGNORE_INDEX: i64 = -100;

/// Tokens `start..end` of a sample, all of them labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// One tokenised row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    pub tokens: Vec<u32>,
    /// What is learned: ascending, disjoint, never empty, and never the first token, which no row predicts.
    pub(super) spans: Vec<Span>,
}

impl Sample {
    /// A sample whose tokens from `masked` on are labels.
    pub fn new(tokens: Vec<u32>, masked: usize) -> Self {
        let all = masked..tokens.len();
        Self::with_spans(tokens, [all])
    }

    /// A sample with labels in these ranges, ascending; what lies outside of the tokens, or over an earlier range, is
    /// left out, and so is the first token.
    pub fn with_spans(tokens: Vec<u32>, ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        let (mut spans, mut from) = (Vec::<Span>::new(), 1);
        for range in ranges {
            let (start, end) = (range.start.max(from), range.end.min(tokens.len()));
            if start >= end {
                continue;
            }
            from = end;
            match spans.last_mut() {
                Some(last) if last.end as usize == start => last.end = end as u32,
                _ => spans.push(Span { start: start as u32, end: end as u32 }),
            }
        }
        Self { tokens, spans }
    }

    /// How many tokens of this sample are labels.
    pub fn label_tokens(&self) -> usize {
        self.spans.iter().map(|span| (span.end - span.start) as usize).sum()
    }

    /// The ranges of tokens that are labels, ascending.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// `[tokens.len()]` labels, not shifted: `tokens[i]`, or [`IGNORE_INDEX`] where there is no label.
    pub fn labels(&self) -> Vec<i64> {
        let mut labels = vec![IGNORE_INDEX; self.tokens.len()];
        for span in &self.spans {
            let range = span.start as usize..span.end as usize;
            let pairs = labels[range.clone()].iter_mut().zip(&self.tokens[range]);
            pairs.for_each(|(label, &token)| *label = i64::from(token));
        }
        labels
    }

    /// Cuts the end off, so that at most `length` tokens are left.
    pub fn truncate(&mut self, length: usize) {
        if self.tokens.len() <= length {
            return;
        }
        self.tokens.truncate(length);
        self.spans.retain_mut(|span| {
            span.end = span.end.min(length as u32);
            span.start < span.end
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_begin_after_the_mask_and_never_at_the_first_token() {
        for (masked, labels) in [
            (0, vec![-100, 8, 9]),
            (1, vec![-100, 8, 9]),
            (2, vec![-100, -100, 9]),
            (3, vec![-100; 3]),
            (9, vec![-100; 3]),
        ] {
            let sample = Sample::new(vec![7, 8, 9], masked);
            assert_eq!(sample.labels(), labels);
            assert_eq!(sample.label_tokens(), labels.iter().filter(|&&label| label != IGNORE_INDEX).count());
        }
        let empty = Sample::new(vec![], 0);
        assert_eq!((empty.label_tokens(), empty.labels().len()), (0, 0));
    }

    #[test]
    fn spans_are_put_in_order_and_cut_with_the_tokens() {
        let tokens = || (10..20).collect::<Vec<u32>>();
        let mut sample = Sample::with_spans(tokens(), [0..2, 2..3, 1..4, 6..6, 7..30]);
        assert_eq!(sample.spans, [Span { start: 1, end: 4 }, Span { start: 7, end: 10 }]);
        assert_eq!(sample.labels(), [-100, 11, 12, 13, -100, -100, -100, 17, 18, 19]);
        sample.truncate(20);
        assert_eq!(sample.tokens.len(), 10);
        sample.truncate(8);
        assert_eq!(sample.labels(), [-100, 11, 12, 13, -100, -100, -100, 17]);
        sample.truncate(7);
        assert_eq!(sample.spans, [Span { start: 1, end: 4 }]);
        sample.truncate(1);
        assert_eq!((sample.label_tokens(), sample.tokens.len()), (0, 1));
    }
}
