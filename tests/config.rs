//! Configuration files: LitGPT's and our own, what is typed beside them, and what is wrong with them.

mod common;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn engraft(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.args(words).env("ENGRAFT_TUNE", "off").output().unwrap()
}

#[track_caller]
fn stdout(words: &[&str]) -> String {
    let output = engraft(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(words: &[&str]) -> String {
    let output = engraft(words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
    said
}

fn model() -> String {
    common::fixtures().join("models/llama").display().to_string()
}

fn rows(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    let rows: Vec<Value> = (0..40)
        .map(|i| json!({ "instruction": format!("say {i}"), "input": "", "output": format!("{} and {}", i * 7, i) }))
        .collect();
    fs::write(&path, serde_json::to_vec(&rows).unwrap()).unwrap();
    path
}

fn hyperparameters(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("hyperparameters.json")).unwrap()).unwrap()
}

/// The keys and classes of the files that LitGPT ships for `finetune_lora`, in their older and newer form.
fn litgpt_yaml(newer: bool) -> String {
    let optimizer = "
optimizer:

  class_path: torch.optim.AdamW

  init_args:
    lr: 0.0002
    weight_decay: 0.0
    betas:
      - 0.9
      - 0.95
";
    let older = "  learning_rate: 0.0002\n  weight_decay: 0.0\n  beta1: 0.9\n  beta2: 0.95\n";
    let (in_train, after) = if newer { ("", optimizer) } else { (older, "") };
    format!(
        "# The path to the base model's checkpoint directory (type: <class 'Path'>)
checkpoint_dir: checkpoints/meta-llama/Llama-3.2-1B

out_dir: out/finetune/lora
precision: bf16-true
quantize: {}
devices: 1
num_nodes: 1
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_query: true
lora_key: false
lora_value: true
lora_projection: false
lora_mlp: false
lora_head: false

data:
  class_path: litgpt.data.JSON
  init_args:
    json_path: nowhere.json
    mask_prompt: false
    val_split_fraction: 0.05
    prompt_style: alpaca
    ignore_index: -100
    seed: 42
    num_workers: 4

train:
  save_interval: 200
  log_interval: 1
  global_batch_size: 8
  micro_batch_size: 2
  lr_warmup_steps: 10
  epochs: 2
  max_tokens:
  max_steps:
  max_seq_length: 512
  tie_embeddings:
{in_train}
  max_norm:
  min_lr: 6.0e-05

eval:
  interval: 100
  max_new_tokens: 100
  max_iters: 100
  initial_validation: false
  final_validation: true

logger_name: csv
seed: 1337
{after}",
        if newer { "bnb.nf4" } else { "" },
    )
}

#[test]
fn litgpts_files_run_and_what_is_typed_wins() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lora.yaml");
    let (data, out) = (rows(folder.path(), "rows.json"), folder.path().join("out"));
    for newer in [true, false] {
        fs::write(&file, litgpt_yaml(newer)).unwrap();
        let words = ["finetune_lora", &model(), "--config", file.to_str().unwrap()];
        let typed = [
            "--data.json_path",
            data.to_str().unwrap(),
            "--out_dir",
            out.to_str().unwrap(),
            "--train.max_steps=2",
            "--lora_key",
            "true",
            "--beta2",
            "0.99",
        ];
        stdout(&[&words[..], &typed].concat());
        let found = hyperparameters(&out);
        for (key, value) in [
            ("/lora/rank", json!(32)),
            ("/lora/dropout", json!(0.05)),
            ("/lora/targets", json!(["q_proj", "k_proj", "v_proj"])),
            ("/learning_rate", json!(2e-4)),
            ("/weight_decay", json!(0.0)),
            ("/beta1", json!(0.9)),
            ("/beta2", json!(0.99)),
            ("/min_lr", json!(6e-5)),
            ("/batch_size", json!(8)),
            ("/micro_batch_size", json!(2)),
            ("/eval_interval", json!(100)),
            ("/eval_max_iters", json!(100)),
            ("/save_interval", json!(200)),
            ("/optimizer", json!("AdamW")),
            ("/logger_name", json!(["csv"])),
            ("/eval_max_new_tokens", json!(100)),
            ("/max_steps", json!(2)),
            ("/epochs", json!(2)),
            ("/data/seed", json!(42)),
            ("/data/num_workers", json!(4)),
            ("/data/mask_prompt", json!(false)),
            ("/data/prompt_style", json!("alpaca")),
            ("/quantize", json!(if newer { "nf4" } else { "none" })),
        ] {
            assert_eq!(found.pointer(key), Some(&value), "{key}");
        }
    }
}

/// What the files that LitGPT ships for models of Llama's shape differ in: name, share of the rows that is held out and whether
/// `download_dir` is said, micro-batch, epochs. Those whose name ends in `qlora` are quantised; TinyLlama's have all targets.
const LLAMA_FILES: [(&str, Option<f64>, bool, usize, usize); 12] = [
    ("tiny-llama/lora", Some(0.03847), false, 8, 3),
    ("tiny-llama/qlora", Some(0.03847), false, 8, 3),
    ("llama-2-7b/lora", None, false, 2, 4),
    ("llama-2-7b/qlora", Some(0.05), true, 2, 4),
    ("llama-3-8b/lora", None, false, 1, 2),
    ("llama-3-8b/qlora", Some(0.05), true, 2, 4),
    ("llama-3.1-8b/lora", None, false, 1, 2),
    ("llama-3.1-8b/qlora", Some(0.05), true, 2, 2),
    ("llama-3.2-1B/lora", None, false, 1, 2),
    ("llama-3.2-1B/qlora", Some(0.05), true, 2, 2),
    ("llama-3.2-3B/lora", None, false, 1, 2),
    ("llama-3.2-3B/qlora", Some(0.05), true, 2, 2),
];

#[test]
fn every_file_of_litgpts_for_llama_runs() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lora.yaml");
    let (data, out) = (rows(folder.path(), "rows.json"), folder.path().join("out"));
    for (name, fraction, place, micro_batch, epochs) in LLAMA_FILES {
        let (quantised, tiny) = (name.ends_with("qlora"), name.starts_with("tiny"));
        let mut text = litgpt_yaml(true);
        let mut set = |from: &str, to: &str| {
            assert_eq!(text.matches(from).count(), 1, "{from}");
            text = text.replace(from, to);
        };
        set("litgpt.data.JSON", "litgpt.data.Alpaca2k");
        set("    json_path: nowhere.json\n", if place { "    download_dir: data/alpaca2k\n" } else { "" });
        let held = fraction.map_or(String::new(), |share| format!("    val_split_fraction: {share}\n"));
        set("    val_split_fraction: 0.05\n", &held);
        set("quantize: bnb.nf4\n", if quantised { "quantize: bnb.nf4\n" } else { "quantize:\n" });
        set("\n  micro_batch_size: 2\n", &format!("\n  micro_batch_size: {micro_batch}\n"));
        set("epochs: 2\n", &format!("epochs: {epochs}\n"));
        let interval = if tiny { 800 } else { 200 };
        set("save_interval: 200\n", &format!("save_interval: {interval}\n"));
        if tiny {
            ["key", "projection", "mlp", "head"]
                .iter()
                .for_each(|part| set(&format!("lora_{part}: false"), &format!("lora_{part}: true")));
        }
        fs::write(&file, text).unwrap();
        let model = model();
        let words = ["finetune_lora", &model, "--config", file.to_str().unwrap(), "--train.max_steps", "2"];
        let typed = ["--data.json_path", data.to_str().unwrap(), "--out_dir", out.to_str().unwrap()];
        stdout(&[&words[..], &typed].concat());

        let found = hyperparameters(&out);
        let targets = match tiny {
            true => json!([
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
                "lm_head"
            ]),
            false => json!(["q_proj", "v_proj"]),
        };
        for (key, value) in [
            ("/lora/rank", json!(32)),
            ("/lora/targets", targets),
            ("/quantize", json!(if quantised { "nf4" } else { "none" })),
            ("/micro_batch_size", json!(micro_batch)),
            ("/epochs", json!(epochs)),
            ("/save_interval", json!(interval)),
            ("/learning_rate", json!(2e-4)),
            ("/beta2", json!(0.95)),
            ("/data/json_path", json!(data)),
        ] {
            assert_eq!(found.pointer(key), Some(&value), "{name}: {key}");
        }
        if let Some(share) = fraction {
            assert_eq!(found.pointer("/data/val_split_fraction"), Some(&json!(share)), "{name}");
        }
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let losses: Vec<f64> = lines.filter_map(|line| line["loss"].as_f64()).collect();
        assert!(losses.len() == 2 && losses.iter().all(|loss| loss.is_finite()), "{name}: {losses:?}");
    }
}

/// The line of LitGPT's documentation, with a step limit.
#[test]
fn the_line_of_litgpts_documentation_runs() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (rows(folder.path(), "dataset.json"), folder.path().join("out"));
    let line = format!(
        "--data JSON --data.json_path {} --data.val_split_fraction 0.1 --learning_rate 3e-4 --batch_size 64 \
         --max_seq_length 256 --devices 1 --precision bf16-true",
        data.display()
    );
    let model = model();
    let mut words = vec!["finetune_lora", &model];
    words.extend(line.split_whitespace());
    words.extend(["--max_steps", "1", "--out_dir", out.to_str().unwrap()]);
    stdout(&words);
    assert!(out.join("adapter_model.safetensors").is_file());
}

#[test]
fn a_runs_own_file_is_the_same_run_again() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), "rows.json");
    let (first, again) = (folder.path().join("first"), folder.path().join("again"));
    stdout(&[
        "finetune",
        &model(),
        "--data",
        &format!("{}:1", data.display()),
        "--max_steps",
        "3",
        "--lora_rank",
        "4",
        "--lora_targets",
        "q_proj,v_proj",
        "--grad_clip",
        "0",
        "--memory_limit",
        "1GiB",
        "--quantize",
        "nf4",
        "--quantize_head",
        "--out_dir",
        first.to_str().unwrap(),
    ]);
    let file = first.join("hyperparameters.yaml");
    stdout(&["finetune", "--config", file.to_str().unwrap(), "--out_dir", again.to_str().unwrap()]);
    let adapter = |out: &Path| fs::read(out.join("adapter_model.safetensors")).unwrap();
    assert!(adapter(&first) == adapter(&again));
    let (mut one, mut other) = (hyperparameters(&first), hyperparameters(&again));
    for found in [&mut one, &mut other] {
        ["run", "out_dir"].iter().for_each(|key| drop(found.as_object_mut().unwrap().remove(*key)));
    }
    assert_eq!(one, other);
}

/// `true` and `false` behind a flag are its value, as LitGPT's command line has them.
#[test]
fn flags_of_a_file_are_switched_off_by_what_is_typed() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (rows(folder.path(), "rows.json"), folder.path().join("out"));
    let file = folder.path().join("run.yaml");
    let flags = ["keep_best", "quantize_head", "no_coop", "offload_activations"];
    let on = flags.map(|flag| format!("{flag}: true\n")).concat();
    let text = format!(
        "data: {}\nout_dir: {}\nmax_steps: 1\nbatch_size: 2\nquantize: nf4\n{on}",
        data.display(),
        out.display()
    );
    fs::write(&file, text).unwrap();
    let model = model();
    let run = |file: &Path, typed: &[&str]| {
        stdout(&[&["finetune", "--config", file.to_str().unwrap()], typed].concat());
        flags.map(|flag| hyperparameters(&out)[flag].as_bool().unwrap())
    };
    // a bare flag takes no word that is not its own
    assert_eq!(run(&file, &["--no_coop", &model]), [true; 4]);
    let off = ["--keep_best", "false", "--quantize-head=false", "--no_coop", "False"];
    assert_eq!(run(&file, &[&off[..], &["--offload_activations=false", &model]].concat()), [false; 4]);
    // the last one counts, and a run's own file is no other
    let words =
        ["--no_coop", "false", "--keep_best=false", "--no_coop=true", &model, "--quantize_head", "true"];
    assert_eq!(run(&file, &words), [false, true, true, true]);
    let own = out.join("hyperparameters.yaml");
    assert_eq!(run(&own, &["--no_coop=false"]), [false, true, false, true]);
    assert!(refused(&["finetune", &model, "--no_coop=perhaps"]).contains("--no_coop must be true or false"));
}

#[test]
fn mistakes_name_file_line_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.yaml");
    let path = file.to_str().unwrap();
    for (text, line, said) in [
        ("epoch: 3\n", 1, "epoch is no option of finetune; did you mean epochs?"),
        ("epochs: 3\ntrain:\n  max_step: 3\n", 3, "did you mean train.max_steps?"),
        ("epochs: many\n", 1, "epochs many: must be a whole number"),
        ("seed: 1\nprecision: fp8\n", 2, "precision fp8"),
        ("devices: 2\n", 1, "--gpu chooses it"),
        ("num_nodes: 1\nlog:\n  project: mine\n", 3, "--logger_name"),
        ("data:\n  ignore_index: 0\n", 2, "always -100"),
        ("no_coop: perhaps\n", 1, "must be true or false"),
        ("epochs: [3\n", 2, "is no YAML"),
        ("seed: 1\nepochs: 3\nseed: 2\n", 3, "seed is said before, in line 1"),
        ("config: other.yaml\n", 1, "config is no option"),
    ] {
        fs::write(&file, text).unwrap();
        let message = refused(&["finetune", &model(), "--config", path]);
        assert!(message.contains(&format!("{path}:{line}: ")) && message.contains(said), "{text}: {message}");
    }
    for (bytes, said) in [(&b"a: \xff"[..], "is not UTF-8"), (&vec![b'a'; 2 << 20], "are no configuration")] {
        fs::write(&file, bytes).unwrap();
        assert!(refused(&["finetune", "--config", path]).contains(said));
    }
    assert!(refused(&["finetune", "--config", "nowhere.yaml"]).contains("cannot be read"));
    assert!(refused(&["finetune", "--config"]).contains("needs a value"));
    assert!(refused(&["finetune", &model(), "--devices", "2"]).contains("--gpu chooses it"));
    assert!(refused(&["finetune", &model(), "--freeze_encoder=false"]).contains("finetune_full"));
    // an empty file says nothing
    fs::write(&file, "").unwrap();
    assert!(refused(&["finetune", "--config", path]).contains("MODEL_DIR"));
}

/// `init` writes every option: filled in it runs, and each default in it is one.
#[test]
fn the_file_of_init_can_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("engraft.yaml");
    let path = file.to_str().unwrap();
    assert!(stdout(&["init", path]).contains("engraft finetune --config"));
    assert!(refused(&["init", path]).contains("exists"));
    let data = rows(folder.path(), "rows.json");
    let text = fs::read_to_string(&file).unwrap();
    let filled =
        text.replace("path/to/the/model", &model()).replace("path/to/rows.json", data.to_str().unwrap());
    fs::write(&file, &filled).unwrap();
    let plan = |file: &Path| {
        let text = stdout(&["plan", "--config", file.to_str().unwrap(), "--json"]);
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let usual = plan(&file);
    // an option behind a # has its key right after it
    let said = filled.lines().map(|line| {
        let rest = line.trim_start();
        let key = rest.strip_prefix("# ").and_then(|rest| rest.split_once(':')).map(|(key, _)| key);
        let option =
            key.is_some_and(|k| k.starts_with(|c: char| c.is_ascii_lowercase()) && !k.contains([' ', ',']));
        if option { line.replacen("# ", "", 1) } else { line.to_owned() }
    });
    let spoken = said.collect::<Vec<_>>().join("\n");
    assert!(spoken.contains("\nepochs: 3\n") && spoken.contains("\n  shuffle: true\n"), "{spoken}");
    let other = folder.path().join("spoken.yaml");
    fs::write(&other, spoken).unwrap();
    assert_eq!(plan(&other), usual);
}

#[test]
fn completions_know_commands_and_options() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&["completions", shell]);
        assert!(script.contains("finetune") && script.contains("learning_rate"), "{shell}");
    }
}
