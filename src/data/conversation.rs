//! Conversations: `messages` of `role` and `content`, or ShareGPT's `conversations` of `from` and `value`.
//!
//! Either key may hold either kind of message. What a chat template does not look at is passed on untouched
//! (`tool_calls`, `name`, `reasoning_content`), but for keys that are null, which templates would print.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{DataError, Place};
use super::record::Cell;

/// A conversation as a chat template reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// Each with `role`, in the order of the talk; never empty.
    pub messages: Vec<Map<String, Value>>,
    /// Definitions of the tools that the assistant may call.
    pub tools: Option<Value>,
    /// Whether the loss is taken on each message.
    pub trained: Vec<bool>,
}

/// Roles under which templates know a speaker.
const ROLES: [&str; 13] = [
    "system",
    "developer",
    "user",
    "assistant",
    "model",
    "tool",
    "function",
    "ipython",
    "observation",
    "environment",
    "documents",
    "document",
    "context",
];

/// ShareGPT's speakers, and the roles that they have in templates.
const SPEAKERS: [(&str, &str); 13] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("assistant", "assistant"),
    ("bot", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_call", "assistant"),
];

impl Conversation {
    /// One question and its answer.
    pub fn single(system: Option<&str>, question: &str, answer: Option<&str>) -> Self {
        let system = system.map(|text| Self::message("system", text));
        let question = Self::message("user", question);
        let answer = answer.map(|text| Self::message("assistant", text));
        Self::of_messages(system.into_iter().chain([question]).chain(answer).collect())
    }

    /// What one speaker says.
    pub fn message(role: &str, text: &str) -> Map<String, Value> {
        Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), text.into())])
    }

    /// A conversation without tools, in which the assistant's turns are learned.
    pub fn of_messages(messages: Vec<Map<String, Value>>) -> Self {
        let trained = messages.iter().map(is_assistant).collect();
        Self { messages, tools: None, trained }
    }

    /// Checks a row that holds a conversation under `key`.
    pub(super) fn from_row(
        path: &Path,
        place: Place,
        mut row: Map<String, Value>,
        key: &'static str,
    ) -> Result<Self, DataError> {
        let cell = Cell { path, place };
        let messages = unpacked(row.remove(key).unwrap_or_default());
        let Value::Array(items) = messages else {
            return Err(cell.wrong_type(key, "an array of messages", &messages));
        };
        if items.is_empty() {
            return Err(cell.value(key, "is empty: a conversation has at least one message".to_owned()));
        }
        let (mut messages, mut trained) =
            (Vec::with_capacity(items.len() + 1), Vec::with_capacity(items.len() + 1));
        for (i, item) in items.into_iter().enumerate() {
            let (message, train) = message(&cell, &format!("{key}[{i}]"), item)?;
            messages.push(message);
            trained.push(train);
        }
        if let Some(Value::String(system)) = row.remove("system")
            && !system.is_empty()
            && messages[0].get("role").and_then(Value::as_str) != Some("system")
        {
            let first = [("role".to_owned(), "system".into()), ("content".to_owned(), system.into())];
            messages.insert(0, Map::from_iter(first));
            trained.insert(0, false);
        }
        let tools = match row.remove("tools").map(unpacked) {
            None | Some(Value::Null) => None,
            Some(Value::Array(tools)) if tools.is_empty() => None,
            Some(Value::String(text)) if text.trim().is_empty() => None,
            Some(tools @ Value::Array(_)) => Some(tools),
            Some(other) => return Err(cell.wrong_type("tools", "an array of tool definitions", &other)),
        };
        Ok(Self { messages, tools, trained })
    }
}

/// Tables and Parquet files often hold lists as JSON text.
fn unpacked(value: Value) -> Value {
    match value {
        Value::String(text) if text.trim_start().starts_with('[') => {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        }
        other => other,
    }
}

/// The message with `role` and `content`, and whether the loss is taken on it.
fn message(cell: &Cell<'_>, at: &str, item: Value) -> Result<(Map<String, Value>, bool), DataError> {
    let Value::Object(mut given) = item else { return Err(cell.wrong_type(at, "an object", &item)) };
    given.retain(|_, value| !value.is_null());
    let share = given.contains_key("from") && !given.contains_key("role");
    let (role_key, content_key) = if share { ("from", "value") } else { ("role", "content") };
    let role = match given.remove(role_key) {
        Some(Value::String(role)) => role,
        Some(other) => return Err(cell.wrong_type(&format!("{at}.{role_key}"), "a string", &other)),
        None => return Err(cell.missing(&format!("{at}.{role_key}"), &given, "every message needs `role`")),
    };
    let role = if share { speaker(cell, at, &role)? } else { checked_role(cell, at, role)? };
    let content = given.remove(content_key);
    let acts = ["tool_calls", "function_call", "reasoning_content", "thinking"];
    match &content {
        Some(Value::String(_) | Value::Array(_)) => {}
        Some(other) => return Err(cell.wrong_type(&format!("{at}.{content_key}"), "a string", other)),
        None if acts.iter().any(|key| given.contains_key(*key)) => {}
        None => {
            let needs = "every message needs its text, or `tool_calls`";
            return Err(cell.missing(&format!("{at}.{content_key}"), &given, needs));
        }
    }
    let mut message = Map::from_iter([("role".to_owned(), Value::String(role))]);
    message.extend(content.map(|content| ("content".to_owned(), content)));
    let skipped = given.remove("train") == Some(Value::Bool(false))
        || given.remove("weight").is_some_and(|weight| weight.as_f64() == Some(0.0));
    message.extend(given);
    let trained = is_assistant(&message) && !skipped;
    Ok((message, trained))
}

fn checked_role(cell: &Cell<'_>, at: &str, role: String) -> Result<String, DataError> {
    if ROLES.contains(&role.as_str()) {
        return Ok(role);
    }
    let known = ROLES.join(", ");
    Err(cell.value(&format!("{at}.role"), format!("is {role:?}, which is no role: known are {known}")))
}

fn speaker(cell: &Cell<'_>, at: &str, name: &str) -> Result<String, DataError> {
    if let Some((_, role)) = SPEAKERS.iter().find(|(known, _)| *known == name) {
        return Ok((*role).to_owned());
    }
    let known = SPEAKERS.map(|(name, _)| name).join(", ");
    Err(cell.value(&format!("{at}.from"), format!("is {name:?}, which is no speaker: known are {known}")))
}

fn is_assistant(message: &Map<String, Value>) -> bool {
    matches!(message.get("role").and_then(Value::as_str), Some("assistant" | "model"))
}
