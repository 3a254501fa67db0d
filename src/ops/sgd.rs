//! Stochastic gradient descent with momentum as torch.optim.SGD has it, with clipping by global norm, over one flat buffer.
//!
//! Inputs parameter, m, gradient f32 `[n]`, norm2 `[1]`, hyper `[16]` ([`Hyper`](super::adamw::Hyper)); outputs parameter, m in
//! place. With g = gradient * inverse_scale * min(1, clip / (norm + 1e-6)) + wd p: `m = momentum m + g; p -= lr m`, where m
//! begins at zero. Weight decay is part of the gradient here, not decoupled. Nothing changes where the norm is not finite. No
//! gradient.

use super::adamw::{HYPER_LEN, Hyper, gradient_factor, group_rate};
use super::clip::clip;
use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, TensorType, Value,
};
use std::ops::Range;
use std::sync::Arc;

const SHADER: Shader = crate::shader!("sgd");

#[derive(Clone, Debug, PartialEq)]
pub struct Sgd {
    /// The element, a multiple of four, from which on the second group's rate holds.
    pub second_from: usize,
    /// The gradient is clipped here, and not before.
    pub clips: bool,
}

/// Appends clipping and the update, which [`crate::fuse`] makes one; gives the new parameter and m (the same buffers).
pub fn sgd(
    graph: &mut Graph,
    second_from: usize,
    state: [Value; 2],
    gradient: Value,
    norm2: Value,
    hyper: Value,
) -> Result<Vec<Value>, GraphError> {
    let clipped = clip(graph, gradient, norm2, hyper)?;
    let op = Sgd { second_from, clips: false };
    graph.apply(Arc::new(op), &[state[0], state[1], clipped, norm2, hyper])
}

impl Operation for Sgd {
    fn name(&self) -> &'static str {
        "sgd"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 5)?;
        let same = inputs[..3].iter().all(|t| *t == inputs[0]) && inputs[0].dtype == DType::F32;
        expect(self.name(), same, || "parameter, momentum and gradient are f32 of one shape".into())?;
        expect(self.name(), inputs[4].cols() == HYPER_LEN, || format!("hyper is [{HYPER_LEN}]"))?;
        Ok(inputs[..2].to_vec())
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2, 3, 4])?;
        Ok(vec![None; 5])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.inputs[0];
        let update = |groups: Range<usize>| {
            let elements = 4.0 * groups.len() as f64;
            elementwise(SHADER, groups.len())
                .flag("CLIPS", self.clips)
                .write("p", Place::Output(0), DType::F32)
                .write("m", Place::Output(1), DType::F32)
                .read("gradient", Place::Input(2), DType::F32)
                .read_scalar("norm2", Place::Input(3), DType::F32)
                .read_scalar("hyper", Place::Input(4), DType::F32)
                .param("second_from", (self.second_from / 4).saturating_sub(groups.start))
                .cost(7.0 * elements, 20.0 * elements)
                .within(&groups)
        };
        launch.device.ranges(ty, 1).map(update).collect::<Vec<_>>().into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let hyper = &inputs[4].data;
        let mut out: Vec<ReferenceTensor> = inputs[..2].to_vec();
        let factor = if self.clips { gradient_factor(&inputs[3], hyper) } else { 1.0 };
        for i in 0..outputs[0].shape.elements() {
            let p = inputs[0].data[i];
            let (rate, _) = group_rate(hyper, i >= self.second_from);
            let m = hyper[13] * inputs[1].data[i] + (inputs[2].data[i] * factor + hyper[14] * p);
            out[0].data[i] = p - rate * m;
            out[1].data[i] = m;
        }
        out
    }

    fn cases() -> Vec<Case> {
        let case = |label: &str, n: usize, clip, momentum, second_from| {
            let hyper = Hyper {
                learning_rate: 0.1,
                weight_decay: 0.1,
                clip,
                inverse_scale: 0.5,
                second_ratio: 4.0,
                momentum,
                ..Hyper::default()
            };
            let hyper = hyper.to_array().iter().map(|&v| f64::from(v)).collect();
            let inputs = vec![
                CaseInput::random(&[n], DType::F32),
                CaseInput::random(&[n], DType::F32),
                CaseInput::random(&[n], DType::F32),
                CaseInput::values(&[1], DType::F32, vec![9.0]),
                CaseInput::values(&[HYPER_LEN], DType::F32, hyper),
            ];
            Case::new(label, Sgd { second_from, clips: !label.ends_with("clipped before") }, inputs)
        };
        vec![
            case("clipped, momentum", 1001, Some(1.0), 0.9, 1004),
            case("two groups", 9, None, 0.0, 4),
            case("clipped before", 9, Some(1.0), 0.9, 4),
        ]
    }

    fn in_place(&self, output: usize) -> Option<usize> {
        Some(output)
    }
}
