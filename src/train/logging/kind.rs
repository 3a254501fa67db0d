//! Which files a run logs to, by the words of `--logger_name`.

use crate::train::options::UnknownName;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A file that a run logs to. `metrics.jsonl` is written always, since `--resume` and the report read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LoggerKind {
    /// `metrics.jsonl`.
    Jsonl,
    /// `metrics.csv` beside it.
    Csv,
    /// An event file that TensorBoard reads.
    TensorBoard,
}

impl LoggerKind {
    pub const NAMES: [&'static str; 3] = ["jsonl", "csv", "tensorboard"];
}

impl fmt::Display for LoggerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(LoggerKind::NAMES[*self as usize])
    }
}

/// A logger that there is not.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum LoggerError {
    /// One of LitGPT's that sends the run's data to a server.
    #[error(
        "engraft never talks to the network during a run, and {given} does; take csv or tensorboard, whose files {given} can \
         import afterwards"
    )]
    Network { given: String },
    #[error(transparent)]
    Unknown(#[from] UnknownName),
}

impl FromStr for LoggerKind {
    type Err = LoggerError;

    fn from_str(word: &str) -> Result<Self, LoggerError> {
        match word.trim() {
            "jsonl" => Ok(LoggerKind::Jsonl),
            "csv" => Ok(LoggerKind::Csv),
            "tensorboard" => Ok(LoggerKind::TensorBoard),
            "wandb" | "mlflow" | "litlogger" => Err(LoggerError::Network { given: word.trim().into() }),
            _ => Err(UnknownName { given: word.into(), allowed: LoggerKind::NAMES.join(", ") }.into()),
        }
    }
}

impl TryFrom<String> for LoggerKind {
    type Error = LoggerError;

    fn try_from(word: String) -> Result<Self, LoggerError> {
        word.parse()
    }
}

impl From<LoggerKind> for String {
    fn from(kind: LoggerKind) -> Self {
        kind.to_string()
    }
}

/// Reads one word, several with commas between them, or a list: LitGPT's files have the first.
pub(crate) fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<LoggerKind>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        More(Vec<String>),
        None(()),
    }
    let words = match Words::deserialize(from)? {
        Words::One(word) => word.split(',').map(str::to_owned).collect(),
        Words::More(words) => words,
        Words::None(()) => Vec::new(),
    };
    words.iter().map(|word| word.parse().map_err(serde::de::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_both_ways_and_loggers_of_the_network_are_refused_with_the_reason() {
        for name in LoggerKind::NAMES {
            assert_eq!(name.parse::<LoggerKind>().unwrap().to_string(), name);
        }
        for name in ["wandb", "mlflow", "litlogger"] {
            let said = name.parse::<LoggerKind>().unwrap_err().to_string();
            assert!(said.contains("never talks to the network") && said.contains("tensorboard"), "{said}");
        }
        let said = "cvs".parse::<LoggerKind>().unwrap_err().to_string();
        assert_eq!(said, "\"cvs\" is none of jsonl, csv, tensorboard");
    }

    #[test]
    fn files_name_one_or_more() {
        #[derive(Deserialize)]
        struct Options {
            #[serde(deserialize_with = "one_or_more")]
            logger_name: Vec<LoggerKind>,
        }
        let read = |text: &str| serde_json::from_str::<Options>(text).map(|o| o.logger_name);
        assert_eq!(read(r#"{"logger_name": "csv"}"#).unwrap(), [LoggerKind::Csv]);
        let both = [LoggerKind::Csv, LoggerKind::TensorBoard];
        assert_eq!(read(r#"{"logger_name": "csv,tensorboard"}"#).unwrap(), both);
        assert_eq!(read(r#"{"logger_name": ["csv", "tensorboard"]}"#).unwrap(), both);
        assert_eq!(read(r#"{"logger_name": null}"#).unwrap(), []);
        assert!(read(r#"{"logger_name": "wandb"}"#).unwrap_err().to_string().contains("network"));
    }
}
