//! A network that continues token sequences with a KV cache.
//!
//! Three plans share one set of slots: two sizes of prompt chunk and the single token. The caches are state leaves that
//! all three write in place. A chunk shorter than its plan is filled up with copies of its last token at the same
//! position: their rows of the cache lie behind the end of the text, where no row looks before it has been overwritten,
//! and since they equal a real row they are finite, as attention needs of rows that it masks. For the same reason the
//! cache can be cut at any token ([`Generator::keep`]): a talk that goes on runs its new tokens alone.

use super::sampling::{Sampler, SamplingError, SamplingOptions};
use super::score::{Scorer, TokenScore};
use crate::checkpoint::Adapter;
use crate::error::Error;
use crate::gpu::{Gpu, GpuError};
use crate::graph::layout::{pack_u32, unpack};
use crate::graph::{DType, GraphError, Shape, TensorType};
use crate::models::{Network, WINDOW};
use crate::plan::{Bindings, Layout, MemoryReport, ParameterSpace, PlanError, Program, Slots};
use crate::train::options::{OptionsError, Precision};
use crate::train::quantize::QuantizeOptions;
use crate::train::setup::{bind_adapter, open_network};
use crate::train::trainer::bucket;
use crate::train::weights::{WeightError, WeightSource};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum GenerateError {
    #[error(
        "there is nothing to continue: the prompt has no tokens, and the tokenizer adds no BOS; give a --prompt"
    )]
    NoPrompt,
    #[error(
        "the token {token} of the prompt is not in the model's vocabulary of {vocabulary}; tokenizer.json and \
         config.json belong to different models, or the text has a token that was added for another one, as the place of an image"
    )]
    UnknownToken { token: u32, vocabulary: usize },
    #[error("{tokens} tokens do not fit the KV cache of {cache}; shorten the prompt or open a larger cache")]
    CacheFull { tokens: usize, cache: usize },
    #[error(
        "the prompt has {prompt} tokens, and the context takes {context} with the answer; shorten it{}",
        if context < limit { format!(", or raise --context up to the model's limit of {limit}") } else { String::new() }
    )]
    ContextFull { prompt: usize, context: usize, limit: usize },
    #[error(
        "a cache of {tokens} tokens is over the model's limit of {limit} (max_position_embeddings, or the first context of its longrope)"
    )]
    OverLimit { tokens: usize, limit: usize },
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    #[error("the network cannot be built: {0}")]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Weights(#[from] WeightError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// Rows that a generator plans for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Prompt and new tokens together, at most the model's `max_position_embeddings`.
    pub tokens: usize,
    /// Prompt tokens that run at once; more need more memory for activations.
    pub chunk: usize,
}

/// What to generate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateOptions {
    pub max_new_tokens: usize,
    pub sampling: SamplingOptions,
    /// Tokens that end the text, themselves left out.
    pub stop: Vec<u32>,
    /// Score every token that is drawn, with so many of the most probable ones beside it.
    pub scores: Option<usize>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// This stop token was drawn.
    Stop(u32),
    /// There are as many tokens as were asked for.
    #[default]
    Length,
    /// The callback said so.
    Caller,
}

/// A continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// The new tokens, without a stop token.
    pub tokens: Vec<u32>,
    pub end: End,
    /// Where [`GenerateOptions::scores`] asks for them: of each of the tokens, and of a stop token that ended them.
    pub scores: Vec<TokenScore>,
    /// Tokens of the prompt that were in the cache already and did not run again.
    pub reused: usize,
    /// Seconds until the logits of the prompt were there; the compilation of kernels is not counted.
    pub prompt_seconds: f64,
    /// Seconds for all new tokens.
    pub seconds: f64,
}

/// A network with a KV cache on a device.
pub struct Generator {
    pub(super) gpu: Gpu,
    pub(super) network: Network,
    pub(super) bindings: Bindings,
    slots: Slots,
    /// Falling in size, the last for a single token.
    plans: [Plan; 3],
    pub(super) cache: CacheSize,
    /// The tokens whose rows are in the cache.
    pub(super) cached: Vec<u32>,
    /// The logits after that many of them, which the last prompt came to: it can be continued again without running.
    pub(super) known: Option<(usize, Vec<f32>)>,
    /// Made on first use.
    pub(super) scorer: Option<Scorer>,
    memory: MemoryReport,
}

/// The generation of up to `rows` tokens at once.
struct Plan {
    rows: usize,
    layout: Layout,
    /// Made on first use.
    program: Option<Program>,
}

/// [`CacheSize::chunk`] where nobody chose one: enough rows to fill a large GPU.
const CHUNK: usize = 256;

impl CacheSize {
    /// Room for `tokens`, with the usual chunks.
    pub fn new(tokens: usize) -> Self {
        CacheSize { tokens, chunk: CHUNK }
    }
}

impl Generator {
    /// Loads a Hugging Face folder, and the PEFT adapter of `adapter_dir`, with room for `max_tokens` of prompt and new
    /// text together.
    ///
    /// # Errors
    /// Files that are missing, broken or of different models; what the device refuses.
    pub fn open(
        gpu: &Gpu,
        model_dir: &Path,
        adapter_dir: Option<&Path>,
        precision: Precision,
        max_tokens: usize,
    ) -> Result<Self, Error> {
        let adapter = adapter_dir.map(Adapter::read).transpose()?;
        let (network, source) =
            open_network(model_dir, adapter.as_ref(), precision, QuantizeOptions::default())?;
        Ok(Generator::new(gpu, network, &source, adapter.as_ref(), CacheSize::new(max_tokens))?)
    }

    /// Loads a network onto the device. `adapter` holds the values of the network's adapter, where it has one.
    ///
    /// # Errors
    /// A cache over the model's limit, weights that do not fit the configuration, a failed allocation.
    pub fn new(
        gpu: &Gpu,
        mut network: Network,
        source: &WeightSource,
        adapter: Option<&Adapter>,
        cache: CacheSize,
    ) -> Result<Self, GenerateError> {
        let limit = network.config.max_position_embeddings;
        if cache.tokens > limit {
            return Err(GenerateError::OverLimit { tokens: cache.tokens, limit });
        }
        let cache = CacheSize { tokens: cache.tokens.max(1), chunk: cache.chunk.max(1) };
        network.positions = cache.tokens;

        let large = cache.chunk.min(bucket(cache.tokens));
        let sizes = [large, large.div_ceil(4), 1];
        let graph = network.generation(large, cache.tokens, 1)?;
        let mut layouts = Vec::new();
        for rows in sizes {
            let layout = Layout::new(&network.generation(rows, cache.tokens, 1)?, &gpu.profile());
            layout.check(&graph, &gpu.profile())?;
            layouts.push(layout);
        }
        let [a, b, c] = <[Layout; 3]>::try_from(layouts)
            .map_err(|_| GraphError::invalid("plan", "a generator has three sizes"))?;

        let mut bindings = Bindings::new();
        let mut memory = MemoryReport {
            weights: source.upload(gpu, &graph, &network, &mut bindings)?,
            ..MemoryReport::default()
        };
        memory.trainables = bind_adapter(gpu, &ParameterSpace::of(&graph), adapter, &mut bindings)?;
        memory.inputs = bindings.allocate_inputs(gpu, &graph)?;
        let (slots, [a, b, c]) = Slots::shared(gpu, [a, b, c])?;
        memory.activations = slots.bytes();
        let plan = |rows, layout| Plan { rows, layout, program: None };
        let plans = [plan(sizes[0], a), plan(sizes[1], b), plan(sizes[2], c)];
        Ok(Generator {
            gpu: gpu.clone(),
            network,
            bindings,
            slots,
            plans,
            cache,
            cached: Vec::new(),
            known: None,
            scorer: None,
            memory,
        })
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Device memory by kind; the caches are among the inputs.
    pub fn memory(&self) -> MemoryReport {
        let programs = self.plans.iter().filter_map(|plan| plan.program.as_ref());
        let mut parameters = programs.map(|p| p.recording().parameter_bytes()).sum();
        let mut activations = self.memory.activations;
        if let Some(scorer) = &self.scorer {
            parameters += scorer.parameter_bytes();
            activations += scorer.slot_bytes();
        }
        MemoryReport { parameters, activations, ..self.memory }
    }

    /// Tokens that the model was made for at most.
    pub fn limit(&self) -> usize {
        self.network.config.max_position_embeddings
    }

    /// Tokens that the cache has room for.
    pub fn capacity(&self) -> usize {
        self.cache.tokens
    }

    /// Tokens in the cache.
    pub fn len(&self) -> usize {
        self.cached.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cached.is_empty()
    }

    /// Forgets what is in the cache.
    pub fn reset(&mut self) {
        self.cut(0);
    }

    /// Keeps the first `tokens` of the cache.
    pub(super) fn cut(&mut self, tokens: usize) {
        self.cached.truncate(tokens);
        self.known = self.known.take().filter(|(after, _)| *after <= tokens);
    }

    /// Cuts the cache to the tokens that `prompt` begins with, and gives their number: always less than all of the
    /// prompt, whose last token has to run for its logits.
    pub fn keep(&mut self, prompt: &[u32]) -> usize {
        self.cut(self.shared(prompt).min(prompt.len().saturating_sub(1)));
        self.cached.len()
    }

    /// Tokens that `prompt` begins with and the cache too.
    pub(super) fn shared(&self, prompt: &[u32]) -> usize {
        self.cached.iter().zip(prompt).take_while(|(cached, token)| cached == token).count()
    }

    /// Appends `tokens` to the cache and gives the logits `[vocab]` of the token after the last.
    ///
    /// # Errors
    /// No tokens, one that the model does not know, more than fit, and what the device reported. The cache is as before
    /// where the tokens are at fault.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, GenerateError> {
        self.check(self.cached.len(), tokens, 0)?;
        let mut rest = tokens;
        let mut last = 0;
        while !rest.is_empty() {
            last = self.plan_for(rest.len());
            let (chunk, after) = rest.split_at(rest.len().min(self.plans[last].rows));
            self.append(chunk, last)?;
            rest = after;
        }
        let ty = TensorType::new(Shape::matrix(1, self.network.config.vocab_size), DType::F32);
        let gpu = self.gpu.clone();
        let bytes = gpu.read(std::slice::from_ref(self.program(last)?.output("logits")?))?;
        Ok(unpack(ty, &bytes[0]))
    }

    /// Continues `prompt` from an empty cache. `on_token` sees each new token as it comes, stop tokens excepted, and can
    /// end the text.
    ///
    /// # Errors
    /// As [`Generator::logits`]; sampling options out of range; logits that are not finite.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated, GenerateError> {
        self.check(0, prompt, options.max_new_tokens)?;
        self.reset();
        self.generate_further(prompt, options, on_token)
    }

    /// Continues `prompt` as [`Generator::generate`] does, but runs only what differs from the tokens that are in the
    /// cache: of a talk that goes on, the new turn alone. Logits may differ from those of an empty cache by rounding,
    /// since other tokens share a run; those of the prompt before, continued again, are kept to the bit.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn generate_further(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated, GenerateError> {
        let mut sampler = Sampler::new(options.sampling.clone())?;
        self.check(0, prompt, options.max_new_tokens)?;
        if options.max_new_tokens == 0 {
            return Ok(Generated { reused: self.shared(prompt), ..Generated::default() });
        }
        let known = self.is_known(prompt);
        let reused = if known { prompt.len() } else { self.keep(prompt) };
        self.cut(reused);
        let rest = &prompt[reused..];
        self.compile(rest.len())?;

        let start = Instant::now();
        let mut logits = match &self.known {
            Some((_, logits)) if known => logits.clone(),
            _ => self.logits(rest)?,
        };
        if !known {
            self.known = Some((prompt.len(), logits.clone()));
        }
        let prompt_seconds = start.elapsed().as_secs_f64();
        let (mut tokens, mut scores) = (Vec::new(), Vec::new());
        let end = loop {
            if tokens.len() == options.max_new_tokens {
                break End::Length;
            }
            // whatever was wrong with the device, the next text shall not begin there
            let token = sampler.sample(&logits).inspect_err(|_| self.reset())?;
            if let Some(top) = options.scores {
                scores.push(TokenScore::of(token, &logits, top));
            }
            if options.stop.contains(&token) {
                break End::Stop(token);
            }
            tokens.push(token);
            if on_token(token).is_break() {
                break End::Caller;
            }
            if tokens.len() < options.max_new_tokens {
                logits = self.logits(&[token])?;
            }
        };
        let seconds = start.elapsed().as_secs_f64() - prompt_seconds;
        Ok(Generated { tokens, end, scores, reused, prompt_seconds, seconds })
    }

    /// Whether `prompt` is the last one, whose logits are kept.
    fn is_known(&self, prompt: &[u32]) -> bool {
        let after = self.known.as_ref().map(|(after, _)| *after);
        after == Some(prompt.len()) && self.shared(prompt) == prompt.len()
    }

    /// Makes the kernels for a prompt of this length and for single tokens.
    fn compile(&mut self, prompt: usize) -> Result<(), GenerateError> {
        let mut rest = prompt;
        while rest > 0 {
            let plan = self.plan_for(rest);
            self.program(plan)?;
            rest -= rest.min(self.plans[plan].rows);
        }
        self.program(self.plans.len() - 1).map(|_| ())
    }

    /// Whether `tokens` can run after so many others, with room for `more`.
    pub(super) fn check(&self, others: usize, tokens: &[u32], more: usize) -> Result<(), GenerateError> {
        let vocabulary = self.network.config.vocab_size;
        if tokens.is_empty() {
            return Err(GenerateError::NoPrompt);
        }
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocabulary) {
            return Err(GenerateError::UnknownToken { token, vocabulary });
        }
        let (tokens, cache) = ((others + tokens.len()).saturating_add(more), self.cache.tokens);
        if tokens > cache { Err(GenerateError::CacheFull { tokens, cache }) } else { Ok(()) }
    }

    /// The plan that the next of `rest` tokens run in: a large chunk where the small ones would take more runs than two.
    fn plan_for(&self, rest: usize) -> usize {
        match rest {
            1 => 2,
            _ if rest > 2 * self.plans[1].rows => 0,
            _ => 1,
        }
    }

    /// Runs tokens that fit one plan.
    fn append(&mut self, tokens: &[u32], plan: usize) -> Result<(), GenerateError> {
        self.place(tokens, self.plans[plan].rows)?;
        write(&self.bindings, "rows", &[tokens.len() as u32 - 1])?;
        let gpu = self.gpu.clone();
        gpu.submit(&[], &[self.program(plan)?.recording()])?;
        self.cached.extend_from_slice(tokens);
        Ok(())
    }

    /// Writes tokens, up to `rows`, and where they go behind what is cached. Rows that are left over do the last one again.
    pub(super) fn place(&self, tokens: &[u32], rows: usize) -> Result<(), PlanError> {
        let (offset, count) = (self.cached.len() as u32, tokens.len() as u32);
        let filled = |value: &dyn Fn(u32) -> u32| {
            (0..rows as u32).map(|t| value(t.min(count - 1))).collect::<Vec<_>>()
        };
        write(&self.bindings, "tokens", &filled(&|t| tokens[t as usize]))?;
        write(&self.bindings, "positions", &filled(&|t| offset + t))?;
        let window = self.network.config.window();
        for (name, window) in [("starts".to_owned(), u32::MAX), (format!("{WINDOW}starts"), window)] {
            // a network whose layers are all alike lacks the other
            if self.bindings.leaf(&name).is_some() {
                write(&self.bindings, &name, &filled(&|t| (offset + t + 1).saturating_sub(window)))?;
            }
        }
        write(&self.bindings, "ends", &filled(&|t| offset + t + 1))?;
        write(&self.bindings, "offset", &[offset])
    }

    /// Rows of a chunk of middle size.
    pub(super) fn middle(&self) -> usize {
        self.plans[1].rows
    }

    fn program(&mut self, plan: usize) -> Result<&Program, GenerateError> {
        let Plan { rows, layout, program } = &mut self.plans[plan];
        if program.is_none() {
            let graph = self.network.generation(*rows, self.cache.tokens, 1)?;
            *program = Some(Program::new(&self.gpu, &graph, layout, &self.slots, &self.bindings)?);
        }
        program.as_ref().ok_or_else(|| PlanError::NoOutput("logits".into()).into())
    }
}

pub(super) fn write(bindings: &Bindings, name: &str, values: &[u32]) -> Result<(), PlanError> {
    let leaf = bindings.leaf(name).ok_or_else(|| PlanError::Unbound { name: name.into() })?;
    leaf.write(&pack_u32(values));
    Ok(())
}
