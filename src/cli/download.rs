//! `engraft download`, and models by name wherever a command takes a folder.

use super::args::DownloadArgs;
use super::progress::ProgressMode;
use super::say_notes;
use crate::error::Error;
use crate::hub::{self, Client, Download, DownloadEvent, HubOptions, Listing, WeightFiles, models_folder};
use crate::train::adapter_place::ModelAndAdapter;
use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Downloads, and prints the folder on standard output.
///
/// # Errors
/// See [`Download::run`].
pub fn run(args: DownloadArgs, quiet: bool) -> Result<(), Error> {
    let name = args.model()?;
    let folder = match args.out_dir {
        Some(folder) => folder,
        None => models_folder()?.join(name.folder()),
    };
    let report = Report::new(quiet);
    let download = Download { name, folder: folder.clone(), weights: WeightFiles::Fetched };
    let client = Client::new(HubOptions::from_environment()?);
    let outcome = download.run(&client, &|event| report.show(event))?;
    report.line(&match outcome.kept == outcome.files {
        true => format!("all {} files were here and are right", outcome.files),
        false => format!("{} files, {} of them new", outcome.files, outcome.files - outcome.kept),
    });
    println!("{}", folder.display());
    Ok(())
}

/// The folder of the model or adapter that a command was given: that folder, or what is meant by `ORG/NAME`, downloaded
/// where it is not here yet.
///
/// # Errors
/// See [`hub::model_folder`].
pub fn model_folder(model: &Path, quiet: bool) -> Result<PathBuf, Error> {
    folder_of(model, WeightFiles::Fetched, quiet)
}

/// The same of an adapter, where there is one.
///
/// # Errors
/// See [`hub::model_folder`].
pub fn adapter_folder(adapter: Option<&Path>, quiet: bool) -> Result<Option<PathBuf>, Error> {
    adapter.map(|adapter| model_folder(adapter, quiet)).transpose()
}

/// The same of a model and, where there is one, its adapter, which may stand in the model's place.
///
/// # Errors
/// See [`hub::model_folder`] and [`ModelAndAdapter::find`].
pub fn model_and_adapter(
    model: &Path,
    adapter: Option<&Path>,
    quiet: bool,
) -> Result<ModelAndAdapter, Error> {
    let model = model_folder(model, quiet)?;
    let adapter = adapter_folder(adapter, quiet)?;
    // a path may look like a name on the Hub, so a base is never downloaded for it
    let found = ModelAndAdapter::find(&model, adapter.as_deref(), &hub::downloaded_model)?;
    say_notes(&found.notes, quiet);
    Ok(found)
}

/// The same of a model whose weights do not matter: they are not downloaded.
///
/// # Errors
/// See [`hub::model_folder`].
pub fn settings_folder(model: &Path, quiet: bool) -> Result<PathBuf, Error> {
    folder_of(model, WeightFiles::Ignored, quiet)
}

/// The same of any model, with its weights or without.
///
/// # Errors
/// See [`hub::model_folder`].
pub fn folder_of(model: &Path, weights: WeightFiles, quiet: bool) -> Result<PathBuf, Error> {
    let report = Report::new(quiet);
    let mut found = |name: &hub::RepoName, folder: &Path, here: bool| {
        let folder = folder.display();
        report.line(&match here {
            true => format!("{name} is {folder}"),
            false if weights == WeightFiles::Fetched => {
                format!("{name} is no folder here: downloading it to {folder}")
            }
            false => format!("{name} is no folder here: downloading it, but for its weights, to {folder}"),
        });
    };
    Ok(hub::model_folder(model, weights, &mut found, &|event| report.show(event))?)
}

/// Shows a download on standard error: a bar for each file on a terminal, elsewhere a line.
pub(super) struct Report {
    mode: ProgressMode,
    bars: MultiProgress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listing: Option<Listing>,
    open: HashMap<usize, ProgressBar>,
    begun: Vec<usize>,
}

impl Report {
    pub(super) fn new(quiet: bool) -> Self {
        let mode = ProgressMode::detect(quiet);
        Report { mode, bars: MultiProgress::new(), state: Mutex::default() }
    }

    pub(super) fn line(&self, text: &str) {
        match self.mode {
            ProgressMode::Silent => {}
            ProgressMode::Lines => eprintln!("{text}"),
            // a closed terminal must not end a download
            ProgressMode::Bar => drop(self.bars.println(text)),
        }
    }

    pub(super) fn show(&self, event: DownloadEvent) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let file = |index: usize| {
            let file = state.listing.as_ref().and_then(|listing| listing.files.get(index));
            file.map_or((String::new(), 0), |file| (file.name.clone(), file.size))
        };
        match event {
            DownloadEvent::Listed(listing) => {
                let (files, size) = (listing.files.len(), BinaryBytes(listing.size()));
                if !listing.commit.is_empty() {
                    self.line(&format!("commit {}: {files} files, {size}", &listing.commit));
                }
                state.listing = Some(listing);
            }
            DownloadEvent::Kept { file: index } => self.line(&format!("{}: is here", file(index).0)),
            DownloadEvent::At { file: index, bytes } => {
                let (name, size) = file(index);
                if !state.begun.contains(&index) {
                    state.begun.push(index);
                    if bytes > 0 && bytes < size {
                        self.line(&format!(
                            "{name}: goes on at {} of {}",
                            BinaryBytes(bytes),
                            BinaryBytes(size)
                        ));
                    }
                }
                if self.mode == ProgressMode::Bar {
                    let bar = state.open.entry(index).or_insert_with(|| self.bar(name, size));
                    bar.set_position(bytes);
                }
            }
            DownloadEvent::Retry { file: index, reason, pause } => {
                let name = index.map_or(String::new(), |index| file(index).0 + ": ");
                self.line(&format!("{name}{reason}; again in {:.0} s", pause.as_secs_f64()));
            }
            DownloadEvent::Done { file: index } => {
                if let Some(bar) = state.open.remove(&index) {
                    bar.finish_and_clear();
                }
                let (name, size) = file(index);
                self.line(&format!("{name}: {}", BinaryBytes(size)));
            }
        }
    }

    fn bar(&self, name: String, size: u64) -> ProgressBar {
        let template = "{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  ETA {eta}  {msg}";
        // the template is a constant, so the fallback is never seen
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(size).with_style(style.progress_chars("=> ")).with_message(name);
        self.bars.add(bar)
    }
}
