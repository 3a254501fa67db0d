//! Products that take in a sum which alone reads them.
//!
//! The product moves to the place of the sum: everything it reads exists by then, and so does what is added. It may have no other
//! reader, and its further outputs none before the sum.

use super::together;
use crate::graph::{Graph, GraphError, NewNode, Operation, Value};
use std::collections::HashMap;
use std::sync::Arc;

pub(super) struct Absorbed<'a> {
    graph: &'a Graph,
    uses: HashMap<Value, usize>,
    changes: HashMap<usize, Vec<NewNode>>,
}

impl<'a> Absorbed<'a> {
    pub(super) fn new(graph: &'a Graph) -> Self {
        Absorbed { graph, uses: graph.uses(), changes: HashMap::new() }
    }

    /// Puts `op` in the place of the sum `at` of `made`, output 0 of the node `from`, with `other`, where that changes nothing for anybody
    /// else; `op` is that node's with one more input.
    pub(super) fn take(
        &mut self,
        at: usize,
        (from, made): (usize, Value),
        op: Arc<dyn Operation>,
        other: Value,
    ) -> bool {
        let (product, sum) = (&self.graph.nodes()[from], &self.graph.nodes()[at]);
        let alone = product.outputs[0] == made
            && self.uses.get(&made) == Some(&1)
            && !self.changes.contains_key(&from)
            && together(product, sum);
        let early = || {
            let between = &self.graph.nodes()[from + 1..at];
            between.iter().any(|n| n.inputs.iter().any(|v| product.outputs[1..].contains(v)))
        };
        let taken = alone && !early();
        if taken {
            let inputs = product.inputs.iter().copied().chain([other]).collect();
            let outputs = sum.outputs.iter().chain(&product.outputs[1..]).copied().collect();
            self.changes.insert(from, Vec::new());
            self.changes.insert(at, vec![NewNode { op, inputs, outputs }]);
        }
        taken
    }

    pub(super) fn rewritten(&self) -> Result<Graph, GraphError> {
        self.graph.rewritten(&self.changes)
    }
}
