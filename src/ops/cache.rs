//! Writes rows into a tensor that stays on the device, at a row given at run time: the KV cache.
//!
//! Inputs cache `[N, d]`, x `[T, d]`, offset u32 `[1]`; output: the cache with `cache[offset + t] = x[t]`, in place.
//! Rows beyond the end are dropped. No gradient: it serves generation.

use super::{elementwise, expect, expect_inputs};
use crate::graph::{
    Case, CaseInput, DType, Graph, GraphError, Launch, LaunchPlan, Operation, Place, ReferenceTensor,
    ReverseNode, Shader, TensorType, Value,
};
use std::sync::Arc;

const SHADER: Shader = crate::shader!("write_rows");

#[derive(Clone, Debug, PartialEq)]
pub struct WriteRows;

pub fn write_rows(graph: &mut Graph, cache: Value, x: Value, offset: Value) -> Result<Value, GraphError> {
    graph.apply1(Arc::new(WriteRows), &[cache, x, offset])
}

impl Operation for WriteRows {
    fn name(&self) -> &'static str {
        "write_rows"
    }

    fn infer(&self, inputs: &[TensorType]) -> Result<Vec<TensorType>, GraphError> {
        expect_inputs(self.name(), inputs, 3)?;
        let fits = inputs[0].cols() == inputs[1].cols() && inputs[0].dtype == inputs[1].dtype;
        expect(self.name(), fits && inputs[2].dtype == DType::U32, || {
            format!("rows {} do not fit the cache {}", inputs[1], inputs[0])
        })?;
        Ok(vec![inputs[0]])
    }

    fn reverse(&self, _graph: &mut Graph, node: &ReverseNode<'_>) -> Result<Vec<Option<Value>>, GraphError> {
        node.refuse(self.name(), &[0, 1, 2])?;
        Ok(vec![None; 3])
    }

    fn launch(&self, launch: &Launch<'_>) -> LaunchPlan {
        let (cache, x) = (launch.inputs[0], launch.inputs[1]);
        elementwise(SHADER, x.rows() * x.cols4())
            .param("cols4", x.cols4())
            .param("cache_rows", cache.rows())
            .read("x", Place::Input(1), x.dtype)
            .read_scalar("offset", Place::Input(2), DType::U32)
            .write("cache", Place::Output(0), cache.dtype)
            .cost(0.0, 2.0 * x.bytes() as f64)
            .into()
    }

    fn reference(&self, inputs: &[ReferenceTensor], _outputs: &[TensorType]) -> Vec<ReferenceTensor> {
        let mut cache = inputs[0].clone();
        let offset = inputs[2].index(0);
        for t in 0..inputs[1].rows().min(cache.rows().saturating_sub(offset)) {
            cache.row_mut(offset + t).copy_from_slice(inputs[1].row(t));
        }
        vec![cache]
    }

    fn cases() -> Vec<Case> {
        let case = |offset, dtype: DType| {
            let inputs = vec![
                CaseInput::random(&[6, 5], dtype),
                CaseInput::random(&[3, 5], dtype),
                CaseInput::indices([offset]),
            ];
            Case::new(format!("{dtype} at {offset}"), WriteRows, inputs)
        };
        vec![case(0, DType::F32), case(3, DType::BF16), case(4, DType::F16)]
    }

    fn in_place(&self, _output: usize) -> Option<usize> {
        Some(0)
    }
}
