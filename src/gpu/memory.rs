//! How much device memory there is to use: what the platform tells, and a limit that the user sets.
//!
//! WebGPU has no word for it. Vulkan has: `VK_EXT_memory_budget` names what this process may use of each heap now
//! (budget) and what it uses already (usage). Devices in software, and GPUs without memory of their own where no driver tells (Apple's),
//! live in the system's. Direct3D tells budget and usage too. Where nobody tells, a run needs `--memory_limit` to be planned for.

use super::{DeviceInfo, Gpu, GpuError, direct3d, host_memory, vulkan};
use std::sync::atomic::Ordering;

/// Host memory that counts as the device's until this is dropped.
pub struct HostShare {
    gpu: Gpu,
    bytes: u64,
}

impl Drop for HostShare {
    fn drop(&mut self) {
        self.gpu.shared.on_host.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Gpu {
    /// Bytes that may be allocated at a time, where a limit is set.
    pub fn memory_limit(&self) -> Option<u64> {
        Some(self.shared.memory_limit.load(Ordering::Relaxed)).filter(|&limit| limit < u64::MAX)
    }

    /// Refuses allocations beyond this many bytes from here on: a driver that runs out may end the process, or the device,
    /// in the middle of a step. What is allocated already stays.
    pub fn set_memory_limit(&self, limit: Option<u64>) {
        self.shared.memory_limit.store(limit.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Counts host memory that stands in for the device's against the memory limit where both are one; elsewhere nothing.
    ///
    /// # Errors
    /// [`GpuError::OverMemoryLimit`].
    pub fn count_on_host(&self, what: &str, bytes: u64) -> Result<HostShare, GpuError> {
        let bytes = if self.shared.info.unified_memory() { bytes } else { 0 };
        if bytes > 0 {
            self.within_limit(what, bytes)?;
        }
        self.shared.on_host.fetch_add(bytes, Ordering::Relaxed);
        Ok(HostShare { gpu: self.clone(), bytes })
    }

    /// Refuses what would take more than the limit.
    pub(super) fn within_limit(&self, what: &str, bytes: u64) -> Result<(), GpuError> {
        let allocated = self.allocated_bytes() + self.shared.on_host.load(Ordering::Relaxed);
        let limit = self.memory_limit().unwrap_or(u64::MAX);
        if allocated.saturating_add(bytes) > limit {
            return Err(GpuError::OverMemoryLimit { what: what.to_string(), bytes, allocated, limit });
        }
        Ok(())
    }

    /// Bytes that the backend's own allocator has handed out, staging and alignment included, and those that it took from the driver for
    /// them; `None` where it keeps no account (Metal).
    pub fn backend_bytes(&self) -> Option<(u64, u64)> {
        let report = self.shared.device.generate_allocator_report()?;
        Some((report.total_allocated_bytes, report.total_reserved_bytes))
    }

    /// Bytes that were free on the device when it was opened; `None` where the platform does not tell.
    pub fn free_memory(&self) -> Option<u64> {
        self.shared.free_memory
    }
}

/// Bytes of the memory that buffers of the device lie in, used or not, where the backend tells.
pub(super) fn total(adapter: &wgpu::Adapter) -> Option<u64> {
    vulkan::memory(adapter).or_else(|| direct3d::memory(adapter))
}

/// Free bytes of it.
pub(super) fn free(adapter: &wgpu::Adapter, info: &DeviceInfo) -> Option<u64> {
    match info.is_software() {
        true => host_memory::available(),
        false => vulkan::budget(adapter)
            .or_else(|| direct3d::budget(adapter))
            .or_else(|| host_memory::of_gpu().filter(|_| info.unified_memory())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_tells_its_budget_or_nothing() {
        for adapter in crate::gpu::listing::adapters() {
            let (name, budget) = (adapter.get_info().name, vulkan::budget(&adapter));
            println!("{name}: {budget:?}");
            assert!(budget.is_none_or(|bytes| bytes > 1 << 20), "{name}: {budget:?}");
        }
    }
}
