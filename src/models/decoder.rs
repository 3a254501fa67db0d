//! The decoder of Llama (Touvron et al. 2023, arXiv:2307.09288): RMSNorm before attention and MLP, rotary embedding,
//! grouped query heads, SwiGLU. Mistral (arXiv:2310.06825) has it with a sliding window, Qwen2 and 2.5 (arXiv:2407.10671) with biases
//! on queries, keys and values, Qwen3 (arXiv:2505.09388) with norms on the heads of queries and keys. Gemma (arXiv:2403.08295) has
//! GeGLU and scaled embeddings, Gemma 2 (arXiv:2408.00118) soft caps, norms behind attention and MLP too, and layers that see a window and
//! layers that see all in turn, Gemma 3 (arXiv:2503.19786) norms on heads and rotary angles of their own in layers with a window. Phi 3 (arXiv:2404.14219) has one layer for
//! queries, keys and values, and one for gate and up, OLMo 2 (arXiv:2501.00656) norms behind attention and MLP alone, and on whole queries
//! and keys, SmolLM 3 layers without a rotary embedding, Granite 3 multipliers.

use super::{AttentionBias, CacheHook, EMBEDDING, ModelConfig, Stream, TokenSource, View};
use crate::graph::{GraphError, Value};
use crate::nn::Builder;
use crate::ops;
use crate::ops::rms_norm::Norm;

/// The names and `(outputs, inputs)` of a block's linear layers, all blocks.
pub(super) fn linear_modules(config: &ModelConfig) -> Vec<(String, usize, usize)> {
    let (d, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let block = match config.joined_layers {
        true => vec![
            ("self_attn.qkv_proj", q + 2 * kv, d),
            ("self_attn.o_proj", d, q),
            ("mlp.gate_up_proj", 2 * inner, d),
            ("mlp.down_proj", d, inner),
        ],
        false => vec![
            ("self_attn.q_proj", q, d),
            ("self_attn.k_proj", kv, d),
            ("self_attn.v_proj", kv, d),
            ("self_attn.o_proj", d, q),
            ("mlp.gate_proj", inner, d),
            ("mlp.up_proj", inner, d),
            ("mlp.down_proj", d, inner),
        ],
    };
    let of_layer = |layer: usize| {
        let named = move |(name, outputs, inputs): &(&str, usize, usize)| {
            (format!("model.layers.{layer}.{name}"), *outputs, *inputs)
        };
        block.iter().map(named)
    };
    (0..config.layers).flat_map(of_layer).collect()
}

/// Hidden states `[T, d]` after the final norm.
pub(super) fn hidden(
    b: &mut Builder<'_>,
    config: &ModelConfig,
    stream: &Stream,
    cache: &mut CacheHook<'_>,
) -> Result<Value, GraphError> {
    let d = config.hidden_size;
    let mut x = match stream.source {
        TokenSource::Embedded(embedded) => embedded,
        TokenSource::Tokens(tokens, order) => {
            let table = b.weight(EMBEDDING, &[config.vocab_size, d])?;
            let scale = config.embedding_scale(b.graph.type_of(table).dtype);
            ops::embedding::embedding(&mut b.graph, table, tokens, order, scale, b.activations)?
        }
    };
    for layer in 0..config.layers {
        b.keep(layer, x)?;
        b.graph.begin_block();
        x = block(b, config, stream, cache, layer, x)?;
        b.graph.end_block();
    }
    b.rms_norm(x, "model.norm", d, config.norm())
}

fn block(
    b: &mut Builder<'_>,
    config: &ModelConfig,
    stream: &Stream,
    cache: &mut CacheHook<'_>,
    layer: usize,
    x: Value,
) -> Result<Value, GraphError> {
    let (d, head_dim) = (config.hidden_size, config.head_dim);
    let (q_width, kv_width) = (config.heads * head_dim, config.kv_heads * head_dim);
    let name = |part: &str| format!("model.layers.{layer}.{part}");
    let (norm, norms) = (config.norm(), config.block_norms);
    let normalise = |b: &mut Builder<'_>, x: Value, part: Option<&str>| match part {
        Some(part) => b.rms_norm(x, &name(part), d, norm),
        None => Ok(x),
    };
    let View { visibility, rope_table, query_table } = stream.view(config, layer)?;

    let normed = normalise(b, x, norms.before_attention())?;
    let widths = [q_width, kv_width, kv_width];
    let [mut q, mut k, mut v] = match config.joined_layers {
        true => b.joined_linear(normed, &name("self_attn.qkv_proj"), widths, d)?,
        false => {
            let mut linear = |part: &str, width| b.linear(normed, &name(part), width, d);
            [
                linear("self_attn.q_proj", q_width)?,
                linear("self_attn.k_proj", kv_width)?,
                linear("self_attn.v_proj", kv_width)?,
            ]
        }
    };
    if config.attention_bias != AttentionBias::None {
        q = b.bias(q, &name("self_attn.q_proj"), q_width)?;
        k = b.bias(k, &name("self_attn.k_proj"), kv_width)?;
        v = b.bias(v, &name("self_attn.v_proj"), kv_width)?;
    }
    if let Some([query, key]) = config.query_key_norm_widths() {
        let norm = Norm { eps: config.rms_norm_eps, ..norm };
        q = b.rms_norm(q, &name("self_attn.q_norm"), query, norm)?;
        k = b.rms_norm(k, &name("self_attn.k_norm"), key, norm)?;
    }
    if config.turns(layer) {
        q = ops::rope::rope(&mut b.graph, q, stream.positions, query_table, head_dim)?;
        k = ops::rope::rope(&mut b.graph, k, stream.positions, rope_table, head_dim)?;
    }
    let (k, v) = cache(&mut b.graph, layer, k, v)?;
    let attended = ops::attention::attention(&mut b.graph, (q, k, v), &visibility, config.scoring())?;
    let mut projected = b.linear(attended, &name("self_attn.o_proj"), d, q_width)?;
    if config.attention_bias == AttentionBias::All {
        projected = b.bias(projected, &name("self_attn.o_proj"), d)?;
    }
    let projected = normalise(b, projected, norms.after_attention())?;
    let x = ops::add::add(&mut b.graph, x, projected)?;

    b.in_chunks(x, |b, x| {
        let normed = normalise(b, x, norms.before_mlp())?;
        let sizes = (d, config.intermediate_size);
        let mlp = b.gated_mlp(normed, &name("mlp"), sizes, config.activation, config.joined_layers)?;
        let mlp = normalise(b, mlp, norms.after_mlp())?;
        ops::add::add(&mut b.graph, x, mlp)
    })
}

#[cfg(test)]
mod tests {
    use crate::autograd::Recompute;
    use crate::fuse::Fusions;
    use crate::graph::DType;
    use crate::models::{ModelConfig, Network, QUERY_ROPE_TABLE, shape};
    use crate::nn::{PlainLayers, Storage, WeightMode};
    use crate::ops::embedding::Embedding;
    use std::any::Any;

    /// Up to the first context queries have the table of the keys.
    #[test]
    fn queries_have_a_table_of_their_own_where_they_are_scaled() {
        let scaled = |positions: usize| {
            let network = Network { positions, ..network("ministral-3-3b", DType::BF16, DType::BF16) };
            let graph = network.evaluation(32, 32).unwrap();
            graph.leaves().iter().any(|leaf| leaf.name == QUERY_ROPE_TABLE)
        };
        assert_eq!([32, 16_384, 16_385].map(scaled), [false, false, true]);
    }

    fn network(name: &str, table: DType, activations: DType) -> Network {
        Network {
            config: ModelConfig { layers: 1, ..shape(name).unwrap() },
            weights: WeightMode::Frozen(Storage { outer: table, ..Storage::from(table) }),
            plain_layers: PlainLayers::default(),
            activations,
            adapter: None,
            recompute: Recompute::None,
            positions: 32,
            fusions: Fusions::default(),
            host_activations: false,
            mlp_chunks: 1,
            frozen: Vec::new(),
        }
    }

    /// bf16 has neither 25.3 nor 33.94, the roots of Gemma 3's widths.
    #[test]
    fn embeddings_are_scaled_in_the_type_of_their_table() {
        let scale = |name: &str, table: DType, activations: DType| {
            let graph = network(name, table, activations).evaluation(32, 32).unwrap();
            let found = graph.nodes().iter().find_map(|node| {
                let op: &dyn Any = &*node.op;
                op.downcast_ref::<Embedding>().map(|op| op.scale)
            });
            found.unwrap()
        };
        assert_eq!(scale("gemma-3-270m", DType::BF16, DType::BF16), 25.25);
        assert_eq!(scale("gemma-3-1b", DType::BF16, DType::BF16), 34.0);
        let mixed = scale("gemma-3-270m", DType::F32, DType::BF16);
        assert!((mixed - 640f64.sqrt()).abs() < 1e-12, "{mixed}");
        assert_eq!(scale("llama-3.2-1b", DType::BF16, DType::BF16), 1.0);
    }
}
