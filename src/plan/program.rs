//! A planned graph bound to buffers: each run only encodes and submits.

use super::Bindings;
use super::bindings::resolve;
use super::slots::{Home, Layout};
use super::stream::Stretches;
use crate::gpu::{Buffer, BufferSlice, Gpu, GpuError, Recording, Work};
use crate::graph::{Cost, Graph, Place, Value};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum PlanError {
    #[error("the tensor {name:?} of the graph has no memory bound to it")]
    Unbound { name: String },
    #[error("the memory bound to {name:?} has {size} bytes, {needed} are needed")]
    TooSmall { name: String, size: u64, needed: u64 },
    #[error("the graph has no output {0:?}")]
    NoOutput(String),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// The buffers of a [`Layout`]'s slots.
#[derive(Clone)]
pub struct Slots {
    buffers: Vec<Buffer>,
}

impl Slots {
    /// # Errors
    /// Failed allocations.
    pub fn allocate(gpu: &Gpu, layout: &Layout) -> Result<Self, GpuError> {
        let buffers =
            layout.sizes.iter().map(|&bytes| gpu.allocate("activations", bytes)).collect::<Result<_, _>>()?;
        Ok(Slots { buffers })
    }

    /// [`Layout::share`], and allocates once for all of them.
    ///
    /// # Errors
    /// Failed allocations.
    pub fn shared<const N: usize>(gpu: &Gpu, layouts: [Layout; N]) -> Result<(Self, [Layout; N]), GpuError> {
        let layouts = Layout::share(layouts);
        let slots = Slots::allocate(gpu, &layouts[0])?;
        Ok((slots, layouts))
    }

    pub fn bytes(&self) -> u64 {
        self.buffers.iter().map(Buffer::size).sum()
    }
}

/// A graph ready to be replayed.
pub struct Program {
    recording: Recording,
    outputs: Vec<(String, BufferSlice)>,
    /// Keeps the slots alive, and counted, as long as dispatches use them.
    slots: Slots,
}

impl Program {
    /// Compiles kernels and binds every dispatch.
    ///
    /// # Errors
    /// A leaf without memory, and what the device refuses.
    pub fn new(
        gpu: &Gpu,
        graph: &Graph,
        layout: &Layout,
        slots: &Slots,
        bindings: &Bindings,
    ) -> Result<Self, PlanError> {
        let memory = |value: Value| -> Result<BufferSlice, PlanError> {
            match layout.homes.get(&value) {
                Some(Home::Slot(slot)) => Ok(slots.buffers[*slot].slice(0, graph.type_of(value).bytes())),
                Some(Home::Accumulator(parameter)) => resolve(graph, bindings, *parameter, true),
                Some(Home::Leaf(leaf)) => resolve(graph, bindings, *leaf, false),
                None => resolve(graph, bindings, value, false),
            }
        };
        let mut work = Vec::new();
        let mut stretches = Stretches::default();
        for ((n, launch), scratch) in layout.nodes.iter().zip(&layout.workspaces) {
            let node = &graph.nodes()[*n];
            for dispatch in &launch.dispatches {
                let buffers = dispatch
                    .bindings
                    .iter()
                    .map(|binding| match binding.place {
                        Place::Input(i) => memory(node.inputs[i]),
                        Place::Output(o) => memory(node.outputs[o]),
                        Place::Workspace(w) => Ok(slots.buffers[scratch[w]].slice(0, launch.workspaces[w])),
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                for binding in &dispatch.bindings {
                    let Place::Input(i) = binding.place else { continue };
                    let leaf = graph.leaf_of(node.inputs[i]);
                    if let Some(block) = leaf.and_then(|leaf| bindings.streamed(&leaf.name)) {
                        stretches.reads(work.len(), block);
                    }
                }
                let on_host = dispatch.bindings.iter().any(|binding| match binding.place {
                    Place::Input(i) => layout.is_on_host(graph, node.inputs[i]),
                    Place::Output(o) => layout.is_on_host(graph, node.outputs[o]),
                    Place::Workspace(_) => false,
                });
                work.push(Work { dispatch, buffers, on_host });
            }
        }
        let mut recording = gpu.record(&work)?;
        stretches.upload(&mut recording, &bindings.streams());
        let outputs = graph
            .outputs()
            .iter()
            .map(|(name, value)| Ok((name.clone(), memory(*value)?)))
            .collect::<Result<_, PlanError>>()?;
        Ok(Program { recording, outputs, slots: slots.clone() })
    }

    /// Plans, allocates and binds a graph by itself.
    ///
    /// # Errors
    /// As [`Program::new`].
    pub fn compile(gpu: &Gpu, graph: &Graph, bindings: &Bindings) -> Result<Self, PlanError> {
        let layout = Layout::new(graph, &gpu.profile());
        let slots = Slots::allocate(gpu, &layout)?;
        Program::new(gpu, graph, &layout, &slots, bindings)
    }

    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Memory of a named output.
    ///
    /// # Errors
    /// [`PlanError::NoOutput`].
    pub fn output(&self, name: &str) -> Result<&BufferSlice, PlanError> {
        let found = self.outputs.iter().find(|(n, _)| n == name);
        found.map(|(_, slice)| slice).ok_or_else(|| PlanError::NoOutput(name.to_string()))
    }

    /// Bytes of the slots it runs in, shared or not.
    pub fn slot_bytes(&self) -> u64 {
        self.slots.bytes()
    }

    /// Estimated work of one run.
    pub fn cost(&self) -> Cost {
        self.recording.cost()
    }
}
