//! `engraft bench`: speed without any files.

use super::args::BenchTrainArgs;
use crate::error::Error;
use crate::gpu::{Gpu, GpuOptions};
use crate::train::bench::{BenchTrain, BenchTrainOptions, BenchTrainReport, KernelTime};
use std::fmt::Write;

/// Times training steps and prints a table, or one JSON object.
///
/// # Errors
/// Options out of range, no device, and what the device reports.
pub fn train(args: BenchTrainArgs) -> Result<(), Error> {
    args.check()?;
    let gpu = Gpu::open(&GpuOptions { device: args.device.gpu.clone(), ..GpuOptions::default() })?;
    let options = BenchTrainOptions {
        hidden: args.hidden,
        layers: args.layers,
        heads: args.heads,
        kv_heads: args.kv_heads(),
        ffn: args.ffn,
        vocab: args.vocab,
        seq: args.seq,
        batch: args.batch,
        rank: args.rank,
        targets: args.targets(),
        steps: args.steps,
        precision: args.precision,
        recompute: args.recompute,
    };
    let mut bench = BenchTrain::new(&gpu, &options)?;
    let report = bench.run()?;
    if args.json {
        // a report of numbers and names always serialises
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        print!("{}{}", report_table(&report), kernel_table(&bench.kernels()?));
    }
    Ok(())
}

fn report_table(report: &BenchTrainReport) -> String {
    let gib = |bytes: f64| format!("{:.3} GiB", bytes / f64::from(1 << 30));
    let rss = report.peak_rss_mb.map_or("unknown".into(), |mib| gib(mib * f64::from(1 << 20)));
    let rows = [
        ("device", report.device.clone()),
        ("driver", report.driver.clone()),
        ("speed", format!("{:.0} tokens/s", report.tokens_per_s)),
        ("step, median", format!("{:.1} ms", report.step_ms_median)),
        ("first step", format!("{:.2} s", report.first_step_s)),
        ("device memory", gib(report.peak_device_bytes as f64)),
        ("process memory", rss),
        ("loss", format!("{:.4} -> {:.4}", report.loss_first, report.loss_last)),
    ];
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        // writing to a String cannot fail
        let _ = writeln!(text, "{name:<16}{value}");
        text
    })
}

/// Kinds of kernels with their share of the time and the rates that their estimated work gives.
fn kernel_table(kernels: &[KernelTime]) -> String {
    let total: f64 = kernels.iter().map(|k| k.seconds).sum();
    let mut text = format!(
        "\n{:<44}{:>6}{:>10}{:>8}{:>12}{:>10}\n",
        "kernel", "count", "ms", "share", "GFLOP/s", "GB/s"
    );
    for k in kernels {
        let name = format!("{} {}", k.kernel, k.detail);
        let (ms, share) = (k.seconds * 1e3, 100.0 * k.seconds / total);
        let (flops, bytes) = (k.cost.flops / k.seconds / 1e9, k.cost.bytes / k.seconds / 1e9);
        let _ =
            writeln!(text, "{name:<44}{:>6}{ms:>10.2}{share:>7.1}%{flops:>12.1}{bytes:>10.1}", k.dispatches);
    }
    let _ = writeln!(text, "{:<50}{:>10.2}", "sum", total * 1e3);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Cost;

    #[test]
    fn kernels_are_listed_with_their_share() {
        let kernel = |kernel, seconds| KernelTime {
            kernel,
            detail: "NT".into(),
            dispatches: 3,
            seconds,
            cost: Cost { flops: 2e9, bytes: 1e9 },
        };
        let table = kernel_table(&[kernel("matmul", 0.75), kernel("add", 0.25)]);
        let columns: Vec<&str> = table.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(columns, ["matmul", "NT", "3", "750.00", "75.0%", "2.7", "1.3"]);
    }

    #[test]
    fn unknown_memory_is_said_so() {
        let report = BenchTrainReport {
            tokens_per_s: 2000.0,
            step_ms_median: 256.0,
            first_step_s: 1.0,
            peak_device_bytes: 1 << 29,
            peak_rss_mb: None,
            device: "d".into(),
            driver: "v".into(),
            loss_first: 7.6,
            loss_last: 7.5,
        };
        let table = report_table(&report);
        assert!(table.contains("process memory  unknown") && table.contains("0.500 GiB"), "{table}");
    }
}
