//! Matrix products with f32 accumulation: `C = alpha * (A·B + A2·B2)` in the three transpositions that a linear
//! layer and its gradients need.
//!
//! Shapes, for a product `[m, n]` over `k`:
//! - [`Layout::NT`]: `A [m, k]`, `B [n, k]` (forward of a linear layer with weight `[out, in]`)
//! - [`Layout::NN`]: `A [m, k]`, `B [k, n]` (gradient of its input)
//! - [`Layout::TN`]: `A [k, m]`, `B [k, n]` (gradient of its weight)
//!
//! The second pair widens `k` by `k2` inside the same tile loop: the low-rank adapter's share of a product costs
//! `k2` more columns and no further pass over the result.
//!
//! Gradients: the product of the output's gradient with the other operand, in the fitting layout. They overwrite,
//! or add where the planner says so.

mod product;
mod variant;

pub use product::{Operand, Product, Terms};
pub use variant::{Extents, Variant, source};

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
    /// The last input is added to the result.
    pub residual: bool,
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
    graph.apply1(Arc::new(Matmul { layout, alpha, dtype, residual: false }), &[a, b])
}

/// Appends `A·B + A2·B2` with the result stored as `dtype`.
pub fn matmul_pair(
    graph: &mut Graph,
    layout: Layout,
    first: (Value, Value),
    second: (Value, Value),
    dtype: DType,
) -> Result<Value, GraphError> {
    let op = Matmul { layout, alpha: 1.0, dtype, residual: false };
    graph.apply1(Arc::new(op), &[first.0, first.1, second.0, second.1])
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

impl Operation for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        let (inputs, residual) = inputs.split_at(inputs.len() - usize::from(self.residual));
        if inputs.len() != 2 && inputs.len() != 4 {
            return Err(GraphError::invalid(self.name(), "takes one or two pairs of matrices"));
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
        if residual.first().is_some_and(|r| *r != output) {
            let reason = format!("{} cannot be added to {output}", residual[0]);
            return Err(GraphError::invalid(self.name(), reason));
        }
        Ok(vec![output])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dc) = node.gradients[0] else { return Ok(vec![None; node.inputs.len()]) };
        let factors = node.inputs.len() - usize::from(self.residual);
        let mut gradients = Vec::new();
        for (pair, wanted) in node.inputs[..factors].chunks(2).zip(node.wanted.chunks(2)) {
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
        gradients.extend(self.residual.then_some(Some(dc)));
        Ok(gradients)
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (m, n, k) = self.layout.extents(&launch.inputs[0], &launch.inputs[1]);
        let pair = (launch.inputs.len() >= 4).then(|| {
            let (_, _, k2) = self.layout.extents(&launch.inputs[2], &launch.inputs[3]);
            (Operand::input(launch, 2), Operand::input(launch, 3), k2)
        });
        let product =
            Product { layout: self.layout, m, n, k, alpha: self.alpha, accumulate: launch.accumulate[0] };
        let out = Operand::new(Place::Output(0), self.dtype);
        let residual = self.residual.then(|| Operand::input(launch, launch.inputs.len() - 1));
        let (a, b) = (Operand::input(launch, 0), Operand::input(launch, 1));
        let mut plan = LaunchPlan::default();
        product.launch(launch, &mut plan, (a, b), Terms { pair, residual }, out);
        plan
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (factors, residual) = inputs.split_at(inputs.len() - usize::from(self.residual));
        let mut out = residual.first().cloned().unwrap_or_else(|| ReferenceTensor::zeros(outputs[0].shape));
        for pair in factors.chunks(2) {
            accumulate_product(self.layout, self.alpha, &pair[0], &pair[1], &mut out);
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
                let op = Matmul { layout, alpha: 0.5, dtype: DType::F32, residual: false };
                let case = Case::new(format!("{layout:?} {m}x{n}x{k}"), op, inputs);
                cases.push(if m * n * k < 300 { case.gradients(&[0, 1]) } else { case });
            }
            for (dtype, other) in
                [(DType::F16, DType::F16), (DType::BF16, DType::BF16), (DType::F32, DType::BF16)]
            {
                let ((a, b), (a2, b2)) = (dims(35, 44, 52), dims(35, 44, 6));
                let inputs = vec![
                    CaseInput::random(&a, dtype),
                    CaseInput::random(&b, other),
                    CaseInput::random(&a2, DType::F32),
                    CaseInput::random(&b2, DType::F32),
                ];
                let op = Matmul { layout, alpha: 1.0, dtype, residual: false };
                let mut with = inputs.clone();
                with.push(CaseInput::random(&[35, 44], dtype));
                cases.push(Case::new(format!("{layout:?} pair {dtype} {other}"), op.clone(), inputs));
                let op = Matmul { residual: true, ..op };
                cases.push(Case::new(format!("{layout:?} pair and residual {dtype} {other}"), op, with));
            }
            let (a, b) = dims(4, 5, 3);
            let (a2, b2) = dims(4, 5, 2);
            let inputs = [a, b, a2, b2].iter().map(|d| CaseInput::random(d, DType::F32)).collect();
            let mut inputs: Vec<CaseInput> = inputs;
            let op = Matmul { layout, alpha: 1.0, dtype: DType::F32, residual: false };
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
            let op = Matmul { layout, alpha: 0.5, dtype: DType::F16, residual: false };
            cases.push(Case::new(format!("{layout:?} whole"), op.clone(), whole.clone()));
            whole.extend([a2, b2].iter().map(|d| CaseInput::random(d, DType::F32)));
            whole.push(CaseInput::random(&[64, 128], DType::F16));
            let op = Matmul { residual: true, ..op };
            cases.push(Case::new(format!("{layout:?} whole, pair and residual"), op, whole));
            let (a, b) = dims(40, 8, 20);
            let thin = [a, b, [40, 8]].iter().map(|d| CaseInput::random(d, DType::F32)).collect();
            let op = Matmul { layout, alpha: 1.0, dtype: DType::F32, residual: true };
            cases.push(Case::new(format!("{layout:?} thin residual"), op, thin));
        }
        cases
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }

    fn with_residual(&self) -> Option<Arc<dyn Operation>> {
        (!self.residual).then(|| Arc::new(Matmul { residual: true, ..self.clone() }) as _)
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
