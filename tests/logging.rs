//! The logs of a run as others read them: CSV, TensorBoard's own reader, and all of them after a run that was killed and went on.

mod common;

use engraft::train::logging::{LoggerKind, RunLog};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What TensorBoard reads in a folder; `None`, said loudly, where it is not installed.
fn tensorboard(folder: &Path) -> Option<Value> {
    let probe = Command::new("python3").args(["-c", "import tensorboard"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: python3 with tensorboard is not on this machine");
        return None;
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python/read_events.py");
    let output = Command::new("python3").arg(script).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // a damaged record is only a warning to the reader
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!log.contains("DataLoss") && !log.contains("orrupt"), "{log}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn event_files(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("tfevents")).count()
}

/// Numbers by key, then by step: how the three logs can be compared.
type Series = BTreeMap<String, BTreeMap<u64, f64>>;

fn insert(series: &mut Series, key: &str, step: u64, value: f64) {
    let earlier = series.entry(key.to_owned()).or_default().insert(step, value);
    assert_eq!(earlier, None, "{key} has step {step} twice");
}

fn of_lines(folder: &Path) -> Series {
    let mut series = Series::new();
    for line in lines(folder) {
        let step = line["step"].as_u64().unwrap();
        for (key, value) in line.as_object().unwrap().iter().filter(|(key, _)| *key != "step") {
            insert(&mut series, key, step, value.as_f64().unwrap());
        }
    }
    series
}

fn of_csv(folder: &Path) -> Series {
    let mut series = Series::new();
    let mut reader = csv::Reader::from_path(folder.join("metrics.csv")).unwrap();
    let columns = reader.headers().unwrap().clone();
    for row in reader.records() {
        let row = row.unwrap();
        let step = row[0].parse().unwrap();
        for (column, cell) in columns.iter().zip(&row).skip(1).filter(|(_, cell)| !cell.is_empty()) {
            insert(&mut series, column, step, cell.parse().unwrap());
        }
    }
    series
}

fn of_tensorboard(read: &Value) -> Series {
    let mut series = Series::new();
    for (tag, points) in read["scalars"].as_object().unwrap().iter().filter(|(tag, _)| !tag.contains('/')) {
        for point in points.as_array().unwrap() {
            insert(&mut series, tag, point[0].as_u64().unwrap(), point[1].as_f64().unwrap());
        }
    }
    series
}

/// All three logs of a run's folder hold the same numbers, as far as each has them.
fn assert_equal(folder: &Path) {
    let lines = of_lines(folder);
    assert_eq!(of_csv(folder), lines);
    assert_eq!(event_files(folder), 1);
    let Some(read) = tensorboard(folder) else { return };
    let mut scalars = lines;
    ["label_tokens", "elapsed_s"].iter().for_each(|key| {
        scalars.remove(*key);
    });
    scalars.values_mut().flat_map(BTreeMap::values_mut).for_each(|value| *value = f64::from(*value as f32));
    assert_eq!(of_tensorboard(&read), scalars);
    let times: Vec<f64> =
        read["times"]["loss"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
    assert!(times.is_sorted() && times[0] > 1.7e9, "{times:?}");
}

fn finetune(folder: &Path, options: &[&str]) -> Command {
    let data = folder.join("data.json");
    let rows: Vec<Value> = (0..40)
        .map(|i| json!({ "instruction": format!("say {i}"), "output": format!("{} and {i}", i * 7) }))
        .collect();
    fs::write(&data, json!(rows).to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.arg("finetune").arg(common::fixtures().join("models/llama")).arg("--data.json_path").arg(data);
    command.args(["--precision", "32-true", "--batch_size", "4", "--max_seq_length", "100", "--tune", "off"]);
    command.args(["--learning_rate", "1e-3"]).arg("--out_dir").arg(folder.join("out")).args(options);
    if let Ok(gpu) = std::env::var("ENGRAFT_TEST_GPU") {
        command.args(["--gpu", &gpu]);
    }
    command
}

fn succeeds(output: Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn all_logs_hold_the_same_numbers() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = ["--max_steps", "6", "--eval_interval", "2", "--logger_name", "csv,tensorboard"];
    succeeds(finetune(folder.path(), &options).output().unwrap());
    let out = folder.path().join("out");
    assert_equal(&out);
    let Some(read) = tensorboard(&out) else { return };
    let table = read["texts"]["hyperparameters"][0][1].as_str().unwrap();
    assert!(table.contains("| learning_rate | 0.001 |") && table.contains("| lora.rank | 8 |"), "{table}");
    let weights = &read["scalars"]["memory_bytes/weights"];
    assert!(weights[0][1].as_f64().unwrap() > 1e5, "{weights}");
}

#[test]
fn logs_are_equal_after_kills_and_going_on() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let options = [
        "--max_steps",
        "30",
        "--epochs",
        "9",
        "--eval_interval",
        "2",
        "--save_interval",
        "3",
        "--resume",
        "auto",
    ];
    let loggers = ["--logger_name", "csv", "--logger_name", "tensorboard"];
    let mut killed = 0;
    for stop in [4, 11, 20] {
        let mut child = finetune(folder.path(), &[&options[..], &loggers].concat())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // between saves, with steps written down that are made again
        let written = || fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().lines().count();
        while written() < stop && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed >= 2, "killed {killed} times");
    succeeds(finetune(folder.path(), &[&options[..], &loggers].concat()).output().unwrap());
    assert_eq!(of_lines(&out)["loss"].len(), 30);
    assert_equal(&out);
}

#[test]
fn loggers_of_the_network_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["wandb", "mlflow", "litlogger"] {
        let output = finetune(folder.path(), &["--logger_name", name]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("never talks to the network"), "{said}");
        assert!(!folder.path().join("out").exists());
    }
}

/// What a sample of a prompt becomes: a text by step.
#[test]
fn samples_are_texts_and_numbers_that_are_not_finite_stay_visible() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = RunLog::create(folder.path(), &[LoggerKind::TensorBoard]).unwrap();
    log.write(&json!({ "step": 1, "loss": f64::NAN })).unwrap();
    for step in [2, 4] {
        log.write(&json!({ "step": step, "prompt": "Say it", "text": format!("it {step}") })).unwrap();
    }
    let text = fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
    assert_eq!(text.lines().next(), Some(r#"{"step":1,"loss":null}"#));
    let Some(read) = tensorboard(folder.path()) else { return };
    assert_eq!(read["texts"]["samples/Say it"][1], json!([4, "Say it\n\n---\n\nit 4"]));
    assert_eq!(read["scalars"]["loss"].as_array().map(Vec::len), Some(1));
}
