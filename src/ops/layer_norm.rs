//! Layer normalisation (Ba et al. 2016, arXiv:1607.06450) of the rows of x `[T, d]`: `y = n weight + bias`, `n = (x - mean) rstd`,
//! `rstd = 1 / sqrt(variance + eps)`. Outputs y `[T, d]`, and mean and rstd, f32 `[T]`.
//!
//! Gradients: `dx = rstd (w dy - mean(w dy) - n mean(w dy n))` overwrites, a residual may be added to it; `dweight = sum over rows
//! of dy n`; that of the bias is [`BiasGradient`].

use super::bias::BiasGradient;
use super::{expect, expect_inputs, row_dispatch};
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, LANE, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("layer_norm");
const GRADIENT: Shader = crate::shader!("layer_norm_gradient");
const WEIGHT_GRADIENT: Shader = crate::shader!("layer_norm_weight_gradient");

/// Inputs x, weight, bias.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    pub eps: f64,
}

/// Inputs x, weight, mean, rstd, dy, and a residual; output dx.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormGradient {
    /// Another gradient of x is added: that of the residual connection around the norm.
    pub residual: bool,
}

/// Inputs x, mean, rstd, dy; output dweight f32 `[d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNormWeightGradient;

/// The normalised rows of x `[T, d]` times weight plus bias, both `[d]`.
///
/// # Errors
/// Vectors that do not fit x.
pub fn layer_norm(
    graph: &mut Graph,
    x: Value,
    weight: Value,
    bias: Value,
    eps: f64,
) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(LayerNorm { eps }), &[x, weight, bias])
}

/// A dispatch over the rows of x.
fn over_rows(shader: Shader, launch: &Launch<'_>) -> Dispatch {
    let x = launch.inputs[0];
    row_dispatch(shader, launch, x.rows(), x.cols4())
        .flag("PARTIAL", !x.cols().is_multiple_of(LANE))
        .param("cols", x.cols())
}

impl Operation for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 3)?;
        let x = inputs[0];
        for (name, vector) in [("weight", inputs[1]), ("bias", inputs[2])] {
            expect(self.name(), vector.shape == Shape::vector(x.cols()), || {
                format!("{name} {vector} does not fit the rows of {x}")
            })?;
        }
        let of_rows = TensorType::new(Shape::vector(x.rows()), DType::F32);
        Ok(vec![x, of_rows, of_rows])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dy) = node.gradients[0] else { return Ok(vec![None; 3]) };
        let (x, weight, mean, rstd) = (node.inputs[0], node.inputs[1], node.outputs[1], node.outputs[2]);
        let dx = match node.wanted[0] {
            true => {
                let op = LayerNormGradient { residual: false };
                Some(graph.apply1(Arc::new(op), &[x, weight, mean, rstd, dy])?)
            }
            false => None,
        };
        let dweight = match node.wanted[1] {
            true => Some(graph.apply1(Arc::new(LayerNormWeightGradient), &[x, mean, rstd, dy])?),
            false => None,
        };
        let dbias = match node.wanted[2] {
            true => Some(graph.apply1(Arc::new(BiasGradient), &[dy])?),
            false => None,
        };
        Ok(vec![dx, dweight, dbias])
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let x = launch.inputs[0];
        // whoever reads one reads both
        let keep = launch.live[1] && launch.live[2];
        let mut dispatch = over_rows(SHADER, launch)
            .flag("KEEP", keep)
            .param_f32("eps", self.eps)
            .read("x", Place::Input(0), x.dtype)
            .read("weight", Place::Input(1), launch.inputs[1].dtype)
            .read("bias", Place::Input(2), launch.inputs[2].dtype)
            .write("y", Place::Output(0), x.dtype);
        if keep {
            dispatch = dispatch.write_scalar("mean", Place::Output(1), DType::F32).write_scalar(
                "rstd",
                Place::Output(2),
                DType::F32,
            );
        }
        dispatch.cost(8.0 * x.shape.elements() as f64, launch.traffic()).into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (x, weight, bias) = (&inputs[0], &inputs[1], &inputs[2]);
        let cols = x.cols();
        let mean = ReferenceTensor::from_fn(outputs[1].shape, |t| x.row(t).iter().sum::<f64>() / cols as f64);
        let rstd = ReferenceTensor::from_fn(outputs[2].shape, |t| {
            let squares: f64 = x.row(t).iter().map(|v| (v - mean.data[t]).powi(2)).sum();
            1.0 / (squares / cols as f64 + self.eps).sqrt()
        });
        let y = ReferenceTensor::from_fn(outputs[0].shape, |i| {
            let normed = (x.data[i] - mean.data[i / cols]) * rstd.data[i / cols];
            normed * weight.data[i % cols] + bias.data[i % cols]
        });
        vec![y, mean, rstd]
    }

    fn cases() -> Vec<Case> {
        let op = || LayerNorm { eps: 1e-5 };
        let inputs = |rows, cols, dtype| {
            vec![
                CaseInput::random(&[rows, cols], dtype),
                CaseInput::random(&[cols], DType::F32),
                CaseInput::random(&[cols], DType::F32),
            ]
        };
        // a mean that is far from zero: its square would drown the variance
        let far = CaseInput::values(
            &[2, 4],
            DType::F32,
            vec![1e4, 1e4 + 1.0, 1e4 + 2.0, 1e4 + 4.0, 0.0, 0.0, 0.0, 0.0],
        );
        let far = vec![far, CaseInput::random(&[4], DType::F32), CaseInput::random(&[4], DType::F32)];
        vec![
            Case::new("1x5", op(), inputs(1, 5, DType::F32)).gradients(&[0, 1, 2]),
            Case::new("6x16", op(), inputs(6, 16, DType::F32)).gradients(&[0, 1, 2]),
            Case::new("67x301", op(), inputs(67, 301, DType::F32)),
            Case::new("f16", op(), inputs(9, 64, DType::F16)),
            Case::new("bf16", op(), inputs(9, 64, DType::BF16)),
            Case::new("folded grid", op(), inputs(525_000, 4, DType::F32)),
            Case::new("far from zero", op(), far),
        ]
    }
}

impl Operation for LayerNormGradient {
    fn name(&self) -> &'static str {
        "layer_norm_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 5 + usize::from(self.residual))?;
        for (name, other) in ["dy", "residual"].into_iter().zip(&inputs[4..]) {
            expect(self.name(), inputs[0] == *other, || {
                format!("x {} and {name} {other} differ", inputs[0])
            })?;
        }
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &(0..node.inputs.len()).collect::<Vec<_>>())?;
        Ok(vec![None; node.inputs.len()])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let x = launch.inputs[0];
        let mut dispatch = over_rows(GRADIENT, launch)
            .flag("RESIDUAL", self.residual)
            .read("x", Place::Input(0), x.dtype)
            .read("weight", Place::Input(1), launch.inputs[1].dtype)
            .read_scalar("mean", Place::Input(2), DType::F32)
            .read_scalar("rstd", Place::Input(3), DType::F32)
            .read("dy", Place::Input(4), x.dtype);
        if self.residual {
            dispatch = dispatch.read("residual", Place::Input(5), x.dtype);
        }
        dispatch
            .write("gradient", Place::Output(0), x.dtype)
            .cost(12.0 * x.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (x, weight, mean, rstd, dy) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3], &inputs[4]);
        let mut dx = ReferenceTensor::zeros(outputs[0].shape);
        let cols = x.cols();
        for (t, out) in dx.data.chunks_mut(cols).enumerate() {
            let normed = |i: usize| (x.row(t)[i] - mean.data[t]) * rstd.data[t];
            let scaled = |i: usize| weight.data[i] * dy.row(t)[i];
            let shift = (0..cols).map(scaled).sum::<f64>() / cols as f64;
            let pull = (0..cols).map(|i| scaled(i) * normed(i)).sum::<f64>() / cols as f64;
            for (i, out) in out.iter_mut().enumerate() {
                let residual = inputs.get(5).map_or(0.0, |residual| residual.row(t)[i]);
                *out = rstd.data[t] * (scaled(i) - shift - normed(i) * pull) + residual;
            }
        }
        vec![dx]
    }

    fn with_residual(&self) -> Option<Arc<dyn Operation>> {
        (!self.residual).then(|| Arc::new(LayerNormGradient { residual: true }) as _)
    }

    fn cases() -> Vec<Case> {
        [(3, 7, DType::F32), (65, 130, DType::F32), (9, 64, DType::F16), (9, 64, DType::BF16)]
            .into_iter()
            .flat_map(|(rows, cols, dtype)| {
                let mut inputs = vec![
                    CaseInput::random(&[rows, cols], dtype),
                    CaseInput::random(&[cols], DType::F32),
                    CaseInput::random(&[rows], DType::F32),
                    CaseInput::random(&[rows], DType::F32),
                    CaseInput::random(&[rows, cols], dtype),
                ];
                let label = format!("{rows}x{cols} {dtype}");
                let plain = Case::new(label.clone(), LayerNormGradient { residual: false }, inputs.clone());
                inputs.push(CaseInput::random(&[rows, cols], dtype));
                let op = LayerNormGradient { residual: true };
                [plain, Case::new(format!("{label}, residual"), op, inputs)]
            })
            .collect()
    }
}

impl Operation for LayerNormWeightGradient {
    fn name(&self) -> &'static str {
        "layer_norm_weight_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 4)?;
        expect(self.name(), inputs[0].shape == inputs[3].shape, || {
            format!("x {} and dy {} differ", inputs[0], inputs[3])
        })?;
        Ok(vec![TensorType::new(Shape::vector(inputs[0].cols()), DType::F32)])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2, 3])?;
        Ok(vec![None; 4])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let x = launch.inputs[0];
        Dispatch::new(WEIGHT_GRADIENT, x.cols4())
            .flag("ACCUMULATE", launch.accumulate[0])
            .param("rows", x.rows())
            .param("cols4", x.cols4())
            .read("x", Place::Input(0), x.dtype)
            .read_scalar("mean", Place::Input(1), DType::F32)
            .read_scalar("rstd", Place::Input(2), DType::F32)
            .read("dy", Place::Input(3), launch.inputs[3].dtype)
            .write("gradient", Place::Output(0), DType::F32)
            .cost(4.0 * x.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (x, mean, rstd, dy) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
        let mut dweight = ReferenceTensor::zeros(outputs[0].shape);
        let cols = x.cols();
        for (i, (x, dy)) in x.data.iter().zip(&dy.data).enumerate() {
            dweight.data[i % cols] += (x - mean.data[i / cols]) * rstd.data[i / cols] * dy;
        }
        vec![dweight]
    }

    fn cases() -> Vec<Case> {
        [(1, 4, DType::F32), (131, 8, DType::F32), (70, 12, DType::BF16)]
            .into_iter()
            .map(|(rows, cols, dtype)| {
                let inputs = vec![
                    CaseInput::random(&[rows, cols], dtype),
                    CaseInput::random(&[rows], DType::F32),
                    CaseInput::random(&[rows], DType::F32),
                    CaseInput::random(&[rows, cols], dtype),
                ];
                Case::new(format!("{rows}x{cols} {dtype}"), LayerNormWeightGradient, inputs)
            })
            .collect()
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }
}
