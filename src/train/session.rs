//! The steps of a run, on a device that holds the network: train, evaluate, save, end.

use super::autosave::Autosave;
use super::chosen::Chosen;
use super::disk::SaveSizes;
use super::finetune::{FinetuneReport, Prepared};
use super::ledger::{Ledger, Seen, Submitted};
use super::logging::RunLog;
use super::loss_scale::{LossScale, LossScaleError};
use super::metrics::{EvalRecord, Event, RunSummary, SampleRecord, ValidationProgress};
use super::options::FinetuneOptions;
use super::resume::{Progress, Unfinished};
use super::run_folder::RunFacts;
use super::sampler::Sampler;
use super::save::save_hyperparameters;
use super::saver::Saver;
use super::schedule::Schedule;
use super::stopping::End;
use super::trainer::{PendingLoss, PendingStep, Trainer};
use crate::data::{MicroBatch, Sample, epoch_order};
use crate::disk::free_space;
use crate::error::Error;
use crate::ops::adamw::Hyper;
use crate::plan::MemoryReport;
use crate::stop::{StopFlag, Stopped};
use std::path::Path;
use std::time::{Duration, Instant};

/// A run under way.
pub(super) struct Session<'r, 'e> {
    pub options: &'r FinetuneOptions,
    pub prepared: &'r Prepared,
    pub trainer: Trainer,
    /// Writes texts at evaluations, where there is something to continue.
    pub sampler: Option<Sampler<'r>>,
    pub saver: &'r mut Saver,
    pub sizes: SaveSizes,
    pub autosave: Autosave,
    pub schedule: Schedule,
    pub stop: StopFlag,
    pub on_event: &'r mut (dyn FnMut(&Event) + 'e),
}

impl Session<'_, '_> {
    /// Runs to the end, from the state in the folder `from` where there is one.
    ///
    /// # Errors
    /// What the device and the file system report, gradients that are not finite, [`Error::Stopped`].
    pub fn run(mut self, from: Option<&Path>, mut notes: Vec<String>) -> Result<FinetuneReport, Error> {
        let data = &self.prepared.data;
        let steps = self.prepared.steps;
        let mut progress = Progress::new(
            self.options,
            data,
            LossScale::new(self.trainer.network().activations),
            self.saver.run().to_owned(),
        );
        if let Some(folder) = from {
            progress = Progress::read(folder, self.options, data)?;
            Progress::load(folder, &mut self.trainer, progress.micro_batches)?;
            notes.push(format!("going on after step {} from {}", progress.step, folder.display()));
        }
        progress.kernels = Some(Chosen::of(self.trainer.gpu()));
        self.saver.begin(&progress, from)?;
        let network = self.trainer.network();
        save_hyperparameters(self.options, steps, self.trainer.gpu(), network, self.saver.run())?;
        let (out_dir, summary) = (&self.options.out_dir, self.summary());
        RunFacts::new(out_dir, from.is_some(), &summary, &data.summary, &notes).write(out_dir)?;
        let loggers = &self.options.logger_name;
        let (metrics, losses) = match from {
            Some(folder) => {
                RunLog::resume(out_dir, folder.parent(), loggers, |line| progress.has_written(line))?
            }
            None => (RunLog::create(out_dir, loggers)?, Vec::new()),
        };
        notes.into_iter().for_each(|note| self.emit(Event::Note(note)));
        self.emit(Event::Started(summary));

        let mut ledger = Ledger {
            metrics,
            scale: progress.scale.clone(),
            losses,
            applied: progress.applied,
            good: None,
            told_of_loss: false,
            start: started(progress.elapsed_s),
            since: Instant::now(),
            lagging: false,
        };
        let per_epoch = self.steps_per_epoch();
        let mut order = Vec::new();
        let mut waiting: Option<Submitted> = None;
        // a run that had ended before has nothing left but its result
        let mut end = progress.ended(self.options, steps);
        if self.options.initial_validation && progress.step == 0 && !data.validation.is_empty() {
            self.evaluate(&mut progress, &mut ledger, self.options.eval_max_iters, None)?;
            if progress.unfinished.is_some() {
                return Err(Stopped.into());
            }
            ledger.since = Instant::now();
        }
        if progress.unfinished.is_some() {
            end = self.after_step(&mut progress, &mut ledger, &mut waiting, end)?;
        }
        let first = progress.step;
        while end.is_none() {
            let step = progress.step;
            let (epoch, within) = (step / per_epoch, step % per_epoch);
            if within == 0 || order.is_empty() {
                order = self.order(epoch);
            }
            let begin = within * self.options.batch_size;
            let window = self.window(&order, step);
            let samples: Vec<Sample> = window.iter().map(|&i| data.train.get(i)).collect();
            let rate = (self.schedule)(step);
            let before = Seen { tokens: progress.tokens, micro_batches: self.trainer.micro_batches() };
            let scale = ledger.scale.scale();
            let accumulated = self.accumulate(&samples, &ledger);
            // the outcome of a step is read while the device works on the gradients of the next one, whose update is not submitted
            // before it is good: after gradients that are not finite, the parameters are those of the step before
            let settled =
                waiting.take().map_or(Ok(()), |earlier| self.settle(earlier, &progress, &mut ledger));
            // the first error is the one to tell
            accumulated?;
            settled?;
            if ledger.scale.scale() != scale {
                // it seldom changes: these gradients are made again, with the new one
                self.trainer.go_on_after(before.micro_batches);
                self.accumulate(&samples, &ledger)?;
            }
            let pending = self.update(rate, &ledger)?;
            if step == first {
                // by now most of what the run needs is compiled
                self.trainer.gpu().keep_pipelines();
            }
            ledger.applied += 1;
            progress.step += 1;
            let count: usize = samples.iter().map(|s| s.tokens.len()).sum();
            progress.tokens += count;
            waiting = Some(Submitted {
                pending,
                step: progress.step,
                epoch: epoch as f64 + (begin + window.len()) as f64 / order.len() as f64,
                learning_rate: rate,
                tokens: count,
                labels: samples.iter().map(|s| s.label_tokens()).sum(),
                before,
            });
            progress.elapsed_s = ledger.start.elapsed().as_secs_f64();
            end = progress.ended(self.options, steps);
            end = self.after_step(&mut progress, &mut ledger, &mut waiting, end)?;
        }
        if let Some(note) = end.and_then(|end| end.note(&progress, self.options, steps)) {
            self.emit(Event::Note(note));
        }
        self.saver.result(&self.trainer, &progress, self.on_event).map_err(|error| match error {
            error if error.is_unwritten() => {
                let saved = self.saver.last().filter(|path| path.is_dir()).map(Path::to_path_buf);
                Error::Unsaved { source: Box::new(error), saved }
            }
            error => error,
        })?;
        if end == Some(End::Steps) {
            progress.elapsed_s = ledger.start.elapsed().as_secs_f64();
            if let Err(error) = progress.write_finished(out_dir) {
                self.emit(Event::Note(format!(
                    "{error} The result is there, but --resume will not know of it"
                )));
            }
            self.saver.remove_autosaves();
        }
        let Ledger { losses, start, .. } = ledger;
        let seconds = start.elapsed().as_secs_f64();
        let (done, tokens) = (progress.step, progress.tokens);
        self.emit(Event::Finished { steps: done, tokens, elapsed_s: seconds });
        Ok(FinetuneReport {
            steps: done,
            tokens,
            losses,
            val_loss: progress.evaluated.as_ref().map(|record| record.val_loss),
            seconds,
            out_dir: self.options.out_dir.clone(),
            memory: self.memory(),
        })
    }

    /// What is due after a step, or was cut short by a request to stop when the run was here before: evaluates, saves. `waiting` is a
    /// step whose outcome is not yet known. Gives why the run ends here, if it does.
    ///
    /// # Errors
    /// As [`Session::run`].
    fn after_step(
        &mut self,
        progress: &mut Progress,
        ledger: &mut Ledger,
        waiting: &mut Option<Submitted>,
        mut end: Option<End>,
    ) -> Result<Option<End>, Error> {
        let (done, steps) = (progress.step, self.prepared.steps);
        let due = |interval: Option<usize>| interval.is_some_and(|n| done.is_multiple_of(n));
        let last = end.is_some() && self.options.final_validation;
        let has_rows = !self.prepared.data.validation.is_empty();
        let evaluates = has_rows && (last || due(self.options.eval_interval));
        let mut asked_to_stop = self.stop.is_set();
        let autosaves = self.autosave.is_due();
        let saves = end.is_some() || asked_to_stop || due(self.options.save_interval) || autosaves;
        if (evaluates || saves)
            && let Some(submitted) = waiting.take()
        {
            self.settle(submitted, progress, ledger)?;
        }
        // what is saved already waits for this evaluation
        let taken_up = progress.unfinished.is_some();
        let watch = progress.watch.clone();
        // an evaluation that only the end asked for is none where the run goes on
        let interval = self.options.eval_interval;
        let extra = |end| end == Some(End::Time) && !due(interval);
        if evaluates {
            // the best is found among losses of the same rows
            let rows = self.options.eval_max_iters.filter(|_| !last || self.options.keeps_best());
            // where the state goes on without it, what that takes for the best stays
            let kept = if extra(end) { watch.best.map(|(step, _)| step) } else { None };
            self.evaluate(progress, ledger, rows, kept)?;
            asked_to_stop |= self.stop.is_set();
        } else {
            progress.unfinished = None;
        }
        let cut = progress.unfinished.is_some();
        if evaluates && !cut {
            end = end.or_else(|| progress.ended(self.options, steps));
        }
        let stopped = cut || (asked_to_stop && end.is_none());
        let saves = saves || stopped || end.is_some();
        if saves {
            progress.applied = ledger.applied;
            progress.micro_batches = self.trainer.micro_batches();
            progress.elapsed_s = ledger.start.elapsed().as_secs_f64();
            progress.scale = ledger.scale.clone();
        }
        // a run that ended early can go on, where the options let it
        let early = end.is_some_and(|end| end != End::Steps);
        let asked = stopped || early || taken_up || due(self.options.save_interval);
        if asked || (autosaves && end.is_none()) {
            let mut state = progress.clone();
            state.autosaved = !asked;
            if extra(end) {
                state.watch = watch;
                state.unfinished = state.unfinished.map(|_| Unfinished::Evaluation);
            }
            if !stopped {
                self.save(&state)?;
            } else {
                let folder = self.saver.step(&self.trainer, &state, self.on_event)?;
                let (step, unfinished) = (progress.step, cut);
                return Err(Error::Stopped { step, steps, unfinished, folder });
            }
        }
        if evaluates || saves {
            ledger.since = Instant::now();
        }
        Ok(end)
    }

    /// Saves a step on the way. Where it has no room that is said, and the run goes on to its result.
    ///
    /// # Errors
    /// What the device reported.
    fn save(&mut self, state: &Progress) -> Result<(), Error> {
        let start = Instant::now();
        let saved = match self.sizes.lacks_room(free_space(&self.options.out_dir)) {
            Some(reason) => Err(reason),
            None => match self.saver.step(&self.trainer, state, self.on_event) {
                Err(error) if !error.is_unwritten() => return Err(error),
                saved => saved.map_err(|error| error.to_string()),
            },
        };
        self.autosave.saved(start.elapsed());
        if let Err(reason) = saved {
            let step = state.step;
            self.emit(Event::Note(format!("the run goes on, but step {step} is not saved: {reason}")));
        }
        Ok(())
    }

    /// Waits for a step and writes it down.
    ///
    /// # Errors
    /// [`Error::Diverged`], after what was trained before the step is saved; what the device reported.
    fn settle(
        &mut self,
        submitted: Submitted,
        progress: &Progress,
        ledger: &mut Ledger,
    ) -> Result<(), Error> {
        let (step, before) = (submitted.step, submitted.before);
        match ledger.settle(submitted, self.on_event) {
            Err(Error::LossScale(source)) => Err(self.diverged(step, source, before, progress, ledger)),
            settled => settled,
        }
    }

    /// Saves what the parameters were before `step`, and still are: an update with gradients that are not finite changes nothing, and
    /// none was submitted after it.
    fn diverged(
        &mut self,
        step: usize,
        source: LossScaleError,
        before: Seen,
        progress: &Progress,
        ledger: &Ledger,
    ) -> Error {
        let mut saved = None;
        // an adapter that nothing was applied to is none, and where the rows that it was made of have no loss any more, it is not good
        if ledger.applied > 0 && ledger.good.is_none_or(|step| self.has_loss(step)) {
            let mut state = progress.clone();
            (state.step, state.applied) = (step - 1, ledger.applied);
            (state.tokens, state.micro_batches) = (before.tokens, before.micro_batches);
            state.elapsed_s = ledger.start.elapsed().as_secs_f64();
            state.scale = ledger.scale.clone();
            (state.unfinished, state.autosaved) = (None, false);
            match self.saver.step(&self.trainer, &state, self.on_event) {
                Ok(folder) => saved = Some(folder),
                Err(error) => self.emit(Event::Note(format!("step {} is not saved: {error}", step - 1))),
            }
        }
        Error::Diverged { step, source, saved, method: self.options.method }
    }

    /// Whether the samples of a step have a finite loss with what is trained now.
    fn has_loss(&mut self, step: usize) -> bool {
        let Some(before) = step.checked_sub(1) else { return true };
        let train = &self.prepared.data.train;
        let order = self.order(before / self.steps_per_epoch());
        let samples: Vec<Sample> = self.window(&order, before).iter().map(|&i| train.get(i)).collect();
        let batches = samples.chunks(self.options.micro_batch()).map(MicroBatch::from_samples);
        // what the device reports is not this step's fault
        self.trainer.evaluate(batches).map_or(true, f64::is_finite)
    }

    fn steps_per_epoch(&self) -> usize {
        self.prepared.data.train.len().div_ceil(self.options.batch_size)
    }

    /// The samples of the step that follows so many, in the order of its epoch.
    fn window<'o>(&self, order: &'o [usize], done: usize) -> &'o [usize] {
        let begin = done % self.steps_per_epoch() * self.options.batch_size;
        &order[begin..(begin + self.options.batch_size).min(order.len())]
    }

    /// The order of the training samples in an epoch.
    fn order(&self, epoch: usize) -> Vec<usize> {
        let (samples, o) = (self.prepared.data.train.len(), self.options);
        epoch_order(samples, o.data_seed(), epoch as u64, o.data.shuffle)
    }

    /// Device memory by kind.
    fn memory(&self) -> MemoryReport {
        let (own, beside) = (self.trainer.memory(), self.sampler.as_ref().map(Sampler::memory));
        let beside = beside.unwrap_or_default();
        MemoryReport {
            inputs: own.inputs + beside.inputs,
            activations: own.activations + beside.activations,
            parameters: own.parameters + beside.parameters,
            ..own
        }
    }

    fn summary(&self) -> RunSummary {
        let (data, gpu) = (&self.prepared.data, self.trainer.gpu());
        RunSummary {
            steps: self.prepared.steps,
            all_steps: data.train.len().div_ceil(self.options.batch_size) * self.options.epochs,
            epochs: self.options.epochs,
            train_samples: data.train.len(),
            val_samples: data.validation.len(),
            trainable_parameters: self.trainer.optimiser().space().elements() as usize,
            base_parameters: self.prepared.config.parameter_count() as usize,
            device: gpu.info().name.clone(),
            software_device: gpu.info().is_software(),
            device_bytes: self.memory().total(),
            memory: self.memory(),
        }
    }

    /// Loss on the validation rows, or the first so many micro-batches of them; keeps what is trained where it is the best so
    /// far, and the best of step `kept` beside it. What a request to stop leaves undone is in `progress.unfinished`, which also says
    /// what is left to do.
    fn evaluate(
        &mut self,
        progress: &mut Progress,
        ledger: &mut Ledger,
        micro_batches: Option<usize>,
        kept: Option<usize>,
    ) -> Result<(), Error> {
        let step = progress.step;
        if progress.unfinished != Some(Unfinished::Samples) {
            progress.unfinished = Some(Unfinished::Evaluation);
            let Some(loss) = self.validate(step, micro_batches)? else { return Ok(()) };
            let record = EvalRecord::new(step, loss);
            ledger.log(&record, self.on_event);
            progress.evaluated = Some(record.clone());
            self.emit(Event::Evaluation(record));
            if !loss.is_finite() && !ledger.told_of_loss {
                ledger.told_of_loss = true;
                self.emit(Event::Note(without_loss(step)));
            }
            let best = progress.watch.observe(step, loss, self.options.early_stopping_min_delta);
            if best && self.options.keeps_best() {
                match self.saver.best(&self.trainer, step, kept, self.on_event) {
                    Err(error) if error.is_unwritten() => {
                        let note =
                            format!("the run goes on, but step {step} is not kept as the best: {error}");
                        self.emit(Event::Note(note));
                    }
                    kept => kept?,
                }
            }
            progress.unfinished = Some(Unfinished::Samples);
        }
        if let Some(sampler) = &self.sampler {
            let Some(texts) = sampler.write(&self.trainer, &self.stop)? else { return Ok(()) };
            for (prompt, text) in texts {
                let record = SampleRecord { step, prompt, text };
                ledger.log(&record, self.on_event);
                self.emit(Event::Sample(record));
            }
        }
        progress.unfinished = None;
        Ok(())
    }

    /// Mean loss of the label tokens of the validation rows; `None` where a request to stop came before the last of them.
    fn validate(&mut self, step: usize, micro_batches: Option<usize>) -> Result<Option<f64>, Error> {
        let (rows, size) = (&self.prepared.data.validation, self.options.micro_batch());
        let all = micro_batches.map_or(rows.len(), |n| n.saturating_mul(size).min(rows.len()));
        let labels: usize = (0..all).map(|i| rows.label_count(i)).sum();
        // one micro-batch ahead of the loss that is waited for
        let (start, mut total, mut pending) = (Instant::now(), 0.0, None::<PendingLoss>);
        for first in (0..all).step_by(size) {
            if self.stop.is_set() {
                return Ok(None);
            }
            let done = all.min(first + size);
            let batch = MicroBatch::from_samples((first..done).map(|i| rows.get(i)));
            let before = pending.replace(self.trainer.loss_later(&batch)?);
            total += before.map_or(Ok(0.0), PendingLoss::sum)?;
            let elapsed_s = start.elapsed().as_secs_f64();
            self.emit(Event::Validating(ValidationProgress { step, done, all, elapsed_s }));
        }
        total += pending.map_or(Ok(0.0), PendingLoss::sum)?;
        Ok(Some(total / labels as f64))
    }

    /// Submits the gradients of a global batch.
    fn accumulate(&mut self, samples: &[Sample], ledger: &Ledger) -> Result<(), Error> {
        let labels: usize = samples.iter().map(|s| s.label_tokens()).sum();
        let scale = ledger.scale.scale();
        self.trainer.begin()?;
        for micro in samples.chunks(self.options.micro_batch()) {
            let batch = MicroBatch::from_samples(micro);
            self.trainer.accumulate(&batch, scale / labels as f32)?;
        }
        Ok(())
    }

    /// Submits the update with these gradients.
    fn update(&mut self, learning_rate: f64, ledger: &Ledger) -> Result<PendingStep, Error> {
        let o = self.options;
        Ok(self.trainer.step_later(&Hyper {
            learning_rate,
            beta1: o.beta1,
            beta2: o.beta2,
            eps: o.eps,
            weight_decay: o.weight_decay,
            clip: o.grad_clip,
            inverse_scale: 1.0 / f64::from(ledger.scale.scale()),
            step: ledger.applied + 1,
            second_ratio: o.loraplus_lr_ratio,
            momentum: o.momentum,
        })?)
    }

    fn emit(&mut self, event: Event) {
        (self.on_event)(&event);
    }
}

/// What a validation loss that is no number means.
fn without_loss(step: usize) -> String {
    match step {
        0 => "the validation loss before the first step is no number: the weights hold such values, or 16 bits are too few for \
              them; try --precision 32-true"
            .into(),
        step => format!(
            "the validation loss of step {step} is no number: unless a row overflows in 16 bits, what was trained is of no use as it \
             is; use a lower --learning_rate, a longer --lr_warmup_steps or --grad_clip"
        ),
    }
}

/// When a run began that has trained for so many seconds.
fn started(elapsed_s: f64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs_f64(elapsed_s.max(0.0))).unwrap_or(now)
}
