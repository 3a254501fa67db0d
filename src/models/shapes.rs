//! Shapes of published models by name, for measuring and planning without their files.

use super::{AttentionBias, Family, ModelConfig, Rope, RopeScaling};

/// Name, then vocabulary, hidden size, MLP size, layers, heads, KV heads, head dimension, tied head. From the models'
/// `config.json`. Qwen's biases on q, k and v are left out: they change neither memory nor time.
type Row = (&'static str, usize, usize, usize, usize, usize, usize, usize, bool);

const SHAPES: [Row; 8] = [
    ("smollm2-135m", 49_152, 576, 1_536, 30, 9, 3, 64, true),
    ("qwen2.5-0.5b", 151_936, 896, 4_864, 24, 14, 2, 64, true),
    ("tinyllama-1.1b", 32_000, 2_048, 5_632, 22, 32, 4, 64, false),
    ("llama-3.2-1b", 128_256, 2_048, 8_192, 16, 32, 8, 64, true),
    ("llama-3.2-3b", 128_256, 3_072, 8_192, 28, 24, 8, 128, true),
    ("llama-2-7b", 32_000, 4_096, 11_008, 32, 32, 32, 128, false),
    ("qwen2.5-7b", 152_064, 3_584, 18_944, 28, 28, 4, 128, false),
    ("llama-3.1-8b", 128_256, 4_096, 14_336, 32, 32, 8, 128, false),
];

/// The shape of a model; `None` for a name that is not in [`shape_names`].
pub fn shape(name: &str) -> Option<ModelConfig> {
    let found = SHAPES.iter().find(|row| row.0.eq_ignore_ascii_case(name))?;
    let &(_, vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, tied_head) =
        found;
    Some(ModelConfig {
        family: Family::Llama,
        vocab_size,
        hidden_size,
        intermediate_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 500_000.0, scaling: RopeScaling::None },
        max_position_embeddings: 131_072,
        tied_head,
        attention_bias: AttentionBias::None,
        head_norms: false,
        sliding_window: None,
    })
}

pub fn shape_names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|row| row.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters as the models' cards give them, in millions; Qwen's without its biases.
    #[test]
    fn shapes_have_the_published_sizes() {
        let millions = [134.5, 494.0, 1100.0, 1235.8, 3212.7, 6738.4, 7615.5, 8030.3];
        for (name, expected) in shape_names().zip(millions) {
            let count = shape(name).unwrap().parameter_count() as f64 / 1e6;
            assert!((count / expected - 1.0).abs() < 1e-3, "{name}: {count}");
        }
        assert_eq!(shape("Llama-3.2-1B"), shape("llama-3.2-1b"));
        assert_eq!(shape("gpt-5"), None);
    }
}
