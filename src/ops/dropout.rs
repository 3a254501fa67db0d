//! Dropout: each element is zeroed with probability p, the others scaled by 1 / (1 - p).
//!
//! The mask is a hash of (rng, key, element): `rng` `[4]` changes with every micro-batch, `key` tells the places of one
//! network apart. Recomputation and the gradient see the same mask. Gradient: the same mask on `dy`.

use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("dropout");

#[derive(Clone, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zeroing, in [0, 1).
    pub p: f64,
    pub key: u32,
}

/// Appends dropout of x with the generator state `rng` (u32 `[4]`).
pub fn dropout(graph: &mut Graph, x: Value, rng: Value, p: f64, key: u32) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Dropout { p, key }), &[x, rng])
}

/// Integer hash with full avalanche (lowbias32, C. Wellons, "Prospecting for Hash Functions", 2018).
fn mix(value: u32) -> u32 {
    let mut h = value;
    h = (h ^ (h >> 16)).wrapping_mul(0x7feb_352d);
    h = (h ^ (h >> 15)).wrapping_mul(0x846c_a68b);
    h ^ (h >> 16)
}

impl Dropout {
    /// An element is zeroed where its 24 random bits are below this.
    fn threshold(&self) -> u32 {
        (self.p * f64::from(1 << 24)).round() as u32
    }

    fn keeps(&self, rng: &[u32; 3], element: u32) -> bool {
        let bits = mix(mix(mix(mix(element ^ rng[0]).wrapping_add(rng[1])) ^ rng[2]).wrapping_add(self.key));
        bits >> 8 >= self.threshold()
    }
}

impl Operation for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 2)?;
        expect(self.name(), (0.0..1.0).contains(&self.p), || format!("p is {}, not in [0, 1)", self.p))?;
        expect(self.name(), inputs[1].dtype == DType::U32 && inputs[1].cols() == 4, || {
            "rng is u32 [4]".into()
        })?;
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let dx = node.gradients[0]
            .map(|dy| graph.apply1(Arc::new(self.clone()), &[dy, node.inputs[1]]))
            .transpose()?;
        Ok(vec![dx, None])
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        elementwise(SHADER, ty.rows() * ty.cols4())
            .param("key", self.key as usize)
            .param("threshold", self.threshold() as usize)
            .param_f32("scale", 1.0 / (1.0 - self.p))
            .read("x", Place::Input(0), ty.dtype)
            .read_scalar("rng", Place::Input(1), DType::U32)
            .write("y", Place::Output(0), ty.dtype)
            .cost(ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let rng = [0, 1, 2].map(|i| inputs[1].data[i] as u32);
        let (cols, stride) = (outputs[0].cols(), outputs[0].cols4() * 4);
        vec![ReferenceTensor::from_fn(outputs[0].shape, |i| {
            // the device counts elements with their padding
            let element = (i / cols * stride + i % cols) as u32;
            if self.keeps(&rng, element) { inputs[0].data[i] / (1.0 - self.p) } else { 0.0 }
        })]
    }

    fn cases() -> Vec<Case> {
        let inputs = |dtype| vec![CaseInput::random(&[19, 33], dtype), CaseInput::indices([1337, 9, 2, 0])];
        vec![
            Case::new("f32", Dropout { p: 0.25, key: 3 }, inputs(DType::F32)).gradients(&[0]),
            Case::new("bf16", Dropout { p: 0.5, key: 4 }, inputs(DType::BF16)),
            Case::new("p = 0", Dropout { p: 0.0, key: 0 }, inputs(DType::F32)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_the_stated_share() {
        let op = Dropout { p: 0.1, key: 7 };
        let kept = (0..100_000).filter(|&e| op.keeps(&[1, 2, 3], e)).count();
        assert!((89_500..90_500).contains(&kept), "{kept} of 100,000 kept at p = 0.1");
    }
}
