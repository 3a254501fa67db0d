//! Measuring kernels where a driver may lose the device over one: on a [`Gpu::twin`], which is opened again, without that kernel.

use super::kernel_file::{EVERY_CLASS, KernelFile, Refused};
use super::trial::Trial;
use super::tuning::folder_of;
use crate::gpu::{Gpu, GpuError};
use crate::plan::PlanError;
use crate::plan::tune::{Candidate, Measurement, measure_telling};
use std::path::Path;
use std::time::Duration;

/// So many devices are lost to kernels in one start; a driver may take seconds over each.
const MOST_LOST: usize = 8;

/// What measures, and what it may not try.
pub(super) struct Measuring<'g> {
    gpu: &'g Gpu,
    /// Opened where something is to be measured.
    twin: Option<Gpu>,
    lost: usize,
    /// The file of measured kernels, and what names the device in it.
    file: Option<&'g Path>,
    key: &'g str,
    pub refused: Refused,
    /// What was refused here, each in a line.
    pub said: Vec<String>,
}

/// Why a measurement did not come to its end.
pub(super) enum Failed {
    /// The device was lost.
    Over(Box<Loss>),
    Otherwise(PlanError),
}

/// A device that was lost.
pub(super) struct Loss {
    /// What was tried when that happened: variants of a class, several where they were compiled together.
    variants: Vec<String>,
    /// The note of several on disk: which of them it was is not known yet.
    note: Option<Trial>,
    /// For who does not go on; it says what to do.
    error: GpuError,
    reason: String,
    /// For want of memory: the kernel may do elsewhere.
    full: bool,
}

impl From<Failed> for PlanError {
    fn from(failed: Failed) -> PlanError {
        match failed {
            Failed::Over(loss) => loss.error.into(),
            Failed::Otherwise(error) => error,
        }
    }
}

impl<'g> Measuring<'g> {
    pub fn new(gpu: &'g Gpu, file: Option<&'g Path>, key: &'g str, refused: Refused) -> Self {
        Measuring { gpu, twin: None, lost: 0, file, key, refused, said: Vec::new() }
    }

    /// Where kernels run; the device itself where its driver opens no other.
    pub fn device(&mut self) -> Gpu {
        let open = || {
            // nothing can go on after the loss of the device itself
            self.gpu.twin().inspect_err(|_| self.lost = MOST_LOST).unwrap_or_else(|_| self.gpu.clone())
        };
        self.twin.get_or_insert_with(open).clone()
    }

    /// Measures a class, without the variants that take the device with them. `None` where there is no room for its default.
    ///
    /// # Errors
    /// What the device reported, where it cannot go on.
    pub fn measure(
        &mut self,
        candidate: &mut Candidate,
        budget: Duration,
    ) -> Result<Option<Measurement>, PlanError> {
        let class = candidate.class.to_string();
        loop {
            candidate.retain(|variant| !self.refused.variant(&class, variant));
            let gpu = self.device();
            let measured = self.trying(candidate, |tell| measure_telling(&gpu, candidate, budget, tell));
            match measured {
                Ok(measurement) => {
                    // without a word where it was for want of memory: the next class gets another one
                    if let Err(error) = gpu.check() {
                        drop(gpu);
                        self.reopen(error)?;
                    }
                    return Ok(Some(measurement));
                }
                Err(Failed::Over(loss)) => {
                    drop(gpu);
                    if !self.goes_on_after(*loss, candidate)? {
                        return Ok(None);
                    }
                }
                Err(Failed::Otherwise(error)) => return Err(error),
            }
        }
    }

    /// Runs kernels of a class, with a note on disk of what is being tried. What was tried last is refused from then on where the
    /// device does not survive it.
    pub fn trying<T>(
        &self,
        candidate: &Candidate,
        run: impl FnOnce(&mut dyn FnMut(&[&str])) -> Result<T, PlanError>,
    ) -> Result<T, Failed> {
        let mut trial = Trial::new(self.file.map(folder_of), self.key, candidate.class.to_string());
        match run(&mut |variants| trial.note(variants)) {
            Err(PlanError::Gpu(error)) => Err(self.failed(error, trial, candidate)),
            Err(other) => {
                trial.end();
                Err(Failed::Otherwise(other))
            }
            Ok(done) => {
                trial.end();
                Ok(done)
            }
        }
    }

    /// Takes down in the file what a measurement did not survive.
    fn failed(&self, error: GpuError, trial: Trial, candidate: &Candidate) -> Failed {
        let class = candidate.class.to_string();
        let full = matches!(error, GpuError::OutOfMemory { .. } | GpuError::OverMemoryLimit { .. });
        let variants = trial.variants().to_vec();
        let (note, left_out) = match &variants[..] {
            // nothing ran yet
            [] => return Failed::Otherwise(error.into()),
            // the default serves without having been tried, and there may be room another time
            [variant] if full && variant == candidate.default_variant() => {
                trial.end();
                (None, false)
            }
            [variant] => {
                let default = variant == candidate.default_variant();
                let of = if default || full { &class } else { EVERY_CLASS };
                let refuse = |kept: &mut KernelFile| {
                    kept.refused.entry(self.key.to_owned()).or_default().add(of, variant);
                };
                let kept = self.file.is_some_and(|file| KernelFile::update(file, refuse).is_ok());
                trial.end();
                (None, kept && !default)
            }
            _ => (Some(trial), false),
        };
        let reason = match &error {
            GpuError::Lost(reason) => format!("the device was lost: {reason}"),
            other => other.to_string(),
        };
        let kernel = variants.join(" or ");
        let error = match (full, &note) {
            (true, None) => error,
            _ => GpuError::Measuring { kernel, class, reason: reason.clone(), left_out },
        };
        Failed::Over(Box::new(Loss { variants, note, error, reason, full }))
    }

    /// Opens another device in place of the lost one, and refuses what it was lost over. False where the class cannot be measured.
    ///
    /// # Errors
    /// That of the loss, where nothing can go on after it: the default did it, the device itself is lost too, or too many were.
    fn goes_on_after(&mut self, loss: Loss, candidate: &mut Candidate) -> Result<bool, PlanError> {
        let Loss { variants, note, error, reason, full } = loss;
        let default = variants == [candidate.default_variant()];
        if default && !full {
            return Err(error.into());
        }
        self.reopen(error)?;
        let class = candidate.class.to_string();
        match (&variants[..], note) {
            (_, Some(note)) => {
                // compiled one at a time, it shows which it is
                candidate.one_by_one = true;
                note.end();
            }
            ([variant], None) if default => {
                self.said.push(format!("no memory is left to measure {class}: {variant} stays ({reason})"));
            }
            ([variant], None) => {
                self.said
                    .push(format!("the kernel {variant} is left out: it did not survive {class} ({reason})"));
                self.refused.add(if full { &class } else { EVERY_CLASS }, variant);
            }
            _ => {}
        }
        Ok(!default)
    }

    /// Lets a lost device go; what is measured next opens another one.
    ///
    /// # Errors
    /// That of the loss, where nothing can go on after it: the device itself is lost too, or too many were.
    fn reopen(&mut self, error: GpuError) -> Result<(), PlanError> {
        let lost = self.twin.take().filter(|_| self.lost < MOST_LOST);
        let Some(lost) = lost else { return Err(error.into()) };
        lost.abandon();
        self.lost += 1;
        match self.gpu.is_alive() {
            Ok(()) => Ok(()),
            Err(_) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{DType, DeviceProfile, Graph, Shape};
    use crate::ops::matmul::{Layout, matmul};
    use crate::plan::tune::unmeasured;
    use crate::train::trial::LeftBehind;
    use std::fs;

    fn candidate() -> Candidate {
        let mut graph = Graph::new();
        let a = graph.input("a", Shape::matrix(256, 256), DType::F32).unwrap();
        let b = graph.input("b", Shape::matrix(256, 256), DType::F32).unwrap();
        let c = matmul(&mut graph, Layout::NT, a, b, 1.0, DType::F32).unwrap();
        graph.output("c", c);
        unmeasured(&graph, &DeviceProfile::typical_gpu()).swap_remove(0)
    }

    #[test]
    fn a_device_lost_while_measuring_names_the_kernel_and_refuses_it() {
        let gpu = match Gpu::open(&crate::gpu::GpuOptions::default()) {
            Ok(gpu) => gpu,
            Err(error) => return eprintln!("SKIPPED: {error}"),
        };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels.json");
        let measuring = Measuring::new(&gpu, Some(&file), "this", Refused::default());
        let candidate = candidate();
        let class = candidate.class.to_string();
        let fail = |variants: &[&str], error: GpuError| {
            let failed = measuring.trying(&candidate, |tell| {
                tell(variants);
                Err::<(), _>(PlanError::Gpu(error))
            });
            match PlanError::from(failed.unwrap_err()) {
                PlanError::Gpu(error) => error,
                other => panic!("{other}"),
            }
        };
        let refused = || KernelFile::read(&file).unwrap().refused.remove("this").unwrap_or_default();
        let lost = GpuError::Lost("the watchdog".into());
        let said = fail(&["tiled 64x64 per=4x4 depth=16 split=1"], lost.clone()).to_string();
        for part in ["tiled 64x64 per=4x4", &class, "the watchdog", "run again", "--no_coop", "--tune off"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(refused().variant("another class", "tiled 64x64 per=4x4 depth=16 split=1"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing but the file");

        // without the default the class cannot be measured, and a run has no other
        let default = candidate.default_variant();
        let error = fail(&[default], lost.clone());
        assert!(matches!(error, GpuError::Measuring { left_out: false, .. }), "{error}");
        assert!(!refused().class(&class, default));
        fail(&[default], lost.clone());
        assert!(refused().class(&class, default));

        // which of several it was is for the next start
        assert!(matches!(fail(&["a", "b"], lost.clone()), GpuError::Measuring { left_out: false, .. }));
        assert!(!refused().variant(&class, "a"));
        let left = LeftBehind::find(folder.path());
        assert_eq!(left.iter().map(|left| &left.trying.class).collect::<Vec<_>>(), [&class]);
        // nothing had run
        assert_eq!(fail(&[], lost.clone()), lost);
        // no room is no fault of the kernel elsewhere
        let full = GpuError::OutOfMemory { what: "a step".into(), bytes: 0 };
        assert_eq!(fail(&["a"], full.clone()), full);
        assert!(refused().variant(&class, "a") && !refused().variant("another class", "a"));
    }

    #[test]
    fn so_many_devices_are_lost_and_no_more() {
        let gpu = match Gpu::open(&crate::gpu::GpuOptions::default()) {
            Ok(gpu) => gpu,
            Err(error) => return eprintln!("SKIPPED: {error}"),
        };
        let mut measuring = Measuring::new(&gpu, None, "this", Refused::default());
        let mut candidate = candidate();
        let class = candidate.class.to_string();
        let mut lose = |measuring: &mut Measuring<'_>, variants: &[&str], error: GpuError| {
            measuring.device();
            let failed = measuring.trying(&candidate, |tell| {
                tell(variants);
                Err::<(), _>(PlanError::Gpu(error))
            });
            let Err(Failed::Over(loss)) = failed else { panic!("no loss") };
            measuring.goes_on_after(*loss, &mut candidate)
        };
        let lost = GpuError::Lost("the driver's compiler".into());
        let full = GpuError::OutOfMemory { what: "a step".into(), bytes: 0 };
        assert!(lose(&mut measuring, &["a", "b"], lost.clone()).unwrap());
        assert!(measuring.said.is_empty(), "it is not known which of them it was");
        assert!(lose(&mut measuring, &["b"], lost.clone()).unwrap());
        assert!(measuring.said[0].contains("the kernel b is left out"), "{:?}", measuring.said);
        assert!(measuring.refused.variant("another class", "b") && !measuring.refused.variant(&class, "a"));
        let default = self::candidate().default_variant().to_owned();
        assert!(!lose(&mut measuring, &[&default], full).unwrap(), "no room to measure in");
        assert!(lose(&mut measuring, &[&default], lost.clone()).is_err(), "a run would take it");
        for _ in measuring.lost..MOST_LOST {
            assert!(lose(&mut measuring, &["c"], lost.clone()).unwrap());
        }
        let error = lose(&mut measuring, &["d"], lost).unwrap_err().to_string();
        assert!(error.contains("measuring the kernel d"), "{error}");
        assert!(gpu.is_alive().is_ok());
    }
}
