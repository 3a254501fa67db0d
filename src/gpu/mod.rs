//! The only room that knows wgpu: devices and their limits, buffers, pipelines, submission and readback.
//!
//! Every call that can meet a lost device checks for it and gives [`GpuError::Lost`]; wgpu's own panics on errors are
//! replaced by a flag that the next synchronisation reads.

mod buffer;
mod compose;
mod device;
mod direct3d;
mod error;
mod host_memory;
mod listing;
mod memory;
mod pipeline;
mod pipeline_file;
mod recording;
mod spirv;
mod subgroups;
mod timing;
mod twin;
mod vulkan;
mod wide_vectors;

pub use buffer::{Buffer, BufferSlice, Readback, allocation};
pub use compose::{PARAM_ALIGNMENT, ShaderKey, param_space, sources};
pub use device::{Gpu, GpuOptions, is_waiting};
pub use error::{GpuError, Limit};
pub use listing::{DeviceInfo, NEEDED_STORAGE_BUFFERS, list_devices, roomier};
pub use memory::HostShare;
pub use pipeline::Work;
pub use recording::{Recording, Upload};
pub use timing::{DispatchTime, Transfers};
pub use wide_vectors::wide_vectors;
