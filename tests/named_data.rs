//! Data sets by LitGPT's names, from servers on this machine.

mod common;

use common::http::{Reply, Server, entry, refuse, send};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Runs in a folder of its own, against this Hub; gives exit code, output and what was said.
fn engraft(hub: &str, at: &Path, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.args(words).current_dir(at).env("HF_ENDPOINT", hub).env("HF_TOKEN", "hf_x");
    command.env("ENGRAFT_TUNE", "off").env_remove("HF_HUB_OFFLINE").env("NO_PROXY", "127.0.0.1");
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn model() -> String {
    common::fixtures().join("models/llama").canonicalize().unwrap().display().to_string()
}

fn rows(count: usize) -> Vec<u8> {
    let row =
        |i: usize| json!({"instruction": format!("say {i}"), "input": "", "output": format!("{}", i * 7)});
    serde_json::to_vec(&(0..count).map(row).collect::<Vec<_>>()).unwrap()
}

/// A Hub with one data set of these files.
fn hub(name: &'static str, files: Vec<(&'static str, Vec<u8>)>) -> Server {
    let entries = files.iter().map(|(name, content)| entry(name, content, name.ends_with("parquet")));
    let body = json!({"sha": COMMIT, "siblings": entries.collect::<Vec<_>>()}).to_string().into_bytes();
    Server::start(move |request| {
        if request.path == format!("/api/datasets/{name}/revision/main?blobs=true") {
            return Reply { status: 200, body: body.clone(), ..Reply::default() };
        }
        let file = request.path.strip_prefix(&format!("/datasets/{name}/resolve/{COMMIT}/"));
        match files.iter().find(|(known, _)| Some(*known) == file) {
            Some((_, content)) => send(request, content),
            None => refuse(404, "RepoNotFound", "Repository not found"),
        }
    })
}

fn alpaca_2k() -> Vec<u8> {
    fs::read(common::fixtures().join("data/alpaca.parquet")).unwrap()
}

fn hyperparameters(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("hyperparameters.json")).unwrap()).unwrap()
}

/// The data of LitGPT's files for `finetune_lora`, as it ships them and as a run of it writes them out.
const DATA: &str = "
data:
  class_path: litgpt.data.Alpaca2k
  init_args:
    mask_prompt: false
    val_split_fraction: FRACTION
    prompt_style: alpaca
    ignore_index: -100
    seed: 42
    num_workers: 4
    download_dir: data/alpaca2k
";
const WRITTEN: &str = "    repo_id: mhenrichsen/alpaca_2k_test
    file_url: https://raw.githubusercontent.com/tloen/alpaca-lora/main/alpaca_data_cleaned_archive.json
    file_name: alpaca2k_data_cleaned_archive.json
";

#[test]
fn litgpts_file_with_alpaca_2k_runs() {
    if common::gpu().is_none() {
        return;
    }
    let hub = hub("mhenrichsen/alpaca_2k_test", vec![("alpaca_2000.parquet", alpaca_2k())]);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let data = DATA.replace("FRACTION", "0.4") + WRITTEN;
    fs::write(at.join("lora.yaml"), format!("out_dir: out\nlora_r: 4{data}train:\n  max_steps: 1\n"))
        .unwrap();
    let model = model();
    let words = ["finetune_lora", &model, "--config", "lora.yaml", "--max_seq_length", "64"];
    let (code, _, err) = engraft(&hub.url, at, &words);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("Alpaca2k is not here: downloading alpaca_2000.parquet of mhenrichsen/"), "{err}");
    let place = at.join("data/alpaca2k/alpaca_2000.parquet");
    assert_eq!(fs::read(&place).unwrap(), alpaca_2k());
    assert!(hub.requests().iter().all(|request| request.header("Authorization") == Some("Bearer hf_x")));
    let first = hyperparameters(&at.join("out"));
    for (key, value) in [
        ("json_path", json!(Path::new("data/alpaca2k").join("alpaca_2000.parquet"))),
        ("val_split_fraction", json!(0.4)),
        ("seed", json!(42)),
        ("mask_prompt", json!(false)),
    ] {
        assert_eq!(first["data"][key], value, "{key}");
    }

    // the run's own file is the same run, without the Hub
    let words = ["finetune", "--config", "out/hyperparameters.yaml", "--out_dir", "again"];
    let (code, _, err) = engraft("http://127.0.0.1:1", at, &words);
    assert_eq!(code, 0, "{err}");
    let adapter = |out: &str| fs::read(at.join(out).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("out") == adapter("again"));

    // what is here is not asked for, and what is typed wins
    hub.forget();
    let words = ["plan", &model, "--config", "lora.yaml", "--max_seq_length", "64"];
    let (code, _, err) = engraft(&hub.url, at, &words);
    assert!(code == 0 && err.contains("Alpaca2k is data"), "{err}");
    fs::remove_file(&place).unwrap();
    fs::write(at.join("own.json"), rows(20)).unwrap();
    let (code, _, err) = engraft(&hub.url, at, &[&words[..], &["--data.json_path", "own.json"]].concat());
    assert_eq!(code, 0, "{err}");
    assert!(hub.requests().is_empty() && !place.exists());
}

#[test]
fn a_file_at_an_address_is_gone_on_with_and_split_as_litgpt_does() {
    if common::gpu().is_none() {
        return;
    }
    let content = rows(60);
    let (body, half) = (content.clone(), content.len() / 2);
    let first = Mutex::new(true);
    let server = Server::start(move |request| {
        let cut = request.method == "GET" && std::mem::take(&mut *first.lock().unwrap());
        Reply { cut: cut.then_some(half), ..send(request, &body) }
    });
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let (model, url) = (model(), format!("{}/rows.json", server.url));
    let words = ["finetune", &model, "--data", "AlpacaGPT4", "--data.file_url", &url, "--max_steps", "1"];
    let (code, _, err) = engraft("http://127.0.0.1:1", at, &words);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains(&format!("AlpacaGPT4 is not here: downloading {url}")), "{err}");
    let file = "data/alpacagpt4/alpacagpt4_data_cleaned_archive.json";
    assert_eq!(fs::read(at.join(file)).unwrap(), content);
    assert_eq!(hyperparameters(&at.join("out"))["data"]["val_split_fraction"], json!(0.03847));
    let asked = server.requests();
    let asked: Vec<_> = asked.iter().map(|request| (request.method.as_str(), request.from())).collect();
    assert_eq!(asked, [("HEAD", 0), ("GET", 0), ("GET", half)]);
    // the token is the Hub's alone
    assert!(server.requests().iter().all(|request| request.header("Authorization").is_none()));

    // another folder and name; a fraction that is said
    let named =
        ["--data.download_dir", "d", "--data.file_name", "x.json", "--data.val_split_fraction", "0.1"];
    let words = [&["plan", &model, "--data", "Alpaca", "--data.file_url", &url], &named[..]].concat();
    let (code, _, err) = engraft("http://127.0.0.1:1", at, &words);
    assert_eq!(code, 0, "{err}");
    assert_eq!(fs::read(at.join("d/x.json")).unwrap(), content);
}

#[test]
fn data_shows_a_set_by_its_name() {
    let hub = hub("mhenrichsen/alpaca_2k_test", vec![("alpaca_2000.parquet", alpaca_2k())]);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = model();
    let words = ["data", "Alpaca2k", "--model", &model];
    let (code, out, err) = engraft(&hub.url, at, &words);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("Alpaca2k is not here: downloading alpaca_2000.parquet of mhenrichsen/"), "{err}");
    assert!(out.contains("format alpaca, prompt style ") && out.contains("\nsample 0: "), "{out}");
    // the same rows as those of the file, which is not asked for again
    let file = "data/alpaca2k/alpaca_2000.parquet";
    hub.forget();
    assert_eq!(engraft(&hub.url, at, &words).1, out);
    assert!(hub.requests().is_empty());
    assert_eq!(engraft(&hub.url, at, &["data", file, "--model", &model]).1, out);

    let server = Server::start(|request| send(request, &rows(12)));
    let url = format!("{}/rows.json", server.url);
    let place = ["--data.download_dir", "d", "--data.file_name", "x.json", "--data.file_url", &url, "--json"];
    for name in ["Alpaca", "AlpacaGPT4"] {
        let (code, out, err) =
            engraft(&hub.url, at, &[&["data", name, "--model", &model], &place[..]].concat());
        assert_eq!(code, 0, "{err}");
        let out: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(out["samples"].as_array().unwrap().len(), 3);
        assert_eq!(fs::read(at.join("d/x.json")).unwrap(), rows(12));
        fs::remove_file(at.join("d/x.json")).unwrap();
    }

    for (words, said) in
        [(&["Dolly"][..], "context"), (&["Alpaca", "--data.repo_id", "a/b"], "--data.file_url")]
    {
        let (code, _, err) = engraft(&hub.url, at, &[&["data"], words, &["--model", &model]].concat());
        assert!(code == 2 && err.contains(said), "{words:?}: {err}");
    }
}

#[test]
fn another_repository_has_a_folder_of_its_own() {
    let own = hub("org/rows", vec![("README.md", b"x".to_vec()), ("data/train.json", rows(30))]);
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = model();
    let words = ["plan", &model, "--data", "Alpaca2k", "--data.repo_id", "org/rows"];
    let (code, _, err) = engraft(&own.url, at, &words);
    assert_eq!(code, 0, "{err}");
    assert_eq!(fs::read(at.join("data/alpaca2k/org/rows/train.json")).unwrap(), rows(30));
    let (code, _, err) = engraft("http://127.0.0.1:1", at, &words);
    assert!(code == 0 && err.contains("Alpaca2k is data"), "{err}");

    let many = hub("org/many", vec![("a.json", rows(30)), ("b.json", rows(20))]);
    let words = ["plan", &model, "--data", "Alpaca2k", "--data.repo_id", "org/many"];
    let (code, _, err) = engraft(&many.url, at, &words);
    assert!(code == 2 && err.contains("a.json, b.json; name one with --data.file_name"), "{err}");
    let named = |file| engraft(&many.url, at, &[&words[..], &["--data.file_name", file]].concat());
    let (code, _, err) = named("c.json");
    assert!(code == 2 && err.contains("org/many has no file \"c.json\"") && err.contains("b.json"), "{err}");
    let (code, _, err) = named("b.json");
    assert_eq!(code, 0, "{err}");
    assert_eq!(fs::read(at.join("data/alpaca2k/org/many/b.json")).unwrap(), rows(20));
}

#[test]
fn what_cannot_be_had_is_told_before_anything_is_asked_for() {
    let hub = hub("org/rows", Vec::new());
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = model();
    let refused = |words: &[&str]| {
        let (code, _, err) = engraft(&hub.url, at, &[&["finetune", &model], words].concat());
        assert_eq!(code, 2, "{words:?}: {err}");
        err
    };
    for (name, said) in
        [("Dolly", "context"), ("LIMA", "messages"), ("Deita", "Parquet"), ("TextFiles", ".txt")]
    {
        let err = refused(&["--data", name]);
        assert!(err.contains(said) && err.contains("--data FILE"), "{name}: {err}");
    }
    fs::write(at.join("run.yaml"), DATA.replace("Alpaca2k", "FLAN").replace("FRACTION", "0.1")).unwrap();
    let err = refused(&["--config", "run.yaml"]);
    assert!(err.contains("run.yaml:3: data FLAN: LitGPT's FLAN is not known"), "{err}");
    assert!(refused(&["--data", "Alpaca", "--data.json_path", "x"]).contains("one of the two"));
    assert!(refused(&["--data", "Alpaca", "--data.repo_id", "a/b"]).contains("--data.file_url"));
    assert!(refused(&["--data", "Alpaca2k", "--lora_rank", "0"]).contains("--lora_rank"));
    assert!(refused(&["--data", "Alpaca", "--data.file_url", "ftp://x/y"]).contains("http://"));
    assert!(hub.requests().is_empty());

    // a set that is not there
    let err = refused(&["--data", "Alpaca2k", "--data.repo_id", "org/other"]);
    assert!(err.contains("there is no data set org/other"), "{err}");
    let gone = format!("{}/gone.json", hub.url);
    let (code, _, err) =
        engraft(&hub.url, at, &["finetune", &model, "--data", "Alpaca", "--data.file_url", &gone]);
    assert!(code != 0 && err.contains("gone.json: 404"), "{err}");
    let mut offline = Command::new(env!("CARGO_BIN_EXE_engraft"));
    offline.args(["finetune", &model, "--data", "Alpaca2k"]).current_dir(at).env("HF_HUB_OFFLINE", "1");
    let output = offline.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && err.contains("put the file there"), "{err}");
    assert!(!at.join("data").exists());
}
