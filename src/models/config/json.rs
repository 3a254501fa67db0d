//! A configuration as the text of a `config.json`.

use super::{AttentionBias, Family, ModelConfig, QueryScaling, Rope, RopeScaling};
use crate::graph::DType;
use crate::ops::activation::Activation;
use serde_json::{Value, json};

impl ModelConfig {
    /// A `config.json` for weights of the given type that transformers 4 and 5 both read, of a model that stands alone.
    pub fn to_json(&self, dtype: DType) -> Value {
        let dtype = match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        };
        let mut rope_parameters = match self.family {
            Family::Gemma3 | Family::Olmo3 => json!({
                "full_attention": parameters(&self.rope),
                "sliding_attention": parameters(self.local_rope.as_ref().unwrap_or(&self.rope)),
            }),
            _ => parameters(&self.rope),
        };
        if let Some(QueryScaling { beta, original_max_position_embeddings: original }) = self.query_scaling {
            rope_parameters["llama_4_scaling_beta"] = json!(beta);
            rope_parameters["original_max_position_embeddings"] = json!(original);
        }
        if let Some(turned) = self.partial_rotary_dim {
            // readers take the whole part of the product
            let factor = turned as f64 / self.head_dim as f64;
            let lost = ((self.head_dim as f64 * factor) as usize) < turned;
            rope_parameters["partial_rotary_factor"] = json!(if lost { factor.next_up() } else { factor });
        }
        let activation = match self.activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
            Activation::Gelu => "gelu",
        };
        let mut json = json!({
            "architectures": [self.family.architecture()],
            "attention_bias": self.attention_bias == AttentionBias::All,
            "attention_dropout": 0.0,
            "dtype": dtype,
            "head_dim": self.head_dim,
            "hidden_act": activation,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.rope.context().unwrap_or(self.max_position_embeddings),
            "model_type": self.family.model_type(),
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rope_parameters": rope_parameters,
            "rope_scaling": match self.query_scaling {
                Some(_) => Value::Null,
                None => json!(older_scaling(&self.rope)),
            },
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tied_head,
            "torch_dtype": dtype,
            "vocab_size": self.vocab_size,
        });
        json[self.family.eps_key()] = json!(self.norm_eps);
        if self.family.has_layer_norms() {
            self.add_layer_norm_family(&mut json);
        } else {
            json["mlp_bias"] = json!(false);
        }
        for (key, p) in &self.dropouts {
            json[*key] = json!(p);
        }
        if let RopeScaling::LongRope { original_max_position_embeddings, .. } = self.rope.scaling {
            json["original_max_position_embeddings"] = json!(original_max_position_embeddings);
        }
        let types = || {
            let kind = |layer| if self.slides(layer) { "sliding_attention" } else { "full_attention" };
            json!((0..self.layers).map(kind).collect::<Vec<_>>())
        };
        if self.partial_rotary_dim.is_some() {
            json["partial_rotary_factor"] = json["rope_parameters"]["partial_rotary_factor"].clone();
        }
        let windowless =
            [Family::Llama, Family::Gemma, Family::Olmo2, Family::Granite, Family::GptNeoX, Family::StableLm];
        if !windowless.contains(&self.family) {
            json["sliding_window"] = json!(self.sliding_window);
        }
        if self.family.is_gemma() {
            json["hidden_activation"] = json!(activation);
        }
        match self.family {
            Family::Qwen2 | Family::Qwen3 => {
                json["use_sliding_window"] = json!(self.sliding_window.is_some());
                let first = (0..self.layers).find(|&layer| self.slides(layer));
                json["max_window_layers"] = json!(first.unwrap_or(0));
                json["layer_types"] = types();
            }
            Family::Gemma2 | Family::Gemma3 => {
                json["query_pre_attn_scalar"] = json!(self.query_pre_attn_scalar.map(whole));
                json["layer_types"] = types();
                json["attn_logit_softcapping"] = json!(self.attention_soft_cap);
                json["final_logit_softcapping"] = json!(self.logit_soft_cap);
            }
            Family::Olmo3 => json["layer_types"] = types(),
            Family::SmolLm3 => {
                json["use_sliding_window"] = json!(self.sliding_window.is_some());
                json["layer_types"] = types();
                let turns = |layer| u8::from(self.turns(layer));
                json["no_rope_layers"] = json!((0..self.layers).map(turns).collect::<Vec<_>>());
            }
            Family::Granite => {
                if let Some(multipliers) = self.multipliers {
                    json["embedding_multiplier"] = json!(multipliers.embedding);
                    json["residual_multiplier"] = json!(multipliers.residual);
                    json["attention_multiplier"] = json!(multipliers.attention);
                    json["logits_scaling"] = json!(multipliers.logits);
                }
            }
            Family::Llama
            | Family::Mistral
            | Family::Ministral3
            | Family::Phi3
            | Family::Gemma
            | Family::Olmo2
            | Family::GptNeoX
            | Family::StableLm
            | Family::Starcoder2 => {}
        }
        if let Some(local) = self.local_rope.as_ref().filter(|_| self.family == Family::Gemma3) {
            json["rope_local_base_freq"] = json!(local.theta);
            // the period that versions before `layer_types` know
            json["sliding_window_pattern"] =
                json!(self.full_layers.first().map_or(self.layers + 1, |first| first + 1));
        }
        json
    }

    /// The keys of GPT-NeoX, StableLM and StarCoder2.
    fn add_layer_norm_family(&self, json: &mut Value) {
        if self.family == Family::Starcoder2 {
            json["use_bias"] = json!(self.mlp_bias);
            return;
        }
        // transformers takes a quarter where it is not said
        let part = json["rope_parameters"].get("partial_rotary_factor").cloned().unwrap_or(json!(1.0));
        json["rope_parameters"]["partial_rotary_factor"] = part.clone();
        json["use_parallel_residual"] = json!(self.parallel_residual);
        if self.family == Family::GptNeoX {
            json["rotary_emb_base"] = json!(self.rope.theta);
            json["rotary_pct"] = part;
        } else {
            json["partial_rotary_factor"] = part;
            json["use_qkv_bias"] = json!(self.attention_bias == AttentionBias::Inputs);
            json["qk_layernorm"] = json!(false);
        }
    }
}

/// A number that is whole in the files.
fn whole(number: f64) -> Value {
    if number.fract() == 0.0 { json!(number as u64) } else { json!(number) }
}

fn parameters(rope: &Rope) -> Value {
    let mut parameters = scaling(rope).unwrap_or_else(|| json!({ "rope_type": "default" }));
    parameters["rope_theta"] = json!(rope.theta);
    parameters
}

/// As transformers 4 wants it, which takes three fields of longrope and no others.
fn older_scaling(rope: &Rope) -> Option<Value> {
    match &rope.scaling {
        RopeScaling::LongRope { short_factor, long_factor, .. } if rope.has_usual_attention_factor() => {
            Some(json!({ "type": "longrope", "short_factor": short_factor, "long_factor": long_factor }))
        }
        _ => scaling(rope),
    }
}

fn scaling(rope: &Rope) -> Option<Value> {
    match &rope.scaling {
        RopeScaling::None => None,
        RopeScaling::Linear { factor } => Some(json!({ "rope_type": "linear", "factor": factor })),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => Some(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        })),
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            context: _,
            original_max_position_embeddings,
            attention_factor,
        } => Some(json!({
            "rope_type": "longrope",
            "short_factor": short_factor,
            "long_factor": long_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
            "attention_factor": attention_factor,
        })),
        RopeScaling::Yarn(yarn) => Some(json!({
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "truncate": yarn.truncate,
            "attention_factor": yarn.attention_factor,
        })),
    }
}
