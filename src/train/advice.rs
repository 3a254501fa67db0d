//! What to change where a run does not fit: options, each with the bytes that a plan says it needs.

use super::memory::Planner;
use super::plan::TrainingPlan;
use super::trainer::SMALLEST_BUCKET;
use crate::autograd::Recompute;
use crate::graph::{DType, GraphError};
use crate::memory_size::memory_text;
use crate::models::Network;
use crate::nn::{Storage, WeightMode};
use std::fmt;

/// Changes of options that fit, each with the bytes it needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advice {
    pub fits: Vec<(String, u64)>,
    /// What the leanest plan needs, and its weights alone.
    pub least: Option<(String, u64, u64)>,
    /// Other devices of this machine that have as much memory in all, as [`crate::gpu::roomier`] names them.
    pub devices: Vec<String>,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.devices.is_empty() {
            write!(f, "{} has as much in all; ", self.devices.join(" or "))?;
        }
        if !self.fits.is_empty() {
            let ways = self.fits.iter().map(|(way, bytes)| format!("with {way} {}", memory_text(*bytes)));
            return f.write_str(&ways.collect::<Vec<_>>().join("; "));
        }
        if let Some((way, bytes, weights)) = &self.least {
            let (bytes, weights) = (memory_text(*bytes), memory_text(*weights));
            write!(f, "even {way} needs {bytes}, {weights} of it weights: ")?;
        }
        f.write_str("use a shorter --max_seq_length, a smaller model or another device")
    }
}

impl Planner<'_> {
    /// Changes that bring a run with this micro-batch and policy below `bytes`: every single one that does, or where none
    /// does the first of several together.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn advise(&self, micro_batch: usize, recompute: Recompute, bytes: u64) -> Result<Advice, GraphError> {
        let mut advice = Advice::default();
        let mut add = |way: String, plan: &TrainingPlan| {
            let (needed, fits) = (plan.needed_bytes(), plan.needed_bytes() <= bytes);
            advice.fits.extend(fits.then_some((way, needed)));
            fits
        };
        let divides = |micro: &usize| self.batch_size.is_multiple_of(*micro);
        let mut micro = micro_batch;
        for smaller in (1..micro_batch).rev().filter(|_| !self.resumed).filter(divides) {
            micro = smaller;
            if add(format!("--micro_batch_size {micro}"), &self.plan(micro, recompute)?) {
                break;
            }
        }
        let best = self.best_within(micro_batch, bytes)?;
        add(format!("--recompute {}", best.recompute()), &best);
        for (way, network) in self.in_chunks() {
            if add(way, &self.with(network).plan(micro_batch, recompute)?) {
                break;
            }
        }
        if let Some((way, network)) = self.without_host_memory() {
            add(way, &self.with(network).plan(micro_batch, recompute)?);
        }
        if let Some(network) = quantised(&self.network).filter(|_| !self.resumed) {
            add("--quantize nf4".into(), &self.with(network).plan(micro_batch, recompute)?);
        }
        if advice.fits.is_empty() {
            advice = self.combine(micro, bytes)?;
        }
        Ok(advice)
    }

    /// The first of ever more changes together that fits with micro-batches of this size, or the one that needs least.
    fn combine(&self, micro_batch: usize, bytes: u64) -> Result<Advice, GraphError> {
        let micro_option = match self.resumed {
            true => String::new(),
            false => format!("--micro_batch_size {micro_batch} "),
        };
        let mut least: Option<(String, u64, u64)> = None;
        for (options, network) in self.leaner_networks() {
            let planner = self.with(network);
            let mut ways = vec![(options.clone(), planner.network.clone())];
            ways.extend(
                planner.in_chunks().into_iter().map(|(way, network)| (options.clone() + &way + " ", network)),
            );
            for (i, (options, network)) in ways.into_iter().enumerate() {
                let planner = self.with(network);
                // of a number of chunks the leanest policy tells whether any can fit
                let leanest = i > 0 && planner.plan(micro_batch, Recompute::Layer)?.needed_bytes() > bytes;
                let best = match leanest {
                    true => planner.plan(micro_batch, Recompute::Layer)?,
                    false => planner.best_within(micro_batch, bytes)?,
                };
                let way = format!("{options}{micro_option}--recompute {}", best.recompute());
                let needed = best.needed_bytes();
                if needed <= bytes {
                    return Ok(Advice { fits: vec![(way, needed)], ..Advice::default() });
                }
                if least.as_ref().is_none_or(|(_, had, _)| needed < *had) {
                    least = Some((way, needed, best.memory.weights));
                }
            }
        }
        Ok(Advice { least, ..Advice::default() })
    }

    fn with(&self, network: Network) -> Planner<'_> {
        Planner { network, ..*self }
    }

    /// The network with its MLPs in more chunks than now, by the option that says so.
    fn in_chunks(&self) -> Vec<(String, Network)> {
        let counts = (1..).map(|n| 1 << n).take_while(|&n| n <= SMALLEST_BUCKET);
        // a run that goes on keeps its number
        let more = counts.filter(|&n| !self.resumed && n > self.network.mlp_chunks);
        more.map(|n| (format!("--mlp_chunks {n}"), Network { mlp_chunks: n, ..self.network.clone() }))
            .collect()
    }

    /// The network with nothing in host memory that options put there, where that is the device's own: two places for
    /// blocks on their way are saved.
    fn without_host_memory(&self) -> Option<(String, Network)> {
        let WeightMode::Frozen(storage) = self.network.weights else { return None };
        let mut ways = Vec::new();
        ways.extend((storage.offload > 0).then_some("--offload 0"));
        ways.extend(self.network.host_activations.then_some("no --offload_activations"));
        let weights = WeightMode::Frozen(Storage { offload: 0, ..storage });
        let network = Network { weights, host_activations: false, ..self.network.clone() };
        (self.device.unified_memory && !ways.is_empty()).then(|| (ways.join(" and "), network))
    }

    /// What options make of the network, each leaner than the one before: the network itself, fewer bits, blocks in host
    /// memory where that is not the device's own.
    fn leaner_networks(&self) -> Vec<(String, Network)> {
        let mut network = self.network.clone();
        let mut options = String::new();
        let mut all = vec![(options.clone(), network.clone())];
        let mut add = |option: &str, network: &Network| {
            options += option;
            options.push(' ');
            all.push((options.clone(), network.clone()));
        };
        if let Some((way, on_device)) = self.without_host_memory() {
            network = on_device;
            add(&way, &network);
        }
        if network.activations == DType::F32 && !self.resumed {
            network = stored_in_16_bits(&network);
            add("--precision bf16-true", &network);
        }
        if let Some(quantised) = quantised(&network).filter(|_| !self.resumed) {
            network = quantised;
            add("--quantize nf4", &network);
        }
        if let WeightMode::Frozen(storage) = network.weights
            && !self.device.unified_memory
            && self.device.host_buffers
        {
            let offload = network.config.layers;
            network.weights = WeightMode::Frozen(Storage { offload, ..storage });
            network.host_activations = true;
            add(&format!("--offload {offload} --offload_activations"), &network);
        }
        all
    }
}

/// The network with its linear layers in four bits, where they are frozen and plain.
fn quantised(network: &Network) -> Option<Network> {
    match network.weights {
        WeightMode::Frozen(storage) if !storage.linear.is_quantised() => {
            let weights = WeightMode::Frozen(Storage { linear: DType::Nf4, ..storage });
            Some(Network { weights, ..network.clone() })
        }
        _ => None,
    }
}

fn stored_in_16_bits(network: &Network) -> Network {
    let weights = match network.weights {
        WeightMode::Frozen(storage) => {
            let half = |dtype| if dtype == DType::F32 { DType::BF16 } else { dtype };
            let Storage { plain, linear, outer, .. } = storage;
            let (plain, linear, outer) = (half(plain), half(linear), half(outer));
            WeightMode::Frozen(Storage { plain, linear, outer, ..storage })
        }
        WeightMode::Trainable => WeightMode::Trainable,
    };
    Network { weights, activations: DType::BF16, ..network.clone() }
}
