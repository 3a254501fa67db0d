//! `engraft plan`: the memory of a run, as a table or as JSON.

use super::args::PlanArgs;
use super::download::settings_folder;
use super::named_data::NamedData;
use crate::error::Error;
use crate::gpu::{Gpu, GpuOptions};
use crate::graph::DeviceProfile;
use crate::memory_size::memory_text;
use crate::train::memory::MemoryLimit;
use crate::train::options::{RecomputeKind, TuneMode};
use crate::train::run_plan::{CombinationReport, PlanReport, plan_run};
use crate::train::tuning::Tuner;
use std::fmt::Write;

/// Plans and prints. Without `--gpu` no device is opened.
///
/// # Errors
/// No model, options out of range, data that cannot be read, a device that was named and is not there.
pub fn run(mut args: PlanArgs, quiet: bool) -> Result<(), Error> {
    let folder = args.model.folder();
    if args.shape.is_none() && !folder.as_os_str().is_empty() {
        args.model.model_dir = Some(settings_folder(&folder, quiet)?);
    }
    let (config, json, asked) = (args.config()?, args.json, args.unified_memory);
    let named = NamedData::of(&args.data)?;
    let mut options = args.resolve()?;
    if let Some(named) = named {
        named.resolve(&mut options.data, quiet)?;
    }
    let kind = options.recompute;
    let (device, name, free) = match &options.gpu {
        None => (DeviceProfile::typical_gpu(), "a typical GPU".to_owned(), None),
        Some(_) => {
            let (device, no_coop) = (options.gpu.clone(), options.no_coop);
            let gpu = Gpu::open(&GpuOptions { device, no_coop, ..GpuOptions::default() })?;
            // what was measured there decides scratch space
            Tuner::new(TuneMode::Cached).recall(&gpu);
            ((*gpu.profile()).clone(), gpu.info().name.clone(), gpu.free_memory())
        }
    };
    let opened = options.gpu.is_some();
    let device = DeviceProfile { unified_memory: asked.unwrap_or(device.unified_memory), ..device };
    let limit = MemoryLimit::of(options.memory_limit, free);
    let report = plan_run(options, &config, &device, limit)?;
    if json {
        // a report of numbers and names always serialises
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        let from = match (asked, opened) {
            (Some(_), _) => "--unified_memory",
            (None, true) => "as this device's is",
            (None, false) => "assumed; --unified_memory plans for an integrated GPU or a device in software",
        };
        print!("{}", table(&report, &name, from, kind, limit));
    }
    Ok(())
}

/// `from` says how it is known whose memory the device's is.
fn table(
    report: &PlanReport,
    device: &str,
    from: &str,
    kind: RecomputeKind,
    limit: Option<MemoryLimit>,
) -> String {
    let mut text = String::new();
    // writing to a String cannot fail
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<20}{value}");
    };
    let chosen = if kind == RecomputeKind::Auto { " (chosen by auto)" } else { "" };
    line("planned for", device.into());
    let memory = if report.unified_memory { "the host's" } else { "the device's own" };
    line("its memory", format!("{memory} ({from})"));
    line(
        "parameters",
        format!("{} trained, {} in the model", report.trainable_parameters, report.base_parameters),
    );
    line("precision", report.precision.clone());
    line(
        "micro-batch",
        format!(
            "{} of {} samples, up to {} tokens with {} labels",
            report.micro_batch_size, report.batch_size, report.tokens, report.labels
        ),
    );
    line("recompute", format!("{}{chosen}", report.recompute));
    line(
        "work",
        format!(
            "{:.3} TFLOP per step, {:.1} % of it made again",
            report.step_flops / 1e12,
            100.0 * report.extra_flops / (1.0 + report.extra_flops)
        ),
    );
    let bytes = report.bytes;
    for (kind, bytes) in [
        ("weights", bytes.weights),
        ("trainables", bytes.trainables),
        ("optimiser", bytes.optimiser),
        ("inputs", bytes.inputs),
        ("activations", bytes.activations),
        ("kernel parameters", bytes.parameters),
    ] {
        line(kind, format!("{:>12}", memory_text(bytes)));
    }
    let verdict = match (limit, report.fits) {
        (Some(limit), Some(true)) => format!(", fits {limit}"),
        (Some(limit), _) => format!(", more than {limit}"),
        (None, _) => String::new(),
    };
    let counts = report.needed_bytes > report.peak_bytes;
    let of_peak = if counts { "" } else { &verdict };
    line("peak", format!("{:>12}{of_peak}", memory_text(report.peak_bytes)));
    if report.host_bytes > 0 {
        line("in host memory", format!("{:>12}", memory_text(report.host_bytes)));
    }
    if counts {
        line("together", format!("{:>12}{verdict}", memory_text(report.needed_bytes)));
    }
    report.notes.iter().for_each(|note| line("note", note.clone()));
    if let Some(advice) = &report.advice {
        line("to fit", advice.clone());
    }
    text.push('\n');
    text.push_str(&combinations(&report.combinations));
    text
}

/// A row per policy, a column per micro-batch.
fn combinations(all: &[CombinationReport]) -> String {
    let mut sizes: Vec<usize> = all.iter().map(|c| c.combination.micro_batch_size).collect();
    sizes.dedup();
    let mut text = format!("{:<14}{:>12}", "recompute", "more FLOPs");
    for size in &sizes {
        let _ = write!(text, "{:>18}", format!("micro-batch {size}"));
    }
    text.push('\n');
    let rows = all.iter().filter(|c| c.combination.micro_batch_size == sizes[0]);
    for row in rows {
        let policy = row.combination.recompute;
        let _ = write!(text, "{:<14}{:>10.1} %", policy.to_string(), 100.0 * row.extra_flops);
        for cell in all.iter().filter(|c| c.combination.recompute == policy) {
            let over = if cell.fits == Some(false) { "over " } else { "" };
            let _ = write!(text, "{:>18}", format!("{over}{}", memory_text(cell.combination.needed_bytes)));
        }
        text.push('\n');
    }
    text
}
