//! What can go wrong with a device, and what to do about it.

use crate::graph::{DeviceProfile, Dispatch};
use std::fmt;
use thiserror::Error;

const DRIVER_ADVICE: &str = if cfg!(windows) {
    "install the current driver of your GPU from its maker's site"
} else if cfg!(target_vendor = "apple") {
    "engraft needs a Mac with Metal"
} else {
    "install a Vulkan driver for your GPU (Debian and Ubuntu: mesa-vulkan-drivers, which has a software device too), or check \
     the installation with `vulkaninfo`"
};

#[derive(Debug, Error, Clone, PartialEq)]
pub enum GpuError {
    #[error(
        "the device cannot keep weights or activations in host memory; leave --offload and --offload_activations out"
    )]
    NoHostMemory,
    #[error("no GPU or driver found: {DRIVER_ADVICE}")]
    NoDevice,
    #[error(
        "no device matches {wanted:?} (a number is an index, other words are part of a name); available: {available}"
    )]
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
    #[error("{what} needs {requested}, over this device's limit of {maximum} {limit}; {}", limit.advice())]
    OverLimit { what: String, limit: Limit, requested: u64, maximum: u64 },
    #[error(
        "the device was lost: {0}; run again (a smaller micro-batch helps where a watchdog ended a long kernel)"
    )]
    Lost(String),
    /// What a measurement of kernels met that no run can go on after. `left_out`: a later start does not try that kernel.
    #[error("measuring the kernel {kernel} for {class} failed: {reason}; {}", after_measuring(*left_out))]
    Measuring { kernel: String, class: String, reason: String, left_out: bool },
    #[error("the device reported an error: {0}; please report it with the output of `engraft devices`")]
    Validation(String),
    #[error("the shader {shader} does not compile: {reason}")]
    Shader { shader: String, reason: String },
}

fn after_measuring(left_out: bool) -> &'static str {
    if left_out {
        "run again: that kernel is left out from now on; or leave all on matrix units alone (--no_coop), or measure nothing (--tune off)"
    } else {
        "run again and leave kernels on matrix units alone (--no_coop), or measure nothing (--tune off)"
    }
}

/// What could not be had; of some things it is not known how large they are.
fn amount(bytes: u64, what: &str) -> String {
    if bytes == 0 { what.to_owned() } else { format!("{bytes} bytes for {what}") }
}

/// What a device has only so much of, however much memory it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Of a buffer that one binding reaches.
    BindingBytes,
    /// Of one allocation.
    BufferBytes,
    /// That one kernel binds.
    StorageBuffers,
    /// Of one dispatch.
    Workgroups,
    /// Of all bindings of all kernels that are ready to run.
    Descriptors,
}

impl Limit {
    fn advice(self) -> &'static str {
        match self {
            Limit::BindingBytes | Limit::Workgroups | Limit::Descriptors => {
                "use a smaller --micro_batch_size or --max_seq_length, or another device (`engraft devices`)"
            }
            Limit::BufferBytes => {
                "hold large weights in fewer bytes (a 16-bit --precision, --quantize_head), train fewer parameters (adapters with a \
                 lower --lora_rank, fewer --modules_to_save), use a smaller micro-batch, or another device (`engraft devices`)"
            }
            Limit::StorageBuffers => {
                "hold large weights in fewer bytes (--quantize_head, a 16-bit --precision), do not train them in full, or use \
                 another device (`engraft devices`)"
            }
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::BindingBytes => "bytes of one binding",
            Limit::BufferBytes => "bytes of one buffer",
            Limit::StorageBuffers => "storage buffers of one kernel",
            Limit::Workgroups => "workgroups",
            Limit::Descriptors => "descriptors",
        })
    }
}

impl GpuError {
    /// That a dispatch binds more than a device can: too many buffers, as one does that takes its tensors in many pieces, or too
    /// many bytes at once of what cannot be in pieces.
    pub fn of_bindings(dispatch: &Dispatch, device: &DeviceProfile) -> Option<Self> {
        let (buffers, name) = (dispatch.bindings.len(), dispatch.shader.name);
        if !device.binds(buffers) {
            let (requested, maximum) = (buffers as u64, u64::from(device.max_storage_buffers));
            let what = format!("{name} on tensors in pieces");
            return Some(GpuError::OverLimit { what, limit: Limit::StorageBuffers, requested, maximum });
        }
        let over = |size: &u64| device.max_binding > 0 && *size > device.max_binding;
        let requested = dispatch.bindings.iter().filter_map(|b| b.size).find(over)?;
        let (what, maximum) = (format!("an operand of {name}"), device.max_binding);
        Some(GpuError::OverLimit { what, limit: Limit::BindingBytes, requested, maximum })
    }

    /// That a buffer is larger than a device can have.
    pub fn of_buffer(what: &str, requested: u64, device: &DeviceProfile) -> Option<Self> {
        let (what, limit, maximum) = (what.to_owned(), Limit::BufferBytes, device.max_buffer);
        let over = maximum > 0 && requested > maximum;
        over.then_some(GpuError::OverLimit { what, limit, requested, maximum })
    }
}
