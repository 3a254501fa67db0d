//! Soft cap of logits `y = c tanh(x / c)` (Gemma 2, arXiv:2408.00118), elementwise; `dx = dy (1 - tanh(x / c)^2)` overwrites.
//!
//! In training the loss has it ([`super::cross_entropy`]), and attention has its own ([`super::attention::Scoring`]).

use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("soft_cap");
/// Operations per element, as reports count them.
const FLOPS: f64 = 8.0;

#[derive(Clone, Debug, PartialEq)]
pub struct SoftCap {
    pub cap: f64,
}

/// Inputs x, dy; output dx.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftCapGradient {
    pub cap: f64,
}

pub fn soft_cap(graph: &mut Graph, x: Value, cap: f64) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(SoftCap { cap }), &[x])
}

impl Operation for SoftCap {
    fn name(&self) -> &'static str {
        "soft_cap"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 1)?;
        expect(self.name(), inputs[0].dtype.is_float(), || format!("{} is not of floats", inputs[0]))?;
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dy) = node.gradients[0] else { return Ok(vec![None]) };
        let op = SoftCapGradient { cap: self.cap };
        Ok(vec![Some(graph.apply1(Arc::new(op), &[node.inputs[0], dy])?)])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        elementwise(SHADER, ty.rows() * ty.cols4())
            .flag("GRADIENT", false)
            .param_f32("cap", self.cap)
            .read("x", Place::Input(0), ty.dtype)
            .write("y", Place::Output(0), ty.dtype)
            .cost(FLOPS * ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let y = |i: usize| self.cap * (inputs[0].data[i] / self.cap).tanh();
        vec![ReferenceTensor::from_fn(outputs[0].shape, y)]
    }

    fn cases() -> Vec<Case> {
        let far = CaseInput::values(&[1, 4], DType::F32, vec![-1e6, -3.0, 0.0, 1e30]);
        vec![
            Case::new("3x5", SoftCap { cap: 0.5 }, vec![CaseInput::random(&[3, 5], DType::F32)])
                .gradients(&[0]),
            Case::new("bf16", SoftCap { cap: 0.5 }, vec![CaseInput::random(&[9, 12], DType::BF16)]),
            Case::new("far beyond", SoftCap { cap: 30.0 }, vec![far]),
        ]
    }
}

impl Operation for SoftCapGradient {
    fn name(&self) -> &'static str {
        "soft_cap_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 2)?;
        expect(self.name(), inputs[0] == inputs[1], || {
            format!("x {} and dy {} differ", inputs[0], inputs[1])
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
            .flag("GRADIENT", true)
            .param_f32("cap", self.cap)
            .read("x", Place::Input(0), ty.dtype)
            .read("dy", Place::Input(1), ty.dtype)
            .write("gradient", Place::Output(0), ty.dtype)
            .cost(FLOPS * ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let slope = |i: usize| 1.0 - (inputs[0].data[i] / self.cap).tanh().powi(2);
        vec![ReferenceTensor::from_fn(outputs[0].shape, |i| inputs[1].data[i] * slope(i))]
    }

    fn cases() -> Vec<Case> {
        [DType::F32, DType::F16]
            .into_iter()
            .map(|dtype| {
                let inputs = vec![CaseInput::random(&[7, 10], dtype); 2];
                Case::new(dtype.name(), SoftCapGradient { cap: 0.75 }, inputs)
            })
            .collect()
    }
}
