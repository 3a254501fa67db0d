//! Root mean square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467) of the rows of x `[T, d]`:
//! `y = x rstd weight`, `rstd = 1 / sqrt(mean(x^2) + eps)`. Outputs y `[T, d]`, to which a residual may be added, and rstd f32 `[T]`.
//! With a unit offset, 1 + weight stands for the weight: such weights start at zero, and decay towards one.
//!
//! With a weight `[w]` of which d is n times the width, every row is n rows of w, such as the heads of queries; rstd is `[T n]`.
//!
//! Gradients: `dx = rstd (w dy - x rstd^2 mean(w dy x))` overwrites, a residual may be added to it; `dweight = sum over rows of
//! dy x rstd`.

use super::{expect, expect_inputs, row_dispatch};
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, LANE, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("rms_norm");
const GRADIENT: Shader = crate::shader!("rms_norm_gradient");
const WEIGHT_GRADIENT: Shader = crate::shader!("rms_norm_weight_gradient");

/// The constants of a norm.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Norm {
    pub eps: f64,
    /// What multiplies is 1 + weight.
    pub unit_offset: bool,
}

/// Inputs x, weight, and a residual.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNorm {
    pub norm: Norm,
    /// The last input is added to y.
    pub residual: bool,
}

/// Inputs x, weight, rstd, dy, and a residual; output dx.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNormGradient {
    pub unit_offset: bool,
    /// Another gradient of x is added: that of the residual connection around the norm.
    pub residual: bool,
}

/// Inputs x, rstd, dy; output dweight f32 `[d]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNormWeightGradient;

pub fn rms_norm(graph: &mut Graph, x: Value, weight: Value, norm: Norm) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(RmsNorm { norm, residual: false }), &[x, weight])
}

/// What a weight multiplies by.
fn factor(unit_offset: bool, weight: f64) -> f64 {
    if unit_offset { 1.0 + weight } else { weight }
}

/// Rows of `width` in x.
fn part_rows(x: TensorType, width: usize) -> usize {
    x.rows() * (x.cols() / width)
}

impl Operation for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 2 + usize::from(self.residual))?;
        let (x, weight) = (inputs[0], inputs[1]);
        if let Some(residual) = inputs.get(2) {
            expect(self.name(), x == *residual, || format!("x {x} and residual {residual} differ"))?;
        }
        let width = weight.cols();
        // parts of rows begin where a group of four does
        let parts = width == x.cols() || (width.is_multiple_of(LANE) && x.cols().is_multiple_of(width));
        expect(self.name(), weight.shape == Shape::vector(width) && parts, || {
            format!("weight {weight} does not fit the rows of {x}")
        })?;
        Ok(vec![x, TensorType::new(Shape::vector(x.rows() * (x.cols() / width)), DType::F32)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dy) = node.gradients[0] else { return Ok(vec![None; node.inputs.len()]) };
        let (x, weight, rstd) = (node.inputs[0], node.inputs[1], node.outputs[1]);
        let dx = match node.wanted[0] {
            true => {
                let op = RmsNormGradient { unit_offset: self.norm.unit_offset, residual: false };
                Some(graph.apply1(Arc::new(op), &[x, weight, rstd, dy])?)
            }
            false => None,
        };
        let dweight = match node.wanted[1] {
            true => Some(graph.apply1(Arc::new(RmsNormWeightGradient), &[x, rstd, dy])?),
            false => None,
        };
        Ok([dx, dweight].into_iter().chain(self.residual.then_some(Some(dy))).collect())
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (x, keep) = (launch.inputs[0], launch.live[1]);
        let width = launch.inputs[1].cols();
        let mut dispatch = row_dispatch(SHADER, launch, part_rows(x, width), width.div_ceil(LANE))
            .flag("KEEP", keep)
            .flag("UNIT_OFFSET", self.norm.unit_offset)
            .flag("RESIDUAL", self.residual)
            .param_f32("cols", width as f64)
            .param_f32("eps", self.norm.eps)
            .read("x", Place::Input(0), x.dtype)
            .read("weight", Place::Input(1), launch.inputs[1].dtype)
            .write("y", Place::Output(0), x.dtype);
        if self.residual {
            dispatch = dispatch.read("residual", Place::Input(2), x.dtype);
        }
        if keep {
            dispatch = dispatch.write_scalar("rstd", Place::Output(1), DType::F32);
        }
        dispatch.cost(4.0 * x.shape.elements() as f64, launch.traffic()).into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (x, weight) = (&inputs[0], &inputs[1]);
        let width = weight.cols();
        let rstd = ReferenceTensor::from_fn(outputs[1].shape, |t| {
            let squares: f64 = x.data[t * width..][..width].iter().map(|v| v * v).sum();
            1.0 / (squares / width as f64 + self.norm.eps).sqrt()
        });
        let y = ReferenceTensor::from_fn(outputs[0].shape, |i| {
            let normed = x.data[i] * rstd.data[i / width];
            let residual = inputs.get(2).map_or(0.0, |residual| residual.data[i]);
            normed * factor(self.norm.unit_offset, weight.data[i % width]) + residual
        });
        vec![y, rstd]
    }

    fn with_residual(&self) -> Option<Arc<dyn Operation>> {
        (!self.residual).then(|| Arc::new(RmsNorm { residual: true, ..self.clone() }) as _)
    }

    fn cases() -> Vec<Case> {
        let op = || RmsNorm { norm: Norm { eps: 1e-5, unit_offset: false }, residual: false };
        let offset = |residual| RmsNorm { norm: Norm { eps: 1e-6, unit_offset: true }, residual };
        let inputs = |rows, cols, dtype| {
            vec![CaseInput::random(&[rows, cols], dtype), CaseInput::random(&[cols], DType::F32)]
        };
        let with_residual = |rows, cols, dtype| {
            inputs(rows, cols, dtype).into_iter().chain([CaseInput::random(&[rows, cols], dtype)]).collect()
        };
        let parts = |rows, parts, width, dtype| {
            vec![CaseInput::random(&[rows, parts * width], dtype), CaseInput::random(&[width], DType::F32)]
        };
        vec![
            Case::new("1x5", op(), inputs(1, 5, DType::F32)).gradients(&[0, 1]),
            Case::new("6x16", op(), inputs(6, 16, DType::F32)).gradients(&[0, 1]),
            Case::new("67x300", op(), inputs(67, 300, DType::F32)),
            Case::new("f16", op(), inputs(9, 64, DType::F16)),
            Case::new("bf16", op(), inputs(9, 64, DType::BF16)),
            Case::new("folded grid", op(), inputs(525_000, 4, DType::F32)),
            Case::new("parts", op(), parts(5, 3, 8, DType::F32)).gradients(&[0, 1]),
            Case::new("parts, bf16", op(), parts(37, 4, 64, DType::BF16)),
            Case::new("unit offset", offset(false), inputs(6, 18, DType::F32)).gradients(&[0, 1]),
            Case::new("unit offset, residual", offset(true), with_residual(5, 22, DType::F32))
                .gradients(&[0, 1, 2]),
            Case::new("residual, bf16", offset(true), with_residual(9, 64, DType::BF16)),
        ]
    }
}

impl Operation for RmsNormGradient {
    fn name(&self) -> &'static str {
        "rms_norm_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 4 + usize::from(self.residual))?;
        for (name, other) in ["dy", "residual"].into_iter().zip(&inputs[3..]) {
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
        let (x, width) = (launch.inputs[0], launch.inputs[1].cols());
        let mut dispatch = row_dispatch(GRADIENT, launch, part_rows(x, width), width.div_ceil(LANE))
            .flag("UNIT_OFFSET", self.unit_offset)
            .flag("RESIDUAL", self.residual)
            .param_f32("cols", width as f64)
            .read("x", Place::Input(0), x.dtype)
            .read("weight", Place::Input(1), launch.inputs[1].dtype)
            .read_scalar("rstd", Place::Input(2), DType::F32)
            .read("dy", Place::Input(3), x.dtype);
        if self.residual {
            dispatch = dispatch.read("residual", Place::Input(4), x.dtype);
        }
        dispatch
            .write("gradient", Place::Output(0), x.dtype)
            .cost(8.0 * x.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (x, weight, rstd, dy) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
        let mut dx = ReferenceTensor::zeros(outputs[0].shape);
        let width = weight.cols();
        for (t, out) in dx.data.chunks_mut(width).enumerate() {
            let r = rstd.data[t];
            let part = |of: &ReferenceTensor| of.data[t * width..][..width].to_vec();
            let (x, dy) = (part(x), part(dy));
            let weight: Vec<f64> = weight.data.iter().map(|w| factor(self.unit_offset, *w)).collect();
            let products = x.iter().zip(&dy).zip(&weight).map(|((x, dy), w)| x * dy * w);
            let mean = products.sum::<f64>() / width as f64;
            for (i, out) in out.iter_mut().enumerate() {
                let residual = inputs.get(4).map_or(0.0, |residual| residual.data[t * width + i]);
                *out = r * (weight[i] * dy[i] - x[i] * r * r * mean) + residual;
            }
        }
        vec![dx]
    }

    fn with_residual(&self) -> Option<Arc<dyn Operation>> {
        (!self.residual).then(|| Arc::new(RmsNormGradient { residual: true, ..self.clone() }) as _)
    }

    fn cases() -> Vec<Case> {
        let whole = [(3, 7, DType::F32), (65, 130, DType::F32), (9, 64, DType::F16), (9, 64, DType::BF16)];
        let parts = [(5, 3, 8, DType::F32), (9, 2, 64, DType::BF16)];
        let whole = whole.into_iter().map(|(rows, cols, dtype)| (rows, 1, cols, dtype));
        whole
            .chain(parts)
            .flat_map(|(rows, parts, width, dtype)| {
                let cols = parts * width;
                let mut inputs = vec![
                    CaseInput::random(&[rows, cols], dtype),
                    CaseInput::random(&[width], DType::F32),
                    CaseInput::random(&[rows * parts], DType::F32),
                    CaseInput::random(&[rows, cols], dtype),
                ];
                let label = format!("{rows}x{cols} of {width} {dtype}");
                let op = |unit_offset, residual| RmsNormGradient { unit_offset, residual };
                let plain = Case::new(label.clone(), op(false, false), inputs.clone());
                let offset = Case::new(format!("{label}, unit offset"), op(true, false), inputs.clone());
                inputs.push(CaseInput::random(&[rows, cols], dtype));
                [plain, offset, Case::new(format!("{label}, residual"), op(false, true), inputs)]
            })
            .collect()
    }
}

/// The width of the parts of x, each of which has a number in `rstd`.
fn part_width(x: TensorType, rstd: TensorType) -> usize {
    x.cols() / (rstd.cols() / x.rows()).max(1)
}

impl Operation for RmsNormWeightGradient {
    fn name(&self) -> &'static str {
        "rms_norm_weight_gradient"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 3)?;
        let width = part_width(inputs[0], inputs[1]);
        Ok(vec![TensorType::new(Shape::vector(width), DType::F32)])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2])?;
        Ok(vec![None; 3])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (x, width) = (launch.inputs[0], launch.outputs[0].cols());
        Dispatch::new(WEIGHT_GRADIENT, width.div_ceil(LANE))
            .flag("ACCUMULATE", launch.accumulate[0])
            .param("rows", part_rows(x, width))
            .param("cols4", width.div_ceil(LANE))
            .read("x", Place::Input(0), x.dtype)
            .read_scalar("rstd", Place::Input(1), DType::F32)
            .read("dy", Place::Input(2), launch.inputs[2].dtype)
            .write("gradient", Place::Output(0), DType::F32)
            .cost(3.0 * x.shape.elements() as f64, launch.traffic())
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (x, rstd, dy) = (&inputs[0], &inputs[1], &inputs[2]);
        let mut dweight = ReferenceTensor::zeros(outputs[0].shape);
        for (i, (x, dy)) in x.data.iter().zip(&dy.data).enumerate() {
            let cols = dweight.cols();
            dweight.data[i % cols] += x * dy * rstd.data[i / cols];
        }
        vec![dweight]
    }

    fn cases() -> Vec<Case> {
        [(1, 1, 4, DType::F32), (131, 1, 9, DType::F32), (70, 1, 12, DType::BF16), (70, 3, 8, DType::F32)]
            .into_iter()
            .map(|(rows, parts, width, dtype)| {
                let cols = parts * width;
                let inputs = vec![
                    CaseInput::random(&[rows, cols], dtype),
                    CaseInput::random(&[rows * parts], DType::F32),
                    CaseInput::random(&[rows, cols], dtype),
                ];
                Case::new(format!("{rows}x{cols} of {width} {dtype}"), RmsNormWeightGradient, inputs)
            })
            .collect()
    }

    fn accumulates(&self, _output: usize) -> bool {
        true
    }
}
