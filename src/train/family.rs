//! The plans of all sizes of one kind of graph, made on first use and dropped when others need their place.

use super::trainer::TrainerError;
use crate::gpu::{Gpu, GpuError, Limit};
use crate::graph::{Graph, GraphError};
use crate::plan::{Bindings, Layout, PlanError, Program, Slots};
use std::collections::HashMap;

/// Tokens and label rows of a plan.
pub(super) type Size = (usize, usize);

/// Plans that are kept, fewer of larger networks: a plan takes host memory for each dispatch, two or three megabytes for 16 layers, and samples
/// of all lengths can make hundreds of sizes. A tenth of a second or less makes one again.
pub(super) fn kept(layout: &Layout) -> usize {
    (100_000 / layout.dispatches().count().max(1)).clamp(32, 128)
}

pub(super) struct Family {
    /// Of the largest size.
    layout: Layout,
    /// With when each was used last.
    programs: HashMap<Size, (u64, Program)>,
    uses: u64,
}

impl Family {
    pub fn new(layout: Layout) -> Self {
        Family { layout, programs: HashMap::new(), uses: 0 }
    }

    /// Bytes of the parameters of the plans made so far.
    pub fn parameter_bytes(&self) -> u64 {
        self.programs.values().map(|(_, program)| program.recording().parameter_bytes()).sum()
    }

    /// The plan of a size, of which `graph` gives the graph.
    ///
    /// # Errors
    /// A size that is not of the network of the largest, and what the device refuses.
    pub fn program(
        &mut self,
        gpu: &Gpu,
        size: Size,
        graph: impl FnOnce() -> Result<Graph, GraphError>,
        memory: (&Slots, &Bindings),
    ) -> Result<&Program, TrainerError> {
        self.uses += 1;
        let program = match self.programs.remove(&size) {
            Some((_, program)) => program,
            None => self.make(gpu, &graph()?, memory)?,
        };
        Ok(&self.programs.entry(size).insert_entry((self.uses, program)).into_mut().1)
    }

    fn make(
        &mut self,
        gpu: &Gpu,
        graph: &Graph,
        (slots, bindings): (&Slots, &Bindings),
    ) -> Result<Program, TrainerError> {
        let layout = self.layout.shrink(graph, &gpu.profile()).ok_or_else(|| {
            GraphError::invalid("plan", "a smaller size of the network does not fit the plan of the largest")
        })?;
        while self.programs.len() >= kept(&self.layout) {
            self.drop_oldest();
        }
        loop {
            match Program::new(gpu, graph, &layout, slots, bindings) {
                Err(PlanError::Gpu(GpuError::OverLimit { limit: Limit::Descriptors, .. }))
                    if self.drop_oldest() =>
                {
                    // what ran last gives its descriptors back when it is done
                    gpu.wait()?;
                }
                made => return Ok(made?),
            }
        }
    }

    /// Drops the plan that was not used for longest; false where there is none.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.programs.iter().min_by_key(|(_, (used, _))| *used).map(|(size, _)| *size);
        oldest.is_some_and(|size| self.programs.remove(&size).is_some())
    }
}
