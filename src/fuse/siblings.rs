//! Low-rank products that share an operand become one [`MatmulGroup`]: `x·Aᵀ` of the layers that read x (q, k and v; gate and
//! up), and the gradients of their A.
//!
//! A layer becomes its widened product, which reads what the group made. The group stands where the first layer stood, and that
//! of the gradients where the last one did: everything they read exists there.

use super::kind;
use crate::graph::{Graph, GraphError, NewNode, Node, Value};
use crate::ops::lora_linear::LoraLinear;
use crate::ops::matmul::group::MatmulGroup;
use crate::ops::matmul::{Layout, Matmul};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Products with more rows than this are large enough to stay alone.
const THIN: usize = 64;

pub(super) fn fuse(graph: Graph) -> Result<Graph, GraphError> {
    let mut changes = HashMap::new();
    for group in groups(&graph, layer) {
        let nodes: Vec<&Node> = group.iter().map(|&n| &graph.nodes()[n]).collect();
        let Some(LoraLinear { scale, dtype, .. }) = kind(nodes[0]).cloned() else { continue };
        for (&n, node) in group.iter().zip(&nodes) {
            let op = Matmul::plain(Layout::NT, 1.0, dtype);
            let [x, weight, b, h] = [node.inputs[0], node.inputs[1], node.inputs[3], node.outputs[1]];
            let (inputs, outputs) = (vec![x, weight, h, b], vec![node.outputs[0]]);
            changes.insert(n, vec![NewNode { op: Arc::new(op), inputs, outputs }]);
        }
        let dtype = graph.type_of(nodes[0].outputs[1]).dtype;
        let op = MatmulGroup { layout: Layout::NT, alpha: scale, dtype, low_rank: true };
        let inputs = [nodes[0].inputs[0]].into_iter().chain(nodes.iter().map(|n| n.inputs[2])).collect();
        let outputs = nodes.iter().map(|n| n.outputs[1]).collect();
        let first = changes.entry(group[0]).or_default();
        first.insert(0, NewNode { op: Arc::new(op), inputs, outputs });
    }
    for group in groups(&graph, gradient) {
        let nodes: Vec<&Node> = group.iter().map(|&n| &graph.nodes()[n]).collect();
        let Some(Matmul { alpha, dtype, low_rank, .. }) = kind(nodes[0]).cloned() else { continue };
        let inputs = [nodes[0].inputs[1]].into_iter().chain(nodes.iter().map(|n| n.inputs[0])).collect();
        let outputs = nodes.iter().map(|n| n.outputs[0]).collect();
        let op = MatmulGroup { layout: Layout::TN, alpha, dtype, low_rank };
        changes.extend(group.iter().map(|&n| (n, Vec::new())));
        changes.insert(group[group.len() - 1], vec![NewNode { op: Arc::new(op), inputs, outputs }]);
    }
    graph.rewritten(&changes)
}

/// A layer whose low-rank side can be shared: its input and its A.
fn layer(_: &Graph, node: &Node) -> Option<(Value, Value)> {
    let op: &LoraLinear = kind(node)?;
    (node.inputs.len() == 4 && !op.residual).then(|| (node.inputs[0], node.inputs[2]))
}

/// A thin product that is a parameter's gradient and nothing else: its shared operand and the other.
fn gradient(graph: &Graph, node: &Node) -> Option<(Value, Value)> {
    let op: &Matmul = kind(node)?;
    let plain = op.layout == Layout::TN && op.mask.is_none() && node.inputs.len() == 2;
    let &[e, x] = node.inputs.as_slice() else { return None };
    (plain && graph.shape_of(e).cols() <= THIN).then_some((x, e))
}

/// Nodes that share an operand, by two or three, as `operands` says for each what is shared and what is not.
fn groups(graph: &Graph, operands: fn(&Graph, &Node) -> Option<(Value, Value)>) -> Vec<Vec<usize>> {
    let uses = graph.uses();
    let gradients: HashSet<Value> = graph.accumulations().iter().map(|a| a.gradient).collect();
    let mut sharing: BTreeMap<Value, Vec<usize>> = BTreeMap::new();
    for (n, node) in graph.nodes().iter().enumerate() {
        let Some((shared, _)) = operands(graph, node) else { continue };
        // a product that moves to another place must not be missed before
        let moved = node.outputs.len() == 1;
        let only_summed = gradients.contains(&node.outputs[0]) && uses.get(&node.outputs[0]) == Some(&1);
        if !moved || only_summed {
            sharing.entry(shared).or_default().push(n);
        }
    }
    let alike = |a: usize, b: usize| {
        let (a, b) = (&graph.nodes()[a], &graph.nodes()[b]);
        let other = |node| operands(graph, node).map(|(_, other)| graph.type_of(other));
        let options = |node: &Node| {
            let layer = kind::<LoraLinear>(node).map(|op| (op.scale, true));
            layer.or(kind::<Matmul>(node).map(|m| (m.alpha, m.low_rank)))
        };
        a.block == b.block && other(a) == other(b) && options(a) == options(b)
    };
    let mut groups = Vec::new();
    for nodes in sharing.into_values() {
        for chunk in nodes.chunk_by(|&a, &b| alike(a, b)).flat_map(|same| same.chunks(MatmulGroup::MOST)) {
            if chunk.len() > 1 {
                groups.push(chunk.to_vec());
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{Recompute, differentiate};
    use crate::fuse::tests::{names, values};
    use crate::graph::{DType, Shape};
    use crate::ops::add::add;
    use crate::ops::lora_linear::{Dropped, lora_linear};

    #[test]
    fn layers_of_one_input_share_their_low_rank_products() {
        let mut g = Graph::new();
        let x = g.input("x", Shape::matrix(3, 4), DType::F32).unwrap();
        let w = g.frozen("w", Shape::matrix(4, 4), DType::F32).unwrap();
        let layer = |g: &mut Graph, x, name: &str| {
            let a = g.trainable(format!("{name}.a"), Shape::matrix(4, 4)).unwrap();
            let b = g.trainable(format!("{name}.b"), Shape::matrix(4, 4)).unwrap();
            lora_linear(g, x, w, (a, b), Dropped::Not, 2.0, DType::F32).unwrap()
        };
        let (q, k) = (layer(&mut g, x, "q"), layer(&mut g, x, "k"));
        let sum = add(&mut g, q, k).unwrap();
        let y = layer(&mut g, sum, "o");
        let seed = g.input("seed", Shape::matrix(3, 4), DType::F32).unwrap();
        differentiate(&mut g, y, seed, Recompute::None).unwrap();
        let fused = fuse(g.clone()).unwrap();
        assert_eq!(names(&fused)[..4], ["matmul_group", "matmul", "matmul", "add"]);
        assert_eq!(names(&fused).iter().filter(|n| **n == "matmul_group").count(), 2);
        let gradients = |graph: &Graph| {
            let all = values(graph);
            let mut found: Vec<(String, Vec<f64>)> = graph
                .accumulations()
                .iter()
                .map(|a| {
                    (
                        graph.leaf_of(a.parameter).unwrap().name.clone(),
                        all[a.gradient.index()].clone().unwrap().data,
                    )
                })
                .collect();
            found.sort_by(|a, b| a.0.cmp(&b.0));
            found
        };
        assert_eq!(gradients(&fused), gradients(&g));
    }
}
