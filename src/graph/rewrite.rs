//! A changed copy of a graph: nodes left out, nodes replaced, everything else as it was.

use super::{Accumulation, Graph, GraphError, Leaf, LeafKind, Operation, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// What becomes of a node. Nodes that [`Graph::rewritten`] is not told about stay.
#[derive(Clone, Debug)]
pub enum Change {
    /// Left out; a later replacement makes its outputs, or nobody reads them.
    Drop,
    /// Another operation in its place. `inputs` and `outputs` are values of the old graph: what it reads, and whose
    /// place each of its outputs takes.
    Replace { op: Arc<dyn Operation>, inputs: Vec<Value>, outputs: Vec<Value> },
}

impl Graph {
    /// The graph with these changes by node index.
    ///
    /// # Errors
    /// What a replacement's shape rule says of its inputs, and inputs that do not exist where it stands.
    pub fn rewritten(&self, changes: &HashMap<usize, Change>) -> Result<Graph, GraphError> {
        let mut new = Graph::new();
        let mut map: HashMap<Value, Value> = HashMap::new();
        for Leaf { name, kind, value } in &self.leaves {
            let ty = self.type_of(*value);
            let leaf = match kind {
                LeafKind::Input => new.input(name.clone(), ty.shape, ty.dtype)?,
                LeafKind::Frozen => new.frozen(name.clone(), ty.shape, ty.dtype)?,
                LeafKind::Trainable => new.trainable(name.clone(), ty.shape)?,
                LeafKind::State => new.state(name.clone(), ty.shape, ty.dtype)?,
            };
            map.insert(*value, leaf);
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let (op, inputs, outputs) = match changes.get(&n) {
                None => (&node.op, &node.inputs, &node.outputs),
                Some(Change::Drop) => continue,
                Some(Change::Replace { op, inputs, outputs }) => (op, inputs, outputs),
            };
            let moved = |v: &Value| {
                map.get(v)
                    .copied()
                    .ok_or_else(|| GraphError::invalid(op.name(), "reads what is not made yet"))
            };
            let inputs = inputs.iter().map(moved).collect::<Result<Vec<_>, _>>()?;
            new.block = node.block;
            let made = new.apply(Arc::clone(op), &inputs)?;
            map.extend(outputs.iter().copied().zip(made));
        }
        new.block = None;
        new.blocks = self.blocks;
        let moved = |v: &Value| {
            map.get(v).copied().ok_or_else(|| GraphError::invalid("graph", "an output is made by no node"))
        };
        for (name, value) in &self.outputs {
            new.output(name.clone(), moved(value)?);
        }
        for Accumulation { parameter, gradient } in &self.accumulations {
            new.accumulate(moved(parameter)?, moved(gradient)?);
        }
        Ok(new)
    }

    /// How often each value is read: by nodes, as an output, as a gradient.
    pub fn uses(&self) -> HashMap<Value, usize> {
        let mut uses = HashMap::new();
        let inputs = self.nodes.iter().flat_map(|n| n.inputs.iter().copied());
        let outputs = self.outputs.iter().map(|(_, v)| *v);
        for value in inputs.chain(outputs).chain(self.accumulations.iter().map(|a| a.gradient)) {
            *uses.entry(value).or_default() += 1;
        }
        uses
    }
}
