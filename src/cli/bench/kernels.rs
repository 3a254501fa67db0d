//! `engraft bench matmul`, `attention` and `lora`: single operations.

use super::{advised, before_now, doubt, peak_line, print_json, read_json, reporter};
use crate::cli::args::{BenchAttentionArgs, BenchKernelArgs, BenchLoraArgs, BenchMatmulArgs};
use crate::error::Error;
use crate::gpu::Gpu;
use crate::graph::{DeviceProfile, Graph, GraphError, blocks};
use crate::models::{ModelConfig, Network};
use crate::ops::matmul::Layout;
use crate::ops::{attention, matmul};
use crate::train::bench::kernels::{
    Heads, KernelReport, LayerGradients, LayerStorage, Peak, Runnable, causal_attention, fits, layer, peak,
    product, segments,
};
use crate::train::bench::visible_share;
use crate::train::trainer::TrainerError;
use crate::train::tuning::Tuner;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;

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
    if matmul::Variant::parse(name).is_some() || attention::Kernel::parse(name).is_some() {
        return Ok(());
    }
    // a CPU device runs the kernels of GPUs too
    let mut names = Vec::new();
    for cpu in [device.cpu, false] {
        let device = DeviceProfile { cpu, ..device.clone() };
        names.extend(matmul::Variant::all(&device).iter().map(ToString::to_string));
        names.extend(attention::Kernel::all(&device).iter().map(ToString::to_string));
    }
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Err(Error::input(format!("--variant {name}: no such kernel; there are {}", names.join(", "))))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;
    use crate::gpu::GpuError;
    use crate::graph::DType;

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
}
