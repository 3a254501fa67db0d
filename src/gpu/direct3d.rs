//! What Direct3D tells about a device's memory and WebGPU does not. `None` on other backends.

#[cfg(windows)]
mod asked {
    use windows::Win32::Graphics::Dxgi::{
        DXGI_ADAPTER_DESC1, DXGI_MEMORY_SEGMENT_GROUP_LOCAL, DXGI_QUERY_VIDEO_MEMORY_INFO, IDXGIAdapter3,
    };

    fn with<R>(adapter: &wgpu::Adapter, ask: impl FnOnce(&IDXGIAdapter3) -> Option<R>) -> Option<R> {
        // SAFETY: the interface is only asked, and lives as long as `adapter`
        let hal = unsafe { adapter.as_hal::<wgpu::hal::api::Dx12>() }?;
        ask(hal.raw_adapter())
    }

    /// Bytes that this program may still take of the memory that the device reads fastest: its own, or, where it has none, the host's.
    pub(in crate::gpu) fn budget(adapter: &wgpu::Adapter) -> Option<u64> {
        with(adapter, |dxgi| {
            let mut info = DXGI_QUERY_VIDEO_MEMORY_INFO::default();
            // SAFETY: `info` is written to while the call lasts
            unsafe { dxgi.QueryVideoMemoryInfo(0, DXGI_MEMORY_SEGMENT_GROUP_LOCAL, &mut info) }.ok()?;
            Some(info.Budget).filter(|&all| all > 0).map(|all| all.saturating_sub(info.CurrentUsage))
        })
    }

    /// Bytes of the device's own memory, or of what it may take of the host's where it is a part of the processor.
    pub(in crate::gpu) fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
        with(adapter, |dxgi| {
            // SAFETY: nothing but the interface itself is used
            let known: DXGI_ADAPTER_DESC1 = unsafe { dxgi.GetDesc1() }.ok()?;
            let shared = match adapter.get_info().device_type {
                wgpu::DeviceType::IntegratedGpu => known.SharedSystemMemory,
                _ => 0,
            };
            Some((known.DedicatedVideoMemory + shared) as u64).filter(|&bytes| bytes > 0)
        })
    }
}

#[cfg(not(windows))]
mod asked {
    pub(in crate::gpu) fn budget(_adapter: &wgpu::Adapter) -> Option<u64> {
        None
    }

    pub(in crate::gpu) fn memory(_adapter: &wgpu::Adapter) -> Option<u64> {
        None
    }
}

pub(super) use asked::{budget, memory};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_known_of_devices_of_direct3d_alone() {
        for adapter in crate::gpu::listing::adapters() {
            let (info, memory, free) = (adapter.get_info(), memory(&adapter), budget(&adapter));
            println!("{}: {free:?} of {memory:?}", info.name);
            let direct3d = info.backend == wgpu::Backend::Dx12;
            let software = info.device_type == wgpu::DeviceType::Cpu;
            assert!(memory.is_some() == direct3d || software, "{}: {memory:?}", info.name);
            assert!(
                free.is_none_or(|free| memory.is_some_and(|all| free <= all)),
                "{}: {free:?} of {memory:?}",
                info.name
            );
        }
    }
}
