//! What data a command takes, and `engraft data`.

use super::named::{NamedSet, PlaceArgs, refusal};
use super::{EXIT_CODES, boolean, count};
use crate::data::{DataSource, Format};
use crate::hub::FileDownload;
use crate::train::options::{Checks, DataOptions, OptionsError};
use clap::{ArgAction, Args};
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct DataArgs {
    /// Files or folders FILE:WEIGHT,… of rows; Alpaca, Alpaca2k, AlpacaGPT4; JSON for the one of --data.json_path
    #[arg(long, alias = "data.files", value_name = "FILES", value_parser = data_kind)]
    pub data: Option<DataKind>,
    /// One file or folder of rows
    #[arg(long = "data.json_path", alias = "data.json-path", value_name = "FILE")]
    pub json_path: Option<PathBuf>,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Shuffle the rows, in the split and in each epoch: true or false
    #[arg(
        long = "data.shuffle",
        value_name = "BOOL",
        default_value_t = DataOptions::default().shuffle,
        default_missing_value = "true",
        num_args = 0..=1,
        action = ArgAction::Set,
        value_parser = boolean
    )]
    pub shuffle: bool,
    /// Seed of the split and the order of the rows [default: the run's]
    #[arg(long = "data.seed", value_name = "SEED")]
    pub data_seed: Option<u64>,
    /// Threads that tokenise [default: one per processor]
    #[arg(long = "data.num_workers", alias = "data.num-workers", value_name = "N", value_parser = count)]
    pub num_workers: Option<usize>,
    #[command(flatten)]
    pub text: RowTextArgs,
    /// Folder that keeps tokenised data for the next run [default: finetune's output folder, from 8 MiB on]
    #[arg(long, alias = "data-cache", alias = "data.cache", value_name = "DIR")]
    pub data_cache: Option<PathBuf>,
}

impl DataArgs {
    /// The named data set, and where its file is and comes from.
    ///
    /// # Errors
    /// A file beside it, options that do not go with it.
    pub fn named(&self) -> Result<Option<(NamedSet, FileDownload)>, OptionsError> {
        let Some(DataKind::Named(set)) = self.data else { return Ok(None) };
        let mut checks = Checks::default();
        if let Some(file) = &self.json_path {
            let reason = format!("names a file, and --data {set} another: give one of the two");
            checks.require(false, "--data.json_path", file.display(), reason);
        }
        checks.finish()?;
        Ok(Some((set, self.place.of(set)?)))
    }

    /// The share of the rows to hold out where none is said.
    pub(super) fn usual_fraction(&self) -> f64 {
        match self.data {
            Some(DataKind::Named(set)) => set.val_split_fraction(),
            _ => DataOptions::default().val_split_fraction,
        }
    }

    pub(super) fn options(self, val_split_fraction: f64) -> DataOptions {
        // where the file of a named set will be
        let place = self.named().ok().flatten().map(|(_, download)| download.place());
        let sources = match self.data {
            None | Some(DataKind::Json | DataKind::Named(_)) => Vec::new(),
            Some(DataKind::Sources(sources)) => sources,
        };
        DataOptions {
            json_path: place.or(self.json_path).unwrap_or_default(),
            sources,
            val_split_fraction,
            shuffle: self.shuffle,
            seed: self.data_seed,
            num_workers: self.num_workers,
            cache: self.data_cache,
            ..self.text.options()
        }
    }
}

/// What `--data` names.
#[derive(Clone, Debug, PartialEq)]
pub enum DataKind {
    /// The file is named by `--data.json_path`.
    Json,
    /// A data set that is downloaded where it is not here.
    Named(NamedSet),
    Sources(Vec<DataSource>),
}

/// How rows become text, and which part is learned.
#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct RowTextArgs {
    /// alpaca, prompt-completion, text, chat or sharegpt [default: what the keys of the first row say]
    #[arg(long, alias = "data-format", alias = "data.format", value_name = "FORMAT", value_parser = format)]
    pub data_format: Option<Format>,
    /// Count the loss on the answers alone, not on prompts: true or false
    #[arg(
        long = "data.mask_prompt",
        alias = "data.mask-prompt",
        value_name = "BOOL",
        default_value_t = DataOptions::default().mask_prompt,
        default_missing_value = "true",
        num_args = 0..=1,
        action = ArgAction::Set,
        value_parser = boolean
    )]
    pub mask_prompt: bool,
    /// How a row becomes a prompt: auto, alpaca, none, chat (the model's template), llama3, …; see the guide
    #[arg(
        long = "data.prompt_style",
        visible_alias = "prompt_style",
        aliases = ["data.prompt-style", "prompt-style"],
        value_name = "STYLE",
        default_value_t = DataOptions::default().prompt_style
    )]
    pub prompt_style: String,
    /// Jinja template that writes each row from its keys, or each conversation from its messages
    #[arg(
        long,
        alias = "prompt-template",
        alias = "data.prompt_template",
        alias = "data.prompt-template",
        value_name = "FILE"
    )]
    pub prompt_template: Option<PathBuf>,
}

impl RowTextArgs {
    fn options(self) -> DataOptions {
        DataOptions {
            format: self.data_format,
            mask_prompt: self.mask_prompt,
            prompt_style: self.prompt_style,
            prompt_template: self.prompt_template,
            ..DataOptions::default()
        }
    }
}

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES)]
pub struct DataCommandArgs {
    /// Files or folders of rows, FILE:WEIGHT,…; or Alpaca, Alpaca2k, AlpacaGPT4
    #[arg(value_name = "FILES", value_parser = data_kind)]
    pub files: DataKind,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Hugging Face folder whose tokenizer and chat template are used
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    #[command(flatten)]
    pub text: RowTextArgs,
    /// Cut longer samples at the end [default: none is cut]
    #[arg(long, alias = "max-seq-length", value_name = "N", value_parser = count)]
    pub max_seq_length: Option<usize>,
    /// Samples to show, from the first on
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = count)]
    pub show: usize,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl DataCommandArgs {
    /// The named data set, and where its file is and comes from.
    ///
    /// # Errors
    /// Options that do not go with it.
    pub fn named(&self) -> Result<Option<(NamedSet, FileDownload)>, OptionsError> {
        let DataKind::Named(set) = self.files else { return Ok(None) };
        Ok(Some((set, self.place.of(set)?)))
    }

    /// The data that were asked for, none of them held out, in the order of the files.
    ///
    /// # Errors
    /// Every option that is out of its range.
    pub fn options(&self) -> Result<DataOptions, OptionsError> {
        let mut checks = Checks::default();
        checks.prompt_style("--prompt_style", &self.text.prompt_style);
        if let Some(length) = self.max_seq_length {
            checks.at_least("--max_seq_length", length, 2);
        }
        checks.finish()?;
        let (sources, json_path) = match &self.files {
            DataKind::Sources(sources) => (sources.clone(), PathBuf::new()),
            // a file of this name
            DataKind::Json => (Vec::new(), "JSON".into()),
            // where the file of a named set will be
            DataKind::Named(set) => (Vec::new(), self.place.of(*set)?.place()),
        };
        Ok(DataOptions {
            sources,
            json_path,
            val_split_fraction: 0.0,
            shuffle: false,
            ..self.text.clone().options()
        })
    }
}

fn data_kind(word: &str) -> Result<DataKind, String> {
    match (word, NamedSet::find(word), refusal(word)) {
        ("JSON", ..) => Ok(DataKind::Json),
        (_, Some(set), _) => Ok(DataKind::Named(set)),
        (_, None, Some(reason)) => Err(reason),
        (_, None, None) => {
            DataSource::parse_list(word).map(DataKind::Sources).map_err(|error| error.to_string())
        }
    }
}

fn format(word: &str) -> Result<Format, String> {
    word.parse().map_err(|error: crate::data::DataError| error.to_string())
}
