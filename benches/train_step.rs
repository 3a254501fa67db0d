//! A whole optimiser step of a small Llama with adapters on q, k, v and o: the shape of `engraft bench train`.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use engraft::autograd::Recompute;
use engraft::train::bench::{BenchTrain, BenchTrainOptions};
use engraft::train::options::{Precision, RecomputeKind};

fn bench(criterion: &mut Criterion) {
    let Some(gpu) = common::gpu() else { return };
    let mut group = common::group(criterion, "train_step");
    let cases = [
        (Precision::F32True, RecomputeKind::NONE),
        (Precision::BF16True, RecomputeKind::NONE),
        (Precision::BF16True, RecomputeKind::Policy(Recompute::Layer)),
    ];
    for (precision, recompute) in cases {
        let options = BenchTrainOptions { precision, recompute, ..Default::default() };
        // one element is one token
        group.throughput(Throughput::Elements((options.seq * options.batch) as u64));
        let mut run = BenchTrain::new(&gpu, &options, &mut |_| {}).expect("the benchmark fits the device");
        run.step().expect("the device works");
        let id = BenchmarkId::new(precision.to_string(), format!("recompute {recompute}"));
        group.bench_function(id, |bencher| bencher.iter(|| run.step().expect("the device works")));
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
