//! A row as token ids with its labels.
//!
//! Prompt and answer are tokenised together, because a tokenizer may merge across the border and the model sees one
//! text when it generates. As many labels are masked as the prompt alone (with its BOS) has tokens; exactly one EOS
//! ends the answer. In a conversation the labels are the assistant's turns with the token that ends each. What exceeds
//! the maximum length is cut from the end, EOS included, so that an answer loses its end before its start.

use std::ops::Range;

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::{Map, Value as Json};

use super::chat::{ChatTemplate, RenderedChat, TurnEnd, TurnSpan, unknown_turn};
use super::chat_styles::{chat_style, chat_style_names};
use super::conversation::Conversation;
use super::parallel::parallel_map;
use super::prompt::question;
use super::template::{Rendered, RowKeys, Template};
use super::tokenizer::Encoded;
use super::{DataError, PromptStyle, Record, Row, Sample, Tokenizer};

/// How rows become samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleOptions {
    pub style: PromptStyle,
    /// Take the loss on the answer alone.
    pub mask_prompt: bool,
    /// Tokens after which a sample is cut; `None` keeps it whole.
    pub max_seq_length: Option<usize>,
}

impl Default for SampleOptions {
    fn default() -> Self {
        Self { style: PromptStyle::Auto, mask_prompt: true, max_seq_length: None }
    }
}

impl SampleOptions {
    pub(super) fn check(&self) -> Result<(), DataError> {
        match self.max_seq_length {
            Some(value @ 0..=1) => Err(DataError::MaxSeqLength { value }),
            _ => Ok(()),
        }
    }
}

/// Tokenises records on all cores and keeps their order.
///
/// # Errors
/// A maximum length below 2; a text that the tokenizer refuses, with the index of its record.
pub fn tokenize_records(
    records: &[Record],
    tokenizer: &Tokenizer,
    options: &SampleOptions,
) -> Result<Vec<Sample>, DataError> {
    options.check()?;
    let encoder = Encoder::new(tokenizer, *options, None)?;
    let indexed: Vec<(usize, &Record)> = records.iter().enumerate().collect();
    let samples = parallel_map(&indexed, None, |&(index, record)| {
        let tokenized = encoder.instruction(record);
        let failed = |reason| DataError::Tokenize { index, reason };
        tokenized.map(|tokenized| encoder.cut(tokenized).sample).map_err(failed)
    });
    samples.into_iter().collect()
}

/// A sample and what truncation hides of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tokenized {
    pub(super) sample: Sample,
    /// Tokens before truncation.
    pub(super) full_length: usize,
    /// Tokens before the first label, before truncation; 0 where prompts are not masked.
    pub(super) prompt_length: usize,
}

impl Tokenized {
    fn new(sample: Sample, prompt_length: usize) -> Self {
        Self { full_length: sample.tokens.len(), prompt_length, sample }
    }
}

/// Turns rows into tokens: tokenizer, prompts and templates together.
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    options: SampleOptions,
    /// Of the user's own, over the keys of a row or over a conversation.
    own: Option<ChatTemplate>,
    chat: Chat,
}

/// What conversations are written with.
enum Chat {
    /// The model's template; it decides about BOS, as in transformers.
    Model(ChatTemplate),
    /// A style for conversations; BOS is as for every text.
    Style(ChatTemplate),
    /// What to say of a conversation.
    None(String),
}

impl<'t> Encoder<'t> {
    /// `own` is a Jinja template of the user's own (origin, text), which then writes every row.
    ///
    /// # Errors
    /// A template that cannot be read.
    pub fn new(
        tokenizer: &'t Tokenizer,
        options: SampleOptions,
        own: Option<(&str, &str)>,
    ) -> Result<Self, DataError> {
        let tokens = &tokenizer.chat_sources().special_tokens;
        let own = match own {
            Some((origin, source)) => Some(ChatTemplate::single(Template::new(origin, source, tokens)?)),
            None => None,
        };
        let chat = match options.style {
            PromptStyle::Auto | PromptStyle::Chat => match tokenizer.chat_template() {
                Ok(Some(template)) => Chat::Model(template),
                Ok(None) => Chat::None(format!(
                    "the model has no chat template (none in {}): choose the text of conversations by \
                     --prompt_style {} or --prompt_template FILE, or fine-tune the model's Instruct version",
                    tokenizer.chat_sources().origin,
                    chat_style_names().collect::<Vec<_>>().join("|"),
                )),
                // a broken template is no matter where no row needs it
                Err(error) if options.style == PromptStyle::Auto => Chat::None(error.to_string()),
                Err(error) => return Err(error),
            },
            style => match chat_style(&style.to_string()) {
                Some(source) => {
                    let origin = format!("the prompt style {style}");
                    Chat::Style(ChatTemplate::single(Template::new(origin, source, tokens)?))
                }
                None => Chat::None(format!(
                    "the prompt style {style} is for single instructions; for conversations there are auto (the \
                     model's own template), {}",
                    chat_style_names().collect::<Vec<_>>().join(", ")
                )),
            },
        };
        if let (PromptStyle::Chat, Chat::None(reason), None) = (options.style, &chat, &own) {
            return Err(DataError::NoChatTemplate { reason: reason.clone() });
        }
        Ok(Self { tokenizer, options, own, chat })
    }

    /// Whether a template of the user's own writes the rows.
    pub(super) fn has_own_template(&self) -> bool {
        self.own.is_some()
    }

    /// Whether the tokens depend on the day: a template asks for the date.
    pub(super) fn tells_time(&self) -> bool {
        let chat = match &self.chat {
            Chat::Model(template) | Chat::Style(template) => Some(template),
            Chat::None(_) => None,
        };
        [self.own.as_ref(), chat].into_iter().flatten().any(ChatTemplate::tells_time)
    }

    /// The ids of a prompt that waits for its answer, as a model that was tuned with these options expects it.
    ///
    /// # Errors
    /// The tokenizer or a template refuses it.
    pub fn prompt(&self, instruction: &str, input: Option<&str>) -> Result<Vec<u32>, DataError> {
        let refused = |reason| DataError::NoChatTemplate { reason };
        match (self.options.style, &self.chat) {
            (PromptStyle::Chat, Chat::Model(template)) => {
                let conversation = Conversation::single(None, &question(instruction, input), None);
                self.tokenizer.encode_plain(&template.text(&conversation, true).map_err(refused)?)
            }
            (style, _) => self.tokenizer.encode(&style.prompt(instruction, input)),
        }
    }

    /// The ids of a conversation whose next turn is the assistant's, as a model that was tuned with these options expects
    /// it.
    ///
    /// # Errors
    /// There is no template for conversations, or it or the tokenizer refuses this one.
    pub fn talk(&self, conversation: &Conversation) -> Result<Vec<u32>, DataError> {
        let refused = |reason| DataError::NoChatTemplate { reason };
        let (template, with_bos) = self.template().map_err(refused)?;
        let text = template.text(conversation, true).map_err(refused)?;
        if with_bos { self.tokenizer.encode(&text) } else { self.tokenizer.encode_plain(&text) }
    }

    /// What the user's own template reads of a row, where there is such a template.
    pub(super) fn row_keys(&self) -> Option<RowKeys> {
        self.own.as_ref().map(|own| own.template().row_keys())
    }

    /// The ids of a row under the user's own template, up to its answer.
    ///
    /// # Errors
    /// There is no such template, or it or the tokenizer refuses the row.
    pub(super) fn row_prompt(&self, fields: &Map<String, Json>) -> Result<Vec<u32>, DataError> {
        let rendered = self.rendered(fields).map_err(|reason| DataError::NoChatTemplate { reason })?;
        let end = rendered.generated.first().map_or(rendered.text.len(), |answer| answer.start);
        self.tokenizer.encode(&rendered.text[..end])
    }

    /// The special token that ends an assistant's turn, where the template has one: a stop token for generation, which
    /// `generation_config.json` need not name.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.end_of(&self.conversation(&Conversation::single(None, "Hi", Some("Hello"))).ok()?)
    }

    /// The same of a row under the user's own template.
    pub(super) fn end_of_row(&self, fields: &Map<String, Json>) -> Option<u32> {
        self.end_of(&self.fields(fields).ok()?)
    }

    fn end_of(&self, tokenized: &Tokenized) -> Option<u32> {
        let last = tokenized.sample.spans().last()?.end.checked_sub(1)?;
        let token = *tokenized.sample.tokens.get(last as usize)?;
        self.tokenizer.is_special(token).then_some(token)
    }

    /// One row as a sample, cut to the maximum length.
    ///
    /// # Errors
    /// What the tokenizer or the template says, in words.
    pub(super) fn row(&self, row: &Row) -> Result<Tokenized, String> {
        let tokenized = match row {
            Row::Instruction(record) => self.instruction(record),
            Row::Completion { prompt, completion } => match self.options.style {
                PromptStyle::Auto | PromptStyle::None => self.answer(prompt.clone(), completion),
                PromptStyle::Chat => self.conversation(&Conversation::single(None, prompt, Some(completion))),
                style => self.answer(style.prompt(prompt, None), completion),
            },
            Row::Text(text) => self.whole(text),
            Row::Conversation(conversation) => self.conversation(conversation),
            Row::Fields(fields) => self.fields(fields),
        }?;
        Ok(self.cut(tokenized))
    }

    fn cut(&self, mut tokenized: Tokenized) -> Tokenized {
        if let Some(length) = self.options.max_seq_length {
            tokenized.sample.truncate(length);
        }
        tokenized
    }

    fn instruction(&self, record: &Record) -> Result<Tokenized, String> {
        let (instruction, input, system) =
            (&record.instruction, record.input.as_deref(), record.system.as_deref());
        match self.options.style {
            PromptStyle::Chat => {
                let question = question(instruction, input);
                self.conversation(&Conversation::single(system, &question, Some(&record.output)))
            }
            style => self.answer(style.prompt_with(system, instruction, input), &record.output),
        }
    }

    /// A prompt and its answer as one text.
    fn answer(&self, prompt: String, answer: &str) -> Result<Tokenized, String> {
        let encode = |text: &str| self.tokenizer.encode(text).map_err(|error| error.to_string());
        let prompt_length = if self.options.mask_prompt { encode(&prompt)?.len() } else { 0 };
        let mut text = prompt;
        text.push_str(answer);
        let mut tokens = encode(&text)?;
        self.end(&mut tokens, prompt_length);
        Ok(Tokenized::new(Sample::new(tokens, prompt_length), prompt_length))
    }

    fn whole(&self, text: &str) -> Result<Tokenized, String> {
        let mut tokens = self.tokenizer.encode(text).map_err(|error| error.to_string())?;
        self.end(&mut tokens, 0);
        Ok(Tokenized::new(Sample::new(tokens, 0), 0))
    }

    /// Exactly one EOS: an answer that ends in it already gets no second one; a prompt that ends in one keeps it.
    fn end(&self, tokens: &mut Vec<u32>, prompt_length: usize) {
        let eos = self.tokenizer.eos();
        while tokens.len() > prompt_length && tokens.last() == Some(&eos) {
            tokens.pop();
        }
        tokens.push(eos);
    }

    fn conversation(&self, conversation: &Conversation) -> Result<Tokenized, String> {
        let (template, with_bos) = self.template()?;
        let rendered = match self.options.mask_prompt {
            true => template.render(conversation)?,
            false => RenderedChat::whole(template.text(conversation, false)?),
        };
        self.turns(&rendered, with_bos, template.origin())
    }

    /// What writes conversations, and whether BOS goes before its text as before every other.
    fn template(&self) -> Result<(&ChatTemplate, bool), String> {
        match (&self.own, &self.chat) {
            (Some(template), _) | (None, Chat::Model(template)) => Ok((template, false)),
            (None, Chat::Style(template)) => Ok((template, true)),
            (None, Chat::None(reason)) => Err(reason.clone()),
        }
    }

    /// A row under the user's own template: it marks the answer by `{% generation %}`, or writes the prompt alone.
    fn fields(&self, fields: &Map<String, Json>) -> Result<Tokenized, String> {
        let (own, rendered) = (self.own_template()?, self.rendered(fields)?);
        if own.marks_generation() {
            let rendered = match self.options.mask_prompt {
                true => RenderedChat::marked(rendered.text, rendered.generated, &[]),
                false => RenderedChat::whole(rendered.text),
            };
            return self.turns(&rendered, true, own.origin());
        }
        let answer = ANSWERS.iter().find_map(|key| fields.get(*key));
        match answer {
            Some(Json::String(answer)) => self.answer(rendered.text, answer),
            _ => Err(format!(
                "{} writes the prompt, but the record has no text under {} for the answer: name it so, or mark the \
                 answer in the template by {{% generation %}} and {{% endgeneration %}}",
                own.origin(),
                ANSWERS.join(", ")
            )),
        }
    }

    fn own_template(&self) -> Result<&Template, String> {
        let own = self.own.as_ref().ok_or("a row of no known format needs a prompt template")?;
        Ok(own.template())
    }

    fn rendered(&self, fields: &Map<String, Json>) -> Result<Rendered, String> {
        self.own_template()?
            .render(fields.iter().map(|(key, value)| (key.clone(), Value::from(Serde(value)))))
    }

    /// A text whose labels are the assistant's turns.
    fn turns(&self, rendered: &RenderedChat, with_bos: bool, origin: &str) -> Result<Tokenized, String> {
        let text = &rendered.text;
        let encoded = self.tokenizer.encode_with_bytes(text).map_err(|error| error.to_string())?;
        let mut spans: Vec<Range<usize>> = Vec::new();
        let mut open = false;
        for turn in &rendered.turns {
            let unknown = || unknown_turn(origin, turn.message);
            let span = self.span(text, &encoded, turn).ok_or_else(unknown)?;
            open = span.end == encoded.tokens.len() && !encoded.ends_special(span.end, self.tokenizer);
            if turn.trained {
                spans.push(span);
            }
        }
        let mut tokens = encoded.tokens;
        if open {
            tokens.push(self.tokenizer.eos());
            if let Some(last) = spans.last_mut().filter(|last| last.end + 1 == tokens.len()) {
                last.end += 1;
            }
        }
        let prefix = self.tokenizer.prefix();
        if with_bos && !tokens.starts_with(prefix) {
            tokens.splice(0..0, prefix.iter().copied());
            spans.iter_mut().for_each(|span| *span = span.start + prefix.len()..span.end + prefix.len());
        }
        let prompt_length = match self.options.mask_prompt {
            true => spans.first().map_or(tokens.len(), |span| span.start),
            false => 0,
        };
        Ok(Tokenized::new(Sample::with_spans(tokens, spans), prompt_length))
    }

    /// The tokens of a turn; `None` where it has no end.
    fn span(&self, text: &str, encoded: &Encoded, turn: &TurnSpan) -> Option<Range<usize>> {
        let Range { start, end } = turn.range;
        let blank = |token: usize| text[encoded.bytes[token].clone()].trim().is_empty();
        let first = encoded.bytes.partition_point(|bytes| bytes.end <= start);
        let mut last = match start < end {
            true => encoded.bytes.partition_point(|bytes| bytes.start < end).max(first),
            false => first,
        };
        match turn.end {
            TurnEnd::Marked => {}
            // what a template prints after the end of a turn, a newline, the model never writes
            TurnEnd::Included => {
                let special =
                    (first..last).rev().find(|&token| self.tokenizer.is_special(encoded.tokens[token]));
                if let Some(special) = special
                    && (special + 1..last).all(blank)
                {
                    last = special + 1;
                }
            }
            TurnEnd::Follows(shared) => {
                let special = |token: &usize| self.tokenizer.is_special(encoded.tokens[*token]);
                let next = (last..encoded.tokens.len()).find(|&token| !blank(token));
                let stop = next.filter(|&next| self.tokenizer.stop_tokens().contains(&encoded.tokens[next]));
                let behind = encoded.bytes.partition_point(|bytes| bytes.end <= shared);
                let end = stop.or_else(|| (last..behind).rev().find(special));
                last = end.map_or(last, |end| end + 1);
            }
            TurnEnd::LastStop => {
                let stop = |token: &usize| self.tokenizer.stop_tokens().contains(&encoded.tokens[*token]);
                last = (first..last).rev().find(stop)? + 1;
            }
        }
        Some(first..last)
    }
}

/// Keys under which the answer of a row is looked for where a template of the user's own writes the prompt.
const ANSWERS: [&str; 4] = ["output", "completion", "response", "answer"];

impl Encoded {
    fn ends_special(&self, end: usize, tokenizer: &Tokenizer) -> bool {
        end.checked_sub(1).is_some_and(|last| tokenizer.is_special(self.tokens[last]))
    }
}
