//! Linear layer with a low-rank adapter (Hu et al. 2021, arXiv:2106.09685):
//! `y = x·Wᵀ + s (d·Aᵀ)·Bᵀ`, x `[T, in]`, W `[out, in]` frozen, A `[r, in]`, B `[out, r]`, d = dropout(x) or x.
//!
//! Outputs y `[T, out]` and `h = s d·Aᵀ` f32 `[T, r]`, kept for the gradient. The adapter widens the product's inner
//! dimension from `in` to `in + r`: no pass over y of its own.
//!
//! Gradients, with `e = s dy·B` `[T, r]`: `dx = dy·W + e·A` (one widened product), `dA = eᵀ·d`, `dB = dyᵀ·h`.
//! The gradient of W exists too, for who trains it. With dropout inside the layer's own products, `e·A` gets the mask where
//! it is summed up, and no dropped copy of x is kept.

use super::bias::bias_gradient;
use super::dropout::Dropout;
use super::expect;
use super::matmul::{
    Layout, MaskOn, Masked, Operand, Product, Terms, accumulate_product, expect_sums, matmul,
    matmul_low_rank, matmul_pair, reference_sums, split_sums,
};
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
    /// Dropout that the products make themselves; the fifth input is the generator's state then.
    pub dropout: Option<Dropout>,
    /// An input after all these, f32 `[out]`, is added to each row of y. Made by [`crate::fuse`].
    pub bias: bool,
    /// The last input is added to y.
    pub residual: bool,
}

/// How a layer comes by dropout(x).
#[derive(Clone, Copy, Debug)]
pub enum Dropped {
    /// No dropout.
    Not,
    /// This value is x after dropout.
    Before(Value),
    /// The layer's products make the mask, from this state of the generator.
    Inside(Dropout, Value),
}

/// Appends the layer.
pub fn lora_linear(
    graph: &mut Graph,
    x: Value,
    weight: Value,
    (a, b): (Value, Value),
    dropped: Dropped,
    scale: f64,
    dtype: DType,
) -> Result<Value, GraphError> {
    let (dropout, fifth) = match dropped {
        Dropped::Not => (None, None),
        Dropped::Before(value) => (None, Some(value)),
        Dropped::Inside(dropout, rng) => (Some(dropout), Some(rng)),
    };
    let inputs: Vec<Value> = [x, weight, a, b].into_iter().chain(fifth).collect();
    graph.apply1(Arc::new(LoraLinear { scale, dtype, dropout, bias: false, residual: false }), &inputs)
}

impl LoraLinear {
    /// The layer's own inputs, bias and residual.
    fn split<'a, T>(&self, inputs: &'a [T]) -> (&'a [T], Option<&'a T>, Option<&'a T>) {
        split_sums(inputs, self.bias, self.residual)
    }

    /// dropout(x), or the generator's state, among the inputs.
    fn fifth<'a, T>(&self, inputs: &'a [T]) -> Option<&'a T> {
        self.split(inputs).0.get(4)
    }
}

impl Operation for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        let sums = usize::from(self.bias) + usize::from(self.residual);
        expect(self.name(), matches!(inputs.len().saturating_sub(sums), 4 | 5), || {
            "takes x, W, A, B and perhaps dropout(x)".into()
        })?;
        let (inputs, bias, residual) = self.split(inputs);
        let (x, w, a, b) = (inputs[0], inputs[1], inputs[2], inputs[3]);
        let fits =
            w.cols() == x.cols() && a.cols() == x.cols() && b.rows() == w.rows() && b.cols() == a.rows();
        expect(self.name(), fits, || format!("x {x}, W {w}, A {a}, B {b} do not fit together"))?;
        let fifth = match (self.dropout, inputs.get(4)) {
            (Some(_), Some(rng)) => rng.dtype == DType::U32 && rng.cols() == 4,
            (None, Some(dropped)) => *dropped == x,
            (dropout, None) => dropout.is_none(),
        };
        expect(self.name(), fifth, || "dropout(x) is of x's type, the generator's state u32 [4]".into())?;
        let y = TensorType::new(Shape::matrix(x.rows(), w.rows()), self.dtype);
        expect_sums(self.name(), y, bias, residual)?;
        Ok(vec![y, TensorType::new(Shape::matrix(x.rows(), a.rows()), DType::F32)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let mut gradients = vec![None; node.inputs.len()];
        let Some(dy) = node.gradients[0] else { return Ok(gradients) };
        let (x, w, a, b, h) =
            (node.inputs[0], node.inputs[1], node.inputs[2], node.inputs[3], node.outputs[1]);
        let fifth = self.fifth(node.inputs).copied();
        let (own, bias, residual) = self.split(node.inputs);
        if bias.is_some() && node.wanted[own.len()] {
            gradients[own.len()] = Some(bias_gradient(graph, dy)?);
        }
        if residual.is_some() {
            gradients[node.inputs.len() - 1] = Some(dy);
        }
        let x_type = graph.type_of(x).dtype;
        let e = matmul_low_rank(graph, Layout::NN, (dy, b), self.scale, None)?;
        let inside = self.dropout.zip(fifth);
        let before = fifth.filter(|_| inside.is_none());
        // x may be free once its products with gradients are made
        if node.wanted[1] {
            gradients[1] = Some(matmul(graph, Layout::TN, dy, x, 1.0, DType::F32)?);
        }
        if node.wanted[2] {
            let mask = inside.map(|(dropout, rng)| (Masked { dropout, on: MaskOn::Right }, rng));
            gradients[2] = Some(matmul_low_rank(graph, Layout::TN, (e, before.unwrap_or(x)), 1.0, mask)?);
        }
        if node.wanted[3] {
            gradients[3] = Some(matmul_low_rank(graph, Layout::TN, (dy, h), 1.0, None)?);
        }
        if node.wanted[0] {
            gradients[0] = Some(match before {
                None => matmul_pair(graph, Layout::NN, (dy, w), (e, a), inside, x_type)?,
                Some(_) => matmul(graph, Layout::NN, dy, w, 1.0, x_type)?,
            });
        }
        if before.is_some() && node.wanted[4] {
            gradients[4] = Some(matmul(graph, Layout::NN, e, a, 1.0, x_type)?);
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
            parts: 1,
        };
        let before = self.fifth(launch.inputs).is_some() && self.dropout.is_none();
        let mask = self.dropout.map(|dropout| (Masked { dropout, on: MaskOn::Left }, Place::Input(4)));
        let (own, bias, residual) = self.split(launch.inputs);
        let bias = bias.map(|_| input(own.len()));
        let residual = residual.map(|_| input(launch.inputs.len() - 1));
        let main = Product { n: w.rows(), alpha: 1.0, ..down };
        let y = Operand::new(Place::Output(0), self.dtype);
        let mut plan = LaunchPlan::default();
        let dropped = input(if before { 4 } else { 0 });
        down.launch(
            launch,
            &mut plan,
            (dropped, input(2)),
            Terms { mask, low_rank: true, ..Terms::default() },
            h,
        );
        // a layer that is made again at the end of its block gives h alone: nobody reads y there
        if launch.live[0] {
            let terms = Terms { pair: Some((h, input(3), a.rows())), bias, residual, ..Terms::default() };
            let weight = if self.dtype == DType::F32 { input(1) } else { input(1).beside(x.dtype) };
            main.launch(launch, &mut plan, (input(0), weight), terms, y);
        }
        plan
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (_, bias, residual) = self.split(inputs);
        let mut y = reference_sums(&outputs[0], bias, residual);
        let mut h = ReferenceTensor::zeros(outputs[1].shape);
        let dropped = match (self.dropout, self.fifth(inputs)) {
            (Some(dropout), Some(rng)) => dropout.masked(&inputs[0], rng),
            (_, before) => before.unwrap_or(&inputs[0]).clone(),
        };
        accumulate_product(Layout::NT, self.scale, &dropped, &inputs[2], &mut h);
        accumulate_product(Layout::NT, 1.0, &inputs[0], &inputs[1], &mut y);
        accumulate_product(Layout::NT, 1.0, &h, &inputs[3], &mut y);
        vec![y, h]
    }

    fn with_residual(&self) -> Option<Arc<dyn Operation>> {
        (!self.residual).then(|| Arc::new(LoraLinear { residual: true, ..self.clone() }) as _)
    }

    fn with_bias(&self) -> Option<Arc<dyn Operation>> {
        (!self.bias && !self.residual).then(|| Arc::new(LoraLinear { bias: true, ..self.clone() }) as _)
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
        let op = |dtype| LoraLinear { scale: 2.0, dtype, dropout: None, bias: false, residual: false };
        let residual = LoraLinear { residual: true, ..op(DType::F32) };
        let mut with_dropout = inputs(3, 4, 5, 2, DType::F32, DType::F32);
        with_dropout.push(CaseInput::random(&[3, 5], DType::F32));
        let mut with_residual = inputs(3, 4, 5, 2, DType::F32, DType::F32);
        with_residual.push(CaseInput::random(&[3, 4], DType::F32));
        let mut with_both = with_dropout.clone();
        with_both.push(CaseInput::random(&[3, 4], DType::F32));
        let biased = LoraLinear { bias: true, ..op(DType::F32) };
        let mut with_bias = inputs(3, 5, 4, 2, DType::F32, DType::F32);
        with_bias.push(CaseInput::random(&[5], DType::F32));
        let mut all = with_dropout.clone();
        all.extend([CaseInput::random(&[4], DType::F32), CaseInput::random(&[3, 4], DType::F32)]);
        let inside = LoraLinear { dropout: Some(Dropout { p: 0.25, key: 2 }), ..op(DType::F32) };
        let rng = CaseInput::indices([3, 1, 4, 0]);
        let mut inside_small = inputs(3, 4, 5, 2, DType::F32, DType::F32);
        inside_small.push(rng.clone());
        let mut inside_odd = inputs(37, 50, 70, 8, DType::BF16, DType::BF16);
        inside_odd.push(rng);
        vec![
            Case::new("dropout inside", inside.clone(), inside_small).gradients(&[0, 2, 3]),
            Case::new("dropout inside, odd", inside, inside_odd),
            Case::new("bias", biased, with_bias).gradients(&[0, 1, 2, 3, 4]),
            Case::new("dropout, bias and residual", LoraLinear { bias: true, ..residual.clone() }, all)
                .gradients(&[0, 2, 3, 4, 5, 6]),
            Case::new("residual", residual.clone(), with_residual).gradients(&[0, 1, 2, 3, 4]),
            Case::new("dropout and residual", residual, with_both).gradients(&[0, 2, 3, 4, 5]),
            Case::new("small", op(DType::F32), inputs(3, 4, 5, 2, DType::F32, DType::F32))
                .gradients(&[0, 1, 2, 3]),
            Case::new("dropout", op(DType::F32), with_dropout).gradients(&[0, 2, 3, 4]),
            Case::new("one row, rank 1", op(DType::F32), inputs(1, 40, 36, 1, DType::F32, DType::F32)),
            Case::new("odd", op(DType::F32), inputs(37, 50, 70, 6, DType::F32, DType::F32)),
            Case::new("f16", op(DType::F16), inputs(40, 33, 64, 8, DType::F16, DType::F16)),
            Case::new("bf16", op(DType::BF16), inputs(40, 33, 64, 64, DType::BF16, DType::BF16)),
            Case::new("bf16 on f32", op(DType::BF16), inputs(40, 32, 64, 16, DType::BF16, DType::F32)),
            Case::new("f16 on f32", op(DType::F16), inputs(40, 33, 64, 8, DType::F16, DType::F32)),
        ]
    }
}
