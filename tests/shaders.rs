//! Every shader that any device would compile: validated by naga, and written in the language of each backend as wgpu asks for
//! it. `ENGRAFT_TEST_SHADERS=FOLDER` keeps what is written there, for the backends' own compilers.

mod common;

use common::cases::plan_of;
use engraft::gpu::ShaderKey;
use engraft::graph::{Choices, Cooperative, DeviceProfile, MatrixShape, SharedMatrices};
use engraft::ops::{attention, matmul};
use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A shader, and what all devices that compile it have.
struct Variant {
    workgroup_storage: u32,
    /// Some such device computes in software; is a GPU that Metal can have; is one of Direct3D's, whose device in software,
    /// WARP, has subgroups of four, and of which wgpu knows no cooperative matrices.
    cpu: bool,
    metal: bool,
    direct3d: bool,
    subgroups: bool,
    cooperative: bool,
}

/// What Metal has; tensors in more pieces than this are refused before a shader is made.
const MOST_BUFFERS: usize = 31;

/// Those of devices with other subgroup sizes, without subgroups, with matrix units, and with bindings that are too small.
fn variants() -> HashMap<ShaderKey, Variant> {
    let profile = |cpu, subgroup, cooperative| DeviceProfile {
        cpu,
        subgroup,
        wide_loads: false,
        cooperative,
        // as on Metal, whose matrices are small
        shared_matrices: match cooperative {
            Some(Cooperative { shape, lanes: 32 }) if shape == MatrixShape::square(8) => {
                Some(SharedMatrices::Elements)
            }
            other => other.map(|_| SharedMatrices::Groups),
        },
        max_workgroup_invocations: 256,
        max_workgroup_storage: if subgroup.is_some() { 48 << 10 } else { 16 << 10 },
        ..DeviceProfile::default()
    };
    let matrices = |size, lanes| Some(Cooperative { shape: MatrixShape::square(size), lanes });
    let oblong = |n| Some(Cooperative { shape: MatrixShape { m: 8, n, k: 16 }, lanes: 32 });
    let profiles = [
        profile(true, Some(8), matrices(8, 8)),
        profile(true, Some(4), None),
        DeviceProfile { max_binding: 1 << 12, ..profile(true, Some(4), None) },
        profile(true, Some(16), None),
        profile(true, None, None),
        profile(false, Some(32), matrices(16, 32)),
        profile(false, Some(32), matrices(8, 32)),
        // Intel's, on Vulkan alone
        profile(false, Some(32), oblong(8)),
        profile(false, Some(32), oblong(16)),
        DeviceProfile { subgroup: None, ..profile(false, Some(64), matrices(16, 64)) },
        // as on Direct3D
        DeviceProfile { max_workgroup_invocations: 1024, ..profile(false, Some(32), None) },
        profile(false, None, None),
        DeviceProfile { max_binding: 1 << 12, ..profile(false, None, None) },
    ];
    // of devices one after the other, on all cores
    let (next, variants) = (AtomicUsize::new(0), Mutex::new(HashMap::new()));
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(device) = profiles.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = variants_of(device);
                    let mut all = variants.lock().unwrap();
                    for (key, variant) in found {
                        all.entry(key)
                            .and_modify(|known: &mut Variant| known.join(&variant))
                            .or_insert(variant);
                    }
                }
            });
        }
    });
    variants.into_inner().unwrap()
}

impl Variant {
    /// What both devices' needs come to.
    fn join(&mut self, other: &Variant) {
        *self = Variant {
            workgroup_storage: self.workgroup_storage.min(other.workgroup_storage),
            cpu: self.cpu || other.cpu,
            metal: self.metal || other.metal,
            direct3d: self.direct3d || other.direct3d,
            subgroups: self.subgroups && other.subgroups,
            cooperative: self.cooperative && other.cooperative,
        };
    }
}

/// All that such a device would compile.
fn variants_of(device: &DeviceProfile) -> HashMap<ShaderKey, Variant> {
    let mut variants: HashMap<ShaderKey, Variant> = HashMap::new();
    let cases = engraft::ops::cases();
    let products = matmul::Variant::all(device);
    // those that scale what they meet take no gated operand
    let gating: Vec<String> =
        products.iter().filter(|v| !v.is_running()).map(|v| format!("gating {v}")).collect();
    let products = products.into_iter().map(|v| v.to_string()).chain(gating);
    let attention = attention::Kernel::all(device).into_iter().map(|v| v.to_string());
    // in pieces only the generated declarations differ
    let whole = device.max_binding == 0;
    let forced: Vec<String> = products.chain(attention).filter(|_| whole).collect();
    // on GPUs so slow that long dispatches are cut: the built-in kernels, and some on matrix units
    let mut slow = Choices::default();
    slow.reached(1e-4);
    let first = |name: &str, running: bool| {
        let mut named = forced.iter().filter(|v| v.starts_with(name) && v.ends_with(" running") == running);
        named.next().map(Choices::forced)
    };
    let units = [first("coop-tiled", false), first("coop-tiled", true), first("coop ", false)];
    let cut = std::iter::once(Choices::default()).chain(units.into_iter().flatten());
    let cut: Vec<Choices> =
        cut.filter(|_| whole && !device.cpu).map(|choices| choices.as_fast_as(&slow)).collect();
    let forced = forced.iter().map(Choices::forced);
    for choices in std::iter::once(Choices::default()).chain(forced).chain(cut) {
        let device = DeviceProfile { choices: Arc::new(choices), ..device.clone() };
        for case in &cases {
            // whatever is needed, or without the gradients of weights
            let ways = [(false, false, 8), (true, false, 8), (false, true, 8), (false, false, 2)];
            for (accumulate, replace, live) in ways {
                let dispatches = plan_of(case, &device, accumulate, replace, |o| o < live).dispatches;
                for dispatch in dispatches.iter().filter(|d| d.bindings.len() <= MOST_BUFFERS) {
                    variants.entry(ShaderKey::of(dispatch)).or_insert_with_key(|key| {
                        // those with matrices go past wgpu and its feature
                        let past = device.cooperative.is_some() && key.has_matrices();
                        Variant {
                            workgroup_storage: device.max_workgroup_storage,
                            cpu: device.cpu,
                            metal: !device.cpu && device.cooperative.is_none_or(|c| c.shape.is_square()),
                            direct3d: !device.cpu || matches!(device.subgroup, None | Some(4)),
                            subgroups: device.subgroup.is_some() || past,
                            cooperative: device.cooperative.is_some(),
                        }
                    });
                }
            }
        }
    }
    variants
}

#[test]
fn every_backend_takes_every_shader_variant() {
    let mut variants: Vec<_> = variants().into_iter().collect();
    variants.sort_by(|(a, _), (b, _)| a.cmp(b));
    let kept = std::env::var_os("ENGRAFT_TEST_SHADERS").map(PathBuf::from);
    if let Some(folder) = &kept {
        std::fs::create_dir_all(folder).unwrap();
    }
    let keep = |name: String, bytes: &[u8]| {
        if let Some(folder) = &kept {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    };
    let written: [AtomicUsize; 3] = std::array::from_fn(|_| AtomicUsize::new(0));
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let mine = variants.iter().enumerate().skip(worker).step_by(workers);
            let (written, keep) = (&written, &keep);
            scope.spawn(move || {
                for (index, (key, variant)) in mine {
                    // 64-bit words are for devices in software
                    for wide in [false, true].into_iter().filter(|wide| !wide || variant.cpu) {
                        let shader = Validated::of(key, wide);
                        let (name, bytes) = (key.shader.name, shader.workgroup_bytes());
                        let most = variant.workgroup_storage;
                        assert!(bytes <= most, "{name}: {bytes} bytes of workgroup memory, not {most}");
                        let file =
                            |ending| format!("{index}-{name}{}.{ending}", if wide { "-wide" } else { "" });
                        let words = match key.has_matrices() {
                            true => {
                                let made = |checked| {
                                    key.spirv(checked, false).unwrap_or_else(|e| panic!("{name}: {e}"))
                                };
                                if index % 16 == 0 {
                                    made(true);
                                }
                                made(false)
                            }
                            false => shader.spirv(variant, wide),
                        };
                        keep(file("spv"), &words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>());
                        written[0].fetch_add(1, Ordering::Relaxed);
                        if variant.metal && !wide {
                            keep(file("metal"), shader.msl(variant).as_bytes());
                            written[1].fetch_add(1, Ordering::Relaxed);
                        }
                        if variant.direct3d && !variant.cooperative {
                            keep(file("hlsl"), shader.hlsl().as_bytes());
                            written[2].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let [spirv, msl, hlsl] = written.map(AtomicUsize::into_inner);
    println!("{} shader variants: {spirv} in SPIR-V, {msl} in MSL, {hlsl} in HLSL", variants.len());
    assert!(variants.len() > 500 && msl > 300 && hlsl > 500, "{} {msl} {hlsl}", variants.len());
}

/// A shader that naga found valid.
struct Validated {
    name: &'static str,
    module: naga::Module,
    info: ModuleInfo,
}

/// As the devices are asked to do (`gpu/pipeline.rs`).
const UNCHECKED: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Unchecked,
    buffer: BoundsCheckPolicy::Unchecked,
    image_load: BoundsCheckPolicy::Unchecked,
    binding_array: BoundsCheckPolicy::Unchecked,
};

impl Validated {
    fn of(key: &ShaderKey, wide: bool) -> Validated {
        let name = key.shader.name;
        let source = key.compose(wide).unwrap_or_else(|e| panic!("{e}"));
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::all())
            .subgroup_stages(ShaderStages::COMPUTE)
            .subgroup_operations(SubgroupOperationSet::all())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
        Validated { name, module, info }
    }

    fn workgroup_bytes(&self) -> u32 {
        let all = self.module.global_variables.iter();
        let shared = all.filter(|(_, v)| v.space == naga::AddressSpace::WorkGroup);
        shared.map(|(_, v)| self.module.types[v.ty].inner.size(self.module.to_ctx())).sum()
    }

    /// With the capabilities of what the device is asked for, and no others.
    fn spirv(&self, variant: &Variant, wide: bool) -> Vec<u32> {
        use spv::Capability::*;
        let mut capabilities = vec![Shader];
        if variant.subgroups {
            capabilities.extend([
                GroupNonUniform,
                GroupNonUniformVote,
                GroupNonUniformArithmetic,
                GroupNonUniformBallot,
                GroupNonUniformShuffle,
                GroupNonUniformShuffleRelative,
                GroupNonUniformQuad,
            ]);
        }
        if variant.cooperative {
            capabilities.extend([CooperativeMatrixKHR, VulkanMemoryModel, Float16, StorageBuffer16BitAccess]);
        }
        if wide {
            capabilities.push(Int64);
        }
        let options = spv::Options {
            lang_version: if variant.cooperative { (1, 6) } else { (1, 3) },
            capabilities: Some(capabilities.into_iter().collect()),
            bounds_check_policies: UNCHECKED,
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            force_loop_bounding: false,
            emit_int_div_checks: false,
            use_storage_input_output_16: false,
            ..Default::default()
        };
        let entry =
            spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: "main".into() };
        spv::write_vec(&self.module, &self.info, &options, Some(&entry))
            .unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    fn msl(&self, variant: &Variant) -> String {
        let options = msl::Options {
            lang_version: if variant.cooperative { (2, 4) } else { (2, 1) },
            bounds_check_policies: UNCHECKED,
            zero_initialize_workgroup_memory: false,
            force_loop_bounding: false,
            emit_int_div_checks: false,
            ..Default::default()
        };
        let (text, entries) =
            msl::write_string(&self.module, &self.info, &options, &msl::PipelineOptions::default())
                .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        entries
            .entry_point_names
            .into_iter()
            .for_each(|n| drop(n.unwrap_or_else(|e| panic!("{}: {e}", self.name))));
        text
    }

    fn hlsl(&self) -> String {
        let options = hlsl::Options {
            shader_model: hlsl::ShaderModel::V6_0,
            zero_initialize_workgroup_memory: false,
            restrict_indexing: false,
            force_loop_bounding: false,
            ..Default::default()
        };
        let (mut text, pipeline) = (String::new(), hlsl::PipelineOptions::default());
        let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(&self.module, &self.info, None);
        let entries = written.unwrap_or_else(|e| panic!("{}: {e}", self.name)).entry_point_names;
        entries.into_iter().for_each(|n| drop(n.unwrap_or_else(|e| panic!("{}: {e}", self.name))));
        // namespaces of DXC (`dx` since shader model 6.9), which naga does not know to avoid
        let mut words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let taken = words.find(|word| ["dx", "vk"].contains(word));
        assert_eq!(taken, None, "{}: a name that DXC has taken", self.name);
        text
    }
}
