//! Activations, element by element: `y = act(x)`, x `[T, d]`. Those of gated MLPs ride in [`super::glu`].
//!
//! All are `x s(x)`, so that `dx = dy (s + x s')`; it overwrites, and may lie where dy lay.

use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, TensorType, Value,
};
use serde::Serialize;
use std::f64::consts::{FRAC_1_SQRT_2, PI};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("activation");
const GRADIENT: Shader = crate::shader!("activation_gradient");

/// What an MLP's inner elements, or its gate, become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x sigmoid(x)`.
    #[default]
    Silu,
    /// The approximation of GELU by tanh (Hendrycks & Gimpel 2016, arXiv:1606.08415):
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// GELU itself, `x (1 + erf(x / sqrt(2))) / 2`. On the device erf is the approximation 7.1.26 of Abramowitz & Stegun (1964), off by
    /// 1.5e-7 at most.
    Gelu,
}

impl Activation {
    pub const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

    /// Tells `shared/glu.wgsl`.
    pub(super) fn define(self, dispatch: Dispatch) -> Dispatch {
        dispatch.flag("TANH", self == Activation::GeluTanh).flag("ERF", self == Activation::Gelu)
    }

    /// s of x, and its derivative, in f64.
    pub(super) fn passing(self, x: f64) -> (f64, f64) {
        let sigmoid = |v: f64, slope: f64| {
            let s = 1.0 / (1.0 + (-v).exp());
            (s, slope * s * (1.0 - s))
        };
        match self {
            Activation::Silu => sigmoid(x, 1.0),
            Activation::GeluTanh => {
                let twice = 2.0 * (2.0 / PI).sqrt();
                sigmoid(twice * (x + 0.044715 * x.powi(3)), twice * (1.0 + 3.0 * 0.044715 * x * x))
            }
            Activation::Gelu => {
                let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
                (0.5 * libm::erfc(-x * FRAC_1_SQRT_2), density)
            }
        }
    }
}

/// Input x.
#[derive(Clone, Debug, PartialEq)]
pub struct Activate {
    pub activation: Activation,
}

/// Inputs x, dy; output dx.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivateGradient {
    pub activation: Activation,
}

/// `act(x)` of every element of x `[T, d]`.
///
/// # Errors
/// An x of indices.
pub fn activate(graph: &mut Graph, activation: Activation, x: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Activate { activation }), &[x])
}

impl Operation for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 1)?;
        expect(self.name(), inputs[0].dtype.is_float(), || format!("x is {}", inputs[0]))?;
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dy) = node.gradients[0] else { return Ok(vec![None]) };
        let op = ActivateGradient { activation: self.activation };
        Ok(vec![Some(graph.apply1(Arc::new(op), &[node.inputs[0], dy])?)])
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        self.activation
            .define(elementwise(SHADER, ty.rows() * ty.cols4()))
            .read("x", Place::Input(0), ty.dtype)
            .write("y", Place::Output(0), ty.dtype)
            .cost(5.0 * ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let x = &inputs[0].data;
        vec![ReferenceTensor::from_fn(outputs[0].shape, |i| x[i] * self.activation.passing(x[i]).0)]
    }

    fn cases() -> Vec<Case> {
        let wide = |dims: &[usize], dtype| vec![CaseInput { spread: 4.0, ..CaseInput::random(dims, dtype) }];
        let far = vec![-1e20, -200.0, -90.0, -6.0, -5.0, 0.0, 5.0, 200.0];
        let far = vec![CaseInput::values(&[2, 4], DType::F32, far)];
        let all = |activation| {
            let case = |label: &str, inputs| {
                Case::new(format!("{activation:?} {label}"), Activate { activation }, inputs)
            };
            [
                case("3x5", wide(&[3, 5], DType::F32)).gradients(&[0]),
                case("f16", wide(&[7, 36], DType::F16)),
                case("bf16", wide(&[7, 36], DType::BF16)),
                case("far from zero", far.clone()),
            ]
        };
        Activation::ALL.into_iter().flat_map(all).collect()
    }
}

impl Operation for ActivateGradient {
    fn name(&self) -> &'static str {
        "activation_gradient"
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
        let replaces = launch.replaces[0];
        let dispatch = self
            .activation
            .define(elementwise(GRADIENT, ty.rows() * ty.cols4()))
            .flag("REPLACES", replaces)
            .read("x", Place::Input(0), ty.dtype);
        let dispatch = if replaces { dispatch } else { dispatch.read("dy", Place::Input(1), ty.dtype) };
        dispatch
            .write("gradient", Place::Output(0), ty.dtype)
            .cost(10.0 * ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (x, dy) = (&inputs[0].data, &inputs[1].data);
        vec![ReferenceTensor::from_fn(outputs[0].shape, |i| {
            let (s, slope) = self.activation.passing(x[i]);
            dy[i] * (s + x[i] * slope)
        })]
    }

    fn may_replace(&self, _output: usize) -> Option<usize> {
        Some(1)
    }

    fn cases() -> Vec<Case> {
        let all = |activation| {
            let case = |label: &str, inputs| {
                Case::new(format!("{activation:?} {label}"), ActivateGradient { activation }, inputs)
            };
            let far = vec![-1e20, -200.0, -90.0, -6.0, 5.0, 1e10, 1e20, 200.0];
            let far = [CaseInput::values(&[2, 4], DType::F32, far), CaseInput::random(&[2, 4], DType::F32)];
            let types = [DType::F32, DType::F16, DType::BF16].map(|dtype| {
                let x = CaseInput { spread: 4.0, ..CaseInput::random(&[11, 10], dtype) };
                case(dtype.name(), vec![x, CaseInput::random(&[11, 10], dtype)])
            });
            types.into_iter().chain([case("far from zero", far.to_vec())])
        };
        Activation::ALL.into_iter().flat_map(all).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `torch.nn.functional.gelu` in f64.
    #[test]
    fn gelu_is_pytorchs() {
        let gelu = |x: f64| x * Activation::Gelu.passing(x).0;
        for (x, y) in [(-3.0, -0.00404969409489031), (-0.5, -0.15426876936299344), (1.0, 0.8413447460685429)]
        {
            assert!((gelu(x) - y).abs() < 1e-15, "{x}: {}", gelu(x));
        }
    }
}
