//! Texts that the network writes at evaluations, to see what it learns: greedily, with the weights of the run itself, without a
//! second copy of them. Each token is a forward pass over the whole text, which is short.

use super::inputs::write_padded;
use super::options::{Example, FinetuneOptions};
use super::trainer::{Capacity, Trainer, TrainerError, bucket};
use crate::data::{Dataset, MicroBatch, PromptForm, Prompter, Sample, Tokenizer, epoch_order, without_mark};
use crate::error::Error;
use crate::graph::layout::pack_u32;
use crate::graph::{DeviceProfile, GraphError, LeafKind};
use crate::models::Network;
use crate::plan::{Bindings, Layout, MemoryReport, Program, Slots, leaf_bytes};
use crate::stop::StopFlag;

/// What is continued at evaluations.
pub(super) struct Prompts {
    prompts: Vec<Prompt>,
    max_new_tokens: usize,
    /// Tokens that end a text.
    stop: Vec<u32>,
}

pub(super) struct Prompt {
    /// As the user sees it.
    pub text: String,
    tokens: Vec<u32>,
}

/// New tokens where nobody said how many.
const MAX_NEW_TOKENS: usize = 100;

impl Prompts {
    /// The prompts of a run's options; `None` where it has none. Those of a file are written as the rows are, in their `form`.
    ///
    /// # Errors
    /// A file that cannot be read or has no line, a prompt that the model has no room to answer, an example that is not there.
    pub fn of(
        options: &FinetuneOptions,
        tokenizer: &Tokenizer,
        data: &Dataset,
        form: &PromptForm,
        limit: usize,
    ) -> Result<Option<Self>, Error> {
        let mut prompts = Vec::new();
        let mut stop = tokenizer.stop_tokens().to_vec();
        let wanted = options.eval_prompts.is_some() || options.evaluate_example.is_some();
        if wanted && data.validation.is_empty() {
            return Err(Error::input(
                "--eval_prompts and --evaluate_example are answered at evaluations, which need validation rows: give \
                 --data.val_split_fraction above 0, or a folder with a val file",
            ));
        }
        if let Some(path) = &options.eval_prompts {
            let said = |reason: &str| Error::input(format!("--eval_prompts {}: {reason}", path.display()));
            let text =
                std::fs::read_to_string(path).map_err(|e| said(&format!("cannot be read as text: {e}")))?;
            let prompter = Prompter::of_prompts(tokenizer, form)?;
            stop = prompter.stop_tokens();
            for line in without_mark(&text).lines().map(str::trim).filter(|line| !line.is_empty()) {
                prompts.push(Prompt { text: line.to_owned(), tokens: prompter.prompt(line, None)? });
            }
            if prompts.is_empty() {
                return Err(said("has no prompt; write one per line"));
            }
        }
        let asked = options.evaluate_example.is_some() || options.eval_max_new_tokens.is_some();
        if asked && prompts.is_empty() {
            let example = options.evaluate_example.unwrap_or_default();
            prompts.extend(example_prompt(example, options, tokenizer, data)?);
            if options.evaluate_example.is_some() && prompts.is_empty() {
                return Err(Error::input(format!(
                    "--evaluate_example {example}: the row has no prompt without labels, so where its answer begins is not known \
                     (--data.mask_prompt false?); give --eval_prompts FILE"
                )));
            }
        }
        if prompts.is_empty() || options.eval_max_new_tokens == Some(0) {
            return Ok(None);
        }
        if let Some(long) = prompts.iter().find(|prompt| prompt.tokens.len() >= limit) {
            return Err(Error::input(format!(
                "the prompt {:?} has {} tokens, and the model takes {limit} with its answer; shorten it",
                long.text,
                long.tokens.len()
            )));
        }
        let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        let max_new_tokens = options.eval_max_new_tokens.unwrap_or(MAX_NEW_TOKENS).min(limit - longest);
        Ok(Some(Prompts { prompts, max_new_tokens, stop }))
    }

    /// Tokens of the longest text.
    pub fn longest(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0) + self.max_new_tokens
    }
}

/// The prompt of a validation row: what stands before its first label.
fn example_prompt(
    example: Example,
    options: &FinetuneOptions,
    tokenizer: &Tokenizer,
    data: &Dataset,
) -> Result<Option<Prompt>, Error> {
    let rows = &data.validation;
    let index = match example {
        _ if rows.is_empty() => return Ok(None),
        Example::First => 0,
        Example::Random => epoch_order(rows.len(), options.data_seed(), 0, true)[0],
        Example::Index(index) if index < rows.len() => index,
        Example::Index(index) => {
            return Err(Error::input(format!(
                "--eval.evaluate_example {index}: there are {} validation rows, counted from 0",
                rows.len()
            )));
        }
    };
    let sample = rows.get(index);
    let end = sample.labels().iter().position(|&label| label >= 0).unwrap_or(0);
    // where the prompt has labels too, there is no telling where the answer begins
    let tokens = sample.tokens[..end].to_vec();
    let text = tokenizer.decode(&tokens)?;
    // a token that begins every text says nothing
    Ok((!text.trim().is_empty()).then_some(Prompt { text, tokens }))
}

/// What [`Sampler::new`] takes on a device for texts of so many tokens.
///
/// # Errors
/// Shapes that do not fit together.
pub(super) fn plan_sampler(
    network: &Network,
    tokens: usize,
    device: &DeviceProfile,
) -> Result<MemoryReport, GraphError> {
    let graph = network.logits(bucket(tokens), 1)?;
    let layout = Layout::new(&graph, device);
    Ok(MemoryReport {
        inputs: leaf_bytes(&graph, &[LeafKind::Input, LeafKind::State]),
        activations: layout.slot_bytes(),
        parameters: layout.parameter_bytes(),
        ..MemoryReport::default()
    })
}

/// A plan for the next token of a text.
pub(super) struct Sampler<'r> {
    prompts: &'r Prompts,
    tokenizer: &'r Tokenizer,
    bindings: Bindings,
    program: Program,
    tokens: usize,
    memory: MemoryReport,
}

impl<'r> Sampler<'r> {
    /// Plans beside what is trained.
    ///
    /// # Errors
    /// A failed allocation, a kernel that does not compile.
    pub fn new(
        trainer: &Trainer,
        prompts: &'r Prompts,
        tokenizer: &'r Tokenizer,
    ) -> Result<Self, TrainerError> {
        let (gpu, tokens) = (trainer.gpu(), bucket(prompts.longest()));
        let graph = trainer.network().logits(tokens, 1)?;
        let mut bindings = trainer.bound().0.weights_of(&graph);
        let inputs = bindings.allocate_inputs(gpu, &graph)?;
        let layout = Layout::new(&graph, &gpu.profile());
        let slots = Slots::allocate(gpu, &layout)?;
        let program = Program::new(gpu, &graph, &layout, &slots, &bindings)?;
        let memory = MemoryReport {
            inputs,
            activations: slots.bytes(),
            parameters: program.recording().parameter_bytes(),
            ..MemoryReport::default()
        };
        Ok(Sampler { prompts, tokenizer, bindings, program, tokens, memory })
    }

    /// Device memory by kind.
    pub fn memory(&self) -> MemoryReport {
        self.memory
    }

    /// Continues every prompt: prompt and text. `None` where it was asked to stop before the last token.
    ///
    /// # Errors
    /// What the device reported, tokens that have no text.
    pub fn write(&self, trainer: &Trainer, stop: &StopFlag) -> Result<Option<Vec<(String, String)>>, Error> {
        let mut texts = Vec::new();
        for prompt in &self.prompts.prompts {
            let Some(answer) = self.answer(trainer, &prompt.tokens, stop)? else { return Ok(None) };
            texts.push((prompt.text.clone(), self.tokenizer.decode(&answer)?));
        }
        Ok(Some(texts))
    }

    fn answer(&self, trainer: &Trainer, prompt: &[u32], stop: &StopFlag) -> Result<Option<Vec<u32>>, Error> {
        let (gpu, embedding) = (trainer.gpu(), trainer.bound().1);
        let mut text = prompt.to_vec();
        while text.len() < prompt.len() + self.prompts.max_new_tokens {
            if stop.is_set() {
                return Ok(None);
            }
            let last = text.len() - 1;
            let batch = MicroBatch::from_samples([Sample::new(text.clone(), text.len())]);
            let size = Capacity { tokens: self.tokens, labels: 1 };
            write_padded(&self.bindings, embedding, &batch, trainer.network().config.window(), size);
            if let Some(rows) = self.bindings.leaf("rows") {
                rows.write(&pack_u32(&[last as u32]));
            }
            gpu.submit(&[], &[self.program.recording()])?;
            let read = gpu.read(std::slice::from_ref(self.program.output("logits")?))?;
            let logits = read[0].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
            let vocabulary = trainer.network().config.vocab_size;
            let best =
                logits.take(vocabulary).enumerate().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
            let Some(token) = best.map(|(token, _)| token as u32) else { break };
            if self.prompts.stop.contains(&token) {
                break;
            }
            text.push(token);
        }
        Ok(Some(text.split_off(prompt.len())))
    }
}
