//! Keeps a tensor in memory of the host between forward and reverse pass: `kept = x`, in place of the leaf that is the memory.
//!
//! Inputs kept `[T, d]`, x `[T, d]` of one type. The device writes there and reads from there itself; a [`super::copy`] brings it
//! back. Gradients pass it by: what it holds is read in the reverse pass alone.

use super::copy::SHADER;
use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, TensorType, Value,
};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub struct Keep;

/// Appends `kept = x`; `memory` is a leaf of [`Graph::host`].
pub fn keep(graph: &mut Graph, memory: Value, x: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Keep), &[memory, x])
}

impl Operation for Keep {
    fn name(&self) -> &'static str {
        "keep"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 2)?;
        expect(self.name(), inputs[0] == inputs[1] && inputs[0].dtype.is_float(), || {
            format!("{} is not kept in {}", inputs[1], inputs[0])
        })?;
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1])?;
        Ok(vec![None; 2])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        elementwise(SHADER, ty.rows() * ty.cols4())
            .flag("ACCUMULATE", false)
            .read("x", Place::Input(1), ty.dtype)
            .write("y", Place::Output(0), ty.dtype)
            .cost(0.0, 2.0 * ty.bytes() as f64)
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], _outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        vec![inputs[1].clone()]
    }

    fn cases() -> Vec<Case> {
        let case = |dtype| {
            let inputs = vec![CaseInput::random(&[19, 33], dtype), CaseInput::random(&[19, 33], dtype)];
            Case::new(format!("{dtype}"), Keep, inputs)
        };
        vec![case(DType::F32), case(DType::BF16)]
    }

    fn in_place(&self, _output: usize) -> Option<usize> {
        Some(0)
    }
}
