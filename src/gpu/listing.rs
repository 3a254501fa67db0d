//! The devices of this machine: what is known of each, and which one is meant.

use super::device::{GpuOptions, cooperative};
use super::subgroups::Subgroups;
use crate::memory_size::memory_text;
use serde::Serialize;
use std::cmp::Reverse;

/// A device as `engraft devices` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceInfo {
    pub index: usize,
    pub name: String,
    /// "discrete GPU", "integrated GPU", "virtual GPU", "software" or "other".
    pub kind: &'static str,
    pub backend: String,
    pub driver: String,
    /// Bytes of its own memory, where the platform tells.
    pub memory_bytes: Option<u64>,
    /// Bytes of the largest buffer and of the largest part of one that a kernel can bind.
    pub max_buffer_bytes: u64,
    pub max_binding_bytes: u64,
    pub max_workgroup_storage: u32,
    pub max_workgroup_invocations: u32,
    pub max_storage_buffers: u32,
    /// Sizes that wgpu names, and the one that kernels get, where that is known.
    pub subgroup_sizes: (u32, u32),
    pub subgroup_size: Option<u32>,
    pub shader_f16: bool,
    /// The cooperative matrices (f16, with f32 sums) that products would use, where there are such, as in "16x16x16".
    pub matrix_shape: Option<String>,
    pub subgroups: bool,
    pub timestamps: bool,
    /// Why a run cannot use it, if so.
    pub unusable: Option<String>,
}

/// Storage buffers that the hungriest kernel binds, where a device has no more.
pub const NEEDED_STORAGE_BUFFERS: u32 = 10;

impl DeviceInfo {
    fn of(index: usize, adapter: &wgpu::Adapter) -> Self {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        let subgroups = Subgroups::of(adapter, &info);
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        let driver = [info.driver.as_str(), info.driver_info.as_str()];
        let unusable = if limits.max_storage_buffers_per_shader_stage < NEEDED_STORAGE_BUFFERS {
            Some(format!(
                "{} storage buffers per kernel, {NEEDED_STORAGE_BUFFERS} are needed",
                limits.max_storage_buffers_per_shader_stage
            ))
        } else if limits.max_compute_invocations_per_workgroup < 256 {
            Some(format!(
                "{} invocations per workgroup, 256 are needed",
                limits.max_compute_invocations_per_workgroup
            ))
        } else {
            None
        };
        DeviceInfo {
            index,
            name: info.name,
            kind,
            backend: format!("{:?}", info.backend),
            driver: driver.iter().filter(|s| !s.is_empty()).copied().collect::<Vec<_>>().join(" "),
            memory_bytes: super::memory::total(adapter),
            max_buffer_bytes: limits.max_buffer_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_workgroup_storage: limits.max_compute_workgroup_storage_size,
            // kernels' workgroups have one dimension
            max_workgroup_invocations: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            subgroup_sizes: (subgroups.smallest, subgroups.largest),
            subgroup_size: subgroups.known.map(|known| known.size),
            shader_f16: features.contains(wgpu::Features::SHADER_F16),
            matrix_shape: cooperative(adapter, &GpuOptions::default(), &subgroups)
                .map(|units| units.shape.to_string()),
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            unusable,
        }
    }

    pub fn is_software(&self) -> bool {
        self.kind == "software"
    }

    /// Whether the device's memory is the host's: processors with a GPU of their own (on Metal every one of Apple's), and
    /// devices in software.
    pub fn unified_memory(&self) -> bool {
        ["integrated GPU", "software"].contains(&self.kind)
    }

    /// Lower is better; unusable devices come last, and of equal ones that with the least memory. Backends tell of all devices how much
    /// that is, or of none.
    fn rank(&self) -> (bool, usize, usize, Reverse<u64>) {
        let kinds = ["discrete GPU", "integrated GPU", "virtual GPU", "other", "software"];
        let backends = ["Vulkan", "Metal", "Dx12"];
        let position = |list: &[&str], item: &str| list.iter().position(|x| *x == item).unwrap_or(list.len());
        let (kind, backend) = (position(&kinds, self.kind), position(&backends, &self.backend));
        (self.unusable.is_some(), kind, backend, Reverse(self.memory_bytes.unwrap_or(0)))
    }
}

pub(super) fn adapters() -> Vec<wgpu::Adapter> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let developer = wgpu::InstanceFlags::DEBUG
        | wgpu::InstanceFlags::VALIDATION
        | wgpu::InstanceFlags::GPU_BASED_VALIDATION;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        // none but what a developer asks for: names of pipelines in a driver's tools (WGPU_DEBUG=1), validation
        flags: wgpu::InstanceFlags::empty().with_env() & developer,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    pollster::block_on(instance.enumerate_adapters(backends))
}

/// Every device of this machine, best first: the order that `--gpu INDEX` counts in.
pub fn list_devices() -> Vec<DeviceInfo> {
    ranked().into_iter().map(|(info, _)| info).collect()
}

pub(super) fn ranked() -> Vec<(DeviceInfo, wgpu::Adapter)> {
    let mut all: Vec<_> = adapters().into_iter().map(|a| (DeviceInfo::of(0, &a), a)).collect();
    all.sort_by_key(|(info, _)| info.rank());
    for (index, (info, _)) in all.iter_mut().enumerate() {
        info.index = index;
    }
    all
}

/// GPUs other than this one whose memory holds so many bytes where nothing else is in it, best first, by how `--gpu` takes them and
/// what they are. Of its own backend alone: another one may list the same GPU again.
pub fn roomier(than: &DeviceInfo, bytes: u64) -> Vec<String> {
    roomier_of(&list_devices(), than, bytes)
}

fn roomier_of(all: &[DeviceInfo], than: &DeviceInfo, bytes: u64) -> Vec<String> {
    let others = all
        .iter()
        .filter(|device| device.index != than.index && device.backend == than.backend)
        .filter(|device| device.unusable.is_none() && !device.is_software());
    let roomy = others.filter_map(|device| Some((device, device.memory_bytes.filter(|&has| has > bytes)?)));
    roomy
        .map(|(device, has)| format!("--gpu {} ({}, {})", device.index, device.name, memory_text(has)))
        .collect()
}

/// The device that is meant: a number is an index and nothing else, though names have digits too; other words are part of a name.
pub(super) fn position(wish: &str, names: &[&str]) -> Option<usize> {
    match wish.trim().parse::<usize>() {
        Ok(index) => (index < names.len()).then_some(index),
        Err(_) => names.iter().position(|name| name.to_lowercase().contains(&wish.trim().to_lowercase())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, kind: &'static str, backend: &str, gib: Option<u64>) -> DeviceInfo {
        DeviceInfo {
            index: 0,
            name: name.into(),
            kind,
            backend: backend.into(),
            driver: String::new(),
            memory_bytes: gib.map(|gib| gib << 30),
            max_buffer_bytes: 1 << 30,
            max_binding_bytes: 1 << 30,
            max_workgroup_storage: 32 << 10,
            max_workgroup_invocations: 1024,
            max_storage_buffers: 16,
            subgroup_sizes: (32, 32),
            subgroup_size: Some(32),
            shader_f16: true,
            matrix_shape: None,
            subgroups: true,
            timestamps: true,
            unusable: None,
        }
    }

    #[test]
    fn a_number_is_an_index_and_never_part_of_a_name() {
        let names = ["llvmpipe (LLVM 15.0.6, 256 bits)", "NVIDIA GeForce RTX 4090"];
        for (wish, expected) in [
            ("0", Some(0)),
            ("1", Some(1)),
            ("15", None),
            ("4090", None),
            ("rtx 4090", Some(1)),
            ("Arc", None),
        ] {
            assert_eq!(position(wish, &names), expected, "{wish}");
        }
    }

    #[test]
    fn devices_with_more_room_are_named() {
        let mut all = [
            device("this", "discrete GPU", "Vulkan", Some(8)),
            device("large", "discrete GPU", "Vulkan", Some(24)),
            device("shared", "integrated GPU", "Vulkan", Some(32)),
            device("unknown", "integrated GPU", "Vulkan", None),
            device("large", "discrete GPU", "Dx12", Some(24)),
            DeviceInfo {
                unusable: Some("too few buffers".into()),
                ..device("broken", "discrete GPU", "Vulkan", Some(80))
            },
            device("processor", "software", "Vulkan", Some(256)),
        ];
        all.iter_mut().enumerate().for_each(|(index, device)| device.index = index);
        let roomy = |gib: u64| roomier_of(&all, &all[0], gib << 30);
        assert_eq!(roomy(20), ["--gpu 1 (large, 24.00 GiB)", "--gpu 2 (shared, 32.00 GiB)"]);
        assert_eq!(roomy(24), ["--gpu 2 (shared, 32.00 GiB)"]);
        assert!(roomy(64).is_empty());
    }

    #[test]
    fn the_best_device_comes_first() {
        let broken = DeviceInfo {
            unusable: Some("too few buffers".into()),
            ..device("broken", "discrete GPU", "Vulkan", Some(80))
        };
        let mut all = [
            broken,
            device("processor", "software", "Vulkan", Some(256)),
            device("shared", "integrated GPU", "Vulkan", Some(64)),
            device("first by Dx12", "discrete GPU", "Dx12", None),
            device("second by Dx12", "discrete GPU", "Dx12", None),
            device("small", "discrete GPU", "Vulkan", Some(4)),
            device("large", "discrete GPU", "Vulkan", Some(24)),
            device("large too", "discrete GPU", "Vulkan", Some(24)),
        ];
        all.sort_by_key(DeviceInfo::rank);
        let names = all.each_ref().map(|device| device.name.as_str());
        let expected =
            ["large", "large too", "small", "first by Dx12", "second by Dx12", "shared", "processor"];
        assert_eq!(names[..7], expected);
    }
}
