//! A record as token ids with its prompt masked.
//!
//! Prompt and answer are tokenised together, because a tokenizer may merge across the border and the model
//! sees one text when it generates. As many labels are masked as the prompt alone (with its BOS) has tokens;
//! exactly one EOS ends the answer; what exceeds the maximum length is cut from the end, EOS included.

use std::num::NonZero;

use super::{DataError, PromptStyle, Record, Tokenizer};

/// The label of a position without one, as PyTorch's cross-entropy has it.
pub const IGNORE_INDEX: i64 = -100;

/// One tokenised record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub tokens: Vec<u32>,
    /// `tokens[i]` is a label where `i >= masked`, except for i = 0, which no row predicts.
    pub masked: usize,
}

impl Sample {
    /// How many tokens of this sample are labels.
    pub fn label_tokens(&self) -> usize {
        self.tokens.len() - self.first_label()
    }

    /// `[tokens.len()]` labels, not shifted: `tokens[i]`, or [`IGNORE_INDEX`] where there is no label.
    pub fn labels(&self) -> Vec<i64> {
        let first = self.first_label();
        let tokens = self.tokens.iter().enumerate();
        tokens.map(|(i, &token)| if i < first { IGNORE_INDEX } else { i64::from(token) }).collect()
    }

    /// Index of the first token that is a label; the length where there is none.
    pub(super) fn first_label(&self) -> usize {
        self.masked.max(1).min(self.tokens.len())
    }
}

/// How records become samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleOptions {
    pub style: PromptStyle,
    /// Take the loss on the answer alone.
    pub mask_prompt: bool,
    /// Tokens after which a sample is cut; `None` keeps it whole.
    pub max_seq_length: Option<usize>,
}

/// Tokenises records on all cores and keeps their order.
///
/// # Errors
/// A maximum length below 2; a text that the tokenizer refuses, with the index of its record.
pub fn tokenize_records(
    records: &[Record],
    tokenizer: &Tokenizer,
    options: &SampleOptions,
) -> Result<Vec<Sample>, DataError> {
    let tokenized = tokenize_all(records, tokenizer, options)?;
    Ok(tokenized.into_iter().map(|one| one.sample).collect())
}

/// A sample and what truncation hides of it.
pub(super) struct Tokenized {
    pub(super) sample: Sample,
    /// Tokens of prompt, answer and EOS before truncation.
    pub(super) full_length: usize,
    /// Tokens of the prompt alone; 0 where prompts are not masked.
    pub(super) prompt_length: usize,
}

impl SampleOptions {
    pub(super) fn check(&self) -> Result<(), DataError> {
        match self.max_seq_length {
            Some(value @ 0..=1) => Err(DataError::MaxSeqLength { value }),
            _ => Ok(()),
        }
    }
}

pub(super) fn tokenize_all(
    records: &[Record],
    tokenizer: &Tokenizer,
    options: &SampleOptions,
) -> Result<Vec<Tokenized>, DataError> {
    /// Below this a thread costs more than it saves.
    const RECORDS_PER_THREAD: usize = 32;

    options.check()?;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = records.len().div_ceil(cores).max(RECORDS_PER_THREAD);
    let parts: Vec<Result<Vec<Tokenized>, DataError>> = std::thread::scope(|scope| {
        let workers: Vec<_> = records
            .chunks(share)
            .enumerate()
            .map(|(part, chunk)| scope.spawn(move || tokenize_chunk(chunk, part * share, tokenizer, options)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut all = Vec::with_capacity(records.len());
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

fn tokenize_chunk(
    records: &[Record],
    first: usize,
    tokenizer: &Tokenizer,
    options: &SampleOptions,
) -> Result<Vec<Tokenized>, DataError> {
    let one = |(i, record)| {
        tokenize(record, tokenizer, options).map_err(|error| DataError::Tokenize {
            file: None,
            index: first + i,
            reason: error.to_string(),
        })
    };
    records.iter().enumerate().map(one).collect()
}

fn tokenize(record: &Record, tokenizer: &Tokenizer, options: &SampleOptions) -> Result<Tokenized, DataError> {
    let mut text = options.style.prompt(&record.instruction, record.input.as_deref());
    let prompt_length = if options.mask_prompt { tokenizer.encode(&text)?.len() } else { 0 };
    text.push_str(&record.output);
    let mut tokens = tokenizer.encode(&text)?;
    let eos = tokenizer.eos();
    // An answer that ends in EOS already gets no second one; a prompt that ends in one keeps it.
    while tokens.len() > prompt_length && tokens.last() == Some(&eos) {
        tokens.pop();
    }
    tokens.push(eos);
    let full_length = tokens.len();
    if let Some(max) = options.max_seq_length {
        tokens.truncate(max);
    }
    let masked = prompt_length.max(1).min(tokens.len());
    Ok(Tokenized { sample: Sample { tokens, masked }, full_length, prompt_length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_begin_after_the_mask_and_never_at_the_first_token() {
        let sample = |masked| Sample { tokens: vec![7, 8, 9], masked };
        for (masked, labels) in [
            (0, vec![-100, 8, 9]),
            (1, vec![-100, 8, 9]),
            (2, vec![-100, -100, 9]),
            (3, vec![-100; 3]),
            (9, vec![-100; 3]),
        ] {
            let sample = sample(masked);
            assert_eq!(sample.labels(), labels);
            assert_eq!(sample.label_tokens(), labels.iter().filter(|&&label| label != IGNORE_INDEX).count());
        }
        let empty = Sample { tokens: vec![], masked: 0 };
        assert_eq!((empty.label_tokens(), empty.labels().len()), (0, 0));
    }
}
