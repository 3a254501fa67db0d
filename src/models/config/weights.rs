//! The weights that such a model has, by name and shape.

use super::{AttentionBias, BlockNorms, ModelConfig};

impl ModelConfig {
    /// Parameters of the whole model; a tied head counts once.
    pub fn parameter_count(&self) -> u64 {
        let product = |shape: &[usize]| shape.iter().fold(1u64, |n, &dim| n.saturating_mul(dim as u64));
        let total = |shapes: &[(&str, Vec<usize>)]| {
            shapes.iter().fold(0u64, |sum, (_, shape)| sum.saturating_add(product(shape)))
        };
        let layers = total(&self.layer_shapes()).saturating_mul(self.layers as u64);
        layers.saturating_add(total(&self.outer_shapes()))
    }

    /// Every weight of the model as it is named in the checkpoint, with its shape.
    pub fn expected_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let layer = self.layer_shapes();
        let layers = (0..self.layers).flat_map(|i| {
            layer.iter().map(move |(name, shape)| (format!("model.layers.{i}.{name}"), shape.clone()))
        });
        let outer = self.outer_shapes().into_iter().map(|(name, shape)| (name.to_owned(), shape));
        layers.chain(outer).collect()
    }

    fn layer_shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (hidden, ffn) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut shapes = Vec::new();
        let norms = self.block_norms;
        if norms.before_attention().is_some() {
            shapes.push(("input_layernorm.weight", vec![hidden]));
        }
        shapes.extend(match self.joined_layers {
            true => vec![("self_attn.qkv_proj.weight", vec![queries + 2 * keys, hidden])],
            false => vec![
                ("self_attn.q_proj.weight", vec![queries, hidden]),
                ("self_attn.k_proj.weight", vec![keys, hidden]),
                ("self_attn.v_proj.weight", vec![keys, hidden]),
            ],
        });
        shapes.push(("self_attn.o_proj.weight", vec![hidden, queries]));
        shapes.push(("post_attention_layernorm.weight", vec![hidden]));
        shapes.extend(match self.joined_layers {
            true => vec![("mlp.gate_up_proj.weight", vec![2 * ffn, hidden])],
            false => {
                vec![("mlp.gate_proj.weight", vec![ffn, hidden]), ("mlp.up_proj.weight", vec![ffn, hidden])]
            }
        });
        shapes.push(("mlp.down_proj.weight", vec![hidden, ffn]));
        if self.attention_bias != AttentionBias::None {
            shapes.push(("self_attn.q_proj.bias", vec![queries]));
            shapes.push(("self_attn.k_proj.bias", vec![keys]));
            shapes.push(("self_attn.v_proj.bias", vec![keys]));
        }
        if self.attention_bias == AttentionBias::All {
            shapes.push(("self_attn.o_proj.bias", vec![hidden]));
        }
        if norms == BlockNorms::Around {
            shapes.push(("pre_feedforward_layernorm.weight", vec![hidden]));
        }
        if norms.after_mlp().is_some() {
            shapes.push(("post_feedforward_layernorm.weight", vec![hidden]));
        }
        if let Some([query, key]) = self.query_key_norm_widths() {
            shapes.push(("self_attn.q_norm.weight", vec![query]));
            shapes.push(("self_attn.k_norm.weight", vec![key]));
        }
        shapes
    }

    fn outer_shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        let mut shapes = vec![
            ("model.embed_tokens.weight", vec![self.vocab_size, self.hidden_size]),
            ("model.norm.weight", vec![self.hidden_size]),
        ];
        if !self.tied_head {
            shapes.push(("lm_head.weight", vec![self.vocab_size, self.hidden_size]));
        }
        shapes
    }

    /// Whether a linear layer has a bias.
    pub fn has_bias(&self, module: &str) -> bool {
        let part = module.rsplit_once('.').map_or(module, |(_, part)| part);
        match self.attention_bias {
            AttentionBias::None => false,
            AttentionBias::Inputs => matches!(part, "q_proj" | "k_proj" | "v_proj"),
            AttentionBias::All => matches!(part, "q_proj" | "k_proj" | "v_proj" | "o_proj"),
        }
    }
}
