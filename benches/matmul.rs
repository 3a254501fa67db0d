//! Matrix products in the shapes of a 1B model (512 tokens), in the layouts of a linear layer and its gradients.
//!
//! `m x n x k`; the second operand is stored as named, the first and the result too for 16-bit types.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engraft::graph::DType;
use engraft::ops::matmul::Layout;
use engraft::train::bench::kernels::product;

const SHAPES: [(usize, usize, usize); 4] =
    [(512, 1024, 1024), (512, 2048, 2048), (512, 8192, 2048), (512, 2048, 8192)];
const VARIANTS: [(Layout, DType); 7] = [
    (Layout::NT, DType::F32),
    (Layout::NT, DType::BF16),
    (Layout::NT, DType::F16),
    (Layout::NN, DType::F32),
    (Layout::NN, DType::BF16),
    (Layout::TN, DType::F32),
    (Layout::TN, DType::BF16),
];

fn bench(criterion: &mut Criterion) {
    let Some(gpu) = common::gpu() else { return };
    let mut group = common::group(criterion, "matmul");
    for (m, n, k) in SHAPES {
        // one element is one floating-point operation
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        for (layout, dtype) in VARIANTS {
            let product = common::operation(&gpu, product(layout, (m, n, k), dtype), &[]);
            let id = BenchmarkId::new(format!("{layout:?} {dtype}"), format!("{m}x{n}x{k}"));
            group.bench_function(id, |bencher| bencher.iter(|| product.run().expect("the device works")));
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
