//! The weights that such a model has, by name and shape.

use super::{AttentionBias, Family, HEAD_WEIGHT, JoinedLayers, ModelConfig};
use std::collections::HashSet;

/// A linear layer of each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearLayer {
    /// Within the block.
    pub name: &'static str,
    pub outputs: usize,
    pub inputs: usize,
    pub bias: bool,
}

impl ModelConfig {
    /// Parameters of the whole model; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        let product = |shape: &[usize]| shape.iter().fold(1u64, |n, &dim| n.saturating_mul(dim as u64));
        let total = |shapes: &[(String, Vec<usize>)]| {
            shapes.iter().fold(0u64, |sum, (_, shape)| sum.saturating_add(product(shape)))
        };
        let layers = total(&self.layer_shapes()).saturating_mul(self.layers as u64);
        layers.saturating_add(total(&self.outer_shapes()))
    }

    /// Every weight of the model as it is named in the checkpoint, with its shape.
    pub fn expected_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let layer = self.layer_shapes();
        let layers = (0..self.layers).flat_map(|i| {
            let blocks = self.names().blocks;
            layer.iter().map(move |(name, shape)| (format!("{blocks}.{i}.{name}"), shape.clone()))
        });
        layers.chain(self.outer_shapes()).collect()
    }

    /// The linear layers of a block, by their names within it.
    pub fn linear_layers(&self) -> Vec<LinearLayer> {
        let names = self.names();
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let inputs = self.attention_bias != AttentionBias::None;
        let layer = |name, outputs, inputs, bias| LinearLayer { name, outputs, inputs, bias };
        let mut layers = match self.joined_layers {
            JoinedLayers::None => vec![
                layer(names.query, queries, hidden, inputs),
                layer(names.key, keys, hidden, inputs),
                layer(names.value, keys, hidden, inputs),
            ],
            JoinedLayers::Whole | JoinedLayers::ByHead => {
                vec![layer(names.query_key_value, queries + 2 * keys, hidden, inputs)]
            }
        };
        layers.push(layer(names.output, hidden, queries, self.attention_bias == AttentionBias::All));
        match (self.gated_mlp, self.joined_layers) {
            (true, JoinedLayers::Whole) => layers.push(layer(names.gate_up, 2 * inner, hidden, false)),
            (true, _) => layers.extend([names.gate, names.up].map(|name| layer(name, inner, hidden, false))),
            (false, _) => layers.push(layer(names.up, inner, hidden, self.mlp_bias)),
        }
        layers.push(layer(names.down, hidden, inner, self.mlp_bias));
        layers
    }

    /// The norms of a block, by their names within it, with their widths.
    fn norms(&self) -> Vec<(&'static str, usize)> {
        let norms = self.block_norms;
        let hidden =
            [norms.before_attention(), norms.after_attention(), norms.before_mlp(), norms.after_mlp()]
                .into_iter()
                .flatten();
        let of_heads = self.query_key_norm_widths();
        let of_heads =
            of_heads.into_iter().flat_map(|[q, k]| [("self_attn.q_norm", q), ("self_attn.k_norm", k)]);
        hidden.map(|name| (name, self.hidden_size)).chain(of_heads).collect()
    }

    fn layer_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let linear = self.linear_layers().into_iter().flat_map(|layer| {
            let weight = (format!("{}.weight", layer.name), vec![layer.outputs, layer.inputs]);
            let bias = layer.bias.then(|| (format!("{}.bias", layer.name), vec![layer.outputs]));
            [Some(weight), bias].into_iter().flatten()
        });
        let norms = self.norms().into_iter().flat_map(|(name, width)| self.norm_shapes(name, width));
        norms.chain(linear).collect()
    }

    /// The weight of a norm, and its bias, should it have one.
    fn norm_shapes(&self, module: &str, width: usize) -> impl Iterator<Item = (String, Vec<usize>)> {
        let kinds = ["weight", "bias"].into_iter().take(if self.layer_norms { 2 } else { 1 });
        kinds.map(move |kind| (format!("{module}.{kind}"), vec![width]))
    }

    fn outer_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let names = self.names();
        let matrix = || vec![self.vocab_size, self.hidden_size];
        let embedding = (names.embedding_weight.to_owned(), matrix());
        let head = (!self.tied_head).then(|| (HEAD_WEIGHT.to_owned(), matrix()));
        [embedding].into_iter().chain(self.norm_shapes(names.norm, self.hidden_size)).chain(head).collect()
    }

    /// Whether a tensor in the files is a constant that some exporters store beside the weights.
    pub fn is_buffer(&self, name: &str) -> bool {
        let masks = ["attention.bias", "attention.masked_bias"];
        let mask = self.family == Family::GptNeoX && masks.iter().any(|mask| name.ends_with(mask));
        mask || name.ends_with("rotary_emb.inv_freq")
    }

    /// The modules that have a bias.
    pub fn biased_modules(&self) -> HashSet<String> {
        let module = |(name, _): (String, Vec<usize>)| Some(name.strip_suffix(".bias")?.to_owned());
        self.expected_shapes().into_iter().filter_map(module).collect()
    }
}
