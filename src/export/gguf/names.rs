//! Names of weights in GGUF, and the order of the rows of q and k.
//!
//! llama.cpp turns neighbouring elements of a head in its rotary embedding, transformers the two halves: the rows of q and
//! k are put in that order.

use super::ExportError;
use crate::models::{BlockNorms, Family, ModelConfig};

/// llama.cpp's name of a family; Mistral has Llama's there.
pub(super) fn architecture(config: &ModelConfig) -> &'static str {
    match config.family {
        Family::Llama | Family::Mistral => "llama",
        Family::Ministral3 => "mistral3",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Phi3 => "phi3",
        Family::Gemma => "gemma",
        Family::Gemma2 => "gemma2",
        Family::Gemma3 => "gemma3",
        Family::Olmo2 | Family::Olmo3 => "olmo2",
        Family::SmolLm3 => "smollm3",
        Family::Granite => "granite",
    }
}

/// Whether llama.cpp has the windows of this family; which layers see one is a constant of its.
pub(super) fn knows_window(config: &ModelConfig) -> bool {
    matches!(config.family, Family::Gemma2 | Family::Gemma3 | Family::Olmo3)
}

/// A weight's name in GGUF.
pub(super) fn gguf_name(config: &ModelConfig, weight: &str) -> Result<String, ExportError> {
    let found = match weight {
        "model.embed_tokens.weight" => Some("token_embd.weight".to_owned()),
        "model.norm.weight" => Some("output_norm.weight".to_owned()),
        // llama.cpp has the embedding for it there, as the published models do
        "lm_head.weight" if matches!(config.family, Family::Gemma | Family::Gemma2) => None,
        "lm_head.weight" => Some("output.weight".to_owned()),
        _ => weight.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).and_then(
            |(layer, part)| {
                let (module, kind) = part.rsplit_once('.')?;
                let part = match module {
                    "input_layernorm" => "attn_norm",
                    "self_attn.q_proj" => "attn_q",
                    "self_attn.k_proj" => "attn_k",
                    "self_attn.v_proj" => "attn_v",
                    "self_attn.qkv_proj" => "attn_qkv",
                    "self_attn.q_norm" => "attn_q_norm",
                    "self_attn.k_norm" => "attn_k_norm",
                    "self_attn.o_proj" => "attn_output",
                    "post_attention_layernorm" if config.block_norms != BlockNorms::Before => {
                        "post_attention_norm"
                    }
                    "pre_feedforward_layernorm" | "post_attention_layernorm" => "ffn_norm",
                    "post_feedforward_layernorm" => "post_ffw_norm",
                    "mlp.gate_proj" => "ffn_gate",
                    "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
                    "mlp.down_proj" => "ffn_down",
                    _ => return None,
                };
                // llama.cpp has no biases in the other families, as their published models have none
                let biased = matches!(config.family, Family::Llama | Family::Qwen2);
                let known = kind == "weight" || kind == "bias" && biased;
                known.then(|| format!("blk.{layer}.{part}.{kind}"))
            },
        ),
    };
    found.ok_or_else(|| ExportError::NoGgufName { tensor: weight.to_owned() })
}

/// The number of heads whose rows are put in another order; `None` for the weights that stay: of most families llama.cpp turns halves
/// too.
pub(super) fn permuted_heads(config: &ModelConfig, weight: &str) -> Option<usize> {
    if !matches!(architecture(config), "llama" | "mistral3" | "smollm3" | "granite") {
        return None;
    }
    let module = weight.strip_suffix(".weight").or(weight.strip_suffix(".bias"))?;
    if module.ends_with("self_attn.q_proj") {
        Some(config.heads)
    } else if module.ends_with("self_attn.k_proj") {
        Some(config.kv_heads)
    } else {
        None
    }
}

/// Rows from halves to pairs: of each head `[2, d / 2, columns]` to `[d / 2, 2, columns]`.
pub(super) fn permute_rows(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks((values.len() / heads).max(1)) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks(columns).zip(second.chunks(columns)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_each_head_alternate() {
        let rows = |rows: &[f32]| rows.iter().flat_map(|v| [*v, *v]).collect::<Vec<_>>();
        let values = rows(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(permute_rows(&values, 2, 2), rows(&[0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]));
        assert_eq!(permute_rows(&values, 1, 2), rows(&[0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]));
    }
}
