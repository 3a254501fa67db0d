//! What the rows of a file are: recognised by the keys of its first row, or said.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::DataError;

/// The keys that rows are read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `instruction`, perhaps `input`, `output`; perhaps `system`.
    Alpaca,
    /// `prompt`, `completion`.
    PromptCompletion,
    /// `text`: every token is learned.
    Text,
    /// `messages` of `role` and `content`.
    Chat,
    /// `conversations` of `from` and `value`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
}

impl Format {
    pub const ALL: [Self; 5] = [Self::Alpaca, Self::PromptCompletion, Self::Text, Self::Chat, Self::ShareGpt];

    /// The format that a row's keys speak for.
    pub fn detect(row: &Map<String, Value>) -> Option<Self> {
        if let Some(messages) = row.get("messages").or(row.get("conversations")) {
            // tables and Parquet files often hold conversations as JSON text
            let turns = match messages {
                Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
                other => other.clone(),
            };
            let share =
                turns.get(0).map_or(row.contains_key("conversations"), |turn| turn.get("from").is_some());
            return Some(if share { Self::ShareGpt } else { Self::Chat });
        }
        let has = |key| row.contains_key(key);
        if has("instruction") {
            Some(Self::Alpaca)
        } else if has("prompt") {
            Some(Self::PromptCompletion)
        } else if has("text") {
            Some(Self::Text)
        } else {
            None
        }
    }

    /// Whether a row has the keys that it must have.
    pub(super) fn reads(self, row: &Map<String, Value>) -> bool {
        let has = |key: &&str| row.contains_key(*key);
        match self {
            Self::Alpaca => ["instruction", "output"].iter().all(has),
            Self::PromptCompletion => ["prompt", "completion"].iter().all(has),
            Self::Text => has(&"text"),
            Self::Chat | Self::ShareGpt => ["messages", "conversations"].iter().any(has),
        }
    }

    pub(super) fn is_chat(self) -> bool {
        matches!(self, Self::Chat | Self::ShareGpt)
    }

    /// The keys that a row must have, as messages say it.
    pub(super) fn needs(self) -> &'static str {
        match self {
            Self::Alpaca => "`instruction` and `output`",
            Self::PromptCompletion => "`prompt` and `completion`",
            Self::Text => "`text`",
            Self::Chat => "`messages`",
            Self::ShareGpt => "`conversations`",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::PromptCompletion => "prompt-completion",
            Self::Text => "text",
            Self::Chat => "chat",
            Self::ShareGpt => "sharegpt",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        let known = Self::ALL.into_iter().find(|format| format.name() == name);
        known.ok_or_else(|| DataError::UnknownFormat { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_text_and_serde() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
            let json = serde_json::to_string(&format).unwrap();
            assert_eq!(json, format!("\"{format}\""));
            assert_eq!(serde_json::from_str::<Format>(&json).unwrap(), format);
        }
        assert!("xml".parse::<Format>().unwrap_err().to_string().contains("sharegpt"));
    }

    #[test]
    fn keys_speak_for_a_format() {
        for (row, expected) in [
            (r#"{"instruction": "a", "output": "b", "text": "c", "prompt": "d"}"#, Some(Format::Alpaca)),
            (r#"{"prompt": "a", "completion": "b", "text": "c"}"#, Some(Format::PromptCompletion)),
            (r#"{"text": "a", "id": 3}"#, Some(Format::Text)),
            (r#"{"messages": [{"role": "user", "content": "a"}], "prompt": "a"}"#, Some(Format::Chat)),
            (r#"{"messages": [{"from": "human", "value": "a"}]}"#, Some(Format::ShareGpt)),
            (r#"{"conversations": [{"from": "human", "value": "a"}]}"#, Some(Format::ShareGpt)),
            (r#"{"conversations": [{"role": "user", "content": "a"}]}"#, Some(Format::Chat)),
            (r#"{"messages": "[{\"from\": \"human\", \"value\": \"a\"}]"}"#, Some(Format::ShareGpt)),
            (r#"{"messages": []}"#, Some(Format::Chat)),
            (r#"{"conversations": null}"#, Some(Format::ShareGpt)),
            (r#"{"question": "a", "answer": "b"}"#, None),
            ("{}", None),
        ] {
            let row = serde_json::from_str(row).unwrap();
            assert_eq!(Format::detect(&row), expected, "{row:?}");
            assert!(expected.is_none_or(|format| format.reads(&row)), "{row:?}");
            assert_eq!(expected.is_none(), Format::ALL.iter().all(|format| !format.reads(&row)), "{row:?}");
        }
    }
}
