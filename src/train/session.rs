//! The steps of a run, on a device that holds the network: train, evaluate, save, end.

use super::finetune::{FinetuneReport, Prepared};
use super::ledger::{Ledger, Submitted};
use super::logging::RunLog;
use super::loss_scale::LossScale;
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
            start: started(progress.elapsed_s),
            since: Instant::now(),
        };
        let per_epoch = data.train.len().div_ceil(self.options.batch_size);
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
                order = epoch_order(
                    data.train.len(),
                    self.options.data_seed(),
                    epoch as u64,
                    self.options.data.shuffle,
                );
            }
            let begin = within * self.options.batch_size;
            let window = &order[begin..(begin + self.options.batch_size).min(order.len())];
            let samples: Vec<Sample> = window.iter().map(|&i| data.train.get(i)).collect();
            let rate = (self.schedule)(step);
            let pending = match self.submit(&samples, rate, &ledger) {
                Ok(pending) => pending,
                Err(error) => {
                    // what is done is written down; the first error is the one to tell
                    if let Some(earlier) = waiting.take() {
                        let _ = ledger.settle(earlier, self.on_event);
                    }
                    return Err(error);
                }
            };
            if step == first {
                // by now most of what the run needs is compiled
                self.trainer.gpu().keep_pipelines();
            }
            ledger.applied += 1;
            progress.step += 1;
            let count: usize = samples.iter().map(|s| s.tokens.len()).sum();
            progress.tokens += count;
            let submitted = Submitted {
                pending,
                step: progress.step,
                epoch: epoch as f64 + (begin + window.len()) as f64 / order.len() as f64,
                learning_rate: rate,
                tokens: count,
                labels: samples.iter().map(|s| s.label_tokens()).sum(),
            };
            // the outcome of a step is read while the device works on the next one
            if let Some(earlier) = waiting.replace(submitted) {
                ledger.settle(earlier, self.on_event)?;
            }
            progress.elapsed_s = ledger.start.elapsed().as_secs_f64();
            end = progress.ended(self.options, steps);
            end = self.after_step(&mut progress, &mut ledger, &mut waiting, end)?;
        }
        if let Some(note) = end.and_then(|end| end.note(&progress, self.options, steps)) {
            self.emit(Event::Note(note));
        }
        self.saver.result(&self.trainer, &progress, self.on_event)?;
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
        let saves = end.is_some() || asked_to_stop || due(self.options.save_interval);
        // a dynamic loss scale must be known before the next step
        if (evaluates || saves || ledger.scale.is_dynamic())
            && let Some(submitted) = waiting.take()
        {
            ledger.settle(submitted, self.on_event)?;
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
        if stopped || early || taken_up || due(self.options.save_interval) {
            let mut state = progress.clone();
            if extra(end) {
                state.watch = watch;
                state.unfinished = state.unfinished.map(|_| Unfinished::Evaluation);
            }
            let folder = self.saver.step(&self.trainer, &state, self.on_event)?;
            if stopped {
                let (step, unfinished) = (progress.step, cut);
                return Err(Error::Stopped { step, steps, unfinished, folder });
            }
        }
        if evaluates || saves {
            ledger.since = Instant::now();
        }
        Ok(end)
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
            ledger.metrics.write(&record)?;
            progress.evaluated = Some(record.clone());
            self.emit(Event::Evaluation(record));
            let best = progress.watch.observe(step, loss, self.options.early_stopping_min_delta);
            if best && self.options.keeps_best() {
                self.saver.best(&self.trainer, step, kept, self.on_event)?;
            }
            progress.unfinished = Some(Unfinished::Samples);
        }
        if let Some(sampler) = &self.sampler {
            let Some(texts) = sampler.write(&self.trainer, &self.stop)? else { return Ok(()) };
            for (prompt, text) in texts {
                let record = SampleRecord { step, prompt, text };
                ledger.metrics.write(&record)?;
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

    /// Submits one optimiser step over a global batch.
    fn submit(
        &mut self,
        samples: &[Sample],
        learning_rate: f64,
        ledger: &Ledger,
    ) -> Result<PendingStep, Error> {
        let o = self.options;
        let labels: usize = samples.iter().map(|s| s.label_tokens()).sum();
        let scale = ledger.scale.scale();
        self.trainer.begin()?;
        for micro in samples.chunks(o.micro_batch()) {
            let batch = MicroBatch::from_samples(micro);
            self.trainer.accumulate(&batch, scale / labels as f32)?;
        }
        Ok(self.trainer.step_later(&Hyper {
            learning_rate,
            beta1: o.beta1,
            beta2: o.beta2,
            eps: o.eps,
            weight_decay: o.weight_decay,
            clip: o.grad_clip,
            inverse_scale: 1.0 / f64::from(scale),
            step: ledger.applied + 1,
            second_ratio: o.loraplus_lr_ratio,
            momentum: o.momentum,
        })?)
    }

    fn emit(&mut self, event: Event) {
        (self.on_event)(&event);
    }
}

/// When a run began that has trained for so many seconds.
fn started(elapsed_s: f64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs_f64(elapsed_s.max(0.0))).unwrap_or(now)
}
