//! `engraft finetune` and `finetune_full` as a user calls them: files, exit codes, messages, repeatability, and PyTorch +
//! PEFT where Python has them.

mod common;

use engraft::checkpoint::{Adapter, AdapterTensor, Checkpoint};
use engraft::error::Failure;
use engraft::models::ModelConfig;
use engraft::plan::MemoryReport;
use engraft::train::finetune::Finetune;
use engraft::train::metrics::Event;
use engraft::train::options::TuneMode;
use engraft::train::options::{DataOptions, FinetuneOptions, LoraOptions, Precision, RecomputeKind};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn model() -> PathBuf {
    common::fixtures().join("models/llama")
}

/// Twelve rows with answers of very different lengths.
fn rows() -> Vec<Value> {
    (0..12)
        .map(|i| json!({"instruction": format!("Say {i}"), "input": "", "output": "ab ".repeat(1 + i * i % 11)}))
        .collect()
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}

fn engraft(arguments: &[&str]) -> Output {
    // nothing outside the build's own folder is written
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/cache");
    Command::new(env!("CARGO_BIN_EXE_engraft")).env("ENGRAFT_CACHE", cache).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A run of the command on the small rows; options replace the defaults by coming later in the map.
struct Run {
    folder: tempfile::TempDir,
    command: &'static str,
    options: Vec<(String, String)>,
}

impl Run {
    fn new(options: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = write(folder.path(), "data.json", &json!(rows()).to_string());
        let defaults = [
            ("data", "JSON"),
            ("data.json_path", data.to_str().unwrap()),
            ("data.val_split_fraction", "0.2"),
            ("data.shuffle", "false"),
            ("max_seq_length", "100"),
            ("batch_size", "8"),
            ("micro_batch_size", "2"),
            ("max_steps", "3"),
            ("learning_rate", "1e-3"),
            ("precision", "32-true"),
        ];
        let mut run = Run { command: "finetune", options: Vec::new(), folder };
        for (name, value) in defaults.iter().chain(options) {
            run.set(name, value);
        }
        run
    }

    fn set(&mut self, name: &str, value: &str) {
        self.options.retain(|(n, _)| n != name);
        self.options.push((name.to_string(), value.to_string()));
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn start(&self, model: &Path) -> Output {
        let mut arguments = vec![self.command.to_string(), model.display().to_string()];
        for (name, value) in &self.options {
            arguments.extend([format!("--{name}"), value.clone()]);
        }
        arguments.extend(["--out_dir".to_string(), self.out().display().to_string()]);
        let named = self.options.iter().any(|(name, _)| name == "gpu");
        if let (false, Ok(gpu)) = (named, std::env::var("ENGRAFT_TEST_GPU")) {
            arguments.extend(["--gpu".to_string(), gpu]);
        }
        engraft(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs to success and gives the lines of metrics.jsonl.
    fn finish(&self) -> Vec<Value> {
        let output = self.start(&model());
        assert!(output.status.success(), "{:?}: {}", self.options, text(&output.stderr));
        self.metrics()
    }

    fn metrics(&self) -> Vec<Value> {
        let lines = fs::read_to_string(self.out().join("metrics.jsonl")).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn adapter(&self) -> Vec<u8> {
        fs::read(self.out().join("adapter_model.safetensors")).unwrap()
    }
}

/// The values of a key in the lines that have it; a number that is not finite is null in the file and fails here.
fn numbers(metrics: &[Value], key: &str) -> Vec<f64> {
    let values = metrics.iter().filter_map(|line| line.get(key));
    values.map(|value| value.as_f64().unwrap_or_else(|| panic!("{key} is {value}"))).collect()
}

fn close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance * b.abs(), "{what}: {a} against {b}");
}

#[test]
fn a_run_leaves_complete_files() {
    if common::gpu().is_none() {
        return;
    }
    let run =
        Run::new(&[("save_interval", "2"), ("eval_interval", "2"), ("max_steps", "5"), ("epochs", "9")]);
    let output = run.start(&model());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let log = text(&output.stderr);
    assert!(!log.contains('\r') && !log.contains('\u{1b}'), "no bar where the output is no terminal: {log}");
    let metrics = run.metrics();
    let steps: Vec<&Value> = metrics.iter().filter(|l| l.get("loss").is_some()).collect();
    assert_eq!(steps.len(), 5);
    for key in [
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens",
        "label_tokens",
        "tokens_per_s",
        "elapsed_s",
    ] {
        assert!(steps.iter().all(|line| line[key].is_number()), "{key}");
    }
    let evaluations: Vec<u64> =
        metrics.iter().filter(|l| l.get("val_loss").is_some()).map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(evaluations, [2, 4, 5]);
    assert!(metrics.iter().filter(|l| l.get("val_loss").is_some()).all(|l| l["val_ppl"].is_number()));
    assert!(steps[4]["loss"].as_f64() < steps[0]["loss"].as_f64(), "the loss falls");
    let mut names: Vec<String> =
        fs::read_dir(run.out()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = [
        ".engraft.lock",
        "adapter_config.json",
        "adapter_model.safetensors",
        "finished.json",
        "hyperparameters.json",
        "hyperparameters.yaml",
        "metrics.jsonl",
        "prompt_style.json",
        "report.html",
        "run.json",
        "step-000002",
        "step-000004",
    ];
    assert_eq!(names, expected, "and nothing temporary");
    let settings: Value =
        serde_json::from_str(&fs::read_to_string(run.out().join("hyperparameters.json")).unwrap()).unwrap();
    assert_eq!((settings["steps"].as_u64(), settings["precision"].as_str()), (Some(5), Some("32-true")));
    assert!(run.out().join("step-000004/adapter_model.safetensors").is_file());
}

#[test]
fn files_have_their_documented_form() {
    if common::gpu().is_none() {
        return;
    }
    let run =
        Run::new(&[("save_interval", "2"), ("eval_interval", "3"), ("max_steps", "4"), ("epochs", "9")]);
    let output = run.start(&model());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "progress goes to standard error");
    let step = [
        "step",
        "epoch",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens",
        "label_tokens",
        "tokens_per_s",
        "elapsed_s",
    ];
    let evaluation = ["step", "val_loss", "val_ppl"];
    let metrics = run.metrics();
    let keys: Vec<Vec<&String>> =
        metrics.iter().map(|line| line.as_object().unwrap().keys().collect()).collect();
    let expected: [&[&str]; 6] = [&step, &step, &step, &evaluation, &step, &evaluation];
    assert_eq!(keys, expected, "steps 1, 2, 3, an evaluation, step 4, an evaluation");
    // ten training rows in batches of eight: a whole window and a partial one in each epoch
    assert_eq!(numbers(&metrics, "epoch"), [0.8, 1.0, 1.8, 2.0]);
    let tokens = numbers(&metrics, "tokens");
    assert_eq!((tokens[0], tokens[1]), (tokens[2], tokens[3]), "without shuffling both epochs are alike");
    let (val_loss, val_ppl) = (numbers(&metrics, "val_loss"), numbers(&metrics, "val_ppl"));
    close(val_ppl[1], val_loss[1].exp(), 1e-9, "perplexity");

    let mut last = fs::read_dir(run.out().join("step-000004"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect::<Vec<_>>();
    last.sort();
    let state = ["training_state.json", "training_state.safetensors"];
    let others = ["adapter_config.json", "adapter_model.safetensors", "prompt_style.json"];
    assert_eq!(last, [&others[..], &state].concat());
    assert!(fs::read(run.out().join("step-000004/adapter_model.safetensors")).unwrap() == run.adapter());
    assert!(fs::read(run.out().join("step-000002/adapter_model.safetensors")).unwrap() != run.adapter());

    let file = fs::read_to_string(run.out().join("hyperparameters.json")).unwrap();
    let kept: FinetuneOptions = serde_json::from_str(&file).unwrap();
    let resolved = FinetuneOptions {
        model_dir: model(),
        data: DataOptions {
            json_path: run.folder.path().join("data.json"),
            val_split_fraction: 0.2,
            shuffle: false,
            ..DataOptions::default()
        },
        out_dir: run.out(),
        precision: Precision::F32True,
        learning_rate: 1e-3,
        epochs: 9,
        max_steps: Some(4),
        max_seq_length: Some(100),
        lr_warmup_steps: Some(0),
        eval_interval: Some(3),
        save_interval: Some(2),
        // a small model fits: `auto` keeps all activations
        recompute: RecomputeKind::NONE,
        gpu: std::env::var("ENGRAFT_TEST_GPU").ok(),
        ..FinetuneOptions::default()
    };
    assert_eq!(kept, resolved);
    let keys: Value = serde_json::from_str(&file).unwrap();
    let all = serde_json::to_value(&resolved).unwrap();
    assert!(all.as_object().unwrap().keys().all(|key| keys.get(key).is_some()), "every option is in {file}");
}

#[test]
fn every_option_has_a_dashed_spelling() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "data.json", &json!(rows()).to_string());
    let out = folder.path().join("out");
    let options = [
        ("--data.json-path", data.to_str().unwrap()),
        ("--data.val-split-fraction", "0.25"),
        ("--data.mask-prompt", "false"),
        ("--data.prompt-style", "none"),
        ("--learning-rate", "2e-3"),
        ("--batch-size", "4"),
        ("--micro-batch-size", "4"),
        ("--max-seq-length", "64"),
        ("--max-steps", "1"),
        ("--lora-rank", "3"),
        ("--lora-alpha", "6"),
        ("--lora-dropout", "0.05"),
        ("--lora-targets", "v_proj"),
        ("--lr-warmup-steps", "1"),
        ("--lr-schedule", "linear"),
        ("--min-lr", "1e-5"),
        ("--weight-decay", "0.02"),
        ("--grad-clip", "0.5"),
        ("--eval-interval", "1"),
        ("--save-interval", "1"),
        ("--out-dir", out.to_str().unwrap()),
    ];
    let (name, gpu) = (model().display().to_string(), std::env::var("ENGRAFT_TEST_GPU"));
    let mut arguments = vec!["finetune-lora", &name];
    arguments.extend(options.iter().flat_map(|&(option, value)| [option, value]));
    arguments.extend(gpu.iter().flat_map(|gpu| ["--gpu", gpu]));
    let output = engraft(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let kept: FinetuneOptions =
        serde_json::from_str(&fs::read_to_string(out.join("hyperparameters.json")).unwrap()).unwrap();
    let lora = LoraOptions {
        rank: 3,
        alpha: 6.0,
        dropout: 0.05,
        targets: vec!["v_proj".into()],
        ..LoraOptions::default()
    };
    assert_eq!((kept.lora, kept.max_seq_length, kept.min_lr), (lora, Some(64), 1e-5));
    assert_eq!((kept.grad_clip, kept.weight_decay, kept.micro_batch_size), (Some(0.5), 0.02, 4));
    assert_eq!((kept.data.mask_prompt, kept.data.val_split_fraction), (false, 0.25));
}

#[test]
fn quiet_runs_say_nothing_and_other_spellings_work() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = write(folder.path(), "d.jsonl", &rows().iter().map(|r| format!("{r}\n")).collect::<String>());
    let out = folder.path().join("out");
    let output = engraft(&[
        "finetune_lora",
        model().to_str().unwrap(),
        "--data",
        "JSON",
        "--data.json-path",
        data.to_str().unwrap(),
        "--max-steps",
        "1",
        "--lora-rank",
        "2",
        "--lora-targets",
        "q_proj,v_proj",
        "--out-dir",
        out.to_str().unwrap(),
        "--quiet",
    ]);
    // the Vulkan loader itself may print to standard error
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
    assert!(!text(&output.stderr).contains("step"), "{}", text(&output.stderr));
    let config: Value =
        serde_json::from_str(&fs::read_to_string(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["target_modules"]), (&json!(2), &json!(["q_proj", "v_proj"])));
}

/// Every bad input: exit code 2, a message with these words, no output folder, no panic.
#[test]
fn bad_input_is_named_and_writes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| write(scratch.path(), name, content).display().to_string();
    let row = json!(rows()[0]).to_string();
    let no_output = file("key.jsonl", &format!("{row}\n{{\"instruction\": \"x\"}}\n"));
    let wrong_type = file("type.json", r#"[{"instruction": "x", "output": 3}]"#);
    let broken = file("broken.json", r#"[{"instruction": "x", "#);
    let broken_line = file("broken.jsonl", &format!("{row}\n{{oops\n"));
    let (empty, one) = (file("empty.json", ""), file("one.json", &format!("[{row}]")));
    let cases: &[(&str, &str, &[&str])] = &[
        ("data.json_path", "/nowhere/data.json", &["/nowhere/data.json"]),
        ("data.json_path", &no_output, &["key.jsonl", "line 2", "output"]),
        ("data.json_path", &wrong_type, &["type.json", "output", "string"]),
        ("data.json_path", &broken, &["broken.json", "line 1"]),
        ("data.json_path", &broken_line, &["broken.jsonl", "line 2"]),
        ("data.json_path", &empty, &["empty.json", "empty"]),
        ("data.json_path", &one, &["val_split_fraction"]),
        ("data.val_split_fraction", "NaN", &["val_split_fraction", "NaN"]),
        ("data.val_split_fraction", "1.5", &["val_split_fraction", "1.5"]),
        ("data", "CSV", &["CSV", "JSON"]),
        ("batch_size", "7", &["batch_size"]),
        ("batch_size", "0", &["batch_size"]),
        ("lora_rank", "0", &["lora_rank"]),
        ("learning_rate", "NaN", &["learning_rate"]),
        ("lora_targets", "nose_proj", &["nose_proj", "q_proj"]),
        ("init_adapter", "/nowhere", &["/nowhere"]),
        ("precision", "8-true", &["8-true", "bf16-true"]),
    ];
    for (name, value, words) in cases {
        let run = Run::new(&[(name, value)]);
        check_refused(&run, &model(), words);
    }
    let folder = |name: &str| {
        let path = scratch.path().join(name);
        fs::create_dir(&path).unwrap();
        for entry in fs::read_dir(model()).unwrap() {
            let entry = entry.unwrap();
            if entry.path().is_file() {
                fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
            }
        }
        path
    };
    let run = Run::new(&[]);
    check_refused(&run, Path::new("/nowhere/model"), &["/nowhere/model"]);
    let other = folder("other");
    let config = fs::read_to_string(other.join("config.json"))
        .unwrap()
        .replace("LlamaForCausalLM", "MambaForCausalLM");
    fs::write(other.join("config.json"), config).unwrap();
    check_refused(&run, &other, &["MambaForCausalLM", "LlamaForCausalLM"]);
    let other = folder("no_tokenizer");
    fs::remove_file(other.join("tokenizer.json")).unwrap();
    check_refused(&run, &other, &["tokenizer.json"]);
    let other = folder("no_weights");
    fs::remove_file(other.join("model.safetensors")).unwrap();
    check_refused(&run, &other, &["safetensors"]);
    let other = folder("truncated");
    let bytes = fs::read(other.join("model.safetensors")).unwrap();
    fs::write(other.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    check_refused(&run, &other, &["model.safetensors"]);
}

/// Files that are whole, each by itself, but do not belong together.
#[test]
fn input_that_does_not_fit_together_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let trained = Adapter::read(&model().join("ref/adapter")).unwrap();
    let adapter = |name: &str, change: &dyn Fn(&mut AdapterTensor)| {
        let mut adapter = trained.clone();
        change(&mut adapter.tensors[0]);
        let folder = scratch.path().join(name);
        adapter.write(&folder).unwrap();
        folder.display().to_string()
    };
    let narrow = adapter("narrow", &|tensor| {
        tensor.inputs /= 2;
        tensor.a.truncate(tensor.r * tensor.inputs);
    });
    let module = trained.tensors[0].module.clone();
    let foreign = adapter("foreign", &|tensor| tensor.module = tensor.module.replace("layers.0", "layers.7"));
    check_refused(&Run::new(&[("init_adapter", &narrow)]), &model(), &[&module, "[64, 80]", "[64, 160]"]);
    check_refused(&Run::new(&[("init_adapter", &foreign)]), &model(), &["model.layers.7."]);

    let other = scratch.path().join("other");
    fs::create_dir(&other).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(model().join(name), other.join(name)).unwrap();
    }
    let config = fs::read_to_string(model().join("config.json")).unwrap();
    let wider = config.replace("\"intermediate_size\": 160", "\"intermediate_size\": 168");
    fs::write(other.join("config.json"), wider).unwrap();
    check_refused(&Run::new(&[]), &other, &["model.safetensors", "model.layers.0.mlp.", "160", "168"]);
    fs::write(other.join("config.json"), &config[..config.len() / 2]).unwrap();
    check_refused(&Run::new(&[]), &other, &["config.json", "line"]);

    let rows = json!([rows()[0], {"instruction": "x", "input": 7, "output": "y"}]).to_string();
    let rows = write(scratch.path(), "input.json", &rows).display().to_string();
    let half = ("data.val_split_fraction", "0.5");
    check_refused(
        &Run::new(&[("data.json_path", &rows), half]),
        &model(),
        &["input.json", "record 1", "input"],
    );
    let array =
        write(scratch.path(), "array.json", "[\n  {\"instruction\": \"x\", \"output\": \"y\"},\n  {oops}\n]");
    let array = array.display().to_string();
    check_refused(&Run::new(&[("data.json_path", &array)]), &model(), &["array.json", "line 3"]);
    check_refused(&Run::new(&[("max_seq_length", "8")]), &model(), &["data.json", "label", "max_seq_length"]);
    check_refused(
        &Run::new(&[("data.val_split_fraction", "0.01")]),
        &model(),
        &["--data.val_split_fraction 0.01"],
    );
}

#[test]
fn an_output_folder_that_is_none_or_an_input_is_refused() {
    let run = Run::new(&[]);
    fs::write(run.out(), "mine").unwrap();
    check_refused_out(&run, &model(), "is a file");
    assert_eq!(fs::read_to_string(run.out()).unwrap(), "mine");

    // the base model is not overwritten by what is trained from it
    let run = Run::new(&[]);
    fs::create_dir(run.out()).unwrap();
    for entry in fs::read_dir(model()).unwrap().map(|e| e.unwrap()).filter(|e| e.path().is_file()) {
        fs::copy(entry.path(), run.out().join(entry.file_name())).unwrap();
    }
    let before = fs::read_dir(run.out()).unwrap().count();
    check_refused_out(&run, &run.out().join("../out"), "overwrite");
    assert_eq!(fs::read_dir(run.out()).unwrap().count(), before);
}

fn check_refused_out(run: &Run, model: &Path, word: &str) {
    let output = run.start(model);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("--out_dir") && message.contains(word), "{message}");
}

fn check_refused(run: &Run, model: &Path, words: &[&str]) {
    let output = run.start(model);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{words:?}: {message}");
    assert!(words.iter().all(|w| message.contains(w)), "{words:?} in: {message}");
    assert!(!message.contains("panicked"), "{message}");
    assert!(!run.out().exists(), "{words:?}: something was written");
}

#[test]
fn an_unknown_device_is_exit_code_4() {
    let mut run = Run::new(&[]);
    run.set("gpu", "no such device");
    let output = run.start(&model());
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert!(!run.out().exists());
}

#[test]
fn one_seed_gives_the_same_bits() {
    if common::gpu().is_none() {
        return;
    }
    let run = |seed: &str, dropout: &str| {
        let run = Run::new(&[("seed", seed), ("lora_dropout", dropout), ("data.shuffle", "true")]);
        let losses = numbers(&run.finish(), "loss");
        (losses, run.adapter())
    };
    let first = ["0", "0.1"].map(|dropout| {
        let first = run("7", dropout);
        assert!(first == run("7", dropout), "dropout {dropout}: one seed, two results");
        let other = run("8", dropout);
        assert!(first.0 != other.0 && first.1 != other.1, "dropout {dropout}: two seeds, one result");
        first
    });
    assert!(first[0].1 != first[1].1, "dropout has no effect");
}

#[test]
fn accumulation_is_weighted_by_label_tokens() {
    if common::gpu().is_none() {
        return;
    }
    // ten training rows, batch 8: the partial window of an epoch is stepped too
    let run = |micro: &str| {
        let run = Run::new(&[("micro_batch_size", micro), ("epochs", "2"), ("max_steps", "99")]);
        run.finish()
    };
    let whole = run("8");
    assert_eq!(numbers(&whole, "loss").len(), 4);
    for micro in ["1", "4"] {
        let parts = run(micro);
        for key in ["loss", "grad_norm"] {
            close(
                numbers(&parts, key)[0],
                numbers(&whole, key)[0],
                1e-5,
                &format!("{key} at micro-batch {micro}"),
            );
        }
        close(numbers(&parts, "val_loss")[0], numbers(&whole, "val_loss")[0], 1e-4, "validation loss");
    }
}

/// AdamW's first step with an epsilon of 1 moves a parameter by rate · g / (|g| + 1), so that the adapter shows its
/// gradient; the usual epsilon would leave little but the sign.
#[test]
fn accumulated_gradients_are_equal() {
    if common::gpu().is_none() {
        return;
    }
    let start = model().join("ref/adapter");
    let before = Adapter::read(&start).unwrap();
    let moved = |micro: &str| -> Vec<(String, Vec<f64>)> {
        let run = Run::new(&[
            ("init_adapter", start.to_str().unwrap()),
            ("micro_batch_size", micro),
            ("max_steps", "1"),
            ("learning_rate", "1"),
            ("lr_schedule", "constant"),
            ("eps", "1"),
            ("weight_decay", "0"),
            ("grad_clip", "0"),
        ]);
        run.finish();
        let after = Adapter::read(&run.out()).unwrap();
        let change =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let tensors = after.tensors.iter().zip(&before.tensors);
        tensors
            .flat_map(|(after, before)| {
                assert_eq!(after.module, before.module);
                [
                    (format!("{} A", after.module), change(&after.a, &before.a)),
                    (format!("{} B", after.module), change(&after.b, &before.b)),
                ]
            })
            .collect()
    };
    let whole = moved("8");
    let mut worst = 0.0f64;
    for micro in ["1", "2"] {
        for ((name, ours), (_, expected)) in moved(micro).iter().zip(&whole) {
            let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let error = ours.iter().zip(expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
            assert!(error < 1e-5, "{name} at micro-batch {micro}: {error:.1e} of {largest:.1e}");
            worst = worst.max(error);
        }
    }
    println!("gradients of 1x8 and 2x4 against 8x1: worst relative difference {worst:.1e}");
}

#[test]
fn recomputation_changes_no_bit() {
    if common::gpu().is_none() {
        return;
    }
    let run = |recompute: &str| {
        let run = Run::new(&[("recompute", recompute), ("lora_dropout", "0.2")]);
        run.finish();
        run.adapter()
    };
    let kept = run("none");
    for policy in ["selective", "layer", "every-2"] {
        assert!(kept == run(policy), "{policy}");
    }
}

/// Options of a run of the library on the small rows.
fn library_options(run: &Run) -> FinetuneOptions {
    FinetuneOptions {
        model_dir: model(),
        data: DataOptions { json_path: run.folder.path().join("data.json"), ..DataOptions::default() },
        out_dir: run.out(),
        tune: TuneMode::Off,
        ..FinetuneOptions::default()
    }
}

#[test]
fn a_run_that_does_not_fit_is_refused_and_auto_makes_one_fit() {
    let Some(gpu) = common::gpu() else { return };
    let refused = Run::new(&[("memory_limit", "300KiB"), ("tune", "off")]);
    let output = refused.start(&model());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("the limit of 0.3 MiB") && said.contains("micro-batch of 2"), "{said}");
    assert!(!refused.out().exists(), "something was written");

    let run = Run::new(&[]);
    let kept = Finetune::new(FinetuneOptions { max_steps: Some(2), ..library_options(&run) });
    let kept = kept.run_on(&gpu).unwrap();
    let adapter = run.adapter();
    let limit = kept.memory.total() - kept.memory.parameters - 1;
    let (mut notes, options) = (Vec::new(), library_options(&run));
    let options = FinetuneOptions { max_steps: Some(2), memory_limit: Some(limit), ..options };
    let lean = Finetune::new(options.clone())
        .on_event(|event| {
            if let Event::Note(note) = event {
                notes.push(note.clone());
            }
        })
        .run_on(&gpu)
        .unwrap();
    assert!(lean.memory.total() <= limit && limit < kept.memory.total(), "{:?}", lean.memory);
    assert!(adapter == run.adapter(), "recomputation changes no bit");
    assert!(notes.iter().any(|n| n.contains("(chosen by auto)") && n.contains("more FLOPs")), "{notes:?}");
    assert!(notes.iter().any(|n| n.starts_with("weights ") && n.contains("iB/s")), "{notes:?}");
    // without a choice the same limit is an error that names the ways out
    let fixed = FinetuneOptions { recompute: RecomputeKind::NONE, ..options };
    let error = Finetune::new(fixed).run_on(&gpu).unwrap_err();
    assert_eq!(error.failure(), Failure::Memory);
    let said = error.to_string();
    assert!(said.contains("--micro_batch_size 1") && said.contains("with --recompute "), "{said}");
}

#[test]
fn running_out_in_the_middle_leaves_what_was_saved() {
    let Some(gpu) = common::gpu() else { return };
    let run = Run::new(&[]);
    let options =
        FinetuneOptions { max_steps: Some(3), save_interval: Some(2), epochs: 9, ..library_options(&run) };
    let (device, mut saved) = (gpu.clone(), Vec::new());
    // as if another program took the rest: the evaluation at the end needs a plan of its own
    let result = Finetune::new(options)
        .on_event(|event| {
            if let Event::Saved { path, .. } = event {
                device.set_memory_limit(Some(device.allocated_bytes()));
                saved.push(path.clone());
            }
        })
        .run_on(&gpu);
    gpu.set_memory_limit(None);
    let error = result.unwrap_err();
    assert_eq!((error.failure(), saved.len()), (Failure::Memory, 1));
    let said = error.to_string();
    for word in ["over the memory limit", "planned to take", "--micro_batch_size 1", "step-000002"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    assert!(!Adapter::read(&saved[0]).unwrap().tensors.is_empty());
    assert_eq!(numbers(&run.metrics(), "loss").len(), 3, "and what was done is written down");
}

#[test]
fn sixteen_bit_storage_trains_alike() {
    if common::gpu().is_none() {
        return;
    }
    let losses = |precision: &str| numbers(&Run::new(&[("precision", precision)]).finish(), "loss");
    let exact = losses("32-true");
    for precision in ["bf16-true", "16-true", "bf16-mixed", "16-mixed"] {
        for (loss, exact) in losses(precision).iter().zip(&exact) {
            close(*loss, *exact, 0.01, precision);
        }
    }
}

#[test]
fn sixteen_bit_storage_takes_less_memory() {
    if common::gpu().is_none() {
        return;
    }
    let memory = |precision: Precision| -> MemoryReport {
        let run = Run::new(&[]);
        let options = FinetuneOptions {
            model_dir: model(),
            data: DataOptions { json_path: run.folder.path().join("data.json"), ..DataOptions::default() },
            out_dir: run.out(),
            precision,
            max_steps: Some(1),
            tune: TuneMode::Off,
            gpu: std::env::var("ENGRAFT_TEST_GPU").ok(),
            ..FinetuneOptions::default()
        };
        let report = Finetune::new(options).run().unwrap();
        assert!(report.losses[0].is_finite() && report.val_loss.is_some_and(f64::is_finite));
        report.memory
    };
    let full = memory(Precision::F32True);
    for precision in [Precision::BF16True, Precision::F16True, Precision::BF16Mixed, Precision::F16Mixed] {
        let stored = memory(precision);
        if matches!(precision, Precision::BF16True | Precision::F16True) {
            assert!(10 * stored.weights < 6 * full.weights, "{precision}: {stored:?} against {full:?}");
        } else {
            assert_eq!(stored.weights, full.weights, "{precision}");
        }
        assert!(stored.activations < full.activations, "{precision}: {stored:?} against {full:?}");
        assert_eq!((stored.trainables, stored.optimiser), (full.trainables, full.optimiser), "{precision}");
    }
}

/// A run on the language model of one that sees images too: what it writes has the names of the whole, and is read back.
#[test]
fn an_embedded_language_model_is_trained_under_the_names_of_the_whole() {
    if common::gpu().is_none() {
        return;
    }
    let whole = tempfile::tempdir().unwrap();
    common::embed("gemma3", whole.path());
    let names = |file: &Path| {
        let bytes = fs::read(file).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
        names.sort_unstable();
        names
    };
    // a head of its own comes of it, and norms whose last names the other part has too
    let run = Run::new(&[("lora_targets", "q_proj,up_proj"), ("modules_to_save", "lm_head,norm")]);
    let output = run.start(whole.path());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found = names(&run.out().join("adapter_model.safetensors"));
    let layers =
        found.iter().filter(|name| name.starts_with("base_model.model.model.language_model.layers."));
    assert_eq!((found.len(), layers.count()), (10, 8), "{found:?}");
    for own in ["base_model.model.lm_head.weight", "base_model.model.model.language_model.norm.weight"] {
        assert!(found.iter().any(|name| name == own), "{own} in {found:?}");
    }
    let config: Value =
        serde_json::from_slice(&fs::read(run.out().join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["exclude_modules"], ".*vision_tower.*");
    assert_eq!(config["target_modules"], json!(["q_proj", "up_proj"]));
    assert_eq!(config["modules_to_save"], json!(["model.language_model.norm", "lm_head"]), "{config}");

    // read back: for an answer, for a merge whose head is a weight of its own, and to go on
    let out = run.out().display().to_string();
    let known = *numbers(&run.metrics(), "val_loss").last().unwrap();
    let data = run.folder.path().join("data.json").display().to_string();
    let base = whole.path().to_str().unwrap();
    let merged = run.folder.path().join("merged");
    let output = engraft(&[
        "merge_lora",
        &out,
        "--model_dir",
        base,
        "--out_dir",
        merged.to_str().unwrap(),
        "--dtype",
        "f32",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stored = names(&merged.join("model.safetensors"));
    for own in ["language_model.lm_head.weight", "language_model.model.norm.weight", common::PROJECTOR] {
        assert!(stored.iter().any(|name| name == own), "{own} in {stored:?}");
    }
    assert!(merged.join("preprocessor_config.json").is_file());
    let config: Value = serde_json::from_slice(&fs::read(merged.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["tie_word_embeddings"], &config["text_config"]["tie_word_embeddings"]),
        (&json!(false), &json!(false))
    );
    let words = [
        "--data",
        "JSON",
        "--data.json_path",
        &data,
        "--data.shuffle",
        "false",
        "--data.val_split_fraction",
        "0.2",
    ];
    let more = ["--max_seq_length", "100", "--micro_batch_size", "2", "--precision", "32-true", "--json"];
    let output = engraft(&[&["evaluate", merged.to_str().unwrap()][..], &words, &more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    close(report["loss"].as_f64().unwrap(), known, 1e-5, "validation loss of the merged model");

    let mut run = Run::new(&[]);
    run.command = "finetune_full";
    check_refused(
        &run,
        whole.path(),
        &["full training is of models that read text alone", "train an adapter"],
    );
    // under the configuration of one that stands alone, transformers would find none of the tensors
    fs::copy(common::fixtures().join("models/gemma3/config.json"), whole.path().join("config.json")).unwrap();
    run.command = "finetune";
    check_refused(&run, whole.path(), &["language_model.", "fetch both from the same place"]);
}

#[test]
fn full_training_makes_a_model_that_loads() {
    if common::gpu().is_none() {
        return;
    }
    for name in ["llama", "llama_biased", "qwen3", "gemma3", "gpt_neox", "starcoder2"] {
        full_training_from_random_weights(&common::fixtures().join("models").join(name));
    }
}

fn full_training_from_random_weights(model: &Path) {
    let mut run =
        Run::new(&[("max_steps", "30"), ("epochs", "99"), ("learning_rate", "3e-3"), ("init", "random")]);
    run.command = "finetune_full";
    // random weights need no file of weights
    let bare = run.folder.path().join("bare");
    fs::create_dir(&bare).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(model.join(name), bare.join(name)).unwrap();
    }
    let output = run.start(&bare);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let losses = numbers(&run.metrics(), "loss");
    assert!(losses[29] < 0.7 * losses[0], "{losses:?}");

    let config = ModelConfig::read(&run.out()).unwrap();
    let shapes = config.expected_shapes();
    let saved = Checkpoint::open(&run.out()).unwrap();
    saved.check(shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice()))).unwrap();
    assert_eq!(saved.names().count(), shapes.len());
    let in_files = |file: &Path| tensors(&file.join("model.safetensors")).into_keys().collect::<Vec<_>>();
    assert_eq!(in_files(&run.out()), in_files(model));
    // biases begin at 0, and norms where they leave as it is what they normalise
    let neutral = if config.unit_offset { 0.0 } else { 1.0 };
    for (name, _) in shapes.iter().filter(|(_, shape)| shape.len() == 1) {
        let values = saved.tensor(name).unwrap().to_f32();
        let start = if name.ends_with("bias") { 0.0 } else { neutral };
        let learned = values.iter().filter(|value| **value != start).count();
        assert!(learned > 0, "{name} stays at {start}");
        assert!(values.iter().all(|value| (value - start).abs() < 0.3), "{name}: {values:?}");
    }

    // an adapter starts without effect: the first loss on the saved model is that of its trained weights
    let next = Run::new(&[("max_steps", "1")]);
    let output = next.start(&run.out());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let first = numbers(&next.metrics(), "loss")[0];
    assert!(first < 0.7 * losses[0], "{first} after {losses:?}");
}

/// The values of a safetensors file by name, as they are stored.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

#[test]
fn full_training_leaves_frozen_parameters_as_they_are() {
    if common::gpu().is_none() {
        return;
    }
    let before = tensors(&model().join("model.safetensors"));
    let run = |freeze: &str, more: &[(&str, &str)]| {
        let mut run = Run::new(&[("max_steps", "3"), ("freeze", freeze), ("save_interval", "2")]);
        more.iter().for_each(|(name, value)| run.set(name, value));
        run.command = "finetune_full";
        run
    };
    let frozen = |name: &str| {
        name.contains("embed_tokens") || name.contains("layers.0.") || name.ends_with("o_proj.weight")
    };
    let patterns = "model.embed_tokens,model.layers.0.*,*.o_proj.weight";
    let first = run(patterns, &[]);
    let losses = numbers(&first.finish(), "loss");
    let after = tensors(&first.out().join("model.safetensors"));
    assert!(before.keys().eq(after.keys()));
    for (name, values) in &before {
        assert_eq!(values == &after[name], frozen(name), "{name}");
    }
    // neither gradient nor moments
    let saved = tensors(&first.out().join("step-000002/training_state.safetensors"));
    for name in before.keys() {
        let of = |kind: &str| saved.contains_key(&format!("{kind}.{name}"));
        assert_eq!([of("values"), of("first"), of("second")], [!frozen(name); 3], "{name}");
    }
    let own = fs::read_to_string(first.out().join("hyperparameters.yaml")).unwrap();
    assert!(own.contains("freeze: [\"model.embed_tokens\","), "{own}");
    // what a saved step lacks comes from the model again
    let again = run(patterns, &[("resume", first.out().join("step-000002").to_str().unwrap())]);
    again.finish();
    assert!(after == tensors(&again.out().join("model.safetensors")));

    // the blocks alone, the head alone, and half-width activations
    let head = run("model.layers.*", &[("precision", "bf16-mixed")]);
    head.finish();
    for (name, values) in tensors(&head.out().join("model.safetensors")) {
        assert_eq!(values == before[&name], name.contains(".layers."), "{name}");
    }
    let whole = run("model.norm", &[]);
    assert!(numbers(&whole.finish(), "loss")[2] < losses[2], "fewer parameters learn less");

    for (freeze, said) in [
        (
            "model.blocks.*",
            "--freeze model.blocks.*: matches no parameter; they have names such as model.layers.0.",
        ),
        ("*", "--freeze leaves no parameter to train"),
        ("model.layers.[0-", "--freeze model.layers.[0-"),
    ] {
        let output = run(freeze, &[]).start(&model());
        let message = text(&output.stderr);
        assert!(output.status.code() == Some(2) && message.contains(said), "{message}");
    }
}

/// Runs a script of tests/python; `None`, said loudly, where Python or a package is missing.
fn python(script: &str, arguments: &[&str]) -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let probe =
        Command::new("python3").args(["-c", "import torch, transformers, peft, safetensors"]).output();
    if !probe.is_ok_and(|p| p.status.success()) {
        eprintln!("SKIPPED: python3 with torch, transformers and peft is not on this machine");
        return None;
    }
    let output = Command::new("python3").arg(path).args(arguments).output().unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output.stderr));
    Some(text(&output.stdout))
}

#[test]
fn losses_equal_pytorch_and_the_adapter_loads_in_peft() {
    equals_pytorch("llama", "all-linear", "");
}

/// Windows, biases, norms of heads.
#[test]
fn losses_of_other_families_equal_pytorchs() {
    equals_pytorch("mistral", "all-linear", "");
    equals_pytorch("qwen2", "all-linear", "");
    equals_pytorch("qwen3", "q_proj,k_proj,down_proj", "k_norm");
    equals_pytorch("gemma2", "all-linear", "");
    equals_pytorch("phi3", "qkv_proj,gate_up_proj", "");
    equals_pytorch("gemma3", "q_proj,k_proj,up_proj", "k_norm,post_attention_layernorm");
}

/// Heads that are turned in part, norms behind blocks alone, layers without rotary angles, multipliers, scaled queries.
#[test]
fn losses_of_newer_families_equal_pytorchs() {
    equals_pytorch("phi4_mini", "all-linear", "");
    equals_pytorch("olmo3", "all-linear", "q_norm,post_feedforward_layernorm");
    equals_pytorch("smollm3", "q_proj,down_proj", "");
    equals_pytorch("granite", "all-linear", "");
    equals_pytorch("ministral3", "q_proj,v_proj", "");
}

/// LayerNorm and biases; a head that has another name in the files.
#[test]
fn losses_of_families_with_layer_norms_equal_pytorchs() {
    equals_pytorch("gpt_neox", "all-linear", "lm_head");
    equals_pytorch("stablelm", "q_proj,down_proj,lm_head", "");
    equals_pytorch("starcoder2", "k_proj,c_fc,c_proj", "");
}

/// The head's weight is the token embedding here, and its adapter changes the logits alone.
#[test]
fn an_adapter_on_the_head_equals_pytorchs() {
    equals_pytorch("llama", "q_proj,down_proj,lm_head", "");
}

/// Whole modules beside the adapter: a head that is no longer the embedding, norms, and a layer that would carry an adapter else.
#[test]
fn modules_trained_in_full_equal_pytorchs() {
    equals_pytorch("llama", "all-linear", "lm_head,input_layernorm,layers.1.mlp.down_proj");
    equals_pytorch("llama_untied", "q_proj,v_proj", "embed_tokens,lm_head,model.norm");
}

/// What `--modules_to_save` begins with is the model's own, is stored as PEFT stores it, and is used wherever the adapter is.
#[test]
fn modules_trained_in_full_begin_as_the_models_and_are_used() {
    use engraft::checkpoint::{Adapter, Checkpoint};
    if common::gpu().is_none() {
        return;
    }
    for (model, saved, kept) in [
        ("llama", "lm_head,model.norm", vec!["lm_head", "model.norm"]),
        ("llama_untied", "embed_tokens,lm_head", vec!["lm_head", "embed_tokens"]),
    ] {
        let folder = common::fixtures().join("models").join(model);
        let base = Checkpoint::open(&folder).unwrap();
        let mut run =
            Run::new(&[("modules_to_save", saved), ("weight_decay", "0"), ("learning_rate", "1e-12")]);
        assert!(run.start(&folder).status.success());
        let adapter = Adapter::read(&run.out()).unwrap();
        let mut names = adapter.config.modules_to_save.clone().unwrap();
        names.sort();
        assert_eq!(names, {
            let mut kept = kept;
            kept.sort_unstable();
            kept
        });
        assert_eq!(adapter.saved.len(), 2);
        for saved in &adapter.saved {
            let own = format!("{}.weight", saved.module);
            let name = if base.contains(&own) { own } else { "model.embed_tokens.weight".to_owned() };
            let begin = base.tensor(&name).unwrap();
            assert_eq!(begin.shape, saved.shape);
            for (a, b) in saved.values.iter().zip(begin.to_f32()) {
                assert!((a - b).abs() <= 1e-9 + 1e-6 * b.abs(), "{name}: {a} from {b}");
            }
        }

        run.set("learning_rate", "1e-2");
        run.set("quantize", "nf4");
        assert!(run.start(&folder).status.success());
        let trained = Adapter::read(&run.out()).unwrap();
        assert!(trained.saved.iter().zip(&adapter.saved).all(|(a, b)| a.values != b.values));
        let data = run.folder.path().join("data.json");
        let (out, data) = (run.out(), data.to_str().unwrap().to_owned());
        let words = [
            "evaluate",
            folder.to_str().unwrap(),
            "--lora",
            out.to_str().unwrap(),
            "--data",
            "JSON",
            "--data.json_path",
            &data,
            "--data.val_split_fraction",
            "0.2",
            "--data.shuffle",
            "false",
            "--max_seq_length",
            "100",
            "--micro_batch_size",
            "2",
            "--precision",
            "32-true",
            "--quantize",
            "nf4",
            "--json",
        ];
        let output = engraft(&words);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let known = numbers(&run.metrics(), "val_loss");
        close(
            report["loss"].as_f64().unwrap(),
            *known.last().unwrap(),
            1e-6,
            "validation loss of the saved adapter",
        );
    }
}

#[test]
fn modules_that_cannot_be_trained_in_full_are_refused() {
    let linear = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj";
    for (names, words) in [
        ("embed_tokens", ["it is the head as well", "lm_head can be trained alone"]),
        ("wte", ["--modules_to_save wte", "lm_head, norm, o_proj"]),
        (linear, ["no layer is left", "finetune_full"]),
    ] {
        check_refused(&Run::new(&[("modules_to_save", names)]), &model(), &words);
    }
}

fn equals_pytorch(model: &str, targets: &str, saved: &str) {
    if common::gpu().is_none() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let start = scratch.path().join("start").display().to_string();
    let model = common::fixtures().join("models").join(model);
    let name = model.to_str().unwrap();
    let base = ["--model", name, "--out", &start, "--r", "4", "--alpha", "8", "--b_std", "0.02"];
    let made = python("make_adapter.py", &[&base[..], &["--targets", targets, "--save", saved]].concat());
    if made.is_none() {
        return;
    }
    let run = Run::new(&[
        ("init_adapter", &start),
        ("max_steps", "4"),
        ("epochs", "9"),
        ("lr_warmup_steps", "2"),
        ("batch_size", "4"),
        ("data.mask_prompt", "true"),
    ]);
    let output = run.start(&model);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let metrics = run.metrics();
    let data = run.folder.path().join("data.json").display().to_string();
    let reference = python(
        "reference_finetune.py",
        &[
            "--model",
            name,
            "--data",
            &data,
            "--adapter",
            &start,
            "--max_seq_length",
            "100",
            "--batch_size",
            "4",
            "--micro_batch_size",
            "2",
            "--steps",
            "4",
            "--lr",
            "1e-3",
            "--warmup",
            "2",
            "--min_lr",
            "0",
            "--schedule",
            "cosine",
            "--weight_decay",
            "0.01",
            "--beta1",
            "0.9",
            "--beta2",
            "0.95",
            "--eps",
            "1e-8",
            "--grad_clip",
            "1.0",
            "--val_split_fraction",
            "0.2",
            "--mask_prompt",
            "true",
        ],
    )
    .unwrap();
    let reference: Vec<Value> = reference.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let mut worst = 0.0f64;
    for key in ["loss", "grad_norm", "learning_rate", "val_loss"] {
        let (ours, theirs) = (numbers(&metrics, key), numbers(&reference, key));
        assert_eq!(ours.len(), theirs.len(), "{key}");
        assert!(!ours.is_empty(), "{key}");
        for (a, b) in ours.iter().zip(&theirs) {
            close(*a, *b, 2e-4, key);
            worst = worst.max((a - b).abs() / b.abs());
        }
    }
    println!("worst relative error against PyTorch + PEFT: {worst:.1e}");

    // the trained adapter, read by PEFT, gives the validation loss that was reported
    let ids: Vec<u32> = (5..29).collect();
    let input = write(scratch.path(), "ids.json", &json!({"input_ids": [ids], "labels": [ids]}).to_string());
    let loaded =
        python("load_adapter.py", &[name, run.out().to_str().unwrap(), input.to_str().unwrap()]).unwrap();
    let loaded: Value = serde_json::from_str(&loaded).unwrap();
    assert_eq!(
        (&loaded["missing"], &loaded["unexpected"]),
        (&json!([]), &json!([])),
        "PEFT reads every tensor"
    );
    let logits: Vec<f64> = loaded["logits"].as_array().unwrap()[0]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()))
        .collect();
    let ours = our_logits(&model, &run.out(), &ids);
    assert_eq!(ours.len(), logits.len());
    let error = ours.iter().zip(&logits).fold(0.0f64, |m, (a, b)| m.max((f64::from(*a) - b).abs()));
    println!("logits of our adapter in PEFT: worst difference {error:.1e}");
    assert!(error < 1e-4);
}

fn our_logits(model: &Path, adapter: &Path, ids: &[u32]) -> Vec<f32> {
    use engraft::checkpoint::{Adapter, Checkpoint};
    use engraft::train::trainer::{Capacity, Trainer};
    let gpu = common::gpu().unwrap();
    let peft = Adapter::read(adapter).unwrap();
    let config = engraft::models::ModelConfig::read(model).unwrap();
    let network = engraft::models::Network {
        weights: engraft::nn::WeightMode::Frozen(engraft::graph::DType::F32.into()),
        activations: engraft::graph::DType::F32,
        adapter: Some(engraft::train::adapter::spec_of_adapter(&config, &peft).unwrap()),
        plain_layers: engraft::nn::PlainLayers::default(),
        recompute: engraft::autograd::Recompute::None,
        positions: 128,
        fusions: engraft::fuse::Fusions::default(),
        host_activations: false,
        mlp_chunks: 1,
        frozen: Vec::new(),
        config,
    };
    let source = engraft::train::weights::WeightSource::Checkpoint(Checkpoint::open(model).unwrap());
    let mut trainer = Trainer::new(&gpu, network, &source, Capacity { tokens: 32, labels: 32 }, 1).unwrap();
    engraft::train::adapter::load(trainer.optimiser(), &peft).unwrap();
    let sample = engraft::data::Sample::new(ids.to_vec(), 1);
    trainer.logits(&engraft::data::MicroBatch::from_samples([&sample])).unwrap()
}
