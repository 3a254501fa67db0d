//! Fitting a run into a device's memory: which activations to make again. What to change where nothing fits is in
//! [`super::advice`].
//!
//! What counts is [`TrainingPlan::needed_bytes`]: where the device's memory is the host's, what waits there takes of it too.

pub use super::advice::Advice;
use super::options::RecomputeKind;
use super::plan::{Demand, TrainingPlan};
use crate::autograd::Recompute;
use crate::graph::{DeviceProfile, GraphError};
use crate::memory_size::memory_text;
use crate::models::Network;
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
    /// What the user set, or else what the device has free, where the platform tells, but for some that is kept back: pipelines, staging
    /// and what the desktop takes meanwhile are in no plan.
    pub fn of(asked: Option<u64>, free: Option<u64>) -> Option<Self> {
        let free = free.map(|free| MemoryLimit { bytes: free - kept_back(free), asked: false });
        asked.map(|bytes| MemoryLimit { bytes, asked: true }).or(free)
    }
}

/// 256 MiB, or a thirty-second part of a larger device, and no more than an eighth of a small one.
fn kept_back(free: u64) -> u64 {
    (free / 32).max(256 << 20).min(free / 8)
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.asked {
            true => write!(f, "the limit of {}", memory_text(self.bytes)),
            false => {
                write!(f, "the {} that a run may take of the device's free memory", memory_text(self.bytes))
            }
        }
    }
}

/// A run that does not fit, and what would.
#[derive(Clone, Debug, Error, PartialEq)]
#[error(
    "out of memory before anything was done: a micro-batch of {micro_batch} with --recompute {recompute} needs {}{}, more than \
     {limit}; {advice}{}",
    memory_text(*needed),
    on_host_text(*on_host),
    if limit.asked { "" } else { " (--memory_limit sets another limit)" }
)]
pub struct MemoryError {
    pub micro_batch: usize,
    pub recompute: Recompute,
    pub needed: u64,
    /// Of these, bytes in host memory, where that is the device's.
    pub on_host: u64,
    pub limit: MemoryLimit,
    pub advice: Box<Advice>,
}

/// What follows an amount of memory of which so much is the host's and counts.
fn on_host_text(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(" ({} of it in host memory, which is the device's)", memory_text(bytes)),
    }
}

/// What one combination of policy and micro-batch takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Combination {
    pub recompute: Recompute,
    pub micro_batch_size: usize,
    pub peak_bytes: u64,
    pub bytes: MemoryReport,
    /// Bytes of host memory that stand in for the device's.
    pub host_bytes: u64,
    /// Bytes that count against a limit ([`TrainingPlan::needed_bytes`]).
    pub needed_bytes: u64,
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
            "recompute {}{chosen}: {}{} {limit}; {:.1} % more FLOPs per step than keeping all activations",
            self.plan.recompute(),
            memory_text(self.plan.needed_bytes()),
            on_host_text(self.plan.shared_host_bytes()),
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
            host_bytes: plan.host_bytes,
            needed_bytes: plan.needed_bytes(),
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
            RecomputeKind::Auto if !self.network.host_activations && kept.needed_bytes() <= bytes => kept,
            RecomputeKind::Auto => {
                drop(kept);
                self.best_within(micro_batch, bytes)?
            }
        };
        if chosen.needed_bytes() <= bytes {
            return Ok(choice(chosen));
        }
        let limit = limit.unwrap_or(MemoryLimit { bytes, asked: true });
        Err(FitError::Memory(MemoryError {
            micro_batch,
            recompute: chosen.recompute(),
            needed: chosen.needed_bytes(),
            on_host: chosen.shared_host_bytes(),
            limit,
            advice: Box::new(self.advise(micro_batch, chosen.recompute(), bytes)?),
        }))
    }

    /// The plan with the fewest FLOPs of those that fit, or where none does the one that needs least.
    pub(super) fn best_within(&self, micro_batch: usize, bytes: u64) -> Result<TrainingPlan, GraphError> {
        let mut best = self.plan(micro_batch, Recompute::Layer)?;
        for policy in self.policies() {
            let plan = self.plan(micro_batch, policy)?;
            let (needs, had) = (plan.needed_bytes(), best.needed_bytes());
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

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum FitError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Graph(#[from] GraphError),
}
