//! Defaults, words, checks and the file format of options.

use super::*;
use crate::autograd::Recompute;
use crate::graph::DType;
use std::fmt;
use std::str::FromStr;

fn valid() -> FinetuneOptions {
    FinetuneOptions {
        model_dir: "model".into(),
        data: DataOptions { json_path: "data.json".into(), ..DataOptions::default() },
        ..FinetuneOptions::default()
    }
}

fn problems(change: impl FnOnce(&mut FinetuneOptions)) -> Vec<OptionProblem> {
    let mut options = valid();
    change(&mut options);
    options.validate().err().map_or_else(Vec::new, |error| error.problems)
}

#[test]
fn defaults_with_the_two_paths_are_valid() {
    assert_eq!(valid().validate(), Ok(()));
    let missing = FinetuneOptions::default().validate().unwrap_err().to_string();
    assert!(missing.contains("MODEL_DIR") && missing.contains("--data.json_path"), "{missing}");
}

#[test]
fn each_bad_value_is_named() {
    type Change = fn(&mut FinetuneOptions);
    let cases: &[(&str, Change)] = &[
        ("--out_dir", |o| o.out_dir = PathBuf::new()),
        ("--data.val_split_fraction", |o| o.data.val_split_fraction = f64::NAN),
        ("--data.val_split_fraction", |o| o.data.val_split_fraction = 1.0),
        ("--data.val_split_fraction", |o| o.data.val_split_fraction = -0.1),
        ("--data.prompt_style", |o| o.data.prompt_style = "alpacca".into()),
        ("--lora_rank", |o| o.lora.rank = 0),
        ("--lora_alpha", |o| o.lora.alpha = 0.0),
        ("--lora_alpha", |o| o.lora.alpha = f64::INFINITY),
        ("--lora_dropout", |o| o.lora.dropout = 1.0),
        ("--lora_dropout", |o| o.lora.dropout = f64::NAN),
        ("--lora_targets", |o| o.lora.targets = vec!["q_proj".into(), "q_proj".into()]),
        ("--lora_targets", |o| o.lora.targets = vec![String::new()]),
        ("--learning_rate", |o| o.learning_rate = 0.0),
        ("--learning_rate", |o| o.learning_rate = f64::NAN),
        ("--min_lr", |o| o.min_lr = 1.0),
        ("--min_lr", |o| o.min_lr = -1e-9),
        ("--batch_size", |o| (o.batch_size, o.micro_batch_size) = (9, 2)),
        ("--batch_size", |o| o.batch_size = 0),
        ("--micro_batch_size", |o| o.micro_batch_size = 0),
        ("--max_seq_length", |o| o.max_seq_length = Some(1)),
        ("--epochs", |o| o.epochs = 0),
        ("--max_steps", |o| o.max_steps = Some(0)),
        ("--weight_decay", |o| o.weight_decay = -0.01),
        ("--beta1", |o| o.beta1 = 1.0),
        ("--beta2", |o| o.beta2 = f64::NAN),
        ("--eps", |o| o.eps = 0.0),
        ("--grad_clip", |o| o.grad_clip = Some(-1.0)),
        ("--eval_interval", |o| o.eval_interval = Some(0)),
        ("--save_interval", |o| o.save_interval = Some(0)),
        ("--gpu", |o| o.gpu = Some(" ".into())),
        ("--init_adapter", |o| {
            o.method = Method::Full { init: WeightInit::Random };
            o.init_adapter = Some("adapter".into());
        }),
    ];
    for (option, change) in cases {
        let found = problems(change);
        assert_eq!(found.len(), 1, "{option}: {found:?}");
        assert_eq!(found[0].option, *option);
    }
}

#[cfg(unix)]
#[test]
fn paths_are_text() {
    use std::os::unix::ffi::OsStrExt;
    let path = || PathBuf::from(std::ffi::OsStr::from_bytes(b"o\xffut"));
    type Change = fn(&mut FinetuneOptions, PathBuf);
    let cases: &[(&str, Change)] = &[
        ("--out_dir", |o, path| o.out_dir = path),
        ("MODEL_DIR", |o, path| o.model_dir = path),
        ("--init_adapter", |o, path| o.init_adapter = Some(path)),
        ("--eval_prompts", |o, path| o.eval_prompts = Some(path)),
        ("--data.json_path", |o, path| o.data.json_path = path),
        ("--data_cache", |o, path| o.data.cache = Some(path)),
        ("--prompt_template", |o, path| o.data.prompt_template = Some(path)),
    ];
    for (option, change) in cases {
        let found = problems(|o| change(o, path()));
        assert_eq!(found.len(), 1, "{option}: {found:?}");
        assert!(found[0].option == *option && found[0].allowed.contains("UTF-8"), "{found:?}");
    }
}

#[test]
fn all_problems_come_at_once() {
    let error = FinetuneOptions { epochs: 0, beta1: 2.0, eps: -1.0, ..valid() }.validate().unwrap_err();
    let options: Vec<&str> = error.problems.iter().map(|problem| problem.option).collect();
    assert_eq!(options, ["--epochs", "--beta1", "--eps"]);
    let text = error.to_string();
    assert!(text.starts_with("3 options cannot be used:"), "{text}");
    assert!(text.contains("\n  --beta1 2: must be at least 0 and below 1"), "{text}");
}

#[test]
fn full_training_does_not_look_at_the_adapter_options() {
    let found = problems(|o| {
        o.method = Method::Full { init: WeightInit::Random };
        o.lora.rank = 0;
    });
    assert_eq!(found, []);
}

#[test]
fn a_micro_batch_is_no_larger_than_the_batch() {
    let options = FinetuneOptions { batch_size: 1, ..valid() };
    assert_eq!(options.micro_batch(), 1);
    assert_eq!(options.validate(), Ok(()));
    assert_eq!(valid().micro_batch(), 2);
}

#[test]
fn warm_up_is_a_tenth_at_most_a_hundred_unless_given_and_fits_the_run() {
    for (given, steps, expected) in [
        (None, 30, 3),
        (None, 5, 0),
        (None, 5000, 100),
        (Some(100), 200, 100),
        (Some(100), 20, 20),
        (Some(0), 20, 0),
    ] {
        let options = FinetuneOptions { lr_warmup_steps: given, ..valid() };
        assert_eq!(options.warmup_steps(steps), expected, "{given:?} of {steps}");
    }
}

#[test]
fn words_go_both_ways_and_equal_the_serialised_form() {
    fn check<T>(all: &[T])
    where
        T: FromStr<Err = UnknownName> + fmt::Display + fmt::Debug + PartialEq + Serialize,
    {
        for value in all {
            assert_eq!(&value.to_string().parse::<T>().unwrap(), value);
            assert_eq!(serde_json::to_value(value).unwrap(), value.to_string());
        }
    }
    check(Precision::ALL);
    check(ScheduleKind::ALL);
    let every = Recompute::every(4).unwrap();
    check(&[RecomputeKind::Auto, RecomputeKind::NONE, RecomputeKind::Policy(every)]);
    check(WeightInit::ALL);
    let error = "fp16".parse::<Precision>().unwrap_err().to_string();
    assert_eq!(error, "\"fp16\" is none of 32-true, 16-true, bf16-true, 16-mixed, bf16-mixed");
}

#[test]
fn true_stores_both_and_mixed_keeps_the_weights_in_f32() {
    for (precision, weights, activations) in [
        (Precision::F32True, DType::F32, DType::F32),
        (Precision::F16True, DType::F16, DType::F16),
        (Precision::BF16True, DType::BF16, DType::BF16),
        (Precision::F16Mixed, DType::F32, DType::F16),
        (Precision::BF16Mixed, DType::F32, DType::BF16),
    ] {
        assert_eq!((precision.weights(), precision.activations()), (weights, activations), "{precision}");
    }
}

#[test]
fn modes_read_back() {
    for mode in [TuneMode::Off, TuneMode::Cached, TuneMode::Full] {
        assert_eq!(mode.to_string().parse(), Ok(mode));
    }
    assert!("fast".parse::<TuneMode>().is_err());
}

#[test]
fn options_survive_saving_and_missing_keys_are_defaults() {
    let options = FinetuneOptions {
        method: Method::Full { init: WeightInit::Random },
        grad_clip: None,
        seed: u64::MAX,
        ..valid()
    };
    let text = serde_json::to_string(&options).unwrap();
    assert_eq!(serde_json::from_str::<FinetuneOptions>(&text).unwrap(), options);
    let few = serde_json::from_str::<FinetuneOptions>(r#"{"epochs": 7}"#).unwrap();
    assert_eq!(few, FinetuneOptions { epochs: 7, ..FinetuneOptions::default() });
}
