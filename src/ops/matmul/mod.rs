//! Matrix products with f32 accumulation: `C = alpha * (A·B + A2·B2)` in the three transpositions that a linear
//! layer and its gradients need.
//!
//! Shapes, for a product `[m, n]` over `k`:
//! - [`Layout::NT`]: `A [m, k]`, `B [n, k]` (forward of a linear layer with weight `[out, in]`)
//! - [`Layout::NN`]: `A [m, k]`, `B [k, n]` (gradient of its input)
//! - [`Layout::TN`]: `A [k, m]`, `B [k, n]` (gradient of its weight)
//!
//! The second pair widens `k` by `k2` inside the same tile loop: the low-rank adapter's share of a product costs
//! `k2` more columns and no further pass over the result. A bias and a residual are added where it is stored.
//!
//! Gradients: the product of the output's gradient with the other operand, in the fitting layout. They overwrite,
//! or add where the planner says so.

mod candidates;
mod cases;
pub mod gate_gradient;
pub mod group;
mod kernel;
mod matrices;
mod operand;
mod product;
mod sums;
mod variant;

pub use candidates::{Extents, source};
pub(crate) use kernel::take_rounding;
pub use operand::{Gate, MaskOn, Masked, Operand, Terms};
pub use product::Product;
pub(crate) use sums::{expect_sums, reference_sums, split_sums};
pub use variant::Variant;

use super::activation::Activation;
use super::bias::bias_gradient;
use super::dropout::Dropout;
use super::expect;
use super::glu::gated;
use crate::graph::{
    Case, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor, ReverseNode,
    Shape, TensorType, Value,
};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    NT,
    NN,
    TN,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Matmul {
    pub layout: Layout,
    pub alpha: f64,
    pub dtype: DType,
    /// Dropout on an operand or on the second pair's product; the generator's state `[4]` is the input after the pairs.
    pub mask: Option<Masked>,
    /// A is `act(gate) * up` ([`super::glu`]): gate in A's place, up the input after the pairs. Made by [`crate::fuse`].
    pub gated: Option<Activation>,
    /// An input after all these, f32 `[n]`, is added to each row of the result. Made by [`crate::fuse`].
    pub bias: bool,
    /// The last input is added to the result.
    pub residual: bool,
    /// One operand is an adapter's, see [`Terms::low_rank`].
    pub low_rank: bool,
}

/// Appends `alpha * A·B` with the result stored as `dtype`.
pub fn matmul(
    graph: &mut Graph,
    layout: Layout,
    a: Value,
    b: Value,
    alpha: f64,
    dtype: DType,
) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Matmul::plain(layout, alpha, dtype)), &[a, b])
}

/// [`matmul`] of an adapter's and of activations or their gradient, in f32, with dropout on an operand from this state of the generator.
pub fn matmul_low_rank(
    graph: &mut Graph,
    layout: Layout,
    (a, b): (Value, Value),
    alpha: f64,
    mask: Option<(Masked, Value)>,
) -> Result<Value, GraphError> {
    let op = Matmul { mask: mask.map(|m| m.0), low_rank: true, ..Matmul::plain(layout, alpha, DType::F32) };
    let inputs: Vec<Value> = [a, b].into_iter().chain(mask.map(|m| m.1)).collect();
    graph.apply1(Arc::new(op), &inputs)
}

/// Appends `A·B + A2·B2` with the result stored as `dtype`; `dropout` and the generator's state put a mask on `A2·B2`.
pub fn matmul_pair(
    graph: &mut Graph,
    layout: Layout,
    first: (Value, Value),
    second: (Value, Value),
    dropout: Option<(Dropout, Value)>,
    dtype: DType,
) -> Result<Value, GraphError> {
    let mask = dropout.map(|(dropout, _)| Masked { dropout, on: MaskOn::Pair });
    let op = Matmul { mask, ..Matmul::plain(layout, 1.0, dtype) };
    let inputs = [first.0, first.1, second.0, second.1].into_iter().chain(dropout.map(|(_, rng)| rng));
    graph.apply1(Arc::new(op), &inputs.collect::<Vec<_>>())
}

impl Layout {
    /// `(m, n, k)` of the product.
    pub fn extents(self, a: &TensorType, b: &TensorType) -> (usize, usize, usize) {
        match self {
            Layout::NT => (a.rows(), b.rows(), a.cols()),
            Layout::NN => (a.rows(), b.cols(), a.cols()),
            Layout::TN => (a.cols(), b.cols(), a.rows()),
        }
    }

    fn inner_of_b(self, b: &TensorType) -> usize {
        match self {
            Layout::NT => b.cols(),
            Layout::NN | Layout::TN => b.rows(),
        }
    }
}

impl Matmul {
    /// The product of one or two pairs and nothing else.
    pub fn plain(layout: Layout, alpha: f64, dtype: DType) -> Self {
        Matmul {
            layout,
            alpha,
            dtype,
            mask: None,
            gated: None,
            bias: false,
            residual: false,
            low_rank: false,
        }
    }

    /// The inputs as pairs, and generator's state or up; of all that are not sums.
    fn split<'a, T>(&self, inputs: &'a [T]) -> (&'a [T], Option<&'a T>) {
        let (pairs, further) =
            inputs.split_at(inputs.len() - usize::from(self.gated.is_some() || self.mask.is_some()));
        (pairs, further.first())
    }

    /// The launch of a node whose inputs before `first` are not the product's, and which may make gradients of the result.
    fn launch_after(
        &self,
        first: usize,
        launch: &Launch<'_>,
        gradient_of: Option<(Gate, Activation)>,
    ) -> LaunchPlan {
        let inputs = &launch.inputs[first..];
        let input = |i: usize| Operand::input(launch, first + i);
        let (m, n, k) = self.layout.extents(&inputs[0], &inputs[1]);
        let (own, bias, residual) = split_sums(inputs, self.bias, self.residual);
        let (pairs, further) = self.split(own);
        let pair = (pairs.len() == 4).then(|| {
            let (_, _, k2) = self.layout.extents(&inputs[2], &inputs[3]);
            (input(2), input(3), k2)
        });
        let mask = self.mask.zip(further.map(|_| Place::Input(first + pairs.len())));
        let up = self.gated.map(|_| input(pairs.len()));
        let (gate, of_gradient) = gradient_of.unzip();
        let activation = self.gated.or(of_gradient).unwrap_or_default();
        let (alpha, accumulate) = (self.alpha, launch.accumulate[0]);
        let product = Product { layout: self.layout, m, n, k, alpha, accumulate, parts: 1 };
        let out = Operand::new(Place::Output(0), self.dtype);
        let bias = bias.map(|_| input(own.len()));
        let residual = residual.map(|_| input(inputs.len() - 1));
        let mut plan = LaunchPlan::default();
        let low_rank = self.low_rank;
        let terms = Terms { pair, bias, residual, mask, up, gradient_of: gate, activation, low_rank };
        // a result in 16 bits needs no more of its second operand
        let b = if self.dtype == DType::F32 { input(1) } else { input(1).beside(inputs[0].dtype) };
        product.launch(launch, &mut plan, (input(0), b), terms, out);
        plan
    }
}

impl Operation for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect(self.name(), self.gated.is_none() || self.mask.is_none(), || {
            "a gated operand has no dropout beside it".into()
        })?;
        let sums = usize::from(self.bias) + usize::from(self.residual);
        let further = sums + usize::from(self.gated.is_some() || self.mask.is_some());
        let pairs = match self.mask {
            Some(Masked { on: MaskOn::Pair, .. }) => 2..=2,
            _ => 1..=2,
        };
        if !pairs.into_iter().any(|n| inputs.len() == 2 * n + further) {
            return Err(GraphError::invalid(self.name(), "takes one or two pairs of matrices"));
        }
        let (inputs, bias, residual) = split_sums(inputs, self.bias, self.residual);
        let (inputs, further) = self.split(inputs);
        if self.mask.is_some() && further.is_some_and(|t| t.dtype != DType::U32 || t.cols() != 4) {
            return Err(GraphError::invalid(self.name(), "the generator's state is u32 [4]"));
        }
        if self.gated.is_some() && further != inputs.first() {
            return Err(GraphError::invalid(self.name(), "gate and up differ"));
        }
        let (m, n, _) = self.layout.extents(&inputs[0], &inputs[1]);
        for pair in inputs.chunks(2) {
            let (m2, n2, k2) = self.layout.extents(&pair[0], &pair[1]);
            let inner = self.layout.inner_of_b(&pair[1]);
            if (m2, n2) != (m, n) || k2 != inner || k2 == 0 {
                let reason = format!(
                    "{:?} of {} and {} does not fit a [{m}, {n}] product",
                    self.layout, pair[0], pair[1]
                );
                return Err(GraphError::invalid(self.name(), reason));
            }
        }
        if inputs.iter().any(|t| !t.dtype.is_float()) || !self.dtype.is_float() {
            return Err(GraphError::invalid(self.name(), "operands and result are floats"));
        }
        let output = TensorType::new(Shape::matrix(m, n), self.dtype);
        expect_sums(self.name(), output, bias, residual)?;
        Ok(vec![output])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dc) = node.gradients[0] else { return Ok(vec![None; node.inputs.len()]) };
        if self.gated.is_some() || self.mask.is_some() {
            // masked products are made by gradient rules alone, gated ones after them
            node.refuse(self.name(), &(0..node.inputs.len()).collect::<Vec<_>>())?;
        }
        let (own, bias, residual) = split_sums(node.inputs, self.bias, self.residual);
        let (factors, _) = self.split(own);
        let mut gradients = Vec::new();
        for (pair, wanted) in factors.chunks(2).zip(node.wanted.chunks(2)) {
            let (a, b) = (pair[0], pair[1]);
            let (ta, tb) = (graph.type_of(a).dtype, graph.type_of(b).dtype);
            let (for_a, for_b) = match self.layout {
                Layout::NT => ((Layout::NN, dc, b), (Layout::TN, dc, a)),
                Layout::NN => ((Layout::NT, dc, b), (Layout::TN, a, dc)),
                Layout::TN => ((Layout::NT, b, dc), (Layout::NN, a, dc)),
            };
            for ((layout, x, y), (dtype, wanted)) in
                [for_a, for_b].into_iter().zip([(ta, wanted[0]), (tb, wanted[1])])
            {
                gradients.push(if wanted {
                    Some(matmul(graph, layout, x, y, self.alpha, dtype)?)
                } else {
                    None
                });
            }
        }
        gradients.extend((self.gated.is_some() || self.mask.is_some()).then_some(None));
        if bias.is_some() {
            gradients.push(if node.wanted[own.len()] { Some(bias_gradient(graph, dc)?) } else { None });
        }
        gradients.extend(residual.map(|_| Some(dc)));
        Ok(gradients)
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        self.launch_after(0, launch, None)
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (own, bias, residual) = split_sums(inputs, self.bias, self.residual);
        let (factors, further) = self.split(own);
        let mut out = reference_sums(&outputs[0], bias, residual);
        let masked = |on: MaskOn, x: &ReferenceTensor| match (self.mask, further) {
            (Some(mask), Some(rng)) if mask.on == on => mask.dropout.masked(x, rng),
            _ => x.clone(),
        };
        let (a, b) = match self.gated.zip(further) {
            Some((activation, up)) => (gated(activation, &factors[0], up), factors[1].clone()),
            None => (masked(MaskOn::Left, &factors[0]), masked(MaskOn::Right, &factors[1])),
        };
        accumulate_product(self.layout, self.alpha, &a, &b, &mut out);
        if let [a2, b2] = &factors[2..] {
            let mut second = ReferenceTensor::zeros(outputs[0].shape);
            accumulate_product(self.layout, self.alpha, a2, b2, &mut second);
            let second = masked(MaskOn::Pair, &second);
            out.data.iter_mut().zip(&second.data).for_each(|(sum, v)| *sum += v);
        }
        vec![out]
    }

    fn cases() -> Vec<Case> {
        cases::cases()
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }

    fn with_residual(&self) -> Option<Arc<dyn Operation>> {
        (!self.residual).then(|| Arc::new(Matmul { residual: true, ..self.clone() }) as _)
    }

    fn with_bias(&self) -> Option<Arc<dyn Operation>> {
        (!self.bias && !self.residual).then(|| Arc::new(Matmul { bias: true, ..self.clone() }) as _)
    }
}

/// `out += alpha * A·B` in f64.
pub(crate) fn accumulate_product(
    layout: Layout,
    alpha: f64,
    a: &ReferenceTensor,
    b: &ReferenceTensor,
    out: &mut ReferenceTensor,
) {
    let (m, n) = (out.rows(), out.cols());
    let k = if layout == Layout::TN { a.rows() } else { a.cols() };
    for i in 0..m {
        for j in 0..n {
            let sum: f64 = (0..k)
                .map(|x| {
                    let left = if layout == Layout::TN { a.data[x * m + i] } else { a.data[i * k + x] };
                    let right = if layout == Layout::NT { b.data[j * k + x] } else { b.data[x * n + j] };
                    left * right
                })
                .sum();
            out.data[i * n + j] += alpha * sum;
        }
    }
}
