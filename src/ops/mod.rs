//! The operations: one file each, with meaning (shape rule), gradient rule, launch and f64 reference.
//!
//! To add one: a file here, its shader of the same name in `shaders/`, and a line in [`operations!`] below. The
//! tests find it through that line.

pub mod activation;
pub mod adamw;
pub mod add;
pub mod attention;
pub mod bias;
pub mod cache;
pub mod clip;
pub mod copy;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod gather_rows;
pub mod glu;
pub mod keep;
pub mod layer_norm;
pub mod lora_linear;
pub mod matmul;
pub mod norm_squared;
pub mod rms_norm;
pub mod rope;
mod scaled_half;
pub mod sgd;
pub mod soft_cap;
pub mod split_columns;
pub mod split_rows;

use crate::graph::{Case, Dispatch, GraphError, Launch, Operation, Shader, TensorType};

macro_rules! operations {
    ($($op:ty),+ $(,)?) => {
        /// Every trial of every operation.
        pub fn cases() -> Vec<Case> {
            let mut all = Vec::new();
            $(all.extend(<$op as Operation>::cases());)+
            all
        }
    };
}

operations![
    activation::Activate,
    activation::ActivateGradient,
    adamw::AdamW,
    add::Add,
    attention::Attention,
    attention::AttentionGradient,
    clip::Clip,
    cache::WriteRows,
    copy::Copy,
    cross_entropy::LinearCrossEntropy,
    cross_entropy::LinearCrossEntropyGradient,
    dropout::Dropout,
    embedding::Embedding,
    embedding::EmbeddingGradient,
    gather_rows::GatherRows,
    glu::Glu,
    glu::GluGradient,
    keep::Keep,
    layer_norm::LayerNorm,
    layer_norm::LayerNormGradient,
    layer_norm::LayerNormWeightGradient,
    lora_linear::LoraLinear,
    matmul::Matmul,
    matmul::gate_gradient::GateGradient,
    matmul::group::MatmulGroup,
    norm_squared::NormSquared,
    rms_norm::RmsNorm,
    rms_norm::RmsNormGradient,
    rms_norm::RmsNormWeightGradient,
    bias::Bias,
    bias::BiasGradient,
    rope::Rope,
    sgd::Sgd,
    soft_cap::SoftCap,
    soft_cap::SoftCapGradient,
    split_columns::SplitColumns,
    split_columns::JoinColumns,
    split_rows::SplitRows,
    split_rows::JoinRows,
];

/// A hash (FNV-1a) of the kernels that are chosen by measurement: measurements of others say nothing about these.
pub fn fingerprint() -> u32 {
    let source = matmul::source() + &attention::source();
    source.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A dispatch of one invocation per item, 256 to a workgroup, with the number of items as `params.count`.
pub(crate) fn elementwise(shader: Shader, items: usize) -> Dispatch {
    Dispatch::new(shader, items.div_ceil(256)).param("count", items)
}

/// A dispatch with `launch.row_lanes` invocations to a row, as `shaders/shared/rows.wgsl` lays them out.
pub(crate) fn row_dispatch(shader: Shader, launch: &Launch<'_>, rows: usize, cols4: usize) -> Dispatch {
    let lanes = launch.row_lanes(rows, cols4);
    // a lane for a row: as many as a vector has
    let per_group =
        if lanes == 1 { launch.device.vector_lanes().unwrap_or(8).max(8) } else { (64 / lanes).max(1) };
    Dispatch::new(shader, rows.div_ceil(per_group as usize))
        .define("LANES", lanes)
        .define("ROWS", per_group)
        .param("rows", rows)
        .param("cols4", cols4)
}

/// Workgroups that keep the GPUs of today busy, at least: work that is fewer is made in parts, which another dispatch adds up.
pub(crate) const BUSY: usize = 256;

/// Two numbers of a kernel's name, as in `64x32`.
fn pair(text: &str) -> Option<(u32, u32)> {
    let (a, b) = text.split_once('x')?;
    Some((a.parse().ok()?, b.parse().ok()?))
}

pub(crate) const FILL: Shader = crate::shader!("fill");

/// Fails unless the operation has that many inputs.
pub(crate) fn expect_inputs(op: &'static str, inputs: &[TensorType], count: usize) -> Result<(), GraphError> {
    if inputs.len() == count {
        return Ok(());
    }
    Err(GraphError::invalid(op, format!("takes {count} inputs, not {}", inputs.len())))
}

/// Fails with `reason` unless `condition` holds.
pub(crate) fn expect(
    op: &'static str,
    condition: bool,
    reason: impl FnOnce() -> String,
) -> Result<(), GraphError> {
    if condition { Ok(()) } else { Err(GraphError::invalid(op, reason())) }
}
