//! The file of measured kernels: device to class to what was measured, and what is not to be tried again.

use crate::checkpoint::atomic::write_file;
use crate::graph::{Choices, Class};
use crate::plan::tune::Measurement;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// The file's content; devices by what names them, their driver and the kernels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct KernelFile {
    pub devices: BTreeMap<String, Entries>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<String, Refused>,
}

/// By class, as it displays.
pub(super) type Entries = BTreeMap<String, Entry>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub variant: String,
    pub gflops: f64,
    /// What the variant is faster by than the default; 0 where the default's time is not known.
    pub gain: f64,
    /// Variants that had no turn for want of time.
    #[serde(default, skip_serializing_if = "is_none")]
    pub untried: usize,
}

fn is_none(count: &usize) -> bool {
    *count == 0
}

impl Entry {
    pub fn of(measurement: &Measurement) -> Self {
        let tenths = |v: f64| (v * 10.0).round() / 10.0;
        let gain = measurement.default_seconds / measurement.seconds;
        Entry {
            variant: measurement.variant.clone(),
            gflops: tenths(measurement.gflops),
            // JSON has no word for infinity
            gain: if gain.is_finite() { (gain * 100.0).round() / 100.0 } else { 0.0 },
            untried: measurement.untried,
        }
    }

    /// GFLOP/s of a kernel that is not on matrix units: the default is none that is.
    fn plain_gflops(&self) -> f64 {
        let on_matrix_units = self.variant.contains("coop");
        let gflops = if on_matrix_units { self.gflops / self.gain } else { self.gflops };
        if gflops.is_finite() { gflops.max(0.0) } else { 0.0 }
    }
}

/// What plans take of a device's entries.
pub(super) fn choices<'e>(entries: impl IntoIterator<Item = (&'e String, &'e Entry)>) -> Choices {
    let mut choices = Choices::default();
    for (name, entry) in entries {
        if let Some(class) = parse(name) {
            choices.insert_timed(class, entry.variant.clone(), entry.gflops);
            choices.reached(entry.plain_gflops());
        }
    }
    choices
}

/// Reads what [`Class`] displays; `None` for what somebody else wrote.
pub(super) fn parse(name: &str) -> Option<Class> {
    let (family, extents) = name.rsplit_once(' ')?;
    let extents = extents.split('x').map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(Class { family: family.into(), extents })
}

/// By class, the variants during whose measurement a device was lost or a process ended, as often as that happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Refused(BTreeMap<String, Vec<String>>);

/// In place of a class: a variant that certainly took the device with it is tried for none.
pub(super) const EVERY_CLASS: &str = "every class";

impl Refused {
    pub fn add(&mut self, class: &str, variant: &str) {
        self.0.entry(class.to_owned()).or_default().push(variant.to_owned());
    }

    fn times(&self, class: &str, variant: &str) -> usize {
        self.0.get(class).map_or(0, |variants| variants.iter().filter(|v| *v == variant).count())
    }

    /// Whether a class is not tried with a variant. That a process ended says less than a lost device, for the user may have ended
    /// it: so once counts for the class alone, and twice for all.
    pub fn variant(&self, class: &str, variant: &str) -> bool {
        let all: usize = self.0.keys().map(|class| self.times(class, variant)).sum();
        all >= 2 || self.times(class, variant) > 0 || self.times(EVERY_CLASS, variant) > 0
    }

    /// Whether a class is not measured at all. Without its default nothing can be compared, and a run takes that default unless it is
    /// measured: only what happened twice counts.
    pub fn class(&self, class: &str, default: &str) -> bool {
        self.times(class, default) >= 2
    }
}

impl KernelFile {
    /// A missing file is an empty one.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(file: &Path) -> Result<Self, String> {
        match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                format!(
                    "{} is not a file of measured kernels ({e}); delete it to measure anew",
                    file.display()
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(KernelFile::default()),
            Err(error) => Err(format!(
                "cannot read {}: {error}; what is measured cannot be kept (ENGRAFT_CACHE names another folder)",
                file.display()
            )),
        }
    }

    /// Changes the file as it is now: other processes write to it as well.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn update(file: &Path, change: impl FnOnce(&mut Self)) -> Result<(), String> {
        let mut latest = KernelFile::read(file)?;
        change(&mut latest);
        latest.write(file)
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

    fn entry(variant: &str, gflops: f64, gain: f64) -> Entry {
        Entry { variant: variant.into(), gflops, gain, untried: 0 }
    }

    #[test]
    fn the_file_reads_back_as_choices() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/kernels.json");
        assert_eq!(KernelFile::read(&file), Ok(KernelFile::default()));
        let class =
            Class { family: "matmul f32·f32 + f32·f32 -> f32".into(), extents: vec![512, 64, 256, 8] };
        let entry = entry("uniform 32x32 unroll=2", 70.1, 1.2);
        let entries = Entries::from([(class.to_string(), entry.clone()), ("by hand".into(), entry)]);
        KernelFile::update(&file, |kept| drop(kept.devices.insert("a".into(), entries))).unwrap();
        KernelFile::update(&file, |kept| kept.refused.entry("b".into()).or_default().add("c", "rows"))
            .unwrap();
        let read = KernelFile::read(&file).unwrap();
        assert!(read.refused["b"].variant("c", "rows"));
        let choices = choices(&read.devices["a"]);
        assert_eq!(choices.iter().collect::<Vec<_>>(), [(&class, "uniform 32x32 unroll=2")]);
    }

    #[test]
    fn a_file_without_refusals_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels.json");
        fs::write(&file, r#"{"devices": {"a": {"m 8": {"variant": "rows", "gflops": 1.0, "gain": 1.0}}}}"#)
            .unwrap();
        KernelFile::update(&file, |kept| assert!(kept.refused.is_empty())).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("rows") && !text.contains("refused"), "{text}");
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels.json");
        fs::write(&file, "{\"devices\": 3}").unwrap();
        let said = KernelFile::update(&file, |_| ()).unwrap_err();
        assert!(said.contains("kernels.json") && said.contains("delete it"), "{said}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\"devices\": 3}", "somebody may want it back");
    }

    #[test]
    fn speed_without_matrix_units_is_that_of_the_default_where_they_are_faster() {
        let fastest = |all: &[Entry]| {
            let entries = all.iter().enumerate().map(|(n, e)| (format!("matmul {n}"), e.clone()));
            let entries: Entries = entries.collect();
            choices(&entries).fastest()
        };
        let thin = entry("tiled 16x64", 300.0, 1.5);
        assert_eq!(fastest(&[thin.clone(), entry("coop-tiled 128x128", 40_000.0, 5.0)]), Some(8e12));
        for unknown in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(fastest(&[thin.clone(), entry("coop 32x32", 40_000.0, unknown)]), Some(300e9));
        }
    }

    #[test]
    fn the_file_can_hold_a_measurement_without_the_default() {
        let measurement = Measurement {
            class: Class { family: "m".into(), extents: vec![8] },
            variant: "rows".into(),
            seconds: 1e-3,
            default_seconds: f64::INFINITY,
            gflops: 1.0,
            tried: Vec::new(),
            untried: 0,
        };
        let text = serde_json::to_string(&Entry::of(&measurement)).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry("rows", 1.0, 0.0));
    }

    #[test]
    fn once_counts_for_a_class_and_twice_or_a_lost_device_for_all() {
        let mut refused = Refused::default();
        refused.add("a", "coop");
        assert!(
            refused.variant("a", "coop") && !refused.variant("b", "coop") && !refused.variant("a", "rows")
        );
        refused.add("c", "coop");
        assert!(refused.variant("b", "coop"));
        refused.add(EVERY_CLASS, "rows");
        assert!(refused.variant("a", "rows") && !refused.class("a", "rows"));
        refused.add("a", "tiled");
        assert!(!refused.class("a", "tiled"), "a run takes it in any case");
        refused.add("a", "tiled");
        assert!(refused.class("a", "tiled") && !refused.class("b", "tiled"));
    }
}
