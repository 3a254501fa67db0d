//! Measuring which kernel of a family is the fastest here, on buffers of the real sizes filled with random numbers.
//!
//! A variant is taken only where its result equals the default's: drivers are not trusted to compile every kernel
//! rightly, and one that fails to compile is passed over.

mod operands;
mod run;
mod turns;

use super::PlanError;
use super::slots::live_launches;
use crate::gpu::{BufferSlice, Gpu, GpuError};
use crate::graph::{Alternative, Alternatives, Class, DeviceProfile, Graph, Place, TensorType};
use operands::fill_operands;
use run::{Run, Scratch, agree, no_room};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use turns::time_in_turns;

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
    /// How many those are.
    pub untried: usize,
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

/// Measures the candidate's variants: compiles no further ones after `budget`, and times those that it began for as long again.
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
        // beside that, running what was compiled takes no time
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

/// Variants that are compiled at a time, at most: once they are, all of them are tried.
const TOGETHER: usize = 8;
/// How much faster than the default another must be.
const WORTH: f64 = 1.03;

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
    let tried: Vec<_> = tried.map(|i| (candidate.variants[i].name.clone(), seconds(i))).collect();
    let flops = candidate.variants[0].dispatches.iter().map(|d| d.cost.flops).sum::<f64>();
    let measurement = Measurement {
        class: candidate.class.clone(),
        variant: candidate.variants[chosen].name.clone(),
        seconds: chosen_seconds,
        default_seconds,
        gflops: flops / chosen_seconds / 1e9,
        untried: candidate.variants.len() - tried.len(),
        tried,
    };
    (chosen, measurement)
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
        untried: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuOptions;
    use crate::graph::{Choices, Cooperative, DType, MatrixShape, Shape};
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
}
