//! What a training run takes, to the byte and without a device: the graph of its largest micro-batch is planned as
//! [`Trainer`](super::trainer::Trainer) plans it.

use super::bench::visible_share;
use super::family::kept;
use super::host_embedding::HostEmbedding;
use super::optimiser::plan_update;
use super::options::OptimizerKind;
use super::sampler::plan_sampler;
use super::trainer::{Capacity, training_graph};
use super::weights::{stream_layout, streamed_bytes, weight_bytes};
use crate::autograd::Recompute;
use crate::gpu::GpuError;
use crate::graph::{DeviceProfile, Graph, GraphError, LeafKind};
use crate::models::Network;
use crate::nn::{Storage, WeightMode};
use crate::plan::{Layout, MemoryReport, ParameterSpace, leaf_bytes};

/// The sizes of micro-batches, rounded up to buckets: each has a plan of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Whether the largest is among them: the most tokens may come without the most labels.
    pub largest: bool,
    /// How many others there are.
    pub smaller: usize,
}

impl Sizes {
    /// Most bytes of the parameters of their plans, which are made within this one of the largest, and of which so many are kept.
    fn parameter_bytes(self, layout: &Layout) -> u64 {
        u64::from(self.largest) * layout.parameter_bytes()
            + self.smaller.min(kept(layout)) as u64 * layout.most_parameter_bytes()
    }
}

/// The micro-batches that a run will have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The most tokens and labels of one.
    pub capacity: Capacity,
    /// Tokens of the longest sample.
    pub longest: usize,
    /// What occurs in training and in evaluation.
    pub training_sizes: Sizes,
    pub evaluation_sizes: Sizes,
    /// Smaller sizes than the largest, of which most tokens of the training come.
    pub common: [Option<Capacity>; 2],
    pub optimizer: OptimizerKind,
    /// Tokens of the longest text that is written at evaluations; 0 where none is.
    pub sampled: usize,
}

impl Demand {
    /// Micro-batches of one size: `samples` of `tokens` each, in which every token but the first carries a label.
    pub fn uniform(samples: usize, tokens: usize) -> Self {
        let capacity = Capacity { tokens: samples * tokens, labels: samples * tokens.saturating_sub(1) };
        Demand {
            capacity,
            longest: tokens,
            training_sizes: Sizes { largest: true, smaller: 0 },
            evaluation_sizes: Sizes { largest: true, smaller: 0 },
            common: [None; 2],
            optimizer: OptimizerKind::default(),
            sampled: 0,
        }
    }
}

/// A network planned for training.
#[derive(Clone, Debug)]
pub struct TrainingPlan {
    pub network: Network,
    pub optimizer: OptimizerKind,
    /// Rounded up to buckets.
    pub capacity: Capacity,
    /// The training graph at capacity.
    pub(super) graph: Graph,
    /// Training and evaluation at capacity, on one set of slots.
    pub(super) layouts: [Layout; 2],
    /// Peak bytes on the device, all plans of the run made.
    pub memory: MemoryReport,
    /// Bytes of host memory that stand in for the device's: weights that are streamed, a token embedding, kept activations.
    pub host_bytes: u64,
    /// The device's memory is the host's.
    pub unified_memory: bool,
    /// FLOPs of the largest training micro-batch, forward and reverse.
    pub flops: f64,
}

impl TrainingPlan {
    /// Plans a network for a device.
    ///
    /// # Errors
    /// Shapes that do not fit together.
    pub fn new(network: &Network, demand: &Demand, device: &DeviceProfile) -> Result<Self, GraphError> {
        let Demand { capacity, longest, training_sizes, evaluation_sizes, optimizer, sampled, .. } = *demand;
        let capacity = capacity.padded();
        let graph = training_graph(network, capacity)?;
        let evaluation = network.evaluation(capacity.tokens, capacity.labels)?;
        let layouts = [Layout::new(&graph, device), Layout::new(&evaluation, device)];
        let (update, _) = plan_update(&ParameterSpace::of(&graph), optimizer, network.fusions, device)?;
        let parameters =
            training_sizes.parameter_bytes(&layouts[0]) + evaluation_sizes.parameter_bytes(&layouts[1]);
        let visible = visible_share(capacity.tokens, longest);
        let flops = layouts[0].dispatches().map(|dispatch| {
            // a plan counts one segment: it does not know the samples
            let share = if dispatch.shader.name.starts_with("attention") { visible } else { 1.0 };
            dispatch.cost.flops * share
        });
        let flops = flops.sum();
        let layouts = Layout::share(layouts);
        let writing = match sampled {
            0 => MemoryReport::default(),
            tokens => plan_sampler(network, tokens, device)?,
        };
        let memory = MemoryReport {
            weights: weight_bytes(&graph, network),
            inputs: leaf_bytes(&graph, &[LeafKind::Input, LeafKind::State]) + update.inputs + writing.inputs,
            activations: layouts[0].slot_bytes() + update.activations + writing.activations,
            parameters: parameters + update.parameters + writing.parameters,
            ..update
        };
        let host_bytes = streamed_bytes(&graph, network)
            + HostEmbedding::planned_bytes(network)
            + leaf_bytes(&graph, &[LeafKind::Host]);
        let (network, unified_memory) = (network.clone(), device.unified_memory);
        Ok(TrainingPlan {
            network,
            optimizer,
            capacity,
            graph,
            layouts,
            memory,
            host_bytes,
            unified_memory,
            flops,
        })
    }

    /// Bytes that count against what the device has: those on it, and where its memory is the host's, those that wait there.
    pub fn needed_bytes(&self) -> u64 {
        self.memory.total() + self.shared_host_bytes()
    }

    /// Bytes in host memory, where that is the device's; 0 on all other devices.
    pub fn shared_host_bytes(&self) -> u64 {
        if self.unified_memory { self.host_bytes } else { 0 }
    }

    /// What to tell where options move bytes to host memory and the device's memory is just that.
    pub fn moved_in_vain(&self) -> Option<String> {
        let mut options = Vec::new();
        if let WeightMode::Frozen(Storage { offload: 1.., .. }) = self.network.weights {
            options.push("--offload");
        }
        options.extend(self.network.host_activations.then_some("--offload_activations"));
        let saves = if options.len() > 1 { "save" } else { "saves" };
        (self.unified_memory && !options.is_empty()).then(|| {
            format!("{} {saves} nothing: the memory of this device is the host's", options.join(" and "))
        })
    }

    /// Whether a device can run it at all, however much memory it has.
    ///
    /// # Errors
    /// [`GpuError::NoHostMemory`], and [`GpuError::OverLimit`] where a buffer is larger than the device can have, or a kernel binds
    /// more of them, or more at once, than it allows.
    pub fn check(&self, device: &DeviceProfile) -> Result<(), GpuError> {
        let streams = stream_layout(&self.graph, &self.network);
        if (self.network.host_activations || streams.slots > 0) && !device.host_buffers {
            return Err(GpuError::NoHostMemory);
        }
        GpuError::of_buffer("weights of a block in host memory", streams.slot_bytes, device)
            .map_or(Ok(()), Err)?;
        self.layouts.iter().try_for_each(|layout| layout.check(&self.graph, device))
    }

    pub fn recompute(&self) -> Recompute {
        self.network.recompute
    }
}
