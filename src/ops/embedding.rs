//! Table look-up `y[t] = scale table[tokens[t]]`: table `[vocab, d]`, tokens `[T]`, y `[T, d]`.
//!
//! A trainable table takes a third input `order` `[T]`: the positions sorted by token (any order within one token),
//! from which the gradient sums each row without atomics. The gradient adds to the rows that occur.

use super::{FILL, elementwise, expect};
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("embedding");
const GRADIENT: Shader = crate::shader!("embedding_gradient");

#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    pub scale: f64,
    pub dtype: DType,
}

/// Inputs dy `[T, d]`, tokens `[T]`, order `[T]`; output dtable `[vocab, d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingGradient {
    pub vocab: usize,
    pub scale: f64,
}

/// Looks up `tokens`; `order` is needed where the table has a gradient.
pub fn embedding(
    graph: &mut Graph,
    table: Value,
    tokens: Value,
    order: Option<Value>,
    scale: f64,
    dtype: DType,
) -> Result<Value, GraphError> {
    let inputs: Vec<Value> = [table, tokens].into_iter().chain(order).collect();
    graph.apply1(Arc::new(Embedding { scale, dtype }), &inputs)
}

/// Positions sorted by token: the `order` input of [`embedding`].
pub fn token_order(tokens: &[u32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
    order.sort_by_key(|&t| tokens[t as usize]);
    order
}

impl Operation for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect(self.name(), matches!(inputs.len(), 2 | 3), || {
            "takes a table, tokens and perhaps an order".into()
        })?;
        let indices = inputs[1..].iter().all(|t| t.dtype == DType::U32 && t.shape == inputs[1].shape);
        expect(self.name(), indices && inputs[0].dtype.is_float(), || {
            "tokens and order are u32 of one length".into()
        })?;
        Ok(vec![TensorType::new(Shape::matrix(inputs[1].cols(), inputs[0].cols()), self.dtype)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let mut gradients = vec![None; node.inputs.len()];
        if let (Some(dy), true) = (node.gradients[0], node.wanted[0]) {
            let Some(&order) = node.inputs.get(2) else {
                return Err(GraphError::invalid(
                    self.name(),
                    "the gradient of a table needs the `order` input",
                ));
            };
            let vocab = graph.shape_of(node.inputs[0]).rows();
            let op = EmbeddingGradient { vocab, scale: self.scale };
            gradients[0] = Some(graph.apply1(Arc::new(op), &[dy, node.inputs[1], order])?);
        }
        Ok(gradients)
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        elementwise(SHADER, ty.rows() * ty.cols4())
            .param("cols4", ty.cols4())
            .param_f32("scale", self.scale)
            .read("table", Place::Input(0), launch.inputs[0].dtype)
            .read_scalar("tokens", Place::Input(1), DType::U32)
            .write("y", Place::Output(0), ty.dtype)
            .cost(0.0, 2.0 * ty.bytes() as f64)
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let mut y = ReferenceTensor::zeros(outputs[0].shape);
        for t in 0..y.rows() {
            let row = inputs[0].row(inputs[1].index(t));
            y.row_mut(t).iter_mut().zip(row).for_each(|(y, x)| *y = self.scale * x);
        }
        vec![y]
    }

    fn cases() -> Vec<Case> {
        let tokens = [3, 0, 3, 4, 3, 1];
        let inputs = |dtype| {
            vec![
                CaseInput::random(&[5, 6], dtype),
                CaseInput::indices(tokens),
                CaseInput::indices(token_order(&tokens)),
            ]
        };
        let quantised = [DType::Nf4, DType::Nf4Double, DType::Int8].map(|dtype| {
            let inputs = vec![CaseInput::random(&[5, 68], dtype), CaseInput::indices(tokens)];
            Case::new(dtype.name(), Embedding { scale: 1.0, dtype: DType::BF16 }, inputs)
        });
        let op = Embedding { scale: 7.5, dtype: DType::F32 };
        let scaled = Case::new("scaled", op, inputs(DType::F32));
        [DType::F32, DType::F16, DType::BF16]
            .into_iter()
            .map(|dtype| {
                let op = Embedding { scale: 1.0, dtype: DType::F32 };
                Case::new(dtype.name(), op, inputs(dtype)).gradients(&[0])
            })
            .chain([scaled.gradients(&[0])])
            .chain(quantised)
            .collect()
    }
}

impl Operation for EmbeddingGradient {
    fn name(&self) -> &'static str {
        "embedding_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        super::expect_inputs(self.name(), inputs, 3)?;
        Ok(vec![TensorType::new(Shape::matrix(self.vocab, inputs[0].cols()), DType::F32)])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2])?;
        Ok(vec![None; 3])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (dy, out) = (launch.inputs[0], launch.outputs[0]);
        let items = dy.rows() * dy.cols4();
        let scatter = Dispatch::new(GRADIENT, items.div_ceil(64))
            .param("count", items)
            .param("rows", dy.rows())
            .param("cols4", dy.cols4())
            .param_f32("scale", self.scale)
            .read("dy", Place::Input(0), dy.dtype)
            .read_scalar("tokens", Place::Input(1), DType::U32)
            .read_scalar("order", Place::Input(2), DType::U32)
            .write("dtable", Place::Output(0), DType::F32)
            .cost(dy.shape.elements() as f64, 3.0 * dy.bytes() as f64);
        let mut plan = LaunchPlan::default();
        if !launch.accumulate[0] {
            let zero = elementwise(FILL, out.rows() * out.cols4()).write("y", Place::Output(0), DType::F32);
            plan.dispatches.push(zero.cost(0.0, out.bytes() as f64));
        }
        plan.dispatches.push(scatter);
        plan
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let mut dtable = ReferenceTensor::zeros(outputs[0].shape);
        for t in 0..inputs[0].rows() {
            let row = dtable.row_mut(inputs[1].index(t));
            row.iter_mut().zip(inputs[0].row(t)).for_each(|(sum, dy)| *sum += self.scale * dy);
        }
        vec![dtable]
    }

    fn cases() -> Vec<Case> {
        let tokens = [2, 2, 0, 6, 2, 6, 1];
        [DType::F32, DType::BF16]
            .into_iter()
            .map(|dtype| {
                let inputs = vec![
                    CaseInput::random(&[7, 9], dtype),
                    CaseInput::indices(tokens),
                    CaseInput::indices(token_order(&tokens)),
                ];
                Case::new(dtype.name(), EmbeddingGradient { vocab: 8, scale: 2.5 }, inputs)
            })
            .collect()
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }
}
