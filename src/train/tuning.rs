//! Which kernels a device runs: measured once per device, driver and class of shapes, kept in a readable file.
//!
//! The file is `kernels.json` in engraft's folder under the platform's cache folder, or in `$ENGRAFT_CACHE`. Its keys name
//! device, backend, driver and the kernels' own text, so that a new driver or a new version measures anew and leaves the
//! others' entries alone. It is written after every class.
//!
//! A driver may lose the device over a kernel, or end the process. Kernels are measured on a device of their own ([`Gpu::twin`]), so that
//! the first costs nothing but that kernel. What is being tried is noted beside that file before it runs, and a variant that the process
//! did not survive is left out by later starts. Who ends the program by a signal calls [`forget_trials`].

use super::kernel_file::{Entries, Entry, KernelFile, Refused, choices};
use super::measuring::Measuring;
use super::options::TuneMode;
use super::trial::LeftBehind;
pub use super::trial::forget_trials;
use crate::gpu::{Gpu, sources};
use crate::graph::{Choices, Graph};
use crate::ops::fingerprint;
use crate::plan::PlanError;
use crate::plan::tune::{Candidate, Measurement, unmeasured};
use crate::stop::StopFlag;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Finds the kernels for graphs.
#[derive(Clone, Debug)]
pub struct Tuner {
    pub mode: TuneMode,
    /// Where choices are kept; `None` keeps them for this process alone.
    pub file: Option<PathBuf>,
    /// No class is begun after this much time: the classes that take most of it come first, the rest keep their defaults and
    /// are measured by a later run.
    pub budget: Duration,
    /// One variant for every launch whose family has it, and no measuring: for comparing kernels.
    pub forced: Option<String>,
}

/// One class was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct TuneProgress {
    pub done: usize,
    pub total: usize,
    pub measurement: Measurement,
}

/// What [`Tuner::prepare`] did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TuneReport {
    pub measured: usize,
    /// Classes that were left for want of time.
    pub left: usize,
    /// Classes some of whose variants were left for want of time.
    pub untried: usize,
    pub seconds: f64,
    /// A cache file that could not be read or written: the run goes on without it.
    pub trouble: Option<String>,
    /// Kernels that measuring did not survive, each in a line.
    pub left_out: Vec<String>,
}

/// A class may take this long; its default variant is measured in any case.
const CLASS_BUDGET: Duration = Duration::from_secs(4);

impl Tuner {
    /// The platform's cache file, all the time that it takes, and every variant tried.
    pub fn thorough(mode: TuneMode) -> Self {
        Tuner { budget: Duration::MAX, ..Tuner::new(mode) }
    }

    fn is_thorough(&self) -> bool {
        self.budget == Duration::MAX
    }

    /// The platform's cache file, and 30 seconds.
    pub fn new(mode: TuneMode) -> Self {
        Tuner { mode, file: default_file(), budget: Duration::from_secs(30), forced: None }
    }

    /// # Errors
    /// What is wrong with the cache file, in which nothing could be kept.
    pub fn readable(&self) -> Result<(), String> {
        self.file.as_deref().map_or(Ok(()), |file| KernelFile::read(file).map(drop))
    }

    /// Sets the device's choices from the file alone; a file that cannot be read is as good as none.
    pub fn recall(&self, gpu: &Gpu) {
        let kept = self.file.as_deref().and_then(|file| KernelFile::read(file).ok()).unwrap_or_default();
        gpu.set_choices(kept.devices.get(&key(gpu)).map_or_else(Choices::default, choices));
    }

    /// Sets the device's choices for the graph: from the file, and by measuring what it lacks.
    ///
    /// # Errors
    /// What the device reported. Trouble with the file is in the report instead.
    pub fn prepare(
        &self,
        gpu: &Gpu,
        graph: &Graph,
        progress: &mut dyn FnMut(&TuneProgress),
    ) -> Result<TuneReport, PlanError> {
        self.prepare_until(gpu, graph, progress, &StopFlag::default())
    }

    /// [`Tuner::prepare`], which measures no further class once it is asked to stop; what was measured is kept.
    ///
    /// # Errors
    /// As [`Tuner::prepare`].
    pub fn prepare_until(
        &self,
        gpu: &Gpu,
        graph: &Graph,
        progress: &mut dyn FnMut(&TuneProgress),
        stop: &StopFlag,
    ) -> Result<TuneReport, PlanError> {
        self.prepare_all(gpu, std::slice::from_ref(graph), progress, stop)
    }

    /// [`Tuner::prepare_until`] for several graphs, whose classes are counted as one and measured once each. Where what was measured
    /// cannot be kept, no further graph is begun.
    ///
    /// # Errors
    /// As [`Tuner::prepare`].
    pub fn prepare_all(
        &self,
        gpu: &Gpu,
        graphs: &[Graph],
        progress: &mut dyn FnMut(&TuneProgress),
        stop: &StopFlag,
    ) -> Result<TuneReport, PlanError> {
        let mut report = TuneReport::default();
        if self.mode == TuneMode::Off || self.forced.is_some() {
            gpu.set_choices(self.forced.as_ref().map_or_else(Choices::default, Choices::forced));
            return Ok(report);
        }
        let start = Instant::now();
        let key = key(gpu);
        let Known { mut entries, refused, suspected } = self.recollect(&key, &mut report);
        let known = match self.mode {
            // without a choice all classes count as unmeasured
            TuneMode::Full => Choices::default(),
            _ if self.is_thorough() => choices(entries.iter().filter(|(_, entry)| entry.untried == 0)),
            _ => choices(&entries),
        };
        gpu.set_choices(known);
        let mut measuring = Measuring::new(gpu, self.file.as_deref(), &key, refused);
        let mut work: Vec<Vec<Candidate>> = Vec::new();
        for graph in graphs {
            let mut candidates = unmeasured(graph, &gpu.profile());
            candidates.retain(|new| work.iter().flatten().all(|known| known.class != new.class));
            candidates.retain(|new| !measuring.refused.class(&new.class.to_string(), new.default_variant()));
            for candidate in &mut candidates {
                candidate.one_by_one = suspected.contains(&candidate.class.to_string());
            }
            if !gpu.profile().cpu && !self.is_thorough() {
                let ends = || stop.is_set() || start.elapsed() > self.budget / 3;
                longest_first(&mut measuring, &mut candidates, &ends)?;
            }
            work.push(candidates);
        }
        let total = work.iter().map(Vec::len).sum();
        let could_keep = report.trouble.is_none();
        let class_budget = if self.is_thorough() { Duration::MAX } else { CLASS_BUDGET };
        for candidates in &mut work {
            for candidate in candidates {
                if start.elapsed() > self.budget || stop.is_set() {
                    break;
                }
                let measured = measuring.measure(candidate, class_budget);
                report.left_out.append(&mut measuring.said);
                report.measured += 1;
                let Some(measurement) = measured? else { continue };
                report.untried += measurement.untried.min(1);
                if measurement.seconds.is_finite() {
                    let (class, entry) = (measurement.class.to_string(), Entry::of(&measurement));
                    entries.insert(class.clone(), entry.clone());
                    if let (Some(file), None) = (&self.file, &report.trouble) {
                        // entries of a device replace those of the same class
                        let of_device = |kept: &mut KernelFile| {
                            kept.devices.entry(key.clone()).or_default().insert(class, entry);
                        };
                        report.trouble = KernelFile::update(file, of_device).err();
                    }
                }
                progress(&TuneProgress { done: report.measured, total, measurement });
            }
            if could_keep && report.trouble.is_some() {
                // what the next graphs measured could not be kept either
                break;
            }
        }
        report.left = total - report.measured;
        gpu.set_choices(choices(&entries));
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }

    /// What the file says of a device, once what trials left behind is in it.
    fn recollect(&self, key: &str, report: &mut TuneReport) -> Known {
        let Some(file) = &self.file else { return Known::default() };
        let left = LeftBehind::find(folder_of(file));
        let mut suspected = HashSet::new();
        for LeftBehind { trying, .. } in left.iter().filter(|left| left.trying.device == key) {
            match &trying.variants[..] {
                [variant] => report.left_out.push(format!(
                    "the kernel {variant} is left out for {}: an earlier start ended while it was measured",
                    trying.class
                )),
                // compiled one at a time, the next start ends with the one that it is
                _ => drop(suspected.insert(trying.class.clone())),
            }
        }
        let refuse = |kept: &mut KernelFile| {
            for LeftBehind { trying, .. } in &left {
                if let [variant] = &trying.variants[..] {
                    kept.refused.entry(trying.device.clone()).or_default().add(&trying.class, variant);
                }
            }
        };
        let mut kept = KernelFile::default();
        let read = KernelFile::read(file).map(|read| kept = read);
        refuse(&mut kept);
        let written = match left.is_empty() {
            true => Ok(()),
            false => read.clone().and_then(|()| KernelFile::update(file, refuse)),
        };
        if written.is_ok() {
            left.into_iter().for_each(LeftBehind::forget);
        }
        report.trouble = read.and(written).err();
        Known {
            entries: kept.devices.remove(key).unwrap_or_default(),
            refused: kept.refused.remove(key).unwrap_or_default(),
            suspected,
        }
    }

    /// [`longest_first`], without a file but this tuner's.
    ///
    /// # Errors
    /// What the device reported.
    pub fn longest_first(
        &self,
        gpu: &Gpu,
        candidates: &mut Vec<Candidate>,
        ends: &dyn Fn() -> bool,
    ) -> Result<(), PlanError> {
        let key = key(gpu);
        longest_first(
            &mut Measuring::new(gpu, self.file.as_deref(), &key, Refused::default()),
            candidates,
            ends,
        )
    }
}

/// Orders classes by the time that their default kernels take in a step, for which FLOPs are no measure on a GPU: a thin product
/// leaves most of it idle, and attention's default is far slower than a product's. Those that `ends` leaves no time for come
/// last.
///
/// # Errors
/// What the device reported.
fn longest_first(
    measuring: &mut Measuring<'_>,
    candidates: &mut Vec<Candidate>,
    ends: &dyn Fn() -> bool,
) -> Result<(), PlanError> {
    let mut timed = Vec::new();
    for candidate in candidates.drain(..) {
        let seconds = match ends() {
            true => None,
            false => {
                let gpu = measuring.device();
                measuring.trying(&candidate, |tell| candidate.default_seconds(&gpu, tell))?
            }
        };
        timed.push((seconds.unwrap_or(0.0), candidate));
    }
    // a stable sort: the others stay in order of their FLOPs
    timed.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    candidates.extend(timed.into_iter().map(|(_, candidate)| candidate));
    Ok(())
}

/// What is known of a device before anything is measured.
#[derive(Default)]
struct Known {
    entries: Entries,
    refused: Refused,
    /// Classes one of whose kernels the driver could not compile, it is not known which.
    suspected: HashSet<String>,
}

pub(super) fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The cache file, where the platform has a folder for it.
pub fn default_file() -> Option<PathBuf> {
    Some(cache_folder()?.join("kernels.json"))
}

/// Where compiled pipelines are kept.
pub fn pipeline_folder() -> Option<PathBuf> {
    Some(cache_folder()?.join("pipelines"))
}

fn cache_folder() -> Option<PathBuf> {
    match std::env::var_os("ENGRAFT_CACHE") {
        Some(folder) if !folder.is_empty() => Some(PathBuf::from(folder)),
        _ => Some(dirs::cache_dir()?.join("engraft")),
    }
}

/// What names a device, its driver and the kernels of this version.
pub(super) fn key(gpu: &Gpu) -> String {
    let info = gpu.info();
    let profile = gpu.profile();
    let subgroup = profile.subgroup.map_or(String::new(), |lanes| format!(" | subgroup {lanes}"));
    let matrix =
        profile.cooperative.map_or(String::new(), |c| format!(" | matrix {} of {} lanes", c.shape, c.lanes));
    let kernels = kernels();
    format!("{} | {} | {}{subgroup}{matrix} | kernels {kernels:08x}", info.name, info.backend, info.driver)
}

/// The hash (FNV-1a) of the kernels goes on over what makes code of them.
fn kernels() -> u32 {
    let add = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    sources().flat_map(str::bytes).fold(fingerprint(), add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{DType, DeviceProfile, Shape};
    use crate::ops::matmul::{Layout, matmul};
    use crate::train::trial::Trial;
    use std::fs;

    fn tuner(folder: &Path) -> Tuner {
        Tuner { file: Some(folder.join("kernels.json")), ..Tuner::new(TuneMode::Cached) }
    }

    fn candidate() -> Candidate {
        let mut graph = Graph::new();
        let a = graph.input("a", Shape::matrix(256, 256), DType::F32).unwrap();
        let b = graph.input("b", Shape::matrix(256, 256), DType::F32).unwrap();
        let c = matmul(&mut graph, Layout::NT, a, b, 1.0, DType::F32).unwrap();
        graph.output("c", c);
        unmeasured(&graph, &DeviceProfile::typical_gpu()).swap_remove(0)
    }

    /// A process that ended while these were tried.
    fn crash(folder: &Path, device: &str, class: &str, variants: &[&str]) {
        Trial::new(Some(folder), device, class.into()).note(variants);
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_variant_that_ended_an_earlier_start_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        crash(folder, "this", "matmul 8x8", &["coop"]);
        crash(folder, "this", "matmul 16x8", &["tiled", "coop"]);
        crash(folder, "that", "matmul 8x8", &["rows"]);
        let mut report = TuneReport::default();
        let known = tuner(folder).recollect("this", &mut report);
        assert!(known.refused.variant("matmul 8x8", "coop") && !known.refused.variant("matmul 8x8", "rows"));
        assert!(!known.refused.variant("matmul 16x8", "coop"), "it may have been another");
        assert_eq!(known.suspected, HashSet::from(["matmul 16x8".to_owned()]));
        assert_eq!(report.trouble, None);
        assert!(report.left_out.len() == 1 && report.left_out[0].contains("kernel coop"), "{report:?}");
        assert_eq!(names(folder), ["kernels.json"], "they are forgotten");

        let mut report = TuneReport::default();
        let known = tuner(folder).recollect("that", &mut report);
        assert!(known.refused.variant("matmul 8x8", "rows") && known.suspected.is_empty());
        assert_eq!(report, TuneReport::default(), "it is said once");
    }

    #[test]
    fn trials_stay_where_the_file_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("kernels.json"), "not json").unwrap();
        crash(folder, "this", "matmul 8x8", &["coop"]);
        let mut report = TuneReport::default();
        let known = tuner(folder).recollect("this", &mut report);
        assert!(known.refused.variant("matmul 8x8", "coop"));
        assert!(report.trouble.unwrap().contains("delete it"));
        assert_eq!(LeftBehind::find(folder).len(), 1);
    }

    #[test]
    fn what_is_refused_is_no_candidate() {
        let mut candidate = candidate();
        let default = candidate.default_variant().to_owned();
        candidate.retain(|_| false);
        assert_eq!(candidate.default_variant(), default);
    }
}
