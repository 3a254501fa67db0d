//! Names of weights in GGUF, and the order of the rows of queries, keys and values.
//!
//! llama.cpp turns neighbouring elements of a head in its rotary embedding, transformers the two halves: the rows of q and
//! k are put in that order. What GPT-NeoX has head by head, queries, keys and values, lies there one after the other.

use super::ExportError;
use crate::models::{BlockNorms, Family, HEAD, JoinedLayers, ModelConfig};

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
        Family::GptNeoX => "gptneox",
        Family::StableLm => "stablelm",
        Family::Starcoder2 => "starcoder2",
    }
}

/// Whether llama.cpp has the windows of this family; which layers see one is a constant of its.
pub(super) fn knows_window(config: &ModelConfig) -> bool {
    matches!(config.family, Family::Gemma2 | Family::Gemma3 | Family::Olmo3)
}

/// A weight's name in GGUF.
pub(super) fn gguf_name(config: &ModelConfig, weight: &str) -> Result<String, ExportError> {
    named(config, weight).ok_or_else(|| ExportError::NoGgufName { tensor: weight.to_owned() })
}

fn named(config: &ModelConfig, weight: &str) -> Option<String> {
    let names = config.names();
    let (module, kind) = weight.rsplit_once('.')?;
    if weight == names.embedding_weight {
        return Some("token_embd.weight".into());
    }
    if module == names.norm {
        return Some(format!("output_norm.{kind}"));
    }
    if module == HEAD {
        // llama.cpp has the embedding for it there, as the published models do
        let own = !matches!(config.family, Family::Gemma | Family::Gemma2);
        return own.then(|| format!("output.{kind}"));
    }
    let block = config.block_of(weight)?;
    let part = module.strip_prefix(&format!("{}.{block}.", names.blocks))?;
    let known = [
        (names.query, "attn_q"),
        (names.key, "attn_k"),
        (names.value, "attn_v"),
        (names.query_key_value, "attn_qkv"),
        (names.output, "attn_output"),
        (names.gate, "ffn_gate"),
        (names.up, "ffn_up"),
        (names.gate_up, "ffn_up"),
        (names.down, "ffn_down"),
    ];
    let part = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" if config.block_norms != BlockNorms::Before => "post_attention_norm",
        "pre_feedforward_layernorm" | "post_attention_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        part => known.iter().find(|(name, _)| *name == part)?.1,
    };
    // llama.cpp has no biases in the other families, as their published models have none
    let biased = matches!(config.family, Family::Llama | Family::Qwen2) || config.layer_norms;
    (kind == "weight" || kind == "bias" && biased).then(|| format!("blk.{block}.{part}.{kind}"))
}

/// The order in which llama.cpp has the rows of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowOrder {
    /// That of the files.
    Same,
    /// In each of so many heads, the two halves in turn.
    Pairs { heads: usize },
    /// Of what lies head by head in so many parts, the first of all heads, then the next of all.
    Parts { heads: usize, parts: usize },
}

/// Of most families llama.cpp turns halves too.
pub(super) fn row_order(config: &ModelConfig, weight: &str) -> RowOrder {
    let module = weight.rsplit_once('.').map_or(weight, |(module, _)| module);
    let is = |name: &str| module.ends_with(name);
    let names = config.names();
    let pairs = matches!(architecture(config), "llama" | "mistral3" | "smollm3" | "granite");
    if config.joined_layers == JoinedLayers::ByHead && is(names.query_key_value) {
        RowOrder::Parts { heads: config.heads, parts: 3 }
    } else if pairs && is(names.query) {
        RowOrder::Pairs { heads: config.heads }
    } else if pairs && is(names.key) {
        RowOrder::Pairs { heads: config.kv_heads }
    } else {
        RowOrder::Same
    }
}

/// All rows of a weight in llama.cpp's order.
pub(super) fn reordered(values: &[f32], order: RowOrder, columns: usize) -> Vec<f32> {
    match order {
        RowOrder::Same => values.to_vec(),
        RowOrder::Pairs { heads } => permute_rows(values, heads, columns),
        RowOrder::Parts { heads, parts } => {
            let size = (values.len() / (heads * parts)).max(1);
            let part = |part: usize| values.chunks(size).skip(part).step_by(parts).flatten().copied();
            (0..parts).flat_map(part).collect()
        }
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
    fn parts_of_all_heads_lie_together() {
        let values = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0];
        let order = RowOrder::Parts { heads: 2, parts: 3 };
        let moved = reordered(&values, order, 1);
        assert_eq!(moved, [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 8.0, 9.0, 4.0, 5.0, 10.0, 11.0]);
    }

    #[test]
    fn halves_of_each_head_alternate() {
        let rows = |rows: &[f32]| rows.iter().flat_map(|v| [*v, *v]).collect::<Vec<_>>();
        let values = rows(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(permute_rows(&values, 2, 2), rows(&[0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]));
        assert_eq!(permute_rows(&values, 1, 2), rows(&[0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0]));
    }
}
