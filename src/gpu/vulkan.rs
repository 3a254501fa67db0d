//! What Vulkan tells about a device and WebGPU does not. `None` on other backends.

#[cfg(not(target_vendor = "apple"))]
mod asked {
    use ash::vk;

    /// Instance and device of an adapter, where both have Vulkan 1.1.
    fn with<R>(
        adapter: &wgpu::Adapter,
        ask: impl FnOnce(&ash::Instance, vk::PhysicalDevice) -> Option<R>,
    ) -> Option<R> {
        // SAFETY: the handles are only read from, and live as long as `adapter`
        let hal = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
        let (instance, device) = (hal.shared_instance().raw_instance(), hal.raw_physical_device());
        // SAFETY: `device` belongs to `instance`
        let version = unsafe { instance.get_physical_device_properties(device) }.api_version;
        let both = version.min(hal.shared_instance().instance_api_version());
        if both < vk::API_VERSION_1_1 { None } else { ask(instance, device) }
    }

    /// Budget less usage of the largest device-local heap, in bytes.
    pub(in crate::gpu) fn budget(adapter: &wgpu::Adapter) -> Option<u64> {
        with(adapter, |instance, device| {
            // SAFETY: `device` belongs to `instance`
            let known = unsafe { instance.enumerate_device_extension_properties(device) }.ok()?;
            if !known.iter().any(|e| e.extension_name_as_c_str() == Ok(vk::EXT_MEMORY_BUDGET_NAME)) {
                return None;
            }
            let mut budget = vk::PhysicalDeviceMemoryBudgetPropertiesEXT::default();
            let mut memory = vk::PhysicalDeviceMemoryProperties2::default().push_next(&mut budget);
            // SAFETY: instance and device have Vulkan 1.1, whose call this is, and the extension that `budget` is of
            unsafe { instance.get_physical_device_memory_properties2(device, &mut memory) };
            let heaps = memory.memory_properties;
            let local =
                |&heap: &usize| heaps.memory_heaps[heap].flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL);
            let heap = (0..heaps.memory_heap_count as usize)
                .filter(local)
                .max_by_key(|&heap| heaps.memory_heaps[heap].size)?;
            Some(budget.heap_budget[heap].saturating_sub(budget.heap_usage[heap])).filter(|&free| free > 0)
        })
    }

    /// Bytes of the largest device-local heap, used or not.
    pub(in crate::gpu) fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
        with(adapter, |instance, device| {
            // SAFETY: `device` belongs to `instance`
            let known = unsafe { instance.get_physical_device_memory_properties(device) };
            let local = known
                .memory_heaps_as_slice()
                .iter()
                .filter(|h| h.flags.contains(vk::MemoryHeapFlags::DEVICE_LOCAL));
            local.map(|heap| heap.size).max()
        })
    }

    /// Size of the subgroups of a kernel that does not allow others, as those of SPIR-V before 1.6 do not unless their pipeline does,
    /// where kernels can have them and vote in them.
    pub(in crate::gpu) fn subgroup_size(adapter: &wgpu::Adapter) -> Option<u32> {
        with(adapter, |instance, device| {
            let mut subgroup = vk::PhysicalDeviceSubgroupProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut subgroup);
            // SAFETY: instance and device have Vulkan 1.1, whose call and structure these are
            unsafe { instance.get_physical_device_properties2(device, &mut properties) };
            let compute = subgroup.supported_stages.contains(vk::ShaderStageFlags::COMPUTE);
            let needed = vk::SubgroupFeatureFlags::BASIC | vk::SubgroupFeatureFlags::VOTE;
            let able = compute && subgroup.supported_operations.contains(needed);
            Some(subgroup.subgroup_size).filter(|&size| able && size > 0)
        })
    }
}

#[cfg(target_vendor = "apple")]
mod asked {
    pub(in crate::gpu) fn budget(_adapter: &wgpu::Adapter) -> Option<u64> {
        None
    }

    pub(in crate::gpu) fn memory(_adapter: &wgpu::Adapter) -> Option<u64> {
        None
    }

    pub(in crate::gpu) fn subgroup_size(_adapter: &wgpu::Adapter) -> Option<u32> {
        None
    }
}

pub(super) use asked::{budget, memory, subgroup_size};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_no_more_than_there_is() {
        for adapter in crate::gpu::listing::adapters() {
            let (info, memory, free) = (adapter.get_info(), memory(&adapter), budget(&adapter));
            println!("{}: {free:?} of {memory:?}", info.name);
            assert_eq!(memory.is_some(), info.backend == wgpu::Backend::Vulkan, "{}", info.name);
            assert!(free.is_none_or(|free| memory.is_some_and(|all| free <= all)), "{}", info.name);
        }
    }

    #[test]
    fn a_subgroup_has_a_size_within_the_range_that_wgpu_names() {
        for adapter in crate::gpu::listing::adapters() {
            let (info, size) = (adapter.get_info(), subgroup_size(&adapter));
            println!("{}: {size:?}", info.name);
            let range = info.subgroup_min_size..=info.subgroup_max_size;
            assert!(size.is_none_or(|size| range.contains(&size)), "{}: {size:?} of {range:?}", info.name);
            assert_eq!(size.is_some(), info.backend == wgpu::Backend::Vulkan, "{}", info.name);
        }
    }
}
