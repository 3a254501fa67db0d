//! The chat templates of a model, and which part of a conversation's text the assistant says.
//!
//! Where the template marks it by `{% generation %}`, that is the part. Otherwise the text before an assistant's turn is
//! what the template makes of the messages before it with the generation prompt, and the text up to its end is what
//! it makes of the messages so far: both must be prefixes of the whole. Some templates rewrite earlier turns (they
//! drop the thinking of all but the last, say), so that a prefix is none. Then the turn is found by what changes in
//! the whole text when its content is another: that gives the content to the byte, and the end-of-turn token is the
//! stop token behind it. Where that fails too, because the turn is a tool call, it ends with the last stop token before
//! the content of the next message.

use std::collections::BTreeMap;
use std::ops::Range;

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::{Map, Value as Json};

use super::DataError;
use super::conversation::Conversation;
use super::template::Template;

/// The chat templates of a model folder as they are written there.
#[derive(Debug, Clone, Default)]
pub(super) struct ChatSources {
    /// Name and text; one alone is `default`.
    pub(super) named: Vec<(String, String)>,
    /// The file that they are from.
    pub(super) origin: String,
    pub(super) special_tokens: BTreeMap<String, String>,
}

impl ChatSources {
    /// The template of this name, if there is one.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, source)| source.as_str())
    }
}

/// The template for conversations, and the one for those with tools, where the model keeps them apart.
pub struct ChatTemplate {
    usual: Template,
    with_tools: Option<Template>,
}

/// A conversation as text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RenderedChat {
    pub(super) text: String,
    pub(super) turns: Vec<TurnSpan>,
}

/// Bytes of the text that one assistant's turn is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TurnSpan {
    pub(super) range: Range<usize>,
    /// Which message it is, counted from 0.
    pub(super) message: usize,
    pub(super) end: TurnEnd,
    pub(super) trained: bool,
}

/// Where the end-of-turn token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnEnd {
    /// Where the template's author said: the range is to be taken as it is.
    Marked,
    /// In the range, perhaps with blanks behind it.
    Included,
    /// Behind the range, which is the content alone: a stop token, or the special tokens before this byte, up to which
    /// the text is as at the end of a conversation.
    Follows(usize),
    /// The last stop token of the range, which goes on into the next message.
    LastStop,
}

impl ChatTemplate {
    /// Compiles the model's templates; `None` where it has none.
    ///
    /// # Errors
    /// A template that is not Jinja; several, of which none is the default.
    pub(super) fn of_model(sources: &ChatSources) -> Result<Option<Self>, DataError> {
        if sources.named.is_empty() {
            return Ok(None);
        }
        let compile = |name: &str, source: &str| {
            let origin = match sources.named.len() {
                1 => sources.origin.clone(),
                _ => format!("{} ({name})", sources.origin),
            };
            Template::new(origin, source, &sources.special_tokens)
        };
        let usual = sources.get("default").ok_or_else(|| DataError::NoDefaultTemplate {
            origin: sources.origin.clone(),
            names: sources.named.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let with_tools = sources.get("tool_use").map(|source| compile("tool_use", source)).transpose()?;
        Ok(Some(Self { usual: compile("default", usual)?, with_tools }))
    }

    /// One template for every conversation.
    pub(super) fn single(template: Template) -> Self {
        Self { usual: template, with_tools: None }
    }

    pub(super) fn template(&self) -> &Template {
        &self.usual
    }

    /// Whether the text may depend on the day.
    pub(super) fn tells_time(&self) -> bool {
        self.usual.tells_time() || self.with_tools.as_ref().is_some_and(Template::tells_time)
    }

    /// Where the template comes from.
    pub fn origin(&self) -> &str {
        self.usual.origin()
    }

    /// The text of a conversation, as transformers' `apply_chat_template` gives it.
    ///
    /// # Errors
    /// What the template raises or fails at, in words.
    pub fn text(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String, String> {
        let chat = self.prepare(conversation);
        chat.render(&chat.messages, add_generation_prompt).map(|rendered| rendered.text)
    }

    /// The text of a conversation and the assistant's turns in it.
    pub(super) fn render(&self, conversation: &Conversation) -> Result<RenderedChat, String> {
        let chat = self.prepare(conversation);
        let whole = chat.render(&chat.messages, false)?;
        if chat.template.marks_generation() {
            let messages = conversation.messages.iter().zip(&conversation.trained);
            let trained = messages.filter(|(message, _)| is_assistant(message)).map(|(_, &trained)| trained);
            return Ok(RenderedChat::marked(whole.text, whole.generated, &trained.collect::<Vec<_>>()));
        }
        let text = whole.text;
        let mut turns = Vec::new();
        for (i, message) in conversation.messages.iter().enumerate() {
            if is_assistant(message) {
                let after = turns.last().map_or(0, |turn: &TurnSpan| turn.range.end);
                let (range, end) = chat.turn(&text, i, after, conversation)?;
                turns.push(TurnSpan { range, message: i, end, trained: conversation.trained[i] });
            }
        }
        Ok(RenderedChat { text, turns })
    }

    fn prepare(&self, conversation: &Conversation) -> Chat<'_> {
        let template = match (&self.with_tools, &conversation.tools) {
            (Some(template), Some(_)) => template,
            _ => &self.usual,
        };
        Chat {
            template,
            messages: conversation
                .messages
                .iter()
                .map(|message| Value::from(Serde(aliased(message))))
                .collect(),
            tools: conversation.tools.as_ref().map(|tools| Value::from(Serde(tools))),
        }
    }
}

/// A conversation as the template's variables.
struct Chat<'t> {
    template: &'t Template,
    messages: Vec<Value>,
    tools: Option<Value>,
}

impl Chat<'_> {
    fn render(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
    ) -> Result<super::template::Rendered, String> {
        let none = || Value::from(());
        self.template.render([
            ("messages".to_owned(), Value::from(messages.to_vec())),
            ("tools".to_owned(), self.tools.clone().unwrap_or_else(none)),
            ("documents".to_owned(), none()),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
        ])
    }

    /// The bytes of message `i` in `text`, not before `after`, and where its end is.
    fn turn(
        &self,
        text: &str,
        i: usize,
        after: usize,
        conversation: &Conversation,
    ) -> Result<(Range<usize>, TurnEnd), String> {
        let last = i + 1 == self.messages.len();
        let start = self.start(text, i).filter(|&start| start >= after);
        // a template may refuse to render a part
        let until = if last { None } else { self.render(&self.messages[..=i], false).ok() };
        let shared = until.as_ref().map_or(0, |until| common_prefix(text, &until.text));
        let end = match until {
            _ if last => Some(text.len()),
            Some(until) if shared == until.text.len() => Some(shared),
            _ => None,
        };
        if let (Some(start), Some(end)) = (start, end)
            && start <= end
        {
            return Ok((start..end, TurnEnd::Included));
        }
        let content = self.content(text, i, conversation);
        let next = || self.content(text, i + 1, conversation).map(|next| next.start);
        match (start, content, end) {
            (start, Some(content), end) => {
                let start = start.filter(|&start| start <= content.start).unwrap_or(content.start);
                Ok(match end.filter(|&end| end >= content.end) {
                    Some(end) => (start..end, TurnEnd::Included),
                    None => (start..content.end, TurnEnd::Follows(shared)),
                })
            }
            (Some(start), None, None) => match next().filter(|&next| next > start) {
                Some(next) => Ok((start..next, TurnEnd::LastStop)),
                None => Err(unknown_turn(self.template.origin(), i)),
            },
            _ => Err(unknown_turn(self.template.origin(), i)),
        }
    }

    /// Where message `i` begins: behind the text of those before it and what the generation prompt shares with it.
    fn start(&self, text: &str, i: usize) -> Option<usize> {
        if i == 0 {
            return None;
        }
        let prompt = self.render(&self.messages[..i], true).ok()?.text;
        if text.starts_with(&prompt) {
            return Some(prompt.len());
        }
        // a prompt that opens a thought, say, where the message has none
        let before = self.render(&self.messages[..i], false).ok()?.text;
        text.starts_with(&before).then(|| common_prefix(text, &prompt))
    }

    /// The bytes of the content of message `i` in `text`: what changes where the content is another.
    fn content(&self, text: &str, i: usize, conversation: &Conversation) -> Option<Range<usize>> {
        // noncharacters, so that no character of the text is the first or last of the probe
        const PROBE: &str = "\u{fdd0}\u{fdd1}";
        let mut message = aliased(conversation.messages.get(i)?);
        match message.get_mut("content") {
            Some(content @ Json::String(_)) => *content = Json::from(PROBE),
            Some(content @ Json::Array(_)) => *content = serde_json::json!([{"type": "text", "text": PROBE}]),
            _ => return None,
        }
        let mut messages = self.messages.clone();
        messages[i] = Value::from(Serde(message));
        let other = self.render(&messages, false).ok()?.text;
        let start = common_prefix(text, &other);
        let rest = text[start..].chars().rev().zip(other[start..].chars().rev());
        let behind: usize = rest.take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
        (&other[start..other.len() - behind] == PROBE).then_some(start..text.len() - behind)
    }
}

/// What to say of a turn that is not found.
pub(super) fn unknown_turn(origin: &str, message: usize) -> String {
    format!(
        "{origin} rewrites earlier messages, so it cannot be told which part of the text is message {message} (counted \
         from 0), the assistant's: mark that in the template by {{% generation %}} and {{% endgeneration %}} \
         (--prompt_template FILE), or take the loss on the whole text (--data.mask_prompt false)"
    )
}

/// Bytes that both begin with.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

impl RenderedChat {
    /// A text with the turns that the template itself marks. `trained` has one entry per turn, or none.
    pub(super) fn marked(text: String, generated: Vec<Range<usize>>, trained: &[bool]) -> Self {
        let one_each = trained.len() == generated.len();
        let turn = |(i, range): (usize, Range<usize>)| TurnSpan {
            range,
            message: i,
            end: TurnEnd::Marked,
            trained: !one_each || trained[i],
        };
        Self { text, turns: generated.into_iter().enumerate().map(turn).collect() }
    }

    /// A text that is learned as a whole.
    pub(super) fn whole(text: String) -> Self {
        let all = 0..text.len();
        Self { text, turns: vec![TurnSpan { range: all, message: 0, end: TurnEnd::Included, trained: true }] }
    }
}

fn is_assistant(message: &Map<String, Json>) -> bool {
    matches!(message.get("role").and_then(Json::as_str), Some("assistant" | "model"))
}

/// A message with its reasoning under every name that templates read, as transformers gives it.
fn aliased(message: &Map<String, Json>) -> Map<String, Json> {
    let reasoning =
        ["reasoning_content", "thinking", "reasoning"].iter().find_map(|key| message.get(*key)).cloned();
    let mut message = message.clone();
    if let Some(reasoning) = reasoning {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
    message
}
