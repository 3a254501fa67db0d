//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the half-split form of Llama.
//!
//! x `[T, heads * head_dim]`, positions `[T]`, table `[positions, head_dim]` (cosines, then sines); pairs
//! (j, j + head_dim/2) of each head turn by the position's angle. Gradient: the opposite turn of `dy`.

use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("rope");

#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub inverse: bool,
}

pub fn rope(graph: &mut Graph, x: Value, positions: Value, table: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(Rope { inverse: false }), &[x, positions, table])
}

/// Cosines and sines of `positions` rows, row-major `[positions, 2 * inverse_frequencies.len()]`.
///
/// The angle is rounded to f32 before cos and sin, as transformers computes it.
pub fn rope_table(inverse_frequencies: &[f32], positions: usize) -> Vec<f32> {
    (0..positions)
        .flat_map(|p| {
            let angles = move |f: &f32| f64::from(p as f32 * f);
            let cosines = inverse_frequencies.iter().map(angles).map(|a| a.cos() as f32);
            cosines.chain(inverse_frequencies.iter().map(angles).map(|a| a.sin() as f32))
        })
        .collect()
}

impl Operation for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 3)?;
        let head_dim = inputs[2].cols();
        expect(self.name(), head_dim.is_multiple_of(8) && inputs[0].cols().is_multiple_of(head_dim), || {
            format!(
                "head dimension {head_dim} must be a multiple of 8 and divide the width {}",
                inputs[0].cols()
            )
        })?;
        expect(self.name(), inputs[1].dtype == DType::U32 && inputs[1].cols() == inputs[0].rows(), || {
            format!("positions {} do not fit {}", inputs[1], inputs[0])
        })?;
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[1, 2])?;
        let op = Arc::new(Rope { inverse: !self.inverse });
        let dx = node.gradients[0]
            .map(|dy| graph.apply1(op, &[dy, node.inputs[1], node.inputs[2]]))
            .transpose()?;
        Ok(vec![dx, None, None])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (ty, head_dim) = (launch.outputs[0], launch.inputs[2].cols());
        elementwise(SHADER, ty.rows() * ty.cols() / 8)
            .flag("INVERSE", self.inverse)
            .define("HALF4", (head_dim / 8) as u32)
            .define("HEADS", (ty.cols() / head_dim) as u32)
            .read("x", Place::Input(0), ty.dtype)
            .read_scalar("positions", Place::Input(1), DType::U32)
            .read("table", Place::Input(2), DType::F32)
            .write("y", Place::Output(0), ty.dtype)
            .cost(3.0 * ty.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let head_dim = inputs[2].cols();
        let half = head_dim / 2;
        let mut y = ReferenceTensor::zeros(outputs[0].shape);
        for t in 0..y.rows() {
            let (x, angle) = (inputs[0].row(t), inputs[2].row(inputs[1].index(t)));
            for (i, out) in y.row_mut(t).iter_mut().enumerate() {
                let (head, j) = (i - i % head_dim, i % head_dim);
                let sine = angle[half + j % half] * if self.inverse { -1.0 } else { 1.0 };
                let partner = if j < half { -x[head + j + half] } else { x[head + j - half] };
                *out = x[i] * angle[j % half] + partner * sine;
            }
        }
        vec![y]
    }

    fn cases() -> Vec<Case> {
        let table: Vec<f64> = rope_table(&[1.0, 0.3, 0.1, 0.01], 9).into_iter().map(f64::from).collect();
        let inputs = |dtype| {
            vec![
                CaseInput::random(&[5, 24], dtype),
                CaseInput::indices([0, 1, 8, 0, 3]),
                CaseInput::values(&[9, 8], DType::F32, table.clone()),
            ]
        };
        vec![
            Case::new("f32", Rope { inverse: false }, inputs(DType::F32)).gradients(&[0]),
            Case::new("inverse", Rope { inverse: true }, inputs(DType::F32)).gradients(&[0]),
            Case::new("f16", Rope { inverse: false }, inputs(DType::F16)),
            Case::new("bf16", Rope { inverse: false }, inputs(DType::BF16)),
        ]
    }
}
