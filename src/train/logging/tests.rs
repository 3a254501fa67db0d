use super::*;
use crate::train::metrics::{EvalRecord, StepRecord};

const ALL: [LoggerKind; 3] = [LoggerKind::Jsonl, LoggerKind::Csv, LoggerKind::TensorBoard];

fn record(step: usize, loss: f64) -> StepRecord {
    StepRecord {
        step,
        epoch: 0.5,
        loss,
        grad_norm: 1.25,
        learning_rate: 3e-4,
        tokens: 512,
        label_tokens: 100,
        tokens_per_s: 900.0,
        elapsed_s: 1.5,
    }
}

fn lines(out_dir: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(out_dir.join(METRICS_FILE)).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn lines_are_whole_as_soon_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let out_dir = folder.path().join("a/b");
    let mut log = RunLog::create(&out_dir, &[]).unwrap();
    log.write(&record(1, 2.5)).unwrap();
    log.write(&EvalRecord::new(1, 0.0)).unwrap();
    let lines = lines(&out_dir);
    let keys: Vec<&String> = lines[0].as_object().unwrap().keys().collect();
    let expected = [
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
    assert_eq!(keys, expected);
    assert_eq!(lines[0]["learning_rate"], 3e-4);
    assert_eq!(lines[1], serde_json::json!({ "step": 1, "val_loss": 0.0, "val_ppl": 1.0 }));
}

#[test]
fn numbers_that_are_not_finite_become_null() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = RunLog::create(folder.path(), &ALL).unwrap();
    log.write(&record(1, f64::NAN)).unwrap();
    log.write(&EvalRecord::new(1, 1e6)).unwrap();
    let lines = lines(folder.path());
    assert!(lines[0]["loss"].is_null());
    assert!(lines[1]["val_ppl"].is_null(), "exp(1e6) is infinite");
    let csv = fs::read_to_string(folder.path().join(CSV_FILE)).unwrap();
    assert!(csv.ends_with("\n1,,,1000000.0,,,,,,,\n"), "{csv}");
}

#[test]
fn a_new_run_starts_empty_and_leaves_no_log_of_the_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("events.out.tfevents.1.other");
    fs::write(&foreign, "x").unwrap();
    RunLog::create(folder.path(), &ALL).unwrap().write(&record(1, 1.0)).unwrap();
    assert_eq!(tensorboard::files(folder.path()).len(), 1);
    RunLog::create(folder.path(), &[]).unwrap();
    assert_eq!(lines(folder.path()), [] as [serde_json::Value; 0]);
    assert!(!folder.path().join(CSV_FILE).exists() && tensorboard::files(folder.path()).is_empty());
    assert!(foreign.exists(), "what others wrote stays");
}

#[test]
fn a_resumed_run_writes_the_files_of_one_that_never_stopped() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut log = RunLog::create(whole.path(), &ALL).unwrap();
    (1..=6).for_each(|step| log.write(&record(step, 1.0 / step as f64)).unwrap());
    // killed in the middle of the line of step 5
    let mut log = RunLog::create(parts.path(), &ALL).unwrap();
    (1..=4).for_each(|step| log.write(&record(step, 1.0 / step as f64)).unwrap());
    let path = parts.path().join(METRICS_FILE);
    let text = fs::read_to_string(&path).unwrap() + "{\"step\":5,\"lo";
    fs::write(&path, text).unwrap();
    drop(log);
    // the loggers go on without being named
    let (mut log, losses) = RunLog::resume(parts.path(), None, &[], |line| line.step() <= Some(3)).unwrap();
    assert_eq!(losses, [1.0, 0.5, 1.0 / 3.0]);
    (4..=6).for_each(|step| log.write(&record(step, 1.0 / step as f64)).unwrap());
    for name in [METRICS_FILE, CSV_FILE] {
        let read = |folder: &Path| fs::read_to_string(folder.join(name)).unwrap();
        assert_eq!(read(parts.path()), read(whole.path()), "{name}");
    }
    let files = [tensorboard::files(whole.path()), tensorboard::files(parts.path())];
    assert_eq!(files.each_ref().map(Vec::len), [1, 1], "the earlier event file is gone");
    let lengths = files.map(|files| fs::metadata(&files[0]).unwrap().len());
    assert_eq!(lengths[0], lengths[1]);
}

#[test]
fn a_logger_that_is_added_when_a_run_goes_on_has_all_steps() {
    let folder = tempfile::tempdir().unwrap();
    RunLog::create(folder.path(), &[]).unwrap().write(&record(1, 1.0)).unwrap();
    let (mut log, _) =
        RunLog::resume(folder.path(), None, &[LoggerKind::Csv], |line| line.step() <= Some(1)).unwrap();
    log.write(&record(2, 0.5)).unwrap();
    let csv = fs::read_to_string(folder.path().join(CSV_FILE)).unwrap();
    assert_eq!(csv.lines().count(), 3, "{csv}");
}

#[test]
fn an_error_names_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let error = RunLog::create(&blocked, &[]).err().unwrap().to_string();
    assert!(error.contains("metrics.jsonl") && error.contains("--out_dir"), "{error}");
}
