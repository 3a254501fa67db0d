//! Linear layer with a low-rank adapter (Hu et al. 2021, arXiv:2106.09685):
//! `y = x·Wᵀ + s (d·Aᵀ)·Bᵀ`, x `[T, in]`, W `[out, in]` frozen, A `[r, in]`, B `[out, r]`, d = dropout(x) or x.
//!
//! Outputs y `[T, out]` and `h = s d·Aᵀ` f32 `[T, r]`, kept for the gradient. The adapter widens the product's inner
//! dimension from `in` to `in + r`: no pass over y of its own.
//!
//! Gradients, with `e = s dy·B` `[T, r]`: `dx = dy·W + e·A` (one widened product), `dA = eᵀ·d`, `dB = dyᵀ·h`.
//! The gradient of W exists too, for who trains it.

use super::expect;
use super::matmul::{Layout, Operand, Product, Terms, accumulate_product, matmul, matmul_pair};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shape, TensorType, Value,
};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub struct LoraLinear {
    /// s = alpha / r, or alpha / sqrt(r) with rank stabilisation.
    pub scale: f64,
    pub dtype: DType,
    /// The last input is added to y.
    pub residual: bool,
}

/// Appends the layer; `dropped` is x after dropout, where there is dropout.
pub fn lora_linear(
    graph: &mut Graph,
    x: Value,
    weight: Value,
    (a, b): (Value, Value),
    dropped: Option<Value>,
    scale: f64,
    dtype: DType,
) -> Result<Value, GraphError> {
    let inputs: Vec<Value> = [x, weight, a, b].into_iter().chain(dropped).collect();
    graph.apply1(Arc::new(LoraLinear { scale, dtype, residual: false }), &inputs)
}

impl LoraLinear {
    /// dropout(x) among the inputs, where there is one.
    fn dropped<'a, T>(&self, inputs: &'a [T]) -> Option<&'a T> {
        (inputs.len() - usize::from(self.residual) == 5).then(|| &inputs[4])
    }
}

impl Operation for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        let (inputs, residual) = inputs.split_at(inputs.len() - usize::from(self.residual));
        expect(self.name(), matches!(inputs.len(), 4 | 5), || {
            "takes x, W, A, B and perhaps dropout(x)".into()
        })?;
        let (x, w, a, b) = (inputs[0], inputs[1], inputs[2], inputs[3]);
        let fits =
            w.cols() == x.cols() && a.cols() == x.cols() && b.rows() == w.rows() && b.cols() == a.rows();
        expect(self.name(), fits, || format!("x {x}, W {w}, A {a}, B {b} do not fit together"))?;
        expect(self.name(), inputs.get(4).is_none_or(|d| *d == x), || {
            "dropout(x) differs from x in type".into()
        })?;
        let y = TensorType::new(Shape::matrix(x.rows(), w.rows()), self.dtype);
        expect(self.name(), residual.first().is_none_or(|r| *r == y), || {
            format!("{} cannot be added to {y}", residual[0])
        })?;
        Ok(vec![y, TensorType::new(Shape::matrix(x.rows(), a.rows()), DType::F32)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let mut gradients = vec![None; node.inputs.len()];
        let Some(dy) = node.gradients[0] else { return Ok(gradients) };
        let (x, w, a, b, h) =
            (node.inputs[0], node.inputs[1], node.inputs[2], node.inputs[3], node.outputs[1]);
        let dropped = self.dropped(node.inputs).copied();
        if self.residual {
            gradients[node.inputs.len() - 1] = Some(dy);
        }
        let x_type = graph.type_of(x).dtype;
        let e = matmul(graph, Layout::NN, dy, b, self.scale, DType::F32)?;
        match dropped {
            None if node.wanted[0] => {
                gradients[0] = Some(matmul_pair(graph, Layout::NN, (dy, w), (e, a), x_type)?)
            }
            None => {}
            Some(_) => {
                if node.wanted[0] {
                    gradients[0] = Some(matmul(graph, Layout::NN, dy, w, 1.0, x_type)?);
                }
                if node.wanted[4] {
                    gradients[4] = Some(matmul(graph, Layout::NN, e, a, 1.0, x_type)?);
                }
            }
        }
        if node.wanted[1] {
            gradients[1] = Some(matmul(graph, Layout::TN, dy, x, 1.0, DType::F32)?);
        }
        if node.wanted[2] {
            gradients[2] = Some(matmul(graph, Layout::TN, e, dropped.unwrap_or(x), 1.0, DType::F32)?);
        }
        if node.wanted[3] {
            gradients[3] = Some(matmul(graph, Layout::TN, dy, h, 1.0, DType::F32)?);
        }
        Ok(gradients)
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (x, w, a) = (launch.inputs[0], launch.inputs[1], launch.inputs[2]);
        let input = |i| Operand::input(launch, i);
        let h = Operand::new(Place::Output(1), DType::F32);
        let down = Product {
            layout: Layout::NT,
            m: x.rows(),
            n: a.rows(),
            k: x.cols(),
            alpha: self.scale,
            accumulate: false,
        };
        let dropped = if self.dropped(launch.inputs).is_some() { 4 } else { 0 };
        let residual = self.residual.then(|| input(launch.inputs.len() - 1));
        let main = Product { n: w.rows(), alpha: 1.0, ..down };
        let y = Operand::new(Place::Output(0), self.dtype);
        let mut plan = LaunchPlan::default();
        down.launch(launch, &mut plan, (input(dropped), input(2)), Terms::default(), h);
        // a layer that is made again at the end of its block gives h alone: nobody reads y there
        if launch.live[0] {
            let terms = Terms { pair: Some((h, input(3), a.rows())), residual };
            main.launch(launch, &mut plan, (input(0), input(1)), terms, y);
        }
        plan
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let residual = self.residual.then(|| inputs[inputs.len() - 1].clone());
        let mut y = residual.unwrap_or_else(|| ReferenceTensor::zeros(outputs[0].shape));
        let mut h = ReferenceTensor::zeros(outputs[1].shape);
        let dropped = self.dropped(inputs).unwrap_or(&inputs[0]);
        accumulate_product(Layout::NT, self.scale, dropped, &inputs[2], &mut h);
        accumulate_product(Layout::NT, 1.0, &inputs[0], &inputs[1], &mut y);
        accumulate_product(Layout::NT, 1.0, &h, &inputs[3], &mut y);
        vec![y, h]
    }

    fn with_residual(&self) -> Option<Arc<dyn Operation>> {
        (!self.residual).then(|| Arc::new(LoraLinear { residual: true, ..self.clone() }) as _)
    }

    fn cases() -> Vec<Case> {
        let inputs = |t: usize, n: usize, k: usize, r: usize, act, weight| {
            vec![
                CaseInput::random(&[t, k], act),
                CaseInput::random(&[n, k], weight),
                CaseInput::random(&[r, k], DType::F32),
                CaseInput::random(&[n, r], DType::F32),
            ]
        };
        let op = |dtype| LoraLinear { scale: 2.0, dtype, residual: false };
        let residual = LoraLinear { residual: true, ..op(DType::F32) };
        let mut with_dropout = inputs(3, 4, 5, 2, DType::F32, DType::F32);
        with_dropout.push(CaseInput::random(&[3, 5], DType::F32));
        let mut with_residual = inputs(3, 4, 5, 2, DType::F32, DType::F32);
        with_residual.push(CaseInput::random(&[3, 4], DType::F32));
        let mut with_both = with_dropout.clone();
        with_both.push(CaseInput::random(&[3, 4], DType::F32));
        vec![
            Case::new("residual", residual.clone(), with_residual).gradients(&[0, 1, 2, 3, 4]),
            Case::new("dropout and residual", residual, with_both).gradients(&[0, 2, 3, 4, 5]),
            Case::new("small", op(DType::F32), inputs(3, 4, 5, 2, DType::F32, DType::F32))
                .gradients(&[0, 1, 2, 3]),
            Case::new("dropout", op(DType::F32), with_dropout).gradients(&[0, 2, 3, 4]),
            Case::new("one row, rank 1", op(DType::F32), inputs(1, 40, 36, 1, DType::F32, DType::F32)),
            Case::new("odd", op(DType::F32), inputs(37, 50, 70, 6, DType::F32, DType::F32)),
            Case::new("f16", op(DType::F16), inputs(40, 33, 64, 8, DType::F16, DType::F16)),
            Case::new("bf16", op(DType::BF16), inputs(40, 33, 64, 64, DType::BF16, DType::BF16)),
            Case::new("bf16 on f32", op(DType::BF16), inputs(16, 32, 64, 16, DType::BF16, DType::F32)),
        ]
    }
}
