//! Going on with a run that was stopped or killed: the same bits as the run that was not.

mod common;

use engraft::Error;
use engraft::error::Failure;
use engraft::models::ModelConfig;
use engraft::nn::PlainLayers;
use engraft::plan::Bindings;
use engraft::stop::StopFlag;
use engraft::train::finetune::{Finetune, FinetuneReport};
use engraft::train::metrics::{Event, ValidationProgress};
use engraft::train::options::{FinetuneOptions, Precision, TuneMode};
use engraft::train::setup::network_of;
use engraft::train::weights::{WeightError, WeightSource};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const STEPS: usize = 12;

fn data(folder: &Path) -> PathBuf {
    let path = folder.join("data.json");
    let rows: Vec<Value> = (0..40)
        .map(|i| json!({ "instruction": format!("say {i}"), "input": "", "output": format!("{} and {}", i * 7, i) }))
        .collect();
    fs::write(&path, serde_json::to_vec(&rows).unwrap()).unwrap();
    path
}

fn options(folder: &Path, out: &str, precision: Precision) -> FinetuneOptions {
    let mut options = FinetuneOptions {
        model_dir: common::fixtures().join("models/llama"),
        out_dir: folder.join(out),
        precision,
        batch_size: 4,
        micro_batch_size: 2,
        max_steps: Some(STEPS),
        epochs: 3,
        eval_interval: Some(5),
        save_interval: Some(3),
        learning_rate: 1e-3,
        tune: TuneMode::Off,
        ..FinetuneOptions::default()
    };
    options.data.json_path = data(folder);
    options.lora.dropout = 0.1;
    options
}

/// The final adapter and, per step or evaluation, what does not depend on the clock.
fn result(out: &Path) -> (Vec<u8>, Vec<Value>) {
    let (adapter, records) = logged(out);
    (adapter.unwrap(), records)
}

/// As [`result`], where the adapter may be missing.
fn logged(out: &Path) -> (Option<Vec<u8>>, Vec<Value>) {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        ["tokens_per_s", "elapsed_s"].iter().for_each(|key| {
            record.as_object_mut().unwrap().remove(*key);
        });
        record
    });
    (fs::read(out.join("adapter_model.safetensors")).ok(), records.collect())
}

/// A run that is asked to stop at the first event for which `when` holds.
fn stopped_when(
    options: FinetuneOptions,
    mut when: impl FnMut(&Event) -> bool,
) -> Result<FinetuneReport, Error> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let run = Finetune::new(options).stop_when(flag).on_event(move |event| {
        if when(event) {
            set.store(true, Ordering::Relaxed);
        }
    });
    run.run()
}

fn hidden(out: &Path) -> Vec<String> {
    let names = fs::read_dir(out).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.') && name != ".engraft.lock").collect()
}

#[test]
fn a_stopped_run_goes_on_with_the_same_bits() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for precision in [Precision::F32True, Precision::F16Mixed] {
        let whole = options(folder.path(), &format!("whole-{precision}"), precision);
        let report = Finetune::new(whole.clone()).run().unwrap();
        let mut parts = options(folder.path(), &format!("parts-{precision}"), precision);
        parts.resume = Some("auto".into());
        // stopped again and again, between what is saved anyway and after an evaluation
        for stop in [1, 4, 5, 9] {
            let flag = Arc::new(AtomicBool::new(false));
            let set = Arc::clone(&flag);
            let run = Finetune::new(parts.clone()).stop_when(Arc::clone(&flag)).on_event(move |event| {
                if matches!(event, Event::Step(record) if record.step >= stop) {
                    set.store(true, Ordering::Relaxed);
                }
            });
            let error = run.run().unwrap_err();
            assert_eq!(error.failure(), Failure::Stopped, "{error}");
            let Error::Stopped { step, folder, .. } = &error else { panic!("{error}") };
            assert!(*step > stop && folder.is_dir() && error.to_string().contains("--resume"), "{error}");
        }
        let resumed = Finetune::new(parts.clone()).run().unwrap();
        assert!(result(&whole.out_dir) == result(&parts.out_dir), "{precision}");
        assert_eq!((report.losses, report.tokens), (resumed.losses, resumed.tokens));
        assert!(hidden(&parts.out_dir).is_empty());
        // from a step that is named, and once more when all is done
        parts.resume = Some(parts.out_dir.join("step-000006"));
        Finetune::new(parts.clone()).run().unwrap();
        assert!(result(&whole.out_dir) == result(&parts.out_dir), "{precision}: from step 6");
        parts.resume = Some("auto".into());
        fs::remove_file(parts.out_dir.join("adapter_model.safetensors")).unwrap();
        let again = Finetune::new(parts.clone()).run().unwrap();
        assert!(result(&whole.out_dir) == result(&parts.out_dir), "{precision}: after the end");
        assert_eq!(again.val_loss, report.val_loss);
        // into another folder, from the middle and after the end
        for step in [6, STEPS] {
            let mut moved = options(folder.path(), &format!("moved-{step}-{precision}"), precision);
            moved.resume = Some(parts.out_dir.join(format!("step-{step:06}")));
            Finetune::new(moved.clone()).run().unwrap();
            assert!(result(&whole.out_dir) == result(&moved.out_dir), "{precision}: moved at {step}");
        }
    }
}

/// A run that begins anew where another one was sets that one's steps aside, and never takes them for its own.
/// Kernels that were measured in between, or the want of them, change no bit: those that the run began with are in its state.
#[test]
fn a_run_goes_on_with_the_kernels_that_it_began_with() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut run = options(folder.path(), "out", Precision::F32True);
    let error = stopped_when(run.clone(), |event| matches!(event, Event::Step(record) if record.step >= 2));
    let Error::Stopped { folder: step, .. } = error.unwrap_err() else { panic!("not stopped") };
    let state = |step: &Path| -> Value {
        serde_json::from_slice(&fs::read(step.join("training_state.json")).unwrap()).unwrap()
    };
    let mut saved = state(&step);
    let device = saved["kernels"]["device"].clone();
    assert!(device.as_str().unwrap().contains(" | kernels "), "{device}");
    assert_eq!(saved["kernels"]["variants"], json!({}));
    let measured = json!({ "matmul f32·f32 -> f32 64x64x64x0": "tiled 64x64 per=8x4 depth=16 split=1" });
    for (named, kept) in [(device, measured.clone()), (json!("another device"), json!({}))] {
        saved["kernels"] = json!({ "device": named, "variants": measured, "gflops": 0.0 });
        fs::write(step.join("training_state.json"), saved.to_string()).unwrap();
        run.resume = Some(step.clone());
        run.out_dir = folder.path().join(format!("on-{}", kept.as_object().unwrap().len()));
        Finetune::new(run.clone()).run().unwrap();
        let last = state(&run.out_dir.join(format!("step-{STEPS:06}")));
        assert_eq!(last["kernels"]["variants"], kept, "{named}");
    }
}

#[test]
fn steps_of_an_earlier_run_are_not_gone_on_from() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let first = options(folder.path(), "out", Precision::F32True);
    Finetune::new(first.clone()).run().unwrap();
    let second = FinetuneOptions { learning_rate: 2e-3, ..first.clone() };
    let expected = FinetuneOptions { out_dir: folder.path().join("alone"), ..second.clone() };
    Finetune::new(expected.clone()).run().unwrap();
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let run = Finetune::new(second.clone()).stop_when(flag).on_event(move |event| {
        if matches!(event, Event::Step(record) if record.step == 4) {
            set.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(run.run().unwrap_err().failure(), Failure::Stopped);
    assert!(second.out_dir.join("previous/step-000012").is_dir(), "the first run's");
    assert!(!second.out_dir.join("step-000012").exists());
    let resumed = FinetuneOptions { resume: Some("auto".into()), ..second };
    Finetune::new(resumed.clone()).run().unwrap();
    assert!(result(&expected.out_dir) == result(&resumed.out_dir));
}

#[test]
fn a_run_keeps_the_steps_it_is_told_to() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), "out", Precision::F32True);
    options.keep_last = Some(2);
    Finetune::new(options.clone()).run().unwrap();
    let mut names: Vec<String> = fs::read_dir(&options.out_dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("step"))
        .collect();
    names.sort();
    assert_eq!(names, ["step-000009", "step-000012"]);
}

/// What was the best once goes with the last step that would go on with it.
#[test]
fn an_outdone_best_is_removed() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), "out", Precision::F32True);
    (options.eval_interval, options.keep_best) = (Some(3), true);
    let bests = |options: &FinetuneOptions| {
        let names =
            fs::read_dir(&options.out_dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("best-")).count()
    };
    Finetune::new(options.clone()).run().unwrap();
    assert!(bests(&options) > 1, "each step may go on with its own: {}", bests(&options));
    (options.keep_last, options.out_dir) = (Some(1), folder.path().join("last"));
    Finetune::new(options.clone()).run().unwrap();
    assert_eq!(bests(&options), 1);
}

/// A newest step that is damaged names the one before it.
#[test]
fn a_damaged_step_says_which_to_take() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), "out", Precision::F32True);
    options.max_steps = Some(6);
    Finetune::new(options.clone()).run().unwrap();
    // as if it had been stopped after its last step
    fs::remove_file(options.out_dir.join("finished.json")).unwrap();
    options.resume = Some("auto".into());
    for (step, way) in [(6, "--resume"), (3, "no earlier step is saved")] {
        let state = options.out_dir.join(format!("step-{step:06}/training_state.safetensors"));
        let bytes = fs::read(&state).unwrap();
        fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
        let resume = if step == 6 { "auto".into() } else { options.out_dir.join("step-000003") };
        let error =
            Finetune::new(FinetuneOptions { resume: Some(resume), ..options.clone() }).run().unwrap_err();
        let said = error.to_string();
        assert_eq!(error.failure(), Failure::Input, "{said}");
        assert!(said.contains(&format!("step-{step:06}")) && said.contains("truncated"), "{said}");
        assert!(said.contains(way) && said.contains("step-000003") && !said.contains("download"), "{said}");
    }
}

/// Stops at the time given, and goes on to the same bits where there is more of it.
#[test]
fn a_run_ends_when_its_time_is_over() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let whole = options(folder.path(), "whole", Precision::F32True);
    Finetune::new(whole.clone()).run().unwrap();
    let mut short = options(folder.path(), "short", Precision::F32True);
    (short.max_time, short.eval_interval) = (Some(1e-3), Some(5));
    let mut notes = Vec::new();
    let run = Finetune::new(short.clone()).on_event(|event| {
        if let Event::Note(note) = event {
            notes.push(note.clone());
        }
    });
    let report = run.run().unwrap();
    assert!(report.steps < 3 && report.val_loss.is_some(), "{report:?}");
    assert!(notes.iter().any(|n| n.contains("--max_time is over") && n.contains("--resume")), "{notes:?}");
    assert!(short.out_dir.join("adapter_model.safetensors").is_file());
    short.max_time = None;
    short.resume = Some("auto".into());
    Finetune::new(short.clone()).run().unwrap();
    assert_eq!(result(&whole.out_dir).0, result(&short.out_dir).0);
}

/// Stopped within the first validation, one of an interval, the texts after one, and the last: each is made when the run goes on,
/// and none that was cut counts as a result.
#[test]
fn a_validation_that_is_cut_is_made_again() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = |out: &str| {
        let mut options = options(folder.path(), out, Precision::F32True);
        (options.initial_validation, options.keep_best, options.eval_max_new_tokens) = (true, true, Some(3));
        options.early_stopping_patience = Some(9);
        options.data.val_split_fraction = 0.2;
        options.resume = Some("auto".into());
        options
    };
    let (whole, parts) = (options("whole"), options("parts"));
    let report = Finetune::new(whole.clone()).run().unwrap();
    let lines = |out: &Path, key: &str, step: usize| {
        let (_, records) = logged(out);
        records.iter().filter(|r| r["step"] == step && r.get(key).is_some()).count()
    };
    let state = |step: usize| -> Value {
        let file = parts.out_dir.join(format!("step-{step:06}/training_state.json"));
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    };
    let within = |at: usize, samples: usize| move |event: &Event| matches!(event, Event::Validating(ValidationProgress { step, done, .. }) if (*step, *done) == (at, samples));

    let error = stopped_when(parts.clone(), within(0, 2)).unwrap_err();
    assert!(matches!(error, Error::NotBegun { from: None }), "{error}");
    // twice in the same one, and once more when its last sample is done: the texts are left
    for (step, samples, left) in
        [(5, 2, "evaluation"), (5, 6, "evaluation"), (5, 8, "samples"), (STEPS, 4, "evaluation")]
    {
        let error = stopped_when(parts.clone(), within(step, samples)).unwrap_err();
        let Error::Stopped { step: stopped, unfinished: true, .. } = &error else { panic!("{error}") };
        assert_eq!(*stopped, step);
        assert!(error.to_string().contains("its validation unfinished"), "{error}");
        assert_eq!(state(step)["unfinished"], left);
        let (evaluated, written) =
            (lines(&parts.out_dir, "val_loss", step), lines(&parts.out_dir, "prompt", step));
        assert_eq!(
            (evaluated, written),
            (usize::from(left == "samples"), 0),
            "step {step}, {samples} samples"
        );
        let best = state(step)["watch"]["best"][0].as_u64().unwrap() as usize;
        assert_eq!(best == step, left == "samples", "a part of a validation is no result");
    }
    let resumed = Finetune::new(parts.clone()).run().unwrap();
    assert_eq!((report.steps, report.val_loss), (resumed.steps, resumed.val_loss));
    assert!(result(&whole.out_dir) == result(&parts.out_dir));
    for step in [5, STEPS] {
        assert_eq!((lines(&parts.out_dir, "val_loss", step), lines(&parts.out_dir, "prompt", step)), (1, 1));
        assert_eq!(state(step)["unfinished"], Value::Null, "what was saved is finished too");
    }
    let whole_state = fs::read(whole.out_dir.join("step-000012/training_state.json")).unwrap();
    let whole_state: Value = serde_json::from_slice(&whole_state).unwrap();
    assert_eq!(state(STEPS)["watch"], whole_state["watch"]);
    // from the step whose validation was cut, after all is done
    let again = FinetuneOptions { resume: Some(parts.out_dir.join("step-000005")), ..parts.clone() };
    Finetune::new(again).run().unwrap();
    assert!(result(&whole.out_dir) == result(&parts.out_dir));
}

/// A run whose time is over is asked to stop in the validation of its end: with more time that one is not due.
#[test]
fn the_validation_at_the_end_of_the_time_may_be_cut() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = |out: &str| {
        let mut options = options(folder.path(), out, Precision::F32True);
        (options.eval_interval, options.keep_best) = (Some(5), true);
        options
    };
    let whole = options("whole");
    Finetune::new(whole.clone()).run().unwrap();
    let mut parts = options("parts");
    parts.max_time = Some(1e-3);
    let error = stopped_when(parts.clone(), |event| matches!(event, Event::Validating(_))).unwrap_err();
    assert!(matches!(error, Error::Stopped { step: 1, unfinished: true, .. }), "{error}");
    // with the same time it is made up for
    let ended = FinetuneOptions { out_dir: folder.path().join("ended"), ..parts.clone() };
    let resume = Some(parts.out_dir.join("step-000001"));
    let report = Finetune::new(FinetuneOptions { resume: resume.clone(), ..ended.clone() }).run().unwrap();
    assert_eq!((report.steps, report.val_loss.is_some()), (1, true));
    assert!(ended.out_dir.join("adapter_model.safetensors").is_file());
    (parts.max_time, parts.resume) = (None, resume);
    Finetune::new(parts.clone()).run().unwrap();
    assert!(result(&whole.out_dir) == result(&parts.out_dir));
}

/// The end of the time asks for a validation that the run would not have made: a better adapter found in it must not take away the
/// one that the run needs when it goes on.
#[test]
fn the_best_before_the_end_of_the_time_stays() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = |out: &str| {
        let mut options = options(folder.path(), out, Precision::F32True);
        (options.eval_interval, options.save_interval, options.keep_best) = (Some(5), None, true);
        options
    };
    let (whole, mut parts) = (options("whole"), options("parts"));
    Finetune::new(whole.clone()).run().unwrap();
    let time = Duration::from_secs(8);
    parts.max_time = Some(time.as_secs_f64());
    let mut begin = Instant::now();
    let run = Finetune::new(parts.clone()).on_event(|event| match event {
        Event::Started(_) => begin = Instant::now(),
        Event::Step(record) if record.step == 6 => std::thread::sleep(time.saturating_sub(begin.elapsed())),
        _ => {}
    });
    let report = run.run().unwrap();
    assert!((6..9).contains(&report.steps), "{report:?}");
    let last = format!("best-{:06}", report.steps);
    for best in ["best-000005", &last] {
        assert!(parts.out_dir.join(best).is_dir(), "{best}");
    }
    (parts.max_time, parts.resume) = (None, Some("auto".into()));
    Finetune::new(parts.clone()).run().unwrap();
    // the line of that validation stays in the log
    assert!(result(&whole.out_dir).0 == result(&parts.out_dir).0);
}

/// Asked to stop before there was a step: it ends soon, and nothing is written, half or whole.
#[test]
fn a_run_that_has_not_begun_leaves_nothing() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), "out", Precision::F32True);
    let error = Finetune::new(options.clone()).stop_when(Arc::new(AtomicBool::new(true))).run().unwrap_err();
    assert_eq!((error.failure(), options.out_dir.exists()), (Failure::Stopped, false), "{error}");
    assert!(error.to_string().contains("before the first step: nothing is saved"), "{error}");

    // in the middle of rows that take long, whose tokens are kept in a file
    let mut many = options.clone();
    many.data.json_path = folder.path().join("many.jsonl");
    many.data.cache = Some(folder.path().join("cache"));
    let row = json!({ "instruction": "say it ".repeat(40), "output": "it ".repeat(40) }).to_string() + "\n";
    fs::write(&many.data.json_path, row.repeat(100_000)).unwrap();
    let flag = Arc::new(AtomicBool::new(false));
    let (set, begin) = (Arc::clone(&flag), Instant::now());
    let cache = folder.path().join("cache");
    let asked = std::thread::spawn(move || {
        let begun = |cache: &Path| fs::read_dir(cache).is_ok_and(|mut entries| entries.next().is_some());
        while !begun(&cache) && begin.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(5));
        }
        set.store(true, Ordering::Relaxed);
        Instant::now()
    });
    let error = Finetune::new(many.clone()).stop_when(flag).run().unwrap_err();
    let late = asked.join().unwrap().elapsed();
    assert!(matches!(error, Error::NotBegun { from: None }), "{error}");
    assert!(late < Duration::from_secs(5), "{late:?}");
    assert_eq!(fs::read_dir(folder.path().join("cache")).unwrap().count(), 0, "no file of tokens is left");
    assert!(!many.out_dir.exists());

    // a run that would go on stays as it was
    Finetune::new(FinetuneOptions { max_steps: Some(3), ..options.clone() }).run().unwrap();
    let before = logged(&options.out_dir);
    let step = options.out_dir.join("step-000003");
    let again = FinetuneOptions { max_steps: Some(3), resume: Some(step), ..options.clone() };
    let error = Finetune::new(again).stop_when(Arc::new(AtomicBool::new(true))).run().unwrap_err();
    let said = error.to_string();
    assert!(said.contains("step-000003 is as it was") && error.failure() == Failure::Stopped, "{said}");
    assert!(before == logged(&options.out_dir));
}

/// The system's request to end, while the program reads rows.
#[cfg(unix)]
#[test]
fn a_signal_before_the_first_step_ends_the_program_soon() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (rows, cache) = (folder.path().join("many.jsonl"), folder.path().join("cache"));
    let row = json!({ "instruction": "say it ".repeat(40), "output": "it ".repeat(40) }).to_string() + "\n";
    fs::write(&rows, row.repeat(100_000)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_engraft"));
    child.arg("finetune").arg(common::fixtures().join("models/llama")).arg("--data.json_path").arg(rows);
    child.arg("--data_cache").arg(&cache).arg("--out_dir").arg(folder.path().join("out"));
    let child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while fs::read_dir(&cache).map_or(0, Iterator::count) == 0 && begin.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("stopping before the first step; once more to stop at once"), "{said}");
    assert!(said.contains("engraft: stopped before the first step: nothing is saved"), "{said}");
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0, "no file of tokens is left");
    assert!(!folder.path().join("out").exists());
}

/// Of weights on their way to the device no further piece is read.
#[test]
fn loading_ends_when_it_is_asked_to() {
    let Some(gpu) = common::gpu() else { return };
    let config = ModelConfig::read(&common::fixtures().join("models/llama")).unwrap();
    let mut options = FinetuneOptions { precision: Precision::F32True, ..FinetuneOptions::default() };
    for offload in [0, 1] {
        options.offload = offload;
        let network = network_of(&config, &options, None, PlainLayers::default(), 32).unwrap();
        let graph = network.evaluation(32, 32).unwrap();
        let source = WeightSource::Random { seed: 1, norms: 1.0 };
        let load = |flag: bool| {
            let stop = StopFlag::from(Arc::new(AtomicBool::new(flag)));
            source.upload_until(&gpu, &graph, &network, &mut Bindings::new(), &stop)
        };
        let error = load(true).unwrap_err();
        assert!(matches!(error, WeightError::Stopped(_)), "{error}");
        assert_eq!(Error::from(error).failure(), Failure::Stopped);
        assert!(load(false).is_ok());
    }
}

/// The evaluation at the end of the time is none of those that patience counts.
#[test]
fn the_end_of_the_time_costs_no_patience() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = |out: &str| {
        let mut options = options(folder.path(), out, Precision::F32True);
        (options.learning_rate, options.lr_warmup_steps) = (0.3, Some(0));
        (options.eval_interval, options.early_stopping_patience) = (Some(4), Some(1));
        options
    };
    let whole = options("whole");
    let report = Finetune::new(whole.clone()).run().unwrap();
    let mut parts = options("parts");
    for _ in 0..STEPS {
        // every part is one step
        (parts.max_time, parts.resume) = (Some(1e-3), Some("auto".into()));
        Finetune::new(parts.clone()).run().unwrap();
        parts.max_time = None;
        // stopped after one more
        let _ = stopped_when(parts.clone(), |event| matches!(event, Event::Started(_)));
    }
    let resumed = Finetune::new(parts.clone()).run().unwrap();
    assert_eq!((report.steps, report.val_loss), (resumed.steps, resumed.val_loss));
    assert_eq!(result(&whole.out_dir).0, result(&parts.out_dir).0);
}

/// Going on from an older step makes the later ones again: none of the old ones is taken afterwards.
#[test]
fn later_steps_are_made_again() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let whole = options(folder.path(), "whole", Precision::F32True);
    Finetune::new(whole.clone()).run().unwrap();
    let expected = result(&whole.out_dir);
    let mut older = whole.clone();
    older.resume = Some(whole.out_dir.join("step-000003"));
    let error = stopped_when(older, |event| matches!(event, Event::Started(_))).unwrap_err();
    assert_eq!(error.failure(), Failure::Stopped);
    assert!(!whole.out_dir.join("step-000012").exists());
    let auto = FinetuneOptions { resume: Some("auto".into()), ..whole.clone() };
    Finetune::new(auto).run().unwrap();
    assert!(expected == result(&whole.out_dir));
}

/// `--resume` may stand in a script: a run that is done stays as it is, whatever of its folders is left.
#[test]
fn a_finished_run_is_left_as_it_is() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = FinetuneOptions {
        resume: Some("auto".into()),
        save_interval: None,
        max_steps: Some(3),
        ..options(folder.path(), "out", Precision::F32True)
    };
    let out = &run.out_dir;
    let first = Finetune::new(run.clone()).run().unwrap();
    let contents = || {
        let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(out)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().is_file())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let (before, mut notes) = (contents(), Vec::new());
    let again = Finetune::new(FinetuneOptions { max_time: Some(1e-3), ..run.clone() }).on_event(|event| {
        let Event::Note(note) = event else { panic!("{event:?}") };
        notes.push(note.clone());
    });
    let report = again.run().unwrap();
    assert!(notes.len() == 1 && notes[0].contains("finished, all 3 of its steps"), "{notes:?}");
    assert_eq!(
        (report.steps, report.tokens, &report.losses, report.val_loss),
        (first.steps, first.tokens, &first.losses, first.val_loss)
    );
    assert!(contents() == before && !out.join("previous").exists(), "something was written");

    // another run is refused here as well
    let other = FinetuneOptions { learning_rate: 2e-3, ..run.clone() };
    let error = Finetune::new(other.clone()).run().unwrap_err();
    assert!(error.to_string().contains("--learning_rate 0.001, now it is 0.002"), "{error}");
    // and without --resume it begins, and is finished in its turn; the first one is kept whole
    Finetune::new(FinetuneOptions { resume: None, ..other.clone() }).run().unwrap();
    assert!(out.join("previous/finished.json").is_file());
    let kept = FinetuneOptions { out_dir: out.join("previous"), ..run.clone() };
    assert_eq!(Finetune::new(kept).run().unwrap().losses, first.losses);

    // a result that somebody has taken away is made again
    fs::remove_file(out.join("adapter_model.safetensors")).unwrap();
    Finetune::new(other).run().unwrap();
    assert!(out.join("adapter_model.safetensors").is_file());
}

/// Ends when the validation loss does not fall any more; the result is what had the lowest, interrupted or not.
#[test]
fn early_stopping_keeps_the_best() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let early = |out: &str| {
        let mut options = options(folder.path(), out, Precision::F32True);
        // far too fast, so that the loss rises soon
        (options.learning_rate, options.lr_warmup_steps) = (0.3, Some(0));
        (options.eval_interval, options.early_stopping_patience) = (Some(1), Some(3));
        options.max_steps = Some(60);
        options.epochs = 10;
        options
    };
    let whole = early("whole");
    let report = Finetune::new(whole.clone()).run().unwrap();
    assert!(report.steps < 60, "{} steps", report.steps);
    let (adapter, records) = result(&whole.out_dir);
    let losses: Vec<(u64, f64)> =
        records.iter().filter_map(|r| Some((r["step"].as_u64()?, r["val_loss"].as_f64()?))).collect();
    let best = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(best.0 as usize + 3, report.steps, "{losses:?}");
    let folder_of_best = whole.out_dir.join(format!("best-{:06}", best.0));
    assert_eq!(adapter, fs::read(folder_of_best.join("adapter_model.safetensors")).unwrap());
    let state = whole.out_dir.join(format!("step-{:06}/adapter_model.safetensors", report.steps));
    assert_ne!(adapter, fs::read(state).unwrap(), "not the last");
    // stopped after the best, gone on, and asked once more after its end
    let mut parts = early("parts");
    parts.resume = Some("auto".into());
    let flag = Arc::new(AtomicBool::new(false));
    let (set, at) = (Arc::clone(&flag), best.0 as usize);
    let run = Finetune::new(parts.clone()).stop_when(flag).on_event(move |event| {
        if matches!(event, Event::Step(record) if record.step >= at) {
            set.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!(run.run().unwrap_err().failure(), Failure::Stopped);
    for _ in 0..2 {
        let again = Finetune::new(parts.clone()).run().unwrap();
        assert_eq!((again.steps, again.val_loss), (report.steps, report.val_loss));
        assert!(result(&whole.out_dir) == result(&parts.out_dir));
    }
    // gone on in another folder, after the best: it comes along
    let mut moved = early("moved");
    moved.resume = Some(whole.out_dir.join(format!("step-{:06}", report.steps)));
    Finetune::new(moved.clone()).run().unwrap();
    assert!(result(&whole.out_dir) == result(&moved.out_dir));
    // another run in the same folder has its own best, and the other's is set aside
    let other = FinetuneOptions { learning_rate: 1e-3, max_steps: Some(3), ..early("whole") };
    Finetune::new(other).run().unwrap();
    let aside = whole.out_dir.join("previous").join(folder_of_best.file_name().unwrap());
    assert!(aside.is_dir());
    // what it needs
    let mut wrong = early("wrong");
    wrong.data.val_split_fraction = 0.0;
    let message = Finetune::new(wrong.clone()).run().unwrap_err().to_string();
    assert!(message.contains("validation rows"), "{message}");
    wrong.eval_interval = None;
    let message = Finetune::new(wrong).run().unwrap_err().to_string();
    assert!(message.contains("--eval_interval"), "{message}");
}

#[test]
fn another_run_is_refused_by_name() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), "out", Precision::F32True);
    options.max_steps = Some(3);
    Finetune::new(options.clone()).run().unwrap();
    options.resume = Some("auto".into());
    let refused = |change: &dyn Fn(&mut FinetuneOptions)| {
        let mut options = options.clone();
        change(&mut options);
        let error = Finetune::new(options).run().unwrap_err();
        assert_eq!(error.failure(), Failure::Input, "{error}");
        error.to_string()
    };
    let message = refused(&|o| o.seed = 7);
    assert!(message.contains("--seed 1337, now it is 7"), "{message}");
    let message = refused(&|o| o.lora.rank = 4);
    assert!(message.contains("lora.rank 8, now it is 4"), "{message}");
    let message = refused(&|o| o.resume = Some("nowhere".into()));
    assert!(message.contains("nowhere") && message.contains("cannot be read"), "{message}");
    let text = fs::read_to_string(folder.path().join("data.json")).unwrap();
    fs::write(folder.path().join("data.json"), text.replace("say 7", "say 8")).unwrap();
    let message = refused(&|_| ());
    assert!(message.contains("data are not those"), "{message}");
}

/// Killed without warning at moments all over the run: it goes on each time, and ends with the same bits and no half file.
#[test]
fn a_killed_run_goes_on_with_the_same_bits() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = data(folder.path());
    let run = |out: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
        command
            .args([
                "finetune",
                "--precision",
                "32-true",
                "--batch_size",
                "4",
                "--micro_batch_size",
                "2",
                "--epochs",
                "20",
            ])
            .args([
                "--max_steps",
                "12",
                "--eval_interval",
                "2",
                "--save_interval",
                "1",
                "--lora_dropout",
                "0.1",
            ])
            .args(["--tune", "off", "--learning_rate", "1e-3", "--resume", "auto"])
            .arg("--data.json_path")
            .arg(&data)
            .arg("--out_dir")
            .arg(folder.path().join(out))
            .arg(common::fixtures().join("models/llama"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    let start = Instant::now();
    assert!(run("whole").status().unwrap().success());
    let length = start.elapsed().as_secs_f64();
    let mut random = common::Random::new(11);
    let mut killed = 0;
    for _ in 0..20 {
        let mut child = run("parts").spawn().unwrap();
        // from before the first step to some steps on
        std::thread::sleep(Duration::from_secs_f64(0.1 + length / 12.0 * (random.next() + 1.0)));
        if child.try_wait().unwrap().is_none() {
            killed += 1;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for entry in
            fs::read_dir(folder.path().join("parts")).into_iter().flatten().map(|e| e.unwrap().path())
        {
            let name = entry.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("step-") {
                let files = ["adapter_model.safetensors", "adapter_config.json", "training_state.json"];
                assert!(files.iter().all(|f| entry.join(f).is_file()), "{name} is half written");
            }
        }
    }
    assert!(run("parts").status().unwrap().success());
    println!("killed {killed} times, the whole run takes {length:.1} s");
    assert!(killed >= 5, "killed {killed} times");
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    assert!(result(&whole) == result(&parts));
    assert!(hidden(&parts).is_empty(), "{:?}", hidden(&parts));
}
