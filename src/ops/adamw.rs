//! AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with gradient clipping by global norm, over one flat buffer.
//!
//! Inputs parameter, m, v, gradient f32 `[n]`, norm2 `[1]` (sum of squares of the gradient as it is), hyper `[16]`
//! ([`Hyper`]); outputs parameter, m, v in place. With g = gradient * inverse_scale * min(1, clip / (norm + 1e-6)):
//! `p *= 1 - lr wd; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g²; p -= lr (m / c1) / (sqrt(v / c2) + eps)`.
//! From an element on, lr is another multiple of the rate: the B matrices under LoRA+ (Hayou et al. 2024, arXiv:2402.12354).
//! Nothing changes where the norm is not finite. No gradient.

use super::clip::clip;
use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, TensorType, Value,
};
use std::ops::Range;
use std::sync::Arc;

const SHADER: Shader = crate::shader!("adamw");

/// Length of the `hyper` input.
pub const HYPER_LEN: usize = 16;

/// The numbers of one step, in the order of the `hyper` input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest global norm; `None` does not clip.
    pub clip: Option<f64>,
    /// What the gradient is multiplied with first: the inverse of the loss scale.
    pub inverse_scale: f64,
    /// Steps taken, this one included.
    pub step: u64,
    /// The rate of the second group of parameters over that of the first.
    pub second_ratio: f64,
    /// Of SGD: how much of the last update goes into this one.
    pub momentum: f64,
}

impl Default for Hyper {
    /// Those of torch.optim.AdamW at step 1, without clipping.
    fn default() -> Self {
        Hyper {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            clip: None,
            inverse_scale: 1.0,
            step: 1,
            second_ratio: 1.0,
            momentum: 0.0,
        }
    }
}

impl Hyper {
    /// The `hyper` input; bias corrections are computed here in f64.
    pub fn to_array(&self) -> [f32; HYPER_LEN] {
        let power = |beta: f64| beta.powi(i32::try_from(self.step).unwrap_or(i32::MAX));
        let mut out = [0.0; HYPER_LEN];
        let values = [
            self.learning_rate,
            self.beta1,
            self.beta2,
            self.eps,
            1.0 - self.learning_rate * self.weight_decay,
            self.clip.unwrap_or(-1.0),
            self.inverse_scale,
            1.0 / (1.0 - power(self.beta1)),
            1.0 / (1.0 - power(self.beta2)),
            1.0 - self.beta1,
            1.0 - self.beta2,
            self.learning_rate * self.second_ratio,
            1.0 - self.learning_rate * self.second_ratio * self.weight_decay,
            self.momentum,
            self.weight_decay,
        ];
        out.iter_mut().zip(values).for_each(|(o, v)| *o = v as f32);
        out
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// The element, a multiple of four, from which on the second group's rate holds.
    pub second_from: usize,
    /// The gradient is clipped here, and not before.
    pub clips: bool,
}

/// Appends clipping and the update, which [`crate::fuse`] makes one; gives the new parameter, m, v (the same buffers).
pub fn adamw(
    graph: &mut Graph,
    second_from: usize,
    state: [Value; 3],
    gradient: Value,
    norm2: Value,
    hyper: Value,
) -> Result<Vec<Value>, GraphError> {
    let clipped = clip(graph, gradient, norm2, hyper)?;
    let op = AdamW { second_from, clips: false };
    graph.apply(Arc::new(op), &[state[0], state[1], state[2], clipped, norm2, hyper])
}

/// What a gradient is multiplied with: the inverse of the loss scale, and less where the norm is over the clip.
pub(super) fn gradient_factor(norm2: &ReferenceTensor, hyper: &[f64]) -> f64 {
    let norm = norm2.data[0].sqrt() * hyper[6];
    let clip = if hyper[5] > 0.0 { (hyper[5] / (norm + 1e-6)).min(1.0) } else { 1.0 };
    hyper[6] * clip
}

/// Learning rate and `1 - rate * weight decay` of a group.
pub(super) fn group_rate(hyper: &[f64], second: bool) -> (f64, f64) {
    if second { (hyper[11], hyper[12]) } else { (hyper[0], hyper[4]) }
}

impl Operation for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 6)?;
        let same = inputs[..4].iter().all(|t| *t == inputs[0]) && inputs[0].dtype == DType::F32;
        expect(self.name(), same, || "parameter, moments and gradient are f32 of one shape".into())?;
        expect(self.name(), inputs[5].cols() == HYPER_LEN, || format!("hyper is [{HYPER_LEN}]"))?;
        Ok(inputs[..3].to_vec())
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2, 3, 4, 5])?;
        Ok(vec![None; 6])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.inputs[0];
        let update = |groups: Range<usize>| {
            let elements = 4.0 * groups.len() as f64;
            elementwise(SHADER, groups.len())
                .flag("CLIPS", self.clips)
                .write("p", Place::Output(0), DType::F32)
                .write("m", Place::Output(1), DType::F32)
                .write("v", Place::Output(2), DType::F32)
                .read("gradient", Place::Input(3), DType::F32)
                .read_scalar("norm2", Place::Input(4), DType::F32)
                .read_scalar("hyper", Place::Input(5), DType::F32)
                .param("second_from", (self.second_from / 4).saturating_sub(groups.start))
                .cost(16.0 * elements, 28.0 * elements)
                .within(&groups)
        };
        launch.device.ranges(ty, 1).map(update).collect::<Vec<_>>().into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let hyper = &inputs[5].data;
        let mut out: Vec<ReferenceTensor> = inputs[..3].to_vec();
        let factor = if self.clips { gradient_factor(&inputs[4], hyper) } else { 1.0 };
        for i in 0..outputs[0].shape.elements() {
            let g = inputs[3].data[i] * factor;
            let (rate, decay) = group_rate(hyper, i >= self.second_from);
            let m = hyper[1] * inputs[1].data[i] + hyper[9] * g;
            let v = hyper[2] * inputs[2].data[i] + hyper[10] * g * g;
            out[0].data[i] =
                inputs[0].data[i] * decay - rate * (m * hyper[7]) / ((v * hyper[8]).sqrt() + hyper[3]);
            out[1].data[i] = m;
            out[2].data[i] = v;
        }
        out
    }

    fn cases() -> Vec<Case> {
        let case = |label: &str, n: usize, clip, inverse_scale, second_from: usize| {
            let hyper = Hyper {
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                clip,
                inverse_scale,
                step: 3,
                second_ratio: 4.0,
                ..Hyper::default()
            };
            let values = |f: fn(usize) -> f64| (0..n).map(f).collect::<Vec<f64>>();
            let inputs = vec![
                CaseInput::random(&[n], DType::F32),
                CaseInput::random(&[n], DType::F32),
                CaseInput::values(&[n], DType::F32, values(|i| 0.1 + (i % 5) as f64)),
                CaseInput::random(&[n], DType::F32),
                CaseInput::values(&[1], DType::F32, vec![9.0]),
                CaseInput::values(
                    &[HYPER_LEN],
                    DType::F32,
                    hyper.to_array().iter().map(|&v| f64::from(v)).collect(),
                ),
            ];
            Case::new(label, AdamW { second_from, clips: !label.ends_with("clipped before") }, inputs)
        };
        vec![
            case("clipped", 1001, Some(1.0), 1.0, 1004),
            case("below the clip", 9, Some(100.0), 1.0, 0),
            case("no clip, scaled", 5, None, 1.0 / 1024.0, 4),
            case("two groups", 1001, Some(1.0), 1.0, 500),
            case("clipped before", 1001, Some(1.0), 0.5, 500),
        ]
    }

    fn in_place(&self, output: usize) -> Option<usize> {
        Some(output)
    }
}
