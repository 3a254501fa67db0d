//! Rotary embeddings cost a launch and a pass over their tensor each: those of q and k become one launch, and the opposite turns
//! of their gradients are made where attention's gradient stores dq and dk.
//!
//! Where a part of each head is turned, dq and dk are turned back in a launch of their own, together. Where queries are turned by angles of
//! their own, as they are when they are scaled beyond the first context, nothing is joined.
//!
//! The turn of q and k stays a launch: attention reads every row of them many times, for each tile of the other.

use super::{kind, together};
use crate::graph::{Graph, GraphError, NewNode, Node, Value};
use crate::ops::attention::AttentionGradient;
use crate::ops::rope::Rope;
use std::collections::HashMap;
use std::sync::Arc;

pub(super) fn fuse(graph: Graph) -> Result<Graph, GraphError> {
    let graph = turn_back_in_attention(graph)?;
    turn_together(graph)
}

/// What turns a tensor alone: the tensor, and positions and table.
fn turned(node: &Node, inverse: bool) -> Option<(Value, [Value; 2])> {
    let &[x, positions, table] = node.inputs.as_slice() else { return None };
    (kind::<Rope>(node)?.inverse == inverse).then_some((x, [positions, table]))
}

fn turn_back_in_attention(graph: Graph) -> Result<Graph, GraphError> {
    let uses = graph.uses();
    // per attention gradient: its turns by the output that they turn
    let mut turns: HashMap<usize, HashMap<usize, usize>> = HashMap::new();
    for (n, node) in graph.nodes().iter().enumerate() {
        let Some((x, [_, table])) = turned(node, true) else { continue };
        if kind::<Rope>(node).is_none_or(|op| op.head_dim != graph.shape_of(table).cols()) {
            continue;
        }
        let Some((from, output)) = graph.producer(x) else { continue };
        let made = &graph.nodes()[from];
        let plain = kind::<AttentionGradient>(made).is_some_and(|op| !op.turns_query && !op.turns_key);
        if plain && output < 2 && uses.get(&x) == Some(&1) && together(made, node) {
            turns.entry(from).or_default().insert(output, n);
        }
    }
    let mut changes = HashMap::new();
    for (from, by_output) in turns {
        let node = &graph.nodes()[from];
        let Some(op) = kind::<AttentionGradient>(node) else { continue };
        let angles =
            |output: &usize| turned(&graph.nodes()[by_output[output]], true).map(|(_, angles)| angles);
        let mut kinds: Vec<[Value; 2]> = by_output.keys().filter_map(angles).collect();
        kinds.dedup();
        let &[angles] = kinds.as_slice() else { continue };
        if angles.iter().any(|&v| graph.producer(v).is_some_and(|(made, _)| made > from)) {
            continue;
        }
        let mut outputs = node.outputs.clone();
        for (&output, &turn) in &by_output {
            outputs[output] = graph.nodes()[turn].outputs[0];
            changes.insert(turn, Vec::new());
        }
        let op = AttentionGradient {
            turns_query: by_output.contains_key(&0),
            turns_key: by_output.contains_key(&1),
            ..op.clone()
        };
        let inputs = node.inputs.iter().copied().chain(angles).collect();
        changes.insert(from, vec![NewNode { op: Arc::new(op), inputs, outputs }]);
    }
    graph.rewritten(&changes)
}

/// Two turns that follow each other by the same angles become one.
fn turn_together(graph: Graph) -> Result<Graph, GraphError> {
    let nodes = graph.nodes();
    let mut changes: HashMap<usize, Vec<NewNode>> = HashMap::new();
    for second in 1..nodes.len() {
        let first = second - 1;
        let (a, b) = (&nodes[first], &nodes[second]);
        let Some(op) = kind::<Rope>(a) else { continue };
        let Some((x, angles)) = turned(a, op.inverse) else { continue };
        let Some((y, _)) = turned(b, op.inverse).filter(|(_, same)| *same == angles) else { continue };
        if kind::<Rope>(b) != Some(op) {
            continue;
        }
        if y != x && y != a.outputs[0] && together(a, b) && !changes.contains_key(&first) {
            let inputs = [x, y].into_iter().chain(angles).collect();
            let outputs = vec![a.outputs[0], b.outputs[0]];
            changes.insert(first, Vec::new());
            changes.insert(second, vec![NewNode { op: Arc::new(op.clone()), inputs, outputs }]);
        }
    }
    graph.rewritten(&changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{Recompute, differentiate};
    use crate::fuse::tests::names;
    use crate::graph::evaluate::evaluate;
    use crate::graph::{DType, ReferenceTensor, Shape};
    use crate::ops::add::add;
    use crate::ops::attention::{Scoring, Visibility, attention};
    use crate::ops::rope::rope;

    const TOKENS: usize = 3;
    const D: usize = 16;

    struct Sketch {
        graph: Graph,
        positions: Value,
        table: Value,
        visibility: Visibility,
    }

    fn sketch(turned: usize) -> Sketch {
        let mut graph = Graph::new();
        let mut rows = |name: &str| graph.input(name, Shape::vector(TOKENS), DType::U32).unwrap();
        let positions = rows("positions");
        let visibility =
            Visibility { starts: rows("starts"), ends: rows("ends"), query_ends: rows("query_ends") };
        let table = graph.input("table", Shape::matrix(TOKENS, turned), DType::F32).unwrap();
        Sketch { graph, positions, table, visibility }
    }

    /// Gradients of what attends after q and k were turned, so many elements of each head, with k's trained as well or not.
    fn attended(train_key: bool, turned: usize) -> Graph {
        let Sketch { mut graph, positions, table, visibility } = sketch(turned);
        let q = graph.trainable("q", Shape::matrix(TOKENS, 2 * D)).unwrap();
        let k = match train_key {
            true => graph.trainable("k", Shape::matrix(TOKENS, D)).unwrap(),
            false => graph.input("k", Shape::matrix(TOKENS, D), DType::F32).unwrap(),
        };
        // as both come from products, before one is turned
        let (q, k) = (add(&mut graph, q, q).unwrap(), add(&mut graph, k, k).unwrap());
        let query = rope(&mut graph, q, positions, table, D).unwrap();
        let key = rope(&mut graph, k, positions, table, D).unwrap();
        let v = graph.input("v", Shape::matrix(TOKENS, D), DType::F32).unwrap();
        let o = attention(&mut graph, (query, key, v), &visibility, Scoring::of(D)).unwrap();
        let seed = graph.input("seed", Shape::matrix(TOKENS, 2 * D), DType::F32).unwrap();
        differentiate(&mut graph, o, seed, Recompute::None).unwrap();
        graph
    }

    /// What is added to each parameter's gradient, from leaves that make sense.
    fn gradients(graph: &Graph) -> Vec<Vec<f64>> {
        let leaf = |name: &str, shape: Shape| match name {
            "positions" => ReferenceTensor { shape, data: vec![0.0, 1.0, 2.0] },
            "starts" => ReferenceTensor { shape, data: vec![0.0; TOKENS] },
            "ends" => ReferenceTensor { shape, data: vec![1.0, 2.0, 3.0] },
            "query_ends" => ReferenceTensor { shape, data: vec![3.0; TOKENS] },
            _ => ReferenceTensor::from_fn(shape, |i| ((i * 7 + name.len() * 5) % 11) as f64 / 8.0 - 0.5),
        };
        let leaves =
            graph.leaves().iter().map(|l| (l.value, leaf(&l.name, graph.shape_of(l.value)))).collect();
        let all = evaluate(graph, &leaves);
        let of = |v: Value| all[v.index()].clone().unwrap().data;
        graph.accumulations().iter().map(|a| of(a.gradient)).collect()
    }

    fn count(graph: &Graph, name: &str) -> usize {
        names(graph).iter().filter(|n| **n == name).count()
    }

    #[test]
    fn four_turns_around_attention_become_one() {
        let graph = attended(true, D);
        let fused = fuse(graph.clone()).unwrap();
        assert_eq!((count(&graph, "rope"), count(&fused, "rope")), (4, 1));
        assert_eq!(gradients(&fused), gradients(&graph));
    }

    #[test]
    fn a_gradient_that_nobody_wants_is_not_turned() {
        let graph = attended(false, D);
        let fused = fuse(graph.clone()).unwrap();
        assert_eq!((count(&graph, "rope"), count(&fused, "rope")), (3, 1));
        assert_eq!(gradients(&fused), gradients(&graph));
    }

    /// Attention turns whole heads back.
    #[test]
    fn turns_of_a_part_of_each_head_become_two() {
        let graph = attended(true, 8);
        let fused = fuse(graph.clone()).unwrap();
        assert_eq!((count(&graph, "rope"), count(&fused, "rope")), (4, 2));
        assert_eq!(gradients(&fused), gradients(&graph));
    }

    /// Queries that are scaled by their positions.
    #[test]
    fn turns_by_two_tables_around_attention_stay() {
        let Sketch { mut graph, positions, table, visibility } = sketch(D);
        let q = graph.trainable("q", Shape::matrix(TOKENS, 2 * D)).unwrap();
        let k = graph.trainable("k", Shape::matrix(TOKENS, D)).unwrap();
        let v = graph.input("v", Shape::matrix(TOKENS, D), DType::F32).unwrap();
        let other = graph.input("other table", Shape::matrix(TOKENS, D), DType::F32).unwrap();
        let query = rope(&mut graph, q, positions, other, D).unwrap();
        let key = rope(&mut graph, k, positions, table, D).unwrap();
        let o = attention(&mut graph, (query, key, v), &visibility, Scoring::of(D)).unwrap();
        let seed = graph.input("seed", Shape::matrix(TOKENS, 2 * D), DType::F32).unwrap();
        differentiate(&mut graph, o, seed, Recompute::None).unwrap();
        let fused = fuse(graph.clone()).unwrap();
        assert_eq!((count(&graph, "rope"), count(&fused, "rope")), (4, 4));
        assert_eq!(gradients(&fused), gradients(&graph));
    }

    #[test]
    fn turns_of_heads_of_other_sizes_stay() {
        let Sketch { mut graph, positions, table, .. } = sketch(8);
        let x = graph.input("x", Shape::matrix(TOKENS, 2 * D), DType::F32).unwrap();
        let y = graph.input("y", Shape::matrix(TOKENS, D), DType::F32).unwrap();
        for (name, x, head_dim) in [("x", x, D), ("y", y, 8)] {
            let turned = rope(&mut graph, x, positions, table, head_dim).unwrap();
            graph.output(format!("{name} turned"), turned);
        }
        assert_eq!(names(&fuse(graph).unwrap()), ["rope", "rope"]);
    }

    #[test]
    fn turns_that_read_one_another_or_other_angles_stay() {
        let Sketch { mut graph, positions, table, .. } = sketch(8);
        let others = graph.input("others", Shape::vector(TOKENS), DType::U32).unwrap();
        let x = graph.input("x", Shape::matrix(TOKENS, 8), DType::F32).unwrap();
        let y = graph.input("y", Shape::matrix(TOKENS, 16), DType::F32).unwrap();
        let once = rope(&mut graph, x, positions, table, 8).unwrap();
        let twice = rope(&mut graph, once, positions, table, 8).unwrap();
        let elsewhere = rope(&mut graph, x, others, table, 8).unwrap();
        graph.output("twice", twice);
        graph.output("elsewhere", elsewhere);
        assert_eq!(names(&fuse(graph.clone()).unwrap()), ["rope", "rope", "rope"]);
        let beside = rope(&mut graph, y, others, table, 8).unwrap();
        graph.output("beside", beside);
        assert_eq!(names(&fuse(graph).unwrap()), ["rope", "rope", "rope"]);
    }
}
