//! `engraft generate`: text on standard output as it comes, everything else on standard error.

use super::args::GenerateArgs;
use super::chat_input::TO_UTF8;
use super::devices::describe;
use super::download::model_and_adapter;
use crate::checkpoint::Adapter;
use crate::data::{DecodeStream, PromptForm, PromptStyle, Prompter, Tokenizer};
use crate::error::Error;
use crate::generate::{CacheSize, End, GenerateOptions, Generated, Generator};
use crate::gpu::Gpu;
use crate::train::adapter_place::{ModelAndAdapter, other_weights};
use crate::train::setup::open_network;
use std::io::{self, IsTerminal, Read, Write};
use std::ops::ControlFlow;

pub fn run(args: GenerateArgs, quiet: bool) -> Result<(), Error> {
    args.check()?;
    let ModelAndAdapter { model_dir, adapter: adapter_dir, .. } =
        model_and_adapter(&args.model.model_dir, args.adapter.as_deref(), quiet)?;
    let note = |text: &str| {
        if !quiet {
            eprintln!("{text}");
        }
    };
    let adapter = adapter_dir.as_deref().map(Adapter::read).transpose()?;
    let (precision, quantize) = (args.precision.precision, args.precision.quantize());
    let (network, source) = open_network(&model_dir, adapter.as_ref(), precision, quantize)?;
    adapter_dir
        .as_deref()
        .and_then(|adapter| other_weights(adapter, &network))
        .iter()
        .for_each(|text| note(text));
    let tokenizer = Tokenizer::open(&model_dir)?;
    let asked = PromptForm::said(args.prompt_style.parse()?, args.prompt_template.as_deref())?;
    let asked = asked.or_trained(&model_dir, adapter_dir.as_deref());
    let prompter = Prompter::of_prompts(&tokenizer, &asked.form)?;
    asked.note.iter().for_each(|text| note(text));
    if asked.trained.is_some() {
        note(&format!("{}{}", prompter.name(), asked.by()));
    }
    let text = match &args.prompt {
        Some(text) => text.clone(),
        None => read_prompt(note)?,
    };
    if text.trim().is_empty() {
        return Err(Error::input("the prompt is empty; give --prompt TEXT, or text on standard input"));
    }
    let prompt = prompter.prompt(&text, args.input.as_deref())?;
    let max_new_tokens = room(prompt.len(), args.max_new_tokens, network.config.max_position_embeddings)?;

    let gpu = Gpu::open(&args.device.options())?;
    note(&format!("device {}", describe(gpu.info())));
    if args.prompt_style == "auto" && asked.trained.is_none() && asked.form.template.is_none() {
        let has = if prompter.style() == PromptStyle::Chat { "a template" } else { "no template" };
        note(&format!("{}, as the model has {has} (--prompt_style)", prompter.name()));
    }
    if max_new_tokens < args.max_new_tokens {
        note(&format!(
            "--max_new_tokens is cut to {max_new_tokens}: with the prompt of {} the model's limit of {} is reached",
            prompt.len(),
            network.config.max_position_embeddings
        ));
    }
    let cache = CacheSize::new(prompt.len() + max_new_tokens);
    let mut generator = Generator::new(&gpu, network, &source, adapter.as_ref(), cache)?;
    let (sampling, stop) = (args.sampling.options(), prompter.stop_tokens());
    let mut options = GenerateOptions { max_new_tokens, sampling, stop, ..GenerateOptions::default() };
    let (first, samples) = (options.sampling.seed, args.num_samples);
    if samples > 1 && options.sampling.temperature == 0.0 {
        note(&format!("all {samples} texts are the same: --temperature 0 leaves nothing to the seed"));
    }
    // a template of the user's own has no style either
    let as_it_is = prompter.style() == PromptStyle::None && asked.form.template.is_none();
    for sample in 0..samples {
        options.sampling.seed = first.wrapping_add(sample as u64);
        let mut out = Output::new(match as_it_is {
            true => tokenizer.decode_stream_after(&prompt),
            false => tokenizer.decode_stream(),
        });
        let mut which = String::new();
        if samples > 1 {
            which = format!("{} of {samples}", sample + 1);
            // with the texts, whose end could not be told elsewhere
            out.write(&format!("--- {which}, seed {}\n", options.sampling.seed));
            which += ": ";
        }
        // the prompt runs once, so a seed gives the same text wherever it comes
        let generated = generator.generate_further(&prompt, &options, &mut |token| out.push(token))?;
        let left = out.finish()?.is_break();
        note(&format!("{which}{}", summary(&generated, prompt.len())));
        if left {
            break;
        }
    }
    Ok(())
}

/// New tokens that fit behind the prompt: what was asked for, or what the model's limit leaves.
fn room(prompt: usize, wanted: usize, limit: usize) -> Result<usize, Error> {
    match limit.saturating_sub(prompt) {
        0 => Err(Error::input(format!(
            "the prompt has {prompt} tokens, and the model takes {limit} with its answer (max_position_embeddings in \
             config.json, or the first context of its longrope); shorten the prompt"
        ))),
        left => Ok(wanted.min(left)),
    }
}

fn read_prompt(note: impl Fn(&str)) -> Result<String, Error> {
    let mut stdin = io::stdin();
    if stdin.is_terminal() {
        note("type the prompt, and end it with Ctrl-D on a line of its own");
    }
    let mut text = String::new();
    stdin.read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => {
            Error::input(format!("the prompt on standard input is no UTF-8; convert it with {TO_UTF8}"))
        }
        _ => Error::input(format!("the prompt on standard input cannot be read: {error}")),
    })?;
    // the newline that `echo` and editors add is not the prompt's
    let end = text.strip_suffix('\n').map(|t| t.strip_suffix('\r').unwrap_or(t).len());
    text.truncate(end.unwrap_or(text.len()));
    Ok(text)
}

fn summary(generated: &Generated, prompt: usize) -> String {
    let count = generated.tokens.len();
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    let end = match generated.end {
        End::Stop(_) => "ended by the model",
        End::Length => "ended by --max_new_tokens",
        End::Caller => "ended by the reader",
    };
    let of_prompt = match generated.reused {
        0 => format!("; prompt {prompt} tokens, {:.1} tokens/s", rate(prompt, generated.prompt_seconds)),
        // of the text before
        _ => String::new(),
    };
    format!(
        "{count} tokens in {:.2}s, {:.1} tokens/s{of_prompt}; {end}",
        generated.seconds,
        rate(count, generated.seconds),
    )
}

/// Standard output, written as soon as a character is whole.
struct Output<'t> {
    text: DecodeStream<'t>,
    error: Option<io::Error>,
}

impl<'t> Output<'t> {
    fn new(text: DecodeStream<'t>) -> Self {
        Output { text, error: None }
    }

    fn write(&mut self, text: &str) {
        self.error = self.error.take().or_else(|| write_out(text).err());
    }

    fn push(&mut self, token: u32) -> ControlFlow<()> {
        if let Some(piece) = self.text.push(token) {
            self.write(&piece);
        }
        if self.error.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// What was held back, and a newline. A reader that has had enough (`| head`) is no error, but wants no more.
    fn finish(self) -> Result<ControlFlow<()>, Error> {
        let error = match self.error {
            Some(error) => Some(error),
            None => write_out(&format!("{}\n", self.text.finish()?.unwrap_or_default())).err(),
        };
        match error {
            None => Ok(ControlFlow::Continue(())),
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Some(source) => Err(Error::Write { path: "standard output".into(), source }),
        }
    }
}

/// Text on standard output, at once.
pub(super) fn write_out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_tokens_are_cut_to_the_models_limit() {
        assert_eq!(room(10, 5, 100).unwrap(), 5);
        assert_eq!(room(98, 5, 100).unwrap(), 2);
        let error = room(100, 5, 100).unwrap_err().to_string();
        assert!(error.contains("100 tokens") && error.contains("max_position_embeddings"), "{error}");
        assert!(room(200, 5, 100).is_err());
    }
}
