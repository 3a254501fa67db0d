//! Dropout: each element is zeroed with probability p, the others scaled by 1 / (1 - p).
//!
//! The mask is a hash of (rng, key, element): `rng` `[4]` changes with every micro-batch, `key` tells the places of one
//! network apart. Recomputation and the gradient see the same mask. Gradient: the same mask on `dy`. Products can make the
//! mask as they read or store ([`super::matmul::Masked`]), so that no masked copy is kept.

use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("dropout");

#[derive(Clone, Copy, Debug, PartialEq)]
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

    /// What all elements of a tensor share, as `shaders/shared/dropout.wgsl` makes it.
    fn seed(&self, rng: &[u32; 3]) -> [u32; 2] {
        let state = mix(mix(mix(rng[0].wrapping_add(self.key)) ^ rng[1]).wrapping_add(rng[2]));
        [state, mix(state ^ 0x9e37_79b9)]
    }

    fn keeps(&self, seed: [u32; 2], element: u32) -> bool {
        let bits = mix(mix(element ^ seed[0]).wrapping_add(seed[1]));
        bits >> 8 >= self.threshold()
    }

    /// The parameters of a kernel that makes the mask from a binding `rng`.
    pub(crate) fn mask(&self, dispatch: Dispatch, rng: Place) -> Dispatch {
        dispatch
            .param("key", self.key as usize)
            .param("threshold", self.threshold() as usize)
            .param_f32("keep_scale", 1.0 / (1.0 - self.p))
            .read_scalar("rng", rng, DType::U32)
    }

    /// `x` with the mask of the generator's state `rng`, in f64.
    pub(crate) fn masked(&self, x: &ReferenceTensor, rng: &ReferenceTensor) -> ReferenceTensor {
        let seed = self.seed(&[0, 1, 2].map(|i| rng.data[i] as u32));
        let (cols, stride) = (x.cols(), x.shape.cols4() * 4);
        ReferenceTensor::from_fn(x.shape, |i| {
            // the device counts elements with their padding
            let element = (i / cols * stride + i % cols) as u32;
            if self.keeps(seed, element) { x.data[i] / (1.0 - self.p) } else { 0.0 }
        })
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
        let dx =
            node.gradients[0].map(|dy| graph.apply1(Arc::new(*self), &[dy, node.inputs[1]])).transpose()?;
        Ok(vec![dx, None])
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let ty = launch.outputs[0];
        self.mask(elementwise(SHADER, ty.rows() * ty.cols4()), Place::Input(1))
            .read("x", Place::Input(0), ty.dtype)
            .write("y", Place::Output(0), ty.dtype)
            .cost(ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], _outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        vec![self.masked(&inputs[0], &inputs[1])]
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
        let seed = op.seed(&[1, 2, 3]);
        let kept = (0..100_000).filter(|&e| op.keeps(seed, e)).count();
        assert!((89_500..90_500).contains(&kept), "{kept} of 100,000 kept at p = 0.1");
    }
}
