//! Reverse mode: appends the gradient of a scalar to the graph that computes it.
//!
//! Nodes are visited from the last to the first; each adds the gradients of its inputs by its own rule, contributions to
//! one value are summed, and what reaches a trainable leaf is added to that parameter's gradient. Recomputation is the
//! same walk over copies of forward nodes, those that the policy names, appended just before the reverse nodes of their
//! group of blocks: the plan then frees the originals after the forward pass. The copies run the same kernels on the same
//! numbers, so gradients are bit-equal. A piece of a block is copied just before its own reverse nodes, once more where its
//! block was: the first copy makes what comes after the piece, and is dead code where nothing does.

mod recompute;

pub use recompute::{Recompute, UnknownPolicy};

use crate::graph::{Graph, GraphError, LeafKind, Node, ReverseNode, Value};
use crate::ops::add::add;
use crate::ops::copy::copy;
use crate::ops::keep::Keep;
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Appends the gradients of `Σ loss · seed` with respect to every trainable leaf that `loss` depends on, and registers
/// them with [`Graph::accumulate`]. `seed` has the type of `loss`.
///
/// # Errors
/// [`GraphError::NotDifferentiable`] where a path to a trainable leaf has no gradient rule;
/// [`GraphError::Invalid`] where seed and loss differ in type.
pub fn differentiate(
    graph: &mut Graph,
    loss: Value,
    seed: Value,
    recompute: Recompute,
) -> Result<(), GraphError> {
    if graph.type_of(loss) != graph.type_of(seed) {
        let reason =
            format!("the seed {} differs from the loss {}", graph.type_of(seed), graph.type_of(loss));
        return Err(GraphError::invalid("differentiate", reason));
    }
    let Some((last, _)) = graph.producer(loss) else { return Ok(()) };
    let nodes: Vec<Node> = graph.nodes()[..=last].to_vec();
    let needs = values_with_gradient(graph, &nodes);
    let mut reverse = Reverse {
        recompute,
        last_block: nodes.iter().rev().find_map(|n| n.block),
        gradients: HashMap::from([(loss, seed)]),
        copies: HashMap::new(),
        copied: HashSet::new(),
        copied_pieces: HashSet::new(),
        claimed: HashSet::new(),
        kept: kept_on_host(&nodes),
    };
    for node in nodes.iter().rev() {
        reverse.visit(graph, &nodes, node, &needs)?;
    }
    Ok(())
}

/// Values that depend on a trainable leaf.
fn values_with_gradient(graph: &Graph, nodes: &[Node]) -> HashSet<Value> {
    let trainable = graph.leaves().iter().filter(|l| l.kind == LeafKind::Trainable);
    let mut needs: HashSet<Value> = trainable.map(|l| l.value).collect();
    for node in nodes {
        if node.inputs.iter().any(|v| needs.contains(v)) {
            needs.extend(&node.outputs);
        }
    }
    needs
}

/// Values that a [`Keep`] holds in host memory, and what it gives back.
fn kept_on_host(nodes: &[Node]) -> HashMap<Value, Value> {
    let keeps = nodes.iter().filter(|n| {
        let op: &dyn Any = &*n.op;
        op.is::<Keep>()
    });
    keeps.map(|n| (n.inputs[1], n.outputs[0])).collect()
}

struct Reverse {
    recompute: Recompute,
    last_block: Option<u32>,
    gradients: HashMap<Value, Value>,
    /// Recomputed values by their originals.
    copies: HashMap<Value, Value>,
    /// Groups of blocks whose copies stand already.
    copied: HashSet<u32>,
    /// Pieces whose copies stand already.
    copied_pieces: HashSet<u32>,
    /// Values that already are somebody's parameter gradient.
    claimed: HashSet<Value>,
    /// Values that wait in host memory for the reverse pass.
    kept: HashMap<Value, Value>,
}

impl Reverse {
    fn visit(
        &mut self,
        graph: &mut Graph,
        nodes: &[Node],
        node: &Node,
        needs: &HashSet<Value>,
    ) -> Result<(), GraphError> {
        let gradients: Vec<Option<Value>> =
            node.outputs.iter().map(|v| self.gradients.get(v).copied()).collect();
        let wanted: Vec<bool> = node.inputs.iter().map(|v| needs.contains(v)).collect();
        if gradients.iter().all(Option::is_none) || !wanted.contains(&true) {
            return Ok(());
        }
        if let Some(group) = self.group(node)
            && self.copied.insert(group)
        {
            let recompute = self.recompute;
            let last = self.last_block;
            let of_group = |n: &Node| recompute.group(n.block?, last?);
            self.copy_nodes(graph, nodes, |n| recompute.rebuilds(n) && of_group(n) == Some(group))?;
        }
        if let Some(piece) = node.piece
            && self.copied_pieces.insert(piece)
        {
            self.copy_nodes(graph, nodes, |n| n.piece == Some(piece))?;
        }
        let current = |v: &Value| self.copies.get(v).copied().unwrap_or(*v);
        let inputs: Vec<Value> = node.inputs.iter().map(current).collect();
        let outputs: Vec<Value> = node.outputs.iter().map(current).collect();
        let view = ReverseNode { inputs: &inputs, outputs: &outputs, gradients: &gradients, wanted: &wanted };
        let contributions = node.op.reverse(graph, &view)?;
        for ((&input, contribution), wanted) in node.inputs.iter().zip(contributions).zip(wanted) {
            if let (Some(gradient), true) = (contribution, wanted) {
                self.contribute(graph, input, gradient)?;
            }
        }
        Ok(())
    }

    /// The group of blocks that a node is made again with.
    fn group(&self, node: &Node) -> Option<u32> {
        self.recompute.group(node.block?, self.last_block?)
    }

    fn copy_nodes(
        &mut self,
        graph: &mut Graph,
        nodes: &[Node],
        which: impl Fn(&Node) -> bool,
    ) -> Result<(), GraphError> {
        for node in nodes.iter().filter(|n| which(n)) {
            for input in &node.inputs {
                if let (Some(&kept), false) = (self.kept.get(input), self.copies.contains_key(input)) {
                    let dtype = graph.type_of(kept).dtype;
                    self.copies.insert(*input, copy(graph, kept, dtype)?);
                }
            }
            let inputs: Vec<Value> =
                node.inputs.iter().map(|v| self.copies.get(v).copied().unwrap_or(*v)).collect();
            let outputs = graph.apply(Arc::clone(&node.op), &inputs)?;
            self.copies.extend(node.outputs.iter().copied().zip(outputs));
        }
        Ok(())
    }

    fn contribute(&mut self, graph: &mut Graph, input: Value, gradient: Value) -> Result<(), GraphError> {
        if graph.leaf_of(input).is_some_and(|l| l.kind == LeafKind::Trainable) {
            let ready = graph
                .producer(gradient)
                .is_some_and(|(node, output)| graph.nodes()[node].op.accumulates(output));
            let gradient = if ready && self.claimed.insert(gradient) {
                gradient
            } else {
                copy(graph, gradient, crate::graph::DType::F32)?
            };
            graph.accumulate(input, gradient);
            return Ok(());
        }
        let sum = match self.gradients.get(&input) {
            Some(&earlier) => add(graph, earlier, gradient)?,
            None => gradient,
        };
        self.gradients.insert(input, sum);
        Ok(())
    }
}
