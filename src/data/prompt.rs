//! How a record becomes the prompt that the model reads.
//!
//! The Alpaca text is LitGPT's to the byte, whose last line ends in a newline (Stanford's does not). An
//! adapter answers well only to the prompt that it was trained with, so a style that has been released must
//! never change.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::DataError;

/// The text around an instruction and its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptStyle {
    /// "Below is an instruction that describes a task. …", ending in `### Response:` and a newline.
    #[default]
    Alpaca,
    /// The instruction alone; the input, if there is one, on the next line.
    None,
}

impl PromptStyle {
    /// The prompt for one record. An empty `input` counts as none.
    pub fn prompt(&self, instruction: &str, input: Option<&str>) -> String {
        let input = input.filter(|text| !text.is_empty());
        match (self, input) {
            (Self::Alpaca, None) => format!(
                "Below is an instruction that describes a task. Write a response that appropriately \
                 completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
            ),
            (Self::Alpaca, Some(input)) => format!(
                "Below is an instruction that describes a task, paired with an input that provides further \
                 context. Write a response that appropriately completes the request.\n\n### \
                 Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
            ),
            (Self::None, None) => instruction.to_owned(),
            (Self::None, Some(input)) => format!("{instruction}\n{input}"),
        }
    }
}

impl fmt::Display for PromptStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Alpaca => "alpaca",
            Self::None => "none",
        })
    }
}

impl FromStr for PromptStyle {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "alpaca" => Ok(Self::Alpaca),
            "none" => Ok(Self::None),
            _ => Err(DataError::UnknownPromptStyle { name: name.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_text_and_serde() {
        for style in [PromptStyle::Alpaca, PromptStyle::None] {
            assert_eq!(style.to_string().parse::<PromptStyle>().unwrap(), style);
            let json = serde_json::to_string(&style).unwrap();
            assert_eq!(json, format!("\"{style}\""));
            assert_eq!(serde_json::from_str::<PromptStyle>(&json).unwrap(), style);
        }
        assert_eq!(
            "chatml".parse::<PromptStyle>().unwrap_err().to_string(),
            "unknown prompt style \"chatml\": known are alpaca and none"
        );
    }

    #[test]
    fn empty_input_is_no_input() {
        for style in [PromptStyle::Alpaca, PromptStyle::None] {
            assert_eq!(style.prompt("Do", Some("")), style.prompt("Do", None));
        }
        assert_eq!(PromptStyle::None.prompt("Do", Some("it")), "Do\nit");
        assert!(PromptStyle::Alpaca.prompt("Do", Some(" ")).contains("### Input:\n \n"));
    }
}
