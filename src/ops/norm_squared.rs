//! Sum of squares of a flat f32 tensor `[n]`, as `[1]`: the gradient's norm for clipping.
//!
//! Two passes in a fixed order, so the same gradients give the same bits. No gradient: it serves the optimiser.

use super::expect_inputs;
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("norm_squared");
/// Workgroups of the first pass: enough to fill a GPU, few enough for one workgroup to add their parts.
const PARTS: usize = 256;

#[derive(Clone, Debug, PartialEq)]
pub struct NormSquared;

pub fn norm_squared(graph: &mut Graph, x: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(NormSquared), &[x])
}

impl Operation for NormSquared {
    fn name(&self) -> &'static str {
        "norm_squared"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 1)?;
        Ok(vec![TensorType::new(Shape::scalar(), DType::F32)])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0])?;
        Ok(vec![None])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let x = launch.inputs[0];
        let pass = |groups, count, input, output, dtype| {
            Dispatch::new(SHADER, groups)
                .param("count", count)
                .param("stride", 64 * groups)
                .flag("SQUARE", groups == PARTS)
                .read("x", input, dtype)
                .write_scalar("sums", output, DType::F32)
        };
        let first = pass(PARTS, x.rows() * x.cols4(), Place::Input(0), Place::Workspace(0), x.dtype)
            .cost(2.0 * x.shape.elements() as f64, x.bytes() as f64);
        let second = pass(1, PARTS / 4, Place::Workspace(0), Place::Output(0), DType::F32);
        LaunchPlan {
            dispatches: vec![first, second],
            workspaces: vec![4 * PARTS as u64],
            ..Default::default()
        }
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let sum: f64 = inputs[0].data.iter().map(|v| v * v).sum();
        vec![ReferenceTensor::from_fn(outputs[0].shape, |_| sum)]
    }

    fn cases() -> Vec<Case> {
        [1, 7, 1000, 300_001]
            .into_iter()
            .map(|n| Case::new(n.to_string(), NormSquared, vec![CaseInput::random(&[n], DType::F32)]))
            .collect()
    }
}
