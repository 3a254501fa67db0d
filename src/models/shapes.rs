//! Shapes of published models by name, for measuring and planning without their files.

use super::{AttentionBias, Family, ModelConfig, Multipliers, QueryScaling, Rope, RopeScaling};

/// Name, family, then vocabulary, hidden size, MLP size, layers, heads, KV heads, head dimension, tied head. From the models'
/// `config.json`; Mistral 7B is that of v0.3, without a window.
type Row = (&'static str, Family, usize, usize, usize, usize, usize, usize, usize, bool);

const SHAPES: [Row; 33] = [
    ("gemma-3-270m", Family::Gemma3, 262_144, 640, 2_048, 18, 4, 1, 256, true),
    ("smollm2-135m", Family::Llama, 49_152, 576, 1_536, 30, 9, 3, 64, true),
    ("pythia-160m", Family::GptNeoX, 50_304, 768, 3_072, 12, 12, 12, 64, false),
    ("pythia-410m", Family::GptNeoX, 50_304, 1_024, 4_096, 24, 16, 16, 64, false),
    ("qwen2.5-0.5b", Family::Qwen2, 151_936, 896, 4_864, 24, 14, 2, 64, true),
    ("qwen3-0.6b", Family::Qwen3, 151_936, 1_024, 3_072, 28, 16, 8, 128, true),
    ("gemma-3-1b", Family::Gemma3, 262_144, 1_152, 6_912, 26, 4, 1, 256, true),
    ("pythia-1b", Family::GptNeoX, 50_304, 2_048, 8_192, 16, 8, 8, 256, false),
    ("tinyllama-1.1b", Family::Llama, 32_000, 2_048, 5_632, 22, 32, 4, 64, false),
    ("llama-3.2-1b", Family::Llama, 128_256, 2_048, 8_192, 16, 32, 8, 64, true),
    ("olmo-2-1b", Family::Olmo2, 100_352, 2_048, 8_192, 16, 16, 16, 128, false),
    ("qwen2.5-1.5b", Family::Qwen2, 151_936, 1_536, 8_960, 28, 12, 2, 128, true),
    ("stablelm-2-1.6b", Family::StableLm, 100_352, 2_048, 5_632, 24, 32, 32, 64, false),
    ("qwen3-1.7b", Family::Qwen3, 151_936, 2_048, 6_144, 28, 16, 8, 128, true),
    ("gemma-2b", Family::Gemma, 256_000, 2_048, 16_384, 18, 8, 1, 256, true),
    ("granite-3.3-2b", Family::Granite, 49_159, 2_048, 8_192, 40, 32, 8, 64, true),
    ("gemma-2-2b", Family::Gemma2, 256_000, 2_304, 9_216, 26, 8, 4, 256, true),
    ("pythia-2.8b", Family::GptNeoX, 50_304, 2_560, 10_240, 32, 32, 32, 80, false),
    ("starcoder2-3b", Family::Starcoder2, 49_152, 3_072, 12_288, 30, 24, 2, 128, true),
    ("smollm3-3b", Family::SmolLm3, 128_256, 2_048, 11_008, 36, 16, 4, 128, true),
    ("llama-3.2-3b", Family::Llama, 128_256, 3_072, 8_192, 28, 24, 8, 128, true),
    ("ministral-3-3b", Family::Ministral3, 131_072, 3_072, 9_216, 26, 32, 8, 128, true),
    ("phi-3.5-mini", Family::Phi3, 32_064, 3_072, 8_192, 32, 32, 32, 96, false),
    ("phi-4-mini", Family::Phi3, 200_064, 3_072, 8_192, 32, 24, 8, 128, true),
    ("qwen3-4b", Family::Qwen3, 151_936, 2_560, 9_728, 36, 32, 8, 128, true),
    ("llama-2-7b", Family::Llama, 32_000, 4_096, 11_008, 32, 32, 32, 128, false),
    ("pythia-6.9b", Family::GptNeoX, 50_432, 4_096, 16_384, 32, 32, 32, 128, false),
    ("mistral-7b", Family::Mistral, 32_768, 4_096, 14_336, 32, 32, 8, 128, false),
    ("qwen2.5-7b", Family::Qwen2, 152_064, 3_584, 18_944, 28, 28, 4, 128, false),
    ("llama-3.1-8b", Family::Llama, 128_256, 4_096, 14_336, 32, 32, 8, 128, false),
    ("qwen3-8b", Family::Qwen3, 151_936, 4_096, 12_288, 36, 32, 8, 128, false),
    ("gemma-2-9b", Family::Gemma2, 256_000, 3_584, 14_336, 42, 16, 8, 256, true),
    ("phi-4", Family::Phi3, 100_352, 5_120, 17_920, 40, 40, 10, 128, false),
];

/// The shape of a model; `None` for a name that is not in [`shape_names`].
pub fn shape(name: &str) -> Option<ModelConfig> {
    let found = SHAPES.iter().find(|row| row.0.eq_ignore_ascii_case(name))?;
    let &(
        name,
        family,
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        tied_head,
    ) = found;
    // the last of so many layers sees all, the others a window
    let (sliding_window, period) = match family {
        Family::Gemma2 => (Some(4096), 2),
        Family::Gemma3 => (Some(512), 6),
        // no layer of so many sees all
        Family::Starcoder2 => (Some(4096), usize::MAX),
        _ => (None, usize::MAX),
    };
    let full_layers = (0..layers).filter(|l| (l + 1) % period == 0).collect();
    Some(ModelConfig {
        embedded: false,
        family,
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        norm_eps: 1e-5,
        layer_norms: family.has_layer_norms(),
        rope: Rope { theta: 500_000.0, scaling: RopeScaling::None },
        partial_rotary_dim: match family {
            Family::GptNeoX | Family::StableLm => Some(head_dim / 4),
            _ => (name == "phi-4-mini").then_some(96),
        },
        unturned_layers: (0..layers).filter(|l| family == Family::SmolLm3 && (l + 1) % 4 == 0).collect(),
        max_position_embeddings: 131_072,
        tied_head,
        activation: family.activation(),
        gated_mlp: family.gated_mlp(),
        parallel_residual: family == Family::GptNeoX,
        unit_offset: family.is_gemma(),
        block_norms: family.block_norms(),
        scaled_embedding: family.is_gemma(),
        query_pre_attn_scalar: matches!(family, Family::Gemma2 | Family::Gemma3).then_some(256.0),
        attention_soft_cap: (family == Family::Gemma2).then_some(50.0),
        logit_soft_cap: (family == Family::Gemma2).then_some(30.0),
        attention_bias: match family {
            Family::Qwen2 | Family::StableLm => AttentionBias::Inputs,
            Family::GptNeoX | Family::Starcoder2 => AttentionBias::All,
            _ => AttentionBias::None,
        },
        mlp_bias: matches!(family, Family::GptNeoX | Family::Starcoder2),
        joined_layers: family.joined_layers(),
        query_key_norms: family.query_key_norms(),
        sliding_window,
        full_layers,
        local_rope: (family == Family::Gemma3)
            .then_some(Rope { theta: 10_000.0, scaling: RopeScaling::None }),
        multipliers: (family == Family::Granite).then_some(Multipliers {
            embedding: 12.0,
            residual: 0.22,
            attention: 1.0 / 64.0,
            logits: 8.0,
        }),
        query_scaling: (family == Family::Ministral3)
            .then_some(QueryScaling { beta: 0.1, original_max_position_embeddings: 16_384 }),
        dropouts: Vec::new(),
    })
}

pub fn shape_names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|row| row.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters in millions, as the files of the models hold them.
    #[test]
    fn shapes_have_the_published_sizes() {
        let millions = [
            268.098, 134.515, 162.323, 405.334, 494.033, 596.050, 999.886, 1011.782, 1100.048, 1235.814,
            1484.917, 1543.714, 1644.515, 1720.575, 2506.172, 2533.540, 2614.342, 2775.209, 3030.371,
            3075.099, 3212.750, 3429.006, 3821.080, 3836.022, 4022.468, 6738.415, 6857.302, 7248.024,
            7615.617, 8030.261, 8190.735, 9241.706, 14659.507,
        ];
        for (name, expected) in shape_names().zip(millions) {
            let count = shape(name).unwrap().parameter_count() as f64 / 1e6;
            assert!((count / expected - 1.0).abs() < 1e-6, "{name}: {count}");
        }
        assert_eq!(shape("Llama-3.2-1B"), shape("llama-3.2-1b"));
        assert_eq!(shape("gpt-5"), None);
    }
}
