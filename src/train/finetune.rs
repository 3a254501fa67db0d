//! A whole run: options in, an adapter (or a model) in a folder out.
//!
//! Everything that can be wrong with the input is found before the device is opened and before anything is written.

use super::adapter::{self, settings_of, spec_of_adapter, spec_of_targets};
use super::ledger::{Ledger, Submitted};
use super::logging::{METRICS_FILE, RunLog};
use super::loss_scale::LossScale;
use super::memory::{Choice, MemoryLimit, Planner};
use super::metrics::{EvalRecord, Event, RunSummary};
use super::options::TuneMode;
use super::options::{FinetuneOptions, LoraOptions, Method, RecomputeKind, WeightInit};
use super::resume::{self, Progress};
use super::run_folder::RunFacts;
use super::run_plan::steps;
use super::save::{save_adapter, save_hyperparameters, save_model};
use super::schedule::{Schedule, WarmupSchedule};
use super::setup::{check_vocabulary, longest, network_of, open_data, run_demand};
use super::trainer::{PendingStep, Trainer};
use super::tuning::{Tuner, pipeline_folder};
use super::weights::WeightSource;
use crate::checkpoint::atomic::NewFolder;
use crate::checkpoint::{Adapter, AdapterConfig, Checkpoint};
use crate::data::{Dataset, MicroBatch, Sample, Samples, Tokenizer, epoch_order};
use crate::error::Error;
use crate::gpu::{Gpu, GpuError, GpuOptions};
use crate::models::{ModelConfig, Network};
use crate::ops::adamw::Hyper;
use crate::plan::MemoryReport;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A fine-tuning run under construction.
///
/// ```no_run
/// use engraft::train::finetune::Finetune;
/// use engraft::train::options::FinetuneOptions;
///
/// let mut options = FinetuneOptions { model_dir: "models/llama".into(), ..Default::default() };
/// options.data.json_path = "data.json".into();
/// let report = Finetune::new(options).run()?;
/// println!("validation loss {:?}", report.val_loss);
/// # Ok::<(), engraft::Error>(())
/// ```
pub struct Finetune<'a> {
    options: FinetuneOptions,
    schedule: Option<Schedule>,
    on_event: Box<dyn FnMut(&Event) + 'a>,
    /// The folder that was saved to last.
    saved: Option<PathBuf>,
    stop: Option<Arc<AtomicBool>>,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct FinetuneReport {
    /// Optimiser steps.
    pub steps: usize,
    /// Tokens trained on, prompts included.
    pub tokens: usize,
    /// Loss of every step: mean over the label tokens of its global batch, in nats.
    pub losses: Vec<f64>,
    /// Validation loss after the last step, where there are validation rows.
    pub val_loss: Option<f64>,
    pub seconds: f64,
    pub out_dir: PathBuf,
    /// Device memory by kind.
    pub memory: MemoryReport,
}

/// What is left to know once the input is checked.
struct Prepared {
    config: ModelConfig,
    source: WeightSource,
    data: Dataset,
    network: Network,
    /// The adapter to start from, and the settings to save with.
    adapter: Option<(Option<Adapter>, AdapterConfig)>,
    steps: usize,
    notes: Vec<String>,
}

impl<'a> Finetune<'a> {
    pub fn new(options: FinetuneOptions) -> Self {
        Finetune { options, schedule: None, on_event: Box::new(|_| ()), saved: None, stop: None }
    }

    /// Calls `f` with every event of the run, in order.
    pub fn on_event(mut self, f: impl FnMut(&Event) + 'a) -> Self {
        self.on_event = Box::new(f);
        self
    }

    /// Ends the run after the step during which the flag is set, with its state saved ([`Error::Stopped`]).
    pub fn stop_when(mut self, flag: Arc<AtomicBool>) -> Self {
        self.stop = Some(flag);
        self
    }

    /// Uses this learning rate by step (from 0) instead of the options' schedule.
    pub fn schedule(mut self, rate: impl Fn(usize) -> f64 + Send + 'static) -> Self {
        self.schedule = Some(Box::new(rate));
        self
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// Every kind of [`Error`]; [`Error::failure`] sorts them.
    pub fn run(mut self) -> Result<FinetuneReport, Error> {
        let prepared = self.prepare()?;
        let (device, no_coop) = (self.options.gpu.clone(), self.options.no_coop);
        let pipelines = if self.options.tune == TuneMode::Off { None } else { pipeline_folder() };
        let memory_limit = self.options.memory_limit;
        let gpu = Gpu::open(&GpuOptions { device, no_coop, pipelines, memory_limit, ..Default::default() })?;
        self.plan_and_train(&gpu, &prepared)
    }

    /// Runs to the end on a device that is open already; its own memory limit holds, and that of the options.
    ///
    /// # Errors
    /// As [`Finetune::run`].
    pub fn run_on(mut self, gpu: &Gpu) -> Result<FinetuneReport, Error> {
        let prepared = self.prepare()?;
        self.plan_and_train(gpu, &prepared)
    }

    fn prepare(&mut self) -> Result<Prepared, Error> {
        self.options.validate()?;
        let options = &mut self.options;
        let mut notes = Vec::new();
        notes.extend(check_out_dir(options)?);
        let config = ModelConfig::read(&options.model_dir)?;
        let random = options.method == Method::Full { init: WeightInit::Random };
        let source = match random {
            true => WeightSource::Random { seed: options.seed },
            false => WeightSource::Checkpoint(Checkpoint::open(&options.model_dir)?),
        };
        source.check(&config)?;
        if options.method == Method::Lora {
            options.quantize = options.quantize().for_source(&source, &config)?.kind;
        }
        let tokenizer = Tokenizer::open(&options.model_dir)?;

        let limit = config.max_position_embeddings;
        let cut = options.max_seq_length.is_some_and(|length| length > limit);
        let cut = cut.then(|| format!("--max_seq_length is cut to the model's own limit of {limit} tokens"));
        if let Some(note) = &cut {
            self.on_event.as_mut()(&Event::Note(note.clone()));
        }
        options.max_seq_length = Some(options.max_seq_length.unwrap_or(limit).min(limit));
        let data = open_data(options, &tokenizer)?;
        check_vocabulary(&[data.largest_token()], &config)?;
        notes.push(data.summary.to_string());

        let adapter = match options.method {
            Method::Full { .. } => None,
            Method::Lora => {
                let asked = options.lora.clone();
                let adapter = adapter_of(options, &config)?;
                notes.extend(not_used(&asked, options));
                Some(adapter)
            }
        };
        let spec = adapter.as_ref().map(|(spec, _, _)| spec.clone());
        let adapter = adapter.map(|(_, start, settings)| (start, settings));
        let network = network_of(&config, options, spec, longest(&data));
        let steps = steps(&data, options);
        options.lr_warmup_steps = Some(options.warmup_steps(steps));
        if let Some(folder) = resume_from(options) {
            // what does not fit is said before a device is opened
            Progress::read(&folder, options, &data)?;
        }
        Ok(Prepared { config, source, data, network, adapter, steps, notes })
    }

    /// Plans the run, and refuses what does not fit before anything is measured, loaded or written.
    fn plan_and_train(mut self, gpu: &Gpu, prepared: &Prepared) -> Result<FinetuneReport, Error> {
        let limit = MemoryLimit::of(self.options.memory_limit.or(gpu.memory_limit()), gpu.free_memory());
        let (options, steps) = (self.options.clone(), prepared.steps);
        let demand = |micro_batch| run_demand(&prepared.data, &options, micro_batch, steps);
        let choose = |gpu: &Gpu| {
            let network = prepared.network.clone();
            let planner = Planner { network, device: &gpu.profile(), demand: &demand };
            planner.choose(options.micro_batch(), options.recompute, limit)
        };
        let mut choice = choose(gpu)?;
        let mut notes = prepared.notes.clone();
        if options.tune != TuneMode::Off {
            notes.extend(self.tune(gpu, &choice)?);
            // other kernels may need other scratch space
            choice = choose(gpu)?;
        }
        notes.push(choice.describe(options.recompute));
        self.options.recompute = RecomputeKind::Policy(choice.plan.recompute());
        let (recompute, planned) = (choice.plan.recompute(), choice.plan.memory.total());
        self.train(gpu, prepared, choice, notes).map_err(|error| {
            let room = match error.gpu() {
                Some(GpuError::OverMemoryLimit { limit, .. }) => *limit,
                // how much there was is not known: less than planned
                Some(GpuError::OutOfMemory { .. }) => planned / 4 * 3,
                _ => return error,
            };
            let network = prepared.network.clone();
            let planner = Planner { network, device: &gpu.profile(), demand: &demand };
            let advice = planner.advise(options.micro_batch(), recompute, room.min(planned - 1));
            let (source, saved) = (Box::new(error), self.saved.clone());
            Error::OutOfMemory { source, planned, advice: advice.unwrap_or_default(), saved }
        })
    }

    /// Measures the kernels that the plan needs; gives what the user should read of it.
    fn tune(&mut self, gpu: &Gpu, choice: &Choice) -> Result<Vec<String>, Error> {
        let mut notes = Vec::new();
        let tuner = Tuner::new(self.options.tune);
        let tuned = tuner
            .prepare(gpu, &choice.plan.graph, &mut |progress| self.emit(Event::Tuned(progress.clone())))?;
        notes.extend(tuned.trouble);
        if tuned.left > 0 {
            let (left, seconds) = (tuned.left, tuned.seconds);
            notes.push(format!(
                "measuring kernels ended after {seconds:.0} s; {left} classes of products keep their built-in kernels for now"
            ));
        }
        Ok(notes)
    }

    fn train(
        &mut self,
        gpu: &Gpu,
        prepared: &Prepared,
        choice: Choice,
        mut notes: Vec<String>,
    ) -> Result<FinetuneReport, Error> {
        let Prepared { config, source, data, adapter, steps, .. } = prepared;
        let steps = *steps;
        let mut trainer = Trainer::from_plan(gpu, choice.plan, source, self.options.seed)?;
        if trainer.loaded().bytes > 0 {
            notes.push(trainer.loaded().to_string());
        }
        if let Some((Some(start), _)) = adapter {
            adapter::load(trainer.optimiser(), start)?;
        }
        let settings = adapter.as_ref().map(|(_, settings)| settings);
        let mut progress = Progress::new(&self.options, data, LossScale::new(trainer.network().activations));
        let from = resume_from(&self.options);
        if let Some(folder) = &from {
            progress = Progress::read(folder, &self.options, data)?;
            Progress::load(folder, &mut trainer, progress.micro_batches)?;
            notes.push(format!("going on after step {} from {}", progress.step, folder.display()));
        }
        resume::clean(&self.options.out_dir);
        save_hyperparameters(&self.options, steps, gpu, trainer.network())?;
        let summary = RunSummary {
            steps,
            all_steps: data.train.len().div_ceil(self.options.batch_size) * self.options.epochs,
            epochs: self.options.epochs,
            train_samples: data.train.len(),
            val_samples: data.validation.len(),
            trainable_parameters: trainer.optimiser().space().elements() as usize,
            base_parameters: config.parameter_count() as usize,
            device: gpu.info().name.clone(),
            software_device: gpu.info().is_software(),
            device_bytes: trainer.memory().total(),
            memory: trainer.memory(),
        };
        let out_dir = &self.options.out_dir;
        RunFacts::new(out_dir, from.is_some(), &summary, &data.summary, &notes).write(out_dir)?;
        let (metrics, losses) = match &from {
            Some(_) => RunLog::resume(out_dir, &self.options.logger_name, progress.step)?,
            None => (RunLog::create(out_dir, &self.options.logger_name)?, Vec::new()),
        };
        for note in notes {
            self.emit(Event::Note(note));
        }
        self.emit(Event::Started(summary));

        let schedule = self.schedule.take().unwrap_or_else(|| {
            let o = &self.options;
            let warmup = o.lr_warmup_steps.unwrap_or(0);
            WarmupSchedule::new(o.lr_schedule, o.learning_rate, o.min_lr, warmup, steps).into()
        });
        let per_epoch = data.train.len().div_ceil(self.options.batch_size);
        let mut ledger = Ledger {
            metrics,
            scale: progress.scale.clone(),
            losses,
            applied: progress.applied,
            start: started(progress.elapsed_s),
            since: Instant::now(),
        };
        let (mut tokens, mut order, mut val_loss) = (progress.tokens, Vec::new(), None);
        let mut waiting: Option<Submitted> = None;
        for step in progress.step..steps {
            let (epoch, within) = (step / per_epoch, step % per_epoch);
            if within == 0 || order.is_empty() {
                order =
                    epoch_order(data.train.len(), self.options.seed, epoch as u64, self.options.data.shuffle);
            }
            let begin = within * self.options.batch_size;
            let window = &order[begin..(begin + self.options.batch_size).min(order.len())];
            let samples: Vec<Sample> = window.iter().map(|&i| data.train.get(i)).collect();
            let rate = schedule(step);
            let pending = match self.submit(&mut trainer, &samples, rate, &ledger) {
                Ok(pending) => pending,
                Err(error) => {
                    // what is done is written down; the first error is the one to tell
                    if let Some(earlier) = waiting.take() {
                        let _ = ledger.settle(earlier, &mut self.on_event);
                    }
                    return Err(error);
                }
            };
            ledger.applied += 1;
            let count: usize = samples.iter().map(|s| s.tokens.len()).sum();
            tokens += count;
            let submitted = Submitted {
                pending,
                step: step + 1,
                epoch: epoch as f64 + (begin + window.len()) as f64 / order.len() as f64,
                learning_rate: rate,
                tokens: count,
                labels: samples.iter().map(|s| s.label_tokens()).sum(),
            };
            // the outcome of a step is read while the device works on the next one
            if let Some(earlier) = waiting.replace(submitted) {
                ledger.settle(earlier, &mut self.on_event)?;
            }
            let last = step + 1 == steps;
            let due = |interval: Option<usize>| interval.is_some_and(|n| (step + 1) % n == 0);
            let evaluates = !data.validation.is_empty() && (last || due(self.options.eval_interval));
            let stopped = !last && self.stop.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
            let saves = last || stopped || due(self.options.save_interval);
            // a dynamic loss scale must be known before the next step
            if (evaluates || saves || ledger.scale.is_dynamic())
                && let Some(submitted) = waiting.take()
            {
                ledger.settle(submitted, &mut self.on_event)?;
            }
            if evaluates {
                let labels = data.summary.validation.label_tokens;
                let loss =
                    trainer.evaluate(batches(&data.validation, self.options.micro_batch()))? / labels as f64;
                let record = EvalRecord::new(step + 1, loss);
                ledger.metrics.write(&record)?;
                val_loss = Some(loss);
                self.emit(Event::Evaluation(record));
            }
            if saves {
                progress.step = step + 1;
                progress.applied = ledger.applied;
                progress.micro_batches = trainer.micro_batches();
                progress.tokens = tokens;
                progress.elapsed_s = ledger.start.elapsed().as_secs_f64();
                progress.scale = ledger.scale.clone();
                let folder = self.save(&trainer, settings, &progress, stopped, last)?;
                if let (true, Some(folder)) = (stopped, folder) {
                    return Err(Error::Stopped { step: step + 1, steps, folder });
                }
            }
            if evaluates || saves {
                ledger.since = Instant::now();
            }
        }
        if progress.step >= steps && ledger.losses.len() >= steps && from.is_some() {
            // all steps were done before: what is left is the result
            self.save(&trainer, settings, &progress, false, true)?;
        }
        let Ledger { losses, start, .. } = ledger;
        let seconds = start.elapsed().as_secs_f64();
        self.emit(Event::Finished { steps, tokens, elapsed_s: seconds });
        let (memory, out_dir) = (trainer.memory(), self.options.out_dir.clone());
        Ok(FinetuneReport { steps, tokens, losses, val_loss, seconds, out_dir, memory })
    }

    /// Submits one optimiser step over a global batch.
    fn submit(
        &self,
        trainer: &mut Trainer,
        samples: &[Sample],
        learning_rate: f64,
        ledger: &Ledger,
    ) -> Result<PendingStep, Error> {
        let o = &self.options;
        let labels: usize = samples.iter().map(|s| s.label_tokens()).sum();
        let scale = ledger.scale.scale();
        trainer.begin()?;
        for micro in samples.chunks(o.micro_batch()) {
            let batch = MicroBatch::from_samples(micro);
            trainer.accumulate(&batch, scale / labels as f32)?;
        }
        Ok(trainer.step_later(&Hyper {
            learning_rate,
            beta1: o.beta1,
            beta2: o.beta2,
            eps: o.eps,
            weight_decay: o.weight_decay,
            clip: o.grad_clip,
            inverse_scale: 1.0 / f64::from(scale),
            step: ledger.applied + 1,
        })?)
    }

    /// Writes `step-NNNNNN/` with the state to go on from where it is due or the run stops, and the output folder itself at the
    /// end; gives the step's folder.
    fn save(
        &mut self,
        trainer: &Trainer,
        settings: Option<&AdapterConfig>,
        progress: &Progress,
        stopped: bool,
        last: bool,
    ) -> Result<Option<PathBuf>, Error> {
        let step = progress.step;
        let write = |folder: &Path| match settings {
            Some(settings) => save_adapter(trainer, settings.clone(), folder),
            None => save_model(trainer, &self.options.model_dir, folder),
        };
        let mut saved = Vec::new();
        let mut state = None;
        if stopped || self.options.save_interval.is_some_and(|n| step.is_multiple_of(n)) {
            let path = self.options.out_dir.join(format!("step-{step:06}"));
            let failed = |source| Error::Write { path: path.clone(), source };
            let folder = NewFolder::begin(&path).map_err(failed)?;
            write(folder.path())?;
            progress.write(trainer, folder.path())?;
            // an earlier run's, or one that went on from before
            if path.exists() {
                std::fs::remove_dir_all(&path).map_err(failed)?;
            }
            folder.commit().map_err(failed)?;
            state = Some(path.clone());
            saved.push(path);
        }
        if last {
            write(&self.options.out_dir)?;
            saved.push(self.options.out_dir.clone());
        }
        for path in saved {
            self.saved = Some(path.clone());
            self.emit(Event::Saved { step, path });
        }
        Ok(state)
    }

    fn emit(&mut self, event: Event) {
        (self.on_event)(&event);
    }
}

/// Where the run goes on from, if it was asked to.
fn resume_from(options: &FinetuneOptions) -> Option<PathBuf> {
    match options.resume.as_deref()? {
        auto if auto == Path::new("auto") => resume::newest(&options.out_dir),
        folder => Some(folder.to_path_buf()),
    }
}

/// When a run began that has trained for so many seconds.
fn started(elapsed_s: f64) -> Instant {
    let now = Instant::now();
    now.checked_sub(Duration::from_secs_f64(elapsed_s.max(0.0))).unwrap_or(now)
}

/// Refuses an output folder that is an input or no folder; notes one that holds an earlier run's result.
fn check_out_dir(options: &FinetuneOptions) -> Result<Option<String>, Error> {
    let out = &options.out_dir;
    let said = |reason: &str| Error::input(format!("--out_dir {}: {reason}", out.display()));
    if let Some(file) = out.ancestors().find(|p| p.exists() && !p.is_dir()) {
        let file = file.display();
        return Err(said(&format!("{file} is a file, not a folder; choose another")));
    }
    let whole = |path: &Path| path.canonicalize().ok();
    let inputs = [Some(&options.model_dir), options.init_adapter.as_ref()];
    if whole(out).is_some() && inputs.into_iter().flatten().any(|input| whole(input) == whole(out)) {
        return Err(said("the run would overwrite what it starts from; choose another folder"));
    }
    if options.resume.is_some() {
        return Ok(None);
    }
    let results = [METRICS_FILE, "adapter_model.safetensors", "model.safetensors"];
    let earlier = results.iter().any(|name| out.join(name).exists());
    Ok(earlier.then(|| format!("{} holds an earlier run, which this one replaces", out.display())))
}

/// Options of the adapter that were asked for and yield to those of `--init_adapter`.
fn not_used(asked: &LoraOptions, options: &FinetuneOptions) -> Option<String> {
    let (folder, kept, usual) = (options.init_adapter.as_ref()?, &options.lora, LoraOptions::default());
    let mut names = Vec::new();
    if asked.rank != usual.rank && asked.rank != kept.rank {
        names.push(format!("--lora_rank {} (it has {})", asked.rank, kept.rank));
    }
    if asked.alpha != usual.alpha && asked.alpha != kept.alpha {
        names.push(format!("--lora_alpha {} (it has {})", asked.alpha, kept.alpha));
    }
    if !asked.targets.is_empty() {
        names.push("--lora_targets".into());
    }
    let folder = folder.display();
    (!names.is_empty())
        .then(|| format!("not used, since the adapter of {folder} goes on: {}", names.join(", ")))
}

/// The network's adapter, the values to start from and the settings to save with.
pub(super) fn adapter_of(
    options: &mut FinetuneOptions,
    config: &ModelConfig,
) -> Result<(crate::nn::AdapterSpec, Option<Adapter>, AdapterConfig), Error> {
    if let Some(folder) = &options.init_adapter {
        let adapter = Adapter::read(folder)?;
        let mut spec = spec_of_adapter(config, &adapter)?;
        if options.lora.dropout > 0.0 {
            spec.dropout = options.lora.dropout;
        }
        options.lora.rank = spec.rank;
        options.lora.alpha = adapter.config.lora_alpha;
        options.lora.dropout = spec.dropout;
        options.lora.targets.clone_from(&spec.modules);
        let settings = AdapterConfig { lora_dropout: spec.dropout, ..adapter.config.clone() };
        return Ok((spec, Some(adapter), settings));
    }
    let lora = &options.lora;
    let spec = spec_of_targets(config, &lora.targets, lora.rank, lora.alpha, lora.dropout)?;
    let base = options.model_dir.canonicalize().unwrap_or_else(|_| options.model_dir.clone());
    let settings = settings_of(config, &spec, lora.alpha, Some(base.display().to_string()));
    Ok((spec, None, settings))
}

/// Micro-batches of the samples in order, each made when it is asked for.
fn batches(samples: &Samples, size: usize) -> impl Iterator<Item = MicroBatch> + '_ {
    let batch = move |start| (start..samples.len().min(start + size)).map(|i| samples.get(i));
    (0..samples.len()).step_by(size).map(move |start| MicroBatch::from_samples(batch(start)))
}
