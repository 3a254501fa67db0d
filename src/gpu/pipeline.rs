//! Pipelines, made once per composed shader, and dispatches bound to buffers.

use super::compose::{ShaderKey, param_bytes, param_space};
use super::pipeline_file::PipelineFile;
use super::{BufferSlice, Gpu, GpuError, Limit, Recording};
use crate::graph::{Cost, Dispatch};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Default)]
pub(super) struct PipelineCache {
    pipelines: HashMap<ShaderKey, Arc<Pipeline>>,
}

pub(super) struct Pipeline {
    raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

type Compiled = (ShaderKey, Arc<Pipeline>);

/// A dispatch, and the buffer of each of its bindings, within which the binding's own offset and size apply.
pub struct Work<'a> {
    pub dispatch: &'a Dispatch,
    pub buffers: Vec<BufferSlice>,
    /// It reads or writes memory of the host, over the bus: for reports.
    pub on_host: bool,
}

/// A dispatch bound to its buffers.
pub(super) struct Bound {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    grid: (u32, u32),
    pub(super) on_host: bool,
    pub(super) cost: Cost,
    /// What it counts for in a submission.
    pub(super) load: Cost,
    pub(super) name: &'static str,
    pub(super) detail: String,
    pub(super) variant: String,
}

/// Descriptors that are taken until this is dropped.
pub(super) struct Descriptors {
    gpu: Gpu,
    count: u64,
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        self.gpu.shared.descriptors.fetch_sub(self.count, Ordering::Relaxed);
    }
}

impl Bound {
    pub(super) fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline.raw);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(self.grid.0, self.grid.1, 1);
    }
}

impl Gpu {
    /// Compiles what `dispatches` need, several at a time. Known pipelines cost nothing, and what compiles is kept even where
    /// another does not.
    ///
    /// # Errors
    /// [`GpuError::Shader`] with the driver's or the validator's message.
    pub fn prepare<'a>(&self, dispatches: impl IntoIterator<Item = &'a Dispatch>) -> Result<(), GpuError> {
        let mut missing: Vec<ShaderKey> = Vec::new();
        {
            let cache = self.pipelines()?;
            for dispatch in dispatches {
                if self.shared.options.lost_over.as_ref().is_some_and(|name| dispatch.variant == *name) {
                    self.lose(GpuError::Lost("as was asked for".into()));
                }
                let key = ShaderKey::of(dispatch);
                if !cache.pipelines.contains_key(&key) && !missing.contains(&key) {
                    missing.push(key);
                }
            }
        }
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(missing.len().max(1));
        let results: Vec<Result<Compiled, GpuError>> = std::thread::scope(|scope| {
            let missing = &missing;
            let work = move |worker: usize| -> Vec<Result<Compiled, GpuError>> {
                let mine = missing.iter().skip(worker).step_by(workers);
                mine.map(|key| Ok((key.clone(), self.compile(key)?))).collect()
            };
            let begin = |worker| {
                let thread = std::thread::Builder::new().spawn_scoped(scope, move || work(worker));
                (worker, thread)
            };
            let handles: Vec<_> = (0..workers).map(begin).collect();
            let panicked = || vec![Err(GpuError::Validation("a shader compiler thread failed".into()))];
            let join = |(worker, handle): (usize, std::io::Result<std::thread::ScopedJoinHandle<'_, _>>)| {
                // where no further thread may start, this one does its part
                handle.map_or_else(|_| work(worker), |h| h.join().unwrap_or_else(|_| panicked()))
            };
            handles.into_iter().flat_map(join).collect()
        });
        let mut failed = None;
        {
            let mut cache = self.pipelines()?;
            for result in results {
                match result {
                    Ok((key, pipeline)) => drop(cache.pipelines.insert(key, pipeline)),
                    Err(error) => drop(failed.get_or_insert(error)),
                }
            }
        }
        self.check().and(failed.map_or(Ok(()), Err))
    }

    fn pipelines(&self) -> Result<std::sync::MutexGuard<'_, PipelineCache>, GpuError> {
        self.shared
            .pipelines
            .lock()
            .map_err(|_| GpuError::Validation("a shader compiler thread failed".into()))
    }

    fn compile(&self, key: &ShaderKey) -> Result<Arc<Pipeline>, GpuError> {
        let device = &self.shared.device;
        // the validator's objections, and those of the backend's own compiler
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let inner = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let entry = |binding: u32, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries = Vec::new();
        if key.has_params() {
            entries.push(entry(0, wgpu::BufferBindingType::Uniform));
        }
        entries.extend(
            key.writes().enumerate().map(|(i, write)| {
                entry(i as u32 + 1, wgpu::BufferBindingType::Storage { read_only: !write })
            }),
        );
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(key.shader.name),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(key.shader.name),
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        let module = self.module(key)?;
        let raw = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(key.shader.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.shared.pipeline_file.as_ref().map(PipelineFile::used),
        });
        let internal = pollster::block_on(inner.pop());
        if let Some(error) = pollster::block_on(scope.pop()).or(internal) {
            return Err(GpuError::Shader { shader: key.shader.name.into(), reason: error.to_string() });
        }
        // a lost device answers with pipelines that do nothing
        self.check()?;
        Ok(Arc::new(Pipeline { raw, layout }))
    }

    fn module(&self, key: &ShaderKey) -> Result<wgpu::ShaderModule, GpuError> {
        let (device, checked) = (&self.shared.device, self.shared.checked);
        let label = Some(key.shader.name);
        if self.shared.passes_spirv && key.has_matrices() {
            let words = key.spirv(checked, self.shared.divides_subgroups)?;
            // the size is for Metal alone
            let entry = wgpu::PassthroughShaderEntryPoint { name: "main".into(), workgroup_size: (1, 1, 1) };
            let descriptor = wgpu::ShaderModuleDescriptorPassthrough {
                label,
                entry_points: vec![entry].into(),
                spirv: Some(words.into()),
                ..Default::default()
            };
            // SAFETY: the words are naga's, of a module that it found valid, with memory operands added; their capabilities are
            // those of features that the device has, and the pipeline's layout numbers the bindings in the same order
            return Ok(unsafe { device.create_shader_module_passthrough(descriptor) });
        }
        let source = wgpu::ShaderSource::Wgsl(key.compose(self.shared.wide_loads)?.into());
        let descriptor = wgpu::ShaderModuleDescriptor { label, source };
        Ok(if checked {
            device.create_shader_module(descriptor)
        } else {
            // SAFETY: kernels clamp or guard every index themselves and every loop ends; the tests run them with
            // checks too
            unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        })
    }

    /// Compiles and binds dispatches, to run in order. The parameters of all lie in one buffer, for some backends give every buffer
    /// 64 KiB.
    ///
    /// # Errors
    /// [`GpuError::Shader`], [`GpuError::OverLimit`] and a failed allocation.
    pub fn record(&self, work: &[Work<'_>]) -> Result<Recording, GpuError> {
        let profile = self.profile();
        work.iter().find_map(|w| GpuError::of_bindings(w.dispatch, &profile)).map_or(Ok(()), Err)?;
        self.prepare(work.iter().map(|w| w.dispatch))?;
        let descriptors = self.descriptors(work)?;
        let mut content = Vec::new();
        for Work { dispatch, .. } in work {
            let end = content.len() + param_space(dispatch) as usize;
            content.extend(param_bytes(dispatch));
            content.resize(end, 0);
        }
        let params = if content.is_empty() { None } else { Some(self.uniform(&content)?) };
        let mut offset = 0;
        let mut steps = Vec::new();
        for one in work {
            let own = params.as_ref().filter(|_| !one.dispatch.params.is_empty());
            steps.push(self.bind(one, own.map(|p| p.slice(offset, param_bytes(one.dispatch).len() as u64)))?);
            offset += param_space(one.dispatch);
        }
        Ok(Recording::of(steps, params, descriptors))
    }

    fn descriptors(&self, work: &[Work<'_>]) -> Result<Descriptors, GpuError> {
        let count = work.iter().map(|w| 1 + w.dispatch.bindings.len() as u64).sum();
        let taken = self.shared.descriptors.fetch_add(count, Ordering::Relaxed);
        let descriptors = Descriptors { gpu: self.clone(), count };
        let (requested, maximum) = (taken + count, self.shared.max_descriptors);
        let over = requested > maximum;
        let error = || GpuError::OverLimit {
            what: "the kernels of a plan".into(),
            limit: Limit::Descriptors,
            requested,
            maximum,
        };
        if over { Err(error()) } else { Ok(descriptors) }
    }

    fn bind(&self, work: &Work<'_>, params: Option<BufferSlice>) -> Result<Bound, GpuError> {
        let Work { dispatch, buffers, on_host } = work;
        let key = ShaderKey::of(dispatch);
        let pipeline = self
            .pipelines()?
            .pipelines
            .get(&key)
            .cloned()
            .ok_or_else(|| GpuError::Validation(format!("{} was not compiled", key.shader.name)))?;
        let slices: Vec<BufferSlice> = dispatch
            .bindings
            .iter()
            .zip(buffers)
            .map(|(b, s)| s.part(b.offset, b.size.unwrap_or(s.size - b.offset)))
            .collect();
        if let Some(slice) = slices.iter().find(|s| s.size > self.shared.info.max_binding_bytes) {
            return Err(GpuError::OverLimit {
                what: format!("an operand of {}", dispatch.shader.name),
                limit: Limit::BindingBytes,
                requested: slice.size,
                maximum: self.shared.info.max_binding_bytes,
            });
        }
        let numbered = params.iter().map(|params| (0, params)).chain((1..).zip(&slices));
        let entries: Vec<wgpu::BindGroupEntry<'_>> = numbered
            .map(|(binding, slice)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: slice.buffer.raw(),
                    offset: slice.offset,
                    size: wgpu::BufferSize::new(slice.size),
                }),
            })
            .collect();
        let group = self.shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(dispatch.shader.name),
            layout: &pipeline.layout,
            entries: &entries,
        });
        let grid = self.fold(dispatch.groups)?;
        Ok(Bound {
            pipeline,
            group,
            grid,
            on_host: *on_host,
            cost: dispatch.cost,
            load: dispatch.load(&self.profile()),
            name: dispatch.shader.name,
            detail: dispatch.detail.clone(),
            variant: dispatch.variant.clone(),
        })
    }

    /// Offset alignment that storage bindings need, in bytes.
    pub fn offset_alignment(&self) -> u64 {
        self.shared.offset_alignment
    }

    fn fold(&self, groups: u64) -> Result<(u32, u32), GpuError> {
        let max = u64::from(self.shared.max_groups);
        let rows = groups.div_ceil(max).max(1);
        let over = GpuError::OverLimit {
            what: "a dispatch".into(),
            limit: Limit::Workgroups,
            requested: groups,
            maximum: max * max,
        };
        let (x, y) = (groups.div_ceil(rows).max(1), rows);
        match (u32::try_from(x), u32::try_from(y)) {
            (Ok(x), Ok(y)) if u64::from(y) <= max => Ok((x, y)),
            _ => Err(over),
        }
    }
}
