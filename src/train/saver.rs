//! What a run saves, and where: `step-NNNNNN/` with the state to go on from, `best-NNNNNN/` with what had the lowest validation
//! loss, and in the output folder itself the result.
//!
//! Folders appear whole or not at all, and an old one goes only when what takes its place is there.

use super::metrics::Event;
use super::options::FinetuneOptions;
use super::out_dir;
use super::resume::{self, FINISHED_FILE, Progress};
use super::run_folder::read_json;
use super::save::{save_adapter, save_model};
use super::trainer::Trainer;
use crate::checkpoint::AdapterConfig;
use crate::checkpoint::atomic::{self, NewFolder};
use crate::data::PromptForm;
use crate::error::Error;
use serde_json::json;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// In a folder with the best so far: of which run and step it is.
const BEST_FILE: &str = "best.json";

/// Saves for one run.
pub(super) struct Saver {
    out_dir: PathBuf,
    model_dir: PathBuf,
    /// Settings of the adapter; `None` where the whole model is trained.
    adapter: Option<AdapterConfig>,
    /// What wrote the prompts, so that who uses what is saved can ask alike.
    form: PromptForm,
    /// Tells the folders of this run from those that another one left in the same place.
    run: String,
    keep_last: Option<usize>,
    keep_best: bool,
    /// The step of the best so far.
    best: Option<usize>,
    /// What was saved last.
    last: Option<PathBuf>,
}

/// A name that no other run has.
fn new_run() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", since.as_nanos(), std::process::id())
}

impl Saver {
    pub fn new(options: &FinetuneOptions, adapter: Option<AdapterConfig>, form: PromptForm) -> Self {
        Saver {
            out_dir: options.out_dir.clone(),
            model_dir: options.model_dir.clone(),
            adapter,
            form,
            run: new_run(),
            keep_last: options.keep_last,
            keep_best: options.keeps_best(),
            best: None,
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

    /// Takes up the run whose state this is, saved in `from` where it was saved: sets an earlier run aside, removes what a killed
    /// process left half-written and the run's later steps, which are made again, and brings the best so far along where it lies in
    /// another folder.
    ///
    /// # Errors
    /// A folder that cannot be made or removed.
    pub fn begin(&mut self, progress: &Progress, from: Option<&Path>) -> Result<(), Error> {
        self.run.clone_from(&progress.run);
        let failed = |source| Error::Write { path: self.out_dir.clone(), source };
        fs::create_dir_all(&self.out_dir).map_err(failed)?;
        out_dir::set_aside(&self.out_dir, &self.run)?;
        resume::clean(&self.out_dir);
        let finished = self.out_dir.join(FINISHED_FILE);
        if finished.exists() {
            // steps that it has made are made again
            atomic::remove_file(&finished).map_err(|source| Error::Write { path: finished, source })?;
        }
        for (step, path) in resume::steps_of(&self.out_dir, &self.run) {
            if step > progress.step {
                remove(&path)?;
            }
        }
        self.best = progress.watch.best.map(|(step, _)| step);
        let best = self.best.map(|step| self.best_folder(step));
        let earlier = best.as_ref().and_then(|best| Some(from?.parent()?.join(best.file_name()?)));
        if let (Some(best), Some(earlier)) = (best, earlier)
            && !self.is_own_best(&best)
            && self.is_own_best(&earlier)
        {
            self.folder(&best, |folder| copy_files(&earlier, folder, &[]))?;
        }
        Ok(())
    }

    /// Writes what is trained and the state to go on from; removes steps beyond those to keep, and what only they needed.
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
        match resume::run_of(&path).as_ref() == Some(&self.run) {
            // a step of this run that is there has the same bits; what is done after it may have changed
            true if resume::is_unfinished(&path) || resume::is_autosave(&path) => {
                progress.write_counters(&path)?;
            }
            true => (),
            false => self.folder(&path, |folder| {
                self.write(trainer, folder)?;
                progress.write(trainer, folder)
            })?,
        }
        let until = resume::steps_of(&self.out_dir, &self.run).into_iter().filter(|(n, _)| *n <= step);
        let (mut outdone, asked): (Vec<_>, Vec<_>) =
            until.partition(|(n, path)| *n < step && resume::is_autosave(path));
        if let Some(keep) = self.keep_last {
            let many = asked.len().saturating_sub(keep);
            outdone.extend(asked.into_iter().take(many));
        }
        for (_, path) in outdone {
            remove(&path)?;
        }
        self.remove_outdone(None)?;
        self.said(step, path.clone(), on_event);
        Ok(path)
    }

    /// Writes what is trained as the best so far; what was the best before goes, unless it is that of step `kept` or
    /// a saved step still needs it.
    ///
    /// # Errors
    /// As [`Saver::step`].
    pub fn best(
        &mut self,
        trainer: &Trainer,
        step: usize,
        kept: Option<usize>,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<(), Error> {
        let path = self.best_folder(step);
        self.folder(&path, |folder| {
            self.write(trainer, folder)?;
            let file = folder.join(BEST_FILE);
            let text = json!({ "run": self.run, "step": step }).to_string();
            atomic::write_file(&file, |out| out.write_all(text.as_bytes()))
                .map_err(|source| Error::Write { path: file.clone(), source })
        })?;
        self.best = Some(step);
        self.remove_outdone(kept)?;
        self.said(step, path, on_event);
        Ok(())
    }

    /// Removes what was the best once, but for that of step `kept` and those that a saved step would go on with.
    fn remove_outdone(&self, kept: Option<usize>) -> Result<(), Error> {
        let steps = resume::steps_of(&self.out_dir, &self.run);
        let needed: Vec<usize> =
            steps.iter().filter_map(|(_, path)| resume::best_of(path)).chain(kept).chain(self.best).collect();
        for (step, folder) in resume::numbered(&self.out_dir, "best-") {
            if !needed.contains(&step) && self.is_own_best(&folder) {
                remove(&folder)?;
            }
        }
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
        match found.filter(|(step, _, _)| *step != progress.step) {
            Some((step, loss, folder)) if self.is_own_best(&folder) => {
                copy_files(&folder, &self.out_dir, &[BEST_FILE])?;
                on_event(&Event::Note(format!(
                    "the result is that of step {step}, which had the lowest validation loss ({loss:.4})"
                )));
            }
            Some((step, loss, folder)) => {
                self.write(trainer, &self.out_dir)?;
                on_event(&Event::Note(format!(
                    "{} is not there: the result is that of the last step, though step {step} had a lower validation \
                     loss ({loss:.4})",
                    folder.display()
                )));
            }
            None => self.write(trainer, &self.out_dir)?,
        }
        self.said(progress.step, self.out_dir.clone(), on_event);
        Ok(())
    }

    /// Removes what the program saved on its own account: the run is done, and nobody goes on from it.
    pub fn remove_autosaves(&self) {
        let steps = resume::steps_of(&self.out_dir, &self.run).into_iter().map(|(_, path)| path);
        // the result is there: what cannot be removed does no harm
        steps.filter(|path| resume::is_autosave(path)).for_each(|path| drop(remove(&path)));
        let _ = self.remove_outdone(None);
    }

    fn best_folder(&self, step: usize) -> PathBuf {
        self.out_dir.join(format!("best-{step:06}"))
    }

    /// Writes what is trained.
    fn write(&self, trainer: &Trainer, folder: &Path) -> Result<(), Error> {
        match &self.adapter {
            Some(settings) => save_adapter(trainer, settings.clone(), folder)?,
            None => save_model(trainer, &self.model_dir, folder)?,
        }
        Ok(self.form.write(folder)?)
    }

    /// Whether a folder holds the best of this run.
    fn is_own_best(&self, folder: &Path) -> bool {
        read_json(&folder.join(BEST_FILE)).is_some_and(|best| best["run"] == self.run.as_str())
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
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: path.to_path_buf(), source };
    if !path.exists() {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}.old.tmp"));
    if hidden.exists() {
        atomic::remove_folder(&hidden).map_err(failed)?;
    }
    atomic::rename(path, &hidden).map_err(failed)?;
    // where it cannot go now, the next start removes it
    let _ = atomic::remove_folder(&hidden);
    Ok(())
}

/// Copies a folder's files into another, but for those left out.
fn copy_files(from: &Path, to: &Path, left_out: &[&str]) -> Result<(), Error> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Write { path, source }
    };
    for entry in fs::read_dir(from).map_err(failed(from))? {
        let source = entry.map_err(failed(from))?.path();
        let Some(name) = source.file_name().filter(|_| source.is_file()) else { continue };
        if left_out.iter().any(|left| name == *left) {
            continue;
        }
        let to = to.join(name);
        let mut file = fs::File::open(&source).map_err(failed(&source))?;
        atomic::write_file(&to, |out| io::copy(&mut file, out).map(|_| ())).map_err(failed(&to))?;
    }
    Ok(())
}
