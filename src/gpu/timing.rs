//! How long each dispatch of a recording takes, by the device's own clock where it has one.

use super::pipeline::Bound;
use super::{BufferSlice, Gpu, GpuError, Recording};
use crate::graph::Cost;
use std::time::Instant;

/// One dispatch of a timed run.
#[derive(Clone, Debug, PartialEq)]
pub struct DispatchTime {
    pub kernel: &'static str,
    /// What tells it from others of its kernel, such as the extents of a product.
    pub detail: String,
    /// Which kernel of its family served; empty where there is but one.
    pub variant: String,
    /// Seconds after the start of the first dispatch.
    pub start: f64,
    pub seconds: f64,
    pub cost: Cost,
}

/// Dispatches timed together: a query set holds two timestamps for each, and 4096 is the most that WebGPU allows.
const CHUNK: usize = 2048;

impl Gpu {
    /// Whether [`Gpu::time`] reads the device's clock; otherwise every dispatch is waited for by itself, and its time
    /// includes the way to the device and back.
    pub fn has_timestamps(&self) -> bool {
        self.shared.device.features().contains(wgpu::Features::TIMESTAMP_QUERY)
    }

    /// Runs a recording with each dispatch in a pass of its own and gives their times, in order.
    ///
    /// # Errors
    /// What the device reported.
    pub fn time(&self, recording: &Recording) -> Result<Vec<DispatchTime>, GpuError> {
        let mut times = Vec::with_capacity(recording.len());
        for (n, chunk) in recording.steps().chunks(CHUNK).enumerate() {
            let prepare = |i: usize| {
                let uploads = recording.uploads_before(n * CHUNK + i);
                uploads.iter().for_each(|(_, upload)| upload.to.write(&upload.bytes));
            };
            let spans = match self.has_timestamps() {
                true => self.by_timestamps(chunk, &prepare)?,
                false => self.by_waiting(chunk, &prepare)?,
            };
            // each chunk counts from its own first dispatch
            let end_of_last = times.last().map_or(0.0, |t: &DispatchTime| t.start + t.seconds);
            let first = spans.first().map_or(0.0, |span| span.0);
            let shift = end_of_last - first;
            times.extend(chunk.iter().zip(spans).map(|(bound, (start, end))| DispatchTime {
                kernel: bound.name,
                detail: bound.detail.clone(),
                variant: bound.variant.clone(),
                start: start + shift,
                seconds: end - start,
                cost: bound.cost,
            }));
        }
        let first = times.first().map_or(0.0, |t| t.start);
        times.iter_mut().for_each(|t| t.start -= first);
        Ok(times)
    }

    /// `prepare` makes ready for a step.
    fn by_timestamps(&self, steps: &[Bound], prepare: &dyn Fn(usize)) -> Result<Vec<(f64, f64)>, GpuError> {
        let device = &self.shared.device;
        let count = 2 * steps.len() as u32;
        let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("dispatch times"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let bytes = u64::from(count) * 8;
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("dispatch times"),
            size: bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let target = self.allocate("dispatch times", bytes)?;
        for (i, step) in steps.iter().enumerate() {
            prepare(i);
            let mut encoder = device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: Some(step.name),
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &queries,
                        beginning_of_pass_write_index: Some(2 * i as u32),
                        end_of_pass_write_index: Some(2 * i as u32 + 1),
                    }),
                });
                step.encode(&mut pass);
            }
            self.shared.queue.submit([encoder.finish()]);
        }
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, target.raw(), 0, bytes);
        self.shared.queue.submit([encoder.finish()]);
        let read = self.read(&[BufferSlice { buffer: target, offset: 0, size: bytes }])?;
        let period = f64::from(self.shared.queue.get_timestamp_period()) * 1e-9;
        let ticks: Vec<u64> =
            read[0].chunks_exact(8).map(|b| b.try_into().map_or(0, u64::from_le_bytes)).collect();
        // a driver may leave a timestamp out, or count backwards across power states
        let origin = ticks.iter().copied().filter(|&t| t > 0).min().unwrap_or(0);
        let at = |tick: u64| tick.saturating_sub(origin) as f64 * period;
        Ok(ticks.chunks_exact(2).map(|t| (at(t[0]), at(t[1]).max(at(t[0])))).collect())
    }

    fn by_waiting(&self, steps: &[Bound], prepare: &dyn Fn(usize)) -> Result<Vec<(f64, f64)>, GpuError> {
        let origin = Instant::now();
        let mut spans = Vec::with_capacity(steps.len());
        for (i, step) in steps.iter().enumerate() {
            prepare(i);
            let start = origin.elapsed().as_secs_f64();
            let mut encoder = self.shared.device.create_command_encoder(&Default::default());
            step.encode(&mut encoder.begin_compute_pass(&Default::default()));
            self.shared.queue.submit([encoder.finish()]);
            self.wait()?;
            spans.push((start, origin.elapsed().as_secs_f64()));
        }
        Ok(spans)
    }
}
