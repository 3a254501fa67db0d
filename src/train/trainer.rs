//! A network on a device: micro-batches in, gradients accumulated, optimiser steps, evaluation.
//!
//! Plans are made per size (tokens and label rows rounded up to buckets), on first use; all share the slots of the
//! largest. A step is: [`Trainer::begin`], [`Trainer::accumulate`] for each micro-batch, [`Trainer::step`].

use super::family::{Family, Size};
use super::host_embedding::HostEmbedding;
use super::inputs::write_batch;
use super::optimiser::{Optimiser, OptimiserError};
use super::plan::{Demand, TrainingPlan};
use super::weights::{WeightError, WeightSource, write_initial_values};
use crate::data::MicroBatch;
use crate::gpu::{BufferSlice, DispatchTime, Gpu, GpuError, HostShare, Readback, Transfers};
use crate::graph::layout::{pack_u32, unpack};
use crate::graph::{Cost, DType, Graph, GraphError, LeafKind, Shape, TensorType};
use crate::memory_size::memory_text;
use crate::models::{LOSS_SUM, Network};
use crate::ops::adamw::Hyper;
use crate::plan::{Bindings, MemoryReport, ParameterSpace, PlanError, Program, Slots};
use crate::stop::StopFlag;
use std::borrow::Borrow;
use std::time::Instant;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum TrainerError {
    #[error("the network cannot be built: {0}")]
    Graph(#[from] GraphError),
    #[error(
        "a micro-batch of {tokens} tokens with {labels} labels is over the planned {max_tokens} and {max_labels}"
    )]
    TooLarge { tokens: usize, labels: usize, max_tokens: usize, max_labels: usize },
    #[error(
        "the loss is not finite (NaN or infinite): the checkpoint or the adapter holds such values, or --precision 16-true \
         overflows; try 32-true"
    )]
    NotFinite,
    #[error(transparent)]
    Weights(#[from] WeightError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Optimiser(#[from] OptimiserError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// The largest micro-batch that will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub tokens: usize,
    pub labels: usize,
}

impl Capacity {
    /// The size that is planned for a micro-batch of this one: [`bucket`] of the tokens; label rows, which fewer kernels meet, in steps
    /// of an eighth, so that there are not too many pairs of both. A micro-batch has no more labels than tokens.
    pub fn padded(self) -> Self {
        let tokens = bucket(self.tokens);
        Capacity { tokens, labels: in_steps(self.labels, 8).min(tokens) }
    }
}

/// How fast the frozen weights came onto the device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// As stored on the device.
    pub bytes: u64,
    pub seconds: f64,
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = (self.bytes as f64 / self.seconds.max(1e-9)) as u64;
        let (bytes, rate) = (memory_text(self.bytes), memory_text(rate));
        write!(f, "weights {bytes} in {:.1} s, {rate}/s", self.seconds)
    }
}

/// What an optimiser step gives back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Sum of the token losses of the window, in nats.
    pub loss_sum: f64,
    /// Global norm of the gradient before clipping, without the loss scale; not finite after an overflow.
    pub grad_norm: f64,
}

pub struct Trainer {
    gpu: Gpu,
    network: Network,
    capacity: Capacity,
    bindings: Bindings,
    embedding: Option<HostEmbedding>,
    optimiser: Optimiser,
    loss_sum: BufferSlice,
    training: Family,
    evaluation: Family,
    slots: Slots,
    memory: MemoryReport,
    loaded: LoadReport,
    /// What was allocated on the host for activations.
    kept_bytes: u64,
    /// All that lies there, where it is the device's memory.
    _host_share: HostShare,
    micro_batches: u32,
    seed: u64,
}

impl Trainer {
    /// Loads the network onto the device and allocates for micro-batches up to `capacity`.
    ///
    /// # Errors
    /// Weights that do not fit the configuration, a failed allocation, a kernel that does not compile.
    pub fn new(
        gpu: &Gpu,
        network: Network,
        source: &WeightSource,
        capacity: Capacity,
        seed: u64,
    ) -> Result<Self, TrainerError> {
        let demand = Demand { capacity, ..Demand::uniform(1, capacity.tokens) };
        Trainer::from_plan(gpu, TrainingPlan::new(&network, &demand, &gpu.profile())?, source, seed)
    }

    /// Loads a planned network onto the device: what the plan says is what is allocated.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn from_plan(
        gpu: &Gpu,
        plan: TrainingPlan,
        source: &WeightSource,
        seed: u64,
    ) -> Result<Self, TrainerError> {
        Trainer::from_plan_until(gpu, plan, source, seed, &StopFlag::default())
    }

    /// [`Trainer::from_plan`], unless it is asked to stop while weights are loaded.
    ///
    /// # Errors
    /// As [`Trainer::new`]; [`WeightError::Stopped`].
    pub fn from_plan_until(
        gpu: &Gpu,
        plan: TrainingPlan,
        source: &WeightSource,
        seed: u64,
        stop: &StopFlag,
    ) -> Result<Self, TrainerError> {
        let TrainingPlan { network, optimizer, capacity, graph, layouts, host_bytes, .. } = plan;
        let host_share = gpu.count_on_host("weights and activations in host memory", host_bytes)?;
        let mut memory = MemoryReport::default();
        let mut bindings = Bindings::new();
        let start = Instant::now();
        memory.weights = source.upload_until(gpu, &graph, &network, &mut bindings, stop)?;
        let embedding = HostEmbedding::read(source, &network)?;
        let loaded = LoadReport { bytes: memory.weights, seconds: start.elapsed().as_secs_f64() };
        let optimiser = Optimiser::with(gpu, ParameterSpace::of(&graph), optimizer, network.fusions)?;
        optimiser.bind(&mut bindings);
        (memory.trainables, memory.optimiser) = optimiser.bytes();
        write_initial_values(gpu, &optimiser, source, seed, stop)?;
        memory.inputs = bindings.allocate_inputs(gpu, &graph)? + optimiser.input_bytes();
        let kept = graph.leaves().iter().filter(|leaf| leaf.kind == LeafKind::Host);
        let kept_bytes = kept.filter_map(|leaf| bindings.leaf(&leaf.name)).map(|slice| slice.size).sum();
        let [layout, eval_layout] = layouts;
        let slots = Slots::allocate(gpu, &layout)?;
        memory.activations = slots.bytes() + optimiser.slot_bytes();
        let loss_sum =
            bindings.leaf(LOSS_SUM).cloned().ok_or(PlanError::Unbound { name: LOSS_SUM.into() })?;
        Ok(Trainer {
            gpu: gpu.clone(),
            network,
            capacity,
            bindings,
            embedding,
            optimiser,
            loss_sum,
            training: Family::new(layout),
            evaluation: Family::new(eval_layout),
            slots,
            memory,
            loaded,
            kept_bytes,
            _host_share: host_share,
            micro_batches: 0,
            seed,
        })
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The way of the frozen weights onto the device.
    pub fn loaded(&self) -> LoadReport {
        self.loaded
    }

    /// Micro-batches that were accumulated, which dropout counts by.
    pub fn micro_batches(&self) -> u32 {
        self.micro_batches
    }

    /// Goes on as after so many micro-batches.
    pub fn go_on_after(&mut self, micro_batches: u32) {
        self.micro_batches = micro_batches;
    }

    /// Parameters, gradients and moments.
    pub fn optimiser(&self) -> &Optimiser {
        &self.optimiser
    }

    /// What full training leaves as it is ([`Network::frozen`]), row-major.
    ///
    /// # Errors
    /// What the device reported.
    pub fn frozen_parameters(&self) -> Result<Vec<(String, Vec<f32>)>, TrainerError> {
        let shapes = self.network.config.expected_shapes();
        let frozen = shapes.into_iter().filter(|(name, _)| self.network.frozen.contains(name));
        let read = |(name, dims): (String, Vec<usize>)| {
            let slice = self.bindings.leaf(&name).ok_or_else(|| PlanError::Unbound { name: name.clone() })?;
            let bytes = self.gpu.read(std::slice::from_ref(slice))?;
            Ok((name, unpack(TensorType::new(Shape::new(&dims), DType::F32), &bytes[0])))
        };
        frozen.map(read).collect()
    }

    /// The memory that graphs of the network read, and the embedding where the host looks tokens up.
    pub(super) fn bound(&self) -> (&Bindings, Option<&HostEmbedding>) {
        (&self.bindings, self.embedding.as_ref())
    }

    /// Device memory by kind: what is allocated, to the byte.
    pub fn memory(&self) -> MemoryReport {
        let parameters = self.training.parameter_bytes() + self.evaluation.parameter_bytes();
        MemoryReport { parameters: parameters + self.optimiser.recording().parameter_bytes(), ..self.memory }
    }

    /// Host memory that stands in for the device's: weights that are streamed, a token embedding, kept activations.
    pub fn host_bytes(&self) -> u64 {
        let embedding = self.embedding.as_ref().map_or(0, HostEmbedding::bytes);
        self.bindings.streamed_bytes() + embedding + self.kept_bytes
    }

    /// Estimated work of the largest training micro-batch.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn cost(&mut self) -> Result<Cost, TrainerError> {
        let size = (self.capacity.tokens, self.capacity.labels);
        Ok(self.program(true, size)?.cost())
    }

    /// Starts a window of accumulation: gradients and loss are zeroed.
    ///
    /// # Errors
    /// What the device reported.
    pub fn begin(&mut self) -> Result<(), TrainerError> {
        self.gpu.submit(&[self.optimiser.gradient_buffer().clone(), self.loss_sum.clone()], &[])?;
        Ok(())
    }

    /// Adds a micro-batch to the window; `weight` is what each token loss counts in the gradient (the loss scale over
    /// the label tokens of the whole window).
    ///
    /// # Errors
    /// A micro-batch over the capacity, and what the device reported.
    pub fn accumulate(&mut self, batch: &MicroBatch, weight: f32) -> Result<(), TrainerError> {
        let size = self.write_inputs(batch)?;
        let rng = [self.seed as u32, (self.seed >> 32) as u32, self.micro_batches, 0];
        self.micro_batches += 1;
        self.write("rng", &rng);
        if let Some(slice) = self.bindings.leaf("loss_weight") {
            slice.write(&weight.to_le_bytes());
        }
        let gpu = self.gpu.clone();
        gpu.submit(&[], &[self.program(true, size)?.recording()])?;
        Ok(())
    }

    /// The time of every dispatch in forward and reverse pass of one micro-batch, and in an update with the
    /// hyperparameters of the last one.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn time(&mut self, batch: &MicroBatch) -> Result<Vec<DispatchTime>, TrainerError> {
        let size = self.write_inputs(batch)?;
        let gpu = self.gpu.clone();
        let mut times = gpu.time(self.program(true, size)?.recording())?;
        let end = times.last().map_or(0.0, |t| t.start + t.seconds);
        let update = gpu.time(self.optimiser.recording())?;
        times.extend(update.into_iter().map(|t| DispatchTime { start: t.start + end, ..t }));
        Ok(times)
    }

    /// What the weights of a micro-batch that come from host memory cost on their way; `None` where all lie on the device. Its
    /// gradients are added several times.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn transfers(&mut self, batch: &MicroBatch) -> Result<Option<Transfers>, TrainerError> {
        let size = self.write_inputs(batch)?;
        let gpu = self.gpu.clone();
        Ok(gpu.transfers(self.program(true, size)?.recording())?)
    }

    /// Clips and updates the parameters from the window's gradients, and reads loss and norm.
    ///
    /// # Errors
    /// What the device reported.
    pub fn step(&mut self, hyper: &Hyper) -> Result<StepOutcome, TrainerError> {
        self.step_later(hyper)?.outcome()
    }

    /// [`Trainer::step`] without the wait: the next window can be submitted before the outcome is asked for, so that the
    /// device does not idle meanwhile.
    ///
    /// # Errors
    /// What the device reported.
    pub fn step_later(&mut self, hyper: &Hyper) -> Result<PendingStep, TrainerError> {
        let norm2 = self.optimiser.step(hyper)?;
        let readback = self.gpu.read_later(&[self.loss_sum.part(0, 4), norm2])?;
        Ok(PendingStep { readback, inverse_scale: hyper.inverse_scale })
    }

    /// Sum of the token losses of some micro-batches, without dropout; gradients are left alone.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn evaluate(
        &mut self,
        batches: impl IntoIterator<Item = impl Borrow<MicroBatch>>,
    ) -> Result<f64, TrainerError> {
        let (mut total, mut pending) = (0.0, None::<PendingLoss>);
        for batch in batches {
            let before = pending.replace(self.loss_later(batch.borrow())?);
            total += before.map_or(Ok(0.0), PendingLoss::sum)?;
        }
        Ok(total + pending.map_or(Ok(0.0), PendingLoss::sum)?)
    }

    /// The loss of one micro-batch, as [`Trainer::evaluate`] adds them up, without the wait for it: the next one can be submitted before
    /// it is asked for.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn loss_later(&mut self, batch: &MicroBatch) -> Result<PendingLoss, TrainerError> {
        let gpu = self.gpu.clone();
        gpu.submit(std::slice::from_ref(&self.loss_sum), &[])?;
        let size = self.write_inputs(batch)?;
        gpu.submit(&[], &[self.program(false, size)?.recording()])?;
        Ok(PendingLoss { readback: gpu.read_later(&[self.loss_sum.part(0, 4)])? })
    }

    /// Logits of every token of a micro-batch, row-major `[T, vocab]`: for small models and tests, since this is the
    /// tensor that training never makes.
    ///
    /// # Errors
    /// As [`Trainer::accumulate`].
    pub fn logits(&mut self, batch: &MicroBatch) -> Result<Vec<f32>, TrainerError> {
        let (tokens, real) = (self.write_inputs(batch)?.0, batch.tokens_len());
        let graph = self.network.logits(tokens, real)?;
        let mut bindings = self.bindings.clone();
        bindings.allocate_inputs(&self.gpu, &graph)?;
        let program = Program::compile(&self.gpu, &graph, &bindings)?;
        if let Some(rows) = bindings.leaf("rows") {
            rows.write(&pack_u32(&(0..real as u32).collect::<Vec<_>>()));
        }
        self.gpu.submit(&[], &[program.recording()])?;
        let ty = TensorType::new(Shape::matrix(real, self.network.config.vocab_size), DType::F32);
        Ok(unpack(ty, &self.gpu.read(std::slice::from_ref(program.output("logits")?))?[0]))
    }

    fn write(&self, name: &str, values: &[u32]) {
        if let Some(slice) = self.bindings.leaf(name) {
            slice.write(&pack_u32(values));
        }
    }

    fn write_inputs(&self, batch: &MicroBatch) -> Result<Size, TrainerError> {
        let (embedding, window) = (self.embedding.as_ref(), self.network.config.window());
        let size = write_batch(&self.bindings, embedding, batch, window, self.capacity)?;
        Ok((size.tokens, size.labels))
    }

    fn program(&mut self, train: bool, size: Size) -> Result<&Program, TrainerError> {
        let (network, memory) = (&self.network, (&self.slots, &self.bindings));
        match train {
            true => self.training.program(&self.gpu, size, || network.training(size.0, size.1), memory),
            false => self.evaluation.program(&self.gpu, size, || network.evaluation(size.0, size.1), memory),
        }
    }
}

/// The graph of the largest training micro-batch, as [`Trainer::new`] plans it.
///
/// # Errors
/// Shapes that do not fit together.
pub fn training_graph(network: &Network, capacity: Capacity) -> Result<Graph, GraphError> {
    let Capacity { tokens, labels } = capacity.padded();
    network.training(tokens, labels)
}

/// The loss of a micro-batch that may still run.
pub struct PendingLoss {
    readback: Readback,
}

impl PendingLoss {
    /// Waits for the sum of the token losses, in nats.
    ///
    /// # Errors
    /// What the device reported.
    pub fn sum(self) -> Result<f64, TrainerError> {
        Ok(float(&self.readback.wait()?[0]))
    }
}

/// A step that is submitted and may still run.
pub struct PendingStep {
    readback: Readback,
    inverse_scale: f64,
}

impl PendingStep {
    /// Waits for the step.
    ///
    /// # Errors
    /// What the device reported.
    pub fn outcome(self) -> Result<StepOutcome, TrainerError> {
        Ok(self.timed_outcome()?.0)
    }

    /// [`PendingStep::outcome`], and when the step was done.
    ///
    /// # Errors
    /// What the device reported.
    pub fn timed_outcome(self) -> Result<(StepOutcome, Instant), TrainerError> {
        let (read, done) = self.readback.wait_timed()?;
        let [loss, norm2] = [float(&read[0]), float(&read[1])];
        Ok((StepOutcome { loss_sum: loss, grad_norm: norm2.sqrt() * self.inverse_scale }, done))
    }
}

/// The smallest size that gets a plan of its own.
pub const SMALLEST_BUCKET: usize = 32;

/// Tokens that get a plan of their own: multiples of 32 up to 512, then steps of a sixteenth of the power of two above, of which half a
/// step is padding on average: 4 % of the tokens.
pub fn bucket(tokens: usize) -> usize {
    in_steps(tokens, 16)
}

fn in_steps(n: usize, steps: usize) -> usize {
    let step = (n.next_power_of_two() / steps).max(SMALLEST_BUCKET);
    n.max(1).next_multiple_of(step)
}

fn float(bytes: &[u8]) -> f64 {
    bytes.first_chunk::<4>().map_or(f64::NAN, |b| f64::from(f32::from_le_bytes(*b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_padded_by_little_and_no_more_labels_than_tokens() {
        let padded = |tokens, labels| {
            let Capacity { tokens, labels } = Capacity { tokens, labels }.padded();
            (tokens, labels)
        };
        assert_eq!([1, 33, 500, 513, 1000, 1025, 2049].map(bucket), [32, 64, 512, 576, 1024, 1152, 2304]);
        assert_eq!([padded(570, 569), padded(1500, 570), padded(40, 1)], [(576, 576), (1536, 640), (64, 32)]);
        let sizes = 513..=4096;
        let padding =
            sizes.clone().map(|n| (bucket(n) - n) as f64 / n as f64).sum::<f64>() / sizes.count() as f64;
        assert!((0.03..0.05).contains(&padding), "{padding}");
        for tokens in (1..3000usize).step_by(7) {
            for labels in [1, tokens / 2, tokens.saturating_sub(1)] {
                let (t, l) = padded(tokens, labels);
                assert!(t >= tokens && l >= labels && padded(t, l) == (t, l), "{tokens} {labels}");
                let (more, most) = (padded(tokens + 100, labels), padded(tokens + 100, labels + 100));
                assert!(more.0 >= t && more.1 >= l && most.1 >= l, "{tokens} {labels}");
            }
        }
    }
}
