//! The steps of a run, on a device that holds the network: train, evaluate, save, end.

use super::finetune::{FinetuneReport, Prepared};
use super::ledger::{Ledger, Submitted};
use super::logging::RunLog;
use super::loss_scale::LossScale;
use super::metrics::{EvalRecord, Event, RunSummary, SampleRecord};
use super::options::FinetuneOptions;
use super::resume::Progress;
use super::run_folder::RunFacts;
use super::sampler::Sampler;
use super::save::save_hyperparameters;
use super::saver::Saver;
use super::schedule::Schedule;
use super::stopping::End;
use super::trainer::{PendingStep, Trainer};
use crate::data::{MicroBatch, Sample, Samples, epoch_order};
use crate::error::Error;
use crate::ops::adamw::Hyper;
use crate::plan::MemoryReport;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    pub stop: Option<Arc<AtomicBool>>,
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
            Some(folder) => RunLog::resume(out_dir, folder.parent(), loggers, progress.step)?,
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
            self.evaluate(&mut progress, &mut ledger, self.options.eval_max_iters)?;
            ledger.since = Instant::now();
        }
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
            let done = progress.step;
            let due = |interval: Option<usize>| interval.is_some_and(|n| done.is_multiple_of(n));
            let last = end.is_some() && self.options.final_validation;
            let evaluates = !data.validation.is_empty() && (last || due(self.options.eval_interval));
            let asked_to_stop = self.stop.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
            let saves = end.is_some() || asked_to_stop || due(self.options.save_interval);
            // a dynamic loss scale must be known before the next step
            if (evaluates || saves || ledger.scale.is_dynamic())
                && let Some(submitted) = waiting.take()
            {
                ledger.settle(submitted, self.on_event)?;
            }
            let watch = progress.watch.clone();
            if evaluates {
                // the best is found among losses of the same rows
                let rows = self.options.eval_max_iters.filter(|_| !last || self.options.keeps_best());
                self.evaluate(&mut progress, &mut ledger, rows)?;
                end = end.or_else(|| progress.ended(self.options, steps));
            }
            let stopped = asked_to_stop && end.is_none();
            if end.is_some() || saves {
                progress.applied = ledger.applied;
                progress.micro_batches = self.trainer.micro_batches();
                progress.elapsed_s = ledger.start.elapsed().as_secs_f64();
                progress.scale = ledger.scale.clone();
            }
            // a run that ended early can go on, where the options let it
            let early = end.is_some_and(|end| end != End::Steps);
            if stopped || early || due(self.options.save_interval) {
                // an evaluation that only the end asked for is none where the run goes on
                let extra = end == Some(End::Time) && !due(self.options.eval_interval);
                let mut state = progress.clone();
                if extra {
                    state.watch = watch;
                }
                let folder = self.saver.step(&self.trainer, &state, self.on_event)?;
                if stopped {
                    return Err(Error::Stopped { step: progress.step, steps, folder });
                }
            }
            if evaluates || saves {
                ledger.since = Instant::now();
            }
        }
        if let Some(note) = end.and_then(|end| end.note(&progress, steps)) {
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
    /// far.
    fn evaluate(
        &mut self,
        progress: &mut Progress,
        ledger: &mut Ledger,
        micro_batches: Option<usize>,
    ) -> Result<(), Error> {
        let (rows, size) = (&self.prepared.data.validation, self.options.micro_batch());
        let most = micro_batches.map_or(rows.len(), |n| n.saturating_mul(size).min(rows.len()));
        let labels: usize = (0..most).map(|i| rows.label_count(i)).sum();
        let loss = self.trainer.evaluate(batches(rows, most, size))? / labels as f64;
        let record = EvalRecord::new(progress.step, loss);
        ledger.metrics.write(&record)?;
        progress.evaluated = Some(record.clone());
        self.emit(Event::Evaluation(record));
        if let Some(sampler) = &self.sampler {
            for (prompt, text) in sampler.write(&self.trainer)? {
                let record = SampleRecord { step: progress.step, prompt, text };
                ledger.metrics.write(&record)?;
                self.emit(Event::Sample(record));
            }
        }
        let best = progress.watch.observe(progress.step, loss, self.options.early_stopping_min_delta);
        if best && self.options.keeps_best() {
            self.saver.best(&self.trainer, progress.step, self.on_event)?;
        }
        Ok(())
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

/// Micro-batches of the first samples in order, each made when it is asked for.
fn batches(samples: &Samples, count: usize, size: usize) -> impl Iterator<Item = MicroBatch> + '_ {
    let batch = move |start| (start..count.min(start + size)).map(|i| samples.get(i));
    (0..count).step_by(size).map(move |start| MicroBatch::from_samples(batch(start)))
}
