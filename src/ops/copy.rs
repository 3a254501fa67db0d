//! `y = x` in another storage type, or `y += x` where the planner accumulates.
//!
//! Gradient: `dy` in the type of x.

use super::{elementwise, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, TensorType, Value,
};
use std::sync::Arc;

pub(super) const SHADER: Shader = crate::shader!("copy");

#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    pub dtype: DType,
}

pub fn copy(graph: &mut Graph, x: Value, dtype: DType) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Copy { dtype }), &[x])
}

impl Operation for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 1)?;
        if !inputs[0].dtype.is_float() || !self.dtype.is_float() {
            return Err(GraphError::invalid(self.name(), "converts between floats only"));
        }
        Ok(vec![TensorType::new(inputs[0].shape, self.dtype)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dtype = graph.type_of(node.inputs[0]).dtype;
        Ok(vec![node.gradients[0].map(|dy| copy(graph, dy, dtype)).transpose()?])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        elementwise(SHADER, ty.rows() * ty.cols4())
            .flag("ACCUMULATE", launch.accumulate[0])
            .read("x", Place::Input(0), launch.inputs[0].dtype)
            .write("y", Place::Output(0), ty.dtype)
            .cost(0.0, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], _outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        vec![inputs[0].clone()]
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for from in [DType::F32, DType::F16, DType::BF16] {
            for to in [DType::F32, DType::F16, DType::BF16] {
                let inputs = vec![CaseInput::random(&[5, 7], from)];
                cases.push(Case::new(format!("{from} to {to}"), Copy { dtype: to }, inputs).gradients(&[0]));
            }
        }
        cases
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }
}
