//! `engraft data` as a user calls it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn data(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.arg("data").args(words).env_remove("NO_COLOR").output().unwrap()
}

#[track_caller]
fn stdout(words: &[&str]) -> String {
    let output = data(words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn write(folder: &tempfile::TempDir, name: &str, content: &str) -> String {
    let file = folder.path().join(name);
    std::fs::write(&file, content).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn json_holds_counts_and_samples_as_transformers_gives_them() {
    let folder = tempfile::tempdir().unwrap();
    let reference: Value =
        serde_json::from_slice(&std::fs::read(fixtures().join("tokenizer/chat_labels.json")).unwrap())
            .unwrap();
    let cases = reference["qwen2"]["chat"].as_array().unwrap();
    let rows: Vec<Value> = cases.iter().map(|case| json!({"messages": case["messages"]})).collect();
    let file = write(&folder, "chats.json", &Value::from(rows).to_string());
    let model = fixtures().join("models/qwen2");
    let text = stdout(&[&file, "--model", model.to_str().unwrap(), "--show", "100", "--json"]);
    let shown: Value = serde_json::from_str(&text).unwrap();
    let samples = shown["samples"].as_array().unwrap();
    assert_eq!(samples.len(), cases.len());
    for (sample, case) in samples.iter().zip(cases) {
        assert_eq!(sample, &json!({"input_ids": case["ids"], "labels": case["labels"]}));
    }
    let tokens: usize = cases.iter().map(|case| case["ids"].as_array().unwrap().len()).sum();
    assert_eq!(shown["counts"]["train"]["samples"], cases.len());
    assert_eq!(shown["counts"]["train"]["tokens"], tokens);
    let counted: u64 =
        shown["lengths"].as_array().unwrap().iter().map(|bin| bin["samples"].as_u64().unwrap()).sum();
    assert_eq!(counted as usize, cases.len());
}

#[test]
fn text_shows_what_is_learned() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        &folder,
        "rows.jsonl",
        "{\"prompt\": \"a\\nb\", \"completion\": \"c🙂\"}\n{\"prompt\": \"a\", \"completion\": \"d\"}\n",
    );
    let model = fixtures().join("models/llama");
    let text = stdout(&[&file, "--model", model.to_str().unwrap(), "--show", "1"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "format prompt-completion, prompt style auto");
    assert!(lines[1].contains("label tokens") && lines[2].starts_with("training          2"), "{text}");
    assert!(text.contains("tokens  samples\n"), "{text}");
    let start = lines.iter().position(|line| line.starts_with("sample 0: ")).unwrap();
    assert!(lines[start].ends_with("labels ([in brackets] is learned)"), "{text}");
    assert_eq!(lines[start + 1..], ["|<|begin_of_text|>|a|⏎", "|b[c|🙂|<|eot_id|>]"]);
    assert!(!text.contains('\x1b'));
}

/// Decoders of SentencePiece's kind take the blank from a text's start, but no token has lost it.
#[test]
fn blanks_of_sentencepiece_tokens_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(&folder, "rows.jsonl", "{\"prompt\": \"one two\", \"completion\": \" three four\"}\n");
    let model = fixtures().join("models/mistral");
    let text = stdout(&[&file, "--model", model.to_str().unwrap()]);
    let shown: String = text.lines().last().unwrap().replace(['|', '[', ']'], "");
    assert_eq!(shown, "<s> one two three four</s>", "{text}");
}

#[test]
fn mixtures_cuts_and_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    let row = |i: usize| json!({"instruction": "Say it", "output": "x".repeat(i)}).to_string() + "\n";
    let first = write(&folder, "a.jsonl", &(0..4).map(row).collect::<String>());
    let second = write(&folder, "b.jsonl", &(0..4).map(row).collect::<String>());
    let model = fixtures().join("models/llama");
    let model = model.to_str().unwrap();
    let counts = |words: &[&str]| {
        let text = stdout(&[words, &["--model", model, "--json", "--show", "0"]].concat());
        serde_json::from_str::<Value>(&text).unwrap()["counts"]["train"].clone()
    };
    assert_eq!(counts(&[&format!("{first}:2,{second}:0.5")])["samples"], 10);
    let longest = counts(&[&first])["longest"].as_u64().unwrap();
    let cut = counts(&[&first, "--max_seq_length", &(longest - 2).to_string()]);
    assert_eq!((cut["samples"].as_u64(), cut["truncated"].as_u64()), (Some(4), Some(2)));
    let over = stdout(&[&first, "--model", model, "--show", "0"]);
    assert!(!over.contains("over the model's limit"), "{over}");
    let long = write(&folder, "long.jsonl", &row(300));
    let over = stdout(&[&long, "--model", model, "--show", "0"]);
    assert!(over.contains("over the model's limit of 128 tokens, where a run cuts: 1 samples"), "{over}");

    for (words, expected) in [
        (vec!["/nowhere.json", "--model", model], "/nowhere.json: no such file"),
        (vec![&first, "--model", "/nowhere"], "the model folder needs a tokenizer.json"),
        (vec![&first, "--model", model, "--prompt_style", "alpacca"], "known are auto, alpaca"),
        (vec![&first, "--model", model, "--data_format", "chat"], "line 1: the key `messages` is missing"),
    ] {
        let output = data(&words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(expected) && !said.contains("panicked"), "{words:?}: {said}");
    }
    let bytes = std::fs::read(fixtures().join("data/chat-snappy.parquet")).unwrap();
    for at in (4..bytes.len()).step_by(101) {
        let mut bad = bytes.clone();
        bad[at] ^= 0xff;
        let file = folder.path().join("bad.parquet");
        std::fs::write(&file, bad).unwrap();
        let output = data(&[file.to_str().unwrap(), "--model", model, "--show", "0"]);
        assert!(matches!(output.status.code(), Some(0 | 2)), "byte {at}: {output:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "byte {at}: {output:?}");
    }
}

#[test]
fn a_run_learns_conversations_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let chat = |i: usize| json!({"messages": [{"role": "user", "content": format!("Say {i}")}, {"role": "assistant", "content": "so"}]});
    let lines: String = (0..6).map(|i| format!("{}\n", chat(i))).collect();
    let silent = json!({"messages": [{"role": "user", "content": "no answer"}]});
    let file = write(&folder, "chats.jsonl", &format!("{lines}{silent}\n"));
    let (out, cache) = (folder.path().join("out"), folder.path().join("tokens"));
    let model = fixtures().join("models/llama");
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
        command.arg("finetune").arg(&model).args(["--data", &file, "--epochs", "1", "--batch_size", "2"]);
        command.args(["--data.val_split_fraction", "0", "--tune", "off", "--out_dir"]).arg(&out).args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
    };
    let said = run(&["--data_cache", cache.to_str().unwrap()]);
    assert!(said.contains("no label: left out"), "{said}");
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1);
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let labels: u64 = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["label_tokens"].as_u64().unwrap())
        .sum();
    // of each answer its two letters (one or two tokens) and the end of the turn
    assert_eq!(labels % 6, 0);
    assert!((12..=18).contains(&labels), "{labels}");
    let options: Value =
        serde_json::from_slice(&std::fs::read(out.join("hyperparameters.json")).unwrap()).unwrap();
    assert_eq!(options["data"]["sources"][0]["path"], file);
    assert_eq!(options["data"]["prompt_style"], "auto");
    // small data leave nothing beside the run
    run(&[]);
    let kept = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(kept.into_iter().all(|name| !name.to_string_lossy().starts_with("tokens-")));
}

/// A base model without the marks of a chat format would learn from unknown text.
#[test]
fn marks_that_the_model_lacks_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let rows = write(&folder, "rows.json", r#"[{"instruction": "a", "output": "b"}]"#);
    let note = |model: &str, style: &str| {
        let model = fixtures().join("models").join(model);
        let words = [&rows, "--model", model.to_str().unwrap(), "--data.prompt_style", style];
        let output = data(&words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
    };
    let said = note("llama", "gemma");
    assert!(said.contains("the prompt style gemma writes <end_of_turn> and <start_of_turn>"), "{said}");
    assert!(said.contains("alpaca"), "{said}");
    for (model, style) in [("llama", "alpaca"), ("qwen2", "chatml"), ("gemma", "gemma")] {
        let said = note(model, style);
        assert!(!said.contains("has no token"), "{model} {style}: {said}");
    }
}
