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
    /// Compile no two variants at a time, so that it is known which of them the driver cannot take.
    pub one_by_one: bool,
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
    /// Variants with their seconds; `None` for those that failed or gave other results. Those that had no turn are left out.
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
            found.push(Candidate { class, variants, buffers, indices, spreads, flops, one_by_one: false });
        }
    }
    found.sort_by(|a, b| b.flops.total_cmp(&a.flops));
    found
}

impl Candidate {
    /// Name of the kernel that serves where nothing is measured.
    pub fn default_variant(&self) -> &str {
        &self.variants[0].name
    }

    /// Keeps the default and those of the others that `keeps` names.
    pub fn retain(&mut self, keeps: impl Fn(&str) -> bool) {
        let default = self.variants[0].name.clone();
        self.variants.retain(|v| v.name == default || keeps(&v.name));
    }

    /// What the default kernel does.
    pub fn default_dispatches(&self) -> &[Dispatch] {
        &self.variants[0].dispatches
    }

    /// Memory for what the default binds, with the indices in it; `None` where there is no room.
    ///
    /// # Errors
    /// What the device reported.
    fn allocate(&self, gpu: &Gpu) -> Result<Option<HashMap<Place, BufferSlice>>, GpuError> {
        let mut buffers = HashMap::new();
        for (&place, &(bytes, _)) in &self.buffers {
            match gpu.allocate("tuning", bytes) {
                Ok(buffer) => buffers.insert(place, buffer.whole()),
                Err(error) if no_room(&error) => return Ok(None),
                Err(other) => return Err(other),
            };
        }
        for (place, values) in &self.indices {
            buffers[place].write(bytemuck::cast_slice(values));
        }
        Ok(Some(buffers))
    }

    /// Seconds that all launches of the class take with its default kernel, from one of them on whatever the memory holds. `None`
    /// where there is no room for it, or no time from the driver.
    ///
    /// # Errors
    /// What the device reported, other than a kernel that does not compile; `about_to` gets the default's name before it runs.
    pub fn default_seconds(
        &self,
        gpu: &Gpu,
        about_to: &mut dyn FnMut(&[&str]),
    ) -> Result<Option<f64>, PlanError> {
        let default = &self.variants[0];
        let Some(buffers) = self.allocate(gpu)? else { return Ok(None) };
        about_to(&[&default.name]);
        let mut run = match Run::new(gpu, default, &buffers, &mut Scratch::default()) {
            Ok((run, _)) => run,
            Err(GpuError::Shader { .. }) => return Ok(None),
            Err(error) if no_room(&error) => return Ok(None),
            Err(other) => return Err(other.into()),
        };
        run.time(gpu)?;
        let launches = self.flops / default.dispatches.iter().map(|d| d.cost.flops).sum::<f64>();
        let seconds = run.seconds * launches;
        Ok(seconds.is_finite().then_some(seconds))
    }
}

/// Measures the candidate's variants: begins no new one after `budget`, and times those that it began for as long again.
///
/// # Errors
/// What the device reported, other than kernels that do not compile.
pub fn measure(gpu: &Gpu, candidate: &Candidate, budget: Duration) -> Result<Measurement, PlanError> {
    measure_telling(gpu, candidate, budget, &mut |_| ())
}

/// [`measure`], which names the variants that it is about to compile or to run: a driver may end the device there, or the process.
///
/// # Errors
/// As [`measure`]; what was named last is the cause.
pub fn measure_telling(
    gpu: &Gpu,
    candidate: &Candidate,
    budget: Duration,
    about_to: &mut dyn FnMut(&[&str]),
) -> Result<Measurement, PlanError> {
    let start = Instant::now();
    let Some(buffers) = candidate.allocate(gpu)? else { return Ok(unmeasurable(candidate)) };
    fill_operands(gpu, candidate, &buffers)?;
    let default = &candidate.variants[0];
    about_to(&[&default.name]);
    let mut scratch = Scratch::of(candidate);
    let (default_run, expected) = match Run::new(gpu, default, &buffers, &mut scratch) {
        Ok(tried) => tried,
        Err(error) if no_room(&error) => return Ok(unmeasurable(candidate)),
        Err(other) => return Err(other.into()),
    };
    let mut runs = vec![Some(default_run)];
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(TOGETHER));
    for (n, variant) in candidate.variants[1..].iter().enumerate() {
        let begins = candidate.one_by_one || n.is_multiple_of(workers);
        // what was compiled takes no time beside that
        if begins && start.elapsed() > budget {
            break;
        }
        if begins && !candidate.one_by_one {
            // drivers compile on one core for each; what does not compile says so where it is bound
            let next = candidate.variants[1 + n..].iter().take(workers);
            about_to(&next.clone().map(|v| v.name.as_str()).collect::<Vec<_>>());
            let _ = gpu.prepare(next.flat_map(|v| &v.dispatches));
            gpu.check()?;
        }
        about_to(&[&variant.name]);
        runs.push(match Run::new(gpu, variant, &buffers, &mut scratch) {
            Ok((run, result)) => agree(&expected, &result).then_some(run),
            Err(GpuError::Shader { .. }) => None,
            Err(error) if no_room(&error) => None,
            Err(other) => return Err(other.into()),
        });
        // what was passed over may have taken the device with it
        gpu.check()?;
    }
    time_in_turns(gpu, &mut runs, budget, about_to)?;
    loop {
        let (fastest, measurement) = chosen(candidate, &runs);
        match &mut runs[fastest] {
            Some(run) if fastest > 0 => {
                about_to(&[&run.variant.name]);
                if run.gives_again(gpu, &expected)? {
                    return Ok(measurement);
                }
                runs[fastest] = None;
            }
            _ => return Ok(measurement),
        }
    }
}

/// Random numbers, or what the class names, in all that the default reads.
fn fill_operands(
    gpu: &Gpu,
    candidate: &Candidate,
    buffers: &HashMap<Place, BufferSlice>,
) -> Result<(), GpuError> {
    let bound = candidate.variants[0].dispatches.iter().flat_map(|d| &d.bindings);
    let mut read: Vec<&Binding> = bound.filter(|b| !b.write && b.dtype.is_float()).collect();
    // pieces of one tensor follow one another
    read.dedup_by_key(|b| b.place);
    for (seed, binding) in read.into_iter().enumerate() {
        let Some(buffer) = buffers.get(&binding.place) else { continue };
        match candidate.buffers[&binding.place].1.filter(|ty| ty.dtype.is_quantised()) {
            Some(ty) => write_over(gpu, buffer, &sample(ty))?,
            None => {
                let spread = candidate.spreads.iter().find(|(place, _)| *place == binding.place);
                let spread = spread.map_or(1.0, |(_, spread)| *spread);
                write_over(gpu, buffer, &random(buffer.size, binding.dtype, seed as u32 + 1, spread))?;
            }
        }
    }
    Ok(())
}

/// Times all in alternation, so that a busy moment of the device does not hit one variant alone, and every other time the other
/// way round, so that no variant always follows the same one; within `budget`, but for the default's first time.
fn time_in_turns(
    gpu: &Gpu,
    runs: &mut [Option<Run<'_>>],
    budget: Duration,
    about_to: &mut dyn FnMut(&[&str]),
) -> Result<(), GpuError> {
    let software = gpu.profile().cpu;
    let start = Instant::now();
    if let (false, Some(default)) = (software, runs.iter_mut().flatten().next()) {
        about_to(&[&default.variant.name]);
        default.time(gpu)?;
        // single launches of a short kernel would leave it idle between
        unless_no_room(default.lengthen(gpu, software))?;
        let mut last = f64::INFINITY;
        loop {
            default.seconds = f64::INFINITY;
            default.time(gpu)?;
            let steady = (default.seconds / last - 1.0).abs() < STEADY;
            last = default.seconds;
            let spent = start.elapsed();
            if spent >= WARM_UP && (steady || spent >= LONGEST_WARM_UP) {
                break;
            }
        }
        // some of it was at low clocks; the first figures of all are of one launch
        unless_no_room(default.record(gpu, 1))?;
        default.seconds = f64::INFINITY;
    }
    for round in 0..ROUNDS {
        let best = runs.iter().flatten().map(|r| r.seconds).fold(f64::INFINITY, f64::min);
        let worth_timing = |run: &&mut Run<'_>| match round {
            0 => true,
            // without a figure where the driver gave none
            1..FINAL => !run.seconds.is_finite() || run.seconds <= FAR * best,
            _ => run.seconds < HOPELESS * best,
        };
        let mut turns: Vec<&mut Run<'_>> = runs.iter_mut().flatten().filter(worth_timing).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for (n, run) in turns.into_iter().enumerate() {
            if start.elapsed() > budget && (round, n) > (0, 0) {
                return Ok(());
            }
            about_to(&[&run.variant.name]);
            let lengthened = if round == 1 { run.lengthen(gpu, software) } else { Ok(()) };
            unless_no_room(lengthened.and_then(|()| run.time(gpu)))?;
        }
    }
    Ok(())
}

/// The fastest of what was timed, and which of the variants it is.
fn chosen(candidate: &Candidate, runs: &[Option<Run<'_>>]) -> (usize, Measurement) {
    let seconds =
        |i: usize| runs.get(i).and_then(Option::as_ref).map(|r| r.seconds).filter(|s| s.is_finite());
    let default_seconds = seconds(0).unwrap_or(f64::INFINITY);
    let fastest = (0..runs.len()).filter_map(|i| Some((i, seconds(i)?))).min_by(|a, b| a.1.total_cmp(&b.1));
    // the default stays where another is no more than noise ahead
    let (chosen, chosen_seconds) =
        fastest.filter(|(_, s)| s * WORTH < default_seconds).unwrap_or((0, default_seconds));
    // but for those that are right and had no turn
    let tried = (0..runs.len()).filter(|&i| runs[i].is_none() || seconds(i).is_some());
    let tried = tried.map(|i| (candidate.variants[i].name.clone(), seconds(i))).collect();
    let flops = candidate.variants[0].dispatches.iter().map(|d| d.cost.flops).sum::<f64>();
    let measurement = Measurement {
        class: candidate.class.clone(),
        variant: candidate.variants[chosen].name.clone(),
        seconds: chosen_seconds,
        default_seconds,
        gflops: flops / chosen_seconds / 1e9,
        tried,
    };
    (chosen, measurement)
}

/// No room to measure in is no reason to end a run that has room to train in.
fn no_room(error: &GpuError) -> bool {
    matches!(
        error,
        GpuError::OutOfMemory { .. } | GpuError::OverMemoryLimit { .. } | GpuError::OverLimit { .. }
    )
}

/// Goes on where there is none, with what was recorded before.
fn unless_no_room(result: Result<(), GpuError>) -> Result<(), GpuError> {
    match result {
        Err(error) if no_room(&error) => Ok(()),
        result => result,
    }
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

/// What the default runs for before anything is timed: a GPU that had nothing to do, as while kernels were compiled, has low clocks.
const WARM_UP: Duration = Duration::from_millis(50);
/// Some take longer: until two of its times in a row differ by less than this share, or so much has gone by.
const STEADY: f64 = 0.05;
const LONGEST_WARM_UP: Duration = Duration::from_millis(200);
/// Variants that are compiled at a time, at most: once they are, all of them are tried.
const TOGETHER: usize = 8;
/// How often each is timed: once by a single launch, then by groups of launches.
const ROUNDS: usize = 6;
/// From this round on only those are timed that could still be the fastest.
const FINAL: usize = 3;
/// Launches timed together, of kernels that take less than [`LONG`] seconds.
const GROUP: usize = 4;
const LONG: f64 = 0.02;
/// On GPUs so many that they take this many seconds, which is a thousand times what clocks of devices resolve, and this many at most.
const GROUP_SECONDS: f64 = 2e-3;
const LARGEST_GROUP: usize = 64;
/// A variant whose first launch took so many times as long as the best is not timed again.
const FAR: f64 = 3.0;
/// One that is this many times slower than the best after a few rounds is not either.
const HOPELESS: f64 = 1.5;
/// How much faster than the default another must be.
const WORTH: f64 = 1.03;
/// How often the fastest must give the right result once more, with the clocks and the neighbours that timing gave it.
const AGAIN: usize = 2;
/// Bytes of a result that are compared, at its start and at its end.
const COMPARED: u64 = 2 << 20;
/// Bytes that wait in staging memory at a time.
const STAGED: u64 = 32 << 20;

/// Scratch space, which the variants of a candidate share: they run one after the other.
#[derive(Default)]
struct Scratch {
    /// What the most demanding variant takes.
    largest: HashMap<Place, u64>,
    made: HashMap<Place, BufferSlice>,
}

impl Scratch {
    fn of(candidate: &Candidate) -> Self {
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
struct Run<'c> {
    variant: &'c Alternative,
    /// What it binds, its own scratch space included.
    buffers: HashMap<Place, BufferSlice>,
    group: Recording,
    /// Of the group.
    launches: usize,
    /// Of one launch.
    seconds: f64,
}

impl<'c> Run<'c> {
    /// Compiles; gives the results of a launch on zeroed outputs too.
    fn new(
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
    fn gives_again(&mut self, gpu: &Gpu, expected: &[Vec<f32>]) -> Result<bool, GpuError> {
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
    fn record(&mut self, gpu: &Gpu, launches: usize) -> Result<(), GpuError> {
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
    fn lengthen(&mut self, gpu: &Gpu, software: bool) -> Result<(), GpuError> {
        let launches = launches(self.seconds, software);
        if launches > 1 {
            self.record(gpu, launches)?;
            self.seconds = f64::INFINITY;
        }
        Ok(())
    }

    fn time(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
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

/// Random numbers in [-spread / 2, spread / 2) for so many bytes, or a stretch of them; its length divides no usual row.
fn random(bytes: u64, dtype: DType, seed: u32, spread: f32) -> Vec<u8> {
    let count = (bytes as usize / dtype.size()).min(250_004);
    let mut state = seed;
    let values: Vec<f32> = (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            spread * ((state >> 8) as f32 / (1 << 24) as f32 - 0.5)
        })
        .collect();
    pack(TensorType::new(Shape::vector(count), dtype), &values)
}

/// Fills a slice with a stretch of bytes over and over.
fn write_over(gpu: &Gpu, slice: &BufferSlice, stretch: &[u8]) -> Result<(), GpuError> {
    let length = stretch.len() as u64;
    let (mut offset, mut staged) = (0, 0);
    while length > 0 && offset < slice.size {
        let from = offset % length;
        let bytes = (slice.size - offset).min(length - from).min(STAGED - staged);
        slice.part(offset, bytes).write(&stretch[from as usize..(from + bytes) as usize]);
        (offset, staged) = (offset + bytes, staged + bytes);
        if staged == STAGED {
            // what is written waits on the host until it is submitted, however large the tensor is
            gpu.submit(&[], &[])?;
            gpu.wait()?;
            staged = 0;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;
    use crate::graph::{Choices, Cooperative, MatrixShape};
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
            cooperative: Some(Cooperative { shape: MatrixShape::square(16), lanes: 32 }),
            max_workgroup_invocations: 256,
            max_workgroup_storage: 32 << 10,
            choices: Arc::new(choices),
            ..DeviceProfile::default()
        };
        let near = unmeasured(&product(256), &device(Choices::default())).swap_remove(0);
        let mut choices = Choices::default();
        choices.insert(near.class.clone(), "coop 32x32 shape=16x16x16 lanes=32");
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

    /// The fastest is asked again after it was timed; variants share scratch space.
    #[test]
    fn a_result_that_is_another_later_is_found() {
        let gpu = match Gpu::open(&GpuOptions::default()) {
            Ok(gpu) => gpu,
            Err(error) => return eprintln!("SKIPPED: {error}"),
        };
        let mut graph = Graph::new();
        let a = graph.input("a", Shape::matrix(64, 256), DType::F32).unwrap();
        let b = graph.frozen("b", Shape::matrix(512, 256), DType::Nf4).unwrap();
        let c = matmul(&mut graph, Layout::NT, a, b, 1.0, DType::F32).unwrap();
        graph.output("c", c);
        let candidate = unmeasured(&graph, &gpu.profile()).swap_remove(0);
        let buffers = candidate.allocate(&gpu).unwrap().unwrap();
        fill_operands(&gpu, &candidate, &buffers).unwrap();
        let mut scratch = Scratch::of(&candidate);
        let all = candidate.variants.iter();
        let mut runs: Vec<_> =
            all.map(|variant| Run::new(&gpu, variant, &buffers, &mut scratch).unwrap()).collect();
        let staged = candidate.variants.iter().filter(|variant| !variant.workspaces.is_empty()).count();
        assert!(staged > 1 && scratch.made.len() == scratch.largest.len());
        let mut expected = runs[0].1.clone();
        assert!(runs.iter_mut().all(|(run, _)| run.gives_again(&gpu, &expected).unwrap()));
        let largest = expected[0].iter().fold(0f32, |largest, v| largest.max(v.abs()));
        expected[0][7] += largest;
        assert!(runs.iter_mut().all(|(run, _)| !run.gives_again(&gpu, &expected).unwrap()));
    }

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
