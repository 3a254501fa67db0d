//! Data sets that `--data` knows by LitGPT's names, and where each comes from.

use crate::hub::{FileDownload, FileOrigin, RepoName};
use crate::train::options::{Checks, OptionProblem, OptionsError};
use clap::Args;
use std::fmt;
use std::path::PathBuf;

/// A data set with a name of LitGPT's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedSet {
    Alpaca,
    Alpaca2k,
    AlpacaGpt4,
}

/// Where LitGPT has them from.
const ALPACA_URL: &str =
    "https://raw.githubusercontent.com/tloen/alpaca-lora/main/alpaca_data_cleaned_archive.json";
const ALPACA_GPT4_URL: &str = "https://raw.githubusercontent.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM/main/data/alpaca_gpt4_data.json";
const ALPACA_2K: &str = "mhenrichsen/alpaca_2k_test";
const ALPACA_2K_FILE: &str = "alpaca_2000.parquet";
/// What LitGPT's own files say of Alpaca2k without using it.
const ALPACA_2K_UNUSED: &str = "alpaca2k_data_cleaned_archive.json";

impl NamedSet {
    pub const ALL: [Self; 3] = [Self::Alpaca, Self::Alpaca2k, Self::AlpacaGpt4];

    /// The set of this name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "Alpaca",
            Self::Alpaca2k => "Alpaca2k",
            Self::AlpacaGpt4 => "AlpacaGPT4",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Alpaca => "data/alpaca",
            Self::Alpaca2k => "data/alpaca2k",
            Self::AlpacaGpt4 => "data/alpacagpt4",
        }
    }

    /// The share that LitGPT holds out: 2,000 rows, and 100 of Alpaca2k.
    pub fn val_split_fraction(self) -> f64 {
        match self {
            Self::Alpaca => 0.03865,
            Self::Alpaca2k => 0.05,
            Self::AlpacaGpt4 => 0.03847,
        }
    }

    /// Address and file name of the sets that are one file of JSON.
    fn address(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Alpaca => Some((ALPACA_URL, "alpaca_data_cleaned_archive.json")),
            Self::Alpaca2k => None,
            Self::AlpacaGpt4 => Some((ALPACA_GPT4_URL, "alpacagpt4_data_cleaned_archive.json")),
        }
    }
}

impl fmt::Display for NamedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// LitGPT's other classes of data, and what to do in their place.
const OTHERS: [(&[&str], &str); 6] = [
    (&["Dolly"], "its rows have context and response; write them with input and output in their place"),
    (&["LongForm"], "its rows have input and output; write them with instruction in place of input"),
    (&["FLAN"], "it is many files of inputs and targets; write their rows with instruction and output"),
    (
        &["LIMA"],
        "its rows are lists of turns and behind conditions; write them with messages of role and content",
    ),
    (&["Deita"], "its rows are conversations in a Parquet file; download that, which can be read as it is"),
    (
        &["TextFiles", "LitData", "TinyLlama", "TinyStories", "OpenWebText", "MicroLlama"],
        "it is text for pretraining; texts are taken as .txt files or as rows with the key text",
    ),
];

/// Why a word is no data set here, if it is one of LitGPT's.
pub fn refusal(name: &str) -> Option<String> {
    let (_, reason) = OTHERS.iter().find(|(names, _)| names.contains(&name))?;
    let known = NamedSet::ALL.map(NamedSet::name).join(", ");
    Some(format!(
        "LitGPT's {name} is not known by name here ({known} are): {reason}, as JSON lines for instance, and give --data FILE"
    ))
}

/// Where the file of a named data set is.
#[derive(Clone, Debug, Default, Args)]
#[command(rename_all = "snake_case", next_help_heading = "Data")]
pub struct PlaceArgs {
    /// Folder of Alpaca, Alpaca2k or AlpacaGPT4; what it lacks is downloaded [default: such as data/alpaca]
    #[arg(long = "data.download_dir", alias = "data.download-dir", value_name = "DIR")]
    pub download_dir: Option<PathBuf>,
    /// Address of Alpaca or AlpacaGPT4 [default: LitGPT's]
    #[arg(long = "data.file_url", alias = "data.file-url", value_name = "URL", hide_short_help = true)]
    pub file_url: Option<String>,
    /// Name of the file in --data.download_dir, or in the repository of Alpaca2k [default: LitGPT's]
    #[arg(long = "data.file_name", alias = "data.file-name", value_name = "NAME", hide_short_help = true)]
    pub file_name: Option<String>,
    /// Data set on the Hub that Alpaca2k is [default: mhenrichsen/alpaca_2k_test]
    #[arg(long = "data.repo_id", alias = "data.repo-id", value_name = "ORG/NAME", hide_short_help = true)]
    pub repo_id: Option<String>,
}

impl PlaceArgs {
    /// Where the file of the set is, and where it comes from.
    ///
    /// # Errors
    /// Options of the other kind of set, names that are none.
    pub fn of(&self, set: NamedSet) -> Result<FileDownload, OptionsError> {
        let mut checks = Checks::default();
        let folder = self.download_dir.clone().unwrap_or_else(|| set.folder().into());
        let file = self.file_name.as_deref();
        let leads_out =
            |name: &str| name.split(['/', '\\']).any(|part| part.is_empty() || part.starts_with('.'));
        if let Some(name) = file {
            checks.require(!leads_out(name), "--data.file_name", name, "must be a name in the folder");
        }
        let download = match set.address() {
            Some((url, usual)) => {
                if let Some(repo) = &self.repo_id {
                    let reason = format!("{set} is a file at an address: --data.file_url names another");
                    checks.require(false, "--data.repo_id", repo, reason);
                }
                let url = self.file_url.clone().unwrap_or_else(|| url.to_owned());
                let file = file.unwrap_or(usual).to_owned();
                FileDownload { origin: FileOrigin::Address { url, file }, folder }
            }
            None => {
                // LitGPT's own files name Alpaca's, which says nothing
                if let Some(url) = self.file_url.as_ref().filter(|url| *url != ALPACA_URL) {
                    let reason = format!("{set} is a data set on the Hub: --data.repo_id names another");
                    checks.require(false, "--data.file_url", url, reason);
                }
                let repo = self.repo_id.as_deref().unwrap_or(ALPACA_2K);
                let file = file.filter(|name| *name != ALPACA_2K_UNUSED);
                let name = repo.parse::<RepoName>().map_err(|_| {
                    let allowed = "must be ORG/NAME or ORG/NAME@REVISION".into();
                    OptionsError {
                        problems: vec![OptionProblem {
                            option: "--data.repo_id",
                            given: repo.into(),
                            allowed,
                        }],
                    }
                })?;
                // one folder may have files of many repositories
                let own = if repo == ALPACA_2K { folder } else { folder.join(name.folder()) };
                let usual = (repo == ALPACA_2K).then_some(ALPACA_2K_FILE);
                let file = file.or(usual).map(str::to_owned);
                FileDownload { origin: FileOrigin::Dataset { name: name.dataset(), file }, folder: own }
            }
        };
        checks.finish()?;
        Ok(download)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_where_litgpt_has_them() {
        let plain = PlaceArgs::default();
        for (set, place) in [
            (NamedSet::Alpaca, "data/alpaca/alpaca_data_cleaned_archive.json"),
            (NamedSet::Alpaca2k, "data/alpaca2k/alpaca_2000.parquet"),
            (NamedSet::AlpacaGpt4, "data/alpacagpt4/alpacagpt4_data_cleaned_archive.json"),
        ] {
            assert_eq!(plain.of(set).unwrap().place(), PathBuf::from(place));
            assert_eq!(NamedSet::find(&set.to_string()), Some(set));
        }
        // what LitGPT writes of Alpaca2k
        let written = PlaceArgs {
            file_url: Some(ALPACA_URL.into()),
            file_name: Some(ALPACA_2K_UNUSED.into()),
            repo_id: Some(ALPACA_2K.into()),
            ..PlaceArgs::default()
        };
        assert_eq!(written.of(NamedSet::Alpaca2k), plain.of(NamedSet::Alpaca2k));
        let own = PlaceArgs { repo_id: Some("a/b".into()), download_dir: Some("d".into()), ..plain };
        assert_eq!(own.of(NamedSet::Alpaca2k).unwrap().place(), PathBuf::from("d/a/b"));
    }

    #[test]
    fn options_of_the_other_kind_are_refused() {
        let refused = |set, place: PlaceArgs| place.of(set).unwrap_err().to_string();
        let said = |text: &str| Some(text.to_owned());
        let url = PlaceArgs { file_url: said("http://a/b"), ..PlaceArgs::default() };
        assert!(refused(NamedSet::Alpaca2k, url).contains("--data.repo_id"));
        let repo = PlaceArgs { repo_id: said("a/b"), ..PlaceArgs::default() };
        assert!(refused(NamedSet::Alpaca, repo).contains("--data.file_url"));
        let repo = PlaceArgs { repo_id: said("a"), ..PlaceArgs::default() };
        assert!(refused(NamedSet::Alpaca2k, repo).contains("ORG/NAME"));
        for name in ["../a.json", "/a.json", "a/../../b", "", "a\\..\\b"] {
            let file = PlaceArgs { file_name: said(name), ..PlaceArgs::default() };
            assert!(refused(NamedSet::Alpaca, file).contains("in the folder"), "{name}");
        }
    }
}
