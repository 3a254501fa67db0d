//! `engraft finetune` and `engraft finetune_full`.

use super::args::{FinetuneArgs, FinetuneFullArgs};
use super::download::{adapter_folder, folder_of, model_folder, settings_folder};
use super::named_data::NamedData;
use super::progress::{Progress, ProgressMode};
use super::tui::{self, Tui};
use crate::error::Error;
use crate::hub::{self, WeightFiles};
use crate::train::finetune::Finetune;
use crate::train::metrics::Event;
use crate::train::options::{FinetuneOptions, Method, WeightInit};
use crate::train::run_plan::check_without_weights;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Trains an adapter.
pub fn lora(args: FinetuneArgs, quiet: bool) -> Result<(), Error> {
    let (tui, named) = (args.training.logging.tui, NamedData::of(&args.data)?);
    run(args.resolve()?, named, quiet, tui)
}

/// Trains every weight.
pub fn full(args: FinetuneFullArgs, quiet: bool) -> Result<(), Error> {
    let (tui, named) = (args.training.logging.tui, NamedData::of(&args.data)?);
    run(args.resolve()?, named, quiet, tui)
}

fn run(mut options: FinetuneOptions, named: Option<NamedData>, quiet: bool, tui: bool) -> Result<(), Error> {
    let model = options.model_dir.clone();
    let remote = hub::is_remote(&model)?;
    let needs_weights = options.method != (Method::Full { init: WeightInit::Random });
    options.model_dir = match (remote, needs_weights) {
        (false, _) => model_folder(&model, quiet)?,
        (true, true) => folder_of(&model, WeightFiles::Announced, quiet)?,
        (true, false) => settings_folder(&model, quiet)?,
    };
    options.init_adapter = adapter_folder(options.init_adapter.as_deref(), quiet)?;
    if let Some(named) = named {
        named.resolve(&mut options.data, quiet)?;
    }
    if remote {
        // nobody shall wait for gigabytes to learn of a misspelt file
        check_without_weights(&options)?;
        if needs_weights {
            options.model_dir = model_folder(&model, quiet)?;
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut show: Box<dyn FnMut(&Event)> = if tui {
        let mut tui = Tui::new(&options.out_dir, Arc::clone(&stop), quiet)?;
        Box::new(move |event| tui.show(event))
    } else {
        let mut progress = Progress::new(ProgressMode::detect(quiet)).every(options.log_interval);
        Box::new(move |event| progress.show(event))
    };
    let when = Arc::new(Mutex::new("before the first step"));
    stop_on_signal(&stop, &when);
    let watched = |event: &Event| {
        let now = match event {
            Event::Started(_) | Event::Step(_) | Event::Evaluation(_) => Some("after this step"),
            Event::Validating(_) => Some("in this validation"),
            _ => None,
        };
        if let Some(now) = now {
            *when.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }
        show(event);
    };
    Finetune::new(options).on_event(watched).stop_when(stop).run()?;
    Ok(())
}

/// Sets the flag at Ctrl-C (or the system's request to end): the run finishes what it is at and saves; `when` says what that is. A
/// second one ends it at once.
fn stop_on_signal(stop: &Arc<AtomicBool>, when: &Arc<Mutex<&'static str>>) {
    let (stop, when) = (Arc::clone(stop), Arc::clone(when));
    // where a handler cannot be set, the signal ends the program as before
    let _ = ctrlc::set_handler(move || {
        let first = !stop.load(Ordering::Relaxed);
        tui::interrupt(&stop);
        // the live view says it itself
        if first && !tui::is_taken() {
            let when = when.lock().unwrap_or_else(PoisonError::into_inner);
            eprintln!("stopping {when}; once more to stop at once");
        }
    });
}
