//! What the benchmarks share: a device, operations ready to run, and limits that keep software devices bearable.
#![allow(dead_code)]

use criterion::{BenchmarkGroup, Criterion, SamplingMode, measurement::WallTime};
use engraft::gpu::{Gpu, GpuError, GpuOptions};
use engraft::graph::{Graph, GraphError};
use engraft::train::bench::kernels::Runnable;
use engraft::train::options::TuneMode;
use engraft::train::tuning::Tuner;
use std::time::Duration;

/// The device to measure (`ENGRAFT_BENCH_GPU` names another than the best), or `None` with a loud word.
pub fn gpu() -> Option<Gpu> {
    let device = std::env::var("ENGRAFT_BENCH_GPU").ok();
    match Gpu::open(&GpuOptions { device, ..GpuOptions::default() }) {
        Ok(gpu) => {
            eprintln!("device: {} | {}", gpu.info().name, gpu.info().driver);
            Some(gpu)
        }
        Err(GpuError::NoDevice) => {
            eprintln!("SKIPPED: no GPU and no software Vulkan driver on this machine");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A group of few, short samples: a product of a 1B model takes a second on two cores.
pub fn group<'c>(criterion: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group
}

/// An operation with memory behind every leaf, compiled and run once; kernels are measured for it where they were not.
pub fn operation(gpu: &Gpu, graph: Result<Graph, GraphError>, indices: &[(&str, Vec<u32>)]) -> Runnable {
    let graph = graph.expect("the shapes fit");
    let tuner = Tuner::new(TuneMode::default());
    let operation = Runnable::new(gpu, &graph, indices, &tuner, &mut |_| {});
    let operation = operation.expect("the benchmark fits the device");
    // the first dispatch pays the driver's compiler
    operation.run().expect("the device works");
    operation
}
