//! What the benchmarks share: a device, graphs with numbers in them, and limits that keep software devices bearable.
#![allow(dead_code)]

use criterion::{BenchmarkGroup, Criterion, SamplingMode, measurement::WallTime};
use engraft::gpu::{Gpu, GpuError, GpuOptions};
use engraft::graph::layout::pack;
use engraft::graph::{DType, Graph, LeafKind};
use engraft::plan::{Bindings, Program};
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

/// A graph with memory behind every leaf: floats in [-1, 1), `indices` by name.
pub struct Runnable {
    gpu: Gpu,
    program: Program,
}

impl Runnable {
    pub fn new(gpu: &Gpu, graph: &Graph, indices: &[(&str, Vec<u32>)]) -> Self {
        let mut bindings = Bindings::new();
        for leaf in graph.leaves() {
            let ty = graph.type_of(leaf.value);
            let memory =
                || gpu.allocate(&leaf.name, ty.bytes()).expect("the benchmark fits the device").whole();
            let slice = memory();
            if ty.dtype != DType::U32 {
                let count = ty.shape.elements();
                // steps of 1/32 lie in every storage type exactly
                let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 64) as f32 / 32.0 - 1.0).collect();
                slice.write(&pack(ty, &values));
            } else if let Some((_, values)) = indices.iter().find(|(name, _)| *name == leaf.name) {
                slice.write(bytemuck::cast_slice(values));
            }
            if leaf.kind == LeafKind::Trainable {
                bindings.bind_gradient(leaf.name.clone(), memory());
            }
            bindings.bind(leaf.name.clone(), slice);
        }
        let program = Program::compile(gpu, graph, &bindings).expect("the benchmark's graph compiles");
        let runnable = Runnable { gpu: gpu.clone(), program };
        // the first dispatch pays the driver's compiler
        runnable.run();
        runnable
    }

    /// Runs once and waits.
    pub fn run(&self) {
        self.gpu.submit(&[], &[self.program.recording()]).expect("the device works");
        self.gpu.wait().expect("the device works");
    }
}
