//! Pipelines, made once per composed shader, and recordings: dispatches bound to buffers, ready to be replayed.

use super::compose::{ShaderKey, param_bytes};
use super::pipeline_file::PipelineFile;
use super::{Buffer, BufferSlice, Gpu, GpuError, Limit};
use crate::graph::{Cost, Dispatch};
use std::collections::HashMap;
use std::sync::Arc;

#[derive(Default)]
pub(super) struct PipelineCache {
    pipelines: HashMap<ShaderKey, Arc<Pipeline>>,
}

pub(super) struct Pipeline {
    raw: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

type Compiled = (ShaderKey, Arc<Pipeline>);

/// A dispatch with its buffers.
pub struct Bound {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    params: Option<Buffer>,
    grid: (u32, u32),
    pub(super) cost: Cost,
    pub(super) name: &'static str,
    pub(super) detail: String,
    pub(super) variant: String,
}

impl Bound {
    pub(super) fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline.raw);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(self.grid.0, self.grid.1, 1);
    }
}

/// Dispatches that run in order, as often as wanted, and what is uploaded between them.
#[derive(Default)]
pub struct Recording {
    steps: Vec<Bound>,
    /// By the step that they come before, ascending.
    uploads: Vec<(usize, Upload)>,
}

/// Content that goes to the device anew in every run of a recording.
#[derive(Clone)]
pub struct Upload {
    pub to: BufferSlice,
    pub bytes: Arc<Vec<u8>>,
}

/// A submission ends after this much estimated work: far below the two seconds after which Windows resets a device.
const SUBMIT_FLOPS: f64 = 40e9;
const SUBMIT_BYTES: f64 = 8e9;

impl Gpu {
    /// Compiles what `dispatches` need, several at a time. Known pipelines cost nothing.
    ///
    /// # Errors
    /// [`GpuError::Shader`] with the driver's or the validator's message.
    pub fn prepare<'a>(&self, dispatches: impl IntoIterator<Item = &'a Dispatch>) -> Result<(), GpuError> {
        let mut missing: Vec<ShaderKey> = Vec::new();
        {
            let cache = self.pipelines()?;
            for key in dispatches.into_iter().map(ShaderKey::of) {
                if !cache.pipelines.contains_key(&key) && !missing.contains(&key) {
                    missing.push(key);
                }
            }
        }
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(missing.len().max(1));
        let results: Vec<Result<Vec<Compiled>, GpuError>> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..workers)
                .map(|worker| {
                    let mine = missing.iter().skip(worker).step_by(workers);
                    scope.spawn(move || mine.map(|key| Ok((key.clone(), self.compile(key)?))).collect())
                })
                .collect();
            let panicked = || Err(GpuError::Validation("a shader compiler thread failed".into()));
            handles.into_iter().map(|h| h.join().unwrap_or_else(|_| panicked())).collect()
        });
        for result in results {
            let compiled = result?;
            self.pipelines()?.pipelines.extend(compiled);
        }
        self.check()
    }

    fn pipelines(&self) -> Result<std::sync::MutexGuard<'_, PipelineCache>, GpuError> {
        self.shared
            .pipelines
            .lock()
            .map_err(|_| GpuError::Validation("a shader compiler thread failed".into()))
    }

    fn compile(&self, key: &ShaderKey) -> Result<Arc<Pipeline>, GpuError> {
        let device = &self.shared.device;
        let source = key.compose(self.shared.wide_loads)?;
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
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(key.shader.name),
            source: wgpu::ShaderSource::Wgsl(source.as_str().into()),
        };
        let module = if self.shared.checked {
            device.create_shader_module(descriptor)
        } else {
            // SAFETY: kernels clamp or guard every index themselves and every loop ends; the tests run them with
            // checks too
            unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
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
        Ok(Arc::new(Pipeline { raw, layout }))
    }

    /// Binds a dispatch to its buffers, one per binding; each binding's own offset and size apply within them.
    ///
    /// # Errors
    /// [`GpuError::Shader`] and [`GpuError::OverLimit`].
    pub fn bind(&self, dispatch: &Dispatch, buffers: &[BufferSlice]) -> Result<Bound, GpuError> {
        GpuError::of_bindings(dispatch, &self.profile()).map_or(Ok(()), Err)?;
        self.prepare([dispatch])?;
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
        let params = match dispatch.params.is_empty() {
            true => None,
            false => Some(self.uniform(&param_bytes(dispatch))?),
        };
        let mut entries: Vec<wgpu::BindGroupEntry<'_>> = params
            .iter()
            .map(|p| wgpu::BindGroupEntry { binding: 0, resource: p.raw().as_entire_binding() })
            .collect();
        entries.extend(slices.iter().enumerate().map(|(i, slice)| wgpu::BindGroupEntry {
            binding: i as u32 + 1,
            resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer: slice.buffer.raw(),
                offset: slice.offset,
                size: wgpu::BufferSize::new(slice.size),
            }),
        }));
        let group = self.shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(dispatch.shader.name),
            layout: &pipeline.layout,
            entries: &entries,
        });
        let grid = self.fold(dispatch.groups)?;
        Ok(Bound {
            pipeline,
            group,
            params,
            grid,
            cost: dispatch.cost,
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

    /// Zeroes buffers and runs recordings, cut into submissions of bounded work; returns without waiting for them, but for
    /// old ones where several have not finished.
    ///
    /// # Errors
    /// What the device reported since the last call.
    pub fn submit(&self, clears: &[BufferSlice], recordings: &[&Recording]) -> Result<(), GpuError> {
        self.check()?;
        let device = &self.shared.device;
        let mut encoder = device.create_command_encoder(&Default::default());
        for slice in clears {
            encoder.clear_buffer(slice.buffer.raw(), slice.offset, Some(slice.size));
        }
        let steps: Vec<(&Bound, &[(usize, Upload)])> = recordings
            .iter()
            .flat_map(|r| r.steps.iter().enumerate().map(|(i, step)| (step, r.uploads_before(i))))
            .collect();
        let mut next = 0;
        while next < steps.len() {
            let mut cost = Cost::default();
            // an upload comes before all of the next submission: what stands before it was submitted already
            steps[next].1.iter().for_each(|(_, upload)| upload.to.write(&upload.bytes));
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                let first = next;
                while next < steps.len() && cost.flops < SUBMIT_FLOPS && cost.bytes < SUBMIT_BYTES {
                    let (step, uploads) = steps[next];
                    if next > first && !uploads.is_empty() {
                        break;
                    }
                    step.encode(&mut pass);
                    cost += step.cost;
                    next += 1;
                }
            }
            let submission = self.shared.queue.submit([encoder.finish()]);
            self.pace(submission)?;
            encoder = device.create_command_encoder(&Default::default());
        }
        if steps.is_empty() {
            self.shared.queue.submit([encoder.finish()]);
        }
        self.check()
    }
}

impl Recording {
    pub fn push(&mut self, bound: Bound) {
        self.steps.push(bound);
    }

    /// Uploads before the step at this index, in every run. Indices must not fall from call to call.
    pub fn upload(&mut self, before: usize, upload: Upload) {
        debug_assert!(self.uploads.last().is_none_or(|(last, _)| *last <= before));
        self.uploads.push((before, upload));
    }

    pub(super) fn uploads_before(&self, step: usize) -> &[(usize, Upload)] {
        let from = self.uploads.partition_point(|(at, _)| *at < step);
        let to = self.uploads.partition_point(|(at, _)| *at <= step);
        &self.uploads[from..to]
    }

    pub(super) fn steps(&self) -> &[Bound] {
        &self.steps
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Bytes of its dispatches' parameters on the device.
    pub fn parameter_bytes(&self) -> u64 {
        self.steps.iter().filter_map(|s| s.params.as_ref()).map(Buffer::size).sum()
    }

    /// Estimated work of one run.
    pub fn cost(&self) -> Cost {
        let mut total = Cost::default();
        self.steps.iter().for_each(|s| total += s.cost);
        total
    }
}
