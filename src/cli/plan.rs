//! `engraft plan`: the memory of a run, as a table or as JSON.

use super::args::PlanArgs;
use super::download::settings_folder;
use super::named_data::NamedData;
use crate::error::Error;
use crate::gpu::{Gpu, GpuOptions};
use crate::graph::DeviceProfile;
use crate::train::memory::MemoryLimit;
use crate::train::memory_size::memory_text;
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
    let (config, json) = (args.config()?, args.json);
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
    let limit = MemoryLimit::of(options.memory_limit, free);
    let report = plan_run(options, &config, &device, limit)?;
    if json {
        // a report of numbers and names always serialises
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        print!("{}", table(&report, &name, kind, limit));
    }
    Ok(())
}

fn table(report: &PlanReport, device: &str, kind: RecomputeKind, limit: Option<MemoryLimit>) -> String {
    let mut text = String::new();
    // writing to a String cannot fail
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<20}{value}");
    };
    let chosen = if kind == RecomputeKind::Auto { " (chosen by auto)" } else { "" };
    line("planned for", device.into());
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
    line("peak", format!("{:>12}{verdict}", memory_text(report.peak_bytes)));
    if report.host_bytes > 0 {
        line("in host memory", format!("{:>12}", memory_text(report.host_bytes)));
    }
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
            let _ = write!(text, "{:>18}", format!("{over}{}", memory_text(cell.combination.peak_bytes)));
        }
        text.push('\n');
    }
    text
}
