//! Picks rows: `y[i] = scale x[index[i]]`, zeros where `index[i]` is [`NO_ROW`]. x `[T, d]`, index `[L]`, y `[L, d]`.
//!
//! The third input `inverse` `[T]` says which row of y each row of x went to (or [`NO_ROW`]); with it the gradient is
//! the same operation the other way round, without atomics. No row of x may be picked twice.

use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, Shape, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("gather_rows");

/// The index that stands for a row of zeros.
pub const NO_ROW: u32 = u32::MAX;

/// Inputs x, index, inverse.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherRows {
    /// 1 where a model says nothing of its logits' scale.
    pub scale: f64,
}

pub fn gather_rows(
    graph: &mut Graph,
    x: Value,
    index: Value,
    inverse: Value,
    scale: f64,
) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(GatherRows { scale }), &[x, index, inverse])
}

impl Operation for GatherRows {
    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 3)?;
        let indices = inputs[1].dtype == DType::U32 && inputs[2].dtype == DType::U32;
        expect(self.name(), indices && inputs[2].cols() == inputs[0].rows(), || {
            format!("index {} and inverse {} do not fit {}", inputs[1], inputs[2], inputs[0])
        })?;
        Ok(vec![TensorType::new(Shape::matrix(inputs[1].cols(), inputs[0].cols()), inputs[0].dtype)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let (index, inverse) = (node.inputs[1], node.inputs[2]);
        let dx =
            node.gradients[0].map(|dy| gather_rows(graph, dy, inverse, index, self.scale)).transpose()?;
        Ok(vec![dx, None, None])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        elementwise(SHADER, ty.rows() * ty.cols4())
            .param("cols4", ty.cols4())
            .param_f32("scale", self.scale)
            .read("x", Place::Input(0), ty.dtype)
            .read_scalar("index", Place::Input(1), DType::U32)
            .write("y", Place::Output(0), ty.dtype)
            .cost(0.0, 2.0 * ty.bytes() as f64)
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let mut y = ReferenceTensor::zeros(outputs[0].shape);
        for i in 0..y.rows() {
            if inputs[1].data[i] != f64::from(NO_ROW) {
                let row = inputs[0].row(inputs[1].index(i));
                y.row_mut(i).iter_mut().zip(row).for_each(|(y, x)| *y = self.scale * x);
            }
        }
        vec![y]
    }

    fn cases() -> Vec<Case> {
        let inputs = |dtype| {
            vec![
                CaseInput::random(&[5, 7], dtype),
                CaseInput::indices([4, 1, NO_ROW, 2]),
                CaseInput::indices([NO_ROW, 1, 3, NO_ROW, 0]),
            ]
        };
        [DType::F32, DType::F16, DType::BF16]
            .into_iter()
            .flat_map(|dtype| {
                let case = |label: &str, scale| {
                    Case::new(format!("{dtype}{label}"), GatherRows { scale }, inputs(dtype)).gradients(&[0])
                };
                [case("", 1.0), case(", scaled", 0.3)]
            })
            .collect()
    }
}
