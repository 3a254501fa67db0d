//! Single operations on random numbers: products, attention, a layer with its adapter, and what the device can do at best.

use crate::error::Error;
use crate::gpu::{Gpu, GpuError, Recording};
use crate::graph::blocks::sample;
use crate::graph::layout::pack;
use crate::graph::{Cost, DType, DeviceProfile, Graph, GraphError, Leaf, LeafKind, ReverseNode, Shape};
use crate::ops::attention::{AttentionGradient, Scoring, Visibility, attention};
use crate::ops::copy::copy;
use crate::ops::lora_linear::{Dropped, lora_linear};
use crate::ops::matmul::{Layout, matmul};
use crate::plan::{Bindings, Program};
use crate::train::options::Precision;
use crate::train::trainer::TrainerError;
use crate::train::tuning::{TuneProgress, TuneReport, Tuner};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// One operation that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelReport {
    pub name: String,
    /// Of all its dispatches, in the fastest run.
    pub seconds: f64,
    pub gflops: f64,
    pub gb_per_s: f64,
    /// The kernels that served, of those that are chosen by measurement.
    pub variants: Vec<String>,
}

/// What the device reaches at best: the measure of everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Peak {
    /// GFLOP/s of the best product: a large square one in bf16 or the run's own type, or one of those that were measured.
    pub gflops: f64,
    /// GB/s of a copy, bytes read and written.
    pub gb_per_s: f64,
}

impl Peak {
    /// The same, or what the best of other products reaches.
    pub fn with_products(self, gflops: impl IntoIterator<Item = f64>) -> Peak {
        Peak { gflops: gflops.into_iter().fold(self.gflops, f64::max), ..self }
    }
}

/// An operation with memory behind every leaf, ready to run.
pub struct Runnable {
    gpu: Gpu,
    program: Program,
    tuned: TuneReport,
}

/// Timed runs, after one that compiles; the fastest counts.
const RUNS: usize = 5;

impl Runnable {
    /// Measures kernels where `tuner` says so, fills every float leaf with numbers in [-1, 1), every quantised one with codes
    /// and every index leaf with what `indices` holds under its name, and compiles.
    ///
    /// # Errors
    /// Failed allocations and what the device reported.
    pub fn new(
        gpu: &Gpu,
        graph: &Graph,
        indices: &[(&str, Vec<u32>)],
        tuner: &Tuner,
        progress: &mut dyn FnMut(&TuneProgress),
    ) -> Result<Self, Error> {
        fits(graph, &gpu.profile())?;
        let tuned = tuner.prepare(gpu, graph, progress)?;
        let mut bindings = Bindings::new();
        for leaf in graph.leaves() {
            let ty = graph.type_of(leaf.value);
            let slice = gpu.allocate(&leaf.name, ty.bytes())?.whole();
            if ty.dtype.is_quantised() {
                // quantising numbers would take longer than everything else
                slice.write(&sample(ty));
            } else if ty.dtype != DType::U32 {
                // steps of 1/32 lie in every storage type exactly
                let values: Vec<f32> =
                    (0..ty.shape.elements()).map(|i| ((i * 7919) % 64) as f32 / 32.0 - 1.0).collect();
                slice.write(&pack(ty, &values));
            } else if let Some((_, values)) = indices.iter().find(|(name, _)| *name == leaf.name) {
                slice.write(bytemuck::cast_slice(values));
            }
            if leaf.kind == LeafKind::Trainable {
                bindings.bind_gradient(leaf.name.clone(), gpu.allocate(&leaf.name, ty.bytes())?.whole());
            }
            bindings.bind(leaf.name.clone(), slice);
        }
        let program = Program::compile(gpu, graph, &bindings).map_err(TrainerError::from)?;
        Ok(Runnable { gpu: gpu.clone(), program, tuned })
    }

    /// What measuring kernels for it took, and said.
    pub fn tuned(&self) -> &TuneReport {
        &self.tuned
    }

    /// Runs once and waits.
    ///
    /// # Errors
    /// What the device reported.
    pub fn run(&self) -> Result<(), Error> {
        self.gpu.submit(&[], &[self.program.recording()])?;
        Ok(self.gpu.wait()?)
    }

    /// Times it; `share` of the plan's FLOPs are really done (below 1 where attention skips what it does not see).
    ///
    /// # Errors
    /// What the device reported.
    pub fn measure(&self, name: impl Into<String>, share: f64) -> Result<KernelReport, Error> {
        let (seconds, cost, variants) = fastest(&self.gpu, self.program.recording())?;
        let per_second = |amount: f64| amount / seconds / 1e9;
        let (gflops, gb_per_s) = (per_second(share * cost.flops), per_second(cost.bytes));
        Ok(KernelReport { name: name.into(), seconds, gflops, gb_per_s, variants })
    }
}

/// Whether a device can have every leaf, however much memory it has: known before anything is made for it.
///
/// # Errors
/// [`GpuError::OverLimit`].
pub fn fits(graph: &Graph, device: &DeviceProfile) -> Result<(), GpuError> {
    let of_leaf = |leaf: &Leaf| GpuError::of_buffer(&leaf.name, graph.type_of(leaf.value).bytes(), device);
    graph.leaves().iter().find_map(of_leaf).map_or(Ok(()), Err)
}

/// Seconds of the fastest run, its dispatches added up, and which kernels it has.
fn fastest(gpu: &Gpu, recording: &Recording) -> Result<(f64, Cost, Vec<String>), Error> {
    let mut variants: Vec<String> = gpu.time(recording)?.into_iter().map(|t| t.variant).collect();
    variants.retain(|variant| !variant.is_empty());
    variants.dedup();
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        best = best.min(gpu.time(recording)?.iter().map(|t| t.seconds).sum());
    }
    Ok((best, recording.cost(), variants))
}

/// What a linear layer's weight is stored in, and what its input and output are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LayerStorage {
    #[serde(rename = "storage")]
    pub weight: DType,
    pub activations: DType,
}

impl From<DType> for LayerStorage {
    /// A float type is that of the activations too; beside a quantised one they are what `finetune` has by default.
    fn from(weight: DType) -> Self {
        let activations = if weight.is_quantised() { Precision::default().activations() } else { weight };
        LayerStorage { weight, activations }
    }
}

impl fmt::Display for LayerStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weight == self.activations {
            true => f.pad(self.weight.name()),
            false => f.pad(&format!("{} weights, {} activations", self.weight, self.activations)),
        }
    }
}

/// A `[m, n]` product over k, of which `b` is the weight: in [`Layout::NT`] that of a layer, in [`Layout::NN`] that of the gradient
/// of its input.
///
/// # Errors
/// A name that is taken: none here.
pub fn product(
    layout: Layout,
    (m, n, k): (usize, usize, usize),
    storage: impl Into<LayerStorage>,
) -> Result<Graph, GraphError> {
    let LayerStorage { weight, activations } = storage.into();
    let (a, b) = match layout {
        Layout::NT => ([m, k], [n, k]),
        Layout::NN => ([m, k], [k, n]),
        Layout::TN => ([k, m], [k, n]),
    };
    let mut graph = Graph::new();
    let a = graph.input("a", Shape::new(&a), activations)?;
    let b = graph.input("b", Shape::new(&b), weight)?;
    let c = matmul(&mut graph, layout, a, b, 1.0, activations)?;
    graph.output("c", c);
    Ok(graph)
}

/// The gradients that a layer's reverse pass makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerGradients {
    None,
    /// dA and dB, as in the first block, whose input nothing trained comes before.
    Adapter,
    /// dx as well, as in all other blocks.
    AdapterAndInput,
}

/// `y [tokens, outputs]` of `x [tokens, inputs]` with an adapter of this rank, or without one and any gradient where it is 0.
///
/// # Errors
/// Shapes that do not fit: none here.
pub fn layer(
    tokens: usize,
    (outputs, inputs): (usize, usize),
    rank: usize,
    storage: impl Into<LayerStorage>,
    gradients: LayerGradients,
) -> Result<Graph, GraphError> {
    let LayerStorage { weight, activations } = storage.into();
    let mut graph = Graph::new();
    let x = graph.input("x", Shape::matrix(tokens, inputs), activations)?;
    let weight = graph.frozen("weight", Shape::matrix(outputs, inputs), weight)?;
    if rank == 0 {
        let y = matmul(&mut graph, Layout::NT, x, weight, 1.0, activations)?;
        graph.output("y", y);
        return Ok(graph);
    }
    let a = graph.trainable("a", Shape::matrix(rank, inputs))?;
    let b = graph.trainable("b", Shape::matrix(outputs, rank))?;
    let y = lora_linear(&mut graph, x, weight, (a, b), Dropped::Not, 2.0, activations)?;
    graph.output("y", y);
    if gradients != LayerGradients::None
        && let Some((node, _)) = graph.producer(y)
    {
        let dy = graph.input("dy", Shape::matrix(tokens, outputs), activations)?;
        // by the layer's own rule: `differentiate` wants no gradient of an input of the graph
        let node = graph.nodes()[node].clone();
        let wanted = [gradients == LayerGradients::AdapterAndInput, false, true, true];
        let (inputs, outputs, gradients) = (&node.inputs, &node.outputs, &[Some(dy), None]);
        let made =
            node.op.reverse(&mut graph, &ReverseNode { inputs, outputs, gradients, wanted: &wanted })?;
        for (&input, gradient) in node.inputs.iter().zip(made) {
            match gradient {
                Some(dx) if input == x => graph.output("dx", dx),
                Some(gradient) => graph.accumulate(input, gradient),
                None => {}
            }
        }
    }
    Ok(graph)
}

/// Heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Causal attention over a stream of `tokens`, or its gradient.
///
/// # Errors
/// Head counts that do not divide.
pub fn causal_attention(
    tokens: usize,
    heads: Heads,
    dtype: DType,
    gradient: bool,
) -> Result<Graph, GraphError> {
    let Heads { heads, kv_heads, head_dim } = heads;
    let scoring = Scoring::of(head_dim);
    let mut graph = Graph::new();
    let wide = Shape::matrix(tokens, heads * head_dim);
    let narrow = Shape::matrix(tokens, kv_heads * head_dim);
    let q = graph.input("q", wide, dtype)?;
    let k = graph.input("k", narrow, dtype)?;
    let v = graph.input("v", narrow, dtype)?;
    let mut index = |name: &str| graph.input(name, Shape::vector(tokens), DType::U32);
    let visibility =
        Visibility { starts: index("starts")?, ends: index("ends")?, query_ends: index("query_ends")? };
    if gradient {
        let o = graph.input("o", wide, dtype)?;
        let lse = graph.input("lse", Shape::matrix(heads, tokens), DType::F32)?;
        let d_o = graph.input("do", wide, dtype)?;
        let Visibility { starts, ends, query_ends } = visibility;
        let inputs = [q, k, v, o, lse, d_o, starts, ends, query_ends];
        let gradients = graph.apply(Arc::new(AttentionGradient::of(scoring)), &inputs)?;
        for (name, value) in ["dq", "dk", "dv"].into_iter().zip(gradients) {
            graph.output(name, value);
        }
    } else {
        let o = attention(&mut graph, (q, k, v), &visibility, scoring)?;
        graph.output("o", o);
    }
    Ok(graph)
}

/// What [`causal_attention`] reads: `tokens` in segments of `segment`.
pub fn segments(tokens: usize, segment: usize) -> [(&'static str, Vec<u32>); 3] {
    let (tokens, segment) = (tokens as u32, segment as u32);
    let start = |t: u32| t / segment * segment;
    [
        ("starts", (0..tokens).map(start).collect()),
        ("ends", (1..=tokens).collect()),
        ("query_ends", (0..tokens).map(|t| (start(t) + segment).min(tokens)).collect()),
    ]
}

/// Measures a copy and large products: in bf16, and in `dtype`, for which a device may have matrix units.
///
/// # Errors
/// Failed allocations and what the device reported.
pub fn peak(
    gpu: &Gpu,
    tuner: &Tuner,
    dtype: DType,
    progress: &mut dyn FnMut(&TuneProgress),
) -> Result<Peak, Error> {
    // large enough to fill the device, small enough for a software one and for every binding limit
    let (side, rows) = if gpu.info().is_software() { (1024, 8 << 10) } else { (4096, 24 << 10) };
    let mut best = Vec::new();
    for dtype in [Some(DType::BF16), Some(dtype).filter(|&other| other != DType::BF16)].into_iter().flatten()
    {
        let graph = product(Layout::NT, (side, side, side), dtype).map_err(TrainerError::from)?;
        best.push(Runnable::new(gpu, &graph, &[], tuner, progress)?.measure("product", 1.0)?.gflops);
    }
    let mut graph = Graph::new();
    let copied = graph
        .input("x", Shape::matrix(rows, 1024), DType::F32)
        .and_then(|x| copy(&mut graph, x, DType::F32))
        .map_err(TrainerError::from)?;
    graph.output("y", copied);
    let moved = Runnable::new(gpu, &graph, &[], tuner, progress)?.measure("copy", 1.0)?;
    Ok(Peak { gflops: 0.0, gb_per_s: moved.gb_per_s }.with_products(best))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantised_weight_has_finetunes_activations_beside_it() {
        for dtype in [DType::Nf4, DType::Nf4Double, DType::Int8] {
            let graph = layer(16, (8, 12), 2, dtype, LayerGradients::AdapterAndInput).unwrap();
            let stored = |name: &str| {
                let leaf = graph.leaves().iter().find(|leaf| leaf.name == name).unwrap();
                graph.type_of(leaf.value).dtype
            };
            assert_eq!(["x", "weight", "dy"].map(stored), [DType::BF16, dtype, DType::BF16]);
        }
        assert_eq!(LayerStorage::from(DType::Int8).to_string(), "int8 weights, bf16 activations");
        assert_eq!(LayerStorage::from(DType::F16).to_string(), "f16");
    }
    #[test]
    fn a_layers_gradients_are_those_asked_for() {
        let flops = |rank, gradients| {
            let graph = layer(16, (8, 12), rank, DType::F32, gradients).unwrap();
            let dx = graph.outputs().iter().any(|(name, _)| name == "dx");
            let layout = crate::plan::Layout::new(&graph, &DeviceProfile::typical_gpu());
            (dx, layout.dispatches().map(|d| d.cost.flops).sum::<f64>())
        };
        let [(no, forward), (none, adapter), (dx, all)] =
            [LayerGradients::None, LayerGradients::Adapter, LayerGradients::AdapterAndInput]
                .map(|g| flops(2, g));
        assert_eq!([no, none, dx], [false, false, true]);
        // x·Wᵀ and h·Bᵀ beside x·Aᵀ; then dy·B, eᵀ·x and dyᵀ·h; then dy·W and e·A
        let product = |m: usize, n: usize, k: usize| (2 * m * n * k) as f64;
        assert!((forward - product(16, 8, 14) - product(16, 2, 12)).abs() < 1.0, "{forward}");
        assert!((adapter - forward - product(16, 2, 8) - product(2, 12, 16) - product(8, 2, 16)).abs() < 1.0);
        assert!((all - adapter - product(16, 12, 10)).abs() < 1.0, "{all}");
    }
}
