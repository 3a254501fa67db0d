//! Loss and perplexity of a model on a data file, in the memory that a forward pass takes: no gradients, no moments,
//! no activation kept for a reverse pass.

use super::adapter_place::other_weights;
use super::family::Family;
use super::host_embedding::HostEmbedding;
use super::inputs::write_batch;
use super::options::EvaluateOptions;
use super::setup::{bind_adapter, check_vocabulary, open_network};
use super::trainer::{Capacity, TrainerError};
use super::tuning::{TuneProgress, Tuner, pipeline_folder};
use super::weights::WeightSource;
use crate::checkpoint::Adapter;
use crate::data::{MicroBatch, Samples, Tokenizer};
use crate::error::Error;
use crate::gpu::{BufferSlice, Gpu, GpuOptions};
use crate::models::{LOSS_SUM, Network};
use crate::plan::{Bindings, Layout, MemoryReport, ParameterSpace, PlanError, Program, Slots};
use serde::Serialize;
use std::time::Instant;

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvaluateReport {
    /// Mean over all label tokens, in nats.
    pub loss: f64,
    /// `exp(loss)`; infinite where that is over f64.
    pub perplexity: f64,
    /// Tokens that a loss was taken of.
    pub label_tokens: usize,
    /// Tokens read, prompts included.
    pub tokens: usize,
    pub samples: usize,
    /// How many of the samples were cut to the maximum length.
    pub truncated: usize,
    /// Rows left out because no label was left.
    pub without_label: usize,
    pub max_seq_length: usize,
    pub precision: String,
    pub device: String,
    pub software_device: bool,
    pub seconds: f64,
}

/// What an evaluation tells on its way.
#[derive(Clone, Debug, PartialEq)]
pub enum EvaluateEvent {
    /// A class of kernels was measured, before the first sample.
    Tuned(TuneProgress),
    /// Something that the user should read.
    Note(String),
    /// So many of all samples are done.
    Samples { done: usize, all: usize },
}

/// Evaluates a Hugging Face folder, with or without an adapter, on a data file. Rows are written as in the training of the
/// adapter (or of the model), where that is recorded and the options choose no other style or template.
///
/// # Errors
/// Every kind of [`Error`]; what is wrong with the input is found before the device is opened.
pub fn evaluate(
    options: &EvaluateOptions,
    mut on_event: impl FnMut(EvaluateEvent),
) -> Result<EvaluateReport, Error> {
    options.validate()?;
    let adapter = options.adapter.as_deref().map(Adapter::read).transpose()?;
    let (mut network, source) =
        open_network(&options.model_dir, adapter.as_ref(), options.precision, options.quantize)?;
    if let Some(note) = options.adapter.as_deref().and_then(|adapter| other_weights(adapter, &network)) {
        on_event(EvaluateEvent::Note(note));
    }
    let tokenizer = Tokenizer::open(&options.model_dir)?;
    let limit = network.config.max_position_embeddings;
    let max_seq_length = options.max_seq_length.unwrap_or(limit).min(limit);
    let mut rows = options.data.clone();
    if let Some(note) = rows.as_trained(&options.model_dir, options.adapter.as_deref())? {
        on_event(EvaluateEvent::Note(note));
    }
    let data = rows.open(&tokenizer, options.seed, Some(max_seq_length), None)?;
    let fraction = options.data.val_split_fraction;
    let largest_token = data.largest_token();
    // without a split every row is in the first part
    let (samples, summary) = match fraction > 0.0 {
        true => (data.validation, data.summary.validation),
        false => (data.train, data.summary.train),
    };
    check_vocabulary(&[largest_token], &network.config)?;
    network.positions = summary.longest.max(1);

    let (device, no_coop) = (options.gpu.clone(), options.no_coop);
    let pipelines = pipeline_folder();
    let gpu = Gpu::open(&GpuOptions { device, no_coop, pipelines, ..GpuOptions::default() })?;
    let all: Vec<usize> = (0..samples.len()).collect();
    let batches: Vec<&[usize]> = all.chunks(options.micro_batch_size.max(1)).collect();
    let capacity = capacity(&samples, &batches);
    let padded = capacity.padded();
    let graph = network.evaluation(padded.tokens, padded.labels).map_err(TrainerError::from)?;
    let tuned = Tuner::new(options.tune)
        .prepare(&gpu, &graph, &mut |progress| on_event(EvaluateEvent::Tuned(progress.clone())))?;
    for note in tuned.left_out.into_iter().chain(tuned.trouble) {
        on_event(EvaluateEvent::Note(note));
    }
    drop(graph);
    let start = Instant::now();
    let mut evaluator = Evaluator::new(&gpu, network, &source, adapter.as_ref(), capacity)?;
    let (mut loss_sum, mut done) = (0.0, 0);
    for batch in batches {
        loss_sum += evaluator.loss_sum(&MicroBatch::from_samples(batch.iter().map(|&i| samples.get(i))))?;
        done += batch.len();
        on_event(EvaluateEvent::Samples { done, all: samples.len() });
    }
    let loss = loss_sum / summary.label_tokens as f64;
    if !loss.is_finite() {
        return Err(TrainerError::NotFinite.into());
    }
    Ok(EvaluateReport {
        loss,
        perplexity: loss.exp(),
        label_tokens: summary.label_tokens,
        tokens: summary.tokens,
        samples: summary.samples,
        truncated: summary.truncated,
        without_label: summary.without_label,
        max_seq_length,
        precision: options.precision.to_string(),
        device: gpu.info().name.clone(),
        software_device: gpu.info().is_software(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// A network on a device that gives losses and nothing else.
pub struct Evaluator {
    gpu: Gpu,
    network: Network,
    capacity: Capacity,
    bindings: Bindings,
    embedding: Option<HostEmbedding>,
    loss_sum: BufferSlice,
    family: Family,
    slots: Slots,
    memory: MemoryReport,
}

impl Evaluator {
    /// Loads the network onto the device and allocates for micro-batches up to `capacity`. `adapter` holds the values of
    /// the network's adapter, where it has one.
    ///
    /// # Errors
    /// Weights that do not fit the configuration, a failed allocation.
    pub fn new(
        gpu: &Gpu,
        network: Network,
        source: &WeightSource,
        adapter: Option<&Adapter>,
        capacity: Capacity,
    ) -> Result<Self, TrainerError> {
        let capacity = capacity.padded();
        let graph = network.evaluation(capacity.tokens, capacity.labels)?;
        let layout = Layout::new(&graph, &gpu.profile());
        layout.check(&graph, &gpu.profile())?;
        let mut bindings = Bindings::new();
        let mut memory = MemoryReport {
            weights: source.upload(gpu, &graph, &network, &mut bindings)?,
            ..MemoryReport::default()
        };
        let embedding = HostEmbedding::read(source, &network)?;
        memory.trainables = bind_adapter(gpu, &ParameterSpace::of(&graph), adapter, &mut bindings)?;
        memory.inputs = bindings.allocate_inputs(gpu, &graph)?;
        let slots = Slots::allocate(gpu, &layout)?;
        memory.activations = slots.bytes();
        let loss_sum =
            bindings.leaf(LOSS_SUM).cloned().ok_or_else(|| PlanError::Unbound { name: LOSS_SUM.into() })?;
        Ok(Evaluator {
            gpu: gpu.clone(),
            network,
            capacity,
            bindings,
            embedding,
            loss_sum,
            family: Family::new(layout),
            slots,
            memory,
        })
    }
    /// Device memory by kind: what is allocated, to the byte.
    pub fn memory(&self) -> MemoryReport {
        MemoryReport { parameters: self.family.parameter_bytes(), ..self.memory }
    }

    /// Sum of the token losses of a micro-batch, in nats, without dropout.
    ///
    /// # Errors
    /// A micro-batch over the capacity, and what the device reported.
    pub fn loss_sum(&mut self, batch: &MicroBatch) -> Result<f64, TrainerError> {
        let (embedding, window) = (self.embedding.as_ref(), self.network.config.window());
        let size = write_batch(&self.bindings, embedding, batch, window, self.capacity)?;
        self.gpu.submit(std::slice::from_ref(&self.loss_sum), &[])?;
        let gpu = self.gpu.clone();
        gpu.submit(&[], &[self.program(size)?.recording()])?;
        let read = gpu.read(&[self.loss_sum.part(0, 4)])?;
        Ok(read[0].first_chunk().map_or(f64::NAN, |bytes| f64::from(f32::from_le_bytes(*bytes))))
    }

    fn program(&mut self, size: Capacity) -> Result<&Program, TrainerError> {
        let graph = || self.network.evaluation(size.tokens, size.labels);
        let memory = (&self.slots, &self.bindings);
        self.family.program(&self.gpu, (size.tokens, size.labels), graph, memory)
    }
}

/// The most tokens and labels that any of the batches has.
fn capacity(samples: &Samples, batches: &[&[usize]]) -> Capacity {
    let largest = |count: fn(&Samples, usize) -> usize| {
        let sum = |batch: &&[usize]| batch.iter().map(|&i| count(samples, i)).sum();
        batches.iter().map(sum).max().unwrap_or(1)
    };
    Capacity { tokens: largest(Samples::tokens_len), labels: largest(Samples::label_count) }
}
