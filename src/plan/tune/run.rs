//! A variant's launches: their scratch space, their results, their times.

use super::Candidate;
use crate::gpu::{BufferSlice, Gpu, GpuError, Recording, Work};
use crate::graph::{Alternative, Binding, DType, Dispatch, Place, Shape, TensorType};
use std::collections::HashMap;

/// Launches timed together, of kernels that take less than [`LONG`] seconds.
const GROUP: usize = 4;
const LONG: f64 = 0.02;
/// On GPUs so many that they take this many seconds, which is a thousand times what clocks of devices resolve, and this many at most.
const GROUP_SECONDS: f64 = 2e-3;
const LARGEST_GROUP: usize = 64;
/// How often the fastest must give the right result once more, with the clocks and the neighbours that timing gave it.
const AGAIN: usize = 2;
/// Bytes of a result that are compared, at its start and at its end.
const COMPARED: u64 = 2 << 20;

/// No room to measure in is no reason to end a run that has room to train in.
pub(super) fn no_room(error: &GpuError) -> bool {
    matches!(
        error,
        GpuError::OutOfMemory { .. } | GpuError::OverMemoryLimit { .. } | GpuError::OverLimit { .. }
    )
}

/// Goes on where there is none, with what was recorded before.
pub(super) fn unless_no_room(result: Result<(), GpuError>) -> Result<(), GpuError> {
    match result {
        Err(error) if no_room(&error) => Ok(()),
        result => result,
    }
}

/// Scratch space, which the variants of a candidate share: they run one after the other.
#[derive(Default)]
pub(super) struct Scratch {
    /// What the most demanding variant takes.
    pub(super) largest: HashMap<Place, u64>,
    pub(super) made: HashMap<Place, BufferSlice>,
}

impl Scratch {
    pub(super) fn of(candidate: &Candidate) -> Self {
        let mut scratch = Scratch::default();
        for &(place, bytes) in candidate.variants.iter().flat_map(|variant| &variant.workspaces) {
            let largest = scratch.largest.entry(place).or_default();
            *largest = bytes.max(*largest);
        }
        scratch
    }

    fn take(&mut self, gpu: &Gpu, place: Place, bytes: u64) -> Result<BufferSlice, GpuError> {
        if let Some(made) = self.made.get(&place).filter(|made| made.size >= bytes) {
            return Ok(made.part(0, bytes));
        }
        let largest = self.largest.get(&place).map_or(bytes, |&largest| largest.max(bytes));
        let made = match gpu.allocate("tuning", largest) {
            Err(error) if no_room(&error) && largest > bytes => gpu.allocate("tuning", bytes)?,
            made => made?,
        };
        self.made.insert(place, made.whole());
        Ok(made.whole().part(0, bytes))
    }
}

/// A compiled variant and its fastest launch so far.
pub(super) struct Run<'c> {
    pub(super) variant: &'c Alternative,
    /// What it binds, its own scratch space included.
    buffers: HashMap<Place, BufferSlice>,
    group: Recording,
    /// Of the group.
    launches: usize,
    /// Of one launch.
    pub(super) seconds: f64,
}

impl<'c> Run<'c> {
    /// Compiles; gives the results of a launch on zeroed outputs too.
    pub(super) fn new(
        gpu: &Gpu,
        variant: &'c Alternative,
        buffers: &HashMap<Place, BufferSlice>,
        scratch: &mut Scratch,
    ) -> Result<(Self, Vec<Vec<f32>>), GpuError> {
        let mut buffers = buffers.clone();
        for &(place, bytes) in &variant.workspaces {
            buffers.insert(place, scratch.take(gpu, place, bytes)?);
        }
        let mut run =
            Run { variant, buffers, group: Recording::default(), launches: 0, seconds: f64::INFINITY };
        let results = run.results(gpu)?;
        Ok((run, results))
    }

    /// Those of a launch on zeroed outputs; the group is one launch from then on.
    fn results(&mut self, gpu: &Gpu) -> Result<Vec<Vec<f32>>, GpuError> {
        self.record(gpu, 1)?;
        // what the last dispatch writes are the results
        let written = self.variant.dispatches.iter().last().into_iter().flat_map(|d| &d.bindings);
        let mut written: Vec<&Binding> = written.filter(|b| b.write).collect();
        written.dedup_by_key(|b| b.place);
        let outputs: Vec<(BufferSlice, DType)> =
            written.into_iter().map(|b| (self.buffers[&b.place].clone(), b.dtype)).collect();
        let clears: Vec<BufferSlice> = outputs.iter().map(|(s, _)| s.clone()).collect();
        gpu.submit(&clears, &[&self.group])?;
        let ends = |slice: &BufferSlice| match slice.size > 2 * COMPARED {
            true => vec![slice.part(0, COMPARED), slice.part(slice.size - COMPARED, COMPARED)],
            false => vec![slice.clone()],
        };
        let mut results = Vec::new();
        for (slice, dtype) in &outputs {
            let bytes = gpu.read(&ends(slice))?;
            results.push(bytes.iter().flat_map(|bytes| floats(bytes, *dtype)).collect());
        }
        Ok(results)
    }

    /// Whether the results are still right after it was timed.
    pub(super) fn gives_again(&mut self, gpu: &Gpu, expected: &[Vec<f32>]) -> Result<bool, GpuError> {
        for _ in 0..AGAIN {
            match self.results(gpu) {
                Ok(results) if agree(expected, &results) => {}
                Ok(_) => return Ok(false),
                // nothing speaks against it
                Err(error) if no_room(&error) => return Ok(true),
                Err(other) => return Err(other),
            }
        }
        Ok(true)
    }

    /// Makes the group one of so many launches.
    pub(super) fn record(&mut self, gpu: &Gpu, launches: usize) -> Result<(), GpuError> {
        let work = |dispatch: &'c Dispatch| {
            let buffers = dispatch.bindings.iter().map(|b| self.buffers[&b.place].clone()).collect();
            Work { dispatch, buffers, on_host: false }
        };
        let all = (0..launches).flat_map(|_| &self.variant.dispatches).map(work);
        self.group = gpu.record(&all.collect::<Vec<_>>())?;
        self.launches = launches;
        Ok(())
    }

    /// Makes the group as long as it is timed from here on. The time of a single launch no longer counts then: the device's clock may
    /// be too coarse for it.
    pub(super) fn lengthen(&mut self, gpu: &Gpu, software: bool) -> Result<(), GpuError> {
        let launches = launches(self.seconds, software);
        if launches > 1 {
            self.record(gpu, launches)?;
            self.seconds = f64::INFINITY;
        }
        Ok(())
    }

    /// Whether several launches are timed together.
    pub(super) fn is_short(&self, software: bool) -> bool {
        launches(self.seconds, software) > 1
    }

    pub(super) fn time(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let dispatches = self.launches * self.variant.dispatches.len();
        // nobody knows how long a single launch takes
        let short = self.launches > 1 || gpu.is_one_submission(&self.group);
        let together = dispatches > 1 && short && !gpu.profile().cpu;
        let seconds = if together { gpu.time_together(&self.group)? } else { None };
        let seconds = match seconds {
            Some(seconds) => seconds / self.launches as f64,
            None => {
                let times = gpu.time(&self.group)?;
                let seconds: Vec<f64> = times.iter().map(|t| t.seconds).collect();
                fastest_launch(&seconds, self.variant.dispatches.len())
            }
        };
        self.seconds = self.seconds.min(seconds);
        Ok(())
    }
}

/// How many launches of a kernel that takes so many seconds are timed together.
fn launches(seconds: f64, software: bool) -> usize {
    match seconds < LONG {
        false => 1,
        true if software => GROUP,
        true => ((GROUP_SECONDS / seconds).ceil() as usize).clamp(GROUP, LARGEST_GROUP),
    }
}

/// Seconds of the fastest launch of a group, `each` of whose dispatches make one. Infinite where nothing is known.
fn fastest_launch(seconds: &[f64], each: usize) -> f64 {
    // a driver may leave a timestamp out: such a launch took no time at all
    let launches = seconds.chunks(each.max(1)).filter(|launch| launch.iter().all(|seconds| *seconds > 0.0));
    launches.map(|launch| launch.iter().sum()).fold(f64::INFINITY, f64::min)
}

/// Largest difference over the largest value of an output, and root mean square of all over that of the values: rounding of the
/// sums' order and of the storage type, not a wrong result. The one finds an element that is wrong, the other many small ones.
const AGREEMENT: f32 = 2e-2;

pub(super) fn agree(expected: &[Vec<f32>], actual: &[Vec<f32>]) -> bool {
    let one = |(expected, actual): (&Vec<f32>, &Vec<f32>)| {
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let differences: Vec<f32> = expected.iter().zip(actual).map(|(a, b)| a - b).collect();
        let norm = |values: &[f32]| values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        expected.len() == actual.len()
            && differences.iter().all(|d| d.abs() <= AGREEMENT * largest)
            && norm(&differences) <= f64::from(AGREEMENT) * norm(expected)
    };
    expected.len() == actual.len() && expected.iter().zip(actual).all(one)
}

fn floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let count = bytes.len() / dtype.size();
    crate::graph::layout::unpack(TensorType::new(Shape::vector(count), dtype), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_kernels_are_timed_in_groups() {
        assert_eq!([1e-6, 1e-4, 1e-3, 0.019, 0.5].map(|s| launches(s, false)), [64, 20, 4, 4, 1]);
        assert_eq!([1e-6, 0.019, 0.5].map(|s| launches(s, true)), [4, 4, 1]);
        assert_eq!(launches(f64::INFINITY, false), 1, "the driver gave no time");
    }

    #[test]
    fn the_fastest_launch_of_a_group_is_one_whose_dispatches_were_all_timed() {
        assert_eq!(fastest_launch(&[2.0, 1.0, 1.5, 1.0], 2), 2.5);
        // a timestamp that the driver left out
        assert_eq!(fastest_launch(&[0.0, 1.0, 1.5, 1.0], 2), 2.5);
        assert_eq!(fastest_launch(&[0.0, 1.0], 2), f64::INFINITY);
        assert_eq!(fastest_launch(&[], 2), f64::INFINITY);
    }

    #[test]
    fn results_agree_to_rounding_and_no_further() {
        let agree = |a: &[&[f32]], b: &[&[f32]]| {
            let owned = |all: &[&[f32]]| all.iter().map(|one| one.to_vec()).collect::<Vec<_>>();
            super::agree(&owned(a), &owned(b))
        };
        assert!(agree(&[&[1.0, -2.0]], &[&[1.01, -2.0]]));
        assert!(!agree(&[&[1.0, -2.0]], &[&[1.1, -2.0]]));
        assert!(!agree(&[&[1.0, -2.0]], &[&[f32::NAN, -2.0]]));
        assert!(!agree(&[&[1.0]], &[&[]]));
        assert!(!agree(&[&[1.0]], &[]));
        // a large output hides no small one, and a large element no small ones
        assert!(!agree(&[&[100.0], &[1.0]], &[&[100.0], &[0.0]]));
        let mut few = [0.01; 10_001];
        few[0] = 1.0;
        let mut none = [0.0; 10_001];
        none[0] = 1.0;
        assert!(!agree(&[&few], &[&none]));
    }
}
