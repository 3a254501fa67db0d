mod families;
mod rope;

use super::*;
use crate::graph::DType;

const LLAMA: [&str; 3] = ["llama", "llama_untied", "llama_sharded"];

fn fixture(model: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(model).join(file)
}

fn read_fixture(model: &str, file: &str) -> ModelConfig {
    let path = fixture(model, file);
    ModelConfig::parse(&std::fs::read_to_string(&path).unwrap(), &path).unwrap()
}

fn minimal() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    })
}

fn parse_with(changes: &[(&str, Value)]) -> Result<ModelConfig, ConfigError> {
    let mut json = minimal();
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    ModelConfig::parse(&json.to_string(), Path::new("config.json"))
}

fn message(changes: &[(&str, Value)]) -> String {
    parse_with(changes).unwrap_err().to_string()
}

#[test]
fn both_spellings_of_transformers_are_equal() {
    for model in LLAMA {
        let config = read_fixture(model, "config.json");
        assert_eq!(config, read_fixture(model, "config.v4.json"), "{model}");
        assert_eq!(config, ModelConfig::read(&fixture(model, "")).unwrap());
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32,
        };
        let expected = ModelConfig {
            embedded: false,
            family: Family::Llama,
            vocab_size: 512,
            hidden_size: 64,
            intermediate_size: 160,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            norm_eps: 1e-5,
            layer_norms: false,
            rope: Rope { theta: 10_000.0, scaling },
            partial_rotary_dim: None,
            unturned_layers: Vec::new(),
            max_position_embeddings: 128,
            tied_head: model == "llama",
            attention_bias: AttentionBias::None,
            mlp_bias: false,
            joined_layers: JoinedLayers::None,
            query_key_norms: QueryKeyNorms::None,
            sliding_window: None,
            full_layers: Vec::new(),
            local_rope: None,
            activation: Activation::Silu,
            gated_mlp: true,
            parallel_residual: false,
            unit_offset: false,
            block_norms: BlockNorms::Before,
            scaled_embedding: false,
            query_pre_attn_scalar: None,
            attention_soft_cap: None,
            logit_soft_cap: None,
            multipliers: None,
            query_scaling: None,
            dropouts: Vec::new(),
        };
        assert_eq!(config, expected, "{model}");
    }
}

/// They are for training, and files that have them serve everything else as well.
#[test]
fn dropouts_are_kept_for_who_trains() {
    let with = |key: &str, value: Value| parse_with(&[(key, value)]);
    assert_eq!(with("attention_dropout", json!(0.1)).unwrap().dropouts, [("attention_dropout", 0.1)]);
    assert_eq!(with("attention_dropout", json!(0)).unwrap().dropouts, []);
    // Phi 3 alone reads it
    assert_eq!(with("embd_pdrop", json!(0.1)).unwrap().dropouts, []);
    let phi3 = [("architectures", json!(["Phi3ForCausalLM"])), ("embd_pdrop", json!(0.1))];
    assert_eq!(parse_with(&phi3).unwrap().dropouts, [("embd_pdrop", 0.1)]);
    for wrong in [json!(-0.1), json!(1), json!("0.1")] {
        let text = with("attention_dropout", wrong).unwrap_err().to_string();
        assert!(text.starts_with("config.json: attention_dropout is "), "{text}");
    }
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let config = parse_with(&[]).unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.tied_head), (4, 16, false));
    assert_eq!((config.norm_eps, config.max_position_embeddings), (1e-6, 2048));
    assert_eq!(config.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None });
    let nulls = ["head_dim", "num_key_value_heads", "rope_scaling", "quantization_config"];
    assert_eq!(parse_with(&nulls.map(|key| (key, Value::Null))).unwrap(), config);
}

#[test]
fn what_is_written_is_read_back_equal() {
    let scalings = [
        json!(null),
        json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 16 }),
        json!({ "rope_type": "linear", "factor": 2.5 }),
        json!({
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }),
    ];
    for scaling in scalings {
        let config = parse_with(&[("rope_scaling", scaling), ("rope_theta", json!(123.5))]).unwrap();
        let mut json = config.to_json(DType::F16);
        assert_eq!((&json["torch_dtype"], &json["dtype"]), (&json!("float16"), &json!("float16")));
        let read = |json: &Value| ModelConfig::parse(&json.to_string(), Path::new("config.json")).unwrap();
        assert_eq!(read(&json), config);
        // Each spelling alone says everything.
        let older = ["rope_theta", "rope_scaling", "torch_dtype"].map(|key| (key, json[key].take()));
        assert_eq!(read(&json), config);
        older.into_iter().for_each(|(key, value)| json[key] = value);
        ["rope_parameters", "dtype"].iter().for_each(|key| json[*key] = Value::Null);
        assert_eq!(read(&json), config);
    }
}

#[test]
fn shapes_add_up_to_the_parameter_count() {
    let models = [
        ("llama", 119_104),
        ("llama_untied", 151_872),
        ("mistral", 151_872),
        ("qwen2", 119_872),
        ("qwen3", 144_320),
        ("llama_biased", 119_488),
        ("gemma", 135_488),
        ("phi3", 151_872),
        ("gemma2", 143_936),
        ("gemma3", 135_872),
    ];
    for (model, parameters) in models {
        let config = read_fixture(model, "config.json");
        let shapes = config.expected_shapes();
        let sum: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!((config.parameter_count(), sum), (parameters, parameters as usize), "{model}");
        assert_eq!(shapes.iter().any(|(name, _)| name == "lm_head.weight"), !config.tied_head);
    }
}

#[test]
fn other_architectures_are_refused_by_name() {
    let text = message(&[("architectures", json!(["FalconForCausalLM"]))]);
    assert_eq!(
        text,
        "config.json: the architecture FalconForCausalLM is not supported; supported: LlamaForCausalLM, \
         MistralForCausalLM, Ministral3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, \
         Olmo2ForCausalLM, Olmo3ForCausalLM, SmolLM3ForCausalLM, GraniteForCausalLM, GPTNeoXForCausalLM, StableLmForCausalLM, Starcoder2ForCausalLM, Gemma3ForConditionalGeneration, \
         Mistral3ForConditionalGeneration"
    );
    assert!(message(&[("architectures", json!([]))]).contains("(none named)"));
    assert!(message(&[("architectures", json!("Llama"))]).contains("architectures is \"Llama\""));
    assert!(message(&[("architectures", Value::Null)]).contains("\"architectures\" is missing"));
}

#[test]
fn unsupported_settings_are_refused_by_key_and_value() {
    for (key, value) in [
        ("mlp_bias", json!(true)),
        ("hidden_act", json!("gelu")),
        ("partial_rotary_factor", json!(0.5)),
        ("quantization_config", json!({ "quant_method": "gptq" })),
        (
            "quantization_config",
            json!({ "quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "fp4" }),
        ),
    ] {
        let text = message(&[(key, value.clone())]);
        assert!(text.starts_with(&format!("config.json: {key} = {value} is not supported")), "{text}");
    }
    let long = json!({ "rope_type": "dynamic", "factor": 4 });
    let text = message(&[("rope_scaling", long.clone())]);
    assert!(text.contains("rope_scaling.rope_type = \"dynamic\" is not supported"), "{text}");
    let text = message(&[("rope_parameters", long)]);
    assert!(text.contains("rope_parameters.rope_type = \"dynamic\" is not supported"), "{text}");
}

#[test]
fn values_out_of_range_name_their_key() {
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    {
        assert_eq!(message(&[(key, Value::Null)]), format!("config.json: the key \"{key}\" is missing"));
        for value in [json!(0), json!(-1), json!(64.5), json!("64"), json!(1u64 << 32), json!([4])] {
            let text = message(&[(key, value.clone())]);
            assert!(text.starts_with(&format!("config.json: {key} is {value}, expected a whole")), "{text}");
        }
    }
    for value in [json!(0.0), json!(-1e-5), json!("1e-5"), json!(1e300)] {
        assert!(message(&[("rms_norm_eps", value.clone())]).contains("rms_norm_eps is"), "{value}");
        assert!(message(&[("rope_theta", value.clone())]).contains("rope_theta is"), "{value}");
    }
    assert!(message(&[("tie_word_embeddings", json!("yes"))]).contains("tie_word_embeddings is \"yes\""));
    assert!(message(&[("rope_scaling", json!([1]))]).contains("rope_scaling is [1]"));
    let no_factor = json!({ "rope_type": "linear" });
    assert!(message(&[("rope_scaling", no_factor)]).contains("\"rope_scaling.factor\" is missing"));
    let crossed = json!({ "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4 });
    assert!(message(&[("rope_scaling", crossed)]).contains("is not below"));
}

#[test]
fn sizes_that_do_not_fit_together_are_refused() {
    for (changes, reason) in [
        (
            vec![("num_attention_heads", json!(3))],
            "hidden_size 64 is not a multiple of num_attention_heads 3",
        ),
        (
            vec![("num_key_value_heads", json!(3))],
            "num_attention_heads 4 is not a multiple of num_key_value_heads 3",
        ),
        (vec![("head_dim", json!(12))], "head_dim 12 is not a multiple of 8"),
        (
            vec![("hidden_size", json!(6)), ("num_attention_heads", json!(1)), ("head_dim", json!(8))],
            "hidden_size 6",
        ),
        (vec![("head_dim", json!(1u64 << 31))], "times head_dim"),
        (vec![("num_hidden_layers", json!(1 << 20))], "num_hidden_layers 1048576"),
    ] {
        let text = message(&changes);
        assert!(text.contains(reason), "{text}");
    }
    // The largest sizes that pass must not overflow.
    let large = json!(1u64 << 31);
    let sizes = ["vocab_size", "hidden_size", "intermediate_size"].map(|key| (key, large.clone()));
    let config = parse_with(&[&sizes[..], &[("head_dim", json!(8))]].concat()).unwrap();
    assert!(config.parameter_count() > 1 << 62);
}

#[test]
fn files_that_are_no_json_name_the_place() {
    let parse = |text| ModelConfig::parse(text, Path::new("config.json")).unwrap_err().to_string();
    assert_eq!(parse("{\n \"rms_norm_eps\": NaN}"), "config.json: line 2 column 18: expected value");
    assert!(parse("").contains("EOF"));
    assert!(parse("[1]").contains("expected a map"));
    assert!(parse("{\"rope_theta\": 1e999}").contains("out of range"));
    let folder = tempfile::tempdir().unwrap();
    let text = ModelConfig::read(folder.path()).unwrap_err().to_string();
    assert!(text.contains("config.json not found"), "{text}");
    let text = ModelConfig::read(&folder.path().join("x")).unwrap_err().to_string();
    assert!(text.contains("no such folder"), "{text}");
}
