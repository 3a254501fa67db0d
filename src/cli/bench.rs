//! `engraft bench`: speed without any files.

use super::args::{
    BenchAttentionArgs, BenchKernelArgs, BenchLoraArgs, BenchMatmulArgs, BenchTrainArgs, StepArgs,
};
use crate::error::{Error, Failure};
use crate::gpu::{Gpu, GpuError, GpuOptions};
use crate::graph::{DeviceProfile, Graph, GraphError, blocks};
use crate::models::{ModelConfig, Network, shape, shape_names};
use crate::ops::matmul::Layout;
use crate::ops::{attention, matmul};
use crate::train::bench::kernels::{
    Heads, KernelReport, LayerGradients, LayerStorage, Peak, Runnable, causal_attention, fits, layer, peak,
    product, segments,
};
use crate::train::bench::trace::trace;
use crate::train::bench::transfers::TransferReport;
use crate::train::bench::{
    BenchTrain, BenchTrainOptions, BenchTrainReport, KernelTime, by_kind, visible_share,
};
use crate::train::trainer::TrainerError;
use crate::train::tuning::{TuneProgress, Tuner};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;
use std::path::Path;

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

/// Products in the three layouts, or those of a model's layers.
///
/// # Errors
/// An unknown shape, no device, and what the device reports.
pub fn matmul(args: BenchMatmulArgs, quiet: bool) -> Result<(), Error> {
    args.check()?;
    let storage = args.storage.storage;
    let mut cases = Vec::new();
    let mut add = |layout: Layout, [m, n, k]: [usize; 3]| {
        let graph = product(layout, (m, n, k), storage);
        cases.push(KernelCase { name: format!("{layout:?} {m}x{n}x{k}"), graph, segment: None, share: 1.0 });
    };
    match args.kernel.shape()? {
        None => {
            add(Layout::NT, args.size);
            add(Layout::NN, args.size);
            // the gradient of a weight, which one that is quantised has not
            if !storage.weight.is_quantised() {
                add(Layout::TN, args.size);
            }
        }
        Some(config) => {
            for (outputs, inputs) in layers(&config) {
                add(Layout::NT, [args.tokens(), outputs, inputs]);
                add(Layout::NN, [args.tokens(), inputs, outputs]);
            }
        }
    }
    let advice =
        "use a smaller --size, or fewer --tokens of a named shape, or another device (`engraft devices`)";
    run(&args.kernel, storage, cases, true, quiet).map_err(|error| advised(error, advice))
}

/// Attention and its gradient, one segment and segments of a quarter.
///
/// # Errors
/// As [`matmul`].
pub fn attention(args: BenchAttentionArgs, quiet: bool) -> Result<(), Error> {
    let config = args.kernel.shape()?;
    let heads = config.map_or(Heads { heads: 8, kv_heads: 2, head_dim: 64 }, |c| Heads {
        heads: c.heads,
        kv_heads: c.kv_heads,
        head_dim: c.head_dim,
    });
    let mut cases = Vec::new();
    for segment in [args.tokens, args.tokens.div_ceil(4)] {
        for (what, gradient) in [("forward", false), ("gradient", true)] {
            let name = format!("{what}, {} tokens in segments of {segment}", args.tokens);
            let graph = causal_attention(args.tokens, heads, args.storage, gradient);
            let share = visible_share(args.tokens, segment);
            cases.push(KernelCase { name, graph, segment: Some((args.tokens, segment)), share });
        }
    }
    let advice = "use fewer --tokens, or another device (`engraft devices`)";
    run(&args.kernel, args.storage.into(), cases, false, quiet).map_err(|error| advised(error, advice))
}

/// A linear layer without an adapter, with one, with its gradients, and with that of the input too.
///
/// # Errors
/// As [`matmul`].
pub fn lora(args: BenchLoraArgs, quiet: bool) -> Result<(), Error> {
    let storage = args.storage.storage;
    let layers = match args.kernel.shape()? {
        Some(config) => layers(&config),
        None => vec![args.size.into()],
    };
    let mut cases = Vec::new();
    for (outputs, inputs) in layers {
        for (what, rank, gradients) in [
            ("no adapter", 0, LayerGradients::None),
            ("forward", args.rank, LayerGradients::None),
            ("forward, dA, dB", args.rank, LayerGradients::Adapter),
            ("forward, dA, dB, dx", args.rank, LayerGradients::AdapterAndInput),
        ] {
            let name = format!("{outputs}x{inputs} {what}");
            let graph = layer(args.tokens, (outputs, inputs), rank, storage, gradients);
            cases.push(KernelCase { name, graph, segment: None, share: 1.0 });
        }
    }
    let advice = "use fewer --tokens, a smaller --size or --rank, or another device (`engraft devices`)";
    run(&args.kernel, storage, cases, true, quiet).map_err(|error| advised(error, advice))
}

const SMALLER_TRAINING: &str =
    "use a smaller --batch, --seq or network, or another device (`engraft devices`)";

/// The same, where it is that something is too large for the device: with `advice` instead of that for a run.
fn advised(error: Error, advice: &'static str) -> Error {
    match error.gpu() {
        Some(source @ (GpuError::OverLimit { .. } | GpuError::OutOfMemory { .. })) => {
            Error::Benchmark { source: source.clone(), advice }
        }
        _ => error,
    }
}

/// The distinct `(outputs, inputs)` of a model's linear layers.
fn layers(config: &ModelConfig) -> Vec<(usize, usize)> {
    let one = ModelConfig { layers: 1, ..config.clone() };
    let mut all: Vec<(usize, usize)> =
        Network::linear_modules(&one).into_iter().map(|(_, outputs, inputs)| (outputs, inputs)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// An operation to measure.
struct KernelCase {
    name: String,
    graph: Result<Graph, GraphError>,
    /// Tokens, and those of a segment, where it is attention.
    segment: Option<(usize, usize)>,
    /// Of the FLOPs that its plan counts, those that are done.
    share: f64,
}

/// `products`: the cases are products, of which the best is the measure of the others.
fn run(
    args: &BenchKernelArgs,
    storage: LayerStorage,
    cases: Vec<KernelCase>,
    products: bool,
    quiet: bool,
) -> Result<(), Error> {
    let earlier = args.run.compare.as_deref().map(read_json).transpose()?;
    let graphs = || cases.iter().filter_map(|case| case.graph.as_ref().ok());
    graphs().try_for_each(whole_groups)?;
    let gpu = Gpu::open(&args.run.device.options())?;
    graphs().try_for_each(|graph| fits(graph, &gpu.profile()))?;
    let mut tuner = Tuner::new(args.run.tune.tune);
    let mut peak = peak(&gpu, &tuner, storage.activations, &mut reporter(quiet))?;
    if let Some(variant) = &args.variant {
        known_variant(variant, &gpu.profile())?;
        tuner.forced = Some(variant.clone());
    }
    let (mut kernels, mut troubles) = (Vec::new(), BTreeSet::new());
    for KernelCase { name, graph, segment, share } in cases {
        let graph = graph.map_err(TrainerError::from)?;
        let indices = segment.map_or(vec![], |(tokens, segment)| segments(tokens, segment).into());
        let case = Runnable::new(&gpu, &graph, &indices, &tuner, &mut reporter(quiet))?;
        if let Some(trouble) = &case.tuned().trouble {
            troubles.insert(trouble.clone());
        }
        kernels.push(case.measure(name, share)?);
    }
    troubles.iter().for_each(|trouble| eprintln!("{trouble}"));
    if let Some(variant) = &args.variant
        && !kernels.iter().flat_map(|k| &k.variants).any(|taken| taken == variant)
    {
        eprintln!(
            "--variant {variant}: nothing here can be done by it on this device; other kernels were timed"
        );
    }
    if products {
        peak = peak.with_products(kernels.iter().map(|k| k.gflops));
    }
    let (device, driver) = (gpu.info().name.clone(), gpu.info().driver.clone());
    doubt(earlier.as_ref(), "storage", &driver).into_iter().for_each(|said| eprintln!("{said}"));
    let report = KernelReports { device, driver, storage, peak, kernels };
    if args.run.json {
        print_json(&report);
    } else {
        print!("{}", report.table(earlier.as_ref()));
    }
    Ok(())
}

/// # Errors
/// A weight that cannot be held in blocks.
fn whole_groups(graph: &Graph) -> Result<(), Error> {
    let types = graph.leaves().iter().map(|leaf| graph.type_of(leaf.value));
    let mut broken = types.filter(|ty| ty.dtype.is_quantised() && !blocks::fits(*ty));
    broken.next().map_or(Ok(()), |ty| {
        Err(Error::input(format!(
            "--storage {}: the rows of a weight must be multiples of 4 long, and these are {}; choose other sizes",
            ty.dtype,
            ty.cols()
        )))
    })
}

/// # Errors
/// The names there are, where this is none of them.
fn known_variant(name: &str, device: &DeviceProfile) -> Result<(), Error> {
    if matmul::Variant::parse(name).is_some() || attention::Variant::parse(name).is_some() {
        return Ok(());
    }
    // a CPU device runs the kernels of GPUs too
    let mut names = Vec::new();
    for cpu in [device.cpu, false] {
        let device = DeviceProfile { cpu, ..device.clone() };
        names.extend(matmul::Variant::all(&device).iter().map(ToString::to_string));
        names.extend(attention::Variant::all(&device).iter().map(ToString::to_string));
    }
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Err(Error::input(format!("--variant {name}: no such kernel; there are {}", names.join(", "))))
}

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

/// The shape of this name.
///
/// # Errors
/// The names there are.
pub(super) fn named_shape(name: &str) -> Result<ModelConfig, Error> {
    shape(name).ok_or_else(|| {
        let names = shape_names().collect::<Vec<_>>().join(", ");
        Error::input(format!("--shape {name}: no such shape; there are {names}"))
    })
}

/// A line per class of kernels that is measured before.
pub(super) fn reporter(quiet: bool) -> impl FnMut(&TuneProgress) {
    move |progress| {
        if quiet {
            return;
        }
        let m = &progress.measurement;
        if !m.seconds.is_finite() {
            eprintln!(
                "measured {}/{}: {}: no room to try it; the default stays",
                progress.done, progress.total, m.class
            );
            return;
        }
        eprintln!(
            "measured {}/{}: {}: {}, {:.1} GFLOP/s, {:.2} times the default",
            progress.done,
            progress.total,
            m.class,
            m.variant,
            m.gflops,
            m.default_seconds / m.seconds
        );
    }
}

fn read_json(path: &Path) -> Result<Value, Error> {
    let said = |reason: String| Error::input(format!("--compare {}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| said(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| said(format!("{e}; give a file that --json wrote")))
}

/// Says where a comparison says little: a file of another command, which lacks `key`, or of another driver.
fn doubt(earlier: Option<&Value>, key: &str, driver: &str) -> Option<String> {
    let earlier = earlier?;
    if earlier.get(key).is_none() {
        return Some(format!("--compare: the file has no {key:?}: another command wrote it"));
    }
    let before = earlier["driver"].as_str().filter(|&before| before != driver)?;
    Some(format!("--compare: the file is from another driver, {before}"))
}

fn print_json(report: &impl Serialize) {
    // a report of numbers and names always serialises
    println!("{}", serde_json::to_string(report).unwrap_or_default());
}

/// What `bench matmul`, `attention` and `lora` found.
#[derive(Serialize)]
struct KernelReports {
    device: String,
    driver: String,
    #[serde(flatten)]
    storage: LayerStorage,
    peak: Peak,
    kernels: Vec<KernelReport>,
}

impl KernelReports {
    fn table(&self, earlier: Option<&Value>) -> String {
        let mut text = format!("{} | {}\n{}\n\n", self.device, self.driver, peak_line(&self.peak));
        let _ = writeln!(
            text,
            "{:<44}{:>10}{:>10}{:>9}{:>9}{:>9}{}",
            self.storage,
            "ms",
            "GFLOP/s",
            "of peak",
            "GB/s",
            "of peak",
            if earlier.is_some() { "  before/now" } else { "" }
        );
        for k in &self.kernels {
            let _ = write!(
                text,
                "{:<44}{:>10.3}{:>10.1}{:>8.0}%{:>9.2}{:>8.0}%",
                k.name,
                k.seconds * 1e3,
                k.gflops,
                100.0 * k.gflops / self.peak.gflops,
                k.gb_per_s,
                100.0 * k.gb_per_s / self.peak.gb_per_s
            );
            text += &before_now(earlier, ("name", &k.name), ("seconds", k.seconds));
            if !k.variants.is_empty() {
                let _ = write!(text, "  {}", k.variants.join(", "));
            }
            text.push('\n');
        }
        text
    }
}

/// A cell with the time of the row of this name in an earlier report, over the one now; empty where it has none.
fn before_now(earlier: Option<&Value>, (key, name): (&str, &str), (unit, now): (&str, f64)) -> String {
    let row = |rows: &Vec<Value>| rows.iter().find(|row| row[key] == name)?[unit].as_f64();
    let before = earlier.and_then(|v| v["kernels"].as_array()).and_then(row);
    before.map_or(String::new(), |before| format!("{:>12.2}", before / now))
}

fn peak_line(peak: &Peak) -> String {
    format!("peak here: {:.1} GFLOP/s (best product), {:.1} GB/s (copy)", peak.gflops, peak.gb_per_s)
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
    if let Some(ms) = earlier.and_then(|v| v["step_ms"].as_f64()) {
        let _ =
            writeln!(text, "{:.2} times as fast as the step of {ms:.2} ms of the file", ms / step.step_ms);
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
    use crate::graph::{Cost, DType};

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
        let quicker = BenchTrainReport { step_ms_median: 900.0, ..report() };
        let quicker = StepReport::new(&quicker, &[kernel("matmul", 1.0)], peak, None);
        let table = step_table(&quicker, None);
        assert!(table.contains("900.00  less than its kernels"), "{table}");
        let table = step_table(&quicker, serde_json::to_value(&step).ok().as_ref());
        assert!(table.contains("  0.75\n") && table.contains("1.39 times as fast"), "{table}");
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
    fn an_earlier_report_gives_a_ratio() {
        let kernel = |seconds| KernelReport {
            name: "NT".into(),
            seconds,
            gflops: 5.0,
            gb_per_s: 1.0,
            variants: vec!["rows".into()],
        };
        let reports = |seconds| KernelReports {
            device: "d".into(),
            driver: "v".into(),
            storage: DType::BF16.into(),
            peak: Peak { gflops: 10.0, gb_per_s: 4.0 },
            kernels: vec![kernel(seconds)],
        };
        let before = serde_json::to_value(reports(0.5)).unwrap();
        let table = reports(0.25).table(Some(&before));
        let columns: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(columns, ["NT", "250.000", "5.0", "50%", "1.00", "25%", "2.00", "rows"]);
    }

    #[test]
    fn what_is_too_large_is_answered_in_a_benchmarks_own_options() {
        let heads = Heads { heads: 8, kv_heads: 2, head_dim: 64 };
        let graph = causal_attention(100_000_000, heads, DType::BF16, false).unwrap();
        let device = DeviceProfile { max_buffer: 1 << 32, ..DeviceProfile::typical_gpu() };
        let error = fits(&graph, &device).unwrap_err();
        let said = advised(error.into(), "use fewer --tokens");
        assert_eq!(said.failure(), Failure::Memory);
        let said = said.to_string();
        assert!(said.contains("4294967296 bytes of one buffer; use fewer --tokens"), "{said}");
        let source = GpuError::OutOfMemory { what: "q".into(), bytes: 8 };
        let said = advised(source.into(), "use fewer --tokens").to_string();
        assert!(said.contains("8 bytes for q") && !said.contains("--recompute"), "{said}");
    }

    #[test]
    fn weights_in_blocks_need_rows_of_whole_groups() {
        let check = |dtype| whole_groups(&product(Layout::NT, (8, 8, 6), dtype).unwrap());
        assert!(check(DType::BF16).is_ok());
        let said = check(DType::Nf4).unwrap_err().to_string();
        assert!(said.contains("--storage nf4") && said.contains("multiples of 4"), "{said}");
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

    #[test]
    fn an_unknown_shape_lists_those_there_are() {
        let said = named_shape("llama-9").unwrap_err().to_string();
        assert!(said.contains("llama-9") && said.contains("llama-3.2-1b"), "{said}");
    }
}
