//! A device that may be lost.

use super::device::without_panic;
use super::{Gpu, GpuError, GpuOptions};
use std::sync::atomic::Ordering;

impl Gpu {
    /// The same device, opened once more, for work that may cost it: a driver that refuses a kernel takes with it the device that
    /// asked, but not this one. It has the same choices of kernels, what is left of the memory limit, and keeps no pipelines on disk.
    ///
    /// # Errors
    /// [`GpuError::Open`] where the driver opens it only once.
    pub fn twin(&self) -> Result<Gpu, GpuError> {
        let used = self.allocated_bytes() + self.shared.on_host.load(Ordering::Relaxed);
        let memory_limit = self.memory_limit().map(|limit| limit.saturating_sub(used));
        let options = GpuOptions { pipelines: None, memory_limit, ..self.shared.options.clone() };
        let twin = Gpu::from_adapter(self.shared.info.clone(), &self.shared.adapter, &options)?;
        twin.set_choices((*self.profile().choices).clone());
        Ok(twin)
    }

    /// Lets a lost device go. wgpu waits for it, and panics where its driver answers anything but that it is lost.
    pub fn abandon(self) {
        let _ = without_panic(|| drop(self));
    }

    /// Whether the device still works, which it says only where it is used.
    ///
    /// # Errors
    /// [`GpuError::Lost`], and what else it reported.
    pub fn is_alive(&self) -> Result<(), GpuError> {
        self.submit(&[], &[])?;
        self.wait()
    }
}
