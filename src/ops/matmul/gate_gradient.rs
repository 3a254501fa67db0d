//! A product that is the gradient of a gated activation: of it come those of gate and up, as it is stored.
//!
//! The product is y's gradient in [`crate::ops::glu`]; both results overwrite. Made by [`crate::fuse`] after differentiation: no gradient.

use super::{Gate, Layout, MaskOn, Masked, Matmul, Operand};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, TensorType, Value,
};
use crate::ops::activation::Activation;
use crate::ops::dropout::Dropout;
use crate::ops::expect;
use crate::ops::glu::GluGradient;

/// Inputs gate, up, and those of the product; outputs dgate, dup.
#[derive(Clone, Debug, PartialEq)]
pub struct GateGradient {
    pub product: Matmul,
    pub activation: Activation,
}

impl Operation for GateGradient {
    fn name(&self) -> &'static str {
        "matmul_gate_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        let [gate, up, product @ ..] = inputs else {
            return Err(GraphError::invalid(self.name(), "takes gate, up and the operands of a product"));
        };
        let plain = !self.product.bias && !self.product.residual && self.product.gated.is_none();
        expect(self.name(), plain, || "nothing is added to the product or gates it".into())?;
        let made = self.product.infer(product)?;
        expect(self.name(), *gate == made[0] && *up == made[0], || {
            format!("gate {gate}, up {up} and the product {} differ", made[0])
        })?;
        Ok(vec![*gate, *up])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &(0..node.inputs.len()).collect::<Vec<_>>())?;
        Ok(vec![None; node.inputs.len()])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let gate = Gate {
            gate: Operand::input(launch, 0),
            up: Operand::input(launch, 1),
            d_up: Operand::new(Place::Output(1), self.product.dtype),
            replaces: [launch.replaces[0], launch.replaces[1]],
        };
        self.product.launch_after(2, launch, Some((gate, self.activation)))
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let dy = self.product.reference(&inputs[2..], &outputs[..1]).swap_remove(0);
        GluGradient { activation: self.activation }
            .reference(&[inputs[0].clone(), inputs[1].clone(), dy], outputs)
    }

    fn may_replace(&self, output: usize) -> Option<usize> {
        Some(output)
    }

    fn cases() -> Vec<Case> {
        let (f32, f16, bf16, nf4) = (DType::F32, DType::F16, DType::BF16, DType::Nf4);
        // narrow results too, whose long side would give the columns otherwise; whole tiles for matrix units
        let (silu, gelu) = (Activation::Silu, Activation::GeluTanh);
        [
            (silu, f32, f32, 37, 44, 52),
            (silu, bf16, bf16, 40, 8, 33),
            (silu, f16, f16, 64, 128, 48),
            (silu, bf16, nf4, 35, 132, 64),
            (gelu, f16, f16, 64, 128, 48),
        ]
        .into_iter()
        .flat_map(|(activation, dtype, other, m, n, k)| {
            let gate = CaseInput { spread: 4.0, ..CaseInput::random(&[m, n], dtype) };
            let up = CaseInput::random(&[m, n], dtype);
            let pair = [CaseInput::random(&[m, k], dtype), CaseInput::random(&[k, n], other)];
            let second = [[m, 6], [6, n]].map(|dims| CaseInput::random(&dims, f32));
            let alone: Vec<CaseInput> = [gate, up].into_iter().chain(pair).collect();
            let widened: Vec<CaseInput> = alone.iter().cloned().chain(second).collect();
            let op = || GateGradient { product: Matmul::plain(Layout::NN, 1.0, dtype), activation };
            let label = format!("{activation:?} {m}x{n}x{k} {other} on {dtype}");
            let mut dropped = widened.clone();
            dropped.push(CaseInput::indices([7, 1, 4, 0]));
            let mask = Masked { dropout: Dropout { p: 0.25, key: 5 }, on: MaskOn::Pair };
            let masked = GateGradient { product: Matmul { mask: Some(mask), ..op().product }, activation };
            let mut cases = vec![
                Case::new(format!("{label}, pair"), op(), widened),
                Case::new(label.clone(), op(), alone),
            ];
            if other != f32 && m != 40 {
                cases.push(Case::new(format!("{label}, dropout on the pair"), masked, dropped));
            }
            cases
        })
        .collect()
    }
}
