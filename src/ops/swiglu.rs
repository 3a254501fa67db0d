//! Gated activation `y = silu(gate) * up` (Shazeer 2020, arXiv:2002.05202), all `[T, d]`.
//!
//! Gradients with s = sigmoid(gate): `dgate = dy up (s + gate s (1 - s))`, `dup = dy gate s`; both overwrite.

use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Binding, Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, TensorType, Value, View,
};
use std::sync::Arc;

pub(super) const SHADER: Shader = crate::shader!("swiglu");
/// Operations per element, as reports count them.
pub(super) const FLOPS: f64 = 6.0;
pub(super) const GRADIENT_FLOPS: f64 = 12.0;
const GRADIENT: Shader = crate::shader!("swiglu_gradient");

#[derive(Clone, Debug, PartialEq)]
pub struct SwiGlu;

/// Inputs gate, up, dy; outputs dgate, dup.
#[derive(Clone, Debug, PartialEq)]
pub struct SwiGluGradient;

pub fn swiglu(graph: &mut Graph, gate: Value, up: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(SwiGlu), &[gate, up])
}

/// Adds what `shared/swiglu_gradient.wgsl` must know of gate and up: bindings, but for those that their gradients replace.
pub(super) fn sources(mut dispatch: Dispatch, [gate, up]: [Binding; 2], replaces: [bool; 2]) -> Dispatch {
    for (flag, binding, replaces) in [("REPLACES_GATE", gate, replaces[0]), ("REPLACES_UP", up, replaces[1])]
    {
        dispatch = dispatch.flag(flag, replaces);
        if !replaces {
            dispatch = dispatch.bind(binding);
        }
    }
    dispatch
}

/// `silu(gate) * up` in f64.
pub(super) fn gated(gate: &ReferenceTensor, up: &ReferenceTensor) -> ReferenceTensor {
    ReferenceTensor::from_fn(gate.shape, |i| gate.data[i] * sigmoid(gate.data[i]) * up.data[i])
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Operation for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 2)?;
        expect(self.name(), inputs[0] == inputs[1] && inputs[0].dtype.is_float(), || {
            format!("gate {} and up {} differ", inputs[0], inputs[1])
        })?;
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dy) = node.gradients[0] else { return Ok(vec![None; 2]) };
        let outputs = graph.apply(Arc::new(SwiGluGradient), &[node.inputs[0], node.inputs[1], dy])?;
        Ok(outputs.into_iter().map(Some).collect())
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        elementwise(SHADER, ty.rows() * ty.cols4())
            .read("gate", Place::Input(0), ty.dtype)
            .read("up", Place::Input(1), ty.dtype)
            .write("y", Place::Output(0), ty.dtype)
            .cost(FLOPS * ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], _outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        vec![gated(&inputs[0], &inputs[1])]
    }

    fn cases() -> Vec<Case> {
        let pair = |dims: &[usize], dtype| {
            let gate = CaseInput { spread: 4.0, ..CaseInput::random(dims, dtype) };
            vec![gate, CaseInput::random(dims, dtype)]
        };
        let extreme = vec![
            CaseInput::values(&[1, 4], DType::F32, vec![-200.0, -90.0, 0.0, 200.0]),
            CaseInput::random(&[1, 4], DType::F32),
        ];
        vec![
            Case::new("3x5", SwiGlu, pair(&[3, 5], DType::F32)).gradients(&[0, 1]),
            Case::new("f16", SwiGlu, pair(&[7, 36], DType::F16)),
            Case::new("bf16", SwiGlu, pair(&[7, 36], DType::BF16)),
            Case::new("large values", SwiGlu, extreme),
        ]
    }
}

impl Operation for SwiGluGradient {
    fn name(&self) -> &'static str {
        "swiglu_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 3)?;
        expect(self.name(), inputs[0] == inputs[1] && inputs[0] == inputs[2], || {
            "inputs differ in type".into()
        })?;
        Ok(vec![inputs[0]; 2])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2])?;
        Ok(vec![None; 3])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        let source = |name, input| Binding::new(name, Place::Input(input), ty.dtype, View::Vec4, false);
        let dispatch = elementwise(GRADIENT, ty.rows() * ty.cols4());
        let replaces = [launch.replaces[0], launch.replaces[1]];
        sources(dispatch, [source("gate", 0), source("up", 1)], replaces)
            .read("dy", Place::Input(2), ty.dtype)
            .write("dgate", Place::Output(0), ty.dtype)
            .write("dup", Place::Output(1), ty.dtype)
            .cost(GRADIENT_FLOPS * ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (gate, up, dy) = (&inputs[0].data, &inputs[1].data, &inputs[2].data);
        let shape = outputs[0].shape;
        let dgate = ReferenceTensor::from_fn(shape, |i| {
            let s = sigmoid(gate[i]);
            dy[i] * up[i] * (s + gate[i] * s * (1.0 - s))
        });
        vec![dgate, ReferenceTensor::from_fn(shape, |i| dy[i] * gate[i] * sigmoid(gate[i]))]
    }

    fn may_replace(&self, output: usize) -> Option<usize> {
        Some(output)
    }

    fn cases() -> Vec<Case> {
        [DType::F32, DType::F16, DType::BF16]
            .into_iter()
            .map(|dtype| {
                Case::new(dtype.name(), SwiGluGradient, vec![CaseInput::random(&[11, 10], dtype); 3])
            })
            .collect()
    }
}
