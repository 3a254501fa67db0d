//! Texts written at evaluations, and the optimisers beside AdamW's defaults.

mod common;

use engraft::data::{Encoder, SampleOptions, Tokenizer};
use engraft::generate::{GenerateOptions, Generator};
use engraft::gpu::{Gpu, GpuOptions};
use engraft::train::finetune::Finetune;
use engraft::train::metrics::{Event, SampleRecord};
use engraft::train::options::{Example, FinetuneOptions, OptimizerKind, Precision, TuneMode};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

fn options(folder: &Path, out: &str) -> FinetuneOptions {
    let data = folder.join("rows.json");
    let rows: Vec<Value> = (0..40)
        .map(|i| json!({ "instruction": format!("say {i}"), "input": "", "output": format!("{} and {}", i * 7, i) }))
        .collect();
    fs::write(&data, serde_json::to_vec(&rows).unwrap()).unwrap();
    let mut options = FinetuneOptions {
        model_dir: common::fixtures().join("models/llama"),
        out_dir: folder.join(out),
        precision: Precision::F32True,
        batch_size: 4,
        max_steps: Some(4),
        eval_interval: Some(2),
        learning_rate: 1e-2,
        lr_warmup_steps: Some(0),
        tune: TuneMode::Off,
        ..FinetuneOptions::default()
    };
    options.data.json_path = data;
    options
}

fn samples(options: &FinetuneOptions) -> Vec<SampleRecord> {
    let mut samples = Vec::new();
    let run = Finetune::new(options.clone()).on_event(|event| {
        if let Event::Sample(record) = event {
            samples.push(record.clone());
        }
    });
    run.run().unwrap();
    samples
}

/// What a run writes is what `generate` writes with the adapter that it saves.
#[test]
fn samples_are_those_of_the_saved_adapter() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), "out");
    let prompts = folder.path().join("prompts.txt");
    fs::write(&prompts, "say 7\n\n  a much longer prompt that says nothing at all, but it is longer  \n")
        .unwrap();
    (options.eval_prompts, options.eval_max_new_tokens) = (Some(prompts), Some(12));
    // the embedding on the host, and a block too
    options.offload = 1;
    let samples = samples(&options);
    assert_eq!(samples.iter().map(|s| s.step).collect::<Vec<_>>(), [2, 2, 4, 4]);
    let logged = fs::read_to_string(options.out_dir.join("metrics.jsonl")).unwrap();
    let logged: Vec<Value> = logged.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(logged.iter().filter(|r| r.get("prompt").is_some()).count(), 4);

    let tokenizer = Tokenizer::open(&options.model_dir).unwrap();
    let style = options.data.prompt_style.parse().unwrap();
    let encoder =
        Encoder::new(&tokenizer, SampleOptions { style, ..SampleOptions::default() }, None).unwrap();
    let gpu = Gpu::open(&GpuOptions::default()).unwrap();
    let model = &options.model_dir;
    let mut generator =
        Generator::open(&gpu, model, Some(&options.out_dir), Precision::F32True, 128).unwrap();
    for sample in &samples[2..] {
        let mut wanted = GenerateOptions {
            max_new_tokens: 12,
            stop: tokenizer.stop_tokens().to_vec(),
            ..GenerateOptions::default()
        };
        wanted.sampling.temperature = 0.0;
        let prompt = encoder.prompt(&sample.prompt, None).unwrap();
        let text = generator.generate(&prompt, &wanted, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(sample.text, tokenizer.decode(&text.tokens).unwrap(), "{}", sample.prompt);
    }
}

#[test]
fn a_validation_row_is_continued_where_no_file_is_given() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), "out");
    options.eval_max_new_tokens = Some(4);
    let first = samples(&options);
    assert!(first.len() == 2 && first[0].prompt.contains("say "), "{first:?}");
    options.evaluate_example = Some(Example::Index(1));
    assert_ne!(samples(&options)[0].prompt, first[0].prompt);
    // where prompts are learned too, nothing says where the answer begins
    options.data.mask_prompt = false;
    let error = Finetune::new(options.clone()).run().unwrap_err().to_string();
    assert!(error.contains("--eval_prompts FILE"), "{error}");
    options.evaluate_example = None;
    assert!(samples(&options).is_empty());
    options.data.mask_prompt = true;
    options.evaluate_example = Some(Example::Index(99));
    let error = Finetune::new(options.clone()).run().unwrap_err().to_string();
    assert!(error.contains("4 validation rows"), "{error}");
    let file = folder.path().join("empty.txt");
    fs::write(&file, "\n \n").unwrap();
    options.eval_prompts = Some(file);
    let error = Finetune::new(options.clone()).run().unwrap_err().to_string();
    assert!(error.contains("one per line"), "{error}");
    options.eval_prompts = Some("nowhere.txt".into());
    let error = Finetune::new(options).run().unwrap_err().to_string();
    assert!(error.contains("nowhere.txt") && error.contains("cannot be read"), "{error}");
}

fn tensors(out: &Path) -> HashMap<String, Vec<f32>> {
    let bytes = fs::read(out.join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            (name, view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        })
        .collect()
}

/// The first step of SGD moves B (which begins at zero) along its gradient, `ratio` times as far under LoRA+, and A not at all:
/// its gradient is zero.
#[test]
fn the_rate_of_b_is_a_multiple_under_loraplus() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, ratio: f64, optimizer| {
        let mut options = options(folder.path(), name);
        (options.max_steps, options.optimizer, options.weight_decay) = (Some(1), optimizer, 0.0);
        options.loraplus_lr_ratio = ratio;
        Finetune::new(options.clone()).run().unwrap();
        tensors(&options.out_dir)
    };
    for optimizer in [OptimizerKind::Sgd, OptimizerKind::AdamW] {
        let (plain, plus) = (run("plain", 1.0, optimizer), run("plus", 16.0, optimizer));
        for (name, values) in &plain {
            let factor = if name.contains("lora_B") { 16.0 } else { 1.0 };
            let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest > 0.0, "{name} is zero");
            for (a, b) in values.iter().zip(&plus[name]) {
                assert!((a * factor - b).abs() <= 1e-6 * factor * largest, "{optimizer} {name}: {a} {b}");
            }
        }
    }
}

/// SGD with momentum takes up again with the same bits, with one moment and not two.
#[test]
fn sgd_goes_on_with_the_same_bits() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(folder.path(), "whole");
    (options.optimizer, options.momentum, options.save_interval) = (OptimizerKind::Sgd, 0.9, Some(2));
    let report = Finetune::new(options.clone()).run().unwrap();
    assert_eq!(2 * report.memory.optimiser, report.memory.trainables);
    let whole = tensors(&options.out_dir);
    options.resume = Some(options.out_dir.join("step-000002"));
    options.out_dir = folder.path().join("resumed");
    Finetune::new(options.clone()).run().unwrap();
    assert!(whole == tensors(&options.out_dir));
}
