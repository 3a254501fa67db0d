//! Fitting a run into a device's memory: which activations to make again, and what to change where nothing fits.

use super::memory_size::memory_text;
use super::options::RecomputeKind;
use super::plan::{Demand, TrainingPlan};
use crate::autograd::Recompute;
use crate::graph::{DType, DeviceProfile, GraphError};
use crate::models::Network;
use crate::nn::{Storage, WeightMode};
use crate::plan::MemoryReport;
use serde::Serialize;
use std::fmt;
use thiserror::Error;

/// Bytes that a run may take of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    pub bytes: u64,
    /// Set by the user; otherwise what is free.
    pub asked: bool,
}

impl MemoryLimit {
    /// What the user set, or else what the device has free, where the platform tells.
    pub fn of(asked: Option<u64>, free: Option<u64>) -> Option<Self> {
        let free = free.map(|bytes| MemoryLimit { bytes, asked: false });
        asked.map(|bytes| MemoryLimit { bytes, asked: true }).or(free)
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.asked {
            true => write!(f, "the limit of {}", memory_text(self.bytes)),
            false => write!(f, "the {} that are free on the device", memory_text(self.bytes)),
        }
    }
}

/// A run that does not fit, and what would.
#[derive(Clone, Debug, Error, PartialEq)]
#[error(
    "out of memory before anything was done: a micro-batch of {micro_batch} with --recompute {recompute} needs {}, more than \
     {limit}; {advice}{}",
    memory_text(*needed),
    if limit.asked { "" } else { " (--memory_limit sets another limit)" }
)]
pub struct MemoryError {
    pub micro_batch: usize,
    pub recompute: Recompute,
    pub needed: u64,
    pub limit: MemoryLimit,
    pub advice: Advice,
}

/// Changes of options that fit, each with the bytes it needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advice {
    pub fits: Vec<(String, u64)>,
    /// What the leanest plan needs, and its weights alone.
    pub least: Option<(String, u64, u64)>,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// What one combination of policy and micro-batch takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Combination {
    pub recompute: Recompute,
    pub micro_batch_size: usize,
    pub peak_bytes: u64,
    pub bytes: MemoryReport,
    /// FLOPs of a micro-batch, forward and reverse.
    pub flops: f64,
}

/// A plan that was chosen.
#[derive(Clone, Debug)]
pub struct Choice {
    pub plan: TrainingPlan,
    /// FLOPs beyond those of a step that keeps all activations, as a share of these.
    pub extra_flops: f64,
    pub limit: Option<MemoryLimit>,
}

impl Choice {
    /// A line for the start of a run. `kind` is what was asked for.
    pub fn describe(&self, kind: RecomputeKind) -> String {
        let chosen = if kind == RecomputeKind::Auto { " (chosen by auto)" } else { "" };
        let limit = match self.limit {
            Some(limit) => format!("of {limit}"),
            None => "of a device whose free memory is not known (--memory_limit sets a limit)".into(),
        };
        format!(
            "recompute {}{chosen}: {} {limit}; {:.1} % more FLOPs per step than keeping all activations",
            self.plan.recompute(),
            memory_text(self.plan.memory.total()),
            100.0 * self.extra_flops
        )
    }
}

/// Plans of one network by micro-batch and policy.
pub struct Planner<'a> {
    /// Its policy does not matter.
    pub network: Network,
    pub device: &'a DeviceProfile,
    /// Samples per optimiser step, which a micro-batch divides.
    pub batch_size: usize,
    /// The run goes on from a saved state, and only what changes no bit may be advised.
    pub resumed: bool,
    /// What micro-batches of so many samples are like.
    pub demand: &'a dyn Fn(usize) -> Demand,
}

/// Groups of so many blocks that plans try.
const GROUPS: [u32; 6] = [2, 3, 4, 6, 8, 16];

impl Planner<'_> {
    /// Every policy that a plan tries on this network, each different from the others.
    pub fn policies(&self) -> Vec<Recompute> {
        let blocks = self.network.config.layers as u32;
        let groups = GROUPS.into_iter().filter(|&n| n < blocks).rev();
        let mut all = match self.network.host_activations {
            // nothing would wait in host memory
            true => Vec::new(),
            false => vec![Recompute::None, Recompute::Selective],
        };
        all.extend(groups.filter_map(|n| Recompute::every(n).ok()));
        all.push(Recompute::Layer);
        all
    }

    /// # Errors
    /// Shapes that do not fit together.
    pub fn plan(&self, micro_batch: usize, recompute: Recompute) -> Result<TrainingPlan, GraphError> {
        let network = Network { recompute, ..self.network.clone() };
        TrainingPlan::new(&network, &(self.demand)(micro_batch), self.device)
    }

    /// FLOPs of a micro-batch where nothing is made again, chunks of MLPs neither.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn kept_flops(&self, micro_batch: usize) -> Result<f64, GraphError> {
        let network = Network { mlp_chunks: 1, ..self.network.clone() };
        Ok(Planner { network, ..*self }.plan(micro_batch, Recompute::None)?.flops)
    }

    /// # Errors
    /// As [`Planner::plan`].
    pub fn combination(&self, micro_batch: usize, recompute: Recompute) -> Result<Combination, GraphError> {
        let plan = self.plan(micro_batch, recompute)?;
        Ok(Combination {
            recompute,
            micro_batch_size: micro_batch,
            peak_bytes: plan.memory.total(),
            bytes: plan.memory,
            flops: plan.flops,
        })
    }

    /// The plan of what was asked for; for [`RecomputeKind::Auto`] the one with the fewest FLOPs that fits `limit`.
    ///
    /// # Errors
    /// [`FitError::Memory`] where nothing fits.
    pub fn choose(
        &self,
        micro_batch: usize,
        kind: RecomputeKind,
        limit: Option<MemoryLimit>,
    ) -> Result<Choice, FitError> {
        let bytes = limit.map_or(u64::MAX, |l| l.bytes);
        let kept = self.plan(micro_batch, Recompute::None)?;
        let all = match self.network.mlp_chunks {
            1 => kept.flops,
            _ => self.kept_flops(micro_batch)?,
        };
        let choice = |plan: TrainingPlan| Choice { extra_flops: plan.flops / all - 1.0, plan, limit };
        let chosen = match kind {
            RecomputeKind::Policy(Recompute::None) => kept,
            RecomputeKind::Policy(policy) => self.plan(micro_batch, policy)?,
            RecomputeKind::Auto if !self.network.host_activations && kept.memory.total() <= bytes => kept,
            RecomputeKind::Auto => {
                drop(kept);
                self.best_within(micro_batch, bytes)?
            }
        };
        if chosen.memory.total() <= bytes {
            return Ok(choice(chosen));
        }
        let limit = limit.unwrap_or(MemoryLimit { bytes, asked: true });
        Err(FitError::Memory(MemoryError {
            micro_batch,
            recompute: chosen.recompute(),
            needed: chosen.memory.total(),
            limit,
            advice: self.advise(micro_batch, chosen.recompute(), bytes)?,
        }))
    }

    /// Changes that bring a run with this micro-batch and policy below `bytes`.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn advise(&self, micro_batch: usize, recompute: Recompute, bytes: u64) -> Result<Advice, GraphError> {
        let mut advice = Advice::default();
        let divides = |micro: &usize| self.batch_size.is_multiple_of(*micro);
        let small = (1..micro_batch).rev().filter(|_| !self.resumed).filter(divides);
        let mut micro = micro_batch;
        for smaller in small {
            micro = smaller;
            let needed = self.plan(micro, recompute)?.memory.total();
            if needed <= bytes {
                advice.fits.push((format!("--micro_batch_size {micro}"), needed));
                break;
            }
        }
        let best = self.best_within(micro_batch, bytes)?;
        if best.memory.total() <= bytes {
            advice.fits.push((format!("--recompute {}", best.recompute()), best.memory.total()));
        }
        if let Some(quantised) = quantised(&self.network).filter(|_| !self.resumed) {
            let planner = Planner { network: quantised, ..*self };
            let needed = planner.plan(micro_batch, recompute)?.memory.total();
            if needed <= bytes {
                advice.fits.push(("--quantize nf4".into(), needed));
            }
        }
        if !advice.fits.is_empty() {
            return Ok(advice);
        }
        let lean = self.best_within(micro, bytes)?;
        let micro_option = match self.resumed {
            true => String::new(),
            false => format!("--micro_batch_size {micro} "),
        };
        let both = format!("{micro_option}--recompute {}", lean.recompute());
        if lean.memory.total() <= bytes {
            advice.fits.push((both, lean.memory.total()));
            return Ok(advice);
        }
        for (option, network) in self.leaner_networks() {
            let planner = Planner { network, ..*self };
            let best = planner.best_within(micro, bytes)?;
            if best.memory.total() <= bytes {
                let way = format!("{option} {micro_option}--recompute {}", best.recompute());
                advice.fits.push((way, best.memory.total()));
                return Ok(advice);
            }
        }
        advice.least = Some((both, lean.memory.total(), lean.memory.weights));
        Ok(advice)
    }

    /// What options make of the network, each leaner than the one before.
    fn leaner_networks(&self) -> Vec<(String, Network)> {
        let mut all: Vec<(String, Network)> = Vec::new();
        let mut network = self.network.clone();
        let mut options = String::new();
        let mut add = |option: &str, network: &Network| {
            options.push_str(if options.is_empty() { "" } else { " " });
            options.push_str(option);
            all.push((options.clone(), network.clone()));
        };
        if network.activations == DType::F32 && !self.resumed {
            network = stored_in_16_bits(&network);
            add("--precision bf16-true", &network);
        }
        if let Some(quantised) = quantised(&network).filter(|_| !self.resumed) {
            network = quantised;
            add("--quantize nf4", &network);
        }
        if let WeightMode::Frozen(storage) = network.weights {
            let offload = network.config.layers;
            network.weights = WeightMode::Frozen(Storage { offload, ..storage });
            network.host_activations = self.device.host_buffers;
            let activations = if network.host_activations { " --offload_activations" } else { "" };
            add(&format!("--offload {offload}{activations}"), &network);
        }
        all
    }

    /// The plan with the fewest FLOPs of those that fit, or where none does the one that needs least.
    fn best_within(&self, micro_batch: usize, bytes: u64) -> Result<TrainingPlan, GraphError> {
        let mut best = self.plan(micro_batch, Recompute::Layer)?;
        for policy in self.policies() {
            let plan = self.plan(micro_batch, policy)?;
            let (needs, had) = (plan.memory.total(), best.memory.total());
            let better = match (needs <= bytes, had <= bytes) {
                (true, true) => plan.flops < best.flops,
                (true, false) => true,
                (false, true) => false,
                (false, false) => needs < had,
            };
            if better {
                best = plan;
            }
        }
        Ok(best)
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

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum FitError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Graph(#[from] GraphError),
}
