//! How many invocations a subgroup has.

use super::vulkan;

/// What kernels can rely on. wgpu names a range where sizes can vary, and with its feature for subgroups allows every kernel on
/// Vulkan any size in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subgroups {
    pub smallest: u32,
    pub largest: u32,
    pub known: Option<Known>,
}

/// The size of all subgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub size: u32,
    /// Also where the device is opened with wgpu's feature for subgroups.
    pub with_feature: bool,
}

impl Subgroups {
    pub fn of(adapter: &wgpu::Adapter, info: &wgpu::AdapterInfo) -> Self {
        let (smallest, largest) = (info.subgroup_min_size, info.subgroup_max_size);
        let known = match info.backend {
            _ if smallest == largest && largest > 0 => Some(Known { size: largest, with_feature: true }),
            // AMD's and Intel's
            wgpu::Backend::Vulkan => {
                vulkan::subgroup_size(adapter).map(|size| Known { size, with_feature: false })
            }
            // a SIMD-group of Apple's own GPUs has 32 threads
            wgpu::Backend::Metal if info.name.starts_with("Apple") => {
                Some(Known { size: 32, with_feature: true })
            }
            _ => None,
        };
        Subgroups { smallest, largest, known }
    }

    /// The size on a device with wgpu's feature.
    pub fn with_feature(&self) -> Option<u32> {
        self.known.filter(|known| known.with_feature).map(|known| known.size)
    }
}
