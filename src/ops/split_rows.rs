//! Rows in chunks: [`SplitRows`] gives each range of rows of x `[T, d]` as a tensor of its own, [`JoinRows`] puts tensors `[n, d]`
//! into their ranges of y `[T, d]`, zeros elsewhere.
//!
//! Each is the gradient of the other, on the ranges whose gradients are there; all are overwritten. No two ranges may meet.

use super::{FILL, elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Dispatch, Graph, GraphError, Launch, LaunchPlan, Operation, Place,
    ReferenceTensor, ReverseNode, Shader, Shape, TensorType, Value,
};
use std::ops::Range;
use std::sync::Arc;

const SHADER: Shader = crate::shader!("split_rows");

/// Input x; an output for each range.
#[derive(Clone, Debug, PartialEq)]
pub struct SplitRows {
    pub ranges: Vec<Range<usize>>,
}

/// An input for each range; output y of so many rows.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinRows {
    pub rows: usize,
    pub ranges: Vec<Range<usize>>,
}

/// `rows` in so many chunks, one row more in the first ones where they do not divide: of more rows, no chunk is smaller.
pub fn chunks(rows: usize, count: usize) -> Vec<Range<usize>> {
    let (each, more) = (rows / count, rows % count);
    let first = |chunk: usize| chunk * each + chunk.min(more);
    (0..count).map(|chunk| first(chunk)..first(chunk + 1)).collect()
}

/// The rows of x in these ranges.
///
/// # Errors
/// Ranges that x does not have, or that meet.
pub fn split_rows(graph: &mut Graph, x: Value, ranges: Vec<Range<usize>>) -> Result<Vec<Value>, GraphError> {
    graph.apply(Arc::new(SplitRows { ranges }), &[x])
}

/// A tensor of `rows` rows with the parts in their ranges.
///
/// # Errors
/// Parts that do not fit their ranges or one another.
pub fn join_rows(
    graph: &mut Graph,
    parts: &[Value],
    rows: usize,
    ranges: Vec<Range<usize>>,
) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(JoinRows { rows, ranges }), parts)
}

/// Fails unless the ranges are in order, without an empty one, and within `rows`.
fn expect_ranges(op: &'static str, ranges: &[Range<usize>], rows: usize) -> Result<(), GraphError> {
    let ends = ranges.iter().map(|range| range.end);
    let apart = ranges.iter().skip(1).zip(ends).all(|(range, end)| end <= range.start);
    let inside = ranges.last().is_some_and(|last| last.end <= rows);
    expect(op, apart && inside && ranges.iter().all(|range| !range.is_empty()), || {
        format!("{ranges:?} are not ranges in order of {rows} rows")
    })
}

/// Moves so many rows from one row on to another row on.
fn moved(ty: TensorType, (x, from): (Place, usize), (y, to): (Place, usize), rows: usize) -> Dispatch {
    let groups = rows * ty.cols4();
    elementwise(SHADER, groups)
        .param("x_first", from * ty.cols4())
        .param("y_first", to * ty.cols4())
        .read("x", x, ty.dtype)
        .write("y", y, ty.dtype)
        .cost(0.0, 2.0 * (4 * groups * ty.dtype.size()) as f64)
}

impl Operation for SplitRows {
    fn name(&self) -> &'static str {
        "split_rows"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 1)?;
        let x = inputs[0];
        expect(self.name(), x.dtype.is_float() && x.shape.dims().len() == 2, || {
            format!("{x} is not a matrix of floats")
        })?;
        expect_ranges(self.name(), &self.ranges, x.rows())?;
        let part = |range: &Range<usize>| TensorType::new(Shape::matrix(range.len(), x.cols()), x.dtype);
        Ok(self.ranges.iter().map(part).collect())
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let rows = graph.shape_of(node.inputs[0]).rows();
        let (ranges, parts): (Vec<_>, Vec<_>) = self
            .ranges
            .iter()
            .zip(node.gradients)
            .filter_map(|(range, gradient)| Some((range.clone(), (*gradient)?)))
            .unzip();
        if parts.is_empty() {
            return Ok(vec![None]);
        }
        Ok(vec![Some(join_rows(graph, &parts, rows, ranges)?)])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let parts = self.ranges.iter().enumerate().filter(|(part, _)| launch.live[*part]);
        let dispatches = parts.map(|(part, range)| {
            moved(launch.inputs[0], (Place::Input(0), range.start), (Place::Output(part), 0), range.len())
        });
        LaunchPlan { dispatches: dispatches.collect(), ..LaunchPlan::default() }
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let part = |(range, ty): (&Range<usize>, &TensorType)| {
            let mut part = ReferenceTensor::zeros(ty.shape);
            range.clone().enumerate().for_each(|(to, row)| {
                part.row_mut(to).copy_from_slice(inputs[0].row(row));
            });
            part
        };
        self.ranges.iter().zip(outputs).map(part).collect()
    }

    fn cases() -> Vec<Case> {
        let case = |label: &str, rows: usize, cols, dtype, ranges: Vec<Range<usize>>| {
            Case::new(label, SplitRows { ranges }, vec![CaseInput::random(&[rows, cols], dtype)])
                .gradients(&[0])
        };
        vec![
            case("two", 5, 7, DType::F32, chunks(5, 2)),
            case("apart", 9, 4, DType::F32, vec![1..2, 4..8]),
            case("f16", 7, 66, DType::F16, chunks(7, 3)),
            case("bf16, over a workgroup", 50, 37, DType::BF16, chunks(50, 3)),
        ]
    }
}

impl Operation for JoinRows {
    fn name(&self) -> &'static str {
        "join_rows"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, self.ranges.len())?;
        expect_ranges(self.name(), &self.ranges, self.rows)?;
        let part = |ty: &TensorType, rows| {
            ty.dtype.is_float()
                && *ty == TensorType::new(Shape::matrix(rows, inputs[0].cols()), inputs[0].dtype)
        };
        let fit = inputs.iter().zip(&self.ranges).all(|(ty, range)| part(ty, range.len()));
        expect(self.name(), fit, || format!("{inputs:?} do not fit {:?}", self.ranges))?;
        Ok(vec![TensorType::new(Shape::matrix(self.rows, inputs[0].cols()), inputs[0].dtype)])
    }

    fn reverse(&self, graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        let Some(dy) = node.gradients[0] else { return Ok(vec![None; self.ranges.len()]) };
        Ok(split_rows(graph, dy, self.ranges.clone())?.into_iter().map(Some).collect())
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let y = launch.outputs[0];
        let mut plan = LaunchPlan::default();
        if self.ranges.iter().map(Range::len).sum::<usize>() < self.rows {
            let zero = elementwise(FILL, y.rows() * y.cols4()).write("y", Place::Output(0), y.dtype);
            plan.dispatches.push(zero.cost(0.0, y.bytes() as f64));
        }
        plan.dispatches.extend(self.ranges.iter().enumerate().map(|(part, range)| {
            moved(y, (Place::Input(part), 0), (Place::Output(0), range.start), range.len())
        }));
        plan
    }

    fn reference(&self, inputs: &[ReferenceTensor], outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let mut y = ReferenceTensor::zeros(outputs[0].shape);
        for (part, range) in inputs.iter().zip(&self.ranges) {
            range.clone().enumerate().for_each(|(from, row)| y.row_mut(row).copy_from_slice(part.row(from)));
        }
        vec![y]
    }

    fn cases() -> Vec<Case> {
        let case = |label: &str, rows, cols, dtype, ranges: Vec<Range<usize>>| {
            let inputs = ranges.iter().map(|range| CaseInput::random(&[range.len(), cols], dtype)).collect();
            let all: Vec<usize> = (0..ranges.len()).collect();
            Case::new(label, JoinRows { rows, ranges }, inputs).gradients(&all)
        };
        vec![
            case("three", 7, 5, DType::F32, chunks(7, 3)),
            case("with gaps", 9, 4, DType::F32, vec![1..2, 4..8]),
            case("f16", 7, 66, DType::F16, chunks(7, 2)),
            case("bf16, over a workgroup", 50, 37, DType::BF16, chunks(50, 3)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows_and_grow_with_them() {
        assert_eq!(chunks(10, 4), [0..3, 3..6, 6..8, 8..10]);
        assert_eq!(chunks(3, 3), [0..1, 1..2, 2..3]);
        for rows in 5..40 {
            let (small, large) = (chunks(rows, 5), chunks(rows + 1, 5));
            assert_eq!((small[0].start, small[4].end), (0, rows));
            assert!(small.iter().zip(&large).all(|(s, l)| s.len() <= l.len()), "{small:?} {large:?}");
        }
    }
}
