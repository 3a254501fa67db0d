//! Runs a graph through the f64 references of its operations: slow, exact, without a device.

use super::{Graph, ReferenceTensor, TensorType, Value};
use std::collections::HashMap;

/// Every value of the graph, by [`Value::index`]; leaves come from `leaves`.
///
/// # Panics
/// Where a leaf that is used is not given.
pub fn evaluate(graph: &Graph, leaves: &HashMap<Value, ReferenceTensor>) -> Vec<Option<ReferenceTensor>> {
    let mut values: Vec<Option<ReferenceTensor>> = vec![None; graph.value_count()];
    for (value, tensor) in leaves {
        values[value.index()] = Some(tensor.clone());
    }
    for node in graph.nodes() {
        let inputs: Vec<ReferenceTensor> = node
            .inputs
            .iter()
            .map(|v| {
                values[v.index()].clone().unwrap_or_else(|| panic!("{:?} has no value", graph.leaf_of(*v)))
            })
            .collect();
        let types: Vec<TensorType> = node.outputs.iter().map(|&v| graph.type_of(v)).collect();
        for (value, tensor) in node.outputs.iter().zip(node.op.reference(&inputs, &types)) {
            values[value.index()] = Some(tensor);
        }
    }
    values
}
