//! The decoder of Llama (Touvron et al. 2023, arXiv:2307.09288): RMSNorm before attention and MLP, rotary embedding,
//! grouped query heads, SwiGLU. Mistral (arXiv:2310.06825) has it with a sliding window, Qwen2 and 2.5 (arXiv:2407.10671) with biases
//! on queries, keys and values, Qwen3 (arXiv:2505.09388) with norms on the heads of queries and keys. Gemma (arXiv:2403.08295) has
//! GeGLU and scaled embeddings, Gemma 2 (arXiv:2408.00118) soft caps, norms behind attention and MLP too, and layers that see a window and
//! layers that see all in turn, Gemma 3 (arXiv:2503.19786) norms on heads and rotary angles of their own in layers with a window. Phi 3 (arXiv:2404.14219) has one layer for
//! queries, keys and values, and one for gate and up, OLMo 2 (arXiv:2501.00656) norms behind attention and MLP alone, and on whole queries
//! and keys, SmolLM 3 layers without a rotary embedding, Granite 3 multipliers. GPT-NeoX (arXiv:2204.06745) has LayerNorm, biases, an MLP without a gate that
//! sees what attention sees, and one layer for queries, keys and values head by head; StableLM 2 (arXiv:2402.17834) LayerNorm, StarCoder2
//! (arXiv:2402.19173) that, biases and such an MLP behind attention.

use super::{AttentionBias, CacheHook, JoinedLayers, ModelConfig, Stream, TokenSource, View};
use crate::graph::{GraphError, Value};
use crate::nn::Builder;
use crate::ops;
use crate::ops::rms_norm::Norm;

/// The names and `(outputs, inputs)` of the blocks' linear layers.
pub(super) fn linear_modules(config: &ModelConfig) -> Vec<(String, usize, usize)> {
    let (blocks, layers) = (config.names().blocks, config.linear_layers());
    let of_block = |block: usize| {
        layers
            .iter()
            .map(move |layer| (format!("{blocks}.{block}.{}", layer.name), layer.outputs, layer.inputs))
    };
    (0..config.layers).flat_map(of_block).collect()
}

/// Hidden states `[T, d]` after the final norm.
pub(super) fn hidden(
    b: &mut Builder<'_>,
    config: &ModelConfig,
    stream: &Stream,
    cache: &mut CacheHook<'_>,
) -> Result<Value, GraphError> {
    let names = config.names();
    let mut x = match stream.source {
        TokenSource::Embedded(embedded) => embedded,
        TokenSource::Tokens(tokens, order) => {
            let table = b.weight(names.embedding_weight, &[config.vocab_size, config.hidden_size])?;
            let scale = config.embedding_scale(b.graph.type_of(table).dtype);
            ops::embedding::embedding(&mut b.graph, table, tokens, order, scale, b.activations)?
        }
    };
    for layer in 0..config.layers {
        b.keep(layer, x)?;
        b.graph.begin_block();
        x = Block { config, layer }.append(b, stream, cache, x)?;
        b.graph.end_block();
    }
    normalise(b, config, x, names.norm)
}

fn normalise(b: &mut Builder<'_>, config: &ModelConfig, x: Value, module: &str) -> Result<Value, GraphError> {
    let norm = config.norm();
    match config.layer_norms {
        true => b.layer_norm(x, module, config.hidden_size, norm.eps),
        false => b.rms_norm(x, module, config.hidden_size, norm),
    }
}

struct Block<'a> {
    config: &'a ModelConfig,
    layer: usize,
}

impl Block<'_> {
    fn name(&self, part: &str) -> String {
        format!("{}.{}.{part}", self.config.names().blocks, self.layer)
    }

    /// The norm of that name in the block, where there is one.
    fn normalise(&self, b: &mut Builder<'_>, x: Value, part: Option<&str>) -> Result<Value, GraphError> {
        part.map_or(Ok(x), |part| normalise(b, self.config, x, &self.name(part)))
    }

    fn append(
        &self,
        b: &mut Builder<'_>,
        stream: &Stream,
        cache: &mut CacheHook<'_>,
        x: Value,
    ) -> Result<Value, GraphError> {
        let norms = self.config.block_norms;
        let normed = self.normalise(b, x, norms.before_attention())?;
        let attended = self.attention(b, stream, cache, normed)?;
        let output = self.config.attention_bias == AttentionBias::All;
        let output = output.then_some(self.config.names().output);
        let after = self.added(b, (x, attended), output, norms.after_attention())?;
        if self.config.parallel_residual {
            // attention and MLP both see what enters the block
            return b.in_chunks([x, after], |b, [x, after]| self.add_mlp(b, x, after));
        }
        b.in_chunks([after], |b, [x]| self.add_mlp(b, x, x))
    }

    /// The stream with what attention or MLP, without the last bias, adds to it.
    fn added(
        &self,
        b: &mut Builder<'_>,
        (x, made): (Value, Value),
        bias: Option<&str>,
        norm: Option<&str>,
    ) -> Result<Value, GraphError> {
        let made = match bias {
            Some(name) => b.bias(made, &self.name(name), self.config.hidden_size)?,
            None => made,
        };
        let made = self.normalise(b, made, norm)?;
        ops::add::add(&mut b.graph, x, made)
    }

    /// What attention makes of its normalised input, without the output's bias.
    fn attention(
        &self,
        b: &mut Builder<'_>,
        stream: &Stream,
        cache: &mut CacheHook<'_>,
        normed: Value,
    ) -> Result<Value, GraphError> {
        let Block { config, layer } = *self;
        let (d, head_dim) = (config.hidden_size, config.head_dim);
        let View { visibility, rope_table, query_table } = stream.view(config, layer)?;
        let [mut q, mut k, v] = self.queries_keys_values(b, normed)?;
        if let Some([query, key]) = config.query_key_norm_widths() {
            let norm = Norm { eps: config.norm_eps, ..config.norm() };
            q = b.rms_norm(q, &self.name("self_attn.q_norm"), query, norm)?;
            k = b.rms_norm(k, &self.name("self_attn.k_norm"), key, norm)?;
        }
        if config.turns(layer) {
            q = ops::rope::rope(&mut b.graph, q, stream.positions, query_table, head_dim)?;
            k = ops::rope::rope(&mut b.graph, k, stream.positions, rope_table, head_dim)?;
        }
        let (k, v) = cache(&mut b.graph, layer, k, v)?;
        let attended = ops::attention::attention(&mut b.graph, (q, k, v), &visibility, config.scoring())?;
        b.linear(attended, &self.name(config.names().output), d, config.heads * head_dim)
    }

    fn queries_keys_values(&self, b: &mut Builder<'_>, normed: Value) -> Result<[Value; 3], GraphError> {
        let (config, names) = (self.config, self.config.names());
        let biased = config.attention_bias != AttentionBias::None;
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let mut linear = |name: &str, width: usize| {
            let module = self.name(name);
            let x = b.linear(normed, &module, width, config.hidden_size)?;
            if biased { b.bias(x, &module, width) } else { Ok(x) }
        };
        if config.joined_layers == JoinedLayers::None {
            return Ok([linear(names.query, q)?, linear(names.key, kv)?, linear(names.value, kv)?]);
        }
        let all = linear(names.query_key_value, q + 2 * kv)?;
        match config.joined_layers {
            JoinedLayers::ByHead => b.parts(all, [config.head_dim; 3], config.heads),
            _ => b.parts(all, [q, kv, kv], 1),
        }
    }

    /// `stream` with what the MLP makes of x.
    fn add_mlp(&self, b: &mut Builder<'_>, x: Value, stream: Value) -> Result<Value, GraphError> {
        let mlp = self.mlp(b, x)?;
        let bias = self.config.mlp_bias.then_some(self.config.names().down);
        self.added(b, (stream, mlp), bias, self.config.block_norms.after_mlp())
    }

    /// What the MLP makes of the stream, without the last bias.
    fn mlp(&self, b: &mut Builder<'_>, x: Value) -> Result<Value, GraphError> {
        let normed = self.normalise(b, x, self.config.block_norms.before_mlp())?;
        let (config, names) = (self.config, self.config.names());
        let (d, inner) = (config.hidden_size, config.intermediate_size);
        let inner_values = match (config.gated_mlp, config.joined_layers) {
            (true, JoinedLayers::Whole) => {
                let both = b.linear(normed, &self.name(names.gate_up), 2 * inner, d)?;
                let [gate, up] = b.parts(both, [inner; 2], 1)?;
                ops::glu::glu(&mut b.graph, config.activation, gate, up)?
            }
            (true, _) => {
                let gate = b.linear(normed, &self.name(names.gate), inner, d)?;
                let up = b.linear(normed, &self.name(names.up), inner, d)?;
                ops::glu::glu(&mut b.graph, config.activation, gate, up)?
            }
            (false, _) => {
                let module = self.name(names.up);
                let mut up = b.linear(normed, &module, inner, d)?;
                if config.mlp_bias {
                    up = b.bias(up, &module, inner)?;
                }
                ops::activation::activate(&mut b.graph, config.activation, up)?
            }
        };
        b.linear(inner_values, &self.name(names.down), d, inner)
    }
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
