//! How a record becomes the prompt that the model reads.
//!
//! The named styles are LitGPT's to the byte (its Alpaca text ends in a newline, Stanford's does not). An adapter
//! answers well only to the prompt that it was trained with, so a style that has been released must never change.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::DataError;
use super::styles::{NAMED_STYLES, NamedStyle};

/// The text around an instruction and its input.
#[derive(Debug, Clone, Copy, Default)]
pub enum PromptStyle {
    /// What the rows ask for: Alpaca's text for instructions, the model's own chat template for conversations,
    /// nothing around prompts with completions.
    #[default]
    Auto,
    /// "Below is an instruction that describes a task. …", ending in `### Response:` and a newline.
    Alpaca,
    /// The instruction alone; the input, if there is one, on the next line.
    None,
    /// The model's own chat template, with the instruction as the user's message.
    Chat,
    /// The prompt that a model family was tuned with.
    Named(&'static NamedStyle),
}

impl PromptStyle {
    /// The prompt for one record, but for [`Self::Chat`], whose text is the model's: this gives what [`Self::None`]
    /// does. An empty `input` counts as none.
    pub fn prompt(&self, instruction: &str, input: Option<&str>) -> String {
        self.prompt_with(None, instruction, input)
    }

    /// The same with `system` in the place of the style's own system text, where it has one.
    pub fn prompt_with(&self, system: Option<&str>, instruction: &str, input: Option<&str>) -> String {
        let input = input.filter(|text| !text.is_empty());
        let system = system.filter(|text| !text.is_empty());
        match (self, input) {
            (Self::Auto | Self::Alpaca, None) => format!(
                "{}### Instruction:\n{instruction}\n\n### Response:\n",
                system.unwrap_or(
                    "Below is an instruction that describes a task. Write a response that appropriately completes \
                     the request.\n\n"
                )
            ),
            (Self::Auto | Self::Alpaca, Some(input)) => format!(
                "{}### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
                system.unwrap_or(
                    "Below is an instruction that describes a task, paired with an input that provides further \
                     context. Write a response that appropriately completes the request.\n\n"
                )
            ),
            (Self::None | Self::Chat, _) => question(instruction, input),
            (Self::Named(style), _) => style.prompt(system, &question(instruction, input)),
        }
    }
}

/// Instruction and input as one text.
pub(super) fn question(instruction: &str, input: Option<&str>) -> String {
    match input {
        None => instruction.to_owned(),
        Some(input) => format!("{instruction}\n{input}"),
    }
}

impl PartialEq for PromptStyle {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for PromptStyle {}

impl PromptStyle {
    fn name(&self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Alpaca => "alpaca",
            Self::None => "none",
            Self::Chat => "chat",
            Self::Named(style) => style.name,
        }
    }

    /// The text of a model family's style around what is asked.
    pub(super) fn template(&self) -> Option<&'static str> {
        match self {
            Self::Named(style) => Some(style.template),
            _ => None,
        }
    }

    /// Every name, those of model families last.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ["auto", "alpaca", "none", "chat"].into_iter().chain(NAMED_STYLES.iter().map(|style| style.name))
    }
}

impl fmt::Display for PromptStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PromptStyle {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        Ok(match name {
            "auto" => Self::Auto,
            "alpaca" => Self::Alpaca,
            "none" => Self::None,
            "chat" => Self::Chat,
            _ => {
                let style = NAMED_STYLES.iter().find(|style| style.name == name);
                Self::Named(style.ok_or_else(|| DataError::UnknownPromptStyle { name: name.to_owned() })?)
            }
        })
    }
}

impl Serialize for PromptStyle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for PromptStyle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_their_own() {
        let mut seen = Vec::new();
        for name in PromptStyle::names() {
            assert_eq!(name.parse::<PromptStyle>().unwrap().to_string(), name);
            assert!(!seen.contains(&name), "{name}");
            seen.push(name);
        }
        let message = "alpacca".parse::<PromptStyle>().unwrap_err().to_string();
        assert!(
            message.starts_with("unknown prompt style \"alpacca\": known are auto, alpaca, none, chat, ")
        );
    }

    #[test]
    fn empty_input_is_no_input() {
        for style in PromptStyle::names().map(|name| name.parse::<PromptStyle>().unwrap()) {
            assert_eq!(style.prompt("Do", Some("")), style.prompt("Do", None));
            assert!(style.prompt("Do", Some("it!")).contains("it!"), "{style}");
        }
        assert_eq!(PromptStyle::None.prompt("Do", Some("it")), "Do\nit");
        assert!(PromptStyle::Alpaca.prompt("Do", Some(" ")).contains("### Input:\n \n"));
    }
}
