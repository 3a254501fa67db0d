//! Recordings: dispatches bound to buffers, replayed in submissions of bounded work, with uploads in between.
//!
//! An upload is a copy in the encoder of the dispatches that it comes before, not a write of the queue: that would copy to staging
//! memory first, made anew each time and in the device's memory where the host reaches it, and wgpu would put the barriers of these
//! dispatches behind it. Here they come before the copy, which is ordered against what uses its slot alone.

use super::pipeline::{Bound, Descriptors};
use super::{Buffer, BufferSlice, Gpu, GpuError};
use crate::graph::Cost;

/// Dispatches that run in order, as often as wanted, and what is uploaded between them.
#[derive(Default)]
pub struct Recording {
    steps: Vec<Bound>,
    /// What the steps' parameters lie in, and the descriptors of their bindings.
    params: Option<Buffer>,
    _descriptors: Option<Descriptors>,
    /// By the step that they come before, ascending.
    uploads: Vec<(usize, Upload)>,
}

/// What goes from host memory ([`Gpu::allocate_on_host`]) to the device anew in every run of a recording: a multiple of four
/// bytes, as many as `from` has.
#[derive(Clone)]
pub struct Upload {
    pub from: BufferSlice,
    pub to: BufferSlice,
}

/// A dispatch, and what is uploaded before it.
pub(super) type Step<'r> = (&'r Bound, &'r [(usize, Upload)]);

/// What of a recording runs: all, or one side of it for who measures how the two overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    All,
    Dispatches,
    Uploads,
}

/// How many of these steps go in one submission: up to its bound of work, or to the next upload, which comes before all of the
/// submission after it.
pub(super) fn submission(steps: &[Step<'_>], bound: Cost) -> usize {
    cut(steps.iter().map(|(step, uploads)| (step.load, !uploads.is_empty())), bound).unwrap_or(steps.len())
}

/// Where the steps of these costs, before some of which are uploads, go over the bound.
fn cut(steps: impl Iterator<Item = (Cost, bool)>, bound: Cost) -> Option<usize> {
    let mut cost = Cost::default();
    steps.enumerate().position(|(i, (step, uploads))| {
        cost += step;
        let full = cost.flops > bound.flops || cost.bytes > bound.bytes;
        i > 0 && (full || uploads)
    })
}

impl Gpu {
    /// Zeroes buffers and runs recordings, cut into submissions of bounded work; returns without waiting for them, but for
    /// old ones where several have not finished.
    ///
    /// # Errors
    /// What the device reported since the last call.
    pub fn submit(&self, clears: &[BufferSlice], recordings: &[&Recording]) -> Result<(), GpuError> {
        self.run(clears, recordings, Share::All)
    }

    pub(super) fn run(
        &self,
        clears: &[BufferSlice],
        recordings: &[&Recording],
        share: Share,
    ) -> Result<(), GpuError> {
        self.check()?;
        let device = &self.shared.device;
        let mut encoder = device.create_command_encoder(&Default::default());
        for slice in clears {
            encoder.clear_buffer(slice.buffer.raw(), slice.offset, Some(slice.size));
        }
        let steps: Vec<Step<'_>> = recordings.iter().flat_map(|r| r.steps_with_uploads()).collect();
        let mut left = &steps[..];
        let bound = self.profile().submission();
        while let Some((_, uploads)) = left.first() {
            let (now, later) = left.split_at(submission(left, bound));
            if share != Share::Dispatches {
                uploads.iter().for_each(|(_, upload)| upload.encode(&mut encoder));
            }
            if share != Share::Uploads {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                now.iter().for_each(|(step, _)| step.encode(&mut pass));
            }
            let submission = self.shared.queue.submit([encoder.finish()]);
            self.pace(submission)?;
            encoder = device.create_command_encoder(&Default::default());
            left = later;
        }
        if steps.is_empty() {
            self.shared.queue.submit([encoder.finish()]);
        }
        self.check()
    }
}

impl Upload {
    pub(super) fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let Upload { from, to } = self;
        encoder.copy_buffer_to_buffer(from.buffer.raw(), from.offset, to.buffer.raw(), to.offset, from.size);
    }
}

impl Recording {
    pub(super) fn of(steps: Vec<Bound>, params: Option<Buffer>, descriptors: Descriptors) -> Self {
        Recording { steps, params, _descriptors: Some(descriptors), uploads: Vec::new() }
    }

    /// Uploads before the step at this index, in every run. Indices must not fall from call to call.
    pub fn upload(&mut self, before: usize, upload: Upload) {
        debug_assert!(self.uploads.last().is_none_or(|(last, _)| *last <= before));
        self.uploads.push((before, upload));
    }

    pub(super) fn steps_with_uploads(&self) -> impl Iterator<Item = Step<'_>> {
        self.steps.iter().enumerate().map(|(i, step)| (step, self.uploads_before(i)))
    }

    fn uploads_before(&self, step: usize) -> &[(usize, Upload)] {
        let from = self.uploads.partition_point(|(at, _)| *at < step);
        let to = self.uploads.partition_point(|(at, _)| *at <= step);
        &self.uploads[from..to]
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Bytes of its dispatches' parameters on the device.
    pub fn parameter_bytes(&self) -> u64 {
        self.params.as_ref().map_or(0, Buffer::size)
    }

    /// Bytes that are uploaded in a run.
    pub fn upload_bytes(&self) -> u64 {
        self.uploads.iter().map(|(_, upload)| upload.from.size).sum()
    }

    /// Estimated work of one run.
    pub fn cost(&self) -> Cost {
        let mut total = Cost::default();
        self.steps.iter().for_each(|s| total += s.cost);
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_is_within_its_bound_or_a_single_dispatch() {
        let bound = Cost { flops: 40e9, bytes: 8e9 };
        let cut = |steps: &[(Cost, bool)]| super::cut(steps.iter().copied(), bound);
        let end = |gflop: &[f64]| {
            cut(&gflop.iter().map(|g| (Cost { flops: g * 1e9, bytes: 0.0 }, false)).collect::<Vec<_>>())
        };
        assert_eq!(end(&[10.0, 20.0, 20.0]), Some(2));
        assert_eq!(end(&[10.0, 240.0, 1.0]), Some(1), "a large one after others begins its own");
        assert_eq!(end(&[240.0, 1.0]), Some(1));
        assert_eq!(end(&[10.0, 10.0, 20.0]), None);
        let bytes = |gb: f64| (Cost { flops: 0.0, bytes: gb * 1e9 }, false);
        assert_eq!(cut(&[bytes(5.0), bytes(2.0), bytes(2.0)]), Some(2));
        let upload = (Cost::default(), true);
        assert_eq!(cut(&[upload, bytes(0.0), upload]), Some(2), "an upload comes before its submission");
    }
}
