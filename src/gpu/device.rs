//! Opening a device, and the state every other file of this room shares.

use super::listing::{position, ranked};
use super::pipeline::PipelineCache;
use super::pipeline_file::PipelineFile;
use super::subgroups::Subgroups;
use super::{DeviceInfo, GpuError};
use crate::graph::{Choices, Cooperative, DeviceProfile, MatrixShape, SharedMatrices};
use std::cell::Cell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What a run chooses a device by.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Part of a device's name, or its index in [`list_devices`]; `None`: the best real GPU, a software device only
    /// where there is no other.
    pub device: Option<String>,
    /// Keep wgpu's bounds checks in the shaders (for tests; slower).
    pub checked: bool,
    /// Do not use subgroup operations even where the device has them (for tests).
    pub no_subgroups: bool,
    /// Do not use cooperative matrices.
    pub no_coop: bool,
    /// Use cooperative matrices of devices in software too, where other kernels were ten times as fast, and of this shape whatever
    /// they list: lavapipe cuts others into its own (for tests).
    pub software_coop: Option<MatrixShape>,
    /// How many invocations share one of those, a multiple of the device's own subgroups: each of these does the work of all (for tests).
    pub software_lanes: Option<u32>,
    /// Bind no more bytes at once than this, even where the device could (for tests).
    pub max_binding: Option<u64>,
    /// Descriptors that may be taken at a time, even where the device has more (for tests).
    pub max_descriptors: Option<u64>,
    /// Bytes that may be allocated at a time; an allocation beyond is refused, see [`Gpu::set_memory_limit`].
    pub memory_limit: Option<u64>,
    /// Be lost over a kernel of this name, as drivers are that refuse one (for tests).
    pub lost_over: Option<String>,
    /// Folder where compiled pipelines are kept; `None` keeps none.
    pub pipelines: Option<PathBuf>,
}

/// Bytes of the blocks that wgpu's allocator cuts small buffers from; what is larger has memory of its own. With wgpu's own hints blocks
/// grow to 64 MiB, and a weight of 36 MiB takes one for itself: up to 2 GiB of a model of 7 billion parameters.
const MEMORY_BLOCK: u64 = 8 << 20;

/// Submissions of work that may be queued or run at a time.
const IN_FLIGHT: usize = 3;

/// An open device. Cheap to clone; all clones are the same device.
#[derive(Clone)]
pub struct Gpu {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub adapter: wgpu::Adapter,
    pub options: GpuOptions,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: DeviceInfo,
    /// Replaced as a whole where kernels are measured.
    pub profile: Mutex<Arc<DeviceProfile>>,
    pub wide_loads: bool,
    pub offset_alignment: u64,
    pub max_groups: u32,
    /// Descriptors that are taken, and that there are.
    pub descriptors: AtomicU64,
    pub max_descriptors: u64,
    pub checked: bool,
    /// SPIR-V can be handed to the driver past wgpu's compiler.
    pub passes_spirv: bool,
    /// Whether the subgroups that kernels with matrices expect are several of the device's.
    pub divides_subgroups: bool,
    pub pipelines: Mutex<PipelineCache>,
    pub pipeline_file: Option<PipelineFile>,
    pub allocated: AtomicU64,
    /// Bytes of host memory that count against the limit ([`Gpu::count_on_host`]).
    pub on_host: AtomicU64,
    /// Bytes that may be allocated; `u64::MAX` where there is no limit.
    pub memory_limit: AtomicU64,
    /// What was free when the device was opened, where the platform tells.
    pub free_memory: Option<u64>,
    /// Submissions of work that may still run, oldest first.
    pub flight: Mutex<VecDeque<wgpu::SubmissionIndex>>,
    failure: Arc<Mutex<Option<GpuError>>>,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({})", self.shared.info.name)
    }
}

impl Gpu {
    /// Opens the device that `options` asks for.
    ///
    /// # Errors
    /// [`GpuError::NoDevice`] without any driver, [`GpuError::NoMatch`] where the wish fits none,
    /// [`GpuError::Open`] where the driver refuses.
    pub fn open(options: &GpuOptions) -> Result<Self, GpuError> {
        let all = ranked();
        if all.is_empty() {
            return Err(GpuError::NoDevice);
        }
        let wish = options.device.as_deref();
        let position = match wish {
            None => 0,
            Some(wish) => position(wish, &all.iter().map(|(i, _)| i.name.as_str()).collect::<Vec<_>>())
                .ok_or_else(|| GpuError::NoMatch {
                    wanted: wish.to_string(),
                    available: all
                        .iter()
                        .map(|(i, _)| format!("{}: {}", i.index, i.name))
                        .collect::<Vec<_>>()
                        .join(", "),
                })?,
        };
        let (info, adapter) = &all[position];
        if let Some(reason) = &info.unusable {
            return Err(GpuError::Open { device: info.name.clone(), reason: reason.clone() });
        }
        Gpu::from_adapter(info.clone(), adapter, options)
    }

    pub(super) fn from_adapter(
        info: DeviceInfo,
        adapter: &wgpu::Adapter,
        options: &GpuOptions,
    ) -> Result<Self, GpuError> {
        let mut info = info;
        info.max_binding_bytes = info.max_binding_bytes.min(options.max_binding.unwrap_or(u64::MAX));
        let backend = adapter.get_info().backend;
        let vulkan = backend == wgpu::Backend::Vulkan;
        let sizes = Subgroups::of(adapter, &adapter.get_info());
        let subgroups = info.subgroups && !options.no_subgroups && sizes.with_feature().is_some();
        let wide_loads = info.is_software() && adapter.features().contains(wgpu::Features::SHADER_INT64);
        let mut wanted = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
        wanted.set(wgpu::Features::PIPELINE_CACHE, options.pipelines.is_some());
        wanted.set(wgpu::Features::SUBGROUP, subgroups);
        wanted.set(wgpu::Features::SHADER_INT64, wide_loads);
        // on Vulkan these kernels go past wgpu and its feature
        let passes = adapter.features().contains(wgpu::Features::PASSTHROUGH_SHADERS);
        let reaches = !options.no_subgroups && if vulkan { passes } else { subgroups };
        let cooperative = cooperative(adapter, options, &sizes).filter(|_| reaches);
        if cooperative.is_some() {
            wanted |= COOPERATIVE;
            wanted.set(wgpu::Features::PASSTHROUGH_SHADERS, vulkan);
        }
        let mut limits = adapter.limits();
        // on DX12 all bindings take theirs from one heap, which wgpu reserves; this is the most that every such device has
        let heap = (backend == wgpu::Backend::Dx12).then_some(limits.max_non_sampler_bindings.min(1_000_000));
        limits.max_non_sampler_bindings = heap.unwrap_or(limits.max_non_sampler_bindings);
        // what was given back is there again only after the submissions that used it
        let descriptors = heap.map_or(u64::MAX, |heap| u64::from(heap) * 9 / 10);
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("engraft"),
            required_features: adapter.features() & wanted,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::Manual {
                suballocated_device_memory_block_size: MEMORY_BLOCK..MEMORY_BLOCK,
            },
            experimental_features: match cooperative {
                // SAFETY: the one experimental feature asked for is used by kernels that are taken only where their results were
                // measured equal to others' on this device
                Some(_) => unsafe { wgpu::ExperimentalFeatures::enabled() },
                None => wgpu::ExperimentalFeatures::disabled(),
            },
            ..Default::default()
        }))
        .map_err(|e| GpuError::Open { device: info.name.clone(), reason: e.to_string() })?;

        let failure = Arc::new(Mutex::new(None));
        let on_error = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let error = match error {
                wgpu::Error::OutOfMemory { .. } => out_of_memory(),
                other => GpuError::Validation(other.to_string()),
            };
            record(&on_error, error);
        }));
        let on_loss = failure.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                // wgpu gives a device up where the driver has no room for staging or commands, and says so in words alone
                let full = message == wgpu::hal::DeviceError::OutOfMemory.to_string();
                record(&on_loss, if full { out_of_memory() } else { GpuError::Lost(message) });
            }
        });
        let passes_spirv = vulkan && device.features().contains(wgpu::Features::PASSTHROUGH_SHADERS);
        let profile = DeviceProfile {
            cpu: info.is_software(),
            subgroup: sizes.with_feature().filter(|_| subgroups),
            wide_loads,
            cooperative,
            shared_matrices: match (vulkan, passes_spirv) {
                (true, true) => Some(SharedMatrices::Groups),
                (true, false) => None,
                // naga's MSL loads from elements alone
                (false, _) => Some(SharedMatrices::Elements),
            }
            .filter(|_| cooperative.is_some()),
            max_workgroup_invocations: info.max_workgroup_invocations,
            max_workgroup_storage: info.max_workgroup_storage,
            max_binding: info.max_binding_bytes,
            max_buffer: info.max_buffer_bytes,
            max_storage_buffers: info.max_storage_buffers,
            host_buffers: device.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            unified_memory: info.unified_memory(),
            choices: Arc::default(),
        };
        let pipeline_file =
            options.pipelines.as_deref().and_then(|f| PipelineFile::open(&device, &adapter.get_info(), f));
        let shared = Shared {
            adapter: adapter.clone(),
            options: options.clone(),
            pipelines: Mutex::new(PipelineCache::default()),
            pipeline_file,
            profile: Mutex::new(Arc::new(profile)),
            wide_loads,
            offset_alignment: u64::from(limits.min_storage_buffer_offset_alignment),
            max_groups: limits.max_compute_workgroups_per_dimension,
            descriptors: AtomicU64::new(0),
            max_descriptors: options.max_descriptors.unwrap_or(descriptors),
            checked: options.checked,
            passes_spirv,
            divides_subgroups: cooperative
                .is_some_and(|c| sizes.known.is_some_and(|known| known.size < c.lanes)),
            allocated: AtomicU64::new(0),
            on_host: AtomicU64::new(0),
            memory_limit: AtomicU64::new(options.memory_limit.unwrap_or(u64::MAX)),
            free_memory: super::memory::free(adapter, &info),
            flight: Mutex::default(),
            failure,
            device,
            queue,
            info,
        };
        Ok(Gpu { shared: Arc::new(shared) })
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    /// The facts that kernels are chosen by, as they are now.
    pub fn profile(&self) -> Arc<DeviceProfile> {
        // a poisoned lock still holds a whole profile
        Arc::clone(&self.shared.profile.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Sets which kernels plans take from here on; plans that exist keep theirs.
    pub fn set_choices(&self, choices: Choices) {
        let mut profile = self.shared.profile.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *profile = Arc::new(DeviceProfile { choices: Arc::new(choices), ..DeviceProfile::clone(&profile) });
    }

    /// Bytes of all buffers that exist on the device.
    pub fn allocated_bytes(&self) -> u64 {
        self.shared.allocated.load(Ordering::Relaxed)
    }

    /// Waits until everything submitted has run.
    ///
    /// # Errors
    /// What the device reported since the last call.
    pub fn wait(&self) -> Result<(), GpuError> {
        self.poll(wgpu::PollType::wait_indefinitely())
    }

    /// Waits until a submission, and everything before it, has run.
    pub(super) fn wait_for(&self, submission: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        self.poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout: None })
    }

    fn poll(&self, until: wgpu::PollType) -> Result<(), GpuError> {
        self.check()?;
        let device = &self.shared.device;
        // wgpu panics where the device is lost meanwhile; its callback has recorded why
        let polled = without_panic(|| device.poll(until));
        self.check()?;
        match polled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(GpuError::Lost(error.to_string())),
            Err(_) => Err(GpuError::Lost("the driver gave up while it was waited for".into())),
        }
    }

    /// Counts a submission of work, and waits for an old one where too many have not finished: what is queued on the
    /// device stays short, and so does what a lost device or a stopped run throws away.
    pub(super) fn pace(&self, submission: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        let mut flight = self.shared.flight.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        flight.push_back(submission);
        let oldest = if flight.len() > IN_FLIGHT { flight.pop_front() } else { None };
        drop(flight);
        oldest.map_or(Ok(()), |oldest| self.wait_for(oldest))
    }

    pub(super) fn lose(&self, error: GpuError) {
        record(&self.shared.failure, error);
    }

    /// The error that a callback recorded, if one did.
    pub fn check(&self) -> Result<(), GpuError> {
        match self.shared.failure.lock() {
            Ok(failure) => failure.clone().map_or(Ok(()), Err),
            Err(_) => Err(GpuError::Lost("a device callback failed".into())),
        }
    }
}

thread_local! {
    static POLLING: Cell<bool> = const { Cell::new(false) };
}

/// What waits for a device that may be lost; `Err` for a panic of wgpu.
pub(super) fn without_panic<T>(wait: impl FnOnce() -> T) -> std::thread::Result<T> {
    POLLING.set(true);
    let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(wait));
    POLLING.set(false);
    waited
}

/// Whether this thread waits for a device, where a panic of wgpu becomes [`GpuError::Lost`]: for a program's panic hook,
/// which has nothing to say then.
pub fn is_waiting() -> bool {
    POLLING.get()
}

/// What cooperative matrices need.
const COOPERATIVE: wgpu::Features =
    wgpu::Features::SHADER_F16.union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

/// The largest shape with f16 operands and f32 sums: the feature alone says only that there is some shape. Those that are not square
/// are for kernels that go past wgpu, on Vulkan.
pub(super) fn cooperative(
    adapter: &wgpu::Adapter,
    options: &GpuOptions,
    subgroups: &Subgroups,
) -> Option<Cooperative> {
    // kernels hand out work by subgroup, so its size must be known
    let lanes = subgroups.known?.size;
    if options.no_coop || !adapter.features().contains(COOPERATIVE) {
        return None;
    }
    let info = adapter.get_info();
    // measured, never the fastest there; and llvmpipe of Mesa 26.2.6 crashes in them where its vectors have 512 bits
    if info.device_type == wgpu::DeviceType::Cpu {
        let shape = options.software_coop.filter(|_| lanes <= 8)?;
        let lanes = options.software_lanes.filter(|n| *n > lanes && n.is_multiple_of(lanes)).unwrap_or(lanes);
        return Some(Cooperative { shape, lanes });
    }
    let (half, single) = (wgpu::CooperativeScalarType::F16, wgpu::CooperativeScalarType::F32);
    let listed = adapter.cooperative_matrix_properties();
    let halves = listed.iter().filter(|p| p.ab_type == half && p.cr_type == single);
    let shapes = halves.map(|p| MatrixShape { m: p.m_size, n: p.n_size, k: p.k_size });
    let vulkan = info.backend == wgpu::Backend::Vulkan;
    let usable = shapes.filter(|shape| shape.is_known() && (vulkan || shape.is_square()));
    usable.max_by_key(MatrixShape::volume).map(|shape| Cooperative { shape, lanes })
}

/// Of what the driver does not say how large it was.
fn out_of_memory() -> GpuError {
    GpuError::OutOfMemory { what: "what a step needs beside its buffers".into(), bytes: 0 }
}

fn record(slot: &Mutex<Option<GpuError>>, error: GpuError) {
    if let Ok(mut slot) = slot.lock() {
        // the first error is the cause, the later ones follow from it
        slot.get_or_insert(error);
    }
}
