//! How many invocations a subgroup has.

use super::vulkan;

/// What kernels can rely on. wgpu names a range where sizes can vary, and with its feature for subgroups allows every kernel on
/// Vulkan any size in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subgroups {
    pub smallest: u32,
    pub largest: u32,
    /// The size of all, and whether that holds for devices that are opened with wgpu's feature for subgroups as well.
    pub known: Option<(u32, bool)>,
}

impl Subgroups {
    pub fn of(adapter: &wgpu::Adapter, info: &wgpu::AdapterInfo) -> Self {
        let (smallest, largest) = (info.subgroup_min_size, info.subgroup_max_size);
        let known = match info.backend {
            _ if smallest == largest && largest > 0 => Some((largest, true)),
            // AMD's and Intel's
            wgpu::Backend::Vulkan => vulkan::subgroup_size(adapter).map(|size| (size, false)),
            // a SIMD-group of Apple's own GPUs has 32 threads
            wgpu::Backend::Metal if info.name.starts_with("Apple") => Some((32, true)),
            _ => None,
        };
        Subgroups { smallest, largest, known }
    }

    /// The size on a device with wgpu's feature.
    pub fn with_feature(&self) -> Option<u32> {
        self.known.filter(|(_, with_feature)| *with_feature).map(|(size, _)| size)
    }
}
