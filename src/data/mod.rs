//! From a file of instruction records to micro-batches of token ids.
//!
//! The way of a record: [`read_records`] checks it, [`PromptStyle`] writes its prompt, [`Tokenizer`] turns
//! prompt and answer into one [`Sample`], [`split`] sets validation rows aside, [`Dataset`] holds the result
//! with a [`DataSummary`], and [`MicroBatch`] lays samples end to end in one flat token stream without
//! padding. Nothing here knows a model or a device. Everything is a function of the file, the options and the
//! seed: the same three give the same tokens in the same order on every machine.

mod batch;
mod dataset;
mod error;
mod prompt;
mod record;
mod sample;
mod split;
mod stream;
mod summary;
mod tokenizer;

pub use batch::MicroBatch;
pub use dataset::{Dataset, DatasetOptions};
pub use error::{DataError, Place};
pub use prompt::PromptStyle;
pub use record::{Record, read_records};
pub use sample::{IGNORE_INDEX, Sample, SampleOptions, tokenize_records};
pub use split::{epoch_order, split};
pub use stream::DecodeStream;
pub use summary::{DataSummary, SplitSummary};
pub use tokenizer::Tokenizer;
