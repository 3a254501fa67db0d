//! Data files, ready to train on.
//!
//! Rows are read, tokenised and written to a file of tokens in one pass, so that no more than a few hundred are in
//! memory; the data set reads from the file, which is mapped. Rows are split before they are dropped, so that which
//! rows validate depends on the files and the seed alone and not on the maximum length.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::{CacheKey, tokens_of_file};
use super::encode::Encoder;
use super::marks::unknown_marks;
use super::reader::read_rows;
use super::sample::Sample;
use super::source::{DataSource, files_of};
use super::split::{split, subset};
use super::store::{RowEntry, TokenStore};
use super::template::RowKeys;
use super::{DataError, DataSummary, Format, PromptTemplate, SampleOptions, SplitSummary, Tokenizer};
use crate::stop::StopFlag;

/// Training and validation samples, in the order of the files. Every sample has at least one label.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    pub train: Samples,
    /// Empty where the validation fraction is 0.
    pub validation: Samples,
    pub summary: DataSummary,
    /// What the user should know of how prompts are written.
    pub note: Option<String>,
}

/// How files become a data set.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DatasetOptions {
    pub sample: SampleOptions,
    /// What the rows are; `None` looks at the first row of each file.
    pub format: Option<Format>,
    /// A Jinja template of the user's own, which writes every row.
    pub prompt_template: Option<PathBuf>,
    /// The same as a text, in place of the file.
    pub template: Option<PromptTemplate>,
    /// Share of the rows that is set aside for validation, in `[0, 1)`. Not looked at where a folder has a file for
    /// validation.
    pub val_split_fraction: f64,
    pub seed: u64,
    /// Choose the validation rows at random; without it they are the last ones.
    pub shuffle: bool,
    /// Threads that tokenise; `None` takes one per processor.
    pub threads: Option<usize>,
    /// Folder for the files of tokens; `None` keeps them no longer than the data set.
    pub cache: Option<PathBuf>,
}

/// Samples of one part, read from mapped files when they are asked for.
#[derive(Clone)]
pub struct Samples {
    stores: Arc<[TokenStore]>,
    rows: Vec<RowId>,
}

#[derive(Clone, Copy)]
struct RowId {
    file: u32,
    row: u32,
}

impl Dataset {
    /// The data set of one file or folder. See [`Self::open_sources`].
    ///
    /// # Errors
    /// Those of [`Self::open_sources`].
    pub fn open(path: &Path, tokenizer: &Tokenizer, options: &DatasetOptions) -> Result<Self, DataError> {
        Self::open_sources(&[DataSource::once(path)], tokenizer, options)
    }

    /// Reads, tokenises and splits the rows of all sources. Samples without any label are counted and left out.
    ///
    /// # Errors
    /// A file that cannot be read, or holds a row that is none; a template that refuses a row; a fraction that cannot
    /// be; a part in which no sample has a label; a file of tokens that cannot be written.
    pub fn open_sources(
        sources: &[DataSource],
        tokenizer: &Tokenizer,
        options: &DatasetOptions,
    ) -> Result<Self, DataError> {
        Self::open_sources_until(sources, tokenizer, options, &StopFlag::default())
    }

    /// [`Self::open_sources`], unless it is asked to stop before the rows are read.
    ///
    /// # Errors
    /// Those of [`Self::open_sources`]; [`DataError::Stopped`].
    pub fn open_sources_until(
        sources: &[DataSource],
        tokenizer: &Tokenizer,
        options: &DatasetOptions,
        stop: &StopFlag,
    ) -> Result<Self, DataError> {
        options.sample.check()?;
        let files = files_of(sources)?;
        let own = match (&options.template, &options.prompt_template) {
            (Some(template), _) => Some(template.clone()),
            (None, file) => file.as_deref().map(PromptTemplate::read).transpose()?,
        };
        let own = own.map(|template| (template.file.display().to_string(), template.text));
        let own = own.as_ref().map(|(origin, source)| (origin.as_str(), source.as_str()));
        let encoder = Encoder::new(tokenizer, options.sample, own)?;
        let key = CacheKey::new(tokenizer, options, own.map(|(_, source)| source), &encoder);
        let paths = files.train.iter().map(|source| source.path.as_path());
        let paths: Vec<&Path> = paths.chain(files.validation.iter().map(PathBuf::as_path)).collect();
        let note = match own {
            Some((origin, _)) => encoder.row_keys().and_then(|keys| keys_of_no_row(origin, keys, &paths)),
            None => unknown_marks(&options.sample.style, tokenizer),
        };
        let stores = paths
            .into_iter()
            .map(|path| tokens_of_file(path, &encoder, options, &key, stop))
            .collect::<Result<Arc<[TokenStore]>, DataError>>()?;

        let rows = |file: usize| {
            let id = move |row| RowId { file: file as u32, row: row as u32 };
            (0..stores[file].len()).map(id)
        };
        let all: Vec<RowId> = (0..files.train.len()).flat_map(rows).collect();
        let first = files.train.first().map(|source| source.path.clone()).unwrap_or_default();
        let (train, validation) = if files.validation.is_empty() {
            let (train, validation) =
                split(all.len(), options.val_split_fraction, options.seed, options.shuffle)?;
            let pick = |rows: Vec<usize>| rows.into_iter().map(|row| all[row]).collect::<Vec<_>>();
            (pick(train), pick(validation))
        } else {
            (all, (files.train.len()..stores.len()).flat_map(rows).collect())
        };
        let part = Part { stores: &stores, file: &first, max_seq_length: options.sample.max_seq_length };
        let weights: Vec<f64> = files.train.iter().map(|source| source.weight).collect();
        let (train, train_summary) =
            part.with_labels("training", train, |rows| weighted(rows, &weights, options.seed))?;
        let (validation, validation_summary) = part.with_labels("validation", validation, |rows| rows)?;
        Ok(Self {
            train: Samples { stores: stores.clone(), rows: train },
            validation: Samples { stores: stores.clone(), rows: validation },
            summary: DataSummary {
                max_seq_length: options.sample.max_seq_length,
                train: train_summary,
                validation: validation_summary,
            },
            note,
        })
    }

    /// The largest token id of any row, used or not.
    pub fn largest_token(&self) -> u32 {
        self.train.stores.iter().map(TokenStore::largest_token).max().unwrap_or(0)
    }
}

impl Samples {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A copy of sample `i`.
    ///
    /// # Panics
    /// There are not so many.
    pub fn get(&self, i: usize) -> Sample {
        let RowId { file, row } = self.rows[i];
        self.stores[file as usize].sample(row as usize)
    }

    /// Copies of all samples, made one at a time.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Sample> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Tokens of sample `i`, without reading them.
    ///
    /// # Panics
    /// There are not so many.
    pub fn tokens_len(&self, i: usize) -> usize {
        entry(&self.stores, self.rows[i]).tokens as usize
    }

    /// Labels of sample `i`, without reading them.
    ///
    /// # Panics
    /// There are not so many.
    pub fn label_count(&self, i: usize) -> usize {
        entry(&self.stores, self.rows[i]).label_tokens as usize
    }
}

impl PartialEq for Samples {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl std::fmt::Debug for Samples {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Samples").field("len", &self.len()).finish_non_exhaustive()
    }
}

fn entry(stores: &[TokenStore], id: RowId) -> &RowEntry {
    &stores[id.file as usize].entries()[id.row as usize]
}

/// The rows as often as the weights of their files say: whole passes, then a seeded choice for the fraction.
fn weighted(rows: Vec<RowId>, weights: &[f64], seed: u64) -> Vec<RowId> {
    if weights.iter().all(|&weight| weight == 1.0) {
        return rows;
    }
    let mut out = Vec::new();
    for (file, &weight) in weights.iter().enumerate() {
        let own: Vec<RowId> = rows.iter().copied().filter(|id| id.file as usize == file).collect();
        for _ in 0..weight.trunc() as usize {
            out.extend_from_slice(&own);
        }
        let rest = (weight.fract() * own.len() as f64).round() as usize;
        out.extend(subset(own.len(), rest, seed, file as u64).into_iter().map(|row| own[row]));
    }
    out
}

/// Rows of each file that are looked at for the keys of a template.
const LOOKED_AT: usize = 100;

/// What to say of keys that a template reads and that none of these rows has. Conversations are written by other names.
fn keys_of_no_row(origin: &str, keys: RowKeys, paths: &[&Path]) -> Option<String> {
    let mut missing: BTreeSet<String> = keys.prompt.into_iter().chain(keys.answer).collect();
    let mut of_chats = false;
    for path in paths {
        let mut left = LOOKED_AT;
        // what cannot be read is told where the rows are
        let _ = read_rows(path, &mut |_, row| {
            missing.retain(|key| row.get(key).is_none());
            of_chats |= ["messages", "conversations"].iter().any(|key| row.get(key).is_some());
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }
    if missing.is_empty() || of_chats {
        return None;
    }
    let missing: Vec<String> = missing.into_iter().collect();
    Some(format!(
        "{origin} reads {}, which none of the first {LOOKED_AT} rows of a file has: it is nothing there; is it spelt as in the rows?",
        missing.join(", ")
    ))
}

struct Part<'a> {
    stores: &'a [TokenStore],
    /// What an error names.
    file: &'a Path,
    max_seq_length: Option<usize>,
}

impl Part<'_> {
    /// The rows that have a label, repeated as `repeat` says, and their figures.
    fn with_labels(
        &self,
        split: &'static str,
        rows: Vec<RowId>,
        repeat: impl FnOnce(Vec<RowId>) -> Vec<RowId>,
    ) -> Result<(Vec<RowId>, SplitSummary), DataError> {
        let mut summary = SplitSummary::default();
        let count = rows.len();
        let (kept, lost): (Vec<RowId>, Vec<RowId>) =
            rows.into_iter().partition(|&id| entry(self.stores, id).label_tokens > 0);
        if kept.is_empty()
            && let Some(shortest) = lost.iter().map(|&id| entry(self.stores, id).prompt_length).min()
        {
            return Err(DataError::NoLabels {
                file: self.file.to_owned(),
                split,
                samples: count,
                max_seq_length: self.max_seq_length,
                shortest_prompt: shortest as usize,
            });
        }
        let kept = repeat(kept);
        lost.iter().chain(&kept).for_each(|&id| summary.add(entry(self.stores, id)));
        Ok((kept, summary))
    }
}
