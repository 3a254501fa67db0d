//! What can be wrong with data, a tokenizer or their options.
//!
//! Every message stands alone: it names the file, the line (JSONL) or the index (JSON array, counted from 0),
//! the key, and what to do next. The underlying error is part of the text and is therefore not offered as
//! `source()` again.

use crate::stop::Stopped;
use std::fmt;
use std::path::PathBuf;

/// Where in a data file a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Line of a JSONL file, counted from 1.
    Line(usize),
    /// Element of a JSON array, counted from 0.
    Index(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Index(index) => write!(f, "record {index} (counted from 0)"),
        }
    }
}

/// An error of the data room. All of them are the user's to mend: none depends on the device.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{}: no such file: name a file of records (JSON, JSONL, CSV, Parquet) or a folder with \
         train.* and val.*", file.display())]
    Missing { file: PathBuf },

    #[error("{}: is a directory: name the file in it", file.display())]
    Directory { file: PathBuf },

    #[error("{}: cannot be read: {error}", file.display())]
    Read { file: PathBuf, error: std::io::Error },

    #[error(
        "{}: the {kind} data are damaged or cut short ({reason}): copy, download or pack the file again",
        file.display()
    )]
    Damaged { file: PathBuf, kind: &'static str, reason: String },

    #[error("{}: {}{reason}", file.display(), line_prefix(*line))]
    Table {
        file: PathBuf,
        /// 0 where it is not known.
        line: u64,
        reason: String,
    },

    #[error(
        "{}: line {line}: byte {offset} of the file is not valid UTF-8: save the file as UTF-8",
        file.display()
    )]
    NotUtf8 {
        file: PathBuf,
        line: usize,
        /// Bytes from the start of the file, counted from 0.
        offset: usize,
    },

    #[error(
        "{}: holds no records: a record is an object with `instruction` and `output`, with `messages`, with \
         `prompt` and `completion`, or with `text`",
        file.display()
    )]
    NoRecords { file: PathBuf },

    #[error(
        "{}: starts with {found:?}: expected `[` (a JSON array of records) or `{{` (JSONL, one record per \
         line); a table must be named .csv or .tsv",
        file.display()
    )]
    NotRecords { file: PathBuf, found: char },

    #[error("{}: line {line}, column {column}: broken JSON: {reason}{hint}", file.display())]
    Syntax {
        file: PathBuf,
        line: usize,
        /// In bytes, counted from 1.
        column: usize,
        reason: String,
        /// Empty, or what to do, with its own leading punctuation.
        hint: &'static str,
    },

    #[error(
        "{}: {place}: expected an object, found {found}: a record is its keys with their values",
        file.display()
    )]
    NotAnObject { file: PathBuf, place: Place, found: &'static str },

    #[error(
        "{}: {place}: no format has these keys (found: {found}): rename them to `instruction` and `output`, `messages`, \
         `conversations`, `prompt` and `completion`, or `text` (in CSV the first line names the columns), or write the prompt by \
         --prompt_template FILE",
        file.display()
    )]
    UnknownKeys {
        file: PathBuf,
        place: Place,
        /// The keys that the record does have, separated by commas.
        found: String,
    },

    #[error(
        "{}: {place}: the key `{key}` is missing (keys found: {found}): {needs}",
        file.display()
    )]
    MissingKey {
        file: PathBuf,
        place: Place,
        /// With its path, such as `messages[2].content`.
        key: String,
        /// The keys that are there, separated by commas.
        found: String,
        needs: String,
    },

    #[error("{}: {place}: the key `{key}` must be {expected}, found {found}", file.display())]
    WrongType { file: PathBuf, place: Place, key: String, expected: &'static str, found: &'static str },

    #[error("{}: {place}: the key `{key}` {reason}", file.display())]
    WrongValue { file: PathBuf, place: Place, key: String, reason: String },

    #[error("{}: {place}: {reason}", file.display())]
    RefusedRow { file: PathBuf, place: Place, reason: String },

    #[error("{text:?}: {reason}: write FILE, or FILE:WEIGHT,FILE:WEIGHT")]
    BadSource { text: String, reason: &'static str },

    #[error(
        "{}: holds no file for training: name it train.json (.jsonl, .csv, .parquet), and the one for validation \
         val.json, or name a file in place of the folder",
        folder.display()
    )]
    NoTrainFile { folder: PathBuf },

    #[error("unknown data format {name:?}: known are alpaca, prompt-completion, text, chat and sharegpt")]
    UnknownFormat { name: String },

    #[error("{origin}, line {line}: is not a Jinja template: {reason}")]
    BadTemplate { origin: String, line: usize, reason: String },

    #[error("{}: no such file: name a Jinja template", file.display())]
    NoTemplate { file: PathBuf },

    #[error(
        "{origin}: `chat_template` has several templates ({names}) and none is named default: name one so, or give a \
         template by --prompt_template FILE"
    )]
    NoDefaultTemplate { origin: String, names: String },

    #[error("{reason}")]
    NoChatTemplate { reason: String },

    #[error(
        "{}: is no record of a training's prompts that this version reads ({reason}), and is left aside: where the answers are \
         bad, give --prompt_style",
        file.display()
    )]
    BadPromptRecord { file: PathBuf, reason: String },

    #[error("{form} reads the keys {} of a row: give a prompt that is such a row, as {}", keys.join(", "), row_of(keys))]
    RowWanted {
        /// As messages name it.
        form: String,
        keys: Vec<String>,
    },

    #[error("{form} asks what a user says, and there is no message of one")]
    NoQuestion { form: String },

    #[error(
        "{}: the tokens cannot be kept: {error}; is the folder writable and the disk not full?",
        file.display()
    )]
    TokenFile { file: PathBuf, error: std::io::Error },

    #[error("unknown prompt style {name:?}: known are {}", style_names())]
    UnknownPromptStyle { name: String },

    #[error(
        "{}: no such file: the model folder needs a tokenizer.json; from other tokenizer files it is made in \
         Python by AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        file.display()
    )]
    NoTokenizer { file: PathBuf },

    #[error("{}: is not a tokenizer that can be read: {reason}: download the file again", file.display())]
    BadTokenizer { file: PathBuf, reason: String },

    #[error("{}: is not a JSON object: {reason}: download the file again", file.display())]
    BadConfig { file: PathBuf, reason: String },

    #[error("{}: the key `{key}` must be {expected}, found {found}", file.display())]
    BadConfigKey { file: PathBuf, key: &'static str, expected: &'static str, found: String },

    #[error(
        "{}: the key `{key}` names the token {token:?}, which tokenizer.json does not have: the two files do \
         not belong together",
        file.display()
    )]
    UnknownToken { file: PathBuf, key: &'static str, token: String },

    #[error(
        "{}: `add_bos_token` is true but no token is named: set `bos_token` there or `bos_token_id` in \
         config.json",
        file.display()
    )]
    NoBos { file: PathBuf },

    #[error(
        "{}: the model names no token that ends an answer: set `eos_token` in tokenizer_config.json or \
         `eos_token_id` in config.json",
        model_dir.display()
    )]
    NoEos { model_dir: PathBuf },

    #[error("the text {excerpt:?} cannot be tokenised: {reason}")]
    Encode { excerpt: String, reason: String },

    #[error("{count} token ids cannot be turned into text: {reason}")]
    Decode { count: usize, reason: String },

    #[error("record {index} (counted from 0) cannot be tokenised: {reason}")]
    Tokenize { index: usize, reason: String },

    #[error(
        "max_seq_length {value} is too short: a sample needs at least 2 tokens, one to read and one to \
         predict"
    )]
    MaxSeqLength { value: usize },

    #[error(
        "--data.val_split_fraction {fraction} is out of range: it must be at least 0 (no validation) and below 1"
    )]
    Fraction { fraction: f64 },

    #[error(
        "--data.val_split_fraction {fraction} of {count} {} leaves none to train on: lower it, or add records",
        records(*count)
    )]
    NoTrainRows { count: usize, fraction: f64 },

    #[error(
        "--data.val_split_fraction {fraction} of {count} {} rounds to no validation record: {}set it to 0 to train \
         without validation",
        records(*count),
        least_fraction(*count)
    )]
    NoValidationRows { count: usize, fraction: f64 },

    #[error(
        "{}: none of the {samples} {split} samples has a label left: {}",
        file.display(),
        no_label_advice(*max_seq_length, *shortest_prompt)
    )]
    NoLabels {
        file: PathBuf,
        /// `training` or `validation`.
        split: &'static str,
        samples: usize,
        max_seq_length: Option<usize>,
        /// Tokens of the shortest prompt alone.
        shortest_prompt: usize,
    },

    /// Somebody asked for it; files of tokens that were complete stay, and no half of one.
    #[error("the data were not read to their end: {0}")]
    Stopped(#[from] Stopped),
}

fn line_prefix(line: u64) -> String {
    if line == 0 { String::new() } else { format!("line {line}: ") }
}

fn row_of(keys: &[String]) -> String {
    let pairs: Vec<String> = keys.iter().map(|key| format!("{key:?}: \"…\"")).collect();
    format!("{{{}}}", pairs.join(", "))
}

fn style_names() -> String {
    super::PromptStyle::names().collect::<Vec<_>>().join(", ")
}

fn records(count: usize) -> &'static str {
    if count == 1 { "record" } else { "records" }
}

/// Advice with the smallest fraction of two digits that gives one of `count` records to validation; none for
/// a single record, which cannot be divided.
fn least_fraction(count: usize) -> String {
    if count < 2 {
        return String::new();
    }
    format!("raise it to {}, or ", (50.0 / count as f64).ceil() / 100.0)
}

fn no_label_advice(max_seq_length: Option<usize>, shortest_prompt: usize) -> String {
    match max_seq_length {
        Some(max) if shortest_prompt >= max => format!(
            "max_seq_length is {max}, but the shortest prompt alone has {shortest_prompt} tokens, so every \
             answer begins beyond it: raise max_seq_length well above {shortest_prompt} (where the model takes so many), \
             shorten the prompts, or take the loss on prompts too (mask_prompt false)"
        ),
        _ => "no row holds an answer that gives tokens: in a conversation the roles assistant and model are learned (without \
              `train` false), elsewhere the output or completion; or tokenizer.json does not belong to the model"
            .to_owned(),
    }
}
