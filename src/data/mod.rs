//! From files of instructions, conversations or texts to micro-batches of token ids.
//!
//! The way of a row: a reader gives it as JSON whatever the file is, [`Format`] says how it is to be read
//! and [`Row`] checks it, [`PromptStyle`] or a chat template writes its text, [`Encoder`] turns that into tokens and
//! labels, which go to a file that [`Dataset`] maps and splits, and [`MicroBatch`] lays samples end to end in one flat
//! token stream without padding. Nothing here knows a model or a device. Everything is a function of the files, the
//! options and the seed: the same three give the same tokens in the same order on every machine.

mod batch;
mod cache;
mod chat;
mod chat_styles;
mod conversation;
mod dataset;
mod encode;
mod error;
mod format;
mod marks;
mod parallel;
mod prompt;
mod prompt_form;
mod prompter;
mod python;
mod reader;
mod record;
mod sample;
mod source;
mod split;
mod store;
mod stream;
mod styles;
mod summary;
mod template;
mod tokenizer;

pub use batch::MicroBatch;
pub use cache::worth_keeping;
pub use chat::ChatTemplate;
pub use conversation::Conversation;
pub use dataset::{Dataset, DatasetOptions, Samples};
pub use encode::{Encoder, SampleOptions, tokenize_records};
pub use error::{DataError, Place};
pub use format::Format;
pub use prompt::PromptStyle;
pub(crate) use prompt_form::without_mark;
pub use prompt_form::{Asked, PROMPT_FILE, PromptForm, PromptTemplate};
pub use prompter::Prompter;
pub(crate) use reader::is_parsing;
pub use record::{Record, Row, all_read_as, detect_format, formats_of, read_records};
pub use sample::{IGNORE_INDEX, Sample, Span};
pub use source::DataSource;
pub use split::{epoch_order, split};
pub use stream::DecodeStream;
pub(crate) use summary::grouped;
pub use summary::{DataSummary, SplitSummary};
pub use tokenizer::Tokenizer;
