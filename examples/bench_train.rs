//! How fast training steps are: a table over small networks and storage types.
//!
//! `cargo run --release --example bench_train`; `engraft bench train` measures one shape of your choice.

use engraft::gpu::{Gpu, GpuOptions};
use engraft::models::ModelConfig;
use engraft::train::bench::{BenchTrain, BenchTrainOptions, small_config};
use engraft::train::options::Precision;

fn main() -> Result<(), engraft::Error> {
    let gpu = Gpu::open(&GpuOptions::default())?;
    println!("{} | {}\n", gpu.info().name, gpu.info().driver);
    let base = BenchTrainOptions { steps: 5, ..Default::default() };
    let small = small_config();
    let grouped = ModelConfig { heads: 8, kv_heads: 2, head_dim: 32, ..small.clone() };
    let wide = ModelConfig { hidden_size: 512, heads: 8, kv_heads: 8, intermediate_size: 1536, ..small };
    let shapes = [
        ("4 samples of 128", base.clone()),
        ("1 sample of 512", BenchTrainOptions { seq: 512, batch: 1, ..base.clone() }),
        ("all linear layers", BenchTrainOptions { targets: vec![], ..base.clone() }),
        ("grouped heads", BenchTrainOptions { config: grouped, ..base.clone() }),
        ("twice as wide", BenchTrainOptions { config: wide, ..base }),
    ];
    println!(
        "{:<20}{:<11}{:>10}{:>10}{:>9}{:>13}{:>9}",
        "4 layers, rank 8", "precision", "tokens/s", "step, ms", "first, s", "device, MiB", "loss"
    );
    for (name, options) in shapes {
        for precision in [Precision::F32True, Precision::BF16True] {
            let options = BenchTrainOptions { precision, ..options.clone() };
            let report = BenchTrain::new(&gpu, &options, &mut |_| {})?.run()?;
            println!(
                "{name:<20}{:<11}{:>10.0}{:>10.1}{:>9.2}{:>13.1}{:>9.4}",
                precision.to_string(),
                report.tokens_per_s,
                report.step_ms_median,
                report.first_step_s,
                report.peak_device_bytes as f64 / f64::from(1 << 20),
                report.loss_last
            );
        }
    }
    Ok(())
}
