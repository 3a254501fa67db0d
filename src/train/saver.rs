//! What a run saves, and where: `step-NNNNNN/` with the state to go on from, `best-NNNNNN/` with what had the lowest validation
//! loss, and in the output folder itself the result.
//!
//! Folders appear whole or not at all, and an old one goes only when what takes its place is there.

use super::metrics::Event;
use super::options::FinetuneOptions;
use super::resume::{self, Progress};
use super::save::{save_adapter, save_model};
use super::trainer::Trainer;
use crate::checkpoint::AdapterConfig;
use crate::checkpoint::atomic::{self, NewFolder};
use crate::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Saves for one run.
pub(super) struct Saver {
    out_dir: PathBuf,
    model_dir: PathBuf,
    /// Settings of the adapter; `None` where the whole model is trained.
    adapter: Option<AdapterConfig>,
    /// Tells the folders of this run from those that another one left in the same place.
    run: String,
    keep_last: Option<usize>,
    keep_best: bool,
    /// What was saved last.
    last: Option<PathBuf>,
}

/// A name that no other run has.
fn new_run() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", since.as_nanos(), std::process::id())
}

impl Saver {
    pub fn new(options: &FinetuneOptions, adapter: Option<AdapterConfig>) -> Self {
        Saver {
            out_dir: options.out_dir.clone(),
            model_dir: options.model_dir.clone(),
            adapter,
            run: new_run(),
            keep_last: options.keep_last,
            keep_best: options.keeps_best(),
            last: None,
        }
    }

    /// The run's name.
    pub fn run(&self) -> &str {
        &self.run
    }

    /// What was saved last.
    pub fn last(&self) -> Option<&Path> {
        self.last.as_deref()
    }

    /// Takes up the run whose state this is, and removes what a killed process left half-written.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn begin(&mut self, progress: &Progress) -> Result<(), Error> {
        self.run.clone_from(&progress.run);
        let failed = |source| Error::Write { path: self.out_dir.clone(), source };
        fs::create_dir_all(&self.out_dir).map_err(failed)?;
        resume::clean(&self.out_dir);
        Ok(())
    }

    /// Writes what is trained and the state to go on from; removes steps beyond those to keep.
    ///
    /// # Errors
    /// A folder that cannot be written, and what the device reported.
    pub fn step(
        &mut self,
        trainer: &Trainer,
        progress: &Progress,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<PathBuf, Error> {
        let step = progress.step;
        let path = self.out_dir.join(format!("step-{step:06}"));
        // a step of this run that is there has the same bits
        if resume::run_of(&path).as_ref() != Some(&self.run) {
            self.folder(&path, |folder| {
                self.write(trainer, folder)?;
                progress.write(trainer, folder)
            })?;
        }
        let older = resume::steps_of(&self.out_dir, &self.run).into_iter().filter(|(n, _)| *n <= step);
        let mut older: Vec<PathBuf> = older.map(|(_, path)| path).collect();
        if let Some(keep) = self.keep_last {
            older.truncate(older.len().saturating_sub(keep));
            for path in older {
                remove(&path)?;
            }
        }
        self.said(step, path.clone(), on_event);
        Ok(path)
    }

    /// Writes what is trained as the best so far; what was the best before goes.
    ///
    /// # Errors
    /// As [`Saver::step`].
    pub fn best(
        &mut self,
        trainer: &Trainer,
        step: usize,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<(), Error> {
        let path = self.best_folder(step);
        self.folder(&path, |folder| self.write(trainer, folder))?;
        for (other, earlier) in resume::numbered(&self.out_dir, "best-") {
            if other != step {
                remove(&earlier)?;
            }
        }
        self.said(step, path, on_event);
        Ok(())
    }

    /// Writes the result into the output folder: what is trained, or the best of it where that is kept.
    ///
    /// # Errors
    /// As [`Saver::step`].
    pub fn result(
        &mut self,
        trainer: &Trainer,
        progress: &Progress,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<(), Error> {
        let best = progress.watch.best.filter(|_| self.keep_best);
        let found = best.map(|(step, loss)| (step, loss, self.best_folder(step)));
        match found.filter(|(step, _, folder)| *step != progress.step && folder.is_dir()) {
            Some((step, loss, folder)) => {
                self.copy(&folder)?;
                on_event(&Event::Note(format!(
                    "the result is that of step {step}, which had the lowest validation loss ({loss:.4})"
                )));
            }
            None => self.write(trainer, &self.out_dir)?,
        }
        self.said(progress.step, self.out_dir.clone(), on_event);
        Ok(())
    }

    fn best_folder(&self, step: usize) -> PathBuf {
        self.out_dir.join(format!("best-{step:06}"))
    }

    /// Writes what is trained.
    fn write(&self, trainer: &Trainer, folder: &Path) -> Result<(), Error> {
        match &self.adapter {
            Some(settings) => save_adapter(trainer, settings.clone(), folder),
            None => save_model(trainer, &self.model_dir, folder),
        }
    }

    /// Copies a folder's files into the output folder.
    fn copy(&self, from: &Path) -> Result<(), Error> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::Write { path, source }
        };
        for entry in fs::read_dir(from).map_err(failed(from))? {
            let source = entry.map_err(failed(from))?.path();
            let Some(name) = source.file_name().filter(|_| source.is_file()) else { continue };
            let to = self.out_dir.join(name);
            let mut file = fs::File::open(&source).map_err(failed(&source))?;
            atomic::write_file(&to, |out| io::copy(&mut file, out).map(|_| ())).map_err(failed(&to))?;
        }
        Ok(())
    }

    /// Makes a folder with these contents, in place of one of another run.
    fn folder(&self, path: &Path, write: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
        let failed = |source| Error::Write { path: path.to_path_buf(), source };
        let folder = NewFolder::begin(path).map_err(failed)?;
        write(folder.path())?;
        remove(path)?;
        folder.commit().map_err(failed)
    }

    fn said(&mut self, step: usize, path: PathBuf, on_event: &mut dyn FnMut(&Event)) {
        self.last = Some(path.clone());
        on_event(&Event::Saved { step, path });
    }
}

/// Removes a folder, if it is there: first its name, so that a killed process leaves no half of it.
fn remove(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: path.to_path_buf(), source };
    if !path.exists() {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}.old.tmp"));
    if hidden.exists() {
        fs::remove_dir_all(&hidden).map_err(failed)?;
    }
    fs::rename(path, &hidden).map_err(failed)?;
    fs::remove_dir_all(&hidden).map_err(failed)
}
