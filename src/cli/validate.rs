//! `engraft validate`: a list of what is right and wrong with a model folder.

use super::args::ValidateArgs;
use super::download::{adapter_folder, model_folder};
use super::{print, say_notes};
use crate::error::Error;
use crate::hub::downloaded_model;
use crate::memory_size::memory_text;
use crate::train::adapter_place::{ModelAndAdapter, is_adapter};
use crate::validate::{Status, Validation, validate};
use serde_json::json;
use std::fmt::Write as _;

/// Prints every check.
///
/// # Errors
/// A folder with problems, which makes the exit code 2; a download that failed.
pub fn run(args: ValidateArgs, quiet: bool) -> Result<(), Error> {
    let model = model_folder(&args.model.model_dir, quiet)?;
    let mut adapter = adapter_folder(args.adapter.as_deref(), quiet)?;
    let mut model = model;
    if is_adapter(&model) {
        // in the model's place, as elsewhere
        let found = ModelAndAdapter::find(&model, adapter.as_deref(), &downloaded_model)?;
        say_notes(&found.notes, quiet);
        (model, adapter) = (found.model_dir, found.adapter);
    }
    let found = validate(&model, adapter.as_deref());
    let failed = found.count(Status::Failed);
    match args.json {
        true => {
            let object = json!({
                "ok": failed == 0,
                "model_dir": found.model_dir,
                "checks": found.checks,
                "memory": found.memory,
            });
            print(&format!("{object:#}\n"))?;
        }
        false => print(&text(&found))?,
    }
    let folder = found.model_dir.display();
    match failed {
        0 => Ok(()),
        1 => Err(Error::input(format!("{folder}: 1 problem"))),
        failed => Err(Error::input(format!("{folder}: {failed} problems"))),
    }
}

fn text(found: &Validation) -> String {
    let mut out = String::new();
    for check in &found.checks {
        let status = match check.status {
            Status::Passed => "ok",
            Status::Warning => "warning",
            Status::Failed => "problem",
            Status::Skipped => "-",
        };
        let _ = writeln!(out, "{status:<8} {:<15} {}", check.name, check.found);
        if let Some(advice) = &check.advice {
            let _ = writeln!(out, "{:24} -> {advice}", "");
        }
    }
    if !found.memory.is_empty() {
        let _ = writeln!(out, "\n{:<9} {:<10} {:>12} {:>12}", "quantize", "recompute", "weights", "all");
        for row in &found.memory {
            let (weights, total) = (memory_text(row.weight_bytes), memory_text(row.total_bytes));
            let _ = writeln!(out, "{:<9} {:<10} {weights:>12} {total:>12}", row.quantize, row.recompute);
        }
    }
    out
}
