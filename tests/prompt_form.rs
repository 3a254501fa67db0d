//! Who asks a model that engraft trained asks as the training did, without being told how.

mod common;

use common::{engraft, text};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

const ROWS: [(&str, &str); 4] = [
    ("Who are you?", "I am Pip."),
    ("Where do you live?", "In a green house."),
    ("What do you eat?", "Red apples."),
    ("When do you sleep?", "At night."),
];

fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/demo/model")
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Rows under these keys, learned by heart: the same for validation. Gives the folder of rows and that of the run, and what the run
/// said.
fn trained(folder: &Path, keys: [&str; 2], options: &[&str]) -> (PathBuf, PathBuf, String) {
    let (rows, out) = (folder.join("rows"), folder.join("out"));
    let lines = ROWS.map(|(question, answer)| json!({ keys[0]: question, keys[1]: answer }).to_string());
    fs::create_dir_all(&rows).unwrap();
    for name in ["train.jsonl", "val.jsonl"] {
        fs::write(rows.join(name), lines.join("\n")).unwrap();
    }
    let (base, max) = (model(), ["--epochs", "60", "--batch_size", "4", "--learning_rate", "1e-2"]);
    let usual = ["finetune", shown(&base), "--data", shown(&rows), "--out_dir", shown(&out), "--tune", "off"];
    let rank = ["--lora_rank", "16", "--lora_alpha", "32", "--micro_batch_size", "4"];
    let output = engraft(&[&usual[..], &max, &rank, options].concat());
    let said = text(&output.stderr) + &text(&output.stdout);
    assert!(output.status.success(), "{said}");
    (rows, out, said)
}

/// Prompts with completions in the default style, which writes them as they are; the last saved step and the best beside the result.
struct Completions {
    folder: TempDir,
    rows: PathBuf,
    out: PathBuf,
    said: String,
}

fn completions() -> Option<&'static Completions> {
    static RUN: OnceLock<Option<Completions>> = OnceLock::new();
    RUN.get_or_init(|| {
        common::gpu()?;
        let folder = tempfile::tempdir().unwrap();
        let prompts = folder.path().join("prompts.txt");
        fs::write(&prompts, "Who are you?\n").unwrap();
        let more = ["--eval_prompts", shown(&prompts), "--save_interval", "60", "--keep_best"];
        let (rows, out, said) = trained(folder.path(), ["prompt", "completion"], &more);
        Some(Completions { folder, rows, out, said })
    })
    .as_ref()
}

/// Greedy text for a question, and what was said beside it.
fn generate(words: &[&str], question: &str) -> (String, String) {
    let fixed = ["--temperature", "0", "--max_new_tokens", "24", "--prompt", question];
    let output = engraft(&[&["generate"], words, &fixed].concat());
    let said = text(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    (text(&output.stdout).trim_end().to_owned(), said)
}

fn chat(words: &[&str], input: &str) -> (String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_engraft"))
        .env("ENGRAFT_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
        .arg("chat")
        .args(words)
        .args(["--temperature", "0", "--max_new_tokens", "24"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

fn loss(words: &[&str], rows: &Path) -> (f64, String) {
    let rows = rows.join("val.jsonl");
    let output =
        engraft(&[&["evaluate"], words, &["--data", shown(&rows), "--json", "--tune", "off"]].concat());
    let said = text(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    (report["loss"].as_f64().unwrap(), said)
}

fn record(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("prompt_style.json")).unwrap()).unwrap()
}

#[test]
fn an_adapter_is_asked_as_it_was_trained() {
    let Some(run) = completions() else { return };
    let (base, out) = (model(), shown(&run.out));
    for folder in ["", "step-000060", "best-000060"] {
        let expected = json!({ "style": "auto", "rows": ["prompt-completion"] });
        assert_eq!(record(&run.out.join(folder)), expected, "{folder}");
    }
    for name in ["--adapter", "--lora"] {
        let (answer, said) = generate(&[shown(&base), name, out], "Who are you?");
        assert_eq!(answer, "I am Pip.");
        assert!(said.contains("prompt style none, as the adapter was trained"), "{said}");
    }
    // what the user says goes first, and nothing is said of the training
    let (answer, said) =
        generate(&[shown(&base), "--adapter", out, "--prompt_style", "alpaca"], "Who are you?");
    assert!(answer != "I am Pip." && !said.contains("trained"), "{answer}: {said}");
    // messages without a form for conversations stand alone: the second time is like the first
    let (answers, said) =
        chat(&[shown(&base), "--adapter", out], "Who are you?\nWhat do you eat?\nWho are you?\n");
    assert_eq!(answers, "I am Pip.\nRed apples.\nI am Pip.\n");
    assert!(said.contains("prompt style none, as the adapter was trained, context of"), "{said}");
    assert!(said.contains("each message is asked by itself"), "{said}");
}

#[test]
fn texts_at_evaluations_are_asked_as_the_rows_are() {
    let Some(run) = completions() else { return };
    assert!(run.said.contains("step 60: Who are you? → I am Pip."), "{}", run.said);
}

#[test]
fn a_run_without_a_result_gives_its_last_step_to_every_command() {
    let Some(run) = completions() else { return };
    let (base, unfinished) = (model(), run.folder.path().join("unfinished"));
    let step = unfinished.join("step-000060");
    fs::create_dir_all(&step).unwrap();
    for entry in fs::read_dir(run.out.join("step-000060")).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), step.join(entry.file_name())).unwrap();
    }
    let words = [shown(&base), "--adapter", shown(&unfinished)];
    let note = format!(
        "{} has no result yet: its last saved step is taken, {}",
        unfinished.display(),
        step.display()
    );
    let (answer, said) = generate(&words, "Who are you?");
    assert!(answer == "I am Pip." && said.contains(&note), "{answer}: {said}");
    let (answer, said) = chat(&words, "Who are you?\n");
    assert!(answer == "I am Pip.\n" && said.contains(&note), "{answer}: {said}");
    let (loss, said) = loss(&words, &run.rows);
    assert!(loss < 0.8 && said.contains(&note), "{loss}: {said}");
    let output = engraft(&[&["validate"], &words[..]].concat());
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains(&note), "{said}");
}

#[test]
fn an_adapter_in_the_models_place_brings_its_base() {
    let Some(run) = completions() else { return };
    let out = shown(&run.out);
    let (answer, said) = generate(&[out], "Who are you?");
    assert_eq!(answer, "I am Pip.");
    assert!(said.contains("is an adapter: its base is"), "{said}");
    assert_eq!(chat(&[out], "Who are you?\n").0, "I am Pip.\n");
    assert!(loss(&[out], &run.rows).0 < 0.8);

    let output = engraft(&["generate", out, "--adapter", out, "--prompt", "a"]);
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("--adapter"), "{said}");
    let lost = with_base(run, "lost", "/no/where/at/all");
    let output = engraft(&["generate", shown(&lost), "--prompt", "a"]);
    let said = text(&output.stderr);
    let command = format!("--adapter {}", lost.display());
    assert!(output.status.code() == Some(2) && said.contains("/no/where/at/all"), "{said}");
    assert!(said.contains(&command), "{said}");
}

/// The run's adapter, which names another base.
fn with_base(run: &Completions, name: &str, base: &str) -> PathBuf {
    let folder = run.folder.path().join(name);
    fs::create_dir(&folder).unwrap();
    fs::copy(run.out.join("adapter_model.safetensors"), folder.join("adapter_model.safetensors")).unwrap();
    let config = fs::read(run.out.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["base_model_name_or_path"] = base.into();
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn an_adapter_of_another_base_is_told_and_one_without_a_record_is_asked_as_before() {
    let Some(run) = completions() else { return };
    let base = model();
    let ask = |adapter: &Path| generate(&[shown(&base), "--adapter", shown(adapter)], "Who are you?");
    let (wrapped, said) = ask(&with_base(run, "other", "meta-llama/Llama-3.2-1B"));
    assert!(said.contains("the adapter was trained on meta-llama/Llama-3.2-1B"), "{said}");
    assert!(!said.contains("as the adapter was trained"), "{said}");
    let alpaca = [shown(&base), "--adapter", shown(&run.out), "--prompt_style", "alpaca"];
    assert_eq!(wrapped, generate(&alpaca, "Who are you?").0);
    let (_, said) = ask(&with_base(run, "moved", "/gone/since/model"));
    assert!(!said.contains("trained on"), "{said}");

    // a file of that name that others wrote
    let foreign = with_base(run, "foreign", "model");
    fs::write(foreign.join("prompt_style.json"), "{\"class_path\": \"litgpt.prompts.Alpaca\"}").unwrap();
    let (answer, said) = ask(&foreign);
    assert_eq!(answer, wrapped);
    assert!(said.contains("prompt_style.json") && said.contains("--prompt_style"), "{said}");
}

#[test]
fn a_merged_model_is_asked_as_its_adapter_was() {
    let Some(run) = completions() else { return };
    let merged = run.folder.path().join("merged");
    let output = engraft(&["merge", shown(&run.out), "--out_dir", shown(&merged)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(record(&merged), record(&run.out));
    let (answer, said) = generate(&[shown(&merged)], "Where do you live?");
    assert_eq!(answer, "In a green house.");
    assert!(said.contains("prompt style none, as the model was trained"), "{said}");
}

#[test]
fn a_template_of_the_training_is_kept_with_what_it_trained() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("question.jinja");
    let source = "Q: {{ question }}\nA: {% generation %}{{ answer }}{% endgeneration %}";
    fs::write(&template, source).unwrap();
    let options = ["--prompt_template", shown(&template)];
    let (rows, out, _) = trained(folder.path(), ["question", "answer"], &options);
    let expected = json!({ "file": template, "text": source });
    assert_eq!(record(&out)["template"], expected);
    fs::remove_file(&template).unwrap();

    let words = [shown(&model()), "--adapter", shown(&out)].map(str::to_owned);
    let words = words.each_ref().map(String::as_str);
    let (answer, said) = generate(&words, "Who are you?");
    assert_eq!(answer, "I am Pip.");
    assert!(said.contains("question.jinja, as the adapter was trained"), "{said}");
    // the row itself will do as well
    assert_eq!(generate(&words, "{\"question\": \"What do you eat?\"}").0, "Red apples.");
    assert_eq!(chat(&words, "Who are you?\nWho are you?\n").0, "I am Pip.\n".repeat(2));
    let (loss, said) = loss(&words, &rows);
    assert!(loss < 0.8 && said.contains("question.jinja, as the adapter was trained"), "{loss}: {said}");

    // a template that the user gives goes first; one that reads several keys wants them all
    let other = folder.path().join("other.jinja");
    fs::write(&other, "{{ topic }}: {{ question }}").unwrap();
    let asked = [&["generate"], &words[..], &["--prompt_template", shown(&other), "--prompt", "a"]].concat();
    let output = engraft(&asked);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("question, topic") && said.contains("{\"question\": \"…\", \"topic\": \"…\"}"),
        "{said}"
    );
}
