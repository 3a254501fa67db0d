//! A bias `y = x + b` on the rows of x `[T, d]`, b f32 `[d]`.
//!
//! Gradients: `dy` to x, `db = sum over rows of dy`.

use super::{expect, expect_inputs, row_dispatch};
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("bias");
const GRADIENT: Shader = crate::shader!("bias_gradient");

/// Inputs x, b.
#[derive(Clone, Debug, PartialEq)]
pub struct Bias;

/// Input dy; output db f32 `[d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct BiasGradient;

pub fn bias(graph: &mut Graph, x: Value, b: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Bias), &[x, b])
}

/// Appends the gradient of a bias: the sums of each column of dy `[T, d]`, f32 `[d]`.
pub(crate) fn bias_gradient(graph: &mut Graph, dy: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(BiasGradient), &[dy])
}

impl Operation for Bias {
    fn name(&self) -> &'static str {
        "bias"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 2)?;
        let (x, b) = (inputs[0], inputs[1]);
        expect(self.name(), b.shape == Shape::vector(x.cols()) && x.dtype.is_float(), || {
            format!("bias {b} does not fit the rows of {x}")
        })?;
        Ok(vec![x])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dy) = node.gradients[0] else { return Ok(vec![None; node.inputs.len()]) };
        let db = match node.wanted[1] {
            true => Some(bias_gradient(graph, dy)?),
            false => None,
        };
        Ok(vec![Some(dy), db])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let x = launch.inputs[0];
        row_dispatch(SHADER, launch, x.rows(), x.cols4())
            .read("x", Place::Input(0), x.dtype)
            .read("b", Place::Input(1), launch.inputs[1].dtype)
            .write("y", Place::Output(0), x.dtype)
            .cost(x.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (x, b) = (&inputs[0], &inputs[1]);
        vec![ReferenceTensor::from_fn(outputs[0].shape, |i| x.data[i] + b.data[i % x.cols()])]
    }

    fn cases() -> Vec<Case> {
        let inputs = |rows, cols, dtype| {
            vec![CaseInput::random(&[rows, cols], dtype), CaseInput::random(&[cols], DType::F32)]
        };
        vec![
            Case::new("1x5", Bias, inputs(1, 5, DType::F32)).gradients(&[0, 1]),
            Case::new("6x16", Bias, inputs(6, 16, DType::F32)).gradients(&[0, 1]),
            Case::new("67x300", Bias, inputs(67, 300, DType::F32)),
            Case::new("f16", Bias, inputs(9, 21, DType::F16)),
            Case::new("bf16", Bias, inputs(9, 64, DType::BF16)),
            Case::new("folded grid", Bias, inputs(65_536, 1024, DType::BF16)),
        ]
    }
}

impl Operation for BiasGradient {
    fn name(&self) -> &'static str {
        "bias_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 1)?;
        Ok(vec![TensorType::new(Shape::vector(inputs[0].cols()), DType::F32)])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0])?;
        Ok(vec![None])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let dy = launch.inputs[0];
        Dispatch::new(GRADIENT, dy.cols4())
            .flag("ACCUMULATE", launch.accumulate[0])
            .param("rows", dy.rows())
            .param("cols4", dy.cols4())
            .read("dy", Place::Input(0), dy.dtype)
            .write("gradient", Place::Output(0), DType::F32)
            .cost(dy.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let mut db = ReferenceTensor::zeros(outputs[0].shape);
        for (i, dy) in inputs[0].data.iter().enumerate() {
            let cols = db.cols();
            db.data[i % cols] += dy;
        }
        vec![db]
    }

    fn cases() -> Vec<Case> {
        [(1, 4, DType::F32), (131, 9, DType::F32), (70, 12, DType::BF16)]
            .into_iter()
            .map(|(rows, cols, dtype)| {
                let inputs = vec![CaseInput::random(&[rows, cols], dtype)];
                Case::new(format!("{rows}x{cols} {dtype}"), BiasGradient, inputs)
            })
            .collect()
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }
}
