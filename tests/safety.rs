//! What a run leaves behind when it does not end well, and what it leaves alone.

mod common;

use engraft::Error;
use engraft::error::Failure;
use engraft::train::finetune::Finetune;
use engraft::train::metrics::Event;
use engraft::train::options::{FinetuneOptions, Precision, TuneMode};
use engraft::train::schedule::ScheduleKind;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ADAPTER: &str = "adapter_model.safetensors";

/// Rows of numbers; row `bad` has the character whose embedding [`poisoned`] spoils.
fn rows(folder: &Path, count: usize, bad: Option<usize>) -> PathBuf {
    let path = folder.join("data.json");
    let rows: Vec<Value> = (0..count)
        .map(|i| {
            let mark = if bad == Some(i) { "~" } else { "" };
            json!({ "instruction": format!("say {i}{mark}"), "output": format!("{} and {i}", i * 7) })
        })
        .collect();
    fs::write(&path, serde_json::to_vec(&rows).unwrap()).unwrap();
    path
}

fn options(folder: &Path, out: &str) -> FinetuneOptions {
    let mut options = FinetuneOptions {
        model_dir: common::fixtures().join("models/llama"),
        out_dir: folder.join(out),
        precision: Precision::F32True,
        batch_size: 4,
        max_steps: Some(6),
        learning_rate: 1e-3,
        tune: TuneMode::Off,
        ..FinetuneOptions::default()
    };
    options.data.json_path = rows(folder, 40, None);
    options
}

/// A copy of the untied model in which the embedding of every token with a `~` is not finite. The head has rows of its own, so rows
/// without that character know nothing of it.
fn poisoned(folder: &Path) -> PathBuf {
    let (from, to) = (common::fixtures().join("models/llama_untied"), folder.join("poisoned"));
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap()).filter(|e| e.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let read = |name: &str| fs::read(to.join(name)).unwrap();
    let tokenizer: Value = serde_json::from_slice(&read("tokenizer.json")).unwrap();
    let tokens = tokenizer["model"]["vocab"].as_object().unwrap().iter();
    let ids: Vec<usize> =
        tokens.filter(|(t, _)| t.contains('~')).map(|(_, id)| id.as_u64().unwrap() as usize).collect();
    let mut bytes = read("model.safetensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let embedding = &header["model.embed_tokens.weight"];
    let (start, width) =
        (embedding["data_offsets"][0].as_u64().unwrap(), embedding["shape"][1].as_u64().unwrap());
    let row = width as usize * if embedding["dtype"] == "F32" { 4 } else { 2 };
    for id in ids {
        let at = 8 + length + start as usize + id * row;
        bytes[at..at + row].fill(0xff);
    }
    fs::write(to.join("model.safetensors"), bytes).unwrap();
    to
}

fn folders(out: &Path, prefix: &str) -> Vec<String> {
    let names =
        fs::read_dir(out).into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    names
}

fn notes(options: FinetuneOptions) -> (Result<(), Error>, Vec<String>) {
    let mut notes = Vec::new();
    let run = Finetune::new(options).on_event(|event| {
        if let Event::Note(note) = event {
            notes.push(note.clone());
        }
    });
    let result = run.run().map(|_| ());
    (result, notes)
}

/// One step has gradients that are not finite, the next one would not: neither has changed what is saved.
#[test]
fn what_was_good_before_bad_gradients_is_saved() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut bad = options(folder.path(), "bad");
    bad.model_dir = poisoned(folder.path());
    (bad.batch_size, bad.micro_batch_size, bad.max_steps) = (1, 1, Some(9));
    (bad.lr_schedule, bad.lr_warmup_steps, bad.lora.dropout) = (ScheduleKind::Constant, Some(0), 0.1);
    (bad.data.shuffle, bad.data.val_split_fraction) = (false, 0.0);
    bad.data.json_path = rows(folder.path(), 9, Some(5));
    let error = Finetune::new(bad.clone()).run().unwrap_err();
    let Error::Diverged { step: 6, saved: Some(saved), .. } = &error else { panic!("{error}") };
    assert_eq!((saved, error.failure()), (&bad.out_dir.join("step-000005"), Failure::Run));
    let said = error.to_string();
    let way = format!("--init_adapter {}", saved.display());
    assert!(said.starts_with("step 6: gradients are not finite") && said.contains(&way), "{said}");

    let good = FinetuneOptions {
        out_dir: folder.path().join("good"),
        save_interval: Some(5),
        max_steps: Some(5),
        ..bad.clone()
    };
    Finetune::new(good.clone()).run().unwrap();
    for name in [ADAPTER, "training_state.safetensors"] {
        let [ours, expected] =
            [&bad, &good].map(|o| fs::read(o.out_dir.join("step-000005").join(name)).unwrap());
        assert!(ours == expected, "{name}: not what it was after step 5");
    }
    let counters = |o: &FinetuneOptions| -> Vec<Value> {
        let file = o.out_dir.join("step-000005/training_state.json");
        let state: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        ["step", "applied", "micro_batches", "tokens"].map(|key| state[key].clone()).to_vec()
    };
    assert_eq!(counters(&bad), counters(&good));
    // it goes on to the same step, and another run may begin with it
    let again = FinetuneOptions { resume: Some("auto".into()), ..bad.clone() };
    let error = Finetune::new(again).run().unwrap_err();
    assert!(matches!(&error, Error::Diverged { step: 6, saved: Some(_), .. }), "{error}");
    let next = FinetuneOptions { init_adapter: Some(saved.clone()), ..options(folder.path(), "next") };
    let next = FinetuneOptions { model_dir: bad.model_dir, ..next };
    Finetune::new(next).run().unwrap();
}

/// In f16 an overflow changes the loss scale when the next step's gradients are already under way: they are made again, and the run
/// has the bits of one that waits for every step.
#[test]
fn an_overflow_found_late_changes_no_bit() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |out: &str, save_interval| {
        let mut o = options(folder.path(), out);
        o.model_dir = folder.path().join("poisoned");
        (o.precision, o.max_steps, o.save_interval) = (Precision::F16True, Some(8), save_interval);
        (o.batch_size, o.micro_batch_size, o.lora.dropout) = (2, 1, 0.1);
        (o.data.shuffle, o.data.val_split_fraction) = (false, 0.0);
        o.data.json_path = rows(folder.path(), 16, Some(7));
        let mut seen = Vec::new();
        let run = Finetune::new(o.clone()).on_event(|event| match event {
            Event::Step(record) => {
                seen.push((record.step, record.loss.to_bits(), record.grad_norm.to_bits()))
            }
            Event::Overflow { step, scale } => seen.push((*step, u64::MAX, u64::from(scale.to_bits()))),
            _ => {}
        });
        run.run().unwrap();
        (seen, fs::read(o.out_dir.join(ADAPTER)).unwrap())
    };
    poisoned(folder.path());
    // a save waits for the step before it
    let (waits, goes_on) = (run("waits", Some(1)), run("goes on", None));
    let overflows: Vec<_> = waits.0.iter().filter(|(_, loss, _)| *loss == u64::MAX).collect();
    assert_eq!(overflows, [&(4, u64::MAX, u64::from(32768f32.to_bits()))]);
    assert_eq!(waits.0.len(), 9);
    assert_eq!(waits.0, goes_on.0);
    assert!(waits.1 == goes_on.1, "the adapters differ");
}

/// A rate that breaks the parameters in one step: what it left is not offered as good.
#[test]
fn what_a_step_has_broken_is_not_saved_as_good() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut bad = options(folder.path(), "bad");
    (bad.learning_rate, bad.min_lr) = (1e38, 1e38);
    (bad.lr_schedule, bad.lr_warmup_steps) = (ScheduleKind::Constant, Some(0));
    let error = Finetune::new(bad.clone()).run().unwrap_err();
    assert!(matches!(&error, Error::Diverged { step: 2, saved: None, .. }), "{error}");
    assert!(!error.to_string().contains("--init_adapter"), "{error}");
    assert!(folders(&bad.out_dir, "step-").is_empty());

    // where no further step finds out, the validation does
    let last = FinetuneOptions { max_steps: Some(1), out_dir: folder.path().join("last"), ..bad };
    let (result, notes) = notes(last);
    result.unwrap();
    assert!(notes.iter().any(|note| note.contains("loss of step 1 is no number")), "{notes:?}");
}

/// In f16 the end comes after a row of steps that changed nothing: what the last good one made is still good, and saved.
#[test]
fn what_was_good_before_many_overflows_is_saved() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut bad = options(folder.path(), "bad");
    bad.model_dir = poisoned(folder.path());
    bad.data.json_path = folder.path().join("mostly_bad.json");
    let row = |i: usize| json!({ "instruction": if i < 3 { "say it" } else { "say it~" }, "output": "it" });
    fs::write(&bad.data.json_path, json!((0..30).map(row).collect::<Vec<_>>()).to_string()).unwrap();
    (bad.precision, bad.max_steps) = (Precision::F16True, None);
    (bad.batch_size, bad.micro_batch_size) = (1, 1);
    (bad.data.shuffle, bad.data.val_split_fraction) = (false, 0.0);
    let error = Finetune::new(bad.clone()).run().unwrap_err();
    // three good steps, and one for each power of two from 65,536 to 1
    let Error::Diverged { step: 20, saved: Some(saved), .. } = &error else { panic!("{error}") };
    let state: Value = serde_json::from_slice(&fs::read(saved.join("training_state.json")).unwrap()).unwrap();
    assert_eq!((&state["step"], &state["applied"]), (&json!(19), &json!(3)));
}

/// A first step that is bad leaves nothing, and does not say that it did.
#[test]
fn before_the_first_good_step_there_is_nothing_to_save() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut bad = options(folder.path(), "bad");
    bad.model_dir = poisoned(folder.path());
    (bad.data.shuffle, bad.data.val_split_fraction) = (false, 0.0);
    bad.data.json_path = rows(folder.path(), 9, Some(0));
    let error = Finetune::new(bad.clone()).run().unwrap_err();
    assert!(matches!(&error, Error::Diverged { step: 1, saved: None, .. }), "{error}");
    assert!(!error.to_string().contains("saved") && folders(&bad.out_dir, "step-").is_empty(), "{error}");
}

/// Only the newest is there at any time, none at the end, and the result has the same bits.
#[test]
fn saves_by_time_come_and_go() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let plain = FinetuneOptions { autosave: None, ..options(folder.path(), "plain") };
    Finetune::new(plain.clone()).run().unwrap();
    let timed = FinetuneOptions {
        autosave: Some(1e-3),
        keep_best: true,
        eval_interval: Some(2),
        ..options(folder.path(), "timed")
    };
    let (mut seen, mut took, mut stepped) = (0, Duration::ZERO, Instant::now());
    let out = timed.out_dir.clone();
    let run = Finetune::new(timed.clone()).on_event(|event| match event {
        Event::Saved { path, .. } if path.to_string_lossy().contains("step-") => {
            (seen, took) = (seen + 1, stepped.elapsed());
            assert_eq!(folders(&out, "step-").len(), 1, "the newest alone");
        }
        Event::Step(_) => {
            // so long that the next save takes a twentieth of the time at most
            std::thread::sleep(took * 21 + Duration::from_millis(2));
            stepped = Instant::now();
        }
        _ => {}
    });
    run.run().unwrap();
    assert!(seen >= 2, "{seen} saves");
    assert!(folders(&timed.out_dir, "step-").is_empty());
    assert_eq!(folders(&timed.out_dir, "best-").len(), 1);
    assert!(folders(&plain.out_dir, "step-").is_empty());

    // what was asked for stays: a run that is stopped
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    let stopped = FinetuneOptions { autosave: Some(1e-3), ..options(folder.path(), "stopped") };
    let run = Finetune::new(stopped.clone()).stop_when(stop).on_event(move |event| {
        if matches!(event, Event::Step(record) if record.step == 3) {
            set.store(true, Ordering::Relaxed);
        }
    });
    let Error::Stopped { step, .. } = run.run().unwrap_err() else { panic!("not stopped") };
    assert_eq!(folders(&stopped.out_dir, "step-"), [format!("step-{step:06}")]);
    let resumed = FinetuneOptions { resume: Some("auto".into()), ..stopped.clone() };
    Finetune::new(resumed).run().unwrap();
    assert_eq!(folders(&stopped.out_dir, "step-"), [format!("step-{step:06}")]);
    let [expected, found] = [&plain, &stopped].map(|o| fs::read(o.out_dir.join(ADAPTER)).unwrap());
    assert!(expected == found);
}

/// With default options but for the time, `kill -9` costs what came after the last save.
#[cfg(unix)]
#[test]
fn a_killed_run_without_a_save_interval_goes_on() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), 40, None);
    let command = |out: &str, options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
        command.arg("finetune").arg(common::fixtures().join("models/llama")).arg("--data").arg(&data);
        command.args(["--tune", "off", "--epochs", "60", "--max_steps", "150", "--lora_dropout", "0.1"]);
        command.args(["--out_dir", folder.path().join(out).to_str().unwrap()]).args(options);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    assert!(command("whole", &["--autosave", "0"]).status().unwrap().success());
    let out = folder.path().join("parts");
    let mut child = command("parts", &["--autosave", "0.05"]).stderr(Stdio::null()).spawn().unwrap();
    while folders(&out, "step-").is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!out.join(ADAPTER).exists(), "it ended before it was killed");
    let said = command("parts", &["--autosave", "0.05", "--resume"]).output().unwrap();
    let (ok, said) = (said.status.success(), String::from_utf8_lossy(&said.stderr).into_owned());
    assert!(ok && said.contains("going on after step"), "{said}");
    assert!(folders(&out, "step-").is_empty() && folders(&out, ".step-").is_empty());
    let [expected, found] =
        ["whole", "parts"].map(|out| fs::read(folder.path().join(out).join(ADAPTER)).unwrap());
    assert!(expected == found);
}

/// A disk that takes the adapter, but not the state beside it: each failed save is said, and the result is there.
#[cfg(unix)]
#[test]
fn a_step_that_cannot_be_saved_is_no_end() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = rows(folder.path(), 40, None);
    let run = |kib: usize, out: &str| {
        let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", kib * 2);
        let mut command = Command::new("sh");
        command.args(["-c", &limit, env!("CARGO_BIN_EXE_engraft"), "finetune"]);
        command.arg(common::fixtures().join("models/llama")).arg("--data").arg(&data);
        command.args(["--tune", "off", "--max_steps", "4", "--save_interval", "2", "--lora_rank", "32"]);
        let output = command.arg("--out_dir").arg(folder.path().join(out)).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(1 << 20, "whole");
    assert_eq!(code, Some(0), "{said}");
    let adapter = fs::metadata(folder.path().join("whole").join(ADAPTER)).unwrap().len();
    let (code, said) = run(adapter as usize / 512, "out");
    assert_eq!(code, Some(0), "{said}");
    for step in [2, 4] {
        assert!(said.contains(&format!("the run goes on, but step {step} is not saved")), "{said}");
    }
    let out = folder.path().join("out");
    assert!(folders(&out, "step-").is_empty() && folders(&out, ".").iter().all(|n| n == ".engraft.lock"));
    let [expected, found] =
        ["whole", "out"].map(|out| fs::read(folder.path().join(out).join(ADAPTER)).unwrap());
    assert!(expected == found);
    // nor is there room for the result
    let (code, said) = run(adapter as usize / 2048, "none");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the result could not be saved") && said.contains("free space"), "{said}");
}

#[test]
fn an_earlier_run_is_kept_aside_and_never_mixed_with_the_next() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let first = options(folder.path(), "out");
    let out = &first.out_dir;
    let (result, said) = notes(FinetuneOptions { resume: Some("auto".into()), ..first.clone() });
    assert!(
        result.is_ok() && said.iter().any(|n| n.contains("nothing is saved in") && n.contains("anew")),
        "{said:?}"
    );
    let adapter = fs::read(out.join(ADAPTER)).unwrap();
    let lines = fs::read(out.join("metrics.jsonl")).unwrap();
    let names = |folder: &Path| {
        let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    };
    let written = names(out);
    assert!(written.iter().any(|name| name == "prompt_style.json"), "{written:?}");

    // the second one is stopped before it has anything
    let second = FinetuneOptions { seed: 7, initial_validation: true, ..first.clone() };
    let stop = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&stop);
    let run = Finetune::new(second.clone()).stop_when(stop).on_event(move |event| {
        if matches!(event, Event::Started(_)) {
            set.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(run.run().unwrap_err().failure(), Failure::Stopped);
    assert!(!out.join(ADAPTER).exists() && !out.join("adapter_config.json").exists());
    for again in [second.clone(), FinetuneOptions { initial_validation: false, ..second }] {
        let previous = out.join("previous");
        assert_eq!(names(&previous), written, "all of it");
        assert!(fs::read(previous.join(ADAPTER)).unwrap() == adapter);
        assert!(fs::read(previous.join("metrics.jsonl")).unwrap() == lines);
        let settings: Value =
            serde_json::from_slice(&fs::read(previous.join("hyperparameters.json")).unwrap()).unwrap();
        assert_eq!(settings["seed"], 1337);
        if !again.initial_validation {
            let (result, said) = notes(again);
            assert!(
                result.is_ok() && said.iter().any(|n| n.contains("a run that saved nothing")),
                "{said:?}"
            );
            assert!(fs::read(out.join(ADAPTER)).unwrap() != adapter, "its own");
        }
    }
}

#[test]
fn a_folder_takes_one_run_at_a_time() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let first = options(folder.path(), "out");
    let second = FinetuneOptions { seed: 7, ..first.clone() };
    let mut refused = None;
    let run = Finetune::new(first.clone()).on_event(|event| {
        if matches!(event, Event::Step(record) if record.step == 2) {
            refused = Some(Finetune::new(second.clone()).run().unwrap_err());
        }
    });
    run.run().unwrap();
    let error = refused.unwrap();
    let said = error.to_string();
    assert_eq!(error.failure(), Failure::Input, "{said}");
    assert!(said.contains(&first.out_dir.display().to_string()) && said.contains(".engraft.lock"), "{said}");
    assert!(!first.out_dir.join("previous").exists());
    Finetune::new(second).run().unwrap();
}
