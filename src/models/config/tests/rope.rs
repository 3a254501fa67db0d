//! Rotary embeddings: spellings and frequencies.

use super::*;

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
