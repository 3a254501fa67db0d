//! Which kernels a device runs: measured once per device, driver and class of shapes, kept in a readable file.
//!
//! The file is `kernels.json` in engraft's folder under the platform's cache folder, or in `$ENGRAFT_CACHE`. Its keys name
//! device, backend, driver and the kernels' own text, so that a new driver or a new version measures anew and leaves the
//! others' entries alone.

use crate::checkpoint::atomic::write_file;
use crate::gpu::Gpu;
use crate::graph::{Choices, Class, Graph};
use crate::ops::fingerprint;
use crate::plan::PlanError;
use crate::plan::tune::{Candidate, Measurement, measure, unmeasured};
use crate::stop::StopFlag;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::options::TuneMode;

/// Finds the kernels for graphs.
#[derive(Clone, Debug)]
pub struct Tuner {
    pub mode: TuneMode,
    /// Where choices are kept; `None` keeps them for this process alone.
    pub file: Option<PathBuf>,
    /// No class is begun after this much time: the classes with most work come first, the rest keep their defaults and
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
    pub seconds: f64,
    /// A cache file that could not be read or written: the run goes on without it.
    pub trouble: Option<String>,
}

/// A class may take this long; its default variant is measured in any case.
const CLASS_BUDGET: Duration = Duration::from_secs(4);

impl Tuner {
    /// The platform's cache file, and 30 seconds.
    pub fn new(mode: TuneMode) -> Self {
        Tuner { mode, file: default_file(), budget: Duration::from_secs(30), forced: None }
    }

    /// # Errors
    /// What is wrong with the cache file, in which nothing could be kept.
    pub fn readable(&self) -> Result<(), String> {
        self.file.as_deref().map_or(Ok(()), |file| Cache::read(file).map(drop))
    }

    /// Sets the device's choices from the file alone; a file that cannot be read is as good as none.
    pub fn recall(&self, gpu: &Gpu) {
        let cache = self.file.as_deref().and_then(|file| Cache::read(file).ok()).unwrap_or_default();
        gpu.set_choices(cache.devices.get(&key(gpu)).map_or_else(Choices::default, choices));
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

    /// [`Tuner::prepare_until`] for several graphs, whose classes are counted as one and measured once each; what was measured is
    /// kept after every graph. Where that fails, no further graph is begun.
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
        let mut cache = Cache::default();
        if let Some(file) = &self.file {
            match Cache::read(file) {
                Ok(read) => cache = read,
                Err(trouble) => report.trouble = Some(trouble),
            }
        }
        let mut entries = cache.devices.get(&key).cloned().unwrap_or_default();
        // without a choice all classes count as unmeasured
        gpu.set_choices(if self.mode == TuneMode::Full { Choices::default() } else { choices(&entries) });
        let mut work: Vec<Vec<Candidate>> = Vec::new();
        for graph in graphs {
            let mut candidates = unmeasured(graph, &gpu.profile());
            candidates.retain(|new| work.iter().flatten().all(|known| known.class != new.class));
            work.push(candidates);
        }
        let total = work.iter().map(Vec::len).sum();
        for candidates in &work {
            let before = report.measured;
            for candidate in candidates {
                if start.elapsed() > self.budget || stop.is_set() {
                    break;
                }
                let measurement = measure(gpu, candidate, CLASS_BUDGET)?;
                if measurement.seconds.is_finite() {
                    entries.insert(measurement.class.to_string(), Entry::of(&measurement));
                }
                report.measured += 1;
                progress(&TuneProgress { done: report.measured, total, measurement });
            }
            if report.measured > before
                && report.trouble.is_none()
                && let Some(file) = &self.file
            {
                // another process may have written since
                if let Ok(latest) = Cache::read(file) {
                    cache = latest;
                }
                // entries of a device replace those of the same class
                cache.devices.entry(key.clone()).or_default().extend(entries.clone());
                report.trouble = cache.write(file).err();
                if report.trouble.is_some() {
                    // what the next graphs measured could not be kept either
                    break;
                }
            }
        }
        report.left = total - report.measured;
        gpu.set_choices(choices(&entries));
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }
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

fn key(gpu: &Gpu) -> String {
    let info = gpu.info();
    let profile = gpu.profile();
    let subgroup = profile.subgroup.map_or(String::new(), |lanes| format!(" | subgroup {lanes}"));
    let matrix =
        profile.cooperative.map_or(String::new(), |c| format!(" | matrix {} of {} lanes", c.size, c.lanes));
    let kernels = fingerprint();
    format!("{} | {} | {}{subgroup}{matrix} | kernels {kernels:08x}", info.name, info.backend, info.driver)
}

fn choices(entries: &Entries) -> Choices {
    let mut choices = Choices::default();
    for (name, entry) in entries {
        if let Some(class) = parse(name) {
            choices.insert(class, entry.variant.clone());
            if !entry.variant.contains("coop") {
                choices.reached(entry.gflops);
            }
        }
    }
    choices
}

/// Reads what [`Class`] displays; `None` for what somebody else wrote.
fn parse(name: &str) -> Option<Class> {
    let (family, extents) = name.rsplit_once(' ')?;
    let extents = extents.split('x').map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(Class { family: family.into(), extents })
}

/// The file's content: device to class to what was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cache {
    devices: BTreeMap<String, Entries>,
}

type Entries = BTreeMap<String, Entry>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    variant: String,
    gflops: f64,
    /// What the variant is faster by than the default.
    gain: f64,
}

impl Entry {
    fn of(measurement: &Measurement) -> Self {
        let tenths = |v: f64| (v * 10.0).round() / 10.0;
        Entry {
            variant: measurement.variant.clone(),
            gflops: tenths(measurement.gflops),
            gain: (measurement.default_seconds / measurement.seconds * 100.0).round() / 100.0,
        }
    }
}

impl Cache {
    /// A missing file is an empty one.
    fn read(file: &Path) -> Result<Self, String> {
        match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                format!(
                    "{} is not a file of measured kernels ({e}); delete it to measure anew",
                    file.display()
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Cache::default()),
            Err(error) => Err(format!("cannot read {}: {error}; kernels are measured anew", file.display())),
        }
    }

    fn write(&self, file: &Path) -> Result<(), String> {
        let written = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            write_file(file, |out| {
                serde_json::to_writer_pretty(&mut *out, self)?;
                out.write_all(b"\n")
            })
        });
        written.map_err(|e| format!("cannot write {}: {e}; the next run measures again", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_reads_back_as_choices() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/kernels.json");
        assert_eq!(Cache::read(&file), Ok(Cache::default()));
        let class =
            Class { family: "matmul f32·f32 + f32·f32 -> f32".into(), extents: vec![512, 64, 256, 8] };
        let entry = Entry { variant: "uniform 32x32 unroll=2".into(), gflops: 70.1, gain: 1.2 };
        let entries = Entries::from([(class.to_string(), entry.clone()), ("by hand".into(), entry)]);
        let cache = Cache { devices: [("a".into(), entries)].into() };
        cache.write(&file).unwrap();
        let read = Cache::read(&file).unwrap();
        assert_eq!(read, cache);
        let choices = choices(&read.devices["a"]);
        assert_eq!(choices.iter().collect::<Vec<_>>(), [(&class, "uniform 32x32 unroll=2")]);
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels.json");
        fs::write(&file, "{\"devices\": 3}").unwrap();
        let said = Cache::read(&file).unwrap_err();
        assert!(said.contains("kernels.json") && said.contains("delete it"), "{said}");
    }
}
