//! A data file, ready to train on.
//!
//! Rows are split before they are dropped, so that which rows validate depends on the file and the seed alone
//! and not on the maximum length.

use std::path::Path;

use super::sample::{Tokenized, tokenize_all};
use super::{DataError, DataSummary, Sample, SampleOptions, SplitSummary, Tokenizer};
use super::{read_records, split};

/// Training and validation samples of one file, in the order of the file. Every sample has at least one
/// label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    pub train: Vec<Sample>,
    /// Empty where the validation fraction is 0.
    pub validation: Vec<Sample>,
    pub summary: DataSummary,
}

/// How a file becomes a dataset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DatasetOptions {
    pub sample: SampleOptions,
    /// Share of the rows that is set aside for validation, in `[0, 1)`.
    pub val_split_fraction: f64,
    pub seed: u64,
    /// Choose the validation rows at random; without it they are the last ones.
    pub shuffle: bool,
}

impl Dataset {
    /// Reads, splits and tokenises the records of `path`. Samples without any label are counted and left out.
    ///
    /// # Errors
    /// Those of [`read_records`], [`split`] and [`super::tokenize_records`]; a part in which no sample has a
    /// label.
    pub fn open(path: &Path, tokenizer: &Tokenizer, options: &DatasetOptions) -> Result<Self, DataError> {
        options.sample.check()?;
        let records = read_records(path)?;
        let (train_rows, validation_rows) =
            split(records.len(), options.val_split_fraction, options.seed, options.shuffle)?;
        let rows = tokenize_all(&records, tokenizer, &options.sample).map_err(|error| error.in_file(path))?;
        let mut rows: Vec<Option<Tokenized>> = rows.into_iter().map(Some).collect();
        let mut part = |name, indices: Vec<usize>| {
            let rows: Vec<Tokenized> = indices.iter().filter_map(|&i| rows[i].take()).collect();
            with_labels(path, name, rows, options.sample.max_seq_length)
        };
        let (train, train_summary) = part("training", train_rows)?;
        let (validation, validation_summary) = part("validation", validation_rows)?;
        Ok(Self {
            train,
            validation,
            summary: DataSummary {
                max_seq_length: options.sample.max_seq_length,
                train: train_summary,
                validation: validation_summary,
            },
        })
    }
}

fn with_labels(
    path: &Path,
    split: &'static str,
    rows: Vec<Tokenized>,
    max_seq_length: Option<usize>,
) -> Result<(Vec<Sample>, SplitSummary), DataError> {
    let mut summary = SplitSummary::default();
    rows.iter().for_each(|row| summary.add(row));
    if summary.samples == 0
        && let Some(shortest_prompt) = rows.iter().map(|row| row.prompt_length).min()
    {
        return Err(DataError::NoLabels {
            file: path.to_owned(),
            split,
            samples: rows.len(),
            max_seq_length,
            shortest_prompt,
        });
    }
    let samples = rows.into_iter().map(|row| row.sample);
    let samples = samples.filter(|sample| sample.label_tokens() > 0).collect();
    Ok((samples, summary))
}
