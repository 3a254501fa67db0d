//! A linear layer of a 1B model with its adapter against the same layer without: forward, and forward with gradients.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engraft::graph::DType;
use engraft::train::bench::kernels::{LayerGradients, layer};

const TOKENS: usize = 512;
const SHAPES: [(usize, usize); 2] = [(2048, 2048), (8192, 2048)];
const RANKS: [usize; 2] = [8, 64];

fn bench(criterion: &mut Criterion) {
    let Some(gpu) = common::gpu() else { return };
    let mut group = common::group(criterion, "lora_linear");
    for (outputs, inputs) in SHAPES {
        for dtype in [DType::F32, DType::BF16] {
            let shape = format!("{TOKENS}x{outputs}x{inputs}");
            group.throughput(Throughput::Elements((2 * TOKENS * outputs * inputs) as u64));
            let mut measure = |what: String, rank, gradients| {
                let graph = layer(TOKENS, (outputs, inputs), rank, dtype, gradients);
                let layer = common::operation(&gpu, graph, &[]);
                let id = BenchmarkId::new(format!("{what} {dtype}"), &shape);
                group.bench_function(id, |bencher| bencher.iter(|| layer.run().expect("the device works")));
            };
            measure("no adapter".into(), 0, LayerGradients::None);
            for rank in RANKS {
                measure(format!("rank {rank}"), rank, LayerGradients::None);
                measure(format!("rank {rank} with gradients"), rank, LayerGradients::Adapter);
                measure(format!("rank {rank} with dx too"), rank, LayerGradients::AdapterAndInput);
            }
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
