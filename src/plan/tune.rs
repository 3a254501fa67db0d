//! Measuring which kernel of a family is the fastest here, on buffers of the real sizes filled with random numbers.
//!
//! A variant is taken only where its result equals the default's: drivers are not trusted to compile every kernel
//! rightly, and one that fails to compile is passed over.

use super::PlanError;
use super::slots::live_launches;
use crate::gpu::{BufferSlice, Gpu, GpuError, Recording, Work};
use crate::graph::blocks::sample;
use crate::graph::layout::pack;
use crate::graph::{
    Alternative, Alternatives, Binding, Class, DType, DeviceProfile, Dispatch, Graph, Place, Shape,
    TensorType,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A class of launches to measure, with one launch that stands for it.
pub struct Candidate {
    pub class: Class,
    variants: Vec<Alternative>,
    /// Bytes of what the launches bind, and the types of operands.
    buffers: HashMap<Place, (u64, Option<TensorType>)>,
    /// Contents of the u32 inputs.
    indices: Vec<(Place, Vec<u32>)>,
    /// Of random numbers that go further than others.
    spreads: Vec<(Place, f32)>,
    /// FLOPs of all launches of the class in one run of the graph.
    pub flops: f64,
}

/// What was measured for a class.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    pub class: Class,
    /// Name of the fastest variant.
    pub variant: String,
    /// Its seconds per launch, and those of the default.
    pub seconds: f64,
    pub default_seconds: f64,
    /// GFLOP/s of the fastest.
    pub gflops: f64,
    /// Variants with their seconds; `None` for those that failed or gave other results.
    pub tried: Vec<(String, Option<f64>)>,
}

/// The classes of the graph's launches that have no measurement yet, the most work first.
pub fn unmeasured(graph: &Graph, device: &DeviceProfile) -> Vec<Candidate> {
    let listing = DeviceProfile { choices: Arc::new(device.choices.listing()), ..device.clone() };
    let mut found: Vec<Candidate> = Vec::new();
    for (n, launch) in live_launches(graph, &listing) {
        let node = &graph.nodes()[n];
        for dispatch in launch.dispatches {
            let Some(alternatives) = dispatch.alternatives else { continue };
            // of all parts, where it is long
            let flops: f64 = alternatives.variants[0].dispatches.iter().map(|d| d.cost.flops).sum();
            if let Some(known) = found.iter_mut().find(|c| c.class == alternatives.class) {
                known.flops += flops;
                continue;
            }
            let tensor = |value| {
                let ty = graph.type_of(value);
                (ty.bytes(), Some(ty))
            };
            let memory = |place: Place| match place {
                Place::Input(i) => tensor(node.inputs[i]),
                Place::Output(o) => tensor(node.outputs[o]),
                Place::Workspace(w) => (launch.workspaces[w], None),
            };
            // the default binds what every variant binds, but for scratch space of their own
            let default = &alternatives.variants[0];
            let own = |place: Place| default.workspaces.iter().any(|(p, _)| *p == place);
            let bound = default.dispatches.iter().flat_map(|d| &d.bindings).map(|b| b.place);
            let buffers = bound.filter(|p| !own(*p)).map(|p| (p, memory(p))).collect();
            let Alternatives { class, variants, indices, spreads } = *alternatives;
            found.push(Candidate { class, variants, buffers, indices, spreads, flops });
        }
    }
    found.sort_by(|a, b| b.flops.total_cmp(&a.flops));
    found
}

/// Measures the candidate's variants; begins no new one after `budget`.
///
/// # Errors
/// What the device reported, other than kernels that do not compile.
pub fn measure(gpu: &Gpu, candidate: &Candidate, budget: Duration) -> Result<Measurement, PlanError> {
    let start = Instant::now();
    let mut buffers = HashMap::new();
    for (&place, &(bytes, _)) in &candidate.buffers {
        match gpu.allocate("tuning", bytes) {
            Ok(buffer) => buffers.insert(place, buffer.whole()),
            Err(error) if no_room(&error) => return Ok(unmeasurable(candidate)),
            Err(other) => return Err(other.into()),
        };
    }
    let default = &candidate.variants[0];
    let bound = default.dispatches.iter().flat_map(|d| &d.bindings);
    let mut read: Vec<&Binding> = bound.filter(|b| !b.write && b.dtype.is_float()).collect();
    // pieces of one tensor follow one another
    read.dedup_by_key(|b| b.place);
    for (seed, binding) in read.into_iter().enumerate() {
        let Some(buffer) = buffers.get(&binding.place) else { continue };
        match candidate.buffers[&binding.place].1.filter(|ty| ty.dtype.is_quantised()) {
            Some(ty) => buffer.write(&sample(ty)),
            None => {
                let spread = candidate.spreads.iter().find(|(place, _)| *place == binding.place);
                fill(buffer, binding.dtype, seed as u32 + 1, spread.map_or(1.0, |(_, spread)| *spread));
            }
        }
    }
    for (place, values) in &candidate.indices {
        buffers[place].write(bytemuck::cast_slice(values));
    }
    let (default_run, expected) = match try_variant(gpu, default, &buffers) {
        Ok(tried) => tried,
        Err(error) if no_room(&error) => return Ok(unmeasurable(candidate)),
        Err(other) => return Err(other.into()),
    };
    let mut runs = vec![Some(default_run)];
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get());
    for (n, variant) in candidate.variants[1..].iter().enumerate() {
        if start.elapsed() > budget {
            break;
        }
        if n.is_multiple_of(workers) {
            // drivers compile on one core for each; what does not compile says so where it is bound
            let next = candidate.variants[1 + n..].iter().take(workers);
            let _ = gpu.prepare(next.flat_map(|v| &v.dispatches));
        }
        runs.push(match try_variant(gpu, variant, &buffers) {
            Ok((run, result)) => agree(&expected, &result).then_some(run),
            Err(GpuError::Shader { .. }) => None,
            Err(error) if no_room(&error) => None,
            Err(other) => return Err(other.into()),
        });
    }
    // in alternation, so that a busy moment of the device does not hit one variant alone
    for round in 0..ROUNDS {
        if start.elapsed() > 2 * budget {
            break;
        }
        let best = runs.iter().flatten().map(|r| r.seconds).fold(f64::INFINITY, f64::min);
        for run in runs.iter_mut().flatten().filter(|r| round < 2 || r.seconds < HOPELESS * best) {
            run.again(gpu)?;
        }
    }
    let seconds =
        |i: usize| runs.get(i).and_then(Option::as_ref).map(|r| r.seconds).filter(|s| s.is_finite());
    let default_seconds = seconds(0).unwrap_or(f64::INFINITY);
    let fastest = (0..runs.len()).filter_map(|i| Some((i, seconds(i)?))).min_by(|a, b| a.1.total_cmp(&b.1));
    // the default stays where another is no more than noise ahead
    let (chosen, chosen_seconds) =
        fastest.filter(|(_, s)| s * WORTH < default_seconds).unwrap_or((0, default_seconds));
    let tried = (0..runs.len()).map(|i| (candidate.variants[i].name.clone(), seconds(i))).collect();
    Ok(Measurement {
        class: candidate.class.clone(),
        variant: candidate.variants[chosen].name.clone(),
        seconds: chosen_seconds,
        default_seconds,
        gflops: default.dispatches.iter().map(|d| d.cost.flops).sum::<f64>() / chosen_seconds / 1e9,
        tried,
    })
}

/// No room to measure in is no reason to end a run that has room to train in.
fn no_room(error: &GpuError) -> bool {
    matches!(
        error,
        GpuError::OutOfMemory { .. } | GpuError::OverMemoryLimit { .. } | GpuError::OverLimit { .. }
    )
}

/// The default, without figures.
fn unmeasurable(candidate: &Candidate) -> Measurement {
    Measurement {
        class: candidate.class.clone(),
        variant: candidate.variants[0].name.clone(),
        seconds: f64::INFINITY,
        default_seconds: f64::INFINITY,
        gflops: 0.0,
        tried: Vec::new(),
    }
}

/// Launches timed together; the fastest of all counts.
const GROUP: usize = 4;
const ROUNDS: usize = 5;
/// A group is one launch for kernels that take longer than this, in seconds.
const LONG: f64 = 0.02;
/// A variant this many times slower than the best is not tried again.
const HOPELESS: f64 = 1.5;
/// How much faster than the default another must be.
const WORTH: f64 = 1.03;
/// Bytes of a result that are compared, at its start and at its end.
const COMPARED: u64 = 2 << 20;

/// [`Run::new`] with the variant's own scratch space.
fn try_variant(
    gpu: &Gpu,
    variant: &Alternative,
    buffers: &HashMap<Place, BufferSlice>,
) -> Result<(Run, Vec<Vec<f32>>), GpuError> {
    let mut buffers = buffers.clone();
    for &(place, bytes) in &variant.workspaces {
        buffers.insert(place, gpu.allocate("tuning", bytes)?.whole());
    }
    Run::new(gpu, &variant.dispatches, &buffers)
}

/// A compiled variant and its fastest launch so far.
struct Run {
    group: Recording,
    /// Dispatches of one launch.
    each: usize,
    seconds: f64,
}

impl Run {
    /// Compiles and times one launch; gives the results of a launch on zeroed outputs too.
    fn new<'a>(
        gpu: &Gpu,
        dispatches: &'a [Dispatch],
        buffers: &HashMap<Place, BufferSlice>,
    ) -> Result<(Self, Vec<Vec<f32>>), GpuError> {
        let work = |dispatch: &'a Dispatch| {
            let buffers = dispatch.bindings.iter().map(|b| buffers[&b.place].clone()).collect();
            Work { dispatch, buffers, on_host: false }
        };
        let record = |launches: usize| {
            let all = (0..launches).flat_map(|_| dispatches);
            gpu.record(&all.map(work).collect::<Vec<_>>())
        };
        // what the last dispatch writes are the results
        let written = dispatches.iter().last().into_iter().flat_map(|d| &d.bindings).filter(|b| b.write);
        let mut written: Vec<&Binding> = written.collect();
        written.dedup_by_key(|b| b.place);
        let outputs: Vec<(BufferSlice, DType)> =
            written.into_iter().map(|b| (buffers[&b.place].clone(), b.dtype)).collect();
        let group = record(1)?;
        let clears: Vec<BufferSlice> = outputs.iter().map(|(s, _)| s.clone()).collect();
        gpu.submit(&clears, &[&group])?;
        let ends = |slice: &BufferSlice| match slice.size > 2 * COMPARED {
            true => vec![slice.part(0, COMPARED), slice.part(slice.size - COMPARED, COMPARED)],
            false => vec![slice.clone()],
        };
        let mut results = Vec::new();
        for (slice, dtype) in &outputs {
            let bytes = gpu.read(&ends(slice))?;
            results.push(bytes.iter().flat_map(|bytes| floats(bytes, *dtype)).collect());
        }
        let mut run = Run { group, each: dispatches.len(), seconds: f64::INFINITY };
        run.again(gpu)?;
        if run.seconds < LONG {
            run.group = record(GROUP)?;
        }
        Ok((run, results))
    }

    fn again(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        let times = gpu.time(&self.group)?;
        // a driver may leave a timestamp out: such a launch took no time at all
        let launches = times.chunks(self.each).filter(|launch| launch.iter().all(|t| t.seconds > 0.0));
        let seconds = launches.map(|launch| launch.iter().map(|t| t.seconds).sum());
        self.seconds = seconds.fold(self.seconds, f64::min);
        Ok(())
    }
}

/// Largest difference over the largest value of an output, and root mean square of all over that of the values: rounding of the
/// sums' order and of the storage type, not a wrong result. The one finds an element that is wrong, the other many small ones.
const AGREEMENT: f32 = 2e-2;

fn agree(expected: &[Vec<f32>], actual: &[Vec<f32>]) -> bool {
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

/// Random numbers in [-spread / 2, spread / 2), one stretch of them over and over; its length divides no usual row.
fn fill(slice: &BufferSlice, dtype: DType, seed: u32, spread: f32) {
    let count = (slice.size as usize / dtype.size()).min(250_004);
    let mut state = seed;
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            spread * ((state >> 8) as f32 / (1 << 24) as f32 - 0.5)
        })
        .collect();
    let stretch = pack(TensorType::new(Shape::vector(count), dtype), &values);
    let mut offset = 0;
    while offset < slice.size {
        let bytes = (slice.size - offset).min(stretch.len() as u64);
        slice.part(offset, bytes).write(&stretch[..bytes as usize]);
        offset += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Choices, Cooperative};
    use crate::ops::matmul::{Layout, matmul};

    /// A class that was not measured takes the kernel of one nearby, which may bind less than the others.
    #[test]
    fn every_variant_finds_its_buffers_next_to_a_class_on_matrix_units() {
        let product = |k: usize| {
            let mut graph = Graph::new();
            let a = graph.input("a", Shape::matrix(256, k), DType::F16).unwrap();
            let b = graph.input("b", Shape::matrix(256, k), DType::F16).unwrap();
            let c = matmul(&mut graph, Layout::NT, a, b, 1.0, DType::F16).unwrap();
            graph.output("c", c);
            graph
        };
        let device = |choices: Choices| DeviceProfile {
            cooperative: Some(Cooperative { size: 16, lanes: 32 }),
            max_workgroup_invocations: 256,
            max_workgroup_storage: 32 << 10,
            choices: Arc::new(choices),
            ..DeviceProfile::default()
        };
        let near = unmeasured(&product(256), &device(Choices::default())).swap_remove(0);
        let mut choices = Choices::default();
        choices.insert(near.class.clone(), "coop 32x32 size=16 lanes=32");
        let device = device(choices);
        assert!(unmeasured(&product(256), &device).is_empty());
        let candidates = unmeasured(&product(512), &device);
        assert_eq!(candidates.len(), 1);
        assert!(candidates[0].variants.iter().any(|v| v.name.starts_with("coop")));
        for variant in &candidates[0].variants {
            let own: Vec<Place> = variant.workspaces.iter().map(|(place, _)| *place).collect();
            for binding in variant.dispatches.iter().flat_map(|d| &d.bindings) {
                let found =
                    candidates[0].buffers.contains_key(&binding.place) || own.contains(&binding.place);
                assert!(found, "{}: no buffer for {}", variant.name, binding.name);
            }
        }
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
