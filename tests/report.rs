//! `report.html`: what a run and `engraft report` leave, and that the page needs nothing from elsewhere.

mod common;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn engraft(arguments: &[&str]) -> Output {
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/cache");
    Command::new(env!("CARGO_BIN_EXE_engraft")).env("ENGRAFT_CACHE", cache).args(arguments).output().unwrap()
}

fn finetune(folder: &Path, options: &[&str]) -> Output {
    let data = folder.join("data.json");
    let rows: Vec<Value> =
        (0..40).map(|i| json!({ "instruction": format!("say {i}"), "output": i.to_string() })).collect();
    fs::write(&data, json!(rows).to_string()).unwrap();
    let (model, out) = (common::fixtures().join("models/llama"), folder.join("out"));
    let fixed = [
        "finetune",
        model.to_str().unwrap(),
        "--data",
        data.to_str().unwrap(),
        "--out_dir",
        out.to_str().unwrap(),
    ];
    let small = ["--batch_size", "4", "--max_seq_length", "100", "--tune", "off"];
    let gpu = std::env::var("ENGRAFT_TEST_GPU");
    let gpu = gpu.as_deref().map_or(vec![], |gpu| vec!["--gpu", gpu]);
    engraft(&[&fixed[..], &small, options, &gpu].concat())
}

fn page(folder: &Path) -> String {
    fs::read_to_string(folder.join("out/report.html")).unwrap()
}

/// Whatever a browser would load. (Texts of the run may name any address.)
fn loads(page: &str) -> Vec<String> {
    let marks = ["src=", "href=", "url(", "@import", "<iframe", "<object", "<embed", "fetch("];
    let all = marks.iter().flat_map(|mark| page.match_indices(mark));
    all.map(|(at, _)| page[at..].chars().take(12).collect()).collect()
}

#[test]
fn a_run_leaves_a_page_that_needs_nothing_else() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output =
        finetune(folder.path(), &["--learning_rate", "1e-3", "--max_steps", "6", "--eval_interval", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let first = page(folder.path());
    for part in [
        "<h1>out</h1>",
        "step 6 of 6",
        "<h2>Loss</h2>",
        "<h2>Validation loss</h2>",
        "<h2>Learning rate</h2>",
        "<h2>Gradient norm</h2>",
        "<h2>Tokens per second</h2>",
        "Trainables and gradients",
        "left out, no label left",
        "lora.rank",
        "prefers-color-scheme: dark",
        "width=device-width",
    ] {
        assert!(first.contains(part), "{part}");
    }
    let metrics = fs::read_to_string(folder.path().join("out/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().rev().nth(1).unwrap()).unwrap();
    assert_eq!(last["step"], 6);
    let loss = format!("{:.3}", last["loss"].as_f64().unwrap());
    assert!(first.contains(&format!(">{loss}<")), "the final loss {loss} is on the page");
    assert_eq!(loads(&first), ["href=\"data:,"]);
    // each chart's values are JSON
    let values = first.split("<script type=\"application/json\">").skip(1);
    let charts: Vec<Value> =
        values.map(|part| serde_json::from_str(part.split("</script>").next().unwrap()).unwrap()).collect();
    assert_eq!(charts.len(), 5);
    assert_eq!(charts[1]["lines"][0]["points"].as_array().unwrap().len(), 3, "three evaluations");

    // made again from the files, with what others wrote into them
    fs::remove_file(folder.path().join("out/report.html")).unwrap();
    let sample = json!({ "step": 6, "prompt": "say <it>", "text": "it" });
    fs::write(folder.path().join("out/metrics.jsonl"), format!("{metrics}{sample}\n")).unwrap();
    let out = folder.path().join("out");
    let output = engraft(&["report", out.to_str().unwrap()]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), out.join("report.html").to_str().unwrap());
    let again = page(folder.path());
    assert!(again.contains("<h2>Samples</h2>") && again.contains("say &lt;it&gt;"));
    assert_eq!(loads(&again).len(), 1);
}

/// The loss becomes infinite, the run ends in an error, and the page is there.
#[test]
fn a_run_that_fails_leaves_a_page_too() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = finetune(folder.path(), &["--max_steps", "40", "--epochs", "9", "--learning_rate", "1e30"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let page = page(folder.path());
    assert!(page.contains(" of 40") && !page.contains("step 40 of 40") && page.contains("<h2>Loss</h2>"));
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = engraft(&["report", folder.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("metrics.jsonl") && said.contains("--out_dir"), "{said}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
