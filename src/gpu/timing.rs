//! How long each dispatch of a recording takes, by the device's own clock where it has one, and what its uploads cost beside them.
//!
//! A timed run goes in the submissions of [`Gpu::submit`], with as many in flight: uploads come where they do in a real one.

use super::recording::{Share, Step, submission};
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
    /// It reads or writes memory of the host.
    pub on_host: bool,
    /// Seconds after the start of the first dispatch.
    pub start: f64,
    pub seconds: f64,
    pub cost: Cost,
}

/// What the uploads of a recording cost: seconds by the host's clock, until the device is done, in the fastest of several runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfers {
    pub bytes: u64,
    /// The uploads by themselves, paced as in a run.
    pub uploads: f64,
    /// The dispatches by themselves, on what lies in the slots.
    pub dispatches: f64,
    /// A run.
    pub together: f64,
    /// By how much the second run was slower than the fastest: how well that is known.
    pub noise: f64,
}

impl Transfers {
    /// The share of the uploads' time that a run does not take longer for; `None` where that is lost in the noise.
    pub fn hidden(&self) -> Option<f64> {
        let saved = self.uploads + self.dispatches - self.together;
        self.is_clear().then(|| (saved / self.uploads).clamp(0.0, 1.0))
    }

    /// Whether the runs differ by little beside what is looked for.
    fn is_clear(&self) -> bool {
        4.0 * self.noise <= self.uploads
    }

    /// Of the seconds of some runs of each kind.
    fn of(bytes: u64, seconds: &mut [Vec<f64>; 3]) -> Self {
        seconds.iter_mut().for_each(|seconds| seconds.sort_by(f64::total_cmp));
        let [uploads, dispatches, together] = [0, 1, 2].map(|share: usize| seconds[share][0]);
        let noise = seconds.iter().map(|seconds| seconds[1] - seconds[0]).fold(0.0, f64::max);
        Transfers { bytes, uploads, dispatches, together, noise }
    }
}

/// Dispatches of one query set, which holds two timestamps for each: 4096 is the most that WebGPU allows.
const CHUNK: usize = 2048;

/// Runs of each kind that [`Gpu::transfers`] makes at least, and at most where they differ too much; the second bound is seconds.
const ROUNDS: std::ops::Range<usize> = 5..50;
const ROUNDS_SECONDS: f64 = 20.0;

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
        let steps: Vec<Step<'_>> = recording.steps_with_uploads().collect();
        let spans = match self.has_timestamps() {
            true => self.by_timestamps(&steps)?,
            false => self.by_waiting(&steps)?,
        };
        let first = spans.first().map_or(0.0, |span| span.0);
        let time = |(&(bound, _), (start, end)): (&Step<'_>, (f64, f64))| DispatchTime {
            kernel: bound.name,
            detail: bound.detail.clone(),
            variant: bound.variant.clone(),
            on_host: bound.on_host,
            start: start - first,
            seconds: end - start,
            cost: bound.cost,
        };
        Ok(steps.iter().zip(spans).map(time).collect())
    }

    /// What the uploads of a recording cost, and how much of that is hidden behind its dispatches; `None` where it has none.
    /// Runs it several times, so what it accumulates is lost.
    ///
    /// # Errors
    /// What the device reported.
    pub fn transfers(&self, recording: &Recording) -> Result<Option<Transfers>, GpuError> {
        let bytes = recording.upload_bytes();
        if bytes == 0 {
            return Ok(None);
        }
        let began = Instant::now();
        let mut seconds = [const { Vec::new() }; 3];
        loop {
            for (share, seconds) in
                [Share::Uploads, Share::Dispatches, Share::All].into_iter().zip(&mut seconds)
            {
                self.wait()?;
                let start = Instant::now();
                self.run(&[], &[recording], share)?;
                self.wait()?;
                seconds.push(start.elapsed().as_secs_f64());
            }
            let rounds = seconds[0].len();
            if rounds >= ROUNDS.start {
                let found = Transfers::of(bytes, &mut seconds);
                let over = rounds >= ROUNDS.end || began.elapsed().as_secs_f64() > ROUNDS_SECONDS;
                if found.is_clear() || over {
                    return Ok(Some(found));
                }
            }
        }
    }

    /// Whether a run submits all dispatches of a recording at once, by their estimated work.
    pub fn is_one_submission(&self, recording: &Recording) -> bool {
        let steps: Vec<Step<'_>> = recording.steps_with_uploads().collect();
        submission(&steps, self.profile().submission()) == steps.len()
    }

    /// Seconds that a short recording without uploads takes with all its dispatches in one pass, as a run has them: a pass of its own
    /// costs a short kernel more than it takes. All are one submission, however much work they are estimated to be. `None` where the
    /// device has no clock or left a time out.
    ///
    /// # Errors
    /// What the device reported.
    pub fn time_together(&self, recording: &Recording) -> Result<Option<f64>, GpuError> {
        let steps: Vec<Step<'_>> = recording.steps_with_uploads().collect();
        if !self.has_timestamps() || steps.is_empty() {
            return Ok(None);
        }
        let set = self.query_set(1);
        let mut encoder = self.shared.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&timed_pass("dispatches together", &set.0, 0));
        steps.iter().for_each(|(step, _)| step.encode(&mut pass));
        drop(pass);
        self.pace(self.shared.queue.submit([encoder.finish()]))?;
        let spans = self.spans(&[set])?;
        Ok(spans.first().map(|(start, end)| end - start).filter(|&seconds| seconds > 0.0))
    }

    /// For the beginning and the end of so many passes.
    fn query_set(&self, passes: usize) -> (wgpu::QuerySet, u32) {
        let (label, count) = (Some("dispatch times"), 2 * passes as u32);
        let descriptor = wgpu::QuerySetDescriptor { label, ty: wgpu::QueryType::Timestamp, count };
        (self.shared.device.create_query_set(&descriptor), count)
    }

    fn by_timestamps(&self, steps: &[Step<'_>]) -> Result<Vec<(f64, f64)>, GpuError> {
        let device = &self.shared.device;
        let sets: Vec<(wgpu::QuerySet, u32)> =
            steps.chunks(CHUNK).map(|chunk| self.query_set(chunk.len())).collect();
        let mut at = 0;
        let bound = self.profile().submission();
        while at < steps.len() {
            let until = at + submission(&steps[at..], bound);
            let mut encoder = device.create_command_encoder(&Default::default());
            upload(&steps[at], &mut encoder);
            for (i, (step, _)) in steps.iter().enumerate().take(until).skip(at) {
                let pass = timed_pass(step.name, &sets[i / CHUNK].0, i % CHUNK);
                step.encode(&mut encoder.begin_compute_pass(&pass));
            }
            self.pace(self.shared.queue.submit([encoder.finish()]))?;
            at = until;
        }
        self.spans(&sets)
    }

    /// Beginnings and ends of the passes, in seconds after the first.
    fn spans(&self, sets: &[(wgpu::QuerySet, u32)]) -> Result<Vec<(f64, f64)>, GpuError> {
        let (device, label) = (&self.shared.device, Some("dispatch times"));
        let mut ticks: Vec<u64> = Vec::new();
        for (queries, count) in sets {
            let bytes = u64::from(*count) * 8;
            let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
            let resolved = device.create_buffer(&wgpu::BufferDescriptor {
                label,
                size: bytes,
                usage,
                mapped_at_creation: false,
            });
            let target = self.allocate("dispatch times", bytes)?;
            let mut encoder = device.create_command_encoder(&Default::default());
            encoder.resolve_query_set(queries, 0..*count, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, target.raw(), 0, bytes);
            self.shared.queue.submit([encoder.finish()]);
            let read = self.read(&[BufferSlice { buffer: target, offset: 0, size: bytes }])?;
            ticks.extend(read[0].as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)));
        }
        let period = f64::from(self.shared.queue.get_timestamp_period()) * 1e-9;
        // a driver may leave a timestamp out, or count backwards across power states
        let origin = ticks.iter().copied().filter(|&t| t > 0).min().unwrap_or(0);
        let at = |tick: u64| tick.saturating_sub(origin) as f64 * period;
        Ok(ticks.as_chunks().0.iter().map(|[from, to]| (at(*from), at(*to).max(at(*from)))).collect())
    }

    fn by_waiting(&self, steps: &[Step<'_>]) -> Result<Vec<(f64, f64)>, GpuError> {
        let origin = Instant::now();
        let mut spans = Vec::with_capacity(steps.len());
        for step in steps {
            let mut encoder = self.shared.device.create_command_encoder(&Default::default());
            if upload(step, &mut encoder) {
                // the copy is no part of the dispatch after it
                self.shared.queue.submit([encoder.finish()]);
                self.wait()?;
                encoder = self.shared.device.create_command_encoder(&Default::default());
            }
            let start = origin.elapsed().as_secs_f64();
            step.0.encode(&mut encoder.begin_compute_pass(&Default::default()));
            self.shared.queue.submit([encoder.finish()]);
            self.wait()?;
            spans.push((start, origin.elapsed().as_secs_f64()));
        }
        Ok(spans)
    }
}

/// A pass that writes its beginning and its end to the queries of this number.
fn timed_pass<'a>(
    label: &'a str,
    query_set: &'a wgpu::QuerySet,
    number: usize,
) -> wgpu::ComputePassDescriptor<'a> {
    let query = 2 * number as u32;
    wgpu::ComputePassDescriptor {
        label: Some(label),
        timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
            query_set,
            beginning_of_pass_write_index: Some(query),
            end_of_pass_write_index: Some(query + 1),
        }),
    }
}

/// Uploads what comes before a step; whether there is anything.
fn upload((_, uploads): &Step<'_>, encoder: &mut wgpu::CommandEncoder) -> bool {
    uploads.iter().for_each(|(_, upload)| upload.encode(encoder));
    !uploads.is_empty()
}
