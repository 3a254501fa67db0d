//! A changed copy of a graph: nodes left out, nodes replaced, everything else as it was.

use super::{Accumulation, Graph, GraphError, Leaf, LeafKind, Operation, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// A node that takes the place of others. `inputs` and `outputs` are values of the old graph: what it reads, and whose
/// place each of its outputs takes.
#[derive(Clone, Debug)]
pub struct NewNode {
    pub op: Arc<dyn Operation>,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
}

impl Graph {
    /// The graph with nodes replaced, by their index: each by any number of new ones, in order. Nodes that are not named stay;
    /// of one that is left out, others must make the outputs, or nobody may read them.
    ///
    /// # Errors
    /// What a replacement's shape rule says of its inputs, and inputs that do not exist where it stands.
    pub fn rewritten(&self, changes: &HashMap<usize, Vec<NewNode>>) -> Result<Graph, GraphError> {
        let mut new = Graph::new();
        let mut map: HashMap<Value, Value> = HashMap::new();
        for Leaf { name, kind, value } in &self.leaves {
            let ty = self.type_of(*value);
            let leaf = match kind {
                LeafKind::Input => new.input(name.clone(), ty.shape, ty.dtype)?,
                LeafKind::Frozen => new.frozen(name.clone(), ty.shape, ty.dtype)?,
                LeafKind::Trainable => new.trainable(name.clone(), ty.shape)?,
                LeafKind::State => new.state(name.clone(), ty.shape, ty.dtype)?,
                LeafKind::Host => new.host(name.clone(), ty.shape, ty.dtype)?,
            };
            map.insert(*value, leaf);
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let same = || {
                let (inputs, outputs) = (node.inputs.clone(), node.outputs.clone());
                vec![NewNode { op: Arc::clone(&node.op), inputs, outputs }]
            };
            (new.block, new.piece) = (node.block, node.piece);
            for NewNode { op, inputs, outputs } in changes.get(&n).cloned().unwrap_or_else(same) {
                let moved = |v: &Value| {
                    let early = || GraphError::invalid(op.name(), "reads what is not made yet");
                    map.get(v).copied().ok_or_else(early)
                };
                let inputs = inputs.iter().map(moved).collect::<Result<Vec<_>, _>>()?;
                let made = new.apply(op, &inputs)?;
                map.extend(outputs.iter().copied().zip(made));
            }
        }
        (new.block, new.piece) = (None, None);
        (new.blocks, new.pieces) = (self.blocks, self.pieces);
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
