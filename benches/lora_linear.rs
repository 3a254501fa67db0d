//! A linear layer of a 1B model with its adapter against the same layer without: forward, and forward with gradients.

mod common;

use common::Runnable;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engraft::autograd::{Recompute, differentiate};
use engraft::graph::{DType, Graph, GraphError, Shape};
use engraft::ops::lora_linear::lora_linear;
use engraft::ops::matmul::{Layout, matmul};

const TOKENS: usize = 512;
const SHAPES: [(usize, usize); 2] = [(2048, 2048), (8192, 2048)];
const RANKS: [usize; 2] = [8, 64];

/// `y [T, outputs]` of `x [T, inputs]`, with an adapter of this rank unless it is 0.
fn layer(
    rank: usize,
    (outputs, inputs): (usize, usize),
    dtype: DType,
    gradient: bool,
) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let x = graph.input("x", Shape::matrix(TOKENS, inputs), dtype)?;
    let weight = graph.frozen("weight", Shape::matrix(outputs, inputs), dtype)?;
    let y = if rank == 0 {
        matmul(&mut graph, Layout::NT, x, weight, 1.0, dtype)?
    } else {
        let a = graph.trainable("a", Shape::matrix(rank, inputs))?;
        let b = graph.trainable("b", Shape::matrix(outputs, rank))?;
        lora_linear(&mut graph, x, weight, (a, b), None, 2.0, dtype)?
    };
    graph.output("y", y);
    if gradient {
        let dy = graph.input("dy", Shape::matrix(TOKENS, outputs), dtype)?;
        differentiate(&mut graph, y, dy, Recompute::None)?;
    }
    Ok(graph)
}

fn bench(criterion: &mut Criterion) {
    let Some(gpu) = common::gpu() else { return };
    let mut group = common::group(criterion, "lora_linear");
    for (outputs, inputs) in SHAPES {
        for dtype in [DType::F32, DType::BF16] {
            let shape = format!("{TOKENS}x{outputs}x{inputs}");
            group.throughput(Throughput::Elements((2 * TOKENS * outputs * inputs) as u64));
            let mut measure = |what: String, rank, gradient| {
                let graph = layer(rank, (outputs, inputs), dtype, gradient).expect("the shapes fit");
                let layer = Runnable::new(&gpu, &graph, &[]);
                let id = BenchmarkId::new(format!("{what} {dtype}"), &shape);
                group.bench_function(id, |bencher| bencher.iter(|| layer.run()));
            };
            measure("no adapter".into(), 0, false);
            for rank in RANKS {
                measure(format!("rank {rank}"), rank, false);
                measure(format!("rank {rank} with gradients"), rank, true);
            }
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
