//! `engraft export`: what was written, as a line or as JSON.

use super::args::ExportArgs;
use super::download::{model_folder, settings_folder};
use super::{print, say_notes, with_parent};
use crate::error::Error;
use crate::export::{WeightOptions, export_adapter, export_model};
use crate::memory_size::memory_text;
use serde_json::json;
use std::time::Instant;

pub fn run(mut args: ExportArgs, quiet: bool) -> Result<(), Error> {
    let (start, json) = (Instant::now(), args.json);
    args.dir = model_folder(&args.dir, quiet)?;
    args.model_dir = args.model_dir.map(|model| settings_folder(&model, quiet)).transpose()?;
    let (source, gguf) = args.resolve()?;
    let replaced = if gguf.path.exists() { " in place of what was there" } else { "" };
    let (what, report) = with_parent(&gguf.path, || {
        Ok(match &source.adapter {
            Some(adapter) => ("adapter", export_adapter(&source.model_dir, adapter, &gguf)?),
            None => {
                let model = WeightOptions { model_dir: source.model_dir, ..WeightOptions::default() };
                ("model", export_model(&model, &gguf)?)
            }
        })
    })?;
    say_notes(&report.notes, quiet);
    let seconds = start.elapsed().as_secs_f64();
    if json {
        let object = json!({
            "file": gguf.path,
            "what": what,
            "type": gguf.ty.name(),
            "tensors": report.tensors,
            "bytes": report.bytes,
            "notes": report.notes,
            "seconds": seconds,
        });
        return print(&format!("{object:#}\n"));
    }
    if !quiet {
        eprintln!(
            "wrote the {what} to {}{replaced}: {} tensors in {}, {}, {seconds:.1} s",
            gguf.path.display(),
            report.tensors,
            gguf.ty,
            memory_text(report.bytes),
        );
    }
    Ok(())
}
