//! What an operation asks of a device, as plain data: shaders, bindings, grid and cost.
//!
//! Declarations of bindings and parameters are generated from this description, so the two sides
//! cannot disagree: a binding named `x` gives the shader `load_x(i)` (and `store_x(i, v)` where it
//! may be written), each moving the i-th group of four elements as `vec4<f32>`.

use super::choices::{Alternatives, Choices};
use super::matrices::{Cooperative, MatrixShape, SharedMatrices};
use super::{DType, TensorType};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The facts about a device that decide which kernel is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceProfile {
    /// Kernels run on CPU cores: workgroup memory and barriers cost more than they save.
    pub cpu: bool,
    /// Subgroup size where it is known, the same for all kernels, and usable in WGSL.
    pub subgroup: Option<u32>,
    /// Groups of four move as 64-bit words: a CPU device that has them.
    pub wide_loads: bool,
    /// Matrix units that WGSL reaches: f16 operands, f32 sums.
    pub cooperative: Option<Cooperative>,
    /// How kernels can hand cooperative matrices on through workgroup memory.
    pub shared_matrices: Option<SharedMatrices>,
    pub max_workgroup_invocations: u32,
    pub max_workgroup_storage: u32,
    /// Bytes that one binding can be; 0 where that is not known to matter. What is larger is bound in pieces.
    pub max_binding: u64,
    /// Bytes that one buffer can be; 0 where that is not known to matter.
    pub max_buffer: u64,
    /// Storage buffers that one kernel can bind; 0 where that is not known to matter.
    pub max_storage_buffers: u32,
    /// Buffers can lie in memory of the host, where the device copies from them and kernels read and write them.
    pub host_buffers: bool,
    /// The device's memory is the host's: what lies there takes of it too.
    pub unified_memory: bool,
    /// Kernels that were measured here.
    pub choices: Arc<Choices>,
}

impl DeviceProfile {
    /// A discrete GPU as most are, for plans without a device: subgroups of 32, no matrix units, nothing measured.
    pub fn typical_gpu() -> Self {
        DeviceProfile {
            subgroup: Some(32),
            max_workgroup_invocations: 1024,
            max_workgroup_storage: 32 << 10,
            host_buffers: true,
            ..DeviceProfile::default()
        }
    }

    /// One device of every kind that kernels are chosen for, with plenty of workgroup memory.
    pub fn kinds() -> [Self; 9] {
        let gpu = DeviceProfile { max_workgroup_storage: 48 << 10, ..DeviceProfile::typical_gpu() };
        let units = |shape, lanes| DeviceProfile {
            cooperative: Some(Cooperative { shape, lanes }),
            shared_matrices: Some(SharedMatrices::Groups),
            ..gpu.clone()
        };
        // Apple's
        let small = DeviceProfile {
            shared_matrices: Some(SharedMatrices::Elements),
            ..units(MatrixShape::square(8), 32)
        };
        // as AMD's, whose subgroups have one size only where wgpu knows none
        let wide = DeviceProfile { subgroup: None, ..units(MatrixShape::square(16), 64) };
        // Intel's, of both generations
        let [narrow, oblong] = [8, 16].map(|n| units(MatrixShape { m: 8, n, k: 16 }, 32));
        let on_cpu = |lanes| DeviceProfile {
            cpu: true,
            subgroup: lanes,
            shared_matrices: Some(SharedMatrices::Groups),
            ..gpu.clone()
        };
        let square = units(MatrixShape::square(16), 32);
        let [plain, four, eight, sixteen] = [None, Some(4), Some(8), Some(16)].map(on_cpu);
        [plain, four, eight, sixteen, small, wide, narrow, oblong, square]
    }

    /// Lanes of a CPU device's vectors: its subgroup size, where kernels are made for it.
    pub fn vector_lanes(&self) -> Option<u32> {
        self.subgroup.filter(|&lanes| self.cpu && (4..=16).contains(&lanes))
    }
}

/// A WGSL template of `shaders/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shader {
    pub name: &'static str,
    pub source: &'static str,
}

/// Every dispatch of a plan is looked up by its shader: the text, of thousands of characters, is left to the comparison.
impl Hash for Shader {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.name, self.source.len()).hash(state);
    }
}

/// Takes the template `shaders/$name.wgsl` into the program.
#[macro_export]
macro_rules! shader {
    ($name:literal) => {
        $crate::graph::Shader {
            name: $name,
            source: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")),
        }
    };
}

/// A definition that changes what the template composes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Define {
    Int(u32),
    Flag(bool),
    Text(&'static str),
}

/// A number that a dispatch passes to its kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Param {
    U32(u32),
    F32(f32),
}

/// Which buffer of the node a binding names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    Input(usize),
    Output(usize),
    Workspace(usize),
}

/// How the shader sees a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum View {
    /// Groups of four, converted to and from `vec4<f32>`.
    Vec4,
    /// Groups of eight, read as two of four: `raw_name`, of which `low_name` and `high_name` are the halves. For tensors whose
    /// last dimension holds an even number of groups of four.
    Octet,
    /// One element at a time (f32 and u32 only).
    Scalar,
    /// Elements of cooperative matrices: f16, or f32.
    Matrix,
    /// The same in groups of four, f16 only: see [`SharedMatrices::Groups`].
    MatrixGroups,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    pub name: &'static str,
    pub place: Place,
    pub dtype: DType,
    pub view: View,
    pub write: bool,
    /// Bytes from the start of the buffer, and how many (`None`: to its end).
    pub offset: u64,
    pub size: Option<u64>,
    /// Of one of several pieces of a tensor: how many elements of the shader's array all but the last of them hold.
    pub piece: Option<u32>,
}

impl Binding {
    /// All of a buffer.
    pub fn new(name: &'static str, place: Place, dtype: DType, view: View, write: bool) -> Self {
        Binding { name, place, dtype, view, write, offset: 0, size: None, piece: None }
    }
}

/// Estimated work of a dispatch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub flops: f64,
    pub bytes: f64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

#[derive(Clone, Debug)]
pub struct Dispatch {
    pub shader: Shader,
    pub defines: Vec<(&'static str, Define)>,
    pub bindings: Vec<Binding>,
    pub params: Vec<(&'static str, Param)>,
    /// Workgroups; folded to two dimensions when it is submitted.
    pub groups: u64,
    pub cost: Cost,
    /// What tells dispatches of one shader apart in reports: the extents of a product, say.
    pub detail: String,
    /// Which kernel of its family it is; empty where there is but one.
    pub variant: String,
    /// FLOP/s that it reached where it was measured.
    pub speed: Option<f64>,
    /// Other kernels for the same work, where [`Choices::listing`] asks for them.
    pub alternatives: Option<Box<Alternatives>>,
}

impl Dispatch {
    pub fn new(shader: Shader, groups: usize) -> Self {
        Dispatch {
            shader,
            defines: Vec::new(),
            bindings: Vec::new(),
            params: Vec::new(),
            groups: groups as u64,
            cost: Cost::default(),
            detail: String::new(),
            variant: String::new(),
            speed: None,
            alternatives: None,
        }
    }

    pub fn define(mut self, name: &'static str, value: u32) -> Self {
        self.defines.push((name, Define::Int(value)));
        self
    }

    /// The extents M, N and K of a kernel's cooperative matrices.
    pub fn matrices(self, shape: MatrixShape) -> Self {
        self.define("M", shape.m).define("N", shape.n).define("K", shape.k)
    }

    pub fn flag(mut self, name: &'static str, value: bool) -> Self {
        self.defines.push((name, Define::Flag(value)));
        self
    }

    pub fn text(mut self, name: &'static str, value: &'static str) -> Self {
        self.defines.push((name, Define::Text(value)));
        self
    }

    pub fn param(mut self, name: &'static str, value: usize) -> Self {
        self.params.push((name, Param::U32(value as u32)));
        self
    }

    pub fn param_f32(mut self, name: &'static str, value: f64) -> Self {
        self.params.push((name, Param::F32(value as f32)));
        self
    }

    pub fn bind(mut self, binding: Binding) -> Self {
        self.bindings.push(binding);
        self
    }

    pub fn read(self, name: &'static str, place: Place, dtype: DType) -> Self {
        self.bind(Binding::new(name, place, dtype, View::Vec4, false))
    }

    pub fn read_scalar(self, name: &'static str, place: Place, dtype: DType) -> Self {
        self.bind(Binding::new(name, place, dtype, View::Scalar, false))
    }

    pub fn write(self, name: &'static str, place: Place, dtype: DType) -> Self {
        self.bind(Binding::new(name, place, dtype, View::Vec4, true))
    }

    pub fn write_scalar(self, name: &'static str, place: Place, dtype: DType) -> Self {
        self.bind(Binding::new(name, place, dtype, View::Scalar, true))
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    pub fn variant(mut self, variant: impl Into<String>) -> Self {
        self.variant = variant.into();
        self
    }

    pub fn cost(mut self, flops: f64, bytes: f64) -> Self {
        self.cost = Cost { flops, bytes };
        self
    }
}

/// What a node runs: dispatches in order, and the bytes of each scratch buffer they share.
#[derive(Clone, Debug, Default)]
pub struct LaunchPlan {
    pub dispatches: Vec<Dispatch>,
    pub workspaces: Vec<u64>,
    /// Workspaces that its products share, using them one after the other.
    pub shared: [Option<usize>; 8],
}

impl LaunchPlan {
    /// Whether a dispatch binds this output.
    pub fn writes(&self, output: usize) -> bool {
        let mut bindings = self.dispatches.iter().flat_map(|d| &d.bindings);
        bindings.any(|b| b.place == Place::Output(output))
    }
}

impl From<Dispatch> for LaunchPlan {
    fn from(dispatch: Dispatch) -> Self {
        vec![dispatch].into()
    }
}

impl From<Vec<Dispatch>> for LaunchPlan {
    fn from(dispatches: Vec<Dispatch>) -> Self {
        LaunchPlan { dispatches, ..LaunchPlan::default() }
    }
}

/// What an operation knows when it describes its launch.
pub struct Launch<'a> {
    pub device: &'a DeviceProfile,
    pub inputs: &'a [TensorType],
    pub outputs: &'a [TensorType],
    /// Per output: add to what is there instead of overwriting it.
    pub accumulate: &'a [bool],
    /// Per output: somebody reads it.
    pub live: &'a [bool],
    /// Per output: it lies where the input of [`super::Operation::may_replace`] lies, which must not be bound as well.
    pub replaces: &'a [bool],
}

/// Groups of four of a row that is shared by more lanes than others.
const LONG_ROW: usize = 4096;

/// Invocations that the largest GPUs of today hold at a time.
const RESIDENT: usize = 1 << 18;

impl Launch<'_> {
    /// Bytes of all inputs and live outputs: the traffic of a kernel that touches each once.
    pub fn traffic(&self) -> f64 {
        let inputs: u64 = self.inputs.iter().map(TensorType::bytes).sum();
        let outputs: u64 =
            self.outputs.iter().zip(self.live).filter(|(_, live)| **live).map(|(t, _)| t.bytes()).sum();
        (inputs + outputs) as f64
    }

    /// Lanes that share a row in row kernels: on CPU devices one lane walks a row alone, but for rows so long that
    /// llvmpipe would end its loops early (it stops an invocation after 65,535 iterations of all its loops together). On GPUs more share a
    /// long row where there are few: each has a load under way at a time.
    pub fn row_lanes(&self, rows: usize, cols4: usize) -> u32 {
        match (self.device.cpu, cols4 > LONG_ROW) {
            (true, false) => 1,
            (true, true) => 64,
            (false, false) => row_lanes(cols4),
            (false, true) => {
                let most = 1 << self.device.max_workgroup_invocations.clamp(256, 512).ilog2();
                let busy = RESIDENT.div_ceil(rows.max(1)).next_power_of_two() as u32;
                busy.clamp(row_lanes(cols4), most)
            }
        }
    }
}

/// Lanes that share a row of so many groups of four in row kernels of GPUs. Of rows as long as the vocabulary there are few at a time.
pub fn row_lanes(cols4: usize) -> u32 {
    (cols4.next_power_of_two() as u32).clamp(1, if cols4 > LONG_ROW { 256 } else { 64 })
}
