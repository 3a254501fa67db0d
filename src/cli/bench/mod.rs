//! `engraft bench`: speed without any files.

mod kernels;
mod training;

pub use kernels::{attention, lora, matmul};
pub use training::{step, train};

use crate::error::Error;
use crate::gpu::GpuError;
use crate::models::{ModelConfig, shape, shape_names};
use crate::train::bench::kernels::Peak;
use crate::train::tuning::TuneProgress;
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// The shape of this name.
///
/// # Errors
/// The names there are.
pub(in crate::cli) fn named_shape(name: &str) -> Result<ModelConfig, Error> {
    shape(name).ok_or_else(|| {
        let names = shape_names().collect::<Vec<_>>().join(", ");
        Error::input(format!("--shape {name}: no such shape; there are {names}"))
    })
}

/// A line per class of kernels that is measured before.
pub(in crate::cli) fn reporter(quiet: bool) -> impl FnMut(&TuneProgress) {
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

/// The same, where it is that something is too large for the device: with `advice` instead of that for a run.
fn advised(error: Error, advice: &'static str) -> Error {
    match error.gpu() {
        Some(source @ (GpuError::OverLimit { .. } | GpuError::OutOfMemory { .. })) => {
            Error::Benchmark { source: source.clone(), advice }
        }
        _ => error,
    }
}

fn read_json(path: &Path) -> Result<Value, Error> {
    let said = |reason: String| Error::input(format!("--compare {}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| said(format!("cannot be read: {e}")))?;
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

/// A cell with the time of the row of this name in an earlier report, over the one now; empty where it has none.
fn before_now(earlier: Option<&Value>, (key, name): (&str, &str), (unit, now): (&str, f64)) -> String {
    let row = |rows: &Vec<Value>| rows.iter().find(|row| row[key] == name)?[unit].as_f64();
    let before = earlier.and_then(|v| v["kernels"].as_array()).and_then(row);
    before.map_or(String::new(), |before| format!("{:>12.2}", before / now))
}

fn peak_line(peak: &Peak) -> String {
    format!("peak here: {:.1} GFLOP/s (best product), {:.1} GB/s (copy)", peak.gflops, peak.gb_per_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_shape_lists_those_there_are() {
        let said = named_shape("llama-9").unwrap_err().to_string();
        assert!(said.contains("llama-9") && said.contains("llama-3.2-1b"), "{said}");
    }
}
