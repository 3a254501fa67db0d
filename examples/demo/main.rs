//! What `make demo` runs: a small model learns a task that it never saw, and is asked before and after.
//!
//! The model (0.97 M parameters, f16) knows ten word games; Pig Latin is not among them. See README.md beside this file
//! for how it was made.

use engraft::data::{PromptStyle, Record, Tokenizer, read_records};
use engraft::generate::sampling::SamplingOptions;
use engraft::generate::{GenerateOptions, Generator};
use engraft::gpu::{Gpu, GpuOptions};
use engraft::train::finetune::Finetune;
use engraft::train::metrics::Event;
use engraft::train::options::{FinetuneOptions, Precision};
use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Held-out words that are asked, and how many of them are shown.
const QUESTIONS: usize = 60;
const SHOWN: usize = 8;
const PRECISION: Precision = Precision::BF16True;

fn main() -> Result<(), Box<dyn Error>> {
    let clock = Instant::now();
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/demo");
    let out = std::env::args().nth(1).map_or_else(|| PathBuf::from("target/demo"), PathBuf::from);
    let model = here.join("model");
    let questions: Vec<Record> =
        read_records(&here.join("data/new_task_test.json"))?.into_iter().take(QUESTIONS).collect();
    let gpu = Gpu::open(&GpuOptions::default())?;
    println!("device: {} ({}), {}", gpu.info().name, gpu.info().kind, gpu.info().driver);
    println!(
        "task:   {} ({} words that are not in the training data)\n",
        questions[0].instruction,
        questions.len()
    );

    let before = answers(&gpu, &model, None, &questions)?;
    let mut options = FinetuneOptions {
        model_dir: model.clone(),
        out_dir: out.clone(),
        precision: PRECISION,
        batch_size: 16,
        micro_batch_size: 16,
        learning_rate: 3e-3,
        lr_warmup_steps: Some(20),
        epochs: 3,
        ..Default::default()
    };
    options.data.json_path = here.join("data/new_task_train.json");
    options.data.val_split_fraction = 0.0;
    options.lora.rank = 16;
    options.lora.alpha = 32.0;
    let report = Finetune::new(options).on_event(|event| show(event, clock)).run()?;
    let after = answers(&gpu, &model, Some(&out), &questions)?;

    println!("\n{:<12} {:<18} {:<18} right", "word", "before", "after");
    for (record, (before, after)) in questions.iter().zip(before.iter().zip(&after)).take(SHOWN) {
        let word = record.input.as_deref().unwrap_or_default();
        println!(
            "{word:<12} {before:<18} {after:<18} {}",
            if *after == record.output { "yes" } else { "no" }
        );
    }
    let percent = |answers: &[String]| {
        let right = answers.iter().zip(&questions).filter(|(a, r)| **a == r.output).count();
        100.0 * right as f64 / questions.len() as f64
    };
    println!(
        "\nexact answers on held-out words: {:.0} % before, {:.0} % after",
        percent(&before),
        percent(&after)
    );
    println!("trained on {} tokens in {:.0} s; {}", report.tokens, report.seconds, report.memory);
    println!(
        "the adapter, as PEFT reads it, is in {}; all took {:.0} s",
        out.display(),
        clock.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Greedy answers of the model, with or without the adapter.
fn answers(
    gpu: &Gpu,
    model: &Path,
    adapter: Option<&Path>,
    questions: &[Record],
) -> Result<Vec<String>, Box<dyn Error>> {
    let tokenizer = Tokenizer::open(model)?;
    let mut generator = Generator::open(gpu, model, adapter, PRECISION, 96)?;
    let options = GenerateOptions {
        max_new_tokens: 24,
        sampling: SamplingOptions { temperature: 0.0, ..Default::default() },
        stop: tokenizer.stop_tokens().to_vec(),
        ..Default::default()
    };
    let mut all = Vec::new();
    for record in questions {
        let prompt = PromptStyle::Alpaca.prompt(&record.instruction, record.input.as_deref());
        generator.reset();
        let answer =
            generator.generate(&tokenizer.encode(&prompt)?, &options, &mut |_| ControlFlow::Continue(()))?;
        all.push(tokenizer.decode(&answer.tokens)?.trim().to_string());
    }
    Ok(all)
}

fn show(event: &Event, clock: Instant) {
    match event {
        Event::Note(text) => println!("{text}"),
        Event::Tuned(progress) if progress.done == 1 => println!(
            "measuring kernels for {} classes of kernels, once for this device and driver",
            progress.total
        ),
        Event::Started(run) => println!(
            "training {} of {} parameters, {} steps",
            run.trainable_parameters,
            run.base_parameters + run.trainable_parameters,
            run.steps
        ),
        Event::Step(step) if step.step % 20 == 0 || step.step == 1 => println!(
            "step {:3}  loss {:.4}  {:.0} tokens/s  {:.0} s",
            step.step,
            step.loss,
            step.tokens_per_s,
            clock.elapsed().as_secs_f64()
        ),
        _ => {}
    }
}
