//! Layers as functions on a graph. A [`Builder`] carries what all layers of one network share: storage types, what is
//! trained, and where adapters sit.

use crate::graph::{DType, Graph, GraphError, Shape, TensorType, Value, blocks};
use crate::ops;
use crate::ops::dropout::Dropout;
use crate::ops::lora_linear::{Dropped, lora_linear};
use crate::ops::matmul::{Layout, matmul};
use crate::ops::rms_norm::Norm;
use crate::ops::split_rows;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Where adapters sit and how they scale.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSpec {
    pub rank: usize,
    /// s of `y = Wx + s·B(Ax)`.
    pub scale: f64,
    /// Probability of dropping an element of the adapter's input, in training.
    pub dropout: f64,
    /// Full names of the modules that carry an adapter, e.g. `model.layers.0.self_attn.q_proj`.
    pub modules: Vec<String>,
    /// Full names of the modules that are trained in full instead, e.g. `lm_head` (PEFT's `modules_to_save`).
    pub saved: Vec<String>,
}

impl AdapterSpec {
    /// Whether the weight of this name is trained in full.
    pub fn saves(&self, weight: &str) -> bool {
        weight.strip_suffix(".weight").is_some_and(|module| self.saved.iter().any(|saved| saved == module))
    }
}

/// How a layer with an adapter is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterForm {
    /// Products and a sum of its own.
    Separate,
    /// It widens the layer's product, which makes dropout's mask too, or reads what was dropped before.
    Fused { dropout: bool },
}

/// How the base weights of a network are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightMode {
    Frozen(Storage),
    /// Trained, in f32, but for [`Builder::frozen`].
    Trainable,
}

/// What frozen weights are stored in. Vectors (norms) are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// What is not held in blocks.
    pub plain: DType,
    /// The linear layers of the blocks, where their rows are whole groups of four.
    pub linear: DType,
    /// Token embedding and head.
    pub outer: DType,
    /// A token embedding that is not the head as well stays in host memory: only rows of a micro-batch travel.
    pub host_embedding: bool,
    /// The first so many blocks stay in host memory, and come to the device as their turn comes.
    pub offload: usize,
}

/// Linear layers that stay plain while the others are in blocks, such as `model.layers.0.mlp.down_proj`: those that a checkpoint
/// of blocks stores as they are.
pub type PlainLayers = Arc<BTreeSet<String>>;

impl From<DType> for Storage {
    fn from(dtype: DType) -> Self {
        Storage { plain: dtype, linear: dtype, outer: dtype, host_embedding: false, offload: 0 }
    }
}

/// A graph under construction and what its layers share.
pub struct Builder<'a> {
    pub graph: Graph,
    pub weights: WeightMode,
    /// Storage type of activations and of their gradients.
    pub activations: DType,
    pub adapter: Option<&'a AdapterSpec>,
    /// Weights that stay as they are where all others are trained.
    pub frozen: &'a [String],
    /// The generator input, where dropout is on.
    pub rng: Option<Value>,
    /// Blocks whose input waits in host memory for the reverse pass.
    pub kept_blocks: Vec<bool>,
    /// Linear layers that are not in blocks though the others are.
    pub plain_layers: PlainLayers,
    /// MLPs take the tokens in so many chunks, each made again by itself in the reverse pass; 1: all at once.
    pub mlp_chunks: usize,
    /// How layers with an adapter are built.
    form: AdapterForm,
    known: HashMap<String, Value>,
    dropouts: u32,
}

impl<'a> Builder<'a> {
    pub fn new(
        weights: WeightMode,
        activations: DType,
        adapter: Option<&'a AdapterSpec>,
        form: AdapterForm,
    ) -> Self {
        Builder {
            graph: Graph::new(),
            weights,
            activations,
            adapter,
            frozen: &[],
            rng: None,
            kept_blocks: Vec::new(),
            plain_layers: PlainLayers::default(),
            mlp_chunks: 1,
            form,
            known: HashMap::new(),
            dropouts: 0,
        }
    }

    /// The vector, embedding or head of this name: one leaf, however often it is asked for.
    ///
    /// # Errors
    /// A name that is taken by another kind of leaf.
    pub fn weight(&mut self, name: &str, dims: &[usize]) -> Result<Value, GraphError> {
        self.stored(name, dims, |storage| storage.outer)
    }

    /// Keeps what enters a block in host memory, where the block is one of those.
    ///
    /// # Errors
    /// A block that is built twice.
    pub fn keep(&mut self, block: usize, x: Value) -> Result<(), GraphError> {
        if self.kept_blocks.get(block).copied().unwrap_or(false) {
            let ty = self.graph.type_of(x);
            let memory = self.graph.host(format!("kept.{block}"), ty.shape, ty.dtype)?;
            ops::keep::keep(&mut self.graph, memory, x)?;
        }
        Ok(())
    }

    fn stored(
        &mut self,
        name: &str,
        dims: &[usize],
        dtype: fn(Storage) -> DType,
    ) -> Result<Value, GraphError> {
        if let Some(&value) = self.known.get(name) {
            return Ok(value);
        }
        let shape = Shape::new(dims);
        let value = match self.weights {
            // in f32 too, so that what is saved is what was read
            WeightMode::Trainable if self.frozen.iter().any(|frozen| frozen == name) => {
                self.graph.frozen(name, shape, DType::F32)?
            }
            WeightMode::Trainable => self.graph.trainable(name, shape)?,
            WeightMode::Frozen(_) if self.adapter.is_some_and(|adapter| adapter.saves(name)) => {
                self.graph.trainable(name, shape)?
            }
            WeightMode::Frozen(_) if dims.len() == 1 => self.graph.frozen(name, shape, DType::F32)?,
            WeightMode::Frozen(storage) => {
                let wanted = dtype(storage);
                let whole = !wanted.is_quantised() || blocks::fits(TensorType::new(shape, wanted));
                self.graph.frozen(name, shape, if whole { wanted } else { storage.plain })?
            }
        };
        self.known.insert(name.to_string(), value);
        Ok(value)
    }

    /// A matrix of an adapter: one leaf, however often it is asked for.
    fn parameter(&mut self, name: String, rows: usize, cols: usize) -> Result<Value, GraphError> {
        if let Some(&value) = self.known.get(&name) {
            return Ok(value);
        }
        let value = self.graph.trainable(name.clone(), Shape::matrix(rows, cols))?;
        self.known.insert(name, value);
        Ok(value)
    }

    /// `x·Wᵀ` with the weight `{module}.weight` `[outputs, inputs]`, and the module's adapter where it has one.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn linear(
        &mut self,
        x: Value,
        module: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Value, GraphError> {
        let dtype = match self.plain_layers.contains(module) {
            true => |storage: Storage| storage.plain,
            false => |storage: Storage| storage.linear,
        };
        let weight = self.stored(&format!("{module}.weight"), &[outputs, inputs], dtype)?;
        let adapter = self.adapter.filter(|spec| spec.modules.iter().any(|m| m == module));
        let Some(spec) = adapter else {
            return matmul(&mut self.graph, Layout::NT, x, weight, 1.0, self.activations);
        };
        let a = self.parameter(format!("{module}.lora_A.weight"), spec.rank, inputs)?;
        let b = self.parameter(format!("{module}.lora_B.weight"), outputs, spec.rank)?;
        let dropped = match self.rng {
            Some(rng) if spec.dropout > 0.0 => {
                self.dropouts += 1;
                let dropout = Dropout { p: spec.dropout, key: self.dropouts };
                match self.form {
                    AdapterForm::Fused { dropout: true } => Dropped::Inside(dropout, rng),
                    _ => Dropped::Before(self.graph.apply1(Arc::new(dropout), &[x, rng])?),
                }
            }
            _ => Dropped::Not,
        };
        let (graph, dtype) = (&mut self.graph, self.activations);
        if self.form != AdapterForm::Separate {
            return lora_linear(graph, x, weight, (a, b), dropped, spec.scale, dtype);
        }
        let y = matmul(graph, Layout::NT, x, weight, 1.0, dtype)?;
        let dropped = if let Dropped::Before(dropped) = dropped { dropped } else { x };
        let h = matmul(graph, Layout::NT, dropped, a, spec.scale, DType::F32)?;
        let delta = matmul(graph, Layout::NT, h, b, 1.0, dtype)?;
        ops::add::add(graph, y, delta)
    }

    /// What a module's adapter makes of its input before B, `s drop(x)·Aᵀ` f32 `[rows, r]`, and B `[outputs, r]`; `None` where the
    /// module has no adapter.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn adapter_of(
        &mut self,
        module: &str,
        x: Value,
        outputs: usize,
        inputs: usize,
    ) -> Result<Option<(Value, Value)>, GraphError> {
        let adapter = self.adapter.filter(|spec| spec.modules.iter().any(|m| m == module));
        let Some(spec) = adapter else { return Ok(None) };
        let a = self.parameter(format!("{module}.lora_A.weight"), spec.rank, inputs)?;
        let b = self.parameter(format!("{module}.lora_B.weight"), outputs, spec.rank)?;
        let dropped = match self.rng {
            Some(rng) if spec.dropout > 0.0 => {
                self.dropouts += 1;
                let dropout = Dropout { p: spec.dropout, key: self.dropouts };
                self.graph.apply1(Arc::new(dropout), &[x, rng])?
            }
            _ => x,
        };
        let u = matmul(&mut self.graph, Layout::NT, dropped, a, spec.scale, DType::F32)?;
        Ok(Some((u, b)))
    }

    /// What `layer` makes of `all`, each `[T, d]`, of which every row depends on the same rows of these alone: in
    /// [`Builder::mlp_chunks`] of T.
    ///
    /// # Errors
    /// What `layer` reports.
    pub fn in_chunks<const N: usize>(
        &mut self,
        all: [Value; N],
        mut layer: impl FnMut(&mut Self, [Value; N]) -> Result<Value, GraphError>,
    ) -> Result<Value, GraphError> {
        let rows = all.first().map_or(0, |x| self.graph.shape_of(*x).rows());
        let count = self.mlp_chunks.min(rows);
        if count < 2 {
            return layer(self, all);
        }
        let ranges = split_rows::chunks(rows, count);
        let mut split = |x| split_rows::split_rows(&mut self.graph, x, ranges.clone());
        let parts: Vec<Vec<Value>> = all.into_iter().map(&mut split).collect::<Result<_, _>>()?;
        let mut made = Vec::new();
        for (chunk, _) in ranges.iter().enumerate() {
            self.graph.begin_piece();
            let part = std::array::from_fn(|i| parts[i][chunk]);
            made.push(layer(self, part)?);
            self.graph.end_piece();
        }
        split_rows::join_rows(&mut self.graph, &made, rows, ranges)
    }

    /// RMS normalisation with the weight `{module}.weight` `[width]`, of each `width` elements of x.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn rms_norm(
        &mut self,
        x: Value,
        module: &str,
        width: usize,
        norm: Norm,
    ) -> Result<Value, GraphError> {
        let weight = self.weight(&format!("{module}.weight"), &[width])?;
        ops::rms_norm::rms_norm(&mut self.graph, x, weight, norm)
    }

    /// Adds the bias `{module}.bias` `[width]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn bias(&mut self, x: Value, module: &str, width: usize) -> Result<Value, GraphError> {
        let bias = self.weight(&format!("{module}.bias"), &[width])?;
        ops::bias::bias(&mut self.graph, x, bias)
    }

    /// Layer normalisation with the weight `{module}.weight` and the bias `{module}.bias` `[width]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn layer_norm(
        &mut self,
        x: Value,
        module: &str,
        width: usize,
        eps: f64,
    ) -> Result<Value, GraphError> {
        let weight = self.weight(&format!("{module}.weight"), &[width])?;
        let bias = self.weight(&format!("{module}.bias"), &[width])?;
        ops::layer_norm::layer_norm(&mut self.graph, x, weight, bias, eps)
    }

    /// The parts `[T, heads · width]` of x `[T, heads · (sum of the widths)]`, in each of whose heads they lie one after the other; with one
    /// head each lies together.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn parts<const N: usize>(
        &mut self,
        x: Value,
        widths: [usize; N],
        heads: usize,
    ) -> Result<[Value; N], GraphError> {
        let parts = ops::split_columns::split_columns(&mut self.graph, x, &widths, heads)?;
        parts.try_into().map_err(|_| GraphError::invalid("split_columns", "gives a part for each width"))
    }
}
