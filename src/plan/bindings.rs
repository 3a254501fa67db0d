//! The buffers behind a graph's leaves: weights, the flat trainable buffer with its gradient, inputs, state.

use super::stream::Streamed;
use crate::gpu::{BufferSlice, Gpu, GpuError, Upload, allocation};
use crate::graph::{Graph, LeafKind, TensorType, Value};
use std::collections::HashMap;

/// Leaf name to device memory. Graphs of several sizes share one.
#[derive(Clone, Default)]
pub struct Bindings {
    leaves: HashMap<String, BufferSlice>,
    gradients: HashMap<String, BufferSlice>,
    streamed: HashMap<String, Streamed>,
}

impl Bindings {
    pub fn new() -> Self {
        Bindings::default()
    }

    /// Names the memory of a leaf.
    pub fn bind(&mut self, name: impl Into<String>, slice: BufferSlice) {
        self.leaves.insert(name.into(), slice);
    }

    /// Names the memory that gradients of a trainable leaf (or contributions to a state) are added to.
    pub fn bind_gradient(&mut self, name: impl Into<String>, slice: BufferSlice) {
        self.gradients.insert(name.into(), slice);
    }

    /// Names the memory of a leaf whose content comes anew in every run.
    pub fn stream(&mut self, name: impl Into<String>, slice: BufferSlice, streamed: Streamed) {
        let name = name.into();
        self.streamed.insert(name.clone(), streamed);
        self.bind(name, slice);
    }

    /// The block of a leaf that is streamed.
    pub(super) fn streamed(&self, name: &str) -> Option<usize> {
        self.streamed.get(name).map(|s| s.block)
    }

    /// What goes where, by block.
    pub(super) fn streams(&self) -> HashMap<usize, Upload> {
        self.streamed.values().map(|s| (s.block, s.upload.clone())).collect()
    }

    /// Bytes of host memory that wait to be streamed.
    pub fn streamed_bytes(&self) -> u64 {
        self.streams().values().map(|upload| upload.from.buffer.size()).sum()
    }

    /// What a graph's weights and parameters are bound to here, without its inputs.
    pub fn weights_of(&self, graph: &Graph) -> Bindings {
        let mut own = Bindings::new();
        for leaf in graph.leaves().iter().filter(|l| matches!(l.kind, LeafKind::Frozen | LeafKind::Trainable))
        {
            if let Some(slice) = self.leaves.get(&leaf.name) {
                own.leaves.insert(leaf.name.clone(), slice.clone());
            }
            if let Some(streamed) = self.streamed.get(&leaf.name) {
                own.streamed.insert(leaf.name.clone(), streamed.clone());
            }
        }
        own
    }

    pub fn leaf(&self, name: &str) -> Option<&BufferSlice> {
        self.leaves.get(name)
    }

    pub fn gradient(&self, name: &str) -> Option<&BufferSlice> {
        self.gradients.get(name)
    }

    /// Allocates what the graph's inputs, state and memory of the host need and is not bound yet; gives the bytes on the
    /// device.
    ///
    /// # Errors
    /// Failed allocations.
    pub fn allocate_inputs(&mut self, gpu: &Gpu, graph: &Graph) -> Result<u64, GpuError> {
        let mut bytes = 0;
        for leaf in graph.leaves().iter().filter(|l| l.kind == LeafKind::Host) {
            if !self.leaves.contains_key(&leaf.name) {
                let buffer = gpu.allocate_on_host(&leaf.name, graph.type_of(leaf.value).bytes())?;
                self.bind(leaf.name.clone(), buffer.whole());
            }
        }
        for leaf in graph.leaves() {
            if matches!(leaf.kind, LeafKind::Input | LeafKind::State) && !self.leaves.contains_key(&leaf.name)
            {
                let buffer = gpu.allocate(&leaf.name, graph.type_of(leaf.value).bytes())?;
                bytes += buffer.size();
                self.bind(leaf.name.clone(), buffer.whole());
            }
        }
        Ok(bytes)
    }
}

/// Bytes that the graph's leaves of these kinds take on a device, each in a buffer of its own.
pub fn leaf_bytes(graph: &Graph, kinds: &[LeafKind]) -> u64 {
    let leaves = graph.leaves().iter().filter(|leaf| kinds.contains(&leaf.kind));
    leaves.map(|leaf| allocation(graph.type_of(leaf.value).bytes())).sum()
}

/// All trainable parameters as ranges of one flat f32 buffer, in a fixed order; gradients and moments share the ranges.
#[derive(Clone, Debug, Default)]
pub struct ParameterSpace {
    entries: Vec<(String, TensorType, u64)>,
    bytes: u64,
    /// Where the second group begins.
    second: Option<u64>,
}

/// What the names of B matrices end in, which may have a rate of their own.
const SECOND: &str = ".lora_B.weight";

/// Parameters start at multiples of this, the largest offset alignment that WebGPU lets a device ask for.
const ALIGNMENT: u64 = 256;

impl ParameterSpace {
    /// The trainable leaves of a graph, in the graph's order, the B matrices of adapters behind all others.
    pub fn of(graph: &Graph) -> Self {
        let mut space = ParameterSpace::default();
        let trainable = graph.leaves().iter().filter(|l| l.kind == LeafKind::Trainable);
        let (behind, before): (Vec<_>, Vec<_>) = trainable.partition(|leaf| leaf.name.ends_with(SECOND));
        for (second, leaf) in before.iter().map(|l| (false, l)).chain(behind.iter().map(|l| (true, l))) {
            if second && space.second.is_none() {
                space.second = Some(space.bytes);
            }
            let ty = graph.type_of(leaf.value);
            space.entries.push((leaf.name.clone(), ty, space.bytes));
            space.bytes += ty.bytes().next_multiple_of(ALIGNMENT);
        }
        space
    }

    /// Name, type and byte offset of each parameter.
    pub fn entries(&self) -> &[(String, TensorType, u64)] {
        &self.entries
    }

    /// The element of the flat buffer from which on the B matrices of adapters lie; its length where there are none.
    pub fn second_from(&self) -> usize {
        (self.second.unwrap_or(self.bytes) / 4) as usize
    }

    /// Bytes of the flat buffer.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of parameters, padding not counted.
    pub fn elements(&self) -> u64 {
        self.entries.iter().map(|(_, ty, _)| ty.shape.elements() as u64).sum()
    }

    /// Binds every parameter to its range of `values`, and its gradient to that of `gradients`.
    pub fn bind(&self, bindings: &mut Bindings, values: &BufferSlice, gradients: Option<&BufferSlice>) {
        for (name, ty, offset) in &self.entries {
            bindings.bind(name.clone(), values.part(*offset, ty.bytes()));
            if let Some(gradients) = gradients {
                bindings.bind_gradient(name.clone(), gradients.part(*offset, ty.bytes()));
            }
        }
    }
}

/// The leaf's memory, or an error that names it.
pub(super) fn resolve(
    graph: &Graph,
    bindings: &Bindings,
    value: Value,
    gradient: bool,
) -> Result<BufferSlice, super::PlanError> {
    let name = graph.leaf_of(value).map(|l| l.name.clone()).unwrap_or_default();
    let found = match gradient {
        true => bindings.gradient(&name).or_else(|| bindings.leaf(&name)),
        false => bindings.leaf(&name),
    };
    let needed = graph.type_of(value).bytes();
    match found {
        None => Err(super::PlanError::Unbound { name }),
        Some(slice) if slice.size < needed => {
            Err(super::PlanError::TooSmall { name, size: slice.size, needed })
        }
        // one buffer serves all sizes of a network: bind what this one uses
        Some(slice) => Ok(slice.part(0, needed)),
    }
}
