//! What can go wrong with a device, and what to do about it.

use crate::graph::Dispatch;
use thiserror::Error;

#[derive(Debug, Error, Clone, PartialEq)]
pub enum GpuError {
    #[error("the device cannot keep activations in host memory; leave --offload_activations out")]
    NoHostMemory,
    #[error(
        "no GPU or driver found: install a Vulkan driver for your GPU (Debian and Ubuntu: mesa-vulkan-drivers, which has \
         a software device too), or check the installation with `vulkaninfo`"
    )]
    NoDevice,
    #[error("no device matches {wanted:?}; available: {available}")]
    NoMatch { wanted: String, available: String },
    #[error(
        "the device {device} could not be opened: {reason}; update its driver or choose another with --gpu"
    )]
    Open { device: String, reason: String },
    /// `bytes` is 0 where they are not known.
    #[error(
        "out of device memory: {} could not be allocated; use a smaller micro-batch or \
             sequence length, --recompute layer, or a 16-bit precision",
        amount(*bytes, what)
    )]
    OutOfMemory { what: String, bytes: u64 },
    #[error(
        "out of host memory: {} could not be allocated; end other programs, or keep less on the host (--offload)",
        amount(*bytes, what)
    )]
    OutOfHostMemory { what: String, bytes: u64 },
    #[error(
        "{bytes} bytes for {what} are over the memory limit of {limit} bytes, of which {allocated} are in use; use a smaller \
         micro-batch or sequence length, or --recompute layer, or raise --memory_limit"
    )]
    OverMemoryLimit { what: String, bytes: u64, allocated: u64, limit: u64 },
    #[error("{what} needs {requested}, over this device's limit of {maximum} {limit}")]
    OverLimit { what: String, limit: &'static str, requested: u64, maximum: u64 },
    #[error(
        "the device was lost: {0}; run again (a smaller micro-batch helps where a watchdog ended a long kernel)"
    )]
    Lost(String),
    #[error("the device reported an error: {0}; please report it with the output of `engraft devices`")]
    Validation(String),
    #[error("the shader {shader} does not compile: {reason}")]
    Shader { shader: String, reason: String },
}

/// What could not be had; of some things it is not known how large they are.
fn amount(bytes: u64, what: &str) -> String {
    if bytes == 0 { what.to_owned() } else { format!("{bytes} bytes for {what}") }
}

impl GpuError {
    /// That a dispatch binds more storage buffers than a device has, as one does that takes its weights in many pieces.
    pub fn too_many_buffers(dispatch: &Dispatch, maximum: u32) -> Option<Self> {
        let (what, limit) =
            (format!("{} on weights in pieces", dispatch.shader.name), "storage buffers of one kernel");
        let (requested, maximum) = (dispatch.bindings.len() as u64, u64::from(maximum));
        (requested > maximum).then_some(GpuError::OverLimit { what, limit, requested, maximum })
    }
}
