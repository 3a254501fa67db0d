//! A gated activation becomes part of the product that reads it, if nobody else does. By measurement the product's kernel makes it with
//! the loads of its rows, and it is never stored, or before, in scratch space. A down projection that is trained or has an adapter
//! stays as it is: its gradient reads the same tensor again.
//!
//! In reverse, the product that gives its gradient stores those of gate and up instead.

use super::{kind, together};
use crate::graph::{Graph, GraphError, LeafKind, NewNode};
use crate::ops::glu::{Glu, GluGradient};
use crate::ops::matmul::gate_gradient::GateGradient;
use crate::ops::matmul::{Layout, Matmul};
use std::collections::HashMap;
use std::sync::Arc;

pub(super) fn fuse(graph: Graph) -> Result<Graph, GraphError> {
    let uses = graph.uses();
    let mut changes: HashMap<usize, Vec<NewNode>> = HashMap::new();
    for (n, node) in graph.nodes().iter().enumerate() {
        let Some(product) = kind::<Matmul>(node) else { continue };
        let gated = node.inputs[0];
        let Some((from, _)) = graph.producer(gated) else { continue };
        let made = &graph.nodes()[from];
        let alone = uses.get(&gated) == Some(&1) && together(made, node);
        let plain = product.layout == Layout::NT && product.mask.is_none() && !product.residual;
        // the gradient of a trained weight reads the gated tensor too, or that of a copy does: both must be made alike
        let frozen = graph.leaf_of(node.inputs[1]).is_some_and(|leaf| leaf.kind != LeafKind::Trainable);
        if let Some(Glu { activation }) = kind(made)
            && alone
            && plain
            && frozen
        {
            let mut inputs = node.inputs.clone();
            inputs[0] = made.inputs[0];
            inputs.push(made.inputs[1]);
            let op = Arc::new(Matmul { gated: Some(*activation), ..product.clone() });
            changes.insert(from, Vec::new());
            changes.insert(n, vec![NewNode { op, inputs, outputs: node.outputs.clone() }]);
        }
    }
    for (n, node) in graph.nodes().iter().enumerate() {
        let Some(&GluGradient { activation }) = kind(node) else { continue };
        let dy = node.inputs[2];
        let Some((from, _)) = graph.producer(dy) else { continue };
        let made = &graph.nodes()[from];
        let Some(product) = kind::<Matmul>(made) else { continue };
        let alone = uses.get(&dy) == Some(&1) && together(made, node);
        if alone && !product.residual && product.gated.is_none() && !changes.contains_key(&from) {
            let inputs = node.inputs[..2].iter().chain(&made.inputs).copied().collect();
            let op = Arc::new(GateGradient { product: product.clone(), activation });
            changes.insert(from, Vec::new());
            changes.insert(n, vec![NewNode { op, inputs, outputs: node.outputs.clone() }]);
        }
    }
    graph.rewritten(&changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{Recompute, differentiate};
    use crate::fuse::tests::{names, outputs, values};
    use crate::graph::{DType, Shape, Value};
    use crate::ops::activation::Activation;
    use crate::ops::glu::glu;
    use crate::ops::lora_linear::{Dropped, lora_linear};
    use crate::ops::matmul::matmul;

    /// Gate, up, their product and a down projection of it.
    fn mlp(graph: &mut Graph) -> (Value, Value) {
        let gate = graph.trainable("gate", Shape::matrix(3, 8)).unwrap();
        let up = graph.input("up", Shape::matrix(3, 8), DType::F32).unwrap();
        let down = graph.frozen("down", Shape::matrix(5, 8), DType::F32).unwrap();
        let product = glu(graph, Activation::GeluTanh, gate, up).unwrap();
        (product, down)
    }

    fn gradient(graph: &Graph) -> Vec<f64> {
        values(graph)[graph.accumulations()[0].gradient.index()].clone().unwrap().data
    }

    #[test]
    fn the_products_beside_a_gate_make_it_and_its_gradients() {
        let mut g = Graph::new();
        let (product, down) = mlp(&mut g);
        let y = matmul(&mut g, Layout::NT, product, down, 1.0, DType::F32).unwrap();
        g.output("y", y);
        let seed = g.input("seed", Shape::matrix(3, 5), DType::F32).unwrap();
        differentiate(&mut g, y, seed, Recompute::None).unwrap();
        let fused = fuse(g.clone()).unwrap();
        assert_eq!(names(&g), ["glu", "matmul", "matmul", "glu_gradient", "copy"]);
        assert_eq!(names(&fused), ["matmul", "matmul_gate_gradient", "copy"]);
        assert_eq!(outputs(&fused), outputs(&g));
        assert_eq!(gradient(&fused), gradient(&g));
    }

    #[test]
    fn a_gate_that_an_adapters_gradient_reads_stays() {
        let mut g = Graph::new();
        let (product, down) = mlp(&mut g);
        let a = g.trainable("a", Shape::matrix(2, 8)).unwrap();
        let b = g.trainable("b", Shape::matrix(5, 2)).unwrap();
        let y = lora_linear(&mut g, product, down, (a, b), Dropped::Not, 2.0, DType::F32).unwrap();
        let seed = g.input("seed", Shape::matrix(3, 5), DType::F32).unwrap();
        differentiate(&mut g, y, seed, Recompute::None).unwrap();
        let fused = names(&fuse(g).unwrap());
        assert_eq!(fused[..2], ["glu", "lora_linear"]);
        assert!(fused.contains(&"matmul_gate_gradient") && !fused.contains(&"glu_gradient"), "{fused:?}");
    }
}
