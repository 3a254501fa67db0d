//! `bias(product(..), b)` becomes the product with `b` added to each row where it stores its result: what has
//! [`crate::graph::Operation::with_bias`]. A product in 16 bits is rounded once then, as PyTorch rounds it.

use super::absorb::Absorbed;
use super::kind;
use crate::graph::{Graph, GraphError};
use crate::ops::bias::Bias;

pub(super) fn fuse(graph: Graph) -> Result<Graph, GraphError> {
    let mut absorbed = Absorbed::new(&graph);
    for (at, node) in graph.nodes().iter().enumerate() {
        let &[x, b] = node.inputs.as_slice() else { continue };
        if kind::<Bias>(node).is_none() {
            continue;
        }
        let Some((from, _)) = graph.producer(x) else { continue };
        let Some(op) = graph.nodes()[from].op.with_bias() else { continue };
        absorbed.take(at, (from, x), op, b);
    }
    absorbed.rewritten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{Recompute, differentiate};
    use crate::fuse::tests::{names, outputs, values};
    use crate::fuse::{Fusions, residual};
    use crate::graph::{DType, Shape};
    use crate::ops::add::add;
    use crate::ops::bias::bias;
    use crate::ops::lora_linear::{Dropped, lora_linear};
    use crate::ops::matmul::{Layout, matmul};

    /// A layer with an adapter and one without, whose sum with the stream comes after the bias.
    #[test]
    fn layers_with_biases_are_one_operation_and_give_the_same() {
        let mut g = Graph::new();
        let x = g.input("x", Shape::matrix(3, 4), DType::F32).unwrap();
        let w = g.frozen("w", Shape::matrix(4, 4), DType::F32).unwrap();
        let frozen = g.frozen("frozen bias", Shape::vector(4), DType::F32).unwrap();
        let trained = g.trainable("bias", Shape::vector(4)).unwrap();
        let a = g.trainable("a", Shape::matrix(2, 4)).unwrap();
        let b = g.trainable("b", Shape::matrix(4, 2)).unwrap();
        let y = lora_linear(&mut g, x, w, (a, b), Dropped::Not, 2.0, DType::F32).unwrap();
        let y = bias(&mut g, y, trained).unwrap();
        let z = matmul(&mut g, Layout::NT, y, w, 1.0, DType::F32).unwrap();
        let z = bias(&mut g, z, frozen).unwrap();
        let sum = add(&mut g, x, z).unwrap();
        g.output("sum", sum);
        let seed = g.input("seed", Shape::matrix(3, 4), DType::F32).unwrap();
        differentiate(&mut g, sum, seed, Recompute::None).unwrap();
        let fused = residual::fuse(fuse(g.clone()).unwrap()).unwrap();
        assert_eq!(names(&g)[..5], ["lora_linear", "bias", "matmul", "bias", "add"]);
        assert_eq!(names(&fused)[..2], ["lora_linear", "matmul"]);
        assert!(!names(&fused).contains(&"bias") && names(&fused).contains(&"bias_gradient"));
        assert_eq!(outputs(&fused), outputs(&g));
        let gradients = |graph: &Graph| {
            let all = values(graph);
            let of = |a: &crate::graph::Accumulation| all[a.gradient.index()].clone().unwrap().data;
            graph.accumulations().iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(gradients(&fused), gradients(&g));
    }

    #[test]
    fn a_product_that_is_read_without_its_bias_stays() {
        let mut g = Graph::new();
        let x = g.input("x", Shape::matrix(3, 4), DType::F32).unwrap();
        let w = g.frozen("w", Shape::matrix(4, 4), DType::F32).unwrap();
        let b = g.frozen("b", Shape::vector(4), DType::F32).unwrap();
        let y = matmul(&mut g, Layout::NT, x, w, 1.0, DType::F32).unwrap();
        let biased = bias(&mut g, y, b).unwrap();
        g.output("biased", biased);
        g.output("y", y);
        let fused = crate::fuse::fuse(g.clone(), Fusions::default()).unwrap();
        assert_eq!(names(&fused), names(&g));
    }
}
