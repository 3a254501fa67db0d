//! The kernels of a run, kept in its state: others sum in another order, so a run that goes on takes the same.

use super::kernel_file::parse;
use super::tuning::key;
use crate::gpu::Gpu;
use crate::graph::Choices;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Chosen {
    /// Device, driver and kernels, as in the file of measured kernels.
    device: String,
    /// By class.
    variants: BTreeMap<String, String>,
    /// Of the fastest that is not on matrix units; 0 where none was measured.
    gflops: f64,
    /// GFLOP/s by class, where they are known.
    #[serde(default)]
    speeds: BTreeMap<String, f64>,
}

impl Chosen {
    /// What plans on the device take now.
    pub fn of(gpu: &Gpu) -> Self {
        let choices = &gpu.profile().choices;
        let variants = choices.iter().map(|(class, variant)| (class.to_string(), variant.to_owned()));
        let gflops = choices.fastest().unwrap_or(0.0) / 1e9;
        let speeds = choices.speeds().map(|(class, gflops)| (class.to_string(), gflops)).collect();
        Chosen { device: key(gpu), variants: variants.collect(), gflops, speeds }
    }

    /// Has plans take them again; false on another device, driver or version, whose sums differ anyway.
    pub fn take(&self, gpu: &Gpu) -> bool {
        if self.device != key(gpu) {
            return false;
        }
        let mut choices = Choices::default();
        for (name, variant) in &self.variants {
            if let Some(class) = parse(name) {
                let gflops = self.speeds.get(name).copied().unwrap_or(0.0);
                choices.insert_timed(class, variant.as_str(), gflops);
            }
        }
        choices.reached(self.gflops);
        gpu.set_choices(choices);
        true
    }
}
