//! A clipped gradient that only the optimiser reads is clipped as its update loads it.

use super::kind;
use crate::graph::{Graph, GraphError, NewNode, Operation};
use crate::ops::adamw::AdamW;
use crate::ops::clip::Clip;
use crate::ops::sgd::Sgd;
use std::collections::HashMap;
use std::sync::Arc;

pub(super) fn fuse(graph: Graph) -> Result<Graph, GraphError> {
    let uses = graph.uses();
    let mut changes: HashMap<usize, Vec<NewNode>> = HashMap::new();
    for (n, node) in graph.nodes().iter().enumerate() {
        // and the input that is the gradient
        let update: Option<(Arc<dyn Operation>, usize)> = match (kind::<AdamW>(node), kind::<Sgd>(node)) {
            (Some(adamw), _) if !adamw.clips => Some((Arc::new(AdamW { clips: true, ..adamw.clone() }), 3)),
            (_, Some(sgd)) if !sgd.clips => Some((Arc::new(Sgd { clips: true, ..sgd.clone() }), 2)),
            _ => None,
        };
        let Some((op, gradient)) = update else { continue };
        let Some((from, _)) = graph.producer(node.inputs[gradient]) else { continue };
        let clipped = &graph.nodes()[from];
        let same = kind::<Clip>(clipped).is_some() && clipped.inputs[1..] == node.inputs[gradient + 1..];
        if same && uses.get(&node.inputs[gradient]) == Some(&1) {
            let mut inputs = node.inputs.clone();
            inputs[gradient] = clipped.inputs[0];
            changes.insert(from, Vec::new());
            changes.insert(n, vec![NewNode { op, inputs, outputs: node.outputs.clone() }]);
        }
    }
    graph.rewritten(&changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::tests::{names, outputs};
    use crate::graph::{DType, Shape, Value};
    use crate::ops::adamw::{HYPER_LEN, adamw};
    use crate::ops::norm_squared::norm_squared;
    use crate::ops::sgd::sgd;

    /// An update with so many moments; somebody else may read the clipped gradient too.
    fn update(moments: usize, read: bool) -> Graph {
        let mut graph = Graph::new();
        let shape = Shape::vector(12);
        let state: Vec<Value> = ["p", "m", "v"][..1 + moments]
            .iter()
            .map(|name| graph.state(*name, shape, DType::F32).unwrap())
            .collect();
        let gradient = graph.input("gradient", shape, DType::F32).unwrap();
        let hyper = graph.input("hyper", Shape::vector(HYPER_LEN), DType::F32).unwrap();
        let norm2 = norm_squared(&mut graph, gradient).unwrap();
        let updated = match state[..] {
            [p, m, v] => adamw(&mut graph, 8, [p, m, v], gradient, norm2, hyper).unwrap(),
            _ => sgd(&mut graph, 8, [state[0], state[1]], gradient, norm2, hyper).unwrap(),
        };
        graph.output("p", updated[0]);
        if read {
            let clipped = graph.nodes()[1].outputs[0];
            graph.output("clipped", clipped);
        }
        graph
    }

    #[test]
    fn an_update_clips_what_it_reads() {
        for (moments, name) in [(2, "adamw"), (1, "sgd")] {
            let graph = update(moments, false);
            assert_eq!(names(&graph), ["norm_squared", "clip", name]);
            let expected = outputs(&graph);
            let fused = fuse(graph).unwrap();
            assert_eq!(names(&fused), ["norm_squared", name]);
            let actual = outputs(&fused);
            let near =
                |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * (1.0 + b.abs()) || (a.is_nan() && b.is_nan());
            assert!(actual[0].iter().zip(&expected[0]).all(near), "{actual:?} {expected:?}");
        }
    }

    #[test]
    fn a_clipped_gradient_that_others_read_stays() {
        assert_eq!(names(&fuse(update(2, true)).unwrap()), ["norm_squared", "clip", "adamw"]);
    }
}
