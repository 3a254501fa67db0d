//! Fusions: rewrites of a finished graph into one with fewer, larger operations. Each has its own switch, so that its gain
//! can be measured and its result compared.
//!
//! Three fusions are not rewrites but operations of their own: the adapter in its layer's product, and dropout inside the
//! adapter's ([`crate::ops::lora_linear`], both switched where the layer is built), and head and cross-entropy by chunks
//! ([`crate::ops::cross_entropy`]).

mod absorb;
mod bias;
mod clip;
mod glu;
mod residual;
mod rotary;
mod siblings;

use crate::graph::{Graph, GraphError, Node, Operation};
use std::any::Any;

/// Which fusions are on: all, unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fusions {
    /// A low-rank adapter widens its layer's product, forward and reverse, instead of a product and a sum of its own.
    pub adapter: bool,
    /// A bias is added where its layer's product is stored.
    pub bias: bool,
    /// A sum with the result of a product is made where the product is stored: residual connections, and gradients that
    /// meet. So is one with the gradient of a norm: that of the residual connection around it.
    pub residual: bool,
    /// Dropout of the adapter's input is made as its products read and store, instead of a masked copy.
    pub dropout: bool,
    /// The low-rank sides of layers with one input, `x·Aᵀ` and the gradients of A, are one product.
    pub siblings: bool,
    /// Rotary embeddings of q and k are one launch, and their gradients are turned back where attention's gradient stores them.
    pub rotary: bool,
    /// A gated activation is part of the down product that alone reads it, which can make it as it loads its rows; the product that
    /// gives its gradient stores those of gate and up.
    pub glu: bool,
    /// Logits are made, and turned into their gradient, for some rows at a time, instead of all at once.
    pub head: bool,
    /// Gradients are clipped as the optimiser's update loads them, instead of by a kernel of its own.
    pub clip: bool,
}

impl Fusions {
    pub const NAMES: [&'static str; 9] =
        ["adapter", "bias", "residual", "dropout", "siblings", "rotary", "glu", "head", "clip"];

    /// All but the named ones.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn without<S: AsRef<str>>(names: &[S]) -> Result<Self, String> {
        let mut fusions = Fusions::default();
        for name in names {
            *fusions.switch(name.as_ref()).ok_or_else(|| name.as_ref().to_owned())? = false;
        }
        Ok(fusions)
    }

    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        match name {
            "adapter" => Some(&mut self.adapter),
            "bias" => Some(&mut self.bias),
            "residual" => Some(&mut self.residual),
            "dropout" => Some(&mut self.dropout),
            "siblings" => Some(&mut self.siblings),
            "rotary" => Some(&mut self.rotary),
            "glu" => Some(&mut self.glu),
            "head" => Some(&mut self.head),
            "clip" => Some(&mut self.clip),
            _ => None,
        }
    }
}

impl Default for Fusions {
    fn default() -> Self {
        Fusions {
            adapter: true,
            bias: true,
            residual: true,
            dropout: true,
            siblings: true,
            rotary: true,
            glu: true,
            head: true,
            clip: true,
        }
    }
}

/// Applies what is switched on.
///
/// # Errors
/// A rewrite that does not fit its graph: a mistake in this room.
pub fn fuse(graph: Graph, fusions: Fusions) -> Result<Graph, GraphError> {
    let graph = if fusions.siblings { siblings::fuse(graph)? } else { graph };
    let graph = if fusions.rotary { rotary::fuse(graph)? } else { graph };
    let graph = if fusions.glu { glu::fuse(graph)? } else { graph };
    let graph = if fusions.clip { clip::fuse(graph)? } else { graph };
    let graph = if fusions.bias { bias::fuse(graph)? } else { graph };
    if fusions.residual { residual::fuse(graph) } else { Ok(graph) }
}

/// The operation of a node, if it is one of this kind.
fn kind<T: Operation + 'static>(node: &Node) -> Option<&T> {
    let op: &dyn Any = &*node.op;
    op.downcast_ref()
}

/// Whether both are made again together, if at all.
fn together(a: &Node, b: &Node) -> bool {
    a.block == b.block && a.piece == b.piece
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ReferenceTensor;
    use crate::graph::evaluate::evaluate;

    pub(super) fn names(graph: &Graph) -> Vec<&'static str> {
        graph.nodes().iter().map(|n| n.op.name()).collect()
    }

    /// Every value of the graph, from reproducible leaves.
    pub(super) fn values(graph: &Graph) -> Vec<Option<ReferenceTensor>> {
        let value = |seed: usize| move |i: usize| ((i * 7 + seed * 13) % 11) as f64 / 4.0 - 1.0;
        let leaves = graph
            .leaves()
            .iter()
            .enumerate()
            .map(|(i, l)| (l.value, ReferenceTensor::from_fn(graph.shape_of(l.value), value(i))))
            .collect();
        evaluate(graph, &leaves)
    }

    pub(super) fn outputs(graph: &Graph) -> Vec<Vec<f64>> {
        let all = values(graph);
        graph.outputs().iter().map(|(_, v)| all[v.index()].clone().unwrap().data).collect()
    }

    #[test]
    fn every_name_switches_one_off() {
        for name in Fusions::NAMES {
            assert_ne!(Fusions::without(&[name]), Ok(Fusions::default()));
        }
        let none = Fusions {
            adapter: false,
            bias: false,
            residual: false,
            dropout: false,
            siblings: false,
            rotary: false,
            glu: false,
            head: false,
            clip: false,
        };
        assert_eq!(Fusions::without(&Fusions::NAMES), Ok(none));
        assert_eq!(Fusions::without(&["speed"]), Err("speed".into()));
    }
}
