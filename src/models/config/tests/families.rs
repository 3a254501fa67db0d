//! What files of each family say.

use super::*;

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
    assert!(config.joined_layers == JoinedLayers::Whole && !config.tied_head);
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
        ("partial_rotary_factor", json!(0.7), "partial_rotary_factor is 0.7, expected a part of a head's 16"),
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
    assert_eq!((second.rope.theta, second.norm_eps, second.sliding_window), (1e4, 1e-5, None));
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

/// Every spelling, and what is written, which transformers 4 and 5 read.
#[test]
fn families_with_layer_norms_are_what_their_files_say() {
    let known = ["gpt_neox", "stablelm", "starcoder2"].map(|model| {
        let config = read_fixture(model, "config.json");
        assert_eq!(config, read_fixture(model, "config.v4.json"), "{model}");
        let written = config.to_json(DType::F16).to_string();
        assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), config);
        config
    });
    let [neox, stable, star] = &known;
    assert_eq!((neox.activation, neox.gated_mlp, neox.parallel_residual), (Activation::Gelu, false, true));
    assert_eq!((neox.joined_layers, neox.rotary_dim(), neox.kv_heads), (JoinedLayers::ByHead, 4, 4));
    assert_eq!((neox.attention_bias, neox.mlp_bias, neox.tied_head), (AttentionBias::All, true, false));
    assert_eq!((stable.activation, stable.gated_mlp, stable.rotary_dim()), (Activation::Silu, true, 8));
    assert_eq!((stable.attention_bias, stable.mlp_bias), (AttentionBias::Inputs, false));
    assert_eq!((star.activation, star.gated_mlp, star.tied_head), (Activation::GeluTanh, false, true));
    assert_eq!((star.sliding_window, star.rope.theta), (Some(12), 999_999.442_035_881_3));
    assert!(known.iter().all(|config| config.layer_norms && config.norm_eps == 1e-5));
    assert!(
        !neox.names().embedding_weight.starts_with("model.")
            && neox.block_of("gpt_neox.layers.1.mlp.x") == Some(1)
    );
}

#[test]
fn families_with_layer_norms_have_the_defaults_of_transformers() {
    let of = |architecture: &str, changes: &[(&str, Value)]| {
        let own = [("architectures", json!([architecture])), ("num_key_value_heads", json!(2))];
        parse_with(&[&own[..], changes].concat())
    };
    let neox = of("GPTNeoXForCausalLM", &[]).unwrap();
    // it has no groups of heads, whatever the file says
    assert_eq!((neox.kv_heads, neox.rotary_dim(), neox.max_position_embeddings), (4, 4, 2048));
    assert!(neox.parallel_residual && neox.attention_bias == AttentionBias::All);
    let older = [
        ("use_parallel_residual", json!(false)),
        ("attention_bias", json!(false)),
        ("rotary_pct", json!(1.0)),
        ("rotary_emb_base", json!(25_000)),
        ("hidden_act", json!("gelu_fast")),
    ];
    let older = of("GPTNeoXForCausalLM", &older).unwrap();
    assert_eq!((older.partial_rotary_dim, older.rope.theta), (None, 25_000.0));
    assert_eq!((older.activation, older.attention_bias), (Activation::GeluTanh, AttentionBias::None));
    assert!(!older.parallel_residual && older.mlp_bias);
    let written = older.to_json(DType::F16).to_string();
    assert_eq!(ModelConfig::parse(&written, Path::new("config.json")).unwrap(), older);
    // what transformers does not read there
    let strange = [("head_dim", json!(32)), ("mlp_bias", json!(true)), ("hidden_activation", json!("silu"))];
    assert_eq!(of("GPTNeoXForCausalLM", &strange).unwrap(), neox);
    let star = of("Starcoder2ForCausalLM", &[("use_bias", json!(false))]).unwrap();
    assert_eq!((star.attention_bias, star.mlp_bias, star.sliding_window), (AttentionBias::None, false, None));
    for (architecture, change, part) in [
        (
            "GPTNeoXForCausalLM",
            ("hidden_act", json!("relu")),
            "hidden_act = \"relu\" is not supported: known here are gelu",
        ),
        (
            "GPTNeoXForCausalLM",
            ("rotary_pct", json!(0.1)),
            "rotary_pct is 0.1, expected a part of a head's 16",
        ),
        ("StableLmForCausalLM", ("use_parallel_residual", json!(true)), "that share a norm are not built"),
        ("StableLmForCausalLM", ("qk_layernorm", json!(true)), "qk_layernorm = true"),
        ("StableLmForCausalLM", ("hidden_act", json!("gelu")), "the gated MLP uses silu"),
        ("Starcoder2ForCausalLM", ("residual_dropout", json!(2)), "residual_dropout is 2"),
        ("StableLmForCausalLM", ("mlp_bias", json!(true)), "the linear layers of MLPs have no bias"),
        ("Starcoder2ForCausalLM", ("partial_rotary_factor", json!(0.5)), "turns whole heads"),
    ] {
        let text = of(architecture, &[change]).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
}

/// LitGPT's switches name Llama's layers.
#[test]
fn layers_are_found_by_llamas_names() {
    let names = |model: &str, given: &[&str]| {
        let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
        read_fixture(model, "config.json").own_names(&given)
    };
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"];
    let own = ["lm_head", "query_key_value", "dense_h_to_4h", "dense", "dense_4h_to_h"];
    assert_eq!(names("gpt_neox", &all), own);
    let own = ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head", "c_fc", "c_proj"];
    assert_eq!(names("starcoder2", &all), own);
    assert_eq!(names("phi3", &all), ["o_proj", "down_proj", "lm_head", "qkv_proj", "gate_up_proj"]);
    for same in ["stablelm", "llama"] {
        assert_eq!(names(same, &all), all);
    }
    let neox = read_fixture("gpt_neox", "config.json");
    assert_eq!(neox.joined_as("k_proj"), Some(("query_key_value", vec!["q_proj", "k_proj", "v_proj"])));
    assert_eq!(neox.joined_as("lm_head"), None);
    assert_eq!(neox.joined_as("attention.o_proj"), None);
    assert_eq!(names("starcoder2", &["up_proj"]), ["c_fc"]);
    // some of what is one layer is none
    assert_eq!(names("gpt_neox", &["q_proj", "v_proj"]), ["q_proj", "v_proj"]);
}
