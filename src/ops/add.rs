//! Element-wise sum `y = a + b` of two tensors of one type; the residual connection.
//!
//! Gradient: `dy` to both inputs (overwrites).

use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("add");

#[derive(Clone, Debug, PartialEq)]
pub struct Add;

pub fn add(graph: &mut Graph, a: Value, b: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Add), &[a, b])
}

impl Operation for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 2)?;
        expect(self.name(), inputs[0] == inputs[1] && inputs[0].dtype.is_float(), || {
            format!("{} and {} differ", inputs[0], inputs[1])
        })?;
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        Ok(vec![node.gradients[0]; 2])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        elementwise(SHADER, ty.rows() * ty.cols4())
            .read("a", Place::Input(0), ty.dtype)
            .read("b", Place::Input(1), ty.dtype)
            .write("y", Place::Output(0), ty.dtype)
            .cost(ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        vec![ReferenceTensor::from_fn(outputs[0].shape, |i| inputs[0].data[i] + inputs[1].data[i])]
    }

    fn cases() -> Vec<Case> {
        let pair =
            |dims: &[usize], dtype| vec![CaseInput::random(dims, dtype), CaseInput::random(dims, dtype)];
        vec![
            Case::new("1x1", Add, pair(&[1, 1], DType::F32)).gradients(&[0, 1]),
            Case::new("37x13", Add, pair(&[37, 13], DType::F32)),
            Case::new("f16", Add, pair(&[9, 21], DType::F16)),
            Case::new("bf16", Add, pair(&[9, 21], DType::BF16)),
            // 65,536 workgroups: one more than a dimension holds
            Case::new("folded grid", Add, pair(&[65_536, 1024], DType::BF16)),
        ]
    }
}
