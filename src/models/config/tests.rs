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
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling },
            partial_rotary_dim: None,
            unturned_layers: Vec::new(),
            max_position_embeddings: 128,
            tied_head: model == "llama",
            attention_bias: AttentionBias::None,
            joined_layers: false,
            query_key_norms: QueryKeyNorms::None,
            sliding_window: None,
            full_layers: Vec::new(),
            local_rope: None,
            activation: Activation::Silu,
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

#[test]
fn families_differ_as_their_files_say() {
    for model in ["mistral", "qwen2", "qwen3", "llama_biased"] {
        let config = read_fixture(model, "config.json");
        assert_eq!(config, read_fixture(model, "config.v4.json"), "{model}");
        let own = (
            config.family,
            config.attention_bias,
            config.query_key_norms,
            config.sliding_window,
            config.head_dim,
        );
        let expected = match model {
            "mistral" => (Family::Mistral, AttentionBias::None, QueryKeyNorms::None, Some(8), 16),
            "qwen2" => (Family::Qwen2, AttentionBias::Inputs, QueryKeyNorms::None, None, 16),
            "qwen3" => (Family::Qwen3, AttentionBias::None, QueryKeyNorms::ByHead, None, 32),
            _ => (Family::Llama, AttentionBias::All, QueryKeyNorms::None, None, 16),
        };
        assert_eq!(own, expected);
        let written = config.to_json(DType::BF16).to_string();
        assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
    }
    let biased = parse_with(&[("attention_bias", json!(true))]).unwrap();
    assert_eq!(biased.attention_bias, AttentionBias::All);
    let of = |architecture: &str, changes: &[(&str, Value)]| {
        let own = [("architectures", json!([architecture])), ("num_key_value_heads", json!(2))];
        parse_with(&[&own[..], changes].concat())
    };
    let bias = ("attention_bias", json!(true));
    assert!(of("MistralForCausalLM", &[bias]).unwrap_err().to_string().contains("attention_bias = true"));
    assert_eq!(of("Qwen3ForCausalLM", &[]).unwrap().head_dim, 128);
    // the defaults of one size are nobody's
    let text = message(&[("architectures", json!(["Qwen2ForCausalLM"]))]);
    assert!(text.contains("\"num_key_value_heads\" is missing"), "{text}");
    // heads need not divide the stream where they say how large they are
    let wide = of("Qwen3ForCausalLM", &[("num_attention_heads", json!(6)), ("head_dim", json!(16))]).unwrap();
    assert_eq!((wide.heads, wide.head_dim), (6, 16));
}

#[test]
fn a_window_is_one_for_all_layers() {
    let window = |architecture: &str, changes: &[(&str, Value)]| {
        let own = [("architectures", json!([architecture])), ("num_key_value_heads", json!(2))];
        parse_with(&[&own[..], changes].concat()).map(|config| config.sliding_window)
    };
    let (mistral, qwen) = ("MistralForCausalLM", "Qwen2ForCausalLM");
    // transformers has a window for a Mistral that does not speak of it; null is none
    assert_eq!(window(mistral, &[]).unwrap(), Some(4096));
    assert_eq!(window(mistral, &[("sliding_window", json!(null))]).unwrap(), None);
    assert_eq!(window(mistral, &[("sliding_window", json!(99))]).unwrap(), Some(99));
    assert!(window(mistral, &[("sliding_window", json!(0))]).is_err());
    assert_eq!(window("LlamaForCausalLM", &[("sliding_window", json!(99))]).unwrap(), None);
    let (on, nine) = (("use_sliding_window", json!(true)), ("sliding_window", json!(9)));
    let from = |layer: usize| ("max_window_layers", json!(layer));
    let kinds = |kinds: [&str; 2]| ("layer_types", json!(kinds.map(|kind| format!("{kind}_attention"))));
    let qwen = |changes: &[(&str, Value)]| window(qwen, changes);
    assert_eq!(qwen(std::slice::from_ref(&nine)).unwrap(), None);
    assert_eq!(qwen(&[on.clone(), nine.clone(), from(2)]).unwrap(), None);
    assert_eq!(qwen(&[on.clone(), nine.clone(), from(0)]).unwrap(), Some(9));
    assert_eq!(qwen(&[on.clone(), nine.clone(), kinds(["sliding", "sliding"])]).unwrap(), Some(9));
    // what says nothing about a window is not read
    assert_eq!(window("LlamaForCausalLM", &[("sliding_window", json!(0))]).unwrap(), None);
    assert_eq!(qwen(&[("sliding_window", json!(0))]).unwrap(), None);
    for wrong in
        [json!([]), json!(["sliding_attention"]), json!(["sliding_attention", "chunked_attention"]), json!(2)]
    {
        let text = qwen(&[on.clone(), nine.clone(), ("layer_types", wrong)]).unwrap_err().to_string();
        assert!(text.contains("layer_types is") && text.contains("2 layers"), "{text}");
    }
    // some layers see all, by their number or as they are listed
    for (mixed, full) in [(from(1), 0), (kinds(["full", "sliding"]), 0), (kinds(["sliding", "full"]), 1)] {
        let own = [("architectures", json!(["Qwen3ForCausalLM"])), on.clone(), nine.clone(), mixed];
        let config = parse_with(&[&own[..], &[("num_key_value_heads", json!(2))]].concat()).unwrap();
        assert_eq!((config.sliding_window, &config.full_layers[..]), (Some(9), &[full][..]));
        assert_eq!((config.slides(full), config.slides(1 - full)), (false, true));
        let written = config.to_json(DType::F32).to_string();
        assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
    }
}

#[test]
fn gemmas_are_what_their_files_say() {
    for model in ["gemma", "gemma2", "gemma3"] {
        let config = read_fixture(model, "config.json");
        assert_eq!(config, read_fixture(model, "config.v4.json"), "{model}");
        assert_eq!(
            (config.activation, config.unit_offset, config.tied_head),
            (Activation::GeluTanh, true, true)
        );
        let two = model != "gemma";
        let full: &[usize] = if two { &[1] } else { &[] };
        assert_eq!((config.sliding_window, &config.full_layers[..]), (two.then_some(8), full), "{model}");
        let norms = if two { BlockNorms::Around } else { BlockNorms::Before };
        let by_head = if model == "gemma3" { QueryKeyNorms::ByHead } else { QueryKeyNorms::None };
        assert_eq!((config.block_norms, config.query_key_norms), (norms, by_head));
        let caps = (config.attention_soft_cap, config.logit_soft_cap);
        assert_eq!(caps, if model == "gemma2" { (Some(3.0), Some(4.0)) } else { (None, None) });
        let scale = if model == "gemma2" { 24.0f64 } else { 32.0 };
        assert!((config.scoring().scale - 1.0 / scale.sqrt()).abs() < 1e-12);
        assert_eq!(config.embedding_scale(DType::F32), 8.0);
        let local = config.local_rope.clone().map(|rope| (rope.theta, rope.scaling));
        assert_eq!(local, (model == "gemma3").then_some((1e4, RopeScaling::None)));
        let written = config.to_json(DType::BF16).to_string();
        assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
    }
    assert_eq!(
        read_fixture("gemma3", "config.json").rope,
        Rope { theta: 1e6, scaling: RopeScaling::Linear { factor: 8.0 } }
    );
    // what their first files leave to transformers
    let of = |architecture: &str, changes: &[(&str, Value)]| {
        let own = [("architectures", json!([architecture])), ("num_key_value_heads", json!(2))];
        let activation = ("hidden_activation", json!("gelu_pytorch_tanh"));
        parse_with(&[&own[..], &[activation], changes].concat())
    };
    let first = [("hidden_act", json!("gelu")), ("hidden_activation", Value::Null)];
    assert_eq!(of("GemmaForCausalLM", &first).unwrap().max_position_embeddings, 8192);
    let second = of("Gemma2ForCausalLM", &[("num_hidden_layers", json!(5))]).unwrap();
    assert_eq!((second.sliding_window, second.full_layers, second.head_dim), (Some(4096), vec![1, 3], 256));
    assert_eq!((second.attention_soft_cap, second.logit_soft_cap), (Some(50.0), Some(30.0)));
    let third = of("Gemma3ForCausalLM", &[("num_hidden_layers", json!(13))]).unwrap();
    assert_eq!(
        (third.rope.theta, third.local_rope.unwrap().theta, third.full_layers),
        (1e6, 1e4, vec![5, 11])
    );
    let uncapped = of("Gemma2ForCausalLM", &[("attn_logit_softcapping", Value::Null)]).unwrap();
    assert_eq!(uncapped.attention_soft_cap, None);
    // bf16 has no 25.3, the root of Gemma 3 270M's width
    let narrow = of("Gemma3ForCausalLM", &[("hidden_size", json!(640))]).unwrap();
    assert_eq!(
        (narrow.embedding_scale(DType::BF16), narrow.embedding_scale(DType::F16)),
        (25.25, 25.296_875)
    );
    for (key, value) in [
        ("hidden_activation", json!("gelu")),
        ("use_bidirectional_attention", json!(true)),
        ("attn_logit_softcapping", json!(50.0)),
    ] {
        let text = of("Gemma3ForCausalLM", &[(key, value.clone())]).unwrap_err().to_string();
        assert!(text.starts_with(&format!("config.json: {key} = {value} is not supported")), "{text}");
    }
}

#[test]
fn phi3_is_what_its_files_say() {
    let config = read_fixture("phi3", "config.json");
    assert_eq!(config, read_fixture("phi3", "config.v4.json"));
    assert!(config.joined_layers && !config.tied_head);
    // texts within the first training's context
    assert_eq!((config.max_position_embeddings, config.rope.context()), (128, Some(256)));
    let factor = (1.0 + 2f64.ln() / 128f64.ln()).sqrt();
    assert!((config.rope.attention_factor() - factor).abs() < 1e-12);
    let written = config.to_json(DType::BF16).to_string();
    assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
    let path = fixture("phi3", "config.v4.json");
    let json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let with = |key: &str, value: Value| {
        let mut own = json.clone();
        own[key] = value;
        ModelConfig::parse(&own.to_string(), &path)
    };
    let mut older = json["rope_scaling"].clone();
    older["type"] = "su".into();
    older["rope_type"] = Value::Null;
    assert_eq!(with("rope_scaling", older).unwrap(), config);
    let plain = with("rope_scaling", Value::Null).unwrap();
    assert_eq!((plain.rope.scaling, plain.max_position_embeddings), (RopeScaling::None, 256));
    assert_eq!(with("sliding_window", Value::Null).unwrap().sliding_window, None);
    let mut short = json["rope_scaling"].clone();
    short["short_factor"] = json!([1.0, 2.0]);
    for (key, value, part) in [
        (
            "partial_rotary_factor",
            json!(0.75),
            "partial_rotary_factor is 0.75, expected a part of a head's 16",
        ),
        (
            "partial_rotary_factor",
            json!(0.5),
            "rope_scaling.short_factor is [1.0,1.0,1.1,1.25,1.5,1.75,2.0,2.5], expected 4",
        ),
        ("resid_pdrop", json!(1.5), "resid_pdrop is 1.5, expected a number from 0 on, below 1"),
        ("rope_scaling", short, "rope_scaling.short_factor is [1.0,2.0], expected 8 numbers"),
    ] {
        let text = with(key, value).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
}

/// They are for training, and files that have them serve everything else as well.
#[test]
fn dropouts_are_kept_for_who_trains() {
    let with = |key: &str, value: Value| parse_with(&[(key, value)]);
    assert_eq!(with("attention_dropout", json!(0.1)).unwrap().dropouts, [("attention_dropout", 0.1)]);
    assert_eq!(with("embd_pdrop", json!(0)).unwrap().dropouts, []);
    for wrong in [json!(-0.1), json!(1), json!("0.1")] {
        let text = with("attention_dropout", wrong).unwrap_err().to_string();
        assert!(text.starts_with("config.json: attention_dropout is "), "{text}");
    }
}

#[test]
fn a_part_of_each_head_is_turned_where_the_file_says_so() {
    let config = read_fixture("phi4_mini", "config.json");
    assert_eq!(config, read_fixture("phi4_mini", "config.v4.json"));
    assert_eq!((config.head_dim, config.rotary_dim(), config.tied_head), (16, 8, true));
    assert_eq!(config.rope.inverse_frequencies(config.rotary_dim()).len(), 4);
    let written = config.to_json(DType::BF16).to_string();
    assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
    for family in ["LlamaForCausalLM", "GraniteForCausalLM"] {
        let own = ("architectures", json!([family]));
        let text = message(&[own.clone(), ("partial_rotary_factor", json!(0.5))]);
        assert!(text.contains("partial_rotary_factor = 0.5 is not supported"), "{text}");
        let within = json!({ "rope_type": "default", "partial_rotary_factor": 0.5 });
        let text = message(&[own, ("rope_parameters", within)]);
        assert!(text.contains("rope_parameters.partial_rotary_factor = 0.5 is not supported"), "{text}");
    }
}

#[test]
fn olmos_are_what_their_files_say() {
    for model in ["olmo2", "olmo3"] {
        let config = read_fixture(model, "config.json");
        assert_eq!(config, read_fixture(model, "config.v4.json"), "{model}");
        assert_eq!((config.block_norms, config.query_key_norms), (BlockNorms::After, QueryKeyNorms::Whole));
        let written = config.to_json(DType::BF16).to_string();
        assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
        let names: Vec<String> = config.expected_shapes().into_iter().map(|(name, _)| name).collect();
        let first = |part: &str| names.contains(&format!("model.layers.0.{part}.weight"));
        assert!(!first("input_layernorm") && !first("pre_feedforward_layernorm"));
        assert!(first("post_attention_layernorm") && first("post_feedforward_layernorm"));
    }
    let third = read_fixture("olmo3", "config.json");
    assert_eq!((third.sliding_window, &third.full_layers[..]), (Some(8), &[3][..]));
    assert!(matches!(third.rope.scaling, RopeScaling::Yarn(_)));
    assert_eq!(third.local_rope, Some(Rope { theta: 5e5, scaling: RopeScaling::None }));
    let flat = json!({ "rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0 });
    let text = message(&[("architectures", json!(["Olmo3ForCausalLM"])), ("rope_parameters", flat)]);
    assert!(text.contains("rope_parameters.rope_theta = 500000.0 is not supported"), "{text}");
    // what a file leaves to transformers
    let of = |architecture: &str| {
        parse_with(&[("architectures", json!([architecture])), ("num_hidden_layers", json!(9))]).unwrap()
    };
    let (second, third) = (of("Olmo2ForCausalLM"), of("Olmo3ForCausalLM"));
    assert_eq!((second.rope.theta, second.rms_norm_eps, second.sliding_window), (1e4, 1e-5, None));
    assert_eq!((third.rope.theta, third.local_rope, third.kv_heads), (5e5, None, 4));
    assert_eq!((third.sliding_window, third.full_layers), (Some(4096), vec![3, 7]));
}

#[test]
fn smollm3_has_layers_without_a_rotary_embedding() {
    let config = read_fixture("smollm3", "config.json");
    assert_eq!(config, read_fixture("smollm3", "config.v4.json"));
    assert_eq!((&config.unturned_layers[..], config.tied_head), (&[3][..], true));
    let written = config.to_json(DType::BF16).to_string();
    assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
    let with = |changes: &[(&str, Value)]| {
        let own = [
            ("architectures", json!(["SmolLM3ForCausalLM"])),
            ("num_key_value_heads", json!(2)),
            ("num_hidden_layers", json!(4)),
        ];
        parse_with(&[&own[..], changes].concat())
    };
    let usual = with(&[]).unwrap();
    assert_eq!((usual.unturned_layers, usual.tied_head, usual.rope.theta), (vec![3], true, 2e6));
    assert_eq!(with(&[("no_rope_layer_interval", json!(2))]).unwrap().unturned_layers, [1, 3]);
    // longer lists are of models that were cut
    let listed = with(&[("no_rope_layers", json!([0, 1, 1, 1, 0]))]).unwrap();
    assert_eq!(listed.unturned_layers, [0]);
    let window = [("sliding_window", json!(9)), ("use_sliding_window", json!(true))];
    let windowed = with(&window).unwrap();
    assert_eq!((windowed.sliding_window, windowed.full_layers), (Some(9), vec![0, 1, 2]));
    assert_eq!(with(&window[..1]).unwrap().sliding_window, None);
    assert_eq!(with(&window[1..]).unwrap().sliding_window, None);
    for wrong in [json!([1, 1, 0]), json!([1, 1, 1, 2]), json!(4)] {
        let text = with(&[("no_rope_layers", wrong)]).unwrap_err().to_string();
        assert!(text.contains("no_rope_layers is") && text.contains("each of 4 layers"), "{text}");
    }
}

#[test]
fn ministral3_scales_its_queries() {
    let config = read_fixture("ministral3", "config.json");
    assert_eq!(config, read_fixture("ministral3", "config.v4.json"));
    let scaling = QueryScaling { beta: 0.1, original_max_position_embeddings: 8 };
    assert_eq!(config.query_scaling, Some(scaling));
    assert_eq!((scaling.at(0), scaling.at(7)), (1.0, 1.0));
    assert!((scaling.at(8) - (1.0 + 0.1 * 2f64.ln())).abs() < 1e-15 && scaling.at(15) == scaling.at(8));
    assert!((scaling.at(16) - (1.0 + 0.1 * 3f64.ln())).abs() < 1e-15);
    let written = config.to_json(DType::BF16).to_string();
    assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
    // what a file leaves to transformers
    let own = [("architectures", json!(["Ministral3ForCausalLM"])), ("num_key_value_heads", json!(2))];
    let silent = parse_with(&own).unwrap();
    assert_eq!((silent.rope.theta, silent.rope.attention_factor()), (1e6, 1.0));
    assert_eq!(silent.query_scaling.unwrap().original_max_position_embeddings, 16_384);
    assert!(matches!(silent.rope.scaling, RopeScaling::Yarn(yarn) if yarn.context() == 262_144));
    let rope = json!({ "rope_type": "default", "rope_theta": 5.0, "llama_4_scaling_beta": 0.1 });
    let of = |changes: &[(&str, Value)]| parse_with(&[&own[..], changes].concat()).unwrap();
    let context = |config: ModelConfig| config.query_scaling.unwrap().original_max_position_embeddings;
    assert_eq!(context(of(&[("rope_parameters", rope.clone())])), 262_144);
    let beside = ("original_max_position_embeddings", json!(64));
    assert_eq!(context(of(&[("rope_parameters", rope.clone()), beside])), 64);
    let text = message(&[("rope_parameters", rope)]);
    assert!(text.contains("rope_parameters.llama_4_scaling_beta = 0.1 is not supported"), "{text}");
}

#[test]
fn a_mistral_within_another_is_one_or_a_ministral3() {
    let whole = |text: Value| json!({ "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text });
    let parse = |text: Value| ModelConfig::parse(&whole(text).to_string(), Path::new("config.json"));
    let mut text = minimal();
    for (key, value) in [("num_key_value_heads", json!(2)), ("model_type", json!("mistral"))] {
        text[key] = value;
    }
    text["sliding_window"] = Value::Null;
    let small = parse(text.clone()).unwrap();
    assert_eq!((small.family, small.embedded, small.tied_head), (Family::Mistral, true, false));
    text["model_type"] = json!("ministral3");
    text["tie_word_embeddings"] = json!(true);
    let third = parse(text.clone()).unwrap();
    assert_eq!((third.family, third.embedded, third.tied_head), (Family::Ministral3, true, true));
    assert_eq!(third.head_dim, 128);
    // transformers 5 writes its default for the whole, and ties as the text says
    let mut resaved = whole(text.clone());
    resaved["tie_word_embeddings"] = json!(true);
    resaved["text_config"]["tie_word_embeddings"] = json!(false);
    let resaved = ModelConfig::parse(&resaved.to_string(), Path::new("config.json")).unwrap();
    assert!(!resaved.tied_head);
    text["hidden_size"] = Value::Null;
    let message = parse(text.clone()).unwrap_err().to_string();
    assert_eq!(message, "config.json: the key \"text_config.hidden_size\" is missing");
    text["model_type"] = json!("mistral4");
    let message = parse(text).unwrap_err().to_string();
    assert!(message.contains("text_config.model_type = \"mistral4\" is not supported"), "{message}");
}

#[test]
fn granite_has_multipliers() {
    let config = read_fixture("granite", "config.json");
    assert_eq!(config, read_fixture("granite", "config.v4.json"));
    let multipliers = Multipliers { embedding: 3.0, residual: 0.22, attention: 0.0625, logits: 4.0 };
    assert_eq!(config.multipliers, Some(multipliers));
    assert_eq!((config.scoring().scale, config.logit_scale()), (0.0625, 0.25));
    let written = config.to_json(DType::BF16).to_string();
    assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
    let plain = parse_with(&[("architectures", json!(["GraniteForCausalLM"]))]).unwrap();
    let ones = Multipliers { embedding: 1.0, residual: 1.0, attention: 1.0, logits: 1.0 };
    assert_eq!((plain.multipliers, plain.scoring().scale), (Some(ones), 1.0));
    let text =
        message(&[("architectures", json!(["GraniteForCausalLM"])), ("residual_multiplier", json!(0))]);
    assert!(text.contains("residual_multiplier is 0, expected a number above 0"), "{text}");
    // nobody else reads them
    assert_eq!(parse_with(&[("residual_multiplier", json!(0.5))]).unwrap().multipliers, None);
}

#[test]
fn a_language_model_within_another_is_read_from_its_part() {
    // as the file of Gemma 3 4B says it: much is left to transformers
    let whole = json!({
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": { "factor": 8.0, "rope_type": "linear" }, "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
        "vision_config": { "hidden_size": 1152, "num_hidden_layers": 27 },
    });
    let parse = |json: &Value| ModelConfig::parse(&json.to_string(), Path::new("config.json"));
    let config = parse(&whole).unwrap();
    assert!(config.embedded && config.tied_head && config.family == Family::Gemma3);
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.vocab_size), (8, 4, 256, 262_208));
    assert_eq!((config.sliding_window, &config.full_layers[..]), (Some(1024), &[5, 11, 17, 23, 29][..]));
    let rope = |theta, scaling| Rope { theta, scaling };
    assert_eq!(config.rope, rope(1e6, RopeScaling::Linear { factor: 8.0 }));
    assert_eq!(config.local_rope, Some(rope(1e4, RopeScaling::None)));
    assert_eq!(config.max_position_embeddings, 131_072);
    // the parameters of its language model: 3,880,263,168 (4.3 billion are the whole's)
    assert_eq!(config.parameter_count(), 3_880_263_168);
    let mut broken = whole.clone();
    broken["text_config"]["num_hidden_layers"] = json!(-1);
    let text = parse(&broken).unwrap_err().to_string();
    assert!(text.starts_with("config.json: text_config.num_hidden_layers is -1"), "{text}");
    broken["text_config"] = Value::Null;
    assert_eq!(parse(&broken).unwrap_err().to_string(), "config.json: the key \"text_config\" is missing");
    let mut quantised = whole;
    quantised["quantization_config"] = json!({ "quant_method": "gptq" });
    assert!(parse(&quantised).unwrap_err().to_string().contains("quantization_config"));
}

#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let config = parse_with(&[]).unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.tied_head), (4, 16, false));
    assert_eq!((config.rms_norm_eps, config.max_position_embeddings), (1e-6, 2048));
    assert_eq!(config.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None });
    let nulls = ["head_dim", "num_key_value_heads", "rope_scaling", "quantization_config"];
    assert_eq!(parse_with(&nulls.map(|key| (key, Value::Null))).unwrap(), config);
}

#[test]
fn rope_is_read_in_every_spelling() {
    let rope = |changes: &[(&str, Value)]| parse_with(changes).unwrap().rope;
    let linear = Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 2.0 } };
    let old = json!({ "type": "linear", "factor": 2 });
    assert_eq!(rope(&[("rope_theta", json!(5e5)), ("rope_scaling", old.clone())]), linear);
    let new = json!({ "rope_type": "linear", "factor": 2.0, "rope_theta": 5e5 });
    assert_eq!(rope(&[("rope_parameters", new.clone())]), linear);
    assert_eq!(rope(&[("rope_parameters", new), ("rope_theta", json!(5e5)), ("rope_scaling", old)]), linear);

    let plain = Rope { theta: 7.0, scaling: RopeScaling::None };
    assert_eq!(rope(&[("rope_parameters", json!({ "rope_type": "default", "rope_theta": 7 }))]), plain);
    assert_eq!(rope(&[("rope_parameters", json!({})), ("rope_theta", json!(7))]), plain);

    let llama3 = json!({ "type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4 });
    let RopeScaling::Llama3 { original_max_position_embeddings, .. } =
        rope(&[("rope_scaling", llama3), ("max_position_embeddings", json!(99))]).scaling
    else {
        panic!("llama3 expected");
    };
    assert_eq!(original_max_position_embeddings, 99);
}

#[test]
fn frequencies_are_those_of_transformers() {
    // Printed by transformers 5.23 (`ROPE_INIT_FUNCTIONS["llama3"]`, f32) for Llama 3.1 8B: both ends and
    // every element of the interpolated middle.
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let ours = Rope { theta: 5e5, scaling }.inverse_frequencies(128);
    assert_eq!(ours.len(), 64);
    let expected = [
        (0, 1.0),
        (1, 8.146_172e-1),
        (20, 1.656_044e-2),
        (28, 3.211_446e-3),
        (29, 2.166_570_6e-3),
        (30, 1.371_893_7e-3),
        (31, 8.567_515e-4),
        (32, 5.248_46e-4),
        (33, 3.126_936_5e-4),
        (34, 1.785_078e-4),
        (35, 9.556_212e-5),
        (36, 7.784_655e-5),
        (40, 3.428_102_4e-5),
        (63, 3.068_926e-7),
    ];
    for (i, theirs) in expected {
        assert!((ours[i] / theirs - 1.0f32).abs() < 2e-6, "{i}: {} {theirs}", ours[i]);
    }
    // The fixture, whose middle band is element 3.
    let ours = read_fixture("llama", "config.json").rope.inverse_frequencies(16);
    let theirs =
        [1.0, 9.583_998e-2, 1.25e-2, 3.952_847_3e-3, 1.25e-3, 3.952_847_3e-4, 1.25e-4, 3.952_847_3e-5];
    assert!(ours.iter().zip(theirs).all(|(a, b): (&f32, f32)| (a / b - 1.0).abs() < 2e-6), "{ours:?}");

    let plain = Rope { theta: 1e4, scaling: RopeScaling::None }.inverse_frequencies(8);
    let linear = Rope { theta: 1e4, scaling: RopeScaling::Linear { factor: 4.0 } }.inverse_frequencies(8);
    assert_eq!(plain, [1.0, 0.1, 0.01, 0.001]);
    assert_eq!(linear, [0.25, 0.025, 0.0025, 0.00025]);
}

#[test]
fn yarn_is_that_of_transformers() {
    // Printed by transformers 5.24 (`ROPE_INIT_FUNCTIONS["yarn"]`, f32).
    let read = |context: usize, theta: f64, head_dim: usize, mut scaling: Value| {
        scaling["rope_type"] = json!("yarn");
        let keys = [
            ("rope_scaling", scaling),
            ("rope_theta", json!(theta)),
            ("max_position_embeddings", json!(context)),
            ("head_dim", json!(head_dim)),
        ];
        parse_with(&keys).unwrap().rope
    };
    let close = |ours: f64, theirs: f64| assert!((ours / theirs - 1.0).abs() < 2e-6, "{ours} {theirs}");
    // Qwen's way to 131,072 tokens
    let usual = read(131_072, 1e6, 128, json!({ "factor": 4.0, "original_max_position_embeddings": 32_768 }));
    let ours = usual.inverse_frequencies(128);
    let expected = [
        (0, 1.0),
        (1, 0.805_842_2),
        (22, 0.008_659_643),
        (23, 0.006_978_306),
        (24, 0.005_375_321),
        (26, 0.003_168_423),
        (32, 0.000_602_941_1),
        (39, 6.490_394e-5),
        (40, 4.445_699e-5),
        (63, 3.102_344e-7),
    ];
    expected.iter().for_each(|&(i, theirs)| close(f64::from(ours[i]), theirs));
    close(usual.attention_factor(), 1.138_629_436);
    assert!(matches!(usual.scaling, RopeScaling::Yarn(yarn) if yarn.has_usual_pairs()));

    let own = read(
        64,
        1e4,
        32,
        json!({
            "factor": 2.5, "original_max_position_embeddings": 16, "beta_fast": 8, "beta_slow": 0.5, "truncate": false,
            "mscale": 0.7, "mscale_all_dim": 1.0,
        }),
    );
    let ours = own.inverse_frequencies(32);
    let expected = [1.0, 0.443_027_65, 0.182_037_74, 0.071_131_18, 0.04, 0.022_493_653];
    expected.iter().zip(ours).for_each(|(&theirs, ours)| close(f64::from(ours), theirs));
    close(own.attention_factor(), 0.974_818_62);
    assert!(matches!(own.scaling, RopeScaling::Yarn(yarn) if !yarn.has_usual_pairs()));
    // the context of the first training is the model's where nothing else is said
    let given = read(16, 1e4, 32, json!({ "factor": 2.5, "attention_factor": 0.9 }));
    close(f64::from(given.inverse_frequencies(32)[1]), 0.393_638_91);
    close(given.attention_factor(), 0.9);
    // null is the ratio of the contexts
    let ratio = read(64, 1e4, 32, json!({ "factor": null, "original_max_position_embeddings": 16 }));
    assert!(matches!(ratio.scaling, RopeScaling::Yarn(Yarn { factor: 4.0, .. })));
    // switched on as models' cards say it, beside the context of the first training
    let switched = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768 });
    let config =
        parse_with(&[("rope_scaling", switched), ("max_position_embeddings", json!(32_768))]).unwrap();
    assert_eq!(config.max_position_embeddings, 131_072);
    let wild = json!({ "rope_type": "yarn", "factor": 4, "mscale": 1.0, "mscale_all_dim": -8 });
    assert!(message(&[("rope_scaling", wild)]).contains("attention factor"));
    let flat = json!({ "rope_type": "yarn", "factor": 4 });
    assert!(
        message(&[("rope_scaling", flat), ("rope_theta", json!(1))]).contains("rope_theta 1 is not above 1")
    );
    let crossed = json!({ "rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 1 });
    assert!(message(&[("rope_scaling", crossed)]).contains("is not above"));
    let no_factor = json!({ "rope_type": "yarn" });
    assert!(message(&[("rope_scaling", no_factor)]).contains("\"rope_scaling.factor\" is missing"));
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
    let text = message(&[("architectures", json!(["GPTNeoXForCausalLM"]))]);
    assert_eq!(
        text,
        "config.json: the architecture GPTNeoXForCausalLM is not supported; supported: LlamaForCausalLM, \
         MistralForCausalLM, Ministral3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, \
         Olmo2ForCausalLM, Olmo3ForCausalLM, SmolLM3ForCausalLM, GraniteForCausalLM, Gemma3ForConditionalGeneration, \
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
