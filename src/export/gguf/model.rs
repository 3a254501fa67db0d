//! A model as a GGUF file, laid out as llama.cpp's `convert_hf_to_gguf.py` does.

use super::names::{RowOrder, architecture, gguf_name, knows_window, permute_rows, reordered, row_order};
use super::tokenizer::{phi3_name, tokenizer_metadata};
use super::{GgufOptions, GgufReport, folder_name, general, written};
use crate::checkpoint::gguf::{GgmlType, GgufTensor, GgufValue, write_gguf};
use crate::error::Error;
use crate::export::ExportError;
use crate::export::weights::check_range;
use crate::export::{ModelWeights, WeightOptions};
use crate::models::{AttentionBias, Family, ModelConfig, QueryScaling, Rope, RopeScaling};
use crate::ops::activation::Activation;
use std::collections::HashMap;
use std::io::{self, Write};

/// Writes a model, with an adapter merged in where `weights` names one.
///
/// # Errors
/// Input that is missing, broken or of different models, a tokenizer that llama.cpp does not know, a file that is in the
/// way or cannot be written.
pub fn export_model(weights: &WeightOptions, options: &GgufOptions) -> Result<GgufReport, Error> {
    options.check()?;
    let model = ModelWeights::open(weights)?;
    let (model_dir, config) = (&weights.model_dir, &model.config);
    if let Some(what) = lacking(config) {
        return Err(ExportError::LlamaCppLacks { what }.into());
    }
    let name = options.name.clone().unwrap_or_else(|| folder_name(model_dir));
    let (name, renamed) = phi3_name(model_dir, name)?;
    let mut metadata = general(architecture(config), "model", &name, options.ty);
    metadata.extend(model_metadata(config));
    let (tokenizer, left_out) =
        tokenizer_metadata(model_dir, config.vocab_size, options.tokenizer_pre.as_deref())?;
    metadata.extend(tokenizer);

    let mut tensors = Vec::new();
    let mut sources = HashMap::new();
    let rope_factors = rope_factors(config);
    for (name, factors) in &rope_factors {
        tensors.push(GgufTensor { name: (*name).into(), ty: GgmlType::F32, shape: vec![factors.len()] });
    }
    for (weight, shape) in config.expected_shapes() {
        let name = gguf_name(config, &weight)?;
        let ty = if shape.len() == 1 { GgmlType::F32 } else { options.type_of(shape[1]) };
        tensors.push(GgufTensor { name: name.clone(), ty, shape });
        sources.insert(name, weight);
    }
    write_gguf(&options.path, &metadata, &tensors, &mut |tensor, out| match sources.get(&tensor.name) {
        Some(weight) => write_tensor(&model, weight, tensor, out),
        None => {
            let mut bytes = Vec::new();
            let factors = rope_factors.iter().find(|(name, _)| *name == tensor.name);
            tensor.ty.encode(factors.map_or(&[], |(_, factors)| factors), &mut bytes);
            out.write_all(&bytes)
        }
    })
    .map_err(written)?;
    let mut notes = model.notes;
    notes.extend(left_out.into_iter().chain(renamed));
    if let RopeScaling::LongRope { original_max_position_embeddings: first, .. } = config.rope.scaling {
        notes.push(format!("start llama.cpp with a context of at most {first} tokens: with more it turns all texts by other angles"));
    }
    options.report(&tensors, &model.config, notes)
}

fn write_tensor(
    model: &ModelWeights,
    weight: &str,
    tensor: &GgufTensor,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    // llama.cpp multiplies by the weight itself
    let offset = tensor.shape.len() == 1 && model.config.unit_offset && weight.ends_with("norm.weight");
    let mut write = |values: &[f32]| {
        let moved: Vec<f32>;
        let values = match offset {
            true => {
                moved = values.iter().map(|value| 1.0 + value).collect();
                &moved
            }
            false => values,
        };
        // the scale of a block is f16, too
        if matches!(tensor.ty, GgmlType::F16 | GgmlType::Q8_0) {
            check_range(weight, values)?;
        }
        bytes.clear();
        tensor.ty.encode(values, &mut bytes);
        out.write_all(&bytes)
    };
    let elements = tensor.shape.iter().product::<usize>();
    let heads = match row_order(&model.config, weight) {
        RowOrder::Same => return model.rows(weight, &mut write),
        order @ RowOrder::Parts { .. } => {
            // what comes first is of every head: the whole is held, 0.45 GB in the largest of these models, GPT-NeoX-20B
            let mut all = Vec::with_capacity(elements);
            model.rows(weight, &mut |values| {
                all.extend_from_slice(values);
                Ok(())
            })?;
            let columns = tensor.shape.get(1).copied().unwrap_or(1);
            return write(&reordered(&all, order, columns));
        }
        RowOrder::Pairs { heads } => heads,
    };
    let head = elements / heads;
    let columns = tensor.shape.get(1).copied().unwrap_or(1);
    let mut waiting = Vec::new();
    model.rows(weight, &mut |values| {
        waiting.extend_from_slice(values);
        let whole = waiting.len() / head;
        if whole > 0 {
            write(&permute_rows(&waiting[..whole * head], whole, columns))?;
            waiting.drain(..whole * head);
        }
        Ok(())
    })
}

/// What divides the frequencies of the rotary embedding, by the names of tensors.
fn rope_factors(config: &ModelConfig) -> Vec<(&'static str, Vec<f32>)> {
    if let Some(factors) = config.rope.llama3_factors(config.rotary_dim()) {
        return vec![("rope_freqs.weight", factors)];
    }
    let RopeScaling::LongRope { short_factor, long_factor, .. } = &config.rope.scaling else {
        return Vec::new();
    };
    let single = |factors: &[f64]| factors.iter().map(|factor| *factor as f32).collect();
    vec![
        ("rope_factors_long.weight", single(long_factor)),
        ("rope_factors_short.weight", single(short_factor)),
    ]
}

/// What llama.cpp does not do as such a model wants it: the constants of a family that are not in the file.
fn lacking(config: &ModelConfig) -> Option<String> {
    if matches!(config.rope.scaling, RopeScaling::Yarn(yarn) if !yarn.has_usual_pairs()) {
        return Some("rope_scaling yarn with beta_fast, beta_slow or truncate of its own".into());
    }
    if matches!(config.rope.scaling, RopeScaling::Llama3 { .. }) && architecture(config) != "llama" {
        return Some("rope_scaling llama3".into());
    }
    // llama.cpp has one context for both
    let stretched = match config.rope.scaling {
        RopeScaling::Yarn(yarn) => Some(yarn.original_max_position_embeddings),
        _ => None,
    };
    if config.query_scaling.is_some_and(|scaling| stretched != Some(scaling.original_max_position_embeddings))
    {
        return Some("llama_4_scaling_beta without yarn of the same original_max_position_embeddings".into());
    }
    if config.layer_norms {
        return lacking_with_layer_norms(config);
    }
    if architecture(config) == "olmo2" && config.tied_head {
        return Some("tie_word_embeddings true".into());
    }
    if architecture(config) == "olmo2" && config.heads * config.head_dim != config.hidden_size {
        return Some(format!("head_dim {} of {} heads", config.head_dim, config.heads));
    }
    if config.family == Family::SmolLm3
        && (0..config.layers).any(|layer| config.turns(layer) == (layer + 1).is_multiple_of(4))
    {
        return Some("no_rope_layers other than every fourth layer".into());
    }
    // of so many layers the last sees all, the others a window
    let windows_differ = |period: usize| {
        let differs =
            (0..config.layers).any(|layer| config.slides(layer) == (layer + 1).is_multiple_of(period));
        differs.then(|| format!("layer_types other than a full_attention for every {period} layers"))
    };
    if config.family == Family::Olmo3 && config.sliding_window.is_some() {
        if let Some(differs) = windows_differ(4) {
            return Some(differs);
        }
        let usual = Rope { theta: config.rope.theta, scaling: RopeScaling::None };
        let local = config.local_rope.as_ref().unwrap_or(&config.rope);
        return (*local != usual).then(|| "a scaled rotary embedding of sliding_attention".into());
    }
    // the largest model of each scales scores in another way than the others
    let (largest, period) = match config.family {
        Family::Gemma2 => (46, 2),
        Family::Gemma3 => (62, 6),
        _ => return None,
    };
    let heads = if config.layers == largest { config.hidden_size / config.heads } else { config.head_dim };
    if let Some(scalar) = config.query_pre_attn_scalar.filter(|scalar| *scalar != heads as f64) {
        return Some(format!("query_pre_attn_scalar {scalar} instead of {heads}"));
    }
    if config.sliding_window.is_none() {
        return Some("sliding_window null".into());
    }
    if let Some(differs) = windows_differ(period) {
        return Some(differs);
    }
    let caps = [config.attention_soft_cap, config.logit_soft_cap].map(|cap| cap.is_some());
    if caps != [config.family == Family::Gemma2; 2] {
        let said = |cap: Option<f64>| cap.map_or("null".into(), |cap| cap.to_string());
        let caps = [config.attention_soft_cap, config.logit_soft_cap].map(said);
        let has = if config.family == Family::Gemma2 { "both" } else { "neither" };
        return Some(format!(
            "attn_logit_softcapping {} and final_logit_softcapping {}, where it has {has}",
            caps[0], caps[1]
        ));
    }
    let usual = Rope { theta: 10_000.0, scaling: RopeScaling::None };
    let local = config.local_rope.as_ref().filter(|rope| **rope != usual);
    local.map(|_| "rotary angles of sliding_attention that are not those of rope_theta 10000".into())
}

/// The same of GPT-NeoX, StableLM and StarCoder2.
fn lacking_with_layer_norms(config: &ModelConfig) -> Option<String> {
    if !config.gated_mlp && config.activation == Activation::Silu {
        return Some("hidden_act silu".into());
    }
    match config.family {
        Family::GptNeoX if config.attention_bias != AttentionBias::All => Some("attention_bias false".into()),
        Family::GptNeoX | Family::StableLm if config.tied_head => Some("tie_word_embeddings true".into()),
        Family::Starcoder2 if !config.mlp_bias => Some("use_bias false".into()),
        Family::Starcoder2 if config.heads * config.head_dim != config.hidden_size => {
            Some(format!("head_dim {} of {} heads", config.head_dim, config.heads))
        }
        _ => None,
    }
}

/// The keys of the architecture.
fn model_metadata(config: &ModelConfig) -> Vec<(String, GgufValue)> {
    let architecture = architecture(config);
    let count = |value: usize| GgufValue::U32(u32::try_from(value).unwrap_or(u32::MAX));
    let mut all = Vec::new();
    let mut add = |key: &str, value| all.push((format!("{architecture}.{key}"), value));
    add("block_count", count(config.layers));
    add("context_length", count(config.rope.context().unwrap_or(config.max_position_embeddings)));
    add("embedding_length", count(config.hidden_size));
    add("feed_forward_length", count(config.intermediate_size));
    add("attention.head_count", count(config.heads));
    add("attention.head_count_kv", count(config.kv_heads));
    add("attention.key_length", count(config.head_dim));
    add("attention.value_length", count(config.head_dim));
    let norm = if config.layer_norms { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
    add(&format!("attention.{norm}"), GgufValue::F32(config.norm_eps as f32));
    if matches!(config.family, Family::GptNeoX | Family::StableLm) {
        add("use_parallel_residual", GgufValue::Bool(config.parallel_residual));
    }
    add("rope.freq_base", GgufValue::F32(config.rope.theta as f32));
    add("rope.dimension_count", count(config.rotary_dim()));
    add("vocab_size", count(config.vocab_size));
    if let Some(window) = config.sliding_window.filter(|_| knows_window(config)) {
        add("attention.sliding_window", count(window));
    }
    if let Some(cap) = config.attention_soft_cap {
        add("attn_logit_softcapping", GgufValue::F32(cap as f32));
    }
    if let Some(cap) = config.logit_soft_cap {
        add("final_logit_softcapping", GgufValue::F32(cap as f32));
    }
    if let Some(multipliers) = config.multipliers {
        add("embedding_scale", GgufValue::F32(multipliers.embedding as f32));
        add("residual_scale", GgufValue::F32(multipliers.residual as f32));
        add("attention.scale", GgufValue::F32(multipliers.attention as f32));
        add("logit_scale", GgufValue::F32(multipliers.logits as f32));
    }
    if let Some(QueryScaling { beta, .. }) = config.query_scaling {
        add("attention.temperature_scale", GgufValue::F32(beta as f32));
    }
    if config.family == Family::Phi3 {
        // llama.cpp tells the models of this family apart by it
        add("attention.sliding_window", count(config.sliding_window.unwrap_or(0)));
    }
    match config.rope.scaling {
        RopeScaling::LongRope { original_max_position_embeddings, attention_factor, .. } => {
            add("rope.scaling.original_context_length", count(original_max_position_embeddings));
            add("rope.scaling.attn_factor", GgufValue::F32(attention_factor as f32));
        }
        RopeScaling::Linear { factor } => {
            add("rope.scaling.type", GgufValue::Text("linear".into()));
            add("rope.scaling.factor", GgufValue::F32(factor as f32));
        }
        RopeScaling::Yarn(yarn) => {
            add("rope.scaling.type", GgufValue::Text("yarn".into()));
            add("rope.scaling.factor", GgufValue::F32(yarn.factor as f32));
            add("rope.scaling.original_context_length", count(yarn.original_max_position_embeddings));
            add("rope.scaling.attn_factor", GgufValue::F32(yarn.attention_factor_of_usual() as f32));
        }
        // llama 3's is in rope_freqs.weight
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(name: &str) -> ModelConfig {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        ModelConfig::read(&models.join(name)).unwrap()
    }

    #[test]
    fn what_is_a_constant_of_llama_cpp_is_refused_where_it_is_another() {
        let of = |name: &str, change: fn(&mut ModelConfig)| {
            let mut config = read(name);
            assert_eq!(lacking(&config), None, "{name}");
            change(&mut config);
            lacking(&config).unwrap()
        };
        assert_eq!(of("olmo2", |config| config.tied_head = true), "tie_word_embeddings true");
        assert_eq!(of("olmo2", |config| config.head_dim = 32), "head_dim 32 of 4 heads");
        let plain = of("ministral3", |config| config.rope.scaling = RopeScaling::None);
        assert!(plain.starts_with("llama_4_scaling_beta without yarn"), "{plain}");
        let layers = "layer_types other than a full_attention for every 4 layers";
        assert_eq!(of("olmo3", |config| config.full_layers = vec![0]), layers);
        let scaled = of("olmo3", |config| config.local_rope = None);
        assert_eq!(scaled, "a scaled rotary embedding of sliding_attention");
        let unturned = of("smollm3", |config| config.unturned_layers.clear());
        assert_eq!(unturned, "no_rope_layers other than every fourth layer");
        let silu = |config: &mut ModelConfig| config.activation = Activation::Silu;
        assert_eq!(of("gpt_neox", silu), "hidden_act silu");
        let unbiased = of("gpt_neox", |config| config.attention_bias = AttentionBias::None);
        assert_eq!(unbiased, "attention_bias false");
        assert_eq!(of("gpt_neox", |config| config.tied_head = true), "tie_word_embeddings true");
        assert_eq!(of("starcoder2", |config| config.mlp_bias = false), "use_bias false");
        assert_eq!(of("starcoder2", |config| config.head_dim = 32), "head_dim 32 of 4 heads");
        assert_eq!(of("stablelm", |config| config.tied_head = true), "tie_word_embeddings true");
    }
}
