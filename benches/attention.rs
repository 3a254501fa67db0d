//! Causal attention with the heads of a 1B model (32 query heads, 8 KV heads of 64), forward and gradient.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engraft::graph::DType;
use engraft::train::bench::kernels::{Heads, causal_attention, segments};

const TOKENS: usize = 512;
const HEADS: Heads = Heads { heads: 32, kv_heads: 8, head_dim: 64 };

fn bench(criterion: &mut Criterion) {
    let Some(gpu) = common::gpu() else { return };
    let mut group = common::group(criterion, "attention");
    // one element is one token
    group.throughput(Throughput::Elements(TOKENS as u64));
    for segment in [128, 512] {
        let indices = segments(TOKENS, segment);
        for dtype in [DType::F32, DType::BF16] {
            for (what, gradient) in [("forward", false), ("gradient", true)] {
                let graph = causal_attention(TOKENS, HEADS, dtype, gradient);
                let kernel = common::operation(&gpu, graph, &indices);
                let id = BenchmarkId::new(format!("{what} {dtype}"), format!("segments of {segment}"));
                group.bench_function(id, |bencher| bencher.iter(|| kernel.run().expect("the device works")));
            }
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
