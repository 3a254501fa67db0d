//! A typed, shape-checked list of tensor operations; no GPU in sight.
//!
//! Nodes stand in execution order: an operation can use only values that exist already, so the list
//! is its own schedule. Rewrites (the reverse pass, recomputation) append to it.

pub mod blocks;
mod choices;
mod dtype;
pub mod evaluate;
mod launch;
pub mod layout;
mod matrices;
mod operation;
mod pieces;
mod rewrite;
mod shape;
mod work;

pub use choices::{Alternative, Alternatives, Choices, Class, rounded};
pub use dtype::DType;
pub use launch::{
    Binding, Cost, Define, DeviceProfile, Dispatch, Launch, LaunchPlan, Param, Place, Shader, View, row_lanes,
};
pub use matrices::{Cooperative, MatrixShape, SharedMatrices};
pub use operation::{Case, CaseInput, Operation, ReferenceTensor, ReverseNode};
pub use pieces::OFFSET_ALIGNMENT;
pub use rewrite::NewNode;
pub use shape::{LANE, Shape, TensorType};
pub use work::FIRST_GROUP;

use std::sync::Arc;
use thiserror::Error;

/// A mistake in building a graph: wrong shapes or types, an operation without a gradient.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum GraphError {
    #[error("{operation}: {reason}")]
    Invalid { operation: &'static str, reason: String },
    #[error("{operation} has no gradient with respect to its input {input}")]
    NotDifferentiable { operation: &'static str, input: usize },
    #[error("the name {0:?} is used twice in one graph")]
    DuplicateName(String),
}

impl GraphError {
    pub fn invalid(operation: &'static str, reason: impl Into<String>) -> Self {
        GraphError::Invalid { operation, reason: reason.into() }
    }
}

/// Handle of a value in its [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(u32);

impl Value {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where the content of a leaf comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeafKind {
    /// Written by the host before each run.
    Input,
    /// A weight that never changes.
    Frozen,
    /// A parameter with a gradient.
    Trainable,
    /// Kept on the device between runs and changed in place (a KV cache, optimiser moments).
    State,
    /// Memory of the host that the device writes and reads within a run.
    Host,
}

#[derive(Clone, Debug)]
pub struct Leaf {
    pub name: String,
    pub kind: LeafKind,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub op: Arc<dyn Operation>,
    pub inputs: Vec<Value>,
    pub outputs: Vec<Value>,
    /// The unit of recomputation this node belongs to.
    pub block: Option<u32>,
    /// The part of a block that it belongs to, if that is always made again by itself.
    pub piece: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Leaf(usize),
    Node { node: usize, output: usize },
}

/// What the host reads after a run, or what a run adds to a gradient.
#[derive(Clone, Debug)]
pub struct Accumulation {
    pub parameter: Value,
    pub gradient: Value,
}

/// The list of operations of one program.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    types: Vec<TensorType>,
    origins: Vec<Origin>,
    leaves: Vec<Leaf>,
    nodes: Vec<Node>,
    outputs: Vec<(String, Value)>,
    accumulations: Vec<Accumulation>,
    block: Option<u32>,
    blocks: u32,
    piece: Option<u32>,
    pieces: u32,
}

impl Graph {
    pub fn new() -> Self {
        Graph::default()
    }

    /// A tensor that the host writes before each run.
    pub fn input(
        &mut self,
        name: impl Into<String>,
        shape: Shape,
        dtype: DType,
    ) -> Result<Value, GraphError> {
        self.leaf(name.into(), LeafKind::Input, TensorType::new(shape, dtype))
    }

    /// A weight that never changes.
    pub fn frozen(
        &mut self,
        name: impl Into<String>,
        shape: Shape,
        dtype: DType,
    ) -> Result<Value, GraphError> {
        self.leaf(name.into(), LeafKind::Frozen, TensorType::new(shape, dtype))
    }

    /// A parameter with a gradient, stored in f32.
    pub fn trainable(&mut self, name: impl Into<String>, shape: Shape) -> Result<Value, GraphError> {
        self.leaf(name.into(), LeafKind::Trainable, TensorType::new(shape, DType::F32))
    }

    /// A tensor kept on the device between runs and changed in place.
    pub fn state(
        &mut self,
        name: impl Into<String>,
        shape: Shape,
        dtype: DType,
    ) -> Result<Value, GraphError> {
        self.leaf(name.into(), LeafKind::State, TensorType::new(shape, dtype))
    }

    /// Memory of the host that the device writes and reads within a run.
    pub fn host(&mut self, name: impl Into<String>, shape: Shape, dtype: DType) -> Result<Value, GraphError> {
        self.leaf(name.into(), LeafKind::Host, TensorType::new(shape, dtype))
    }

    /// Appends an operation and gives its outputs.
    ///
    /// # Errors
    /// What the operation's shape rule says of the inputs.
    pub fn apply(&mut self, op: Arc<dyn Operation>, inputs: &[Value]) -> Result<Vec<Value>, GraphError> {
        let types: Vec<TensorType> = inputs.iter().map(|&v| self.type_of(v)).collect();
        let node = self.nodes.len();
        let outputs: Vec<Value> = op
            .infer(&types)?
            .into_iter()
            .enumerate()
            .map(|(output, ty)| self.value(ty, Origin::Node { node, output }))
            .collect();
        let (inputs, block, piece) = (inputs.to_vec(), self.block, self.piece);
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), block, piece });
        Ok(outputs)
    }

    /// [`Graph::apply`] for an operation with one output.
    pub fn apply1(&mut self, op: Arc<dyn Operation>, inputs: &[Value]) -> Result<Value, GraphError> {
        Ok(self.apply(op, inputs)?[0])
    }

    /// Names a value that the host reads after a run.
    pub fn output(&mut self, name: impl Into<String>, value: Value) {
        self.outputs.push((name.into(), value));
    }

    /// Adds `gradient` to the gradient of `parameter` in each run.
    pub fn accumulate(&mut self, parameter: Value, gradient: Value) {
        self.accumulations.push(Accumulation { parameter, gradient });
    }

    /// Nodes appended from here to [`Graph::end_block`] are recomputed together.
    pub fn begin_block(&mut self) {
        self.block = Some(self.blocks);
        self.blocks += 1;
    }

    pub fn end_block(&mut self) {
        self.block = None;
    }

    /// Nodes appended from here to [`Graph::end_piece`] are made again by themselves in the reverse pass, whatever the policy of
    /// recomputation: what they leave for one another lives during their own reverse pass only.
    pub fn begin_piece(&mut self) {
        self.piece = Some(self.pieces);
        self.pieces += 1;
    }

    pub fn end_piece(&mut self) {
        self.piece = None;
    }

    pub fn type_of(&self, value: Value) -> TensorType {
        self.types[value.index()]
    }

    pub fn shape_of(&self, value: Value) -> Shape {
        self.type_of(value).shape
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }

    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    pub fn accumulations(&self) -> &[Accumulation] {
        &self.accumulations
    }

    pub fn value_count(&self) -> usize {
        self.types.len()
    }

    /// The leaf behind a value, if it is one.
    pub fn leaf_of(&self, value: Value) -> Option<&Leaf> {
        match self.origins[value.index()] {
            Origin::Leaf(leaf) => Some(&self.leaves[leaf]),
            Origin::Node { .. } => None,
        }
    }

    /// The node and the position of the output that make a value, if it is not a leaf.
    pub fn producer(&self, value: Value) -> Option<(usize, usize)> {
        match self.origins[value.index()] {
            Origin::Leaf(_) => None,
            Origin::Node { node, output } => Some((node, output)),
        }
    }

    fn leaf(&mut self, name: String, kind: LeafKind, ty: TensorType) -> Result<Value, GraphError> {
        if self.leaves.iter().any(|leaf| leaf.name == name) {
            return Err(GraphError::DuplicateName(name));
        }
        let value = self.value(ty, Origin::Leaf(self.leaves.len()));
        self.leaves.push(Leaf { name, kind, value });
        Ok(value)
    }

    fn value(&mut self, ty: TensorType, origin: Origin) -> Value {
        self.types.push(ty);
        self.origins.push(origin);
        Value(self.types.len() as u32 - 1)
    }
}
