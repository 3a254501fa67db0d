//! What somebody asks, as the tokens that a model continues: in the form that its training gave to rows.

use serde_json::{Map, Value as Json};

use super::chat_styles::chat_style;
use super::conversation::Conversation;
use super::encode::Encoder;
use super::prompt::question;
use super::prompt_form::PromptForm;
use super::template::RowKeys;
use super::{DataError, PromptStyle, SampleOptions, Tokenizer};

/// Writes prompts in one form.
pub struct Prompter<'t> {
    tokenizer: &'t Tokenizer,
    encoder: Encoder<'t>,
    style: PromptStyle,
    way: Way,
    /// As messages name what writes the prompts.
    name: String,
}

/// What a prompt is.
enum Way {
    /// A conversation, written by a template for these.
    Conversation,
    /// An instruction in the style.
    Instruction,
    /// A row, whose keys a template of the user's own reads.
    Row(RowKeys),
}

impl<'t> Prompter<'t> {
    /// For single prompts. Where nobody knows the rows of the training, [`PromptStyle::Auto`] is the model's own chat template, or
    /// [`PromptStyle::Alpaca`] where it has none.
    ///
    /// # Errors
    /// A template that cannot be read, a model without the chat template that the form needs.
    pub fn of_prompts(tokenizer: &'t Tokenizer, form: &PromptForm) -> Result<Self, DataError> {
        Self::new(tokenizer, form, false)
    }

    /// For conversations, for which [`PromptStyle::Auto`] is the model's own template too where it has one. What was trained on single rows alone, in a form that has no
    /// conversations, is asked the last message by itself.
    ///
    /// # Errors
    /// Those of [`Self::of_prompts`].
    pub fn of_conversations(tokenizer: &'t Tokenizer, form: &PromptForm) -> Result<Self, DataError> {
        Self::new(tokenizer, form, true)
    }

    fn new(tokenizer: &'t Tokenizer, form: &PromptForm, talks: bool) -> Result<Self, DataError> {
        let mut rows = form.rows.first().copied();
        if talks {
            rows = form.rows.iter().copied().find(|format| format.is_chat()).or(rows);
        }
        let of_chats = rows.is_some_and(|format| format.is_chat());
        let style = match form.style_of(rows) {
            // the template writes everything
            _ if form.template.is_some() => PromptStyle::None,
            PromptStyle::Auto if (talks || rows.is_none()) && tokenizer.chat_template()?.is_some() => {
                PromptStyle::Chat
            }
            PromptStyle::Auto => PromptStyle::Alpaca,
            style => style,
        };
        let file = form.template.as_ref().map(|template| template.file.display().to_string());
        let own = form.template.as_ref().zip(file.as_deref());
        let own = own.map(|(template, file)| (file, template.text.as_str()));
        let options = SampleOptions { style, ..SampleOptions::default() };
        let encoder = Encoder::new(tokenizer, options, own)?;
        let way = match encoder.row_keys() {
            Some(_) if of_chats => Way::Conversation,
            Some(keys) if rows.is_none() && keys.prompt.iter().any(|key| key == "messages") => {
                Way::Conversation
            }
            Some(keys) => Way::Row(keys),
            None if of_chats || style == PromptStyle::Chat => Way::Conversation,
            None if talks && chat_style(&style.to_string()).is_some() => Way::Conversation,
            None => Way::Instruction,
        };
        let name =
            file.map_or_else(|| format!("prompt style {style}"), |file| format!("prompt template {file}"));
        Ok(Self { tokenizer, encoder, style, way, name })
    }

    /// What writes the prompts: never [`PromptStyle::Auto`], and [`PromptStyle::None`] where a template does.
    pub fn style(&self) -> PromptStyle {
        self.style
    }

    /// `prompt style NAME` or `prompt template FILE`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether earlier turns of a conversation are part of its prompts.
    pub fn remembers(&self) -> bool {
        matches!(self.way, Way::Conversation)
    }

    /// The ids of a prompt that waits for its answer.
    ///
    /// # Errors
    /// The tokenizer or a template refuses it; a template of rows that needs other keys.
    pub fn prompt(&self, text: &str, input: Option<&str>) -> Result<Vec<u32>, DataError> {
        self.ask(None, text, input.filter(|input| !input.is_empty()))
    }

    /// The ids of a conversation whose next turn is the assistant's.
    ///
    /// # Errors
    /// Those of [`Self::prompt`]; a conversation in which no user speaks, where these stand alone.
    pub fn talk(&self, conversation: &Conversation) -> Result<Vec<u32>, DataError> {
        if self.remembers() {
            return self.encoder.talk(conversation);
        }
        let last = |role: &str| {
            let mut messages = conversation.messages.iter().rev();
            messages.find(|message| message.get("role").is_some_and(|found| found == role))
        };
        let text = |message: &Map<String, Json>| message.get("content")?.as_str().map(str::to_owned);
        let asked =
            last("user").and_then(text).ok_or_else(|| DataError::NoQuestion { form: self.name.clone() })?;
        self.ask(last("system").and_then(text).as_deref(), &asked, None)
    }

    fn ask(&self, system: Option<&str>, text: &str, input: Option<&str>) -> Result<Vec<u32>, DataError> {
        match &self.way {
            Way::Conversation => {
                self.encoder.talk(&Conversation::single(system, &question(text, input), None))
            }
            Way::Instruction => self.tokenizer.encode(&self.style.prompt_with(system, text, input)),
            Way::Row(keys) => self.encoder.row_prompt(&self.row(keys, system, text, input)?),
        }
    }

    /// The row that is asked: the text itself where that is one, else the text under the only key that it can be.
    fn row(
        &self,
        keys: &RowKeys,
        system: Option<&str>,
        text: &str,
        input: Option<&str>,
    ) -> Result<Map<String, Json>, DataError> {
        let given = serde_json::from_str::<Map<String, Json>>(text).ok();
        let given = given.filter(|row| keys.prompt.iter().any(|key| row.contains_key(key)));
        let mut row = match given {
            Some(row) => row,
            None => {
                let beside = |key: &&String| !["input", "system"].contains(&key.as_str());
                let mut others = keys.prompt.iter().filter(beside);
                let (Some(key), None) = (others.next(), others.next()) else {
                    return Err(DataError::RowWanted { form: self.name.clone(), keys: keys.prompt.clone() });
                };
                let has_input = keys.prompt.iter().any(|key| key == "input");
                let asked = if has_input { text.to_owned() } else { question(text, input) };
                Map::from_iter([(key.clone(), asked.into())])
            }
        };
        for (key, value) in [("input", input), ("system", system)] {
            if let Some(value) = value.filter(|_| keys.prompt.iter().any(|known| known == key)) {
                row.insert(key.to_owned(), value.into());
            }
        }
        // what stands before the answer is the same whatever the answer is
        let answers = keys.answer.iter().map(|key| (key.clone(), Json::from("x")));
        Ok(answers.chain(row).collect())
    }

    /// The tokens that end an answer: the model's, and the one that ends turns where a template has its own.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let own = match &self.way {
            Way::Conversation => self.encoder.end_of_turn(),
            Way::Instruction => None,
            Way::Row(keys) => {
                let keys = keys.prompt.iter().chain(&keys.answer);
                self.encoder.end_of_row(&keys.map(|key| (key.clone(), Json::from("x"))).collect())
            }
        };
        let mut stop = self.tokenizer.stop_tokens().to_vec();
        stop.extend(own.filter(|token| !stop.contains(token)));
        stop
    }
}
