//! The error of the library's top-level calls, and the exit code that the program makes of it.

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::export::ExportError;
use crate::generate::GenerateError;
use crate::gpu::GpuError;
use crate::hub::HubError;
use crate::memory_size::memory_text;
use crate::models::ConfigError;
use crate::plan::PlanError;
use crate::stop::Stopped;
use crate::train::adapter::AdapterError;
use crate::train::disk::NoRoom;
use crate::train::logging::MetricsError;
use crate::train::loss_scale::LossScaleError;
use crate::train::memory::{Advice, FitError, MemoryError};
use crate::train::optimiser::OptimiserError;
use crate::train::options::{Method, OptionsError};
use crate::train::trainer::TrainerError;
use crate::train::weights::WeightError;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Whatever ends a run early.
#[derive(Debug, Error)]
pub enum Error {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Trainer(#[from] TrainerError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Hub(Box<HubError>),
    #[error(transparent)]
    LossScale(#[from] LossScaleError),
    /// Gradients that are not finite ended the run at this step; what was trained before it is in `saved`, where anything was.
    #[error("step {step}: {source}{}", what_is_left(saved.as_deref(), *method))]
    Diverged { step: usize, source: LossScaleError, saved: Option<PathBuf>, method: Method },
    /// The result of a run could not be written.
    #[error(
        "the result could not be saved: {source}{}",
        saved.as_ref().map_or(String::new(), |path| format!("; what was saved last is whole: {}", path.display()))
    )]
    Unsaved { source: Box<Error>, saved: Option<PathBuf> },
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An allocation failed while the run was under way; `planned` is what the whole run was planned to take.
    #[error(
        "{source}; the run was planned to take {}; {advice}{}",
        memory_text(*planned),
        saved.as_ref().map_or(String::new(), |path| format!("; what was saved last is whole: {}", path.display()))
    )]
    OutOfMemory { source: Box<Error>, planned: u64, advice: Box<Advice>, saved: Option<PathBuf> },
    /// A benchmark asks for more than the device has; `advice` is in the options of that benchmark, which a run's are not.
    #[error("{}; {advice}", what_is_lacking(source))]
    Benchmark { source: GpuError, advice: &'static str },
    /// The run was asked to stop, and saved what it had. `unfinished`: during the validation after that step, which will be made again.
    #[error(
        "stopped after step {step} of {steps}{}, saved in {}; the same command with --resume goes on",
        if *unfinished { ", its validation unfinished" } else { "" },
        folder.display()
    )]
    Stopped { step: usize, steps: usize, unfinished: bool, folder: PathBuf },
    /// The run was asked to stop before it had made a step, or a further one where it went on `from` a saved one.
    #[error("{}", not_begun(from.as_deref()))]
    NotBegun { from: Option<PathBuf> },
    #[error("{input}")]
    Input { input: String },
    #[error("cannot write {}: {source}{}", path.display(), write_advice(source))]
    Write { path: PathBuf, source: io::Error },
}

/// What to look at where a file cannot be written.
fn write_advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "",
        _ => "; is the folder writable and the disk not full?",
    }
}

/// What kind of failure an error is: the program's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The run itself failed.
    Run,
    /// Options, files or data are wrong; nothing was written.
    Input,
    /// The device has not enough memory.
    Memory,
    /// No device can be used.
    Device,
    /// The user stopped it.
    Stopped,
}

impl Error {
    /// A mistake in what the user gave, in words.
    pub fn input(message: impl Into<String>) -> Self {
        Error::Input { input: message.into() }
    }

    /// What the device said, where the error is that.
    pub fn gpu(&self) -> Option<&GpuError> {
        match self {
            Error::Gpu(e)
            | Error::Benchmark { source: e, .. }
            | Error::Trainer(
                TrainerError::Gpu(e)
                | TrainerError::Plan(PlanError::Gpu(e))
                | TrainerError::Weights(WeightError::Gpu(e))
                | TrainerError::Optimiser(OptimiserError::Gpu(e) | OptimiserError::Plan(PlanError::Gpu(e))),
            )
            | Error::Generate(
                GenerateError::Gpu(e)
                | GenerateError::Plan(PlanError::Gpu(e))
                | GenerateError::Weights(WeightError::Gpu(e)),
            ) => Some(e),
            _ => None,
        }
    }

    /// Whether a file could not be written: nothing is wrong with what should have been in it.
    pub fn is_unwritten(&self) -> bool {
        matches!(self, Error::Write { .. } | Error::Checkpoint(CheckpointError::Write { .. }))
    }

    pub fn failure(&self) -> Failure {
        match self {
            Error::Data(DataError::Stopped(_))
            | Error::Trainer(TrainerError::Weights(WeightError::Stopped(_))) => Failure::Stopped,
            Error::Options(_)
            | Error::Config(_)
            | Error::Data(_)
            | Error::Adapter(_)
            | Error::Export(_)
            | Error::NoRoom(_)
            | Error::Input { .. } => Failure::Input,
            Error::Checkpoint(CheckpointError::Write { .. }) => Failure::Run,
            Error::Checkpoint(_) | Error::Trainer(TrainerError::Weights(WeightError::Checkpoint(_))) => {
                Failure::Input
            }
            Error::LossScale(_)
            | Error::Diverged { .. }
            | Error::Unsaved { .. }
            | Error::Metrics(_)
            | Error::Write { .. } => Failure::Run,
            Error::Memory(_) | Error::OutOfMemory { .. } => Failure::Memory,
            Error::Stopped { .. } | Error::NotBegun { .. } => Failure::Stopped,
            Error::Hub(e) if e.is_input() => Failure::Input,
            Error::Hub(_) => Failure::Run,
            Error::Gpu(e) | Error::Benchmark { source: e, .. } => of_gpu(e),
            Error::Generate(e) => of_generate(e),
            Error::Trainer(_) => self.gpu().map_or(Failure::Run, of_gpu),
        }
    }
}

impl From<Stopped> for Error {
    fn from(_: Stopped) -> Self {
        Error::NotBegun { from: None }
    }
}

impl From<FitError> for Error {
    fn from(error: FitError) -> Self {
        match error {
            FitError::Memory(e) => Error::Memory(e),
            FitError::Graph(e) => Error::Trainer(e.into()),
        }
    }
}

impl From<HubError> for Error {
    fn from(error: HubError) -> Self {
        Error::Hub(Box::new(error))
    }
}

impl From<OptimiserError> for Error {
    fn from(error: OptimiserError) -> Self {
        Error::Trainer(error.into())
    }
}

impl From<PlanError> for Error {
    fn from(error: PlanError) -> Self {
        Error::Trainer(error.into())
    }
}

impl From<WeightError> for Error {
    fn from(error: WeightError) -> Self {
        match error {
            WeightError::Checkpoint(e) => Error::Checkpoint(e),
            WeightError::Gpu(e) => Error::Gpu(e),
            WeightError::Stopped(_) => Error::Trainer(error.into()),
        }
    }
}

/// What a device has too little of, without advice.
fn what_is_lacking(error: &GpuError) -> String {
    match error {
        GpuError::OverLimit { what, limit, requested, maximum } => {
            format!("{what} needs {requested}, over this device's limit of {maximum} {limit}")
        }
        GpuError::OutOfMemory { what, bytes: 0 } => {
            format!("out of device memory: {what} could not be allocated")
        }
        GpuError::OutOfMemory { what, bytes } => {
            format!("out of device memory: {bytes} bytes for {what} could not be allocated")
        }
        other => other.to_string(),
    }
}

/// Where a run that came to an end too early has left something, and how another one begins with it.
fn what_is_left(saved: Option<&Path>, method: Method) -> String {
    let Some(folder) = saved.map(Path::display) else { return String::new() };
    let begin = match method {
        Method::Lora => format!("--init_adapter {folder}"),
        Method::Full { .. } => format!("{folder} in place of MODEL_DIR"),
    };
    format!("; what was trained before this step is saved: {begin} begins another run with it")
}

fn not_begun(from: Option<&Path>) -> String {
    match from {
        None => "stopped before the first step: nothing is saved; the same command begins again".into(),
        Some(folder) => {
            format!(
                "stopped before a further step: {} is as it was; the same command goes on",
                folder.display()
            )
        }
    }
}

fn of_generate(error: &GenerateError) -> Failure {
    match error {
        GenerateError::NoPrompt
        | GenerateError::UnknownToken { .. }
        | GenerateError::CacheFull { .. }
        | GenerateError::ContextFull { .. }
        | GenerateError::OverLimit { .. }
        | GenerateError::Options(_)
        | GenerateError::Weights(WeightError::Checkpoint(_)) => Failure::Input,
        GenerateError::Weights(WeightError::Stopped(_)) => Failure::Stopped,
        GenerateError::Gpu(e)
        | GenerateError::Plan(PlanError::Gpu(e))
        | GenerateError::Weights(WeightError::Gpu(e)) => of_gpu(e),
        GenerateError::Sampling(_) | GenerateError::Graph(_) | GenerateError::Plan(_) => Failure::Run,
    }
}

fn of_gpu(error: &GpuError) -> Failure {
    match error {
        GpuError::NoDevice | GpuError::NoMatch { .. } | GpuError::Open { .. } | GpuError::NoHostMemory => {
            Failure::Device
        }
        GpuError::OutOfMemory { .. }
        | GpuError::OutOfHostMemory { .. }
        | GpuError::OverMemoryLimit { .. }
        | GpuError::OverLimit { .. } => Failure::Memory,
        GpuError::Lost(_)
        | GpuError::Measuring { .. }
        | GpuError::Validation(_)
        | GpuError::Shader { .. } => Failure::Run,
    }
}
