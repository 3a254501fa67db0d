//! Causal attention with the heads of a 1B model (32 query heads, 8 KV heads of 64), forward and gradient.

mod common;

use common::Runnable;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engraft::graph::{DType, Graph, GraphError, Shape};
use engraft::ops::attention::{AttentionGradient, Visibility, attention};
use std::sync::Arc;

const TOKENS: u32 = 512;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 64;

fn graph(dtype: DType, gradient: bool) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let tokens = TOKENS as usize;
    let wide = Shape::matrix(tokens, HEADS * HEAD_DIM);
    let narrow = Shape::matrix(tokens, KV_HEADS * HEAD_DIM);
    let q = graph.input("q", wide, dtype)?;
    let k = graph.input("k", narrow, dtype)?;
    let v = graph.input("v", narrow, dtype)?;
    let mut index = |name: &str| graph.input(name, Shape::vector(tokens), DType::U32);
    let visibility =
        Visibility { starts: index("starts")?, ends: index("ends")?, query_ends: index("query_ends")? };
    if gradient {
        let o = graph.input("o", wide, dtype)?;
        let lse = graph.input("lse", Shape::matrix(HEADS, tokens), DType::F32)?;
        let d_o = graph.input("do", wide, dtype)?;
        let Visibility { starts, ends, query_ends } = visibility;
        let op = Arc::new(AttentionGradient { head_dim: HEAD_DIM });
        let gradients = graph.apply(op, &[q, k, v, o, lse, d_o, starts, ends, query_ends])?;
        for (name, value) in ["dq", "dk", "dv"].into_iter().zip(gradients) {
            graph.output(name, value);
        }
    } else {
        let o = attention(&mut graph, (q, k, v), &visibility, HEAD_DIM)?;
        graph.output("o", o);
    }
    Ok(graph)
}

fn bench(criterion: &mut Criterion) {
    let Some(gpu) = common::gpu() else { return };
    let mut group = common::group(criterion, "attention");
    // one element is one token
    group.throughput(Throughput::Elements(u64::from(TOKENS)));
    for segment in [128, 512] {
        let start = |t: u32| t / segment * segment;
        let indices = [
            ("starts", (0..TOKENS).map(start).collect()),
            ("ends", (1..=TOKENS).collect()),
            ("query_ends", (0..TOKENS).map(|t| start(t) + segment).collect()),
        ];
        for dtype in [DType::F32, DType::BF16] {
            for (what, gradient) in [("forward", false), ("gradient", true)] {
                let graph = graph(dtype, gradient).expect("the shapes fit");
                let kernel = Runnable::new(&gpu, &graph, &indices);
                let id = BenchmarkId::new(format!("{what} {dtype}"), format!("segments of {segment}"));
                group.bench_function(id, |bencher| bencher.iter(|| kernel.run()));
            }
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
