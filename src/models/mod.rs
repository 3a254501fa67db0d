//! From a configuration to the graphs of a network: training, evaluation, logits, generation with a KV cache.
//!
//! Inputs of a graph over T tokens (a flat stream of samples) with L label rows:
//! `tokens` (or `embedded` `[T, d]`, see [`Network::embeds_on_host`]) `, positions, ends` u32 `[T]`, `starts, query_ends` u32 `[T]` of
//! layers that see all tokens and `window_starts, window_query_ends` of those with a window (see [`crate::ops::attention`]), `label_rows, targets` u32 `[L]`, `label_inverse` u32 `[T]` (see [`crate::ops::gather_rows`]),
//! `order` u32 `[T]` where the embedding is trained, `rng` u32 `[4]` where there is dropout, `loss_weight` f32 `[1]`. Loss is
//! added to the state `loss_sum` `[1]`.

pub mod config;
mod decoder;
mod shapes;

pub use config::{
    AttentionBias, BlockNorms, ConfigError, EMBEDDING_WEIGHTS, Family, HEAD, HEAD_WEIGHT, JoinedLayers,
    LinearLayer, ModelConfig, Multipliers, Names, QueryKeyNorms, QueryScaling, Rope, RopeScaling, Yarn,
};
pub use shapes::{shape, shape_names};

use crate::autograd::{Recompute, differentiate};
use crate::fuse::{Fusions, fuse};
use crate::graph::{DType, Graph, GraphError, Shape, Value};
use crate::nn::{AdapterForm, AdapterSpec, Builder, PlainLayers, Storage, WeightMode};
use crate::ops;
use crate::ops::attention::Visibility;
use crate::ops::matmul::{Layout, matmul};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// A network: its configuration, how its weights are held, its adapter.
#[derive(Clone, Debug)]
pub struct Network {
    pub config: ModelConfig,
    pub weights: WeightMode,
    /// Linear layers that are not in blocks though the others are.
    pub plain_layers: PlainLayers,
    pub activations: DType,
    pub adapter: Option<AdapterSpec>,
    pub recompute: Recompute,
    /// Rows of the table of rotary angles: the longest sample.
    pub positions: usize,
    pub fusions: Fusions,
    /// What enters blocks that are made again waits in host memory for the reverse pass.
    pub host_activations: bool,
    /// In training and evaluation, MLPs take the tokens in so many chunks, each made again by itself in the reverse pass; 1:
    /// all at once.
    pub mlp_chunks: usize,
    /// Parameters that stay as they are where all others are trained, by their full names.
    pub frozen: Vec<String>,
}

/// The inputs that every graph over a token stream has.
pub(crate) struct Stream {
    pub source: TokenSource,
    pub positions: Value,
    /// Of layers that see all tokens, and of those with a window, where there are such.
    views: [Option<View>; 2],
}

/// What the attention of a layer sees, and by which angles.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub visibility: Visibility,
    pub rope_table: Value,
    /// That of queries, which may be scaled by their positions.
    pub query_table: Value,
}

impl Stream {
    /// # Errors
    /// A layer of a kind that the graph was not made for: a mistake in this room.
    fn view(&self, config: &ModelConfig, layer: usize) -> Result<View, GraphError> {
        let view = self.views[usize::from(config.slides(layer))];
        view.ok_or_else(|| GraphError::invalid("attention", format!("layer {layer} has no view")))
    }
}

/// What the first block reads.
pub(crate) enum TokenSource {
    /// Tokens, and their order where the embedding is trained.
    Tokens(Value, Option<Value>),
    /// Their embeddings, looked up by the host.
    Embedded(Value),
}

/// Keys and values of one layer as the attention of that layer sees them.
pub(crate) type CacheHook<'h> =
    dyn FnMut(&mut Graph, usize, Value, Value) -> Result<(Value, Value), GraphError> + 'h;

/// Name of the input with the token embeddings, where the host looks them up.
pub const EMBEDDED: &str = "embedded";
/// What the names of inputs begin with that are for layers with a window.
pub const WINDOW: &str = "window_";
/// Name of the leaf with the rotary angles.
pub const ROPE_TABLE: &str = "rope_table";
/// Name of the same of layers with a window, where theirs are others.
pub const LOCAL_ROPE_TABLE: &str = "local_rope_table";
/// Name of the same of queries, where these are scaled.
pub const QUERY_ROPE_TABLE: &str = "query_rope_table";
/// Name of the state that losses are added to.
pub const LOSS_SUM: &str = "loss_sum";

impl Network {
    /// Modules that can carry an adapter, with their `(outputs, inputs)`: the linear layers of the blocks.
    pub fn linear_modules(config: &ModelConfig) -> Vec<(String, usize, usize)> {
        decoder::linear_modules(config)
    }

    /// Modules that can carry an adapter: the linear layers of the blocks, and the head.
    pub fn adaptable_modules(config: &ModelConfig) -> Vec<(String, usize, usize)> {
        let head = (HEAD.to_owned(), config.vocab_size, config.hidden_size);
        Network::linear_modules(config).into_iter().chain([head]).collect()
    }

    /// Modules that can be trained in full beside an adapter, with the shapes of their weights: all that have one. The head has
    /// one of its own then, also where it is the token embedding in the files; that embedding cannot be trained alone. Layers with a
    /// bias cannot: it would have to be trained with them.
    pub fn savable_modules(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let tied = config.tied_head;
        let names = config.names();
        let head = tied.then(|| (HEAD.to_owned(), vec![config.vocab_size, config.hidden_size]));
        let is_head = |name: &str| tied && name == names.embedding_weight;
        let weights = config.expected_shapes().into_iter().filter(|(name, _)| !is_head(name));
        let module =
            |(name, dims): (String, Vec<usize>)| Some((name.strip_suffix(".weight")?.to_owned(), dims));
        let biased = config.biased_modules();
        weights.filter_map(module).filter(|(module, _)| !biased.contains(module)).chain(head).collect()
    }

    /// Forward, loss and gradients for T tokens of which at most L carry a label.
    ///
    /// # Errors
    /// A configuration whose shapes do not fit together.
    pub fn training(&self, tokens: usize, labels: usize) -> Result<Graph, GraphError> {
        self.loss(tokens, labels, true)
    }

    /// Forward and loss.
    ///
    /// # Errors
    /// As [`Network::training`].
    pub fn evaluation(&self, tokens: usize, labels: usize) -> Result<Graph, GraphError> {
        self.loss(tokens, labels, false)
    }

    fn loss(&self, tokens: usize, labels: usize, train: bool) -> Result<Graph, GraphError> {
        let mut b = self.builder();
        let stream = self.stream(&mut b, tokens, self.embeds_on_host())?;
        if train && self.adapter.as_ref().is_some_and(|a| a.dropout > 0.0) {
            b.rng = Some(b.graph.input("rng", Shape::vector(4), DType::U32)?);
        }
        b.mlp_chunks = self.mlp_chunks;
        let blocks = self.config.layers as u32;
        b.kept_blocks = (0..blocks)
            .map(|l| train && self.host_activations && self.recompute.starts_group(l, blocks))
            .collect();
        let hidden = self.hidden(&mut b, &stream, &mut |_, _, k, v| Ok((k, v)))?;
        let rows = b.graph.input("label_rows", Shape::vector(labels), DType::U32)?;
        let inverse = b.graph.input("label_inverse", Shape::vector(tokens), DType::U32)?;
        let targets = b.graph.input("targets", Shape::vector(labels), DType::U32)?;
        let labelled =
            ops::gather_rows::gather_rows(&mut b.graph, hidden, rows, inverse, self.config.logit_scale())?;
        let head = self.head(&mut b)?;
        let adapter = b.adapter_of(HEAD, labelled, self.config.vocab_size, self.config.hidden_size)?;
        let op = ops::cross_entropy::LinearCrossEntropy {
            whole: !self.fusions.head,
            soft_cap: self.config.logit_soft_cap,
        };
        let mut loss = op.append(&mut b.graph, labelled, head, targets, adapter)?;
        let loss_sum = b.graph.state(LOSS_SUM, Shape::scalar(), DType::F32)?;
        if train {
            let weight = b.graph.input("loss_weight", Shape::scalar(), DType::F32)?;
            differentiate(&mut b.graph, loss, weight, self.recompute)?;
            // the gradient makes the loss as well: the forward node is dead then
            loss = ops::cross_entropy::loss_of_gradient(&b.graph).unwrap_or(loss);
        }
        b.graph.accumulate(loss_sum, loss);
        fuse(b.graph, self.fusions)
    }

    /// Logits f32 of the rows that the input `rows` u32 `[rows]` names, as the output `logits` `[rows, vocab]`.
    ///
    /// # Errors
    /// As [`Network::training`].
    pub fn logits(&self, tokens: usize, rows: usize) -> Result<Graph, GraphError> {
        let mut b = self.builder();
        let stream = self.stream(&mut b, tokens, self.embeds_on_host())?;
        let hidden = self.hidden(&mut b, &stream, &mut |_, _, k, v| Ok((k, v)))?;
        self.finish_logits(b, hidden, tokens, rows)
    }

    /// One step of generation: `tokens` new tokens after what is in the KV cache of `cache` rows; `offset` u32 `[1]` is the
    /// row of the first. Output `logits` `[rows, vocab]` of the rows that the input `rows` names.
    ///
    /// # Errors
    /// As [`Network::training`].
    pub fn generation(&self, tokens: usize, cache: usize, rows: usize) -> Result<Graph, GraphError> {
        let mut b = self.builder();
        let stream = self.stream(&mut b, tokens, false)?;
        let offset = b.graph.input("offset", Shape::vector(1), DType::U32)?;
        let dtype = self.activations;
        let mut hook = |graph: &mut Graph, layer: usize, k: Value, v: Value| {
            let shape = Shape::matrix(cache, graph.shape_of(k).cols());
            let mut store = |kind: &str, x: Value| {
                let state = graph.state(format!("{kind}_cache.{layer}"), shape, dtype)?;
                ops::cache::write_rows(graph, state, x, offset)
            };
            Ok((store("k", k)?, store("v", v)?))
        };
        let hidden = self.hidden(&mut b, &stream, &mut hook)?;
        self.finish_logits(b, hidden, tokens, rows)
    }

    fn finish_logits(
        &self,
        mut b: Builder<'_>,
        hidden: Value,
        tokens: usize,
        rows: usize,
    ) -> Result<Graph, GraphError> {
        let index = b.graph.input("rows", Shape::vector(rows), DType::U32)?;
        // only the gradient reads the inverse; the index stands in for it where the lengths agree
        let inverse = b.graph.input("rows_inverse", Shape::vector(tokens), DType::U32)?;
        let picked =
            ops::gather_rows::gather_rows(&mut b.graph, hidden, index, inverse, self.config.logit_scale())?;
        let head = self.head(&mut b)?;
        let adapter = b.adapter_of(HEAD, picked, self.config.vocab_size, self.config.hidden_size)?;
        let mut logits = matmul(&mut b.graph, Layout::NT, picked, head, 1.0, DType::F32)?;
        if let Some((u, low)) = adapter {
            let delta = matmul(&mut b.graph, Layout::NT, u, low, 1.0, DType::F32)?;
            logits = ops::add::add(&mut b.graph, logits, delta)?;
        }
        if let Some(cap) = self.config.logit_soft_cap {
            logits = ops::soft_cap::soft_cap(&mut b.graph, logits, cap)?;
        }
        b.graph.output("logits", logits);
        fuse(b.graph, self.fusions)
    }

    fn builder(&self) -> Builder<'_> {
        let adapter = self.adapter.as_ref();
        let form = match self.fusions {
            Fusions { adapter: true, dropout, .. } => AdapterForm::Fused { dropout },
            _ => AdapterForm::Separate,
        };
        let mut builder = Builder::new(self.weights, self.activations, adapter, form);
        builder.plain_layers = PlainLayers::clone(&self.plain_layers);
        builder.frozen = &self.frozen;
        builder
    }

    /// Whether the token embedding stays in host memory in training and evaluation.
    pub fn embeds_on_host(&self) -> bool {
        let asked = matches!(self.weights, WeightMode::Frozen(Storage { host_embedding: true, .. }));
        asked && !self.config.tied_head && !self.trains(self.config.names().embedding_weight)
    }

    /// Whether a weight of the base is trained.
    fn trains(&self, weight: &str) -> bool {
        let full = self.weights == WeightMode::Trainable && !self.frozen.iter().any(|name| name == weight);
        full || self.adapter.as_ref().is_some_and(|a| a.saves(weight))
    }

    /// The block of a weight that stays in host memory.
    pub fn offloaded(&self, weight: &str) -> Option<usize> {
        let WeightMode::Frozen(Storage { offload, .. }) = self.weights else { return None };
        self.config.block_of(weight).filter(|block| *block < offload)
    }

    fn stream(&self, b: &mut Builder<'_>, tokens: usize, embedded: bool) -> Result<Stream, GraphError> {
        let source = match embedded {
            true => {
                let shape = Shape::matrix(tokens, self.config.hidden_size);
                TokenSource::Embedded(b.graph.input(EMBEDDED, shape, self.activations)?)
            }
            false => {
                let mut input = |name: &str| b.graph.input(name, Shape::vector(tokens), DType::U32);
                let ids = input("tokens")?;
                let trained = self.trains(self.config.names().embedding_weight);
                TokenSource::Tokens(ids, trained.then(|| input("order")).transpose()?)
            }
        };
        let mut input = |name: &str| b.graph.input(name, Shape::vector(tokens), DType::U32);
        let positions = input("positions")?;
        let ends = input("ends")?;
        let config = &self.config;
        let mut tables = HashMap::new();
        let mut view = |windowed: bool| {
            if !(0..config.layers).any(|layer| config.slides(layer) == windowed) {
                return Ok(None);
            }
            let prefix = if windowed { WINDOW } else { "" };
            let mut rows = |name| b.graph.input(format!("{prefix}{name}"), Shape::vector(tokens), DType::U32);
            let visibility = Visibility { starts: rows("starts")?, ends, query_ends: rows("query_ends")? };
            let local = windowed && config.local_rope.is_some();
            let mut table = |name| match tables.entry(name) {
                Entry::Occupied(made) => Ok(*made.get()),
                Entry::Vacant(place) => {
                    let shape = Shape::matrix(self.positions, config.rotary_dim());
                    Ok(*place.insert(b.graph.frozen(name, shape, DType::F32)?))
                }
            };
            let rope_table = table(if local { LOCAL_ROPE_TABLE } else { ROPE_TABLE })?;
            let reaches = |scaling: QueryScaling| self.positions > scaling.original_max_position_embeddings;
            let query_table = match config.query_scaling.is_some_and(reaches) {
                true => table(QUERY_ROPE_TABLE)?,
                false => rope_table,
            };
            Ok(Some(View { visibility, rope_table, query_table }))
        };
        Ok(Stream { source, positions, views: [view(false)?, view(true)?] })
    }

    fn hidden(
        &self,
        b: &mut Builder<'_>,
        stream: &Stream,
        cache: &mut CacheHook<'_>,
    ) -> Result<Value, GraphError> {
        decoder::hidden(b, &self.config, stream, cache)
    }

    fn head(&self, b: &mut Builder<'_>) -> Result<Value, GraphError> {
        let names = self.config.names();
        // a head that is trained alone is no longer the embedding
        let tied = self.config.tied_head && !self.adapter.as_ref().is_some_and(|a| a.saves(HEAD_WEIGHT));
        let name = if tied { names.embedding_weight } else { HEAD_WEIGHT };
        b.weight(name, &[self.config.vocab_size, self.config.hidden_size])
    }
}
