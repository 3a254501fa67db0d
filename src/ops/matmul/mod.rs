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
pub mod gate_gradient;
pub mod group;
mod kernel;
mod matrices;
mod operand;
mod product;
mod variant;

pub use candidates::{Extents, source};
pub(crate) use kernel::take_rounding;
pub use operand::{Gate, MaskOn, Masked, Operand, Terms};
pub use product::Product;
pub use variant::Variant;

use super::activation::Activation;
use super::bias::bias_gradient;
use super::dropout::Dropout;
use super::expect;
use super::glu::gated;
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shape, TensorType, Value,
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
        let mut cases = Vec::new();
        let shapes = [
            (1, 1, 1),
            (5, 7, 6),
            (33, 70, 37),
            (64, 6, 40),
            (3, 130, 9),
            (100, 8, 65),
            (8, 96, 50),
            (64, 4, 4099),
        ];
        for layout in [Layout::NT, Layout::NN, Layout::TN] {
            let dims = |m: usize, n: usize, k: usize| match layout {
                Layout::NT => ([m, k], [n, k]),
                Layout::NN => ([m, k], [k, n]),
                Layout::TN => ([k, m], [k, n]),
            };
            for (m, n, k) in shapes {
                let (a, b) = dims(m, n, k);
                let inputs = vec![CaseInput::random(&a, DType::F32), CaseInput::random(&b, DType::F32)];
                let op = Matmul::plain(layout, 0.5, DType::F32);
                let case = Case::new(format!("{layout:?} {m}x{n}x{k}"), op, inputs);
                cases.push(if m * n * k < 300 { case.gradients(&[0, 1]) } else { case });
            }
            // several tiles of matrix units, the last ones not whole, and what is no multiple of four
            for (m, n, k) in [(37, 70, 37), (200, 260, 100), (70, 132, 96)] {
                let (a, b) = dims(m, n, k);
                let inputs = vec![CaseInput::random(&a, DType::F16), CaseInput::random(&b, DType::F16)];
                let op = Matmul::plain(layout, 0.5, DType::F16);
                cases.push(Case::new(format!("{layout:?} {m}x{n}x{k} f16"), op, inputs));
            }
            for (dtype, other) in [
                (DType::F16, DType::F16),
                (DType::BF16, DType::BF16),
                (DType::F32, DType::BF16),
                (DType::BF16, DType::F32),
                (DType::F16, DType::F32),
            ] {
                let ((a, b), (a2, b2)) = (dims(35, 44, 52), dims(35, 44, 6));
                let inputs = vec![
                    CaseInput::random(&a, dtype),
                    CaseInput::random(&b, other),
                    CaseInput::random(&a2, DType::F32),
                    CaseInput::random(&b2, DType::F32),
                ];
                let op = Matmul::plain(layout, 1.0, dtype);
                let mut with = inputs.clone();
                with.push(CaseInput::random(&[35, 44], dtype));
                cases.push(Case::new(format!("{layout:?} pair {dtype} {other}"), op.clone(), inputs));
                let op = Matmul { residual: true, ..op };
                cases.push(Case::new(format!("{layout:?} pair and residual {dtype} {other}"), op, with));
            }
            // adapters of more than a block of the tiles, the last block not whole
            for dtype in [DType::F16, DType::BF16] {
                let ((a, b), (a2, b2)) = (dims(35, 44, 52), dims(35, 44, 42));
                let mut inputs = vec![CaseInput::random(&a, dtype), CaseInput::random(&b, dtype)];
                inputs.extend([a2, b2].map(|d| CaseInput::random(&d, DType::F32)));
                let op = Matmul::plain(layout, 1.0, dtype);
                cases.push(Case::new(format!("{layout:?} wide pair {dtype}"), op, inputs));
            }
            // an inner dimension that goes in sections
            for (dtype, (m, n, k)) in [(DType::BF16, (35, 44, 1100)), (DType::F16, (40, 70, 600))] {
                let ((a, b), (a2, b2)) = (dims(m, n, k), dims(m, n, 6));
                let mut inputs = vec![CaseInput::random(&a, dtype), CaseInput::random(&b, dtype)];
                inputs.extend([a2, b2].map(|d| CaseInput::random(&d, DType::F32)));
                inputs.push(CaseInput::random(&[m, n], dtype));
                let op = Matmul { residual: true, ..Matmul::plain(layout, 0.5, dtype) };
                cases.push(Case::new(format!("{layout:?} long {m}x{n}x{k} {dtype}"), op, inputs));
            }
            let (a, b) = dims(4, 5, 3);
            let (a2, b2) = dims(4, 5, 2);
            let inputs = [a, b, a2, b2].iter().map(|d| CaseInput::random(d, DType::F32)).collect();
            let mut inputs: Vec<CaseInput> = inputs;
            let op = Matmul::plain(layout, 1.0, DType::F32);
            cases.push(
                Case::new(format!("{layout:?} pair"), op.clone(), inputs.clone()).gradients(&[0, 1, 2, 3]),
            );
            inputs.push(CaseInput::random(&[4, 5], DType::F32));
            let op = Matmul { residual: true, ..op };
            cases.push(
                Case::new(format!("{layout:?} residual"), op.clone(), inputs).gradients(&[0, 1, 2, 3, 4]),
            );
            // whole tiles of every kernel, those of matrix units among them
            let ((a, b), (a2, b2)) = (dims(64, 128, 48), dims(64, 128, 6));
            let mut whole: Vec<CaseInput> = [a, b].iter().map(|d| CaseInput::random(d, DType::F16)).collect();
            let op = Matmul::plain(layout, 0.5, DType::F16);
            cases.push(Case::new(format!("{layout:?} whole"), op.clone(), whole.clone()));
            whole.extend([a2, b2].iter().map(|d| CaseInput::random(d, DType::F32)));
            whole.push(CaseInput::random(&[128], DType::F32));
            whole.push(CaseInput::random(&[64, 128], DType::F16));
            let op = Matmul { bias: true, residual: true, ..op };
            cases.push(Case::new(format!("{layout:?} whole, pair, bias and residual"), op, whole));
            let (a, b) = dims(40, 7, 20);
            let mut thin: Vec<CaseInput> = [a, b].iter().map(|d| CaseInput::random(d, DType::F32)).collect();
            thin.push(CaseInput::random(&[7], DType::F32));
            let op = Matmul { bias: true, ..Matmul::plain(layout, 0.5, DType::F32) };
            let label = format!("{layout:?} thin bias");
            cases.push(Case::new(label, op.clone(), thin).gradients(&[0, 1, 2]));
            // in sections, and after a pair with dropout
            let ((a, b), (a2, b2)) = (dims(35, 44, 600), dims(35, 44, 6));
            let mut long: Vec<CaseInput> = [a, b].iter().map(|d| CaseInput::random(d, DType::BF16)).collect();
            long.extend([a2, b2].map(|d| CaseInput::random(&d, DType::F32)));
            long.push(CaseInput::random(&[44], DType::F32));
            let op = Matmul { dtype: DType::BF16, ..op };
            cases.push(Case::new(format!("{layout:?} long bias"), op, long));
            // block-quantised weights: whole tiles, odd ones, a few rows
            if layout != Layout::TN {
                for (stored, dtype, (m, n, k)) in [
                    (DType::Nf4, DType::F32, (37, 44, 52)),
                    (DType::Nf4Double, DType::BF16, (70, 132, 256)),
                    (DType::Int8, DType::F32, (37, 44, 52)),
                    (DType::Nf4, DType::F16, (64, 128, 48)),
                    (DType::Int8, DType::F16, (70, 132, 64)),
                    (DType::Nf4Double, DType::F16, (70, 132, 64)),
                    (DType::Nf4Double, DType::F32, (3, 132, 64)),
                    (DType::Int8, DType::F16, (1, 68, 64)),
                    (DType::Nf4, DType::F32, (40, 8, 64)),
                ] {
                    let ((a, b), (a2, b2)) = (dims(m, n, k), dims(m, n, 8));
                    let op = Matmul::plain(layout, 1.0, dtype);
                    let inputs = vec![
                        CaseInput::random(&a, dtype),
                        CaseInput::random(&b, stored),
                        CaseInput::random(&a2, DType::F32),
                        CaseInput::random(&b2, DType::F32),
                    ];
                    cases.push(Case::new(format!("{layout:?} {m}x{n}x{k} {stored} on {dtype}"), op, inputs));
                }
            }
            // dropout on each operand, in thin products and in others, and on the second pair's product
            let dropout = Dropout { p: 0.25, key: 5 };
            let rng = CaseInput::indices([7, 1, 4, 0]);
            for (on, (m, n, k)) in [MaskOn::Left, MaskOn::Right].into_iter().flat_map(|on| {
                [(37, 8, 50), (8, 70, 37), (40, 36, 18), (8, 36, 600)].map(|extents| (on, extents))
            }) {
                let (a, b) = dims(m, n, k);
                let mask = Some(Masked { dropout, on });
                let op = Matmul { mask, low_rank: true, ..Matmul::plain(layout, 0.5, DType::F32) };
                let inputs =
                    vec![CaseInput::random(&a, DType::BF16), CaseInput::random(&b, DType::F32), rng.clone()];
                cases.push(Case::new(format!("{layout:?} {m}x{n}x{k} dropout {on:?}"), op, inputs));
            }
            for (dtype, (m, n, k, k2)) in [
                (DType::F32, (37, 44, 52, 8)),
                (DType::F32, (19, 5, 6, 2)),
                (DType::F16, (64, 128, 48, 8)),
                (DType::BF16, (37, 70, 50, 6)),
            ] {
                let ((a, b), (a2, b2)) = (dims(m, n, k), dims(m, n, k2));
                let mask = Some(Masked { dropout, on: MaskOn::Pair });
                let op = Matmul { mask, residual: true, ..Matmul::plain(layout, 0.5, dtype) };
                let mut inputs = vec![CaseInput::random(&a, dtype), CaseInput::random(&b, dtype)];
                inputs.extend([a2, b2].map(|d| CaseInput::random(&d, DType::F32)));
                inputs.extend([rng.clone(), CaseInput::random(&[m, n], dtype)]);
                cases.push(Case::new(
                    format!("{layout:?} {m}x{n}x{k} dropout on the pair {dtype}"),
                    op,
                    inputs,
                ));
            }
            // a gated operand: narrow results too, whose long side would give the columns otherwise
            let (silu, gelu) = (Activation::Silu, Activation::GeluTanh);
            for (activation, dtype, other, (m, n, k)) in [
                (silu, DType::F32, DType::F32, (37, 44, 52)),
                (silu, DType::BF16, DType::BF16, (40, 8, 33)),
                (silu, DType::F16, DType::F16, (64, 128, 48)),
                (silu, DType::BF16, DType::Nf4, (35, 132, 64)),
                (silu, DType::F16, DType::Nf4, (35, 132, 64)),
                (gelu, DType::F16, DType::F16, (64, 128, 48)),
            ] {
                if layout == Layout::NT {
                    let (a, b) = dims(m, n, k);
                    let gate = CaseInput { spread: 4.0, ..CaseInput::random(&a, dtype) };
                    let up = CaseInput::random(&a, dtype);
                    let residual = CaseInput::random(&[m, n], dtype);
                    let inputs = vec![gate, CaseInput::random(&b, other), up, residual];
                    let op = Matmul {
                        gated: Some(activation),
                        residual: true,
                        ..Matmul::plain(layout, 0.5, dtype)
                    };
                    cases.push(Case::new(
                        format!("gated {activation:?} {m}x{n}x{k} {other} on {dtype}"),
                        op,
                        inputs,
                    ));
                }
            }
            // an adapter's, on either side: thin and not
            for (dtype, (m, n, k)) in
                [(DType::F16, (100, 8, 65)), (DType::BF16, (70, 64, 300)), (DType::BF16, (12, 70, 37))]
            {
                let (a, b) = dims(m, n, k);
                let (of_a, of_b) = if m < n { (DType::F32, dtype) } else { (dtype, DType::F32) };
                let inputs = vec![CaseInput::random(&a, of_a), CaseInput::random(&b, of_b)];
                let op = Matmul { low_rank: true, ..Matmul::plain(layout, 0.5, DType::F32) };
                cases.push(Case::new(format!("{layout:?} {m}x{n}x{k} low-rank {dtype}"), op, inputs));
            }
            let (a, b) = dims(40, 8, 20);
            for (dtype, label) in [(DType::F32, ""), (DType::BF16, " on bf16")] {
                let thin = [(a, dtype), (b, DType::F32), ([40, 8], DType::F32)];
                let thin = thin.iter().map(|(d, dtype)| CaseInput::random(d, *dtype)).collect();
                let op = Matmul { residual: true, low_rank: true, ..Matmul::plain(layout, 1.0, DType::F32) };
                cases.push(Case::new(format!("{layout:?} thin residual{label}"), op, thin));
            }
        }
        cases
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

/// The inputs of a product by what they are: its own, then a bias and a residual where it has them.
pub(super) fn split_sums<T>(inputs: &[T], bias: bool, residual: bool) -> (&[T], Option<&T>, Option<&T>) {
    let (inputs, residual) = inputs.split_at(inputs.len() - usize::from(residual));
    let (own, bias) = inputs.split_at(inputs.len() - usize::from(bias));
    (own, bias.first(), residual.first())
}

/// That a bias and a residual fit the product.
pub(super) fn expect_sums(
    name: &'static str,
    output: TensorType,
    bias: Option<&TensorType>,
    residual: Option<&TensorType>,
) -> Result<(), GraphError> {
    let fits = |b: &TensorType| b.shape == Shape::vector(output.cols()) && b.dtype.is_float();
    for (sum, fits) in [(bias, bias.is_none_or(fits)), (residual, residual.is_none_or(|r| *r == output))] {
        expect(name, fits, || format!("{} cannot be added to {output}", sum.unwrap_or(&output)))?;
    }
    Ok(())
}

/// What a product is added to: the residual, or zeros, and the bias on each row.
pub(super) fn reference_sums(
    output: &TensorType,
    bias: Option<&ReferenceTensor>,
    residual: Option<&ReferenceTensor>,
) -> ReferenceTensor {
    let mut out = residual.cloned().unwrap_or_else(|| ReferenceTensor::zeros(output.shape));
    if let Some(bias) = bias {
        let cols = out.cols();
        out.data.iter_mut().enumerate().for_each(|(i, v)| *v += bias.data[i % cols]);
    }
    out
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
