//! `--tui` in a real terminal (a pseudo-terminal of Python's): the screen is taken, shows the run, and is given back however it ends.
#![cfg(unix)]

mod common;

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Takes the whole screen, and gives it back.
const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

fn arguments(folder: &Path, options: &[&str]) -> Vec<String> {
    let data = folder.join("data.json");
    let rows: Vec<Value> =
        (0..40).map(|i| json!({ "instruction": format!("say {i}"), "output": i.to_string() })).collect();
    fs::write(&data, json!(rows).to_string()).unwrap();
    let (model, out) = (common::fixtures().join("models/llama"), folder.join("out"));
    let paths = ["finetune", model.to_str().unwrap(), "--data", data.to_str().unwrap(), "--out_dir"];
    let fixed =
        [out.to_str().unwrap(), "--batch_size", "4", "--max_seq_length", "100", "--tune", "off", "--tui"];
    let gpu = std::env::var("ENGRAFT_TEST_GPU");
    let gpu = gpu.as_deref().map_or(vec![], |gpu| vec!["--gpu", gpu]);
    [&paths[..], &fixed, options, &gpu].concat().into_iter().map(str::to_owned).collect()
}

/// Runs in a terminal, types `keys` when the screen shows `after`; `None`, said loudly, without Python.
fn in_terminal(after: &str, keys: &str, arguments: &[String]) -> Option<Value> {
    common::gpu()?;
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: python3 is not on this machine");
        return None;
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python/run_in_terminal.py");
    let mut command = Command::new("python3");
    command.arg(script).args([after, keys, env!("CARGO_BIN_EXE_engraft")]).args(arguments);
    let output = command.env("TERM", "xterm-256color").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["restored"], true, "the terminal reads lines again: {result}");
    Some(result)
}

/// What was shown on the screen, and the lines after it.
fn parts(result: &Value) -> (String, String) {
    let output = result["output"].as_str().unwrap();
    assert_eq!((output.matches(ENTER).count(), output.matches(LEAVE).count()), (1, 1), "{output}");
    assert_eq!(result["raw_while_running"], true);
    let (_, rest) = output.split_once(ENTER).unwrap();
    let (screen, after) = rest.split_once(LEAVE).unwrap();
    (screen.to_owned(), after.to_owned())
}

#[test]
fn the_screen_shows_the_run_and_the_summary_follows() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--max_steps", "12", "--epochs", "9", "--eval_interval", "4"];
    let Some(result) = in_terminal("", "", &arguments(folder.path(), &options)) else { return };
    let (screen, after) = parts(&result);
    assert_eq!(result["status"], 0, "{after}");
    for part in ["engraft", "gradient norm", "learning rate", "notes", "val loss"] {
        assert!(screen.contains(part), "{part}: {screen}");
    }
    for part in ["device ", "step 12/12", "step 12: validation loss", "step 12: saved", "finished 12 steps"] {
        assert!(after.contains(part), "{part}: {after}");
    }
}

#[test]
fn ctrl_c_and_signals_stop_the_run_and_give_the_screen_back() {
    // Ctrl-C is a byte here, since the terminal is raw
    for keys in ["\\x03", "q", "kill"] {
        let folder = tempfile::tempdir().unwrap();
        let options = ["--max_steps", "3000", "--epochs", "900"];
        let Some(result) = in_terminal("gradient norm", keys, &arguments(folder.path(), &options)) else {
            return;
        };
        let (_, after) = parts(&result);
        assert_eq!(result["status"], 130, "{keys}: {after}");
        assert!(after.contains("stopped after step") && after.contains("--resume"), "{keys}: {after}");
        let saved = fs::read_dir(folder.path().join("out")).unwrap();
        let saved = saved.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        assert!(saved.into_iter().any(|name| name.starts_with("step-")), "{keys}");
    }
}

#[test]
fn an_error_gives_the_screen_back_and_is_told_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--learning_rate", "1e30", "--max_steps", "90", "--epochs", "90"];
    let Some(result) = in_terminal("", "", &arguments(folder.path(), &options)) else { return };
    let (_, after) = parts(&result);
    assert_eq!(result["status"], 1, "{after}");
    assert!(after.contains("engraft: step 2: gradients are not finite"), "{after}");
}

#[test]
fn bad_input_is_told_before_the_screen_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let options = ["--data.val_split_fraction", "0.001"];
    let Some(result) = in_terminal("", "", &arguments(folder.path(), &options)) else { return };
    let output = result["output"].as_str().unwrap();
    assert_eq!(result["status"], 2, "{output}");
    assert!(!output.contains(ENTER) && output.contains("val_split_fraction"), "{output}");
}

#[test]
fn without_a_terminal_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for more in [&[][..], &["--quiet"]] {
        let command = [
            &arguments(folder.path(), &[])[..],
            &more.iter().map(|w: &&str| w.to_string()).collect::<Vec<_>>(),
        ]
        .concat();
        let output = Command::new(env!("CARGO_BIN_EXE_engraft")).args(command).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("--tui"), "{said}");
        assert!(!folder.path().join("out").exists());
    }
}
