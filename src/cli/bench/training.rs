//! `engraft bench train` and `step`: steps of training.

use super::{advised, before_now, doubt, peak_line, print_json, read_json, reporter};
use crate::cli::args::{BenchTrainArgs, StepArgs};
use crate::error::{Error, Failure};
use crate::gpu::{Gpu, GpuOptions};
use crate::train::bench::kernels::{Peak, peak};
use crate::train::bench::trace::trace;
use crate::train::bench::transfers::TransferReport;
use crate::train::bench::{BenchTrain, BenchTrainOptions, BenchTrainReport, KernelTime, by_kind};
use crate::train::tuning::Tuner;
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;

/// Times training steps and prints their rate, or one JSON object.
///
/// # Errors
/// Options out of range, no device, and what the device reports.
pub fn train(args: BenchTrainArgs, quiet: bool) -> Result<(), Error> {
    time_training(&args, quiet).map_err(|error| advised(error, SMALLER_TRAINING))
}

fn time_training(args: &BenchTrainArgs, quiet: bool) -> Result<(), Error> {
    let earlier = args.run.compare.as_deref().map(read_json).transpose()?;
    let mut bench = open_train(args, quiet)?;
    let run = bench.run()?;
    // the trainer's memory is given back first, for a run that leaves no room beside it
    let gpu = bench.trainer().gpu().clone();
    drop(bench);
    let activations = args.precision.precision.activations();
    let peak = match peak(&gpu, &Tuner::new(args.run.tune.tune), activations, &mut reporter(quiet)) {
        Ok(peak) => Some(peak),
        Err(error) if error.failure() == Failure::Memory => None,
        Err(error) => return Err(error),
    };
    let report = TrainReport::new(run, peak);
    if args.run.json {
        print_json(&report);
    } else {
        print!("{}", report.table());
    }
    let BenchTrainReport { driver, tokens_per_s, .. } = &report.run;
    doubt(earlier.as_ref(), "loss_first", driver).into_iter().for_each(|said| eprintln!("{said}"));
    if let Some(before) = earlier.as_ref().and_then(|v| v["tokens_per_s"].as_f64()) {
        eprintln!("{:.2} times the {before:.0} tokens/s of the file", tokens_per_s / before);
    }
    Ok(())
}

/// Times every kernel of a step by the device's clock.
///
/// # Errors
/// As [`train`], and a trace file that cannot be written.
pub fn step(args: StepArgs, quiet: bool) -> Result<(), Error> {
    time_step(&args, quiet).map_err(|error| advised(error, SMALLER_TRAINING))
}

fn time_step(args: &StepArgs, quiet: bool) -> Result<(), Error> {
    let earlier = args.train.run.compare.as_deref().map(read_json).transpose()?;
    let mut bench = open_train(&args.train, quiet)?;
    let report = bench.run()?;
    let tuner = Tuner::new(args.train.run.tune.tune);
    let activations = args.train.precision.precision.activations();
    let peak = peak(bench.trainer().gpu(), &tuner, activations, &mut reporter(quiet))?;
    let dispatches = bench.dispatches()?;
    let kernels = by_kind(&dispatches);
    if let Some(path) = &args.trace {
        let trace = trace(&report.device, &dispatches);
        let bytes = serde_json::to_vec(&trace).unwrap_or_default();
        crate::checkpoint::atomic::write_file(path, |out| out.write_all(&bytes))
            .map_err(|source| Error::Write { path: path.clone(), source })?;
    }
    let transfers = bench.transfers(&dispatches)?;
    let step = StepReport::new(&report, &kernels, peak, transfers);
    doubt(earlier.as_ref(), "step_ms", &step.driver).into_iter().for_each(|said| eprintln!("{said}"));
    if args.train.run.json {
        print_json(&step);
    } else {
        print!("{}", step_table(&step, earlier.as_ref()));
    }
    Ok(())
}

const SMALLER_TRAINING: &str =
    "use a smaller --batch, --seq or network, or another device (`engraft devices`)";

fn open_train(args: &BenchTrainArgs, quiet: bool) -> Result<BenchTrain, Error> {
    args.check()?;
    let options = BenchTrainOptions {
        config: args.config()?,
        seq: args.seq,
        batch: args.batch,
        rank: args.rank,
        dropout: args.lora_dropout,
        targets: args.targets(),
        steps: args.steps,
        precision: args.precision.precision,
        quantize: args.precision.quantize().complete()?,
        recompute: args.recompute,
        memory_limit: args.memory.memory_limit,
        offload: args.memory.offload,
        offload_activations: args.memory.offload_activations,
        mlp_chunks: args.memory.mlp.mlp_chunks,
        tune: args.run.tune.tune,
        fusions: args.fusions(),
    };
    let device = GpuOptions { memory_limit: options.memory_limit, ..args.run.device.options() };
    let bench = BenchTrain::new(&Gpu::open(&device)?, &options, &mut reporter(quiet))?;
    if !quiet {
        eprintln!("{}\n{}", bench.chosen(), bench.trainer().loaded());
    }
    if let Some(trouble) = &bench.tuned().trouble {
        eprintln!("{trouble}");
    }
    Ok(bench)
}

/// What `bench step` found.
#[derive(Serialize)]
struct StepReport {
    device: String,
    driver: String,
    tokens_per_s: f64,
    /// Median of a whole step, by the host's clock.
    step_ms: f64,
    /// All dispatches of a step added up, by the device's clock.
    kernels_ms: f64,
    /// What the host and the gaps between dispatches take of a step; unknown where the kernels, timed one by one, take longer.
    host_share: Option<f64>,
    peak: Peak,
    kernels: Vec<StepKernel>,
    /// Of a micro-batch, where something waits in host memory.
    transfers: Option<TransferReport>,
}

#[derive(Serialize)]
struct StepKernel {
    kernel: String,
    dispatches: usize,
    ms: f64,
    gflop: f64,
    mb: f64,
    /// Of the peak that bounds it: the larger of its shares of FLOP/s and of bytes/s.
    share_of_peak: f64,
}

impl StepReport {
    fn new(
        report: &BenchTrainReport,
        kernels: &[KernelTime],
        peak: Peak,
        transfers: Option<TransferReport>,
    ) -> Self {
        let kernels_ms = kernels.iter().map(|k| k.seconds * 1e3).sum();
        let products = kernels.iter().filter(|k| k.kernel.starts_with("matmul"));
        let peak = peak.with_products(products.map(|k| k.cost.flops / k.seconds / 1e9));
        let kernels = kernels.iter().map(|k| {
            let (flops, bytes) = (k.cost.flops / k.seconds / 1e9, k.cost.bytes / k.seconds / 1e9);
            StepKernel {
                kernel: format!("{} {}", k.kernel, k.detail).trim_end().to_owned(),
                dispatches: k.dispatches,
                ms: k.seconds * 1e3,
                gflop: k.cost.flops / 1e9,
                mb: k.cost.bytes / 1e6,
                share_of_peak: (flops / peak.gflops).max(bytes / peak.gb_per_s),
            }
        });
        StepReport {
            device: report.device.clone(),
            driver: report.driver.clone(),
            tokens_per_s: report.tokens_per_s,
            step_ms: report.step_ms_median,
            kernels_ms,
            host_share: Some(1.0 - kernels_ms / report.step_ms_median).filter(|&share| share >= 0.0),
            peak,
            kernels: kernels.collect(),
            transfers,
        }
    }
}

fn step_table(step: &StepReport, earlier: Option<&Value>) -> String {
    let mut text = format!("{} | {}\n{}\n\n", step.device, step.driver, peak_line(&step.peak));
    let _ = writeln!(
        text,
        "{:<44}{:>6}{:>10}{:>8}{:>12}{:>10}{:>9}{}",
        "kernel",
        "count",
        "ms",
        "share",
        "GFLOP/s",
        "GB/s",
        "of peak",
        if earlier.is_some() { "  before/now" } else { "" }
    );
    for k in &step.kernels {
        let _ = writeln!(
            text,
            "{:<44}{:>6}{:>10.2}{:>7.1}%{:>12.1}{:>10.1}{:>8.0}%{}",
            k.kernel,
            k.dispatches,
            k.ms,
            100.0 * k.ms / step.kernels_ms,
            k.gflop / k.ms * 1e3,
            k.mb / k.ms,
            100.0 * k.share_of_peak,
            before_now(earlier, ("kernel", &k.kernel), ("ms", k.ms))
        );
    }
    let _ = writeln!(text, "{:<50}{:>10.2}", "sum of the kernels", step.kernels_ms);
    // between the timestamps of one kernel and the next a device waits, which in a whole step it need not
    let rest = step.host_share.map_or("  less than its kernels, timed one by one".to_string(), |share| {
        format!("{:>7.1}% host and gaps", 100.0 * share)
    });
    let _ = writeln!(text, "{:<50}{:>10.2}{rest}", "step", step.step_ms);
    let before = earlier.and_then(|v| v["step_ms"].as_f64().zip(v["tokens_per_s"].as_f64()));
    if let Some((ms, rate)) = before {
        let tokens = |ms: f64, rate: f64| (ms / 1e3 * rate).round();
        let (then, now) = (tokens(ms, rate), tokens(step.step_ms, step.tokens_per_s));
        let _ = if then == now {
            writeln!(text, "{:.2} times as fast as the step of {ms:.2} ms of the file", ms / step.step_ms)
        } else {
            let ratio = step.tokens_per_s / rate;
            writeln!(
                text,
                "{now} tokens in a step, {then} in that of the file: {ratio:.2} times its tokens/s"
            )
        };
    }
    if let Some(transfers) = &step.transfers {
        let _ = write!(text, "{transfers}");
    }
    text
}

/// What `bench train` found.
#[derive(Serialize)]
struct TrainReport {
    #[serde(flatten)]
    run: BenchTrainReport,
    /// Unknown where the device had no room to measure it.
    peak: Option<Peak>,
    /// FLOP/s of the whole step over those of the best product.
    share_of_peak: Option<f64>,
}

impl TrainReport {
    fn new(run: BenchTrainReport, peak: Option<Peak>) -> Self {
        let share_of_peak = peak.map(|peak| 1e3 * run.step_tflop_per_s / peak.gflops);
        TrainReport { run, peak, share_of_peak }
    }

    fn table(&self) -> String {
        let run = &self.run;
        let gib = |bytes: f64| format!("{:.3} GiB", bytes / f64::from(1 << 30));
        let rss = run.peak_rss_mb.map_or("unknown".into(), |mib| gib(mib * f64::from(1 << 20)));
        let share = match (self.share_of_peak, &self.peak) {
            (Some(share), Some(peak)) => format!("{:.0}% of peak; {}", 100.0 * share, peak_line(peak)),
            _ => "no room to measure the device's peak".into(),
        };
        let rows = [
            ("device", run.device.clone()),
            ("driver", run.driver.clone()),
            ("speed", format!("{:.0} tokens/s", run.tokens_per_s)),
            ("products", format!("{:.3} TFLOP/s", run.tflop_per_s)),
            ("whole step", format!("{:.3} TFLOP/s, {share}", run.step_tflop_per_s)),
            ("step, median", format!("{:.1} ms", run.step_ms_median)),
            ("first step", format!("{:.2} s", run.first_step_s)),
            ("device memory", gib(run.peak_device_bytes as f64)),
            ("process memory", rss),
            ("loss", format!("{:.4} -> {:.4}", run.loss_first, run.loss_last)),
        ];
        rows.iter().fold(String::new(), |mut text, (name, value)| {
            // writing to a String cannot fail
            let _ = writeln!(text, "{name:<16}{value}");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Cost;

    fn report() -> BenchTrainReport {
        BenchTrainReport {
            tokens_per_s: 2000.0,
            tflop_per_s: 0.5,
            step_tflop_per_s: 0.6,
            step_ms_median: 1250.0,
            first_step_s: 1.0,
            peak_device_bytes: 1 << 29,
            peak_rss_mb: None,
            device: "d".into(),
            driver: "v".into(),
            loss_first: 7.6,
            loss_last: 7.5,
        }
    }

    #[test]
    fn a_steps_kernels_are_listed_with_their_shares() {
        let kernel = |kernel, seconds| KernelTime {
            kernel,
            detail: "NT".into(),
            dispatches: 3,
            seconds,
            cost: Cost { flops: 3e9, bytes: 1.5e9 },
        };
        let peak = Peak { gflops: 10.0, gb_per_s: 4.0 };
        let step = StepReport::new(&report(), &[kernel("matmul", 0.75), kernel("add", 0.25)], peak, None);
        let table = step_table(&step, None);
        let columns: Vec<&str> = table.lines().nth(4).unwrap().split_whitespace().collect();
        assert_eq!(columns, ["matmul", "NT", "3", "750.00", "75.0%", "4.0", "2.0", "50%"]);
        assert!(table.contains("20.0% host and gaps"), "{table}");
        let quicker = BenchTrainReport { step_ms_median: 900.0, tokens_per_s: 2500.0 / 0.9, ..report() };
        let quicker = StepReport::new(&quicker, &[kernel("matmul", 1.0)], peak, None);
        let table = step_table(&quicker, None);
        assert!(table.contains("900.00  less than its kernels"), "{table}");
        let table = step_table(&quicker, serde_json::to_value(&step).ok().as_ref());
        assert!(table.contains("  0.75\n") && table.contains("1.39 times as fast"), "{table}");
        // of half the tokens
        let smaller = BenchTrainReport { step_ms_median: 625.0, ..report() };
        let smaller = StepReport::new(&smaller, &[kernel("matmul", 0.5)], peak, None);
        let table = step_table(&smaller, serde_json::to_value(&step).ok().as_ref());
        let said = "1250 tokens in a step, 2500 in that of the file: 1.00 times its tokens/s";
        assert!(table.contains(said), "{table}");
    }

    #[test]
    fn a_file_of_another_command_or_driver_is_said() {
        let file = serde_json::to_value(report()).unwrap();
        assert_eq!(doubt(Some(&file), "loss_first", "v"), None);
        assert_eq!(doubt(None, "loss_first", "v"), None);
        let said = |key, driver| doubt(Some(&file), key, driver).unwrap();
        assert!(said("step_ms", "v").contains("another command"));
        assert!(said("loss_first", "w").ends_with("another driver, v"));
    }

    #[test]
    fn a_whole_step_is_a_share_of_the_best_product() {
        let peak = Peak { gflops: 800.0, gb_per_s: 4.0 };
        let report = TrainReport::new(report(), Some(peak));
        assert!(
            report.table().contains("0.600 TFLOP/s, 75% of peak; peak here: 800.0"),
            "{}",
            report.table()
        );
        let json = serde_json::to_value(&report).unwrap();
        assert!((json["share_of_peak"].as_f64().unwrap() - 0.75).abs() < 1e-9, "{json}");
        assert_eq!((&json["peak"]["gflops"], &json["tokens_per_s"]), (&800.0.into(), &2000.0.into()));
    }

    #[test]
    fn unknown_memory_is_said_so() {
        let table = TrainReport::new(report(), None).table();
        assert!(table.contains("process memory  unknown") && table.contains("0.500 GiB"), "{table}");
        assert!(table.contains("no room to measure"), "{table}");
    }
}
