//! Columns in parts: [`SplitColumns`] gives each part of the columns of x `[T, d]`, one after the other, as a tensor of its own,
//! [`JoinColumns`] puts tensors `[T, w]` side by side, zeros in the place of those that are not there. Every width is a multiple of
//! four. Each is the gradient of the other; all are overwritten. Parts can also lie head by head: then x is taken as `[T heads, d / heads]`, and each
//! part as `[T heads, w]`.

use super::{FILL, elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, LANE, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("split_columns");

/// Input x; an output for each width.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitColumns {
    /// Within a head.
    pub widths: Vec<usize>,
    /// 1 where every part lies together.
    pub heads: usize,
}

/// An input for each width that is there; output y of all widths together.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinColumns {
    /// Within a head, each with whether its part is there.
    pub widths: Vec<(usize, bool)>,
    pub heads: usize,
}

/// The columns of each of x's heads in parts of these widths, which are all of them.
///
/// # Errors
/// Widths that x does not have.
pub fn split_columns(
    graph: &mut Graph,
    x: Value,
    widths: &[usize],
    heads: usize,
) -> Result<Vec<Value>, GraphError> {
    graph.apply(Arc::new(SplitColumns { widths: widths.to_vec(), heads }), &[x])
}

/// `[T, heads w]` as `[T heads, w]`, which lie alike.
fn by_head(ty: TensorType, heads: usize) -> TensorType {
    TensorType::new(Shape::matrix(ty.rows() * heads, ty.cols() / heads), ty.dtype)
}

/// Moves so many columns from one column on to another column on.
fn moved(
    (x, from, x_type): (Place, usize, TensorType),
    (y, to, y_type): (Place, usize, TensorType),
    width: usize,
) -> Dispatch {
    let groups = x_type.rows() * width / LANE;
    elementwise(SHADER, groups)
        .param("width4", width / LANE)
        .param("x_cols4", x_type.cols4())
        .param("y_cols4", y_type.cols4())
        .param("x_first", from / LANE)
        .param("y_first", to / LANE)
        .read("x", x, x_type.dtype)
        .write("y", y, y_type.dtype)
        .cost(0.0, 2.0 * (4 * groups * x_type.dtype.size()) as f64)
}

/// The first column of each part.
fn firsts(widths: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    widths.scan(0, |next, width| {
        let first = *next;
        *next += width;
        Some(first)
    })
}

impl Operation for SplitColumns {
    fn name(&self) -> &'static str {
        "split_columns"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 1)?;
        let x = inputs[0];
        let whole = self.widths.iter().all(|width| *width > 0 && width.is_multiple_of(LANE));
        let fit = x.dtype.is_float() && whole && self.heads * self.widths.iter().sum::<usize>() == x.cols();
        expect(self.name(), fit, || format!("{:?} are not the widths of parts of {x}", self.widths))?;
        let part = |width: &usize| TensorType::new(Shape::matrix(x.rows(), self.heads * width), x.dtype);
        Ok(self.widths.iter().map(part).collect())
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let parts: Vec<Value> = node.gradients.iter().copied().flatten().collect();
        if parts.is_empty() {
            return Ok(vec![None]);
        }
        let there = node.gradients.iter().map(Option::is_some);
        let op = JoinColumns { widths: self.widths.iter().copied().zip(there).collect(), heads: self.heads };
        Ok(vec![Some(graph.apply1(Arc::new(op), &parts)?)])
    }

    fn is_cheap(&self) -> bool {
        true
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let x = by_head(launch.inputs[0], self.heads);
        let parts = firsts(self.widths.iter().copied()).zip(&self.widths).enumerate();
        let dispatches = parts.filter(|(part, _)| launch.live[*part]).map(|(part, (first, &width))| {
            let to = by_head(launch.outputs[part], self.heads);
            moved((Place::Input(0), first, x), (Place::Output(part), 0, to), width)
        });
        LaunchPlan { dispatches: dispatches.collect(), ..LaunchPlan::default() }
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let (x, whole) = (&inputs[0].data, inputs[0].cols() / self.heads);
        let part = |(first, ty): (usize, &TensorType)| {
            let width = ty.cols() / self.heads;
            ReferenceTensor::from_fn(ty.shape, |i| x[i / width * whole + first + i % width])
        };
        firsts(self.widths.iter().copied()).zip(outputs).map(part).collect()
    }

    fn cases() -> Vec<Case> {
        let case = |label: &str, rows: usize, heads: usize, widths: &[usize], dtype| {
            let inputs = vec![CaseInput::random(&[rows, heads * widths.iter().sum::<usize>()], dtype)];
            Case::new(label, SplitColumns { widths: widths.to_vec(), heads }, inputs).gradients(&[0])
        };
        vec![
            case("three", 5, 1, &[8, 4, 4], DType::F32),
            case("f16", 7, 1, &[64, 32], DType::F16),
            case("bf16, over a workgroup", 50, 1, &[40, 12, 100], DType::BF16),
            case("by head", 5, 3, &[8, 8, 8], DType::F32),
        ]
    }
}

impl Operation for JoinColumns {
    fn name(&self) -> &'static str {
        "join_columns"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        let there: Vec<usize> =
            self.widths.iter().filter(|(_, there)| *there).map(|(width, _)| *width).collect();
        expect(self.name(), !there.is_empty(), || "takes one part at least".into())?;
        expect_inputs(self.name(), inputs, there.len())?;
        let (rows, dtype) = (inputs[0].rows(), inputs[0].dtype);
        let part = |width: usize| TensorType::new(Shape::matrix(rows, self.heads * width), dtype);
        let whole = self.widths.iter().all(|(width, _)| width.is_multiple_of(LANE));
        let fit =
            dtype.is_float() && whole && inputs.iter().zip(&there).all(|(ty, &width)| *ty == part(width));
        expect(self.name(), fit, || format!("{inputs:?} do not fit {:?}", self.widths))?;
        Ok(vec![part(self.widths.iter().map(|(width, _)| width).sum())])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dy) = node.gradients[0] else { return Ok(vec![None; node.inputs.len()]) };
        let widths: Vec<usize> = self.widths.iter().map(|(width, _)| *width).collect();
        let parts = split_columns(graph, dy, &widths, self.heads)?;
        let there = parts.into_iter().zip(&self.widths).filter(|(_, (_, there))| *there);
        Ok(there.map(|(part, _)| Some(part)).collect())
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let y = launch.outputs[0];
        let mut plan = LaunchPlan::default();
        if self.widths.iter().any(|(_, there)| !there) {
            let zero = elementwise(FILL, y.rows() * y.cols4()).write("y", Place::Output(0), y.dtype);
            plan.dispatches.push(zero.cost(0.0, y.bytes() as f64));
        }
        let all = firsts(self.widths.iter().map(|(width, _)| *width)).zip(&self.widths);
        let there = all.filter(|(_, (_, there))| *there).enumerate();
        let to = by_head(y, self.heads);
        plan.dispatches.extend(there.map(|(part, (first, (width, _)))| {
            let from = by_head(launch.inputs[part], self.heads);
            moved((Place::Input(part), 0, from), (Place::Output(0), first, to), *width)
        }));
        plan
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let mut y = ReferenceTensor::zeros(outputs[0].shape);
        let all = firsts(self.widths.iter().map(|(width, _)| *width)).zip(&self.widths);
        for ((first, (width, _)), part) in all.filter(|(_, (_, there))| *there).zip(inputs) {
            let whole = y.cols() / self.heads;
            for (y, part) in y.data.chunks_mut(whole).zip(part.data.chunks(*width)) {
                y[first..first + width].copy_from_slice(part);
            }
        }
        vec![y]
    }

    fn cases() -> Vec<Case> {
        let case = |label: &str, rows: usize, heads: usize, widths: &[(usize, bool)], dtype| {
            let there = widths.iter().filter(|(_, there)| *there);
            let inputs: Vec<CaseInput> =
                there.map(|(width, _)| CaseInput::random(&[rows, heads * width], dtype)).collect();
            let all: Vec<usize> = (0..inputs.len()).collect();
            Case::new(label, JoinColumns { widths: widths.to_vec(), heads }, inputs).gradients(&all)
        };
        vec![
            case("three", 5, 1, &[(8, true), (4, true), (4, true)], DType::F32),
            case("one is not there", 6, 1, &[(8, true), (12, false), (4, true)], DType::F32),
            case("bf16, over a workgroup", 50, 1, &[(40, true), (100, true)], DType::BF16),
            case("by head, one is not there", 6, 2, &[(8, true), (8, false), (8, true)], DType::F32),
        ]
    }
}
