//! Clipping by global norm (Pascanu et al. 2013, arXiv:1211.5063) as an operation of its own, which [`crate::fuse`] makes part of the
//! optimiser's update.
//!
//! Inputs gradient f32 `[n]`, norm2 `[1]` (sum of squares of the gradient as it is), hyper `[16]` ([`super::adamw::Hyper`]); output
//! `gradient * inverse_scale * min(1, clip / (norm + 1e-6))`. Where the norm is not finite nothing is written, as nobody
//! updates then. No gradient.

use super::adamw::{HYPER_LEN, Hyper, gradient_factor};
use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, TensorType, Value,
};
use std::ops::Range;
use std::sync::Arc;

const SHADER: Shader = crate::shader!("clip");

#[derive(Clone, Debug, PartialEq)]
pub struct Clip;

/// Appends the clipped gradient.
pub fn clip(graph: &mut Graph, gradient: Value, norm2: Value, hyper: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Clip), &[gradient, norm2, hyper])
}

impl Operation for Clip {
    fn name(&self) -> &'static str {
        "clip"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 3)?;
        expect(self.name(), inputs[0].dtype == DType::F32, || format!("the gradient {} is f32", inputs[0]))?;
        expect(self.name(), inputs[2].cols() == HYPER_LEN, || format!("hyper is [{HYPER_LEN}]"))?;
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2])?;
        Ok(vec![None; 3])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let clipped = |groups: Range<usize>| {
            let elements = 4.0 * groups.len() as f64;
            elementwise(SHADER, groups.len())
                .flag("CLIPS", true)
                .read("gradient", Place::Input(0), DType::F32)
                .read_scalar("norm2", Place::Input(1), DType::F32)
                .read_scalar("hyper", Place::Input(2), DType::F32)
                .write("y", Place::Output(0), DType::F32)
                .cost(elements, 8.0 * elements)
                .within(&groups)
        };
        launch.device.ranges(launch.inputs[0], 1).map(clipped).collect::<Vec<_>>().into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let factor = gradient_factor(&inputs[1], &inputs[2].data);
        vec![ReferenceTensor::from_fn(outputs[0].shape, |i| inputs[0].data[i] * factor)]
    }

    fn cases() -> Vec<Case> {
        let case = |label: &str, n: usize, clip| {
            let hyper = Hyper { clip, inverse_scale: 0.5, ..Hyper::default() };
            let hyper = hyper.to_array().iter().map(|&v| f64::from(v)).collect();
            let inputs = vec![
                CaseInput::random(&[n], DType::F32),
                CaseInput::values(&[1], DType::F32, vec![9.0]),
                CaseInput::values(&[HYPER_LEN], DType::F32, hyper),
            ];
            Case::new(label, Clip, inputs)
        };
        vec![case("clipped", 1001, Some(1.0)), case("below the clip", 9, Some(2.0)), case("no clip", 5, None)]
    }
}
