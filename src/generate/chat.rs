//! A model that answers in a conversation.
//!
//! The whole conversation is written by the chat template and tokenised anew at every turn, as the model was trained on
//! it; the generator runs only what its cache does not begin with, which is the new turn wherever the template leaves
//! earlier ones alone.

use super::generator::{CacheSize, End, GenerateError, GenerateOptions, Generator};
use super::history::History;
use super::sampling::SamplingOptions;
use super::score::TokenScore;
use super::stop::StopTexts;
use crate::checkpoint::Adapter;
use crate::data::{Asked, Conversation, DecodeStream, PromptForm, PromptStyle, Prompter, Tokenizer};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::train::adapter_place::other_weights;
use crate::train::options::Precision;
use crate::train::quantize::QuantizeOptions;
use crate::train::setup::open_network;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Tokens of context where nobody chose: a cache for all that a model allows can be larger than its weights.
const CONTEXT: usize = 4096;

/// A model to talk to.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions {
    pub model_dir: PathBuf,
    /// PEFT adapter on top of it.
    pub adapter: Option<PathBuf>,
    pub precision: Precision,
    pub quantize: QuantizeOptions,
    /// `Auto` is what the adapter, or else the model, was trained with; where that is not recorded the model's own template,
    /// and [`PromptStyle::Alpaca`] where it has none.
    pub style: PromptStyle,
    /// A Jinja template in place of the style.
    pub template: Option<PathBuf>,
    /// Tokens of conversation and answer together; `None` takes the model's limit, at most 4,096.
    pub context: Option<usize>,
}

/// How to answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerOptions {
    /// Cut to what the context leaves.
    pub max_new_tokens: usize,
    pub sampling: SamplingOptions,
    /// Texts that end the answer, themselves left out.
    pub stop: Vec<String>,
    /// Score every token of it, with so many of the most probable ones beside it.
    pub scores: Option<usize>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn, or a stop text came.
    Stop,
    /// There are as many tokens as were asked for, or as the context takes.
    Length,
    /// The callback said so.
    Caller,
}

/// A token of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    pub score: TokenScore,
    /// Characters of the text before it.
    pub start: usize,
}

/// What the model said.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub text: String,
    pub finish: Finish,
    /// Where [`AnswerOptions::scores`] asks for them: of the tokens of the text, and of the model's end of turn.
    pub scores: Vec<ScoredToken>,
    /// Tokens that the model made, its end of turn left out.
    pub tokens: usize,
    /// Tokens of the prompt, and how many of them were in the cache already.
    pub prompt_tokens: usize,
    pub reused: usize,
    /// Seconds until the logits of the prompt were there, and for all new tokens.
    pub prompt_seconds: f64,
    pub seconds: f64,
}

/// A model on a device that answers conversations.
pub struct Chat<'t> {
    tokenizer: &'t Tokenizer,
    prompter: Prompter<'t>,
    asked: Asked,
    generator: Generator,
    stop: Vec<u32>,
    /// On the weights that it was trained on, where these are others.
    weights: Option<String>,
}

impl<'t> Chat<'t> {
    /// Loads the model. `tokenizer` is that of the same folder.
    ///
    /// # Errors
    /// Files that are missing, broken or of different models; a template that refuses conversations; a context over the
    /// model's limit; what the device refuses.
    pub fn open(gpu: &Gpu, tokenizer: &'t Tokenizer, options: &ChatOptions) -> Result<Self, Error> {
        let asked = PromptForm::said(options.style, options.template.as_deref())?;
        let asked = asked.or_trained(&options.model_dir, options.adapter.as_deref());
        let prompter = Prompter::of_conversations(tokenizer, &asked.form)?;
        if prompter.remembers() {
            // a template that refuses every conversation is told of now rather than at the first message
            prompter.talk(&Conversation::single(None, "Hi", None))?;
        }
        let adapter = options.adapter.as_deref().map(Adapter::read).transpose()?;
        let (network, source) =
            open_network(&options.model_dir, adapter.as_ref(), options.precision, options.quantize)?;
        let weights = options.adapter.as_deref().and_then(|adapter| other_weights(adapter, &network));
        let limit = network.config.max_position_embeddings;
        let cache = CacheSize::new(options.context.unwrap_or(limit.min(CONTEXT)));
        let generator = Generator::new(gpu, network, &source, adapter.as_ref(), cache)?;
        let stop = prompter.stop_tokens();
        Ok(Chat { tokenizer, prompter, asked, generator, stop, weights })
    }

    /// What conversations are written with: never [`PromptStyle::Auto`], and [`PromptStyle::None`] where a template does.
    pub fn style(&self) -> PromptStyle {
        self.prompter.style()
    }

    /// The same in words, with whose training chose it.
    pub fn prompts(&self) -> String {
        format!("{}{}", self.prompter.name(), self.asked.by())
    }

    /// What the user should know of the prompts and the weights.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let alone = (!self.prompter.remembers()).then(|| {
            format!("{} has no conversations: each message is asked by itself", self.prompter.name())
        });
        self.asked.note.clone().into_iter().chain(alone).chain(self.weights.clone())
    }

    pub fn generator(&self) -> &Generator {
        &self.generator
    }

    pub fn tokenizer(&self) -> &'t Tokenizer {
        self.tokenizer
    }

    /// Tokens that a conversation and its answer have room in.
    pub fn context(&self) -> usize {
        self.generator.capacity()
    }

    /// The tokens of a conversation whose answer is to come.
    ///
    /// # Errors
    /// The template refuses it; it leaves no room for an answer.
    pub fn prompt(&self, conversation: &Conversation) -> Result<Vec<u32>, Error> {
        self.with_room(self.prompter.talk(conversation)?, 1)
    }

    /// The tokens of a text that is to be continued as it is by up to `max_new_tokens`, in no form but its own.
    ///
    /// # Errors
    /// The tokenizer refuses it, or makes no token of it; it leaves no room for the first new one.
    pub fn prompt_of_text(&self, text: &str, max_new_tokens: usize) -> Result<Vec<u32>, Error> {
        match self.tokenizer.encode(text)? {
            nothing if nothing.is_empty() => Err(GenerateError::NoPrompt.into()),
            prompt => self.with_room(prompt, max_new_tokens),
        }
    }

    /// The same for a text that its sender has made tokens of: nothing is put before them.
    ///
    /// # Errors
    /// There are none; one is not in the vocabulary; they leave no room for the first new one.
    pub fn prompt_of_tokens(&self, tokens: &[u32], max_new_tokens: usize) -> Result<Vec<u32>, Error> {
        let vocabulary = self.generator.network().config.vocab_size;
        match tokens.iter().find(|&&token| token as usize >= vocabulary) {
            _ if tokens.is_empty() => Err(GenerateError::NoPrompt.into()),
            Some(&token) => Err(GenerateError::UnknownToken { token, vocabulary }.into()),
            None => self.with_room(tokens.to_vec(), max_new_tokens),
        }
    }

    /// With room for the first of `new` tokens.
    fn with_room(&self, prompt: Vec<u32>, new: usize) -> Result<Vec<u32>, Error> {
        match prompt.len() + new.min(1) <= self.context() {
            true => Ok(prompt),
            false => {
                let (prompt, context, limit) = (prompt.len(), self.context(), self.generator.limit());
                Err(GenerateError::ContextFull { prompt, context, limit }.into())
            }
        }
    }

    /// The tokens of a conversation from which the oldest turns were dropped until an answer of `max_new_tokens` fits, or
    /// one of a quarter of the context, and how many messages that were.
    ///
    /// # Errors
    /// As [`Chat::prompt`], where the last message alone is too long; the history is then as before.
    pub fn fit(&self, history: &mut History, max_new_tokens: usize) -> Result<(Vec<u32>, usize), Error> {
        let room = max_new_tokens.min(self.context() / 4);
        let mut shorter = history.clone();
        loop {
            let prompt = self.prompter.talk(&shorter.conversation())?;
            if prompt.len() + room <= self.context() || !shorter.drop_oldest() {
                let prompt = self.prompt(&shorter.conversation())?;
                let dropped = history.len() - shorter.len();
                *history = shorter;
                return Ok((prompt, dropped));
            }
        }
    }

    /// How probable the model finds each token of a prompt, with the `top` most probable ones in its place; and how many of the
    /// tokens did not run for it.
    ///
    /// # Errors
    /// As [`Generator::score`].
    pub fn score(&mut self, prompt: &[u32], top: usize) -> Result<(Vec<TokenScore>, usize), Error> {
        Ok(self.generator.score(prompt, top)?)
    }

    /// Answers a conversation. `on_text` sees the text as it comes, in whole characters, and can end it; it is called for every token,
    /// with an empty text where that gives none yet.
    ///
    /// # Errors
    /// As [`Generator::generate_further`].
    pub fn answer(
        &mut self,
        prompt: &[u32],
        options: &AnswerOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, Error> {
        self.answer_in(self.tokenizer.decode_stream(), prompt, options, on_text)
    }

    /// The same for a text: what comes goes on in its last line, so that the two together are the whole text.
    ///
    /// # Errors
    /// As [`Chat::answer`].
    pub fn go_on(
        &mut self,
        prompt: &[u32],
        options: &AnswerOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, Error> {
        self.answer_in(self.tokenizer.decode_stream_after(prompt), prompt, options, on_text)
    }

    fn answer_in(
        &mut self,
        mut decoded: DecodeStream<'t>,
        prompt: &[u32],
        options: &AnswerOptions,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, Error> {
        let max_new_tokens = options.max_new_tokens.min(self.context().saturating_sub(prompt.len()));
        let generate = GenerateOptions {
            max_new_tokens,
            sampling: options.sampling.clone(),
            stop: self.stop.clone(),
            scores: options.scores,
        };
        let mut stops = StopTexts::new(options.stop.iter().cloned());
        let (mut text, mut stopped) = (String::new(), false);
        let (mut starts, mut decoded_chars) = (Vec::new(), 0);
        let mut show = |piece: String, text: &mut String| {
            text.push_str(&piece);
            on_text(&piece)
        };
        let generated = self.generator.generate_further(prompt, &generate, &mut |token| {
            // without a whole character too, for who listens may have left
            let piece = decoded.push(token).unwrap_or_default();
            starts.push(decoded_chars);
            decoded_chars += piece.chars().count();
            let (piece, found) = stops.push(&piece);
            stopped = found;
            let going = show(piece, &mut text);
            if found { ControlFlow::Break(()) } else { going }
        })?;
        let mut finish = match generated.end {
            _ if stopped => Finish::Stop,
            End::Stop(_) => Finish::Stop,
            End::Length => Finish::Length,
            End::Caller => Finish::Caller,
        };
        if !stopped && finish != Finish::Caller {
            // what was held back: half a character, the beginning of a stop text
            let (mut rest, found) = stops.push(&decoded.finish()?.unwrap_or_default());
            match found {
                true => finish = Finish::Stop,
                false => rest += &stops.finish(),
            }
            let _ = show(rest, &mut text);
        }
        // the end of turn stands behind all text
        let starts = starts.into_iter().chain([text.chars().count()]);
        let scores = generated.scores.into_iter().zip(starts);
        let mut scores: Vec<_> = scores.map(|(score, start)| ScoredToken { score, start }).collect();
        if finish == Finish::Stop && !matches!(generated.end, End::Stop(_)) {
            let length = text.chars().count();
            scores.retain(|scored| scored.start < length);
        }
        Ok(Answer {
            text,
            finish,
            scores,
            tokens: generated.tokens.len(),
            prompt_tokens: prompt.len(),
            reused: generated.reused,
            prompt_seconds: generated.prompt_seconds,
            seconds: generated.seconds,
        })
    }
}
