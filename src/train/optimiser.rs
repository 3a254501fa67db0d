//! The flat trainable buffer with its gradient and moments, and the optimiser's step on it.

use super::options::OptimizerKind;
use crate::fuse::{Fusions, fuse};
use crate::gpu::{BufferSlice, Gpu, GpuError, Recording, allocation};
use crate::graph::layout::{pack, unpack};
use crate::graph::{Cost, DType, DeviceProfile, Graph, GraphError, Shape, TensorType};
use crate::ops::adamw::{HYPER_LEN, Hyper, adamw};
use crate::ops::norm_squared::norm_squared;
use crate::ops::sgd::sgd;
use crate::plan::{Bindings, Layout, MemoryReport, ParameterSpace, PlanError, Program};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum OptimiserError {
    #[error("the parameter {0:?} is not trained in this run")]
    Unknown(String),
    #[error("the parameter {name:?} has {expected} elements, {found} were given")]
    Length { name: String, expected: usize, found: usize },
    #[error("the graph of the optimiser is wrong: {0}")]
    Graph(#[from] GraphError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// Bytes of each of the flat buffers.
fn flat_bytes(space: &ParameterSpace) -> u64 {
    space.bytes().max(16)
}

/// Names of the moments, in the order that the update takes them.
pub(super) fn moment_names(kind: OptimizerKind) -> &'static [&'static str] {
    match kind {
        OptimizerKind::AdamW => &["first", "second"],
        OptimizerKind::Sgd => &["first"],
    }
}

/// The update of all parameters at once.
fn update_graph(space: &ParameterSpace, kind: OptimizerKind, fusions: Fusions) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let shape = Shape::vector(flat_bytes(space) as usize / 4);
    let values = graph.state("values", shape, DType::F32)?;
    let moments = moment_names(kind)
        .iter()
        .map(|name| graph.state(*name, shape, DType::F32))
        .collect::<Result<Vec<_>, _>>()?;
    let gradient = graph.input("gradient", shape, DType::F32)?;
    let hyper = graph.input("hyper", Shape::vector(HYPER_LEN), DType::F32)?;
    let norm2 = norm_squared(&mut graph, gradient)?;
    let from = space.second_from();
    match moments[..] {
        [first, second] => adamw(&mut graph, from, [values, first, second], gradient, norm2, hyper)?,
        _ => sgd(&mut graph, from, [values, moments[0]], gradient, norm2, hyper)?,
    };
    graph.output("norm2", norm2);
    fuse(graph, fusions)
}

/// What [`Optimiser::new`] takes on a device, and the work of an update.
///
/// # Errors
/// As [`Optimiser::new`].
pub fn plan_update(
    space: &ParameterSpace,
    kind: OptimizerKind,
    fusions: Fusions,
    device: &DeviceProfile,
) -> Result<(MemoryReport, Cost), GraphError> {
    let layout = Layout::new(&update_graph(space, kind, fusions)?, device);
    let flat = allocation(flat_bytes(space));
    let mut cost = Cost::default();
    layout.dispatches().for_each(|dispatch| cost += dispatch.cost);
    let memory = MemoryReport {
        trainables: 2 * flat,
        optimiser: moment_names(kind).len() as u64 * flat,
        inputs: allocation(4 * HYPER_LEN as u64),
        activations: layout.slot_bytes(),
        parameters: layout.parameter_bytes(),
        ..MemoryReport::default()
    };
    Ok((memory, cost))
}

/// AdamW or SGD over all trainable parameters.
pub struct Optimiser {
    gpu: Gpu,
    space: ParameterSpace,
    values: BufferSlice,
    gradients: BufferSlice,
    /// By name.
    moments: Vec<(&'static str, BufferSlice)>,
    hyper: BufferSlice,
    program: Program,
}

impl Optimiser {
    /// Allocates zeroed parameters, gradients and moments for `space`.
    ///
    /// # Errors
    /// Failed allocations.
    pub fn new(gpu: &Gpu, space: ParameterSpace, kind: OptimizerKind) -> Result<Self, OptimiserError> {
        Optimiser::with(gpu, space, kind, Fusions::default())
    }

    /// [`Optimiser::new`], with these fusions alone.
    ///
    /// # Errors
    /// As [`Optimiser::new`].
    pub fn with(
        gpu: &Gpu,
        space: ParameterSpace,
        kind: OptimizerKind,
        fusions: Fusions,
    ) -> Result<Self, OptimiserError> {
        let bytes = flat_bytes(&space);
        let allocate = |what| gpu.allocate(what, bytes).map(|b| b.whole());
        let (values, gradients) = (allocate("trainable parameters")?, allocate("gradients")?);
        let moments = moment_names(kind)
            .iter()
            .map(|name| Ok((*name, allocate("moments of the optimiser")?)))
            .collect::<Result<Vec<_>, GpuError>>()?;
        let hyper = gpu.allocate("hyperparameters", 4 * HYPER_LEN as u64)?.whole();

        let graph = update_graph(&space, kind, fusions)?;
        let mut bindings = Bindings::new();
        bindings.bind("values", values.clone());
        moments.iter().for_each(|(name, slice)| bindings.bind(*name, slice.clone()));
        bindings.bind("gradient", gradients.clone());
        bindings.bind("hyper", hyper.clone());
        let program = Program::compile(gpu, &graph, &bindings)?;
        Ok(Optimiser { gpu: gpu.clone(), space, values, gradients, moments, hyper, program })
    }

    pub fn space(&self) -> &ParameterSpace {
        &self.space
    }

    /// Binds the parameters of a network's graphs to their ranges.
    pub fn bind(&self, bindings: &mut Bindings) {
        self.space.bind(bindings, &self.values, Some(&self.gradients));
    }

    /// Name, type and device memory of each parameter.
    pub fn slices(&self) -> impl Iterator<Item = (&str, TensorType, BufferSlice)> {
        let slice = |(_, ty, offset): &'_ (String, TensorType, u64)| self.values.part(*offset, ty.bytes());
        self.space.entries().iter().map(move |entry| (entry.0.as_str(), entry.1, slice(entry)))
    }

    /// What must be zeroed before a window of accumulation.
    pub fn gradient_buffer(&self) -> &BufferSlice {
        &self.gradients
    }

    /// Bytes of parameters with gradients, and of the moments.
    pub fn bytes(&self) -> (u64, u64) {
        (self.values.size + self.gradients.size, self.moments.iter().map(|(_, slice)| slice.size).sum())
    }

    /// Bytes of the hyperparameters' buffer.
    pub fn input_bytes(&self) -> u64 {
        self.hyper.size
    }

    /// Bytes of scratch space.
    pub fn slot_bytes(&self) -> u64 {
        self.program.slot_bytes()
    }

    /// Runs the update; gives where the squared norm of the scaled gradient can be read.
    ///
    /// # Errors
    /// What the device reported.
    pub fn step(&self, hyper: &Hyper) -> Result<BufferSlice, OptimiserError> {
        self.hyper.write(bytemuck::cast_slice(&hyper.to_array()));
        self.gpu.submit(&[], &[self.program.recording()])?;
        Ok(self.program.output("norm2")?.part(0, 4))
    }

    /// The dispatches of an update.
    pub fn recording(&self) -> &Recording {
        self.program.recording()
    }

    /// Sets one parameter, row-major.
    ///
    /// # Errors
    /// An unknown name or a wrong number of elements.
    pub fn set(&self, name: &str, values: &[f32]) -> Result<(), OptimiserError> {
        self.write(&self.values, name, values)
    }

    fn write(&self, to: &BufferSlice, name: &str, values: &[f32]) -> Result<(), OptimiserError> {
        let found = self.space.entries().iter().find(|(n, _, _)| n == name);
        let (_, ty, offset) = found.ok_or_else(|| OptimiserError::Unknown(name.to_string()))?;
        if ty.shape.elements() != values.len() {
            let (expected, found) = (ty.shape.elements(), values.len());
            return Err(OptimiserError::Length { name: name.to_string(), expected, found });
        }
        to.part(*offset, ty.bytes()).write(&pack(*ty, values));
        Ok(())
    }

    /// Every parameter, row-major, in the order of the space.
    ///
    /// # Errors
    /// What the device reported.
    pub fn parameters(&self) -> Result<Vec<(String, Vec<f32>)>, OptimiserError> {
        self.read(&self.values)
    }

    /// Every gradient as accumulated, before clipping and with the loss scale in it.
    ///
    /// # Errors
    /// What the device reported.
    pub fn gradients(&self) -> Result<Vec<(String, Vec<f32>)>, OptimiserError> {
        self.read(&self.gradients)
    }

    /// Values and moments of every parameter as `values.NAME`, `first.NAME` and, of AdamW, `second.NAME`.
    ///
    /// # Errors
    /// What the device reported.
    pub fn state(&self) -> Result<Vec<(String, Vec<f32>)>, OptimiserError> {
        let mut all = Vec::new();
        for (kind, slice) in self.kinds() {
            all.extend(
                self.read(slice)?.into_iter().map(|(name, values)| (format!("{kind}.{name}"), values)),
            );
        }
        Ok(all)
    }

    /// The names of [`Optimiser::state`].
    pub fn state_names(&self) -> Vec<String> {
        let names = self.space.entries().iter().map(|(name, _, _)| name);
        self.kinds()
            .iter()
            .flat_map(|(kind, _)| names.clone().map(move |name| format!("{kind}.{name}")))
            .collect()
    }

    /// Sets one of [`Optimiser::state`].
    ///
    /// # Errors
    /// An unknown name or a wrong number of elements.
    pub fn set_state(&self, name: &str, values: &[f32]) -> Result<(), OptimiserError> {
        let unknown = || OptimiserError::Unknown(name.to_string());
        let (kind, parameter) = name.split_once('.').ok_or_else(unknown)?;
        let kinds = self.kinds();
        let (_, slice) = kinds.iter().find(|(k, _)| *k == kind).ok_or_else(unknown)?;
        self.write(slice, parameter, values)
    }

    fn kinds(&self) -> Vec<(&'static str, &BufferSlice)> {
        let moments = self.moments.iter().map(|(name, slice)| (*name, slice));
        std::iter::once(("values", &self.values)).chain(moments).collect()
    }

    fn read(&self, from: &BufferSlice) -> Result<Vec<(String, Vec<f32>)>, OptimiserError> {
        let bytes = self.gpu.read(std::slice::from_ref(from))?.swap_remove(0);
        let entry = |(name, ty, offset): &(String, crate::graph::TensorType, u64)| {
            (name.clone(), unpack(*ty, &bytes[*offset as usize..]))
        };
        Ok(self.space.entries().iter().map(entry).collect())
    }
}
