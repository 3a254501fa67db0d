//! A whole run: options in, an adapter (or a model) in a folder out.
//!
//! Everything that can be wrong with the input is found before the device is opened and before anything is written.

use super::adapter::{self, restricted, settings_of, spec_of_adapter, spec_of_targets, with_saved};
use super::adapter_place::other_base;
use super::autosave::Autosave;
use super::chosen::Chosen;
use super::disk::SaveSizes;
use super::folder_lock::FolderLock;
use super::logging;
use super::memory::{Choice, MemoryLimit, Planner};
use super::metrics::Event;
use super::options::{FinetuneOptions, LoraOptions, Method, TuneMode, WeightInit};
use super::out_dir;
use super::plan::Demand;
use super::quantize::Quantize;
use super::resume::{self, Progress};
use super::run_plan::steps;
use super::sampler::{Prompts, Sampler};
use super::saver::Saver;
use super::schedule::{Schedule, WarmupSchedule};
use super::session::Session;
use super::setup::{
    check_method, check_validation, check_vocabulary, demand_by_size, longest, measured_size, network_of,
    open_data, run_demand,
};
use super::trainer::{Trainer, TrainerError, training_graph};
use super::tuning::{Tuner, pipeline_folder};
use super::weights::WeightSource;
use crate::checkpoint::{Adapter, AdapterConfig, Checkpoint};
use crate::data::{Dataset, PromptForm, Tokenizer};
use crate::disk::free_space;
use crate::error::{Error, Failure};
use crate::gpu::{Gpu, GpuError, GpuOptions, roomier};
use crate::graph::DType;
use crate::models::{BlockNorms, ModelConfig, Network};
use crate::plan::MemoryReport;
use crate::stop::StopFlag;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
    stop: StopFlag,
    /// Of the output folder, once it is known to be free.
    lock: Option<FolderLock>,
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
pub(super) struct Prepared {
    pub config: ModelConfig,
    source: WeightSource,
    pub data: Dataset,
    network: Network,
    /// The adapter to start from, and the settings to save with.
    adapter: Option<(Option<Adapter>, AdapterConfig)>,
    pub steps: usize,
    /// What an earlier part of the run has done, where that is all of it.
    finished: Option<Progress>,
    /// Steps that an earlier part of the run has made, and its kernels.
    done: usize,
    kernels: Option<Chosen>,
    /// What is continued at evaluations.
    prompts: Option<Prompts>,
    /// What writes the prompts of the rows, kept with what is trained.
    form: PromptForm,
    tokenizer: Tokenizer,
    notes: Vec<String>,
}

impl<'a> Finetune<'a> {
    pub fn new(options: FinetuneOptions) -> Self {
        let (on_event, stop) = (Box::new(|_: &Event| ()), StopFlag::default());
        Finetune { options, schedule: None, on_event, stop, lock: None }
    }

    /// Calls `f` with every event of the run, in order.
    pub fn on_event(mut self, f: impl FnMut(&Event) + 'a) -> Self {
        self.on_event = Box::new(f);
        self
    }

    /// Ends the run soon after the flag is set: after the step or within the validation under way, with its state saved
    /// ([`Error::Stopped`]), or before the first step, with no step saved ([`Error::NotBegun`]).
    pub fn stop_when(mut self, flag: Arc<AtomicBool>) -> Self {
        self.stop = flag.into();
        self
    }

    /// Uses this learning rate by step (from 0) instead of the options' schedule.
    pub fn schedule(mut self, rate: impl Fn(usize) -> f64 + Send + 'static) -> Self {
        self.schedule = Some(Box::new(rate));
        self
    }

    /// Runs to the end. A run that is to go on and has ended before gives its report, with no memory in it, after an [`Event::Note`]
    /// alone.
    ///
    /// # Errors
    /// Every kind of [`Error`]; [`Error::failure`] sorts them.
    pub fn run(self) -> Result<FinetuneReport, Error> {
        let from = resume_from(&self.options);
        let run = self.open_and_train();
        run.map_err(|error| not_begun(error, from))
    }

    fn open_and_train(mut self) -> Result<FinetuneReport, Error> {
        let prepared = self.prepare()?;
        if let Some(finished) = &prepared.finished {
            return self.report_finished(finished);
        }
        let (device, no_coop) = (self.options.gpu.clone(), self.options.no_coop);
        let pipelines = if self.options.tune == TuneMode::Off { None } else { pipeline_folder() };
        let memory_limit = self.options.memory_limit;
        let gpu = Gpu::open(&GpuOptions { device, no_coop, pipelines, memory_limit, ..Default::default() })?;
        self.plan_and_train(&gpu, &prepared).map_err(|error| match error {
            Error::Memory(mut error) if !error.limit.asked => {
                error.advice.devices = roomier(gpu.info(), error.needed);
                Error::Memory(error)
            }
            other => other,
        })
    }

    /// Runs to the end on a device that is open already; its own memory limit holds, and that of the options.
    ///
    /// # Errors
    /// As [`Finetune::run`].
    pub fn run_on(mut self, gpu: &Gpu) -> Result<FinetuneReport, Error> {
        let from = resume_from(&self.options);
        let prepared = self.prepare().map_err(|error| not_begun(error, from.clone()))?;
        if let Some(finished) = &prepared.finished {
            return self.report_finished(finished);
        }
        self.plan_and_train(gpu, &prepared).map_err(|error| not_begun(error, from))
    }

    fn prepare(&mut self) -> Result<Prepared, Error> {
        self.options.validate()?;
        let options = &mut self.options;
        let mut notes = Vec::new();
        let lock = FolderLock::of_earlier(&options.out_dir);
        let finished = is_finished(options);
        let from = resume_from(options);
        if !finished {
            notes.extend(out_dir::check(options, from.as_deref())?);
        }
        self.lock = Some(lock?);
        if options.resume.is_some() && from.is_none() && !finished {
            notes.push(format!(
                "nothing is saved in {} to go on from: the run begins anew",
                options.out_dir.display()
            ));
        }
        if options.micro_batch() < options.micro_batch_size {
            notes.push(format!("--micro_batch_size is cut to the --batch_size of {}", options.batch_size));
        }
        notes.extend(options.idle());
        let config = ModelConfig::read(&options.model_dir)?;
        check_method(options.method, &config, &options.model_dir)?;
        let random = options.method == Method::Full { init: WeightInit::Random };
        let source = match random {
            true => WeightSource::random(&config, options.seed),
            false => WeightSource::Checkpoint(Checkpoint::open(&options.model_dir)?),
        };
        source.check(&config)?;
        for (key, p) in &config.dropouts {
            let file = options.model_dir.join("config.json");
            let adapter = match options.method {
                Method::Lora => "; --lora_dropout is for the adapter's input",
                Method::Full { .. } => "",
            };
            notes.push(format!(
                "{} has {key} {p}: nothing of the model is dropped here{adapter}",
                file.display()
            ));
        }
        let large = config.block_norms != BlockNorms::Before || config.multipliers.is_some();
        if large && options.precision.activations() == DType::F16 {
            notes.push(format!(
                "{} keeps activations in f16, which holds no more than 65504, which this family's models may exceed: where the loss is no \
                 number, take --precision bf16-true",
                options.precision
            ));
        }
        if let (Method::Full { .. }, WeightSource::Checkpoint(checkpoint)) = (options.method, &source)
            && let Some(dtype) = checkpoint.quantised()?
        {
            Quantize::of_dtype(dtype).check_full(&options.model_dir)?;
        }
        if options.method == Method::Lora {
            options.quantize = options.quantize().for_source(&source, &config)?.kind;
        }
        let tokenizer = Tokenizer::open(&options.model_dir)?;

        let limit = config.max_position_embeddings;
        let cut = options.max_seq_length.is_some_and(|length| length > limit);
        let longrope = config.rope.context().is_some_and(|context| context > limit);
        let of = if longrope { " (its longrope turns longer texts by other angles)" } else { "" };
        let cut =
            cut.then(|| format!("--max_seq_length is cut to the model's own limit of {limit} tokens{of}"));
        if let Some(note) = &cut {
            self.on_event.as_mut()(&Event::Note(note.clone()));
        }
        options.max_seq_length = Some(options.max_seq_length.unwrap_or(limit).min(limit));
        let data = open_data(options, &tokenizer, &self.stop)?;
        self.stop.check()?;
        check_vocabulary(&[data.largest_token()], &config)?;
        notes.push(data.summary.to_string());
        notes.extend(data.note.clone());

        let adapter = match options.method {
            Method::Full { .. } => None,
            Method::Lora => {
                let asked = options.lora.clone();
                let adapter = adapter_of(options, &config)?;
                notes.extend(not_used(&asked, options));
                if let Some(folder) = &options.init_adapter {
                    notes.extend(other_base(folder, &adapter.2, &options.model_dir));
                }
                Some(adapter)
            }
        };
        check_validation(options, &data)?;
        let spec = adapter.as_ref().map(|(spec, _, _)| spec.clone());
        let adapter = adapter.map(|(_, start, settings)| (start, settings));
        let form = options.data.prompt_form()?;
        let prompts = Prompts::of(options, &tokenizer, &data, &form, limit)?;
        if prompts.is_none() && options.eval_max_new_tokens.is_some_and(|tokens| tokens > 0) {
            notes.push(
                "no text is written at evaluations: there is no validation row whose prompt has no labels \
                 (--data.mask_prompt false?); --eval_prompts FILE names prompts"
                    .into(),
            );
        }
        let written = prompts.as_ref().map_or(0, Prompts::longest);
        let plain_layers = source.plain_layers(&config)?;
        let network = network_of(&config, options, spec, plain_layers, longest(&data).max(written))?;
        let steps = steps(&data, options);
        options.lr_warmup_steps = Some(options.warmup_steps(steps));
        options.lr_warmup_fraction = None;
        // what does not fit is said before a device is opened
        let finished = match finished {
            true => Some(Progress::read_finished(&options.out_dir, options, &data)?),
            false => None,
        };
        let progress = from.map(|folder| Progress::read(&folder, options, &data)).transpose()?;
        let done = progress.as_ref().map_or(0, |progress| progress.step);
        let kernels = progress.and_then(|progress| progress.kernels);
        Ok(Prepared {
            config,
            source,
            data,
            network,
            adapter,
            steps,
            finished,
            done,
            kernels,
            prompts,
            form,
            tokenizer,
            notes,
        })
    }

    /// Plans the run, and refuses what does not fit before anything is measured, loaded or written.
    fn plan_and_train(mut self, gpu: &Gpu, prepared: &Prepared) -> Result<FinetuneReport, Error> {
        let asked = [self.options.memory_limit, gpu.memory_limit()].into_iter().flatten().min();
        let limit = MemoryLimit::of(asked, gpu.free_memory());
        let (options, steps) = (self.options.clone(), prepared.steps);
        let demand = demand_by_size(|micro_batch| Demand {
            sampled: prepared.prompts.as_ref().map_or(0, Prompts::longest),
            ..run_demand(&prepared.data, &options, micro_batch, steps)
        });
        let (batch_size, resumed) = (options.batch_size, resume_from(&options).is_some());
        let choose = |gpu: &Gpu| {
            let (network, device) = (prepared.network.clone(), &gpu.profile());
            let planner = Planner { network, device, batch_size, resumed, demand: &demand };
            planner.choose(options.micro_batch(), options.recompute, limit)
        };
        // what goes on does so with the kernels that it began with, or the bits would not be the same
        let chosen = prepared.kernels.as_ref().filter(|_| options.tune != TuneMode::Full);
        let chosen = chosen.is_some_and(|kernels| kernels.take(gpu));
        let mut choice = choose(gpu)?;
        choice.plan.check(&gpu.profile())?;
        let mut notes = prepared.notes.clone();
        let sizes = SaveSizes::of(&options, &prepared.config, &choice.plan.graph);
        let left = steps.saturating_sub(prepared.done);
        notes.extend(sizes.check(&options, left, free_space(&options.out_dir))?);
        if options.tune != TuneMode::Off && !chosen {
            notes.extend(self.tune(gpu, &choice, &demand(options.micro_batch()))?);
            self.stop.check()?;
            // other kernels may need other scratch space
            choice = choose(gpu)?;
            choice.plan.check(&gpu.profile())?;
        }
        notes.push(choice.describe(options.recompute));
        notes.extend(choice.plan.moved_in_vain());
        let (recompute, planned) = (choice.plan.recompute(), choice.plan.needed_bytes());
        let settings = prepared.adapter.as_ref().map(|(_, settings)| settings.clone());
        let mut saver = Saver::new(&self.options, settings, prepared.form.clone());
        self.train(gpu, prepared, choice, sizes, &mut saver, notes).map_err(|error| {
            let device = &gpu.profile();
            let room = match error.gpu() {
                Some(GpuError::OverMemoryLimit { limit, .. }) => *limit,
                // how much there was is not known: less than planned
                Some(GpuError::OutOfMemory { .. }) => planned / 4 * 3,
                Some(GpuError::OutOfHostMemory { .. }) if device.unified_memory => planned / 4 * 3,
                // a host without room gets none by what is planned for the device
                _ => return error,
            };
            let planner =
                Planner { network: prepared.network.clone(), device, batch_size, resumed, demand: &demand };
            let advice =
                planner.advise(options.micro_batch(), recompute, room.min(planned - 1)).map(Box::new);
            let (source, saved) = (Box::new(error), saver.last().map(Path::to_path_buf));
            Error::OutOfMemory { source, planned, advice: advice.unwrap_or_default(), saved }
        })
    }

    /// Measures the kernels that the run needs, first those of its largest micro-batches; gives what the user should read of it.
    fn tune(&mut self, gpu: &Gpu, choice: &Choice, demand: &Demand) -> Result<Vec<String>, Error> {
        let mut notes = Vec::new();
        let (tuner, stop) = (Tuner::new(self.options.tune), self.stop.clone());
        let sizes =
            [measured_size(choice.plan.capacity)].into_iter().chain(demand.common.into_iter().flatten());
        let graphs = sizes.map(|size| training_graph(&choice.plan.network, size));
        let graphs = graphs.collect::<Result<Vec<_>, _>>().map_err(TrainerError::from)?;
        let tuned = tuner.prepare_all(
            gpu,
            &graphs,
            &mut |progress| self.emit(Event::Tuned(progress.clone())),
            &stop,
        )?;
        notes.extend(tuned.left_out);
        notes.extend(tuned.trouble);
        if tuned.left > 0 {
            let (left, seconds) = (tuned.left, tuned.seconds);
            notes.push(format!(
                "measuring kernels ended after {seconds:.0} s; {left} classes of kernels keep their built-in ones until a later run measures them"
            ));
        }
        if tuned.untried > 0 {
            let classes = if tuned.untried == 1 { "class" } else { "classes" };
            notes.push(format!(
                "{} {classes} of kernels kept the best of those that were tried in time; `engraft tune` with this model tries all",
                tuned.untried
            ));
        }
        Ok(notes)
    }

    /// Loads what was planned and runs it.
    fn train(
        &mut self,
        gpu: &Gpu,
        prepared: &Prepared,
        choice: Choice,
        sizes: SaveSizes,
        saver: &mut Saver,
        mut notes: Vec<String>,
    ) -> Result<FinetuneReport, Error> {
        let trainer =
            Trainer::from_plan_until(gpu, choice.plan, &prepared.source, self.options.seed, &self.stop)?;
        // of what is trained nothing counts: it is written, not loaded
        if self.options.method == Method::Lora && trainer.loaded().bytes > 0 {
            notes.push(trainer.loaded().to_string());
        }
        if let Some((Some(start), _)) = &prepared.adapter {
            adapter::load(trainer.optimiser(), start)?;
        }
        self.stop.check()?;
        let from = resume_from(&self.options);
        let schedule = self.schedule.take().unwrap_or_else(|| {
            let o = &self.options;
            let warmup = o.lr_warmup_steps.unwrap_or(0);
            WarmupSchedule::new(o.lr_schedule, o.learning_rate, o.min_lr, warmup, prepared.steps).into()
        });
        let prompts = prepared.prompts.as_ref();
        let sampler = prompts.map(|p| Sampler::new(&trainer, p, &prepared.tokenizer)).transpose()?;
        let out_dir = &self.options.out_dir;
        std::fs::create_dir_all(out_dir).map_err(|source| Error::Write { path: out_dir.clone(), source })?;
        self.lock = self.lock.take().map(|lock| lock.take(out_dir)).transpose()?;
        let session = Session {
            options: &self.options,
            prepared,
            trainer,
            sampler,
            saver,
            sizes,
            autosave: Autosave::new(&self.options),
            schedule,
            stop: self.stop.clone(),
            on_event: self.on_event.as_mut(),
        };
        session.run(from.as_deref(), notes)
    }

    /// Says that nothing is left to do, and what the run did.
    fn report_finished(&mut self, run: &Progress) -> Result<FinetuneReport, Error> {
        let out_dir = self.options.out_dir.clone();
        self.emit(Event::Note(format!(
            "the run in {} is finished, all {} of its steps: nothing is left to do (without --resume another one begins)",
            out_dir.display(),
            run.step
        )));
        Ok(FinetuneReport {
            steps: run.step,
            tokens: run.tokens,
            losses: logging::losses(&out_dir)?,
            val_loss: run.evaluated.as_ref().map(|record| record.val_loss),
            seconds: run.elapsed_s,
            out_dir,
            memory: MemoryReport::default(),
        })
    }

    fn emit(&mut self, event: Event) {
        (self.on_event)(&event);
    }
}

/// What a request to stop means that came before there was anything to save.
fn not_begun(error: Error, from: Option<PathBuf>) -> Error {
    let unsaved = error.failure() == Failure::Stopped && !matches!(error, Error::Stopped { .. });
    if unsaved { Error::NotBegun { from } } else { error }
}

/// Where the run goes on from, if it was asked to.
pub(super) fn resume_from(options: &FinetuneOptions) -> Option<PathBuf> {
    match options.resume.as_deref()? {
        auto if auto == Path::new(AUTO) => resume::newest(&options.out_dir),
        folder => Some(folder.to_path_buf()),
    }
}

/// `--resume` without a folder.
const AUTO: &str = "auto";

/// Whether the run that is to go on has nothing left to do.
pub(super) fn is_finished(options: &FinetuneOptions) -> bool {
    options.resume.as_deref() == Some(Path::new(AUTO)) && resume::is_finished(&options.out_dir)
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
    if asked.layers.is_some() {
        names.push("--lora_layers".into());
    }
    if !options.freeze.is_empty() {
        names.push("--freeze".into());
    }
    if !asked.modules_to_save.is_empty() && asked.modules_to_save != kept.modules_to_save {
        names.push("--modules_to_save".into());
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
        options.lora.modules_to_save.clone_from(&spec.saved);
        let settings = AdapterConfig { lora_dropout: spec.dropout, ..adapter.config.clone() };
        return Ok((spec, Some(adapter), settings));
    }
    let lora = &options.lora;
    let spec = spec_of_targets(config, &lora.targets, lora.rank, lora.alpha, lora.dropout)?;
    let spec = restricted(config, spec, lora.layers, &options.freeze)?;
    let spec = with_saved(config, spec, &lora.modules_to_save)?;
    // as other programs take paths, without the prefix that Windows gives a canonical one
    let base = dunce::canonicalize(&options.model_dir).unwrap_or_else(|_| options.model_dir.clone());
    let settings = settings_of(config, &spec, lora.alpha, Some(base.display().to_string()));
    Ok((spec, None, settings))
}
