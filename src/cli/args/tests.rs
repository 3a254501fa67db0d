//! Every option in both spellings, defaults, mistakes and help.

use super::*;
use crate::autograd::Recompute;
use crate::data::{DataSource, Format};
use crate::generate::sampling::SamplingOptions;
use crate::graph::DType;
use crate::train::logging::LoggerKind;
use crate::train::options::{Example, LayerRange, LoraOptions, OptimizerKind, RecomputeKind, TuneMode};
use crate::train::quantize::Quantize;
use crate::train::schedule::ScheduleKind;
use clap::CommandFactory;
use clap::error::ErrorKind;

const FINETUNE: [&str; 4] = ["finetune", "model", "--data.json_path", "rows.json"];

fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("engraft").chain(words.iter().copied()))
}

fn finetune(words: &[&str]) -> FinetuneOptions {
    match parse(&[&FINETUNE, words].concat()).unwrap_or_else(|e| panic!("{words:?}: {e}")).command {
        Command::Finetune(args) => args.resolve().unwrap_or_else(|e| panic!("{words:?}: {e}")),
        other => panic!("{other:?}"),
    }
}

fn bench(words: &[&str]) -> BenchTrainArgs {
    match parse(&[&["bench", "train"], words].concat()).unwrap().command {
        Command::Bench(BenchArgs { command: BenchCommand::Train(args) }) => args,
        other => panic!("{other:?}"),
    }
}

fn each_command(command: &clap::Command, visit: &mut impl FnMut(&clap::Command)) {
    visit(command);
    command.get_subcommands().for_each(|inner| each_command(inner, visit));
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_underscore_has_its_dash() {
    let mut seen = 0;
    each_command(&Cli::command(), &mut |command| {
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long().filter(|long| long.contains('_')) else { continue };
            let aliases = arg.get_all_aliases().unwrap_or_default();
            assert!(aliases.contains(&long.replace('_', "-").as_str()), "--{long} has {aliases:?}");
            seen += 1;
        }
        if command.get_name().contains('_') {
            let dashed = command.get_name().replace('_', "-");
            assert!(command.get_all_aliases().any(|alias| alias == dashed), "{}", command.get_name());
        }
    });
    assert!(seen > 40, "{seen}");
}

#[test]
fn every_option_is_explained_in_one_line() {
    each_command(&Cli::command(), &mut |command| {
        for arg in command.get_arguments() {
            let help = arg.get_help().unwrap_or_else(|| panic!("--{} has no help", arg.get_id())).to_string();
            assert!(help.len() <= 110 && !help.contains('\n'), "{}: {help}", arg.get_id());
        }
    });
}

#[test]
fn each_option_lands_in_its_field_in_both_spellings() {
    type Change = fn(&mut FinetuneOptions);
    let table: &[(&str, &str, Change)] = &[
        ("--data.val_split_fraction", "0.25", |o| o.data.val_split_fraction = 0.25),
        ("--data.mask_prompt", "false", |o| o.data.mask_prompt = false),
        ("--data.shuffle", "false", |o| o.data.shuffle = false),
        ("--data.prompt_style", "none", |o| o.data.prompt_style = "none".into()),
        ("--data.seed", "42", |o| o.data.seed = Some(42)),
        ("--data.num_workers", "3", |o| o.data.num_workers = Some(3)),
        ("--data_format", "sharegpt", |o| o.data.format = Some(Format::ShareGpt)),
        ("--prompt_template", "t.jinja", |o| o.data.prompt_template = Some("t.jinja".into())),
        ("--data_cache", "tokens", |o| o.data.cache = Some("tokens".into())),
        ("--lora_rank", "3", |o| o.lora.rank = 3),
        ("--lora_alpha", "5.5", |o| o.lora.alpha = 5.5),
        ("--lora_dropout", "0.05", |o| o.lora.dropout = 0.05),
        ("--lora_targets", "q_proj,v_proj", |o| o.lora.targets = vec!["q_proj".into(), "v_proj".into()]),
        ("--lora_layers", "last-4", |o| o.lora.layers = Some(LayerRange::Last(4))),
        ("--freeze", "model.layers.[0-7].*,*.o_proj", |o| {
            o.freeze = vec!["model.layers.[0-7].*".into(), "*.o_proj".into()];
        }),
        ("--modules_to_save", "lm_head,model.norm", |o| {
            o.lora.modules_to_save = vec!["lm_head".into(), "model.norm".into()];
        }),
        ("--init_adapter", "old", |o| o.init_adapter = Some("old".into())),
        ("--learning_rate", "1e-3", |o| o.learning_rate = 1e-3),
        ("--batch_size", "4", |o| o.batch_size = 4),
        ("--micro_batch_size", "4", |o| o.micro_batch_size = 4),
        ("--max_seq_length", "256", |o| o.max_seq_length = Some(256)),
        ("--epochs", "5", |o| o.epochs = 5),
        ("--max_steps", "30", |o| o.max_steps = Some(30)),
        ("--lr_warmup_steps", "7", |o| o.lr_warmup_steps = Some(7)),
        ("--lr_warmup_fraction", "0.1", |o| o.lr_warmup_fraction = Some(0.1)),
        ("--optimizer.betas", "0.8,0.99", |o| (o.beta1, o.beta2) = (0.8, 0.99)),
        ("--accumulate_grad_batches", "6", |o| {
            (o.batch_size, o.accumulate_grad_batches) = (12, Some(6));
        }),
        ("--optimizer", "torch.optim.SGD", |o| o.optimizer = OptimizerKind::Sgd),
        ("--loraplus_lr_ratio", "16", |o| o.loraplus_lr_ratio = 16.0),
        ("--eval_prompts", "p.txt", |o| o.eval_prompts = Some("p.txt".into())),
        ("--evaluate_example", "3", |o| o.evaluate_example = Some(Example::Index(3))),
        ("--eval_max_new_tokens", "9", |o| o.eval_max_new_tokens = Some(9)),
        ("--eval_max_iters", "5", |o| o.eval_max_iters = Some(5)),
        ("--initial_validation", "true", |o| o.initial_validation = true),
        ("--final_validation", "false", |o| o.final_validation = false),
        ("--lora_query", "true", |o| o.lora.targets = vec!["q_proj".into(), "v_proj".into()]),
        ("--lora_key", "true", |o| o.lora.targets = ["q_proj", "k_proj", "v_proj"].map(Into::into).into()),
        ("--lora_value", "false", |o| o.lora.targets = vec!["q_proj".into()]),
        ("--lora_projection", "true", |o| {
            o.lora.targets = ["q_proj", "v_proj", "o_proj"].map(Into::into).into();
        }),
        ("--lora_mlp", "true", |o| {
            o.lora.targets = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"].map(Into::into).into();
        }),
        ("--lora_head", "true", |o| o.lora.targets = ["q_proj", "v_proj", "lm_head"].map(Into::into).into()),
        ("--lr_schedule", "linear", |o| o.lr_schedule = ScheduleKind::Linear),
        ("--min_lr", "1e-6", |o| o.min_lr = 1e-6),
        ("--weight_decay", "0", |o| o.weight_decay = 0.0),
        ("--beta1", "0.8", |o| o.beta1 = 0.8),
        ("--beta2", "0.999", |o| o.beta2 = 0.999),
        ("--eps", "1e-6", |o| o.eps = 1e-6),
        ("--grad_clip", "0.5", |o| o.grad_clip = Some(0.5)),
        ("--grad_clip", "0", |o| o.grad_clip = None),
        ("--eval_interval", "10", |o| o.eval_interval = Some(10)),
        ("--save_interval", "20", |o| o.save_interval = Some(20)),
        ("--log_interval", "5", |o| o.log_interval = Some(5)),
        ("--autosave", "1h", |o| o.autosave = Some(3600.0)),
        ("--autosave", "0", |o| o.autosave = None),
        ("--keep_last", "2", |o| o.keep_last = Some(2)),
        ("--early_stopping_min_delta", "0.01", |o| o.early_stopping_min_delta = 0.01),
        ("--max_time", "1h30m", |o| o.max_time = Some(5400.0)),
        ("--logger_name", "csv,tensorboard", |o| {
            o.logger_name = vec![LoggerKind::Csv, LoggerKind::TensorBoard];
        }),
        ("--resume", "out/step-000020", |o| o.resume = Some("out/step-000020".into())),
        ("--seed", "42", |o| o.seed = 42),
        ("--precision", "16-mixed", |o| o.precision = Precision::F16Mixed),
        ("--quantize", "bnb.nf4-dq", |o| o.quantize = Quantize::Nf4Double),
        ("--recompute", "layer", |o| o.recompute = RecomputeKind::Policy(Recompute::Layer)),
        ("--offload", "3", |o| o.offload = 3),
        ("--mlp_chunks", "4", |o| o.mlp_chunks = 4),
        ("--memory_limit", "2GiB", |o| o.memory_limit = Some(2 << 30)),
        ("--out_dir", "there", |o| o.out_dir = "there".into()),
        ("--gpu", "1", |o| o.gpu = Some("1".into())),
        ("--tune", "full", |o| o.tune = TuneMode::Full),
    ];
    for (option, value, change) in table {
        let mut expected = finetune(&[]);
        change(&mut expected);
        assert_ne!(expected, finetune(&[]), "{option} is tested with its default");
        let dashed = option.replace('_', "-");
        assert_eq!(finetune(&[option, value]), expected, "{option}");
        assert_eq!(finetune(&[&dashed, value]), expected, "{dashed}");
        assert_eq!(finetune(&[&format!("{option}={value}")]), expected, "{option}=");
    }
    assert!(finetune(&["--no_coop"]).no_coop && finetune(&["--no-coop"]).no_coop);
    for spelled in ["--offload_activations", "--offload-activations"] {
        assert!(finetune(&[spelled]).offload_activations);
    }
    for spelled in ["--quantize_head", "--quantize-head"] {
        assert!(finetune(&["--quantize", "nf4", spelled]).quantize_head);
    }
    for spelled in ["--keep_best", "--keep-best"] {
        assert!(finetune(&[spelled]).keeps_best());
    }
    for spelled in ["--early_stopping_patience", "--early-stopping-patience"] {
        assert_eq!(finetune(&[spelled, "4", "--eval_interval", "9"]).early_stopping_patience, Some(4));
    }
    let listed: Vec<&str> = table.iter().map(|row| row.0.trim_start_matches('-')).collect();
    let command = Cli::command();
    for arg in command.find_subcommand("finetune").unwrap().get_arguments() {
        let Some(long) = arg.get_long() else { continue };
        let elsewhere = [
            "data",
            "data.json_path",
            "data.download_dir",
            "data.file_url",
            "data.file_name",
            "data.repo_id",
            "quiet",
            "help",
            "config",
            "checkpoint_dir",
            "no_coop",
            "quantize_head",
            "offload_activations",
            "keep_best",
            "momentum",
            "early_stopping_patience",
            "tui",
        ]
        .contains(&long);
        assert!(elsewhere || listed.contains(&long), "--{long} is not in the table");
    }
}

/// What LitGPT's `finetune_lora` calls them.
#[test]
fn options_are_known_by_litgpts_names() {
    for (theirs, ours, value) in [
        ("--train.global_batch_size", "--batch_size", "4"),
        ("--train.micro_batch_size", "--micro_batch_size", "4"),
        ("--train.lr_warmup_steps", "--lr_warmup_steps", "7"),
        ("--train.lr_warmup_fraction", "--lr_warmup_fraction", "0.5"),
        ("--train.epochs", "--epochs", "5"),
        ("--train.max_steps", "--max_steps", "30"),
        ("--train.max_seq_length", "--max_seq_length", "256"),
        ("--train.max_time", "--max_time", "60"),
        ("--train.max_norm", "--grad_clip", "0.5"),
        ("--train.min_lr", "--min_lr", "6e-5"),
        ("--train.save_interval", "--save_interval", "200"),
        ("--train.learning_rate", "--learning_rate", "2e-4"),
        ("--train.weight_decay", "--weight_decay", "0.1"),
        ("--train.beta1", "--beta1", "0.8"),
        ("--train.beta2", "--beta2", "0.8"),
        ("--eval.interval", "--eval_interval", "10"),
        ("--eval.max_iters", "--eval_max_iters", "10"),
        ("--eval.initial_validation", "--initial_validation", "true"),
        ("--eval.final_validation", "--final_validation", "false"),
        ("--optimizer.lr", "--learning_rate", "2e-4"),
        ("--optimizer.weight_decay", "--weight_decay", "0.1"),
        ("--optimizer.eps", "--eps", "1e-6"),
        ("--lora_r", "--lora_rank", "16"),
    ] {
        assert_eq!(finetune(&[theirs, value]), finetune(&[ours, value]), "{theirs}");
        assert_ne!(finetune(&[theirs, value]), finetune(&[]), "{theirs} is tested with its default");
    }
    let named = parse(&["finetune_lora", "--checkpoint_dir", "m", "--data.json_path", "rows.json"]).unwrap();
    let Command::Finetune(args) = named.command else { panic!("another command") };
    assert_eq!(args.resolve().unwrap().model_dir, PathBuf::from("m"));
}

#[test]
fn sizes_of_a_batch_follow_from_each_other() {
    let sizes = |words: &[&str]| {
        let options = finetune(words);
        (options.batch_size, options.micro_batch_size)
    };
    assert_eq!(sizes(&["--accumulate_grad_batches", "3", "--micro_batch_size", "4"]), (12, 4));
    assert_eq!(sizes(&["--accumulate_grad_batches", "3", "--batch_size", "12"]), (12, 4));
    let words = ["--accumulate_grad_batches", "3", "--batch_size", "8", "--micro_batch_size", "2"];
    let Command::Finetune(args) = parse(&[&FINETUNE[..], &words].concat()).unwrap().command else {
        panic!("another command")
    };
    let error = args.resolve().unwrap_err().to_string();
    assert!(error.contains("--accumulate_grad_batches 3") && error.contains("leave one"), "{error}");
}

#[test]
fn the_last_word_counts() {
    let twice = finetune(&[
        "--epochs",
        "3",
        "--lora_targets",
        "q_proj,k_proj",
        "--epochs",
        "7",
        "--lora_targets",
        "v_proj",
    ]);
    assert_eq!((twice.epochs, twice.lora.targets), (7, vec!["v_proj".to_owned()]));
}

#[test]
fn unsaid_options_are_the_librarys_defaults() {
    let mut expected = FinetuneOptions { model_dir: "model".into(), ..FinetuneOptions::default() };
    expected.data.json_path = "rows.json".into();
    assert_eq!(finetune(&[]), expected);
    assert_eq!(finetune(&["--data", "JSON", "--lora_targets", "all-linear"]), expected);
    assert_eq!(finetune(&["--data.mask_prompt", "--data.shuffle", "True"]), expected);
}

#[test]
fn the_micro_batch_follows_an_odd_batch_unless_given() {
    for (batch, micro_batch) in [("1", 1), ("3", 1), ("6", 2)] {
        assert_eq!(finetune(&["--batch_size", batch]).micro_batch_size, micro_batch);
    }
}

#[test]
fn commands_have_their_other_names() {
    for name in ["finetune", "finetune_lora", "finetune-lora"] {
        let cli = parse(&[name, "model", "--data.json-path", "rows.json"]).unwrap();
        assert!(matches!(cli.command, Command::Finetune(_)), "{name}");
    }
    for name in ["finetune_full", "finetune-full"] {
        let cli = parse(&[name, "model", "--data.json_path", "rows.json", "--init", "random"]).unwrap();
        let Command::FinetuneFull(args) = cli.command else { panic!("{name}") };
        assert_eq!(args.resolve().unwrap().method, Method::Full { init: WeightInit::Random });
    }
}

#[test]
fn full_training_takes_no_adapter_options() {
    for option in ["--lora_rank", "--init_adapter"] {
        let words = ["finetune_full", "model", "--data.json_path", "rows.json", option, "4"];
        assert_eq!(parse(&words).unwrap_err().kind(), ErrorKind::UnknownArgument);
    }
}

#[test]
fn a_plan_takes_the_options_of_finetune_and_neither_model_nor_data() {
    let plan = |words: &[&str]| match parse(&[&["plan"], words].concat()).unwrap().command {
        Command::Plan(args) => args,
        other => panic!("{other:?}"),
    };
    let words = "--shape llama-3.2-1b --max-seq-length 512 --lora_rank 4 --recompute every-4 --memory-limit 6GiB --json";
    let args = plan(&words.split_whitespace().collect::<Vec<_>>());
    assert!(args.json && args.config().is_ok());
    let expected = FinetuneOptions {
        lora: LoraOptions { rank: 4, ..LoraOptions::default() },
        max_seq_length: Some(512),
        recompute: RecomputeKind::Policy(Recompute::every(4).unwrap()),
        memory_limit: Some(6 << 30),
        ..FinetuneOptions::default()
    };
    assert_eq!(args.resolve().unwrap(), expected);
    let full = plan(&["model", "--full", "--data.json_path", "rows.json"]).resolve().unwrap();
    assert_eq!(
        (full.method, full.data.json_path),
        (Method::Full { init: WeightInit::Checkpoint }, "rows.json".into())
    );
    assert!(plan(&["model", "--batch_size", "0"]).resolve().is_err());
    assert!(parse(&["plan", "model", "--shape", "llama-3.2-1b"]).is_err());
}

#[test]
fn quiet_stands_anywhere() {
    assert!(parse(&[&["--quiet"][..], &FINETUNE].concat()).unwrap().quiet);
    assert!(parse(&[&FINETUNE, &["--quiet"][..]].concat()).unwrap().quiet);
    assert!(!parse(&FINETUNE).unwrap().quiet);
}

#[test]
fn mistakes_end_with_code_two_and_say_what_is_allowed() {
    for (words, said) in [
        (&["--data", "rows.json:0"][..], "above 0"),
        (&["--data_format", "xml"], "prompt-completion"),
        (&["--precision", "fp16"], "bf16-mixed"),
        (&["--lr_schedule", "step"], "cosine, linear, constant"),
        (&["--recompute", "all"], "selective, layer, every-N"),
        (&["--memory_limit", "8G"], "6GiB"),
        (&["--batch_size", "-1"], "whole number"),
        (&["--epochs", "2.5"], "whole number"),
        (&["--learning_rate", "fast"], "--learning_rate"),
        (&["--data.shuffle", "maybe"], "true or false"),
        (&["--learning_rat", "1"], "--learning_rate"),
    ] {
        let error = parse(&[&FINETUNE, words].concat()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(said), "{words:?}: {error}");
    }
    let error = parse(&["generate"]).unwrap_err();
    assert_eq!((error.kind(), error.exit_code()), (ErrorKind::MissingRequiredArgument, 2));
    // a file may name the model, so the parser leaves it to who needs it; and a plan needs no data, so the parser leaves it to who needs them
    let Command::Finetune(args) = parse(&["finetune", "model"]).unwrap().command else {
        panic!("another command")
    };
    let error = args.resolve().unwrap_err().to_string();
    assert!(error.contains("--data.json_path: must be given"), "{error}");
}

/// An option that may stand alone takes what follows for its value, also where that is the model.
#[test]
fn resume_before_the_model_does_not_swallow_it() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models/llama");
    let resolved = |words: &[&str]| match parse(&[&["finetune", "--data", "d.json"], words].concat()) {
        Ok(Cli { command: Command::Finetune(args), .. }) => args.resolve(),
        other => panic!("{other:?}"),
    };
    let options = resolved(&["--resume", model]).unwrap();
    assert_eq!((options.model_dir, options.resume), (model.into(), Some("auto".into())));
    let options = resolved(&["--resume", model, "other"]).unwrap();
    assert_eq!((options.model_dir, options.resume), ("other".into(), Some(model.into())));
    let error = resolved(&["--resume", "out/step-000001"]).unwrap_err().to_string();
    assert!(error.contains("MODEL_DIR: must be given"), "{error}");
}

#[test]
fn data_are_named_by_either_option() {
    let data = |words: &[&str]| match parse(&[&["finetune", "model"], words].concat()).unwrap().command {
        Command::Finetune(args) => args.resolve(),
        other => panic!("{other:?}"),
    };
    let listed = data(&["--data", "a.json:2,b"]).unwrap().data;
    let sources = [DataSource { path: "a.json".into(), weight: 2.0 }, DataSource::once("b")];
    assert_eq!(listed.sources(), sources);
    for words in [&["--data.json_path", "a,b:2"][..], &["--data", "JSON", "--data.json_path", "a,b:2"]] {
        assert_eq!(data(words).unwrap().data.sources(), [DataSource::once("a,b:2")]);
    }
    for words in [&["--data", "JSON"][..], &["--data", "a", "--data.json_path", "b"]] {
        assert!(data(words).unwrap_err().to_string().contains("--data.json_path"), "{words:?}");
    }
}

#[test]
fn data_command_looks_at_every_row_in_order() {
    let parsed = |words: &[&str]| match parse(&[&["data", "rows.json", "--model", "m"], words].concat()) {
        Ok(Cli { command: Command::Data(args), .. }) => args,
        other => panic!("{other:?}"),
    };
    let args = parsed(&["--prompt_style", "chat", "--show", "5", "--json"]);
    let options = args.options().unwrap();
    assert_eq!((options.prompt_style.as_str(), args.show, args.json), ("chat", 5, true));
    assert_eq!((options.val_split_fraction, options.shuffle), (0.0, false));
    assert!(
        parsed(&["--prompt_style", "x", "--max_seq_length", "1"]).options().unwrap_err().problems.len() == 2
    );
}

#[test]
fn numbers_out_of_range_are_all_reported() {
    let words = ["--learning_rate", "-1", "--data.val_split_fraction", "nan", "--lora_rank", "0"];
    let Command::Finetune(args) = parse(&[&FINETUNE[..], &words].concat()).unwrap().command else { panic!() };
    let error = args.resolve().unwrap_err();
    let options: Vec<&str> = error.problems.iter().map(|problem| problem.option).collect();
    assert_eq!(options, ["--data.val_split_fraction", "--lora_rank", "--learning_rate"]);
}

#[test]
fn generate_resolves_its_sampling() {
    let generate = |words: &[&str]| match parse(&[&["generate", "model"], words].concat()).unwrap().command {
        Command::Generate(args) => args,
        other => panic!("{other:?}"),
    };
    let plain = generate(&[]);
    assert_eq!((plain.sampling.options(), plain.max_new_tokens), (SamplingOptions::default(), 128));
    assert_eq!((plain.prompt.as_deref(), plain.num_samples, plain.check()), (None, 1, Ok(())));
    let words =
        ["--prompt", "- a list", "--top-k", "0", "--top_p", "0.9", "--temperature", "0", "--seed", "5"];
    let own = generate(&words);
    let expected = SamplingOptions { temperature: 0.0, top_k: None, top_p: 0.9, seed: 5 };
    assert_eq!((own.sampling.options(), own.prompt.as_deref()), (expected, Some("- a list")));
    let bad =
        generate(&["--max-new-tokens", "0", "--temperature", "-1", "--top-p", "0", "--prompt-style", "x"]);
    assert_eq!(bad.check().unwrap_err().problems.len(), 4);
    assert_eq!(generate(&["--num-samples", "0"]).check().unwrap_err().problems[0].option, "--num_samples");
}

#[test]
fn talking_commands_share_their_options() {
    let words = [
        "--adapter",
        "a",
        "--prompt-style",
        "chatml",
        "--context",
        "64",
        "--max-new-tokens",
        "7",
        "--top_k",
        "0",
    ];
    for command in ["chat", "serve"] {
        let talk = match parse(&[&[command, "model"], &words[..]].concat()).unwrap().command {
            Command::Chat(args) => args.talk,
            Command::Serve(args) => {
                assert_eq!(
                    (args.host.as_str(), args.port),
                    ("127.0.0.1", 8000),
                    "loopback unless told otherwise"
                );
                args.talk
            }
            other => panic!("{other:?}"),
        };
        let options = talk.resolve().unwrap();
        assert_eq!((options.adapter, options.context), (Some("a".into()), Some(64)));
        assert_eq!(options.style.to_string(), "chatml");
        assert_eq!((talk.answer().max_new_tokens, talk.answer().sampling.top_k), (7, None));
        let Command::Chat(bad) = parse(&["chat", "m", "--context", "1", "--top_p", "0"]).unwrap().command
        else {
            panic!()
        };
        assert_eq!(bad.talk.resolve().unwrap_err().problems.len(), 2);
    }
}

#[test]
fn evaluate_takes_the_whole_file_unless_a_fraction_is_given() {
    let evaluate = |words: &[&str]| {
        let all = [&["evaluate", "model", "--data", "JSON", "--data.json_path", "rows.json"], words].concat();
        match parse(&all).unwrap().command {
            Command::Evaluate(args) => args.resolve(),
            other => panic!("{other:?}"),
        }
    };
    let whole = evaluate(&["--lora", "adapter", "--json"]).unwrap();
    assert_eq!((whole.data.val_split_fraction, whole.adapter), (0.0, Some("adapter".into())));
    assert_eq!(evaluate(&["--data.val-split-fraction", "0.2"]).unwrap().data.val_split_fraction, 0.2);
    assert!(evaluate(&["--micro_batch_size", "0", "--max_seq_length", "1"]).is_err());
}

#[test]
fn bench_train_takes_the_shape_of_a_model() {
    let words = "--hidden 512 --layers 2 --heads 8 --kv_heads 2 --ffn 1024 --vocab 1000 --seq 64 \
                 --batch 2 --rank 4 --targets q_proj,o_proj --steps 5 --precision bf16-true \
                 --recompute layer --gpu x --json";
    let args = bench(&words.split_whitespace().collect::<Vec<_>>());
    assert_eq!(args.check(), Ok(()));
    assert_eq!((args.hidden, args.layers, args.heads, args.kv_heads(), args.ffn), (512, 2, 8, 2, 1024));
    assert_eq!((args.vocab, args.seq, args.batch, args.rank, args.steps), (1000, 64, 2, 4, 5));
    assert_eq!(args.targets(), ["q_proj", "o_proj"]);
    assert_eq!(
        (args.precision.precision, args.recompute),
        (Precision::BF16True, RecomputeKind::Policy(Recompute::Layer))
    );
    assert!(args.run.json && args.run.device.gpu.as_deref() == Some("x"));
    assert_eq!(bench(&["--heads", "2"]).kv_heads(), 2);
    assert!(bench(&["--kv-heads", "3"]).check().is_err());
    assert!(bench(&["--heads", "0"]).check().is_err());
    assert!(bench(&["--hidden", "12"]).check().is_err(), "a head of 3 has no rotary pairs");
}

#[test]
fn benchmarks_refuse_options_that_change_nothing_there() {
    for (words, said) in [
        ("attention --size 8x8x8", "--size"),
        ("attention --rank 4", "--rank"),
        ("attention --storage nf4", "f32, f16 and bf16"),
        ("matmul --rank 4", "--rank"),
        ("matmul --size 8x8x8 --shape llama-3.2-1b", "cannot be used with '--shape"),
        ("matmul --size 8x8", "3 numbers"),
        ("matmul --storage fp4", "nf4-dq"),
        ("lora --size 8x8 --shape llama-3.2-1b", "cannot be used with '--shape"),
        ("lora --size 8x8x8", "such as 1024x1024"),
        ("lora --tokens 99999999999999", "1073741824"),
    ] {
        let error = parse(&["bench"].into_iter().chain(words.split(' ')).collect::<Vec<_>>()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(said), "{words}: {error}");
    }
    let matmul = |words: &str| match parse(&words.split(' ').collect::<Vec<_>>()).unwrap().command {
        Command::Bench(BenchArgs { command: BenchCommand::Matmul(args) }) => args,
        other => panic!("{other:?}"),
    };
    let said = matmul("bench matmul --tokens 64").check().unwrap_err().to_string();
    assert!(said.contains("--tokens 64") && said.contains("--shape"), "{said}");
    let named = matmul("bench matmul --tokens 64 --shape llama-3.2-1b --storage bnb.nf4");
    assert_eq!((named.check(), named.tokens()), (Ok(()), 64));
    assert_eq!(named.storage.storage, DType::Nf4.into());
}

#[test]
fn help_lists_the_exit_codes_and_parses_without_a_world() {
    for words in [&["--help"][..], &["finetune", "--help"], &["bench", "train", "--help"]] {
        let help = parse(words).unwrap_err();
        assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
        let words: Vec<String> = help.to_string().split_whitespace().map(String::from).collect();
        assert!(words.join(" ").contains("4 no usable device, 130 stopped"), "{help}");
    }
    let serve = parse(&["serve", "--help"]).unwrap_err().to_string();
    let serve = serve.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        serve.contains("0 ended by Ctrl-C or SIGTERM,")
            && serve.ends_with("130 stopped while it loads, or by a second Ctrl-C")
    );
    assert_eq!(parse(&[]).unwrap_err().exit_code(), 2);
}

#[test]
fn help_lists_what_a_command_takes_and_no_more() {
    for (command, ratio) in [("finetune", true), ("finetune_full", false)] {
        let help = parse(&[command, "--help"]).unwrap_err().to_string();
        assert_eq!(help.contains("--loraplus_lr_ratio"), ratio, "{help}");
        assert!(help.contains("--weight_decay"), "{help}");
    }
}
