//! `engraft merge_lora`: what was written, as a line or as JSON.

use super::args::MergeArgs;
use super::download::{adapter_folder, model_folder};
use super::{print, say_notes};
use crate::error::Error;
use crate::export::merge;
use crate::memory_size::memory_text;
use serde_json::json;
use std::time::Instant;

pub fn run(mut args: MergeArgs, quiet: bool) -> Result<(), Error> {
    let (start, json) = (Instant::now(), args.json);
    args.adapter_dir = model_folder(&args.adapter_dir, quiet)?;
    args.model_dir = adapter_folder(args.model_dir.as_deref(), quiet)?;
    let options = args.resolve()?;
    let report = merge(&options)?;
    say_notes(&report.notes, quiet);
    let seconds = start.elapsed().as_secs_f64();
    if json {
        let object = json!({
            "out_dir": options.out_dir,
            "model_dir": options.weights.model_dir,
            "adapted_layers": report.adapted,
            "tensors": report.tensors,
            "files": report.files,
            "bytes": report.bytes,
            "notes": report.notes,
            "seconds": seconds,
        });
        return print(&format!("{object:#}\n"));
    }
    if !quiet {
        eprintln!(
            "merged {} layers of {} into {}: {} tensors, {} in {} weight file{}, {seconds:.1} s",
            report.adapted,
            options.weights.model_dir.display(),
            options.out_dir.display(),
            report.tensors,
            memory_text(report.bytes),
            report.files,
            if report.files == 1 { "" } else { "s" },
        );
    }
    Ok(())
}
