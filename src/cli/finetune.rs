//! `engraft finetune` and `engraft finetune_full`.

use super::args::{Exit, FinetuneArgs, FinetuneFullArgs};
use super::download::{adapter_folder, model_folder};
use super::progress::{Progress, ProgressMode};
use crate::error::Error;
use crate::train::finetune::Finetune;
use crate::train::options::FinetuneOptions;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Trains an adapter.
pub fn lora(args: FinetuneArgs, quiet: bool) -> Result<(), Error> {
    run(args.resolve()?, quiet)
}

/// Trains every weight.
pub fn full(args: FinetuneFullArgs, quiet: bool) -> Result<(), Error> {
    run(args.resolve()?, quiet)
}

fn run(mut options: FinetuneOptions, quiet: bool) -> Result<(), Error> {
    options.model_dir = model_folder(&options.model_dir, quiet)?;
    options.init_adapter = adapter_folder(options.init_adapter.as_deref(), quiet)?;
    let mut progress = Progress::new(ProgressMode::detect(quiet));
    Finetune::new(options).on_event(|event| progress.show(event)).stop_when(stop_flag()).run()?;
    Ok(())
}

/// Set by Ctrl-C (or the system's request to end): the run finishes its step and saves. A second one ends it at once.
fn stop_flag() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    // where a handler cannot be set, the signal ends the program as before
    let _ = ctrlc::set_handler(move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(Exit::Stopped as u8));
        }
        eprintln!("stopping after this step; once more to stop at once");
    });
    flag
}
