//! `add(x, product(..))` becomes the product with `x` added where it stores its result; so with a norm, its gradient, and whatever
//! else has [`crate::graph::Operation::with_residual`].

use super::absorb::Absorbed;
use crate::graph::{Graph, GraphError, Value};

pub(super) fn fuse(graph: Graph) -> Result<Graph, GraphError> {
    let mut absorbed = Absorbed::new(&graph);
    for (at, node) in graph.nodes().iter().enumerate() {
        let &[a, b] = node.inputs.as_slice() else { continue };
        if node.op.name() != "add" || a == b {
            continue;
        }
        // the product that was made last: the other operand may itself be a fused product
        let mut candidates: Vec<(usize, Value, Value)> = [(a, b), (b, a)]
            .into_iter()
            .filter_map(|(made, other)| Some((graph.producer(made)?.0, made, other)))
            .collect();
        candidates.sort_by_key(|c| std::cmp::Reverse(c.0));
        for (from, made, other) in candidates {
            let Some(op) = graph.nodes()[from].op.with_residual() else { continue };
            if graph.type_of(other) == graph.type_of(made) && absorbed.take(at, (from, made), op, other) {
                break;
            }
        }
    }
    absorbed.rewritten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{Recompute, differentiate};
    use crate::fuse::tests::{names, outputs, values};
    use crate::graph::{DType, Shape};
    use crate::ops::add::add;
    use crate::ops::lora_linear::{Dropped, lora_linear};
    use crate::ops::matmul::{Layout, matmul};
    use crate::ops::rms_norm::{Norm, rms_norm};

    #[test]
    fn sums_with_products_become_products_and_give_the_same() {
        let mut g = Graph::new();
        let x = g.input("x", Shape::matrix(3, 4), DType::F32).unwrap();
        let w = g.frozen("w", Shape::matrix(4, 4), DType::F32).unwrap();
        let a = g.trainable("a", Shape::matrix(2, 4)).unwrap();
        let b = g.trainable("b", Shape::matrix(4, 2)).unwrap();
        let y = lora_linear(&mut g, x, w, (a, b), Dropped::Not, 2.0, DType::F32).unwrap();
        let first = add(&mut g, x, y).unwrap();
        let z = matmul(&mut g, Layout::NN, first, w, 1.0, DType::F32).unwrap();
        let second = add(&mut g, z, first).unwrap();
        g.output("second", second);
        let fused = fuse(g.clone()).unwrap();
        assert_eq!(names(&fused), ["lora_linear", "matmul"]);
        assert_eq!(outputs(&fused), outputs(&g));
    }

    #[test]
    fn a_product_that_others_read_stays() {
        let mut g = Graph::new();
        let x = g.input("x", Shape::matrix(3, 4), DType::F32).unwrap();
        let w = g.frozen("w", Shape::matrix(4, 4), DType::F32).unwrap();
        let y = matmul(&mut g, Layout::NT, x, w, 1.0, DType::F32).unwrap();
        let sum = add(&mut g, x, y).unwrap();
        g.output("sum", sum);
        g.output("y", y);
        let fused = fuse(g.clone()).unwrap();
        assert_eq!(names(&fused), names(&g));
    }

    #[test]
    fn two_products_in_one_sum_are_chained() {
        let mut g = Graph::new();
        let x = g.input("x", Shape::matrix(3, 4), DType::F32).unwrap();
        let w = g.frozen("w", Shape::matrix(4, 4), DType::F32).unwrap();
        let y = matmul(&mut g, Layout::NT, x, w, 1.0, DType::F32).unwrap();
        let z = matmul(&mut g, Layout::NN, x, w, 1.0, DType::F32).unwrap();
        let sum = add(&mut g, z, y).unwrap();
        g.output("sum", sum);
        let fused = fuse(g.clone()).unwrap();
        assert_eq!(names(&fused), ["matmul", "matmul"]);
        assert_eq!(outputs(&fused), outputs(&g));
    }

    #[test]
    fn sums_with_a_norm_and_with_its_gradient_are_made_in_these() {
        let mut g = Graph::new();
        let p = g.trainable("p", Shape::matrix(3, 4)).unwrap();
        let z = g.input("z", Shape::matrix(3, 4), DType::F32).unwrap();
        let x = add(&mut g, p, z).unwrap();
        let weight = g.frozen("weight", Shape::vector(4), DType::F32).unwrap();
        let normed = rms_norm(&mut g, x, weight, Norm { eps: 1e-5, unit_offset: true }).unwrap();
        let y = add(&mut g, x, normed).unwrap();
        let seed = g.input("seed", Shape::matrix(3, 4), DType::F32).unwrap();
        differentiate(&mut g, y, seed, Recompute::None).unwrap();
        let fused = fuse(g.clone()).unwrap();
        assert_eq!(names(&g)[..3], ["add", "rms_norm", "add"]);
        assert_eq!(names(&g)[3..], ["rms_norm_gradient", "add", "copy"]);
        // that of the norm itself, too, as it is of models that normalise what they add to the stream
        assert_eq!(names(&fused), ["add", "rms_norm", "rms_norm_gradient", "copy"]);
        let gradient = |graph: &Graph| {
            let of = graph.accumulations()[0].gradient;
            values(graph)[of.index()].clone().unwrap().data
        };
        assert_eq!(gradient(&fused), gradient(&g));
    }
}
