//! What commands take that talk to a model, and `engraft chat`.

use super::{DeviceArgs, EXIT_CODES, ModelArgs, PrecisionArgs, count};
use crate::data::PromptStyle;
use crate::generate::sampling::SamplingOptions;
use crate::generate::{AnswerOptions, ChatOptions};
use crate::train::options::{Checks, OptionsError};
use clap::Args;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case", after_help = EXIT_CODES, allow_negative_numbers = true)]
pub struct ChatArgs {
    #[command(flatten)]
    pub talk: TalkArgs,
    /// What the model is told before the conversation [default: nothing, or what its template says]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
}

/// A model that answers in conversations.
#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct TalkArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// PEFT adapter on top of the model, or the output folder of finetune [default: none]
    #[arg(long, alias = "lora", value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// How a conversation is written: auto (as in training; else the model's template, alpaca), chatml, …
    #[arg(long, alias = "prompt-style", value_name = "STYLE", default_value_t = PromptStyle::Auto.to_string())]
    pub prompt_style: String,
    /// Jinja template that writes prompts in place of a style [default: that of the training, if any]
    #[arg(long, alias = "prompt-template", value_name = "FILE")]
    pub prompt_template: Option<PathBuf>,
    /// Tokens of conversation and answer together [default: the model's limit, at most 4096]
    #[arg(long, value_name = "N", value_parser = count)]
    pub context: Option<usize>,
    /// Tokens of an answer at most
    #[arg(long, alias = "max-new-tokens", value_name = "N", default_value_t = 512, value_parser = count)]
    pub max_new_tokens: usize,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub precision: PrecisionArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl TalkArgs {
    /// The model that was asked for.
    ///
    /// # Errors
    /// Every option that is out of its range.
    pub fn resolve(&self) -> Result<ChatOptions, OptionsError> {
        let mut checks = Checks::default();
        checks.at_least("--max_new_tokens", self.max_new_tokens, 1);
        if let Some(context) = self.context {
            checks.at_least("--context", context, 2);
        }
        checks.prompt_style("--prompt_style", &self.prompt_style);
        self.sampling.options().check(&mut checks);
        checks.finish()?;
        Ok(ChatOptions {
            model_dir: self.model.model_dir.clone(),
            adapter: self.adapter.clone(),
            precision: self.precision.precision,
            quantize: self.precision.quantize(),
            // checked above
            style: self.prompt_style.parse().unwrap_or_default(),
            template: self.prompt_template.clone(),
            context: self.context,
        })
    }

    /// How to answer where nothing else is said.
    pub fn answer(&self) -> AnswerOptions {
        let (max_new_tokens, sampling) = (self.max_new_tokens, self.sampling.options());
        AnswerOptions { max_new_tokens, sampling, ..AnswerOptions::default() }
    }
}

/// How to draw tokens.
#[derive(Clone, Debug, Args)]
#[command(rename_all = "snake_case")]
pub struct SamplingArgs {
    /// Divides the logits; 0 takes the most probable token always
    #[arg(long, value_name = "T", default_value_t = SamplingOptions::default().temperature)]
    pub temperature: f32,
    /// Sample among the K most probable tokens; 0 for all
    #[arg(long, alias = "top-k", value_name = "K", default_value_t = 50, value_parser = count)]
    pub top_k: usize,
    /// Sample among the fewest tokens whose probabilities sum to P
    #[arg(long, alias = "top-p", value_name = "P", default_value_t = SamplingOptions::default().top_p)]
    pub top_p: f32,
    /// Seed of the sampling
    #[arg(long, value_name = "SEED", default_value_t = SamplingOptions::default().seed)]
    pub seed: u64,
}

impl SamplingArgs {
    pub fn options(&self) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature,
            top_k: (self.top_k > 0).then_some(self.top_k),
            top_p: self.top_p,
            seed: self.seed,
        }
    }
}
