//! `engraft finetune` and `engraft finetune_full`.

use super::args::{FinetuneArgs, FinetuneFullArgs};
use super::progress::{Progress, ProgressMode};
use crate::error::Error;
use crate::train::finetune::Finetune;
use crate::train::options::FinetuneOptions;

/// Trains an adapter.
pub fn lora(args: FinetuneArgs, quiet: bool) -> Result<(), Error> {
    run(args.resolve()?, quiet)
}

/// Trains every weight.
pub fn full(args: FinetuneFullArgs, quiet: bool) -> Result<(), Error> {
    run(args.resolve()?, quiet)
}

fn run(options: FinetuneOptions, quiet: bool) -> Result<(), Error> {
    let mut progress = Progress::new(ProgressMode::detect(quiet));
    Finetune::new(options).on_event(|event| progress.show(event)).run()?;
    Ok(())
}
