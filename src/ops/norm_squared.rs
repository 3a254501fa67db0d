//! Sum of squares of a flat f32 tensor `[n]`, as `[1]`: the gradient's norm for clipping.
//!
//! Two passes in a fixed order, so the same gradients give the same bits. What one binding does not hold is walked in ranges,
//! from one to the next of which the sums of all invocations are carried. No gradient: it serves the optimiser.

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
        // invocations of a workgroup: all that a large GPU keeps busy have to walk billions of elements
        let width = if launch.device.cpu { 64 } else { 256 };
        let pass = |parts: usize, count: usize, (continued, continues)| {
            Dispatch::new(SHADER, parts)
                .param("count", count)
                .define("WIDTH", width as u32)
                .param("stride", width * parts)
                .flag("SQUARE", parts == PARTS)
                .flag("CONTINUED", continued)
                .flag("CONTINUES", continues)
        };
        let sums = |dispatch: Dispatch, output| dispatch.write_scalar("sums", output, DType::F32);
        // whole strides: every invocation meets the groups that it meets in one range, in their order
        let ranges: Vec<_> = launch.device.ranges(x, width * PARTS).collect();
        let last = ranges.len() - 1;
        let mut dispatches: Vec<Dispatch> = Vec::new();
        for (i, groups) in ranges.iter().enumerate() {
            let elements = 4.0 * groups.len() as f64;
            let dispatch = pass(PARTS, groups.len(), (i > 0, i < last))
                .read("x", Place::Input(0), x.dtype)
                .within(groups)
                .cost(2.0 * elements, 4.0 * elements);
            let dispatch = match last {
                0 => dispatch,
                _ => dispatch.write("carry", Place::Workspace(1), DType::F32),
            };
            dispatches.push(if i < last { dispatch } else { sums(dispatch, Place::Workspace(0)) });
        }
        let second = pass(1, PARTS / 4, (false, false)).read("x", Place::Workspace(0), DType::F32);
        dispatches.push(sums(second, Place::Output(0)));
        let mut workspaces = vec![4 * PARTS as u64];
        workspaces.extend((last > 0).then_some(16 * (width * PARTS) as u64));
        LaunchPlan { dispatches, workspaces, ..LaunchPlan::default() }
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
