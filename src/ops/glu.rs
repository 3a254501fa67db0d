//! Gated activation `y = act(gate) * up` (Shazeer 2020, arXiv:2002.05202), all `[T, d]`: SwiGLU and GeGLU.
//!
//! Activations are `gate s(gate)`, so that `dgate = dy up (s + gate s')` and `dup = dy gate s`; both overwrite.

use super::activation::Activation;
use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Binding, Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, TensorType, Value, View,
};
use std::sync::Arc;

pub(super) const SHADER: Shader = crate::shader!("glu");
/// Operations per element, as reports count them.
pub(super) const FLOPS: f64 = 6.0;
pub(super) const GRADIENT_FLOPS: f64 = 12.0;
const GRADIENT: Shader = crate::shader!("glu_gradient");

/// Inputs gate, up.
#[derive(Clone, Debug, PartialEq)]
pub struct Glu {
    pub activation: Activation,
}

/// Inputs gate, up, dy; outputs dgate, dup.
#[derive(Clone, Debug, PartialEq)]
pub struct GluGradient {
    pub activation: Activation,
}

pub fn glu(graph: &mut Graph, activation: Activation, gate: Value, up: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Glu { activation }), &[gate, up])
}

/// Adds what `shared/glu_gradient.wgsl` must know of gate and up: bindings, but for those that their gradients replace.
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

/// `act(gate) * up` in f64.
pub(super) fn gated(activation: Activation, gate: &ReferenceTensor, up: &ReferenceTensor) -> ReferenceTensor {
    ReferenceTensor::from_fn(gate.shape, |i| gate.data[i] * activation.passing(gate.data[i]).0 * up.data[i])
}

impl Operation for Glu {
    fn name(&self) -> &'static str {
        "glu"
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
        let op = GluGradient { activation: self.activation };
        let outputs = graph.apply(Arc::new(op), &[node.inputs[0], node.inputs[1], dy])?;
        Ok(outputs.into_iter().map(Some).collect())
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        self.activation
            .define(elementwise(SHADER, ty.rows() * ty.cols4()))
            .read("gate", Place::Input(0), ty.dtype)
            .read("up", Place::Input(1), ty.dtype)
            .write("y", Place::Output(0), ty.dtype)
            .cost(FLOPS * ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], _outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        vec![gated(self.activation, &inputs[0], &inputs[1])]
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
        let all = |activation| {
            let case = |label: &str, inputs| {
                Case::new(format!("{activation:?} {label}"), Glu { activation }, inputs)
            };
            [
                case("3x5", pair(&[3, 5], DType::F32)).gradients(&[0, 1]),
                case("f16", pair(&[7, 36], DType::F16)),
                case("bf16", pair(&[7, 36], DType::BF16)),
                case("large values", extreme.clone()),
            ]
        };
        Activation::ALL.into_iter().flat_map(all).collect()
    }
}

impl Operation for GluGradient {
    fn name(&self) -> &'static str {
        "glu_gradient"
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
        let dispatch = self.activation.define(elementwise(GRADIENT, ty.rows() * ty.cols4()));
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
            let (s, slope) = self.activation.passing(gate[i]);
            dy[i] * up[i] * (s + gate[i] * slope)
        });
        let dup = ReferenceTensor::from_fn(shape, |i| dy[i] * gate[i] * self.activation.passing(gate[i]).0);
        vec![dgate, dup]
    }

    fn may_replace(&self, output: usize) -> Option<usize> {
        Some(output)
    }

    fn cases() -> Vec<Case> {
        let all = |activation| {
            [DType::F32, DType::F16, DType::BF16].map(|dtype| {
                let gate = CaseInput { spread: 4.0, ..CaseInput::random(&[11, 10], dtype) };
                let inputs =
                    vec![gate, CaseInput::random(&[11, 10], dtype), CaseInput::random(&[11, 10], dtype)];
                Case::new(format!("{activation:?} {dtype}"), GluGradient { activation }, inputs)
            })
        };
        Activation::ALL.into_iter().flat_map(all).collect()
    }
}
